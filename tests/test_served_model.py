"""Claims about served_model.py: the artifact scores raw rows alike wherever MLflow runs it."""

import json
import math
import shutil
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

import model_store
import model_utils
import tabular

# What a program of somebody else does with the model, far from the project's folder.
OTHER_PROGRAM = """
import json, sys
import mlflow, pandas as pd
uri, data = sys.argv[1:]
rows = pd.read_csv(data)
served = mlflow.pyfunc.load_model(uri)
network = mlflow.keras.load_model(uri)
preprocessor = mlflow.sklearn.load_model(uri)
numbers = preprocessor.transform(rows)
print(json.dumps({
    "served": [float(value).hex() for value in served.predict(rows)],
    "parts": network.predict(numbers, verbose=0)[:, 0].tolist(),
    "iterations": int(network.optimizer.iterations),
    "slots": [variable.numpy().any().item() for variable in network.optimizer.variables],
    "tensorflow": mlflow.tensorflow.load_model(uri).count_params(),
    "project_on_path": any(n in sys.modules for n in ("tabular", "model_store", "model_utils")),
}))
"""


@pytest.fixture(scope="module")
def rows(files):
    return pd.read_csv(files / "new.csv")


@pytest.fixture(scope="module")
def expected(trained, rows):
    """Predict in this process, with the parts that retraining uses."""
    model = trained.load(trained.uri)
    X = tabular.encode(rows, model.preprocessor)
    return model_utils.model_predict(model.network, X)


@pytest.fixture(scope="module")
def served(trained):
    trained.use()
    return mlflow.pyfunc.load_model(trained.uri)


@pytest.fixture(scope="module", autouse=True)
def processes(launch, trained, files, tmp_path_factory):
    """Start all processes at once; each test waits for the one it looks at."""
    data, folder = files / "new.csv", tmp_path_factory.mktemp("scored")
    store = {"MLFLOW_TRACKING_URI": trained.store}
    champion = "models:/loan-amount@champion"
    serve = f"-m mlflow models serve -m {champion} --env-manager local -h 127.0.0.1 -p {{port}}"
    predict = f"-m mlflow models predict -m {champion} --env-manager local -t csv -i {data}"
    return {
        "server": launch(*serve.split(), "--workers", "1", **store),
        "other": launch("-c", OTHER_PROGRAM, trained.uri, data, **store),
        "file": launch(*predict.split(), "-o", folder / "out.json", **store),
        "file_output": folder / "out.json",
    }


@pytest.fixture(scope="module")
def server(processes):
    return processes["server"].ready("/ping")


@pytest.fixture(scope="module")
def other(processes):
    assert processes["other"].wait() == 0, processes["other"].err
    return json.loads(processes["other"].out)


# --- in this process


def test_predictions_are_those_of_network_and_preprocessor_bit_for_bit(served, rows, expected):
    prediction = served.predict(rows)
    assert prediction.dtype == np.float64
    assert prediction.shape == (400,)
    np.testing.assert_array_equal(prediction, expected)


def test_row_alone_gets_the_bits_it_gets_among_others(served, rows, expected):
    for i in (0, 17, 399):
        np.testing.assert_array_equal(served.predict(rows.iloc[[i]]), expected[[i]])
    np.testing.assert_array_equal(served.predict(rows.iloc[100:107]), expected[100:107])


def test_row_gets_the_same_bits_at_every_place_of_a_long_table(served, rows, expected):
    n_rows = 8_193  # more than a block, and one more than products are often cut into
    everywhere = served.predict(rows.iloc[np.arange(n_rows) % 400])
    np.testing.assert_array_equal(everywhere, expected[np.arange(n_rows) % 400])


def test_order_of_columns_and_extra_ones_do_not_matter(served, trained, rows, expected):
    shuffled = rows[rows.columns[::-1]].assign(shoe_size=44, comment="none")
    np.testing.assert_array_equal(served.predict(shuffled), expected)
    features = [*trained.load(trained.uri).schema.features]
    assert set(rows) - set(features) == {"nom", "prenom", "montant_pret"}
    np.testing.assert_array_equal(served.predict(rows[features]), expected)


def test_missing_number_is_the_mean_and_missing_text_the_most_frequent(served, trained, rows):
    training = trained.load(trained.uri).memory.part("train")
    gaps = rows.head(5).astype({"age": float})
    filled = gaps.assign(age=training["age"].mean(), region=training["region"].mode()[0])
    for missing in (np.nan, None):
        found = served.predict(gaps.assign(age=missing, region=missing))
        np.testing.assert_array_equal(found, served.predict(filled))
    assert (served.predict(gaps) != served.predict(filled)).any()


def test_category_never_seen_is_scored_like_any_other_unknown_one(served, rows):
    one, other = (rows.assign(region=name) for name in ("Atlantis", "Lemuria"))
    np.testing.assert_array_equal(served.predict(one), served.predict(other))
    assert np.isfinite(served.predict(one)).all()
    assert (served.predict(one) != served.predict(rows)).any()


@pytest.mark.parametrize(
    "kind", ["float64", "float32", "Int64", "int32", "object", "string of digits", "json"]
)
def test_numbers_are_scored_alike_whatever_type_they_come_in(served, rows, expected, kind):
    numeric = ["age", "taille", "poids", "revenu_estime_mois"]
    if kind == "json":
        changed = pd.DataFrame(json.loads(rows.to_json(orient="records")), dtype=object)
    else:
        changed = rows.astype(dict.fromkeys(numeric, str if kind[:6] == "string" else kind))
    np.testing.assert_array_equal(served.predict(changed), expected)


def test_categorical_columns_are_scored_as_text(served, rows, expected):
    changed = rows.astype({"region": "category", "sexe": object})
    np.testing.assert_array_equal(served.predict(changed), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns="age"), "age"),
        (lambda rows: rows.assign(age="old"), "column 'age' of .* holds 'old' in line 2"),
        (lambda rows: rows.head(0), "at least one row"),
        (lambda rows: rows.assign(revenu_estime_mois=1e300), "far outside anything seen"),
        (lambda rows: rows.assign(age=np.inf), "far outside anything seen"),
    ],
    ids=["missing", "text", "empty", "huge", "infinite"],
)
def test_rows_that_cannot_be_scored_are_refused_with_the_reason(served, rows, change, words):
    with pytest.raises(MlflowException, match=words):
        served.predict(change(rows))


def test_two_versions_with_different_code_run_their_own_in_one_process(
    trained, tmp_path, monkeypatch, rows, expected
):
    code = tmp_path / "tabular.py"
    changed = "    return 1000 + predictions\n"
    original = Path(tabular.__file__).read_text("utf-8")
    code.write_text(original.replace("    return predictions\n", changed), "utf-8")
    assert changed in code.read_text("utf-8")
    monkeypatch.setattr(tabular, "__file__", str(code))
    model_store.save_model(str(tmp_path / "second"), trained.load(trained.uri))
    first = mlflow.pyfunc.load_model(str(trained.artifact(trained.uri)))
    second = mlflow.pyfunc.load_model(str(tmp_path / "second"))
    for _ in range(2):
        np.testing.assert_array_equal(first.predict(rows), expected)
        np.testing.assert_array_equal(second.predict(rows), expected + 1000)


def test_loading_runs_no_code_of_the_project_itself(trained, tmp_path, monkeypatch, rows, expected):
    folder = tmp_path / "elsewhere"
    shutil.copytree(trained.artifact(trained.uri), folder)
    for name in ("tabular", "model_store", "model_utils", "memory"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would fail now
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(str(folder)).predict(rows), expected)


# --- in other processes


def test_fresh_process_in_another_folder_gives_the_same_bits(other, expected):
    assert [float.fromhex(value) for value in other["served"]] == expected.tolist()
    assert not other["project_on_path"]


def test_keras_flavor_gives_the_network_with_its_optimizer_state(other, trained):
    network = trained.load(trained.uri).network
    assert other["iterations"] == 20 * 10  # epochs × batches
    assert len(other["slots"]) == len(network.optimizer.variables)
    assert all(other["slots"])
    assert other["tensorflow"] == network.count_params()


def test_sklearn_flavor_gives_the_preprocessor_the_network_was_trained_with(other, expected):
    np.testing.assert_allclose(other["parts"], expected, rtol=1e-4, atol=0.05)


def test_mlflow_models_predict_scores_a_csv_file(processes, expected):
    assert processes["file"].wait() == 0, processes["file"].err
    answer = json.loads(processes["file_output"].read_text("utf-8"))
    assert answer["predictions"] == expected.tolist()


def plain(rows):
    """Replace what JSON cannot say."""
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}
        for record in rows.to_dict(orient="records")
    ]


def bodies(rows):
    split = {"columns": list(rows.columns), "data": [list(r.values()) for r in plain(rows)]}
    return {
        "dataframe_split": (json.dumps({"dataframe_split": split}), "application/json"),
        "dataframe_records": (json.dumps({"dataframe_records": plain(rows)}), "application/json"),
        "csv": (rows.to_csv(index=False), "text/csv"),
    }


FORMS = ["dataframe_split", "dataframe_records", "csv"]


@pytest.mark.parametrize("form", FORMS)
def test_server_answers_with_the_predictions_of_this_process(server, rows, expected, form):
    status, answer = server.post("/invocations", *bodies(rows)[form])
    assert status == 200, answer
    assert json.loads(answer)["predictions"] == expected.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_server_fills_gaps_as_this_process_does(server, served, rows, form):
    gaps = rows.head(6).astype({"age": float})
    gaps.loc[gaps.index[:2], "age"] = np.nan
    gaps.loc[gaps.index[1:4], "region"] = np.nan
    status, answer = server.post("/invocations", *bodies(gaps)[form])
    assert status == 200, answer
    assert json.loads(answer)["predictions"] == served.predict(gaps).tolist()


def test_server_scores_the_example_that_lies_in_the_artifact(server, trained):
    example = trained.artifact(trained.uri) / "serving_input_example.json"
    status, answer = server.post("/invocations", example.read_text("utf-8"))
    assert status == 200, answer
    assert 500 <= json.loads(answer)["predictions"][0] <= 40_000


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns="age"), "age"),
        (lambda rows: rows.assign(age="old"), "expected a number"),
        (lambda rows: rows.head(0), "at least one row"),
    ],
    ids=["missing", "text", "empty"],
)
def test_server_refuses_wrong_rows_with_status_400_and_the_reason(
    server, rows, form, change, words
):
    status, answer = server.post("/invocations", *bodies(change(rows.head(4)))[form])
    assert status == 400, answer
    assert words in json.loads(answer)["message"]


@pytest.mark.parametrize("body", ["{", '{"rows": []}', "[]", ""])
def test_server_refuses_what_is_no_table_with_status_400(server, body):
    status, answer = server.post("/invocations", body)
    assert status == 400, answer
    assert json.loads(answer)["message"]
