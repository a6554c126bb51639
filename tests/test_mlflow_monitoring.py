"""Claims about mlflow_monitoring.py, on real runs: what a training leaves behind, and says."""

import errno
import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import joblib
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

import mlflow_monitoring
import mlflow_retrain
import model_utils
from toolkit import artifact, checkpoint, cli, roles, tracking
from toolkit.encoding import Preprocessor

ROOT = Path(__file__).resolve().parents[1]
CURVES = {"epoch/loss": 10, "epoch/val_mae": 10, "epoch/final_loss": 20}  # of 20 epochs


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


def arguments():
    """Name the arguments that say what a training is, not how it is started or shown."""
    not_logged = {"quiet", "json", "lang", "resume", "exit_code"}
    return set(vars(mlflow_monitoring.Settings())) - not_logged


# --- what the run holds


def test_run_is_finished_with_the_scores_of_the_model_on_its_held_out_rows(trained):
    model = trained.load(trained.uri)
    rows = roles.part(model.buffer, roles.HELD_OUT)
    y, prediction = rows["montant_pret"], trained.predict(trained.uri, rows)
    assert trained.run.info.status == "FINISHED"
    assert len(rows) == 80
    metrics = trained.run.data.metrics
    assert metrics["MAE"] == pytest.approx(mean_absolute_error(y, prediction), rel=1e-12)
    assert metrics["MSE"] == pytest.approx(mean_squared_error(y, prediction), rel=1e-12)
    assert metrics["R2"] == pytest.approx(r2_score(y, prediction), rel=1e-12)
    assert metrics["R2"] > 0.5
    known = roles.part(model.buffer, roles.TRAIN)["montant_pret"]
    for name, constant in (("mean", known.mean()), ("median", known.median())):
        assert metrics[f"MAE_{name}"] == pytest.approx(np.abs(y - constant).mean(), rel=1e-12)


@pytest.mark.parametrize("key", CURVES)
def test_curve_has_one_finite_point_per_epoch_and_falls(trained, key):
    steps, values = zip(*points(trained, trained.run, key), strict=True)
    assert steps == tuple(range(1, CURVES[key] + 1))
    assert np.isfinite(values).all()
    assert values[-1] < values[0]


def test_every_argument_is_a_parameter_of_the_run(trained, files):
    params = trained.run.data.params
    assert arguments() <= set(params)
    assert params["data"] == str(files / "old.csv")
    assert (params["epochs"], params["seed"], params["target"]) == ("20", "42", "montant_pret")
    assert (params["rows_training"], params["rows_held-out"]) == ("320", "80")


def test_chosen_recipe_is_among_the_parameters(trained):
    params = trained.run.data.params
    chosen = trained.load(trained.uri).card["recipe"]
    assert {f"recipe/{key}": str(value) for key, value in chosen.items()}.items() <= params.items()
    assert float(params["recipe/weight_decay"]) > 0


def test_both_datasets_are_inputs_with_the_hash_of_their_content(trained):
    inputs = {
        next(tag.value for tag in one.tags if tag.key == "mlflow.data.context"): one
        for one in trained.run.inputs.dataset_inputs
    }
    assert set(inputs) == {"training", "held-out"}
    sizes = {k: json.loads(one.dataset.profile)["num_rows"] for k, one in inputs.items()}
    assert sizes == {"training": 320, "held-out": 80}
    model = trained.load(trained.uri)
    for context, role in (("training", roles.TRAIN), ("held-out", roles.HELD_OUT)):
        rows = roles.own_columns(roles.part(model.buffer, role))
        expected = tracking.content_hash(rows)
        tags = {tag.key: tag.value for tag in inputs[context].tags}
        assert tags["sha256"] == expected
        assert expected.startswith(inputs[context].dataset.digest)


def test_figures_are_svg_files_of_the_run(trained):
    folder = trained.artifact(trained.uri).parents[2] / trained.run.info.run_id / "artifacts"
    found = {path.stem: path.read_text("utf-8") for path in (folder / "figures").iterdir()}
    assert set(found) == {"learning_curve", "predicted_against_actual", "error_per_group"}
    for content in found.values():
        assert ElementTree.fromstring(content).tag.endswith("}svg")
        assert len(content) > 5_000


def test_arguments_are_logged_before_training_and_a_failed_one_registers_nothing(
    fresh_place, files, monkeypatch
):
    def fail(*args, **options):
        raise RuntimeError("planted")

    monkeypatch.setattr(model_utils, "train_members", fail)
    with pytest.raises(RuntimeError, match="planted"):
        fresh_place.train("--data", files / "old.csv", "--epochs", 7)
    run = fresh_place.run
    assert run.info.status == "FAILED"
    assert run.data.params["epochs"] == "7"
    assert arguments() <= set(run.data.params)
    assert len(run.inputs.dataset_inputs) == 2
    assert fresh_place.client.search_registered_models() == []
    assert not (fresh_place.folder / "models" / "preprocessor.pkl").exists()


def test_features_that_never_vary_are_one_line_and_a_failed_run(fresh_place):
    rows = pd.DataFrame({"id": range(60), "flag": 0, "y": np.random.default_rng(0).normal(size=60)})
    rows.to_csv(fresh_place.folder / "flat.csv", index=False)
    assert fresh_place.train("--data", "flat.csv", "--target", "y") == 2
    assert fresh_place.err.startswith("error: no feature varies in the training rows (flag); expec")
    assert fresh_place.err.count("\n") == 1
    assert fresh_place.run.info.status == "FAILED"
    assert fresh_place.client.search_registered_models() == []


# --- what lies beside the run


def test_preprocessor_file_is_the_models_own(trained, files):
    rows = pd.read_csv(files / "old.csv")
    fitted = joblib.load(trained.folder / "models" / "preprocessor.pkl")
    expected = trained.load(trained.uri).preprocessor.encode(rows)
    np.testing.assert_array_equal(Preprocessor.from_dict(fitted).encode(rows), expected)


def test_statistics_are_those_of_the_training_rows_alone(trained):
    model = trained.load(trained.uri)
    y = model.buffer.groupby(roles.ROLE)["montant_pret"]
    scale = model_utils.TargetScale(**model.card["scale"])
    assert scale.mean == pytest.approx(y.mean()[roles.TRAIN], rel=1e-12)
    assert scale.mean != pytest.approx(model.buffer["montant_pret"].mean(), rel=1e-6)
    train_rows = roles.part(model.buffer, roles.TRAIN)
    schema, folds = model.preprocessor.schema, roles.folds(train_rows)
    again = Preprocessor.fit(train_rows, schema, train_rows["montant_pret"].to_numpy(), folds)
    assert again == model.preprocessor


def test_first_model_is_version_1_and_champion(trained, files):
    (version,) = trained.client.search_model_versions("name='loan-amount'")
    assert (str(version.version), version.source) == ("1", trained.uri)
    assert version.run_id == trained.run.info.run_id
    assert trained.champion() == "1"
    assert trained.champion("previous") is None
    rows = pd.read_csv(files / "new.csv").head(20)
    beside = trained.predict(str(trained.folder / "models" / "mlflow_model"), rows)
    np.testing.assert_array_equal(beside, trained.predict(trained.uri, rows))


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
    settings = cli.parse(mlflow_retrain.Settings, flags, "mlflow_retrain.py", "")
    assert settings.model_uri == trained.uri
    assert settings.tracking_uri == trained.store
    assert settings.experiment == trained.experiment
    assert settings.data == "NEW_ROWS.csv"  # its rows were not the sample's
    user = type(trained)(trained.folder)  # who finds the model, and would read the file
    assert user.retrain(*flags, "--data", "none.csv") == 2
    assert "none.csv" in user.err


def test_first_run_in_an_empty_folder_keeps_quiet_and_all_its_files_there(again):
    assert again.wait() == 0
    assert again.out == ""
    assert again.err == ""
    names = {path.name for path in again.folder.iterdir() if path not in again.files}
    assert names == {"mlflow.db", "mlruns", "models"}
    assert {path.name for path in (again.folder / "models").iterdir()} == {
        "mlflow_model",
        "preprocessor.pkl",
    }


def test_run_names_the_commit_of_the_code(again, trained):
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    if not head:
        pytest.skip("the tests do not run in a git checkout")
    assert again.wait() == 0
    tags = type(trained)(again.folder).run.data.tags
    assert tags["mlflow.source.git.commit"].startswith(head)
    assert Path(tags["mlflow.source.name"]) == ROOT / "mlflow_monitoring.py"


# --- seeds


def test_same_seed_gives_the_same_bits_in_another_process(again, trained, files):
    assert again.wait() == 0
    other = type(trained)(again.folder)
    version = other.client.get_model_version_by_alias("loan-amount", "champion")
    assert other.run.data.metrics == trained.run.data.metrics
    for key in CURVES:
        assert points(other, other.run, key) == points(trained, trained.run, key)
    rows = pd.read_csv(files / "new.csv")
    np.testing.assert_array_equal(
        other.predict(version.source, rows), trained.predict(trained.uri, rows)
    )


@pytest.mark.usefixtures("no_training")
def test_another_seed_gives_other_weights_and_roles_and_the_champion_stays(workshop, files):
    flags = ["--data", files / "old.csv", "--seed", 43, "--json"]
    assert workshop.train(*flags) == 0, workshop.err
    told = json.loads(workshop.out)
    assert told["version"] == "2"
    assert told["verdict"].startswith("kept champion, another version is champion; MAE ")
    assert told["metrics"].items() <= workshop.run.data.metrics.items()
    one, other = (workshop.load(f"models:/loan-amount/{number}") for number in (1, 2))
    assert one.network.get_weights()[0].shape == other.network.get_weights()[0].shape
    assert (one.network.get_weights()[2] != other.network.get_weights()[2]).any()
    held_out = [set(roles.part(model.buffer, roles.HELD_OUT)[roles.HASH]) for model in (one, other)]
    assert len(held_out[0]) == len(held_out[1]) == 80
    assert held_out[0] != held_out[1]
    assert workshop.champion() == "1"


# --- interrupted


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("training", "last"), [("search", 5), ("training", 11)])
def test_interrupted_training_goes_on_in_its_run_to_the_same_bits(
    fresh_place, trained, files, monkeypatch, training, last
):
    flags = ["--data", files / "old.csv", "--epochs", 20]
    monkeypatch.setattr(checkpoint, "SECONDS", -1)  # after every epoch
    watched = checkpoint._Watch.on_epoch_end

    def interrupt(self, epoch, logs=None):
        watched(self, epoch, logs)
        if (self.name, epoch) == (training, last):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint._Watch, "on_epoch_end", interrupt)
        assert fresh_place.train(*flags) == 130
    assert fresh_place.err.startswith("interrupted: ")
    assert fresh_place.run.info.status == "KILLED"
    first, begun = fresh_place.run.info.run_id, len(fresh_place.fits)
    assert begun == (1 if training == "search" else 2)
    epochs = []

    def count(self, epoch, logs=None):
        watched(self, epoch, logs)
        epochs.append((self.name, epoch))

    monkeypatch.setattr(checkpoint._Watch, "on_epoch_end", count)
    assert fresh_place.train(*flags, "--resume") == 0, fresh_place.err
    assert epochs[:10] == [("search", epoch) for epoch in range(10)]  # short, so not saved
    assert epochs[10:] == [("training", e) for e in range(0 if training == "search" else 12, 20)]
    run = fresh_place.run
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    assert len(fresh_place.runs()) == 1
    assert run.data.metrics["MAE"] == trained.run.data.metrics["MAE"]
    ends = [points(place, place.run, "epoch/final_loss")[-1][1] for place in (fresh_place, trained)]
    assert ends[0] == ends[1]
    rows = pd.read_csv(files / "new.csv")
    again = fresh_place.predict("models:/loan-amount@champion", rows)
    np.testing.assert_array_equal(again, trained.predict(trained.uri, rows))
    assert not list((fresh_place.folder / "models").glob("checkpoint*"))


@pytest.mark.usefixtures("no_figures")
def test_model_that_cannot_be_logged_is_kept_and_logged_later_by_the_command_that_is_named(
    fresh_place, trained, files, monkeypatch
):
    def fail(*args, **options):
        raise MlflowException("the store is full")

    flags = ["--data", files / "old.csv", "--epochs", 20]
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "log_model", fail)
        assert fresh_place.train(*flags) == 2
    assert fresh_place.err.count("\n") == 1
    assert "the store is full" in fresh_place.err
    assert fresh_place.err.rstrip().endswith(" --resume")
    kept = fresh_place.folder / "models" / "mlflow_model"
    rows = pd.read_csv(files / "new.csv")
    expected = trained.predict(trained.uri, rows)
    np.testing.assert_array_equal(fresh_place.predict(str(kept), rows), expected)
    assert fresh_place.run.info.status == "FAILED"
    assert fresh_place.train(*flags, "--resume") == 0, fresh_place.err
    assert len(fresh_place.runs("FINISHED")) == len(fresh_place.runs()) == 1
    logged = fresh_place.predict("models:/loan-amount@champion", rows)
    np.testing.assert_array_equal(logged, expected)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("script", ["train", "retrain"])
def test_full_disk_while_the_model_is_kept_leaves_the_checkpoint_to_log_from(
    fresh_place, workshop, files, monkeypatch, script
):
    place = fresh_place if script == "train" else workshop
    flags = ["--data", files / "new.csv"]
    flags += ["--no-controls"] if script == "retrain" else []

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "save_folder", full)
        assert getattr(place, script)(*flags) == 2
    assert place.err.count("\n") == 1
    assert "the training is done but could not be logged" in place.err
    assert "(No space left on device)" in place.err
    assert "--resume" in place.err
    run_id = place.run.info.run_id
    assert place.run.info.status == "FAILED"
    assert getattr(place, script)(*flags, "--resume") == 0, place.err
    assert (place.run.info.run_id, place.run.info.status) == (run_id, "FINISHED")


@pytest.mark.filterwarnings("error::RuntimeWarning")  # it would stand beside the one line
def test_training_that_diverges_is_one_line_and_exit_code_2(fresh_place, files):
    flags = ["--learning-rate", "1e20", "--epochs", 2]
    assert fresh_place.train("--data", files / "old.csv", *flags) == 2
    assert fresh_place.err.count("\n") == 1
    assert "1e+20" in fresh_place.err
    assert fresh_place.run.info.status == "FAILED"
    assert fresh_place.client.search_registered_models() == []


# --- own data


@pytest.mark.usefixtures("no_training")
def test_columns_of_a_table_of_ones_own_are_told_apart_and_a_user_has_the_last_word(fresh_place):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "id": np.arange(200),
            "size": rng.normal(size=200),
            "code": rng.choice([7, 13, 75], 200),
            "sold": rng.random(200) < 0.5,
            "town": rng.choice(["Lyon", "Nice", "Lens"], 200),
            "email": [f"p{i}@example.org" for i in range(200)],
            "when": pd.date_range("2024-01-01", periods=200),
            "noise": rng.normal(size=200),
        }
    )
    rows["price"] = 10 * rows["size"] + 5 * rows["sold"] + rng.normal(size=200)
    rows.to_parquet(fresh_place.folder / "own.parquet")
    flags = ["--target", "price", "--drop", "noise", "--categorical", "code", "--unit", "$"]
    flags += ["--model-name", "own"]
    assert fresh_place.train("--data", "own.parquet", *flags) == 0, fresh_place.err
    model = fresh_place.load("models:/own@champion")
    assert model.preprocessor.schema.kinds == {
        "size": "numeric",
        "code": "categorical",
        "sold": "categorical",
        "town": "categorical",
        "when": "date",
    }
    assert "note: column 'id' is left out" in fresh_place.out
    assert "note: column 'email' is left out" in fresh_place.out
    assert " $" in fresh_place.out
    raw = fresh_place.predict("models:/own/1", rows)
    needed = rows[["town", "sold", "when", "size", "code"]]
    needed.to_csv(fresh_place.folder / "needed.csv")
    text = pd.read_csv(fresh_place.folder / "needed.csv", index_col=0, dtype=str)
    np.testing.assert_array_equal(fresh_place.predict("models:/own/1", text), raw)
    kept = [*flags, "--keep", "id"]
    assert fresh_place.train("--data", "own.parquet", *kept) == 0, fresh_place.err
    assert "id" in fresh_place.load("models:/own/2").preprocessor.schema.features


@pytest.mark.usefixtures("no_training")
def test_refit_keeps_the_scale_of_the_network_that_is_kept(fresh_place, files):
    rows = pd.read_csv(files / "old.csv")
    rows.loc[rows.index[::40], "montant_pret"] += 40_000
    rows.to_csv(fresh_place.folder / "rows.csv", index=False)
    assert fresh_place.train("--data", "rows.csv", "--refit") == 0, fresh_place.err
    assert "it was trained once more, on its held-out rows as well" in fresh_place.out
    model = fresh_place.load("models:/loan-amount/1")
    kept = model_utils.target_scale(rows["montant_pret"])
    assert model.card["scale"] == pytest.approx(vars(kept))
    layer = model.network.get_layer("target_units")
    assert layer.offset == pytest.approx(kept.low)
    about = fresh_place.client.get_model_version("loan-amount", "1").description
    assert "trained once more, on the held" in about


@pytest.mark.usefixtures("no_training")
def test_model_that_a_constant_beats_says_so(fresh_place):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"x": rng.normal(size=400), "y": rng.choice([0, 0, 0, 50.0], 400)})
    rows.to_csv(fresh_place.folder / "rows.csv", index=False)
    assert fresh_place.train("--data", "rows.csv", "--target", "y") == 0, fresh_place.err
    assert "(no better than predicting the median: MAE" in fresh_place.out


@pytest.mark.parametrize("flag", ["--group", "--time"])
def test_target_has_no_second_part_to_play(fresh_place, files, flag):
    assert fresh_place.train("--data", files / "old.csv", flag, "montant_pret") == 2
    assert f"{flag} 'montant_pret' is the target" in fresh_place.err


@pytest.mark.usefixtures("no_training")
def test_groups_beside_time_are_said_not_to_decide_what_is_held_out(fresh_place, files):
    flags = ["--group", "sexe", "--time", "age"]
    assert fresh_place.train("--data", files / "old.csv", *flags) == 0, fresh_place.err
    assert "the latest rows are held out, whatever their 'sexe'" in fresh_place.out
