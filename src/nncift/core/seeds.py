"""Seeds: one for the run, one derived from it for every purpose (design.md, rule 9)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def derive(seed: int, *purpose: str) -> int:
    """Return a 63-bit seed for a named purpose; the same names and seed give the same number on every machine."""
    digest = hashlib.sha256("\x1f".join([str(seed), *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """Return a random generator for a named purpose."""
    return np.random.default_rng(derive(seed, *purpose))


def shuffled(ids: Iterable[str], seed: int, *purpose: str) -> list[str]:
    """Return ids in an order that depends on each id and the seed alone, so that new ids never reorder old ones."""
    salt = "\x1f".join([str(seed), *purpose, ""]).encode()
    return sorted(ids, key=lambda item: hashlib.sha256(salt + item.encode("utf-8", "surrogatepass")).digest())
