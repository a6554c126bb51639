"""What a retraining has shown, in words: the report, the model card, short lines for a terminal.

The pages lie in `templates/`; text from the data is escaped as their format asks.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from toolkit.columns import Schema
from toolkit.comparison import RETRAINED, Attribution, HeldOut, Verdict
from toolkit.language import translate
from toolkit.words import escape_markdown, format_amount, format_interval, printable

MOST = 4_000  # characters; a registry keeps 5,000, and the verdict stands before the card
NOTHING_NEW = Verdict("nothing_new", False, "nothing is trained")


@dataclass
class Evidence:
    """Everything that a report tells."""

    unit: str = ""
    prequential: float | None = None  # the parent's MAE on the file's rows, before any training
    prequential_rows: int = 0
    history: Mapping[int, float] = field(default_factory=dict)  # the same, by generation
    verdict: Verdict = NOTHING_NEW
    held_out: dict[str, HeldOut] = field(default_factory=dict)  # "new" and "old"
    attribution: Attribution | None = None
    leakage: Mapping[str, int] | None = None  # rows by role
    inside: dict[str, np.ndarray] = field(default_factory=dict)  # new rows in a model's 90 % ranges
    drift: pd.DataFrame | None = None
    groups: pd.DataFrame | None = None
    importance: pd.DataFrame | None = None
    dependence: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    findings: Sequence[str] = ()  # signs of a broken file, which the verdict names
    caveats: Sequence[str] = ()  # they join what is not proven
    figures: Mapping[str, str] = field(default_factory=dict)  # SVG
    hit: bool | None = None  # whether an error that was estimated before came true


def write(evidence: Evidence, file: str | None) -> None:
    """Write the report to `file`, if any: a self-contained page for .html, Markdown if not."""
    if file:
        template = "report.html" if file.lower().endswith((".html", ".htm")) else "report.md"
        with tempfile.TemporaryDirectory(prefix=".report-", dir=Path(file).parent) as beside:
            page = Path(beside, template)
            page.write_text(render(evidence, template), "utf-8")
            page.replace(file)


def render(evidence: Evidence, template: str) -> str:
    """Fill "report.html", with the figures inside, or "report.md"."""
    word = "promoted" if evidence.verdict.promoted else "kept champion"
    return _template(template).render(word=word, scores=score_table(evidence), **vars(evidence))


def score_table(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """Return header and lines, one per model, of MAE and R² on each set of held-out rows."""
    header, lines = ["same held-out rows"], dict[str, list[str]]()
    for part, held in evidence.held_out.items():
        header += [f"{part} MAE", f"{part} R²"]
        for name, scores in held.scores.iterrows():
            r2 = "n/a" if np.isnan(scores["R²"]) else f"{scores['R²']:.3f}"
            lines.setdefault(str(name), [str(name)])
            lines[str(name)] += [format_amount(scores["MAE"], evidence.unit), r2]
    return header, list(lines.values())


def metrics(evidence: Evidence) -> dict[str, float]:
    """Name every score and interval as a run logs them: "MAE", "new/MAE_parent", …"""
    found = {"prequential/MAE": evidence.prequential, "estimated/hit": evidence.hit}
    for part, held in evidence.held_out.items():
        scores = held.scores.rename(columns={"R²": "R2"})
        found |= {f"{part}/{s}_{m}": value for (m, s), value in scores.stack().items()}
        if part == "new":
            found |= scores.loc[RETRAINED].to_dict()
        for end, bound in zip(("", "_low", "_high"), vars(held.change).values(), strict=True):
            found[f"{part}/MAE_difference{end}"] = bound
    found |= {f"new/inside_90_{name}": rows.mean() for name, rows in evidence.inside.items()}
    # An interval of a single unit has no bounds, which MLflow would log as 1.8e308.
    return {n: float(v) for n, v in found.items() if v is not None and not np.isinf(v)}


def short_result(evidence: Evidence) -> str:
    """Tell the differences in a few signs, for the name of a run."""
    if evidence.verdict.kind == "suspicious":
        return "suspicious"
    told = [
        f"{part} {format_amount(held.change.estimate, evidence.unit, signed=True)}"
        for part, held in evidence.held_out.items()
    ]
    return f"MAE {', '.join(told)}"


def model_card(card: Mapping[str, Any], schema: Schema, *, heading: bool = True) -> str:
    """Write what `card.json` holds as Markdown; `heading`: with a title and the result first."""
    return _template("model_card.md").render(card=card, schema=schema, heading=heading)[:MOST]


@cache
def _template(name: str) -> jinja2.Template:
    """Compile a template; each value is formatted, and escaped as HTML or as Markdown."""

    def shown(value: object) -> str:
        if isinstance(value, Markup):
            return value
        if isinstance(value, bool | np.bool_):
            value = translate("yes" if value else "no")
        elif isinstance(value, int | np.integer):
            value = translate(f"{value:,}")
        elif isinstance(value, float):
            value = translate(format_amount(value))
        is_page = name.endswith(".html")
        return printable(value) if is_page else Markup(escape_markdown(value))

    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    pages.filters["interval"] = format_interval
    pages.filters["amount"] = lambda *args, **named: translate(format_amount(*args, **named))
    pages.filters["file_name"] = lambda path: Path(path).name
    pages.globals["tr"] = translate
    pages.filters["tr"] = jinja2.pass_context(  # or constants would be escaped as HTML
        lambda _, text, *values: translate(text.format(*values) if values else text)
    )
    return pages.get_template(name)
