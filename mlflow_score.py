"""Score a file of any size with a model, in little memory.

python mlflow_score.py --data data/df_new.csv --output predictions.csv
python mlflow_score.py --model-uri models:/loan-amount/1 --data rows/ --output scored.parquet
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import cli

if TYPE_CHECKING:
    from model_store import TrainedModel
    from streaming import Source


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser("mlflow_score.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model-uri", metavar="URI", help="model to score with, any MLflow URI (the champion)")
    add("--data", default="data/df_new.csv", metavar="FILE", help=cli.DATA_HELP)
    add("--output", type=output, default=Path("predictions.csv"), help=".csv or .parquet")
    cli.store_arguments(parser)
    return parser.parse_args(argv)


def output(text: str) -> Path:
    """Accept the name of a file that can be written."""
    path = Path(text)
    if path.suffix not in (".csv", ".parquet") or not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} was passed; expected a file ending in .csv or .parquet in an existing folder"
        )
    return path


def main(argv: list[str] | None = None) -> int:
    """Score one file; return the exit code."""
    return cli.run(score, parse_args(argv))


def score(args: argparse.Namespace) -> int:
    """Do the work of `main`, phase by phase."""
    with cli.quiet_start("starting", args.quiet):
        import model_store
        import model_utils
        import streaming
        import tracking

        model_utils.wake_device()
    terminal = cli.Terminal(args.quiet, args.json)
    tracking.connect(args.tracking_uri, args.experiment, args.quiet)
    uri = args.model_uri or f"models:/{args.model_name}@{model_store.CHAMPION}"
    model = model_store.load_model(uri, args.models_dir / "preprocessor.pkl")
    with (
        streaming.workspace(args.models_dir) as folder,
        terminal.progress(f"scoring {args.data}") as progress,
    ):
        source = streaming.Source(args.data, folder, progress.rows)
        write(model, source, args.output)
    terminal.say(f"{source.n_rows:,} predictions of {uri} are in {args.output}")
    terminal.result(rows=source.n_rows, model_uri=uri, output=str(args.output))
    return 0


def write(model: "TrainedModel", source: "Source", file: Path) -> None:
    """Write one prediction per row, in order; the file appears once all are written."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    import tabular

    schema = pa.schema([("prediction", pa.float64())])
    beside = file.with_name(f".{file.name}.part")
    kind = pa.csv.CSVWriter if file.suffix == ".csv" else pa.parquet.ParquetWriter
    try:
        with kind(beside, schema) as writer:
            for rows in source.chunks("rows"):
                X = tabular.encode_features(rows, model.schema, model.preprocessor)
                writer.write_table(pa.table([tabular.predict(model.network, X)], schema=schema))
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


if __name__ == "__main__":
    cli.leave(main())
