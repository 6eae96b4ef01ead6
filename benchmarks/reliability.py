"""Kills and faults, and what came of them: `python benchmarks/reliability.py [--quick] [--only PART] [--json] [--write]`.

Parts: kills, files, disk, processes. `--write` puts the table into docs/reliability.md; it exits with 1 where anything was lost,
differed or was silent. `crashes.py` says how kills are done, `faults.py` how files are damaged.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from crashes import SCENARIOS, Harness, Kill, difference, files_of
from faults import MENDED, READERS, REFUSED, SILENT, UNTOUCHED, Fault, Faults, explain

HAS_RAY = importlib.util.find_spec("ray") is not None
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"
SPREAD = {
    "delift, scatter": (20, 8),
    "delift, active, probe": (10, 4),
    "less": (8, 4),
    "loss": (30, 10),
    "select": (30, 8),
    "score, export": (25, 5),
    "evaluate": (10, 3),
    "demo": (4, 2),
    "shards": (8, 3),
    "shards, active, probe": (4, 1),
    "shards, less": (3, 1),
    "joining shards": (4, 1),
    "Ray's driver": (4, 0),
    "shards, calculating": (8, 3),
}
"""Kills alone: at writes in equal steps, and at random times."""

IN_A_ROW = {"delift, scatter": 40, "delift, active, probe": 60, "less": 30, "demo": 90, "shards": 150}
"""Kills one after the other: the first session dies at this write of its own, every further one a few writes later."""


def kills(harness: Harness, *, quick: bool, scenario: str | None = None, seed: int = 0) -> Iterator[Kill]:
    """Kill every scenario, or one, at writes in equal steps, at random times, and again and again."""
    if quick and scenario is None:
        yield from harness.kills_in_a_row("loss", 50, 25)
        yield from harness.kills_in_a_row("select", 20, 15)
        yield from (harness.kill("score, export", at=at) for at in (2, 9, 17, 24))
        # In the first shard, in the second, and while they are joined.
        yield from (harness.kill("shards", at=at) for at in (100, 240, 400))
        return
    dice = random.Random(seed)
    for name, (writes, times) in SPREAD.items():
        if scenario not in (None, name) or ("Ray" in name and not HAS_RAY):
            continue
        _, changes, seconds, _ = harness.reference(name)
        if quick:
            yield from (harness.kill(name, at=changes * part // 4) for part in (1, 2, 3))
            return
        for number in range(writes):
            yield harness.kill(name, at=1 + number * (changes - 1) // (writes - 1))
        for _ in range(times):
            yield harness.kill(name, after=dice.uniform(0, seconds))
    for name, every in IN_A_ROW.items():
        if scenario in (None, name):
            yield from harness.kills_in_a_row(name, every)


def files(harness: Harness, *, quick: bool) -> Iterator[Fault]:
    """Damage every file that runs leave, then go on, and read."""
    if quick:
        yield from Faults(harness, "loss").of_resuming(("bit",))
        return
    finished = Faults(harness, "loss")
    yield from finished.of_resuming(bits=2)
    for name in READERS:
        yield from finished.of_reading(name)
    yield from Faults(harness, "loss", killed_at=170).of_resuming()
    # Probe, label chunks and plans of a teacher that labels pairs; checkpoints; the full teacher's matrix; the demo.
    yield from Faults(harness, "delift, active, probe", only="run/probe").of_resuming()
    yield from Faults(harness, "delift, scatter", killed_at=240, only="run/labels").of_resuming()
    yield from Faults(harness, "less", killed_at=150, only="labels/teacher").of_resuming(("bit", "half"))
    yield from Faults(harness, "evaluate", killed_at=60, only="truth").of_resuming()
    # Of shards: before they are joined, and where a shard itself goes on.
    yield from Faults(harness, "joining shards", killed_at=1, only="run/pieces").of_resuming(bits=4)
    yield from Faults(harness, "shards", killed_at=240, only="run/pieces").of_resuming()


def disk(harness: Harness) -> Iterator[Fault]:
    """Run on disks of many sizes that are too small, make room, and go on; run and read where nothing can be written."""
    name = "delift, scatter"
    for kilobytes in (40, 90, 150, 260, 400, 560, 700):
        with _mounted(harness.work, f"{kilobytes}k") as resize:
            harness.base.joinpath("wanted").mkdir(exist_ok=True)
            (harness.work / "pool.jsonl").write_bytes(_POOL[0])
            code = harness.child(SCENARIOS[name].act)
            said = harness.said
            resize("64m")
            again = harness.child(SCENARIOS[name].act)
            wrong = difference(_POOL[1], files_of(harness.work)) if again == 0 else f"exit code {again} on going on"
            record = code == 6 and "o space left" in said
            outcome = REFUSED if record and wrong is None else UNTOUCHED if code == 0 and wrong is None else SILENT
            yield Fault("run", f"{kilobytes} kB", "full disk", outcome, f"exit code {code}; {wrong}; {said[-300:]}")
    with _mounted(harness.work, "64m") as resize:
        (harness.work / "pool.jsonl").write_bytes(_POOL[0])
        harness.must(SCENARIOS[name].act)
        before = files_of(harness.work)
        resize("64m,ro")
        for command, act in (("run", SCENARIOS[name].act), ("select", SCENARIOS["select"].act)):
            code = harness.child(act)
            fine = code == 6 and files_of(harness.work) == before
            yield Fault(
                command, "read-only", "whole folder", REFUSED if fine else SILENT, f"{code}: {harness.said[-300:]}"
            )
        code = harness.child(lambda folder: explain(folder, harness.base))
        yield Fault(
            "explain", "read-only", "whole folder", UNTOUCHED if code == 0 else SILENT, f"{code}: {harness.said[-300:]}"
        )


_POOL: list[Any] = []


def prepare_disk(harness: Harness) -> None:
    """Keep what a run without faults leaves, before its folder is a mount."""
    wanted = harness.reference("delift, scatter")[0]
    _POOL[:] = [wanted["pool.jsonl"], wanted]
    harness.clear()


@contextmanager
def _mounted(place: Path, size: str) -> Iterator[Any]:
    """Mount a disk in memory of this size, and give a function that mounts it anew with other options."""
    place.mkdir(parents=True, exist_ok=True)

    def mount(*options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", place], check=True, capture_output=True)

    mount("-o", f"size={size}")
    try:
        yield lambda new: mount("-o", f"remount,size={new}")
    finally:
        subprocess.run(["umount", place], check=True, capture_output=True)


def can_mount() -> bool:
    """Tell whether this user may mount."""
    with tempfile.TemporaryDirectory() as name:
        try:
            with _mounted(Path(name) / "disk", "1m"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def processes(harness: Harness) -> Iterator[Fault]:
    """Start the same run twice at once."""
    for name in ("delift, scatter", "loss"):
        harness.fresh(name)
        first = harness.start(SCENARIOS[name].act)
        while not (harness.work / "run" / ".lock").exists():
            time.sleep(0.01)
        code = harness.child(SCENARIOS[name].act)
        refused = code == 6 and "another process works on" in harness.said
        ended = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        wrong = difference(harness.reference(name)[0], files_of(harness.work))
        outcome = REFUSED if refused and ended == 0 and wrong is None else SILENT
        yield Fault("run", name, "two processes at once", outcome, f"{code}, {ended}, {wrong}")


def measure(*, quick: bool, only: str | None, scenario: str | None = None, progress: bool = False) -> dict[str, Any]:
    """Run the parts, and return every kill and every fault."""
    found: dict[str, Any] = {"kills": [], "faults": [], "skipped": [], "seconds": {}}
    # In memory where that can be had: a flush to a real disk takes longer than all the rest.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="nncift-reliability-", dir=memory if memory.is_dir() else None) as base:
        harness = Harness(Path(base), SCENARIOS[scenario].act if quick and scenario else None)
        parts: dict[str, Any] = {
            "kills": lambda: kills(harness, quick=quick, scenario=scenario),
            "files": lambda: files(harness, quick=quick),
        }
        if not quick:
            parts |= {"disk": lambda: disk(harness), "processes": lambda: processes(harness)}
        for part, make in parts.items():
            if only not in (None, part):
                continue
            if part == "kills" and not quick and not HAS_RAY:
                found["skipped"].append("kills of Ray's driver: the extra ray is not installed")
            if part == "disk":
                if not can_mount():
                    found["skipped"].append("full disk and read-only folder: this user may not mount")
                    continue
                prepare_disk(harness)
            began = time.monotonic()
            for one in make():
                found["kills" if isinstance(one, Kill) else "faults"].append(asdict(one))
                if progress:
                    sys.stderr.write(f"{one}\n")
            found["seconds"][part] = round(time.monotonic() - began)
    return found


def failures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the kills after which something was wrong, and the silent faults."""
    return [kill for kill in found["kills"] if kill["wrong"]] + [
        one for one in found["faults"] if one["outcome"] == SILENT
    ]


def joined(files: list[Path]) -> dict[str, Any]:
    """Return what several measurements found, as one."""
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {
        "kills": [one for part in parts for one in part["kills"]],
        "faults": [one for part in parts for one in part["faults"]],
        "skipped": [one for part in parts for one in part["skipped"]],
        "seconds": dict(sum((Counter(part["seconds"]) for part in parts), Counter[str]())),
    }


def tables(found: dict[str, Any]) -> str:
    """Return what was found as Markdown."""
    lines = []
    if found["kills"]:
        by: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for kill in found["kills"]:
            by[kill["scenario"], _stage(kill)].append(kill["wrong"] is None)
        total = [fine for each in by.values() for fine in each]
        lines += ["| what was killed | while | kills | went on to the same bytes |", "|---|---|---|---|"]
        lines += [f"| {name} | {stage} | {len(each)} | {sum(each)} |" for (name, stage), each in sorted(by.items())]
        lines += [f"| all | | {len(total)} | {sum(total)} |", ""]
    if found["faults"]:
        counted: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for fault in found["faults"]:
            command = "run" if fault["command"] == "run" else "read"
            counted[_artefact(fault["where"]), command][fault["outcome"]] += 1
        columns = (MENDED, UNTOUCHED, REFUSED, SILENT)
        lines += [
            f"| damaged | command | faults | {' | '.join(columns[:3])} | silent |",
            "|---|---|---|---|---|---|---|",
        ]
        for (where, command), each in sorted(counted.items()):
            figures = " | ".join(str(each[column]) for column in columns)
            lines.append(f"| {where} | {command} | {each.total()} | {figures} |")
        whole = sum(counted.values(), Counter[str]())
        lines.append(f"| all | | {whole.total()} | {' | '.join(str(whole[column]) for column in columns)} |")
    return "\n".join(lines)


def _stage(kill: dict[str, Any]) -> str:
    if kill["scenario"] in ("select", "evaluate", "score, export"):
        return str(kill["scenario"])
    record = str(kill["stage"])
    if record == "begin":
        return "start"
    return "summary, card, report" if record == "after select" else "between stages" if "after" in record else record


def _artefact(where: str) -> str:
    """Return the kind of file: its name without its number, fingerprint and the folder of the run."""
    path = Path(where)
    if path.parts and path.parts[0] == "cache":
        return "cache of embeddings"
    if "pieces" in path.parts:
        return f"pieces/{path.parent.name.partition('-')[0]}-N/N{path.suffix}"
    name = "".join("N" if mark.isdigit() else mark for mark in path.name)
    if name.startswith("utility-"):
        name = "utility-N.safetensors"
    parts = [part for part in path.parts[:-1] if part not in ("run", "demo")]
    return "/".join([*parts, name.replace("NNN", "N")])


def main() -> None:
    """Measure, print, and write the page."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument(
        "--quick", action="store_true", help="a dozen kills, or three of one scenario; one flipped bit per file"
    )
    asked.add_argument("--only", choices=("kills", "files", "disk", "processes"))
    asked.add_argument("--scenario", choices=tuple(SPREAD), help="kill this one alone, with --only kills")
    asked.add_argument("--json", action="store_true")
    asked.add_argument("--progress", action="store_true", help="tell every kill and fault on standard error")
    asked.add_argument("--write", action="store_true", help="put the tables into docs/reliability.md")
    asked.add_argument(
        "--join", type=Path, nargs="+", help="take what --json gave for parts that were measured one by one"
    )
    given = asked.parse_args()
    found = (
        joined(given.join)
        if given.join
        else measure(quick=given.quick, only=given.only, scenario=given.scenario, progress=given.progress)
    )
    wrong = failures(found)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    seconds = ", ".join(f"{part} {count} s" for part, count in found["seconds"].items())
    text = f"{tables(found)}\n\n{machine}; {seconds}.{''.join(f' Not done: {why}.' for why in found['skipped'])}"
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        head, _, rest = page.partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(json.dumps({**found, "wrong": wrong}) if given.json else text)
    if wrong:
        sys.stderr.write("".join(f"WRONG: {one}\n" for one in wrong[:20]))
        sys.exit(1)


if __name__ == "__main__":
    main()
