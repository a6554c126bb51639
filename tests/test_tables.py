"""Reading: whatever stands in a file, the same rows come out, or one line says why not."""

import gzip
import http.server
import os
import re
import sqlite3
import sys
import threading
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from toolkit import tables
from toolkit.columns import as_text
from toolkit.errors import UserError
from toolkit.tables import open_table

ROWS = pd.DataFrame(
    {
        "age": [41.5, 29.0, 63.25, 50.0],
        "zone": ["nord", "sud", "est", "sud"],
        "prix": [8648.0, 10135.0, 7710.5, 9001.0],
    }
)
CSV = ROWS.to_csv(index=False)
R_ROWS = ROWS.set_axis(range(1, 5)).to_csv()[1:]  # of its write.table


def read(table):
    """Read all rows of an open table into one."""
    return tables.together(list(table.blocks()))


def assert_same_rows(table, expected=ROWS):
    rows = read(table)
    assert list(rows.columns) == list(expected.columns)
    assert isinstance(rows.index, pd.RangeIndex)
    for name in expected.columns:
        found = rows[name].astype(object)
        if pd.api.types.is_numeric_dtype(expected[name]):
            found = pd.to_numeric(found)
        assert found.tolist() == expected[name].tolist()


def write(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def refused(source, **options):
    with pytest.raises(UserError) as caught:
        read(open_table(source, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "name", "note"),
    [
        (CSV, "t.csv", ""),
        (b"\xef\xbb\xbf" + CSV.encode(), "t.csv", ""),
        (CSV.replace("\n", "\r\n"), "t.csv", ""),
        (CSV.replace("\n", "\r"), "t.csv", ""),
        (CSV.replace(",", ";"), "t.csv", "';'"),
        (CSV.replace(",", "|"), "t.csv", "'|'"),
        (CSV.replace(",", "\t"), "t.tsv", "'\\t'"),
        (CSV.encode("utf-16"), "t.csv", "UTF-16"),
        (gzip.compress(CSV.encode(), mtime=0), "t.csv.gz", ""),
        ("sep=;\n" + CSV.replace(",", ";"), "t.csv", "';'"),
        ("Ventes 2024,,\n" + CSV, "t.csv", "header in line 2"),
        ("# export\n# source: SI\n\n" + CSV, "t.csv", "header in line 4"),
        (CSV + "Total,,35495\n", "t.csv", "total"),
        (CSV + "183.75,Total,35495\n", "t.csv", "total"),
        (CSV + ",,\n,,\n", "t.csv", "2 empty rows"),
        ('a 24" screen\n\n' + CSV, "t.csv", "above the header in line 3"),
        ('"a quote that nothing closes\n\n' + CSV, "t.csv", "above the header in line 3"),
        (ROWS.to_csv(), "t.csv", "without a name"),
        (ROWS.to_csv().replace(",age", "Unnamed: 0,age", 1), "t.csv", "without a name"),
        (CSV + "\nSource: the ministry\nRevised of May\n", "t.csv", "'Source: the ministry'"),
        (CSV + ',,\n"Source: INSEE, 2024",,\n', "t.csv", "below the table"),
        (CSV.replace("\n", ",\n").replace("prix,", "prix"), "t.csv", "without a name"),
        (CSV.replace("prix", "prix,"), "t.csv", ""),
        (CSV.replace(",", "  "), "t.txt", "blanks"),
        (CSV.replace(",", "\t", 2).replace(",", "  ").replace("sud", '"sud"'), "t.dat", "blanks"),
        (re.sub(",(?=[^,]*\n)", "\t", CSV.replace(",", "\t", 2)).replace(",", " "), "t", "blanks"),
        (ROWS.to_csv(sep=" ")[1:], "t.txt", "blanks"),
        (ROWS.to_json(orient="records", lines=True), "t.jsonl", ""),
        (ROWS.to_json(orient="records"), "t.json", ""),
        (ROWS.to_json(), "t.json", ""),
        (ROWS.to_json(orient="split"), "t.json", ""),
        (b"\xef\xbb\xbf" + ROWS.to_json(orient="records", lines=True).encode(), "t.jsonl", ""),
        (b"\xef\xbb\xbf" + ROWS.to_json(orient="records").encode(), "t.json", ""),
        (R_ROWS, "t.csv", "without a name"),
        (R_ROWS.replace(",", ";"), "t.csv", "without a name"),
        (CSV + "(4 rows)\n", "t.csv", "'(4 rows)'"),
        (CSV + "\n4 rows selected.\n", "t.csv", "'4 rows selected.'"),
    ],
)
def test_same_table_is_read_however_it_is_written(tmp_path, content, name, note):
    table = open_table(write(tmp_path, content, name))
    assert_same_rows(table)
    assert note in " ".join(table.notes)
    assert bool(note) == bool(table.notes)


def test_numbers_of_json_keep_their_last_bit(tmp_path):
    numbers = np.random.default_rng(0).normal(size=300)
    lines = "".join(f'{{"a": {number}, "b": {n}}}\n' for n, number in enumerate(numbers))
    rows = read(open_table(write(tmp_path, lines, "t.jsonl")))
    assert rows["a"].tolist() == numbers.tolist()


def test_text_that_parquet_holds_as_bytes_is_text_and_other_bytes_stay(tmp_path):
    content = {"a": ["é".encode(), b"b", None], "b": [b"\xff", b"\xfe\x01", b"c"]}
    pq.write_table(pa.table({name: pa.array(v) for name, v in content.items()}), tmp_path / "t.pq")
    rows = read(open_table(str(tmp_path / "t.pq")))
    assert rows["a"].astype(object).tolist()[:2] == ["é", "b"]
    assert rows["b"].astype(object).tolist() == content["b"]


def test_workbook_of_another_kind_is_called_one(tmp_path):
    for name in ("mimetype", "[Content_Types].xml"):
        with zipfile.ZipFile(tmp_path / "t.ods", "w") as archive:
            archive.writestr(name, "")
            archive.writestr("content.xml", "<a/>")
        assert "is a workbook; " in refused(str(tmp_path / "t.ods"))


def test_zip_parquet_and_feather_are_read_with_and_without_their_ending(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("inner.csv", CSV)
    ROWS.to_parquet(tmp_path / "t.parquet")
    ROWS.to_parquet(tmp_path / "none")
    ROWS.to_feather(tmp_path / "t.feather")
    for name in ("t.zip", "t.parquet", "none", "t.feather"):
        assert_same_rows(open_table(str(tmp_path / name)))


def test_csv_stays_as_it_is_written_and_empty_cells_are_missing(tmp_path):
    rows = read(open_table(write(tmp_path, 'a,b\n00042,"1 234,50"\n,n.c.\n"",\n2A,x\n')))
    assert rows["a"].tolist()[0] == "00042"
    assert rows["b"].tolist()[:2] == ["1 234,50", "n.c."]
    assert rows["a"].isna().tolist() == [False, True, True, False]


def test_text_of_a_typed_format_is_a_category_decimals_and_durations_are_numbers(tmp_path):
    rows = ROWS.assign(code=["01", "02", "75", "75"])
    rows["sum"] = pd.Series([1, 2, 3, 4], dtype=pd.ArrowDtype(pa.decimal128(9, 2)))
    rows["took"] = pd.to_timedelta([90, 3600, 1.5, None], unit="s")
    rows.to_parquet(tmp_path / "t.parquet")
    found = read(open_table(str(tmp_path / "t.parquet")))
    np.testing.assert_array_equal(found["took"], [90, 3600, 1.5, np.nan])
    assert isinstance(found["code"].dtype, pd.CategoricalDtype)
    assert found["sum"].dtype == np.float64


def test_first_line_is_the_line_of_the_first_row(tmp_path):
    def first_line(content):
        table = open_table(write(tmp_path, content))
        next(table.blocks())
        return table.first_line

    assert first_line(CSV) == 2
    assert first_line("# a\n\nTitle,,\n" + CSV) == 5
    assert first_line("sep=,\n" + CSV) == 3
    assert first_line('"age\nin years",zone,prix\n1,a,2\n3,b,4\n') == 3
    ROWS.to_parquet(tmp_path / "t.csv")
    assert first_line((tmp_path / "t.csv").read_bytes()) == 1


def lines_of(source, *places):
    table = open_table(str(source))
    read(table)
    return table.lines(np.array(places))


def test_path_may_begin_with_the_home_folder_or_be_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a#b").mkdir()
    write(tmp_path / "a#b", CSV)
    for place in ("~/a#b/t.csv", f"file://{tmp_path}/a#b/t.csv", f"file://{tmp_path}/a%23b/t.csv"):
        assert_same_rows(open_table(place), ROWS)


def test_last_cell_of_a_row_may_end_with_a_line_break(tmp_path):
    long = "x" * 300
    rows = "".join(f'{n},{long},"good\n"\n' for n in range(9_000))
    table = read(open_table(write(tmp_path, f"a,b,c\n{rows}9000,x,end\n")))
    assert len(table) == 9_001
    assert set(table["c"]) == {"good\n", "end"}


@pytest.mark.parametrize("mark", [",", ";"])
def test_lines_are_those_of_the_file_behind_empty_ones_and_cells_of_several(tmp_path, mark):
    lines = ["nom,note,prix", '1,"a', "", 'b",3', "", "2,c,4", '3, "d",5', "4,e,6"]
    for rows, expected in ((lines, "lines 2, 6, 7, 8"), (lines[:6] + lines[7:], "lines 2, 6, 7")):
        path = tmp_path / "t.csv"
        path.write_text("\r\n".join(rows).replace(",", mark) + "\r\n", newline="")
        assert lines_of(path, *range(expected.count(",") + 1)) == expected


def test_lines_of_several_files_are_named_with_their_file(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text(CSV)
    ROWS.to_parquet(tmp_path / "d.parquet")
    n = len(ROWS)
    assert lines_of(tmp_path, 1, n, n + 1) == "lines 3 (a.csv) and 2 more"
    assert lines_of(tmp_path, n, n + 1) == "lines 2, 3 (b.csv)"
    assert lines_of(tmp_path, 3 * n - 1) == f"line {n + 1} (c.csv)"
    assert lines_of(tmp_path / "b.csv", 1) == "line 3"
    table = open_table(str(tmp_path))
    assert [len(rows) for rows in table.blocks()] == [4 * n]
    assert table.lines(np.array([0]), n_before=n + 1) == "line 3 (b.csv)"


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_western_text_that_is_not_utf_8_is_recognised_and_noted(tmp_path, encoding):
    cities = ["Orléans", "Besançon", "Nîmes", "Châlons-en-Champagne", "Saint-Étienne", "Aÿ"] * 9
    content = "ville,prix\n" + "".join(f"{city},{n}\n" for n, city in enumerate(cities))
    table = open_table(write(tmp_path, content.encode(encoding)))
    assert read(table)["ville"].tolist() == cities
    assert "Windows-1252" in table.notes[0]


@pytest.mark.parametrize(
    "words",
    [
        *[["été"], ["Île"], ["où", "ça"], ["N°4", "O'Neil"], ["80 €", "1\u00a0234 €"], ["créés"]],
        *[["« été »"], ["Zürich"], ["ação"], ["niño", "¿qué?"], ["Malmö"], ["20 m²", "5 µg"]],
    ],
)
def test_a_few_short_western_words_are_enough(tmp_path, words):
    content = "mot,n\n" + "".join(f"{word},{n}\n" for n in range(9) for word in words)
    table = open_table(write(tmp_path, content.encode("cp1252")))
    assert read(table)["mot"].tolist() == words * 9


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("cp1251", ["Москва", "синий", "да"]),
        ("gb18030", ["北京", "上海", "红色"]),
        ("iso8859-15", ["80 €", "œuvre d'été"]),
    ],
)
def test_other_alphabets_and_the_euro_of_latin_9_are_not_taken_for_windows_1252(
    tmp_path, encoding, words
):
    content = "mot,n\n" + "".join(f"{word},{n}\n" for n in range(9) for word in words)
    table = open_table(write(tmp_path, content.encode(encoding)))
    assert read(table)["mot"].tolist() == words * 9


def test_total_in_the_index_that_pandas_wrote_is_found(tmp_path):
    rows = pd.DataFrame({"zone": ["a", "b"] * 5, "n": range(10)})
    rows.loc["Total"] = ["", 1]
    table = open_table(write(tmp_path, rows.to_csv()))
    assert read(table)["n"].tolist() == [str(n) for n in range(10)]
    assert "total ('Total')" in " ".join(table.notes)


def test_total_in_the_index_of_another_file_takes_no_row_from_the_last(tmp_path):
    rows = pd.DataFrame({"zone": ["a", "b"] * 5, "n": range(10)})
    rows.rename(index={9: "Total"}).to_csv(tmp_path / "1.csv")
    rows.to_csv(tmp_path / "2.csv", index=False)
    assert read(open_table(str(tmp_path)))["n"].tolist() == [*map(str, [*range(9), *range(10)])]


def test_index_that_pandas_kept_is_plain_and_a_named_one_is_a_column(tmp_path):
    filtered = ROWS.sort_values("prix")
    filtered.to_parquet(tmp_path / "filtered.parquet")
    table = open_table(str(tmp_path / "filtered.parquet"))
    assert_same_rows(table, filtered)
    assert "without a name" in table.notes[0]
    ROWS.set_index(["age", "zone"]).to_parquet(tmp_path / "named.parquet")
    rows = read(open_table(str(tmp_path / "named.parquet")))
    assert sorted(rows.columns) == ["age", "prix", "zone"]
    assert isinstance(rows.index, pd.RangeIndex)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_partitions_of_a_folder_are_a_category(tmp_path, form):
    for zone, part in ROWS.groupby("zone"):
        folder = tmp_path / "t" / f"zone={zone}"
        folder.mkdir(parents=True)
        part = part.drop(columns="zone")
        if form == "csv":
            part.to_csv(folder / "part.csv", index=False)
        else:
            part.to_parquet(folder / "part.parquet", index=False)
    (tmp_path / "t" / "_SUCCESS").write_text("")
    rows = read(open_table(str(tmp_path / "t")))
    assert isinstance(rows["zone"].dtype, pd.CategoricalDtype)
    assert rows["zone"].tolist() == ["est", "nord", "sud", "sud"]
    assert len(read(open_table(str(tmp_path / "t" / "zone=*" / "*")))) == 4


def test_folder_and_glob_are_one_table_in_the_order_of_the_names(tmp_path):
    ROWS[2:].to_csv(tmp_path / "b.CSV", index=False)
    ROWS[:2].to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "notes.txt").write_text("not a table")
    assert_same_rows(open_table(str(tmp_path)))
    assert_same_rows(open_table(str(tmp_path / "*.[cC]*")))
    (tmp_path / "c.csv").write_text("other,names\n1,2\n")
    assert "has the columns ['other', 'names']" in refused(str(tmp_path))


def test_files_of_a_folder_may_write_text_categories_in_other_orders(tmp_path):
    ROWS[:2].to_parquet(tmp_path / "a.parquet", index=False)
    ROWS[2:][["prix", "zone", "age"]].to_parquet(tmp_path / "b.parquet", index=False)
    assert_same_rows(open_table(str(tmp_path)))


def test_blocks_are_read_again_and_together_hold_every_row_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 1000)
    rows = pd.DataFrame({"n": range(2500), "text": [f"t{n}" for n in range(2500)]})
    rows.to_parquet(tmp_path / "t.parquet")
    rows.to_csv(tmp_path / "t.csv", index=False)
    table = open_table(str(tmp_path / "t.parquet"))
    for _ in range(2):
        assert [len(block) for block in table.blocks()] == [1000, 1000, 500]
        assert all(block.index[0] == 0 for block in table.blocks())
    assert_same_rows(table, rows)
    assert_same_rows(open_table(str(tmp_path / "t.csv")), rows)


def test_delta_table_is_never_read_file_by_file(tmp_path, monkeypatch):
    (tmp_path / "d" / "_delta_log").mkdir(parents=True)
    ROWS.to_parquet(tmp_path / "d" / "part.parquet")
    monkeypatch.setitem(sys.modules, "deltalake", None)
    assert "pip install deltalake" in refused(str(tmp_path / "d"))
    for part in ("*.parquet", "part.parquet"):
        assert "give the folder" in refused(str(tmp_path / "d" / part))


def test_delta_table_is_read_in_its_valid_version(tmp_path):
    deltalake = pytest.importorskip("deltalake")
    deltalake.write_deltalake(str(tmp_path / "d"), pa.Table.from_pandas(ROWS))
    new = pa.Table.from_pandas(ROWS[:3])
    deltalake.write_deltalake(str(tmp_path / "d"), new, mode="overwrite")
    table = open_table(str(tmp_path / "d"))
    assert_same_rows(table, ROWS[:3])
    assert "version 1" in table.notes[0]


def test_excel_is_read_or_its_package_is_named(tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    path = tmp_path / "t.xlsx"
    title = pd.DataFrame([["Ventes 2024", None, None], list(ROWS)])
    pd.concat([title, ROWS.set_axis([0, 1, 2], axis=1)]).to_excel(path, index=False, header=False)
    table = open_table(str(path))
    assert_same_rows(table)
    assert table.first_line == 3


def test_of_an_excel_file_the_sheet_with_the_most_cells_is_read_and_named(tmp_path):
    pytest.importorskip("openpyxl")
    path = tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as file:
        pd.DataFrame({"Notes": ["source: survey", "amounts in €"]}).to_excel(
            file, sheet_name="about"
        )
        ROWS.to_excel(file, sheet_name="données", index=False)
    table = open_table(path)
    assert_same_rows(table)
    assert table.notes == ["t.xlsx has 2 sheets; only 'données' was read"]
    assert table.decimal == ""  # the commas are ours and tell nothing of the numbers


def test_excel_without_its_package_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "pip install openpyxl" in refused(write(tmp_path, b"PK\x03\x04", "t.xlsx"))


def test_query_is_read_from_a_database_and_a_password_is_not_shown(tmp_path):
    connection = sqlite3.connect(tmp_path / "t.db")
    ROWS.to_sql("loans", connection, index=False)
    connection.close()
    url = f"sqlite:///{tmp_path / 't.db'}"
    assert_same_rows(open_table(url, query="SELECT * FROM loans"))
    assert "failed" in refused(url, query="SELECT * FROM nothing")
    lost = f"sqlite:///{tmp_path / 'lost.db'}"
    assert "failed (there is no such file); check it" in refused(lost, query="SELECT * FROM cars")
    assert not (tmp_path / "lost.db").exists()
    assert "--query" in refused(url)
    assert "--query" in refused("t.csv", query="SELECT 1")
    message = refused("postgresql+nodriver://me:secret@host/name", query="SELECT 1")
    assert "secret" not in message


def test_url_of_a_local_file_is_read_and_an_unknown_one_is_refused(tmp_path):
    assert_same_rows(open_table((tmp_path / write(tmp_path, CSV)).as_uri()))
    assert "cannot read http" in refused("http://127.0.0.1:9/t.csv?token=secret")
    assert "secret" not in refused("http://127.0.0.1:9/t.csv?token=secret")
    assert "nosuch" in refused("nosuch://bucket/t.csv")


def test_web_address_is_read(tmp_path, web):
    write(tmp_path, CSV)
    assert_same_rows(open_table(f"{web}/t.csv"))
    assert "404" in refused(f"{web}/none.csv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b\n", "holds no rows"),
        (b"\x89PNG\0\1\2", "binary"),
        ("a,a\n1,2\n", "two columns named 'a'"),
        ("a,b,c\n1,2,3\n4,5,6\n1,2\n", "line 4 has 2 fields, not 3"),
        ("a,b,c\n1,2,3\n4,5,6\n1,2,3,4\n", "line 4 has 4 fields, not 3"),
        ('a,b,c\n1,"2\nx",3\n\n4,5,6\n1,2\n', "line 6 has 2 fields, not 3"),
        ("a,b,c\n1,2,3\n4,5,6\n1\n", "line 4 has 1 fields, not 3"),
        ("a,b,c\n1,2,3\n4,5,6\nDupont Jean,7\n", "line 4 has 2 fields, not 3"),
        ("a,b,c\n1,2,3\na note amid rows\n4,5,6\n", "line 3 has 1 fields, not 3"),
        ("a,b\n1,2,3\n4,5,6\n7,8,9\n", "has no header"),
        ("1.5,2,3\n4,5,6\n7,8,9\n", "has no header"),
        ("1.5 2 3\n4 5 6\n7 8 9\n", "has no header"),
        ('a,b\n1,"2\n3,4\n', "cannot be read as CSV"),
        (b"PAR1 and no more", "Parquet"),
        (gzip.compress(CSV.encode(), mtime=0)[:-12], "cannot read"),
    ],
)
def test_file_that_is_no_table_is_refused_in_one_line(tmp_path, content, words):
    name = "t.csv.gz" if isinstance(content, bytes) and content[:2] == b"\x1f\x8b" else "t.csv"
    assert words in refused(write(tmp_path, content, name))


def test_cut_parquet_json_zip_and_missing_paths_are_refused(tmp_path):
    ROWS.to_parquet(tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    assert "Parquet" in refused(write(tmp_path, whole[: len(whole) // 2], "cut.parquet"))
    assert "as JSON lines" in refused(write(tmp_path, '{"a": 1}\n{"a": ', "t.jsonl"))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", CSV)
        archive.writestr("b.csv", CSV)
    assert "2 files" in refused(str(tmp_path / "two.zip"))
    assert "no such file" in refused(str(tmp_path / "none.csv"))
    assert "no such file" in refused("x" * 5000)
    (tmp_path / "empty").mkdir()
    assert "holds no table" in refused(str(tmp_path / "empty"))
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], ["a", "a"]), tmp_path / "twice.parquet")
    assert "two columns named 'a'" in refused(str(tmp_path / "twice.parquet"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission_is_refused(tmp_path):
    path = write(tmp_path, CSV)
    os.chmod(path, 0)
    assert "cannot read" in refused(path)


def test_category_called_total_is_no_total_row(tmp_path):
    energy = "brand,price\n" + "Total,3\nShell,4\nBP,5\n" * 4 + "Total,4\n"
    table = open_table(write(tmp_path, energy))
    assert len(read(table)) == 13
    assert not table.notes


@pytest.mark.parametrize(
    "text",
    [
        "dept,x\nParis,1\nSomme,2\n",  # a department of France
        "dept,x\nParis,1\nLyon,5\nSomme,7\n",
        "cover,zone,km\npartial,nord,8000\npartial,sud,1000\ntotal,nord,9000\n",
    ],
)
def test_last_row_that_is_no_sum_or_has_a_category_like_the_others_is_no_total(tmp_path, text):
    table = open_table(write(tmp_path, text))
    assert len(read(table)) == text.count("\n") - 1
    assert not table.notes


@pytest.mark.parametrize("last", ["Total,78,9", "Total,,9"])
def test_total_behind_subtotals_or_without_a_number_that_others_have_is_found(tmp_path, last):
    parts = {"nord": range(1, 7), "sud": range(7, 13)}
    rows = [f"{zone},{n},{n}" for zone, numbers in parts.items() for n in numbers]
    rows += [f"Total {zone},{sum(numbers)},{8}" for zone, numbers in parts.items()]
    table = open_table(write(tmp_path, "\n".join(["zone,km,n", *rows, last]) + "\n"))
    assert len(read(table)) == 14
    assert "a total ('Total')" in " ".join(table.notes)


def test_what_only_looks_like_a_footnote_a_separator_or_no_header_stays(tmp_path):
    towns = "town,x,y\n" + "La Rochelle,1,2\n" * 3 + "La Rochelle,,\n"
    moments = "when\n" + "2024-01-01 12:30\n" * 4
    few = "town,x\nNice,1\nLa Rochelle,\n"
    years = "2022,2023,2024\n1,2,3\n4,5,6\n"
    given = ((towns, 4, 3), (moments, 4, 1), (few, 2, 2), (years, 2, 3))
    for content, n_rows, n_columns in given:
        table = open_table(write(tmp_path, content))
        assert read(table).shape == (n_rows, n_columns)
        assert not table.notes


@pytest.mark.parametrize("above", ["", "sep=;\n", 'a title with 24" in it\n\n'])
def test_name_of_several_lines_is_one(tmp_path, above):
    lines = "".join(f'{n};"of\n{n}"\n' for n in range(20))
    table = open_table(write(tmp_path, f'{above}"price\n(€)";"a\n\nb"\n{lines}'))
    rows = read(table)
    assert rows["price\n(€)"].tolist() == [str(n) for n in range(20)]
    assert rows["a\n\nb"].tolist() == [f"of\n{n}" for n in range(20)]
    assert table.first_line == 5 + above.count("\n")


def test_text_of_many_lines_is_one_cell(tmp_path):
    letter = "Dear all,\n\n" + "a line; of text, as said\n" * 30
    content = "letter;n\n" + "".join(f'"{letter}";{n}\n' for n in range(9))
    table = open_table(write(tmp_path, content))
    assert read(table)["letter"].tolist() == [letter] * 9
    assert table.first_line == 2


def test_fields_with_separators_quotes_and_line_breaks_are_whole(tmp_path):
    content = 'text,n\n"a, ""b""\nc",1\n"d;e;f",2\nplain,3\n'
    assert read(open_table(write(tmp_path, content)))["text"].tolist() == [
        'a, "b"\nc',
        "d;e;f",
        "plain",
    ]


def test_each_file_of_a_folder_may_end_with_a_total(tmp_path):
    for name in ("a", "b"):
        write(tmp_path, CSV.replace(",", ";") + "Gesamtergebnis;;35495\n", f"{name}.csv")
    table = open_table(str(tmp_path))
    assert_same_rows(table, pd.concat([ROWS, ROWS], ignore_index=True))
    assert "a total ('Gesamtergebnis')" in " ".join(table.notes)


def test_quoted_amounts_with_commas_do_not_hide_the_mark_between_columns(tmp_path):
    lines = ['"Konto";"DE1"', '"Stand";"1.234,56 EUR"', '"age";"zone";"prix"']
    amounts = (f'"{zone}";"{zone}";"-{prix:.2f} €"' for _, zone, prix in ROWS.to_numpy())
    lines += [line.replace(".", ",") for line in amounts]
    rows = read(open_table(write(tmp_path, "\n".join(lines) + "\n")))
    assert rows["prix"].tolist() == ["-8648,00 €", "-10135,00 €", "-7710,50 €", "-9001,00 €"]
    assert_same_rows(open_table(write(tmp_path, CSV.replace("age,zone", '"age" ,"zone"  '))))


def test_cell_may_be_long(tmp_path):
    long = "1 2, " * 40_000
    rows = read(open_table(write(tmp_path, CSV + f'33,"{long}",8000\n')))
    assert rows["zone"].tolist()[-1] == long


def test_excel_keeps_texts_that_pandas_takes_for_missing_and_years_in_its_header(tmp_path):
    pytest.importorskip("openpyxl")
    rows = pd.DataFrame({"land": ["NA", "None", "DE"], 2021: [1.5, 2, 3], 2022: [1, 2, 3]})
    for name in ("t.xlsx", "t.xlsm"):
        with pd.ExcelWriter(tmp_path / name, engine="openpyxl") as book:
            rows.to_excel(book, index=False)
        found = read(open_table(str(tmp_path / name)))
        assert list(found.columns) == ["land", "2021", "2022"]
        assert found["land"].tolist() == ["NA", "None", "DE"]


def test_workbook_that_is_none_says_what_is_wrong_and_advises_no_package_at_random(tmp_path):
    pytest.importorskip("openpyxl")
    old = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(4096)
    assert "pip install pyarrow" not in refused(write(tmp_path, old, "t.xlsx"))


def test_several_columns_without_a_name_are_counted(tmp_path):
    table = open_table(write(tmp_path, "a,,,y\n" + "1,2,3,4\n" * 3))
    assert list(read(table)) == ["a", "y"]
    assert table.notes[0].startswith("2 columns without a name")


@pytest.mark.parametrize("mark", [",", ";"])
def test_blanks_before_quotes_belong_to_no_cell(tmp_path, mark):
    lines = [f'age{mark} "zone"{mark} prix', f'41.5{mark} "nord{mark} ouest"{mark} "8648.0"']
    rows = read(table := open_table(write(tmp_path, "\n".join([*lines, *lines[1:]]) + "\n")))
    assert list(rows) == ["age", "zone", "prix"]
    assert rows.iloc[1].tolist() == ["41.5", f"nord{mark} ouest", "8648.0"]
    assert table.decimal == ("." if mark == "," else "")
    assert read(table).equals(rows)  # again


def test_quotes_and_blanks_inside_a_quoted_cell_stay(tmp_path):
    text = 'a,b\n1,"x, ""y"" z"\n2,"v, w"\n'
    assert read(open_table(write(tmp_path, text)))["b"].tolist() == ['x, "y" z', "v, w"]


def test_known_category_at_the_end_is_neither_a_total_nor_a_footnote(tmp_path):
    for text, last in (
        ("cover,age,km\npartial,30,8000\npartial,20,1000\ntotal,50,9000\n", "total"),
        ("zone,age,km\ncentre,3,4\ncentre,3,5\nold town,,\n", "old town"),
    ):
        table = open_table(write(tmp_path, text))
        assert len(read(table)) == 2
        table = open_table(write(tmp_path, text))
        table.known = {last}
        assert read(table).iloc[-1, 0] == last


def test_long_ids_stay_whole_beside_a_missing_one(tmp_path):
    ids = pd.array([1582218195625938945, None, 1582218195625938947], "Int64")
    pd.DataFrame({"id": ids, "y": [1, 2, 3]}).to_parquet(tmp_path / "t.parquet")
    found = as_text(read(open_table(tmp_path / "t.parquet"))["id"])
    assert found.dropna().tolist() == ["1582218195625938945", "1582218195625938947"]
    assert found.isna().tolist() == [False, True, False]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_that_are_text_are_read_as_text(tmp_path, kind):
    pq.write_table(pa.table({"a": pa.array([b"nord", b"sud"], kind)}), tmp_path / "t.parquet")
    assert read(open_table(tmp_path / "t.parquet"))["a"].tolist() == ["nord", "sud"]


@pytest.fixture
def web(tmp_path):
    """Serve the files of a folder; of those called cut… only half arrives."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            file = tmp_path / self.path.strip("/").split("?")[0]
            if not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // (2 if "cut" in self.path else 1)])

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_download_that_breaks_off_is_no_table(tmp_path, web):
    write(tmp_path, CSV)
    write(tmp_path, CSV, "cut.csv")
    assert_same_rows(open_table(f"{web}/t.csv"))
    assert "the download broke off" in refused(f"{web}/cut.csv?key=secret")
    assert "secret" not in refused(f"{web}/cut.csv?key=secret")


def test_row_without_a_value_in_a_typed_file_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PIECE_BYTES", 1)  # a piece for each group of rows
    rows = pd.DataFrame({"a": [1.0, None, 3.0, None], "zone": ["n", None, "s", "Total"]})
    rows.to_parquet(tmp_path / "t.parquet", row_group_size=2)
    table = open_table(tmp_path / "t.parquet")
    assert read(table)["zone"].astype(object).tolist()[2:] == ["s", "Total"]
    assert len(read(table)) == 4
    assert table.notes == []


def test_glob_reaches_all_folders_below_and_no_stale_file_of_delta(tmp_path):
    for folder in ("", "2023", "2024/01"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        write(tmp_path / folder, CSV)
    assert len(read(open_table(f"{tmp_path}/**/*.csv"))) == 12
    (tmp_path / "_delta_log").mkdir()
    assert "part of a Delta table" in refused(f"{tmp_path}/2024/01/*.csv")


def test_cell_that_begins_with_a_blank_and_a_quote_is_read(tmp_path):
    text = ' "nord" bis'
    rows = pd.DataFrame({"zone": [text, "sud"], "note": ['x, "y"', "z"], "y": ["1", "2"]})
    rows.to_csv(tmp_path / "t.csv", index=False)
    assert read(open_table(tmp_path / "t.csv"))["zone"].tolist() == [text, "sud"]


def test_key_in_a_path_overwrites_no_column(tmp_path):
    (tmp_path / "zone=7").mkdir()
    write(tmp_path / "zone=7", CSV)
    assert_same_rows(open_table(tmp_path / "zone=7" / "t.csv"))


def test_whole_numbers_of_a_database_without_integers_stay_whole(tmp_path):
    number = 10**17 + 1
    whole = pa.array([number, None, number + 1], pa.decimal128(38, 0))
    pq.write_table(pa.table({"id": whole, "u": whole.cast(pa.uint64())}), tmp_path / "t.parquet")
    rows = read(open_table(tmp_path / "t.parquet"))
    for name in ("id", "u"):
        assert as_text(rows[name]).dropna().tolist() == [str(number), str(number + 1)]


def test_sheet_that_is_hidden_is_not_read(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    ROWS.to_excel(tmp_path / "t.xlsx", index=False)
    book = openpyxl.load_workbook(tmp_path / "t.xlsx")
    hidden = book.create_sheet("old")
    hidden.sheet_state = "hidden"
    for number in range(50):
        hidden.append([number] * 9)
    book.save(tmp_path / "t.xlsx")
    table = open_table(tmp_path / "t.xlsx")
    assert_same_rows(table)
    assert not any("sheet" in note for note in table.notes)


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path):
    (tmp_path / "2023").mkdir()
    for name in ("a.csv", "2023/b.csv", "c.xls", "_SUCCESS", ".a.csv.crc"):
        write(tmp_path, CSV, name)
    table = open_table(tmp_path)
    assert_same_rows(table)
    assert f"2 files of {tmp_path} are not read, such as 'b.csv'" in table.notes
    assert open_table(tmp_path / "a.csv").notes == []


QUOTES = {
    "names": ["a", '"a', "a", '"a'],
    "inches": ['"a"', '"TV 24\\""', '"a"', "a"],
    "one": ['"a"', '"TV 24\\""', '"a"', '"a"'],
    "all": ['"a 5\\""'] * 4,
}


@pytest.mark.parametrize("names", QUOTES.values(), ids=list(QUOTES))
@pytest.mark.parametrize("mark", [",", "\t"])
def test_quote_that_swallows_rows_is_named_by_its_line(tmp_path, names, mark):
    cells = [[str(n), names[n // 5 % 4], str(7 * n)] for n in range(200)]
    lines = [mark.join(row) for row in [["x", "name", "price"], *cells]]
    message = refused(write(tmp_path, "\n".join(lines)))
    first = next(n for n, row in enumerate(cells, 2) if row[1].count('"') % 2)
    assert f"line {first} holds a quote" in message


def test_texts_of_several_lines_with_commas_are_texts(tmp_path):
    rows = "".join(f'{n},"Hello, {n}\nall, fine",{2 * n}\n' for n in range(50))
    (read,) = open_table(write(tmp_path, f"x,note,price\n{rows}")).blocks()
    assert read["note"][3] == "Hello, 3\nall, fine"


def test_cells_of_excel_that_are_merged_downwards_hold_the_same(tmp_path):
    pytest.importorskip("openpyxl")
    rows = pd.DataFrame({"zone": ["n", "n", "s", "s"], "city": ["a", "b", "c", "c"]})
    rows = rows.assign(x=["1", "2", "3", "4"], y=["5", "6", "7", "8"])
    rows.set_index(["zone", "city", "x"]).to_excel(tmp_path / "t.xlsx")
    (read,) = open_table(tmp_path / "t.xlsx").blocks()
    assert read.to_dict("list") == rows.to_dict("list")


def test_code_page_of_dos_is_recognised(tmp_path):
    towns = ["Orléans", "Besançon", "Nîmes", "Mâcon", "Évry", "Saint-Étienne"] * 10
    rows = "ville;x\n" + "".join(f"{town};{n}\n" for n, town in enumerate(towns))
    (read,) = open_table(write(tmp_path, rows.encode("cp850"))).blocks()
    assert read["ville"].tolist() == towns


@pytest.mark.parametrize(
    ("below", "note"),
    [
        ("\x1a", ""),
        ("   \n", ""),
        ("Source: INSEE, 2024\n", "Source: INSEE, 2024"),
        ('"Sources : INSEE",2024\n', "Sources : INSEE"),
    ],
)
def test_end_mark_of_dos_a_blank_line_and_the_source_below_a_table_are_no_rows(
    tmp_path, below, note
):
    table = open_table(write(tmp_path, "a,b,c\n1,2,3\n4,5,6\n" + below))
    assert len(read(table)) == 2
    assert len(table.notes) == bool(note)
    assert note in " ".join(table.notes)
