"""Selected examples in front of a test prompt instead of training on them: the nearest ones, as many as the context holds."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nncift.core.arrays import Floats
from nncift.data.examples import Example, Examples
from nncift.errors import DataError, UsageError
from nncift.generation.prompts import reason
from nncift.models.causal_lm import CausalLM
from nncift.models.prompt_format import PromptFormat

BLOCK = 256
"""Test prompts whose similarities are held at once."""


@dataclass(frozen=True)
class InFront(Mapping[str, tuple[Example, ...]]):
    """By test id, the examples to show in front of it, the nearest last; what `generate` and `response_losses` take.

    shown: examples in front, over all tests. shortened: those of them whose prompt lost its start. left_out: nearest examples
    that did not fit. joined: how many of those shown are no part of one conversation with what follows, but joined plainly
    (`Block.joined`), joined_tests: how many tests are, behind their examples. same: chosen examples that are a test item
    themselves, which would give its answer away, and are never shown to it. failures: by id, why a test item has none.
    """

    examples: Mapping[str, tuple[Example, ...]]
    shown: int
    shortened: int
    left_out: int
    same: int
    joined: int = 0
    joined_tests: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, test_id: str) -> tuple[Example, ...]:
        return self.examples[test_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)


def examples_in_front(
    chosen: Examples,
    tests: Examples,
    vectors_of: Callable[[Sequence[str]], Floats],
    k: int,
    lm: CausalLM,
    wording: PromptFormat,
    *,
    max_new_tokens: int = 150,
) -> InFront:
    """Return the k chosen examples nearest to every test item by the cosine of their prompts, as far as they fit.

    vectors_of: texts to unit vectors `(n, dim)`. Prompts are compared with prompts: a test's response is what is asked for.
    The context is shared out from the nearest on: an example may take an equal share of what is left, and is cut to it from
    its prompt's start (`PromptFormat.block`); its response is never cut, and where that does not fit it is left out. The test
    item is never cut, and room is kept for its response and for `max_new_tokens`, of these at most half of the context.
    Raises UsageError for k below 1.
    """
    if k < 1:
        raise UsageError(f"k is at least 1, the number of examples in front, not {k}")
    failures: dict[str, str] = {}
    found: dict[str, tuple[Example, ...]] = {}
    counts: Counter[str] = Counter(shown=0, shortened=0, left_out=0, same=0, joined=0, joined_tests=0)
    for test, nearest, same in _nearest(chosen, tests, vectors_of, k):
        try:
            room, joined = _room(test, lm, wording, max_new_tokens)
        except DataError as error:
            failures[test.id], found[test.id] = reason(error), ()
            continue
        shown = _fitted(nearest, room, wording)
        found[test.id] = shown.examples
        counts.update(
            shown=len(shown.examples),
            shortened=shown.shortened,
            left_out=len(nearest) - len(shown.examples),
            same=same,
            joined=shown.joined,
            joined_tests=int(joined and bool(shown.examples)),
        )
    return InFront(found, **counts, failures=failures)


def _nearest(
    chosen: Examples, tests: Examples, vectors_of: Callable[[Sequence[str]], Floats], k: int
) -> Iterator[tuple[Example, list[Example], int]]:
    """Yield every test with its k nearest examples, nearest first, ties by id, and how many examples are the test itself."""
    candidates = sorted(chosen, key=lambda example: example.id)
    if not candidates:
        yield from ((test, [], 0) for test in tests)
        return
    vectors = vectors_of([example.prompt for example in candidates])
    hashes = np.array([example.content_hash for example in candidates])
    for start in range(0, len(tests), BLOCK):
        block = tests[start : start + BLOCK]
        for test, cosines in zip(block, vectors_of([test.prompt for test in block]) @ vectors.T, strict=True):
            itself = hashes == test.content_hash
            order = np.argsort(np.where(itself, np.inf, -cosines), kind="stable")[: min(k, int((~itself).sum()))]
            yield test, [candidates[index] for index in order], int(itself.sum())


@dataclass(frozen=True)
class _Shown:
    """Examples that fit in front of a test, the nearest last, how many tokens they take, and how many were cut or joined."""

    examples: tuple[Example, ...]
    tokens: int
    shortened: int
    joined: int


def _room(test: Example, lm: CausalLM, wording: PromptFormat, max_new_tokens: int) -> tuple[int, bool]:
    """Return the tokens that are left for examples in front of a test, and whether it is joined plainly to them."""
    tokens = wording.tokens(test, behind=True)
    behind = max(len(tokens.response), min(max_new_tokens, lm.context // 2))
    return lm.context - len(wording.bos) - len(tokens.prompt) - behind, tokens.joined is not None


def _fitted(nearest: Sequence[Example], room: int, wording: PromptFormat) -> _Shown:
    """Return those of the examples, given nearest first, that fit into so many tokens, cut where needed."""
    allowed = room
    while True:
        shown = _tried(nearest, allowed, wording)
        if shown.tokens <= room or not shown.examples:
            return shown
        # The farthest example begins the conversation, which may take more tokens there than behind others.
        allowed -= shown.tokens - room


def _tried(nearest: Sequence[Example], room: int, wording: PromptFormat) -> _Shown:
    """Fit examples into `room` tokens, all but a lone one measured as they read behind others."""
    kept: list[Example] = []
    shortened = 0
    for rank, example in enumerate(nearest):
        first = len(nearest) == 1
        try:
            cut = wording.shortened(example, room // (len(nearest) - rank), first=first)
            size = len(wording.block(cut, sys.maxsize, first=first).ids)
        except DataError:
            continue
        if size > room:
            continue
        room -= size
        kept.append(cut)
        shortened += cut is not example
    kept.reverse()
    blocks = [wording.block(one, sys.maxsize, first=not place) for place, one in enumerate(kept)]
    joined = sum(block.joined is not None for block in blocks)
    return _Shown(tuple(kept), sum(len(block.ids) for block in blocks), shortened, joined)
