"""Label plans: which pairs the teacher labels, what each pair is for, and in which chunks they are computed.

A plan is deterministic from ids and seed, and it only ever grows: more labels or more rows add entries in new chunks
and leave earlier ones where they are. Training, validation and test items are disjoint (method.md 2), so that every
quadrant is measured:

- `train`: pairs of training items. `block` labels u of the targets by u of the sources, `scatter` spreads the same
  number of pairs evenly over all rows and columns, `active` scatters half of them and adds the rest round by round.
- `validation`: pairs of validation items, for early stopping.
- `test` (Q4): pairs of test items, both unseen. `q2`: test targets with seen sources. `q3`: seen targets with test sources.
- `base`: targets without an example, for relative teachers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nncift.core.arrays import Floats
from nncift.core.pairs import LabelledPairs
from nncift.errors import DataError
from nncift.labels.label_budget import FIRST, LabelBudget
from nncift.labels.pair_labels import PairLabelStore, combine
from nncift.labels.plan import (
    BASE,
    NO_SOURCE,
    Q2,
    Q3,
    SCORE,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Entries,
    LabelPlan,
    Roles,
    RowPlan,
    describe,
    describe_rows,
)
from nncift.labels.row_labels import RowLabelStore, grow_rows
from nncift.labels.sampling import SMALLEST_POOL, check_pool_size, extended, grow, set_apart
from nncift.labels.store import Axes, LabelFormat, LabelStore
from nncift.storage.atomic import read_json
from nncift.teachers import RowTeacher, Teacher

__all__ = [
    "BASE",
    "FIRST",
    "NO_SOURCE",
    "Q2",
    "Q3",
    "SCORE",
    "SMALLEST_POOL",
    "SPLITS",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Axes",
    "Entries",
    "LabelBudget",
    "LabelFormat",
    "LabelPlan",
    "LabelStore",
    "PairLabelStore",
    "Roles",
    "RowLabelStore",
    "RowPlan",
    "check_pool_size",
    "combine",
    "describe",
    "describe_rows",
    "extended",
    "grow",
    "grow_rows",
    "measured_values",
    "open_labels",
    "read_utilities",
    "set_apart",
]


def open_labels(folder: Path, teacher: Teacher | RowTeacher) -> LabelStore[Any]:
    """Return the labels in a folder, for this kind of teacher."""
    return RowLabelStore(folder, teacher) if isinstance(teacher, RowTeacher) else PairLabelStore(folder, teacher)


def read_utilities(folder: Path) -> dict[str, LabelledPairs]:
    """Return the utilities of a finished run by split, without its teacher. Raises DataError where there are none."""
    head = folder / "plan-000.json"
    if not head.exists():
        raise DataError(f"there are no labels in {str(folder)!r}; run the same command again")
    try:
        of_rows = read_json(head)["kind"] == RowLabelStore.kind
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"the label plan {str(head)!r} is damaged ({error}); use another --out") from error
    return (RowLabelStore(folder) if of_rows else PairLabelStore(folder)).utilities()


def measured_values(folder: Path, ids: Sequence[str]) -> Floats | None:
    """Return what a teacher that labels rows measured of some, `(n, width)`; None where it has not measured all of them.

    Raises DataError for labels that are damaged or not complete.
    """
    return RowLabelStore(folder).measured(ids)
