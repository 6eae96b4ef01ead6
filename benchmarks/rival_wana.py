"""The rows that wana 0.5.1 keeps, best first, for `nncift tune --subset wana=FILE`; it runs in an environment of its own.

    python -m venv PEER; PEER/bin/pip install --no-deps wana==0.5.1; PEER/bin/pip install -c constraints.txt torch transformers
    PEER/bin/python benchmarks/rival_wana.py MODEL IDS.txt POOL.jsonl [POOL.jsonl ...]

Every line of a pool is an object with `id` and `messages`. The ranking is wana's own: instruction-following difficulty by MODEL,
rows above 1 left out (they follow, so that the file ranks every row); rows that wana refuses come last.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from wana.adapters.io.jsonl import parse_record
from wana.adapters.logprob.transformers_cpu import TransformersCPU
from wana.adapters.scoring.ifd import IFDScorer
from wana.adapters.selection.topk import TopKSelector
from wana.domain.score import ScoredExample


def main() -> None:
    """Score every row, and write ids in wana's order."""
    model, out, *files = sys.argv[1:]
    scorer = IFDScorer(TransformersCPU(model, max_tokens=2048))
    began, scored, refused = time.process_time(), list[ScoredExample](), list[str]()
    for line in (line for file in files for line in Path(file).read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        example = parse_record(record, str(record["id"]))
        try:
            scored.append(ScoredExample(example, scorer.score(example)))
        except ValueError as error:
            print(f"{record['id']}: {error}", file=sys.stderr)
            refused.append(str(record["id"]))
    order = TopKSelector("ifd").ranked(tuple(scored))
    rest = [place for place in range(len(scored)) if place not in set(order)]
    ids = [scored[place].example.id for place in [*order, *rest]] + refused
    Path(out).write_text("\n".join(ids) + "\n", encoding="utf-8")
    spent = time.process_time() - began
    print(f"{len(order)} of {len(ids)} rows are kept by wana, {len(refused)} refused; {spent:.0f} processor seconds")


if __name__ == "__main__":
    main()
