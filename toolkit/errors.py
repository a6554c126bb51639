"""The one kind of error that a user is meant to read. Travels inside models."""


class UserError(ValueError):
    """Tell a user, in one line, what was passed, what was expected and how to fix it."""


def one_line(error: BaseException) -> str:
    """Return what an error says as one line without double spaces, or its class if it is silent."""
    return " ".join(str(error).split()) or type(error).__name__
