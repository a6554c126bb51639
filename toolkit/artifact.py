"""The one MLflow artifact: save it, log it, load it from any URI without running its code.

Everything that knows what lies inside a model folder. Not here: training, versions and aliases.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import joblib
import keras
import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema

from . import cli, tracking
from .encoding import Preprocessor
from .errors import UserError
from .roles import Roles

logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # no word on every validated example
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # nor on every network that is compiled
HERE = Path(__file__).parent
PACKAGES = ("mlflow", "tensorflow", "keras", "pandas", "pyarrow", "numpy")
TRAVELLING = ("__init__.py", "errors.py", "columns.py", "encoding.py")
PARTS = {  # name of the MLflow artifact: file inside the folder `artifacts`
    "network": "model.keras",
    "preprocessor": "preprocessor.json",
    "buffer": "buffer.parquet",
    "card": "card.json",
    "model_card": "model_card.md",
    "code": "code",
}
CHECKED = [name for part, name in PARTS.items() if part not in ("card", "code")]
KERAS_FLAVOR = {
    "data": "artifacts",
    "keras_module": "keras",
    "keras_version": keras.__version__,
    "save_format": "keras",
    "save_exported_model": False,
    "model_type": "keras",
}


@dataclass
class TrainedModel:
    """Hold what one model URI holds.

    roles: None for a plain Keras model. buffer: conformed rows with role, generation and hash; may
    be empty. card: JSON. uri, run_id, model_id: where it came from. model_card: Markdown.
    """

    network: keras.Model
    preprocessor: Preprocessor
    roles: Roles | None = None
    buffer: pd.DataFrame = field(default_factory=pd.DataFrame)
    card: dict = field(default_factory=dict)
    uri: str = ""
    run_id: str = ""
    model_id: str = ""
    model_card: str = ""

    @property
    def generation(self) -> int:
        """Number the training that made this model; the first of its line is 0."""
        return max((step["generation"] for step in self.card.get("lineage", [])), default=0)


# --- saving ------------------------------------------------------------------------------------


def save_model(
    path: str, trained: TrainedModel, mlflow_model: Model | None = None, **_: object
) -> None:
    """Save an MLflow model folder with the flavors python_function and keras.

    `Model.log` calls this, and passes on what else it was given. Requirements are written, not
    inferred: inferring takes seconds in another process, and guesses wrong.
    """
    mlflow_model = mlflow_model or Model()
    mlflow_model.add_flavor("keras", **KERAS_FLAVOR)
    with tempfile.TemporaryDirectory() as folder:
        files = _write_parts(Path(folder), trained)
        mlflow.pyfunc.save_model(
            path,
            python_model=str(HERE / "served_model.py"),
            mlflow_model=mlflow_model,
            artifacts={part: str(file) for part, file in files.items()},
            pip_requirements=[f"{name}=={version(name)}" for name in PACKAGES],
            signature=ModelSignature(outputs=Schema([ColSpec(DataType.double)])),
            input_example=example(trained.preprocessor),
        )


def _write_parts(folder: Path, trained: TrainedModel) -> dict[str, Path]:
    files = {part: folder / name for part, name in PARTS.items()}
    trained.network.save(files["network"])
    files["preprocessor"].write_text(json.dumps(trained.preprocessor.to_dict()), "utf-8")
    trained.buffer.to_parquet(files["buffer"])
    files["model_card"].write_text(trained.model_card, "utf-8")
    files["code"].mkdir()
    for name in TRAVELLING:
        shutil.copyfile(HERE / name, files["code"] / name)
    content = {
        "card": trained.card,
        "roles": asdict(trained.roles) if trained.roles else None,
        "files": {name: sha256(folder / name) for name in CHECKED},
    }
    files["card"].write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")
    return files


def example(preprocessor: Preprocessor) -> pd.DataFrame:
    """Make one raw row of typical values: means and known categories; a real one shows a person."""
    values: dict[str, object] = dict.fromkeys(preprocessor.schema.features)
    forms = {column.name: column.date_format for column in preprocessor.schema.columns}
    for each in preprocessor.inputs:
        if each.part == "level":
            values[each.column] = values[each.column] or each.level
        elif each.part == "value":
            values[each.column] = float(f"{each.center:.4g}")
        elif each.part == "elapsed":
            values[each.column] = _date(each.center, forms[each.column])
    return pd.DataFrame([values])


def _date(days: float, form: str) -> object:
    """Write days since 1970-01-01 as the model expects them to be written."""
    if form.startswith("epoch"):
        return int(days) * 86_400 * (1000 if form == "epoch ms" else 1)
    return pd.Timestamp(int(days), unit="D").strftime("%Y-%m-%d" if form == "ISO8601" else form)


def sha256(file: Path) -> str:
    """Hash a file's content, hexadecimal."""
    with file.open("rb") as stream:
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
    """Save a model folder; an older one of that name goes only once the new one is complete."""
    with _place_beside(folder) as beside:
        save_model(str(beside / "new"), trained)
        attempts = (_exchange(beside / "new", folder, beside / f"old{i}") for i in range(100))
        if not any(attempts):
            raise OSError(f"other processes keep replacing {folder}")
    return folder


def _exchange(new: Path, folder: Path, old: Path) -> bool:
    """Put a new folder in the place of another one; False when another process was faster."""
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if folder.exists():
            return False
        if old.exists():
            old.rename(folder)
        raise
    return True


@contextlib.contextmanager
def _place_beside(target: Path) -> Iterator[Path]:
    """Give a folder beside `target` to prepare it in; remove those that killed processes left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}-*-*"):
        pid = leftover.name.split("-")[-2]
        if pid.isdigit() and not tracking.process_identity(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)
    prefix = f".{target.name}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder:
        yield Path(folder)


def save_preprocessor(preprocessor: Preprocessor, path: Path) -> None:
    """Write a preprocessor with joblib, never half, and its hash into a list beside it.

    The list only grows, so that file and list agree at every moment, whoever else writes them.
    """
    with _place_beside(path) as beside:
        new = beside / path.name
        joblib.dump(preprocessor.to_dict(), new)
        with _record(path).open("a") as record:
            record.write(f"\n{sha256(new)}\n")
        new.replace(path)


def _record(path: Path) -> Path:
    return path.with_suffix(f"{path.suffix}.sha256")


# --- loading -----------------------------------------------------------------------------------


def load_model(uri: str, preprocessor_path: Path) -> TrainedModel:
    """Load a model from any URI of MLflow or a folder, running none of its code.

    A plain Keras model of another program has no preprocessor; it is read from
    `preprocessor_path`, provided that `save_preprocessor` wrote that file.
    Raises UserError for a URI that leads nowhere, or to something else than a whole Keras model.
    """
    with tempfile.TemporaryDirectory() as download:
        folder = _download(uri, download)
        try:
            info = Model.load(folder / "MLmodel")
            flavor = info.flavors.get("keras") or info.flavors.get("tensorflow") or {}
            data = folder / Path(flavor.get("data", "model")).name
        except Exception as error:  # of YAML, of MLflow, of a key that is not there
            raise UserError(
                f"{uri} is damaged: its MLmodel file cannot be read; log the model again"
            ) from error
        if not flavor:
            raise UserError(
                f"{uri} holds a model of the flavors {', '.join(info.flavors)}; expected one with "
                "a Keras network: pass a URI that mlflow_monitoring.py printed"
            )
        if data.name == KERAS_FLAVOR["data"]:
            trained = _load_parts(uri, data)
        else:
            trained = _load_plain_keras(uri, data, preprocessor_path)
        trained.uri, trained.model_id = uri, info.model_id or ""
        trained.run_id = info.run_id or trained.card.get("run_id", "")
    return trained


def _download(uri: str, folder: str) -> Path:
    try:
        local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
    except (MlflowException, OSError, ValueError) as error:
        raise UserError(
            f"no model at {uri} ({cli.reason(error)}); expected models:/{cli.NAME}/1, "
            "runs:/RUN_ID/NAME or a model folder: train a first one with mlflow_monitoring.py"
        ) from error
    if not (local / "MLmodel").is_file():
        raise UserError(f"{uri} is no MLflow model: it has no MLmodel file; pass its folder")
    return local


def _load_parts(uri: str, folder: Path) -> TrainedModel:
    for name in (PARTS["card"], *CHECKED):
        if not (folder / name).is_file():
            raise UserError(f"{uri} is incomplete: it lacks {name}; copy or log the model again")
    try:
        content = json.loads((folder / PARTS["card"]).read_text("utf-8"))
        changed = [name for name in CHECKED if sha256(folder / name) != content["files"][name]]
        if changed:
            raise LookupError(f"{changed[0]} is not the file that was logged")
        preprocessor = json.loads((folder / PARTS["preprocessor"]).read_text("utf-8"))
        trained = TrainedModel(
            network=_load_network(uri, folder / PARTS["network"]),
            preprocessor=Preprocessor.from_dict(preprocessor),
            roles=Roles.from_dict(content["roles"]) if content["roles"] else None,
            buffer=pd.read_parquet(folder / PARTS["buffer"]),
            card=content["card"],
            model_card=(folder / PARTS["model_card"]).read_text("utf-8"),
        )
    except UserError:
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{uri} is damaged ({cli.reason(error)}); log the model again or pass another URI"
        ) from error
    _check_width(uri, trained, "its preprocessor")
    return trained


def _load_network(uri: str, file: Path) -> keras.Model:
    try:
        return keras.saving.load_model(file, safe_mode=True)
    except Exception as error:  # whatever a broken or hostile file makes Keras raise
        raise UserError(
            f"the network of {uri} cannot be loaded safely ({cli.reason(error)}); expected a "
            ".keras file without code of its own: save the network again"
        ) from error


def _load_plain_keras(uri: str, data: Path, pickle: Path) -> TrainedModel:
    files = [data, *sorted(data.glob("*.keras")), data.with_suffix(".keras")]
    file = next((each for each in files if each.suffix == ".keras" and each.is_file()), None)
    if file is None:
        raise UserError(
            f"{uri} holds no .keras file; expected one: log it with mlflow.keras.log_model"
        )
    trained = TrainedModel(_load_network(uri, file), load_preprocessor(pickle, uri))
    _check_width(uri, trained, str(pickle))
    return trained


def _check_width(uri: str, trained: TrainedModel, origin: str) -> None:
    taken = trained.network.input_shape[-1]
    made = trained.preprocessor.width
    if taken != made:
        raise UserError(
            f"the network of {uri} takes {taken} inputs, but {origin} makes {made}; expected the "
            "preprocessor that the network was trained with: pass another URI or put it there"
        )


def load_preprocessor(path: Path, uri: str) -> Preprocessor:
    """Unpickle a preprocessor, but only a file whose recorded hash shows that we wrote it."""
    if not path.is_file():
        raise UserError(
            f"{uri} is a plain Keras model without a preprocessor, and there is no {path}; "
            "expected the preprocessor it was trained with: put it there"
        )
    record = _record(path)
    if not record.is_file() or sha256(path) not in record.read_text().split():
        raise UserError(
            f"{path} is not the file that mlflow_monitoring.py wrote, and unpickling it would run "
            f"its code; if you trust it: sha256sum {path} | cut -d' ' -f1 >> {record}"
        )
    return Preprocessor.from_dict(joblib.load(path))


def newest_buffer(
    client: mlflow.MlflowClient, name: str, parent: TrainedModel
) -> tuple[pd.DataFrame, int]:
    """Return the replay buffer of the newest version of a parent's line, and its generation.

    Refused versions count, so that small files add up; suspicious ones do not. Without a newer
    one the parent's own buffer is the newest.
    """
    line, quoted = parent.card.get("lineage", []), name.replace("'", "''")
    found = client.search_model_versions(f"name = '{quoted}'", order_by=["version_number DESC"])
    for each in found if line else []:
        if parent.run_id and each.run_id == parent.run_id:
            break  # nothing newer; what the parent holds need not be fetched again
        with contextlib.suppress(UserError, MlflowException), tempfile.TemporaryDirectory() as to:
            folder = _download(f"models:/{name}/{each.version}", to) / "artifacts"
            card = json.loads((folder / PARTS["card"]).read_text("utf-8"))["card"]
            same_line = card["lineage"][: len(line)] == line
            if same_line and card.get("verdict_kind") != "suspicious":
                return pd.read_parquet(folder / PARTS["buffer"]), card["lineage"][-1]["generation"]
    return parent.buffer, parent.generation
