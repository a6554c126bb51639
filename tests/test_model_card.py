"""Claims about model_card.py: what stands in a model's card, in its folder and the registry."""

import re

import model_card
from model_store import sha256
from tabular import Schema

SECTIONS = ["**Purpose.**", "**Data.**", "**Groups.**", "**Limits.**"]


def card_of(place):
    return (place.artifact(place.uri) / "artifacts" / "model_card.md").read_text("utf-8")


def test_card_lies_in_every_model_with_its_result_first_and_all_sections(trained, retrained):
    for place, start in ((trained, "MAE "), (retrained, "MAE on new rows ")):
        text = card_of(place)
        assert text.startswith(f"# Model card\n\n**{start}")
        places = [text.index(section) for section in SECTIONS]
        assert places == sorted(places)
        assert "Do not decide about anyone with it" in text
        assert "prejudice included" in text
        card = place.load(place.uri).card
        file = place.artifact(place.uri) / "artifacts" / "model_card.md"
        assert card["files"]["model_card.md"] == sha256(file)


def test_card_counts_the_rows_of_every_training(retrained):
    text = card_of(retrained)
    assert "| 0 | old.csv | 400 | 320 | 80 |" in text
    assert re.search(r"\| 1 \| new.csv \| 400 \| \d+ \| \d+ \|", text)


def test_card_names_the_columns_used_and_the_groups_but_no_personal_column(retrained):
    text, schema = card_of(retrained), retrained.load(retrained.uri).schema
    for name in schema.features:
        assert model_card.escape_markdown(name) in text
    assert schema.dropped == ("nom", "prenom")
    assert "2 more were left out" in text
    assert not re.search(r"\b(pre)?nom\b", text)


def test_registry_tells_result_then_card_of_the_version_and_of_the_champion(trained, retrained):
    client = retrained.client
    version = client.get_model_version("loan-amount", "2").description
    verdict = retrained.run.data.tags["verdict"]
    assert version.startswith(f"{verdict}: ")
    assert client.get_model_version("loan-amount", "1").description.startswith("MAE ")
    page = client.get_registered_model("loan-amount").description
    champion = retrained.champion()
    assert page.startswith(f"**Champion: version {champion}** (promoted).")
    for text in (version, page):
        places = [text.index(section) for section in SECTIONS]
        assert places == sorted(places)
    assert 0 < page.index("Who was champion when:") < page.index("**Purpose.**")


def test_text_from_the_data_stays_text_and_the_card_short():
    evil = "![x](http://evil)<script>|\n# big"
    names = tuple(f"{evil}{i}" + "x" * 500 for i in range(1000))
    schema = Schema(evil, names[:500], names[500:], ("secret",))
    lineage = [{"generation": i, "data": evil, "rows": 1} for i in range(50)]
    text = model_card.write({"result": evil, "unit": evil, "lineage": lineage}, schema)
    assert "<script" not in text
    assert "](http://" not in text
    assert "secret" not in text
    assert text.count("\n# ") == 0
    assert "and 488 more" in text
    assert "| 49 |" in text
    assert len(model_card.about({"lineage": lineage}, schema)) <= 4_000


def test_model_that_nobody_scored_says_so():
    text = model_card.write({}, Schema("y", ("x",), ()))
    assert "not scored yet" in text
    assert "no groups were compared" in text
