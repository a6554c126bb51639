"""Claims about toolkit/checkpoint.py: an interrupted training goes on to the same weights."""

from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from model_utils import Recipe, create_nn_model, target_scale, train_members
from toolkit import checkpoint
from toolkit.checkpoint import Checkpoint
from toolkit.errors import UserError

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = X @ [1, -2, 3]
SCALE = target_scale(Y)
RECIPE = Recipe(epochs=4, batch_size=16)


def settings_for(folder, **options):
    defaults = {"data": "rows.csv", "seed": 42, "quiet": False, "resume": False}
    return SimpleNamespace(models_dir=folder, **{**defaults, **options})


def train(callbacks):
    model = create_nn_model(3, RECIPE, SCALE, members=2, seed=1)
    train_members(model, X, Y, SCALE, [RECIPE] * 2, callbacks=callbacks, seed=2)
    return np.concatenate([weights.ravel() for weights in model.get_weights()])


class Killed(keras.callbacks.Callback):
    """Interrupt a training at the end of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def uninterrupted():
    return train([])


@pytest.mark.parametrize("epoch", [1, 3], ids=["amid", "after the last epoch"])
def test_interrupted_training_goes_on_to_the_weights_of_an_uninterrupted_one(
    epoch, uninterrupted, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    first = Checkpoint(settings_for(tmp_path), "train.py", "rows")
    first.begin("1")
    with pytest.raises(KeyboardInterrupt):
        train([*first.callbacks("training", print), Killed(epoch)])
    told = []
    again = Checkpoint(settings_for(tmp_path, resume=True), "train.py", "rows")
    assert again.run_id == "1"
    np.testing.assert_array_equal(train(again.callbacks("training", told.append)), uninterrupted)
    epochs = [line for line in told if "epoch" in line]
    assert len(epochs) == 3 - epoch
    again.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "expected"), [("training", [1, 3]), ("search", [])])
def test_state_is_saved_when_the_last_time_is_long_ago_and_never_of_a_search(
    tmp_path, monkeypatch, name, expected
):
    saved = []
    monkeypatch.setattr(
        keras.callbacks.BackupAndRestore,
        "on_epoch_end",
        lambda self, epoch, logs=None: saved.append(epoch),
    )
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: 100.0)
    (watch,) = Checkpoint(settings_for(tmp_path), "train.py", "rows").callbacks(name, print)
    watch.set_params({"epochs": 4})
    watch.began = 100.0
    for epoch, seconds in enumerate((10, 31, 40, 70)):
        monkeypatch.setattr(checkpoint.time, "monotonic", lambda s=seconds: 100.0 + s)
        watch.on_epoch_end(epoch)
    assert saved == expected


@pytest.mark.parametrize(
    ("options", "script", "inputs"),
    [({"seed": 7}, "train.py", "rows"), ({}, "retrain.py", "rows"), ({}, "train.py", "others")],
    ids=["other settings", "other script", "other data"],
)
def test_other_commands_have_other_folders_and_find_no_checkpoint(
    options, script, inputs, tmp_path
):
    first = Checkpoint(settings_for(tmp_path), "train.py", "rows")
    first.begin("1")
    other = Checkpoint(settings_for(tmp_path, **options), script, inputs)
    assert other.folder != first.folder
    assert first.file.is_file()
    with pytest.raises(UserError, match="--resume found no checkpoint of this command") as caught:
        Checkpoint(settings_for(tmp_path, resume=True, **options), script, inputs)
    assert "\n" not in str(caught.value)


def test_folder_does_not_depend_on_what_is_printed_or_where_the_script_lies(tmp_path):
    one = Checkpoint(settings_for(tmp_path), "train.py", "rows")
    other = Checkpoint(
        settings_for(tmp_path, quiet=True, lang="fr"), str(Path("/x/train.py")), "rows"
    )
    assert one.folder == other.folder


def test_without_resume_a_command_starts_anew(tmp_path):
    first = Checkpoint(settings_for(tmp_path), "train.py", "rows")
    first.begin("1")
    assert Checkpoint(settings_for(tmp_path, resume=True), "train.py", "rows").run_id == "1"
    assert Checkpoint(settings_for(tmp_path), "train.py", "rows").run_id is None
    assert not first.folder.exists()


def test_run_that_was_not_noted_before_a_kill_is_a_new_one(tmp_path):
    Checkpoint(settings_for(tmp_path), "train.py", "rows").begin("")
    assert Checkpoint(settings_for(tmp_path, resume=True), "train.py", "rows").run_id is None


def test_progress_tells_epochs_time_left_and_loss(tmp_path, monkeypatch):
    told = []
    (watch,) = Checkpoint(settings_for(tmp_path), "train.py", "rows").callbacks(
        "training", told.append
    )
    watch.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    watch.set_params({"epochs": 4})
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: 100.0)
    watch.on_train_begin()
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: 110.0)
    watch.on_epoch_end(0, {"loss": 0.25})
    assert told == ["training: compiling", "training: epoch 1 of 4, 30 s left, loss 0.2500"]
