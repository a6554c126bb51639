"""From a file to checked rows to numbers: reading, columns, preprocessor, row hashes.

Belongs here: everything that happens to raw rows before the network sees them. A copy of this
file travels inside every model artifact, so it imports no other file of the project, and no
Keras, no MLflow.
"""

import contextlib
import csv
import glob
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

TARGET = "montant_pret"
SUFFIXES = (".csv", ".parquet")
MIN_ROWS = 20
MAX_CATEGORIES = 1_000
# A standardised value beyond this is a typing error, not a borrower; it would also overflow
# float32 inside the network and come back as NaN.
MAX_STANDARDISED = 1e6
MAX_NUMBER = 1e100
# Rows are scored by the block, large enough to be fast, small enough to stay in cache; the last one
# is filled up to a multiple of LANE. Both are multiples of 64 and of 3: kernels take 4, 6, 8, 16 or
# 24 rows at once, and round what is left over in another way.
BLOCK, LANE = 6_144, 192


class UserError(ValueError):
    """Tell a user, in one line, what was passed, what was expected and how to fix it."""


@dataclass(frozen=True)
class Schema:
    """Name the columns a model uses: the target, the numeric and the categorical features."""

    target: str
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        return self.numeric + self.categorical

    @property
    def kinds(self) -> dict[str, str]:
        return dict.fromkeys(self.numeric, "numeric") | dict.fromkeys(
            self.categorical, "categorical"
        )


# --- reading -----------------------------------------------------------------------------------


def read_rows(path: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """Read a CSV or Parquet file, a folder of them or a glob pattern, into one DataFrame.

    CSV is UTF-8, with or without byte order mark; the separator (`,` `;` tab) and a decimal
    comma are recognised from the first lines.

    Returns the rows as found in the file and a list of remarks for the user.
    Raises UserError for whatever cannot be read as a table.
    """
    tables, notes = [], []
    for file in data_files(path):
        rows, note = _read_parquet(file) if is_parquet(file) else _read_csv(file)
        check_header(file, [str(name) for name in rows.columns])
        tables.append(rows)
        notes += note
        if list(rows.columns) != list(tables[0].columns):
            raise other_columns(file, list(rows.columns), list(tables[0].columns))
    rows = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
    if rows.empty:
        raise no_rows(path)
    return rows, notes


def other_columns(file: Path, names: list[str], before: list[str]) -> UserError:
    return UserError(
        f"{file} has the columns {names}, but the files before it have {before}; give files with "
        "the same columns"
    )


def no_rows(path: str | Path) -> UserError:
    return UserError(f"{path} holds a header but no rows; expected at least {MIN_ROWS} rows")


def not_parquet(file: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(f"{file} is not a complete Parquet file ({reason}); write or copy it again")


def is_parquet(file: Path) -> bool:
    """Tell Parquet from CSV by name, or by its first bytes."""
    return file.suffix.lower() == ".parquet" or _head(file)[:4] == b"PAR1"


def data_files(path: str | Path) -> list[Path]:
    """List the data files behind a path: the file itself, a folder's files, or a glob's matches.

    Raises UserError when there is none.
    """
    path, found, problem = Path(path), [], f"no file at {path}"
    with contextlib.suppress(OSError):  # a name too long for a file, say
        if path.is_file():
            return [path]
        if path.is_dir():
            found = [f for f in sorted(path.iterdir()) if f.suffix.lower() in SUFFIXES]
            problem = f"the folder {path} holds no .csv or .parquet file"
        else:
            found = [Path(f) for f in sorted(glob.glob(str(path))) if Path(f).is_file()]
    if not found:
        raise UserError(f"{problem}; expected a CSV or Parquet file: check the path after --data")
    return found


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(65_536)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check the permissions") from error


def _read_parquet(file: Path) -> tuple[pd.DataFrame, list[str]]:
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise not_parquet(file, error) from error
    check_header(file, table.column_names)
    return table.to_pandas(), []


def _read_csv(file: Path) -> tuple[pd.DataFrame, list[str]]:
    options, notes = csv_options(file)
    with csv_errors(file):
        rows = pd.read_csv(file, low_memory=False, **options)
    if rows.iloc[:, -1].isna().any():
        _check_width(file, options["sep"], rows.shape[1])
    return rows, notes


def csv_options(file: Path) -> tuple[dict, list[str]]:
    """Recognise how a CSV file is written: (options of pandas.read_csv, remarks for the user)."""
    head = _head(file)
    if not head.removeprefix(b"\xef\xbb\xbf").strip():
        raise UserError(f"{file} is empty; expected a CSV file with a header line and rows")
    if b"\0" in head:
        raise UserError(
            f"{file} is a binary file; expected CSV text or Parquet (from a spreadsheet: "
            "'Save as', 'CSV UTF-8')"
        )
    lines = head.decode("utf-8-sig", errors="replace").strip().splitlines()
    separator = max(",;\t", key=lines[0].count)
    french = separator == ";" and re.search(r"(^|;)\s*-?\d+,\d+\s*(;|$)", "\n".join(lines), re.M)
    check_header(file, next(csv.reader(io.StringIO(lines[0]), delimiter=separator)))
    options: dict[str, Any] = {"sep": separator, "decimal": "," if french else "."}
    options |= {"encoding": "utf-8-sig", "index_col": False}
    if separator == ",":
        return options, []
    marks = f"'{separator}' between columns" + (" and a decimal comma" if french else "")
    return options, [f"{file.name} was read with {marks}"]


@contextlib.contextmanager
def csv_errors(file: Path) -> Iterator[None]:
    """Put what pandas says about a CSV file into words for its user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text; convert it with "
            f"'iconv -f WINDOWS-1252 -t UTF-8 {file.name} > utf8.csv'"
        ) from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{file} is not a regular table ({reason}); give every line as many fields as the "
            "header"
        ) from error


def _check_width(file: Path, separator: str, width: int) -> None:
    """Refuse a line with too few fields, such as a file cut off, which pandas would fill up."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        for number, fields in enumerate(csv.reader(stream, delimiter=separator), 1):
            if fields and len(fields) != width:
                raise UserError(
                    f"{file} is not a regular table (line {number} has {len(fields)} fields, not "
                    f"{width}); give every line as many fields as the header"
                )


def check_header(file: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{file} has two columns named {twice[0]!r}; rename or remove one")


# --- columns -----------------------------------------------------------------------------------


def check_target(
    rows: pd.DataFrame, target: str, source: str = "the data", *, whole: bool = True
) -> pd.Series:
    """Return the target as float64, of shape (n_rows,), or say why it cannot be learned.

    `whole` says that these are all rows, so that their number and range can be judged.
    Raises UserError when the column is missing, not numeric, not finite in some rows (with their
    count and first line numbers), constant, or when there are fewer than `MIN_ROWS` rows.
    """
    if target not in rows.columns:
        raise UserError(
            f"{source} has no column {target!r} to learn; its columns are "
            f"{', '.join(map(str, rows.columns))}: name the right one with --target"
        )
    y = pd.Series(as_numbers(rows[target], source), index=rows.index, name=target)
    bad = np.flatnonzero(~np.isfinite(y.to_numpy()))
    if len(bad):
        lines = ", ".join(str(_line(y, i)) for i in bad[:5])
        raise UserError(
            f"{len(bad)} of {len(y)} rows in {source} have no finite {target!r} (lines {lines}"
            f"{', …' if len(bad) > 5 else ''}); expected a number in every row: fill or remove them"
        )
    if whole:
        check_range(len(y), y.min(), y.max(), target, source)
    return y


def check_range(n_rows: int, low: float, high: float, target: str, source: str) -> None:
    """Raise UserError for too few rows, or a target that is the same in all of them."""
    if n_rows < MIN_ROWS:
        raise UserError(f"{source} has {n_rows} rows; expected at least {MIN_ROWS}: add rows")
    if low == high:
        raise UserError(
            f"the target {target!r} is {low:g} in every row of {source}; expected a column "
            "that varies: choose another one with --target"
        )


def _line(values: pd.Series, i: int) -> int:
    """Tell the line of a file that the i-th value stands in; a part of a file keeps its index."""
    label = values.index[i]
    return (label if isinstance(label, (int, np.integer)) else i) + 2


def infer_schema(
    rows: pd.DataFrame, target: str = TARGET, drop: Iterable[str] = ()
) -> tuple[Schema, list[str]]:
    """Tell numeric from categorical columns, and leave out what identifies a row.

    Booleans and text are categorical, other numbers numeric. A text column in which more than
    half the values differ (a name, say) is dropped, and so is a date.

    Returns the schema and a list of remarks for the user.
    Raises UserError for a column that cannot be used: empty, text where most values are numbers,
    more than `MAX_CATEGORIES` categories, or a name in `drop` that is no column.
    """
    unknown = [name for name in drop if name not in rows.columns or name == target]
    if unknown:
        raise UserError(
            f"--drop {unknown[0]!r} is no feature column; the columns are "
            f"{', '.join(str(c) for c in rows.columns if c != target)}"
        )
    numeric: list[str] = []
    categorical: list[str] = []
    dropped, notes = list(drop), []
    for name in rows.columns:
        if name == target or name in dropped:
            continue
        kind, reason = _infer_kind(rows[name])
        if kind == "dropped":
            dropped.append(name)
            notes.append(f"column {name!r} is left out: {reason}")
        else:
            (numeric if kind == "numeric" else categorical).append(name)
    if not numeric and not categorical:
        raise UserError(f"no usable feature column beside the target {target!r}; add columns")
    return Schema(target, tuple(numeric), tuple(categorical), tuple(dropped)), notes


def _infer_kind(values: pd.Series) -> tuple[str, str]:
    name, known = values.name, values.dropna()
    if known.empty:
        raise UserError(
            f"column {name!r} is empty in every training row; expected values: fill it or leave "
            f"it out with --drop {name!r}"
        )
    if pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(values):
        return "dropped", "dates are not supported (turn them into numbers to use them)"
    if pd.api.types.is_bool_dtype(values):
        return "categorical", ""
    if pd.api.types.is_numeric_dtype(values):
        return "numeric", ""
    text = _text(known)
    distinct = pc.count_distinct(text).as_py()
    plain = text.to_pandas().str.replace(",", "")  # "1,5" is meant as a number, and refused as one
    if pd.to_numeric(plain, errors="coerce").notna().mean() > 0.5:
        as_numbers(values, "the training rows")
        return "numeric", ""
    if distinct > max(10, len(known) / 2):
        return "dropped", f"{distinct:,} different texts in {len(known):,} rows identify the rows"
    if distinct > MAX_CATEGORIES:
        raise _too_many(name, distinct)
    return "categorical", ""


def _too_many(name: str, distinct: int) -> UserError:
    return UserError(
        f"column {name!r} has {distinct:,} categories; expected at most {MAX_CATEGORIES:,}: "
        f"group them, or leave it out with --drop {name!r}"
    )


def conform(
    rows: pd.DataFrame,
    schema: Schema,
    *,
    source: str = "the table",
    strict: bool = False,
    compact: bool = False,
) -> pd.DataFrame:
    """Bring rows to the schema: its feature columns in its order, float64 or text.

    `compact` leaves text as pandas categories, which is faster and smaller for many rows.
    Columns that the schema does not know are ignored, or refused when `strict` is set and they
    were not dropped at training either. Missing values stay missing.
    Raises UserError for a missing or an extra column, or a text where a number belongs.
    """
    _check_columns(rows, schema, source)
    extra = set(rows.columns) - {*schema.features, *schema.dropped, schema.target}
    if strict and extra:
        raise UserError(
            f"{source} has the column {sorted(map(str, extra))[0]!r}, which the model was not "
            "trained on; remove it, or train a new model with mlflow_monitoring.py"
        )
    columns = {name: _finite(rows[name], source) for name in schema.numeric}
    columns |= {name: as_categories(rows[name]) for name in schema.categorical}
    frame = pd.DataFrame(columns, index=rows.index)
    return frame if compact else frame.astype(dict.fromkeys(schema.categorical, "str"))


def check_categories(table: pd.DataFrame, preprocessor: Any, source: str) -> None:
    """Refuse categories that no retraining should take up into a model.

    Raises UserError for more than `MAX_CATEGORIES` of them in a column, and for a column that
    holds numbers only where the fitted preprocessor knows texts.
    """
    for _, columns, _, encoder in _category_steps(preprocessor):
        for name, known in zip(columns, encoder.categories_, strict=True):
            found = table[name].dropna().unique()
            if len(found) > MAX_CATEGORIES:
                raise UserError(
                    f"column {name!r} of {source} has {len(found):,} categories; expected at most "
                    f"{MAX_CATEGORIES:,}: group them"
                )
            numbers = [pd.to_numeric(pd.Series(v), errors="coerce").notna() for v in (found, known)]
            if numbers[0].all() and not numbers[1].any():
                raise UserError(
                    f"column {name!r} of {source} holds numbers such as {found[0]}; expected texts "
                    f"such as {known[0]!r}, as at training: give the texts"
                )


def _check_columns(rows: pd.DataFrame, schema: Schema, source: str) -> None:
    missing = [name for name in schema.features if name not in rows.columns]
    if missing:
        raise UserError(
            f"{source} has no column {missing[0]!r}; the model needs "
            f"{', '.join(schema.features)}: add or rename the column"
        )
    twice = [name for name in schema.features if list(rows.columns).count(name) > 1]
    if twice:
        raise UserError(f"{source} has two columns named {twice[0]!r}; rename or remove one")


def as_numbers(values: pd.Series, source: str = "the table") -> np.ndarray:
    """Convert a column to float64; missing stays NaN, a text that is no number is an error."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_complex_dtype(values):
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    try:
        numbers = pd.to_numeric(values.astype(object), errors="coerce").to_numpy(np.float64)
    except OverflowError:  # a whole number beyond float64
        numbers = pd.to_numeric(values.astype(str), errors="coerce").to_numpy(np.float64)
    dates = pd.api.types.is_datetime64_any_dtype(values)
    bad = np.flatnonzero(values.notna() & (np.isnan(numbers) | dates))
    if len(bad):
        raise UserError(
            f"column {values.name!r} of {source} holds {str(values.iloc[bad[0]])[:40]!r} in line "
            f"{_line(values, bad[0])} (the header is line 1); expected a number such as 1234.5: "
            f"correct it ({len(bad)} such rows)"
        )
    return numbers


def _finite(column: pd.Series, source: str) -> np.ndarray:
    """Refuse numbers whose square float64 cannot hold: no mean and variance come of them."""
    values = as_numbers(column, source)
    bad = np.flatnonzero(np.abs(values) > MAX_NUMBER)
    if len(bad):
        raise UserError(
            f"column {column.name!r} holds {values[bad[0]]:g} in line {_line(column, bad[0])} (the "
            f"header is line 1); expected a number below {MAX_NUMBER:g}: correct it ({len(bad)} "
            "such rows)"
        )
    return values


def as_categories(values: pd.Series) -> pd.Categorical:
    """Convert a column to text, each different text stored once; missing stays missing."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = _text(pd.Series(values.cat.categories))
        if levels.null_count == 0 and pc.count_distinct(levels).as_py() == len(levels):
            return pd.Categorical.from_codes(values.cat.codes, levels.to_pandas())
    encoded = _text(values).dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return pd.Categorical.from_codes(codes, encoded.dictionary.to_pandas())


def _text(values: pd.Series) -> pa.Array:
    """Convert a column to an Arrow string array; missing stays null, True is "True", 2.0 is "2"."""
    if not isinstance(values.dtype, pd.StringDtype):
        values = values.astype(object)
        if pd.api.types.infer_dtype(values, skipna=True) != "string":
            values = values.map(_as_text, na_action="ignore").astype(object)
    try:
        array = pa.array(values, type=pa.string(), from_pandas=True)
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot write
        whole = values.map(lambda t: t.encode("utf-8", "backslashreplace").decode(), "ignore")
        array = pa.array(whole, type=pa.string(), from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _as_text(value: Any) -> str:
    is_whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if is_whole else str(value)


# --- preprocessor ------------------------------------------------------------------------------


def fit_preprocessor(rows: pd.DataFrame, schema: Schema) -> "ColumnTransformer":
    """Fit imputation, scaling and one-hot encoding on conformed training rows.

    Returns a fitted `ColumnTransformer`: numeric columns get the mean for missing values and unit
    variance, categorical ones the most frequent value and one column per category, none of them
    set for a category that was not in `rows`.
    """
    categories = {name: sorted(rows[name].dropna().unique()) for name in schema.categorical}
    return _build(schema, [categories]).fit(_sklearn_frame(rows))


class Totals:
    """Add up chunks of training rows to what `fit_preprocessor` would find in all of them.

    Attributes: n_rows; counts, of each category by column; target, the moments of the target.
    """

    def __init__(self, schema: Schema) -> None:
        from sklearn.preprocessing import StandardScaler

        self.schema, self.n_rows = schema, 0
        self.numbers, self.target = StandardScaler(), StandardScaler()
        self.low, self.high, self.at_low, self.at_high = np.inf, -np.inf, 0, 0
        self.counts = {name: pd.Series(dtype=np.int64) for name in schema.categorical}

    def add(self, rows: pd.DataFrame, y: np.ndarray) -> None:
        """Add conformed rows and their targets, float64 of shape (n_rows,)."""
        if not len(rows):
            return
        self.n_rows += len(rows)
        if self.schema.numeric:
            self.numbers.partial_fit(rows[[*self.schema.numeric]].to_numpy())
        self.target.partial_fit(y[:, None])
        for name, known in self.counts.items():
            self.counts[name] = known.add(rows[name].value_counts(), fill_value=0)
            if len(self.counts[name]) > MAX_CATEGORIES:
                raise _too_many(name, len(self.counts[name]))
        low, high = y.min(), y.max()
        self.at_low = np.sum(y == min(low, self.low)) + self.at_low * (self.low <= low)
        self.at_high = np.sum(y == max(high, self.high)) + self.at_high * (self.high >= high)
        self.low, self.high = min(low, self.low), max(high, self.high)

    def levels(self) -> pd.DataFrame:
        """List each column's categories, most frequent first, in rows of a table."""
        table: dict[str, Any] = dict.fromkeys(self.schema.numeric, 0.0)
        height = max([2, *map(len, self.counts.values())])
        for name, counts in self.counts.items():
            # Equally frequent ones in their order, as scikit-learn's imputer has them.
            counts = counts[counts > 0].sort_index().sort_values(ascending=False, kind="stable")
            table[name] = np.resize(counts.index.astype(object), height)
        return pd.DataFrame(table, columns=[*self.schema.features], index=range(height))

    def preprocessor(self) -> "ColumnTransformer":
        """Build the preprocessor that `fit_preprocessor` would have fitted on all rows at once."""
        levels = self.levels()
        fitted = fit_preprocessor(levels, self.schema)
        if self.schema.numeric:
            steps = fitted.named_transformers_["numeric"].named_steps
            steps["impute"].statistics_ = self.numbers.mean_
            seen = np.broadcast_to(self.numbers.n_samples_seen_, self.numbers.mean_.shape)
            # Values filled in with the mean add rows, but nothing to the sum of squares.
            variance = self.numbers.var_ * seen / self.n_rows
            steps["scale"].mean_, steps["scale"].var_ = self.numbers.mean_, variance
            steps["scale"].scale_ = np.where(variance > 0, np.sqrt(variance), 1.0)
            steps["scale"].n_samples_seen_ = np.int64(self.n_rows)
        for _, columns, imputer, _ in _category_steps(fitted):
            imputer.statistics_ = np.array([levels[name].iloc[0] for name in columns], dtype=object)
        return fitted


def _build(schema: Schema, blocks: list[Mapping[str, list[str]]]) -> "ColumnTransformer":
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    steps = []
    if schema.numeric:
        numeric = [("impute", SimpleImputer()), ("scale", StandardScaler())]
        steps.append(("numeric", Pipeline(numeric), list(schema.numeric)))
    for i, block in enumerate(blocks):
        if not block:
            continue
        encoder = OneHotEncoder(
            categories=[np.array(values, dtype=object) for values in block.values()],
            handle_unknown="ignore",
            sparse_output=False,
            dtype=np.float32,
        )
        text = [("impute", SimpleImputer(strategy="most_frequent")), ("encode", encoder)]
        steps.append((f"categorical_{i}", Pipeline(text), list(block)))
    return ColumnTransformer(steps)


def _sklearn_frame(rows: pd.DataFrame) -> pd.DataFrame:
    # scikit-learn's imputer looks for NaN in object columns, not for pandas' own missing value.
    text = rows.select_dtypes("str").columns
    return rows.astype(dict.fromkeys(text, object)).where(rows.notna(), np.nan)


def widen_preprocessor(
    preprocessor: "ColumnTransformer", rows: pd.DataFrame, schema: Schema
) -> tuple["ColumnTransformer", dict[str, list[str]]]:
    """Add one-hot columns for the categories in `rows` that `preprocessor` does not know.

    Means, scales and known categories keep their values, and their columns their places: the new
    columns come last, so that a network widened by as many zero rows predicts the same.
    Returns (preprocessor, {column: [new categories]}); the same object when nothing is new.
    """
    blocks = [
        dict(zip(c, e.categories_, strict=True)) for _, c, _, e in _category_steps(preprocessor)
    ]
    known = {name: {v for b in blocks for v in b.get(name, ())} for name in schema.categorical}
    new = {
        name: added
        for name in schema.categorical
        if (added := sorted(set(rows[name].dropna().unique()) - known[name]))
    }
    if not new:
        return preprocessor, {}
    wider = _build(schema, [*blocks, new]).fit(_sklearn_frame(rows))
    for name, _, _ in preprocessor.transformers:
        for step, fitted in preprocessor.named_transformers_[name].named_steps.items():
            wider.named_transformers_[name].named_steps[step].__dict__.update(fitted.__dict__)
    imputed: dict[str, str] = {}
    for _, columns, imputer, _ in _category_steps(preprocessor):
        imputed = dict(zip(columns, imputer.statistics_, strict=True)) | imputed
    _, columns, imputer, _ = _category_steps(wider)[-1]
    imputer.statistics_ = np.array([imputed[name] for name in columns], dtype=object)
    return wider, new


def _category_steps(preprocessor: "ColumnTransformer") -> list[tuple]:
    """List (name, columns, imputer, encoder) of each categorical block, in column order."""
    return [
        (name, columns, fitted.named_steps["impute"], fitted.named_steps["encode"])
        for name, fitted, columns in preprocessor.transformers_
        if name.startswith("categorical_")
    ]


def is_ours(preprocessor: object) -> bool:
    """Tell whether a preprocessor has the form that `fit_preprocessor` makes."""
    names = [name for name, _, _ in getattr(preprocessor, "transformers_", [])]
    return bool(names) and all(re.fullmatch(r"numeric|categorical_\d+", n) for n in names)


def schema_of(
    preprocessor: "ColumnTransformer", target: str = TARGET, dropped: Iterable[str] = ()
) -> Schema:
    """Read the feature columns back from a fitted preprocessor."""
    columns = {name: tuple(c) for name, _, c in preprocessor.transformers_ if name != "remainder"}
    return Schema(
        target, columns.get("numeric", ()), columns.get("categorical_0", ()), tuple(dropped)
    )


def encode(rows: pd.DataFrame, preprocessor: "ColumnTransformer") -> np.ndarray:
    """Transform rows to the network's input, float32 of shape (n_rows, n_inputs).

    Equal to `preprocessor.transform(rows)` for a preprocessor of `fit_preprocessor`, but many
    times faster, since categories are looked up by Arrow instead of compared one by one; for any
    other preprocessor it *is* that call.
    Raises UserError for text where a number belongs, or numbers too large to be real.
    """
    if not is_ours(preprocessor):
        dense = preprocessor.transform(rows)
        return np.asarray(getattr(dense, "toarray", lambda: dense)(), dtype=np.float32)
    width = sum(s.stop - s.start for s in preprocessor.output_indices_.values())
    X = np.zeros((len(rows), width), dtype=np.float32)
    start = 0
    for name, fitted, columns in preprocessor.transformers_:
        if name == "numeric":
            means, scaler = fitted.named_steps["impute"].statistics_, fitted.named_steps["scale"]
            for j, column in enumerate(columns):
                values = as_numbers(rows[column])
                values = np.where(np.isnan(values), means[j], values)
                X[:, j] = _standardise(values, scaler.mean_[j], scaler.scale_[j], column)
            start = len(columns)
    for _, columns, imputer, encoder in _category_steps(preprocessor):
        for column, most_frequent, values in zip(
            columns, imputer.statistics_, encoder.categories_, strict=True
        ):
            codes = _category_codes(rows[column], values, most_frequent)
            known = np.flatnonzero(codes >= 0)
            X[known, start + codes[known]] = 1
            start += len(values)
    return X


def encode_features(
    rows: pd.DataFrame, schema: Schema, preprocessor: "ColumnTransformer"
) -> np.ndarray:
    """Encode raw rows from outside: check that no feature column is missing, then `encode`.

    Raises UserError as `encode` and `conform` do.
    """
    _check_columns(rows, schema, "the table")
    return encode(rows, preprocessor)


def predict(network: Any, X: Any) -> np.ndarray:
    """Predict with a Keras network, float64 of shape (n_rows,), for X of shape (n_rows, n_inputs).

    A row gets the same bits alone as anywhere among a million others.
    """
    X = np.asarray(X, dtype=np.float32)
    predictions = np.empty(len(X))
    for start in range(0, len(X), BLOCK):
        block = X[start : start + BLOCK]
        filled = np.pad(block, ((0, -len(block) % LANE), (0, 0)))
        output = network.predict_on_batch(filled)
        predictions[start : start + len(block)] = output.reshape(len(filled), -1)[: len(block), 0]
    return predictions


def _standardise(values: np.ndarray, mean: float, scale: float, column: str) -> np.ndarray:
    values = (values - mean) / scale
    largest = np.abs(values).max(initial=0)
    if not largest <= MAX_STANDARDISED:
        i = np.argmax(np.abs(values))
        raise UserError(
            f"column {column!r} holds {values[i] * scale + mean:g} in row {i + 1}, far outside "
            f"anything seen in training (mean {mean:g}, standard deviation {scale:g}); correct it"
        )
    return values


def _category_codes(values: pd.Series, categories: np.ndarray, missing: str) -> np.ndarray:
    """Number each value by its place in `categories`; -1 for a value that is none of them."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        # One look-up per category, not per row; the last place stands for a missing value.
        levels = pd.Series([*values.cat.categories.astype(object), None], dtype=object)
        return _category_codes(levels, categories, missing)[values.cat.codes.to_numpy()]
    text = _text(values)
    codes = pc.fill_null(pc.index_in(text, pa.array(categories, type=text.type)), -1)
    codes = codes.to_numpy(zero_copy_only=False)
    if text.null_count:
        place = np.flatnonzero(categories == missing)
        codes = np.where(
            text.is_null().to_numpy(zero_copy_only=False), place[0] if len(place) else -1, codes
        )
    return codes


def row_hashes(features: pd.DataFrame, y: pd.Series) -> np.ndarray:
    """Hash conformed rows with their target, uint64 of shape (n_rows,).

    Equal rows hash alike whatever file, order or dtype they came in: each column as float64 or
    text (`pandas.util.hash_array`), the columns one after the other by a multiplication and an
    exclusive or (as FNV-1 does with bytes, with Knuth's MMIX multiplier).
    """
    combined = pd.util.hash_array(y.to_numpy(np.float64) + 0.0)  # -0.0 equals 0.0
    for name in features.columns:
        column = features[name]
        if pd.api.types.is_numeric_dtype(column):
            hashed = pd.util.hash_array(column.to_numpy(np.float64, na_value=np.nan) + 0.0)
        else:
            texts = as_categories(column)
            levels = pd.util.hash_array(np.array([*texts.categories, ""], dtype=object))
            levels[-1] = 1  # of missing values, whose code is -1
            hashed = levels[texts.codes]
        combined = (combined * np.uint64(6364136223846793005)) ^ hashed
    return combined
