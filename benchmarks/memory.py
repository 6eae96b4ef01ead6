"""Memory that commands take, and whether they keep to `--max-mem`: `python benchmarks/memory.py [--rows 6000] [--million]`.

caps: `nncift run` (delift-se, hash vectors, so that no model is loaded) under several caps: peak resident memory, or the refusal.
million: reading, inspecting and embedding so many generated rows, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CAPS = ("300M", "400M", "600M", "1G", "2G")
PARTS = {
    "read": "import nncift; print(len(nncift.read({path!r})))",
    "inspect": "from nncift.data.inspection import inspect; print(inspect({path!r})['rows'])",
    "embed (hash, 256-d)": (
        "import nncift; from pathlib import Path;"
        "from nncift.embeddings import EmbeddingCache; from nncift.encode import HashEncoder;"
        "rows = nncift.read({path!r});"
        "print(len(EmbeddingCache(HashEncoder(), Path({cache!r})).embed([row.text for row in rows]).vectors))"
    ),
}


def generate(path: Path, rows: int, seed: int = 0) -> None:
    """Write rows of about 410 bytes."""
    draw = random.Random(seed)
    words = [f"word{index}" for index in range(5000)]
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(rows):
            prompt, answer = (" ".join(draw.choices(words, k=count)) for count in (12, 30))
            stream.write(json.dumps({"instruction": prompt, "output": answer}) + "\n")


def peak(command: list[str]) -> tuple[int, float, str]:
    """Run a command; return its exit code, its own peak resident memory in MB, and the last line that it said."""
    watched = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True);"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss;"
        "print(done.returncode, peak, (done.stderr.strip() or '-').splitlines()[-1])"
    )
    told = subprocess.run([sys.executable, "-c", watched, *command], capture_output=True, text=True, check=True).stdout
    code, kilobytes, said = told.strip().split(" ", 2)
    return int(code), int(kilobytes) * 1024 / 1e6, said


def caps(rows: int, folder: Path) -> list[dict[str, Any]]:
    """Run under every cap."""
    generate(folder / "pool.jsonl", rows)
    found = []
    for cap in (None, *CAPS):
        out = folder / f"run-{cap}"
        command = [
            sys.executable, "-m", "nncift", "run", str(folder / "pool.jsonl"), "--teacher", "delift-se", "--encoder", "hash",
            "--labels", "2%", "--budget", "10%", "--quiet", "--out", str(out),
        ]  # fmt: skip
        code, mb, said = peak([*command, *([] if cap is None else ["--max-mem", cap])])
        found.append({"cap": cap, "exit_code": code, "peak_mb": round(mb), "said": said if code else ""})
    return found


def million(rows: int, folder: Path) -> list[dict[str, Any]]:
    """Read, inspect and embed."""
    path = folder / "many.jsonl"
    generate(path, rows)
    size = path.stat().st_size / 1e6
    found = []
    for name, code in PARTS.items():
        text = code.format(path=str(path), cache=str(folder / "cache"))
        exit_code, mb, said = peak([sys.executable, "-c", text])
        found.append({
            "part": name, "rows": rows, "file_mb": round(size), "exit_code": exit_code, "peak_mb": round(mb),
            "said": said if exit_code else "",
        })  # fmt: skip
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--million", type=int, nargs="?", const=1_000_000, help="rows to read, inspect and embed")
    parser.add_argument("--json", action="store_true")
    wish = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        told = caps(wish.rows, Path(name)) if wish.million is None else million(wish.million, Path(name))
    if wish.json:
        print(json.dumps(told))
        return
    for one in told:
        print("  ".join(f"{key} {value}" for key, value in one.items()))


if __name__ == "__main__":
    main()
