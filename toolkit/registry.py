"""The model registry: versions, the champion, promotion, approval, going back, history.

`@champion` is the version in use, `@previous` the one before it. Every move of the two happens
under one lock that all machines respect, and leaves a line in the model's history.
"""

import contextlib
import io
import time
from collections.abc import Iterator
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from . import artifact, cli, report
from .errors import UserError
from .language import translate
from .words import escape_markdown

CHAMPION, PREVIOUS = "champion", "previous"
HISTORY = "champion_history"  # tag of the registered model
LONGEST_HISTORY = 50  # lines
MOST = 900  # characters of a result: with the card they must not be more than 5,000


def champion_version(client: MlflowClient, name: str, alias: str = CHAMPION) -> str | None:
    """Return the version that an alias points at, as text, or None when there is none."""
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def register(client: MlflowClient, name: str, uri: str, description: str) -> str:
    """Register a logged model as the next version of `name`; return the version, as text."""
    with contextlib.redirect_stderr(io.StringIO()):  # MLflow tells of every version it makes
        made = mlflow.register_model(uri, name, await_registration_for=0)
    client.update_model_version(name, made.version, description)
    return str(made.version)


def publish(
    client: MlflowClient,
    name: str,
    trained: artifact.TrainedModel,
    artifact_name: str,
    short: str,
    *,
    champion: str | None = None,
    wanted: bool = True,
    parent_run: str | None = None,
) -> dict[str, Any]:
    """Log a model to the active run, register it, make it champion where nothing forbids it.

    short: the result in a few signs. champion: the version that was it when the work began.
    parent_run: the run that it must be of. An interruption waits from registering on. Returns
    verdict (in words, beginning with "promoted" or "kept champion"), promoted, version, model_uri.
    """
    uri, reason = artifact.log_model(trained, artifact_name), trained.card["result"]
    about = report.model_card(trained.card, trained.preprocessor.schema, heading=False)
    with cli.uninterrupted():
        result = escape_markdown(translate(reason))[:MOST]
        version = register(client, name, uri, f"{result}\n\n{about}")
        promoted, forbidden = False, ""
        champion_run = client.get_model_version(name, champion).run_id if champion else None
        if wanted and champion and parent_run not in (None, champion_run):
            forbidden = f"the parent is not the champion, version {champion}; "
        elif wanted and not champion and parent_run and version != "1":
            forbidden = "there is no champion, which --approve or --promote always makes; "
        elif wanted and not (promoted := promote(client, name, version, champion)):
            forbidden = "another version is champion; "
        word = "promoted" if promoted else "kept champion"
        verdict = f"{word}, {forbidden}{reason}"
        told, title = escape_markdown(translate(verdict))[:MOST], f"{word.split()[0]}: {short}"
        client.update_model_version(name, version, f"{told}.\n\n{about}")
        tags = {"verdict": word, "mlflow.note.content": told, "mlflow.runName": translate(title)}
        mlflow.set_tags(tags)
    return {"verdict": verdict, "promoted": promoted, "version": version, "model_uri": uri}


@contextlib.contextmanager
def registry_lock(client: MlflowClient, name: str, wait: float = 20.0) -> Iterator[None]:
    """Hold a lock that every client of the registry respects, whatever machine it runs on.

    Registered model names are unique in every MLflow store, so creating one is the atomic step. A
    lock older than `wait` seconds belongs to a process that died, and is removed.
    """
    lock, deadline = f"{name}.promotion-lock", time.monotonic() + 3 * wait
    while True:
        try:
            client.create_registered_model(lock)
            break
        except MlflowException:  # held by another process, or the database is busy
            if time.monotonic() > deadline:
                raise
        with contextlib.suppress(MlflowException):
            if time.time() - client.get_registered_model(lock).creation_timestamp / 1000 > wait:
                client.delete_registered_model(lock)
        time.sleep(0.1)
    try:
        yield
    finally:
        with contextlib.suppress(MlflowException):
            client.delete_registered_model(lock)


def promote(client: MlflowClient, name: str, new: str, expected: str | None) -> bool:
    """Make version `new` champion; return False, changing nothing, if `expected` is it no more."""
    with registry_lock(client, name):
        current = champion_version(client, name)
        if current == expected:
            _move(client, name, new, current, "promoted")
    return current == expected


def appoint(client: MlflowClient, name: str, version: str | None = None) -> tuple[str, str | None]:
    """Make `version`, or `@previous`, champion: (new, the one before, if any), or UserError."""
    with registry_lock(client, name):
        current, quoted = champion_version(client, name), name.replace("'", "''")
        new = version or champion_version(client, name, PREVIOUS) or ""
        known = client.search_model_versions(f"name = '{quoted}'", max_results=10_000)
        if version and version not in {str(each.version) for each in known} - {current}:
            what = "is champion already" if version == current else "does not exist"
            raise UserError(
                f"version {version} of {name!r} {what}; expected another: see 'mlflow ui'"
            )
        if not version and (not new or current in (None, new)):
            raise UserError(
                f"there is nothing to go back to: {name!r} has not two different versions as "
                f"@{CHAMPION} and @{PREVIOUS}; see 'mlflow ui', then --approve the one you want"
            )
        _move(client, name, new, current, "approved" if version else "rolled back")
    return new, current


def history(client: MlflowClient, name: str) -> list[str]:
    """List who became champion when and how, oldest first."""
    return client.get_registered_model(name).tags.get(HISTORY, "").splitlines()


def _move(client: MlflowClient, name: str, new: str, current: str | None, how: str) -> None:
    """Move both aliases and write down that they moved."""
    if current is not None:  # first: a crash in between must not lose the way back
        client.set_registered_model_alias(name, PREVIOUS, current)
    client.set_registered_model_alias(name, CHAMPION, new)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lines = history(client, name)
    if lines and current not in (None, lines[-1].split()[2]):
        lines.append(f"{when} version {current} found as champion, moved by hand")
    lines = [*lines, f"{when} version {new} {how}"][-LONGEST_HISTORY:]
    client.set_registered_model_tag(name, HISTORY, "\n".join(lines))
    # A version's description begins with its result.
    result = (client.get_model_version(name, new).description or "").partition("\n\n")[0]
    latest = "\n".join(f"- {translate(line)}" for line in reversed(lines[-10:]))
    title, then = translate(f"Champion: version {new}"), translate("Who was champion when:")
    page = f"**{title}** ({translate(how)}).\n\n{result}\n\n{then}\n\n{latest}"
    client.update_registered_model(name, page)
