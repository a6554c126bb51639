"""Compare held-out errors with tuned gradient boosting on the same rows, over several splits.

python benchmarks/accuracy.py
python benchmarks/accuracy.py --generate 7
python benchmarks/accuracy.py --files my_old.csv my_new.csv --target price

Ours is what the two scripts do by default: trained on old rows, then retrained on new ones. Each
rival gets the same training rows; for the retrained model those are old and new rows together.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from common import DATA, machine, print_table, retrain, start_tensorflow, train, verdict
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

OURS, BOOSTING, MLP, RIDGE = "ours", "gradient boosting, tuned", "MLPRegressor", "RidgeCV"
MEAN, BEST, PARENT = "mean of the training rows", "best reachable", "ours before retraining"
GRID = {
    "loss": ["squared_error", "absolute_error"],
    "learning_rate": [0.03, 0.1],
    "max_leaf_nodes": [4, 8, 16],
    "max_iter": [100, 300],
    "min_samples_leaf": [10, 30],
    "l2_regularization": [0.0, 10.0],
}
Scores = dict[str, list[tuple[float, float]]]  # per model, (MAE, R²) of each split


class Boosting(BaseEstimator):
    """Gradient boosting with native categories, every option of GRID tried by 4-fold validation."""

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> "Boosting":
        text = X.select_dtypes("str").columns
        self.types_ = {
            name: pd.CategoricalDtype(sorted(X[name].dropna().unique())) for name in text
        }
        model = HistGradientBoostingRegressor(early_stopping=False, random_state=0)
        search = GridSearchCV(model, GRID, cv=4, scoring="neg_mean_absolute_error", n_jobs=-1)
        self.search_ = search.fit(X.astype(self.types_), y)
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return self.search_.predict(X.astype(self.types_))


def linear_or_network(regressor: BaseEstimator) -> BaseEstimator:
    """Put one-hot encoding and scaling, of the features and the target, around a regressor."""
    encode = ColumnTransformer(
        [("text", OneHotEncoder(handle_unknown="ignore", sparse_output=False), _text_columns)],
        remainder=StandardScaler(),
    )
    pipeline = make_pipeline(encode, regressor)
    return TransformedTargetRegressor(pipeline, transformer=StandardScaler())


def _text_columns(X: pd.DataFrame) -> list[str]:
    return list(X.select_dtypes("str").columns)


def rivals(seed: int, ridge: bool) -> dict[str, BaseEstimator]:
    """List the models to beat."""
    network = MLPRegressor(hidden_layer_sizes=(64, 32), random_state=seed)
    models = {BOOSTING: Boosting(), MLP: linear_or_network(network)}
    return models | ({RIDGE: linear_or_network(RidgeCV(np.logspace(-2, 4, 25)))} if ridge else {})


def score(scores: Scores, model: str, y: np.ndarray, for_mae, for_r2=None) -> None:
    """Note the MAE and the R² of one split; the best reachable has a prediction for each."""
    r2 = r2_score(y, for_mae if for_r2 is None else for_r2)
    scores.setdefault(model, []).append((mean_absolute_error(y, for_mae), r2))


def score_rivals(scores: Scores, models, train_rows, held_out, target: str) -> None:
    """Fit every rival, and note its errors; predictions stay within the training targets."""
    features = [name for name in train_rows if name != target]
    y, y_held_out = train_rows[target].to_numpy(), held_out[target].to_numpy()
    for name, model in models.items():
        predicted = model.fit(train_rows[features], y).predict(held_out[features])
        score(scores, name, y_held_out, np.clip(predicted, y.min(), y.max()))
    score(scores, MEAN, y_held_out, np.full(len(y_held_out), y.mean()))


def score_best(scores: Scores, held_out: pd.DataFrame, target: str) -> None:
    """Note the errors of the formula behind the rows: its mean for R², its median for MAE."""
    import make_data

    median = np.clip(make_data.latent_amount(held_out), make_data.FLOOR, make_data.CAP)
    y = held_out[target].to_numpy()
    score(scores, BEST, y, median, make_data.expected_amount(held_out))


def one_file(scores: Scores, path: Path, target: str, seed: int, best: bool, ridge: bool):
    """Train ours and the rivals on one split of one file; return our model and its rows."""
    from model_utils import model_predict
    from tabular import encode

    trained, data = train(path, target, seed)
    held_out, train_rows = data.part(data.roles.held_out), data.part(data.roles.train)
    predicted = model_predict(trained.network, encode(held_out, trained.preprocessor))
    score(scores, OURS, held_out[target].to_numpy(), predicted)
    score_rivals(scores, rivals(seed, ridge), train_rows, held_out, target)
    if best:
        score_best(scores, held_out, target)
    return trained, train_rows


def old_and_new(files: tuple[Path, Path], target: str, splits: int, best: bool) -> None:
    """Print the tables of old rows, new rows, and old rows after retraining."""
    tables: dict[str, Scores] = {"old": {}, "new": {}, "after": {}}
    for seed in range(splits):
        parent, old_rows = one_file(tables["old"], files[0], target, seed, best, ridge=False)
        result, rows = retrain(parent, files[1], seed)
        together = pd.concat([old_rows, rows.new], ignore_index=True)
        for table, part in (("new", "new"), ("after", "old")):
            held_out = rows.held_out[part][list(together.columns)]
            y, predictions = held_out[target].to_numpy(), result.predictions[part]
            score(tables[table], OURS, y, predictions["retrained"])
            score(tables[table], PARENT, y, predictions["parent"])
            models = rivals(seed, ridge=False) if part == "new" else {}
            score_rivals(tables[table], models, together, held_out, target)
            if best:
                score_best(tables[table], held_out, target)
    show("old rows, first training", tables["old"], splits)
    show("new rows, after retraining; rivals on old and new rows together", tables["new"], splits)
    show("old rows, after retraining", tables["after"], splits)


def diabetes(splits: int, folder: Path) -> None:
    """Print the table of the diabetes study of scikit-learn: 442 rows, hardly any signal."""
    from sklearn.datasets import load_diabetes

    file, scores = folder / "diabetes.csv", {}
    load_diabetes(as_frame=True).frame.to_csv(file, index=False)
    for seed in range(splits):
        one_file(scores, file, "target", seed, best=False, ridge=True)
    show("diabetes study", scores, splits)


def show(title: str, scores: Scores, splits: int) -> None:
    """Print mean ± standard deviation over the splits, and which bars are met."""
    print(f"{title}; held-out rows, mean ± standard deviation of {splits} splits\n")
    means = {model: np.mean(values, axis=0) for model, values in scores.items()}
    lines = []
    for model, values in sorted(scores.items(), key=lambda item: means[item[0]][0]):
        (mae, r2), (mae_sd, r2_sd) = means[model], np.std(values, axis=0)
        less = "" if model == OURS else f"{means[OURS][0] / mae - 1:+.1%}"
        lines.append([model, f"{mae:,.4g} ± {mae_sd:,.2g}", f"{r2:.3f} ± {r2_sd:.3f}", less])
    print_table(["model", "MAE", "R²", "our MAE against it"], lines)
    if BOOSTING in means:
        lower = 1 - means[OURS][0] / means[BOOSTING][0]
        print(f"MAE {lower:.1%} lower than boosting (bar: 4 %): {verdict(lower >= 0.04)}")
    if BEST in means:
        share = means[OURS][1] / means[BEST][1]
        print(f"R² {share:.1%} of the best reachable (bar: 97 %): {verdict(share >= 0.97)}")
    print(flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--files", nargs=2, type=Path, metavar=("OLD", "NEW"), help="other files (the samples)")
    add("--target", default="montant_pret", help="column to predict (%(default)s)")
    add("--generate", type=int, metavar="SEED", help="draw fresh files of 2,000 rows each")
    add("--splits", type=int, default=5, help="splits to average (%(default)s)")
    add("--no-diabetes", action="store_true", help="leave the diabetes study out")
    args = parser.parse_args()
    if args.files and args.generate is not None:
        parser.error("expected --files or --generate, not both")
    return args


def main() -> None:
    """Print all tables."""
    args = parse_args()
    print(f"{machine()}\n")
    start_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or (DATA / "df_old.csv", DATA / "df_new.csv")
        if args.generate is not None:
            import make_data

            files = tuple(Path(folder, f"{name}.csv") for name in ("old", "new"))
            for file in files:
                make_data.write_rows(file, file.stem, make_data.ROWS, args.generate)
        old_and_new(files, args.target, args.splits, best=args.files is None)
        if not args.no_diabetes:
            diabetes(args.splits, Path(folder))


if __name__ == "__main__":
    main()
