"""From a source to conformed, hashed rows, block by block: what both trainings do before roles."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import columns, roles, tables
from .columns import Schema
from .encoding import Preprocessor
from .errors import UserError, masked
from .kinds import infer_schema, leaks
from .tables import Blocks, Table

FLAGS = ("drop", "keep", "numeric", "categorical", "date", "na")  # of `infer_schema`
OWN = ("group", "time", "weight")  # flags that name a column, kept in `Roles`
IN_MEMORY = 1_000_000  # rows; of more a sample is kept, and all of them in a temporary folder


@dataclass
class Rows:
    """Keep conformed and hashed rows: all of them, or a sample beside files with all of them.

    The sample are the IN_MEMORY rows whose scrambled hashes are the smallest, as in
    `roles.smallest`, and the latest row by `time`: what is held out by time ends there.
    """

    time: str = ""
    folder: Path | None = None  # of the files
    keep: tempfile.TemporaryDirectory | None = None
    shares: list = field(default_factory=list)  # of workers that keep the rows (`engine.py`)
    n_rows: int = 0  # of the source
    table: pd.DataFrame = field(default_factory=pd.DataFrame)  # all rows or the sample
    parts: list[pd.DataFrame] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    limit: np.uint64 = np.uint64(2**64 - 1)  # noqa: RUF009 - of the hashes in the sample

    def add(self, block: pd.DataFrame) -> None:
        """Add conformed and hashed rows."""
        self.n_rows += len(block)
        self.parts.append(block)
        if self.n_rows <= IN_MEMORY and not self.folder:
            return
        if not self.folder:
            self.keep = tempfile.TemporaryDirectory(prefix="rows-")
            self.folder = Path(self.keep.name)
        for part in self.parts[-1 if self.files else 0 :]:
            self.files.append(self.folder / f"{len(self.files)}.feather")
            part.to_feather(self.files[-1], compression="uncompressed")
        self.parts[-1] = self._sampled(block)
        if sum(map(len, self.parts)) > 1.25 * IN_MEMORY:
            self.parts = [self.joined()]

    def _sampled(self, rows: pd.DataFrame) -> pd.DataFrame:
        kept = roles.scrambled(rows[roles.HASH], roles.SAMPLE) <= self.limit
        if self.time:
            kept |= rows.index.isin(rows.nlargest(1, self.time).index)
        return rows[kept]

    def joined(self) -> pd.DataFrame:
        """Join what was read: all rows, or the sample."""
        table, self.parts = pd.concat(self.parts, ignore_index=True), []
        if len(table) > IN_MEMORY:
            keys = roles.scrambled(table[roles.HASH], roles.SAMPLE)
            self.limit = np.partition(keys, IN_MEMORY - 1)[IN_MEMORY - 1]
            table = self._sampled(table).reset_index(drop=True)
        return table

    def blocks(self) -> Blocks:
        """Yield all rows: `table`, or one file after the other."""
        yield from map(pd.read_feather, self.files) if self.folder else [self.table]

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
        kinds = np.float32, np.float64, np.float64
        inputs, y_of, w_of = (  # an empty file cannot be mapped
            np.memmap(file, kind, "r") if file.stat().st_size else np.empty(0, kind)
            for file, kind in zip(files, kinds, strict=True)
        )
        return inputs.reshape(-1, preprocessor.width), y_of, w_of

    def encode_blocks(self, *options: Any) -> tuple[list[np.ndarray], ...]:
        """Encode as above; return blocks of equally many rows, which share one compiled program."""
        X, y, weights = self.encode(*options)
        n_rows = -(-len(y) // -(-len(y) // tables.BLOCK_ROWS))
        cuts = range(n_rows, len(y), n_rows)
        return np.split(X, cuts), np.split(y, cuts), np.split(weights, cuts)


def read(
    schema: Schema, own: dict, options: dict, source: Table, blocks: Blocks, folder: Path | None
) -> tuple[Rows, list[str]]:
    """Read blocks of a source; return the rows, all of which are in `folder` if given, and notes.

    own: a column or "" for each of OWN; options: of `columns.conform`. A row of weight 0 is as good
    as none, in statistics and roles, too. Where the target or the weight is missing it is NaN or 1.
    """
    group, time, weight = (own[name] for name in OWN)
    rows, notes, n_before = Rows(time, folder), list[str](), 0
    for block in blocks:
        place: Any = {"source": source.source, "where": partial(source.lines, n_before=n_before)}
        table, found = columns.conform(block, schema, decimal=source.decimal, **place, **options)
        if schema.target.name not in table:
            table[schema.target.name] = np.nan
        table = roles.hashed(table, block[group].loc[table.index] if group else None)
        if weight:
            mark = columns.mark_of_file(block, schema.columns) or source.decimal
            cells = block.get(weight, pd.Series(1.0, block.index))
            counts = _weights(cells, mark, **place)
            table[roles.WEIGHT] = counts[table.index]
            if not counts[table.index].all():
                found.append(f"rows of {source.source} whose weight {weight!r} is 0 are left out")
                table = table[table[roles.WEIGHT] > 0]
        rows.add(table)
        notes += found
        n_before += len(block)
    return rows, notes


def _weights(cells: pd.Series, mark: str, source: str, where: columns.Where) -> np.ndarray:
    """Read weights, float64 of shape (n_rows,); UserError for what is none."""
    weights, bad = columns.read_cells(cells, columns.Column(str(cells.name), "numeric"), mark)
    wrong = np.flatnonzero(bad | ~(weights >= 0))
    if len(wrong):
        raise UserError(
            f"the weight {cells.name!r} of {source} is {str(cells.iloc[wrong[0]])[:40]!r} in "
            f"{where(wrong)}; expected a number from 0 on in every row: "
            "correct it, or write 0 where a row must not count"
        )
    return weights


def read_first(settings: Any) -> tuple[Rows, Schema, list[str]]:
    """Read the rows of a first training: (rows, schema found out, notes), or UserError."""
    said = {flag: getattr(settings, flag) for flag in FLAGS}
    target, data, time = settings.target, masked(settings.data), settings.time

    def find_schema(block: pd.DataFrame, decimal: str) -> tuple[Schema, list[str]]:
        weight = {settings.weight} & set(block) - {target}  # it is no feature
        said["drop"] = (*settings.drop, *weight)
        schema, notes = infer_schema(block, target, source=data, decimal=decimal, **said)
        if time and schema.kinds.get(time) not in ("date", "numeric"):
            raise UserError(
                f"--time {time!r} is no date or number among the features of {data}; they are "
                f"{', '.join(schema.features)}"
            )
        return schema, notes

    own = {name: getattr(settings, name) or "" for name in OWN}
    for name in (name for name in ("group", "time") if own[name] == target):
        raise UserError(f"--{name} {target!r} is the target; expected another column: choose one")
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
    notes += [alike] if alike else []
    if settings.group and time:
        notes.append(f"the latest rows are held out, whatever their {settings.group!r}")
    return rows, schema, notes


def read_again(settings: Any, parent: Any, generation: int) -> tuple[Rows, roles.Roles, list[str]]:
    """Read rows for a `TrainedModel`: (rows, whose table has roles; roles; notes), or UserError."""
    role, schema = parent.roles, parent.preprocessor.schema
    for column in (schema.target, *schema.columns):  # the child knows them, too
        column.markers.extend(mark for mark in settings.na if mark not in column.markers)
    own = {name: getattr(role, name, "") for name in OWN}
    rows, _, notes = _read(settings, lambda *_: (schema, []), own, strict=bool(parent.card))
    role = role or roles.Roles.choose(rows.table, settings.test_size, settings.seed)
    role = role.with_latest(rows.table, settings.test_size) if role.time else role
    rows.table = role.assign(rows.table, generation)
    if rows.n_rows > len(rows.table):
        notes.append("a retraining trains on that sample, too")
    return rows, role, notes


def _read(
    settings: Any, find_schema: Callable, own: dict[str, str], strict: bool = False
) -> tuple[Rows, Schema, list[str]]:
    data, source = masked(settings.data), tables.open_table(settings.data, settings.query)
    blocks = source.blocks()
    first = _first_rows(blocks, getattr(settings, "drop", None))
    schema, notes = find_schema(first, source.decimal)
    need_target, name = True, schema.target.name
    if getattr(settings, "dry_run", False):  # the target may be unknown as yet
        need_target = name in first and columns.as_text(first[name]).notna().any()
    wanted = {own["group"]: "groups to hold out as a whole"}
    if need_target:  # a look may go without both
        wanted[own["weight"]] = "weights; expected how much each row counts"
    for name in wanted.keys() - {"", *first}:
        raise UserError(
            f"{source.source} has no column {name!r} of {wanted[name]}: add or rename it, its "
            f"columns are {', '.join(first)}"
        )
    collect = partial(read, schema, own, {"strict": strict, "need_target": need_target})
    if settings.workers > 1:
        rows, found = _read_by_workers(collect, source, settings, own["time"])
    else:
        rows, found = collect(source, chain([first], blocks), None)
    rows.table = rows.joined()
    if rows.table.empty:
        raise UserError(
            f"the weight {own['weight']!r} is 0 in every row of {data}; expected numbers above 0, "
            "for the rows that count: correct it"
        )
    if rows.n_rows > len(rows.table):
        notes.append(
            f"{data} has {rows.n_rows:,} rows; columns are measured, and models scored, on a "
            f"uniform sample of {len(rows.table):,} of them"
        )
    found += filter(None, [roles.repeated(rows.table)])
    return rows, schema, [*source.notes, *notes, *dict.fromkeys(found), *leaks(rows.table, schema)]


def _first_rows(blocks: Blocks, dropped: tuple[str, ...] | None) -> pd.DataFrame:
    """Read a block, and more at a first training while a column is empty: a new sensor's, say."""
    first = next(blocks)
    while dropped is not None and len(first) < IN_MEMORY:
        is_empty = first.drop(columns=[*dropped], errors="ignore").isna().all()
        more = next(blocks, None) if is_empty.any() else None
        if more is None:
            break
        first = tables.together([first, more])
    return first


def _read_by_workers(
    collect: Callable, source: Table, settings: Any, time: str
) -> tuple[Rows, list[str]]:
    from . import engine

    keep = tempfile.TemporaryDirectory(prefix="rows-")
    shares = engine.shares_of(source, settings, keep.name, collect)
    found = list(engine.stream(lambda share: (yield share.read()), shares))
    n_rows = sum(rows.n_rows for rows, _ in found)
    parts = [part for rows, _ in found for part in rows.parts]
    rows = Rows(time, keep=keep, shares=shares, n_rows=n_rows, parts=parts)
    return rows, [note for _, notes in found for note in notes]
