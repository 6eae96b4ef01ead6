"""Retraining: what training with a row and without it does to a target's loss, by regression over many trainings (method.md 3.5).

M halves of the pool are drawn, and the model is trained on each, alike. `utility[t, s]` is the coefficient of the inclusion of s
in a ridge regression of `-loss_t` on the inclusions of all rows, over the M trainings (a datamodel, arXiv 2202.00622). For small
models and pools, where a training takes seconds: this is what other teachers are judged by, with the noise of M trainings.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np

from nncift.core.arrays import Doubles, Floats
from nncift.core.fingerprints import fingerprint
from nncift.core.seeds import derive, shuffled
from nncift.data.examples import Examples, Rejection
from nncift.errors import UsageError
from nncift.models.batching import batches
from nncift.models.causal_lm import Row
from nncift.models.checkpoints import Checkpoint
from nncift.models.lora import LoraShape, Trainable
from nncift.models.response_reader import AnyModel, AnyTokenizer, ModelSettings, parted
from nncift.models.training_steps import row_losses
from nncift.teachers import Kind, RowLabels
from nncift.teachers.abilities import FORWARD, GRADIENT
from nncift.teachers.kept_rows import InWorkspace, Kept, contents, on_record, put
from nncift.teachers.less_warmup import Recipe, train
from nncift.teachers.model_teacher import ModelTeacher

if TYPE_CHECKING:
    import torch


class RetrainSettings(ModelSettings, total=False):
    """What `Retrain` takes by keyword: the settings of every model teacher, and its own (see `RetrainOptions`)."""

    trainings: int
    share: float
    ridge: float
    epochs: int
    learning_rate: float
    batch_rows: int
    lora: bool
    rank: int
    alpha: float


@dataclass(frozen=True)
class RetrainOptions:
    """trainings: M. share: of the pool in each. ridge: of the regression, beside the mean diagonal of the inclusions' products.

    epochs, learning_rate, batch_rows: of every training. lora: fresh LoRA matrices of `rank` and `alpha` on the attention, the
    same for every training; else all parameters.
    """

    trainings: int = 50
    share: float = 0.5
    ridge: float = 1.0
    epochs: int = 1
    learning_rate: float = 1e-3
    batch_rows: int = 4
    lora: bool = True
    rank: int = 8
    alpha: float = 16

    def __post_init__(self) -> None:
        if not isinstance(self.trainings, int) or self.trainings < 2:
            raise UsageError(f"retrain compares trainings: at least 2, not {self.trainings!r}")
        if not 0 < self.share < 1:
            raise UsageError(f"retrain trains on a share of the pool between 0 and 1, not {self.share!r}")
        if not self.ridge > 0:
            raise UsageError(f"retrain's ridge is above 0, not {self.ridge!r}: there are more rows than trainings")
        if self.epochs < 1:
            raise UsageError(f"retrain trains for at least 1 epoch, not {self.epochs!r}")


class Retrain(InWorkspace, ModelTeacher):
    """The retraining teacher on a Hugging Face causal language model.

    seed: of halves, LoRA matrices and the order of rows. workspace: keeps the pool and every training, so that a run that was
    stopped goes on behind the last. A row's numbers are its losses after the M trainings, and in which of them it was. Passes are
    counted in forward passes, of which a step of a training takes three a row. Settings: see `ModelSettings`, `RetrainOptions`.
    """

    name = "retrain"
    kind: Kind = "pairwise"
    pass_weight = FORWARD
    needs_targets = False

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        seed: int = 0,
        workspace: Path | None = None,
        **settings: Unpack[RetrainSettings],
    ) -> None:
        shared, given = parted(settings)
        self.given = RetrainOptions(**given)
        self.recipe = Recipe(1.0, self.given.epochs, self.given.learning_rate, self.given.batch_rows)
        super().__init__(model, vars(self.given), tokenizer, **shared)
        self.seed, self.workspace = seed, workspace
        self._pool: Kept | None = None
        self._aimed_at: Kept | None = None
        self._trained: list[Mapping[str, torch.Tensor]] | None = None
        self._plain = False

    @cached_property
    def trainable(self) -> Trainable:
        """What is trained, in a copy of the model where that is the caller's, or all of it is trained."""
        keep = self.reader.borrowed or not self.given.lora
        model = copy.deepcopy(self.lm.model) if keep else self.lm.model
        if not self.given.lora:
            return Trainable.whole(model)
        return Trainable.with_lora(model, LoraShape(self.given.rank, self.given.alpha, 0.0), self.seed)

    @cached_property
    def start(self) -> Mapping[str, torch.Tensor]:
        """The weights that every training begins with."""
        return self.trainable.snapshot()

    @property
    def width(self) -> int:
        """Numbers per row: a loss and an inclusion for every training."""
        return 2 * self.given.trainings

    @property
    def row_passes(self) -> int:
        """Passes of a row: its loss after every training."""
        return self.given.trainings

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Tokenise rows; the first that are given, or those on record, are the pool of all trainings; these wait."""
        rejected = super().prepare(examples)
        fresh = {item: self.reader.rows[item] for item in examples.ids if item in self.reader.rows}
        if self._pool is None and fresh:
            record = self._in_workspace("retrain-pool.json")
            self._pool = on_record(record, lambda: self._reading) or put(record, self._reading, fresh)
        return rejected

    def aim(self, targets: Examples) -> None:
        """Take the rows of a target set: rows that are in no training."""
        rows = {item: self.reader.rows[item] for item in targets.ids if item in self.reader.rows}
        self._aimed_at = put(self._in_workspace("retrain-targets.json"), self._reading, rows)

    @property
    def pool(self) -> Kept:
        """The rows of all trainings. Raises UsageError before rows were prepared, or where they are too few."""
        if self._pool is None:
            raise UsageError("retrain has no rows to train on: prepare a pool first")
        if not 0 < self._size < len(self._pool):
            raise UsageError(
                f"retrain trains on {100 * self.given.share:g} % of {len(self._pool)} rows; expected some of them and not all"
            )
        return self._pool

    @property
    def _size(self) -> int:
        return round(self.given.share * len(self._pool or ()))

    def half(self, number: int) -> tuple[str, ...]:
        """Return the rows of a training; the order of the pool carries no meaning."""
        return tuple(sorted(shuffled(self.pool, self.seed, "retrain", str(number))[: self._size]))

    @cached_property
    def inclusions(self) -> Mapping[str, Floats]:
        """In which trainings each row of the pool is, `(M,)` of 0 and 1."""
        halves = [frozenset(self.half(number)) for number in range(self.given.trainings)]
        return {item: np.array([item in half for half in halves], np.float32) for item in self.pool}

    def warm_up(self) -> Sequence[Mapping[str, torch.Tensor]]:
        """Return the weights after every training: those in the workspace, or trained now."""
        if self._trained is None:
            if self._plain:
                self._trained = [self.start] * self.given.trainings
            else:
                key = fingerprint(dict(self.describe()))
                self._trained = [self._training(number, key) for number in range(self.given.trainings)]
        return self._trained

    def _training(self, number: int, key: str) -> Mapping[str, torch.Tensor]:
        folder = self._in_workspace(f"retrain-training-{number:03d}")
        done = None if folder is None else Checkpoint.load(folder, key)
        if done is None:
            rows = [self.pool[item] for item in self.half(number)]
            order = derive(self.seed, "retrain", "order")
            # Losses are read with the weights of a training, which stay: every training begins where the first one does.
            self.trainable.load(self.start)
            given: Any = {"seed": order, "batch_tokens": self.reader.batch_tokens, "folder": None, "key": ""}
            done = Checkpoint(train(self.trainable, rows, self.recipe, **given)[-1].weights)
            if folder is not None:
                done.save(folder, key)
        return done.weights

    @property
    def warm_up_passes(self) -> int:
        """Forward passes that all trainings cost."""
        return GRADIENT * self.given.trainings * self.given.epochs * self._size

    @property
    def warm_up_tokens(self) -> int:
        """Tokens of these passes, those of a training three times; exact for rows of one length."""
        tokens = sum(map(len, (self._pool or {}).values()))
        return round(GRADIENT * self.given.trainings * self.given.epochs * self.given.share * tokens)

    def without_warm_up(self) -> Self:
        """Return the same teacher with two trainings that were not made, whose passes cost as much each."""
        options = {name: value for name, value in self.options.items() if name not in ("teacher", "model")}
        options |= {"trainings": 2, "device": self.reader.device}
        made = type(self)(self.reader.source, seed=self.seed, **options)
        made._plain = True
        return made

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return losses after every training and inclusions, `(n, 2 M)`.

        Raises UsageError for a row that is neither of the pool nor a target, ResourceError where a loss is no number.
        """
        rows = [self.reader.rows[item] for item in ids]
        inclusions = [self._inclusion(item) for item in ids]
        losses = np.stack([self._losses(weights, rows) for weights in self.warm_up()], axis=1)
        self.reader.check_not_nan(ids, losses, "the loss of row")
        values = np.concatenate([losses, np.stack(inclusions)], axis=1) if ids else np.empty((0, self.width))
        return RowLabels(values.astype(np.float32), self.tokens_of(ids), self.row_passes * len(ids))

    def _inclusion(self, item: str) -> Floats:
        if self._plain or item in self._targets():
            return np.zeros(self.given.trainings, np.float32)
        if item not in self.inclusions:
            raise UsageError(
                f"row {item!r} is in none of retrain's trainings, which were made of {len(self.pool)} rows, and is no target: a "
                "pool cannot grow under them; use another --out, or name the rows of a target set by aim()"
            )
        return self.inclusions[item]

    def _losses(self, weights: Mapping[str, torch.Tensor], rows: Sequence[Row]) -> Doubles:
        """Return the mean loss of every row's response, `(n,)`."""
        import torch

        found = np.full(len(rows), np.nan)
        device = self.lm.device

        def read(places: Sequence[int]) -> Sequence[int]:
            own = [rows[place] for place in places]
            losses = row_losses(self.trainable.model, own, device, head_is_last=self.lm.head_is_last)
            found[list(places)] = losses.double().cpu().numpy()
            return places

        with self.trainable.at(weights), torch.inference_mode():
            for batch in batches([len(row) for row in rows], self.reader.batch_tokens):
                self.lm.fits.run(batch, lambda place: len(rows[place]), read)
        return found

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens of rows, each read after every training."""
        return self.given.trainings * sum(len(self.reader.rows[item]) for item in ids)

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        """Return the coefficients of sources in the regression of every target, `(n_targets, n_sources)`."""
        m = self.given.trainings
        gains = -targets[:, :m].astype(np.float64)
        within = sources[:, m:].astype(np.float64)
        gains -= gains.mean(axis=1, keepdims=True)
        within -= within.mean(axis=1, keepdims=True)
        return np.asarray(gains @ self._solver @ within.T, np.float32)

    @cached_property
    def _solver(self) -> Doubles:
        """`(X X' + lambda I)^-1` of the centred inclusions X `(M, n_pool)`."""
        within = np.stack([self.inclusions[item] for item in self.pool], axis=1).astype(np.float64)
        within -= within.mean(axis=0)
        products = within @ within.T
        size = self.given.ridge * products.trace() / len(products)
        return np.asarray(np.linalg.inv(products + size * np.eye(len(products))), np.float64)

    def notes(self) -> tuple[str, ...]:
        """Return sentences about the rows, and what the trainings are."""
        m, epochs = self.given.trainings, self.given.epochs
        what = "LoRA matrices" if self.given.lora else "all parameters"
        said = (
            f"retrain trains {what} {m} times on {self._size} rows for {epochs} epoch{'s' * (epochs > 1)}: "
            f"{self.warm_up_passes:,} forward passes before the first row."
        )
        return (*super().notes(), said)

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the values, the pool of the trainings among it."""
        return {**super().describe(), "seed": self.seed, "pool": self._of_pool}

    def _targets(self) -> Kept:
        if self._aimed_at is None:
            self._aimed_at = on_record(self._in_workspace("retrain-targets.json"), lambda: self._reading)
        return self._aimed_at or {}

    @property
    def _of_pool(self) -> str | None:
        return (
            None if self._pool is None else fingerprint(sorted(self._pool), contents(dict(sorted(self._pool.items()))))
        )

    @property
    def _reading(self) -> str:
        return fingerprint(dict(super().describe()), self.seed)
