"""Claims about comparison.py, drift.py and words.py, by hand and on simulated models and files."""

import math
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency, t
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from toolkit import comparison, drift, evidence, roles, words
from toolkit.comparison import HeldOut, Interval

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
    # |y - parent| = 10, 20, 30 and |y - retrained| = 5, 10, 15: differences -5, -10, -15.
    found = comparison.mae_difference([100, 200, 300], [110, 180, 330], [95, 210, 315])
    assert found.estimate == pytest.approx(-10)
    # Student's: t(0.975, 2) = 4.3027, standard deviation 5, divided by the root of 3.
    assert found.low == pytest.approx(-10 - 4.3027 * 5 / math.sqrt(3), abs=1e-3)
    assert found.high == pytest.approx(-10 + 4.3027 * 5 / math.sqrt(3), abs=1e-3)


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


def test_interval_follows_a_skewed_sample():
    sample = RNG(0).exponential(size=60) ** 2
    found = comparison.paired_interval(sample)
    assert found.high - found.estimate > 1.1 * (found.estimate - found.low)
    mirrored = comparison.paired_interval(-sample)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def clustered(seed, skew, n_groups=40, n_rows=10, correlation=0.3):
    """Draw differences of mean 0 of groups whose rows correlate: (values, labels)."""
    rng = RNG(seed)

    def draw(n):
        return rng.exponential(size=n) - 1 if skew else rng.normal(size=n)

    labels = np.repeat(np.arange(n_groups), n_rows)
    shared = math.sqrt(correlation) * draw(n_groups)[labels]
    return shared + math.sqrt(1 - correlation) * draw(len(labels)), labels


@pytest.mark.parametrize("skew", [False, True])
def test_interval_of_whole_groups_covers_zero_in_95_percent_where_one_of_rows_does_not(skew):
    covered, false_gains, by_rows = 0, 0, 0
    for trial in range(400):
        values, labels = clustered(trial, skew)
        found = comparison.paired_interval(values, groups=labels)
        covered += found.low <= 0 <= found.high
        false_gains += found.high < 0
        alone = comparison.paired_interval(values)
        by_rows += alone.low <= 0 <= alone.high
    assert 0.92 <= covered / 400 <= 0.98
    assert false_gains / 400 <= 0.04
    assert by_rows / 400 < 0.8


def test_rows_of_one_label_belong_together_wherever_they_stand():
    values, labels = clustered(0, False)
    found = comparison.paired_interval(values, groups=labels)
    order = RNG(0).permutation(len(values))
    shuffled = comparison.paired_interval(values[order], groups=labels[order])
    assert (shuffled.low, shuffled.high) == pytest.approx((found.low, found.high))
    texts = pd.Series(labels).astype(str)
    assert comparison.paired_interval(values, groups=texts) == found
    tripled = comparison.paired_interval(np.repeat(values, 3), groups=np.repeat(range(400), 3))
    alone = comparison.paired_interval(values)
    assert (tripled.low, tripled.high) == pytest.approx((alone.low, alone.high))


def test_one_group_proves_nothing_and_rows_without_label_stand_alone():
    found = comparison.paired_interval([-3.0, -4.0, -5.0], groups=["a"] * 3)
    assert (found.estimate, found.low, found.high) == (-4, -math.inf, math.inf)
    values = RNG(0).normal(size=30)
    alone = comparison.paired_interval(values, groups=[None] * 30)
    assert alone == comparison.paired_interval(values)
    with pytest.raises(ValueError, match="same length"):
        comparison.paired_interval(values, groups=[1, 2])


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


@pytest.mark.parametrize("rare", [1, -1, 1e9])
def test_almost_constant_difference_has_finite_bounds_around_the_mean(rare):
    found = comparison.paired_interval([*[0.0] * 399, rare])
    assert np.isfinite([found.low, found.high]).all()
    assert found.low <= found.estimate <= found.high


# --- weights


def weighted(seed, n_groups, n_rows, correlation=0.3):
    """Draw skewed differences, whose weighted mean is 0 and whose plain mean -1/2, weights, groups.

    With weights of mean 1 and variance 1/2, E[w (w - 3/2)] is 0.
    """
    rng = RNG(seed)
    labels = np.repeat(np.arange(n_groups), n_rows)
    weights = rng.gamma(2, 1 / 2, len(labels))
    shared, own = (rng.exponential(size=n) - 1 for n in (n_groups, len(labels)))
    noise = math.sqrt(correlation) * shared[labels] + math.sqrt(1 - correlation) * own
    return weights - 1.5 + noise, weights, labels


@pytest.mark.parametrize(("n_groups", "n_rows"), [(40, 10), (120, 1)])
def test_interval_of_weighted_rows_covers_their_mean_in_95_percent(n_groups, n_rows):
    covered, false_gains, unweighted = 0, 0, 0
    for trial in range(400):
        values, weights, labels = weighted(trial, n_groups, n_rows)
        groups = labels if n_rows > 1 else None
        found = comparison.paired_interval(values, groups=groups, weights=weights)
        covered += found.low <= 0 <= found.high
        false_gains += found.high < 0
        alike = comparison.paired_interval(values, groups=groups)
        unweighted += alike.low <= 0 <= alike.high
    assert 0.92 <= covered / 400 <= 0.98
    assert false_gains / 400 <= 0.05
    assert unweighted / 400 < 0.2


@pytest.mark.parametrize("n_rows", [1, 4])
def test_error_of_a_weighted_mean_is_that_of_leaving_out_each_unit_in_turn(n_rows):
    values, weights, labels = weighted(3, 25, n_rows)
    found = comparison.paired_interval(values, groups=labels, weights=weights)
    mean = np.average(values, weights=weights)
    assert found.estimate == pytest.approx(mean)
    others = [
        np.average(values[labels != unit], weights=weights[labels != unit]) for unit in range(25)
    ]
    error = math.sqrt(24 / 25 * np.square(np.subtract(others, mean)).sum())
    width = min(found.high - mean, mean - found.low)  # on the other side Hall's may be the wider
    # Student's, of the degrees of freedom that the matrix of leaving each out in turn has.
    sizes = np.array([weights[labels == unit].sum() for unit in range(25)])
    left = np.diag(np.sqrt(sizes)) - np.outer(sizes, np.sqrt(sizes)) / sizes.sum()
    square = left.T @ np.diag((1 - sizes / sizes.sum()) ** -2) @ left
    freedom = np.trace(square) ** 2 / np.trace(square @ square)
    assert 10 < freedom < 24
    assert width == pytest.approx(t.ppf(0.975, freedom) * error, rel=1e-4)
    bigger = comparison.paired_interval(values, groups=labels, weights=1e6 * weights)
    assert vars(bigger) == pytest.approx(vars(found))


def test_equal_weights_give_bit_for_bit_the_interval_of_none():
    values, labels = clustered(1, True)
    for groups in (None, labels):
        expected = comparison.paired_interval(values, groups=groups)
        equal = np.full(len(values), 0.1)
        assert comparison.paired_interval(values, groups=groups, weights=equal) == expected


def test_row_that_outweighs_all_others_proves_nothing():
    found = comparison.paired_interval([-3.0, 5.0, 7.0], weights=[1e30, 1.0, 1.0])
    assert (found.estimate, found.low, found.high) == (-3, -math.inf, math.inf)


def test_weighted_scores_are_those_worked_out_by_hand():
    # Errors 1, 0, 2, weights 1, 2, 5: the weighted mean of y is 25/8, and the squared distances
    # from it add up to (1 · 17² + 2 · 9² + 5 · 7²) / 64 = 696/64.
    models = {"parent": [2, 2, 2], "retrained": [2, 2, 4]}
    found = comparison.evaluate([1, 2, 4], models, weights=[1, 2, 5])
    by_hand = [11 / 8, 21 / 8, 1 - 21 / (696 / 64)]
    assert found.scores.loc["parent"].tolist() == pytest.approx(by_hand)
    assert found.scores.loc["retrained", "MAE"] == pytest.approx(1 / 8)
    assert found.change.estimate == pytest.approx(-10 / 8)
    assert found.rows == 3


def test_row_of_weight_two_counts_as_two_rows_in_scores_groups_and_attribution():
    y, times = targets(60), RNG(8).integers(1, 4, 60)
    names = ("parent", "retrained", "control", "mean", "median")
    models = {name: noisy(y, 1000 * (k + 1), k) for k, name in enumerate(names)}
    listed = {name: np.repeat(made, times) for name, made in models.items()}
    found = comparison.evaluate(y, models, weights=times).scores
    expected = comparison.evaluate(np.repeat(y, times), listed).scores
    pd.testing.assert_frame_equal(found, expected)
    split = comparison.attribution(y, models, weights=times).gains
    for name, gain in comparison.attribution(np.repeat(y, times), listed).gains.items():
        assert split[name].estimate == pytest.approx(gain.estimate)
    rows = pd.DataFrame({"city": RNG(9).choice(["a", "b"], 60)})
    asked = ("parent", "retrained")
    table = comparison.groups(rows, ["city"], y, *(models[k] for k in asked), weights=times)
    twice = comparison.groups(
        rows.loc[np.repeat(rows.index, times)],
        ["city"],
        np.repeat(y, times),
        *(listed[k] for k in asked),
    )
    means = [name for name in table if name not in ("rows", "worse")]
    table, twice = (each.sort_values("category", ignore_index=True) for each in (table, twice))
    pd.testing.assert_frame_equal(table[means], twice[means])
    assert table["rows"].sum() == 60


def test_group_is_worse_where_the_rows_that_count_got_worse():
    rows, y = pd.DataFrame({"city": ["a"] * 60}), np.zeros(60)
    child = np.where(np.arange(60) < 30, 0.9, 1.2) + RNG(0).normal(0, 0.01, 60)
    for heavy, worse in ((slice(30, None), True), (slice(30), False)):
        weights = np.ones(60)
        weights[heavy] = 50
        table = comparison.groups(rows, ["city"], y, np.ones(60), child, weights=weights)
        assert table["worse"].tolist() == [worse]
        assert np.sign(table["MAE_change"].iloc[0]) == (1 if worse else -1)


def test_one_row_that_outweighs_others_does_not_prove_its_group_worse():
    # The change is +1 in a row of weight 100 and -2 in 29 of weight 1: 0.33 on average.
    rows, y, child = pd.DataFrame({"city": ["a"] * 30}), np.zeros(30), np.array([4.0] + 29 * [1.0])
    weights = np.array([100.0] + 29 * [1.0])
    table = comparison.groups(rows, ["city"], y, np.full(30, 3.0), child, weights=weights)
    assert table["MAE_change"].tolist() == pytest.approx([42 / 129])
    assert table["worse"].tolist() == [False]


def test_column_matters_as_far_as_the_rows_do_whose_predictions_it_changes():
    rows, y = switches()
    rows["light"] = np.arange(len(y)) < len(y) // 2
    y = np.where(rows["light"], y, 0.0)

    def predict(table):  # what is on matters in light rows alone
        return np.where(table["light"] & (table["on"] == "yes"), 10.0, 0.0)

    weights = np.where(rows["light"], 1e-9, 1.0)
    found, alike = (
        comparison.importance({"m": predict}, rows, y, ["on"], weights=each)
        for each in (weights, None)
    )
    assert found["m"].iloc[0] < 1e-6 < 1 < alike["m"].iloc[0]


def lost_skill(y, predictions, whole, weights=None, **options):
    by_part = {part: {"weights": weights and weights[part]} for part in y}
    return comparison.lost_skill(y, predictions, whole, by_part, **options)


def test_skill_is_lost_on_the_rows_that_count():
    y = {"new": targets(200), "old": targets(200, 1)}
    wrong = np.where(np.arange(200) < 150, 60_000.0, y["new"])  # the child, on many light rows
    constants = {name: np.full(200, 20_000.0) for name in ("mean", "median")}
    predictions = {
        "new": {"parent": y["new"], "retrained": wrong} | constants,
        "old": {"parent": y["old"], "retrained": y["old"]} | constants,
    }
    whole = (y["new"], y["new"])
    (finding,) = lost_skill(y, predictions, whole)
    assert "proven worse than the constants" in finding
    weights = {"new": np.where(np.arange(200) < 150, 1e-6, 1.0), "old": np.ones(200)}
    assert lost_skill(y, predictions, whole, weights) == []
    blind = {"new": np.ones(200), "old": np.where(np.arange(200) < 100, 1e-6, 1.0)}
    predictions["old"]["parent"] = np.where(np.arange(200) < 100, y["old"], 20_000.0)
    assert lost_skill(y, predictions, whole, blind) == []  # it never had any


# --- what is refused


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
    with pytest.raises(ValueError, match=f"expected finite numbers.*{received}"):
        comparison.paired_interval(values)


def test_scores_are_those_of_scikit_learn_for_every_model():
    y = targets(50)
    predictions = {"parent": noisy(y, 9, 1), "retrained": pd.Series(noisy(y, 5, 2))}
    table = comparison.evaluate(y, predictions).scores
    assert list(table.index) == ["parent", "retrained"]
    assert list(table.columns) == ["MAE", "MSE", "R²"]
    for name, prediction in predictions.items():
        expected = [score(y, prediction) for score in (mean_absolute_error, mean_squared_error)]
        assert table.loc[name].tolist() == pytest.approx([*expected, r2_score(y, prediction)])


def test_column_vector_and_unequal_lengths_are_refused_not_broadcast():
    y = targets(5)
    with pytest.raises(ValueError, match=r"shape \(5, 5\)"):
        comparison.evaluate(y, {"parent": y[:, None], "retrained": y})
    with pytest.raises(ValueError, match=r"broadcast"):
        comparison.evaluate(y, {"parent": y[:4], "retrained": y})


def test_single_row_is_scored_without_r2():
    table = comparison.evaluate([3.0], {"parent": [5.0], "retrained": [3.0]}).scores
    assert table.loc["parent", "MAE"] == 2
    assert math.isnan(table.loc["parent", "R²"])
    two = comparison.evaluate([1, 3], {"parent": [1, 2], "retrained": [1, 3]}).scores
    assert two["R²"].to_dict() == {"parent": 0.5, "retrained": 1}


def test_evaluate_adds_the_difference_of_retrained_and_parent():
    y = np.array([1.0, 2.0, 3.0])
    both = comparison.evaluate(y, {"parent": y + 2, "retrained": y + 1})
    assert (both.rows, both.change) == (3, Interval(-1, -1, -1))
    assert both.scores["MAE"].to_dict() == {"parent": 2, "retrained": 1}


def test_harm_is_proven_however_many_tries_there_were():
    y = targets(400)
    rng = np.random.default_rng(3)
    both = {"parent": y + rng.normal(0, 900, 400), "retrained": y + rng.normal(0, 1060, 400)}
    first, fifth = (
        comparison.evaluate(y, both, confidence=comparison.confidence_of(number))
        for number in (1, 5)
    )
    assert first.change == first.harm == fifth.harm
    assert fifth.change.low < 0 < first.change.low
    for new in (first, fifth):
        verdict = comparison.decide(new, None)
        assert (verdict.kind, verdict.promoted) == ("worse", False)
        assert words.format_interval(first.harm) in verdict.reason
    for old in (first, fifth):
        verdict = comparison.decide(held((-12, -40, 15)), old, max_forgetting=0.001)
        assert verdict.kind == "worse"


def test_rows_of_a_single_group_prove_harm_and_no_gain():
    y = targets(300)
    far, near = y + 9_000 * np.sign(y - y.mean()), y + 100.0
    for child, kind in ((far, "worse"), (near, "no_worse")):
        parent = near if child is far else far
        both = {"parent": parent, "retrained": child + np.random.default_rng(0).normal(0, 50, 300)}
        found = comparison.evaluate(y, both, groups=np.zeros(300))
        assert np.isinf(found.change.high)
        assert comparison.decide(found, None).kind == kind


# --- verdict


def held(difference, mae=2300.0, rows=80):
    """Hold rows whose parent has this MAE and whose difference is this interval."""
    scores = pd.DataFrame({"MAE": [mae]}, index=["parent"])
    return HeldOut(rows, scores, Interval(*difference), Interval(*difference))


GAIN, UNCLEAR, HARM = (-420, -540, -300), (-12, -40, 15), (40, 10, 70)
KEPT, OPEN, FORGOT = (12, -20, 44), (90, -20, 200), (200, 120, 280)  # 115 are allowed
FORGOT_MORE = (421, 240, 480)


@pytest.mark.parametrize(
    ("new", "old", "kind"),
    [
        (GAIN, KEPT, "better"),
        (GAIN, OPEN, "better"),
        (GAIN, FORGOT, "better"),  # what was forgotten is less than what was gained
        (GAIN, FORGOT_MORE, "worse"),
        (UNCLEAR, KEPT, "no_worse"),
        (UNCLEAR, OPEN, "no_worse"),
        (UNCLEAR, FORGOT, "worse"),
        (HARM, KEPT, "worse"),
        (HARM, (-50, -60, -40), "worse"),
        (GAIN, None, "better"),
        (UNCLEAR, None, "no_worse"),
        (HARM, None, "worse"),
    ],
)
def test_only_proven_harm_or_proven_forgetting_keeps_the_champion(new, old, kind):
    judged = {
        promote: comparison.decide(held(new), held(old) if old else None, promote=promote)
        for promote in ("auto", "proven", "always", "never")
    }
    assert {verdict.kind for verdict in judged.values()} == {kind}
    promoted = {promote: verdict.promoted for promote, verdict in judged.items()}
    assert promoted == {
        "auto": kind != "worse",
        "proven": kind == "better",
        "always": True,
        "never": False,
    }


def test_verdict_turns_at_exactly_the_allowed_forgetting_and_at_zero():
    new = held((-10, -12, -8))
    assert comparison.decide(new, held((9, 5.0, 20), 100)).promoted
    assert comparison.decide(new, held((10, 5.01, 20), 100)).promoted  # as much was gained
    assert not comparison.decide(new, held((10.1, 5.01, 20), 100)).promoted
    unproven = held((-20, -40, 0))
    assert not comparison.decide(unproven, held((10, 5.01, 20), 100)).promoted
    assert comparison.decide(new, held((9, 9, 20), 100), max_forgetting=0.1).promoted
    for interval, kind in (
        ((1, 0, 2), "no_worse"),
        ((-1, -2, 0), "no_worse"),
        ((1, 1, 1), "worse"),
    ):
        assert comparison.decide(held(interval), None).kind == kind


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        (
            GAIN,
            KEPT,
            "better: MAE on new rows -420 € (-540 to -300), a proven gain; "
            "on old rows +12.0 € (-20.0 to +44.0), within the 115 € allowed",
        ),
        (
            UNCLEAR,
            OPEN,
            "no worse: MAE on new rows -12.0 € (-40.0 to +15.0), harm is not proven; "
            "on old rows +90.0 € (-20.0 to +200), not proven to exceed the 115 € allowed",
        ),
        (
            UNCLEAR,
            (60, 20, 100),
            "no worse: MAE on new rows -12.0 € (-40.0 to +15.0), harm is not proven; "
            "on old rows +60.0 € (+20.0 to +100), more error is proven, within the 115 € allowed",
        ),
        (
            HARM,
            KEPT,
            "worse: MAE on new rows +40.0 € (+10.0 to +70.0), harm is proven; "
            "on old rows +12.0 € (-20.0 to +44.0), within the 115 € allowed",
        ),
        (
            GAIN,
            FORGOT,
            "better: MAE on new rows -420 € (-540 to -300), a proven gain; "
            "on old rows +200 € (+120 to +280), forgetting beyond the 115 € allowed is proven, "
            "but the gain outweighs it",
        ),
        (
            GAIN,
            FORGOT_MORE,
            "worse: MAE on new rows -420 € (-540 to -300), a proven gain; "
            "on old rows +421 € (+240 to +480), forgetting beyond the 115 € allowed is proven",
        ),
    ],
)
def test_reason_says_exactly_what_was_found(new, old, reason):
    assert comparison.decide(held(new), held(old), unit="€").reason == reason


def test_reason_names_the_option_that_overruled_the_verdict():
    told = {
        (promote, new): comparison.decide(held(new), None, promote=promote).reason
        for promote in ("proven", "always", "never")
        for new in (GAIN, UNCLEAR, HARM)
    }
    assert "no old row at hand, so forgetting could not be checked" in told["proven", GAIN]
    assert told["proven", UNCLEAR].endswith("; promotion was set to 'proven'")
    assert told["always", HARM].endswith("; promotion was set to 'always'")
    assert told["never", GAIN].endswith("; promotion was set to 'never'")
    for unchanged in (("proven", GAIN), ("proven", HARM), ("always", UNCLEAR), ("never", HARM)):
        assert told[unchanged].endswith("could not be checked")


@pytest.mark.parametrize("promote", ["auto", "proven", "always", "never"])
def test_suspicious_file_is_never_promoted_without_a_person(promote):
    for new in (held(GAIN), held(UNCLEAR), held(HARM)):
        findings = ["hum: empty", "sky: upper\n-cased"]
        verdict = comparison.decide(new, None, promote=promote, findings=findings)
        assert (verdict.kind, verdict.promoted) == ("suspicious", False)
        assert verdict.reason == "suspicious: hum: empty; sky: upper -cased"


def judge(new_errors, old_errors, seed=0):
    """Judge models whose errors (parent, retrained) have these standard deviations."""
    sets = []
    for number, (parent, child) in enumerate((new_errors, old_errors)):
        y, at = targets(400, seed + number), 10 * (seed + number) + 7
        models = {"parent": noisy(y, parent, at), "retrained": noisy(y, child, at + 1)}
        sets.append(comparison.evaluate(y, models))
    return comparison.decide(*sets).kind


def test_planted_models_get_the_verdict_that_they_deserve():
    for seed in range(10):
        assert judge((4000, 3000), (3000, 2800), seed) == "better"
        assert judge((3000, 4000), (3000, 2800), seed) == "worse"
        assert judge((4000, 3000), (3000, 4500), seed) == "worse"


def test_equal_model_is_rarely_called_better_or_worse_and_mostly_promoted():
    kinds = [judge((3000, 3000), (3000, 3000), seed) for seed in range(60)]
    assert kinds.count("no_worse") >= 53


# --- a target without relation to its features


def skill(new_relation, old_relation=0.9, child=None, n=400, seed=0):
    """Find lost skill where targets correlate so with the parent's predictions."""
    rng, sets = RNG(seed), []
    for relation in (new_relation, old_relation):
        y = rng.normal(100, 10, n)
        noise = rng.normal(0, 10, n)
        parent = 100 + relation * (relation * (y - 100) + math.sqrt(1 - relation**2) * noise)
        models = {"parent": parent, "retrained": parent if child is None else child(y)}
        sets += [y, models | {"mean": np.full(n, 100.0), "median": np.full(n, 100.5)}]
    y, predictions = ({"new": sets[k], "old": sets[k + 2]} for k in (0, 1))
    return lost_skill(y, predictions, (sets[0], sets[1]["parent"]))


def test_shuffled_target_is_found_and_a_weaker_or_never_strong_relation_is_not():
    found = skill(0.0)
    assert len(found) == 1
    assert "as if it were shuffled" in found[0]
    assert "fell from 0.8" in found[0]
    for new, old in ((0.5, 0.9), (0.3, 0.9), (0.0, 0.05), (0.2, 0.2)):
        assert skill(new, old) == []
    assert skill(0.0, n=25) == []  # so few rows prove nothing
    assert sum(bool(skill(0.0, 0.95, n=100, seed=seed)) for seed in range(30)) > 15
    assert not any(skill(0.6, 0.95, n=100, seed=seed) for seed in range(30))


def test_parent_that_was_never_right_has_no_skill_to_lose():
    assert skill(-0.7, old_relation=-0.15) == []


def test_whole_file_of_the_parents_predictions_counts_in_place_of_few_held_out_rows():
    y, y_old = targets(1000), targets(400, 1)
    parent, mean = RNG(3).permutation(y), np.full(400, y.mean())
    constants = {"mean": mean, "median": mean}
    old = {"parent": noisy(y_old, 900, 2), "retrained": y_old} | constants
    sets = {"new": y[:25], "old": y_old}, {"new": dict.fromkeys(old, y[:25]), "old": old}
    assert lost_skill(*sets, (y[:25], y[:25])) == []
    assert len(lost_skill(*sets, (y, parent))) == 1
    assert lost_skill(*sets, (y, parent), least=0.999) == []  # of rows that it was trained on


def test_child_proven_worse_than_every_constant_is_found_where_the_target_was_predictable():
    def bad(y):
        return y + 40

    assert "proven worse than the constants mean and median" in skill(0.9, child=bad)[0]
    assert skill(0.4, 0.4, child=bad) == []
    assert skill(0.9, child=lambda y: np.full(len(y), 101.0)) == []


# --- broken files


def station(n=400, seed=0, season=0.0):
    """Make hourly rows of a weather station: numbers, categories, a date, a count as target."""
    rng = RNG(seed)
    temperature = 15 + 10 * season + rng.normal(0, 7, n)
    table = pd.DataFrame({"temp": temperature.round(1), "hum": rng.uniform(30, 95, n).round()})
    table["rain"] = np.where(rng.random(n) < 0.8, 0.0, rng.exponential(5, n)).round(1)
    table["hour"] = np.arange(n) % 24.0
    table["year"] = 2011.0 + np.arange(n) // 200
    table["sky"] = rng.choice(["clear", "mist", "rain"], n)
    table["month"] = np.repeat([f"2024-{k:02}" for k in range(1, 1 + n // 50)], 50)
    table["day"] = 15_000.0 + np.arange(n) / 24
    table["count"] = (5 * temperature + rng.exponential(40, n) + 100).round()
    return table


STATION = {
    **dict.fromkeys(["temp", "hum", "rain", "hour", "year"], "numeric"),
    **dict.fromkeys(["sky", "month"], "categorical"),
    "day": "date",
}


def findings(**changed):
    """Look at a natural next file in which these columns were replaced."""
    current = station(seed=1, season=0.5).assign(**changed)
    return drift.suspicious(station(), current, STATION, "count")


NEXT = station(seed=1, season=0.5)
HALF = np.arange(400) % 2 == 0


@pytest.mark.parametrize(
    ("column", "values", "finding"),
    [
        ("count", NEXT["count"] + 1000, "the mean moved from"),
        ("count", NEXT["count"] * 10, "the mean moved from"),
        ("count", NEXT["count"].where(HALF, NEXT["count"] * 10), "the spread is"),
        ("count", NEXT["count"].where(RNG(0).random(400) < 0.8, 9999), "the spread is"),
        ("count", 200 + NEXT["count"] / 20, "the spread is"),
        ("count", NEXT["count"].where(np.arange(400) % 4 > 0, 0), "25% of the rows have 0, 0% bef"),
        ("hum", 50.0, "every row has 50.0, where"),
        ("hum", math.nan, "100% of the cells are missing, 0% before"),
        ("hum", NEXT["hum"].where(np.arange(400) % 10 == 0), "90% of the cells are missing"),
        ("temp", NEXT["temp"] * 1.8 + 32, "look like degrees Fahrenheit, not Celsius"),
        ("temp", NEXT["temp"].where(HALF, NEXT["temp"] * 1.8 + 32), "degrees Fahrenheit"),
        ("temp", NEXT["temp"] + 273.15, "the same shape on another scale"),
        ("hum", NEXT["hum"] / 100, "the same shape on another scale"),
        ("hum", NEXT["hum"] * 1000, "the same shape on another scale"),
        ("sky", NEXT["sky"].str.upper(), "known categories are written in another way: 'CLEAR'"),
        ("sky", " " + NEXT["sky"], "known categories are written in another way"),
        ("sky", NEXT["sky"].where(HALF, NEXT["sky"].str.title()), "written in another way"),
        ("sky", NEXT["sky"].map({"clear": "1", "mist": "2", "rain": "3"}), "hardly any category"),
        ("month", None, "100% of the cells are missing"),
    ],
)
def test_broken_column_is_named_with_what_is_wrong(column, values, finding):
    found = findings(**{column: values})
    assert len(found) == 1
    assert found[0].startswith(f"{column}: ")
    assert finding in found[0]


def test_index_of_prices_that_rose_is_in_no_other_unit():
    old, new = RNG(0).normal(0.57, 0.002, 300), RNG(1).normal(0.67, 0.002, 300)
    assert drift._rescaled(old, new) == ""
    assert drift._rescaled(old, 3 * new) != ""


def test_next_file_of_a_target_with_a_long_tail_is_no_broken_one():
    def found(old, new, factor=1.0):
        table, after = (pd.DataFrame({"cost": cost}) for cost in (old, new * factor))
        return drift.suspicious(table, after, {}, "cost")

    pairs = [np.split(RNG(n).lognormal(8, 2, 600), [400]) for n in range(200)]
    alone = [not 1 / 4 <= new.std() / old.std() <= 4 for old, new in pairs]
    assert sum(alone) > 10  # the spread moves by chance
    assert sum(bool(found(*pair)) for pair in pairs) <= 1
    assert not any(drift._rescaled(*pair) for pair in pairs)
    assert all(drift._rescaled(old, new * factor) for old, new in pairs for factor in (0.002, 500))
    assert all(found(*pair, factor) for pair in pairs[:50] for factor in (0.02, 50))


def test_fahrenheit_becoming_celsius_is_found_and_a_hot_summer_is_not():
    spring = station().assign(temp=15 + (station()["temp"] - 15) / 2)
    old = spring.assign(temp=spring["temp"] * 1.8 + 32)
    found = drift.suspicious(old, spring, STATION, "count")
    assert len(found) == 1
    assert "look like degrees Celsius, not Fahrenheit" in found[0]
    for warmer in (5, 10, 15, 20):
        summer = station().assign(temp=station()["temp"] + warmer)
        assert drift.suspicious(station(), summer, STATION, "count") == []


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"rain": 0.0},
        {"year": 2013.0},
        {"year": 2012.0},
        {"month": "2024-09"},
        {"month": np.repeat([f"2025-{k:02}" for k in range(1, 9)], 50)},
        {"month": RNG(0).choice(["2025-01", "2025-02"], 400)},
        {"sky": "clear"},
        {"sky": RNG(0).choice(["clear", "hail", "fog", "mist"], 400)},
        {"day": 99_000.0 + np.arange(400)},
        {"hum": NEXT["hum"].where(HALF)},
        {"count": NEXT["count"] * 1.5},
        {"count": NEXT["count"].where(np.arange(400) % 6 > 0, 0)},
        {"temp": NEXT["temp"] + 12},
    ],
)
def test_natural_drift_is_not_stopped(changed):
    assert findings(**changed) == []


def stopped(old, new, kind="numeric"):
    """Look at files of one column beside a target that stays as it was."""
    (name,) = old.columns
    files = (table.assign(y=np.arange(len(table)) % 2.0) for table in (old, new))
    return drift.suspicious(*files, {name: kind}, "y")


def test_counter_may_run_on_in_order_or_shuffled():
    old = pd.DataFrame({"id": np.arange(400.0)})
    for new in (np.arange(9000.0, 9400.0), RNG(0).permutation(np.arange(9000.0, 9400.0))):
        assert stopped(old, pd.DataFrame({"id": new})) == []
    again = pd.DataFrame({"id": RNG(0).integers(9000, 9400, 400).astype(float)})
    assert len(stopped(old, again)) == 1


def test_constant_year_is_natural_and_a_sensor_that_sticks_is_not():
    years = pd.DataFrame({"x": np.repeat(np.arange(1990.0, 2020.0), 15)})
    shuffled = years.sample(frac=1, random_state=0)
    for old, value, expected in (
        (years, 2005, False),  # comes in blocks
        (shuffled, 2020, False),  # moves on
        (shuffled, 2005, True),
        (shuffled, 9999, True),
    ):
        new = pd.DataFrame({"x": [float(value)] * 40})
        assert bool(stopped(old, new)) is expected


def test_far_values_of_another_shape_are_no_other_unit():
    old = pd.DataFrame({"x": RNG(0).normal(100, 1, 400)})
    for values, expected in (
        (RNG(1).normal(200, 1, 400), True),
        (np.where(np.arange(400) % 8, 200 + RNG(1).normal(0, 0.1, 400), 215), False),
    ):
        assert bool(stopped(old, pd.DataFrame({"x": values}))) is expected


def test_unknown_categories_in_blocks_are_natural_and_mixed_ones_are_not():
    old = pd.DataFrame({"x": ["January", "February", "March"] * 100})
    blocks = pd.DataFrame({"x": np.repeat(["April", "May", "June"], 100)})
    assert stopped(old, blocks, "categorical") == []
    mixed = blocks.sample(frac=1, random_state=0)
    assert len(stopped(old, mixed, "categorical")) == 1


def test_target_may_move_far_with_its_season_but_not_alone():
    old, new = station(), station(seed=1)
    far = new.assign(count=new["count"] + 4 * old["count"].std())
    assert len(drift.suspicious(old, far, STATION, "count")) == 1
    moved = far.assign(temp=far["temp"] + 17)
    assert drift.suspicious(old, moved, STATION, "count") == []


@pytest.mark.parametrize("n_rows", [0, 1, 4, 19, 40])
def test_few_natural_rows_and_odd_tables_raise_no_alarm(n_rows):
    old = station()
    assert drift.suspicious(old, station(seed=2).head(n_rows), STATION, "count") == []
    assert drift.suspicious(old.head(n_rows), old, STATION, "count") == []
    empty = old.assign(temp=math.nan, sky=None)
    assert drift.suspicious(empty, empty, STATION, "count") == []
    assert drift.suspicious(empty, old, STATION, "count") == []


def test_finding_on_one_line_whatever_the_names():
    old = station().rename(columns={"hum": "a\nb"})
    found = stopped(old[["a\nb"]], old[["a\nb"]] * 0 + 50)
    assert found[0].startswith("a b: every row has 50.0")


# --- attribution


def split(y, parent, control, retrained, unit=""):
    models = {"parent": parent, "control": control, "retrained": retrained}
    return comparison.attribution(y, models, unit)


def test_gain_splits_into_more_training_and_new_data_that_add_up():
    y = np.full(5, 1000.0)
    found = split(y, y + 700, y + 630, y + 280, "€")
    estimates = {name: part.estimate for name, part in found.gains.items()}
    assert estimates == {"total": 420, "training again": 70, "new data": 350}
    assert found.sentence == (
        "of the gain of 420 €, 350 € come with the new data, 70.0 € from training again"
    )


def test_new_data_that_add_nothing_to_the_control_are_said_to_bring_nothing():
    y = targets(400)
    models = noisy(y, 5000, 1), noisy(y, 3000, 2), noisy(y, 3000, 3)
    found = split(y, *models)
    assert found.gains["new data"].low < 0 < found.gains["new data"].high
    assert found.sentence.endswith("with the new data, which is no proven gain")
    assert "come with" not in found.sentence


def test_new_data_that_help_are_named_in_nearly_every_trial():
    named = 0
    for seed in range(20):
        y = targets(400, seed)
        models = (noisy(y, error, 100 * k + seed) for k, error in enumerate((5000, 4500, 3000)))
        named += "come with the new data" in split(y, *models).sentence
    assert named >= 18


def test_loss_is_called_a_loss():
    y = targets(400)
    found = split(y, noisy(y, 3000, 1), noisy(y, 3000, 2), noisy(y, 6000, 3))
    assert found.gains["total"].high < 0
    loss, more, new, low, high = map(
        float, re.findall(r"[+-][\d.]+", found.sentence.replace(",", ""))
    )
    assert found.sentence.startswith("there is no gain: of +")
    assert loss == pytest.approx(more + new, abs=2)
    assert 0 < low < new < high


def test_gain_within_chance_is_not_put_down_to_the_new_data():
    y = np.zeros(40)
    parent = np.where(np.arange(40) % 2, 10.0, 0.0)
    child = np.where(np.arange(40) % 2, 0.0, 9.0)
    found = split(y, parent, parent, child)
    assert found.sentence.startswith("of the gain of 0.500, ")


# --- drift


def column_drift(old, new, kind="numeric"):
    frames = (pd.DataFrame({"x": values}) for values in (old, new))
    return drift.drift(*frames, {"x": kind}).iloc[0]


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
    found = drift.drift(old, new, {"c": "categorical"}).iloc[0]
    assert found["p_value"] == pytest.approx(0.038, abs=5e-4)
    assert found["drifted"]
    beside = [frame.assign(d="x") for frame in (old, new)]
    both = drift.drift(*beside, {"c": "categorical", "d": "categorical"})
    assert not both["drifted"].any()


def test_large_samples_of_one_distribution_do_not_drift_although_p_values_get_tiny():
    assert not drift.drift(*two_populations(50_000, 50_000, 0))["drifted"].any()
    faint = RNG(0).normal(size=100_000)
    found = column_drift(faint, faint + 0.05)
    assert found["p_value"] < 1e-6
    assert not found["drifted"]


def test_shift_drifts_in_every_column():
    assert drift.drift(*two_populations(1600, 1600, 1, shift=0.5))["drifted"].all()


@pytest.mark.parametrize("n_new", [3, 10, 25])
def test_tiny_samples_of_one_distribution_hardly_ever_drift(n_new):
    tables = [drift.drift(*two_populations(400, n_new, seed)) for seed in range(20)]
    far = sum((table["distance"] > drift.DRIFT_DISTANCE).sum() for table in tables)
    assert far > 50  # the distance alone would fire all the time
    assert sum(table["drifted"].any() for table in tables) <= 2


def test_limit_for_p_shrinks_with_the_number_of_tests():
    old, new = RNG(0).normal(size=100), RNG(1).normal(0.45, 1, 60)
    alone = column_drift(old, new)
    assert 0.05 / 40 < alone["p_value"] < 0.05 / 2
    many = {f"x{k}": "numeric" for k in range(20)}
    frames = (pd.DataFrame(dict.fromkeys(many, values)) for values in (old, new))
    assert alone["drifted"]
    assert not drift.drift(*frames, many)["drifted"].any()


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


def test_target_is_one_more_numeric_line():
    frame = pd.DataFrame({"x": ["a"] * 9, "amount": np.arange(9.0)})
    table = drift.drift(frame, frame, {"x": "categorical", "amount": "numeric"})
    assert table["column"].tolist() == ["x", "amount"]
    assert table["kind"].tolist() == ["categorical", "numeric"]
    assert list(table.columns) == drift.DRIFT_COLUMNS


def test_date_that_moves_forward_does_not_drift_but_one_that_goes_missing_does():
    days = np.arange(400.0)
    found = column_drift(days, days + 400, "date")
    assert found["distance"] > 3
    assert not found["drifted"]
    assert column_drift(days, np.where(days % 2, np.nan, days), "date")["drifted"]


def test_summary_has_at_most_two_lines_of_printable_text():
    old = pd.DataFrame({"a\nb": np.zeros(50), "kind": ["x"] * 50, "quiet": 1.0})
    new = pd.DataFrame({"a\nb": np.ones(50), "kind": ["\x1b[31mred"] * 50, "quiet": 1.0})
    table = drift.drift(old, new, {"a\nb": "numeric", "kind": "categorical"})
    assert drift.drift_summary(table) == [
        "drift: 2 of 2 columns: a b 2.00, kind 1.00",
        "new categories: kind ( [31mred)",
    ]
    calm = drift.drift(old, old, {"quiet": "numeric"})
    assert drift.drift_summary(calm) == ["drift: 0 of 1 columns"]


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


# --- what models rest on


def switches(n=400, seed=0):
    """Make rows whose target is 10 where "on" says so, beside noise that says nothing."""
    rng = RNG(seed)
    on = rng.permutation(np.arange(n) % 2)
    rows = pd.DataFrame({"on": np.where(on, "yes", "no"), "noise": rng.normal(size=n)})
    rows.loc[: n // 10, "noise"] = np.nan
    return rows.assign(idle=1.0), 10.0 * on


def reading(rows):
    """Predict with the switch, and be disturbed by the noise a little."""
    return 10.0 * (rows["on"] == "yes").to_numpy() + 0.3 * rows["noise"].fillna(0).to_numpy()


def blind(rows):
    return np.full(len(rows), 5.0)


def test_shuffling_what_matters_costs_what_was_worked_out_by_hand_and_the_rest_nothing():
    rows, y = switches()
    models = {"parent": blind, "retrained": lambda table: 10.0 * (table["on"] == "yes").to_numpy()}
    found = comparison.importance(models, rows, y, ["idle", "noise", "on"])
    assert found["column"].tolist()[0] == "on"
    line = found.set_index("column").loc["on"]
    assert line["retrained"] == pytest.approx(5, abs=0.4)  # half of the rows get the wrong 10
    assert 4 < line["retrained_low"] < 5 < line["retrained_high"] < 6
    for share in (0.1, 0.3, 0.7):  # and nothing by rounding
        constant = {"m": lambda table, share=share: np.full(len(table), share / 3)}
        assert comparison.importance(constant, rows[:200], y[:200], ["on"]).loc[0, "m"] == 0
    rest = found.set_index("column").drop(columns=["retrained", "retrained_low", "retrained_high"])
    assert (rest == 0).all(axis=None)
    assert (found.set_index("column").loc[["idle", "noise"]] == 0).all(axis=None)


def test_column_without_relation_to_the_target_has_an_interval_around_zero():
    covered = 0
    for seed in range(40):
        rows, y = switches(120, seed)
        found = comparison.importance({"m": reading}, rows, y, list(rows))
        low, high = found.set_index("column").loc["noise", ["m_low", "m_high"]]
        covered += low <= 0 <= high
        assert found.set_index("column").loc["on", "m_low"] > 0
    assert covered >= 36


def test_importance_takes_few_rows_few_columns_and_whole_groups():
    rows, y = switches(5000)
    calls = []

    def counting(table):
        calls.append(len(table))
        return reading(table)

    names = [f"x{k}" for k in range(150)]
    wide = pd.concat([rows, pd.DataFrame(0.0, rows.index, names)], axis=1)
    found = comparison.importance({"m": counting}, wide, y, list(wide))
    assert len(found) == 20
    assert calls == [2000] * 101
    calls.clear()
    again = [comparison.importance({"m": counting}, rows[:80], y[:80], ["on"]) for _ in "ab"]
    assert calls == [80, 800] * 2
    pd.testing.assert_frame_equal(*again)
    by_group = comparison.importance(
        {"m": reading}, rows[:80], y[:80], ["on"], groups=np.arange(80) // 20
    )
    width = [float((t["m_high"] - t["m_low"]).iloc[0]) for t in (again[0], by_group)]
    assert width[1] != pytest.approx(width[0])


def test_dependence_is_the_mean_prediction_with_the_column_set_to_each_value():
    rows, _ = switches()
    models = {"parent": blind, "retrained": reading}
    by_text = comparison.dependence(models, rows, "on")
    noise = 0.3 * rows["noise"].fillna(0).mean()
    assert by_text["retrained"].to_dict() == pytest.approx({"yes": 10 + noise, "no": noise})
    assert by_text["parent"].tolist() == [5, 5]
    by_number = comparison.dependence(models, rows, "noise")
    assert len(by_number) == 15
    assert by_number.index.is_monotonic_increasing
    assert by_number["retrained"].to_numpy() == pytest.approx(5 + 0.3 * by_number.index.to_numpy())
    many = pd.DataFrame({"x": [f"c{k}" for k in range(50)]})
    assert len(comparison.dependence({"m": blind}, many, "x")) == comparison.LARGEST


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
    assert words.format_amount(value) == text


def test_intervals_are_written_with_signs_and_unit():
    assert words.format_interval(Interval(-420, -540, 30), "€") == "-420 € (-540 to +30.0)"
    assert words.format_interval(Interval(2000, 0, 3000)) == "+2,000 (+0 to +3,000)"


def test_markup_is_escaped_character_by_character():
    assert words.escape_markdown("<script>&") == "&lt;script&gt;&amp;"
    for character in "\\`*_[]{}#|~$!":
        assert words.escape_markdown(f"a{character}b") == f"a\\{character}b"
    assert words.escape_markdown("a\nb\r\tc\x1b\u202ed") == "a b  c  d"
    assert words.escape_markdown("http://x.y www.x.y a@b") == r"http\://x.y www\.x.y a&#64;b"
    assert words.escape_markdown(12) == "12"


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
    safe = words.safe_cells(table)
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


def test_ten_tries_on_the_same_rows_call_a_useless_model_better_as_rarely_as_one():
    rng, n_rows, trials = np.random.default_rng(0), 100, 2_000
    wrong = at_95 = 0
    for trial in range(trials):
        shared = rng.normal(size=n_rows)  # the same rows: what a try finds, others find, too
        for number in range(1, 11):
            change = 0.3 * shared + rng.normal(size=n_rows)
            bound = comparison.confidence_of(number)
            wrong += comparison.paired_interval(change, confidence=bound).high < 0
            if trial < 300:
                at_95 += comparison.paired_interval(change).high < 0
            if number == 1:
                first = wrong
    assert wrong / trials <= 0.032  # 2.5 %, and two standard errors of the simulation
    assert at_95 / 300 > 0.15
    assert 1 - comparison.confidence_of(1) == pytest.approx(0.045)
    left = [1 - comparison.confidence_of(number) for number in range(1, 500)]
    assert 0.0499 < sum(left) <= 0.05
    assert min(left) > 1e-8  # a proof stays possible, also of a gain that many tries missed
    assert first <= wrong


def test_interval_covers_zero_where_few_groups_hold_most_rows():
    """With n - 1 degrees of freedom it covered 79 % here, and every tenth useless model passed."""
    groups, trials = np.repeat(np.arange(22), [200, 200, *[1] * 20]), 400
    rng = np.random.default_rng(3)
    covered = proven = 0
    for _ in range(trials):
        shared = rng.normal(0, math.sqrt(0.3), 22)[groups]
        found = comparison.paired_interval(
            shared + rng.normal(0, math.sqrt(0.7), len(groups)), groups
        )
        covered += found.low <= 0 <= found.high
        proven += found.high < 0
    assert covered >= 0.92 * trials
    assert proven <= 0.04 * trials


def test_relation_that_turned_round_is_no_broken_file_where_the_child_learnt_it():
    rng = np.random.default_rng(0)
    x = {part: rng.normal(0, 1, 200) for part in ("new", "old")}
    y = {"new": -x["new"], "old": x["old"]}
    zeros = {"mean": np.zeros(200), "median": np.zeros(200)}
    made = {part: {"parent": x[part], "retrained": y[part] + 0.1, **zeros} for part in x}
    whole, options = (y["new"], x["new"]), {"new": {}, "old": {}}
    assert comparison.lost_skill(y, made, whole, options) == []
    made["new"]["retrained"] = x["new"]
    assert "as if it were shuffled" in comparison.lost_skill(y, made, whole, options)[0]


def test_unchanged_category_is_rarely_called_worse_where_its_rows_come_in_groups():
    rng, worse = np.random.default_rng(1), 0
    customers = np.repeat(np.arange(40), 10)
    rows = pd.DataFrame({"zone": ["nord"] * 400})
    for _ in range(200):
        shift = rng.normal(0, 1, 40)[customers] + rng.normal(0, 1, 400)
        y = np.zeros(400)
        before, after = y + 100, y + 100 + shift
        worse += comparison.groups(rows, ["zone"], y, before, after, groups=customers)["worse"][0]
    assert worse <= 0.05 * 200


def test_interval_of_rows_in_time_covers_zero_where_errors_last_for_days():
    rng, trials = np.random.default_rng(0), 400
    role, table = roles.Roles(1, 1, time="t"), pd.DataFrame({"t": np.arange(150.0)})
    (labels,) = roles.blocks_of_rows(table, role)
    covered = 0
    for _ in range(trials):
        change = np.zeros(250)
        for day in range(1, 250):
            change[day] = 0.8 * change[day - 1] + rng.normal()
        found = comparison.paired_interval(change[100:], labels, comparison.confidence_of(1))
        covered += found.low <= 0 <= found.high
    assert 0.89 <= covered / trials <= 0.97  # 80 % with 30 blocks


def test_of_groups_and_times_those_count_that_widen_the_interval():
    rng = np.random.default_rng(0)
    day, customer = np.repeat(np.arange(20), 30), np.tile(np.arange(30), 20)
    y = np.zeros(600)
    for shared, widest in ((day, day), (customer, customer)):
        error = rng.normal(size=30)[shared] + 0.1 * rng.normal(size=600)
        models = {"parent": np.zeros(600) + 5, "retrained": 5 + error}
        assert comparison.widest(y, models, [customer, day]) is widest
    assert comparison.widest(y, models, [None]) is None


# --- findings: natural files of few rows, of one shop, and broken ones ---------------------------


@pytest.mark.parametrize("n_rows", [20, 40, 100])
def test_few_rows_of_rare_events_are_no_broken_file(n_rows):
    rng = np.random.default_rng(n_rows)
    draws = (
        lambda n: rng.lognormal(5, 1, n) * (rng.random(n) < 0.05),
        lambda n: rng.poisson(0.03, n).astype(float),
        lambda n: rng.lognormal(5, 2, n),
    )
    for draw in draws:
        for _ in range(30):
            old, new = (pd.DataFrame({"y": draw(n)}) for n in (1_500, n_rows))
            assert drift.suspicious(old, new, {}, "y") == []


def shops(n_rows, rng, shop=None):
    """Make rows of 60 shops, each with a level of its own; or of one of them."""
    place = rng.integers(0, 60, n_rows) if shop is None else np.full(n_rows, shop)
    table = pd.DataFrame({"shop": [f"s{number}" for number in place], "size": place * 7.0})
    table["age"] = (place * 13.0) % 60
    level = np.random.default_rng(9).normal(0, 10, 60)
    return table.assign(y=level[place] + rng.normal(0, 1, n_rows))


def test_file_of_one_known_shop_or_customer_is_natural_and_a_stuck_sensor_is_not():
    rng = np.random.default_rng(0)
    kinds = {"shop": "categorical", "size": "numeric", "age": "numeric"}
    old = shops(2_400, rng)
    for shop in (3, 17, 42):
        new = shops(60, rng, shop)
        assert drift.suspicious(old, new, kinds, "y") == []
        assert drift.suspicious(old, new, kinds | {"shop": "date"}, "y")[:-1] == []
        broken = drift.suspicious(old, new.assign(y=new["y"] + 500), kinds, "y")
        assert broken[0].startswith("y: the mean moved")
    stuck = drift.suspicious(old, shops(60, rng).assign(age=24.0), kinds, "y")
    assert stuck[0].startswith("age: every row has 24.0")


def test_amounts_in_cents_are_found_whole_or_sorted_and_clocks_run_on():
    rng = np.random.default_rng(0)
    old = pd.DataFrame({"x": rng.integers(500, 5_000, 400).astype(float)})
    prices = rng.choice(np.arange(500.0, 5_000.0), 120, replace=False)
    for new in (100 * prices, 100 * np.sort(prices), 100 * np.sort(prices)[::-1]):
        assert stopped(old, pd.DataFrame({"x": new}))[0].startswith("x: the same shape on another")
    clock = pd.DataFrame({"x": np.linspace(0, 1_000, 400)})
    assert stopped(clock, pd.DataFrame({"x": np.linspace(50_000, 50_020, 120)})) == []


def test_number_that_stands_for_missing_ones_is_found_and_a_new_price_is_not():
    old, new = station(), station(seed=2)
    half = new.assign(hum=new["hum"].where(new.index % 2 == 0, -999.0))
    found = drift.suspicious(old, half, STATION, "count")
    assert found == ["hum: 50% of the rows have -999, far beyond all known before"]
    dear = new.assign(hum=new["hum"].where(new.index % 2 == 0, 120.0))
    assert drift.suspicious(old, dear, STATION, "count") == []


def test_file_is_judged_by_its_own_rows_whatever_kept_versions_held_out():
    rng, n = np.random.default_rng(0), 60
    x = rng.normal(size=2 * n)
    y = np.concatenate([x[:n] + 0.1 * rng.normal(size=n), rng.permutation(x[n:])])  # shuffled
    new = pd.DataFrame({roles.GENERATION: np.repeat([1, 2], n)})
    rows = SimpleNamespace(held_out={"new": new}, file=new[n:])
    made = {"new": {"parent": x, "retrained": x, "mean": np.zeros(2 * n)}, "old": {"parent": x}}
    options = {"new": {"groups": None, "weights": np.arange(2 * n)}}
    own = evidence._of_the_file(rows, {"new": y, "old": x}, made, options)
    assert own[0]["new"].tolist() == y[n:].tolist()
    assert own[0]["old"] is x
    assert own[1]["new"]["mean"].shape == (n,)
    assert own[1]["old"] is made["old"]
    assert own[2]["new"]["groups"] is None
    assert own[2]["new"]["weights"].tolist() == [*range(n, 2 * n)]
    rows.file = pd.DataFrame({roles.GENERATION: [3, 3]})  # none of its rows is held out
    assert len(evidence._of_the_file(rows, {"new": y})[0]["new"]) == 2 * n


def test_r2_is_unknown_where_all_targets_are_equal():
    found = comparison.evaluate([1.0, 1, 1], {"parent": [1, 1, 1], "retrained": [1, 2, 1]})
    assert found.scores["R²"].isna().all()
