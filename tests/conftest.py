"""What all tests share: the project's folder on the path, seeds, small models, MLflow stores.

A `Place` is a folder with its own store, in which the scripts run. The expensive ones are made once
for all tests, which only look at them: `trained` (one first training) and `retrained` (the same,
continued once). A test that changes something works in a copy: `workshop`. Tests of the package
alone use `tiny`, a model without a script around it.
"""

import contextlib
import hashlib
import importlib
import io
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two processes test at once, and so small are the trainings that threads only wait for each other.
for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# Hundreds of small networks are compiled: quickly, not well.
FAST_COMPILER = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FAST_COMPILER)
os.environ["LC_ALL"] = "C.UTF-8"  # tests read English, whatever the machine's language
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
STORE_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")
for name in STORE_VARIABLES:
    os.environ.pop(name, None)
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

MODEL = "loan-amount"


LONG = ("test_readme.py", "test_faults.py", "test_automation.py", "test_mlflow_retrain.py")
LONG += ("test_model_utils.py", "test_watching.py")


def pytest_collection_modifyitems(items):
    """Begin with files of few but long tests, so that no process waits for the other at the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def _seeds():
    import numpy as np

    np.random.seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _signals():
    """Let SIGINT interrupt, as in a terminal: processes in the background are born ignoring it."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


# --- places ------------------------------------------------------------------------------------


class Place:
    """A folder with an MLflow store of its own, and the scripts running in it.

    After a script: `out` and `err` are what was printed, `fits` the arguments of every call of
    `train_model`, in order.
    """

    def __init__(self, folder: Path, store: str | None = None, experiment: str = "loans") -> None:
        self.folder, self.experiment = folder, experiment
        self.store = store or f"sqlite:///{folder}/mlflow.db"
        self.out = self.err = ""
        self.fits = []

    def train(self, *flags) -> int:
        return self.run_script("mlflow_monitoring", flags)

    def retrain(self, *flags) -> int:
        return self.run_script("mlflow_retrain", flags)

    def score(self, *flags) -> int:
        return self.run_script("mlflow_score", flags)

    def run_script(self, script: str, flags: tuple) -> int:
        import model_utils

        original, self.fits = model_utils.train_model, []

        def recorded(*args, **options):
            self.fits.append((args, options))
            return original(*args, **options)

        out, err = io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(model_utils, "train_model", recorded)
            patch.setenv("MLFLOW_TRACKING_URI", self.store)
            patch.setenv("MLFLOW_EXPERIMENT_NAME", self.experiment)
            stack.enter_context(contextlib.chdir(self.folder))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            stack.callback(lambda: setattr(self, "out", out.getvalue()))
            stack.callback(lambda: setattr(self, "err", err.getvalue()))
            return importlib.import_module(script).main([str(flag) for flag in flags])

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.store)

    def runs(self, status: str | None = None) -> list:
        """List the runs of all experiments, the latest first."""
        client = self.client
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        chosen = f"attributes.status = '{status}'" if status else ""
        return list(client.search_runs(ids, chosen, order_by=["attributes.start_time DESC"]))

    @property
    def run(self):
        """The latest run, with all its inputs."""
        return self.client.get_run(self.runs()[0].info.run_id)

    def champion(self, alias: str = "champion") -> str | None:
        from toolkit import registry

        return registry.champion_version(self.client, MODEL, alias)

    def use(self) -> None:
        """Point MLflow's own functions at this store."""
        import mlflow

        mlflow.set_tracking_uri(self.store)

    def load(self, uri: str):
        """Load a model as retraining does."""
        from toolkit import artifact

        self.use()
        return artifact.load_model(uri, self.folder / "models" / "preprocessor.pkl")

    def predict(self, uri: str, rows):
        """Score raw rows as MLflow does."""
        import mlflow

        self.use()
        return mlflow.pyfunc.load_model(uri).predict(rows)

    def artifact(self, uri: str) -> Path:
        """Find the folder of a logged model in a local store."""
        return Path(self.client.get_logged_model(uri.split("/")[-1]).artifact_location[7:])

    def copy(self, folder: Path) -> "Place":
        """Copy store and models; what is logged from then on lies in the new folder."""
        shutil.copytree(self.folder, folder, ignore=lambda *_: ["mlruns"], dirs_exist_ok=True)
        copy = Place(folder, experiment=f"{self.experiment} of {folder.name}")
        copy.uri = getattr(self, "uri", "")
        return copy


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """Make small loan files: old.csv, and new.csv in which 60 old rows come back."""
    import pandas as pd

    folder = tmp_path_factory.mktemp("files")
    old, new = (pd.read_csv(ROOT / "data" / f"df_{name}.csv") for name in ("old", "new"))
    old.head(400).to_csv(folder / "old.csv", index=False)
    pd.concat([new.head(340), old.head(60)]).to_csv(folder / "new.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """Make an MLflow database once; a copy of it spares its creation, which takes seconds."""
    from toolkit import tracking

    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    tracking.connect(f"sqlite:///{file}", "empty")
    return file


@pytest.fixture(scope="session")
def trained(tmp_path_factory, files, empty_store) -> Place:
    """Train one model on old.csv. Look, don't touch: all tests share it."""
    place = Place(tmp_path_factory.mktemp("trained"))
    shutil.copy(empty_store, place.folder / "mlflow.db")
    assert place.train("--data", files / "old.csv", "--epochs", 20) == 0, place.err
    place.uri = place.client.get_model_version(MODEL, "1").source
    place.before = hashes_of(place.folder)
    return place


@pytest.fixture(scope="session")
def retrained(tmp_path_factory, files, trained) -> Place:
    """Continue the trained model on new.csv. Look, don't touch: all tests share it."""
    place = trained.copy(tmp_path_factory.mktemp("retrained"))
    flags = ["--model-uri", trained.uri, "--data", files / "new.csv", "--epochs", 20]
    assert place.retrain(*flags) == 0, place.err
    place.uri = place.client.get_model_version(MODEL, "2").source
    return place


@pytest.fixture
def fresh_place(tmp_path, empty_store) -> Place:
    """Give a test a folder with an empty store."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Place(tmp_path)


@pytest.fixture
def workshop(tmp_path, trained) -> Place:
    """Give a test a copy of the store with the trained model, to change at will."""
    return trained.copy(tmp_path)


@pytest.fixture
def no_figures(monkeypatch):
    """Draw no figure, in a test that makes no claim about them: saves half a second a run."""
    from toolkit import figures, tracking

    monkeypatch.setattr(tracking, "log_figures", lambda figures: None)
    monkeypatch.setattr(figures, "as_svg", lambda figure: "<svg/>")


def not_trained(model, X, y, callbacks=(), **_):
    """Stand in for `train_model`: leave the model as it is, which saves its compilation."""
    import keras

    for callback in callbacks:
        if isinstance(callback, keras.callbacks.LambdaCallback):  # validates the candidates
            callback.on_epoch_end(0, {})
    return model, SimpleNamespace(history={"loss": [1.0]})


@pytest.fixture
def no_training(monkeypatch, no_figures):
    """Train nothing, in a test that makes no claim about what was learnt: saves seconds a run."""
    import model_utils

    monkeypatch.setattr(model_utils, "train_model", not_trained)


@pytest.fixture(scope="session")
def hashes():
    """Give the function that tells whether a folder changed."""
    return hashes_of


def hashes_of(folder: Path) -> dict[str, str]:
    """Hash every file below a folder, but for what loading a model leaves there."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = [path for path in found if path.name != "registered_model_meta"]
    found = [path for path in found if path.suffix != ".pyc"]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in found}


# --- a model without a script ------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_rows():
    """Make 120 raw rows with a number, a category, a French date, a code, and the target y."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(5)
    days = pd.date_range("2019-03-01", periods=120, freq="3D")
    rows = pd.DataFrame(
        {
            "income": rng.normal(2000, 400, 120).round(2),
            "region": rng.choice(["north", "south", "east"], 120),
            "since": days.strftime("%d/%m/%Y"),
            "code": rng.choice(["01", "2A", "13"], 120),
        }
    )
    rows["y"] = 3 * rows["income"] + 500 * (rows["region"] == "south") + rng.normal(0, 50, 120)
    return rows


@pytest.fixture(scope="session")
def tiny(tiny_rows):
    """Make a complete model of a network that was trained for one epoch; do not change it."""
    import keras
    import numpy as np

    from toolkit import artifact, columns, encoding, kinds, ranges, roles

    keras.utils.set_random_seed(0)
    schema, _ = kinds.infer_schema(tiny_rows, "y")
    table = roles.hashed(columns.conform(tiny_rows, schema, source="rows")[0])
    held_out = roles.Roles.choose(table, 0.2, seed=7)
    y = table["y"].to_numpy()
    preprocessor = encoding.Preprocessor.fit(table, schema, y, roles.folds(table))
    layers = [keras.Input((preprocessor.width,)), keras.layers.Dense(4, "tanh")]
    network = keras.Sequential([*layers, keras.layers.Dense(1)])
    network.compile("adam", "mse")
    network.fit(preprocessor.transform(table), y / 1000, verbose=0)
    card = {"unit": "€", "lineage": [{"generation": 0}], "result": "good", "run_id": "of the card"}
    card["scale"] = {"low": 4_000.0, "high": 9_000.0}
    card[ranges.KEPT] = ranges.keep(y, y + np.arange(120) - 60)
    buffer = held_out.assign(table, generation=0)
    return artifact.TrainedModel(network, preprocessor, held_out, buffer, card)


@pytest.fixture(scope="session")
def logged(tmp_path_factory, tiny, empty_store) -> Place:
    """Log the tiny model in a store of its own, as version 1 and champion. Look, don't touch."""
    from toolkit import artifact, registry, tracking

    place = Place(tmp_path_factory.mktemp("logged"))
    shutil.copy(empty_store, place.folder / "mlflow.db")
    client, experiment_id = tracking.connect(place.store, place.experiment)
    with tracking.tracked_run(experiment_id, "first", {}):
        place.uri = artifact.log_model(tiny, "mlflow_model")
    assert registry.register(client, MODEL, place.uri, "good\n\ncard") == "1"
    assert registry.promote(client, MODEL, "1", None)
    return place


@pytest.fixture
def bench(tmp_path, logged) -> Place:
    """Give a test a copy of the store with the tiny model, to change at will."""
    place = logged.copy(tmp_path)
    place.use()
    return place


# --- other processes ---------------------------------------------------------------------------


class Process:
    """A process of its own process group, with what it wrote in files; `url` if it is a server."""

    def __init__(self, command: list, folder: Path, env: dict[str, str], url: str = "") -> None:
        self.url, self.files = url, [folder / f"{time.time_ns()}.{n}" for n in ("out", "err")]
        # MLflow writes the store in use into the environment of the tests.
        clean = {k: v for k, v in os.environ.items() if k not in STORE_VARIABLES}
        with self.files[0].open("wb") as out, self.files[1].open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=folder,
                env=clean | env,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self.files[0].read_text("utf-8")

    @property
    def err(self) -> str:
        return self.files[1].read_text("utf-8")

    def wait(self, seconds: float = 180) -> int:
        """Wait until the process has ended; return its exit code."""
        return self.process.wait(seconds)

    def ready(self, path: str, seconds: float = 180) -> "Process":
        """Wait until the server answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url + path, timeout=5):
                return self
            time.sleep(0.1)
        raise AssertionError(f"the server did not start: {self.err[-2000:]}")

    def post(self, path: str, body: str, kind: str = "application/json") -> tuple[int, str]:
        """Send a body; return (status, answer)."""
        request = urllib.request.Request(self.url + path, body.encode(), {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self) -> None:
        """End the process and its children, which form a group of their own."""
        if self.process.returncode is not None:
            return  # it ended before: its number may be another process's by now
        os.killpg(self.process.pid, signal.SIGTERM)
        ended, deadline = os.WEXITED | os.WNOHANG | os.WNOWAIT, time.monotonic() + 5
        while not os.waitid(os.P_PID, self.process.pid, ended) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(self.process.pid, signal.SIGKILL)  # the number is kept until `wait`
        self.process.wait()


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """Give the function that starts `python …`, or a server when `{port}` is in the command.

    The processes run in a folder outside of the project, unless one is passed, and are ended with
    the tests.
    """
    started = []

    def start(*command, folder: Path | None = None, **env: str) -> Process:
        folder = folder or tmp_path_factory.mktemp("elsewhere")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        url = f"http://127.0.0.1:{port}"
        command = [str(part).replace("{port}", port) for part in command]
        started.append(Process(command, folder, env, url))
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture(scope="session")
def spare(launch, tmp_path_factory):
    """Give the function that runs `python …` as `launch` does, but spares it the imports.

    It is for programs that need a process of their own, and say nothing about how it starts. Its
    attribute `python` is a program that stands in for Python in a shell.
    """
    folder = tmp_path_factory.mktemp("spare")
    server = ROOT / "tests" / "spare.py"
    launch(server, folder / "socket", folder=folder)
    ask = ["-IS", server, folder / "socket"]

    def start(*command, folder: Path | None = None, **env: str) -> Process:
        return launch(*ask, *command, folder=folder, **env)

    start.python = folder / "python"
    words = shlex.join([sys.executable, *map(str, ask)])
    start.python.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    start.python.chmod(0o755)
    return start
