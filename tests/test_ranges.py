"""Claims about ranges.py: ranges hold what was asked of them, and never leave the known bounds."""

import json

import numpy as np
import pytest

from toolkit import ranges
from toolkit.errors import UserError

BOUNDS = {"low": -5.0, "high": 30.0}


def simulated(rng, n_rows, even=False):
    """Make predictions, and targets around them; the noise grows with the prediction or not."""
    prediction = rng.uniform(0, 10, n_rows)
    spread = 1.0 if even else 0.1 + 0.3 * prediction
    return prediction, prediction + spread * rng.laplace(size=n_rows)


def kept(prediction, y, bounds=BOUNDS):
    """Make the card of a model with these held-out rows, after a way through JSON."""
    return json.loads(json.dumps({ranges.KEPT: ranges.keep(prediction, y), "scale": bounds}))


def share(card, prediction, y, level=0.9):
    low, high = ranges.around(card, prediction, level)
    return np.mean((low <= y) & (y <= high))


@pytest.mark.parametrize("even", [True, False], ids=["even noise", "growing noise"])
@pytest.mark.parametrize("n_rows", [40, 199, 200, 1_500])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_share_of_new_rows_inside_is_what_was_asked_for_within_3_points(even, n_rows, level):
    rng, shares = np.random.default_rng(n_rows), []
    for _ in range(150):
        card = kept(*simulated(rng, n_rows, even), {"low": -1e9, "high": 1e9})
        shares.append(share(card, *simulated(rng, 500, even), level))
    assert abs(np.mean(shares) - level) < 0.03


def test_ranges_follow_the_noise_and_are_narrower_than_equal_ones_that_hold_as_many():
    rng = np.random.default_rng(0)
    card, (prediction, y) = kept(*simulated(rng, 4_000)), simulated(rng, 4_000)
    low, high = ranges.around(card, prediction, 0.9)
    equal = np.quantile(np.abs(y - prediction), 0.9)
    assert np.mean(high - low) < 0.95 * 2 * equal
    for part in (prediction < 3, prediction > 7):
        assert abs(share(card, prediction[part], y[part]) - 0.9) < 0.03
        assert abs((np.abs(y - prediction)[part] <= equal).mean() - 0.9) > 0.05


@pytest.mark.parametrize("n_rows", [1, 5, 99, 250])
def test_no_range_leaves_the_bounds_or_is_infinite_and_too_few_rows_give_the_bounds(n_rows):
    rng = np.random.default_rng(n_rows)
    card, asked = kept(*simulated(rng, n_rows)), np.array([-5.0, 0.0, 9.9, 30.0])
    before = np.zeros(4)
    for level in (0.1, 0.5, 0.9, 0.999):
        low, high = ranges.around(card, asked, level)
        assert low.min() >= -5
        assert high.max() <= 30
        assert ((low <= asked) & (asked <= high)).all()
        assert (high - low >= before).all()
        before = high - low
    np.testing.assert_array_equal([low, high], [[-5.0] * 4, [30.0] * 4])  # 999 rows are needed


@pytest.mark.parametrize(("n_rows", "whole"), [(8, True), (9, False)])
def test_quantile_counts_the_row_to_come(n_rows, whole):
    # Of ten rows in any order the largest error is the last one's once in ten times: 9 are enough.
    errors = np.arange(1.0, n_rows + 1)
    card = kept(np.zeros(n_rows), errors, {"low": -99.0, "high": 99.0})
    low, high = ranges.around(card, np.zeros(1), 0.9)
    assert (low[0], high[0]) == ((-99, 99) if whole else (-9, 9))


def test_many_rows_are_kept_as_an_even_choice_and_perfect_predictions_give_points():
    rng = np.random.default_rng(1)
    chosen = ranges.keep(*simulated(rng, 50_000))
    assert 3_000 < len(chosen["error"]) == len(chosen["prediction"]) <= ranges.MOST
    exact = np.linspace(0, 1, 300)
    low, high = ranges.around(kept(exact, exact), exact)
    np.testing.assert_array_equal([low, high], [exact, exact])


def test_model_without_errors_is_one_line():
    with pytest.raises(UserError, match="and a model that keeps"):
        ranges.around({"scale": BOUNDS}, np.zeros(1))


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 90, float("nan")])
def test_share_that_is_none_is_one_line(level):
    card = kept(*simulated(np.random.default_rng(0), 30))
    with pytest.raises(UserError, match="expected a share such as"):
        ranges.around(card, np.zeros(1), level)


def test_range_holds_its_own_prediction_also_beyond_the_bounds():
    card = kept(*simulated(np.random.default_rng(0), 300))
    predicted = np.array([-9.0, 5.0, 40.0])
    low, high = ranges.around(card, predicted)
    assert (low <= predicted).all()
    assert (predicted <= high).all()
    assert (low[1:].min(), high[:2].max()) >= (-5.0, 5.0)
