"""Two models on the same rows: scores, intervals, drift, groups, verdict and report.

Here belongs whatever follows from rows and predictions alone. Training, MLflow, files, pictures
and printing do not: callers log and print what these functions return, figures.py draws it.

Signs: a *difference* is retrained minus parent, so negative is better; a *gain* is the reverse.
Amounts are in units of the target. Intervals are 95 % intervals unless a caller asks otherwise.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

PARENT, RETRAINED = "parent", "retrained"  # the names that `evaluate` and `report` look for
MISSING, OTHER = "(missing)", "(other)"
BOOTSTRAP_ROWS = (20, 1_000)  # with fewer the bootstrap is too narrow, with more it is slow
DRIFT_DISTANCE = 0.1  # the default of Evidently for both distances, https://docs.evidentlyai.com
DRIFT_COLUMNS = ["column", "kind", "distance", "p_value", "drifted", "new_categories"]
DRIFT_COLUMNS += ["missing_before", "missing_after"]
EXPECTED_COUNT = 5  # Cochran (1954): the chi-square approximation needs as many in each cell
SIZABLE_GROUP = 20  # rows; the mean of fewer says little about a group


@dataclass(frozen=True)
class Interval:
    """A mean in units of the target, with the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class HeldOut:
    """One set of held-out rows: how many, `compare`'s table, the difference in MAE."""

    rows: int
    scores: pd.DataFrame
    difference: Interval | None

    @property
    def change(self) -> Interval:
        """Return the difference; raises ValueError where no pair of models was scored."""
        if self.difference is None:
            raise ValueError(
                "no difference: expected predictions of a parent and a retrained model"
            )
        return self.difference


@dataclass(frozen=True)
class Attribution:
    """Gains in MAE on new rows: all of it, by more training alone, by the new data."""

    total: Interval
    more_training: Interval
    new_data: Interval
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """Whether the retrained model replaces its parent, and why, in words with the figures."""

    promoted: bool
    reason: str


@dataclass(frozen=True)
class Evidence:
    """Everything that `report` tells; `held_out` maps "new", "old", … to rows scored alike."""

    verdict: Verdict
    held_out: Mapping[str, HeldOut]
    unit: str = ""
    attribution: Attribution | None = None
    purity: Mapping[str, int] | None = None
    drift: pd.DataFrame | None = None
    bounds: pd.DataFrame | None = None
    groups: pd.DataFrame | None = None
    caveats: Iterable[str] = ()


def paired_interval(
    difference: ArrayLike, *, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Estimate the mean of per-row differences, of shape (n_rows,), with its interval.

    From 20 to 1,000 rows: the BCa bootstrap (Efron 1987, `scipy.stats.bootstrap`), its resamples
    fixed by `seed`. Fewer rows, for which that is too narrow, more, for which resampling is
    pointless, and samples on which it fails: Student's interval of the mean, which is the normal
    one when rows are many. A constant difference has an interval of no width; a single row has
    one without bounds. Raises ValueError unless `difference` is 1-d, finite and not empty.
    """
    from scipy import stats

    values = _vector(difference, "difference")
    mean, n_rows = float(values.mean()), len(values)
    if n_rows == 1:
        return Interval(mean, -math.inf, math.inf)
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    if BOOTSTRAP_ROWS[0] <= n_rows <= BOOTSTRAP_ROWS[1]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a failure shows as NaN below
            low, high = stats.bootstrap(
                (values,), np.mean, confidence_level=confidence, n_resamples=n_resamples, rng=seed
            ).confidence_interval
        if math.isfinite(low) and math.isfinite(high):
            return Interval(mean, float(low), float(high))
    width = stats.t.ppf((1 + confidence) / 2, n_rows - 1) * values.std(ddof=1) / math.sqrt(n_rows)
    return Interval(mean, float(mean - width), float(mean + width))


def mae_difference(y_true: ArrayLike, parent: ArrayLike, retrained: ArrayLike) -> Interval:
    """Estimate MAE of retrained minus MAE of parent; three arrays of shape (n_rows,)."""
    y, before, after = _vectors(y_true, {PARENT: parent, RETRAINED: retrained})
    return paired_interval(np.abs(y - after) - np.abs(y - before))


def compare(y_true: ArrayLike, predictions: Mapping[str, ArrayLike]) -> pd.DataFrame:
    """Score each model on the same rows: columns MAE, MSE, R², one line per model name.

    All arrays are of shape (n_rows,); R² of a single row is NaN. Raises ValueError for other
    shapes (a column of shape (n_rows, 1) would broadcast silently), no rows, NaN and infinity.
    """
    from sklearn.metrics import r2_score

    y, *arrays = _vectors(y_true, predictions)
    table = pd.DataFrame(index=pd.Index(predictions, name="model"))
    table["MAE"] = [float(np.abs(y - values).mean()) for values in arrays]
    table["MSE"] = [float(np.square(y - values).mean()) for values in arrays]
    table["R²"] = [r2_score(y, values) if len(y) > 1 else math.nan for values in arrays]
    return table


def evaluate(y_true: ArrayLike, predictions: Mapping[str, ArrayLike]) -> HeldOut:
    """Score models as `compare` does; add the difference of "retrained" against "parent"."""
    scores, difference = compare(y_true, predictions), None
    if PARENT in predictions and RETRAINED in predictions:
        difference = mae_difference(y_true, predictions[PARENT], predictions[RETRAINED])
    return HeldOut(len(np.asarray(y_true)), scores, difference)


def attribution(
    y_new: ArrayLike, parent: ArrayLike, control: ArrayLike, retrained: ArrayLike, unit: str = ""
) -> Attribution:
    """Split the gain on new rows into what more training brings and what the new data bring.

    `control` is the parent trained for as many further updates on old rows only; parent minus
    control is the gain from more training, control minus retrained that from the new data.
    Arrays of shape (n_rows,): targets and the predictions of the three models.
    """
    more = mae_difference(y_new, control, parent)
    new = mae_difference(y_new, retrained, control)
    total = mae_difference(y_new, retrained, parent)
    gain, by_more, by_new = (format_amount(part.estimate, unit) for part in (total, more, new))
    head = f"of the gain of {gain}{'' if total.low > 0 else ' (itself not proven)'}"
    if total.estimate <= 0:
        head = f"there is no gain but a loss of {format_amount(-total.estimate, unit)}"
    if new.low > 0:
        tail = f"{by_new} come with the new data, {by_more} from more training"
    else:
        by_more = format_amount(more.estimate, unit, signed=True)
        tail = f"{by_more} by more training and {format_interval(new, unit)} by the new data, "
        tail += "which is no proven gain"
    return Attribution(total, more, new, f"{head}, {tail}")


def decide(
    new: Interval,
    old: Interval | None,
    old_mae_parent: float | None,
    max_forgetting: float = 0.05,
    unit: str = "",
) -> Verdict:
    """Judge the differences in MAE on new and old rows.

    Promoted when the interval on new rows lies wholly below zero and that on old rows ends at or
    below `max_forgetting` (a share) of the parent's MAE there. `old` is None where no old row is
    at hand: then the new rows alone decide, and the reason says what is missing.
    """
    better = new.high < 0
    reason = f"MAE on new rows {format_interval(new, unit)}, {'a' if better else 'no'} proven gain"
    if old is None or old_mae_parent is None:
        return Verdict(better, f"{reason}; no old row at hand, so forgetting could not be checked")
    allowed = max_forgetting * old_mae_parent
    kept = old.high <= allowed
    limit = f"{'within' if kept else 'beyond'} the {format_amount(allowed, unit)} allowed"
    return Verdict(better and kept, f"{reason}; on old rows {format_interval(old, unit)}, {limit}")


def drift(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    kinds: Mapping[str, str],
    *,
    target: str | None = None,
    threshold: float = DRIFT_DISTANCE,
    level: float = 0.05,
) -> pd.DataFrame:
    """Measure how far each column of `current` has moved from `reference`: `DRIFT_COLUMNS`.

    `kinds` maps columns to "numeric" or "categorical"; `target` adds a numeric one. `distance` is
    Wasserstein's in reference standard deviations for numbers, Jensen–Shannon's (base 2, 0 to 1)
    for categories, where missing counts as one; `p_value` is of a Kolmogorov–Smirnov or
    chi-square test. `drifted` asks for both a distance above `threshold`, so that many rows
    alone do not fire, and p below `level` divided by the number of tests, so that few do not
    either. Numeric columns are tested a second time, in the same way, for the share of missing
    values. NaN where nothing can be measured. Raises ValueError for an unknown kind.
    """
    kinds = {**kinds, **({target: "numeric"} if target else {})}
    p_limit = level / max(1, sum(2 if kind == "numeric" else 1 for kind in kinds.values()))
    lines = []
    for name, kind in kinds.items():
        old, new, added = reference[name], current[name], ""
        if kind == "numeric":
            tests = [_numeric_drift(old, new), _categorical_drift(old.isna(), new.isna())]
        elif kind == "categorical":
            tests, known = [_categorical_drift(old, new)], set(old.dropna())
            added = listed(value for value in new.dropna().unique() if value not in known)
        else:
            raise ValueError(f"{name!r}: expected kind 'numeric' or 'categorical', got {kind!r}")
        fired = any(distance > threshold and p < p_limit for distance, p in tests)
        lines.append((name, kind, *tests[0], fired, added, old.isna().mean(), new.isna().mean()))
    return pd.DataFrame(lines, columns=DRIFT_COLUMNS)


def _numeric_drift(reference: pd.Series, current: pd.Series) -> tuple[float, float]:
    from scipy import stats

    old, new = (
        pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=math.nan)
        for column in (reference, current)
    )
    old, new = old[np.isfinite(old)], new[np.isfinite(new)]
    if len(old) == 0 or len(new) == 0:
        return math.nan, math.nan
    # A constant reference has no scale of its own.
    scale = old.std() or np.concatenate([old, new]).std() or 1.0
    # The approximation needs some rows, the exact test takes long with many.
    method = "exact" if len(old) + len(new) < 100 else "asymp"
    p_value = stats.ks_2samp(old, new, method=method).pvalue
    return float(stats.wasserstein_distance(old, new) / scale), float(p_value)


def _categorical_drift(reference: pd.Series, current: pd.Series) -> tuple[float, float]:
    from scipy.special import rel_entr

    both = pd.concat([reference, current], ignore_index=True)
    codes, names = pd.factorize(both, use_na_sentinel=False)
    halves = np.split(codes, [len(reference)])
    counts = np.stack([np.bincount(half, minlength=len(names)) for half in halves])
    if len(reference) == 0 or len(current) == 0:
        return math.nan, math.nan
    shares = counts / counts.sum(axis=1, keepdims=True)
    divergence = rel_entr(shares, shares.mean(axis=0)).sum() / (2 * math.log(2))
    return math.sqrt(max(divergence, 0.0)), _independence_p(counts)


def _independence_p(counts: np.ndarray) -> float:
    """Test if two samples, counts of shape (2, n_categories), can share one distribution."""
    from scipy import stats

    counts = counts[:, np.argsort(-counts.sum(axis=0))]
    expected = counts.sum(axis=0) * counts.sum(axis=1).min() / counts.sum()
    n_kept = int((expected >= EXPECTED_COUNT).sum())
    cells, rare = counts[:, :n_kept], counts[:, n_kept:].sum(axis=1)
    if n_kept > 1 and expected[n_kept:].sum() < EXPECTED_COUNT:
        cells[:, -1] += rare
    elif rare.any():
        cells = np.column_stack([cells, rare])
    return float(stats.chi2_contingency(cells).pvalue) if cells.shape[1] > 1 else 1.0


def bounds_share(
    y_old: ArrayLike, y_new: ArrayLike, low: float | None = None, high: float | None = None
) -> pd.DataFrame:
    """Count the share of targets exactly at a bound: columns bound, value, before, after.

    `low` and `high` default to the smallest and largest of `y_old`; arrays of shape (n_rows,).
    """
    old, new = _vector(y_old, "y_old"), _vector(y_new, "y_new")
    bounds = {"lowest": old.min() if low is None else low}
    bounds["highest"] = old.max() if high is None else high
    lines = [(name, at, (old == at).mean(), (new == at).mean()) for name, at in bounds.items()]
    return pd.DataFrame(lines, columns=["bound", "value", "before", "after"])


def drift_summary(table: pd.DataFrame, bounds: pd.DataFrame | None = None) -> list[str]:
    """Tell `drift`'s table, and `bounds_share`'s if given, in one to three lines of plain text."""
    far = table[table["drifted"]].sort_values("distance", ascending=False)
    names = listed(f"{row.column} {row.distance:.2f}" for row in far.itertuples())
    lines = [f"drift: {len(far)} of {len(table)} columns{': ' if names else ''}{names}"]
    added = table[table["new_categories"] != ""].itertuples()
    names = listed((f"{row.column} ({row.new_categories})" for row in added), most=3)
    lines += [f"new categories: {names}"] if names else []
    lines += [] if bounds is None else [f"target: {_bounds_text(bounds)}"]
    return [_printable(line) for line in lines]


def worthwhile(
    table: pd.DataFrame,
    old_errors: ArrayLike | None = None,
    new_errors: ArrayLike | None = None,
    unit: str = "",
) -> tuple[bool, str]:
    """Say before any training whether a retraining looks worthwhile, and why, in one sentence.

    `table` is `drift`'s. The errors, if known, are the parent's absolute ones on its held-out
    rows and on the new ones, each of shape (n_rows,). The rows differ, so an error that did not
    rise proves nothing; one clearly higher (Welch 1947) counts as much as drift does.
    """
    n_drifted = int(table["drifted"].sum())
    looks, found = n_drifted > 0, f"{n_drifted} of {len(table)} columns drifted"
    if old_errors is not None and new_errors is not None:
        old, new = _vector(old_errors, "old_errors"), _vector(new_errors, "new_errors")
        spread = math.sqrt(old.var() / len(old) + new.var() / len(new))
        looks |= bool(new.mean() - old.mean() > 1.96 * spread)
        found += f", the parent's MAE is {format_amount(new.mean(), unit)} on new rows"
        found += f" and {format_amount(old.mean(), unit)} on its own held-out rows"
    return looks, f"a retraining {'looks worthwhile' if looks else 'promises little'}: {found}"


def groups(
    rows: pd.DataFrame,
    categorical_columns: Iterable[str],
    y_true: ArrayLike,
    parent_prediction: ArrayLike | None,
    child_prediction: ArrayLike,
    *,
    largest: int = 12,
) -> pd.DataFrame:
    """Compare actual and predicted means, MAE and bias per category, before and after.

    One line per column and category: the `largest` of a column by size, the rest pooled as
    "(other)", absent values as "(missing)". Bias is mean prediction minus mean actual. `worse`:
    Student's paired interval of the change in MAE lies above zero in a group of 20 rows or more;
    it is taken group by group, so that one unchanged group in forty is named by chance. Arrays
    of shape (n_rows,); without `parent_prediction` only the "after" columns are there.
    """
    models = {} if parent_prediction is None else {"before": parent_prediction}
    models |= {"after": child_prediction}
    y, *arrays = _vectors(y_true, models)
    by_model = dict(zip(models, arrays, strict=True))
    values = pd.DataFrame({"actual": y})
    values = values.assign(**{f"prediction_{when}": made for when, made in by_model.items()})
    values = values.assign(**{f"MAE_{when}": np.abs(made - y) for when, made in by_model.items()})
    values = values.assign(**{f"bias_{when}": made - y for when, made in by_model.items()})
    if "before" in models:
        values["MAE_change"] = values["MAE_after"] - values["MAE_before"]
    tables = [_groups_of(values, rows[name], largest) for name in categorical_columns]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _groups_of(values: pd.DataFrame, labels: pd.Series, largest: int) -> pd.DataFrame:
    from scipy import stats

    column = labels.name
    labels = labels.astype(object).where(labels.notna(), MISSING).astype(str).reset_index(drop=True)
    kept = labels.value_counts().index[:largest]
    grouped = values.groupby(labels.where(labels.isin(kept), OTHER))
    table, sizes = grouped.mean(), grouped.size()
    if "MAE_change" in table:
        error = grouped["MAE_change"].std() / np.sqrt(sizes)
        width = error * stats.t.ppf(0.975, np.maximum(sizes - 1, 1))
        table["worse"] = (table["MAE_change"] > width) & (sizes >= SIZABLE_GROUP)
    table.insert(0, "column", column)
    table.insert(1, "category", table.index)
    table.insert(2, "rows", sizes)
    pooled = table.index.difference(kept)
    return table.loc[[*kept, *pooled]]


def largest_gap(groups_table: pd.DataFrame, unit: str = "") -> str | None:
    """State the largest gap in mean prediction between two categories of one column.

    Only groups of 20 rows or more count, and no pooled ones; None where no column has two.
    """
    if len(groups_table) == 0:
        return None
    sizable = (groups_table["rows"] >= SIZABLE_GROUP) & (groups_table["category"] != OTHER)
    best, sentence = -math.inf, None
    for column, table in groups_table[sizable].groupby("column", sort=False):
        table = table.sort_values("prediction_after")
        low, high = table.iloc[0], table.iloc[-1]
        gap = high["prediction_after"] - low["prediction_after"]
        if len(table) > 1 and gap > best:
            best, actual = gap, format_amount(high["actual"] - low["actual"], unit)
            ends = [
                f"{format_amount(end['prediction_after'], unit)} for '{end['category']}'"
                for end in (low, high)
            ]
            gap = format_amount(gap, unit)
            sentence = f"{column}: the mean prediction is {' and '.join(ends)}, a gap of {gap}"
            sentence = _printable(f"{sentence} (actual gap: {actual})")
    return sentence


def format_amount(value: float, unit: str = "", *, signed: bool = False) -> str:
    """Write a number with separated thousands and about three digits, at any scale."""
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else f"{'-' if value < 0 else ''}infinite"
    size, sign = abs(value), "+" if signed else ""
    if size >= 100 or size == 0:
        text = f"{value + 0.0:{sign},.0f}"  # + 0.0 turns -0.0 into 0
    elif size >= 1e-4:
        text = f"{value:{sign}.{2 - math.floor(math.log10(size))}f}"
    else:
        text = f"{value:{sign}.2e}"
    return f"{text} {unit}".strip()


def format_interval(interval: Interval, unit: str = "") -> str:
    """Write an interval with signs: ``-420 € (-540 to -300)``."""
    low, high = (format_amount(bound, signed=True) for bound in (interval.low, interval.high))
    return f"{format_amount(interval.estimate, unit, signed=True)} ({low} to {high})"


def escape_markdown(text: object) -> str:
    """Write `text` on one line so that no part of it acts as Markdown, HTML or a link."""
    special: dict[str, str | int | None] = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
    special |= {character: f"\\{character}" for character in "\\`*_[]{}#|~$!"}
    escaped = _printable(text).translate(str.maketrans(special))
    return escaped.replace("://", "\\://").replace("www.", "www\\.")


def safe_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Copy `table` for CSV with text cells and labels that no spreadsheet takes for a formula.

    Text starting with = + - @, tab or line break gets an apostrophe in front (OWASP, "CSV
    Injection"); numbers keep their type.
    """
    safe = table.copy()
    for position, dtype in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(dtype):
            safe.isetitem(position, table.iloc[:, position].astype(object).map(_safe_cell))
    return safe.rename(index=_safe_cell, columns=_safe_cell)


def _safe_cell(value: object) -> object:
    dangerous = isinstance(value, str) and value.startswith(tuple("=+-@\t\r\n"))
    return f"'{value}" if dangerous else value


def report(evidence: Evidence) -> str:
    """Write the whole proof as self-contained Markdown: verdict first, what is unproven last.

    Columns, categories and all other text from outside are escaped.
    """
    word = "promoted" if evidence.verdict.promoted else "kept champion"
    verdict = f"**{word.capitalize()}**: {escape_markdown(evidence.verdict.reason)}."
    parts = [f"# Retraining: {word}", verdict, *_scores_part(evidence)]
    if evidence.attribution:
        gains = {
            name.replace("_", " "): format_interval(getattr(evidence.attribution, name))
            for name in ("total", "more_training", "new_data")
        }
        sentence = escape_markdown(evidence.attribution.sentence)
        lines = _table(["gain in MAE on new rows", "with interval"], gains.items())
        parts += ["## Where the gain comes from", f"{sentence[0].upper()}{sentence[1:]}.", lines]
    if evidence.purity:
        parts += ["## Purity", _table(["rows", "number"], evidence.purity.items())]
    if evidence.drift is not None:
        parts += ["## Drift", _table(evidence.drift.columns, evidence.drift.to_numpy())]
    if evidence.bounds is not None:
        parts += [f"Target: {_bounds_text(evidence.bounds)}."]
    if evidence.groups is not None and len(evidence.groups):
        parts += ["## Groups", *_groups_part(evidence.groups, evidence.unit)]
    gaps = [f"- {escape_markdown(line)}" for line in (*_gaps(evidence), *evidence.caveats)]
    return "\n\n".join([*parts, "## Not proven", "\n".join(gaps)]) + "\n"


def _scores_part(evidence: Evidence) -> list[str]:
    lines, controls = [], []
    for name, held in evidence.held_out.items():
        pair = held.scores.reindex([PARENT, RETRAINED])
        change = "n/a" if held.difference is None else format_interval(held.difference)
        lines.append([name, held.rows, *pair["MAE"], change, *pair["R²"]])
        others = held.scores.drop(index=[PARENT, RETRAINED], errors="ignore")
        controls += [[name, *line] for line in others[["MAE", "R²"]].reset_index().to_numpy()]
    headers = ["held-out rows", "number", "MAE parent", "MAE retrained", "difference in MAE"]
    parts = [
        "## Same rows, both models",
        _table([*headers, "R² parent", "R² retrained"], lines),
        "Difference: retrained minus parent, negative is better, with its paired 95 % interval.",
    ]
    if controls:
        headers = ["held-out rows", "model", "MAE", "R²"]
        parts += ["## Controls", _table(headers, controls)]
    return parts


def _groups_part(table: pd.DataFrame, unit: str) -> list[str]:
    gap, parts = largest_gap(table, unit), []
    if gap:
        parts.append(f"Largest gap between groups: {escape_markdown(gap)}.")
    if "worse" in table:
        worse = [
            f"{row.column} = {row.category} ({format_amount(row.MAE_change, unit, signed=True)})"
            for row in table[table["worse"]].itertuples()
        ]
        named = escape_markdown(", ".join(worse) or "none")
        parts.append(f"Groups whose MAE rose by more than chance explains: {named}.")
    return [*parts, _table(table.columns, table.to_numpy())]


def _gaps(evidence: Evidence) -> list[str]:
    lines = []
    if "old" not in evidence.held_out:
        lines.append("Forgetting: no held-out row of the parent was at hand.")
    if evidence.attribution is None:
        lines.append("The cause of any gain: no control was trained on old rows alone.")
    if evidence.groups is None or "worse" not in evidence.groups:
        lines.append("Fairness of the change: no groups were compared.")
    elif evidence.groups["worse"].any():
        lines.append("Each group named as worse: one unchanged group in forty is so by chance.")
    small = [f"{name} ({held.rows})" for name, held in evidence.held_out.items() if held.rows < 100]
    if small:
        lines.append(f"Anything precise on few held-out rows: {', '.join(small)}.")
    lines.append("Other seeds: intervals cover the choice of held-out rows, not luck in training.")
    lines.append("The future: the next file may differ from the new rows as these do from the old.")
    return lines


def _table(headers: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    names = [escape_markdown(str(name).replace("_", " ")) for name in headers]
    cells = [names, ["---"] * len(names), *([_cell(value) for value in line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _cell(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float):
        return format_amount(value)
    return escape_markdown(value)


def _bounds_text(bounds: pd.DataFrame) -> str:
    return "; ".join(
        f"at its {row.bound}, {format_amount(row.value)}, {row.before:.1%} -> {row.after:.1%}"
        for row in bounds.itertuples()
    )


def listed(names: Iterable[object], most: int = 5) -> str:
    """Name at most `most` of some names, and say how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _printable(text: object) -> str:
    """Replace line breaks, control and invisible characters, which can fake lines or colours."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{name}: expected finite numbers of shape (n_rows,), n_rows > 0. "
            f"Received: shape {array.shape}, {int((~np.isfinite(array)).sum())} not finite."
        )
    return array


def _vectors(y_true: ArrayLike, predictions: Mapping[str, ArrayLike]) -> list[np.ndarray]:
    named = {"y_true": y_true, **predictions}
    arrays = {name: _vector(values, name) for name, values in named.items()}
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"expected as many predictions as targets. Received: {sizes}.")
    return list(arrays.values())
