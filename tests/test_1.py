"""The three promises of this project: a network, its training, its predictions. Start here."""

import numpy as np
import pandas as pd
import pytest

from model_utils import create_nn_model, evaluate_performance, model_predict, train_model

INPUT_DIM = 5


@pytest.fixture
def rows():
    """Draw 100 rows whose target is a plain sum of the features, with a little noise."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, INPUT_DIM))
    return X, pd.Series(X.sum(axis=1) + rng.normal(scale=0.1, size=100))


def test_network_takes_as_many_inputs_as_there_are_columns():
    model = create_nn_model(INPUT_DIM)
    assert model.input_shape[1] == INPUT_DIM
    assert model.output_shape == (None, 1)
    assert callable(model.fit)
    assert callable(model.predict)


def test_training_reports_one_loss_per_epoch(rows):
    X, y = rows
    model = create_nn_model(INPUT_DIM)
    trained, history = train_model(model, X[:80], y[:80], X[80:], y[80:], epochs=3)
    assert trained is model
    assert len(history.history["loss"]) == len(history.history["val_loss"]) == 3
    assert np.isfinite(history.history["loss"] + history.history["val_loss"]).all()
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_prediction_gives_one_finite_number_per_row(rows):
    X, y = rows
    model, history = train_model(create_nn_model(INPUT_DIM), X, y, epochs=2)
    assert "val_loss" not in history.history
    prediction = model_predict(model, X)
    assert prediction.shape == (100,)
    np.testing.assert_allclose(prediction, model.predict(X, verbose=0)[:, 0], rtol=1e-4, atol=1e-5)
    scores = evaluate_performance(y, prediction)
    assert list(scores) == ["MSE", "MAE", "R²"]
    assert np.isfinite(scores["MSE"])
