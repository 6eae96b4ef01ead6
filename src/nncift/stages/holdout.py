"""`--holdout`: rows that are set aside before anything of a run sees them, for `tune` to judge by (docs/tune.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncift.config import RunSettings
from nncift.core.fingerprints import fingerprint
from nncift.core.result_types import JsonObject
from nncift.data import Examples
from nncift.data.contamination import near_copies
from nncift.data.examples import Example
from nncift.data.formats import parse, prompt_text
from nncift.data.layout import Layout
from nncift.data.proportion import in_proportion
from nncift.data.records import kept_lines, kept_row
from nncift.data.turns import UnusableError
from nncift.errors import DataError, InfeasibleError
from nncift.storage import checksums
from nncift.storage.atomic import atomic, read_json, write_json
from nncift.storage.run_directory import RunDir

ROWS, RECORD = "holdout.jsonl", "holdout.json"
"""The rows as they were, and of each its id, its source, its line there, and the hash of its content."""
STAGE = "holdout"


@dataclass(frozen=True)
class Parted:
    """A pool in two: the rows that a run sees, and those that it does not. note: for the user."""

    pool: Examples
    holdout: Examples
    note: str


def set_aside(
    pool: Examples, settings: RunSettings, out: str | Path | None, also_seen: Iterable[Examples | None]
) -> Parted | None:
    """Return a pool without the rows of `--holdout`, and these; None without `--holdout`.

    Rows are drawn by the run's seed, in proportion over the sources. Rows of the same content go together, and so do near copies
    (`contamination.near_copies`): what is left in the pool gives none of them away. A run that is extended keeps what it has set
    aside, and sets aside of its new rows alone, since it has seen the others; so do rows of the target set and of those that were
    trained on already, `also_seen`.

    Raises InfeasibleError where nothing would be set aside, or nothing left.
    """
    if settings.holdout is None:
        return None
    wanted = settings.holdout.rows(len(pool))
    seen = set[str]()
    for rows in filter(None, also_seen):
        seen |= {row.content_hash for row, _ in near_copies(pool, rows)} | {row.content_hash for row in rows}
    earlier: set[str] = set()
    if out is not None:
        earlier = {str(row["content"]) for row in _kept(Path(out), RECORD, STAGE, [])}
        seen |= set(map(str, dict(_kept(Path(out), "pool.json", "check", {})).values()))
    drawn = _chosen(pool, wanted, earlier, seen - earlier, settings.seed)
    chosen = _with_copies(
        pool,
        drawn,
        wanted,
        fixed={row.id for row in pool if row.content_hash in earlier},
        seen={row.id for row in pool if row.content_hash in seen - earlier},
    )
    if not chosen or len(chosen) == len(pool):
        known = sum(row.content_hash in seen for row in pool)
        raise InfeasibleError(
            f"--holdout {settings.holdout} of {len(pool)} rows sets {len(chosen)} aside. The {known} rows that the run has seen "
            "stay in the pool, and near copies go together; give another share or pool"
        )
    held = Examples(tuple(row for row in pool if row.id in chosen))
    rest = tuple(row for row in pool if row.id not in chosen)
    note = (
        f"{len(held):,} of {len(pool):,} rows are set aside (--holdout {settings.holdout}): nothing of this run sees them, and "
        f"nncift tune judges by them.{_said_of_copies(len(chosen - drawn), len(drawn - chosen))}"
    )
    return Parted(Examples(rest, pool.rejected, (*pool.notes, note)), held, note)


def _chosen(pool: Examples, wanted: int, earlier: Collection[str], seen: Collection[str], seed: int) -> set[str]:
    """Return ids of the rows that are set aside: at least `wanted`, where so many may be."""
    of_content: dict[str, list[str]] = {}
    for row in pool:
        of_content.setdefault(row.content_hash, []).append(row.id)
    chosen = {item for content in earlier for item in of_content.get(content, ())}
    free = [row for row in pool if row.content_hash not in seen and row.content_hash not in earlier]
    for place in in_proportion([row.id for row in free], [row.source for row in free], seed, "holdout"):
        if len(chosen) >= wanted:
            break
        chosen.update(of_content[free[place].content_hash])
    return chosen


def _with_copies(
    pool: Examples, drawn: Collection[str], wanted: int, *, fixed: Collection[str], seen: Collection[str]
) -> set[str]:
    """Return ids of the rows that are set aside, near copies together.

    A near copy of a row that is set aside is set aside too. Copies of what the run has seen go back to the pool, and so do the
    largest groups of copies where there would be more than twice the rows wanted. fixed: rows that stay set aside in any case.
    """
    held, new, pairs = set(drawn), set(drawn), list[tuple[str, str]]()
    while new:
        rest = [row for row in pool if row.id not in held]
        # In the order of the pool: a set's differs from process to process.
        some = Examples(tuple(row for row in pool if row.id in new))
        found = [(row.id, of.id) for row, of in near_copies([*rest, *some], some) if row.id != of.id]
        pairs += found
        new = {row for row, _ in found if row not in held and row not in seen}
        held |= new
    groups = _groups([row.id for row in pool if row.id in held or row.id in seen], pairs)
    free = [group for group in groups if not group & set(seen) and not group & set(fixed)]
    size = sum(map(len, free)) + len(fixed)
    for group in sorted(free, key=len, reverse=True):
        if size <= 2 * wanted or len(free) == 1:
            break
        free.remove(group)
        size -= len(group)
    # A group that holds rows of both sides stays parted as it was.
    return set(fixed).union(*free, *(group - set(seen) for group in groups if group & set(fixed)))


def _groups(ids: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[set[str]]:
    """Return the groups that rows form, of which some are paired."""
    group_of = {item: {item} for item in ids}
    for one, other in pairs:
        if group_of[one] is not group_of[other]:
            smaller, larger = sorted((group_of[one], group_of[other]), key=len)
            larger |= smaller
            group_of.update(dict.fromkeys(smaller, larger))
    return list({id(group): group for group in group_of.values()}.values())


def _said_of_copies(joined: int, returned: int) -> str:
    """Return sentences on near copies. joined: rows that were not drawn; returned: rows that were."""
    found = [
        f" {joined:,} of them are near copies of others that are." if joined else "",
        f" {returned:,} that were drawn stay in the pool with their near copies: the run has seen some, or they are too many."
        if returned
        else "",
    ]
    return "".join(found)


def write_holdout(directory: RunDir, rows: Examples) -> None:
    """Write the rows that are set aside into the run."""
    records = [{"id": row.id, "source": row.source, "line": row.line, "content": row.content_hash} for row in rows]
    with directory.stage(STAGE, fingerprint(STAGE, records), (ROWS, RECORD)) as stage:
        if not stage.done:
            with atomic(directory.file(ROWS)) as part, part.open("wb") as stream:
                stream.writelines(row.raw.encode("utf-8") + b"\n" for row in rows)
            write_json(directory.file(RECORD), records)


def has_holdout(run: Path) -> bool:
    """Tell whether a run has set rows aside."""
    return (run / RECORD).exists()


def read_holdout(run: Path, layout: Layout) -> Examples:
    """Return the rows that a run has set aside. layout: of the run's rows. Raises DataError where its files are damaged."""
    checksums.verify(run, ROWS, RECORD)
    try:
        records = read_json(run / RECORD)
        lines = kept_lines(run / ROWS, len(records))
        return Examples(tuple(_row(record, raw, layout) for record, raw in zip(records, lines, strict=True)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UnusableError) as error:
        raise DataError(f"{ROWS} of {str(run)!r} cannot be read ({error}); run the same `nncift run` again") from error


def _row(record: JsonObject, text: str, layout: Layout) -> Example:
    said = parse(kept_row(text), layout.of(record["source"]))
    return Example(
        record["id"],
        prompt_text(said.messages),
        said.response,
        said.messages,
        record["source"],
        record["line"],
        text,
    )


def _kept(run: Path, name: str, stage: str, default: Any) -> Any:
    """Return what a stage of an earlier run left; `default` where it left nothing, or what is damaged and made again."""
    mark = checksums.read_mark(run, stage)
    if not (run / name).exists() or not checksums.matches(run, mark, (name,)):
        return default
    return read_json(run / name)
