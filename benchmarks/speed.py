"""Time training, the two scripts and scoring beside what a user would run instead.

python benchmarks/speed.py
python benchmarks/speed.py --only epoch,short --repetitions 3

Whatever stands in one row of the table took turns in one run; the figures are medians.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import common  # first of all: it puts the project on the path
import make_data
import mlflow
import numpy as np
from common import print_table, take_turns
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

import tabular
from model_utils import create_nn_model, train_model

ROWS, FEATURES, BATCH = 200_000, 26, 32
SHORT_ROWS, SHORT_EPOCHS = 1_600, 60
SCORED_ROWS = 1_000_000
NETWORK = {"hidden_layer_sizes": (64, 32), "batch_size": BATCH}  # scikit-learn's, as ours
TRAIN, RETRAIN = "mlflow_monitoring.py", "mlflow_retrain.py"
Row = tuple[str, str, str, str, str]  # measure, ours, other, ratio, bar


def sample(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw standardised features and a target that a network can learn, both float32."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, FEATURES), dtype=np.float32)
    noise = rng.standard_normal(rows, dtype=np.float32)
    return X, np.maximum(X[:, 0] + X[:, 1] * X[:, 2], 0) + 0.3 * noise


def seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value < 0.1 else f"{value:.3f} s"


def row(measure: str, ours: float, other: float, sign: str, bar: float) -> Row:
    """Lay out two times: how many times faster we are (bar ≥), or how many times longer (≤)."""
    ratio = other / ours if sign == "≥" else ours / other
    met = ratio >= bar if sign == "≥" else ratio <= bar
    text = f"{sign} {bar:g}× ({'met' if met else 'MISSED'})"
    return measure, seconds(ours), seconds(other), f"{ratio:.2f}×", text


def epoch(repetitions: int, folder: Path) -> list[Row]:
    """Time one epoch of many rows; compilation and first use happen in a warm-up epoch."""
    X, y = sample(ROWS)
    ours, keras_fit = create_nn_model(FEATURES), create_nn_model(FEATURES)
    sklearn = MLPRegressor(**NETWORK)
    calls = {
        "ours": lambda: train_model(ours, X, y, epochs=1, batch_size=BATCH),
        "fit": lambda: keras_fit.fit(X, y, epochs=1, batch_size=BATCH, verbose=0),
        "sklearn": lambda: sklearn.partial_fit(X, y),
    }
    take_turns(calls, 1)
    took = take_turns(calls, repetitions)
    what = f"epoch of {ROWS:,} × {FEATURES}, batch {BATCH}, against"
    fit = row(f"{what} `model.fit`", took["ours"], took["fit"], "≥", 30)
    return [fit, row(f"{what} `MLPRegressor`", took["ours"], took["sklearn"], "≥", 8)]


def short(repetitions: int, folder: Path) -> list[Row]:
    """Time a whole small training, a fresh model and its compilation included every time."""
    X, y = sample(SHORT_ROWS)
    options = {"epochs": SHORT_EPOCHS, "batch_size": BATCH, "verbose": 0}
    sklearn = NETWORK | {"max_iter": SHORT_EPOCHS, "n_iter_no_change": SHORT_EPOCHS}
    calls = {
        "ours": lambda: train_model(create_nn_model(FEATURES), X, y, **options),
        "fit": lambda: create_nn_model(FEATURES).fit(X, y, **options),
        "sklearn": lambda: MLPRegressor(**sklearn).fit(X, y),
    }
    take_turns(calls, 1)
    took = take_turns(calls, repetitions)
    what = f"{SHORT_ROWS:,} rows × {SHORT_EPOCHS} epochs, compiled anew, against"
    fit = row(f"{what} `model.fit`", took["ours"], took["fit"], "≥", 6)
    return [fit, row(f"{what} `MLPRegressor`", took["ours"], took["sklearn"], "≥", 1)]


def script(name: str, data: str, folder: Path, *arguments: str) -> None:
    """Run one of the two scripts on the sample data, with its store and models in `folder`."""
    command = [sys.executable, common.ROOT / name, "--quiet", "--data", common.DATA / data]
    subprocess.run([*command, *arguments], cwd=folder, check=True)


def served(folder: Path):
    """Load the champion as a client does, training it first if need be; return the pyfunc."""
    if not (folder / "mlflow.db").exists():
        script(TRAIN, "df_old.csv", folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    return mlflow.pyfunc.load_model("models:/loan-amount@champion")


def scripts(repetitions: int, folder: Path) -> list[Row]:
    """Time the scripts from the outside, on a store that exists and has a champion."""
    served(folder)
    bare = [sys.executable, "-c", "import tensorflow, mlflow"]
    calls = {
        "bare": lambda: subprocess.run(bare, cwd=folder, check=True, capture_output=True),
        TRAIN: lambda: script(TRAIN, "df_old.csv", folder),
        RETRAIN: lambda: script(RETRAIN, "df_new.csv", folder, "--promote", "never"),
    }
    took = take_turns(calls, repetitions)
    return [
        row(f"`{name}`, whole process, against bare imports", took[name], took["bare"], "≤", bar)
        for name, bar in ((TRAIN, 1.6), (RETRAIN, 1.9))
    ]


def one_row(repetitions: int, folder: Path) -> list[Row]:
    """Time one raw row, checks and encoding included, beside the encoded row in Keras' predict."""
    model = served(folder)
    inner = model.unwrap_python_model()
    raw = tabular.read_rows(common.DATA / "df_new.csv")[0].iloc[:1]
    encoded = inner.tabular.encode_features(raw, inner.schema, inner.preprocessor)
    calls = {
        "ours": lambda: model.predict(raw),
        "predict": lambda: inner.network.predict(encoded, verbose=0),
    }
    take_turns(calls, 5)
    took = take_turns(calls, 20 * repetitions)
    measure = "one raw row through the pyfunc, against `network.predict` of the encoded row"
    return [row(measure, took["ours"], took["predict"], "≥", 1)]


def million(repetitions: int, folder: Path) -> list[Row]:
    """Score many raw rows, as they come out of a Parquet and out of a CSV file."""
    model, rows = served(folder), []
    for suffix in ("parquet", "csv"):
        make_data.write_rows(folder / f"big.{suffix}", "new", SCORED_ROWS)
        start = time.perf_counter()
        raw, _ = tabular.read_rows(folder / f"big.{suffix}")
        reading = seconds(time.perf_counter() - start)
        model.predict(raw.iloc[:10_000])
        took = take_turns({"ours": lambda raw=raw: model.predict(raw)}, repetitions)["ours"]
        rate = SCORED_ROWS / took / 1e6
        measure = f"{SCORED_ROWS:,} raw rows of {suffix} (read in {reading}) through the pyfunc"
        bar = f"≥ 0.5 M rows/s ({'met' if rate >= 0.5 else 'MISSED'})"
        rows.append((measure, seconds(took), "", f"{rate:.2f} M rows/s", bar))
    return rows


def limits(repetitions: int, folder: Path) -> list[Row]:
    """Compare the arithmetic of an epoch with what the machine multiplies at best."""
    X, y = sample(ROWS)
    model, matrix = create_nn_model(FEATURES), np.ones((2_048, 2_048), np.float32)
    calls = {
        "epoch": lambda: train_model(model, X, y, epochs=1, batch_size=BATCH),
        "sgemm": lambda: matrix @ matrix,
    }
    take_turns(calls, 1)
    took = take_turns(calls, repetitions)
    products = [FEATURES * 64, 64 * 32, 32]
    # Forward, gradient of the weights and, but for the first layer, gradient of the inputs.
    flops = 2 * ROWS * (3 * sum(products) - products[0])
    ours, peak = flops / took["epoch"] / 1e9, 2 * len(matrix) ** 3 / took["sgemm"] / 1e9
    measure = f"{flops / 1e9:.2f} GFLOP of products in an epoch, against sgemm of 2,048²"
    return [(measure, f"{ours:.1f} GFLOP/s", f"{peak:.0f} GFLOP/s", f"{ours / peak:.1%}", "")]


def main() -> None:
    """Run the chosen measures, and print one table."""
    measures = {f.__name__: f for f in (epoch, short, scripts, one_row, million, limits)}
    names = ",".join(measures)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=names, help="some of %(default)s, with commas between")
    parser.add_argument("--repetitions", type=int, default=5, help="median of (%(default)s)")
    args = parser.parse_args()
    chosen = args.only.split(",")
    if not set(chosen) <= set(measures) or args.repetitions < 1:
        parser.error(f"expected --only with some of {names}, and --repetitions from 1 on")
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the scripts get a store of their own
    os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)
    warnings.simplefilter("ignore", ConvergenceWarning)  # as many epochs as ours are meant
    common.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in chosen for row in measures[name](args.repetitions, Path(folder))]
    print_table(["measure", "ours", "other", "ratio", "bar"], rows)


if __name__ == "__main__":
    main()
