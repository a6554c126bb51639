"""What one of several workers does in a training, in step with the others.

It replaces Keras' own `fit`, which fails under TensorFlow's strategy for several (keras#20585).
"""

import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

STATE = "state.pickle"  # the file in a checkpoint
BLOCK_ROWS = 2**18  # of a worker, shuffled and trained on between two looks of Python


def train_share(config: dict[str, Any]) -> None:
    """Train in one of the workers, on the rows of its own share."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow
    train_members, network, shares, encode, arguments, seed = config["work"]
    X, y, weights = shares[strategy.cluster_resolver.task_id].rows().encode(*encode)
    options = {"sample_weight": [weights], "seed": seed, "train": partial(fit, strategy)}
    with suppress(FloatingPointError), strategy.scope():  # the process that waits raises it
        train_members(pickle.loads(network), X, y, *arguments, **options)


def state_of(checkpoint: Any) -> tuple[list, list[float]]:
    """Read what `fit` saved: (values of the variables of network and optimizer, losses)."""
    with checkpoint.as_directory() as folder:
        return pickle.loads(Path(folder, STATE).read_bytes())


def fit(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    X: Sequence[np.ndarray],
    z: Sequence[np.ndarray],
    *,
    sample_weight: Sequence[np.ndarray],
    epochs: int,
    batch_size: int,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **_: Any,
) -> tuple[keras.Model, Any]:
    """Work as `model_utils.train_model` on this worker's block; each epoch saves a checkpoint."""
    from ray.train import Checkpoint, get_checkpoint, report

    rank = strategy.cluster_resolver.task_id
    sizes = strategy.gather(tf.constant([len(X[0])]), axis=0).numpy()  # of all workers
    model.optimizer.build(model.trainable_variables)
    variables, losses = [*model.weights, *model.optimizer.variables], list[float]()
    if checkpoint := get_checkpoint():
        values, losses = state_of(checkpoint)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    watched = keras.callbacks.CallbackList(list(callbacks), model=model)
    run = compiled(strategy, model)
    for epoch in range(len(losses), epochs):
        watched.on_epoch_begin(epoch)
        order = np.random.default_rng((seed, epoch, rank))
        blocks = minibatches((X[0], z[0], sample_weight[0]), sizes, rank, batch_size, order)
        losses.append(sum(float(run(*block)) for block in blocks) / sum(sizes))
        state = [variable.numpy() for variable in variables], losses
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, STATE).write_bytes(pickle.dumps(state))
            report({"loss": losses[-1]}, checkpoint=None if rank else Checkpoint(folder))
    return model, SimpleNamespace(history={"loss": losses})


def minibatches(
    data: tuple, sizes: np.ndarray, rank: int, batch_size: int, order: np.random.Generator
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield this worker's part of minibatches, many at a time: (X, z, weights, rows of all).

    data: (X, z, weights) of its rows; sizes: how many rows each worker has. Yielded are shapes
    (n, size, width), (n, size, members or 1), (n, size), (n,), all float32. All workers go through
    their rows in as many minibatches, so that each update takes rows of all. A part is filled up
    with rows without a target, which do not count.
    """
    n_blocks = -(-max(sizes) // BLOCK_ROWS)
    edges = np.outer(sizes, np.arange(n_blocks + 1)) // n_blocks
    for start, lengths in zip(edges[rank], np.diff(edges).T, strict=False):
        n = max(1, round(lengths.sum() / batch_size))
        counts = np.diff(np.outer(lengths, np.arange(n + 1)) // n)
        filled = np.arange(counts[rank].max()) < counts[rank][:, None]
        rows = np.zeros(filled.shape, int)
        rows[filled] = start + order.permutation(lengths[rank])
        X, z, weights = (np.asarray(values[rows], np.float32) for values in data)
        z[~filled] = np.nan
        yield X, z, weights, counts.sum(axis=0).astype(np.float32)


def compiled(strategy: tf.distribute.Strategy, model: keras.Model) -> Callable:
    """Compile the updates by a block of minibatches; they return its loss, summed over rows."""
    constraints = [(v, v.constraint) for v in model.trainable_variables if v.constraint is not None]
    for variable, _ in constraints:  # the optimizer of one worker cannot assign weights of all
        variable.constraint = None

    @tf.function(jit_compile=True)  # without the sum over workers, which XLA lacks on processors
    def gradients(X: Any, z: Any, weights: Any, n_rows: Any) -> Any:
        with tf.GradientTape() as tape:  # not `loss()`, which divides by the number of workers
            loss = tf.reduce_sum(weights * model.loss.call(z, model(X, training=True)))
            mean = loss / n_rows
        return loss, tape.gradient(mean, [v.value for v in model.trainable_variables])

    def update(*batch: Any) -> Any:
        loss, found = gradients(*batch)
        model.optimizer.apply(found, model.trainable_variables)  # sums gradients over workers
        return tf.distribute.get_replica_context().all_reduce("SUM", loss)

    # Workers must trace this at the same time, and call it equally often: else they wait for ever.
    shapes = [(None, None, model.input_shape[-1]), (None, None, None), (None, None), (None,)]

    @tf.function(input_signature=[tf.TensorSpec(shape) for shape in shapes])
    def run(X: Any, z: Any, weights: Any, n_rows: Any) -> Any:
        total = 0.0
        for i in tf.range(tf.shape(X)[0]):
            total += strategy.run(update, (X[i], z[i], weights[i], n_rows[i]))
            for variable, constraint in constraints:
                variable.assign(constraint(variable))
        return total

    return run
