"""The model card: what a model is for, which data it stands on, and what it must not be used for.

Belongs here: the words that travel inside a model and stand on its registry page. Not here: the
figures themselves, MLflow, files.
"""

from collections.abc import Iterable
from pathlib import Path

from comparison import escape_markdown, listed
from tabular import Schema

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


def write(card: dict, schema: Schema) -> str:
    """Write the card of a model as Markdown, the result first.

    `card` is what `card.json` holds. Names of columns that were left out (they may identify
    persons) do not appear.
    """
    result = escape_markdown(card.get("result", "not scored yet"))
    return f"# Model card\n\n**{result}**\n\n{about(card, schema)}\n"


def about(card: dict, schema: Schema) -> str:
    """Write purpose, data, groups and limits, at most 4,000 characters of Markdown."""
    unit = f" ({_name(card['unit'])})" if card.get("unit") else ""
    groups = "No column of categories, so no groups were compared."
    if schema.categorical:
        groups = (
            "On held-out rows the error and the mean prediction were compared by category of "
            f"{_names(schema.categorical)}; by no number, and by no two columns at once."
        )
    parts = [
        f"**Purpose.** A small neural network that predicts {_name(schema.target)}{unit} of a row, "
        "made to show what a retraining changes, and for whom.",
        f"**Data.** {_columns(schema)} When the rows were collected is unknown.",
        _generations(card.get("lineage", [])),
        f"**Groups.** {groups}",
        "**Limits.**\n\n" + "\n".join(f"- {limit}" for limit in LIMITS),
    ]
    return "\n\n".join(parts)[:MOST]


def _columns(schema: Schema) -> str:
    left_out = f"; {len(schema.dropped)} more were left out" if schema.dropped else ""
    numbers, categories = _names(schema.numeric), _names(schema.categorical)
    return f"Columns: numbers {numbers}; categories {categories}{left_out}."


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
