"""Put a study's pages under docs/results/study, those of the preset smollm2 under docs/results/real.

    python benchmarks/publish_study.py OUT [OUT...]

Pages, figures and tables (CSV) are drawn from the records of `nncift study`, with a line that says by which command and where.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nncift.runs.report.report_tables import as_csv
from nncift.studies.grid import PRESETS
from nncift.studies.run_study import page_of, write_page

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def publish(out: Path) -> list[str]:
    """Write the pages of all analyses of a study; return their places."""
    machine: dict[str, Any] = json.loads((out / "study.json").read_text(encoding="utf-8"))["machine"]
    where = f"{machine['cores']} cores, {machine['platform']}, Python {machine['python']}, no GPU"
    names = []
    for path in sorted(out.glob("*.json")):
        if path.stem.startswith("study"):
            continue
        analysis, records, page = page_of(path)
        preset = next(found.stem for found in PRESETS.glob("*.yaml") if f"name: {analysis.name}\n" in found.read_text())
        note = (
            f"Written from the records of `nncift study --preset {preset} --only {analysis.name}` ({where}; other work shared "
            f"the machine, so seconds are upper bounds): [{analysis.name}.csv]({analysis.name}.csv)."
        )
        folder = RESULTS / ("real" if preset == "smollm2" else "study")
        folder.mkdir(parents=True, exist_ok=True)
        write_page(folder, analysis, page, note)
        (folder / f"{analysis.name}.csv").write_text(as_csv(records), encoding="utf-8")
        names.append(f"{folder.name}/{analysis.name}")
    return names


def main() -> None:
    """Publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="+", type=Path)
    for out in parser.parse_args().out:
        print(out, ", ".join(publish(out)))


if __name__ == "__main__":
    main()
