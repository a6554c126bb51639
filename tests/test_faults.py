"""Claims about faults: signals, kills, lost stores and many processes at once lose nothing.

All of them happen in forked children (see forked.py), which work while the tests wait for them.
"""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from toolkit import artifact, registry, tracking

pytestmark = pytest.mark.long
HERE = Path(__file__).resolve().parent
TRAIN, RETRAIN = "mlflow_monitoring", "mlflow_retrain"
SHARES = [0.05, 0.2, 0.4, 0.65, 0.85, 0.97]  # of all moments of a run
KILLS = [(script, at) for script in (TRAIN, RETRAIN) for at in SHARES]
SIGNALS = [
    (script, at, number)
    for number, script, at in [(signal.SIGINT, TRAIN, 0.35), (signal.SIGTERM, RETRAIN, 0.75)]
]
MANY = 8


class Jobs:
    """Jobs for forked.py, each in a place of its own."""

    def __init__(self, make) -> None:
        self.make, self.places, self.process = make, {}, None

    def job(self, name, *steps: dict, fresh: bool = False) -> dict:
        place = self.places[name] = self.make(fresh)
        # Steps see the store by its address: models are logged beside it.
        flags = ["--tracking-uri", place.store]
        steps = [step | {"flags": [*step["flags"], *flags]} for step in steps]
        return {"folder": str(place.folder), "experiment": place.experiment, "steps": steps}

    def place(self, name):
        """Wait until a job is done; return its place."""
        place, deadline = self.places[name], time.monotonic() + 300
        while not (place.folder / "done").exists():
            assert self.process.process.poll() is None, self.process.err
            assert time.monotonic() < deadline, f"{name} takes too long"
            time.sleep(0.05)
        return place


def outcome(place, step=0, copy=0):
    """Return (exit code, stderr, stdout) of a step."""
    code = json.loads((place.folder / f"{step}.{copy}.json").read_text())["code"]
    texts = [(place.folder / f"{step}.{copy}.{end}").read_text("utf-8") for end in ("err", "out")]
    return code, *texts


@pytest.fixture(scope="module", autouse=True)
def jobs(tmp_path_factory, trained, files, empty_store, spare):
    def make(fresh):
        folder = tmp_path_factory.mktemp("fault")
        if not fresh:
            return trained.copy(folder)
        shutil.copy(empty_store, folder / "mlflow.db")
        return type(trained)(folder)

    made = Jobs(make)
    old, new = (["--data", str(files / f"{name}.csv")] for name in ("old", "new"))
    train = {"script": TRAIN, "flags": [*old, "--seed", "7"]}
    retrain = {"script": RETRAIN, "flags": [*new, "--no-controls", "--promote", "always"]}
    steps = {TRAIN: train, RETRAIN: retrain}
    first = [made.job(script, step) for script, step in steps.items()]
    rest = []
    for i, (script, at) in enumerate(KILLS):
        step = steps[script] | {"at": at, "signal": signal.SIGKILL}
        rest.append(made.job((script, at), step, fresh=script == TRAIN and i % 2 == 0))
    for script, at, number in SIGNALS:
        rest.append(made.job((script, at, number), steps[script] | {"at": at, "signal": number}))
    long = {"script": TRAIN, "flags": [*old, "--epochs", "20"], "trains": True}
    killed = long | {"after": ["training", 11], "signal": signal.SIGKILL}
    rest.append(
        made.job("resume", killed, long | {"flags": [*long["flags"], "--resume"]}, fresh=True)
    )
    for script, step in steps.items():
        later = step | {"flags": [*step["flags"], "--resume"]}
        rest.append(made.job((script, "lost"), step | {"lost": True}, later))
    many = [made.job("first runs", train | {"copies": MANY}, fresh=True)]
    (made.places["first runs"].folder / "mlflow.db").unlink()
    many += [made.job("retrainings", retrain | {"copies": MANY})]
    file = tmp_path_factory.mktemp("jobs") / "jobs.json"
    file.write_text(json.dumps([first, rest, many[:1], many[1:]]))
    made.process = spare(HERE / "forked.py", HERE.parent, file, XLA_FLAGS=os.environ["XLA_FLAGS"])
    return made


def sweep(place):
    """Start anew: open the store as the next command does."""
    return tracking.connect(place.store, place.experiment)


def alike(one, other):
    """Tell whether two networks have the same weights, bit for bit."""
    pairs = zip(one.network.get_weights(), other.network.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def check_files(place):
    """Find no half-written file under its final name, in the store or in models/."""
    models = place.folder / "models"
    if (models / "preprocessor.pkl").exists():
        assert artifact.load_preprocessor(models / "preprocessor.pkl").inputs
    for folder in ("mlflow_model", "retrained_mlflow_model"):
        if (models / folder).exists():
            assert place.load(str(models / folder)).card["lineage"]
    for version in place.client.search_model_versions("name='loan-amount'"):
        if str(place.folder) in str(place.artifact(version.source)):  # not the one all begin with
            assert place.load(version.source).card["lineage"]


def test_complete_runs_have_dozens_of_moments_to_be_killed_at(jobs):
    counts = {}
    for script in (TRAIN, RETRAIN):
        place = jobs.place(script)
        assert outcome(place)[0] == 0, outcome(place)
        counts[script] = int((place.folder / "0.0.count").read_text())
    print(f"faults: moments of a run {counts}")
    assert min(counts.values()) > 60


@pytest.mark.parametrize(("script", "at"), KILLS)
def test_killed_process_leaves_the_old_champion_or_a_complete_new_one(jobs, files, script, at):
    place = jobs.place((script, at))
    assert outcome(place)[0] == -signal.SIGKILL
    client, _ = sweep(place)
    assert place.runs("RUNNING") == []
    assert {run.info.status for run in place.runs()} <= {"FINISHED", "KILLED"}
    check_files(place)
    champion = registry.champion_version(client, "loan-amount")
    if champion is None:
        assert not client.search_model_versions("name='loan-amount'") or script == TRAIN
        assert not [run for run in place.runs() if run.info.status == "FINISHED"]
        return
    allowed = {TRAIN: {"1"}, RETRAIN: {"1", "2"}}
    assert champion in allowed[script]
    if champion == "2":
        rows = pd.read_csv(files / "new.csv").head(5)
        assert np.isfinite(place.predict("models:/loan-amount@champion", rows)).all()


def test_kills_reach_every_part_of_a_run(jobs):
    statuses, champions = [], []
    for key in KILLS:
        place = jobs.place(key)
        sweep(place)
        statuses += [run.info.status for run in place.runs()][:1]
        champions.append(place.champion())
    print(f"faults: {len(KILLS)} kills; runs {statuses.count('KILLED')} swept")
    assert statuses.count("KILLED") >= 6
    assert {"1", "2"} <= set(champions)  # before and after the promotion
    assert len(KILLS) == 12


@pytest.mark.parametrize(("script", "at", "number"), SIGNALS)
def test_interrupted_process_ends_its_run_with_exit_code_130_and_one_line(jobs, script, at, number):
    place = jobs.place((script, at, number))
    code, err, _ = outcome(place)
    assert code == 130, err
    assert err.startswith("interrupted")
    assert err.count("\n") == 1
    assert [run.info.status for run in place.runs()] == ["KILLED", "FINISHED"]
    assert place.champion() in ("1", "2")
    check_files(place)


def test_killed_training_resumed_ends_with_the_bits_of_an_uninterrupted_one(jobs, trained):
    place = jobs.place("resume")
    assert outcome(place, 0)[0] == -signal.SIGKILL
    assert outcome(place, 1)[0] == 0, outcome(place, 1)
    (run,) = place.runs()
    assert run.info.status == "FINISHED"
    champion = place.load("models:/loan-amount/1")
    assert alike(champion, trained.load(trained.uri))
    for key in ("MAE", "MSE", "R2", "epoch/loss", "epoch/val_mae", "epoch/final_loss"):
        assert run.data.metrics[key] == trained.run.data.metrics[key]


@pytest.mark.parametrize("script", [TRAIN, RETRAIN])
def test_store_lost_after_the_training_leaves_the_model_and_the_command_that_logs_it(jobs, script):
    place = jobs.place((script, "lost"))
    code, err, _ = outcome(place, 0)
    assert code == 2
    assert err.count("\n") == 1, err
    assert "log it with: " in err
    assert f"{script}.py" in err
    assert err.rstrip().endswith("--resume")
    name = "mlflow_model" if script == TRAIN else "retrained_mlflow_model"
    kept = place.load(str(place.folder / "models" / name))
    assert outcome(place, 1)[0] == 0, outcome(place, 1)
    logged = place.load("models:/loan-amount/2")
    assert alike(kept, logged)
    assert [run.info.status for run in place.runs()] == ["FINISHED", "FINISHED"]


def test_many_first_runs_at_once_in_an_empty_folder_all_finish(jobs):
    place = jobs.place("first runs")
    ends = [outcome(place, 0, copy) for copy in range(MANY)]
    assert [code for code, *_ in ends] == [0] * MANY, ends
    assert [run.info.status for run in place.runs()] == ["FINISHED"] * MANY
    versions = place.client.search_model_versions("name='loan-amount'")
    assert {str(v.version) for v in versions} == {str(i + 1) for i in range(MANY)}
    assert len(registry.history(place.client, "loan-amount")) == 1
    check_files(place)
    print(f"faults: {MANY} first runs at once")


def test_many_retrainings_at_once_promote_one_and_explain_every_refusal(jobs):
    place = jobs.place("retrainings")
    ends = [outcome(place, 0, copy) for copy in range(MANY)]
    assert [code for code, *_ in ends] == [0] * MANY, ends
    runs = place.runs("FINISHED")
    assert len(runs) == len(place.runs()) == MANY + 1
    retrainings = [run.data.tags for run in runs if run.data.tags["phase"] == "retraining"]
    verdicts = [tags["verdict"] for tags in retrainings]
    assert sorted(verdicts) == ["kept champion"] * (MANY - 1) + ["promoted"]
    lines = [line for _, _, out in ends for line in out.splitlines()]
    refused = [line for line in lines if re.match("kept champion, (the|another) ", line)]
    assert len(refused) == MANY - 1
    assert all("champion" in line[15:] for line in refused)
    assert place.champion("previous") == "1"
    check_files(place)
    print(f"faults: {MANY} retrainings of one champion at once")
