"""Hold data/make_data.py to what its docstring claims."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import r2_score

DATA = Path(__file__).resolve().parents[1] / "data"
_spec = importlib.util.spec_from_file_location("make_data", DATA / "make_data.py")
make_data = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_data)

COLUMNS = [
    "nom",
    "prenom",
    "age",
    "taille",
    "poids",
    "sexe",
    "sport_licence",
    "niveau_etude",
    "region",
    "smoker",
    "nationalité_francaise",
    "revenu_estime_mois",
    "montant_pret",
]


@pytest.fixture(scope="module")
def files() -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(DATA / f"df_{name}.csv") for name in ("old", "new")}


def row(**changes) -> dict:
    plain = {
        "age": 50,
        "sexe": "H",
        "sport_licence": "non",
        "niveau_etude": "bac+2",
        "region": "Bretagne",
        "smoker": "non",
        "nationalité_francaise": "oui",
        "revenu_estime_mois": 2500,
    }
    return plain | changes


@pytest.mark.parametrize("population", ["old", "new"])
def test_committed_file_equals_a_fresh_generation(population, tmp_path):
    fresh = tmp_path / "fresh.csv"
    make_data.write_rows(fresh, population, 2_000)
    assert fresh.read_bytes() == (DATA / f"df_{population}.csv").read_bytes()


def test_without_arguments_both_files_appear_beside_the_script(tmp_path, monkeypatch):
    monkeypatch.setattr(make_data, "__file__", str(tmp_path / "make_data.py"))
    monkeypatch.chdir("/")
    assert make_data.main([]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["df_new.csv", "df_old.csv"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (DATA / path.name).read_bytes()


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_data.write_rows(tmp_path / f"{name}.csv", "old", 200, seed)
    a, b, c = ((tmp_path / f"{name}.csv").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("population", ["old", "new"])
def test_files_are_complete_and_hold_no_row_twice(files, population):
    frame = files[population]
    assert list(frame.columns) == COLUMNS
    assert frame.shape == (2_000, 13)
    assert not frame.isna().any(axis=None)
    assert not frame.duplicated().any()


@pytest.mark.parametrize("population", ["old", "new"])
def test_names_repeat_as_in_real_files(files, population):
    frame = files[population]
    assert frame["nom"].nunique() == pytest.approx(399, abs=3)
    assert frame["prenom"].nunique() == pytest.approx(215, abs=3)
    assert frame["nom"].value_counts().max() < 20
    assert frame["prenom"].value_counts().max() < 30


def test_the_two_files_share_no_person(files):
    assert pd.concat(files.values()).duplicated(COLUMNS[:5]).sum() == 0


def test_old_rows_have_the_shares_of_the_old_population(files):
    old = files["old"]
    shares = {
        "sexe": {"H": 0.8},
        "sport_licence": {"oui": 0.81},
        "smoker": {"non": 0.8},
        "nationalité_francaise": {"oui": 0.8},
        "niveau_etude": {"aucun": 0.05, "bac": 0.05, "master": 0.31, "doctorat": 0.34}
        | {"bac+2": 0.24},
    }
    for column, expected in shares.items():
        found = old[column].value_counts(normalize=True)
        for value, share in expected.items():
            assert found[value] == pytest.approx(share, abs=0.025), (column, value)
    regions = old["region"].value_counts(normalize=True)
    assert len(regions) == 8
    assert regions.iloc[0] == pytest.approx(0.44, abs=0.025)
    assert 0 < regions.iloc[-1] < 0.01


def test_new_rows_are_balanced_but_for_nationality(files):
    new = files["new"]
    for column, levels in {"sexe": 2, "sport_licence": 2, "smoker": 2, "niveau_etude": 5}.items():
        found = new[column].value_counts(normalize=True)
        assert len(found) == levels
        assert found.to_numpy() == pytest.approx(np.full(levels, 1 / levels), abs=0.03)
    assert new["region"].value_counts(normalize=True).to_numpy() == pytest.approx(0.125, abs=0.025)
    assert (new["nationalité_francaise"] == "oui").mean() == pytest.approx(0.59, abs=0.03)


def test_numbers_have_the_ranges_and_means_of_their_population(files):
    old, new = files["old"], files["new"]
    bounds = {"age": (36, 75), "taille": (155, 175), "poids": (50, 80)}
    for column, (low, high) in bounds.items():
        assert (old[column].min(), old[column].max()) == (low, high)
    assert (new["age"].min(), new["age"].max()) == (18, 75)
    assert old["age"].mean() == pytest.approx(55, abs=1)
    assert new["age"].mean() == pytest.approx(46, abs=1)
    for column, mean, sd in (("taille", 170, 10), ("poids", 70, 15)):
        assert new[column].mean() == pytest.approx(mean, abs=1)
        assert new[column].std() == pytest.approx(sd, rel=0.06)
    for frame in (old, new):
        income = frame["revenu_estime_mois"]
        assert income.min() == 500
        assert income.mean() == pytest.approx(2_500, abs=60)
        assert income.std() == pytest.approx(1_130, rel=0.05)


@pytest.mark.parametrize(
    ("population", "floor", "cap"),
    [("old", (0.13, 0.02), (0.04, 0.015)), ("new", (0.44, 0.03), (0.01, 0.007))],
)
def test_amounts_pile_up_on_both_bounds(files, population, floor, cap):
    amount = files[population]["montant_pret"]
    assert (amount.min(), amount.max()) == (500, 40_000)
    assert (amount == 500).mean() == pytest.approx(floor[0], abs=floor[1])
    assert (amount == 40_000).mean() == pytest.approx(cap[0], abs=cap[1])


def test_nationality_matters_most_and_income_correlates_at_about_a_third(files):
    old = files["old"]
    amount = old["montant_pret"]
    assert old["revenu_estime_mois"].corr(amount) == pytest.approx(0.31, abs=0.04)
    explained = {
        column: amount.groupby(old[column]).transform("mean").var() / amount.var()
        for column in make_data.EFFECTS
    }
    assert max(explained, key=explained.get) == "nationalité_francaise"
    assert min(explained.values()) > 0.005


def test_latent_amount_equals_a_sum_by_hand():
    rows = pd.DataFrame(
        [
            row(sexe="F", sport_licence="oui", smoker="oui", nationalité_francaise="non"),
            row(
                age=28,
                smoker="oui",
                niveau_etude="doctorat",
                region="Corse",
                revenu_estime_mois=3500,
            ),
            row(age=60, smoker="oui", nationalité_francaise="non", revenu_estime_mois=1500),
        ]
    )
    # At 28 the youth term is half of 9,000; at 50 and 60 it is 1.36 and 0.02.
    by_hand = [
        18_300 - 4_000 + 4_000 - 5_000 - 27_000 - 1.36,
        18_300 - 5_000 + 2_200 + 6_500 - 6_000 + 4_500 - 4_500,
        18_300 - 5_000 - 1_000 - 27_000 - 2_500 - 0.02,
    ]
    assert make_data.latent_amount(rows) == pytest.approx(by_hand, abs=0.01)


def test_youth_lowers_the_amount_where_old_rows_end():
    rows = pd.DataFrame([row(age=age) for age in (18, 36, 75)])
    at_18, at_36, at_75 = make_data.latent_amount(rows)
    assert at_75 - at_18 > 8_000
    assert at_75 - at_36 < 400


def test_expected_amount_is_the_mean_of_many_noisy_draws():
    rows = make_data.generate("new", 2_000)
    mu = make_data.latent_amount(rows)
    picked = np.argsort(mu)[[400, 800, 1_100, 1_400, 1_700, 1_999]]
    noise = 4_800 * np.random.default_rng(0).standard_normal(200_000)
    means = [np.rint(np.clip(m + noise, 500, 40_000)).mean() for m in mu[picked]]
    expected = make_data.expected_amount(rows.iloc[picked])
    assert expected.dtype == np.float64
    assert expected.shape == (6,)
    # Four standard errors of a mean of 200,000 draws.
    assert expected == pytest.approx(means, abs=4 * 4_800 / 200_000**0.5)


@pytest.mark.parametrize(("population", "best"), [("old", 0.88), ("new", 0.895)])
def test_expected_amount_reaches_the_stated_r2_and_no_shift_of_it_does_better(population, best):
    rows = make_data.generate(population, 50_000, seed=1)
    amount, expected = rows["montant_pret"], make_data.expected_amount(rows)
    reached = r2_score(amount, expected)
    assert reached == pytest.approx(best, abs=0.01)
    assert reached > r2_score(amount, np.clip(make_data.latent_amount(rows), 500, 40_000))
    assert abs(np.mean(amount - expected)) < 4 * np.std(amount - expected) / 50_000**0.5


def test_expected_amount_reads_the_committed_file_as_it_reads_generated_rows(files):
    from_csv = make_data.expected_amount(files["old"])
    assert np.array_equal(from_csv, make_data.expected_amount(make_data.generate("old", 2_000)))


def test_an_unknown_value_raises_instead_of_passing_as_nan():
    with pytest.raises(ValueError, match="unknown value"):
        make_data.expected_amount(pd.DataFrame([row(region="Atlantide")]))


def test_csv_and_parquet_hold_the_same_rows_over_several_chunks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_data, "CHUNK_ROWS", 1_000)
    for name in ("big.csv", "big.parquet"):
        arguments = ["--rows", "2500", "--population", "new", "--seed", "7"]
        assert make_data.main([*arguments, "--output", str(tmp_path / name)]) == 0
    from_csv = pd.read_csv(tmp_path / "big.csv")
    table = pq.read_table(tmp_path / "big.parquet")
    assert len(from_csv) == table.num_rows == 2_500
    assert table.column_names == list(from_csv.columns) == COLUMNS
    assert table.to_pylist() == from_csv.to_dict("records")
    assert not from_csv.duplicated().any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.csv", "big.parquet"]


def test_parquet_text_columns_are_dictionaries(tmp_path):
    make_data.write_rows(tmp_path / "a.parquet", "old", 300)
    schema = pq.read_table(tmp_path / "a.parquet").schema
    text = {field.name for field in schema if pa.types.is_dictionary(field.type)}
    assert text == {*make_data.SYLLABLES, *make_data.EFFECTS}
    assert {str(field.type) for field in schema if field.name not in text} == {"int64"}


def test_a_failed_write_keeps_the_former_file_and_leaves_no_part(tmp_path, monkeypatch):
    target = tmp_path / "kept.csv"
    target.write_text("former")
    generate = make_data.generate

    def full_disk(population, rows, seed, chunk):
        if chunk == 1:
            raise OSError(28, "No space left on device")
        return generate(population, rows, seed, chunk)

    monkeypatch.setattr(make_data, "CHUNK_ROWS", 100)
    monkeypatch.setattr(make_data, "generate", full_disk)
    with pytest.raises(OSError, match="No space"):
        make_data.write_rows(target, "old", 200)
    assert target.read_text() == "former"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.csv"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "0", "--output", "a.csv"], "'0'"),
        (["--rows", "-5", "--output", "a.csv"], "'-5'"),
        (["--rows", "1.5", "--output", "a.csv"], "'1.5'"),
        (["--seed", "-1", "--output", "a.csv"], "'-1'"),
        (["--output", "a.xlsx"], "'a.xlsx', expected a name ending in .csv or .parquet"),
        (["--output", "missing/a.csv"], "create 'missing' first"),
        (["--output", "folder.csv"], "this is a folder"),
        (["--population", "both", "--output", "a.csv"], "'both'"),
        (["--rows", "10"], "add --output"),
        (["--typo\n"], "--typo"),
    ],
)
def test_bad_arguments_exit_2_with_one_line_on_stderr(
    arguments, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SystemExit) as stop:
        make_data.main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert [p.name for p in tmp_path.iterdir()] == ["folder.csv"]


def test_an_unwritable_file_exits_2_with_one_line_on_stderr(tmp_path, capsys):
    (tmp_path / "a.csv.part").mkdir()
    assert make_data.main(["--rows", "10", "--output", str(tmp_path / "a.csv")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "a.csv" in error


def test_help_shows_the_runnable_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        make_data.main(["--help"])
    assert stop.value.code == 0
    assert "python data/make_data.py --rows" in capsys.readouterr().out
