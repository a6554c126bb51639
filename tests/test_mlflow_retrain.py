"""Claims about mlflow_retrain.py, on real runs: evidence, verdicts, rows that come back, URIs."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import not_trained
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from test_artifact import NONE, assert_same

import mlflow_retrain
import model_utils
from toolkit import artifact, comparison, evidence, registry, roles
from toolkit.words import format_amount

ROOT = Path(__file__).resolve().parents[1]
TARGET = "montant_pret"
SCORES = {"MAE": mean_absolute_error, "MSE": mean_squared_error, "R2": r2_score}
QUICK = ["--epochs", 2, "--no-controls"]


def loans(name, start, stop):
    return pd.read_csv(ROOT / "data" / f"df_{name}.csv").iloc[start:stop]


def keys_of(rows):
    """Write each row as one text, without any code of the project, to recognise it again."""
    columns = sorted(set(rows.columns) - {"nom", "prenom", *roles.OWN})
    text = rows[columns].astype({c: float for c in columns if rows[c].dtype.kind in "if"})
    return ["|".join(map(str, values)) for values in text.to_numpy(object)]


def part_of(model, role):
    return roles.part(model.buffer, role)


def is_held_out(model, rows):
    """Tell which rows of a file a model holds out, from its replay buffer alone."""
    return np.isin(keys_of(rows), keys_of(part_of(model, "held_out")))


def files_of(place, run):
    folder = Path(place.client.get_run(run.info.run_id).info.artifact_uri.removeprefix("file://"))
    return {path.name: path for path in folder.rglob("*") if path.is_file()}


def version(place, number):
    return place.client.get_model_version("loan-amount", str(number))


def told(place):
    """Read the one object of `--json`."""
    return json.loads(place.out)


def cells(X):
    """Write the rows of a matrix as bytes, to compare them as sets."""
    return set(map(bytes, np.ascontiguousarray(X, np.float32)))


# --- evidence


@pytest.mark.parametrize("part", ["new", "old"])
def test_scores_are_those_of_each_model_through_its_own_preprocessor_on_the_same_rows(
    trained, retrained, files, part
):
    file = pd.read_csv(files / f"{part}.csv")
    rows = file[is_held_out(retrained.load(retrained.uri), file)]
    if part == "new":  # the old rows that come back are old
        rows = rows[~np.isin(keys_of(rows), keys_of(pd.read_csv(files / "old.csv")))]
    metrics = retrained.run.data.metrics
    for place, name in ((trained, "parent"), (retrained, "retrained")):
        # The served model takes raw rows, and carries the preprocessor that it was trained with.
        prediction = place.predict(place.uri, rows)
        for score, function in SCORES.items():
            by_hand = function(rows[TARGET], prediction)
            assert metrics[f"{part}/{score}_{name}"] == pytest.approx(by_hand, rel=1e-9)
    names = ("parent", "retrained", "difference", "difference_low", "difference_high")
    parent, child, change, low, high = (metrics[f"{part}/MAE_{name}"] for name in names)
    assert change == pytest.approx(child - parent)
    assert low < change < high


def test_first_word_is_what_the_parent_erred_on_the_whole_file_before_any_training(
    trained, retrained, files
):
    file = pd.read_csv(files / "new.csv").head(340)  # the others came back
    by_hand = mean_absolute_error(file[TARGET], trained.predict(trained.uri, file))
    assert retrained.run.data.metrics["prequential/MAE"] == pytest.approx(by_hand, rel=1e-9)
    step = retrained.load(retrained.uri).card["lineage"][-1]
    usual = retrained.run.data.metrics["old/MAE_parent"]
    assert step["surprise"] == pytest.approx(by_hand / usual)
    first = retrained.out.splitlines()[0]
    assert first.startswith(f"parent {trained.uri}: its MAE on the 340 new rows of ")
    assert first.endswith(f"before any training on them, is {format_amount(by_hand, '€')}")


def test_share_of_new_rows_inside_the_ranges_is_that_of_the_served_parent(
    trained, retrained, files
):
    child, file = retrained.load(retrained.uri), pd.read_csv(files / "new.csv").head(340)
    rows = file[is_held_out(child, file)]
    trained.use()
    found = mlflow.pyfunc.load_model(trained.uri).predict(rows, params={"interval": 0.9})
    by_hand = rows[TARGET].between(found["low"].array, found["high"].array)
    metrics = retrained.run.data.metrics
    assert metrics["new/inside_90_parent"] == pytest.approx(by_hand.mean())
    assert 0.7 < metrics["new/inside_90_retrained"] <= 1
    report = files_of(retrained, retrained.run)
    groups = pd.read_csv(report["groups.csv"])
    for name in ("parent", "retrained"):
        shares = groups.query("column == 'region'")
        whole = np.average(shares[f"inside_90_{name}"], weights=shares["rows"])
        assert whole == pytest.approx(metrics[f"new/inside_90_{name}"])
    words = f"Of the {len(rows)} new held-out rows, within 90 % ranges lie {by_hand.sum()} ("
    for page in ("report.md", "report.html"):
        assert words in report[page].read_text("utf-8")


def test_model_keeps_its_errors_on_all_held_out_rows_also_once_these_were_trained_on(
    workshop, files, monkeypatch, no_figures
):
    from toolkit import ranges

    monkeypatch.setattr(model_utils, "train_model", not_trained)
    flags = ["--data", files / "new.csv", *QUICK, "--promote", "always", "--refit"]
    assert workshop.retrain(*flags) == 0, workshop.err
    child = workshop.load("models:/loan-amount/2")
    assert child.card["refit"]
    assert len(part_of(child, "held_out")) == 0
    n_held_out = sum(step["held_out"] for step in child.card["lineage"])
    assert (
        100 < len(child.card[ranges.KEPT]["error"]) < n_held_out
    )  # rows that came back count once
    low, high = ranges.around(child.card, np.array([5_000.0]))
    assert child.card["scale"]["low"] <= low < 5_000 < high <= child.card["scale"]["high"]


def test_own_scores_of_the_run_are_those_on_new_rows(retrained):
    metrics = retrained.run.data.metrics
    for score in SCORES:
        assert metrics[score] == metrics[f"new/{score}_retrained"]


def test_baselines_and_controls_are_scored_on_the_same_rows(retrained):
    model, metrics = retrained.load(retrained.uri), retrained.run.data.metrics
    held_out, y = part_of(model, "held_out"), part_of(model, "train")[TARGET]
    new = held_out[held_out[roles.GENERATION] == 1][TARGET]
    train = part_of(model, "train")
    recent = train[train[roles.GENERATION] == 1][TARGET].median()
    constants = {"mean": y.mean(), "median": y.median(), "recent median": recent}
    for name, constant in constants.items():
        by_hand = np.abs(new - constant).mean()
        assert metrics[f"new/MAE_{name}"] == pytest.approx(by_hand, rel=1e-9)
    for control in ("control", "scratch"):
        assert 0 < metrics[f"new/MAE_{control}"] < metrics["new/MAE_mean"]
        assert 0 < metrics[f"old/MAE_{control}"] < metrics["old/MAE_mean"]


def test_control_trains_beside_the_child_on_the_parents_rows_alone(trained, retrained):
    (_, (X,), (z,)), _ = retrained.fits[-1]
    known, members = np.isfinite(z), model_utils.MEMBERS
    assert known.shape == (len(X), 2 * members)
    assert known[:, :members].all()
    (used,) = {tuple(column) for column in known[:, members:].T}
    old = part_of(trained.load(trained.uri), "train")
    preprocessor = retrained.load(retrained.uri).preprocessor
    assert sum(used) == len(old) < len(X)
    assert cells(X[np.array(used)]) == cells(preprocessor.transform(old, roles.folds(old)))


def test_curves_have_one_finite_point_per_epoch(retrained):
    run_id = retrained.run.info.run_id
    for key, epochs in (("epoch/loss", 10), ("epoch/val_mae", 10), ("epoch/final_loss", 20)):
        history = retrained.client.get_metric_history(run_id, key)
        assert [point.step for point in history] == list(range(1, epochs + 1))
        assert np.isfinite([point.value for point in history]).all()


def test_run_names_its_parent_and_all_that_it_was_made_of(trained, retrained):
    run = retrained.run
    assert run.info.status == "FINISHED"
    assert run.data.tags["parent_model_uri"] == trained.uri
    assert run.data.tags["parent_run_id"] == trained.run.info.run_id
    assert [m.model_id for m in run.inputs.model_inputs] == [trained.uri.removeprefix("models:/")]
    contexts = {tag.value for i in run.inputs.dataset_inputs for tag in i.tags}
    assert {"training", "replay", "held-out new", "held-out old"} <= contexts
    not_logged = {"quiet", "json", "lang", "resume", "exit_code"}
    assert set(vars(mlflow_retrain.Settings())) - not_logged <= set(run.data.params)
    lineage = retrained.load(retrained.uri).card["lineage"]
    assert [(step["generation"], step["rows"]) for step in lineage] == [(0, 400), (1, 400)]
    assert [step["run_id"] for step in lineage] == [trained.run.info.run_id, run.info.run_id]


def test_report_tables_and_figures_lie_in_the_run(retrained):
    found = files_of(retrained, retrained.run)
    figures = {"before_after", "drift", "error_per_group", "learning_curve"}
    figures |= {"predicted_against_actual", "importance", "dependence"}
    files = {"report.html", "report.md", "drift.csv", "groups.csv", "importance.csv"}
    assert set(found) == files | {f"{name}.svg" for name in figures}
    page = found["report.html"].read_text("utf-8")
    assert page.count("<svg") == len(figures)
    assert all(found[f"{f}.svg"].read_text("utf-8") in page for f in figures)
    report = found["report.md"].read_text("utf-8")
    assert report.startswith("# Retraining: ")
    for section in ("Same rows, both models", "Leakage", "Drift", "Groups", "Not proven"):
        assert f"\n## {section}\n" in report
    assert "| rows both trained on and held out | 0 |" in report
    drift, groups = (pd.read_csv(found[f"{name}.csv"]) for name in ("drift", "groups"))
    kinds = retrained.load(retrained.uri).preprocessor.schema.kinds
    assert set(drift["column"]) == {*kinds, TARGET}
    assert set(groups["column"]) == {name for name, kind in kinds.items() if kind == "categorical"}


def test_run_version_and_terminal_tell_the_same_verdict(retrained):
    run = retrained.run
    assert (run.data.tags["verdict"], run.data.tags["verdict_kind"]) == ("promoted", "better")
    change = format_amount(run.data.metrics["new/MAE_difference"], "€", signed=True)
    assert run.info.run_name.startswith(f"promoted: MAE new {change}, old ")
    assert run.data.tags["mlflow.note.content"].startswith("promoted, better: MAE on new rows ")
    assert version(retrained, 2).description.startswith("promoted, better: MAE on new rows ")
    assert "\n\n**Purpose.**" in version(retrained, 2).description
    lines = retrained.out.splitlines()
    assert any(line.startswith("promoted, better: MAE on new rows ") for line in lines)
    assert any("of the gain of" in line for line in lines)
    assert (retrained.champion(), retrained.champion("previous")) == ("2", "1")


# --- the child


def test_parent_is_not_changed_by_one_byte(trained, retrained, hashes):
    assert hashes(trained.folder) == trained.before
    assert len(trained.before) > 15
    name = "models/preprocessor.pkl"
    assert hashes(retrained.folder)[name] == trained.before[name]


@pytest.mark.usefixtures("no_training")
def test_report_flag_writes_the_page_and_refit_trains_on_what_was_held_out(workshop, files):
    flags = ["--data", files / "new.csv", "--refit", "--promote", "always", *QUICK]
    assert workshop.retrain(*flags, "--report", "out.html", "--exit-code") == 0, workshop.err
    page = (workshop.folder / "out.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "What users lived with" not in page  # there is one generation only
    child = workshop.load("models:/loan-amount/2")
    assert child.card["refit"] is True
    assert part_of(child, "held_out").empty
    (_, (X,), _), _ = workshop.fits[-1]
    (_, (X_judged,), _), _ = workshop.fits[-2]
    assert len(X) == len(child.buffer) > len(X_judged)
    flags = ["--data", files / "later.csv", "--promote", "never", "--exit-code", *QUICK]
    loans("new", 900, 1100).to_csv(files / "later.csv", index=False)
    assert workshop.retrain(*flags) == 3, workshop.err
    assert not any(name.startswith("old/") for name in workshop.run.data.metrics)
    history = workshop.load("models:/loan-amount/3").card["lineage"]
    assert [("prequential" in step) for step in history] == [False, True, True]
    page = files_of(workshop, workshop.run)["report.html"].read_text("utf-8")
    assert "What users lived with" in page


def test_models_show_their_metrics_in_mlflow(trained, retrained):
    for place, name in ((trained, "MAE"), (retrained, "new/MAE_difference")):
        model = place.client.get_logged_model(place.uri.removeprefix("models:/"))
        assert name in {metric.key for metric in model.metrics}


def test_child_is_named_registered_and_lies_in_the_models_folder_too(retrained, files):
    run_id, rows = retrained.run.info.run_id, pd.read_csv(files / "new.csv").head(50)
    name = "retrained_mlflow_model"
    assert retrained.client.get_logged_model(retrained.uri.removeprefix("models:/")).name == name
    expected = retrained.predict(retrained.uri, rows)
    folder = retrained.folder / "models" / name
    for uri in (f"runs:/{run_id}/{name}", "models:/loan-amount/2", str(folder)):
        np.testing.assert_array_equal(retrained.predict(uri, rows), expected)
    assert {path.name for path in folder.parent.iterdir()} == {
        "mlflow_model",
        name,
        "preprocessor.pkl",
    }


# --- every kind of URI

FORMS = [
    "models:/{model}",
    "models:/loan-amount/1",
    "models:/loan-amount@first",
    "models:/loan-amount/latest",
    "runs:/{run}/mlflow_model",
    "{folder}",
    "file://{folder}",
    "models/mlflow_model",
]


def test_every_uri_of_a_model_is_taken_and_gives_the_same_parent(workshop, trained, files):
    workshop.client.set_registered_model_alias("loan-amount", "first", "1")
    names = {"model": trained.uri.removeprefix("models:/"), "run": trained.run.info.run_id}
    found = {}
    for form in FORMS:
        uri = form.format(folder=trained.artifact(trained.uri), **names)
        flags = ["--data", files / "new.csv", "--model-uri", uri, "--dry-run", "--json"]
        assert workshop.retrain(*flags) == 0, workshop.err
        # An alias will point elsewhere one day.
        assert told(workshop)["parent_model_uri"] == (trained.uri if "@" in uri else uri)
        found[form] = told(workshop)["prequential_MAE"]
    file = pd.read_csv(files / "new.csv").head(340)
    by_hand = mean_absolute_error(file[TARGET], trained.predict(trained.uri, file))
    assert list(found.values()) == pytest.approx([by_hand] * len(FORMS), rel=1e-9)


@pytest.fixture(scope="module", autouse=True)
def server(spare, empty_store, tmp_path_factory):
    """Start a tracking server that keeps the artifacts itself, while the first tests run."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    flags = "--host 127.0.0.1 --port {port} --workers 1 --backend-store-uri sqlite:///mlflow.db"
    return spare(
        *f"-m mlflow server {flags} --artifacts-destination ./artifacts".split(),
        folder=folder,
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )


@pytest.mark.usefixtures("no_training")
def test_training_and_retraining_over_http_take_every_uri_and_keep_nothing_here(
    server, trained, files, tmp_path
):
    server.ready("/health")
    place = type(trained)(tmp_path, server.url)
    assert place.train("--data", files / "old.csv") == 0, place.err
    assert f"open {place.store}/#/experiments/" in place.out
    assert "mlflow ui" not in place.out
    assert "View run" not in place.out
    first = version(place, 1)
    location = place.client.get_logged_model(first.source.removeprefix("models:/"))
    uris = [location.artifact_location, first.source, "models:/loan-amount@champion"]
    uris += ["models:/loan-amount/1", f"runs:/{first.run_id}/mlflow_model"]
    found = set()
    for uri in uris:
        flags = ["--data", files / "new.csv", "--model-uri", uri, "--dry-run", "--json"]
        assert place.retrain(*flags) == 0, place.err
        found.add(told(place)["prequential_MAE"])
    assert len(found) == 1
    assert uris[0].startswith("mlflow-artifacts:/")
    flags = ["--data", files / "new.csv", "--model-uri", uris[0], "--promote", "always", *QUICK]
    assert place.retrain(*flags) == 0, place.err
    assert place.run.data.tags["parent_model_uri"] == uris[0]
    assert place.run.data.tags["parent_run_id"] == first.run_id
    assert (place.champion(), place.champion("previous")) == ("2", "1")
    assert place.retrain("--rollback") == 0, place.err
    assert (place.champion(), place.champion("previous")) == ("1", "2")
    assert {path.name for path in tmp_path.iterdir()} == {"models"}


def test_artifact_of_a_server_is_loaded_over_http(server, tiny):
    kept = server.files[0].parent / "artifacts" / "some"
    kept.mkdir(parents=True)
    artifact.save_folder(tiny, kept / "model")
    mlflow.set_tracking_uri(server.ready("/health").url)
    assert_same(tiny, artifact.load_model("mlflow-artifacts:/some/model", NONE))


def test_network_of_this_toolkit_without_its_card_is_one_of_another_making(trained):
    import mlflow_retrain

    parent = trained.load("models:/loan-amount/1")
    assert mlflow_retrain.has_members(parent)
    parent.card = {}
    assert not mlflow_retrain.has_members(parent)


@pytest.mark.parametrize("flags", [["--refit"], []], ids=["refit", "plain"])
def test_shuffled_target_is_found_also_once_held_out_rows_were_trained_on(fresh_place, flags):
    rng = np.random.default_rng(4)
    for name in ("old", "new"):
        x, z = rng.normal(size=(2, 300))
        y = 10 * x + 3 * z + rng.normal(size=300)
        y = rng.permutation(y) if name == "new" else y
        rows = pd.DataFrame({"x": x, "z": z, "y": y})
        rows.to_csv(fresh_place.folder / f"{name}.csv", index=False)
    assert fresh_place.train("--data", "old.csv", "--target", "y", *flags) == 0, fresh_place.err
    assert fresh_place.retrain("--data", "new.csv", "--no-controls") == 0, fresh_place.err
    assert "kept champion, suspicious: target: its rank correlation" in fresh_place.out


def test_plain_keras_model_that_another_program_logged_is_continued(workshop, files, no_figures):
    parent = workshop.load(version(workshop, 1).source)
    width = parent.preprocessor.width
    theirs = keras.Sequential([keras.Input((width,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    theirs.compile("adam", "mse")
    theirs.optimizer.build(theirs.trainable_variables)
    experiment = workshop.client.create_experiment("theirs", (workshop.folder / "theirs").as_uri())
    workshop.use()
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.keras.log_model(theirs, name="theirs", pip_requirements=["keras"])
    rows = pd.read_csv(files / "new.csv")
    uri = f"runs:/{run.info.run_id}/theirs"
    before = model_utils.model_predict(theirs, parent.preprocessor.encode(rows))
    flags = ["--data", files / "new.csv", *QUICK, "--promote", "never"]
    assert workshop.retrain("--model-uri", uri, *flags, "--refit") == 2
    assert "holds a network of another making" in workshop.err
    assert workshop.retrain("--model-uri", uri, *flags) == 0, workshop.err
    assert (workshop.folder / "models" / "preprocessor.pkl").is_file()
    child, metrics = workshop.load("models:/loan-amount/2"), workshop.run.data.metrics
    held_out = is_held_out(child, rows)
    by_hand = mean_absolute_error(rows[TARGET][held_out], before[held_out])
    assert metrics["new/MAE_parent"] == pytest.approx(by_hand, rel=1e-6)
    after = mean_absolute_error(
        rows[TARGET][held_out], workshop.predict("models:/loan-amount/2", rows)[held_out]
    )
    assert metrics["new/MAE_retrained"] == pytest.approx(after, rel=1e-6) != by_hand
    assert not [key for key in metrics if key.startswith("old/")]
    assert workshop.run.data.tags["parent_run_id"] == run.info.run_id
    n_runs = len(workshop.runs())
    assert workshop.retrain("--model-uri", uri, *flags) == 0, workshop.err  # a kept version saw it
    assert workshop.out.startswith("nothing new in ")
    assert len(workshop.runs()) == n_runs
    gaps = files_of(workshop, workshop.run)["report.md"].read_text("utf-8").split("Not proven")[1]
    assert "Forgetting: no held\\-out row" in gaps or "Forgetting: no held-out row" in gaps


NETWORK = """
import keras

def build(input_dim):
    inputs = keras.Input((input_dim,))
    x = keras.layers.Dense(7, "tanh", name="mine")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1)(x))
"""


def test_network_of_the_users_own_is_trained_and_continued(fresh_place, files, no_figures):
    (fresh_place.folder / "net.py").write_text(NETWORK)
    flags = ["--data", files / "old.csv", "--epochs", 40, "--learning-rate", 0.01]
    assert fresh_place.train(*flags, "--network", "net.py:build") == 0, fresh_place.err
    first = fresh_place.run.data.metrics
    assert first["MAE"] < first["MAE_mean"]
    flags = ["--data", files / "new.csv", "--epochs", 5, "--promote", "always"]
    assert fresh_place.retrain(*flags) == 0, fresh_place.err
    metrics = fresh_place.run.data.metrics
    assert metrics["new/MAE_retrained"] != metrics["new/MAE_parent"]
    assert np.isfinite(metrics["old/MAE_difference"])
    networks = [fresh_place.load(f"models:/loan-amount/{n}").network for n in (1, 2)]
    kernels = [next(w for w in n.weights if w.shape[-1] == 7).numpy() for n in networks]
    assert kernels[0].shape == kernels[1].shape
    assert (kernels[0] != kernels[1]).any()
    rows = pd.read_csv(files / "new.csv")
    served = fresh_place.predict("models:/loan-amount@champion", rows)
    assert np.isfinite(served).all()
    highest = [fresh_place.load(f"models:/loan-amount/{n}").card["scale"]["high"] for n in (1, 2)]
    rows[TARGET] += 3 * highest[1]  # the bounds follow the targets
    rows.to_csv(fresh_place.folder / "more.csv", index=False)
    assert fresh_place.retrain("--data", "more.csv", *flags[2:]) == 0, fresh_place.err
    model = fresh_place.load("models:/loan-amount/3")
    assert model.card["scale"]["high"] >= rows[TARGET].max() > 2 * highest[1]
    last = model.network.layers[-2:]
    assert last[0].max_value + last[1].offset == pytest.approx(model.card["scale"]["high"])


# --- verdicts


@pytest.mark.usefixtures("no_training")
def test_harm_keeps_the_champion_unless_it_is_promoted_always_or_by_a_person(workshop):
    """Half of an untrained child's members know nothing: that is harm, proven on like rows."""
    loans("old", 400, 720).to_csv(workshop.folder / "more.csv", index=False)
    loans("old", 720, 1040).to_csv(workshop.folder / "yet_more.csv", index=False)
    assert workshop.retrain("--data", "more.csv", *QUICK, "--json") == 0, workshop.err
    found = told(workshop)
    assert (found["verdict_kind"], found["promoted"]) == ("worse", False)
    assert found["verdict"].startswith("kept champion, worse: MAE on new rows +")
    assert found["verdict"].count("harm is proven") == 1
    assert found["intervals"]["new"]["low"] > 0
    assert (workshop.champion(), workshop.champion("previous")) == ("1", None)
    always = [*QUICK, "--json", "--promote", "always"]
    assert workshop.retrain("--data", "yet_more.csv", *always) == 0, workshop.err
    assert (told(workshop)["verdict_kind"], told(workshop)["promoted"]) == ("worse", True)
    assert (workshop.champion(), workshop.champion("previous")) == ("3", "1")
    assert workshop.retrain("--approve", "2", "--json") == 0, workshop.err
    assert (told(workshop)["champion"], told(workshop)["previous"]) == ("2", "3")
    for champion, previous in (("3", "2"), ("2", "3")):
        assert workshop.retrain("--rollback") == 0, workshop.err
        assert (workshop.champion(), workshop.champion("previous")) == (champion, previous)
    moves = [line.split(" ", 1)[1] for line in registry.history(workshop.client, "loan-amount")]
    assert moves == [
        "version 1 promoted",
        "version 3 promoted",
        "version 2 approved",
        "version 3 rolled back",
        "version 2 rolled back",
    ]
    assert all(f" {move}" in workshop.out for move in moves)
    assert len(workshop.runs()) == 3


@pytest.mark.usefixtures("no_training")
def test_promote_never_keeps_the_champion_and_a_moved_champion_is_left_alone(
    workshop, files, monkeypatch
):
    better = comparison.Verdict("better", True, "better: planted")

    def decide(*args, promote, **options):
        return better if promote != "never" else comparison.Verdict("better", False, "planted")

    monkeypatch.setattr(comparison, "decide", decide)
    flags = ["--model-uri", "models:/loan-amount/1", *QUICK]
    loans("new", 400, 500).to_csv(workshop.folder / "third.csv", index=False)
    assert workshop.retrain("--data", files / "new.csv", *flags, "--promote", "never") == 0
    assert workshop.champion() == "1"
    weigh = evidence.weigh

    def another_wins(*args, **options):
        registry.promote(workshop.client, "loan-amount", "2", "1")
        return weigh(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evidence, "weigh", another_wins)
        assert workshop.retrain("--data", "third.csv", *flags) == 0, workshop.err
    assert "kept champion, another version is champion; better: p" in workshop.out
    logged = mlflow.artifacts.load_text(f"{workshop.run.info.artifact_uri}/report.md")
    assert "kept champion" in logged
    assert "another version is champion; better: p" in logged
    assert "promoted" not in logged.partition("\n\n")[0]
    assert workshop.run.data.tags["verdict"] == "kept champion"
    loans("new", 500, 600).to_csv(workshop.folder / "fourth.csv", index=False)
    assert workshop.retrain("--data", "fourth.csv", *flags) == 0, workshop.err
    assert "kept champion, the parent is not the champion, version 2; better: p" in workshop.out
    assert (workshop.champion(), workshop.champion("previous")) == ("2", "1")


@pytest.mark.usefixtures("no_training")
def test_file_without_a_new_row_trains_nothing_and_gets_no_verdict(workshop, files):
    flags = ["--data", files / "old.csv", *QUICK]
    assert workshop.retrain(*flags, "--promote", "always") == 0, workshop.err
    assert workshop.out.startswith(f"nothing new in {files / 'old.csv'}: every row was seen before")
    assert workshop.retrain("--data", files / "old.csv", "--dry-run", "--json") == 0
    assert told(workshop)["worthwhile"] is False
    assert workshop.retrain(*flags, "--json", "--report", "none.md") == 0
    page = (workshop.folder / "none.md").read_text("utf-8")
    assert page.startswith("# Retraining: kept champion\n\nKept champion: nothing new in ")
    found = told(workshop)
    assert found.pop("verdict").startswith("nothing new in ")
    nothing = {"promoted": False, "version": None, "model_uri": None, "metrics": {}}
    assert found == {"verdict_kind": "nothing_new", **nothing}
    assert workshop.fits == []
    assert len(workshop.runs()) == 1
    # Nor does a file whose rows a refused child has seen.
    flags = ["--data", files / "new.csv", *QUICK, "--promote", "never"]
    assert workshop.retrain(*flags) == 0, workshop.err
    assert workshop.retrain(*flags, "--json") == 0
    assert told(workshop)["verdict_kind"] == "nothing_new"
    assert len(workshop.runs()) == 2


def tenfold(rows):
    return rows.assign(**{TARGET: rows[TARGET] * 10})


def shuffled(rows):
    y = rows[TARGET].sample(frac=1, random_state=0).to_numpy()
    return rows.assign(**{TARGET: y})


def emptied(rows):
    return rows.assign(revenu_estime_mois=None)


def upper_case(rows):
    return rows.assign(region=rows["region"].str.upper())


def constant(rows):
    return rows.assign(**{TARGET: 7})


BROKEN = {
    "constant": (constant, f"{TARGET}: the spread is 0 times what it was"),
    "tenfold": (tenfold, TARGET),
    "shuffled": (shuffled, "target: its rank correlation with the parent's predictions fell"),
    "emptied": (emptied, "revenu_estime_mois: 100% of the cells are missing"),
    "upper case": (upper_case, "region: known categories are written in another way"),
}


@pytest.mark.usefixtures("no_training")
def test_broken_file_is_never_promoted_without_a_person_and_its_rows_do_not_come_back(
    workshop, files
):
    for name, (change, words) in BROKEN.items():
        change(loans("old", 400, 720)).to_csv(workshop.folder / "broken.csv", index=False)
        flags = ["--data", "broken.csv", *QUICK, "--promote", "always", "--json"]
        assert workshop.retrain(*flags) == 0, workshop.err
        found = told(workshop)
        assert (found["verdict_kind"], found["promoted"]) == ("suspicious", False), name
        assert found["verdict"].startswith("kept champion, suspicious: ")
        assert words in found["verdict"], (name, found["verdict"])
        assert "--approve" not in " ".join(found["next"])  # rather mend the file
        assert found["model_uri"] == version(workshop, found["version"]).source
    assert workshop.champion() == "1"
    assert workshop.run.data.tags["verdict_kind"] == "suspicious"
    # The next file is trained on with the rows of the first one, and with none of those between.
    assert workshop.retrain("--data", files / "new.csv", *QUICK, "--json") == 0
    X = workshop.fits[-1][0][1][0]
    child = workshop.load(told(workshop)["model_uri"])
    everything = [
        *keys_of(pd.read_csv(files / "old.csv")),
        *keys_of(pd.read_csv(files / "new.csv")),
    ]
    assert set(keys_of(child.buffer)) == set(everything)
    assert len(X) == len(part_of(child, "train"))
    assert workshop.retrain("--approve", "2") == 0, workshop.err
    assert (workshop.champion(), workshop.champion("previous")) == ("2", "1")


@pytest.mark.usefixtures("no_figures")
def test_refused_rows_come_back_so_that_five_files_of_80_rows_add_up(workshop, monkeypatch):
    small = workshop.folder / "small.csv"
    with monkeypatch.context() as patch:
        patch.setattr(model_utils, "train_model", not_trained)
        for start in range(0, 320, 80):
            loans("new", start, start + 80).to_csv(small, index=False)
            flags = ["--data", small, *QUICK, "--json", "--promote", "proven"]
            assert workshop.retrain(*flags) == 0, workshop.err
            assert told(workshop)["promoted"] is False
    loans("new", 320, 400).to_csv(small, index=False)
    assert workshop.retrain("--data", small, "--epochs", 10, "--no-controls") == 0, workshop.err
    seen = loans("new", 0, 400)
    child = workshop.load("models:/loan-amount/6")
    held_out = is_held_out(child, seen)
    assert 50 < held_out.sum() < 110
    assert set(keys_of(seen)) <= set(keys_of(child.buffer))
    expected = child.preprocessor.transform(part_of(child, "train"))
    assert cells(workshop.fits[-1][0][1][0]) == cells(expected)
    sizes = {
        tag.value: json.loads(one.dataset.profile)["num_rows"]
        for one in workshop.run.inputs.dataset_inputs
        for tag in one.tags
        if tag.key == "mlflow.data.context"
    }
    assert sizes["training"] == (~held_out).sum()
    assert sizes["held-out new"] == held_out.sum()
    assert (sizes["replay"], sizes["held-out old"]) == (320, 80)
    assert workshop.run.data.tags["verdict"] == "promoted"
    assert workshop.champion() == "6"


# --- who is held out


@pytest.mark.usefixtures("no_training")
def test_group_is_held_out_as_a_whole_in_every_generation(fresh_place):
    rng = np.random.default_rng(2)
    customers = np.repeat(np.arange(60), 8)
    rows = pd.DataFrame({"customer": [f"c{c:03d}" for c in customers]})
    rows["size"] = (customers + rng.random(480)).round(6)  # tells whose row it is
    rows["kind"] = rng.choice(["a", "b"], 480)
    rows["price"] = (rows["size"] * 3 + rng.normal(size=480)).round(4)
    mixed = rows.sample(frac=1, random_state=0)
    mixed[:280].to_csv(fresh_place.folder / "one.csv", index=False)
    mixed[280:].to_csv(fresh_place.folder / "two.csv", index=False)
    flags = ["--target", "price", "--group", "customer", *QUICK[:2]]
    assert fresh_place.train("--data", "one.csv", *flags) == 0, fresh_place.err
    assert fresh_place.retrain("--data", "two.csv", *QUICK, "--json") == 0, fresh_place.err
    buffer = fresh_place.load("models:/loan-amount/2").buffer
    assert len(buffer) == 480
    of_role = buffer.groupby(buffer["size"].astype(int))[roles.ROLE].nunique()
    assert len(of_role) == 60
    assert (of_role == 1).all()
    share = (buffer[roles.ROLE] == "held_out").mean()
    assert 0.1 < share < 0.35
    # Intervals know that rows of one customer vary together.
    new = told(fresh_place)["intervals"]["new"]
    child, metrics = fresh_place.load("models:/loan-amount/2"), fresh_place.run.data.metrics
    held_out = part_of(child, "held_out")
    held_out = held_out[held_out[roles.GENERATION] == 1].reset_index(drop=True)
    errors = []
    for number in (1, 2):
        model = fresh_place.load(f"models:/loan-amount/{number}")
        X = model.preprocessor.transform(held_out)
        prediction = model_utils.model_predict(model.network, X)
        errors.append(np.abs(held_out["price"].to_numpy() - prediction))
    labels = held_out["size"].astype(int)
    sure = comparison.confidence_of(1)
    by_hand = comparison.paired_interval(errors[1] - errors[0], groups=labels, confidence=sure)
    assert new["low"] == pytest.approx(by_hand.low, rel=1e-6)
    assert new["high"] == pytest.approx(by_hand.high) == metrics["new/MAE_difference_high"]
    fresh_place.err = ""
    rows.drop(columns="customer").head(80).to_csv(fresh_place.folder / "none.csv", index=False)
    assert fresh_place.retrain("--data", "none.csv", *QUICK) == 2
    assert "has no column 'customer' of groups" in fresh_place.err


@pytest.mark.usefixtures("no_training")
def test_latest_days_of_each_file_are_held_out_whatever_their_group(fresh_place):
    rng = np.random.default_rng(3)
    rows = pd.DataFrame({"day": pd.date_range("2021-01-01", periods=400).strftime("%Y-%m-%d")})
    rows["size"] = rng.normal(size=400).round(6)
    rows["price"] = (rows["size"] * 3 + np.arange(400) / 100).round(4)
    rows["shop"] = [f"shop {number % 20}" for number in range(400)]
    rows[:200].sample(frac=1, random_state=0).to_csv(fresh_place.folder / "one.csv", index=False)
    rows[200:].to_csv(fresh_place.folder / "two.csv", index=False)
    flags = ["--target", "price", "--time", "day", "--group", "shop", *QUICK[:2]]
    assert fresh_place.train("--data", "one.csv", *flags) == 0, fresh_place.err
    assert fresh_place.retrain("--data", "two.csv", *QUICK) == 0, fresh_place.err
    buffer = fresh_place.load("models:/loan-amount/2").buffer
    first = pd.Timestamp("2021-01-01").toordinal() - pd.Timestamp("1970-01-01").toordinal()
    day = buffer["day"].astype(int) - first
    held_out = set(day[buffer[roles.ROLE] == "held_out"])
    assert held_out == {*range(160, 200), *range(360, 400)}


def weighted_file(n, seed, weight="w"):
    """Make rows of which every ninth weighs nothing, and is absurd."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"size": rng.normal(size=n).round(6), "kind": rng.choice(["a", "b"], n)})
    rows["price"] = (rows["size"] * 3 + (rows["kind"] == "a")).round(4)
    rows[weight] = rng.gamma(1, 2, n).round(3) + 0.01
    rows.loc[::9, ["price", weight]] = 500.0, 0.0
    return rows


def weighted_mae(place, number, rows):
    made = place.predict(f"models:/loan-amount/{number}", rows[["size", "kind"]])
    return np.average(np.abs(rows["price"] - made), weights=rows[roles.WEIGHT])


@pytest.mark.usefixtures("no_training")
def test_weight_counts_in_training_and_scores_of_every_generation(fresh_place):
    weighted_file(300, 1).to_csv(fresh_place.folder / "one.csv", index=False)
    weighted_file(200, 2).to_csv(fresh_place.folder / "two.csv", index=False)
    flags = ["--target", "price", *QUICK[:2]]
    assert fresh_place.train("--data", "one.csv", *flags, "--weight", "w") == 0, fresh_place.err
    first, trainings = fresh_place.load("models:/loan-amount/1"), [fresh_place.fits]
    assert first.preprocessor.schema.features == ("size", "kind")
    assert len(first.buffer) == 300 - 34  # rows of weight 0 are as good as none
    train, held_out = (part_of(first, role) for role in ("train", "held_out"))
    metrics = fresh_place.run.data.metrics
    assert metrics["MAE"] == pytest.approx(weighted_mae(fresh_place, 1, held_out), rel=1e-6)
    mean = np.average(train["price"], weights=train[roles.WEIGHT])
    for name, constant in (("mean", mean), ("median", train["price"].median())):
        errors = np.abs(held_out["price"] - constant)
        by_hand = np.average(errors, weights=held_out[roles.WEIGHT])
        assert metrics[f"MAE_{name}"] == pytest.approx(by_hand, rel=1e-9)

    # A retraining inherits the weight; old rows keep theirs.
    assert fresh_place.retrain("--data", "two.csv", *QUICK[:2]) == 0, fresh_place.err
    child, metrics = fresh_place.load("models:/loan-amount/2"), fresh_place.run.data.metrics
    trainings.append(fresh_place.fits)
    assert child.roles.weight == "w"
    file = child.buffer[child.buffer[roles.GENERATION] == 1]
    by_hand = weighted_mae(fresh_place, 1, file)
    assert metrics["prequential/MAE"] == pytest.approx(by_hand, rel=1e-6)
    for generation, part in ((1, "new"), (0, "old")):
        rows = child.buffer[child.buffer[roles.GENERATION] == generation]
        rows = rows[rows[roles.ROLE] == "held_out"]
        maes = [weighted_mae(fresh_place, number, rows) for number in (1, 2)]
        for name, by_hand in zip(("parent", "retrained"), maes, strict=True):
            assert metrics[f"{part}/MAE_{name}"] == pytest.approx(by_hand, rel=1e-6)
        change = metrics[f"{part}/MAE_difference"]
        assert change == pytest.approx(maes[1] - maes[0], rel=1e-6)
    rows = part_of(child, "train")
    mean = np.average(rows["price"], weights=rows[roles.WEIGHT])
    new = part_of(child, "held_out").query(f"`{roles.GENERATION}` == 1")
    by_hand = np.average(np.abs(new["price"] - mean), weights=new[roles.WEIGHT])
    assert metrics["new/MAE_mean"] == pytest.approx(by_hand, rel=1e-9)

    # All trainings, the search among them, were given the weights of their rows, of mean 1.
    for fits, model in zip(trainings, (first, child), strict=True):
        known = part_of(model, "train")
        known = known.assign(w=known[roles.WEIGHT] / known[roles.WEIGHT].mean())
        assert len(fits) == 2
        for (_, (X,), _), options in fits:
            assert sorted(options["sample_weight"]) == pytest.approx(sorted(known["w"]))
            encoded = cells(np.column_stack([X, options["sample_weight"]]))
            inputs = model.preprocessor.transform(known, roles.folds(known))
            assert encoded == cells(np.column_stack([inputs, known["w"]]))


@pytest.mark.usefixtures("no_training")
def test_file_without_the_weights_is_refused_by_a_retraining_and_taken_by_all_else(fresh_place):
    rows = weighted_file(300, 1)
    rows.to_csv(fresh_place.folder / "one.csv", index=False)
    flags = ["--data", "one.csv", "--target", "price", "--weight", "w", "--buffer-rows", 0]
    assert fresh_place.train(*flags, *QUICK[:2], "--refit") == 0, fresh_place.err
    (_, (X,), _), options = fresh_place.fits[-1]  # of the refit, on held-out rows, too
    assert len(X) == len(options["sample_weight"]) == 266
    new = weighted_file(120, 2).drop(columns="w")
    new.to_csv(fresh_place.folder / "two.csv", index=False)
    assert fresh_place.retrain("--data", "two.csv", *QUICK) == 2
    told = "error: two.csv has no column 'w' of weights; expected how much each row counts: add or "
    assert fresh_place.err == f"{told}rename it, its columns are size, kind, price\n"
    assert fresh_place.retrain("--data", "two.csv", "--dry-run") == 2
    fresh_place.err = ""
    new.drop(columns="price").to_csv(fresh_place.folder / "look.csv", index=False)
    assert fresh_place.retrain("--data", "look.csv", "--dry-run") == 0, fresh_place.err
    assert fresh_place.score("--data", "look.csv") == 0, fresh_place.err
    uri = "models:/loan-amount/1"
    with_weights = fresh_place.predict(uri, new.assign(w=3.0))
    np.testing.assert_array_equal(with_weights, fresh_place.predict(uri, new))


@pytest.fixture
def all_promoted(monkeypatch):
    """Promote every child, whatever it is worth."""
    planted = comparison.Verdict("no_worse", True, "no worse: planted")
    monkeypatch.setattr(comparison, "decide", lambda *args, **options: planted)


@pytest.mark.usefixtures("no_training", "all_promoted")
def test_no_generation_is_trained_on_a_row_that_any_generation_holds_out(workshop, files):
    seen = [pd.read_csv(files / name) for name in ("old.csv", "new.csv")]
    fits = []
    for start in (0, 400, 640):
        rows = loans("new", start, start + 240)
        back = [file.sample(40, random_state=start) for file in seen[:2]]
        seen.append(pd.concat([rows, *back], ignore_index=True))
        seen[-1].to_csv(workshop.folder / "next.csv", index=False)
        flags = ["--data", "next.csv", *QUICK]
        assert workshop.retrain(*flags) == 0, workshop.err
        fits.append(workshop.fits)
    models = [workshop.load(f"models:/loan-amount/{number}") for number in (2, 3, 4)]
    held_out = part_of(models[-1], "held_out")
    for model, of_model in zip(models, fits, strict=True):
        # The rows as the network saw them, of all generations, also of those still to come.
        scale = model_utils.TargetScale(**model.card["scale"])
        z = ((held_out[TARGET] - scale.mean) / scale.scale).to_numpy(np.float32)
        forbidden = cells(np.column_stack([model.preprocessor.transform(held_out), z]))
        assert len(forbidden) == len(set(keys_of(held_out)))
        assert len(of_model) == 2
        for (_, (X,), (y,)), _ in of_model:
            trained_on = cells(np.column_stack([X, np.nanmax(y, axis=1).astype(np.float32)]))
            assert len(trained_on) > 300
            assert not trained_on & forbidden
        assert not set(keys_of(part_of(model, "train"))) & set(keys_of(held_out))
    for before, after in pairwise(models):
        for role in ("train", "held_out"):  # a row keeps its role
            assert set(keys_of(part_of(before, role))) < set(keys_of(part_of(after, role)))


@pytest.mark.usefixtures("no_training", "all_promoted")
def test_new_category_becomes_known_and_the_parent_stays_as_it_was(workshop):
    for place, start in (("Atlantis", 0), ("Lemuria", 240)):
        rows = loans("new", start, start + 240)
        rows.loc[rows.index[:40], "region"] = place
        rows.to_csv(workshop.folder / "next.csv", index=False)
        flags = ["--data", "next.csv", *QUICK]
        assert workshop.retrain(*flags) == 0, workshop.err
    parent, child, grandchild = (f"models:/loan-amount/{number}" for number in (1, 2, 3))
    rows = loans("old", 0, 50)
    places = ("Atlantis", "Lemuria", "Nowhere")
    atlantis, lemuria, nowhere = (rows.assign(region=region) for region in places)

    def differ(uri, one, other):
        return (workshop.predict(uri, one) != workshop.predict(uri, other)).any()

    assert not differ(parent, atlantis, nowhere)
    assert differ(child, atlantis, nowhere)
    assert not differ(child, lemuria, nowhere)
    assert differ(grandchild, lemuria, nowhere)
    assert differ(grandchild, atlantis, nowhere)
    assert "Atlantis" in workshop.load(child).card["new_categories"]["region"]


# --- options


@pytest.mark.usefixtures("no_training")
def test_control_knows_new_rows_no_more_by_the_mean_target_of_their_code(fresh_place):
    rng = np.random.default_rng(0)
    for name, first in (("old", 1000), ("new", 5000)):
        code = np.repeat(first + rng.permutation(999)[:40], 10)
        effect = np.repeat(rng.normal(0, 100, 40), 10)
        rows = pd.DataFrame({"code": code, "x": rng.normal(size=400)})
        rows.assign(y=effect + rng.normal(size=400)).to_csv(fresh_place.folder / name, index=False)
    assert fresh_place.train("--data", "old", "--target", "y", "--epochs", 2) == 0, fresh_place.err
    assert fresh_place.retrain("--data", "new", "--epochs", 2) == 0, fresh_place.err
    found = fresh_place.run.data.metrics
    # Nothing is trained, so that both are one network: they differ by what they know of codes.
    assert found["old/MAE_control"] == pytest.approx(found["old/MAE_retrained"], rel=1e-6)
    assert found["new/MAE_control"] != pytest.approx(found["new/MAE_retrained"], rel=1e-4)
    # It was trained so, too: on what is known of codes by the parent's rows alone.
    (_, (X_child,), (z_child,)), _ = fresh_place.fits[-2]
    (_, (X,), (z,)), _ = fresh_place.fits[-1]
    half = model_utils.MEMBERS
    assert (z_child.shape[1], z.shape[1]) == (half, 2 * half)
    inputs = fresh_place.load("models:/loan-amount/2").preprocessor.inputs
    mean = max(number for number, each in enumerate(inputs) if each.part == "mean")
    is_new = np.isnan(z[:, -1])
    assert 100 < is_new.sum() < 400
    assert len(set(X_child[is_new, mean])) > 30 > len(set(X[is_new, mean]))


@pytest.mark.usefixtures("no_training")
def test_replay_0_trains_on_rows_of_the_new_file_alone_and_buffer_rows_0_keeps_none(
    workshop, files
):
    flags = ["--no-controls", "--replay", 0, "--buffer-rows", 0, "--promote", "always"]
    assert workshop.retrain("--data", files / "new.csv", *flags) == 0, workshop.err
    contexts = {tag.value for i in workshop.run.inputs.dataset_inputs for tag in i.tags}
    assert "replay" not in contexts
    assert "of the gain" not in workshop.out
    names = {k.split("_")[-1] for k in workshop.run.data.metrics if k.startswith("new/MAE")}
    assert "control" not in names
    child = workshop.load("models:/loan-amount/2")
    new = pd.read_csv(files / "new.csv").head(340)
    assert 0 < len(workshop.fits[-1][0][1][0]) < len(new)
    assert len(child.buffer) == 0
    assert workshop.retrain("--data", files / "old.csv", "--dry-run") == 0, workshop.err
    assert "drift: unknown, the parent remembers no training row" in workshop.out
    assert "400 new rows" in workshop.out
    # Roles follow from content: what was held out is held out, though no row is remembered.
    assert workshop.retrain("--data", files / "old.csv", *flags) == 0, workshop.err
    first = workshop.load("models:/loan-amount/1")
    held_out = keys_of(part_of(first, "held_out"))
    again = workshop.load("models:/loan-amount/3").card["lineage"][-1]["held_out"]
    assert again == len(held_out) == 80


def test_dry_run_tells_drift_and_findings_and_leaves_nothing_but_a_run(workshop, files, hashes):
    before = hashes(workshop.folder)
    flags = ["--dry-run", "--experiment", "loans", "--data"]
    assert workshop.retrain(*flags, files / "new.csv") == 0, workshop.err
    tenfold(loans("old", 400, 720)).to_csv(workshop.folder / "broken.csv", index=False)
    assert "drift: " in workshop.out
    assert "suspicious" not in workshop.out
    assert workshop.retrain(*flags, "broken.csv") == 0, workshop.err
    assert f"suspicious: {TARGET}: " in workshop.out
    assert workshop.retrain(*flags, "broken.csv", "--replay", 0) == 0, workshop.err
    assert f"suspicious: {TARGET}: " in workshop.out  # replayed or not, rows are remembered
    assert workshop.retrain(*flags, "broken.csv", "--json") == 0, workshop.err
    assert {line["column"] for line in told(workshop)["drift"]} > {"age", TARGET}
    assert told(workshop)["findings"][0].startswith(f"{TARGET}: ")
    after = hashes(workshop.folder)
    del after["broken.csv"]
    assert set(after) == set(before)
    assert {k for k in after if after[k] != before[k]} <= {"mlflow.db"}
    assert [run.data.tags["phase"] for run in workshop.runs()] == ["monitoring"] * 4 + ["training"]
    assert [run.info.status for run in workshop.runs()] == ["FINISHED"] * 5
    broken = "a retraining is not worthwhile yet: the file looks broken, suspicious: "
    assert told(workshop)["verdict"].startswith(f"{broken}{TARGET}: the ")
    assert workshop.retrain(*flags, "broken.csv", "--report", "look.md") == 0, workshop.err
    page = (workshop.folder / "look.md").read_text("utf-8")
    assert f"Kept champion: {broken}montant" in page
    assert "## Drift" in page


@pytest.mark.usefixtures("no_training")
def test_json_is_one_object_with_what_the_run_holds(workshop, files):
    assert workshop.retrain("--data", files / "new.csv", *QUICK, "--json") == 0, workshop.err
    found, run = told(workshop), workshop.run
    assert workshop.err == ""
    assert (found["run_id"], found["experiment_id"]) == (run.info.run_id, run.info.experiment_id)
    assert found["metrics"].items() <= run.data.metrics.items()
    rest = set(run.data.metrics) - set(found["metrics"])
    assert rest == {"epoch/loss", "epoch/val_mae", "epoch/final_loss"}
    for name in ("new", "old"):
        assert found["intervals"][name]["low"] == found["metrics"][f"{name}/MAE_difference_low"]
    made = workshop.client.get_model_version(found["model_name"], found["version"])
    assert found["model_uri"] == made.source
    assert found["promoted"] == found["verdict"].startswith("promoted")
    assert found["verdict_kind"] == run.data.tags["verdict_kind"]
    assert all(shlex.split(command) for command in found["next"])
    assert f"/experiments/{run.info.experiment_id}/" in found["url"]
    view = re.search(r"viewStateShareKey=(\w+)", found["url"])[1]
    shown = workshop.client.get_experiment(run.info.experiment_id).tags
    shown = json.loads(shown[f"mlflow.sharedViewState.{view}"])["selectedColumns"]
    for kind, name in re.findall(r"(metrics|params|tags)\.`(.+?)`", " ".join(shown)):
        assert name in getattr(run.data, kind), "a column of the view that no run fills"


# --- wrong things


def test_no_champion_is_one_line_and_exit_code_2(fresh_place, files):
    assert fresh_place.retrain("--data", files / "new.csv") == 2
    assert fresh_place.err.count("\n") == 1
    assert "no model at models:/loan-amount@champion" in fresh_place.err


@pytest.mark.usefixtures("no_training")
def test_failure_after_training_keeps_the_champion_and_ends_the_run(workshop, files, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("planted")

    monkeypatch.setattr(evidence, "log_evidence", fail)
    with pytest.raises(RuntimeError, match="planted"):
        workshop.retrain("--data", files / "new.csv", *QUICK)
    assert [run.info.status for run in workshop.runs()] == ["FAILED", "FINISHED"]
    assert workshop.champion() == "1"


@pytest.mark.usefixtures("no_training")
def test_what_a_model_remembers_is_inherited_unless_said_otherwise(fresh_place, files):
    flags = ["--data", files / "old.csv", "--epochs", 1, "--buffer-rows", 0]
    assert fresh_place.train(*flags) == 0, fresh_place.err
    flags = ["--data", files / "new.csv", *QUICK, "--promote", "always"]
    assert fresh_place.retrain(*flags) == 0, fresh_place.err
    assert fresh_place.run.data.params["buffer_rows"] == "0"
    assert len(fresh_place.load("models:/loan-amount/2").buffer) == 0
    assert fresh_place.retrain(*flags, "--buffer-rows", 30) == 0, fresh_place.err
    assert len(fresh_place.load("models:/loan-amount/3").buffer) == 60  # of both roles
    loans("old", 500, 600).to_csv(fresh_place.folder / "third.csv", index=False)
    assert fresh_place.retrain("--data", "third.csv", *flags[2:]) == 0, fresh_place.err
    assert len(fresh_place.load("models:/loan-amount/4").buffer) == 60


@pytest.mark.usefixtures("no_training")
def test_refused_version_with_a_smaller_buffer_loses_no_row_of_the_champion(workshop, files):
    flags = ["--data", files / "new.csv", "--promote", "never", "--buffer-rows", 0, *QUICK]
    assert workshop.retrain(*flags) == 0, workshop.err
    assert workshop.out.endswith("runs?viewStateShareKey=verdicts&workflowType=machine_learning\n")
    assert "mlflow_retrain.py --approve 2" in workshop.out
    assert workshop.retrain("--data", files / "old.csv") == 0, workshop.err
    assert "nothing new in" in workshop.out


@pytest.mark.usefixtures("no_training")
def test_without_a_champion_among_versions_none_is_promoted_by_itself(workshop, files):
    workshop.client.delete_registered_model_alias("loan-amount", "champion")
    assert workshop.retrain("--data", files / "new.csv") == 2
    assert "mlflow_retrain.py --approve" in workshop.err
    flags = ["--model-uri", "models:/loan-amount/1", "--data", files / "new.csv", *QUICK]
    assert workshop.retrain(*flags) == 0, workshop.err
    assert "kept champion, there is no champion" in workshop.out or "worse" in workshop.out
    assert workshop.champion() is None


def test_a_network_of_another_program_is_compared_as_it_was(workshop, no_figures, monkeypatch):
    parent = workshop.load("models:/loan-amount/1")
    theirs = keras.Sequential([keras.Input((parent.preprocessor.width,)), keras.layers.Dense(1)])
    theirs.compile("sgd", "mae")
    before = theirs.get_weights()
    rows = roles.gather(parent.buffer.assign(**{roles.GENERATION: 1}), parent.buffer.head(0), 0)
    theirs_whole = artifact.TrainedModel(theirs, parent.preprocessor)
    settings = mlflow_retrain.Settings()
    work = mlflow_retrain.Work(
        settings, None, "", None, theirs_whole, None, rows, parent.buffer, parent.buffer
    )
    child = mlflow_retrain.continue_foreign(work, lambda name: [])
    assert child.network.get_compile_config() == theirs.get_compile_config()
    for old, now, new in zip(
        before, theirs.get_weights(), child.network.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, now)
        assert (old != new).any()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--approve", "1", "--dry-run"], "neither --dry-run nor each other"),
        (["--approve", "1", "--rollback"], "neither --dry-run nor each other"),
    ],
)
def test_champion_is_not_moved_in_a_dry_run_or_in_two_ways_at_once(workshop, flags, words):
    before = workshop.client.get_registered_model("loan-amount").last_updated_timestamp
    assert workshop.retrain(*flags) == 2
    assert words in workshop.err
    assert workshop.client.get_registered_model("loan-amount").last_updated_timestamp == before


@pytest.mark.parametrize("file", ["report.pdf", "nowhere/report.html"])
def test_report_that_cannot_be_written_is_refused_before_anything_is_trained(
    workshop, files, file, capsys
):
    with pytest.raises(SystemExit) as end:
        workshop.retrain("--data", files / "new.csv", "--report", file)
    assert end.value.code == 2
    assert len(workshop.runs()) == 1


@pytest.mark.usefixtures("no_training")
def test_marker_that_a_later_file_needs_is_named_then_and_kept(workshop):
    rows = loans("new", 0, 300)
    column = next(name for name in rows if rows[name].dtype.kind in "if" and name != TARGET)
    rows[column] = rows[column].astype(object)
    rows.loc[rows.index[::50], column] = "k. A. (spät)"
    rows.to_csv(workshop.folder / "new.csv", index=False)
    assert workshop.retrain("--data", "new.csv", *QUICK) == 2
    assert "'k. A. (spät)'" in workshop.err
    flags = ["--promote", "always", "--na", "k. A. (spät)", *QUICK]
    assert workshop.retrain("--data", "new.csv", *flags) == 0, workshop.err
    assert workshop.score("--data", "new.csv", "--output", "scored.csv") == 0, workshop.err
    assert len(pd.read_csv(workshop.folder / "scored.csv")) == 300


@pytest.mark.usefixtures("no_training")
def test_object_for_programs_is_printed_quietly_too(workshop, files):
    assert workshop.retrain("--data", files / "new.csv", *QUICK, "--json", "--quiet") == 0
    assert told(workshop)["version"] == "2"


@pytest.mark.usefixtures("no_training")
def test_refit_leaves_no_time_held_out_behind_it_in_either_script(fresh_place):
    rng, lasts = np.random.default_rng(0), []
    for name, start in (("old", "2024-01-01"), ("new", "2024-04-01")):
        days = pd.date_range(start, periods=120)
        table = pd.DataFrame({"day": days, "x": rng.normal(size=120)})
        table.assign(y=table["x"]).to_csv(fresh_place.folder / f"{name}.csv", index=False)
        lasts.append((days[-1] - pd.Timestamp(0)).days)
    first = ["--data", "old.csv", "--target", "y", "--time", "day", "--refit"]
    assert fresh_place.train(*first) == 0, fresh_place.err
    again = ["--data", "new.csv", "--refit", "--promote", "always", "--no-controls"]
    assert fresh_place.retrain(*again) == 0, fresh_place.err
    for version, last in enumerate(lasts, 1):
        role = fresh_place.load(f"models:/loan-amount/{version}").roles
        assert role.intervals == [[last, last]]
