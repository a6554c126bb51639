"""Claims about served_model.py: the artifact scores raw rows alike wherever MLflow runs it."""

import csv
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from toolkit import artifact, encoding, ranges, served_model

# What a program of somebody else does with the model, far from the project's folder.
OTHER_PROGRAM = """
import json, sys
import mlflow, pandas as pd
uri, data = sys.argv[1:]
served = mlflow.pyfunc.load_model(uri)
network = mlflow.keras.load_model(uri)
print(json.dumps({
    "served": [float(value).hex() for value in served.predict(pd.read_csv(data))],
    "iterations": int(network.optimizer.iterations),
    "slots": [bool(variable.numpy().any()) for variable in network.optimizer.variables],
    "project_on_path": "toolkit" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def rows(tiny_rows):
    return tiny_rows.drop(columns="y")


@pytest.fixture(scope="module")
def expected(tiny, rows):
    """Predict in this process, with the parts that retraining uses."""
    return encoding.predict(tiny.network, tiny.preprocessor.encode(rows))


@pytest.fixture(scope="module")
def served(logged):
    logged.use()
    return mlflow.pyfunc.load_model(logged.uri)


@pytest.fixture(scope="module", autouse=True)
def processes(spare, logged, rows, tmp_path_factory):
    """Start all processes at once; each test waits for the one it looks at."""
    folder = tmp_path_factory.mktemp("scored")
    data = folder / "rows.csv"
    rows.to_csv(data, index=False)
    store = {"MLFLOW_TRACKING_URI": logged.store}
    champion = "models:/loan-amount@champion"
    # MLflow starts the web server by its name, for which the README's line sets the PATH, too.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    serve = f"-m mlflow models serve -m {champion} --env-manager local -h 127.0.0.1 -p {{port}}"
    predict = f"-m mlflow models predict -m {champion} --env-manager local -t csv -i {data}"
    return {
        "server": spare(*serve.split(), "--workers", "1", **store, PATH=path),
        "other": spare("-c", OTHER_PROGRAM, logged.uri, data, **store),
        "file": spare(*predict.split(), "-o", folder / "out.json", **store),
        "file_output": folder / "out.json",
    }


@pytest.fixture(scope="module")
def server(processes):
    return processes["server"].ready("/ping")


# --- in this process


def test_predictions_are_those_of_network_and_preprocessor_bit_for_bit(served, rows, expected):
    prediction = served.predict(rows)
    assert prediction.dtype == np.float64
    assert prediction.shape == (120,)
    np.testing.assert_array_equal(prediction, expected)
    np.testing.assert_array_equal(served.predict(rows.iloc[[17]]), expected[[17]])


@pytest.mark.parametrize("passed", [None, "rows", 3, np.array(3), {"a": [1], "b": [1, 2]}])
def test_what_is_no_table_is_refused_with_what_to_send(served, passed):
    with pytest.raises(MlflowException, match=r"expected (rows|at least one row)"):
        served.predict(passed)


def test_one_feature_may_have_a_separator_in_its_name():
    table = pd.DataFrame({"|error|": [1.5, 2.5]}, index=[7, 3])
    assert served_model._as_frame(table, ("|error|",)).equals(table)


def test_order_of_columns_and_extra_ones_do_not_matter(served, rows, expected):
    shuffled = rows[rows.columns[::-1]].assign(shoe_size=44, comment="none")
    np.testing.assert_array_equal(served.predict(shuffled), expected)


def test_record_and_list_of_records_are_rows(served, rows, expected):
    records = rows.head(3).to_dict(orient="records")
    np.testing.assert_array_equal(served.predict(records), expected[:3])
    np.testing.assert_array_equal(served.predict(records[1]), expected[[1]])


def test_numbers_as_people_write_them_and_dates_are_read_as_in_training(served, rows, expected):
    text = rows.assign(income=[f"{value:.2f}" for value in rows["income"]])
    np.testing.assert_array_equal(served.predict(text), expected)
    days = pd.to_datetime(rows["since"], format="%d/%m/%Y")
    np.testing.assert_array_equal(served.predict(rows.assign(since=days)), expected)
    assert (served.predict(rows.assign(since=days + pd.Timedelta(days=9))) != expected).any()


def test_missing_values_are_scored(served, rows, expected):
    gaps = rows.assign(income=None, region=np.nan, since=None)
    assert np.isfinite(served.predict(gaps)).all()
    assert (served.predict(gaps) != expected).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns="income"), "income"),
        (lambda rows: rows.assign(income="high"), "'income'.*'high'"),
        (lambda rows: rows.head(0), "at least one row"),
    ],
    ids=["missing", "text", "empty"],
)
def test_rows_that_cannot_be_scored_are_refused_with_the_reason(served, rows, change, words):
    with pytest.raises(MlflowException, match=words):
        served.predict(change(rows))


def test_two_versions_with_different_code_run_their_own_in_one_process(
    tiny, served, tmp_path, rows, expected
):
    folder = artifact.save_folder(tiny, tmp_path / "second")
    code = folder / "artifacts" / "code" / "encoding.py"
    original = code.read_text("utf-8")
    changed = original.replace("    return outputs", "    return 1000 + outputs")
    assert changed != original
    code.write_text(changed, "utf-8")
    second = mlflow.pyfunc.load_model(str(folder))
    for _ in range(2):
        np.testing.assert_array_equal(served.predict(rows), expected)
        np.testing.assert_array_equal(second.predict(rows), expected + 1000)


def test_model_runs_the_code_it_carries_and_none_of_the_project(
    logged, tmp_path, monkeypatch, rows, expected
):
    folder = shutil.copytree(logged.artifact(logged.uri), tmp_path / "elsewhere")
    code = folder / "artifacts" / "code" / "encoding.py"
    code.write_text(code.read_text("utf-8") + "\n# a version of its own\n", "utf-8")
    for name in [name for name in sys.modules if name.split(".")[0] == "toolkit"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it would fail now
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(str(folder)).predict(rows), expected)


def test_interval_adds_low_and_high_and_nothing_changes_without_it(tiny, served, rows, expected):
    found = served.predict(rows, params={"interval": 0.9})
    assert list(found) == ["prediction", "low", "high"]
    low, high = ranges.around(tiny.card, expected, 0.9)
    np.testing.assert_array_equal(found, np.stack([expected, low, high], axis=1))
    for params in (None, {}, {"interval": None}):
        np.testing.assert_array_equal(served.predict(rows, params=params), expected)


def test_model_without_held_out_errors_predicts_and_refuses_an_interval(tiny, rows, tmp_path):
    folder = artifact.save_folder(replace(tiny, card={}), tmp_path / "old")
    old = mlflow.pyfunc.load_model(str(folder))
    assert len(old.predict(rows)) == 120
    with pytest.raises(MlflowException, match=r"a model that keeps errors of held-out rows"):
        old.predict(rows, params={"interval": 0.9})


# --- in other processes


def test_fresh_process_in_another_folder_gives_the_same_bits(processes, expected):
    assert processes["other"].wait() == 0, processes["other"].err
    other = json.loads(processes["other"].out)
    assert [float.fromhex(value) for value in other["served"]] == expected.tolist()
    assert not other["project_on_path"]
    assert other["iterations"] == 4  # 120 rows in batches of 32: Keras finds the optimizer's state
    assert sum(other["slots"]) > 2


def test_mlflow_models_predict_scores_a_csv_file(processes, expected):
    assert processes["file"].wait() == 0, processes["file"].err
    answer = json.loads(processes["file_output"].read_text("utf-8"))
    assert answer["predictions"] == expected.tolist()


def body(rows, form):
    if form == "csv":
        return rows.to_csv(index=False), "text/csv"
    if form == "csv with ;":
        return rows.to_csv(index=False, sep=";"), "text/csv"
    orient = form.removeprefix("dataframe_")
    content = json.loads(rows.to_json(orient=orient))
    content.pop("index", None) if orient == "split" else None
    return json.dumps({form: content}), "application/json"


FORMS = ["dataframe_split", "dataframe_records", "csv", "csv with ;"]


@pytest.mark.parametrize("form", FORMS)
def test_server_answers_with_the_predictions_of_this_process(server, rows, expected, form):
    status, answer = server.post("/invocations", *body(rows, form))
    assert status == 200, answer
    assert json.loads(answer)["predictions"] == expected.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_server_scores_gaps_as_this_process_does(server, served, rows, form):
    gaps = rows.head(6).copy()
    gaps.loc[[0, 1], "income"] = np.nan
    gaps.loc[[1, 2, 3], "region"] = None
    status, answer = server.post("/invocations", *body(gaps, form))
    assert status == 200, answer
    assert json.loads(answer)["predictions"] == served.predict(gaps).tolist()


def test_server_gives_the_ranges_of_this_process(server, served, rows):
    content = json.loads(body(rows, "dataframe_split")[0]) | {"params": {"interval": 0.9}}
    status, answer = server.post("/invocations", json.dumps(content))
    assert status == 200, answer
    found = pd.DataFrame(json.loads(answer)["predictions"])
    pd.testing.assert_frame_equal(found, served.predict(rows, params=content["params"]))


@pytest.mark.parametrize("interval", [0, 1.5, -1, "wide"])
def test_server_refuses_an_interval_that_is_no_share_with_status_400(server, rows, interval):
    content = json.loads(body(rows.head(2), "dataframe_split")[0]) | {
        "params": {"interval": interval}
    }
    status, answer = server.post("/invocations", json.dumps(content))
    assert status == 400, answer
    assert "interval" in json.loads(answer)["message"]


def test_server_scores_the_example_that_lies_in_the_artifact(server, logged):
    example = logged.artifact(logged.uri) / "serving_input_example.json"
    status, answer = server.post("/invocations", example.read_text("utf-8"))
    assert status == 200, answer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns="income"), "income"),
        (lambda rows: rows.assign(income="high"), "high"),
        (lambda rows: rows.head(0), "at least one row"),
    ],
    ids=["missing", "text", "empty"],
)
def test_server_refuses_wrong_rows_with_status_400_and_the_reason(
    server, rows, form, change, words
):
    status, answer = server.post("/invocations", *body(change(rows.head(4)), form))
    assert status == 400, answer
    assert words in json.loads(answer)["message"]


@pytest.mark.parametrize("line", ["1234,5;north", "0,5;north", "1;2,5", '"a;b";north'])
def test_semicolons_that_cannot_be_told_from_cells_are_status_400_with_what_to_send(server, line):
    status, answer = server.post("/invocations", f"income;region\n{line}\n", "text/csv")
    assert status == 400, answer
    assert "expected commas between columns" in json.loads(answer)["message"]


@pytest.mark.parametrize(
    ("quoting", "end"),
    [(csv.QUOTE_ALL, ""), (csv.QUOTE_NONNUMERIC, ""), (csv.QUOTE_MINIMAL, ";")],
    ids=["all quoted", "texts quoted", "separator at each end"],
)
def test_server_reads_semicolons_as_programs_write_them(server, rows, expected, quoting, end):
    text = rows.to_csv(index=False, sep=";", quoting=quoting).replace("\n", f"{end}\n")
    status, answer = server.post("/invocations", text, "text/csv")
    assert status == 200, answer
    assert json.loads(answer)["predictions"] == expected.tolist()


def test_server_refuses_rows_that_end_with_a_comma_which_would_move_all_columns(server, rows):
    header, *lines = rows.head(3).to_csv(index=False).splitlines()
    for end, status in ((",", 400), ("", 200)):
        text = "\n".join([header, *(line + end for line in lines)])
        found, answer = server.post("/invocations", text, "text/csv")
        assert found == status, answer
        assert ("without a comma at the end" in answer) == bool(end)


@pytest.mark.parametrize("text", ["{", '{"rows": []}', "[]", ""])
def test_server_refuses_what_is_no_table_with_status_400(server, text):
    status, answer = server.post("/invocations", text)
    assert status == 400, answer
    assert json.loads(answer)["message"]


def test_served_file_imports_nothing_of_the_project():
    text = Path(artifact.HERE / "served_model.py").read_text("utf-8")
    assert "from ." not in text
    assert "from toolkit" not in text
