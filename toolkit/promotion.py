"""From a verdict to the registry: register a child, move the champion if the verdict allows."""

from typing import Any

from mlflow import MlflowClient

from . import registry, report, tracking
from .artifact import TrainedModel
from .report import Evidence
from .words import escape_markdown


def register_and_promote(
    client: MlflowClient,
    settings: Any,
    champion: str | None,
    parent: TrainedModel,
    evidence: Evidence,
    child: TrainedModel,
    uri: str,
) -> tuple[str, str]:
    """Register the child, move `@champion` if the verdict allows, and tell so in the run.

    champion: the version that was champion when the parent was read. Returns (verdict in words,
    version).
    """
    name, reason = settings.model_name, evidence.verdict.reason
    about = report.about(child.card, child.preprocessor.schema)
    version = registry.register(client, name, uri, f"{escape_markdown(reason)}\n\n{about}")
    wanted, stands_in_the_way = evidence.verdict.promoted, ""
    if wanted and settings.promote != "always" and champion is not None:
        current = client.get_model_version(name, champion)
        if current.run_id != parent.run_id:
            stands_in_the_way = f"the parent is not the champion, version {champion}; "
    if wanted and not stands_in_the_way and not registry.promote(client, name, version, champion):
        stands_in_the_way = f"the champion changed since version {champion} was read; "
    promoted = wanted and not stands_in_the_way
    word = "promoted" if promoted else "kept champion"
    verdict = f"{word}, {stands_in_the_way}{reason}"
    client.update_model_version(name, version, f"{escape_markdown(verdict)}.\n\n{about}")
    link = tracking.link(client, parent.uri, parent.model_id)
    tags = {
        "mlflow.note.content": f"{escape_markdown(verdict)}.\n\nParent: {link}",
        "mlflow.runName": report.short_result(evidence, promoted=promoted),
        "verdict": word,
        "verdict_kind": evidence.verdict.kind,
    }
    tracking.log_numbers(client, child.card["run_id"], {}, tags=tags)
    return verdict, version
