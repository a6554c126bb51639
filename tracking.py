"""MLflow bookkeeping of a run: store, experiment, run life cycle, curves, datasets, figures.

Belongs here: how a run is recorded. Not here: the model artifact and the registry
(`model_store.py`), or what the numbers mean.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

import cli
from tabular import UserError, row_hashes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from model_store import TrainedModel

# The exception says all that this logger prints over a hundred lines.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
NOT_PART_OF_A_TRAINING = {"resume", "quiet", "json", "checkpoint_seconds", "worker_timeout"}
NOT_PART_OF_A_TRAINING |= {"tracking_uri", "experiment"}
HOST_TAG, PROCESS_TAG = "host", "process"
OPENING = "opening MLflow's store"


# --- store -------------------------------------------------------------------------------------


def connect(tracking_uri: str, experiment: str, quiet: bool = True) -> tuple[MlflowClient, str]:
    """Open the tracking store, making it where it does not exist; return (client, experiment id).

    A terminal is shown that this is being done, unless `quiet`.
    Runs of this machine whose process is gone are marked KILLED on the way.
    Raises UserError when the store cannot be used.
    """
    if tracking_uri.startswith(("http://", "https://")):
        _check_server(tracking_uri)
    elif tracking_uri.startswith("sqlite:///"):
        _check_sqlite(Path(tracking_uri.removeprefix("sqlite:///")), quiet)
    else:
        known = ("postgresql", "mysql", "mssql", "databricks")
        if not tracking_uri.startswith(known):
            raise UserError(
                f"the tracking URI {tracking_uri!r} is no store that MLflow still writes to; "
                "expected sqlite:///FILE.db or http://HOST:PORT: pass one with --tracking-uri"
            )
    mlflow.set_tracking_uri(tracking_uri)
    client = MlflowClient(tracking_uri)
    try:
        with cli.quiet_start(OPENING, quiet):  # Alembic speaks while MLflow opens a database
            experiment_id = _experiment(client, tracking_uri, experiment)
        _sweep(client, experiment_id)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the tracking store {tracking_uri} does not work ({cli.reason(error)}); check that "
            "it is reachable and writable, or pass another one with --tracking-uri"
        ) from error
    return client, experiment_id


def _check_server(uri: str) -> None:
    # MLflow's own retries would take four silent minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    question = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        with urllib.request.urlopen(question, timeout=5) as answer:
            answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        if getattr(error, "code", 500) < 500:
            return  # it wants a password, which MLflow's own client knows
        raise UserError(
            f"the tracking server {uri} does not answer ({getattr(error, 'reason', error)}); "
            "expected a running 'mlflow server': start it or pass another --tracking-uri"
        ) from error


def _check_sqlite(file: Path, quiet: bool) -> None:
    if file.exists():
        try:
            with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
                tables = database.execute("select name from sqlite_master").fetchall()
        except sqlite3.OperationalError as error:
            raise UserError(
                f"the database {file} cannot be read ({error}); expected one that no other program "
                "keeps locked: wait for that program, check the permissions or pass another "
                "--tracking-uri"
            ) from error
        except sqlite3.Error as error:
            raise UserError(
                f"{file} is no SQLite database ({error}); pass another --tracking-uri"
            ) from error
        if tables and ("alembic_version",) not in tables:
            raise UserError(f"{file} belongs to another program; pass another --tracking-uri")
        if not os.access(file, os.W_OK):
            raise UserError(f"the database {file} is read-only; make it writable")
        return
    if not file.absolute().parent.is_dir():
        raise UserError(f"no folder {file.absolute().parent} for the database; create it first")
    _create_sqlite(file, quiet)


def _create_sqlite(file: Path, quiet: bool) -> None:
    """Create an MLflow database under another name and publish it complete.

    Several first runs at once would otherwise create the tables in each other's way; the link
    fails for all of them but one, which then use the database of that one.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    try:
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.absolute().parent) as folder:
            new = Path(folder, "new.db")
            with cli.quiet_start(OPENING, quiet):
                store = SqlAlchemyStore(f"sqlite:///{new}", str(file.absolute().parent / "mlruns"))
            store.engine.dispose()
            with contextlib.suppress(FileExistsError):
                os.link(new, file)
    except OSError as error:
        raise UserError(
            f"cannot create the database {file}: {error.strerror}; make the folder writable or "
            "pass another --tracking-uri"
        ) from error


def _experiment(client: MlflowClient, tracking_uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None
        if tracking_uri.startswith("sqlite:///"):  # artifacts stay beside their database
            folder = Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent / "mlruns"
            place = (folder / hashlib.sha256(name.encode()).hexdigest()[:12]).as_uri()
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"the experiment {name!r} was deleted; bring it back with 'mlflow experiments restore "
            f"-x {found.experiment_id}' or choose another name with --experiment"
        )
    return found.experiment_id


# --- run ---------------------------------------------------------------------------------------


def _process_tag(pid: int) -> str | None:
    """Name a living process so that a later one with the same number is told apart."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else f"{pid}"
    return f"{pid}:{started}"


def _sweep(client: MlflowClient, experiment_id: str) -> None:
    mine = f"tags.{HOST_TAG} = '{platform.node()}'"
    for run in client.search_runs([experiment_id], f"attributes.status = 'RUNNING' and {mine}"):
        process = run.data.tags.get(PROCESS_TAG, "")
        pid = process.split(":")[0]
        if pid.isdigit() and _process_tag(int(pid)) != process:
            client.set_terminated(run.info.run_id, "KILLED")


def checkpoint_file(arguments: argparse.Namespace, script: str, *inputs: str) -> Path:
    """Name the checkpoint of a command: equal for equal arguments and inputs, and only for those.

    Without `--resume` an old one is removed; with it, its absence is a UserError.
    """
    same = {k: str(v) for k, v in vars(arguments).items() if k not in NOT_PART_OF_A_TRAINING}
    key = hashlib.sha256(repr((script, sorted(same.items()), inputs)).encode()).hexdigest()[:16]
    file = arguments.models_dir / f"checkpoint-{key}.npz"
    if not arguments.resume:
        file.unlink(missing_ok=True)
    elif not file.is_file():
        raise UserError(
            f"--resume found no checkpoint of this command in {arguments.models_dir}; expected one "
            "of the same arguments and data: repeat them exactly, or start without --resume"
        )
    return file


@contextlib.contextmanager
def tracked_run(
    experiment_id: str, name: str, tags: dict[str, str], run_id: str | None = None
) -> Iterator[mlflow.ActiveRun]:
    """Start a run and end it as FINISHED, KILLED (interrupted) or FAILED (any other exception).

    With `run_id` that run goes on.
    """
    tags = tags | {HOST_TAG: platform.node(), PROCESS_TAG: _process_tag(os.getpid()) or ""}
    tags |= _git_commit()
    try:
        with cli.uninterrupted():  # or it would begin unknown to us
            run = mlflow.start_run(run_id, experiment_id=experiment_id, run_name=name, tags=tags)
        yield run
        with cli.uninterrupted():
            mlflow.end_run("FINISHED")
    except BaseException as error:
        # A store that is lost cannot be told; the next start will mark the run KILLED.
        with contextlib.suppress(MlflowException, OSError), cli.uninterrupted():
            mlflow.end_run("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


def _git_commit() -> dict[str, str]:
    """Read the commit of this project's code, without GitPython's slow import."""
    words = ["describe", "--always", "--dirty", "--abbrev=40"]
    command = ["git", "-C", str(Path(__file__).parent), *words]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return {"mlflow.source.git.commit": answer.stdout.strip()}
    return {}


@contextlib.contextmanager
def kept_if_logging_fails(save: Callable[[], Path]) -> Iterator[None]:
    """Save a trained model on disk when it cannot be logged, and say how to log it later."""
    try:
        yield
    except (MlflowException, OSError) as error:
        try:
            kept = f"the model is in {save()}"
        except OSError as full:
            kept = f"the model could not be saved either ({full}), but its checkpoint is there"
        command = cli.command("python", *sys.argv, "--resume")
        raise UserError(
            f"the training is done but could not be logged ({cli.reason(error)}); {kept}: once the "
            f"store works again, log it with: {command}"
        ) from error


def log_arguments(client: MlflowClient, run_id: str, arguments: dict) -> None:
    """Log all arguments of a run as parameters, in one request."""
    names = [name for name in arguments if name not in ("resume", "quiet", "json")]
    params = [Param(name, str(arguments[name])[:6000]) for name in names]
    client.log_batch(run_id, params=params)


def log_numbers(
    client: MlflowClient,
    run_id: str,
    metrics: dict[str, float],
    curves: dict[str, list[float]] | None = None,
    tags: dict[str, str] | None = None,
    step: int = 0,
) -> None:
    """Log metrics, per-epoch curves and tags in one request for every thousand points.

    Metrics at the `step` that a model is logged at show on the model's page.
    """
    now = int(time.time() * 1000)
    points = [Metric(key, float(value), now, step) for key, value in metrics.items()]
    for key, values in (curves or {}).items():
        points += [Metric(key, float(v), now, epoch) for epoch, v in enumerate(values, 1)]
    tag_list = [RunTag(key, str(value)) for key, value in (tags or {}).items()]
    for start in range(0, max(len(points), 1), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000], tags=tag_list)
        tag_list = []


def log_rows(
    rows: pd.DataFrame, target: str, name: str, context: str, sha256: str | None = None
) -> None:
    """Log a dataset as input of the active run: its columns, its size, its full content hash.

    rows: features and target; `sha256` is given where they are but a sample of the dataset.
    """
    sha256 = sha256 or content_hash(row_hashes(rows.drop(columns=target), rows[target]))
    dataset = from_pandas(rows, name=Path(name).name, targets=target, digest=sha256[:32])
    for patience in (0.1, 0.3, 1.0, 0):
        try:
            mlflow.log_input(dataset, context=context, tags={"sha256": sha256})
            break
        except MlflowException:  # another process was logging the same rows at this instant
            if not patience:
                raise
            time.sleep(patience)


def content_hash(hashes: np.ndarray, rows: np.ndarray | None = None) -> str:
    """Hash the hashes of rows (or of some, by number), in order: equal for equal tables, hex."""
    digest, block = hashlib.sha256(), 1_000_000
    for start in range(0, len(hashes if rows is None else rows), block):
        part = slice(start, start + block)
        digest.update(np.ascontiguousarray(hashes[part if rows is None else rows[part]]).data)
    return digest.hexdigest()


def log_figures(figures: Mapping[str, "Figure"]) -> None:
    """Log matplotlib figures as PNG files under `figures/`."""
    with tempfile.TemporaryDirectory() as folder:
        for name, figure in figures.items():
            # Not `savefig`: it draws everything twice.
            FigureCanvasAgg(figure).print_png(Path(folder, f"{name}.png"))
        mlflow.log_artifacts(folder, "figures")


def log_files(files: dict[str, str]) -> None:
    """Log texts as files of the active run."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, "utf-8")
        mlflow.log_artifacts(folder)


def link(client: MlflowClient, parent: "TrainedModel") -> str:
    """Link to a parent's page in the MLflow UI, as Markdown; its plain URI if it has none."""
    with contextlib.suppress(MlflowException):
        if parent.model_id:
            place = client.get_logged_model(parent.model_id).experiment_id
            return f"[{parent.uri}](#/experiments/{place}/models/{parent.model_id})"
    return f"`{parent.uri}`"


def ui_steps(args: argparse.Namespace, experiment_id: str) -> list[str]:
    """Say how to look at an experiment: the command to paste, and the address to open."""
    address = f"open {deep_link(args.tracking_uri, experiment_id)}"
    if args.tracking_uri.startswith("http"):
        return [address]  # its server shows it
    store = [] if args.tracking_uri == cli.STORE else ["--backend-store-uri", args.tracking_uri]
    return [cli.command("mlflow", "ui", *store), f"then {address}"]


def deep_link(tracking_uri: str, experiment_id: str) -> str:
    """Give the address of the experiment's runs in the MLflow UI."""
    base = tracking_uri if tracking_uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
