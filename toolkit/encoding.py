"""From conformed rows to the network's input, and from its output to predictions.

Belongs here: the fitted preprocessor, and how it grows for a retraining. A copy of this file
travels inside every model. Not here: how columns are recognised (`columns.py`), and training.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .columns import Schema, conform

BINS, FEW_ROWS_BINS, MANY_ROWS = 32, 16, 1_000
RARE = 10  # rows; a category of fewer shares one input with the other rare ones
MANY_LEVELS = 30  # of a column that is also encoded by the mean target of each category
MAX_LEVELS = 200  # inputs of one column; the commonest categories get their own
FOLDS = 5  # a training row never meets its own target in the mean of its category
SMOOTHING = 10.0  # rows of the overall mean that each category's mean is mixed with
YEAR = 365.2425
# Rows are scored by the block, large enough to be fast, small enough to stay in cache; the last one
# is filled up to a multiple of LANE. Both are multiples of 64 and of 3: kernels take 4, 6, 8, 16 or
# 24 rows at once, and round what is left over in another way.
BLOCK, LANE = 6_144, 192


@dataclass(frozen=True)
class Number:
    """One input that holds a number: (value - center) / scale, bent smoothly beyond low and high.

    part is "value", "missing" (1 where the value is), or a part of a date. edges, in standardised
    units, are the bins that the network lays over it (Gorishniy et al. 2022).
    """

    column: str
    part: str = "value"
    center: float = 0.0
    scale: float = 1.0
    low: float = -np.inf
    high: float = np.inf
    edges: tuple[float, ...] = ()


@dataclass(frozen=True)
class Levels:
    """One input per category of a column, 1 where the row has it.

    `other` adds one for every value that is none of the levels, `missing` one for no value.
    """

    column: str
    levels: tuple[str, ...]
    other: bool = False
    missing: bool = False

    @property
    def width(self) -> int:
        return len(self.levels) + self.other + self.missing


@dataclass(frozen=True)
class MeanTarget:
    """One input that holds the mean standardised target of the row's category.

    sums and counts, of shape (n_levels, FOLDS), are kept by fold, so that a training row is given
    the mean of the other folds (Micci-Barreca 2001, out of fold as in scikit-learn).
    """

    column: str
    levels: tuple[str, ...]
    sums: list[list[float]]
    counts: list[list[float]]


Input = Number | Levels | MeanTarget
KINDS = {kind.__name__: kind for kind in (Number, Levels, MeanTarget)}


@dataclass(frozen=True)
class Preprocessor:
    """Turn conformed rows into float32 inputs; made by `fit`, renewed by `widen`.

    latest: place in `inputs` of the first one that was measured at the latest training.
    """

    schema: Schema
    inputs: tuple[Input, ...] = ()
    latest: int = 0

    @property
    def width(self) -> int:
        """Return the number of inputs of the network."""
        return sum(getattr(each, "width", 1) for each in self.inputs)

    @property
    def first_input(self) -> int:
        """Return the number of the first network input that was measured at the latest training."""
        return sum(getattr(each, "width", 1) for each in self.inputs[: self.latest])

    @property
    def bins(self) -> list[tuple[int, tuple[float, ...]]]:
        """List (number of the input, edges of its bins) of the binned inputs."""
        return [
            (place, each.edges)
            for place, each in self._places()
            if isinstance(each, Number) and each.edges
        ]

    @property
    def bins_before_latest(self) -> int:
        """Count the bins of the inputs that were measured before the latest training."""
        return sum(len(edges) - 1 for place, edges in self.bins if place < self.first_input)

    def _places(self) -> Iterator[tuple[int, Input]]:
        start = 0
        for each in self.inputs:
            yield start, each
            start += getattr(each, "width", 1)

    @classmethod
    def fit(cls, rows: pd.DataFrame, schema: Schema, y: np.ndarray, folds: np.ndarray) -> Any:
        """Measure conformed training rows; y of shape (n_rows,), folds whole numbers below FOLDS.

        A column that never varies gets no input, so that it has no say in any prediction.
        """
        inputs: list[Input] = []
        z = (y - y.mean()) / (y.std() or 1.0)
        for name, kind in schema.kinds.items():
            if kind == "categorical":
                inputs += _fit_levels(rows[name], z, folds)
            else:
                inputs += _fit_numbers(rows[name], kind)
        return cls(schema, tuple(inputs))

    def transform(self, rows: pd.DataFrame, folds: np.ndarray | None = None) -> np.ndarray:
        """Turn conformed rows into float32 of shape (n_rows, width).

        folds: of training rows, as they were given to `fit`; None for rows to be predicted.
        """
        X = np.zeros((len(rows), self.width), dtype=np.float32)
        for start, each in self._places():
            if isinstance(each, Number):
                X[:, start] = _standardised(rows[each.column], each)
            elif isinstance(each, Levels):
                _set_levels(X[:, start : start + each.width], rows[each.column], each)
            else:
                X[:, start] = _mean_target(rows[each.column], each, folds)
        return X

    def encode(self, raw: pd.DataFrame, source: str = "the table") -> np.ndarray:
        """Turn raw rows from outside into inputs; UserError for rows that cannot be used."""
        table, _ = conform(raw, self.schema, source=source, need_target=False)
        return self.transform(table)

    def widen(
        self, rows: pd.DataFrame, y: np.ndarray, folds: np.ndarray
    ) -> tuple["Preprocessor", dict[str, list[str]]]:
        """Keep the inputs measured at the latest training, and measure all columns anew beside.

        A network with zero weights for the new inputs predicts as before; new categories, ranges
        and columns that did not vary before are among them. Arguments as of `fit`, old and new
        training rows together. Returns (preprocessor, {column: [new categories]}).
        """
        kept = self.inputs[self.latest :]
        fresh = Preprocessor.fit(rows, self.schema, y, folds).inputs
        known = {each.column: each.levels for each in kept if isinstance(each, Levels)}
        new = {
            each.column: sorted(set(each.levels) - set(known.get(each.column, ())))
            for each in fresh
            if isinstance(each, Levels)
        }
        wider = Preprocessor(self.schema, (*kept, *fresh), latest=len(kept))
        return wider, {name: levels for name, levels in new.items() if levels}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, texts and lists, for JSON."""
        inputs = [{"kind": type(each).__name__, **asdict(each)} for each in self.inputs]
        return {"schema": self.schema.to_dict(), "inputs": inputs, "latest": self.latest}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Preprocessor":
        """Build a preprocessor from what `to_dict` returned, also after a way through JSON."""
        inputs = []
        for each in content["inputs"]:
            values: dict[str, Any] = {
                k: tuple(v) if k in ("levels", "edges") else v for k, v in each.items()
            }
            inputs.append(KINDS[values.pop("kind")](**values))
        return cls(Schema.from_dict(content["schema"]), tuple(inputs), content["latest"])


# --- numbers -------------------------------------------------------------------------------------


def _parts(values: pd.Series, kind: str) -> dict[str, np.ndarray]:
    """Give the numbers that a column stands for: itself, or the parts of its dates."""
    numbers = values.to_numpy(np.float64)
    if kind == "numeric":
        return {"value": numbers}
    return {part: _date_part(numbers, part) for part in DATE_PARTS}


DATE_PARTS = ("elapsed", "year", "month", "weekday", "sine", "cosine", "hour")


def _date_part(days: np.ndarray, part: str) -> np.ndarray:
    """Take one part of days since 1970-01-01, of shape (n_rows,); missing stays NaN."""
    whole = np.floor(days)
    if part == "elapsed":
        return whole
    if part == "hour":
        return (days - whole) * 24
    if part == "weekday":
        return (whole + 3) % 7  # 1970-01-01 was a Thursday, the fourth day
    dates = whole.astype("datetime64[D]")
    years = dates.astype("datetime64[Y]")
    day_of_year = whole - years.astype("datetime64[D]").astype(np.float64)
    number = {
        "year": years.astype(np.float64) + 1970,
        "month": (dates.astype("datetime64[M]").astype(np.int64) % 12 + 1).astype(np.float64),
        "sine": np.sin(2 * np.pi * day_of_year / YEAR),
        "cosine": np.cos(2 * np.pi * day_of_year / YEAR),
    }[part]
    return np.where(np.isnan(days), np.nan, number)


def _fit_numbers(values: pd.Series, kind: str) -> list[Number]:
    found = []
    for part, numbers in _parts(values, kind).items():
        if number := _measured(str(values.name), part, numbers):
            found.append(number)
    missing = values.isna().to_numpy()
    if missing.any() and not missing.all():
        found.append(Number(str(values.name), "missing"))
    return found


def _measured(column: str, part: str, numbers: np.ndarray) -> Number | None:
    """Measure one number of training rows; None where it never varies.

    Center and scale are of values cut off one range beyond their 0.5 % quantiles, so that one
    absurd cell does not squeeze all others together.
    """
    known = numbers[np.isfinite(numbers)]
    if not len(known) or known.min() == known.max():
        return None
    low, high = np.quantile(known, [0.005, 0.995])
    reach = high - low or known.max() - known.min()
    cut = np.clip(known, low - reach, high + reach)
    center, scale = float(cut.mean()), float(cut.std()) or 1.0
    z = (cut - center) / scale
    few = len(known) < MANY_ROWS
    edges = _edges(z, FEW_ROWS_BINS if few else BINS)
    return Number(column, part, center, scale, float(z.min()), float(z.max()), edges)


def _edges(z: np.ndarray, bins: int) -> tuple[float, ...]:
    """Place edges so that bins hold equally many rows, or at each value where there are few."""
    values = np.unique(z)
    if len(values) > bins + 1:
        values = np.unique(np.quantile(z, np.linspace(0, 1, bins + 1)))
    return tuple(map(float, values)) if len(values) > 2 else ()


def _standardised(values: pd.Series, number: Number) -> np.ndarray:
    """Standardise a column; missing becomes 0, the mean; beyond the known range it saturates."""
    if number.part == "missing":
        return values.isna().to_numpy(np.float64)
    numbers = values.to_numpy(np.float64)
    if number.part != "value":
        numbers = _date_part(numbers, number.part)
    z = (numbers - number.center) / number.scale
    inside = np.clip(z, number.low, number.high)
    return np.nan_to_num(inside + np.tanh(z - inside))


# --- categories ----------------------------------------------------------------------------------


def _counts(values: pd.Series) -> pd.Series:
    """Count the categories, the commonest first, equally common ones in their order."""
    counts = values.value_counts().sort_index()
    return counts.sort_values(ascending=False, kind="stable")


def _fit_levels(values: pd.Series, z: np.ndarray, folds: np.ndarray) -> list[Input]:
    name, counts = str(values.name), _counts(values)
    missing = bool(values.isna().any())
    if len(counts) + missing < 2:
        return []
    common = counts[counts >= min(RARE, max(2, len(values) // 20))][:MAX_LEVELS]
    levels = tuple(sorted(common.index))
    found: list[Input] = [Levels(name, levels, len(levels) < len(counts), missing)]
    if len(counts) > MANY_LEVELS:
        found.append(_fit_mean_target(values, tuple(counts[counts > 1].index), z, folds))
    return [each for each in found if getattr(each, "width", 1)]


def _fit_mean_target(
    values: pd.Series, levels: tuple[str, ...], z: np.ndarray, folds: np.ndarray
) -> MeanTarget:
    codes = _codes(values, levels)
    known = codes >= 0
    cells = codes[known] * FOLDS + folds[known]
    size = len(levels) * FOLDS
    sums: Any = np.bincount(cells, z[known], size).reshape(-1, FOLDS)
    counts: Any = np.bincount(cells, np.ones(len(cells)), size).reshape(-1, FOLDS)
    return MeanTarget(str(values.name), levels, sums.tolist(), counts.tolist())


def _mean_target(values: pd.Series, encoding: MeanTarget, folds: np.ndarray | None) -> np.ndarray:
    codes = _codes(values, encoding.levels)
    known = np.flatnonzero(codes >= 0)
    sums, counts = np.array(encoding.sums), np.array(encoding.counts)
    total, number = sums.sum(axis=1)[codes[known]], counts.sum(axis=1)[codes[known]]
    if folds is not None:
        total = total - sums[codes[known], folds[known]]
        number = number - counts[codes[known], folds[known]]
    means = np.zeros(len(values))
    means[known] = total / (number + SMOOTHING)  # the overall mean of z is 0
    return means


def _set_levels(X: np.ndarray, values: pd.Series, encoding: Levels) -> None:
    codes = _codes(values, encoding.levels)
    known = np.flatnonzero(codes >= 0)
    X[known, codes[known]] = 1
    missing = values.isna().to_numpy()
    if encoding.other:
        X[(codes < 0) & ~missing, len(encoding.levels)] = 1
    if encoding.missing:
        X[missing, -1] = 1


def _codes(values: pd.Series, levels: tuple[str, ...]) -> np.ndarray:
    """Number each value by its place in `levels`; -1 for a value that is none of them."""
    text = pa.array(values, type=pa.string(), from_pandas=True)
    found = pc.index_in(text, pa.array(levels, type=pa.string()))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False)


# --- prediction ----------------------------------------------------------------------------------


def predict(network: Any, X: np.ndarray) -> np.ndarray:
    """Predict with a Keras network, float64 of shape (n_rows,), for X of shape (n_rows, n_inputs).

    A row gets the same bits alone as anywhere among a million others.
    """
    X = np.asarray(X, dtype=np.float32)
    predictions = np.empty(len(X))
    for start in range(0, len(X), BLOCK):
        block = X[start : start + BLOCK]
        filled = np.pad(block, ((0, -len(block) % LANE), (0, 0)))
        output = np.asarray(network.predict_on_batch(filled)).reshape(len(filled), -1)
        predictions[start : start + len(block)] = output[: len(block), 0]
    return predictions
