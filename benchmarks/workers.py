"""Time two workers with one core each beside one worker on one core, at the same global batch.

python benchmarks/workers.py
python benchmarks/workers.py --rows 200000 --turns 1

Prints rows/s of both, their ratio, and how far the losses of ten epochs of SGD lie apart.
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


def work(core: int, rows: int, epochs: int) -> None:
    """Train as one worker on one core; print seconds per epoch and the losses of SGD as JSON."""
    os.sched_setaffinity(0, {core})
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import cli

    with cli.quiet_start():
        import keras
        import numpy as np

        import distributed
        import model_utils

        distributed.join(120)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, FEATURES), dtype=np.float32)
    y = np.maximum(X[:, 0] + X[:, 1] * X[:, 2], 0) + 0.3 * rng.standard_normal(rows)
    options = {"batch_size": BATCH, "seed": 1, "spread": distributed.is_active()}
    scale = model_utils.target_scale(y)  # with it, the network is the one that the scripts train
    begun, model = [], model_utils.create_nn_model(FEATURES, scale=scale, seed=0)
    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: begun.append(time.perf_counter())
    )
    model_utils.train_model(model, X, y, epochs=epochs + 2, callbacks=[clock], **options)
    model = model_utils.create_nn_model(FEATURES, scale=scale, seed=0)
    model.compile(keras.optimizers.SGD(0.05), loss="mse")
    few = X[:SGD_ROWS], y[:SGD_ROWS]
    history = model_utils.train_model(model, *few, epochs=SGD_EPOCHS, **options)[1].history
    seconds = np.diff(begun)[1:]  # without the first epoch, which may compile
    print(json.dumps({"seconds": float(np.median(seconds)), "losses": history["loss"]}))


def start(cores: list[int], rows: int, epochs: int) -> dict:
    """Run one worker per core; return what worker 0 printed."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in cores]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    processes = []
    for i, core in enumerate(cores):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
        command = [sys.executable, __file__, "--core", core, "--rows", rows, "--epochs", epochs]
        environment = os.environ | {"TF_CONFIG": json.dumps(task)}
        processes.append(
            subprocess.Popen([*map(str, command)], env=environment, stdout=subprocess.PIPE)
        )
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a worker failed")
    return json.loads(outputs[0])


def main() -> None:
    """Take turns, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs timed (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="repetitions (%(default)s)")
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.core is not None:
        work(args.core, args.rows, args.epochs)
        return
    import numpy as np
    from common import print_bar, print_machine, print_table

    print_machine()
    cores = sorted(os.sched_getaffinity(0))[:2]
    turns = [
        [start(chosen, args.rows, args.epochs) for chosen in (cores[:1], cores)]
        for _ in range(args.turns)
    ]
    speed = [args.rows / np.median([turn[i]["seconds"] for turn in turns]) for i in (0, 1)]
    one, two = turns[0][0]["losses"], turns[0][1]["losses"]
    names = ["1 worker, 1 core", "2 workers, 1 core each"]
    table = [(name, f"{value / 1e6:.2f} M") for name, value in zip(names, speed, strict=True)]
    print_table(["global batch 16,384", "rows/s"], table)
    print_bar("rows/s of 2 workers / rows/s of 1", speed[1] / speed[0], "≥", 1.4)
    print(f"{MEASURE}: {np.abs(np.divide(two, one) - 1).max():.1e} (bar ≤ 1e-5)")


if __name__ == "__main__":
    main()
