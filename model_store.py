"""The one MLflow artifact: save it, log it, load it from any URI; register, promote, roll back.

Belongs here: everything that knows what lies inside a model folder and what the registry holds.
Not here: training, statistics, command lines.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import keras
import mlflow
import pandas as pd
import skops.io
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema
from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

import cli
import model_card
import tabular
from memory import Memory
from model_utils import TargetScale
from tabular import UserError

logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # no word on every validated example
HERE = Path(__file__).parent
CHAMPION, PREVIOUS = "champion", "previous"
PACKAGES = ("mlflow", "tensorflow", "keras", "scikit-learn", "skops", "pandas", "pyarrow", "numpy")
TRUSTED = ["numpy.dtype"]  # scikit-learn's imputer keeps the dtype it was fitted on
PARTS = {  # name of the MLflow artifact: file inside the model folder
    "network": "model.keras",
    "preprocessor": "preprocessor.skops",
    "memory": "memory.parquet",
    "seen": "seen_rows.parquet",
    "card": "card.json",
    "model_card": "model_card.md",
    "code": "tabular.py",
}


@dataclass
class TrainedModel:
    """Hold what one model URI holds; `card` is JSON, `uri` and `run_id` tell where it came from."""

    network: keras.Model
    preprocessor: Any
    schema: tabular.Schema
    scale: TargetScale | None = None
    memory: Memory = field(default_factory=Memory)
    card: dict = field(default_factory=dict)
    uri: str = ""
    run_id: str = ""
    model_id: str = ""


# --- saving ------------------------------------------------------------------------------------


def save_model(
    path: str,
    trained: TrainedModel,
    mlflow_model: Model | None = None,
    **_: object,
) -> None:
    """Save a model as an MLflow model folder with three flavors: python_function, keras, sklearn.

    `Model.log` calls this, and passes on what else it was given. Requirements are written, not
    inferred: inferring takes seconds in another process, and guesses wrong.
    """
    mlflow_model = mlflow_model or Model()
    with tempfile.TemporaryDirectory() as folder:
        files = _write_parts(Path(folder), trained)
        mlflow_model.add_flavor(
            "keras",
            data="artifacts",
            keras_module="keras",
            keras_version=keras.__version__,
            save_format="keras",
            save_exported_model=False,
            model_type="keras",
        )
        mlflow_model.add_flavor(
            "sklearn",
            pickled_model=f"artifacts/{PARTS['preprocessor']}",
            sklearn_version=version("scikit-learn"),
            serialization_format="skops",
            skops_trusted_types=TRUSTED,
        )
        mlflow.pyfunc.save_model(
            path,
            python_model=str(HERE / "served_model.py"),
            mlflow_model=mlflow_model,
            artifacts=files,
            pip_requirements=requirements(),
            signature=ModelSignature(outputs=Schema([ColSpec(DataType.double)])),
            input_example=_example(trained),
        )


def requirements() -> list[str]:
    """List the packages that a saved model needs, in their present versions."""
    return [f"{name}=={version(name)}" for name in PACKAGES]


def look_through_packages() -> None:
    """Do ahead, in a thread, what takes MLflow a third of a second when it saves the first model.

    It looks for the requirements among all files of all installed packages, and remembers them.
    """
    warn_dependency_requirement_mismatches(requirements())


def _write_parts(folder: Path, trained: TrainedModel) -> dict[str, str]:
    files = {part: folder / name for part, name in PARTS.items()}
    trained.network.save(files["network"])
    skops.io.dump(trained.preprocessor, files["preprocessor"])
    trained.memory.rows.to_parquet(files["memory"])
    trained.memory.seen.to_parquet(files["seen"])
    shutil.copyfile(tabular.__file__, files["code"])
    files["model_card"].write_text(model_card.write(trained.card, trained.schema), "utf-8")
    card = trained.card | {
        "schema": asdict(trained.schema),
        "target_scale": asdict(trained.scale) if trained.scale else None,
        "files": {PARTS[p]: sha256(f) for p, f in files.items() if p != "card"},
    }
    files["card"].write_text(json.dumps(card, ensure_ascii=False, indent=1), "utf-8")
    return {part: str(file) for part, file in files.items()}


def _example(trained: TrainedModel) -> pd.DataFrame | None:
    """Make an example row of typical values; a real row would show a person."""
    values: dict[str, object] = {}
    for name, fitted, columns in trained.preprocessor.transformers_:
        if name in ("numeric", "categorical_0"):
            typical = fitted.named_steps["impute"].statistics_
            values |= dict(zip(columns, typical.tolist(), strict=True))
    return pd.DataFrame([values])


def sha256(path: str | Path) -> str:
    """Hash a file's content, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def log_model(trained: TrainedModel, name: str, step: int = 0) -> str:
    """Log a model to the active run under `name`; return its `models:/m-…` URI."""
    info = Model.log(
        artifact_path=None,
        name=name,
        flavor=sys.modules[__name__],
        trained=trained,
        validate_serving_input=False,
        step=step,
        model_type="regressor",
    )
    return f"models:/{info.model_id}"


def save_folder(trained: TrainedModel, folder: Path) -> Path:
    """Save a model folder on disk; an older one of that name goes only once the new is complete.

    Returns the folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        pid = leftover.name.removeprefix(f".{folder.name}-").split("-")[0]
        if not (pid.isdigit() and Path("/proc", pid).exists()):
            shutil.rmtree(leftover, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-{os.getpid()}-", dir=folder.parent))
    try:
        save_model(str(beside / "new"), trained)
        with _alone_in(folder.parent):
            if folder.exists():
                folder.rename(beside / "old")
            try:
                (beside / "new").rename(folder)
            except OSError:
                (beside / "old").rename(folder)
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def save_preprocessor(preprocessor: object, path: Path) -> None:
    """Write a fitted preprocessor with joblib, and its hash beside it, never half.

    The hash of the file before is kept too: a process killed between the two leaves a valid pair.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, record = path.with_suffix(f".{os.getpid()}.part"), path.with_suffix(".pkl.sha256")
    record_beside = record.with_suffix(f".{os.getpid()}.part")
    try:
        joblib.dump(preprocessor, beside)
        with _alone_in(path.parent):
            before = [sha256(path)] if path.is_file() and is_ours(path) else []
            record_beside.write_text("\n".join([sha256(beside), *before]) + "\n")
            record_beside.replace(record)
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
        record_beside.unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Tell whether a preprocessor file has a hash that we recorded beside it."""
    record = path.with_suffix(".pkl.sha256")
    return record.is_file() and sha256(path) in record.read_text().split()


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from exchanging files in a folder at the same time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- loading -----------------------------------------------------------------------------------


def load_model(uri: str, preprocessor_path: Path) -> TrainedModel:
    """Load network, preprocessor, schema and memory from any model URI, running none of its code.

    A plain Keras model that another program logged has no preprocessor; it is read from
    `preprocessor_path`, provided that this project wrote that file.
    Raises UserError for a URI that leads nowhere, or to something else than a Keras model.
    """
    with tempfile.TemporaryDirectory() as download:
        folder = _download(uri, download)
        try:
            info = Model.load(folder / "MLmodel")
        except Exception as error:  # of YAML, of MLflow, of a key that is not there
            raise UserError(
                f"{uri} is damaged: its MLmodel file cannot be read; log the model again"
            ) from error
        if "keras" not in info.flavors and "tensorflow" not in info.flavors:
            raise UserError(
                f"{uri} holds a model of the flavors {', '.join(info.flavors)}; expected one with "
                "a Keras network: pass a URI that mlflow_monitoring.py printed"
            )
        card_file = folder / "artifacts" / PARTS["card"]
        if not card_file.exists():
            return _load_plain_keras(uri, info, folder, preprocessor_path)
        return _load_parts(uri, info, folder / "artifacts", card_file)


def _download(uri: str, folder: str) -> Path:
    try:
        local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
    except (MlflowException, OSError, ValueError) as error:
        reason = cli.reason(error)
        raise UserError(
            f"no model at {uri} ({reason}); expected a URI such as models:/loan-amount@champion, "
            "models:/loan-amount/1, runs:/RUN_ID/NAME or a model folder: see 'mlflow ui'"
        ) from error
    if not (local / "MLmodel").is_file():
        raise UserError(f"{uri} is not an MLflow model: it has no MLmodel file; pass its folder")
    return local


def _load_parts(uri: str, info: Model, folder: Path, card_file: Path) -> TrainedModel:
    files = {part: folder / name for part, name in PARTS.items()}
    try:
        card = json.loads(card_file.read_text("utf-8"))
        for name, expected in card["files"].items():
            if sha256(folder / Path(name).name) != expected:
                raise UserError(f"{uri} is damaged: {name} is not the file that was logged")
        untrusted = set(skops.io.get_untrusted_types(file=files["preprocessor"])) - set(TRUSTED)
        if untrusted:
            raise UserError(f"{uri} is refused: its preprocessor holds {min(untrusted)}")
        memory = Memory(pd.read_parquet(files["memory"]), pd.read_parquet(files["seen"]))
        columns: dict[str, Any] = {
            k: v if k == "target" else tuple(v) for k, v in card["schema"].items()
        }
        return TrainedModel(
            network=_load_network(uri, files["network"]),
            preprocessor=skops.io.load(files["preprocessor"], trusted=TRUSTED),
            schema=tabular.Schema(**columns),
            scale=TargetScale(**card["target_scale"]) if card["target_scale"] else None,
            memory=memory,
            card=card,
            uri=uri,
            run_id=info.run_id or card.get("run_id", ""),
            model_id=info.model_id or "",
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{uri} is incomplete ({error}); log the model again or pass another URI"
        ) from error


def _load_network(uri: str, file: Path) -> keras.Model:
    try:
        return keras.saving.load_model(file, safe_mode=True)
    except (ValueError, OSError, TypeError, KeyError) as error:
        reason = cli.reason(error)
        raise UserError(f"the network of {uri} cannot be loaded safely: {reason}") from error


def _load_plain_keras(uri: str, info: Model, folder: Path, pickle: Path) -> TrainedModel:
    flavor = info.flavors.get("keras") or info.flavors["tensorflow"]
    data = folder / flavor.get("data", "model")
    files = [data, *sorted(data.glob("*.keras")), data.with_suffix(".keras")]
    file = next((f for f in files if f.suffix == ".keras" and f.is_file()), None)
    if file is None:
        raise UserError(f"{uri} holds no .keras file; log the network with mlflow.keras.log_model")
    preprocessor = load_preprocessor(pickle, uri)
    network = _load_network(uri, file)
    schema = getattr(preprocessor, "schema_", None)
    schema = tabular.Schema(**schema) if schema else tabular.schema_of(preprocessor)
    trained = TrainedModel(network, preprocessor, schema, uri=uri, run_id=info.run_id or "")
    width = preprocessor.transform(_example(trained)).shape[1]
    if network.input_shape[-1] != width:
        raise UserError(
            f"the network of {uri} takes {network.input_shape[-1]} inputs, but {pickle} makes "
            f"{width}; expected the preprocessor that the network was trained with"
        )
    return trained


def load_preprocessor(path: Path, uri: str) -> Any:
    """Unpickle a preprocessor, but only a file whose recorded hash shows that we wrote it."""
    if not path.is_file():
        raise UserError(
            f"{uri} is a plain Keras model without a preprocessor, and there is no {path}; "
            "expected the preprocessor it was trained with: put it there"
        )
    if not is_ours(path):
        record = path.with_suffix(".pkl.sha256")
        raise UserError(
            f"{path} is not the file that mlflow_monitoring.py wrote, and unpickling it would run "
            f"its code; if you trust it: sha256sum {path} | cut -d' ' -f1 > {record}"
        )
    return joblib.load(path)


# --- registry ----------------------------------------------------------------------------------


def champion_version(client: MlflowClient, name: str, alias: str = CHAMPION) -> str | None:
    """Return the version an alias points at, as text, or None when there is none."""
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def register(client: MlflowClient, name: str, uri: str, description: str) -> str:
    """Register a logged model as the next version of `name`; return the version, as text."""
    with contextlib.redirect_stderr(io.StringIO()):  # MLflow tells of every version it makes
        made = mlflow.register_model(uri, name, await_registration_for=0)
    client.update_model_version(name, made.version, description)
    return str(made.version)


@contextlib.contextmanager
def registry_lock(client: MlflowClient, name: str, wait: float = 20.0) -> Iterator[None]:
    """Hold a lock that every client of the registry respects, whatever machine it runs on.

    Registered model names are unique in every MLflow store, so creating one is the atomic step. A
    lock older than `wait` seconds belongs to a process that died, and is removed.
    """
    lock, deadline = f"{name}.promotion-lock", time.monotonic() + 3 * wait
    while True:
        try:
            client.create_registered_model(lock)
            break
        except MlflowException:  # held by another process, or the database is busy
            if time.monotonic() > deadline:
                raise
        with contextlib.suppress(MlflowException):
            if time.time() - client.get_registered_model(lock).creation_timestamp / 1000 > wait:
                client.delete_registered_model(lock)
        time.sleep(0.1)
    try:
        yield
    finally:
        with contextlib.suppress(MlflowException):
            client.delete_registered_model(lock)


def promote(client: MlflowClient, name: str, new: str, expected: str | None) -> bool:
    """Move `@champion` to version `new`, and `@previous` to the one before.

    Only if `@champion` is still `expected`: returns False, changing nothing, when another process
    moved it since.
    """
    with registry_lock(client, name):
        current = champion_version(client, name)
        if current != expected:
            return False
        # First the memory of the past: a crash in between must not lose it.
        if current is not None:
            client.set_registered_model_alias(name, PREVIOUS, current)
        client.set_registered_model_alias(name, CHAMPION, new)
        _log_change(client, name, new, "promoted")
    return True


def roll_back(client: MlflowClient, name: str) -> tuple[str, str]:
    """Swap `@champion` and `@previous`; return (new champion, old champion).

    Raises UserError when there is nothing to go back to.
    """
    with registry_lock(client, name):
        current, before = champion_version(client, name), champion_version(client, name, PREVIOUS)
        if current is None or before is None:
            raise UserError(
                f"the registered model {name!r} has no @{PREVIOUS} version to go back to; expected "
                "at least one promotion before: see 'mlflow ui' for its versions"
            )
        client.set_registered_model_alias(name, CHAMPION, before)
        client.set_registered_model_alias(name, PREVIOUS, current)
        _log_change(client, name, before, "rolled back")
    return before, current


def history(client: MlflowClient, name: str) -> list[str]:
    """List who became champion when, oldest first."""
    return client.get_registered_model(name).tags.get("champion_history", "").splitlines()


def _log_change(client: MlflowClient, name: str, version: str, how: str) -> None:
    """Write the page of a registered model: champion, history, and what the champion's page says.

    A version's description begins with its result; its model card follows after an empty line.
    """
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lines = [*history(client, name), f"{when} version {version} {how}"][-50:]
    client.set_registered_model_tag(name, "champion_history", "\n".join(lines))
    latest = "\n".join(f"- {line}" for line in reversed(lines[-10:]))
    result, _, card = (client.get_model_version(name, version).description or "").partition("\n\n")
    parts = [f"**Champion: version {version}** ({how}).", result]
    parts += ["Who was champion when:", latest, card]
    client.update_registered_model(name, "\n\n".join(part for part in parts if part)[:5000])
