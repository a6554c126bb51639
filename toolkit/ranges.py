"""Ranges around predictions, from the errors on held-out rows that a model keeps.

Split-conformal prediction (Papadopoulos et al. 2002): a new row lies within the range as often as
was asked for, where it comes from the same population as the held-out rows. A copy of this file
travels inside every model.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .errors import UserError

KEPT = "held_out_errors"  # entry of a model's card
MOST = 4_000  # held-out rows; more would hardly move a quantile
MANY = 200  # held-out rows; with fewer, equally wide ranges did better on public tables
BINS, ROWS_PER_BIN = 10, 20
SMALLEST = 0.1  # of all difficulties, as a share of the mean error
LEVEL = 0.9  # of the ranges that a report counts


def keep(prediction: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    """Return what `Ranges` needs of held-out rows, arrays of shape (n_rows,), for a model's card.

    Of many rows an even choice is kept.
    """
    step = math.ceil(len(y) / MOST)
    prediction, y = np.asarray(prediction, float)[::step], np.asarray(y, float)[::step]
    return {"prediction": prediction.tolist(), "error": np.abs(y - prediction).tolist()}


class Ranges:
    """Give ranges around a model's predictions; `card` is what its `card.json` holds.

    Where many rows are kept, errors are divided by how difficult a row of such a prediction is
    (Papadopoulos et al. 2008). For the quantile that is measured on the other half of the rows, so
    that all of them count (cross-conformal, Vovk 2015).
    Raises UserError for a model without held-out errors, or bounds of its target.
    """

    def __init__(self, card: Mapping[str, Any]) -> None:
        if KEPT not in card or "scale" not in card:
            raise UserError(
                "the model keeps no errors of held-out rows, so it has no ranges; expected one "
                "that was trained since there are: train it again, or ask for no interval"
            )
        predicted, errors = (np.array(card[KEPT][name]) for name in ("prediction", "error"))
        self.low, self.high = float(card["scale"]["low"]), float(card["scale"]["high"])
        self.difficulty: Callable[[np.ndarray], np.ndarray] = np.ones_like
        scores, half = [errors], np.arange(len(errors)) % 2
        if len(errors) >= MANY:
            self.difficulty = _difficulty(predicted, errors)
            scores = [
                errors[own] / _difficulty(predicted[~own], errors[~own])(predicted[own])
                for own in (half == 0, half == 1)
            ]
        self.scores = np.sort(np.concatenate(scores))

    def hold(self, prediction: np.ndarray, y: np.ndarray, level: float = LEVEL) -> np.ndarray:
        """Tell which targets lie within their range, bool of shape (n_rows,)."""
        low, high = self.around(prediction, level)
        return np.asarray((low <= y) & (y <= high))

    def around(self, prediction: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Return low and high of ranges that hold a share `level` of rows, above 0 and below 1.

        They stay within the target's bounds, and are these bounds where too few rows were kept.
        """
        if not 0 < level < 1:
            raise UserError(f"interval={level!r} was passed; expected a share such as 0.9")
        rank = math.ceil((len(self.scores) + 1) * level - 1e-9)
        score = self.scores[rank - 1] if rank <= len(self.scores) else math.inf
        width = score * self.difficulty(prediction)
        return (
            np.clip(prediction - width, self.low, self.high),
            np.clip(prediction + width, self.low, self.high),
        )


def _difficulty(predicted: np.ndarray, errors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Measure the mean error, piecewise linear between bins of equally many predictions."""
    order = np.argsort(predicted, kind="stable")
    bins = np.array_split(order, min(BINS, len(order) // ROWS_PER_BIN))
    smallest = SMALLEST * errors.mean() or 1.0
    places = [predicted[each].mean() for each in bins]
    means = [max(errors[each].mean(), smallest) for each in bins]
    return lambda prediction: np.interp(prediction, places, means)
