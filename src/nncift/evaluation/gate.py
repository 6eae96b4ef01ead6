"""The gate: candidates for selection on labels that none of them has seen, and which of them a run goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nncift.core.result_types import Record
from nncift.evaluation.selection_skill import Block, Extent, SelectionSkill, selection_skill
from nncift.evaluation.verdicts import NAMES
from nncift.student.candidates import OTHER, STUDENT, is_free, is_student

CLEARLY = 1.5
"""Standard errors by which what is free must select better: on fewer, the choice is wrong about as often as right."""

OTHER_CLEARLY = 1.0
"""The same for the student that is fitted beside the run's own: it has learned from the same labels, and may as well be right.

Chosen on 72 runs under EK-FAC and GIST of SmolLM2 and of the demo world, gradients of a toy, and DELIFT of the demo world: with
0.5 the gain is larger and more runs lose by it. What it gives is in docs/results/fidelity.md (`benchmarks/real.py rivals`).
"""


@dataclass(frozen=True)
class SkillRecord(Record):
    """Selection skill with its standard error and 90 % interval."""

    skill: float
    error: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class GateRecord(Record):
    """What a gate leaves: what was used, and the skill of every candidate; see `Gate`."""

    used: str
    objective: str
    share: float
    items: int
    pairs: int
    skill: Mapping[str, SkillRecord]

    @property
    def headline(self) -> SkillRecord | None:
        """The skill of what selects; None where it could not be measured."""
        return self.skill.get(self.used)


@dataclass(frozen=True)
class Gate:
    """used: what selection and scores rest on. skills: of all candidates on held-out labels, empty where none can be had.

    enforced: False where the user wants the student whatever comes out. objective, share: what was selected by, and how much of
    the rows. items, pairs: labelled rows and pairs that the skills rest on.
    """

    used: str
    skills: Mapping[str, SelectionSkill]
    enforced: bool
    objective: str
    share: float
    items: int = 0
    pairs: int = 0

    @property
    def headline(self) -> SelectionSkill | None:
        """The skill of what selects; None where it could not be measured."""
        return self.skills.get(self.used)

    def record(self) -> GateRecord:
        """Return what was used, and skill with its standard error and 90 % interval by candidate."""
        skill = {name: SkillRecord(of.skill, of.error, of.interval) for name, of in self.skills.items()}
        return GateRecord(self.used, self.objective, self.share, self.items, self.pairs, skill)

    def warnings(self) -> list[str]:
        """Return what has to be said in plain words."""
        if not self.skills:
            return [
                f"Selection skill is not measured: {self.items} labelled rows and {self.pairs} pairs are held out, too few to "
                "repeat the selection on; give more --labels, or a larger pool."
            ]
        chosen = not is_student(self.used)
        best = self.used if chosen else _best({name: of for name, of in self.skills.items() if name != OTHER})
        if is_student(best):
            return []
        gained, error = self.skills[best].against(self.skills[STUDENT])
        compared = (
            f"selection skill on held-out labels {self.skills[best].skill:.2f} against {self.skills[STUDENT].skill:.2f} "
            f"(difference {gained:+.2f}, standard error {error:.2f})"
        )
        if chosen:
            what = "which is free" if is_free(best) else "which learns from the same labels"
            return [f"Selection uses {NAMES.get(best, best)}, {what}, instead of the student: {compared}."]
        how = "the gate is off" if not self.enforced and gained > CLEARLY * error else "within its error"
        return [
            f"{NAMES.get(best, best).capitalize()}, which is free, selects no worse than the student: {compared}, {how}."
        ]


def choose(
    blocks: Sequence[Block],
    names: Sequence[str],
    *,
    objective: str,
    share: float,
    seed: int,
    enforced: bool = True,
) -> Gate:
    """Return the student unless another candidate selects clearly better on held-out labels: see CLEARLY and OTHER_CLEARLY.

    blocks: held-out items with predictions of all candidates. names: of the candidates, the student among them. share: of the
    rows that the run selects. enforced: False keeps the student itself whatever else is better.
    """
    skills = selection_skill(blocks, names, objective=objective, share=share, seed=seed)
    used = STUDENT
    if skills:
        allowed = {name: of for name, of in skills.items() if enforced or is_student(name)}
        used = _best({name: of for name, of in allowed.items() if name == STUDENT or _clearly(name, skills)})
    extent = Extent.of(blocks)
    return Gate(used, skills, enforced, objective, share, extent.sources, extent.pairs)


def advice(gate: GateRecord, rows: int) -> str | None:
    """Return what a run whose student read text alone could try where something free selects no worse; None where nothing does.

    rows: on both axes, each of which the probe asks about once.
    """
    skill = {name: of.skill for name, of in gate.skill.items()}
    own = skill.pop(STUDENT, None)
    free = {name: value for name, value in skill.items() if is_free(name)}
    if own is None or max(free.values(), default=own - 1) < own:
        return None
    return (
        f"--features probe lets the student also read what one pass of the teacher's model finds of each row ({rows:,} passes); "
        "it raised the skill of students at every budget (docs/results/fidelity.md)."
    )


def _clearly(name: str, skills: Mapping[str, SelectionSkill]) -> bool:
    gained, error = skills[name].against(skills[STUDENT])
    return gained > (OTHER_CLEARLY if name == OTHER else CLEARLY) * error


def _best(skills: Mapping[str, SelectionSkill]) -> str:
    """Return the candidate with the highest skill, the student first among equals."""
    return max(skills, key=lambda name: (skills[name].skill, name == STUDENT))
