"""From a source of rows to one table of conformed, hashed rows, block by block.

Belongs here: what both trainings do to rows before any of them has a role.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import columns, roles, tables
from .columns import Schema
from .errors import UserError
from .kinds import infer_schema

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

    def find_schema(rows: pd.DataFrame, line: int) -> tuple[Schema, list[str]]:
        return infer_schema(rows, target, first_line=line, source=data, **said)

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
    table, _, notes = _read(settings, lambda rows, line: (schema, []), group, strict=strict)
    role = role or roles.Roles.choose(table, settings.test_size, settings.seed)
    role = role.with_latest(table, settings.test_size) if role.time else role
    return role.assign(table, generation), role, notes


def _read(
    settings: "TrainingSettings", find_schema: Callable, group: str, *, strict: bool
) -> tuple[pd.DataFrame, Schema, list[str]]:
    data, schema, notes, n_rows = settings.data, None, [], 0
    parts: list[pd.DataFrame] = []
    left_out: list[int] = []  # places in the whole table
    source = tables.open_table(data, settings.query)
    for block in source.blocks():
        line = source.first_line + n_rows
        if schema is None:
            schema, notes = find_schema(block, line)
        if group and group not in block.columns:
            raise UserError(
                f"{data} has no column {group!r} of groups to hold out as a whole; its columns are "
                f"{', '.join(map(str, block.columns))}"
            )
        table, found = columns.conform(block, schema, source=data, first_line=line, strict=strict)
        gone = list(table.attrs.pop("left_out", ()))
        groups = block[group].drop(index=gone).reset_index(drop=True) if group else None
        parts.append(roles.hashed(table, groups))
        left_out += [n_rows + place for place in gone]
        notes += found
        n_rows += len(block)
    assert schema is not None
    together = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
    together.attrs["left_out"] = tuple(left_out)  # the lines of the others follow from it
    notes += columns.warnings_about(together, schema, source.first_line)
    return together, schema, [*source.notes, *notes]
