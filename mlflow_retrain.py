"""Continue a model on new rows, prove whether that helped, and promote it only then.

python mlflow_retrain.py                              # continue the champion
python mlflow_retrain.py --model-uri models:/loan-amount/1 --data my_new.csv
python mlflow_retrain.py --dry-run                    # drift only
python mlflow_retrain.py --rollback
"""

import argparse
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import cli

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow import ActiveRun, MlflowClient

    from comparison import Evidence
    from model_store import TrainedModel
    from retraining import Retrained, Rows

MODEL_NAME = "retrained_mlflow_model"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser("mlflow_retrain.py", description=__doc__.splitlines()[0])
    cli.common_arguments(parser, data="data/df_new.csv")
    add = parser.add_argument
    add("--model-uri", metavar="URI", help="model to continue, any MLflow URI (the champion)")
    add(
        "--replay", type=cli.natural, metavar="ROWS", help="remembered rows to train on again (all)"
    )
    add("--controls", action=argparse.BooleanOptionalAction, default=True, help="train controls")
    add("--max-forgetting", type=cli.share, default=0.05, help="worse on old rows (%(default)s)")
    add("--promote", choices=["auto", "always", "never"], default="auto", help="(%(default)s)")
    add("--dry-run", action="store_true", help="report the drift and stop")
    add("--rollback", action="store_true", help="make the previous champion champion again")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Retrain, compare, log, register and judge one model; return the exit code."""
    args = parse_args(argv)
    return cli.run(roll_back if args.rollback else retrain, args)


def retrain(args: argparse.Namespace) -> int:
    """Do the work of `main`, phase by phase."""
    with cli.quiet_start("starting", args.quiet) as starting:
        import skops.io  # noqa: F401  (before TensorFlow: a second faster)

        import distributed
        import model_store
        import model_utils
        import retraining
        import streaming
        import tracking

        if not args.dry_run:
            distributed.join(args.worker_timeout, starting.say, starting.stream)
        model_utils.wake_device()
    terminal = cli.Terminal(args.quiet or not distributed.is_leader(), args.json)
    client, experiment_id = tracking.connect(args.tracking_uri, args.experiment, args.quiet)
    champion = model_store.champion_version(client, args.model_name)
    uri = args.model_uri or f"models:/{args.model_name}@{model_store.CHAMPION}"
    parent = model_store.load_model(uri, args.models_dir / "preprocessor.pkl")
    if not args.model_uri and parent.model_id:
        parent.uri = f"models:/{parent.model_id}"  # an alias will point elsewhere one day
    with streaming.workspace(args.models_dir) as folder:
        large = streaming.is_large(args.data, args.stream)
        with terminal.progress(f"reading {args.data}") as progress:
            rows = retraining.prepare_rows(
                parent,
                args.data,
                test_size=args.test_size,
                seed=args.seed,
                replay=args.replay,
                memory_rows=args.memory_rows,
                folder=folder if large else None,
                report=progress.rows,
            )
        rows.notes.extend(distributed.notes(args.batch_size))
        announce(terminal, parent, rows, args.dry_run)
        if args.dry_run:
            return 0
        return track(args, terminal, client, experiment_id, champion, parent, rows)


def track(
    args: argparse.Namespace,
    terminal: cli.Terminal,
    client: "MlflowClient",
    experiment_id: str,
    champion: str | None,
    parent: "TrainedModel",
    rows: "Rows",
) -> int:
    """Retrain, compare, log, register and judge in one MLflow run."""
    import distributed
    import model_store
    import model_utils
    import retraining
    import tracking

    rates = {"learning_rate": args.learning_rate, "batch_size": args.batch_size}
    preparing = cli.background(
        lambda: retraining.prepare_child(parent, rows, seed=args.seed, **rates)
    )
    options = rates | {"epochs": args.epochs, "seed": args.seed, "memory_rows": args.memory_rows}
    if not distributed.is_leader():
        retraining.retrain(parent, rows, preparing.result(), controls=False, **options)
        return 0
    tags = {"phase": "retraining", "parent_model_uri": parent.uri, "parent_run_id": parent.run_id}
    inputs = (parent.model_id or parent.uri, tracking.content_hash(rows.hashes))
    saved = tracking.checkpoint_file(args, __file__, *inputs)
    checkpoint = model_utils.Checkpoint(saved, args.checkpoint_seconds)
    name = f"retrain {args.model_name}"
    with tracking.tracked_run(experiment_id, name, tags, checkpoint.run_id) as run:
        checkpoint.run_id = run.info.run_id
        log_inputs(client, run, args, parent, rows)
        with terminal.progress("training") as progress:
            if rows.stream:
                rows.stream.source.report = progress.rows
            checkpoint.watchers = [model_utils.Watch(progress.epoch)]
            child = preparing.result()
            cli.background(model_store.look_through_packages)
            result = retraining.retrain(
                parent,
                rows,
                child,
                controls=args.controls,
                checkpoint=checkpoint,
                **options,
            )
        evidence = retraining.gather_evidence(parent, rows, result, args.max_forgetting)
        save = partial(save_child, run, args, parent, result, evidence)
        with tracking.kept_if_logging_fails(save):
            save()
            metrics = log_evidence(client, run, result, evidence, rows, parent)
            child_uri = model_store.log_model(result.model, MODEL_NAME, step=args.epochs)
            with cli.uninterrupted():  # registered, promoted and told, or nothing of it
                verdict, version = judge(
                    client, run, args, champion, parent, evidence, result.model, child_uri
                )
        saved.unlink(missing_ok=True)
    conclude(terminal, args, run, evidence, metrics, verdict, child_uri, version)
    distributed.release()
    return 0


def announce(terminal: cli.Terminal, parent: "TrainedModel", rows: "Rows", alone: bool) -> None:
    """Print what is continued on what, and at most three lines on drift.

    With `alone` that is the whole result of the script.
    """
    import comparison
    import retraining

    for note in rows.notes:
        terminal.say(f"note: {note}")
    counts = {name: len(table) for name, table in rows.held_out.items()}
    terminal.say(
        f"parent {parent.uri}: {len(rows.roles.train):,} new rows and {len(rows.replay):,} "
        f"remembered ones to train on, {counts['new']:,} new and {counts.get('old', 0):,} old ones "
        "to score on"
    )
    drift, bounds = retraining.measure_drift(parent, rows)
    if drift is None:
        lines = ["drift: unknown, the parent remembers no training row"]
    else:
        lines = comparison.drift_summary(drift, bounds)
        lines.append(retraining.looks_worthwhile(parent, rows, drift))
    for line in lines:
        terminal.say(line)
    if alone:
        columns = [] if drift is None else drift.to_dict("records")
        terminal.result(verdict=lines[-1], parent_model_uri=parent.uri, drift=columns)


def log_inputs(
    client: "MlflowClient",
    run: "ActiveRun",
    args: argparse.Namespace,
    parent: "TrainedModel",
    rows: "Rows",
) -> None:
    """Log arguments, parent and datasets, before training starts."""
    from mlflow.entities import LoggedModelInput

    import tracking

    run_id, counts = run.info.run_id, rows.roles.counts
    tracking.log_arguments(client, run_id, vars(args) | {"parent": parent.uri} | counts)
    if parent.model_id:
        client.log_inputs(run_id, models=[LoggedModelInput(parent.model_id)])
    parts = {"training": rows.new, "replay": rows.replay}
    parts |= {f"held-out {name}": table for name, table in rows.held_out.items()}
    target, features = parent.schema.target, [*parent.schema.features]
    for context, table in parts.items():
        if len(table):
            tracking.log_rows(table[[*features, target]], target, args.data, context)


def metrics_of(result: "Retrained", evidence: "Evidence") -> dict[str, float]:
    """Name every score and interval as the metrics that a run logs."""
    from comparison import RETRAINED

    own = evidence.held_out["new"].scores.loc[RETRAINED]
    metrics = {name.replace("²", "2"): value for name, value in own.items()}
    metrics["weight_decay"] = result.fit.weight_decay
    for part, held_out in evidence.held_out.items():
        for model, scores in held_out.scores.iterrows():
            metrics |= {f"{part}/{k.replace('²', '2')}_{model}": v for k, v in scores.items()}
        difference = held_out.change
        metrics[f"{part}/MAE_difference"] = difference.estimate
        metrics[f"{part}/MAE_difference_low"] = difference.low
        metrics[f"{part}/MAE_difference_high"] = difference.high
    return metrics


def log_evidence(
    client: "MlflowClient",
    run: "ActiveRun",
    result: "Retrained",
    evidence: "Evidence",
    rows: "Rows",
    parent: "TrainedModel",
) -> dict[str, float]:
    """Log metrics, curves, figures, tables and the report; return the metrics."""
    import comparison
    import figures
    import tracking

    metrics = metrics_of(result, evidence)
    curves = {f"epoch/{name}": values for name, values in result.fit.curves.items()}
    curves["epoch/final_loss"] = result.fit.final
    tracking.log_numbers(client, run.info.run_id, metrics, curves, step=len(result.fit.final))
    y = rows.held_out["new"][parent.schema.target].to_numpy()
    shown = {name: result.predictions["new"][name] for name in ("parent", "retrained")}
    pictures = {
        "before_after": figures.before_after(evidence.held_out, evidence.unit),
        "learning_curve": figures.learning_curve(result.fit.curves),
        "predicted_against_actual": figures.predicted_against_actual(y, shown, evidence.unit),
    }
    files = {"report.md": comparison.report(evidence)}
    if evidence.groups is not None:
        pictures["error_per_group"] = figures.error_per_group(evidence.groups, evidence.unit)
        files["groups.csv"] = comparison.safe_cells(evidence.groups).to_csv(index=False)
    if evidence.drift is not None:
        pictures["drift"] = figures.drift_figure(evidence.drift)
        files["drift.csv"] = comparison.safe_cells(evidence.drift).to_csv(index=False)
    tracking.log_figures(pictures)
    tracking.log_files(files)
    return metrics


def save_child(
    run: "ActiveRun",
    args: argparse.Namespace,
    parent: "TrainedModel",
    result: "Retrained",
    evidence: "Evidence",
) -> "Path":
    """Give the child its card and save its folder under `models/`; return the folder."""
    import model_store

    child = result.model
    child.card |= {
        "run_id": run.info.run_id,
        "parent_model_uri": parent.uri,
        "parent_run_id": parent.run_id,
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "weight_decay": result.fit.weight_decay,
        "result": evidence.verdict.reason,
    }
    child.card["lineage"][-1] |= {"run_id": run.info.run_id, "data": args.data}
    return model_store.save_folder(child, args.models_dir / MODEL_NAME)


def judge(
    client: "MlflowClient",
    run: "ActiveRun",
    args: argparse.Namespace,
    champion: str | None,
    parent: "TrainedModel",
    evidence: "Evidence",
    child: "TrainedModel",
    uri: str,
) -> tuple[str, str]:
    """Register the child, move `@champion` if the verdict allows, and tell so in the run.

    Returns (verdict in words, version).
    """
    import model_card
    import model_store
    import retraining
    import tracking
    from comparison import escape_markdown

    about = model_card.about(child.card, child.schema)
    words = f"{escape_markdown(retraining.headline(evidence))}\n\n{about}"
    version = model_store.register(client, args.model_name, uri, words)
    wanted = args.promote == "always" or (args.promote == "auto" and evidence.verdict.promoted)
    reason = evidence.verdict.reason
    if wanted and args.promote == "auto" and champion is not None:
        current = client.get_model_version(args.model_name, champion)
        if current.run_id != parent.run_id:
            wanted, reason = False, f"the parent is not the champion, version {champion}; {reason}"
    if wanted and not model_store.promote(client, args.model_name, version, champion):
        wanted = False
        reason = f"the champion changed since version {champion} was read; {reason}"
    if not wanted and args.promote == "never":
        reason = f"--promote never; {reason}"
    verdict = f"{'promoted' if wanted else 'kept champion'}: {reason}"
    words = f"{escape_markdown(verdict)}.\n\n{about}"
    client.update_model_version(args.model_name, version, words)
    word = verdict.split(":")[0]
    tags = {
        "mlflow.note.content": retraining.note(evidence, verdict, tracking.link(client, parent)),
        "mlflow.runName": f"{word} {retraining.short_result(evidence)}",
        "verdict": word,
    }
    tracking.log_numbers(client, run.info.run_id, {}, tags=tags)
    return verdict, version


def conclude(
    terminal: cli.Terminal,
    args: argparse.Namespace,
    run: "ActiveRun",
    evidence: "Evidence",
    metrics: dict[str, float],
    verdict: str,
    uri: str,
    version: str,
) -> None:
    """Print the comparison, the verdict and the next commands, or all of it as one object."""
    import retraining
    from tracking import ui_steps

    terminal.say()
    terminal.table(*retraining.score_table(evidence))
    terminal.say(f"\nretrained − parent: {retraining.headline(evidence)}")
    if evidence.attribution:
        terminal.say(evidence.attribution.sentence)
    steps = ui_steps(args, run.info.experiment_id)
    promoted = verdict.startswith("promoted")
    if promoted:
        flags = ["--rollback", *cli.same_place(args)]
        steps.append(cli.command("python", "mlflow_retrain.py", *flags))
    intervals = {part: asdict(held.change) for part, held in evidence.held_out.items()}
    found = {"promoted": promoted, "intervals": intervals, "metrics": metrics}
    cli.conclude(terminal, args, run, uri, version, verdict, steps, **found)


def roll_back(args: argparse.Namespace) -> int:
    """Swap `@champion` and `@previous`."""
    with cli.quiet_start("starting", args.quiet):
        import model_store
        import tracking
    client, _ = tracking.connect(args.tracking_uri, args.experiment, args.quiet)
    new, old = model_store.roll_back(client, args.model_name)
    terminal = cli.Terminal(args.quiet, args.json)
    terminal.say(f"{args.model_name}: version {new} is champion again, version {old} is @previous")
    lines = model_store.history(client, args.model_name)
    for line in lines:
        terminal.say(f"  {line}")
    names = {"model_name": args.model_name, "champion": new, "previous": old}
    terminal.result(**names, history=lines)
    return 0


if __name__ == "__main__":
    cli.leave(main())
