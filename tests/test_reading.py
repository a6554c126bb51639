"""Claims about toolkit/reading.py: blocks of a source become one table, as if read at once."""

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from toolkit import reading, roles, tables
from toolkit.errors import UserError

N = 120


def rows_of(n=N, seed=0):
    """Make rows as a CSV file brings them: all text."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {
            "income": rng.normal(2_000, 300, n).round(2),
            "region": rng.choice(["north", "south"], n),
            "day": pd.date_range("2020-01-01", periods=n).strftime("%Y-%m-%d"),
            "customer": rng.integers(0, 30, n),
            "y": rng.normal(50, 9, n).round(3),
        }
    )
    return rows.astype(str)


def settings_for(data, **options):
    said = dict.fromkeys(reading.KINDS, ())
    defaults = {"target": "y", "query": None, "group": None, "time": None}
    defaults |= {"test_size": 0.2, "seed": 42, "workers": 1}
    return SimpleNamespace(**{"data": str(data), **said, **defaults, **options})


@pytest.fixture
def source(monkeypatch):
    """Give the function that makes reading find these blocks of rows."""

    def use(*blocks):
        table = tables.Table("rows.csv", [lambda: iter(blocks)], first_line=2)
        monkeypatch.setattr(reading.tables, "open_table", lambda *_: table)
        return settings_for("rows.csv")

    return use


def blocks_of(rows, *cuts):
    edges = [0, *cuts, len(rows)]
    return [rows[a:b].reset_index(drop=True) for a, b in itertools.pairwise(edges)]


def test_file_becomes_a_conformed_table_with_the_hashes_of_its_rows(tmp_path):
    rows_of().to_csv(tmp_path / "rows.csv", index=False)
    table, schema, _ = reading.read_first(settings_for(tmp_path / "rows.csv"))
    assert list(table) == [*schema.features, "y", roles.HASH]
    assert schema.kinds["income"] == "numeric"
    assert schema.kinds["region"] == "categorical"
    assert schema.kinds["day"] == "date"
    assert table["day"].iloc[0] == 18_262  # days from 1970 to 2020
    assert (roles.row_hashes(table) == table[roles.HASH]).all()


def read_again(settings, schema, card=None):
    """Read new rows for a model of ours, or with an empty card for one of another program."""
    preprocessor = SimpleNamespace(schema=schema)
    card = {"unit": "€"} if card is None else card
    parent = SimpleNamespace(roles=None, preprocessor=preprocessor, card=card)
    table, role, _ = reading.read_again(settings, parent, generation=3)
    assert (table[roles.GENERATION] == 3).all()
    assert ((table[roles.ROLE] == roles.HELD_OUT) == role.held_out(table)).all()
    return table.drop(columns=[roles.ROLE, roles.GENERATION])


def test_blocks_give_the_table_that_one_block_gives(source):
    rows = rows_of()
    whole, schema, notes = reading.read_first(source(rows))
    parts, same, other_notes = reading.read_first(source(*blocks_of(rows, 50, 51)))
    pd.testing.assert_frame_equal(parts, whole)
    assert (same, other_notes) == (schema, notes)


def test_same_rows_from_parquet_have_the_same_hashes(tmp_path):
    rows = rows_of()
    rows.to_csv(tmp_path / "rows.csv", index=False)
    table, schema, _ = reading.read_first(settings_for(tmp_path / "rows.csv"))
    typed = rows.astype({"income": float, "y": float, "customer": int})
    typed.assign(day=pd.to_datetime(rows["day"])).to_parquet(tmp_path / "rows.parquet")
    again = read_again(settings_for(tmp_path / "rows.parquet"), schema)
    assert (again[roles.HASH] == table[roles.HASH]).all()


def test_groups_stay_with_their_rows_where_rows_are_left_out(source):
    rows = rows_of()
    rows.loc[[5, 70], "y"] = "999999999"
    chosen = source(*blocks_of(rows, 60))
    chosen.group = "customer"
    table, _, notes = reading.read_first(chosen)
    kept = rows.drop(index=[5, 70])["customer"]
    expected = roles.hashed(pd.DataFrame({"x": range(len(kept))}), kept.reset_index(drop=True))
    assert table[roles.GROUP].tolist() == expected[roles.GROUP].tolist()
    lines = re.findall(r"\d+", " ".join(note for note in notes if "absurd" in note))
    assert {"7", "72"} <= set(lines)


def test_lines_in_warnings_are_those_of_the_file_in_later_blocks_and_after_rows_left_out(source):
    rows = rows_of()
    rows.loc[5, "y"] = "999999999"
    rows.loc[100, "income"] = "999999999"
    for cuts in ((), (60,)):
        _, _, notes = reading.read_first(source(*blocks_of(rows, *cuts)))
        assert any("'income' holds 999999999 in line 102" in note for note in notes), notes


def test_line_of_a_missing_target_in_a_later_block_is_that_of_the_file(source):
    rows = rows_of()
    rows.loc[100, "y"] = None
    with pytest.raises(UserError, match="line 102"):
        reading.read_first(source(*blocks_of(rows, 60)))


def test_new_rows_follow_the_schema_of_the_model(source):
    _, schema, _ = reading.read_first(source(rows_of()))
    new = rows_of(seed=1)[["y", "day", "region", "income", "customer"]]
    table = read_again(source(new.assign(region="7")), schema)
    assert list(table) == [*schema.features, "y", roles.HASH]
    assert set(table["region"]) == {"7"}
    settings = source(new.assign(extra="1"))
    with pytest.raises(UserError, match="'extra'"):
        read_again(settings, schema)
    read_again(settings, schema, card={})


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"group": "branch"}, "no column 'branch' of groups"),
        ({"time": "region"}, "--time 'region' is no date or number"),
        ({"time": "branch"}, "--time 'branch' is no date or number"),
        ({"target": "branch"}, "'branch'"),
    ],
)
def test_column_that_cannot_serve_is_refused_in_one_line(source, option, words):
    settings = source(rows_of())
    vars(settings).update(option)
    with pytest.raises(UserError, match=words) as caught:
        reading.read_first(settings)
    assert "\n" not in str(caught.value)


def test_target_that_is_the_same_in_every_block_is_refused(source):
    rows = rows_of()
    rows["y"] = "7"
    with pytest.raises(UserError, match="7 in every row"):
        reading.read_first(source(*blocks_of(rows, 60)))
