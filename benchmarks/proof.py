"""Time what the proof adds to a retraining of 1,600 + 1,600 rows, part by part.

python benchmarks/proof.py
"""

import argparse
import io
import time

import common  # first of all: it puts the project on the path
import numpy as np

import comparison
import figures
import model_utils
import retraining

BAR = 1.5  # seconds


def main(argv: list[str] | None = None) -> None:
    """Print the median seconds of each part of the proof, and their sum beside the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args(argv).repetitions
    common.print_machine()
    parent, _ = common.train(common.DATA / "df_old.csv", "montant_pret", 42)
    runs = [time_parts(parent) for _ in range(repetitions)]
    parts = {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
    common.print_table(
        ["part of the proof", "seconds"], [[k, f"{v:.3f}"] for k, v in parts.items()]
    )
    common.print_bar("all parts together, seconds", sum(parts.values()), "≤", BAR)


def time_parts(parent) -> dict[str, float]:
    """Retrain once; return the seconds of each part that a retraining without proof lacks."""
    rates = {"learning_rate": 1e-3, "batch_size": 32}
    rows = retraining.prepare_rows(parent, str(common.DATA / "df_new.csv"), test_size=0.2, seed=42)
    start = retraining.prepare_child(parent, rows, **rates)
    seconds, result = {}, {}

    def timed(name, function, *arguments, **options):
        before = time.perf_counter()
        result[name] = function(*arguments, **options)
        seconds[name] = time.perf_counter() - before

    # The controls are what retraining with them takes longer; the compiled program is the same.
    options = {"epochs": 60, "seed": 42, "memory_rows": 20_000, **rates}
    beginning = model_utils.model_state(start.child.network)
    timed("without", retraining.retrain, parent, rows, start, controls=False, **options)
    model_utils.restore_state(start.child.network, beginning)
    timed("with", retraining.retrain, parent, rows, start, controls=True, **options)
    timed("drift", retraining.measure_drift, parent, rows)
    timed("evidence", retraining.gather_evidence, parent, rows, result["with"], 0.05)
    evidence = result["evidence"]
    timed("report", comparison.report, evidence)
    timed("figures", draw, evidence)
    controls = seconds.pop("with") - seconds.pop("without")
    return {"controls: two more trainings": controls, **seconds}


def draw(evidence: comparison.Evidence) -> None:
    """Draw and encode the three figures that the proof adds."""
    for figure in (
        figures.before_after(evidence.held_out, evidence.unit),
        figures.drift_figure(evidence.drift),
        figures.error_per_group(evidence.groups, evidence.unit),
    ):
        figure.savefig(io.BytesIO(), dpi=110)


if __name__ == "__main__":
    main()
