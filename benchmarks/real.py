"""Students judged on a real language model: `python benchmarks/real.py make --data DIR`, then `python benchmarks/real.py judge`.

`make` builds a *real world* and keeps it: pools of 240 and 600 short rows of five sources, the utilities of all their pairs by
LESS (one checkpoint, 65,536 dimensions), DELIFT's of 70 x 70 rows, probe features and embeddings. It takes about an hour on one
core, goes on where it was after a kill, and is shared out by `--part 1/2` and `--part 2/2` at the same time. With `--only ekfac
gist` it makes utilities of the smaller pool by these, for `rivals --only ekfac gist`. `judge` then trains students on plans of
labels and tells what they select, in seconds to minutes. `rivals` sets published students beside ours, on this world and,
with `--toy MODEL --data DIR`, on a small model's gradients. `calibrate` compares the skill that runs state of themselves with
the true one, on random pools of this world and, with `--toy MODEL --data DIR`, of a small model's gradients. `--write` puts the
tables into docs/results/fidelity.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from calibration import calibrated
from fidelity import gradient_world
from judging import Way, World, lines_of
from pages import TARGET_SET, WORLDS, calibration_part, known, machine, publish, real_tables
from real_world import FEATURES, MORE, PARTS, POOLS, SOURCES, WHOLE, Maker, RealWorld, default_folder, make
from rivals import compared, rival_tables
from target_sets import can_be_drawn, target_lines

from nncift.distributed.shards import Shard
from nncift.errors import NnciftError
from nncift.labels import TRAIN, LabelBudget, grow
from nncift.models.causal_lm import CausalLM

SHARE_OF_ROWS = {POOLS[0]: 0.2, POOLS[1]: 0.1}
"""Rows that LESS measures to train on, by pool; validation and test rows come on top."""

SHARE_OF_PAIRS = 0.2
"""Pairs that DELIFT labels, all splits together."""

PAPER = (("paper", "paper", "text"), ("paper", "default", "text"))
STUDENTS = tuple((student, "default", features) for features in FEATURES.values() for student in ("towers", "product"))


def main() -> None:
    """Make or judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "judge", "rivals", "calibrate"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--world", type=Path, help="the folder of the world  [default: in the cache, named by the model]"
    )
    parser.add_argument("--data", type=Path, help="make: the folder of the instruction files")
    parser.add_argument("--part", type=Shard.parse, default=WHOLE, help="make: the share of this process, such as 1/2")
    parser.add_argument(
        "--only", nargs="*", choices=(*PARTS, *MORE), default=list(PARTS), help="make, judge, rivals: these alone"
    )
    parser.add_argument("--device", default="cpu", help="make: the model's")
    parser.add_argument("--encoder", default="minilm", help="make: of the text embeddings")
    parser.add_argument("--seeds", type=int, default=5, help="judge: of plan, labels and training")
    parser.add_argument(
        "--pools", type=int, nargs="*", default=list(POOLS), help="judge: LESS on pools of these sizes alone"
    )
    parser.add_argument("--toy", type=Path, help="calibrate: a small model, for gradients of the rows in --data")
    parser.add_argument("--students", nargs="*", default=["paper", "towers", "product"], help="judge: these alone")
    parser.add_argument("--write", action="store_true", help="judge: write the tables into docs/results/fidelity.md")
    parser.add_argument("--json", action="store_true", help="judge: print JSON")
    given = parser.parse_args()
    try:
        {"make": made, "judge": judge, "rivals": rivals, "calibrate": calibrate}[given.what](given)
    except NnciftError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


def made(given: argparse.Namespace) -> None:
    """Make a world, or this process's share of it."""
    if given.data is None:
        raise SystemExit("real.py make needs --data DIR, the folder of the instruction files")
    folder = given.world or default_folder(given.model)
    maker = Maker(folder, CausalLM.load(given.model, device=given.device), given.encoder)
    whole = make(maker, given.data, given.only, given.part)
    print(f"{folder}: {'complete' if whole else 'this part is done; run make once more when the others are'}")


def judge(given: argparse.Namespace) -> None:
    """Judge all ways on what there is of a world."""
    folder = given.world or default_folder(given.model)
    real, found, targets = RealWorld(folder), {}, []
    for world in real.worlds(given.only):
        size = len(world.matrix.source_ids)
        if world.name.startswith("LESS") and size not in given.pools:
            continue
        if world.name.startswith("LESS") and can_be_drawn(world):
            targets = target_lines(world, given.seeds)
        ways = [way for way in ways_of(world) if way.student in given.students and way.features in world.vectors]
        found[world.name] = {
            "about": world.about,
            "lines": list(lines_of(world, ways, ways[-1].label_budget, given.seeds)),
        }
    results = {
        "machine": machine(),
        "command": command(),
        "seeds": given.seeds,
        "model": real.about["model"]["name"],
        "rows": real.sizes,
        "own labels": True,
        WORLDS: found,
        TARGET_SET: targets,
    }
    if given.only != list(PARTS):
        # The others stay as they were measured.
        before = known("real")
        results |= {WORLDS: {**before.get(WORLDS, {}), **found}, TARGET_SET: targets or before.get(TARGET_SET, [])}
    if given.write:
        publish({"real": results})
    print(json.dumps(results) if given.json else "\n".join(real_tables(results)))


def rivals(given: argparse.Namespace) -> None:
    """Set published students beside ours."""
    folder = given.world or default_folder(given.model)
    worlds = [*RealWorld(folder).worlds(given.only), *toy_worlds(given, folder)]
    results = {
        "machine": machine(),
        "command": command(),
        "seeds": given.seeds,
        WORLDS: compared(worlds, given.seeds),
    }
    if given.only != list(PARTS):
        results[WORLDS] = {**known("rivals").get(WORLDS, {}), **results[WORLDS]}
    if given.write:
        publish({"rivals": results})
    print(json.dumps(results) if given.json else "\n".join(rival_tables(results)))


def toy_worlds(given: argparse.Namespace, folder: Path) -> list[World]:
    """Return the gradients of a small model over the rows in `--data`; none where it is not given."""
    if not given.toy or not given.data:
        return []
    files = [file for stem in SOURCES.values() for file in sorted(given.data.glob(f"{stem}.json*"))]
    return [replace(gradient_world(given.toy, files, max(POOLS), folder / "toy"), name="toy gradients")]


def calibrate(given: argparse.Namespace) -> None:
    """Compare stated with true skill on random pools of the larger LESS world, and of a toy's gradients."""
    folder = given.world or default_folder(given.model)
    worlds = [replace(world, name="LESS") for world in RealWorld(folder).worlds(["less"])][-1:]
    worlds += toy_worlds(given, folder)
    lines = calibrated(worlds, given.seeds)
    results = {"machine": machine(), "command": command(), "seeds": given.seeds, "lines": lines}
    if given.write:
        publish({"calibration": results})
    print(json.dumps(results) if given.json else "\n".join(calibration_part(results)))


def command() -> str:
    """Return the command of this process as the page shows it: without the folder of the world, which differs by machine."""
    kept, left_out = [], False
    for word in sys.argv[1:]:
        # With the words that belong to them.
        left_out = word in ("--world", "--toy", "--data", "--only", "--json", "--write") or (
            left_out and not word.startswith("--")
        )
        kept += [] if left_out else [word]
    return " ".join(["python benchmarks/real.py", *kept, "--write"])


def ways_of(world: World) -> Iterator[Way]:
    """Yield the ways to a student that a world is judged by."""
    for label_budget in label_budgets_of(world):
        paper = PAPER if label_budget.kind in ("rows", "block") else ()
        for student, recipe, features in (*paper, *STUDENTS):
            yield Way(student, recipe, features, label_budget)


def label_budgets_of(world: World) -> Sequence[LabelBudget]:
    """Return the plans: measured rows, as many pairs however they are drawn for DELIFT."""
    ids = world.matrix.source_ids
    if not world.name.startswith("DELIFT"):
        return [LabelBudget(SHARE_OF_ROWS[len(ids)], None, "rows")]
    total = round(SHARE_OF_PAIRS * len(ids) * (len(ids) - 1))
    found = []
    for kind in ("block", "scatter", "active"):
        drawn = "block" if kind == "block" else "scatter"
        plan = grow(None, ids, ids, LabelBudget(None, total, drawn), 0, shared=True, relative=False)
        # What is held out counts too.
        held_out = int((plan.entries.split != TRAIN).sum())
        found.append(LabelBudget(None, max(4, total - held_out), kind))
    return found


if __name__ == "__main__":
    main()
