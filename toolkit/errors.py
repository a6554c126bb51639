"""The one kind of error that a user is meant to read. Travels inside models."""

import re


class UserError(ValueError):
    """Tell a user, in one line, what was passed, what was expected and how to fix it."""


def masked(text: object) -> str:
    """Put *** for the password, and for the values of the query, of every URL in a text."""

    def hide(url: re.Match) -> str:
        place = re.sub(r"://([^:@/]+:|).*@", r"://\1***@", url[0])  # it may hold "/", "?" and "@"
        return re.sub(r"([?&][^=&]*=)[^&]*", r"\1***", place)

    return re.sub(r"\w+://\S+", hide, str(text))


def reason(error: BaseException) -> str:
    """Take the words that matter out of an exception: the system's, a database's, or its first."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    text = masked(text)  # no password, nor a part that the cut would leave
    own = re.search(r"\(\w+\.\w+Error\) (.+)", text)
    return (own[1] if own else text.splitlines()[0])[:200]
