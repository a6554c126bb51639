"""What a model knows about columns, and every file's rows brought to one form.

A copy of this file travels inside every model. How columns are recognised is in `kinds.py`.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from .errors import UserError

Where = Callable[[np.ndarray], str]  # names the lines of rows
MIN_ROWS = 20
MARK_ROWS = 1_000  # tell which mark is before the decimals of a file
EXPECTED = {"numeric": "number such as 1234.5", "date": "date such as 2024-10-13"}
MAX_NUMBER = 1e100  # beyond it, float64 cannot hold the squares that statistics need
# pandas' own list, and what else stands for a missing number or date (compared without case).
NO_VALUE = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null", "NaN", "nan", "None", "NaT")
WORDS = (
    "? - -- --- . .. … – — * na n/a n.a. nc n.c. n/c nd n.d. nr null none nil nan missing unknown "
    "inconnu inconnue #n/a #na #value! #div/0! #ref! #num! #name? #valeur! #nombre! "
    r"k.a. #nv #wert! #bezug! #null! \n (null) [null] <null>"
)
NO_NUMBER = WORDS.split()
# Patterns of all cells have neither \\s nor \\d, for which pandas turns to the slow ones of Python.
PLAIN = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
BOOLEANS = {"true": "True", "false": "False", "vrai": "True", "faux": "False"}
NO_DATE = ["0", "00000000", "0000-00-00", "99991231"]  # of SAP and MySQL, where none is known
CLOCK = "h:m:s"  # the unit of durations, which are read as seconds
# With hours and minutes, as pandas writes them (also "-1 days +23:45:00") or as ISO 8601 does.
DURATION = r"[+-]?(?:[0-9]+ days?,? \+?)?[0-9]+:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?"
DURATION += r"|[+-]?P(?:[0-9]+D)?T(?:[0-9.]+[HMS])+"
# As people write them: 2h 50m, 1 h 30, 7 hours 56 mins, 45 min.
HOURS = r"([0-9]+) ?h(?:ours?|eures?|rs?)? ?(?:([0-9]{1,4}) ?(?:m(?:in(?:ute)?s?)?)?)?"
MINUTES = r"([0-9]+) ?m(?:in(?:ute)?s?)?"
SPACE = "[ \t\u00a0\u2009\u202f'’]"
OTHER_MARK = {".": ",", ",": "."}
ISO = "ISO8601"
FRENCH = "janv févr fevr mars avr mai juin juil août aout sept oct nov déc dec"
ENGLISH = "Jan Feb Feb Mar Apr May Jun Jul Aug Aug Sep Oct Nov Dec Dec"
WEEKDAY = "lundi|mardi|mercredi|jeudi|vendredi|samedi|dimanche"
MONTHS = dict(zip(FRENCH.split(), ENGLISH.split(), strict=True))
MONTH = rf"\b({'|'.join(MONTHS)})(?:ier|il|let|embre|obre)?\b\.?"  # short or whole
QUARTER = r"^(?:((?:1[89]|20)\d\d)[ -]?[QT]([1-4])|[QT]([1-4])[ /-]((?:1[89]|20)\d\d))$"
EPOCHS = {"epoch s": 86_400.0, "epoch ms": 86_400_000.0}  # of them in a day


@dataclass(frozen=True)
class Column:
    """Say what a column is, and how its numbers or dates are written."""

    name: str
    kind: str  # "numeric", "categorical" or "date"
    decimal: str = ""  # this and the next are the marks in a number, "" for one not seen
    thousands: str = ""
    unit: str = ""  # before or after a number
    date_format: str = ""  # of strptime, "ISO8601", "epoch s" or "epoch ms"
    markers: list[str] = field(default_factory=list)  # more texts that mean a missing value here
    width: int = 0  # digits of a code such as 00042, 0 for none


@dataclass(frozen=True)
class Schema:
    """Name what a model uses: the target, the features in their order, and what was left out."""

    target: Column
    columns: tuple[Column, ...]
    dropped: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def kinds(self) -> dict[str, str]:
        return {column.name: column.kind for column in self.columns}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Schema":
        """Build a schema from its `dataclasses.asdict`, also after a way through JSON."""
        columns = tuple(Column(**each) for each in content["columns"])
        return cls(Column(**content["target"]), columns, tuple(content["dropped"]))


def lines(places: np.ndarray, numbers: Iterable[int] = (), file: str = "") -> str:
    """Name the lines of some rows, five at most: "lines 2, 7, 9"; else row 0 is in line 2."""
    numbers = list(numbers) or [2 + place for place in places[:5]]
    n_more = len(places) - len(numbers)
    more = f" and {n_more:,} more" if n_more else ""
    return f"line{'s' if len(places) > 1 else ''} {', '.join(map(str, numbers))}{file}{more}"


def named(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return the rows with columns named by text, stripped, each once, and a RangeIndex."""
    spelt = [unicodedata.normalize("NFC", str(name)).strip() for name in rows.columns]
    names = pd.Index(spelt, dtype=object)
    if names.has_duplicates:
        twice = names[names.duplicated()][0]
        raise UserError(f"{source} has two columns named {twice!r}; rename or remove one")
    return rows.reset_index(drop=True).set_axis(names, axis=1)


def as_text(values: pd.Series, markers: Iterable[str] = ()) -> pd.Series:
    """Return a column as text without outer spaces, 3 for 3.0; missing, or a marker, is NaN."""
    if values.dtype == object:  # of JSON, where a cell may be a list
        values = values.map(_written, na_action="ignore").astype("str")
    elif values.dtype != "str":  # a level once, however often it stands
        codes, levels = pd.factorize(values)
        texts = as_text(pd.Series([_written(level) for level in levels], dtype="str"), markers)
        return pd.Series(texts.array.take(codes, allow_fill=True), name=values.name)
    text = values.str.strip()
    return text.mask(text.isin([*NO_VALUE, *markers]))


def _written(value: Any) -> str:
    value = value.total_seconds() if hasattr(value, "total_seconds") else value  # as in Parquet
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair is no UTF-8


def without_markers(text: pd.Series) -> pd.Series:
    """Return texts without those that mean a missing number or date, in any case."""
    return text.mask(text.str.lower().isin(NO_NUMBER))


def core_of(text: pd.Series, unit: str) -> pd.Series:
    """Take the unit, brackets of a negative amount and spaces between thousands off."""
    if unit:
        mark = rf"^([+-]?\(?){re.escape(unit)}{SPACE}*|{SPACE}*{re.escape(unit)}(\)?)$"
        text = text.str.replace(mark, r"\1\2", regex=True)
    text = text.str.replace("[−–]", "-", regex=True).str.replace(r"^\((.*)\)$", r"-\1", regex=True)
    text = text.str.replace(rf"^([0-9](?:.*[0-9])?){SPACE}?-$|^- (.*)$", r"-\1\2", regex=True)
    spaced = text.str.fullmatch(rf"[+-]?[0-9]{{1,3}}(?:{SPACE}[0-9]{{3}})+(?:[.,][0-9]+)?")
    return text.mask(spaced, text.str.replace(SPACE, "", regex=True))


def number_pattern(decimal: str, thousands: str) -> str:
    """Return what matches numbers that are written with these marks, or without any."""
    mark = re.escape(thousands)  # of thousands; in India of hundreds beyond these
    grouped = rf"[1-9][0-9]{{0,2}}(?:{mark}[0-9]{{2,3}})*{mark}[0-9]{{3}}(?:\{decimal}[0-9]*)?"
    plain = rf"(?:[0-9]+\{decimal}?[0-9]*|\{decimal}[0-9]+)(?:[eE][+-]?[0-9]+)?"
    return f"[+-]?(?:{grouped}|{plain})"


def marks_of(core: pd.Series, context: str = "") -> tuple[str, str] | None:
    """Tell marks (decimals, thousands), "" if unseen; None in doubt. `context`: of the file."""
    fits = {mark: core.str.fullmatch(number_pattern(mark, OTHER_MARK[mark])) for mark in ".,"}
    numbers = core[fits["."] | fits[","]]
    n_seen = {mark: numbers.str.contains(mark, regex=False).sum() for mark in ".,"}
    if not any(n_seen.values()):
        return "", ""
    decimal, other = sorted(".,", key=lambda mark: (-fits[mark].sum(), -n_seen[mark]))
    if fits["."].sum() == fits[","].sum():  # three digits behind the only mark
        short, long = (numbers.str.fullmatch(f"[+-]?[0-9]{n}").any() for n in ("{1,3}", "{4,}"))
        # Many numbers with three decimals each, but whole ones below 1,000 beside them: thousands.
        many = n_seen[decimal] >= 50 and short and not long
        if n_seen[other] or not (many or context):
            return None
        if context == other or (many and not context):
            decimal, other = other, decimal
    return decimal, other if n_seen[other] else ""


def usual_mark(cores: Iterable[pd.Series]) -> str:
    """Tell the mark before decimals in most columns of a file that leave no doubt; or ""."""
    found = [marks[0] for marks in map(marks_of, cores) if marks]
    votes = found.count(".") - found.count(",")
    return "." if votes > 0 else "," if votes < 0 else ""


def in_doubt(name: str, core: pd.Series, is_first: bool = False) -> UserError:
    """Ask what numbers such as 1.234 mean, which no other number of the file tells."""
    unclear, commas = (core[core.str.contains(each)] for each in ("[0-9][.,][0-9]{3}", ","))
    if unclear.empty:
        return UserError(
            f"column {name!r} holds numbers such as {commas.iloc[0]!r}, and others with a point "
            "before the decimals; write one of these marks alone"
        )
    way = f", or say --numeric {name!r} (then a point is before decimals)" if is_first else ""
    return UserError(
        f"column {name!r} holds numbers such as {unclear.iloc[0]!r}, which can be read as "
        f"thousands or as a decimal number; write the numbers without the mark of thousands{way}"
    )


def _clock(found: re.Match) -> str:
    """Write hours and minutes, which may be many or none, as 2:50:00."""
    hours, minutes = divmod(60 * int(found[1]) + int(found[2] or 0), 60)
    return f"{hours}:{minutes:02}:00"


def parse_numbers(text: pd.Series, column: Column, context: str = "") -> np.ndarray:
    """Read texts as float64 numbers, `context` as of `marks_of`; NaN for a text that is none.

    Raises UserError for numbers such as 1.234 where neither the file nor training tells the mark.
    """
    if column.unit == CLOCK:
        known = text.mask(text.str.fullmatch("[0-9]+:[0-9]{2}"), "0:" + text)  # minutes, seconds
        known = known.str.replace(f"^{MINUTES}$", r"0h\1", regex=True)
        known = known.str.replace(f"^{HOURS}$", _clock, regex=True)
        known = known.where(known.str.fullmatch(DURATION))
        seconds = pd.to_timedelta(known, errors="coerce").dt.total_seconds().astype("str")
        text = text.mask(known.notna(), seconds)
    good = text.str.fullmatch(PLAIN)
    has_points = text.str.contains(".", regex=False).any()
    if (has_points and (column.decimal != "." or context == ",")) or good.sum() < text.count():
        text = core_of(without_markers(text), column.unit)
        known = column.decimal and not text.str.contains(column.decimal, regex=False).any()
        if known and context == column.thousands:
            context = column.decimal  # what was a mark of thousands at training is one here
        marks = marks_of(text, context)
        if not (marks or column.decimal):
            raise in_doubt(column.name, text)
        decimal, thousands = marks or ("", "")
        if not decimal:  # this file alone does not say: it is as at training
            decimal = column.decimal or "."
            thousands = column.thousands or ("" if marks else OTHER_MARK[decimal])
        good = text.str.fullmatch(number_pattern(decimal, thousands))
        text = text.str.replace(thousands, "", regex=False) if thousands else text
        text = text.str.replace(decimal, ".", regex=False)
    exact = text.where(good).astype("float64[pyarrow]")  # unlike pd.to_numeric
    return exact.to_numpy(np.float64, na_value=np.nan)


def in_english(dates: pd.Series) -> pd.Series:
    """Write dates as pandas knows them: 15 Mar 2024 for 15 mars 2024, 2024-04 for T2 2024."""
    text = dates.str.normalize("NFC")  # é as one letter
    text = text.str.replace(f"^(?:{WEEKDAY}) ", "", case=False, regex=True)
    text = text.str.replace(r"\b1er\b", "1", regex=True)
    text = text.str.replace(
        QUARTER, lambda m: f"{m[1] or m[4]}-{3 * int(m[2] or m[3]) - 2:02d}", regex=True
    )
    return text.str.replace(MONTH, lambda month: MONTHS[month[1].lower()], case=False, regex=True)


def parse_dates(dates: pd.Series, form: str) -> np.ndarray:
    """Return days since 1970-01-01; NaN for a text that is no date of this form."""
    if form in EPOCHS:
        return pd.to_numeric(dates, errors="coerce").to_numpy(np.float64) / EPOCHS[form]
    if not pd.api.types.is_datetime64_any_dtype(dates.dtype):
        # A minus sign is of no date that people write, and one that pandas stumbles over.
        dates = dates.mask(dates.str.startswith("-")).str.removesuffix(" UTC")
        dates = dates.str.removesuffix(".0")  # pandas writes 20240115.0 beside missing dates
        dates = in_english(dates) if "%b" in form or form == "%Y-%m" else dates
    known = pd.to_datetime(dates, format=form, errors="coerce", utc=True)
    micro = known.to_numpy("datetime64[us]")  # in nanoseconds the year 7746 has no place
    return (micro - np.datetime64(0, "us")) / np.timedelta64(1, "D")


def _read_dates(text: pd.Series, form: str) -> np.ndarray:
    """Read dates as `parse_dates`, those of a later file also in ISO, with a clock or without."""
    cells, day = parse_dates(text, form), form.partition("%H:%M")[0].strip()
    if form in EPOCHS:  # another program counts milliseconds, or seconds
        factor = 1_000 if form == "epoch ms" else 1 / 1_000
        other = (cells * factor > 1_000) & (cells * factor < 49_000)
        cells = np.where(other, cells * factor, cells)
    has_day = not day or ("%d" in day and "%I" not in day)
    clocks = [f"{day} {clock}".strip() for clock in ("", "%H:%M", "%H:%M:%S") if has_day]
    longer = form.replace("%y", "%Y") if "%y" in form else form.replace("%Y", "%y")
    for other in filter(None, (ISO, *clocks, longer)):
        left = np.isnan(cells) & text.notna()
        if not left.any():
            break
        cells[left] = parse_dates(text[left], other)
    return cells


def to_level(text: str, width: int) -> str:
    """Write a category the same for "3" and "3.0", for "true" and "TRUE" (VRAI in French Excel)."""
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", unicodedata.normalize("NFC", text))  # é as one letter
    text = BOOLEANS.get(text.lower(), text)
    return text.zfill(width) if text.isdigit() else text


def read_cells(values: pd.Series, column: Column, context: str = "") -> tuple[Any, np.ndarray]:
    """Read a column: (its cells as `conform` returns them, where one is not of the kind)."""
    bad = np.zeros(len(values), bool)
    if column.kind == "date" and pd.api.types.is_datetime64_any_dtype(values.dtype):
        cells = parse_dates(values, ISO)
    elif column.kind == "numeric" and pd.api.types.is_numeric_dtype(values):
        if pd.api.types.is_float_dtype(values) and getattr(values.dtype, "itemsize", 8) < 8:
            # 0.1 of float32 is 0.1, as in a CSV file, not 0.10000000149.
            texts = pa.array(values, pa.float32(), from_pandas=True).cast(pa.string())
            values = pd.Series(texts.cast(pa.float64()).to_pandas())
        cells = values.to_numpy(np.float64, na_value=np.nan)
    else:
        text = as_text(values, column.markers)
        if column.kind == "categorical":
            levels = {each: to_level(each, column.width) for each in text.dropna().unique()}
            is_same = all(each == level for each, level in levels.items())
            return (text if is_same else text.map(levels).astype("str")), bad
        if column.kind == "numeric":
            cells = parse_numbers(text, column, context)
        else:
            text = text.mask(text.isin(NO_DATE))
            cells = _read_dates(text, column.date_format)
        left = np.isnan(cells)
        if left.any():
            bad[left] = without_markers(text[left]).notna()
    if column.markers:
        texts = pd.Series(column.markers, dtype="str")
        if column.kind == "date":
            meant = _read_dates(texts, column.date_format)
        else:
            meant = pd.to_numeric(texts, errors="coerce").to_numpy()
        cells = np.where(np.isin(cells, meant), np.nan, cells)
    return cells, bad | (np.abs(cells) > MAX_NUMBER)


def conform(
    rows: pd.DataFrame,
    schema: Schema,
    *,
    source: str = "the table",
    where: Where = lines,
    decimal: str = "",
    need_target: bool = True,
    strict: bool = False,
) -> tuple[pd.DataFrame, list[str]]:
    """Bring rows to the schema: its features in their order, and the target after them if needed.

    `decimal` is the mark before decimals where the columns leave it open. Numbers are float64,
    dates float64 days since 1970-01-01 (UTC), categories text. Rows in which the target is absurd,
    such as 1e9 among thousands, are left out; the index tells the places of the others. Returns the
    table and one line for everything absurd. Raises UserError for a missing column, one that is
    unknown when `strict`, a text that is no number or date, a missing target.
    """
    rows, target = named(rows, source), schema.target.name
    columns = [*schema.columns, schema.target] if need_target else schema.columns
    for name in (column.name for column in columns if column.name not in rows):
        raise UserError(
            f"{source} has no column {name!r}{' to learn' * (name == target)}; the model needs "
            f"{', '.join(column.name for column in columns)}: add or rename the column"
        )
    extra = set(rows.columns) - {*schema.features, *schema.dropped, target}
    if strict and extra:
        raise UserError(
            f"{source} has the column {min(extra)!r}, which the model was not trained on; remove "
            "it, or train a new model with mlflow_monitoring.py"
        )
    place = mark_of_file(rows, columns) or decimal, source, where
    cells = {each.name: _cells(rows[each.name], each, *place, schema.target) for each in columns}
    table = pd.DataFrame(cells, index=rows.index)
    return _without_absurd(table, schema, source, where) if need_target else (table, [])


def mark_of_file(rows: pd.DataFrame, columns: Iterable[Column]) -> str:
    """Tell the mark before decimals by the first rows; "" also where nothing leaves a doubt."""
    texts = [
        (each, as_text(rows[each.name][:MARK_ROWS], each.markers))
        for each in columns
        if each.kind == "numeric" and not pd.api.types.is_numeric_dtype(rows[each.name])
    ]
    doubtful = ("[.,]" if each.decimal != "." else "," for each, _ in texts)
    if not any(text.str.contains(m).any() for m, (_, text) in zip(doubtful, texts, strict=True)):
        return ""
    return usual_mark(core_of(without_markers(text), each.unit) for each, text in texts)


def _cells(
    values: pd.Series, column: Column, mark: str, source: str, where: Where, target: Column
) -> Any:
    cells, bad = read_cells(values, column, mark)
    if bad.any():
        places = np.flatnonzero(bad)
        more = column is not target
        way = " (a training takes --na MARKER, a first one --categorical COLUMN)" if more else ""
        raise UserError(
            f"column {column.name!r} of {source} holds {str(values.iloc[places[0]])[:40]!r} in "
            f"{where(places)}; expected a {EXPECTED[column.kind]}: correct it{way}"
        )
    return cells


def _without_absurd(
    table: pd.DataFrame, schema: Schema, source: str, where: Where
) -> tuple[pd.DataFrame, list[str]]:
    """Leave out rows whose target is absurd, and name other absurd cells, both with their lines."""
    target, notes = schema.target.name, []
    missing = np.flatnonzero(table[target].isna())
    if len(missing):
        raise UserError(
            f"{len(missing)} of {len(table)} rows in {source} have no finite {target!r} "
            f"({where(missing)}); expected a number in every row: fill or remove them"
        )
    for column in (*schema.columns, schema.target):
        name, numbers = column.name, table[column.name].to_numpy()
        absurd = np.flatnonzero(_absurd(numbers) if column.kind == "numeric" else ())
        if not len(absurd):
            continue
        found = f"{numbers[absurd[0]]:.10g} in {where(absurd)}"
        if name == target:
            notes.append(
                f"{len(absurd)} rows of {source} are left out: their {target!r} is absurd ({found})"
            )
            table = table.drop(index=absurd)
        else:
            notes.append(f"column {name!r} holds {found}, absurd beside its other values")
    return table, notes


def _absurd(numbers: np.ndarray) -> np.ndarray:
    """Mark numbers that lie beyond a gap no long tail has.

    That is a thousand times the next smaller one, and at least 100,000, in the upper tenth; or
    ten times, where all of them are one number of nines such as 99999, or 999 in several rows. One
    number that stands in for missing ones may be in more rows than a tenth.
    """
    size = np.abs(np.nan_to_num(numbers))
    known = size[size > 0]
    if len(known) < MIN_ROWS:
        return size < 0
    largest, rest = known.max(), known[known < known.max()]
    count = len(known) - len(rest)
    ratio = largest / rest.max() if count < len(rest) else 1.0
    is_nines = re.fullmatch("9{3,}" if count > 1 else "9{5,}", f"{largest:.15g}".replace(".", ""))
    if (ratio >= 1e3 and largest >= 1e5) or (ratio >= 10 and is_nines):
        return size == largest
    start = int(0.9 * len(known)) - 1
    top = np.sort(np.partition(known, start)[start:])
    gaps = top[1:] / top[:-1]
    limit = top[gaps.argmax() + 1]
    return (size >= limit) if gaps.max() >= 1e3 and limit >= 1e5 else (size < 0)
