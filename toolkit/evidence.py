"""How rows and predictions become the evidence of a verdict: measured, told, and logged."""

import functools
from collections.abc import Mapping
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelInput

from . import cli, comparison, drift, encoding, figures, ranges, report, roles, tracking
from .artifact import TrainedModel
from .columns import Schema
from .report import Evidence
from .words import format_amount, format_interval, safe_cells

SAMPLE = 5_000  # rows
IN_SAMPLE = 0.6  # least rank correlation of a parent with rows that it was trained on


def look(
    terminal: cli.Terminal, data: str, parent: TrainedModel, rows: roles.RetrainingRows
) -> tuple[Evidence, np.ndarray]:
    """Tell the parent's error on new rows, drift and damage: (evidence, their predictions)."""
    schema, unit = parent.preprocessor.schema, parent.card.get("unit", "")
    target, measured = schema.target.name, dict(schema.kinds)
    y, prediction = rows.file[target].to_numpy(), predict(parent, rows.file)
    error = float(np.average(np.abs(y - prediction), weights=roles.weights(rows.file)))
    steps = parent.card.get("lineage", [])
    history = {step["generation"]: step["prequential"] for step in steps if "prequential" in step}
    history[int(rows.file[roles.GENERATION].max())] = error
    found = Evidence(unit, error, len(y), history)
    if np.isfinite(error):
        measured |= {target: "numeric"}
        terminal.say(
            f"parent {parent.uri}: its MAE on the {len(y):,} new rows of {data}, before any "
            f"training on them, is {format_amount(error, unit)}"
        )
    if rows.remembered.empty:
        terminal.say("drift: unknown, the parent remembers no training row")
        return found, prediction
    current = rows.file
    if parent.roles and parent.roles.group:  # of other groups, or the file would seem to drift
        current = roles.part(current, roles.TRAIN)
    found.drift = drift.drift(rows.remembered, current, measured)
    found.findings = drift.suspicious(rows.remembered, current, schema.kinds, target)
    signs = (f"suspicious: {finding}" for finding in found.findings)
    for line in (*drift.drift_summary(found.drift), *signs):
        terminal.say(line)
    return found, prediction


def weigh(work: Any, child: Any, found: Evidence, whole: np.ndarray) -> None:
    """Add to `found` what comparing both models on held-out rows shows; `whole` is of `look`."""
    rows, schema, settings = work.rows, work.parent.preprocessor.schema, work.settings
    made, held, unit, target = child.predictions, found.held_out, found.unit, schema.target.name
    y, options, sure = dict[str, Any](), dict[str, Any](), comparison.confidence_of(rows.tries)
    for part, table in rows.held_out.items():
        y[part], weights = table[target].to_numpy(), roles.weights(table)
        ways = roles.blocks_of_rows(table, work.role)
        labels = comparison.widest(y[part], made[part], ways, weights=weights)
        options[part] = {"groups": labels, "weights": weights}
        held[part] = comparison.evaluate(y[part], made[part], confidence=sure, **options[part])
    findings, of_new, new = list(found.findings), options["new"], rows.held_out["new"]
    known, least = [y, made, options], dict[str, float]()
    if "old" not in y and len(rows.remembered):  # after --refit
        known, least = _with_remembered(work, child, *known), {"least": IN_SAMPLE}
    if "old" in known[0]:
        own_y, own_made, own_options = _of_the_file(rows, *known)
        seen = rows.file[target], whole
        findings += comparison.lost_skill(own_y, own_made, seen, own_options, **least)
    limits = {"max_forgetting": settings.max_forgetting, "promote": settings.promote}
    found.verdict = comparison.decide(held["new"], held.get("old"), findings, unit, **limits)
    mlflow.set_tag("verdict_kind", found.verdict.kind)
    found.leakage, found.caveats = rows.counts, _caveats(work, found, schema)
    if "control" in made["new"]:
        found.attribution = comparison.attribution(y["new"], made["new"], unit, **of_new)
    _count_inside(found, work.parent, child, y)
    if texts := [name for name, kind in schema.kinds.items() if kind == "categorical"]:
        compared = made["new"]["parent"], made["new"]["retrained"], found.inside
        found.groups = comparison.groups(new, texts, y["new"], *compared, **of_new)
    models = {"parent": work.parent, "retrained": child}
    predicts = {name: functools.partial(predict, model) for name, model in models.items()}
    found.importance = comparison.importance(predicts, new, y["new"], schema.features, **of_new)
    names = [name for name in found.importance["column"] if new[name].notna().any()]
    shown = [name for name in names if schema.kinds[name] != "date"][:2]
    found.dependence = {name: comparison.dependence(predicts, new, name) for name in shown}


def _with_remembered(work: Any, child: Any, y: dict, made: dict, options: dict) -> list[dict]:
    """Return what is known by part of rows, with rows that the parent was trained on as old."""
    table = roles.smallest(work.rows.remembered, SAMPLE)
    target, new = table[work.parent.preprocessor.schema.target.name].to_numpy(), made["new"]
    found = {"parent": predict(work.parent, table), "retrained": predict(child, table)}
    found |= {name: np.full(len(table), new[name][0]) for name in ("mean", "median")}
    weighed = {"groups": None, "weights": roles.weights(table)}
    return [y | {"old": target}, made | {"old": found}, options | {"old": weighed}]


def _of_the_file(rows: roles.RetrainingRows, *by_part: Any) -> list[dict[str, Any]]:
    """Cut what is of new held-out rows to those of the file, without those of kept versions."""
    generation = rows.held_out["new"][roles.GENERATION].to_numpy()
    own = generation == generation.max()  # few, or none: then all of them have to do
    own |= own.sum() < roles.MIN_HELD_OUT or generation.max() < rows.file[roles.GENERATION].max()

    def cut(of: Any) -> Any:
        if isinstance(of, dict):
            return {name: cut(values) for name, values in of.items()}
        return of if of is None else np.asarray(of)[own]

    return [{**each, "new": cut(each["new"])} for each in by_part]


def _count_inside(
    found: Evidence, parent: TrainedModel, child: Any, targets: Mapping[str, np.ndarray]
) -> None:
    """Add which new held-out rows lie within 90 % ranges, of the child by its errors on others."""
    y, n_new, bounds = np.concatenate([*targets.values()]), len(targets["new"]), dict[str, Any]()
    made = np.concatenate([child.predictions[part]["retrained"] for part in targets])
    if ranges.KEPT in parent.card:
        bounds["parent"] = ranges.around(parent.card, child.predictions["new"]["parent"])
    low, high = bounds["retrained"] = np.empty((2, len(y)))
    for half in (0, 1):
        own, others = slice(half, None, 2), slice(1 - half, None, 2)
        card = child.card | {ranges.KEPT: ranges.keep(made[others], y[others])}
        low[own], high[own] = ranges.around(card, made[own])
    for name, (low, high) in bounds.items():
        found.inside[name] = (low[:n_new] <= y[:n_new]) & (y[:n_new] <= high[:n_new])
    child.card[ranges.KEPT] = ranges.keep(made, y)


def predict(model: Any, rows: pd.DataFrame) -> np.ndarray:
    """Predict conformed rows by what has a `network` and a `preprocessor`."""
    return encoding.predict(model.network, model.preprocessor.transform(rows))


def _caveats(work: Any, found: Evidence, schema: Schema) -> list[str]:
    """Say what the way of holding rows out leaves open."""
    rows, role, tries = work.rows, work.role, work.rows.tries
    alike = roles.alike_beside(rows.file[schema.target.name].to_numpy())
    told = [roles.repeated(work.table), "" if role.group or role.time else alike]
    caveats = [f"{text[0].upper()}{text[1:]}." for text in told if text]
    date = next((name for name, kind in schema.kinds.items() if kind == "date"), None)
    if date and not role.time:
        caveats.append(
            f"Rows were held out at random, whatever their {date}: a model is judged on days "
            f"that it partly knows. A first training with --time {date} holds out the latest."
        )
    new = found.held_out["new"].scores["MAE"]
    constants = new.filter(items=["mean", "median", "recent median"])
    if new["retrained"] >= constants.min():
        caveats.append(
            f"That the model is of use on new rows: predicting the {constants.idxmin()} for all of "
            f"them has an MAE of {format_amount(constants.min(), found.unit)}."
        )
    if tries > 1:
        level = 100 * comparison.confidence_of(tries)
        caveats.append(
            f"This was training {tries} of this line since the parent's, on rows that partly "
            f"judged a version before: its intervals are wider, of {level:.6g} %."
        )
    return caveats


def log_inputs(work: Any, run_id: str) -> None:
    """Log settings, parent and datasets, before training starts."""
    parent, rows = work.parent, work.rows
    if parent.model_id:
        work.client.log_inputs(run_id, models=[LoggedModelInput(parent.model_id)])
    parts = {"training": rows.train[rows.new], "replay": rows.train[~rows.new]}
    parts |= {f"held-out {name}": table for name, table in rows.held_out.items()}
    target = parent.preprocessor.schema.target.name
    tracking.log_inputs(work.settings, target, parts, parent=parent.uri)


def log_evidence(work: Any, child: Any, found: Evidence) -> dict[str, float]:
    """Log metrics, curves, figures, tables and the report; return the metrics."""
    metrics, unit, new = report.metrics(found), found.unit, work.rows.held_out["new"]
    tracking.log_numbers(metrics, child.curves, child.card.get("recipe"))
    drawn: dict[Any, Any] = {
        figures.before_after: found.held_out,
        figures.over_generations: found.history if len(found.history) > 1 else None,
        figures.importance: found.importance,
        figures.dependence: found.dependence or None,
        figures.error_per_group: found.groups,
    }
    pictures = {f.__name__: f(of, unit) for f, of in drawn.items() if of is not None}
    if found.drift is not None:
        pictures["drift"] = figures.drift_figure(found.drift)
    y, shown = new[child.preprocessor.schema.target.name], child.predictions["new"]
    shown = {name: shown[name] for name in ("parent", "retrained")}
    scattered = figures.predicted_against_actual(y, shown, unit, roles.weights(new))
    pictures["predicted_against_actual"] = scattered
    pictures["learning_curve"] = figures.learning_curve(child.curves)
    found.figures = {name: figures.as_svg(figure) for name, figure in pictures.items()}
    tracking.log_figures(found.figures)
    for name in ("groups", "drift", "importance"):
        if (table := getattr(found, name)) is not None:
            mlflow.log_text(safe_cells(table).to_csv(index=False), f"{name}.csv")
    log_report(found)
    return metrics


def log_report(found: Evidence) -> None:
    """Log the report as a page and as Markdown."""
    for name in ("report.html", "report.md"):
        mlflow.log_text(report.render(found, name), name)


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
