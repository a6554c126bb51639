"""Claims about distributed.py: several workers train as one does, and only worker 0 writes."""

import json
import os
import signal
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, Place

import cli
import distributed
from model_utils import create_nn_model
from tabular import UserError

# One worker, or one process with two replicas: trains the same network in several ways.
PROGRAM = """
import functools, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.path.insert(0, sys.argv[1])
import keras, numpy as np, tensorflow as tf
import distributed, model_utils

if "TF_CONFIG" in os.environ:
    distributed.join(60)
else:  # two processors stand for two GPUs
    device = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(device, two)
    distributed._strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
distributed.BLOCK = 10  # so that these few rows come in several blocks
os.environ["XLA_FLAGS"] += f" --xla_dump_to={os.getcwd()} --xla_dump_hlo_module_re=gradients"
rng = np.random.default_rng(0)
X = rng.normal(size=(301, 6))
y = X[:, 0] - X[:, 1] ** 2 + rng.normal(size=301)

def losses(batch_size, spread=True, callbacks=()):
    glorot = keras.initializers.GlorotUniform(1 if distributed.is_leader() else 2)
    penalty = keras.regularizers.L2(1e-2)
    hidden = keras.layers.Dense(16, "relu", kernel_initializer=glorot, kernel_regularizer=penalty)
    output = keras.layers.Dense(1, kernel_initializer=glorot)
    model = keras.Sequential([keras.Input((6,)), hidden, output])
    decay = 0.1 if distributed.is_leader() else 0.2  # which worker 0 decides, like the rest
    model.compile(keras.optimizers.SGD(0.05, weight_decay=decay), loss="mse")
    options = {"epochs": 10, "batch_size": batch_size, "seed": 3, "callbacks": callbacks}
    return model_utils.train_model(model, X, y, **options, spread=spread)[1].history["loss"]

def mutant(name, function):
    original = getattr(distributed, name)
    setattr(distributed, name, functools.partial(function, original))
    try:
        return losses(64)
    finally:
        setattr(distributed, name, original)

def unreduced(original, parts):  # the loss alone, before the gradients, is exchanged
    mine = distributed._strategy.experimental_local_results(parts)[0]
    return tf.concat([original(parts)[:1], 2 * mine[1:]], 0)

def averaged(original, parts):
    total = original(parts)
    return tf.concat([total[:1], total[1:] / 2], 0)

def same_shard(original, order, batch_size, replica):
    return original(order, batch_size, 0 * replica)

# 64 leaves a last batch of 45 rows, 37 one of 5 rows: none for the second worker. 37 is no multiple
# of the blocks; 16 is one block each.
found = {f"{size}": losses(size) for size in (64, 37, 16)}
if "TF_CONFIG" not in os.environ:
    found |= {f"one {size}": losses(size, spread=False) for size in (64, 37, 16)}
else:
    stop = keras.callbacks.EarlyStopping("loss", min_delta=0.2, patience=1)
    found["stopped"] = losses(64, callbacks=[stop])
    found["no all-reduce"] = mutant("_sum", unreduced)
    found["gradient divided by N"] = mutant("_sum", averaged)
    found["wrong shard"] = mutant("shard", same_shard)
    found["connections"] = len(distributed._peers)
    distributed._peers.clear()
    found["TensorFlow's exchange"] = losses(64)
    found["compiled"] = sum(name.endswith(".before_optimizations.txt") for name in os.listdir())
print(json.dumps(found))
"""


def configurations(n: int = 2) -> list[str]:
    """Make the TF_CONFIG of n workers at free ports of this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    cluster = {"worker": addresses}
    tasks = [{"type": "worker", "index": i} for i in range(n)]
    return [json.dumps({"cluster": cluster, "task": task}) for task in tasks]


@pytest.fixture(scope="module")
def trainings(launch):
    """Train with two workers, and with two replicas in one process; give what each printed."""
    started = {
        f"worker {i}": launch("-c", PROGRAM, ROOT, TF_CONFIG=config)
        for i, config in enumerate(configurations())
    }
    started["replicas"] = launch("-c", PROGRAM, ROOT)
    for process in started.values():
        assert process.wait() == 0, process.err
    return {name: json.loads(process.out) for name, process in started.items()}


def relative_error(losses: list[float], one: list[float]) -> float:
    return np.abs(np.divide(losses, one) - 1).max()


@pytest.mark.parametrize("batch_size", ["64", "37", "16"])
@pytest.mark.parametrize("who", ["worker 0", "worker 1", "replicas"])
def test_losses_are_those_of_one_worker_whatever_the_tail(trainings, who, batch_size):
    several, one = trainings[who][batch_size], trainings["replicas"][f"one {batch_size}"]
    assert len(several) == 10
    assert one[-1] < 0.7 * one[0]
    assert relative_error(several, one) < 1e-5


def test_losses_are_the_same_where_workers_reach_each_other_through_tensorflow_alone(trainings):
    assert [trainings[f"worker {i}"]["connections"] for i in (0, 1)] == [1, 1]
    assert (
        relative_error(trainings["worker 0"]["TensorFlow's exchange"], trainings["worker 0"]["64"])
        < 1e-6
    )


@pytest.mark.parametrize("mutant", ["no all-reduce", "gradient divided by N", "wrong shard"])
def test_wrong_exchanges_would_fail_that_comparison(trainings, mutant):
    one = trainings["replicas"]["one 64"]
    assert relative_error(trainings["worker 0"][mutant], one) > 1e-3


def test_all_workers_stop_early_at_the_same_epoch(trainings):
    stopped = [trainings[f"worker {i}"]["stopped"] for i in (0, 1)]
    assert stopped[0] == stopped[1]
    assert 1 < len(stopped[0]) < 10


def test_training_compiles_one_program_whatever_its_minibatches(trainings):
    n_trainings = len(trainings["worker 1"]) - 2
    assert trainings["worker 1"]["compiled"] == n_trainings == 8


# --- the scripts


@pytest.fixture(scope="module")
def resumed(launch, files, tmp_path_factory, empty_store):
    """Kill a worker in the last of several trainings, then start both again with --resume."""
    folders = [tmp_path_factory.mktemp(f"worker_{i}") for i in (0, 1)]
    (folders[0] / "mlflow.db").write_bytes(empty_store.read_bytes())
    flags = [
        "--data",
        files / "old.csv",
        "--epochs",
        100,
        "--batch-size",
        64,
        "--checkpoint-seconds",
        "1e-9",
    ]

    def start(*more):
        script = ROOT / "mlflow_monitoring.py"
        return [
            launch(script, *flags, *more, folder=folder, TF_CONFIG=config)
            for folder, config in zip(folders, configurations(), strict=True)
        ]

    workers = start()
    checkpoint = wait_for_final_training(folders[0] / "models")
    os.kill(workers[1].process.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    exit_code = workers[0].wait()
    seconds = time.monotonic() - killed_at
    before = mark_past_epochs(checkpoint)
    again = start("--resume")
    codes = [worker.wait() for worker in again]
    return SimpleNamespace(
        folders=folders,
        place=Place(folders[0]),
        first=SimpleNamespace(code=exit_code, seconds=seconds, err=workers[0].err),
        epochs_before=before,
        codes=codes,
        outputs=[(worker.out, worker.err) for worker in again],
    )


def progress(checkpoint) -> dict:
    with np.load(checkpoint) as saved:
        return json.loads(str(saved["progress"]))


def wait_for_final_training(models):
    """Wait until a few epochs of the final training are in the checkpoint; return its path."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in models.glob("checkpoint*.npz"):
            history = progress(file)["history"]  # only the final training has no validation rows
            if "val_loss" not in history and len(history.get("loss", ())) > 5:
                return file
        time.sleep(0.01)
    raise AssertionError("the final training did not begin")


def mark_past_epochs(checkpoint) -> int:
    """Give the epochs in a checkpoint a loss of 7, which none has; return their number."""
    with np.load(checkpoint) as saved:
        arrays = dict(saved)
    state = json.loads(str(arrays["progress"]))
    n = len(state["history"]["loss"])
    state["history"]["loss"] = [7.0] * n
    arrays["progress"] = json.dumps(state)
    with checkpoint.open("wb") as stream:
        np.savez(stream, **arrays)
    return n


@pytest.mark.long
def test_killed_worker_ends_the_others_with_one_clear_line(resumed):
    assert resumed.first.code == 2, resumed.first.err
    assert resumed.first.seconds < 30
    assert resumed.first.err.count("\n") == 1, resumed.first.err
    assert "lost another worker" in resumed.first.err
    assert "--resume" in resumed.first.err


@pytest.mark.long
def test_resumed_workers_go_on_at_the_last_checkpoint_in_the_same_run(resumed):
    assert resumed.codes == [0, 0], resumed.outputs
    [run] = resumed.place.runs()
    assert run.info.status == "FINISHED"
    history = resumed.place.client.get_metric_history(run.info.run_id, "epoch/final_loss")
    losses = [point.value for point in sorted(history, key=lambda point: point.step)]
    assert len(losses) == 100
    assert 5 < resumed.epochs_before < 100
    assert [loss == 7 for loss in losses].count(True) == resumed.epochs_before
    assert losses[:6] == [7] * 6


@pytest.mark.long
def test_worker_0_alone_logs_and_saves_and_the_others_are_quiet(resumed):
    assert resumed.codes == [0, 0]
    assert resumed.place.champion() == "1"
    assert (resumed.folders[0] / "models" / "preprocessor.pkl").exists()
    assert "2 workers share 64 rows per update" in resumed.outputs[0][0]
    assert resumed.outputs[1] == ("", "")
    left = [path for path in resumed.folders[1].rglob("*") if path.is_file()]
    assert [path for path in left if path.suffix not in (".out", ".err")] == []


def test_second_worker_of_a_retraining_trains_and_leaves_no_trace(
    workshop, trained, files, monkeypatch
):
    calls = []
    monkeypatch.setattr(distributed, "_number", 1)
    monkeypatch.setattr(distributed, "agree", lambda *arguments: calls.append(arguments))
    assert workshop.retrain("--model-uri", trained.uri, "--data", files / "new.csv") == 0
    assert len(calls) == 1
    assert (workshop.out, workshop.err) == ("", "")
    assert len(workshop.runs()) == 1


@pytest.fixture
def connected(monkeypatch):
    """Connect worker 1 to worker 0, this process, after a stranger; give worker 1's end."""
    told = []
    tell = lambda values: (told.append(values), values.astype(float))[1]  # noqa: E731
    monkeypatch.setattr(distributed, "_from_leader", tell)
    monkeypatch.setattr(distributed, "_peers", [])
    connecting = cli.background(distributed._connect, ["127.0.0.1:1", "127.0.0.1:2"], 10)
    deadline = time.monotonic() + 10
    while len(told) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    address = ("127.0.0.1", int(told[1][0]))
    with socket.create_connection(address) as stranger, socket.create_connection(address) as worker:
        stranger.sendall(bytes(16) + b"\1\0\0\0")
        worker.sendall(told[0].tobytes() + b"\1\0\0\0")
        connecting.result(10)
        yield worker
    for peer in distributed._peers:
        peer.close()


def test_worker_0_goes_without_connections_where_nobody_comes(monkeypatch):
    monkeypatch.setattr(distributed, "_from_leader", lambda values: values.astype(float))
    monkeypatch.setattr(distributed, "_peers", ["of an earlier cluster"])
    distributed._connect(["127.0.0.1:1", "127.0.0.1:2"], 0.1)
    assert distributed._peers == []


def test_vectors_are_added_up_with_those_of_workers_and_not_of_strangers(connected):
    assert len(distributed._peers) == 1
    adding = cli.background(distributed._add_up, np.array([1, 2], np.float32))
    connected.sendall(np.array([10, 20], np.float32).tobytes()[:3])
    time.sleep(0.05)
    connected.sendall(np.array([10, 20], np.float32).tobytes()[3:])
    assert adding.result(10).tolist() == [11, 22]
    assert np.frombuffer(connected.recv(8), np.float32).tolist() == [11, 22]


def test_worker_that_closes_its_connection_is_an_error_and_no_wait(connected):
    connected.close()
    with pytest.raises(ConnectionError):
        distributed._add_up(np.array([1, 2], np.float32))


@pytest.fixture
def watched(monkeypatch):
    """Watch one other worker, whose listener is given; leave no watch behind."""
    monkeypatch.setattr(distributed, "WATCH_SECONDS", 0.02)
    before = signal.getsignal(signal.SIGUSR1)
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        yield SimpleNamespace(
            address=f"127.0.0.1:{listener.getsockname()[1]}", close=listener.close
        )
    distributed._watch_over.set()
    time.sleep(0.1)
    signal.signal(signal.SIGUSR1, before)


def test_worker_that_goes_while_rows_are_read_ends_the_others_by_its_name(watched):
    distributed._watch([watched.address])
    time.sleep(0.3)  # it listens
    watched.close()
    with pytest.raises(UserError, match=f"lost another worker \\({watched.address}\\)"):
        time.sleep(5)


def test_nobody_is_watched_once_gradients_are_exchanged(watched, monkeypatch):
    distributed._watch([watched.address])
    monkeypatch.setattr(distributed, "_from_leader", lambda values: [0, 0, 0])
    assert distributed.agree(create_nn_model(2), 0) is None
    watched.close()
    time.sleep(0.3)


def test_wait_for_a_worker_tells_who_is_missing(monkeypatch):
    addresses, told = json.loads(configurations()[0])["cluster"]["worker"], []
    with pytest.raises(UserError, match="did not come"):
        distributed._meet(addresses, 0, 0.3, told.append)
    assert set(told) == {f"waiting for worker 1 ({addresses[1]})"}


def test_worker_that_never_comes_ends_the_wait_with_its_name(fresh_place, files, monkeypatch):
    config = configurations()[0]
    missing = json.loads(config)["cluster"]["worker"][1]
    monkeypatch.setenv("TF_CONFIG", config)
    assert fresh_place.train("--data", files / "old.csv", "--worker-timeout", "0.5") == 2
    assert fresh_place.err.count("\n") == 1
    assert f"worker 1 ({missing}) did not come within 0.5 s" in fresh_place.err
    assert "--worker-timeout" in fresh_place.err
    assert fresh_place.runs() == []
    assert list((fresh_place.folder / "models").iterdir()) == []


# --- TF_CONFIG


def config(cluster: dict, job: str, index: int) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})


def test_chief_is_worker_0_and_the_others_follow():
    cluster = {"worker": ["b:1", "c:1"], "chief": ["a:1"], "ps": ["d:1"]}
    assert distributed.read_cluster(config(cluster, "chief", 0)) == (["a:1", "b:1", "c:1"], 0)
    assert distributed.read_cluster(config(cluster, "worker", 1)) == (["a:1", "b:1", "c:1"], 2)


@pytest.mark.parametrize("text", ["", "{}", '{"cluster": {}}'])
def test_no_cluster_means_one_worker(text):
    assert distributed.read_cluster(text) == ([], 0)


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        config({"worker": ["a:1"]}, "worker", 1),
        config({"worker": ["a:1"], "ps": ["b:1"]}, "ps", 0),
        config({"worker": ["a"]}, "worker", 0),
    ],
)
def test_wrong_configurations_are_refused_with_an_example(text):
    with pytest.raises(UserError, match=r'expected JSON such as \{"cluster"'):
        distributed.read_cluster(text)


def test_taken_port_is_refused_by_name(fresh_place, files, monkeypatch):
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cluster = {"worker": [address, "127.0.0.1:1"]}
        monkeypatch.setenv("TF_CONFIG", config(cluster, "worker", 0))
        assert fresh_place.train("--data", files / "old.csv") == 2
    assert f"worker 0 cannot listen at {address}" in fresh_place.err


@pytest.mark.parametrize(("batch_size", "words"), [(4095, 1), (4096, 0)])
def test_batches_too_small_to_profit_are_pointed_out(monkeypatch, batch_size, words):
    monkeypatch.setattr(distributed, "_strategy", SimpleNamespace(num_replicas_in_sync=2))
    assert len(distributed.notes(batch_size)) == words


def test_one_worker_is_told_nothing():
    assert distributed.notes(32) == []
