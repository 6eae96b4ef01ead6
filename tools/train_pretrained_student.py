"""Trains the student in the package, which needs no labels: `python tools/train_pretrained_student.py gradients --help`.

`gradients` measures LESS features of short public rows by a small language model, in pieces that a later call goes on from.
`train` learns a map from their embeddings to their gradients, judges it on sources that it never saw, beside the cosine of the
embeddings and beside the same map without any gradient, and writes the weights and a log.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from scipy.stats import spearmanr

from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import shuffled
from nncift.data import Example, read
from nncift.models.causal_lm import CausalLM
from nncift.models.embedding_cache import EmbeddingCache
from nncift.models.encoders import create
from nncift.models.views import unit
from nncift.selection import Problem, pose
from nncift.selection.controls import random_ids
from nncift.storage.atomic import atomic, write_text
from nncift.student.pretrained_map import FILE
from nncift.teachers.less import Less

Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.intp]

TRAINED = {
    "gsm8k": ("gsm8k_train", 320),
    "codegen": ("gpteacher_codegen", 320),
    "roleplay": ("gpteacher_roleplay", 320),
    "self": ("self_instruct_seed", 175),
    "t0": ("t0_sample_dev", 320),
}
"""Sources that are learned from: short name -> file, and rows at most."""

HELD_OUT = {"alpaca": ("alpaca_labeled_dev", 120), "rasbt": ("rasbt_instruct_pref", 120)}
"""Sources that are only judged on."""

SHORT = (20, 128)
"""Tokens of a row's texts, from and to."""

PROJECTION = 8192
"""Dimensions of a row's gradient and of its update."""

PENALTIES = (0.1, 0.3, 1.0, 3.0)
"""Ridge penalties that are tried, in units of a row's own kernel without its constant."""

BUDGETS = (0.05, 0.1, 0.3)
RANDOM_DRAWS = 20
PIECE = 24
SEED = 0


@dataclass(frozen=True)
class Work:
    """The folder of intermediate files: the rows, and their features in pieces."""

    folder: Path

    @property
    def rows(self) -> Path:
        """The rows, one a line, in the order of the features."""
        return self.folder / "rows.jsonl"

    def piece(self, number: int) -> Path:
        """Features of some rows, `(PIECE, 2 * PROJECTION)` float16: as a target, then as a source."""
        return self.folder / f"features-{number:03d}.npy"


@dataclass(frozen=True)
class Measured:
    """Rows with their embeddings `(n, dim)`, their gradients `(n, width)`, and their utilities `(n, n)` by LESS.

    gradients: the mean of what a row is as a target and as a source, each at length 1.
    """

    sources: npt.NDArray[np.str_]
    embeddings: Doubles
    gradients: Doubles
    utilities: Doubles

    @classmethod
    def of(cls, work: Work) -> Measured:
        """Read the features that were measured, and embed their rows."""
        features: list[npt.NDArray[np.float32]] = []
        while (path := work.piece(len(features))).exists():
            features.append(np.load(path).astype(np.float32))
        every = np.concatenate(features)
        targets, sources = unit(every[:, :PROJECTION]), unit(every[:, PROJECTION:])
        rows = tuple(read(str(work.rows)))[: len(every)]
        embeddings = EmbeddingCache(create("minilm", device="cpu")).embed([row.text for row in rows]).vectors
        gradients = ((targets + sources) / 2).astype(np.float64)
        names = np.array([_source(row.id) for row in rows])
        return cls(names, embeddings.astype(np.float64), gradients, (targets @ sources.T).astype(np.float64))

    def of_sources(self, names: Sequence[str]) -> Codes:
        """Return the places of the rows of some sources."""
        return np.flatnonzero(np.isin(self.sources, names))

    def similar(self, mapping: Doubles) -> Doubles:
        """Return the similarities `(n, n)` of all rows by a map."""
        found = self.embeddings @ mapping[:-1] + mapping[-1]
        return np.asarray(found @ found.T)


def mapped(embeddings: Doubles, gradients: Doubles, penalty: float) -> Doubles:
    """Return the ridge regression of centred gradients on embeddings, `(dim + 1, rank)`; the last line is the constant.

    Only inner products of what it returns count, so gradients stand in their principal components.
    """
    kernel = embeddings @ embeddings.T + 1 + penalty * np.eye(len(embeddings))
    left, size, _ = np.linalg.svd(gradients - gradients.mean(axis=0), full_matrices=False)
    solved = np.linalg.solve(kernel, left * size)
    return np.concatenate([embeddings.T @ solved, solved.sum(axis=0, keepdims=True)])


def compact(mapping: Doubles) -> Doubles:
    """Return the map of the fewest columns with the same inner products."""
    left, size, _ = np.linalg.svd(mapping, full_matrices=False)
    kept = size > 1e-6 * size[0]
    return np.asarray(left[:, kept] * size[kept])


def chosen(rows: Measured, names: Sequence[str]) -> tuple[float, dict[float, float]]:
    """Return the penalty whose map selects best on sources that were left out, one after the other, and the skill of each."""
    found = {}
    for penalty in PENALTIES:
        skills = []
        for out in names:
            train, left = rows.of_sources([name for name in names if name != out]), rows.of_sources([out])
            similar = rows.similar(mapped(rows.embeddings[train], rows.gradients[train], penalty))
            skills.append(np.mean(judged(rows.utilities, {"": similar}, left)[""][1:]))
        found[penalty] = float(np.mean(skills))
    return max(found, key=lambda penalty: found[penalty]), found


def judged(utilities: Doubles, similar: Mapping[str, Doubles], rows: Codes) -> dict[str, list[float]]:
    """Return by similarity the mean Spearman over targets, then the skill of facility location at each of BUDGETS."""
    names, found = tuple(f"{row:05d}" for row in rows), {}
    truth, problem = _among(utilities, rows), _posed(names, _among(utilities, rows))
    sizes = [max(1, round(budget * len(rows))) for budget in BUDGETS]
    chance = [float(np.mean([problem.value(random_ids(names, k, d)) for d in range(RANDOM_DRAWS)])) for k in sizes]
    best = list(problem.choose(sizes[-1], 0).ids)
    for name, of in similar.items():
        guess = _among(of, rows)
        ranks = [spearmanr(np.delete(truth[i], i), np.delete(guess[i], i)).statistic for i in range(len(rows))]
        taken = list(_posed(names, guess).choose(sizes[-1], 0).ids)
        gained = [
            (problem.value(taken[:k]) - low) / (problem.value(best[:k]) - low)
            for k, low in zip(sizes, chance, strict=True)
        ]
        found[name] = [float(np.mean(ranks)), *map(float, gained)]
    return found


def _among(values: Doubles, rows: Codes) -> Doubles:
    found = values[np.ix_(rows, rows)].copy()
    np.fill_diagonal(found, np.nan)
    return found


def _posed(names: tuple[str, ...], values: Doubles) -> Problem:
    return pose(UtilityMatrix(names, names, np.asfortranarray(values, np.float32)), "fl")


def train(given: argparse.Namespace) -> None:
    """Judge maps that never saw some sources, learn one from all sources that may be learned from, and write it."""
    rows, lines = Measured.of(Work(given.work)), list[str]()
    judged_on: dict[str, list[list[float]]] = {}
    lines.append(
        f"rows by source: {dict(zip(*map(np.ndarray.tolist, np.unique(rows.sources, return_counts=True)), strict=True))}"
    )
    for out in TRAINED:
        names = [name for name in TRAINED if name != out]
        penalty, _ = chosen(rows, names)
        learned, whitened = (
            rows.similar(mapped(rows.embeddings[places], values[places], penalty))
            for places in [rows.of_sources(names)]
            for values in (rows.gradients, np.eye(len(rows.sources)))
        )
        cosine = rows.embeddings @ rows.embeddings.T
        unseen = rows.of_sources([out, *HELD_OUT])
        found = judged(rows.utilities, {"cosine": cosine, "pretrained": learned, "no gradients": whitened}, unseen)
        for name, figures in found.items():
            judged_on.setdefault(name, []).append(figures)
            lines.append(f"without {out} (penalty {penalty:g}), {name}: {_shown(figures)}")
    lines.append(f"mean over {len(TRAINED)} splits: Spearman, then skill at {', '.join(f'{of:.0%}' for of in BUDGETS)}")
    for name, every in judged_on.items():
        lines.append(f"{name}: {_shown(np.mean(every, axis=0))}, standard deviation {_shown(np.std(every, axis=0))}")
    penalty, skills = chosen(rows, list(TRAINED))
    places = rows.of_sources(list(TRAINED))
    weights = compact(mapped(rows.embeddings[places], rows.gradients[places], penalty)).astype(np.float16)
    lines.append(f"skill by penalty on left-out sources: {', '.join(f'{of:g} {skills[of]:.3f}' for of in PENALTIES)}")
    lines.append(f"learned from {len(places)} rows, penalty {penalty:g}, map {weights.shape}")
    given.out.mkdir(parents=True, exist_ok=True)
    save_file({"map": weights}, str(given.out / FILE))
    write_text(given.out / "pretrained.log", "\n".join(lines) + "\n")
    print("\n".join(lines))


def _shown(figures: Sequence[float] | Doubles) -> str:
    return " / ".join(f"{figure:.2f}" for figure in figures)


def draw_rows(data: Path, lm: CausalLM, without: Sequence[Path]) -> Iterator[dict[str, object]]:
    """Yield rows in an order of which every start holds all sources alike, those of held-out sources first."""
    gone = {row.content_hash for path in without for row in read(str(path))}
    for sources in (HELD_OUT, TRAINED):
        found: dict[str, dict[str, object]] = {}
        for name, (stem, most) in sources.items():
            examples, count = read(str(data / f"{stem}.jsonl")), 0
            for item in shuffled(examples.ids, SEED, "pretrained"):
                example = examples.by_id(item)
                if count == most or example.content_hash in gone or not _is_short(example, lm):
                    continue
                gone.add(example.content_hash)
                turns = [{"role": turn.role, "content": turn.content} for turn in example.messages]
                turns.append({"role": "assistant", "content": example.response})
                found[f"{name}-{item}"] = {"id": f"{name}-{item}", "source": name, "messages": turns}
                count += 1
        for key in shuffled(found, SEED, "order"):
            yield found[key]


def _is_short(example: Example, lm: CausalLM) -> bool:
    text = "\n".join([*(turn.content for turn in example.messages), example.response])
    tokens = len(lm.tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"])
    return bool(example.response.strip()) and SHORT[0] <= tokens <= SHORT[1]


def gradients(given: argparse.Namespace) -> None:
    """Measure the features that are not there yet."""
    lm, work = CausalLM.load(str(given.model), device="cpu"), Work(given.work)
    work.folder.mkdir(parents=True, exist_ok=True)
    if not work.rows.exists():
        rows = draw_rows(given.data, lm, given.without)
        write_text(work.rows, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    pool = read(str(work.rows))
    teacher = Less(lm, projection=PROJECTION, epochs=1, seed=SEED, workspace=work.folder)
    # The warm-up draws from the rows that are given first: the held-out sources have no part in it.
    for trained in (True, False):
        refused = teacher.prepare(pool.subset([item for item in pool.ids if (_source(item) in TRAINED) is trained]))
        if refused:
            raise SystemExit(f"{given.model} cannot read {len(refused)} of the rows, the first: {refused[0]}")
    began = time.perf_counter()
    for number, start in enumerate(range(0, len(pool), PIECE)):
        if work.piece(number).exists():
            continue
        values = teacher.measure(pool.ids[start : start + PIECE]).values[:, : 2 * PROJECTION]
        with atomic(work.piece(number)) as part, part.open("wb") as stream:
            np.save(stream, values.astype(np.float16))
        print(f"rows {start} to {start + len(values)} of {len(pool)}, {time.perf_counter() - began:.0f} s", flush=True)


def _source(item: str) -> str:
    """Return the short name of the source of a row."""
    return item.partition("-")[0]


def main() -> None:
    """Measure or train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gradients", "train"])
    parser.add_argument("--model", type=Path, help="gradients: the folder of the language model")
    parser.add_argument("--data", type=Path, help="gradients: the folder of the instruction files")
    parser.add_argument("--without", type=Path, nargs="*", default=[], help="gradients: files of rows to leave out")
    parser.add_argument("--work", type=Path, required=True, help="folder of rows and features")
    parser.add_argument("--out", type=Path, help="train: folder of the weights and the log")
    given = parser.parse_args()
    {"gradients": gradients, "train": train}[given.what](given)


if __name__ == "__main__":
    main()
