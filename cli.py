"""What both scripts share on the terminal: arguments, quiet start, errors, progress, tables.

Imports nothing heavy, so that `--help` answers at once. Not here: what a script does.
"""

import argparse
import contextlib
import difflib
import gc
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TextIO

# What TensorFlow, its C++ libraries and Alembic write at every start, whatever happens.
START_UP_NOISE = re.compile(
    r"^([IWE]0000 |WARNING: All log messages before absl|To enable the following instructions"
    r"|\d{4}[-/]\d\d[-/]\d\d .*(INFO|cuda|oneDNN|cpu_feature_guard|XLA|alembic)"
    r"|INFO +\[?(alembic|mlflow)|\s*$)"
)


HERE = Path(__file__).parent
SCRIPTS = ("mlflow_monitoring.py", "mlflow_retrain.py", "mlflow_score.py")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
DATA_HELP = "CSV or Parquet, folder or glob (%(default)s)"
NAME = "loan-amount"  # of the experiment and of the registered model
STORE = "sqlite:///mlflow.db"  # where 'mlflow ui' looks without a flag


class Parser(argparse.ArgumentParser):
    """Report a wrong argument in one line, with the flag that was probably meant."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--?[\w-]+)", message)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[1], known, 1)
            message += f"; did you mean {close[0]}?" if close else ""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def common_arguments(parser: Parser, data: str) -> None:
    """Add the flags that training and retraining share."""
    add = parser.add_argument
    add("--data", default=data, metavar="FILE", help=DATA_HELP)
    add("--epochs", type=whole, default=60, help="passes over the training rows (%(default)s)")
    add("--batch-size", type=whole, default=32, help="rows per update (%(default)s)")
    add("--learning-rate", type=positive, default=1e-3, help="at the start (%(default)s)")
    add("--seed", type=natural, default=42, help="of split, weights and order (%(default)s)")
    add("--test-size", type=share, default=0.2, help="share of rows held out (%(default)s)")
    store_arguments(parser)
    add(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="keep rows on disk, not in memory (when they are many)",
    )
    add(
        "--memory-rows",
        type=natural,
        default=20_000,
        help="rows of each role kept in the model for replay and proof; 0 keeps none (%(default)s)",
    )

    add("--resume", action="store_true", help="continue the same command where it was interrupted")
    add(
        "--checkpoint-seconds",
        type=positive,
        default=30.0,
        help="time between two checkpoints of a training (%(default)s)",
    )
    add(
        "--worker-timeout",
        type=positive,
        default=300.0,
        metavar="SECONDS",
        help="wait for the other workers of TF_CONFIG (%(default)s)",
    )


def store_arguments(parser: Parser) -> None:
    """Add the flags of every script: where things are kept, what is printed."""
    add = parser.add_argument
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", NAME)
    add("--experiment", type=name, default=experiment, help="MLflow experiment (%(default)s)")
    add("--model-name", type=model_name, default=NAME, help="registered (%(default)s)")
    store = os.environ.get("MLFLOW_TRACKING_URI") or STORE
    add("--tracking-uri", default=store, help="MLflow store or server (%(default)s)")
    add("--models-dir", type=Path, default=Path("models"), help="local copies (%(default)s)")
    shown = parser.add_mutually_exclusive_group().add_argument
    shown("--quiet", action="store_true", help="print nothing but errors")
    shown("--json", action="store_true", help="print the result as one JSON object, nothing else")


def whole(text: str) -> int:
    return _checked(text, int, lambda v: v >= 1, "a whole number of at least 1")


def natural(text: str) -> int:
    return _checked(text, int, lambda v: 0 <= v < 2**31, "a whole number from 0 on")


def positive(text: str) -> float:
    return _checked(text, float, lambda v: 0 < v < float("inf"), "a number above 0")


def share(text: str) -> float:
    return _checked(text, float, lambda v: 0 < v < 1, "a share between 0 and 1, such as 0.2")


def name(text: str) -> str:
    return _checked(text, str, str.strip, "a name")


def model_name(text: str) -> str:
    ok = re.compile(r"(?!\s*$|\.$|.*\.\.)[^/:]+").fullmatch
    return _checked(text, str, ok, "a name without / and : and ..")


def _checked(text: str, convert: Callable, accepts: Callable, expected: str) -> Any:
    with contextlib.suppress(ValueError):
        value = convert(text)
        if accepts(value):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} was passed; expected {expected}")


def run(script: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a script's work and turn what went wrong into an exit code and one line on stderr.

    0 done, 2 a user's error, 130 interrupted. Programming errors keep their traceback.
    """
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            if signal.getsignal(signum) != signal.SIG_IGN:  # a shell's background job ignores them
                signal.signal(signum, _interrupt)
    try:
        _check_text(args)
        args.models_dir.mkdir(parents=True, exist_ok=True)  # an error now, not after the training
        tempfile.TemporaryFile(dir=args.models_dir).close()
        return script(args)
    except KeyboardInterrupt:
        words = "interrupted: a run that had not finished is marked KILLED"
        print(words, file=sys.stderr)
        return 130
    except Exception as error:
        reason = explain(error)
        if reason is None:
            raise
        print(f"error: {' '.join(reason.split())}", file=sys.stderr)
        return 2


def leave(exit_code: int) -> None:
    """End the process; what is still in memory need not be searched for garbage first.

    After an error or an interruption, threads that still work on rows need not be waited for.
    """
    gc.freeze()
    if exit_code:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def explain(error: Exception) -> str | None:
    """Put an error that its user can mend into words; None for a programming error."""
    first_line = reason(error)
    if type(error).__name__ in ("UserError", "ArgumentTypeError"):
        return str(error)
    if isinstance(error, FloatingPointError):
        return f"training diverged: {error}; expected a finite loss: lower --learning-rate"
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        return f"{error.strerror or first_line}:{place}; check the path, its permissions and disk"
    if type(error).__module__.split(".")[0] in ("mlflow", "sqlalchemy"):
        return f"MLflow refused: {first_line}; check --tracking-uri and that its store is writable"
    return None


def reason(error: Exception) -> str:
    """Take the words that matter out of an exception: the database's own, or the first line."""
    text = str(error).strip()
    own = re.search(r"\(\w+\.\w+Error\) (.+)", text)
    return (own[1] if own else (text.splitlines() or [""])[0])[:200]


def _interrupt(*_: object) -> NoReturn:
    for each in SIGNALS:  # a second Ctrl-C must not interrupt the tidying up
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put SIGINT and SIGTERM off until the block is done, for steps that belong together."""
    came = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, lambda *_: came.append(1)) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if came:
        _interrupt(0, None)


def _check_text(args: argparse.Namespace) -> None:
    """Refuse arguments that were not UTF-8: neither MLflow nor JSON can write them down."""
    for name, value in vars(args).items():
        try:
            str(value).encode()
        except UnicodeEncodeError:
            flag = f"--{name.replace('_', '-')}"
            raise argparse.ArgumentTypeError(
                f"{flag} {str(value)!r} is not UTF-8 text; expected UTF-8: rename it"
            ) from None


@contextlib.contextmanager
def quiet_start(text: str = "", quiet: bool = False) -> Iterator["Progress"]:
    """Hold back what libraries write to file descriptor 2 while they start; show `text` meanwhile.

    Gives the live line, whose `stream` is the real stderr. Their start-up noise is dropped; every
    other line is passed on afterwards, so that real warnings and errors show. Python's garbage
    collector rests meanwhile, and leaves alone for good what a first import made: going through
    those millions of objects again and again took seconds.
    """
    first_import = "tensorflow" not in sys.modules
    if first_import:
        gc.disable()
    # A lost worker makes TensorFlow write pages that our own error says in one line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if "TF_CONFIG" in os.environ else "2")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, os.fdopen(os.dup(2), "w") as real:
        os.dup2(held.fileno(), 2)
        try:
            shown = text != "" and is_terminal(real) and not quiet
            with Progress(text, shown, real) as progress:
                yield progress
        finally:
            if first_import:
                gc.freeze()
                gc.enable()
            sys.stderr.flush()
            os.dup2(real.fileno(), 2)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not START_UP_NOISE.match(line):
                    print(line, file=sys.stderr)


def background(function: Callable, *arguments: Any) -> Future:
    """Run a function in a thread; `.result()` waits for it and raises what it raised.

    Threads hand over to each other ten times as often from then on: TensorFlow lets go of Python
    thousands of times while it traces, and would wait 5 ms each time to have it back.
    """
    sys.setswitchinterval(0.0005)
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function, *arguments)
    pool.shutdown(wait=False)
    return future


def command(program: str, *arguments: str) -> str:
    """Write a command of this Python environment, ready to be pasted in this folder."""
    own = Path(sys.executable).with_name(program)
    words = [program if shutil.which(program) == str(own) else own, *arguments]
    words = [HERE / w if w in SCRIPTS and not Path(w).exists() else w for w in words]
    here = f"{Path.cwd()}/"
    return shlex.join(str(word).removeprefix(here) for word in words)


def same_place(args: argparse.Namespace) -> list[str]:
    """Name store, experiment and registered model for a command to paste, where not the usual."""
    usual = {"tracking_uri": STORE, "experiment": NAME, "model_name": NAME}
    given = {name: getattr(args, name) for name in usual}
    flags = {name: value for name, value in given.items() if value != usual[name]}
    return [word for n, value in flags.items() for word in (f"--{n.replace('_', '-')}", value)]


def conclude(
    terminal: "Terminal",
    args: argparse.Namespace,
    run: Any,
    uri: str,
    version: str,
    verdict: str,
    steps: list[str],
    **more: object,
) -> None:
    """End a script: the verdict in one sentence, the model, the next commands to paste."""
    terminal.say(f"{verdict}\n{args.model_name} version {version} is {uri}\n\nNext:")
    for step in steps:
        terminal.say(f"  {step}")
    addresses = [re.fullmatch(r"(?:then )?open (\S+)", step) for step in steps]
    terminal.result(
        verdict=verdict,
        model_name=args.model_name,
        version=version,
        model_uri=uri,
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        next=[step for step, found in zip(steps, addresses, strict=True) if not found],
        url=next(found[1] for found in addresses if found),
        **more,
    )


class Terminal:
    """Print words and tables; with `--json` one object instead, with `--quiet` nothing at all."""

    def __init__(self, quiet: bool, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json

    def say(self, text: str = "") -> None:
        """Print words for a person."""
        if not self.quiet and not self.as_json:
            self._print(text)

    def _print(self, text: str) -> None:
        encoding = sys.stdout.encoding or "utf-8"  # of a log, say, that knows no euro sign
        try:
            print(text.encode(encoding, "replace").decode(encoding), flush=True)
        except BrokenPipeError:  # whoever read has gone, as in '| head': the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        """Print aligned columns, the first to the left, numbers to the right.

        On a terminal that is too narrow, each row becomes a few lines.
        """
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        columns = shutil.get_terminal_size(fallback=(10_000, 24)).columns
        if sum(widths) + 2 * len(widths[1:]) <= columns:
            for name, *cells in (header, *rows):
                numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
                self.say("  ".join([name.ljust(widths[0]), *numbers]))
            return
        for name, *cells in rows:
            self.say(name)
            for title, cell in zip(header[1:], cells, strict=True):
                self.say(f"  {title}: {cell}")

    def result(self, **values: object) -> None:
        """Print the one object of `--json`; NaN and infinity, which JSON lacks, become null."""
        if self.as_json:
            finite = json.loads(json.dumps(values), parse_constant=lambda _: None)
            self._print(json.dumps(finite, ensure_ascii=sys.stdout.encoding != "utf-8", indent=1))

    def progress(self, text: str) -> "Progress":
        """Show a live line while a block runs, on a terminal; in a pipe and in logs nothing."""
        return Progress(text, is_terminal(sys.stderr) and not self.quiet)


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a line drawn there can be drawn over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Progress:
    """Keep one line of a terminal up to date from a thread, and remove it at the end.

    Whoever works only leaves words behind, so that drawing costs it nothing. `stream` is where the
    line is drawn: stderr, or the real one while `quiet_start` holds it.
    """

    SECONDS, PATIENCE = 0.25, 0.5  # between two drawings; before the first one

    def __init__(self, text: str, shown: bool, stream: TextIO | None = None) -> None:
        self.text, self.words, self.shown = text, text, shown
        self.stream = stream or sys.stderr
        self.number, self.trainings, self.began, self.what = 0.0, 0, time.monotonic(), ""
        self.ended = threading.Event()

    def say(self, words: str) -> None:
        """Tell what is being done, where nothing can be counted."""
        self.words = f"{self.text}: {words}"

    def epoch(self, number: float, epochs: int, loss: float, n_rows: int) -> None:
        """Tell how many epochs are over (2.5: half of the third), of how many, and the loss so far.

        `n_rows` is the number of rows in each of them, 0 where it is not known.
        """
        now = time.monotonic()
        if number <= self.number or not self.trainings:
            self.trainings += 1
            self.first, self.since = number, now
        self.number, done, seconds = number, number - self.first, now - self.since
        words = f"{self.text} {self.trainings}: epoch {math.ceil(number)} of {epochs}"
        words += f", loss {loss:.4g}"
        if done and seconds:
            words += f", {done * n_rows / seconds:,.0f} rows/s" if n_rows else ""
            words += f", {seconds / done * (epochs - number):.0f} s left"
        self.words = words

    def rows(self, what: str, done: int, total: int, unit: str = "rows") -> None:
        """Tell how many of all rows (or of another unit) were worked off so far."""
        if what != self.what:
            self.what, self.since = what, time.monotonic()
        seconds = time.monotonic() - self.since
        words = f"{self.text}: {what}, {done / total:.0%}"
        if done and seconds:
            words += (
                f", {done / seconds:,.0f} {unit}/s, {seconds / done * (total - done):.0f} s left"
            )
        self.words = words

    def __enter__(self) -> "Progress":
        self.thread = threading.Thread(target=self._draw, daemon=True)
        if self.shown:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.shown:
            self.thread.join()

    def _draw(self) -> None:
        width = 0
        while not self.ended.wait(self.SECONDS):
            seconds = time.monotonic() - self.began
            if seconds < self.PATIENCE:
                continue
            line = f"{self.words} ({seconds:.0f} s)"[: shutil.get_terminal_size().columns - 1]
            print(f"\r{line.ljust(width)}", end="", file=self.stream, flush=True)
            width = len(line)
        if width:
            print(f"\r{' ' * width}\r", end="", file=self.stream, flush=True)
