"""The model as MLflow serves it: raw rows in, predictions in units of the target out.

This file travels inside every model, together with the package that lies in its `code` folder.
"""

import hashlib
import importlib
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


class ServedModel(PythonModel):
    """Predict the target of raw rows with the network and the preprocessor of the artifact."""

    def load_context(self, context: Any) -> None:
        """Load the parts; nothing is unpickled, and no code comes out of the network's file."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no start-up lines in a client's log
        import keras

        files = context.artifacts
        code = Path(files["code"])
        # Its name follows from its content: two models with different code each run their own.
        content = b"".join(file.read_bytes() for file in sorted(code.glob("*.py")))
        package = f"toolkit_{hashlib.sha256(content).hexdigest()[:16]}"
        sys.modules.setdefault(package, ModuleType(package)).__path__ = [str(code)]
        self.encoding = importlib.import_module(f"{package}.encoding")
        self.ranges = importlib.import_module(f"{package}.ranges")
        self.user_error = importlib.import_module(f"{package}.errors").UserError
        parts = json.loads(Path(files["preprocessor"]).read_text("utf-8"))
        self.preprocessor = self.encoding.Preprocessor.from_dict(parts)
        self.card = json.loads(Path(files["card"]).read_text("utf-8"))["card"]
        self.network = keras.saving.load_model(files["network"], safe_mode=True)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict | None = None
    ) -> np.ndarray | pd.DataFrame:
        """Score raw rows; columns in any order, extra ones ignored, cells as in any CSV file.

        Returns float64 predictions of shape (n_rows,), in units of the target. With `params`
        {"interval": 0.9} a table of "prediction", "low" and "high", which hold 90 % of all rows.
        Raises MlflowException (HTTP status 400 from a server) for rows that cannot be scored.
        """
        rows = _as_frame(model_input)
        try:
            if rows.empty:
                raise self.user_error("no rows to score were passed; expected at least one row")
            X = self.preprocessor.encode(rows)
            prediction = self.encoding.predict(self.network, X)
            level = (params or {}).get("interval")
            if level is None:
                return prediction
            low, high = self.ranges.around(self.card, prediction, level)
        except self.user_error as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return pd.DataFrame({"prediction": prediction, "low": low, "high": high})


def _as_frame(model_input: Any) -> pd.DataFrame:
    """Accept what MLflow's clients and server pass: a table, one record, or a list of records."""
    if isinstance(model_input, dict) and not any(np.ndim(v) for v in model_input.values()):
        model_input = [model_input]
    rows = pd.DataFrame(list(model_input) if isinstance(model_input, np.ndarray) else model_input)
    header = str(rows.columns[0]) if rows.shape[1] == 1 else ""
    separator = next((each for each in ";\t|" if each in header), None)
    if separator is None or rows.empty:
        return rows
    # MLflow's server takes a comma for the separator of every CSV.
    names, split = header.split(separator), rows.iloc[:, 0].str.split(separator, expand=True)
    if split.shape[1] != len(names) or not isinstance(rows.index, pd.RangeIndex):
        raise MlflowException.invalid_parameter_value(
            f"the CSV is separated by {separator!r} and has commas or quotes in its cells; "
            "expected commas between columns: send such a CSV, or JSON (dataframe_records)"
        )
    return split.set_axis(names, axis=1).replace("", None)


mlflow.models.set_model(ServedModel())
