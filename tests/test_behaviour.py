"""What users see stays as it is while modules move: fingerprints of small runs and of the command line.

Nothing here imports nncift: every run goes through `python -m nncift`, in this process, so that the net holds whatever the
modules are called. Beside this file, `behaviour.json` has for each run

- `subset`, `choice`: SHA-256 of the bytes of `subset.jsonl`, and of id, rank, selected and reason of `selection.parquet`, the
  reasons without their figures; and `selected`, the ids by rank, to see what differs;
- `numbers`: score and gain of the selected rows by rank, and the figures of their reasons, compared within TOLERANCE;
- the exit code, the columns of `selection.parquet`, and all keys of the files and of `--json`, at every level.

The options of every command are in there, too. Where a change is on purpose, write the file again with

    NNCIFT_REWRITE=1 python -m pytest tests/test_behaviour.py

and commit it together with the reason: a change of bytes or of keys is one that users of finished runs and of `--json` meet.
Look at the difference first. An option or a key that goes, goes only on purpose.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.tolerances import close

FILE = Path(__file__).with_name("behaviour.json")
REWRITE = os.environ.get("NNCIFT_REWRITE") == "1"
FILES = ("summary.json", "fidelity.json", "ledger.json", "manifest.yaml")
BASE = ("--encoder", "hash", "--device", "cpu", "--json")
DELIFT = ("--teacher", "delift", "--features", "text", "--budget", "20%")
# Budgets are small so that what decides between rows lies far above rounding; the names of files are those of `Nncift.folder`.
RUNS: dict[str, tuple[str, ...]] = {
    "pair-teacher": (*DELIFT, "--labels", "10%"),
    "row-teacher": (
        "--teacher",
        "less",
        "--features",
        "text",
        "--budget",
        "20%",
        "--labels",
        "40%",
        "--option",
        "projection=32",
        "--option",
        "rank=2",
        "--option",
        "epochs=2",
    ),
    "probe-active": (
        "--teacher",
        "delift",
        "--features",
        "probe",
        "--plan",
        "active",
        "--budget",
        "20%",
        "--labels",
        "30%",
    ),
    "target-set": (*DELIFT, "--labels", "20%", "--target", "target.jsonl"),
    "existing-set": (*DELIFT, "--labels", "20%", "--existing", "existing.jsonl", "--quota", "kind:max=60%"),
    "neighbour-graph": (*DELIFT, "--labels", "10%", "--neighbours", "32", "--dedup", "near:0.95"),
}
# Of the finished run with a pair teacher: `{run}`.
AFTER: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", "pool.jsonl"),
    "explain": ("explain", "{run}", "--id", "row-0003"),
    "evaluate": ("evaluate", "{run}"),
    "compare": ("compare", "{run}", "{run}"),
    "export": ("export", "{run}", "--out", "exported.jsonl"),
    "score": ("score", "existing.jsonl", "--run", "{run}", "--out", "scored.parquet"),
}
# Labels pass a model and a network is fitted to them, in many steps that each pass rounding on: the last figures are those of the
# machine. Under the kernels of make test-portable scores and gains lay within 1.3e-4 of the largest of their list, and a figure
# in a reason is rounded to four digits, which alone may be 5e-4 of it.
TOLERANCE = 1e-3
FIGURE = re.compile(r"-?\d+(?:\.\d+)?e[-+]?\d+|-?\d+\.\d+")
SERVED = re.compile(r"(?<=serves )\d+(?= of \d+ targets)")
REFITTED = re.compile(r"(?<=selected in )\d+(?= of \d+ refits)")


@dataclass(frozen=True)
class Done:
    """A command that ended: its exit code and what it wrote to standard output."""

    code: int
    out: str


class Nncift:
    """The command line, over files of its own in `folder`; a run is done once."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.done: dict[str, Done] = {}

    def __call__(self, *arguments: str) -> Done:
        """Run `python -m nncift` with these arguments, in this process."""
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.chdir(self.folder)
            patch.setenv("NNCIFT_CACHE", str(self.folder / "cache"))
            patch.setattr(sys, "argv", ["nncift", *arguments])
            with pytest.raises(SystemExit) as caught:
                runpy.run_module("nncift", run_name="__main__")
        assert isinstance(caught.value.code, int)
        return Done(caught.value.code, out.getvalue())

    def select(self, name: str, out: str, *more: str) -> Done:
        """Run `nncift run` with the settings of one of RUNS."""
        return self("run", "pool.jsonl", "--model", str(self.model), *BASE, *RUNS[name], "--out", out, *more)

    def run(self, name: str) -> Done:
        """Return one of RUNS, whose directory is `folder / name`."""
        if name not in self.done:
            self.done[name] = self.select(name, name)
        return self.done[name]


@pytest.fixture(scope="module")
def nncift(
    tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, make_row: Callable[[int], dict[str, str]]
) -> Nncift:
    """Return the command line beside a pool, a target set and an existing set."""
    folder = tmp_path_factory.mktemp("behaviour")
    for name, numbers in (("pool", range(60)), ("target", range(100, 130)), ("existing", range(200, 210))):
        rows = [make_row(number) | {"kind": "even" if number % 2 == 0 else "odd"} for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Nncift(folder, llama_folder)


def keys(*values: Any) -> dict[str, Any] | None:
    """Return the sorted keys of every object inside these values, taken together; None inside whatever has none.

    Keys whose values have the same keys inside share an entry; what lists hold is taken together under `[]`.
    """
    objects = [value for value in values if isinstance(value, dict)]
    listed = [inner for value in values if isinstance(value, list) for inner in value]
    inside = {key: keys(*(o[key] for o in objects if key in o)) for key in {key for o in objects for key in o}}
    inside["[]"] = keys(*listed) if listed else None
    if inside["[]"] is None:
        del inside["[]"]
    shared: dict[str, list[str]] = {}
    for key in sorted(inside):
        shared.setdefault(json.dumps(inside[key]), []).append(key)
    return {", ".join(names): json.loads(content) for content, names in shared.items()} or None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def selection(folder: Path) -> dict[str, Any]:
    """Return the fingerprints and the numbers of a selection."""
    table = pq.read_table(folder / "selection.parquet")
    rows = table.to_pylist()
    chosen = sorted((row for row in rows if row["selected"]), key=lambda row: int(row["rank"]))
    # In how many refits a row is selected is a figure of the machine, too, and a whole number.
    wording = [REFITTED.sub("#", SERVED.sub("#", FIGURE.sub("#", row["reason"]))) for row in rows]
    choice = [[row["id"], row["rank"], row["selected"], reason] for row, reason in zip(rows, wording, strict=True)]
    reasons = " ".join(row["reason"] for row in chosen)
    return {
        "subset": sha256((folder / "subset.jsonl").read_bytes()),
        "choice": sha256(json.dumps(choice).encode()),
        "columns": ", ".join(table.column_names),
        "selected": " ".join(row["id"] for row in chosen),
        "numbers": {
            "score": [figures(row["score"]) for row in chosen],
            "gain": [figures(row["gain"]) for row in chosen],
            "in reasons": [float(figure) for figure in FIGURE.findall(reasons)],
            "targets served": [int(count) for count in SERVED.findall(reasons)],
        },
    }


def figures(value: float | None) -> float | None:
    """Return a number to six significant figures."""
    return None if value is None else float(f"{value:.6g}")


def left(done: Done, folder: Path) -> dict[str, Any]:
    """Return the exit code of a run, and the keys that it printed and wrote; `--json` prints what summary.json has, or others."""
    found = {name: yaml.safe_load((folder / name).read_text("utf-8")) for name in FILES if (folder / name).exists()}
    inside: dict[str, Any] = {name: keys(content) for name, content in found.items()}
    printed = keys(json.loads(done.out))
    same = printed == inside.get("summary.json")
    return {"code": done.code, "keys": inside, "keys of --json": "those of summary.json" if same else printed}


def recorded(kind: str, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file says of this one; or write there what was found, where that is asked for."""
    whole: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if REWRITE:
        whole.setdefault(kind, {})[name] = dict(found)
        lines = json.dumps(whole, indent=1, sort_keys=True)
        # Numbers of one list share a line.
        lines = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda list_: f"[{' '.join(list_[1].split())}]", lines)
        FILE.write_text(lines + "\n", encoding="utf-8")
        pytest.skip("written to behaviour.json")
    expected: dict[str, Any] = whole[kind][name]
    return expected


def check_numbers(found: Mapping[str, list[float]], expected: Mapping[str, list[float]]) -> None:
    """Hold lists of numbers to those recorded, within a share of the largest; counts may differ by a target on the edge."""
    assert found.keys() == expected.keys()
    for name in expected:
        share = 1 / max(expected[name], default=1) if name == "targets served" else TOLERANCE
        assert close(found[name], expected[name], share), (name, found[name], expected[name])


def check(kind: str, name: str, found: dict[str, Any]) -> None:
    """Hold one record to the file: numbers within the tolerance, all else exactly."""
    expected = recorded(kind, name, found)
    check_numbers(found.pop("numbers", {}), expected.pop("numbers", {}))
    assert found == expected


@pytest.mark.parametrize("name", RUNS)
def test_a_run_selects_the_same_rows_and_writes_the_same_keys(nncift: Nncift, name: str) -> None:
    done = nncift.run(name)
    folder = nncift.folder / name
    check("runs", name, left(done, folder) | selection(folder))


def test_select_chooses_again_from_a_finished_run(nncift: Nncift) -> None:
    nncift.run("pair-teacher")
    rules = ("--budget", "8", "--objective", "topk", "--quota", "kind:max=50%")
    done = nncift("select", "pair-teacher", *rules, "--out", "again", "--json")
    folder = nncift.folder / "again"
    check("runs", "select", left(done, folder) | selection(folder))


def test_two_shards_and_their_join_are_the_plain_run(nncift: Nncift) -> None:
    plain, folder = nncift.folder / "pair-teacher", nncift.folder / "joined"
    nncift.run("pair-teacher")
    shards = [nncift.select("pair-teacher", "joined", "--shard", shard) for shard in ("1/2", "2/2")]
    done = nncift.select("pair-teacher", "joined")
    parts = [{"code": part.code, "keys of --json": keys(json.loads(part.out))} for part in shards]
    check("runs", "shards", {"shards": parts, "join": left(done, folder)})
    assert (folder / "subset.jsonl").read_bytes() == (plain / "subset.jsonl").read_bytes()
    assert pq.read_table(folder / "selection.parquet").equals(pq.read_table(plain / "selection.parquet"))


@pytest.mark.parametrize("name", AFTER)
def test_what_other_commands_tell_has_the_same_keys(nncift: Nncift, name: str) -> None:
    nncift.run("pair-teacher")
    done = nncift(*(argument.format(run="pair-teacher") for argument in AFTER[name]), "--json")
    check("commands", name, {"code": done.code, "keys of --json": keys(json.loads(done.out))})


def test_no_command_and_no_option_is_lost(nncift: Nncift) -> None:
    commands = re.findall(r"^  (\w+)  ", nncift("--help").out.partition("Commands:")[2], re.MULTILINE)
    check("help", "options", {command: usage(nncift(command, "--help-all").out) for command in sorted(commands)})


def usage(text: str) -> dict[str, Any]:
    """Return the arguments of a command and the sorted names of its options, out of its help."""
    (arguments,) = re.findall(r"\[OPTIONS\] ?(.*)", text)
    columns = re.findall(r"^  (-.*?)(?:  |$)", text, re.MULTILINE)
    names = {name for column in columns for name in re.findall(r"(?<!\S)--?[A-Za-z][\w-]*", column)}
    return {"arguments": arguments, "options": sorted(names)}
