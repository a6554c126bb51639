"""Train the network on a table, score it on held-out rows, track everything in MLflow.

python mlflow_monitoring.py
python mlflow_monitoring.py --data my.csv --target price --drop id
mlflow ui
"""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cli

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from mlflow import ActiveRun, MlflowClient

    from memory import Roles
    from model_store import TrainedModel
    from model_utils import Checkpoint, Fit
    from tabular import Schema

MODEL_NAME, DATA = "mlflow_model", "data/df_old.csv"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser("mlflow_monitoring.py", description=__doc__.splitlines()[0])
    cli.common_arguments(parser, data=DATA)
    parser.add_argument("--target", default="montant_pret", help="column to learn (%(default)s)")
    parser.add_argument("--drop", nargs="+", default=[], metavar="COLUMN", help="columns to ignore")
    parser.add_argument("--unit", help="unit of the target in words and figures (€ for loans)")
    args = parser.parse_args(argv)
    if args.unit is None:
        args.unit = "€" if args.target == "montant_pret" else ""
    return args


def main(argv: list[str] | None = None) -> int:
    """Train, score, log and register one model; return the exit code."""
    return cli.run(train, parse_args(argv))


def train(args: argparse.Namespace) -> int:
    """Do the work of `main`, phase by phase."""
    with cli.quiet_start():
        import skops.io  # noqa: F401  (before TensorFlow: a second faster)

        import model_store
        import model_utils
        import tracking

        model_utils.wake_device()
    terminal = cli.Terminal(args.quiet, args.json)
    with terminal.progress(f"reading {args.data}"):
        data = read(args)
    for note in data.notes:
        terminal.say(f"note: {note}")
    building = cli.background(build_model, args, data)  # XLA compiles meanwhile
    client, experiment_id = tracking.connect(args.tracking_uri, args.experiment)
    tags = {"phase": "training", "data_sha256": data.sha256}
    saved = tracking.checkpoint_file(args, __file__, data.sha256)
    checkpoint = model_utils.Checkpoint(saved, args.checkpoint_seconds)
    name = f"train {args.model_name}"
    with tracking.tracked_run(experiment_id, name, tags, checkpoint.run_id) as run:
        checkpoint.run_id = run.info.run_id
        log_inputs(client, run, args, data)
        with terminal.progress("training") as progress:
            checkpoint.watchers = [model_utils.Watch(progress.epoch)]
            trained, X, y = building.result()
            fit = fit_model(args, data, trained, X, y, checkpoint)
        model_store.save_preprocessor(trained.preprocessor, args.models_dir / "preprocessor.pkl")
        folder = args.models_dir / MODEL_NAME
        with tracking.kept_if_logging_fails(lambda: model_store.save_folder(trained, folder)):
            metrics = log_results(client, run, args, data, trained, fit)
            trained.card["result"] = in_words(metrics, args.unit)
            uri = model_store.log_model(trained, MODEL_NAME, step=args.epochs)
            version, verdict = publish(client, run, args, uri, trained)
        saved.unlink(missing_ok=True)
    conclude(terminal, args, run, metrics, uri, version, verdict)
    return 0


@dataclass
class Data:
    """Hold the rows of a first training: features of float64 and text, target, roles."""

    schema: "Schema"
    table: "pd.DataFrame"
    y: "pd.Series"
    hashes: "np.ndarray"
    roles: "Roles"
    sha256: str
    notes: list[str]

    def part(self, numbers: "np.ndarray | slice") -> "pd.DataFrame":
        """Return some rows with their target, as the memory and MLflow see them."""
        return self.table.iloc[numbers].assign(**{self.schema.target: self.y.iloc[numbers]})


def read(args: argparse.Namespace) -> Data:
    """Read and check the rows, and split them before anything is measured on them."""
    import numpy as np

    import tabular
    from memory import Memory, assign_roles
    from model_utils import split
    from tracking import content_hash

    rows, notes = tabular.read_rows(args.data)
    y = tabular.check_target(rows, args.target, args.data)
    train_numbers, *_ = split(np.arange(len(y)), y, args.test_size, args.seed)
    schema, remarks = tabular.infer_schema(rows.iloc[train_numbers], args.target, args.drop)
    table = tabular.conform(rows, schema, source=args.data)
    hashes = tabular.row_hashes(table, y)
    roles = assign_roles(
        hashes, Memory(), test_size=args.test_size, seed=args.seed, source=args.data
    )
    return Data(schema, table, y, hashes, roles, content_hash(hashes), notes + remarks)


def log_inputs(
    client: "MlflowClient", run: "ActiveRun", args: argparse.Namespace, data: Data
) -> None:
    """Log the arguments and the two datasets, before training starts."""
    import tracking

    tracking.log_arguments(client, run.info.run_id, vars(args) | data.roles.counts)
    for context, numbers in (("training", data.roles.train), ("held-out", data.roles.held_out)):
        tracking.log_rows(data.part(numbers), data.schema, args.data, context)


def build_model(
    args: argparse.Namespace, data: Data
) -> tuple["TrainedModel", "np.ndarray", "np.ndarray"]:
    """Fit the preprocessor and create the network; return (TrainedModel, X, y) of training rows."""
    import numpy as np

    import model_utils
    from model_store import TrainedModel

    rows = data.part(data.roles.train)
    X, y, preprocessor = model_utils.preprocessing(rows, target=args.target)
    y = np.asarray(y)
    scale = model_utils.target_scale(y)
    network = model_utils.create_nn_model(
        X.shape[1], scale=scale, learning_rate=args.learning_rate, seed=args.seed
    )
    model_utils.compile_ahead(network, X, y, args.batch_size)
    return TrainedModel(network, preprocessor, data.schema, scale), X, y


def fit_model(
    args: argparse.Namespace,
    data: Data,
    trained: "TrainedModel",
    X: "np.ndarray",
    y: "np.ndarray",
    checkpoint: "Checkpoint",
) -> "Fit":
    """Train the network and give it its memory and card; return how it was fitted."""
    import model_utils
    from memory import Memory, remember

    fit = model_utils.fit_network(
        trained.network,
        X,
        y,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        checkpoint=checkpoint,
    )
    trained.memory = remember(
        Memory(),
        data.part(slice(None)),
        data.hashes,
        data.roles,
        generation=0,
        limit=args.memory_rows,
        seed=args.seed,
    )
    lineage = {"generation": 0, "data": args.data, "sha256": data.sha256, **data.roles.counts}
    trained.card = {
        "run_id": checkpoint.run_id,
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "weight_decay": fit.weight_decay,
        "unit": args.unit,
        "lineage": [lineage],
    }
    return fit


def score(
    args: argparse.Namespace, data: Data, trained: "TrainedModel", fit: "Fit"
) -> tuple[dict[str, float], dict[str, "Figure"]]:
    """Score the model on the held-out rows; return (metrics, figures)."""
    import numpy as np

    import comparison
    import figures
    import tabular
    from model_utils import evaluate_performance, model_predict

    held_out = data.table.iloc[data.roles.held_out]
    y = data.y.iloc[data.roles.held_out].to_numpy()
    prediction = model_predict(trained.network, tabular.encode(held_out, trained.preprocessor))
    scores = evaluate_performance(y, prediction)
    mean = data.y.iloc[data.roles.train].mean()
    metrics = {
        "MAE": scores["MAE"],
        "MSE": scores["MSE"],
        "R2": scores["R²"],
        "MAE_mean": float(np.abs(y - mean).mean()),
        "weight_decay": fit.weight_decay,
    }
    groups = comparison.groups(held_out, data.schema.categorical, y, None, prediction)
    pictures = {
        "learning_curve": figures.learning_curve(fit.curves),
        "predicted_against_actual": figures.predicted_against_actual(
            y, {"model": prediction}, args.unit
        ),
    }
    if len(groups):
        pictures["error_per_group"] = figures.error_per_group(groups, args.unit)
    return metrics, pictures


def log_results(
    client: "MlflowClient",
    run: "ActiveRun",
    args: argparse.Namespace,
    data: Data,
    trained: "TrainedModel",
    fit: "Fit",
) -> dict[str, float]:
    """Log scores, curves and figures; return the metrics."""
    import tracking

    metrics, figures = score(args, data, trained, fit)
    curves = {f"epoch/{name}": values for name, values in fit.curves.items()}
    curves["epoch/final_loss"] = fit.final
    tracking.log_numbers(client, run.info.run_id, metrics, curves, step=args.epochs)
    tracking.log_figures(figures)
    return metrics


def in_words(metrics: dict, unit: str) -> str:
    """Say in one line how well the model does."""
    from comparison import format_amount

    mae, mean = (format_amount(metrics[key], unit) for key in ("MAE", "MAE_mean"))
    return f"MAE {mae} on held-out rows, R² {metrics['R2']:.3f} (predicting the mean: MAE {mean})"


def publish(
    client: "MlflowClient",
    run: "ActiveRun",
    args: argparse.Namespace,
    uri: str,
    trained: "TrainedModel",
) -> tuple[str, str]:
    """Register the model, make it champion when there is none, tell so in the run.

    Returns (version, verdict in words).
    """
    import model_card
    import model_store
    import tracking

    words, about = trained.card["result"], model_card.about(trained.card, trained.schema)
    version = model_store.register(client, args.model_name, uri, f"{words}\n\n{about}")
    is_champion = False
    if model_store.champion_version(client, args.model_name) is None:
        is_champion = model_store.promote(client, args.model_name, version, None)
    role = "champion" if is_champion else "not champion, another version is"
    note = f"**{args.model_name} version {version}, {role}.** {words}"
    name = f"trained: {words.split(' on held-out')[0]}"
    tags = {"mlflow.note.content": note, "mlflow.runName": name}
    tracking.log_numbers(client, run.info.run_id, {}, tags=tags)
    return version, f"{role}: {words}"


def conclude(
    terminal: cli.Terminal,
    args: argparse.Namespace,
    run: "ActiveRun",
    metrics: dict[str, float],
    uri: str,
    version: str,
    verdict: str,
) -> None:
    """Print the metrics, the verdict and the next commands, or all of it as one object."""
    from comparison import format_amount
    from tracking import ui_steps

    unit = args.unit
    terminal.table(
        ["held-out rows", "model", "mean predictor"],
        [
            ["MAE", format_amount(metrics["MAE"], unit), format_amount(metrics["MAE_mean"], unit)],
            ["RMSE", format_amount(metrics["MSE"] ** 0.5, unit), ""],
            ["R²", f"{metrics['R2']:.3f}", ""],
        ],
    )
    terminal.say()
    flags = ["--model-uri", uri, *cli.same_place(args)]
    flags += [] if args.data == DATA else ["--data", "NEW_ROWS.csv"]
    steps = [cli.command("python", "mlflow_retrain.py", *flags)]
    steps += ui_steps(args, run.info.experiment_id)
    cli.conclude(terminal, args, run, uri, version, verdict, steps, metrics=metrics)


if __name__ == "__main__":
    cli.leave(main())
