"""The gate: the student against free similarity on held-out items, and which of them a run goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from nncift.evaluate.heldout import HeldOutSkill, held_out_skill
from nncift.evaluate.verdicts import NAMES
from nncift.pairs import LabelledPairs

STUDENT = "student"


@dataclass(frozen=True)
class Gate:
    """used: what selection and scores rest on. skills: of all candidates on held-out items, empty where none can be had.

    enforced: False where the user wants the student whatever comes out.
    """

    used: str
    skills: Mapping[str, HeldOutSkill]
    enforced: bool

    def to_json(self) -> dict[str, Any]:
        """Return what was used, and skill with its standard error by candidate."""
        return {
            "used": self.used,
            "skill": {name: {"skill": of.skill, "error": of.error} for name, of in self.skills.items()},
        }

    def warnings(self) -> list[str]:
        """Return what has to be said in plain words."""
        if not self.skills:
            return []
        best = _best(self.skills)
        if best == STUDENT:
            return []
        gained, error = self.skills[best].against(self.skills[STUDENT])
        told = (
            f"held-out selection skill {self.skills[best].skill:.2f} against {self.skills[STUDENT].skill:.2f} "
            f"(difference {gained:+.2f}, standard error {error:.2f})"
        )
        if self.used != STUDENT:
            return [f"Selection uses {NAMES.get(best, best)}, which is free, instead of the student: {told}."]
        how = "the gate is off" if not self.enforced and gained > error else "within its error"
        return [
            f"{NAMES.get(best, best).capitalize()}, which is free, selects no worse than the student: {told}, {how}."
        ]


def choose(
    blocks: Sequence[LabelledPairs],
    predictions: Mapping[str, Sequence[npt.ArrayLike]],
    seed: int,
    *,
    enforced: bool = True,
) -> Gate:
    """Return the student unless a free candidate selects better on held-out items by more than one standard error.

    blocks: labelled pairs of held-out items. predictions: by candidate, for every block.
    """
    skills = held_out_skill(blocks, predictions, seed)
    used = STUDENT
    if skills and enforced:
        best = _best(skills)
        gained, error = skills[best].against(skills[STUDENT])
        used = best if best != STUDENT and gained > error else STUDENT
    return Gate(used, skills, enforced)


def advice(gate: Mapping[str, Any], rows: int) -> str | None:
    """Return what a run whose student read text alone could try where something free selects no worse; None where nothing does.

    gate: `Gate.to_json`. rows: on both axes, each of which the probe asks about once.
    """
    skill = {name: of["skill"] for name, of in gate["skill"].items()}
    own = skill.pop(STUDENT, None)
    if own is None or max(skill.values(), default=own - 1) < own:
        return None
    return (
        f"--features probe lets the student also read what one pass of the teacher's model finds of each row ({rows:,} passes); "
        "on generated data that raised the skill of DELIFT's and LESS's students at every budget (docs/results/study.md)."
    )


def _best(skills: Mapping[str, HeldOutSkill]) -> str:
    """Return the candidate with the highest skill, the student first among equals."""
    return max(skills, key=lambda name: (skills[name].skill, name == STUDENT))
