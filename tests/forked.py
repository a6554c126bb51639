"""Run the two scripts in forked children, which spares them the imports, and end them on purpose.

    python forked.py PROJECT JOBS.json

A job is {"folder", "experiment", "steps"}; its steps run one after the other, two jobs at a time. A
step is {"script", "flags"} and optionally "copies" (that many at once), "signal" with "at" (the
moment at which the child sends it to itself, as a share of all moments of that script) or "after"
(the training and the number of the epoch after which it does), "lost" (SQLite can no longer write
once the model is to be logged) and "trains" (otherwise training is left out: it has no moments). A
moment is a file about to be written, renamed or removed, or a commit to the database. Each copy
leaves STEP.COPY.json, .out and .err in its folder; `done` says that the job has ended.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import sqlalchemy
from conftest import not_trained
from mlflow.utils import requirements_utils

import model_utils
from toolkit import artifact, checkpoint, evidence, figures, report, tracking  # noqa: F401

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.copyfile"}
moments = {}  # script: how many a complete run has


class Moments:
    """Count what this process is about to change, and send it a signal at one of them."""

    def __init__(self, at: int, signum: int) -> None:
        self.count, self.at, self.signum = 0, at, signum
        sys.addaudithook(self.see)
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", lambda _: self.next())

    def see(self, event: str, arguments: tuple) -> None:
        is_write = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in CHANGES or is_write:
            self.next()

    def next(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.signum)


def work(job: dict, number: int, copy: int) -> None:
    """Be the child: run one step and leave."""
    step, name = job["steps"][number], f"{number}.{copy}"
    os.chdir(job["folder"])
    os.environ["MLFLOW_EXPERIMENT_NAME"] = job["experiment"]
    for descriptor, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{end}", os.O_WRONLY | os.O_CREAT), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tracking.log_figures = lambda figures: None
    figures.as_svg = lambda figure: "<svg/>"
    checkpoint.SECONDS = -1  # a state is saved after every epoch
    if not step.get("trains"):
        model_utils.train_model = not_trained
    if step.get("lost"):
        original = artifact.log_model
        artifact.log_model = lambda *a, **o: (os.mkdir("mlflow.db-journal"), original(*a, **o))
    sys.argv = [f"{step['script']}.py", *step["flags"]]
    if step.get("after"):
        die_after(*step["after"], step["signal"])
    at = round(step["at"] * moments[step["script"]]) if "at" in step else 0
    counted, code = Moments(at, step.get("signal", 0)), 1
    try:
        code = importlib.import_module(step["script"]).main(step["flags"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        Path(f"{name}.count").write_text(str(counted.count))
        Path(f"{name}.modules").write_text("\n".join(sys.modules))
        os._exit(code)


def die_after(training: str, epoch: int, signum: int) -> None:
    """Send this process a signal at the end of an epoch."""
    watched = checkpoint._Watch.on_epoch_end

    def last(self: checkpoint._Watch, number: int, logs: dict | None = None) -> None:
        watched(self, number, logs)
        if (self.name, number) == (training, epoch):
            os.kill(os.getpid(), signum)

    checkpoint._Watch.on_epoch_end = last


def start(job: dict, number: int) -> list[int]:
    """Fork the copies of a step; return their process numbers."""
    journal = Path(job["folder"], "mlflow.db-journal")
    if journal.is_dir():
        journal.rmdir()
    children = []
    for copy in range(job["steps"][number].get("copies", 1)):
        children.append(os.fork())
        if not children[-1]:
            work(job, number, copy)
    return children


def run(jobs: list[dict], at_once: int = 2) -> None:
    """Work the jobs off, at most `at_once` of them at a time."""
    waiting, running = list(jobs), []
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting.pop(0)
            running.append([job, 0, dict(enumerate(start(job, 0)))])
        pid, status = os.wait()
        state = next(one for one in running if pid in one[2].values())
        job, number, children = state
        copy = next(key for key, value in children.items() if value == pid)
        folder, name = Path(job["folder"]), f"{number}.{copy}"
        code = os.waitstatus_to_exitcode(status)
        (folder / f"{name}.json").write_text(json.dumps({"pid": pid, "code": code}))
        if code == 0 and "at" not in job["steps"][number]:
            count = int((folder / f"{name}.count").read_text())
            moments.setdefault(job["steps"][number]["script"], count)
        del children[copy]
        if not children and number + 1 < len(job["steps"]):
            state[1:] = number + 1, dict(enumerate(start(job, number + 1)))
        elif not children:
            running.remove(state)
            (folder / "done").touch()


def import_as(job: dict) -> None:
    """Import all that the child of a job did, so that the next ones find it there."""
    file = Path(job["folder"], "0.0.modules")
    for name in file.read_text().split() if file.exists() else ():
        with contextlib.suppress(Exception):  # some are made while a model is loaded
            importlib.import_module(name)
    sqlalchemy.orm.configure_mappers()
    requirements_utils._init_packages_to_modules_map()  # which packages are installed here
    gc.collect()
    gc.freeze()  # what a child inherits is not searched for garbage in each of them


if __name__ == "__main__":
    for batch in json.loads(Path(sys.argv[2]).read_text()):
        run(batch)
        for job in batch:
            import_as(job)
