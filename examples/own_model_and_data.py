"""Your own rows and model: look, run, read the reasons, export. Without arguments: the demo's world and its tiny model.

python examples/own_model_and_data.py [POOL.jsonl MODEL [OUT]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncift
from nncift.demo import make_world, model_path


def main(arguments: list[str]) -> None:
    """Run the four steps."""
    out = Path(arguments[2] if len(arguments) > 2 else "runs/own")
    if arguments:
        pool, model = arguments[0], arguments[1]
    else:
        pool, model = str(make_world(120, seed=1).write(out.parent / "own-world").pool), str(model_path())

    seen = nncift.inspect(pool)
    print(f"{seen['usable']} of {seen['rows']} rows are usable, {seen['duplicates']['rows']} repeat another")

    # `hash` needs no model of its own; for real data leave it away, or name a sentence encoder.
    teacher = nncift.teachers.Delift(model, device="cpu")
    run = nncift.run(pool, teacher=teacher, encoder="hash", labels=0.2, budget=0.1, out=out)
    print(f"{len(run.subset)} rows selected; open {run.path / 'report.html'}")
    print(f"{run.ledger['teacher_passes']:,} passes in place of {run.ledger['full_teacher_passes']:,}")
    for warning in run.warnings:
        print("warning:", warning)

    chosen = set(run.subset.ids)
    dropped = next(row.id for row in nncift.read(pool) if row.id not in chosen)
    for example_id in (run.subset[0].id, dropped):
        print(run.explain(example_id)["reason"])

    record = run.export(to="trl", out=out.parent / "train.jsonl")
    print(f"{record['rows']} rows for TRL in {record['out']}")


if __name__ == "__main__":
    main(sys.argv[1:])
