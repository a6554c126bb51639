"""Columns: what people write is read as they mean it, or one line asks them."""

import json
import time
import unicodedata
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from toolkit import columns
from toolkit.columns import Column, Schema, conform
from toolkit.errors import UserError
from toolkit.kinds import infer_schema, leaks

N = 200
RNG = np.random.default_rng(0)


def table(**columns):
    """Return rows as a CSV file brings them: a feature x and a target y, all text."""
    n = max([len(values) for values in columns.values()] or [N])
    rows = {"x": [f"{v:.2f}" for v in np.random.default_rng(1).normal(50, 9, n)]}
    rows |= {"y": [f"{v:.1f}" for v in np.random.default_rng(2).normal(900, 90, n)]}
    return pd.DataFrame(rows | columns)


def repeat(*values, n=N):
    return (list(values) * n)[:n]


def learn(values, name="c", **options):
    """Infer a schema from one more column: (its column or None, its values, notes)."""
    rows = table(**{name: values})
    schema, notes = infer_schema(rows, "y", source="t.csv", **options)
    conformed, more = conform(rows, schema, source="t.csv")
    column = next((c for c in schema.columns if c.name == name), None)
    assert all("\n" not in note for note in notes + more)
    return column, conformed[name] if column else None, " ".join(notes)


def third(places):
    """Name lines of a file whose first row is in line 3."""
    return columns.lines(places, places + 3)


def refused(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- numbers -------------------------------------------------------------------------------------

SPREAD = [round(float(v), 2) for v in RNG.uniform(0, 99_999, N)]


@pytest.mark.parametrize(
    "write",
    [
        lambda v: f"{v}",
        lambda v: f"+{v}",
        lambda v: f"${v:,.2f}",
        lambda v: f"{v:,.2f} USD",
        lambda v: f"£ {v:,.2f}",
        lambda v: f"{v:,.2f}".replace(",", " ").replace(".", ",") + " €",
        lambda v: f"{v:,.2f}".replace(",", "\u202f").replace(".", ",") + "\u00a0€",
        lambda v: f"{v:,.2f}".replace(",", "\u00a0").replace(".", ","),
        lambda v: f"{v:,.2f}".replace(",", "'"),
        lambda v: f"{v:,.2f}".replace(",", "_").replace(".", ",").replace("_", "."),
        lambda v: f"{v} %",
        lambda v: f"{v}%",
        lambda v: f"{v}GHz",
        lambda v: f"{v} m²",
        lambda v: f"{v} km/h",
        lambda v: f"{v} sq ft",
        lambda v: f"{v}°C",
        lambda v: f"{v:e}",
        lambda v: f"{v:e}".replace(".", ","),
    ],
)
def test_number_is_read_as_people_write_it(write):
    column, values, notes = learn([write(v) for v in SPREAD])
    assert column.kind == "numeric"
    np.testing.assert_allclose(values, SPREAD, rtol=1e-6)
    plain = write(1.5).lstrip("+") in ("1.5", "1.500000e+00")
    assert ("read as" in notes) == (not plain)


def test_negative_amounts_in_brackets_and_with_signs_are_negative():
    _, values, _ = learn(repeat("($1,234.50)", "-$7.25", "$3.00", "$-1.00", "$ (2,000.00)"))
    assert values[:5].tolist() == [-1234.5, -7.25, 3, -1, -2000]
    _, values, _ = learn(repeat("£(1.50)", "£ (2,250.25)", "£0.10"))
    assert values[:3].tolist() == [-1.5, -2250.25, 0.1]


def test_point_of_thousands_is_recognised_by_the_column_or_the_file():
    whole = [int(v) for v in RNG.uniform(100, 9999, N)]
    german = [f"{v:,}".replace(",", ".") for v in whole]
    rows = table(c=german, x=whole, y=whole).astype({"x": "str", "y": "str"})
    schema, notes = infer_schema(rows, "y")
    assert conform(rows, schema)[0]["c"].tolist() == whole
    assert "read as" in " ".join(notes)
    thousands = repeat("1.234", "7.719")
    other = [f"{v:.1f}".replace(".", ",") for v in RNG.uniform(1, 9, N)]
    rows = table(c=thousands, other=other)[["c", "other", "y"]]
    rows["y"] = rows["y"].str.replace(".", ",")
    schema, _ = infer_schema(rows, "y")
    assert conform(rows, schema)[0]["c"][:2].tolist() == [1234, 7719]


def test_number_that_can_be_read_in_two_ways_is_asked_about():
    rows = table(c=repeat("1.234", "7.719"), d=repeat("1", "2"))
    rows["x"], rows["y"] = repeat("3", "4"), [str(n) for n in range(N)]
    message = refused(infer_schema, rows, "y")
    assert "'1.234'" in message
    assert "--numeric 'c'" in message
    schema, _ = infer_schema(rows, "y", numeric=["c"])
    assert conform(rows, schema)[0]["c"][1] == 7.719
    commas = rows.assign(c=repeat("1,234", "7,719"))
    assert "--numeric 'c'" in refused(infer_schema, commas, "y")
    assert "'c'" in refused(infer_schema, rows, "c")


def test_three_decimals_in_a_file_whose_point_is_known_are_decimals():
    _, values, notes = learn(repeat("1.234", "7.719"))
    assert values[1] == 7.719
    assert "such as '1.234', read as 1.234" in notes
    alone = table(c=repeat("1.234", "7.719"))[["c", "y"]].assign(y=list(map(str, range(N))))
    schema, notes = infer_schema(alone, "y", decimal=".")  # as where commas separate the columns
    assert conform(alone, schema)[0]["c"][1] == 7.719
    assert "read as 1.234" in " ".join(notes)


def test_mark_of_thousands_that_training_never_saw_is_not_assumed_later():
    rows = table(c=[f"{v % 99:.1f}".replace(".", ",") for v in SPREAD])
    schema, _ = infer_schema(rows, "y")
    new = rows[:1].assign(c="2.125")
    assert conform(new, schema)[0]["c"][0] == 2.125


@pytest.mark.parametrize(("amount", "other"), [("1.250", "7,5"), ("1,250", "7.5")])
@pytest.mark.parametrize("write", ["{:,}", "{:}", "{:.1f}"])
def test_later_file_in_other_marks_is_read_by_its_own_other_columns(write, amount, other):
    rows = table(c=[write.format(100 * n * n) for n in range(N)])
    schema, _ = infer_schema(rows, "y")
    new = pd.DataFrame({"c": [amount], "x": [other], "y": [other]})
    assert conform(new, schema)[0].to_numpy().tolist() == [[7.5, 1250.0, 7.5]]


def test_small_tables_of_numbers_without_marks_say_nothing():
    column, _, notes = learn(repeat("1", "2", "30000", n=25))
    assert (column.kind, notes) == ("numeric", "")


def test_several_units_in_a_column_are_no_number():
    assert learn(repeat("16 GB", "1 TB", "8 GB"))[0].kind == "categorical"


@pytest.mark.parametrize(
    "values",
    [
        [f"{n:02}" for n in range(1, 96)] + ["2A", "2B"] * 3,
        [str(n) for n in range(1, 96)] + ["2A", "2B"] * 20,
        ["00042", "00107", "31000"],
        ["T1", "T2", "T3"],
        ["S", "M", "38", "40"],
        ["oui", "non"],
        ["true", "false"],
        ["18-25", "26-40"],
        ["1er", "2e", "3e"],
        ["€1.5M", "€300K", "€2M"],
    ],
)
def test_codes_are_categories_as_they_are_written(values):
    values = repeat(*values, n=600)
    column, found, _ = learn(values)
    assert column.kind == "categorical"
    assert found.str.lower().tolist() == [v.lower() for v in values]


def test_numbers_with_a_few_wrong_texts_are_refused_with_their_lines():
    values = [str(v) for v in SPREAD]
    values[6] = values[9] = "abc"
    message = refused(learn, values)
    assert "column 'c' of t.csv holds 'abc' in lines 8, 11" in message
    assert learn(values, na=["abc"])[1].isna().sum() == 2
    assert learn(values, categorical=["c"])[0].kind == "categorical"


@pytest.mark.parametrize(
    "marker", ["?", "-", "--", "n.c.", "NC", "NULL", "NA", "N/A", "#N/A", "None", "nan", ".", " "]
)
def test_numbers_among_markers_stay_numbers(marker):
    values = [marker if n % 3 else str(n % 50) for n in range(N)]
    column, found, notes = learn(values)
    assert column.kind == "numeric"
    assert found.isna().sum() == sum(v == marker for v in values)
    assert "133 cells" in notes
    dates = [marker if n % 3 else f"2024-01-{n % 28 + 1:02}" for n in range(N)]
    assert learn(dates)[0].kind == "date"


def test_only_standard_markers_are_missing_in_a_category():
    _, found, notes = learn(repeat("a", "b", "NULL", "-", "", "nc"))
    assert found[:6].isna().tolist() == [False, False, True, False, True, False]
    assert "NULL" in notes
    assert learn(repeat("a", "b", "nc"), na=["nc"])[1][:3].isna().tolist() == [False, False, True]


def test_months_are_read_whether_their_accents_are_signs_of_their_own_or_not():
    dates = [f"{day} {month} 2005" for day in (3, 14, 28) for month in ("août", "février", "mars")]
    split = [unicodedata.normalize("NFD", text) for text in dates]
    assert split != dates
    schema, _ = infer_schema(table(d=repeat(*dates), y=range(N)), "y")
    read = [conform(table(d=repeat(*each), y=range(N)), schema)[0]["d"] for each in (dates, split)]
    assert read[0].notna().all()
    assert read[0].tolist() == read[1].tolist()


@pytest.mark.parametrize("form", ["ISO8601", "%d/%m/%Y"])
def test_marker_of_a_date_is_a_date_in_any_format_and_no_number_of_days(form):
    marker = "1900-01-01" if form == "ISO8601" else "01/01/1900"
    column = Column("d", "date", date_format=form, markers=[marker, "-999", "9999"])
    days = pd.to_datetime(["1900-01-01", "1967-04-08", "1997-05-18", "2024-02-29", None])
    texts = pd.Series(days.strftime("%Y-%m-%d" if form == "ISO8601" else form)).astype("str")
    expected = [np.nan, -999, 9999, 19782, np.nan]
    for values in (pd.Series(days), texts):
        cells, bad = columns.read_cells(values, column)
        np.testing.assert_array_equal(cells, expected)
        assert not bad.any()


def test_marker_may_be_a_number():
    _, found, _ = learn(repeat(1, 2, -999), na=["-999"])
    assert found[:3].isna().tolist() == [False, False, True]
    assert learn(repeat("1", "2", "-999.0"), na=["-999"])[1][:3].isna().tolist()[2]


# --- dates ---------------------------------------------------------------------------------------

DAYS = pd.date_range("2023-12-25", periods=N, freq="D")
SINCE = [float(d) for d in (DAYS - pd.Timestamp("1970-01-01")).days]


@pytest.mark.parametrize(
    "form",
    [
        *["%Y-%m-%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%Y/%m/%d", "%d/%m/%y"],
        *["%Y%m%dT%H%M%S", "%d %b %Y", "%d-%b-%y", "%B %d, %Y", "%Y-%m-%dT%H:%M:%SZ"],
        *["%Y-%m-%d %H:%M:%S", "%Y-%m-%d 00:00:00+00:00", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M:%S"],
        *["%m/%d/%Y %I:%M %p", "%m/%d/%y %I:%M:%S %p", "%d/%m/%y %H:%M", "%d.%m.%y", "%d%b%Y"],
        *["%Y%m%d", "%Y%m%d%H%M", "%d%b%Y:%H:%M:%S", "%Y-%m-%d %H:%M:%S UTC"],
    ],
)
def test_dates_are_days_since_1970(form):
    column, values, notes = learn(DAYS.strftime(form).tolist())
    assert column.kind == "date"
    assert values.tolist() == SINCE
    assert "dates" in notes


@pytest.mark.parametrize(
    "form", ["%Y-%m", "%m/%Y", "%Y/%m", "%m-%Y", "%b %Y", "%B %Y", "%b-%y", "%Y%m"]
)
def test_month_is_the_date_of_its_first_day(form):
    months = pd.date_range("2008-01-01", periods=N, freq="MS")
    column, values, _ = learn(months.strftime(form).tolist())
    assert column.kind == "date"
    assert values.tolist() == [float(d) for d in (months - pd.Timestamp(0)).days]


@pytest.mark.parametrize("form", ["{y}Q{q}", "{y} Q{q}", "{y}-T{q}", "Q{q} {y}", "T{q}/{y}"])
def test_quarter_is_the_date_of_its_first_day(form):
    quarters = pd.date_range("1990-01-01", periods=N, freq="QS")
    texts = [form.format(y=day.year, q=day.quarter) for day in quarters]
    column, values, _ = learn(texts)
    assert column.kind == "date"
    assert values.tolist() == [float(d) for d in (quarters - pd.Timestamp(0)).days]


def test_numbers_of_four_digits_are_years_only_where_they_may_be():
    assert learn(repeat(1999, 2004, 2011), "time")[0].kind == "date"
    assert learn(repeat(5040, 2388, 4999), "time")[0].kind == "numeric"
    assert learn(repeat(20240131, 20231201), "time")[0].kind == "date"


def test_numbers_beside_some_codes_are_codes():
    stations = [*repeat(*range(1000, 1030))[: N - 3], "c168", "c203", "c204"]
    column, _, notes = learn(stations, "station")
    assert column.kind == "categorical"
    assert "codes or numbers as text" in notes
    assert "'12k'" in refused(learn, [*range(N - 3), "12k", "40k", "50k"])


def test_durations_are_seconds_and_clocks_stay_times_of_day():
    hours = repeat(3, 36, 120)
    for write in (lambda h: f"{h}:30:15", lambda h: f"{h // 24} days {h % 24:02d}:30:15"):
        column, values, notes = learn([write(h) for h in hours], "spent")
        assert (column.kind, values[:3].tolist()) == ("numeric", [12_615, 131_415, 433_815])
        assert "'spent' holds durations, read as seconds" in notes
    schema = Schema(Column("y", "numeric"), (column,))
    later, _ = conform(table(spent=repeat("0:00:01", "22:07", "60.5", "n.c.")), schema)
    np.testing.assert_array_equal(later["spent"][:4], [1, 1_327, 60.5, np.nan])
    moments = table(spent=repeat("0:00:01.725", "0:00:02.317"), y=repeat("1", "2"))
    exact, _ = conform(moments, schema)
    assert exact["spent"][:2].tolist() == [1.725, 2.317]
    endless = table(spent=repeat("0:00:01", "99999999:00:00"))
    assert "'99999999:00:00' in lines 3, 5" in refused(conform, endless, schema)
    assert learn(repeat("08:30:00", "17:45:10"), "at")[0].kind == "date"


def test_many_different_texts_beside_numbers_make_a_text_column_and_a_few_an_error():
    tickets = [f"A/5 {n}" if n % 3 else str(n) for n in range(N)]
    assert "'ticket' is left out: 200 different texts" in learn(tickets, "ticket")[2]
    assert "'A/5 1'" in refused(learn, tickets[:3] + [str(n) for n in range(3, N)], "ticket")
    ages = [("baby", "child", "old")[n % 3] if n % 5 == 1 else str(n) for n in range(N)]
    assert "'child'" in refused(learn, ages, "age")
    weights = [f"[{n}]" if n % 5 == 1 else str(n) for n in range(N)]
    assert "'[1]'" in refused(learn, weights, "weight")


def test_codes_that_begin_like_a_quarter_are_no_dates():
    assert learn([f"T{n}" for n in repeat(11990, 22010, 42015)])[0].kind == "categorical"


def test_letter_behind_few_numbers_is_no_unit():
    families = [*range(100, 150), "136A"] * 4
    assert learn(families)[0].kind == "categorical"
    assert learn([f"{n} g" for n in range(100, 150)] * 4 + ["9"])[0].unit == "g"


MONTHS = "janvier février mars avril mai juin juillet août septembre octobre novembre décembre"
SHORT = "janv. févr. mars avr. mai juin juil. août sept. oct. nov. déc."


@pytest.mark.parametrize("months", [MONTHS, SHORT, MONTHS.upper()])
@pytest.mark.parametrize(
    "form", ["{day} {month} {year}", "{month} {year}", "{day:02d}-{month}-{y}"]
)
def test_french_months_are_read(months, form):
    def write(day):
        parts = {"month": months.split()[day.month - 1], "year": day.year, "y": f"{day:%y}"}
        return form.format(day=day.day, **parts)

    column, values, _ = learn([write(day) for day in DAYS])
    expected = DAYS if "{day" in form else DAYS.to_period("M").to_timestamp()
    assert column.kind == "date"
    assert values.tolist() == [float(d) for d in (expected - pd.Timestamp(0)).days]
    first = learn([write(day).replace("1 ", "1er ", day.day == 1) for day in DAYS])[1]
    assert first.tolist() == values.tolist()


def test_time_of_day_is_a_fraction_and_zones_are_utc():
    _, values, _ = learn(repeat("2024-01-01T06:00:00+02:00", "2024-01-01T12:00:00-06:00"))
    np.testing.assert_allclose(values[:2] - 19723, [4 / 24, 18 / 24], atol=1e-9)
    typed = DAYS.tz_localize("Europe/Paris")
    column, values, _ = learn(typed)
    assert column.kind == "date"
    assert values[0] == SINCE[0] - 1 / 24


@pytest.mark.parametrize("form", ["%H:%M", "%H:%M:%S"])
def test_time_of_day_without_a_date_is_a_fraction_of_a_day(form):
    column, values, notes = learn((DAYS[0] + 7 * (DAYS - DAYS[0]) / 24).strftime(form).tolist())
    assert (column.kind, column.date_format) == ("date", form)
    np.testing.assert_allclose(values % 1, np.arange(N) * 7 % 24 / 24, atol=1e-9)
    assert "dates (%H:%M" in notes


def test_day_and_month_that_cannot_be_told_apart_are_asked_about():
    values = repeat("01/02/2024", "03/04/2024")
    message = refused(learn, values)
    assert "--date 'c=%d/%m/%Y'" in message
    assert learn(values, date=["c=%m/%d/%Y"])[1][0] == 19723 + 1
    assert learn(repeat("01.02.2024"))[1][0] == 19723 + 31


def test_seconds_are_dates_when_asked_or_called_so():
    seconds = [1_700_000_000 + 7919 * (n * n % N) for n in range(N)]
    assert learn(seconds, "timestamp")[1][0] == 1_700_000_000 / 86_400
    assert learn([str(s) for s in seconds], "timestamp")[0].kind == "date"
    assert learn(seconds, "size")[0].kind == "numeric"
    assert learn(seconds, "size", date=["size"])[0].date_format == "epoch s"
    assert learn([1000 * s for s in seconds], "date")[0].date_format == "epoch ms"
    assert learn(DAYS.strftime("%Y%m%d").astype(int), "date")[1].tolist() == SINCE
    births = DAYS - pd.Timedelta(days=30_000)
    assert learn(births.strftime("%Y%m%d"), "birth date")[1].tolist() == [d - 30_000 for d in SINCE]


def test_years_beyond_nanoseconds_are_dates_too():
    years = [f"{1000 + 37 * n}-06-01" for n in range(N)]
    column, values, _ = learn(years, "date")
    assert column.kind == "date"
    assert np.diff(values).min() > 37 * 365


def test_wrong_date_is_refused_with_its_line():
    values = DAYS.strftime("%d/%m/%Y").tolist()
    values[4] = "31/02/2024"
    assert "'31/02/2024' in line 6" in refused(learn, values)
    assert "--date 'c=" in refused(learn, repeat("a", "b"), date=["c"])


# --- persons and ids -----------------------------------------------------------------------------

PEOPLE = repeat("Martin", "Durand", "Petit", "Moreau")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("nom", PEOPLE),
        ("Prénom", PEOPLE),
        ("name", PEOPLE),
        ("first_name", PEOPLE),
        ("LastName", PEOPLE),
        ("surname", PEOPLE),
        ("nom_client", PEOPLE),
        ("customer name", PEOPLE),
        ("client_id", repeat(17, 4, 99)),
        ("customerID", repeat("a1", "b2")),
        ("id", repeat(1.0, 5.0)),
        ("uuid", repeat("a", "b")),
        ("iban", repeat("FR7612345", "FR7699999")),
        ("ssn", repeat("123-45-6789", "987-65-4321")),
        ("contact", repeat("a.b@c.fr", "d@e.org")),
        ("numero", repeat(185057800608436, 285127511609112)),
        ("compte", repeat("FR76 3000 6000 0112 3456 7890 189", "DE89 3704 0044 0532 0130 00")),
        ("joindre", repeat("06 12 34 56 78", "0698765432", "+33 6 11 22 33 44")),
        ("call", repeat("(555) 123-4567", "555-123-4567")),
        ("ssn", RNG.integers(100_000_000, 999_999_999, N)),
        ("telephone", RNG.integers(600_000_000, 799_999_999, N)),  # its zero was lost
        ("mobile", [str(v) for v in RNG.integers(33_600_000_000, 33_799_999_999, N)]),
        ("adresse", [f"{n} rue de la Paix" for n in range(N)]),
        ("remarks", [f"all different {n}" for n in range(N)]),
        ("number", range(5, N + 5)),
        ("number", [str(n) for n in RNG.permutation(N)]),
        ("serial", range(N, 0, -1)),
    ],
)
def test_persons_and_ids_are_left_out_by_name_without_their_values(name, values):
    values = [*values]
    column, _, notes = learn(values, name)
    assert column is None
    assert repr(name) in notes
    assert "left out" in notes
    assert str(values[0]) not in notes.replace(name, "") or len(str(values[0])) < 4
    assert learn(values, name, keep=[name])[0] is not None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bedrooms", repeat("1", "2", "3")),
        ("grade", repeat("5", "6")),
        ("idade", repeat(31, 45, 62)),
        ("humid", repeat(0.3, 0.9)),
        ("income", [str(v) for v in SPREAD]),
        ("income", SPREAD),
        ("brand_name", repeat("Ford", "Fiat")),
        ("company name", repeat("Ford", "Fiat")),
        ("airline name", repeat("BA", "AF")),
        ("product_name", repeat("bolt", "nut")),
        ("nom_commune", repeat("Lyon", "Nice")),
        ("passport", repeat("1", "0")),
        ("nir", [v / 7 for v in SPREAD]),
        ("PhoneService", repeat("Yes", "No")),
        ("mobile", repeat("1", "0")),
        ("street", repeat("Pave", "Grvl")),
        ("pieces of mail", [str(int(v)) for v in SPREAD]),
        ("X3Ssn.Porch", repeat(0, 0, 168, 320, 144)),
        ("share of ids", repeat("0.25", "0.5")),
        ("income_in_zip", repeat("9.7", "9.2")),
        ("Season", range(1890, 1890 + N)),
        ("mobile phones per home", [f"{v / 1000:.3f}" for v in SPREAD]),
        ("year", range(1900, 1900 + N)),
        ("doy", range(1, N + 1)),
        ("population", [int(v) * 3 for v in sorted(SPREAD)]),
        ("price_paid", [int(v) for v in SPREAD]),
        ("id_type", repeat("passport", "card")),
        ("valid", repeat("1", "0")),
        ("paid", repeat("yes", "no")),
        ("town", [f"town {n // 3}" for n in range(N)]),
    ],
)
def test_honest_feature_is_kept_without_a_word(name, values):
    column, _, notes = learn([*values], name)
    assert column is not None
    assert notes == ""


def test_columns_of_a_replay_buffer_are_no_features():
    rows = table(**{"toolkit:role": repeat("train", "held_out"), "toolkit:hash": range(N)})
    schema, notes = infer_schema(rows, "y")
    assert schema.features == ("x",)
    assert "toolkit:… are left out" in " ".join(notes)
    assert list(conform(rows, schema, strict=True)[0]) == ["x", "y"]


def test_zip_code_is_a_category_whatever_its_type():
    for values in (repeat(75001, 69002), repeat("75001", "69002"), repeat(75001.0, 69002.0)):
        column, found, _ = learn(values, "zip_code")
        assert column.kind == "categorical"
        assert found[0] == "75001"


def test_user_has_the_last_word():
    assert learn(repeat("01", "02"), numeric=["c"])[1][0] == 1
    assert learn(repeat(1, 2), categorical=["c"])[1][0] == "1"
    assert learn(repeat("Martin"), "nom", categorical=["nom"])[0].kind == "categorical"
    assert learn(range(N), drop=["c"])[0] is None
    for option in ("drop", "keep", "numeric", "categorical", "date"):
        message = refused(learn, repeat("1"), **{option: ["nothing"]})
        assert f"--{option} 'nothing' is no feature column" in message


def test_types_of_parquet_are_obeyed():
    column, _, notes = learn(pd.Categorical(repeat("75", "13", "69")))
    assert column.kind == "categorical"
    assert "as text" in notes
    assert learn(pd.Categorical(repeat("75", "13")), numeric=["c"])[0].kind == "numeric"
    assert learn(repeat(True, False))[1][:2].tolist() == ["True", "False"]


# --- the schema and its rows -----------------------------------------------------------------


def test_schema_survives_json():
    rows = table(money=[f"${v:,.2f}" for v in SPREAD], day=DAYS.strftime("%d/%m/%Y"))
    schema, _ = infer_schema(rows, "y", na=["-9"], drop=["x"])
    assert Schema.from_dict(json.loads(json.dumps(asdict(schema)))) == schema
    assert schema.features == ("money", "day")
    assert schema.kinds == {"money": "numeric", "day": "date"}
    assert schema.dropped == ("x",)


def test_same_row_is_the_same_whatever_file_it_came_in():
    text = pd.DataFrame(
        {
            "money": ["1 234,50 €", "99,00 €"] * 15,
            "code": ["01", "2A"] * 15,
            "day": ["13/02/2024", "01/03/2024"] * 15,
            "flag": ["true", "false"] * 15,
            "y": ["1,5", "2,5"] * 15,
        }
    )
    schema, _ = infer_schema(text, "y")
    expected, _ = conform(text, schema)
    typed = pd.DataFrame(
        {
            "y": [1.5, 2.5] * 15,
            "flag": [True, False] * 15,
            "day": pd.to_datetime(["2024-02-13", "2024-03-01"] * 15),
            "code": [1, "2A"] * 15,
            "money": [1234.5, 99.0] * 15,
        },
        index=range(7, 37),
    )
    english = typed.assign(day=typed["day"].dt.strftime("%Y-%m-%d"), money=["1234.50", "99.0"] * 15)
    for rows in (typed, english, english.astype("category")):
        found, _ = conform(rows, schema)
        pd.testing.assert_frame_equal(found, expected)
    assert list(expected.columns) == ["money", "code", "day", "flag", "y"]
    assert expected.dtypes.iloc[[0, 2, 4]].tolist() == [np.float64] * 3


@pytest.mark.parametrize("values", [[3, 4], [3.0, 4.0], ["3", "4"], ["3.0", "4.0"], [" 3", "4 "]])
def test_category_is_the_same_text_for_numbers_and_texts(values):
    schema = Schema(Column("y", "numeric"), (Column("c", "categorical"),))
    rows = pd.DataFrame({"c": [*values, None]})
    found, _ = conform(rows, schema, need_target=False)
    assert found["c"].tolist()[:2] == ["3", "4"]
    assert found["c"].isna().tolist() == [False, False, True]


def test_columns_are_found_by_name_and_extra_ones_refused_only_when_strict():
    rows = table(c=repeat("a", "b"))
    schema, _ = infer_schema(rows, "y")
    new = rows[["c", "x", "y"]].assign(extra="1")
    assert list(conform(new, schema)[0]) == ["x", "c", "y"]
    assert "'extra'" in refused(conform, new, schema, strict=True)
    assert list(conform(new.drop(columns="y"), schema, need_target=False)[0]) == ["x", "c"]
    assert "no column 'y'" in refused(conform, new.drop(columns="y"), schema)
    assert "no column 'c'" in refused(conform, new.drop(columns="c"), schema)
    numbered = pd.DataFrame({0: repeat(1, 2, 4), 1: np.arange(N) % 7.0})
    schema, _ = infer_schema(numbered, "1")
    assert conform(numbered, schema)[0].columns.tolist() == ["0", "1"]
    twice = pd.DataFrame([[1, 2]], columns=["0", 0])
    assert "two columns named '0'" in refused(conform, twice, schema)


def test_text_in_a_numeric_column_is_refused_with_value_column_and_line():
    rows = table()
    schema, _ = infer_schema(rows, "y")
    rows.loc[4, "x"] = "high"
    message = refused(conform, rows, schema, source="new.csv", where=third)
    assert "column 'x' of new.csv holds 'high' in line 7" in message
    values = pd.Series([1.0, np.inf, 3.0] * 60)
    rows = table(x=values, y=[f"{n}" for n in range(180)])
    schema, _ = infer_schema(rows, "y")
    assert "'inf' in lines 3, 6" in refused(conform, rows, schema)
    rows = table()
    assert "1e+300" in refused(conform, rows.assign(x=1e300), schema)
    empty = conform(rows.assign(x=np.nan), schema)[0]
    assert empty["x"].isna().all()
    assert conform(rows.assign(x=""), schema)[0]["x"].isna().all()


def test_target_must_be_there_vary_and_be_finite():
    rows = table()
    schema, _ = infer_schema(rows, "y")
    rows.loc[[3, 8], "y"] = None
    assert "2 of 200 rows in t have no finite 'y' (lines 5, 10)" in refused(
        conform, rows, schema, source="t"
    )
    assert "no column 'z' to learn" in refused(infer_schema, rows, "z")
    rows = table(y=["EUR", *repeat("1", "2", n=N - 1)])
    assert "'EUR' in line 2" in refused(conform, rows, infer_schema(rows, "y")[0])
    assert "'inf' in line 4" in refused(conform, table(y=[1.0, 2, np.inf]), schema)


def test_empty_column_and_no_column_at_all_are_refused():
    assert "empty in every row: 'c';" in refused(learn, repeat(None))
    assert "empty in every row: 'c';" in refused(learn, repeat("", "n.c."))
    several = table(c=repeat(None), d=repeat("?"), nom=repeat(None))  # no name is used anyway
    message = refused(infer_schema, several, "y")
    assert "empty in every row: 'c', 'd';" in message
    assert message.endswith("--drop 'c' 'd'")
    assert infer_schema(several, "y", drop=["c", "d"])[0].features == ("x",)
    assert "no usable feature" in refused(infer_schema, table()[["y"]].assign(nom="A"), "y")


# --- absurd values and leaks -----------------------------------------------------------------

HEAVY = {
    "lognormal": lambda rng, n: rng.lognormal(8, 2.5, n),
    "pareto": lambda rng, n: 100 * rng.pareto(1.1, n),
    "zeros": lambda rng, n: rng.lognormal(7, 2, n) * (rng.random(n) < 0.1),
    "money": lambda rng, n: rng.lognormal(12, 1.5, n).round(-3),
    "mostly tiny": lambda rng, n: np.where(rng.random(n) < 0.03, rng.random(n), 1e-12),
    "normal": lambda rng, n: rng.normal(0, 1, n),
}


@pytest.mark.parametrize("kind", HEAVY)
def test_long_tail_is_not_absurd(kind):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = pd.DataFrame({"x": HEAVY[kind](rng, 400), "y": HEAVY[kind](rng, 400)})
        schema, _ = infer_schema(rows, "y")
        found, notes = conform(rows, schema)
        assert (len(found), notes) == (400, [])


def test_absurd_target_leaves_its_row_out_and_names_its_line():
    rows = table()
    rows.loc[[10, 150], "y"] = "1000000000"
    schema, _ = infer_schema(rows, "y")
    found, notes = conform(rows, schema, where=third)
    assert len(found) == N - 2
    assert found.index.tolist() == [n for n in range(N) if n not in (10, 150)]
    assert found["y"].max() < 2000
    assert "2 rows" in notes[0]
    assert "lines 13, 153" in notes[0]


def test_absurd_cell_is_named_with_its_line_also_behind_a_row_left_out():
    rows = table()
    rows.loc[[20, 21], "x"] = "999999999"
    rows.loc[3, "y"] = "1e9"
    schema, _ = infer_schema(rows, "y")
    note, _ = conform(rows, schema)[1]
    assert note == "column 'x' holds 999999999 in lines 22, 23, absurd beside its other values"


def test_column_that_is_the_target_in_other_clothes_is_named():
    y = np.random.default_rng(3).lognormal(5, 1, N)
    noise = np.random.default_rng(4).normal(0, 0.3, N)
    rows = pd.DataFrame({"taxed": 1.2 * y, "log": np.log(y), "near": y * np.exp(noise), "y": y})
    schema, _ = infer_schema(rows, "y")
    notes = leaks(conform(rows, schema)[0], schema)
    assert len(notes) == 2
    assert "'taxed' alone predicts 'y'" in notes[0]
    assert "'log' alone" in notes[1]
    grouped = pd.DataFrame({"c": repeat("a", "b", "d"), "y": repeat(1.0, 2.0, 5.0)})
    schema, _ = infer_schema(grouped, "y")
    assert "'c' alone" in leaks(conform(grouped, schema)[0], schema)[0]


@pytest.mark.parametrize("typed", [True, False])
def test_half_a_million_rows_are_conformed_in_seconds(typed):
    rng, n = np.random.default_rng(0), 500_000
    rows = pd.DataFrame({f"x{i}": rng.normal(size=n).round(3) for i in range(8)})
    rows["zone"] = rng.choice([f"z{i}" for i in range(500)], n)
    rows["y"] = rng.normal(size=n).round(3)
    schema, _ = infer_schema(rows[:1000], "y")
    rows = rows if typed else rows.astype("str")
    start = time.perf_counter()
    assert len(conform(rows, schema)[0]) == n
    assert time.perf_counter() - start < (3 if typed else 8)


# --- what a later file leaves open ---------------------------------------------------------------


def test_later_file_with_points_before_three_digits_is_read_as_trained_or_asked_about():
    def later(trained, new, **options):
        schema = Schema(Column("y", "numeric", "."), (learn(trained)[0],))
        rows = table(c=new, x=repeat("3", "4"), y=repeat("3", "4"))
        return conform(rows, schema, **options)[0]["c"][:3].tolist()

    new = repeat("1.725", "2.310", "4.637")
    assert "'1.725', which can be read as thousands" in refused(later, repeat("949", "604"), new)
    assert later(repeat("949", "604"), new, decimal=".") == [1.725, 2.31, 4.637]
    assert later(repeat("949", "604"), repeat("1.725", "64", "2.310")) == [1725, 64, 2310]
    assert later(repeat("339,5", "64,25"), new) == [1725, 2310, 4637]
    assert later(repeat("949", "604"), repeat("12,5", "949"))[:2] == [12.5, 949]
    assert later(repeat("339.5", "64.25"), new) == [1.725, 2.31, 4.637]
    assert later(repeat(339.5, 64.25), new) == [1.725, 2.31, 4.637]
    assert later(repeat("949", "604"), repeat("12.5", "949", "3.25")) == [12.5, 949, 3.25]


def test_mark_that_the_file_tells_and_how_numbers_look_may_disagree_and_are_asked_about():
    prices = repeat("1.407", "0", "2.310", "7")
    assert "'1.407', which can be read as thousands" in refused(learn, prices, decimal=".")
    rows = pd.DataFrame({"c": prices, "x": repeat("3.5", "4.25"), "y": [str(n) for n in range(N)]})
    schema, _ = infer_schema(rows, "y", decimal=".", numeric=["c"])
    assert conform(rows, schema, decimal=".")[0]["c"][:3].tolist() == [1.407, 0, 2.31]
    rows = rows.drop(columns="x")
    schema, notes = infer_schema(rows, "y", decimal=",")
    assert "'1.407', read as 1407.0" in " ".join(notes)
    for mark in (".", ","):  # later files keep what was a mark of thousands
        assert conform(rows[:3], schema, decimal=mark)[0]["c"].tolist() == [1407, 0, 2310]
    english = rows.assign(c=rows["c"].str.replace(".", ","))
    schema, _ = infer_schema(english, "y", decimal=".")
    assert conform(english[:3], schema, decimal=",")[0]["c"].tolist() == [1407, 0, 2310]
    sure = repeat("1.407.310", "2.310", "7")
    assert learn(sure, decimal=".")[1][:3].tolist() == [1_407_310, 2310, 7]


def test_numbers_with_either_mark_before_decimals_are_asked_about():
    assert "with a point before the decimals" in refused(learn, repeat("1,50", "2.75"))


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (("11,81,140", "5,140", "2,00,000.50"), (1_181_140, 5_140, 200_000.5)),
        (("8.252,58-", "1.000,00", "17,5-"), (-8252.58, 1000, -17.5)),
        (("8-", "100", "17-"), (-8, 100, -17)),
        (("- 5,25", "3,5", "12,75"), (-5.25, 3.5, 12.75)),
        (("−54.82", "3.5", "12.75"), (-54.82, 3.5, 12.75)),
    ],
)
def test_minus_and_groups_of_digits_are_read_as_their_countries_write_them(texts, values):
    assert learn(repeat(*texts))[1][:3].tolist() == list(values)


def test_unit_on_some_numbers_alone_is_none_of_the_others():
    others = [*range(100, 100 + N // 2)]
    assert "'70%'" in refused(learn, [*repeat("70%", "0.66", "0.5")[: N // 2], *others])
    column, _, notes = learn([*repeat("12K", "500", "850")[: N // 2], *others])
    assert column is None or (column.kind == "categorical" and "such as '12K'" in notes)
    assert learn(repeat("$5", "6", "7.5"))[1][:3].tolist() == [5, 6, 7.5]
    assert learn(repeat("0", *["5 kg", "6 kg"] * 3))[1][:3].tolist() == [0, 5, 6]


def test_addresses_of_machines_and_versions_are_no_numbers():
    for form in ("10.0.0.{}", "2.{}.1", "HK$ {}"):
        column, _, notes = learn([form.format(i % 30 + 100) for i in range(N)])
        assert column.kind == "categorical"
        assert f"such as {form.format(100)!r}" in notes
        assert learn(repeat(form.format(101), form.format(102)))[2] == ""


def test_years_of_two_digits_come_first_where_they_are_far_fewer():
    days = pd.date_range("2023-01-01", periods=N, freq="D")
    for form in ("%y/%m/%d", "%y.%m.%d", "%d.%m.%y"):
        _, values, notes = learn(days.strftime(form).tolist())
        assert form in notes
        assert values.tolist() == [float(d) for d in (days - pd.Timestamp(0)).days]
    for frequency in ("ME", "QE"):
        days = pd.date_range("2001-01-01", periods=80, freq=frequency)
        assert "%d/%m/%y" in learn(repeat(*days.strftime("%d/%m/%y")))[2]
    days = pd.date_range("2023-01-01", periods=N, freq="D")
    mixed = [*days.strftime("%d/%m/%y")[:190], *["1/2/23"] * 10]
    assert "%d/%m/%y" in learn(mixed)[2]
    assert "%d/%m/%y" in learn([*days.strftime("%y/%m/%d")[:190], *["5/1/23"] * 10])[2]


def test_later_dates_may_have_a_clock_or_none():
    days = pd.date_range("2023-01-01 08:30", periods=N, freq="D")
    column, *_ = learn(days.strftime("%d.%m.%Y %H:%M").tolist())
    schema = Schema(Column("y", "numeric", "."), (column,))
    texts = repeat("05.03.2024", "05.03.2024 06:00", "05.03.2024 06:00:00", "2024-03-05", "n.c.")
    found = conform(table(c=texts), schema)[0]["c"][:5]
    np.testing.assert_allclose(found, [19787, 19787.25, 19787.25, 19787, np.nan])


def test_digits_are_dates_only_where_all_of_them_are():
    months = [f"20{i % 20:02d}{1 + i % 12:02d}" for i in range(N)]
    assert learn(list(map(int, months)))[0].date_format == "%Y%m"
    assert learn([*map(int, months[1:]), 201913])[0].kind == "numeric"
    assert learn([*months[1:], "20190"])[0].kind == "numeric"
    assert learn(["20190230", *["20190228"] * (N - 1)])[0].kind == "numeric"


def test_later_times_of_day_may_have_seconds_or_none():
    for first, later in (("%H:%M", "%H:%M:%S"), ("%H:%M:%S", "%H:%M")):
        times = pd.date_range("2024-01-01", periods=N, freq="7min")
        column, expected, _ = learn(times.strftime(first).tolist())
        schema = Schema(Column("y", "numeric", "."), (column,))
        found = conform(table(c=times.strftime(later).tolist()), schema)[0]["c"]
        np.testing.assert_array_equal(found, expected)


def test_codes_of_several_widths_keep_the_zero_that_other_programs_take_off():
    texts = repeat("01", "02", "13", "2A", "971")
    column, values, _ = learn(texts)
    schema = Schema(Column("y", "numeric", "."), (column,))
    assert values.tolist() == texts
    found = conform(table(c=[1, 2, 13, 971]).head(4), schema)[0]["c"]
    assert found.tolist() == ["01", "02", "13", "971"]
    assert learn(repeat("01", "1", "2A"))[0].width == 0  # these are two codes


def test_what_databases_write_for_missing_is_missing():
    for marker in ("\\N", "(null)", "[NULL]"):
        column, values, notes = learn(repeat("1.5", "2.5", "3.5", marker))
        assert column.kind == "numeric"
        assert values.isna().sum() == N / 4
        assert marker in notes.replace("\\\\", "\\")


def test_accents_of_one_or_two_characters_are_the_same_in_names_and_cells():
    one = table(**{"région": repeat("Île", "Finistère")})
    schema, _ = infer_schema(one, "y")
    two = one.set_axis([unicodedata.normalize("NFD", name) for name in one], axis=1)
    two.iloc[:, 2] = two.iloc[:, 2].map(lambda cell: unicodedata.normalize("NFD", cell))
    assert list(two) != list(one)
    pd.testing.assert_frame_equal(conform(two, schema)[0], conform(one, schema)[0])


def test_numbers_of_single_precision_are_those_that_a_file_writes():
    numbers = np.random.default_rng(4).normal(size=N).round(3)
    schema, _ = infer_schema(table(c=numbers), "y")
    for kind in ("float32", "Float32", "float32[pyarrow]"):
        found = conform(table(c=pd.Series(numbers).astype(kind)), schema)[0]["c"]
        assert found.tolist() == numbers.tolist()
    missing = pd.Series([np.nan, *numbers[1:]], dtype="float32")
    assert conform(table(c=missing), schema)[0]["c"].isna().sum() == 1


def test_durations_of_a_frame_are_seconds_as_those_of_a_file():
    seconds = [61.5 * (n * n % 173) for n in range(N)]
    took = pd.to_timedelta(seconds, unit="s")
    texts = [str(each).replace("0 days ", "") for each in took]
    schema, _ = infer_schema(table(c=texts), "y")
    for kind in ("timedelta64[ns]", "duration[ms][pyarrow]", object):
        found = conform(table(c=pd.Series(took).astype(kind)), schema)[0]["c"]
        assert found.tolist() == seconds


@pytest.mark.parametrize("form", ["%G-W%V", "%Q"])
def test_format_that_pandas_does_not_take_is_one_line(form):
    said = refused(learn, repeat("2024-W05", "2024-W06"), date=[f"c={form}"])
    assert f"the format {form!r}, which is not understood" in said


@pytest.mark.parametrize(("marker", "share"), [("-9999", 0.3), ("999", 0.2), ("1e20", 0.15)])
def test_number_that_stands_in_for_missing_ones_is_noted_in_however_many_rows(marker, share):
    values = [marker if i % 10 < 10 * share else f"{20 + i % 7}.5" for i in range(N)]
    rows = table(c=values)
    schema, _ = infer_schema(rows, "y")
    assert "absurd beside its other values" in " ".join(conform(rows, schema)[1])
    kept, notes = conform(table(y=values), infer_schema(table(y=values), "y")[0])
    assert len(kept) == N - values.count(marker)
    assert "are left out" in notes[0]


def test_cells_of_several_values_are_left_out():
    people = [{"name": f"Anna {i % 9}", "mail": "a@x.org"} for i in range(N)]
    for cells in (people, [[1, 2]] * N, [np.array([i, 2]) for i in range(N)]):
        column, _, notes = learn(cells)
        assert column is None
        assert "its cells hold several values each" in notes


@pytest.mark.parametrize("name", ["lname", "Kundenname", "Votre nom", "doctor_name", "Strasse"])
def test_more_names_of_persons_are_left_out(name):
    assert learn([f"Wort {i % 90}" for i in range(N)], name)[0] is None


@pytest.mark.parametrize("name", ["Kundennummer", "customer_no", "MRN"])
def test_more_ids_are_left_out(name):
    assert learn(repeat(*range(1, 60)), "customers number")[0].kind == "numeric"
    assert learn(repeat(*range(1, 60)), name)[0] is None


def test_timestamp_is_no_number_of_a_person():
    moments = [str(1_700_100_000_000 + 60_000 * i) for i in range(N)]
    assert learn(moments, "timestamp")[0].kind == "date"


# --- what programs write that give no type, or another one -------------------------------------


def test_amounts_that_a_typed_format_holds_as_text_are_numbers_and_codes_stay_categories():
    for written in (SPREAD, [f"${v:,.2f}" for v in SPREAD], [f"{v} %" for v in SPREAD]):
        texts = pd.Series([str(v) for v in written], dtype="category")
        column, values, notes = learn(texts)
        assert column.kind == "numeric"
        assert values.tolist() == SPREAD
        assert f"holds numbers such as {texts[0]!r}, read as {SPREAD[0]}" in notes
    rooms = pd.Series(repeat("3", "4", "12"), dtype="category")
    assert learn(rooms)[0].kind == "categorical"


def test_blanks_around_names_are_no_part_of_them():
    rows = table(c=repeat("7", "9"))
    schema, _ = infer_schema(rows.rename(columns={"c": " c", "y": "y "}), "y")
    assert schema.features == ("x", "c")
    named = rows.rename(columns={"c": "c  ", "x": "\tx"})  # as pandas reads "c  ,\tx,y"
    assert conform(named, schema)[0].equals(conform(rows, schema)[0])


def test_number_called_like_a_date_is_no_month_of_the_year_601():
    times = [f"{v:.4f}" for v in RNG.uniform(1, 12.99, N)]
    for name in ("reaction_time", "ts"):
        assert learn(times, name)[0].kind == "numeric"
    assert learn(repeat("03.2021", "11.2022"), "ts")[0].date_format == "%m.%Y"


def test_day_that_pandas_wrote_as_a_fraction_beside_missing_ones_is_a_day():
    column, days, _ = learn(repeat("20230904.0", "", "20241013.0"))
    assert (column.kind, column.date_format) == ("date", "%Y%m%d")
    assert days.tolist()[0] == 19_604
    assert np.isnan(days[1])
    later, bad = columns.read_cells(pd.Series(["20230904"]), column)
    assert later.tolist() == [19_604]
    assert not bad.any()


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        (["-1 days +23:45:00", "0 days 00:15:00"], [-900, 900]),
        (["P0DT0H16M25S", "PT3H5M"], [985, 11_100]),
        (["2h 50m", "19h", "135 min", "1h05"], [10_200, 68_400]),
        (["1h30", "12 h 5"], [5_400, 43_500]),
        (["7 hours 56 mins", "1 hour 1 minute"], [28_560, 3_660]),
        (
            ["30:00:01", *[f"{hour:02}:10:{hour + 9:02}" for hour in range(23, 0, -1)]],
            [108_001, 83_432],
        ),
    ],
)
def test_duration_is_one_however_it_is_written(texts, seconds):
    column, values, notes = learn(repeat(*texts))
    assert column.unit == columns.CLOCK
    assert "holds durations, read as seconds" in notes
    assert values.tolist()[:2] == seconds


def test_flag_a_count_and_a_date_are_no_persons_whatever_they_are_called():
    for name, values in (
        ("locataire", repeat("oui", "non")),
        ("csp_locataire", repeat("cadre", "ouvrier", "autre")),
        ("last_login", [f"2024-0{1 + n % 9}-1{n % 7}" for n in range(N)]),
        ("customer_number_of_orders", repeat("3", "4", "9")),
        ("client_no_show", repeat("0", "1", "1")),
        ("material", repeat("000000000000000101", "000000000000000207")),
    ):
        assert learn(values, name)[0] is not None, name
    for name in ("locataire", "titulaires", "nom_titulaire", "login"):
        assert learn(PEOPLE, name)[0] is None, name
    for name in ("client_no", "employee number"):
        assert learn(repeat("3", "4", "9"), name)[0] is None, name


def test_texts_of_digits_that_are_left_out_name_the_flags_that_may_read_them():
    column, _, notes = learn([f"RM{v:,.0f}" for v in RNG.uniform(1e3, 1e6, N)])
    assert column is None
    assert "(--numeric 'c' or --date 'c' says what it holds; --keep 'c' takes it)" in notes
    _, _, notes = learn([f"all different {'x' * n}" for n in range(N)])
    assert "(--keep 'c' takes it)" in notes


def test_won_and_lira_are_money():
    for sign in "₩₺₪":
        assert learn([f"{sign}{v:,.2f}" for v in SPREAD])[1].tolist() == SPREAD


def test_durations_that_a_typed_format_holds_as_text_are_seconds():
    texts = pd.Series(repeat("0 days 00:15:00", "1 days 00:00:01"), dtype="category")
    column, values, _ = learn(texts)
    assert column.unit == columns.CLOCK
    assert values.tolist()[:2] == [900, 86_401]


def test_month_before_a_year_is_a_date_where_it_begins_with_0():
    values = [f"{n % 12 + 1:02}.{2015 + n % 9}" for n in range(N)]
    column, days, _ = learn(values, "Monat")
    assert column.date_format == "%m.%Y"
    assert days[0] == (pd.Timestamp("2015-01-01") - pd.Timestamp(0)).days
    assert learn(["10.2015", "11.2016", "12.2014"] * (N // 3))[0].kind == "numeric"


@pytest.mark.parametrize("none", ["0", "00000000", "99991231"])
def test_day_that_is_unknown_is_missing_among_days_of_eight_digits(none):
    values = [none if n % 5 == 0 else f"202{n % 4}0{n % 9 + 1}17" for n in range(N)]
    column, days, notes = learn(values)
    assert column.kind == "date"
    assert days.isna().mean() == 0.2
    assert f"({none!r}) are read as missing" in notes
    assert learn(["0000-00-00", "2024-03-01"] * (N // 2))[1].isna().mean() == 0.5


def test_code_of_a_place_is_the_same_with_and_without_the_zero_it_begins_with():
    codes = [1000, 6000, 13000, 75001]
    written = [f"{code:05}" for code in codes]
    column, cells, _ = learn(repeat(*codes), "code_postal")
    assert cells[:4].tolist() == written
    for later in (codes, written, [float(code) for code in codes]):
        assert columns.read_cells(pd.Series(later), column)[0].tolist() == written


def test_true_and_false_are_the_same_in_french():
    column, cells, _ = learn(repeat("VRAI", "FAUX"))
    assert cells[:2].tolist() == ["True", "False"]
    assert columns.read_cells(pd.Series([True, False]), column)[0].tolist() == ["True", "False"]


def test_day_and_month_as_a_spreadsheet_shows_them_are_no_negative_number():
    assert learn([f"{n % 28 + 1:02}-Jan" for n in range(N)])[0].kind == "categorical"
    assert learn([f"{n % 90 + 1}-" for n in range(N)])[1][:2].tolist() == [-1, -2]
    assert learn([f"–{n % 90 + 1}" for n in range(N)])[1][:2].tolist() == [-1, -2]


@pytest.mark.parametrize("form", ["epoch s", "epoch ms"])
def test_later_file_may_count_seconds_or_milliseconds(form):
    column, seconds = Column("t", "date", date_format=form), 1_638_316_800
    cells, bad = columns.read_cells(pd.Series([seconds, 1000 * seconds]), column)
    assert cells.tolist() == [18_962, 18_962]
    assert not bad.any()
    cells, bad = columns.read_cells(pd.Series(["2021-12-01", str(seconds), "then"]), column)
    assert cells[:2].tolist() == [18_962, 18_962]
    assert bad.tolist() == [False, False, True]


def test_year_of_two_digits_is_told_by_the_latest_date():
    dates = [f"15/03/{(30 + n) % 100:02}" for n in range(N)]
    assert "(%d/%m/%y, '15/03/68' is 2068-03-15)" in learn(dates)[2]


def test_seasons_are_no_months():
    column, *_ = learn(["2001/02", "2004/05", "2011/12"] * (N // 3))
    assert column.kind == "categorical"
    assert learn(["2001/02", "2004/05", "2011/11"] * (N // 3))[0].kind == "date"


@pytest.mark.parametrize(("nines", "scale"), [(9999.9, 1), (9999999, 10_000)])
def test_nines_of_any_length_stand_in_for_missing_numbers(nines, scale):
    rows = table(c=[nines if n % 4 == 0 else (20 + n % 50 / 10) * scale for n in range(N)])
    schema, _ = infer_schema(rows, "y")
    assert f"holds {nines} in lines" in " ".join(conform(rows, schema)[1])


def test_texts_that_begin_with_numbers_are_told_to_be_a_category():
    _, _, notes = learn([f"{n % 30} ans et {n % 10} mois" for n in range(N)])
    assert "holds codes or numbers as text, such as '0 ans et 0 mois'" in notes


def test_hours_alone_are_a_unit_and_odd_texts_among_durations_are_refused():
    column, values, _ = learn(repeat("5 h", "7 h", "12 h"))
    assert (column.unit, values[:3].tolist()) == ("h", [5, 7, 12])
    column, values, _ = learn(repeat("2h 50m", "135 min"))
    assert values[1] == 8_100
    _, bad = columns.read_cells(pd.Series(["3 h", "5 hounds", "2h 50m x", "45 min"]), column)
    assert bad.tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("texts", "day"),
    [
        (["2024M01", "2024M11"], "2024-01-01"),
        (["2024-01-11 09:21:00,123", "2024-02-12 10:00:00,000"], "2024-01-11 09:21:00.123"),
        (["lundi 21 mars 2022", "Samedi 2 avril 2022"], "2022-03-21"),
        (["8:30 PM", "12:05 AM"], "1900-01-01 20:30"),
    ],
)
def test_dates_of_logs_statistics_and_letters_are_read(texts, day):
    column, days, _ = learn(repeat(*texts))
    assert column.kind == "date"
    assert days[0] == pytest.approx((pd.Timestamp(day) - pd.Timestamp(0)) / pd.Timedelta("1D"))


@pytest.mark.parametrize("form", ["%d/%m/%y", "%d/%m/%Y"])
def test_later_file_may_write_two_or_four_digits_a_year(form):
    column = Column("t", "date", date_format=form)
    cells, bad = columns.read_cells(pd.Series(["21/03/2022", "21/03/22"]), column)
    assert cells.tolist() == [19_072, 19_072]
    assert not bad.any()
