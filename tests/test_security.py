"""Claims about hostile input, end to end: tables, names and artifacts that would do more than tell.

That pickles, Lambda layers and foreign types are refused is claimed in test_model_store.py, that no
personal name is stored in test_mlflow_monitoring.py.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import model_store
from tabular import UserError

ROOT = Path(__file__).resolve().parents[1]
MARKUP = "<img src=x onerror=alert(1)>"
FORMULAS = ["=1+1", "+1+cmd", "-1-cmd", "@SUM(A1)"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, trained, empty_store):
    """Train and retrain on tables whose texts, names and unit are attacks."""
    place = type(trained)(tmp_path_factory.mktemp("hostile") / "inside", experiment="../../out")
    place.folder.mkdir()
    shutil.copy(empty_store, place.folder / "mlflow.db")
    rng = np.random.default_rng(3)
    for name in ("old", "new"):
        rows = pd.DataFrame(
            {
                "=cmd()": rng.normal(size=300),
                MARKUP: rng.choice([*FORMULAS, MARKUP], 300),
                "../../escape": rng.choice(["../../x", "a|b"], 300),
            }
        )
        rows["y"] = rows["=cmd()"] + (name == "new") + rng.normal(size=300)
        rows.to_csv(place.folder / f"{name}.csv", index=False)
    flags = ["--epochs", 2, "--model-name", "a <b>"]
    first = ["--data", "old.csv", "--target", "y", "--unit", MARKUP]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracking.log_figures", lambda figures: None)
        assert place.train(*first, *flags) == 0, place.err
        assert place.retrain("--data", "new.csv", *flags, "--no-controls") == 0, place.err
    return place


def test_exported_tables_hold_no_cell_that_a_spreadsheet_would_run(hostile):
    cells = []
    for name in ("groups.csv", "drift.csv"):
        (file,) = hostile.folder.rglob(name)
        table = pd.read_csv(file, dtype=str)
        cells += [*table.columns, *table["column"], *table.get("group", [])]
    assert [cell for cell in cells if str(cell).startswith("'")]  # there were some
    assert not [cell for cell in cells if str(cell).startswith(tuple("=+-@"))]


def test_markup_in_names_categories_and_units_is_text_wherever_it_is_shown(hostile):
    (report,) = hostile.folder.rglob("report.md")
    versions = hostile.client.search_model_versions()
    models = hostile.client.search_registered_models()
    shown = [run.data.tags["mlflow.note.content"] for run in hostile.runs()]
    shown += [each.description for each in (*versions, *models)]
    for text in (report.read_text("utf-8"), *shown):
        assert "<img" not in text
        assert "<b>" not in text
    assert "img src" in report.read_text("utf-8")


def test_names_do_not_lead_out_of_the_folder(hostile):
    assert [path.name for path in hostile.folder.parent.iterdir()] == ["inside"]
    names = {path.name for path in hostile.folder.iterdir()}
    assert names == {"mlflow.db", "mlruns", "models", "old.csv", "new.csv"}


@pytest.fixture
def artifact(trained, tmp_path):
    folder = tmp_path / "artifact"
    shutil.copytree(trained.artifact(trained.uri), folder)
    return folder


def change_card(artifact, **changes):
    file = artifact / "artifacts" / "card.json"
    card = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(card | changes), "utf-8")


def test_retraining_runs_our_code_and_not_the_copy_in_the_model(artifact, trained, tmp_path):
    mark = tmp_path / "mark"
    code = artifact / "artifacts" / "tabular.py"
    code.write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n{code.read_text()}")
    files = {n: model_store.sha256(artifact / "artifacts" / n) for n in ["tabular.py"]}
    change_card(artifact, files=files)
    place = trained.copy(tmp_path / "place")
    flags = ["--model-uri", artifact, "--data", ROOT / "data" / "df_new.csv", "--dry-run"]
    assert place.retrain(*flags) == 0, place.err
    assert not mark.exists()
    exec(compile(code.read_text(), "tabular.py", "exec"), {"__name__": "planted"})
    assert mark.exists()  # it would have run


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "..", "a/../../secret"])
def test_file_names_in_a_card_do_not_reach_outside_of_the_model(artifact, tmp_path, name):
    (tmp_path / "secret").write_text("mine")
    hash_of_it = {name: model_store.sha256(tmp_path / "secret")}
    change_card(artifact, files=hash_of_it)
    with pytest.raises(UserError, match="is incomplete"):
        model_store.load_model(str(artifact), tmp_path / "none.pkl")
