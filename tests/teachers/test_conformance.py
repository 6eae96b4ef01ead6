"""The conformance kit passes for what is shipped, and says what is wrong with what is broken."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nncift import teachers
from nncift.data import Examples, read
from nncift.data.examples import Rejection
from nncift.teachers import Chunk, ChunkLabels, RowLabels
from nncift.testing import ConformanceError, check_teacher

SHIPPED: dict[str, Callable[[str], Any]] = {
    "delift": lambda folder: teachers.Delift(folder, device="cpu"),
    "delift logprob": lambda folder: teachers.Delift(folder, variant="logprob", device="cpu"),
    "delift-se": lambda folder: teachers.Similarity("hash"),
    "less": lambda folder: teachers.Less(
        folder, lora=False, projection=32, epochs=1, warmup_share=0.3, learning_rate=1e-3, device="cpu"
    ),
    "ifd": lambda folder: teachers.Ifd(folder, device="cpu"),
    "loss": lambda folder: teachers.Loss(folder, device="cpu"),
    "retrain": lambda folder: teachers.Retrain(folder, device="cpu", trainings=3, rank=2),
    "ekfac": lambda folder: teachers.EkFac(folder, device="cpu", sample=4, projection=64),
    "logra": lambda folder: teachers.Logra(folder, device="cpu", sample=4, projection=2),
    "trackstar": lambda folder: teachers.TrackStar(folder, device="cpu", sample=4, projection=2),
    "ica": lambda folder: teachers.Ica(folder, device="cpu"),
    "rds": lambda folder: teachers.Rds(folder, device="cpu"),
    "length": lambda folder: teachers.Length(),
    "random": lambda folder: teachers.Random(seed=2),
    "column": lambda folder: teachers.Column("quality"),
}


def pool(write_pool: Callable[..., Path]) -> Examples:
    path = write_pool(7)
    rows = [json.loads(line) | {"quality": index} for index, line in enumerate(path.read_text().splitlines())]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return read(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_teachers_conform(name: str, write_pool: Callable[..., Path], llama_folder: Path) -> None:
    check_teacher(SHIPPED[name](str(llama_folder)), pool(write_pool))


def test_selectit_conforms(write_pool: Callable[..., Path], gpt2_folder: Path, tmp_path: Path) -> None:
    # A tokenizer that knows digits, and rating prompts that fit a tiny context.
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("- 'rate {prompt} {response} from 1 to 5:'\n- 'how good is {prompt} {response}?'\n")
    check_teacher(teachers.SelectIt(str(gpt2_folder), rating_prompts=prompts, device="cpu"), pool(write_pool))


class Rows:
    """A pointwise teacher as it should be."""

    name = "stub"
    kind: Any = "pointwise"
    width = 1
    options: Mapping[str, Any] = {"teacher": "stub"}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        self.lengths = {example.id: float(len(example.response)) for example in examples}
        return ()

    def measure(self, ids: Sequence[str]) -> RowLabels:
        return RowLabels(np.array([[self.lengths[item]] for item in ids], np.float32), 0, 0)

    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "stub"}


class Transposed(Rows):
    def measure(self, ids: Sequence[str]) -> RowLabels:
        return RowLabels(super().measure(ids).values[:, 0], 0, 0)


class Double(Rows):
    def measure(self, ids: Sequence[str]) -> RowLabels:
        return RowLabels(super().measure(ids).values.astype(np.float64), 0, 0)


class Infinite(Rows):
    def measure(self, ids: Sequence[str]) -> RowLabels:
        return RowLabels(super().measure(ids).values + np.float32("inf"), 0, 0)


class Batched(Rows):
    """Normalises over the batch: the mistake that is made most."""

    def measure(self, ids: Sequence[str]) -> RowLabels:
        values = super().measure(ids).values
        return RowLabels(values - values.mean(), 0, 0)


class Ordered(Rows):
    def measure(self, ids: Sequence[str]) -> RowLabels:
        values = super().measure(ids).values
        return RowLabels(values + np.arange(len(ids), dtype=np.float32)[:, None], 0, 0)


class Silent(Rows):
    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        super().prepare(examples)
        return (Rejection(examples[0].source, examples[0].line, " "),)


class Elsewhere(Rows):
    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        super().prepare(examples)
        return (Rejection("another pool", 1, "too long"),)


class Picky(Rows):
    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        super().prepare(examples)
        return tuple(Rejection(example.source, example.line, "too long") for example in list(examples)[3:])


class Undescribed(Rows):
    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "stub", "model": object()}


class Restless(Rows):
    asked = 0

    def describe(self) -> Mapping[str, Any]:
        self.asked += 1
        return {"teacher": "stub", "asked": self.asked}


class Nameless(Rows):
    options: Mapping[str, Any] = {}


class Odd(Rows):
    kind = "threefold"


class Owing(Rows):
    def measure(self, ids: Sequence[str]) -> RowLabels:
        return RowLabels(super().measure(ids).values, 0, -1)


class Broad(Rows):
    width = 2

    def measure(self, ids: Sequence[str]) -> RowLabels:
        return RowLabels(np.repeat(super().measure(ids).values, 2, axis=1), 0, 0)


class Featureless(Rows):
    kind = "pairwise"


class Sideways(Rows):
    kind = "pairwise"

    def utility(self, targets: Any, sources: Any) -> Any:
        return sources @ targets.T


class Relative(Rows):
    kind = "pairwise"

    def utility(self, targets: Any, sources: Any) -> Any:
        table = targets @ sources.T
        return table - table.mean()


class Pairs:
    """A teacher of pairs as it should be."""

    name = "stub"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    relative = True
    options: Mapping[str, Any] = {"teacher": "stub"}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        self.lengths = {example.id: float(len(example.response)) for example in examples}
        return ()

    def label(self, chunk: Chunk) -> ChunkLabels:
        return ChunkLabels(np.array([self.lengths[item] for item in chunk.targets], np.float32), 0)

    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "stub"}


class PairsSquare(Pairs):
    def label(self, chunk: Chunk) -> ChunkLabels:
        return ChunkLabels(super().label(chunk).values[:, None], 0)


class PairsDouble(Pairs):
    def label(self, chunk: Chunk) -> ChunkLabels:
        return ChunkLabels(super().label(chunk).values.astype(np.float64), 0)


class PairsInfinite(Pairs):
    def label(self, chunk: Chunk) -> ChunkLabels:
        return ChunkLabels(super().label(chunk).values + np.float32("inf"), 0)


class PairsDrifting(Pairs):
    calls = 0

    def label(self, chunk: Chunk) -> ChunkLabels:
        self.calls += 1
        return ChunkLabels(super().label(chunk).values + np.float32(self.calls), 0)


class PairsBatched(Pairs):
    def label(self, chunk: Chunk) -> ChunkLabels:
        values = super().label(chunk).values
        return ChunkLabels(values - values.mean(), 0)


@pytest.mark.parametrize("made", [Rows, Pairs])
def test_sound_stubs_pass(made: Callable[[], Any], write_pool: Callable[..., Path]) -> None:
    check_teacher(made(), pool(write_pool))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Transposed, r"measures \(7,\) for 7 rows, not \(7, 1\)"),
        (Double, "measures float64, not float32"),
        (Infinite, "measures infinity; a row without a value is NaN"),
        (Ordered, "measures rows differently in another order"),
        (Batched, "measures a row differently beside other rows"),
        (Silent, "rejects line 1 without a reason"),
        (Elsewhere, "rejects a row that it was not given"),
        (Picky, "leaves only 3 of 7 examples usable"),
        (Undescribed, r"has describe\(\) that JSON cannot hold"),
        (Restless, "describes itself differently when asked again"),
        (Nameless, r"does not name itself in options\['teacher'\]"),
        (Odd, "has kind 'threefold'"),
        (Owing, "counts negative tokens or passes"),
        (Broad, "is pointwise with 2 numbers per row, not 1"),
        (Featureless, r"has no utility\(targets, sources\)"),
        (Sideways, r"not \(targets, sources\)"),
        (Relative, "gives a pair another utility beside other pairs"),
        (PairsSquare, r"labels \(6, 1\) for 6 targets"),
        (PairsDouble, "labels in float64, not float32"),
        (PairsInfinite, "labels infinity"),
        (PairsDrifting, "labels a chunk differently when asked again"),
        (PairsBatched, "labels a pair differently beside other targets"),
        (object, "has neither the members of Teacher"),
    ],
)
def test_broken_teachers_are_told_what_is_wrong(
    made: Callable[[], Any], said: str, write_pool: Callable[..., Path]
) -> None:
    with pytest.raises(ConformanceError, match=said):
        check_teacher(made(), pool(write_pool))
