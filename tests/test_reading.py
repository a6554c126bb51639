"""Claims about toolkit/reading.py: blocks of a source become one table, as if read at once."""

import gc
import itertools
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from toolkit import reading, roles, tables
from toolkit.encoding import Preprocessor
from toolkit.errors import UserError
from toolkit.kinds import infer_schema

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
    said = dict.fromkeys(reading.FLAGS, ())
    defaults = {"target": "y", "query": None, **dict.fromkeys(reading.OWN)}
    defaults |= {"test_size": 0.2, "seed": 42, "workers": 1}
    return SimpleNamespace(**{"data": str(data), **said, **defaults, **options})


@pytest.fixture
def source(monkeypatch):
    """Give the function that makes reading find these blocks of rows."""

    def use(*blocks, **options):
        table = tables.Table("rows.csv", [[lambda: iter(blocks)]], first_line=2)
        monkeypatch.setattr(reading.tables, "open_table", lambda *_: table)
        return settings_for("rows.csv", **options)

    return use


def blocks_of(rows, *cuts):
    edges = [0, *cuts, len(rows)]
    return [rows[a:b].reset_index(drop=True) for a, b in itertools.pairwise(edges)]


def test_file_becomes_a_conformed_table_with_the_hashes_of_its_rows(tmp_path):
    rows_of().to_csv(tmp_path / "rows.csv", index=False)
    rows, schema, _ = reading.read_first(settings_for(tmp_path / "rows.csv"))
    table = rows.table
    assert list(table) == [*schema.features, "y", roles.HASH]
    assert schema.kinds["income"] == "numeric"
    assert schema.kinds["region"] == "categorical"
    assert schema.kinds["day"] == "date"
    assert table["day"].iloc[0] == 18_262  # days from 1970 to 2020
    assert (roles.row_hashes(table) == table[roles.HASH]).all()


def test_three_decimals_are_decimals_where_commas_separate_and_a_question_elsewhere(tmp_path):
    rows = pd.DataFrame({"a": ["1.234", "7.719"] * N, "y": map(str, range(2 * N))})
    for separator in ",; ":
        file = tmp_path / f"{ord(separator)}.csv"
        rows.to_csv(file, index=False, sep=separator)
        if separator == ",":
            assert reading.read_first(settings_for(file))[0].table["a"][1] == 7.719
        else:
            with pytest.raises(UserError, match="thousands or as a decimal"):
                reading.read_first(settings_for(file))


def test_columns_may_be_called_as_ours_might_be(source):
    names = ["__role", "__hash", "hash", "role", "index", "generation"]
    rows = rows_of().assign(**dict.fromkeys(names, ["1", "2", "3"] * 40))
    read, schema, _ = reading.read_first(source(rows))
    table = roles.Roles.choose(read.table, 0.2, 42).assign(read.table, 0)
    assert {*names} <= {*schema.features}
    assert list(roles.own_columns(table)) == [*schema.features, "y"]


def read_again(settings, schema, card=None):
    """Read new rows for a model of ours, or with an empty card for one of another program."""
    preprocessor = SimpleNamespace(schema=schema)
    card = {"unit": "€"} if card is None else card
    parent = SimpleNamespace(roles=None, preprocessor=preprocessor, card=card)
    rows, role, _ = reading.read_again(settings, parent, generation=3)
    table = rows.table
    assert (table[roles.GENERATION] == 3).all()
    assert ((table[roles.ROLE] == roles.HELD_OUT) == role.held_out(table)).all()
    return table.drop(columns=[roles.ROLE, roles.GENERATION])


def test_blocks_give_the_table_that_one_block_gives(source):
    rows = rows_of()
    whole, schema, notes = reading.read_first(source(rows))
    parts, same, other_notes = reading.read_first(source(*blocks_of(rows, 50, 51)))
    pd.testing.assert_frame_equal(parts.table, whole.table)
    assert (same, other_notes) == (schema, notes)


def test_same_rows_from_parquet_have_the_same_hashes(tmp_path):
    rows = rows_of()
    rows.to_csv(tmp_path / "rows.csv", index=False)
    first, schema, _ = reading.read_first(settings_for(tmp_path / "rows.csv"))
    typed = rows.astype({"income": float, "y": float, "customer": int})
    typed.assign(day=pd.to_datetime(rows["day"])).to_parquet(tmp_path / "rows.parquet")
    again = read_again(settings_for(tmp_path / "rows.parquet"), schema)
    assert (again[roles.HASH] == first.table[roles.HASH]).all()


def test_groups_stay_with_their_rows_where_rows_are_left_out(source):
    rows = rows_of()
    rows.loc[[5, 70], "y"] = "999999999"
    chosen = source(*blocks_of(rows, 60))
    chosen.group = "customer"
    read, _, notes = reading.read_first(chosen)
    kept = rows.drop(index=[5, 70])["customer"]
    expected = roles.hashed(pd.DataFrame({"x": range(len(kept))}), kept.reset_index(drop=True))
    assert read.table[roles.GROUP].tolist() == expected[roles.GROUP].tolist()
    lines = re.findall(r"\d+", " ".join(note for note in notes if "absurd" in note))
    assert {"7", "72"} <= set(lines)


def weighted(places=(), value="0"):
    """Make rows with weights, as people write numbers; put a value into some lines of the file."""
    weights = [f"{number % 5 + 1} 234,5" for number in range(N)]
    for place in places:
        weights[place - 2] = value
    return rows_of().assign(w=weights)


def test_weights_are_read_as_numbers_and_are_no_feature(source):
    rows = weighted()
    rows.loc[[5, 70], "y"] = "999999999"  # left out, and the others keep their weights
    read, schema, _ = reading.read_first(source(*blocks_of(rows, 60), weight="w"))
    assert "w" in schema.dropped
    kept = np.delete(np.arange(N), [5, 70])
    assert roles.weights(read.table).tolist() == (1_000 * (kept % 5 + 1) + 234.5).tolist()
    assert list(roles.own_columns(read.table)) == [*schema.features, "y"]
    plain, _, _ = reading.read_first(source(rows.drop(columns="w")))
    pd.testing.assert_frame_equal(read.table.drop(columns=roles.WEIGHT), plain.table)


def test_rows_of_weight_zero_are_as_good_as_none(source, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 50)
    rows = weighted((3, 4, 90, 100))
    read, schema, notes = reading.read_first(source(*blocks_of(rows, 60), weight="w"))
    assert sum("whose weight 'w' is 0 are left out" in note for note in notes) == 1
    others = rows.drop(index=[1, 2, 88, 98]).reset_index(drop=True)
    alone, same, _ = reading.read_first(source(others, weight="w"))
    assert same == schema
    pd.testing.assert_frame_equal(read.table, alone.table)
    assert read.n_rows == N - 4


def test_target_may_be_the_weight(source):
    read, schema, _ = reading.read_first(source(rows_of(), weight="y"))
    assert (read.table[roles.WEIGHT] == read.table["y"]).all()
    assert schema.target.name == "y"


@pytest.mark.parametrize(
    ("value", "shown"),
    [("-1", "'-1'"), ("", "''"), ("inf", "'inf'"), ("1e300", "'1e300'"), ("many", "'many'")],
)
def test_what_is_no_weight_is_refused_with_its_lines(source, monkeypatch, value, shown):
    with pytest.raises(UserError) as caught:
        reading.read_first(source(*blocks_of(weighted((90,), value), 60), weight="w"))
    assert re.fullmatch(
        rf"the weight 'w' of rows\.csv is {shown} in line 90; expected a number from 0 on in every "
        "row: correct it, or write 0 where a row must not count",
        str(caught.value),
    )
    with pytest.raises(UserError, match=rf"is {shown} in lines 3, 90;"):
        reading.read_first(source(weighted((3, 90), value), weight="w"))
    monkeypatch.setattr(tables, "BLOCK_ROWS", 50)
    with pytest.raises(UserError, match=rf"is {shown} in line 90;"):
        reading.read_first(source(*blocks_of(weighted((90,), value), 60), weight="w"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            rows_of(),
            "rows.csv has no column 'w' of weights; expected how much each row counts:",
        ),
        (rows_of().assign(w="0"), "the weight 'w' is 0 in every row of rows.csv; expected numbers"),
    ],
    ids=["no column", "all zero"],
)
def test_weights_that_are_missing_or_all_zero_are_refused_in_any_training(source, rows, words):
    with pytest.raises(UserError, match=f"^{re.escape(words)} "):
        reading.read_first(source(rows, weight="w"))
    parent = weighing_parent(source)
    with pytest.raises(UserError, match=f"^{re.escape(words)} "):
        reading.read_again(source(rows), parent, 1)


def weighing_parent(source):
    read, schema, _ = reading.read_first(source(weighted(), weight="w"))
    role = replace(roles.Roles.choose(read.table, 0.2, 42), weight="w")
    return SimpleNamespace(roles=role, preprocessor=SimpleNamespace(schema=schema), card={"a": 1})


def test_retraining_inherits_the_weight_and_a_look_without_target_may_go_without(source):
    parent = weighing_parent(source)
    read, role, _ = reading.read_again(source(weighted()), parent, 1)
    assert role.weight == "w"
    assert roles.weights(read.table).tolist()[:2] == [1_234.5, 2_234.5]
    look = {"dry_run": True}
    read, *_ = reading.read_again(source(rows_of().drop(columns="y"), **look), parent, 1)
    assert read.table[roles.WEIGHT].tolist() == [1] * N
    read, *_ = reading.read_again(source(weighted().drop(columns="y"), **look), parent, 1)
    assert roles.weights(read.table).tolist()[:2] == [1_234.5, 2_234.5]
    for empty in ("", "NA"):  # the column is there, and nobody knows its values yet
        read, *_ = reading.read_again(source(weighted().assign(y=empty), **look), parent, 1)
        assert read.table["y"].isna().all()
    with pytest.raises(UserError, match="has no column 'w' of weights"):
        reading.read_again(source(rows_of(), **look), parent, 1)


def test_lines_in_warnings_are_those_of_the_file_in_later_blocks_and_after_rows_left_out(source):
    rows = rows_of()
    rows.loc[5, "y"] = "999999999"
    rows.loc[100, "income"] = "999999999"
    for cuts in ((), (60,)):
        _, _, notes = reading.read_first(source(*blocks_of(rows, *cuts)))
        assert any("'income' holds 999999999 in line 102" in note for note in notes), notes


def test_rows_that_belong_together_are_noticed_where_no_flag_holds_them_out(source):
    rng = np.random.default_rng(0)
    rows = rows_of().assign(y=np.repeat(rng.normal(size=N // 5), 5).round(4))
    words = "rows beside each other have alike targets"
    assert any(words in note for note in reading.read_first(source(rows))[2])
    for flag in ({"group": "customer"}, {"time": "day"}):
        assert not any(words in note for note in reading.read_first(source(rows, **flag))[2])


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


# --- more rows than memory -----------------------------------------------------------------------

MANY = 600  # rows, where IN_MEMORY is 100


@pytest.fixture
def many(source, monkeypatch):
    """Give the function that reads rows in blocks of 50 where 100 fit into memory."""
    monkeypatch.setattr(reading, "IN_MEMORY", 100)
    monkeypatch.setattr(tables, "BLOCK_ROWS", 50)

    def read(rows, **options):
        settings = source(*blocks_of(rows, *range(50, len(rows), 50)))
        vars(settings).update(options)
        return reading.read_first(settings)

    return read


def test_rows_that_fit_into_memory_are_one_block_and_in_no_file(many):
    rows, _, _ = many(rows_of(100))
    assert [block is rows.table for block in rows.blocks()] == [True]
    assert rows.n_rows == len(rows.table) == 100


def test_of_more_rows_a_sample_is_in_memory_and_all_are_in_files(many, source, monkeypatch):
    rows = rows_of(MANY)
    read, schema, notes = many(rows)
    assert "a uniform sample of 100 of them" in " ".join(notes)
    blocks = list(read.blocks())
    assert [len(block) for block in blocks] == [50] * 12
    together = pd.concat(blocks, ignore_index=True)
    monkeypatch.setattr(reading, "IN_MEMORY", MANY)
    pd.testing.assert_frame_equal(reading.read_first(source(rows))[0].table, together)
    assert read.n_rows == MANY
    assert len(read.table) == 100
    assert list(read.table) == [*schema.features, "y", roles.HASH]
    keys = roles.scrambled(together[roles.HASH].to_numpy(), roles.SAMPLE)
    smallest = together[keys <= np.sort(keys)[99]].reset_index(drop=True)
    pd.testing.assert_frame_equal(read.table, smallest)


def test_sample_is_the_same_whatever_the_order_of_the_rows(many):
    rows = rows_of(MANY)
    orders = rows, rows[::-1], rows.sample(frac=1, random_state=1)
    hashes = [set(many(order)[0].table[roles.HASH]) for order in orders]
    assert hashes[0] == hashes[1] == hashes[2]


def test_few_more_rows_than_the_sample_are_held_at_any_moment(many, monkeypatch):
    held, add = [], reading.Rows.add

    def watched(self, block):
        add(self, block)
        held.append(sum(map(len, self.parts)))

    monkeypatch.setattr(reading.Rows, "add", watched)
    many(rows_of(MANY))
    assert len(held) == 12
    assert max(held) <= 125


def test_folder_of_the_rows_is_gone_with_them(many):
    rows, _, _ = many(rows_of(MANY))
    folder = rows.files[0].parent
    assert len(list(folder.iterdir())) == 12
    del rows
    gc.collect()
    assert not folder.exists()


def test_latest_row_is_in_the_sample_where_time_holds_rows_out(many):
    rows = rows_of(MANY).sample(frac=1, random_state=1)
    read, _, _ = many(rows, time="day")
    last = pd.concat(read.blocks())["day"].max()
    assert read.table["day"].max() == last
    role = roles.Roles.choose(read.table, 0.2, 42, time="day")
    assert role.intervals[-1][1] == last
    assert len(read.table) <= 101


def test_blocks_are_encoded_as_one_table_would_be_without_the_rows_held_out(many):
    rows = rows_of(MANY)
    read, schema, _ = many(rows.assign(w=rows.index % 7), weight="w")
    role = roles.Roles.choose(read.table, 0.2, 42)
    train = read.table[~role.held_out(read.table)]
    preprocessor = Preprocessor.fit(train, schema, train["y"].to_numpy(), roles.folds(train))
    X, y, weights = read.encode_blocks(preprocessor, role, 2.0)
    table = pd.concat(read.blocks(), ignore_index=True)
    table = table[~role.held_out(table)]
    assert [len(each) for each in X] == [len(each) for each in y]
    assert len({len(each) for each in X[:-1]}) == 1, "each other length would be compiled anew"
    assert all(isinstance(each, np.memmap) and each.dtype == np.float32 for each in X)
    expected = preprocessor.transform(table, roles.folds(table))
    assert np.concatenate(X).tobytes() == expected.tobytes()
    assert np.concatenate(y).tolist() == table["y"].tolist()
    assert np.concatenate(weights).tolist() == (table[roles.WEIGHT] / 2).tolist()
    assert [len(each) for each in weights] == [len(each) for each in y]
    assert 0 < table[roles.WEIGHT].min() < table[roles.WEIGHT].max() == 6


def test_worker_without_a_training_row_has_empty_inputs(many):
    read, schema, _ = many(rows_of(MANY))
    role = roles.Roles.choose(read.table, 0.2, 42)
    table = read.table
    preprocessor = Preprocessor.fit(table, schema, table["y"].to_numpy(), roles.folds(table))
    every = replace(role, threshold=2**64 - 1)
    X, y, weights = read.encode(preprocessor, every, 1.0)
    assert (X.shape, y.shape, weights.shape) == ((0, preprocessor.width), (0,), (0,))


def test_shares_of_workers_are_joined_to_the_table_of_one_process(many, source):
    whole, schema, _ = many(rows_of(MANY), time="day")
    own = {"group": "", "time": "day", "weight": ""}
    shares = []
    for part in blocks_of(rows_of(MANY), 150, 420):
        source(*blocks_of(part, 70))
        table = reading.tables.open_table()
        read, _ = reading.read(schema, own, {}, table, table.blocks(), None)
        assert read.n_rows == len(part)
        shares.append(read)
    joined = reading.Rows("day", parts=[part for read in shares for part in read.parts])
    pd.testing.assert_frame_equal(joined.joined(), whole.table)


def test_workers_without_ray_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    rows_of().to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match=r"pip install -r requirements-scale\.txt"):
        reading.read_first(settings_for(tmp_path / "rows.csv", workers=2))


def test_line_of_a_wrong_cell_is_that_of_the_file_though_nothing_was_read_before(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("a,y\n1,2\n2,3\n3,4\n4,5\nx,6\n")
    schema, _ = infer_schema(pd.DataFrame({"a": [1.0, 2.0, 4.0], "y": [2.0, 3.0, 5.0]}), "y")
    source = tables.open_table(str(file))
    with pytest.raises(UserError, match="holds 'x' in line 6;"):
        reading.read(schema, dict.fromkeys(reading.OWN, ""), {}, source, source.blocks(), None)


def test_column_whose_values_begin_late_is_learnt_and_one_without_any_is_refused(
    source, monkeypatch
):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 30)
    rows = rows_of().assign(sensor=[None] * 90 + [f"{n / 7:.2f}" for n in range(30)])
    read, schema, _ = reading.read_first(source(*blocks_of(rows, 40, 80)))
    assert schema.kinds["sensor"] == "numeric"
    assert read.table["sensor"].notna().sum() == 30
    assert len(read.table) == N
    empty = rows.assign(sensor=None)
    with pytest.raises(UserError, match="empty in every row: 'sensor'"):
        reading.read_first(source(*blocks_of(empty, 40, 80)))
    assert len(reading.read_first(source(*blocks_of(empty, 40), drop=("sensor",)))[0].table) == N


@pytest.mark.parametrize(("separator", "weight"), [(",", "2.385"), (";", "2,385")])
def test_weights_of_three_decimals_are_read_as_the_file_writes_its_numbers(
    tmp_path, separator, weight
):
    rows = rows_of().assign(w=weight)
    if separator == ";":
        rows["income"] = rows["income"].str.replace(".", ",")
    rows.to_csv(tmp_path / "t.csv", index=False, sep=separator)
    read, _, _ = reading.read_first(settings_for(tmp_path / "t.csv", weight="w"))
    assert (roles.weights(read.table) == 2.385).all()


def test_no_message_shows_the_password_of_a_source(source):
    settings = source(rows_of(), target="none")
    settings.data = "postgresql://me:hun/ter@host/db?password=hunter2"
    with pytest.raises(UserError, match=r"postgresql://me:\*\*\*@host/db\?password=\*\*\* has no "):
        reading.read_first(settings)
