"""Claims about memory.py: who trains, who is held out, and what is remembered of them."""

import numpy as np
import pandas as pd
import pytest

import memory as module
from memory import (
    GENERATION,
    HELD_OUT,
    PRIORITY,
    ROLE,
    TRAIN,
    Memory,
    assign_roles,
    contained,
    draw,
    remember,
)
from tabular import UserError

RNG = np.random.default_rng


def as_hashes(numbers):
    """Let a row be its number, so that equal rows are easy to make and to find."""
    return np.asarray(numbers, dtype=np.uint64)


def grow(memory, numbers, generation, *, limit=10_000, seed=0, test_size=0.2):
    """Give rows their roles and remember them, as one training does."""
    hashes = as_hashes(numbers)
    roles = assign_roles(hashes, memory, test_size=test_size, seed=seed)
    rows = pd.DataFrame({"x": hashes.astype(float)})
    grown = remember(memory, rows, hashes, roles, generation=generation, limit=limit, seed=seed)
    return grown, roles, hashes


# --- roles


@pytest.mark.parametrize("seed", range(5))
def test_no_held_out_row_is_ever_trained_on_over_a_chain_of_files(seed):
    rng, memory, trained, held_out = RNG(seed), Memory(), set(), set()
    for generation in range(3):
        # 300 draws from 400 numbers: many rows stand twice in a file and again in the next one.
        numbers = rng.integers(0, 400, 300) + 100 * generation
        memory, roles, hashes = grow(memory, numbers, generation, seed=seed)
        trained |= set(hashes[roles.train])
        held_out |= set(hashes[roles.held_out])
        assert not trained & held_out
        assert not set(roles.train) & set(roles.held_out)
    assert set(memory.hashes(TRAIN)) == trained
    assert set(memory.hashes(HELD_OUT)) == held_out
    assert memory.seen["hash"].is_unique


def test_known_rows_keep_their_roles_and_new_ones_are_split():
    parent, first, hashes = grow(Memory(), range(100), 0)
    child, second, _ = grow(parent, range(150), 1, seed=7)
    known = second.train[second.train < 100]
    np.testing.assert_array_equal(hashes[known], hashes[first.train])
    np.testing.assert_array_equal(second.held_out[second.held_out < 100], first.held_out)
    assert (second.held_out >= 100).sum() == 10  # a fifth of the 50 new rows
    assert len(child.hashes(TRAIN)) == 120


def test_counts_are_those_worked_out_by_hand():
    seen = pd.DataFrame({"hash": as_hashes([0, 1, 2, 3]), ROLE: [TRAIN, TRAIN, HELD_OUT, HELD_OUT]})
    # Known: 0 twice, 2 once, 3 once. New: 40 rows, of which a quarter is held out.
    numbers = [0, 0, 2, 3, *range(100, 140)]
    roles = assign_roles(as_hashes(numbers), Memory(seen=seen), test_size=0.25, seed=0)
    assert roles.counts == {
        "rows": 44,
        "trained_on": 32,
        "held_out": 12,
        "held_out_before": 2,
        "trained_on_before": 2,
        "set_aside": 0,
    }
    assert len(roles.train) == 32
    assert len(roles.held_out) == 12


def test_training_row_that_equals_a_held_out_one_is_set_aside():
    numbers = np.repeat(np.arange(50), 2)  # every row stands twice
    roles = assign_roles(as_hashes(numbers), Memory(), test_size=0.2, seed=0)
    counts = roles.counts
    assert counts["set_aside"] > 0
    assert counts["trained_on"] + counts["held_out"] + counts["set_aside"] == 100
    assert counts["trained_on"] == len(roles.train)
    assert not set(numbers[roles.train]) & set(numbers[roles.held_out])


def test_roles_depend_on_the_seed_and_on_nothing_else():
    def held_out(seed):
        np.random.seed(seed + 1)  # the global generator must not matter
        return assign_roles(as_hashes(range(200)), Memory(), test_size=0.2, seed=seed).held_out

    np.testing.assert_array_equal(held_out(3), held_out(3))
    assert not np.array_equal(held_out(3), held_out(4))


@pytest.mark.parametrize("numbers", [[], [1], range(12), [5] * 40])
def test_too_few_rows_are_refused_in_one_line(numbers):
    with pytest.raises(UserError, match=r"to train on and \d+ to score") as caught:
        assign_roles(as_hashes(numbers), Memory(), test_size=0.2, seed=0, source="tiny.csv")
    assert str(caught.value).startswith("tiny.csv leaves ")
    assert "\n" not in str(caught.value)


def test_file_of_rows_that_were_all_held_out_before_is_refused():
    seen = pd.DataFrame({"hash": as_hashes(range(50)), ROLE: HELD_OUT})
    with pytest.raises(UserError, match=r"leaves 0 rows to train on .*\(50 were held out before"):
        assign_roles(as_hashes(range(50)), Memory(seen=seen), test_size=0.2, seed=0)


# --- memory


def test_memory_keeps_at_most_limit_rows_of_each_role_and_every_hash():
    memory = Memory()
    for generation in range(3):
        memory, *_ = grow(memory, np.arange(200) + 200 * generation, generation, limit=50)
        assert len(memory.part(TRAIN)) == 50
        assert len(memory.part(HELD_OUT)) == min(50, 40 * (generation + 1))
        assert len(memory.seen) == 200 * (generation + 1)


def test_memory_without_a_limit_holds_the_very_rows_that_were_given():
    memory, roles, _ = grow(Memory(), range(100), 0)
    np.testing.assert_array_equal(np.sort(memory.part(TRAIN)["x"]), roles.train)
    np.testing.assert_array_equal(np.sort(memory.part(HELD_OUT)["x"]), roles.held_out)
    assert (memory.rows[GENERATION] == 0).all()
    memory, *_ = grow(memory, range(100), 1)  # the same file again adds nothing
    assert len(memory.rows) == 100
    assert (memory.rows[GENERATION] == 0).all()


def test_limit_zero_keeps_no_row_but_knows_them_all_again():
    memory, first, _ = grow(Memory(), range(100), 0, limit=0)
    assert memory.rows.empty
    assert len(memory.part(TRAIN)) == len(memory.part(HELD_OUT)) == 0
    assert len(memory.hashes(TRAIN)) == 80
    memory, second, _ = grow(memory, range(130), 1, limit=0, seed=5)
    np.testing.assert_array_equal(second.held_out[second.held_out < 100], first.held_out)
    assert len(memory.seen) == 130


def test_memory_is_a_fair_sample_of_all_rows_of_a_chain():
    # 1,000, then 500, then 2,500 rows: of 80 kept ones 20, 10 and 50 are expected.
    sizes, kept = [1_000, 500, 2_500], np.zeros((40, 3))
    for seed in range(40):
        memory, start = Memory(), 0
        for generation, size in enumerate(sizes):
            numbers = np.arange(start, start + size)
            memory, *_ = grow(memory, numbers, generation, limit=80, seed=seed)
            start += size
        generations = memory.part(TRAIN)[GENERATION]
        kept[seed] = [(generations == generation).sum() for generation in range(3)]
    # The standard error of these means is 0.6 at most: 2 is more than three of them.
    np.testing.assert_allclose(kept.mean(axis=0), [20, 10, 50], atol=2)
    assert kept.std(axis=0).min() > 1  # drawn, not apportioned


def test_memory_is_the_same_for_the_same_seed_and_another_for_another():
    def kept(seed):
        hashes = as_hashes(range(200))
        roles = assign_roles(hashes, Memory(), test_size=0.2, seed=0)
        options = {"generation": 0, "limit": 20, "seed": seed}
        return remember(Memory(), pd.DataFrame({"x": hashes}), hashes, roles, **options).rows

    pd.testing.assert_frame_equal(kept(1), kept(1))
    assert set(kept(1)["x"]) != set(kept(2)["x"])


def test_remembering_leaves_the_parents_memory_alone():
    parent, *_ = grow(Memory(), range(100), 0)
    rows, seen = parent.rows.copy(), parent.seen.copy()
    grow(parent, range(50, 250), 1, limit=10)
    pd.testing.assert_frame_equal(parent.rows, rows)
    pd.testing.assert_frame_equal(parent.seen, seen)


def test_kept_rows_have_the_smallest_priorities():
    everything, *_ = grow(Memory(), range(200), 0)
    some, *_ = grow(Memory(), range(200), 0, limit=30)
    for role in (TRAIN, HELD_OUT):
        smallest = np.sort(everything.part(role)[PRIORITY])[:30]
        np.testing.assert_array_equal(np.sort(some.part(role)[PRIORITY]), smallest)


# --- in blocks


def test_values_contained_are_those_that_numpy_finds(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 64)
    values = RNG(0).integers(0, 2**64, 1_000, dtype=np.uint64)
    near = values[:300] + np.uint64(1)  # the same first bits, and not the same
    reference = np.concatenate([values[::3], near, RNG(1).integers(0, 2**64, 50, dtype=np.uint64)])
    expected = np.isin(values, reference)
    assert 300 < expected.sum() < 700
    np.testing.assert_array_equal(contained(values, reference), expected)
    assert not contained(values, reference[:0]).any()


@pytest.mark.parametrize("limit", [0, 30, 80, 81])
def test_rows_drawn_do_not_depend_on_the_size_of_blocks(monkeypatch, limit):
    hashes = as_hashes(range(100))
    roles = assign_roles(hashes, Memory(), test_size=0.2, seed=0)
    options = {"generation": 0, "limit": limit, "seed": 3}
    expected = draw(hashes, roles, Memory(), **options)
    monkeypatch.setattr(module, "BLOCK", 7)
    drawn = draw(hashes, roles, Memory(), **options)
    for role, n_rows in ((TRAIN, 80), (HELD_OUT, 20)):
        assert len(drawn[role][0]) == min(limit, n_rows)
        for ours, wanted in zip(drawn[role], expected[role], strict=True):
            np.testing.assert_array_equal(ours, wanted)


# --- too few rows


def known(n_train, n_held_out):
    """Remember so many rows: the numbers from 0, and from 1,000 on."""
    numbers = as_hashes([*range(n_train), *range(1_000, 1_000 + n_held_out)])
    roles = [TRAIN] * n_train + [HELD_OUT] * n_held_out
    return Memory(seen=pd.DataFrame({"hash": numbers, ROLE: roles}))


@pytest.mark.parametrize(("n_train", "n_held_out", "enough"), [(10, 2, 1), (9, 2, 0), (10, 1, 0)])
def test_ten_rows_to_train_and_two_to_score_are_just_enough(n_train, n_held_out, enough):
    memory = known(n_train, n_held_out)
    hashes = memory.seen["hash"].to_numpy()
    if enough:
        roles = assign_roles(hashes, memory, test_size=0.2, seed=0)
        assert (len(roles.train), len(roles.held_out)) == (n_train, n_held_out)
        return
    words = rf"leaves {n_train} rows to train on and {n_held_out} to score.*at least 10 and 2:"
    with pytest.raises(UserError, match=words):
        assign_roles(hashes, memory, test_size=0.2, seed=0)


@pytest.mark.parametrize(("n_fresh", "n_held_out"), [(0, 0), (1, 0), (2, 1), (6, 2)])
def test_of_fresh_rows_a_fifth_rounded_up_is_held_out_but_never_the_only_one(n_fresh, n_held_out):
    memory = known(20, 5)
    hashes = np.concatenate([memory.seen["hash"], as_hashes(range(2_000, 2_000 + n_fresh))])
    roles = assign_roles(hashes, memory, test_size=0.2, seed=0)
    assert len(roles.held_out) == 5 + n_held_out
    assert len(roles.train) == 20 + n_fresh - n_held_out
