"""The memory of a model: which rows it was trained on, and which are held out for ever.

Belongs here: the roles of rows over a chain of retrainings (the purity of held-out rows) and the
bounded sample of rows that travels with a model. Not here: files, MLflow, Keras.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from model_utils import split
from tabular import MIN_ROWS, UserError

TRAIN, HELD_OUT = "train", "held_out"
# Columns that the memory adds to the rows; the prefix keeps clear of users' column names.
ROLE, GENERATION, PRIORITY = "__role", "__generation", "__priority"


def _no_seen_rows() -> pd.DataFrame:
    return pd.DataFrame({"hash": np.array([], np.uint64), ROLE: pd.Series([], dtype="str")})


@dataclass(frozen=True)
class Memory:
    """Hold a sample of the rows that a model and its ancestors saw, and the hashes of all of them.

    rows: features and target, with role, generation (0 is the first training) and a random
    priority. seen: the hash and role of every row ever seen, also those that are not kept.
    """

    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    seen: pd.DataFrame = field(default_factory=_no_seen_rows)

    def part(self, role: str) -> pd.DataFrame:
        """Return the kept rows of one role, in a fixed order."""
        if self.rows.empty:
            return self.rows
        return self.rows[self.rows[ROLE] == role]

    def hashes(self, role: str) -> np.ndarray:
        """Return the hashes of all rows of one role, uint64."""
        return self.seen.loc[self.seen[ROLE] == role, "hash"].to_numpy(np.uint64)


@dataclass(frozen=True)
class Roles:
    """Tell which rows of a file train the model and which are held out, as row numbers."""

    train: np.ndarray
    held_out: np.ndarray
    counts: dict[str, int]


def assign_roles(
    hashes: np.ndarray, memory: Memory, *, test_size: float, seed: int, source: str = "the data"
) -> Roles:
    """Split the rows of a file so that no held-out row, of it or of an ancestor, is trained on.

    Rows never seen before are split at random. A row that an ancestor held out stays held out, one
    that an ancestor was trained on is training again. A training row equal to a held-out one is
    set aside: it would be scored on what was learned by heart.

    hashes: uint64 of shape (n_rows,). Returns row numbers and the counts for the report.
    Raises UserError when too few rows are left to train or to score.
    """
    numbers = np.arange(len(hashes))
    was_held_out = np.isin(hashes, memory.hashes(HELD_OUT))
    was_trained = np.isin(hashes, memory.hashes(TRAIN)) & ~was_held_out
    fresh = numbers[~was_held_out & ~was_trained]
    train, held_out = fresh, fresh[:0]
    if len(fresh) > 1:
        train, held_out, _, _ = split(fresh, fresh, test_size, seed)
    train = np.sort(np.concatenate([train, numbers[was_trained]]))
    held_out = np.sort(np.concatenate([held_out, numbers[was_held_out]]))
    # Rows are judged by content, since the same row may stand twice in one file.
    impure = np.isin(hashes[train], hashes[held_out])
    counts = {
        "rows": len(hashes),
        "trained_on": int(len(train) - impure.sum()),
        "held_out": len(held_out),
        "held_out_before": int(was_held_out.sum()),
        "trained_on_before": int(was_trained.sum()),
        "set_aside": int(impure.sum()),
    }
    train = train[~impure]
    if len(train) < MIN_ROWS / 2 or len(held_out) < 2:
        raise UserError(
            f"{source} leaves {len(train)} rows to train on and {len(held_out)} to score "
            f"({counts['held_out_before']} were held out before); expected at least "
            f"{MIN_ROWS // 2} and 2: add rows or change --test-size"
        )
    return Roles(train, held_out, counts)


def remember(
    memory: Memory,
    rows: pd.DataFrame,
    hashes: np.ndarray,
    roles: Roles,
    *,
    generation: int,
    limit: int,
    seed: int,
) -> Memory:
    """Add the rows of one training to a memory, and cut each role to `limit` rows.

    Every row draws a random priority once and the smallest ones are kept, which makes the memory
    a uniform sample without replacement of all rows ever added, over any chain of retrainings
    (bottom-k sampling, Cohen & Kaplan 2007). Rows added before are not added again.
    """
    random = np.random.default_rng([seed, generation])
    parts, seen = [memory.rows], [memory.seen]
    for role, numbers in ((TRAIN, roles.train), (HELD_OUT, roles.held_out)):
        numbers = numbers[~np.isin(hashes[numbers], memory.hashes(role))]
        seen.append(pd.DataFrame({"hash": hashes[numbers], ROLE: role}))
        extra = {ROLE: role, GENERATION: generation, PRIORITY: random.random(len(numbers))}
        parts.append(rows.iloc[numbers].assign(**extra))
    everything = pd.concat([part for part in parts if len(part)], ignore_index=True)
    rank = everything.groupby(ROLE)[PRIORITY].rank(method="first")
    kept = everything[rank <= limit].reset_index(drop=True)
    return Memory(kept, pd.concat(seen, ignore_index=True).drop_duplicates("hash"))
