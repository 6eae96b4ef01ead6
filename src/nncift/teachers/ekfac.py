"""EK-FAC: influence functions with an eigenvalue-corrected Kronecker factorisation of the curvature (arXiv 2308.03296).

Of a linear layer with inputs `a` and errors `d`, for labels sampled from the model, `A = E[a a']` and `B = E[d d']` have the
eigenvectors `Q_A` and `Q_B`, and `L_ij = E[(Q_B' G Q_A)_ij^2]` over rows with gradients `G` (method.md 3.5). `utility[t, s]` is
the sum over layers of `<rot(g_t), rot(g_s) / (L + damping * mean L)>` with `rot(g) = Q_B' g Q_A` and real labels' gradients.
The division is split into its root on both sides, then both are sketched, so that a row stays one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from nncift.core.seeds import generator
from nncift.models.causal_lm import Row
from nncift.models.linear_layers import LayerPair
from nncift.models.response_reader import AnyModel, AnyTokenizer
from nncift.models.training_steps import IGNORED, RowLoss, mean_loss
from nncift.teachers.layer_statistics import Statistics
from nncift.teachers.layer_teacher import LayerSettings, LayerTeacher
from nncift.teachers.less_projection import Projection

if TYPE_CHECKING:
    import torch

SAMPLE = 128
"""Rows that statistics are taken from by default: a pass for them costs twice what it does for other teachers of layers."""
EXACT = 512
"""Width up to which eigenvectors are taken in double precision."""


NUMBERS = 131_072
"""Numbers of a row's sketch. Of SmolLM2's rows, two sketches of 32,768 numbers rank alike at a Spearman of 0.65, of 131,072 at
0.85, of 524,288 at 0.95 (benchmarks/peer_rankings.py; of other rows 0.54, 0.77, 0.90). A row of this many takes 0.5 MB."""


class EkFac(LayerTeacher):
    """The EK-FAC teacher on a Hugging Face causal language model.

    projection: numbers of a row's sketch. damping: beside the mean of a layer's L. Settings: see `LayerOptions`, `ModelSettings`.
    Two passes over the sample, of SAMPLE rows by default; statistics take `out^2 + in^2 + out * in` numbers of float32 a layer.
    """

    name = "ekfac"
    title: ClassVar[str] = "EK-FAC"
    fitting_passes: ClassVar[int] = 2
    cosine: ClassVar[bool] = False

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        projection: int = NUMBERS,
        seed: int = 0,
        workspace: Path | None = None,
        **settings: Unpack[LayerSettings],
    ) -> None:
        self.sketch = Projection(projection, seed)
        given: Any = {"sample": SAMPLE, **settings}
        super().__init__(model, tokenizer, seed=seed, workspace=workspace, own={"projection": projection}, **given)

    @property
    def dimension(self) -> int:
        """Numbers of a row's sketch."""
        return self.sketch.dimension

    def fit(self) -> Statistics:
        """Return by layer `Q_A`, `Q_B` and `(L + damping * mean L)^-1/2`."""
        rows = list(self.sampled.values())
        bases = self._bases(rows)
        moments = dict(self._corrections(rows, bases))
        found = {}
        for name in list(moments):
            moment = moments.pop(name)
            mean = float(moment.double().mean())
            if mean != 0:
                inputs, errors = bases[name]
                scale = (moment / mean + self.given.damping).rsqrt() * mean**-0.5
                found[name] = {"inputs": inputs, "errors": errors, "scale": scale}
        return found

    def _bases(self, rows: Sequence[Row]) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return the eigenvectors of A and of B by layer."""
        import torch

        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

        def consume(pair: LayerPair, places: Sequence[int]) -> None:
            lengths = [len(rows[place]) for place in places[pair.rows]]
            inputs = _without_padding(pair.inputs, lengths).flatten(0, 1)
            errors = pair.errors.flatten(0, 1)
            if pair.layer not in found:
                sizes = (inputs.shape[1], errors.shape[1])
                found[pair.layer] = tuple(torch.zeros((size, size), device=inputs.device) for size in sizes)  # type: ignore[assignment]
            for total, values in zip(found[pair.layer], (inputs.float(), errors.float()), strict=True):
                total.addmm_(values.T, values)

        self.passes.run(rows, consume, self._sampled_labels(rows))
        # One after the other: moments and eigenvectors of all layers would be twice as much.
        turned = {}
        for name in list(found):
            inputs, errors = found.pop(name)
            turned[name] = (_eigenvectors(inputs), _eigenvectors(errors))
        return turned

    def _corrections(
        self, rows: Sequence[Row], bases: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> Mapping[str, torch.Tensor]:
        """Return L by layer, `(out, in)`."""
        import torch

        found = {name: torch.zeros(self.shapes[name], device=self.lm.device) for name in bases}

        def consume(name: str, gradients: torch.Tensor) -> None:
            found[name] += gradients.square().sum(0) / len(rows)

        turned: Callable[[LayerPair], LayerPair] = lambda pair: _rotated(pair, *bases[pair.layer])  # noqa: E731
        self.passes.gradients(rows, consume, self._sampled_labels(rows), turned)
        return found

    def _sampled_labels(self, rows: Sequence[Row]) -> Callable[[Sequence[int]], RowLoss]:
        """Return what makes the loss of rows at places of the sample, with labels that the model itself gives.

        Each row's are drawn from the seed and its place, so that batches do not change them.
        """

        def made(places: Sequence[int]) -> RowLoss:
            waiting = list(places)

            def loss(logits: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
                here = [waiting.pop(0) for _ in range(len(gold))]
                return mean_loss(logits, drawn_labels(logits, gold, self.seed, here))

            return loss

        return made

    def blank(self) -> Statistics:
        """Return rotations and scales that change nothing."""
        import torch

        return {
            name: {"inputs": torch.eye(into), "errors": torch.eye(out), "scale": torch.ones((out, into))}
            for name, (out, into) in self.shapes.items()
        }

    def add(self, pair: LayerPair, statistics: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """Add the sketch of `rot(g) / sqrt(L + damping * mean L)`."""
        pair = _rotated(pair, statistics["inputs"], statistics["errors"])
        for at in self.passes.slices(len(out), statistics["scale"].numel()):
            gradients = pair.errors[at].transpose(1, 2) @ pair.inputs[at]
            self.sketch.add(pair.layer, gradients.mul_(statistics["scale"]).flatten(1), out[at])


def drawn_labels(logits: torch.Tensor, gold: torch.Tensor, seed: int, places: Sequence[int]) -> torch.Tensor:
    """Return labels `(n_rows, longest)` drawn from the logits `(n_rows, longest, vocabulary)`, IGNORED where gold is.

    places: of the rows in the sample, which with the seed decide the draws.
    """
    import torch

    found = gold.clone()
    for row, place in enumerate(places):
        due = gold[row] != IGNORED
        chances = logits[row, due].detach().double().softmax(-1).cumsum(-1)
        draws = torch.from_numpy(generator(seed, "ekfac", "labels", str(place)).random(int(due.sum())))
        labels = torch.searchsorted(chances, draws.to(chances.device, chances.dtype)[:, None])[:, 0]
        found[row, due] = labels.clamp(max=logits.shape[-1] - 1)
    return found


def _rotated(pair: LayerPair, inputs: torch.Tensor, errors: torch.Tensor) -> LayerPair:
    return replace(pair, inputs=pair.inputs.float() @ inputs, errors=pair.errors.float() @ errors)


def _without_padding(inputs: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Return inputs `(n_rows, positions, in)` with 0 behind the end of each row, where positions are those of tokens."""
    import torch

    if len(lengths) == 1 or inputs.shape[1] != max(lengths):
        return inputs
    ends = torch.tensor(lengths, device=inputs.device)[:, None]
    return inputs * (torch.arange(inputs.shape[1], device=inputs.device) < ends)[..., None]


def _eigenvectors(moment: torch.Tensor) -> torch.Tensor:
    """Return the eigenvectors of a symmetric matrix, `(n, n)`, a column each; of 0, the unit vectors."""
    import torch

    size = float(moment.diagonal().sum())
    if not size > 0:
        return torch.eye(len(moment), device=moment.device) if size == 0 else moment * float("nan")
    scaled = moment / size
    found: torch.Tensor = torch.linalg.eigh(scaled.double() if len(moment) <= EXACT else scaled)[1].float()
    return found.contiguous()
