"""Claims about toolkit/roles.py: a row's role follows from its content, and stays what it was."""

import json
import math
import re
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from toolkit import roles
from toolkit.errors import UserError
from toolkit.roles import GENERATION, GROUP, HASH, HELD_OUT, ROLE, TRAIN, WEIGHT, Roles

RNG = np.random.default_rng


def table_of(n, seed=0, **columns):
    """Make n distinct conformed rows, with hashes."""
    rng = RNG(seed)
    rows = {"x": rng.normal(size=n), "c": rng.choice(["a", "b", "é"], n), "y": rng.normal(size=n)}
    table = pd.DataFrame(rows | columns)
    return roles.hashed(table.astype({"c": "str"}))


def held_out_hashes(role, table):
    return set(table[HASH][role.held_out(table)])


# --- hashes --------------------------------------------------------------------------------------


def test_equal_rows_hash_alike_in_any_order_block_and_storage():
    table = table_of(50)
    own = roles.own_columns(table)
    shuffled = own.sample(frac=1, random_state=0)
    expected = dict(zip(table.index, table[HASH], strict=True))
    assert dict(zip(shuffled.index, roles.row_hashes(shuffled), strict=True)) == expected
    assert roles.row_hashes(own[30:40]).tolist() == table[HASH][30:40].tolist()
    for kind in ("object", "category", "string[pyarrow]"):
        assert (roles.row_hashes(own.astype({"c": kind})) == table[HASH]).all()


def test_hashes_differ_as_soon_as_one_value_does_and_zero_has_no_sign():
    row = pd.DataFrame({"x": [0.0], "c": ["a"], "y": [1.0]})
    (first,) = roles.row_hashes(row)
    for other in ({"x": 1e-300}, {"x": np.nan}, {"c": "A"}, {"c": None}, {"y": 1.5}):
        assert roles.row_hashes(row.assign(**other))[0] != first, other
    assert roles.row_hashes(row.assign(x=-0.0))[0] == first
    nan = row.assign(x=np.nan)
    assert roles.row_hashes(nan)[0] == roles.row_hashes(nan.assign(x=-nan["x"]))[0]


def test_rows_are_known_again_by_the_digits_that_other_programs_write():
    x = np.random.default_rng(0).normal(size=(2_000, 3)) * [1e-4, 1, 1e7]
    table = pd.DataFrame(x, columns=list("abc"))
    again = table.map(lambda number: float(f"{number:.15g}"))
    assert (roles.row_hashes(again) == roles.row_hashes(table)).mean() > 0.995
    assert (roles.row_hashes(table * (1 + 1e-8)) != roles.row_hashes(table)).all()
    sums = pd.DataFrame({"a": [0.1 + 0.2, 1e6 + 0.1 + 0.2, 2.0**60, 12_345_678_901_234.0]})
    plain = pd.DataFrame({"a": [0.3, 1_000_000.3, 2.0**60, 12_345_678_901_235.0]})
    same = roles.row_hashes(sums) == roles.row_hashes(plain)
    assert same.tolist() == [True, True, True, False]  # whole numbers are exact


def test_columns_of_ours_do_not_enter_the_hash():
    table = table_of(20)
    role = Roles.choose(table, 0.2, seed=1)
    weighted = role.assign(table, generation=3).assign(**{WEIGHT: 2.0})
    assert (roles.row_hashes(weighted) == table[HASH]).all()


def test_rows_weigh_one_where_a_table_has_no_weights_and_may_be_scaled_to_a_mean():
    table = table_of(3)
    assert roles.weights(table).tolist() == roles.weights(table, mean=1).tolist() == [1, 1, 1]
    weighted = table.assign(**{WEIGHT: [1, 2, 6]})
    assert roles.weights(weighted).tolist() == [1, 2, 6]
    assert roles.weights(weighted, mean=1).tolist() == pytest.approx([1 / 3, 2 / 3, 2])


def test_row_that_comes_again_with_another_weight_was_seen_before():
    table = assigned(40).assign(**{WEIGHT: 1.0})
    buffer = roles.remember(table.head(0), table, 100)
    again = roles.gather(table.assign(**{WEIGHT: 5.0, GENERATION: 1}), buffer, 0)
    assert again.file.empty
    assert roles.weights(buffer).tolist() == [1] * 40


def test_scrambled_hashes_are_independent_of_each_other_by_salt():
    keys = np.stack([roles.scrambled(np.arange(20_000), salt) for salt in range(4)])
    shares = keys / 2.0**64
    np.testing.assert_allclose(shares.mean(axis=1), 0.5, atol=0.01)
    correlations = np.corrcoef(shares)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.03
    assert len(np.unique(keys)) == keys.size


# --- roles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 10, 99, 1_000])
@pytest.mark.parametrize("test_size", [0.01, 0.2, 0.5, 0.99])
def test_share_of_distinct_rows_is_held_out_exactly_rounded_up(n, test_size):
    table = table_of(n)
    repeated = pd.concat([table, table.head(n // 2)], ignore_index=True)
    role = Roles.choose(repeated, test_size, seed=42)
    expected = min(math.ceil(test_size * n), n - 1)  # one at least must train
    assert len(held_out_hashes(role, repeated)) == expected


def test_role_of_a_row_does_not_depend_on_order_block_file_or_repetition():
    table = table_of(500)
    role = Roles.choose(table, 0.3, seed=7)
    expected = dict(zip(table[HASH], role.held_out(table), strict=True))
    other_file = pd.concat([table.sample(frac=1, random_state=1), table_of(300, seed=9), table])
    found = dict(zip(other_file[HASH], role.held_out(other_file), strict=True))
    assert {key: found[key] for key in expected} == expected
    for block in (table[:1], table[123:456]):
        assert role.held_out(block).tolist() == [expected[key] for key in block[HASH]]


def test_other_rows_of_a_later_file_are_held_out_at_about_the_same_share():
    role = Roles.choose(table_of(2_000), 0.2, seed=42)
    assert role.held_out(table_of(20_000, seed=5)).mean() == pytest.approx(0.2, abs=0.03)


def test_seed_decides_and_roles_come_back_from_json():
    table = table_of(200)
    role = Roles.choose(table, 0.2, seed=1)
    assert role == Roles.choose(table, 0.2, seed=1)
    assert held_out_hashes(role, table) != held_out_hashes(Roles.choose(table, 0.2, 2), table)
    again = Roles(**json.loads(json.dumps(asdict(role))))
    assert again == role
    assert (again.held_out(table) == role.held_out(table)).all()
    timed = Roles(1, 2**64 - 1, time="t", intervals=[[0.5, 1.0], [1.5, 2.0]])
    assert Roles(**json.loads(json.dumps(asdict(timed)))) == timed


def test_whole_groups_are_held_out_in_this_file_and_in_later_ones():
    customers = pd.Series(RNG(0).integers(0, 60, 600))
    table = roles.hashed(roles.own_columns(table_of(600)), customers)
    role = Roles.choose(table, 0.25, seed=3, group="customer")
    held_out = pd.Series(role.held_out(table))
    assert held_out.groupby(customers).nunique().eq(1).all()
    assert held_out.groupby(customers).first().sum() == 15
    later = roles.hashed(roles.own_columns(table_of(60, seed=8)), pd.Series(range(60)))
    expected = held_out.groupby(customers).first()
    assert role.held_out(later).tolist() == expected.reindex(range(60)).tolist()


def test_group_is_the_same_however_its_column_is_stored():
    table = roles.own_columns(table_of(3))
    written = roles.hashed(table, pd.Series(["1", "20", None]))[GROUP].tolist()
    for values in ([1.0, 20.0, np.nan], pd.array([1, 20, None], "Int64"), ["1 ", "20", ""]):
        assert roles.hashed(table, pd.Series(values))[GROUP].tolist() == written
    assert roles.hashed(table, pd.Series([1, 20, 3]))[GROUP].tolist()[:2] == written[:2]
    assert len(set(written)) == 3


def test_latest_rows_are_held_out_by_time_and_no_time_ever_changes_its_role():
    def file(low, high):
        return table_of(200, seed=int(high), t=np.linspace(low, high, 200))

    first, second, older = file(0, 100), file(80, 200), file(10, 90)
    role = Roles.choose(first, 0.2, seed=1, time="t")
    assert role.held_out(first).tolist() == (first["t"] > np.quantile(first["t"], 0.8)).tolist()
    later = role.with_latest(second, 0.2)
    assert later.intervals[0] == role.intervals[0]
    n_new = (second["t"] > 100).sum()
    assert later.held_out(second)[-n_new:].mean() == pytest.approx(0.2, abs=0.01)
    assert later.held_out(second)[-n_new // 5 :].all()
    assert later.with_latest(older, 0.2) == later  # nothing in it is late
    for table in (first, second, older):
        known = table["t"] <= 100
        assert (later.held_out(table)[known] == role.held_out(table)[known]).all()
    overlapping = later.with_latest(file(150, 210), 0.9)
    start, end = overlapping.intervals[-1]  # times up to 200 may have trained
    assert 200 < start < 202
    assert end == 210
    assert not role.held_out(first.assign(t=np.nan)).any()


def test_file_of_all_rows_so_far_holds_out_the_latest_of_the_new_ones():
    def file(low, high):
        return table_of(5 * (high - low), seed=3, t=np.repeat(np.arange(low, high, 1.0), 5))

    role = Roles.choose(file(0, 100), 0.2, seed=1, time="t")
    alone, cumulative = (role.with_latest(file(low, 105), 0.2) for low in (100, 0))
    assert alone.intervals == cumulative.intervals == [[79, 99], [103, 104]]


def test_rows_without_a_group_are_each_their_own():
    table = roles.own_columns(table_of(1_000))
    groups = pd.Series([f"g{i % 300}" for i in range(1_000)]).where(np.arange(1_000) % 5 < 3)
    made = roles.hashed(table, groups)
    without = groups.isna().to_numpy()
    assert made[GROUP][without].nunique() == without.sum()
    assert made[GROUP][~without].nunique() == groups.nunique()
    shares = [Roles.choose(made, 0.2, seed, group="g").held_out(made).mean() for seed in range(12)]
    assert min(shares) > 0.15
    assert max(shares) < 0.25


# --- the replay buffer ---------------------------------------------------------------------------


def assigned(n, seed=0, generation=0, role=None):
    table = table_of(n, seed)
    return (role or Roles.choose(table, 0.3, seed=1)).assign(table, generation)


def content(table):
    return sorted(zip(table[HASH], table[ROLE], strict=True))


def test_buffer_holds_the_rows_with_the_smallest_keys_of_each_role():
    table = assigned(100)
    kept = roles.remember(table.head(0), table, 10)
    assert kept[ROLE].value_counts().to_dict() == {TRAIN: 10, HELD_OUT: 10}
    for role in (TRAIN, HELD_OUT):
        keys = roles.scrambled(table[HASH][table[ROLE] == role], roles.SAMPLE)
        best = roles.scrambled(kept[HASH][kept[ROLE] == role], roles.SAMPLE)
        assert sorted(best) == sorted(keys)[:10]


def test_buffer_does_not_depend_on_order_files_or_how_they_were_put_together():
    role = Roles.choose(table_of(200), 0.3, seed=1)
    files = [assigned(200, seed, 0, role) for seed in range(4)]
    everything = pd.concat(files, ignore_index=True)
    expected = content(roles.remember(everything.head(0), everything, 25))
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        buffer = everything.head(0)
        for number in order:
            buffer = roles.remember(buffer, files[number].sample(frac=1, random_state=number), 25)
        assert content(buffer) == expected
    halves = [
        roles.remember(everything.head(0), pd.concat(part), 25) for part in (files[:2], files[2:])
    ]
    assert content(roles.remember(*halves, 25)) == expected
    again = roles.remember(roles.remember(everything.head(0), everything, 25), everything, 25)
    assert content(again) == expected  # rows that come back change nothing


def test_buffer_is_a_fair_sample_of_all_rows_of_a_line():
    # 60 files of 100 early and 200 late rows: a third of what is kept must be early.
    early = total = 0
    for seed in range(60):
        role = Roles(seed=3, threshold=2**63)
        first = assigned(100, 2 * seed, 0, role)
        kept = roles.remember(first.head(0), first, 30)
        kept = roles.remember(kept, assigned(200, 2 * seed + 1, 1, role), 30)
        early += (kept[GENERATION] == 0).sum()
        total += len(kept)
    assert early / total == pytest.approx(1 / 3, abs=0.03)


def test_limit_of_zero_keeps_nothing_and_one_beyond_the_rows_keeps_all():
    table = assigned(40)
    nothing = roles.remember(table.head(0), table, 0)
    assert nothing.empty
    assert {ROLE, GENERATION, HASH} <= set(nothing)
    assert content(roles.remember(nothing, table, 10_000)) == content(table)
    assert roles.gather(table, nothing, 0).file.equals(table)


# --- a line of trainings -------------------------------------------------------------------------


def test_no_row_is_both_trained_on_and_held_out_over_a_chain_of_overlapping_files():
    rows = table_of(400)
    role = Roles.choose(rows[:150], 0.2, seed=42)
    first = role.assign(rows[:150], 0)
    trained = set(first[HASH][first[ROLE] == TRAIN])
    tested = set(first[HASH][first[ROLE] == HELD_OUT])
    buffer = roles.remember(first.head(0), first, 20)  # most rows are forgotten
    for generation in range(1, 6):
        file = rows.sample(120, random_state=generation, replace=True)
        file = role.assign(file.reset_index(drop=True), generation)
        gathered = roles.gather(file, buffer, generation - 1, replay=15)
        trained |= set(gathered.train[HASH])
        tested |= {key for part in gathered.held_out.values() for key in part[HASH]}
        assert gathered.counts["rows both trained on and held out"] == 0
        assert not trained & tested
        buffer = roles.remember(buffer, file, 20)
    assert len(trained) > 250
    assert len(tested) > 50


def test_rows_of_a_retraining_are_counted_by_role_and_age():
    role = Roles.choose(table_of(100), 0.2, seed=1)
    old, new = assigned(100, 0, 0, role), assigned(50, 1, 1, role)
    buffer = roles.remember(old.head(0), old, 10_000)
    file = pd.concat([new, role.assign(table_of(100)[:30], 1)], ignore_index=True)
    rows = roles.gather(file, buffer, parent_generation=0)
    assert content(rows.file) == content(new)
    n_old, n_new = (int((t[ROLE] == HELD_OUT).sum()) for t in (old, new))
    assert rows.counts == {
        "new rows to train on": 50 - n_new,
        "remembered rows to train on": 100 - n_old,
        "new rows held out": n_new,
        "old rows held out": n_old,
        "rows of the file seen before": 30,
        "rows both trained on and held out": 0,
    }
    assert rows.new.sum() == 50 - n_new
    assert (rows.train[GENERATION][rows.new] == 1).all()


def test_row_that_is_both_trained_on_and_held_out_would_be_counted():
    old, new = assigned(60, 0, 0), assigned(40, 1, 1)
    forged = pd.concat([new, old[old[ROLE] == TRAIN].head(2).assign(**{ROLE: HELD_OUT})])
    held_out = {"new": forged[forged[ROLE] == HELD_OUT]}
    rows = roles.RetrainingRows(new, old[old[ROLE] == TRAIN], held_out, 0, 0, old)
    assert rows.counts["rows both trained on and held out"] == 2


def test_rows_of_a_refused_version_come_back_as_new_ones_with_the_roles_they_had():
    role = Roles.choose(table_of(100), 0.2, seed=1)
    first, refused, third = (assigned(50, seed, seed, role) for seed in range(3))
    buffer = roles.remember(roles.remember(first.head(0), first, 1_000), refused, 1_000)
    rows = roles.gather(third, buffer, parent_generation=0)  # the parent is version 0 still
    assert content(rows.file) == content(third)
    new = pd.concat([refused, third])
    assert content(rows.train[rows.new]) == content(new[new[ROLE] == TRAIN])
    assert content(rows.held_out["new"]) == content(new[new[ROLE] == HELD_OUT])
    assert content(rows.held_out["old"]) == content(first[first[ROLE] == HELD_OUT])
    same_file = roles.gather(refused.assign(**{GENERATION: 2}), buffer, parent_generation=0)
    assert same_file.file.empty


@pytest.mark.parametrize(("replay", "expected"), [(None, 70), (30, 30), (0, 0), (1_000, 70)])
def test_replay_bounds_the_remembered_training_rows_alone(replay, expected):
    old, new = assigned(100, 0, 0), assigned(50, 1, 1)
    rows = roles.gather(new, roles.remember(old.head(0), old, 10_000), 0, replay)
    assert rows.counts["remembered rows to train on"] == expected
    assert rows.counts["old rows held out"] == 30
    assert rows.new.sum() == (new[ROLE] == TRAIN).sum()


def test_first_retraining_without_a_buffer_has_new_rows_alone():
    table = assigned(50, generation=1)
    rows = roles.gather(table, pd.DataFrame(), parent_generation=0)
    assert list(rows.held_out) == ["new"]
    assert rows.new.all()


@pytest.mark.parametrize(
    ("n_train", "n_held_out", "enough"),
    [(10, 2, True), (9, 2, False), (10, 1, False), (0, 0, False)],
)
def test_ten_rows_to_train_and_two_to_score_are_just_enough(n_train, n_held_out, enough):
    given = [roles.TRAIN] * n_train + [roles.HELD_OUT] * n_held_out
    table = pd.DataFrame({roles.ROLE: given})
    if enough:
        roles.check_enough(table, "few.csv")
        return
    with pytest.raises(UserError, match=rf"few\.csv leaves {n_train} rows .* --test-size$"):
        roles.check_enough(table, "few.csv")


def test_rows_that_belong_together_share_a_label():
    table = table_of(60)
    role = Roles.choose(table, 0.2, seed=1)
    assert roles.blocks_of_rows(table, role) == [None]  # every row stands for itself
    twice = pd.concat([table, table.head(5)], ignore_index=True)
    (labels,) = roles.blocks_of_rows(twice, role)
    assert len(np.unique(labels)) == 60
    assert (labels[:5] == labels[60:]).all()
    grouped = roles.hashed(roles.own_columns(table), pd.Series(["p", "q"] * 30))
    (labels,) = roles.blocks_of_rows(grouped, Roles(1, 1, group="g"))
    assert len(np.unique(labels)) == 2
    assert (labels[::2] == labels[0]).all()
    times = table.assign(t=np.arange(60.0) // 2)
    (labels,) = roles.blocks_of_rows(times, Roles(1, 1, time="t"))
    assert np.unique(labels).tolist() == list(range(10))
    assert (np.diff(labels) >= 0).all()
    assert (labels[::2] == labels[1::2]).all()
    both = roles.blocks_of_rows(grouped.assign(t=times["t"]), Roles(1, 1, group="g", time="t"))
    assert [len(np.unique(labels)) for labels in both] == [2, 10]


def test_retraining_needs_two_new_held_out_rows_and_the_advice_is_to_wait():
    table = assigned(60, generation=1)
    few = table[table[roles.ROLE] == roles.TRAIN]
    rows = roles.gather(few, pd.DataFrame(), parent_generation=0)
    with pytest.raises(UserError, match=r"brings \d+ new rows, 0 of which are held out; .* wait"):
        roles.check_enough_new(rows, "few.csv")
    roles.check_enough_new(roles.gather(table, pd.DataFrame(), parent_generation=0), "ok.csv")
    held_out = table[table[roles.ROLE] != roles.TRAIN]
    one, two = (
        roles.gather(pd.concat([few, held_out[:kept]]), pd.DataFrame(), parent_generation=0)
        for kept in (1, 2)
    )
    with pytest.raises(UserError, match="1 of which"):
        roles.check_enough_new(one, "few.csv")
    roles.check_enough_new(two, "two.csv")


def test_file_in_which_rows_belong_together_is_told_apart_from_one_in_any_order_or_sorted():
    rng = np.random.default_rng(0)
    storms = np.repeat(rng.normal(size=60), 10) + rng.normal(0, 0.3, 600)
    said = roles.alike_beside(storms)
    assert re.search(r"rank correlation 0\.[78]\d\).*--group COLUMN or --time COLUMN", said)
    assert roles.alike_beside(np.cumsum(rng.normal(size=300)))
    for silent in (rng.permutation(storms), np.sort(storms), -np.sort(storms), storms[:49]):
        assert roles.alike_beside(silent) == ""
    assert roles.alike_beside(np.ones(100)) == ""
    with np.errstate(all="raise"):
        assert roles.alike_beside(np.eye(1, 100)[0]) == ""  # the first row alone differs
    assert not any(roles.alike_beside(rng.lognormal(0, 2, 50)) for _ in range(200))


def test_last_week_is_held_out_whole_where_it_has_more_than_the_share():
    table = table_of(320, week=np.repeat([1.0, 2.0, 3.0, 4.0], 80))
    role = Roles.choose(table, 0.2, seed=1, time="week")
    assert table["week"][role.held_out(table)].tolist() == [4.0] * 80
    later = table_of(160, week=np.repeat([5.0, 6.0], 80))
    role = role.with_latest(later, 0.2)
    assert later["week"][role.held_out(later)].tolist() == [6.0] * 80
    assert role.held_out(table).sum() == 80


def test_group_is_the_same_however_a_file_writes_its_number():
    rows = roles.own_columns(table_of(4))
    hashes = [
        roles.hashed(rows, pd.Series(groups))[GROUP].tolist()
        for groups in ([101, 102, 103, 103], [101.0, 102.0, 103.0, 103.0], ["101", "102.0"] * 2)
    ]
    assert hashes[0] == hashes[1]
    assert hashes[2][:2] == hashes[0][:2]


def test_sample_does_not_follow_the_roles_of_any_seed():
    table = table_of(2_000)
    for seed in range(5):
        role = Roles.choose(table, 0.2, seed)
        sample = roles.smallest(table.assign(**{ROLE: TRAIN}), 400)
        assert 0.12 < role.held_out(sample).mean() < 0.28, seed


def test_group_that_a_refit_trained_on_is_never_held_out_again():
    groups = pd.Series([f"g{i % 20}" for i in range(200)])
    table = roles.hashed(roles.own_columns(table_of(200)), groups)
    role = Roles.choose(table, 0.3, seed=1, group="g")
    buffer = role.assign(table, 0).assign(**{ROLE: TRAIN})  # as after --refit
    more = pd.Series([f"g{i % 25}" for i in range(200)])
    file = role.assign(roles.hashed(roles.own_columns(table_of(200, seed=1)), more), 1)
    rows = roles.gather(file, buffer, 0)
    held_out = set(rows.held_out["new"][GROUP])
    assert not held_out & set(table[GROUP])
    assert len(rows.train) + len(rows.held_out["new"]) == 400
    # A generation later they are no old held-out rows, either.
    line = roles.remember(buffer, file, 1_000)
    third = role.assign(roles.hashed(roles.own_columns(table_of(200, seed=2)), more), 2)
    old = roles.gather(third, line, 1).held_out["old"]
    assert not set(old[GROUP]) & set(table[GROUP])
    assert set(old[GROUP]) == held_out


def test_many_equal_rows_are_noticed_and_a_few_are_not():
    table = table_of(100)
    assert roles.repeated(table) == ""
    twice = pd.concat([table, table[:20]])
    assert roles.repeated(twice).startswith("33% of the rows equal another one")


def test_group_is_the_same_in_every_format():
    table = roles.own_columns(table_of(2))
    for one, other in (
        (["00042", "7"], [42, 7]),
        (["856.90", "0.50"], [856.9, 0.5]),
        (["2024-01-05", "2024-02-11"], pd.to_datetime(["2024-01-05", "2024-02-11"])),
        (["a00", "10.0.0.10"], ["a00", "10.0.0.10"]),
    ):
        hashes = [roles.hashed(table, pd.Series(groups))[GROUP].tolist() for groups in (one, other)]
        assert hashes[0] == hashes[1]
        assert len({*hashes[0]}) == 2
    clock = pd.Series(["2024-01-05 00:00:00", "2024-01-05 10:00:00"])
    assert len({*roles.hashed(table, clock)[GROUP]}) == 2


def test_last_day_of_few_rows_takes_the_day_before_along_to_make_the_share():
    days = np.repeat([1.0, 2.0, 3.0], [68, 31, 1])
    role = Roles.choose(table_of(100, t=days), 0.2, seed=1, time="t")
    assert role.intervals == [[1.0, 3.0]]
    days = np.repeat([1.0, 2.0], [99, 1])  # nearly all on the first day, which must train
    assert Roles.choose(table_of(100, t=days), 0.2, seed=1, time="t").intervals == [[1.0, 2.0]]
    assert Roles.choose(table_of(9, t=[7.0] * 9), 0.2, seed=1, time="t").intervals == []
    assert Roles.choose(table_of(9, t=[np.nan] * 9), 0.2, seed=1, time="t").intervals == []


def test_mistyped_year_does_not_hold_out_all_that_comes_before_it():
    days = np.arange(150.0)
    days[70] += 180 * 365
    role = Roles.choose(table_of(150, t=days), 0.2, seed=1, time="t")
    assert role.intervals[0][1] == 149
    later = table_of(50, seed=1, t=np.arange(150.0, 200.0))
    assert not role.held_out(later).any()
    assert role.with_latest(later, 0.2).held_out(later).sum() == 10


def test_times_decide_alone_where_groups_stand_beside_them():
    def file(day, generation, seed):
        customers = pd.Series([f"c{i % 20}" for i in range(200)])
        rows = roles.own_columns(table_of(200, seed=seed, t=day + np.arange(200.0)))
        return roles.hashed(rows, customers).assign(**{GENERATION: generation})

    first, second = file(0, 0, 1), file(200, 1, 2)
    role = Roles.choose(first, 0.2, seed=1, group="customer", time="t")
    first = role.assign(first, 0)
    role = role.with_latest(second, 0.2)
    second = role.assign(second, 1)
    rows = roles.gather(second, first, 0, by_time=True)
    assert sorted(rows.held_out["new"]["t"]) == [*map(float, range(360, 400))]
    assert rows.train["t"].max() == 359
    assert roles.gather(second, first, 0).held_out["new"].empty  # as groups alone would have it


def test_retraining_without_a_new_row_to_train_on_is_refused():
    table = assigned(60, generation=1)
    old = assigned(60, generation=0, seed=9)
    held_out = table[table[roles.ROLE] != roles.TRAIN]
    words = rf"brings {len(held_out)} new rows, {len(held_out)} of which .* others to train on"
    with pytest.raises(UserError, match=words):
        roles.check_enough_new(roles.gather(held_out, old, 0), "one.csv")


def test_times_that_a_refit_trained_on_are_not_held_out_again():
    def file(low, high):
        return table_of(100, seed=low, t=np.linspace(low, high, 100))

    role = Roles.choose(file(0, 100), 0.2, seed=1, time="t").refitted()
    again = role.with_latest(file(90, 200), 0.2)
    assert not again.held_out(file(0, 100)).any()
    assert not again.held_out(file(90, 200))[:20].any()
    assert again.held_out(file(90, 200))[-10:].all()
    assert again.refitted().intervals == [[200.0, 200.0]]
    plain = Roles.choose(table_of(100), 0.2, seed=1)
    assert plain.refitted() == plain
