"""The language of what people read: sentences are made in English and translated on their way out.

Here belongs how a sentence is found in the catalogue `french.toml`, which explains itself. What
programs read, keys and tags and `--json`, is never translated.
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
_current: ContextVar[str] = ContextVar("language", default="en")


def of_locale() -> str:
    """Return the language of the locale, found as POSIX says, if it is one of ours; else "en"."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    return locale[:2] if locale[:2] in LANGUAGES else "en"


@contextlib.contextmanager
def spoken(language: str) -> Iterator[None]:
    """Let `translate` give this language until the block is done; one unknown is English."""
    token = _current.set(language)
    try:
        yield
    finally:
        _current.reset(token)


def translate(text: str) -> str:
    """Return a sentence, or several joined by "; ", in the current language.

    What the catalogue does not know, such as a command or a name, stays as it is.
    """
    inner = text.strip()
    if _current.get() == "en" or not inner:
        return text
    clauses = inner.split("; ")
    told = [translate(clause) for clause in clauses] if len(clauses) > 1 else clauses
    french = " ; ".join(told)
    if any(map(str.__eq__, told, clauses)):  # then it is one sentence
        found = ((pattern.fullmatch(inner), french) for pattern, french in _catalogue())
        said = (french.format(*map(_Caught, match.groups())) for match, french in found if match)
        french = next(said, inner)
    before, _, after = text.partition(inner)
    return f"{before}{french}{after}"


class _Caught(str):
    """Text that a placeholder caught: `:t` translates it, `:q` has French for English quotes."""

    def __format__(self, how: str) -> str:
        bare = self.strip("'\"")
        return translate(self) if how == "t" else f"« {bare} »" if how == "q" else str(self)


@functools.cache
def _catalogue() -> list[tuple[re.Pattern, str]]:
    """List (pattern, French): those first that begin with a known word, the longest first."""
    sections = tomllib.loads(CATALOGUE.read_text("utf-8")).values()
    entries = {english: french for section in sections for english, french in section.items()}
    literal = {english: len(re.sub(r"\{n?\}", "", english)) for english in entries}
    patterns = []
    for english in sorted(entries, key=lambda key: (key.startswith("{}"), -literal[key])):
        pattern = re.escape(english).replace(r"\{\}", "(.*?)").replace(r"\{n\}", r"([\d,]+)")
        patterns.append((re.compile(pattern, re.DOTALL), entries[english]))
    return patterns
