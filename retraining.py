"""From a trained model and new rows to a retrained one, its controls and the evidence.

Belongs here: what retraining does to rows and networks. Not here: MLflow, files, words for the
terminal; statistics are in `comparison.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

import comparison
import model_utils
import streaming
import tabular
from comparison import PARENT, RETRAINED
from memory import (
    GENERATION,
    HELD_OUT,
    PRIORITY,
    TRAIN,
    Memory,
    Roles,
    assign_roles,
    contained,
    draw,
    remember,
)
from model_store import TrainedModel
from model_utils import Checkpoint, Fit, model_predict
from streaming import DiskRows

CONTROL, SCRATCH, MEAN = "control", "scratch", "mean"


@dataclass(frozen=True)
class Rows:
    """Hold the rows of a retraining: those that train, and the held-out ones by generation.

    table: all rows of the file, or a sample of both roles where they are in `stream`. new: the
    training rows in the table; again: which of them trained an ancestor before. replay: the
    parent's remembered training rows that are not in the file. held_out: "new" and, where the
    parent remembers any, "old". All tables are conformed and hold the target too.
    """

    table: pd.DataFrame
    hashes: np.ndarray
    roles: Roles
    new: pd.DataFrame
    again: np.ndarray
    replay: pd.DataFrame
    held_out: dict[str, pd.DataFrame]
    notes: list[str]
    stream: streaming.Stream | None = None


def prepare_rows(
    parent: TrainedModel,
    data: str,
    *,
    test_size: float,
    seed: int,
    replay: int | None = None,
    memory_rows: int = 0,
    folder: Path | None = None,
    report: streaming.Report = streaming.silent,
) -> Rows:
    """Read new rows, check them against the parent's columns and give each its role.

    `replay` bounds the remembered training rows that are trained on again (None: all of them).
    With a `folder` the rows are read in chunks; the table then holds a sample, `memory_rows` at
    least.

    Raises UserError for rows that the parent cannot be retrained on.
    """
    schema, stream = parent.schema, None
    options: dict[str, Any] = {"test_size": test_size, "seed": seed, "source": data}
    if folder:
        source = streaming.Source(data, folder, report)
        hashes, notes = source.hashes(schema, strict=bool(parent.card)), source.notes
        roles = assign_roles(hashes, parent.memory, **options)
        train, held_out = _sample(parent, hashes, roles, memory_rows, seed)
        stream, table = source.survey(schema, roles.train, np.union1d(train, held_out))
    else:
        raw, notes = tabular.read_rows(data)
        y = tabular.check_target(raw, schema.target, data)
        table = tabular.conform(raw, schema, source=data, strict=bool(parent.card))
        hashes = tabular.row_hashes(table, y)
        table = table.assign(**{schema.target: y})
        roles = assign_roles(hashes, parent.memory, **options)
        train, held_out = roles.train, roles.held_out
    for name in schema.features:
        if table[name].isna().all():
            raise tabular.UserError(
                f"column {name!r} of {data} is empty in every row; expected values: fill it"
            )
    if tabular.is_ours(parent.preprocessor):
        tabular.check_categories(table, parent.preprocessor, data)
    parts = {"new": table.loc[held_out]}
    if len(parent.memory.part(HELD_OUT)):
        parts["old"] = parent.memory.part(HELD_OUT)
    again = contained(hashes[train], parent.memory.hashes(TRAIN))
    old = _replayed(parent, hashes, table.columns, replay)
    return Rows(table, hashes, roles, table.loc[train], again, old, parts, notes, stream)


def _sample(
    parent: TrainedModel, hashes: np.ndarray, roles: Roles, memory_rows: int, seed: int
) -> list[np.ndarray]:
    """Choose the rows of each role that come into memory: those to remember, or as many others."""
    limit = max(memory_rows, streaming.SAMPLE_ROWS)
    generation = next_generation(parent)
    drawn = draw(hashes, roles, parent.memory, generation=generation, limit=limit, seed=seed)
    chosen = []
    for role, numbers in ((TRAIN, roles.train), (HELD_OUT, roles.held_out)):
        known = drawn[role][0]
        # Rows seen before are not drawn again, but they are trained on and scored all the same.
        few = len(known) < limit and len(known) < len(numbers)
        rng = np.random.default_rng(seed)
        others = rng.choice(numbers, min(limit, len(numbers)), replace=False) if few else known
        chosen.append(np.union1d(known, others))
    return chosen


def _replayed(
    parent: TrainedModel, hashes: np.ndarray, columns: pd.Index, limit: int | None
) -> pd.DataFrame:
    """Choose the remembered training rows to train on again."""
    remembered, target = parent.memory.part(TRAIN), parent.schema.target
    if not len(remembered):
        return pd.DataFrame(columns=columns)
    # The smallest priorities are a random sample.
    chosen = remembered[PRIORITY].rank(method="first") <= (np.inf if limit is None else limit)
    old = remembered.loc[chosen, columns]
    # Rows that stand in the new file too must not count twice.
    old_hashes = tabular.row_hashes(old[[*parent.schema.features]], old[target])
    return old[~contained(old_hashes, hashes)]


@dataclass(frozen=True)
class Start:
    """Hold a copy of the parent ready to be trained: the child and its rows as numbers."""

    child: TrainedModel
    X: np.ndarray | DiskRows
    y: np.ndarray | None
    mean: float
    new_categories: dict[str, list[str]]
    predictions: dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Retrained:
    """Hold the retrained model, how it was fitted, and every model's held-out predictions."""

    model: TrainedModel
    fit: Fit
    predictions: dict[str, dict[str, np.ndarray]]
    new_categories: dict[str, list[str]]


def prepare_child(
    parent: TrainedModel, rows: Rows, *, learning_rate: float, batch_size: int, seed: int = 0
) -> Start:
    """Copy the parent, wide enough for new categories, and compile its training.

    The parent's own predictions are taken first: a foreign network is not copied but trained on.
    """
    predictions = {part: {PARENT: _predict(parent, table)} for part, table in rows.held_out.items()}
    X: Any
    y = None
    if rows.stream:
        child, new_categories, X, mean = _start_on_disk(
            parent, rows, rows.stream, learning_rate, batch_size, seed
        )
    else:
        together = pd.concat([part for part in (rows.replay, rows.new) if len(part)])
        y = together[parent.schema.target].to_numpy()
        child, new_categories = _copy_of(parent, together, y, learning_rate)
        X, mean = tabular.encode(together, child.preprocessor), y.mean()
    model_utils.compile_ahead(child.network, X, y, batch_size)
    return Start(child, X, y, mean, new_categories, predictions)


def _start_on_disk(
    parent: TrainedModel,
    rows: Rows,
    stream: streaming.Stream,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> tuple[TrainedModel, dict[str, list[str]], DiskRows, float]:
    """Do as `prepare_child` for rows that do not fit in memory."""
    totals, y_old = stream.totals, rows.replay[parent.schema.target].to_numpy(np.float64)
    totals.add(rows.replay, y_old)
    extremes = [totals.low, totals.high]
    child, new_categories = _copy_of(parent, totals.levels(), extremes, learning_rate)
    before = tabular.encode(rows.replay, child.preprocessor), y_old
    X = stream.encode(parent.schema, child.preprocessor, batch_size, seed, before)
    return child, new_categories, X, float(totals.target.mean_[0])


def retrain(
    parent: TrainedModel,
    rows: Rows,
    start: Start,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    memory_rows: int,
    controls: bool = True,
    checkpoint: Checkpoint | None = None,
) -> Retrained:
    """Train the child on new rows and replayed old ones, and the controls beside it.

    The controls answer what else could have brought the gain: `control` is the parent trained for
    as many updates on old rows only, `scratch` a fresh network on all rows. All of them share one
    network object, and with it one compiled program; only their weights differ.
    """
    child, network = start.child, start.child.network
    beginning = model_utils.model_state(network)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    fit = model_utils.fit_network(
        network,
        start.X,
        start.y,
        epochs=epochs,
        strengths=_strengths(parent),
        validate_on=range(len(rows.replay), len(start.X)),
        checkpoint=checkpoint,
        **options,
    )
    end = model_utils.model_state(network)
    _add_predictions(start.predictions, RETRAINED, child, rows)
    if controls:
        options["callbacks"] = checkpoint.watchers if checkpoint else []
        _train_controls(parent, rows, start, beginning, epochs, options)
    for part, table in rows.held_out.items():
        start.predictions[part][MEAN] = np.full(len(table), start.mean)
    model_utils.restore_state(network, end)
    child.memory, child.card = _remember(parent, rows, seed, memory_rows)
    return Retrained(child, fit, start.predictions, start.new_categories)


def _train_controls(
    parent: TrainedModel,
    rows: Rows,
    start: Start,
    beginning: list[np.ndarray],
    epochs: int,
    options: dict[str, Any],
) -> None:
    """Train the controls in the child's network, and add their predictions."""
    child, network = start.child, start.child.network
    n_old = len(rows.replay) + int(rows.again.sum())
    if n_old >= options["batch_size"]:
        updates = epochs * -(-len(start.X) // options["batch_size"])
        as_many = max(1, round(updates / -(-n_old // options["batch_size"])))
        model_utils.restore_state(network, beginning)
        model_utils.train_at(network, epochs=as_many, **_old_rows(start, rows), **options)
        _add_predictions(start.predictions, CONTROL, child, rows)
    if parent.scale:
        fresh = model_utils.create_nn_model(
            start.X.shape[1], scale=child.scale, seed=options["seed"]
        )
        model_utils.restore_state(network, model_utils.model_state(fresh))
        model_utils.train_at(network, start.X, start.y, epochs=epochs, **options)
        _add_predictions(start.predictions, SCRATCH, child, rows)


def _old_rows(start: Start, rows: Rows) -> dict:
    """Give `train_model` the rows that an ancestor was trained on, and no others."""
    if rows.stream is None:
        n_replayed = len(rows.replay)
        again = n_replayed + np.flatnonzero(rows.again)
        return {"X": start.X, "y": start.y, "rows": np.concatenate([np.arange(n_replayed), again])}
    old = pd.concat([rows.replay, rows.new[rows.again]])
    y = old[start.child.schema.target].to_numpy(np.float64)
    return {"X": tabular.encode(old, start.child.preprocessor), "y": y}


def _strengths(parent: TrainedModel) -> tuple[float, ...]:
    """Try the weight decay that suited the parent and its neighbours; a foreign one as it is."""
    present = parent.network.optimizer.weight_decay if parent.network.compiled else None
    return (present / 3, present, present * 3) if parent.scale and present else (present or 0.0,)


def _copy_of(
    parent: TrainedModel, rows: pd.DataFrame, y: ArrayLike, learning_rate: float
) -> tuple[TrainedModel, dict[str, list[str]]]:
    """Copy a parent, made wide enough for new categories; a foreign network is taken as it is.

    rows hold every category of the training rows, y their lowest and highest target.
    """
    schema = parent.schema
    new_categories: dict[str, list[str]] = {}
    network, preprocessor, scale = parent.network, parent.preprocessor, parent.scale
    if scale:
        preprocessor, new_categories = tabular.widen_preprocessor(preprocessor, rows, schema)
        scale = model_utils.rescaled(scale, y)
        width = network.input_shape[-1] + sum(map(len, new_categories.values()))
        network = model_utils.widen_network(network, width, scale, learning_rate)
    elif not network.compiled:
        network.compile(keras.optimizers.AdamW(learning_rate), loss="mse")
    return TrainedModel(network, preprocessor, schema, scale), new_categories


def _predict(model: TrainedModel, table: pd.DataFrame) -> np.ndarray:
    return model_predict(model.network, tabular.encode(table, model.preprocessor))


def _add_predictions(predictions: dict, name: str, model: TrainedModel, rows: Rows) -> None:
    for part, table in rows.held_out.items():
        predictions[part][name] = _predict(model, table)


def next_generation(parent: TrainedModel) -> int:
    """Number the next training of a chain; the first one is 0."""
    return 1 + max((step["generation"] for step in parent.card.get("lineage", [])), default=0)


def _remember(parent: TrainedModel, rows: Rows, seed: int, limit: int) -> tuple[Memory, dict]:
    lineage, generation = parent.card.get("lineage", []), next_generation(parent)
    memory = remember(
        parent.memory,
        rows.table,
        rows.hashes,
        rows.roles,
        generation=generation,
        limit=limit,
        seed=seed,
    )
    step = {"generation": generation, **rows.roles.counts}
    return memory, {"lineage": [*lineage, step], "unit": parent.card.get("unit", "")}


# --- evidence ----------------------------------------------------------------------------------


def measure_drift(
    parent: TrainedModel, rows: Rows
) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """Compare the parent's remembered training rows with the new ones; (drift, bounds) tables.

    (None, None) when the parent remembers no row.
    """
    reference, schema = parent.memory.part(TRAIN), parent.schema
    if not len(reference):
        return None, None
    drift = comparison.drift(reference, rows.new, schema.kinds, target=schema.target)
    scale = parent.scale
    bounds = comparison.bounds_share(
        reference[schema.target],
        rows.new[schema.target],
        scale.low if scale else None,
        scale.high if scale else None,
    )
    return drift, bounds


def looks_worthwhile(parent: TrainedModel, rows: Rows, drift: pd.DataFrame) -> str:
    """Say whether a retraining looks worthwhile, before any training."""
    errors = {
        part: np.abs(_predict(parent, table) - table[parent.schema.target].to_numpy())
        for part, table in rows.held_out.items()
    }
    unit = parent.card.get("unit", "")
    return comparison.worthwhile(drift, errors.get("old"), errors["new"], unit)[1]


def gather_evidence(
    parent: TrainedModel, rows: Rows, retrained: Retrained, max_forgetting: float
) -> comparison.Evidence:
    """Put everything that the verdict rests on into one object."""
    target, unit = parent.schema.target, parent.card.get("unit", "")
    held_out, caveats = {}, []
    for part, table in rows.held_out.items():
        y = table[target].to_numpy()
        held_out[part] = comparison.evaluate(y, retrained.predictions[part])
        if part == "old":
            held_out |= _by_generation(table, y, retrained.predictions[part])
    new, old = held_out["new"], held_out.get("old")
    old_mae = old.scores.loc[PARENT, "MAE"] if old else None
    verdict = comparison.decide(
        new.change, old.change if old else None, old_mae, max_forgetting, unit
    )
    y_new, predictions = rows.held_out["new"][target].to_numpy(), retrained.predictions["new"]
    attribution = None
    if CONTROL in predictions:
        models = (predictions[PARENT], predictions[CONTROL], predictions[RETRAINED])
        attribution = comparison.attribution(y_new, *models, unit)
    drift, bounds = measure_drift(parent, rows)
    groups = comparison.groups(
        rows.held_out["new"],
        parent.schema.categorical,
        y_new,
        predictions[PARENT],
        predictions[RETRAINED],
    )
    if rows.roles.counts["trained_on_before"]:
        caveats.append(
            f"{rows.roles.counts['trained_on_before']} rows of the file had trained an ancestor"
        )
    return comparison.Evidence(
        verdict=verdict,
        held_out=held_out,
        unit=unit,
        attribution=attribution,
        purity=_purity(parent, rows),
        drift=drift,
        bounds=bounds,
        groups=groups if len(groups) else None,
        caveats=caveats,
    )


def _by_generation(table: pd.DataFrame, y: np.ndarray, predictions: dict) -> dict:
    """Score the old rows of each generation apart, once there are several."""
    generations = sorted(table[GENERATION].unique())
    if len(generations) < 2:
        return {}
    parts = {}
    for generation in generations:
        mask = (table[GENERATION] == generation).to_numpy()
        chosen = {name: values[mask] for name, values in predictions.items()}
        parts[f"generation_{generation}"] = comparison.evaluate(y[mask], chosen)
    return parts


def _purity(parent: TrainedModel, rows: Rows) -> dict[str, int]:
    """Count the rows by role, and the held-out rows, of any ancestor, among those trained on."""
    trained = pd.concat([part for part in (rows.replay, rows.new) if len(part)])
    features = trained[[*parent.schema.features]]
    hashes = tabular.row_hashes(features, trained[parent.schema.target])
    if rows.stream:  # of which the table is but a sample
        hashes = np.concatenate([hashes, rows.hashes[rows.roles.train]])
    held_out = np.concatenate([parent.memory.hashes(HELD_OUT), rows.hashes[rows.roles.held_out]])
    return rows.roles.counts | {
        "replayed": len(rows.replay),
        "held_out_in_all_generations": len(np.unique(held_out)),
        "held_out_but_trained_on": int(contained(hashes, held_out).sum()),
    }


# --- words -------------------------------------------------------------------------------------


def headline(evidence: comparison.Evidence) -> str:
    """Say in one line what the retraining did to the MAE on new and on old rows."""
    parts = []
    for part in ("new", "old"):
        if part in evidence.held_out:
            change = comparison.format_interval(evidence.held_out[part].change, evidence.unit)
            parts.append(f"MAE on {part} rows {change}")
    return "; ".join(parts)


def short_result(evidence: comparison.Evidence) -> str:
    """Say the change in MAE in few signs, for the name of a run."""
    changes = {part: held_out.change.estimate for part, held_out in evidence.held_out.items()}
    new = comparison.format_amount(changes["new"], evidence.unit, signed=True)
    if "old" not in changes:
        return new
    return f"{new} (old {comparison.format_amount(changes['old'], evidence.unit, signed=True)})"


def score_table(evidence: comparison.Evidence) -> tuple[list[str], list[list[str]]]:
    """Lay out the scores of all models on all held-out rows: (header, lines)."""
    header = ["same held-out rows"]
    lines: dict[str, list[str]] = {}
    for part, held_out in evidence.held_out.items():
        header += [f"{part} MAE", f"{part} R²"]
        for model, scores in held_out.scores.iterrows():
            cells = [comparison.format_amount(scores["MAE"], evidence.unit), f"{scores['R²']:.3f}"]
            lines.setdefault(model, []).extend(cells)
    return header, [[model, *cells] for model, cells in lines.items()]


def note(evidence: comparison.Evidence, verdict: str, parent_link: str) -> str:
    """Write the run's description, Markdown: verdict first, since the rest is folded away."""
    header, lines = score_table(evidence)
    cells = [[comparison.escape_markdown(cell) for cell in line] for line in (header, *lines)]
    table = [cells[0], ["---"] * len(header), *cells[1:]]
    rows = ["| " + " | ".join(cells) + " |" for cells in table]
    sentence = evidence.attribution.sentence if evidence.attribution else ""
    sentence = comparison.escape_markdown(sentence)
    text = [f"**{comparison.escape_markdown(verdict)}**", "\n".join(rows), sentence]
    where = f"Continues {parent_link}. The whole proof: `report.md` and `figures/` under Artifacts."
    return "\n\n".join([*text, where])
