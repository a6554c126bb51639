"""What one of several workers does in a training, in step with the others.

Belongs here: what replaces Keras' own `fit`, which fails under TensorFlow's strategy for several
workers (keras#20585). Not here: how workers are started, and rows shared out (`engine.py`).
"""

import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
    from ray import train

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow
    train_members, network, shares, encode, arguments, seed = config["work"]
    rank, sizes = train.get_context().get_world_rank(), [len(share) for share in shares]
    X, y, weights = shares[rank].rows().encode(*encode)
    worker = Worker(strategy, sizes, rank)
    with suppress(FloatingPointError), strategy.scope():  # the process that waits raises it
        network = copied(pickle.loads(network))
        options = {"sample_weight": [weights], "seed": seed, "train": worker.fit}
        train_members(network, X, y, *arguments, **options)


def state_of(checkpoint: Any) -> tuple[list, list, list[float]]:
    """Read what `Worker.fit` saved: (weights, variables of the optimizer, losses)."""
    with checkpoint.as_directory() as folder:
        return pickle.loads(Path(folder, STATE).read_bytes())


def copied(network: keras.Model) -> keras.Model:
    """Copy a network; its weights become those of the strategy in whose scope this is called."""
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    return copy


@dataclass
class Worker:
    """Hold what one of several workers knows of all: their training rows, its rank among them."""

    strategy: tf.distribute.Strategy
    sizes: list[int]
    rank: int

    def fit(
        self,
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
        """Do the work of `model_utils.train_model`; each input is one block, this worker's rows.

        A training goes on from its last checkpoint, one of which is saved after each epoch.
        Returns (model, history).
        """
        from ray.train import get_checkpoint

        model.optimizer.build(model.trainable_variables)
        rows, losses = (X[0], z[0], sample_weight[0]), list[float]()
        if checkpoint := get_checkpoint():
            weights, values, losses = state_of(checkpoint)
            model.set_weights(weights)
            for variable, value in zip(model.optimizer.variables, values, strict=True):
                variable.assign(value)
        watched = keras.callbacks.CallbackList(list(callbacks), model=model)
        run = compiled(self.strategy, model)
        for epoch in range(len(losses), epochs):
            watched.on_epoch_begin(epoch)
            order = np.random.default_rng((seed, epoch, self.rank))
            blocks = self.blocks_of_minibatches(*rows, batch_size, order)
            found = [[float(total) for total in run(*block)] for block in blocks]
            losses.append(sum(loss for loss, _ in found) / sum(n_rows for _, n_rows in found))
            self.report(model, losses)
        return model, SimpleNamespace(history={"loss": losses})

    def report(self, model: keras.Model, losses: list[float]) -> None:
        """Save the state of an epoch, which all workers share."""
        from ray.train import Checkpoint, report

        variables = [variable.numpy() for variable in model.optimizer.variables]
        state = model.get_weights(), variables, losses
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, STATE).write_bytes(pickle.dumps(state))
            checkpoint = None if self.rank else Checkpoint(folder)
            report({"loss": losses[-1]}, checkpoint=checkpoint)

    def blocks_of_minibatches(
        self,
        X: np.ndarray,
        z: np.ndarray,
        weights: np.ndarray,
        batch_size: int,
        order: np.random.Generator,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield this worker's part of minibatches, many at a time: (X, z, weights, rows of all).

        Of shapes (n, size, width), (n, size, members or 1), (n, size), (n,). All workers go through
        their rows in as many minibatches, so that each update takes rows of all. A part is filled
        up with rows without a target, which do not count.
        """
        n_blocks = -(-max(self.sizes) // BLOCK_ROWS)
        edges = np.outer(self.sizes, np.arange(n_blocks + 1)) // n_blocks
        for number, lengths in enumerate(np.diff(edges).T):
            n = max(1, round(lengths.sum() / batch_size))
            counts = np.diff(np.outer(lengths, np.arange(n + 1)) // n)
            filled = np.arange(counts.max()) < counts[self.rank][:, None]
            rows = slice(edges[self.rank, number], edges[self.rank, number + 1])
            shuffled = order.permutation(lengths[self.rank])
            X_block = np.zeros((*filled.shape, X.shape[1]), np.float32)
            z_block = np.full((*filled.shape, z.shape[1]), np.nan, np.float32)
            w_block = np.zeros(filled.shape, np.float32)
            X_block[filled], z_block[filled] = np.asarray(X[rows])[shuffled], z[rows][shuffled]
            w_block[filled] = weights[rows][shuffled]
            yield X_block, z_block, w_block, counts.sum(axis=0).astype(np.float32)


def compiled(strategy: tf.distribute.Strategy, model: keras.Model) -> Callable:
    """Compile the updates for a block of minibatches: (sum of loss times rows, sum of rows).

    Gradients are of the mean loss over the rows of all workers.
    """
    limited = [v for v in model.trainable_variables if v.constraint is not None]
    constraints = [(variable, variable.constraint) for variable in limited]
    for variable in limited:  # the optimizer of one worker cannot assign weights of all
        variable.constraint = None

    @tf.function(jit_compile=True)  # without the sum over workers, which XLA lacks on processors
    def gradients(X: Any, z: Any, weights: Any, n_rows: Any) -> Any:
        with tf.GradientTape() as tape:  # not `loss()`, which divides by the number of workers
            loss = tf.reduce_sum(weights * model.loss.call(z, model(X, training=True))) / n_rows
        return loss, tape.gradient(loss, [v.value for v in model.trainable_variables])

    def update(*batch: Any) -> Any:
        loss, found = gradients(*batch)
        model.optimizer.apply(found, model.trainable_variables)  # sums gradients over workers
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, loss)

    # Workers must trace this at the same time, and call it equally often: else they wait for ever.
    shapes = [(None, None, model.input_shape[-1]), (None, None, None), (None, None), (None,)]

    @tf.function(input_signature=[tf.TensorSpec(shape) for shape in shapes])
    def run(X: Any, z: Any, weights: Any, n_rows: Any) -> Any:
        total = 0.0
        for i in tf.range(tf.shape(X)[0]):
            batch = X[i], z[i], weights[i], n_rows[i]
            total += strategy.run(update, batch) * n_rows[i]
            for variable, constraint in constraints:
                variable.assign(constraint(variable))
        return total, tf.reduce_sum(n_rows)

    return run
