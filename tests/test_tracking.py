"""Claims about tracking.py: the store, the end of every run, curves, datasets."""

import json
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from toolkit import cli, tracking
from toolkit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def store(tmp_path, empty_store):
    """Open a store of its own: (client, experiment id)."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tracking.connect(f"sqlite:///{tmp_path}/mlflow.db", "test")


AT_ONCE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from toolkit import tracking  # once, then three processes that have only to connect
children = []
for number in range(3):
    children.append(os.fork())
    if not children[-1]:
        client, experiment_id = tracking.connect("sqlite:///mlflow.db", "shared")
        client.log_param(client.create_run(experiment_id).info.run_id, "number", number)
        os._exit(0)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


@pytest.fixture(scope="module")
def at_once(spare, tmp_path_factory):
    """Let three processes open a store at once that does not exist yet."""
    return spare("-c", AT_ONCE, ROOT, folder=tmp_path_factory.mktemp("together"))


@pytest.fixture(scope="module")
def silent_server():
    """Connect, in a thread, to a server that never answers: (error, seconds)."""

    def connect(port):
        start = time.monotonic()
        with pytest.raises(UserError) as caught:
            tracking.connect(f"http://127.0.0.1:{port}", "any")
        return caught.value, time.monotonic() - start

    with socket.socket() as silent, ThreadPoolExecutor(1) as pool:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield pool.submit(connect, silent.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def _start_early(at_once, silent_server):
    """Let processes and thread work while the first tests run."""


# --- store


@pytest.mark.parametrize("end", ["", "/"])
def test_server_that_does_not_answer_is_told_within_seconds(end):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be used .*running 'mlflow server'"):
        tracking.connect(f"http://127.0.0.1:{port}{end}", "any")
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlflow.db", "nonsense://x"])
def test_uri_of_no_store_that_can_be_written_is_refused(uri):
    with pytest.raises(UserError, match=r"cannot be used .*http://HOST:PORT.*sqlite:///FILE\.db"):
        tracking.connect(uri, "any")


def test_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "mlflow.db"
    file.write_text("my diary, chapter one")
    with pytest.raises(UserError, match=r"cannot be used .file is not a database"):
        tracking.connect(f"sqlite:///{file}", "any")
    assert file.read_text() == "my diary, chapter one"


def test_database_in_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing/mlflow\.db cannot be used .*folder that exists"):
        tracking.connect(f"sqlite:///{tmp_path}/missing/mlflow.db", "any")


def test_database_of_another_program_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(file) as database:
        database.execute("create table experiments (mine integer)")
    before = file.read_bytes()
    with pytest.raises(UserError, match="belongs to another program"):
        tracking.connect(f"sqlite:///{file}", "any")
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b &é"])
def test_folder_may_have_any_name(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    database = f"{len(name)}.db"  # MLflow takes a store of the same relative URI for the same
    _, experiment = tracking.connect(f"sqlite:///{database}", "any")
    with tracking.tracked_run(experiment, "a", {}):
        mlflow.log_text("hello", "note.txt")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / database).is_file()
    assert [*tmp_path.rglob("note.txt")] == [*(tmp_path / name / "mlruns").rglob("note.txt")] != []


def test_artifacts_lie_beside_the_database_wherever_the_process_runs(store, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with tracking.tracked_run(store[1], "a", {}):
        mlflow.log_text("hello", "note.txt")
    (note,) = tmp_path.rglob("note.txt")
    assert note.relative_to(tmp_path).parts[0] == "mlruns"
    assert not list(elsewhere.iterdir())


def test_experiments_of_like_names_do_not_share_a_folder(tmp_path, store):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    names = ["a/b", "a_b", "a b", "../a"]
    places = set()
    for name in names:
        client, experiment_id = tracking.connect(uri, name)
        assert tracking.connect(uri, name)[1] == experiment_id
        places.add(client.get_experiment(experiment_id).artifact_location)
    assert len(places) == len(names)
    assert all(Path(place[7:]).parent == tmp_path / "mlruns" for place in places)


def test_deleted_experiment_is_refused_with_the_command_that_brings_it_back(store, tmp_path):
    client, number = store
    client.delete_experiment(number)
    with pytest.raises(UserError, match=f"mlflow experiments restore -x {number}"):
        tracking.connect(f"sqlite:///{tmp_path}/mlflow.db", "test")


def test_experiment_made_by_others_gets_the_view_that_the_address_names(store, tmp_path):
    client, _ = store
    made = client.create_experiment("made by hand")
    tracking.connect(f"sqlite:///{tmp_path}/mlflow.db", "made by hand")
    for name in ("test", "made by hand"):
        tags = client.get_experiment_by_name(name).tags
        assert json.loads(tags[tracking.VIEW_TAG])["selectedColumns"] == tracking.COLUMNS
    assert client.get_experiment(made).name == "made by hand"


def test_first_runs_at_once_all_work_and_share_one_store(at_once):
    assert at_once.wait() == 0, at_once.err
    assert at_once.err == ""
    folder = at_once.files[0].parent
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("shared").experiment_id])
    assert {run.data.params["number"] for run in runs} == {"0", "1", "2"}
    assert {path.name for path in folder.iterdir() if path not in at_once.files} == {"mlflow.db"}


def test_server_that_accepts_but_keeps_silent_is_told_within_seconds(silent_server):
    error, seconds = silent_server.result()
    assert "cannot be used" in str(error)
    assert seconds < 12


# --- life of a run


def start_run(client, experiment_id, host, process):
    tags = {tracking.HOST_TAG: host, tracking.PROCESS_TAG: process}
    return client.create_run(experiment_id, tags=tags).info.run_id


def test_runs_of_dead_processes_are_marked_killed_and_others_left_alone(store, tmp_path):
    client, experiment_id = store
    dead = subprocess.Popen([sys.executable, "-c", ""])
    alive = subprocess.Popen(["sleep", "60"])
    try:
        names = {"dead": dead.pid, "alive": alive.pid, "mine": os.getpid()}
        tags = {name: tracking.process_identity(pid) for name, pid in names.items()}
        dead.wait()
        tags["number reused"] = f"{alive.pid}:1"
        here = platform.node()
        runs = {name: start_run(client, experiment_id, here, tag) for name, tag in tags.items()}
        runs["elsewhere"] = start_run(client, experiment_id, "another host", tags["dead"])
        runs["not ours"] = client.create_run(experiment_id).info.run_id
        tracking.connect(f"sqlite:///{tmp_path}/mlflow.db", "test")
    finally:
        alive.kill()
        alive.wait()
    found = {name: client.get_run(run).info.status for name, run in runs.items()}
    killed = {"dead", "number reused"}
    assert found == {name: "KILLED" if name in killed else "RUNNING" for name in runs}


def test_process_is_named_by_its_start_and_not_at_all_where_there_is_no_proc(monkeypatch):
    assert tracking.process_identity(os.getpid()).startswith(f"{os.getpid()}:")
    monkeypatch.setattr(Path, "read_text", lambda path: Path.stat("/no/proc"))
    assert tracking.process_identity(os.getpid()) == ""


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (UserError, "FAILED"), (OSError, "FAILED")],
)
def test_run_ends_with_the_status_of_what_happened_in_it(store, error, status):
    client, experiment_id = store
    caught = None
    try:
        with tracking.tracked_run(experiment_id, "a", {"colour": "red"}) as run:
            if error:
                raise error("planted")
    except (KeyboardInterrupt, UserError, OSError) as raised:
        caught = type(raised)
    assert caught is error
    ended = client.get_run(run.info.run_id)
    assert (ended.info.status, ended.info.run_name) == (status, "a")
    assert ended.data.tags["colour"] == "red"
    assert ended.data.tags[tracking.HOST_TAG] == platform.node()
    assert ended.data.tags[tracking.PROCESS_TAG].startswith(f"{os.getpid()}:")
    assert mlflow.active_run() is None


def test_run_can_go_on_where_it_was_interrupted(store):
    client, experiment_id = store
    with pytest.raises(KeyboardInterrupt), tracking.tracked_run(experiment_id, "a", {}) as run:
        raise KeyboardInterrupt
    with tracking.tracked_run(experiment_id, "a", {}, run.info.run_id) as again:
        assert again.info.run_id == run.info.run_id
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert len(client.search_runs([experiment_id])) == 1


@pytest.mark.parametrize("known", [True, False])
def test_run_of_the_environment_that_is_over_is_left_alone(store, monkeypatch, known):
    client, experiment_id = store
    run_id, status = "0" * 32, "unknown"
    if known:
        with tracking.tracked_run(experiment_id, "a", {}) as run:
            run_id, status = run.info.run_id, "FINISHED"
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with (
        pytest.raises(UserError, match=f"MLFLOW_RUN_ID is '{run_id}', a run that is {status}; exp"),
        tracking.tracked_run(experiment_id, "b", {"colour": "red"}),
    ):
        pass
    runs = client.search_runs([experiment_id])
    assert [(each.info.run_name, each.info.status) for each in runs] == [("a", status)] * known


def test_run_of_the_environment_that_waits_is_used(store, monkeypatch):
    client, experiment_id = store
    waiting = client.create_run(experiment_id).info.run_id  # as 'mlflow run' makes it
    monkeypatch.setenv("MLFLOW_RUN_ID", waiting)
    with tracking.tracked_run(experiment_id, "b", {}) as run:
        assert run.info.run_id == waiting
    assert client.get_run(waiting).info.status == "FINISHED"


@pytest.mark.parametrize("error", [OSError("disk full"), MlflowException("no connection")])
def test_command_that_logs_the_model_later_is_named_when_it_cannot_be_logged(monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["mlflow_retrain.py", "--data", "new.csv"])
    words = r"could not be logged \((disk full|no connection)\); .*--data new\.csv --resume"
    with pytest.raises(UserError, match=words), tracking.resumable():
        raise error


# --- numbers and rows


def test_long_curves_and_metrics_are_logged_completely(store):
    client, experiment_id = store
    curve = np.linspace(1, 0, 1700).tolist()
    with tracking.tracked_run(experiment_id, "a", {}) as run:
        numbers = {"MAE": 3.5, "R2": 0.25}
        tracking.log_numbers(numbers, {"loss": curve})
    logged = client.get_metric_history(run.info.run_id, "epoch/loss")
    assert [(m.step, m.value) for m in logged] == list(enumerate(curve, 1))
    assert [m.step for m in client.get_metric_history(run.info.run_id, "MAE")] == [0]
    data = client.get_run(run.info.run_id).data
    assert (data.metrics["MAE"], data.metrics["R2"]) == (3.5, 0.25)


@dataclass
class Settings(cli.StoreSettings):
    """Settings of a script that does not exist."""

    data: str = "folder/rows.csv"
    words: tuple = ("x", "y z")
    long: str = "long " * 5000
    none: str | None = None


def test_settings_of_any_length_and_kind_are_logged(store):
    client, experiment_id = store
    with tracking.tracked_run(experiment_id, "a", {}) as run:
        settings = Settings(model_name="m")
        tracking.log_inputs(settings, "y", {}, rows=7)
    params = client.get_run(run.info.run_id).data.params
    expected = {"words": "('x', 'y z')", "none": "None", "rows": "7", "model_name": "m"}
    assert {key: params[key] for key in expected} == expected
    assert params["long"].startswith("long long ")
    assert not {"quiet", "json"} & set(params)


def test_dataset_hash_changes_with_one_value_and_not_with_the_index(store):
    client, experiment_id = store
    rows = pd.DataFrame({"x": [1.0, 2.0, 3.0], "c": ["a", "b", "a"], "y": [1.0, 2.0, 4.0]})
    tables = {
        "same": rows,
        "same again": rows.set_index(pd.Index([7, 8, 9])),
        "x": rows.assign(x=[1.0, 2.0, 3.5]),
        "c": rows.assign(c=["a", "b", "b"]),
        "y": rows.assign(y=[1.0, 2.0, 5.0]),
    }
    with tracking.tracked_run(experiment_id, "a", {}) as run:
        for context, table in tables.items():
            tracking.log_inputs(Settings(), "y", {context: table})
    inputs = client.get_run(run.info.run_id).inputs.dataset_inputs
    tags = [{tag.key: tag.value for tag in one.tags} for one in inputs]
    found = {t["mlflow.data.context"]: t["sha256"] for t in tags}
    # MLflow keeps equal content under one entry, with the context it was logged for first.
    assert set(tables) - set(found) <= {"same", "same again"}
    assert len(set(found.values())) == len(inputs) == 4
    assert all(len(value) == 64 for value in found.values())
    assert {one.dataset.name for one in inputs} == {"rows.csv"}


def test_figures_are_files_of_the_run(store):
    client, experiment_id = store
    with tracking.tracked_run(experiment_id, "a", {}) as run:
        tracking.log_figures({"curve": "<svg/>"})
    assert [f.path for f in client.list_artifacts(run.info.run_id, "figures")] == [
        "figures/curve.svg"
    ]
