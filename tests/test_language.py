"""Claims about language.py and french.toml: all that people read is French when it is asked for.

What the product can say is found in its sources: each f-string becomes a template in which `{}`
stands for whatever is not known, and pieces chosen by `if` are written out.
"""

import argparse
import ast
import html
import itertools
import json
import os
import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MODEL, ROOT
from test_figures import dependence_tables, every_figure, words
from test_report import evidence, schema_of

from toolkit import cli, comparison, drift, figures, language, report
from toolkit.language import spoken, translate

SECTIONS = tomllib.loads(language.CATALOGUE.read_text("utf-8")).values()
CATALOGUE = [english for section in SECTIONS for english in section]
ENGLISH = re.compile(
    r"\b(the|of|rows?|is|are|was|were|with|and|to|by|expected|columns?|new|old|better|worse|kept|"
    r"held|left|from|its|it|not|than|which|when|where|retrained|trained|mean|median|missing|"
    r"check|pass|add|harm|gain of|within|note:|line|yes|none|scratch|control|threshold|loss|actual|"
    r"predicted|number|category|drifted|groups|leakage|promoted|suspicious|highest|lowest|blank|"
    r"reading|scoring|training)\b",
    re.IGNORECASE,
)
# Said to programs and to programmers, or by other programs.
NOT_SAID = re.compile(
    r"Received: |^select |^(name|attributes|version_number|--xla)\b|\btags\.|^COLUMN|"
    r"^((re)?train|watch) \{\}$|^(no rows to score|the (CSV is sep|last column )|what was passed)|"
    r"^ on held-out$|^rows-$|\.(py|db|pickle)$|^\? - |^new/|^list\[|^expected after$|uuid\|guid"
)


@pytest.fixture
def french():
    with spoken("fr"):
        yield


def english_in(text):
    """List the English words of a text, but for addresses, files, flags, commands and fields."""
    text = re.sub(r"(?m)^ {2}\S*(python|mlflow).*$", "", text)
    text = re.sub(r"https?:\S+|models:\S+|\S*/\S+|\S+\.(csv|md|py)\b|--[\w-]+|`.*?`", "", text)
    return [found[0] for found in ENGLISH.finditer(text)]


def english_numbers_in(text):
    """List numbers written as 1,234 € or 1.5, but for addresses; R² may be -1,234 in French."""
    text = re.sub(r"https?:\S+|models:\S+|\S*/\S+", "", text)
    return re.findall(r"\b[1-9]\d{0,2},\d{3} €|(?<!\.)\b\d+\.\d+\b(?!\.)", text)


# --- what the sources can say --------------------------------------------------------------------


def variants(node, names, depth=0):
    """List the texts that an expression may give, with `{}` for what only a run can tell."""
    if isinstance(node, ast.Constant):
        return {node.value if isinstance(node.value, str) else "{}"}
    if isinstance(node, ast.JoinedStr):
        parts = [variants(part, names, depth) for part in node.values]
        return {"".join(chosen) for chosen in itertools.islice(itertools.product(*parts), 200)}
    if isinstance(node, ast.FormattedValue):
        return variants(node.value, names, depth)
    if isinstance(node, ast.IfExp):
        return variants(node.body, names, depth) | variants(node.orelse, names, depth)
    if isinstance(node, ast.BinOp) and isinstance(node.left, ast.Constant):  # " text" * condition
        return {""} | variants(node.left, names, depth)
    if isinstance(node, ast.Name) and node.id in names and depth < 5:
        return variants(names[node.id], names, depth + 1)
    return {"{}"}


def is_text(node):
    is_constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_constant or isinstance(node, ast.JoinedStr | ast.IfExp)


def assigned(scope, line=10**6):
    """Map the names that a scope gives texts to, to the last of these before a line."""
    found = [node for node in ast.walk(scope) if isinstance(node, ast.Assign)]
    found = [node for node in found if is_text(node.value) and node.lineno < line]
    found.sort(key=lambda node: node.lineno)
    return {getattr(node.targets[0], "id", ""): node.value for node in found}


def said(tree):
    """List the templates of all texts of a module, but for docstrings and parts of f-strings."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if is_text(node) and id(node) not in skipped:
            yield from variants(node, {})


def user_errors(tree):
    """List the templates of all messages of a module that a user reads as an error."""
    top = assigned(ast.Module([node for node in tree.body if isinstance(node, ast.Assign)], []))
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef):
            continue
        for node in ast.walk(scope):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                yield from variants(node.args[0], {**top, **assigned(scope, node.lineno)})


def plain(template):
    """Write a template as the catalogue does: backreferences and formats are placeholders, too."""
    template = re.sub(r"\\\d|\{:[^}]*\}|%(\(\w+\))?[rs]", "{}", template)
    return re.sub(r"(\{\})+", "{}", template)


SOURCES = [*ROOT.glob("*.py"), *ROOT.glob("toolkit/*.py")]
TREES = {file: ast.parse(file.read_text("utf-8")) for file in SOURCES}
SAID = {plain(text) for tree in TREES.values() for text in said(tree)}
for page in (ROOT / "toolkit" / "templates").iterdir():
    SAID |= {plain(text) for text in re.findall(r'"([^"\n]+)"', page.read_text("utf-8"))}
for script in ROOT.glob("mlflow_*.py"):  # the title of its --help
    SAID.add(ast.get_docstring(TREES[script]).splitlines()[0])
ERRORS = {plain(text) for tree in TREES.values() for text in user_errors(tree)}
OTHERS = re.findall(r"""_\(\s*(['"].*?)['"]\)""", Path(argparse.__file__).read_text("utf-8"))
OTHERS = {plain(text) for text in [*OTHERS, *map(os.strerror, range(1, 134))]}


def pieces(template):
    """Split a template at placeholders and signs, as sentences are put together from pieces."""
    parts = re.split(r"\{n?\}|[,;:()'\"\n]|\. ", template.replace("_", " ").casefold())
    return [part.strip(" .") for part in parts if re.search("[a-z]{2}", part)]


def test_whatever_the_sources_say_is_in_the_catalogue():
    known = "\n".join(piece for english in CATALOGUE for piece in pieces(english))
    missing = {
        text
        for text in SAID
        if ENGLISH.search(text) and not NOT_SAID.search(text)
        if any(piece not in known for piece in pieces(text))
    }
    assert not missing


def test_every_entry_of_the_catalogue_is_said_by_the_sources():
    known = "\n".join(piece for text in SAID | OTHERS for piece in pieces(text))
    single = set(re.findall("[a-z]+", known))
    stale = {
        english
        for english in CATALOGUE
        for piece in pieces(english)  # short ones may be put together of several words
        if piece not in known
        if len(piece.split()) > 6 or not set(re.findall("[a-z]+", piece)) <= single
    }
    assert not stale


@pytest.mark.parametrize("template", sorted(ERRORS))
def test_each_error_is_told_in_french(template, french):
    count = itertools.count()
    text = re.sub(r"\{\}", lambda _: f"X{next(count)}", template)
    if re.search("[a-z]{2}", text):  # else it is made of other sentences
        assert translate(text) != text
        assert not english_in(translate(text))
    numbers = re.findall(r"X\d+", text)
    assert sorted(re.findall(r"X\d+", translate(text))) == sorted(numbers), "nothing is lost"


# --- sentences that are put together -------------------------------------------------------------


def verdicts():
    """Reach every kind of verdict, in all its words."""

    def held(estimate, low, high):
        y = np.arange(30.0)
        found = comparison.evaluate(y, {"parent": y + 9, "retrained": y + 5})
        interval = comparison.Interval(estimate, low, high)
        return comparison.HeldOut(30, found.scores, interval, interval)

    better, worse, unclear = held(-4, -5, -3), held(4, 3, 5), held(0, -1, 1)
    found = ["age: every row has 3, where 12 values stood before"]
    cases = [
        (better, unclear, {}),
        (worse, None, {}),
        (unclear, worse, {"promote": "always"}),
        (unclear, better, {"promote": "proven"}),
        (better, better, {"promote": "never"}),
        (better, better, {"findings": found * 2}),
    ]
    return [comparison.decide(new, old, unit="€", **more) for new, old, more in cases]


def suspicions():
    """Break a file in every way that is noticed."""
    rng = np.random.default_rng(0)
    old = pd.DataFrame(
        {
            "vide": rng.normal(size=300),
            "ville": rng.choice(["Paris", "Lyon"], 300),
            "code": rng.choice(["aa", "bb", "cc", "dd"], 300),
            "stable": rng.normal(size=300),
            "echelle": rng.gamma(2, 3, 300),
            "degres": rng.normal(12, 4, 300),
            "y": rng.normal(size=300),
        }
    )
    kinds = {name: "numeric" if old[name].dtype == float else "categorical" for name in old}
    target = kinds.pop("y") and "y"
    new = old.sample(frac=1, random_state=1, ignore_index=True)
    new = new.assign(vide=np.nan, ville=new["ville"].str.upper(), stable=7.5)
    new = new.assign(echelle=new["echelle"] * 1000, degres=new["degres"] * 1.8 + 32, y=new["y"] + 9)
    new["code"] = rng.choice(["x y", "z"], 300)
    wide = drift.suspicious(old[["y"]], old[["y"]] * 100, {}, target)
    return [*drift.suspicious(old, new, kinds, target), *wide]


def attributions():
    y, gains = np.arange(60.0), {"retrained": (4, 6, 9.1), "control": (6, 8, 9)}
    for control in gains["control"]:
        for child in gains["retrained"]:
            noise = np.where(y % 2, 3, -3)
            models = {"parent": y + 9 + noise, "control": y + control - noise}
            yield comparison.attribution(y, {**models, "retrained": y + child + noise}).sentence


def test_every_verdict_suspicion_and_attribution_is_french(french):
    reasons = [verdict.reason for verdict in verdicts()]
    told = [f"{word}, {each}" for word in ("promoted", "kept champion") for each in reasons]
    broken = suspicions()
    assert len(broken) == 8
    told += [f"kept champion, suspicious: {'; '.join(broken)}", *broken, *attributions()]
    told += ["kept champion, the parent is not the champion, version 3; " + reasons[0]]
    for text in told:
        assert not english_in(translate(text)), text
    assert translate(told[0]) == (
        "promu, mieux : MAE sur les lignes nouvelles -4,00 € (-5,00 à -3,00), gain prouvé ; "
        "sur les anciennes +0 € (-1,00 à +1,00), dépassement de la limite de 0,450 € non prouvé"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "new categories: a (b, c and 3 more), d (e and 1 more) and 2 more",
            "nouvelles catégories : a (b, c et 3 autres), d (e et 1 autre) et 2 autres",
        ),
        (
            "note: column 'c': 4 cells ('x', blank) are read as missing",
            "note : colonne « c » : 4 cellules ('x', vide) sont lues comme manquantes",
        ),
        (
            "a.csv cannot be read as CSV (line 3 has 2 fields, not 4); give every line as many "
            "fields as the header",
            "a.csv ne peut être lu en CSV (la ligne 3 a 2 champs, et non 4) ; donner à chaque "
            "ligne autant de champs qu'à l'en-tête",
        ),
        (
            "column 'a' of b.csv holds 'x' in lines 2, 3 and 4 more; expected a number such as "
            "1234.5: correct it (a training takes --na MARKER, a first one --categorical COLUMN)",
            "la colonne « a » de b.csv contient « x » (les lignes 2, 3 et 4 autres) ; attendu : "
            "un nombre tel que 1234.5 : corriger (un entraînement prend --na MARQUE, un premier "
            "--categorical COLONNE)",
        ),
        ("  .venv/bin/python a.py --data 'the rows'", "  .venv/bin/python a.py --data 'the rows'"),
        ("training: compiling", "entraînement : compilation"),
        ("3,484 €", "3\u202f484 €"),
        ("-1,234.5 m2", "-1\u202f234,5 m2"),
        ("12%", "12 %"),
        ("1.50e-07", "1,50e-07"),
        ("0,440 kWh", "0,440 kWh"),  # translated before
        ("promoted: MAE 3,226 €", "promu : MAE 3\u202f226 €"),
        ("-420 € (-540 to +1,300)", "-420 € (-540 à +1\u202f300)"),
        ("1.2.3", "1.2.3"),
        ("models:/a/1.5", "models:/a/1.5"),
        ("20141013", "20141013"),
    ],
)
def test_clauses_are_translated_and_what_users_wrote_is_left_alone(text, expected, french):
    assert translate(text) == expected


def test_quoted_names_stay_as_users_wrote_them(french):
    told = translate("column 'mean' is left out: it is a running number (--keep 'mean' takes it)")
    assert (
        told == "la colonne « mean » est écartée : c'est un numéro d'ordre (--keep 'mean' la garde)"
    )


# --- report, card, figures -----------------------------------------------------------------------


def test_report_and_card_are_french_in_all_their_parts(french):
    y = np.arange(40.0)
    few = comparison.evaluate(y, {"parent": y + 1, "retrained": y + 2})
    tables = {"dependence": dependence_tables(), "history": {0: 1.0, 1: 2.0}}
    drawn = ("over_generations", "before_after", "predicted_against_actual", "importance")
    drawn += ("dependence", "error_per_group", "drift", "learning_curve")
    pictures = dict.fromkeys(drawn, "<svg></svg>")
    leakage = {"new rows held out": 3, "rows of the file seen before": 4}
    full = evidence(figures=pictures, held_out={"new": few}, leakage=leakage, **tables)
    bare = evidence(
        groups=None, attribution=None, held_out={}, importance=None, drift=None, leakage=None
    )
    for found in (evidence(leakage=leakage), full, bare):
        text = re.sub(
            "(?s)<style>.*?</style>|<svg.*?</svg>", "", report.render(found, "report.html")
        )
        assert 'lang="fr"' in text
        page = html.unescape(re.sub("<[^>]+>", "\n", text))
        for told in (page, report.render(found, "report.md")):
            assert not english_in(told)
            assert not english_numbers_in(told)
    kinds = {f"x{number}": "categorical" for number in range(14)}
    for schema in (schema_of(y="numeric", day="date", **kinds), schema_of()):
        assert not english_in(report.model_card({"lineage": [{}]}, schema))


def test_figures_are_french_and_their_titles_are_not_cut(french):
    y = np.arange(40.0)
    held = comparison.evaluate(y, {"parent": y + 1, "retrained": y + 2})
    drawn = {**every_figure(), "over": figures.over_generations({0: 1.0, 1: 2.0}, "€")}
    drawn["before"] = figures.before_after({"new": held, "old": held}, "€")
    drawn["learning_curve"] = figures.learning_curve(
        {"loss": [1], "val_mae": [2], "final_loss": [3]}
    )
    for name, figure in drawn.items():
        assert not english_in(words(figure)), name
        assert not english_numbers_in(words(figure)), name
        titles = [axes.get_title(loc="left") for axes in figure.axes]
        assert name == "dependence" or "…" not in "".join(titles), titles


# --- scripts -------------------------------------------------------------------------------------


def test_scripts_speak_french_from_the_first_line_to_the_last(workshop, files, no_training):
    flags = ["--lang", "fr", "--data", files / "new.csv"]
    report_file, unknown = workshop.folder / "rapport.md", workshop.folder / "sans_cible.csv"
    pd.read_csv(files / "new.csv").drop(columns="montant_pret").to_csv(unknown, index=False)
    commands = [
        (workshop.train, ["--lang", "fr", "--data", files / "old.csv", "--model-name", "autre"]),
        (workshop.retrain, ["--lang", "fr", "--data", unknown, "--dry-run"]),
        (workshop.retrain, [*flags, "--dry-run"]),
        (workshop.retrain, [*flags, "--promote", "always", "--report", report_file]),
        (workshop.retrain, flags),
        (workshop.retrain, ["--rollback", "--lang", "fr"]),
        (workshop.score, [*flags, "--interval", "0.9"]),
    ]
    printed = []
    for script, arguments in commands:
        assert script(*arguments) == 0, workshop.err
        assert not english_in(workshop.out), workshop.out
        assert not english_numbers_in(workshop.out), workshop.out
        printed.append(workshop.out)
    assert "mêmes lignes de test" in printed[3]
    assert "\nEnsuite :\n" in printed[3]
    assert not english_in(report_file.read_text("utf-8"))
    version = workshop.client.get_model_version(MODEL, "2")
    page = workshop.client.get_registered_model(MODEL).description
    title, _, told, history = page.split("\n\n")  # between them the English one of version 1
    assert not english_in(version.description)
    assert not english_in(f"{title}\n{told}\n{history}")
    assert translate("rows") == "rows", "the next script starts in English"
    data = workshop.client.get_run(version.run_id).data
    assert data.tags["verdict"] == "promoted"
    assert data.tags["verdict_kind"] in ("no_worse", "worse", "better")
    assert data.tags["mlflow.runName"].startswith("promu : MAE nouvelles")
    assert "lang" not in data.params


def test_json_is_english_in_any_language(workshop, files, no_training):
    found = []
    for lang in ("en", "fr"):
        flags = ["--dry-run", "--json", "--data", files / "new.csv", "--lang", lang]
        assert workshop.retrain(*flags) == 0
        found.append(json.loads(workshop.out))
        del found[-1]["run_id"], found[-1]["metrics"]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LANG": "fr_FR.UTF-8"}, "fr"),
        ({"LANG": "fr_CA"}, "fr"),
        ({"LANG": "en_GB.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "fr_FR.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "C.UTF-8", "LC_MESSAGES": "fr_FR"}, "fr"),
        ({"LANG": "fr_FR.UTF-8", "LC_ALL": ""}, "fr"),
        ({}, "en"),
    ],
)
def test_language_is_that_of_the_locale_where_it_is_one_of_ours(environment, expected, monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language.of_locale() == expected
    assert cli.parse(cli.StoreSettings, [], "script.py", "Do it.").lang == expected


def test_error_is_told_in_the_language_of_the_locale_or_the_flag(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_ALL", "fr_FR.UTF-8")
    settings = cli.parse(cli.StoreSettings, [], "script.py", "Do it.")
    (tmp_path / "models").write_text("")
    assert cli.run(lambda _: 0, settings) == 2
    assert capsys.readouterr().err == (
        "erreur : le fichier existe déjà : models ; vérifier le chemin, ses droits et le disque\n"
    )
    settings.lang = "en"
    assert cli.run(lambda _: 0, settings) == 2
    assert capsys.readouterr().err.startswith("error: File exists: models; check")


@pytest.mark.parametrize(
    "flags",
    [
        ["--epoch=0", "--lang", "fr"],
        ["--epochs", "zero", "--lang=fr"],
        ["--epochs", "--lang", "fr"],
        ["--seed", "-1"],
        ["--learning-rate", "0"],
        ["--test-size", "1"],
        ["--experiment", " "],
        ["--model-name", "a/b"],
        ["--promot", "auto"],
        ["--modell-name", "x"],
        ["--quiet=1"],
        ["--na"],
        ["--lang=klingon"],
        ["--experiment", "\ud800"],
    ],
)
def test_wrong_argument_is_refused_in_french(flags, monkeypatch, capsys):
    monkeypatch.setenv("LC_ALL", "en_GB" if "fr" in " ".join(flags) else "fr_FR")
    with pytest.raises(SystemExit, match="2"):
        cli.parse(cli.TrainingSettings, flags, "script.py", "Do it.")
    told = capsys.readouterr().err
    assert told.startswith("erreur : ")
    assert not english_in(told.replace("(voir script.py --help)", "")), told


@pytest.mark.parametrize("script", ["mlflow_monitoring", "mlflow_retrain", "mlflow_score"])
def test_help_is_french(script, capsys):
    module = __import__(script)
    with pytest.raises(SystemExit, match="0"):
        module.main(["--lang", "fr", "--help"])
    lines = capsys.readouterr().out.split("\n\n", 1)[1]
    assert not english_in(re.sub(r"[A-Z]{2,}|\{.*?\}", "", lines)), lines
