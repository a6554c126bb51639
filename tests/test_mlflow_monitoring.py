"""Claims about mlflow_monitoring.py, on real runs: what a training leaves behind, and says."""

import errno
import hashlib
import io
import json
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from sklearn.datasets import load_diabetes
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

import mlflow_monitoring
import mlflow_retrain
import model_store
import model_utils
import tabular

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def again(launch, files, tmp_path_factory):
    """Train as `trained` did, but as a user does: another process, an empty folder, `--quiet`.

    It starts with the first test, so that it is done when its results are looked at.
    """
    folder = tmp_path_factory.mktemp("again")
    flags = ["--data", files / "old.csv", "--epochs", 20, "--quiet"]
    process = launch(ROOT / "mlflow_monitoring.py", *flags, folder=folder)
    process.folder = folder
    return process


def points(place, run, key):
    return [(m.step, m.value) for m in place.client.get_metric_history(run.info.run_id, key)]


# --- what the run holds


def test_run_is_finished_with_the_scores_of_the_model_on_its_held_out_rows(trained):
    model = trained.load(trained.uri)
    rows = model.memory.part("held_out")
    y, prediction = rows["montant_pret"], trained.predict(trained.uri, rows)
    assert trained.run.info.status == "FINISHED"
    assert len(rows) == 80
    metrics = trained.run.data.metrics
    assert metrics["MAE"] == pytest.approx(mean_absolute_error(y, prediction), rel=1e-12)
    assert metrics["MSE"] == pytest.approx(mean_squared_error(y, prediction), rel=1e-12)
    assert metrics["R2"] == pytest.approx(r2_score(y, prediction), rel=1e-12)
    assert metrics["R2"] > 0.5


@pytest.mark.parametrize("key", ["epoch/loss", "epoch/val_loss"])
def test_curve_has_one_finite_point_per_epoch(trained, key):
    steps, values = zip(*points(trained, trained.run, key), strict=True)
    assert steps == tuple(range(1, 21))
    assert np.isfinite(values).all()
    assert values[-1] < values[0]


def arguments():
    """Name the arguments that say what a training is, not how it is started or shown."""
    return set(vars(mlflow_monitoring.parse_args([]))) - {"quiet", "json", "resume"}


def test_every_argument_is_a_parameter_of_the_run(trained, files):
    params = trained.run.data.params
    assert arguments() <= set(params)
    assert params["data"] == str(files / "old.csv")
    assert (params["epochs"], params["batch_size"], params["seed"]) == ("20", "32", "42")
    assert params["target"] == "montant_pret"


def test_both_datasets_are_inputs_with_the_hash_of_their_content(trained, files):
    inputs = {
        next(tag.value for tag in one.tags if tag.key == "mlflow.data.context"): one
        for one in trained.run.inputs.dataset_inputs
    }
    assert set(inputs) == {"training", "held-out"}
    sizes = {k: json.loads(one.dataset.profile)["num_rows"] for k, one in inputs.items()}
    assert sizes == {"training": 320, "held-out": 80}
    model = trained.load(trained.uri)
    for context, role in (("training", "train"), ("held-out", "held_out")):
        rows = model.memory.part(role)
        hashes = tabular.row_hashes(rows[[*model.schema.features]], rows["montant_pret"])
        expected = hashlib.sha256(hashes.tobytes()).hexdigest()
        tags = {tag.key: tag.value for tag in inputs[context].tags}
        assert tags["sha256"] == expected
        assert expected.startswith(inputs[context].dataset.digest)


def test_figures_are_png_files_of_the_run(trained):
    folder = trained.artifact(trained.uri).parents[2] / trained.run.info.run_id / "artifacts"
    found = {path.stem: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert set(found) == {"learning_curve", "predicted_against_actual", "error_per_group"}
    for content in found.values():
        assert content.startswith(b"\x89PNG\r\n")
        assert len(content) > 5_000


def test_run_names_the_commit_of_the_code(trained):
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    if not head:
        pytest.skip("the tests do not run in a git checkout")
    assert trained.run.data.tags["mlflow.source.git.commit"].startswith(head)


def test_arguments_are_logged_before_training_and_a_failed_one_registers_nothing(
    fresh_place, files, monkeypatch
):
    def fail(*args, **options):
        raise RuntimeError("planted")

    monkeypatch.setattr(model_utils, "fit_network", fail)
    with pytest.raises(RuntimeError, match="planted"):
        fresh_place.train("--data", files / "old.csv", "--epochs", 7)
    run = fresh_place.run
    assert run.info.status == "FAILED"
    assert run.data.params["epochs"] == "7"
    assert arguments() <= set(run.data.params)
    assert len(run.inputs.dataset_inputs) == 2
    assert fresh_place.client.search_registered_models() == []
    assert not (fresh_place.folder / "models" / "preprocessor.pkl").exists()


# --- what lies beside the run


def test_preprocessor_file_is_the_models_own_and_has_its_hash_beside_it(trained, files):
    path = trained.folder / "models" / "preprocessor.pkl"
    model, rows = trained.load(trained.uri), pd.read_csv(files / "old.csv")
    fitted = joblib.load(path)
    np.testing.assert_array_equal(
        tabular.encode(rows, fitted), tabular.encode(rows, model.preprocessor)
    )
    record = path.with_suffix(".pkl.sha256").read_text().strip()
    assert record == hashlib.sha256(path.read_bytes()).hexdigest()


def test_statistics_are_those_of_the_training_rows_alone(trained, files):
    model = trained.load(trained.uri)
    training = model.memory.part("train")
    scaler = model.preprocessor.named_transformers_["numeric"].named_steps["scale"]
    numeric = training[[*model.schema.numeric]].to_numpy()
    np.testing.assert_allclose(scaler.mean_, numeric.mean(axis=0), rtol=1e-12)
    assert model.scale.mean == pytest.approx(training["montant_pret"].mean(), rel=1e-12)
    everything = pd.read_csv(files / "old.csv")[[*model.schema.numeric]].to_numpy()
    assert not np.allclose(scaler.mean_, everything.mean(axis=0), rtol=1e-6)


def test_first_model_is_version_1_and_champion(trained):
    (version,) = trained.client.search_model_versions("name='loan-amount'")
    assert (str(version.version), version.source) == ("1", trained.uri)
    assert version.run_id == trained.run.info.run_id
    assert trained.champion() == "1"
    assert trained.champion("previous") is None


def test_names_of_people_are_nowhere_in_store_artifacts_or_models(trained, retrained, files):
    people = pd.concat([pd.read_csv(files / f"{name}.csv") for name in ("old", "new")])
    names = {*people["nom"], *people["prenom"]}
    places = {
        name: b"\n".join(content for folder in folders for content in contents(folder))
        for name, folders in {
            "trained": [trained.folder],
            "retrained": [retrained.folder],
        }.items()
    }
    for text in places.values():
        assert b"Occitanie" in text  # the search does see what is inside of the files
        for name in names:
            for spelling in {name.encode(), json.dumps(name)[1:-1].encode()}:
                assert spelling not in text


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


# --- what it prints


def test_output_ends_with_commands_that_work_as_they_stand(trained, files):
    lines = trained.out.splitlines()
    start = lines.index("Next:")
    table = "\n".join(lines[:start])
    assert all(word in table for word in ("MAE", "RMSE", "R²", "mean predictor", trained.uri))
    retrain, ui, address = (line.strip() for line in lines[start + 1 :])
    mlflow, *rest = shlex.split(ui)
    assert rest == ["ui", "--backend-store-uri", trained.store]
    assert f"/#/experiments/{trained.run.info.experiment_id}/" in address
    python, script, *flags = shlex.split(retrain)
    assert (trained.folder / script).resolve() == ROOT / "mlflow_retrain.py"
    for program, name in ((python, "python"), (mlflow, "mlflow")):
        assert Path(shutil.which(program)) == Path(sys.executable).with_name(name)
    assert mlflow_retrain.parse_args(flags).model_uri == trained.uri
    assert mlflow_retrain.parse_args(flags).tracking_uri == trained.store
    assert mlflow_retrain.parse_args(flags).experiment == trained.experiment
    assert mlflow_retrain.parse_args(flags).data == "NEW_ROWS.csv"  # its rows were not the sample's
    user = type(trained)(trained.folder)
    assert user.retrain(*flags, "--data", files / "new.csv", "--dry-run") == 0
    assert trained.uri in user.out


def test_first_run_in_an_empty_folder_keeps_quiet_and_all_its_files_there(again):
    assert again.wait() == 0
    assert again.out == ""
    assert again.err == ""
    names = {path.name for path in again.folder.iterdir() if path not in again.files}
    assert names == {"mlflow.db", "mlruns", "models"}
    assert {path.name for path in (again.folder / "models").iterdir()} == {
        "preprocessor.pkl",
        "preprocessor.pkl.sha256",
    }


# --- seeds


def test_same_seed_gives_the_same_bits_in_another_process(again, trained, files):
    assert again.wait() == 0
    other = type(trained)(again.folder)
    version = other.client.get_model_version_by_alias("loan-amount", "champion")
    assert other.run.data.metrics == trained.run.data.metrics
    for key in ("epoch/loss", "epoch/val_loss", "epoch/final_loss"):
        assert points(other, other.run, key) == points(trained, trained.run, key)
    rows = pd.read_csv(files / "new.csv")
    np.testing.assert_array_equal(
        other.predict(version.source, rows), trained.predict(trained.uri, rows)
    )


@pytest.mark.usefixtures("no_figures")
def test_another_seed_gives_another_model_and_the_champion_stays(trained, workshop, files):
    flags = ["--data", files / "old.csv", "--epochs", 20, "--quiet"]
    assert workshop.train(*flags, "--seed", 43) == 0
    assert workshop.run.data.metrics["MAE"] != trained.run.data.metrics["MAE"]
    rows = pd.read_csv(files / "new.csv")
    version = workshop.client.get_model_version("loan-amount", "2")
    changed = workshop.predict(version.source, rows) != trained.predict(trained.uri, rows)
    assert changed.mean() > 0.5  # some rows are at a bound with either seed
    assert workshop.champion() == "1"
    assert workshop.out == ""


# --- interrupted


@pytest.mark.usefixtures("no_figures")
def test_interrupted_training_goes_on_in_its_run_to_the_same_bits(
    fresh_place, trained, files, monkeypatch
):
    flags = ["--data", files / "old.csv", "--epochs", 20, "--checkpoint-seconds", "1e-9"]
    epochs = []

    def interrupt(*args):
        epochs.append(1)
        if len(epochs) == 50:  # in the third of several trainings
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(model_utils.CosineLearningRate, "on_epoch_end", interrupt)
        assert fresh_place.train(*flags) == 130
    assert fresh_place.run.info.status == "KILLED"
    first, begun = fresh_place.run.info.run_id, len(fresh_place.fits)
    assert fresh_place.train(*flags, "--resume") == 0, fresh_place.err
    assert begun == 3
    assert len(fresh_place.fits) == len(trained.fits) - begun + 1
    run = fresh_place.run
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    assert len(fresh_place.runs()) == 1
    assert run.data.metrics == trained.run.data.metrics
    for key in ("epoch/loss", "epoch/val_loss", "epoch/final_loss"):
        assert points(fresh_place, run, key) == points(trained, trained.run, key)
    assert not list((fresh_place.folder / "models").glob("checkpoint*"))


@pytest.mark.usefixtures("no_figures")
def test_model_that_cannot_be_logged_is_kept_and_logged_later_without_training(
    fresh_place, trained, files, monkeypatch
):
    def fail(*args, **options):
        raise MlflowException("the store is full")

    flags = ["--data", files / "old.csv", "--epochs", 20]
    with monkeypatch.context() as patch:
        patch.setattr(model_store, "log_model", fail)
        assert fresh_place.train(*flags) == 2
    assert fresh_place.err.count("\n") == 1
    assert "the store is full" in fresh_place.err
    kept = fresh_place.folder / "models" / "mlflow_model"
    rows = pd.read_csv(files / "new.csv")
    expected = trained.predict(trained.uri, rows)
    np.testing.assert_array_equal(fresh_place.predict(str(kept), rows), expected)
    assert fresh_place.run.info.status == "FAILED"
    assert fresh_place.train(*flags, "--resume") == 0, fresh_place.err
    assert fresh_place.fits == []
    assert len(fresh_place.runs("FINISHED")) == len(fresh_place.runs()) == 1
    logged = fresh_place.predict("models:/loan-amount@champion", rows)
    np.testing.assert_array_equal(logged, expected)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("script", ["train", "retrain"])
def test_full_disk_while_the_model_is_kept_leaves_the_checkpoint_to_log_from(
    fresh_place, workshop, trained, files, monkeypatch, script
):
    place = fresh_place if script == "train" else workshop
    flags = ["--data", files / "new.csv", "--epochs", 5]
    flags += ["--model-uri", trained.uri, "--no-controls"] if script == "retrain" else []

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model_store, "log_model", full)
        patch.setattr(model_store, "save_folder", full)
        assert getattr(place, script)(*flags) == 2
    assert place.err.count("\n") == 1
    assert "the training is done but could not be logged" in place.err
    assert "could not be saved either ([Errno 28] No space left on device)" in place.err
    assert "--resume" in place.err
    assert place.run.info.status == "FAILED"
    assert getattr(place, script)(*flags, "--resume") == 0, place.err
    assert place.fits == []
    assert place.run.info.status == "FINISHED"


# --- own data


@pytest.mark.usefixtures("no_figures")
def test_diabetes_study_is_trained_on_and_retrained_on_a_shifted_half(fresh_place):
    study = load_diabetes(as_frame=True, scaled=False).frame.sort_values("age")
    halves = {"younger": study.iloc[:221], "older": study.iloc[221:]}
    for name, rows in halves.items():
        rows.sample(frac=1, random_state=0).to_csv(fresh_place.folder / f"{name}.csv", index=False)
    # 30 epochs over 176 rows are few updates: a higher rate makes up for it.
    flags = ["--model-name", "diabetes", "--learning-rate", 0.01, "--epochs", 30]
    assert fresh_place.train("--data", "younger.csv", "--target", "target", *flags) == 0
    first = fresh_place.run
    assert first.data.metrics["MAE"] < 0.9 * first.data.metrics["MAE_mean"]
    assert fresh_place.retrain("--data", "older.csv", "--no-controls", *flags) == 0
    second = fresh_place.run.data
    assert second.tags["parent_run_id"] == first.info.run_id
    assert second.metrics["new/MAE_retrained"] < 0.9 * second.metrics["new/MAE_mean"]
    rows = halves["older"].drop(columns="target")
    uri = "models:/diabetes/2"
    assert r2_score(halves["older"]["target"], fresh_place.predict(uri, rows)) > 0.3


@pytest.mark.usefixtures("no_figures")
def test_parquet_columns_are_told_apart_and_dropped_ones_are_not_needed_to_predict(fresh_place):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "id": np.arange(200),
            "size": rng.normal(size=200),
            "sold": rng.random(200) < 0.5,
            "town": rng.choice(["Lyon", "Nice", "Lens"], 200),
            "comment": [f"remark {i}" for i in range(200)],
            "when": pd.date_range("2024-01-01", periods=200),
        }
    )
    rows["price"] = 10 * rows["size"] + 5 * rows["sold"] + rng.normal(size=200)
    rows.to_parquet(fresh_place.folder / "own.parquet")
    flags = ["--target", "price", "--drop", "id", "--epochs", 3, "--model-name", "own"]
    assert fresh_place.train("--data", "own.parquet", *flags) == 0
    model = fresh_place.load("models:/own@champion")
    assert model.schema.numeric == ("size",)
    assert model.schema.categorical == ("sold", "town")
    assert set(model.schema.dropped) == {"id", "comment", "when"}
    assert "'comment' is left out: 160 different texts in 160 rows" in fresh_place.out
    assert "'when' is left out: dates" in fresh_place.out
    assert set(model.memory.rows) >= {"size", "sold", "town", "price"}
    assert not set(model.memory.rows) & {"id", "comment", "when"}
    raw = fresh_place.predict("models:/own/1", rows)
    needed = pd.read_csv(io.StringIO(rows[["town", "sold", "size"]].to_csv()))
    np.testing.assert_array_equal(fresh_place.predict("models:/own/1", needed), raw)


# --- wrong things


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "missing.csv"], "no file at missing.csv"),
        (["--target", "amount"], "has no column 'amount'"),
        (["--target", "region"], "'region'"),
        (["--drop", "unknown"], "--drop 'unknown' is no feature column"),
        (["--data", "short.csv"], "has 5 rows; expected at least 20"),
        (["--data", "."], "holds no .csv or .parquet file"),
        (["--test-size", "0.001"], "1 to score"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2_and_leaves_no_run(
    fresh_place, files, flags, words
):
    folder = fresh_place.folder / "work"
    folder.mkdir()
    place = type(fresh_place)(folder, fresh_place.store)
    rows = pd.read_csv(files / "old.csv")
    if "short.csv" in flags:
        rows.head(5).to_csv(folder / "short.csv", index=False)
    assert place.train("--data", files / "old.csv", *flags) == 2
    assert words in place.err
    assert place.err.startswith("error: ")
    assert place.err.count("\n") == 1
    assert place.runs() == []


def test_training_that_diverges_is_one_line_and_exit_code_2(fresh_place, files):
    flags = ["--learning-rate", "1e20", "--epochs", 2]
    assert fresh_place.train("--data", files / "old.csv", *flags) == 2
    assert fresh_place.err.count("\n") == 1
    assert "1e+20" in fresh_place.err
    assert fresh_place.run.info.status == "FAILED"
    assert fresh_place.client.search_registered_models() == []
