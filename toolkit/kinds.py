"""What the columns of a table are, found out from their names and cells at a first training."""

import re
import unicodedata
import warnings
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types
from pandas.tseries.api import guess_datetime_format

from . import columns as c
from .columns import ISO, PLAIN, SPACE, Column, Schema
from .errors import UserError, reason

# Days since 1970 that a plain number may mean: the years 1972 to 2104, or 1800 to 2139.
RANGES = dict.fromkeys(c.EPOCHS, (1_000, 49_000))
MONTHLY = ("%m.%Y", "%m/%Y", "%m-%Y", "%Y/%m")  # 3.0601 is a number
RANGES |= dict.fromkeys(("%Y", "%Y%m%d", *MONTHLY), (-62_000, 62_000))
# Digits alone that are a month, a day or a time: other numbers do not all look like these.
STAMP = r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:(?:0[1-9]|[12][0-9]|3[01])(?:[0-5][0-9]){0,3})?"
FEW = 20  # levels; a text with more, mostly of digits, may be numbers that are not understood
NESTED = (dict, list, np.ndarray, bytes)  # of JSON and Parquet
SAMPLE = 10_000  # rows that say how a column is written; all rows are then read that way
MONEY = r"(?:US\$|C\$|A\$|R\$|[$€£¥₹₽₩₺₪₫฿₦₱₴]|USD|EUR|GBP|CHF|JPY|Rs\.?|Fr\.?|kr\.?|zł)"
UNIT = r"[^\W\d_]{1,9}\.?[²³23]?(?: ?/ ?[^\W_]{1,6})?(?: [^\W\d_]{1,6})?"
AMOUNT = (
    rf"[+−–-]?\(?({MONEY})? ?[+−–-]?\(?[0-9.,](?:[0-9.,]|{SPACE})*?(?:[eE][+-]?[0-9]+)?\)?"
    rf"(?:{SPACE}?-(?![^\W\d_]))?{SPACE}?"
    rf"({MONEY}|[%‰]|° ?[CF]?|[µμ]?{UNIT})?"
)
# Of the words of a column's name, joined by spaces.
WHO = (
    r"\b(client|customer|patient|employee?|contact|borrower|emprunteur|salarie|adherent|person(ne)?"
    r"|owner|proprietaire|student|eleve|passenger|buyer|seller|host|voyageur|agent|doctor|manager"
    r"|applicant|assure|beneficiaire|titulaire|locataire)s?\b"
)
PERSON = (
    r"\b(prenoms?|(first|last|sur|fore|full|given|family|middle|maiden|user) ?names?|patronyme"
    r"|vorname|nachname|[fl] ?name|(kunden|mitarbeiter|patienten)name|apellidos?|cognome|achternaam"
    r"|pseudo|login)\b|^(titulaire|locataire)s?$"
    r"|^((your|votre) )?(names?|noms?( complet| (de )?(famille|naissance|jeune fille)| usage)?)$"
    rf"|\b(name|nom)\b.*{WHO}|{WHO}.*\b(name|nom)\b"
)
ID = (
    r"\b(id|uuid|guid|uid|iban|matricule|identifiant|identifier|mrn"
    r"|(kunden|mitarbeiter|patienten|personal) ?(nr|nummer)"
    r"|(client|customer|patient|employee) (no|nr|num|number|numero)$)\b"  # clients are counted
)
LONG_ID = r"\b(ssn|nir|nss|secu|siret|siren|social security)\b"
CONTACT = (
    r"\b(e ?mails?|mails?|courriels?|phone|telephone|tel|portable|mobile|fax|address|adresse|addr"
    r"|street|rue|ip|passport|passeport|immatriculation|telefono?|handy|celular|strasse|anschrift"
    r"|direccion)\b"
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
OTHERS += "|%d%b%Y:%H:%M:%S|%d%b%Y %H:%M:%S|%YM%m|%Y-%m-%d %H:%M:%S,%f|%I:%M %p|%I:%M:%S %p"
FORMS = [*OTHERS.split("|"), *DAYS, *(re.sub("%d(.)%m", r"%m\1%d", form) for form in DAYS)]
YEAR_LAST = [form for form in DAYS if form.startswith("%d") and "%y" in form]
CODE = r"[0-9]{1,5}[A-Za-z]{1,2}|[A-Za-z]{1,2}[0-9]{1,5}"
PERSONAL = (  # e-mail addresses, telephone numbers, social security numbers, bank accounts
    r"[^@ ]+@[^@ ]+\.[^@ ]+|(\+|00)\d[\d \xA0()-]{8,17}\d|0\d([ .\xA0-]?\d{2}){4}"
    r"|0\d{2,4}[ /]\d{3,4} ?\d{3,5}|(\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}"
    r"|[12]\d{2}(0[1-9]|1[0-2])\d{8}(\d{2})?|\d{3}-\d{2}-\d{4}"
    r"|[A-Z]{2}\d{2}( ?[A-Z0-9]{4}){3,7}( ?[A-Z0-9]{1,3})?"
)


class _Cells:
    """A column whose kind is being found out; `said` is what the user says of it, or None."""

    def __init__(self, values: pd.Series, said: str | None, markers: list[str]) -> None:
        self.values, self.name, self.markers = values, str(values.name), markers
        self.is_wanted, self.notes = said is not None, list[str]()
        self.said, _, self.form = (said or "").removeprefix("keep").partition(" ")
        plain = unicodedata.normalize("NFKD", self.name).encode("ascii", "ignore").decode()
        plain = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", plain)  # customerID: "customer id"
        self.words = " ".join(re.findall(r"[a-z]+|\d+", plain.lower()))
        is_bool = types.is_bool_dtype(values)
        self.is_typed_text = isinstance(values.dtype, pd.CategoricalDtype)
        self.is_number = types.is_numeric_dtype(values) and not is_bool
        known = (values if self.is_number else self.filled).dropna()
        self.sample = c.as_text(known.iloc[:: len(known) // SAMPLE + 1])
        like = self.sample.str.fullmatch
        self.is_plain = self.is_number or like(PLAIN).all()
        self.has_fractions = self.is_plain and like(r".*(\.[0-9]*[1-9]|e-).*").any()
        self.is_code = is_bool or (self.called(ZIP) and not self.has_fractions)
        self.unit, share = ("", 1.0) if self.is_plain else self._unit()
        self.core, fits = self.sample, 1.0
        if not self.is_plain:
            self.core = c.core_of(self.sample, self.unit)
            fits = max(self.core.str.fullmatch(c.number_pattern(*m)).mean() for m in (".,", ",."))
        self.holds_numbers, self.are_numbers = share > 0.5 and fits >= 0.5, fits == 1  # no 10.0.0.1
        has_sign = self.are_numbers and re.fullmatch(f"{MONEY}|[%‰]", self.unit)
        clocks = like(c.DURATION)
        if like(c.HOURS).any() and not like("[0-9]+ ?[^0-9]+").mean() > 0.5:  # else it is a unit
            clocks |= like(f"{c.HOURS}|{c.MINUTES}")
        self.are_durations = not self.is_plain and clocks.mean() > 0.9
        self.are_amounts = self.has_fractions or bool(has_sign) or self.are_durations

    def called(self, pattern: str) -> bool:
        return re.search(pattern, self.words) is not None

    def column(self, kind: str, **how: Any) -> Column:
        return Column(self.name, kind, markers=self.markers, **how)

    @cached_property
    def text(self) -> pd.Series:  # of numbers it is seldom needed
        return c.as_text(self.values, self.markers)

    @cached_property
    def filled(self) -> pd.Series:
        return c.without_markers(self.text)

    def _unit(self) -> tuple[str, float]:
        """Find the unit that numbers carry, and the share of the texts that are numbers with it."""
        units = self.sample.str.extract(f"^{AMOUNT}$").fillna("")
        found = (units[0] + units[1]).str.strip()[self.sample.str.fullmatch(AMOUNT)]
        shares = found[found != ""].value_counts() / len(self.sample)
        unit = next(iter(shares.index), "")
        # On some numbers alone letters or % are no unit: 12K beside 500, 136A, 70% beside 0.66.
        has_none = (found == "") & ~self.sample[found.index].str.fullmatch("[0.,]+")
        unit = unit if re.fullmatch(MONEY, unit) or has_none.mean() <= 0.1 else ""
        return unit, found.isin(["", unit]).sum() / len(self.sample)

    def note_missing(self, text: pd.Series) -> None:
        """Note the cells that a text lacks though something stands there."""
        found = self.values[self.values.notna() & text.isna()]
        if len(found):
            texts = found.astype(str).str.strip().unique()[:5]
            listed = ", ".join(repr(each) if each else "blank" for each in texts)
            self.notes.append(
                f"column {self.name!r}: {len(found):,} cells ({listed}) are read as missing"
            )


def _date(cells: _Cells) -> Column | None:
    is_typed = types.is_datetime64_any_dtype(cells.values)
    form = ISO if is_typed else cells.form or _date_format(cells)
    try:
        c.parse_dates(cells.sample[:1], form or ISO)
    except ValueError as error:
        raise UserError(
            f"--date {cells.name!r} has the format {form!r}, which is not understood "
            f"({reason(error)}); expected one such as --date '{cells.name}=%d/%m/%Y'"
        ) from error
    if cells.said and not form:
        raise UserError(
            f"--date {cells.name!r} holds no dates that are recognised; give their format, as in "
            f"--date '{cells.name}=%d/%m/%Y'"
        )
    if form and not is_typed:
        latest = _latest(cells.sample, form) if "%y" in form else ""
        cells.notes.append(f"column {cells.name!r} holds dates ({form}{latest})")
        cells.note_missing(cells.filled.mask(cells.filled.isin(c.NO_DATE)))
    return cells.column("date", date_format=form) if form else None


def _latest(texts: pd.Series, form: str) -> str:
    """Tell how the latest date is read: of two digits a year, those to 68 are of this century."""
    days = np.nan_to_num(c.parse_dates(texts, form), nan=-np.inf)
    day = pd.Timestamp(days.max(), unit="D").date()
    return f", {texts.iloc[days.argmax()]!r} is {day}"


def _date_format(cells: _Cells) -> str:
    """Find how dates are written, or "": UserError where day and month cannot be told apart."""
    sample = cells.sample[~cells.sample.isin(c.NO_DATE)]
    stamps = sample.str.removesuffix(".0")
    widths = stamps.str.len().unique()
    if len(widths) == 1 and stamps.str.fullmatch(STAMP).all():
        form = "%Y%m%d%H%M%S"[: widths[0] - 2]  # of 202401 it is %Y%m
        if np.isfinite(c.parse_dates(stamps, form)).all():
            return form
    if stamps.str.fullmatch(r"(?:0[1-9]|1[0-2])\.(?:19|20)[0-9]{2}").all() and (stamps < "1").any():
        return "%m.%Y"  # no number begins with 0
    is_number = cells.are_numbers and not (cells.said or cells.called(DATED))
    if is_number or not sample.str.contains("[0-9]").any():
        return ""
    texts, name, shares = c.in_english(sample.drop_duplicates()), cells.name, {}
    few = texts[:20]
    forms = [f for f in FORMS if pd.to_datetime(few, format=f, errors="coerce").notna().any()]
    with warnings.catch_warnings(action="ignore"):  # where day_first cannot be obeyed
        for text, day_first in product(few, (True, False)):
            form = guess_datetime_format(text, day_first and not text[:4].isdigit()) or ""
            forms.append(ISO if form.startswith(("%Y-%m-%d", "%Y%m%dT")) else form)
    for form in dict.fromkeys([*c.EPOCHS, *filter(None, forms)]):
        days = c.parse_dates(texts, form)
        low, high = RANGES.get(form, (-np.inf, np.inf))
        shares[form] = np.mean((low < days) & (days < high))
    best = max(0.9, *shares.values())
    form, *others = [form for form, share in shares.items() if share == best] or [""]
    if form == "%H:%M:%S" and best < 1 and texts.str.fullmatch(c.DURATION).all():
        return ""  # 30:00:00 is no time of day
    years = texts.str.extract("^([0-9]{4})[-/]([0-9]{2})$").astype("float64")
    if form.startswith("%Y") and ((years[0] + 1) % 100 == years[1]).all():
        return ""  # a season, such as 2001/02
    if form in YEAR_LAST and not others and _has_year_first(texts):
        return re.sub("%d(.)%m.%y", r"%y\1%m\1%d", form)
    if others and "." not in form:
        raise UserError(
            f"column {name!r} holds dates such as {texts.iloc[0]!r}, day or month first; say which "
            f"with --date '{name}={form}' or --date '{name}={others[0]}'"
        )
    return form


def _has_year_first(texts: pd.Series) -> bool:
    """Tell whether dates such as 23/01/15 lie in far fewer years when these are read first."""
    parts = texts.str.extract("^([0-9]{2}).([0-9]{2}).([0-9]{2})").dropna().astype(int)
    fits = len(parts) == len(texts) and (parts.max() <= [31, 12, 31]).all()
    is_month = parts[0].isin([1, 15, 28, 29, 30, 31]).all()  # its first, middle or last day
    return bool(fits) and not is_month and 3 * parts[0].nunique() <= parts[2].nunique()


def _number(cells: _Cells, decimal: str) -> Column | None:
    name, said = cells.name, cells.said
    if cells.is_number:
        return cells.column("numeric", decimal="." if cells.has_fractions else "")
    if cells.are_durations:
        cells.notes.append(f"column {name!r} holds durations, read as seconds")
        cells.note_missing(cells.filled)
        return cells.column("numeric", decimal=".", unit=c.CLOCK)
    if not said and (not cells.holds_numbers or cells.sample.str.match("0[0-9]+$").mean() > 0.005):
        return None
    sure = c.marks_of(cells.core)
    marks = c.marks_of(cells.core, decimal)
    if sure not in (None, marks) or not marks:  # the column and the rest of the file disagree
        marks = (".", ",") if said == "numeric" else None
    if not marks:
        raise c.in_doubt(name, cells.core, is_first=not said)
    column = cells.column("numeric", decimal=marks[0], thousands=marks[1], unit=cells.unit)
    numbers, bad = c.read_cells(cells.values, column)
    if bad.any() and not said and _are_codes(cells.filled[bad], cells.filled.dropna()):
        return None
    plain = "[+-]?[0-9]+" if column.thousands == "." else PLAIN
    odd = ~cells.filled.str.fullmatch(plain) | (sure is None) | cells.is_typed_text
    human = np.isfinite(numbers) & odd
    cells.notes += [
        f"column {name!r} holds numbers such as {text!r}, read as {numbers[place]}"
        for place, text in cells.filled[human][:1].items()
    ]
    cells.note_missing(cells.filled)
    return column


def _are_codes(wrong: pd.Series, known: pd.Series) -> bool:
    """Tell by the texts that are no numbers whether all are codes, names, or of few groups."""
    n_wrong, many = wrong.nunique(), len(wrong) > 0.1 * len(known)
    begin = n_wrong > 2 and wrong.str.match("[A-Za-z]").all()
    codes = wrong.str.fullmatch(CODE).all() and (n_wrong * 2 <= len(wrong) or begin)
    return codes or (many and (known.nunique() <= 50 or (begin and n_wrong > 20)))


def _kind(cells: _Cells, decimal: str) -> Column:
    """Tell what a column is, and how it is written; `decimal` is the mark in the other columns."""
    said, is_code = cells.said, cells.is_code
    # Text is meant where a typed format says so, but for amounts, which some programs write as it.
    is_text = is_code or (cells.is_typed_text and not cells.are_amounts)
    column = _date(cells) if said == "date" or not (said or is_code) else None
    if said in ("numeric", "target") or not (said or is_text or column):
        column = _number(cells, decimal)
    if column:
        return column
    cells.note_missing(cells.text)
    text = cells.text
    are_odd = text.str.count("[0-9]") > text.str.count("[a-zA-Z]")
    digits = text[are_odd | text.str.contains("^[0-9]|[0-9][^0-9]+[0-9]")]
    is_odd = len(digits) > cells.text.count() / 2 and digits.nunique() > FEW
    if not (said or is_code) and len(digits) and (cells.holds_numbers or is_odd):
        cells.notes.append(
            f"column {cells.name!r} holds codes or numbers as text, such as "
            f"{digits.iloc[0][:40]!r}, taken as a category"
        )
    digits = cells.text[cells.text.str.fullmatch("[0-9]+")]
    widths, coded = digits.str.len(), digits.str.match("0[0-9]")
    # 01 to 95 and 971: what a program that took them for numbers wrote as 1 has one width, too.
    same = coded.any() and widths.min() == widths[coded].max()
    # A spreadsheet writes 1000 for 01000.
    width = widths.max() if is_code and len(digits) else widths.min() if same else 0
    return cells.column("categorical", width=int(width))


def _identifies(cells: _Cells) -> str:
    """Say why a column names persons or rows, by its name or its values; "" if it does not."""
    if cells.values.dtype == object and any(isinstance(cell, NESTED) for cell in cells.values):
        return "its cells hold several values each"
    if cells.has_fractions:
        return ""
    sample, n_known = cells.sample, len(cells.sample)
    is_long = sample.str.fullmatch("[0-9]{8,15}").sum() > 0.8 * n_known
    is_amount = n_known and cells.is_plain and not is_long  # of mail, say, or of mobile telephones
    is_id = cells.called(ID) and not cells.called(r"\b(type|kind|statut|status)\b")
    if is_id or (cells.called(LONG_ID) and not is_amount):
        return "it is called like an id"
    is_code = sample.nunique() <= FEW and sample.str.fullmatch("0[0-9]+").all()  # of an article
    are_personal = not is_code and sample.str.fullmatch(PERSONAL).sum() > 0.8 * n_known
    if are_personal and not cells.called(DATED):
        return "it holds addresses or numbers of persons"
    # Neither yes and no nor the date of the last login is a person's name.
    is_other = sample.nunique() == 2 or sample.str.match("[0-9]").mean() > 0.5
    if cells.called(PERSON) and not (is_amount or is_other):
        return "it is called like a person's name"
    if cells.called(CONTACT) and not is_amount:
        known = cells.text[: 20 * SAMPLE].dropna()
        if known.nunique() > max(20, len(known) / 20):
            return "it is called like an address or number of a person"
    return ""


def _counts_rows(cells: _Cells, column: Column) -> str:
    """Say whether a column only tells rows apart: texts all different, or one number per row."""
    if column.kind == "categorical":
        n_levels, n_known = cells.text.nunique(), cells.text.count()
        if n_levels > max(10, n_known / 2):
            return f"{n_levels:,} different texts in {n_known:,} rows identify the rows"
    may_count = column.kind == "numeric" and not cells.called(CALENDAR) and not cells.has_fractions
    if not (may_count and cells.sample.is_unique and len(cells.values) >= c.MIN_ROWS):
        return ""
    numbers, _ = c.read_cells(cells.values, column)
    steps = np.diff(np.sort(numbers))
    is_regular = steps.all() and np.mean(steps == np.median(steps)) > 0.9
    are_years = numbers.min() >= 1800 and numbers.max() <= 2100
    return "it is a running number" if is_regular and not are_years else ""


def infer_schema(
    rows: pd.DataFrame, target: str, *, source: str = "the data", decimal: str = "", **flags: Any
) -> tuple[Schema, list[str]]:
    """Tell what each column is, and leave out what names persons or rows.

    decimal: the mark before decimals where the columns leave it open. flags: what the user says.
    `numeric`, `categorical`, `date` name columns that are so (a date with its format:
    "day=%d/%m/%Y"), `keep` features whatever they look like, `drop` those to ignore; `na` are texts
    that mean a missing value. Returns the schema and one line for all that was recognised or left
    out. Raises UserError for what is ambiguous, missing or not learnable.
    """
    rows = c.named(rows, source)
    said = _said(rows, target, source, flags)
    own = [name for name in rows if name.startswith("toolkit:")]  # of `roles.py`, in a buffer
    names = [target, *(n for n in rows if n not in own and said.get(n) not in ("target", "drop"))]
    markers = [*map(str, flags.get("na", ()))]
    cells = [_Cells(rows[name], said.get(name), markers) for name in names]
    empty = [
        repr(x.name) for x in cells[1:] if x.sample.empty and (x.is_wanted or not _identifies(x))
    ]
    if empty:
        raise UserError(
            f"{source} has columns that are empty in every row: {', '.join(empty)}; expected "
            f"values: fill them or leave them out with --drop {' '.join(empty)}"
        )
    # All columns together tell which mark is before decimals.
    texts = (each.core for each in cells if types.is_string_dtype(each.values))
    decimal = c.usual_mark(texts) or decimal
    found = list[Column]()
    notes = ["columns named toolkit:… are left out, as this toolkit's own"] * bool(own)
    for each in cells:
        found += filter(None, [_column(each, decimal)])
        notes += each.notes
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


def _column(cells: _Cells, decimal: str) -> Column | None:
    """Tell what a column is, or note why it is left out."""
    reason = "" if cells.is_wanted else _identifies(cells)
    column = None if reason else _kind(cells, decimal)
    if column and not cells.is_wanted:
        reason = _counts_rows(cells, column)
    if not reason:
        return column
    way = f"--keep {cells.name!r} takes it"
    digits, letters = (cells.sample.str.count(each).sum() for each in ("[0-9]", "[a-zA-Z]"))
    if "different texts" in reason and digits > letters:
        way = f"--numeric {cells.name!r} or --date {cells.name!r} says what it holds; {way}"
    n_each = cells.text.count() / max(1, cells.text.nunique())
    if "an id" in reason and 2 <= n_each < len(cells.text) / 10:
        way += f"; its values repeat: --group {cells.name!r} holds out all rows of one, or none"
    cells.notes = [f"column {cells.name!r} is left out: {reason} ({way})"]
    return None


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
