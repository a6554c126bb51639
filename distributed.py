"""Training with several workers, or with several GPUs of one machine.

Belongs here: who takes part (`TF_CONFIG`), how one training is shared out. Not here: what a
training is (`model_utils.py`), who writes results (the scripts: worker 0 alone).

Worker 0 leads: it searches for the settings, then starts a training in which every worker takes
its share of each minibatch, and in the end lets the others go.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TextIO

import keras
import numpy as np
import tensorflow as tf

from tabular import UserError

BLOCK = 1024  # rows whose activations fit in the cache of a core
PROFITABLE_BATCH = 4096  # rows per update below which exchanging gradients costs more than it saves
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnknownError,  # what TensorFlow makes of a lost connection of ours
)

# TensorFlow allows one cluster per process.
_strategy: Any = None
_number = 0
WATCH_SECONDS, MISSES = 2.0, 3  # a worker that does not listen so often is gone
_watch_over = threading.Event()
# Worker 0's connections to all others, in their order; another worker's connection to worker 0.
_peers: list[socket.socket] = []
CONNECT_SECONDS = 10
# Vectors go at once; a machine that is silent for 20 seconds is lost.
TCP_OPTIONS = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2}
TCP_OPTIONS["TCP_USER_TIMEOUT"] = 20_000


# --- who takes part ----------------------------------------------------------------------------


def join(timeout: float, tell: Callable[[str], object] = str, stderr: TextIO | None = None) -> None:
    """Wait for the other workers of `TF_CONFIG`, or take all GPUs where there are several.

    Must come before any other use of TensorFlow. Without `TF_CONFIG` and with one GPU or none it
    does nothing. Raises UserError when a worker has not come within `timeout` seconds; `tell` is
    told who is missing, `stderr` is where the process ends if one comes and goes at once.
    """
    global _strategy, _number
    addresses, number = read_cluster(os.environ.get("TF_CONFIG", ""))
    if len(addresses) > 1 and not is_active():
        _meet(addresses, number, timeout, tell)
        # A worker that dies right now would block this one for an hour, deaf to signals.
        faulthandler.dump_traceback_later(timeout, exit=True, file=stderr or sys.stderr)
        _strategy, _number = tf.distribute.MultiWorkerMirroredStrategy(), number
        if not tf.config.list_physical_devices("GPU"):
            _connect(addresses, min(CONNECT_SECONDS, timeout / 4))
        faulthandler.cancel_dump_traceback_later()
        _watch([address for i, address in enumerate(addresses) if i != number])
    elif len(tf.config.list_physical_devices("GPU")) > 1 and not is_active():
        _strategy = tf.distribute.MirroredStrategy()


def is_active() -> bool:
    """Tell whether a training can be shared out."""
    return _strategy is not None


def is_leader() -> bool:
    """Tell whether this is worker 0, which alone writes results."""
    return _number == 0


def notes(batch_size: int) -> list[str]:
    """Say in words what the user should know about the workers."""
    if not is_active() or batch_size >= PROFITABLE_BATCH:
        return []
    return [
        f"{_strategy.num_replicas_in_sync} workers share {batch_size} rows per update, which is "
        f"slower than one alone; from about --batch-size {PROFITABLE_BATCH} on they are faster"
    ]


def read_cluster(text: str) -> tuple[list[str], int]:
    """Read the JSON of `TF_CONFIG`; return (addresses of all workers, number of this one).

    A chief, where there is one, is worker 0. An empty text or cluster means one worker: ([], 0).
    Raises UserError for anything else.
    """
    try:
        config = json.loads(text or "{}")
        jobs = config.get("cluster") or {}
        workers = [(job, i) for job in ("chief", "worker") for i in range(len(jobs.get(job, [])))]
        if not jobs:
            return [], 0
        task = config["task"]
        addresses = [jobs[job][i] for job, i in workers]
        [_port(address) for address in addresses]
        return addresses, workers.index((task["type"], int(task["index"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"TF_CONFIG is {text[:200]!r} ({error}); expected JSON such as "
            '{"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, "task": {"type": "worker", '
            '"index": 0}}, with a task among the workers'
        ) from error


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _meet(addresses: list[str], number: int, timeout: float, tell: Callable[[str], object]) -> None:
    """Wait until every worker listens: in Python, since TensorFlow's own wait knows no end."""
    missing = {i for i in range(len(addresses)) if i != number}
    deadline = time.monotonic() + timeout
    try:
        listener = socket.create_server(("", _port(addresses[number])), backlog=len(addresses) * 4)
    except OSError as error:
        raise UserError(
            f"worker {number} cannot listen at {addresses[number]} ({error.strerror}); expected a "
            "free port: end the process that holds it, or change TF_CONFIG of all workers"
        ) from error
    with listener:
        while missing:
            missing = {i for i in missing if not _listens(addresses[i])}
            names = ", ".join(f"{i} ({addresses[i]})" for i in sorted(missing))
            tell(f"waiting for worker {names}" if missing else "all workers are here")
            if missing and time.monotonic() > deadline:
                raise UserError(
                    f"worker {names} did not come within {timeout:g} s; expected the same command "
                    "there, with its own index in TF_CONFIG: start it, or raise --worker-timeout"
                )
            time.sleep(0.2 if missing else 0)


def _listens(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(OSError), socket.create_connection((host, _port(address)), 1):
        return True
    return False


def _watch(addresses: list[str]) -> None:
    """Raise UserError in the main thread when one of the others is gone.

    TensorFlow notices that in an exchange; before the first one, rows may be read for long.
    """
    _watch_over.clear()
    missed = dict.fromkeys(addresses, 0)

    def stop(*_: object) -> None:
        if not _watch_over.is_set():
            raise _lost(max(missed, key=missed.__getitem__))

    def look() -> None:
        while max(missed.values()) < MISSES:
            if _watch_over.wait(WATCH_SECONDS):
                return
            missed.update({a: 0 if _listens(a) else n + 1 for a, n in missed.items()})
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, stop)
    threading.Thread(target=look, daemon=True).start()


def _connect(addresses: list[str], seconds: float) -> None:
    """Connect every worker to worker 0, at a port that it chooses; a key keeps strangers out.

    Where that port cannot be reached within some `seconds`, `_peers` stays empty and TensorFlow's
    exchange remains.
    """
    key = _from_leader(np.frombuffer(os.urandom(16), np.uint32)).astype(np.uint32)
    found = {}
    with socket.create_server(("", 0), backlog=len(addresses)) as listener:
        listener.settimeout(seconds)
        port = int(_from_leader(np.array([listener.getsockname()[1]]))[0])
        with contextlib.suppress(OSError):
            if not is_leader():
                host = addresses[0].rpartition(":")[0].strip("[]")
                found[0] = socket.create_connection((host, port), seconds)
                found[0].sendall(np.append(key, np.uint32(_number)).data)
            while is_leader() and len(found) < len(addresses) - 1:
                peer = listener.accept()[0]
                peer.settimeout(seconds)
                *said, number = _receive(peer, np.append(key, np.uint32(0)))
                if said == [*key]:
                    found[int(number)] = peer
    all_came = _from_leader(np.array([len(found) == len(addresses) - 1]))[0]
    _peers[:] = [found[i] for i in sorted(found)] if all_came else []
    for peer in _peers:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in TCP_OPTIONS.items():
            if hasattr(socket, name):  # not on every system
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _lost(what: str) -> UserError:
    return UserError(
        f"worker {_number} lost another worker ({what}); expected all to run to the end: start all "
        "of them again, with --resume for the last checkpoint"
    )


# --- one training, shared out ------------------------------------------------------------------


@contextlib.contextmanager
def _told_when_lost() -> Iterator[None]:
    try:
        yield
    except LOST as error:
        raise _lost(type(error).__name__) from error


def agree(model: keras.Model, initial_epoch: int) -> int | None:
    """Give every worker the model's state, weight decay and first epoch of worker 0.

    Returns the first epoch, or None when worker 0 is done and starts no training any more.
    """
    _watch_over.set()
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    go, first, decay = _from_leader(np.array([1, initial_epoch, optimizer.weight_decay or 0]))
    if not go:
        return None
    if optimizer.weight_decay is not None:
        optimizer.weight_decay = float(decay)
    values = [variable.numpy() for variable in _variables(model)]
    flat = _from_leader(np.concatenate([np.ravel(value) for value in values]))
    ends = np.cumsum([value.size for value in values])
    for variable, value, part in zip(
        _variables(model), values, np.split(flat, ends[:-1]), strict=True
    ):
        variable.assign(part.reshape(value.shape).astype(value.dtype))
    return int(first)


def release() -> None:
    """Let the other workers end; for worker 0, when all is written."""
    if is_active():
        _watch_over.set()
        with contextlib.suppress(UserError):  # nothing needs them any more
            _from_leader(np.zeros(3))


def program(model: keras.Model, batch_size: int) -> Callable:
    """Write one epoch of training that all replicas share; `batch_size` counts their rows together.

    Every replica computes the gradients of its share, all add them up, and each process takes the
    same update: their variables stay equal without being exchanged. XLA compiles both halves, but
    no exchange between CPUs, and no replica that is not alone in its process. A share is worked
    off in blocks whose activations stay in the processor's cache, which two processes would
    otherwise contend for: about a fifth faster.

    Returns `train(data, order, is_first)`, which gives the epoch's logs so far: the updates are
    those of one worker with the same order. Every worker must call it with the same data.
    Raises UserError when a worker is lost.
    """
    weights, optimizer = model.trainable_variables, model.optimizer
    sizes = [int(np.prod(w.shape)) for w in weights]
    compiled = partial(tf.function, jit_compile=_is_alone(), autograph=False)

    @compiled
    def own_rows(data: tuple, order: tf.Tensor, replica: tf.Tensor) -> tuple:
        numbers, weight, n_rows = shard(order, batch_size, replica)
        X, y, given = (None if part is None else tf.gather(part, numbers) for part in data)
        return X, y, weight if given is None else weight * given, n_rows

    def block_gradients(X: tf.Tensor, y: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(X, y, model(X, training=True), weight)
        found = tape.gradient(loss, weights, unconnected_gradients="zero")
        return tf.concat([[loss], *[tf.reshape(g, [-1]) for g in found]], 0)

    @compiled
    def gradients(i: tf.Tensor, *rows: tf.Tensor) -> tf.Tensor:
        # An index in brackets must be known to XLA: it would compile anew for every minibatch.
        *blocks, n_rows = (tf.gather(part, i) for part in rows)
        n_blocks = blocks[0].shape[0]

        def body(j: tf.Tensor, total: tf.Tensor) -> tuple:
            return j + 1, total + block_gradients(*[tf.gather(part, j) for part in blocks])

        state = (tf.constant(0), tf.zeros(1 + sum(sizes)))
        mean = tf.while_loop(lambda j, _: j < n_blocks, body, state)[1] / n_blocks
        return tf.concat([mean[:1] * n_rows, mean[1:]], 0)

    @compiled
    def update(summed: tf.Tensor) -> tf.Tensor:
        loss, *parts = tf.split(summed, [1, *sizes])
        found = [tf.reshape(p, w.shape) for p, w in zip(parts, weights, strict=True)]
        optimizer.apply(found, weights)
        return loss[0]

    def deal(data: tuple, order: tf.Tensor) -> tuple:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return own_rows(data, order, replica)

    @tf.function(autograph=False, reduce_retracing=True)
    def epoch(data: tuple, order: tf.Tensor) -> tf.Tensor:
        rows = _strategy.run(deal, (data, order))

        def body(i: tf.Tensor, total: tf.Tensor) -> tuple:
            return i + 1, total + update(_sum(_strategy.run(gradients, (i, *rows))))

        batches = -(-tf.size(order) // batch_size)
        state = (tf.constant(0), tf.constant(0.0))
        return tf.while_loop(lambda i, _: i < batches, body, state)[1]

    @_told_when_lost()
    def train(data: tuple, order: np.ndarray, is_first: bool) -> dict[str, float]:
        if is_first:
            model.reset_metrics()
        loss = float(epoch(data, tf.constant(order, tf.int32))) / len(order)
        # Adds up the parts of rows on disk.
        model.metrics[0].update_state(loss, sample_weight=len(order))
        return {"loss": float(model.metrics[0].result())}

    return train


def _sum(parts: tf.distribute.DistributedValues) -> tf.Tensor:
    """Add the vectors of all replicas: one exchange for loss and gradients together.

    From CPU to CPU over connections of our own: TensorFlow's way, by gRPC and half a dozen threads,
    takes as long as a tenth of an update of 16,384 rows.
    """
    if not _peers:
        return _strategy.reduce("SUM", parts, axis=None)
    total = tf.numpy_function(_add_up, [parts], tf.float32)
    total.set_shape(parts.shape)
    return total


def _add_up(mine: np.ndarray) -> np.ndarray:
    """Send a vector to worker 0, which adds up those of all, in their order, and sends the sum."""
    if not is_leader():
        _peers[0].sendall(mine.data)
        return _receive(_peers[0], mine)
    total = sum((_receive(peer, mine) for peer in _peers), mine)
    for peer in _peers:
        peer.sendall(total.data)
    return total


def _receive(peer: socket.socket, like: np.ndarray) -> np.ndarray:
    """Wait for an array of the shape and type of another. Raises ConnectionError."""
    received = np.empty_like(like)
    missing = received.data.cast("B")
    while missing:
        n_bytes = peer.recv_into(missing)
        if n_bytes == 0:
            raise ConnectionError("a worker is gone")
        missing = missing[n_bytes:]
    return received


def _is_alone() -> bool:
    """Tell whether this process has one replica only."""
    return len(_strategy.extended.worker_devices) == 1


def shard(order: tf.Tensor, batch_size: int, replica: tf.Tensor) -> tuple:
    """Choose a replica's rows of every global batch of an epoch.

    Every replica takes as many, in blocks of at most `BLOCK`, so that all exchange gradients as
    often; rows beyond the end of the batch weigh nothing. The weights make the mean gradients of
    the blocks add up, over all replicas, to that of the mean loss over the batch: Keras divides by
    the rows of a block and by the number of replicas.

    Returns (row numbers of shape (n_batches, n_blocks, block), weights of that shape, rows in each
    global batch of shape (n_batches,)).
    """
    replicas = _strategy.num_replicas_in_sync
    n_blocks = -(-batch_size // (replicas * BLOCK))
    block = -(-batch_size // (replicas * n_blocks))
    share = n_blocks * block
    starts = tf.range(0, tf.size(order), batch_size)[:, None]
    sizes = tf.minimum(batch_size, tf.size(order) - starts)
    place = replica * share + tf.range(share)
    numbers = tf.gather(order, starts + tf.minimum(place, sizes - 1))
    is_inside = tf.cast(place < sizes, tf.float32)
    sizes = tf.cast(sizes, tf.float32)
    weights = is_inside * (share * replicas / sizes)
    in_blocks = [-1, n_blocks, block]
    return tf.reshape(numbers, in_blocks), tf.reshape(weights, in_blocks), sizes[:, 0]


def _variables(model: keras.Model) -> tuple:
    return (*model.variables, *model.optimizer.variables)


@_told_when_lost()
def _from_leader(values: np.ndarray) -> np.ndarray:
    """Exchange arrays of equal shape; return that of worker 0, exactly, as float64."""
    values = values.astype(float)

    def part(context: Any) -> tf.Tensor:
        leads = context.replica_id_in_sync_group == 0
        return tf.constant(values if leads else np.zeros_like(values))

    parts = _strategy.experimental_distribute_values_from_function(part)
    return _strategy.reduce("SUM", parts, axis=None).numpy()
