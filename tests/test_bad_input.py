"""Claims about wrong input on the real command line: one helpful line, exit code 2, no trace left.

Every case writes what it needs into a folder, calls a script's `main` there and must find the
store, its champion and `models/` as they were.
"""

import contextlib
import http.server
import importlib
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import keras
import mlflow
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

ROOT = Path(__file__).resolve().parents[1]
TRAIN, RETRAIN, SCORE = "mlflow_monitoring", "mlflow_retrain", "mlflow_score"
BOTH = (TRAIN, RETRAIN)
TARGET = "montant_pret"


def csv(change=lambda rows: rows, **options):
    """Write loans, changed, as data.csv."""

    def write(folder, rows):
        change(rows).to_csv(folder / "data.csv", index=False, **options)

    return write


def raw(content):
    """Write bytes, or what a function makes of the bytes of the right file, as data.csv."""

    def write(folder, rows):
        right = rows.to_csv(index=False).encode()
        made = content(right) if callable(content) else content
        (folder / "data.csv").write_bytes(made)

    return write


def put(column, *places, value):
    """Put a value into some lines of a column; the header is line 1."""

    def change(rows):
        rows = rows.astype({column: object})
        rows.loc[[place - 2 for place in places], column] = value
        return rows

    return change


def parquet(cut=None, name="data.csv", **columns):
    def write(folder, rows):
        rows.assign(**columns).to_parquet(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:cut])

    return write


def nothing(folder, rows):
    pass


def folder_of_none(folder, rows):
    (folder / "data.csv").mkdir()


# What was passed (scripts, what writes data.csv) and what the line on stderr must say of it.
FILES = {
    "missing": (
        BOTH,
        nothing,
        "cannot read data.csv: there is no such file; expected CSV, Parquet",
    ),
    "folder without tables": (BOTH, folder_of_none, "the folder holds no table; expected CSV, Par"),
    "empty": (BOTH, raw(b""), "is empty; expected a header line and rows"),
    "byte order mark only": (BOTH, raw(b"\xef\xbb\xbf"), "is empty; expected a header line"),
    "header only": (BOTH, csv(lambda rows: rows.head(0)), "no rows; expected a header and rows"),
    "one row": ([TRAIN], csv(lambda rows: rows.head(1)), "has 1 rows; expected at least 20: add"),
    "nine rows": ([TRAIN], csv(lambda rows: rows.head(9)), "has 9 rows; expected at least 20: add"),
    "one row more": (
        [RETRAIN],
        csv(lambda rows: rows.head(1)),
        "at least 2 to judge by, and others to train on: wait for",
    ),
    "binary": (BOTH, raw(b"\x89PNG\r\n\0\0\0"), "is a binary file; expected CSV, Parquet, JSON"),
    "truncated Parquet": (BOTH, parquet(cut=-2_000), "data.csv cannot be read as Parquet ("),
    "cut off in a line": (
        BOTH,
        raw(lambda b: b.rsplit(b",", 5)[0]),
        "line 61 has 8 fields, not 13); give every line as many",
    ),
    "ragged": (BOTH, raw(lambda b: b + b"1,2\n"), "line 62 has 2 fields, not 13); give every"),
    "column named twice": (
        BOTH,
        raw(lambda b: b.replace(b"taille", b"age", 1)),
        "two columns named 'age'; rename or remove one",
    ),
    "target missing": (
        BOTH,
        csv(lambda rows: rows.drop(columns=TARGET)),
        f"has no column '{TARGET}' to learn; ",
    ),
    "target text": (
        BOTH,
        csv(put(TARGET, 5, value="much")),
        f"column '{TARGET}' of data.csv holds 'much' in line 5; expected a number such as 1234.5",
    ),
    "target complex": (BOTH, csv(put(TARGET, 3, value=1 + 2j)), "holds '(1+2j)' in line 3"),
    "target constant": (
        [TRAIN],
        csv(lambda rows: rows.assign(**{TARGET: 7})),
        f"'{TARGET}' is 7 in every row of data.csv; expected a column that varies",
    ),
    "target with gaps": (
        BOTH,
        csv(put(TARGET, 4, 9, 30, value=None)),
        f"3 of 60 rows in data.csv have no finite '{TARGET}' (lines 4, 9, 30); expected",
    ),
    "target infinite": (
        BOTH,
        csv(put(TARGET, *range(2, 9), value="inf")),
        "holds 'inf' in lines 2, 3, 4, 5, 6 and 2 more; expected a number",
    ),
    "text in a number": (
        [RETRAIN],
        csv(put("age", *range(7, 20), value="old")),
        "column 'age' of data.csv holds 'old' in lines 7, 8, 9, 10, 11 and 8 more; expected a num",
    ),
    "number too large": (BOTH, csv(put("age", 5, value=1e300)), "holds '1e+300' in line 5; expec"),
    "empty column": (
        [TRAIN],
        csv(lambda rows: rows.assign(age=None)),
        "columns that are empty in every row: 'age'; expected values: fill them or leave them out",
    ),
    "nothing but names": (
        [TRAIN],
        csv(lambda rows: rows[["nom", "prenom", TARGET]]),
        "has no usable feature column beside the target 'montant_pret'; add columns, or keep one",
    ),
    "dates that read in two ways": (
        [TRAIN],
        csv(lambda rows: rows.assign(since=[f"0{1 + i % 9}/0{1 + i % 7}/2020" for i in range(60)])),
        "day or month first; say which with --date 'since=%d/%m/%Y' or",
    ),
    "column missing": (
        [RETRAIN],
        csv(lambda rows: rows.drop(columns="age")),
        "has no column 'age'; the model needs age, taille",
    ),
    "column renamed": (
        [RETRAIN],
        csv(lambda rows: rows.rename(columns={"age": "Age"})),
        "has no column 'age'; the model needs age, taille",
    ),
    "column extra": (
        [RETRAIN],
        csv(lambda rows: rows.assign(pets=1)),
        "'pets', which the model was not trained on; remove it, or train a new model",
    ),
    "number become text": (
        [RETRAIN],
        csv(lambda rows: rows.assign(age="old")),
        "column 'age' of data.csv holds 'old' in lines 2",
    ),
    "number become date": (
        [RETRAIN],
        parquet(age=pd.Timestamp("2026-01-02")),
        "column 'age' of data.csv holds '2026-01-02 00:00:00' in lines 1",
    ),
}
FLAGS = {
    "epochs 0": (BOTH, ["--epochs", "0"], "'0' was passed; expected a whole number of at least 1"),
    "epochs negative": (BOTH, ["--epochs", "-3"], "'-3' was passed; expected a whole number of"),
    "batch 0": (BOTH, ["--batch-size", "0"], "'0' was passed; expected a whole number of at least"),
    "test size 1": (BOTH, ["--test-size", "1"], "'1' was passed; expected a share between 0 and 1"),
    "test size tiny": ([TRAIN], ["--test-size", "0.001"], "59 rows to train on and 1 to score; ex"),
    "unknown flag": (BOTH, ["--epoch-s", "3"], "--epoch-s 3; did you mean --epochs? (see mlflow_"),
    "surrogate name": (
        BOTH,
        ["--model-name", "a\udcff"],
        "'a\\udcff' was passed; expected UTF-8 text",
    ),
    "surrogate experiment": (BOTH, ["--experiment", "\udcff"], "was passed; expected UTF-8 text"),
    "dropped unknown": ([TRAIN], ["--drop", "pets"], "'pets' is no feature column; the columns"),
    "target unknown": ([TRAIN], ["--target", "prix"], "has no column 'prix' to learn; its columns"),
    "resume nothing": (BOTH, ["--resume"], "no checkpoint of this command in models; expected one"),
    "old file store": (
        BOTH,
        ["--tracking-uri", "mlruns"],
        "mlruns cannot be used (The filesystem tracking backend",
    ),
    "no folder": (BOTH, ["--tracking-uri", "sqlite:///no/m.db"], "no/m.db cannot be used (No such"),
    "unreachable": (
        BOTH,
        ["--tracking-uri", "http://127.0.0.1:9"],
        "9 cannot be used (HTTP",
    ),
    "read-only models": (BOTH, ["--models-dir", "/sys/models"], "/sys/models; check the path, its"),
    "read-only store": (
        BOTH,
        ["--tracking-uri", "sqlite:////sys/m.db"],
        "sqlite:////sys/m.db cannot be used (Operation not permitted)",
    ),
    "model name": (
        BOTH,
        ["--model-name", "a/b"],
        "'a/b' was passed; expected a name without / and :",
    ),
    "no experiment": (BOTH, ["--experiment", " "], "' ' was passed; expected a name"),
    "kept unknown": (
        [TRAIN],
        ["--keep", "pets"],
        "--keep 'pets' is no feature column; the columns",
    ),
    "date of text": (
        [TRAIN],
        ["--date", "region"],
        "--date 'region' holds no dates that are recog",
    ),
    "number of text": ([TRAIN], ["--numeric", "region"], "column 'region' of data.csv holds "),
    "time of text": ([TRAIN], ["--time", "region"], "--time 'region' is no date or number among"),
    "weight unknown": ([TRAIN], ["--weight", "pets"], "data.csv has no column 'pets' of weights;"),
    "weight of text": ([TRAIN], ["--weight", "region"], "the weight 'region' of data.csv is '"),
    "group unknown": ([TRAIN], ["--group", "pets"], "has no column 'pets' of groups to hold out"),
    "query of a file": (BOTH, ["--query", "select 1"], "and a query belong together; expected a"),
    "network missing": (
        [TRAIN],
        ["--network", "no.py:f"],
        "'no.py:f' cannot be loaded (FileNotFou",
    ),
    "promote unknown": ([RETRAIN], ["--promote", "maybe"], "invalid choice: 'maybe'"),
    "approved unknown": (
        [RETRAIN],
        ["--approve", "99"],
        "version 99 of 'loan-amount' does not exist; exp",
    ),
    "approved empty": ([RETRAIN], ["--approve", ""], "'' was passed; expected the number of a"),
    "approved name": ([RETRAIN], ["--approve", "v1"], "'v1' was passed; expected the number of a"),
    "model empty": ([RETRAIN, SCORE], ["--model-uri", ""], "'' was passed; expected a URI"),
    "report in no folder": ([RETRAIN], ["--report", "no/a.md"], "in a folder that can be written"),
    "report for the kernel": ([RETRAIN], ["--report", "/proc/a.md"], "a folder that can be writt"),
    "report is a folder": ([RETRAIN], ["--report", "."], "in a folder that can be written"),
    "database down": (
        BOTH,
        ["--tracking-uri", "mysql+nodriver://127.0.0.1:1/x"],
        "127.0.0.1:1/x cannot be used (Can't load plugin",
    ),
    "approved champion": ([RETRAIN], ["--approve", "1"], "is champion already; expected"),
    "nothing to roll back": (
        [RETRAIN],
        ["--rollback"],
        "there is nothing to go back to: 'loan-amount' has not two different versions",
    ),
    "output of no kind": (
        [SCORE],
        ["--output", "out.txt"],
        "expected a name ending in .csv or .par",
    ),
    "output nowhere": ([SCORE], ["--output", "none/out.csv"], "No such file or directory: "),
    "scored nothing": ([SCORE], ["--data", "none.csv"], "cannot read none.csv: there is no such"),
    "scored by nothing": ([SCORE], ["--model-uri", "models:/no/1"], "no model at models:/no/1"),
}
URIS = {
    "run unknown": ("runs:/00000000000000000000000000000000/model", "no model at runs:/0000"),
    "version unknown": ("models:/loan-amount/99", "no model at models:/loan-amount/99"),
    "alias unknown": ("models:/loan-amount@nobody", "no model at models:/loan-amount@nobody"),
    "model unknown": ("models:/m-00000000000000000000000000000000", "no model at models:/m-000"),
    "scheme unknown": ("s4://bucket/model", "no model at s4://bucket/model"),
    "no model": ("models", "has no MLmodel file; expected the folder of a model"),
    "nowhere": ("nowhere", "no model at nowhere"),
    "scikit-learn": ("sklearn", "python_function, sklearn, and no Keras network"),
    "other width": ("narrow", "takes 3 inputs, but its preprocessor makes"),
    "truncated": (
        "truncated",
        "loaded safely (model.keras is not the file",
    ),
    "tampered": (
        "tampered",
        "loaded safely (buffer.parquet is not the file",
    ),
    "half copied": ("half", "half is damaged or cannot be loaded safely (preprocessor.json is not"),
    "MLmodel broken": ("broken", "broken is damaged"),
}


def cases():
    for name, (scripts, write, words) in FILES.items():
        for script in scripts:
            yield pytest.param(script, write, [], words, id=f"{script[7:]}: {name}")
    for name, (scripts, flags, words) in FLAGS.items():
        for script in scripts:
            yield pytest.param(script, csv(), flags, words, id=f"{script[7:]}: {name}")
    for name, (uri, words) in URIS.items():
        flags = ["--model-uri", uri]
        yield pytest.param(RETRAIN, csv(), flags, words, id=f"retrain: URI of {name}")


CASES = list(cases())


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained):
    """Copy the trained place, and lay wrong models beside it, for all cases."""
    place = trained.copy(tmp_path_factory.mktemp("bad"))
    artifact = trained.artifact(trained.uri)
    for name in ("truncated", "tampered", "half", "broken"):
        shutil.copytree(artifact, place.folder / name)
    network = place.folder / "truncated" / "artifacts" / "model.keras"
    network.write_bytes(network.read_bytes()[:-1_000])
    buffer = place.folder / "tampered" / "artifacts" / "buffer.parquet"
    buffer.write_bytes(buffer.read_bytes().replace(b"Occitanie", b"Bretagne "))
    (place.folder / "half" / "artifacts" / "preprocessor.json").unlink()
    (place.folder / "broken" / "MLmodel").write_text("flavors: [")
    narrow = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    mlflow.keras.save_model(narrow, str(place.folder / "narrow"), pip_requirements=["keras"])
    line = LinearRegression().fit([[0.0], [1.0]], [0, 1])
    requirements = {"pip_requirements": ["scikit-learn"], "serialization_format": "skops"}
    mlflow.sklearn.save_model(line, str(place.folder / "sklearn"), **requirements)
    (place.folder / "mlruns").mkdir()
    (place.folder / "mlruns" / "meta.yaml").write_text("experiment_id: '0'\n")
    return place


@pytest.fixture(scope="module")
def loans(files):
    return pd.read_csv(files / "new.csv").head(60)


@pytest.fixture
def unchanged(place, hashes):
    """Check after a case that nothing is left of it: no run, no file, the champion as it was."""
    before = hashes(place.folder)
    yield
    data = place.folder / "data.csv"
    shutil.rmtree(data) if data.is_dir() else data.unlink(missing_ok=True)
    check_untouched(place)
    after = hashes(place.folder)
    assert {k: v for k, v in after.items() if "mlflow.db" not in k} == {
        k: v for k, v in before.items() if "mlflow.db" not in k
    }


def check_untouched(place):
    assert [run.info.status for run in place.runs()] == ["FINISHED"]
    (version,) = place.client.search_model_versions("name='loan-amount'")
    assert (place.champion(), place.champion("previous")) == ("1", None)
    assert str(version.version) == "1"
    assert [m.name for m in place.client.search_registered_models()] == ["loan-amount"]


def check_line(err, words):
    assert err.count("\n") == 1, err
    assert err.startswith(("error: ", "interrupted")), err
    assert words in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("script", "write", "flags", "words"), CASES)
def test_wrong_input_is_one_helpful_line_and_leaves_no_trace(
    place, loans, monkeypatch, capsys, script, write, flags, words
):
    monkeypatch.chdir(place.folder)
    write(place.folder, loans)
    defaults = ["--data", "data.csv", "--tracking-uri", place.store]
    defaults += [] if script == SCORE else ["--epochs", "1"]
    start = time.monotonic()
    try:
        code = importlib.import_module(script).main([*defaults, "--experiment", "loans", *flags])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    check_line(capsys.readouterr().err, words.format(here=place.folder))
    assert time.monotonic() - start < 10


# --- stores that do not work


@contextlib.contextmanager
def unwritable(place):
    """Keep SQLite from writing: its journal cannot be made where a folder lies, even by root."""
    (place.folder / "mlflow.db-journal").mkdir()
    yield place.store


@contextlib.contextmanager
def changed(place, sql):
    with contextlib.closing(sqlite3.connect(place.folder / "mlflow.db")) as database, database:
        database.execute(sql)
    yield place.store


def of_old_mlflow(place):
    return changed(place, "update alembic_version set version_num = 'bd07f7e963c5'")


def of_newer_mlflow(place):
    return changed(place, "update alembic_version set version_num = 'ffffffffffff'")


def without_experiment(place):
    return changed(place, "update experiments set lifecycle_stage = 'deleted'")


@contextlib.contextmanager
def damaged(place):
    file = place.folder / "mlflow.db"
    file.write_bytes(file.read_bytes()[:5_000])
    yield place.store


@contextlib.contextmanager
def served(answer):
    """Serve what `answer(handler)` says on a free port; yield the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def failing(place):
    return served(lambda request: request.send_error(500))


STORES = {
    "unwritable": (BOTH, unwritable, "(disk I/O error); expected a"),
    "of an old MLflow": (TRAIN, of_old_mlflow, "'mlflow db upgrade"),
    "of a newer MLflow": (RETRAIN, of_newer_mlflow, "ffffffffffff"),
    "damaged": (BOTH, damaged, "malformed"),
    "without its experiment": (BOTH, without_experiment, "mlflow experiments restore -x 2' or"),
    "answering 500": (TRAIN, failing, "cannot be used (API request to http://127.0.0.1"),
}
STORE_CASES = [
    pytest.param(script, fault, words, id=f"{script[7:]}: store {name}")
    for name, (scripts, fault, words) in STORES.items()
    for script in ([scripts] if isinstance(scripts, str) else scripts)
]


@pytest.mark.parametrize(("script", "fault", "words"), STORE_CASES)
def test_store_that_does_not_work_is_one_helpful_line_within_seconds(
    workshop, loans, hashes, monkeypatch, capsys, script, fault, words
):
    monkeypatch.chdir(workshop.folder)
    csv()(workshop.folder, loans)
    with fault(workshop) as store:
        flags = ["--data", "data.csv", "--epochs", "1", "--experiment", "loans"]
        before, start = hashes(workshop.folder), time.monotonic()
        assert importlib.import_module(script).main([*flags, "--tracking-uri", store]) == 2
        assert time.monotonic() - start < 10
        assert hashes(workshop.folder) == before  # the database too, byte by byte
    check_line(capsys.readouterr().err, words)


# --- in processes of their own

FULL = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file may grow beyond
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Root may write what is read-only, unless it gives that power up.
POWERLESS = """
import ctypes, os, sys
CAPBSET_DROP, DAC_OVERRIDE = 24, 1
ctypes.CDLL(None).prctl(CAPBSET_DROP, DAC_OVERRIDE)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
PROCESSES = {
    "missing file": ([TRAIN, "--data", "none.csv"], "cannot read none.csv: there is no such file"),
    "unknown flag": ([RETRAIN, "--dta", "none.csv"], "did you mean --data?"),
    "unknown URI": ([RETRAIN, "--model-uri", "models:/a/1"], "no model at models:/a/1"),
    "full disk": ([TRAIN], "disk"),
    "read-only database": ([TRAIN], "cannot be used (attempt to write a readonly database)"),
    "locked database": ([TRAIN], "mlflow.db cannot be used (database is locked"),
}
FIRST = {"full disk": ["-c", FULL], "read-only database": ["-c", POWERLESS]}


@pytest.fixture(scope="module", autouse=True)
def processes(launch, spare, trained, files, tmp_path_factory):
    """Start the processes early, on stores of their own; they end while the other cases run.

    One of each script starts as a user's does: what its imports say would stand beside the line.
    """
    places, started, locks = {}, {}, contextlib.ExitStack()
    for name, ((script, *flags), _) in PROCESSES.items():
        kind = name if name.endswith(" database") else "shared"
        if kind not in places:
            places[kind] = trained.copy(tmp_path_factory.mktemp("processes"))
        place = places[kind]
        if kind == "read-only database":
            (place.folder / "mlflow.db").chmod(0o444)
        if kind == "locked database":
            database = sqlite3.connect(place.folder / "mlflow.db")
            locks.enter_context(contextlib.closing(database))
            database.execute("begin exclusive")
        flags = ["--data", files / "new.csv", "--tracking-uri", place.store, *flags]
        start = launch if name in ("unknown flag", "read-only database") else spare
        started[name] = start(*FIRST.get(name, []), ROOT / f"{script}.py", *flags), place, locks
    yield started
    locks.close()


@pytest.mark.parametrize("name", PROCESSES)
def test_wrong_input_in_a_process_of_its_own_is_exit_code_2_and_one_line(processes, name):
    process, place, locks = processes[name]
    assert process.wait() == 2, process.err
    check_line(process.err, PROCESSES[name][1])
    if name == "locked database":
        locks.close()
    assert all(line.startswith("note: ") for line in process.out.splitlines())
    check_untouched(place)


def test_number_of_cases():
    total = len(CASES) + len(STORE_CASES) + len(PROCESSES)
    print(f"bad input: {total} wrong command lines, {len(PROCESSES)} in a process of their own")
    assert total >= 55
