"""Numbers, names and cells as text: safe on a terminal, in Markdown and in a spreadsheet."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd


def format_amount(value: float, unit: str = "", *, signed: bool = False) -> str:
    """Write a number with separated thousands and about three digits, at any scale."""
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else f"{'-' if value < 0 else ''}infinite"
    sign = "+" if signed else ""
    if abs(value) >= 100 or value == 0:
        text = f"{value + 0.0:{sign},.0f}"  # + 0.0 turns -0.0 into 0
    else:
        text = f"{value:{sign}#.3g}".rstrip(".")
    return f"{text} {unit}".strip()


def format_interval(interval: Any, unit: str = "") -> str:
    """Write an interval with signs: ``-420 € (-540 to -300)``."""
    low, high = (format_amount(bound, signed=True) for bound in (interval.low, interval.high))
    return f"{format_amount(interval.estimate, unit, signed=True)} ({low} to {high})"


def listed(names: Iterable[object], most: int = 5) -> str:
    """Name at most `most` of some names, and say how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def printable(text: object) -> str:
    """Replace line breaks, control and invisible characters, which can fake lines or colours."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def escape_markdown(text: object) -> str:
    """Write `text` on one line so that no part of it acts as Markdown, HTML or a link."""
    special: dict[str, str | int | None] = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
    special |= {character: f"\\{character}" for character in "\\`*_[]{}#|~$!"}
    escaped = printable(text).translate(str.maketrans(special))
    return escaped.replace("://", "\\://").replace("www.", "www\\.")


def safe_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Put ' before texts that a spreadsheet takes for a formula (OWASP, "CSV Injection")."""

    def safe(value: object) -> object:
        dangerous = isinstance(value, str) and value.startswith(tuple("=+-@\t\r\n"))
        return f"'{value}" if dangerous else value

    return table.map(safe).rename(index=safe, columns=safe)
