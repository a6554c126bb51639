"""Watching a model on a file, with or without its target: does a retraining look worthwhile?"""

import hashlib
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GroupKFold, cross_val_predict

from . import cli, report, roles, tracking
from .artifact import TrainedModel
from .columns import MIN_ROWS
from .comparison import Interval, paired_interval
from .evidence import predict
from .language import translate
from .report import Evidence
from .words import escape_markdown, format_amount, format_interval

MOST, LEAF = 5_000, 10  # rows of a forest at most, rows in each of its leaves at least
FEATURES = "features_sha256"  # tag


def thinned(rows: Any) -> Any:
    """Take every so many of some rows, MOST at most."""
    return rows[:: len(rows) // MOST + 1]


def errors_of(parent: TrainedModel, table: pd.DataFrame) -> tuple[np.ndarray, ...]:
    """Return inputs and prediction for MOST rows at most; their signed errors, or NaN; weights."""
    table = thinned(table)
    prediction = predict(parent, table)
    X = np.column_stack([parent.preprocessor.transform(table), prediction])
    errors = table[parent.preprocessor.schema.target.name].to_numpy() - prediction
    return X, errors, roles.weights(table)


def forest() -> RandomForestRegressor:
    """Make a forest (Breiman 2001), each tree of which is grown on a bootstrap sample of rows."""
    options = {"min_samples_leaf": LEAF, "max_features": 1 / 3, "oob_score": True}
    return RandomForestRegressor(random_state=0, **options)


def foretold(X: np.ndarray, y: np.ndarray, blocks: np.ndarray | None) -> np.ndarray:
    """Foretell y, (n_rows,), of each row by a forest of other rows; `blocks`: of other blocks."""
    if blocks is None:
        return forest().fit(X, y).oob_prediction_
    n_blocks = len(np.unique(blocks))
    if n_blocks < 2:
        return np.zeros(len(y))
    folds = GroupKFold(min(5, n_blocks))
    return cross_val_predict(forest(), X, y, groups=blocks, cv=folds)


def estimate(
    X: np.ndarray,
    errors: np.ndarray,
    X_file: np.ndarray,
    w: np.ndarray,
    w_old: np.ndarray | None = None,
) -> Interval:
    """Estimate the MAE on a file with its 95 % interval, by a forest of the errors on other rows.

    Its trees spread as the estimate does; to this comes the noise of the file's own errors.
    w: weights of the file's rows, (n_rows_of_file,); w_old: of the others, (n_rows,).
    """
    trees, shares = forest().fit(X, np.abs(errors), w_old), w / w.sum()
    means = [tree.predict(X_file.astype(np.float32)) @ shares for tree in trees.estimators_]
    left = np.square(np.abs(errors) - trees.oob_prediction_)
    noise = np.average(left, weights=w_old) * np.square(shares).sum()
    mean, width = float(np.mean(means)), 1.96 * float(np.sqrt(np.var(means) + noise))
    return Interval(mean, max(0.0, mean - width), mean + width)


def widened(expected: Interval, lineage: list[dict[str, Any]]) -> Interval:
    """Let an estimate reach as far as the last file's error was from that on held-out rows.

    These come from files that are known; how far the next one may lie the last one tells.
    """
    surprise = lineage[-1].get("surprise", 1.0) if lineage else 1.0
    bounds = expected.low, expected.high, surprise * expected.estimate
    return Interval(expected.estimate, min(bounds), max(bounds))


def judge(work: Any, found: Evidence) -> tuple[bool | None, str, Interval]:
    """Tell whether a retraining looks worthwhile (None: unknown), in words too; add the estimate.

    It does where the MAE is estimated above that on held-out rows. With the target: where it is
    above what was estimated, or where a forest that learnt its errors is proven to lower it.
    """
    expected, usual = Interval(np.nan, np.nan, np.nan), np.nan
    X_file, own, w = errors_of(work.parent, work.rows.file)
    if "old" in work.rows.held_out:
        X, errors, w_old = errors_of(work.parent, work.rows.held_out["old"])
        w_old = w_old if np.ptp(w) else np.ones(len(w_old))  # the file may be without weights
        expected = estimate(X, errors, X_file, w, w_old)
        usual = np.average(np.abs(errors), weights=w_old)
    shown = widened(expected, work.parent.card.get("lineage", []))
    low, high = (format_amount(bound) for bound in (shown.low, shown.high))
    told = f"estimated at {format_amount(expected.estimate, found.unit)} ({low} to {high})"
    told += f", on held-out rows {format_amount(usual, found.unit)}"
    good = expected.low > usual
    if len(own) >= MIN_ROWS and np.isfinite(own).all():
        role = work.parent.roles
        blocks = roles.blocks_of_rows(work.rows.file, role)[-1] if role else None
        blocks = None if blocks is None else thinned(blocks)
        left = own - foretold(X_file, own, blocks)
        gain = paired_interval(np.abs(left) - np.abs(own), groups=blocks, weights=w)
        mae = np.average(np.abs(own), weights=w)
        good = gain.high < 0 or (mae > expected.high and gain.low <= 0)
        told = f"{format_amount(mae, found.unit)}, {told}"
        told += f"; learning its errors would change it by {format_interval(gain, found.unit)}"
    good = bool(good) and not found.findings
    if np.isnan(usual) and np.isnan(own).all() and not found.findings:
        told = "no row is held out to estimate the error by"
        return None, f"whether a retraining is worthwhile is unknown: {told}", shown
    broken = f"the file looks broken, suspicious: {'; '.join(found.findings)}"
    told = broken if found.findings else f"the MAE is {told}"
    word = "looks worthwhile" if good else "is not worthwhile yet"
    return good, f"a retraining {word}: {told}", shown


def watch(work: Any, terminal: cli.Terminal, found: Evidence) -> bool | None:
    """Say and return whether a retraining looks worthwhile; log that, errors and drift as a run."""
    (good, told, expected), parent = judge(work, found), work.parent
    terminal.say(told)
    metrics = report.metrics(found) | {"estimated/MAE": expected.estimate}
    metrics |= {"estimated/MAE_low": expected.low, "estimated/MAE_high": expected.high}
    drifted = [] if found.drift is None else found.drift.to_dict("records")
    for line in drifted:
        name = re.sub(r"[^\w -]", "_", line["column"])[:200]  # what MLflow takes
        metrics[f"drift/{name}"] = line["distance"]
    metrics = {name: value for name, value in metrics.items() if np.isfinite(value)}
    tags = {"phase": "monitoring", "parent_model_uri": parent.uri, "parent_run_id": parent.run_id}
    tags |= {FEATURES: _features(work), "mlflow.note.content": escape_markdown(translate(told))}
    with tracking.tracked_run(work.experiment, f"watch {work.settings.model_name}", tags) as run:
        tracking.log_inputs(work.settings, "", {}, parent=parent.uri)
        tracking.log_numbers(metrics, {})
    found.verdict = replace(found.verdict, reason=told)
    report.write(found, work.settings.report)
    facts = {"parent_model_uri": parent.uri, "drift": drifted, "findings": list(found.findings)}
    facts |= {"prequential_MAE": found.prequential, "metrics": metrics, "run_id": run.info.run_id}
    terminal.result(verdict=told, worthwhile=good, **facts)
    return good


def check_estimate(work: Any, terminal: cli.Terminal, found: Evidence) -> None:
    """Tell whether the MAE that an earlier run estimated for these rows was right; add it."""
    if work.rows.seen_before:  # without the target, rows are not known: that was of all rows
        return
    wanted = f"tags.{FEATURES} = '{_features(work)}' and metrics.`estimated/MAE_high` > 0"
    wanted += f" and tags.parent_run_id = '{work.parent.run_id}'"
    for run in work.client.search_runs([work.experiment], wanted, max_results=1):
        low, high = (run.data.metrics[f"estimated/MAE_{end}"] for end in ("low", "high"))
        found.hit = low <= found.prequential <= high
        ends = f"{format_amount(low)} to {format_amount(high, found.unit)}"
        terminal.say(f"the estimate from before, {ends}, was a {'hit' if found.hit else 'miss'}")


def _features(work: Any) -> str:
    """Hash the features of all rows of the file, in whatever order."""
    hashes = roles.row_hashes(work.table[list(work.parent.preprocessor.schema.features)])
    return hashlib.sha256(np.sort(hashes).tobytes()).hexdigest()
