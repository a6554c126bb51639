"""Claims about model_store.py: complete or not at all on disk, and no foreign code when loading."""

import json
import os
import shutil
import time
from pathlib import Path

import joblib
import keras
import mlflow
import numpy as np
import pytest
import skops.io
import yaml
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import model_store
import tabular
from tabular import UserError


@pytest.fixture(scope="module")
def model(trained):
    return trained.load(trained.uri)


@pytest.fixture
def artifact(trained, tmp_path):
    """Copy a logged model, to damage it."""
    folder = tmp_path / "artifact"
    shutil.copytree(trained.artifact(trained.uri), folder)
    return folder


@pytest.fixture
def plain(model, tmp_path):
    """Save the network alone, as another program would."""
    folder = tmp_path / "plain"
    mlflow.keras.save_model(model.network, str(folder), pip_requirements=["keras"])
    return folder


@pytest.fixture
def preprocessor_file(model, tmp_path):
    model_store.save_preprocessor(model.preprocessor, tmp_path / "models" / "preprocessor.pkl")
    return tmp_path / "models" / "preprocessor.pkl"


def weights(model):
    return [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]


class Planted:
    """Leave a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


# --- saving


def test_model_comes_back_from_its_folder_as_it_was(model, tmp_path):
    assert model_store.save_folder(model, tmp_path / "saved") == tmp_path / "saved"
    back = model_store.load_model(str(tmp_path / "saved"), tmp_path / "none.pkl")
    for before, after in zip(weights(model.network), weights(back.network), strict=True):
        np.testing.assert_array_equal(before, after)
    rows = model.memory.rows
    np.testing.assert_array_equal(
        tabular.encode(rows, model.preprocessor), tabular.encode(rows, back.preprocessor)
    )
    assert back.memory.rows.equals(model.memory.rows)
    assert back.memory.seen.equals(model.memory.seen)
    assert (back.schema, back.scale, back.run_id) == (model.schema, model.scale, model.run_id)
    for key in ("arguments", "lineage", "weight_decay", "unit", "schema", "target_scale"):
        assert back.card[key] == model.card[key]


@pytest.mark.parametrize("step", ["skops.io.dump", "mlflow.pyfunc.save_model", "shutil.copyfile"])
def test_folder_stays_as_it_is_when_a_new_one_cannot_be_completed(
    model, tmp_path, monkeypatch, hashes, step
):
    folder = tmp_path / "saved"
    model_store.save_folder(model, folder)
    before = hashes(tmp_path)

    def fail(*args, **options):
        (half,) = tmp_path.glob(".saved-*")
        (half / "begun").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="no space"):
        model_store.save_folder(model, folder)
    assert hashes(tmp_path) == before
    assert os.listdir(tmp_path) == ["saved"]


def test_folder_comes_back_when_the_new_one_cannot_take_its_place(
    model, tmp_path, monkeypatch, hashes
):
    folder = tmp_path / "saved"
    model_store.save_folder(model, folder)
    before, rename = hashes(tmp_path), Path.rename

    def fail_for_the_new_one(path, target):
        if path.name == "new":
            raise OSError("planted")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="planted"):
        model_store.save_folder(model, folder)
    assert hashes(tmp_path) == before


def test_leftovers_of_a_killed_process_go_with_the_next_save(model, tmp_path):
    leftover = tmp_path / ".saved-abc" / "new"
    leftover.mkdir(parents=True)
    (tmp_path / ".saved.txt").write_text("somebody else's")
    model_store.save_folder(model, tmp_path / "saved")
    assert sorted(os.listdir(tmp_path)) == [".saved.txt", "saved"]


def test_preprocessor_file_stays_as_it_is_when_a_new_one_cannot_be_completed(
    model, preprocessor_file, monkeypatch, hashes
):
    before = hashes(preprocessor_file.parent)

    def half(value, file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(joblib, "dump", half)
    with pytest.raises(OSError, match="no space"):
        model_store.save_preprocessor(model.preprocessor, preprocessor_file)
    assert hashes(preprocessor_file.parent) == before
    assert model_store.load_preprocessor(preprocessor_file, "models:/any") is not None


# --- loading


@pytest.mark.parametrize("name", [n for part, n in model_store.PARTS.items() if part != "card"])
def test_artifact_with_a_changed_file_is_refused(artifact, tmp_path, name):
    file = artifact / "artifacts" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged: {name} is not the file that was logged"):
        model_store.load_model(str(artifact), tmp_path / "none.pkl")


@pytest.mark.parametrize("name", [n for part, n in model_store.PARTS.items() if part != "card"])
def test_artifact_without_one_of_its_files_is_refused(artifact, tmp_path, name):
    (artifact / "artifacts" / name).unlink()
    with pytest.raises(UserError, match=f"is incomplete .*{name}"):
        model_store.load_model(str(artifact), tmp_path / "none.pkl")


@pytest.mark.parametrize("card", ["{", "{}", "[]", '{"files": {}}'])
def test_artifact_with_a_broken_card_is_refused(artifact, tmp_path, card):
    (artifact / "artifacts" / "card.json").write_text(card)
    with pytest.raises(UserError, match="is incomplete"):
        model_store.load_model(str(artifact), tmp_path / "none.pkl")


def replace_part(artifact, name, write):
    """Exchange a file of an artifact and its hash in the card, as an attacker would."""
    write(artifact / "artifacts" / name)
    card_file = artifact / "artifacts" / "card.json"
    card = json.loads(card_file.read_text("utf-8"))
    card["files"][name] = model_store.sha256(artifact / "artifacts" / name)
    card_file.write_text(json.dumps(card), "utf-8")


def save_lambda(file, mark):
    """Save a network with a layer that runs Python code when it is called."""
    code = f"lambda x: (__import__('pathlib').Path({str(mark)!r}).touch(), x)[1]"
    layers = [keras.Input((3,)), keras.layers.Lambda(eval(code)), keras.layers.Dense(1)]
    network = keras.Sequential(layers)
    network.compile("adam", "mse")
    network.save(file)
    mark.unlink(missing_ok=True)


def test_network_with_python_code_in_it_is_refused_and_not_run(artifact, tmp_path):
    mark = tmp_path / "mark"
    replace_part(artifact, "model.keras", lambda file: save_lambda(file, mark))
    with pytest.raises(UserError, match="cannot be loaded safely"):
        model_store.load_model(str(artifact), tmp_path / "none.pkl")
    assert not mark.exists()


def test_plain_network_with_python_code_in_it_is_refused_and_not_run(
    plain, preprocessor_file, tmp_path
):
    mark = tmp_path / "mark"
    (file,) = plain.rglob("*.keras")
    save_lambda(file, mark)
    with pytest.raises(UserError, match="cannot be loaded safely"):
        model_store.load_model(str(plain), preprocessor_file)
    assert not mark.exists()


def test_preprocessor_that_would_run_a_command_is_refused_and_not_run(artifact, tmp_path):
    mark = tmp_path / "mark"
    command = {"command": f"touch {mark}"}
    pipeline = make_pipeline(FunctionTransformer(os.system, kw_args=command))
    replace_part(artifact, "preprocessor.skops", lambda file: skops.io.dump(pipeline, file))
    with pytest.raises(UserError, match=r"is refused: its preprocessor holds \w+.system"):
        model_store.load_model(str(artifact), tmp_path / "none.pkl")
    assert not mark.exists()


def test_planted_pickle_is_refused_and_not_run(plain, preprocessor_file, tmp_path):
    mark = tmp_path / "mark"
    joblib.dump(Planted(mark), preprocessor_file)
    record = preprocessor_file.with_suffix(".pkl.sha256")
    with pytest.raises(UserError, match=r"is not the file that mlflow_monitoring\.py wrote"):
        model_store.load_model(str(plain), preprocessor_file)
    record.unlink()
    with pytest.raises(UserError, match=r"is not the file that mlflow_monitoring\.py wrote"):
        model_store.load_model(str(plain), preprocessor_file)
    assert not mark.exists()
    joblib.load(preprocessor_file)  # it would have run
    assert mark.exists()


def test_pickle_beside_a_complete_artifact_is_not_even_read(artifact, preprocessor_file, tmp_path):
    mark = tmp_path / "mark"
    joblib.dump(Planted(mark), preprocessor_file)
    record = preprocessor_file.with_suffix(".pkl.sha256")
    record.write_text(model_store.sha256(preprocessor_file))
    assert model_store.load_model(str(artifact), preprocessor_file).schema.target == "montant_pret"
    assert not mark.exists()


def test_plain_keras_model_needs_the_preprocessor_it_was_trained_with(plain, preprocessor_file):
    loaded = model_store.load_model(str(plain), preprocessor_file)
    assert loaded.schema.features
    assert loaded.memory.rows.empty
    preprocessor_file.unlink()
    with pytest.raises(UserError, match=f"there is no {preprocessor_file}"):
        model_store.load_model(str(plain), preprocessor_file)


def test_plain_keras_model_of_another_width_is_refused(preprocessor_file, tmp_path):
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    mlflow.keras.save_model(network, str(tmp_path / "narrow"), pip_requirements=["keras"])
    with pytest.raises(UserError, match=r"takes 3 inputs, but .* makes \d+"):
        model_store.load_model(str(tmp_path / "narrow"), preprocessor_file)


def test_model_of_another_flavor_is_refused_by_the_names_of_its_flavors(artifact, tmp_path):
    file = artifact / "MLmodel"
    content = yaml.safe_load(file.read_text("utf-8"))
    del content["flavors"]["keras"]
    file.write_text(yaml.safe_dump(content), "utf-8")
    with pytest.raises(UserError, match=r"flavors \w+, \w+; expected one with a Keras network"):
        model_store.load_model(str(artifact), tmp_path / "none.pkl")


# --- registry


def test_versions_are_numbered_and_carry_their_description(workshop, capfd):
    client, uri = workshop.client, workshop.client.get_model_version("loan-amount", "1").source
    workshop.use()
    assert model_store.register(client, "loan-amount", uri, "better") == "2"
    assert model_store.register(client, "other", uri, "first") == "1"
    made = client.get_model_version("loan-amount", "2")
    assert (made.description, made.source) == ("better", uri)
    assert made.run_id == workshop.run.info.run_id
    assert capfd.readouterr() == ("", "")
    assert model_store.champion_version(client, "other") is None
    assert model_store.champion_version(client, "nobody") is None


def test_first_promotion_needs_no_champion_and_leaves_no_previous_one(workshop):
    client, uri = workshop.client, workshop.client.get_model_version("loan-amount", "1").source
    workshop.use()
    for version in "123":
        assert model_store.register(client, "other", uri, "") == version
    assert not model_store.promote(client, "other", "1", expected="2")
    assert model_store.promote(client, "other", "1", expected=None)
    assert model_store.champion_version(client, "other", "previous") is None
    assert not model_store.promote(client, "other", "2", expected=None)
    assert model_store.promote(client, "other", "2", expected="1")
    assert model_store.champion_version(client, "other", "previous") == "1"
    words = [line.split(" ", 1)[1] for line in model_store.history(client, "other")]
    assert words == ["version 1 promoted", "version 2 promoted"]


def test_lock_of_a_process_that_died_is_taken_over_after_a_while(workshop):
    client = workshop.client
    client.create_registered_model("loan-amount.promotion-lock")
    start = time.monotonic()
    with model_store.registry_lock(client, "loan-amount", wait=0.3):
        assert time.monotonic() - start >= 0.3
    assert [m.name for m in client.search_registered_models()] == ["loan-amount"]


def test_lock_keeps_others_out_until_it_is_released(workshop):
    from concurrent.futures import ThreadPoolExecutor

    inside = []

    def enter(name):
        with model_store.registry_lock(workshop.client, "loan-amount"):
            inside.append(name)
            time.sleep(0.05)
            inside.append(name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert inside[::2] == inside[1::2]
