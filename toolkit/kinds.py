"""What the columns of a table are, found out from their names and cells at a first training.

Belongs here: kinds, dates, units, and what names persons or rows. How cells are read once that is
known stands in `columns.py`.
"""

import re
import unicodedata
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_numeric_dtype
from pandas.tseries.api import guess_datetime_format

from . import columns as c
from .columns import ISO, PLAIN, SPACE, Column, Schema, is_like
from .errors import UserError

SAMPLE = 10_000  # rows that say how a column is written; all rows are then read that way
MONEY = r"(?:US\$|C\$|A\$|R\$|[$€£¥₹₽]|USD|EUR|GBP|CHF|JPY|Rs\.?|Fr\.?|kr\.?|zł)"
UNIT = r"[^\W\d_]{1,9}\.?[²³23]?(?: ?/ ?[^\W_]{1,6})?(?: [^\W\d_]{1,6})?"
AMOUNT = (
    rf"[+-]?\(?({MONEY})? ?[+-]?[\d.,](?:[\d.,]|{SPACE})*?\)?{SPACE}?"
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
DATED = r"\b(date|datetime|timestamp|epoch|time|ts|created|updated)\b"
CODE = r"^(\d{1,5}[A-Za-z]{1,2}|[A-Za-z]{1,2}\d{1,5})$"
PERSONAL = (  # e-mail addresses, telephone numbers, social security numbers, bank accounts
    r"^[^@\s]+@[^@\s]+\.[^@\s]+$|^(\+|00)\d[\d\s\x{A0}()-]{8,17}\d$|^0\d([ .\x{A0}-]?\d{2}){4}$"
    r"|^0\d{2,4}[ /]\d{3,4} ?\d{3,5}$|^(\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}$"
    r"|^[12]\d{2}(0[1-9]|1[0-2])\d{8}(\d{2})?$|^\d{3}-\d{2}-\d{4}$"
    r"|^[A-Z]{2}\d{2}( ?[A-Z0-9]{4}){3,7}( ?[A-Z0-9]{1,3})?$"
)


@dataclass(frozen=True)
class _File:
    """What holds for all columns of a table: the mark before decimals where it is sure, say."""

    place: c.Place
    markers: tuple[str, ...] = ()
    decimal: str = ""
    european: bool = False


@dataclass
class _Cells:
    """A column whose kind is being found out, and what the user said about it."""

    values: pd.Series
    said: str
    file: _File

    def __post_init__(self) -> None:
        self.name = str(self.values.name)
        plain = unicodedata.normalize("NFKD", self.name).encode("ascii", "ignore").decode()
        plain = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", plain)  # customerID: "customer id"
        self.words = " ".join(re.findall(r"[a-z]+|\d+", plain.lower()))
        self.is_number = not is_bool_dtype(self.values) and (
            is_numeric_dtype(self.values) or self.values.dtype.kind == "m"
        )
        self.column = Column(self.name, "categorical", markers=self.file.markers)

    def called(self, pattern: str) -> bool:
        """Tell whether the words of the column's name hold a pattern."""
        return re.search(pattern, self.words) is not None

    @cached_property
    def text(self) -> pd.Series:
        return c.as_text(self.values, self.file.markers)

    @cached_property
    def filled(self) -> pd.Series:
        return c.without_markers(self.text)

    @cached_property
    def sample(self) -> pd.Series:
        known = self.filled.dropna()
        return known.iloc[:: -(-len(known) // SAMPLE) or 1]

    @cached_property
    def unit(self) -> tuple[str, float]:
        """The unit that numbers carry, and the share of the texts that are numbers with it."""
        if is_like(self.sample, PLAIN).all():
            return "", 1.0
        units = self.sample.str.extract(f"^{AMOUNT}$").fillna("")
        found = (units[0] + units[1]).str.strip()[is_like(self.sample, AMOUNT)]
        unit = next(iter(found[found != ""].value_counts().index), "")
        return unit, found.isin(["", unit]).sum() / len(self.sample)

    def notes(self, text: pd.Series, *notes: str) -> list[str]:
        """Return notes, and one for the cells that a text lacks though something stands there."""
        found = self.values[self.values.notna().to_numpy() & text.isna().to_numpy()]
        texts = found.astype(str).str.strip().unique()[:5]
        listed = ", ".join(repr(each) if each else "blank" for each in texts)
        missing = f"column {self.name!r}: {len(found):,} cells ({listed}) are read as missing"
        return [*notes, missing] if len(found) else [*notes]


_Found = tuple[Column, list[str]] | None


# --- the kinds: each finder says what a column is, or None --------------------------------------


def _date(cells: _Cells) -> _Found:
    name, asked = cells.name, cells.said.startswith("date")
    if is_datetime64_any_dtype(cells.values):
        return replace(cells.column, kind="date", date_format=ISO), []
    if cells.is_number and not (asked or cells.called(DATED)):
        return None
    form = cells.said[5:] or _date_format(cells)
    if not form and asked:
        raise UserError(
            f"--date {name!r} holds no dates that are recognised; give their format, as in "
            f"--date '{name}=%d/%m/%Y'"
        )
    if not form:
        return None
    column = replace(cells.column, kind="date", date_format=form)
    c.to_days(cells.values, column, cells.file.place)
    return column, cells.notes(cells.filled, f"column {name!r} holds dates ({form})")


def _date_format(cells: _Cells) -> str:
    """Find how dates are written, or "": UserError where day and month cannot be told apart."""
    texts, name = cells.sample.drop_duplicates(), cells.name
    if is_like(texts, PLAIN).all():
        if not (cells.said or cells.called(DATED)):
            return ""
        for form, per_day in c.EPOCHS.items():
            if (texts.astype(float) / per_day).between(1_000, 49_000).all():  # 1972 to 2104
                return form
        return "%Y%m%d" if np.isfinite(c.parse_dates(texts, "%Y%m%d")).mean() > 0.9 else ""
    guesses = dict.fromkeys(
        _guess(text, first) for text in texts.head(20) for first in (True, False)
    )
    shares = {form: np.isfinite(c.parse_dates(texts, form)).mean() for form in guesses if form}
    best = max(shares.values(), default=0)
    form, *others = [form for form, share in shares.items() if share == best] or [""]
    if best >= 0.9 and others and not cells.file.european and "." not in form:
        raise UserError(
            f"column {name!r} holds dates such as {texts.iloc[0]!r}, day or month first; say which "
            f"with --date '{name}={form}' or --date '{name}={others[0]}'"
        )
    return form if best >= 0.9 else ""


def _guess(text: str, day_first: bool) -> str:
    """Guess the format of one date, also with a year of two digits; "" if it is none."""
    day_first = day_first and not text[:4].isdigit()
    wide = re.sub(r"(\D)(\d\d)$", r"\g<1>20\2", text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where day_first cannot be obeyed
        form = guess_datetime_format(text, dayfirst=day_first) or ""
        short = guess_datetime_format(wide, dayfirst=day_first) or ""
    form = form or short.replace("%Y", "%y")
    return ISO if form.startswith(("%Y-%m-%d", "%Y%m%dT")) else form


def _number(cells: _Cells) -> _Found:
    name, said, (unit, share) = cells.name, cells.said, cells.unit
    if cells.is_number:
        return replace(cells.column, kind="numeric"), []
    if not said and (share <= 0.5 or is_like(cells.sample, r"0\d+").mean() > 0.005):
        return None
    core = c.core_of(cells.sample, unit)
    decimal, thousands, sure = c.marks_of(core, cells.file.decimal)
    if not sure and said != "numeric":
        example = core[core.str.contains(r"\d[.,]\d{3}")].iloc[0]
        way = f", or say --numeric {name!r} (a point is before decimals, a comma between thousands)"
        raise UserError(
            f"column {name!r} holds numbers such as {example!r}, which can be read as thousands or "
            "as a decimal number; write the numbers without the mark of thousands"
            + ("" if said else way)
        )
    if not sure:
        decimal, thousands = ".", ","
    column = Column(name, "numeric", decimal or ".", thousands, unit, markers=cells.file.markers)
    numbers, bad = c.parse_numbers(cells.text, column)
    wrong, known = cells.filled[bad], cells.filled.dropna()
    codes = is_like(wrong, CODE).all() and wrong.nunique() * 2 <= len(wrong)
    if (
        bad.any()
        and not said
        and (codes or (len(wrong) > 0.1 * len(known) and known.nunique() <= 50))
    ):
        return None
    if bad.any():
        hint = f", or say --categorical {name!r}, or --na TEXT for one that means a missing value"
        expected = "a number such as 1234.5: correct it" + ("" if said else hint)
        raise c.bad_cells(cells.values, bad, expected, cells.file.place)
    human = known[
        ~is_like(known, PLAIN) | ((thousands == ".") & known.str.contains(".", regex=False))
    ]
    notes = [
        f"column {name!r} holds numbers such as {text!r}, read as {numbers[place]}"
        for place, text in human[:1].items()
    ]
    return column, cells.notes(cells.filled, *notes)


def _category(cells: _Cells) -> _Found:
    notes = cells.notes(cells.text)
    if not cells.said and cells.unit[1] > 0.5:
        notes.append(f"column {cells.name!r} holds codes or numbers as text, taken as a category")
    digits = cells.text[is_like(cells.text, r"\d+")]
    widths = digits.str.len().unique()
    coded = digits.str.contains(r"^0\d").any() and len(widths) == 1
    return replace(cells.column, width=int(widths[0]) if coded else 0), notes


FINDERS = {
    "": (_date, _number, _category),
    "numeric": (_number,),
    "target": (_number,),
    "date": (_date,),
    "categorical": (_category,),
}


def _kind(cells: _Cells) -> tuple[Column, list[str]]:
    """Tell whether a column is a date, a number or a category, and how it is written."""
    finders = FINDERS[cells.said.split(" ")[0]]
    if not cells.said and (cells.called(ZIP) or is_bool_dtype(cells.values)):
        finders = (_category,)
    elif not cells.said and isinstance(cells.values.dtype, pd.CategoricalDtype):
        finders = (_date, _category)  # text is meant where a typed format says so
    empty = cells.values.isna().all() or (not cells.is_number and cells.filled.isna().all())
    if empty and cells.said != "target":
        raise UserError(
            f"column {cells.name!r} is empty in every training row; expected values: fill it or "
            f"leave it out with --drop {cells.name!r}"
        )
    return next(found for find in finders if (found := find(cells)))


# --- persons and ids ----------------------------------------------------------------------------


def _identifies(cells: _Cells) -> str:
    """Say why a column names persons or rows, by its name or its values; "" if it does not."""
    if cells.is_number and (np.nan_to_num(cells.values.to_numpy(float, na_value=0)) % 1).any():
        return ""
    if cells.called(ID) and not cells.called(r"\b(type|kind|statut|status)\b"):
        return "it is called like an id"
    if not cells.is_number and cells.called(PERSON):
        return "it is called like a person's name"
    known = c.as_text(cells.values.head(20 * SAMPLE)).dropna()
    if not cells.is_number and cells.called(CONTACT) and known.nunique() > max(20, len(known) / 20):
        return "it is called like an address or number of a person"
    known = known.head(SAMPLE)
    if is_like(known, PERSONAL).sum() > 0.8 * len(known):
        return "it holds addresses or numbers of persons"
    return ""


def _counts_rows(cells: _Cells, column: Column) -> str:
    """Say whether a column only tells rows apart: texts all different, or one number per row."""
    if column.kind == "categorical":
        n_levels, n_known = cells.text.nunique(), cells.text.count()
        if n_levels > max(10, n_known / 2):
            return f"{n_levels:,} different texts in {n_known:,} rows identify the rows"
    if column.kind != "numeric" or cells.called(CALENDAR) or len(cells.values) < c.MIN_ROWS:
        return ""
    numbers = c.to_numbers(cells.values, column, cells.file.place)
    steps, in_order = np.diff(np.sort(numbers)), np.abs(np.diff(numbers))
    if not np.isfinite(numbers).all() or (numbers % 1).any() or (steps == 0).any():
        return ""
    regular = np.mean(in_order == np.median(in_order)) > 0.9
    return "it is a running number" if regular or np.mean(steps == np.median(steps)) > 0.95 else ""


# --- the schema ---------------------------------------------------------------------------------


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

    `numeric`, `categorical`, `date` say what columns are (a date with its format: "day=%d/%m/%Y"),
    `keep` that they are features; `na` means missing. Returns the schema and one line for all that
    was recognised or left out. Raises UserError for what is ambiguous, missing or not learnable.
    """
    rows = c.named(rows, source)
    said = dict.fromkeys(numeric, "numeric") | dict.fromkeys(categorical, "categorical")
    said |= dict(_date_said(entry, rows) for entry in date)
    drop, keep = dict.fromkeys(drop, "drop"), dict.fromkeys(keep, "keep")
    _check_names(rows, target, source, said | keep | drop)
    file = _file(rows, c.Place(source, first_line), tuple(map(str, na)))
    goal, notes = _kind(_Cells(rows[target], "target", file))
    c.check_target(c.target_of(rows[target], goal, file.place).to_numpy(), target, source)
    found = []
    for name in rows.columns.drop([target, *drop]):
        cells = _Cells(rows[name], said.get(name, ""), file)
        column, remarks = _kind_or_reason(cells, name in said or name in keep)
        found += [column] if column else []
        notes += remarks
    if not found:
        what = f"{source} has no usable feature column beside the target {target!r}"
        raise UserError(f"{what}; add columns, or keep one that was left out with --keep")
    dropped = rows.columns.drop([target, *(column.name for column in found)])
    return Schema(goal, tuple(found), tuple(dropped)), notes


def _date_said(entry: str, rows: pd.DataFrame) -> tuple[str, str]:
    name, _, form = entry.rpartition("=")
    return (name, f"date {form}") if name and entry not in rows else (entry, "date")


def _kind_or_reason(cells: _Cells, is_wanted: bool) -> tuple[Column | None, list[str]]:
    """Tell what a feature is: (column, notes), or (None, why it is left out)."""
    if is_wanted:
        return _kind(cells)
    reason = _identifies(cells)
    column, notes = (cells.column, []) if reason else _kind(cells)
    reason = reason or _counts_rows(cells, column)
    if reason:
        out = f"column {cells.name!r} is left out: {reason} (--keep {cells.name!r} takes it)"
        return None, [out]
    return column, notes


def _check_names(rows: pd.DataFrame, target: str, source: str, asked: dict[str, str]) -> None:
    names = ", ".join(rows.columns)
    if target not in rows.columns:
        raise UserError(
            f"{source} has no column {target!r} to learn; its columns are {names}: "
            "name the right one with --target"
        )
    for name, option in asked.items():
        if name not in rows.columns or name == target:
            raise UserError(
                f"--{option.split()[0]} {name!r} is no feature column; the columns are {names}"
            )


def _file(rows: pd.DataFrame, place: c.Place, markers: tuple[str, ...]) -> _File:
    """Learn from all columns together which mark is before decimals."""
    votes = {".": 0, ",": 0, "": 0}
    for name in rows.select_dtypes(["str", "object"]):
        cells = _Cells(rows[name].head(SAMPLE), "", _File(place, markers))
        decimal, _, sure = c.marks_of(c.core_of(cells.sample, cells.unit[0]))
        votes[decimal if sure else ""] += 1
    decimal = "" if votes["."] == votes[","] else max(".,", key=votes.__getitem__)
    european = decimal == "," or (rows.attrs.get("separator") == ";" and decimal != ".")
    return _File(place, markers, decimal, european)
