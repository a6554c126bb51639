"""Any file, folder, glob, URL or query, as blocks of rows.

Text of a CSV file stays as it is written; what a typed format calls text becomes a pandas category,
so that `kinds.py` can tell a text that is meant from one that nobody gave a type.
"""

import bisect
import codecs
import csv
import glob
import io
import math
import os
import re
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.csv as pc
import pyarrow.parquet as pq

from .columns import Column, lines, named, read_cells, without_markers
from .errors import UserError, masked, reason

csv.field_size_limit(2**30)  # the outline of a country is long
BLOCK_ROWS = 500_000
PIECE_BYTES = 2**24  # files, and row groups of Parquet, below this are read together
HEAD_BYTES = 2**20  # of a text file: its separator and header are found in these
DETECT_BYTES = 2**26  # and its encoding in these
# How a file starts that is neither CSV nor Excel.
STARTS = {"Parquet": b"PAR1", "Feather": b"ARROW1", "JSON split": rb'{\s*"columns"\s*:\s*\['}
STARTS |= {"JSON": rb'\[\s*{\s*"|{\s*"[^"]*"\s*:\s*{\s*"0"\s*:', "JSON lines": rb'{\s*"'}
JSON: dict[str, dict[str, Any]] = {"JSON split": {"orient": "split"}, "JSON": {}}
ENDING = re.compile(
    r"\.(csv|tsv|jsonl|ndjson|json|parquet|pq|feather|arrow|xls[xm]|zip|gz|bz2)$", re.I
)
ADVICE = {
    "CSV": "give every line as many fields as the header",
    "JSON lines": 'expected one object per line, such as {"age": 41, "zone": "nord"}',
}
EXPECTED = "expected CSV, Parquet, JSON lines, Feather or Excel"
DATABASES = re.compile(r"(postgres|mysql|mariadb|sqlite|oracle|mssql|duckdb|snowflake|bigquery)")
WORKBOOKS = (".xlsx", ".xlsm")
MANY_ROWS = 10  # in which none is as large as a half of the others' sum by chance
MERGED = r'<mergeCell ref="([A-Z]+)(\d+):\1(\d+)"'  # cells of one column
BYTES = (pa.binary(), pa.large_binary())
UNNAMED = r"|Unnamed: \d+|__index_level_\d+__"
TOTAL = re.compile(
    r"(grand |sous-)?(total[es]?|totaux|sum|somme|summe|suma|gesamt(summe|ergebnis)?|ergebnis"
    r"|insgesamt|合計)( g[ée]n[ée]rale?)?\W*"
)
# Of the encodings without a mark of their own, those that spreadsheets and old programs write.
ENCODINGS = ["cp1252", "cp1250", "cp1251", "cp850", "mac_roman", "shift_jis", "gb18030"]
# What Windows-1252 has beside ASCII in the words of Western Europe, and what it never has there.
WESTERN = re.compile(r"[\x00-\x7f\xa0-\xffŒœŸ€‚„‘’“”–—…•™‰]*")
FOREIGN = re.compile(
    r"[^\W\d_a-zA-Z]{3}|\b[^\W\d_a-zA-Z]{2,}\b|[£¥¹²³][^\W\d]|[^\W\d_][¿¡™‰][^\W\d_]"
)
LATIN_9 = re.compile(r"¤|[¼½][^\W\d]")  # its € and Œ, œ, read as Windows-1252
DIGITS = r"[-+]?[0-9.,]*"
BLANK = " \t\x1a"  # DOS ends a text with the last
SOURCE = re.compile(r"\W*(sources?|notes?|nb|remarque|champ|lecture)\s?:", re.I)  # as INSEE does
FOOTNOTE = re.compile(r"(?=.*[^\W\d_]{2}).*\w\W*\s\S.*", re.DOTALL)  # words
Blocks = Iterator[pd.DataFrame]
Piece = list[Callable[[], Blocks]]


@dataclass
class Table:
    """Hold a table that is read in blocks, as often as needed."""

    source: str  # as the user named it, without passwords
    pieces: list[Piece] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was recognised or left out, in the end
    first_line: int = 1  # the file's line of the first row (2 in a plain CSV), once that is read
    n_rows: int = 0  # read so far, and the next: rows before a file, its name, what finds its lines
    files: list[tuple[int, str, Callable | None]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)  # known with the first block
    is_share: bool = False  # of the pieces; it may be without rows
    decimal: str = ""  # mark before decimals, where a text file with commas between columns tells
    label: str = ""  # of the last row, in a column without a name
    known: set[str] = field(default_factory=set)  # categories, which are no totals and no footnotes
    paths: set[Path] = field(default_factory=set)  # of the files, or the folder, that are read
    keep: Any = None  # a temporary folder that must outlive the readers

    def blocks(self) -> Blocks:
        """Read the rows in order: DataFrames of about 500,000 rows, each with a RangeIndex.

        A block holds rows of one piece alone, so that shares have the blocks of the whole.
        Raises UserError for files that cannot be read, differ in their columns, or have no rows.
        """
        waiting: list[pd.DataFrame] = []
        self.n_rows, self.files = 0, []
        for piece in self.pieces:
            for number, part in enumerate(chain.from_iterable(map(self._of_file, piece))):
                if waiting and (number == 0 or sum(map(len, waiting)) >= BLOCK_ROWS):
                    yield together(waiting)
                    waiting = []
                waiting.append(part)
        if waiting:
            yield together(waiting)
        elif not self.is_share:
            raise UserError(f"{self.source} holds no rows; expected a header and rows below it")

    def lines(self, places: np.ndarray, n_before: int = 0) -> str:
        """Name the lines of rows, counted from row `n_before` on, and the file among several."""
        places = places + n_before
        if not self.files:
            return lines(places, places[:5] + self.first_line)
        starts = [start for start, *_ in self.files]
        start, name, find = self.files[bisect.bisect(starts, places[0]) - 1]
        end = next((other for other in starts if other > places[0]), math.inf)
        inside = [int(place) - start for place in places[:5] if place < end]
        numbers = find(inside) if find else [place + self.first_line for place in inside]
        return lines(places, numbers, "" if name == Path(self.source).name else f" ({name})")

    def note(self, text: str) -> None:
        """Add a note, unless it is there already."""
        self.notes += [] if text in self.notes else [text]

    def _of_file(self, read: Callable[[], Blocks]) -> Blocks:
        """Read the blocks of one file that have rows, of a text without what is below these."""
        filled: Iterator[Any] = filter(len, map(self._checked, read()))
        for block, following in pairwise(chain(filled, [None])):
            is_end = following is None and (block.dtypes == "str").all()
            rows = self._without_total(block) if is_end else block
            self.n_rows += len(rows)
            yield rows

    def _checked(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Leave out columns without a name; UserError where columns differ from those before."""
        unnamed = rows.columns.astype(str).str.strip().str.fullmatch(UNNAMED)
        if unnamed.any():
            n_unnamed = f"{unnamed.sum()} columns" if unnamed.sum() > 1 else "a column"
            self.note(f"{n_unnamed} without a name (such as an index of rows) left out")
        if len(rows):
            self.label = str(rows.loc[:, unnamed].iloc[-1, 0]) if unnamed.any() else ""
        rows = named(rows.loc[:, ~unnamed], self.source)
        self.columns = self.columns or list(rows)
        if sorted(rows) != sorted(self.columns):
            what = f"a file of {self.source} has the columns {list(rows)}, but those before it have"
            raise UserError(f"{what} {self.columns}; give files with the same columns")
        return rows[self.columns]

    def footnote(self, text: str) -> None:
        """Note that a text below the table is left out."""
        self.note(f"what is below the table ({text[:40]!r}) is left out")

    def _without_total(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Leave out footnotes and empty rows at the end, and a last row that is a total."""
        while len(rows) > 1 and rows.shape[1] > 2 and rows.iloc[-1, 1:].isna().all():
            text = str(rows.iloc[-1, 0])
            is_known = text in self.known or (rows.iloc[:-1, 0] == text).any()
            if is_known or not FOOTNOTE.fullmatch(text):
                break
            self.footnote(text)
            rows = rows[:-1]
        n_filled = rows.notna().any(axis=1)[::-1].idxmax() + 1
        if n_filled < len(rows):
            self.note(f"{len(rows) - n_filled} empty rows at the end are left out")
        rows = rows[:n_filled]
        if total := self._total(rows[-10_000:]):
            self.note(f"the last row is a total ({total!r}) and is left out")
            rows = rows[:-1]
        return rows

    def _total(self, tail: pd.DataFrame) -> str:
        """Return the word that makes the last row a total, or ""."""
        if TOTAL.fullmatch(self.label.strip().casefold()):
            return self.label
        for name, cell in tail.iloc[-1].items():
            is_total = isinstance(cell, str) and TOTAL.fullmatch(cell.strip().casefold())
            if not is_total or cell in self.known or (tail[name][:-1] == cell).any():
                continue
            others = tail.drop(columns=name)
            numbers = others.apply(lambda cells: read_cells(cells, Column("", "numeric", "."))[0])
            last, rest = numbers.iloc[-1], numbers[:-1]
            ratio = (last / rest.sum()).where(last > rest.max())
            # With subtotals among many rows it is half of their sum.
            is_sum = ratio.between(0.99, 1.01) | ((len(rest) >= MANY_ROWS) & (ratio > 0.49))
            emptied = others.iloc[-1].isna() & (others.notna().mean() > 0.5)
            texts = others.iloc[-1][numbers.isna().all()]
            if (is_sum | emptied).any() and without_markers(texts).isna().all():
                return cell.strip()
        return ""


def together(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Join blocks; what is a category in the first stays one, whatever its levels."""
    rows = pd.concat(parts, ignore_index=True)
    return rows.astype(dict.fromkeys(parts[0].select_dtypes("category"), "category"))


@contextmanager
def _reading(failed: str, advice: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads into one line that says what to do."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        way = f"it needs a package: pip install {error.name}" if error.name else reason(error)
        raise UserError(f"{failed}: {way}") from error
    except Exception as error:  # each library has classes of its own
        raise UserError(f"{failed} ({reason(error)}); {advice}") from error


def open_table(source: str | Path, query: str | None = None) -> Table:
    """Open a table: a file, a folder of files, a glob pattern, a URL or, with `query`, a database.

    Read are CSV and the like (also compressed), JSON lines, Parquet, Feather, Excel, partitioned
    folders and Delta tables; s3://, gs://, abfs:// and https:// are copied to a temporary folder.
    Raises UserError when there is nothing to read there, or a package is missing.
    """
    source = str(source)
    scheme = source.split("://")[0] if "://" in source else ""
    shown = masked(source)
    table = Table(shown)
    if query is not None or DATABASES.match(scheme):
        table.pieces = [[partial(_sql_blocks, source, query, shown)]]
        return table
    if scheme == "file":
        source = urllib.request.url2pathname(source.removeprefix("file://"))
    elif scheme:
        table.keep = tempfile.TemporaryDirectory(prefix="table-")
        source = _download(source, shown, Path(table.keep.name))
    source = os.path.expanduser(source)
    if os.path.isdir(os.path.join(source, "_delta_log")):
        table.pieces, files = [[partial(_delta_blocks, source, table)]], []
    else:
        files = _files(source, table)
        table.pieces = _pieces(files, Path(source), table)
    table.paths = {file.resolve() for file in (Path(source), *files)}
    return table


def _files(source: str, table: Table) -> list[Path]:
    """List the files to read, and note which others a folder holds."""
    shown = table.source
    what, found = "there is no such file", sorted(map(Path, glob.glob(source, recursive=True)))
    if os.path.isfile(source):
        found = [Path(source)]
    elif os.path.isdir(source):
        what, below = "the folder holds no table", sorted(Path(source).rglob("[!._~]*"))
        inside = [file for file in below if ENDING.search(file.name)]
        found = [f for f in inside if all("=" in g for g in f.relative_to(source).parts[:-1])]
        if others := sorted({*filter(Path.is_file, below)} - {*found}):
            table.note(f"{len(others)} files of {shown} are not read, such as {others[0].name!r}")
    found = [file for file in found if file.is_file()]
    if not found:
        raise UserError(f"cannot read {shown}: {what}; {EXPECTED}: check the path")
    if any((folder / "_delta_log").is_dir() for folder in {p for f in found for p in f.parents}):
        what = "is a part of a Delta table, where some files are no longer valid"
        raise UserError(f"{shown} {what}; give the folder instead")
    return found


def _pieces(files: list[Path], top: Path, table: Table) -> list[Piece]:
    """Cut files into pieces: some small ones together, or some row groups of a large Parquet file.

    They depend on the files alone, and so do the blocks of rows, however many processes read them.
    """
    pieces, n_before = dict[int, Piece](), 0
    for file in files:
        sizes: list[tuple[int, list[int] | None]] = [(file.stat().st_size, None)]
        with _reading(f"cannot read {file}", "copy it again"):
            if sizes[0][0] >= PIECE_BYTES and _kind(file) == "Parquet":
                about = pq.read_metadata(file)
                groups = range(about.num_row_groups)
                sizes = [(about.row_group(n).total_byte_size, [n]) for n in groups]
        for n_bytes, part in sizes:
            piece = pieces.setdefault(n_before // PIECE_BYTES, [])
            piece.append(partial(_file_blocks, file, top, table, part))
            n_before += n_bytes
    return list(pieces.values())


def _download(url: str, shown: str, folder: Path) -> str:
    """Copy what a URL names into a folder, with all files below it: the path of the copy."""
    target = folder / (Path(unquote(urlsplit(url).path)).name or "table")
    with _reading(f"cannot read {shown}", "check the address and the access rights"):
        if url.startswith(("http://", "https://")):
            with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as copy:
                shutil.copyfileobj(answer, copy)
            if answer.length:
                raise OSError("the download broke off")
        else:
            from pyarrow import fs

            if url.startswith("gs://") and "?" not in url:
                url += "?retry_limit_seconds=20"  # it would try for a quarter of an hour
            fs.copy_files(url, str(target))
    return str(target)


def _sql_blocks(url: str, query: str | None, shown: str) -> Blocks:
    if query is None or "://" not in url:
        example = "a database such as postgresql://host/name with --query 'SELECT …'"
        raise UserError(f"{shown} and a query belong together; expected {example}")
    with _reading(f"the query on {shown} failed", "check it"):
        import sqlalchemy

        path = sqlalchemy.make_url(url).database if url.startswith("sqlite") else None
        if path and not path.startswith(("file:", ":")) and not os.path.exists(path):
            raise FileNotFoundError("there is no such file")  # SQLite would make it
        options = {"stream_results": True, "no_parameters": True}  # % is a sign of SQL
        with sqlalchemy.create_engine(url, execution_options=options).connect() as connection:
            for block in pd.read_sql_query(query, connection, chunksize=BLOCK_ROWS):
                yield block.astype(dict.fromkeys(block.select_dtypes("str"), "category"))


def _delta_blocks(folder: str, table: Table) -> Blocks:
    with _reading(f"cannot read the Delta table {table.source}", "check its log"):
        from deltalake import DeltaTable

        delta = DeltaTable(folder)
        table.note(f"version {delta.version()} of the Delta table {table.source} was read")
        yield from _typed_blocks(delta.to_pyarrow_dataset().to_batches())


def _file_blocks(file: Path, top: Path, table: Table, groups: list[int] | None) -> Blocks:
    """Read a file as its first bytes ask, or row groups; folders `key=value` become columns."""
    inside = file.relative_to(top) if top in file.parents else file
    keys = [part.split("=", 1) for part in inside.parts[:-1] if "=" in part]
    with _reading(f"cannot read {file}", "copy it again"):
        kind = _kind(file)
    if groups in (None, [0]):
        table.files.append((table.n_rows, file.name, None))
    with _reading(f"{file} cannot be read as {kind}", ADVICE.get(kind, "write or copy it again")):
        if kind == "CSV":
            blocks = _csv_blocks(partial(_stream, file), file, table)
        elif kind == "Excel":
            as_csv = partial(io.BytesIO, _excel_as_csv(file, table))
            blocks = _csv_blocks(as_csv, file, table, "", own=True)
        elif kind == "Parquet":  # a dataset would hold several times as much in memory
            parquet = pq.ParquetFile(file, pre_buffer=False)
            blocks = _typed_blocks(parquet.iter_batches(BLOCK_ROWS // 4, groups))
        elif kind == "Feather":
            feather = pa.ipc.open_file(pa.memory_map(str(file)))
            blocks = _typed_blocks(map(feather.get_batch, range(feather.num_record_batches)))
        else:
            options = JSON.get(kind, {"lines": True, "chunksize": BLOCK_ROWS})
            options = options | {"dtype": False, "precise_float": True, "encoding": "utf-8-sig"}
            found = pd.read_json(_stream(file), **options)
            blocks = iter([found] if kind in JSON else found)
        for block in blocks:
            for key, value in (pair for pair in keys if pair[0] not in block):
                level = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
                block[key] = pd.Categorical([level] * len(block))
            yield block


def _kind(file: Path) -> str:
    if file.suffix.lower() in WORKBOOKS:
        return "Excel"
    with _stream(file) as stream:
        head = stream.read(HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if not head:
        raise UserError(f"{file} is empty; expected a header line and rows")
    return next((kind for kind, start in STARTS.items() if re.match(start, head)), "CSV")


def _stream(file: Path) -> Any:
    """Open a file as bytes, unpacked: the one file in a .zip, the content of a .gz."""
    if not zipfile.is_zipfile(file):
        return pa.input_stream(str(file), compression="detect")
    archive = zipfile.ZipFile(file)
    names = [n for n in archive.namelist() if not n.endswith("/") and "__MACOSX" not in n]
    if {"mimetype", "[Content_Types].xml"} & {*names}:
        raise UserError(f"{file} is a workbook; {EXPECTED}: save it as .xlsx or .csv")
    if len(names) != 1:
        raise UserError(f"{file} holds {len(names)} files; expected one: unpack it, give a folder")
    return archive.open(names[0])


def _excel_as_csv(file: Path, table: Table) -> bytes:
    import openpyxl

    # As it is written: texts such as NA, which may be Namibia, and years in a header.
    plain: Any = {"keep_default_na": False, "na_values": [""], "dtype": object}
    with pd.ExcelFile(file, "openpyxl") as book:
        names = [sheet.title for sheet in book.book.worksheets if sheet.sheet_state == "visible"]
        sheets = pd.read_excel(book, sheet_name=names or None, header=None, **plain)
        name, rows = max(sheets.items(), key=lambda each: each[1].size)  # beside covers, legends
        place = getattr(book.book[name], "_worksheet_path", "").strip("/")
    with zipfile.ZipFile(file) as parts:
        merged = re.findall(MERGED, parts.read(place).decode() if place else "")
    for column, top, bottom in merged:  # a pivot names a group once, in cells that go down
        number = openpyxl.utils.column_index_from_string(column) - 1
        cells = slice(int(top) - 1, int(bottom)), slice(number, number + 1)
        rows.iloc[cells] = rows.iloc[cells].ffill()
    if len(sheets) > 1:
        table.note(f"{file.name} has {len(sheets)} sheets; only {name!r} was read")
    return rows.to_csv(index=False, header=False).encode()


def _typed_blocks(batches: Iterable[pa.RecordBatch]) -> Blocks:
    """Read typed rows: text as categories, decimals as floats, durations as seconds."""
    options = {"ignore_metadata": True, "date_as_object": False, "strings_to_categorical": True}
    # Long ids stay whole beside a missing one, and where a database has no other integers.
    integers = {pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype()}
    for batch in batches:
        for place in [n for n, part in enumerate(batch.schema) if part.type in BYTES]:
            with suppress(pa.ArrowInvalid):  # text of Impala or ClickHouse, else bytes
                text = batch[place].cast(pa.string())
                batch = batch.set_column(place, batch.schema.names[place], text)
        decimals = [x.name for x in batch.schema if pa.types.is_decimal(x.type) and x.type.scale]
        rows = pa.Table.from_batches([batch]).to_pandas(types_mapper=integers.get, **options)
        for name in rows.select_dtypes("timedelta"):
            rows[name] = rows[name].dt.total_seconds()
        yield rows.astype(dict.fromkeys(decimals, "float64"))


def _csv_blocks(
    unpack: Callable[[], Any], file: Path, table: Table, decimal: str = ".", own: bool = False
) -> Blocks:
    """Read a text file; text stays as it is written, an empty cell is missing.

    decimal: the mark before decimals where commas are between columns; own: it was written here.
    """
    with unpack() as stream:
        encoding, separator, names = _csv_start(stream.read(DETECT_BYTES), file, table, own)
    if not names:
        return
    if separator.endswith(" "):
        with unpack() as stream:
            as_csv = _rewritten(io.TextIOWrapper(stream, encoding, newline=""), separator)
        mark = decimal if separator == ", " else ""
        yield from _csv_blocks(partial(io.BytesIO, as_csv.encode()), file, table, mark, own=True)
        return
    table.decimal = decimal if separator == "," else ""
    find = partial(_line_numbers, unpack, encoding, separator, table.first_line)
    if file.suffix.lower() not in WORKBOOKS:
        table.files[-1] = (*table.files[-1][:2], find)
    yield from _arrow_blocks(unpack, encoding, separator, names, find, table)


def _arrow_blocks(
    unpack: Callable[[], Any],
    encoding: str,
    separator: str,
    names: list[str],
    find: Callable[[list[int]], list[int]],
    table: Table,
) -> Blocks:
    """Read rows as Arrow does; what is below them is noted. find: the lines of rows in the file."""
    # Small blocks, as many are read ahead; without threads, or an error would not tell its line.
    options: Any = {"block_size": 2**20, "use_threads": False, "encoding": encoding}
    read = pc.ReadOptions(skip_rows=table.first_line - 1, column_names=names, **options)
    texts = dict.fromkeys(names, pa.string())
    convert = pc.ConvertOptions(column_types=texts, null_values=[""], strings_can_be_null=True)
    odd, n_rows = list[pc.InvalidRow](), 0

    def judge(row: pc.InvalidRow) -> str:
        odd.append(row)
        return "skip" if _is_note(row) else "error"

    parse = pc.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=judge)
    try:
        with unpack() as stream:
            batches = chain(pc.open_csv(stream, read, parse, convert), [None])
            for batch, following in pairwise(batches):
                block = _closed(batch, is_last=following is None)
                _check_quotes(batch, block, separator, n_rows, find)
                n_rows += len(block)
                yield block
    except pa.ArrowInvalid:
        if not odd:
            raise
    _note_footnotes(odd, n_rows, find, table)


def _closed(batch: pa.RecordBatch, is_last: bool) -> pd.DataFrame:
    block = batch.to_pandas()
    if is_last and len(block) and str(block.iloc[-1, -1]).endswith("\n"):
        raise ValueError("a field opens with a quote that is never closed")
    return block


def _check_quotes(
    batch: pa.RecordBatch, block: pd.DataFrame, separator: str, n_before: int, find: Callable
) -> None:
    """Raise ValueError for a row whose cells hold other rows, between quotes that are none.

    All its lines have the fields of a row, with numbers where nearly all rows have numbers.
    """
    if not any(compute.any(compute.match_substring(cells, "\n")).as_py() for cells in batch):
        return
    numbers = [n for n, name in enumerate(block) if block[name].str.fullmatch(DIGITS).mean() > 0.9]
    is_long = block.apply(lambda cells: cells.str.contains("\n", regex=False)).any(axis=1)
    texts = block[is_long].fillna("").to_numpy() if numbers else ()
    for place, text in zip(np.flatnonzero(is_long), map(separator.join, texts), strict=False):
        rows = [line.strip("\r").split(separator) for line in text.split("\n")]
        are_rows = all(len(cells) == block.shape[1] for cells in rows)
        if are_rows and all(re.fullmatch(DIGITS, r[n].strip(' "')) for r in rows for n in numbers):
            (line,) = find([n_before + int(place)])
            wrong = "a quote, and the rows below it are taken for the text of its cell"
            raise ValueError(f"line {line} holds {wrong}: write a quote in a cell twice")


def _line_numbers(
    unpack: Callable[[], Any], encoding: str, separator: str, first_line: int, places: list[int]
) -> list[int]:
    """Find the lines in which rows begin: an empty one is no row, and cells go over several."""
    with unpack() as stream:
        text = islice(io.TextIOWrapper(stream, encoding, newline=""), first_line - 1, None)
        reader, line, rows = csv.reader(text, delimiter=separator), first_line, list[int]()
        for cells in reader:
            rows += [line] if cells else []
            line = first_line + reader.line_num
            if len(rows) > places[-1]:
                break
    return [rows[place] for place in places]


def _rewritten(lines: io.TextIOBase, separator: str) -> str:
    """Write a file as Arrow reads it that has blanks between columns, or before quotes."""
    if separator == " ":
        rows = pd.read_csv(lines, sep=r"\s+", dtype=str, na_filter=False)
        return rows.to_csv(index=False)  # without what numbers the rows
    text = io.StringIO()
    cells = csv.reader(lines, delimiter=separator[0], skipinitialspace=True)
    csv.writer(text).writerows(cells)
    return text.getvalue()


def _note_footnotes(odd: list[pc.InvalidRow], n_rows: int, find: Callable, table: Table) -> None:
    """Note lines below `n_rows` rows; ValueError where rows come after one, or it is no note."""
    for number, row in enumerate(odd, table.first_line + n_rows):
        if row.number != number or not _is_note(row):
            (line,) = find([row.number - table.first_line])
            wrong = f"{row.actual_columns} fields, not {row.expected_columns}"
            raise ValueError(f"line {line} has {wrong}")
        if row.text.strip(BLANK):
            table.footnote(row.text)


def _is_note(row: pc.InvalidRow) -> bool:
    if SOURCE.match(row.text) and row.actual_columns < row.expected_columns:
        return True
    is_short = 2 * row.actual_columns <= row.expected_columns
    return is_short and bool(FOOTNOTE.fullmatch(row.text) or not row.text.strip(BLANK))


def _csv_start(sample: bytes, file: Path, table: Table, own: bool) -> tuple[str, str, list[str]]:
    """Recognise (encoding, separator, names of columns, none where no rows are below them)."""
    encoding = _encoding(file, sample, table)
    text = sample[:HEAD_BYTES].decode(encoding, errors="ignore").removeprefix("\ufeff")
    lines = re.split(r"\r\n|\n|\r", text)
    marked = re.fullmatch(r'"?sep=(.)"?[,;\t]*', lines[0])
    lines[0] = "" if marked else lines[0]
    cells = {mark: _records(lines[:200], mark) for mark in (marked[1] if marked else ",;\t|")}
    separator = max(cells, key=lambda mark: _evenness(cells[mark]))
    n_even, _, usual = _evenness(cells[separator])
    if n_even < sum(map(bool, lines[:200])) and _are_spaced(lines[:200]):
        table.note(f"{file.name} was read with blanks between columns")
        return encoding, " ", lines[:1]
    start = _header_line(cells[separator], file, table)
    if separator != ",":
        table.note(f"{file.name} was read with {separator!r} between columns")
    plain = csv.reader(lines[:200], delimiter=separator)
    if not own and any(re.match(' +"', cell) for cells in plain for cell in cells):
        return encoding, separator + " ", lines[:1]
    reader = csv.reader((line + "\n" for line in lines[start:]), delimiter=separator)
    names = next(reader)  # they may be empty or stand twice, or over several lines
    # Some programs end each row with a separator, or the header alone.
    if len(names) < usual:
        names = ["", *names] if _are_numbered(cells[separator], usual) else [*names, ""]
    names = names[:-1] if len(names) > usual and not names[-1] else names
    table.first_line = start + reader.line_num + 1
    return encoding, separator, names if any(lines[table.first_line - 1 :]) else []


def _records(lines: list[str], mark: str) -> list[list[str]]:
    """Cut each line into its cells; the lines that a quoted one goes on in are empty."""
    cells = list[list[str]]()
    while rest := [line + "\n" for line in lines[len(cells) :]]:
        record, n_lines = _record(rest, mark)
        cells += [record, *[[]] * (n_lines - 1)]
    return cells


def _record(lines: list[str], mark: str) -> tuple[list[str], int]:
    """Cut the first record into cells, none where text goes on behind quotes; count its lines."""
    reader = csv.reader(lines, delimiter=mark, strict=True, skipinitialspace=True)
    try:
        record = next(reader)
        if reader.line_num < len(lines):
            return record, reader.line_num
    except csv.Error as error:
        if "expected after" in str(error):  # blanks, or the mark is another one
            record = next(csv.reader(lines, delimiter=mark, skipinitialspace=True))
            return [] if '"' in "".join(record) else record, reader.line_num
    first = csv.reader(lines[:1], delimiter=mark, skipinitialspace=True)
    return next(first), 1  # nothing closes a quote


def _are_spaced(lines: list[str]) -> bool:
    """Tell whether blanks cut lines into equally many fields; the header may lack the first."""
    blanks = (" ".join(line.split()) for line in lines if line.strip())
    header, *widths = [len(cells) for cells in csv.reader(blanks, delimiter=" ")] or [0]
    return len({*widths}) == 1 and 1 < header <= widths[0] <= header + 1


def _evenness(lines: list[list[str]]) -> tuple[int, int, int]:
    """Rate a separator: it should cut most lines, from the header on, into equally many fields."""
    widths = [len(cells) for cells in lines]
    usual = max({*widths} - {0} or {0}, key=widths.count)  # empty lines say nothing
    return (widths.count(usual) if usual > 1 else 0), -widths.index(usual), usual


def _header_line(lines: list[list[str]], file: Path, table: Table) -> int:
    """Return the place of the header: the first line that is as wide as most, and mostly filled."""
    *_, usual = _evenness(lines)
    # Each row may end with a separator, or begin with a number that the header does not name (R).
    rows = [line for line in lines if len(line) == usual]
    usual -= usual > 1 and (all(not line[-1] for line in rows) or _are_numbered(lines, usual))
    for number, line in enumerate(lines):
        filled = [cell for cell in line if cell.strip()]
        if len(line) < usual or len(filled) <= (usual - 1) / 2:
            continue
        numbers = [cell for cell in filled if re.fullmatch(r"[-+]?[\d.,]+", cell)]
        if numbers and (number or (len(numbers) == len(line) and "." in "".join(numbers))):
            break  # years alone may be names
        if any(map(any, lines[:number])):
            table.note(f"{file.name}: what is above the header in line {number + 1} is left out")
        return number
    raise UserError(
        f"{file} has no header; expected a header line with as many names as the rows have fields"
    )


def _are_numbered(lines: list[list[str]], usual: int) -> bool:
    """Tell whether the header alone lacks a name, that of the numbers that rows begin with."""
    header, *rows = [line for line in lines if line] or [[]]
    return len(header) == usual - 1 and all(row[0] == str(n) for n, row in enumerate(rows, 1))


def _encoding(file: Path, sample: bytes, table: Table) -> str:
    """Find the encoding of a text file: by its mark, as UTF-8, or by what its bytes look like."""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        table.note(f"{file.name} was read as UTF-16")
        return "utf-16"
    if b"\0" in sample[:HEAD_BYTES]:
        raise UserError(f"{file} is a binary file; {EXPECTED}: save it as one of these")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return "utf-8"
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes
    telling = b"\n".join([line for line in sample.splitlines() if not line.isascii()][:500])
    text = telling.decode("cp1252", "replace")
    best = "iso8859-15" if LATIN_9.search(text) else "cp1252"
    if not WESTERN.fullmatch(text) or FOREIGN.search(text):  # else a few short words mislead it
        found = from_bytes(telling, cp_isolation=ENCODINGS, threshold=0.5)
        chaos = {name: match.chaos for match in found for name in match.could_be_from_charset}
        # Windows-1252 is by far the most frequent; the others must look better, not as good.
        best = min(ENCODINGS, key=lambda name: chaos.get(name, 1.0))
    table.note(f"{file.name} is not UTF-8 and was read as {best.replace('cp125', 'Windows-125')}")
    return best
