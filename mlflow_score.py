"""Score a file of any size with a model, block by block.

python mlflow_score.py --data data/df_new.csv --output predictions.csv
python mlflow_score.py --model-uri models:/loan-amount/1 --data rows/ --output scored.parquet
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import cli
from toolkit.cli import option

if TYPE_CHECKING:
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
        parts = model.network, model.preprocessor, model.card, settings.interval
        predict = partial(predictions, *parts)
        found = predict(source)
        if settings.workers > 1:
            from toolkit import engine

            found = engine.stream(predict, engine.shares_of(source, settings))
        n_rows = write(found, settings.output, 3 if settings.interval else 1)
    terminal.notes(source.notes)
    terminal.say(f"{n_rows:,} predictions of {uri} are in {settings.output}")
    terminal.result(rows=n_rows, model_uri=uri, output=str(settings.output))
    return 0


def predictions(
    network: Any, preprocessor: Any, card: Any, interval: float | None, source: "Table"
) -> Iterator[list[Any]]:
    """Predict a source block by block: [prediction] or, with `interval`, [prediction, low, high].

    Each is float64 of shape (n_rows,).
    """
    from model_utils import model_predict
    from toolkit.ranges import around

    for rows in source.blocks():
        prediction = model_predict(network, preprocessor.encode(rows, source.source))
        yield [prediction, *(around(card, prediction, interval) if interval else ())]


def write(blocks: Iterable[list[Any]], file: Path, n_columns: int = 1) -> int:
    """Write a prediction (and its range) per row, in order; the file appears once all are there."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    names = ["prediction", "low", "high"][:n_columns]
    schema, n_rows = pa.schema([(name, pa.float64()) for name in names]), 0
    beside = file.with_name(f".{file.name}.part")
    kind = pa.csv.CSVWriter if file.suffix == ".csv" else pa.parquet.ParquetWriter
    try:
        with kind(beside, schema) as writer:
            for block in blocks:
                writer.write_table(pa.table(block, schema=schema))
                n_rows += len(block[0])
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return n_rows


if __name__ == "__main__":
    raise SystemExit(main())
