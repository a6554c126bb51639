"""What a retraining found: measured, told, and logged.

Belongs here: how rows and predictions become the evidence of a verdict. The statistics themselves
are in `comparison.py` and `drift.py`, the words of the report in `report.py`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput

from . import cli, comparison, drift, encoding, figures, ranges, report, roles, tracking
from .artifact import TrainedModel
from .columns import Schema
from .report import Evidence
from .roles import RetrainingRows
from .words import format_amount, format_interval, safe_cells

Predictions = Mapping[str, Mapping[str, np.ndarray]]  # by part of the held-out rows, by model


def look(
    terminal: cli.Terminal, data: str, parent: TrainedModel, rows: RetrainingRows
) -> tuple[Evidence, np.ndarray]:
    """Score the parent on the file's new rows, measure drift, look for signs of a broken file.

    Prints what was found. Returns (evidence, what the parent predicts for the file's new rows).
    """
    schema, unit = parent.preprocessor.schema, parent.card.get("unit", "")
    target, kinds = schema.target.name, schema.kinds
    y, prediction = rows.file[target].to_numpy(), predict(parent, rows.file)
    error = float(np.abs(y - prediction).mean())
    terminal.say(
        f"parent {parent.uri}: its MAE on the {len(y):,} new rows of {data}, before any training "
        f"on them, is {format_amount(error, unit)}"
    )
    steps = parent.card.get("lineage", [])
    history = {step["generation"]: step["prequential"] for step in steps if "prequential" in step}
    history[int(rows.file[roles.GENERATION].max())] = error
    found = Evidence(unit, error, len(y), history)
    lines = ["drift: unknown, the parent remembers no training row"]
    if len(rows.remembered):
        if np.isfinite(error):
            found.bounds = drift.at_bounds(rows.remembered[target], y)
            kinds = {**kinds, target: "numeric"}
        found.drift = drift.drift(rows.remembered, rows.file, kinds)
        found.findings = drift.suspicious(rows.remembered, rows.file, schema.kinds, target)
        lines = [*drift.drift_summary(found.drift), f"target: {found.bounds}"]
        lines += [f"suspicious: {finding}" for finding in found.findings]
    for line in lines:
        terminal.say(line)
    return found, prediction


def count_inside(found: Evidence, parent: TrainedModel, child: Any, rows: RetrainingRows) -> None:
    """Add to `found` which new held-out rows lie within the 90 % ranges of both models.

    Each half of the held-out rows counts by the child's errors on the other half; its card is given
    the errors on all of them.
    """
    target, n_new = parent.preprocessor.schema.target.name, len(rows.held_out["new"])
    y = np.concatenate([table[target] for table in rows.held_out.values()])
    made = np.concatenate([child.predictions[part]["retrained"] for part in rows.held_out])
    if ranges.KEPT in parent.card:
        before = child.predictions["new"]["parent"]
        found.inside["parent"] = ranges.inside(parent.card, before, y[:n_new])
    inside = np.zeros(len(y), bool)
    for half in (0, 1):
        own, others = slice(half, None, 2), slice(1 - half, None, 2)
        card = child.card | {ranges.KEPT: ranges.keep(made[others], y[others])}
        inside[own] = ranges.inside(card, made[own], y[own])
    found.inside["retrained"] = inside[:n_new]
    child.card[ranges.KEPT] = ranges.keep(made, y)


def weigh(
    settings: Any,
    role: roles.Roles,
    rows: RetrainingRows,
    schema: Schema,
    predictions: Predictions,
    evidence: Evidence,
    whole: np.ndarray,
) -> Evidence:
    """Compare both models on the same held-out rows, and add the verdict to `evidence`.

    predictions: by part of the held-out rows and model; whole: the parent's of the file's new rows.
    """
    target, new, unit = schema.target.name, predictions["new"], evidence.unit
    sure, y = comparison.confidence_of(rows.tries), {}
    for part, table in rows.held_out.items():
        y[part], labels = table[target].to_numpy(), roles.blocks_of_rows(table, role)
        options = {"groups": labels, "confidence": sure}
        evidence.held_out[part] = comparison.evaluate(y[part], predictions[part], **options)
    labels = roles.blocks_of_rows(rows.held_out["new"], role)
    findings = list(evidence.findings)
    if "old" in y:
        of_file = rows.file[target], whole
        findings += comparison.lost_skill(y, predictions, of_file, groups=labels)
    evidence.leakage = rows.counts
    evidence.verdict = comparison.decide(
        evidence.held_out["new"],
        evidence.held_out.get("old"),
        max_forgetting=settings.max_forgetting,
        promote=settings.promote,
        findings=findings,
        unit=unit,
    )
    if "control" in new:
        evidence.attribution = comparison.attribution(y["new"], new, unit, groups=labels)
    texts = [name for name, kind in schema.kinds.items() if kind == "categorical"]
    if texts:
        found = (new["parent"], new["retrained"], evidence.inside)
        evidence.groups = comparison.groups(rows.held_out["new"], texts, y["new"], *found)
    evidence.caveats = _caveats(schema, role, rows.tries)
    return evidence


def explain(
    evidence: Evidence, models: Mapping[str, Any], rows: RetrainingRows, role: roles.Roles
) -> None:
    """Measure on new held-out rows what both models rest on, and add it to `evidence`.

    `models` maps "parent" and "retrained" to what has a `network` and a `preprocessor`.
    """
    table, schema = rows.held_out["new"], models["parent"].preprocessor.schema
    y, labels = table[schema.target.name], roles.blocks_of_rows(table, role)
    predicts = {name: functools.partial(predict, model) for name, model in models.items()}
    evidence.importance = comparison.importance(predicts, table, y, schema.features, labels)
    names = [name for name in evidence.importance["column"] if table[name].notna().any()]
    shown = [name for name in names if schema.kinds[name] != "date"][:2]
    evidence.dependence = {name: comparison.dependence(predicts, table, name) for name in shown}


def predict(model: Any, rows: pd.DataFrame) -> np.ndarray:
    """Predict conformed rows by what has a `network` and a `preprocessor`."""
    return encoding.predict(model.network, model.preprocessor.transform(rows))


def _caveats(schema: Schema, role: roles.Roles, tries: int) -> list[str]:
    """Say what the way of holding rows out leaves open."""
    caveats = []
    date = next((name for name, kind in schema.kinds.items() if kind == "date"), None)
    if date and not role.time:
        caveats.append(
            f"Rows were held out at random, whatever their {date}: a model is judged on days "
            f"that it partly knows. A first training with --time {date} holds out the latest."
        )
    if tries > 1:
        caveats.append(
            f"This was try {tries} since the parent, on rows that partly judged a version before: "
            f"its intervals are wider, of {comparison.confidence_of(tries):.4g}."
        )
    return caveats


def log_inputs(
    client: MlflowClient, run_id: str, settings: Any, parent: TrainedModel, rows: RetrainingRows
) -> None:
    """Log settings, parent and datasets, before training starts."""
    if parent.model_id:
        client.log_inputs(run_id, models=[LoggedModelInput(parent.model_id)])
    parts = {"training": rows.train[rows.new], "replay": rows.train[~rows.new]}
    parts |= {f"held-out {name}": table for name, table in rows.held_out.items()}
    target = parent.preprocessor.schema.target.name
    tracking.log_inputs(client, run_id, settings, target, parts, parent=parent.uri)


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
    tracking.log_numbers(client, run_id, metrics, curves, step=len(curves["final_loss"]))
    shown = {name: predictions["new"][name] for name in ("parent", "retrained")}
    drawn: dict[Any, Any] = {
        figures.before_after: evidence.held_out,
        figures.over_generations: evidence.history if len(evidence.history) > 1 else None,
        figures.importance: evidence.importance,
        figures.dependence: evidence.dependence or None,
        figures.error_per_group: evidence.groups,
    }
    pictures = {f.__name__: f(found, unit) for f, found in drawn.items() if found is not None}
    if evidence.drift is not None:
        pictures["drift"] = figures.drift_figure(evidence.drift)
    pictures["predicted_against_actual"] = figures.predicted_against_actual(y_new, shown, unit)
    evidence.figures = pictures | {"learning_curve": figures.learning_curve(curves)}
    tracking.log_figures(evidence.figures)
    for name in ("groups", "drift", "importance"):
        if (table := getattr(evidence, name)) is not None:
            mlflow.log_text(safe_cells(table).to_csv(index=False), f"{name}.csv")
    for name in ("report.html", "report.md"):
        mlflow.log_text(report.render(evidence, name), name)
    return metrics


def print_scores(terminal: cli.Terminal, evidence: Evidence) -> None:
    """Print every model's scores on the same held-out rows, and what the comparison says."""
    terminal.say()
    terminal.table(*report.score_table(evidence), bold="retrained")
    terminal.say()
    for part, held in evidence.held_out.items():
        change = format_interval(held.change, evidence.unit)
        terminal.say(f"retrained − parent: MAE on {part} rows {change}")
    if evidence.attribution:
        terminal.say(evidence.attribution.sentence)
