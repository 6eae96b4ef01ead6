"""Labels of teachers that label pairs; a relative teacher's utility is the target's value alone less that of the pair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nncift.core.pairs import LabelledPairs
from nncift.labels.label_budget import LabelBudget
from nncift.labels.plan import BASE, NO_SOURCE, SPLITS, LabelPlan, describe
from nncift.labels.sampling import grow
from nncift.labels.store import Axes, LabelExecutor, LabelFormat, LabelStore
from nncift.teachers import Teacher
from nncift.teachers.abilities import chunk_passes

SHORTENED = "shortened"
PAIR_FORMAT = LabelFormat(1, figures=(SHORTENED,))


class PairLabelStore(LabelStore[LabelPlan]):
    """Labels of a teacher that labels pairs; without a teacher they can be read."""

    plan_type, kind, method, what = LabelPlan, "pair", "label", "labelling pairs"

    def __init__(self, folder: Path, teacher: Teacher | None = None) -> None:
        super().__init__(folder)
        self._teacher = teacher

    @property
    def relative(self) -> bool:
        """Whether targets without an example are labelled, too."""
        if self._teacher is None:
            return self.plan is not None and self.plan.relative
        return self._teacher.relative

    def grown(self, axes: Axes, budget: LabelBudget, seed: int) -> LabelPlan:
        """Return the grown plan."""
        ids = (axes.target_ids, axes.sources.ids)
        return grow(self.plan, *ids, budget, seed, shared=axes.shared, relative=self.relative)

    def _wanted_format(self, plan: LabelPlan, executor: LabelExecutor) -> LabelFormat:
        return PAIR_FORMAT

    def utilities(self) -> dict[str, LabelledPairs]:
        """Return the utilities by split, without `base`."""
        plan = self._plan
        entries = plan.entries
        self._check_whole()
        raw = self.values(np.arange(len(entries)))[:, 0]
        value = raw
        if self.relative:
            base = np.full(len(plan.target_ids), np.nan, np.float32)
            without = entries.split == BASE
            base[entries.target[without]] = raw[without]
            value = base[entries.target] - raw
        found = {}
        for code, name in enumerate(SPLITS):
            if code != BASE:
                mask = entries.split == code
                codes = entries.target[mask], entries.source[mask]
                found[name] = LabelledPairs(plan.target_ids, plan.source_ids, *codes, value[mask])
        return found

    def training(self) -> int:
        """Return the training pairs that are planned."""
        return 0 if self.plan is None else describe(self.plan)["train"]

    def counts(self) -> dict[str, int]:
        """Return the planned labels by split."""
        return describe(self._plan)

    def full_passes(self) -> int:
        """Return the passes of labelling every pair that fits, as far as the labelled pairs tell."""
        pairs, missing = self._of_pairs()
        without = len(self._plan.target_ids) if self.relative else 0
        without += 0 if self._teacher is None else chunk_passes(self._teacher) * len(self._plan.source_ids)
        return without + round(self._plan.full_passes(relative=False) * (1 - missing / max(pairs, 1)))

    def warnings(self) -> list[str]:
        """Return what did not fit."""
        (pairs, missing), shortened = self._of_pairs(), int(self.progress().figures[SHORTENED])
        found = []
        if missing:
            found.append(
                f"{missing} of {pairs} labelled pairs ({100 * missing / pairs:.1f} %) do not fit the model's context and stay "
                "without a value."
            )
        if shortened:
            blocks = self._blocks()
            found.append(
                f"{shortened} of {blocks} examples in front ({100 * shortened / blocks:.1f} %) were shortened at their prompt's "
                "start to half of the model's context."
            )
        return found

    def _of_pairs(self) -> tuple[int, int]:
        """Return how many pairs with an example in front are labelled, and how many of these have no value."""
        pairs = missing = 0
        for generation, entries in enumerate(self._plan.generations):
            values = self.stored(generation)[0]
            paired = values.filled & (entries.source != NO_SOURCE)
            pairs += int(paired.sum())
            missing += int(np.isnan(values.values[paired, 0]).sum())
        return pairs, missing

    def _blocks(self) -> int:
        """Return how many examples stood in front of targets in labelled chunks."""
        plan = self._plan
        filled = [self.stored(generation)[0].filled for generation in range(len(plan.generations))]
        pairs = zip(plan.generations, filled, strict=True)
        return sum(len(np.unique(entries.chunk[done & (entries.source != NO_SOURCE)])) for entries, done in pairs)


def combine(parts: Mapping[str, LabelledPairs], names: tuple[str, ...] | None = None) -> LabelledPairs:
    """Join the pairs of several splits (all by default) that share their axes."""
    chosen = [parts[name] for name in (names or tuple(parts))]
    target, source = (np.concatenate([vars(one)[axis] for one in chosen]) for axis in ("target", "source"))
    value = np.concatenate([one.value for one in chosen])
    return LabelledPairs(chosen[0].target_ids, chosen[0].source_ids, target, source, value)
