"""MLflow bookkeeping of a run: store, experiment, run life cycle, numbers, datasets, figures."""

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import mlflow
import pandas as pd
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy.exc import SQLAlchemyError

from . import cli, roles
from .errors import UserError, masked, reason

# An exception says all that these print, the first over a hundred lines.
for each in ("db.utils", "artifact.artifact_repo"):
    logging.getLogger(f"mlflow.store.{each}").setLevel(logging.CRITICAL)
HOST_TAG, PROCESS_TAG = "host", "process"
SQLITE = "sqlite:///"
LONGEST_PARAM = 6000  # characters, MLflow's limit
# MLflow's page of runs shows these columns where its address names this view.
VIEW_TAG = f"mlflow.sharedViewState.{cli.VIEW}"
METRICS = ("MAE", "new/MAE_difference", "new/MAE_parent", "prequential/MAE")
COLUMNS = ["attributes.`Models`", *(f"metrics.`{name}`" for name in METRICS)]
COLUMNS += ["params.`data`", "tags.`verdict_kind`"]


def connect(tracking_uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """Open the tracking store, making it where it does not exist; return (client, experiment id).

    Runs of this machine whose process is gone are marked KILLED. UserError for an unusable store.
    """
    # MLflow's own retries would take minutes, in silence.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        if tracking_uri.startswith("http"):
            requests.get(tracking_uri, timeout=5)  # any answer will do, also "no password"
        elif tracking_uri.startswith(SQLITE):
            _check_sqlite(_file_of(tracking_uri))
        elif re.split("[+:]", tracking_uri)[0] in DATABASE_ENGINES:
            sqlalchemy.create_engine(tracking_uri).connect().close()
        mlflow.set_tracking_uri(tracking_uri)
        client = MlflowClient(tracking_uri)
        experiment_id = _experiment(client, tracking_uri, experiment)
        here = f"attributes.status = 'RUNNING' and tags.{HOST_TAG} = '{platform.node()}'"
        for run in client.search_runs([experiment_id], here):
            process = run.data.tags.get(PROCESS_TAG, "")
            pid = process.split(":")[0]
            if pid.isdigit() and process_identity(int(pid)) != process:
                client.set_terminated(run.info.run_id, "KILLED")
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise UserError(
            f"the tracking store {masked(tracking_uri)} cannot be used "
            f"({reason(error)}); expected a running 'mlflow server' at http://HOST:PORT, or a "
            "database sqlite:///FILE.db in a folder that exists, writable and not locked: start or "
            "mend it, or pass another --tracking-uri"
        ) from error
    return client, experiment_id


def _file_of(tracking_uri: str) -> Path:
    return Path(sqlalchemy.make_url(tracking_uri).database or "").absolute()


def _check_sqlite(file: Path) -> None:
    """Create the database where there is none; refuse one of another program."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if not file.exists():
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.parent) as folder:
            new = Path(folder, "new.db")
            # In a URI "?" and "%" mean something else, which a relative path seldom has.
            place = os.path.relpath(new) if {*"?%"} & {*str(new)} else new
            SqlAlchemyStore(f"{SQLITE}{place}", str(file.parent / "mlruns")).engine.dispose()
            with contextlib.suppress(FileExistsError):  # of several first runs, one is the first
                os.link(new, file)
    with contextlib.closing(sqlite3.connect(file, timeout=10)) as database:
        tables = database.execute("select name from sqlite_master").fetchall()
    if tables and ("alembic_version",) not in tables:
        raise UserError(
            f"{file} belongs to another program; expected a database of MLflow: pass another "
            "--tracking-uri"
        )


def _experiment(client: MlflowClient, tracking_uri: str, name: str) -> str:
    found, view = client.get_experiment_by_name(name), json.dumps({"selectedColumns": COLUMNS})
    if found is None:
        place = None
        if tracking_uri.startswith(SQLITE):  # artifacts stay beside their database
            folder = _file_of(tracking_uri).parent / "mlruns"
            place = (folder / hashlib.sha256(name.encode()).hexdigest()[:12]).as_uri()
        try:
            client.create_experiment(name, place, {VIEW_TAG: view})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
        return _experiment(client, tracking_uri, name)
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"the experiment {name!r} was deleted; bring it back with 'mlflow experiments restore "
            f"-x {found.experiment_id}' or choose another name with --experiment"
        )
    if found.tags.get(VIEW_TAG) != view:
        client.set_experiment_tag(found.experiment_id, VIEW_TAG, view)
    return found.experiment_id


def process_identity(pid: int) -> str:
    """Name a process by number and start; "" when it is gone, or where no /proc tells."""
    with contextlib.suppress(OSError):
        return f"{pid}:{Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[19]}"
    return ""


def _check_run(run_id: str | None) -> None:
    """Raise UserError for a run of the environment that is over: MLflow would write over it."""
    if not run_id:
        return
    status = "unknown"
    with contextlib.suppress(MlflowException):
        status = mlflow.get_run(run_id).info.status
    if status not in ("RUNNING", "SCHEDULED"):
        raise UserError(
            f"MLFLOW_RUN_ID is {run_id!r}, a run that is {status}; expected one that is RUNNING: "
            "unset this variable"
        )


@contextlib.contextmanager
def tracked_run(
    experiment_id: str, name: str, tags: Mapping[str, str], run_id: str | None = None
) -> Iterator[mlflow.ActiveRun]:
    """Start a run, or let `run_id` go on; end it as FINISHED, KILLED (interrupted) or FAILED."""
    if not run_id:
        _check_run(os.environ.get("MLFLOW_RUN_ID"))
    all_tags = {HOST_TAG: platform.node(), PROCESS_TAG: process_identity(os.getpid()), **tags}
    try:
        with cli.uninterrupted():  # or it would begin unknown to us
            run = mlflow.start_run(run_id, experiment_id, name, tags=all_tags)
        yield run
        with cli.uninterrupted():
            mlflow.end_run("FINISHED")
    except BaseException as error:
        # A store that is lost cannot be told; the next start will mark the run KILLED.
        with contextlib.suppress(MlflowException, OSError), cli.uninterrupted():
            mlflow.end_run("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Say how to log a trained model later when it cannot be saved or logged."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the training is done but could not be logged ({reason(error)}); mend that, then "
            f"log it with: {cli.command('python', *sys.argv, '--resume')}"
        ) from error


def log_inputs(
    settings: Any, target: str, datasets: Mapping[str, pd.DataFrame], **more: object
) -> None:
    """Log settings, what else was decided, and the rows by what they are for, but no empty ones."""
    counts = {f"rows_{name}": len(table) for name, table in datasets.items()}
    values = {k: masked(v) for k, v in {**vars(settings), **more, **counts}.items()}
    keys = values.keys() - cli.NO_RESULT
    mlflow.log_params({key: values[key][:LONGEST_PARAM] for key in keys})
    filled = {name: roles.own_columns(table) for name, table in datasets.items() if len(table)}
    tags = [{"sha256": content_hash(table)} for table in filled.values()]
    options = {"name": Path(values["data"]).name, "targets": target}
    rows = [
        from_pandas(table, digest=tag["sha256"][:32], **options)
        for table, tag in zip(filled.values(), tags, strict=True)
    ]
    for patience in (0.1, 0.3, 1.0):  # another process may log the same rows at this instant
        with contextlib.suppress(MlflowException):
            return mlflow.log_inputs(rows, [*filled], tags)
        time.sleep(patience)
    return mlflow.log_inputs(rows, [*filled], tags)


def log_numbers(
    metrics: Mapping[str, float],
    curves: Mapping[str, list[float]],
    recipe: Mapping[str, object] | None = None,
) -> None:
    """Log to the active run, in one request: metrics, curves as "epoch/…", recipe as "recipe/…"."""
    points = [(key, 0, value) for key, value in metrics.items()]  # as of a model logged afterwards
    for key, values in curves.items():
        points += [(f"epoch/{key}", epoch, value) for epoch, value in enumerate(values, 1)]
    now = int(time.time() * 1000)
    logged = [Metric(key, float(value), now, step) for key, step, value in points]
    run = cast(Run, mlflow.active_run())  # none is a mistake of the caller's
    chosen = [Param(f"recipe/{key}", str(value)) for key, value in (recipe or {}).items()]
    MlflowClient().log_batch(run.info.run_id, logged, chosen)


def content_hash(table: pd.DataFrame) -> str:
    """Hash the values of a table row by row, whatever its index; hexadecimal."""
    hashes = pd.util.hash_pandas_object(table, index=False).to_numpy()
    return hashlib.sha256(hashes.tobytes()).hexdigest()


def log_figures(figures: Mapping[str, str]) -> None:
    """Log pictures, SVG by name, as files under `figures/`."""
    for name, svg in figures.items():
        mlflow.log_text(svg, f"figures/{name}.svg")
