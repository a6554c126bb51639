"""Claims about streaming.py: rows in chunks and on disk give what the same rows in memory give."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import memory
import streaming
import tabular
from memory import HELD_OUT, TRAIN, Memory, assign_roles
from model_utils import Watch, create_nn_model, split, target_scale, train_model
from streaming import DiskRows, Source
from tabular import UserError

N_ROWS, ROOT = 700, Path(streaming.__file__).parent


@pytest.fixture
def small_chunks(monkeypatch):
    """Make chunks, parts and samples so small that a few hundred rows fill many of them."""
    monkeypatch.setattr(streaming, "CHUNK", 64)
    monkeypatch.setattr(streaming, "PART_BYTES", 20_000)
    monkeypatch.setattr(memory, "BLOCK", 100)


@pytest.fixture(scope="module")
def table():
    rows = pd.read_csv(ROOT / "data" / "df_old.csv").head(N_ROWS)
    rng = np.random.default_rng(0)
    for name in ("age", "poids", "region", "smoker"):  # values go missing
        rows[name] = rows[name].astype(object).where(rng.random(N_ROWS) > 0.1)
    rows["constant"] = 7
    return pd.concat([rows, rows[:40]], ignore_index=True)  # rows that stand twice


@pytest.fixture(params=["csv", "parquet", "folder"])
def data(request, table, tmp_path):
    """Write the table in one of the forms that are read in chunks; return its path."""
    if request.param == "csv":
        table.to_csv(tmp_path / "rows.csv", index=False)
        return str(tmp_path / "rows.csv")
    (tmp_path / "parts").mkdir()
    for number, start in enumerate((0, 300)):
        part = table[start : start + 300 + 1000 * number]
        arrow = pa.Table.from_pandas(
            part.astype({"age": float, "poids": float}), preserve_index=False
        )
        pq.write_table(arrow, tmp_path / "parts" / f"{number}.parquet")
    if request.param == "folder":
        return str(tmp_path / "parts")
    pq.write_table(pq.read_table(tmp_path / "parts"), tmp_path / "rows.parquet")
    return str(tmp_path / "rows.parquet")


@pytest.fixture
def schema(table):
    return tabular.infer_schema(table, drop=["nom", "prenom"])[0]


@pytest.fixture
def prepared(data, schema, tmp_path, small_chunks):
    """Prepare the same rows in memory and in chunks: (table, hashes, roles), (source, …)."""
    rows = tabular.read_rows(data)[0]
    y = tabular.check_target(rows, schema.target)
    conformed = tabular.conform(rows, schema).assign(**{schema.target: y})
    source = Source(data, tmp_path)
    hashes = source.hashes(schema)
    roles = assign_roles(hashes, Memory(), test_size=0.2, seed=5)
    return conformed, source, hashes, roles


def stream_of(source, schema, roles, sample=None):
    sample = np.arange(source.n_rows) if sample is None else sample
    return source.survey(schema, roles.train, sample)


# --- the same as in memory


def test_chunks_hold_the_rows_of_the_file_in_order(prepared, schema):
    conformed, source, *_ = prepared
    chunks = list(source.conformed("", schema))
    assert len(chunks) > 5
    together = pd.concat([c.astype(dict.fromkeys(schema.categorical, "str")) for c, _ in chunks])
    pd.testing.assert_frame_equal(together, conformed.drop(columns=schema.target))
    np.testing.assert_array_equal(np.concatenate([y for _, y in chunks]), conformed[schema.target])


def test_hashes_and_roles_are_those_of_the_table_in_memory(prepared, schema):
    conformed, _, hashes, roles = prepared
    expected = tabular.row_hashes(conformed.drop(columns=schema.target), conformed[schema.target])
    np.testing.assert_array_equal(hashes, expected)
    in_memory = assign_roles(expected, Memory(), test_size=0.2, seed=5)
    np.testing.assert_array_equal(roles.train, in_memory.train)
    np.testing.assert_array_equal(roles.held_out, in_memory.held_out)
    assert roles.counts["set_aside"] > 0  # the rows that stand twice


def test_split_order_is_that_of_split():
    train, test, *_ = split(np.arange(501), np.arange(501), 0.3, 9)
    order = memory.split_order(501, 9)
    np.testing.assert_array_equal(order[: len(test)], test)
    np.testing.assert_array_equal(order[len(test) :], train)


def test_statistics_are_those_that_scikit_learn_finds_in_all_rows_at_once(prepared, schema):
    conformed, source, _, roles = prepared
    stream, _ = stream_of(source, schema, roles)
    ours = stream.totals.preprocessor()
    expected = tabular.fit_preprocessor(conformed.loc[roles.train], schema)
    for name, _, _ in expected.transformers:
        for step, fitted in expected.named_transformers_[name].named_steps.items():
            own = ours.named_transformers_[name].named_steps[step]
            for attribute in ("statistics_", "mean_", "var_", "scale_", "n_samples_seen_"):
                if not hasattr(fitted, attribute):
                    continue
                value, wanted = getattr(own, attribute), getattr(fitted, attribute)
                if np.asarray(wanted).dtype == object:
                    np.testing.assert_array_equal(value, wanted)
                else:
                    np.testing.assert_allclose(value, wanted, rtol=1e-12)
            if hasattr(fitted, "categories_"):
                for value, wanted in zip(own.categories_, fitted.categories_, strict=True):
                    np.testing.assert_array_equal(value, wanted)
    np.testing.assert_allclose(
        ours.transform(tabular._sklearn_frame(conformed)),
        expected.transform(tabular._sklearn_frame(conformed)),
        rtol=1e-6,
        atol=1e-6,
    )


def test_target_scale_is_that_of_all_targets_at_once(prepared, schema):
    conformed, source, _, roles = prepared
    stream, _ = stream_of(source, schema, roles)
    expected = target_scale(conformed.loc[roles.train, schema.target])
    ours = target_scale(stream.totals)
    assert (ours.low, ours.high) == (expected.low, expected.high) == (500, 40_000)
    np.testing.assert_allclose([ours.mean, ours.scale], [expected.mean, expected.scale], rtol=1e-12)


def test_sample_holds_the_rows_asked_for_with_their_numbers(prepared, schema):
    conformed, source, _, roles = prepared
    sample = np.array([0, 63, 64, 65, 300, len(conformed) - 1])
    _, rows = stream_of(source, schema, roles, sample)
    pd.testing.assert_frame_equal(rows, conformed.loc[sample], check_index_type=False)


# --- rows on disk


@pytest.fixture
def on_disk(prepared, schema):
    """Encode the training rows in memory, (X, y), and on disk."""
    conformed, source, _, roles = prepared
    stream, _ = stream_of(source, schema, roles)
    preprocessor = stream.totals.preprocessor()
    rows = stream.encode(schema, preprocessor, batch_size=32, seed=0)
    train = conformed.loc[roles.train]
    return tabular.encode(train, preprocessor), train[schema.target].to_numpy(np.float32), rows


def test_rows_on_disk_are_the_encoded_training_rows_by_number(on_disk):
    X, y, rows = on_disk
    assert len(rows) == len(X)
    assert rows.shape == X.shape
    numbers = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_array_equal(rows.take(numbers)[0], X[numbers])
    np.testing.assert_array_equal(rows.take(numbers)[1], y[numbers])


def test_every_epoch_passes_every_row_once_in_another_order(on_disk):
    X, y, rows = on_disk
    orders = []
    for epoch in range(2):
        parts = list(rows.parts(np.random.default_rng(epoch)))
        assert len(parts) > 2
        assert {part[0].shape for part in parts} == {(rows.rows_per_part, X.shape[1])}
        assert all(len(chosen) % 32 == 0 for *_, chosen in parts[:-1])
        seen = np.concatenate([np.column_stack([a, b])[chosen] for a, b, chosen in parts])
        orders.append(seen)
        expected = np.column_stack([X, y])
        np.testing.assert_array_equal(seen[np.lexsort(seen.T)], expected[np.lexsort(expected.T)])
    assert not np.array_equal(*orders)


def test_rows_of_a_part_come_from_all_over_the_file(tmp_path):
    rows = DiskRows(tmp_path, 100_000, 127, 32, seed=0)
    assert rows.rows_per_part < 70_000
    for start in range(0, 100_000, 5_000):
        numbers = np.arange(start, start + 5_000, dtype=np.float32)
        rows.write(np.repeat(numbers[:, None], 127, 1), numbers)
    assert abs(rows.part(0)[1].mean() - 50_000) < 2_000


@pytest.mark.parametrize("data", ["parquet"], indirect=True)
def test_training_on_parts_makes_the_updates_of_the_same_rows_in_memory(on_disk):
    _, _, rows = on_disk
    order = [np.random.default_rng([4, epoch]) for epoch in range(2)]
    parts = [part for rng in order for part in rows.parts(rng)]
    model, twin = (create_nn_model(rows.shape[1], learning_rate=1e-2, seed=1) for _ in range(2))
    _, history = train_model(model, rows, None, epochs=2, batch_size=32, seed=4)
    assert len(history.history["loss"]) == 2
    half = len(parts) // 2
    for epoch in (parts[:half], parts[half:]):
        X = np.concatenate([a[chosen] for a, _, chosen in epoch])
        y = np.concatenate([b[chosen] for _, b, chosen in epoch])
        _, expected = train_model(twin, X, y, epochs=1, batch_size=32, shuffle=False)
    for ours, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history.history["loss"][-1], expected.history["loss"][0], rtol=1e-5)


def test_parts_of_an_epoch_are_told_as_parts_of_it(on_disk):
    _, _, rows = on_disk
    told = []
    watch = Watch(lambda *values: told.append(values))
    model = create_nn_model(rows.shape[1], seed=1)
    train_model(model, rows, None, epochs=2, batch_size=32, seed=4, callbacks=[watch])
    done, epochs, losses, n_rows = zip(*told, strict=True)
    n_parts = -(-len(rows) // rows.rows_per_part)
    assert len(done) == 2 * n_parts
    assert done[n_parts - 1 :: n_parts] == (1, 2)
    assert np.diff(done).min() > 0
    assert done[0] == rows.rows_per_part / len(rows)
    assert set(epochs) == {2}
    assert set(n_rows) == {len(rows)}
    assert np.isfinite(losses).all()


# --- the scripts


@pytest.mark.usefixtures("no_figures")
def test_streamed_training_and_retraining_give_the_bits_of_those_in_memory(
    fresh_place, files, monkeypatch
):
    # All rows fit in one part here: in several they would meet in other minibatches.
    monkeypatch.setattr(streaming, "CHUNK", 64)
    scores = {}
    for how in ("--no-stream", "--stream"):
        flags = [how, "--epochs", 3, "--model-name", how.strip("-")]
        assert fresh_place.train("--data", files / "old.csv", *flags) == 0, fresh_place.err
        assert fresh_place.retrain("--data", files / "new.csv", *flags) == 0, fresh_place.err
        child = fresh_place.load(f"models:/{how.strip('-')}/2")
        scores[how] = [run.data.metrics for run in fresh_place.runs()[:2]], child
    (first, ours), (second, theirs) = scores["--stream"], scores["--no-stream"]
    for ours_in_run, theirs_in_run in zip(first, second, strict=True):
        assert ours_in_run == pytest.approx(theirs_in_run, rel=1e-4)
    assert ours.card["lineage"][1]["trained_on"] == theirs.card["lineage"][1]["trained_on"]
    pd.testing.assert_frame_equal(ours.memory.rows, theirs.memory.rows)
    pd.testing.assert_frame_equal(ours.memory.seen, theirs.memory.seen)


@pytest.mark.usefixtures("no_figures")
def test_retraining_in_many_parts_trains_on_no_held_out_row_and_leaves_no_rows_behind(
    workshop, files, small_chunks, monkeypatch
):
    monkeypatch.setattr(streaming, "SAMPLE_ROWS", 50)
    flags = ["--data", files / "new.csv", "--epochs", 3, "--memory-rows", 30, "--stream"]
    assert workshop.retrain(*flags) == 0, workshop.err
    held_out = workshop.load("models:/loan-amount/2").memory.hashes(HELD_OUT)
    assert len(held_out) == 80 + 68 + 0  # of 400 old and 340 new rows
    child = workshop.load("models:/loan-amount/2").memory
    assert len(child.part(TRAIN)) == len(child.part(HELD_OUT)) == 30
    assert not set(held_out) & set(child.hashes(TRAIN))
    assert list((workshop.folder / "models").glob(".rows-*")) == []
    metrics = workshop.run.data.metrics
    assert 0 < metrics["new/MAE_retrained"] < metrics["new/MAE_mean"]


@pytest.mark.usefixtures("no_figures")
def test_streamed_retraining_without_replay_gives_the_scores_of_the_one_in_memory(
    workshop, files, monkeypatch
):
    monkeypatch.setattr(streaming, "CHUNK", 64)
    scores = []
    for how in ("--stream", "--no-stream"):
        flags = ["--data", files / "new.csv", "--epochs", 2, "--replay", 0, "--promote", "never"]
        assert workshop.retrain(*flags, how) == 0, workshop.err
        scores.append(workshop.run.data.metrics)
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


# --- bad input, limits


def test_error_in_a_later_chunk_names_the_line_of_the_file(tmp_path, table, schema, small_chunks):
    table = table.astype({"taille": object})
    table.loc[500, "taille"] = "grand"
    table.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match=r"'grand' in line 502 "):
        Source(str(tmp_path / "rows.csv"), tmp_path)


def test_target_missing_in_a_later_chunk_names_the_line(tmp_path, table, schema, small_chunks):
    table = table.astype({"montant_pret": float})
    table.loc[[300, 301], "montant_pret"] = np.nan
    table.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"2 of 64 rows .* \(lines 302, 303\)"):
        Source(str(tmp_path / "rows.parquet"), tmp_path).hashes(schema)


def test_text_that_looks_like_a_number_in_a_later_chunk_stays_the_text_it_is(
    tmp_path, small_chunks
):
    codes = ["A1"] * 70 + ["01"] * 70
    pd.DataFrame({"code": codes, "y": range(140)}).to_csv(tmp_path / "rows.csv", index=False)
    chunks = Source(str(tmp_path / "rows.csv"), tmp_path).chunks()
    assert [value for chunk in chunks for value in chunk["code"]] == codes


def test_too_many_categories_in_later_chunks_are_refused(tmp_path, small_chunks, monkeypatch):
    monkeypatch.setattr(tabular, "MAX_CATEGORIES", 20)
    codes = ["a", "b"] * 40 + [f"c{i}" for i in range(200)]
    pd.DataFrame({"c": codes, "y": np.arange(280.0)}).to_parquet(tmp_path / "rows.parquet")
    source = Source(str(tmp_path / "rows.parquet"), tmp_path)
    with pytest.raises(UserError, match=r"column 'c' has \d+ categories; expected at most 20"):
        source.survey(tabular.Schema("y", (), ("c",)), np.arange(280), np.arange(2))


def test_rows_that_do_not_fit_on_the_disk_are_refused_before_anything_is_written(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(UserError, match=r"rows on disk need 1\.9 GiB .* only 0\.0 GiB are free"):
        DiskRows(tmp_path, 10**7, 48, 32, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_size_of_a_table_decides_whether_it_is_read_in_chunks(tmp_path, table, monkeypatch):
    table.to_csv(tmp_path / "rows.csv", index=False)
    table.astype({"age": float, "poids": float}).to_parquet(tmp_path / "rows.parquet")
    for name, size in (
        ("rows.csv", (tmp_path / "rows.csv").stat().st_size * 10),
        ("rows.parquet", len(table) * table.shape[1] * 64),
    ):
        monkeypatch.setattr(streaming, "IN_MEMORY_BYTES", size)
        assert not streaming.is_large(str(tmp_path / name))
        monkeypatch.setattr(streaming, "IN_MEMORY_BYTES", size - 1)
        assert streaming.is_large(str(tmp_path / name))


def test_folder_of_a_killed_process_is_removed_by_the_next_and_that_of_a_live_one_is_not(
    tmp_path, launch
):
    code = "import sys, time; sys.path.insert(0, sys.argv[1]); import streaming; "
    code += "from pathlib import Path\nwith streaming.workspace(Path(sys.argv[2])): time.sleep(60)"
    processes = [launch("-c", code, ROOT, tmp_path) for _ in range(2)]
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob(".rows-*/lock"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    processes[0].process.send_signal(signal.SIGKILL)
    processes[0].wait()
    with streaming.workspace(tmp_path) as own:
        assert own.is_dir()
        assert len(list(tmp_path.glob(".rows-*"))) == 2
    assert not own.exists()
