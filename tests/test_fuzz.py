"""Claims about the served model under hundreds of damaged tables: an answer or a clear error."""

import datetime
import decimal
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from toolkit import encoding
from toolkit.errors import UserError

FRAMES = 600
VALUES = [
    *(
        None,
        pd.NA,
        pd.NaT,
        np.nan,
        np.inf,
        -np.inf,
        0,
        -1,
        1e300,
        -1e308,
        5e-324,
        10**400,
        -(2**63),
    ),
    *(True, np.bool_(False), np.float16(2), np.uint64(2**64 - 1), decimal.Decimal("1.5"), 1 + 2j),
    *("", " ", "12", "1,5", "1e5", "nan", "inf", "0x10", "Atlantis", "\0", "\ud800", "é" * 9_999),
    *(b"12", b"\xff", [1, 2], [], {"a": {"b": 1}}, {1}, (1,), object(), np.array([1, 2]), print),
    *(datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2), pd.Timedelta(1), pd.Period("2020")),
    *(pd.Timestamp("2020", tz="UTC"), pd.Interval(0, 1), pd.Series([1]), pd.DataFrame({"a": [1]})),
]
TYPES = [
    *("float16", "float32", "Float64", "Int8", "Int64", "uint8", "bool", "boolean", "complex128"),
    *("object", "str", "string", "category", "datetime64[ns]", "timedelta64[ns]", "bytes", "S5"),
    *("period[D]", "Sparse[float]", "int64[pyarrow]", "double[pyarrow]", "large_string[pyarrow]"),
]


def column_of(rows, rng):
    return rows.columns[rng.integers(rows.shape[1])]


def plant(rows, rng):
    """Put an odd value into some cells of a column, or into all."""
    name, value = column_of(rows, rng), VALUES[rng.integers(len(VALUES))]
    cells = rows[name].astype(object).tolist() if rows.columns.is_unique else [0] * len(rows)
    chosen = rng.random(len(rows)) < rng.choice([0.1, 1.0])
    mixed = [value if hit else cell for hit, cell in zip(chosen, cells, strict=True)]
    return rows.assign(**{str(name): pd.Series(mixed, index=rows.index, dtype=object)})


def retype(rows, rng):
    name, kind = column_of(rows, rng), TYPES[rng.integers(len(TYPES))]
    if "pyarrow" in kind and not pd.api.types.is_numeric_dtype(rows.dtypes[name]):
        return rows  # pyarrow itself crashes over some planted values
    return rows.astype({name: kind})


def drop(rows, rng):
    return rows.drop(columns=column_of(rows, rng))


def rename(rows, rng):
    return rows.rename(
        columns={column_of(rows, rng): rng.choice(["Income", "", "income ", 7, None])}
    )


def duplicate(rows, rng):
    return pd.concat([rows, rows[[column_of(rows, rng)]]], axis=1)


def cut(rows, rng):
    return rows.head(rng.integers(3))


def reindex(rows, rng):
    odd = [list("abcdefgh"), [0] * 8, pd.date_range("2020", periods=8), [(i, 0) for i in range(8)]]
    return rows.set_index(pd.Index(odd[rng.integers(4)][: len(rows)]))


def shuffle(rows, rng):
    return rows[rng.permutation(rows.columns.to_numpy())] if rows.columns.is_unique else rows


MUTATIONS = [*[plant] * 8, *[retype] * 8, drop, rename, duplicate, cut, reindex, shuffle]


def mutated(rows, rng):
    """Damage a table one to three times; a change that pandas itself refuses is left out."""
    for _ in range(rng.integers(1, 4)):
        mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
        try:
            rows = mutation(rows, rng)
        except Exception:  # pandas knows many: the cast is impossible, not our claim
            continue
    return rows


@pytest.fixture(scope="module")
def served(tiny):
    """Give the served model as MLflow makes it, without its files."""
    from toolkit import served_model

    model = served_model.ServedModel()
    model.encoding, model.user_error = encoding, UserError
    model.preprocessor, model.network = tiny.preprocessor, tiny.network
    return model


@pytest.mark.filterwarnings("ignore")
def test_hundreds_of_damaged_tables_get_an_answer_or_a_clear_error(served, tiny_rows):
    rows, rng = tiny_rows.drop(columns="y").head(8), np.random.default_rng(7)
    answers, refusals = Counter(), []
    for number in range(FRAMES):
        table = mutated(rows, rng)
        try:
            found = served.predict(None, table)
        except MlflowException as error:
            refusals.append(error)
            answers["refused"] += 1
        except Exception as error:
            raise AssertionError(f"table {number} raised {error!r}:\n{table}") from error
        else:
            assert found.shape == (len(table),), number
            assert np.isfinite(found).all(), f"table {number} got {found}:\n{table}"
            answers["answered"] += 1
    for error in refusals:
        assert error.get_http_status_code() == 400, error
        assert "\n" not in str(error), error
        assert any(f" {word}" in str(error) for word in ("expected", "add", "remove", "correct"))
    assert min(answers.values()) > FRAMES / 10  # both ends are reached
