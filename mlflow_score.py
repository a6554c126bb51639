"""Score a file of any size with a model, block by block.

python mlflow_score.py --data data/df_new.csv --output predictions.csv
python mlflow_score.py --model-uri models:/loan-amount/1 --data rows/ --output scored.parquet
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import cli
from toolkit.cli import option

if TYPE_CHECKING:
    from toolkit.artifact import TrainedModel
    from toolkit.tables import Table

OUTPUT = Path("predictions.csv")


@dataclass
class Settings(cli.StoreSettings):
    """The flags of this script, beside those of `cli.StoreSettings`."""

    data: str = option("data/df_new.csv", "file, folder, glob or URL of rows", metavar="FILE")
    query: str | None = option(None, "SQL query, where --data is a database", metavar="SQL")
    model_uri: str | None = option(None, "model, any MLflow URI (the champion)", metavar="URI")
    interval: float | None = option(None, "share of rows between low and high", type=cli.share)
    output: Path = option(OUTPUT, "written, .csv or .parquet", metavar="FILE")  # noqa: RUF009


def main(argv: list[str] | None = None) -> int:
    """Score one file; return the exit code."""
    return cli.run(score, cli.parse(Settings, argv, "mlflow_score.py", __doc__ or ""))


def score(settings: Settings) -> int:
    """Do the work of `main`, phase by phase."""
    with cli.quiet_start("starting", settings.quiet):
        from toolkit import artifact, registry, tables, tracking
        from toolkit.errors import UserError
    terminal = cli.Terminal(settings.quiet, settings.json)
    if settings.output.suffix not in (".csv", ".parquet"):
        raise UserError(
            f"--output {str(settings.output)!r} was passed; expected a name ending in .csv or "
            ".parquet"
        )
    tracking.connect(settings.tracking_uri, settings.experiment)
    uri = settings.model_uri or f"models:/{settings.model_name}@{registry.CHAMPION}"
    model = artifact.load_model(uri, settings.models_dir / "preprocessor.pkl")
    with terminal.progress(f"scoring {settings.data}"):
        source = tables.open_table(settings.data, settings.query)
        n_rows = write(model, source, settings.output, settings.interval)
    terminal.notes(source.notes)
    terminal.say(f"{n_rows:,} predictions of {uri} are in {settings.output}")
    terminal.result(rows=n_rows, model_uri=uri, output=str(settings.output))
    return 0


def write(model: "TrainedModel", source: "Table", file: Path, interval: float | None = None) -> int:
    """Write a prediction (and its range) per row, in order; the file appears once all are there."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from model_utils import model_predict
    from toolkit.ranges import around

    names = ["prediction", "low", "high"] if interval else ["prediction"]
    schema, n_rows = pa.schema([(name, pa.float64()) for name in names]), 0
    beside = file.with_name(f".{file.name}.part")
    kind = pa.csv.CSVWriter if file.suffix == ".csv" else pa.parquet.ParquetWriter
    try:
        with kind(beside, schema) as writer:
            for rows in source.blocks():
                X = model.preprocessor.encode(rows, source.source)
                prediction = model_predict(model.network, X)
                bounds = around(model.card, prediction, interval) if interval else ()
                writer.write_table(pa.table([prediction, *bounds], schema=schema))
                n_rows += len(rows)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return n_rows


if __name__ == "__main__":
    raise SystemExit(main())
