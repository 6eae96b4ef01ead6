"""The rows of a report's table as its page carries them: column by column, packed, so that twenty thousand fit in two megabytes.

Base64 holds no mark that HTML knows, whatever the rows say; the page's script unpacks it.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nncift.core.result_types import JsonObject
from nncift.runs.report.samples import cut, shortened

if TYPE_CHECKING:
    from nncift.runs.report.numbers import Report
    from nncift.runs.report.report_rows import Row

TEXT_BYTES, LEAST_TEXT_BYTES = 2000, 40
"""Bytes of a prompt or a response at most, and where cutting them further is given up."""

REASONS = 400
"""Bytes of text from which on a row's reason goes with it; below, `nncift explain` has it."""

DESCRIBED = 1000
"""Rows that keep their reason all the same: those of the map."""

REGION_WORDS = 3


class Packer:
    """Packs the same rows as often as it takes to find a size that fits. run: path for commands."""

    def __init__(self, report: Report, rows: Sequence[Row], run: str) -> None:
        self._rows, self._made = rows, columns(report, rows, run)
        # Texts of rows stand on one line already; ids in their place need not.
        self._cut = shortened if report.texts else cut

    def pack(self, most: int) -> str:
        """Return the rows and what they refer to as compressed JSON in Base64. most: bytes of each text."""
        self._made |= {
            "prompt": [self._cut(row.prompt, most) for row in self._rows],
            "response": [self._cut(row.response, most) for row in self._rows],
            "reason": [row.reason if most >= REASONS or at < DESCRIBED else "" for at, row in enumerate(self._rows)],
        }
        text = json.dumps(self._made, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return b64encode(zlib.compress(text.encode("utf-8", "replace"))).decode()


def columns(report: Report, rows: Sequence[Row], run: str) -> JsonObject:
    """Return rows column by column, less their texts; names that repeat stand once and are counted from 0."""
    sources, source = _coded(row.source for row in rows)
    kinds, kind = _coded(row.kind for row in rows)
    issues = [one.kind for one in report.issues]
    place = {name: at for at, name in enumerate(issues)}
    return {
        "run": run,
        "id": [row.id for row in rows],
        "prompt": [],
        "response": [],
        "sources": sources,
        "source": source,
        "kinds": kinds,
        "kind": kind,
        "rank": [row.rank for row in rows],
        "score": [_short(row.score) for row in rows],
        "gain": [_short(row.gain) for row in rows],
        "stability": [_short(row.stability) for row in rows],
        "length": [row.length for row in rows],
        "regions": [", ".join(one.words[:REGION_WORDS]) or one.example for one in report.uncovered.regions],
        "region": [row.region for row in rows],
        "issue_kinds": issues,
        "issues": [[place[name] for name in row.issues] for row in rows],
        "reason": [],
        "serves": [row.serves and [[name, _short(value), known] for name, value, known in row.serves] for row in rows],
        "targets": report.target_texts,
    }


def _coded(values: Iterable[str]) -> tuple[list[str], list[int]]:
    every = list(values)
    names = sorted(set(every))
    place = {name: at for at, name in enumerate(names)}
    return names, [place[value] for value in every]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
