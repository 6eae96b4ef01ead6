"""LESS: how much a step on a source would lower a target's loss, from projected gradients (method.md 3.3; arXiv 2402.04333).

At every checkpoint of a short warm-up each row has two features: its plain gradient (as a target) and the update that Adam
would make from it (as a source), both through one random projection. `utility[t, s]` is their cosine, averaged over
checkpoints by learning rate. One forward and backward pass per row and checkpoint gives both, and all pairs follow.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np

from nncift.core.arrays import Floats
from nncift.core.fingerprints import fingerprint
from nncift.core.result_types import JsonObject
from nncift.data.examples import Examples, Rejection
from nncift.errors import ResourceError
from nncift.models.causal_lm import Row
from nncift.models.checkpoints import Adam, Checkpoint, bring, content
from nncift.models.lora import Trainable
from nncift.models.lora_gradients import LoraGradients, gradients_of
from nncift.models.per_sample_gradients import PerSample, Piece, gradient_batches
from nncift.models.response_reader import BATCH_TOKENS, AnyModel, AnyTokenizer, parted
from nncift.storage.ledger import training_cost
from nncift.teachers import Kind, RowLabels, subtasks
from nncift.teachers.abilities import GRADIENT, StoredAs
from nncift.teachers.kept_rows import InWorkspace
from nncift.teachers.less_features import GradientFeatures
from nncift.teachers.less_options import LessOptions, LessSettings
from nncift.teachers.less_projection import Projection
from nncift.teachers.less_warmup import UPDATES_APART, Recipe, describe_warmup, draw, thinned, train, try_gradient
from nncift.teachers.model_teacher import ModelTeacher

ALIKE = "neighbours_alike"
NEARLY_ALIKE = 0.99
"""Mean cosine of a row's features at neighbouring checkpoints above which another checkpoint is not worth its pass."""


class Less(InWorkspace, ModelTeacher):
    """The LESS teacher on a Hugging Face causal language model.

    model: a local folder or hub name, or a loaded `CausalLM`, which is copied and stays as it is. seed: of the warm-up and the
    projection. workspace: a folder for the warm-up's rows and checkpoints. Settings: those of `ModelSettings` and `LessOptions`.

    Features are those of `GradientFeatures`: for each checkpoint as a target, as a source, and a norm. A run keeps them in half
    precision: they are parts of unit vectors, whose cosines lose less by it than by any projection.
    """

    name = "less"
    stored_as: StoredAs = "float16"
    kind: Kind = "pairwise"
    pass_weight = GRADIENT

    def __new__(cls, *given: Any, projection_kind: str | None = None, **settings: Any) -> Self:
        """Choose the form by the projection: `target` makes a `Gist`."""
        from nncift.teachers.gist import Gist

        made: Self = super().__new__(Gist if cls is Less and projection_kind == "target" else cls)  # type: ignore[assignment]
        return made

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        seed: int = 0,
        workspace: Path | None = None,
        **settings: Unpack[LessSettings],
    ) -> None:
        shared, given = parted(settings)
        own = LessOptions(**given)
        super().__init__(
            model, {"batch_tokens": shared.get("batch_tokens", BATCH_TOKENS), **own.to_json()}, tokenizer, **shared
        )
        share = Recipe.share if own.warmup_share is None else own.warmup_share
        self.recipe, self._enough = Recipe(share, own.epochs, own.learning_rate), own.warmup_share is None
        self.lora, self.folders = own.shape, own.folders
        self.weights = own.modules if self.lora is None else None
        self.wanted = own.checkpoints if isinstance(own.checkpoints, int) else None
        self.recipe.kept(0, self.wanted)
        self.projection = Projection(own.projection, seed, own.projection_kind)
        self.adam, self.aggregate, self.subtask = own.adam, own.aggregate, own.subtask
        self.seed, self.workspace = seed, workspace
        self._subtasks: dict[str, str] = {}
        self._rows: Mapping[str, Row] = self.reader.rows
        self._sample: list[Row] | None = None
        self._pool = 0
        self._checkpoints: list[Checkpoint] | None = None

    @cached_property
    def trainable(self) -> Trainable:
        """The parameters whose gradients count; they live in a copy where the model's own weights would change."""
        trains_weights = self.lora is None and self.recipe.trains
        model = copy.deepcopy(self.lm.model) if self.reader.borrowed or trains_weights else self.lm.model
        if self.folders is not None:
            return Trainable.with_adapter(model, self.folders[0])
        if self.lora is None:
            return Trainable.whole(model, self.weights)
        return Trainable.with_lora(model, self.lora, self.seed)

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints features are taken at: passes per row. At most so many before rows are drawn."""
        return len(self._kept) if self.folders is None else len(self.folders)

    @property
    def width(self) -> int:
        """Numbers per row. Known once the warm-up's rows were drawn."""
        return self._features.width

    @property
    def figures(self) -> tuple[str, ...]:
        """How alike a row's features are at neighbouring checkpoints, where there are several."""
        return (ALIKE,) if self.n_checkpoints > 1 else ()

    def warnings(self, means: Mapping[str, float]) -> tuple[str, ...]:
        """Return a sentence where the checkpoints are nearly alike."""
        if means.get(ALIKE, 0.0) <= NEARLY_ALIKE:
            return ()
        return (
            f"LESS's {self.n_checkpoints} checkpoints are nearly alike: features of neighbouring ones have a cosine of "
            f"{means[ALIKE]:.3f} in the mean over measured rows, so that all but one of {self.n_checkpoints} passes per row add "
            "next to nothing. Take fewer (--option checkpoints=1), or checkpoints of a longer training.",
        )

    def notes(self) -> tuple[str, ...]:
        """Return sentences about the rows that were prepared, and what the warm-up's size decided."""
        return (*super().notes(), *self._fewer_rows(), *self._fewer_checkpoints())

    def _fewer_rows(self) -> tuple[str, ...]:
        rows, published = len(self._sample or ()), self.recipe.rows(self._pool, enough=False)
        if not self._enough or not rows or rows >= published:
            return ()
        share = f"{100 * self.recipe.share:g} %"
        return (
            f"LESS warms up on {rows:,} of {self._pool:,} rows, where {share} would be {published:,} and cost "
            f"{100 * self.recipe.epochs * published * GRADIENT / training_cost(self._pool):.1f} % of training on all rows "
            f"(--option warmup_share={self.recipe.share:g} takes them).",
        )

    def _fewer_checkpoints(self) -> tuple[str, ...]:
        kept, every = self.n_checkpoints, self.recipe.epochs
        if self.folders is not None or self.wanted is not None or not self.recipe.trains or kept == every:
            return ()
        updates = every * self.recipe.updates(len(self._sample or ()))
        return (
            f"LESS takes gradients at {kept} checkpoint{'s' * (kept != 1)} instead of {every}: the warm-up makes only "
            f"{updates} update{'s' * (updates != 1)}, and checkpoints fewer than {UPDATES_APART} updates apart say much the same "
            f"(--option checkpoints={every} takes all).",
        )

    @property
    def _kept(self) -> tuple[int, ...]:
        if self._sample is None and self.recipe.trains and self.wanted is None:
            # Nobody knows yet how many updates there will be: at most so many.
            return tuple(range(1, self.recipe.epochs + 1))
        return self.recipe.kept(len(self._sample or ()), self.wanted)

    @property
    def _features(self) -> GradientFeatures:
        return GradientFeatures(self.n_checkpoints, self.projection.dimension)

    @property
    def row_passes(self) -> int:
        """Passes of a row, each forward and backward."""
        return self.n_checkpoints

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Tokenise rows, and draw the rows of the warm-up from the first pool that is given; training waits for `measure`.

        The drawn rows are kept in the workspace, where there is one, so that a pool may grow.
        """
        self._check_precision()
        rejected = super().prepare(examples)
        self._subtasks |= subtasks.named_in(examples, self.subtask)
        fresh = {example.id: self._rows[example.id] for example in examples if example.id in self._rows}
        if self._sample is None and fresh and self.folders is None and self.recipe.trains:
            self._pool = len(fresh)
            count = self.recipe.rows(len(fresh), enough=self._enough)
            record = self._in_workspace("warmup.json")
            self._sample = draw(fresh, count, self.seed, record, fingerprint(self._training()))
        return rejected

    def without_warm_up(self) -> Less:
        """Return the same teacher with one checkpoint and no warm-up, on the same weights, so that a row's cost can be known."""
        if self.folders is None and not self.recipe.trains:
            return self
        options = {name: value for name, value in self.options.items() if name not in ("teacher", "model")}
        options |= {"warmup_share": 0.0, "device": self.reader.device, "seed": self.seed}
        options |= {"checkpoints": None} if self.folders is None else {"checkpoints": self.folders[:1], "lora": None}
        found = Less(self.reader.source, **options)
        found.reader.lm = self.lm.with_own_modules()
        return found

    def try_step(self, ids: Sequence[str]) -> None:
        """Compute the gradient of rows as an update of the warm-up does, with dropout, and change nothing."""
        with self.trainable.at(self.warm_up()[0].weights):
            try_gradient(self.trainable, [self._rows[item] for item in ids], self.reader.batch_tokens)

    def warm_up(self) -> Sequence[Checkpoint]:
        """Return the checkpoints: the user's own, those in the workspace, or freshly trained ones."""
        if self._checkpoints is None:
            if self.folders is not None:
                self._checkpoints = bring(self.trainable, self.folders)
            else:
                every = train(
                    self.trainable,
                    self._sample or [],
                    self.recipe,
                    seed=self.seed,
                    batch_tokens=self.reader.batch_tokens,
                    folder=self._in_workspace("warmup"),
                    key=fingerprint(self._training(), self._sample_key()),
                )
                self._checkpoints = thinned(every, self._kept)
        return self._checkpoints

    @property
    def warm_up_tokens(self) -> int:
        """Tokens of the warm-up's passes, forward and backward: what precedes all rows, for the ledger."""
        return self.recipe.epochs * sum(map(len, self._sample or [])) if self.recipe.trains else 0

    @property
    def warm_up_passes(self) -> int:
        """Rows times epochs of the warm-up."""
        return self.recipe.epochs * len(self._sample or []) if self.recipe.trains else 0

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return the features of rows, `(n, width)`. Raises ResourceError for a row whose gradient is no number."""
        rows = [self._rows[example_id] for example_id in ids]
        found = [self._at(checkpoint, rows) for checkpoint in self.warm_up()]
        features = self._features
        values = np.empty((len(rows), features.width), dtype=np.float32)
        for number, (target, source) in enumerate(found):
            features.put(values, number, target, source)
        self.reader.check_not_nan(ids, values, "the gradient of row")
        alike = {ALIKE: float(features.neighbours_alike(values).sum())} if self.figures else {}
        return RowLabels(values, self.tokens_of(ids), len(found) * len(rows), alike)

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens of rows, each read at every checkpoint; those of the warm-up are `warm_up_tokens`."""
        return self.n_checkpoints * sum(len(self._rows[item]) for item in ids)

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        """Return the cosine of gradient and update, averaged over checkpoints by learning rate: `(n_targets, n_sources)`."""
        return self._features.utility(targets, sources, self._rates())

    def subtask_utility(self, targets: Floats, sources: Floats, ids: Sequence[str]) -> Floats:
        """Return what every target's subtask makes of the sources, `(n_targets, n_sources)`: targets of one subtask agree.

        ids: of the targets, which were prepared with a subtask each; without subtasks, this is `utility`. With
        `mean-of-cosines` it is so too, since means over a subtask are taken when rows are scored.
        """
        if self.subtask is None or self.aggregate == "mean-of-cosines":
            return self.utility(targets, sources)
        own = [self._subtasks[item] for item in ids]
        names, table = self._features.subtask_utility(targets, sources, self._rates(), own, self.aggregate)
        return table[[names.index(name) for name in own]]

    def describe(self) -> Mapping[str, Any]:
        """Return model, wording, warm-up and its rows, projection and Adam's form."""
        return {
            "teacher": self.name,
            **self._training(),
            "sample": self._sample_key(),
            **({} if self.folders is not None else {"checkpoints": list(self._kept)}),
            "projection": self.projection.describe(),
            **({} if self.subtask is None else {"subtask": self.subtask, "aggregate": self.aggregate}),
            "adam": self.adam,
            "batch_tokens": self.reader.batch_tokens,
        }

    def _check_precision(self) -> None:
        """Raise ResourceError for float16, in which most of a gradient is below the smallest number."""
        if str(self.lm.model.dtype) == "torch.float16":
            raise ResourceError(
                f"LESS takes gradients of {self.lm.name!r}, and in float16 most of them round to 0; give --dtype bfloat16, which "
                "has the range, or float32"
            )

    def _training(self) -> JsonObject:
        trained = describe_warmup(self.recipe, self.lora)
        if self.folders is not None:
            trained = {"brought": [content(folder) for folder in self.folders]}
        elif self.weights is not None:
            trained["weights"] = list(self.weights)
        read = self.reader.describe()
        del read["batch_tokens"]
        return {**read, "warmup": trained, "seed": self.seed}

    def _sample_key(self) -> str | None:
        return None if self._sample is None else fingerprint([row.record() for row in self._sample])

    @cached_property
    def _gradients(self) -> PerSample | LoraGradients:
        # A dense matrix is made anew for every piece: the fewer the better.
        whole = self.projection.kind == "dense" or self.lm.device.type != "cpu"
        return gradients_of(self.trainable, head_is_last=self.lm.head_is_last, whole=whole)

    def _at(self, checkpoint: Checkpoint, rows: Sequence[Row]) -> Floats:
        """Return projected gradients and projected updates of rows at a checkpoint: `(2, n_rows, dimension)`."""
        import torch

        k, device = self.projection.dimension, self.lm.device
        adam = None if self.adam == "none" else Adam(checkpoint, self.adam, device)
        found = np.empty((2, len(rows), k), dtype=np.float32)
        with self.trainable.merged_at(checkpoint.weights):
            sizes = self._gradients.sizes

            def measure(places: Sequence[int]) -> Sequence[int]:
                target, source = torch.zeros((2, len(places), k), device=device)

                def consume(piece: Piece) -> None:
                    here = piece.rows
                    self.projection.add_piece(piece, sizes[piece.name], target[here], adam, source[here])

                self._gradients.run([rows[place] for place in places], consume)
                found[0, places] = target.cpu().numpy()
                found[1, places] = (target if adam is None else source).cpu().numpy()
                return places

            for batch in self._batches(rows):
                self.lm.fits.run(batch, lambda place: len(rows[place]), measure)
        return found

    def _batches(self, rows: Sequence[Row]) -> list[list[int]]:
        return gradient_batches(self.lm, rows, self.reader.batch_tokens)

    def _rates(self) -> list[float]:
        return [checkpoint.learning_rate for checkpoint in self.warm_up()]
