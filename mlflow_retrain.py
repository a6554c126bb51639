"""Continue a model on new rows, compare both on the same held-out rows, promote the better one.

python mlflow_retrain.py                          # the champion, on data/df_new.csv
python mlflow_retrain.py --model-uri models:/loan-amount/1 --data new.csv
python mlflow_retrain.py --rollback
"""

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from toolkit import cli
from toolkit.cli import option

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

    from toolkit.artifact import TrainedModel
    from toolkit.checkpoint import Checkpoint
    from toolkit.report import Evidence
    from toolkit.roles import RetrainingRows

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
        from toolkit import artifact, reading, registry, roles, summary, tracking
        from toolkit.checkpoint import Checkpoint
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
    group = parent.roles.group if parent.roles else ""
    with terminal.progress(f"reading {settings.data}"):
        table, notes = reading.read_again(
            settings, parent.preprocessor.schema, group, strict=bool(parent.card)
        )
        role = parent.roles or roles.Roles.choose(table, settings.test_size, settings.seed)
        role = role.with_latest(table, settings.test_size) if role.time else role
        table = role.assign(table, generation=last + 1)
        rows = roles.gather(table, buffer, parent.generation, settings.replay)
    terminal.notes(notes)
    if rows.file.empty:
        return nothing_new(terminal, settings)

    # Look at the rows before anything is trained on them.
    evidence, whole = look(terminal, settings, parent, rows)
    if settings.dry_run:
        return 0
    roles.check_enough(len(rows.train), len(rows.held_out["new"]), settings.data)

    tags = {"phase": "retraining", "parent_model_uri": parent.uri, "parent_run_id": parent.run_id}
    sha256 = tracking.content_hash(table)
    checkpoint = Checkpoint(settings, __file__, sha256 + (parent.model_id or parent.uri))
    name = f"retrain {settings.model_name}"
    with tracking.tracked_run(experiment_id, name, tags, checkpoint.run_id) as run:
        run_id = checkpoint.once("run_id", lambda: run.info.run_id)
        log_inputs(client, run_id, settings, parent, rows)

        # Train the child and a control; score all of them on the same held-out rows.
        with terminal.progress("training") as progress:
            child = train_child(settings, parent, rows, checkpoint, progress.update)
        evidence = weigh(settings, role, rows, child, evidence, whole)

        # Log, register, promote as the verdict allows.
        kept = roles.remember(buffer, table, settings.buffer_rows)
        lineage = {"generation": last + 1, "run_id": run_id, "data": settings.data}
        lineage |= roles.counts(table)
        trained = artifact.TrainedModel(
            child.network,
            child.preprocessor,
            role,
            kept,
            {
                **child.facts,
                "run_id": run_id,
                "unit": evidence.unit,
                "settings": {key: str(value) for key, value in vars(settings).items()},
                "result": evidence.verdict.reason,
                "verdict_kind": evidence.verdict.kind,
                "parent_model_uri": parent.uri,
                "lineage": [*parent.card.get("lineage", []), lineage],
            },
        )
        folder = settings.models_dir / MODEL_NAME
        with tracking.kept_if_logging_fails(lambda: artifact.save_folder(trained, folder)):
            artifact.save_folder(trained, folder)
            metrics = log_evidence(client, run_id, child, evidence, rows)
            child_uri = artifact.log_model(trained, MODEL_NAME, step=len(child.curves["final_loss"]))
            with cli.uninterrupted():  # registered, promoted and told, or nothing of it
                verdict, version = judge(
                    client, run_id, settings, champion, parent, evidence, trained, child_uri
                )
        checkpoint.remove()
    say(terminal, evidence)
    promoted = verdict.startswith("promoted")
    steps = []
    if promoted:
        back = ["--rollback", *cli.same_place(settings)]
        steps.append(cli.command("python", "mlflow_retrain.py", *back))
    summary.conclude(
        terminal,
        settings,
        run.info,
        child_uri,
        version,
        verdict,
        steps,
        kind=evidence.verdict.kind,
        verdict_kind=evidence.verdict.kind,
        promoted=promoted,
        intervals={part: asdict(held.change) for part, held in evidence.held_out.items()},
        metrics=metrics,
    )
    return 0


def nothing_new(terminal: cli.Terminal, settings: Settings) -> int:
    """Say that a file holds no row which the model's line has not seen."""
    words = f"nothing new in {settings.data}: every row was seen before, nothing is trained"
    terminal.say(words)
    terminal.result(verdict=words, verdict_kind="nothing_new", promoted=False, model_uri=None)
    return 0


def look(
    terminal: cli.Terminal, settings: Settings, parent: "TrainedModel", rows: "RetrainingRows"
) -> tuple["Evidence", tuple]:
    """Score the parent on the whole new file, measure the drift, look for signs of a broken file.

    Says what was found; with `--dry-run` that is the script's result. Returns (evidence, (targets, the parent's predictions)).
    """
    import numpy as np

    import model_utils
    from toolkit import drift, report, roles
    from toolkit.words import format_amount

    schema, unit = parent.preprocessor.schema, parent.card.get("unit", "")
    y = rows.file[schema.target.name].to_numpy()
    prediction = model_utils.model_predict(
        parent.network, parent.preprocessor.transform(rows.file)
    )
    error = float(np.abs(y - prediction).mean())
    terminal.say(
        f"parent {parent.uri}: its MAE on the {len(y):,} new rows of {settings.data}, before any "
        f"training on them, is {format_amount(error, unit)}"
    )
    evidence = report.Evidence(unit=unit, prequential=error, prequential_rows=len(y))
    reference = roles.part(rows.train[~rows.new], roles.TRAIN)
    lines = ["drift: unknown, the parent remembers no training row"]
    if len(reference):
        target = schema.target.name
        table = drift.drift(reference, rows.file, schema.kinds, target)
        bounds = drift.bounds_share(reference[target], y)
        findings = drift.suspicious(reference, rows.file, schema.kinds, target)
        lines = drift.drift_summary(table, bounds)
        evidence = replace(evidence, drift=table, bounds=bounds, findings=findings)
        lines += [f"suspicious: {finding}" for finding in findings]
    for line in lines:
        terminal.say(line)
    if settings.dry_run:
        columns = [] if evidence.drift is None else evidence.drift.to_dict("records")
        found = {"prequential_MAE": error, "drift": columns, "findings": evidence.findings}
        terminal.result(verdict=lines[-1], parent_model_uri=parent.uri, **found)
    return evidence, (y, prediction)


def log_inputs(
    client: "MlflowClient",
    run_id: str,
    settings: Settings,
    parent: "TrainedModel",
    rows: "RetrainingRows",
) -> None:
    """Log settings, parent and datasets, before training starts."""
    from mlflow.entities import LoggedModelInput

    from toolkit import roles, tracking

    tracking.log_settings(client, run_id, settings, parent=parent.uri)
    if parent.model_id:
        client.log_inputs(run_id, models=[LoggedModelInput(parent.model_id)])
    parts = {"training": rows.train[rows.new], "replay": rows.train[~rows.new]}
    parts |= {f"held-out {name}": table for name, table in rows.held_out.items()}
    for context, table in parts.items():
        if len(table):
            target = parent.preprocessor.schema.target.name
            tracking.log_rows(roles.own_columns(table), target, settings.data, context)


@dataclass
class Child:
    """Hold a retrained network, its curves, and every model's predictions by part of rows."""

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

    before = {
        part: {"parent": model_utils.model_predict(parent.network, parent.preprocessor.transform(t))}
        for part, t in rows.held_out.items()
    }
    if not model_utils.member_count(parent.network):
        child = continue_foreign(settings, parent, rows, checkpoint, tell)
    else:
        child = continue_members(settings, parent, rows, checkpoint, tell)
    child.predictions, control = before, None
    if settings.controls and model_utils.member_count(parent.network):
        control = train_control(settings, parent, rows, child, tell)
    y = rows.train[parent.preprocessor.schema.target.name]
    for part, table in rows.held_out.items():
        X = child.preprocessor.transform(table)
        predictions = before[part]
        predictions["retrained"] = model_utils.model_predict(child.network, X)
        if model_utils.member_count(child.network):
            fresh = slice(model_utils.MEMBERS // 2, None)
            predictions["scratch"] = model_utils.member_predictions(child.network, X, fresh)
        if control:
            known = parent.preprocessor.transform(table)
            predictions["control"] = model_utils.model_predict(control, known)
        predictions["mean"] = np.full(len(table), y.mean())
        predictions["median"] = np.full(len(table), y.median())
    return child


def continue_members(
    settings: Settings,
    parent: "TrainedModel",
    rows: "RetrainingRows",
    checkpoint: "Checkpoint",
    tell: Any,
) -> Child:
    """Train a child of the parent's members and fresh ones, wide enough for what is new."""
    import numpy as np

    import model_utils

    target = parent.preprocessor.schema.target.name
    preprocessor, new_categories = parent.preprocessor.widen(rows.train)
    X, y, _ = model_utils.preprocessing(rows.train, preprocessor=preprocessor)
    y = rows.train[target].to_numpy()
    scale = model_utils.rescaled(model_utils.TargetScale(**parent.card["scale"]), y)
    base = model_utils.sized_recipe(len(X), settings.epochs, settings.batch_size)
    recipe = replace(
        model_utils.Recipe(**parent.card["recipe"]),
        epochs=base.epochs,
        batch_size=base.batch_size,
        learning_rate=settings.learning_rate or base.learning_rate,
    )
    options = {"seed": settings.seed}
    recipes, curves = checkpoint.search(
        model_utils.Recipe,
        lambda: model_utils.choose_retraining(
            parent.network,
            X,
            y,
            preprocessor.bins,
            scale,
            recipe,
            np.flatnonzero(rows.new),
            callbacks=checkpoint.callbacks("search", tell),
            **options,
        ),
    )
    network = model_utils.create_nn_model(
        X.shape[1], recipe, scale, preprocessor.bins, seed=settings.seed + rows.parent_generation + 1
    )
    half = model_utils.MEMBERS // 2
    model_utils.grow_network(parent.network, network, np.arange(half) * 2)
    history = model_utils.train_members(
        network, X, y, scale, recipes, callbacks=checkpoint.callbacks("training", tell), **options
    )
    curves = {**curves, "final_loss": history.history.get("loss", [])}
    facts = {"recipe": asdict(recipes[-1]), "scale": asdict(scale), "new_categories": new_categories}
    return Child(network, preprocessor, facts, curves)


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

    X, _, preprocessor = model_utils.preprocessing(rows.train, preprocessor=parent.preprocessor)
    y = rows.train[preprocessor.schema.target.name].to_numpy()
    network, base = parent.network, model_utils.sized_recipe(len(X))
    if not network.compiled:
        network.compile(keras.optimizers.AdamW(settings.learning_rate or 1e-3), loss="mse")
    _, history = model_utils.train_model(
        network,
        X,
        y,
        epochs=settings.epochs or base.epochs,
        batch_size=settings.batch_size or base.batch_size,
        callbacks=checkpoint.callbacks("training", tell),
        seed=settings.seed,
    )
    facts = {key: parent.card.get(key) for key in ("recipe", "scale") if key in parent.card}
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
    X, _, preprocessor = model_utils.preprocessing(old, preprocessor=parent.preprocessor)
    y = old[preprocessor.schema.target.name].to_numpy()
    scale = model_utils.TargetScale(**parent.card["scale"])
    epochs = max(1, round(child.facts["recipe"]["epochs"] * len(rows.train) / len(old)))
    recipe = replace(recipe, epochs=epochs, learning_rate=recipe.learning_rate / 3)
    network = model_utils.create_nn_model(
        X.shape[1], recipe, scale, preprocessor.bins, members=members
    )
    model_utils.grow_network(parent.network, network, np.arange(members))
    tell("training the control")
    model_utils.train_members(network, X, y, scale, [recipe] * members, seed=settings.seed)
    return network


def weigh(
    settings: Settings,
    role: Any,
    rows: "RetrainingRows",
    child: Child,
    evidence: "Evidence",
    whole: tuple,
) -> "Evidence":
    """Compare both models on the same held-out rows and reach a verdict.

    whole: the targets of the file's new rows, and what the parent predicted for them.
    """
    from toolkit import comparison, roles

    schema = child.preprocessor.schema
    held_out, attribution = {}, None
    for part, table in rows.held_out.items():
        y = table[schema.target.name].to_numpy()
        held_out[part] = comparison.evaluate(
            y, child.predictions[part], roles.blocks_of_rows(table, role)
        )
    table, predictions = rows.held_out["new"], child.predictions["new"]
    findings = list(evidence.findings)
    if "old" in held_out and len(table):
        y_old = rows.held_out["old"][schema.target.name]
        findings += comparison.lost_skill(
            table[schema.target.name], predictions, y_old, child.predictions["old"], whole=whole
        )
    y, labels = table[schema.target.name].to_numpy(), roles.blocks_of_rows(table, role)
    if "control" in predictions:
        models = [predictions[name] for name in ("parent", "control", "retrained")]
        attribution = comparison.attribution(y, *models, evidence.unit, labels)
    categorical = [name for name, kind in schema.kinds.items() if kind == "categorical"]
    groups = None
    if categorical:
        groups = comparison.groups(
            table, categorical, y, predictions["parent"], predictions["retrained"]
        )
    verdict = comparison.decide(
        held_out["new"],
        held_out.get("old"),
        max_forgetting=settings.max_forgetting,
        promote=settings.promote,
        findings=findings,
        unit=evidence.unit,
    )
    return replace(
        evidence,
        verdict=verdict,
        held_out=held_out,
        attribution=attribution,
        groups=groups,
        leakage=rows.counts,
        caveats=caveats(schema, role),
    )


def caveats(schema: Any, role: Any) -> list[str]:
    """Say what the way of holding rows out leaves open."""
    dates = [name for name, kind in schema.kinds.items() if kind == "date"]
    if dates and not role.time:
        return [
            f"Rows were held out at random, whatever their {dates[0]}: a model is judged on days "
            f"that it partly knows. A first training with --time {dates[0]} holds out the latest."
        ]
    return []


def log_evidence(
    client: "MlflowClient",
    run_id: str,
    child: Child,
    evidence: "Evidence",
    rows: "RetrainingRows",
) -> dict[str, float]:
    """Log metrics, curves, figures, tables and the report; return the metrics."""
    from toolkit import figures, report, tracking
    from toolkit.words import safe_cells

    metrics = report.metrics(evidence)
    curves = {f"epoch/{name}": values for name, values in child.curves.items()}
    step = len(child.curves["final_loss"])
    tracking.log_numbers(client, run_id, metrics, curves, step=step)
    y = rows.held_out["new"][child.preprocessor.schema.target.name].to_numpy()
    shown = {name: child.predictions["new"][name] for name in ("parent", "retrained")}
    pictures = {
        "before_after": figures.before_after(evidence.held_out, evidence.unit),
        "learning_curve": figures.learning_curve(child.curves),
        "predicted_against_actual": figures.predicted_against_actual(y, shown, evidence.unit),
    }
    files = {"report.md": report.to_markdown(report.sections(evidence))}
    if evidence.groups is not None:
        pictures["error_per_group"] = figures.error_per_group(evidence.groups, evidence.unit)
        files["groups.csv"] = safe_cells(evidence.groups).to_csv(index=False)
    if evidence.drift is not None:
        pictures["drift"] = figures.drift_figure(evidence.drift)
        files["drift.csv"] = safe_cells(evidence.drift).to_csv(index=False)
    tracking.log_figures(pictures)
    tracking.log_files(files)
    return metrics


def judge(
    client: "MlflowClient",
    run_id: str,
    settings: Settings,
    champion: str | None,
    parent: "TrainedModel",
    evidence: "Evidence",
    trained: "TrainedModel",
    uri: str,
) -> tuple[str, str]:
    """Register the child, move `@champion` if the verdict allows, and tell so in the run.

    Returns (verdict in words, version).
    """
    from toolkit import registry, report, tracking
    from toolkit.words import escape_markdown

    name, reason = settings.model_name, evidence.verdict.reason
    about = report.about(trained.card, trained.preprocessor.schema)
    version = registry.register(client, name, uri, f"{escape_markdown(reason)}\n\n{about}")
    wanted = evidence.verdict.promoted
    if wanted and settings.promote != "always" and champion is not None:
        if client.get_model_version(name, champion).run_id != parent.run_id:
            wanted, reason = False, f"the parent is not the champion, version {champion}; {reason}"
    if wanted and not registry.promote(client, name, version, champion):
        wanted = False
        reason = f"the champion changed since version {champion} was read; {reason}"
    verdict = f"{'promoted' if wanted else 'kept champion'}, {reason}"
    words = f"{escape_markdown(verdict)}.\n\n{about}"
    client.update_model_version(name, version, words)
    link = tracking.link(client, parent.uri, parent.model_id)
    tags = {
        "mlflow.note.content": f"{escape_markdown(verdict)}.\n\nParent: {link}",
        "mlflow.runName": report.short_result(evidence, promoted=wanted),
        "verdict": "promoted" if wanted else "kept champion",
        "verdict_kind": evidence.verdict.kind,
    }
    tracking.log_numbers(client, run_id, {}, tags=tags)
    return verdict, version


def say(terminal: cli.Terminal, evidence: "Evidence") -> None:
    """Print the comparison."""
    from toolkit import report

    terminal.say()
    terminal.table(*report.score_table(evidence), bold="retrained")
    terminal.say()
    for part, held in evidence.held_out.items():
        terminal.say(f"retrained − parent: {report.change(part, held, evidence.unit)}")
    if evidence.attribution:
        terminal.say(evidence.attribution.sentence)


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
    terminal.say(f"{name}: version {new} is champion, version {old} is @previous")
    lines = registry.history(client, name)
    for line in lines:
        terminal.say(f"  {line}")
    terminal.result(model_name=name, champion=new, previous=old, history=lines)
    return 0


if __name__ == "__main__":
    cli.leave(main())
