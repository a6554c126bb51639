"""Continue a model on new rows, compare both on the same held-out rows, promote the better one.

python mlflow_retrain.py                          # the champion, on data/df_new.csv
python mlflow_retrain.py --model-uri models:/loan-amount/1 --data new.csv
python mlflow_retrain.py --rollback
"""

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from toolkit import cli
from toolkit.cli import option

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mlflow import MlflowClient

    from model_utils import Recipe
    from toolkit.artifact import TrainedModel
    from toolkit.checkpoint import Checkpoint
    from toolkit.encoding import Preprocessor
    from toolkit.report import Evidence
    from toolkit.roles import RetrainingRows, Roles

MODEL_NAME = "retrained_mlflow_model"
PROMOTE = ("auto", "proven", "always", "never")


@dataclass
class Settings(cli.TrainingSettings):
    """The flags of this script, beside those of `cli.TrainingSettings`."""

    data: str = option("data/df_new.csv", "file, folder, glob or URL of rows", metavar="FILE")
    model_uri: str | None = option(None, "model to continue, any MLflow URI (the champion)")
    replay: int | None = option(None, "remembered rows to train on again (all)", type=cli.natural)
    controls: bool = option(True, "train a control on old rows alone")
    max_forgetting: float = option(0.05, "share of the error on old rows", type=cli.share)
    promote: str = option("auto", "when the child becomes champion", choices=PROMOTE)
    approve: str | None = option(None, "make a version champion, as a person", metavar="VERSION")
    dry_run: bool = option(False, "report the drift and stop")
    rollback: bool = option(False, "make the previous champion champion again")


def main(argv: list[str] | None = None) -> int:
    """Retrain, compare, log, register and judge one model; return the exit code."""
    settings = cli.parse(Settings, argv, "mlflow_retrain.py", __doc__ or "")
    by_hand = settings.rollback or settings.approve
    return cli.run(move_champion if by_hand else retrain, settings)


def retrain(settings: Settings) -> int:
    """Do the work of `main`, phase by phase."""
    with cli.quiet_start("starting", settings.quiet):
        from toolkit import artifact, evidence, reading, registry, roles, tracking
    terminal = cli.Terminal(settings.quiet, settings.json)

    # Load the parent, and every row that its line has seen.
    client, experiment_id = tracking.connect(settings.tracking_uri, settings.experiment)
    champion = registry.champion_version(client, settings.model_name)
    uri = settings.model_uri or f"models:/{settings.model_name}@{registry.CHAMPION}"
    parent = artifact.load_model(uri, settings.models_dir / "preprocessor.pkl")
    if not settings.model_uri and parent.model_id:
        parent.uri = f"models:/{parent.model_id}"  # an alias will point elsewhere one day
    buffer, last = artifact.newest_buffer(client, settings.model_name, parent)

    # Read, split: roles follow from the rows' content, as at the first training.
    with terminal.progress(f"reading {settings.data}"):
        table, role, notes = reading.read_again(settings, parent, generation=last + 1)
        rows = roles.gather(table, buffer, parent.generation, settings.replay)
    terminal.notes(notes)
    if rows.file.empty:
        return nothing_new(terminal, settings)

    # Look at the rows before anything is trained on them.
    found, whole = evidence.look(terminal, settings.data, parent, rows)
    if settings.dry_run:
        terminal.result(**evidence.as_json(parent, found))
        return 0
    roles.check_enough_new(rows, settings.data)

    work = Work(settings, terminal, client, experiment_id, champion, parent, role, rows)
    kept = roles.remember(buffer, table, settings.buffer_rows)
    return track(work, found, whole, table, kept)


@dataclass
class Work:
    """Hold what a retraining starts from; champion: the version that was it at that moment."""

    settings: Settings
    terminal: cli.Terminal
    client: "MlflowClient"
    experiment_id: str
    champion: str | None
    parent: "TrainedModel"
    role: "Roles"
    rows: "RetrainingRows"


def track(
    work: Work,
    found: "Evidence",
    whole: "np.ndarray",
    table: "pd.DataFrame",
    kept: "pd.DataFrame",
) -> int:
    """Train, compare, log, register and judge in one MLflow run."""
    from toolkit import evidence, tracking
    from toolkit.checkpoint import Checkpoint

    settings, parent, rows = work.settings, work.parent, work.rows
    tags = {"phase": "retraining", "parent_model_uri": parent.uri, "parent_run_id": parent.run_id}
    inputs = tracking.content_hash(table) + (parent.model_id or parent.uri)
    checkpoint = Checkpoint(settings, __file__, inputs)
    name = f"retrain {settings.model_name}"
    with tracking.tracked_run(work.experiment_id, name, tags, checkpoint.run_id) as run:
        run_id = checkpoint.begin(run.info.run_id)
        evidence.log_inputs(work.client, run_id, settings, parent, rows)

        # Train the child and a control; score all of them on the same held-out rows.
        with work.terminal.progress("training") as progress:
            child = train_child(settings, parent, rows, checkpoint, progress.update)
        schema, predictions = parent.preprocessor.schema, child.predictions
        found = evidence.weigh(settings, work.role, rows, schema, predictions, found, whole)

        # Log, register, promote as the verdict allows.
        trained = make_model(work, run_id, child, found, table, kept)
        uri, version, verdict, metrics = keep(work, run_id, child, trained, found)
        checkpoint.remove()
    evidence.print_scores(work.terminal, found)
    say_verdict(work, run.info, uri, version, verdict, metrics, found)
    return 0


def make_model(
    work: Work,
    run_id: str,
    child: "Child",
    found: "Evidence",
    table: "pd.DataFrame",
    kept: "pd.DataFrame",
) -> "TrainedModel":
    """Put everything that one URI will hold together; `kept` is the new replay buffer."""
    from toolkit import artifact, report, roles

    parent, settings = work.parent, work.settings
    generation = int(table[roles.GENERATION].iloc[0])
    data, counts = cli.without_password(settings.data), roles.counts(table)
    lineage = {"generation": generation, "run_id": run_id, "data": data, **counts}
    card = {
        **child.facts,
        "run_id": run_id,
        "unit": found.unit,
        "result": found.verdict.reason,
        "verdict_kind": found.verdict.kind,
        "parent_model_uri": parent.uri,
        "lineage": [*parent.card.get("lineage", []), lineage],
    }
    text = report.model_card(card, child.preprocessor.schema)
    return artifact.TrainedModel(
        child.network, child.preprocessor, work.role, kept, card, model_card=text
    )


def keep(
    work: Work, run_id: str, child: "Child", trained: "TrainedModel", found: "Evidence"
) -> tuple[str, str, str, dict[str, float]]:
    """Save, log, register and judge the child; return (URI, version, verdict in words, metrics)."""
    from toolkit import artifact, evidence, registry, report, tracking

    settings, client, verdict = work.settings, work.client, found.verdict
    about = report.about(trained.card, trained.preprocessor.schema)
    with tracking.resumable():
        artifact.save_folder(trained, settings.models_dir / MODEL_NAME)
        y_new = work.rows.held_out["new"][child.preprocessor.schema.target.name].to_numpy()
        metrics = evidence.log_evidence(
            client, run_id, child.curves, y_new, child.predictions, found
        )
        uri = artifact.log_model(trained, MODEL_NAME, step=len(child.curves["final_loss"]))
        with cli.uninterrupted():  # registered, promoted and told, or nothing of it
            words, version = registry.register_and_promote(
                client,
                settings.model_name,
                uri,
                verdict.reason,
                report.short_result(found, promoted=True).removeprefix("promoted: "),
                about,
                champion=work.champion,
                wanted=verdict.promoted,
                parent_run=None if settings.promote == "always" else work.parent.run_id,
                tags={"verdict_kind": verdict.kind},
            )
    return uri, version, words, metrics


def say_verdict(
    work: Work,
    run: Any,
    uri: str,
    version: str,
    verdict: str,
    metrics: dict[str, float],
    found: "Evidence",
) -> None:
    """Print the verdict and the next commands, or all of it as one object."""
    promoted, steps, kind = verdict.startswith("promoted"), [], found.verdict.kind
    if promoted:
        back = ["--rollback", *cli.same_place(work.settings)]
        steps.append(cli.command("python", "mlflow_retrain.py", *back))
    facts = {
        "verdict_kind": kind,
        "promoted": promoted,
        "intervals": {part: asdict(held.change) for part, held in found.held_out.items()},
        "metrics": metrics,
    }
    cli.conclude(
        work.terminal, work.settings, run, uri, version, verdict, steps, kind=kind, **facts
    )


def nothing_new(terminal: cli.Terminal, settings: Settings) -> int:
    """Say that a file holds no row which the model's line has not seen."""
    words = f"nothing new in {settings.data}: every row was seen before, nothing is trained"
    terminal.say(words)
    terminal.result(verdict=words, verdict_kind="nothing_new", promoted=False, model_uri=None)
    return 0


@dataclass
class Child:
    """Hold a retrained network, its curves, and every model's predictions by part of rows.

    facts: what the model's card says of it.
    """

    network: Any
    preprocessor: Any
    facts: dict[str, Any]
    curves: dict[str, list[float]]
    predictions: dict[str, dict[str, "np.ndarray"]] = field(default_factory=dict)


def train_child(
    settings: Settings,
    parent: "TrainedModel",
    rows: "RetrainingRows",
    checkpoint: "Checkpoint",
    tell: Any,
) -> Child:
    """Train the child on new and remembered rows, the control on remembered ones alone.

    Half of the child's members continue the parent's, the others start afresh: their mean did
    better on the next file than either. The fresh ones alone are the control "scratch".
    """
    import numpy as np

    import model_utils

    known = {part: parent.preprocessor.transform(t) for part, t in rows.held_out.items()}
    predictions = {
        part: {"parent": model_utils.model_predict(parent.network, X)} for part, X in known.items()
    }
    members, control = model_utils.member_count(parent.network), None
    continued = continue_members if members else continue_foreign
    child = continued(settings, parent, rows, checkpoint, tell)
    if settings.controls and members:
        control = train_control(settings, parent, rows, child, tell)
    y = rows.train[parent.preprocessor.schema.target.name]
    for part, table in rows.held_out.items():
        X, found = child.preprocessor.transform(table), predictions[part]
        found["retrained"] = model_utils.model_predict(child.network, X)
        if members:
            fresh = slice(model_utils.MEMBERS // 2, None)
            found["scratch"] = model_utils.member_predictions(child.network, X, fresh)
        if control:
            found["control"] = model_utils.model_predict(control, known[part])
        found["mean"] = np.full(len(table), y.mean())
        found["median"] = np.full(len(table), y.median())
    child.predictions = predictions
    return child


def continue_members(
    settings: Settings,
    parent: "TrainedModel",
    rows: "RetrainingRows",
    checkpoint: "Checkpoint",
    tell: Any,
) -> Child:
    """Train members of the parent and fresh ones, which see all columns measured anew."""
    import model_utils

    before = parent.preprocessor
    preprocessor, new_categories, X, y = widened(before, rows)
    dropped = (before.first_input, before.bins_before_latest)
    scale = model_utils.rescaled(model_utils.TargetScale(**parent.card["scale"]), y)
    recipe, fresh = base_recipes(settings, parent, len(X), preprocessor.first_input)
    seed = settings.seed + rows.parent_generation + 1  # fresh members differ from the parent's
    search = partial(
        model_utils.choose_retraining,
        parent.network,
        *(X, y, preprocessor.bins, scale, recipe, fresh, rows.new, dropped),
        callbacks=checkpoint.callbacks("search", tell),
        seed=seed,
    )
    recipes, curves = search()
    network = model_utils.create_nn_model(X.shape[1], recipe, scale, preprocessor.bins, seed=seed)
    n_continued = sum(recipe.first_input == 0 for recipe in recipes)
    latest = model_utils.latest_members(parent.network)[:n_continued]
    model_utils.grow_network(parent.network, network, latest, range(n_continued), dropped)
    callbacks = checkpoint.callbacks("training", tell)
    history = model_utils.train_members(
        network, X, y, scale, recipes, callbacks=callbacks, seed=seed
    )
    facts: dict[str, Any] = {
        "recipe": asdict(recipes[n_continued]),  # the best of the fresh members
        "scale": asdict(scale),
        "new_categories": new_categories,
        "continued_members": n_continued,
    }
    losses = history.history.get("loss", [])
    return Child(network, preprocessor, facts, {**curves, "final_loss": losses})


def widened(before: "Preprocessor", rows: "RetrainingRows") -> tuple:
    """Measure the columns anew beside what the parent knows; also return inputs and targets."""
    from toolkit import roles

    y, folds = rows.train[before.schema.target.name].to_numpy(), roles.folds(rows.train)
    preprocessor, new_categories = before.widen(rows.train, y, folds)
    return preprocessor, new_categories, preprocessor.transform(rows.train, folds), y


def base_recipes(
    settings: Settings, parent: "TrainedModel", n_rows: int, first_input: int
) -> tuple["Recipe", "Recipe"]:
    """Return the parent's recipe and that of fresh members, both in sizes that suit the rows."""
    import model_utils

    base = model_utils.sized_recipe(n_rows, settings.epochs, settings.batch_size)
    sizes: dict[str, Any] = {
        "epochs": base.epochs,
        "batch_size": base.batch_size,
        "learning_rate": settings.learning_rate or base.learning_rate,
    }
    recipe = replace(model_utils.Recipe(**parent.card["recipe"]), **sizes, first_input=0)
    return recipe, replace(base, **sizes, first_input=first_input)


def continue_foreign(
    settings: Settings,
    parent: "TrainedModel",
    rows: "RetrainingRows",
    checkpoint: "Checkpoint",
    tell: Any,
) -> Child:
    """Train a network of another making on all rows as it is, by its own loss and optimizer."""
    import keras

    import model_utils

    X, y, preprocessor = model_utils.preprocessing(rows.train, preprocessor=parent.preprocessor)
    network = parent.network
    recipe = model_utils.sized_recipe(len(X), settings.epochs, settings.batch_size)
    if not network.compiled:
        network.compile(keras.optimizers.AdamW(settings.learning_rate or 1e-3), loss="mse")
    callbacks = checkpoint.callbacks("training", tell)
    _, history = model_utils.train_model(
        network,
        X,
        y,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        callbacks=callbacks,
        seed=settings.seed,
    )
    facts = {key: parent.card[key] for key in ("recipe", "scale") if key in parent.card}
    return Child(network, preprocessor, facts, {"final_loss": history.history.get("loss", [])})


def train_control(
    settings: Settings, parent: "TrainedModel", rows: "RetrainingRows", child: Child, tell: Any
) -> Any:
    """Train the parent's members on its own rows alone, for as many updates as the child had.

    Returns the network, or None where there is nothing to train it on.
    """
    import numpy as np

    import model_utils

    old, members = rows.train[~rows.new], model_utils.member_count(parent.network)
    recipe = model_utils.Recipe(**parent.card["recipe"])
    if len(old) < recipe.batch_size:
        return None
    X, y, preprocessor = model_utils.preprocessing(old, preprocessor=parent.preprocessor)
    scale = model_utils.TargetScale(**parent.card["scale"])
    epochs = max(1, round(child.facts["recipe"]["epochs"] * len(rows.train) / len(old)))
    recipe = replace(recipe, epochs=epochs, learning_rate=recipe.learning_rate / 3, first_input=0)
    network = model_utils.create_nn_model(
        X.shape[1], recipe, scale, preprocessor.bins, members=members
    )
    model_utils.grow_network(parent.network, network, np.arange(members), np.arange(members))
    tell("training the control")
    recipes = [recipe] * members
    model_utils.train_members(network, X, y, scale, recipes, seed=settings.seed)
    return network


def move_champion(settings: Settings) -> int:
    """Make another version champion: the one before, or one that a person approves."""
    with cli.quiet_start("starting", settings.quiet):
        from toolkit import registry, tracking
    client, _ = tracking.connect(settings.tracking_uri, settings.experiment)
    name, terminal = settings.model_name, cli.Terminal(settings.quiet, settings.json)
    if settings.approve:
        new, old = settings.approve, registry.approve(client, name, settings.approve)
    else:
        new, old = registry.roll_back(client, name)
    beside = f", version {old} is @previous" if old else ""
    terminal.say(f"{name}: version {new} is champion{beside}")
    lines = registry.history(client, name)
    for line in lines:
        terminal.say(f"  {line}")
    terminal.result(model_name=name, champion=new, previous=old, history=lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
