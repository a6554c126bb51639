"""Claims about cli.py: settings, exit codes, what the terminal shows, a quiet start."""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from toolkit import cli, errors
from toolkit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Settings(cli.TrainingSettings):
    """Settings of a script that does not exist."""

    data: str = cli.option("new.csv", "rows", metavar="FILE")
    drop: tuple[str, ...] = cli.option((), "columns to ignore", nargs="+", metavar="COLUMN")
    controls: bool = cli.option(True, "train controls")
    promote: str = cli.option("auto", "when", choices=["auto", "never"])


def parse(*words):
    return cli.parse(Settings, words, "script.py", "Do it.")


# --- settings


def test_settings_have_the_types_that_their_fields_say(monkeypatch):
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    assert parse() == Settings()
    assert parse().epochs is None
    words = "--epochs 5 --learning-rate 1e-2 --drop a b --no-controls --resume --models-dir m"
    given = parse(*words.split())
    assert given == Settings(
        epochs=5,
        learning_rate=0.01,
        drop=("a", "b"),
        controls=False,
        resume=True,
        models_dir=Path("m"),
    )


def test_help_names_every_setting_with_its_default_and_imports_nothing_slow(launch):
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from dataclasses import dataclass
from toolkit import cli
@dataclass
class Settings(cli.TrainingSettings):
    data: str = cli.option("new.csv", "rows")
slow = ("tensorflow", "keras", "mlflow", "pandas", "numpy", "sklearn", "scipy", "matplotlib")
print([name for name in slow if name in sys.modules])
cli.parse(Settings, ["--help"], "script.py", "Do it.")
"""
    process = launch("-c", program)
    assert process.wait() == 0, process.err
    assert process.out.startswith("[]\nusage: script.py")
    flags = "--data --epochs --batch-size --learning-rate --seed --test-size --experiment"
    flags += " --model-name --tracking-uri --models-dir --quiet --json --na --exit-code"
    assert all(flag in process.out for flag in flags.split())
    assert "rows (new.csv)" in process.out
    assert "of roles, weights and order (42)" in process.out


def refused(capsys, *words):
    with pytest.raises(SystemExit) as exit:
        parse(*words)
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_unknown_flag_is_one_line_with_the_flag_that_was_meant(capsys):
    assert "--modelname x; did you mean --model-name?" in refused(capsys, "--modelname", "x")


@pytest.mark.parametrize(
    "words",
    [
        ["--epochs", "0"],
        ["--epochs", "2.5"],
        ["--batch-size", "-1"],
        ["--learning-rate", "0"],
        ["--learning-rate", "nan"],
        ["--learning-rate", "inf"],
        ["--seed", "-1"],
        ["--seed", "4294967296"],
        ["--test-size", "1"],
        ["--test-size", "0"],
        ["--seed", "many"],
        ["--experiment", " "],
        ["--model-name", "a/b"],
        ["--model-name", ".."],
    ],
)
def test_value_out_of_range_is_one_line_with_what_was_expected(capsys, words):
    err = refused(capsys, *words)
    assert words[0] in err
    assert f"{words[1]!r} was passed; expected " in err


@pytest.mark.parametrize("script", ["mlflow_monitoring", "mlflow_retrain"])
@pytest.mark.parametrize("value", ["many", "-1"])
def test_rows_to_remember_are_a_number_in_both_trainings(script, value, capsys):
    settings = importlib.import_module(script).Settings
    with pytest.raises(SystemExit) as caught:
        cli.parse(settings, ["--buffer-rows", value], script, "")
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--buffer-rows" in err
    assert f"{value!r} was passed; expected " in err


def test_choice_that_there_is_not_is_refused_with_the_choices(capsys):
    err = refused(capsys, "--promote", "maybe")
    assert "auto" in err
    assert "never" in err


def test_text_that_is_not_utf8_is_refused_wherever_it_stands(capsys):
    bad = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert "expected UTF-8 text" in refused(capsys, "--data", bad)
    assert "expected UTF-8 text" in refused(capsys, "--drop", "a", bad)


def test_store_and_experiment_of_the_environment_are_the_defaults(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert (parse().tracking_uri, parse().experiment) == ("http://store", "mine")
    given = parse("--tracking-uri", "sqlite:///a.db", "--experiment", "b")
    assert (given.tracking_uri, given.experiment) == ("sqlite:///a.db", "b")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert (parse().tracking_uri, parse().experiment) == ("sqlite:///mlflow.db", "loan-amount")


def test_next_command_names_the_place_only_where_it_is_not_the_usual_one(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert cli.same_place(parse()) == []
    words = ["--tracking-uri", "sqlite:///a.db", "--experiment", "b", "--model-name", "c"]
    assert cli.same_place(parse(*words)) == words
    assert cli.same_place(parse("--lang", "fr")) == ["--lang", "fr"]


def test_command_to_paste_finds_python_and_script_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = cli.command("python", "mlflow_retrain.py", "--data", "my rows.csv")
    python = Path(sys.executable).with_name("python")
    assert words == f"{python} {ROOT}/mlflow_retrain.py --data 'my rows.csv'"
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(python.parent))
    assert cli.command("python", "mlflow_retrain.py") == "python mlflow_retrain.py"


# --- exit codes


def raising(error):
    def script(settings):
        raise error

    return script


@pytest.fixture
def settings(tmp_path):
    return Settings(models_dir=tmp_path / "models")


def test_result_of_the_script_is_the_exit_code(settings):
    assert cli.run(lambda given: 3 if given is settings else 1, settings) == 3


@pytest.mark.parametrize(
    ("flags", "good", "code"),
    [([], True, 0), ([], False, 0), (["--exit-code"], True, 0), (["--exit-code"], False, 3)],
)
def test_exit_code_tells_whether_the_champion_stays_only_where_that_is_asked_for(
    tmp_path, flags, good, code
):
    given = parse(*flags, "--models-dir", str(tmp_path))
    assert cli.run(lambda settings: settings.exit_with(good), given) == code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no column 'a';\n  expected\tone"), "error: no column 'a'; expected one"),
        (OSError(28, "No space left on device", "f.db"), "error: No space left on device: f.db;"),
        (FloatingPointError("the loss is nan"), "error: training diverged: the loss is nan;"),
        (MlflowException("schema is newer\nand more"), "error: MLflow refused: schema is newer;"),
    ],
)
def test_error_that_its_user_can_mend_is_exit_code_2_and_one_line(capsys, settings, error, line):
    assert cli.run(raising(error), settings) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), TypeError("a bug")])
def test_error_of_the_program_keeps_its_traceback(settings, error):
    with pytest.raises(type(error), match="a bug"):
        cli.run(raising(error), settings)


def test_words_of_a_database_are_found_among_the_lines_around_them():
    error = MlflowException("(sqlite3.OperationalError) disk full\n[SQL: insert ...]\n(see http)")
    assert errors.reason(error) == "disk full"


@pytest.mark.parametrize("before", [0, 180, 195])
def test_no_part_of_a_password_is_among_the_words_wherever_they_are_cut(before):
    error = ValueError(f"{'-' * before} postgresql://me:Secret/w@rd@host/loans is not there")
    assert "Secret" not in errors.reason(error)
    assert "rd@" not in errors.reason(error)


def test_models_folder_that_cannot_be_written_is_told_before_any_work(capsys, settings):
    settings.models_dir.write_text("a file where the folder should be")
    assert cli.run(raising(AssertionError("work began")), settings) == 2
    assert str(settings.models_dir) in capsys.readouterr().err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_either_signal_is_exit_code_130_and_one_line(capsys, settings, signum):
    assert cli.run(lambda _: signal.raise_signal(signum), settings) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("interrupted")
    assert err.count("\n") == 1


def test_signal_waits_until_steps_that_belong_together_are_done(settings):
    done = []

    def script(_):
        with cli.uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            done.append("both steps")
        done.append("not reached")

    assert cli.run(script, settings) == 130
    assert done == ["both steps"]


# --- quiet start


def test_quiet_start_keeps_stderr_silent_and_gives_it_back_whatever_happens(capfd):
    def fail():
        with cli.quiet_start():
            os.write(2, b"I0000 noise\n")
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        fail()
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err.splitlines() == ["afterwards"]


def test_quiet_start_lets_python_warnings_through(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.warns(UserWarning, match="look here"), cli.quiet_start():
            warnings.warn("look here", stacklevel=1)


def test_quiet_start_leaves_standard_output_alone(capfd):
    with cli.quiet_start():
        os.write(1, b"result\n")
        assert capfd.readouterr().out == "result\n"


def test_tensorflow_starts_and_compiles_without_a_word(launch):
    program = f"""
import os, sys
os.environ.pop("TF_CPP_MIN_LOG_LEVEL")
sys.path.insert(0, {str(ROOT)!r})
from toolkit import cli
with cli.quiet_start():
    import tensorflow as tf
tf.function(lambda x: 2 * x, jit_compile=True)(tf.ones(3))
"""
    process = launch("-c", program, TF_CPP_MIN_LOG_LEVEL="0")
    assert process.wait() == 0
    assert process.err == ""


# --- words


def test_terminal_shows_text_as_it_is_on_one_line_however_long(capsys):
    text = "a [bold]path[/bold] :smile: " + "x" * 300
    cli.Terminal().say(text, style="bold red")
    assert capsys.readouterr().out == text + "\n"


SPEAK = """
from toolkit import cli
cli.parse(cli.StoreSettings, [], "speak", "")
for as_json in (False, True):
    terminal = cli.Terminal(False, as_json)
    terminal.say("retrained − parent: 1 €")
    terminal.table(["€", "b"], [["c", "d"]])
    terminal.result(verdict="1 €")
print("done", file=__import__("sys").stderr)
"""


def speak(**options):
    return subprocess.run([sys.executable, "-c", SPEAK], cwd=ROOT, stderr=-1, **options)


def test_many_notes_alike_are_told_in_one_line_that_names_all_columns(capsys):
    dates = [f"column 'day {n}' holds dates (%d/%m/%Y)" for n in range(4)]
    cells = [f"column 'v{n}': {n} cells ('.') are read as missing" for n in range(40)]
    cli.Terminal().notes([*dates, *cells, "column 'z' holds dates (ISO8601)"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [f"note: {note}" for note in [*dates, cells[0]]]
    names = ", ".join(f"'v{n}'" for n in range(1, 40))
    assert lines[5:] == [
        f"note: likewise 39 more columns: {names}",
        "note: column 'z' holds dates (ISO8601)",
    ]


def test_log_that_knows_no_euro_sign_gets_another_one_and_json_stays_exact():
    answer = speak(stdout=-1, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    words, _, _, result = answer.stdout.decode("ascii").split("\n", 3)
    assert words == "retrained ? parent: 1 ?"
    assert json.loads(result) == {"verdict": "1 €"}
    assert answer.stderr == b"done\n"


def test_report_needs_a_page_in_a_folder_that_can_be_written_to(tmp_path):
    (tmp_path / "folder.md").mkdir()
    for good in ("a.md", "A.HTML", "b.htm"):
        assert cli.page(str(tmp_path / good)) == str(tmp_path / good)
    for bad in ("folder.md", "a.txt", "none/a.md"):
        with pytest.raises(argparse.ArgumentTypeError, match="can be written to"):
            cli.page(str(tmp_path / bad))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.md"]


def test_variables_that_are_empty_are_as_good_as_none(monkeypatch):
    for variable in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(variable, "")
    settings = cli.parse(cli.StoreSettings, [], "any.py", "")
    assert (settings.experiment, settings.tracking_uri) == (cli.NAME, cli.STORE)


@pytest.mark.parametrize("script", ["mlflow_monitoring.py", "mlflow_retrain.py"])
def test_help_goes_into_a_log_that_knows_few_signs(script):
    asked = [sys.executable, script, "--help", "--lang", "fr"]
    options = {"cwd": ROOT, "env": os.environ | {"PYTHONIOENCODING": "ascii"}}
    answer = subprocess.run(asked, capture_output=True, **options)
    assert (answer.returncode, answer.stderr) == (0, b"")
    assert b"--report" in answer.stdout or b"--unit" in answer.stdout


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_closed_stderr_takes_what_is_written_there(closed):
    program = "from toolkit import cli; cli.parse(cli.StoreSettings, [], 'any', '')\n"
    program += "with cli.quiet_start(): print('fine')"
    line = f'{sys.executable} -c "{program}" {closed}'
    answer = subprocess.run(line, shell=True, cwd=ROOT, stdout=subprocess.PIPE)
    assert (answer.returncode, answer.stdout) == (0, b"fine\n")


def test_work_goes_on_when_nobody_reads_its_output_any_more():
    reader, writer = os.pipe()
    os.close(reader)
    answer = speak(stdout=writer)
    os.close(writer)
    assert (answer.returncode, answer.stderr) == (0, b"done\n")


def test_table_is_aligned_with_numbers_to_the_right_and_plain_in_a_pipe(capsys):
    rows = [["new", "1"], ["[red]old", "1,234 €"]]
    cli.Terminal().table(["rows", "MAE"], rows, bold="new")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["rows          MAE", "new             1", "[red]old  1,234 €"]


def test_table_of_many_columns_is_not_wrapped_in_a_pipe(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # a user who sets it wants its width
    cells = [f"column number {i}" for i in range(30)]
    cli.Terminal().table(cells, [cells])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_table_loses_no_digit_on_a_narrow_terminal(capsys, monkeypatch):
    header, row = ["rows", "MAE of the parent", "MAE of the child"], ["new", "123456 €", "987654 €"]
    monkeypatch.setenv("COLUMNS", "16")
    cli.Terminal().table(header, [row])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 16
    assert sorted(c for c in text if c.isdigit()) == sorted("123456987654")
    assert "ne" in text


def test_scores_of_a_retraining_are_one_table_in_60_columns(capsys, monkeypatch):
    header = ["same held-out rows", "new MAE", "new R²", "old MAE", "old R²"]
    rows = [[name, "10,480 €", "-0.205", "11,834 €", "-0.185"] for name in ("parent", "retrained")]
    monkeypatch.setenv("COLUMNS", "62")
    cli.Terminal().table(header, rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [" ".join(row).split() for row in rows]


def test_json_is_one_object_in_which_what_json_lacks_is_null(capsys):
    import numpy as np

    terminal = cli.Terminal(as_json=True)
    terminal.say("words")
    terminal.table(["a"], [["b"]])
    values = {"interval": [float("-inf"), 1.5, float("nan")], "rows": np.int64(3), "at": Path("x")}
    terminal.result(verdict="élevé", **values)
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "verdict": "élevé",
        "interval": [None, 1.5, None],
        "rows": 3,
        "at": "x",
    }
    assert err == ""


def test_quiet_terminal_prints_nothing(capsys):
    terminal = cli.Terminal(quiet=True)
    terminal.say("a")
    terminal.table(["a"], [["b"]])
    terminal.result(a=1)
    assert capsys.readouterr() == ("", "")


# --- live line


def on_terminal(monkeypatch, work, term="xterm"):
    """Do `work` with a pseudo-terminal for stderr; return what was drawn there."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "40")
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as stream:
        work(stream)
    drawn = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(leader, 10_000):
            drawn += part
    os.close(leader)
    return drawn.decode()


def train(terminal):
    def work(stream):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            with terminal.progress("[b]reading[/b]") as line:
                time.sleep(0.15)
                line.update("epoch 2 of 60")
                time.sleep(0.15)

    return work


def test_live_line_shows_words_as_they_are_and_is_gone_at_the_end(monkeypatch):
    drawn = on_terminal(monkeypatch, train(cli.Terminal()))
    assert " [b]reading[/b]" in drawn
    assert " epoch 2 of 60" in drawn
    assert drawn.endswith("\x1b[2K")  # the line is erased
    assert "\x1b[?25h" in drawn  # and the cursor is back


@pytest.mark.parametrize("why", ["pipe", "dumb", "quiet"])
def test_no_live_line_in_a_pipe_on_a_dumb_terminal_or_quietly(monkeypatch, tmp_path, why):
    work = train(cli.Terminal(quiet=why == "quiet"))
    if why == "pipe":
        with (tmp_path / "log").open("w") as stream:
            work(stream)
        assert (tmp_path / "log").read_text() == ""
    else:
        assert on_terminal(monkeypatch, work, "dumb" if why == "dumb" else "xterm") == ""


@pytest.mark.parametrize("quiet", [False, True])
def test_start_is_shown_on_the_terminal_that_libraries_are_kept_from(monkeypatch, quiet):
    def work(stream):
        kept = os.dup(2)
        os.dup2(stream.fileno(), 2)
        try:
            with cli.quiet_start("starting", quiet):
                os.write(2, b"I0000 noise of a library\n")
                time.sleep(0.15)
        finally:
            os.dup2(kept, 2)
            os.close(kept)

    drawn = on_terminal(monkeypatch, work)
    assert ("starting" in drawn) is not quiet
    assert "noise" not in drawn


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("postgresql://ann:s3cret@host/db", "postgresql://ann:***@host/db"),
        ("mysql://ann:p@ss@host/db", "mysql://ann:***@host/db"),
        ("mysql://ann:p/@ss@host/db", "mysql://ann:***@host/db"),
        ("mysql://ann:p?@s@host/db", "mysql://ann:***@host/db"),
        ("mysql://ann:p?ss@host/db?ssl=s3cret", "mysql://ann:***@host/db?ssl=***"),
        ("https://token@host/a.csv", "https://***@host/a.csv"),
        ("https://host/a.csv?key=s3cret&v=2", "https://host/a.csv?key=***&v=***"),
        ("see s3://bucket/a.csv, e@mail", "see s3://bucket/a.csv, e@mail"),
        ("data/df_old.csv", "data/df_old.csv"),
        (3, "3"),
    ],
)
def test_password_of_a_url_is_not_logged(text, logged):
    assert errors.masked(text) == logged
