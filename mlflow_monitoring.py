"""Train a network on a table, score it on held-out rows, track everything in MLflow.

python mlflow_monitoring.py
python mlflow_monitoring.py --data my.csv --target price --drop id
mlflow ui
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from toolkit import cli
from toolkit.cli import option

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mlflow import MlflowClient

    from toolkit.artifact import TrainedModel
    from toolkit.checkpoint import Checkpoint
    from toolkit.columns import Schema
    from toolkit.roles import Roles

MODEL_NAME, DATA = "mlflow_model", "data/df_old.csv"


@dataclass
class Settings(cli.TrainingSettings):
    """The flags of this script, beside those of `cli.TrainingSettings`."""

    data: str = option(DATA, "file, folder, glob or URL of rows", metavar="FILE")
    target: str = option("montant_pret", "column to learn", metavar="COLUMN")
    unit: str | None = option(None, "unit of the target in words and figures (€ for loans)")
    drop: tuple[str, ...] = option((), "columns to ignore", nargs="+", metavar="COLUMN")
    keep: tuple[str, ...] = option((), "columns to use anyway", nargs="+", metavar="COLUMN")
    numeric: tuple[str, ...] = option((), "columns of numbers", nargs="+", metavar="COLUMN")
    categorical: tuple[str, ...] = option((), "columns of categories", nargs="+", metavar="COLUMN")
    date: tuple[str, ...] = option((), "columns of dates", nargs="+", metavar="COLUMN[=FORMAT]")
    group: str | None = option(None, "hold out whole groups of equal values", metavar="COLUMN")
    time: str | None = option(None, "hold out the latest rows by this column", metavar="COLUMN")
    network: str | None = option(None, "network of your own", metavar="FILE.py:FUNCTION")


def main(argv: list[str] | None = None) -> int:
    """Train, score, log and register one model; return the exit code."""
    return cli.run(train, cli.parse(Settings, argv, "mlflow_monitoring.py", __doc__ or ""))


def train(settings: Settings) -> int:
    """Do the work of `main`, phase by phase."""
    with cli.quiet_start("starting", settings.quiet):
        import model_utils
        from toolkit import reading, roles
    terminal = cli.Terminal(settings.quiet, settings.json)
    build = cli.load_function(settings.network)

    # Read: every row brought to one form, and hashed.
    with terminal.progress(f"reading {settings.data}"):
        table, schema, notes = reading.read_first(settings)
    terminal.notes(notes)

    # Split: the role of a row follows from its content, here and in every later file.
    group, time = settings.group or "", settings.time or ""
    role = roles.Roles.choose(table, settings.test_size, settings.seed, group, time)
    table = role.assign(table, generation=0)
    train_rows, test_rows, y_train, y_test = model_utils.split(
        table, table[settings.target].to_numpy(), held_out=role.held_out(table)
    )
    roles.check_enough(len(y_train), len(y_test), settings.data)

    return track(settings, terminal, build, schema, role, table, train_rows, test_rows)


def track(
    settings: Settings,
    terminal: cli.Terminal,
    build: Any,
    schema: "Schema",
    role: "Roles",
    table: "pd.DataFrame",
    train_rows: "pd.DataFrame",
    test_rows: "pd.DataFrame",
) -> int:
    """Preprocess, train, score, log and register in one MLflow run."""
    import model_utils
    from toolkit import tracking
    from toolkit.checkpoint import Checkpoint

    y_train, y_test = (rows[settings.target].to_numpy() for rows in (train_rows, test_rows))
    client, experiment = tracking.connect(settings.tracking_uri, settings.experiment)
    tags = {"phase": "training", "data_sha256": tracking.content_hash(table)}
    checkpoint = Checkpoint(settings, __file__, tags["data_sha256"])
    name = f"train {settings.model_name}"
    with tracking.tracked_run(experiment, name, tags, checkpoint.run_id) as run:
        run_id = checkpoint.begin(run.info.run_id)
        log_inputs(client, run_id, settings, train_rows, test_rows)

        # Preprocess: measured on training rows alone. Train: as validation rows among them advise.
        with terminal.progress("training") as progress:
            X, _, preprocessor = model_utils.preprocessing(train_rows, schema=schema)
            network, facts, curves = fit(
                settings, X, y_train, preprocessor.bins, checkpoint, progress.update, build
            )

        # Score: on rows that nothing above has seen.
        prediction = model_utils.model_predict(network, preprocessor.transform(test_rows))
        metrics = scores(y_train, y_test, prediction)
        trained = make_model(settings, run_id, network, preprocessor, role, table, metrics, facts)
        results = (metrics, curves, test_rows, prediction)
        uri, version, verdict = keep(settings, client, run_id, trained, *results)
        checkpoint.remove()
    say_all(settings, terminal, run.info, uri, version, verdict, metrics)
    return 0


def log_inputs(
    client: "MlflowClient",
    run_id: str,
    settings: Settings,
    train_rows: "pd.DataFrame",
    test_rows: "pd.DataFrame",
) -> None:
    """Log the settings and both datasets, before training starts."""
    from toolkit import roles, tracking

    counts = {"trained_on": len(train_rows), "held_out": len(test_rows)}
    tracking.log_settings(client, run_id, settings, rows=sum(counts.values()), **counts)
    for context, rows in (("training", train_rows), ("held-out", test_rows)):
        tracking.log_rows(roles.own_columns(rows), settings.target, settings.data, context)


def make_model(
    settings: Settings,
    run_id: str,
    network: Any,
    preprocessor: Any,
    role: "Roles",
    table: "pd.DataFrame",
    metrics: dict[str, float],
    facts: dict[str, Any],
) -> "TrainedModel":
    """Put everything that one URI will hold together; `facts` go into its card."""
    from toolkit import artifact, report, roles

    data, counts = cli.without_password(settings.data), roles.counts(table)
    card = {
        "run_id": run_id,
        "unit": unit_of(settings),
        "result": in_words(metrics, unit_of(settings)),
        "lineage": [{"generation": 0, "run_id": run_id, "data": data, **counts}],
        **facts,
    }
    buffer = roles.remember(table.head(0), table, settings.buffer_rows)
    text = report.model_card(card, preprocessor.schema)
    return artifact.TrainedModel(network, preprocessor, role, buffer, card, model_card=text)


def unit_of(settings: Settings) -> str:
    """Return the unit of the target."""
    return settings.unit or ("€" if settings.target == "montant_pret" else "")


def keep(
    settings: Settings,
    client: "MlflowClient",
    run_id: str,
    trained: "TrainedModel",
    metrics: dict[str, float],
    curves: dict[str, list[float]],
    test_rows: "pd.DataFrame",
    prediction: "np.ndarray",
) -> tuple[str, str, str]:
    """Save, log and register the model; return (its URI, version, verdict in words)."""
    from toolkit import artifact, tracking

    pickle, folder = settings.models_dir / "preprocessor.pkl", settings.models_dir / MODEL_NAME
    artifact.save_preprocessor(trained.preprocessor, pickle)
    with tracking.resumable():
        artifact.save_folder(trained, folder)
        log_results(client, run_id, metrics, curves, trained, test_rows, prediction)
        uri = artifact.log_model(trained, MODEL_NAME, step=len(curves["final_loss"]))
        with cli.uninterrupted():  # registered, promoted and told, or nothing of it
            version, verdict = publish(client, run_id, settings, uri, trained)
    return uri, version, verdict


def fit(
    settings: Settings,
    X: "np.ndarray",
    y: "np.ndarray",
    bins: list,
    checkpoint: "Checkpoint",
    tell: Any,
    build: Callable | None = None,
) -> tuple:
    """Choose a recipe, create the network and train it on all training rows.

    Returns (network, what its card says of it, curves).
    """
    import model_utils

    base = model_utils.sized_recipe(len(X), settings.epochs, settings.batch_size)
    base = replace(base, learning_rate=settings.learning_rate or base.learning_rate)
    recipes, curves = [replace(base, bins=False)], dict[str, list[float]]()
    if build is None:
        callbacks = checkpoint.callbacks("search", tell)
        options: dict[str, Any] = {"base": base, "callbacks": callbacks, "seed": settings.seed}
        search = partial(model_utils.choose_recipe, X, y, bins, **options)
        recipes, curves = search()
    scale = model_utils.target_scale(y)
    network = model_utils.create_nn_model(
        X.shape[1], recipes[0], scale, bins, seed=settings.seed, build=build
    )
    callbacks = checkpoint.callbacks("training", tell)
    history = model_utils.train_members(
        network, X, y, scale, recipes, callbacks=callbacks, seed=settings.seed
    )
    curves = {**curves, "final_loss": history.history.get("loss", [])}
    return network, {"recipe": asdict(recipes[0]), "scale": asdict(scale)}, curves


def scores(
    y_train: "np.ndarray", y_test: "np.ndarray", prediction: "np.ndarray"
) -> dict[str, float]:
    """Score the model and two constant predictors on the held-out rows."""
    import numpy as np

    from model_utils import evaluate_performance

    metrics = evaluate_performance(y_test, prediction)
    for name, constant in (("mean", np.mean(y_train)), ("median", np.median(y_train))):
        metrics[f"MAE_{name}"] = float(np.abs(y_test - constant).mean())
    return {name.replace("²", "2"): value for name, value in metrics.items()}


def in_words(metrics: dict[str, float], unit: str) -> str:
    """Say in one line how well the model does."""
    from toolkit.words import format_amount

    mae, mean = (format_amount(metrics[key], unit) for key in ("MAE", "MAE_mean"))
    return f"MAE {mae} on held-out rows, R² {metrics['R2']:.3f} (predicting the mean: MAE {mean})"


def log_results(
    client: "MlflowClient",
    run_id: str,
    metrics: dict[str, float],
    curves: dict[str, list[float]],
    trained: "TrainedModel",
    test_rows: Any,
    prediction: "np.ndarray",
) -> None:
    """Log scores, curves and figures."""
    from toolkit import comparison, figures, tracking

    named = {f"epoch/{name}": values for name, values in curves.items()}
    step, schema = len(curves["final_loss"]), trained.preprocessor.schema
    tracking.log_numbers(client, run_id, metrics, named, step=step)
    y, unit = test_rows[schema.target.name].to_numpy(), trained.card["unit"]
    pictures = {
        "learning_curve": figures.learning_curve(curves),
        "predicted_against_actual": figures.predicted_against_actual(
            y, {"model": prediction}, unit
        ),
    }
    categorical = [name for name, kind in schema.kinds.items() if kind == "categorical"]
    if categorical:
        groups = comparison.groups(test_rows, categorical, y, None, prediction)
        pictures["error_per_group"] = figures.error_per_group(groups, unit)
    tracking.log_figures(pictures)


def publish(
    client: "MlflowClient", run_id: str, settings: Settings, uri: str, trained: "TrainedModel"
) -> tuple[str, str]:
    """Register the model, make it champion when there is none, tell so in the run.

    Returns (version, verdict in words).
    """
    from toolkit import registry, report, tracking
    from toolkit.words import escape_markdown

    result = trained.card["result"]
    about = report.about(trained.card, trained.preprocessor.schema)
    name = settings.model_name
    version = registry.register(client, name, uri, f"{escape_markdown(result)}\n\n{about}")
    is_first = registry.champion_version(client, name) is None
    is_champion = is_first and registry.promote(client, name, version, None)
    role = "champion" if is_champion else "not champion, another version is"
    note = f"**{escape_markdown(name)} version {version}, {role}.** {escape_markdown(result)}"
    tags = {"mlflow.note.content": note}
    tags["mlflow.runName"] = f"trained: {result.split(' on held-out')[0]}"
    tracking.log_numbers(client, run_id, {}, tags=tags)
    return version, f"{role}: {result}"


def say_all(
    settings: Settings,
    terminal: cli.Terminal,
    run: Any,
    uri: str,
    version: str,
    verdict: str,
    metrics: dict[str, float],
) -> None:
    """Print the scores, the verdict and the next commands."""
    from toolkit.words import format_amount

    unit = unit_of(settings)
    amounts = {key: format_amount(value, unit) for key, value in metrics.items()}
    rmse = format_amount(metrics["MSE"] ** 0.5, unit)
    header = ["held-out rows", "model", "mean predictor", "median predictor"]
    mae = ["MAE", amounts["MAE"], amounts["MAE_mean"], amounts["MAE_median"]]
    rows = [mae, ["RMSE", rmse, "", ""], ["R²", f"{metrics['R2']:.3f}", "", ""]]
    terminal.table(header, rows)
    terminal.say()
    flags = [] if settings.data == DATA else ["--data", "NEW_ROWS.csv"]
    flags += cli.same_place(settings)
    steps = [cli.command("python", "mlflow_retrain.py", "--model-uri", uri, *flags)]
    cli.conclude(terminal, settings, run, uri, version, verdict, steps, metrics=metrics)


if __name__ == "__main__":
    raise SystemExit(main())
