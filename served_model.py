"""The model as MLflow serves it: raw rows in, predictions in target units out.

This file travels inside every model artifact and MLflow runs it there, together with the copy of
`tabular.py` that was packed beside it: two versions of a model loaded in one process each use
their own code.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

TRUSTED = ["numpy.dtype"]  # scikit-learn's imputer keeps the dtype it was fitted on


class ServedModel(PythonModel):
    """Predict the target for raw rows with the network and the preprocessor of the artifact."""

    def load_context(self, context: Any) -> None:
        """Load the parts; nothing is unpickled, and no code comes out of the network's file."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no start-up lines in a client's log
        import keras
        import skops.io

        files = context.artifacts
        self.tabular = _load_module(Path(files["code"]))
        self.preprocessor = skops.io.load(files["preprocessor"], trusted=TRUSTED)
        self.network = keras.saving.load_model(files["network"], safe_mode=True)
        columns = json.loads(Path(files["card"]).read_text("utf-8"))["schema"]
        self.schema = self.tabular.Schema(**columns)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict | None = None
    ) -> np.ndarray:
        """Score a DataFrame of raw rows; columns in any order, extra ones ignored.

        Returns float64 predictions of shape (n_rows,).
        Raises MlflowException (HTTP status 400 from a server) for rows that cannot be scored.
        """
        rows = _as_frame(model_input)
        try:
            if rows.empty:
                raise self.tabular.UserError("no rows to score; expected at least one row")
            X = self.tabular.encode_features(rows, self.schema, self.preprocessor)
        except self.tabular.UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return self.tabular.predict(self.network, X)


def _as_frame(model_input: object) -> pd.DataFrame:
    """Accept what MLflow's clients and server pass: a table, one record, or a list of records."""
    if isinstance(model_input, dict) and not any(np.ndim(v) for v in model_input.values()):
        model_input = [model_input]
    return pd.DataFrame(list(model_input) if isinstance(model_input, np.ndarray) else model_input)


def _load_module(path: Path) -> ModuleType:
    """Import a file by its path, under a name of its own."""
    name = f"tabular_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(ServedModel())
