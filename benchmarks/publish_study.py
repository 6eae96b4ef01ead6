"""Put a study's pages and figures under docs/results/study: `python benchmarks/publish_study.py OUT [OUT...]`.

Pages, figures and tables (CSV) are copied as `nncift study` wrote them, with a line that says by which command and where.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "results" / "study"


def publish(out: Path, folder: Path) -> list[str]:
    """Copy the pages of a study; return their names."""
    told = json.loads((out / "study.json").read_text(encoding="utf-8"))
    machine = told["machine"]
    where = f"{machine['cores']} cores, {machine['platform']}, Python {machine['python']}, no GPU"
    folder.mkdir(parents=True, exist_ok=True)
    for name, analysis in told["analyses"].items():
        for file in analysis["files"]:
            if file.endswith((".svg", ".csv")):
                shutil.copyfile(out / file, folder / file)
        page = (out / f"{name}.md").read_text(encoding="utf-8")
        note = f"Written by `nncift study --preset {told['study']} --only {name}` ({where}). Records: [{name}.csv]({name}.csv)."
        title, _, rest = page.partition("\n")
        (folder / f"{name}.md").write_text(f"{title}\n\n{note}\n{rest}", encoding="utf-8")
    return list(told["analyses"])


def main() -> None:
    """Publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="+", type=Path)
    for out in parser.parse_args().out:
        print(out, ", ".join(publish(out, FOLDER)))


if __name__ == "__main__":
    main()
