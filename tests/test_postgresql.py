"""Claims about a real tracking server: PostgreSQL behind `mlflow server`, two clients at once."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, Place

from toolkit import tracking
from toolkit.errors import UserError
from toolkit.tables import open_table

FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not FOUND, reason="no PostgreSQL: apt install postgresql"),
    pytest.mark.skipif(
        importlib.util.find_spec("psycopg") is None,
        reason="no driver: pip install 'psycopg[binary]'",
    ),
]


@pytest.fixture(scope="module")
def database():
    """Start PostgreSQL on loopback, as a user that is not root; give its URI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    programs = FOUND[-1].parent
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        other = {}
        if os.geteuid() == 0:
            other = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(folder, "nobody", "nogroup")
        data = f"{folder}/data"
        make = [programs / "initdb", "-D", data, "-U", "mlflow", "-A", "trust", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, **other)
        serve = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", port, "-k", "", "-F"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(serve, cwd=folder, **quiet, **other)
        try:
            wait_until_ready([programs / "pg_isready", "-h", "127.0.0.1", "-p", port])
            yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing need be kept
            server.wait(10)


def wait_until_ready(question: list) -> None:
    deadline = time.monotonic() + 20
    while subprocess.run(question, capture_output=True).returncode != 0:
        assert time.monotonic() < deadline, "PostgreSQL did not start"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def places(launch, spare, database, files, tmp_path_factory) -> list[Place]:
    """Train and retrain one registered model with two clients at once, each in its own folder."""
    serve = "-m mlflow server --host 127.0.0.1 --port {port} --workers 1"
    stores = ["--backend-store-uri", database, "--artifacts-destination", "./artifacts"]
    server = launch(*serve.split(), *stores, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    server.ready("/health")
    places = [Place(tmp_path_factory.mktemp(f"client_{i}"), server.url) for i in (0, 1)]
    flags = ["--tracking-uri", server.url, "--experiment", "loans", "--epochs", 2]
    both(spare, places, "mlflow_monitoring.py", *flags, "--data", files / "old.csv")
    retrain = ["--data", files / "new.csv", "--no-controls", "--promote", "always"]
    both(spare, places, "mlflow_retrain.py", *flags, *retrain)
    return places


def both(start, places: list[Place], script: str, *flags) -> None:
    started = [start(ROOT / script, *flags, folder=place.folder) for place in places]
    for process in started:
        assert process.wait() == 0, process.err
        assert process.err == ""


def test_two_clients_at_once_finish_all_their_runs(places):
    runs = places[0].runs()
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert all(run.info.artifact_uri.startswith("mlflow-artifacts:/") for run in runs)
    versions = places[0].client.search_model_versions("name = 'loan-amount'")
    assert sorted(int(version.version) for version in versions) == [1, 2, 3, 4]
    assert {version.run_id for version in versions} == {run.info.run_id for run in runs}
    for place in places:
        assert not (place.folder / "mlruns").exists()


def test_one_champion_came_out_of_it_and_can_be_rolled_back(places):
    done = {"phase": "retraining", "verdict": "promoted"}.items()
    promoted = [run for run in places[0].runs() if done <= run.data.tags.items()]
    versions = places[0].client.search_model_versions("name = 'loan-amount'")
    of_run = {version.run_id: str(version.version) for version in versions}
    before = (places[0].champion(), places[0].champion("previous"))
    assert before[0] in {of_run[run.info.run_id] for run in promoted}
    assert places[1].retrain("--rollback") == 0, places[1].err
    assert (places[0].champion(), places[0].champion("previous")) == before[::-1]


def test_champion_is_loaded_over_http_and_scores_raw_rows(places, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = pd.read_csv(files / "new.csv")
    prediction = places[1].predict("models:/loan-amount@champion", rows)
    assert len(prediction) == len(rows)
    assert pd.Series(prediction).between(0, 100_000).all()


def test_percent_in_a_query_is_a_sign_of_sql(database):
    url = database.replace("postgresql:", "postgresql+psycopg:")
    query = "SELECT 7 % 4 AS rest, 'a%s' AS text WHERE 'abc' LIKE 'a%'"
    (rows,) = open_table(url, query).blocks()
    assert rows.to_dict("list") == {"rest": [3], "text": ["a%s"]}


def test_database_that_does_not_answer_is_told_within_seconds():
    start = time.monotonic()
    with pytest.raises(UserError, match=r"127.0.0.1:1/x cannot be used .*running 'mlflow server'"):
        tracking.connect("postgresql+psycopg://127.0.0.1:1/x", "any")
    assert time.monotonic() - start < 8
