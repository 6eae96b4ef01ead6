"""What teachers share that judge rows by gradients of linear layers against statistics of a sample (method.md 3.5).

A sample of the pool gives statistics of every layer once, in one or two passes; they are kept in the teacher's folder. Then one
pass gives a row's vector, and all pairs among measured rows follow. Each teacher adds which statistics these are, and what
becomes of what a layer read and the errors it got.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack

import numpy as np

from nncift.core.arrays import Floats
from nncift.core.fingerprints import fingerprint
from nncift.core.result_types import JsonObject
from nncift.core.seeds import shuffled
from nncift.data.examples import Examples, Rejection
from nncift.errors import ResourceError, UsageError
from nncift.models.linear_layers import LayerPair
from nncift.models.lora import LoraShape, Trainable
from nncift.models.response_reader import AnyModel, AnyTokenizer, ModelSettings, parted
from nncift.teachers import Kind, RowLabels, subtasks
from nncift.teachers.abilities import GRADIENT, StoredAs
from nncift.teachers.kept_rows import InWorkspace, Kept, contents, on_record, put
from nncift.teachers.layer_passes import LayerPasses
from nncift.teachers.layer_statistics import Statistics, keep_statistics, kept_statistics
from nncift.teachers.model_teacher import ModelTeacher
from nncift.teachers.vector_features import VectorFeatures

if TYPE_CHECKING:
    import torch

SILENT = "silent_layers"


class LayerSettings(ModelSettings, total=False):
    """What every teacher of layers takes by keyword; see `LayerOptions`."""

    sample: int
    damping: float
    layers: Sequence[str] | None
    lora: bool
    rank: int
    alpha: float
    adapter: str | Path | None
    subtask: str | None


@dataclass(frozen=True)
class LayerOptions:
    """sample: rows of the pool that statistics are taken from. damping: see each teacher.

    layers: ends of the names of linear layers; None = all but the one that gives the logits. lora: the layers are LoRA matrices,
    of an `adapter` (a peft folder), or fresh ones of `rank` and `alpha`, of which the second alone have gradients. subtask: a
    column of the target rows that names each row's subtask.
    """

    sample: int = 256
    damping: float = 0.1
    layers: Sequence[str] | None = None
    lora: bool = False
    rank: int = 8
    alpha: float = 16
    adapter: str | Path | None = None
    subtask: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sample, int) or self.sample < 1:
            raise UsageError(f"the sample that statistics are taken from has at least 1 row, not {self.sample!r}")
        if not self.damping > 0:
            raise UsageError(f"the damping is above 0, not {self.damping!r}")

    def to_json(self) -> JsonObject:
        """Return the settings that would make them again."""
        plain = {"layers": None if self.layers is None else list(self.layers)}
        return {**asdict(self), **plain, "adapter": None if self.adapter is None else str(self.adapter)}


class LayerTeacher(InWorkspace, ModelTeacher, ABC):
    """A teacher of gradients of linear layers. seed: of the sample and of what is random. workspace: keeps statistics.

    A subclass sets `name`, `title`, `fitting_passes` (of a row of the sample) and `cosine`, says how many numbers a row has, fits
    statistics and adds up vectors.
    """

    kind: Kind = "pairwise"
    pass_weight = GRADIENT
    stored_as: StoredAs = "float16"
    title: ClassVar[str]
    fitting_passes: ClassVar[int]
    cosine: ClassVar[bool]

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        seed: int = 0,
        workspace: Path | None = None,
        own: Mapping[str, Any] | None = None,
        **settings: Unpack[LayerSettings],
    ) -> None:
        shared, given = parted(settings)
        self.given = LayerOptions(**given)
        super().__init__(model, {**self.given.to_json(), **(own or {})}, tokenizer, **shared)
        self.seed, self.workspace, self.subtask = seed, workspace, self.given.subtask
        self._subtasks: dict[str, str] = {}
        self._sample: Kept | None = None
        self._statistics: Statistics | None = None
        self._plain = False

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Numbers of a row's vector; known once rows were prepared."""

    @abstractmethod
    def fit(self) -> Statistics:
        """Return the statistics of every layer that the sample reaches."""

    @abstractmethod
    def blank(self) -> Statistics:
        """Return statistics that cost as much to use, for timing: of no meaning."""

    @abstractmethod
    def add(self, pair: LayerPair, statistics: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """Add what a call of a layer makes of the pair's rows to `out` `(n_rows, dimension)`."""

    @property
    def width(self) -> int:
        """Numbers per row; known once rows were prepared."""
        return 0 if self._sample is None else self._features.width

    @property
    def _features(self) -> VectorFeatures:
        return VectorFeatures(self.dimension, self.cosine)

    @property
    def figures(self) -> tuple[str, ...]:
        """The layers that say nothing since no row of the sample had a gradient there."""
        return (SILENT,)

    def warnings(self, means: Mapping[str, float]) -> tuple[str, ...]:
        """Return a sentence where some layers say nothing."""
        if not means.get(SILENT, 0.0):
            return ()
        why = " (fresh LoRA matrices that read the states have none; give a trained adapter)" if self._fresh else ""
        return (
            f"{self.title} leaves out {round(means[SILENT])} of {len(self.shapes)} layers, in which no row of the sample has a "
            f"gradient, or which the model does not call{why}.",
        )

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Tokenise rows, and draw the sample from the first pool that is given; statistics wait for `measure`.

        Raises UsageError where the model has no layer that is covered, ResourceError for float16.
        """
        self._check()
        rejected = super().prepare(examples)
        self._subtasks |= subtasks.named_in(examples, self.subtask)
        fresh = [example.id for example in examples if example.id in self.reader.rows]
        if self._sample is None and fresh:
            record = self._in_workspace("sample.json")
            self._sample = on_record(record, lambda: self._reading)
            if self._sample is None:
                drawn = shuffled(fresh, self.seed, self.name, "sample")[: self.given.sample]
                self._sample = put(record, self._reading, {item: self.reader.rows[item] for item in drawn})
        return rejected

    def _check(self) -> None:
        if str(self.lm.model.dtype) == "torch.float16":
            raise ResourceError(
                f"{self.title} takes gradients of {self.lm.name!r}, and in float16 most of them round to 0; give "
                "--dtype bfloat16, which has the range, or float32"
            )
        if not self.shapes:
            raise UsageError(self._none_covered())

    def _none_covered(self) -> str:
        wanted = "" if self.given.layers is None else f" whose names end in {', '.join(self.given.layers)}"
        return (
            f"{self.title} covers linear layers, and the model {self.lm.name!r} has none{wanted} beside the one that gives the "
            f"logits; its weights lie in {self.passes.left_out or 'other modules'}. Take less with --option lora=false, which "
            "covers every parameter"
        )

    @cached_property
    def passes(self) -> LayerPasses:
        """The layers that are covered, and passes that show them."""
        ends = None if self.given.layers is None else tuple(self.given.layers)
        return LayerPasses(self.lm, self._trainable(), ends, self.reader.batch_tokens)

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Width of outputs and inputs of every layer that is covered."""
        return self.passes.shapes

    def _trainable(self) -> Trainable | None:
        if not self.given.lora and self.given.adapter is None:
            return None
        model = copy.deepcopy(self.lm.model) if self.reader.borrowed else self.lm.model
        if self.given.adapter is not None:
            return Trainable.with_adapter(model, Path(self.given.adapter))
        return Trainable.with_lora(model, LoraShape(self.given.rank, self.given.alpha, 0.0), self.seed)

    @property
    def _fresh(self) -> bool:
        return self.given.lora and self.given.adapter is None

    @property
    def sampled(self) -> Kept:
        """The rows that statistics are taken from. Raises UsageError before a pool was prepared."""
        if self._sample is None:
            raise UsageError(f"{self.name} has no rows to take statistics from: prepare a pool first")
        return self._sample

    def warm_up(self) -> Statistics:
        """Return the statistics: those in the workspace, or fitted now."""
        if self._statistics is None:
            key, folder = fingerprint(dict(self.describe())), self._in_workspace(self.name)
            found = self.blank() if self._plain else kept_statistics(folder, key)
            if found is None:
                found = self.fit()
                self._check_numbers(found)
                found = keep_statistics(folder, key, found)
            self._statistics = {
                name: {part: value.to(self.lm.device) for part, value in own.items()} for name, own in found.items()
            }
        return self._statistics

    def _check_numbers(self, found: Statistics) -> None:
        for name, own in found.items():
            if not all(bool(value.isfinite().all()) for value in own.values()):
                raise ResourceError(
                    f"the gradients of {len(self.sampled)} sampled rows are no numbers in layer {name!r} of {self.lm.name!r}; "
                    "its weights may be damaged, or the precision too low: try --dtype float32"
                )

    def without_warm_up(self) -> Self:
        """Return the same teacher with statistics of no meaning: what a row costs can be known before they are fitted."""
        options = {name: value for name, value in self.options.items() if name not in ("teacher", "model")}
        made = type(self)(self.reader.source, seed=self.seed, **{**options, "device": self.reader.device})
        made.reader.lm, made._plain = self.lm.with_own_modules(), True
        return made

    @property
    def warm_up_passes(self) -> int:
        """Passes over the sample."""
        return self.fitting_passes * len(self._sample or ())

    @property
    def warm_up_tokens(self) -> int:
        """Tokens of these passes."""
        return self.fitting_passes * sum(map(len, (self._sample or {}).values()))

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return the features of rows, `(n, width)`. Raises ResourceError for a row whose gradient is no number."""
        import torch

        rows, statistics = [self.reader.rows[item] for item in ids], self.warm_up()
        found = torch.zeros((len(rows), self.dimension), device=self.lm.device)

        def consume(pair: LayerPair, places: Sequence[int]) -> None:
            if pair.layer in statistics:
                part = torch.zeros((len(pair.inputs), self.dimension), device=self.lm.device)
                self.add(pair, statistics[pair.layer], part)
                found[list(places[pair.rows])] += part

        self.passes.run(rows, consume)
        vectors = np.asarray(found.cpu().numpy(), np.float32)
        self.reader.check_not_nan(ids, vectors, "the gradient of row")
        silent = float(len(ids) * (len(self.shapes) - len(statistics)))
        return RowLabels(self._features.pack(vectors), self.tokens_of(ids), len(rows), {SILENT: silent})

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens of rows, each read once."""
        return sum(len(self.reader.rows[item]) for item in ids)

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        """Return utilities `(n_targets, n_sources)` of features."""
        return self._features.utility(targets, sources)

    def subtask_utility(self, targets: Floats, sources: Floats, ids: Sequence[str]) -> Floats:
        """Return utilities, where targets of one subtask share that of their mean; without subtasks, this is `utility`."""
        if self.subtask is None:
            return self.utility(targets, sources)
        return self._features.subtask_utility(targets, sources, [self._subtasks[item] for item in ids])

    def notes(self) -> tuple[str, ...]:
        """Return sentences about the rows, and about which layers are covered."""
        said = f"{self.title} covers {len(self.shapes)} linear layers"
        if self.passes.trainable is None:
            beside = self.passes.left_out
            said += f", {100 * self.passes.share:.0f} % of the model's parameters"
            said += f"; left out are those of {beside}" if beside else ""
        return (*super().notes(), f"{said}.")

    def describe(self) -> Mapping[str, Any]:
        """Return the teacher's own settings, model, wording, seed, the sample and the layers."""
        return {
            **super().describe(),
            "seed": self.seed,
            "layers": fingerprint(sorted(self.shapes)),
            "rows": contents(self._sample),
        }

    @property
    def _reading(self) -> str:
        return fingerprint(dict(super().describe()), self.seed, self.given.sample)
