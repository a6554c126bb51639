"""Claims about toolkit/encoding.py: what each input holds, how it grows, how it travels."""

import json
from dataclasses import asdict

import keras
import numpy as np
import pandas as pd
import pytest

from toolkit import encoding
from toolkit.columns import Column, Schema
from toolkit.encoding import FOLDS, PARTS, Input, Preprocessor
from toolkit.errors import UserError

N = 400
RNG = np.random.default_rng


def schema_of(**kinds):
    columns = [Column(name, kind, date_format="ISO8601") for name, kind in kinds.items()]
    return Schema(Column("y", "numeric"), tuple(columns))


def table_of(**columns):
    return pd.DataFrame(columns).astype({name: "str" for name in columns if name[0] == "c"})


def fit(table, y=None, folds=None):
    """Fit on a table whose columns are named by what they hold: x… numbers, c… texts, d… dates."""
    kinds = {"x": "numeric", "c": "categorical", "d": "date"}
    y = np.arange(len(table), dtype=float) if y is None else np.asarray(y, float)
    folds = np.arange(len(table)) % FOLDS if folds is None else folds
    schema = schema_of(**{name: kinds[name[0]] for name in table})
    return Preprocessor.fit(table, schema, y, folds)


def only(preprocessor, *parts):
    return [each for each in preprocessor.inputs if each.part in parts]


def marks(column, *levels, other=False, missing=False):
    """List the inputs of a category: its levels, one for the others, one where it is missing."""
    found = [Input(column, "level", level) for level in levels]
    found += [Input(column, "other")] if other else []
    return [*found, Input(column, "missing")] if missing else found


# --- numbers -------------------------------------------------------------------------------------


def test_number_is_standardised_by_its_mean_and_standard_deviation():
    table = table_of(x=[1.0, 3.0] * 100)
    X = fit(table).transform(table_of(x=[1.0, 3.0, 2.0]))
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, [[-1], [1], [0]])


def test_missing_number_is_the_mean_with_a_mark_beside_it():
    table = table_of(x=[1.0, 3.0, np.nan] * 100)
    np.testing.assert_array_equal(fit(table).transform(table[:3]), [[-1, 0], [1, 0], [0, 1]])


def test_missing_number_where_none_was_missing_before_is_the_mean():
    X = fit(table_of(x=[1.0, 3.0] * 100)).transform(table_of(x=[np.nan]))
    np.testing.assert_array_equal(X, [[0]])


@pytest.mark.parametrize(
    "values", [{"x": [7.0] * 50}, {"x": [np.nan] * 50}, {"c": ["a"] * 50}, {"d": [3.0] * 50}]
)
def test_column_that_never_varies_gets_no_input(values):
    assert fit(table_of(**values)).width == 0
    assert fit(table_of(**values)).transform(table_of(**values)).shape == (50, 0)


def test_beyond_the_known_range_a_number_saturates_smoothly_and_in_order():
    values = RNG(0).normal(size=N)
    preprocessor = fit(table_of(x=values))
    (number,) = only(preprocessor, "value")
    grid = np.linspace(-10, 10, 4_001)
    z = preprocessor.transform(table_of(x=grid))[:, 0].astype(float)
    steps = np.diff(z) / np.diff(grid) * number.scale
    assert (steps >= 0).all()
    assert steps.max() <= 1.001  # nowhere steeper than within the range
    assert np.abs(np.diff(steps)).max() < 0.02  # and no kink
    low, high = number.edges[0] - 1, number.edges[-1] + 1
    assert low <= z.min()
    assert z.max() <= high
    inside = (grid > values.min()) & (grid < values.max())
    np.testing.assert_allclose(z[inside], (grid[inside] - number.center) / number.scale, atol=1e-6)
    far = preprocessor.transform(table_of(x=[-1e300, 1e300, 999_999_999.0]))[:, 0]
    np.testing.assert_allclose(far, [low, high, high], rtol=1e-6)


def test_absurd_cell_does_not_squeeze_the_others():
    values = RNG(0).normal(size=N)
    clean = fit(table_of(x=values)).transform(table_of(x=values))[:, 0]
    values[7] = 999_999_999
    spoiled = fit(table_of(x=values)).transform(table_of(x=values))[:, 0]
    others = np.arange(N) != 7
    assert np.corrcoef(clean[others], spoiled[others])[0, 1] > 0.999
    assert spoiled[others].std() > 0.8
    assert spoiled[7] < 10


def test_bins_hold_equally_many_rows_or_lie_at_each_of_few_values():
    values = np.linspace(0, 1, 2_001)
    preprocessor = fit(table_of(x=values))
    ((place, edges),) = preprocessor.bins
    z = preprocessor.transform(table_of(x=values))[:, place]
    counts, _ = np.histogram(z, np.float32(edges))
    assert len(counts) == encoding.BINS
    assert np.ptp(counts) <= 2
    assert len(fit(table_of(x=values[::10])).bins[0][1]) == encoding.FEW_ROWS_BINS + 1
    few = fit(table_of(c=["a", "b"] * 100, x=[0.0, 1.0, 2.0, 9.0] * 50))
    ((place, edges),) = few.bins
    assert place == 2  # after the two categories
    np.testing.assert_allclose(
        edges, few.transform(table_of(c=["a"] * 4, x=[0.0, 1.0, 2.0, 9.0]))[:, 2], rtol=1e-6
    )
    assert fit(table_of(x=[0.0, 1.0] * 100)).bins == []  # two values need none


@pytest.mark.parametrize(
    ("n_values", "n_each", "n_edges"),
    [(100, 40, 100), (100, 39, 33), (128, 40, 128), (129, 40, 33), (20, 40, 20), (20, 39, 17)],
)
def test_each_value_of_a_code_has_a_bin_where_it_is_common(n_values, n_each, n_edges):
    codes = np.repeat(np.arange(n_values) ** 2.0, n_each)
    (number,) = fit(table_of(x=codes), y=RNG(0).random(len(codes))).inputs
    assert len(number.edges) == n_edges
    (measured,) = fit(table_of(x=codes / 4)).inputs  # no code has a fraction
    assert len(measured.edges) == min(n_edges, 33 if len(codes) >= 1_000 else 17)


def test_half_of_the_values_may_be_rare():
    codes = np.r_[np.repeat(np.arange(40.0), 50), np.arange(40, 79)]
    assert len(fit(table_of(x=codes)).inputs[0].edges) == 79
    assert len(fit(table_of(x=np.r_[codes, 79, 80])).inputs[0].edges) == 33


# --- dates ---------------------------------------------------------------------------------------


def test_parts_of_a_date_are_those_of_the_calendar():
    times = pd.to_datetime(["1970-01-01 00:00", "2024-02-29 18:30", "1969-12-31 06:00"])
    days = (times - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1)
    parts = {name: encoding._part(pd.Series(days), name) for name in PARTS}
    np.testing.assert_array_equal(parts["elapsed"], np.floor(days))
    np.testing.assert_array_equal(parts["year"], times.year)
    np.testing.assert_array_equal(parts["month"], times.month)
    np.testing.assert_array_equal(parts["weekday"], times.weekday)
    np.testing.assert_allclose(parts["hour"], times.hour + times.minute / 60)
    turn = 2 * np.pi * (times.dayofyear - 1) / encoding.YEAR
    np.testing.assert_allclose(parts["sine"], np.sin(turn), atol=1e-12)
    np.testing.assert_allclose(parts["cosine"], np.cos(turn), atol=1e-12)
    for name in PARTS:
        assert np.isnan(encoding._part(pd.Series([np.nan]), name)).all()
        assert np.isfinite(
            encoding._part(pd.Series([-1e15, 1e30]), name)
        ).all()  # no date, no error


def test_dates_get_inputs_for_the_parts_that_vary():
    one_year = fit(table_of(d=np.arange(18_262.0, 18_262 + 366)))  # 2020
    assert [each.part for each in one_year.inputs] == [
        *("elapsed", "month", "weekday", "sine", "cosine")
    ]
    with_hours = fit(table_of(d=18_262 + np.arange(48) / 24))
    assert "hour" in [each.part for each in with_hours.inputs]


# --- categories ----------------------------------------------------------------------------------


def test_categories_missing_and_rare_ones_get_an_input_each_and_unknown_ones_that_of_the_rare():
    table = table_of(c=["b"] * 40 + ["a"] * 40 + ["r"] * 9 + ["s"] * 9 + [None] * 120)
    preprocessor = fit(table)
    assert [*preprocessor.inputs] == marks("c", "a", "b", other=True, missing=True)
    X = preprocessor.transform(table_of(c=["a", "b", "r", "s", "unknown", None]))
    a, b, other, missing = np.eye(4)
    np.testing.assert_array_equal(X, [a, b, other, other, other, missing])


def test_unknown_and_missing_categories_are_zeros_where_training_had_neither():
    X = fit(table_of(c=["a", "b"] * 50)).transform(table_of(c=["a", "unknown", None]))
    np.testing.assert_array_equal(X, [[1, 0], [0, 0], [0, 0]])


def test_number_is_the_category_of_its_value():
    preprocessor = fit(table_of(c=["0111", "01", "10", "1.10", "2.5", "text"] * 20))
    texts, notes = table_of(c=["0111", "01", "10", "2.5", None]), []
    expected = preprocessor.encode(texts, notes.append)
    for kind in ("float64", "float32", "Float64"):
        numbers = pd.DataFrame({"c": pd.array([111, 1, 10, 2.5, None], kind)})
        np.testing.assert_array_equal(preprocessor.encode(numbers, notes.append), expected)
    whole = pd.DataFrame({"c": [111, 1, 10]})
    np.testing.assert_array_equal(preprocessor.encode(whole, notes.append), expected[:3])
    assert not notes


def test_number_that_may_be_two_categories_is_asked_about():
    preprocessor = fit(table_of(c=["1.1", "1.10", "1.2"] * 20))
    with pytest.raises(UserError, match=r"1\.1, which may be any of '1\.1', '1\.10'; exp"):
        preprocessor.encode(pd.DataFrame({"c": [1.2, 1.1]}))
    np.testing.assert_array_equal(
        preprocessor.encode(table_of(c=["1.1", "1.10"]))[:, :2], [[1, 0], [0, 1]]
    )


def test_few_rows_keep_categories_of_a_twentieth_of_them():
    preprocessor = fit(table_of(c=["a"] * 36 + ["b"] * 2 + ["r", "s"]))
    assert [*preprocessor.inputs] == marks("c", "a", "b", other=True)


def many_levels():
    """Make 40 categories of 20 rows each, whose targets are apart by category."""
    levels = np.repeat(np.arange(40), 20)
    y = levels + RNG(0).normal(size=len(levels))
    return table_of(c=[f"level {level}" for level in levels]), y, RNG(1).integers(0, FOLDS, len(y))


def test_mean_target_of_many_categories_is_smoothed_towards_the_overall_mean():
    table, y, folds = many_levels()
    y += RNG(5).normal(size=len(y)) * 20
    preprocessor = fit(table, y, folds)
    (mean,) = only(preprocessor, "mean")
    z = (y - y.mean()) / y.std()
    rows = z.reshape(40, 20)  # one way analysis of variance, as many rows in each category
    within = rows.var(axis=1, ddof=1).mean()
    between = rows.mean(axis=1).var(ddof=1) - within / 20
    assert mean.smoothing == pytest.approx(within / between)
    assert 1 < mean.smoothing < 10
    X = preprocessor.transform(table_of(c=["level 0", "level 39", "unknown", None]))
    expected = rows[[0, -1]].sum(axis=1) / (20 + mean.smoothing)
    np.testing.assert_allclose(X[:, -1], [*expected, 0, 0], rtol=1e-5)


def test_mean_target_is_smoothed_the_more_the_less_categories_differ():
    table, y, folds = many_levels()
    exact, noise = np.repeat(RNG(0).normal(size=40), 20), RNG(2).normal(size=len(y))
    assert only(fit(table, exact, folds), "mean")[0].smoothing == 0.1
    assert only(fit(table, noise, folds), "mean")[0].smoothing > 100
    # Of groups of different sizes, and of known variances, it is the ratio of these.
    found = []
    for seed in range(200):
        rng = RNG(seed)
        c = np.repeat(np.arange(60), rng.integers(2, 40, 60))
        y = rng.normal(size=60)[c] + 2 * rng.normal(size=len(c))
        table = table_of(c=[f"level {level}" for level in c])
        found.append(only(fit(table, y, rng.integers(0, FOLDS, len(c))), "mean")[0].smoothing)
    assert np.median(found) == pytest.approx(4, rel=0.1)


def test_target_of_a_row_never_enters_its_own_training_input():
    table, y, folds = many_levels()
    z = (y - y.mean()) / y.std()
    preprocessor = fit(table, y, folds)
    smoothing = only(preprocessor, "mean")[0].smoothing
    inputs = preprocessor.transform(table, folds)[:, -1]
    for row in range(0, len(y), 37):
        others = (table["c"] == table["c"][row]) & (folds != folds[row])
        expected = z[others].sum() / (others.sum() + smoothing)
        assert inputs[row] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    # Pure noise by category: the encoding of training rows must not foretell it.
    noise = RNG(2).normal(size=len(y))
    inputs = fit(table, noise, folds).transform(table, folds)[:, -1]
    assert np.corrcoef(inputs, noise)[0, 1] < 0.05


def test_categories_that_never_repeat_have_no_mean_target():
    table = table_of(c=[f"level {n}" for n in range(100)])
    preprocessor = fit(table)
    assert not only(preprocessor, "mean")
    np.testing.assert_array_equal(preprocessor.transform(table), np.ones((100, 1)))


def test_few_categories_need_no_mean_target():
    assert not only(fit(table_of(c=["a", "b", "d"] * 40)), "mean")


def schools(rng, n_schools=60, n_rows=8):
    """Make numbers of schools, the effect of each on its rows, and folds."""
    codes = np.repeat(rng.permutation(9 * n_schools)[:n_schools], n_rows).astype(float)
    effects = np.repeat(rng.normal(size=n_schools), n_rows)
    return codes, effects, rng.integers(0, FOLDS, len(codes))


def test_numbers_that_are_codes_have_the_mean_target_of_each_code():
    codes, effects, folds = schools(RNG(0))
    y = effects + RNG(1).normal(size=len(codes))
    preprocessor = fit(table_of(x=codes), y, folds)
    assert [each.part for each in preprocessor.inputs] == ["value", "mean"]
    z = (y - y.mean()) / y.std()
    X = preprocessor.transform(table_of(x=[codes[0], codes[-1], 0.5, np.nan]))
    smoothing = preprocessor.inputs[1].smoothing
    expected = [z[codes == code].sum() / (8 + smoothing) for code in codes[[0, -1]]]
    np.testing.assert_allclose(X[:, 1], [*expected, 0, 0], rtol=1e-5)
    copy = Preprocessor.from_dict(json.loads(json.dumps(asdict(preprocessor))))
    np.testing.assert_array_equal(
        copy.transform(table_of(x=codes)), preprocessor.transform(table_of(x=codes))
    )


def test_targets_of_some_rows_can_be_forgotten_in_the_means_of_the_latest_fit():
    table, y, folds = many_levels()
    table["x"], _, _ = schools(RNG(0), n_schools=100)
    y += np.repeat(RNG(2).normal(size=100), 8)
    unknown = RNG(3).random(len(y)) < 0.3
    first = fit(table, y, folds)
    both, _ = first.widen(table, y, folds)
    left = both.without(table, y, folds, unknown)
    n = both.first_input
    assert left.inputs[:n] == both.inputs[:n]
    means = [number for number, each in enumerate(both.inputs[n:], n) if each.part == "mean"]
    assert len(means) == 2
    z = (y - y.mean()) / y.std()
    for number in means:
        name = both.inputs[number].column
        for level in both.inputs[number].levels[:5]:
            rows = (table[name] == level).to_numpy() & ~unknown
            expected = z[rows].sum() / (rows.sum() + left.inputs[number].smoothing)
            made = left.transform(table[table[name] == level])[0, number]
            assert made == pytest.approx(expected, rel=1e-5)
    others = [number for number in range(len(both.inputs)) if number not in means]
    np.testing.assert_array_equal(
        left.transform(table)[:, others], both.transform(table)[:, others]
    )


def test_numbers_that_are_amounts_or_say_nothing_have_no_mean_target():
    for seed in range(20):
        rng = RNG(seed)
        ages = rng.integers(18, 90, 900).astype(float)
        smooth = np.sin(ages / 15) + rng.normal(size=900)
        folds = rng.integers(0, FOLDS, 900)
        assert not only(fit(table_of(x=ages), smooth, folds), "mean")
        codes, effects, folds = schools(rng)
        assert not only(fit(table_of(x=codes), rng.normal(size=len(codes)), folds), "mean")
        assert not only(fit(table_of(x=codes + 0.5), effects, folds), "mean")
    for n_rows in (2, 3):
        codes, effects, folds = schools(RNG(0), n_rows=n_rows)
        assert len(only(fit(table_of(x=codes), effects, folds), "mean")) == n_rows - 2


def test_codes_are_seldom_found_in_few_rows_of_noise():
    found = 0
    for seed in range(200):
        codes, _, folds = schools(RNG(seed), n_schools=40, n_rows=3)
        found += len(only(fit(table_of(x=codes), RNG(seed).standard_t(3, 120), folds), "mean"))
    assert found <= 8


# --- growing -------------------------------------------------------------------------------------


def everything(n=N, shift=0.0):
    rng = RNG(3)
    numbers = rng.normal(size=n) + shift
    numbers[::9] = np.nan
    return table_of(
        x=numbers,
        x_fixed=[5.0] * n,
        c=[f"level {i}" for i in rng.integers(0, 35, n)],
        c_short=rng.choice(["a", "b"], n),
        d=18_000 + rng.uniform(0, 900, n),
    )


def changed(n=100):
    """Make rows with a category, missing values, numbers and times that `everything` has not."""
    table = everything(n, shift=50.0)
    table["c_short"] = ["z"] * 30 + ["a"] * (n - 31) + [None]
    table["x_fixed"] = np.arange(float(n))
    table["d"] += 3_000
    return table


def widen(preprocessor, table):
    return preprocessor.widen(table, np.arange(len(table)), np.arange(len(table)) % FOLDS)


def test_known_inputs_keep_their_places_and_bits_and_all_columns_are_measured_anew_beside():
    old, new = everything(), changed()
    preprocessor, together = fit(old), pd.concat([old, new], ignore_index=True)
    before = preprocessor.transform(old)
    wider, categories = widen(preprocessor, together)
    assert categories["c_short"] == ["z"]
    assert wider.first_input == len(preprocessor.inputs) == preprocessor.width
    assert wider.bins[: len(preprocessor.bins)] == preprocessor.bins
    assert wider.transform(old)[:, : preprocessor.width].tobytes() == before.tobytes()
    folds = np.arange(len(together)) % FOLDS
    measured = fit(together, folds=folds)
    assert wider.inputs[wider.first_input :] == measured.inputs
    added = [(each.column, each.part) for each in measured.inputs]
    assert ("x_fixed", "value") in added  # it varies for the first time
    short = [each for each in measured.inputs if each.column == "c_short"]
    assert short == marks("c_short", "a", "b", "z", missing=True)
    z = wider.transform(new)[:, wider.first_input :][:, 0]
    assert np.ptp(z) < 6
    assert np.unique(z.round(3)).size > 50  # the new range is told apart, not cut off


def test_second_widening_drops_the_inputs_before_the_latest():
    once, _ = widen(fit(everything()), changed())
    twice, categories = widen(once, changed())
    assert twice.inputs[: twice.first_input] == once.inputs[once.first_input :]
    assert twice.first_input == len(once.inputs) - once.first_input
    assert categories == {}


def test_rare_new_category_is_not_told_as_new_and_a_twentieth_of_few_rows_is():
    preprocessor = fit(table_of(c=["a", "b"] * 50))
    assert widen(preprocessor, table_of(c=["a"] * 391 + ["z"] * 9))[1] == {}
    assert widen(preprocessor, table_of(c=["a"] * 390 + ["z"] * 10))[1] == {"c": ["z"]}
    assert widen(preprocessor, table_of(c=["a"] * 38 + ["z"] * 2))[1] == {"c": ["z"]}


def test_column_missing_for_the_first_time_gets_a_mark():
    wider, _ = widen(fit(table_of(x=[1.0, 3.0] * 50)), table_of(x=[1.0, 3.0, np.nan] * 50))
    X = wider.transform(table_of(x=[1.0, np.nan]))
    np.testing.assert_array_equal(X, [[-1, -1, 0], [0, 0, 1]])


# --- travelling ----------------------------------------------------------------------------------


def test_preprocessor_comes_back_from_json_as_it_was():
    old = everything()
    preprocessor, _ = widen(fit(old), changed())
    again = Preprocessor.from_dict(json.loads(json.dumps(asdict(preprocessor))))
    assert again == preprocessor
    folds = np.arange(N) % FOLDS
    assert again.transform(old, folds).tobytes() == preprocessor.transform(old, folds).tobytes()
    assert again.bins == preprocessor.bins


def test_raw_rows_are_encoded_like_conformed_ones_whatever_their_order_and_extra_columns():
    preprocessor = fit(table_of(x=[1.0, 3.0] * 50, c=["a", "b"] * 50))
    raw = pd.DataFrame({"extra": [1, 2], "c": ["b", ""], "x": ["3.0", ""]}, index=[7, 7])
    np.testing.assert_array_equal(preprocessor.encode(raw), [[1, 0, 1], [0, 0, 0]])


def test_column_without_any_known_category_is_told():
    table = table_of(x=[1.0, 3.0] * 50, c=["yes", "no"] * 50)
    preprocessor, told = fit(table), []
    raw = pd.DataFrame({"x": [1, 2], "c": ["oui", "non"]})
    preprocessor.encode(raw, told.append)
    assert told == [
        "column 'c' holds no category that is known: 'non', 'oui', where 'no', 'yes' were"
    ]
    preprocessor.encode(raw.assign(c=["oui", "yes"]), told.append)
    preprocessor.encode(raw.assign(c=[None, ""]), told.append)
    assert len(told) == 1
    rare = fit(table_of(x=[1.0, 3.0] * 50, c=[f"level {i}" for i in range(100)]))
    assert not only(rare, "level")
    rare.encode(raw, told.append)  # which knows no category by name
    assert len(told) == 1
    with pytest.warns(UserWarning, match="no category that is known"):
        preprocessor.encode(raw)


def test_known_category_in_other_capitals_is_told_also_beside_known_ones():
    preprocessor, told = fit(table_of(x=[1.0, 3.0] * 50, c=["yes", "no"] * 50)), []
    raw = pd.DataFrame({"x": [1, 2, 3], "c": ["yes", "YES", "maybe"]})
    preprocessor.encode(raw, told.append)
    assert told == ["column 'c' holds 'YES', not known in this spelling, where 'no', 'yes' were"]


# --- prediction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 50])
def test_row_gets_the_same_bits_alone_as_among_a_hundred_thousand(width):
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(64, "gelu"), keras.layers.Dense(32, "gelu")]
    network = keras.Sequential([keras.Input((width,)), *hidden, keras.layers.Dense(1)])
    X = RNG(0).normal(size=(100_000, width)).astype(np.float32)
    together = encoding.predict(network, X)
    assert together.shape == (100_000,)
    assert together.dtype == np.float64
    for start, n_rows in ((0, 1), (99_999, 1), (50_001, 1), (7, 193), (3, 6_145)):
        some = encoding.predict(network, X[start : start + n_rows])
        assert some.tobytes() == together[start : start + n_rows].tobytes(), (start, n_rows)
    expected = np.asarray(network(X[:100]))[:, 0]
    np.testing.assert_allclose(together[:100], expected, rtol=1e-4, atol=1e-5)


def test_no_rows_give_no_predictions():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert encoding.predict(network, np.zeros((0, 2))).shape == (0,)
