"""How many labels a run may have: what is asked for, cut to a share of training (`--cost`) or to a time (`--time`).

The cap counts all passes of the teacher's model: labels with held-out pairs and a warm-up, the probe, and embeddings where they
are hidden states of the same model. By default it is the larger of a tenth of training on all rows and 3,000 forward passes, and
no more labels than a student can use; a teacher that reads every row once, asked for all of them, may. Where a student would save
nothing, a teacher that labels rows labels them all. What comes out follows from settings, sizes and, for a time, from passes
that were timed once; the run keeps it, and reads it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nncift.config import RunSettings, SpendSettings, TeacherSettings
from nncift.core.amounts import LEAST
from nncift.core.fingerprints import fingerprint
from nncift.core.result_types import Record
from nncift.data import Examples
from nncift.errors import DataError, InfeasibleError
from nncift.labels import LabelBudget
from nncift.labels.sizes import measured_rows, pair_chunks, pair_passes, sets_apart
from nncift.labels.store import Axes
from nncift.models.probe import passes_of, share_of
from nncift.stages.check import prepare_all
from nncift.stages.context import RunContext
from nncift.stages.request import DEFAULT_SHARE, LEAST_PASSES
from nncift.stages.timing import Rates
from nncift.storage.atomic import write_sealed
from nncift.storage.ledger import ModelCost, training_cost
from nncift.teachers import RowTeacher, Teacher
from nncift.teachers.abilities import FORWARD, WarmsUp, chunk_passes, pass_weight, row_passes, warm_up_cost

FILE = "labels/allowance.json"

MOST_PAIRS, MOST_ROWS = 50_000, 2_000
"""Labels that a student learns from by default at most: pairs (or scores), and rows where they give all pairs among them.

The largest student has about 2,700 weights, so that is some 20 labels for each, and 2,000 rows give 4 million pairs.
"""

FEWEST_PAIRS, FEWEST_ROWS = 100, 16
"""Labels to learn from below which no cap goes: pairs (or scores), and rows where they give all pairs among them."""

WHOLE_PAIRS = MOST_ROWS**2
"""Pairs among all rows up to which all rows are measured where a student saves nothing: their table is held whole."""

MOST_WHOLE = 1 << 26
"""The same where no student is wanted, since every row is read once: some 5 GB while their table is made."""


@dataclass(frozen=True)
class Allowance(Record):
    """What a run may label.

    rounds: how much every round labels. features: what the student reads. whole: all rows are measured, since a student saves
    nothing. notes: what was cut or added, and how to change it. key, asked: hashes of all that it follows from, and of what was
    asked for.
    """

    rounds: tuple[LabelBudget, ...]
    features: str
    whole: bool = False
    notes: tuple[str, ...] = ()
    key: str = ""
    asked: str = ""


@dataclass(frozen=True)
class Passes:
    """Passes of the teacher's model by plan size.

    relative: targets are labelled without an example too. weight: forward passes that a pass costs. each: passes of a row. once:
    passes before the first row. others: forward passes of the probe and of embeddings that are hidden states. a_chunk: passes of
    a chunk of pairs beside one for each of them.
    """

    settings: RunSettings
    axes: Axes
    by_row: bool
    relative: bool
    weight: int
    each: int
    once: int
    others: int
    a_chunk: int = 0

    @classmethod
    def of(cls, settings: RunSettings, axes: Axes, teacher: Teacher | RowTeacher, existing: int = 0) -> Passes:
        """Return the passes for a teacher that knows the rows. existing: rows that were trained on already."""
        by_row = isinstance(teacher, RowTeacher)
        share = share_of(settings) if settings.features == "probe" else 0.0
        others = sum(passes_of(share, rows) + rows * (settings.encoder == "lm") for rows in (len(axes.rows), existing))
        return cls(
            settings,
            axes,
            by_row,
            not isinstance(teacher, RowTeacher) and teacher.relative,
            pass_weight(teacher),
            row_passes(teacher) if isinstance(teacher, RowTeacher) else 1,
            warm_up_cost(teacher).passes,
            others,
            chunk_passes(teacher),
        )

    @property
    def full(self) -> int:
        """Passes of the full teacher."""
        axes = self.axes
        if self.by_row:
            return self.each * len(axes.rows) + self.once
        pairs = len(axes.target_ids) * len(axes.sources) - (len(axes.sources) if axes.shared else 0)
        return pairs + (len(axes.target_ids) if self.relative else 0) + self.a_chunk * len(axes.sources)

    @property
    def once_a_row(self) -> bool:
        """Whether the full teacher takes one forward pass of every row, for which all rows are asked."""
        return self.full == len(self.axes.rows) and self.weight == FORWARD and LabelBudget.of(self.settings).share == 1

    @property
    def unit(self) -> str:
        """What labels are counted in."""
        return "rows" if self.by_row else "pairs"

    @property
    def training(self) -> int:
        """Forward passes that training on the pool costs."""
        return training_cost(len(self.axes.sources))

    def budget(self, size: int) -> LabelBudget:
        """Return the budget of so many labels to learn from."""
        return LabelBudget.of(self.settings).sized(size, len(self.axes.sources))

    @property
    def can_be_whole(self) -> bool:
        """Whether everything can be measured, and its table held: not where pairs of items that are set apart stay unknown."""
        axes = self.axes
        if axes.pointwise:
            return True
        every = self.by_row or not sets_apart(len(axes.target_ids), shared=axes.shared)
        most = MOST_WHOLE if self.once_a_row and not axes.shared else WHOLE_PAIRS
        return every and len(axes.target_ids) * len(axes.sources) <= most

    def size(self, budget: LabelBudget) -> int:
        """Return the labels to learn from that a budget stands for."""
        return budget.size(len(self.axes.target_ids), len(self.axes.sources))

    def labels(self, size: int) -> int:
        """Return the passes of a fresh plan with so many labels to learn from, `once` left out."""
        axes, asked = self.axes, self.budget(size)
        if self.by_row:
            return self.each * measured_rows(
                asked, None if axes.targets is None else len(axes.targets), len(axes.sources)
            )
        sizes = len(axes.target_ids), len(axes.sources)
        chunks = self.a_chunk * pair_chunks(asked, *sizes, shared=axes.shared) if self.a_chunk else 0
        return pair_passes(asked, *sizes, shared=axes.shared, relative=self.relative) + chunks

    def cost(self, size: int) -> ModelCost:
        """Return what a fresh plan costs, all else included."""
        return ModelCost(self.labels(size) + self.once, self.weight, self.others, self.full, len(self.axes.sources))

    def seconds(self, size: int, rates: Rates) -> float:
        """Return the seconds of a fresh plan, all else included."""
        axes = self.axes
        if self.by_row:
            return rates.fixed + rates.each * (self.labels(size) + self.once)
        chunks = pair_chunks(self.budget(size), len(axes.target_ids), len(axes.sources), shared=axes.shared)
        return rates.fixed + rates.begun * chunks + rates.each * self.labels(size)


@dataclass(frozen=True)
class Cap:
    """A bound on what a plan takes. spent: of a plan by its size. said: the cap in words. lift: how to allow more.

    use: the cap is what a student can use, and none where no student is needed.
    """

    spent: Callable[[int], float]
    most: float
    said: str
    lift: str
    asked: bool = True
    use: bool = False

    def largest(self, size: int) -> int:
        """Return the largest plan up to a size that stays within; 0 where there is none."""
        none = min(LEAST, size) - 1
        low, high = none, size
        while low < high:
            middle = (low + high + 1) // 2
            if self.spent(middle) <= self.most:
                low = middle
            else:
                high = middle - 1
        return 0 if low == none else low


def caps_of(settings: RunSettings, passes: Passes, rates: Callable[[], Rates]) -> list[Cap]:
    """Return the caps that hold: those that were given, else the default."""
    found = []
    if settings.cost is not None:
        most = settings.cost.share * passes.training
        found.append(
            Cap(lambda size: passes.cost(size).cost, most, f"--cost {settings.cost}", "a higher --cost lifts that")
        )
    if settings.time is not None:
        timed = rates()
        found.append(
            Cap(
                lambda size: passes.seconds(size, timed),
                settings.time.seconds,
                f"--time {settings.time}",
                "a longer --time lifts that",
            )
        )
    if found:
        return found
    most, share = max(DEFAULT_SHARE * passes.training, float(LEAST_PASSES)), f"{100 * DEFAULT_SHARE:g} %"
    if passes.once_a_row:
        # A ninth of training is hardly more, and spares the student.
        most = max(most, float(passes.full))
    said = (
        f"the default cap of {share} of training on all rows"
        if most > LEAST_PASSES
        else (f"the default cap of {LEAST_PASSES:,} forward passes")
    )
    lift = "--cost 100% (of training on all rows) or more lifts that"
    enough = MOST_ROWS if passes.by_row and not passes.axes.pointwise else MOST_PAIRS
    return [
        Cap(lambda size: passes.cost(size).cost, most, said, lift, asked=False),
        Cap(float, enough, "the default cap of what a student can use", lift, asked=False, use=True),
    ]


def allow(
    settings: RunSettings, rounds: Sequence[LabelBudget], passes: Passes, rates: Callable[[], Rates], have: int = 0
) -> Allowance:
    """Return what a run may label.

    rounds: as asked for. rates: times passes, where a time is given. have: labels to learn from that the run has of an earlier
    session that asked for the same. Raises InfeasibleError where a cap that was given allows no plan.
    """
    asked, caps = [passes.size(each) for each in rounds], caps_of(settings, passes, rates)
    if passes.once_a_row and passes.can_be_whole:
        caps = [cap for cap in caps if not cap.use]
    size, notes = _cut(asked[-1], passes, caps, have)
    spent = passes.cost(min(size, asked[0]))
    if spent.saves_nothing:
        if passes.can_be_whole:
            return _whole(settings, spent, passes)
        notes = [*notes, _nothing_saved(spent, passes)]
    kept = [each for each, one in zip(rounds, asked, strict=True) if one < size]
    last = next((each for each, one in zip(rounds, asked, strict=True) if one == size), passes.budget(size))
    return Allowance((*kept, last), settings.features or "text", notes=tuple(notes))


def _cut(asked: int, passes: Passes, caps: Sequence[Cap], have: int) -> tuple[int, list[str]]:
    """Return the largest plan that all caps allow, and what was cut."""
    fewest = min(asked, FEWEST_ROWS if passes.by_row and not passes.axes.pointwise else FEWEST_PAIRS)
    size, by = asked, None
    for cap in caps:
        allowed = cap.largest(asked)
        if allowed < size:
            size, by = allowed, cap
    if by is None:
        return max(size, have), []
    if size >= max(fewest, have):
        return size, [f"{_said(by)} allows {size:,} of the {asked:,} {passes.unit} asked for; {by.lift}."]
    if have >= fewest:
        return have, [
            f"{_said(by)} allows {size:,} of the {asked:,} {passes.unit} asked for; the {have:,} that the run has are kept."
        ]
    spent = passes.cost(fewest)
    rest = f", {passes.others:,} of them for the probe or embeddings" if passes.others else ""
    need = (
        f"the smallest plan, of {fewest} {passes.unit}, costs {spent.cost:,} forward passes{rest}: "
        f"{100 * spent.share_of_training:.1f} % of training on all rows"
    )
    if by.asked:
        instead = ", or --features text" if passes.settings.features == "probe" else ", or a teacher of fewer passes"
        raise InfeasibleError(f"{by.said} allows no plan of labels: {need}. Give more{instead}")
    return fewest, [f"{need[0].upper()}{need[1:]}, which is more than {by.said}; it is made all the same."]


def _said(cap: Cap) -> str:
    return f"{cap.said[0].upper()}{cap.said[1:]}"


def _nothing_saved(spent: ModelCost, passes: Passes) -> str:
    then = (
        "The table of all pairs would be too large to take its values"
        if passes.by_row
        else "--labels 100% labels all pairs"
    )
    return (
        f"A student saves nothing here: the run costs {spent.cost:,} forward passes, and the full teacher {spent.full_cost:,}. "
        f"{then}."
    )


def _whole(settings: RunSettings, spent: ModelCost, passes: Passes) -> Allowance:
    """Return that all rows are measured, or all pairs labelled, without a probe, which only a student reads."""
    every = "all rows are measured" if passes.by_row else "all pairs are labelled"
    probe = ", and no probe is made" if settings.features == "probe" else ""
    costs = (
        f"the plan asked for would cost {spent.cost:,} forward passes, and the full teacher {spent.full_cost:,}"
        if spent.full_cost
        else "this teacher takes no pass of a language model"
    )
    why = f"A student saves nothing here: {costs}. So {every}{probe}"
    if passes.once_a_row:
        all_passes = f"{spent.full_cost:,} forward passes in all"
        why = f"The teacher reads every row once, {all_passes}, and no student need predict it{probe}"
    said = f"{why}: the values are the teacher's own, and the student is only needed for new rows."
    asked = LabelBudget.of(settings)
    budget = replace(asked, share=1.0, count=None, kind="rows" if passes.by_row else "scatter")
    return Allowance((budget,), "text", whole=True, notes=(said,))


def settle(
    context: RunContext,
    rounds: Sequence[LabelBudget],
    axes: Axes,
    existing: Examples | None,
    rates: Callable[[], Rates],
    notes: Sequence[str] = (),
) -> Allowance:
    """Return what a run may label, read back where an earlier session settled the same; `keep` puts it into the run.

    notes: on what the student reads; an earlier session's stand where it settled the same.

    Labels that exist are never given up: where the same is asked for as before, and less is allowed now, they stay.
    """
    settings = context.settings
    asked = [str(settings.labels), str(settings.max_labels), settings.plan]
    others = 0 if existing is None else len({row.content_hash for row in existing})
    key = fingerprint(
        asked,
        len(axes.target_ids),
        len(axes.sources),
        axes.shared,
        others,
        settings.part(SpendSettings),
        settings.features,
        str(settings.probe_share),
        settings.encoder,
        settings.part(TeacherSettings),
        settings.test_items,
        settings.validation_items,
        settings.min_spearman,
        settings.min_skill,
        settings.seed,
    )
    before = _read(context)
    if before is not None and before.key == key:
        return before
    if isinstance(context.teacher, WarmsUp) and not context.prepared:
        prepare_all(context.teacher, axes.sources, axes.targets, context.progress)
        context.prepared = True
    passes = Passes.of(settings, axes, context.teacher, others)
    have = context.labels().training()
    if before is not None and before.asked != fingerprint(asked):
        # Fewer labels than there are were asked for, and are refused where they are planned.
        have = min(have, passes.size(rounds[-1]))
    found = replace(allow(settings, rounds, passes, rates, have), key=key, asked=fingerprint(asked))
    if not found.whole:
        found = replace(found, notes=(*notes, *found.notes))
    # A probe that is there is paid for already.
    return (
        replace(found, features=settings.features or "text") if context.directory.file("probe.json").exists() else found
    )


def keep(context: RunContext, allowance: Allowance) -> None:
    """Put an allowance into the run."""
    if _read(context) != allowance:
        write_sealed(context.directory.file(FILE), allowance.to_json())


def _read(context: RunContext) -> Allowance | None:
    """Return what the run has settled, None where it has settled nothing that can be read: then it is settled again."""
    try:
        record = context.directory.read_json(FILE, sealed=True)
        return None if record is None else Allowance.of_json(record, FILE)
    except DataError:
        return None
