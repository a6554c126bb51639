"""Claims about model_utils.py: training as `model.fit` does it, fitting, widening, accuracy."""

import importlib.util
import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

import model_utils
import tabular
from model_utils import (
    TargetScale,
    create_nn_model,
    fit_network,
    model_predict,
    model_state,
    restore_state,
    target_scale,
    train_model,
    widen_network,
)

RNG = np.random.default_rng
N_ROWS, N_INPUTS = 70, 3  # at 32 rows a minibatch, the last one is short
X = RNG(0).normal(size=(N_ROWS, N_INPUTS))
Y = X @ [1, -2, 3] + RNG(1).normal(scale=0.1, size=N_ROWS)


def network(*layers, optimizer="adam", loss="mse", **options):
    """Compile a network with the same initial weights at every call; by default a tiny one."""
    keras.utils.set_random_seed(0)
    layers = layers or (keras.layers.Dense(1),)
    model = keras.Sequential([keras.Input((N_INPUTS,)), *layers])
    model.compile(optimizer, loss, **options)
    return model


def assert_same_weights(model, other):
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def same_bits(model, other):
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(ours, theirs) for ours, theirs in pairs)


def slowly(function, *arguments, **options):
    """Call a function that must warn exactly once that it leaves the work to `model.fit`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*arguments, **options)
    words = [str(w.message) for w in caught if w.category is UserWarning]
    assert len(words) == 1
    assert "model.fit trains this model, more slowly" in words[0]
    return result


# --- data


def test_split_is_reproducible_and_leaves_no_row_out_or_in_twice():
    rows, y = pd.DataFrame({"x": range(50)}), pd.Series(range(50)) * 2
    train, test, y_train, y_test = model_utils.split(rows, y)
    assert (len(train), len(test)) == (40, 10)
    assert sorted([*train["x"], *test["x"]]) == list(range(50))
    np.testing.assert_array_equal(y_train, 2 * train["x"])
    np.testing.assert_array_equal(y_test, 2 * test["x"])
    again = model_utils.split(rows, y, test_size=0.2, random_state=42)
    pd.testing.assert_frame_equal(again[1], test)
    assert set(model_utils.split(rows, y, random_state=1)[1]["x"]) != set(test["x"])


def test_preprocessing_fits_on_the_rows_it_is_given_and_then_only_transforms():
    train = pd.DataFrame({"x": [0.0, 2.0] * 10, "c": ["a", "b"] * 10, "price": range(20)})
    inputs, y, preprocessor = model_utils.preprocessing(train, target="price")
    np.testing.assert_array_equal(inputs, [[-1, 1, 0], [1, 0, 1]] * 10)
    np.testing.assert_array_equal(y, np.arange(20.0))
    test = pd.DataFrame({"c": ["z", "a"], "x": [4.0, None]})
    inputs, y, same = model_utils.preprocessing(test, preprocessor=preprocessor, target="price")
    np.testing.assert_array_equal(inputs, [[3, 0, 0], [0, 1, 0]])
    assert y is None
    assert same is preprocessor


# --- network


def test_network_is_64_32_1_and_its_seed_decides_its_weights():
    model = create_nn_model(7, seed=5)
    shapes = [weights.shape for weights in model.get_weights()]
    assert shapes == [(7, 64), (64,), (64, 32), (32,), (32, 1), (1,)]
    assert same_bits(model, create_nn_model(7, seed=5))
    assert not same_bits(model, create_nn_model(7, seed=6))


def test_network_is_smooth_with_a_scale_and_relu_without_unless_told_otherwise():
    def activations(**options):
        return [layer.activation.__name__ for layer in create_nn_model(7, **options).layers[:3]]

    assert activations() == ["relu", "relu", "linear"]
    assert activations(scale=TargetScale()) == ["gelu", "gelu", "linear"]
    assert activations(scale=TargetScale(), activation="tanh") == ["tanh", "tanh", "linear"]


@pytest.mark.parametrize("input_dim", [0, -1])
def test_network_without_inputs_is_refused(input_dim):
    with pytest.raises(ValueError, match=f"Received: input_dim={input_dim}"):
        create_nn_model(input_dim)


def test_target_scale_is_worked_out_by_hand_and_finds_bounds_where_rows_pile_up():
    floor, between, cap = [10.0] * 5, [12.0, 14.0, 16.0, 18.0], [20.0] * 5
    scale = target_scale(floor + between + cap)
    assert scale == TargetScale(15, np.std(floor + between + cap), 10, 20)
    assert target_scale([0.0, 4.0] * 3 + [2.0]) == TargetScale(2, np.sqrt(24 / 7), None, None)
    assert (target_scale(floor + between).low, target_scale(floor + between).high) == (10, None)
    assert (target_scale(between + cap).low, target_scale(between + cap).high) == (None, 20)
    # Five rows in 2,000 are fewer than the half percent that makes a pile.
    assert target_scale([*floor, *np.linspace(11, 12, 1_995)]).low is None
    assert target_scale([*floor * 2, *np.linspace(11, 12, 1_990)]).low == 10
    assert target_scale(np.zeros(4)).scale == 1


def test_rescaled_drops_the_bound_that_new_targets_cross():
    scale = TargetScale(15, 3, 10, 20)
    assert model_utils.rescaled(scale, [10, 20]) == scale
    assert model_utils.rescaled(scale, [9, 20]) == TargetScale(15, 3, None, 20)
    assert model_utils.rescaled(scale, [10, 21]) == TargetScale(15, 3, 10, None)
    assert model_utils.rescaled(TargetScale(15, 3), [-1e9, 1e9]) == TargetScale(15, 3)


@pytest.mark.parametrize("low", [None, 500.0])
@pytest.mark.parametrize("high", [None, 40_000.0])
def test_output_layers_scale_exactly_and_clip_at_the_bounds(low, high):
    mean, scale = 10_000.0, 8_192.0
    bounds = TargetScale(mean, scale, low, high)
    model = create_nn_model(1, scale=bounds, activation="relu")
    # The last Dense gives x for x >= 0 and -x for x < 0, less 4: relu(x) + relu(-x) - 4.
    first, second, last = (np.zeros(w.shape) for w in model.get_weights()[::2])
    first[0, :2], second[0, 0], second[1, 1], last[:2, 0] = [1, -1], 1, 1, 1
    weights = [first, np.zeros(64), second, np.zeros(32), last, np.array([-4.0])]
    model.set_weights(weights)
    x = np.array([[-100.0], [-4.5], [0.0], [2.0], [4.0], [6.0], [1e3]])
    expected = mean + scale * (np.abs(x[:, 0]) - 4)
    expected = np.clip(expected, low, high) if (low or high) else expected
    np.testing.assert_array_equal(model_predict(model, x), expected)
    np.testing.assert_array_equal(model.predict(x, verbose=0)[:, 0], expected)


# --- training as model.fit does it


def decaying_rate():
    return keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.7)


LABELS = RNG(2).integers(0, 3, N_ROWS)
WEIGHTS = RNG(3).uniform(0, 2, N_ROWS)
DENSE, ADAM, SGD = keras.layers.Dense, keras.optimizers.Adam, keras.optimizers.SGD
CASES = {
    "adam": {"layers": lambda: [DENSE(4, "relu"), DENSE(1)], "compile": {"metrics": ["mae"]}},
    "momentum": {"optimizer": lambda: SGD(0.05, momentum=0.9), "compile": {"loss": "mae"}},
    # Compiled, TensorFlow draws other random numbers: fit has to be compiled as well.
    "dropout": {
        "layers": lambda: [keras.layers.Dropout(0.5, seed=3), DENSE(1)],
        "compile": {"jit_compile": True},
        "rows": 64,
    },
    "regularizer": {"layers": lambda: [DENSE(1, kernel_regularizer="l2")]},
    "batch normalization": {"layers": lambda: [keras.layers.BatchNormalization(), DENSE(1)]},
    "sample weight": {
        "fit": {"sample_weight": WEIGHTS},
        "compile": {"weighted_metrics": ["mae"]},
    },
    "learning rate schedule": {"optimizer": lambda: ADAM(decaying_rate())},
    "moving average": {"optimizer": lambda: ADAM(0.01, use_ema=True, ema_momentum=0.5)},
    "integer labels": {
        "layers": lambda: [DENSE(3, "softmax")],
        "compile": {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
        "y": LABELS,
    },
    "fewer rows than a batch": {"rows": 20},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_training_makes_the_updates_of_model_fit(case):
    layers, optimizer = case.get("layers", list), case.get("optimizer", ADAM)
    n, y = case.get("rows", N_ROWS), case.get("y", Y)
    ours, theirs = (
        network(*layers(), optimizer=optimizer(), **case.get("compile", {})) for _ in range(2)
    )
    arguments = {"epochs": 2, "batch_size": 32, "shuffle": False, **case.get("fit", {})}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the work must not be left to model.fit
        _, history = train_model(ours, X[:n], y[:n], X[:9], y[:9], **arguments)
    expected = theirs.fit(X[:n], y[:n], validation_data=(X[:9], y[:9]), verbose=0, **arguments)
    assert_same_weights(ours, theirs)
    assert history.history.keys() == expected.history.keys()
    for name, values in expected.history.items():
        np.testing.assert_allclose(history.history[name], values, rtol=1e-5)
    assert history.epoch == expected.epoch
    assert int(ours.optimizer.iterations) == int(theirs.optimizer.iterations)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_loss_is_the_mean_over_rows_whatever_the_shape_of_the_targets(shape):
    model = network(optimizer=keras.optimizers.SGD(0.0))
    expected = np.mean((Y - model_predict(model, X)) ** 2)  # not the mean over all pairs
    _, history = train_model(model, X, Y.reshape(shape), epochs=1)
    assert history.history["loss"] == pytest.approx([expected], rel=1e-5)


def test_validation_loss_is_that_of_evaluate_over_more_rows_than_a_block(monkeypatch):
    monkeypatch.setattr(model_utils, "BLOCK", 16)
    model = network()
    _, history = train_model(model, X[:40], Y[:40], X, Y, epochs=1)
    expected = model.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
    assert history.history["val_loss"] == pytest.approx([expected], rel=1e-5)


def test_training_adds_no_metric_to_the_model():
    model = network(metrics=["mae"])
    train_model(model, X, Y, epochs=1)
    assert len(model.evaluate(X, Y, verbose=0)) == 2
    assert len(model.metrics) == 2


def test_same_seed_gives_the_same_bits_and_another_seed_others():
    model = network()
    start = model_state(model)

    def trained(seed, global_seed=0):
        np.random.seed(global_seed)
        restore_state(model, start)
        train_model(model, X, Y, epochs=2, seed=seed)
        return np.concatenate([weights.ravel() for weights in model.get_weights()])

    np.testing.assert_array_equal(trained(1), trained(1, global_seed=9))
    assert not np.array_equal(trained(1), trained(2))
    np.testing.assert_array_equal(trained(None, 1), trained(None, 1))
    assert not np.array_equal(trained(None, 1), trained(None, 2))


def test_every_row_is_visited_once_an_epoch_in_an_order_that_changes():
    # With rate 1 and the loss w·x for one-hot rows, each visit takes 1 / (rows in the minibatch)
    # off its own weight, and the last, short minibatch is the one with the larger steps.
    n, visits = 6, []
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((n,)), layer])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda _, prediction: prediction)
    before = np.zeros(n)

    def record(epoch, logs):
        visits.append(before - model.get_weights()[0][:, 0])
        before[:] = model.get_weights()[0][:, 0]

    callback = keras.callbacks.LambdaCallback(on_epoch_end=record)
    options = {"epochs": 8, "batch_size": 4, "seed": 0, "callbacks": [callback]}
    train_model(model, np.eye(n), np.zeros(n), **options)
    for visit in visits:
        np.testing.assert_allclose(np.sort(visit), [1 / 4] * 4 + [1 / 2] * 2)
    assert len({tuple(visit) for visit in visits}) > 1


@pytest.mark.parametrize("kind", [np.array, list])
def test_rows_trains_on_that_part_alone(kind):
    part = kind([3, 50, 7, 20, 69, 4, 33, 12, 5, 1])
    options = {"epochs": 2, "batch_size": 4, "shuffle": False}
    ours, theirs = network(), network()
    sample_weight = {"sample_weight": WEIGHTS}
    _, history = train_model(ours, X, Y, rows=part, **sample_weight, **options)
    expected = theirs.fit(X[part], Y[part], sample_weight=WEIGHTS[part], verbose=0, **options)
    assert_same_weights(ours, theirs)
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-5)


def test_compiling_the_model_anew_is_noticed():
    ours, theirs = network(), network()
    start, options = model_state(ours), {"epochs": 1, "shuffle": False}
    train_model(ours, X, Y, **options)
    ours.compile(ours.optimizer, loss="mae", metrics=["mse"])
    restore_state(ours, start)
    theirs.compile("adam", loss="mae", metrics=["mse"])
    _, history = train_model(ours, X, Y, **options)
    expected = theirs.fit(X, Y, verbose=0, **options)
    assert_same_weights(ours, theirs)
    for name in ("loss", "mse"):
        assert history.history[name] == pytest.approx(expected.history[name], rel=1e-5)


def test_weight_decay_and_learning_rate_may_change_between_calls():
    def build(decay, rate):
        return network(optimizer=keras.optimizers.AdamW(rate, weight_decay=decay))

    ours, theirs = build(0.0, 0.1), build(5.0, 0.01)
    start = model_state(theirs)
    train_model(ours, X, Y, epochs=1, shuffle=False)
    restore_state(ours, start)
    ours.optimizer.weight_decay, ours.optimizer.learning_rate = 5.0, 0.01
    train_model(ours, X, Y, epochs=1, shuffle=False)
    theirs.fit(X, Y, epochs=1, shuffle=False, verbose=0)
    assert_same_weights(ours, theirs)
    assert ours.optimizer.weight_decay == 5.0


@pytest.mark.parametrize("batch_size", ["8", "1000"])
def test_calls_alike_share_one_compiled_program(batch_size):
    model, traces = network(), []
    train_step = model.train_step
    model.train_step = lambda data: traces.append(1) or train_step(data)
    # A number read twice, from a command line say, is two objects.
    train_model(model, X, Y, epochs=2, batch_size=int(batch_size))
    n_traces = len(traces)
    train_model(model, X, Y, epochs=2, batch_size=int(batch_size))
    assert len(traces) == n_traces > 0


def test_compiling_ahead_trains_nothing():
    model, untouched = network(), network()
    model_utils.compile_ahead(model, X, Y, 32)
    assert same_bits(model, untouched)
    assert int(model.optimizer.iterations) == 0


def test_early_stopping_stops_and_restores_the_best_weights():
    # Validation targets of the opposite sign: every epoch makes the validation loss worse.
    ours, best = (network(optimizer=keras.optimizers.SGD(0.01)) for _ in range(2))
    stop = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    options = {"shuffle": False, "callbacks": [stop]}
    _, history = train_model(ours, X, Y, X, -Y, epochs=50, **options)
    assert len(history.history["loss"]) == 3
    train_model(best, X, Y, epochs=1, shuffle=False)
    assert_same_weights(ours, best)
    _, history = train_model(ours, X, Y, epochs=2)  # a model that was stopped trains again
    assert len(history.history["loss"]) == 2


def test_training_stops_when_the_loss_is_not_finite():
    model = network(optimizer=keras.optimizers.SGD(1e30))
    _, history = train_model(model, X, Y, epochs=50)
    assert len(history.history["loss"]) < 10


# --- training where an epoch cannot be one program


class Doubled(keras.layers.Layer):
    """Double the input in Python, which XLA cannot compile."""

    def call(self, inputs):
        return tf.ensure_shape(tf.py_function(lambda x: 2 * x, [inputs], tf.float32), inputs.shape)

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize("python_layer", [True, False])
def test_model_that_cannot_be_compiled_is_left_to_fit_after_one_warning(python_layer):
    def build():
        layers = [Doubled()] if python_layer else []
        return network(*layers, keras.layers.Dense(1), run_eagerly=not python_layer)

    ours, theirs = build(), build()
    part, options = np.arange(0, 60, 2), {"epochs": 2, "shuffle": False}
    weight = {"sample_weight": WEIGHTS}
    _, history = slowly(train_model, ours, X, Y, X, Y, rows=part, **weight, **options)
    expected = theirs.fit(
        X[part],
        Y[part],
        sample_weight=WEIGHTS[part],
        validation_data=(X, Y),
        verbose=0,
        **options,
    )
    assert_same_weights(ours, theirs)
    np.testing.assert_allclose(history.history["val_loss"], expected.history["val_loss"], rtol=1e-5)


class CountBatches(keras.callbacks.Callback):
    n = 0

    def on_train_batch_end(self, batch, logs=None):
        self.n += 1


def test_callback_that_wants_batches_gets_them_after_one_warning():
    counter, model = CountBatches(), network()
    slowly(train_model, model, X, Y, epochs=2, batch_size=32, callbacks=[counter])
    assert counter.n == 6


def test_seed_fixes_the_order_of_the_rows_even_where_fit_does_the_work():
    def trained(seed):
        model = network(run_eagerly=True)
        keras.utils.set_random_seed(int(RNG().integers(1_000)))  # the global seed must not matter
        slowly(train_model, model, X, Y, epochs=1, seed=seed)
        return model

    assert same_bits(trained(1), trained(1))
    assert not same_bits(trained(1), trained(2))


# --- fitting


def fit_with(model, inputs, y, **options):
    defaults = {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3, "seed": 0}
    return fit_network(model, inputs, y, **(defaults | options))


def test_pure_noise_calls_for_strong_weight_decay_and_clean_data_for_weak():
    inputs = RNG(0).normal(size=(2_000, 6))
    model = create_nn_model(6, seed=0)
    start = model_state(model)
    fit = fit_with(model, inputs, RNG(1).normal(size=2_000), epochs=20)
    assert fit.weight_decay >= 3
    restore_state(model, start)
    fit = fit_with(model, inputs, inputs @ np.arange(1, 7), epochs=20)
    assert fit.weight_decay <= 0.3
    assert fit.weight_decay == min(fit.strengths, key=fit.strengths.get)
    assert set(fit.strengths) == set(model_utils.STRENGTHS)
    assert len(fit.curves["loss"]) == len(fit.curves["val_loss"]) == len(fit.final) == 20
    assert fit.curves["val_loss"][-1] == pytest.approx(fit.strengths[fit.weight_decay])


def test_fit_is_reproducible_and_gives_the_learning_rate_back():
    model, again = network(), network()
    fits = [fit_with(m, X, Y, learning_rate=0.01, seed=3) for m in (model, again)]
    assert same_bits(model, again)
    assert fits[0] == fits[1]
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert model.optimizer.weight_decay == fits[0].weight_decay


def test_candidates_start_alike_and_the_final_training_from_the_given_weights():
    model = network(optimizer="adamw")
    start = model_state(model)
    found = []
    for strengths in ((0.1, 10.0), (10.0, 0.1)):
        restore_state(model, start)
        found.append(fit_with(model, X, Y, strengths=strengths))
    assert found[0].strengths == found[1].strengths
    assert found[0].final == found[1].final
    restore_state(model, start)
    options = {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3, "seed": 0}
    assert model_utils.train_at(model, X, Y, **options).history["loss"] == found[0].final


def test_search_never_trains_on_its_validation_rows_and_the_end_trains_on_all(monkeypatch):
    calls = []

    def spy(model, X, y, **options):
        calls.append(options)
        return train_model(model, X, y, **options)

    monkeypatch.setattr(model_utils, "train_model", spy)
    allowed = np.arange(40, 70)
    fit_with(network(), X, Y, strengths=(0.1, 1.0), batch_size=8, validate_on=allowed)
    *search, final = calls
    assert len(search) == 4  # two strengths, on two sets of validation rows, which are few here
    folds = [{tuple(row) for row in options["X_val"]} for options in search[::2]]
    assert len(set.union(*folds)) == 12
    for options in search:
        validation = {tuple(row) for row in options["X_val"]}
        assert len(validation) == 6  # a fifth of the allowed rows
        assert validation <= {tuple(row) for row in X[allowed]}
        assert not validation & {tuple(row) for row in X[options["rows"]]}
        assert len(options["rows"]) == 64
    assert not {"rows", "X_val"} & set(final)


def test_interrupted_fit_goes_on_to_the_same_bits(tmp_path):
    model = network()
    start, options = model_state(model), {"epochs": 3, "strengths": (0.1, 1.0)}
    whole, end = fit_with(model, X, Y, **options), model_state(model)

    class Interrupted(model_utils.Checkpoint):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    for n_epochs in (1, 3, 5, 8):  # of the fifteen in five trainings
        file = tmp_path / f"{n_epochs}.npz"
        interrupted = Interrupted(file, seconds=0)
        interrupted.left = n_epochs
        restore_state(model, start)
        with pytest.raises(KeyboardInterrupt):
            fit_with(model, X, Y, checkpoint=interrupted, **options)
        for _ in range(2):  # the second time, nothing is left to do
            restore_state(model, start)
            checkpoint = model_utils.Checkpoint(file)
            assert fit_with(model, X, Y, checkpoint=checkpoint, **options) == whole
            assert all(map(np.array_equal, model_state(model), end))


@pytest.mark.parametrize(("learning_rate", "gap"), [(1e30, 0.0), (1e-3, np.nan)])
def test_loss_that_is_never_finite_is_an_error(learning_rate, gap):
    y = np.r_[Y[:-1], gap]
    model = network()
    with pytest.raises(FloatingPointError, match=re.escape(f"at learning rate {learning_rate:g}")):
        fit_with(model, X, y, strengths=(0.1, 1.0), learning_rate=learning_rate)
    assert float(model.optimizer.learning_rate) == pytest.approx(learning_rate)


def test_learning_rate_falls_along_half_a_cosine_and_schedules_are_left_alone():
    seen = []
    model = network()
    optimizer = model.optimizer
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(float(optimizer.learning_rate))
    )
    model_utils.train_at(model, X, Y, learning_rate=0.1, epochs=4, callbacks=[record])
    np.testing.assert_allclose(seen, 0.05 * (1 + np.cos(np.pi * np.arange(4) / 4)), rtol=1e-6)
    schedule = network(optimizer=keras.optimizers.SGD(decaying_rate()))
    model_utils.train_at(schedule, X, Y, learning_rate=0.5, epochs=1)
    assert float(schedule.optimizer.learning_rate) == pytest.approx(0.1 * 0.7**3)


# --- states and widening


def test_state_comes_back_with_weights_and_optimizer_slots():
    model = network()
    train_model(model, X, Y, epochs=1, seed=0)
    state = model_state(model)
    copy = [value.copy() for value in state]
    _, first = train_model(model, X, Y, epochs=2, seed=1)
    restore_state(model, state)
    assert all(map(np.array_equal, model_state(model), copy))
    _, second = train_model(model, X, Y, epochs=2, seed=1)
    assert first.history == second.history
    with pytest.raises(ValueError, match="shorter"):
        restore_state(model, state[:-1])


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("scale", [None, TargetScale(0.5, 2.0, -4.0, 4.0)])
def test_widened_network_predicts_the_same_bits_and_leaves_the_original_alone(scale, activation):
    model = create_nn_model(N_INPUTS, scale=scale, activation=activation, seed=0)
    before = [RNG(0).normal(size=np.shape(value)) for value in model_state(model)]
    restore_state(model, before)  # no slot may be zero already
    before = model_state(model)
    wider = widen_network(model, N_INPUTS + 5, scale, learning_rate=1e-3)
    for n_rows in (1, N_ROWS, 3_000):
        rows = RNG(n_rows).normal(size=(n_rows, N_INPUTS))
        np.testing.assert_array_equal(
            model_predict(wider, np.pad(rows, ((0, 0), (0, 5)))), model_predict(model, rows)
        )
    assert all(map(np.array_equal, model_state(model), before))
    n_padded = 0
    for old, new in zip(before, model_state(wider), strict=True):
        if old.shape == new.shape:
            np.testing.assert_array_equal(new, old)
            continue
        n_padded += 1
        np.testing.assert_array_equal(new[:N_INPUTS], old)
        np.testing.assert_array_equal(new[N_INPUTS:], np.zeros((5, 64)))
    assert n_padded == 3  # the first layer's weights and Adam's two slots for them


# --- scores


def test_scores_are_those_worked_out_by_hand():
    # Errors -1, 0, 3; the mean is 3, and the squared distances from it are 4 + 1 + 9 = 14.
    scores = model_utils.evaluate_performance(pd.Series([1, 2, 6]), np.array([2.0, 2.0, 3.0]))
    assert scores == pytest.approx({"MSE": 10 / 3, "MAE": 4 / 3, "R²": 1 - 10 / 14})


def test_network_reaches_97_percent_of_the_best_reachable_score_on_the_sample_file():
    folder = Path(__file__).resolve().parents[1] / "data"
    spec = importlib.util.spec_from_file_location("make_data", folder / "make_data.py")
    make_data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_data)
    rows = pd.read_csv(folder / "df_old.csv")
    train, test, _, y_test = model_utils.split(rows, rows["montant_pret"])
    inputs, y, preprocessor = model_utils.preprocessing(train)
    model = create_nn_model(inputs.shape[1], scale=target_scale(y), seed=42)
    fit_with(model, inputs, y.to_numpy(), epochs=60)
    reached = r2_score(y_test, model_predict(model, tabular.encode(test, preprocessor)))
    best = r2_score(y_test, make_data.expected_amount(test))
    assert reached >= 0.97 * best


def test_network_is_about_as_good_as_a_linear_model_where_that_is_hard_to_beat():
    rows = load_diabetes(as_frame=True).frame
    train, test, y, y_test = model_utils.split(rows, rows["target"], test_size=0.5)
    inputs, _, preprocessor = model_utils.preprocessing(train, target="target")
    unseen = tabular.encode(test, preprocessor)
    model = create_nn_model(10, scale=target_scale(y), seed=42)
    fit_with(model, inputs, y.to_numpy(), epochs=60)
    linear = LinearRegression().fit(inputs, y)
    reached = r2_score(y_test, model_predict(model, unseen))
    assert reached >= r2_score(y_test, linear.predict(unseen)) - 0.03


def test_lowest_loss_is_read_off_the_parabola_through_three_strengths():
    def parabola(strength):
        return (np.log(strength) - np.log(2)) ** 2

    losses = {strength: parabola(strength) for strength in (0.1, 1.0, 3.0, 10.0)}
    assert model_utils.lowest(losses) == pytest.approx(2)
    assert model_utils.lowest({0.1: 1.0, 1.0: 2.0, 10.0: 3.0}) == 0.1
    assert model_utils.lowest({0.0: 2.0, 1.0: 1.0, 10.0: 3.0}) == 1.0
    assert model_utils.lowest({1.0: 5.0, 2.0: 5.0, 4.0: 5.0}) in (1.0, 2.0)
    assert model_utils.lowest({3.0: 5.0}) == 3.0
