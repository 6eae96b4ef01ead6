"""Reasons: why a row was chosen or dropped, which targets it serves, who serves them better, what would have to change."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.core.result_types import OPTIONAL, Record
from nncift.core.seeds import shuffled
from nncift.errors import UsageError
from nncift.runs.find_rows import Matches, id_at_rank, rows_with
from nncift.runs.finished import Choice, FinishedRun

BEST = 5
SAMPLED_TARGETS = 2000
BLOCK = 1 << 22


@dataclass(frozen=True)
class Served(Record):
    """A target that a row serves. known: by the teacher; else predicted, with an interval where there is one."""

    target: str
    utility: float
    known: bool
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Nearest(Record):
    """The selected row whose embedding is most similar."""

    id: str
    rank: int | None
    cosine: float


@dataclass(frozen=True)
class Rival(Record):
    """The selected row that serves a target best, beside a row's own utility for it. known: by the teacher."""

    target: str
    own: float
    rival: str
    rank: int | None
    utility: float
    known: bool


@dataclass(frozen=True)
class Explanation(Record):
    """What became of a row, and why.

    of: selected rows. score_place: by mean utility alone, from 1. stability: share of refits in which the row is selected.
    serves: the targets that it serves best. interval: the level of their intervals. change: what would have to be different.
    rivals: where asked for, who serves these targets now.
    """

    id: str
    source: str
    line: int | None
    prompt: str
    response: str
    selected: bool
    rank: int | None
    of: int
    gain: float | None
    would_add: float | None
    score: float | None
    score_place: int | None
    stability: float | None
    pool: int
    reason: str
    objective: str
    serves: tuple[Served, ...]
    interval: float | None
    nearest_selected: Nearest | None
    change: tuple[str, ...] = ()
    rivals: tuple[Rival, ...] | None = field(default=None, metadata=OPTIONAL)


def explain(run: str | Path | FinishedRun, example_id: str, *, why_not: bool = False) -> Explanation:
    """Explain what became of one row of a finished run.

    Tells rank and gain (or what the row would still add), the targets it serves best and by how much (known from the teacher, or
    predicted with an interval that held 90 % of the held-out pairs), its nearest selected row, and `change`: what would have
    to be different. why_not adds, for each of these targets, who serves it now.

    Raises UsageError for an id that the run does not have, DataError for a directory without a finished run.
    """
    found = run if isinstance(run, FinishedRun) else FinishedRun(run)
    found.check_same_rows()
    if example_id not in found.choices:
        near = difflib.get_close_matches(example_id, found.choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; selection.parquet has all ids"
        raise UsageError(f"the run in {str(found.path)!r} has no row {example_id!r}{hint}")
    choice = found.choices[example_id]
    example = found.rows.example(example_id)
    serves = served_by(found, [example_id])[0]
    record = Explanation(
        id=example_id,
        source=choice.source,
        line=example.line,
        prompt=example.prompt,
        response=example.response,
        selected=choice.selected,
        rank=choice.rank,
        of=len(found.chosen),
        gain=choice.gain,
        would_add=choice.would_add,
        score=choice.score,
        score_place=_score_place(found, choice),
        stability=choice.stability,
        pool=len(found.choices),
        reason=choice.reason,
        objective=str(found.settings.objective),
        serves=serves,
        interval=None if found.fidelity.pair_interval.half_width is None else 0.9,
        nearest_selected=nearest_selected(found, example_id),
    )
    rivals = _rivals(found, example_id, [one.target for one in serves]) if why_not else None
    return replace(record, change=tuple(_change(found, choice, record)), rivals=rivals)


def explain_found(
    run: str | Path | FinishedRun,
    example_id: str | None = None,
    *,
    rank: int | None = None,
    search: str | None = None,
    why_not: bool = False,
) -> Explanation | Matches:
    """Explain the row that an id, a rank or a text names; where a text is in several rows, return these.

    Raises UsageError unless one of the three is given, and where there is no such row.
    """
    if sum(value is not None for value in (example_id, rank, search)) != 1:
        raise UsageError("which row is to be explained? Give one of --id ID, --rank N and --search TEXT")
    found = run if isinstance(run, FinishedRun) else FinishedRun(run)
    if rank is not None:
        example_id = id_at_rank(found, rank)
    elif search is not None:
        matches = rows_with(found, search)
        if matches.found > 1:
            return matches
        example_id = matches.rows[0].id
    return explain(found, str(example_id), why_not=why_not)


def served_by(run: FinishedRun, ids: Sequence[str], best: int = BEST) -> list[tuple[Served, ...]]:
    """Return for each of some rows the targets with its highest utilities, ties by id; none for a pointwise teacher."""
    if run.pointwise:
        return [() for _ in ids]
    found: list[tuple[Served, ...]] = []
    step = max(1, BLOCK // len(run.target_ids))
    for start in range(0, len(ids), step):
        values, known = run.block(run.target_ids, ids[start : start + step])
        values = np.nan_to_num(values, nan=-np.inf)
        found += [_highest(run, values[:, at], known[:, at], best) for at in range(values.shape[1])]
    return found


def _highest(run: FinishedRun, column: Floats, known: npt.NDArray[np.bool_], best: int) -> tuple[Served, ...]:
    top = np.arange(len(column)) if len(column) <= best else np.argpartition(-column, best - 1)[:best]
    width = run.fidelity.pair_interval.half_width
    order = sorted(top.tolist(), key=lambda at: (-column[at], run.target_ids[at]))
    return tuple(
        Served(
            run.target_ids[at],
            float(column[at]),
            bool(known[at]),
            None if known[at] or width is None else float(column[at] - width),
            None if known[at] or width is None else float(column[at] + width),
        )
        for at in order
        if np.isfinite(column[at])
    )


def nearest_selected(run: FinishedRun, example_id: str) -> Nearest | None:
    """Return the selected row, other than this one, whose embedding is most similar; None where there is none."""
    others = [name for name in run.chosen if name != example_id]
    if not others:
        return None
    cosine = run.vectors(others) @ run.vectors([example_id])[0]
    at = int(np.argmax(cosine))
    return Nearest(others[at], run.choices[others[at]].rank, float(cosine[at]))


@dataclass(frozen=True)
class Cover:
    """How well targets are served by the selected rows: `(n_targets,)` best utility, its holder, and the second best."""

    targets: tuple[str, ...]
    best: Floats
    holder: tuple[str, ...]
    second: Floats


def cover(run: FinishedRun, targets: tuple[str, ...]) -> Cover:
    """Return how well some targets are served; NaN where no selected row has a utility for a target."""
    best, second = np.full(len(targets), -np.inf, np.float32), np.full(len(targets), -np.inf, np.float32)
    holder = np.zeros(len(targets), np.int64)
    step = max(1, BLOCK // max(1, len(targets)))
    for start in range(0, len(run.chosen), step):
        values = np.nan_to_num(run.block(targets, run.chosen[start : start + step])[0], nan=-np.inf)
        at = values.argmax(axis=1)
        top = values[np.arange(len(targets)), at]
        values[np.arange(len(targets)), at] = -np.inf
        runner_up = np.maximum(values.max(axis=1, initial=-np.inf), np.minimum(best, top))
        second = np.maximum(second, runner_up)
        better = top > best
        holder[better], best[better] = start + at[better], top[better]
    names = tuple(run.chosen[at] for at in holder) if run.chosen else ()
    return Cover(
        targets, np.where(np.isfinite(best), best, np.nan), names, np.where(np.isfinite(second), second, np.nan)
    )


def sampled_targets(run: FinishedRun, most: int = SAMPLED_TARGETS) -> tuple[str, ...]:
    """Return all targets, or a seeded sample where there are more than `most`."""
    ids = run.target_ids
    return ids if len(ids) <= most else tuple(shuffled(ids, run.settings.seed, "report", "targets")[:most])


def _score_place(run: FinishedRun, choice: Choice) -> int | None:
    if choice.score is None:
        return None
    scores: Sequence[float | None] = run.column("score")
    return 1 + sum(score is not None and score > choice.score for score in scores)


def _left_to_add(run: FinishedRun) -> list[float]:
    """Return what every dropped row would add, 0 where that is unknown."""
    return [
        gain or 0.0
        for gain, selected in zip(run.column("would_add"), run.column("selected"), strict=True)
        if not selected
    ]


def _rivals(run: FinishedRun, example_id: str, targets: list[str]) -> tuple[Rival, ...]:
    """Return for each target who of the selected rows, this one left out, serves it best."""
    others = [name for name in run.chosen if name != example_id]
    if not targets or not others:
        return ()
    mine, _ = run.block(targets, [example_id])
    theirs, known = run.block(targets, others)
    theirs = np.nan_to_num(theirs, nan=-np.inf)
    found = []
    for row, target in enumerate(targets):
        at = int(theirs[row].argmax())
        if np.isfinite(theirs[row, at]):
            rank, utility = run.choices[others[at]].rank, float(theirs[row, at])
            found.append(Rival(target, float(mine[row, 0]), others[at], rank, utility, bool(known[row, at])))
    return tuple(found)


def _change(run: FinishedRun, choice: Choice, record: Explanation) -> list[str]:
    """Say what would have to be different for this row to be dropped or chosen."""
    last = run.choices[run.chosen[-1]] if run.chosen else None
    if choice.selected:
        return _kept(run, choice)
    if last is None:
        return ["Nothing was selected; a larger budget would have to be given."]
    if choice.would_add is None:
        if not choice.reason.startswith("Removed"):
            return ["No utility is known for it, so that no budget short of the whole pool would choose it."]
        return ["It was taken out before the selection, and did not compete; `nncift select` with other rules lets it."]
    if record.objective == "rr":
        return _turns(run, record)
    ahead = 1 + sum(gain > choice.would_add for gain in _left_to_add(run))
    found = []
    if last.gain is not None:
        missing = last.gain - choice.would_add
        found.append(
            f"It would add {choice.would_add:.4g}; the last chosen row, {last.id}, added {last.gain:.4g}. It would have to add "
            f"{missing:.4g} more to take its place."
            if missing > 0
            else f"It would add {choice.would_add:.4g}, as much as the last chosen row, {last.id}: a rule or a tie decided."
        )
    if run.pointwise or record.objective in ("topk", "max"):
        # Such gains stay what they are.
        return [
            *found,
            f"With a budget of {len(run.chosen) + ahead:,} rows it would be chosen, unless a rule is against it.",
        ]
    if (choice.would_add or 0) > 0:
        first = {1: "No other dropped row", 2: "1 other dropped row"}.get(ahead, f"{ahead - 1:,} other dropped rows")
        found.append(
            f"{first} would add more. With a budget of about {len(run.chosen) + ahead:,} rows it would be chosen; gains shrink "
            "as rows are chosen, so this is an estimate."
        )
    else:
        found.append(
            "The chosen rows serve every target at least as well, so a larger budget alone would not change that."
        )
    near = record.nearest_selected
    if near is not None and near.cosine > 0.9:
        found.append(
            f"The chosen row {near.id} is almost the same text (cosine {near.cosine:.3f}); without it this one might be."
        )
    return found


def _turns(run: FinishedRun, record: Explanation) -> list[str]:
    """Say where a row stands that no target came to: targets take rows in turn, whatever these add."""
    if not record.serves:
        return ["No target has a known utility for it, so that none takes it."]
    best = record.serves[0]
    values = run.block([best.target], run.rows.ids)[0][0]
    ahead = int(np.nansum(values > best.utility))
    taken = sum(values[at] > best.utility for at, item in enumerate(run.rows.ids) if run.choices[item].selected)
    return [
        f"Targets take their best rows in turn, whatever these add. The target that it serves best, {best.target}, has "
        f"{ahead:,} rows that serve it better, of which {taken:,} are chosen. A larger budget gives every target more turns; "
        "leaving rows out with --exclude makes its turn come sooner."
    ]


def _kept(run: FinishedRun, choice: Choice) -> list[str]:
    best_left = max(_left_to_add(run), default=0.0)
    found = [
        f"The best dropped row would add {best_left:.4g}; this one added {choice.gain or 0:.4g} when it was chosen."
    ]
    if run.pointwise or run.settings.objective in ("topk", "max"):
        return found
    targets = sampled_targets(run)
    served = cover(run, targets)
    mine = [at for at, name in enumerate(served.holder) if name == choice.id]
    loss = float(np.nansum(served.best[mine] - served.second[mine])) * len(run.target_ids) / len(targets)
    about = "" if len(targets) == len(run.target_ids) else f" (from {len(targets):,} sampled targets)"
    share = 100 * len(mine) / len(targets)
    found.append(
        f"Of all chosen rows it serves {share:.1f} % of the targets best; without it, others would serve these, and coverage "
        f"would fall by {loss:.4g}{about}."
    )
    return found
