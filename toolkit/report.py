"""What a retraining has shown, in words: the report, the model card, short lines for a terminal.

`sections` is the one content; `to_markdown` renders it, and other renderings can follow. Text in
sections is plain and is escaped by the rendering.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from toolkit.comparison import PARENT, RETRAINED, Attribution, HeldOut, Verdict, largest_gap
from toolkit.drift import bounds_text
from toolkit.words import escape_markdown, format_amount, format_interval, listed

if TYPE_CHECKING:
    from toolkit.columns import Schema

MAX_NAMES, MAX_GENERATIONS, LONGEST = 12, 5, 40
MOST = 4_000  # characters; a registry keeps 5,000, and the verdict stands before the card
LIMITS = (
    "Do not decide about anyone with it. It learns what its data hold, prejudice included; the "
    "sample files of this project (loans) are synthetic and discriminate on purpose, by "
    "nationality most of all.",
    "Its scores are those on held-out rows of the files above. They say nothing about other "
    "populations, other years, or why an amount is what it is.",
    "A sample of the rows it was trained on may lie inside it: whoever can read it can read them.",
)
NOT_JUDGED = Verdict("nothing_new", False, "nothing judged yet")


@dataclass(frozen=True)
class Table:
    """A table of a report: column names and lines of cells."""

    headers: Sequence[object]
    lines: Sequence[Sequence[object]]


Parts = list[str | list[str] | Table]  # paragraphs, lists, tables
Section = tuple[str, Parts]  # with its title


@dataclass(frozen=True)
class Evidence:
    """Everything that a report tells.

    prequential: the parent's MAE on the `prequential_rows` rows of the new file, before anything
    was trained on them. held_out maps "new" and "old" to rows scored alike. leakage counts rows
    by role. findings are the signs of a broken file, which the verdict names; caveats join
    what is not proven.
    """

    unit: str = ""
    prequential: float | None = None
    prequential_rows: int = 0
    verdict: Verdict = NOT_JUDGED
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)
    attribution: Attribution | None = None
    leakage: Mapping[str, int] | None = None
    drift: pd.DataFrame | None = None
    bounds: pd.DataFrame | None = None
    groups: pd.DataFrame | None = None
    findings: Sequence[str] = ()
    caveats: Sequence[str] = ()


def sections(evidence: Evidence) -> list[Section]:
    """Put the content in order: what the parent erred, the verdict, the proof, what is open."""
    word = "promoted" if evidence.verdict.promoted else "kept champion"
    opening: Parts = [f"{word.capitalize()}: {evidence.verdict.reason}."]
    if evidence.prequential is not None:
        opening.insert(
            0,
            f"Before any training on them, the parent's MAE on the {evidence.prequential_rows:,} "
            f"new rows of the file was {format_amount(evidence.prequential, evidence.unit)}.",
        )
    parts: list[Section] = [(f"Retraining: {word}", opening)]
    if evidence.held_out:
        parts += _scores(evidence)
    if evidence.attribution:
        found = evidence.attribution
        gains = [
            (name.replace("_", " "), format_interval(getattr(found, name), evidence.unit))
            for name in ("total", "more_training", "new_data")
        ]
        sentence = f"{found.sentence[0].upper()}{found.sentence[1:]}."
        table = Table(["gain in MAE on new rows", "with interval"], gains)
        parts.append(("Where the gain comes from", [sentence, table]))
    if evidence.leakage:
        parts.append(("Leakage", [Table(["rows", "number"], list(evidence.leakage.items()))]))
    if evidence.drift is not None:
        parts.append(("Drift", [_whole(evidence.drift)]))
        if evidence.bounds is not None:
            parts[-1][1].append(f"Target: {bounds_text(evidence.bounds)}.")
    if evidence.groups is not None and len(evidence.groups):
        parts.append(("Groups", _groups(evidence.groups, evidence.unit)))
    return [*parts, ("Not proven", [[*_gaps(evidence), *evidence.caveats]])]


def _scores(evidence: Evidence) -> list[Section]:
    lines, controls = [], []
    for name, held in evidence.held_out.items():
        pair = held.scores.reindex([PARENT, RETRAINED])
        difference = "n/a" if held.difference is None else format_interval(held.difference)
        lines.append([name, held.rows, *pair["MAE"], difference, *pair["R²"]])
        others = held.scores.drop(index=[PARENT, RETRAINED], errors="ignore")
        controls += [[name, *line] for line in others[["MAE", "R²"]].reset_index().to_numpy()]
    headers = ["held-out rows", "number", "MAE parent", "MAE retrained", "difference in MAE"]
    words = "Difference: retrained minus parent, negative is better, with its paired 95 % interval."
    table = Table([*headers, "R² parent", "R² retrained"], lines)
    parts: list[Section] = [("Same rows, both models", [table, words])]
    if controls:
        table = Table(["held-out rows", "model", "MAE", "R²"], controls)
        parts.append(("Controls and baselines", [table]))
    return parts


def _groups(table: pd.DataFrame, unit: str) -> Parts:
    gap = largest_gap(table, unit)
    parts: Parts = []
    if gap:
        parts.append(f"Largest gap between groups: {gap}.")
    if "worse" in table:
        worse = [
            f"{row.column} = {row.category} ({format_amount(row.MAE_change, unit, signed=True)})"
            for row in table[table["worse"]].itertuples()
        ]
        named = ", ".join(worse) or "none"
        parts.append(f"Groups whose MAE rose by more than chance explains: {named}.")
    return [*parts, _whole(table)]


def _gaps(evidence: Evidence) -> list[str]:
    lines = []
    if "old" not in evidence.held_out:
        lines.append("Forgetting: no held-out row of the parent was at hand.")
    if evidence.verdict.kind == "no_worse":
        lines.append("A gain: harm is not proven, and fresh rows usually pay on the next file.")
    if evidence.attribution is None:
        lines.append("The cause of any gain: no control was trained on old rows alone.")
    if evidence.groups is None or "worse" not in evidence.groups:
        lines.append("Fairness of the change: no groups were compared.")
    elif evidence.groups["worse"].any():
        lines.append("Each group named as worse: one unchanged group in forty is so by chance.")
    small = [f"{name} ({held.rows})" for name, held in evidence.held_out.items() if held.rows < 100]
    if small:
        lines.append(f"Anything precise on few held-out rows: {', '.join(small)}.")
    lines.append("Other seeds: intervals cover the choice of held-out rows, not luck in training.")
    lines.append("The future: the next file may differ from the new rows as these do from the old.")
    return lines


def _whole(table: pd.DataFrame) -> Table:
    return Table([str(name).replace("_", " ") for name in table.columns], table.to_numpy().tolist())


def to_markdown(content: Iterable[Section]) -> str:
    """Render sections as self-contained Markdown; the first title is the document's."""
    blocks = []
    for number, (title, parts) in enumerate(content):
        blocks.append(f"{'##' if number else '#'} {escape_markdown(title)}")
        for part in parts:
            if isinstance(part, Table):
                blocks.append(_markdown_table(part))
            elif isinstance(part, str):
                blocks.append(escape_markdown(part))
            else:
                blocks.append("\n".join(f"- {escape_markdown(line)}" for line in part))
    return "\n\n".join(blocks) + "\n"


def _markdown_table(table: Table) -> str:
    rows = [[escape_markdown(name) for name in table.headers], ["---"] * len(table.headers)]
    rows += [[_cell(value) for value in line] for line in table.lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in rows)


def _cell(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float):
        return format_amount(value)
    return escape_markdown(value)


def metrics(evidence: Evidence) -> dict[str, float]:
    """Name every score and interval as a run logs them: "MAE", "new/MAE_parent", …"""
    found: dict[str, float] = {}
    if evidence.prequential is not None:
        found["prequential/MAE"] = evidence.prequential
    if "new" in evidence.held_out and RETRAINED in evidence.held_out["new"].scores.index:
        own = evidence.held_out["new"].scores.loc[RETRAINED]
        found |= {name.replace("²", "2"): float(value) for name, value in own.items()}
    for part, held in evidence.held_out.items():
        for model, scores in held.scores.iterrows():
            found |= {f"{part}/{k.replace('²', '2')}_{model}": v for k, v in scores.items()}
        if held.difference is not None:
            bounds = held.difference.low, held.difference.high
            found[f"{part}/MAE_difference"] = held.difference.estimate
            found[f"{part}/MAE_difference_low"], found[f"{part}/MAE_difference_high"] = bounds
    return found


def change(part: str, held: HeldOut, unit: str = "") -> str:
    """Tell the difference on one set of held-out rows."""
    return f"MAE on {part} rows {format_interval(held.change, unit)}"


def short_result(evidence: Evidence, *, promoted: bool) -> str:
    """Tell verdict and differences in a few signs, for the name of a run."""
    words = "promoted" if promoted else "kept"
    if evidence.verdict.kind == "suspicious":
        return f"{words}: suspicious"
    told = [
        f"{part} {format_amount(held.change.estimate, evidence.unit, signed=True)}"
        for part, held in evidence.held_out.items()
    ]
    return f"{words}: MAE {', '.join(told)}" if told else words


def score_table(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """Return header and lines, one per model, of MAE and R² on each set of held-out rows."""
    header: list[str] = ["same held-out rows"]
    models: dict[str, None] = {}
    for part, held in evidence.held_out.items():
        header += [f"{part} MAE", f"{part} R²"]
        models |= dict.fromkeys(held.scores.index)
    lines = []
    for name in models:
        line = [str(name)]
        for held in evidence.held_out.values():
            scores = held.scores.reindex([name]).iloc[0]
            r2 = "n/a" if np.isnan(scores["R²"]) else f"{scores['R²']:.3f}"
            line += [format_amount(scores["MAE"], evidence.unit), r2]
        lines.append(line)
    return header, lines


def model_card(card: dict, schema: "Schema") -> str:
    """Write the card of a model as Markdown, the result first.

    `card` is what `card.json` holds. Names of columns that were left out (they may identify
    persons) do not appear.
    """
    result = escape_markdown(card.get("result", "not scored yet"))
    return f"# Model card\n\n**{result}**\n\n{about(card, schema)}\n"


def about(card: dict, schema: "Schema") -> str:
    """Write purpose, data, groups and limits, at most 4,000 characters of Markdown."""
    unit = f" ({_name(card['unit'])})" if card.get("unit") else ""
    by_kind: dict[str, list[str]] = {"numeric": [], "categorical": [], "date": []}
    for column in schema.columns:
        by_kind[column.kind].append(column.name)
    groups = "No column of categories, so no groups were compared."
    if by_kind["categorical"]:
        groups = (
            "On held-out rows the error and the mean prediction were compared by category of "
            f"{_names(by_kind['categorical'])}; by no number, and by no two columns at once."
        )
    left_out = f"; {len(schema.dropped)} more were left out" if schema.dropped else ""
    columns = f"numbers {_names(by_kind['numeric'])}; categories {_names(by_kind['categorical'])}"
    columns += f"; dates {_names(by_kind['date'])}" if by_kind["date"] else ""
    parts = [
        f"**Purpose.** A small neural network that predicts {_name(schema.target.name)}{unit} of a "
        "row, made to show what a retraining changes, and for whom.",
        f"**Data.** Columns: {columns}{left_out}. When the rows were collected is unknown.",
        _generations(card.get("lineage", [])),
        f"**Groups.** {groups}",
        "**Limits.**\n\n" + "\n".join(f"- {limit}" for limit in LIMITS),
    ]
    return "\n\n".join(parts)[:MOST]


def _generations(lineage: list[dict]) -> str:
    lines = [
        "| training | file | rows | trained on | held out |",
        "| --- | --- | --- | --- | --- |",
    ]
    for step in lineage[-MAX_GENERATIONS:]:
        cells = [step.get("generation", "?"), Path(str(step.get("data", "unknown"))).name]
        cells += [step.get(key, "?") for key in ("rows", "trained_on", "held_out")]
        lines.append(f"| {' | '.join(map(_name, cells))} |")
    return "\n".join(lines)


def _names(names: Iterable[str]) -> str:
    return listed(map(_name, names), MAX_NAMES) or "none"


def _name(text: object) -> str:
    return escape_markdown(str(text)[:LONGEST])
