"""Claims about report.py: what a report and a model card say, in which order, and what never."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from toolkit import comparison, drift, figures, report
from toolkit.columns import Column, Schema
from toolkit.evidence import _caveats
from toolkit.roles import Roles, hashed
from toolkit.words import escape_markdown, format_amount, format_interval

RNG = np.random.default_rng
ATTACK = "<script>alert(1)</script>|`x`[a](http://e.vil)\n# **head** ![i](j) {0} {x}"


IMPORTANCE = [f"{m}{end}" for m in ("parent", "retrained") for end in ("", "_low", "_high")]


def targets():
    return RNG(0).uniform(500, 40_000, 400)


def evidence(**changes):
    """Compare five models on 400 rows, everything measured."""
    y = targets()
    errors = {"parent": 5000, "retrained": 3000, "control": 4500, "scratch": 3100}
    models = {
        name: y + RNG(seed).normal(0, error, 400)
        for seed, (name, error) in enumerate(errors.items(), 1)
    }
    models |= {"mean": np.full(400, y.mean()), "median": np.full(400, np.median(y))}
    held = {"new": comparison.evaluate(y, models), "old": comparison.evaluate(y, models)}
    rows = pd.DataFrame({"size": y, "city": RNG(9).choice(["a", "b"], 400)})
    kinds = {"size": "numeric", "city": "categorical"}
    full = report.Evidence(
        unit="€",
        prequential=5432.1,
        prequential_rows=2000,
        verdict=comparison.decide(held["new"], held["old"], unit="€"),
        held_out=held,
        attribution=comparison.attribution(y, models, "€"),
        leakage={"rows both trained on and held out": 0, "rows dropped": 12_345},
        drift=drift.drift(rows, rows.assign(size=2 * y), kinds),
        groups=comparison.groups(rows, ["city"], y, models["parent"], models["retrained"]),
        importance=pd.DataFrame(
            [("size", 900.0, 800.0, 1000.0, 950.0, 850.0, 1050.0)],
            columns=["column", *IMPORTANCE],
        ),
        figures={"before_after": figures.as_svg(figures.before_after(held, "€"))},
    )
    return replace(full, **changes)


def markdown(**changes):
    return report.render(evidence(**changes), "report.md")


def page(**changes):
    return report.render(evidence(**changes), "report.html")


# --- report


def test_report_opens_with_the_verdict_then_what_users_lived_with():
    lines = markdown().splitlines()
    assert lines[0] == "# Retraining: promoted"
    assert lines[2] == f"Promoted: {evidence().verdict.reason}."
    assert lines[4] == (
        "Before any training on them, the parent's MAE on the 2,000 new rows of the file "
        "was 5,432 €."
    )
    kept = comparison.Verdict("worse", False, "harm is proven")
    for unknown in (None, math.nan):  # of a file without its target
        text = markdown(verdict=kept, prequential=unknown)
        assert text.startswith("# Retraining: kept champion\n\nKept champion: harm is proven.\n")
        assert "before any training" not in text.lower()


def test_report_has_every_part_in_order_and_well_formed_tables():
    text = markdown()
    heads = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert heads == [
        "Same rows, both models",
        "Controls and baselines",
        "Where the gain comes from",
        "What the models rest on",
        "Groups",
        "Drift",
        "Leakage",
        "Not proven",
    ]
    heads = re.findall("<h2>(.*?)</h2>", page())
    assert [*heads] == [line[3:] for line in text.splitlines() if line.startswith("## ")]
    for block in text.split("\n\n"):
        lines = block.strip().splitlines()
        if lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1
    assert "nan" not in text


def test_report_carries_the_figures():
    full, text = evidence(), markdown()
    scores, change = full.held_out["new"].scores, full.held_out["new"].change
    mae = [format_amount(scores.loc[name, "MAE"], "€") for name in ("parent", "retrained")]
    assert f"| new | 400 | {mae[0]} | {mae[1]} | {format_interval(change, '€')} |" in text
    for name in ("scratch", "control", "mean", "median"):
        mae = format_amount(scores.loc[name, "MAE"], "€")
        assert re.search(rf"\| {name} \| {mae} \| [\d.-]+ \| {mae} \|", text)
    assert "come with the new data" in text
    assert "| rows dropped | 12,345 |" in text
    assert r"| size | +900 € (+800 to +1,000) | +950 € (+850 to +1,050) |" in text
    assert "| city | categorical |" in text
    assert "| size | numeric |" in text
    assert "Groups whose MAE rose by more than chance explains: no group." in text


def test_report_names_the_groups_that_got_worse():
    groups = evidence().groups
    groups["worse"] = groups["category"] == "b"
    text = markdown(groups=groups)
    line = next(line for line in text.splitlines() if line.startswith("Groups whose MAE rose"))
    assert "city = b (" in line
    assert "city = a" not in line
    assert "one unchanged group in forty" in text


def test_report_says_what_was_not_proven():
    held = {"new": comparison.evaluate([1.0, 2.0], {"parent": [1, 1], "retrained": [1, 2]})}
    missing = dict.fromkeys(("attribution", "leakage", "drift", "groups", "importance"))
    verdict = comparison.decide(held["new"], None)
    gaps = markdown(held_out=held, caveats=["mine"], verdict=verdict, **missing)
    text, gaps = gaps.split("## Not proven")
    named = ("Forgetting", "cause of any gain", "Fairness", "new (2)", "A gain", "Other seeds")
    for gap in (*named, "mine"):
        assert f"{gap}" in gaps
    assert "## Drift" not in text
    full = markdown().split("## Not proven")[1]
    for gap in ("Forgetting", "cause of any gain", "Fairness", "few held-out rows", "A gain"):
        assert gap not in full


def test_report_lets_no_markup_from_the_data_through():
    rows = pd.DataFrame({ATTACK: [ATTACK, "b"] * 200})
    y = RNG(0).uniform(500, 40_000, 400)
    groups = comparison.groups(rows, [ATTACK], y, y + 1, y + 2 + 3000 * (rows[ATTACK] == "b"))
    old = pd.DataFrame({ATTACK: ["a"] * 400})
    text = markdown(
        groups=groups,
        drift=drift.drift(old, rows, {ATTACK: "categorical"}),
        importance=evidence().importance.assign(column=ATTACK),
        held_out={ATTACK: evidence().held_out["new"]},
        leakage={ATTACK: 1},
        verdict=comparison.Verdict("better", True, ATTACK),
        caveats=[ATTACK],
        unit=ATTACK,
    )
    assert text.count("alert") >= 10
    assert "<script" not in text
    for active in ("[a]", "`x`", "**head**", "![", "://e", "\n# **"):
        assert active not in text.replace("\\://", "")
    for table in (block for block in text.split("\n\n") if block.startswith("|")):
        bars = {line.replace(r"\|", "").count("|") for line in table.strip().splitlines()}
        assert len(bars) == 1


def test_page_carries_what_the_markdown_says_with_its_figures_inside():
    full, text = evidence(), page()
    assert f'<p class="verdict">Promoted: {full.verdict.reason}.</p>' in text
    for part in full.held_out.values():
        assert format_interval(part.change, "€") in text
    assert text.count("<svg") == text.count("<figure") == 1
    assert "prefers-color-scheme: dark" in text
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", text)  # it needs nothing from elsewhere


def test_report_is_written_in_the_format_that_the_name_asks_for(tmp_path):
    for name, start in (("a.html", "<!doctype html>"), ("a.HTM", "<!doctype"), ("a.md", "# Retr")):
        report.write(evidence(), str(tmp_path / name))
        assert (tmp_path / name).read_text("utf-8").startswith(start)
    assert len(list(tmp_path.iterdir())) == 3  # nothing else is left


def test_report_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("before")
    monkeypatch.setattr(report, "render", lambda *_: "\ud800")  # half of a sign is no UTF-8
    with pytest.raises(UnicodeEncodeError):
        report.write(evidence(), str(tmp_path / "a.md"))
    assert (tmp_path / "a.md").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_report_of_a_file_that_was_only_looked_at_has_no_scores():
    looked = report.Evidence(prequential=3.0, prequential_rows=9)
    for template in ("report.md", "report.html"):
        text = report.render(looked, template)
        assert "nothing is trained" in text
        assert "Same rows" not in text
        assert "Not proven" not in text


def test_page_lets_no_markup_from_the_data_through():
    y, rows = targets(), pd.DataFrame({ATTACK: [ATTACK, "b"] * 200})
    groups = comparison.groups(rows, [ATTACK], y, y + 1, y + 2 + 3000 * (rows[ATTACK] == "b"))
    held = {ATTACK: evidence().held_out["new"]}
    text = page(
        groups=groups,
        drift=drift.drift(rows.assign(**{ATTACK: "a"}), rows, {ATTACK: "categorical"}),
        importance=evidence().importance.assign(column=ATTACK),
        held_out=held,
        leakage={ATTACK: 1},
        verdict=comparison.Verdict("better", True, ATTACK + "\u202e"),
        caveats=[ATTACK],
        unit=ATTACK,
        figures={
            "before_after": figures.as_svg(figures.before_after(held, ATTACK)),
            "error_per_group": figures.as_svg(figures.error_per_group(groups, ATTACK)),
        },
    )
    assert text.count("&lt;script&gt;alert(1)") >= 10
    assert "<script" not in text
    assert "\u202e" not in text


# --- short lines


def test_metrics_name_every_score_and_interval():
    full = evidence()
    found = report.metrics(full)
    assert found["prequential/MAE"] == 5432.1
    scores = full.held_out["new"].scores
    assert found["MAE"] == found["new/MAE_retrained"] == scores.loc["retrained", "MAE"]
    assert found["R2"] == scores.loc["retrained", "R²"]
    assert found["old/MSE_median"] == scores.loc["median", "MSE"]
    change = full.held_out["old"].change
    named = [found[f"old/MAE_difference{end}"] for end in ("", "_low", "_high")]
    assert named == [change.estimate, change.low, change.high]
    assert report.metrics(report.Evidence()) == {}
    single = comparison.evaluate([1.0, 2.0], {"parent": [1, 1], "retrained": [2, 1]}, groups=[0, 0])
    found = report.metrics(report.Evidence(held_out={"new": single}))
    assert found["new/MAE_difference"] == 0.5
    assert found.keys().isdisjoint({"new/MAE_difference_low", "new/MAE_difference_high"})


def test_score_table_has_a_line_per_model_and_na_where_nothing_was_scored():
    held = {
        "new": comparison.evaluate([1.0, 3.0], {"parent": [1, 2], "retrained": [1, 3]}),
        "old": comparison.evaluate([3.0], {"parent": [5], "retrained": [4]}),
    }
    header, lines = report.score_table(report.Evidence(held_out=held, unit="€"))
    assert header == ["same held-out rows", "new MAE", "new R²", "old MAE", "old R²"]
    assert lines == [
        ["parent", "0.500 €", "0.500", "2.00 €", "n/a"],
        ["retrained", "0 €", "1.000", "1.00 €", "n/a"],
    ]


def test_short_result_fits_the_name_of_a_run():
    full = evidence()
    new, old = (
        format_amount(full.held_out[part].change.estimate, "€", signed=True)
        for part in ("new", "old")
    )
    assert report.short_result(full) == f"MAE new {new}, old {old}"
    broken = replace(full, verdict=comparison.Verdict("suspicious", False, "x"))
    assert report.short_result(broken) == "suspicious"


# --- model card


def schema_of(target="amount", dropped=(), **kinds):
    columns = [SimpleNamespace(name=name, kind=kind) for name, kind in kinds.items()]
    return SimpleNamespace(target=SimpleNamespace(name=target), columns=columns, dropped=dropped)


def test_card_has_its_result_first_and_all_sections_and_counts_rows():
    schema = schema_of(size="numeric", city="categorical", since="date", dropped=("nom", "secret"))
    step = {"generation": 1, "data": "/somewhere/new.csv", "rows": 400}
    card = {"result": "MAE 3 €", "unit": "€", "lineage": [{**step, "trained_on": 320}]}
    text = report.model_card(card, schema)
    assert text.startswith("# Model card\n\n**MAE 3 €**\n")
    places = [text.index(f"**{name}.**") for name in ("Purpose", "Data", "Groups", "Limits")]
    assert places == sorted(places)
    assert "predicts amount (€) of a row" in text
    assert "numbers size; categories city; dates since; left out: 2." in text
    assert "by category of city" in text
    assert "| 1 | new.csv | 400 | 320 | ? |" in text
    for hidden in ("nom", "secret", "somewhere"):
        assert hidden not in text
    assert "Do not decide about anyone with it" in text


def test_model_that_nobody_scored_says_so():
    text = report.model_card({}, schema_of(x="numeric"))
    assert "not scored yet" in text
    assert "no groups were compared" in text


def test_text_from_the_data_stays_text_and_the_card_short():
    kinds = {f"{ATTACK}{i}" + "x" * 500: "numeric" for i in range(500)}
    kinds |= {f"{ATTACK}{i}" + "y" * 500: "categorical" for i in range(500)}
    lineage = [{"generation": i, "data": ATTACK, "rows": 1} for i in range(50)]
    card = {"result": ATTACK, "unit": ATTACK, "lineage": lineage}
    text = report.model_card(card, schema_of(ATTACK, **kinds))
    assert "<script" not in text
    assert "](http://" not in text
    assert text.count("\n# ") == 0
    assert "and 488 more" in text
    assert "| 49 |" in text
    assert len(report.model_card(card, schema_of(ATTACK, **kinds), heading=False)) <= 4_000
    assert escape_markdown(ATTACK) in text


@pytest.mark.parametrize("value", [math.nan, math.inf, True, 3, None, "a|b"])
def test_odd_cells_stay_in_their_column(value):
    line = markdown(leakage={"odd": value}).split("| odd |")[1].splitlines()[0]
    assert line.replace(r"\|", "").count("|") == 1


def test_rows_that_belong_together_are_a_caveat_unless_a_flag_held_them_out_as_one():
    schema = Schema(Column("y", "numeric"), (Column("x", "numeric"),))
    y = np.repeat(np.random.default_rng(0).normal(size=30), 5)
    table = hashed(pd.DataFrame({"x": np.arange(150.0), "y": y}))
    rows = SimpleNamespace(file=table, tries=1)
    work = SimpleNamespace(rows=rows, table=table, role=Roles(1, 1))
    (said,) = _caveats(work, evidence(), schema)
    assert said.startswith("Rows beside each other have alike targets")
    work.role = Roles(1, 1, group="g")
    assert _caveats(work, evidence(), schema) == []
    work.table = pd.concat([table, table[:60]])
    (said,) = _caveats(work, evidence(), schema)
    assert said.startswith("57% of the rows equal another one")
    useless = evidence()
    useless.held_out["new"].scores.loc["median", "MAE"] = 0.5
    assert "predicting the median for all of them" in _caveats(work, useless, schema)[1]
    rows.tries = 25
    assert "training 25 of this line" in _caveats(work, evidence(), schema)[-1]
    assert _caveats(work, evidence(), schema)[-1].endswith("wider, of 99.9992 %.")  # not of 100
