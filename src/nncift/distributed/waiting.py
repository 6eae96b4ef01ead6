"""A shard that waits for others: as long as one of those whose tasks it lacks is at work, or something comes of them.

While it waits it does not count as at work. So shards that wait for each other, for whatever reason, see nobody at work and
nothing change, and stop; so does one that waits for a shard that was killed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from nncift.distributed.shadow import Presence

log = logging.getLogger(__name__)
GRACE = 120.0
"""Seconds without a shard at work, and without anything new, after which waiting ends: a network shows files late."""
FIRST, LONGEST = 0.05, 5.0
"""Seconds between two looks, at first and at most."""
QUIET, EVERY = 10.0, 300.0
"""Seconds of waiting that are not told of, and between two times that they are."""


class Waiting:
    """Waits for tasks of others; a context manager, behind which the shard is at work again.

    what: for people. even_for_none: also give a shard that is not there the time to begin.
    """

    def __init__(self, presence: Presence, what: str, *, even_for_none: bool = False) -> None:
        self._presence, self._what, self._even_for_none = presence, what, even_for_none
        self._rests, self._pause, self._state = False, FIRST, dict[int, int]()
        self._began = self._sign = self._told = time.monotonic()

    def __enter__(self) -> Self:
        """Begin; the shard counts as at work until it lacks something."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Go back to work."""
        self.go_on()

    def go_on(self) -> None:
        """Count as at work."""
        if self._rests:
            self._presence.go_on()
            self._rests = False

    def more(self, lacks: Mapping[int, int]) -> bool:
        """Wait a moment for tasks; tell whether to look again. lacks: how many, by the number of the shard that does them."""
        now, first = time.monotonic(), not self._rests
        if not self._rests:
            self._presence.rest()
            self._rests = True
        if first or lacks != self._state or self._presence.working(lacks):
            self._sign = now
        if lacks != self._state:
            self._state, self._pause = dict(lacks), FIRST
        if first and not self._even_for_none and not self._presence.alive(lacks):
            return False
        if now - self._sign >= GRACE:
            return False
        if now - self._told >= (QUIET if self._told == self._began else EVERY):
            self._told = now
            log.warning("%s", self._sentence(now - self._began))
        time.sleep(self._pause)
        self._pause = min(self._pause * 1.5, LONGEST)
        return True

    def _sentence(self, seconds: float) -> str:
        shards = ", ".join(f"{number}/{self._presence.shard.count}" for number in sorted(self._state))
        return (
            f"shard {self._presence.shard} has waited {seconds:.0f} s for shard {shards}: {sum(self._state.values())} tasks of "
            f"{self._what} are theirs"
        )
