"""The one kind of error that a user is meant to read. Travels inside models."""

import re


class UserError(ValueError):
    """Tell a user, in one line, what was passed, what was expected and how to fix it."""


def reason(error: BaseException) -> str:
    """Take the words that matter out of an exception: the system's, a database's, or its first."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    text = re.sub(r"//[^@/\s]*@", "//", text)  # no password, nor a part that the cut would leave
    own = re.search(r"\(\w+\.\w+Error\) (.+)", text)
    return (own[1] if own else text.splitlines()[0])[:200]
