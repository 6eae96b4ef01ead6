"""What a plan is too small to tell, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

FEW_ROWS, FEW_LABELS = 300, 100
"""Rows of a pool, and labels to learn from, below which a run says what it cannot know."""


def too_little(counts: Mapping[str, int], rows: int, *, by_row: bool) -> list[str]:
    """Return what a plan cannot tell and what to do, nothing where it is large enough.

    counts: labels by split. rows: of the pool. by_row: the teacher labels rows.
    """
    training = counts["train"]
    measuring = sum(counts.get(split, 0) for split in ("validation", "q2", "q3", "test"))
    other = (
        "" if by_row else ", take a teacher that labels rows, of which a few give many pairs (--teacher rds or less),"
    )
    instead = f"Raise --labels{other} or select on embeddings alone (--teacher delift-se)."
    if training < FEW_LABELS:
        return [
            f"The student learns from {training} labels and is measured by {measuring}: from fewer than {FEW_LABELS} it "
            f"cannot be told whether it agrees with the teacher, or selects better than what is free. {instead}"
        ]
    if rows < FEW_ROWS:
        return [
            f"The pool has {rows} rows, and {measuring} labels measure the student: in pools of fewer than {FEW_ROWS} rows its "
            f"agreement with the teacher is known roughly, see the intervals. {instead}"
        ]
    return []
