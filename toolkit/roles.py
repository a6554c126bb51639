"""Which rows train and which are held out, and the sample of both that travels with a model.

The role of a row follows from its content alone. A *table* is what `columns.conform` returns,
features and target, with the columns added here: HASH of the row, ROLE ("train" or "held_out"),
GENERATION of the training that first saw it, GROUP, with groups, the hash of its group, and WEIGHT,
with weights, how much the row counts: above 0.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from .columns import Column, read_cells
from .encoding import FOLDS
from .errors import UserError

TRAIN, HELD_OUT = "train", "held_out"
OWN = ["toolkit:hash", "toolkit:role", "toolkit:generation", "toolkit:group", "toolkit:weight"]
HASH, ROLE, GENERATION, GROUP, WEIGHT = OWN
MIN_TRAIN, MIN_HELD_OUT = 10, 2
MIN_RANKED = 50  # rows; a correlation of fewer says little
MANY_REPEATED = 0.1  # share of rows; some come twice in most files
# 10 to a power that gives a number, of a binary exponent from -1100 on, 10 or 11 digits before ".".
TENS = 10.0 ** np.minimum(9 - np.floor((np.arange(-1100, 1100) - 1) * math.log10(2)), 308)
SAMPLE = 2**31  # the salt of samples, which is no user's seed: they must not follow roles


def row_hashes(table: pd.DataFrame) -> np.ndarray:
    """Hash features and target of conformed rows, but no weight: uint64 of shape (n_rows,)."""
    # A row that comes again with another weight was seen before.
    rows = own_columns(table).apply(lambda x: _rounded(x) if x.dtype == np.float64 else x)
    return pd.util.hash_pandas_object(rows, index=False).to_numpy(np.uint64)


def _rounded(numbers: pd.Series) -> pd.Series:
    """Round fractions to 10 or 11 digits: of the 17 of a float64 R writes 15, a spreadsheet 16."""
    x = numbers.to_numpy()
    scale = TENS[np.frexp(x)[1] + 1100]  # by a table, as powers and logarithms take long
    return pd.Series(np.where(np.floor(x) == x, x, np.rint(x * scale) / scale), numbers.index)


def scrambled(hashes: np.ndarray, salt: int) -> np.ndarray:
    """Mix hashes with a salt into uint64 that look drawn anew (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = np.asarray(hashes, np.uint64) + np.uint64(salt + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def folds(table: pd.DataFrame) -> np.ndarray:
    """Give each row the fold that `Preprocessor.fit` and `transform` know it by."""
    return (scrambled(table[HASH], 2) % np.uint64(FOLDS)).astype(np.int64)


@dataclass(frozen=True)
class Roles:
    """Say of any row whether it is held out; part of the model, and inherited by its children.

    A row is held out when the scrambled hash of its content (with `group`: of its group) is below
    `threshold`. With `time` the rows whose time lies in one of the `intervals` (low, high] are.
    """

    seed: int
    threshold: int
    group: str = ""
    time: str = ""
    intervals: list[list[float]] = field(default_factory=list)
    weight: str = ""  # the column that says how much a row counts; it has no say in this

    @classmethod
    def choose(cls, table: pd.DataFrame, test_size: float, seed: int, **own: Any) -> "Roles":
        """Hold out the share `test_size` of distinct rows; `own` are group, time and weight."""
        keys = np.unique(scrambled(table[GROUP if own.get("group") else HASH], seed))
        n_held_out = min(math.ceil(test_size * len(keys)), len(keys) - 1)
        roles = cls(seed, int(keys[n_held_out]), **own)
        return roles.with_latest(table, test_size) if roles.time else roles

    def with_latest(self, table: pd.DataFrame, test_size: float) -> "Roles":
        """Hold out the latest share of a file, too; never times that may have trained before."""
        last = max([-math.inf, *(high for _, high in self.intervals)])
        times = np.sort(table[self.time][table[self.time] > last].to_numpy(np.float64))
        n_far = max(1, len(times) // 100)
        inner, gap = times[:-n_far], times[-1:] - times[-n_far - 1 : -n_far]
        if len(inner) and 0 < 3 * np.ptp(inner) < gap[0]:  # 2204 for 2024 holds out all in between
            times = inner
        if not len(times):
            return self
        first, end = times[int((1 - test_size) * len(times))], float(times[-1])
        # A day, week or year is held out whole, also where it is more than the share.
        before = times[times < (first if first > times[0] else end)]
        start = float(before[-1]) if len(before) else end
        start = max(start, last)
        return replace(self, intervals=[*self.intervals, [start, end]]) if start < end else self

    def refitted(self) -> "Roles":
        """Hold out none of the times so far, on which a refit trains."""
        return replace(self, intervals=[2 * self.intervals[-1][1:]]) if self.intervals else self

    def held_out(self, table: pd.DataFrame) -> np.ndarray:
        """Tell which rows of a table with HASH are held out, bool of shape (n_rows,)."""
        if not self.time:
            keys = scrambled(table[GROUP if self.group else HASH], self.seed)
            return keys < np.uint64(self.threshold)
        # The intervals are in order: an odd number of their ends lies below what is in one.
        ends = np.ravel(self.intervals)
        return np.searchsorted(ends, table[self.time]) % 2 == 1

    def assign(self, table: pd.DataFrame, generation: int) -> pd.DataFrame:
        """Add ROLE and GENERATION to a table with HASH."""
        role = np.where(self.held_out(table), HELD_OUT, TRAIN)
        return table.assign(**{ROLE: role, GENERATION: generation})


def hashed(table: pd.DataFrame, groups: pd.Series | None = None) -> pd.DataFrame:
    """Add HASH and, with the raw values of the group's column, GROUP to a conformed table."""
    table = table.assign(**{HASH: row_hashes(table)})
    if groups is None:
        return table
    texts, _ = read_cells(groups, Column("", "categorical"))  # 101 for 101.0
    # The same for 00042 and 42, 5.90 and 5.9, a day and its midnight: another format must not
    # change the role of a group.
    texts = texts.str.replace(r"^0+([0-9])|[T ]00:00:00$", r"\1", regex=True)
    texts = texts.str.replace(r"^([0-9]+\.[0-9]*[1-9])0+$", r"\1", regex=True)
    of_group = pd.util.hash_array(texts.fillna("").to_numpy(object))
    return table.assign(**{GROUP: np.where(texts.isna(), table[HASH], of_group)})  # or one giant


def weights(table: pd.DataFrame, mean: float | None = None) -> np.ndarray:
    """Return how much each row counts (1 if unknown), float64 (n_rows,), scaled to a `mean`."""
    found = table[WEIGHT].to_numpy(np.float64) if WEIGHT in table else np.ones(len(table))
    return found if mean is None else found * (mean / found.mean())


def smallest(table: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Keep `limit` rows of each role, a uniform sample: those whose scrambled hash is smallest."""
    order = pd.Series(scrambled(table[HASH], SAMPLE))  # bottom-k sampling (Cohen & Kaplan 2007)
    rank = order.groupby(table[ROLE].to_numpy()).rank(method="first")
    return table[(rank <= limit).to_numpy()].reset_index(drop=True)


def part(table: pd.DataFrame, role: str) -> pd.DataFrame:
    """Return the rows of one role."""
    return table[table[ROLE] == role].reset_index(drop=True)


def unseen(table: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are not in a replay buffer, which may be without columns."""
    return table if before.empty else table[~table[HASH].isin(before[HASH])]


def remember(buffer: pd.DataFrame, table: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Add the rows of a training to a replay buffer, and cut each role to `limit` rows."""
    return smallest(pd.concat([unseen(table, buffer), buffer]), limit)


def own_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return features and target alone, without what was added here."""
    return table.drop(columns=OWN, errors="ignore")


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Count the rows of each role."""
    held_out = int((table[ROLE] == HELD_OUT).sum())
    return {"rows": len(table), "trained_on": len(table) - held_out, "held_out": held_out}


def check_enough(table: pd.DataFrame, source: str) -> None:
    """Raise UserError where a table with roles leaves too few rows to train or to score."""
    _, n_train, n_held_out = counts(table).values()
    if n_train < MIN_TRAIN or n_held_out < MIN_HELD_OUT:
        raise UserError(
            f"{source} leaves {n_train} rows to train on and {n_held_out} to score; expected at "
            f"least {MIN_TRAIN} and {MIN_HELD_OUT}: add rows or change --test-size"
        )


@dataclass(frozen=True)
class RetrainingRows:
    """Hold the rows of a retraining, each once."""

    file: pd.DataFrame  # those of the file that no version of the line has seen
    train: pd.DataFrame  # new ones, those of refused versions included, then the parent's replayed
    held_out: dict[str, pd.DataFrame]  # "new" and, where there are any, "old"
    parent_generation: int
    seen_before: int
    remembered: pd.DataFrame  # all training rows of the parent, replayed or not

    @property
    def new(self) -> np.ndarray:
        """Tell which training rows the parent never saw, bool of shape (n_rows,)."""
        return (self.train[GENERATION] > self.parent_generation).to_numpy()

    @property
    def tries(self) -> int:
        """Number this training of the line since the parent's; those refused count, too."""
        return int(self.file[GENERATION].max()) - self.parent_generation

    @property
    def counts(self) -> dict[str, int]:
        """Count the rows by role and age, for the report."""
        both = self.train[HASH].isin(pd.concat(self.held_out.values())[HASH])
        return {
            "new rows to train on": int(self.new.sum()),
            "remembered rows to train on": int((~self.new).sum()),
            **{f"{name} rows held out": len(table) for name, table in self.held_out.items()},
            "rows of the file seen before": self.seen_before,
            "rows both trained on and held out": int(both.sum()),
        }


def gather(
    table: pd.DataFrame,
    buffer: pd.DataFrame,
    parent_generation: int,
    replay: int | None = None,
    by_time: bool = False,
) -> RetrainingRows:
    """Put the rows of a file, with roles, and of the replay buffer of its line together.

    Generations above the parent's are of versions that were refused. replay bounds the remembered
    training rows (None: all of them). by_time: roles follow from times, whatever the group.
    """
    buffer = table.head(0) if buffer.empty else buffer
    fresh, is_refused = unseen(table, buffer), buffer[GENERATION] > parent_generation
    old, new = buffer[~is_refused], pd.concat([fresh, buffer[is_refused]])
    if GROUP in new and not by_time:  # with --refit groups were trained on that would be held out
        known = part(old, TRAIN)[GROUP]
        trained = (rows[ROLE].mask(rows[GROUP].isin(known), TRAIN) for rows in (old, new))
        old, new = (r.assign(**{ROLE: t}) for r, t in zip((old, new), trained, strict=True))
    remembered = part(old, TRAIN)
    replayed = remembered if replay is None else smallest(remembered, replay)
    held_out = {"new": part(new, HELD_OUT), "old": part(old, HELD_OUT)}
    if held_out["old"].empty:
        del held_out["old"]
    train = pd.concat([part(new, TRAIN), replayed], ignore_index=True)
    seen_before = len(table) - len(fresh)
    return RetrainingRows(fresh, train, held_out, parent_generation, seen_before, remembered)


def check_enough_new(rows: RetrainingRows, source: str) -> None:
    """Raise UserError where too few new rows are held out to judge by, or none is to train on."""
    held_out = len(rows.held_out["new"])
    if held_out < MIN_HELD_OUT or len(rows.train) < MIN_TRAIN or not rows.new.any():
        raise UserError(
            f"{source} brings {len(rows.file):,} new rows, {held_out} of which are held out; "
            f"expected at least {MIN_HELD_OUT} to judge by, and others to train on: wait for more "
            "rows, and pass all of them in one file or folder"
        )


def alike_beside(y: np.ndarray) -> str:
    """Say that targets, in the order of a file, are alike in rows beside each other; or ""."""
    if len(y) < MIN_RANKED:
        return ""
    ranks = pd.Series(y).rank()
    correlation, order = ranks.autocorr(), ranks.corr(pd.Series(ranks.index))
    told = (
        f"rows beside each other have alike targets (rank correlation {correlation:.2f}): where "
        "they belong together, as those of a patient or a day, a model is judged on rows that it "
        "partly knows; a first training with --group COLUMN or --time COLUMN holds them out as one"
    )
    return told if correlation >= 0.5 and abs(order) <= 0.95 else ""


def repeated(table: pd.DataFrame) -> str:
    """Say that many rows of a file with HASH equal another one, or ""."""
    share = table[HASH].duplicated(keep=False).mean()
    told = (
        f"{share:.0%} of the rows equal another one in all that is learnt from: equal rows share a "
        "role and are new but once, so a model is judged on the rarer ones; a column that tells "
        "them apart, such as a date, mends that"
    )
    return told if share > MANY_REPEATED else ""


def blocks_of_rows(table: pd.DataFrame, role: Roles, blocks: int = 10) -> list[np.ndarray | None]:
    """Label groups, blocks of time (both with both), or else equal rows; None: each for itself.

    Of 10 to 30 blocks (Schmeiser 1982) the fewest: where errors go on for days (an autocorrelation
    of 0.8, 150 rows) intervals of 95.5 % cover 92 % with 10, 80 % with 30.
    """
    labels: list[np.ndarray | None] = [table[GROUP].to_numpy()] if role.group else []
    if role.time:
        order = table[role.time].rank(method="dense", na_option="bottom").to_numpy()
        labels.append(np.floor(order / (order.max() + 1) * blocks))
    return labels or [table[HASH].to_numpy() if table[HASH].duplicated().any() else None]
