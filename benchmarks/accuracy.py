"""Compare held-out errors with tuned gradient boosting on the same rows, over several splits.

python benchmarks/accuracy.py
python benchmarks/accuracy.py --generate 7
python benchmarks/accuracy.py --files my_old.csv my_new.csv --target price

Ours is what the two scripts do by default: trained on old rows, then retrained on new ones. Each
rival gets the same training rows; beside the retrained model those are old and new rows together.
"""

import argparse
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import common  # first of all: it puts the project on the path
import make_data
import numpy as np
import pandas as pd
from sklearn.compose import (
    TransformedTargetRegressor,
    make_column_selector,
    make_column_transformer,
)
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import model_utils
import tabular
from comparison import format_amount

OURS, BOOSTING, BEST = "ours", "gradient boosting, tuned", "best reachable"
GRID = {
    "loss": ["squared_error", "absolute_error"],
    "learning_rate": [0.03, 0.1],
    "max_leaf_nodes": [4, 8, 16],
    "max_iter": [100, 300],
    "min_samples_leaf": [10, 30],
    "l2_regularization": [0.0, 10.0],
}


class Table:
    """Collect MAE and R² of each model on each split, and print mean ± standard deviation."""

    def __init__(self, title: str) -> None:
        self.title, self.scores = title, defaultdict(list)

    def add(self, model: str, y: pd.Series, prediction: np.ndarray, for_r2=None) -> None:
        """Score one split; `for_r2` is another prediction for R², where the best one differs."""
        r2 = r2_score(y, prediction if for_r2 is None else for_r2)
        self.scores[model].append((mean_absolute_error(y, prediction), r2))

    def add_rivals(self, train: pd.DataFrame, held_out: pd.DataFrame, target: str) -> None:
        """Fit and score the models to beat; their predictions stay within the training targets."""
        text = train.select_dtypes("str").columns
        types = {name: pd.CategoricalDtype(sorted(train[name].dropna().unique())) for name in text}
        X, y = train.drop(columns=target).astype(types), train[target]
        X_held_out = held_out[X.columns].astype(types)
        for name, model in rivals().items():
            predicted = model.fit(X, y).predict(X_held_out)
            self.add(name, held_out[target], np.clip(predicted, y.min(), y.max()))
        self.add("mean of the training rows", held_out[target], np.full(len(held_out), y.mean()))

    def add_best(self, held_out: pd.DataFrame) -> None:
        """Score the formula behind the rows: its median for MAE, its mean for R²."""
        median = np.clip(make_data.latent_amount(held_out), make_data.FLOOR, make_data.CAP)
        mean = make_data.expected_amount(held_out)
        self.add(BEST, held_out[make_data.TARGET], median, mean)

    def print(self) -> None:
        means = {model: np.mean(values, axis=0) for model, values in self.scores.items()}
        splits, lines = len(self.scores[OURS]), []
        for model in sorted(means, key=lambda model: means[model][0]):
            (mae, r2), (mae_sd, r2_sd) = means[model], np.std(self.scores[model], axis=0)
            ours = "" if model == OURS else f"{means[OURS][0] / mae - 1:+.1%}"
            lines.append(
                [
                    model,
                    f"{format_amount(mae)} ± {format_amount(mae_sd)}",
                    f"{r2:.3f} ± {r2_sd:.3f}",
                    ours,
                ]
            )
        print(f"{self.title} (held out; mean ± standard deviation of {splits} splits)\n")
        common.print_table(["model", "MAE", "R²", "our MAE against it"], lines)
        if BOOSTING in means:
            common.print_bar("our MAE / boosting's", means[OURS][0] / means[BOOSTING][0], "≤", 0.96)
        if BEST in means:
            common.print_bar("our R² / best reachable", means[OURS][1] / means[BEST][1], "≥", 0.97)


def rivals() -> dict:
    """Make the models to beat, for features of numbers and pandas categories."""
    boosting = HistGradientBoostingRegressor(early_stopping=False, random_state=0)
    search = GridSearchCV(boosting, GRID, cv=4, scoring="neg_mean_absolute_error", n_jobs=-1)
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_include="category")),
        remainder=make_pipeline(SimpleImputer(), StandardScaler()),
    )
    others = {
        "MLPRegressor": MLPRegressor(hidden_layer_sizes=(64, 32), random_state=0),
        "RidgeCV": RidgeCV(np.logspace(-2, 4, 25)),
    }
    scaled = {
        name: TransformedTargetRegressor(make_pipeline(encode, model), transformer=StandardScaler())
        for name, model in others.items()
    }
    return {BOOSTING: search, **scaled}


def first_training(table: Table, file: Path, target: str, seed: int, best: bool):
    """Train and score all models on one split of one file; return ours and its training rows."""
    trained, data = common.train(file, target, seed)
    train, held_out = data.table.loc[data.roles.train], data.table.loc[data.roles.held_out]
    X = tabular.encode(held_out, trained.preprocessor)
    table.add(OURS, held_out[target], model_utils.model_predict(trained.network, X))
    table.add_rivals(train, held_out, target)
    if best:
        table.add_best(held_out)
    return trained, train


def old_and_new(old: Path, new: Path, target: str, splits: int, best: bool) -> None:
    """Print the tables of old rows, of new rows, and of old rows after retraining."""
    first = Table("Old rows, first training")
    after = {"new": Table("New rows, retrained"), "old": Table("Old rows, retrained")}
    for seed in range(splits):
        parent, train = first_training(first, old, target, seed, best)
        result, rows = common.retrain(parent, new, seed)
        train = pd.concat([train, rows.new], ignore_index=True)
        for part, table in after.items():
            held_out, predictions = rows.held_out[part], result.predictions[part]
            table.add(OURS, held_out[target], predictions["retrained"])
            table.add("ours before retraining", held_out[target], predictions["parent"])
            if best:
                table.add_best(held_out)
        after["new"].add_rivals(train, rows.held_out["new"], target)
    for table in (first, *after.values()):
        table.print()


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--files", nargs=2, type=Path, metavar=("OLD", "NEW"), help="other files (the samples)")
    add("--target", default=make_data.TARGET, help="column to predict (%(default)s)")
    add("--generate", type=int, metavar="SEED", help="draw fresh files of the same formula")
    add("--splits", type=int, default=5, help="splits to average (%(default)s)")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)  # MLPRegressor stops at its default
    common.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or [common.DATA / f"df_{name}.csv" for name in ("old", "new")]
        if args.generate is not None:
            files = [Path(folder, f"{name}.csv") for name in ("old", "new")]
            for file in files:
                make_data.write_rows(file, file.stem, make_data.ROWS, args.generate)
        old_and_new(*files, args.target, args.splits, best=args.files is None)
        diabetes, file = Table("Diabetes study, 442 rows"), Path(folder, "diabetes.csv")
        load_diabetes(as_frame=True).frame.to_csv(file, index=False)
        for seed in range(args.splits):
            first_training(diabetes, file, "target", seed, best=False)
        diabetes.print()


if __name__ == "__main__":
    main()
