"""Turns that are not learned from: the marks that chat data puts on them.

`weight: 0` is OpenAI's, `train` and `training` are axolotl's, `loss: false` others'; `train_detail` marks parts of a turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nncift.data.records import kind_of

_MARKS = ("weight", "train", "training", "loss")
_DETAILS = ("train_detail", "training_detail")


class Mask(NamedTuple):
    """What marks say of a turn. learned: None where no mark says anything. weight: where it is neither 0 nor 1.

    detail: parts of the turn that are or are not learned from, None where none is masked.
    """

    learned: bool | None = None
    weight: float | None = None
    detail: list[Any] | None = None


_ALL = frozenset((*_MARKS, *_DETAILS))
_WORDS: Mapping[str, float] = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0}

NO_MASK = Mask()
_MASKED, _LEARNED = Mask(False), Mask(True)


def mask_of(turn: Mapping[str, Any]) -> Mask:
    """Return what the marks of a turn say: one that masks it counts before others.

    Raises ValueError for marks that cannot be read.
    """
    if not _ALL & turn.keys():
        return NO_MASK
    found = NO_MASK
    for name in _MARKS:
        value = _number(turn.get(name), name)
        if value is None:
            continue
        if value <= 0:
            return _MASKED
        found = _LEARNED if value == 1 else Mask(True, value)
    parts = next((turn[name] for name in _DETAILS if turn.get(name)), None)
    return found if parts is None else _by_parts(parts, found)


def _number(value: Any, name: str) -> float | None:
    """Return a mark as a number; None where it is none: a loss that was measured says nothing about training."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, bool) or value in (0, 1) or (name == "weight" and isinstance(value, (int, float))):
        return float(value)
    if name == "weight" and value is not None:
        raise ValueError(f"'weight' is {kind_of(value)}, expected a number")
    return None


def _by_parts(parts: Any, found: Mask) -> Mask:
    if not isinstance(parts, list) or not all(isinstance(part, dict) and "train" in part for part in parts):
        raise ValueError("'train_detail' is expected to be a list of begin_offset, end_offset and train")
    if not any(part["train"] for part in parts):
        return _MASKED
    if all(part["train"] for part in parts):
        return found
    return Mask(True, found.weight, parts)
