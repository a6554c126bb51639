"""Claims about docs/AUTOMATION.md: shell lines that work, a valid workflow, examples that load."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from test_readme import BARE, BARE_PATH, SETUP, blocks

import mlflow_retrain
from toolkit import cli

PAGE = (ROOT / "docs" / "AUTOMATION.md").read_text("utf-8")
LOOK, RETRAIN = blocks(PAGE, "bash")[0].split("\n", 1)
WORKFLOW = yaml.safe_load(blocks(PAGE, "yaml")[0])
STEPS = WORKFLOW["jobs"]["retrain"]["steps"]
EXAMPLES = dict(zip(("airflow", "prefect", "dagster"), blocks(PAGE, "python"), strict=True))


def short(line):
    """Make training short."""
    return line.replace("mlflow_retrain.py ", "mlflow_retrain.py --epochs 1 --no-controls ")


@pytest.fixture(scope="module")
def clone(tmp_path_factory, trained, files, launch, spare):
    """Make a folder that looks like a clone with a champion, and the files that the page names."""
    folder = trained.copy(tmp_path_factory.mktemp("clone")).folder
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(spare.python)
    (folder / "mlflow_retrain.py").symlink_to(ROOT / "mlflow_retrain.py")
    (folder / "incoming").mkdir()
    rows = pd.read_csv(files / "new.csv")
    rows[:150].to_csv(folder / "march.csv", index=False)
    rows[150:].to_csv(folder / "incoming" / "april.csv", index=False)

    def shell(lines, path=BARE_PATH):
        words = ["-c", BARE, path, "-c", short(lines)]
        return launch(*words, folder=folder)

    return SimpleNamespace(folder=folder, shell=shell, place=type(trained)(folder))


@pytest.fixture(scope="module")
def weekly(clone):
    """Run the lines of cron's script, one part after the other: (look, retraining)."""
    look = clone.shell(LOOK)
    look.wait()
    retrained = clone.shell(RETRAIN)
    retrained.wait()
    return look, retrained


def test_look_before_a_retraining_says_by_its_code_whether_one_pays(weekly):
    assert weekly[0].wait() in (0, cli.KEPT), weekly[0].err
    assert (weekly[0].out, weekly[0].err) == ("", "")


def test_script_for_cron_works_with_path_untouched_and_its_code_is_the_verdict(weekly, clone):
    told = json.loads((clone.folder / "verdict.json").read_text("utf-8"))
    code, words = weekly[1].wait(), weekly[1].out
    assert code == (0 if told["promoted"] else cli.KEPT), weekly[1].err
    assert words == (
        "new champion: restart what serves it\n" if code == 0 else "the champion stays\n"
    )
    assert clone.place.champion() == (told["version"] if told["promoted"] else "1")


def test_script_for_cron_hands_an_error_on(clone, weekly):
    failed = clone.shell(
        RETRAIN.replace("march.csv", "none.csv").replace("verdict.json", "no.json")
    )
    assert failed.wait() == 2
    assert failed.out == "the retraining failed with code 2\n"
    assert failed.err.startswith("error: ")


def test_cron_line_has_five_fields_and_runs_the_script():
    assert re.match(r"(\S+ ){4}\S+  cd /srv/loans && bash weekly\.sh ", blocks(PAGE, "cron")[0])


def test_workflow_has_the_form_that_github_asks_for():
    assert WORKFLOW[True] == {"pull_request": {"paths": ["incoming/**"]}}  # YAML reads `on` so
    assert WORKFLOW["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert WORKFLOW["jobs"]["retrain"]["runs-on"] == "ubuntu-latest"
    assert all(len({"uses", "run"} & set(step)) == 1 for step in STEPS)
    assert not set().union(*STEPS) - {"uses", "run", "with", "env"}
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", s["uses"]) for s in STEPS if "uses" in s)
    assert not any("${{" in step.get("run", "") for step in STEPS)  # no text of others in a shell


def test_workflow_sets_up_as_the_readme_does_and_its_lines_work(clone, weekly):
    set_up, retrain, comment = (step["run"] for step in STEPS if "run" in step)
    assert set_up == " && ".join(SETUP)
    process = clone.shell(retrain)
    assert process.wait() == 0, process.err
    assert "kept champion, " in process.out
    programs = clone.folder / "bin"
    programs.mkdir()
    (programs / "gh").write_text('#!/bin/sh\n[ "$4" = --body-file ] && cat "$5"\n')
    (programs / "gh").chmod(0o755)
    commented = clone.shell(comment, f"{programs}{os.pathsep}{BARE_PATH}")
    assert commented.wait() == 0, commented.err
    assert commented.out.startswith("# Retraining: kept champion")


@pytest.mark.skipif(not shutil.which("actionlint"), reason="actionlint is not installed")
def test_workflow_passes_actionlint(tmp_path):
    file = tmp_path / "retrain.yml"
    file.write_text(blocks(PAGE, "yaml")[0], "utf-8")
    answer = subprocess.run(["actionlint", str(file)], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


@pytest.fixture
def example(monkeypatch):
    """Give the function that runs an example with a stand-in for its package."""

    def run(name, **package):
        stand_in = MagicMock(**package)
        modules = {name, *re.findall(rf"(?:from|import) ({name}[\w.]*)", EXAMPLES[name])}
        for module in modules | {m.rpartition(".")[0] for m in modules} - {""}:
            monkeypatch.setitem(sys.modules, module, stand_in)
        values = {"__name__": "example"}
        exec(EXAMPLES[name], values)
        return values, stand_in

    return run


@pytest.fixture
def answered(monkeypatch, weekly, clone):
    """Answer a scheduler's command with what the script printed; note the command."""
    commands, text = [], (clone.folder / "verdict.json").read_text("utf-8")

    def answer(words, **options):
        commands.append(words)
        return SimpleNamespace(stdout=text)

    monkeypatch.setattr(subprocess, "run", answer)
    return commands, json.loads(text)


def check(words):
    assert words[:2] == [".venv/bin/python", "mlflow_retrain.py"]
    return cli.parse(mlflow_retrain.Settings, words[2:], "mlflow_retrain.py", "")


def test_airflow_skips_what_follows_when_the_champion_stays(example):
    values, package = example("airflow")
    options = package.BashOperator.call_args_list[0].kwargs
    assert options["skip_on_exit_code"] == cli.KEPT
    assert options["bash_command"] == values["COMMAND"]
    assert check(values["COMMAND"].split()).exit_code


def test_prefect_flow_returns_whether_the_model_was_promoted(example, answered):
    commands, told = answered
    values, _ = example("prefect", flow=lambda **_: lambda function: function)
    assert values["retrain"]("april.csv") == told["promoted"]
    given = check(commands[0])
    assert (given.data, given.json) == ("april.csv", True)


def test_dagster_asset_keeps_verdict_and_promotion(example, answered):
    commands, told = answered
    values, package = example("dagster", asset=lambda function: function)
    values["champion"]()
    kept = package.MaterializeResult.call_args.kwargs["metadata"]
    assert kept == {key: told[key] for key in ("verdict", "promoted")}
    assert check(commands[0]).json
