"""The language model behind a teacher, where it has one: what a probe, an encoder of hidden states and counts of tokens read."""

from __future__ import annotations

from nncift.errors import UsageError
from nncift.models.causal_lm import CausalLM
from nncift.teachers import RowTeacher, Teacher


def language_model(teacher: Teacher | RowTeacher, option: str = "--encoder lm") -> CausalLM:
    """Return the teacher's language model. Raises UsageError, naming the wish, where it has none."""
    lm = getattr(teacher, "lm", None) or getattr(getattr(teacher, "reader", None), "lm", None)
    if not isinstance(lm, CausalLM):
        raise no_language_model(teacher, option)
    return lm


def has_language_model(teacher: Teacher | RowTeacher) -> bool:
    """Tell whether `language_model` would look for one; nothing is loaded."""
    return not {"lm", "reader"}.isdisjoint(dir(teacher))


def no_language_model(teacher: Teacher | RowTeacher, option: str) -> UsageError:
    """Return what is raised where a wish needs a language model and the teacher has none."""
    return UsageError(f"{option} needs a teacher with a language model; {teacher.name} has none")
