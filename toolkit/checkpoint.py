"""What an interrupted command has done so far, to be continued with `--resume`."""

import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import keras

from . import cli
from .errors import UserError
from .language import translate

ELSEWHERE = cli.NO_RESULT | {"tracking_uri", "experiment"}  # no part of a training
SECONDS = 30.0  # between two saved states of a training


class Checkpoint:
    """Keep what a command has done so far under `models/`.

    Equal settings and rows share a folder, and only those. Without `--resume` an old one is
    removed; with it, its absence is a UserError. run_id: of the MLflow run to go on with, or None.
    """

    def __init__(self, settings: cli.TrainingSettings, script: str, inputs: str) -> None:
        same = {k: str(v) for k, v in vars(settings).items() if k not in ELSEWHERE}
        key = hashlib.sha256(repr((Path(script).name, sorted(same.items()), inputs)).encode())
        self.folder = settings.models_dir / f"checkpoint-{key.hexdigest()[:16]}"
        # Not in the folder: the same command, started twice, may remove that at any moment.
        self.file = self.folder.with_suffix(".run")
        if not settings.resume:
            self.remove()
        elif not self.file.is_file():
            raise UserError(
                f"--resume found no checkpoint of this command in {settings.models_dir}; expected "
                "one of the same arguments and data: repeat them, or start without --resume"
            )
        self.run_id = self.file.read_text() or None if settings.resume else None

    def begin(self, run_id: str) -> None:
        """Note the run to go on with."""
        self.file.write_text(run_id)

    def callbacks(self, name: str, tell: Callable[[str], None]) -> list[keras.callbacks.Callback]:
        """Return callbacks of the training `name` that tell how far it is and save its state."""
        return [_Watch(str(self.folder / name), name, tell)]

    def remove(self) -> None:
        """Forget everything: the command is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.file.unlink(missing_ok=True)


class _Watch(keras.callbacks.BackupAndRestore):
    """Tell epochs done, time left and loss; save the state now and then, of a search never."""

    def __init__(self, folder: str, name: str, tell: Callable[[str], None]) -> None:
        super().__init__(folder, delete_checkpoint=False)
        self.name, self.tell = name, tell
        self.saved_at = time.monotonic() if name != "search" else float("inf")

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self.began = time.monotonic()
        self.tell(translate(f"{self.name}: compiling"))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        now, epochs = time.monotonic(), self.params["epochs"]
        left = (now - self.began) / (epoch + 1) * (epochs - epoch - 1)
        words = f"{self.name}: epoch {epoch + 1} of {epochs}, {left:.0f} s left"
        self.tell(translate(f"{words}, loss {(logs or {}).get('loss', float('nan')):.4f}"))
        if now - self.saved_at >= SECONDS:
            with suppress(OSError):  # the same command, started twice, saves the same state
                super().on_epoch_end(epoch, logs)
            self.saved_at = now
