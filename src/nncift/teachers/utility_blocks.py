"""Utilities of all pairs of measured rows, block by block: features of many rows do not fit into memory twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nncift.core.arrays import Floats, Places
from nncift.core.pairs import BLOCK
from nncift.teachers import FeatureTeacher
from nncift.teachers.abilities import HasSubtasks

BYTES_AT_ONCE = 1 << 28
"""Bytes of the features of a block's targets, and of its sources."""


def utility_blocks(
    teacher: FeatureTeacher, features: Callable[[Places], Floats], targets: Places, sources: Places, ids: Sequence[str]
) -> Iterator[tuple[slice, slice, Floats]]:
    """Yield which targets, which sources, and their utilities `(n_targets, n_sources)`, until all pairs are done.

    features: gives those of rows at places, `(n, width)`. targets and sources: places of the two axes. ids: of the targets. Where
    targets belong to subtasks, all of them are in every block. Blocks depend on the numbers of rows and on the width alone.
    """
    width = max(1, teacher.width)
    most = max(1, BYTES_AT_ONCE // (4 * width))
    by_subtask = isinstance(teacher, HasSubtasks) and teacher.subtask is not None
    lines = len(targets) if by_subtask else min(len(targets), most)
    columns = max(1, min(most, BLOCK // max(1, lines)))
    for line in range(0, len(targets), max(1, lines)):
        across = slice(line, line + lines)
        of_targets = features(targets[across])
        for column in range(0, len(sources), columns):
            along = slice(column, column + columns)
            of_sources = features(sources[along])
            if isinstance(teacher, HasSubtasks):
                table = teacher.subtask_utility(of_targets, of_sources, ids[across])
            else:
                table = teacher.utility(of_targets, of_sources)
            yield across, along, np.asarray(table, np.float32)
