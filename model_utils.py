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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from numpy.typing import ArrayLike
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from sklearn.model_selection import train_test_split

import distributed
import tabular
from streaming import DiskRows, ahead
from tabular import TARGET

# XLA reads this before its first program: less optimizing takes a quarter off the compilation, and
# wide vectors more than make up for it. Whoever sets flags of their own keeps them.
FLAGS = (
    "--xla_backend_optimization_level=1 --xla_cpu_prefer_vector_width=512 "
    "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"
)
os.environ.setdefault("XLA_FLAGS", FLAGS)
BLOCK = tabular.BLOCK
# Weight decays to choose from; 1 to 3 suits a few thousand noisy rows, 0.1 and less a million.
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
VALIDATION_ROWS = 300  # fewer are too few to choose by
ROBUST_FROM = 0.3
AHEAD_ROWS = 50_000  # putting so many in order for the next epoch is worth a thread
SEARCH_ROWS = 20_000  # rows enough to tell the strengths apart; more would only cost time


def wake_device() -> None:
    """Make TensorFlow find its devices now, and write its start-up lines while they are held."""
    tf.constant(0)


# --- data --------------------------------------------------------------------------------------


def preprocessing(
    df: pd.DataFrame, *, preprocessor: Any = None, target: str = TARGET, drop: Iterable[str] = ()
) -> tuple[np.ndarray, pd.Series | None, Any]:
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


def split(X: Any, y: Any, test_size: float = 0.2, random_state: int = 42) -> tuple:
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


def target_scale(y: ArrayLike | tabular.Totals, share: float = 0.005) -> TargetScale:
    """Measure mean, standard deviation and censoring bounds of training targets.

    A bound is the lowest (highest) value when at least `share` of the rows, and five rows, sit
    exactly there: amounts cut off at a floor or a cap pile up, other numbers do not.

    y: of shape (n_rows,), or the totals of chunks of rows.
    """
    if isinstance(y, tabular.Totals):
        totals = y
    else:
        totals, values = tabular.Totals(tabular.Schema("", (), ())), np.asarray(y, dtype=float)
        totals.add(pd.DataFrame(index=range(len(values))), values)
    needed = max(5, share * totals.n_rows)
    return TargetScale(
        mean=float(totals.target.mean_[0]),
        scale=float(np.sqrt(totals.target.var_[0])) or 1.0,
        low=float(totals.low) if totals.at_low >= needed else None,
        high=float(totals.high) if totals.at_high >= needed else None,
    )


def rescaled(scale: TargetScale, y: ArrayLike) -> TargetScale:
    """Keep a scale for new targets, but drop a bound that some of them cross."""
    low = scale.low if scale.low is not None and np.min(y) >= scale.low else None
    high = scale.high if scale.high is not None and np.max(y) <= scale.high else None
    return replace(scale, low=low, high=high)


def create_nn_model(
    input_dim: int,
    *,
    scale: TargetScale | None = None,
    activation: Any = None,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    loss: Any = None,
    seed: int | None = None,
) -> keras.Model:
    """Create and compile the network: Dense 64, Dense 32, Dense 1.

    With `scale`, fixed layers behind the last Dense bring its output to target units and clip it
    at the bounds, so that `model.predict` gives amounts while the weights stay near one.
    AdamW: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".

    `loss` is what Keras takes; by default the squared error, or with `scale` Huber's (1964), which
    is absolute beyond `ROBUST_FROM` standard deviations of the target: the absolute error is what
    models are judged by, and on held-out rows it was lower by nearly 1 %, the squared one no worse.

    `activation`, of both hidden layers, is what Keras takes; by default relu, or with `scale` gelu
    (Hendrycks & Gimpel 2016): smooth, which few noisy rows fit better than relu's kinks.

    `seed` makes the initial weights reproducible; without it Keras' global seed decides.
    Raises ValueError when `input_dim` is not a positive integer.
    """
    if input_dim < 1:
        raise ValueError(f"input_dim must be at least 1. Received: input_dim={input_dim!r}")
    seeds = [None] * 3 if seed is None else [seed, seed + 1, seed + 2]
    hidden = activation or ("gelu" if scale else "relu")
    widths = [("hidden_1", 64, hidden), ("hidden_2", 32, hidden), ("output", 1, None)]
    layers = [
        keras.layers.Dense(units, shape, name=name, kernel_initializer=_glorot(s))
        for (name, units, shape), s in zip(widths, seeds, strict=True)
    ]
    model = keras.Sequential([keras.Input((input_dim,)), *layers, *_output_layers(scale)])
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay)
    if loss is None:
        loss = keras.losses.Huber(ROBUST_FROM * scale.scale) if scale else "mse"
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
    if low is None:
        if high is None:
            return [rescale(scale.scale, scale.mean, name="target_units")]
        above = [rescale(-scale.scale, high - scale.mean, name="below_cap"), relu(name="cap")]
        return [*above, rescale(-1.0, high, name="target_units")]
    floor = [rescale(scale.scale, scale.mean - low, name="above_floor")]
    clip = relu(max_value=None if high is None else high - low, name="bounds")
    return [*floor, clip, rescale(1.0, low, name="target_units")]


# --- training ----------------------------------------------------------------------------------


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
    callbacks: Sequence[keras.callbacks.Callback] = (),
    shuffle: bool = True,
    seed: int | None = None,
    rows: Any = None,
    initial_epoch: int = 0,
    spread: bool = False,
) -> tuple[keras.Model, keras.callbacks.History | None]:
    """Train a compiled Keras model, each epoch as one compiled program.

    The updates are those of `model.fit`: the program calls the model's own `train_step` on every
    minibatch, the last short one included. Where XLA cannot compile the model, or a callback
    wants to see batches, `model.fit` does the work after one warning.

    X is of shape (n_rows, n_inputs), y of shape (n_rows,) or what the loss takes, `sample_weight`
    of shape (n_rows,). Rows that do not fit in memory come as X of `DiskRows`, y None; they pass
    through the same program part by part, the parts and the rows of each in random order.
    `rows` (row numbers) trains on a part of X without compiling anew. `seed`
    fixes the order of the rows in each epoch, whatever epochs came before, so that a training
    interrupted and continued at `initial_epoch` sees the same; without it NumPy's global generator
    decides.

    `spread` shares every minibatch out to all workers (`distributed.py`), which must all call this
    with the same data, seed and order; they get state and first epoch of worker 0.

    Returns (model, history), the same model and its `keras.callbacks.History`; history is None when
    worker 0 starts no further training.
    """
    on_disk, n_rows = isinstance(X, DiskRows), len(X) if rows is None else len(rows)
    data = _as_tensors(*X.part(0)) if on_disk else _as_tensors(X, y, sample_weight)
    validation = None if X_val is None else _as_tensors(X_val, y_val, None)
    if not on_disk:  # whose parts are numbered by themselves
        rows = np.arange(n_rows) if rows is None else np.asarray(rows)
    seed = np.random.randint(2**31) if seed is None else seed
    if spread:
        agreed, reason = distributed.agree(model, initial_epoch), None
        if agreed is None:
            return model, None
        initial_epoch = agreed
        programs = distributed.program(model, batch_size), _programs(model, data, batch_size)[1]
    else:
        programs, reason = _try_to_compile(model, data, batch_size, callbacks)

    def order(epoch: int) -> np.ndarray:
        shuffled = np.random.default_rng([seed, epoch]).permutation(rows) if shuffle else rows
        return shuffled.astype(np.int32)  # NumPy shuffles 64 bits faster

    def parts(epoch: int) -> Iterable[tuple[tuple, np.ndarray]]:
        if on_disk:
            rng = np.random.default_rng([seed, epoch])
            return ((_as_tensors(*part), chosen) for *part, chosen in X.parts(rng))
        return [(data, order(epoch))]

    settings: dict[str, Any] = {"epochs": epochs, "verbose": verbose}
    if reason is None:
        settings |= {"steps": -(-n_rows // batch_size), "n_rows": n_rows}
        passes: Iterator = ((epoch, parts(epoch)) for epoch in range(initial_epoch, epochs))
        if n_rows > AHEAD_ROWS:
            passes = ahead(passes)
        return model, _run_epochs(model, programs, validation, passes, callbacks, settings)
    if on_disk:
        raise ValueError(f"rows on disk need a model that XLA can compile, but {reason}")
    warnings.warn(f"model.fit trains this model, more slowly: {reason}", stacklevel=2)
    settings["initial_epoch"] = initial_epoch
    minibatches = _Minibatches(data, order, n_rows, batch_size)
    return model, _fit(model, minibatches, validation, callbacks, settings)


class _Minibatches(keras.utils.PyDataset):
    """Give `model.fit` the minibatches that the compiled epochs would take."""

    def __init__(self, data: tuple, order: Callable, n_rows: int, batch_size: int) -> None:
        super().__init__()
        self.data, self.order, self.n_rows, self.batch_size = data, order, n_rows, batch_size
        self.rows = order(0)  # Keras looks at a minibatch before the first epoch begins

    def begin(self, epoch: int, logs: dict | None = None) -> None:
        """Put the rows in the order of an epoch."""
        self.rows = self.order(epoch)

    def __len__(self) -> int:
        return -(-self.n_rows // self.batch_size)

    def __getitem__(self, i: int) -> tuple:
        rows = self.rows[i * self.batch_size : (i + 1) * self.batch_size]
        return tuple(tf.gather(values, rows) for values in self.data if values is not None)


def _fit(
    model: keras.Model,
    minibatches: _Minibatches,
    validation: tuple | None,
    callbacks: Sequence,
    settings: dict[str, Any],
) -> keras.callbacks.History:
    """Train with Keras' own loop, on the same minibatches."""
    reorder = keras.callbacks.LambdaCallback(on_epoch_begin=minibatches.begin)
    return model.fit(
        minibatches,
        validation_data=validation and validation[:2],
        callbacks=[reorder, *callbacks],
        shuffle=False,  # the minibatches; their rows are in the order of the seed
        **settings,
    )


def _try_to_compile(
    model: keras.Model, data: tuple, batch_size: int, callbacks: Sequence
) -> tuple[tuple, str | None]:
    """Compile the programs of a model, or say why they cannot be: (programs, reason)."""
    if reason := _why_not_compiled(model, callbacks):
        return (), reason
    try:
        programs = _programs(model, data, batch_size)
        programs[0](data, np.array([], np.int32), True)
    except Exception as error:
        return (), f"XLA cannot compile it ({str(error).splitlines()[0][:120]})"
    return programs, None


def compile_ahead(model: keras.Model, X: Any, y: Any, batch_size: int) -> None:
    """Compile the epoch program of a model for X and y without training a single row.

    Calling this from a thread lets XLA compile while Python does something else.
    """
    data = _as_tensors(*X.part(0)) if isinstance(X, DiskRows) else _as_tensors(X, y)
    with contextlib.suppress(Exception):  # train_model will say why
        _programs(model, data, batch_size)[0](data, np.array([], np.int32), True)


def _run_epochs(
    model: keras.Model,
    programs: tuple,
    validation: tuple | None,
    passes: Iterable,
    callbacks: Sequence,
    settings: dict[str, Any],
) -> keras.callbacks.History:
    """Run epochs as `model.fit` does, callbacks included, one program call for each part."""
    train, evaluate = programs
    watches = [callback for callback in callbacks if isinstance(callback, Watch)]
    log = keras.callbacks.CallbackList(
        list(callbacks),
        add_history=True,
        add_progbar=settings["verbose"] != 0,
        model=model,
        **settings,
    )
    model.stop_training = False
    log.on_train_begin()
    for epoch, parts in passes:
        log.on_epoch_begin(epoch)
        n_rows = 0
        for data, order in parts:
            logs = train(data, order, n_rows == 0)
            n_rows += len(order)
            if n_rows < settings["n_rows"]:  # the callbacks tell of the end
                for watch in watches:
                    watch.on_rows(epoch + n_rows / settings["n_rows"], logs)
        if validation:
            logs |= {f"val_{name}": value for name, value in evaluate(validation).items()}
        log.on_epoch_end(epoch, logs)
        if model.stop_training or not np.isfinite(logs["loss"]):
            break
    model.optimizer.finalize_variable_values(model.trainable_weights)
    log.on_train_end()
    return model.history


def _as_tensors(X: Any, y: Any, sample_weight: Any = None) -> tuple:
    """Put rows into device memory; floats in Keras' float type, integer labels as they are."""

    def tensor(values: Any) -> Any:
        if values is None or tf.is_tensor(values):
            return values
        values = np.asarray(values)
        is_float = np.issubdtype(values.dtype, np.floating)
        return tf.constant(values.astype(keras.config.floatx(), copy=False) if is_float else values)

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

    Returns (train, evaluate): `train(data, order, is_first)` trains on a part of an epoch's rows,
    `evaluate(data)` scores; both give the logs of the epoch so far.
    """
    if not model.built or not len(getattr(model, "outputs", ())) == len(model.metrics) == 1:
        X, y, weight = (None if values is None else values[:1] for values in data)
        model.test_step((X, y, weight))  # builds what is not built yet, outside of the programs
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    decays = optimizer.weight_decay is not None
    key = [batch_size, decays, optimizer, *model.metrics[:1]]  # a new loss tracker each compile()
    cached_key, programs = getattr(model, "_epoch_programs", ([], ()))
    if key[:2] == cached_key[:2] and all(map(operator.is_, key[2:], cached_key[2:])):
        return programs
    whole_batches, last_batch, test = _compile(model, batch_size, decays)
    found: dict[tuple, Callable] = {}

    def call(program: Any, data: tuple, *others: Any) -> dict[str, float]:
        # TensorFlow takes as long to look a program up as to run ten minibatches.
        kind = program, *((v.shape, v.dtype) if tf.is_tensor(v) else v for v in (*data, *others))
        if kind not in found:
            found[kind] = program.get_concrete_function(data, *others)
        return {name: float(value) for name, value in found[kind](data, *others).items()}

    def train(data: tuple, order: np.ndarray, is_first: bool) -> dict[str, float]:
        batches, rest = divmod(len(order), batch_size)
        padded = np.zeros(max(len(data[0]), batch_size), np.int32)
        padded[: len(order)] = order
        decay = tf.constant(optimizer.weight_decay if decays else 0.0, tf.float32)
        logs = call(whole_batches, data, tf.constant(padded), tf.constant(batches), decay, is_first)
        if rest:
            logs = call(last_batch, data, tf.constant(order[-rest:], tf.int32), decay)
        return logs

    def evaluate(data: tuple) -> dict[str, float]:
        return call(test, data)

    # Not as an attribute: Keras would count the loss tracker in it as one more metric.
    vars(model)["_epoch_programs"] = key, (train, evaluate)
    return train, evaluate


def _compile(model: keras.Model, batch_size: int, decays: bool) -> tuple:
    """Write the three programs: all whole minibatches, the last short one, an evaluation.

    The order of the rows, the number of minibatches and the weight decay are arguments, so that
    epochs over other rows or at another strength need no compilation. All rows are put in order
    at once, before the loop: a slice costs less than a gather in every minibatch.
    """
    optimizer = model.optimizer

    def gather(data: tuple, rows: tf.Tensor) -> tuple:
        return tuple(None if values is None else tf.gather(values, rows) for values in data)

    def minibatch(data: tuple, start: tf.Tensor, size: int) -> tuple:
        def cut(values: tf.Tensor) -> tf.Tensor:
            others = values.shape[1:]
            return tf.slice(values, [start, *[0] * len(others)], [size, *others])

        return tuple(None if values is None else cut(values) for values in data)

    def train_step(data: tuple, decay: tf.Tensor) -> None:
        number, optimizer.weight_decay = optimizer.weight_decay, decay if decays else None
        try:
            model.train_step(data)
        finally:
            optimizer.weight_decay = number

    def repeat(body: Callable, times: int | tf.Tensor) -> None:
        tf.while_loop(lambda i: i < times, lambda i: [body(i), (i + 1,)][1], (tf.constant(0),))

    @tf.function(jit_compile=True, autograph=False)
    def whole_batches(
        data: tuple, order: tf.Tensor, batches: tf.Tensor, decay: tf.Tensor, is_first: bool
    ) -> dict:
        if is_first:  # inside: every operation outside costs as much as several minibatches
            model.reset_metrics()
        data = gather(data, order)
        repeat(lambda i: train_step(minibatch(data, i * batch_size, batch_size), decay), batches)
        return model.get_metrics_result()

    @tf.function(jit_compile=True, autograph=False)
    def last_batch(data: tuple, rows: tf.Tensor, decay: tf.Tensor) -> dict:
        train_step(gather(data, rows), decay)
        return model.get_metrics_result()

    @tf.function(autograph=False)  # a forward pass alone is not worth the time of XLA's compiler
    def test(data: tuple) -> dict:
        model.reset_metrics()
        whole, rest = divmod(data[0].shape[0], BLOCK)
        if whole:
            repeat(lambda i: model.test_step(minibatch(data, i * BLOCK, BLOCK)), whole)
        if rest:
            model.test_step(minibatch(data, whole * BLOCK, rest))
        return model.get_metrics_result()

    return whole_batches, last_batch, test


# --- fitting: regularisation, learning rate, warm start ------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Hold how a network was fitted.

    curves: loss and val_loss per epoch of the best strength tried (the mean of two searches, where
    validation rows are few); final: loss per epoch of the final training on all rows;
    strengths: validation loss of each weight decay tried.
    """

    weight_decay: float
    curves: dict[str, list[float]]
    final: list[float]
    strengths: dict[float, float]


def fit_network(
    model: keras.Model,
    X: np.ndarray | DiskRows,
    y: np.ndarray | None,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
    validate_on: Sequence[int] | None = None,
    checkpoint: "Checkpoint | None" = None,
) -> Fit:
    """Choose the weight decay on validation rows, then train on all rows with it.

    Every candidate starts from the model's present weights and optimizer state. A fifth of
    `validate_on` (row numbers; default all rows, at most `SEARCH_ROWS`) serves as validation rows.
    X and y as in `train_model`; a search trains on `SEARCH_ROWS` rows at most.
    The model ends trained on all rows, its learning rate back at `learning_rate`.

    Raises FloatingPointError when the loss is not finite whatever the strength.
    """
    start, checkpoint = model_state(model), checkpoint or Checkpoint(None)
    validate_on = range(len(X)) if validate_on is None else validate_on
    options: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    options["learning_rate"] = learning_rate
    if not distributed.is_leader():  # worker 0 searches, logs and says when to train
        while train_at(model, X, y, **options, spread=True):
            pass
        return Fit(model.optimizer.weight_decay, {}, [], {})

    def trained(strength: float, X: Any, y: Any, **held_out: Any) -> dict[str, list[float]]:
        restore_state(model, start)
        model.optimizer.weight_decay = strength
        return checkpoint.continued(
            model, lambda **left: train_at(model, X, y, **held_out, **options, **left)
        )

    tried: dict[float, list] = {strength: [] for strength in strengths}
    for few in _searches(X, y, validate_on, batch_size, np.random.default_rng(seed)):
        for strength in strengths:
            tried[strength].append(trained(strength, **few))
    last = {k: float(np.mean([h["val_loss"][-1] for h in hs])) for k, hs in tried.items()}
    last = {strength: loss for strength, loss in last.items() if np.isfinite(loss)}
    best = lowest(last) if last else strengths[0]
    final = trained(best, X, y, spread=distributed.is_active())["loss"] if last else [np.nan]
    checkpoint.save(model)
    if not np.isfinite(final[-1]):
        raise FloatingPointError(f"the loss is not finite at learning rate {learning_rate:g}")
    searches = tried[min(last, key=last.__getitem__)]
    curves = {name: np.mean([h[name] for h in searches], axis=0).tolist() for name in searches[0]}
    return Fit(best, curves, final, last)


def _searches(
    X: Any, y: Any, validate_on: Sequence[int], batch_size: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Draw the rows to train and to validate on, as arguments of `train_model`.

    Once where validation rows are many; twice, with others each time, where they are so few that
    the choice is much a matter of luck.
    """
    on_disk = isinstance(X, DiskRows)

    def chosen(numbers: np.ndarray) -> tuple:
        return X.take(numbers) if on_disk else (X[numbers], np.asarray(y)[numbers])

    n_validation = max(1, min(len(validate_on), SEARCH_ROWS) // 5)
    folds = 2 if n_validation < VALIDATION_ROWS and len(validate_on) > 1 else 1
    places = rng.choice(len(validate_on), folds * n_validation, replace=False)
    rows = rng.choice(len(X), min(len(X), SEARCH_ROWS + n_validation), replace=False)
    for fold in np.split(places, folds):
        validation = np.sort([validate_on[i] for i in fold])
        train = rows[~np.isin(rows, validation)][:SEARCH_ROWS]
        # A multiple of the batch size spares the compilation of a last short batch.
        train = train[: max(batch_size, len(train) // batch_size * batch_size)]
        held_out = dict(zip(("X_val", "y_val"), chosen(validation), strict=True))
        if len(X) <= SEARCH_ROWS and not on_disk:  # spares a second compilation
            yield {"X": X, "y": y, "rows": train, **held_out}
        else:
            yield dict(zip(("X", "y"), chosen(train), strict=True)) | held_out


def lowest(losses: dict[float, float]) -> float:
    """Estimate the strength of the lowest validation loss from a few strengths tried.

    The vertex of the parabola, over the logarithm of the strength, through the best one and its
    neighbours: on few validation rows less a matter of luck than the best one itself, which is
    the answer where it has no two neighbours or no logarithm.
    """
    strengths = sorted(losses)
    i = strengths.index(min(losses, key=losses.__getitem__))
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
        self.done: list[dict[str, list[float]]] = []
        self.repeated, self.run_id = 0, None
        self.past: dict[str, list[float]] = {}
        self.history: dict[str, list[float]] = {}
        self.state: list[np.ndarray] = []
        self.watchers: list[keras.callbacks.Callback] = []  # they see the epochs, too
        if file and file.exists():
            with np.load(file, allow_pickle=False) as saved:
                progress = json.loads(str(saved["progress"]))
                self.state = [saved[f"state_{i}"] for i in range(len(saved.files) - 1)]
            self.done, self.past = progress["done"], progress["history"]
            self.run_id = progress["run_id"]

    def continued(self, model: keras.Model, train: Callable) -> dict[str, list[float]]:
        """Run one training of the fit, or what is left of it; return its whole history."""
        self.repeated += 1
        if self.repeated <= len(self.done):
            if not self.past and self.state:  # saved after the last one was done
                restore_state(model, self.state)
            return self.done[self.repeated - 1]
        if self.past:
            restore_state(model, self.state)
        self.history = {name: list(values) for name, values in self.past.items()}
        first = max(map(len, self.past.values()), default=0)
        self.past, self.state = {}, []
        train(initial_epoch=first, callbacks=[self, *self.watchers])
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
        arrays: dict[str, Any] = {"progress": json.dumps(progress)}
        arrays |= {f"state_{i}": value for i, value in enumerate(model_state(model))}
        beside = self.file.with_suffix(f".{os.getpid()}.part")
        with beside.open("wb") as stream:
            np.savez(stream, **arrays)
        beside.replace(self.file)


class Watch(keras.callbacks.Callback):
    """Tell a function how far a training is: epochs done, of how many, the loss, rows in each."""

    def __init__(self, tell: Callable[[float, int, float, int], None]) -> None:
        super().__init__()
        self.tell = tell

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.on_rows(epoch + 1, logs or {})

    def on_rows(self, done: float, logs: dict) -> None:
        """Be told of epochs that need not be whole, where rows come in parts."""
        loss, n_rows = logs.get("loss", float("nan")), self.params.get("n_rows", 0)
        self.tell(done, self.params["epochs"], loss, n_rows)


def train_at(
    model: keras.Model, X: Any, y: Any, *, learning_rate: float, epochs: int, **options: Any
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
    activation = network.layers[0].activation  # a network of an earlier version may have another
    wider = create_nn_model(
        input_dim, scale=scale, activation=activation, learning_rate=learning_rate
    )
    wider.optimizer.build(wider.trainable_variables)
    state = model_state(network)
    for variable, old in zip((*wider.variables, *wider.optimizer.variables), state, strict=True):
        value = np.zeros(variable.shape, old.dtype)
        value[tuple(slice(n) for n in old.shape)] = old
        variable.assign(value)
    return wider


# --- prediction and scores -----------------------------------------------------------------------


def model_predict(model: keras.Model, X: Any) -> np.ndarray:
    """Predict target units, float64 of shape (n_rows,), for X of shape (n_rows, n_inputs)."""
    return tabular.predict(model, X)


def evaluate_performance(y_true: ArrayLike, y_pred: ArrayLike) -> dict[str, float]:
    """Score predictions: mean squared error, mean absolute error, coefficient of determination."""
    return {
        "MSE": float(mean_squared_error(y_true, y_pred)),
        "MAE": float(mean_absolute_error(y_true, y_pred)),
        "R²": float(r2_score(y_true, y_pred)),
    }
