"""From a source to conformed, hashed rows, block by block: what both trainings do before roles."""

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import columns, roles, tables
from .columns import Schema
from .encoding import Preprocessor
from .errors import UserError
from .kinds import infer_schema, leaks

FLAGS = ("drop", "keep", "numeric", "categorical", "date", "na")  # of `infer_schema`
OWN = ("group", "time", "weight")  # flags that name a column, kept in `Roles`
IN_MEMORY = 1_000_000  # rows; of more a sample is kept, and all of them in a temporary folder


class Rows:
    """Read, conform, hash and keep rows: all of them, or a sample beside files with all of them.

    The sample are the IN_MEMORY rows whose scrambled hashes are the smallest, as in
    `roles.smallest`, and the latest row by `time`: what is held out by time ends there. Attributes:
    table, all rows or the sample, as `roles.py` describes it; n_rows, of the source; shares, of
    workers that keep the rows (`engine.py`); options, of `columns.conform`.
    """

    def __init__(
        self, schema: Schema, group: str = "", time: str = "", weight: str = "", **options: Any
    ) -> None:
        self.schema, self.group, self.time, self.weight = schema, group, time, weight
        self.options = options
        self.n_rows, self.table, self._latest = 0, pd.DataFrame(), pd.DataFrame()
        self.shares: list = []
        self.folder: Path | None = None
        self.keep: tempfile.TemporaryDirectory | None = None
        self._parts: list[pd.DataFrame] = []
        self._files: list[Path] = []
        self._limit = np.uint64(2**64 - 1)  # of the keys of rows that may enter the sample

    def read(
        self, source: tables.Table, blocks: Iterable[pd.DataFrame], folder: Path | None = None
    ) -> tuple["Rows", list[str]]:
        """Read blocks into a copy, which keeps all in `folder` if given; return (it, notes)."""
        rows, group, target = copy.deepcopy(self), self.group, self.schema.target.name
        rows.folder = folder
        notes, n_before = list[str](), 0
        for block in blocks:
            place: Any = {"source": source.source, "first_line": source.first_line + n_before}
            if group and group not in block:
                raise UserError(
                    f"{source.source} has no column {group!r} of groups to hold out as a whole; "
                    f"its columns are {', '.join(map(str, block))}"
                )
            table, found = columns.conform(block, self.schema, **place, **self.options)
            if target not in table:  # a look goes without
                table[target] = np.nan
            table = roles.hashed(table, block[group].loc[table.index] if group else None)
            if self.weight:
                needed = self.options.get("need_target", True)  # a look may go without both
                table, more = _weighed(table, block, self.weight, needed=needed, **place)
                found += [note for note in more if note not in notes]
            rows.add(table)
            notes += found
            n_before += len(block)
        return rows, notes

    def add(self, block: pd.DataFrame) -> None:
        """Add conformed and hashed rows."""
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
        self._parts[-1] = block[roles.scrambled(block[roles.HASH], 1) <= self._limit]
        if sum(map(len, self._parts)) > 1.25 * IN_MEMORY:
            self._cut()

    def _cut(self) -> None:
        keys = [roles.scrambled(part[roles.HASH], 1) for part in self._parts]
        self._limit = np.sort(np.concatenate(keys))[:IN_MEMORY][-1]
        for number, of_part in enumerate(keys):  # one after the other, to hold few rows twice
            self._parts[number] = self._parts[number][of_part <= self._limit]

    def finish(self) -> pd.DataFrame:
        """Put `table` together from what was read."""
        if self.n_rows > IN_MEMORY:
            self._cut()
            self._parts.append(self._latest)
        self.table, self._parts = pd.concat(self._parts, ignore_index=True), []
        return self.table

    def without_sample(self) -> "Rows":
        """Return a copy that knows the files of the rows alone."""
        rows = copy.copy(self)
        rows._parts = []
        return rows

    def join(self, shares: "list[Rows]") -> None:
        """Take over the samples of shares, in order, which hold the rows of the smallest keys."""
        self.n_rows = sum(share.n_rows for share in shares)
        self._parts = [part for share in shares for part in share._parts]
        if self.time:
            self._latest = pd.concat([share._latest for share in shares]).nlargest(1, self.time)

    def blocks(self) -> Iterator[pd.DataFrame]:
        """Yield all rows: `table`, or one file after the other."""
        yield from map(pd.read_feather, self._files) if self.folder else [self.table]

    def encode(
        self, preprocessor: Preprocessor, role: roles.Roles | None, mean_weight: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encode all training rows (without `role`: all rows) into files, memory-mapped.

        Returns X, y, and weights over `mean_weight`, float64 of shape (n_rows,).
        """
        assert self.folder is not None  # else all rows are in `table`
        target, files = preprocessor.schema.target.name, [self.folder / n for n in ("X", "y", "w")]
        with files[0].open("wb") as X, files[1].open("wb") as y, files[2].open("wb") as weights:
            for block in self.blocks():
                rows = block[~role.held_out(block)] if role else block
                preprocessor.transform(rows, roles.folds(rows)).tofile(X)
                rows[target].to_numpy(np.float64).tofile(y)
                (roles.weights(rows) / mean_weight).tofile(weights)
        inputs = np.memmap(files[0], np.float32, "r").reshape(-1, preprocessor.width)
        return inputs, np.memmap(files[1], np.float64, "r"), np.memmap(files[2], np.float64, "r")

    def encode_blocks(self, *options: Any) -> tuple[list[np.ndarray], ...]:
        """Encode as above; return blocks of equally many rows, which share one compiled program."""
        X, y, weights = self.encode(*options)
        n_rows = -(-len(y) // -(-len(y) // tables.BLOCK_ROWS))
        cuts = range(n_rows, len(y), n_rows)
        return np.split(X, cuts), np.split(y, cuts), np.split(weights, cuts)


def _weighed(
    table: pd.DataFrame, block: pd.DataFrame, name: str, source: str, first_line: int, needed: bool
) -> tuple[pd.DataFrame, list[str]]:
    """Add the weights in column `name` of a block to the table made of it, and leave out its zeros.

    A row of weight 0 is as good as none, in statistics and roles, too. Without the column all weigh
    1, where it is not `needed`. Returns the table and notes; UserError for what is no weight.
    """
    if name not in block and not needed:
        return table.assign(**{roles.WEIGHT: 1.0}), []
    if name not in block:
        raise UserError(
            f"{source} has no column {name!r} of weights; expected how much each row counts: add "
            f"or rename it, its columns are {', '.join(map(str, block))}"
        )
    weights, bad = columns.read_cells(block[name], columns.Column(name, "numeric"))
    wrong = np.flatnonzero(bad | ~(weights >= 0))
    if len(wrong):
        raise UserError(
            f"the weight {name!r} of {source} is {str(block[name].iloc[wrong[0]])[:40]!r} in "
            f"{columns.lines(wrong, first_line)}; expected a number from 0 on in every row: "
            "correct it, or write 0 where a row must not count"
        )
    table = table.assign(**{roles.WEIGHT: weights[table.index]})
    counts = table[roles.WEIGHT] > 0
    note = f"rows of {source} whose weight {name!r} is 0 are left out"
    return table[counts], [] if counts.all() else [note]


def read_first(settings: Any) -> tuple[Rows, Schema, list[str]]:
    """Read the rows of a first training: (rows, schema found out, notes), or UserError."""
    said = {flag: getattr(settings, flag) for flag in FLAGS}
    target, data, time = settings.target, settings.data, settings.time

    def find_schema(block: pd.DataFrame) -> tuple[Schema, list[str]]:
        weight = {settings.weight} & set(block) - {target}  # it is no feature
        said["drop"] = (*settings.drop, *weight)
        schema, notes = infer_schema(block, target, source=data, **said)
        if time and schema.kinds.get(time) not in ("date", "numeric"):
            raise UserError(
                f"--time {time!r} is no date or number among the features of {data}; they are "
                f"{', '.join(schema.features)}"
            )
        return schema, notes

    own = {name: getattr(settings, name) or "" for name in OWN}
    rows, schema, notes = _read(settings, find_schema, own)
    y = rows.table[target]
    if len(y) < columns.MIN_ROWS:
        raise UserError(f"{data} has {len(y)} rows; expected at least {columns.MIN_ROWS}: add rows")
    if y.min() == y.max():
        raise UserError(
            f"the target {target!r} is {y.min():g} in every row of {data}; expected a column that "
            "varies: choose another one with --target"
        )
    alike = "" if settings.group or time else roles.alike_beside(y.to_numpy())
    return rows, schema, [*notes, *([alike] if alike else [])]


def read_again(settings: Any, parent: Any, generation: int) -> tuple[Rows, roles.Roles, list[str]]:
    """Read new rows for a `TrainedModel`: (rows, whose table has roles, roles, notes).

    Raises UserError as `read_first` does, and for columns that are unknown to a model of ours.
    """
    role, schema = parent.roles, parent.preprocessor.schema
    own = {name: getattr(role, name) for name in OWN} if role else {}
    rows, _, notes = _read(settings, lambda _: (schema, []), own, strict=bool(parent.card))
    role = role or roles.Roles.choose(rows.table, settings.test_size, settings.seed)
    role = role.with_latest(rows.table, settings.test_size) if role.time else role
    rows.table = role.assign(rows.table, generation)
    if rows.n_rows > len(rows.table):
        notes.append("a retraining trains on that sample, too")
    return rows, role, notes


def _read(
    settings: Any, find_schema: Callable, own: dict[str, str], strict: bool = False
) -> tuple[Rows, Schema, list[str]]:
    data, source = settings.data, tables.open_table(settings.data, settings.query)
    blocks = source.blocks()
    first = next(blocks)
    schema, notes = find_schema(first)
    need_target = schema.target.name in first or not getattr(settings, "dry_run", False)
    empty = Rows(schema, **own, strict=strict, need_target=need_target)
    if settings.workers > 1:
        from . import engine

        rows = copy.deepcopy(empty)
        rows.keep = tempfile.TemporaryDirectory(prefix="rows-")
        rows.shares = engine.shares_of(source, settings, rows.keep.name, empty.read)
        parts = list(engine.stream(lambda share: (yield share.read()), rows.shares))
        rows.join([part for part, _ in parts])
        found = list(dict.fromkeys(note for _, notes in parts for note in notes))
    else:
        rows, found = empty.read(source, chain([first], blocks))
    table = rows.finish()
    if table.empty:
        raise UserError(
            f"the weight {empty.weight!r} is 0 in every row of {data}; expected numbers above 0, "
            "for the rows that count: correct it"
        )
    if rows.n_rows > len(table):
        notes.append(
            f"{data} has {rows.n_rows:,} rows; columns are measured, and models scored, on a "
            f"uniform sample of {len(table):,} of them"
        )
    return rows, schema, [*source.notes, *notes, *found, *leaks(table, schema)]
