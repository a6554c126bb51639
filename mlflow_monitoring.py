"""Train a network on a table, score it on held-out rows, track everything in MLflow.

python mlflow_monitoring.py
python mlflow_monitoring.py --data my.csv --target price --drop id
mlflow ui
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from toolkit import cli
from toolkit.cli import option
from toolkit.errors import masked

MODEL_NAME = "mlflow_model"
MANY_ROWS = 60_000  # of more, recipes are compared as of so many


@dataclass
class Settings(cli.TrainingSettings):
    """The flags of this script, beside those of `cli.TrainingSettings`."""

    target: str = option("montant_pret", "column to learn", metavar="COLUMN")
    unit: str | None = option(None, "unit of the target in words and figures (€ for loans)")
    drop: tuple[str, ...] = option((), "columns to ignore", nargs="+", metavar="COLUMN")
    keep: tuple[str, ...] = option((), "columns to use anyway", nargs="+", metavar="COLUMN")
    numeric: tuple[str, ...] = option((), "columns of numbers", nargs="+", metavar="COLUMN")
    categorical: tuple[str, ...] = option((), "columns of categories", nargs="+", metavar="COLUMN")
    date: tuple[str, ...] = option((), "columns of dates", nargs="+", metavar="COLUMN[=FORMAT]")
    group: str | None = option(None, "hold out whole groups of equal values", metavar="COLUMN")
    time: str | None = option(None, "hold out the latest rows by this column", metavar="COLUMN")
    weight: str | None = option(None, "how much each row counts", metavar="COLUMN")
    buffer_rows: int = option(
        cli.BUFFER_ROWS, "rows of each role kept for replay; 0: none", type=cli.natural
    )
    network: str | None = option(None, "network of your own", metavar="FILE.py:FUNCTION")


def main(argv: list[str] | None = None) -> int:
    """Train, score, log and register one model; return the exit code."""
    return cli.run(train, cli.parse(Settings, argv, "mlflow_monitoring.py", __doc__ or ""))


def train(settings: Settings) -> int:
    """Read the rows and give each its role; everything else is one MLflow run."""
    with cli.quiet_start("starting", settings.quiet):
        import model_utils  # noqa: F401 - TensorFlow speaks while it starts
        from toolkit import reading, roles
    terminal = cli.Terminal(settings.quiet, settings.json)
    cli.load_function(settings.network)  # an error now, not after reading

    # Read: every row is brought to one form, and hashed.
    with terminal.progress(f"reading {settings.data}"):
        rows, schema, notes = reading.read_first(settings)
    terminal.notes(notes)

    # The role of a row follows from its content, here and in every later file.
    own = {name: getattr(settings, name) or "" for name in reading.OWN}
    role = roles.Roles.choose(rows.table, settings.test_size, settings.seed, **own)
    rows.table = role.assign(rows.table, generation=0)
    roles.check_enough(rows.table, settings.data)
    return track(settings, terminal, rows, schema, role)


def track(settings: Settings, terminal: cli.Terminal, rows: Any, schema: Any, role: Any) -> int:
    """Split, preprocess, train, score, log and register in one MLflow run."""
    import model_utils
    from toolkit import artifact, ranges, roles, tracking
    from toolkit.checkpoint import Checkpoint

    table, target = rows.table, settings.target
    client, experiment = tracking.connect(settings.tracking_uri, settings.experiment)
    tags = {"phase": "training", "data_sha256": tracking.content_hash(table)}
    checkpoint = Checkpoint(settings, __file__, tags["data_sha256"])
    name = f"train {settings.model_name}"
    with tracking.tracked_run(experiment, name, tags, checkpoint.run_id) as run:
        checkpoint.begin(run.info.run_id)
        y, held_out = table[target].to_numpy(), role.held_out(table)
        train_rows, test_rows, _, y_test = model_utils.split(table, y, held_out=held_out)
        tracking.log_inputs(settings, target, {"training": train_rows, "held-out": test_rows})

        # Preprocess and train: on training rows alone.
        with terminal.progress("training") as progress:
            fit_on = partial(fit, settings, rows, schema, checkpoint, progress.update)
            network, preprocessor, recipes, curves = fit_on(train_rows, role)

        # Score: on rows that nothing above has seen.
        prediction = model_utils.model_predict(network, preprocessor.transform(test_rows))
        metrics = scores(train_rows, test_rows, target, prediction)
        card = describe(settings, run.info.run_id, metrics, table, recipes[0])
        card[ranges.KEPT] = ranges.keep(prediction, y_test)

        # Log and register.
        buffer = roles.remember(table.head(0), table, settings.buffer_rows)
        if settings.refit:  # the scores are of the network before
            network, preprocessor, *_ = fit_on(table, None, recipes)
            buffer, card["refit"] = buffer.assign(**{roles.ROLE: roles.TRAIN}), True
            role = role.refitted()
            card["scale"] = asdict(model_utils.target_scale(table[target]))
        trained = artifact.TrainedModel(network, preprocessor, role, buffer, card)
        facts = keep(settings, client, trained, metrics, curves, test_rows, prediction)
        checkpoint.remove()
    say(settings, terminal, run.info, card["unit"], metrics, facts)
    return settings.exit_with(facts["promoted"])


def fit(
    settings: Settings,
    rows: Any,
    schema: Any,
    checkpoint: Any,
    tell: Any,
    table: Any,
    role: Any,
    recipes: Any = None,
) -> tuple[Any, Any, list[Any], dict[str, list[float]]]:
    """Preprocess, choose a recipe (unless `recipes` are given), create the network and train it.

    table: the rows in memory to train on; role: of those on disk, None to train on all of them.
    Returns (network, preprocessor, recipes, curves).
    """
    import model_utils
    from toolkit import engine, roles

    X, y, preprocessor = model_utils.preprocessing(table, schema=schema)
    scale, w, curves = model_utils.target_scale(y), roles.weights(table, 1), dict[str, Any]()
    sizes = (settings.epochs, settings.batch_size, settings.learning_rate)
    build, name = cli.load_function(settings.network), "refit" if recipes else "training"
    if recipes is None:
        base = model_utils.sized_recipe(min(len(X), MANY_ROWS), *sizes)
        options = {"callbacks": checkpoint.callbacks("search", tell), "seed": settings.seed}
        search = partial(model_utils.choose_recipe, X, y, preprocessor.bins, base=base, **options)
        recipes, curves = ([replace(base, bins=False)], {}) if build else search(sample_weight=w)
    train, encode = model_utils.train_members, (preprocessor, role, roles.weights(table).mean())
    if rows.shares:
        X, y = rows.shares, encode
        train = partial(engine.train, train, checkpoint.folder / name)
    elif rows.n_rows > len(rows.table):
        X, y, w = rows.encode_blocks(*encode)
    final = model_utils.sized_recipe(rows.n_rows * len(table) // len(rows.table), *sizes)
    recipes = [replace(r, epochs=final.epochs, batch_size=final.batch_size) for r in recipes]
    create = partial(model_utils.create_nn_model, seed=settings.seed, build=build)
    network = create(preprocessor.width, recipes[0], scale, preprocessor.bins)
    options = {"callbacks": checkpoint.callbacks(name, tell), "seed": settings.seed}
    history = train(network, X, y, scale, recipes, sample_weight=w, **options)
    return network, preprocessor, recipes, {**curves, "final_loss": history.history.get("loss", [])}


def scores(train: Any, test: Any, target: str, prediction: Any) -> dict[str, float]:
    """Score the model, the weighted mean and the median of training rows on weighted test rows."""
    import numpy as np

    from model_utils import evaluate_performance
    from toolkit.roles import weights

    y, w = test[target].to_numpy(), weights(test)
    metrics = evaluate_performance(y, prediction, w)
    metrics["R2"] = metrics.pop("R²")
    mean = np.average(train[target], weights=weights(train))
    for name, constant in (("mean", mean), ("median", train[target].median())):
        metrics[f"MAE_{name}"] = float(np.average(np.abs(y - constant), weights=w))
    return metrics


def describe(
    settings: Settings, run_id: str, metrics: dict[str, float], table: Any, recipe: Any
) -> dict[str, Any]:
    """Describe a model for its card; the unit of loans is known."""
    import model_utils
    from toolkit import roles
    from toolkit.words import format_amount

    unit = settings.unit or ("€" if settings.target == "montant_pret" else "")
    amounts = {key: format_amount(value, unit) for key, value in metrics.items()}
    best = min("mean", "median", key=lambda constant: metrics[f"MAE_{constant}"])
    result = f"MAE {amounts['MAE']} on held-out rows, R² {metrics['R2']:.3f} "
    if metrics["MAE"] < metrics[f"MAE_{best}"]:
        result += f"(predicting the mean: MAE {amounts['MAE_mean']})"
    else:
        result += f"(no better than predicting the {best}: MAE {amounts[f'MAE_{best}']})"
    data = masked(settings.data)
    y = roles.part(table, roles.TRAIN)[settings.target]
    return {
        "recipe": asdict(recipe),
        "scale": asdict(model_utils.target_scale(y)),
        "run_id": run_id,
        "unit": unit,
        "buffer_rows": settings.buffer_rows,
        "result": result,
        "lineage": [{"generation": 0, "run_id": run_id, "data": data, **roles.counts(table)}],
    }


def keep(
    settings: Settings, client: Any, trained: Any, metrics: Any, curves: Any, *tested: Any
) -> dict[str, Any]:
    """Save, log and register the model, with figures of `tested`: held-out rows, predictions."""
    from toolkit import artifact, registry, tracking

    artifact.save_preprocessor(trained.preprocessor, settings.models_dir / "preprocessor.pkl")
    with tracking.resumable():
        artifact.save_folder(trained, settings.models_dir / MODEL_NAME)
        tracking.log_numbers(metrics, curves, trained.card["recipe"])
        tracking.log_figures(draw(trained, curves, *tested))
        short = trained.card["result"].split(" on held-out")[0]
        return registry.publish(client, settings.model_name, trained, MODEL_NAME, short)


def draw(trained: Any, curves: Any, rows: Any, prediction: Any) -> dict[str, str]:
    """Draw the learning curve, and the errors on held-out rows, as SVG."""
    from toolkit import comparison, figures, roles

    unit, schema = trained.card["unit"], trained.preprocessor.schema
    y, weights = rows[schema.target.name], roles.weights(rows)
    scattered = figures.predicted_against_actual(y, {"model": prediction}, unit, weights)
    pictures = {"predicted_against_actual": scattered}
    pictures["learning_curve"] = figures.learning_curve(curves)
    if categorical := [name for name, kind in schema.kinds.items() if kind == "categorical"]:
        groups = comparison.groups(rows, categorical, y, None, prediction, weights=weights)
        pictures["error_per_group"] = figures.error_per_group(groups, unit)
    return {name: figures.as_svg(figure) for name, figure in pictures.items()}


def say(
    settings: Settings, terminal: cli.Terminal, run: Any, unit: str, metrics: Any, facts: Any
) -> None:
    """Print the scores, the verdict and the next commands."""
    from toolkit.words import format_amount

    amounts = {key: format_amount(value, unit) for key, value in metrics.items()}
    rmse = format_amount(metrics["MSE"] ** 0.5, unit)
    header = ["held-out rows", "model", "mean predictor", "median predictor"]
    mae = ["MAE", amounts["MAE"], amounts["MAE_mean"], amounts["MAE_median"]]
    terminal.table(header, [mae, ["RMSE", rmse, "", ""], ["R²", f"{metrics['R2']:.3f}", "", ""]])
    terminal.say()
    flags = [] if settings.data == cli.DATA else ["--data", "NEW_ROWS.csv"]
    flags += ["--model-uri", facts["model_uri"], *cli.same_place(settings)]
    steps = [cli.command("python", "mlflow_retrain.py", *flags)]
    cli.conclude(terminal, settings, run, steps, metrics=metrics, refit=settings.refit, **facts)


if __name__ == "__main__":
    raise SystemExit(main())
