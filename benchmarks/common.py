"""What the benchmarks share: the machine's name, timings in turn, tables, both trainings."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
sys.path[:0] = [str(ROOT), str(DATA)]

import cli  # noqa: E402

with cli.quiet_start():  # no start-up lines of TensorFlow between the tables
    import model_utils

    model_utils.wake_device()


def print_machine() -> None:
    """Name the machine and the packages that the figures belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ("tensorflow", "keras", "mlflow", "scikit-learn", "numpy", "pandas")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{names[0] if names else 'unknown CPU'}, {os.cpu_count()} cores, load", end=" ")
    print(f"{os.getloadavg()[0]:.1f} before; Python {sys.version.split()[0]}, {versions}\n")


def take_turns(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Call everything in turn, `repetitions` times; return the median seconds of each.

    In turn, so that a busy minute of the machine falls on all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table with aligned columns."""
    cells = [list(header), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print(f"| {' | '.join(padded)} |")
    print(flush=True)


def print_bar(measure: str, value: float, sign: str, bar: float) -> None:
    """Print a figure with its bar and whether it is met; `sign` is ≤ or ≥."""
    met = value <= bar if sign == "≤" else value >= bar
    print(
        f"{measure}: {value:.3f} (bar {sign} {bar:g}: {'met' if met else 'MISSED'})\n", flush=True
    )


def train(data: str | Path, target: str, seed: int):
    """Train as `mlflow_monitoring.py` does by default; return (TrainedModel, its Data)."""
    import mlflow_monitoring as script
    import streaming

    args = script.parse_args(["--data", str(data), "--target", target, "--seed", str(seed)])
    rows = script.read(args, Path(), streaming.silent)
    trained, X, y = script.build_model(args, rows)
    script.fit_model(args, rows, trained, X, y, model_utils.Checkpoint(None))
    return trained, rows


def retrain(parent, data: str | Path, seed: int, replay: int | None = None):
    """Retrain as `mlflow_retrain.py` does by default; return (Retrained, its Rows)."""
    import mlflow_retrain
    import retraining

    args = mlflow_retrain.parse_args(["--seed", str(seed)])
    rates = {"learning_rate": args.learning_rate, "batch_size": args.batch_size}
    choice = {"test_size": args.test_size, "seed": seed, "replay": replay}
    rows = retraining.prepare_rows(parent, str(data), **choice)
    start = retraining.prepare_child(parent, rows, **rates)
    options = {"epochs": args.epochs, "seed": seed, "memory_rows": args.memory_rows}
    return retraining.retrain(parent, rows, start, controls=False, **options, **rates), rows
