"""Continual selection: which rows add to what was trained on already? Without arguments: two halves of the demo's world.

python examples/continual.py [POOL.jsonl EXISTING.jsonl MODEL [OUT]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncift
from nncift.demo import make_world, model_path


def main(arguments: list[str]) -> None:
    """Select with and without the existing set, and say how the two differ."""
    out = Path(arguments[3] if len(arguments) > 3 else "runs/continual")
    if arguments:
        pool, existing, model = arguments[:3]
    else:
        world = make_world(180, seed=4).write(out.parent / "continual-world").pool
        rows = world.read_text("utf-8").splitlines(keepends=True)
        pool, existing, model = (
            str(world.with_name("new.jsonl")),
            str(world.with_name("trained.jsonl")),
            str(model_path()),
        )
        Path(pool).write_text("".join(rows[60:]), "utf-8")
        Path(existing).write_text("".join(rows[:60]), "utf-8")

    teacher = nncift.teachers.Delift(model, device="cpu")
    # With an existing set the objective is `flcg`: a row counts by what it adds to what the existing rows do already.
    run = nncift.run(pool, existing=existing, teacher=teacher, encoder="hash", labels=0.2, budget=12, out=out)
    print(f"{len(run.subset)} rows selected that add to {existing}; open {run.path / 'report.html'}")

    # The labels are the same, so choosing again as if nothing had been trained on costs no pass of the model.
    from nncift.runs.select_again import reselect

    plain = out.with_name(out.name + "-as-new")
    reselect(run.path, {"objective": "fl"}, plain)
    as_new = set(nncift.read(plain / "subset.jsonl").ids)
    print(f"{len(as_new & set(run.subset.ids))} of them would be selected as well without the existing set")


if __name__ == "__main__":
    main(sys.argv[1:])
