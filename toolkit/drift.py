"""Two files of the same columns: how far one has moved from the other, and whether it is broken.

Here belongs what follows from conformed tables alone, without any model. Dates are days.
"""

import math
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import rel_entr

from toolkit.words import format_amount, listed, printable

DRIFT_DISTANCE = 0.1  # the default of Evidently for both distances, https://docs.evidentlyai.com
DRIFT_COLUMNS = ["column", "kind", "distance", "p_value", "drifted", "new_categories"]
DRIFT_COLUMNS += ["missing_before", "missing_after"]
EXPECTED_COUNT = 5  # Cochran (1954): the chi-square approximation needs as many in each cell
MIN_ROWS = 20  # with fewer rows a spread, a shape or a share of missing cells says little
LEVELS = np.linspace(0.05, 0.95, 19)


def drift(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    kinds: Mapping[str, str],
    target: str | None = None,
    *,
    threshold: float = DRIFT_DISTANCE,
    level: float = 0.05,
) -> pd.DataFrame:
    """Measure how far each column of `current` has moved from `reference`: `DRIFT_COLUMNS`.

    `kinds` maps columns to "numeric", "categorical" or "date" (days, a number); `target` adds a
    numeric one. `distance` is Wasserstein's in reference standard deviations for numbers,
    Jensen–Shannon's (base 2, 0 to 1) for categories, where missing counts as one; `p_value` is
    of a Kolmogorov–Smirnov or chi-square test. `drifted` asks for both a distance above
    `threshold`, so that many rows alone do not fire, and p below `level` divided by the number
    of tests, so that few do not either. Numbers and dates are tested, in the same way, for the
    share of missing values; dates for nothing else, as they move forward. NaN where nothing can
    be measured. Raises ValueError for an unknown kind.
    """
    kinds = {**kinds, **({target: "numeric"} if target else {})}
    p_limit = level / max(1, sum(2 if kind == "numeric" else 1 for kind in kinds.values()))
    lines = []
    for name, kind in kinds.items():
        old, new, added = reference[name], current[name], ""
        if kind in ("numeric", "date"):
            tests = [_numeric_drift(old, new), _categorical_drift(old.isna(), new.isna())]
        elif kind == "categorical":
            tests, known = [_categorical_drift(old, new)], set(old.dropna())
            added = listed(value for value in new.dropna().unique() if value not in known)
        else:
            raise ValueError(f"{name!r}: expected numeric, categorical or date, got {kind!r}")
        judged = tests[1:] if kind == "date" else tests
        fired = any(distance > threshold and p < p_limit for distance, p in judged)
        lines.append((name, kind, *tests[0], fired, added, old.isna().mean(), new.isna().mean()))
    return pd.DataFrame(lines, columns=DRIFT_COLUMNS)


def _numeric_drift(reference: pd.Series, current: pd.Series) -> tuple[float, float]:
    old, new = _finite(reference), _finite(current)
    if len(old) == 0 or len(new) == 0:
        return math.nan, math.nan
    # A constant reference has no scale of its own.
    scale = old.std() or np.concatenate([old, new]).std() or 1.0
    # The approximation needs some rows, the exact test takes long with many.
    method = "exact" if len(old) + len(new) < 100 else "asymp"
    p_value = stats.ks_2samp(old, new, method=method).pvalue
    return float(stats.wasserstein_distance(old, new) / scale), float(p_value)


def _categorical_drift(reference: pd.Series, current: pd.Series) -> tuple[float, float]:
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
    old, new = np.asarray(y_old, float), np.asarray(y_new, float)
    bounds = {"lowest": old.min() if low is None else low}
    bounds["highest"] = old.max() if high is None else high
    lines = [(name, at, (old == at).mean(), (new == at).mean()) for name, at in bounds.items()]
    return pd.DataFrame(lines, columns=["bound", "value", "before", "after"])


def bounds_text(bounds: pd.DataFrame) -> str:
    """Tell `bounds_share`'s table in one line."""
    return "; ".join(
        f"at its {row.bound}, {format_amount(row.value)}, {row.before:.1%} -> {row.after:.1%}"
        for row in bounds.itertuples()
    )


def drift_summary(table: pd.DataFrame, bounds: pd.DataFrame | None = None) -> list[str]:
    """Tell `drift`'s table, and `bounds_share`'s if given, in one to three lines of plain text."""
    far = table[table["drifted"]].sort_values("distance", ascending=False)
    names = listed(f"{row.column} {row.distance:.2f}" for row in far.itertuples())
    lines = [f"drift: {len(far)} of {len(table)} columns{': ' if names else ''}{names}"]
    added = table[table["new_categories"] != ""].itertuples()
    names = listed((f"{row.column} ({row.new_categories})" for row in added), most=3)
    lines += [f"new categories: {names}"] if names else []
    lines += [] if bounds is None else [f"target: {bounds_text(bounds)}"]
    return [printable(line) for line in lines]


def suspicious(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    kinds: Mapping[str, str],
    target: str | None = None,
) -> list[str]:
    """Name what looks broken in a file, in sentences; none for one that has merely drifted.

    `reference` holds the rows known so far, `current` a new file, both conformed; `kinds` maps
    the features to "numeric", "categorical" or "date", `target` is looked at if given. Checked
    are: a target far from what it was; a column nearly all missing, constant, or rescaled;
    categories written in another way. The limits lie beyond what real files do from month to
    month or between seasons: such files move means by up to 2.8 standard deviations and spreads
    up to 2.2 times, and a season, a year or a holiday may well be constant in one of them.
    """
    checks = (_constant, _rescaled, _fahrenheit)
    told, moves = [], [0.0]
    for name, kind in kinds.items():
        found = _emptied(reference[name], current[name])
        if not found and kind == "categorical":
            found = _recoded(reference[name], current[name])
        if not found and kind == "numeric":
            old, new = _finite(reference[name]), _finite(current[name])
            if len(old) < MIN_ROWS or len(new) < MIN_ROWS or np.ptp(old) == 0:
                continue
            moves.append(abs(_move(old, new)[0]))
            found = next((text for check in checks if (text := check(old, new))), "")
        told.append((name, found))
    if target is not None:
        values = _finite(reference[target]), _finite(current[target])
        told.insert(0, (target, _moved_target(*values, max(moves))))
    return [printable(f"{name}: {finding}") for name, finding in told if finding]


def _moved_target(old: np.ndarray, new: np.ndarray, features: float) -> str:
    """Ask for 3 pooled standard deviations of the mean, or a spread outside 1/4 to 4 times.

    Pooled, since an amount that grows spreads as well. Where a numeric feature moved at least
    half as far (`features`, the farthest), a season may explain it and 6 are asked for.
    """
    if len(old) < MIN_ROWS or len(new) < 5 or np.ptp(old) == 0:
        return ""
    moved, ratio = _move(old, new)
    if abs(moved) > (6 if features >= abs(moved) / 2 else 3):
        ends = f"{format_amount(old.mean())} to {format_amount(new.mean())}"
        return f"the mean moved from {ends}, by {abs(moved):.1f} standard deviations"
    if len(new) >= MIN_ROWS and not 1 / 4 <= ratio <= 4:
        return f"the spread is {format_amount(ratio)} times what it was"
    return ""


def _emptied(old: pd.Series, new: pd.Series) -> str:
    before, after = old.isna().mean(), new.isna().mean()
    if len(new) < 5 or after < 0.895 or before >= 0.5:
        return ""
    return f"{after:.0%} of the cells are missing, {before:.0%} before"


def _constant(old: np.ndarray, new: np.ndarray) -> str:
    """Find a sensor that is stuck, not a season or a year.

    Natural are few distinct values, a value that was frequent before (no rain), one that comes
    in blocks (a month) and one that moves on beyond the largest so far (a year).
    """
    distinct = len(np.unique(old))
    if len(new) < 1.5 * MIN_ROWS or np.ptp(new) > 0 or distinct <= 20:
        return ""
    in_blocks = (old[1:] == old[:-1]).mean() > 0.8
    frequent = (old == new[0]).mean() > 0.1
    moved_on = old.max() < new[0] <= old.max() + np.ptp(old)
    if in_blocks or frequent or moved_on:
        return ""
    return f"every row has {format_amount(new[0])}, where {distinct:,} values stood before"


def _fahrenheit(old: np.ndarray, new: np.ndarray) -> str:
    """Find degrees Fahrenheit among degrees Celsius, or the reverse, in a fifth of the rows.

    Such a row lies beyond 3 reference standard deviations as it stands, and within 2 once
    converted; half of them beyond 4.5, or they may be the tail of a hot summer. Only for columns
    that look like temperatures: roughly symmetric, in such a range.
    """
    mean, spread = old.mean(), old.std()
    if abs(np.median(old) - mean) > 0.3 * spread or len(np.unique(old)) <= 20:
        return ""
    for unit, before, coldest, hottest, back in (
        ("Fahrenheit", "Celsius", -60, 60, (new - 32) / 1.8),
        ("Celsius", "Fahrenheit", -76, 140, new * 1.8 + 32),
    ):
        away = np.abs(new - mean) / spread
        far = (away > 3) & (np.abs(back - mean) < 2 * spread)
        in_range = coldest <= old.min() and old.max() <= hottest
        if in_range and far.mean() >= 0.2 and np.median(away[far]) > 4.5:
            return f"{far.mean():.0%} of the rows look like degrees {unit}, not {before}"
    return ""


def _rescaled(old: np.ndarray, new: np.ndarray) -> str:
    """Find another unit: the same shape after a linear map that no natural drift explains.

    Either the mean lies beyond 8 standard deviations, the larger of both files, or mean and
    spread have changed by one factor outside 1/8 to 8. The shape is that of the quantiles,
    standardised. What runs in the order of the file, or counts in whole numbers without a
    repetition, is a clock or a counter and may run on.
    """
    if len(np.unique(old)) <= 20 or len(np.unique(new)) <= 10:
        return ""
    larger, factor = max(old.std(), new.std()), new.std() / old.std()
    far = abs(new.mean() - old.mean()) > 8 * larger
    times = not 1 / 8 <= factor <= 8
    times &= abs(new.mean() - factor * old.mean()) < 2 * new.std()
    shapes = [np.quantile(values, LEVELS) for values in (old, new)]
    if not (far or times) or min(np.ptp(shape) for shape in shapes) == 0:
        return ""
    standard = [(shape - shape.mean()) / shape.std() for shape in shapes]
    in_order = abs(stats.spearmanr(new, np.arange(len(new))).statistic) > 0.99
    counted = len(np.unique(new)) == len(new) and (new == np.round(new)).all()
    if in_order or counted or np.abs(standard[0] - standard[1]).mean() > 0.3:
        return ""
    ends = f"{format_amount(old.mean())} to {format_amount(new.mean())}"
    return f"the same shape on another scale, mean {ends}, spread {format_amount(factor)} times"


def _recoded(reference: pd.Series, current: pd.Series) -> str:
    """Find known categories in another spelling, or hardly a known one at all.

    Natural are categories that come in blocks (a month, a region) and those that differ from
    known ones in their digits alone ("2024-W05").
    """
    new = current.dropna().astype(str)
    known = set(reference.dropna().astype(str))
    unknown = new[~new.isin(known)]
    if len(new) < 5 or len(unknown) == 0 or reference.count() < MIN_ROWS:
        return ""
    spellings = {text.strip().casefold() for text in known}
    respelt = unknown[[text.strip().casefold() in spellings for text in unknown]]
    if len(respelt) >= 0.2 * len(new):
        named = listed((repr(text) for text in respelt.unique()), most=3)
        return f"known categories are written in another way: {named}"
    few_before = len(known) <= 0.2 * reference.notna().sum()
    in_blocks = (new.to_numpy()[1:] != new.to_numpy()[:-1]).sum() < new.nunique()
    patterns = {re.sub(r"\d", "0", text) for text in known if re.search(r"\d", text)}
    counted = all(re.sub(r"\d", "0", text) in patterns for text in unknown.unique())
    if len(unknown) <= 0.9 * len(new) or not few_before or in_blocks or counted:
        return ""
    named, old = (listed(map(repr, values), most=3) for values in (unknown.unique(), sorted(known)))
    return f"hardly any category was known before: {named} instead of {old}"


def _move(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """Return how far the mean moved in pooled standard deviations, and the ratio of spreads."""
    pooled = math.sqrt((old.var() + new.var()) / 2) or 1.0
    return float((new.mean() - old.mean()) / pooled), float(new.std() / (old.std() or 1.0))


def _finite(column: pd.Series) -> np.ndarray:
    values = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=math.nan)
    return values[np.isfinite(values)]
