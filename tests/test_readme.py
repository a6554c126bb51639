"""Claims about README.md and README.fr.md: commands that work, a true glossary, a true picture."""

import ast
import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
README, FRENCH = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.fr.md"))
SETUP = [["python3", "-m", "venv", ".venv"]]
SETUP += [[".venv/bin/pip", "install", "-q", "-r", "requirements.txt"]]
TESTS = [".venv/bin/python", "-m", "pytest", "-q"]  # what runs at this moment


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(text):
    """Split the shell blocks into commands, each a list of words, without comments."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    parts = [part for line in lines for part in re.sub(r" +# .*", "", line).split(" && ")]
    return [shlex.split(part) for part in parts]


# --- commands


class Walk:
    """Follows the README's commands in a folder that holds only the data."""

    def __init__(self, folder, launch):
        self.folder, self.launch, self.servers, self.out = folder, launch, {}, {}
        self.todo = [c for c in commands(README) if c not in (*SETUP, TESTS)]

    def follow(self):
        for number, command in enumerate(self.todo):
            program = command[0].removeprefix(".venv/bin/")
            if number == 1:  # a model is there: let the servers start while other commands run
                self.start_servers()
            if program == "python":
                # The two on the first screen as they stand; the others shortened.
                trains = number > 1 and command[1] != "mlflow_score.py"
                self.script(command[1:], ["--epochs", "1"] if trains else [])
            elif tuple(command) in self.servers:
                pass  # they are looked at last
            elif command[:3] == [".venv/bin/mlflow", "models", "predict"]:
                self.predict(command[1:])
            elif program == "curl":
                self.post(command[1:])
            else:
                pytest.fail(f"README.md has a command that no test runs: {shlex.join(command)}")
        for command, server in self.servers.items():
            server.ready("/ping" if "serve" in command else "/health")

    def start_servers(self):
        for command in self.todo:
            if command[0] == ".venv/bin/mlflow" and ("ui" in command or "serve" in command):
                words = ["-m", "mlflow", *("{port}" if w == "5001" else w for w in command[1:])]
                words += [] if "{port}" in words else ["--port", "{port}"]
                self.servers[tuple(command)] = self.launch(
                    *words,
                    folder=self.folder,
                    MLFLOW_WORKERS="1",
                    MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
                )

    def script(self, words, flags):
        module, out, err = (
            importlib.import_module(Path(words[0]).stem),
            io.StringIO(),
            io.StringIO(),
        )
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = module.main([*words[1:], *flags])
        assert code == 0, (words, err.getvalue())
        self.out.setdefault(shlex.join(words), out.getvalue())

    def predict(self, words):
        from click.testing import CliRunner
        from mlflow.cli import cli as mlflow_command

        answer = CliRunner().invoke(mlflow_command, words)
        assert answer.exit_code == 0, answer.output
        self.scored = json.loads(answer.stdout[answer.stdout.index("{") :])["predictions"]

    def post(self, words):
        server = next(s for c, s in self.servers.items() if "serve" in c).ready("/ping")
        kind = words[words.index("-H") + 1].removeprefix("Content-Type: ")
        body = Path(words[words.index("--data-binary") + 1].removeprefix("@")).read_text("utf-8")
        path = words[0].removeprefix("http://127.0.0.1:5001")
        status, answer = server.post(path, body, kind)
        assert status == 200, answer
        self.served = json.loads(answer)["predictions"]


@pytest.fixture(scope="module")
def walk(launch, empty_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    shutil.copytree(ROOT / "data", folder / "data")
    shutil.copy(empty_store, folder / "mlflow.db")
    size = np.arange(120.0)
    rows = pd.DataFrame({"id": size, "size": size % 37, "town": "A", "price": size % 37 * 3 + 1})
    rows[:60].to_csv(folder / "my.csv", index=False)
    rows[60:].to_csv(folder / "my_new.csv", index=False)
    walk = Walk(folder, launch)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        patch.setattr("tracking.log_figures", lambda figures: None)
        walk.follow()
        yield walk


def test_every_command_works_in_the_order_of_the_readme(walk):
    assert [w[-1] for w in walk.servers] == ["ui", "5001"]
    assert json.loads(walk.out["mlflow_retrain.py --json"])["model_name"] == "loan-amount"


def words(text):
    """Reduce an output to its words: numbers, identifiers and paths differ from run to run."""
    text = re.sub(r"models:/\S+|\S*/(?=mlflow|python)", "", text)
    return [line for line in (re.findall(r"[^\W\d_]+", line) for line in text.splitlines()) if line]


def test_output_shown_first_is_what_the_command_prints(walk):
    shown, printed = blocks(README, "text")[0], walk.out["mlflow_retrain.py"]
    assert words(printed)[-len(words(shown)) :] == words(shown)
    assert not re.search(r"[\x1b\r]", printed)  # a pipe gets neither colours nor a live line


def test_rows_are_scored_alike_by_file_by_http_and_in_python(walk):
    values = {}
    exec(blocks(README, "python")[0].replace("model.predict", "found = model.predict"), values)
    assert len(values["found"]) == 2000
    assert walk.scored == pytest.approx(walk.served)
    np.testing.assert_allclose(walk.scored, values["found"])


def test_set_up_and_test_commands_are_those_that_ci_runs():
    found = [c for c in commands(README) if c in (*SETUP, TESTS)]
    assert found == [*SETUP, *SETUP, TESTS]
    lines = [line for block in blocks(README, "bash") for line in block.splitlines()]
    ours = next(line for line in README.splitlines() if "-m pytest" in line)
    assert ours in lines
    assert "grep -m1 -- '-m pytest' README.md" in (ROOT / ".ci" / "run").read_text()


# --- French


def test_french_readme_has_the_same_commands_and_the_same_output():
    assert commands(FRENCH) == commands(README)
    for language in ("text", "sh", "python"):
        assert blocks(FRENCH, language) == blocks(README, language)
    picture = r"!\[[^]]*\]\((metriques/[^)]*)\)"
    assert re.search(picture, FRENCH)[1] == re.search(picture, README)[1]
    assert FRENCH.count("\n## ") >= 8


# --- glossary


def glossary(header):
    """Read the keys of a table of the README as patterns."""
    table = re.search(rf"^\| {header} \|.*?\n\n", README, re.M | re.S)[0]
    keys = [
        key
        for line in table.strip().splitlines()[2:]
        for key in re.findall("`(.*?)`", line.split("|")[1])
    ]
    scores = re.findall("`(.*?)`", re.search(r"SCORE is (.*?)\.", README, re.S)[1])
    names = {"PART": r"(new|old|generation_\d+)", "SCORE": f"({'|'.join(scores)})"}
    return {key: re.sub("PART|SCORE", lambda m: names[m[0]], re.escape(key)) for key in keys}


@pytest.mark.parametrize("kind", ["metric", "tag"])
def test_glossary_names_every_key_that_is_logged_and_no_other(trained, retrained, kind):
    runs = [place.run.data for place in (trained, retrained)]
    logged = {key for run in runs for key in (run.metrics if kind == "metric" else run.tags)}
    if kind == "tag":
        logged |= set(retrained.client.get_registered_model("loan-amount").tags)
    explained = glossary(kind)
    unknown = {key for key in logged if not any(re.fullmatch(p, key) for p in explained.values())}
    assert not unknown, f"README.md does not explain {unknown}"
    unused = {k for k, p in explained.items() if not any(re.fullmatch(p, key) for key in logged)}
    assert not unused, f"README.md explains what nothing logs: {unused}"


# --- files and picture


def imports(path):
    """List the project's modules that a file imports, anywhere but for type hints."""
    names, todo = set(), [ast.parse(path.read_text("utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
        todo += ast.iter_child_nodes(node)
    return names & {file.stem for file in ROOT.glob("*.py")}


@pytest.fixture(scope="module")
def graph():
    return {file.stem: imports(file) for file in ROOT.glob("*.py")}


def layers():
    section = README[README.index("## The files") :]
    return re.findall(r"`(\w+)\.py`", re.search(r"\| file.*?`data/", section, re.S)[0])


def test_no_file_imports_one_above_it_in_the_list_of_files(graph):
    order = layers()
    assert sorted(set(order)) == sorted(graph)
    place = {name: order.index(name) for name in order}
    upward = {(a, b) for a, names in graph.items() for b in names if place[b] <= place[a]}
    assert not upward


def test_arrows_of_the_picture_are_the_imports_that_follow_from_no_other(graph):
    def below(name):
        return graph[name].union(*(below(other) for other in graph[name]))

    expected = {
        (name, other)
        for name, others in graph.items()
        for other in others
        if not any(other in below(between) for between in others - {other})
    }
    drawn = re.findall(r"(\w+) --> (\w+)", blocks(README, "mermaid")[0])
    assert sorted(drawn) == sorted(expected)


@pytest.mark.parametrize("name", ["README.md", "README.fr.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_within_the_project_lead_to_files(name):
    links = re.findall(r"\]\(([\w./-]+)\)", (ROOT / name).read_text("utf-8"))
    assert not [link for link in links if not (ROOT / link).exists()]
