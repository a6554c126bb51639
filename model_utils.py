"""The machine learning, and nothing else: no MLflow, files, printing, command lines.

    X, y, preprocessor = preprocessing(train_rows)
    recipes, curves = choose_recipe(X, y, preprocessor.bins)
    scale = target_scale(y)
    model = create_nn_model(X.shape[1], recipes[0], scale, preprocessor.bins)
    train_members(model, X, y, scale, recipes)
    evaluate_performance(y, model_predict(model, X))

A network here is a few *members* trained side by side in one program, whose outputs are averaged by
the last layers: one ordinary Keras model, made of Keras' own layers.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

# XLA reads this before its first program: less optimizing takes a quarter off the compilation, and
# wide vectors more than make up for it. Whoever sets flags of their own keeps them.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1 --xla_cpu_prefer_vector_width=512 "
    "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling",
)

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers
from numpy.typing import ArrayLike
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from toolkit import encoding, roles
from toolkit.columns import Schema, conform
from toolkit.encoding import Preprocessor
from toolkit.errors import UserError
from toolkit.kinds import infer_schema

TARGET = "montant_pret"
HIDDEN, LAYERS = (64, 32), ("hidden_1", "hidden_2", "output")
MEMBERS = 4
LEARNING_RATE = 3e-3
SEARCH_ROWS = 20_000  # rows enough to tell the candidates apart; more would only cost time
FEW_ROWS = 3_000  # below it luck with validation rows is large: candidates are tried on 3 folds,
VERY_FEW_ROWS = 1_000  # and below this on 5, so that every row validates once
VALIDATION = 0.2  # share of the rows of a search that each candidate does not train on
NEARLY = 1.02  # share of the lowest error up to which another candidate is as good
ENOUGH = 30  # validation rows; with fewer there is nothing to choose by
STILL_LEARNING = 1.1  # the error half way over the last one, above which to train twice as long
PROOF = 0.3  # an error is lower where it is by this share, over the root of the rows: about 1 s.e.
Callbacks = Sequence[keras.callbacks.Callback]
Bins = Sequence[tuple[int, Sequence[float]]]  # numbers of inputs, each with the edges of its bins

# --- data --------------------------------------------------------------------------------------


def preprocessing(
    df: pd.DataFrame,
    *,
    schema: Schema | None = None,
    preprocessor: Preprocessor | None = None,
    target: str = TARGET,
) -> tuple[np.ndarray, Any, Preprocessor]:
    """Turn rows into network input, fitting the preprocessor or using a fitted one.

    Pass the training rows alone when fitting: nothing of the test rows may enter the statistics.
    In these every row counts once, whatever its weight: they bring inputs to one scale, no more.
    df holds raw rows or a table of `roles.py`, whose rows are taken for training rows.

    Returns (X, y, preprocessor): X float32 of shape (n_rows, n_inputs), y float64 of shape
    (n_rows,), or None when a fitted preprocessor is given and `df` has no target column.
    Raises errors.UserError for rows that cannot be used.
    """
    schema = schema or (preprocessor.schema if preprocessor else infer_schema(df, target)[0])
    has_target = schema.target.name in df.columns
    if roles.HASH not in df.columns:
        df, _ = conform(df, schema, need_target=has_target)
        df = df if preprocessor else roles.hashed(df)
    y: Any = df[schema.target.name].to_numpy(np.float64) if has_target else None
    # A training row must not meet its own target in the mean target of its category.
    folds: Any = roles.folds(df) if roles.HASH in df.columns else None
    if preprocessor is None:
        preprocessor = Preprocessor.fit(df, schema, y, folds)
        if not preprocessor.width:
            raise UserError(
                f"no feature varies in the training rows ({', '.join(schema.features)}); expected "
                "one that does: add columns, or keep one that was left out with --keep"
            )
    return preprocessor.transform(df, folds), y, preprocessor


def split(
    X: Any,
    y: Any,
    test_size: float = 0.2,
    random_state: int = 42,
    *,
    held_out: np.ndarray | None = None,
) -> tuple:
    """Split rows into training and held-out rows by what they hold.

    A row's seeded hash decides: equal rows share a role in any order, file and generation.
    `held_out`, bool of shape (n_rows,), says it where the roles are known (`Roles.held_out`).

    Returns (X_train, X_test, y_train, y_test), of the types passed in.
    """
    if held_out is None:
        table = pd.DataFrame(X).reset_index(drop=True).assign(__y=np.asarray(y))
        table = roles.hashed(table.rename(columns=str))
        held_out = roles.Roles.choose(table, test_size, random_state).held_out(table)
    return X[~held_out], X[held_out], y[~held_out], y[held_out]


@dataclass(frozen=True)
class TargetScale:
    """Hold what the network's last layers know of the target, in its own units."""

    mean: float
    scale: float
    low: float
    high: float


def target_scale(y: ArrayLike, share: float = 0.005, margin: float = 0.1) -> TargetScale:
    """Measure mean, standard deviation and bounds of training targets, of shape (n_rows,).

    Predictions are kept within the targets seen and a `margin` of their range. There is no margin
    where at least `share` of the rows, and five rows, sit exactly at the end: amounts cut off at a
    floor or a cap pile up, other numbers do not. Targets that are never negative stay so.
    """
    y = np.asarray(y, np.float64)
    low, high = float(y.min()), float(y.max())
    needed, reach = max(5, share * len(y)), margin * (high - low)
    floor = low if np.sum(y == low) >= needed else low - reach
    floor = max(0.0, floor) if low >= 0 else floor
    cap = high if np.sum(y == high) >= needed else high + reach
    return TargetScale(float(y.mean()), float(y.std()) or 1.0, floor, cap)


def rescaled(scale: TargetScale, y: ArrayLike) -> TargetScale:
    """Keep mean and scale for new targets, and let the bounds hold them too."""
    now = target_scale(y)
    return replace(scale, low=min(scale.low, now.low), high=max(scale.high, now.high))


# --- network -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Hold how a network is trained; what validation rows chose, and sizes that follow the data."""

    weight_decay: float = 0.3  # of AdamW
    delta: float = 0.3  # of Huber's loss (1964), in standard deviations of the target
    bins: bool = True
    learning_rate: float = LEARNING_RATE
    epochs: int = 60
    batch_size: int = 32
    length: float | None = None  # so many times the epochs, by weaker decay; None: to be searched
    first_input: int = 0  # a member has no weight for inputs before this one, nor for their bins

    def shortened(self) -> "Recipe":
        """Return a recipe that compares alike in a quarter of the updates.

        Half the epochs and minibatches twice as large; the learning rate grows with their root
        (Malladi et al. 2022), and rate × decay × updates stays (Wang & Aitchison 2024). On 10
        public tables it chose as well as whole trainings, within 0.5 % of their error.
        """
        return replace(
            self,
            epochs=math.ceil(self.epochs / 2),
            batch_size=2 * self.batch_size,
            learning_rate=self.learning_rate * math.sqrt(2),
            weight_decay=self.weight_decay * 4 / math.sqrt(2),
        )


def sized_recipe(
    n_rows: int,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
) -> Recipe:
    """Choose epochs and batch size by the number of training rows, where they are not given."""
    if batch_size is None:
        power = round(math.log2(max(1.0, n_rows / 100)))
        batch_size = min(256 if n_rows < 250_000 else 1_024, max(32, 2**power))
    length = 1.0 if epochs else None
    if epochs is None:
        epochs = min(80, max(4, round(1_000_000 / n_rows)))
    rate = learning_rate or LEARNING_RATE
    return Recipe(epochs=epochs, batch_size=batch_size, learning_rate=rate, length=length)


def create_nn_model(
    input_dim: int,
    recipe: Recipe | None = None,
    scale: TargetScale | None = None,
    bins: Bins = (),
    *,
    members: int = MEMBERS,
    seed: int = 0,
    build: Callable[[int], keras.Model] | None = None,
) -> keras.Model:
    """Create and compile a network.

    With `input_dim` alone Dense 64, Dense 32, Dense 1. With a recipe and the target's scale
    `members` such networks side by side, on piecewise-linear bins beside the inputs (Gorishniy et
    al. 2022), with gelu (Hendrycks & Gimpel 2016); the mean of their outputs, in target units,
    stays within its bounds. bins lists (number of an input, edges of its bins). `build(input_dim)`
    makes a network of one's own instead: (n, input_dim) to (n, 1) in standard deviations.

    Raises ValueError when `input_dim` is not a positive integer.
    """
    if input_dim < 1:
        raise ValueError(f"input_dim must be at least 1. Received: input_dim={input_dim!r}")
    inputs = keras.Input((input_dim,))
    if recipe is None or scale is None:
        hidden = [layers.Dense(width, "relu") for width in HIDDEN]
        model = keras.Sequential([inputs, *hidden, layers.Dense(1)])
        model.compile("adam", loss="mse")
        return model
    if build:
        outputs = layers.Reshape((1, 1), name="members")(build(input_dim)(inputs))
    else:
        outputs = _members(_binned(inputs, bins), members)
    outputs = _in_target_units(outputs, scale)
    model = _drawn(keras.Model(inputs, outputs), seed)
    model.compile(
        keras.optimizers.AdamW(recipe.learning_rate, weight_decay=recipe.weight_decay),
        loss=keras.losses.Huber(recipe.delta * scale.scale),
    )
    model.optimizer.build(model.trainable_variables)  # or loading the saved model would warn
    return model


def _members(x: Any, members: int) -> Any:
    """Apply as many networks side by side, the first layer of all of them at once.

    Behind it the rows of each member lie together. That, and gradients in the order of the weights,
    make an update up to twice as fast as layers that go through members row by row.
    """
    x = layers.Dense(members * HIDDEN[0], "gelu", name="hidden_1")(x)
    x = keras.ops.transpose(layers.Reshape((members, HIDDEN[0]))(x), (1, 0, 2))
    for name, width, activation in (("hidden_2", HIDDEN[1], "gelu"), ("output", 1, None)):
        options = {"bias_axes": "ko", "activation": activation, "name": name}
        x = layers.EinsumDense("kbi,kio->kbo", (None, width), **options)(x)  # members k, rows b
    return layers.Identity(name="members")(keras.ops.transpose(x, (1, 0, 2)))


def _drawn(model: keras.Model, seed: int) -> keras.Model:
    """Draw the kernels of each member as if it were alone (Glorot & Bengio 2010)."""
    weights = []
    for number, (kernel, bias) in enumerate(member_weights(model), 1):
        bound = math.sqrt(6 / sum(kernel.shape[1:]))
        rng = np.random.default_rng((seed, number))  # the first ones are alike, however many
        weights.append((rng.uniform(-bound, bound, kernel.shape), bias))
    set_member_weights(model, weights)
    return model


def _binned(inputs: Any, bins: Bins) -> Any:
    """Put beside the inputs, for each bin, how much of it lies below the value: 0 to 1."""
    if not bins:
        return inputs
    places = np.concatenate([np.full(len(edges) - 1, place) for place, edges in bins])
    low = np.concatenate([edges[:-1] for _, edges in bins])
    size = np.concatenate([np.diff(edges) for _, edges in bins])
    kernel = np.zeros((inputs.shape[1], len(size)))
    kernel[places, np.arange(len(size))] = 1 / size
    layer = layers.Dense(len(size), trainable=False, name="bins")
    parts = layers.ReLU(max_value=1.0)(layer(inputs))
    layer.set_weights([kernel, -low / size])
    return layers.Concatenate(name="binned")([inputs, parts])


def _in_target_units(outputs: Any, scale: TargetScale) -> Any:
    """Average the outputs of members, scale and clip; `ReLU` clips at zero and a maximum."""
    outputs = layers.GlobalAveragePooling1D()(outputs)
    outputs = layers.Rescaling(scale.scale, scale.mean - scale.low)(outputs)
    outputs = layers.ReLU(max_value=scale.high - scale.low)(outputs)
    return layers.Rescaling(1.0, scale.low, name="target_units")(outputs)


def rebounded(model: keras.Model, scale: TargetScale) -> keras.Model:
    """Return a network of `create_nn_model` with the bounds of `scale`; any other as it is."""
    if "target_units" not in [layer.name for layer in model.layers]:
        return model
    return keras.Model(model.inputs, _in_target_units(_heads(model).output, scale))


def _heads(model: keras.Model) -> keras.Model:
    """Return the part of a network that gives the outputs of its members, each for itself."""
    return keras.Model(model.inputs, model.get_layer("members").output)


def member_count(model: keras.Model) -> int:
    """Return how many members of `create_nn_model` a network has; 0 for any other network."""
    last = [x for x in model.layers if isinstance(x, layers.EinsumDense) and x.name == "output"]
    return int(last[0].kernel.shape[0]) if last else 0


def member_weights(model: keras.Model) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return kernel (n_members, n_inputs, width) and bias (n_members, 1, width) of each layer."""
    members, weights = member_count(model), []
    for layer in map(model.get_layer, LAYERS if members else ()):
        kernel, bias = layer.get_weights()
        if kernel.ndim == 2:
            kernel = kernel.reshape(len(kernel), members, -1).swapaxes(0, 1)
        weights.append((kernel, bias.reshape(members, 1, -1)))
    return weights


def set_member_weights(model: keras.Model, weights: Sequence[Sequence[np.ndarray]]) -> None:
    """Put what `member_weights` returns into the layers of a network; nothing where it has none."""
    for name, (kernel, bias) in zip(LAYERS, weights, strict=False):
        layer = model.get_layer(name)
        kernel = kernel.swapaxes(0, 1) if len(layer.kernel.shape) == 2 else kernel
        layer.set_weights([kernel.reshape(layer.kernel.shape), bias.reshape(layer.bias.shape)])


def copy_members(
    parent: keras.Model,
    child: keras.Model,
    sources: np.ndarray,
    places: np.ndarray,
    dropped: tuple[int, int] = (0, 0),
) -> keras.Model:
    """Copy members `sources` of a parent over `places` of a child with other inputs; return it.

    dropped: how many inputs and bins of the parent, its first ones, the child no longer has; the
    parent's others are the first ones of the child. Weights for the child's further inputs are set
    to zero: where the members had no weight for what was dropped, they predict as before.
    """
    n_before, n_after = parent.input_shape[-1], child.input_shape[-1]
    weights = member_weights(child)
    for number, (old_kernel, old_bias) in enumerate(member_weights(parent)):
        (kernel, bias), copied = weights[number], old_kernel[sources]
        if number == 0:
            inputs, bins = copied[:, dropped[0] : n_before], copied[:, n_before + dropped[1] :]
            copied = np.zeros((len(places), *kernel.shape[1:]), np.float32)
            copied[:, : inputs.shape[1]] = inputs
            copied[:, n_after : n_after + bins.shape[1]] = bins
        kernel[places], bias[places] = copied, old_bias[sources]
    set_member_weights(child, weights)
    return child


# --- training ----------------------------------------------------------------------------------


class BlockTrainer(keras.Model):
    """Run all minibatches of a block of rows as one XLA program, inside Keras' own `fit`.

    It shares layers and optimizer with the model it trains. Each step of `fit` sees one block
    (X, y, …); the order of its rows follows from `seed` and the steps done so far, so that a
    training that is interrupted and continued sees the same.
    """

    batch_size: int = 32
    seed: int = 0
    shuffle: bool = True
    drop_remainder: bool = False

    def train_step(self, data: tuple) -> dict:
        n_rows = data[0].shape[0]
        if self.shuffle:
            whole, rest = self.minibatches(n_rows)
            block = self.optimizer.iterations.numpy() // (whole + bool(rest))
            order = tf.range(n_rows)
            order = tf.random.experimental.stateless_shuffle(order, [self.seed, block])
            data = tuple(tf.gather(values, order) for values in data)
        return self.train_block(data)

    def minibatches(self, n_rows: int) -> tuple[int, int]:
        """Count the whole minibatches of a block, and the rows of a shorter one behind them."""
        whole, rest = divmod(n_rows, self.batch_size)
        return whole, 0 if self.drop_remainder and whole else rest

    @tf.function(jit_compile=True, autograph=False)
    def train_block(self, data: tuple) -> dict:
        """Train on all minibatches of a block, in its order."""
        whole, rest = self.minibatches(data[0].shape[0])

        def batch(start: Any, size: int) -> Any:
            parts = [
                tf.slice(values, [start, *[0] * (len(values.shape) - 1)], [size, *values.shape[1:]])
                for values in data
            ]
            super(BlockTrainer, self).train_step(tuple(parts))
            return start + size

        end = whole * self.batch_size
        if whole:
            body = partial(batch, size=self.batch_size)
            tf.while_loop(lambda start: start < end, body, (0,))
        if rest:
            batch(end, rest)
        return self.get_metrics_result()


def train_model(
    model: keras.Model,
    X: Any,
    y: Any,
    X_val: Any = None,
    y_val: Any = None,
    epochs: int = 50,
    batch_size: int = 32,
    verbose: int = 0,
    *,
    sample_weight: Any = None,
    callbacks: Callbacks = (),
    shuffle: bool = True,
    drop_remainder: bool = False,
    seed: int = 0,
) -> tuple[keras.Model, keras.callbacks.History]:
    """Train a compiled Keras model with the updates of `model.fit`, many in one program.

    X is of shape (n_rows, n_inputs), y and `sample_weight` of shape (n_rows,) or what the loss
    takes; lists of as many arrays are blocks of rows, maybe on disk (`numpy.memmap`), one after the
    other. `seed` fixes the order of the rows; with `drop_remainder` the last of it are left out
    where they fill no minibatch: one compilation less. Returns (the same model, its history).
    """
    parts = [values for values in (X, y, sample_weight) if values is not None]
    blocks = list(zip(*(v if isinstance(v, list) else [v] for v in parts), strict=True))
    trainer = BlockTrainer(model.inputs, model.outputs)
    trainer.batch_size, trainer.seed = batch_size, seed
    trainer.shuffle, trainer.drop_remainder = shuffle, drop_remainder
    trainer.compile(model.optimizer, loss=model.loss, run_eagerly=True)  # each step is a program
    model.optimizer.build(model.trainable_variables)  # or the program would be traced twice
    history = trainer.fit(
        _dataset(blocks),
        epochs=epochs,
        steps_per_epoch=len(blocks),
        validation_data=None if X_val is None else (X_val, y_val),
        callbacks=list(callbacks),
        verbose=verbose,
        shuffle=False,  # the trainer does it within each block
    )
    return model, history


def _dataset(blocks: list[tuple]) -> tf.data.Dataset:
    """Feed `fit` with blocks, again and again; a single one stays in memory as it is."""

    def tensors(block: tuple) -> tuple:
        return tuple(tf.convert_to_tensor(np.asarray(v, np.float32)) for v in block)

    if len(blocks) == 1:
        dataset = tf.data.Dataset.from_tensors(tensors(blocks[0])).cache().repeat()
    else:
        shapes = [tf.TensorSpec((None, *values.shape[1:])) for values in blocks[0]]
        by_number = tf.data.Dataset.from_generator(
            lambda: (tensors(block) for block in blocks), output_signature=tuple(shapes)
        )
        dataset = by_number.repeat().prefetch(1)
    options = tf.data.Options()
    options.autotune.enabled = False  # at the end of `fit` its thread sleeps on for many seconds
    return dataset.with_options(options)


class MemberAdamW(keras.optimizers.Adam):
    """AdamW (Loshchilov & Hutter 2019) with a learning rate and weight decay for each member.

    rates, decays: of shape (n_members,), the first axis of weights of rank 3; others hold the
    outputs of one member after another.
    """

    def __init__(self, rates: ArrayLike, decays: ArrayLike) -> None:
        # Gradients are of the mean loss over members: epsilon shrinks as they do.
        super().__init__(1.0, epsilon=1e-7 / np.size(rates))
        self.rates = tf.constant(np.asarray(rates, np.float32))
        self.decays = tf.constant(np.asarray(decays, np.float32))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one weight of all members."""
        own = self.rates, self.decays
        if len(variable.shape) == 3:
            rates, decays = (tf.reshape(values, (-1, 1, 1)) for values in own)
        else:
            width = variable.shape[-1] // len(self.rates)
            rates, decays = (tf.repeat(values, width) for values in own)
        rate = learning_rate * rates
        is_bias = variable.name.split(":")[0].endswith("bias")  # TensorFlow says "hidden_1/bias:0"
        if not is_bias:
            self.assign_sub(variable, variable * rate * decays)
        super().update_step(gradient, variable, rate)


class MemberHuber(keras.losses.Loss):
    """Huber's loss with a delta for each member of (n_rows, n_members); NaN does not count."""

    def __init__(self, deltas: ArrayLike) -> None:
        super().__init__(reduction="sum_over_batch_size")
        self.deltas = tf.constant(np.asarray(deltas, np.float32))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each row, the mean over members."""
        known = tf.math.is_finite(y_true)
        error = tf.abs(tf.where(known, y_true - y_pred[..., 0], 0.0))
        small = tf.minimum(error, self.deltas)
        return tf.reduce_mean(small * (error - small / 2), axis=-1)


def train_members(
    model: keras.Model,
    X: Any,
    y: Any,
    scale: TargetScale,
    recipes: Sequence[Recipe],
    *,
    mask: Any = None,
    sample_weight: Any = None,
    callbacks: Callbacks = (),
    seed: int = 0,
    train: Callable | None = None,
) -> keras.callbacks.History:
    """Train the members of a network of `create_nn_model` side by side, each by its own recipe.

    X, y, sample_weight as of `train_model`; the mean of all weights should be 1, as learning rates
    expect. mask: bool of shape (n_rows, n_members), the rows a member trains on, of a single block.
    train: works as `train_model`. Epochs, length and batch size are of the first recipe; rates fall
    along half a cosine (Loshchilov & Hutter 2017). FloatingPointError for a loss not finite.
    """
    first, heads, length = recipes[0], _heads(model), recipes[0].length or 1.0
    epochs = max(1, round(first.epochs * length))
    own = pd.DataFrame(list(recipes))
    optimizer = MemberAdamW(own["learning_rate"], own["weight_decay"] / length)
    heads.compile(optimizer, loss=MemberHuber(own["delta"]))
    X, y = (values if isinstance(values, list) else [values] for values in (X, y))
    used = True if mask is None else mask
    z = [np.where(used, (v[:, None] - scale.mean) / scale.scale, np.nan) for v in y]
    cosine = keras.callbacks.LearningRateScheduler(
        lambda epoch, _: (1 + math.cos(math.pi * (epoch + 0.5) / epochs)) / 2
    )
    sizes: dict[str, Any] = {"epochs": epochs, "batch_size": first.batch_size, "seed": seed}
    options = sizes | {"callbacks": [cosine, *callbacks], "sample_weight": sample_weight}
    with _only_used_weights(model, recipes):
        _, history = (train or train_model)(heads, X, z, drop_remainder=True, **options)
    if not np.isfinite(history.history.get("loss", [])[-1:]).all():
        raise FloatingPointError(f"the loss is not finite at learning rate {first.learning_rate:g}")
    return history


@contextmanager
def _only_used_weights(model: keras.Model, recipes: Sequence[Recipe]) -> Iterator[None]:
    """Keep weights at zero that a member's recipe does not have."""
    if all(recipe.bins and not recipe.first_input for recipe in recipes) or not member_count(model):
        yield
        return
    kernel, n_inputs = model.get_layer("hidden_1").kernel, model.input_shape[-1]
    numbers = np.arange(kernel.shape[0])  # of the weights of each output
    inputs = numbers.copy()  # that they are for
    if len(numbers) > n_inputs:
        inputs[n_inputs:] = np.argmax(model.get_layer("bins").kernel.numpy() != 0, axis=0)
    own = [(inputs >= r.first_input) & (r.bins | (numbers < n_inputs)) for r in recipes]
    used = np.repeat(np.stack(own, axis=1), HIDDEN[0], axis=1).astype(np.float32)
    kernel.assign(kernel * used)
    kernel.constraint = lambda weights: weights * used
    try:
        yield
    finally:
        kernel.constraint = None


# --- choosing a recipe ---------------------------------------------------------------------------


def candidates(base: Recipe, n_rows: int) -> list[Recipe]:
    """List the recipes that a training chooses from, in the sizes of `base`.

    Few rows may want strong regularisation, many want little of it. Like a chessboard, each weight
    decay is tried with one delta on bins and with the other without: on 33 splits of public tables
    half of the combinations chose as well as all of them. On 76 others these deltas erred 2 % less
    than 0.1 and 0.3: where there is little noise up to 25 %.
    """
    decays, deltas = [0.3, 1.0, 3.0] if n_rows < FEW_ROWS else [0.03, 0.1, 0.3, 1.0], (0.03, 0.1)
    return [
        replace(base, weight_decay=decay, delta=deltas[(number + (not binned)) % 2], bins=binned)
        for number, decay in enumerate(decays)
        for binned in (True, False)
    ]


@dataclass(frozen=True)
class Parent:
    """Hold what a retraining starts from; `dropped` is that of `copy_members`."""

    network: keras.Model
    recipe: Recipe
    scale: TargetScale  # its own, which holds the new targets, too
    is_new: np.ndarray  # bool of shape (n_rows,), rows that it never saw
    dropped: tuple[int, int] = (0, 0)

    def ways_on(self, base: Recipe) -> list[Recipe]:
        """List the recipes by which its members may go on, in the sizes of `base`."""
        # Its members may be of several recipes: those to copy must not lose their weights.
        kernel, _ = member_weights(self.network)[0]
        bins = kernel[len(kernel) // 2 :, self.network.input_shape[-1] :].any()
        own = self.recipe.bins or bool(bins)
        base = replace(base, bins=own, delta=self.recipe.delta, first_input=0)
        rate, decay = base.learning_rate, self.recipe.weight_decay
        return [
            replace(base, learning_rate=rate * slower, weight_decay=decay * stronger)
            for slower, stronger in itertools.product((1, 1 / 3), (1, 1 / 3, 3))
        ]

    def copy_to(self, network: keras.Model, places: np.ndarray) -> None:
        """Copy the members that started afresh at the latest training, the second half."""
        count = member_count(self.network)
        sources = np.resize(np.arange(count // 2, count), len(places))
        copy_members(self.network, network, sources, places, self.dropped)


def choose_recipe(
    X: np.ndarray,
    y: np.ndarray,
    bins: Bins = (),
    *,
    base: Recipe | None = None,
    parent: Parent | None = None,
    **options: Any,
) -> tuple[list[Recipe], dict[str, list[float]]]:
    """Choose bins, Huber's delta and the weight decay by the error on validation rows.

    All candidates train side by side, in one program, on at most SEARCH_ROWS of the rows. X is of
    shape (n_rows, n_inputs), y of shape (n_rows,), base the recipe of sizes; options are
    `sample_weight`, `seed` and `callbacks` of `train_members`. With a `parent` half of the members
    go on from it and the others start afresh, or all do: rows that it never saw validate going on
    and, where they are many, starting afresh.

    Returns (the recipe of each member, the best and those that are nearly as good, behind those
    that go on; {"loss": …, "val_mae": …} per epoch of the best, in standard deviations).
    """
    base, scale = base or sized_recipe(len(X)), parent.scale if parent else target_scale(y)
    ways = parent.ways_on(base) if parent else []
    n, tried = len(ways), [*ways, *candidates(base, len(X))]
    model, folds = _search_model(len(X), len(tried), X.shape[1], base, scale, bins, **options)
    valid = np.ones((len(X), len(tried)), bool)
    if parent:
        parent.copy_to(model, np.flatnonzero(np.arange(len(tried) * folds) % len(tried) < n))
        n_valid = VALIDATION * parent.is_new.mean() * min(len(X), SEARCH_ROWS) * folds
        valid[:, : n if n_valid < ENOUGH else None] = parent.is_new[:, None]
    errors, loss = compare_recipes(model, X, y, scale, tried, valid, **options)
    last = np.nan_to_num(errors[-1], nan=np.inf)
    best = n + _best(last[n:])
    chosen, val_mae = [tried[i] for i in best], errors[:, best[0]]
    if parent:
        first = 3 if n_valid < ENOUGH else int(np.argmin(last[:n]))  # slower is the safer
        if n_valid < ENOUGH or last[best[0]] >= (1 - PROOF / math.sqrt(n_valid)) * last[first]:
            chosen = [tried[first]] * (MEMBERS // 2) + chosen[: MEMBERS // 2]
    advised = length_for(val_mae, np.abs(y - np.median(y)).mean() / scale.scale)
    chosen = [replace(recipe, length=recipe.length or advised) for recipe in chosen]
    return chosen, {"loss": loss, "val_mae": val_mae.tolist()}


def length_for(errors: np.ndarray, constant: float) -> float:
    """Tell how long to train, as a factor, from a search's validation errors of shape (n_epochs,).

    Half way the learning rate is still high. Where the error is no higher there than at the end,
    the rest learns mostly noise: half as long. Where it falls by a tenth afterwards: twice. Where
    it is not 3 % below that of a `constant`, maybe nothing has been learnt as yet. Limits that
    helped on some 50 splits of public tables; see benchmarks/README.md.
    """
    if len(errors) < 2 or errors[-1] > 0.97 * constant:
        return 1.0
    falls = errors[: len(errors) // 2].min() / errors[-1]
    return 0.5 if falls <= 1 else 2.0 if falls > STILL_LEARNING else 1.0


def compare_recipes(
    model: keras.Model,
    X: np.ndarray,
    y: np.ndarray,
    scale: TargetScale,
    recipes: Sequence[Recipe],
    valid: np.ndarray | None = None,
    *,
    sample_weight: ArrayLike = 1.0,
    seed: int = 0,
    callbacks: Callbacks = (),
) -> tuple[np.ndarray, list[float]]:
    """Train one member per recipe (and fold) on most rows; return its validation errors by epoch.

    The members of `model` are the recipes, shortened, fold by fold. Each fold holds back a share of
    the rows; `valid`, bool of shape (n_rows, n_recipes), says which validate a recipe (all), and
    `sample_weight`, of shape (n_rows,), how much each counts in training and validation. Returns
    (errors of shape (n_epochs, n_recipes) in standard deviations, loss per epoch).
    """
    folds = member_count(model) // len(recipes)
    order = np.random.default_rng(seed).permutation(len(X))[:SEARCH_ROWS]
    w = np.broadcast_to(sample_weight, len(X))[order]
    X, y, size = X[order], y[order], max(1, int(VALIDATION * len(order)))
    held_back = np.arange(len(order))[:, None] // size == np.arange(folds)
    held_back = np.repeat(held_back[..., None], len(recipes), axis=2)
    judged = (held_back if valid is None else held_back & valid[order, None])[: folds * size]
    judged = judged * w[: folds * size, None, None]
    rows, heads, errors = tf.constant(X[: folds * size]), _heads(model), list[np.ndarray]()
    z, count = (y[: folds * size, None, None] - scale.mean) / scale.scale, judged.sum(axis=(0, 1))

    def validate(*_: Any) -> Any:
        error = np.abs(heads.predict_on_batch(rows).reshape(judged.shape) - z)
        total = (judged * np.where(judged, error, 0)).sum(axis=(0, 1))
        errors.append(np.where(count, total / np.maximum(count, 1e-300), np.inf))

    watch = keras.callbacks.LambdaCallback(on_epoch_end=validate)
    options: dict[str, Any] = {"callbacks": [*callbacks, watch], "seed": seed, "sample_weight": w}
    mask, short = ~held_back.reshape(len(order), -1), [r.shortened() for r in recipes] * folds
    history = train_members(model, X, y, scale, short, mask=mask, **options)
    return np.stack(errors), history.history.get("loss", [])


def _best(errors: np.ndarray) -> np.ndarray:
    """Number a recipe for each member: the best, and those that are nearly as good."""
    order = np.argsort(errors)[:MEMBERS]
    near = order[errors[order] <= NEARLY * errors[order[0]]]
    return np.resize(near, MEMBERS)


def _search_model(
    n_rows: int, n_tried: int, *shape: Any, seed: int = 0, **_: Any
) -> tuple[keras.Model, int]:
    """Create members for all candidates in all folds, which start alike; return the folds, too."""
    folds = 5 if n_rows < VERY_FEW_ROWS else 3 if n_rows < FEW_ROWS else 1  # few rows, much luck
    members = n_tried * folds
    model = create_nn_model(*shape, members=members, seed=seed)
    return copy_members(model, model, np.zeros(members, int), np.arange(members)), folds


# --- retraining ----------------------------------------------------------------------------------


def continue_training(
    parent: Parent,
    X: np.ndarray,
    y: np.ndarray,
    bins: Bins,
    recipes: Sequence[Recipe],
    is_old: np.ndarray | None = None,
    *,
    seed: int = 0,
    **options: Any,
) -> tuple[keras.Model, keras.Model | None, keras.callbacks.History]:
    """Train a child by the recipes that `choose_recipe` returned and, beside it, its control.

    The control is the same in everything but the new rows: as many updates, by rows where `is_old`,
    bool of shape (n_rows,), alone. Options are `sample_weight` and `callbacks` of `train_members`.
    Returns (child, control or None, history).
    """
    used = [np.ones(len(X), bool), *([] if is_old is None else [is_old])]
    copies, mask = len(used), np.repeat(np.column_stack(used), MEMBERS, axis=1)
    shape = (X.shape[1], recipes[0], parent.scale, bins)
    network = create_nn_model(*shape, members=MEMBERS * copies, seed=seed)
    parent.copy_to(network, np.array([i for i, r in enumerate(recipes) if not r.first_input], int))
    numbers = np.arange(MEMBERS)
    copy_members(network, network, np.tile(numbers, copies), np.arange(MEMBERS * copies))
    every = [*recipes] * copies
    history = train_members(network, X, y, parent.scale, every, mask=mask, seed=seed, **options)
    parts = [
        copy_members(network, create_nn_model(*shape), numbers + MEMBERS * copy, numbers)
        for copy in range(copies)
    ]
    return parts[0], parts[1] if copies == 2 else None, history


def member_predictions(model: keras.Model, X: np.ndarray, members: slice) -> np.ndarray:
    """Predict with some members only, in target units; float64 of shape (n_rows,)."""
    outputs = keras.ops.mean(_heads(model).output[:, members], axis=1)
    for layer in model.layers[-3:]:
        outputs = layer(outputs)
    return model_predict(keras.Model(model.inputs, outputs), X)


# --- prediction and scores -----------------------------------------------------------------------


def model_predict(model: keras.Model, X: Any) -> np.ndarray:
    """Predict target units, float64 of shape (n_rows,), for X of shape (n_rows, n_inputs)."""
    return encoding.predict(model, X)


def evaluate_performance(
    y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None
) -> dict[str, float]:
    """Score predictions of shape (n_rows,): MSE, MAE and R², each row as its weight says (1)."""
    return {
        "MSE": float(mean_squared_error(y_true, y_pred, sample_weight=sample_weight)),
        "MAE": float(mean_absolute_error(y_true, y_pred, sample_weight=sample_weight)),
        "R²": float(r2_score(y_true, y_pred, sample_weight=sample_weight)),
    }
