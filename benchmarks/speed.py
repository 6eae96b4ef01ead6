"""Speed, side by side in one run: `make trainer`, or `python benchmarks/speed.py [--only PART] [--json] [--write]`.

Parts: pairs, fl, turns, sparse, teachers, costs, and only on request real (a real model: `--only real --data FILE`).
Plain versions are written here as anyone would write them first; the peers come from
the registry into an environment of their own. Medians of several repeats; ratios are within one run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pair_scoring
import peers
import plots
import real_speed
import sparse
import teachers

from nncift.core.threads import wait_passively

REPEATS = 5
COSTS = "speed-rows.svg"
RESULTS = Path(__file__).parents[1] / "docs" / "results"
NOTE = (
    "Written by `python benchmarks/speed.py --write`; `make bench` measures all of it, and the teachers, which have\n"
    "[a page of their own](teachers.md). Medians of several repeats; ratios are within one run."
)
TITLES = {
    "pairs": "All pairs of two sets",
    "fl": "Facility location on a dense matrix, 30 % selected",
    "turns": "Rows in turn for each target, 10 % selected",
    "sparse": "Facility location on a neighbour graph, 10 % selected",
    "real": "Teachers on a real model",
}


def facility_location(sizes: tuple[int, ...], with_peers: bool) -> dict[str, Any]:
    """Select 30 % of clustered points by facility location on their cosines; the peers get the same matrix."""
    from nncift.core.pairs import UtilityMatrix
    from nncift.selection import pose, select

    found: dict[str, Any] = {}
    for size in sizes:
        random = np.random.default_rng(0)
        centres = random.normal(size=(50, 64))
        points = centres[random.integers(50, size=size)] + 0.5 * random.normal(size=(size, 64))
        points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
        ids = tuple(f"{index:06d}" for index in range(size))
        # Not negative, since the peers take similarities as they are.
        similarity = np.maximum(points @ points.T, 0)
        matrix = UtilityMatrix(ids, ids, similarity.T)
        k, repeats = int(0.3 * size), 3 if size <= 5000 else 1
        select(UtilityMatrix(ids[:50], ids[:50], np.asfortranarray(similarity[:50, :50])), 5)
        times, processor = [], []
        for _ in range(repeats):
            began, spent = time.perf_counter(), time.process_time()
            subset = select(matrix, k)
            times.append(time.perf_counter() - began)
            processor.append(time.process_time() - spent)
        record: dict[str, Any] = {
            "seconds_with_reasons": statistics.median(times),
            # Over all threads: what other work on the machine does not change much.
            "processor_seconds": statistics.median(processor),
            "share_of_optimum": subset.share_of_optimum,
        }
        if with_peers and size <= 5000:
            problem = pose(matrix)
            for library in peers.PEERS:
                other = peers.choose(library, similarity, k)
                record[f"{library}_seconds"] = None if other is None else other["seconds"]
                if other is not None:
                    theirs = problem.value([ids[place] for place in other["places"]])
                    record[f"times_faster_than_{library}"] = other["seconds"] / record["seconds_with_reasons"]
                    record[f"value_over_that_of_{library}"] = subset.value / theirs
        found[f"{size}_rows"] = record
    return found


def in_turns(targets: int = 5000, sources: int = 15_000) -> dict[str, Any]:
    """Select 10 % of the sources in turn for each target (`rr`), by random utilities."""
    from nncift.core.pairs import UtilityMatrix
    from nncift.selection import select

    values = np.random.default_rng(0).standard_normal((sources, targets), dtype=np.float32).T
    target_ids, source_ids = (
        tuple(f"{axis}{place:05d}" for place in range(size)) for axis, size in (("t", targets), ("s", sources))
    )
    matrix = UtilityMatrix(target_ids, source_ids, values)
    few = UtilityMatrix(matrix.target_ids[:50], matrix.source_ids[:50], np.asfortranarray(values[:50, :50]))
    select(few, 5, "rr")
    times, processor = [], []
    for _ in range(REPEATS):
        began, spent = time.perf_counter(), time.process_time()
        subset = select(matrix, sources // 10, "rr")
        times.append(time.perf_counter() - began)
        processor.append(time.process_time() - spent)
    return {
        "targets": targets,
        "sources": sources,
        "selected": len(subset.ids),
        "seconds_with_reasons": statistics.median(times),
        "processor_seconds": statistics.median(processor),
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {name: metadata.version(name) for name in ("numpy", "numba", "torch")}
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    load = f"{os.getloadavg()[0]:.1f}"
    return {
        "platform": platform.platform(terse=True),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "load_at_start": load,
        "date": time.strftime("%Y-%m-%d"),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def show(values: dict[str, Any], depth: int) -> None:
    """Print nested figures."""
    for key, value in values.items():
        if isinstance(value, dict):
            print(f"{'  ' * depth}{key}")
            show(value, depth + 1)
        else:
            print(f"{'  ' * depth}{key.replace('_', ' ')}: {figure(value)}")


def figure(value: Any) -> str:
    """Return a figure as text."""
    if value is None:
        return f"none in {peers.LIMIT_S} s"
    return str(value) if isinstance(value, str | int) else f"{value:,.4g}"


def write(record: dict[str, Any]) -> None:
    """Put the measured parts in the place of the earlier ones in speed.json, and write speed.md anew from all of them."""
    path = RESULTS / "speed.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in TITLES:
        if part in record:
            # The neighbour graph is measured size by size.
            before = known.get(part, {}).get("figures", {}) if part == "sparse" else {}
            figures: dict[str, Any] = {**before, **record[part]}
            if part == "sparse":
                figures = dict(sorted(figures.items(), key=lambda item: item[1]["rows"] if "_rows" in item[0] else 0))
                (RESULTS / COSTS).write_text(plots.cost_against_rows(figures), encoding="utf-8")
            known[part] = {"machine": record["machine"], "figures": figures}
    path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    lines = ["# Speed", "", NOTE, ""]
    for part, title in TITLES.items():
        if part in known:
            facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in known[part]["machine"].items())
            figures = known[part]["figures"]
            command = real_speed.command(figures) if part == "real" else f"python benchmarks/speed.py --only {part}"
            lines += [f"## {title}", "", f"`{command}` on: {facts}.", ""]
            lines += [*(real_speed.page(figures) if part == "real" else _table(figures)), ""]
            if part == "sparse" and (RESULTS / COSTS).exists():
                lines += [f"![Seconds and memory against the number of rows]({COSTS})", ""]
    (RESULTS / "speed.md").write_text("\n".join(lines), encoding="utf-8")


def _table(figures: dict[str, Any]) -> list[str]:
    """Return a table of figures: one column, or one for each of several sizes."""
    groups = {name: values for name, values in figures.items() if isinstance(values, dict)}
    if not groups:
        return [
            "| | |",
            "|---|---:|",
            *(f"| {name.replace('_', ' ')} | {figure(value)} |" for name, value in figures.items()),
        ]
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    head = [name.replace("_", " ") for name in groups]
    lines = [f"| | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    for name in names:
        cells = [figure(values[name]) if name in values else "" for values in groups.values()]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run the chosen comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["pairs", "fl", "turns", "sparse", "teachers", "costs", "real"])
    parser.add_argument("--model", help="a small local model; that of the demo, or smollm2, if none is given")
    parser.add_argument("--data", help="rows for the teachers; those of the demo where none are given")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the teachers' comparisons")
    parser.add_argument("--sizes", help="rows, with commas between; for fl and sparse")
    parser.add_argument("--rows", type=int, default=16, help="real: rows of --data")
    parser.add_argument("--repeats", type=int, default=3, help="real: turns, behind one that is not counted")
    parser.add_argument("--bergson", help="real: the python of an environment with bergson (see peer_bergson.py)")
    parser.add_argument("--no-peers", action="store_true", help="leave out submodlib-py and apricot-select")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write docs/results/speed.md and speed.json")
    given = parser.parse_args()
    # As the command line does: threads of the C loop that wait for more would otherwise take the cores of what comes next.
    wait_passively()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sizes = tuple(int(size) for size in given.sizes.split(",")) if given.sizes else None
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "pairs": lambda: pair_scoring.compare(REPEATS),
        "fl": lambda: facility_location(sizes or (2000, 5000, 20_000), not given.no_peers),
        "turns": in_turns,
        "sparse": lambda: sparse.compare(sizes or (10_000, 100_000, 300_000, 1_000_000)),
        "teachers": lambda: teachers.compare(given.model, given.data, REPEATS, given.threads),
        "costs": lambda: teachers.costs(given.model, given.data),
    }
    record: dict[str, Any] = {"machine": machine()}
    record.update({name: part() for name, part in parts.items() if given.only in (None, name)})
    if given.only == "real":
        if given.data is None:
            parser.error("--only real needs --data FILE, instruction rows of some kind")
        for found in real_speed.compare(given.model or "smollm2", given.data, given.rows, given.repeats, given.bergson):
            record["real"] = found
            if given.write:
                write(record)
    if given.write:
        write(record)
    if given.json:
        print(json.dumps(record))
        return
    for name, values in record.items():
        print(name)
        show(values, 1)


if __name__ == "__main__":
    main()
