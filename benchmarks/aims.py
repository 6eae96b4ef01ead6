"""Whether a target set draws a selection and an existing set repels it: `python benchmarks/aims.py --help`.

Rows of the wanted file that are not in the pool serve as the target set (`fl2mi`), and then as the rows that were trained on
already (`flcg`); the pool mixes other rows of that file with the other files. LESS labels all rows that the model can read.
Beside the share of wanted rows in each selection stands that of the pool, which a random selection has on average.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import nncift
from nncift.core.seeds import shuffled
from nncift.data import Examples
from nncift.runs.finished import FinishedRun


def measure(
    model: str, wanted: str, others: list[str], rows: int, aim_rows: int, share: str, seed: int
) -> dict[str, Any]:
    """Return the share of wanted rows in the pool and in each of the two selections."""
    of_wanted = nncift.read(wanted)
    drawn = shuffled(of_wanted.ids, seed, "aims")
    aim, mine = (
        of_wanted.subset(drawn[:aim_rows]),
        of_wanted.subset(drawn[aim_rows : aim_rows + rows // (len(others) + 1)]),
    )
    rest = nncift.read(*others, limit=rows - len(mine), seed=seed)
    pool = Examples((*mine, *rest))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("target", "existing"):
            sets: dict[str, Any] = {name: aim}
            run = nncift.run(
                pool,
                teacher="less",
                model=model,
                labels="100%",
                budget=share,
                encoder="hash",
                seed=seed,
                device="cpu",
                option={"lora": False},
                out=Path(folder) / name,
                **sets,
            )
            usable = FinishedRun(run.path).rows.ids
            own = set(mine.ids)
            found[f"share_with_it_as_{name}"] = sum(row.id in own for row in run.subset) / len(run.subset)
            found["share_in_pool"] = sum(item in own for item in usable) / len(usable)
            found["pool"], found["selected"] = len(usable), len(run.subset)
    return found


def main() -> None:
    """Measure over seeds and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--wanted", required=True, help="file that the target and the existing rows come from")
    parser.add_argument("--others", required=True, nargs="+")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--aim-rows", type=int, default=60)
    parser.add_argument("--budget", default="25%")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    case = parser.parse_args()
    record = [
        measure(case.model, case.wanted, case.others, case.rows, case.aim_rows, case.budget, seed)
        for seed in range(case.seeds)
    ]
    if case.json:
        print(json.dumps(record))
        return
    for name in record[0]:
        values = [one[name] for one in record]
        print(
            f"{name.replace('_', ' '):28s} {statistics.mean(values):8.2f}   seeds: {', '.join(f'{v:.2f}' for v in values)}"
        )


if __name__ == "__main__":
    main()
