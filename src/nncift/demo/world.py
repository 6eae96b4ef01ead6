"""Draws the demo world: an instruction pool and a test set whose skills, corruptions and duplicates are known.

Rows are drawn in blocks that depend on the seed and the block's number alone, so a larger world of the same seed and
skills begins with the rows of the smaller one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nncift.core.seeds import derive, generator
from nncift.core.texts import parsed, read_text
from nncift.demo.words import NAMES, tokens
from nncift.demo.world_rules import CORRUPTIONS, Skill, draw_skill, draw_words, family_of
from nncift.errors import DataError, UsageError

BLOCK = 50
TEST_FIRST = 100
"""Test rows that are drawn before the pool."""

_SAFE_ROWS_PER_SKILL = 2
_WORDS = (3, 6)
_TRIES = 24


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known about a row: its skill, whether its answer is wrong and how, the id of the row that it repeats."""

    skill: str
    corrupted: bool = False
    corruption: str = ""
    duplicate_of: str = ""


@dataclass(frozen=True, slots=True)
class WorldFiles:
    """Where a world was written: pool and test as instruction JSON lines, truth as one JSON line per id."""

    pool: Path
    test: Path
    truth: Path


@dataclass(frozen=True)
class World:
    """A drawn world.

    pool, test: rows with the keys id, instruction, input, output. truth: by id, for pool and test. skills: the fixed
    rules, most frequent first.
    """

    pool: tuple[dict[str, str], ...]
    test: tuple[dict[str, str], ...]
    truth: Mapping[str, Truth]
    skills: tuple[Skill, ...]

    def answer(self, prompt: str) -> str:
        """Return the right response to a prompt (instruction, or instruction and input on lines of their own).

        Raises UsageError where the prompt names no skill of this world.
        """
        words = tokens(prompt)
        for skill in self.skills:
            if skill.name in words:
                return skill.answer([word for word in words if word in skill.table])
        raise UsageError(f"the prompt {prompt!r} names no skill of this world; one of its own prompts was expected")

    def write(self, directory: str | Path) -> WorldFiles:
        """Write pool.jsonl, test.jsonl and truth.jsonl into a folder (made if needed); the same bytes every time."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        files = WorldFiles(folder / "pool.jsonl", folder / "test.jsonl", folder / "truth.jsonl")
        _write_lines(files.pool, self.pool)
        _write_lines(files.test, self.test)
        _write_lines(files.truth, ({"id": row["id"], **asdict(self.truth[row["id"]])} for row in self.pool + self.test))
        return files


def make_world(
    rows: int = 200,
    seed: int = 0,
    *,
    skills: int = 24,
    corrupted: float = 0.12,
    duplicates: float = 0.05,
    zipf: float = 1.1,
    test_rows: int = 100,
) -> World:
    """Draw a world; the same arguments give the same world, and more rows only add to it.

    rows: size of the pool. skills: how many rules exist, 2 to 48. corrupted, duplicates: shares of pool rows with a
    wrong answer and of exact repetitions of clean rows under another id. zipf: the skill of rank r gets rows in
    proportion to 1 / r**zipf, beside two clean rows that every skill has once the pool has 4 * skills rows.
    test_rows: clean held-out rows, evenly from all skills; the pool is the same for any number of them. Raises UsageError for
    impossible settings.
    """
    _check(rows, skills, corrupted, duplicates, zipf, test_rows)
    drawn = _draw_skills(skills, seed)
    rank_shares = np.arange(1, skills + 1, dtype=float) ** -zipf
    draft = _Draft(seed, drawn, rank_shares / rank_shares.sum(), corrupted, duplicates)
    # No row has another's words in their order, so what is drawn first is what later rows avoid: the pool must not depend on
    # how many test rows are asked for.
    test = [draft.test_row(index) for index in range(TEST_FIRST)]
    for block in range(-(-rows // BLOCK)):
        draft.add_block(block)
    test = [*test, *(draft.test_row(index) for index in range(TEST_FIRST, test_rows))][:test_rows]
    pool = draft.pool[:rows]
    kept = {row["id"] for row in [*pool, *test]}
    truth = {row_id: known for row_id, known in draft.truth.items() if row_id in kept}
    return World(tuple(pool), tuple(test), truth, drawn)


def read_truth(path: str | Path) -> dict[str, Truth]:
    """Read a truth.jsonl; raises DataError where it is missing or not of this form."""
    try:
        rows = [parsed(line) for line in read_text(Path(path)).splitlines()]
        return {row.pop("id"): Truth(**row) for row in rows}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: no truth file of a demo world ({error}); `World.write` makes one") from error


@dataclass
class _Draft:
    """A world while it is drawn."""

    seed: int
    skills: tuple[Skill, ...]
    shares: np.ndarray[Any, np.dtype[np.float64]]
    corrupted: float
    duplicates: float
    pool: list[dict[str, str]] = field(default_factory=list)
    truth: dict[str, Truth] = field(default_factory=dict)
    originals: list[int] = field(default_factory=list)
    used: set[tuple[int, tuple[str, ...]]] = field(default_factory=set)
    shortest: dict[int, int] = field(default_factory=dict)

    def generator(self, part: str, index: int) -> np.random.Generator:
        return generator(self.seed, "demo", part, str(index))

    def test_row(self, index: int) -> dict[str, str]:
        """Return the held-out row with this number; the skills take turns."""
        return self.clean_row("test", index, index % len(self.skills), self.generator("test", index))

    def add_block(self, block: int) -> None:
        """Add BLOCK pool rows: some surely clean, some corrupted, some repeating earlier rows, in random places."""
        rng = self.generator("pool", block)
        places = iter([int(place) for place in 1 + rng.permutation(BLOCK - 1)])
        safe_ranks = self._safe(block)
        safe = dict(zip(_first(places, len(safe_ranks)), safe_ranks, strict=True))
        repeats = set(_first(places, len(_quota(block, self.duplicates))))
        wrong = dict(
            zip(_first(places, len(_quota(block, self.corrupted))), _quota(block, self.corrupted), strict=False)
        )
        ranks = rng.choice(len(self.skills), size=BLOCK, p=self.shares)
        for place in range(BLOCK):
            index = block * BLOCK + place
            if place in repeats:
                self._repeat(index, rng)
                continue
            row = self.clean_row("pool", index, safe.get(place, int(ranks[place])), rng)
            if place in wrong:
                self._corrupt(row, CORRUPTIONS[wrong[place] % len(CORRUPTIONS)], rng)
            else:
                self.originals.append(index)
            self.pool.append(row)

    def clean_row(self, part: str, index: int, rank: int, rng: np.random.Generator) -> dict[str, str]:
        """Return a row of this skill with words in an order that no row had before, and note its truth."""
        skill = self.skills[rank]
        words = self._fresh_words(rank, rng)
        instruction, extra = skill.prompt(words, int(rng.integers(12)))
        row_id = f"{derive(self.seed, 'demo', 'id', part, str(index)):016x}"[:12]
        self.truth[row_id] = Truth(skill.label)
        return {"id": row_id, "instruction": instruction, "input": extra, "output": skill.answer(words)}

    def _safe(self, block: int) -> list[int]:
        wanted = [*range(len(self.skills))] * _SAFE_ROWS_PER_SKILL
        half = BLOCK // 2
        return wanted[block * half : (block + 1) * half]

    def _fresh_words(self, rank: int, rng: np.random.Generator) -> tuple[str, ...]:
        skill = self.skills[rank]
        count = max(int(rng.integers(*_WORDS)), self.shortest.get(rank, 0))
        while count <= len(skill.table):
            for _ in range(_TRIES):
                words = draw_words(skill, count, rng)
                if (rank, words) not in self.used:
                    self.used.add((rank, words))
                    return words
            count += 1
            self.shortest[rank] = count
        raise UsageError(
            f"{len(self.pool)} rows are as many as {len(self.skills)} skills can fill without repeating; "
            "ask for fewer rows, more skills or a smaller zipf"
        )

    def _repeat(self, index: int, rng: np.random.Generator) -> None:
        original = self.pool[self.originals[int(rng.integers(len(self.originals)))]]
        known = self.truth[original["id"]]
        row_id = f"{derive(self.seed, 'demo', 'id', 'pool', str(index)):016x}"[:12]
        self.pool.append({**original, "id": row_id})
        self.truth[row_id] = Truth(known.skill, duplicate_of=original["id"])

    def _corrupt(self, row: dict[str, str], kind: str, rng: np.random.Generator) -> None:
        known = self.truth[row["id"]]
        skill = next(skill for skill in self.skills if skill.label == known.skill)
        words = [word for word in tokens(f"{row['instruction']} {row['input']}") if word in skill.table]
        right, real_kind = row["output"], kind
        while row["output"] == right:
            stranger = draw_skill("", family_of(int(rng.integers(12))), rng)
            row["output"], real_kind = skill.corrupt(words, kind, stranger, rng)
        self.truth[row["id"]] = Truth(known.skill, True, real_kind)


def _draw_skills(count: int, seed: int) -> tuple[Skill, ...]:
    rng = generator(seed, "demo", "skills")
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:count]]
    offset = int(rng.integers(12))
    return tuple(draw_skill(name, family_of(offset + rank), rng) for rank, name in enumerate(names))


def _quota(block: int, share: float) -> range:
    """Return the running numbers of a block's share of rows, so that any number of blocks has the right total."""
    return range(int(block * BLOCK * share + 0.5), int((block + 1) * BLOCK * share + 0.5))


def _first(items: Iterator[int], count: int) -> list[int]:
    return [item for item, _ in zip(items, range(count), strict=False)]


def _check(rows: int, skills: int, corrupted: float, duplicates: float, zipf: float, test_rows: int) -> None:
    if rows < 1 or test_rows < 0:
        raise UsageError(f"rows={rows}, test_rows={test_rows} were given; at least 1 and 0 were expected")
    if not 2 <= skills <= len(NAMES):
        raise UsageError(f"skills={skills} was given; 2 to {len(NAMES)} were expected")
    if not (corrupted >= 0 and duplicates >= 0 and corrupted + duplicates <= 0.45):
        raise UsageError(
            f"corrupted={corrupted}, duplicates={duplicates} were given; shares of together at most 0.45 were expected"
        )
    if not 0 <= zipf <= 10:
        raise UsageError(f"zipf={zipf} was given; 0 to 10 was expected")


def _write_lines(path: Path, rows: Iterable[Mapping[str, str | bool]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")
