"""Time training and the two scripts beside what a user would run instead.

python benchmarks/speed.py
python benchmarks/speed.py --only epoch short --repetitions 3

Whatever stands in one row took turns in one run; the figures are medians.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common  # first of all: it puts the project on the path
from common import take_turns

ROWS, FEATURES, BATCH = 200_000, 26, 32
SHORT_ROWS, SHORT_EPOCHS = 1_600, 60
CATBOOST_ROWS = (2_000, 5_000, 20_000)
NETWORK = {"hidden_layer_sizes": (64, 32), "batch_size": BATCH}  # scikit-learn's, as ours
IMPORTS = "import tensorflow, mlflow"
# Read, encode and fit as a user of CatBoost would, its categories in its own way.
CATBOOST = """
import catboost, pandas, sys
rows = pandas.read_csv(sys.argv[1]).drop(columns=["nom", "prenom"])
X, y = rows.iloc[:, :-1], rows.iloc[:, -1]
text = list(X.select_dtypes(exclude="number"))
catboost.CatBoostRegressor(verbose=0, cat_features=text, allow_writing_files=False).fit(X, y)
"""
Row = tuple[str, float, float, str, float]  # measure, our seconds, other's, sign of the bar, bar


def sample(rows: int) -> tuple[Any, Any]:
    """Draw standardised features and a target that a network can learn, both float32."""
    import numpy as np

    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, FEATURES), dtype=np.float32)
    noise = rng.standard_normal(rows, dtype=np.float32)
    return X, np.maximum(X[:, 0] + X[:, 1] * X[:, 2], 0) + 0.3 * noise


def epoch_seconds(fit: Callable, epochs: int) -> float:
    """Train for some epochs; return the median of the later ones, which compile nothing."""
    import keras
    import numpy as np

    ends: list[float] = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    fit(epochs=epochs, batch_size=BATCH, verbose=0, callbacks=[note])
    return float(np.median(np.diff(ends)))


def epoch(repetitions: int, folder: Path) -> Iterator[Row]:
    """Time one epoch of many rows, once everything is compiled."""
    common.start()
    from sklearn.neural_network import MLPRegressor

    from model_utils import create_nn_model, train_model

    X, y = sample(ROWS)
    ours, keras_fit = create_nn_model(FEATURES), create_nn_model(FEATURES)
    sklearn = MLPRegressor(**NETWORK).partial_fit(X[:BATCH], y[:BATCH])
    calls: dict[str, Callable] = {
        "ours": lambda: epoch_seconds(partial(train_model, ours, X, y), 4),
        "fit": lambda: epoch_seconds(partial(keras_fit.fit, X, y), 2),
        "sklearn": lambda: sklearn.partial_fit(X, y) and None,
    }
    took = take_turns(calls, repetitions)
    what = f"epoch of {ROWS:,} × {FEATURES}, batch {BATCH}, against"
    yield f"{what} `model.fit`", took["ours"], took["fit"], "≥", 25
    yield f"{what} `MLPRegressor`", took["ours"], took["sklearn"], "≥", 6


def short_training(who: str) -> float:
    """Train a small model from nothing; return the seconds, compilation included."""
    X, y = sample(SHORT_ROWS)
    options: dict[str, Any] = {"epochs": SHORT_EPOCHS, "batch_size": BATCH, "verbose": 0}
    if who == "sklearn":
        from sklearn.neural_network import MLPRegressor

        fixed = {"max_iter": SHORT_EPOCHS, "n_iter_no_change": SHORT_EPOCHS}
        start = time.perf_counter()
        MLPRegressor(**NETWORK, **fixed).fit(X, y)
        return time.perf_counter() - start
    from model_utils import create_nn_model, train_model

    start = time.perf_counter()
    model = create_nn_model(FEATURES)
    if who == "ours":
        train_model(model, X, y, **options)
    else:
        model.fit(X, y, **options)
    return time.perf_counter() - start


def short(repetitions: int, folder: Path) -> Iterator[Row]:
    """Time a whole small training, each in a process of its own; imports do not count."""

    def run(who: str) -> float:
        command = [sys.executable, __file__, "--short", who]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(done.stdout.splitlines()[-1])

    took = take_turns({who: partial(run, who) for who in ("ours", "fit", "sklearn")}, repetitions)
    what = f"{SHORT_ROWS:,} rows × {SHORT_EPOCHS} epochs, compiled anew, against"
    yield f"{what} `model.fit`", took["ours"], took["fit"], "≥", 5
    yield f"{what} `MLPRegressor`", took["ours"], took["sklearn"], "≥", 1


def process(folder: Path, *arguments: object) -> None:
    """Run Python with its store and models in a folder."""
    command = [sys.executable, *map(str, arguments)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def script(folder: Path, name: str, data: Path, *flags: str) -> None:
    """Run one of the scripts in a process of its own."""
    process(folder, common.ROOT / f"{name}.py", "--quiet", "--data", data, *flags)


def retrain(folder: Path, data: Path, *flags: str) -> None:
    """Retrain in a copy of the store: where it was done before, no row of the file is new."""
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(folder, Path(place, "copy"), ignore=lambda *_: ["mlruns"])
        script(copy, common.RETRAIN, data, *flags)


def scripts(repetitions: int, folder: Path) -> Iterator[Row]:
    """Time the scripts from the outside, on a store that exists and has a champion."""
    old, new = common.DATA / "df_old.csv", common.DATA / "df_new.csv"
    calls: dict[str, Callable] = {
        "bare": lambda: process(folder, "-c", IMPORTS),
        common.TRAIN: lambda: script(folder, common.TRAIN, old),
        common.RETRAIN: lambda: retrain(folder, new, "--model-uri", first),
    }
    first = "models:/loan-amount/1"
    script(folder, common.TRAIN, old)
    took = take_turns(calls, repetitions)
    for name, bar in ((common.TRAIN, 2.0), (common.RETRAIN, 2.3)):
        what = f"`{name}.py`, whole process, against bare imports"
        yield what, took[name], took["bare"], "≤", bar


def catboost(repetitions: int, folder: Path) -> Iterator[Row]:
    """Time a first training against 1,000 trees of CatBoost, both as whole processes."""
    import make_data

    if not find_spec("catboost"):
        print("catboost is not installed: left out", file=sys.stderr)
        return
    for n_rows in CATBOOST_ROWS:
        file = folder / f"{n_rows}.csv"
        make_data.write_rows(file, "old", n_rows)
        calls: dict[str, Callable] = {
            "ours": partial(script, folder, common.TRAIN, file),
            "catboost": partial(process, folder, "-c", CATBOOST, file),
        }
        took = take_turns(calls, repetitions)
        what = f"first training on {n_rows:,} rows, against CatBoost, whole processes"
        yield what, took["ours"], took["catboost"], "≤", 1.0


def line(measure: str, ours: float, other: float, sign: str, bar: float) -> list[str]:
    """Lay out two times: how many times faster we are (bar ≥), or how many times longer (≤)."""
    ratio = other / ours if sign == "≥" else ours / other
    return [
        measure,
        f"{ours:.3f} s",
        f"{other:.3f} s",
        f"{ratio:.2f}×",
        common.held(ratio, sign, bar),
    ]


MEASURES = {measure.__name__: measure for measure in (epoch, short, scripts, catboost)}


def main() -> None:
    """Run the chosen measures, and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--repetitions", type=int, default=3, help="median of (%(default)s)")
    parser.add_argument("--short", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # as many epochs as ours are meant, converged or not
    if args.short:
        print(short_training(args.short))
        return
    print(common.machine())
    with tempfile.TemporaryDirectory() as place:
        rows = [row for name in args.only for row in MEASURES[name](args.repetitions, Path(place))]
    header = ["measure", "ours", "other", "ratio", "bar"]
    print(common.markdown(header, [line(*row) for row in rows]))


if __name__ == "__main__":
    main()
