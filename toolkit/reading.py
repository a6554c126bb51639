"""From a source of rows to conformed, hashed rows, block by block, and on to arrays.

Belongs here: what both trainings do to rows before any of them has a role, and where rows are kept
that do not fit into memory.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import columns, roles, tables
from .columns import Schema
from .encoding import Preprocessor
from .errors import UserError
from .kinds import infer_schema, leaks

if TYPE_CHECKING:
    from .artifact import TrainedModel
    from .cli import TrainingSettings

KINDS = ("drop", "keep", "numeric", "categorical", "date", "na")
IN_MEMORY = 1_000_000  # rows; of more a sample is kept, and all of them in a temporary folder


class Rows:
    """Hold conformed, hashed rows: all of them, or a sample beside files with all of them.

    The sample are the IN_MEMORY rows whose scrambled hashes are the smallest, whatever the order
    of the rows (bottom-k sampling, as in `roles.smallest`), and the latest of all rows where `time`
    names a column: what is held out by time ends there. With `folder` all rows are kept there,
    however few they are.

    Attributes: table, all rows or the sample, as `roles.py` describes it; n_rows, of the source.
    """

    def __init__(self, time: str = "", folder: Path | None = None) -> None:
        self.time, self.n_rows, self.table = time, 0, pd.DataFrame()
        self.folder = folder
        self.shares: list = []  # of workers, which keep the rows (`engine.py`)
        self.keep: tempfile.TemporaryDirectory | None = None
        self._parts: list[pd.DataFrame] = []
        self._latest = pd.DataFrame()
        self._files: list[Path] = []
        self._limit = np.uint64(2**64 - 1)  # of the keys of rows that may enter the sample

    def add(self, block: pd.DataFrame) -> None:
        """Add rows; complete `table` by `finish` afterwards."""
        self.n_rows += len(block)
        self._parts.append(block)
        if self.time:
            self._latest = pd.concat([self._latest, block]).nlargest(1, self.time)
        if self.n_rows <= IN_MEMORY and not self.folder:
            return
        if not self.folder:
            self.keep = tempfile.TemporaryDirectory(prefix="rows-")
            self.folder = Path(self.keep.name)
        for part in self._parts[-1 if self._files else 0 :]:
            self._files.append(self.folder / f"{len(self._files)}.feather")
            part.to_feather(self._files[-1], compression="uncompressed")
        self._parts[-1] = block[_keys(block) <= self._limit]
        if sum(map(len, self._parts)) > 1.25 * IN_MEMORY:
            self._cut()

    def _cut(self) -> None:
        keys = [_keys(part) for part in self._parts]
        self._limit = np.sort(np.concatenate(keys))[:IN_MEMORY][-1]
        for number, of_part in enumerate(keys):  # one after the other, to hold few rows twice
            self._parts[number] = self._parts[number][of_part <= self._limit]

    def finish(self) -> "Rows":
        """Put `table` together from what was added."""
        if self.n_rows > IN_MEMORY:
            self._cut()
            self._parts.append(self._latest)
        self.table, self._parts = pd.concat(self._parts, ignore_index=True), []
        return self

    def without_sample(self) -> "Rows":
        """Return a copy that knows the files of the rows alone."""
        rows = copy(self)
        rows._parts = []
        return rows

    def join(self, shares: "list[Rows]") -> None:
        """Take over the samples of shares, in order; the rows themselves stay where they are.

        The rows of the smallest keys of all are among those of each.
        """
        self.n_rows = sum(share.n_rows for share in shares)
        self._parts = [part for share in shares for part in share._parts]
        if self.time:
            latest = [share._latest for share in shares if len(share._latest)]
            self._latest = pd.concat(latest).nlargest(1, self.time)

    def blocks(self) -> Iterator[pd.DataFrame]:
        """Yield all rows: `table`, or one file after the other."""
        yield from map(pd.read_feather, self._files) if self.folder else [self.table]

    def encode(
        self, preprocessor: Preprocessor, role: roles.Roles | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode all training rows (without `role`: all rows) block by block into files.

        Returns (X, float32 of shape (n_rows, width), y), both mapped into memory.
        """
        assert self.folder is not None  # else all rows are in `table`
        target, shape = preprocessor.schema.target.name, (-1, preprocessor.width)
        files = self.folder / "X", self.folder / "y"
        with files[0].open("wb") as X, files[1].open("wb") as y:
            for block in self.blocks():
                rows = block[~role.held_out(block)] if role else block
                preprocessor.transform(rows, roles.folds(rows)).tofile(X)
                rows[target].to_numpy(np.float64).tofile(y)
        return np.memmap(files[0], np.float32, "r").reshape(shape), np.memmap(
            files[1], mode="r", dtype=np.float64
        )

    def encode_blocks(self, *options: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Encode as above; return blocks of equally many rows, which share one compiled program."""
        X, y = self.encode(*options)
        n_rows = -(-len(y) // -(-len(y) // tables.BLOCK_ROWS))
        cuts = range(n_rows, len(y), n_rows)
        return np.split(X, cuts), np.split(y, cuts)


def _keys(rows: pd.DataFrame) -> np.ndarray:
    return roles.scrambled(rows[roles.HASH].to_numpy(), 1)


def read_first(settings: Any) -> tuple[Rows, Schema, list[str]]:
    """Read the rows of a first training, and find out what their columns are.

    Returns (rows, schema, notes for the user). Raises UserError for whatever cannot be used.
    """
    said = {name: getattr(settings, name) for name in KINDS}
    target, data, time = settings.target, settings.data, settings.time

    def find_schema(block: pd.DataFrame) -> tuple[Schema, list[str]]:
        schema, notes = infer_schema(block, target, source=data, **said)
        if time and schema.kinds.get(time) not in ("date", "numeric"):
            raise UserError(
                f"--time {time!r} is no date or number among the features of {data}; they are "
                f"{', '.join(schema.features)}"
            )
        return schema, notes

    rows, schema, notes = _read(settings, find_schema, settings.group or "", time or "")
    columns.check_target(rows.table[target].to_numpy(), target, data)
    return rows, schema, notes


def read_again(
    settings: "TrainingSettings", parent: "TrainedModel", generation: int
) -> tuple[Rows, roles.Roles, list[str]]:
    """Read new rows for a model, and give them the roles that its first training chose.

    Columns unknown to a model of ours are an error. Returns (rows, whose table has roles, roles,
    notes for the user). Raises UserError as `read_first` does.
    """
    role, schema = parent.roles, parent.preprocessor.schema
    group, time = (role.group, role.time) if role else ("", "")
    rows, _, notes = _read(settings, lambda _: (schema, []), group, time, strict=bool(parent.card))
    role = role or roles.Roles.choose(rows.table, settings.test_size, settings.seed)
    role = role.with_latest(rows.table, settings.test_size) if role.time else role
    rows.table = role.assign(rows.table, generation)
    if rows.n_rows > len(rows.table):
        notes.append("a retraining trains on that sample, too")
    return rows, role, notes


def _read(
    settings: "TrainingSettings", find_schema: Callable, group: str, time: str, strict: bool = False
) -> tuple[Rows, Schema, list[str]]:
    data, source = settings.data, tables.open_table(settings.data, settings.query)
    blocks = source.blocks()
    first = next(blocks)
    schema, notes = find_schema(first)
    is_dry = bool(getattr(settings, "dry_run", False))
    collect = partial(
        collected, schema=schema, group=group, time=time, strict=strict, is_dry=is_dry
    )
    if settings.workers > 1:
        from . import engine

        rows = Rows(time)
        rows.keep = tempfile.TemporaryDirectory(prefix="rows-")
        rows.shares, parts = engine.read(collect, source, settings, rows.keep.name)
        rows.join([part for part, _ in parts])
        found = list(dict.fromkeys(note for _, notes in parts for note in notes))
    else:
        rows, found = collect(source, chain(iter([first]), blocks))
    table = rows.finish().table
    if rows.n_rows > len(table):
        notes.append(
            f"{data} has {rows.n_rows:,} rows; columns are measured, and models scored, on a "
            f"uniform sample of {len(table):,} of them"
        )
    return rows, schema, [*source.notes, *notes, *found, *leaks(table, schema)]


def collected(
    source: tables.Table,
    blocks: Iterable[pd.DataFrame],
    folder: Path | None = None,
    *,
    schema: Schema,
    group: str,
    time: str,
    strict: bool,
    is_dry: bool,
) -> tuple[Rows, list[str]]:
    """Conform, hash and keep the blocks of a source; the target may be missing if `is_dry`.

    Returns (rows, to be finished, notes for the user).
    """
    rows, notes, place, data = Rows(time, folder), [], 0, source.source
    for block in blocks:
        if group and group not in block.columns:
            raise UserError(
                f"{data} has no column {group!r} of groups to hold out as a whole; its columns are "
                f"{', '.join(map(str, block.columns))}"
            )
        line = source.first_line + place
        options: dict[str, Any] = {"first_line": line, "strict": strict}
        options["need_target"] = schema.target.name in block or not is_dry
        table, found = columns.conform(block, schema, source=data, **options)
        if not options["need_target"]:  # a look goes without
            table[schema.target.name] = np.nan
        rows.add(roles.hashed(table, block[group].loc[table.index] if group else None))
        notes += found
        place += len(block)
    return rows, notes
