"""The full teacher: every pair's utility, which no run needs and every claim is judged by; computed once, and resumable."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nncift.core.fingerprints import fingerprint
from nncift.core.pairs import UtilityMatrix
from nncift.core.progress import Progress, silent
from nncift.data import Examples
from nncift.errors import UsageError
from nncift.labels import SCORE, LabelFormat
from nncift.storage.row_store import RowStore
from nncift.teachers import Chunk, FeatureTeacher, RowTeacher, Teacher
from nncift.teachers.utility_blocks import utility_blocks

CHUNK = 128
ROWS = 16


def true_matrix(
    teacher: Teacher | RowTeacher,
    sources: Examples,
    folder: Path,
    progress: Progress = silent,
    *,
    targets: Examples | None = None,
) -> UtilityMatrix:
    """Return all pairs' utilities by the teacher, ids ascending on both axes; stored under `folder`, so that it can be resumed.

    targets: None = the sources themselves, and the diagonal is masked. A pointwise teacher's scores have the one target `SCORE`.
    Raises UsageError where the teacher refuses a row, and the errors of the teacher.
    """
    pool = sources if targets is None else Examples((*sources, *targets))
    refused = teacher.prepare(pool)
    if refused:
        raise UsageError(f"the teacher refuses {len(refused)} of {len(pool)} rows, the first: {refused[0]}")
    along = tuple(sorted(sources.ids))
    across = along if targets is None else tuple(sorted(targets.ids))
    if isinstance(teacher, RowTeacher):
        return _from_rows(teacher, pool, across, along, folder, progress, shared=targets is None)
    other = [] if targets is None else [_contents(pool, across)]
    header = {"of": fingerprint(_contents(pool, along), dict(teacher.describe()), *other)}
    # The targets without an example come first, for teachers that compare with them.
    first: list[str | None] = [None] if teacher.relative else []
    store = RowStore.open(folder / "utility", len(first) + len(along), len(across), header=header)
    groups = [across[start : start + CHUNK] for start in range(0, len(across), CHUNK)]
    with progress("labelling every pair", len(first) + len(along)) as advance:
        for row, source in enumerate([*first, *along]):
            if not store.filled[row]:
                parts = [teacher.label(Chunk(row, source, group)).values for group in groups]
                store.write(row, np.concatenate(parts))
            advance(1)
    raw = np.asarray(store.values)
    values = np.asfortranarray(raw[0][:, None] - raw[1:].T if first else raw.T)
    if targets is None:
        np.fill_diagonal(values, np.nan)
    return UtilityMatrix(across, along, values)


def _contents(pool: Examples, ids: tuple[str, ...]) -> list[list[str]]:
    """Return ids with hashes of what the teacher reads of them: rows of other content may have the same ids."""
    return [[item, pool.by_id(item).content_hash] for item in ids]


def _from_rows(
    teacher: RowTeacher,
    pool: Examples,
    across: tuple[str, ...],
    along: tuple[str, ...],
    folder: Path,
    progress: Progress,
    *,
    shared: bool,
) -> UtilityMatrix:
    """Measure every row; all pairs follow."""
    every = tuple(dict.fromkeys([*along, *across]))
    header = {"of": fingerprint(_contents(pool, every), dict(teacher.describe()))}
    kept = LabelFormat.of(teacher)
    store = RowStore.open(folder / "rows", len(every), kept.width, dtype=kept.dtype, header=header)
    with progress("measuring every row", len(every)) as advance:
        for start in range(0, len(every), ROWS):
            here = np.arange(start, min(start + ROWS, len(every)))
            if not np.all(store.filled[here]):
                store.write(here, teacher.measure([every[row] for row in here]).values)
            advance(len(here))
    place = {item: row for row, item in enumerate(every)}
    columns, lines = (np.array([place[item] for item in ids], np.intp) for ids in (along, across))
    if teacher.kind == "pointwise" or not isinstance(teacher, FeatureTeacher):
        scores = np.asarray(store.values[columns, :1], np.float32)
        return UtilityMatrix(SCORE, along, np.asfortranarray(scores.T))
    values = np.empty((len(lines), len(columns)), np.float32, order="F")
    features = lambda places: np.asarray(store.values[places], np.float32)  # noqa: E731
    for targets, sources, table in utility_blocks(teacher, features, lines, columns, across):
        values[targets, sources] = table
    if shared:
        np.fill_diagonal(values, np.nan)
    return UtilityMatrix(across, along, values)
