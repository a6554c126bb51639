"""Time training, the two scripts and scoring beside what a user would run instead.

python benchmarks/speed.py
python benchmarks/speed.py --only epoch,short --repetitions 3

Everything in one table row is measured in turn in one run; the figures are medians.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import ROOT, alternate, machine, print_table, start_tensorflow, verdict

ROWS, FEATURES, BATCH = 200_000, 26, 32
SHORT_ROWS, SHORT_EPOCHS = 1_600, 60
SCORED_ROWS = 1_000_000
Row = tuple[str, str, str, str, str]


def sample(rows: int):
    """Draw standardised features and a target that a network can learn, both float32."""
    import numpy as np

    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, FEATURES), dtype=np.float32)
    noise = rng.standard_normal(rows, dtype=np.float32)
    return X, np.maximum(X[:, 0] + X[:, 1] * X[:, 2], 0) + 0.3 * noise


def seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value < 0.1 else f"{value:.3f} s"


def faster(measure: str, ours: float, other: float, bar: float) -> Row:
    """Lay out a row whose ratio tells how many times faster than the other we are."""
    ratio = other / ours
    text = f"≥ {bar:g}×: {verdict(ratio >= bar)}"
    return measure, seconds(ours), seconds(other), f"{ratio:.1f}×", text


def epoch(repetitions: int, folder: Path) -> list[Row]:
    """Time one epoch of many rows; compilation and first use happen in a warm-up epoch."""
    from sklearn.neural_network import MLPRegressor

    from model_utils import create_nn_model, train_model

    X, y = sample(ROWS)
    ours, keras_fit = create_nn_model(FEATURES), create_nn_model(FEATURES)
    sklearn = MLPRegressor(hidden_layer_sizes=(64, 32), batch_size=BATCH)
    calls = {
        "ours": lambda: train_model(ours, X, y, epochs=1, batch_size=BATCH),
        "fit": lambda: keras_fit.fit(X, y, epochs=1, batch_size=BATCH, verbose=0),
        "sklearn": lambda: sklearn.partial_fit(X, y),
    }
    alternate(calls, 1)
    took = alternate(calls, repetitions)
    what = f"epoch of {ROWS:,} × {FEATURES}, batch {BATCH}, against"
    return [
        faster(f"{what} `model.fit`", took["ours"], took["fit"], 30),
        faster(f"{what} `MLPRegressor`", took["ours"], took["sklearn"], 8),
    ]


def short(repetitions: int, folder: Path) -> list[Row]:
    """Time a whole small training, a fresh model and its compilation included every time."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    from model_utils import create_nn_model, train_model

    warnings.simplefilter("ignore", ConvergenceWarning)
    X, y = sample(SHORT_ROWS)
    options = {"epochs": SHORT_EPOCHS, "batch_size": BATCH, "verbose": 0}
    network = {"hidden_layer_sizes": (64, 32), "batch_size": BATCH}
    sklearn = network | {"max_iter": SHORT_EPOCHS, "n_iter_no_change": SHORT_EPOCHS}
    calls = {
        "ours": lambda: train_model(create_nn_model(FEATURES), X, y, **options),
        "fit": lambda: create_nn_model(FEATURES).fit(X, y, **options),
        "sklearn": lambda: MLPRegressor(**sklearn).fit(X, y),
    }
    alternate({"ours": calls["ours"]}, 1)  # TensorFlow's own first use
    took = alternate(calls, repetitions)
    what = f"{SHORT_ROWS:,} rows × {SHORT_EPOCHS} epochs, compiled anew, against"
    return [
        faster(f"{what} `model.fit`", took["ours"], took["fit"], 6),
        faster(f"{what} `MLPRegressor`", took["ours"], took["sklearn"], 1),
    ]


def script(name: str, folder: Path, *arguments: str) -> None:
    """Run one of the two scripts on the sample data, with its store and models in `folder`."""
    data = ROOT / "data" / ("df_new.csv" if "retrain" in name else "df_old.csv")
    command = [sys.executable, str(ROOT / name), "--quiet", "--data", str(data), *arguments]
    subprocess.run(command, cwd=folder, check=True)


def make_store(folder: Path) -> None:
    """Train once, which makes the store and its first champion, unless that is done."""
    if not (folder / "mlflow.db").exists():
        script("mlflow_monitoring.py", folder)


def scripts(repetitions: int, folder: Path) -> list[Row]:
    """Time the scripts from the outside, on a store that exists."""
    make_store(folder)
    bare = [sys.executable, "-c", "import tensorflow, mlflow"]
    calls = {
        "bare": lambda: subprocess.run(bare, cwd=folder, check=True, capture_output=True),
        "train": lambda: script("mlflow_monitoring.py", folder),
        "retrain": lambda: script("mlflow_retrain.py", folder, "--promote", "never"),
    }
    took = alternate(calls, repetitions)
    rows = []
    for name, file, bar in (
        ("train", "mlflow_monitoring.py", 1.6),
        ("retrain", "mlflow_retrain.py", 1.9),
    ):
        ratio = took[name] / took["bare"]
        cells = seconds(took[name]), seconds(took["bare"]), f"{ratio:.2f}×"
        measure = f"`{file}`, whole process, against bare imports"
        rows.append((measure, *cells, f"≤ {bar}×: {verdict(ratio <= bar)}"))
    return rows


def served(folder: Path):
    """Load the champion as a client does."""
    import mlflow

    make_store(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    return mlflow.pyfunc.load_model("models:/loan-amount@champion")


def one_row(repetitions: int, folder: Path) -> list[Row]:
    """Time one raw row, checks and encoding included, beside the encoded row in Keras' predict."""
    import pandas as pd

    model = served(folder)
    parts = model.unwrap_python_model()
    raw = pd.read_csv(ROOT / "data" / "df_new.csv").iloc[:1]
    encoded = parts.tabular.encode_features(raw, parts.schema, parts.preprocessor)
    calls = {
        "ours": lambda: model.predict(raw),
        "predict": lambda: parts.network.predict(encoded, verbose=0),
    }
    alternate(calls, 5)
    took = alternate(calls, 20 * repetitions)
    measure = "one raw row through the pyfunc, against `network.predict` of the encoded row"
    return [faster(measure, took["ours"], took["predict"], 1)]


def million(repetitions: int, folder: Path) -> list[Row]:
    """Score many raw rows, as they come out of a Parquet and out of a CSV file."""
    import make_data

    import tabular

    model, rows = served(folder), []
    for suffix in ("parquet", "csv"):
        file = folder / f"big.{suffix}"
        make_data.write_rows(file, "new", SCORED_ROWS)
        start = time.perf_counter()
        table, _ = tabular.read_rows(file)
        reading = time.perf_counter() - start
        model.predict(table.iloc[:10_000])
        took = alternate({"ours": lambda table=table: model.predict(table)}, repetitions)["ours"]
        rate = SCORED_ROWS / took / 1e6
        measure = f"{SCORED_ROWS:,} raw rows of a {suffix} file scored (read in {reading:.1f} s)"
        met = verdict(rate >= 0.5)
        rows.append((measure, seconds(took), "–", f"{rate:.2f} M rows/s", f"≥ 0.5 M rows/s: {met}"))
    return rows


def limits(repetitions: int, folder: Path) -> list[Row]:
    """Compare the arithmetic of an epoch with what the machine multiplies at best."""
    import numpy as np

    from model_utils import create_nn_model, train_model

    X, y = sample(ROWS)
    model = create_nn_model(FEATURES)
    matrix = np.ones((2_048, 2_048), np.float32)
    calls = {
        "epoch": lambda: train_model(model, X, y, epochs=1, batch_size=BATCH),
        "sgemm": lambda: matrix @ matrix,
    }
    alternate(calls, 1)
    took = alternate(calls, repetitions)
    products = [FEATURES * 64, 64 * 32, 32]
    # Forward, gradient of the weights and, but for the first layer, gradient of the inputs.
    flops = 2 * ROWS * (3 * sum(products) - products[0])
    peak = 2 * len(matrix) ** 3 / took["sgemm"]
    measure = f"{flops / 1e9:.2f} GFLOP of products in an epoch, against sgemm of 2,048²"
    reached = f"{flops / took['epoch'] / 1e9:.1f} GFLOP/s"
    share = f"{flops / took['epoch'] / peak:.1%}"
    return [(measure, reached, f"{peak / 1e9:.0f} GFLOP/s", share, "none")]


MEASURES: dict[str, Callable[[int, Path], list[Row]]] = {
    "epoch": epoch,
    "short": short,
    "scripts": scripts,
    "one_row": one_row,
    "million": million,
    "limits": limits,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ", ".join(MEASURES)
    parser.add_argument("--only", default=",".join(MEASURES), help=f"some of {names} (all)")
    parser.add_argument("--repetitions", type=int, default=5, help="median of so many (5)")
    args = parser.parse_args()
    args.only = args.only.split(",")
    unknown = set(args.only) - set(MEASURES)
    if unknown or args.repetitions < 1:
        parser.error(f"expected --repetitions from 1 on and --only with some of {names}")
    return args


def main() -> None:
    """Run the chosen measures, and print one table."""
    args = parse_args()
    print(f"{machine()}; medians of {args.repetitions}\n", flush=True)
    start_tensorflow()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            print(f"measuring {name} …", file=sys.stderr)
            rows += MEASURES[name](args.repetitions, Path(folder))
        print_table(["measure", "ours", "other", "ratio", "bar"], rows)


if __name__ == "__main__":
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the store is one of our own
    main()
