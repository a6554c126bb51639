"""What the columns of a table are, and every file's rows brought to one form.

Belongs here: kinds of columns, numbers and dates as people write them, persons and ids. A copy of
this file travels inside every model. Not here: how files are stored, and the network's input.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .errors import UserError

MIN_ROWS = 20
MAX_NUMBER = 1e100  # beyond it, float64 cannot hold the squares that statistics need
SAMPLE = 10_000  # rows that say how a column is written; all rows are then read that way
# pandas' own list, and what else stands for a missing number or date (compared without case).
NO_VALUE = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null", "NaN", "nan", "None")
WORDS = (
    "? - -- --- . .. … – — * na n/a n.a. nc n.c. n/c nd n.d. nr null none nil nan missing unknown "
    "inconnu inconnue #n/a #na #value! #div/0! #ref! #num! #name? #valeur! #nombre!"
)
NO_NUMBER = frozenset(WORDS.split())
PLAIN = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
SPACE = r"[\s\x{A0}\x{2009}\x{202F}'’]"
MONEY = r"(?:US\$|C\$|A\$|R\$|[$€£¥₹₽]|USD|EUR|GBP|CHF|JPY|Rs\.?|Fr\.?|kr\.?|zł)"
UNIT = r"[^\W\d_]{1,9}\.?[²³23]?(?: ?/ ?[^\W_]{1,6})?(?: [^\W\d_]{1,6})?"
AMOUNT = re.compile(
    rf"[+-]?\(?(?P<before>{MONEY})? ?[+-]?[\d.,][\d.,'’\s]*?\)?\s?"
    rf"(?P<after>{MONEY}|[%‰]|°\s?[CF]?|[µμ]?{UNIT})?"
)
ISO = "ISO8601"
DATES = [
    (r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?)? ?(Z|UTC|[+-]\d{2}:?\d{2})?", ISO),
    (r"\d{8}T\d{6}(Z|[+-]\d{2}:?\d{2})?", ISO),
    (r"\d{4}/\d{1,2}/\d{1,2}", "%Y/%m/%d"),
    (r"(19|20)\d{2}-(0[1-9]|1[0-2])", "%Y-%m"),
    (r"(0[1-9]|1[0-2])/(19|20)\d{2}", "%m/%Y"),
    (r"\d{1,2} [^\W\d]{3} \d{4}", "%d %b %Y"),
    (r"\d{1,2}-[^\W\d]{3}-\d{4}", "%d-%b-%Y"),
    (r"\d{1,2}-[^\W\d]{3}-\d{2}", "%d-%b-%y"),
    (r"[^\W\d]{3} \d{1,2}, \d{4}", "%b %d, %Y"),
    (r"[^\W\d]{3,} \d{1,2}, \d{4}", "%B %d, %Y"),
    (r"\d{1,2} [^\W\d]{3,} \d{4}", "%d %B %Y"),
]
DAY_OR_MONTH = re.compile(
    r"(\d{1,2})([/.-])(\d{1,2})[/.-](\d{4}|\d{2})(,? \d{1,2}:\d{2}(:\d{2})?)?"
)
EPOCHS = {"epoch s": (1e8, 4.2e9, 1.0), "epoch ms": (1e11, 4.2e12, 1e3)}
# Of the words of a column's name, joined by spaces.
WHO = "client customer patient employee? contact borrower emprunteur salarie adherent person(ne)? "
WHO += "owner proprietaire student eleve passenger buyer seller host voyageur agent"
WHO = rf"\b({WHO.replace(' ', '|')})s?\b"
PERSON = (
    r"\b(prenoms?|(first|last|sur|fore|full|given|family|middle|maiden|user) ?names?|patronyme"
    r"|vorname|nachname|pseudo|login)\b"
    r"|^(names?|noms?( complet| (de )?(famille|naissance|jeune fille)| usage)?)$"
    rf"|\b(name|nom)\b.*{WHO}|{WHO}.*\b(name|nom)\b"
)
ID = (
    r"\b(id|uuid|guid|uid|ssn|nir|nss|secu|iban|siret|siren|matricule|identifiant|identifier"
    r"|social security)\b"
)
CONTACT = (
    r"\b(e ?mails?|mails?|courriels?|phone|telephone|tel|portable|mobile|fax|address|adresse|addr"
    r"|street|rue|ip|passport|passeport|immatriculation)\b"
)
ZIP = r"\b(zip|zip ?code|postal code|post ?code|code postal|cp|plz)\b"
CALENDAR = (
    r"\b(year|annee|an|jahr|month|mois|week|semaine|day|jour|doy|hour|heure|time|temps|age)s?\b"
)
CODE = r"^(\d{1,5}[A-Za-z]{1,2}|[A-Za-z]{1,2}\d{1,5})$"
PERSONAL = (  # e-mail addresses, telephone numbers, social security numbers, bank accounts
    r"^[^@\s]+@[^@\s]+\.[^@\s]+$|^(\+|00)\d[\d\s\x{A0}()-]{8,17}\d$|^0\d([ .\x{A0}-]?\d{2}){4}$"
    r"|^0\d{2,4}[ /]\d{3,4} ?\d{3,5}$|^(\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}$"
    r"|^[12]\d{2}(0[1-9]|1[0-2])\d{8}(\d{2})?$|^\d{3}-\d{2}-\d{4}$"
    r"|^[A-Z]{2}\d{2}( ?[A-Z0-9]{4}){3,7}( ?[A-Z0-9]{1,3})?$"
)


@dataclass(frozen=True)
class Column:
    """Say what a column is, and how its numbers or dates are written.

    kind is "numeric", "categorical" or "date"; decimal and thousands are the marks in a number;
    unit stands before or after it; date_format is one of strptime, "ISO8601", "epoch s" or
    "epoch ms"; markers are texts that mean a missing value here, beside the usual ones; width is
    the number of digits of a code such as 00042, 0 for none.
    """

    name: str
    kind: str
    decimal: str = "."
    thousands: str = ""
    unit: str = ""
    date_format: str = ""
    markers: tuple[str, ...] = ()
    width: int = 0


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

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as plain lists and texts, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Schema":
        """Build a schema from what `to_dict` returned, also after a way through JSON."""
        target, *columns = (
            Column(**{**column, "markers": tuple(column["markers"])})
            for column in (content["target"], *content["columns"])
        )
        return cls(target, tuple(columns), tuple(content["dropped"]))


# --- texts ---------------------------------------------------------------------------------------


def _text(values: pd.Series, column: Column | None = None) -> pa.Array:
    """Return a column as Arrow strings without outer spaces; missing, or a marker of it, is null.

    Numbers are written as people do: 3 for 3.0.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = _text(pd.Series(values.cat.categories), column)
        codes = pa.array(values.cat.codes.to_numpy(), mask=values.isna().to_numpy())
        return levels.take(codes.cast(pa.int32()))
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
        codes, levels = pd.factorize(values)
        texts = pa.array([_as_text(level) for level in levels], pa.string())
        return texts.take(pa.array(codes, mask=codes < 0))
    if not isinstance(values.dtype, pd.StringDtype):
        values = values.astype(object)
        if pd.api.types.infer_dtype(values, skipna=True) != "string":
            values = values.map(_as_text, na_action="ignore").astype(object)
    try:
        text = pa.array(values, type=pa.string(), from_pandas=True)
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot write
        whole = values.map(lambda t: t.encode("utf-8", "backslashreplace").decode(), "ignore")
        text = pa.array(whole, type=pa.string(), from_pandas=True)
    text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    text = pc.utf8_trim_whitespace(text)
    return _without(text, [*NO_VALUE, *(column.markers if column else ())])


def _as_text(value: Any) -> str:
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _without(text: pa.Array, markers: Iterable[str], *, any_case: bool = False) -> pa.Array:
    folded = pc.utf8_lower(text) if any_case else text
    found = pc.is_in(folded, pa.array([*markers], pa.string()))
    return pc.if_else(found, pa.scalar(None, pa.string()), text)


def _sample(text: pa.Array) -> pa.Array:
    """Take at most `SAMPLE` values, spread over the file, none of them missing."""
    known = text.drop_null()
    step = -(-len(known) // SAMPLE) or 1
    return known.take(pa.array(np.arange(0, len(known), step)))


def _matches(text: pa.Array, pattern: str) -> pa.Array:
    return pc.fill_null(pc.match_substring_regex(text, pattern), False)


def _count(text: pa.Array, pattern: str) -> int:
    return pc.sum(_matches(text, pattern)).as_py() or 0


# --- numbers -------------------------------------------------------------------------------------


def _core(text: pa.Array, unit: str) -> pa.Array:
    """Take the unit, brackets of a negative amount and spaces between thousands off."""
    if unit:
        mark = re.escape(unit)
        text = pc.replace_substring_regex(text, rf"^([+-]?\(?){mark}\s*", r"\1")
        text = pc.replace_substring_regex(text, rf"{SPACE}*{mark}(\)?)$", r"\1")
    text = pc.replace_substring(text, "−", "-")
    text = pc.replace_substring_regex(text, r"^\((.*)\)$", r"-\1")
    spaced = _matches(text, rf"^[+-]?\d{{1,3}}({SPACE}\d{{3}})+([.,]\d+)?$")
    return pc.if_else(spaced, pc.replace_substring_regex(text, SPACE, ""), text)


def _marks(core: pa.Array, context: str = "") -> tuple[str, str, bool]:
    """Tell the decimal mark from that of thousands: (decimal, thousands, whether it is sure).

    `context` is the decimal mark of other columns of the file. "" as decimal: no mark is there.
    """
    dots = _count(core, r"^[+-]?(\d{1,3}(,\d{3})+\.\d+|\d{1,3}(,\d{3}){2,})$")
    commas = _count(core, r"^[+-]?(\d{1,3}(\.\d{3})+,\d+|\d{1,3}(\.\d{3}){2,})$")
    either = {mark: _count(core, rf"^[+-]?[1-9]\d{{0,2}}\{mark}\d{{3}}$") for mark in ".,"}
    dots += _count(core, r"^[+-]?\d*\.\d*([eE][+-]?\d+)?$") - either["."]
    commas += _count(core, r"^[+-]?\d*,\d+$") - either[","]
    if dots or commas:
        return (".", ",", True) if dots >= commas else (",", ".", True)
    if not any(either.values()):
        return "", "", True
    mark = max(either, key=either.__getitem__)
    other = {".": ",", ",": "."}[mark]
    short, long = _count(core, r"^[+-]?\d{1,3}$"), _count(core, r"^[+-]?\d{4,}$")
    # Fifty numbers with three decimals each, but whole ones below 1,000 beside them: thousands.
    if context == other or (either[mark] >= 50 and short and not long):
        return other, mark, not all(either.values())
    return mark, other, context == mark and not all(either.values())


def _parse(text: pa.Array, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Read texts as numbers: (float64, NaN where missing; where a text is no number)."""
    if _count(text, PLAIN) != len(text) - text.null_count or column.thousands == ".":
        text = _without(text, NO_NUMBER, any_case=True)
        core = _core(text, column.unit)
        decimal, thousands, sure = _marks(core)
        if not sure or not decimal:  # this file alone does not say: it is as at training
            decimal, thousands = column.decimal, column.thousands
        if thousands:
            mark = re.escape(thousands)
            grouped = _matches(core, rf"^[+-]?\d{{1,3}}({mark}\d{{3}})+(\{decimal}\d*)?$")
            core = pc.if_else(grouped, pc.replace_substring(core, thousands, ""), core)
        core = pc.replace_substring(core, decimal, ".") if decimal != "." else core
    else:
        core = text
    good = _matches(core, PLAIN)
    core = pc.replace_substring_regex(pc.if_else(good, core, None), r"^\+", "")
    numbers = np.array(pc.cast(core, pa.float64()).to_numpy(zero_copy_only=False))
    bad = np.asarray(pc.and_(pc.is_valid(text), pc.invert(good)))
    return numbers, bad


def _numbers(values: pd.Series, column: Column, source: str, first_line: int) -> np.ndarray:
    """Return a column as float64, missing as NaN; UserError for a text that is no number."""
    kind = values.dtype
    if pd.api.types.is_timedelta64_dtype(kind):
        return (values / pd.Timedelta("1s")).to_numpy(np.float64)
    if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_complex_dtype(kind):
        numbers = values.to_numpy(np.float64, na_value=np.nan, copy=True)
        bad = np.zeros(len(numbers), bool)
    else:
        numbers, bad = _parse(_text(values, column), column)
    plain = pd.to_numeric(pd.Series(column.markers, dtype=object), errors="coerce").dropna()
    numbers[np.isin(numbers, plain)] = np.nan
    bad |= np.abs(numbers) > MAX_NUMBER
    if bad.any():
        raise _bad_cells(values, bad, "a number such as 1234.5", source, first_line)
    return numbers


def _bad_cells(
    values: pd.Series, bad: np.ndarray, expected: str, source: str, first_line: int, hint: str = ""
) -> UserError:
    places = np.flatnonzero(bad)
    return UserError(
        f"column {values.name!r} of {source} holds {str(values.iloc[places[0]])[:40]!r} in "
        f"{_lines(places, first_line)}; expected {expected}: correct it{hint}"
    )


def _lines(places: np.ndarray, first_line: int) -> str:
    """Name lines of a file, the first five of them: "lines 2, 7 and 9"."""
    numbers = [str(first_line + place) for place in places[:5]]
    more = f" and {len(places) - 5:,} more" if len(places) > 5 else ""
    return f"line{'s' if len(places) > 1 else ''} {', '.join(numbers)}{more}"


# --- dates ---------------------------------------------------------------------------------------


def _days(values: pd.Series, column: Column, source: str, first_line: int) -> np.ndarray:
    """Return dates as days since 1970-01-01, float64, the time of day as their fraction (UTC)."""
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        known = pd.to_datetime(values, utc=True)
        return _since_1970(known)
    scale = EPOCHS.get(column.date_format, (0, 0, 0))[2]
    if scale and pd.api.types.is_numeric_dtype(values.dtype):
        return _numbers(values, column, source, first_line) / scale / 86_400
    text = _without(_text(values, column), NO_NUMBER, any_case=True)
    if scale:
        days, bad = _parse(text, column)
        days = days / scale / 86_400
    else:
        days = _parse_dates(text, column.date_format)
        bad = np.asarray(pc.is_valid(text)) & np.isnan(days)
    if bad.any():
        left = text.filter(pa.array(bad))
        days[bad] = _parse_dates(left, ISO)  # whatever program wrote the new file
        bad &= np.isnan(days)
    if bad.any():
        raise _bad_cells(values, bad, "a date such as 2024-10-13", source, first_line)
    return days


def _parse_dates(text: pa.Array, form: str) -> np.ndarray:
    levels = text.dictionary_encode()
    texts = levels.dictionary.to_pandas().astype(object)
    days = _since_1970(pd.to_datetime(texts, format=form, errors="coerce", utc=True))
    codes = pc.fill_null(levels.indices, -1).to_numpy(zero_copy_only=False)
    return np.append(days, np.nan)[codes]


def _since_1970(dates: pd.Series) -> np.ndarray:
    micro = dates.dt.tz_convert(None).astype("datetime64[us]")
    return micro.astype("int64").where(micro.notna(), np.nan).to_numpy(np.float64) / 86_400e6


def _date_format(text: pa.Array, name: str, european: bool, asked: bool) -> str:
    """Find how dates are written, or "": UserError where day and month cannot be told apart."""
    texts = _sample(text).unique().to_pylist()
    if not texts:
        return ""
    for pattern, form in DATES:
        if all(re.fullmatch(pattern, t) for t in texts):
            return form
    if all(re.fullmatch(r"(19|20)\d{2}(0[1-9]|1[0-2])([0-2]\d|3[01])", t) for t in texts):
        return "%Y%m%d" if asked or _called_date(name) else ""
    found = [DAY_OR_MONTH.fullmatch(t) for t in texts]
    matched = [m for m in found if m]
    if len(matched) < 0.9 * len(texts):
        return ""
    sep, year, clock = matched[0][2], "%Y" if len(matched[0][4]) == 4 else "%y", matched[0][5]
    time = "" if not clock else (", " if clock[0] == "," else " ") + "%H:%M"
    time += ":%S" if clock and clock.count(":") == 2 else ""
    first, second = (max(int(m[i]) for m in matched) for i in (1, 3))
    day_first = f"%d{sep}%m{sep}{year}{time}"
    month_first = f"%m{sep}%d{sep}{year}{time}"
    if first <= 12 and second <= 12 and not european and sep != ".":
        raise UserError(
            f"column {name!r} holds dates such as {texts[0]!r}, day or month first; say which with "
            f"--date '{name}={day_first}' or --date '{name}={month_first}'"
        )
    return month_first if second > 12 and first <= 12 else day_first


def _called_date(name: str) -> bool:
    dated = r"\b(date|datetime|timestamp|epoch|time|ts|created|updated)\b"
    return re.search(dated, " ".join(_words(name))) is not None


def _epoch(numbers: np.ndarray) -> str:
    known = numbers[np.isfinite(numbers)]
    for form, (low, high, _) in EPOCHS.items():
        if len(known) and known.min() >= low and known.max() <= high:
            return form
    return ""


# --- persons and ids -----------------------------------------------------------------------------


def _words(name: str) -> list[str]:
    """Cut a column's name into words without accents: "customerID" gives customer, id."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", plain)
    return re.findall(r"[a-z]+|\d+", plain.lower())


def _identifies(name: str, text: pa.Array, *, is_text: bool) -> str:
    """Say why a column names persons or rows, by its name or its values; "" if it does not."""
    words = " ".join(_words(name))
    known, sample = text.drop_null(), _sample(text)
    n_levels = pc.count_distinct(known).as_py()
    if is_text and re.search(PERSON, words):
        return "it is called like a person's name"
    if re.search(ID, words) and not re.search(r"\b(type|kind|statut|status)\b", words):
        return "it is called like an id"
    if is_text and re.search(CONTACT, words) and n_levels > max(20, len(known) / 20):
        return "it is called like an address or number of a person"
    if _count(sample, PERSONAL) > 0.8 * len(sample):
        return "it holds addresses or numbers of persons"
    return ""


def _runs_on(numbers: np.ndarray, name: str) -> bool:
    """Tell a number that only counts the rows: whole, all different, mostly with one step."""
    if len(numbers) < MIN_ROWS or not np.isfinite(numbers).all() or (numbers % 1).any():
        return False
    steps = np.diff(np.sort(numbers))
    if (steps == 0).any() or re.search(CALENDAR, " ".join(_words(name))):
        return False
    in_order = np.abs(np.diff(numbers))
    regular = np.mean(in_order == np.median(in_order)) > 0.9
    return bool(regular or np.mean(steps == np.median(steps)) > 0.95)


# --- the schema ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """What holds for all columns of a table while its schema is found."""

    source: str
    first_line: int
    markers: tuple[str, ...]
    decimal: str  # in columns where it is sure; "" where none says
    european: bool


def infer_schema(
    rows: pd.DataFrame,
    target: str,
    *,
    drop: Iterable[str] = (),
    keep: Iterable[str] = (),
    numeric: Iterable[str] = (),
    categorical: Iterable[str] = (),
    date: Iterable[str] = (),
    na: Iterable[str] = (),
    first_line: int = 2,
    source: str = "the data",
) -> tuple[Schema, list[str]]:
    """Tell what each column is, and leave out what names persons or rows.

    `numeric`, `categorical` and `date` say what columns are (a date may bring its format, as in
    "day=%d/%m/%Y"), `keep` that they are features whatever they look like; `na` means missing.
    Returns the schema and one line for everything that was recognised or left out.
    Raises UserError for a column that cannot be used or can be read in two ways, a name that is
    no column, and a target that cannot be learned.
    """
    rows = _named(rows, source)
    said = dict.fromkeys(numeric, "numeric") | dict.fromkeys(categorical, "categorical")
    said |= dict(_date_said(entry, rows) for entry in date)
    drop, keep = list(drop), list(keep)
    asked = [(kind.split()[0], [name]) for name, kind in said.items()]
    asked += [("drop", drop), ("keep", keep)]
    _check_names(rows, target, source, asked)
    file = _file(rows, source, first_line, tuple(map(str, na)))
    goal, notes, _ = _infer_text(rows[target], "target", file)
    check_target(_target(rows[target], goal, source, first_line), target, source)
    columns = []
    for name in rows.columns.drop([target, *drop]):
        column, remarks = _infer(rows[name], said.get(name, ""), file, name in keep)
        notes += remarks
        columns += [column] if column else []
    known = {target, *(column.name for column in columns)}
    dropped = tuple(name for name in rows.columns if name not in known)
    return Schema(goal, _some(columns, target, source), dropped), notes


def _some(columns: list[Column], target: str, source: str) -> tuple[Column, ...]:
    if not columns:
        raise UserError(
            f"{source} has no usable feature column beside the target {target!r}; add columns, "
            "or keep one that was left out with --keep"
        )
    return tuple(columns)


def _date_said(entry: str, rows: pd.DataFrame) -> tuple[str, str]:
    if entry in rows.columns or "=" not in entry:
        return entry, "date"
    name, _, form = entry.rpartition("=")
    return name, f"date {form}"


def _named(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return the rows with columns named by text and a plain index."""
    names = [str(name) for name in rows.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{source} has two columns named {twice!r}; rename or remove one")
    return rows.reset_index(drop=True).set_axis(names, axis=1)


def _check_names(
    rows: pd.DataFrame, target: str, source: str, asked: list[tuple[str, list[str]]]
) -> None:
    names = list(rows.columns)
    if target not in names:
        raise UserError(
            f"{source} has no column {target!r} to learn; its columns are {', '.join(names)}: "
            "name the right one with --target"
        )
    names.remove(target)
    for option, wanted in asked:
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise UserError(
                f"--{option} {unknown[0]!r} is no feature column; the columns are "
                f"{', '.join(names)}"
            )


def _file(rows: pd.DataFrame, source: str, first_line: int, markers: tuple[str, ...]) -> _File:
    """Learn from all columns together which mark is before decimals."""
    votes = {".": 0, ",": 0, "": 0}
    for name in rows.select_dtypes(["str", "object"]):
        text = _without(_text(rows[name].head(SAMPLE)), NO_NUMBER, any_case=True)
        decimal, _, sure = _marks(_core(text, _unit(text)[0]))
        votes[decimal if sure else ""] += 1
    decimal = "" if votes["."] == votes[","] else max(".,", key=votes.__getitem__)
    european = decimal == "," or (rows.attrs.get("separator") == ";" and decimal != ".")
    return _File(source, first_line, markers, decimal, european)


def _unit(text: pa.Array) -> tuple[str, float]:
    """Find the unit that numbers carry: (unit, share of the texts that are numbers with it)."""
    sample = _sample(text)
    if not len(sample) or _count(sample, r"\d") < len(sample) / 2:
        return "", 0.0
    if _count(sample, PLAIN) == len(sample):
        return "", 1.0
    found = [AMOUNT.fullmatch(t.replace("\u202f", " ")) for t in sample.to_pylist()]
    units = [(m["before"] or m["after"] or "").strip() for m in found if m]
    counts = pd.Series([unit for unit in units if unit], dtype=object).value_counts()
    unit = str(counts.index[0]) if len(counts) else ""
    good = sum(1 for each in units if each in ("", unit))
    return unit, good / len(found)


_Found = tuple[Column, list[str], np.ndarray | None]  # column, notes, its numbers if it has some


def _infer(values: pd.Series, said: str, file: _File, keep: bool) -> tuple[Column | None, list]:
    """Tell what a feature is: (column, notes), or (None, why it is left out)."""
    name, known = str(values.name), values.dropna()
    if known.empty:
        raise _empty(name)
    if isinstance(known.iloc[0], (list, dict, tuple, set, np.ndarray)):
        return None, [f"column {name!r} is left out: it holds lists"]
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    fraction = is_number and bool((np.nan_to_num(known.to_numpy(np.float64)) % 1).any())
    free = bool(said) or keep
    if not free and not fraction:
        reason = _identifies(name, _text(values.head(20 * SAMPLE)), is_text=not is_number)
        if reason:
            return None, [f"column {name!r} is left out: {reason} (--keep {name!r} takes it)"]
    if pd.api.types.is_datetime64_any_dtype(values) and said in ("", "date"):
        return Column(name, "date", date_format=ISO), []
    typed = is_number or pd.api.types.is_timedelta64_dtype(values)
    column, notes, numbers = (_infer_number if typed else _infer_text)(values, said, file)
    reason = "" if free else _counts_rows(column, values, numbers)
    if reason:
        return None, [f"column {name!r} is left out: {reason} (--keep {name!r} takes it)"]
    return column, notes


def _empty(name: str) -> UserError:
    return UserError(
        f"column {name!r} is empty in every training row; expected values: fill it or leave it "
        f"out with --drop {name!r}"
    )


def _counts_rows(column: Column, values: pd.Series, numbers: np.ndarray | None) -> str:
    if column.kind == "numeric" and numbers is not None:
        return "it is a running number" if _runs_on(numbers, column.name) else ""
    if column.kind != "categorical":
        return ""
    text = _text(values).drop_null()
    distinct = pc.count_distinct(text).as_py()
    if distinct <= max(10, len(text) / 2):
        return ""
    return f"{distinct:,} different texts in {len(text):,} rows identify the rows"


def _infer_number(values: pd.Series, said: str, file: _File) -> _Found:
    """Tell what a column of numbers is: a number, a date in seconds, a code of a place."""
    name = str(values.name)
    column = Column(name, "numeric", markers=file.markers)
    if said == "categorical" or (not said and re.search(ZIP, " ".join(_words(name)))):
        return replace(column, kind="categorical"), [], None
    numbers = _numbers(values, column, file.source, file.first_line)
    if said.startswith("date") or (not said and _called_date(name)):
        form = said[5:] or _epoch(numbers) or _date_format(_text(values), name, False, True)
        if form:
            dates = f"column {name!r} holds dates ({form})"
            return replace(column, kind="date", date_format=form), [dates], None
        if said:
            raise _no_date(name)
    return column, [], numbers


def _no_date(name: str) -> UserError:
    return UserError(
        f"--date {name!r} holds no dates that are recognised; give their format, as in "
        f"--date '{name}=%d/%m/%Y'"
    )


def _infer_text(values: pd.Series, said: str, file: _File) -> _Found:
    """Tell what a column of text is: a date, a number as people write it, or a category."""
    name = str(values.name)
    column = Column(name, "categorical", markers=file.markers)
    text = _text(values, column)
    filled = _without(text, NO_NUMBER, any_case=True)
    if filled.null_count == len(filled) and said != "target":
        raise _empty(name)
    typed = isinstance(values.dtype, pd.CategoricalDtype) and not said
    is_code = re.search(ZIP, " ".join(_words(name))) or pd.api.types.is_bool_dtype(values)
    if said == "target" or not (said == "categorical" or (is_code and not said)):
        form = said[5:] if said.startswith("date") else ""
        if not form and said in ("", "date"):
            form = _date_format(filled, name, file.european, said == "date")
        if form:
            column = replace(column, kind="date", date_format=form)
            _days(values, column, file.source, file.first_line)
            dates = f"column {name!r} holds dates ({form})"
            return column, [dates, *_missing_note(values, filled)], None
        found = None if typed else _infer_amount(values, text, filled, said, file)
        if found:
            return found
        if said.startswith("date"):
            raise _no_date(name)
    digits = text.filter(_matches(text, r"^\d+$"))
    width = pc.min_max(pc.utf8_length(digits))
    coded = _count(digits, r"^0\d") and width["min"] == width["max"]
    notes = _missing_note(values, text)
    if not said and _unit(filled)[1] > 0.5:
        notes.append(f"column {name!r} holds codes or numbers as text, taken as a category")
    return replace(column, width=width["max"].as_py() if coded else 0), notes, None


def _infer_amount(
    values: pd.Series, text: pa.Array, filled: pa.Array, said: str, file: _File
) -> _Found | None:
    """Tell how numbers are written: None for codes and categories."""
    name = str(values.name)
    unit, share = _unit(filled)
    zeros = _count(filled, r"^0\d+$") > 0.005 * len(filled)
    if said not in ("numeric", "target") and (zeros or share <= 0.5):
        return None
    decimal, thousands, sure = _marks(_core(_sample(filled), unit), file.decimal)
    if said == "numeric" and not sure:
        decimal, thousands, sure = ".", ",", True
    if not sure:
        raise _ambiguous(name, _sample(filled.filter(_matches(filled, r"\d[.,]\d{3}"))), said)
    if not _count(filled, rf"\d\{thousands}\d{{3}}" if thousands else "$^"):
        thousands = ""  # not seen here: "2.125" in a later file need not be 2125
    column = Column(name, "numeric", decimal or ".", thousands, unit, markers=file.markers)
    numbers, bad = _parse(text, column)
    if bad.any() and not said and _is_category(filled, bad):
        return None
    if bad.any():
        hint = f", or say --categorical {name!r}, or --na TEXT for one that means a missing value"
        place = file.source, file.first_line, "" if said else hint
        raise _bad_cells(values, bad, "a number such as 1234.5", *place)
    numbers = _numbers(values, column, file.source, file.first_line)
    form = _epoch(numbers) if said == "date" or (not said and _called_date(name)) else ""
    if form:
        dates = f"column {name!r} holds dates ({form})"
        return replace(column, kind="date", date_format=form), [dates], None
    if said == "date":
        return None
    return column, _number_note(column, filled, numbers) + _missing_note(values, filled), numbers


def _is_category(filled: pa.Array, bad: np.ndarray) -> bool:
    """Tell codes such as 1, 2A, 2B and mixed sizes from numbers with a few wrong ones."""
    texts = filled.filter(pa.array(bad))
    known = len(filled) - filled.null_count
    repeated = pc.count_distinct(texts).as_py() * 2 <= len(texts)
    if _count(texts, CODE) == len(texts) and repeated:
        return True
    few = pc.count_distinct(filled).as_py() <= 50
    return len(texts) > 0.5 * known or (len(texts) > 0.1 * known and few)


def _ambiguous(name: str, examples: pa.Array, said: str) -> UserError:
    example = examples[0].as_py()
    way = "write the numbers without the mark of thousands"
    if said != "target":
        way += (
            f", or say --numeric {name!r} (a point is before decimals, a comma between thousands)"
        )
    return UserError(
        f"column {name!r} holds numbers such as {example!r}, which can be read as thousands or as "
        f"a decimal number; {way}"
    )


def _number_note(column: Column, filled: pa.Array, numbers: np.ndarray) -> list[str]:
    human = np.asarray(pc.and_(pc.is_valid(filled), pc.invert(_matches(filled, PLAIN))))
    if column.thousands == "." and not human.any():
        human = np.asarray(_matches(filled, r"\."))
    if not human.any():
        return []
    place = int(np.argmax(human))
    written = filled[place].as_py()
    return [f"column {column.name!r} holds numbers such as {written!r}, read as {numbers[place]}"]


def _missing_note(values: pd.Series, text: pa.Array) -> list[str]:
    found = values[values.notna().to_numpy() & np.asarray(pc.is_null(text))]
    if found.empty:
        return []
    texts = found.astype(str).str.strip().unique()[:5]
    listed = ", ".join(repr(t) if t else "blank" for t in texts)
    return [f"column {values.name!r}: {len(found):,} cells ({listed}) are read as missing"]


# --- conforming ----------------------------------------------------------------------------------


def conform(
    rows: pd.DataFrame,
    schema: Schema,
    *,
    source: str = "the table",
    first_line: int = 2,
    need_target: bool = True,
    strict: bool = False,
) -> tuple[pd.DataFrame, list[str]]:
    """Bring rows to the schema: its features in their order, and the target after them if needed.

    Numbers are float64, dates float64 days since 1970-01-01 (UTC), categories text; missing
    values stay missing. Rows whose target is absurd, such as 1e9 among thousands, are left out;
    `attrs["left_out"]` of the table holds their places. The index is a RangeIndex.

    Returns the table and one line for everything that was left out.
    Raises UserError for a missing column, one that is unknown when `strict` is set, a text where
    a number or a date belongs, and a row without a target.
    """
    rows, notes = _named(rows, source), []
    _check_columns(rows, schema, source, strict=strict)
    if need_target and schema.target.name not in rows.columns:
        raise UserError(f"{source} has no column {schema.target.name!r} to learn; add it")
    table = pd.DataFrame(
        {c.name: _conformed(rows[c.name], c, source, first_line) for c in schema.columns},
        index=rows.index,
    )
    if need_target:
        y = _target(rows[schema.target.name], schema.target, source, first_line)
        table[schema.target.name] = y
        wrong = _absurd(y)
        if wrong.any():
            places = np.flatnonzero(wrong)
            table = table[~wrong].reset_index(drop=True)
            table.attrs["left_out"] = tuple(places.tolist())
            notes.append(
                f"{len(places)} rows of {source} are left out: their {schema.target.name!r} is "
                f"absurd ({y[places[0]]:g} in {_lines(places, first_line)})"
            )
    return table, notes


def _check_columns(rows: pd.DataFrame, schema: Schema, source: str, *, strict: bool) -> None:
    missing = [name for name in schema.features if name not in rows.columns]
    if missing:
        raise UserError(
            f"{source} has no column {missing[0]!r}; the model needs "
            f"{', '.join(schema.features)}: add or rename the column"
        )
    extra = set(rows.columns) - {*schema.features, *schema.dropped, schema.target.name}
    if strict and extra:
        raise UserError(
            f"{source} has the column {min(extra)!r}, which the model was not trained on; remove "
            "it, or train a new model with mlflow_monitoring.py"
        )


def _conformed(values: pd.Series, column: Column, source: str, first_line: int) -> Any:
    if column.kind == "numeric":
        return _numbers(values, column, source, first_line)
    if column.kind == "date":
        return _days(values, column, source, first_line)
    text = pc.replace_substring_regex(_text(values, column), r"^(-?\d+)\.0+$", r"\1")
    text = pc.replace_substring_regex(text, "^(?i:true)$", "True")
    text = pc.replace_substring_regex(text, "^(?i:false)$", "False")
    if column.width:
        text = pc.if_else(_matches(text, r"^\d+$"), pc.utf8_lpad(text, column.width, "0"), text)
    return text.to_pandas().astype("str").array


def _target(values: pd.Series, column: Column, source: str, first_line: int) -> np.ndarray:
    """Return the target as float64; UserError with lines where it is missing or not finite."""
    y = _numbers(values.replace([np.inf, -np.inf], np.nan), column, source, first_line)
    places = np.flatnonzero(~np.isfinite(y))
    if len(places):
        raise UserError(
            f"{len(places)} of {len(y)} rows in {source} have no finite {column.name!r} "
            f"({_lines(places, first_line)}); expected a number in every row: fill or remove them"
        )
    return y


def check_target(y: np.ndarray, target: str, source: str = "the data") -> None:
    """Raise UserError for fewer than `MIN_ROWS` rows, or a target that is the same in all."""
    if len(y) < MIN_ROWS:
        raise UserError(f"{source} has {len(y)} rows; expected at least {MIN_ROWS}: add rows")
    if np.min(y) == np.max(y):
        raise UserError(
            f"the target {target!r} is {np.min(y):g} in every row of {source}; expected a column "
            "that varies: choose another one with --target"
        )


# --- warnings ------------------------------------------------------------------------------------


def warnings_about(table: pd.DataFrame, schema: Schema, first_line: int = 2) -> list[str]:
    """Name absurd cells with their lines, and columns that alone predict the target.

    `table` is what `conform` returned, with its target.
    """
    notes = []
    gone = np.array(table.attrs.get("left_out", ()), np.int64)
    lines = np.setdiff1d(np.arange(len(table) + len(gone)), gone)
    step = -(-len(table) // SAMPLE) or 1
    part = table.iloc[::step]
    for column in schema.columns:
        if column.kind == "numeric":
            numbers = table[column.name].to_numpy()
            wrong = np.flatnonzero(_absurd(numbers))
            if len(wrong):
                notes.append(
                    f"column {column.name!r} holds {numbers[wrong[0]]:.10g} in "
                    f"{_lines(lines[wrong], first_line)}, absurd beside its other values"
                )
        if schema.target.name in part and _predicts(part[column.name], part[schema.target.name]):
            notes.append(
                f"column {column.name!r} alone predicts {schema.target.name!r} almost exactly: a "
                f"possible leak; leave it out with --drop {column.name!r} if it is not known "
                "beforehand"
            )
    return notes


def _absurd(numbers: np.ndarray) -> np.ndarray:
    """Mark numbers that lie beyond a gap no long tail has.

    That is a thousand times the next smaller one, and at least 100,000, in the upper tenth; or
    ten times, where all of them are one number of nines such as 99999.
    """
    size = np.abs(np.nan_to_num(numbers, nan=0.0, posinf=0.0, neginf=0.0))
    ordered = np.sort(size[size > 0])
    if len(ordered) < MIN_ROWS:
        return np.zeros(len(numbers), bool)
    top = ordered[int(0.9 * len(ordered)) - 1 :]
    gaps = top[1:] / top[:-1]
    place = int(np.argmax(gaps))
    limit, gap = top[place + 1], gaps[place]
    nines = limit == top[-1] and re.fullmatch("9{5,}", f"{limit:.0f}") is not None
    found = (gap >= 1e3 and limit >= 1e5) or (gap >= 10 and nines)
    return (size >= limit) if found else np.zeros(len(numbers), bool)


def _predicts(feature: pd.Series, target: pd.Series) -> bool:
    """Tell whether a feature alone explains more than 0.999 of the target's variance, or ranks."""
    known = feature.notna()
    x, y = feature[known], target[known]
    if len(y) < max(MIN_ROWS, len(target) / 2) or y.nunique() < 2:
        return False
    if not pd.api.types.is_numeric_dtype(x):
        if x.nunique() > len(x) / 5:
            return False
        return bool((y - y.groupby(x).transform("mean")).var() < 0.001 * y.var())
    if x.nunique() < 3:
        return False
    linear = np.corrcoef(x, y)[0, 1]
    ranks = np.corrcoef(x.rank(), y.rank())[0, 1]
    return bool(max(linear**2, ranks**2) > 0.999)
