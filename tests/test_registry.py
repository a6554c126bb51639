"""Claims about registry.py: versions, aliases that move together or not at all, honest history."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from toolkit import artifact, registry, report
from toolkit.errors import UserError

NAME = "loan-amount"


@pytest.fixture
def client(bench):
    """Give a registry with three versions, of which the first is champion."""
    for version in "23":
        assert registry.register(bench.client, NAME, bench.uri, f"result {version}") == version
    return bench.client


def aliases(client):
    return tuple(
        registry.champion_version(client, NAME, alias)
        for alias in (registry.CHAMPION, registry.PREVIOUS)
    )


def moves(client):
    return [line.split(" ", 1)[1] for line in registry.history(client, NAME)]


def test_versions_are_numbered_and_carry_their_description_and_run(client, bench, capfd):
    assert registry.register(client, "other", bench.uri, "first") == "1"
    made = client.get_model_version(NAME, "3")
    assert (made.description, made.source) == ("result 3", bench.uri)
    assert made.run_id == bench.run.info.run_id
    assert capfd.readouterr() == ("", "")
    assert registry.champion_version(client, "other") is None
    assert registry.champion_version(client, "nobody") is None


def test_first_promotion_needs_no_champion_and_leaves_no_previous_one(client):
    assert aliases(client) == ("1", None)
    assert moves(client) == ["version 1 promoted"]


def test_promotion_moves_both_aliases_and_the_page_tells_who_is_champion(client):
    assert registry.promote(client, NAME, "2", expected="1")
    assert aliases(client) == ("2", "1")
    page = client.get_registered_model(NAME).description
    assert page.startswith("**Champion: version 2** (promoted).\n\nresult 2")
    assert page.count("version 1 promoted") == page.count("version 2 promoted") == 1


@pytest.mark.parametrize("expected", [None, "2"])
def test_promotion_changes_nothing_when_the_champion_is_not_the_expected_one(client, expected):
    assert not registry.promote(client, NAME, "3", expected=expected)
    assert aliases(client) == ("1", None)
    assert moves(client) == ["version 1 promoted"]


def test_champion_is_never_lost_when_a_promotion_breaks_off_half_way(client, monkeypatch):
    original = client.set_registered_model_alias

    def broken(name, alias, version):
        if alias == registry.CHAMPION:
            raise MlflowException("planted")
        original(name, alias, version)

    monkeypatch.setattr(client, "set_registered_model_alias", broken)
    with pytest.raises(MlflowException, match="planted"):
        registry.promote(client, NAME, "2", expected="1")
    assert registry.champion_version(client, NAME) == "1"
    assert [model.name for model in client.search_registered_models()] == [NAME]  # no lock is left


def test_going_back_swaps_the_two_versions_and_can_be_undone(client):
    registry.promote(client, NAME, "2", expected="1")
    assert registry.appoint(client, NAME) == ("1", "2")
    assert aliases(client) == ("1", "2")
    assert registry.appoint(client, NAME) == ("2", "1")
    assert moves(client)[2:] == ["version 1 rolled back", "version 2 rolled back"]


def test_going_back_without_a_previous_version_is_refused_and_changes_nothing(client):
    with pytest.raises(UserError, match=r"nothing to go back to: 'loan-amount' has not two"):
        registry.appoint(client, NAME)
    with pytest.raises(UserError, match=r"nothing to go back to: 'nobody' has not two"):
        registry.appoint(client, "nobody")
    assert aliases(client) == ("1", None)
    assert moves(client) == ["version 1 promoted"]


def test_going_back_to_the_champion_itself_is_refused_and_not_claimed(client):
    registry.promote(client, NAME, "2", expected="1")
    client.set_registered_model_alias(NAME, registry.CHAMPION, "1")  # by hand, in MLflow
    with pytest.raises(UserError, match=r"not two different versions .*--approve"):
        registry.appoint(client, NAME)
    assert aliases(client) == ("1", "1")
    assert moves(client)[-1] == "version 2 promoted"


def test_approval_makes_any_registered_version_champion_and_can_be_taken_back(client):
    assert registry.appoint(client, NAME, "3") == ("3", "1")
    assert aliases(client) == ("3", "1")
    assert moves(client)[-1] == "version 3 approved"
    assert registry.appoint(client, NAME) == ("1", "3")


@pytest.mark.parametrize("version", ["9", "1"])
def test_approval_of_what_cannot_become_champion_is_refused(client, version):
    with pytest.raises(
        UserError, match=f"version {version} .*(not exist|is champion already); expected"
    ):
        registry.appoint(client, NAME, version)
    assert aliases(client) == ("1", None)
    assert moves(client) == ["version 1 promoted"]


def test_champion_that_was_moved_by_hand_is_told_in_the_history_and_can_be_left(client):
    registry.promote(client, NAME, "2", expected="1")
    client.set_registered_model_alias(NAME, registry.CHAMPION, "3")  # by hand, in MLflow
    assert registry.appoint(client, NAME) == ("1", "3")
    assert aliases(client) == ("1", "3")
    assert moves(client)[-2:] == [
        "version 3 found as champion, moved by hand",
        "version 1 rolled back",
    ]
    assert registry.appoint(client, NAME) == ("3", "1")
    assert moves(client)[-1] == "version 3 rolled back"


@pytest.mark.parametrize("alias", [registry.CHAMPION, registry.PREVIOUS])
@pytest.mark.parametrize("how", ["alias", "version"])
def test_going_back_is_refused_when_a_version_or_alias_was_deleted_by_hand(client, alias, how):
    registry.promote(client, NAME, "2", expected="1")
    version = registry.champion_version(client, NAME, alias)
    if how == "alias":
        client.delete_registered_model_alias(NAME, alias)
    else:
        client.delete_model_version(NAME, version)
    before = aliases(client)
    with pytest.raises(UserError, match="nothing to go back to"):
        registry.appoint(client, NAME)
    assert aliases(client) == before
    assert moves(client)[-1] == "version 2 promoted"


def test_history_keeps_the_latest_moves(client, monkeypatch):
    monkeypatch.setattr(registry, "LONGEST_HISTORY", 3)
    registry.promote(client, NAME, "2", expected="1")
    for _ in range(3):
        registry.appoint(client, NAME)
    versions = [line.split()[1] for line in moves(client)]
    assert versions == ["1", "2", "1"]


# --- from a verdict to the registry


def told(client, version):
    """Return (verdict, name of the run, its note, first words of the version's description)."""
    made = client.get_model_version(NAME, version)
    tags = client.get_run(made.run_id).data.tags
    words = made.description.partition("\n\n")[0]
    return tags["verdict"], tags["mlflow.runName"], tags["mlflow.note.content"], words


def publish(client, bench, name=NAME, **options):
    """Publish the logged model once more, in the run that logged it; return (verdict, version)."""
    card, preprocessor = {"result": "better: MAE *down*"}, SimpleNamespace(schema=None)
    trained = SimpleNamespace(card=card, preprocessor=preprocessor)
    with pytest.MonkeyPatch.context() as patch, mlflow.start_run(bench.run.info.run_id):
        patch.setattr(artifact, "log_model", lambda *_: bench.uri)
        patch.setattr(report, "model_card", lambda *_, **__: "card")
        told = registry.publish(client, name, trained, "model", "MAE -3 €", **options)
    assert told["model_uri"] == bench.uri
    assert told["promoted"] == told["verdict"].startswith("promoted")
    return told["verdict"], told["version"]


def test_model_that_is_wanted_becomes_champion_and_its_run_tells_so(client, bench):
    verdict, version = publish(client, bench, champion="1")
    assert (verdict, version) == ("promoted, better: MAE *down*", "4")
    assert aliases(client) == ("4", "1")
    words = r"promoted, better: MAE \*down\*"
    assert told(client, "4") == ("promoted", "promoted: MAE -3 €", words, f"{words}.")
    assert client.get_model_version(NAME, "4").description.endswith("\n\ncard")


def test_long_result_leaves_room_for_the_card_in_what_a_database_keeps(client, bench, monkeypatch):
    monkeypatch.setattr(registry, "translate", lambda text: text + "x" * 6_000)
    register, written = registry.register, []

    def registered(*arguments):
        written.append(arguments[-1])
        return register(*arguments)

    monkeypatch.setattr(registry, "register", registered)
    publish(client, bench, champion="1")
    assert 900 < len(written[0]) < 1_000
    assert 900 < len(client.get_model_version(NAME, "4").description) < 1_000


def test_without_a_champion_a_child_is_promoted_where_it_is_the_first_version_alone(client, bench):
    client.delete_registered_model_alias(NAME, registry.CHAMPION)
    verdict, _ = publish(client, bench, parent_run="x")
    assert verdict.startswith("kept champion, there is no champion, which --approve or --promote")
    assert aliases(client)[0] is None
    assert publish(client, bench, "other", parent_run="x")[0].startswith("promoted")
    assert publish(client, bench)[0].startswith("promoted")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"champion": "1", "wanted": False}, ""),
        ({"champion": "2"}, "another version is champion; "),
        ({"champion": "1", "parent_run": "x"}, "the parent is not the champion, version 1; "),
        ({}, "another version is champion; "),
    ],
    ids=["not wanted", "champion changed", "other parent", "first training"],
)
def test_model_that_may_not_become_champion_is_registered_with_the_reason(
    client, bench, options, why
):
    verdict, version = publish(client, bench, **options)
    assert (verdict, version) == (f"kept champion, {why}better: MAE *down*", "4")
    assert aliases(client) == ("1", None)
    assert told(client, "4")[:2] == ("kept champion", "kept: MAE -3 €")


def test_model_of_the_champions_child_and_first_model_of_a_name_become_champion(client, bench):
    run_id = client.get_model_version(NAME, "1").run_id
    assert publish(client, bench, champion="1", parent_run=run_id)[0].startswith("promoted")
    assert publish(client, bench, "other") == ("promoted, better: MAE *down*", "1")
    assert registry.champion_version(client, "other") == "1"


def test_lock_of_a_process_that_died_is_taken_over_after_a_while(client):
    client.create_registered_model(f"{NAME}.promotion-lock")
    start = time.monotonic()
    with registry.registry_lock(client, NAME, wait=0.3):
        assert time.monotonic() - start >= 0.3
    assert [model.name for model in client.search_registered_models()] == [NAME]


def test_lock_keeps_others_out_until_it_is_released(bench):
    inside = []

    def enter(name):
        with registry.registry_lock(bench.client, NAME):
            inside.append(name)
            time.sleep(0.05)
            inside.append(name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert inside[::2] == inside[1::2]


def test_of_many_promotions_at_once_exactly_one_wins(bench):
    for version in "2345":
        assert registry.register(bench.client, NAME, bench.uri, "") == version
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda v: registry.promote(bench.client, NAME, v, "1"), "2345"))
    assert sum(won) == 1
    assert aliases(bench.client) == ("2345"[won.index(True)], "1")
