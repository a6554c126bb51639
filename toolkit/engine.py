"""Several processes or machines, by Ray: each reads, scores and trains on a share of the rows.

Belongs here: sharing out, and putting together again. What happens to rows is in the functions that
one process calls, too. Nothing of Ray is imported before `start`.
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
    if not address:  # Ray's name for keeping to the loopback interface
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
        import ray.train.tensorflow
    except ImportError as error:
        words = f"--workers {workers} needs Ray"
        raise UserError(f"{words}: pip install -r requirements-scale.txt") from error
    code = {"py_modules": [str(ROOT / "toolkit"), str(ROOT / "model_utils.py")]}
    options: Any = {"runtime_env": code} if address else {"num_cpus": workers}
    place = address or "local"  # else Ray would join whatever cluster this machine runs
    try:
        if not ray.is_initialized():
            quiet: Any = {"log_to_driver": False, "logging_level": "ERROR"}
            ray.init(place, include_dashboard=False, **quiet, **options)
    except ConnectionError as error:
        words = f"no cluster answers at RAY_ADDRESS={address}; start it with 'ray start --head'"
        raise UserError(f"{words}, or unset RAY_ADDRESS for processes on this machine") from error
    return ray


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise what was raised in a worker; where workers were lost, say so in one line."""
    from ray.exceptions import RayError, RayTaskError
    from ray.train import TrainingFailedError

    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
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
    """One of `count` shares of a source, which any process can read, again if it must.

    columns: of the whole source. n_rows: to train on, once counted. folder: on the disk of the
    machine that reads. collect: of `reading.py`.
    """

    number: int
    count: int
    data: str
    query: str | None
    columns: list[str]
    n_rows: int = 0
    folder: Path = Path()
    collect: Any = None

    def __len__(self) -> int:
        return self.n_rows

    def open(self) -> tables.Table:
        """Open the pieces of this share alone."""
        source = tables.open_table(self.data, self.query)
        return source.take_share(self.number, self.count, self.columns)

    def read(self) -> tuple[Any, list[str]]:
        """Read, conform, hash and keep the rows on this machine; return them and notes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        source = self.open()
        rows, notes = self.collect(source, source.blocks(), self.folder)
        (self.folder / ROWS).write_bytes(pickle.dumps(rows.without_sample()))
        return rows, [*source.notes, *notes]

    def rows(self) -> Any:
        """Return the rows that this machine keeps; another machine reads them first."""
        file = self.folder / ROWS
        return pickle.loads(file.read_bytes()) if file.is_file() else self.read()[0]

    def counted(self, role: Any) -> "Share":
        """Count the rows to train on; all without `role`."""
        blocks = self.rows().blocks()
        n_rows = sum(int((~role.held_out(b)).sum()) if role else len(b) for b in blocks)
        return replace(self, n_rows=n_rows)


def shares_of(source: tables.Table, settings: Any, **more: Any) -> list[Share]:
    """Cut a source into one share for each worker; its first rows tell the columns."""
    if not source.columns:
        next(source.blocks())
    place = settings.workers, settings.data, settings.query, source.columns
    return [Share(number, *place, **more) for number in range(settings.workers)]


def _map(function: Callable, shares: Sequence[Share], *arguments: Any) -> Any:
    ray = start(len(shares))
    task = ray.remote(scheduling_strategy="SPREAD", max_retries=RESTARTS)(function)
    with _plain_errors():
        return ray.get([task.remote(share, *arguments) for share in shares])


def read(
    collect: Callable, source: tables.Table, settings: Any, folder: str
) -> tuple[list[Share], list[Any]]:
    """Let each worker read a share into `folder`; return the shares, and (rows, notes) of each."""
    shares = shares_of(source, settings, collect=collect)
    shares = [replace(each, folder=Path(folder, str(each.number))) for each in shares]
    return shares, _map(Share.read, shares)


def share_rows(rows: Any, *encode: Any) -> Any:
    """Return the rows of a training as `train` takes them: shares, and how they are encoded."""
    return _map(Share.counted, rows.shares, encode[1]), encode


def stream(function: Callable, shares: Sequence[Share]) -> Iterator[Any]:
    """Yield in order what the generator `function` yields of each opened share."""
    ray = start(len(shares))
    remote = ray.remote(num_returns="streaming", max_retries=RESTARTS)
    task = remote(lambda share: (yield from function(share.open())))
    with _plain_errors():
        for results in [task.remote(share) for share in shares]:
            yield from map(ray.get, results)


def train(
    train_members: Callable,
    place: Path,
    network: Any,
    shares: Sequence[Share],
    encode: tuple,
    *arguments: Any,
    seed: int,
    **_: Any,
) -> Any:
    """Let each worker train on its share, with the same updates in all; return Keras' history.

    train_members, network and the further arguments are of `model_utils.py`; encode: those of
    `Rows.encode`. A training goes on from its last checkpoint in `place`, a folder that all
    machines see; callbacks are not called.
    """
    ray = start(len(shares))
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
    with _plain_errors():
        weights, _state, losses = state_of(trainer.fit().checkpoint)
    network.set_weights(weights)
    if not math.isfinite(losses[-1]):
        raise FloatingPointError("the loss is not finite")
    return SimpleNamespace(history={"loss": losses})
