"""What the benchmarks share: machine, tables, timings in turn, the scripts, the peers' input."""

import contextlib
import csv
import gc
import importlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
TRAIN, RETRAIN, SCORE = "mlflow_monitoring", "mlflow_retrain", "mlflow_score"
KEPT = (0, 3)  # exit codes of a script that did its work, whatever the verdict
sys.path[:0] = [str(ROOT), str(DATA)]
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):  # benchmarks have their own stores
    os.environ.pop(_name, None)


def machine() -> str:
    """Name the machine and the packages that figures belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ("tensorflow", "keras", "mlflow", "scikit-learn", "pandas", "lightgbm", "catboost")
    found = []
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    python = sys.version.split()[0]
    where = f"{names[0] if names else 'unknown CPU'}, {os.cpu_count()} cores"
    return f"{where}; Python {python}, {', '.join(found)}\n"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a Markdown table with aligned columns."""
    cells = [list(header), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    padded = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def held(value: float, sign: str, bar: float) -> str:
    """Put a bar into words, and whether a figure meets it; `sign` is ≤ or ≥."""
    met = value <= bar if sign == "≤" else value >= bar
    return f"{sign} {bar:g} ({'met' if met else 'MISSED'})"


def take_turns(calls: dict[str, Callable[[], float | None]], repetitions: int) -> dict[str, float]:
    """Call everything in turn, `repetitions` times; return the median seconds of each.

    In turn, so that a busy minute of the machine falls on all of them alike. A call that returns
    a number has measured itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            start = time.perf_counter()
            own = call()
            seconds[name].append(time.perf_counter() - start if own is None else own)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def start() -> None:
    """Import what the scripts import, without a word of its own."""
    from toolkit import cli

    with cli.quiet_start():
        for name in ("mlflow.keras", "model_utils", TRAIN, RETRAIN, SCORE):
            importlib.import_module(name)


def call(script: str, folder: Path, *flags: object) -> dict[str, Any]:
    """Run a script's `main` in this process, store and models in `folder`; return its JSON.

    Raises RuntimeError, with what the script said, when it did not do its work.
    """
    place = ["--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}", "--experiment", "benchmark"]
    argv = [*map(str, flags), "--json", "--models-dir", str(folder / "models"), *place]
    said, complaints = io.StringIO(), io.StringIO()
    out, err = contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaints)
    with out, err, contextlib.chdir(folder):
        code = importlib.import_module(script).main(argv)
    if code not in KEPT:
        raise RuntimeError(f"{script} {' '.join(map(str, flags))}: {complaints.getvalue().strip()}")
    importlib.import_module("keras").backend.clear_session()
    return json.loads(said.getvalue())


def free() -> None:
    """Let go of what earlier calls left; each of them froze it for the garbage collector."""
    gc.unfreeze()
    gc.collect()


def score(uri: str, file: Path, folder: Path) -> np.ndarray:
    """Predict the rows of a file with a model, float64 of shape (n_rows,)."""
    output = folder / "predictions.csv"
    call(SCORE, folder, "--model-uri", uri, "--data", file, "--output", output)
    return pd.read_csv(output)["prediction"].to_numpy(np.float64)


def read(file: Path, *, as_written: bool = False) -> pd.DataFrame:
    """Read a CSV file, its separator being the commonest in its header; as_written: all as text."""
    with file.open(encoding="utf-8") as lines:
        header = next(csv.reader(lines, delimiter="\n"))[0]
    separator = max(",;\t|", key=header.count)
    if as_written:
        return pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False)
    return pd.read_csv(file, sep=separator)


def for_peers(
    train: pd.DataFrame, test: pd.DataFrame, drop: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Turn raw rows into what boosting takes: numbers, dates as numbers, text as categories."""
    both = pd.concat([train, test], ignore_index=True).drop(columns=list(drop))
    columns: dict[str, Any] = {}
    for name in both.columns:
        values = _numbers(both[name])
        if pd.api.types.is_numeric_dtype(values):
            columns[name] = values.astype(np.float64)
        elif (dates := _dates(values)) is not None:
            columns |= {f"{name}_{part}": numbers for part, numbers in dates.items()}
        else:
            levels = sorted(values[: len(train)].dropna().unique(), key=str)
            columns[name] = pd.Categorical(values, levels)
    table = pd.DataFrame(columns)
    return table.iloc[: len(train)], table.iloc[len(train) :]


def _numbers(values: pd.Series) -> pd.Series:
    if not pd.api.types.is_string_dtype(values):
        return values
    values = values.replace("", None)
    with contextlib.suppress(ValueError, TypeError):  # numbers that were read as they are written
        return pd.to_numeric(values)
    return values


def _dates(values: pd.Series) -> dict[str, pd.Series] | None:
    texts = values.dropna().astype(str)
    if not len(texts) or not texts.str.match(r"\d{1,4}[-/]\d{1,2}[-/]\d{1,4}").all():
        return None
    try:
        dates = pd.to_datetime(values, dayfirst=not texts.str.match(r"\d{4}").all())
    except ValueError:  # the month first, or no dates at all
        dates = pd.to_datetime(values, errors="coerce")
    days = (dates - pd.Timestamp(0)) / pd.Timedelta("1D")
    parts = {"day_of_year": dates.dt.dayofyear, "month": dates.dt.month, "hour": dates.dt.hour}
    parts |= {"weekday": dates.dt.weekday, "days": days}
    return {part: numbers.astype(np.float64) for part, numbers in parts.items()}
