"""From a source of rows to one table of conformed, hashed rows, block by block.

Belongs here: what both trainings do to rows before any of them has a role.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import columns, roles, tables
from .columns import Schema
from .errors import UserError
from .kinds import infer_schema, leaks

if TYPE_CHECKING:
    from .artifact import TrainedModel
    from .cli import TrainingSettings

KINDS = ("drop", "keep", "numeric", "categorical", "date", "na")


def read_first(settings: Any) -> tuple[pd.DataFrame, Schema, list[str]]:
    """Read the rows of a first training, and find out what their columns are.

    Returns (table of `roles.py`, schema, notes for the user).
    Raises UserError for whatever cannot be used.
    """
    said = {name: getattr(settings, name) for name in KINDS}
    target, data = settings.target, settings.data

    def find_schema(rows: pd.DataFrame) -> tuple[Schema, list[str]]:
        return infer_schema(rows, target, source=data, **said)

    table, schema, notes = _read(settings, find_schema, settings.group or "", strict=False)
    time = settings.time
    if time and schema.kinds.get(time) not in ("date", "numeric"):
        raise UserError(
            f"--time {time!r} is no date or number among the features of {data}; they are "
            f"{', '.join(schema.features)}"
        )
    columns.check_target(table[target].to_numpy(), target, data)
    return table, schema, notes


def read_again(
    settings: "TrainingSettings", parent: "TrainedModel", generation: int
) -> tuple[pd.DataFrame, roles.Roles, list[str]]:
    """Read new rows for a model, and give them the roles that its first training chose.

    Columns unknown to a model of ours are an error. Returns (table of `roles.py`, roles, notes for
    the user). Raises UserError as `read_first` does.
    """
    role, schema = parent.roles, parent.preprocessor.schema
    group, strict = role.group if role else "", bool(parent.card)
    table, _, notes = _read(settings, lambda rows: (schema, []), group, strict=strict)
    role = role or roles.Roles.choose(table, settings.test_size, settings.seed)
    role = role.with_latest(table, settings.test_size) if role.time else role
    return role.assign(table, generation), role, notes


def _read(
    settings: "TrainingSettings", find_schema: Callable, group: str, *, strict: bool
) -> tuple[pd.DataFrame, Schema, list[str]]:
    data, schema, notes, n_rows = settings.data, None, [], 0
    parts: list[pd.DataFrame] = []
    source = tables.open_table(data, settings.query)
    for block in source.blocks():
        line = source.first_line + n_rows
        if schema is None:
            schema, notes = find_schema(block)
        if group and group not in block.columns:
            raise UserError(
                f"{data} has no column {group!r} of groups to hold out as a whole; its columns are "
                f"{', '.join(map(str, block.columns))}"
            )
        table, found = columns.conform(block, schema, source=data, first_line=line, strict=strict)
        parts.append(roles.hashed(table, block[group].loc[table.index] if group else None))
        notes += found
        n_rows += len(block)
    assert schema is not None
    together = pd.concat(parts, ignore_index=True)
    return together, schema, [*source.notes, *notes, *leaks(together, schema)]
