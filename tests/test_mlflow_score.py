"""Claims about scoring: a row is worth the same in a file, in Python and over HTTP.

The servers and commands are started as a newcomer starts them: as the README writes them, in a
folder with an environment in `.venv` that nobody has activated.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import Place, not_trained

import mlflow_score
import model_utils
from toolkit import ranges, tables

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
ENVIRONMENT = Path(sys.executable).parents[1]
PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin"  # without the environment of the tests
SHELL = "import os, sys; os.execv('/bin/sh', ['sh', '-c', sys.argv[1]])"
SERVE = re.search(r"^(PATH=.*)?\S+/mlflow models serve .*$", README, re.M)[0]
PREDICT = ".venv/bin/mlflow models predict -m models:/loan-amount@champion --env-manager local"


@pytest.fixture(scope="module")
def rows():
    """Make rows as people write them: French dates, amounts with spaces and a sign, codes, gaps."""
    rng = np.random.default_rng(9)
    income = rng.uniform(800, 9_000, 200)
    rows = pd.DataFrame(
        {
            "since": pd.date_range("2019-01-15", periods=200, freq="5D").strftime("%d/%m/%Y"),
            "income": [f"{value:,.2f} €".replace(",", " ").replace(".", ",") for value in income],
            "code": rng.choice(["01", "2A", "75"], 200),
            "share": [f"{value} %" for value in rng.integers(1, 99, 200)],
            "amount": (income * 2 + rng.normal(0, 90, 200)).round(2),
        }
    )
    rows.loc[::9, "code"] = None
    return rows


@pytest.fixture(scope="module")
def place(rows, empty_store, tmp_path_factory):
    """Train on these rows in a folder that looks like a clone of the project."""
    place = Place(tmp_path_factory.mktemp("scored"))
    (place.folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    (place.folder / ".venv").symlink_to(ENVIRONMENT)
    rows.to_csv(place.folder / "rows.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_utils.train_model", not_trained)  # random weights are as good
        patch.setattr("toolkit.tracking.log_figures", lambda figures: None)
        assert place.train("--data", "rows.csv", "--target", "amount") == 0, place.err
    kinds = place.load("models:/loan-amount@champion").preprocessor.schema.kinds
    assert kinds == {
        "since": "date",
        "income": "numeric",
        "code": "categorical",
        "share": "numeric",
    }
    place.sent = rows.drop(columns="amount").tail(60).reset_index(drop=True)
    place.sent.to_csv(place.folder / "sent.csv", index=False)
    return place


@pytest.fixture(scope="module")
def expected(place):
    return place.predict("models:/loan-amount@champion", place.sent)


@pytest.fixture(scope="module", autouse=True)
def started(place, launch):
    """Start the README's server, and MLflow's command for files, with the PATH untouched."""
    assert SERVE.endswith("--port 5001")
    options = {"folder": place.folder, "PATH": PLAIN_PATH}
    return {
        "server": launch("-c", SHELL, SERVE.replace("5001", "{port}"), **options),
        "predict": launch("-c", SHELL, f"{PREDICT} -i sent.csv -t csv", **options),
    }


def test_environment_is_not_on_the_path_that_these_tests_use():
    assert shutil.which("uvicorn", path=PLAIN_PATH) is None, "uvicorn is installed for everybody"


# --- files


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_file_of_predictions_holds_those_of_pyfunc_in_the_order_of_the_rows(
    place, expected, suffix, monkeypatch
):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 25)
    data, output = f"sent.{suffix}", place.folder / f"out.{suffix}"
    if suffix == "parquet":
        place.sent.to_parquet(place.folder / data)
    before = {file.name for file in place.folder.iterdir()}
    assert place.score("--data", data, "--output", output.name, "--json") == 0, place.err
    found = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
    assert list(found) == ["prediction"]
    np.testing.assert_array_equal(found["prediction"], expected)
    assert {file.name for file in place.folder.iterdir()} == before | {output.name}
    assert json.loads(place.out) == {
        "rows": 60,
        "model_uri": "models:/loan-amount@champion",
        "output": output.name,
    }
    assert len(place.runs()) == 1  # scoring logs nothing


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_interval_writes_the_ranges_of_pyfunc_beside_the_predictions(place, suffix, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 25)
    output = place.folder / f"wide.{suffix}"
    flags = ["--data", "sent.csv", "--output", output.name, "--interval", 0.8]
    assert place.score(*flags) == 0, place.err
    found = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
    model = mlflow.pyfunc.load_model("models:/loan-amount@champion")
    pd.testing.assert_frame_equal(found, model.predict(place.sent, params={"interval": 0.8}))
    kept = place.load("models:/loan-amount@champion").card
    assert len(kept[ranges.KEPT]["error"]) == 40  # a fifth of the rows
    assert found["low"].min() >= kept["scale"]["low"]
    assert found["high"].max() <= kept["scale"]["high"]
    output.unlink()


def test_category_that_the_model_knows_is_scored_also_where_it_is_called_total(tmp_path):
    rows = pd.DataFrame({"cover": ["partial", "total"] * 60, "age": range(120), "y": range(120)})
    _, _, preprocessor = model_utils.preprocessing(rows.astype(str), target="y")
    (tmp_path / "new.csv").write_text("cover,age\npartial,30\ntotal,145\n")
    network = SimpleNamespace(predict_on_batch=lambda X: X[:, :1])
    source = tables.open_table(tmp_path / "new.csv")
    found = mlflow_score.predictions(network, preprocessor, {}, None, source)
    assert [len(block["prediction"]) for block in found] == [2]
    assert source.notes == []


def test_error_in_a_late_block_leaves_the_old_predictions_as_they_were(place, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 10)
    file = place.folder / "predictions.csv"
    file.write_text("old")
    bad = place.sent.copy()
    bad.loc[55, "income"] = "much"
    parts = place.folder / "parts"
    parts.mkdir()
    bad[:30].to_csv(parts / "a.csv", index=False)
    bad[30:].to_csv(parts / "b.csv", index=False)
    assert place.score("--data", "parts") == 2
    assert place.err.startswith("error: column 'income' of parts holds 'much' in line")
    assert place.err.count("\n") == 1
    assert file.read_text() == "old"
    assert list(place.folder.glob(".*.part")) == []


# --- commands and servers


def test_models_predict_scores_a_file(started, expected):
    process = started["predict"]
    assert process.wait() == 0, process.err
    answer = json.loads(process.out[process.out.index('{"predictions') :])
    assert answer["predictions"] == expected.tolist()


def body(rows, form):
    if form == "csv":
        return rows.to_csv(index=False), "text/csv"
    content = json.loads(rows.to_json(orient=form.removeprefix("dataframe_")))
    content.pop("index", None) if form == "dataframe_split" else None
    return json.dumps({form: content}), "application/json"


@pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records", "csv"])
def test_server_gives_every_row_the_same_prediction(started, place, expected, form):
    server = started["server"].ready("/ping")
    status, answer = server.post("/invocations", *body(place.sent, form))
    assert status == 200, answer
    assert json.loads(answer)["predictions"] == expected.tolist()


def test_file_that_is_read_is_never_written_over(workshop, files):
    rows = pd.read_csv(files / "new.csv")
    rows.to_csv(workshop.folder / "rows.csv", index=False)
    (workshop.folder / "many").mkdir()
    rows.to_csv(workshop.folder / "many" / "a.csv", index=False)
    url = (workshop.folder / "many" / "a.csv").as_uri()
    for data, output in (
        ("rows.csv", "./rows.csv"),
        ("many", "many/a.csv"),
        ("many/*.csv", "many/a.csv"),
        (url, "many/a.csv"),
    ):
        assert workshop.score("--data", data, "--output", output) == 2
        assert "is read by --data" in workshop.err
        pd.testing.assert_frame_equal(pd.read_csv(workshop.folder / output), rows)
    # It would be read the next time.
    assert workshop.score("--data", "many", "--output", "many/new.csv") == 2
    assert not (workshop.folder / "many" / "new.csv").exists()
