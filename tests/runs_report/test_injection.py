"""Rows are untrusted text: nothing of them becomes an element, an attribute or a script of the page, nor Markdown of the card."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nncift

EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "javascript:alert(1)",
    "<!--<script>",
    "]]><a href='javascript:alert(1)'>x</a>",
    "\u2028alert(1)//",
    "{{7*7}}{% raw %}",
    "' onmouseover='alert(1)",
)


class Page(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def run(tmp_path: Path, words: tuple[str, ...], name: str) -> Path:
    rows = [
        {
            "id": f"{words[k % len(words)]} {k}",
            "instruction": f"{words[k % len(words)]} do {k}",
            "output": f"{words[-1]} {'x' * k}",
        }
        for k, word in enumerate((words * 40)[:40])
    ]
    folder = tmp_path / name
    folder.mkdir()
    pool = folder / f"{words[1].replace('/', '')}.jsonl"
    pool.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    given: dict[str, Any] = {"teacher": "length", "encoder": "hash", "labels": "40%", "budget": "8"}
    return nncift.run(pool, out=folder / "run", **given).path


def test_nothing_of_a_row_becomes_part_of_the_page(tmp_path: Path) -> None:
    path = run(tmp_path, EVIL, "evil")
    hostile = Page((path / "report.html").read_text("utf-8"))
    harmless = Page((run(tmp_path, ("plain", "words"), "good") / "report.html").read_text("utf-8"))
    assert hostile.tags.count("script") == harmless.tags.count("script")
    own = set("table tr td th li p summary details b ul section svg rect".split())
    assert set(hostile.tags) <= set(harmless.tags) | own
    assert not [name for name, _ in hostile.attributes if name.startswith("on")]
    assert not [
        value
        for name, value in hostile.attributes
        # A link to a row of this page names it, percent-encoded, behind the mark of a fragment.
        if name in ("href", "src") and "javascript" in value.lower() and not value.startswith("#row=")
    ]
    card = (path / "student" / "README.md").read_text("utf-8")
    assert not Page(card).tags
