"""Claims about mlflow_score.py: what a file of predictions holds, and that it is whole."""

import contextlib

import numpy as np
import pandas as pd
import pytest

import mlflow_score
import streaming
import tabular


@pytest.fixture
def score(trained, tmp_path, monkeypatch):
    """Give the function that runs the script in an empty folder on the store of `trained`."""

    def run(*flags):
        monkeypatch.setattr(streaming, "CHUNK", 64)
        store = ["--tracking-uri", trained.store, "--experiment", trained.experiment]
        with contextlib.chdir(tmp_path):
            return mlflow_score.main([str(flag) for flag in (*flags, *store)])

    return run


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_those_of_the_served_model_in_the_order_of_the_rows(
    score, trained, files, tmp_path, suffix
):
    rows = pd.read_csv(files / "new.csv")
    rows.loc[::7, ["age", "region"]] = np.nan  # and the target may be absent
    rows = rows.drop(columns="montant_pret").astype({"age": float})
    data, output = tmp_path / f"rows.{suffix}", tmp_path / f"out.{suffix}"
    rows.to_csv(data, index=False) if suffix == "csv" else rows.to_parquet(data)
    assert score("--data", data, "--output", output) == 0
    found = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
    assert list(found) == ["prediction"]
    expected = trained.predict(trained.uri, tabular.read_rows(data)[0])
    np.testing.assert_array_equal(found["prediction"], expected)
    assert {file.name for file in tmp_path.iterdir()} == {data.name, output.name, "models"}
    assert list((tmp_path / "models").iterdir()) == []


def test_error_in_a_late_chunk_leaves_the_old_predictions_as_they_were(
    score, files, tmp_path, capsys
):
    (tmp_path / "predictions.csv").write_text("old")
    rows = pd.read_csv(files / "new.csv").astype({"taille": object})
    rows.loc[300, "taille"] = "grand"
    rows.to_csv(tmp_path / "bad.csv", index=False)
    assert score("--data", tmp_path / "bad.csv") == 2
    assert capsys.readouterr().err.startswith("error: column 'taille' of ")
    assert (tmp_path / "predictions.csv").read_text() == "old"
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output", "out.txt"], "'out.txt' was passed; expected a file ending in .csv or .par"),
        (["--output", "none/out.csv"], "in an existing folder"),
        (["--data", "none.csv"], "no file at none.csv"),
        (["--model-uri", "models:/none/1"], "no model at models:/none/1"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(score, files, flags, words, capsys):
    flags = flags if "--data" in flags else [*flags, "--data", files / "new.csv"]
    with contextlib.suppress(SystemExit):
        assert score(*flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
