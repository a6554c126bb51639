"""Claims about README.md, README.fr.md and docs/METRICS.md: commands, output, a true glossary."""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MODEL, ROOT, STORE_VARIABLES

from toolkit.language import spoken, translate

README, FRENCH, METRICS = (
    (ROOT / name).read_text("utf-8") for name in ("README.md", "README.fr.md", "docs/METRICS.md")
)
SETUP = [
    "python3 -m venv .venv",
    ".venv/bin/pip install -q -r requirements.txt",
]
TESTS = ".venv/bin/python -m pytest -q"  # what runs at this moment
FIRST = [".venv/bin/python mlflow_monitoring.py", ".venv/bin/python mlflow_retrain.py"]
SHORT = {
    "mlflow_monitoring.py": ["--epochs", "1"],
    "mlflow_retrain.py": ["--epochs", "1", "--no-controls"],
}
# A shell as a new terminal has it: the environment of the tests is not on its PATH.
OWN = Path(sys.executable).parent
BARE_PATH = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != OWN)
BARE = (
    "import os, sys; os.environ['PATH'] = sys.argv[1]; os.execvp('bash', ['bash', *sys.argv[2:]])"
)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(text):
    """Split the shell blocks into commands, without comments."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    return [part for line in lines for part in re.sub(r" +# .*", "", line).split(" && ")]


# --- commands ------------------------------------------------------------------------------------


class Walk:
    """Follows the README's commands in a folder that holds the data and an environment."""

    def __init__(self, folder, launch):
        self.folder, self.launch, self.servers, self.out = folder, launch, {}, {}
        self.todo = [command for command in commands(README) if command not in (*SETUP, TESTS)]

    def follow(self):
        for number, command in enumerate(self.todo):
            if number == len(FIRST):  # a champion is there: servers start while others run
                self.start_servers()
            if command.startswith(".venv/bin/python "):
                script, *flags = shlex.split(command)[1:]
                short = SHORT.get(script, []) if number >= len(FIRST) else []
                self.script(command, script, [*flags, *short])
            elif command.startswith("curl "):
                self.post(command)
            elif command not in self.servers:
                pytest.fail(f"README.md has a command that no test runs: {command}")
        for command, server in self.servers.items():
            server.ready("/ping" if " serve " in command else "/health")

    def start_servers(self):
        env = {"MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        for command in self.todo:
            if re.search(r"mlflow (ui|models serve)", command):
                line = command.replace("5001", "{port}")
                line += "" if "{port}" in line else " --port {port}"
                words = ["-c", BARE, BARE_PATH, "-c", line]
                self.servers[command] = self.launch(*words, folder=self.folder, **env)

    def script(self, command, script, flags):
        module = importlib.import_module(Path(script).stem)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = module.main(flags)
        assert code == 0, (command, err.getvalue())
        self.out[command] = out.getvalue()

    def post(self, command):
        server = next(s for c, s in self.servers.items() if " serve " in c).ready("/ping")
        line = command.replace("http://127.0.0.1:5001", server.url)
        if shutil.which("curl"):
            shell = ["bash", "-c", line.replace("curl ", "curl -s ", 1)]
            answer = subprocess.run(shell, capture_output=True, text=True, timeout=60).stdout
        else:
            words = shlex.split(line)
            kind = words[words.index("-H") + 1].removeprefix("Content-Type: ")
            body = Path(words[words.index("--data-binary") + 1].removeprefix("@"))
            answer = server.post("/invocations", body.read_text("utf-8"), kind)[1]
        self.served = json.loads(answer)["predictions"]


@pytest.fixture(scope="module")
def walk(launch, empty_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    shutil.copytree(ROOT / "data", folder / "data")
    shutil.copy(empty_store, folder / "mlflow.db")
    (folder / ".venv").symlink_to(sys.prefix)
    size = np.arange(240.0) % 37
    town = np.where(size % 3 > 0, "A", "B")
    rows = pd.DataFrame({"internal": 1, "size": size, "town": town, "price": size * 3 + 1})
    rows["size"] += np.arange(240) / 1000  # or equal rows would come again
    rows[:120].to_csv(folder / "my.csv", index=False)
    rows[120:].to_csv(folder / "my_new.csv", index=False)
    walk = Walk(folder, launch)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        for name in STORE_VARIABLES:
            patch.delenv(name, raising=False)
        patch.syspath_prepend(ROOT / "data")
        patch.setattr("toolkit.tracking.log_figures", lambda figures: None)
        walk.follow()
        yield walk


def test_every_command_works_in_the_order_of_the_readme_with_path_untouched(walk):
    assert len(walk.servers) == 2
    again = next(out for command, out in walk.out.items() if "--json" in command)
    assert json.loads(again)["verdict_kind"] == "nothing_new"
    assert "version 2 is champion" in walk.out[".venv/bin/python mlflow_retrain.py --rollback"]


def words(text):
    """Reduce an output to its words: numbers, identifiers and paths differ from run to run."""
    text = re.sub(r"models:/\S+|\S*/(?=mlflow|python)", "", text)
    return [line for line in (re.findall(r"[^\W\d_]+", line) for line in text.splitlines()) if line]


def test_output_shown_first_is_what_the_command_prints(walk):
    shown, printed = blocks(README, "text")[0], walk.out[FIRST[-1]]
    assert words(printed) == words(shown)
    assert not re.search(r"[\x1b\r]", printed)  # a pipe gets neither colours nor a live line


def test_rows_are_scored_alike_by_file_by_http_and_in_python(walk):
    values = {}
    exec(blocks(README, "python")[0].replace("model.predict", "found = model.predict"), values)
    assert len(values["found"]) == 2000
    np.testing.assert_allclose(values["found"], walk.served, rtol=1e-6)
    np.testing.assert_allclose(values["found"], pd.read_csv("predictions.csv")["prediction"])


def test_first_screen_holds_the_set_up_and_test_commands_that_ci_runs():
    assert commands(README)[:7] == [*SETUP, *FIRST, *SETUP, TESTS]
    assert not [c for c in commands(README)[7:] if c in (*SETUP, TESTS)]
    assert "grep -m1 -- '-m pytest' README.md" in (ROOT / ".ci" / "run").read_text("utf-8")
    with_tests = next(line for line in README.splitlines() if "-m pytest" in line)
    assert with_tests == " && ".join([*SETUP, TESTS])


# --- French --------------------------------------------------------------------------------------


def test_french_readme_has_the_same_commands_and_the_same_output():
    assert commands(FRENCH) == commands(README)
    assert blocks(FRENCH, "python") == blocks(README, "python")
    with spoken("fr"):  # a line is a sentence, or the cells of a table
        told = [translate(cell) for cell in re.split(" {2,}|\n", blocks(README, "text")[0])]
    assert blocks(FRENCH, "text")[0].split() == " ".join(told).split()
    picture = r"!\[[^]]*\]\((metriques/[^)]*)\)"
    assert re.search(picture, FRENCH)[1] == re.search(picture, README)[1]


def test_french_readme_answers_the_same_questions_and_names_the_same_flags():
    assert FRENCH.count("\n## ") == README.count("\n## ")
    ours = README.split("\n## Results")[0]  # the tables of the results are in English only
    named, ours_named = (set(re.findall("`(--[a-z-]+)", text)) for text in (FRENCH, ours))
    assert ours_named <= named


# --- glossary ------------------------------------------------------------------------------------


def glossary(header):
    """Read the keys of a table of the README as patterns."""
    table = re.search(rf"^\| {header} \|.*?(\n\n|\Z)", METRICS, re.M | re.S)[0]
    keys = [
        key
        for line in table.strip().splitlines()[2:]
        for key in re.findall("`(.*?)`", line.split("|")[1])
    ]
    names = {}
    for name in ("PART", "SCORE", "MODEL"):
        values = re.findall("`(.*?)`", re.search(rf"{name} is (.*?)\.", METRICS, re.S)[1])
        names[name] = f"({'|'.join(values)})"
    names["COLUMN"] = "[^/]+"
    return {key: re.sub("|".join(names), lambda m: names[m[0]], key) for key in keys}


@pytest.mark.parametrize("kind", ["metric", "tag"])
def test_glossary_names_every_key_that_is_logged_and_no_other(walk, kind):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{walk.folder}/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [run.data for run in client.search_runs(ids)]
    logged = {key for run in runs for key in (run.metrics if kind == "metric" else run.tags)}
    if kind == "tag":
        logged |= set(client.get_registered_model(MODEL).tags)
    explained = glossary(kind)
    unknown = {key for key in logged if not any(re.fullmatch(p, key) for p in explained.values())}
    assert not unknown, f"README.md does not explain {unknown}"
    unused = {k for k, p in explained.items() if not any(re.fullmatch(p, key) for key in logged)}
    unused.discard("mlflow.source.git.commit")  # where git and a clone are at hand
    assert not unused, f"README.md explains what nothing logs: {unused}"
