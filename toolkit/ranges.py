"""Ranges around predictions, from the errors on held-out rows that a model keeps in its card.

Split-conformal prediction (Papadopoulos et al. 2002): a new row lies within its range as often as
was asked for, if it comes from the population of the held-out rows. A copy of this file travels
inside every model.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import UserError

KEPT = "held_out_errors"  # entry of a model's card
MOST = 4_000  # held-out rows; more would hardly move a quantile
MANY = 200  # held-out rows; with fewer, equally wide ranges did better on public tables
BINS, ROWS_PER_BIN = 10, 20
SMALLEST = 0.1  # of all difficulties, as a share of the mean error


def keep(prediction: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    """Return what `around` needs of held-out rows, arrays of shape (n_rows,), for a model's card.

    Of many rows an even choice is kept.
    """
    step = math.ceil(len(y) / MOST)
    prediction, y = np.asarray(prediction, float)[::step], np.asarray(y, float)[::step]
    return {"prediction": prediction.tolist(), "error": np.abs(y - prediction).tolist()}


def around(
    card: Mapping[str, Any], prediction: np.ndarray, level: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high of ranges that hold a share `level` of rows, of shape (n_rows,).

    Where many rows are kept, errors are divided by how difficult a row of such a prediction is
    (Papadopoulos et al. 2008), as measured on the other half of the rows. Ranges stay within the
    target's bounds, and are these bounds where too few rows are kept for the level.
    Raises UserError for a level that is no share, and a card without errors.
    """
    if not 0 < level < 1:
        raise UserError(f"interval={level!r} was passed; expected a share such as 0.9")
    if KEPT not in card:
        raise UserError(
            "the model keeps no errors of held-out rows, so it has no ranges; expected one that "
            "was trained since there are: train it again, or ask for no interval"
        )
    predicted, errors = (np.array(card[KEPT][name]) for name in ("prediction", "error"))
    scores, difficulty, half = errors.copy(), np.ones(len(prediction)), np.arange(len(errors)) % 2
    if len(errors) >= MANY:
        difficulty = _difficulty(predicted, errors, prediction)
        for own in (half == 0, half == 1):
            scores[own] /= _difficulty(predicted[~own], errors[~own], predicted[own])
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    width = difficulty * (np.sort(scores)[rank - 1] if rank <= len(scores) else math.inf)
    bounds = card["scale"]["low"], card["scale"]["high"]
    return np.clip(prediction - width, *bounds), np.clip(prediction + width, *bounds)


def _difficulty(predicted: np.ndarray, errors: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Give predictions `asked` the mean error, piecewise linear between bins of equal size."""
    order = np.argsort(predicted, kind="stable")
    bins = np.array_split(order, min(BINS, len(order) // ROWS_PER_BIN))
    smallest = SMALLEST * errors.mean() or 1.0
    means = [max(errors[each].mean(), smallest) for each in bins]
    return np.interp(asked, [predicted[each].mean() for each in bins], means)


def inside(card: Mapping[str, Any], prediction: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tell which targets lie within 90 % ranges, bool of shape (n_rows,)."""
    low, high = around(card, prediction)
    return (low <= y) & (y <= high)
