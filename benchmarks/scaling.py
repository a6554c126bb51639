"""Measure memory and speed of trainings on rows that are read in chunks.

python benchmarks/scaling.py
python benchmarks/scaling.py --rows 20000000 --formats parquet

Files of 1 million and of `--rows` rows are made in a temporary folder: 2 GB of Parquet and CSV for
20 million rows, and as much again for the network's input.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common  # first of all: it puts the project on the path
import make_data
from common import print_bar, print_table

import streaming
from model_utils import create_nn_model, target_scale, train_model

FEW, BATCH = 1_000_000, 4_096
ONE_PASS, PREPARATION = "read, transform and write (1 pass)", "all preparation"
EPOCH = "epoch, of its training rows"


def peak(data: Path, folder: Path) -> tuple[float, float]:
    """Train on a file in another process; return (peak of its own memory in MB, seconds)."""
    script = [sys.executable, str(common.ROOT / "mlflow_monitoring.py"), "--data", str(data)]
    flags = ["--stream", "--epochs", "2", "--batch-size", str(BATCH), "--quiet"]
    start, highest = time.perf_counter(), 0
    process = subprocess.Popen([*script, *flags], cwd=folder)
    while process.poll() is None:
        # Anonymous memory: pages of files on disk can be given back at any time.
        status = Path(f"/proc/{process.pid}/status").read_text()
        if "RssAnon" in status:
            highest = max(highest, int(status.split("RssAnon:")[1].split()[0]))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"training on {data} failed")
    return highest / 1024, time.perf_counter() - start


def rates(data: Path, folder: Path) -> dict[str, float]:
    """Time the passes over a file and an epoch; seconds per million rows of the file."""
    import mlflow_monitoring as script

    args = script.parse_args(["--data", str(data), "--stream", "--batch-size", str(BATCH)])
    with streaming.workspace(folder) as place:
        start = time.perf_counter()
        rows = script.read(args, place, streaming.silent)
        looked = time.perf_counter()
        totals = rows.stream.totals
        X = rows.stream.encode(rows.schema, totals.preprocessor(), BATCH, args.seed)
        encoded = time.perf_counter()
        network = create_nn_model(X.shape[1], scale=target_scale(totals))
        train_model(network, X, None, epochs=1, batch_size=BATCH)  # compiles
        epoch = time.perf_counter()
        train_model(network, X, None, epochs=1, batch_size=BATCH)
        end = time.perf_counter()
    millions, trained = rows.stream.source.n_rows / 1e6, len(X) / 1e6
    return {
        "check, split and measure (2 passes)": (looked - start) / millions,
        ONE_PASS: (encoded - looked) / millions,
        PREPARATION: (encoded - start) / millions,
        EPOCH: (end - epoch) / trained,
    }


def main() -> None:
    """Make the files, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--formats", default="parquet,csv", help="with a comma (%(default)s)")
    args = parser.parse_args()
    common.print_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix in args.formats.split(","):
            few, many = (folder / f"{n}.{suffix}" for n in ("few", "many"))
            for file, n_rows in ((few, FEW), (many, args.rows)):
                make_data.write_rows(file, "old", n_rows)
            memory = {file: peak(file, folder) for file in (few, few, many)}
            lines = [
                (f"{n:,}", f"{memory[file][0]:.0f} MB", f"{memory[file][1]:.0f} s")
                for n, file in ((FEW, few), (args.rows, many))
            ]
            print_table([f"rows of {suffix}", "peak own memory", "whole process, 2 epochs"], lines)
            ratio = memory[many][0] / memory[few][0]
            print_bar(f"peak memory, {args.rows:,} rows against {FEW:,}", ratio, "≤", 1.5)
            if suffix == "parquet":
                growth(few, many, folder, args.rows)
            few.unlink(), many.unlink()


def growth(few: Path, many: Path, folder: Path, n_rows: int) -> None:
    """Print the speed of each stage on few and on many rows."""
    rates(few, folder)  # first use of everything
    small, large = rates(few, folder), rates(many, folder)
    lines = [(stage, f"{1 / small[stage]:.2f}", f"{1 / large[stage]:.2f}") for stage in large]
    print_table(["million rows per second", f"of {FEW:,}", f"of {n_rows:,}"], lines)
    epoch, prepared = 1 / large[EPOCH], 1 / large[PREPARATION]
    print_bar("streamed epoch, million rows per second", epoch, "≥", 1.5)
    one_pass = 1 / large[ONE_PASS]
    print_bar("read, transform and write, million rows per second", one_pass, "≥", 1.0)
    print_bar("all preparation, million rows per second", prepared, "≥", 1.0)
    for stage in (PREPARATION, EPOCH):
        slower = large[stage] / small[stage]
        print_bar(f"time per row, many against few: {stage}", slower, "≤", 1.15)


if __name__ == "__main__":
    main()
