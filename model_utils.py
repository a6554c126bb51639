"""The machine learning: split, network, training, prediction, scores.

Belongs here: what turns numbers into a trained network and its scores. Not here: MLflow, files,
printing, command lines, global seeds (callers own them).

    X, y, preprocessor = preprocessing(train_rows)
    model = create_nn_model(X.shape[1])
    model, history = train_model(model, X, y, epochs=60)
    evaluate_performance(y, model_predict(model, X))
"""

import contextlib
import json
import operator
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from sklearn.model_selection import train_test_split

import tabular
from tabular import TARGET

BLOCK = tabular.BLOCK
# Weight decays to choose from; 1 to 3 suits a few thousand noisy rows, 0.1 and less a million.
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
SEARCH_ROWS = 20_000  # rows enough to tell the strengths apart; more would only cost time


def wake_device() -> None:
    """Make TensorFlow find its devices now, and write its start-up lines while they are held."""
    tf.constant(0)


# --- data --------------------------------------------------------------------------------------


def preprocessing(
    df: pd.DataFrame, *, preprocessor=None, target: str = TARGET, drop: Iterable[str] = ()
):
    """Turn raw rows into network input, fitting the preprocessor or using a fitted one.

    Pass the training rows alone when fitting: nothing of the test rows may enter the statistics.

    Returns (X, y, preprocessor): X float32 of shape (n_rows, n_inputs), y a float64 Series, or
    None when a fitted preprocessor is given and `df` has no target column.
    Raises tabular.UserError for rows that cannot be used.
    """
    if preprocessor is None:
        y = tabular.check_target(df, target)
        schema, _ = tabular.infer_schema(df, target, drop)
        preprocessor = tabular.fit_preprocessor(tabular.conform(df, schema), schema)
    else:
        y = df[target].astype(float) if target in df.columns else None
    return tabular.encode(df, preprocessor), y, preprocessor


def split(X, y, test_size: float = 0.2, random_state: int = 42):
    """Split rows at random into training and held-out rows.

    Returns (X_train, X_test, y_train, y_test), of the types passed in; the same `random_state`
    gives the same split.
    """
    return tuple(train_test_split(X, y, test_size=test_size, random_state=random_state))


# --- network -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TargetScale:
    """Hold what the network's last layers know of the target, in its own units."""

    mean: float = 0.0
    scale: float = 1.0
    low: float | None = None
    high: float | None = None


def target_scale(y: Sequence[float], share: float = 0.005) -> TargetScale:
    """Measure mean, standard deviation and censoring bounds of training targets.

    A bound is the lowest (highest) value when at least `share` of the rows, and five rows, sit
    exactly there: amounts cut off at a floor or a cap pile up, other numbers do not.
    """
    y = np.asarray(y, dtype=float)
    needed = max(5, share * len(y))
    low, high = y.min(), y.max()
    return TargetScale(
        mean=float(y.mean()),
        scale=float(y.std()) or 1.0,
        low=float(low) if np.sum(y == low) >= needed else None,
        high=float(high) if np.sum(y == high) >= needed else None,
    )


def rescaled(scale: TargetScale, y: Sequence[float]) -> TargetScale:
    """Keep a scale for new targets, but drop a bound that some of them cross."""
    low = scale.low if scale.low is not None and np.min(y) >= scale.low else None
    high = scale.high if scale.high is not None and np.max(y) <= scale.high else None
    return replace(scale, low=low, high=high)


def create_nn_model(
    input_dim: int,
    *,
    scale: TargetScale | None = None,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    loss: str = "mse",
    seed: int | None = None,
) -> keras.Model:
    """Create and compile the network: Dense 64 relu, Dense 32 relu, Dense 1.

    With `scale`, fixed layers behind the last Dense bring its output to target units and clip it
    at the bounds, so that `model.predict` gives amounts while the weights stay near one.
    AdamW: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".

    `seed` makes the initial weights reproducible; without it Keras' global seed decides.
    Raises ValueError when `input_dim` is not a positive integer.
    """
    if input_dim < 1:
        raise ValueError(f"input_dim must be at least 1. Received: input_dim={input_dim!r}")
    seeds = [None] * 3 if seed is None else [seed, seed + 1, seed + 2]
    widths = [("hidden_1", 64, "relu"), ("hidden_2", 32, "relu"), ("output", 1, None)]
    layers = [
        keras.layers.Dense(units, activation, name=name, kernel_initializer=_glorot(s))
        for (name, units, activation), s in zip(widths, seeds, strict=True)
    ]
    model = keras.Sequential([keras.Input((input_dim,)), *layers, *_output_layers(scale)])
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay)
    model.compile(optimizer, loss=loss)
    return model


def _glorot(seed: int | None) -> keras.initializers.Initializer:
    return keras.initializers.GlorotUniform(seed)


def _output_layers(scale: TargetScale | None) -> list[keras.Layer]:
    """Build the fixed layers that scale and clip the output, from Keras' own layers.

    `ReLU` clips at zero (and at `max_value`); the rescalings around it move that to the bounds.
    """
    if scale is None:
        return []
    rescale, relu = keras.layers.Rescaling, keras.layers.ReLU
    low, high = scale.low, scale.high
    if low is None and high is None:
        return [rescale(scale.scale, scale.mean, name="target_units")]
    if low is None:
        above = [rescale(-scale.scale, high - scale.mean, name="below_cap"), relu(name="cap")]
        return [*above, rescale(-1.0, high, name="target_units")]
    floor = [rescale(scale.scale, scale.mean - low, name="above_floor")]
    clip = relu(max_value=None if high is None else high - low, name="bounds")
    return [*floor, clip, rescale(1.0, low, name="target_units")]


# --- training ----------------------------------------------------------------------------------


def train_model(
    model: keras.Model,
    X,
    y,
    X_val=None,
    y_val=None,
    epochs: int = 50,
    batch_size: int = 32,
    verbose: int = 0,
    *,
    sample_weight=None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    shuffle: bool = True,
    seed: int | None = None,
    rows=None,
    initial_epoch: int = 0,
):
    """Train a compiled Keras model, each epoch as one compiled program.

    The updates are those of `model.fit`: the program calls the model's own `train_step` on every
    minibatch, the last short one included. Where XLA cannot compile the model, or a callback
    wants to see batches, `model.fit` does the work after one warning.

    X is of shape (n_rows, n_inputs), y of shape (n_rows,) or what the loss takes, `sample_weight`
    of shape (n_rows,). `rows` (row numbers) trains on a part of X without compiling anew. `seed`
    fixes the order of the rows in each epoch, whatever epochs came before, so that a training
    interrupted and continued at `initial_epoch` sees the same; without it NumPy's global generator
    decides.

    Returns (model, history), the same model and its `keras.callbacks.History`.
    """
    data = _as_tensors(X, y, sample_weight)
    validation = None if X_val is None else _as_tensors(X_val, y_val, None)
    rows = np.arange(len(data[0])) if rows is None else np.asarray(rows)
    settings = {"epochs": epochs, "verbose": verbose}
    reason = _why_not_compiled(model, callbacks)
    if reason is None:
        try:
            programs = _programs(model, data, batch_size)
            programs[0](data, rows[:0])
        except Exception as error:
            reason = f"XLA cannot compile it ({str(error).splitlines()[0][:120]})"
    seed = np.random.randint(2**31) if seed is None else seed

    def order(epoch):
        return np.random.default_rng([seed, epoch]).permutation(rows) if shuffle else rows

    if reason is None:
        settings["steps"] = -(-len(rows) // batch_size)
        orders = ((epoch, order(epoch)) for epoch in range(initial_epoch, epochs))
        return model, _run_epochs(model, programs, data, validation, orders, callbacks, settings)
    warnings.warn(f"model.fit trains this model, more slowly: {reason}", stacklevel=2)
    minibatches = _Minibatches(data, rows, batch_size)
    reorder = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(minibatches, "rows", order(epoch))
    )
    history = model.fit(
        minibatches,
        validation_data=validation and validation[:2],
        callbacks=[reorder, *callbacks],
        shuffle=False,  # the minibatches; their rows are in the order of the seed
        initial_epoch=initial_epoch,
        **settings,
    )
    return model, history


class _Minibatches(keras.utils.PyDataset):
    """Give `model.fit` the minibatches that the compiled epochs would take."""

    def __init__(self, data: tuple, rows: np.ndarray, batch_size: int) -> None:
        super().__init__()
        self.data, self.rows, self.batch_size = data, rows, batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, i: int) -> tuple:
        rows = self.rows[i * self.batch_size : (i + 1) * self.batch_size]
        return tuple(tf.gather(values, rows) for values in self.data if values is not None)


def compile_ahead(model: keras.Model, X, y, batch_size: int) -> None:
    """Compile the epoch program of a model for X and y without training a single row.

    Calling this from a thread lets XLA compile while Python does something else.
    """
    data = _as_tensors(X, y, None)
    with contextlib.suppress(Exception):  # train_model will say why
        _programs(model, data, batch_size)[0](data, np.array([], np.int32))


def _run_epochs(model, programs, data, validation, orders, callbacks, settings):
    """Run epochs as `model.fit` does, callbacks included, one program call for each."""
    train, evaluate = programs
    log = keras.callbacks.CallbackList(
        list(callbacks),
        add_history=True,
        add_progbar=settings["verbose"] != 0,
        model=model,
        **settings,
    )
    model.stop_training = False
    log.on_train_begin()
    for epoch, order in orders:
        log.on_epoch_begin(epoch)
        logs = train(data, order)
        if validation:
            logs |= {f"val_{name}": value for name, value in evaluate(validation).items()}
        log.on_epoch_end(epoch, logs)
        if model.stop_training or not np.isfinite(logs["loss"]):
            break
    model.optimizer.finalize_variable_values(model.trainable_weights)
    log.on_train_end()
    return model.history


def _as_tensors(X, y, sample_weight) -> tuple:
    """Put rows into device memory; floats in Keras' float type, integer labels as they are."""

    def tensor(values):
        if values is None or tf.is_tensor(values):
            return values
        values = np.asarray(values)
        is_float = np.issubdtype(values.dtype, np.floating)
        return tf.constant(values.astype(keras.config.floatx()) if is_float else values)

    return tensor(X), tensor(y), tensor(sample_weight)


def _why_not_compiled(model: keras.Model, callbacks: Sequence) -> str | None:
    """Say why an epoch cannot be one program, or None when it can."""
    if model.run_eagerly:
        return "it runs eagerly"
    hooks = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
    for callback in callbacks:
        per_epoch = getattr(callback, "save_freq", None) == "epoch"
        own = [
            h
            for h in hooks
            if getattr(type(callback), h) is not getattr(keras.callbacks.Callback, h)
        ]
        if own and not per_epoch:
            return f"the callback {type(callback).__name__} wants to see every batch"
    return None


def _programs(model: keras.Model, data: tuple, batch_size: int) -> tuple:
    """Compile one epoch of training and one evaluation of a model; reuse them while they fit.

    Returns (train, evaluate): `train(data, order)` and `evaluate(data)` give the epoch's logs.
    """
    X, y, weight = (None if values is None else values[:1] for values in data)
    model.test_step((X, y, weight))  # builds what is not built yet, outside of the programs
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    decays = optimizer.weight_decay is not None
    key = [batch_size, decays, optimizer, *model.metrics[:1]]  # a new loss tracker each compile()
    cached_key, programs = getattr(model, "_epoch_programs", ([], None))
    if key[:2] == cached_key[:2] and all(map(operator.is_, key[2:], cached_key[2:])):
        return programs
    whole_batches, last_batch, test = _compile(model, batch_size, decays)

    def train(data, order):
        batches, rest = divmod(len(order), batch_size)
        padded = np.zeros(max(len(data[0]), batch_size), np.int32)
        padded[: len(order)] = order
        decay = tf.constant(optimizer.weight_decay if decays else 0.0, tf.float32)
        logs = whole_batches(data, padded, tf.constant(batches), decay)
        if rest:
            logs = last_batch(data, padded[len(order) - rest : len(order)], decay)
        return {name: float(value) for name, value in logs.items()}

    def evaluate(data):
        return {name: float(value) for name, value in test(data).items()}

    # Not as an attribute: Keras would count the loss tracker in it as one more metric.
    vars(model)["_epoch_programs"] = key, (train, evaluate)
    return train, evaluate


def _compile(model: keras.Model, batch_size: int, decays: bool) -> tuple:
    """Write the three programs: all whole minibatches, the last short one, an evaluation.

    The order of the rows, the number of minibatches and the weight decay are arguments, so that
    epochs over other rows or at another strength need no compilation. Metrics are reset and read
    inside, since every operation outside costs as much as several minibatches.
    """
    optimizer = model.optimizer

    def step(function, data, rows):
        function(tuple(None if values is None else tf.gather(values, rows) for values in data))

    def train_step(data, rows, decay):
        number, optimizer.weight_decay = optimizer.weight_decay, decay if decays else None
        try:
            step(model.train_step, data, rows)
        finally:
            optimizer.weight_decay = number

    def repeat(body, times):
        tf.while_loop(lambda i: i < times, lambda i: [body(i), (i + 1,)][1], (tf.constant(0),))

    @tf.function(jit_compile=True, autograph=False)
    def whole_batches(data, order, batches, decay):
        model.reset_metrics()

        def body(i):
            train_step(data, tf.slice(order, [i * batch_size], [batch_size]), decay)

        repeat(body, batches)
        return model.get_metrics_result()

    @tf.function(jit_compile=True, autograph=False)
    def last_batch(data, rows, decay):
        train_step(data, rows, decay)
        return model.get_metrics_result()

    @tf.function(autograph=False)  # a forward pass alone is not worth the time of XLA's compiler
    def test(data):
        model.reset_metrics()
        n_rows, block = data[0].shape[0], tf.range(BLOCK)
        if n_rows >= BLOCK:
            repeat(lambda i: step(model.test_step, data, block + i * BLOCK), n_rows // BLOCK)
        if n_rows % BLOCK:
            step(model.test_step, data, tf.range(n_rows - n_rows % BLOCK, n_rows))
        return model.get_metrics_result()

    return whole_batches, last_batch, test


# --- fitting: regularisation, learning rate, warm start ------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Hold how a network was fitted.

    curves: loss and val_loss per epoch of the best strength tried, trained without the validation
    rows; final: loss per epoch of the final training on all rows; strengths: validation loss of
    each weight decay tried.
    """

    weight_decay: float
    curves: dict[str, list[float]]
    final: list[float]
    strengths: dict[float, float]


def fit_network(
    model: keras.Model,
    X: np.ndarray,
    y: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
    validate_on: np.ndarray | None = None,
    checkpoint: "Checkpoint | None" = None,
) -> Fit:
    """Choose the weight decay on validation rows, then train on all rows with it.

    Every candidate starts from the model's present weights and optimizer state. A fifth of
    `validate_on` (row numbers; default all rows, at most `SEARCH_ROWS`) serves as validation rows.
    The model ends trained on all rows, its learning rate back at `learning_rate`.

    Raises FloatingPointError when the loss is not finite whatever the strength.
    """
    start = model_state(model)
    rng = np.random.default_rng(seed)
    pool = rng.permutation(np.arange(len(X)) if validate_on is None else validate_on)
    validation = np.sort(pool[: max(1, min(len(pool), SEARCH_ROWS) // 5)])
    rest = rng.permutation(np.setdiff1d(np.arange(len(X)), validation))[:SEARCH_ROWS]
    # A multiple of the batch size spares the compilation of a last short batch.
    rest = rest[: max(batch_size, len(rest) // batch_size * batch_size)]
    options = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    options["learning_rate"] = learning_rate
    checkpoint = checkpoint or Checkpoint(None)

    def trained(strength: float, **rows) -> dict[str, list[float]]:
        restore_state(model, start)
        model.optimizer.weight_decay = strength
        return checkpoint.continued(
            model, lambda **left: train_at(model, X, y, **rows, **options, **left)
        )

    held_out = {"X_val": X[validation], "y_val": y[validation], "rows": rest}
    tried = {strength: trained(strength, **held_out) for strength in strengths}
    last = {k: h["val_loss"][-1] for k, h in tried.items() if np.isfinite(h["val_loss"][-1])}
    best = lowest(last) if last else strengths[0]
    final = trained(best)["loss"] if last else [np.nan]
    checkpoint.save(model)
    if not np.isfinite(final[-1]):
        raise FloatingPointError(f"the loss is not finite at learning rate {learning_rate:g}")
    return Fit(best, tried[min(last, key=last.get)], final, last)


def lowest(losses: dict[float, float]) -> float:
    """Estimate the strength of the lowest validation loss from a few strengths tried.

    The vertex of the parabola, over the logarithm of the strength, through the best one and its
    neighbours: on few validation rows less a matter of luck than the best one itself, which is
    the answer where it has no two neighbours or no logarithm.
    """
    strengths = sorted(losses)
    i = strengths.index(min(losses, key=losses.get))
    if not 0 < i < len(strengths) - 1 or strengths[i - 1] <= 0:
        return strengths[i]
    near = strengths[i - 1 : i + 2]
    square, slope, _ = np.polyfit(np.log(near), [losses[s] for s in near], 2)
    if square <= 0:
        return strengths[i]
    return float(np.exp(np.clip(-slope / (2 * square), np.log(near[0]), np.log(near[2]))))


class Checkpoint(keras.callbacks.Callback):
    """Save a fit of several trainings every `seconds`, at the end of an epoch, to continue it.

    Without a file it does nothing. An existing file is read: trainings that it calls done are not
    repeated, the one under way goes on at its last saved epoch. NumPy's `npz` holds numbers and
    JSON only, so that reading one runs no code.
    """

    def __init__(self, file: Path | None, seconds: float = 30.0) -> None:
        super().__init__()
        self.file, self.seconds, self.saved_at = file, seconds, time.monotonic()
        self.done, self.repeated, self.run_id = [], 0, None
        self.past, self.history, self.state = {}, {}, None
        if file and file.exists():
            with np.load(file, allow_pickle=False) as saved:
                progress = json.loads(str(saved["progress"]))
                self.state = [saved[f"state_{i}"] for i in range(len(saved.files) - 1)]
            self.done, self.past = progress["done"], progress["history"]
            self.run_id = progress["run_id"]

    def continued(self, model: keras.Model, train) -> dict[str, list[float]]:
        """Run one training of the fit, or what is left of it; return its whole history."""
        self.repeated += 1
        if self.repeated <= len(self.done):
            if not self.past and self.state is not None:  # saved after the last one was done
                restore_state(model, self.state)
            return self.done[self.repeated - 1]
        if self.past:
            restore_state(model, self.state)
        self.history = {name: list(values) for name, values in self.past.items()}
        first = max(map(len, self.past.values()), default=0)
        self.past, self.state = {}, None
        train(initial_epoch=first, callbacks=[self])
        self.done.append(self.history)
        history, self.history = self.history, {}
        return history

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)
        if self.file and time.monotonic() - self.saved_at >= self.seconds:
            self.save(self.model)

    def save(self, model: keras.Model) -> None:
        """Save now, whatever the time; the file is replaced only once the new one is complete."""
        if self.file is None:
            return
        self.saved_at = time.monotonic()
        progress = {"run_id": self.run_id, "done": self.done, "history": self.history}
        progress = json.dumps(progress)
        state = {f"state_{i}": value for i, value in enumerate(model_state(model))}
        beside = self.file.with_suffix(f".{os.getpid()}.part")
        with beside.open("wb") as stream:
            np.savez(stream, progress=progress, **state)
        beside.replace(self.file)


def train_at(
    model: keras.Model, X, y, *, learning_rate: float, epochs: int, **options
) -> keras.callbacks.History:
    """Train with a learning rate that falls from `learning_rate` to zero; see `train_model`."""
    cosine = [CosineLearningRate(learning_rate, epochs), *options.pop("callbacks", ())]
    return train_model(model, X, y, epochs=epochs, callbacks=cosine, **options)[1]


class CosineLearningRate(keras.callbacks.Callback):
    """Lower the learning rate from epoch to epoch along half a cosine (Loshchilov & Hutter 2017).

    Leaves a model alone whose optimizer brings a schedule of its own.
    """

    def __init__(self, learning_rate: float, epochs: int) -> None:
        super().__init__()
        self.learning_rate, self.epochs = learning_rate, epochs

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._set(self.learning_rate * (1 + np.cos(np.pi * epoch / self.epochs)) / 2)

    def on_train_end(self, logs: dict | None = None) -> None:
        self._set(self.learning_rate)

    def _set(self, value: float) -> None:
        with contextlib.suppress(TypeError):
            self.model.optimizer.learning_rate = value


def model_state(model: keras.Model) -> list[np.ndarray]:
    """Copy all weights and optimizer slots of a model."""
    model.optimizer.build(model.trainable_variables)
    return [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]


def restore_state(model: keras.Model, state: list[np.ndarray]) -> None:
    """Put back what `model_state` copied."""
    for variable, value in zip((*model.variables, *model.optimizer.variables), state, strict=True):
        variable.assign(value)


def widen_network(
    network: keras.Model, input_dim: int, scale: TargetScale | None, learning_rate: float
) -> keras.Model:
    """Copy a network of `create_nn_model`, giving it more inputs, the new ones with zero weights.

    The optimizer's state comes along, zero for the new inputs, so that predictions for rows
    without the new inputs do not move. The original is left alone.
    """
    wider = create_nn_model(input_dim, scale=scale, learning_rate=learning_rate)
    wider.optimizer.build(wider.trainable_variables)
    state = model_state(network)
    for variable, old in zip((*wider.variables, *wider.optimizer.variables), state, strict=True):
        value = np.zeros(variable.shape, old.dtype)
        value[tuple(slice(n) for n in old.shape)] = old
        variable.assign(value)
    return wider


# --- prediction and scores -----------------------------------------------------------------------


def model_predict(model: keras.Model, X) -> np.ndarray:
    """Predict target units, float64 of shape (n_rows,), for X of shape (n_rows, n_inputs)."""
    return tabular.predict(model, X)


def evaluate_performance(y_true, y_pred) -> dict[str, float]:
    """Score predictions: mean squared error, mean absolute error, coefficient of determination."""
    return {
        "MSE": float(mean_squared_error(y_true, y_pred)),
        "MAE": float(mean_absolute_error(y_true, y_pred)),
        "R²": float(r2_score(y_true, y_pred)),
    }
