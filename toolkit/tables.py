"""Any file, folder, glob, URL or query, as blocks of rows.

Belongs here: how tables are stored. What the values mean is in `columns.py`. Text of a CSV file
stays as it is written; what a typed format calls text becomes a pandas category, so that
`columns.py` can tell a text that is meant from one that nobody gave a type.
"""

import codecs
import csv
import glob
import io
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pandas.api.types import union_categoricals

from .errors import UserError, one_line

BLOCK_ROWS = 500_000
HEAD_BYTES = 65_536
DETECT_BYTES = 2**26  # of a text file: its encoding is judged by these
TYPED = {".parquet": "parquet", ".pq": "parquet", ".feather": "feather", ".arrow": "feather"}
JSON, EXCEL, PACKED = (".jsonl", ".ndjson", ".json"), (".xlsx", ".xlsm"), (".gz", ".bz2", ".zip")
SUFFIXES = (".csv", ".tsv", *TYPED, *JSON, *EXCEL, *PACKED)
DATABASES = re.compile(r"(postgres|mysql|mariadb|sqlite|oracle|mssql|duckdb|snowflake|bigquery)")
UNNAMED = re.compile(r"|Unnamed: \d+(_level_\d+)?|__index_level_\d+__")
TOTAL = re.compile(r"(grand |sous-)?(totale?|totaux|sum|somme|summe|gesamt)( g[ée]n[ée]rale?)?\W*")
# Of the encodings without a mark of their own, those that spreadsheets and old programs write.
ENCODINGS = ["cp1252", "cp1250", "cp1251", "mac_roman", "shift_jis", "gb18030"]
Blocks = Iterator[pd.DataFrame]


@dataclass
class Table:
    """Hold a table that is read in blocks, as often as needed.

    Attributes: source, as the user named it, without passwords; first_line, the line of the file
    that the first row stands in (2 in a plain CSV file, 1 where there is no header line); notes,
    one line for everything that was recognised or left out, complete once the rows were read.
    """

    source: str
    readers: list[Callable[[], Blocks]] = field(repr=False)
    notes: list[str] = field(default_factory=list)
    first_line: int = 1
    keep: Any = field(default=None, repr=False)  # a temporary folder that must outlive the readers

    def blocks(self) -> Blocks:
        """Read the rows in order: DataFrames of about 500,000 rows, each with a RangeIndex.

        Raises UserError for files that cannot be read, differ in their columns, or have no rows.
        """
        columns: list[str] | None = None
        last: pd.DataFrame | None = None
        for reader in self.readers:
            for block in reader():
                rows = self._plain(block)
                if columns is not None and sorted(rows.columns) != sorted(columns):
                    raise _other_columns(self.source, list(rows.columns), columns)
                columns = columns or list(rows.columns)
                if last is not None and len(last):
                    yield last
                last = rows[columns]
        last = None if last is None else self._without_total(last)
        if last is None or last.empty:
            raise UserError(f"{self.source} holds no rows; expected a header and rows below it")
        yield last

    def read(self) -> pd.DataFrame:
        """Read all rows into one DataFrame, with a RangeIndex."""
        blocks = list(self.blocks())
        if len(blocks) == 1:
            return blocks[0]
        columns = {}
        for name in blocks[0].columns:
            parts = [block[name] for block in blocks]
            if all(isinstance(part.dtype, pd.CategoricalDtype) for part in parts):
                columns[name] = pd.Series(union_categoricals(parts))
            else:
                columns[name] = pd.concat(parts, ignore_index=True)
        rows = pd.DataFrame(columns)
        rows.attrs = blocks[0].attrs
        return rows

    def note(self, text: str) -> None:
        """Add a note, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def _plain(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Give the rows a plain index and names of text; leave columns without a name out."""
        names = [str(name).strip() for name in rows.columns]
        unnamed = [bool(UNNAMED.fullmatch(name)) for name in names]
        if any(unnamed):
            self.note("a column without a name (an index of rows) is left out")
        kept = [name for name, without in zip(names, unnamed, strict=True) if not without]
        _check_once(kept, self.source)
        rows = rows.loc[:, [not without for without in unnamed]].reset_index(drop=True)
        rows.columns = pd.Index(kept, dtype=object)
        return rows

    def _without_total(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Leave out empty rows and a row of totals at the end."""
        n_rows = len(rows)
        while n_rows and rows.iloc[n_rows - 1].isna().all():
            n_rows -= 1
        if n_rows < len(rows):
            self.note(f"{len(rows) - n_rows} empty rows at the end are left out")
        rows = rows.iloc[:n_rows]
        label = _total_label(rows.tail(10_000))
        if label:
            self.note(f"the last row is a total ({label!r}) and is left out")
            rows = rows.iloc[:-1]
        return rows


def open_table(source: str | Path, query: str | None = None) -> Table:
    """Open a table: a file, a folder of files, a glob pattern, a URL or, with `query`, a database.

    Read are CSV and the like (also compressed), JSON lines, Parquet, Feather, Excel, partitioned
    folders and Delta tables; s3://, gs://, abfs:// and https:// are copied to a temporary folder.
    Raises UserError when there is nothing to read there, or a package is missing.
    """
    source = str(source)
    scheme = source.split("://")[0] if "://" in source else ""
    shown = re.sub(r"//[^@/]*@", "//", source).split("?")[0] if scheme else source
    if query is not None or DATABASES.match(scheme):
        return _open_sql(source, shown, query)
    keep = None
    if scheme == "file":
        source = urllib.request.url2pathname(urlsplit(source).path)
    elif scheme:
        keep = tempfile.TemporaryDirectory(prefix="table-")
        source = _download(source, shown, Path(keep.name))
    if _is_delta(Path(source)):
        return _open_delta(source, shown, keep)
    table = Table(shown, [], keep=keep)
    for number, (file, keys) in enumerate(_data_files(source, shown)):
        reader, line = _open_file(file, table)
        table.readers.append(partial(_with_keys, reader, keys))
        table.first_line = table.first_line if number else line
    return table


def _with_keys(reader: Callable[[], Blocks], keys: dict[str, str | None]) -> Blocks:
    for block in reader():
        attrs = block.attrs
        rows = block.assign(**{k: pd.Categorical([v] * len(block)) for k, v in keys.items()})
        rows.attrs = attrs
        yield rows


def _check_once(names: list[str], shown: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{shown} has two columns named {twice!r}; rename or remove one")


def _other_columns(source: str, names: list[str], before: list[str]) -> UserError:
    return UserError(
        f"a file of {source} has the columns {names}, but those before it have {before}; give "
        "files with the same columns"
    )


def _total_label(rows: pd.DataFrame) -> str:
    """Return the word that marks the last row as a total of those above it, or ""."""
    if len(rows) < 3:
        return ""
    last, before = rows.iloc[-1], rows.iloc[:-1]
    texts = {name: str(value).strip() for name, value in last.items() if isinstance(value, str)}
    found = [name for name, text in texts.items() if TOTAL.fullmatch(text.casefold())]
    if not found or (before[found[0]].astype(str).str.strip() == texts[found[0]]).any():
        return ""
    numbers = before.apply(lambda column: pd.to_numeric(column.astype(object), errors="coerce"))
    high = numbers.max()
    above = pd.to_numeric(last.astype(object), errors="coerce") > high
    empty = last.isna() & (before.isna().mean() < 0.5)
    unread = high.isna().sum() == len(high) - 1  # numbers that only `columns.py` can read
    return texts[found[0]] if above.any() or empty.any() or unread else ""


# --- where tables are --------------------------------------------------------------------------


def _data_files(source: str, shown: str) -> list[tuple[Path, dict[str, str | None]]]:
    """List the files behind a path, each with the keys of the folders `key=value` it lies in."""
    path = Path(source)
    try:
        if path.is_file():
            found = [path]
        elif path.is_dir():
            found = [file for file in sorted(path.rglob("*")) if _belongs(file, path)]
        else:
            found = [Path(name) for name in sorted(glob.glob(source)) if Path(name).is_file()]
    except (OSError, ValueError):  # a name too long for a file, say
        found = []
    if not found:
        what = "the folder holds no table" if os.path.isdir(path) else "there is no such file"
        raise UserError(
            f"cannot read {shown}: {what}; expected CSV, Parquet, JSON lines, Feather or Excel: "
            "check the path"
        )
    for file in found:
        if _is_delta(file.parent):
            raise UserError(
                f"{shown} is a part of the Delta table {file.parent}, where some files are no "
                "longer valid; give the folder instead"
            )
    return [(file, _keys(file, path)) for file in found]


def _belongs(file: Path, folder: Path) -> bool:
    *folders, name = file.relative_to(folder).parts
    hidden = name.startswith((".", "_"))
    inside = all("=" in part for part in folders)
    return inside and not hidden and file.is_file() and file.suffix.lower() in SUFFIXES


def _keys(file: Path, top: Path) -> dict[str, str | None]:
    inside = file.relative_to(top) if top in file.parents else file
    pairs = [part.split("=", 1) for part in inside.parts[:-1] if "=" in part]
    empty = "__HIVE_DEFAULT_PARTITION__"
    return {key: None if value == empty else unquote(value) for key, value in pairs}


def _download(url: str, shown: str, folder: Path) -> str:
    """Copy what a URL names into a folder: the path of the copy."""
    target = folder / (Path(unquote(urlsplit(url).path)).name or "table")
    try:
        if url.startswith(("http://", "https://")):
            with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as copy:
                shutil.copyfileobj(answer, copy)
            return str(target)
        from pyarrow import fs

        if url.startswith("gs://") and "?" not in url:
            url += "?retry_limit_seconds=20"  # it would try for a quarter of an hour
        place, path = fs.FileSystem.from_uri(url)
        if place.get_file_info(path).type == fs.FileType.NotFound:
            raise FileNotFoundError("there is nothing")
        fs.copy_files(path, str(target), source_filesystem=place)
    except ImportError as error:
        package = {"gs": "gcsfs", "abfs": "adlfs", "s3": "s3fs"}.get(url.split(":")[0], "fsspec")
        raise UserError(f"{shown} needs a package: pip install {package}") from error
    except (OSError, ValueError, pa.ArrowException, urllib.error.URLError) as error:
        raise UserError(
            f"cannot read {shown} ({one_line(error)}); check the address and the access rights"
        ) from error
    return str(target)


def _is_delta(folder: Path) -> bool:
    return os.path.isdir(folder / "_delta_log")  # False for a name too long for a file


def _open_delta(folder: str, shown: str, keep: Any) -> Table:
    try:
        from deltalake import DeltaTable
    except ImportError as error:
        raise UserError(
            f"{shown} is a Delta table, which needs a package: pip install deltalake"
        ) from error
    try:
        delta = DeltaTable(folder)
        dataset = delta.to_pyarrow_dataset()
    except Exception as error:  # its exceptions have no common base that is public
        raise UserError(f"cannot read the Delta table {shown} ({one_line(error)})") from error
    notes = [f"version {delta.version()} of the Delta table {shown} was read"]
    return Table(shown, [lambda: _typed_blocks(dataset)], notes, keep=keep)


def _open_sql(url: str, shown: str, query: str | None) -> Table:
    """Read the rows of one query; they are kept, as a second reading might find others."""
    if query is None or "://" not in url:
        raise UserError(
            f"{shown} and a query belong together; expected a database such as "
            "postgresql://host/name with --query 'SELECT …'"
        )
    try:
        import sqlalchemy

        with sqlalchemy.create_engine(url).connect() as connection:
            blocks = list(pd.read_sql_query(query, connection, chunksize=BLOCK_ROWS))
    except ImportError as error:
        package = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
        name = package.get(error.name or "", error.name)
        raise UserError(f"{shown} needs a package: pip install {name}") from error
    except Exception as error:  # drivers raise classes of their own, SQLAlchemy others
        reason = one_line(error).split(" [SQL:")[0].replace(url, shown)
        raise UserError(f"the query on {shown} failed ({reason}); check it") from error
    typed = [
        block.astype(dict.fromkeys(block.select_dtypes("str"), "category")) for block in blocks
    ]
    return Table(shown, [lambda: iter(typed)])


# --- how tables are written ---------------------------------------------------------------------


def _open_file(file: Path, table: Table) -> tuple[Callable[[], Blocks], int]:
    """Choose the reader of a file by its name or first bytes: (reader, line of the first row)."""
    head, suffix = _head(file), file.suffix.lower()
    kind = "parquet" if head[:4] == b"PAR1" else TYPED.get(suffix)
    kind = "feather" if head[:6] == b"ARROW1" else kind
    if kind:
        return lambda: _typed_file(file, kind), 1
    if suffix in EXCEL:
        return _open_excel(file, table)
    head = _head(file, packed=True)
    if not head.removeprefix(codecs.BOM_UTF8).strip():
        raise UserError(f"{file} is empty; expected a header line and rows")
    name = file.name.lower().removesuffix(suffix if suffix in PACKED else "")
    if name.endswith(JSON) or (head.lstrip()[:1] in b"[{" and b'":' in head):
        return lambda: _json_blocks(file), 1
    return _open_csv(file, table)


def _stream(file: Path) -> Any:
    """Open a file as bytes, unpacked: the one file in a .zip, the content of a .gz."""
    if not zipfile.is_zipfile(file):
        return pa.input_stream(str(file), compression="detect")
    archive = zipfile.ZipFile(file)
    names = [n for n in archive.namelist() if not n.endswith("/") and "__MACOSX" not in n]
    if len(names) != 1:
        raise UserError(f"{file} holds {len(names)} files; expected one: unpack it, give a folder")
    return archive.open(names[0])


def _head(file: Path, *, packed: bool = False, size: int = HEAD_BYTES) -> bytes:
    try:
        with _stream(file) if packed else file.open("rb") as stream:
            return stream.read(size)
    except (OSError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise UserError(f"cannot read {file} ({one_line(error)}); copy it again") from error


def _typed_file(file: Path, form: str) -> Blocks:
    try:
        if form == "parquet":
            _check_once(pq.read_schema(file).names, str(file))
        yield from _typed_blocks(ds.dataset(file, format=form))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file} is not a complete {form.title()} file ({one_line(error)[:90]}); "
            "write or copy it again"
        ) from error


def _typed_blocks(dataset: Any) -> Blocks:
    """Read typed rows; text as categories, decimals as floats; the index pandas kept is plain."""
    for table in _in_blocks(dataset.to_batches(batch_size=BLOCK_ROWS // 4), dataset.schema):
        for number, part in enumerate(table.schema):
            column = table.column(number)
            if pa.types.is_string(part.type) or pa.types.is_large_string(part.type):
                column = column.dictionary_encode()
            elif pa.types.is_decimal(part.type):
                column = column.cast(pa.float64())
            table = table.set_column(number, part.name, column)
        yield table.to_pandas(ignore_metadata=True, date_as_object=False)


def _in_blocks(batches: Any, schema: pa.Schema) -> Iterator[pa.Table]:
    """Join small batches to tables of about `BLOCK_ROWS` rows; at least one, maybe empty."""
    waiting, n_rows, first = [], 0, True
    for batch in batches:
        waiting.append(batch)
        n_rows += len(batch)
        if n_rows >= BLOCK_ROWS:
            yield pa.Table.from_batches(waiting, schema)
            waiting, n_rows, first = [], 0, False
    if waiting or first:
        yield pa.Table.from_batches(waiting, schema)


def _json_blocks(file: Path) -> Blocks:
    """Read one object per line, or one array of objects; text is left as it is written."""
    try:
        with _stream(file) as stream:
            lines = not stream.read(HEAD_BYTES).lstrip().startswith(b"[")
        with _stream(file) as stream:
            if lines:
                yield from pd.read_json(stream, lines=True, chunksize=BLOCK_ROWS, dtype=False)
            else:
                yield pd.read_json(stream, dtype=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{file} is no table in JSON ({one_line(error)}); expected one object per line, such "
            'as {"age": 41, "zone": "nord"}'
        ) from error


def _open_excel(file: Path, table: Table) -> tuple[Callable[[], Blocks], int]:
    try:
        sheets = pd.read_excel(file, sheet_name=None, header=None, engine="openpyxl")
    except ImportError as error:
        raise UserError(f"{file} is an Excel file: pip install openpyxl") from error
    except Exception as error:  # openpyxl and zipfile raise whatever a broken file makes them
        raise UserError(f"{file} is no readable Excel file ({one_line(error)})") from error
    full = [name for name, rows in sheets.items() if len(rows)]
    if not full:
        raise UserError(f"{file} is empty; expected a header line and rows")
    if len(full) > 1:
        table.note(f"{file.name} has {len(full)} sheets; only the first, {full[0]!r}, was read")
    rows = sheets[full[0]]
    texts = rows.head(100).astype(object).where(rows.head(100).notna(), "")
    header = _header_line([[str(v) for v in line] for line in texts.to_numpy()], str(file))
    if header:
        table.note(f"{file.name}: what stands above the header in line {header + 1} is left out")
    names = ["" if pd.isna(name) else name for name in rows.iloc[header]]
    body = rows.iloc[header + 1 :].infer_objects().set_axis(names, axis=1)
    return lambda: iter([body]), header + 2


# --- CSV ---------------------------------------------------------------------------------------


def _open_csv(file: Path, table: Table) -> tuple[Callable[[], Blocks], int]:
    """Recognise encoding, separator and header of a text file."""
    encoding = _encoding(file, table)
    text = _head(file, packed=True).decode(encoding, errors="ignore").removeprefix("\ufeff")
    lines = re.split(r"\r\n|\n|\r", text)
    lines = lines[:-1] if len(text) > HEAD_BYTES // 5 and len(lines) > 2 else lines
    marked = re.fullmatch(r'"?sep=(.)"?[,;\t]*', lines[0])
    start = 1 if marked else 0
    separator = marked[1] if marked else _separator(lines)
    while not lines[start].strip():
        start += 1
    parsed = [next(csv.reader([line], delimiter=separator), []) for line in lines[start:200]]
    start += _header_line(parsed, str(file))
    reader = csv.reader((line + "\n" for line in lines[start:]), delimiter=separator)
    names = next(reader)
    end = start + reader.line_num
    if marked or separator != ",":
        table.note(f"{file.name} was read with {separator!r} between columns")
    if any(line.strip() for line in lines[bool(marked) : start]):
        table.note(f"{file.name}: what stands above the header in line {start + 1} is left out")
    options = {"skip_rows": end, "column_names": names, "encoding": encoding}
    return lambda: _csv_blocks(file, separator, options), end + 1


def _separator(lines: list[str]) -> str:
    """Find the mark that cuts most lines, from the header on, into equally many fields."""

    def score(mark: str) -> tuple[int, int, int]:
        widths = [len(next(csv.reader([line], delimiter=mark), [])) for line in lines[:200]]
        usual = max(set(widths), key=widths.count)
        wide = [number for number, width in enumerate(widths) if width == usual]
        return (len(wide) if usual > 1 else 0), -wide[0], usual

    return max(",;\t|", key=score)


def _header_line(lines: list[list[str]], shown: str) -> int:
    """Return the number of title and comment lines above the header.

    Raises UserError where the header and the rows below it have different widths.
    """
    widths = [len(line) for line in lines if line]
    usual = max(set(widths), key=widths.count)
    filled = [sum(bool(cell.strip()) for cell in line) for line in lines]
    for number, line in enumerate(lines):
        titled = filled[number] <= (usual - 1) / 2 and filled[number] < max(filled)
        if len(line) == usual and not (titled and line[0].strip()):
            break
        comment = not line or line[0].lstrip().startswith("#")
        if not comment and filled[number] > max(1, usual / 2):
            raise UserError(
                f"{shown} is not a regular table (line {number + 1} has {len(line)} fields, most "
                f"lines have {usual}); give every line as many fields as the header"
            )
    names = [cell for cell in lines[number] if cell.strip()]
    if number and any(re.fullmatch(r"[-+]?[\d.,]+", name) for name in names):
        raise UserError(
            f"{shown} has no header in line {number + 1}, below a line of another width; expected "
            "a header with the names of all columns"
        )
    return number


def _encoding(file: Path, table: Table) -> str:
    """Find the encoding of a text file: by its mark, as UTF-8, or by what its bytes look like."""
    sample = _head(file, packed=True, size=DETECT_BYTES)
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        table.note(f"{file.name} was read as UTF-16")
        return "utf-16"
    if b"\0" in sample[:HEAD_BYTES]:
        raise UserError(
            f"{file} is a binary file; expected CSV, Parquet, JSON lines, Feather or Excel "
            "(from a spreadsheet: 'Save as', 'CSV UTF-8')"
        )
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return "utf-8"
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes
    lines = [line for line in sample.splitlines()[:100_000] if not line.isascii()]
    found = from_bytes(b"\n".join(lines[:500]), cp_isolation=ENCODINGS, threshold=0.5)
    chaos = {name: match.chaos for match in found for name in match.could_be_from_charset}
    # Windows-1252 is by far the most frequent; the others must look better, not as good.
    best = min(chaos, key=lambda name: (chaos[name], name != "cp1252"), default="cp1252")
    table.note(f"{file.name} is not UTF-8 and was read as {best.replace('cp', 'Windows-')}")
    return best


def _csv_blocks(file: Path, separator: str, options: dict[str, Any]) -> Blocks:
    names = options["column_names"]
    numbered = [f"{number}" for number in range(len(names))]  # unnamed columns may be several
    read = pc_csv.ReadOptions(**options | {"column_names": numbered}, block_size=2**24)
    parse = pc_csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    convert = pc_csv.ConvertOptions(
        column_types=dict.fromkeys(numbered, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    try:
        with _stream(file) as stream, pc_csv.open_csv(stream, read, parse, convert) as batches:
            for block in _in_blocks(batches, batches.schema):
                rows = block.to_pandas()
                rows.columns = pd.Index(names, dtype=object)
                rows.attrs = {"separator": separator}
                if len(rows) and str(rows.iloc[-1, -1]).endswith("\n"):
                    raise pa.ArrowInvalid("a field opens with a quote that is never closed")
                yield rows
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        if "Empty CSV file" in str(error):
            return
        raise UserError(
            f"{file} is not a regular table ({_irregular(file, separator, options) or error}); "
            "give every line as many fields as the header"
        ) from error


def _irregular(file: Path, separator: str, options: dict[str, Any]) -> str:
    """Name the first line that has another number of fields than the header."""
    width, skipped = len(options["column_names"]), options["skip_rows"]
    try:
        with _stream(file) as stream:
            text = io.TextIOWrapper(stream, options["encoding"], newline="")
            for number, fields in enumerate(csv.reader(text, delimiter=separator), 1):
                if fields and number > skipped and len(fields) != width:
                    return f"line {number} has {len(fields)} fields, not {width}"
    except (OSError, EOFError, ValueError, csv.Error) as error:
        return one_line(error)
    return ""
