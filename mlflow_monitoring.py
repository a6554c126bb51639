"""Train the network on a table, score it on held-out rows, track everything in MLflow.

python mlflow_monitoring.py
python mlflow_monitoring.py --data my.csv --target price --drop id
mlflow ui
"""

import argparse
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from mlflow import ActiveRun, MlflowClient

    from memory import Roles
    from model_store import TrainedModel
    from model_utils import Checkpoint, Fit
    from streaming import DiskRows, Source, Stream
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
    with cli.quiet_start("starting", args.quiet) as starting:
        import skops.io  # noqa: F401  (before TensorFlow: a second faster)

        import distributed
        import model_store  # noqa: F401
        import model_utils
        import streaming
        import tracking  # noqa: F401

        distributed.join(args.worker_timeout, starting.say, starting.stream)
        model_utils.wake_device()
    terminal = cli.Terminal(args.quiet or not distributed.is_leader(), args.json)
    with streaming.workspace(args.models_dir) as folder:
        with terminal.progress(f"reading {args.data}") as progress:
            data = read(args, folder, progress.rows)
        for note in [*data.notes, *distributed.notes(args.batch_size)]:
            terminal.say(f"note: {note}")
        return track(args, data, terminal)


def track(args: argparse.Namespace, data: "Data", terminal: cli.Terminal) -> int:
    """Train, score, log and register in one MLflow run."""
    import distributed
    import model_store
    import model_utils
    import tracking

    building = cli.background(build_model, args, data)  # XLA compiles meanwhile
    if not distributed.is_leader():
        trained, X, y = building.result()
        fit_model(args, data, trained, X, y, model_utils.Checkpoint(None))
        return 0
    client, experiment_id = tracking.connect(args.tracking_uri, args.experiment, args.quiet)
    tags = {"phase": "training", "data_sha256": data.sha256}
    saved = tracking.checkpoint_file(args, __file__, data.sha256)
    checkpoint = model_utils.Checkpoint(saved, args.checkpoint_seconds)
    name = f"train {args.model_name}"
    with tracking.tracked_run(experiment_id, name, tags, checkpoint.run_id) as run:
        checkpoint.run_id = run.info.run_id
        log_inputs(client, run, args, data)
        with terminal.progress("training") as progress:
            if data.stream:
                data.stream.source.report = progress.rows
            checkpoint.watchers = [model_utils.Watch(progress.epoch)]
            trained, X, y = building.result()
            cli.background(model_store.look_through_packages)
            fit = fit_model(args, data, trained, X, y, checkpoint)
        model_store.save_preprocessor(trained.preprocessor, args.models_dir / "preprocessor.pkl")
        folder = args.models_dir / MODEL_NAME
        with tracking.kept_if_logging_fails(lambda: model_store.save_folder(trained, folder)):
            metrics = log_results(client, run, args, data, trained, fit)
            trained.card["result"] = in_words(metrics, args.unit)
            uri = model_store.log_model(trained, MODEL_NAME, step=args.epochs)
            with cli.uninterrupted():  # registered, promoted and told, or nothing of it
                version, verdict = publish(client, run, args, uri, trained)
        saved.unlink(missing_ok=True)
    conclude(terminal, args, run, metrics, uri, version, verdict)
    distributed.release()
    return 0


@dataclass
class Data:
    """Hold the rows of a first training, with their target: features of float64 and text.

    table: all rows, or a sample of both roles where `stream` has them all. sample: the numbers of
    the rows to train and to score on that are in the table.
    """

    schema: "Schema"
    table: "pd.DataFrame"
    hashes: "np.ndarray"
    roles: "Roles"
    sample: dict[str, "np.ndarray"]
    notes: list[str]
    stream: "Stream | None" = None

    @cached_property
    def sha256(self) -> str:
        from tracking import content_hash

        return content_hash(self.hashes)


def read(
    args: argparse.Namespace, folder: "Path", report: "Callable[[str, int, int], None]"
) -> Data:
    """Read and check the rows, and split them before anything is measured on them."""
    import streaming
    import tabular
    from memory import HELD_OUT, TRAIN, Memory, assign_roles

    options = {"test_size": args.test_size, "seed": args.seed, "source": args.data}
    if streaming.is_large(args.data, args.stream):
        return read_stream(args, streaming.Source(args.data, folder, report), options)
    rows, notes = tabular.read_rows(args.data)
    y = tabular.check_target(rows, args.target, args.data)
    schema, remarks = infer_schema(args, rows, len(rows))
    table = tabular.conform(rows, schema, source=args.data)
    hashes = tabular.row_hashes(table, y)
    roles = assign_roles(hashes, Memory(), **options)
    sample = {TRAIN: roles.train, HELD_OUT: roles.held_out}
    return Data(schema, table.assign(**{args.target: y}), hashes, roles, sample, notes + remarks)


def read_stream(args: argparse.Namespace, source: "Source", options: dict) -> Data:
    """Do as `read` for rows that do not fit in memory; only a sample of them comes along."""
    import numpy as np

    import streaming
    from memory import HELD_OUT, TRAIN, Memory, assign_roles, draw

    schema, remarks = infer_schema(args, next(source.chunks()), source.n_rows)
    hashes = source.hashes(schema)
    roles = assign_roles(hashes, Memory(), **options)
    limit = max(args.memory_rows, streaming.SAMPLE_ROWS)
    drawn = draw(hashes, roles, Memory(), generation=0, limit=limit, seed=args.seed)
    sample = {role: drawn[role][0] for role in (TRAIN, HELD_OUT)}
    chosen = np.sort(np.concatenate([*sample.values()]))
    stream, table = source.survey(schema, roles.train, chosen)
    notes = [*source.notes, *remarks]
    if len(sample[HELD_OUT]) < len(roles.held_out):
        notes.append(f"scores are of {limit:,} of {len(roles.held_out):,} held-out rows, at random")
    return Data(schema, table, hashes, roles, sample, notes, stream)


def infer_schema(args: argparse.Namespace, rows: "pd.DataFrame", n_rows: int) -> tuple:
    """Tell the kinds of columns by those of the first rows that train."""
    import tabular
    from memory import split_order

    n_held_out = math.ceil(args.test_size * n_rows)
    held_out = split_order(n_rows, args.seed)[:n_held_out]
    train = rows.drop(index=held_out[held_out < len(rows)])
    return tabular.infer_schema(train, args.target, args.drop)


def log_inputs(
    client: "MlflowClient", run: "ActiveRun", args: argparse.Namespace, data: Data
) -> None:
    """Log the arguments and the two datasets, before training starts."""
    import tracking
    from memory import HELD_OUT, TRAIN

    tracking.log_arguments(client, run.info.run_id, vars(args) | data.roles.counts)
    for context, role, numbers in (
        ("training", TRAIN, data.roles.train),
        ("held-out", HELD_OUT, data.roles.held_out),
    ):
        sha256 = tracking.content_hash(data.hashes, numbers)
        tracking.log_rows(
            data.table.loc[data.sample[role]], args.target, args.data, context, sha256
        )


def build_model(
    args: argparse.Namespace, data: Data
) -> tuple["TrainedModel", "np.ndarray | DiskRows", "np.ndarray | None"]:
    """Fit the preprocessor and create the network; return (TrainedModel, X, y) of training rows."""
    import model_utils
    from model_store import TrainedModel

    X: Any
    y: Any = None
    if data.stream:
        preprocessor = data.stream.totals.preprocessor()
        X = data.stream.encode(data.schema, preprocessor, args.batch_size, args.seed)
        scale = model_utils.target_scale(data.stream.totals)
    else:
        rows = data.table.loc[data.roles.train]
        X, y, preprocessor = model_utils.preprocessing(rows, target=args.target)
        y = y.to_numpy()
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
    X: "np.ndarray | DiskRows",
    y: "np.ndarray | None",
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
        data.table,
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
    from memory import HELD_OUT
    from model_utils import TargetScale, model_predict

    held_out = data.table.loc[data.sample[HELD_OUT]]
    y = held_out[args.target].to_numpy()
    prediction = model_predict(trained.network, tabular.encode(held_out, trained.preprocessor))
    scores = comparison.compare(y, {"model": prediction}).loc["model"]
    scale = trained.scale or TargetScale()
    metrics = {name.replace("²", "2"): float(value) for name, value in scores.items()}
    metrics |= {
        "MAE_mean": float(np.abs(y - scale.mean).mean()),
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
    from comparison import escape_markdown

    words = escape_markdown(trained.card["result"])
    about = model_card.about(trained.card, trained.schema)
    version = model_store.register(client, args.model_name, uri, f"{words}\n\n{about}")
    is_champion = False
    if model_store.champion_version(client, args.model_name) is None:
        is_champion = model_store.promote(client, args.model_name, version, None)
    role = "champion" if is_champion else "not champion, another version is"
    note = f"**{escape_markdown(args.model_name)} version {version}, {role}.** {words}"
    name = f"trained: {trained.card['result'].split(' on held-out')[0]}"
    tags = {"mlflow.note.content": note, "mlflow.runName": name}
    tracking.log_numbers(client, run.info.run_id, {}, tags=tags)
    return version, f"{role}: {trained.card['result']}"


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
