"""The one MLflow artifact: save it, log it, load it from any URI without running its code."""

import contextlib
import hashlib
import json
import logging
import pickle
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import joblib
import keras
import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from .encoding import Preprocessor
from .errors import UserError, reason
from .roles import GENERATION, Roles, unseen

logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # no word on every validated example
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # nor on every network that is compiled
HERE = Path(__file__).parent
PACKAGES = ("mlflow", "tensorflow", "keras", "pandas", "pyarrow", "numpy")
TRAVELLING = ("__init__.py", "errors.py", "columns.py", "encoding.py", "ranges.py")
PARTS = {  # name of the MLflow artifact: file inside the folder `artifacts`
    "network": "model.keras",
    "preprocessor": "preprocessor.json",
    "buffer": "buffer.parquet",
    "card": "card.json",
    "model_card": "model_card.md",
    "code": "code",
}
CHECKED = [name for part, name in PARTS.items() if part not in ("card", "code")]
KERAS_FLAVOR = {"data": "artifacts", "keras_version": keras.__version__, "model_type": "keras"}
KERAS_FLAVOR |= {"keras_module": "keras", "save_format": "keras", "save_exported_model": False}


@dataclass
class TrainedModel:
    """Hold what one model URI holds; a plain Keras model has no roles, an empty buffer and card."""

    network: keras.Model
    preprocessor: Preprocessor
    roles: Roles | None = None
    buffer: pd.DataFrame = field(default_factory=pd.DataFrame)
    card: dict = field(default_factory=dict)
    uri: str = ""
    run_id: str = ""
    model_id: str = ""

    @property
    def generation(self) -> int:
        """Number the training that made this model; the first of its line is 0."""
        return max((step["generation"] for step in self.card.get("lineage", [])), default=0)


def save_model(
    path: str, trained: TrainedModel, mlflow_model: Model | None = None, **_: object
) -> None:
    """Save a model folder with the flavors python_function and keras; `Model.log` calls it, too."""
    from .report import model_card  # draws, which scoring need not know

    mlflow_model, preprocessor = mlflow_model or Model(), trained.preprocessor
    mlflow_model.add_flavor("keras", **KERAS_FLAVOR)
    with tempfile.TemporaryDirectory() as folder:
        files = {part: Path(folder, name) for part, name in PARTS.items()}
        trained.network.save(files["network"])
        files["preprocessor"].write_text(json.dumps(asdict(preprocessor)), "utf-8")
        trained.buffer.to_parquet(files["buffer"])
        files["model_card"].write_text(model_card(trained.card, preprocessor.schema), "utf-8")
        files["code"].mkdir()
        for name in TRAVELLING:
            shutil.copyfile(HERE / name, files["code"] / name)
        content = {
            "card": trained.card,
            "roles": asdict(trained.roles) if trained.roles else None,
            "files": {name: sha256(Path(folder, name)) for name in CHECKED},
        }
        files["card"].write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")
        mlflow.pyfunc.save_model(
            path,
            python_model=str(HERE / "served_model.py"),
            mlflow_model=mlflow_model,
            artifacts={part: str(file) for part, file in files.items()},
            pip_requirements=[f"{name}=={version(name)}" for name in PACKAGES],
            signature=ModelSignature(
                outputs=Schema([ColSpec(DataType.double)]),
                params=ParamSchema([ParamSpec("interval", DataType.double, None)]),
            ),
            input_example=example(preprocessor),
        )


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
    return hashlib.sha256(file.read_bytes()).hexdigest()


def log_model(trained: TrainedModel, name: str) -> str:
    """Log a model to the active run under `name`; return its `models:/m-…` URI."""
    flavor, options = sys.modules[__name__], {"trained": trained, "validate_serving_input": False}
    info = Model.log(None, flavor, name=name, model_type="regressor", **options)
    return f"models:/{info.model_id}"


def save_folder(trained: TrainedModel, folder: Path) -> Path:
    """Save a model folder; an older one of that name goes only once the new one is complete."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        new = Path(beside, "new")
        save_model(str(new), trained)
        for number in range(100):  # another process may put its own there in between
            with contextlib.suppress(FileNotFoundError):
                folder.rename(Path(beside, f"old{number}"))
            with contextlib.suppress(OSError):
                return new.rename(folder)
        return new.rename(folder)


def save_preprocessor(preprocessor: Preprocessor, path: Path) -> None:
    """Write a preprocessor with joblib, as numbers, texts and lists alone, and never half."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as beside:
        joblib.dump(asdict(preprocessor), Path(beside, path.name))
        Path(beside, path.name).replace(path)


def load_model(uri: str, preprocessor_path: Path) -> TrainedModel:
    """Load a model from any URI of MLflow or a folder, running none of its code.

    `preprocessor_path`, written by `save_preprocessor`, is for a plain Keras model of another
    program. UserError for a URI that leads nowhere, or not to a whole Keras model.
    """
    with tempfile.TemporaryDirectory() as download:
        folder = _download(uri, download)
        try:
            trained = _load_folder(folder, preprocessor_path)
        except UserError:
            raise
        except Exception as error:  # whatever a broken or hostile file makes its reader raise
            raise UserError(
                f"{uri} is damaged or cannot be loaded safely ({reason(error)}); expected all "
                "files as they were logged, and a network without code of its own: log the model "
                "again or pass another URI"
            ) from error
    taken, made = trained.network.input_shape[-1], trained.preprocessor.width
    if taken != made:
        raise UserError(
            f"the network of {uri} takes {taken} inputs, but its preprocessor makes {made}; "
            "expected the one that the network was trained with: pass another URI, or put it into "
            f"{preprocessor_path}"
        )
    trained.uri = uri
    return trained


def _download(uri: str, folder: str) -> Path:
    try:
        local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
    except (MlflowException, OSError, ValueError) as error:
        raise UserError(
            f"no model at {uri} ({reason(error)}); expected models:/NAME/1, "
            "runs:/RUN_ID/NAME or a model folder: train a first one with mlflow_monitoring.py, or "
            "make a version champion with mlflow_retrain.py --approve"
        ) from error
    if not (local / "MLmodel").is_file():
        raise UserError(
            f"{uri} has no MLmodel file; expected the folder of a model, or a version whose files "
            "are still there: bring them back, or pass another URI"
        )
    return local


def _load_folder(folder: Path, preprocessor_path: Path) -> TrainedModel:
    info = Model.load(folder / "MLmodel")
    flavor = info.flavors.get("keras") or info.flavors.get("tensorflow")
    if not flavor:
        raise LookupError(f"it has the flavors {', '.join(info.flavors)}, and no Keras network")
    parts = folder / KERAS_FLAVOR["data"]
    if flavor.get("data") != parts.name:
        network = next(folder.rglob("*.keras"), folder / "model.keras")
        network = keras.saving.load_model(network, safe_mode=True)
        trained = TrainedModel(network, load_preprocessor(preprocessor_path))
    else:
        content = json.loads((parts / PARTS["card"]).read_text("utf-8"))
        for name in CHECKED:
            if not (parts / name).is_file() or sha256(parts / name) != content["files"][name]:
                raise LookupError(f"{name} is not the file that was logged")
        preprocessor = json.loads((parts / PARTS["preprocessor"]).read_text("utf-8"))
        trained = TrainedModel(
            keras.saving.load_model(parts / PARTS["network"], safe_mode=True),
            Preprocessor.from_dict(preprocessor),
            Roles(**content["roles"]) if content["roles"] else None,
            pd.read_parquet(parts / PARTS["buffer"]),
            content["card"],
        )
    trained.model_id = info.model_id or ""
    trained.run_id = info.run_id or trained.card.get("run_id", "")
    return trained


class _NoCode(pickle.Unpickler):
    """Read numbers, texts and lists; whatever would run code begins with looking up its name."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse a name."""
        raise pickle.UnpicklingError(f"{module}.{name} is code")


def load_preprocessor(path: Path) -> Preprocessor:
    """Read what `save_preprocessor` wrote; UserError for any other file, whose code is not run."""
    try:
        with path.open("rb") as file:
            return Preprocessor.from_dict(_NoCode(file).load())
    except Exception as error:  # a file of another program may raise anything
        raise UserError(
            f"a plain Keras model needs the preprocessor it was trained with, and {path} is not "
            f"one that mlflow_monitoring.py wrote ({reason(error)}): put it there"
        ) from error


def newest_buffer(
    client: mlflow.MlflowClient, name: str, parent: TrainedModel
) -> tuple[pd.DataFrame, int]:
    """Return a parent's rows, those of the newest version of its kin, and how many trainings.

    Kin shares the first training, or is a child of a parent without one; suspicious ones are none.
    Where it was told to keep fewer rows than the parent, those of older kin count, too. Times that
    its own tries held out stay so: the parent's roles know them from then on.
    """
    line, quoted = parent.card.get("lineage", []), name.replace("'", "''")
    rows, last, is_whole = parent.buffer, parent.generation, False
    found = client.search_model_versions(f"name = '{quoted}'", order_by=["version_number DESC"])
    for each in found:
        if each.run_id == parent.run_id or is_whole:
            break  # nothing newer; what the parent holds need not be fetched again
        with contextlib.suppress(UserError):
            newer = load_model(f"models:/{name}/{each.version}", Path())
            its, is_child = newer.card, newer.card.get("parent_model_uri") == parent.uri
            is_kin = its.get("lineage", [])[:1] == line[:1] if line else is_child
            if is_kin and its.get("verdict_kind") != "suspicious":  # refused ones count
                rows, seen = _with_rows_of(newer, rows, parent)
                last = max(last, seen)
                is_whole = its.get("buffer_rows", 0) >= parent.card.get("buffer_rows", 0)
    return rows, last


def _with_rows_of(
    newer: TrainedModel, rows: pd.DataFrame, parent: TrainedModel
) -> tuple[pd.DataFrame, int]:
    """Add the rows of newer kin to a parent's; new to it are those seen since both parted."""
    if parent.roles and newer.roles:
        times = parent.roles.intervals
        parent.roles = newer.roles if newer.roles.intervals[: len(times)] == times else parent.roles
    more = unseen(newer.buffer, rows)  # a refit may have trained on others
    if more.empty:
        return rows, newer.generation
    runs = {step.get("run_id") for step in newer.card.get("lineage", [])}
    steps = [s for s in parent.card.get("lineage", []) if s.get("run_id") in runs]
    parted, seen = max((step["generation"] for step in steps), default=-1), more[GENERATION]
    seen = seen.where(seen <= parted, seen.clip(lower=parent.generation + 1))
    more = more.assign(**{GENERATION: seen})
    last = max(newer.generation, int(seen.max()))
    return pd.concat([rows, more], ignore_index=True), last
