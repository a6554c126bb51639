"""The language of what people read: sentences are made in English and translated on their way out.

The catalogue `french.toml` explains itself. What programs read is never translated.
"""

import contextlib
import functools
import os
import re
import tomllib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

LANGUAGES = ("en", "fr")
CATALOGUE = Path(__file__).with_name("french.toml")
# 0,440 is French already.
AMOUNT = re.compile(r"([+-]?(?:0|[1-9]\d{0,2}(?:,\d{3})*)(?:\.\d+)?(?:e[+-]\d+)?)(%?)((?: \S+)?)")
FRENCH_DIGITS = str.maketrans(",.", "\u202f,")  # 1,234.5 is 1 234,5
_current: ContextVar[str] = ContextVar("language", default="en")


def of_locale() -> str:
    """Return the language of the locale, found as POSIX says, if it is one of ours; else "en"."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    return "fr" if locale.startswith("fr") else "en"


@contextlib.contextmanager
def spoken(language: str) -> Iterator[None]:
    """Let `translate` give this language until the block is done; one unknown is English."""
    token = _current.set(language)
    try:
        yield
    finally:
        _current.reset(token)


def translate(text: str) -> str:
    """Return one or several ("; ") sentences, or an amount, in the current language if known."""
    inner = text.strip()
    if _current.get() == "en" or not inner:
        return text
    clauses = inner.split("; ")
    told = [translate(clause) for clause in clauses] if len(clauses) > 1 else clauses
    if all(map(str.__ne__, told, clauses)):  # else it is one sentence
        return text.replace(inner, " ; ".join(told))
    for pattern, french in _catalogue():
        if match := pattern.fullmatch(inner):
            return text.replace(inner, french.format(*map(_Caught, match.groups())))
    if match := AMOUNT.fullmatch(inner):
        number, percent, unit = match.groups()
        return text.replace(inner, number.translate(FRENCH_DIGITS) + " %" * bool(percent) + unit)
    return text


class _Caught(str):
    """Text that a placeholder caught, an amount or as users wrote it.

    `:t` translates it, `:n` also the numbers in it, `:q` has French for English quotes.
    """

    def __format__(self, how: str) -> str:
        if how == "q":
            return "« {} »".format(self.strip("'\""))
        if how == "n":
            return re.sub(r"(?<= )\d+\.\d+", lambda number: translate(number[0]), translate(self))
        return translate(self) if how == "t" or AMOUNT.fullmatch(self) else str(self)


@functools.cache
def _catalogue() -> list[tuple[re.Pattern, str]]:
    """List (pattern, French): those first that begin with a known word, the longest first."""
    sections = tomllib.loads(CATALOGUE.read_text("utf-8")).values()
    entries = [entry for section in sections for entry in section.items()]
    entries.sort(key=lambda entry: (entry[0].startswith("{}"), -len(re.sub("{n?}", "", entry[0]))))
    patterns = []
    for english, french in entries:
        pattern = re.escape(english).replace(r"\{\}", "(.*?)").replace(r"\{n\}", r"([\d,]+)")
        patterns.append((re.compile(pattern, re.DOTALL), french))
    return patterns
