"""From conformed rows to the network's input, and from its output to predictions.

A copy of this file travels inside every model.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api import types

from .columns import Schema, conform
from .errors import UserError

BINS, FEW_ROWS_BINS, MANY_ROWS = 32, 16, 1_000
MANY_VALUES, COMMON = 128, 40  # of fewer whole numbers, most in so many rows, each has its bin
RARE = 10  # rows; a category of fewer shares one input with the other rare ones
MANY_LEVELS = 30  # of a column that is also encoded by the mean target of each category, or code
REPEATS = 3  # rows; numbers may be codes where at least half of them stand in as many
MAX_LEVELS = 200  # inputs of one column; the commonest categories get their own
FOLDS = 5  # a training row never meets its own target in the mean of its category
SMOOTHINGS = 0.1, 1_000.0  # rows of another mean that each category's mean is mixed with
YEAR = 365.2425
PARTS: dict[str, Any] = {  # of days since 1970-01-01: what is seen of a date
    "elapsed": np.floor,
    "year": lambda days: _dates(days).year,
    "month": lambda days: _dates(days).month,
    "weekday": lambda days: _dates(days).day_of_week,
    "sine": lambda days: np.sin(2 * np.pi * (_dates(days).day_of_year - 1) / YEAR),
    "cosine": lambda days: np.cos(2 * np.pi * (_dates(days).day_of_year - 1) / YEAR),
    "hour": lambda days: (days - np.floor(days)) * 24,
}
# Rows are scored by the block, large enough to be fast, small enough to stay in cache; the last one
# is filled up to a multiple of LANE. Both are multiples of 64 and of 3: kernels take 4, 6, 8, 16 or
# 24 rows at once, and round what is left over in another way: no row's bits depend on the others.
BLOCK, LANE = 6_144, 192


@dataclass(frozen=True)
class Input:
    """One input of the network: what it holds of a column.

    part is "value" or one of PARTS: (number - center) / scale, bent smoothly beyond the first and
    last of the edges, in standardised units; more than two are of bins that the network lays over
    it (Gorishniy et al. 2022). Or it is a mark, 1 or 0: "missing"; "level", the row is of this
    level; "other", of none that has an input. Or "mean", the mean standardised target of the row's
    level, one of levels: sums and counts, of shape (n_levels, FOLDS), are kept by fold, so that a
    training row is given that of the other folds (Micci-Barreca 2001, out of fold). `smoothing`
    rows of the overall mean are mixed in, the more the less categories differ.
    """

    column: str
    part: str
    level: str = ""
    center: float = 0.0
    scale: float = 1.0
    edges: list[float] = field(default_factory=list)
    levels: list = field(default_factory=list)
    sums: list[list[float]] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)
    smoothing: float = 0.0


@dataclass(frozen=True)
class Preprocessor:
    """Turn conformed rows into float32 inputs, from `first_input` on of the latest training."""

    schema: Schema
    inputs: tuple[Input, ...] = ()
    first_input: int = 0

    @property
    def width(self) -> int:
        """Return the number of inputs of the network."""
        return len(self.inputs)

    @property
    def bins(self) -> list[tuple[int, list[float]]]:
        """List (number of the input, edges of its bins) of the binned inputs."""
        return [(number, each.edges) for number, each in enumerate(self.inputs) if each.edges[2:]]

    @cached_property  # a server asks at each request
    def categories(self) -> dict[str, set[str]]:
        """Map the columns of categories to those that have an input or a mean of their own."""
        kinds, found = self.schema.kinds, dict[str, set[str]]()
        for each in self.inputs:
            if kinds[each.column] == "categorical":
                found.setdefault(each.column, set()).update({each.level, *each.levels} - {""})
        return found

    @classmethod
    def fit(
        cls, rows: pd.DataFrame, schema: Schema, y: np.ndarray, folds: np.ndarray
    ) -> "Preprocessor":
        """Measure training rows; y, folds of shape (n_rows,). What never varies gets no input."""
        inputs: list[Input] = []
        z = (y - y.mean()) / (y.std() or 1.0)
        for name, kind in schema.kinds.items():
            values, counts = rows[name], rows[name].value_counts()
            missing = [Input(name, "missing")] if 0 < counts.sum() < len(values) else []
            if kind != "categorical":
                inputs += [*_fit_numbers(values, kind), *missing]
            elif len(counts) + len(missing) > 1:
                inputs += [*_fit_levels(counts, len(values)), *missing]
            many = kind == "categorical" and len(counts) > MANY_LEVELS and counts.iloc[0] > 1
            if many or (kind == "numeric" and _are_codes(values, counts, z, folds)):
                inputs.append(_fit_mean(values, counts[counts > 1].index.tolist(), z, folds))
        return cls(schema, tuple(inputs))

    def transform(self, rows: pd.DataFrame, folds: np.ndarray | None = None) -> np.ndarray:
        """Turn conformed rows into float32 (n_rows, width); training rows need their folds."""
        X = np.empty((len(rows), self.width), dtype=np.float32)
        runs = groupby(enumerate(self.inputs), lambda i: (i[0] < self.first_input, i[1].column))
        for (_, name), run in runs:
            inputs = dict(run)
            levels = [each.level for each in inputs.values() if each.part == "level"]
            codes = _codes(rows[name], levels) if levels else np.full(len(rows), -1)
            for place, (number, each) in enumerate(inputs.items()):
                if each.part == "level":  # those of a column come first
                    X[:, number] = codes == place
                elif each.part == "missing":
                    X[:, number] = rows[name].isna()
                elif each.part == "other":
                    X[:, number] = (codes < 0) & rows[name].notna()
                elif each.part == "mean":
                    X[:, number] = _mean_target(rows[name], each, folds)
                else:
                    X[:, number] = _standardised(rows[name], each)
        return X

    def encode(
        self, raw: pd.DataFrame, note: Callable[[str], Any] = warnings.warn, **how: Any
    ) -> np.ndarray:
        """Turn raw rows into inputs; options and errors are those of `conform`.

        `note` is told of columns of which no category is known, or some in other capitals.
        """
        rows, _ = conform(raw, self.schema, need_target=False, **how)
        for name, known in self.categories.items():
            if name in raw and types.is_any_real_numeric_dtype(raw[name]):
                rows[name] = _by_value(rows[name], known)
            unknown = {*rows[name].dropna().unique()} - known
            plain = {text.casefold() for text in known} if unknown else known
            respelt = [text for text in unknown if text.casefold() in plain]
            one, other = (", ".join(map(repr, sorted(s)[:3])) for s in (respelt or unknown, known))
            if respelt:
                note(f"column {name!r} holds {one}, not known in this spelling, where {other} were")
            elif known and unknown and not rows[name].isin(known).any():
                note(f"column {name!r} holds no category that is known: {one}, where {other} were")
        return self.transform(rows)

    def widen(
        self, rows: pd.DataFrame, y: np.ndarray, folds: np.ndarray
    ) -> tuple["Preprocessor", dict[str, list[str]]]:
        """Keep the inputs measured at the latest training, and measure all columns anew beside.

        A network with zero weights for the new inputs predicts as before. Arguments as of `fit`,
        old and new rows together. Returns (preprocessor, {column: [new categories]}).
        """
        kept = self.inputs[self.first_input :]
        fresh = Preprocessor.fit(rows, self.schema, y, folds).inputs
        known, new = {(each.column, each.level) for each in kept}, dict[str, list[str]]()
        for each in fresh:
            if each.part == "level" and (each.column, each.level) not in known:
                new.setdefault(each.column, []).append(each.level)
        return Preprocessor(self.schema, (*kept, *fresh), len(kept)), new

    def without(
        self, rows: pd.DataFrame, y: np.ndarray, folds: np.ndarray, unknown: np.ndarray
    ) -> "Preprocessor":
        """Forget the targets of `unknown` rows, bool of shape (n_rows,), in mean targets.

        Those of the latest fit alone, whose arguments the others are; all inputs keep their places.
        """
        z, left = (y - y.mean()) / (y.std() or 1.0), ~unknown
        inputs = list(self.inputs)
        for number, each in enumerate(inputs):
            if each.part == "mean" and number >= self.first_input:
                values = rows[each.column][left]
                inputs[number] = _fit_mean(values, each.levels, z[left], folds[left])
        return Preprocessor(self.schema, tuple(inputs), self.first_input)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Preprocessor":
        """Build a preprocessor from its `dataclasses.asdict`, also after a way through JSON."""
        inputs = tuple(Input(**each) for each in content["inputs"])
        return cls(Schema.from_dict(content["schema"]), inputs, content["first_input"])


def _by_value(cells: pd.Series, known: set[str]) -> pd.Series:
    """Give numbers the category of their value, 0111 for 111; UserError where there are several."""
    levels: dict[float, list[str]] = {}
    for level in sorted(known):
        with suppress(ValueError):
            levels.setdefault(float(level), []).append(level)
    found = {text: levels.get(float(text), [text]) for text in cells.dropna().unique()}
    for text, several in found.items():
        if len(several) > 1:
            raise UserError(
                f"column {cells.name!r} holds the number {text}, which may be any of "
                f"{', '.join(map(repr, several))}; expected text: send JSON with texts"
            )
    return cells.map({text: level for text, (level,) in found.items()}).astype("str")


def _dates(days: np.ndarray) -> pd.DatetimeIndex:
    days = np.floor(days).clip(-1e8, 1e8)  # pandas counts no more years than these
    return pd.DatetimeIndex(days.astype("datetime64[D]").astype("datetime64[s]"))


def _part(values: pd.Series, part: str) -> np.ndarray:
    """Take what an input holds of numbers or dates; missing stays NaN."""
    numbers = values.to_numpy(np.float64)
    return numbers if part == "value" else np.asarray(PARTS[part](numbers), np.float64)


def _fit_numbers(values: pd.Series, kind: str) -> list[Input]:
    """Measure the parts of a column that vary.

    Values are cut off one range beyond their 0.5 % quantiles, so that one absurd cell does not
    squeeze all others. Bins hold equally many rows, or lie at each value where there are few, or
    where they are whole numbers and common: a code, of a school say, means nothing but itself.
    """
    found = []
    for part in ("value",) if kind == "numeric" else PARTS:
        numbers = _part(values, part)
        known = numbers[np.isfinite(numbers)]
        if not len(known) or known.min() == known.max():
            continue
        low, high = np.quantile(known, [0.005, 0.995])
        reach = high - low or np.ptp(known)
        cut = np.clip(known, low - reach, high + reach)
        center, scale = float(cut.mean()), float(cut.std()) or 1.0
        z = (cut - center) / scale
        n_bins = FEW_ROWS_BINS if len(known) < MANY_ROWS else BINS
        edges, n_rows = np.unique(z, return_counts=True)
        are_common = len(edges) <= MANY_VALUES and np.median(n_rows) >= COMMON
        are_codes = are_common and not (known % 1).any()
        if len(edges) > n_bins + 1 and not are_codes:
            edges = np.unique(np.quantile(z, np.linspace(0, 1, n_bins + 1)))
        found.append(Input(str(values.name), part, "", center, scale, edges.tolist()))
    return found


def _standardised(values: pd.Series, fitted: Input) -> np.ndarray:
    """Standardise numbers; missing becomes 0, the mean; beyond the known range they saturate."""
    z = (_part(values, fitted.part) - fitted.center) / fitted.scale
    inside = np.clip(z, fitted.edges[0], fitted.edges[-1])
    return np.nan_to_num(inside + np.tanh(z - inside))


def _fit_levels(counts: pd.Series, n_rows: int) -> list[Input]:
    """Give common categories an input each, and all others one together; `counts` by category."""
    name = str(counts.index.name)
    common = counts.sort_index().sort_values(ascending=False, kind="stable")[:MAX_LEVELS]
    common = common[common >= min(RARE, max(2, n_rows // 20))]
    found = [Input(name, "level", level) for level in sorted(common.index)]
    return [*found, Input(name, "other")] if len(common) < len(counts) else found


def _are_codes(values: pd.Series, counts: pd.Series, z: np.ndarray, folds: np.ndarray) -> bool:
    """Tell whether whole numbers are codes, of schools say: neighbours are not alike.

    They are where the mean target of the same number, on rows of other folds, has a lower squared
    error than that of all numbers in its bin: by 1 %, and by twice the standard error.
    """
    if len(counts) <= MANY_LEVELS or (counts.index % 1).any() or counts.median() < REPEATS:
        return False
    known = values.notna().to_numpy()
    values, z, folds = values[known], z[known], folds[known]
    n_bins = FEW_ROWS_BINS if len(values) < MANY_ROWS else BINS
    places = np.searchsorted(np.sort(values), values) * n_bins // len(values)
    bins = pd.Series(places, dtype=np.float64)
    near = replace(_fit_mean(bins, bins.unique().tolist(), z, folds), smoothing=1.0)
    near_mean = _mean_target(bins, near, folds)
    own = _fit_mean(values, counts.index.tolist(), z, folds)
    own_mean = _mean_target(values, own, folds, prior=near_mean)
    gains = np.square(z - near_mean) - np.square(z - own_mean)
    chance = 2 * gains.std() / math.sqrt(len(z))
    return bool(gains.mean() > max(chance, 0.01 * np.square(z - near_mean).mean()))


def _fit_mean(values: pd.Series, levels: list, z: np.ndarray, folds: np.ndarray) -> Input:
    codes = _codes(values, levels)
    known, shape = codes >= 0, (len(levels), FOLDS)
    cells = codes[known] * FOLDS + folds[known]
    sums = np.bincount(cells, z[known], math.prod(shape)).reshape(shape)
    n_rows = np.bincount(cells, None, math.prod(shape)).reshape(shape)
    smoothing = _smoothing(z[known], sums.sum(axis=1), n_rows.sum(axis=1))
    parts: dict[str, Any] = {"sums": sums.tolist(), "counts": n_rows.tolist()}
    return Input(str(values.name), "mean", levels=levels, smoothing=smoothing, **parts)


def _smoothing(z: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> float:
    """Divide the variance within levels by that between them (Buehlmann & Straub 1970)."""
    sums, counts = sums[counts > 0], counts[counts > 0]
    free, n_rows, means = len(counts) - 1, len(z), sums / counts
    within = (np.square(z).sum() - (sums * means).sum()) / max(1, n_rows - len(counts))
    spread = (counts * np.square(means - sums.sum() / n_rows)).sum() - free * within
    between = spread / max(1.0, n_rows - np.square(counts).sum() / n_rows)
    return float(np.clip(within / between, *SMOOTHINGS)) if between > 0 else SMOOTHINGS[1]


def _mean_target(
    values: pd.Series,
    fitted: Input,
    folds: np.ndarray | None,
    prior: np.ndarray | float = 0.0,  # the mean of z is 0
) -> np.ndarray:
    codes = _codes(values, fitted.levels)
    known = np.flatnonzero(codes >= 0)
    sums, counts = np.array(fitted.sums)[codes[known]], np.array(fitted.counts)[codes[known]]
    if folds is not None:
        own = np.arange(len(known)), folds[known]
        sums[own] = counts[own] = 0
    means = np.zeros(len(values))
    drawn = fitted.smoothing * np.broadcast_to(prior, len(values))[known]
    means[known] = (sums.sum(axis=1) + drawn) / (counts.sum(axis=1) + fitted.smoothing)
    return means


def _codes(values: pd.Series, levels: list) -> np.ndarray:
    """Number each value by its place in `levels`; -1 for a value that is none of them."""
    kind = pa.float64() if values.dtype == np.float64 else pa.string()
    found = pc.index_in(pa.array(values, kind, from_pandas=True), pa.array(levels, kind))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False)


def predict(network: Any, X: np.ndarray) -> np.ndarray:
    """Predict with a network, float64 of shape (n_rows,), for X of shape (n_rows, n_inputs)."""
    filled = np.pad(np.asarray(X, np.float32), ((0, -len(X) % LANE), (0, 0)))
    blocks = np.split(filled, range(BLOCK, len(filled), BLOCK))
    outputs = np.concatenate([network.predict_on_batch(block) for block in blocks])
    return outputs.T.ravel()[: len(X)].astype(np.float64)  # the first output of each row
