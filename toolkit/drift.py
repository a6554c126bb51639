"""Two conformed tables of the same columns: how far one has moved, and whether it is broken."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats
from scipy.spatial.distance import jensenshannon

from toolkit.words import format_amount, listed, printable

DRIFT_DISTANCE = 0.1  # the default of Evidently for both distances, https://docs.evidentlyai.com
LEVEL = 0.05  # of all tests of a file together
DRIFT_COLUMNS = ["column", "kind", "distance", "p_value", "drifted", "new_categories"]
DRIFT_COLUMNS += ["missing_before", "missing_after"]
EXPECTED_COUNT = 5  # Cochran (1954): the chi-square approximation needs as many in each cell
MIN_ROWS = 20  # with fewer rows a spread, a shape or a share of missing cells says little
FEW_VALUES = 20  # a column of no more distinct numbers may well be a code, an hour or a year


def drift(reference: pd.DataFrame, current: pd.DataFrame, kinds: Mapping[str, str]) -> pd.DataFrame:
    """Measure how far each column of `kinds` has moved from `reference`: `DRIFT_COLUMNS`.

    `distance` is Wasserstein's in reference standard deviations, or Jensen–Shannon's (base 2) of
    categories; `p_value` is of a Kolmogorov–Smirnov or chi-square test. `drifted` asks for a
    distance above 0.1, so that many rows alone do not fire, and for p below 5 % divided by the
    number of tests. Missing values are tested, too; dates for nothing else, as they move forward.
    """
    p_limit = LEVEL / max(1, sum(2 if kind == "numeric" else 1 for kind in kinds.values()))
    lines = []
    for name, kind in kinds.items():
        old, new, added = reference[name], current[name], ""
        if kind == "categorical":
            tests = judged = [_categorical_drift(old, new)]
            added = listed(new.dropna()[~new.dropna().isin(old)].unique())
        else:
            tests = [_numeric_drift(old, new), _categorical_drift(old.isna(), new.isna())]
            judged = tests[1:] if kind == "date" else tests
        fired = any(distance > DRIFT_DISTANCE and p < p_limit for distance, p in judged)
        lines.append((name, kind, *tests[0], fired, added, old.isna().mean(), new.isna().mean()))
    return pd.DataFrame(lines, columns=DRIFT_COLUMNS)


def _numeric_drift(reference: pd.Series, current: pd.Series) -> tuple[float, float]:
    old, new = _finite(reference), _finite(current)
    if len(old) == 0 or len(new) == 0:
        return math.nan, math.nan
    # A constant reference has no scale of its own.
    scale = old.std() or np.concatenate([old, new]).std() or 1.0
    return float(stats.wasserstein_distance(old, new) / scale), _same_distribution(old, new)


def _same_distribution(old: np.ndarray, new: np.ndarray) -> float:
    """Return the p of a Kolmogorov–Smirnov test."""
    method = "exact" if len(old) + len(new) < 100 else "asymp"  # exact takes long with many rows
    return float(stats.ks_2samp(old, new, method=method).pvalue)


def _categorical_drift(reference: pd.Series, current: pd.Series) -> tuple[float, float]:
    """Return distance and p of the counts; categories too rare for the test count as one."""
    if len(reference) == 0 or len(current) == 0:
        return math.nan, math.nan
    columns = [column.value_counts(dropna=False) for column in (reference, current)]
    counts = pd.concat(columns, axis=1).fillna(0).to_numpy(float).T
    counts = counts[:, np.argsort(-counts.sum(axis=0))]
    expected = counts.sum(axis=0) * counts.sum(axis=1).min() / counts.sum()
    n_kept = int((expected >= EXPECTED_COUNT).sum())
    if expected[n_kept:].sum() < EXPECTED_COUNT:  # the rarest of the others joins them
        n_kept = max(1, n_kept - 1)
    cells = np.column_stack([counts[:, :n_kept], counts[:, n_kept:].sum(axis=1)])
    cells = cells[:, cells.any(axis=0)]
    p_value = stats.chi2_contingency(cells).pvalue if cells.shape[1] > 1 else 1.0
    return float(jensenshannon(*counts, base=2)), float(p_value)


def drift_summary(table: pd.DataFrame) -> list[str]:
    """Tell `drift`'s table in one or two lines of plain text."""
    far = table[table["drifted"]].sort_values("distance", ascending=False)
    names = listed(f"{row.column} {row.distance:.2f}" for row in far.itertuples())
    lines = [f"drift: {len(far)} of {len(table)} columns{': ' if names else ''}{names}"]
    added = table[table["new_categories"] != ""].itertuples()
    names = listed((f"{row.column} ({row.new_categories})" for row in added), most=3)
    return [printable(line) for line in lines + ([f"new categories: {names}"] if names else [])]


def suspicious(
    reference: pd.DataFrame, current: pd.DataFrame, kinds: Mapping[str, str], target: str
) -> list[str]:
    """Name what looks broken in a file, in sentences; none for one that has merely drifted.

    Real files move means by up to 2.8 standard deviations and spreads up to 2.2 times from one to
    the next; the limits for target and features (of `kinds`) lie beyond.
    """
    told, farthest, reference = {target: ""}, 0.0, _alike(reference, current, kinds)
    same = [n for n, kind in kinds.items() if kind == "numeric" and current[n].nunique() == 1]
    together = reference[same].eq(current[same].min()).all(axis=1)
    is_known = len(same) > 1 and together.sum() > 1  # those of a customer or of a product
    for name, kind in kinds.items():
        before, after = reference[name].isna().mean(), current[name].isna().mean()
        if len(current) >= 5 and before < 0.5 and after >= 0.895:
            told[name] = f"{after:.0%} of the cells are missing, {before:.0%} before"
        elif kind == "categorical":
            told[name] = _recoded(reference[name], current[name])
        elif kind == "numeric":
            old, new = _finite(reference[name]), _finite(current[name])
            if min(len(old), len(new)) < MIN_ROWS or np.ptp(old) == 0:
                continue
            farthest = max(farthest, _move(old, new))
            if len(np.unique(old)) > FEW_VALUES:
                constant = "" if is_known else _constant(old, new)
                told[name] = constant or _stand_in(old, new) or _rescaled(old, new)
                told[name] = told[name] or _fahrenheit(old, new)
    told[target] = _moved_target(_finite(reference[target]), _finite(current[target]), farthest)
    return [printable(f"{name}: {finding}") for name, finding in told.items() if finding]


def _alike(
    reference: pd.DataFrame, current: pd.DataFrame, kinds: Mapping[str, str]
) -> pd.DataFrame:
    """Keep the known rows of the one shop, or of what else a file is of, where they are enough."""
    texts = [n for n, kind in kinds.items() if kind == "categorical" and current[n].nunique() == 1]
    shared = [name for name in texts if current[name].notna().all()]
    if not shared:
        return reference
    alike = reference[reference[shared].eq(current[shared].iloc[0]).all(axis=1)]
    return alike if len(alike) >= MIN_ROWS else reference


def _moved_target(old: np.ndarray, new: np.ndarray, farthest: float) -> str:
    """Ask for 3 pooled standard deviations (6 where a feature moved too: a season), or a spread.

    Or for zeros, in a fifth of the rows, where hardly one was.

    The few largest costs, or populations, make most of a standard deviation, and come by chance:
    where it is more than half of the range of nine tenths of the rows, that must differ, too. Few
    rows of rare events have any mean and spread: the distributions must differ as well.
    """
    if len(old) < MIN_ROWS or len(new) < 5 or np.ptp(old) == 0:
        return ""
    if _same_distribution(old, new) > 1e-3:
        return ""
    was, zeros = ((values == 0).mean() for values in (old, new))
    if was <= 0.01 and zeros >= 0.2:  # what many programs write where nothing is known
        return f"{zeros:.0%} of the rows have 0, {was:.0%} before"
    moved, ratio = _move(old, new), new.std() / old.std()
    before, now = (np.ptp(np.quantile(values, [0.05, 0.95])) for values in (old, new))
    by_chance = 0 < before < 2 * old.std() and 1 / 4 <= now / before <= 4
    if moved > (6 if farthest >= moved / 2 else 3):
        return f"the mean moved from {_ends(old, new)}, by {moved:.1f} standard deviations"
    if len(new) >= MIN_ROWS and not (1 / 4 <= ratio <= 4 or by_chance):
        return f"the spread is {format_amount(ratio)} times what it was"
    return ""


def _constant(old: np.ndarray, new: np.ndarray) -> str:
    """Find a sensor that is stuck; no rain, a month in a block and the next year are natural."""
    in_blocks = (old[1:] == old[:-1]).mean() > 0.8
    frequent = (old == new[0]).mean() > 0.1
    moved_on = old.max() < new[0] <= old.max() + np.ptp(old)
    if len(new) < 1.5 * MIN_ROWS or np.ptp(new) > 0 or in_blocks or frequent or moved_on:
        return ""
    distinct = f"{len(np.unique(old)):,} values stood before"
    return f"every row has {format_amount(new[0])}, where {distinct}"


def _stand_in(old: np.ndarray, new: np.ndarray) -> str:
    """Find a number that stands for missing ones, such as -999, in a fifth of the rows or more.

    It lies farther beyond all that was known than these are apart.
    """
    values, counts = np.unique(new, return_counts=True)
    value, share = values[counts.argmax()], counts.max() / len(new)
    beyond = max(old.min() - value, value - old.max())
    if not 0.2 <= share < 1 or beyond < np.ptp(old):
        return ""
    return f"{share:.0%} of the rows have {format_amount(value)}, far beyond all known before"


def _fahrenheit(old: np.ndarray, new: np.ndarray) -> str:
    """Find degrees Fahrenheit among degrees Celsius, or the reverse, in a fifth of the rows.

    Such a row lies beyond 3 standard deviations (half of them beyond 4.5, or it may be a hot
    summer), within 2 once converted.
    """
    mean, spread = old.mean(), old.std()
    if abs(np.median(old) - mean) > 0.3 * spread:
        return ""
    away = np.abs(new - mean) / spread
    for unit, before, coldest, hottest, back in (
        ("Fahrenheit", "Celsius", -60, 60, (new - 32) / 1.8),
        ("Celsius", "Fahrenheit", -76, 140, new * 1.8 + 32),
    ):
        far = (away > 3) & (np.abs(back - mean) < 2 * spread)
        possible = coldest <= old.min() and old.max() <= hottest
        if possible and far.mean() >= 0.2 and np.median(away[far]) > 4.5:
            return f"{far.mean():.0%} of the rows look like degrees {unit}, not {before}"
    return ""


def _rescaled(old: np.ndarray, new: np.ndarray) -> str:
    """Find another unit: the same shape of quantiles after a map that no natural drift explains.

    The mean moved beyond 8 standard deviations and by half, or with the spread by one factor
    outside 1/8 to 8. A clock (in the order of the file) or a counter (whole, without repetition,
    before and now) may run on.
    """
    shapes = [np.quantile(values, np.linspace(0.05, 0.95, 19)) for values in (old, new)]
    before, after = map(np.ptp, shapes)
    distinct = len(np.unique(new))
    if min(before, after) == 0 or distinct <= FEW_VALUES / 2:
        return ""
    # The few largest of a long tail come by chance: both measures of the spread must say so.
    factor, other = new.std() / old.std(), after / before
    far = abs(new.mean() - old.mean()) > 8 * max(old.std(), new.std())
    far &= not 2 / 3 <= new.mean() / old.mean() <= 3 / 2  # prices rise, year by year
    one_factor = abs(new.mean() - factor * old.mean()) < 2 * new.std()
    natural = 1 / 8 <= factor <= 8 or 1 / 8 <= other <= 8
    if not (far or (one_factor and not natural)):
        return ""
    apart = np.abs(np.subtract(*(stats.zscore(shape) for shape in shapes))).mean()
    in_order = abs(stats.spearmanr(new, np.arange(len(new))).statistic) > 0.99 and not one_factor
    whole = all((values == np.round(values)).all() for values in (old, new))
    counted = whole and distinct == len(new) and len(np.unique(old)) == len(old)
    if apart > 0.3 or in_order or counted:
        return ""
    times = f"spread {format_amount(factor)} times"
    return f"the same shape on another scale, mean {_ends(old, new)}, {times}"


def _recoded(reference: pd.Series, current: pd.Series) -> str:
    """Find known categories in another spelling, or hardly a known one at all."""
    old, new = (column.dropna().astype(str) for column in (reference, current))
    unknown = new[~new.isin(set(old))]
    if len(old) < MIN_ROWS or len(new) < 5 or unknown.empty:
        return ""
    plain = [texts.str.strip().str.casefold() for texts in (old, unknown)]
    respelt = unknown[plain[1].isin(plain[0])]
    if len(respelt) >= 0.2 * len(new):
        named = listed(map(repr, respelt.unique()), most=3)
        return f"known categories are written in another way: {named}"
    # Natural are new ones in blocks (a month), or that differ in digits alone ("2024-W05").
    many_before = old.nunique() > 0.2 * len(old)
    in_blocks = (new.to_numpy()[1:] != new.to_numpy()[:-1]).sum() < new.nunique()
    patterns = [set(texts.str.replace(r"\d", "0", regex=True)) for texts in (old, unknown)]
    if len(unknown) <= 0.9 * len(new) or many_before or in_blocks or patterns[1] <= patterns[0]:
        return ""
    named, known = (listed(map(repr, sorted(set(texts))), most=3) for texts in (unknown, old))
    return f"hardly any category was known before: {named} instead of {known}"


def _move(old: np.ndarray, new: np.ndarray) -> float:
    """Measure how far the mean moved, in pooled standard deviations: what grows spreads, too."""
    return abs(float((new.mean() - old.mean()) / (np.sqrt((old.var() + new.var()) / 2) or 1.0)))


def _ends(old: np.ndarray, new: np.ndarray) -> str:
    return f"{format_amount(old.mean())} to {format_amount(new.mean())}"


def _finite(column: pd.Series) -> np.ndarray:
    values = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=math.nan)
    return values[np.isfinite(values)]
