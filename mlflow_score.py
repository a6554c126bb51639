"""Score a file of any size with a model, block by block.

python mlflow_score.py --data data/df_new.csv --output predictions.csv
python mlflow_score.py --model-uri models:/loan-amount/1 --data rows/ --output scored.parquet
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from toolkit import cli
from toolkit.cli import option

OUTPUT = Path("predictions.csv")


@dataclass
class Settings(cli.StoreSettings):
    """The flags of this script, beside those of `cli.StoreSettings`."""

    data: str = option("data/df_new.csv", "file, folder, glob or URL of rows", metavar="FILE")
    model_uri: str | None = option(None, "model, any MLflow URI (the champion)", type=cli.uri)
    interval: float | None = option(None, "share of rows between low and high", type=cli.share)
    output: Path = option(OUTPUT, "written, .csv or .parquet", metavar="FILE")  # noqa: RUF009


def main(argv: list[str] | None = None) -> int:
    """Score one file; return the exit code."""
    return cli.run(score, cli.parse(Settings, argv, "mlflow_score.py", __doc__ or ""))


def score(settings: Settings) -> int:
    """Do the work of `main`, phase by phase."""
    with cli.quiet_start("starting", settings.quiet):
        from toolkit import artifact, engine, registry, tables, tracking
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
    predict = partial(predictions, model.network, model.preprocessor, model.card, settings.interval)
    with terminal.progress(f"scoring {settings.data}"):
        source = tables.open_table(settings.data, settings.query)
        written = settings.output.resolve()
        if source.paths & {written, *written.parents}:
            told = f"--output {str(settings.output)!r} is read by --data"
            raise UserError(f"{told}; expected a new file")
        if settings.workers > 1:
            shares = engine.shares_of(source, settings)
            found = engine.stream(lambda share: (yield from predict(share.open())), shares)
        else:
            found = predict(source)
        n_rows = write(found, settings.output)
    terminal.notes(source.notes)
    terminal.say(f"{n_rows:,} predictions of {uri} are in {settings.output}")
    terminal.result(rows=n_rows, model_uri=uri, output=str(settings.output))
    return 0


def predictions(
    network: Any, preprocessor: Any, card: Any, interval: float | None, source: Any
) -> Iterator[dict[str, Any]]:
    """Predict a table block by block: "prediction", and "low" and "high" with an `interval`."""
    from toolkit import encoding, ranges

    source.known, n_before = set().union(*preprocessor.categories.values()), 0
    for rows in source.blocks():
        where = partial(source.lines, n_before=n_before)
        place = {"source": source.source, "decimal": source.decimal, "where": where}
        X = preprocessor.encode(rows, source.note, **place)
        n_before += len(rows)
        found = {"prediction": encoding.predict(network, X)}
        if interval:
            found["low"], found["high"] = ranges.around(card, found["prediction"], interval)
        yield found


def write(blocks: Iterable[dict[str, Any]], file: Path) -> int:
    """Write a prediction (and its range) per row, in order; the file appears once all are there."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    kind = pa.csv.CSVWriter if file.suffix == ".csv" else pa.parquet.ParquetWriter
    tables = (pa.table(block) for block in blocks)
    first, beside, n_rows = next(tables), file.with_name(f".{file.name}.part"), 0
    try:
        with kind(beside, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
                n_rows += len(table)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return n_rows


if __name__ == "__main__":
    raise SystemExit(main())
