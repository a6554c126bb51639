"""Write the synthetic loan files: ``df_old.csv``, ``df_new.csv``, or one large file.

Run:
    python data/make_data.py
    python data/make_data.py --rows 1000000 --output big.parquet
    python data/make_data.py --rows 1000000 --population new --seed 7 --output big.csv

The first line writes both files beside this script, 2,000 rows each: same seed, same bytes. The
others write any number of rows in bounded memory, replacing FILE if it exists. Every person is
invented; names repeat, as in real files: 400 surnames, 216 first names. ``old`` rows are French,
male and over 35 for the most part; ``new`` rows are balanced and start at 18, so that a model
trained on ``old`` has something to learn from ``new``.

The amount, in euros, is a doubly censored linear model with three smooth additions:

    mu = BASE + the effect of each category (EFFECTS)
         + 4.5 (income - 2500), but 2.5 (income - 2500) without French nationality
         - 100 (age - 50) for smokers
         - 9000 / (1 + exp((age - 28) / 2.5))
    montant_pret = round(clip(mu + 4800 eps, 500, 40000)),  eps ~ N(0, 1) independent

Clipping comes before rounding, so whole shares of the rows lie exactly on a bound: 13.5 % of
``old`` and 45 % of ``new`` rows on the floor, 4.8 % and 0.9 % on the cap (200,000 rows). The last
term of mu takes 8,800 EUR off at 18 but less than 400 EUR from 36 on: ``old`` rows hardly reveal
it. Height and weight have no effect. The noise leaves a best reachable R2 of .88 on ``old`` and
.90 on ``new``.

The data DISCRIMINATE ON PURPOSE: women are lent 4,000 EUR less and persons without French
nationality 27,000 EUR less, all else equal, before clipping, and the income of the latter counts
for less. The tool's report must be able to show this. A model trained on these files learns the
discrimination: never use one to decide on a real loan.

All constants were chosen for this project; none was estimated from real loans.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import ndtr

SEED, ROWS, CHUNK_ROWS = 42, 2_000, 250_000
FLOOR, CAP, SIGMA, BASE = 500.0, 40_000.0, 4_800.0, 18_300.0  # EUR
INCOME_MEAN, INCOME_SD, INCOME_FLOOR = 2_500, 1_130, 500  # EUR per month
TARGET = "montant_pret"

# EUR added to mu by each value of each categorical column.
EFFECTS: dict[str, dict[str, float]] = {
    "sexe": {"H": 0, "F": -4_000},
    "sport_licence": {"oui": 4_000, "non": 0},
    "niveau_etude": {
        "aucun": -9_000,
        "bac": -5_500,
        "bac+2": 0,
        "master": 3_500,
        "doctorat": 6_500,
    },
    "region": {
        "Occitanie": 5_000,
        "Normandie": -6_000,
        "Bretagne": 0,
        "Île-de-France": 12_000,
        "Grand Est": 8_000,
        "Hauts-de-France": -9_000,
        "Nouvelle-Aquitaine": -3_000,
        "Corse": -6_000,
    },
    "smoker": {"oui": -5_000, "non": 0},
    "nationalité_francaise": {"oui": 0, "non": -27_000},
}
# Weights of the values above, in their order; each row is divided by its sum before use.
WEIGHTS: dict[str, dict[str, tuple[float, ...]]] = {
    "old": {
        "sexe": (80, 20),
        "sport_licence": (81, 19),
        "niveau_etude": (5, 5, 24, 31, 34),
        "region": (44, 23, 14, 8.5, 5.5, 3, 1.6, 0.4),
        "smoker": (20, 80),
        "nationalité_francaise": (80, 20),
    },
    "new": {column: (1.0,) * len(effects) for column, effects in EFFECTS.items()}
    | {"nationalité_francaise": (59, 41)},
}
# Beginnings and endings of 400 surnames and 216 first names.
SYLLABLES = {
    "nom": (
        "Bar Bel Cas Chan Cor Dau Del Fau Gar Gri Jol Lan Mar Mon Nor Per Quin Rou Tor Val",
        "bert cel court dier don eac gnac lac let lier lin mont net quet reau rel son tier ton zon",
    ),
    "prenom": (
        "A Be Ca Co Da E Fa Flo Ja Jo Lu Ma Mé No O Sa Thé Vi",
        "bel cien dine gane lie line lou mée nan née riel viane",
    ),
}
TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [("nom", TEXT), ("prenom", TEXT), ("age", pa.int64())]
    + [("taille", pa.int64()), ("poids", pa.int64())]
    + [(column, TEXT) for column in EFFECTS]
    + [("revenu_estime_mois", pa.int64()), (TARGET, pa.int64())]
)


def latent_amount(rows: pd.DataFrame) -> np.ndarray:
    """Compute mu, the mean of the amount before clipping.

    Args:
        rows: n generated rows; TARGET, names, height and weight are not read.

    Returns:
        float64 array of shape (n,), in EUR. No randomness.

    Raises:
        KeyError: a column that mu needs is absent.
        ValueError: a column holds a value that mu is not defined for.
    """
    income = rows["revenu_estime_mois"].to_numpy(np.float64) - INCOME_MEAN
    age = rows["age"].to_numpy(np.float64)
    foreign = (rows["nationalité_francaise"] == "non").to_numpy()
    mu = BASE + np.where(foreign, 2.5, 4.5) * income
    mu -= np.where(rows["smoker"] == "oui", 100.0, 0.0) * (age - 50)
    mu -= 9_000 / (1 + np.exp((age - 28) / 2.5))
    for column, effects in EFFECTS.items():
        mu += rows[column].map(effects).to_numpy(np.float64)
    if np.isnan(mu).any():
        raise ValueError(f"a missing or unknown value in {['age', *EFFECTS, 'revenu_estime_mois']}")
    return mu


def expected_amount(rows: pd.DataFrame) -> np.ndarray:
    """Compute E[montant_pret | the other columns], which no model can beat on average.

    The mean of a normal censored at both ends, a = FLOOR and b = CAP, with standardised bounds
    A = (a - mu) / SIGMA and B = (b - mu) / SIGMA, is
    a Phi(A) + b (1 - Phi(B)) + mu (Phi(B) - Phi(A)) + SIGMA (phi(A) - phi(B)).
    Source: Greene, Econometric Analysis, "Moments of the censored normal variable", applied at
    both ends as in Rosett and Nelson (1975), Econometrica 43(1), 141-146. Rounding to whole euros
    is left out: it moves the mean by less than 1 EUR.

    Args:
        rows: n generated rows, read as by `latent_amount`.

    Returns:
        float64 array of shape (n,), in EUR, from FLOOR to CAP. No randomness.

    Raises:
        KeyError: as `latent_amount`.
        ValueError: as `latent_amount`.
    """
    mu = latent_amount(rows)
    low, high = (FLOOR - mu) / SIGMA, (CAP - mu) / SIGMA
    density_gap = (np.exp(-(low**2) / 2) - np.exp(-(high**2) / 2)) / np.sqrt(2 * np.pi)
    inside = mu * (ndtr(high) - ndtr(low)) + SIGMA * density_gap
    return FLOOR * ndtr(low) + CAP * ndtr(-high) + inside


def _draw_names(rng: np.random.Generator, n: int, column: str) -> pd.Series:
    start, end = (np.array(syllables.split(), dtype=object) for syllables in SYLLABLES[column])
    beginnings, endings = (part[rng.integers(len(part), size=n)] for part in (start, end))
    return pd.Series(beginnings + endings, dtype="str")


def generate(population: str, rows: int, seed: int = SEED, chunk: int = 0) -> pd.DataFrame:
    """Draw one chunk of rows.

    Args:
        population: "old" or "new".
        rows: number of rows, n.
        seed: with `population` and `chunk`, sets every draw; the same four give the same rows.
        chunk: position of this chunk in its file; each has a stream of its own.

    Returns:
        frame of n rows with the columns of SCHEMA in order: int64 numbers (years, cm, kg, EUR),
        str names, category for the other text.

    Raises:
        KeyError: an unknown population.
        ValueError: a negative number.
    """
    weights, old = WEIGHTS[population], population == "old"
    # The population is part of the seed: otherwise both files would hold the same persons.
    rng = np.random.default_rng([seed, chunk, 1 if old else 2])
    data: dict[str, object] = {name: _draw_names(rng, rows, name) for name in SYLLABLES}
    data["age"] = rng.integers(36 if old else 18, 76, rows)
    if old:
        data["taille"], data["poids"] = rng.integers(155, 176, rows), rng.integers(50, 81, rows)
    else:
        data["taille"] = _whole(rng.normal(170, 10, rows), 130, 215)
        data["poids"] = _whole(rng.normal(70, 15, rows), 35, 150)
    for column, effects in EFFECTS.items():
        share = np.array(weights[column]) / sum(weights[column])
        codes = rng.choice(len(effects), size=rows, p=share)
        data[column] = pd.Categorical.from_codes(codes, list(effects))
    income = rng.normal(INCOME_MEAN, INCOME_SD, rows)
    data["revenu_estime_mois"] = _whole(income, INCOME_FLOOR, np.inf)
    frame = pd.DataFrame(data)
    noisy = latent_amount(frame) + SIGMA * rng.standard_normal(rows)
    frame[TARGET] = _whole(noisy, FLOOR, CAP)
    return frame


def _whole(values: np.ndarray, low: float, high: float) -> np.ndarray:
    # Whole units also hide last-bit differences of exp between machines: the bytes stay the same.
    return np.rint(np.clip(values, low, high)).astype(np.int64)


def write_rows(output: Path, population: str, rows: int, seed: int = SEED) -> None:
    """Write one file chunk by chunk, complete or not at all.

    Args:
        output: file to write; .csv (UTF-8, comma, "\\n") or .parquet (text as dictionaries). It is
            replaced only once all rows are written; until then they lie in "<output>.part".
        population: "old" or "new".
        rows: number of rows; memory stays at that of one chunk of CHUNK_ROWS.
        seed: as in `generate`.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    part = output.with_name(output.name + ".part")
    starts = enumerate(range(0, rows, CHUNK_ROWS))
    chunks = (generate(population, min(CHUNK_ROWS, rows - at), seed, k) for k, at in starts)
    try:
        (_write_parquet if output.suffix.lower() == ".parquet" else _write_csv)(part, chunks)
        os.replace(part, output)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write_csv(path: Path, chunks: Iterator[pd.DataFrame]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        for k, frame in enumerate(chunks):
            frame.to_csv(handle, index=False, header=k == 0, lineterminator="\n")


def _write_parquet(path: Path, chunks: Iterator[pd.DataFrame]) -> None:
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for frame in chunks:
            writer.write_table(pa.Table.from_pandas(frame, SCHEMA, preserve_index=False))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see --help)\n")


def _whole_number(text: str) -> int:
    if text.isdecimal() and len(text) < 19:
        return int(text)
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number such as 1000000")


def _row_count(text: str) -> int:
    if (rows := _whole_number(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected at least 1 row")
    return rows


def _output_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".csv", ".parquet"):
        # os.path.isdir below: Path.is_dir raises for a name that is too long.
        problem = "expected a name ending in .csv or .parquet; rename it"
    elif not os.path.isdir(path.parent):
        problem = f"expected an existing folder; create {str(path.parent)!r} first"
    elif os.path.isdir(path):
        problem = "expected a file, but this is a folder; choose another name"
    else:
        return path
    raise argparse.ArgumentTypeError(f"got {text!r}, {problem}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: arguments after the program's name; None reads those of the process.

    Returns:
        namespace with output (Path or None), rows and seed (int), population (str).

    Raises:
        SystemExit: code 2 and one line on stderr for a bad argument; code 0 for --help.
    """
    parser = _Parser(
        prog="make_data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=_output_file, help="FILE.csv or FILE.parquet to write")
    parser.add_argument("--rows", type=_row_count, default=ROWS, help=f"default {ROWS}")
    parser.add_argument("--population", choices=list(WEIGHTS), default="old", help="default old")
    parser.add_argument("--seed", type=_whole_number, default=SEED, help=f"default {SEED}")
    args = parser.parse_args(argv)
    # Without a file of their own, such rows would overwrite the two files that tests rely on.
    if args.output is None and args != parser.parse_args([]):
        given = " ".join(sys.argv[1:] if argv is None else argv)
        parser.error(f"got {given!r}, expected --output with it; add --output FILE.csv")
    return args


def main(argv: list[str] | None = None) -> int:
    """Write the two committed files, or the one that the arguments ask for.

    Args:
        argv: as in `parse_args`.

    Returns:
        0, or 2 when a file cannot be written (one line on stderr).

    Raises:
        SystemExit: as `parse_args`.
    """
    args = parse_args(argv)
    here = Path(__file__).resolve().parent
    jobs = [(args.output, args.population)]
    if args.output is None:
        jobs = [(here / f"df_{population}.csv", population) for population in WEIGHTS]
    for output, population in jobs:
        try:
            write_rows(output, population, args.rows, args.seed)
        except OSError as error:
            print(
                f"make_data.py: got --output {output}, expected a place with room and the right "
                f"to write ({error.strerror or error}); choose another with --output",
                file=sys.stderr,
            )
            return 2
        print(f"{output}: {args.rows} rows of the {population} population")
    return 0


if __name__ == "__main__":
    sys.exit(main())
