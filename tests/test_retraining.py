"""Claims about retraining.py: which rows are used, what the child starts from, what is told."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import model_utils
import retraining
import tabular
from tabular import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def parent(trained):
    return trained.load(trained.uri)


@pytest.fixture
def prepare(parent, tmp_path):
    """Give the function that writes rows to a file and prepares them."""

    def prepared(rows, **options):
        file = tmp_path / "rows.csv"
        rows.to_csv(file, index=False)
        return retraining.prepare_rows(parent, str(file), test_size=0.2, seed=0, **options)

    return prepared


def loans(name, start, stop):
    return pd.read_csv(ROOT / "data" / f"df_{name}.csv").iloc[start:stop]


# --- rows


def test_rows_of_a_new_file_are_split_and_all_remembered_ones_come_back(prepare, parent):
    rows = prepare(loans("new", 0, 100))
    assert (len(rows.new), len(rows.held_out["new"])) == (80, 20)
    assert len(rows.replay) == len(parent.memory.part("train")) == 320
    assert len(rows.held_out["old"]) == 80
    assert not rows.again.any()


def test_remembered_row_that_stands_in_the_file_too_is_trained_on_once(prepare, parent):
    old = loans("old", 0, 100)
    rows = prepare(pd.concat([loans("new", 0, 50), old]))
    assert rows.roles.counts["held_out_before"] + rows.roles.counts["trained_on_before"] == 100
    assert rows.again.sum() == rows.roles.counts["trained_on_before"]
    assert len(rows.replay) == 320 - rows.again.sum()
    together = pd.concat([rows.replay, rows.new])
    features = [*parent.schema.features, parent.schema.target]
    assert not together.duplicated(features).any()


@pytest.mark.parametrize(("replay", "expected"), [(0, 0), (100, 100), (10_000, 320), (None, 320)])
def test_replay_bounds_the_remembered_rows(prepare, replay, expected):
    assert len(prepare(loans("new", 0, 100), replay=replay).replay) == expected


def test_replayed_sample_is_drawn_from_all_remembered_rows(prepare, parent):
    rows, remembered = prepare(loans("new", 0, 50), replay=100), parent.memory.part("train")
    chosen = np.isin(remembered.index, rows.replay.index)
    assert 20 < chosen[:160].sum() < 80


def test_column_that_is_empty_in_the_new_file_is_refused(prepare):
    with pytest.raises(UserError, match=r"column 'poids' of .* is empty in every row"):
        prepare(loans("new", 0, 50).assign(poids=np.nan))


def test_missing_values_are_no_obstacle(prepare, parent):
    rows = loans("new", 0, 50).astype({"age": float})
    rows.loc[rows.index[:10], ["age", "region"]] = np.nan
    prepared = prepare(rows)
    assert prepared.table["age"].isna().sum() == prepared.table["region"].isna().sum() == 10
    assert np.isfinite(tabular.encode(prepared.table, parent.preprocessor)).all()


# --- the child before and after training


def test_child_wider_than_its_parent_predicts_the_same_bits_before_training(prepare, parent):
    new = loans("new", 0, 60)
    new.loc[new.index[::2], "region"] = "Atlantis"
    new.loc[new.index[::3], "niveau_etude"] = "certificat"
    rows = prepare(new)
    start = retraining.prepare_child(parent, rows, learning_rate=1e-3, batch_size=32)
    assert start.new_categories == {"niveau_etude": ["certificat"], "region": ["Atlantis"]}
    assert start.child.network.input_shape[-1] == parent.network.input_shape[-1] + 2
    known = loans("new", 100, 400)
    before, after = (
        model_utils.model_predict(model.network, tabular.encode(known, model.preprocessor))
        for model in (parent, start.child)
    )
    np.testing.assert_array_equal(before, after)
    assert int(start.child.network.optimizer.iterations) == int(parent.network.optimizer.iterations)


def test_training_the_child_does_not_touch_the_parent(prepare, parent):
    state = [value.copy() for value in model_utils.model_state(parent.network)]
    rows = prepare(loans("new", 0, 80))
    start = retraining.prepare_child(parent, rows, learning_rate=1e-3, batch_size=32)
    options = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3, "seed": 0}
    result = retraining.retrain(parent, rows, start, memory_rows=100, controls=False, **options)
    for before, after in zip(state, model_utils.model_state(parent.network), strict=True):
        np.testing.assert_array_equal(before, after)
    X = tabular.encode(rows.held_out["new"], result.model.preprocessor)
    np.testing.assert_array_equal(
        model_utils.model_predict(result.model.network, X), result.predictions["new"]["retrained"]
    )
    sizes = [len(result.model.memory.part(role)) for role in ("train", "held_out")]
    assert sizes == [100, 96]  # 320 + 64 cut to 100, 80 + 16 below it
    assert result.model.card["lineage"][-1]["generation"] == 1


def test_strength_of_the_parent_and_its_neighbours_are_tried(parent):
    strength = parent.network.optimizer.weight_decay
    assert strength > 0
    assert retraining._strengths(parent) == (strength / 3, strength, 3 * strength)


# --- evidence and words


def test_drift_and_its_advice_tell_shifted_rows_from_rows_of_the_same_kind(prepare, parent):
    said = {}
    for name, start in (("new", 0), ("old", 400)):
        rows = prepare(loans(name, start, start + 400))
        drift, bounds = retraining.measure_drift(parent, rows)
        assert set(drift["column"]) == {*parent.schema.features, parent.schema.target}
        assert list(bounds["bound"]) == ["lowest", "highest"]
        said[name] = retraining.looks_worthwhile(parent, rows, drift)
    assert said["new"].startswith("a retraining looks worthwhile: ")
    assert said["old"].startswith("a retraining promises little: 0 of 11 columns drifted")


def test_without_memory_the_drift_is_unknown(prepare, parent):
    rows = prepare(loans("new", 0, 50))
    foreign = dataclasses.replace(parent, memory=type(parent.memory)())
    assert retraining.measure_drift(foreign, rows) == (None, None)


def test_purity_counts_held_out_rows_that_were_trained_on(prepare, parent):
    rows = prepare(loans("new", 0, 50))
    assert retraining._purity(parent, rows)["held_out_but_trained_on"] == 0
    held_out = rows.held_out["old"][rows.new.columns].head(3)
    impure = dataclasses.replace(rows, new=pd.concat([rows.new, held_out]))
    assert retraining._purity(parent, impure)["held_out_but_trained_on"] == 3
