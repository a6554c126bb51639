"""Rows that do not fit in memory: read in chunks, and kept on disk as the network's input.

Belongs here: files in pieces, and the passes over them. What happens to the rows of a chunk is in
`tabular.py`. Not here: roles of rows, Keras, MLflow.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import tabular
from tabular import Schema, UserError

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

CHUNK = 262_144  # rows read at once
PART_BYTES = 32 * 2**20  # of a part of the rows on disk: some of them are in memory at once
SAMPLE_ROWS = 100_000  # of each role kept in memory: for scores, groups, drift and figures
# A table in memory takes about this many bytes per cell, or per byte of CSV.
CELL_BYTES, CSV_FACTOR = 64, 10
IN_MEMORY_BYTES = 2 * 2**30
Report = Callable[..., None]  # what is done, rows done, rows in all, their unit if another


def silent(what: str, done: int, total: int, unit: str = "rows") -> None:
    """Report nothing."""


def is_large(path: str, wanted: bool | None = None) -> bool:
    """Tell whether a table would take more than 2 GiB, or a quarter of the memory that is free.

    `wanted`, where it is given, is the answer. Raises UserError where there is no file.
    """
    if wanted is not None:
        return wanted
    size = 0
    for file in tabular.data_files(path):
        if tabular.is_parquet(file):
            with contextlib.suppress(pa.ArrowException, OSError):  # reading it will say why
                about = pq.read_metadata(file)
                size += about.num_rows * about.num_columns * CELL_BYTES
        else:
            size += file.stat().st_size * CSV_FACTOR
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return size > min(IN_MEMORY_BYTES, free / 4)


@contextlib.contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Make a folder for rows on disk, and remove it at the end.

    A process that was killed could not remove its own; its lock is gone, so this one does.
    """
    for folder in parent.glob(".rows-*"):
        with contextlib.suppress(OSError), (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=".rows-", dir=parent))
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_disk(folder: Path, needed: float) -> None:
    """Raise UserError unless `needed` bytes are free where `folder` lies."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"rows on disk need {needed / 2**30:.1f} GiB in {folder.parent}, where only "
            f"{free / 2**30:.1f} GiB are free; free some, or choose another place with --models-dir"
        )


class Source:
    """A table in one file or several, read in chunks as often as needed.

    CSV is parsed once, into Parquet in `folder`. Attributes: n_rows; columns; notes for the user.
    """

    def __init__(self, path: str, folder: Path, report: Report = silent) -> None:
        self.path, self.folder, self.report = path, folder, report
        self.notes: list[str] = []
        self.files: list[Path] = []
        self.columns: list[str] = []
        for number, file in enumerate(tabular.data_files(path)):
            if not tabular.is_parquet(file):
                file, note = _csv_to_parquet(file, folder / f"{number}.parquet", report)
                self.notes += note
            try:
                names = pq.read_schema(file).names
            except (pa.ArrowException, OSError) as error:
                raise tabular.not_parquet(file, error) from error
            tabular.check_header(file, names)
            if self.files and names != self.columns:
                raise tabular.other_columns(file, names, self.columns)
            self.files.append(file)
            self.columns = names
        self.n_rows = sum(pq.read_metadata(file).num_rows for file in self.files)

    def chunks(self, what: str = "", columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        """Read all rows in order, text as pandas categories; the index counts the rows."""
        return ahead(self._chunks(what, columns))

    def _chunks(self, what: str, columns: list[str] | None) -> Iterator[pd.DataFrame]:
        start = 0
        for file in self.files:
            schema = pq.read_schema(file)
            text = [f.name for f in schema if pa.types.is_string(f.type)]
            text += [f.name for f in schema if pa.types.is_large_string(f.type)]
            try:
                with pq.ParquetFile(file, read_dictionary=text) as parquet:
                    # Without threads: they would read ahead without bound.
                    for batch in parquet.iter_batches(CHUNK, columns=columns, use_threads=False):
                        rows = batch.to_pandas()
                        rows.index = pd.RangeIndex(start, start + len(rows))
                        yield rows
                        start += len(rows)
                        self.report(what, start, self.n_rows)
            except (pa.ArrowException, OSError) as error:
                raise tabular.not_parquet(file, error) from error

    def conformed(self, what: str, schema: Schema, *, strict: bool = False) -> Iterator[tuple]:
        """Read all rows as (features, target): conformed, and float64 of shape (n_rows,)."""
        columns = [name for name in self.columns if name in (*schema.features, schema.target)]
        for rows in self.chunks(what, None if strict else columns):
            y = tabular.check_target(rows, schema.target, self.path, whole=False)
            features = tabular.conform(rows, schema, source=self.path, strict=strict, compact=True)
            yield features, y.to_numpy()

    def hashes(self, schema: Schema, *, strict: bool = False) -> np.ndarray:
        """Check and hash all rows: uint64 of shape (n_rows,), in a file."""
        hashes = np.memmap(self.folder / "hashes", np.uint64, "w+", shape=max(1, self.n_rows))
        low, high = np.inf, -np.inf
        for features, y in self.conformed("checking", schema, strict=strict):
            hashes[features.index[0] : features.index[-1] + 1] = tabular.row_hashes(
                features, pd.Series(y)
            )
            low, high = min(low, y.min()), max(high, y.max())
        tabular.check_range(self.n_rows, low, high, schema.target, self.path)
        return hashes

    def survey(
        self, schema: Schema, train: np.ndarray, sample: np.ndarray
    ) -> tuple["Stream", pd.DataFrame]:
        """Add up the training rows, and fetch some rows of either role.

        `train` and `sample` are row numbers, the latter sorted. The rows fetched are conformed,
        with the target, and have text as text.
        """
        self.notes.append(f"{self.n_rows:,} rows are read in chunks, kept on disk")
        stream, found = Stream(self, np.zeros(self.n_rows, bool), tabular.Totals(schema)), []
        stream.is_train[train] = True
        for features, y in self.conformed("measuring", schema):
            chosen = stream.is_train[features.index]
            stream.totals.add(features[chosen], y[chosen])
            first, last = np.searchsorted(sample, [features.index[0], features.index[-1] + 1])
            places = sample[first:last] - features.index[0]
            found.append(features.iloc[places].assign(**{schema.target: y[places]}))
        text = dict.fromkeys(schema.categorical, "str")
        return stream, pd.concat([part.astype(text) for part in found])


def ahead(items: Iterator) -> Iterator:
    """Make the next item in a thread while the caller works on the last one."""
    with ThreadPoolExecutor(1) as maker:
        following = maker.submit(next, items, None)
        while (item := following.result()) is not None:
            following = maker.submit(next, items, None)
            yield item


def _csv_to_parquet(file: Path, target: Path, report: Report) -> tuple[Path, list[str]]:
    """Parse a CSV file once; columns have the kind that their first values show."""
    check_disk(target.parent, file.stat().st_size)
    options, notes = tabular.csv_options(file)
    size, writer, schema, text, n_rows = file.stat().st_size, None, None, {}, 0
    with tabular.csv_errors(file), file.open("rb") as stream:
        head = pd.read_csv(stream, **options, nrows=CHUNK)
        text = {name: "str" for name in head if not pd.api.types.is_numeric_dtype(head[name])}
        text |= {name: "str" for name in head if pd.api.types.is_bool_dtype(head[name])}
        fields = [
            (name, pa.dictionary(pa.int32(), pa.string()) if name in text else pa.float64())
            for name in head
        ]
        schema = pa.schema(fields)
        stream.seek(0)
        with pq.ParquetWriter(target, schema) as writer:
            for chunk in pd.read_csv(stream, **options, dtype=text, chunksize=CHUNK):
                columns = {
                    name: chunk[name]
                    if name in text
                    else tabular.as_numbers(chunk[name], str(file))
                    for name in chunk
                }
                writer.write_table(pa.table(columns, schema))
                n_rows += len(chunk)
                report("parsing", stream.tell(), size, "bytes")
    if n_rows == 0:
        raise tabular.no_rows(file)
    return target, notes


class DiskRows:
    """The network's input on disk: float32 rows with their target, in parts of random rows.

    A part fits in memory many times over; every part but the last is a multiple of the batch size.
    """

    def __init__(self, folder: Path, n_rows: int, width: int, batch_size: int, seed: int) -> None:
        batches = max(1, PART_BYTES // (4 * (width + 1)) // batch_size)
        self.n_rows, self.rows_per_part = n_rows, min(n_rows, batches * batch_size)
        check_disk(folder, n_rows * (4.0 * (width + 1) + 8))
        shape = (n_rows, width + 1)
        self._values = np.memmap(folder / "rows", np.float32, "w+", shape=shape)
        self._file = (folder / "rows").open("r+b", buffering=0)
        self._places = np.memmap(folder / "places", np.int64, "w+", shape=n_rows)
        # Which part each row goes to; a shuffle makes the parts' sizes exact.
        numbers = np.arange(-(-n_rows // self.rows_per_part), dtype=np.int16)
        self._part_of = np.repeat(numbers, self.rows_per_part)[:n_rows]
        np.random.default_rng(seed).shuffle(self._part_of)
        self._next = np.arange(0, n_rows, self.rows_per_part)
        self._written = 0

    def __len__(self) -> int:
        return self.n_rows

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_rows, self._values.shape[1] - 1

    def write(self, X: np.ndarray, y: np.ndarray) -> None:
        """Add the next rows: float32 of shape (n, width), and targets of shape (n,)."""
        part_of = self._part_of[self._written : self._written + len(X)]
        order = np.argsort(part_of, kind="stable")
        counts = np.bincount(part_of)
        values = np.column_stack([X, y.astype(np.float32)])[order]
        ends = np.cumsum(counts)
        for part in np.flatnonzero(counts):
            own = slice(ends[part] - counts[part], ends[part])
            start, stop = self._next[part], self._next[part] + counts[part]
            # Not into the memory map, where the first touch of every page costs more than writing
            # it, and a disk that is full kills the process.
            self._file.seek(start * values.strides[0])
            values[own].tofile(self._file)
            self._places[self._written + order[own]] = np.arange(start, stop)
            self._next[part] = stop
        self._written += len(X)
        if self._written == self.n_rows:
            self._file.close()
            del self._part_of  # two bytes a row

    def take(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read some rows by number, in the order they were written: (X, y)."""
        values = self._values[self._places[numbers]]
        return values[:, :-1], values[:, -1]

    def part(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Read one part: (X, y), filled up with zeros to the size of the others."""
        values = self._values[number * self.rows_per_part : (number + 1) * self.rows_per_part]
        missing = self.rows_per_part - len(values)
        X = np.pad(values[:, :-1], ((0, missing), (0, 0)))
        return X, np.pad(values[:, -1], (0, missing))

    def parts(self, rng: np.random.Generator) -> Iterator[tuple]:
        """Read all parts in random order: (X, y, random order of its rows); the next one ahead."""
        last = (self.n_rows - 1) // self.rows_per_part
        # The last part may end in a batch that is too short: so does the epoch, then.
        numbers = [*rng.permutation(last), last]
        for number, (X, y) in zip(numbers, ahead(map(self.part, numbers)), strict=True):
            n_rows = min(self.rows_per_part, self.n_rows - number * self.rows_per_part)
            yield X, y, rng.permutation(n_rows)


@dataclass
class Stream:
    """Rows of a file that were looked at, ready to be encoded; see `Source.survey`."""

    source: Source
    is_train: np.ndarray
    totals: tabular.Totals

    def encode(
        self,
        schema: Schema,
        preprocessor: "ColumnTransformer",
        batch_size: int,
        seed: int,
        before: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> DiskRows:
        """Put the network's input of all training rows on disk, after the rows (X, y) `before`."""
        width = sum(s.stop - s.start for s in preprocessor.output_indices_.values())
        n_rows = int(self.is_train.sum()) + (len(before[0]) if before else 0)
        rows = DiskRows(self.source.folder, n_rows, width, batch_size, seed)
        if before:
            rows.write(*before)
        for features, y in self.source.conformed("encoding", schema):
            chosen = self.is_train[features.index]
            rows.write(tabular.encode(features[chosen], preprocessor), y[chosen])
        return rows
