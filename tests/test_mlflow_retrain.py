"""Claims about mlflow_retrain.py, on real runs: evidence, promotion, purity, every kind of URI."""

import contextlib
import json
import shlex
import threading
from itertools import pairwise
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

import comparison
import mlflow_retrain
import model_store
import model_utils
import retraining
import tabular

ROOT = Path(__file__).resolve().parents[1]
TARGET = "montant_pret"
SCORES = {"MAE": mean_absolute_error, "MSE": mean_squared_error, "R2": r2_score}


def loans(name, start, stop):
    return pd.read_csv(ROOT / "data" / f"df_{name}.csv").iloc[start:stop]


def keys_of(rows):
    """Write each row as one text, without any code of the project, to recognise it again."""
    columns = sorted(set(rows.columns) - {"nom", "prenom"} - {c for c in rows if c[:2] == "__"})
    text = rows[columns].astype({c: float for c in columns if rows[c].dtype.kind in "if"})
    return ["|".join(map(str, values)) for values in text.to_numpy(object)]


def roles_of(model, rows):
    """Tell which rows of a file a model holds out: a mask, from the model's memory alone."""
    assert not rows.empty
    return np.isin(keys_of(rows), keys_of(model.memory.part("held_out")))


def report_of(place):
    folder = place.artifact(place.uri).parents[2] / place.run.info.run_id / "artifacts"
    return {path.name: path for path in folder.rglob("*") if path.is_file()}


# --- evidence


@pytest.mark.parametrize("part", ["new", "old"])
def test_scores_are_those_of_each_model_through_its_own_preprocessor_on_the_same_rows(
    trained, retrained, files, part
):
    file = pd.read_csv(files / f"{part}.csv")
    rows = file[roles_of(retrained.load(retrained.uri), file)]
    if part == "old":
        rows = file[roles_of(trained.load(trained.uri), file)]
        assert len(rows) == 80
    metrics = retrained.run.data.metrics
    for place, name in ((trained, "parent"), (retrained, "retrained")):
        # The served model takes raw rows, and carries the preprocessor that it was trained with.
        prediction = place.predict(place.uri, rows)
        for score, function in SCORES.items():
            by_hand = function(rows[TARGET], prediction)
            assert metrics[f"{part}/{score}_{name}"] == pytest.approx(by_hand, rel=1e-9)
    parent, child, change = (
        metrics[f"{part}/MAE_{name}"] for name in ("parent", "retrained", "difference")
    )
    assert change == pytest.approx(child - parent)
    assert metrics[f"{part}/MAE_difference_low"] < change < metrics[f"{part}/MAE_difference_high"]


def test_own_scores_of_the_run_are_those_on_new_rows(retrained):
    metrics = retrained.run.data.metrics
    for score in SCORES:
        assert metrics[score] == metrics[f"new/{score}_retrained"]


def test_mean_predictor_and_controls_are_scored_on_the_same_rows(retrained, files):
    file = pd.read_csv(files / "new.csv")
    model = retrained.load(retrained.uri)
    held_out = roles_of(model, file)
    metrics, y = retrained.run.data.metrics, file[TARGET]
    mean = model.memory.part("train")[TARGET].mean()
    by_hand = np.abs(y[held_out] - mean).mean()
    assert metrics["new/MAE_mean"] == pytest.approx(by_hand, rel=1e-9)
    for control in ("control", "scratch"):
        assert 0 < metrics[f"new/MAE_{control}"] < metrics["new/MAE_mean"]
        assert 0 < metrics[f"old/MAE_{control}"] < metrics["old/MAE_mean"]


def test_control_is_trained_on_old_rows_alone_for_as_many_updates(retrained, files):
    *_, everything, control, scratch = retrained.fits
    model = retrained.load(retrained.uri)
    old = set(keys_of(pd.read_csv(files / "old.csv"))) & set(keys_of(model.memory.part("train")))
    assert len(everything[0]) == len(scratch[0]) > len(control[0]) == len(old)
    pairs = [set(map(bytes, np.column_stack(fit))) for fit in (everything, control)]
    assert pairs[1] < pairs[0]


@pytest.mark.parametrize("key", ["epoch/loss", "epoch/val_loss"])
def test_curve_has_one_finite_point_per_epoch(retrained, key):
    history = retrained.client.get_metric_history(retrained.run.info.run_id, key)
    assert [point.step for point in history] == list(range(1, 21))
    assert np.isfinite([point.value for point in history]).all()


def test_run_names_its_parent_by_tags_and_by_lineage(trained, retrained):
    run = retrained.run
    assert run.info.status == "FINISHED"
    assert run.data.tags["parent_model_uri"] == trained.uri
    assert run.data.tags["parent_run_id"] == trained.run.info.run_id
    assert [m.model_id for m in run.inputs.model_inputs] == [trained.uri.removeprefix("models:/")]
    contexts = {tag.value for i in run.inputs.dataset_inputs for tag in i.tags}
    assert {"training", "replay", "held-out new", "held-out old"} <= contexts


def test_every_argument_is_a_parameter_of_the_run(retrained):
    arguments = set(vars(mlflow_retrain.parse_args([]))) - {"quiet", "json", "resume"}
    assert arguments <= set(retrained.run.data.params)


def test_report_tables_and_figures_lie_in_the_run(retrained):
    found = report_of(retrained)
    figures = {"before_after", "drift", "error_per_group", "learning_curve"}
    figures |= {"predicted_against_actual"}
    assert set(found) == {"report.md", "drift.csv", "groups.csv", *(f"{f}.png" for f in figures)}
    assert all(found[f"{f}.png"].read_bytes().startswith(b"\x89PNG") for f in figures)
    report = found["report.md"].read_text("utf-8")
    assert report.startswith("# Retraining: ")
    for section in ("Same rows, both models", "Controls", "Purity", "Drift", "Groups"):
        assert f"\n## {section}\n" in report
    drift, groups = (pd.read_csv(found[f"{name}.csv"]) for name in ("drift", "groups"))
    model = retrained.load(retrained.uri)
    assert set(drift["column"]) == {*model.schema.features, TARGET}
    assert set(groups["column"]) == set(model.schema.categorical)


def test_run_and_version_tell_the_verdict_first(retrained):
    run, version = retrained.run, retrained.client.get_model_version("loan-amount", "2")
    verdict = run.data.tags["verdict"]
    assert verdict in ("promoted", "kept champion")
    change = comparison.format_amount(run.data.metrics["new/MAE_difference"], "€", signed=True)
    assert run.info.run_name.startswith(f"{verdict} {change} (old ")
    assert run.data.tags["mlflow.note.content"].startswith(f"**{verdict}: ")
    assert version.description.startswith(f"{verdict}: ")
    assert "\n\n**Purpose.**" in version.description
    lines = retrained.out.splitlines()
    assert any(line.startswith(f"{verdict}: ") for line in lines)
    assert any("of the gain of" in line or "no gain" in line.lower() for line in lines)


# --- the child


def test_parent_is_not_changed_by_one_byte(trained, retrained, hashes):
    assert hashes(trained.folder) == trained.before
    assert len(trained.before) > 15
    for name in ("preprocessor.pkl", "preprocessor.pkl.sha256"):
        assert hashes(retrained.folder)[f"models/{name}"] == trained.before[f"models/{name}"]


def test_child_is_named_registered_and_lies_in_the_models_folder_too(retrained, files):
    run_id, rows = retrained.run.info.run_id, pd.read_csv(files / "new.csv")
    name = "retrained_mlflow_model"
    assert retrained.client.get_logged_model(retrained.uri.removeprefix("models:/")).name == name
    expected = retrained.predict(retrained.uri, rows)
    folder = retrained.folder / "models" / name
    for uri in (f"runs:/{run_id}/{name}", "models:/loan-amount/2", str(folder)):
        np.testing.assert_array_equal(retrained.predict(uri, rows), expected)
    assert not list(folder.parent.glob(f".{name}*"))
    assert not list(folder.parent.glob("checkpoint*"))


# --- every kind of URI


@pytest.mark.parametrize(
    "form",
    [
        "models:/{model}",
        "models:/loan-amount/1",
        "models:/loan-amount@champion",
        "models:/loan-amount/latest",
        "runs:/{run}/mlflow_model",
        "{folder}",
        "file://{folder}",
    ],
)
def test_every_uri_of_a_model_gives_the_same_parent(trained, files, form):
    uri = form.format(
        model=trained.uri.removeprefix("models:/"),
        run=trained.run.info.run_id,
        folder=trained.artifact(trained.uri),
    )
    rows = pd.read_csv(files / "new.csv")
    parent = trained.load(uri)
    X = tabular.encode(rows, parent.preprocessor)
    np.testing.assert_array_equal(
        model_utils.model_predict(parent.network, X), trained.predict(trained.uri, rows)
    )
    assert parent.run_id == trained.run.info.run_id
    assert len(parent.memory.rows) == 400


@pytest.fixture(scope="module")
def server(launch, empty_store, tmp_path_factory):
    """Start a tracking server that keeps the artifacts itself, as a team would."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    flags = "--host 127.0.0.1 --port {port} --workers 1 --backend-store-uri sqlite:///mlflow.db"
    return launch(
        *f"-m mlflow server {flags} --artifacts-destination ./artifacts".split(),
        folder=folder,
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )


@pytest.fixture(scope="module", autouse=True)
def _start_early(server):
    """Let the server start while the first tests run."""


@pytest.fixture(scope="module")
def remote(server, trained, files, tmp_path_factory):
    """Train and retrain over HTTP, the second time from an `mlflow-artifacts:` URI."""
    server.ready("/health")
    place = type(trained)(tmp_path_factory.mktemp("remote"), server.url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracking.log_figures", lambda figures: None)
        assert place.train("--data", files / "old.csv", "--epochs", 20) == 0, place.err
        source = place.client.get_model_version("loan-amount", "1").source
        model = place.client.get_logged_model(source.removeprefix("models:/"))
        place.uri = model.artifact_location
        flags = ["--model-uri", place.uri, "--data", files / "new.csv", "--epochs", 20]
        assert place.retrain(*flags, "--no-controls") == 0, place.err
    return place


def test_training_and_retraining_over_http_give_the_bits_of_a_local_store(remote, retrained):
    assert remote.uri.startswith("mlflow-artifacts:/")
    second, first = remote.runs("FINISHED")
    local_second, local_first = retrained.runs()
    assert first.data.metrics == local_first.data.metrics
    for key, value in second.data.metrics.items():
        assert value == local_second.data.metrics[key]
    assert second.data.tags["parent_model_uri"] == remote.uri
    assert second.data.tags["parent_run_id"] == first.info.run_id
    assert not (remote.folder / "mlflow.db").exists()
    assert not (remote.folder / "mlruns").exists()
    assert "View run" not in remote.out
    assert "mlflow ui" not in remote.out
    assert f"open {remote.store}/#/experiments/" in remote.out


@pytest.mark.parametrize(
    "form",
    [
        "{uri}",
        "models:/loan-amount/1",
        "models:/loan-amount@{alias}",
        "runs:/{run}/mlflow_model",
        "{model}",
    ],
)
def test_every_uri_on_a_server_gives_the_same_parent(remote, trained, files, form):
    version = remote.client.get_model_version("loan-amount", "1")
    alias = "champion" if remote.champion() == "1" else "previous"
    uri = form.format(uri=remote.uri, alias=alias, run=version.run_id, model=version.source)
    rows = pd.read_csv(files / "new.csv")
    parent = remote.load(uri)
    X = tabular.encode(rows, parent.preprocessor)
    np.testing.assert_array_equal(
        model_utils.model_predict(parent.network, X), trained.predict(trained.uri, rows)
    )


def test_aliases_move_on_a_server_as_in_a_local_store(remote):
    client = remote.client
    versions = ("1", "2") if remote.champion() == "1" else ("2", "1")
    client.set_registered_model_alias("loan-amount", "previous", versions[1])
    assert remote.retrain("--rollback") == 0, remote.err
    assert (remote.champion(), remote.champion("previous")) == versions[::-1]
    assert not model_store.promote(client, "loan-amount", "1", expected="7")
    assert [m.name for m in client.search_registered_models()] == ["loan-amount"]


def test_plain_keras_model_that_another_program_logged_is_continued(workshop, files, no_figures):
    model = workshop.load(workshop.client.get_model_version("loan-amount", "1").source)
    width = model.network.input_shape[-1]
    theirs = keras.Sequential([keras.Input((width,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    theirs.compile("adam", "mse")
    theirs.optimizer.build(theirs.trainable_variables)
    experiment = workshop.client.create_experiment("theirs", (workshop.folder / "theirs").as_uri())
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.keras.log_model(theirs, name="theirs", pip_requirements=["keras"])
    rows = pd.read_csv(files / "new.csv")
    flags = ["--data", files / "new.csv", "--epochs", 2, "--promote", "never"]
    uri = f"runs:/{run.info.run_id}/theirs"
    before = model_utils.model_predict(theirs, tabular.encode(rows, model.preprocessor))
    assert workshop.retrain("--model-uri", uri, *flags) == 0, workshop.err
    child, metrics = workshop.load("models:/loan-amount/2"), workshop.run.data.metrics
    held_out = roles_of(child, rows)
    by_hand = mean_absolute_error(rows[TARGET][held_out], before[held_out])
    assert metrics["new/MAE_parent"] == pytest.approx(by_hand, rel=1e-6)
    assert metrics["new/MAE_retrained"] != metrics["new/MAE_parent"]
    assert not [key for key in metrics if key.startswith("old/")]
    assert workshop.run.data.tags["parent_run_id"] == run.info.run_id
    workshop.uri = workshop.client.get_model_version("loan-amount", "2").source
    gaps = report_of(workshop)["report.md"].read_text("utf-8").split("## Not proven")[1]
    assert "Forgetting: no held-out row of the parent" in gaps
    assert "no control was trained" in gaps


# --- promotion


PLANTED = ["--data", "young.csv", "--no-controls", "--learning-rate", 0.003]


@pytest.fixture(scope="module")
def planted(tmp_path_factory, trained):
    """Retrain on young borrowers, an age the parent never saw, who get 20,000 more.

    That is a large gain on new rows, while 80 old rows are too few to rule out 5 % of forgetting.
    """
    place = trained.copy(tmp_path_factory.mktemp("planted"))
    rows = loans("new", 0, 2000).query("age < 34").head(320)
    rows.assign(**{TARGET: 20_000 + rows[TARGET]}).to_csv(place.folder / "young.csv", index=False)
    lenient, place.steps = ["--max-forgetting", 0.5], {}
    steps = {"strict": [], "never": ["--promote", "never", *lenient], "lenient": lenient}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracking.log_figures", lambda figures: None)
        for name, flags in steps.items():
            assert place.retrain(*PLANTED, *flags) == 0, place.err
            place.steps[name] = (place.run, place.champion(), place.champion("previous"))
    return place


def test_planted_improvement_is_promoted_and_the_old_champion_remembered(planted):
    run, champion, previous = planted.steps["lenient"]
    assert run.data.metrics["new/MAE_difference_high"] < 0
    assert run.data.tags["verdict"] == "promoted"
    assert (champion, previous) == ("4", "1")
    assert "\npromoted: " in planted.out
    assert "--rollback --tracking-uri " + planted.store in planted.out.splitlines()[-1]


def test_child_that_may_have_forgotten_more_than_allowed_is_not_promoted(planted):
    run, champion, previous = planted.steps["strict"]
    metrics = run.data.metrics
    assert metrics == planted.steps["lenient"][0].data.metrics
    assert metrics["old/MAE_difference_high"] > 0.05 * metrics["old/MAE_parent"]
    assert run.data.tags["verdict"] == "kept champion"
    assert (champion, previous) == ("1", None)


def test_promote_never_keeps_the_champion_whatever_the_gain(planted):
    run, champion, previous = planted.steps["never"]
    assert run.data.metrics == planted.steps["lenient"][0].data.metrics
    assert run.data.tags["verdict"] == "kept champion"
    assert "--promote never" in run.data.tags["mlflow.note.content"]
    assert (champion, previous) == ("1", None)


def test_rollback_swaps_champion_and_previous_and_logs_when(planted, tmp_path):
    place = planted.copy(tmp_path)
    runs = len(place.runs())
    for champion, previous in (("1", "4"), ("4", "1")):
        assert place.retrain("--rollback") == 0
        assert (place.champion(), place.champion("previous")) == (champion, previous)
    history = model_store.history(place.client, "loan-amount")
    words = [line.split(" ", 1)[1] for line in history]
    assert words == [
        "version 1 promoted",
        "version 4 promoted",
        "version 1 rolled back",
        "version 4 rolled back",
    ]
    assert all(f"  {line}" in place.out.splitlines() for line in history)
    assert len(place.runs()) == runs
    assert place.retrain("--rollback", "--json") == 0
    told = json.loads(place.out)
    assert (told["champion"], told["previous"]) == ("1", "4")


def test_rollback_without_a_previous_champion_is_exit_code_2(workshop):
    assert workshop.retrain("--rollback") == 2
    assert workshop.err.startswith("error: ")
    assert "no @previous version" in workshop.err
    assert workshop.err.count("\n") == 1
    assert workshop.champion() == "1"
    assert [m.name for m in workshop.client.search_registered_models()] == ["loan-amount"]


def test_shuffled_targets_keep_the_champion(workshop, no_figures):
    rows = loans("old", 400, 800)
    shuffled = rows[TARGET].sample(frac=1, random_state=0).to_numpy()
    rows.assign(**{TARGET: shuffled}).to_csv(workshop.folder / "shuffled.csv", index=False)
    assert workshop.retrain("--data", "shuffled.csv", "--no-controls") == 0
    assert workshop.run.data.tags["verdict"] == "kept champion"
    assert (workshop.champion(), workshop.champion("previous")) == ("1", None)
    versions = workshop.client.search_model_versions("name='loan-amount'")
    assert len(versions) == 2  # the child is registered all the same


def test_champion_that_changed_during_the_retraining_stays(planted, tmp_path, monkeypatch):
    place, gather = planted.copy(tmp_path), retraining.gather_evidence
    place.client.set_registered_model_alias("loan-amount", "champion", "1")

    def other_wins(*args, **options):
        place.client.set_registered_model_alias("loan-amount", "champion", "2")
        return gather(*args, **options)

    monkeypatch.setattr(retraining, "gather_evidence", other_wins)
    monkeypatch.setattr("tracking.log_figures", lambda figures: None)
    assert place.retrain(*PLANTED, "--max-forgetting", 0.5) == 0, place.err
    assert place.champion() == "2"
    assert "champion changed since version 1 was read" in place.out
    assert place.run.data.tags["verdict"] == "kept champion"


def test_promotion_that_expects_another_champion_changes_nothing(planted, tmp_path):
    place = planted.copy(tmp_path)
    before = place.champion(), place.champion("previous")
    for expected in ("1", "2", None):
        assert model_store.promote(place.client, "loan-amount", "2", expected) is False
    assert (place.champion(), place.champion("previous")) == before
    assert [m.name for m in place.client.search_registered_models()] == ["loan-amount"]


def test_one_of_several_promotions_at_once_wins(planted, tmp_path):
    place = planted.copy(tmp_path)
    start, won = threading.Barrier(4), []

    def race(version):
        start.wait()
        won.append((model_store.promote(place.client, "loan-amount", version, "4"), version))

    threads = [threading.Thread(target=race, args=(version,)) for version in "1212"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [version for success, version in won if success]
    assert len(won) == 4
    assert [place.champion()] == winners
    assert place.champion("previous") == "4"
    assert [m.name for m in place.client.search_registered_models()] == ["loan-amount"]


def test_lock_is_released_when_a_promotion_fails(planted, tmp_path, monkeypatch):
    place = planted.copy(tmp_path)

    def fail(*args):
        raise OSError("planted")

    with monkeypatch.context() as patch, contextlib.suppress(OSError):
        patch.setattr(model_store, "champion_version", fail)
        model_store.promote(place.client, "loan-amount", "2", "4")
    assert [m.name for m in place.client.search_registered_models()] == ["loan-amount"]
    assert model_store.promote(place.client, "loan-amount", "2", "4")


# --- options


@pytest.fixture(scope="module")
def bare(tmp_path_factory, trained, files):
    """Retrain with everything left out that can be."""
    place = trained.copy(tmp_path_factory.mktemp("bare"))
    flags = ["--no-controls", "--replay", 0, "--memory-rows", 0, "--promote", "always"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracking.log_figures", lambda figures: None)
        assert place.retrain("--data", files / "new.csv", "--epochs", 2, *flags) == 0, place.err
    return place


def test_no_controls_trains_none(bare):
    names = {key.split("_")[-1] for key in bare.run.data.metrics if key.startswith("new/MAE")}
    assert names == {"parent", "retrained", "mean", "difference", "low", "high"}
    assert "of the gain" not in bare.out


def test_replay_0_trains_on_rows_of_the_new_file_alone(bare, files):
    file = pd.read_csv(files / "new.csv")
    contexts = {tag.value for i in bare.run.inputs.dataset_inputs for tag in i.tags}
    assert "replay" not in contexts
    assert {len(y) for _, y in bare.fits} <= set(range(len(file) + 1))
    assert np.isin(bare.fits[-1][1], file[TARGET].astype(np.float32)).all()


def test_promote_always_moves_the_champion_whatever_the_verdict(bare):
    assert (bare.champion(), bare.champion("previous")) == ("2", "1")
    assert bare.run.data.tags["verdict"] == "promoted"


def test_memory_rows_0_stores_no_row_but_still_tells_which_rows_were_held_out(bare, files):
    child = bare.load("models:/loan-amount/2")
    assert len(child.memory.rows) == 0
    assert len(child.memory.seen) == 740  # 400 old rows and 340 new ones, 60 came back
    assert bare.retrain("--data", files / "old.csv", "--dry-run") == 0
    assert "drift: unknown, the parent remembers no training row" in bare.out
    assert "320 new rows and 0 remembered ones" in bare.out


def test_dry_run_tells_the_drift_and_leaves_nothing_behind(workshop, files, hashes):
    before = hashes(workshop.folder)
    assert workshop.retrain("--data", files / "new.csv", "--dry-run", "--experiment", "loans") == 0
    assert hashes(workshop.folder)["models/preprocessor.pkl"] == before["models/preprocessor.pkl"]
    assert set(hashes(workshop.folder)) == set(before)
    assert len(workshop.runs()) == 1
    assert "drift: " in workshop.out
    assert "a retraining looks " in workshop.out


def test_json_is_one_object_with_what_the_run_holds(workshop, files, no_figures):
    flags = ["--data", files / "new.csv", "--epochs", 1, "--json"]
    assert workshop.retrain(*flags, "--no-controls") == 0, workshop.err
    told, run = json.loads(workshop.out), workshop.run
    assert workshop.err == ""
    assert (told["run_id"], told["experiment_id"]) == (run.info.run_id, run.info.experiment_id)
    assert told["metrics"].items() <= run.data.metrics.items()
    assert set(run.data.metrics) - set(told["metrics"]) == {
        "epoch/loss",
        "epoch/val_loss",
        "epoch/final_loss",
    }
    for name in ("new", "old"):
        assert told["intervals"][name]["low"] == told["metrics"][f"{name}/MAE_difference_low"]
    version = workshop.client.get_model_version(told["model_name"], told["version"])
    assert told["model_uri"] == version.source
    assert version.description.startswith(f"{told['verdict']}.\n")
    assert told["promoted"] == (told["verdict"].startswith("promoted"))
    assert all(shlex.split(command) for command in told["next"])
    assert f"/experiments/{run.info.experiment_id}/" in told["url"]
    assert workshop.retrain(*flags, "--dry-run") == 0
    assert {line["column"] for line in json.loads(workshop.out)["drift"]} > {"age", TARGET}
    assert workshop.retrain("--json", "--data", "nowhere.csv") == 2
    assert (workshop.out, workshop.err.count("\n")) == ("", 1)
    assert workshop.train(*flags[:4], "--json", "--memory-rows", 0) == 0
    told = json.loads(workshop.out)
    assert told["version"] == "3"
    assert told["verdict"].startswith("not champion, another version is: MAE ")
    assert told["metrics"].items() <= workshop.run.data.metrics.items()


def test_without_a_uri_the_champion_is_continued(planted, files):
    assert planted.retrain("--data", files / "new.csv", "--dry-run") == 0
    champion = planted.client.get_model_version("loan-amount", planted.champion())
    assert champion.source in planted.out


# --- a chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory, retrained, files):
    """Continue twice more, on files in which rows of all files before come back."""
    place = retrained.copy(tmp_path_factory.mktemp("chain"))
    place.files = [pd.read_csv(files / "old.csv"), pd.read_csv(files / "new.csv")]
    place.generations, place.uris = [retrained.fits], [retrained.uri]
    for start, regions in ((400, ["Atlantis"]), (800, ["Lemuria", "Atlantis"])):
        rows = loans("new", start, start + 240)
        rows.loc[rows.index[:24], "region"] = np.resize(regions, 24)
        back = [file.sample(50, random_state=start) for file in place.files]
        place.files.append(pd.concat([rows, *back], ignore_index=True))
        place.files[-1].to_csv(place.folder / "next.csv", index=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tracking.log_figures", lambda figures: None)
            flags = ["--model-uri", place.uris[-1], "--epochs", 3]
            assert place.retrain("--data", "next.csv", *flags) == 0, place.err
        version = len(place.uris) + 2
        place.uris.append(place.client.get_model_version("loan-amount", version).source)
        place.generations.append(place.fits)
    return place


def test_no_generation_is_trained_on_a_row_that_any_generation_holds_out(chain):
    models = [chain.load(uri) for uri in chain.uris]
    held_out = models[-1].memory.part("held_out")
    keys = set(keys_of(held_out))
    assert sorted(held_out["__generation"].unique()) == [0, 1, 2, 3]
    for file in chain.files:
        assert 0.1 < np.isin(keys_of(file), list(keys)).mean() < 0.4
    for model, fits in zip(models, chain.generations, strict=True):
        # The rows as the network saw them, of all generations, also of those still to come.
        X = tabular.encode(held_out, model.preprocessor)
        forbidden = set(map(bytes, np.column_stack([X, held_out[TARGET]]).astype(np.float32)))
        assert len(forbidden) == len(held_out)
        for X, y in fits:
            seen = set(map(bytes, np.column_stack([X, y]).astype(np.float32)))
            assert len(seen) > 100
            assert not seen & forbidden
        assert not set(keys_of(model.memory.part("train"))) & keys


def test_every_row_of_every_file_has_one_role_and_keeps_it(chain):
    models = [chain.load(uri) for uri in chain.uris]
    everything = set().union(*map(keys_of, chain.files))
    parts = [{r: set(keys_of(m.memory.part(r))) for r in ("train", "held_out")} for m in models]
    assert parts[-1]["train"] | parts[-1]["held_out"] == everything
    for before, after in pairwise(parts):
        assert before["train"] < after["train"]
        assert before["held_out"] < after["held_out"]


def test_held_out_rows_of_every_generation_are_scored_at_each_step(chain):
    metrics = chain.run.data.metrics
    for generation in range(3):
        for model in ("parent", "retrained"):
            assert np.isfinite(metrics[f"generation_{generation}/MAE_{model}"])
    held_out = chain.load(chain.uris[0]).memory.part("held_out")
    first = held_out[held_out["__generation"] == 0]
    prediction = chain.predict(chain.uris[-1], first)
    by_hand = mean_absolute_error(first[TARGET], prediction)
    assert metrics["generation_0/MAE_retrained"] == pytest.approx(by_hand, rel=1e-9)


def test_report_counts_the_rows_by_role(chain):
    folder = Path(chain.artifact(chain.uris[-1])).parents[2] / chain.run.info.run_id / "artifacts"
    table = (folder / "report.md").read_text("utf-8").split("## Purity")[1].split("##")[0]
    table = table.replace("\\_", " ")
    counts = dict(
        tuple(cell.strip() for cell in line.strip("|\n ").split("|"))
        for line in table.strip().splitlines()[2:]
    )
    held_out = chain.load(chain.uris[-1]).memory.part("held_out")
    assert counts["held out but trained on"] == "0"
    assert counts["held out in all generations"] == f"{len(held_out):,}"
    assert counts["rows"] == f"{len(chain.files[-1]):,}"
    assert int(counts["held out before"]) > 10
    assert int(counts["trained on before"]) > 10


def test_new_category_becomes_known_and_the_parent_stays_as_it_was(chain):
    rows = loans("old", 0, 50)
    regions = ("Atlantis", "Lemuria", "Nowhere")
    atlantis, lemuria, nowhere = (rows.assign(region=region) for region in regions)

    def differ(uri, one, other):
        return (chain.predict(uri, one) != chain.predict(uri, other)).any()

    parent, child, grandchild = chain.uris
    assert not differ(parent, atlantis, nowhere)
    assert differ(child, atlantis, nowhere)
    assert not differ(child, lemuria, nowhere)
    assert differ(grandchild, lemuria, nowhere)
    widths = [chain.load(uri).network.input_shape[-1] for uri in chain.uris]
    assert widths == [widths[0], widths[0] + 1, widths[0] + 2]


# --- wrong things


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns="age"), "has no column 'age'"),
        (lambda rows: rows.assign(pets=1), "has the column 'pets'"),
        (lambda rows: rows.drop(columns=TARGET), f"has no column '{TARGET}'"),
        (lambda rows: rows.astype({"age": object}).replace({"age": {42: "?"}}), "holds '?' in"),
        (lambda rows: rows.assign(region=None), "'region'"),
        (lambda rows: rows.head(0), "no rows"),
        (lambda rows: rows.head(10), "10 rows; expected at least 20"),
        (lambda rows: rows.assign(**{TARGET: np.nan}), f"no finite '{TARGET}'"),
    ],
    ids=["missing", "extra", "target", "text", "empty", "none", "few", "nan"],
)
def test_wrong_file_is_one_line_and_exit_code_2_and_leaves_all_as_it_was(workshop, change, words):
    rows = loans("new", 0, 60)
    rows.loc[rows.index[3], "age"] = 42
    change(rows).to_csv(workshop.folder / "wrong.csv", index=False)
    assert workshop.retrain("--data", "wrong.csv") == 2
    check_nothing_happened(workshop, words)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/loan-amount/99", "no model at models:/loan-amount/99"),
        ("models:/loan-amount@nobody", "no model at models:/loan-amount@nobody"),
        ("models:/loan-amount", "models:/loan-amount"),
        ("models:/m-00000000000000000000000000000000", "no model at"),
        ("runs:/00000000000000000000000000000000/model", "no model at"),
        ("./nowhere", "no model at ./nowhere"),
        ("models", "it has no MLmodel file"),
        ("s4://bucket/model", "no model at s4://bucket/model"),
    ],
)
def test_wrong_uri_is_one_line_and_exit_code_2_and_leaves_all_as_it_was(
    workshop, files, uri, words
):
    assert workshop.retrain("--data", files / "new.csv", "--model-uri", uri) == 2
    check_nothing_happened(workshop, words)


def test_no_champion_is_one_line_and_exit_code_2(fresh_place, files):
    assert fresh_place.retrain("--data", files / "new.csv") == 2
    assert fresh_place.err.count("\n") == 1
    assert "no model at models:/loan-amount@champion" in fresh_place.err


def check_nothing_happened(place, words):
    assert words in place.err
    assert place.err.startswith("error: ")
    assert place.err.count("\n") == 1
    assert [run.info.status for run in place.runs()] == ["FINISHED"]
    assert place.champion() == "1"
    assert len(place.client.search_model_versions("name='loan-amount'")) == 1


def test_failure_after_training_keeps_the_champion_and_ends_the_run(
    workshop, files, monkeypatch, no_figures
):
    def fail(*args, **options):
        raise RuntimeError("planted")

    monkeypatch.setattr(comparison, "report", fail)
    flags = ["--data", files / "new.csv", "--no-controls", "--epochs", 1]
    with pytest.raises(RuntimeError, match="planted"):
        workshop.retrain(*flags)
    assert [run.info.status for run in workshop.runs()] == ["FAILED", "FINISHED"]
    assert workshop.champion() == "1"
