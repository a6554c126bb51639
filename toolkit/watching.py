"""Watching a model on a file, with or without its target: does a retraining look worthwhile?

Belongs here: the error that cannot be measured yet, estimated, and the runs that keep it.
"""

import re
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor

from . import cli, report, tracking
from .artifact import TrainedModel
from .comparison import Interval, paired_interval
from .evidence import as_json, predict
from .report import Evidence
from .words import format_amount, format_interval

MOST, TREES, LEAF = 5_000, 100, 10  # rows of a forest at most, trees, rows in each leaf at least
FEATURES = "features_sha256"  # tag
UNKNOWN = Interval(np.nan, np.nan, np.nan)


def estimate(
    parent: TrainedModel, held_out: pd.DataFrame | None, file: pd.DataFrame
) -> tuple[Interval, float]:
    """Estimate the MAE on a file, whose target may be absent, from the errors on held-out rows.

    A forest learns the error from the network's inputs and its prediction. Its trees, each of a
    bootstrap sample of the held-out rows, spread as the estimate does; to this comes the noise of
    the file's own errors. Returns (estimate with its 95 % interval, the MAE on the held-out rows);
    all is NaN where few of these are remembered.
    """
    if held_out is None or len(held_out) < 2 * LEAF:
        return UNKNOWN, np.nan
    (X, errors), (X_file, _) = (_sample(parent, table) for table in (held_out, file))
    forest = _learn(X, np.abs(errors))
    means = [tree.predict(X_file.astype(np.float32)).mean() for tree in forest.estimators_]
    noise = np.var(np.abs(errors) - forest.oob_prediction_) / len(file)
    mean, width = float(np.mean(means)), 1.96 * float(np.sqrt(np.var(means) + noise))
    return Interval(mean, max(0.0, mean - width), mean + width), float(np.abs(errors).mean())


def reducible(parent: TrainedModel, file: pd.DataFrame) -> Interval:
    """Estimate by how much the MAE on a file would change once its errors were learnt.

    A forest learns the signed errors; each row is corrected by the trees that did not see it.
    """
    X, errors = _sample(parent, file)
    if len(X) < 2 * LEAF:
        return UNKNOWN
    left = errors - _learn(X, errors).oob_prediction_
    return paired_interval(np.abs(left) - np.abs(errors))


def _sample(parent: TrainedModel, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs, the prediction among them, and signed errors (or NaN) of MOST rows at most."""
    table = table[:: len(table) // MOST + 1]
    prediction, target = predict(parent, table), parent.preprocessor.schema.target.name
    X = np.column_stack([parent.preprocessor.transform(table), prediction])
    return X, table.get(target, pd.Series(np.nan, table.index)).to_numpy() - prediction


def _learn(X: np.ndarray, y: np.ndarray) -> RandomForestRegressor:
    """Fit a random forest (Breiman 2001) that also predicts each row by the trees without it."""
    options = {"min_samples_leaf": LEAF, "max_features": 1 / 3, "oob_score": True}
    return RandomForestRegressor(TREES, random_state=0, **options).fit(X, y)


def judge(work: Any, found: Evidence) -> tuple[bool, str, Interval]:
    """Tell whether a retraining looks worthwhile, in words too; add the estimated MAE.

    It does where the MAE is estimated above that on held-out rows. With the target: where it is
    above what was estimated, or where learning its errors is proven to lower it.
    """
    file, unit = work.rows.file, found.unit
    expected, usual = estimate(work.parent, work.rows.held_out.get("old"), file)
    low, high = (format_amount(bound) for bound in (expected.low, expected.high))
    told = f"estimated at {format_amount(expected.estimate, unit)} ({low} to {high})"
    told += f", on held-out rows {format_amount(usual, unit)}"
    good = expected.low > usual
    if found.prequential is not None:
        gain = reducible(work.parent, file)
        good = gain.high < 0 or found.prequential > expected.high
        told = f"{format_amount(found.prequential, unit)}, {told}"
        told += f"; learning its errors would change it by {format_interval(gain, unit)}"
    good = good and not found.findings
    word = "looks worthwhile" if good else "is not worthwhile yet"
    why = "the file looks broken" if found.findings else f"the MAE is {told}"
    return good, f"a retraining {word}: {why}", expected


def watch(work: Any, terminal: cli.Terminal, found: Evidence) -> bool:
    """Say whether a retraining looks worthwhile, and log that, errors and drift as a run.

    work: of mlflow_retrain.py. Returns whether it does.
    """
    good, told, expected = judge(work, found)
    terminal.say(told)
    numbers = report.metrics(found) | {"estimated/MAE": expected.estimate}
    numbers |= {"estimated/MAE_low": expected.low, "estimated/MAE_high": expected.high}
    for line in [] if found.drift is None else found.drift.to_dict("records"):
        name = re.sub(r"[^\w -]", "_", line["column"])[:200]  # what MLflow takes
        numbers[f"drift/{name}"] = line["distance"]
    numbers = {name: value for name, value in numbers.items() if np.isfinite(value)}
    parent = work.parent
    tags = {"phase": "monitoring", "parent_model_uri": parent.uri, "parent_run_id": parent.run_id}
    tags |= {FEATURES: _features(work), "mlflow.note.content": told}
    with tracking.tracked_run(work.experiment, f"watch {work.settings.model_name}", tags) as run:
        run_id, more = run.info.run_id, {"parent": parent.uri, "rows": len(work.rows.file)}
        tracking.log_inputs(work.client, run_id, work.settings, "", {}, **more)
        tracking.log_numbers(work.client, run_id, numbers)
    result = as_json(parent, found) | {"metrics": numbers, "worthwhile": good}
    terminal.result(**result, verdict=told, run_id=run_id)
    return good


def check_estimate(work: Any, terminal: cli.Terminal, found: Evidence) -> None:
    """Tell whether the MAE that an earlier run estimated for these rows was right; add it."""
    wanted = f"tags.{FEATURES} = '{_features(work)}' and metrics.`estimated/MAE_high` > 0"
    wanted += f" and tags.parent_run_id = '{work.parent.run_id}'"
    for run in work.client.search_runs([work.experiment], wanted, max_results=1):
        low, high = (run.data.metrics[f"estimated/MAE_{end}"] for end in ("low", "high"))
        found.hit = low <= found.prequential <= high
        ends = f"{format_amount(low)} to {format_amount(high)}"
        terminal.say(f"the estimate from before, {ends}, was a {'hit' if found.hit else 'miss'}")


def _features(work: Any) -> str:
    """Hash the features of all rows of the file, in whatever order, with or without target."""
    names = list(work.parent.preprocessor.schema.features)
    return tracking.content_hash(work.table[names].sort_values(names))
