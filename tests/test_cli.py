"""Claims about cli.py: what the terminal shows, exit codes, interrupted runs."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

import cli
import mlflow_monitoring
import mlflow_retrain

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"mlflow_monitoring.py": mlflow_monitoring, "mlflow_retrain.py": mlflow_retrain}


class UserError(ValueError):
    """As in tabular.py: told apart by its name, since cli.py imports nothing heavy."""


@pytest.fixture(scope="module", autouse=True)
def endless(launch, tmp_path_factory, empty_store):
    """Start a training in a process of its own that will not end by itself in time."""
    folder = tmp_path_factory.mktemp("endless")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    flags = ["--data", ROOT / "data" / "df_old.csv", "--epochs", 100_000]
    process = launch(ROOT / "mlflow_monitoring.py", *flags, folder=folder)
    process.folder = folder
    return process


# --- arguments


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_without_importing_what_is_slow(launch, script):
    process = launch("-X", "importtime", ROOT / script, "--help")
    assert process.wait() == 0
    imported = {line.split("|")[-1].strip().split(".")[0] for line in process.err.splitlines()}
    assert "argparse" in imported
    slow = {"tensorflow", "keras", "mlflow", "pandas", "numpy", "sklearn", "scipy", "matplotlib"}
    assert not imported & slow
    common = "--data --epochs --batch-size --learning-rate --seed --test-size --experiment"
    common += " --model-name --tracking-uri --models-dir --quiet"
    assert all(flag in process.out for flag in common.split())


@pytest.mark.parametrize("script", SCRIPTS.values())
def test_unknown_flag_is_one_line_with_the_flag_that_was_meant(capsys, script):
    with pytest.raises(SystemExit) as exit:
        script.main(["--modelname", "x"])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "--modelname x; did you mean --model-name?" in err


@pytest.mark.parametrize(
    "flags",
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
        ["--memory-rows", "many"],
    ],
)
@pytest.mark.parametrize("script", SCRIPTS.values())
def test_number_out_of_range_is_one_line_with_what_was_expected(capsys, script, flags):
    with pytest.raises(SystemExit) as exit:
        script.main(flags)
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert flags[0] in err
    assert f"'{flags[1]}' was passed; expected " in err


def test_store_and_experiment_of_the_environment_are_the_defaults(monkeypatch):
    for script in SCRIPTS.values():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
        args = script.parse_args([])
        assert (args.tracking_uri, args.experiment) == ("http://store", "mine")
        args = script.parse_args(["--tracking-uri", "sqlite:///a.db", "--experiment", "b"])
        assert (args.tracking_uri, args.experiment) == ("sqlite:///a.db", "b")
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
        args = script.parse_args([])
        assert (args.tracking_uri, args.experiment) == ("sqlite:///mlflow.db", "loan-amount")


def test_next_command_names_the_place_only_where_it_is_not_the_usual_one(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert cli.same_place(mlflow_retrain.parse_args([])) == []
    flags = ["--tracking-uri", "sqlite:///a.db", "--experiment", "b", "--model-name", "c"]
    assert cli.same_place(mlflow_retrain.parse_args(flags)) == flags


# --- exit codes


def raising(error):
    def script(args):
        raise error

    return script


@pytest.fixture
def args(tmp_path):
    """Give the arguments that `run` itself looks at."""
    return argparse.Namespace(models_dir=tmp_path / "models")


def test_result_of_the_script_is_the_exit_code(args):
    assert cli.run(lambda given: 0 if given is args else 1, args) == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no column 'a';\n  expected\tone"), "error: no column 'a'; expected one"),
        (OSError(28, "No space left on device", "f.db"), "error: No space left on device: f.db;"),
        (FloatingPointError("the loss is nan"), "error: training diverged: the loss is nan;"),
        (MlflowException("schema is newer"), "error: MLflow refused: schema is newer;"),
    ],
)
def test_error_that_its_user_can_mend_is_exit_code_2_and_one_line(capsys, args, error, line):
    assert cli.run(raising(error), args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), TypeError("a bug")])
def test_error_of_the_program_keeps_its_traceback(args, error):
    with pytest.raises(type(error), match="a bug"):
        cli.run(raising(error), args)


def test_models_folder_that_cannot_be_written_is_told_before_any_work(capsys, args):
    args.models_dir.write_text("a file where the folder should be")
    assert cli.run(raising(AssertionError("work began")), args) == 2
    assert str(args.models_dir) in capsys.readouterr().err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_either_signal_is_exit_code_130_and_one_line(capsys, args, signum):
    assert cli.run(lambda _: signal.raise_signal(signum), args) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("interrupted")
    assert err.count("\n") == 1


@pytest.mark.parametrize("script", ["train", "retrain"])
def test_interrupted_training_ends_its_run_and_registers_nothing(
    workshop, files, monkeypatch, script
):
    import model_utils

    original, calls = model_utils.train_model, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **options)

    monkeypatch.setattr(model_utils, "train_model", interrupted)
    flags = ["--data", files / "new.csv", "--epochs", 2]
    assert getattr(workshop, script)(*flags) == 130
    assert workshop.err.count("\n") == 1
    assert workshop.err.startswith("interrupted")
    assert [run.info.status for run in workshop.runs()] == ["KILLED", "FINISHED"]
    assert len(workshop.client.search_model_versions("name='loan-amount'")) == 1
    assert workshop.champion() == "1"
    assert not (workshop.folder / "models" / "retrained_mlflow_model").exists()


def test_terminated_process_ends_its_run_and_says_so_in_one_line(endless, trained):
    place, deadline = type(trained)(endless.folder), time.monotonic() + 60
    while not place.runs("RUNNING") and time.monotonic() < deadline:
        assert endless.process.poll() is None, endless.err
        time.sleep(0.2)
    time.sleep(1)  # into the training
    endless.process.send_signal(signal.SIGTERM)
    assert endless.wait(30) == 130
    assert endless.err.count("\n") == 1
    assert endless.err.startswith("interrupted")
    assert [run.info.status for run in place.runs()] == ["KILLED"]
    assert place.client.search_registered_models() == []
    assert place.run.data.params["epochs"] == "100000"


# --- quiet start


NOISE = [
    "I0000 00:00:1763900000.123456    1234 cpu_feature_guard.cc:227] This TensorFlow binary is",
    "2026-11-23 20:10:11.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations",
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow",
    "2026/11/23 20:10:11 INFO mlflow.store.db.utils: Creating initial MLflow database tables...",
    "INFO  [alembic.runtime.migration] Context impl SQLiteImpl.",
    "",
]
REAL = [
    "UserWarning: the file is deprecated",
    "Traceback (most recent call last):",
    "2026/11/23 20:10:11 WARNING mlflow.utils: this matters",
    "error: disk full",
]


def test_quiet_start_drops_start_up_noise_and_passes_all_else_on(capfd):
    lines = [line for pair in zip(NOISE, REAL + REAL, strict=False) for line in pair]
    with cli.quiet_start():
        for line in lines:
            os.write(2, f"{line}\n".encode())
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err.splitlines() == [line for line in lines if line in REAL]


def test_quiet_start_gives_stderr_back_whatever_happens(capfd):
    def fail():
        with cli.quiet_start():
            os.write(2, b"the reason\n")
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        fail()
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err.splitlines() == ["the reason", "afterwards"]


def test_quiet_start_lets_python_warnings_through(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.warns(UserWarning, match="look here"), cli.quiet_start():
            warnings.warn("look here", stacklevel=1)


def test_quiet_start_leaves_standard_output_alone(capfd):
    with cli.quiet_start():
        os.write(1, b"result\n")
        assert capfd.readouterr().out == "result\n"


# --- words


def test_terminal_shows_text_as_it_is_on_one_line_however_long(capsys):
    text = "a [bold]path[/bold] :smile: " + "x" * 300
    cli.Terminal(quiet=False).say(text)
    assert capsys.readouterr().out == text + "\n"


SPEAK = """
import cli
for as_json in (False, True):
    terminal = cli.Terminal(False, as_json)
    terminal.say("retrained − parent: 1 €")
    terminal.result(verdict="1 €")
print("done", file=__import__("sys").stderr)
"""


def speak(**options):
    return subprocess.run([sys.executable, "-c", SPEAK], cwd=ROOT, stderr=-1, **options)


def test_log_that_knows_no_euro_sign_gets_another_one_and_json_stays_exact():
    answer = speak(stdout=-1, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    words, result = answer.stdout.decode("ascii").split("\n", 1)
    assert words == "retrained ? parent: 1 ?"
    assert json.loads(result) == {"verdict": "1 €"}
    assert answer.stderr == b"done\n"


def test_work_goes_on_when_nobody_reads_its_output_any_more():
    reader, writer = os.pipe()
    os.close(reader)
    answer = speak(stdout=writer)
    os.close(writer)
    assert (answer.returncode, answer.stderr) == (0, b"done\n")


def test_table_is_aligned_with_numbers_to_the_right(capsys):
    cli.Terminal(quiet=False).table(["rows", "MAE"], [["new", "1"], ["[red]old", "1,234 €"]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["rows", "MAE"],
        ["new", "1"],
        ["[red]old", "1,234", "€"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_table_wider_than_the_terminal_is_told_line_by_line_and_loses_no_digit(capsys, monkeypatch):
    header, row = ["rows", "MAE of the parent", "MAE of the child"], ["new", "1,234 €", "1,111 €"]
    monkeypatch.setenv("COLUMNS", "30")
    cli.Terminal(quiet=False).table(header, [row])
    lines = ["new", "  MAE of the parent: 1,234 €", "  MAE of the child: 1,111 €"]
    assert capsys.readouterr().out.splitlines() == lines


def test_scores_of_a_retraining_are_one_table_in_60_columns(capsys, monkeypatch):
    header = ["same held-out rows", "new MAE", "new R²", "old MAE", "old R²"]
    rows = [[name, "10,480 €", "-0.205", "11,834 €", "-0.185"] for name in ("parent", "retrained")]
    monkeypatch.setenv("COLUMNS", "60")
    cli.Terminal(quiet=False).table(header, rows)
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) < 60
    assert [line.split() for line in lines[1:]] == [" ".join(row).split() for row in rows]


def test_json_is_one_object_in_which_what_json_lacks_is_null(capsys):
    terminal = cli.Terminal(quiet=False, as_json=True)
    terminal.say("words")
    terminal.table(["a"], [["b"]])
    terminal.result(verdict="élevé", interval=[float("-inf"), 1.5, float("nan")])
    out, err = capsys.readouterr()
    assert json.loads(out) == {"verdict": "élevé", "interval": [None, 1.5, None]}
    assert err == ""


class Tty(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self):
        return True


def shown_while_training(monkeypatch, stream, quiet=False):
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(cli.Progress, "SECONDS", 0.01)
    monkeypatch.setattr(cli.Progress, "PATIENCE", 0.0)
    with cli.Terminal(quiet).progress("training") as progress:
        for epoch in (1, 2, 1, 30):
            progress.epoch(epoch, 60, 1234.5, 0)
        time.sleep(0.1)
    return stream.getvalue()


@pytest.fixture
def clock(monkeypatch):
    """Let time stand still until a test moves it: clock[0] is the second."""
    now = [100.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    return now


def test_progress_of_a_training_tells_rows_per_second_and_time_left(clock):
    progress = cli.Progress("training", shown=False)
    progress.epoch(0.25, 60, 0.5, 2_000)
    assert progress.words == "training 1: epoch 1 of 60, loss 0.5"
    clock[0] += 2
    progress.epoch(2.25, 60, 0.25, 2_000)
    words = "training 1: epoch 3 of 60, loss 0.25, 2,000 rows/s, 58 s left"
    assert progress.words == words
    progress.epoch(1, 60, 0.5, 2_000)
    assert progress.words == "training 2: epoch 1 of 60, loss 0.5"


def test_progress_of_a_pass_over_rows_tells_rows_per_second_and_time_left(clock):
    progress = cli.Progress("reading big.csv", shown=False)
    progress.rows("parsing", 0, 3_000_000, "bytes")
    clock[0] += 2
    progress.rows("parsing", 0, 3_000_000, "bytes")
    assert progress.words == "reading big.csv: parsing, 0%"
    progress.rows("parsing", 1_000_000, 3_000_000, "bytes")
    assert progress.words == "reading big.csv: parsing, 33%, 500,000 bytes/s, 4 s left"
    progress.rows("checking", 0, 100)
    clock[0] += 1
    progress.rows("checking", 50, 100)
    assert progress.words == "reading big.csv: checking, 50%, 50 rows/s, 1 s left"


def test_start_of_the_libraries_is_shown_on_the_terminal_that_they_are_kept_from(monkeypatch):
    monkeypatch.setattr(cli.Progress, "SECONDS", 0.01)
    monkeypatch.setattr(cli.Progress, "PATIENCE", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = os.openpty()
    kept = os.dup(2)
    os.dup2(follower, 2)
    try:
        with cli.quiet_start("starting") as starting:
            os.write(2, b"I0000 noise of a library\n")
            starting.say("waiting for worker 1")
            time.sleep(0.1)
        with cli.quiet_start("starting", quiet=True), cli.quiet_start():
            time.sleep(0.1)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    shown = os.read(leader, 10_000).decode()
    os.close(leader), os.close(follower)
    assert "\rstarting: waiting for worker 1 (0 s)" in shown
    assert not shown.split("\r")[-2].strip()
    assert "noise" not in shown


def test_progress_is_one_line_with_epoch_loss_and_time_left_that_goes_away(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    shown = shown_while_training(monkeypatch, Tty())
    assert "\rtraining 2: epoch 30 of 60, loss 1234, 0 s left (0 s)" in shown
    assert "\n" not in shown
    assert shown.endswith(" \r")
    assert not shown.replace("\r", "\n").splitlines()[-1].strip()
    monkeypatch.setenv("COLUMNS", "20")
    narrow = shown_while_training(monkeypatch, Tty())
    assert max(map(len, narrow.split("\r"))) == 19


def test_training_and_controls_are_followed_epoch_by_epoch(
    workshop, files, no_figures, monkeypatch
):
    told = []
    original = cli.Progress.epoch
    monkeypatch.setattr(
        cli.Progress, "epoch", lambda *args: (told.append(args[1:]), original(*args))
    )
    assert workshop.retrain("--data", files / "new.csv", "--epochs", 2) == 0, workshop.err
    starts = [i for i, (number, *_) in enumerate(told) if number == 1]
    assert len(starts) == 3 * 2 + 1 + 2  # three weight decays, the final training, two controls
    assert {epochs for _, epochs, *_ in told} > {2}
    assert all(loss > 0 and n_rows > 0 for *_, loss, n_rows in told)
    assert "epoch" not in workshop.out + workshop.err


@pytest.mark.parametrize("why", ["pipe", "dumb", "quiet"])
def test_no_progress_is_shown_in_a_pipe_on_a_dumb_terminal_or_quietly(monkeypatch, why):
    monkeypatch.setenv("TERM", "dumb" if why == "dumb" else "xterm")
    stream = io.StringIO() if why == "pipe" else Tty()
    assert shown_while_training(monkeypatch, stream, quiet=why == "quiet") == ""


def test_quiet_and_json_at_once_are_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        mlflow_retrain.main(["--quiet", "--json"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_quiet_terminal_prints_nothing(capsys):
    terminal = cli.Terminal(quiet=True)
    terminal.say("a")
    terminal.table(["a"], [["b"]])
    assert capsys.readouterr() == ("", "")


def test_error_does_not_wait_for_work_in_the_background(launch):
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import cli
cli.background(time.sleep, 60)
print("said before")
cli.leave(2)
"""
    process = launch("-c", program)
    assert process.wait(20) == 2
    assert process.out == "said before\n"


def test_work_in_the_background_gives_its_result_or_its_error():
    assert cli.background(pow, 2, 5).result() == 32
    with pytest.raises(ZeroDivisionError):
        cli.background(divmod, 1, 0).result()
