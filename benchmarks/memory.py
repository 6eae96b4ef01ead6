"""Memory that commands take, and whether they keep to `--max-mem`: `python benchmarks/memory.py [--only PART] [--write]`.

caps: run, score, select, evaluate, inspect and (with --model) tune, each in a process of its own under several caps: its peak
resident memory over the cap, or the refusal. Vectors are hashed and the teacher is delift-se, so that only tune loads a model.
million: reading, inspecting and embedding so many generated rows, a whole run, scoring by its student
and selecting again; a run by a teacher of pairs that selects on neighbours has fewer rows. --threads: of linear algebra.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAPS = ("300M", "400M", "600M", "1G", "2G")
STEP = 0.02
"""Seconds between two looks at a process's memory: a run resets the peak that the system keeps when a stage begins."""

WATCH = """
import resource, subprocess, sys, threading, time
from pathlib import Path

def peak(process):
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return max([0, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])

began, most = time.perf_counter(), 0
with subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
    said = []
    reader = threading.Thread(target=lambda: said.append(child.stderr.read()))
    reader.start()
    while child.poll() is None:
        most = max(most, peak(child.pid))
        time.sleep(float(sys.argv[1]))
    reader.join()
most = max(most, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(child.returncode, most, round(time.perf_counter() - began, 1), ("".join(said).strip() or "-").splitlines()[-1])
"""

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TOO_MUCH = 1.1
RUNS, GRAPH = "runs", "graph"
ROWS = "1000"
"""Rows that the run on a graph of neighbours labels, by a teacher that labels rows and gives all pairs among them."""

PARTS = {
    "read": "import nncift; print(len(nncift.read({path!r})))",
    "inspect": "from nncift.stages.inspection import inspect; print(inspect({path!r}).rows)",
    "read and embed (hash, 256 numbers) into a file": (
        "import nncift; from pathlib import Path;"
        "from nncift.models.embedding_cache import EmbeddingCache; from nncift.models.encoders import HashEncoder;"
        "rows = nncift.read({path!r}); folder = Path({cache!r});"
        "print(EmbeddingCache(HashEncoder(), folder).embed(rows.texts, into=folder / 'vectors.npy').vectors.shape)"
    ),
}
NOTE = """# Memory

Written by `python benchmarks/memory.py --write`. Peaks are resident memory of the process (`VmHWM`, looked at all the time, and
`ru_maxrss`), the program, its libraries and what it has mapped of files included, in MB of 10^6 bytes. Parts were
measured one by one (`--command`); what is said of the machine, its load above all, is of the last of them.
"""
CAPS_NOTE = """
Each command by itself under each cap, the run that it works on made without one. `peak / cap` may be {most:g}; `refused` is exit
code 6, with the stage and the bytes named as below; another code is a library that ends the process when it is refused memory.
The cap counts what a process may write to, also where it has not yet; the program's own code and mapped files come on top.
"""


def generate(path: Path, rows: int, seed: int = 0) -> None:
    """Write rows of about 410 bytes."""
    draw = random.Random(seed)
    words = [f"word{index}" for index in range(5000)]
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(rows):
            prompt, answer = (" ".join(draw.choices(words, k=count)) for count in (12, 30))
            stream.write(json.dumps({"instruction": prompt, "output": answer}) + "\n")


@dataclass(frozen=True)
class Watched:
    """How a command ended: its exit code, its own peak resident memory in MB, its seconds, and the last line that it said."""

    code: int
    mb: float
    seconds: float
    said: str


def peak(command: list[str], cache: Path, threads: int = 1) -> Watched:
    """Run a command with so many threads of linear algebra and watch it."""
    record = subprocess.run(
        [sys.executable, "-c", WATCH, str(STEP), *command],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "NNCIFT_CACHE": str(cache),
            "OMP_NUM_THREADS": str(threads),
            "NUMBA_NUM_THREADS": str(threads),
        },
    ).stdout
    code, kilobytes, seconds, said = record.strip().split(" ", 3)
    return Watched(int(code), int(kilobytes) * 1024 / 1e6, float(seconds), said)


def commands(folder: Path, model: str | None) -> dict[str, tuple[list[str], list[Path]]]:
    """Return the arguments of every command, and what it leaves that must go before it is measured again."""
    pool, done = str(folder / "pool.jsonl"), str(folder / "done")
    run = ["run", pool, "--teacher", "delift-se", "--encoder", "hash", "--labels", "2%", "--budget", "10%", "--out"]
    found = {
        "run": ([*run, str(folder / "a")], [folder / "a"]),
        "run --neighbours 64": ([*run, str(folder / "b"), "--neighbours", "64"], [folder / "b"]),
        "score": (["score", pool, "--run", done, "--out", str(folder / "scores.parquet")], []),
        "select": (["select", done, "--budget", "5%", "--out", str(folder / "c")], [folder / "c"]),
        "evaluate": (["evaluate", done], []),
        "inspect": (["inspect", pool], []),
    }
    if model is not None:
        training_data = [
            "--model",
            model,
            "--test",
            str(folder / "test.jsonl"),
            "--limit-test",
            "40",
            "--steps",
            "8",
            "--seeds",
            "1",
        ]
        arms = ["--arms", "selected,random,none", "--metrics", "loss", "--out", str(folder / "d")]
        found["tune"] = (["tune", done, *training_data, *arms], [folder / "d"])
    return found


def caps(rows: int, folder: Path, model: str | None, only: str | None = None, threads: int = 1) -> list[dict[str, Any]]:
    """Run everything, or one command, under every cap."""
    generate(folder / "pool.jsonl", rows)
    generate(folder / "test.jsonl", 100, seed=1)
    program = [sys.executable, "-m", "nncift"]
    every = commands(folder, model)
    # With neighbours, so that selecting again under a cap is judged by its own need.
    subprocess.run([*program, *every["run"][0][:-1], str(folder / "done"), "--quiet"], check=True, capture_output=True)
    found = []
    for name, (line, left) in every.items():
        if only not in (None, name):
            continue
        for cap in (None, *CAPS):
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            held = [] if cap is None else ["--max-mem", cap]
            seen = peak([*program, *line, "--quiet", *held], folder / "cache", threads)
            stages = _stages(left[0]) if name.startswith("run") and not seen.code else {}
            found.append(
                {
                    "command": name,
                    "rows": rows,
                    "cap": cap,
                    "exit_code": seen.code,
                    "peak_mb": round(seen.mb),
                    "peak_over_cap": None if cap is None else round(seen.mb * 1e6 / _bytes(cap), 3),
                    "stages": stages,
                    "said": seen.said if seen.code else "",
                }
            )
            print(name, cap, seen.code, round(seen.mb), file=sys.stderr, flush=True)
    return found


def _stages(run: Path) -> dict[str, int]:
    costs = json.loads((run / "costs.json").read_text(encoding="utf-8"))
    return {name: round(cost["peak_mb"]) for name, cost in costs.items() if isinstance(cost, dict) and cost["sessions"]}


def _bytes(cap: str) -> int:
    from nncift.core.memory import parse_memory

    return parse_memory(cap)


def million(rows: int, pairs: int, folder: Path, only: str | None = None, threads: int = 1) -> list[dict[str, Any]]:
    """Read, inspect and embed; run, score and select again. pairs: rows of the run by a pair teacher; only: see --command."""
    many, fewer = folder / "many.jsonl", folder / "fewer.jsonl"
    generate(many, rows)
    found: list[dict[str, Any]] = []

    def watch(name: str, command: list[str], path: Path, count: int, run: Path | None = None) -> None:
        seen = peak([sys.executable, *command], folder / "cache", threads)
        found.append(
            {
                "part": name,
                "rows": count,
                "file_mb": round(path.stat().st_size / 1e6),
                "exit_code": seen.code,
                "peak_mb": round(seen.mb),
                "seconds": seen.seconds,
                "said": seen.said if seen.code else "",
                "stages": {} if run is None or seen.code else _stages(run),
            }
        )
        print(name, seen, file=sys.stderr, flush=True)

    for name, code in PARTS.items():
        if only in (None, name):
            (folder / "cache").mkdir()
            watch(name, ["-c", code.format(path=str(many), cache=str(folder / "cache"))], many, rows)
            shutil.rmtree(folder / "cache")
    whole, graph = folder / "whole", folder / "graph"
    start, common = ["-m", "nncift", "run"], ["--encoder", "hash", "--budget", "1%", "--quiet", "--out"]
    if only in (None, RUNS):
        by_length = [*start, str(many), "--teacher", "length", *common, str(whole)]
        watch("`run --teacher length`", by_length, many, rows, whole)
        scores = ["--run", str(whole), "--out", str(folder / "scores.parquet"), "--quiet"]
        watch("`score` by that run's student", ["-m", "nncift", "score", str(many), *scores], many, rows)
        watch(
            "`select` again on that run",
            ["-m", "nncift", "select", str(whole), "--budget", "2%", "--quiet"],
            many,
            rows,
        )
    if only in (None, GRAPH):
        generate(fewer, pairs)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        near = ["--teacher", "delift-se", "--labels", ROWS, "--neighbours", "64"]
        watch(
            "`run --teacher delift-se --neighbours 64`",
            [*start, str(fewer), *near, *common, str(graph)],
            fewer,
            pairs,
            graph,
        )
    return found


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.date.today().isoformat(),
    }


def page(known: dict[str, Any]) -> str:
    """Return the page of results."""
    lines = [NOTE]
    if "million" in known:
        lines += [
            "## Many rows\n",
            *_measured(known["million"], "million"),
            "",
            *_table_of_many(known["million"]["figures"]),
            "",
            "Peaks by stage of the runs, MB; the report is written after these:\n",
            *_table_of_stages(known["million"]["figures"]),
            "",
        ]
    for name, title in (("caps", "Under a cap"), ("caps-2", "Under a cap, with two threads of linear algebra")):
        if name not in known:
            continue
        record = known[name]["figures"]
        lines += [
            f"## {title}\n",
            *_measured(known[name], "caps" if name == "caps" else "caps --threads 2"),
            *([CAPS_NOTE.format(most=TOO_MUCH)] if name == "caps" else [""]),
            *_table_of_caps(record),
        ]
        lines += [
            "\nWhat those say that did not finish:\n",
            *_refusals(record),
            "",
            "Peaks by stage of the runs that finished, MB:\n",
        ]
        lines += [*_table_of_stages(record), ""]
    return "\n".join(lines)


def _measured(part: dict[str, Any], name: str) -> list[str]:
    on = ", ".join(f"{key} {value}" for key, value in part["machine"].items())
    return [f"`python benchmarks/memory.py --only {name}` on: {on}."]


def _table_of_many(record: list[dict[str, Any]]) -> list[str]:
    rows = [
        f"| {one['part']} | {one['rows']:,} | {one['file_mb']:,} | {_cell({'cap': None, **one})} | {one.get('seconds', 0):,.0f} |"
        for one in record
    ]
    return ["| | rows | file, MB | peak, MB | seconds |", "|---|---:|---:|---:|---:|", *rows]


def _table_of_caps(record: list[dict[str, Any]]) -> list[str]:
    columns = [None, *CAPS]
    lines = [
        f"| peak MB, and peak / cap ({record[0]['rows']:,} rows) | no cap | " + " | ".join(CAPS) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name in dict.fromkeys(one["command"] for one in record):
        cells = {one["cap"]: _cell(one) for one in record if one["command"] == name}
        lines.append(f"| `{name}` | " + " | ".join(cells[cap] for cap in columns) + " |")
    return lines


def _cell(one: dict[str, Any]) -> str:
    over = "" if one["cap"] is None else f" ({one['peak_over_cap']:.2f})"
    ended = {0: "", 6: "refused, "}.get(one["exit_code"], f"**ended with code {one['exit_code']}**, ")
    return f"{ended}{one['peak_mb']:,}{over}"


def _refusals(record: list[dict[str, Any]]) -> Iterator[str]:
    for one in record:
        if one["exit_code"]:
            yield f"- `{one['command']}`, {one['cap']} (exit code {one['exit_code']}): {one['said'].removeprefix('nncift: ')}"


def _table_of_stages(record: list[dict[str, Any]]) -> list[str]:
    runs = [one for one in record if one.get("stages")]
    names = list(dict.fromkeys(name for one in runs for name in one["stages"]))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for one in runs:
        peaks = " | ".join(f"{one['stages'].get(name, 0):,}" for name in names)
        title = one["part"] if "part" in one else f"`{one['command']}`, {one['cap'] or 'no cap'}"
        lines.append(f"| {title} | {peaks} |")
    return lines


def main() -> None:
    """Measure and print, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("caps", "million"))
    parser.add_argument(
        "--command",
        help=f"this command, or of a million rows {RUNS}, {GRAPH} or a part, alone; with --write others stay",
    )
    parser.add_argument("--rows", type=int, default=4000, help="rows of the pool under caps")
    parser.add_argument("--many", type=int, default=1_000_000, help="rows to read, inspect, embed and select from")
    parser.add_argument("--pairs", type=int, default=200_000, help="rows of the run by a pair teacher on neighbours")
    parser.add_argument("--threads", type=int, default=1, help="threads of linear algebra; 2 has a table of its own")
    parser.add_argument("--model", help="model that tune trains; tune is left out without one")
    parser.add_argument("--write", action="store_true", help="write docs/results/memory.md and memory.json")
    parser.add_argument("--json", action="store_true")
    case = parser.parse_args()
    record: dict[str, Any] = {}
    for part in ("caps", "million"):
        if case.only in (None, part):
            on = machine()
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                found = (
                    caps(case.rows, folder, case.model, case.command, case.threads)
                    if part == "caps"
                    else million(case.many, case.pairs, folder, case.command, case.threads)
                )
            record[part if case.threads == 1 else f"{part}-{case.threads}"] = {"machine": on, "figures": found}
    if case.write:
        path = RESULTS / "memory.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if case.command:
            for part in record.keys() & known.keys():
                fresh = {one.get("command", one.get("part")) for one in record[part]["figures"]}
                others = [one for one in known[part]["figures"] if one.get("command", one.get("part")) not in fresh]
                record[part] |= {"figures": [*others, *record[part]["figures"]]}
        known |= record
        path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "memory.md").write_text(page(known), encoding="utf-8")
    print(json.dumps(record) if case.json else page(record))


if __name__ == "__main__":
    main()
