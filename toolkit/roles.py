"""Which rows train and which are held out, and the sample of both that travels with a model.

Belongs here: the role of a row, which follows from its content alone, and the replay buffer. Not
here: files, MLflow, networks.

A *table* is what `columns.conform` returns, features and target, with the columns added here:
HASH of the row, ROLE ("train" or "held_out"), GENERATION of the training that first saw it and,
with groups, GROUP, the hash of its group.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from .encoding import FOLDS
from .errors import UserError

TRAIN, HELD_OUT = "train", "held_out"
# The prefix keeps clear of users' column names.
HASH, ROLE, GENERATION, GROUP = OWN = ["__hash", "__role", "__generation", "__group"]
MIN_TRAIN, MIN_HELD_OUT = 10, 2


def row_hashes(table: pd.DataFrame) -> np.ndarray:
    """Hash the features and target of conformed rows, uint64 of shape (n_rows,).

    Equal rows hash alike in every file, order and block, 0.0 like -0.0
    (`pandas.util.hash_pandas_object`).
    """
    own = table[[name for name in table.columns if name not in OWN]]
    return pd.util.hash_pandas_object(own, index=False).to_numpy(np.uint64)


def scrambled(hashes: np.ndarray, salt: int) -> np.ndarray:
    """Mix hashes with a salt into uint64 that look drawn anew (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = np.asarray(hashes, np.uint64) + np.uint64(salt + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def folds(table: pd.DataFrame) -> np.ndarray:
    """Give each row the fold that `Preprocessor.fit` and `transform` know it by."""
    return (scrambled(table[HASH].to_numpy(), 2) % np.uint64(FOLDS)).astype(np.int64)


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
    intervals: tuple[tuple[float, float], ...] = ()

    @classmethod
    def choose(
        cls, table: pd.DataFrame, test_size: float, seed: int, group: str = "", time: str = ""
    ) -> "Roles":
        """Choose the threshold so that the share `test_size` of distinct rows is held out."""
        keys = np.unique(scrambled(_keys(table, group), seed))
        n_held_out = math.ceil(test_size * len(keys))
        threshold = int(keys[min(n_held_out, len(keys) - 1)])
        roles = cls(seed, threshold, group, time)
        return roles.with_latest(table, test_size) if time else roles

    def with_latest(self, table: pd.DataFrame, test_size: float) -> "Roles":
        """Hold out the latest share of a file, too; never times that may have trained before."""
        times = table[self.time].to_numpy()
        end = float(np.nanmax(times))
        start = float(np.nanquantile(times, 1 - test_size))
        start = max([start, *(high for _, high in self.intervals)])
        if start >= end:
            return self
        return replace(self, intervals=(*self.intervals, (start, end)))

    def held_out(self, table: pd.DataFrame) -> np.ndarray:
        """Tell which rows of a table with HASH are held out, bool of shape (n_rows,)."""
        if self.time:
            times = table[self.time].to_numpy()
            within = [(times > low) & (times <= high) for low, high in self.intervals]
            return np.any(within, axis=0) if within else np.zeros(len(table), bool)
        keys = scrambled(_keys(table, self.group), self.seed)
        return keys < np.uint64(self.threshold)

    def assign(self, table: pd.DataFrame, generation: int) -> pd.DataFrame:
        """Add ROLE and GENERATION to a table with HASH."""
        role = np.where(self.held_out(table), HELD_OUT, TRAIN)
        return table.assign(**{ROLE: role, GENERATION: generation})

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Roles":
        """Build roles from their `dataclasses.asdict`, also after a way through JSON."""
        intervals = tuple((low, high) for low, high in content["intervals"])
        return cls(**{**content, "intervals": intervals})


def _keys(table: pd.DataFrame, group: str) -> np.ndarray:
    return table[GROUP if group else HASH].to_numpy(np.uint64)


def hashed(table: pd.DataFrame, groups: pd.Series | None = None) -> pd.DataFrame:
    """Add HASH and, with the raw values of the group's column, GROUP to a conformed table."""
    table = table.assign(**{HASH: row_hashes(table)})
    if groups is None:
        return table
    texts = groups.astype(object).where(groups.notna(), "").map(_written).to_numpy(object)
    return table.assign(**{GROUP: pd.util.hash_array(texts)})


def _written(value: Any) -> str:
    """Write a group as a CSV file does, whose integers may be floats in another file."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def together(*tables: pd.DataFrame) -> pd.DataFrame:
    """Join tables; empty ones do not count, since their columns may be of other types."""
    filled = [table for table in tables if len(table)] or [tables[0]]
    return pd.concat(filled, ignore_index=True)


def smallest(table: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Keep the `limit` rows of each role whose scrambled hashes are the smallest.

    Which rows these are does not depend on files, blocks or their order: a uniform sample of all
    rows ever seen (bottom-k sampling, Cohen & Kaplan 2007).
    """
    order = scrambled(table[HASH].to_numpy(), 1)
    rank = pd.Series(order).groupby(table[ROLE].to_numpy()).rank(method="first")
    return table[(rank <= limit).to_numpy()].reset_index(drop=True)


def part(table: pd.DataFrame, role: str) -> pd.DataFrame:
    """Return the rows of one role."""
    return table[table[ROLE] == role].reset_index(drop=True)


def unseen(table: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are not in a replay buffer, which may be without columns."""
    return table if before.empty else table[~table[HASH].isin(before[HASH])]


def remember(buffer: pd.DataFrame, table: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Add the rows of a training to a replay buffer, and cut each role to `limit` rows."""
    return smallest(together(unseen(table, buffer), buffer), limit)


def own_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return features and target alone, without what was added here."""
    return table.drop(columns=OWN, errors="ignore")


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Count the rows of each role."""
    held_out = int((table[ROLE] == HELD_OUT).sum())
    return {"rows": len(table), "trained_on": len(table) - held_out, "held_out": held_out}


def check_enough(table: pd.DataFrame, source: str) -> None:
    """Raise UserError where a table with roles leaves too few rows to train or to score."""
    found = counts(table)
    if found["trained_on"] < MIN_TRAIN or found["held_out"] < MIN_HELD_OUT:
        raise UserError(
            f"{source} leaves {found['trained_on']} rows to train on and {found['held_out']} to "
            f"score; expected at least {MIN_TRAIN} and {MIN_HELD_OUT}: add rows or change "
            "--test-size"
        )


@dataclass(frozen=True)
class RetrainingRows:
    """Hold the rows of a retraining, each once.

    file: the rows of the file that no version of the line has seen. train: remembered training rows
    of the parent, then the new ones, those of versions that were refused included. held_out: "new"
    and, where the parent remembers any, "old". remembered: all training rows of the parent that its
    line remembers, replayed or not.
    """

    file: pd.DataFrame
    train: pd.DataFrame
    held_out: dict[str, pd.DataFrame]
    parent_generation: int
    seen_before: int
    remembered: pd.DataFrame

    @property
    def new(self) -> np.ndarray:
        """Tell which training rows the parent never saw, bool of shape (n_rows,)."""
        return (self.train[GENERATION] > self.parent_generation).to_numpy()

    @property
    def tries(self) -> int:
        """Number this try to go on from the parent; versions that were refused were tries, too."""
        return int(self.file[GENERATION].max()) - self.parent_generation

    @property
    def counts(self) -> dict[str, int]:
        """Count the rows by role and age, for the report."""
        return {
            "new rows to train on": int(self.new.sum()),
            "remembered rows to train on": int((~self.new).sum()),
            **{f"{name} rows held out": len(table) for name, table in self.held_out.items()},
            "rows of the file seen before": self.seen_before,
            "rows both trained on and held out": int(
                self.train[HASH].isin(together(*self.held_out.values())[HASH]).sum()
            ),
        }


def gather(
    table: pd.DataFrame, buffer: pd.DataFrame, parent_generation: int, replay: int | None = None
) -> RetrainingRows:
    """Put the rows of a file and of the line's replay buffer together.

    table: the file's, with roles and generation. buffer: of the newest version of the line, whose
    generations above the parent's are of versions that were refused. replay bounds the remembered
    training rows (None: all of them).
    """
    buffer = table.head(0) if buffer.empty else buffer
    fresh, is_refused = unseen(table, buffer), buffer[GENERATION] > parent_generation
    old, new = buffer[~is_refused], together(fresh, buffer[is_refused])
    remembered = part(old, TRAIN)
    replayed = remembered if replay is None else smallest(remembered, replay)
    held_out = {"new": part(new, HELD_OUT), "old": part(old, HELD_OUT)}
    if held_out["old"].empty:
        del held_out["old"]
    train = together(part(new, TRAIN), replayed)
    seen_before = len(table) - len(fresh)
    return RetrainingRows(fresh, train, held_out, parent_generation, seen_before, remembered)


def blocks_of_rows(table: pd.DataFrame, role: Roles, blocks: int = 30) -> np.ndarray | None:
    """Label rows that belong together, for intervals; None where every row stands for itself.

    Groups, blocks of time, or else equal rows, which count as one.
    """
    if role.group:
        return table[GROUP].to_numpy()
    if role.time:
        order = table[role.time].rank(method="dense", na_option="bottom").to_numpy()
        return np.floor(order / (order.max() + 1) * blocks)
    return table[HASH].to_numpy() if table[HASH].duplicated().any() else None


def check_enough_new(rows: RetrainingRows, source: str) -> None:
    """Raise UserError where too few new rows are held out to judge a retraining by."""
    held_out = len(rows.held_out["new"])
    if held_out < MIN_HELD_OUT or len(rows.train) < MIN_TRAIN:
        raise UserError(
            f"{source} brings {len(rows.file):,} new rows, {held_out} of which are held out; "
            f"expected at least {MIN_HELD_OUT} to judge by: wait for more rows, and pass all of "
            "them in one file or folder"
        )
