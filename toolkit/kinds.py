"""What the columns of a table are, found out from their names and cells at a first training.

How cells are read once that is known stands in `columns.py`.
"""

import re
import unicodedata
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd
from pandas.api import types
from pandas.tseries.api import guess_datetime_format

from . import columns as c
from .columns import ISO, PLAIN, SPACE, Column, Schema
from .errors import UserError

MAX_DAYS = 62_000  # before and after 1970: the years 1800 to 2139
SAMPLE = 10_000  # rows that say how a column is written; all rows are then read that way
MONEY = r"(?:US\$|C\$|A\$|R\$|[$€£¥₹₽]|USD|EUR|GBP|CHF|JPY|Rs\.?|Fr\.?|kr\.?|zł)"
UNIT = r"[^\W\d_]{1,9}\.?[²³23]?(?: ?/ ?[^\W_]{1,6})?(?: [^\W\d_]{1,6})?"
AMOUNT = (
    rf"[+-]?\(?({MONEY})? ?[+-]?\(?[\d.,](?:[\d.,]|{SPACE})*?(?:[eE][+-]?\d+)?\)?{SPACE}?"
    rf"({MONEY}|[%‰]|°\s?[CF]?|[µμ]?{UNIT})?"
)
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
ID = r"\b(id|uuid|guid|uid|iban|matricule|identifiant|identifier)\b"
LONG_ID = r"\b(ssn|nir|nss|secu|siret|siren|social security)\b"
CONTACT = (
    r"\b(e ?mails?|mails?|courriels?|phone|telephone|tel|portable|mobile|fax|address|adresse|addr"
    r"|street|rue|ip|passport|passeport|immatriculation)\b"
)
ZIP = r"\b(zip|zip ?code|postal code|post ?code|code postal|cp|plz)\b"
CALENDAR = (
    r"\b(year|annee|an|jahr|month|mois|week|semaine|day|jour|doy|hour|heure|time|temps|age)s?\b"
)
DATED = r"\b(date|datetime|timestamp|epoch|time|ts|created|updated)\b"
# Dates that pandas does not guess: of a month, of a clock, with two digits a year, with AM or PM.
DAYS = [f"%d{mark}%m{mark}%y{clock}" for mark in "/.-" for clock in ("", " %H:%M")]
DAYS += [f"%d/%m/{year} %I:%M{second} %p" for year in ("%Y", "%y") for second in ("", ":%S")]
OTHERS = "%H:%M|%H:%M:%S|%m/%Y|%Y/%m|%m.%Y|%m-%Y|%b %Y|%B %Y|%b-%y|%d%b%Y|%d-%b-%y|%d %b %y"
FORMS = [*OTHERS.split("|"), *DAYS, *(re.sub("%d(.)%m", r"%m\1%d", form) for form in DAYS)]
CODE = r"[0-9]{1,5}[A-Za-z]{1,2}|[A-Za-z]{1,2}[0-9]{1,5}"
PERSONAL = (  # e-mail addresses, telephone numbers, social security numbers, bank accounts
    r"[^@ ]+@[^@ ]+\.[^@ ]+|(\+|00)\d[\d \xA0()-]{8,17}\d|0\d([ .\xA0-]?\d{2}){4}"
    r"|0\d{2,4}[ /]\d{3,4} ?\d{3,5}|(\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}"
    r"|[12]\d{2}(0[1-9]|1[0-2])\d{8}(\d{2})?|\d{3}-\d{2}-\d{4}"
    r"|[A-Z]{2}\d{2}( ?[A-Z0-9]{4}){3,7}( ?[A-Z0-9]{1,3})?"
)
_Found = tuple[Column, list[str]]


@dataclass
class _Cells:
    """A column whose kind is being found out; `said` is the kind that the user asked for."""

    values: pd.Series
    said: str
    markers: tuple[str, ...]
    decimal: str = ""  # the mark before decimals in the other columns
    numbers: np.ndarray | None = None  # float64, once they are read

    def __post_init__(self) -> None:
        self.name = str(self.values.name)
        plain = unicodedata.normalize("NFKD", self.name).encode("ascii", "ignore").decode()
        plain = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", plain)  # customerID: "customer id"
        self.words = " ".join(re.findall(r"[a-z]+|\d+", plain.lower()))
        self.is_bool = types.is_bool_dtype(self.values)
        self.is_number = types.is_numeric_dtype(self.values) and not self.is_bool
        self.column = Column(self.name, "categorical", markers=self.markers)

    def called(self, pattern: str) -> bool:
        return re.search(pattern, self.words) is not None

    @cached_property
    def text(self) -> pd.Series:
        return c.as_text(self.values, self.markers)

    @cached_property
    def filled(self) -> pd.Series:
        return c.without_markers(self.text)

    @cached_property
    def sample(self) -> pd.Series:
        known = self.filled.dropna()
        return known.iloc[:: len(known) // SAMPLE + 1]

    @cached_property
    def is_empty(self) -> bool:
        return bool(self.values.isna().all() or (not self.is_number and self.filled.isna().all()))

    @cached_property
    def is_plain(self) -> bool:
        return self.is_number or bool(self.sample.str.fullmatch(PLAIN).all())

    @cached_property
    def has_fractions(self) -> bool:
        if self.is_number:
            return bool((np.nan_to_num(self.values.to_numpy(float, na_value=0)) % 1).any())
        return self.is_plain and bool(self.sample.str.fullmatch(r".*\.[0-9]*[1-9].*").any())

    @cached_property
    def unit(self) -> tuple[str, float]:
        """The unit that numbers carry, and the share of the texts that are numbers with it."""
        if self.is_plain:
            return "", 1.0
        units = self.sample.str.extract(f"^{AMOUNT}$").fillna("")
        found = (units[0] + units[1]).str.strip()[self.sample.str.fullmatch(AMOUNT)]
        units = found[found != ""].value_counts() / len(self.sample)
        # A letter behind few numbers makes a code of them, as in 136A.
        unit = next((u for u, share in units.items() if share >= 0.1 or not u.isalpha()), "")
        return unit, found.isin(["", unit]).sum() / len(self.sample)

    @cached_property
    def core(self) -> pd.Series:
        return c.core_of(self.sample, self.unit[0])

    def missing(self, text: pd.Series) -> list[str]:
        """Note the cells that a text lacks though something stands there."""
        lacks = self.values.notna().to_numpy() & text.isna().to_numpy()
        if not lacks.any():
            return []
        found = self.values[lacks]
        texts = found.astype(str).str.strip().unique()[:5]
        listed = ", ".join(repr(each) if each else "blank" for each in texts)
        note = f"column {self.name!r}: {len(found):,} cells ({listed}) are read as missing"
        return [note]


def _date(cells: _Cells) -> _Found | None:
    if types.is_datetime64_any_dtype(cells.values):
        return replace(cells.column, kind="date", date_format=ISO), []
    form = cells.said[5:] or _date_format(cells)
    if form:
        notes = [f"column {cells.name!r} holds dates ({form})", *cells.missing(cells.filled)]
        return replace(cells.column, kind="date", date_format=form), notes
    if cells.said:
        raise UserError(
            f"--date {cells.name!r} holds no dates that are recognised; give their format, as in "
            f"--date '{cells.name}=%d/%m/%Y'"
        )
    return None


def _date_format(cells: _Cells) -> str:
    """Find how dates are written, or "": UserError where day and month cannot be told apart."""
    if cells.is_plain and not (cells.said or cells.called(DATED)):
        return ""
    texts, name = c.in_english(cells.sample.drop_duplicates()), cells.name
    for form in c.EPOCHS if cells.is_plain else ():
        days = c.parse_dates(texts, form)
        if np.all((days >= 1_000) & (days <= 49_000)):  # 1972 to 2104
            return form
    shares = {}
    for form in _guesses(texts[:20]):  # 5040 seconds are not the year 5040
        reach = MAX_DAYS if form in ("%Y", "%Y%m%d") else np.inf
        shares[form] = np.mean(np.abs(c.parse_dates(texts, form)) < reach)
    best = max([0.9, *shares.values()])
    form, *others = [form for form, share in shares.items() if share == best] or [""]
    if others and "." not in form:
        raise UserError(
            f"column {name!r} holds dates such as {texts.iloc[0]!r}, day or month first; say which "
            f"with --date '{name}={form}' or --date '{name}={others[0]}'"
        )
    return form


def _guesses(texts: pd.Series) -> list[str]:
    """List formats that at least one of the texts may be written in as a date."""
    found = [form for form in FORMS if any(_is_written(text, form) for text in texts)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where day_first cannot be obeyed
        for text, day_first in product(texts, (True, False)):
            form = guess_datetime_format(text, day_first and not text[:4].isdigit()) or ""
            found.append(ISO if form.startswith(("%Y-%m-%d", "%Y%m%dT")) else form)
    return [form for form in dict.fromkeys(found) if form]


def _is_written(text: str, form: str) -> bool:
    try:
        return bool(datetime.strptime(text, form))
    except ValueError:
        return False


def _number(cells: _Cells) -> _Found | None:
    if cells.is_number:
        column = replace(cells.column, kind="numeric")
        cells.numbers, _ = c.read_cells(cells.values, column)
        return column, []
    name, said, (unit, share) = cells.name, cells.said, cells.unit
    if not said and (share <= 0.5 or cells.sample.str.fullmatch("0[0-9]+").mean() > 0.005):
        return None
    marks = (".", ",") if said == "numeric" else None
    marks = c.marks_of(cells.core, cells.decimal) or marks
    if not marks:
        example = cells.core[cells.core.str.contains("[0-9][.,][0-9]{3}")].iloc[0]
        way = "" if said else f", or say --numeric {name!r} (then a point is before decimals)"
        raise UserError(
            f"column {name!r} holds numbers such as {example!r}, which can be read as thousands or "
            f"as a decimal number; write the numbers without the mark of thousands{way}"
        )
    decimal, thousands = marks
    column = Column(name, "numeric", decimal or ".", thousands, unit, markers=cells.markers)
    cells.numbers, bad = c.read_cells(cells.values, column)
    if bad.any() and not said:
        wrong, known = cells.filled[bad], cells.filled.dropna()
        repeat = wrong.nunique() * 2 <= len(wrong)
        begin = wrong.nunique() > 2 and wrong.str.contains("^[A-Za-z]").all()
        codes = wrong.str.fullmatch(CODE).all() and (repeat or begin)
        if codes or (len(wrong) > 0.1 * len(known) and known.nunique() <= 50):
            return None
    plain = pd.to_numeric(cells.filled, errors="coerce")
    human = np.isfinite(cells.numbers) & ~np.isclose(plain, cells.numbers)
    notes = [
        f"column {name!r} holds numbers such as {text!r}, read as {cells.numbers[place]}"
        for place, text in cells.filled[human][:1].items()
    ]
    return column, [*notes, *cells.missing(cells.filled)]


def _kind(cells: _Cells) -> _Found:
    """Tell whether a column is a date, a number or a category, and how it is written."""
    said = cells.said.split(" ")[0]
    is_code = not said and (cells.is_bool or (cells.called(ZIP) and not cells.has_fractions))
    # Text is meant where a typed format says so.
    is_text = not said and isinstance(cells.values.dtype, pd.CategoricalDtype)
    found = _date(cells) if said in ("", "date") and not is_code else None
    if not found and (said in ("numeric", "target") or not (said or is_code or is_text)):
        found = _number(cells)
    if found:
        return found
    notes = cells.missing(cells.text)
    if not said and cells.unit[1] > 0.5:
        notes.append(f"column {cells.name!r} holds codes or numbers as text, taken as a category")
    digits = cells.text[cells.text.str.fullmatch("[0-9]+")]
    widths = digits.str.len().unique()
    coded = digits.str.match("0[0-9]").any() and len(widths) == 1
    return replace(cells.column, width=int(widths[0]) if coded else 0), notes


def _identifies(cells: _Cells) -> str:
    """Say why a column names persons or rows, by its name or its values; "" if it does not."""
    if cells.has_fractions:
        return ""
    if cells.called(ID) and not cells.called(r"\b(type|kind|statut|status)\b"):
        return "it is called like an id"
    texts = c.as_text(cells.values[:SAMPLE]) if cells.is_number else cells.text[: 20 * SAMPLE]
    known = texts.dropna()
    first = known[:SAMPLE]
    is_long = first.str.fullmatch("[0-9]{8,15}").sum() > 0.8 * len(first)
    is_amount = len(known) and cells.is_plain and not is_long
    if cells.called(LONG_ID) and not is_amount:
        return "it is called like an id"
    if first.str.fullmatch(PERSONAL).sum() > 0.8 * len(first):
        return "it holds addresses or numbers of persons"
    if is_amount:  # of mail, say, or of mobile telephones
        return ""
    if cells.called(PERSON):
        return "it is called like a person's name"
    many = cells.called(CONTACT) and known.nunique() > max(20, len(known) / 20)
    return "it is called like an address or number of a person" if many else ""


def _counts_rows(cells: _Cells, column: Column) -> str:
    """Say whether a column only tells rows apart: texts all different, or one number per row."""
    if column.kind == "categorical":
        n_levels, n_known = cells.text.nunique(), cells.text.count()
        if n_levels > max(10, n_known / 2):
            return f"{n_levels:,} different texts in {n_known:,} rows identify the rows"
    if column.kind != "numeric" or cells.called(CALENDAR) or len(cells.values) < c.MIN_ROWS:
        return ""
    numbers = cells.numbers
    if numbers is None or not np.isfinite(numbers).all() or (numbers % 1).any():
        return ""
    steps = np.diff(np.sort(numbers))
    is_regular = steps.all() and np.mean(steps == np.median(steps)) > 0.9
    are_years = numbers.min() >= 1800 and numbers.max() <= 2100
    return "it is a running number" if is_regular and not are_years else ""


def infer_schema(
    rows: pd.DataFrame, target: str, *, source: str = "the data", **flags: Iterable[str]
) -> tuple[Schema, list[str]]:
    """Tell what each column is, and leave out what names persons or rows.

    flags: what the user says. `numeric`, `categorical`, `date` name columns that are so (a date
    with its format: "day=%d/%m/%Y"), `keep` features whatever they look like, `drop` those to
    ignore; `na` are texts that mean a missing value. Returns the schema and one line for all that
    was recognised or left out. Raises UserError for what is ambiguous, missing or not learnable.
    """
    rows = c.named(rows, source)
    said = _said(rows, target, source, flags)
    own = [name for name in rows if name.startswith("toolkit:")]  # of `roles.py`, in a buffer
    left = {target, *own, *(name for name in said if said[name] == "drop")}
    names = [target, *(name for name in rows if name not in left)]
    markers = tuple(map(str, flags.get("na", ())))
    cells = [_Cells(rows[n], said.get(n, "").removeprefix("keep"), markers) for n in names]
    empty = [x for x in cells[1:] if x.is_empty and (x.name in said or not _identifies(x))]
    if empty:
        quoted = [repr(each.name) for each in empty]
        raise UserError(
            f"{source} has columns that are empty in every row: {', '.join(quoted)}; expected "
            f"values: fill them or leave them out with --drop {' '.join(quoted)}"
        )
    # All columns together tell which mark is before decimals.
    texts = [each for each in cells if types.is_string_dtype(each.values)]
    mark = c.usual_mark(each.core for each in texts)
    found, notes = [], ["columns named toolkit:… are left out, as this toolkit's own"] * bool(own)
    for each in cells:
        each.decimal = mark
        column, remarks = _column(each, is_wanted=each.name in said)
        found += [column] if column else []
        notes += remarks
    goal, *features = found
    if not features:
        what = f"{source} has no usable feature column beside the target {target!r}"
        raise UserError(f"{what}; add columns, or keep one that was left out with --keep")
    dropped = rows.columns.drop([column.name for column in found])
    return Schema(goal, tuple(features), tuple(dropped)), notes


def _said(rows: pd.DataFrame, target: str, source: str, flags: dict) -> dict[str, str]:
    """Map columns to what the user says of them; UserError for one that is not there."""
    said, names = {target: "target"}, ", ".join(rows)
    if target not in rows:
        raise UserError(
            f"{source} has no column {target!r} to learn; its columns are {names}: "
            "name the right one with --target"
        )
    for flag in ("keep", "numeric", "categorical", "date", "drop"):
        for entry in flags.get(flag, ()):
            is_plain = entry in rows or flag != "date"
            name, _, form = (entry, "", "") if is_plain else entry.partition("=")
            if name not in rows or name == target:
                raise UserError(f"--{flag} {name!r} is no feature column; the columns are {names}")
            said[name] = f"{flag} {form}".strip()
    return said


def _column(cells: _Cells, *, is_wanted: bool) -> tuple[Column | None, list[str]]:
    """Tell what a column is: (column, notes), or (None, why it is left out)."""
    reason = "" if is_wanted else _identifies(cells)
    column, notes = (cells.column, []) if reason else _kind(cells)
    reason = reason or ("" if is_wanted else _counts_rows(cells, column))
    if not reason:
        return column, notes
    way = f"--keep {cells.name!r} takes it"
    n_each = cells.text.count() / max(1, cells.text.nunique())
    if "an id" in reason and 2 <= n_each < len(cells.text) / 10:
        way += f"; its values repeat: --group {cells.name!r} holds out all rows of one, or none"
    return None, [f"column {cells.name!r} is left out: {reason} ({way})"]


def leaks(table: pd.DataFrame, schema: Schema) -> list[str]:
    """Name columns that explain more than 0.999 of the target's variance, or of its ranks'."""
    part, target, notes = table.iloc[:: len(table) // SAMPLE + 1], schema.target.name, []
    for name, kind in schema.kinds.items():
        known = part[part[name].notna()]
        x, y = known[name], known[target]
        if kind == "categorical":
            x = y.groupby(x).transform("mean") if x.nunique() <= len(x) / 5 else 0 * y
        enough = len(x) >= max(c.MIN_ROWS, len(part) / 2) and x.nunique() > 1 < y.nunique()
        if enough and max(x.corr(y) ** 2, x.rank().corr(y.rank()) ** 2) > 0.999:
            notes.append(
                f"column {name!r} alone predicts {target!r} almost exactly: a possible leak; "
                f"leave it out with --drop {name!r} if it is not known beforehand"
            )
    return notes
