"""Claims about comparison.py, on values worked out by hand and on simulated models."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

import comparison
from comparison import Interval

RNG = np.random.default_rng


def noisy(y, error, seed):
    """Predict `y` with independent normal errors of standard deviation `error`."""
    return y + RNG(seed).normal(0, error, len(y))


def targets(n=400, seed=0):
    return RNG(seed).uniform(500, 40_000, n)


@pytest.fixture(autouse=True)
def _no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- intervals and scores


def test_difference_of_three_rows_is_the_one_worked_out_by_hand():
    # |y - parent| = 10, 20, 30 and |y - retrained| = 5, 20, 5: differences -5, 0, -25.
    found = comparison.mae_difference([100, 200, 300], [110, 180, 330], [95, 220, 305])
    assert found.estimate == pytest.approx(-10)
    # Student's: t(0.975, 2) = 4.3027, standard deviation 13.2288, divided by the root of 3.
    assert found.low == pytest.approx(-10 - 4.3027 * 13.2288 / math.sqrt(3), abs=1e-3)
    assert found.high == pytest.approx(-10 + 4.3027 * 13.2288 / math.sqrt(3), abs=1e-3)


def test_interval_covers_zero_in_about_95_percent_of_trials_of_equally_good_models():
    covered = 0
    for trial in range(200):
        y = targets(150, trial)
        parent, child = noisy(y, 3000, 1000 + trial), noisy(y, 3000, 2000 + trial)
        found = comparison.mae_difference(y, parent, child)
        covered += found.low <= 0 <= found.high
    assert 0.90 * 200 <= covered <= 0.99 * 200


@pytest.mark.parametrize("n_rows", [5, 5000])
def test_students_interval_covers_zero_as_often_where_no_bootstrap_is_drawn(n_rows):
    rows = RNG(3).normal(size=(400, n_rows))
    intervals = [comparison.paired_interval(row) for row in rows]
    covered = np.mean([found.low <= 0 <= found.high for found in intervals])
    assert 0.90 <= covered <= 0.99


def test_bootstrap_follows_a_skewed_sample_and_its_seed():
    sample = RNG(0).exponential(size=60) ** 2
    found = comparison.paired_interval(sample)
    assert found.high - found.estimate > 1.1 * (found.estimate - found.low)
    assert found == comparison.paired_interval(sample)
    assert found != comparison.paired_interval(sample, seed=1)


def test_higher_confidence_widens_the_interval():
    for n_rows in (10, 100, 3000):
        sample = RNG(1).normal(size=n_rows)
        wide, narrow = (comparison.paired_interval(sample, confidence=c) for c in (0.99, 0.8))
        assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("n_rows", [2, 19, 20, 500, 6000])
def test_constant_difference_has_an_interval_without_width(n_rows):
    assert comparison.paired_interval(np.full(n_rows, -3.0)) == Interval(-3, -3, -3)


def test_one_row_proves_nothing():
    found = comparison.paired_interval([-3.0])
    assert (found.estimate, found.low, found.high) == (-3, -math.inf, math.inf)
    assert not comparison.decide(found, None, None).promoted


@pytest.mark.parametrize("rare", [1, -1, 1e9])
def test_almost_constant_difference_has_finite_bounds_around_the_mean(rare):
    found = comparison.paired_interval([*[0.0] * 399, rare])
    assert np.isfinite([found.low, found.high]).all()
    assert found.low <= found.estimate <= found.high


def test_bootstrap_without_result_gives_way_to_students_interval(monkeypatch):
    class Failed:
        confidence_interval = (math.nan, math.nan)

    monkeypatch.setattr("scipy.stats.bootstrap", lambda *args, **kwargs: Failed)
    found = comparison.paired_interval(np.arange(30.0))
    # t(0.975, 29) = 2.04523, standard deviation 8.80341, divided by the root of 30.
    assert found.high - 14.5 == pytest.approx(2.04523 * 8.80341 / math.sqrt(30), abs=1e-3)


@pytest.mark.parametrize(
    ("values", "received"),
    [
        ([], r"shape \(0,\)"),
        ([[1.0], [2.0]], r"shape \(2, 1\)"),
        ([1.0, math.nan], "1 not finite"),
        ([math.inf, math.nan], "2 not finite"),
    ],
)
def test_bad_rows_are_refused_with_what_was_received(values, received):
    with pytest.raises(ValueError, match=f"difference: expected finite numbers.*{received}"):
        comparison.paired_interval(values)


def test_scores_are_those_of_scikit_learn_for_every_model():
    y = targets(50)
    predictions = {"parent": noisy(y, 9, 1), "retrained": pd.Series(noisy(y, 5, 2))}
    table = comparison.compare(y, predictions)
    assert list(table.index) == ["parent", "retrained"]
    assert list(table.columns) == ["MAE", "MSE", "R²"]
    for name, prediction in predictions.items():
        expected = [score(y, prediction) for score in (mean_absolute_error, mean_squared_error)]
        assert table.loc[name].tolist() == pytest.approx([*expected, r2_score(y, prediction)])


def test_column_vector_and_unequal_lengths_are_refused_not_broadcast():
    y = targets(5)
    with pytest.raises(ValueError, match=r"parent: .*shape \(5, 1\)"):
        comparison.compare(y, {"parent": y[:, None]})
    with pytest.raises(ValueError, match=r"as many predictions as targets.*'parent': 4"):
        comparison.compare(y, {"parent": y[:4]})


def test_single_row_is_scored_without_r2():
    table = comparison.compare([3.0], {"parent": [5.0]})
    assert table.loc["parent", "MAE"] == 2
    assert math.isnan(table.loc["parent", "R²"])
    assert comparison.compare([1, 3], {"parent": [1, 2]}).loc["parent", "R²"] == 0.5


def test_evaluate_adds_the_difference_only_where_both_models_are_there():
    y = np.array([1.0, 2.0, 3.0])
    both = comparison.evaluate(y, {"parent": y + 2, "retrained": y + 1})
    assert (both.rows, both.difference) == (3, Interval(-1, -1, -1))
    assert both.change == both.difference
    alone = comparison.evaluate(y, {"parent": y})
    assert alone.difference is None
    with pytest.raises(ValueError, match="expected predictions of a parent and a retrained model"):
        _ = alone.change
    assert comparison.evaluate(y, {"retrained": y}).difference is None


# --- verdict


def judge(new_errors, old_errors, seed=0, **options):
    """Judge models whose errors (parent, retrained) have these standard deviations."""
    held = []
    for number, (parent, child) in enumerate((new_errors, old_errors)):
        y, at = targets(400, seed + number), 10 * (seed + number) + 7
        models = {"parent": noisy(y, parent, at), "retrained": noisy(y, child, at + 1)}
        held.append(comparison.evaluate(y, models))
    new, old = held
    mae = old.scores.loc["parent", "MAE"]
    return comparison.decide(new.difference, old.difference, mae, **options)


def test_planted_improvement_is_promoted():
    assert all(judge((4000, 3000), (3000, 2000), seed).promoted for seed in range(10))


def test_no_improvement_is_rarely_promoted():
    # By chance the interval lies below zero in one trial of forty.
    promoted = sum(judge((3000, 3000), (3000, 2000), seed).promoted for seed in range(40))
    assert promoted <= 4


def test_model_of_shuffled_targets_is_kept_back():
    y = targets(400)
    parent, shuffled = noisy(y, 3000, 1), noisy(RNG(2).permutation(y), 3000, 3)
    new = comparison.mae_difference(y, parent, shuffled)
    assert not comparison.decide(new, Interval(0, 0, 0), 2000).promoted


def test_forgetting_child_is_refused_and_the_reason_has_the_figures():
    verdict = judge((4000, 2000), (3000, 4500))
    assert not verdict.promoted
    assert "beyond the" in verdict.reason
    assert "on old rows +" in verdict.reason


def test_verdict_turns_at_exactly_the_allowed_forgetting():
    new = Interval(-10, -12, -8)
    assert comparison.decide(new, Interval(1, 0, 5.0), 100, 0.05).promoted
    assert not comparison.decide(new, Interval(1, 0, 5.01), 100, 0.05).promoted
    assert comparison.decide(new, Interval(1, 0, 9), 100, 0.10).promoted


def test_interval_that_touches_zero_is_no_proof():
    assert not comparison.decide(Interval(-1, -2, 0.0), Interval(0, 0, 0), 100).promoted


def test_reason_tells_both_numbers_that_carry_the_verdict():
    verdict = comparison.decide(Interval(-420, -540, -300), Interval(12, -20, 44), 2300, unit="€")
    assert verdict.reason == (
        "MAE on new rows -420 € (-540 to -300), a proven gain; "
        "on old rows +12.0 € (-20.0 to +44.0), within the 115 € allowed"
    )


def test_without_memory_new_rows_decide_and_the_missing_proof_is_named():
    for high, promoted in ((-300, True), (10, False)):
        for old, mae in ((None, None), (None, 100.0), (Interval(1, 0, 2), None)):
            verdict = comparison.decide(Interval(-420, -540, high), old, mae)
            assert verdict.promoted is promoted
            assert "forgetting could not be checked" in verdict.reason


# --- attribution


def test_gain_splits_into_more_training_and_new_data_that_add_up():
    y = np.full(5, 1000.0)
    found = comparison.attribution(y, y + 700, y + 630, y + 280, "€")
    parts = found.total, found.more_training, found.new_data
    assert [part.estimate for part in parts] == [420, 70, 350]
    assert found.sentence == (
        "of the gain of 420 €, 350 € come with the new data, 70.0 € from more training"
    )


def test_new_data_that_add_nothing_to_the_control_are_said_to_bring_nothing():
    y = targets(400)
    models = noisy(y, 5000, 1), noisy(y, 3000, 2), noisy(y, 3000, 3)
    found = comparison.attribution(y, *models)
    assert found.new_data.low < 0 < found.new_data.high
    assert found.sentence.endswith("by the new data, which is no proven gain")
    assert "come with" not in found.sentence
    assert "not proven)" not in found.sentence


def test_new_data_that_help_are_named_in_nearly_every_trial():
    named = 0
    for seed in range(20):
        y = targets(400, seed)
        models = (noisy(y, error, 100 * k + seed) for k, error in enumerate((5000, 4500, 3000)))
        named += "come with the new data" in comparison.attribution(y, *models).sentence
    assert named >= 18


def test_loss_is_called_a_loss():
    y = targets(400)
    found = comparison.attribution(y, noisy(y, 3000, 1), noisy(y, 3000, 2), noisy(y, 6000, 3))
    assert found.total.high < 0
    assert found.sentence.startswith("there is no gain but a loss of ")
    assert found.sentence.endswith("by the new data, which is no proven gain")


def test_gain_within_chance_is_called_unproven():
    y = np.zeros(40)
    parent = np.where(np.arange(40) % 2, 10.0, 0.0)
    child = np.where(np.arange(40) % 2, 0.0, 9.0)
    found = comparison.attribution(y, parent, parent, child)
    assert found.sentence.startswith("of the gain of 0.500 (itself not proven), ")


# --- drift


def column_drift(old, new, kind="numeric", **options):
    frames = (pd.DataFrame({"x": values}) for values in (old, new))
    return comparison.drift(*frames, {"x": kind}, **options).iloc[0]


def test_shift_by_one_standard_deviation_has_distance_one():
    old = RNG(0).normal(50, 7, 500)
    assert column_drift(old, old + old.std())["distance"] == pytest.approx(1)


def test_categories_moved_from_even_to_one_have_the_known_distance():
    # P = (1/2, 1/2), Q = (1, 0), M = (3/4, 1/4): divergence 0.311278 bit, its root 0.557923.
    found = column_drift(["a", "b"] * 100, ["a"] * 200, "categorical")
    assert found["distance"] == pytest.approx(0.557923, abs=1e-6)
    disjoint = column_drift(["a"] * 100, ["b"] * 100, "categorical")
    assert disjoint["distance"] == pytest.approx(1)
    assert disjoint["new_categories"] == "b"
    assert disjoint["drifted"]


def two_populations(n_old, n_new, seed, shift=0.0):
    rng = RNG(seed)
    columns = {f"n{k}": "numeric" for k in range(5)} | {f"c{k}": "categorical" for k in range(5)}
    frames = []
    for n_rows, moved in ((n_old, 0.0), (n_new, shift)):
        weights = np.array([4, 3, 2, 1 + 10 * moved])
        frame = {f"n{k}": rng.normal(moved, 1, n_rows) for k in range(5)}
        for k in range(5):
            frame[f"c{k}"] = rng.choice(list("abcd"), n_rows, p=weights / weights.sum())
        frames.append(pd.DataFrame(frame))
    return *frames, columns


def test_one_column_of_categories_is_one_test_at_the_whole_level():
    # Yates' chi-square of 20, 20 against 30, 10 is 4.32: p = 0.038, between level / 2 and level.
    old, new = (pd.DataFrame({"c": ["a"] * n + ["b"] * (40 - n)}) for n in (20, 30))
    found = comparison.drift(old, new, {"c": "categorical"}).iloc[0]
    assert found["p_value"] == pytest.approx(0.038, abs=5e-4)
    assert found["drifted"]
    beside = [frame.assign(d="x") for frame in (old, new)]
    both = comparison.drift(*beside, {"c": "categorical", "d": "categorical"})
    assert not both["drifted"].any()


def test_large_samples_of_one_distribution_do_not_drift_although_p_values_get_tiny():
    assert not comparison.drift(*two_populations(200_000, 200_000, 0))["drifted"].any()
    faint = RNG(0).normal(size=100_000)
    found = column_drift(faint, faint + 0.05)
    assert found["p_value"] < 1e-6
    assert not found["drifted"]


def test_shift_drifts_in_every_column():
    assert comparison.drift(*two_populations(1600, 1600, 1, shift=0.5))["drifted"].all()


@pytest.mark.parametrize("n_new", [3, 10, 25])
def test_tiny_samples_of_one_distribution_hardly_ever_drift(n_new):
    tables = [comparison.drift(*two_populations(400, n_new, seed)) for seed in range(20)]
    far = sum((table["distance"] > comparison.DRIFT_DISTANCE).sum() for table in tables)
    assert far > 50  # the distance alone would fire all the time
    assert sum(table["drifted"].any() for table in tables) <= 2


def test_limit_for_p_shrinks_with_the_number_of_tests():
    old, new = RNG(0).normal(size=100), RNG(1).normal(0.45, 1, 60)
    alone = column_drift(old, new)
    assert 0.05 / 40 < alone["p_value"] < 0.05 / 2
    many = {f"x{k}": "numeric" for k in range(20)}
    frames = (pd.DataFrame(dict.fromkeys(many, values)) for values in (old, new))
    assert alone["drifted"]
    assert not comparison.drift(*frames, many)["drifted"].any()


def test_many_rare_categories_do_not_drift_by_themselves():
    names = [f"street {k}" for k in range(500)]
    old, new = (RNG(seed).choice(names, 600) for seed in (0, 1))
    found = column_drift(old, new, "categorical")
    assert found["distance"] > 0.3
    assert not found["drifted"]


def test_new_category_drifts_when_frequent_even_in_few_rows():
    found = column_drift(["a", "b"] * 800, ["c"] * 20, "categorical")
    assert found["drifted"]
    constant = column_drift(["a"] * 1600, ["a"] * 10 + ["c"] * 10, "categorical")
    assert constant["drifted"]


def test_rare_categories_are_pooled_until_the_chi_square_test_may_be_trusted():
    # The pool of c to f, 4 of 200 rows, joins a, the rarer of the others.
    old = ["a"] * 50 + ["b"] * 48 + ["c", "d"]
    new = ["a"] * 40 + ["b"] * 58 + ["e", "f"]
    expected = chi2_contingency([[48, 52], [58, 42]]).pvalue
    assert column_drift(old, new, "categorical")["p_value"] == pytest.approx(expected)
    # Twelve of 200 rows are enough, six expected in each file, for a cell of their own.
    old = ["a"] * 50 + ["b"] * 40 + list("cdefghijkl")
    new = ["a"] * 40 + ["b"] * 58 + ["m", "n"]
    expected = chi2_contingency([[50, 40, 10], [40, 58, 2]]).pvalue
    assert column_drift(old, new, "categorical")["p_value"] == pytest.approx(expected)
    # Five are expected of c in each file, just enough; d joins it.
    old, new = ["a"] * 50 + ["b"] * 42 + ["c"] * 7 + ["d"], ["a"] * 50 + ["b"] * 47 + ["c"] * 3
    expected = chi2_contingency([[50, 42, 8], [50, 47, 3]]).pvalue
    assert column_drift(old, new, "categorical")["p_value"] == pytest.approx(expected)


def test_new_categories_are_listed_but_absent_values_and_number_types_are_not():
    found = column_drift(["a", "b"], ["a", "c", None, "d"], "categorical")
    assert found["new_categories"] == "c, d"
    assert (found["missing_before"], found["missing_after"]) == (0, 0.25)
    same = column_drift([0, 1] * 20, [0.0, 1.0] * 20, "categorical")
    assert (same["new_categories"], same["distance"]) == ("", 0)
    many = column_drift(["a"], [f"z{k}" for k in range(1000)], "categorical")
    assert many["new_categories"] == "z0, z1, z2, z3, z4 and 995 more"
    assert column_drift(["a"], list("bcdef"), "categorical")["new_categories"] == "b, c, d, e, f"


def test_values_that_go_missing_are_drift_of_either_kind():
    old, new = np.arange(400.0), np.where(np.arange(400) % 2, np.nan, np.arange(400.0))
    assert column_drift(old, new)["drifted"]
    texts = ["a"] * 400, ["a", None] * 200
    assert column_drift(*texts, "categorical")["drifted"]


@pytest.mark.parametrize("kind", ["numeric", "categorical"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([1.0] * 30, [1.0] * 30),
        ([np.nan] * 30, [np.nan] * 30),
        ([np.nan] * 30, [1.0] * 30),
        ([1.0] * 30, [np.nan] * 30),
        ([1.0] * 30, [2.0] * 30),
        ([1.0], [2.0]),
        ([1.0], []),
        (pd.array([1, None, 3], "Int64"), [1, 2, 3]),
        (pd.Categorical(["1", "2"]), pd.Categorical(["1", "3"])),
        ([True, False] * 9, [True] * 9),
        ([1, "1", None], ["a", 2.0, np.inf]),
    ],
)
def test_odd_columns_are_measured_or_left_open_but_never_crash(old, new, kind):
    found = column_drift(pd.Series(old), pd.Series(new), kind)
    assert isinstance(found["drifted"], bool | np.bool_)
    assert math.isnan(found["distance"]) or found["distance"] >= 0


def test_constant_column_that_jumps_drifts_and_one_that_stays_does_not():
    assert column_drift([1.0] * 30, [2.0] * 30)["drifted"]
    assert column_drift([1.0] * 30, [1.0] * 30)["distance"] == 0


def test_target_is_one_more_numeric_line_and_unknown_kinds_are_refused():
    frame = pd.DataFrame({"x": ["a"] * 9, "amount": np.arange(9.0)})
    table = comparison.drift(frame, frame, {"x": "categorical"}, target="amount")
    assert table["column"].tolist() == ["x", "amount"]
    assert table["kind"].tolist() == ["categorical", "numeric"]
    assert list(table.columns) == comparison.DRIFT_COLUMNS
    with pytest.raises(ValueError, match="'x': expected kind 'numeric' or 'categorical', got 'da"):
        comparison.drift(frame, frame, {"x": "date"})


def test_share_at_the_bounds_counts_exact_values():
    table = comparison.bounds_share([500, 500, 700, 900], [500, 900, 900, 900, 1000])
    assert table["bound"].tolist() == ["lowest", "highest"]
    assert table["value"].tolist() == [500, 900]
    assert table["before"].tolist() == [0.5, 0.25]
    assert table["after"].tolist() == [0.2, 0.6]
    assert comparison.bounds_share([1, 2], [3, 3], low=3, high=4)["after"].tolist() == [1, 0]


def test_summary_has_at_most_three_lines_of_printable_text():
    old = pd.DataFrame({"a\nb": np.zeros(50), "kind": ["x"] * 50, "quiet": 1.0})
    new = pd.DataFrame({"a\nb": np.ones(50), "kind": ["\x1b[31mred"] * 50, "quiet": 1.0})
    table = comparison.drift(old, new, {"a\nb": "numeric", "kind": "categorical"})
    lines = comparison.drift_summary(table, comparison.bounds_share([0, 1], [0, 0]))
    assert lines == [
        "drift: 2 of 2 columns: a b 2.00, kind 1.00",
        "new categories: kind ( [31mred)",
        "target: at its lowest, 0, 50.0% -> 100.0%; at its highest, 1.00, 50.0% -> 0.0%",
    ]
    calm = comparison.drift(old, old, {"quiet": "numeric"})
    assert comparison.drift_summary(calm) == ["drift: 0 of 1 columns"]


def test_retraining_looks_worthwhile_after_drift_or_clearly_higher_errors_only():
    still = comparison.drift(*two_populations(800, 800, 0))
    moved = comparison.drift(*two_populations(800, 800, 0, shift=0.5))
    errors = np.abs(RNG(0).normal(0, 3000, 400))
    assert comparison.worthwhile(moved)[0]
    assert comparison.worthwhile(moved, errors, errors)[0]
    one = still.assign(drifted=still["column"] == "n0")
    assert comparison.worthwhile(one)[1] == "a retraining looks worthwhile: 1 of 10 columns drifted"
    assert comparison.worthwhile(one)[0]
    # Variance 1 in 200 rows each: the means are apart by more than 1.96 times 0.1, or by less.
    even = np.tile([1.0, 3.0], 100)
    for apart, expected in ((0.195, False), (0.197, True)):
        assert comparison.worthwhile(still, even, even + apart)[0] is expected
    looks, sentence = comparison.worthwhile(still, errors, RNG(1).permutation(errors), "€")
    assert not looks
    assert sentence.startswith("a retraining promises little: 0 of 10 columns drifted, the parent")
    looks, sentence = comparison.worthwhile(still, errors, 1.5 * errors)
    assert looks
    assert "looks worthwhile" in sentence
    assert comparison.worthwhile(still) == (
        False,
        "a retraining promises little: 0 of 10 columns drifted",
    )


# --- groups


def test_groups_have_the_means_worked_out_by_hand():
    rows = pd.DataFrame({"city": ["a", "a", "b", None]}, index=[7, 7, 3, 1])
    table = comparison.groups(rows, ["city"], [10, 20, 30, 40], [12, 16, 33, 40], [10, 21, 20, 41])
    table = table.set_index("category")
    assert table.index.tolist() == ["a", "b", "(missing)"]
    assert table.loc["a"].drop("column").to_dict() == {
        "rows": 2,
        "actual": 15,
        "prediction_before": 14,
        "prediction_after": 15.5,
        "MAE_before": 3,
        "MAE_after": 0.5,
        "bias_before": -1,
        "bias_after": 0.5,
        "MAE_change": -2.5,
        "worse": False,
    }
    assert table.loc["b", "MAE_change"] == 7
    assert not table["worse"].any()


def test_first_training_has_only_the_columns_after():
    table = comparison.groups(pd.DataFrame({"city": ["a", "b"]}), ["city"], [1, 2], None, [1, 3])
    after = ["actual", "prediction_after", "MAE_after", "bias_after"]
    assert list(table.columns) == ["column", "category", "rows", *after]


def group_worse(n_rows, before, after, seed=0):
    y = targets(2 * n_rows, seed)
    rows = pd.DataFrame({"g": ["hit"] * n_rows + ["spared"] * n_rows})
    parent, child = noisy(y, before, 2 * seed + 1), noisy(y, before, 2 * seed + 2)
    child[:n_rows] = noisy(y[:n_rows], after, seed + 99)
    return comparison.groups(rows, ["g"], y, parent, child).set_index("category")["worse"]


def test_group_that_got_worse_is_named_and_the_spared_one_is_not():
    named = [group_worse(100, 2000, 5000, seed) for seed in range(20)]
    assert all(worse["hit"] for worse in named)
    assert sum(worse["spared"] for worse in named) <= 2


def test_group_is_worse_from_the_end_of_its_interval_on():
    # 25 changes, mean 1: t(0.975, 24) = 2.06390, standard deviation s, so the width is 0.41278 s.
    rows, y = pd.DataFrame({"g": ["a"] * 25}), np.zeros(25)
    unit = np.array([0.0] + [1.0, -1.0] * 12)  # standard deviation 1
    for spread, expected in ((2.420, True), (2.428, False)):
        change = 1 + unit * spread
        table = comparison.groups(rows, ["g"], y, np.full(25, 9.0), 9 + change)
        assert table["MAE_change"].item() == pytest.approx(1)
        assert table["worse"].item() is expected


def test_group_whose_predictions_did_not_move_is_not_worse():
    y, rows = np.full(30, 500.0), pd.DataFrame({"g": ["floor"] * 30})
    assert not comparison.groups(rows, ["g"], y, y + 7, y + 7)["worse"].item()


def test_tiny_group_cannot_be_called_worse():
    y, rows = np.zeros(39), pd.DataFrame({"g": ["large"] * 20 + ["tiny"] * 19})
    table = comparison.groups(rows, ["g"], y, y + 1, y + 2).set_index("category")
    assert table["worse"].to_dict() == {"large": True, "tiny": False}


def test_small_categories_are_pooled_beyond_the_twelve_largest():
    names = [f"c{k:02}" for k in range(30) for _ in range(31 - k)]
    y = np.arange(len(names), dtype=float)
    table = comparison.groups(pd.DataFrame({"job": names}), ["job"], y, None, y)
    expected = [f"c{k:02}" for k in range(12)]
    assert table["category"].tolist() == [*expected, "(other)"]
    assert table["rows"].sum() == len(names)
    twelve = table["category"].isin(expected)
    assert table.loc[~twelve, "rows"].item() == sum(31 - k for k in range(12, 30))


def test_no_categorical_column_gives_an_empty_table_and_no_gap():
    table = comparison.groups(pd.DataFrame({"x": [1.0]}), [], [1], None, [1])
    assert len(table) == 0
    assert comparison.largest_gap(table) is None


def test_largest_gap_is_told_in_words_and_ignores_small_and_pooled_groups():
    table = pd.DataFrame(
        [
            ("sexe", "F", 100, 11_000.0, 11_500.0),
            ("sexe", "H", 100, 14_000.0, 13_900.0),
            ("nationalité", "non", 80, 9_600.0, 9_500.0),
            ("nationalité", "oui", 120, 18_500.0, 18_200.0),
            ("nationalité", "?", 19, 0.0, 0.0),
            ("région", "Corse", 20, 5_000.0, 5_100.0),
            ("région", "Bretagne", 20, 9_000.0, 9_100.0),
            ("nationalité", "(other)", 90, 0.0, 0.0),
            ("alone", "x", 500, 0.0, 90_000.0),
        ],
        columns=["column", "category", "rows", "actual", "prediction_after"],
    )
    assert comparison.largest_gap(table, "€") == (
        "nationalité: the mean prediction is 9,500 € for 'non' and 18,200 € for 'oui', "
        "a gap of 8,700 € (actual gap: 8,900 €)"
    )
    assert comparison.largest_gap(table[table["column"] == "alone"]) is None
    assert "a gap of 4,000 " in comparison.largest_gap(table[table["column"] == "région"])


# --- words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (15234.4, "15,234"),
        (1_234_567.8, "1,234,568"),
        (-420.3, "-420"),
        (151.6, "152"),
        (43.217, "43.2"),
        (1.5, "1.50"),
        (0.0123, "0.0123"),
        (2e-9, "2.00e-09"),
        (0.0, "0"),
        (-0.0, "0"),
        (math.nan, "n/a"),
        (math.inf, "infinite"),
        (-math.inf, "-infinite"),
    ],
)
def test_amounts_have_sensible_digits_at_any_scale(value, text):
    assert comparison.format_amount(value) == text


def test_intervals_are_written_with_signs_and_unit():
    assert comparison.format_interval(Interval(-420, -540, 30), "€") == "-420 € (-540 to +30.0)"
    assert comparison.format_interval(Interval(2000, 0, 3000)) == "+2,000 (+0 to +3,000)"


def test_markup_is_escaped_character_by_character():
    assert comparison.escape_markdown("<script>&") == "&lt;script&gt;&amp;"
    for character in "\\`*_[]{}#|~$!":
        assert comparison.escape_markdown(f"a{character}b") == f"a\\{character}b"
    assert comparison.escape_markdown("a\nb\r\tc\x1b\u202ed") == "a b  c  d"
    assert comparison.escape_markdown("http://x.y www.x.y a@b") == r"http\://x.y www\.x.y a&#64;b"
    assert comparison.escape_markdown(12) == "12"


def test_cells_that_spreadsheets_would_run_get_an_apostrophe_and_numbers_do_not():
    table = pd.DataFrame(
        {
            "=cmd()": ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "safe = 1", None],
            "number": [-1.5] * 9,
            "whole": [-1] * 9,
            "kind": pd.Categorical(["=x", "y", "=x"] * 3),
            "mixed": [-1, "-1", None] * 3,
        },
        index=["@a", *"bcdefghi"],
    )
    safe = comparison.safe_cells(table)
    text = safe["'=cmd()"].tolist()
    assert text[:7] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "'\r=1", "'\n=1"]
    assert text[7] == "safe = 1"
    assert pd.isna(text[8])
    assert safe["number"].dtype == float
    assert safe["whole"].tolist() == [-1] * 9
    assert safe["kind"].tolist() == ["'=x", "y", "'=x"] * 3
    assert safe["mixed"].tolist()[:2] == [-1, "'-1"]
    assert safe.index[0] == "'@a"
    assert table.iloc[0, 0] == "=1+1"


# --- report


def evidence(**changes):
    y = targets(400)
    models = {
        "parent": noisy(y, 5000, 1),
        "retrained": noisy(y, 3000, 2),
        "control": noisy(y, 4500, 3),
        "scratch": noisy(y, 3100, 4),
        "mean": np.full(400, y.mean()),
    }
    held = {"new": comparison.evaluate(y, models), "old": comparison.evaluate(y, models)}
    old, new, kinds = two_populations(400, 400, 0, shift=0.5)
    three = [models[name] for name in ("parent", "control", "retrained")]
    groups = comparison.groups(new, ["c0", "c1"], y, models["parent"], models["retrained"])
    fields = {
        "verdict": comparison.decide(held["new"].difference, held["old"].difference, 4000.0),
        "held_out": held,
        "unit": "€",
        "attribution": comparison.attribution(y, *three, "€"),
        "purity": {"held-out rows found among training rows": 0, "rows dropped": 12_345},
        "drift": comparison.drift(old, new, kinds),
        "bounds": comparison.bounds_share(y, y),
        "groups": groups,
    }
    return comparison.Evidence(**{**fields, **changes})


def test_report_opens_with_the_verdict_and_its_two_numbers():
    full = evidence()
    title, _, verdict, *_ = comparison.report(full).splitlines()
    assert title == "# Retraining: promoted"
    assert verdict == f"**Promoted**: {full.verdict.reason}."
    kept = comparison.report(evidence(verdict=comparison.Verdict(False, "no gain")))
    assert kept.startswith("# Retraining: kept champion\n\n**Kept champion**: no gain.\n")


def test_report_has_every_part_in_order_and_well_formed_tables():
    text = comparison.report(evidence())
    heads = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert heads == [
        "Same rows, both models",
        "Controls",
        "Where the gain comes from",
        "Purity",
        "Drift",
        "Groups",
        "Not proven",
    ]
    for block in text.split("\n\n"):
        lines = block.strip().splitlines()
        if lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1
    assert "nan" not in text.replace("n/a", "")


def test_report_carries_the_figures():
    full = evidence()
    text = comparison.report(full)
    scores, change = full.held_out["new"].scores, full.held_out["new"].difference
    mae = [comparison.format_amount(scores.loc[name, "MAE"]) for name in ("parent", "retrained")]
    assert f"| new | 400 | {mae[0]} | {mae[1]} | {comparison.format_interval(change)} |" in text
    assert f"| old | scratch | {comparison.format_amount(scores.loc['scratch', 'MAE'])} |" in text
    assert "come with the new data" in text
    assert "| rows dropped | 12,345 |" in text
    assert "| c0 | categorical |" in text
    assert "Target: at its lowest" in text
    assert comparison.largest_gap(full.groups, "€") in text
    assert "Groups whose MAE rose by more than chance explains: none." in text


def test_report_names_the_groups_that_got_worse():
    groups = evidence().groups
    groups["worse"] = groups["category"] == "b"
    text = comparison.report(evidence(groups=groups))
    line = next(line for line in text.splitlines() if line.startswith("Groups whose MAE rose"))
    assert "c0 = b (" in line
    assert "c1 = b (" in line
    assert "c0 = a" not in line
    assert "one unchanged group in forty" in text


def test_report_says_what_was_not_proven():
    held = {"new": comparison.evaluate([1.0, 2.0], {"parent": [1, 1], "retrained": [1, 2]})}
    missing = dict.fromkeys(("attribution", "purity", "drift", "bounds", "groups"))
    text = comparison.report(evidence(held_out=held, caveats=["mine"], **missing))
    gaps = text.split("## Not proven")[1]
    for gap in ("Forgetting", "cause of any gain", "Fairness", "new (2)", "Other seeds", "mine"):
        assert gap in gaps
    assert "## Drift" not in text
    full = comparison.report(evidence()).split("## Not proven")[1]
    for gap in ("Forgetting", "cause of any gain", "Fairness", "few held-out rows"):
        assert gap not in full


def test_report_lets_no_markup_from_the_data_through():
    attack = "<script>alert(1)</script>|`x`[a](http://e.vil)\n# **head** ![i](j)"
    rows = pd.DataFrame({attack: [attack, "b"] * 200})
    y = targets(400)
    groups = comparison.groups(rows, [attack], y, y + 1, y + 2 + 3000 * (rows[attack] == "b"))
    old = pd.DataFrame({attack: ["a"] * 400})
    full = evidence(
        groups=groups,
        drift=comparison.drift(old, rows, {attack: "categorical"}),
        held_out={attack: evidence().held_out["new"]},
        purity={attack: 1},
        verdict=comparison.Verdict(True, attack),
        caveats=[attack],
    )
    text = comparison.report(full)
    assert text.count("alert") >= 10
    assert "<script" not in text
    for active in ("[a]", "`x`", "**head**", "![", "://e", "\n# **"):
        assert active not in text.replace("\\://", "")
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        bars = {line.replace(r"\|", "").count("|") for line in table.strip().splitlines()}
        assert len(bars) == 1
