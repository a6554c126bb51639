"""Retrain three times in a row on drifting rows; watch the held-out rows of the first training.

python benchmarks/forgetting.py
python benchmarks/forgetting.py --splits 5 --rows 2000

Each file shows one part of the population only. One chain replays remembered rows, as
`mlflow_retrain.py` does by default; the other trains on the new rows alone (`--replay 0`).
"""

import argparse
import tempfile
from pathlib import Path

import common  # first of all: it puts the project on the path
import make_data
import numpy as np
from sklearn.metrics import r2_score

from memory import GENERATION

FILES = {
    "under 35": lambda rows: rows["age"] < 35,
    "three northern regions": lambda rows: rows["region"].isin(
        ["Hauts-de-France", "Normandie", "Bretagne"]
    ),
    "not French": lambda rows: rows["nationalité_francaise"] == "non",
}


def write_files(folder: Path, rows: int) -> dict[str, Path]:
    """Draw one file for each part of the population, each from people of its own."""
    files = {}
    for seed, (name, belongs) in enumerate(FILES.items(), 100):
        people = make_data.generate("new", 5 * rows, seed)
        files[name] = folder / f"{seed}.csv"
        people[belongs(people)].head(rows).to_csv(files[name], index=False)
    return files


def chain(files: dict[str, Path], seed: int, replay: int | None) -> list[tuple[float, float]]:
    """Train, then retrain on each file; return (R² of first rows, R² of this file's) per step."""
    model, _ = common.train(common.DATA / "df_old.csv", make_data.TARGET, seed)
    scores: list[tuple[float, float]] = []
    for file in files.values():
        result, rows = common.retrain(model, file, seed, replay)
        old, new = rows.held_out["old"], rows.held_out["new"]
        first = (old[GENERATION] == 0).to_numpy()
        y_first, y_new = old.loc[first, make_data.TARGET], new[make_data.TARGET]
        if not scores:
            scores.append((r2_score(y_first, result.predictions["old"]["parent"][first]), np.nan))
        on_first = r2_score(y_first, result.predictions["old"]["retrained"][first])
        scores.append((on_first, r2_score(y_new, result.predictions["new"]["retrained"])))
        model = result.model
    return scores


def main() -> None:
    """Print the table of both chains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=3, help="chains to average (%(default)s)")
    parser.add_argument("--rows", type=int, default=1_000, help="rows per file (%(default)s)")
    args = parser.parse_args()
    common.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), args.rows)
        means = [
            np.mean([chain(files, seed, replay) for seed in range(args.splits)], axis=0)
            for replay in (None, 0)
        ]
    lines = []
    for step, name in enumerate(["first training (old rows)", *files]):
        cells = [f"{r2:.3f}".replace("nan", "") for table in means for r2 in table[step]]
        lines.append([f"{step}: {name}", cells[0], cells[2], cells[1], cells[3]])
    parts = ("first rows", "this file's rows")
    header = [f"R² of {part}, {way}" for part in parts for way in ("replay", "new rows only")]
    common.print_table(["retrained on", *header], lines)
    change = means[0][-1, 0] - means[0][0, 0]
    common.print_bar("R² of first rows with replay, end − start", change, "≥", -0.01)


if __name__ == "__main__":
    main()
