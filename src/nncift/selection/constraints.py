"""What a selection has to keep, from settings to numbers: size, quotas, rows in and out, duplicates removed first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncift.config import SelectSettings
from nncift.core.amounts import Budget
from nncift.core.arrays import Floats
from nncift.core.texts import read_text
from nncift.data.pool import PoolTable
from nncift.errors import DataError, InfeasibleError, UsageError
from nncift.selection import Rules
from nncift.selection.dedup import Twin, find, parse
from nncift.selection.quota import Quota, QuotaBound, one_column
from nncift.selection.rules import NO_RULES, QUOTAS_COUNT_ROWS


@dataclass(frozen=True)
class Constraints:
    """Settings of a selection, read and checked as far as they can be without any row. removal: see `dedup.parse`."""

    budget: Budget
    quotas: tuple[QuotaBound, ...]
    include: frozenset[str]
    exclude: frozenset[str]
    removal: float | None

    @classmethod
    def read(cls, settings: SelectSettings) -> Constraints:
        """Read settings and the files of ids that they name. Raises UsageError, InfeasibleError or DataError."""
        return cls(
            settings.budget,
            one_column(settings.quota),
            _ids(settings.include, "--include"),
            _ids(settings.exclude, "--exclude"),
            parse(settings.dedup),
        )

    def check(self, rows: PoolTable) -> int | None:
        """Return the rows that would be selected, None for a budget of tokens; refuse what is seen to be impossible already.

        Duplicates by embedding and tokens are not known yet: what fails on them is refused when they are.
        Raises InfeasibleError or UsageError, naming the conflict.
        """
        removed = find(self.removal, rows.ids, rows.content, None, self.include)
        rest = rows.without(removed)
        k = self._size(rest) if self.budget.tokens is None else len(rest.ids)
        rules = self._rules(rest, removed)
        if self.budget.tokens is not None and self.quotas:
            raise UsageError(QUOTAS_COUNT_ROWS)
        rules.check(rest.ids, k)
        return k if self.budget.tokens is None else None

    def settle(self, rows: PoolTable, vectors: Floats) -> ResolvedConstraints:
        """Return what the constraints come to for these rows; vectors: their embeddings, `(n, d)`.

        Raises InfeasibleError or UsageError, naming the conflict.
        """
        removed = find(self.removal, rows.ids, rows.content, vectors, self.include)
        rest = rows.without(removed) if removed else rows
        if self.budget.tokens is None:
            k, rules = self._size(rest), self._rules(rest, removed)
        else:
            k, rules = len(rest.ids), self._within_tokens(rest, removed, self.budget.tokens)
        rules.check(rest.ids, k)
        return ResolvedConstraints(k, rules, removed)

    def _size(self, rest: PoolTable) -> int:
        try:
            return self.budget.rows(len(rest.ids))
        except InfeasibleError as error:
            if self.removal is None:
                raise
            raise InfeasibleError(f"{error} (rows that --dedup removes are not counted)") from error

    def _rules(self, rest: PoolTable, removed: Mapping[str, Twin]) -> Rules:
        quota = Quota(self.quotas[0].column, self.quotas, rest.texts(self.quotas[0].column)) if self.quotas else None
        if not (self.include or self.exclude or quota):
            return NO_RULES
        return Rules(self.include, self.exclude - removed.keys(), quota)

    def _within_tokens(self, rest: PoolTable, removed: Mapping[str, Twin], tokens: int) -> Rules:
        if rest.tokens is None:
            raise DataError("the tokens of this run's rows were never counted; run the same `nncift run` again")
        if (total := sum(rest.tokens)) < tokens:
            raise InfeasibleError(f"Cannot select with budget {self.budget}: the pool has only {total:,} tokens")
        cost = dict(zip(rest.ids, rest.tokens, strict=True))
        return Rules(self.include, self.exclude - removed.keys(), None, cost, tokens)


@dataclass(frozen=True)
class ResolvedConstraints:
    """A size (with a budget of tokens only an upper bound), rules, and the rows that are removed first."""

    k: int
    rules: Rules
    removed: Mapping[str, Twin]

    @property
    def identity(self) -> list[Any]:
        """What a selection depends on of this, as JSON; quotas follow from settings and rows."""
        rules = self.rules
        cost = sorted(rules.cost.items())
        return [self.k, sorted(rules.include), sorted(rules.exclude), cost, rules.capacity, sorted(self.removed)]


def ids_of(file: str, flag: str) -> tuple[str, ...]:
    """Return the ids of a file, one a line, in its order. Raises DataError where it cannot be read or holds none."""
    try:
        lines = read_text(Path(file)).splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{flag} {file!r} cannot be read: {error}") from error
    ids = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not ids:
        raise DataError(f"{flag} {file!r} holds no id; expected one a line")
    return ids


def _ids(file: str | None, flag: str) -> frozenset[str]:
    return frozenset() if file is None else frozenset(ids_of(file, flag))
