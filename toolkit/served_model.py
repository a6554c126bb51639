"""The model as MLflow serves it: raw rows in, predictions in units of the target out.

This file travels inside every model, together with the package that lies in its `code` folder.
"""

import csv
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

SERVER = "mlflow.pyfunc.scoring_server"


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
        rows = _as_frame(model_input, self.preprocessor.schema.features)
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


def _as_frame(model_input: Any, features: tuple[str, ...]) -> pd.DataFrame:
    """Accept what MLflow's clients and server pass: a table, one record, or a list of records."""
    try:
        if isinstance(model_input, dict) and not any(map(np.ndim, model_input.values())):
            model_input = [model_input]
        is_array = isinstance(model_input, np.ndarray)
        rows = pd.DataFrame(list(model_input) if is_array else model_input)
    except (TypeError, ValueError) as error:
        raise _refused(f"what was passed is no table ({error}); expected rows") from error
    header = str(rows.columns[0]) if rows.shape[1] == 1 and rows.columns[0] not in features else ""
    separator = next((each for each in ";\t|" if each in header), "")
    # To pandas, which reads CSV for MLflow's server, fields beyond the header are an index.
    is_counted = isinstance(rows.index, pd.RangeIndex) and rows.index.equals(
        pd.RangeIndex(len(rows))
    )
    if separator:
        return _cut(header, rows.iloc[:, 0], separator, is_counted)
    if not is_counted and SERVER in sys.modules and len(rows) and rows.iloc[:, -1].isna().all():
        raise _refused(
            "the last column is empty, and rows have an index or more fields than the header; "
            "expected as many fields, without a comma at the end"
        )
    return rows


def _cut(header: str, lines: pd.Series, separator: str, is_counted: bool) -> pd.DataFrame:
    """Cut lines that MLflow's server left whole, as it takes a comma for the separator."""
    names, *rows = csv.reader([header, *map(str, lines)], delimiter=separator)
    if all(len(row) == len(names) + 1 and not row[-1] for row in rows):
        names = [*names, ""]  # each row ends with a separator
    if not is_counted or any(len(row) != len(names) for row in rows):
        raise _refused(
            f"the CSV is separated by {separator!r} and has commas, or {separator!r} in quotes, in "
            "its cells; expected commas between columns"
        )
    return pd.DataFrame(rows, columns=names).replace("", None)


def _refused(told: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(f"{told}: send JSON (dataframe_records)")


mlflow.models.set_model(ServedModel())
