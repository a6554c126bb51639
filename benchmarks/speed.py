"""Time training, the two scripts and scoring beside what a user would run instead.

python benchmarks/speed.py
python benchmarks/speed.py --only epoch,short --repetitions 3

Everything in one row of the table is measured in turn in one run; the figures are medians.
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
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

import tabular
from model_utils import create_nn_model, train_model

ROWS, FEATURES, BATCH = 200_000, 26, 32
SHORT_ROWS, SHORT_EPOCHS = 1_600, 60
SCORED_ROWS = 1_000_000
NETWORK = {"hidden_layer_sizes": (64, 32), "batch_size": BATCH}  # of scikit-learn, as ours
Row = tuple[str, str, str, str, str]  # measure, ours, other, ratio, bar


def sample(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw standardised features and a target that a network can learn, both float32."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, FEATURES), dtype=np.float32)
    noise = rng.standard_normal(rows, dtype=np.float32)
    return X, np.maximum(X[:, 0] + X[:, 1] * X[:, 2], 0) + 0.3 * noise


def seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value < 0.1 else f"{value:.3f} s"


def mark(bar: str, met: bool) -> str:
    return f"{bar} ({'met' if met else 'MISSED'})"


def faster(measure: str, ours: float, other: float, bar: float) -> Row:
    """Lay out a row whose ratio tells how many times faster than the other we are."""
    ratio = other / ours
    return (
        measure,
        seconds(ours),
        seconds(other),
        f"{ratio:.1f}×",
        mark(f"≥ {bar:g}×", ratio >= bar),
    )


def training(what: str, took: dict[str, float], fit_bar: float, sklearn_bar: float) -> list[Row]:
    """Lay out the two rows of a training against Keras and scikit-learn."""
    return [
        faster(f"{what}, against `model.fit`", took["ours"], took["fit"], fit_bar),
        faster(f"{what}, against `MLPRegressor`", took["ours"], took["sklearn"], sklearn_bar),
    ]


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
    common.alternate(calls, 1)
    what = f"epoch of {ROWS:,} × {FEATURES}, batch {BATCH}"
    return training(what, common.alternate(calls, repetitions), 30, 8)


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
    common.alternate({"ours": calls["ours"]}, 1)  # TensorFlow's own first use
    what = f"{SHORT_ROWS:,} rows × {SHORT_EPOCHS} epochs, compiled anew"
    return training(what, common.alternate(calls, repetitions), 6, 1)


def script(name: str, data: str, folder: Path, *arguments: str) -> None:
    """Run one of the two scripts on the sample data, with its store and models in `folder`."""
    command = [
        sys.executable,
        str(common.ROOT / name),
        "--quiet",
        "--data",
        str(common.DATA / data),
        *arguments,
    ]
    subprocess.run(command, cwd=folder, check=True)


def make_store(folder: Path) -> None:
    """Train once, which makes the store and its first champion, unless that is done."""
    if not (folder / "mlflow.db").exists():
        script("mlflow_monitoring.py", "df_old.csv", folder)


def scripts(repetitions: int, folder: Path) -> list[Row]:
    """Time the scripts from the outside, on a store that exists."""
    make_store(folder)
    bare = [sys.executable, "-c", "import tensorflow, mlflow"]
    first, second = "mlflow_monitoring.py", "mlflow_retrain.py"
    calls = {
        "bare": lambda: subprocess.run(bare, cwd=folder, check=True, capture_output=True),
        first: lambda: script(first, "df_old.csv", folder),
        second: lambda: script(second, "df_new.csv", folder, "--promote", "never"),
    }
    took, rows = common.alternate(calls, repetitions), []
    for name, bar in ((first, 1.6), (second, 1.9)):
        ratio = took[name] / took["bare"]
        cells = seconds(took[name]), seconds(took["bare"]), f"{ratio:.2f}×"
        measure = f"`{name}`, whole process, against bare imports"
        rows.append((measure, *cells, mark(f"≤ {bar}×", ratio <= bar)))
    return rows


def served(folder: Path):
    """Load the champion as a client does; return (pyfunc, the PythonModel inside)."""
    make_store(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/loan-amount@champion")
    return model, model.unwrap_python_model()


def one_row(repetitions: int, folder: Path) -> list[Row]:
    """Time one raw row, checks and encoding included, beside the encoded row in Keras' predict."""
    model, inner = served(folder)
    raw = tabular.read_rows(common.DATA / "df_new.csv")[0][[*inner.schema.features]].iloc[:1]
    encoded = inner.tabular.encode_features(raw, inner.schema, inner.preprocessor)
    calls = {
        "ours": lambda: model.predict(raw),
        "predict": lambda: inner.network.predict(encoded, verbose=0),
    }
    common.alternate(calls, 5)
    took = common.alternate(calls, 20 * repetitions)
    measure = "one raw row through the pyfunc, against `network.predict` of the encoded row"
    return [faster(measure, took["ours"], took["predict"], 1)]


def million(repetitions: int, folder: Path) -> list[Row]:
    """Score many raw rows, as they come out of a Parquet and out of a CSV file."""
    (model, inner), rows = served(folder), []
    for suffix in ("parquet", "csv"):
        file = folder / f"big.{suffix}"
        make_data.write_rows(file, "new", SCORED_ROWS)
        start = time.perf_counter()
        raw = tabular.read_rows(file)[0][[*inner.schema.features]]
        reading = seconds(time.perf_counter() - start)
        model.predict(raw.iloc[:10_000])
        calls = {"ours": lambda raw=raw: model.predict(raw)}
        took = common.alternate(calls, repetitions)["ours"]
        rate = SCORED_ROWS / took / 1e6
        measure = f"{SCORED_ROWS:,} raw rows of {suffix} (read in {reading}) through the pyfunc"
        cells = seconds(took), "", f"{rate:.2f} M rows/s"
        rows.append((measure, *cells, mark("≥ 0.5 M rows/s", rate >= 0.5)))
    return rows


def limits(repetitions: int, folder: Path) -> list[Row]:
    """Compare the arithmetic of an epoch with what the machine multiplies at best."""
    X, y = sample(ROWS)
    model = create_nn_model(FEATURES)
    matrix = np.ones((2_048, 2_048), np.float32)
    calls = {
        "epoch": lambda: train_model(model, X, y, epochs=1, batch_size=BATCH),
        "sgemm": lambda: matrix @ matrix,
    }
    common.alternate(calls, 1)
    took = common.alternate(calls, repetitions)
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
    warnings.simplefilter("ignore", ConvergenceWarning)  # as many epochs as ours are meant
    common.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in chosen for row in measures[name](args.repetitions, Path(folder))]
    common.print_table(["measure", "ours", "other", "ratio", "bar"], rows)


if __name__ == "__main__":
    main()
