"""Measure how large the house is: lines, and what a plain training and retraining run of it.

python benchmarks/house.py

Functions are counted by `sys.setprofile` while a script's `main` runs on the sample files: named
functions and methods of ours, imports included. Their lines are those from `def` to the end, each
counted once.
"""

import ast
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import common

HEART = ("mlflow_monitoring.py", "mlflow_retrain.py", "model_utils.py")
SAMPLES = {common.TRAIN: "df_old.csv", common.RETRAIN: "df_new.csv"}
LONGEST, DEEPEST = 40, 3
BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.Match)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def product() -> list[Path]:
    """List the files of the product: tests, benchmarks and data aside."""
    return [*sorted(common.ROOT.glob("*.py")), *sorted((common.ROOT / "toolkit").rglob("*.py"))]


def n_lines(files: list[Path]) -> int:
    """Count lines, blank ones and comments included."""
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def functions(file: Path) -> Iterator[Function]:
    """Yield every named function of a file, nested ones and methods included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def length(function: Function) -> int:
    """Count the lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def nesting(node: ast.AST) -> int:
    """Count how deep blocks lie in each other; `elif` is as deep as its `if`."""
    deepest = 0
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, Function):
                continue
            is_elif = isinstance(node, ast.If) and name == "orelse" and isinstance(child, ast.If)
            own = isinstance(child, BLOCKS) and not is_elif
            deepest = max(deepest, own + nesting(child))
    return deepest


def trace(script: str, folder: Path) -> list[tuple[str, int]]:
    """Run a script in this process; return (file, first line) of all code that ran."""
    ran: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            ran.add(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        common.call(script, folder, "--data", common.DATA / SAMPLES[script])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return [(code.co_filename, code.co_firstlineno) for code in ran]


def traced(script: str, folder: Path) -> tuple[int, int]:
    """Trace a script in a process of its own; return functions of ours that ran, their lines."""
    command = [sys.executable, __file__, script, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    ran = {(Path(file), line) for file, line in json.loads(done.stdout.splitlines()[-1])}
    n_functions, lines = 0, set()
    for file in product():
        for function in functions(file):
            first = min([function.lineno, *(each.lineno for each in function.decorator_list)])
            if (file, first) in ran:
                n_functions += 1
                lines |= {(file, function.lineno + i) for i in range(length(function))}
    return n_functions, len(lines)


def measures() -> Iterator[tuple[str, int, int, int]]:
    """Yield (measure, figure, bar of the first stage, bar of the round)."""
    files = product()
    yield "lines of the product", n_lines(files), 2_800, 4_200
    heart = [common.ROOT / name for name in HEART]
    yield "lines of both trainings and model_utils.py", n_lines(heart), 850, 1_000
    with tempfile.TemporaryDirectory() as place:
        for script, words, bars in (
            (common.TRAIN, "first training", (90, 120, 1_300, 1_700)),
            (common.RETRAIN, "retraining", (130, 170, 1_800, 2_400)),
        ):
            n_functions, lines = traced(script, Path(place))
            yield f"functions run by a plain {words}", n_functions, *bars[:2]
            yield f"lines of the functions run by a plain {words}", lines, *bars[2:]
    every = [(file, function) for file in files for function in functions(file)]
    long = [f"{file.name}:{f.lineno} {f.name}" for file, f in every if length(f) > LONGEST]
    deep = [f"{file.name}:{f.lineno} {f.name}" for file, f in every if nesting(f) > DEEPEST]
    print(*(f"long or deep: {place}" for place in {*long, *deep}), sep="\n", file=sys.stderr)
    yield f"functions of more than {LONGEST} lines", len(long), 0, 0
    yield f"functions nested deeper than {DEEPEST}", len(deep), 0, 0
    yield "Python files at the top level", len(list(common.ROOT.glob("*.py"))), 4, 4


def main() -> None:
    """Print the measures and their bars."""
    if sys.argv[1:]:
        print(json.dumps(trace(sys.argv[1], Path(sys.argv[2]))))
        return
    rows = [
        (name, f"{value:,}", common.held(value, "≤", first), common.held(value, "≤", last))
        for name, value, first, last in measures()
    ]
    print(common.markdown(["measure", "now", "first bar", "bar of the round"], rows))


if __name__ == "__main__":
    main()
