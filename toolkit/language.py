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
    """Return the language of the environment's locale if it is one of ours, "en" if not."""
    variables = ("LC_ALL", "LC_MESSAGES", "LANG")  # the first that is set counts, says POSIX
    locale = next(filter(None, map(os.environ.get, variables)), "")
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
    if _current.get() != "fr" or not inner:
        return text
    clauses = inner.split("; ")
    told = [translate(clause) for clause in clauses] if len(clauses) > 1 else clauses
    is_known = all(new != old for new, old in zip(told, clauses, strict=True))
    before, _, after = text.partition(inner)
    return f"{before}{' ; '.join(told) if is_known else _look_up(inner)}{after}"


class _Caught(str):
    """Text that a placeholder caught: `:t` translates it, `:q` has French for English quotes."""

    def __format__(self, how: str) -> str:
        if how == "t":
            return translate(self)
        bare = self.strip("'\"")
        return f"« {bare} »" if how == "q" else str(self)


def _look_up(text: str) -> str:
    sentences, fragments = _catalogue()
    for pattern, french in sentences:
        if found := pattern.fullmatch(text):
            return french.format(*map(_Caught, found.groups()))
    for pattern, french in fragments:
        text = pattern.sub(lambda found, french=french: french.format(*found.groups()), text)
    return text


@functools.cache
def _catalogue() -> tuple[list[tuple[re.Pattern, str]], list[tuple[re.Pattern, str]]]:
    """Read (sentences, fragments): those that begin with a known word first, long ones before."""
    sections = tomllib.loads(CATALOGUE.read_text("utf-8")).values()
    entries = {english: french for section in sections for english, french in section.items()}
    found: tuple[list[tuple[re.Pattern, str]], list[tuple[re.Pattern, str]]] = ([], [])
    literal = {english: len(english.replace("{}", "")) for english in entries}
    for english in sorted(entries, key=lambda key: (key.startswith("{}"), -literal[key])):
        is_fragment = english.startswith(" ")
        place = r"(\S+)" if is_fragment else "(.*?)"
        pattern = re.compile(place.join(map(re.escape, english.split("{}"))), re.DOTALL)
        found[is_fragment].append((pattern, entries[english]))
    return found
