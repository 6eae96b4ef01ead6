"""What to type for rows that no format fits: the `--map` that reads them, tried on a row before it is proposed."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from nncift.data.examples import Rejection
from nncift.data.formats import parse
from nncift.data.layout import Layout
from nncift.data.records import Row
from nncift.data.turns import UnusableError
from nncift.errors import UsageError

_NAMES: Mapping[str, tuple[str, ...]] = {
    "messages": (
        "conversation",
        "conversations",
        "dialog",
        "dialogue",
        "dialogs",
        "chat",
        "turns",
        "data",
        "chat_history",
    ),
    "instruction": ("instruction", "instructions", "task"),
    "input": ("input", "context", "passage"),
    "output": ("output", "response", "answer", "target", "targets", "completion"),
    "prompt": ("prompt", "question", "query", "inputs", "input", "instruction", "problem", "user", "human", "request"),
    "completion": (
        "completion",
        "response",
        "answer",
        "answers",
        "output",
        "outputs",
        "targets",
        "target",
        "solution",
        "reply",
        "assistant",
        "generated_solution",
    ),
    "chosen": ("chosen", "chosen_response", "preferred", "better", "answer_better"),
    "rejected": ("rejected", "rejected_response", "dispreferred", "worse", "answer_worse"),
    "system": ("system", "system_prompt", "system_message"),
}
_FORMS = (
    ("messages",),
    ("prompt", "chosen", "rejected", "system"),
    ("instruction", "input", "output", "system"),
    ("prompt", "completion", "system"),
)
_NEEDED = {"messages", "instruction", "output", "prompt", "completion", "chosen", "rejected"}


def proposed_map(row: Row) -> dict[str, str] | None:
    """Return the `--map` with which a row can be read, None where none of the usual names leads to one."""
    places = {name.strip().lower(): name for name in row if isinstance(name, str)}
    for outer, value in row.items():
        if isinstance(value, dict):
            places.update(
                {
                    key.strip().lower(): f"{outer}.{key}"
                    for key in value
                    if isinstance(key, str) and key.lower() not in places
                }
            )
    for form in _FORMS:
        columns: dict[str, str] = {}
        for field in form:
            free = (places[name] for name in _NAMES[field] if name in places and places[name] not in columns.values())
            if column := next(free, None):
                columns[field] = column
        if _NEEDED & set(form) <= columns.keys() and _reads(row, columns):
            return columns
    return None


def _reads(row: Row, columns: Mapping[str, str]) -> bool:
    try:
        parse(row, Layout.from_settings("auto", columns))
    except (UnusableError, UsageError):
        return False
    return True


def typed_map(columns: Mapping[str, str], file: str | None = None) -> str:
    """Return the flags to type for a mapping, for one file where several are given."""
    prefix = f"{file}:" if file else ""
    flags = [
        f"--map {shlex.quote(f'{prefix}{field}={column}')}" for field, column in columns.items() if field != column
    ]
    return " ".join(flags)


def what_to_do(rejected: Sequence[Rejection], rows: Iterable[Row]) -> str:
    """Return one sentence on what to do about an input of which no row can be used. rows: some of them."""
    kind = Counter(item.kind for item in rejected).most_common(1)[0][0] if rejected else ""
    if kind == "not valid UTF-8":
        return "The file is in another encoding, such as GBK or Latin-1: convert it, iconv -f GBK -t UTF-8 FILE > NEW"
    if kind == "unknown role":
        return "Say what a role means: --map role:NAME=user (or assistant, system, tool)"
    if kind in ("not JSON", "printed Python", "broken JSON"):
        return "Expected one JSON object a row, with double quotes (json.dumps)"
    for row in rows:
        if columns := proposed_map(row):
            return f"Type {typed_map(columns)}"
    return (
        "Expected messages, conversations, instruction with output, prompt with completion, or chosen with rejected; name "
        "other columns with --map, such as prompt=question"
    )
