"""Claims about watching.py: an error without labels is estimated, kept, and checked once they come.

The simulations stand for a model whose errors grow along x, on files that lie elsewhere on x.
"""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from toolkit import cli, evidence, roles, watching
from toolkit.comparison import Interval
from toolkit.report import Evidence
from toolkit.words import format_amount

TARGET = "montant_pret"


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """Grow 30 trees instead of 100: nothing here is about their number, and much time is theirs."""
    forest = partial(watching.RandomForestRegressor, n_estimators=30)
    monkeypatch.setattr(watching, "RandomForestRegressor", forest)


def model():
    """Make a model that predicts 10 x of rows with x, z and y."""
    network = SimpleNamespace(predict_on_batch=lambda X: 10 * X[:, :1])
    schema = SimpleNamespace(target=SimpleNamespace(name="y"), features=("x", "z"))
    transform = {"transform": lambda rows: rows[["x", "z"]].to_numpy(np.float32)}
    preprocessor = SimpleNamespace(schema=schema, **transform)
    return SimpleNamespace(network=network, preprocessor=preprocessor, roles=None, card={})


def rows(rng, n_rows, low=0.0, high=1.0, bias=0.0):
    """Draw rows whose noise grows along x; `bias` is what the model does not know of z."""
    x, z = rng.uniform(low, high, n_rows), rng.uniform(-1, 1, n_rows)
    noise = rng.normal(0, 0.2 + 2 * x)
    return pd.DataFrame({"x": x, "z": z, "y": 10 * x + bias * np.sign(z) + noise})


def judged(held_out, file, role=None):
    found, parent = Evidence(), model()
    parent.roles = role
    held = {} if held_out is None else {"old": held_out}
    work = SimpleNamespace(parent=parent, rows=SimpleNamespace(file=file, held_out=held))
    return watching.judge(work, found)


@pytest.mark.parametrize(("low", "high", "sign"), [(0.6, 1, 1), (0, 0.4, -1), (0, 1, 0)])
def test_estimate_moves_as_the_error_does_and_its_range_covers_it(low, high, sign):
    hits, moves = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        known, file = rows(rng, 300), rows(rng, 200, low, high)
        (X, errors, _), (X_file, _, w) = (
            watching.errors_of(model(), each) for each in (known, file)
        )
        found, usual = watching.estimate(X, errors, X_file, w), np.abs(errors).mean()
        measured = np.abs(file["y"] - 10 * file["x"]).mean()
        hits.append(found.low <= measured <= found.high)
        moves.append(found.estimate - usual)
        assert usual == pytest.approx(np.abs(known["y"] - 10 * known["x"]).mean(), rel=1e-5)
    assert np.mean(hits) >= 0.85
    if sign:
        assert (np.sign(moves) == sign).all()
        assert np.median(np.abs(moves)) > 0.3
    assert sign or abs(np.mean(moves)) < 0.05


def test_range_reaches_as_far_as_the_last_file_was_from_its_estimate():
    expected = Interval(10.0, 8.0, 12.0)
    assert watching.widened(expected, []) == expected
    assert watching.widened(expected, [{"surprise": 3.0}, {}]) == expected  # of the last one
    assert watching.widened(expected, [{"surprise": 1.1}]) == expected
    assert watching.widened(expected, [{}, {"surprise": 2.0}]) == Interval(10.0, 8.0, 20.0)
    assert watching.widened(expected, [{"surprise": 0.5}]) == Interval(10.0, 5.0, 12.0)


def test_estimate_is_for_the_rows_that_count():
    rng = np.random.default_rng(0)
    known, file = rows(rng, 400), rows(rng, 300)
    X, errors, _ = watching.errors_of(model(), known)
    hard = file["x"].to_numpy() > 0.7
    weighted = file.assign(**{roles.WEIGHT: np.where(hard, 1.0, 1e-9)})
    found = watching.estimate(X, errors, *watching.errors_of(model(), weighted)[::2])
    X_hard, _, w = watching.errors_of(model(), file[hard])
    alone = watching.estimate(X, errors, X_hard, w)
    assert vars(found) == pytest.approx(vars(alone), rel=1e-6)
    _, told, _ = judged(weighted, weighted)
    mae = np.abs(file["y"] - 10 * file["x"])[hard].mean()
    assert f"the MAE is {format_amount(mae)}, " in told
    assert f", on held-out rows {format_amount(mae)};" in told


def test_harder_rows_are_worth_a_retraining_without_labels_and_rows_as_before_are_not():
    alarms = {"harder": 0, "as before": 0}
    for seed in range(15):
        rng = np.random.default_rng(seed)
        known = rows(rng, 400)
        for name, low in (("harder", 0.7), ("as before", 0.0)):
            good, told, _ = judged(known, rows(rng, 300, low).assign(y=np.nan))
            assert told.startswith(
                "a retraining looks worthwhile: " if good else "a retraining is not"
            )
            alarms[name] += good
    assert alarms["harder"] >= 14
    assert alarms["as before"] <= 1


def test_with_labels_it_is_worthwhile_where_the_model_errs_in_a_way_that_can_be_learnt():
    alarms = {"changed": 0, "as before": 0}
    for seed in range(15):
        rng = np.random.default_rng(seed)
        known = rows(rng, 400)
        for name, bias in (("changed", 1.5), ("as before", 0.0)):
            alarms[name] += judged(known, rows(rng, 300, bias=bias))[0]
    assert alarms["changed"] == 15
    assert alarms["as before"] <= 1


def test_what_only_the_known_groups_have_in_common_is_not_worth_a_retraining():
    alarms = {"groups": 0, "rows alone": 0, "all alike": 0}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(40), 10)
        file = rows(rng, 400).assign(z=rng.uniform(-1, 1, 40)[group], **{roles.GROUP: group})
        file["y"] += rng.normal(0, 3, 40)[group]
        role = roles.Roles(1, 2**63, group="customer")
        alarms["groups"] += judged(None, file, role)[0]
        alarms["rows alone"] += judged(None, file)[0]
        file["y"] += 9 * file["z"]
        alarms["all alike"] += judged(None, file, role)[0]
    assert alarms == {"groups": 0, "rows alone": 6, "all alike": 6}
    assert judged(None, file.assign(**{roles.GROUP: 1}), role)[0] is False  # of a single one


def test_error_that_grew_but_cannot_be_learnt_is_not_worth_a_retraining():
    rng = np.random.default_rng(0)
    file = rows(rng, 2_000)
    file["y"] = 10 * file["x"] + rng.laplace(0, 5, 2_000)
    good, told, expected = judged(rows(rng, 400), file)
    assert np.abs(file["y"] - 10 * file["x"]).mean() > expected.high
    assert "learning its errors would change it by +" in told
    assert not good


def test_few_rows_teach_nothing_about_their_errors():
    rng = np.random.default_rng(0)
    assert "learning" not in judged(rows(rng, 400), rows(rng, 1))[1]
    assert "learning" in judged(rows(rng, 400), rows(rng, 40))[1]


def test_without_held_out_rows_nothing_is_estimated_and_nothing_fails():
    rng = np.random.default_rng(0)
    good, told, found = judged(None, rows(rng, 30).assign(y=np.nan))
    assert good is None  # a schedule may go on and retrain
    assert told == (
        "whether a retraining is worthwhile is unknown: no row is held out to estimate the error by"
    )
    assert np.isnan(found.estimate)
    assert judged(rows(rng, 2), rows(rng, 2))[0] is False


def test_groups_that_are_held_out_are_no_drift_and_no_new_categories():
    rng = np.random.default_rng(0)
    groups = pd.Series([f"g{i % 10}" for i in range(400)])
    tables = [roles.hashed(rows(rng, 400).assign(g=groups), groups) for _ in range(2)]
    role = roles.Roles.choose(tables[0], 0.3, seed=1, group="g")
    old, new = (role.assign(table, generation) for generation, table in enumerate(tables))
    parent = model()
    parent.preprocessor.schema.kinds = {"g": "categorical", "x": "numeric"}
    parent.card, parent.uri, parent.roles = {}, "models:/m", role
    terminal = cli.Terminal(quiet=True)
    found, _ = evidence.look(terminal, "new.csv", parent, roles.gather(new, old, 0))
    assert not found.drift["drifted"].any()
    assert (found.drift["new_categories"] == "").all()
    assert found.prequential_rows == 400


# --- on real runs


def tags_of(run):
    return {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}


@pytest.fixture
def batch(workshop):
    """Write 300 new rows without target, and the same ones, in another order, with it."""
    table = pd.read_csv(ROOT / "data" / "df_new.csv").iloc[400:700]
    table.drop(columns=TARGET).to_csv(workshop.folder / "batch.csv", index=False)
    table[::-1].to_csv(workshop.folder / "labels.csv", index=False)
    return table


def test_file_without_target_is_watched_in_a_finished_run_and_an_estimate_is_checked_later(
    workshop, batch, trained
):
    flags = ["--dry-run", "--exit-code", "--data"]
    code = workshop.retrain(*flags, "batch.csv", "--json")
    assert workshop.err == ""
    told, run = json.loads(workshop.out), workshop.run
    assert code == (0 if told["worthwhile"] else 3)
    assert (run.info.run_id, run.info.status) == (told["run_id"], "FINISHED")
    tags = tags_of(run)
    assert tags["phase"] == "monitoring"
    assert tags["parent_model_uri"] == trained.uri
    assert run.data.tags["mlflow.note.content"] == told["verdict"]
    kinds = workshop.load(trained.uri).preprocessor.schema.kinds
    estimated = {"estimated/MAE", "estimated/MAE_low", "estimated/MAE_high"}
    assert set(run.data.metrics) == estimated | {f"drift/{name}" for name in kinds}
    assert run.data.metrics == told["metrics"]
    distances = {f"drift/{line['column']}": line["distance"] for line in told["drift"]}
    assert distances.items() <= run.data.metrics.items()

    code = workshop.retrain(*flags, "labels.csv")
    last = workshop.out.splitlines()[-1]
    assert (code, last.startswith("a retraining looks worthwhile: ")) in [(0, True), (3, False)]
    low, high = (run.data.metrics[f"estimated/MAE_{end}"] for end in ("low", "high"))
    now = workshop.run
    is_hit = low <= now.data.metrics["prequential/MAE"] <= high
    assert now.data.metrics["estimated/hit"] == is_hit
    assert f"was a {'hit' if is_hit else 'miss'}\n" in workshop.out
    assert now.data.metrics.keys() - run.data.metrics.keys() == {
        "prequential/MAE",
        "estimated/hit",
        f"drift/{TARGET}",
    }
    assert tags_of(now)["features_sha256"] == tags["features_sha256"]
    assert now.data.metrics["estimated/MAE"] == pytest.approx(run.data.metrics["estimated/MAE"])


@pytest.mark.usefixtures("no_training")
def test_retraining_says_that_an_estimate_was_missed_and_other_rows_have_none(workshop, batch):
    assert workshop.retrain("--dry-run", "--data", "batch.csv", "--quiet") == 0, workshop.err
    wrong = batch.assign(**{TARGET: (40_000 - batch[TARGET]).clip(500)})
    wrong.to_csv(workshop.folder / "wrong.csv", index=False)
    flags = ["--epochs", 1, "--no-controls", "--data"]
    assert workshop.retrain(*flags, "wrong.csv") == 0, workshop.err
    assert "was a miss\n" in workshop.out
    assert workshop.run.data.tags["phase"] == "retraining"
    assert workshop.run.data.metrics["estimated/hit"] == 0
    others = pd.read_csv(ROOT / "data" / "df_new.csv").iloc[700:800]
    others.to_csv(workshop.folder / "others.csv", index=False)
    uri = ["--model-uri", "models:/loan-amount/1"]
    assert workshop.retrain("--dry-run", *uri, "--data", "others.csv") == 0, workshop.err
    assert "was a" not in workshop.out
    assert "estimated/hit" not in workshop.run.data.metrics


def test_estimate_of_a_file_with_rows_seen_before_is_not_judged_on_its_new_ones(workshop, batch):
    old = pd.read_csv(ROOT / "data" / "df_old.csv").head(100)
    rows = pd.concat([old, batch])
    for table in (rows.drop(columns=TARGET), rows):
        table.to_csv(workshop.folder / "rows.csv", index=False)
        assert workshop.retrain("--dry-run", "--data", "rows.csv") == 0, workshop.err
    assert f"on the {len(batch)} new rows" in workshop.out
    assert "was a" not in workshop.out


def test_training_still_needs_the_target(workshop, batch):
    assert workshop.retrain("--data", "batch.csv") == 2
    assert f"batch.csv has no column '{TARGET}' to learn" in workshop.err
    assert len(workshop.runs()) == 1


@pytest.mark.usefixtures("no_training")
def test_drift_of_columns_of_any_name_is_logged(fresh_place):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"prix (€)/m²": rng.normal(size=120), "..": rng.normal(size=120)})
    table["y"] = table.sum(axis=1)
    table.to_csv(fresh_place.folder / "old.csv", index=False)
    assert fresh_place.train("--data", "old.csv", "--target", "y", "--epochs", 1) == 0
    table.iloc[:, :2].sample(frac=1, random_state=0).assign(**{"..": 5.5}).to_csv(
        fresh_place.folder / "new.csv", index=False
    )
    assert fresh_place.retrain("--dry-run", "--data", "new.csv") == 0, fresh_place.err
    assert {"drift/prix ____m²", "drift/__"} <= fresh_place.run.data.metrics.keys()


def test_rows_that_are_noisier_the_less_they_count_are_estimated_by_what_counts():
    hits = plain_hits = alarms = 0
    for seed in range(15):
        rng = np.random.default_rng(seed)

        def exposed(n_rows, rng=rng):
            table, w = rows(rng, n_rows, 0.5, 0.5), rng.lognormal(0, 1, n_rows)
            noise = rng.normal(0, 1, n_rows) / np.sqrt(w)
            return table.assign(y=10 * table["x"] + noise, **{roles.WEIGHT: w})

        known, file = exposed(400), exposed(400)
        good, _, expected = judged(known, file.assign(y=np.nan))
        error = np.abs(file["y"] - 10 * file["x"])
        hits += expected.low <= np.average(error, weights=file[roles.WEIGHT]) <= expected.high
        alarms += good
        plain = file.assign(y=np.nan, **{roles.WEIGHT: 1.0})  # a look may go without weights
        good, _, expected = judged(known, plain)
        plain_hits += expected.low <= error.mean() <= expected.high
        alarms += good
    assert min(hits, plain_hits) >= 12
    assert alarms <= 2
