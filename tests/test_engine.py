"""Claims about toolkit/engine.py: workers give what one process gives, and survive a killed one."""

import copy
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray keeps to the loopback interface
ray = pytest.importorskip("ray", reason="Ray is not installed: requirements-scale.txt")

import mlflow_score  # noqa: E402
import model_utils  # noqa: E402
from toolkit import distributed, engine, reading, roles, tables  # noqa: E402
from toolkit.encoding import Preprocessor  # noqa: E402
from toolkit.errors import UserError  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
N, EPOCHS, BATCH, SEED = 1_500, 10, 128, 3
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def small_limits():
    """Let few rows be many: a sample of 600, files and row groups that are read on their own."""
    tables.PIECE_BYTES, reading.IN_MEMORY, distributed.BLOCK_ROWS = 1, 600, 400


@pytest.fixture(scope="module", autouse=True)
def _small_rays():
    """Start Ray once; its workers know the small limits, too."""
    before = tables.PIECE_BYTES, reading.IN_MEMORY, distributed.BLOCK_ROWS
    small_limits()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    hook = {"worker_process_setup_hook": small_limits, "env_vars": {"PYTHONPATH": paths}}
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=3, runtime_env=hook, **options)
    yield
    ray.shutdown()
    tables.PIECE_BYTES, reading.IN_MEMORY, distributed.BLOCK_ROWS = before


def rows_of(n=N, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.gamma(2, 2, n)
    zone = rng.choice(["north", "south", "east"], n)
    day = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 400, n), "D")
    y = 3 * a + np.sin(b) + (zone == "north") + rng.normal(0, 0.3, n)
    shop = rng.integers(0, 90, n)
    return pd.DataFrame({"a": a, "b": b, "zone": zone, "day": day, "shop": shop, "y": y.round(6)})


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Give rows in four row groups, the last of which is shorter."""
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    table = pa.Table.from_pandas(rows_of(), preserve_index=False)
    pq.write_table(table, file, row_group_size=400)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give the rows in three CSV files."""
    folder = tmp_path_factory.mktemp("parts")
    for number, part in enumerate(np.array_split(np.arange(N), [300, 1_000])):
        rows_of().iloc[part].to_csv(folder / f"{number}.csv", index=False)
    return folder


def settings_for(data, workers, **options):
    said = dict.fromkeys(reading.FLAGS, ())
    defaults = {"target": "y", "query": None, "workers": workers}
    defaults |= dict.fromkeys(reading.OWN)
    return SimpleNamespace(**{"data": str(data), **said, **defaults, **options})


def prepared(data, workers, **options):
    """Read rows; return them, their roles, the schema and the fitted preprocessor."""
    rows, schema, notes = reading.read_first(settings_for(data, workers, **options))
    own = {name: options.get(name, "") for name in ("group", "time")}
    role = roles.Roles.choose(rows.table, 0.2, 42, **own)
    train = rows.table[~role.held_out(rows.table)]
    fitted = Preprocessor.fit(train, schema, train["y"].to_numpy(), roles.folds(train))
    return rows, role, schema, fitted, notes


@pytest.mark.parametrize("option", [{}, {"time": "day"}, {"group": "shop", "weight": "b"}])
@pytest.mark.parametrize("source", ["parquet", "folder"])
def test_sample_split_and_preprocessor_are_those_of_one_process(source, option, request):
    data = request.getfixturevalue(source)
    rows, *expected = prepared(data, 1, **option)
    keys = roles.scrambled(rows.table[roles.HASH], roles.SAMPLE)
    beyond = rows.table[keys > np.sort(keys)[599]]  # none but the latest row, by time
    assert len(rows.table) == 600 + len(beyond)
    assert len(beyond) <= ("time" in option)
    assert (beyond["day"] == rows.table["day"].max()).all()
    if "time" in option:  # what is held out ends with the latest row
        assert rows.table["day"].max() == (rows_of()["day"].max() - pd.Timestamp(0)).days
    assert not rows.table.duplicated().any()
    for workers in (2, 3):
        shared, *found = prepared(data, workers, **option)
        pd.testing.assert_frame_equal(shared.table, rows.table)
        assert (shared.n_rows, found) == (rows.n_rows, expected)


def test_each_worker_reads_its_share_alone_and_together_they_read_all(parquet):
    source = tables.open_table(parquet)
    shares = engine.shares_of(source, settings_for(parquet, 3))
    read = [pd.concat(share.open().blocks()) for share in shares]
    assert [len(rows) for rows in read] == [400, 400, 700]
    whole = pd.concat(tables.open_table(parquet).blocks())
    pd.testing.assert_frame_equal(pd.concat(read), whole, check_categorical=False)


def test_more_workers_than_pieces_leave_some_without_rows(tmp_path):
    rows_of(300).to_csv(tmp_path / "rows.csv", index=False)
    rows, *expected = prepared(tmp_path / "rows.csv", 1)
    shared, *found = prepared(tmp_path / "rows.csv", 2)
    pd.testing.assert_frame_equal(shared.table, rows.table)
    assert found == expected


def test_error_in_a_worker_is_the_same_one_line(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "2.csv").open("a") as last:
        last.write("x,1,north,2024-01-01,5,1\n")
    with pytest.raises(UserError, match=r"part 2 of 2 of .*'x' in line 502 \(2\.csv\)"):
        reading.read_first(settings_for(tmp_path, 2))


def test_predictions_are_in_the_order_of_the_rows(parquet):
    _, _, _, fitted, _ = prepared(parquet, 1)
    network = model_utils.create_nn_model(fitted.width)
    predict = partial(mlflow_score.predictions, network, fitted, {}, None)
    shares = engine.shares_of(tables.open_table(parquet), settings_for(parquet, 3))
    made = engine.stream(lambda share: (yield from predict(share.open())), shares)
    found = [block["prediction"] for block in made]
    expected = [block["prediction"] for block in predict(tables.open_table(parquet))]
    np.testing.assert_array_equal(np.hstack(found), np.hstack(expected))


# --- training -----------------------------------------------------------------------------------


def train_by_sgd(network, X, y, kill_once, *, sample_weight, seed, train):
    """Train as `model_utils.train_members` does, but by an optimizer that hides no wrong scale."""

    def kill(epoch, _):
        is_second = ray.train.get_context().get_world_rank() == 1
        if epoch == EPOCHS // 2 and is_second and kill_once and not kill_once.exists():
            kill_once.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    heads = model_utils._heads(network)
    heads.compile(keras.optimizers.SGD(0.1, momentum=0.5), model_utils.MemberHuber([1.0] * 4))
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=kill)
    sizes = {"epochs": EPOCHS, "batch_size": BATCH, "seed": seed}
    train(heads, [X], [y[:, None]], sample_weight=sample_weight, callbacks=[watch], **sizes)


@pytest.fixture(scope="module")
def work(parquet):
    """Give (network, shares, arguments of encode, the folder of the shares)."""
    rows, role, _, fitted, _ = prepared(parquet, 2, weight="b")
    scale = model_utils.TargetScale(0.0, 1.0, -99.0, 99.0)
    network = model_utils.create_nn_model(fitted.width, model_utils.Recipe(), scale, seed=1)
    return (
        network,
        rows.shares,
        (fitted, role, roles.weights(rows.table).mean()),
        rows.keep,
    )


def losses_of_one_process(network, shares, encode):
    """Train on the minibatches that the workers share, as one process would."""
    heads = model_utils._heads(copy.deepcopy(network))
    heads.compile(keras.optimizers.SGD(0.1, momentum=0.5), model_utils.MemberHuber([1.0] * 4))
    data = [tuple(map(np.array, share.rows().encode(*encode))) for share in shares]
    losses, blocks = [], 2  # of at most 400 rows of each worker
    for epoch in range(EPOCHS):
        total = n_rows = 0
        generators = [np.random.default_rng((SEED, epoch, rank)) for rank in (0, 1)]
        for block in range(blocks):
            parts = []
            for values, rng in zip(data, generators, strict=True):
                n = len(values[0])
                rows = slice(n * block // blocks, n * (block + 1) // blocks)
                order = rng.permutation(len(values[0][rows]))
                parts.append([each[rows][order] for each in values])
            steps = round(sum(len(y) for _, y, _ in parts) / BATCH)
            for step in range(steps):
                cut = [
                    slice(len(y) * step // steps, len(y) * (step + 1) // steps) for _, y, _ in parts
                ]
                X, z, w = (
                    np.concatenate([part[i][c] for part, c in zip(parts, cut, strict=True)])
                    for i in range(3)
                )
                z, w = z[:, None].astype(np.float32), w.astype(np.float32)
                total += float(heads.loss(z, heads(X), sample_weight=w)) * len(X)
                n_rows += len(X)
                heads.train_on_batch(X, z, sample_weight=w)
        assert n_rows == sum(len(y) for _, y, _ in data)
        losses.append(total / n_rows)
    return losses


def test_two_workers_have_the_losses_of_one_process(work, tmp_path):
    network, shares, encode, _ = work
    sizes = [len(share.rows().encode(*encode)[1]) for share in shares]
    assert sizes[0] != sizes[1]
    expected = losses_of_one_process(network, shares, encode)
    options = (copy.deepcopy(network), shares, encode, None)
    history = engine.train(train_by_sgd, tmp_path / "training", *options, seed=SEED)
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-5)
    assert expected[-1] < expected[0] / 2
    again = engine.train(train_by_sgd, tmp_path / "training", *options, seed=SEED)
    assert again.history == history.history  # what was done is not done again


def test_killed_worker_is_started_again_and_nothing_is_lost(work, tmp_path):
    network, shares, encode, _ = work
    expected = losses_of_one_process(network, shares, encode)
    options = (copy.deepcopy(network), shares, encode, tmp_path / "killed")
    history = engine.train(train_by_sgd, tmp_path / "training", *options, seed=SEED)
    assert (tmp_path / "killed").exists()
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-5)


def test_interrupted_script_leaves_no_process_of_ray_behind(parquet, tmp_path):
    command = [sys.executable, str(ROOT / "mlflow_monitoring.py"), "--workers", "2"]
    command += ["--data", str(parquet), "--target", "y", "--epochs", "40"]
    err = tmp_path / "err"
    with err.open("w") as file:
        script = subprocess.Popen(command, cwd=tmp_path, stderr=file, stdout=file)
    try:
        seen, end = set(), time.monotonic() + 180  # a busy machine takes more than one minute
        while not any("RayTrainWorker" in words for _, words in seen):
            assert script.poll() is None, err.read_text()
            assert time.monotonic() < end
            seen |= processes_below(script.pid)
            time.sleep(0.2)
        script.send_signal(signal.SIGINT)
        assert script.wait(60) == 130, err.read_text()
    finally:
        script.kill()
    end = time.monotonic() + 60
    while left := {pid for pid, _ in seen} & running():
        assert time.monotonic() < end, left
        time.sleep(0.2)


def running():
    """Return the numbers of all processes but those that ended and are not yet collected."""
    found = subprocess.run(["ps", "-eo", "pid,stat"], capture_output=True, text=True).stdout
    return {line.split()[0] for line in found.splitlines() if not line.split()[1].startswith("Z")}


def processes_below(parent):
    """Return (number, command line) of all children of a process, and of theirs."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    lines = [line.split(maxsplit=2) for line in found.splitlines()[1:]]
    below = {str(parent)}
    for pid, of, _ in sorted(lines, key=lambda line: int(line[0])):
        below |= {pid} if of in below else set()
    return {(pid, words) for pid, _, words in lines if pid in below - {str(parent)}}
