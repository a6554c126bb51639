"""Claims about the layout: what lies where, who imports whom, how long a function may be."""

import ast
import importlib
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = [ROOT / name for name in ("mlflow_monitoring.py", "mlflow_retrain.py", "mlflow_score.py")]
TOOLKIT = sorted((ROOT / "toolkit").glob("*.py"))
HEART = ROOT / "model_utils.py"
PRODUCT = [*TOP, HEART, *TOOLKIT]
NESTING = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef)


def by_name(file):
    return str(file.relative_to(ROOT))


def imports_of(file):
    """List the modules that a file imports anywhere in it, and how deep relative ones go."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = "." * node.level + (node.module or "")
            found += [inside, *(f"{inside}.{alias.name}" for alias in node.names)]
    return {name.lstrip(".").split(".")[0] for name in found} | set(found)


def functions_of(file):
    tree = ast.parse(file.read_text("utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def depth(node):
    """Count the blocks of statements within each other; an elif stands beside its if."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and [child] == node.orelse and isinstance(child, ast.If)
        deepest = max(deepest, depth(child) - is_elif)
    return deepest + isinstance(node, NESTING)


def test_four_modules_lie_at_the_top():
    assert sorted(ROOT.glob("*.py")) == sorted([*TOP, HEART])


def test_nothing_in_the_toolkit_knows_the_heart_or_the_scripts():
    for file in TOOLKIT:
        assert not imports_of(file) & {HEART.stem, *(script.stem for script in TOP)}, file.name


def test_what_travels_inside_models_imports_nothing_that_does_not():
    travels = {"errors", "columns", "encoding", "ranges"}
    for name in travels:
        own = {module for module in imports_of(ROOT / "toolkit" / f"{name}.py") if module[0] == "."}
        assert {module.lstrip(".").split(".")[0] for module in own} <= travels, name


def test_heart_is_machine_learning_alone():
    assert not imports_of(HEART) & {"mlflow", "argparse", "rich", "sqlalchemy", "random"}
    tree = ast.parse(HEART.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print"
            assert "set_random_seed" not in called, "callers own global seeds"
            assert not called.endswith(("random.seed", "random.set_seed")), called
    public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert public >= {
        *("preprocessing", "split", "create_nn_model", "train_model"),
        *("model_predict", "evaluate_performance"),
    }


@pytest.mark.parametrize("file", PRODUCT, ids=by_name)
def test_functions_have_at_most_40_lines_and_3_blocks_within_each_other(file):
    for function in functions_of(file):
        start = min([function.lineno, *(each.lineno for each in function.decorator_list)])
        assert function.end_lineno - start < 40, function.name
        assert depth(function) <= 1 + 3, function.name


def test_depth_is_counted_as_people_do():
    flat = "def f():\n if a: pass\n elif b: pass\n elif c: pass\n else: pass"
    deep = "def f():\n for x in y:\n  if a:\n   with b:\n    pass"
    assert [depth(ast.parse(code).body[0]) for code in (flat, deep)] == [2, 4]


@pytest.fixture
def imported_anew():
    """Let modules of ours be imported once more, and put those of the other tests back."""

    def remove():
        own = {HEART.stem, "toolkit", *(script.stem for script in TOP)}
        names = [name for name in sys.modules if name.split(".")[0] in own]
        return {name: sys.modules.pop(name) for name in names}

    before = remove()
    yield
    remove()
    sys.modules.update(before)


@pytest.mark.usefixtures("imported_anew")
def test_everything_imports_where_there_is_no_fcntl_and_no_page_size(monkeypatch):
    """As on Windows and macOS: what is POSIX alone may be used, but not needed for an import."""

    def refuse(name):
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", lambda n: refuse(n) if "PHYS" in str(n) else 4096)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for file in (HEART, *TOP):
        importlib.import_module(file.stem)
    for file in TOOLKIT:
        importlib.import_module(f"toolkit.{file.stem}".removesuffix(".__init__"))


def test_command_line_starts_without_heavy_libraries(launch):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"import {', '.join(script.stem for script in TOP)}\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'sklearn', 'pandas', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    process = launch("-c", code)
    assert process.wait() == 0, process.err
    assert process.out.strip() == "[]"


def test_requirements_name_what_is_imported():
    listed = (ROOT / "requirements.txt").read_text("utf-8").lower()
    for package in ("mlflow", "tensorflow", "keras", "scikit-learn", "pandas", "joblib"):
        assert package in listed, package
