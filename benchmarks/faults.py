"""Damaged files, full disks, folders that cannot be written, two processes: what a run does then, and whether anything is silent.

A fault is silent where a command succeeds and leaves, or prints, anything but what it would have without the fault. A damaged
file that is put right and named in the log is mended; one that a command stops at, naming it, is refused.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from crashes import SCENARIOS, Harness, difference, files_of

MENDED, UNTOUCHED, REFUSED, SILENT = "mended, named", "written anew", "refused, named", "SILENT"
SUMMARY = "run/summary.json"
WARNED = (SUMMARY, "run/report.json", "run/report.html", "run/stages/report.json", "run/stages/finish.json")
"""Files that repeat what a run warns of."""
COSTS = "costs.json"
COUNTED = ("run/costs.json", "run/ledger.json", "run/student/README.md", *WARNED)
"""Files that tell what a run cost: where that record is damaged, costs are counted anew from there."""
KINDS = ("bit", "half", "empty")
"""One bit flipped, the second half cut off, nothing left."""


@dataclass(frozen=True)
class Fault:
    """A fault and its outcome. where: the file or place, digits of generations left out. said: for what is silent, how."""

    command: str
    kind: str
    where: str
    outcome: str
    said: str = ""


def damage(path: Path, kind: str, dice: random.Random) -> None:
    """Damage a file in place."""
    content = bytearray(path.read_bytes())
    if kind == "bit":
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    else:
        del content[len(content) // 2 if kind == "half" else 0 :]
    path.write_bytes(content)


def unwarned(wanted: Mapping[str, bytes], found: Mapping[str, bytes], file: str) -> Mapping[str, bytes]:
    """Return what was found as it would be without warnings of a damaged file, where the summary is the same but for them.

    Of a damaged record of costs also without what was counted anew: these are figures, and nothing rests on them.
    """
    if SUMMARY not in found or SUMMARY not in wanted:
        return found
    record, was = json.loads(found[SUMMARY]), json.loads(wanted[SUMMARY])
    record["warnings"] = [sentence for sentence in record["warnings"] if Path(file).name not in sentence]
    names: tuple[str, ...] = WARNED
    if Path(file).name == COSTS:
        names = COUNTED
        for one in (record, was):
            del one["ledger"]
    return {**found, **{name: wanted[name] for name in names if name in wanted}} if record == was else found


def explain(folder: Path, out: Path | None = None) -> None:
    """Explain a row, and leave what was said, in the folder unless another is given."""
    from nncift.runs.explain import explain
    from nncift.runs.finished import FinishedRun

    found = FinishedRun(folder / "run")
    record = [explain(found, item, why_not=True).to_json() for item in (sorted(found.choices)[3], found.chosen[0])]
    ((out or folder) / "explained.json").write_text(json.dumps(record))


def compare(folder: Path) -> None:
    """Compare the run's selection with itself, and leave what was said."""
    from nncift.runs.compare import compare

    (folder / "compared.json").write_text(json.dumps(compare(folder / "run", folder / "run").to_json()))


def select(folder: Path) -> None:
    """Choose again beside the run."""
    from nncift.runs.select_again import reselect

    reselect(folder / "run", {"budget": "6"}, folder / "other")


READERS: Mapping[str, Callable[[Path], object]] = {
    "explain": explain,
    "compare": compare,
    "select": select,
    "score, export": SCENARIOS["score, export"].act,
}


class Faults:
    """Faults put upon one scenario's finished run, or upon one that was killed while it labelled."""

    def __init__(
        self, harness: Harness, name: str, *, killed_at: int | None = None, only: str = "", seed: int = 0
    ) -> None:
        self._harness, self._act = harness, SCENARIOS[name].act
        self._dice = random.Random(seed)
        self.wanted = harness.reference(name)[0]
        self._start = harness.base / f"faults {name} {killed_at}"
        harness.fresh(name)
        harness.child(self._act, kill_at=killed_at)
        shutil.copytree(harness.work, self._start)
        self.files = sorted(files_of(harness.work)) + sorted(
            str(path.relative_to(harness.work)) for path in (harness.work / "cache").rglob("*.safetensors")
        )
        self.files = [name for name in self.files if only in name]

    def of_resuming(self, kinds: tuple[str, ...] = KINDS, bits: int = 1) -> Iterator[Fault]:
        """Damage every file in every way, run the same again, and compare with a run without faults."""
        for file, kind in self._cases(kinds, bits):
            code = self._harness.child(self._act)
            found = files_of(self._harness.work) if code == 0 else self.wanted
            yield self._judged("run", file, kind, code, difference(self.wanted, unwarned(self.wanted, found, file)))

    def of_reading(self, name: str, kinds: tuple[str, ...] = KINDS, bits: int = 1) -> Iterator[Fault]:
        """Damage every file in every way, and read the finished run."""
        act, harness = READERS[name], self._harness
        self._put_back()
        harness.must(act)
        fresh = {file: content for file, content in files_of(harness.work).items() if file not in self.files}
        for file, kind in self._cases(kinds, bits):
            code = harness.child(act)
            left = {other: content for other, content in files_of(harness.work).items() if other not in self.files}
            yield self._judged(name, file, kind, code, difference(fresh, left) if code == 0 else None)

    def _cases(self, kinds: tuple[str, ...], bits: int) -> Iterator[tuple[str, str]]:
        for file in self.files:
            for kind in [one for one in kinds for _ in range(bits if one == "bit" else 1)]:
                self._put_back()
                path = self._harness.work / file
                if file == "pool.jsonl" or not path.stat().st_size:
                    continue
                damage(path, kind, self._dice)
                yield file, kind

    def _put_back(self) -> None:
        self._harness.clear()
        shutil.copytree(self._start, self._harness.work)

    def _judged(self, command: str, file: str, kind: str, code: int, wrong: str | None) -> Fault:
        said, name = self._harness.said, Path(file).name
        # Rows of numbers are told by their array, a student and a checkpoint by their folder.
        told_by = (name, f"/{name.split('.')[0]}.npy", f"{Path(file).parent}'", f"{Path(file).parent} is damaged")
        named = any(known in said for known in told_by)
        if code in (2, 3, 6) and named:
            outcome = REFUSED
        elif code == 0 and wrong is None:
            outcome = MENDED if named else UNTOUCHED
        else:
            outcome = SILENT
        record = "" if outcome != SILENT else f"exit code {code}, {wrong or 'not named'}: {said[-300:]}"
        return Fault(command, kind, file, outcome, record)
