"""Targeted selection: which rows help with a target set? Without arguments: three of the demo world's skills.

python examples/targeted.py [POOL.jsonl TARGET.jsonl MODEL [OUT]]
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import nncift
from nncift.demo import make_world, model_path, read_truth

SKILLS = 3


def main(arguments: list[str]) -> None:
    """Select for a target set, and say which rows came out."""
    out = Path(arguments[3] if len(arguments) > 3 else "runs/targeted")
    truth = {}
    if arguments:
        pool, target, model = arguments[:3]
    else:
        files = make_world(120, seed=2, test_rows=240).write(out.parent / "targeted-world")
        truth, model, pool = read_truth(files.truth), str(model_path()), str(files.pool)
        # The target set: held-out rows of a few skills that the model should become good at.
        rows = [json.loads(line) for line in Path(files.test).read_text("utf-8").splitlines()]
        wanted = set(sorted({truth[row["id"]].skill for row in rows})[:SKILLS])
        target = str(out.parent / "target.jsonl")
        Path(target).write_text("".join(json.dumps(row) + "\n" for row in rows if truth[row["id"]].skill in wanted))

    run = nncift.run(
        pool,
        target=target,
        teacher=nncift.teachers.Delift(model, device="cpu"),
        encoder="hash",
        labels=0.3,
        budget=12,
        objective="topk",
        out=out,
    )
    print(f"{len(run.subset)} rows selected for {target}; open {run.path / 'report.html'}")
    for row in run.subset[:3]:
        print(f"  {row.prompt[:70]!r}")
    if truth:
        print("skills of the selected rows:", dict(Counter(truth[row.id].skill for row in run.subset)))
        print("skills of the target set:", sorted(wanted))


if __name__ == "__main__":
    main(sys.argv[1:])
