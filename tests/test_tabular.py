"""Claims about tabular.py: what is read, what is refused and how, and what the numbers are."""

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io

import tabular
from tabular import Schema, UserError

RNG = np.random.default_rng


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(function, *arguments, **options):
    """Return the words of a UserError, having made sure that they are one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(n=30, **columns):
    """Make n rows with a numeric column, a categorical one and a target; more on demand."""
    plain = {"x": np.arange(n) * 1.5, "c": (["a", "b", "b"] * n)[:n], "y": np.arange(n)}
    return pd.DataFrame(plain | columns)


def fitted(rows, schema=None):
    schema = schema or tabular.infer_schema(rows, "y")[0]
    conformed = tabular.conform(rows, schema)
    return schema, tabular.fit_preprocessor(conformed, schema)


# --- reading


@pytest.mark.parametrize(
    ("content", "remark"),
    [
        ("a,b\n1.5,é\n-2,\n", None),
        ("\ufeffa,b\r\n1.5,é\r\n-2,\r\n", None),
        ('"a","b"\n1.5,"é"\n-2,\n', None),
        ("\n\na,b\n1.5,é\n-2,\n", None),
        ("a;b\n1.5;é\n-2;\n", "';' between columns"),
        ("a;b\n1,5;é\n-2;\n", "';' between columns and a decimal comma"),
        ("a\tb\n1.5\té\n-2\t\n", "between columns"),
    ],
    ids=["comma", "bom and crlf", "quotes", "blank first", "semicolon", "decimal comma", "tab"],
)
def test_same_table_is_read_whatever_the_marks_between_its_fields(tmp_path, content, remark):
    rows, notes = tabular.read_rows(write(tmp_path / "rows.csv", content))
    expected = pd.DataFrame({"a": [1.5, -2], "b": ["é", None]})
    pd.testing.assert_frame_equal(rows, expected.astype({"b": rows["b"].dtype}))
    assert len(notes) == (remark is not None)
    if remark:
        assert "rows.csv" in notes[0]
        assert notes[0].endswith(remark)


def test_decimal_comma_is_not_seen_where_the_comma_separates(tmp_path):
    rows, _ = tabular.read_rows(write(tmp_path / "rows.csv", "a,b\n1,5\n2,25\n"))
    assert rows["b"].tolist() == [5, 25]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.data"])
def test_parquet_is_read_and_recognised_without_its_ending(tmp_path, name):
    table().to_parquet(tmp_path / name)
    rows, notes = tabular.read_rows(tmp_path / name)
    pd.testing.assert_frame_equal(rows, table())
    assert notes == []


def test_folder_and_glob_are_read_as_one_table_in_the_order_of_the_names(tmp_path):
    first, second = table(20), table(25, x=7.0)
    second.to_csv(tmp_path / "2.csv", index=False)
    first.to_parquet(tmp_path / "1.parquet")
    write(tmp_path / "notes.txt", "not a table")
    expected = pd.concat([first, second], ignore_index=True)
    for path in (tmp_path, str(tmp_path / "[12].*")):
        pd.testing.assert_frame_equal(tabular.read_rows(path)[0], expected)


def test_folder_is_searched_whatever_the_case_of_the_endings(tmp_path):
    table().to_csv(tmp_path / "ROWS.CSV", index=False)
    assert len(tabular.read_rows(tmp_path)[0]) == 30


PARQUET = b"PAR1" + bytes(40)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "is empty; expected a CSV file"),
        ("a.csv", " \n\n", "is empty"),
        ("a.csv", "\ufeff\n", "is empty"),
        ("a.csv", "x,y\n", "a header but no rows; expected at least 20"),
        ("a.csv", b"PK\3\4\0\0\0", "is a binary file; expected CSV text or Parquet"),
        ("a.csv", "x,y\n1,2\n".encode("utf-16"), "is a binary file"),
        ("a.csv", "nom,y\né,2\n".encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8 a.csv"),
        # The wrong byte lies behind the part of the file that is looked at first.
        ("a.csv", b"nom,y\n" + 30_000 * b"e,2\n" + b"\xe9,2\n", "is not UTF-8 text"),
        ("a.csv", "x,x,y\n1,2,3\n", "two columns named 'x'; rename or remove one"),
        ("a.csv", "x,y\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        ("a.csv", "x,y\n1,2,3\n1,2,3\n", "as many fields as the header"),
        ("a.csv", "x,c,y\n1,a,3\n1,2\n", "as many fields as the header"),
        ("a.csv", 'x,y\n"1,2\n1,2\n', "is not a regular table"),
        ("a.parquet", b"", "is not a complete Parquet file"),
        ("a.parquet", PARQUET, "not a complete Parquet file"),
        ("a.data", PARQUET, "write or copy it again"),
    ],
)
def test_file_that_is_no_table_is_refused_by_name(tmp_path, name, content, words):
    message = refusal(tabular.read_rows, write(tmp_path / name, content))
    assert name in message
    assert words in message


def test_parquet_cut_off_in_the_middle_is_refused(tmp_path):
    table(500).to_parquet(tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    message = refusal(tabular.read_rows, write(tmp_path / "cut.parquet", content[:-100]))
    assert "cut.parquet is not a complete Parquet file" in message


@pytest.mark.parametrize("path", ["none.csv", "none/", "*.csv", "x" * 300])
def test_path_without_a_file_is_refused(tmp_path, path):
    assert "check the path after --data" in refusal(tabular.read_rows, tmp_path / path)


def test_empty_folder_and_unlike_files_are_refused(tmp_path):
    assert "holds no .csv or .parquet file" in refusal(tabular.read_rows, tmp_path)
    table().to_csv(tmp_path / "1.csv", index=False)
    table(more=1).to_csv(tmp_path / "2.csv", index=False)
    message = refusal(tabular.read_rows, tmp_path)
    assert "2.csv" in message
    assert "give files with the same columns" in message


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", "x,y\n1,2\n")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", denied)  # root may read what chmod forbids
    assert "Permission denied; check the permissions" in refusal(tabular.read_rows, path)


# --- target


def test_target_comes_back_as_float64_with_its_index():
    rows = table().set_index(np.arange(30) + 100)
    y = tabular.check_target(rows, "y")
    pd.testing.assert_series_equal(y, rows["y"].astype(float))
    for values in ([True, False] * 15, [str(i) for i in range(30)], pd.array(range(30), "Int64")):
        y = tabular.check_target(table(y=values), "y")
        np.testing.assert_array_equal(y, [float(v) for v in values])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["low", "high"] * 15, "column 'y' of a.csv holds 'low' in line 2"),
        ([*range(28), "much", "more"], "holds 'much' in line 30"),
        ([*range(28), None, None], "2 of 30 rows in a.csv have no finite 'y' (lines 30, 31)"),
        ([np.inf, *range(28), -np.inf], "2 of 30 rows in a.csv have no finite 'y' (lines 2, 31)"),
        ([np.nan] * 30, "30 of 30 rows in a.csv have no finite 'y' (lines 2, 3, 4, 5, 6, …)"),
        (pd.array([None, *range(29)], "Int64"), "(lines 2)"),
        ([5] * 30, "the target 'y' is 5 in every row of a.csv; expected a column that varies"),
        (pd.date_range("2026-01-01", periods=30), "expected a number"),
    ],
)
def test_target_that_cannot_be_learned_is_refused_with_count_and_lines(values, words):
    assert words in refusal(tabular.check_target, table(y=values), "y", "a.csv")


def test_missing_target_column_and_too_few_rows_are_refused():
    message = refusal(tabular.check_target, table(), "price", "a.csv")
    assert "a.csv has no column 'price' to learn; its columns are x, c, y" in message
    assert "--target" in message
    tabular.check_target(table(20), "y")
    message = refusal(tabular.check_target, table(19), "y", "a.csv")
    assert message == "a.csv has 19 rows; expected at least 20: add rows"


# --- columns


def test_columns_are_told_apart_by_what_they_hold():
    rows = table(
        flag=[True, False] * 15,
        maybe=[True, None, False] * 10,
        name=[f"person {i}" for i in range(30)],
        day=pd.date_range("2026-01-01", periods=30),
        number=[str(i / 2) for i in range(30)],
        ten=[f"group {i % 10}" for i in range(30)],
        whole=pd.array([1, None, 3] * 10, "Int64"),
    )
    schema, notes = tabular.infer_schema(rows, "y")
    assert schema.numeric == ("x", "number", "whole")
    assert schema.categorical == ("c", "flag", "maybe", "ten")
    assert schema.dropped == ("name", "day")
    assert schema.features == schema.numeric + schema.categorical
    assert schema.kinds["x"] == "numeric"
    assert schema.kinds["c"] == "categorical"
    assert "column 'name' is left out: 30 different texts in 30 rows" in notes[0]
    assert "column 'day' is left out: dates are not supported" in notes[1]


@pytest.mark.parametrize(("n", "distinct", "kept"), [(12, 10, True), (12, 11, False)])
def test_few_rows_may_all_differ_in_ten_texts_before_they_count_as_names(n, distinct, kept):
    rows = table(n, z=[f"text {i % distinct}" for i in range(n)])
    assert ("z" in tabular.infer_schema(rows, "y")[0].categorical) is kept


def test_dropped_columns_are_no_features_and_unknown_ones_are_refused():
    schema, _ = tabular.infer_schema(table(), "y", ["c"])
    assert schema == Schema("y", ("x",), (), ("c",))
    for name in ("q", "y"):
        message = refusal(tabular.infer_schema, table(), "y", [name])
        assert f"--drop '{name}' is no feature column; the columns are x, c" in message
    assert "no usable feature" in refusal(tabular.infer_schema, table(), "y", ["x", "c"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([None] * 30, "column 'z' is empty in every training row"),
        ([*range(28), "many", 3], "'many' in line 30"),
    ],
)
def test_column_that_cannot_be_used_is_refused(values, words):
    message = refusal(tabular.infer_schema, table(z=values), "y")
    assert words in message
    assert message.count("column 'z'") == 1


def test_at_most_a_thousand_categories_are_taken():
    rows = table(4_000, z=[f"city {i % 1_000}" for i in range(4_000)])
    assert "z" in tabular.infer_schema(rows, "y")[0].categorical
    rows.loc[0, "z"] = "one more"
    message = refusal(tabular.infer_schema, rows, "y")
    assert message.startswith("column 'z' has 1,001 categories; expected at most 1,000")
    assert "--drop 'z'" in message


def test_conform_brings_columns_into_order_and_ignores_others_unless_strict():
    schema = Schema("y", ("x",), ("c",), dropped=("name",))
    rows = table(name="left out", y=1.0)[["c", "name", "x", "y"]]
    conformed = tabular.conform(rows, schema, strict=True)
    assert list(conformed.columns) == ["x", "c"]
    assert conformed["x"].dtype == np.float64
    pd.testing.assert_frame_equal(conformed, tabular.conform(rows.assign(new=1), schema))
    message = refusal(tabular.conform, rows.assign(new=1), schema, source="b.csv", strict=True)
    assert "b.csv has the column 'new', which the model was not trained on" in message


@pytest.mark.parametrize("strict", [True, False])
def test_conform_refuses_a_missing_column_and_text_among_numbers(strict):
    schema = Schema("y", ("x",), ("c",))
    options = {"source": "b.csv", "strict": strict}
    message = refusal(tabular.conform, table().drop(columns="c"), schema, **options)
    assert "b.csv has no column 'c'; the model needs x, c" in message
    message = refusal(tabular.conform, table(x=["1", "two", "3"] * 10), schema, **options)
    assert "column 'x' of b.csv holds 'two' in line 3" in message
    assert "expected a number" in message
    assert "10 such rows" in message


# --- preprocessor


def test_statistics_are_those_worked_out_by_hand():
    rows = pd.DataFrame({"x": [0.0, 2, 4, None], "c": ["b", "a", "b", None]})
    schema = Schema("y", ("x",), ("c",))
    _, preprocessor = fitted(rows, schema)
    # Mean 2 of the three numbers; with it in the gap, the variance is (4 + 0 + 4 + 0) / 4.
    root = np.sqrt(2)
    expected = [[-root, 0, 1], [0, 1, 0], [root, 0, 1], [0, 0, 1]]  # x, c is a, c is b
    X = tabular.encode(rows, preprocessor)
    assert X.dtype == np.float32
    np.testing.assert_allclose(X, expected, rtol=1e-6)
    unseen = tabular.encode(pd.DataFrame({"x": [2.0], "c": ["z"]}), preprocessor)
    np.testing.assert_array_equal(unseen, [[0, 0, 0]])


MIXED = Schema("y", ("float", "int"), ("text", "flag", "category", "mixed"))


def mixed_rows(seed, n=60, unseen=False):
    """Draw rows of every kind of column, with gaps, and on demand with unseen categories."""
    rng = RNG(seed)
    more = ["unseen", "2.5"] if unseen else []
    rows = pd.DataFrame(
        {
            "float": rng.normal(3, 50, n),
            "int": pd.array(rng.integers(-5, 5, n), "Int64"),
            "text": rng.choice(["é", "b", " c", "", *more], n),
            "flag": rng.choice([True, False], n),
            "category": pd.Categorical(rng.choice(["u", "v", "w", *more], n)),
            "mixed": rng.choice(np.array(["k", 1, 2.0, True, *more], dtype=object), n),
        }
    )
    if unseen:  # dtypes that training did not see either
        rows["float"] = rows["float"].astype(object if seed % 2 else "Float64")
        rows["text"] = rows["text"].astype("category" if seed % 2 else "string")
        rows["flag"] = rows["flag"].astype("boolean" if seed % 2 else "category")
        rows["mixed"] = rows["mixed"].map(str)
    return rows.mask(rng.random(rows.shape) < 0.15)


@pytest.mark.parametrize("seed", range(8))
def test_encode_equals_scikit_learns_transform_bit_for_bit(seed):
    _, preprocessor = fitted(mixed_rows(100 + seed), MIXED)
    for rows in (mixed_rows(100 + seed), mixed_rows(seed, 200, unseen=True)):
        conformed = tabular.conform(rows, MIXED)
        expected = preprocessor.transform(tabular._sklearn_frame(conformed)).astype(np.float32)
        np.testing.assert_array_equal(tabular.encode(rows, preprocessor), expected)
        np.testing.assert_array_equal(tabular.encode(conformed, preprocessor), expected)


def test_number_true_and_text_of_the_same_value_are_the_same_category():
    rows = table(c=["1", "True", "k"] * 10)
    _, preprocessor = fitted(rows, Schema("y", (), ("c",)))
    expected = tabular.encode(rows[:2], preprocessor)
    assert expected.sum() == 2
    for one, true in ((1, True), (1.0, np.True_), (np.int8(1), "True"), ("1", True)):
        same = pd.DataFrame({"c": pd.Series([one, true], dtype=object)})
        np.testing.assert_array_equal(tabular.encode(same, preprocessor), expected)


def test_encode_ignores_column_order_and_extra_columns_and_the_index():
    rows = mixed_rows(0)
    _, preprocessor = fitted(rows, MIXED)
    shuffled = rows[rows.columns[::-1]].assign(more="x").set_index(np.zeros(len(rows), int))
    expected = tabular.encode(rows, preprocessor)
    np.testing.assert_array_equal(tabular.encode(shuffled, preprocessor), expected)
    assert tabular.encode(rows[:0], preprocessor).shape == (0, expected.shape[1])


def test_other_rows_do_not_change_what_was_fitted():
    _, preprocessor = fitted(mixed_rows(0), MIXED)
    before = joblib.hash(preprocessor)
    tabular.encode(mixed_rows(1, 500, unseen=True), preprocessor)
    tabular.widen_preprocessor(
        preprocessor, tabular.conform(mixed_rows(2, unseen=True), MIXED), MIXED
    )
    assert joblib.hash(preprocessor) == before


@pytest.mark.parametrize(
    "value", [1e300, -1e300, 1e30, np.inf, -np.inf, "inf", pytest.param(10**400, id="10**400")]
)
def test_number_too_large_to_be_real_is_refused_when_scored(value):
    _, preprocessor = fitted(table())
    rows = table(x=[*range(29), value])
    assert "column 'x'" in refusal(tabular.encode, rows, preprocessor)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("value", [1e300, np.inf, -np.inf])
def test_number_too_large_to_be_real_is_refused_when_trained_on(value):
    def fit_and_encode():
        rows = table(x=[*range(29), value])
        return tabular.encode(rows, fitted(rows)[1])

    assert "column 'x'" in refusal(fit_and_encode)


def test_encode_features_refuses_a_missing_column():
    schema, preprocessor = fitted(table())
    assert "no column 'c'" in refusal(
        tabular.encode_features, table().drop(columns="c"), schema, preprocessor
    )
    np.testing.assert_array_equal(
        tabular.encode_features(table(), schema, preprocessor),
        tabular.encode(table(), preprocessor),
    )


@pytest.mark.parametrize("widened", [False, True])
def test_preprocessor_survives_skops(widened):
    rows, other = mixed_rows(0), mixed_rows(1, 200, unseen=True)
    _, preprocessor = fitted(rows, MIXED)
    if widened:
        preprocessor, _ = tabular.widen_preprocessor(
            preprocessor, tabular.conform(other, MIXED), MIXED
        )
    again = skops.io.loads(skops.io.dumps(preprocessor), trusted=["numpy.dtype"])
    for part in (rows, other):
        np.testing.assert_array_equal(
            tabular.encode(part, again), tabular.encode(part, preprocessor)
        )
    schema = tabular.schema_of(again, "y")
    assert schema.features == MIXED.features
    assert schema.kinds == MIXED.kinds


def test_preprocessor_of_another_make_is_used_as_it_is():
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import OneHotEncoder

    other = make_column_transformer((OneHotEncoder(), ["c"]), ("passthrough", ["x"]))
    expected = other.fit_transform(table())
    np.testing.assert_array_equal(
        tabular.encode(table(), other), np.asarray(expected, dtype=np.float32)
    )
    assert not tabular.is_ours(other)


# --- widening


def test_widening_keeps_known_columns_and_appends_new_ones():
    schema, parent = fitted(table(c=["a", "b", "b"] * 10, d=["p", "q"] * 15))
    known = table(c=["a", "b", None] * 10, d=["p", None] * 15)
    before = tabular.encode(known, parent)

    def widen(preprocessor, **columns):
        rows = tabular.conform(table(**columns), schema)
        return tabular.widen_preprocessor(preprocessor, rows, schema)

    child, new = widen(parent, c=["new", "also", "b"] * 10, d=["p", "r"] * 15)
    assert new == {"c": ["also", "new"], "d": ["r"]}
    grandchild, newer = widen(child, c=["a", "new", "last"] * 10, d="r", x=1e6)
    assert newer == {"c": ["last"]}
    for preprocessor, n_new in ((child, 3), (grandchild, 4)):
        after = tabular.encode(known, preprocessor)
        # A gap keeps the parent's most frequent value ("b"), and x the parent's mean and scale.
        np.testing.assert_array_equal(after, np.pad(before, ((0, 0), (0, n_new))))
    unseen = tabular.encode(table(3, c=["also", "new", "last"], d=["r", "p", "r"]), grandchild)
    expected = [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]]  # c: also, new; d: r; c: last
    np.testing.assert_array_equal(unseen[:, -4:], expected)
    np.testing.assert_array_equal(unseen[:, 1:3], 0)
    rows = tabular.conform(table(3, c=["also", None, "last"], d=["r", None, "z"]), schema)
    np.testing.assert_array_equal(
        tabular.encode(rows, grandchild),
        grandchild.transform(tabular._sklearn_frame(rows)).astype(np.float32),
    )


def test_widening_without_a_new_category_gives_the_same_object_back():
    schema, parent = fitted(table())
    rows = tabular.conform(table(c=["a", None, "b"] * 10), schema)
    again, new = tabular.widen_preprocessor(parent, rows, schema)
    assert again is parent
    assert new == {}


# --- hashes


def hashes(rows, schema=MIXED):
    return tabular.row_hashes(tabular.conform(rows, schema), rows["y"])


def test_hashes_do_not_depend_on_the_file_they_came_in(tmp_path):
    rng = RNG(0)
    rows = table(500, x=rng.normal(size=500), flag=rng.choice([True, False], 500))
    rows.loc[::7, ["x", "c"]] = None
    schema = Schema("y", ("x",), ("c", "flag"))
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows.to_csv(tmp_path / "french.csv", index=False, sep=";", decimal=",")
    rows[["flag", "y", "c", "x"]].to_parquet(tmp_path / "rows.parquet")
    expected = hashes(rows, schema)
    assert expected.dtype == np.uint64
    for name in ("rows.csv", "french.csv", "rows.parquet"):
        np.testing.assert_array_equal(
            hashes(tabular.read_rows(tmp_path / name)[0], schema), expected
        )


def test_hashes_do_not_depend_on_the_dtype_or_on_other_rows():
    rows = mixed_rows(0).assign(y=np.arange(60))
    expected = hashes(rows)
    others = rows.astype({"int": object, "text": "category", "category": "string", "y": "float32"})
    np.testing.assert_array_equal(hashes(others), expected)
    np.testing.assert_array_equal(hashes(rows[10:20]), expected[10:20])
    whole = rows.assign(float=rows["float"].round())
    np.testing.assert_array_equal(hashes(whole), hashes(whole.astype({"float": "Int64"})))


def test_hashes_differ_as_soon_as_one_value_does():
    plain = dict(zip([*MIXED.features, "y"], [1.0, 2, "a", "True", "u", "k", 1.0], strict=True))
    others = [
        *({name: 9} for name in ("float", "int", "y")),
        *({name: "z"} for name in MIXED.categorical),
        {"float": 2, "int": 1},  # two columns that change places
        {"text": "k", "mixed": "a"},
        {"text": None},
        {"text": ""},
        {"float": None},
    ]
    rows = pd.DataFrame([plain, *(plain | other for other in others)])
    assert len(set(hashes(rows))) == 1 + len(others)


# --- prediction


@pytest.fixture(scope="module")
def network():
    import keras

    layers = [keras.layers.Dense(16, "relu"), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((7,)), *layers])


def test_row_alone_gets_the_same_bits_as_among_ten_thousand(network):
    X = RNG(0).normal(size=(10_000, 7))
    predictions = tabular.predict(network, X)
    assert predictions.shape == (10_000,)
    assert predictions.dtype == np.float64
    np.testing.assert_allclose(predictions, network.predict(X, verbose=0)[:, 0], atol=1e-5)
    for i in (0, 1, 255, 256, 8_191, 8_192, 9_999):
        assert tabular.predict(network, X[i : i + 1])[0] == predictions[i]
    np.testing.assert_array_equal(tabular.predict(network, X[:300]), predictions[:300])
    assert tabular.predict(network, X[:0]).shape == (0,)
