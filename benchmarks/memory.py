"""Memory that commands take, and whether they keep to `--max-mem`: `python benchmarks/memory.py [--only PART] [--write]`.

caps: run, score, select, evaluate, inspect and (with --model) tune, each in a process of its own under several caps: its peak
resident memory over the cap, or the refusal. Vectors are hashed and the teacher is delift-se, so that only tune loads a model.
million: reading, inspecting and embedding so many generated rows, and a run up to its vectors.
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
from pathlib import Path
from typing import Any

CAPS = ("300M", "400M", "600M", "1G", "2G")
RESULTS = Path(__file__).parents[1] / "docs" / "results"
TOO_MUCH = 1.1
PARTS = {
    "read": "import nncift; print(len(nncift.read({path!r})))",
    "inspect": "from nncift.data.inspection import inspect; print(inspect({path!r})['rows'])",
    "read and embed (hash, 256 numbers) into a file": (
        "import nncift; from pathlib import Path;"
        "from nncift.embeddings import EmbeddingCache; from nncift.encode import HashEncoder;"
        "rows = nncift.read({path!r}); folder = Path({cache!r});"
        "print(EmbeddingCache(HashEncoder(), folder).embed(rows.texts, into=folder / 'vectors.npy').vectors.shape)"
    ),
    "a run up to its vectors": (
        "from nncift import config; from nncift.pipeline import read_pool; from nncift.rundir import RunDir;"
        "from nncift.stages import Work, embed_rows, usable_rows; from nncift.teachers import registry;"
        "settings = config.resolve({{'pool': ({path!r},), 'teacher': 'length', 'encoder': 'hash'}}); pool = read_pool(settings)\n"
        "with RunDir({cache!r} + '/run', settings) as folder:\n"
        "    work = Work(folder, settings, registry.create(settings, 'cpu', seed=0, encoder='hash', workspace=None))\n"
        "    embed_rows(work, usable_rows(work, pool)[0].rows)"
    ),
}
NOTE = """# Memory

Written by `python benchmarks/memory.py --write`. Peaks are resident memory of the process (`ru_maxrss`), the program and its
libraries included, in MB of 10^6 bytes.
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


def peak(command: list[str], cache: Path) -> tuple[int, float, str]:
    """Run a command; return its exit code, its own peak resident memory in MB, and the last line that it said."""
    watched = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True);"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss;"
        "print(done.returncode, peak, (done.stderr.strip() or '-').splitlines()[-1])"
    )
    told = subprocess.run(
        [sys.executable, "-c", watched, *command], capture_output=True, text=True, check=True,
        env={**os.environ, "NNCIFT_CACHE": str(cache)},
    ).stdout  # fmt: skip
    code, kilobytes, said = told.strip().split(" ", 2)
    return int(code), int(kilobytes) * 1024 / 1e6, said


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
        lesson = [
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
        found["tune"] = (["tune", done, *lesson, *arms], [folder / "d"])
    return found


def caps(rows: int, folder: Path, model: str | None, only: str | None = None) -> list[dict[str, Any]]:
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
            code, mb, said = peak([*program, *line, "--quiet", *held], folder / "cache")
            stages = _stages(left[0]) if name.startswith("run") and not code else {}
            found.append({
                "command": name, "rows": rows, "cap": cap, "exit_code": code, "peak_mb": round(mb),
                "peak_over_cap": None if cap is None else round(mb * 1e6 / _bytes(cap), 3), "stages": stages,
                "said": said if code else "",
            })  # fmt: skip
            print(name, cap, code, round(mb), file=sys.stderr, flush=True)
    return found


def _stages(run: Path) -> dict[str, int]:
    costs = json.loads((run / "costs.json").read_text(encoding="utf-8"))
    return {name: round(cost["peak_mb"]) for name, cost in costs.items() if isinstance(cost, dict) and cost["sessions"]}


def _bytes(cap: str) -> int:
    from nncift.memory import parse_memory

    return parse_memory(cap)


def million(rows: int, folder: Path) -> list[dict[str, Any]]:
    """Read, inspect and embed."""
    path = folder / "many.jsonl"
    generate(path, rows)
    size = path.stat().st_size / 1e6
    found: list[dict[str, Any]] = []
    for name, code in PARTS.items():
        cache = folder / f"cache-{len(found)}"
        cache.mkdir()
        text = code.format(path=str(path), cache=str(cache))
        exit_code, mb, said = peak([sys.executable, "-c", text], cache)
        found.append({
            "part": name, "rows": rows, "file_mb": round(size), "exit_code": exit_code, "peak_mb": round(mb),
            "said": said if exit_code else "",
        })  # fmt: skip
        shutil.rmtree(cache)
    return found


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "platform": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def page(known: dict[str, Any]) -> str:
    """Return the page of results."""
    lines = [NOTE]
    if "million" in known:
        lines += [
            "## Many rows\n",
            *_measured(known["million"], "million"),
            "",
            *_table_of_many(known["million"]["told"]),
            "",
        ]
    if "caps" in known:
        told = known["caps"]["told"]
        lines += [
            "## Under a cap\n",
            *_measured(known["caps"], "caps"),
            CAPS_NOTE.format(most=TOO_MUCH),
            *_table_of_caps(told),
        ]
        lines += [
            "\nWhat those say that did not finish:\n",
            *_refusals(told),
            "",
            "Peaks by stage of the runs that finished, MB:\n",
        ]
        lines += [*_table_of_stages(told), ""]
    return "\n".join(lines)


def _measured(part: dict[str, Any], name: str) -> list[str]:
    on = ", ".join(f"{key} {value}" for key, value in part["machine"].items())
    return [f"`python benchmarks/memory.py --only {name}` on: {on}."]


def _table_of_many(told: list[dict[str, Any]]) -> list[str]:
    rows = [f"| {one['part']} | {one['rows']:,} | {one['file_mb']:,} | {one['peak_mb']:,} |" for one in told]
    return ["| | rows | file, MB | peak, MB |", "|---|---:|---:|---:|", *rows]


def _table_of_caps(told: list[dict[str, Any]]) -> list[str]:
    columns = [None, *CAPS]
    lines = [
        f"| peak MB, and peak / cap ({told[0]['rows']:,} rows) | no cap | " + " | ".join(CAPS) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name in dict.fromkeys(one["command"] for one in told):
        cells = {one["cap"]: _cell(one) for one in told if one["command"] == name}
        lines.append(f"| `{name}` | " + " | ".join(cells[cap] for cap in columns) + " |")
    return lines


def _cell(one: dict[str, Any]) -> str:
    over = "" if one["cap"] is None else f" ({one['peak_over_cap']:.2f})"
    ended = {0: "", 6: "refused, "}.get(one["exit_code"], f"**ended with code {one['exit_code']}**, ")
    return f"{ended}{one['peak_mb']:,}{over}"


def _refusals(told: list[dict[str, Any]]) -> Iterator[str]:
    for one in told:
        if one["exit_code"]:
            yield f"- `{one['command']}`, {one['cap']} (exit code {one['exit_code']}): {one['said'].removeprefix('nncift: ')}"


def _table_of_stages(told: list[dict[str, Any]]) -> list[str]:
    runs = [one for one in told if one["stages"]]
    names = list(dict.fromkeys(name for one in runs for name in one["stages"]))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for one in runs:
        peaks = " | ".join(f"{one['stages'].get(name, 0):,}" for name in names)
        lines.append(f"| `{one['command']}`, {one['cap'] or 'no cap'} | {peaks} |")
    return lines


def main() -> None:
    """Measure and print, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("caps", "million"))
    parser.add_argument("--command", help="under caps, this command alone; with --write the others' figures stay")
    parser.add_argument("--rows", type=int, default=4000, help="rows of the pool under caps")
    parser.add_argument("--many", type=int, default=1_000_000, help="rows to read, inspect and embed")
    parser.add_argument("--model", help="model that tune trains; tune is left out without one")
    parser.add_argument("--write", action="store_true", help="write docs/results/memory.md and memory.json")
    parser.add_argument("--json", action="store_true")
    wish = parser.parse_args()
    told: dict[str, Any] = {}
    for part in ("caps", "million"):
        if wish.only in (None, part):
            on = machine()
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                found = (
                    caps(wish.rows, folder, wish.model, wish.command) if part == "caps" else million(wish.many, folder)
                )
            told[part] = {"machine": on, "told": found}
    if wish.write:
        path = RESULTS / "memory.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if wish.command and "caps" in known:
            others = [one for one in known["caps"]["told"] if one["command"] != wish.command]
            told["caps"] = {**known["caps"], "told": [*others, *told["caps"]["told"]]}
        known |= told
        path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "memory.md").write_text(page(known), encoding="utf-8")
    print(json.dumps(told) if wish.json else page(told))


if __name__ == "__main__":
    main()
