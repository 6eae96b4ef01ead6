"""How well DELIFT, its student and what is free find bad rows: `python benchmarks/detection.py [--rows 400] [--json]`.

On the demo world, rows with corrupted answers and rows that repeat others; with `--model` and `--data`, real rows a share
of whose responses were exchanged among each other. The full teacher's matrix is computed once and kept in `--cache`. One seed
decides world, exchange, plan and training; intervals are over rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator
from pathlib import Path

from nncift.core.seeds import shuffled
from nncift.data import Examples, read
from nncift.demo import model_path
from nncift.demo.world import make_world, read_truth
from nncift.models.causal_lm import CausalLM
from nncift.pipeline import run
from nncift.runs.bad_rows import Found, bad_data
from nncift.runs.planting import swapped
from nncift.runs.true_matrix import true_matrix
from nncift.storage.atomic import cache_folder
from nncift.teachers.delift import Delift


def measure(
    pool: Examples, bads: dict[str, Collection[str]], model: Path, folder: Path, case: argparse.Namespace
) -> Iterator[tuple[str, Found]]:
    """Yield what was found of each kind of bad row."""
    lm = CausalLM.load(model, device="cpu")
    teacher = Delift(lm)
    done = run(
        pool,
        teacher=teacher,
        encoder=case.encoder,
        labels=case.labels,
        features=case.features,
        plan=case.plan,
        budget="10%",
        seed=case.seed,
        device="cpu",
        out=folder / f"run-{case.labels}-{case.features}-{case.plan}-{case.encoder}",
    )
    matrix = true_matrix(teacher, pool, folder / "truth")
    share = done.summary["ledger"]["teacher_passes"] / done.summary["ledger"]["full_teacher_passes"]
    for what, bad in bads.items():
        yield (
            what,
            bad_data(
                pool,
                bad,
                matrices={"delift": matrix},
                runs={f"student ({share:.1%} of passes)": done.path},
                lm=lm,
                seed=case.seed,
            ),
        )


def usable(pool: Examples, model: Path, rows: int, seed: int) -> Examples:
    """Return a sample of the rows that fit the model's context."""
    refused = {(one.source, one.line) for one in Delift(CausalLM.load(model, device="cpu")).prepare(pool)}
    fitting = [one.id for one in pool if (one.source, one.line) not in refused]
    return pool.subset(shuffled(fitting, seed, "benchmark")[:rows])


def show(what: str, found: Found) -> None:
    """Print a table."""
    print(f"\n{what}: {found.bad} bad rows, {found.good} good ones, {found.left_out} without some score")
    for name, area in found.auc.items():
        interval = found.intervals[name]
        print(f"  {name:36s} {area: .3f}" + _shown(interval))
    for one in found.differences:
        if one.other != "random":
            print(f"  {f'{one.score} less {one.other}':36s} {one.difference:+.3f}" + _shown(one.interval))


def _shown(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"  [{interval[0]:+.3f}, {interval[1]:+.3f}]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--labels", default="20%")
    parser.add_argument("--encoder", default="hash")
    parser.add_argument("--features", default="probe")
    parser.add_argument("--plan", default="active")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.2, help="share of real rows whose responses are exchanged")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cache", type=Path, default=cache_folder() / "detection")
    parser.add_argument("--json", action="store_true")
    case = parser.parse_args()
    record: dict[str, Found] = {}
    if case.data is None:
        folder = case.cache / f"demo-{case.rows}-{case.seed}"
        files = make_world(case.rows, case.seed).write(folder / "world")
        pool, truth = read(files.pool), read_truth(files.truth)
        bads: dict[str, Collection[str]] = {
            "corrupted": [item for item in pool.ids if truth[item].corrupted],
            "repeated": [item for item in pool.ids if truth[item].duplicate_of],
        }
        record |= measure(pool, bads, case.model or model_path(), folder, case)
    else:
        model = case.model or model_path()
        planted = swapped(usable(read(case.data), model, case.rows, case.seed), case.share, case.seed)
        pool = usable(planted.examples, model, case.rows, case.seed)
        folder = case.cache / f"{case.data.stem}-{case.rows}-{case.share}-{case.seed}"
        record |= measure(pool, {"exchanged": planted.bad & set(pool.ids)}, model, folder, case)
    if case.json:
        print(json.dumps({what: found.to_json() for what, found in record.items()}))
        return
    for what, found in record.items():
        show(what, found)


if __name__ == "__main__":
    main()
