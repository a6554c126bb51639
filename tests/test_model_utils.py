"""Claims about model_utils.py: training as Keras' own `fit` does it, members, growing, choosing."""

import json
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error

import model_utils
from model_utils import (
    MemberAdamW,
    Recipe,
    TargetScale,
    choose_recipe,
    copy_members,
    create_nn_model,
    model_predict,
    target_scale,
    train_members,
    train_model,
)
from toolkit import columns, kinds, roles

RNG = np.random.default_rng
N_ROWS, N_INPUTS = 70, 3  # at 32 rows a minibatch, the last one is short
X = RNG(0).normal(size=(N_ROWS, N_INPUTS)).astype(np.float32)
Y = X @ [1, -2, 3] + RNG(1).normal(scale=0.1, size=N_ROWS)
WEIGHTS = RNG(3).uniform(0, 2, N_ROWS)
EDGES = (-1.0, 0.0, 0.5, 2.0)
SCALE = target_scale(Y)
QUICK = Recipe(epochs=3, batch_size=16)


def network(optimizer="adam", loss="mse", units=4):
    """Compile a small network with the same initial weights at every call."""
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(units, "tanh")
    model = keras.Sequential([keras.Input((N_INPUTS,)), hidden, keras.layers.Dense(1)])
    model.compile(optimizer, loss)
    return model


def weights_of(model):
    return np.concatenate([weights.ravel() for weights in model.get_weights()])


def assert_same_weights(model, other):
    np.testing.assert_allclose(weights_of(model), weights_of(other), rtol=1e-5, atol=1e-6)


# --- data ----------------------------------------------------------------------------------------


def raw_rows(n=40):
    rng = RNG(5)
    rows = pd.DataFrame({"x": rng.normal(size=n), "c": rng.choice(["a", "b"], n)})
    rows["day"] = pd.date_range("2020-03-01", periods=n).strftime("%Y-%m-%d")
    return rows.assign(price=rng.normal(size=n))


def test_preprocessing_fits_on_the_rows_it_is_given_and_then_only_transforms():
    train = pd.DataFrame({"x": [0.0, 2.0] * 10, "c": ["a", "b"] * 10, "price": range(20)})
    inputs, y, preprocessor = model_utils.preprocessing(train, target="price")
    np.testing.assert_array_equal(inputs, [[-1, 1, 0], [1, 0, 1]] * 10)
    np.testing.assert_array_equal(y, np.arange(20.0))
    test = pd.DataFrame({"c": ["z", "a"], "x": ["1.0", ""]}, index=[5, 5])
    inputs, y, same = model_utils.preprocessing(test, preprocessor=preprocessor)
    np.testing.assert_array_equal(inputs, [[0, 0, 0], [0, 1, 0]])
    assert y is None
    assert same is preprocessor


def test_raw_rows_with_dates_pass_through_a_fitted_preprocessor_with_their_target():
    rows = raw_rows()
    inputs, _, preprocessor = model_utils.preprocessing(rows, target="price")
    again, y, _ = model_utils.preprocessing(rows, preprocessor=preprocessor)
    np.testing.assert_array_equal(again, inputs)
    np.testing.assert_array_equal(y, rows["price"])


def test_preprocessing_of_conformed_rows_is_that_of_raw_ones():
    rows = raw_rows()
    schema, _ = kinds.infer_schema(rows, "price")
    table, _ = columns.conform(rows, schema)
    expected, _, _ = model_utils.preprocessing(rows, target="price")
    for each in (rows, roles.hashed(table)):
        inputs, y, _ = model_utils.preprocessing(each, schema=schema)
        np.testing.assert_array_equal(inputs, expected)
        np.testing.assert_array_equal(y, rows["price"])


def test_training_rows_alone_are_encoded_out_of_fold():
    rng = RNG(0)
    rows = pd.DataFrame({"c": rng.integers(0, 40, 800), "price": rng.normal(size=800)})
    rows["c"] = "level " + rows["c"].astype(str)
    schema, _ = kinds.infer_schema(rows, "price", keep=["c"])
    table = roles.hashed(columns.conform(rows, schema)[0])
    inputs, _, preprocessor = model_utils.preprocessing(table, schema=schema)
    again, _, _ = model_utils.preprocessing(table, preprocessor=preprocessor)
    np.testing.assert_array_equal(again, inputs)  # a retraining on the same rows
    scored, _, _ = model_utils.preprocessing(rows, preprocessor=preprocessor)
    np.testing.assert_array_equal(scored, preprocessor.transform(table))
    assert not np.array_equal(scored, inputs)


ODD_INDEX = [(i * 7) % 10 for i in range(50)]


@pytest.mark.parametrize(
    ("rows", "y"),
    [
        (pd.DataFrame({"x": range(50)}), pd.Series(range(50)) * 2),
        (pd.DataFrame({"x": range(50)}, index=ODD_INDEX), np.arange(50) * 2),
        (pd.DataFrame({"x": range(50)}, index=ODD_INDEX), pd.Series(range(50), ODD_INDEX) * 2),
        (pd.DataFrame({0: range(50), "c": ["a", None] * 25}), pd.Series(range(50)) * 2),
        (np.arange(50)[:, None], np.arange(50) * 2),
        (np.arange(50.0)[:, None], pd.Series(range(50), ODD_INDEX) * 2),
    ],
    ids=["frame", "odd index", "odd indices", "number as name", "array", "array and series"],
)
def test_split_leaves_no_row_out_or_in_twice_and_is_reproducible(rows, y):
    train, test, y_train, y_test = parts = model_utils.split(rows, y)
    assert (len(train), len(test)) == (40, 10)
    assert [type(part) for part in parts] == [type(rows)] * 2 + [type(y)] * 2

    def first(part):
        return np.asarray(part)[:, 0].astype(float)

    assert sorted([*first(train), *first(test)]) == list(range(50))
    np.testing.assert_array_equal(y_train, 2 * first(train))
    np.testing.assert_array_equal(y_test, 2 * first(test))
    again = model_utils.split(rows, y, test_size=0.2, random_state=42)
    np.testing.assert_array_equal(first(again[1]), first(test))
    other = model_utils.split(rows, y, test_size=0.3, random_state=1)
    assert len(other[1]) == 15
    assert set(first(other[1])) != set(first(test))


def test_split_gives_equal_rows_one_role_whatever_their_order():
    rows, order = pd.DataFrame({"x": list(range(30)) * 3}), RNG(0).permutation(90)
    _, test, _, _ = model_utils.split(rows, rows["x"])
    assert test["x"].value_counts().tolist() == [3] * 6
    _, shuffled, _, _ = model_utils.split(rows.iloc[order], rows["x"].iloc[order])
    assert set(shuffled["x"]) == set(test["x"])


def test_target_scale_is_worked_out_by_hand():
    # Five rows at an end are a floor or a cap; elsewhere there is a margin of a tenth.
    floor, between, cap = [10.0] * 5, [12.0, 14.0, 16.0, 18.0], [20.0] * 5
    y = floor + between + cap
    assert target_scale(y) == TargetScale(15, np.std(y), 10, 20)
    assert target_scale([*floor, 14.0, 20.0]).high == 21
    assert target_scale([-4.0, 16.0, *cap]).low == -6.4
    assert target_scale([1.0, 11.0]).low == 0  # what is never negative stays so
    assert target_scale([-1.0, 9.0]).low == -2
    # Five rows in 2,000 are fewer than the half percent that makes a pile.
    assert target_scale([*floor, *np.linspace(11, 12, 1_995)]).low == pytest.approx(9.8)
    assert target_scale([*floor * 2, *np.linspace(11, 12, 1_990)]).low == 10
    assert target_scale([7.0] * 9) == TargetScale(7, 1, 7, 7)


def test_new_targets_widen_the_bounds_and_nothing_else():
    scale = TargetScale(15, 3, 10, 20)
    assert model_utils.rescaled(scale, [12.0, 13.0]) == scale
    wider = model_utils.rescaled(scale, [-10.0, 30.0])
    assert (wider.mean, wider.scale, wider.low, wider.high) == (15, 3, -14, 34)


# --- network -------------------------------------------------------------------------------------


def test_network_without_a_recipe_is_64_32_1():
    shapes = [weights.shape for weights in create_nn_model(7).get_weights()]
    assert shapes == [(7, 64), (64,), (64, 32), (32,), (32, 1), (1,)]


@pytest.mark.parametrize("input_dim", [0, -1])
def test_network_without_inputs_is_refused(input_dim):
    with pytest.raises(ValueError, match=f"Received: input_dim={input_dim}"):
        create_nn_model(input_dim)


def part_of(model, name):
    return keras.Model(model.input, model.get_layer(name).output)


def heads_of(model, inputs):
    return np.asarray(part_of(model, "members")(inputs))[..., 0]


def test_bins_hold_how_much_of_each_lies_below_the_value():
    model = create_nn_model(2, QUICK, SCALE, [(1, EDGES)])
    values = np.array([-9, -1, -0.25, 0, 0.5, 1, 1.25, 2, 9], np.float32)
    rows = np.stack([np.full(9, 7, np.float32), values], axis=1)
    found = np.asarray(part_of(model, "binned")(rows))
    by_hand = [
        *([0, 0, 0], [0, 0, 0], [0.75, 0, 0], [1, 0, 0], [1, 1, 0]),
        *([1, 1, 1 / 3], [1, 1, 0.5], [1, 1, 1], [1, 1, 1]),
    ]
    np.testing.assert_array_equal(found[:, :2], rows)
    np.testing.assert_allclose(found[:, 2:], by_hand, atol=1e-6)
    assert not model.get_layer("bins").trainable_variables


def test_prediction_is_the_mean_of_members_in_target_units_within_bounds():
    model = create_nn_model(N_INPUTS, QUICK, SCALE, members=3, seed=1)
    z = heads_of(model, X)
    assert z.shape == (N_ROWS, 3)
    assert np.abs(z - z[:, :1]).max() > 0.1  # members differ
    expected = np.clip(SCALE.mean + SCALE.scale * z.mean(axis=1), SCALE.low, SCALE.high)
    np.testing.assert_allclose(model_predict(model, X), expected, rtol=1e-5, atol=1e-5)
    for number in range(3):
        some = model_utils.member_predictions(model, X, slice(number, number + 1))
        expected = np.clip(SCALE.mean + SCALE.scale * z[:, number], SCALE.low, SCALE.high)
        np.testing.assert_allclose(some, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bias", "bound"), [(-1e6, 500.0), (1e6, 40_000.0)])
def test_prediction_never_leaves_the_bounds(bias, bound):
    model = create_nn_model(N_INPUTS, QUICK, TargetScale(10_000, 8_000, 500, 40_000))
    model.get_layer("output").bias.assign(np.full((model_utils.MEMBERS, 1, 1), bias))
    np.testing.assert_array_equal(model_predict(model, X), np.full(N_ROWS, bound))


def test_seed_decides_the_weights_of_members():
    def build(seed):
        return weights_of(create_nn_model(N_INPUTS, QUICK, SCALE, seed=seed))

    np.testing.assert_array_equal(build(5), build(5))
    assert not np.array_equal(build(5), build(6))


def test_network_of_ones_own_is_scaled_and_trained_like_ours():
    def build(input_dim):
        return keras.Sequential([keras.Input((input_dim,)), keras.layers.Dense(1)])

    model = create_nn_model(N_INPUTS, QUICK, SCALE, [(0, EDGES)], build=build)
    assert model_utils.member_count(model) == 0
    recipe = replace(QUICK, learning_rate=0.05, epochs=20)
    before = np.abs(model_predict(model, X) - Y).mean()
    train_members(model, X, Y, SCALE, [recipe])
    assert np.abs(model_predict(model, X) - Y).mean() < before / 2


def test_members_are_counted_and_other_networks_have_none():
    assert model_utils.member_count(create_nn_model(3, QUICK, SCALE, members=5)) == 5
    assert model_utils.member_count(create_nn_model(3)) == 0
    assert model_utils.member_count(network()) == 0


def test_saved_network_needs_no_class_of_ours(tmp_path, spare):
    model = create_nn_model(N_INPUTS, QUICK, SCALE, [(0, EDGES)])
    train_members(model, X, Y, SCALE, [replace(QUICK, epochs=1)] * model_utils.MEMBERS)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "X.npy", X)
    code = (
        "import sys, json, warnings, numpy, keras; warnings.simplefilter('error');"
        "model = keras.saving.load_model('model.keras', safe_mode=True);"
        "found = model.predict(numpy.load('X.npy'), verbose=0)[:, 0].tolist();"
        "assert not {'model_utils', 'toolkit'} & {name.split('.')[0] for name in sys.modules};"
        "print(json.dumps(found))"
    )
    process = spare("-c", code, folder=tmp_path)
    assert process.wait() == 0, process.err
    np.testing.assert_allclose(json.loads(process.out), model_predict(model, X), rtol=1e-5)


# --- training as Keras does it -------------------------------------------------------------------


def order_of(n, seed, block):
    """Give the order that `BlockTrainer` visits the rows of a block in."""
    return tf.random.experimental.stateless_shuffle(tf.range(n), [seed, block]).numpy()


@pytest.mark.parametrize(
    ("optimizer", "n", "weighted", "shape"),
    [
        (lambda: keras.optimizers.SGD(0.05, momentum=0.9), N_ROWS, False, (-1,)),
        (lambda: keras.optimizers.Adam(0.01), N_ROWS, True, (-1, 1)),
        (lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1), 64, False, (-1,)),
        (lambda: keras.optimizers.Adam(0.01), 20, False, (-1,)),
    ],
    ids=["momentum", "adam, sample weights", "whole minibatches", "fewer rows than a minibatch"],
)
def test_training_makes_the_updates_of_keras_fit_in_the_same_order(optimizer, n, weighted, shape):
    ours, theirs = network(optimizer()), network(optimizer())
    weights = WEIGHTS[:n] if weighted else None
    y = Y[:n].reshape(shape)
    _, history = train_model(
        ours, X[:n], y, X[:9], Y[:9], epochs=3, batch_size=32, sample_weight=weights, seed=5
    )
    assert len(history.history["loss"]) == 3
    for epoch in range(3):
        order = order_of(n, 5, epoch)
        expected = theirs.fit(
            X[order],
            y[order],
            validation_data=(X[:9], Y[:9]),
            batch_size=32,
            shuffle=False,
            sample_weight=WEIGHTS[order] if weighted else None,
            verbose=0,
        )
        for name in ("loss", "val_loss"):
            found = history.history[name][epoch]
            assert found == pytest.approx(expected.history[name][0], rel=1e-5)
    assert_same_weights(ours, theirs)
    assert int(ours.optimizer.iterations) == int(theirs.optimizer.iterations)


def test_training_in_the_given_order_makes_the_updates_of_keras_fit():
    ours, theirs = network(), network()
    train_model(ours, X, Y, epochs=2, shuffle=False)
    theirs.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    assert_same_weights(ours, theirs)


def test_rows_that_fill_no_minibatch_are_left_out_of_an_epoch_where_that_is_asked():
    ours, theirs = network(), network()
    train_model(ours, X, Y, epochs=2, drop_remainder=True, seed=5)
    for epoch in range(2):
        order = order_of(N_ROWS, 5, epoch)[:64]
        theirs.fit(X[order], Y[order], shuffle=False, verbose=0)
    assert_same_weights(ours, theirs)
    few, all_of_them = network(), network()
    train_model(few, X[:20], Y[:20], epochs=1, drop_remainder=True, shuffle=False)
    all_of_them.fit(X[:20], Y[:20], shuffle=False, verbose=0)
    assert_same_weights(few, all_of_them)


def test_blocks_on_disk_train_one_after_the_other_in_every_epoch(tmp_path):
    edges = [(0, 40), (40, 70)]  # at 16 rows a minibatch: 3 updates, then 2
    blocks = []
    for number, (start, end) in enumerate(edges):
        values = np.c_[X, Y, WEIGHTS][start:end].astype(np.float32)
        on_disk = np.memmap(tmp_path / str(number), np.float32, "w+", shape=values.shape)
        on_disk[:] = values
        blocks.append(on_disk)
    ours, theirs = network("sgd"), network("sgd")
    train_model(
        ours,
        [block[:, :3] for block in blocks],
        [block[:, 3] for block in blocks],
        epochs=2,
        batch_size=16,
        sample_weight=[block[:, 4] for block in blocks],
        seed=3,
    )
    n_updates = 0
    for _ in range(2):
        for block, updates in zip(blocks, (3, 2), strict=True):
            rows = block[order_of(len(block), 3, n_updates // updates)]
            options = {"batch_size": 16, "shuffle": False, "sample_weight": rows[:, 4]}
            theirs.fit(rows[:, :3], rows[:, 3], verbose=0, **options)
            n_updates += updates
    assert int(ours.optimizer.iterations) == n_updates == 10
    assert_same_weights(ours, theirs)


def test_same_seed_gives_the_same_bits_and_another_seed_others():
    def trained(seed):
        model = network()
        train_model(model, X, Y, epochs=2, seed=seed)
        return weights_of(model)

    first = trained(1)
    np.random.seed(9)
    np.testing.assert_array_equal(trained(1), first)
    assert not np.array_equal(trained(2), first)


def test_callbacks_of_keras_work_early_stopping_restores_the_best_weights():
    # Validation targets of the opposite sign: every epoch makes the validation loss worse.
    ours, best = (network(keras.optimizers.SGD(0.01)) for _ in range(2))
    stop = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    _, history = train_model(ours, X, Y, X, -Y, epochs=50, callbacks=[stop])
    assert len(history.history["loss"]) == 3
    train_model(best, X, Y, epochs=1)
    assert_same_weights(ours, best)


# --- members -------------------------------------------------------------------------------------


def layer_weights(model, member):
    return [weights[member] for pair in model_utils.member_weights(model) for weights in pair]


def assert_same_member(model, member, other, other_member, **tolerance):
    pairs = zip(layer_weights(model, member), layer_weights(other, other_member), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, **tolerance)


BESIDE = [
    replace(QUICK, learning_rate=0.01, weight_decay=0.5, delta=0.1),
    replace(QUICK, learning_rate=0.002, weight_decay=5.0, delta=1.0),
    replace(QUICK, learning_rate=0.0),
    replace(QUICK, bins=False),
    replace(QUICK, first_input=1),
]


@pytest.fixture(scope="module")
def beside():
    """Train five members by five recipes side by side: (network before, network after)."""
    before, after = (
        create_nn_model(N_INPUTS, QUICK, SCALE, [(0, EDGES), (2, EDGES)], members=5, seed=2)
        for _ in range(2)
    )
    train_members(after, X, Y, SCALE, BESIDE, seed=4)
    return before, after


@pytest.mark.parametrize("member", [0, 1])
def test_member_gets_the_weights_beside_others_that_it_gets_alone(beside, member):
    before, after = beside
    alone = create_nn_model(N_INPUTS, QUICK, SCALE, [(0, EDGES), (2, EDGES)], members=1)
    copy_members(before, alone, np.array([member]), np.array([0]))
    train_members(alone, X, Y, SCALE, [BESIDE[member]], seed=4)
    assert_same_member(after, member, alone, 0, rtol=1e-3, atol=1e-5)
    moved = np.abs(layer_weights(after, member)[0] - layer_weights(before, member)[0]).max()
    assert moved > 0.005


def test_member_with_a_rate_of_zero_stays_as_it_is(beside):
    before, after = beside
    assert_same_member(before, 2, after, 2, rtol=0)


def test_weights_that_a_recipe_does_not_have_stay_zero(beside):
    _, after = beside
    kernel, _ = model_utils.member_weights(after)[0]
    assert not kernel[3, N_INPUTS:].any()  # no bins
    assert kernel[3, :N_INPUTS].all()
    ours = [0, 3, 4, 5]  # the first input and its three bins
    assert not kernel[4, ours].any()
    assert np.delete(kernel[4], ours, axis=0).any(axis=1).all()
    assert kernel[:2].any(axis=2).all()


def test_rows_that_are_masked_do_not_influence_a_member():
    mask = np.ones((N_ROWS, 2), bool)
    mask[::3, 1] = False
    models = []
    for absurd in (0.0, 1e6):
        y = Y.copy()
        y[::3] += absurd
        models.append(create_nn_model(N_INPUTS, QUICK, SCALE, members=2))
        train_members(models[-1], X, y, SCALE, [QUICK] * 2, mask=mask)
    assert_same_member(models[0], 1, models[1], 1, rtol=0)
    kernels = [layer_weights(model, 0)[0] for model in models]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


def test_rows_of_weight_zero_do_not_influence_what_is_learnt():
    weights = np.where(np.arange(N_ROWS) % 3, 1.5, 0.0)
    models = []
    for absurd in (0.0, 1e6):
        y = np.where(weights, Y, Y + absurd)
        models.append(create_nn_model(N_INPUTS, QUICK, SCALE))
        train_members(models[-1], X, y, SCALE, [QUICK] * 4, sample_weight=weights)
    np.testing.assert_array_equal(*map(weights_of, models))
    models.append(create_nn_model(N_INPUTS, QUICK, SCALE))
    train_members(models[-1], X, Y, SCALE, [QUICK] * 4)
    assert np.abs(weights_of(models[0]) - weights_of(models[-1])).max() > 1e-3


def test_row_of_double_weight_is_trained_on_as_a_row_that_is_listed_twice():
    recipes = [replace(QUICK, batch_size=200)] * 4  # all rows in each step
    times = np.where(np.arange(N_ROWS) < 20, 2, 1)
    models = [create_nn_model(N_INPUTS, QUICK, SCALE) for _ in range(3)]
    train_members(models[0], X, Y, SCALE, recipes, sample_weight=times / times.mean())
    train_members(models[1], np.repeat(X, times, axis=0), np.repeat(Y, times), SCALE, recipes)
    train_members(models[2], X, Y, SCALE, recipes)
    assert_same_weights(models[0], models[1])
    assert np.abs(weights_of(models[0]) - weights_of(models[2])).max() > 1e-4


def test_one_member_is_trained_as_by_adamw_of_keras_that_spares_biases():
    theirs = network(keras.optimizers.AdamW(0.02, weight_decay=0.3))
    theirs.optimizer.exclude_from_weight_decay(var_names=["bias"])
    ours = network(MemberAdamW([0.02], [0.3]))
    for model in (ours, theirs):
        model.fit(X, Y, epochs=4, shuffle=False, verbose=0)
    assert_same_weights(ours, theirs)


def test_members_are_the_networks_that_their_weights_alone_make():
    model = create_nn_model(N_INPUTS, QUICK, SCALE, [(0, EDGES)], members=3, seed=1)
    x = keras.Model(model.inputs, model.get_layer("binned").output).predict(X, verbose=0)
    for member in range(3):
        (kernel, bias), *others = [
            (kernel[member], bias[member]) for kernel, bias in model_utils.member_weights(model)
        ]
        h = x @ kernel + bias
        for kernel, bias in others:
            h = np.asarray(keras.activations.gelu(h)) @ kernel + bias
        found = model_utils._heads(model).predict(X, verbose=0)[:, member]
        np.testing.assert_allclose(found, h, rtol=1e-4, atol=1e-5)


def test_kernels_decay_by_the_rate_of_each_member_and_biases_do_not():
    shapes = {"first/kernel": (3, 4), "first/bias": (4,), "kernel": (2, 3, 1), "bias": (2, 1, 3)}
    first, _, kernel, _ = variables = [
        keras.Variable(np.ones(shape, np.float32), name=name.split("/")[-1])
        for name, shape in shapes.items()
    ]
    optimizer = MemberAdamW([0.1, 0.0], [0.5, 0.5])
    optimizer.build(variables)
    optimizer.apply([np.zeros(shape, np.float32) for shape in shapes.values()])
    np.testing.assert_allclose(first.numpy(), [[0.95, 0.95, 1.0, 1.0]] * 3, rtol=1e-6)
    np.testing.assert_allclose(kernel.numpy()[..., 0], [[0.95] * 3, [1.0] * 3], rtol=1e-6)
    for bias in variables[1::2]:
        np.testing.assert_array_equal(bias.numpy(), np.ones(bias.shape))


def test_loss_of_members_is_hubers_of_each_whatever_is_missing():
    y_true = RNG(0).normal(size=(20, 2)).astype(np.float32) * 2
    y_pred = np.zeros((20, 2, 1), np.float32)
    loss = model_utils.MemberHuber([0.5, 3.0])
    by_keras = [keras.losses.Huber(d)(y_true[:, [k]], y_pred[:, k]) for k, d in ((0, 0.5), (1, 3))]
    assert float(loss(y_true, y_pred)) == pytest.approx(float(np.mean(by_keras)), rel=1e-5)
    y_true[:, 1] = np.nan
    assert float(loss(y_true, y_pred)) == pytest.approx(float(by_keras[0]) / 2, rel=1e-5)


def test_rates_fall_along_half_a_cosine():
    model = create_nn_model(N_INPUTS, QUICK, SCALE, members=2)
    history = train_members(model, X, Y, SCALE, [replace(QUICK, epochs=4)] * 2)
    factors = (1 + np.cos(np.pi * (np.arange(4) + 0.5) / 4)) / 2
    np.testing.assert_allclose(history.history["learning_rate"], factors, rtol=1e-6)


def test_members_train_on_blocks_as_train_model_does():
    models = [create_nn_model(N_INPUTS, QUICK, SCALE, members=2) for _ in range(2)]
    recipes = [replace(QUICK, epochs=1)] * 2
    train_members(models[0], [X], [Y], SCALE, recipes)
    train_members(models[1], X, Y, SCALE, recipes)
    np.testing.assert_array_equal(weights_of(models[0]), weights_of(models[1]))


def test_loss_that_is_not_finite_is_an_error():
    model = create_nn_model(N_INPUTS, QUICK, SCALE, members=2)
    recipes = [replace(QUICK, learning_rate=1e30)] * 2
    with pytest.raises(FloatingPointError, match=r"not finite at learning rate 1e\+30"):
        train_members(model, X, Y, SCALE, recipes)


# --- growing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [[], [(0, EDGES), (1, EDGES)]], ids=["no bins", "bins"])
def test_grown_network_predicts_as_before_whatever_the_new_inputs_hold(bins):
    parent = create_nn_model(N_INPUTS, QUICK, SCALE, bins, seed=1)
    before = weights_of(parent)
    wide = [*bins, (4, EDGES)] if bins else []
    child = create_nn_model(N_INPUTS + 2, QUICK, SCALE, wide, seed=9)
    copy_members(parent, child, np.arange(4), np.arange(4))
    rows = np.c_[X, RNG(0).normal(size=(N_ROWS, 2)) * 100]
    np.testing.assert_allclose(model_predict(child, rows), model_predict(parent, X), rtol=1e-5)
    np.testing.assert_array_equal(weights_of(parent), before)


def test_some_members_are_copied_to_some_places_and_the_others_stay():
    parent = create_nn_model(N_INPUTS, QUICK, SCALE, seed=1)
    child, untouched = (create_nn_model(N_INPUTS, QUICK, SCALE, seed=9) for _ in range(2))
    copy_members(parent, child, np.array([3, 2]), np.array([0, 2]))
    assert_same_member(child, 0, parent, 3, rtol=0)
    assert_same_member(child, 2, parent, 2, rtol=0)
    for member in (1, 3):
        assert_same_member(child, member, untouched, member, rtol=0)


def test_inputs_and_bins_that_no_weight_uses_can_be_dropped():
    bins = [(0, EDGES), (1, EDGES)]
    parent = create_nn_model(N_INPUTS, QUICK, SCALE, bins, members=2, seed=1)
    kernel = parent.get_layer("hidden_1").kernel
    used = np.ones((kernel.shape[0], 1), np.float32)
    used[[0, 3, 4, 5]] = 0
    kernel.assign(kernel * used)
    child = create_nn_model(N_INPUTS, QUICK, SCALE, [(0, EDGES), (2, EDGES)], members=2)
    copy_members(parent, child, np.arange(2), np.arange(2), dropped=(1, 3))
    rows = np.c_[X[:, 1:], RNG(0).normal(size=N_ROWS) * 100]
    np.testing.assert_allclose(model_predict(child, rows), model_predict(parent, X), rtol=1e-5)


# --- choosing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "epochs"),
    [(100, 32, 80), (20_000, 256, 50), (200_000, 256, 5), (5_000_000, 1_024, 4)],
)
def test_sizes_follow_the_number_of_rows_unless_given(n_rows, batch_size, epochs):
    recipe = model_utils.sized_recipe(n_rows)
    assert (recipe.batch_size, recipe.epochs) == (batch_size, epochs)
    given = model_utils.sized_recipe(n_rows, 7, 11)
    assert (given.epochs, given.batch_size, given.length) == (7, 11, 1.0)
    assert recipe.length is None


def test_shortened_recipe_decays_weights_as_far_in_a_quarter_of_the_updates():
    recipe = Recipe(epochs=60, batch_size=32, learning_rate=0.002, weight_decay=0.3)
    short = recipe.shortened()
    assert (short.epochs, short.batch_size) == (30, 64)
    assert short.learning_rate == pytest.approx(0.002 * 2**0.5)
    decayed = short.learning_rate * short.weight_decay * 30 / 64
    assert decayed == pytest.approx(0.002 * 0.3 * 60 / 32)
    assert Recipe(epochs=1).shortened().epochs == 1


def test_noise_calls_for_strong_weight_decay():
    inputs = RNG(0).normal(size=(150, 6)).astype(np.float32)
    base = Recipe(epochs=40)
    recipes, curves = choose_recipe(inputs, RNG(1).normal(size=150), base=base)
    assert recipes[0].weight_decay == 3
    assert len(set(recipes)) > 1  # those that are nearly as good, too
    assert {replace(recipe, length=None) for recipe in recipes} <= {
        *model_utils.candidates(base, 150)
    }
    assert len(curves["loss"]) == len(curves["val_mae"]) == 20


def test_steps_call_for_bins_and_weak_weight_decay():
    inputs = RNG(0).uniform(-1, 1, size=(800, 2)).astype(np.float32)
    y = np.floor(inputs[:, 0] * 4) % 2 + inputs[:, 1]
    edges = tuple(np.linspace(-1, 1, 17).tolist())
    recipes, _ = choose_recipe(inputs, y, [(0, edges), (1, edges)], base=Recipe(epochs=40))
    assert recipes[0].bins
    assert recipes[0].weight_decay == 0.3


def test_targets_without_noise_that_are_hard_to_learn_call_for_a_training_twice_as_long():
    inputs = RNG(0).uniform(-1, 1, size=(800, 3)).astype(np.float32)
    y, edges = np.sin(4 * inputs.prod(axis=1)), tuple(np.linspace(-1, 1, 17).tolist())
    bins = [(number, edges) for number in range(3)]
    for given, length in ((None, 2.0), (1.0, 1.0)):  # of a user who says how many epochs
        recipes, _ = choose_recipe(inputs, y, bins, base=Recipe(epochs=20, length=given))
        assert {recipe.length for recipe in recipes} == {length}


@pytest.mark.parametrize(
    ("errors", "length"),
    [
        ([0.9, 0.79, 0.81, 0.80, 0.80], 0.5),  # 0.79 half way, higher at the end
        ([0.9, 0.80, 0.82, 0.80, 0.80], 0.5),
        ([0.9, 0.81, 0.82, 0.80, 0.80], 1.0),
        ([0.9, 0.87, 0.83, 0.80, 0.80], 1.0),  # 9 % above the last one
        ([0.9, 0.89, 0.83, 0.80, 0.80], 2.0),  # 11 %
        ([0.9, 0.88, 0.90, 0.89, 0.89], 1.0),  # nothing learnt as yet
        ([0.9, 0.87, 0.90, 0.88, 0.88], 0.5),  # 3.3 % better than a constant
        ([0.7], 1.0),
    ],
)
def test_training_is_as_long_as_errors_half_way_and_at_the_end_of_the_search_advise(errors, length):
    assert model_utils.length_for(np.array(errors), constant=0.91) == length


def test_longer_training_decays_weights_as_far_in_all():
    """Without inputs there is no gradient of the first kernel: it decays alone."""
    shares = {}
    for length in (0.5, 1.0, 2.0):
        recipe = replace(QUICK, epochs=10, weight_decay=2.0, length=length)
        model = create_nn_model(N_INPUTS, recipe, SCALE)
        before = model.get_layer("hidden_1").kernel.numpy()
        history = train_members(model, 0 * X, Y, SCALE, [recipe] * 4)
        assert len(history.history["loss"]) == 10 * length
        shares[length] = np.median(model.get_layer("hidden_1").kernel.numpy() / before)
    assert shares[1.0] < 0.95
    assert shares[0.5] == pytest.approx(shares[1.0], rel=0.01)
    assert shares[2.0] == pytest.approx(shares[1.0], rel=0.01)


def test_each_member_gets_the_best_recipe_or_one_that_is_nearly_as_good():
    assert model_utils._best(np.array([1.3, 1.0, 1.03, 1.019])).tolist() == [1, 3, 1, 3]
    errors = np.array([1.01, 1.0, 1.015, 1.012, 1.005])
    assert model_utils._best(errors).tolist() == [1, 4, 0, 3]


def test_program_of_a_training_is_traced_once_and_nothing_sleeps_on_behind_it():
    traced = []

    def loss(y_true, y_pred):
        traced.append(y_pred.shape)
        return keras.losses.mean_squared_error(y_true, y_pred)

    model = create_nn_model(N_INPUTS)
    model.compile("adam", loss=loss)
    train_model(model, X[:64], Y[:64], epochs=3, batch_size=32)
    assert traced == [(32, 1)]
    for blocks in ([(X, Y)], [(X, Y)] * 2):  # that of autotuning would
        assert model_utils._dataset(blocks).options().autotune.enabled is False


@pytest.mark.parametrize("n_rows", [200, 3_000])
def test_candidates_try_each_weight_decay_with_and_without_bins_by_two_deltas(n_rows):
    tried = model_utils.candidates(QUICK, n_rows)
    decays = {recipe.weight_decay for recipe in tried}
    for bins in (True, False):
        for_bins = [recipe for recipe in tried if recipe.bins == bins]
        assert {recipe.weight_decay for recipe in for_bins} == decays
        assert {recipe.delta for recipe in for_bins} == {0.03, 0.1}
    for decay in decays:
        assert len({r.delta for r in tried if r.weight_decay == decay}) == 2


def test_straight_lines_in_noise_call_for_no_bins_however_many_rows():
    inputs = RNG(0).normal(size=(3_500, 8)).astype(np.float32)
    y = inputs @ RNG(1).normal(size=8) + 3 * RNG(2).normal(size=3_500)
    edges = tuple(np.linspace(-2, 2, 17).tolist())
    bins = [(number, edges) for number in range(8)]
    recipes, _ = choose_recipe(inputs, y, bins, base=Recipe(epochs=40, batch_size=64))
    assert not recipes[0].bins
    assert {recipe.length for recipe in recipes} == {0.5}


@pytest.fixture
def searched(monkeypatch):
    """Record what every search trains on: rows, targets, and the mask of rows and members."""
    calls = []
    original = train_members

    def spy(model, X, y, scale, recipes, **options):
        calls.append((X, y, options["mask"]))
        return original(model, X, y, scale, recipes, **options)

    monkeypatch.setattr(model_utils, "train_members", spy)
    return calls


def test_each_fold_of_a_search_holds_other_rows_back_from_all_its_candidates(searched):
    recipes = [replace(QUICK, epochs=1, weight_decay=d) for d in (0.1, 1.0)]
    model = create_nn_model(N_INPUTS, QUICK, SCALE, members=6)
    errors, loss = model_utils.compare_recipes(model, X, Y, SCALE, recipes)
    ((rows, y, mask),) = searched
    assert mask.shape == (N_ROWS, 6)
    assert (~mask).sum(axis=0).tolist() == [14] * 6
    np.testing.assert_array_equal(mask[:, ::2], mask[:, 1::2])
    assert (~mask[:, ::2]).sum(axis=1).max() == 1
    assert errors.shape == (1, 2)
    assert len(loss) == 1
    z, held_back = (y - SCALE.mean) / SCALE.scale, ~mask
    error = np.abs(heads_of(model, rows) - z[:, None])
    by_fold = [error[held_back[:, member], member].mean() for member in range(6)]
    by_hand = [np.mean(by_fold[::2]), np.mean(by_fold[1::2])]
    np.testing.assert_allclose(errors[0], by_hand, rtol=1e-4)


def test_candidates_are_compared_and_trained_by_the_weights_of_their_rows(searched):
    recipes = [replace(QUICK, epochs=1, weight_decay=d) for d in (0.1, 1.0)]
    valid, weights = np.arange(2 * N_ROWS).reshape(N_ROWS, 2) % 3 > 0, 0.1 + WEIGHTS
    model = create_nn_model(N_INPUTS, QUICK, SCALE, members=6)
    options = {"sample_weight": weights}
    errors, _ = model_utils.compare_recipes(model, X, Y, SCALE, recipes, valid, **options)
    ((rows, y, mask),) = searched
    order = RNG(0).permutation(N_ROWS)
    np.testing.assert_array_equal(rows, X[order])
    error = np.abs(heads_of(model, rows) - ((y - SCALE.mean) / SCALE.scale)[:, None])
    for number in (0, 1):
        counted = ~mask[:, number::2] & valid[order, number, None]
        by_hand = np.average(error[:, number::2], weights=counted * weights[order, None])
        assert errors[0, number] == pytest.approx(by_hand, rel=1e-4)
    models = [create_nn_model(N_INPUTS, QUICK, SCALE, members=6) for _ in "ab"]
    for y, each in zip((Y, np.where(valid[:, 0], Y, 1e3)), models, strict=True):
        options = {"sample_weight": np.where(valid[:, 0], weights, 0)}
        model_utils.compare_recipes(each, X, y, SCALE, recipes, **options)
    np.testing.assert_array_equal(*map(weights_of, models))


@pytest.mark.parametrize(("n_rows", "folds"), [(100, 5), (1_000, 3), (3_000, 1)])
def test_fewer_rows_are_held_back_in_more_folds_each_row_once_at_most(searched, n_rows, folds):
    inputs = RNG(0).normal(size=(n_rows, 2)).astype(np.float32)
    base = Recipe(epochs=1, batch_size=500)
    choose_recipe(inputs, inputs[:, 0].astype(float), base=base)
    ((_, _, mask),) = searched
    tried = len(model_utils.candidates(base, n_rows))
    held_back = (~mask).reshape(n_rows, folds, tried).sum(axis=1)
    assert held_back.max() == 1
    assert (held_back.sum(axis=0) == folds * n_rows // 5).all()


NEW = np.ones(N_ROWS, bool)
PARENT = model_utils.Parent(create_nn_model(N_INPUTS, QUICK, SCALE, seed=1), QUICK, SCALE, NEW)


def retraining(n_new):
    """Choose how to go on from a parent where the last n_new of 120 rows are new."""
    rows = RNG(0).normal(size=(120, N_INPUTS)).astype(np.float32)
    y = rows @ [1.0, -2.0, 3.0]
    recipe, is_new = replace(QUICK, weight_decay=0.7), np.arange(120) >= 120 - n_new
    parent = replace(PARENT, recipe=recipe, scale=target_scale(y), is_new=is_new)
    return choose_recipe(rows, y, base=QUICK, parent=parent)


def test_half_of_the_members_go_on_from_the_parent_and_half_choose_anew():
    recipes, curves = retraining(n_new=80)
    assert len({recipe.length for recipe in recipes} & {0.5, 1.0, 2.0}) == 1
    recipes = [replace(recipe, length=None) for recipe in recipes]
    half = model_utils.MEMBERS // 2
    assert len(recipes) == 2 * half
    parent = replace(PARENT, recipe=replace(QUICK, weight_decay=0.7))
    assert set(recipes[:half]) <= set(parent.ways_on(QUICK))
    assert len(set(recipes[:half])) == 1
    assert set(recipes[half:]) <= set(model_utils.candidates(QUICK, 120))
    assert len(set(recipes[half:])) == half
    assert len(curves["loss"]) == len(curves["val_mae"]) == QUICK.shortened().epochs


@pytest.mark.parametrize(("members", "goes_on"), [([3], True), ([0, 1], False), ([], False)])
def test_members_go_on_with_bins_where_one_of_those_to_copy_has_weights_for_them(members, goes_on):
    network = create_nn_model(N_INPUTS, QUICK, SCALE, [(0, (-1.0, 0.0, 1.0))])
    weights = model_utils.member_weights(network)
    weights[0][0][np.setdiff1d(np.arange(4), members), N_INPUTS:] = 0
    model_utils.set_member_weights(network, weights)
    parent = model_utils.Parent(network, replace(QUICK, bins=False), SCALE, NEW)
    assert {recipe.bins for recipe in parent.ways_on(QUICK)} == {goes_on}


def test_too_few_new_rows_to_choose_by_go_on_carefully():
    careful, *_ = retraining(n_new=10)[0]
    recipe = replace(QUICK, weight_decay=0.7, learning_rate=QUICK.learning_rate / 3)
    assert careful == replace(recipe, length=careful.length)


def test_control_is_the_child_without_the_new_rows():
    is_old = np.arange(N_ROWS) < 40
    base = replace(QUICK, first_input=1)
    recipes = [*PARENT.ways_on(base)[:2], *model_utils.candidates(base, 60)[:2]]

    def train(y, is_old):
        arguments = (PARENT, X, y, [], recipes)
        return model_utils.continue_training(*arguments, is_old, seed=3)

    child, control, history = train(Y, is_old)
    assert len(history.history["loss"]) == QUICK.epochs
    assert_same_weights(child, train(Y, None)[0])
    same_child, same_control, _ = train(Y, np.ones(N_ROWS, bool))
    assert_same_weights(same_child, same_control)
    assert np.abs(weights_of(control) - weights_of(child)).max() > 1e-3
    _, other_control, _ = train(np.where(is_old, Y, 1e3), is_old)
    np.testing.assert_array_equal(weights_of(other_control), weights_of(control))


def test_child_and_control_learn_by_the_weights_of_their_rows():
    is_old, counts = np.arange(N_ROWS) < 40, np.arange(N_ROWS) % 3 > 0
    recipes = [*PARENT.ways_on(QUICK)[:2], *model_utils.candidates(QUICK, 60)[:2]]
    arguments = (X, [], recipes, is_old)
    trained = []
    for y in (Y, np.where(counts, Y, 1e3)):
        inputs, *others = arguments
        *networks, _ = model_utils.continue_training(
            PARENT, inputs, y, *others, sample_weight=1.5 * counts
        )
        trained.append(networks)
    for one, other in zip(*trained, strict=True):
        np.testing.assert_array_equal(weights_of(one), weights_of(other))


# --- scores --------------------------------------------------------------------------------------


def test_scores_are_those_worked_out_by_hand():
    # Errors -1, 0, 3; the mean is 3, and the squared distances from it are 4 + 1 + 9 = 14.
    scores = model_utils.evaluate_performance(pd.Series([1, 2, 6]), np.array([2.0, 2.0, 3.0]))
    assert scores == pytest.approx({"MSE": 10 / 3, "MAE": 4 / 3, "R²": 1 - 10 / 14})
    # By weights 2, 1, 1 the mean is 5/2, and the squared distances 2 · 9/4 + 1/4 + 49/4 = 17.
    weighted = model_utils.evaluate_performance([1, 2, 6], [2, 2, 3], [2, 1, 1])
    assert weighted == pytest.approx({"MSE": 11 / 4, "MAE": 5 / 4, "R²": 1 - 11 / 17})


def test_network_is_about_as_good_as_a_linear_model_where_that_is_hard_to_beat():
    rows = load_diabetes(as_frame=True).frame
    train, test, y, y_test = model_utils.split(rows, rows["target"], test_size=0.5)
    inputs, y, preprocessor = model_utils.preprocessing(train, target="target")
    unseen, _, _ = model_utils.preprocessing(test, preprocessor=preprocessor)
    recipes, _ = choose_recipe(inputs, y, preprocessor.bins)
    scale = target_scale(y)
    model = create_nn_model(inputs.shape[1], recipes[0], scale, preprocessor.bins)
    train_members(model, inputs, y, scale, recipes)
    linear = LinearRegression().fit(inputs, y).predict(unseen)
    found = mean_absolute_error(y_test, model_predict(model, unseen))
    assert found <= 1.08 * mean_absolute_error(y_test, linear)
