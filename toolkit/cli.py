"""What the scripts share on the terminal: settings, quiet start, exit codes, words, last lines.

Imports nothing heavy, so that `--help` answers at once.
"""

import argparse
import atexit
import contextlib
import dataclasses
import difflib
import gc
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from .errors import UserError, masked, reason
from .language import LANGUAGES, of_locale, spoken, translate

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGINT, signal.SIGTERM)
NAME = "loan-amount"  # of the experiment and of the registered model
STORE = "sqlite:///mlflow.db"  # where 'mlflow ui' looks without a flag
DATA = "data/df_old.csv"
USUAL = {"tracking_uri": STORE, "experiment": NAME, "model_name": NAME, "lang": of_locale()}
NO_RESULT = {"quiet", "json", "resume", "exit_code", "lang"}  # settings that change none
KEPT = 3  # exit code
BUFFER_ROWS = 20_000
MANY = 4  # notes; more that differ in column and amount alone are told together
QUOTED = r"""('[^']*'|"[^"]*")"""
VIEW = "verdicts"  # of the columns that MLflow shows of runs
STYLES = {"better": "bold green", "no_worse": "bold green", "worse": "bold yellow"}


def checked(convert: Callable, accepts: Callable, expected: str) -> Callable[[str], Any]:
    """Make a `type` for `option`: convert the text, refuse what is not accepted."""

    def check(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = convert(text)
            if accepts(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} was passed; expected {expected}")

    return check


whole = checked(int, lambda v: v >= 1, "a whole number of at least 1")
natural = checked(int, lambda v: 0 <= v < 2**31, "a whole number from 0 on")
positive = checked(float, lambda v: 0 < v < float("inf"), "a number above 0")
share = checked(float, lambda v: 0 < v < 1, "a share between 0 and 1, such as 0.2")
name = checked(str, str.strip, "a name")
uri = checked(str, str.strip, "a URI")
version = checked(str, str.isdecimal, "the number of a version, such as 2")
plain = re.compile(r"(?!\s*$|\.$|.*\.\.)[^/:]+").fullmatch
model_name = checked(str, plain, "a name without / and : and ..")


def _is_page(file: str) -> bool:
    path = Path(file)
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=path.parent):
        return path.suffix.lower() in (".html", ".htm", ".md") and not path.is_dir()
    return False


page = checked(str, _is_page, "a name ending in .html or .md, in a folder that can be written to")


def option(default: Any, help: str, **flag: Any) -> Any:
    """Declare a field of settings that is a flag of argparse; a callable default is asked late."""
    make = default if callable(default) else lambda: default
    return dataclasses.field(default_factory=make, metadata=flag | {"help": help})


@dataclasses.dataclass
class StoreSettings:
    """The settings of every script: where things are kept, what is printed, what is read."""

    experiment: str = option(
        lambda: os.environ.get("MLFLOW_EXPERIMENT_NAME") or NAME, "MLflow experiment", type=name
    )
    model_name: str = option(NAME, "registered model", type=model_name)
    tracking_uri: str = option(
        lambda: os.environ.get("MLFLOW_TRACKING_URI") or STORE, "MLflow store or server"
    )
    models_dir: Path = option(Path("models"), "local copies of models")  # noqa: RUF009
    lang: str = option(of_locale, "language of words and figures", choices=LANGUAGES)
    workers: int = option(1, "processes that share the rows, by Ray (docs/SCALING.md)", type=whole)
    quiet: bool = option(False, "print nothing but errors")
    json: bool = option(False, "print the result as one JSON object, nothing else")
    data: str = option(DATA, "file, folder, glob or URL of rows", metavar="FILE")
    query: str | None = option(None, "SQL query, where --data is a database", metavar="SQL")


@dataclasses.dataclass
class TrainingSettings(StoreSettings):
    """The settings that training and retraining share."""

    na: tuple[str, ...] = option((), "more markers of missing values", nargs="+", metavar="MARKER")
    epochs: int | None = option(None, "passes over the training rows", type=whole)
    batch_size: int | None = option(None, "rows per update", type=whole)
    learning_rate: float | None = option(None, "at the start", type=positive)
    seed: int = option(42, "of roles, weights and order", type=natural)
    test_size: float = option(0.2, "share of rows held out for good", type=share)
    refit: bool = option(False, "train a promoted model on its held-out rows, too, once scored")
    resume: bool = option(False, "continue the same command where it was interrupted")
    exit_code: bool = option(
        False, f"exit with {KEPT} when the champion stays, or no retraining looks worthwhile"
    )

    def exit_with(self, good: bool) -> int:
        """Return the exit code of a training: `good` when promoted, or worth a retraining."""
        return KEPT if self.exit_code and not good else 0


Settings = TypeVar("Settings", bound=StoreSettings)


class Parser(argparse.ArgumentParser):
    """Report a wrong argument in one line, with the flag that was probably meant."""

    def error(self, message: str) -> NoReturn:
        if unknown := re.search(r"unrecognized arguments: (--?[\w-]+)", message):
            close = difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
            message += f"; did you mean {close[0]}?" if close else ""
        words = translate(" ".join(message.split()))
        self.exit(2, translate(f"error: {words} (see {self.prog} --help)") + "\n")


def parse(
    settings: type[Settings], argv: Sequence[str] | None, prog: str, description: str
) -> Settings:
    """Read a command line into the dataclass `settings`; exit with 2 and one line if wrong."""
    _open_streams()
    words = sys.argv[1:] if argv is None else argv
    asked = re.findall(rf"--lang[= ]({'|'.join(LANGUAGES)})\b", " ".join(words))
    with spoken(asked[-1] if asked else of_locale()):  # wrong arguments are told in it, too
        title = translate(description.strip().partition("\n")[0])
        parser = Parser(prog, description=title, add_help=False)
        told = translate("show this help and exit")
        parser.add_argument("-h", "--help", action="help", help=told)
        for word in words:
            if word != word.encode(errors="replace").decode():  # neither MLflow nor JSON keeps it
                parser.error(f"{word!r} was passed; expected UTF-8 text: rename it")
        for field in dataclasses.fields(settings):
            default = field.default_factory()  # type: ignore[misc]
            flag = {"default": default, **field.metadata}
            flag["help"] = translate(flag["help"])
            if isinstance(default, bool):
                flag["action"] = argparse.BooleanOptionalAction if default else "store_true"
            elif default not in (None, ()):
                flag.setdefault("type", type(default))
                flag["help"] += " (%(default)s)"
            parser.add_argument(f"--{field.name.replace('_', '-')}", **flag)
        given = vars(parser.parse_args(words)).items()
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given}
    return settings(**values)


def _open_streams() -> None:
    """Let whatever is printed, help too, go into any log, and into none where stderr is closed."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may know no euro sign
        sys.stdout.reconfigure(errors="replace")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the end
        os.dup2(sys.stderr.fileno(), 2)


def run(script: Callable[[Settings], int], settings: Settings) -> int:
    """Run a script; return its exit code: 2 after a user's error, 130 after an interruption."""
    atexit.register(gc.freeze)  # looking through a training for garbage at the end costs 0.8 s
    for signum in SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:  # a shell's background job ignores them
            signal.signal(signum, signal.default_int_handler)
    with spoken(settings.lang):
        try:
            settings.models_dir.mkdir(parents=True, exist_ok=True)  # an error now, not later
            tempfile.TemporaryFile(dir=settings.models_dir).close()
            return script(settings)
        except KeyboardInterrupt:
            code, words = 130, "interrupted: a run that had not finished is marked KILLED"
        except Exception as error:
            code, words = 2, f"error: {masked(' '.join(explain(error).split()))}"
        finally:
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()  # ends local workers, and leaves a cluster alone
        print(translate(words), file=sys.stderr)
    return code


def explain(error: Exception) -> str:
    """Put an error that its user can mend into words; raise any other again."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FloatingPointError):
        return f"training diverged: {error}; expected a finite loss: lower --learning-rate"
    if isinstance(error, OSError):
        return f"{reason(error)}: {error.filename or ''}; check the path, its permissions and disk"
    if type(error).__module__.split(".")[0] in ("mlflow", "sqlalchemy"):
        return f"MLflow refused: {reason(error)}; check --tracking-uri and that it is writable"
    raise error


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put SIGINT and SIGTERM off until the block is done, for steps that belong together."""
    came: list[int] = []
    before = {each: signal.signal(each, lambda signum, _: came.append(signum)) for each in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def quiet_start(text: str = "starting", quiet: bool = True) -> Iterator[None]:
    """Drop what libraries write to file descriptor 2 while they start; show `text` meanwhile.

    The garbage collector rests, and leaves alone for good what came: millions of objects, 2 s.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # real errors are exceptions, too
    gc.disable()
    with os.fdopen(os.dup(2), "w") as real, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            with Console(file=real, quiet=quiet).status(Text(translate(text))):
                yield
        finally:
            os.dup2(real.fileno(), 2)
            gc.freeze()
            gc.enable()


def command(program: str, *arguments: str) -> str:
    """Write a command of this Python environment, ready to be pasted in this folder."""
    own = Path(sys.executable).with_name(program)
    words = [program if shutil.which(program) == str(own) else str(own)]
    for word in arguments:
        is_elsewhere = word.endswith(".py") and not Path(word).exists()
        words.append(str(ROOT / word) if is_elsewhere else word)
    return shlex.join(word.removeprefix(f"{Path.cwd()}{os.sep}") for word in words)


def load_function(place: str | None) -> Callable | None:
    """Load a function of the user's from FILE.py:FUNCTION; None for None."""
    if place is None:
        return None
    file, _, function = place.rpartition(":")
    try:
        return runpy.run_path(file)[function]
    except (OSError, KeyError, SyntaxError, ImportError) as error:
        raise UserError(
            f"{place!r} cannot be loaded ({type(error).__name__}: {reason(error)}); expected "
            "FILE.py:FUNCTION, a function of input_dim that returns a Keras model"
        ) from error


def same_place(settings: StoreSettings) -> list[str]:
    """Name store, experiment and registered model for a command to paste, where not the usual."""
    changed = [key for key, usual in USUAL.items() if getattr(settings, key) != usual]
    return [w for k in changed for w in (f"--{k.replace('_', '-')}", getattr(settings, k))]


class Terminal(Console):
    """Print words and tables; with `as_json` one object instead, with `quiet` nothing at all."""

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        width = shutil.get_terminal_size((10_000, 24)).columns  # in a pipe nothing is wrapped
        quiet &= not as_json  # the object was asked for
        super().__init__(quiet=quiet, width=width, markup=False, emoji=False, highlight=False)
        self.as_json = as_json

    def say(self, text: str = "", style: str = "") -> None:
        """Print words as they are; `style`, such as "bold green", shows on a terminal only."""
        if not self.as_json:
            self.out(translate(text), style=style, highlight=False)

    def notes(self, notes: Sequence[str]) -> None:
        """Print what was recognised, left out or guessed, a line each, and many alike together."""
        alike: dict[str, list[str]] = {}
        for note in notes:
            alike.setdefault(re.sub(rf"{QUOTED}|\d[\d,]*", "", note), []).append(note)
        for first, *others in alike.values():
            if len(others) >= MANY:
                names = ", ".join(name for note in others for name in re.findall(QUOTED, note)[:1])
                others = [f"likewise {len(others)} more columns: {names}"]
            for note in (first, *others):
                self.say(f"note: {masked(note)}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], bold: str = "") -> None:
        """Print aligned columns, folded where too wide; the row named `bold` stands out."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for i, title in enumerate(header):
            table.add_column(translate(title), justify="right" if i else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(translate, row), style="bold" if row[0] == bold else "")
        if not self.as_json:
            self.print(table)

    def result(self, **values: object) -> None:
        """Print the one object of `--json`; NaN and infinity, which JSON lacks, become null."""
        if self.as_json:
            text = json.dumps(values, default=lambda v: v.item() if hasattr(v, "item") else str(v))
            finite = json.loads(text, parse_constant=lambda _: None)
            self.out(json.dumps(finite, indent=1), highlight=False)

    def progress(self, text: str) -> Status:
        """Show a live line on a terminal while a block runs, nothing in a pipe; it has `update`."""
        return Console(stderr=True, quiet=self.quiet).status(Text(translate(masked(text))))

    def on_broken_pipe(self) -> None:
        """Go on working when whoever read has gone, as in '| head'."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def conclude(
    terminal: Terminal, settings: StoreSettings, run: Any, steps: Sequence[str], **facts: Any
) -> None:
    """Print verdict, model, next commands and the UI's address, or all as JSON, as `facts` say."""
    base = settings.tracking_uri.rstrip("/")
    if not base.startswith("http"):
        flags = [] if base == STORE else ["--backend-store-uri", settings.tracking_uri]
        steps, base = [*steps, command("mlflow", "ui", *flags)], "http://127.0.0.1:5000"
    url = f"{base}/#/experiments/{run.experiment_id}/runs?"
    url += f"viewStateShareKey={VIEW}&workflowType=machine_learning"
    name = settings.model_name
    terminal.say(facts["verdict"], STYLES.get(facts.get("verdict_kind", "better"), "bold red"))
    terminal.say(f"{name} version {facts['version']} is {facts['model_uri']}")
    if facts["refit"]:
        terminal.say("it was trained once more, on its held-out rows as well")
    terminal.say("\nNext:")
    for step in [*steps, f"open {url}"]:
        terminal.say(f"  {step}")
    ids = {"model_name": name, "run_id": run.run_id, "experiment_id": run.experiment_id}
    terminal.result(**facts, **ids, next=list(steps), url=url)
