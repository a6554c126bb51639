"""Several processes or machines, by Ray: each reads, scores and trains on a share of the rows.

What happens to rows is in functions that one process calls, too. `start` is the first to need Ray.
"""

import math
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import tables
from .errors import UserError, reason

ROOT = Path(__file__).parents[1]
RESTARTS = 3  # of workers that were killed
ROWS = "rows.pickle"  # in the folder of a share that was read


def start(workers: int) -> Any:
    """Join the cluster at RAY_ADDRESS, or start local processes, once; return the module `ray`.

    `cli.run` ends them. Raises UserError where Ray is not installed, or the cluster not there.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # each epoch waits for one
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    code = {"py_modules": [str(ROOT / "toolkit"), str(ROOT / "model_utils.py")]}
    options: Any = quiet | ({"runtime_env": code} if address else {"num_cpus": workers})
    if not address:  # Ray's name for keeping to the loopback interface
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
        import ray.train.tensorflow

        if not ray.is_initialized():  # without "local" it would join any cluster of this machine
            ray.init(address or "local", **options)
    except ImportError as error:
        words = f"--workers {workers} needs Ray"
        raise UserError(f"{words}: pip install -r requirements-scale.txt") from error
    except ConnectionError as error:
        words = f"no cluster answers at RAY_ADDRESS={address}; start it with 'ray start --head'"
        raise UserError(f"{words}, or unset RAY_ADDRESS for processes on this machine") from error
    return ray


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """Give `ray`, started; raise what a worker raises, and in one line that workers were lost."""
    ray = start(workers)
    from ray.exceptions import RayError, RayTaskError
    from ray.train import TrainingFailedError

    handler = signal.getsignal(signal.SIGINT)
    try:
        yield ray
    except SystemExit as error:  # Ray Train has a handler of its own, which leaves the process
        raise KeyboardInterrupt from error
    except RayTaskError as error:
        raise error.cause from error
    except (RayError, TrainingFailedError) as error:
        why = reason(error)
        raise UserError(f"workers were lost ({why}); repeat the command with --resume") from error
    finally:
        signal.signal(signal.SIGINT, handler)


@dataclass(frozen=True)
class Share:
    """One of `count` shares of a source, which any process can read, again if it must."""

    number: int
    count: int
    place: tuple[str, str | None]  # of the whole source
    columns: list[str]
    folder: Path  # on the disk of the machine that reads
    collect: Any  # of `reading.py`

    def open(self) -> tables.Table:
        """Open the pieces of this share alone; without files lines count from its start."""
        table, n = tables.open_table(*self.place), self.number
        table.source = f"part {n + 1} of {self.count} of {table.source}" if n else table.source
        first, end = (len(table.pieces) * i // self.count for i in (n, n + 1))
        table.pieces, table.columns = table.pieces[first:end], self.columns
        table.is_share = self.count > 1
        return table

    def read(self) -> tuple[Any, list[str]]:
        """Read, conform, hash and keep the rows on this machine; return them and notes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        source = self.open()
        rows, notes = self.collect(source, source.blocks(), self.folder)
        (self.folder / ROWS).write_bytes(pickle.dumps(replace(rows, parts=[])))
        return rows, [*source.notes, *notes]

    def rows(self) -> Any:
        """Return the rows that this machine keeps; another machine reads them first."""
        file = self.folder / ROWS
        return pickle.loads(file.read_bytes()) if file.is_file() else self.read()[0]


def shares_of(
    source: tables.Table, settings: Any, folder: str = "", collect: Callable | None = None
) -> list[Share]:
    """Cut a source into one share for each worker; its first rows tell the columns."""
    if not source.columns:
        next(source.blocks())
    n, place = settings.workers, (settings.data, settings.query)
    return [Share(i, n, place, source.columns, Path(folder, str(i)), collect) for i in range(n)]


def stream(function: Callable, shares: Sequence[Share]) -> Iterator[Any]:
    """Yield in order what the generator `function` yields of each share, in workers."""
    options = {"num_returns": "streaming", "scheduling_strategy": "SPREAD"}
    with _cluster(len(shares)) as ray:
        task = ray.remote(max_retries=RESTARTS, **options)(function)
        for results in [task.remote(share) for share in shares]:
            yield from map(ray.get, results)


def train(
    train_members: Callable,
    place: Path,
    network: Any,
    shares: Sequence[Share],
    encode: Sequence[Any],
    *arguments: Any,
    seed: int,
    **_: Any,
) -> Any:
    """Let each worker train on its share, with the same updates in all; return Keras' history.

    train_members, network and the further arguments are of `model_utils.py`; encode: those of
    `Rows.encode`. A training goes on from its last checkpoint in `place`, a folder that all
    machines see; callbacks are not called.
    """
    with _cluster(len(shares)) as ray:
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.tensorflow import TensorflowTrainer

        from .distributed import state_of, train_share

        work = (train_members, ray.cloudpickle.dumps(network), shares, encode, arguments, seed)
        trainer = TensorflowTrainer(
            train_share,
            train_loop_config={"work": work},
            scaling_config=ScalingConfig(num_workers=len(shares), placement_strategy="SPREAD"),
            run_config=RunConfig(
                place.name,
                str(place.parent.resolve()),
                failure_config=FailureConfig(max_failures=RESTARTS),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )
        values, losses = state_of(trainer.fit().checkpoint)
    network.set_weights(values[: len(network.weights)])
    if not math.isfinite(losses[-1]):
        raise FloatingPointError("the loss is not finite")
    return SimpleNamespace(history={"loss": losses})
