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

from nncift.labels.growth import SMALLEST_POOL, check_pool_size, extended, grow, set_apart
from nncift.labels.label_budget import FIRST, LabelBudget
from nncift.labels.plan import (
    BASE,
    NO_SOURCE,
    Q2,
    Q3,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Entries,
    LabelPlan,
    Roles,
    describe,
)

__all__ = [
    "BASE",
    "FIRST",
    "NO_SOURCE",
    "Q2",
    "Q3",
    "SMALLEST_POOL",
    "SPLITS",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Entries",
    "LabelBudget",
    "LabelPlan",
    "Roles",
    "check_pool_size",
    "describe",
    "extended",
    "grow",
    "set_apart",
]
