"""The memory of a model: which rows it was trained on, and which are held out for ever.

Belongs here: the roles of rows over a chain of retrainings (the purity of held-out rows) and the
bounded sample of rows that travels with a model. Not here: files, MLflow, Keras.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tabular import MIN_ROWS, UserError

TRAIN, HELD_OUT = ROLES = ["train", "held_out"]
# Columns that the memory adds to the rows; the prefix keeps clear of users' column names.
ROLE, GENERATION, PRIORITY = "__role", "__generation", "__priority"
BLOCK = 1_000_000  # rows looked at together
FIRST_BITS = 26


def _no_seen_rows() -> pd.DataFrame:
    return pd.DataFrame({"hash": np.array([], np.uint64), ROLE: pd.Categorical([], ROLES)})


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
    was_held_out = contained(hashes, memory.hashes(HELD_OUT))
    was_trained = contained(hashes, memory.hashes(TRAIN)) & ~was_held_out
    fresh = np.flatnonzero(~was_held_out & ~was_trained).astype(np.int32)
    n_held_out = math.ceil(test_size * len(fresh)) if len(fresh) > 1 else 0
    is_held_out = was_held_out.copy()
    is_held_out[fresh[split_order(len(fresh), seed)[:n_held_out]]] = True
    held_out = np.flatnonzero(is_held_out).astype(np.int32)
    train = np.flatnonzero(~is_held_out).astype(np.int32)
    # Rows are judged by content, since the same row may stand twice in one file.
    impure = contained(hashes, hashes[held_out])[train]
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


def split_order(n_rows: int, seed: int) -> np.ndarray:
    """Shuffle row numbers as `model_utils.split` does; the first ones are held out.

    int32 of shape (n_rows,), shuffled in place: half the memory of `split`, and no copy.
    """
    order = np.arange(n_rows, dtype=np.int32)
    np.random.RandomState(seed).shuffle(order)
    return order


def contained(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Tell which values are in `reference`, as `np.isin`, in little memory: block by block.

    Both uint64, hashes whose bits are all alike; booleans of the shape of `values`.
    """
    found = np.zeros(len(values), bool)
    if len(reference) == 0:
        return found
    reference = np.sort(reference)
    # Most values are ruled out by their first bits: a look-up costs less than a search.
    present = np.zeros(2**FIRST_BITS, bool)
    present[reference >> (64 - FIRST_BITS)] = True
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        likely = np.flatnonzero(present[block >> (64 - FIRST_BITS)])
        likely = likely[np.argsort(block[likely])]  # a search near the last one is in the cache
        places = np.searchsorted(reference, block[likely]).clip(max=len(reference) - 1)
        found[start + likely] = reference[places] == block[likely]
    return found


def draw(
    hashes: np.ndarray, roles: Roles, memory: Memory, *, generation: int, limit: int, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draw a random priority for each row not seen before, and keep the `limit` smallest.

    Returns {role: (row numbers, priorities)}, in the order of the rows.
    """
    random, drawn = np.random.default_rng([seed, generation]), {}
    for role, numbers in ((TRAIN, roles.train), (HELD_OUT, roles.held_out)):
        numbers = _unseen(numbers, hashes, memory, role)
        kept, priorities = numbers[:0], np.empty(0)
        for start in range(0, len(numbers), BLOCK):
            block = numbers[start : start + BLOCK]
            kept = np.concatenate([kept, block])
            priorities = np.concatenate([priorities, random.random(len(block))])
            if len(kept) > limit:
                smallest = np.sort(np.argpartition(priorities, limit)[:limit])
                kept, priorities = kept[smallest], priorities[smallest]
        drawn[role] = kept, priorities
    return drawn


def _unseen(numbers: np.ndarray, hashes: np.ndarray, memory: Memory, role: str) -> np.ndarray:
    known = memory.hashes(role)
    return numbers[~contained(hashes[numbers], known)] if len(known) else numbers


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

    rows: found by their number in the index; those that `draw` returns are needed.
    """
    parts = [memory.rows]
    drawn = draw(hashes, roles, memory, generation=generation, limit=limit, seed=seed)
    for role, (kept, priorities) in drawn.items():
        extra = {ROLE: role, GENERATION: generation, PRIORITY: priorities}
        parts.append(rows.loc[kept].assign(**extra))
    everything = pd.concat([p for p in parts if len(p)] or parts[-1:], ignore_index=True)
    rank = everything.groupby(ROLE)[PRIORITY].rank(method="first")
    kept = everything[rank <= limit].reset_index(drop=True)
    return Memory(kept, _seen(memory, hashes, roles))


def _seen(memory: Memory, hashes: np.ndarray, roles: Roles) -> pd.DataFrame:
    """List the hashes of all rows seen so far, each once; in one array, since they may be many."""
    end = len(memory.seen)
    values = np.empty(end + len(roles.train) + len(roles.held_out), np.uint64)
    codes = np.empty(len(values), np.int8)
    values[:end] = memory.seen["hash"]
    codes[:end] = memory.seen[ROLE].astype(pd.CategoricalDtype(ROLES)).cat.codes
    for role, numbers in ((TRAIN, roles.train), (HELD_OUT, roles.held_out)):
        numbers = _unseen(numbers, hashes, memory, role)
        new = values[end : end + len(numbers)]
        np.take(hashes, numbers, out=new, mode="clip")  # other modes copy
        new.sort()
        is_first = np.ones(len(new), bool)
        np.not_equal(new[1:], new[:-1], out=is_first[1:])
        n_distinct = int(is_first.sum())
        if n_distinct < len(new):
            new[:n_distinct] = new[is_first]
        codes[end : end + n_distinct] = ROLES.index(role)
        end += n_distinct
    columns = {"hash": values[:end], ROLE: pd.Categorical.from_codes(codes[:end], ROLES)}
    return pd.DataFrame(columns, copy=False)
