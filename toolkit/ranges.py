"""Ranges around predictions: split-conformal (Papadopoulos et al. 2002); travels inside models."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import UserError

KEPT = "held_out_errors"  # entry of a model's card
MOST, MANY = 4_000, 200  # rows kept; rows from which ranges of different width did better


def keep(prediction: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    """Return what a card keeps of held-out rows, given with shape (n_rows,): an even choice."""
    chosen = slice(None, None, math.ceil(len(y) / MOST))
    errors = np.abs(y - prediction)
    return {"prediction": prediction[chosen].tolist(), "error": errors[chosen].tolist()}


def around(
    card: Mapping[str, Any], prediction: np.ndarray, level: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high of ranges that hold a share `level` of rows, of shape (n_rows,).

    Errors of many rows are divided by how difficult a row of such a prediction is (Papadopoulos et
    al. 2008), by the other half of the rows. Ranges keep within the target's bounds, and hold the
    prediction, which may lie beyond.
    """
    if KEPT not in card or not 0 < level < 1:
        raise UserError(
            f"interval={level!r} was passed; expected a share such as 0.9, and a model that keeps "
            "errors of held-out rows: correct it, or train the model again"
        )
    predicted, errors = (np.array(card[KEPT][name]) for name in ("prediction", "error"))
    scores, difficulty = errors.copy(), np.ones(len(prediction))
    if len(errors) >= MANY:
        difficulty = _difficulty(predicted, errors, prediction)
        for half in (0, 1):
            own, others = slice(half, None, 2), slice(1 - half, None, 2)
            scores[own] /= _difficulty(predicted[others], errors[others], predicted[own])
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    width = difficulty * (np.sort(scores)[rank - 1] if rank <= len(scores) else math.inf)
    bounds = card["scale"]["low"], card["scale"]["high"]
    low, high = (np.clip(prediction + side * width, *bounds) for side in (-1, 1))
    return np.minimum(low, prediction), np.maximum(high, prediction)


def _difficulty(predicted: np.ndarray, errors: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Give predictions `asked` the mean error, piecewise linear between ten bins of equal size."""
    bins = np.array_split(np.argsort(predicted, kind="stable"), min(10, len(predicted) // 20))
    means = np.array([errors[each].mean() for each in bins])
    places = [predicted[each].mean() for each in bins]
    return np.interp(asked, places, np.maximum(means, 0.1 * errors.mean() or 1.0))
