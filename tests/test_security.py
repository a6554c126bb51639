"""Claims about hostile input and private data, end to end.

Tables, names and artifacts that would do more than tell, and persons that must not be kept. That
Lambda layers, foreign types and changed files are refused is claimed in test_artifact.py.
"""

import json
import shutil
import sqlite3
import zipfile
from pathlib import Path

import joblib
import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import Place, not_trained

from toolkit import artifact
from toolkit.errors import UserError

MARKUP = "<img src=x onerror=alert(1)>"
FORMULAS = ["=1+1", "+1+cmd", "-1-cmd", "@SUM(A1)"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, empty_store):
    """Train and retrain on tables whose texts, names and unit are attacks."""
    place = Place(tmp_path_factory.mktemp("hostile") / "inside", experiment="../../out")
    place.folder.mkdir()
    shutil.copy(empty_store, place.folder / "mlflow.db")
    rng = np.random.default_rng(3)
    for name in ("old", "new"):
        rows = pd.DataFrame(
            {
                "=cmd()": rng.normal(size=300),
                MARKUP: rng.choice([*FORMULAS, MARKUP], 300),
                "../../escape": rng.choice(["../../x", "a|b"], 300),
            }
        )
        rows["y"] = rows["=cmd()"] + (name == "new") + rng.normal(size=300)
        rows.to_csv(place.folder / f"{name}.csv", index=False)
    flags = ["--epochs", 2, "--model-name", "a <b>"]
    first = ["--data", "old.csv", "--target", "y", "--unit", MARKUP]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_utils.train_model", not_trained)
        assert place.train(*first, *flags) == 0, place.err
        assert place.retrain("--data", "new.csv", *flags, "--no-controls") == 0, place.err
    return place


def test_exported_tables_hold_no_cell_that_a_spreadsheet_would_run(hostile):
    cells = []
    for name in ("groups.csv", "drift.csv"):
        (file,) = hostile.folder.rglob(name)
        table = pd.read_csv(file, dtype=str)
        cells += [*table.columns, *table["column"], *table.get("group", [])]
    assert [cell for cell in cells if str(cell).startswith("'")]  # there were some
    assert not [cell for cell in cells if str(cell).startswith(tuple("=+-@"))]


def test_markup_in_names_categories_and_units_is_text_wherever_it_is_shown(hostile):
    reports = [path.read_text("utf-8") for path in hostile.folder.rglob("report.*")]
    assert len(reports) == 2
    versions = hostile.client.search_model_versions()
    models = hostile.client.search_registered_models()
    shown = [run.data.tags["mlflow.note.content"] for run in hostile.runs()]
    shown += [each.description for each in (*versions, *models)]
    for text in (*reports, *shown):
        assert "<img" not in text
        assert "<b>" not in text
    assert all("img src" in report for report in reports)


def test_names_do_not_lead_out_of_the_folder(hostile):
    assert [path.name for path in hostile.folder.parent.iterdir()] == ["inside"]
    names = {path.name for path in hostile.folder.iterdir()}
    assert names == {"mlflow.db", "mlruns", "models", "old.csv", "new.csv"}


# --- persons

SURNAMES = ["Quatremer", "Vandenbrouck", "Ötztürk-Léger"]


@pytest.fixture(scope="module")
def persons(tmp_path_factory, empty_store):
    """Train, retrain and fail on tables full of persons, also where nobody would look for them."""
    place = Place(tmp_path_factory.mktemp("persons"))
    shutil.copy(empty_store, place.folder / "mlflow.db")
    data = place.folder.parent / f"{place.folder.name}-data"
    data.mkdir()
    rng = np.random.default_rng(4)
    for name in ("old", "new"):
        surnames = rng.choice(SURNAMES, 240)
        rows = pd.DataFrame(
            {
                "Nom": surnames,
                "courriel": [f"{s.lower()}.{i}@example.org" for i, s in enumerate(surnames)],
                "téléphone": [f"06 12 {i:02d} 34 {i:02d}" for i in rng.integers(0, 99, 240)],
                "age": rng.integers(18, 80, 240),
                "region": rng.choice(["Occitanie", "Bretagne"], 240),
            }
        )
        rows["y"] = rows["age"] * 2 + (name == "new") * 9 + rng.normal(size=240)
        rows.to_csv(data / f"{name}.csv", index=False)
    rows.assign(age="?!").to_csv(data / "bad.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_utils.train_model", not_trained)
        assert place.train("--data", data / "old.csv", "--target", "y") == 0, place.err
        place.printed = [place.out, place.err]
        for flags in (["new.csv"], ["bad.csv"], ["new.csv", "--dry-run"]):
            place.retrain("--data", data / flags[0], *flags[1:], "--no-controls")
            place.printed += [place.out, place.err]
    assert [run.info.status for run in place.runs()] == ["FINISHED", "FINISHED"]
    return place


def test_no_person_is_found_in_the_store_the_models_or_on_the_terminal(persons):
    everything = b"\n".join([*contents(persons.folder), *map(str.encode, persons.printed)])
    assert b"Occitanie" in everything  # the search does see what is inside of the files
    for name in [*SURNAMES, "quatremer", "vandenbrouck", "@example.org", "06 12 "]:
        for spelling in {name.encode(), json.dumps(name)[1:-1].encode(), name.encode("latin-1")}:
            assert spelling not in everything, name
    said = persons.printed[0]
    assert all(f"note: column '{name}' is left out" in said for name in ("Nom", "courriel"))


def contents(folder):
    """Yield the bytes of every file, of what zip files hold, and Parquet and SQLite as text."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        yield path.read_bytes()
        if path.suffix == ".parquet":
            yield pd.read_parquet(path).to_csv().encode()
        if path.suffix == ".db":
            with sqlite3.connect(path) as database:
                yield "\n".join(database.iterdump()).encode()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield archive.read(name)


# --- code in artifacts

PLANTED = "import pathlib\npathlib.Path({mark!r}).touch()\n"


def test_no_code_of_a_uri_runs_however_a_model_is_retrained_or_scored_by_the_scripts(
    persons, tmp_path
):
    """Plant code in each file of a model that Python could run; the scripts know their own."""
    mark = tmp_path / "mark"
    hostile = tmp_path / "hostile"
    shutil.copytree(persons.folder / "models" / "mlflow_model", hostile)
    planted = 0
    for file in hostile.rglob("*.py"):
        file.write_text(PLANTED.format(mark=str(mark)) + file.read_text("utf-8"), "utf-8")
        planted += 1
    assert planted >= 5
    joblib.dump(Touching(str(mark)), tmp_path / "touch.pkl")
    shutil.copy(tmp_path / "touch.pkl", hostile / "python_model.pkl")
    data = persons.folder.parent / f"{persons.folder.name}-data" / "new.csv"
    assert persons.retrain("--model-uri", hostile, "--data", data, "--dry-run") == 0, persons.err
    flags = ["--model-uri", hostile, "--data", data, "--output", tmp_path / "out.csv"]
    assert persons.score(*flags) == 0, persons.err
    assert not mark.exists()
    exec(next(hostile.rglob("columns.py")).read_text("utf-8").partition('\n"""')[0], {})
    assert mark.exists()  # it would have run


class Touching:
    """Touch a file when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


def test_planted_pickle_beside_a_plain_keras_model_is_refused_and_not_run(persons, tmp_path):
    mark, place = tmp_path / "mark", persons.copy(tmp_path / "place")
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    mlflow.keras.save_model(network, str(place.folder / "plain"), pip_requirements=["keras"])
    pickle = place.folder / "models" / "preprocessor.pkl"
    joblib.dump(Touching(str(mark)), pickle)
    data = persons.folder.parent / f"{persons.folder.name}-data" / "new.csv"
    assert place.retrain("--model-uri", "plain", "--data", data) == 2
    assert "is not one that mlflow_monitoring.py wrote" in place.err
    assert place.err.count("\n") == 1
    assert not mark.exists()
    joblib.load(pickle)
    assert mark.exists()


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "..", "a/../../secret"])
def test_file_names_in_a_card_do_not_reach_outside_of_the_model(persons, tmp_path, name):
    (tmp_path / "secret").write_text("mine")
    folder = tmp_path / "artifact"
    shutil.copytree(persons.folder / "models" / "mlflow_model", folder)
    file = folder / "artifacts" / "card.json"
    card = json.loads(file.read_text("utf-8"))
    card["files"] = {name: artifact.sha256(tmp_path / "secret")}
    file.write_text(json.dumps(card), "utf-8")
    with pytest.raises(UserError, match="is damaged"):
        artifact.load_model(str(folder), tmp_path / "none.pkl")
