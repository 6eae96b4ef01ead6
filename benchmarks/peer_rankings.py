"""Rankings by influence functions here and in bergson 2.5.1, on the same model and rows.

`python benchmarks/peer_rankings.py --bergson PYTHON --model smollm2 --data ROWS.jsonl --write`, PYTHON being that of an
environment with bergson (see peer_bergson.py). Both get the same tokens and the same layers, those of attention. EK-FAC and
TrackStar are compared as each is by default, then with what is left to chance or to choice made the same, so that what differs
is explained. Without `--bergson`, only what a sketch does to EK-FAC's rankings. `--write` puts the table into
docs/results/teachers.md.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from judging import table
from pages import RESULTS, machine

from nncift.core.seeds import generator, shuffled
from nncift.data import Examples, read
from nncift.evaluation.metrics import spearman
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.loading import locate
from nncift.models.training_steps import IGNORED, mean_loss, row_losses
from nncift.teachers.ekfac import NUMBERS, EkFac, drawn_labels
from nncift.teachers.layer_teacher import LayerTeacher
from nncift.teachers.less import Less
from nncift.teachers.less_options import LessOptions
from nncift.teachers.trackstar import TrackStar

if TYPE_CHECKING:
    import torch

LAYERS, OTHERS = ("q_proj", "k_proj", "v_proj", "o_proj"), "*mlp*"
"""Ends of the names of the layers that are compared, and the pattern of those that bergson leaves out."""

SIDE, NARROW = 16, 8
"""Numbers a side of TrackStar where both project alike, and fewer."""

FEW, WIDE = 1 << 15, 1 << 20
"""Numbers of EK-FAC's sketch, and where it is to be as good as none."""

TOP = 5
HEAD = "## Rankings beside bergson"
TEXT = """{head}

`python benchmarks/peer_rankings.py --bergson PYTHON --model {model} --data ROWS.jsonl --rows {rows} --targets {targets}
--longest {longest} --write` on {machine}: {targets} targets and a pool of {pool} rows of at most {longest} tokens, all of
which statistics are taken from. Both sides get the same tokens, float32, the same {layers} linear layers of attention
({parameters:,} parameters), a row's mean loss over its response, and a damping of 0.1 of the mean eigenvalue. Spearman is that
of a target's scores of the pool.

- EK-FAC here: labels drawn from the model, A of all tokens, a sketch of {few:,} numbers, or of {wide:,} where it says so. bergson
  (`method=kfac`, `ev_correction`): labels drawn likewise by other random numbers, A of all tokens but each row's last, a row's
  part in the statistics larger by its number of response tokens, no sketch.
- TrackStar here: second moments of the sample, {narrow} or {side} numbers a side, half of F from the targets. bergson
  (`unit_normalize`): no second moments unless an optimiser's state is given, {side} numbers a side, and that share of F from the
  targets with which the 1,000th eigenvalues of both parts are equal.

{table}

With equal draws both sides rank alike. What is then left in EK-FAC is the last token of A and the weight of long responses;
draws of labels differ as much on either side, and on a larger model a small sketch differs more (below). TrackStar's numbers
are few, and much of a ranking is the draw of its projection: two draws here agree no better than the two tools, and worse with
fewer numbers a side, so that its default is {side} (`--option projection=32` for more).
"""
SKETCHES = (8_192, 32_768, 131_072, 524_288)
SKETCH_HEAD = "## How many numbers a row needs"
SKETCH_TEXT = """{head}

`python benchmarks/peer_rankings.py --model {model} --data ROWS.jsonl --rows {rows} --targets {targets} --longest {longest}
--write` on {machine}: rows of five files, for EK-FAC the same layers and labels as above, for LESS one checkpoint
of its defaults;
every row's {wide:,} numbers are sketched again to fewer, twice, by other hashes and signs, so that the sketch alone differs.

{table}

The default of EK-FAC is {default:,} numbers (it was 32,768), that of LESS {less:,}.
"""
Matrix = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Rows:
    """The rows of a comparison, as many targets as asked and the rest of them the pool; `lm` reads them."""

    lm: CausalLM
    pool: Examples
    targets: Examples

    @classmethod
    def drawn(cls, model: str, data: str, count: int, targets: int, longest: int) -> Rows:
        """Draw short rows of a file."""
        lm, every = CausalLM.load(model), read(data)
        short = [row.id for row in every if len(lm.tokenizer(row.text)["input_ids"]) <= longest]
        order = shuffled(short, 0, "rankings")[:count]
        return cls(lm, every.subset(sorted(order[targets:])), every.subset(sorted(order[:targets])))

    def scores(self, teacher: LayerTeacher) -> Matrix:
        """Return utilities `(n_targets, n_pool)`."""
        for rows in (self.pool, self.targets):
            if rejected := teacher.prepare(rows):
                raise SystemExit(f"the model cannot read {len(rejected)} of the rows, the first: {rejected[0]}")
        if isinstance(teacher, TrackStar):
            teacher.aim(self.targets)
        return teacher.utility(*self._measured(teacher))

    def _measured(self, teacher: LayerTeacher) -> list[Matrix]:
        return [
            np.concatenate([teacher.measure(ids).values for ids in _parts(rows.ids)])
            for rows in (self.targets, self.pool)
        ]

    def features(self, teacher: LayerTeacher) -> list[Matrix]:
        """Return the numbers of targets and of the pool's rows, `(n, dimension)` each."""
        for rows in (self.pool, self.targets):
            teacher.prepare(rows)
        return [values[:, : teacher.dimension] for values in self._measured(teacher)]

    def less(self) -> list[Matrix]:
        """Return the gradients of targets and the updates of the pool's rows, of norm 1, at LESS's checkpoint, `(n, WIDE)`."""
        with tempfile.TemporaryDirectory() as folder:
            teacher = Less(self.lm, projection=WIDE, checkpoints=1, workspace=Path(folder))
            for rows in (self.targets, self.pool):
                teacher.prepare(rows)
            targets, sources = (
                np.concatenate([teacher.measure(ids).values for ids in _parts(rows.ids)])
                for rows in (self.targets, self.pool)
            )
        return [targets[:, :WIDE], sources[:, WIDE : 2 * WIDE]]

    def ekfac(self, seed: int, **options: Any) -> EkFac:
        """Return the teacher, with all pool rows as its sample."""
        return EkFac(self.lm, seed=seed, sample=len(self.pool), layers=LAYERS, **options)

    def trackstar(self, seed: int, **options: Any) -> TrackStar:
        """Return the teacher, with all pool rows as its sample."""
        return TrackStar(self.lm, seed=seed, sample=len(self.pool), layers=LAYERS, **options)


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bergson", help="the python of an environment with bergson")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=60, help="targets included")
    parser.add_argument("--targets", type=int, default=12)
    parser.add_argument("--longest", type=int, default=96, help="tokens of a row's text")
    parser.add_argument("--write", action="store_true", help="write the table into docs/results/teachers.md")
    given = parser.parse_args()
    rows = Rows.drawn(given.model, given.data, given.rows, given.targets, given.longest)
    head = f"{HEAD}: {Path(given.model).name}" if given.bergson else SKETCH_HEAD
    page = section(rows, compared(rows, given.bergson), given) if given.bergson else sketched(rows, given)
    print(page)
    if given.write:
        path = RESULTS / "teachers.md"
        parts = re.split(r"(?m)^(?=## )", path.read_text(encoding="utf-8"))
        kept = [part.rstrip() for part in parts if not part.startswith(f"{head}\n")]
        path.write_text("\n\n".join([*kept, page]), encoding="utf-8")


def sketched(rows: Rows, given: argparse.Namespace) -> str:
    """Return the part of the page about how far two sketches of the same gradients rank alike, by their numbers."""
    lines = []
    for name in ("EK-FAC", "LESS"):
        targets, sources = rows.less() if name == "LESS" else rows.features(rows.ekfac(0, projection=WIDE))
        whole = targets @ sources.T
        for numbers in SKETCHES:
            one, other = (_hashed(targets, sources, numbers, draw) for draw in range(2))
            lines.append([name, f"{numbers:,}", *agreement(one, other)[:2], *agreement(one, whole)])
    heads = [
        "teacher",
        "numbers",
        "two sketches, Spearman",
        "lowest",
        f"beside {WIDE:,} numbers, Spearman",
        "lowest",
        "best rows shared",
    ]
    return SKETCH_TEXT.format(
        **{**vars(given), "model": Path(given.model).name},
        head=SKETCH_HEAD,
        machine=machine(),
        wide=WIDE,
        default=NUMBERS,
        less=LessOptions().projection,
        table="\n".join(table(heads, lines)),
    )


def _hashed(targets: Matrix, sources: Matrix, numbers: int, draw: int) -> Matrix:
    """Return inner products of sketches: every number is added, under a random sign, to one of fewer."""
    random = generator(draw, "sketch", str(numbers))
    places, signs = random.integers(numbers, size=WIDE), random.choice([-1.0, 1.0], WIDE)

    def shorter(vector: Matrix) -> npt.NDArray[np.float64]:
        return np.bincount(places, weights=vector * signs, minlength=numbers).astype(np.float64)

    one, other = (np.stack([shorter(vector) for vector in part]) for part in (targets, sources))
    return np.asarray(one @ other.T)


def compared(rows: Rows, python: str) -> list[list[str]]:
    """Return the lines of the table: method, what is compared, and how far the rankings agree."""
    with tempfile.TemporaryDirectory() as folder:
        ekfac, aligned = rows.ekfac(0, projection=FEW), rows.trackstar(0, projection=SIDE)
        own = {"ekfac": rows.scores(ekfac), "trackstar": rows.scores(rows.trackstar(0, projection=NARROW))}
        own["trackstar, other signs"] = rows.scores(rows.trackstar(1, projection=NARROW))
        own["wide"] = rows.scores(rows.ekfac(0, projection=WIDE))
        own["other draws"] = rows.scores(rows.ekfac(1, projection=WIDE))
        rows.scores(aligned)
        theirs, mix = peer(rows, python, Path(folder), ekfac, aligned)
        for name, seed in (("mixed", 0), ("other signs", 1), ("their signs", 0)):
            teacher = rows.trackstar(seed, projection=SIDE, mix=mix["trackstar, same moments"])
            if name == "their signs":
                vars(teacher)["sides"] = sides_of(teacher, Path(folder))
            own[name] = rows.scores(teacher)
    share = f"{mix['trackstar']:.2f}", f"{mix['trackstar, same moments']:.2f}"
    pairs = [
        ("EK-FAC", f"here with a sketch of {FEW:,} numbers, and bergson by default", own["ekfac"], theirs["ekfac"]),
        (
            "",
            "the same labels drawn, and a sketch of a million numbers here",
            own["wide"],
            theirs["ekfac, same labels"],
        ),
        ("", "here, two draws of labels and sketch", own["wide"], own["other draws"]),
        ("", "bergson, two draws of labels", theirs["ekfac"], theirs["ekfac, same labels"]),
        ("", "here and plain inner products of gradients", own["ekfac"], theirs["plain"]),
        (
            "TrackStar",
            f"here with {NARROW} numbers a side, and bergson as it is by default (mix 0.5 and {share[0]})",
            own["trackstar"],
            theirs["trackstar"],
        ),
        (
            "",
            f"{SIDE} numbers a side, the same second moments and mix ({share[1]})",
            own["mixed"],
            theirs["trackstar, same moments"],
        ),
        ("", "bergson's own random projections besides", own["their signs"], theirs["trackstar, same moments"]),
        ("", "here, two draws of the projection, alike else", own["mixed"], own["other signs"]),
        (
            "",
            f"here, the same with {NARROW} numbers a side and mix 0.5",
            own["trackstar"],
            own["trackstar, other signs"],
        ),
        ("", "bergson, with and without second moments", theirs["trackstar"], theirs["trackstar, same moments"]),
    ]
    return [[method, what, *agreement(one, other)] for method, what, one, other in pairs]


def peer(
    rows: Rows, python: str, folder: Path, ekfac: EkFac, trackstar: TrackStar
) -> tuple[dict[str, Matrix], dict[str, float]]:
    """Return bergson's scores by method, `(n_targets, n_pool)`, and the share of the targets in its matrices."""
    from safetensors.torch import save_file

    scales = {name: own["scale"] for name, own in trackstar.warm_up().items()}
    save_file(
        {f"{name}.weight": scale.pow(-2).contiguous() for name, scale in scales.items()}, folder / "moments.safetensors"
    )
    read_as = ekfac.reader.rows
    labels = {item: list(row.gold) for item, row in read_as.items()}
    asked = {
        "model": str(locate(rows.lm.name)),
        "scratch": str(folder),
        "filter": OTHERS,
        "side": SIDE,
        "seed": 0,
        "moments": str(folder / "moments.safetensors"),
        "pool": _tokens(rows.pool.ids, read_as, labels),
        "targets": _tokens(rows.targets.ids, read_as, labels),
        "drawn": _tokens(rows.pool.ids, read_as, labels_of(ekfac)),
    }
    order = folder / "asked.json"
    order.write_text(json.dumps(asked), encoding="utf-8")
    script = str(Path(__file__).with_name("peer_bergson.py"))
    done = subprocess.run([python, script, "rank", str(order)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bergson ended with {done.returncode}: {done.stderr[-2000:]}")
    with np.load(folder / "scores.npz", allow_pickle=False) as found:
        scores = {name: found[name].T for name in found}
    return scores, json.loads((folder / "about.json").read_text(encoding="utf-8"))


def sides_of(teacher: TrackStar, folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return bergson's projections of errors and inputs by layer, whose names there lack the front."""
    from safetensors.torch import load_file

    found = load_file(folder / "sides.safetensors")
    return {
        own: (found[f"{name}|left"], found[f"{name}|right"])
        for name in {key.rpartition("|")[0] for key in found}
        for own in teacher.shapes
        if own.endswith(name)
    }


def labels_of(teacher: EkFac) -> dict[str, list[int]]:
    """Return the labels that EK-FAC draws for every row of its sample, where a response token is due."""
    import torch

    found: dict[str, list[int]] = {}
    for place, (item, row) in enumerate(teacher.sampled.items()):

        def loss(logits: torch.Tensor, gold: torch.Tensor, item: str = item, place: int = place) -> torch.Tensor:
            labels = drawn_labels(logits, gold, teacher.seed, [place])[0]
            found[item] = labels[gold[0] != IGNORED].tolist()
            return mean_loss(logits, gold)

        with torch.inference_mode():
            row_losses(teacher.lm.model, [row], teacher.lm.device, head_is_last=teacher.lm.head_is_last, loss=loss)
    return found


def _tokens(ids: Sequence[str], rows: Any, labels: dict[str, list[int]]) -> dict[str, list[list[int]]]:
    """Return rows as bergson reads them: a label stands where its token does."""
    found: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for item in ids:
        row: Row = rows[item]
        own = [IGNORED] * len(row)
        for place, label in zip(row.places, labels[item], strict=True):
            own[int(place) + 1] = int(label)
        found["input_ids"].append([*row.prompt, *row.response])
        found["labels"].append(own)
    return found


def agreement(one: Matrix, other: Matrix) -> list[str]:
    """Return Spearman by target, mean and lowest, and how many of the best rows of a target are the same."""
    once = np.ones(one.shape[1])
    ranks = [float(spearman(a.astype(np.float64), b.astype(np.float64), once)) for a, b in zip(one, other, strict=True)]
    shared = [len(set(np.argsort(-a)[:TOP]) & set(np.argsort(-b)[:TOP])) for a, b in zip(one, other, strict=True)]
    return [f"{np.mean(ranks):.3f}", f"{min(ranks):.3f}", f"{np.mean(shared):.1f} of {TOP}"]


def section(rows: Rows, lines: Sequence[Sequence[str]], given: argparse.Namespace) -> str:
    """Return the part of the page."""
    heads = ["method", "compared", "Spearman, mean over targets", "lowest", "best rows shared"]
    shapes = rows.ekfac(0).shapes
    return TEXT.format(
        **{**vars(given), "model": Path(given.model).name},
        head=f"{HEAD}: {Path(given.model).name}",
        machine=machine(),
        pool=len(rows.pool),
        layers=len(shapes),
        parameters=sum(out * into for out, into in shapes.values()),
        few=FEW,
        wide=WIDE,
        side=SIDE,
        narrow=NARROW,
        table="\n".join(table(heads, lines)),
    )


def _parts(ids: Sequence[str], size: int = 16) -> list[Sequence[str]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


if __name__ == "__main__":
    main()
