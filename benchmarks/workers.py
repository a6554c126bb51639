"""Time two workers with one core each beside one worker on one core, at the same global batch.

python benchmarks/workers.py
python benchmarks/workers.py --rows 200000 --turns 1

The turns follow each other in the same two processes, so that a change of the machine's speed hits
both: worker 0 trains alone while worker 1 waits, then both train. Each turn compiles its own
program. Prints rows/s of both, the ratio within each turn, and how far the losses of ten epochs of
SGD lie apart.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time

FEATURES, BATCH, SGD_EPOCHS, SGD_ROWS = 26, 16_384, 10, 100_003
MEASURE = "relative difference of the losses of 2 workers and 1, 10 epochs of SGD"


def work(number: int, args: argparse.Namespace) -> None:
    """Train as one worker on one core; print seconds per epoch and the losses of SGD as JSON."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import cli

    with cli.quiet_start():
        import keras
        import numpy as np

        import distributed
        import model_utils

        distributed.join(120)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((args.rows, FEATURES), dtype=np.float32)
    y = np.maximum(X[:, 0] + X[:, 1] * X[:, 2], 0) + 0.3 * rng.standard_normal(args.rows)
    scale = model_utils.target_scale(y)  # with it, the network is the one that the scripts train

    def train(epochs: int, workers: int, rows: int, sgd: bool = False) -> tuple:
        if number >= workers:  # waits at the next training of both
            return [], []
        begun, model = [], model_utils.create_nn_model(FEATURES, scale=scale, seed=0)
        if sgd:
            model.compile(keras.optimizers.SGD(0.05), loss="mse")
        clock = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: begun.append(time.perf_counter())
        )
        options = {"batch_size": BATCH, "seed": 1, "callbacks": [clock], "spread": workers > 1}
        history = model_utils.train_model(model, X[:rows], y[:rows], epochs=epochs, **options)[1]
        # Without the first epoch, which compiles, and the last, whose end nobody notes.
        return np.diff(begun)[1:].tolist(), history.history["loss"]

    turns = [[train(args.epochs + 2, n, args.rows)[0] for n in (1, 2)] for _ in range(args.turns)]
    losses = [train(SGD_EPOCHS, n, SGD_ROWS, sgd=True)[1] for n in (1, 2)]
    print(json.dumps({"seconds": turns, "losses": losses}))


def start(args: argparse.Namespace) -> dict:
    """Run two workers, one per core; return what worker 0 printed."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    processes = []
    for i in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
        environment = os.environ | {"TF_CONFIG": json.dumps(task), "WORKER": str(i)}
        command = [sys.executable, *sys.argv]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a worker failed")
    return json.loads(outputs[0])


def main() -> None:
    """Let one worker and two take turns, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs a turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=7, help="repetitions (%(default)s)")
    args = parser.parse_args()
    if "WORKER" in os.environ:
        work(int(os.environ["WORKER"]), args)
        return
    import numpy as np
    from common import print_bar, print_machine, print_table

    print_machine()
    found = start(args)
    seconds = np.median(found["seconds"], axis=2)  # of an epoch; (turns, one worker or two)
    ratios, (one, two) = seconds[:, 0] / seconds[:, 1], found["losses"]
    speeds = args.rows / np.median(seconds, axis=0) / 1e6
    names = ["1 worker, 1 core", "2 workers, 1 core each"]
    table = [(name, f"{speed:.2f} M") for name, speed in zip(names, speeds, strict=True)]
    print_table(["global batch 16,384", "rows/s"], table)
    print(f"ratio in each turn: {', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))}")
    print_bar("rows/s of 2 workers / rows/s of 1, median", np.median(ratios), "≥", 1.4)
    print(f"{MEASURE}: {np.abs(np.divide(two, one) - 1).max():.1e} (bar ≤ 1e-5)")


if __name__ == "__main__":
    main()
