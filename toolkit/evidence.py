"""What a retraining found: measured, told, and logged.

Belongs here: how rows and predictions become the evidence of a verdict. The statistics themselves
are in `comparison.py` and `drift.py`, the words of the report in `report.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput

from . import cli, comparison, drift, encoding, figures, report, roles, tracking
from .artifact import TrainedModel
from .columns import Schema
from .report import Evidence
from .roles import RetrainingRows
from .words import format_amount, safe_cells

Predictions = Mapping[str, Mapping[str, np.ndarray]]  # by part of the held-out rows, by model


def look(
    terminal: cli.Terminal, data: str, parent: TrainedModel, rows: RetrainingRows
) -> tuple[Evidence, np.ndarray]:
    """Score the parent on the file's new rows, measure drift, look for signs of a broken file.

    Prints what was found. Returns (evidence, what the parent predicts for the file's new rows).
    """
    schema, unit = parent.preprocessor.schema, parent.card.get("unit", "")
    target, kinds = schema.target.name, schema.kinds
    y = rows.file[target].to_numpy()
    prediction = encoding.predict(parent.network, parent.preprocessor.transform(rows.file))
    error = float(np.abs(y - prediction).mean())
    terminal.say(
        f"parent {parent.uri}: its MAE on the {len(y):,} new rows of {data}, before any training "
        f"on them, is {format_amount(error, unit)}"
    )
    evidence = Evidence(unit=unit, prequential=error, prequential_rows=len(y))
    reference = rows.remembered
    lines = ["drift: unknown, the parent remembers no training row"]
    if len(reference):
        evidence = replace(
            evidence,
            drift=drift.drift(reference, rows.file, kinds, target),
            bounds=drift.bounds_share(reference[target], y),
            findings=drift.suspicious(reference, rows.file, kinds, target),
        )
        lines = drift.drift_summary(evidence.drift, evidence.bounds)
        lines += [f"suspicious: {finding}" for finding in evidence.findings]
    for line in lines:
        terminal.say(line)
    return evidence, prediction


def as_json(parent: TrainedModel, evidence: Evidence) -> dict[str, Any]:
    """Return what was found before any training, for `--json`."""
    drifted = [] if evidence.drift is None else evidence.drift.to_dict("records")
    return {
        "parent_model_uri": parent.uri,
        "prequential_MAE": evidence.prequential,
        "drift": drifted,
        "findings": list(evidence.findings),
    }


def weigh(
    settings: Any,
    role: roles.Roles,
    rows: RetrainingRows,
    schema: Schema,
    predictions: Predictions,
    evidence: Evidence,
    whole: np.ndarray,
) -> Evidence:
    """Compare both models on the same held-out rows and reach a verdict.

    predictions: of every model, by part of the held-out rows; whole: the parent's for the file's
    new rows, made before any training.
    """
    target, unit = schema.target.name, evidence.unit
    y = {part: table[target].to_numpy() for part, table in rows.held_out.items()}
    labels = {part: roles.blocks_of_rows(table, role) for part, table in rows.held_out.items()}
    held_out = {part: comparison.evaluate(y[part], predictions[part], labels[part]) for part in y}
    new, findings = predictions["new"], list(evidence.findings)
    if "old" in y:
        before = (y["old"], predictions["old"])
        both = (rows.file[target], whole)
        findings += comparison.lost_skill(y["new"], new, *before, whole=both, groups=labels["new"])
    verdict = comparison.decide(
        held_out["new"],
        held_out.get("old"),
        max_forgetting=settings.max_forgetting,
        promote=settings.promote,
        findings=findings,
        unit=unit,
    )
    return replace(
        evidence,
        verdict=verdict,
        held_out=held_out,
        attribution=_attribution(y["new"], new, unit, labels["new"]),
        groups=_groups(rows.held_out["new"], schema, new),
        leakage=rows.counts,
        caveats=_caveats(schema, role),
    )


def _attribution(y: np.ndarray, new: Mapping[str, np.ndarray], unit: str, labels: Any) -> Any:
    if "control" not in new:
        return None
    models = (new["parent"], new["control"], new["retrained"])
    return comparison.attribution(y, *models, unit, labels)


def _groups(table: pd.DataFrame, schema: Schema, new: Mapping[str, np.ndarray]) -> Any:
    categorical = [name for name, kind in schema.kinds.items() if kind == "categorical"]
    if not categorical:
        return None
    y = table[schema.target.name].to_numpy()
    return comparison.groups(table, categorical, y, new["parent"], new["retrained"])


def _caveats(schema: Schema, role: roles.Roles) -> list[str]:
    """Say what the way of holding rows out leaves open."""
    dates = [name for name, kind in schema.kinds.items() if kind == "date"]
    if not dates or role.time:
        return []
    return [
        f"Rows were held out at random, whatever their {dates[0]}: a model is judged on days that "
        f"it partly knows. A first training with --time {dates[0]} holds out the latest."
    ]


def log_inputs(
    client: MlflowClient, run_id: str, settings: Any, parent: TrainedModel, rows: RetrainingRows
) -> None:
    """Log settings, parent and datasets, before training starts."""
    tracking.log_settings(client, run_id, settings, parent=parent.uri)
    if parent.model_id:
        client.log_inputs(run_id, models=[LoggedModelInput(parent.model_id)])
    parts = {"training": rows.train[rows.new], "replay": rows.train[~rows.new]}
    parts |= {f"held-out {name}": table for name, table in rows.held_out.items()}
    target = parent.preprocessor.schema.target.name
    for context, table in parts.items():
        if len(table):
            tracking.log_rows(roles.own_columns(table), target, settings.data, context)


def log_evidence(
    client: MlflowClient,
    run_id: str,
    curves: Mapping[str, list[float]],
    y_new: np.ndarray,
    predictions: Predictions,
    evidence: Evidence,
) -> dict[str, float]:
    """Log metrics, curves, figures, tables and the report; return the metrics."""
    metrics, unit = report.metrics(evidence), evidence.unit
    named = {f"epoch/{name}": list(values) for name, values in curves.items()}
    tracking.log_numbers(client, run_id, metrics, named, step=len(curves["final_loss"]))
    shown = {name: predictions["new"][name] for name in ("parent", "retrained")}
    pictures = {
        "before_after": figures.before_after(evidence.held_out, unit),
        "learning_curve": figures.learning_curve(curves),
        "predicted_against_actual": figures.predicted_against_actual(y_new, shown, unit),
    }
    files = {"report.md": report.to_markdown(report.sections(evidence))}
    if evidence.groups is not None:
        pictures["error_per_group"] = figures.error_per_group(evidence.groups, unit)
        files["groups.csv"] = safe_cells(evidence.groups).to_csv(index=False)
    if evidence.drift is not None:
        pictures["drift"] = figures.drift_figure(evidence.drift)
        files["drift.csv"] = safe_cells(evidence.drift).to_csv(index=False)
    tracking.log_figures(pictures)
    tracking.log_files(files)
    return metrics


def print_scores(terminal: cli.Terminal, evidence: Evidence) -> None:
    """Print every model's scores on the same held-out rows, and what the comparison says."""
    terminal.say()
    terminal.table(*report.score_table(evidence), bold="retrained")
    terminal.say()
    for name, held in evidence.held_out.items():
        terminal.say(f"retrained − parent: {report.change(name, held, evidence.unit)}")
    if evidence.attribution:
        terminal.say(evidence.attribution.sentence)
