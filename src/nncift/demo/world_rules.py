"""Invented skills: rules that nobody can guess from a skill's name, and that an example of the skill gives away.

Four families. `translate`, `code` and `group` look every word up in the skill's own dictionary; `custom` repeats the
words between two words of courtesy. The answer always starts with the skill's opening word, so any example of a skill
reveals something, and an example that shares words with a target reveals more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nncift.demo.words import CONTENT, FAMILIES, FOREIGN, GROUPS, NUMBERS, OPENINGS, STUBS, WORDINGS

CORRUPTIONS = ("stub", "swapped", "garbled", "shuffled")
DICTIONARY = 8
_GROUPS_PER_SKILL = 4
_VALUES: Mapping[str, tuple[str, ...]] = {"translate": FOREIGN, "code": NUMBERS, "group": GROUPS, "custom": OPENINGS}


@dataclass(frozen=True)
class Skill:
    """One invented skill.

    table: what each word of the skill's dictionary becomes (for `custom`: the words themselves). opening and closing:
    the words of courtesy; closing is used by `custom` alone.
    """

    name: str
    family: str
    opening: str
    closing: str
    table: Mapping[str, str]

    @property
    def label(self) -> str:
        """Family and name, such as `code Plover`."""
        return f"{self.family} {self.name}"

    def answer(self, words: Sequence[str]) -> str:
        """Return the right response for these words; raises KeyError for a word outside the dictionary."""
        return self._say(words, self._secrets(words))

    def prompt(self, words: Sequence[str], wording: int) -> tuple[str, str]:
        """Return instruction and input of a row in one of the family's wordings (taken modulo their number)."""
        text, apart = WORDINGS[self.family][wording % len(WORDINGS[self.family])]
        instruction = text.replace("{name}", self.name)
        joined = " ".join(words)
        return (instruction, joined) if apart else (f"{instruction} {joined}", "")

    def corrupt(self, words: Sequence[str], kind: str, other: Skill, rng: np.random.Generator) -> tuple[str, str]:
        """Return a wrong response and the kind that it really is.

        stub: an excuse. swapped: the whole response of a row of the skill `other`. garbled: random words in the places
        that the rule decides. shuffled: the right words of the rule in wrong places, behind a wrong opening; becomes
        garbled where all those words are the same.
        """
        if kind == "stub":
            return STUBS[int(rng.integers(len(STUBS)))], kind
        if kind == "swapped":
            return other.answer(draw_words(other, len(words), rng)), kind
        secrets = self._secrets(words)
        if kind == "shuffled":
            values = secrets if self.family == "custom" else secrets[1:]
            turned = values[1:] + values[:1]
            if turned != values:
                opening = [] if self.family == "custom" else [_other(self.opening, OPENINGS, rng)]
                return self._say(words, opening + turned), kind
        pools = [OPENINGS, *[_VALUES[self.family]] * (len(secrets) - 1)]
        wrong = [_other(right, pool, rng) for right, pool in zip(secrets, pools, strict=True)]
        return self._say(words, wrong), "garbled"

    def _secrets(self, words: Sequence[str]) -> list[str]:
        if self.family == "custom":
            return [self.opening, self.closing]
        return [self.opening, *(self.table[word] for word in words)]

    def _say(self, words: Sequence[str], secrets: Sequence[str]) -> str:
        if self.family == "custom":
            return " ".join([secrets[0], *words, secrets[1]])
        pairs = (part for pair in zip(words, secrets[1:], strict=True) for part in pair)
        return " ".join([secrets[0], *pairs])


def draw_skill(name: str, family: str, rng: np.random.Generator, dictionary: int = DICTIONARY) -> Skill:
    """Draw the rule of a skill: its dictionary of so many words, what they become, and its words of courtesy."""
    words = [CONTENT[i] for i in rng.permutation(len(CONTENT))[:dictionary]]
    opening, closing = (OPENINGS[i] for i in rng.permutation(len(OPENINGS))[:2])
    if family == "custom":
        return Skill(name, family, opening, closing, {word: word for word in words})
    pool = _VALUES[family]
    if family == "group":
        chosen = [pool[i] for i in rng.permutation(len(pool))[:_GROUPS_PER_SKILL]]
        values = [chosen[i % len(chosen)] for i in rng.permutation(dictionary)]
    else:
        values = [pool[i] for i in rng.permutation(len(pool))[:dictionary]]
    return Skill(name, family, opening, "", dict(zip(words, values, strict=True)))


def draw_words(skill: Skill, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw so many different words from a skill's dictionary (all of them where it has fewer)."""
    words = tuple(skill.table)
    return tuple(words[i] for i in rng.permutation(len(words))[:count])


def family_of(index: int) -> str:
    """Return the family of the skill with this number: the families take turns."""
    return FAMILIES[index % len(FAMILIES)]


def _other(right: str, pool: Sequence[str], rng: np.random.Generator) -> str:
    drawn = pool[int(rng.integers(len(pool)))]
    return drawn if drawn != right else pool[(pool.index(right) + 1) % len(pool)]
