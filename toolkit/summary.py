"""How both scripts end: the verdict, where the model is, what to do next."""

import re
from collections.abc import Sequence
from typing import Any

from . import cli
from .tracking import ui_steps

STYLES = {"better": "bold green", "no_worse": "bold green", "worse": "bold yellow"}


def conclude(
    terminal: cli.Terminal,
    settings: cli.StoreSettings,
    run: Any,
    uri: str,
    version: str,
    verdict: str,
    steps: Sequence[str],
    kind: str = "better",
    **more: object,
) -> None:
    """Print the verdict in one sentence, the model, the next commands to paste.

    With `--json` all of it, and `more`, is one object.
    """
    terminal.say(verdict, STYLES.get(kind, "bold red"))
    terminal.say(f"{settings.model_name} version {version} is {uri}\n\nNext:")
    shown = [*steps, *ui_steps(settings.tracking_uri, run.experiment_id)]
    for step in shown:
        terminal.say(f"  {step}")
    addresses = [re.fullmatch(r"(?:then )?open (\S+)", step) for step in shown]
    terminal.result(
        verdict=verdict,
        model_name=settings.model_name,
        version=version,
        model_uri=uri,
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        next=[step for step, found in zip(shown, addresses, strict=True) if not found],
        url=next(found[1] for found in addresses if found),
        **more,
    )
