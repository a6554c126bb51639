"""Several models on the same rows: scores, intervals, verdict, attribution, groups.

Here belongs whatever follows from targets and predictions alone, arrays of shape (n_rows,). A
*difference* is retrained minus parent, so negative is better; a *gain* is the reverse. Amounts are
in units of the target. `groups` labels rows that vary together (a customer, a house, a day),
`weights`, above 0, say how much each row counts; `options` are those of `paired_interval`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special, stats
from sklearn.metrics import r2_score

from toolkit.words import format_amount, format_interval, printable

PARENT, RETRAINED = "parent", "retrained"  # the names that `evaluate` looks for
MISSING, OTHER = "(missing)", "(other)"
SIZABLE_GROUP = 20  # rows; the mean of fewer says little about a group
LARGEST = 12  # categories of a column that are compared one by one
Predict = Callable[[pd.DataFrame], np.ndarray]
PerRow: TypeAlias = ArrayLike | None  # of shape (n_rows,)


@dataclass(frozen=True)
class Interval:
    """A mean in units of the target, with the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class HeldOut:
    """One set of held-out rows: how many; MAE, MSE, R² of each model; the difference in MAE.

    Further tries widen `change`, which proves a gain; `harm`, which proves harm, they do not.
    """

    rows: int
    scores: pd.DataFrame
    change: Interval
    harm: Interval


@dataclass(frozen=True)
class Attribution:
    """Gains in MAE on new rows, by name: "total", "training again", "new data"; and in words."""

    gains: Mapping[str, Interval]
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """What was found (of `decide`, or "nothing_new"), whether to promote, and why, in words."""

    kind: str
    promoted: bool
    reason: str


def paired_interval(
    difference: ArrayLike, groups: PerRow = None, confidence: float = 0.95, weights: PerRow = None
) -> Interval:
    """Estimate the mean of per-row differences with its interval; with weights it is a ratio.

    A row without label in `groups` stands alone; a single unit has no bounds. On each side the
    wider of two bounds holds: Student's with the cluster-robust CR3 error of a mean and its degrees
    of freedom (Bell and McCaffrey 2002), and the same after Hall's transformation, which removes
    skewness (Hall 1992). ValueError unless `difference` is 1-d, finite and not empty.
    """
    values = np.asarray(difference, float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(
            "expected finite numbers of shape (n_rows,), n_rows > 0. Received: shape "
            f"{values.shape}, {(~np.isfinite(values)).sum()} not finite."
        )
    units = np.arange(len(values)) if groups is None else pd.factorize(pd.Series(groups))[0]
    alone = units < 0
    units[alone] = units.max() + 1 + np.arange(alone.sum())
    w = np.ones(len(values)) if weights is None else np.asarray(weights, float) / np.max(weights)
    sums, sizes = np.bincount(units, w * values), np.bincount(units, w)
    mean, n_units, total = float(np.average(values, weights=w)), len(sums), sizes.sum()
    if sizes.max() == total:  # nothing else counts
        return Interval(mean, -math.inf, math.inf)
    residuals = (sums - mean * sizes) / (1 - sizes / total)
    if np.ptp(values) == 0 or not residuals.any():
        return Interval(mean, mean, mean)
    error = math.sqrt(np.square(residuals).sum() * (n_units - 1) / n_units) / total
    odds = sizes / (total - sizes)
    second, fourth = np.square(odds).sum(), (odds**4).sum()
    freedom = odds.sum() ** 2 / (second + second**2 - fourth)  # n_units - 1 where all are alike
    student = float(special.stdtrit(freedom, (1 + confidence) / 2))
    above, below, skewness = student, student, float(stats.skew(residuals))
    if abs(skewness) > 1e-6:
        root = math.sqrt(n_units)
        inner = skewness * (np.array([student, -student]) / root - skewness / (6 * n_units))
        hall = 3 / skewness * (np.cbrt(1 + inner) - 1) * root
        above, below = max(student, float(hall[0])), max(student, -float(hall[1]))
    return Interval(mean, mean - above * error, mean + below * error)


def mae_difference(
    y: ArrayLike, parent: ArrayLike, retrained: ArrayLike, **options: Any
) -> Interval:
    """Estimate MAE of retrained minus MAE of parent."""
    change = np.abs(np.subtract(y, retrained)) - np.abs(np.subtract(y, parent))
    return paired_interval(change, **options)


def confidence_of(number: int) -> float:
    """Give the confidence of the interval of a numbered try on the same rows, 95.5 % at first.

    What is left to chance, 4.5 %, then 0.5 % over number × (number - 1), sums up to 5 %: a useless
    model is called better with 2.5 %, however often it is tried (Lan & DeMets 1983).
    """
    return 1 - (0.045 if number == 1 else 0.005 / (number * (number - 1)))


def evaluate(y: ArrayLike, predictions: Mapping[str, ArrayLike], **options: Any) -> HeldOut:
    """Score each model on the same rows; R² is NaN where y is the same in all of them.

    Harm is looked for in rows by themselves where all of them are of one group.
    """
    change = mae_difference(y, predictions[PARENT], predictions[RETRAINED], **options)
    if pd.Series(options.get("groups")).nunique() == 1:
        options = options | {"groups": None}
    options = options | {"confidence": confidence_of(1)}
    harm = mae_difference(y, predictions[PARENT], predictions[RETRAINED], **options)
    n_rows, weights, lines = len(np.asarray(y)), options.get("weights"), {}
    for name, values in predictions.items():
        error = np.subtract(y, values)
        means = (np.average(each, weights=weights) for each in (np.abs(error), np.square(error)))
        varies = n_rows > 1 and np.ptp(y) > 0
        r2 = r2_score(y, values, sample_weight=weights) if varies else math.nan
        lines[name] = *means, r2
    scores = pd.DataFrame.from_dict(lines, orient="index", columns=["MAE", "MSE", "R²"])
    return HeldOut(n_rows, scores, change, harm)


def widest(
    y: ArrayLike, predictions: Mapping[str, ArrayLike], labels: Iterable[PerRow], **options: Any
) -> PerRow:
    """Return what labels rows, of several ways, so that the interval is the widest."""

    def width(each: PerRow) -> float:
        change = mae_difference(
            y, predictions[PARENT], predictions[RETRAINED], groups=each, **options
        )
        return change.high - change.low

    return max(labels, key=width)


def attribution(
    y: ArrayLike, predictions: Mapping[str, ArrayLike], unit: str = "", **options: Any
) -> Attribution:
    """Split the gain on new rows into what training again brings and what the new data bring.

    `predictions` are those of "parent", "retrained" and "control", which saw no new row.
    """
    before, control, after = (predictions[name] for name in (PARENT, "control", RETRAINED))
    total = mae_difference(y, after, before, **options)
    more = mae_difference(y, control, before, **options)
    new = mae_difference(y, after, control, **options)
    gain, by_more, by_new = (format_amount(part.estimate, unit) for part in (total, more, new))
    sentence = f"of the gain of {gain}, "
    if total.estimate <= 0:
        loss, by_more = (format_amount(-part.estimate, unit, signed=True) for part in (total, more))
        change = format_interval(Interval(-new.estimate, -new.high, -new.low), unit)
        sentence = f"there is no gain: of {loss} in MAE {by_more} come from training again and "
        sentence += f"{change} with the new data"
    elif new.low > 0:
        sentence += f"{by_new} come with the new data, {by_more} from training again"
    else:
        sentence += f"{by_more} come from training again and {format_interval(new, unit)} with "
        sentence += "the new data, which is no proven gain"
    return Attribution({"total": total, "training again": more, "new data": new}, sentence)


def decide(
    new: HeldOut,
    old: HeldOut | None,
    findings: Sequence[str] = (),
    unit: str = "",
    max_forgetting: float = 0.05,
    promote: str = "auto",
) -> Verdict:
    """Judge the differences in MAE on new and old rows, each `evaluate`'s result.

    *suspicious*: any of `findings`; never promoted. *worse*: the interval on new rows lies above
    zero, or that on old rows above `max_forgetting` (a share) of the parent's MAE there, without a
    proven gain on new rows that is as large. *better*: else, where the interval on new rows lies
    below zero. *no_worse*: all between, promoted too, since fresh rows pay on the next file.
    `promote` is "auto", "proven", "always" or "never".
    """
    if findings:
        return Verdict("suspicious", False, printable(f"suspicious: {'; '.join(findings)}"))
    gain, harm = new.change.high < 0, new.harm.low > 0
    proof = "a proven gain" if gain else f"harm is {'' if harm else 'not '}proven"
    found = f"MAE on new rows {format_interval(new.harm if harm else new.change, unit)}, {proof}; "
    if old is None:
        found += "no old row at hand, so forgetting could not be checked"
    else:
        allowed = max_forgetting * float(old.scores.loc[PARENT, "MAE"])
        limit = f"the {format_amount(allowed, unit)} allowed"
        text = f"within {limit}" if old.harm.high <= allowed else f"not proven to exceed {limit}"
        text = f"more error is proven, {text}" if old.harm.low > 0 else text
        if old.harm.low > allowed:
            outweighed = gain and -new.change.estimate >= old.change.estimate
            harm, text = harm or not outweighed, f"forgetting beyond {limit} is proven"
            text += ", but the gain outweighs it" if outweighed else ""
        found += f"on old rows {format_interval(old.harm, unit)}, {text}"
    kind = "worse" if harm else "better" if gain else "no_worse"
    promoted = {"auto": not harm, "proven": kind == "better", "always": True, "never": False}
    if promoted[promote] != promoted["auto"]:
        found += f"; promotion was set to '{promote}'"
    return Verdict(kind, promoted[promote], f"{kind.replace('_', ' ')}: {found}")


def lost_skill(
    y: Mapping[str, ArrayLike],
    predictions: Mapping[str, Mapping[str, ArrayLike]],
    whole: tuple[ArrayLike, ArrayLike],
    options: Mapping[str, Mapping[str, Any]],
    least: float = 0.2,
) -> list[str]:
    """Find a file whose target has nothing to do with its features; for `decide`'s findings.

    `y`, `predictions` (of "parent", "retrained", "mean" and "median") and `options` are those of
    the "new" and "old" held-out rows; `whole` is the target of the new file with the parent's
    predictions before any training. Found is, where the target was not hard to predict, that with
    99.5 % confidence (Spearman, Fisher's z) the parent's rank correlation with it is below a third
    of that on old rows, itself above `least`, though the child learnt nothing better than mean and
    median; and a child proven worse than these.
    """
    findings, new, old = [], predictions["new"], predictions["old"]
    pairs = ((new[constant], new[RETRAINED]) for constant in ("mean", "median"))
    mean, median = (mae_difference(y["new"], *pair, **options["new"]) for pair in pairs)
    has_learnt = max(mean.high, median.high) < 0  # a relation that changed is no broken file
    tables = [pd.DataFrame(np.column_stack(pair)) for pair in ((y["old"], old[PARENT]), whole)]
    was, now = (np.nan_to_num(table.corr("spearman").iloc[0, 1]) for table in tables)
    n_old, n_new = map(len, tables)
    margin = 2.576 * 1.03 / math.sqrt(max(1, n_new - 3))
    limit = math.tanh(math.atanh(np.clip(now, -0.9999, 0.9999)) + margin)
    is_lost = was > least and limit < was / 3 and not has_learnt
    if min(n_old, n_new) >= SIZABLE_GROUP and is_lost:
        findings.append(
            f"target: its rank correlation with the parent's predictions fell from {was:.2f} "
            f"to {now:.2f}, as if it were shuffled"
        )
    errors = evaluate(y["old"], old, **options["old"]).scores["MAE"]
    predictable = errors[PARENT] <= 0.8 * errors[["mean", "median"]].min()
    if predictable and min(mean.low, median.low) > 0:
        findings.append(
            "target: on new rows the retrained model is proven worse than the constants "
            f"mean and median, by {format_interval(median)}"
        )
    return findings


def groups(
    rows: pd.DataFrame,
    categorical_columns: Iterable[str],
    y: ArrayLike,
    parent_prediction: PerRow,
    child_prediction: ArrayLike,
    inside: Mapping[str, ArrayLike] | None = None,
    **options: PerRow,
) -> pd.DataFrame:
    """Compare actual and predicted means, MAE and bias per category, before and after.

    One line per column and category: the 12 largest, the rest pooled as "(other)", absent values as
    "(missing)". Bias is mean prediction minus mean actual. `worse`: the paired interval of the
    change in MAE lies above zero in a category of 20 rows or more. `inside` tells by model which
    rows lie within its 90 % ranges, and adds the shares. All means are weighted.
    """
    values = pd.DataFrame({"actual": np.asarray(y, float)})
    for model, rows_inside in (inside or {}).items():
        values[f"inside_90_{model}"] = rows_inside
    models = {} if parent_prediction is None else {"before": parent_prediction}
    for when, predicted in (models | {"after": child_prediction}).items():
        values[f"prediction_{when}"] = predicted
        bias = values[f"prediction_{when}"] - values["actual"]
        values[f"MAE_{when}"], values[f"bias_{when}"] = bias.abs(), bias
    if models:
        values["MAE_change"] = values["MAE_after"] - values["MAE_before"]
    given = {name: np.asarray(of) for name, of in options.items() if of is not None}
    w, tables = pd.Series(given.get("weights", 1.0), index=values.index), {}
    for column in categorical_columns:
        labels = rows[column].astype(object).fillna(MISSING).astype(str).reset_index(drop=True)
        kept = labels.value_counts().index[:LARGEST]
        group = labels.where(labels.isin(kept), OTHER)
        share = w / w.groupby(group).transform("mean")
        table, sizes = values.mul(share, axis=0).groupby(group).mean(), group.groupby(group).size()
        if models:
            marked = ((group == name).to_numpy() for name in table.index)
            table["worse"] = [_is_worse(values["MAE_change"], own, given) for own in marked]
        table.insert(0, "rows", sizes)
        tables[column] = table.loc[[*kept, *table.index.difference(kept)]]
    return pd.concat(tables, names=["column", "category"]).reset_index()


def _is_worse(change: pd.Series, own: np.ndarray, given: Mapping[str, np.ndarray]) -> bool:
    units = {name: of[own] for name, of in given.items()}
    return own.sum() >= SIZABLE_GROUP and paired_interval(change[own], **units).low > 0


def importance(
    models: Mapping[str, Predict],
    rows: pd.DataFrame,
    y: ArrayLike,
    columns: Sequence[str],
    **options: PerRow,
) -> pd.DataFrame:
    """Measure by how much each model's MAE rises when a column's values are shuffled among rows.

    Permutation importance (Breiman 2001) with the paired interval over rows; scikit-learn's is over
    shuffles alone. At most 2,000 rows and the first 100 columns count. Returns "column" and, by
    model, NAME, NAME_low, NAME_high, for the 20 columns that matter most to the last model.
    """
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(rows))[:2_000]
    rows, y = rows.iloc[chosen], np.asarray(y, float)[chosen]
    given = {name: np.asarray(of)[chosen] for name, of in options.items() if of is not None}
    errors = {model: np.abs(predict(rows) - y) for model, predict in models.items()}
    n_shuffles, lines = min(10, 2_000 // len(rows)), []
    for name in columns[:100]:
        order = np.concatenate([rng.permutation(len(rows)) for _ in range(n_shuffles)])
        shuffled = pd.concat([rows] * n_shuffles, ignore_index=True)
        shuffled[name] = rows[name].array[order]
        line: dict[str, object] = {"column": name}
        for model, predict in models.items():
            after = np.abs(predict(shuffled).reshape(n_shuffles, -1) - y)
            rise = paired_interval((after - errors[model]).mean(axis=0), **given)
            line |= {model: rise.estimate, f"{model}_low": rise.low, f"{model}_high": rise.high}
        lines.append(line)
    return pd.DataFrame(lines).nlargest(20, [*models][-1]).reset_index(drop=True)


def dependence(models: Mapping[str, Predict], rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Average predictions over 500 rows, `column` set to 15 quantiles or its 12 main categories."""
    known, rows = rows[column].dropna(), rows.sample(min(500, len(rows)), random_state=0)
    values = known.value_counts().index[:LARGEST]
    if pd.api.types.is_numeric_dtype(known):
        levels = np.linspace(0.03, 0.97, 15)
        values = pd.Index(known.quantile(levels, interpolation="nearest").unique())
    table = pd.concat([rows] * len(values), ignore_index=True)
    table[column] = values.repeat(len(rows))
    means = {k: predict(table).reshape(len(values), -1).mean(1) for k, predict in models.items()}
    return pd.DataFrame(means, index=values)
