"""Claims about artifact.py: whole or not at all on disk, no foreign code when loading, any URI."""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import joblib
import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LinearRegression

from toolkit import artifact, columns, roles
from toolkit.errors import UserError

NONE = Path("there is no preprocessor.pkl")


@pytest.fixture
def folder(tiny, tmp_path):
    """Save a model folder, to damage it."""
    return artifact.save_folder(tiny, tmp_path / "saved")


@pytest.fixture
def plain(tiny, tmp_path):
    """Save the network alone, as another program would."""
    mlflow.keras.save_model(tiny.network, str(tmp_path / "plain"), pip_requirements=["keras"])
    return tmp_path / "plain"


@pytest.fixture
def pickle(tiny, tmp_path):
    """Save the preprocessor as a first training does."""
    (tmp_path / "models").mkdir()
    artifact.save_preprocessor(tiny.preprocessor, tmp_path / "models" / "preprocessor.pkl")
    return tmp_path / "models" / "preprocessor.pkl"


def weights(model):
    network = model.network
    return [variable.numpy() for variable in (*network.variables, *network.optimizer.variables)]


def assert_same(one, other):
    for before, after in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(before, after)
    assert one.preprocessor == other.preprocessor
    assert one.roles == other.roles
    pd.testing.assert_frame_equal(one.buffer, other.buffer)
    assert one.card == other.card


class Planted:
    """Leave a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


# --- saving


def test_model_comes_back_from_its_folder_as_it_was(tiny, folder):
    back = artifact.load_model(str(folder), NONE)
    assert_same(tiny, back)
    assert (back.uri, back.run_id) == (str(folder), "of the card")


def test_model_without_a_replay_buffer_comes_back_without_one(tiny, tmp_path):
    empty = artifact.TrainedModel(tiny.network, tiny.preprocessor)
    back = artifact.load_model(str(artifact.save_folder(empty, tmp_path / "saved")), NONE)
    assert back.buffer.empty
    assert back.roles is None


def test_folder_holds_a_card_for_people_with_result_purpose_and_limits(folder):
    text = (folder / "artifacts" / "model_card.md").read_text("utf-8")
    assert text.startswith("# Model card\n\n**good**\n")
    assert "predicts y (€) of a row" in text
    assert "**Limits.**" in text


def test_folder_names_its_requirements_and_needs_no_pickle_to_be_read(folder):
    lines = (folder / "requirements.txt").read_text().split()
    names = {line.split("==")[0] for line in lines}
    assert names == {"mlflow", "tensorflow", "keras", "pandas", "pyarrow", "numpy"}
    assert all("==" in line for line in lines)
    assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".skops")]
    flavors = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))["flavors"]
    assert set(flavors) == {"python_function", "keras"}


def test_example_can_be_scored_and_is_no_row_of_the_data(tiny, tiny_rows, folder):
    content = json.loads((folder / "input_example.json").read_text("utf-8"))
    example = pd.DataFrame(content["data"], columns=content["columns"])
    assert [*example] == ["income", "region", "since", "code"]
    assert re.fullmatch(r"\d\d/\d\d/2019", example["since"][0])
    assert 1500 < example["income"][0] < 2500
    assert not (tiny_rows[[*example]] == example.iloc[0]).all(axis=1).any()
    assert np.isfinite(tiny.preprocessor.encode(example)).all()


@pytest.mark.parametrize("form", ["%m/%d/%Y", "ISO8601", "epoch s", "epoch ms"])
def test_example_writes_dates_as_the_model_reads_them(form):
    column = columns.Column("day", "date", date_format=form)
    days = columns.conform(
        pd.DataFrame({"day": [artifact._date(18_000.7, form)]}),
        columns.Schema(columns.Column("y", "numeric"), (column,)),
        source="example",
        need_target=False,
    )[0]
    assert days["day"].tolist() == [18_000]


@pytest.mark.parametrize("step", ["mlflow.pyfunc.save_model", "shutil.copyfile"])
def test_folder_stays_as_it_is_when_a_new_one_cannot_be_completed(
    tiny, folder, monkeypatch, hashes, step
):
    before = hashes(folder.parent)

    def fail(*args, **options):
        (half,) = folder.parent.glob(".saved-*")
        (half / "begun").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="no space"):
        artifact.save_folder(tiny, folder)
    assert hashes(folder.parent) == before
    assert os.listdir(folder.parent) == ["saved"]


def test_folder_of_another_process_that_comes_in_between_is_replaced(tiny, folder, monkeypatch):
    rename, came = Path.rename, []

    def interfere(path, target):
        if path.name == "new" and not came:
            came.append(shutil.copytree(path, target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interfere)
    artifact.save_folder(tiny, folder)
    assert came
    assert os.listdir(folder.parent) == ["saved"]
    assert_same(tiny, artifact.load_model(str(folder), NONE))


def test_preprocessor_file_stays_as_it_is_when_a_new_one_cannot_be_completed(
    tiny, pickle, monkeypatch, hashes
):
    before = hashes(pickle.parent)

    def half(value, file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(joblib, "dump", half)
    with pytest.raises(OSError, match="no space"):
        artifact.save_preprocessor(tiny.preprocessor, pickle)
    assert hashes(pickle.parent) == before
    assert artifact.load_preprocessor(pickle) == tiny.preprocessor


def test_preprocessor_file_of_a_process_killed_before_the_exchange_is_still_ours(
    tiny, pickle, monkeypatch
):
    def killed(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        artifact.save_preprocessor(tiny.preprocessor.__class__(tiny.preprocessor.schema), pickle)
    assert artifact.load_preprocessor(pickle) == tiny.preprocessor


# --- loading


def test_every_form_of_uri_leads_to_the_model(tiny, logged, tmp_path):
    run = logged.run.info.run_id
    folder = shutil.copytree(logged.artifact(logged.uri), tmp_path / "copy")
    uris = [logged.uri, "models:/loan-amount/1", "models:/loan-amount@champion"]
    uris += ["models:/loan-amount/latest", f"runs:/{run}/mlflow_model", str(folder)]
    uris += [folder.as_uri()]
    for uri in uris:
        back = logged.load(uri)
        assert_same(tiny, back)
        assert (back.uri, back.run_id) == (uri, run)
        assert back.model_id == logged.uri.removeprefix("models:/")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/loan-amount/9", "not found"),
        ("models:/nobody@champion", "nobody not found"),
        ("models:/m-0123", "m-0123"),
        ("runs:/0123/mlflow_model", "0123 not found"),
        ("runs:/{run}/other", "no model at"),
        ("no-such-folder", "no model at no-such-folder"),
        ("models:/", "no model at"),
        ("{empty}", "has no MLmodel file"),
    ],
)
def test_uri_that_leads_nowhere_is_one_line_with_what_was_expected(logged, tmp_path, uri, words):
    uri = uri.format(run=logged.run.info.run_id, empty=tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        logged.load(uri)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", artifact.CHECKED)
@pytest.mark.parametrize("how", ["changed", "truncated"])
def test_artifact_with_a_file_that_is_not_the_logged_one_is_refused(folder, name, how):
    file = folder / "artifacts" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if how == "changed" else content[:-1])
    with pytest.raises(UserError, match=f"is damaged .*{name} is not the file that was logged"):
        artifact.load_model(str(folder), NONE)


@pytest.mark.parametrize("name", [*artifact.CHECKED, "card.json"])
def test_half_copied_artifact_is_refused_by_the_file_it_lacks(folder, name):
    (folder / "artifacts" / name).unlink()
    lacks = "No such file" if name == "card.json" else f"{name} is not the file that was logged"
    with pytest.raises(UserError, match=f"is damaged .*{lacks}"):
        artifact.load_model(str(folder), NONE)


@pytest.mark.parametrize("card", ["{", "{}", "[]", '{"files": {}}', '{"files": {"../../x": "1"}}'])
def test_artifact_with_a_broken_card_is_refused(folder, card):
    (folder / "artifacts" / "card.json").write_text(card)
    with pytest.raises(UserError, match="is damaged"):
        artifact.load_model(str(folder), NONE)


@pytest.mark.parametrize("content", ["", ":", "flavors: 3", "- a"])
def test_artifact_with_a_broken_mlmodel_file_is_refused(folder, content):
    (folder / "MLmodel").write_text(content)
    with pytest.raises(UserError, match=r"saved is damaged|flavors"):
        artifact.load_model(str(folder), NONE)


def replace_part(folder, name, write):
    """Exchange a file of an artifact and its hash in the card, as an attacker would."""
    write(folder / "artifacts" / name)
    card_file = folder / "artifacts" / "card.json"
    card = json.loads(card_file.read_text("utf-8"))
    card["files"][name] = artifact.sha256(folder / "artifacts" / name)
    card_file.write_text(json.dumps(card), "utf-8")


def save_lambda(file, mark):
    """Save a network with a layer that runs Python code when it is called."""
    code = f"lambda x: (__import__('pathlib').Path({str(mark)!r}).touch(), x)[1]"
    layers = [keras.Input((3,)), keras.layers.Lambda(eval(code)), keras.layers.Dense(1)]
    network = keras.Sequential(layers)
    network.compile("adam", "mse")
    network.save(file)
    mark.unlink(missing_ok=True)


def test_network_with_python_code_in_it_is_refused_and_not_run(folder, tmp_path):
    mark = tmp_path / "mark"
    replace_part(folder, "model.keras", lambda file: save_lambda(file, mark))
    with pytest.raises(UserError, match="cannot be loaded safely"):
        artifact.load_model(str(folder), NONE)
    assert not mark.exists()


def test_plain_network_with_python_code_in_it_is_refused_and_not_run(plain, pickle, tmp_path):
    mark = tmp_path / "mark"
    (file,) = plain.rglob("*.keras")
    save_lambda(file, mark)
    with pytest.raises(UserError, match="cannot be loaded safely"):
        artifact.load_model(str(plain), pickle)
    assert not mark.exists()


def test_code_that_travels_in_an_artifact_is_not_run_by_loading_it_here(folder, tmp_path):
    mark = tmp_path / "mark"
    planted = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    files = [folder / "served_model.py", *(folder / "artifacts" / "code").glob("*.py")]
    assert len(files) == 6
    for file in files:
        file.write_text(planted + file.read_text("utf-8"), "utf-8")
    assert artifact.load_model(str(folder), NONE).roles
    assert not mark.exists()
    exec(compile(planted, "planted", "exec"))
    assert mark.exists()  # it would have run


@pytest.mark.parametrize("content", ["{}", "[]", '{"schema": 1, "inputs": []}', "null"])
def test_preprocessor_that_is_none_is_refused(folder, content):
    replace_part(folder, "preprocessor.json", lambda file: file.write_text(content))
    with pytest.raises(UserError, match="is damaged"):
        artifact.load_model(str(folder), NONE)


def test_preprocessor_of_another_width_than_the_network_is_refused(tiny, folder):
    fewer = json.dumps(asdict(tiny.preprocessor) | {"inputs": []})
    replace_part(folder, "preprocessor.json", lambda file: file.write_text(fewer))
    with pytest.raises(UserError, match=r"takes \d+ inputs, but its preprocessor makes 0"):
        artifact.load_model(str(folder), NONE)


# --- models of other programs


def test_plain_keras_model_needs_the_preprocessor_it_was_trained_with(tiny, plain, pickle):
    loaded = artifact.load_model(str(plain), pickle)
    assert loaded.preprocessor == tiny.preprocessor
    assert loaded.buffer.empty
    assert loaded.roles is None
    pickle.unlink()
    with pytest.raises(UserError, match=f"{pickle} is not one that .*No such file"):
        artifact.load_model(str(plain), pickle)


def test_plain_keras_model_of_another_width_is_refused(pickle, tmp_path):
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    mlflow.keras.save_model(network, str(tmp_path / "narrow"), pip_requirements=["keras"])
    with pytest.raises(UserError, match=r"takes 3 inputs, .* makes \d+; .*preprocessor\.pkl"):
        artifact.load_model(str(tmp_path / "narrow"), pickle)


def test_planted_pickle_is_refused_and_not_run(plain, pickle, tmp_path):
    mark = tmp_path / "mark"
    joblib.dump(Planted(mark), pickle)
    with pytest.raises(UserError, match=r"is not one that mlflow_monitoring\.py wrote .*is code"):
        artifact.load_model(str(plain), pickle)
    assert not mark.exists()
    joblib.load(pickle)  # it would have run
    assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"[1]", b"\x80\x04N."])
def test_file_that_is_no_preprocessor_is_refused(plain, pickle, content):
    pickle.write_bytes(content)
    with pytest.raises(UserError, match=r"is not one that mlflow_monitoring\.py wrote"):
        artifact.load_model(str(plain), pickle)


def test_pickle_beside_a_complete_artifact_is_not_even_read(folder, pickle, tmp_path):
    mark = tmp_path / "mark"
    joblib.dump(Planted(mark), pickle)
    assert artifact.load_model(str(folder), pickle).roles
    assert not mark.exists()


def test_model_of_scikit_learn_alone_is_refused_by_the_names_of_its_flavors(tmp_path):
    model = LinearRegression().fit([[1.0], [2.0]], [1.0, 2.0])
    place = str(tmp_path / "linear")
    mlflow.sklearn.save_model(model, place, pip_requirements=[], serialization_format="skops")
    with pytest.raises(UserError, match=r"flavors .*sklearn.* no Keras network"):
        artifact.load_model(place, NONE)


def kin(monkeypatch, parent, *newer):
    """Give the buffer of a parent beside newer versions, the newest of which comes first."""
    made = {f"models:/m/{number}": model for number, model in enumerate(newer)}
    monkeypatch.setattr(artifact, "load_model", lambda uri, _: made[uri])
    versions = [SimpleNamespace(run_id=model.run_id, version=n) for n, model in enumerate(newer)]
    client = SimpleNamespace(search_model_versions=lambda *_, **__: versions)
    return artifact.newest_buffer(client, "m", parent)


def remembering(run_id, rows, lineage=(), role="train", **card):
    steps = [{"generation": number, "run_id": name} for number, name in enumerate(lineage)]
    table = pd.DataFrame({roles.HASH: rows, roles.ROLE: role, roles.GENERATION: 0})
    card = {"lineage": steps, **card}
    return artifact.TrainedModel(None, None, None, table, card, f"models:/{run_id}", run_id)


def test_rows_of_every_kept_version_of_the_same_root_come_along_and_the_parents_roles_stay(
    monkeypatch,
):
    parent = remembering("b", [1, 2], ["a", "b"], role="held_out")
    sibling = remembering("c", [1, 2, 3], ["a", "c", "c"])
    other = remembering("x", [9], ["x"])
    broken = remembering("d", [8], ["a", "d"], verdict_kind="suspicious")
    plain = remembering("k", [7])
    plain.card = {}
    table, generation = kin(monkeypatch, parent, plain, broken, other, sibling, parent)
    assert dict(zip(table[roles.HASH], table[roles.ROLE], strict=True)) == {
        **dict.fromkeys([1, 2], "held_out"),
        3: "train",
    }
    assert generation == 2
    assert kin(monkeypatch, parent, other, parent)[0] is parent.buffer


def test_rows_that_a_sibling_saw_are_new_to_the_parent(monkeypatch):
    pairs = (("b", ["x", "y"]), ("c", ["x", "z"]))
    champion, refused = (remembering(run, rows, ["a", run]) for run, rows in pairs)
    for model, generations in ((champion, [0, 1]), (refused, [0, 1])):
        model.buffer = model.buffer.assign(**{roles.GENERATION: generations})
    table, last = kin(monkeypatch, champion, refused, champion)
    assert dict(zip(table[roles.HASH], table[roles.GENERATION], strict=True)) == {
        "x": 0,
        "y": 1,
        "z": 2,
    }
    assert last == 2
    child = remembering("d", ["x", "y", "v"], ["a", "b", "d"])  # refused, of the champion
    child.buffer[roles.GENERATION] = [0, 1, 2]
    table, last = kin(monkeypatch, champion, child, champion)
    assert (table[roles.GENERATION].tolist(), last) == ([0, 1, 2], 2)


def test_children_of_a_model_of_another_making_are_its_line(monkeypatch):
    plain = remembering("k", [])
    plain.card, plain.buffer = {}, pd.DataFrame()
    child = remembering("c", [1], ["k", "c"], parent_model_uri="models:/k")
    other = remembering("x", [9], ["x"], parent_model_uri="models:/y")
    table, generation = kin(monkeypatch, plain, other, child, plain)
    assert table[roles.HASH].tolist() == [1]
    assert generation == 1


def test_times_that_a_refused_try_held_out_stay_so_and_those_of_a_sibling_do_not(monkeypatch):
    def of(run, *intervals):
        model = remembering(run, [run], ["a", run])
        model.roles = roles.Roles(1, 0, time="t", intervals=[*map(list, intervals)])
        return model

    for intervals, is_child in (([(1, 2), (5, 6)], True), ([(3, 4), (5, 6)], False)):
        parent, newer = of("b", (1, 2)), of("c", *intervals)
        kin(monkeypatch, parent, newer, parent)
        assert (parent.roles == newer.roles) is is_child


def test_refused_try_with_a_smaller_buffer_loses_no_row_of_those_before(monkeypatch):
    parent = remembering("b", ["x"], ["a", "b"], buffer_rows=100)
    first = remembering("c", ["x", "y", "z"], ["a", "b", "c"], buffer_rows=100)
    small = remembering("d", ["v"], ["a", "b", "d"], buffer_rows=1)
    older = remembering("e", ["u"], ["a", "b", "e"], buffer_rows=100)
    for generation, model in enumerate((older, first, small), 2):
        model.buffer[roles.GENERATION] = generation
    table, last = kin(monkeypatch, parent, small, first, older, parent)
    assert sorted(table[roles.HASH]) == ["v", "x", "y", "z"]  # the first holds what is older
    assert last == 4
