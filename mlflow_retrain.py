"""Continue a model on new rows, compare both on the same held-out rows, promote the better one.

python mlflow_retrain.py                          # the champion, on data/df_new.csv
python mlflow_retrain.py --model-uri models:/loan-amount/1 --data new.csv
python mlflow_retrain.py --rollback
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from toolkit import cli
from toolkit.cli import option
from toolkit.errors import UserError, masked

MODEL_NAME = "retrained_mlflow_model"
PROMOTE = ("auto", "proven", "always", "never")


@dataclass
class Settings(cli.TrainingSettings):
    """The flags of this script, beside those of `cli.TrainingSettings`."""

    data: str = option("data/df_new.csv", "file, folder, glob or URL of rows", metavar="FILE")
    model_uri: str | None = option(
        None, "model to continue, any MLflow URI (the champion)", type=cli.uri
    )
    replay: int | None = option(None, "remembered rows to train on again (all)", type=cli.natural)
    buffer_rows: int | None = option(
        None, "rows of each role kept for replay; 0: none (as the parent)", type=cli.natural
    )
    controls: bool = option(True, "train a control on old rows alone")
    max_forgetting: float = option(0.05, "harm allowed on old rows, of their MAE", type=cli.share)
    promote: str = option("auto", "when the child becomes champion", choices=PROMOTE)
    report: str | None = option(
        None, "write the report there, too: .html or .md", type=cli.page, metavar="FILE"
    )
    approve: str | None = option(
        None, "make a version champion, whatever was found", type=cli.version, metavar="N"
    )
    dry_run: bool = option(False, "estimate error and drift, also without target, and stop")
    rollback: bool = option(False, "make the previous champion champion again")


def main(argv: list[str] | None = None) -> int:
    """Retrain, compare, log, register and judge one model; return the exit code."""
    settings = cli.parse(Settings, argv, "mlflow_retrain.py", __doc__ or "")
    by_hand = settings.rollback or settings.approve
    return cli.run(move_champion if by_hand else retrain, settings)


def retrain(settings: Settings) -> int:
    """Load the parent, read the rows and look at them; everything else is one MLflow run."""
    with cli.quiet_start("starting", settings.quiet):
        import model_utils  # noqa: F401 - TensorFlow speaks while it starts
        from toolkit import artifact, evidence, reading, registry, roles, tracking, watching
    terminal = cli.Terminal(settings.quiet, settings.json)

    # Load the parent, and every row that its line has seen.
    client, experiment = tracking.connect(settings.tracking_uri, settings.experiment)
    champion = registry.champion_version(client, settings.model_name)
    uri = settings.model_uri or f"models:/{settings.model_name}@{registry.CHAMPION}"
    parent = artifact.load_model(uri, settings.models_dir / "preprocessor.pkl")
    if uri.startswith("models:/") and "@" in uri and parent.model_id:
        parent.uri = f"models:/{parent.model_id}"  # an alias will point elsewhere one day
    check_refit(settings, parent)
    buffer, last = artifact.newest_buffer(client, settings.model_name, parent)

    # Read: roles follow from the rows' content, as at the first training.
    with terminal.progress(f"reading {settings.data}"):
        read, role, notes = reading.read_again(settings, parent, generation=last + 1)
        table = read.table
        known = table, buffer, parent.generation, settings.replay
        rows = roles.gather(*known, by_time=bool(role.time))
    terminal.notes(notes)
    if rows.file.empty:
        return say_nothing_new(settings, terminal)

    # Look at the rows before anything is trained on them.
    found, whole = evidence.look(terminal, masked(settings.data), parent, rows)
    work = Work(settings, client, experiment, champion, parent, role, rows, table, buffer)
    if math.isfinite(found.prequential or 0.0):  # the file has a target
        watching.check_estimate(work, terminal, found)
    if settings.dry_run:
        return settings.exit_with(watching.watch(work, terminal, found) is not False)
    roles.check_enough_new(rows, settings.data)
    if settings.buffer_rows is None:
        settings.buffer_rows = parent.card.get("buffer_rows", cli.BUFFER_ROWS)
    work.buffer = roles.remember(buffer, table, settings.buffer_rows)
    return track(work, terminal, found, whole)


def has_members(parent: Any) -> bool:
    """Tell whether a network and its card are of a training of this toolkit."""
    import model_utils

    return "scale" in parent.card and model_utils.member_count(parent.network) > 0


def check_refit(settings: Settings, parent: Any) -> None:
    """Raise UserError for --refit where the network is not one of members."""
    if settings.refit and not has_members(parent):
        raise UserError(
            f"--refit was passed, but {parent.uri} holds a network of another making, which is "
            "continued as it is; expected one of this toolkit: leave --refit out"
        )


def say_nothing_new(settings: Settings, terminal: cli.Terminal) -> int:
    """Say that every row of the file was seen before; return the exit code."""
    from toolkit import report

    data = masked(settings.data)
    words = f"nothing new in {data}: every row was seen before, nothing is trained"
    terminal.say(words)
    found = report.Evidence(verdict=replace(report.NOTHING_NEW, reason=words))
    report.write(found, settings.report)
    facts: Any = {"promoted": False, "version": None, "model_uri": None, "metrics": {}}
    facts |= {"worthwhile": False} if settings.dry_run else {}
    terminal.result(verdict=words, verdict_kind=found.verdict.kind, **facts)
    return settings.exit_with(False)


@dataclass
class Work:
    """Hold what a retraining starts from."""

    settings: Settings
    client: Any
    experiment: str
    champion: str | None  # the version that was it at that moment
    parent: Any
    role: Any
    rows: Any  # of `roles.gather`
    table: Any  # the whole file
    buffer: Any  # what the child will remember


def track(work: Work, terminal: cli.Terminal, found: Any, whole: Any) -> int:
    """Train, compare, log, register and judge in one MLflow run."""
    from toolkit import evidence, report, tracking
    from toolkit.checkpoint import Checkpoint

    settings, parent = work.settings, work.parent
    tags = {"phase": "retraining", "parent_model_uri": parent.uri, "parent_run_id": parent.run_id}
    inputs = tracking.content_hash(work.table) + (parent.model_id or parent.uri)
    checkpoint = Checkpoint(settings, __file__, inputs)
    name = f"retrain {settings.model_name}"
    with tracking.tracked_run(work.experiment, name, tags, checkpoint.run_id) as run:
        checkpoint.begin(run.info.run_id)
        evidence.log_inputs(work, run.info.run_id)

        # Train the child and its control; score all models on the same held-out rows.
        with terminal.progress("training") as progress:
            watch = partial(checkpoint.callbacks, tell=progress.update)
            child = train_child(work, watch)
        evidence.weigh(work, child, found, whole)

        # Log, register, promote as the verdict allows.
        if settings.refit and found.verdict.promoted:
            refit(work, child, watch)  # the live line is gone by now, and silent
        facts = keep(work, run.info.run_id, child, found)
        checkpoint.remove()
    evidence.print_scores(terminal, found)
    say(settings, terminal, run.info, found, facts)
    report.write(found, settings.report)
    return settings.exit_with(facts["promoted"])


def keep(work: Work, run_id: str, child: "Child", found: Any) -> dict[str, Any]:
    """Describe, save, register the child; promote it if the verdict allows. Returns the facts."""
    from toolkit import artifact, evidence, registry, report, roles, tracking

    settings, parent, data = work.settings, work.parent, masked(work.settings.data)
    generation = int(work.table[roles.GENERATION].iloc[0])
    step = {"generation": generation, "run_id": run_id, "data": data, **roles.counts(work.table)}
    step["prequential"] = found.prequential
    if "old" in found.held_out:  # for the range of the next estimate
        usual = found.held_out["old"].scores.loc["parent", "MAE"]
        step["surprise"] = found.prequential / max(usual, 1e-300)
    card = {
        **child.card,
        "run_id": run_id,
        "unit": found.unit,
        "buffer_rows": settings.buffer_rows,
        "result": found.verdict.reason,
        "verdict_kind": found.verdict.kind,
        "parent_model_uri": parent.uri,
        "lineage": [*parent.card.get("lineage", []), step],
    }
    trained = artifact.TrainedModel(child.network, child.preprocessor, work.role, work.buffer, card)
    promotion = {
        "champion": work.champion,
        "wanted": found.verdict.promoted,
        "parent_run": None if settings.promote == "always" else parent.run_id,
    }
    with tracking.resumable():
        artifact.save_folder(trained, settings.models_dir / MODEL_NAME)
        metrics = evidence.log_evidence(work, child, found)
        short = report.short_result(found)
        name = settings.model_name, trained, MODEL_NAME, short
        facts = registry.publish(work.client, *name, **promotion)
        if facts["promoted"] != found.verdict.promoted:  # the registry forbade it
            told = facts["verdict"].partition(", ")[2]
            found.verdict = replace(found.verdict, promoted=False, reason=told)
            evidence.log_report(found)
    return {"metrics": metrics, "refit": "refit" in trained.card, **facts}


def say(settings: Settings, terminal: cli.Terminal, run: Any, found: Any, facts: Any) -> None:
    """Print the verdict and the next commands, or all of it as one object."""
    way = ["--rollback"] if facts["promoted"] else ["--approve", facts["version"]]
    step = cli.command("python", "mlflow_retrain.py", *way, *cli.same_place(settings))
    # A suspicious file is to be mended, rather than approved.
    steps = [] if found.verdict.kind == "suspicious" else [step]
    facts["verdict_kind"] = found.verdict.kind
    facts["intervals"] = {part: asdict(held.change) for part, held in found.held_out.items()}
    cli.conclude(terminal, settings, run, steps, **facts)


@dataclass
class Child:
    """Hold a retrained network, what its card says, and predictions by part of rows and model."""

    network: Any
    preprocessor: Any
    card: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    recipes: Any = None
    control: Any = None
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)


def train_child(work: Work, watch: Callable) -> Child:
    """Train the child on new and remembered rows; predict held-out rows with every model.

    Half of the child's members continue the parent's, the others start afresh: their mean did
    better on the next file than either. The fresh ones alone are the control "scratch".
    watch: gives the callbacks of a training by its name.
    """
    import numpy as np

    import model_utils
    from toolkit.evidence import predict
    from toolkit.roles import weights

    rows, parent = work.rows, work.parent
    members = has_members(parent)
    child = (continue_members if members else continue_foreign)(work, watch)
    y = rows.train[parent.preprocessor.schema.target.name]
    mean, recent = np.average(y, weights=weights(rows.train)), y[rows.new] if rows.new.any() else y
    constants = {"mean": mean, "median": y.median(), "recent median": recent.median()}
    for part, table in rows.held_out.items():
        made = {"parent": predict(parent, table), "retrained": predict(child, table)}
        if members:
            X, fresh = child.preprocessor.transform(table), slice(model_utils.MEMBERS // 2, None)
            made["scratch"] = model_utils.member_predictions(child.network, X, fresh)
        if child.control:
            made["control"] = predict(child.control, table)
        made |= {name: np.full(len(table), value) for name, value in constants.items()}
        child.predictions[part] = made
    return child


def heritage(work: Work, preprocessor: Any, y: Any) -> tuple[Any, Any]:
    """Return what members start from, and the recipe of fresh ones, for targets y."""
    import model_utils

    settings, parent, before = work.settings, work.parent, work.parent.preprocessor
    scale = model_utils.rescaled(model_utils.TargetScale(**parent.card["scale"]), y)
    recipe = model_utils.Recipe(**parent.card["recipe"])
    n_bins = sum(len(edges) - 1 for number, edges in before.bins if number < before.first_input)
    dropped = before.first_input, n_bins
    start = model_utils.Parent(parent.network, recipe, scale, work.rows.new, dropped)
    sizes = settings.epochs, settings.batch_size, settings.learning_rate
    base = model_utils.sized_recipe(len(y), *sizes)
    return start, replace(base, first_input=preprocessor.first_input)


def continue_members(work: Work, watch: Callable, recipes: Any = None) -> Child:
    """Train members of the parent and fresh ones, which see all columns measured anew."""
    import model_utils
    from toolkit import roles

    settings, rows, before = work.settings, work.rows, work.parent.preprocessor
    y, folds = rows.train[before.schema.target.name].to_numpy(), roles.folds(rows.train)
    preprocessor, new_categories = before.widen(rows.train, y, folds)
    start, base = heritage(work, preprocessor, y)
    X, data = preprocessor.transform(rows.train, folds), (y, preprocessor.bins)
    seed = settings.seed + rows.parent_generation + 1  # fresh members differ from the parent's
    options: dict[str, Any] = {"seed": seed, "sample_weight": roles.weights(rows.train, mean=1)}
    name, curves = "refit", dict[str, list[float]]()
    if recipes is None:  # as validation rows advise
        options["callbacks"], name = watch("search"), "training"
        recipes, curves = model_utils.choose_recipe(X, *data, base=base, parent=start, **options)
    options["callbacks"] = watch(name)
    old = ~rows.new if settings.controls and not rows.new.all() else None
    # The control must not know new rows by the mean target of their category, either.
    blind = preprocessor if old is None else preprocessor.without(rows.train, y, folds, rows.new)
    beside = old if blind == preprocessor else None
    train = partial(model_utils.continue_training, start)
    network, control, history = train(X, *data, recipes, beside, **options)
    if old is not None and beside is None:
        options["callbacks"] = watch("control")
        _, control, _ = train(blind.transform(rows.train, folds), *data, recipes, old, **options)
    continued = sum(not recipe.first_input for recipe in recipes)
    card = {
        "recipe": asdict(recipes[continued]),  # the best of the fresh members
        "scale": asdict(start.scale),
        "new_categories": new_categories,
        "continued_members": continued,
    }
    curves = {**curves, "final_loss": history.history.get("loss", [])}
    control = Child(control, blind) if control else None
    return Child(network, preprocessor, card, curves, recipes, control)


def refit(work: Work, child: Child, watch: Callable) -> None:
    """Train the child once more, on its held-out rows too, which are training rows from now on."""
    import pandas as pd

    from toolkit import roles

    parts = [work.rows.train, *work.rows.held_out.values()]
    rows = replace(work.rows, train=pd.concat(parts, ignore_index=True))
    settings = replace(work.settings, controls=False)
    again = continue_members(replace(work, settings=settings, rows=rows), watch, child.recipes)
    child.network, child.preprocessor = again.network, again.preprocessor
    child.card = child.card | again.card | {"refit": True}
    work.buffer = work.buffer.assign(**{roles.ROLE: roles.TRAIN})
    work.role = work.role.refitted()


def continue_foreign(work: Work, watch: Callable) -> Child:
    """Train a network of another making on all rows as it is, by its own loss and optimizer."""
    import keras

    import model_utils
    from toolkit import roles

    settings, parent, rows = work.settings, work.parent, work.rows
    X, y, preprocessor = model_utils.preprocessing(rows.train, preprocessor=parent.preprocessor)
    recipe = model_utils.sized_recipe(len(X), settings.epochs, settings.batch_size)
    network = keras.models.clone_model(parent.network)  # the parent is compared with it
    network.set_weights(parent.network.get_weights())
    scale = model_utils.target_scale(y)
    if "scale" in parent.card:
        scale = model_utils.rescaled(model_utils.TargetScale(**parent.card["scale"]), y)
        network = model_utils.rebounded(network, scale)
    if parent.network.compiled:
        network.compile_from_config(parent.network.get_compile_config())
    else:
        network.compile(keras.optimizers.AdamW(settings.learning_rate or 1e-3), loss="mse")
    options: dict[str, Any] = {"epochs": recipe.epochs, "batch_size": recipe.batch_size}
    options |= {"callbacks": watch("training"), "seed": settings.seed}
    w = roles.weights(rows.train, mean=1)
    _, history = model_utils.train_model(network, X, y, sample_weight=w, **options)
    card = {"scale": asdict(scale)}
    card |= {"recipe": parent.card["recipe"]} if "recipe" in parent.card else {}
    return Child(network, preprocessor, card, {"final_loss": history.history.get("loss", [])})


def move_champion(settings: Settings) -> int:
    """Make another version champion: the one before, or one that a person approves."""
    with cli.quiet_start("starting", settings.quiet):
        from toolkit import registry, tracking
    if settings.dry_run or (settings.rollback and settings.approve):
        raise UserError(
            "--approve and --rollback move the champion at once; expected neither --dry-run nor "
            "each other beside them: leave one out"
        )
    client, _ = tracking.connect(settings.tracking_uri, settings.experiment)
    name, terminal = settings.model_name, cli.Terminal(settings.quiet, settings.json)
    new, old = registry.appoint(client, name, settings.approve)
    beside = f", version {old} is @previous" if old else ""
    terminal.say(f"{name}: version {new} is champion{beside}")
    lines = registry.history(client, name)
    for line in lines[-5:]:
        terminal.say(f"  {line}")
    terminal.result(model_name=name, champion=new, previous=old, history=lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
