"""LoGra: influence functions on gradients that are projected from both sides (method.md 3.5; arXiv 2405.13954).

Of a linear layer with inputs `a` and errors `d`, a row's numbers are `u = vec(sum over tokens of (P_o d)(P_i a)')`, r to a side,
with random projections. `F` is the mean of `u u'` over a sample, and `utility[t, s]` is the sum over layers of
`u_t' (F + lambda I)^-1 u_s`, `lambda = damping * mean diag F`. The inverse is split into roots, so that a row stays one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Unpack

from nncift.core.seeds import generator
from nncift.errors import UsageError
from nncift.models.causal_lm import Row
from nncift.models.linear_layers import LayerPair
from nncift.models.response_reader import AnyModel, AnyTokenizer
from nncift.teachers.layer_statistics import Statistics, inverse_root
from nncift.teachers.layer_teacher import LayerSettings, LayerTeacher

if TYPE_CHECKING:
    import torch

SIDE = 8


class TwoSided(LayerTeacher):
    """A teacher whose numbers are gradients of every layer, projected to `projection` numbers a side."""

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        projection: int = SIDE,
        seed: int = 0,
        workspace: Path | None = None,
        own: Mapping[str, object] | None = None,
        **settings: Unpack[LayerSettings],
    ) -> None:
        if not isinstance(projection, int) or projection < 1:
            raise UsageError(
                f"{self.name}'s projection is a number of dimensions a side, at least 1, not {projection!r}"
            )
        self.projection = projection
        super().__init__(
            model, tokenizer, seed=seed, workspace=workspace, own={"projection": projection, **(own or {})}, **settings
        )

    @cached_property
    def sides(self) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """Projections of errors and of inputs by layer, `(r, out)` and `(r, in)`; the identity where a side is as narrow."""
        import torch

        found = {}
        for name, widths in self.shapes.items():
            pair = []
            for side, width in zip(("errors", "inputs"), widths, strict=True):
                if width <= self.projection:
                    pair.append(torch.eye(width))
                else:
                    random = generator(self.seed, self.name, name, side)
                    signs = torch.from_numpy(random.choice([-1.0, 1.0], (self.projection, width)).astype("float32"))
                    pair.append(signs * self.projection**-0.5)
            found[name] = (pair[0].to(self.lm.device), pair[1].to(self.lm.device))
        return found

    @cached_property
    def places(self) -> Mapping[str, slice]:
        """Where each layer's numbers lie in a row's vector."""
        start, found = 0, {}
        for name, (out, into) in self.shapes.items():
            size = min(out, self.projection) * min(into, self.projection)
            found[name] = slice(start, start + size)
            start += size
        return found

    @property
    def dimension(self) -> int:
        """Numbers of a row: those of all layers."""
        return sum(place.stop - place.start for place in self.places.values())

    def projected(self, pair: LayerPair) -> torch.Tensor:
        """Return `u` of a call, `(n_rows, r * r)`."""
        of_errors, of_inputs = self.sides[pair.layer]
        errors, inputs = pair.errors.float() @ of_errors.T, pair.inputs.float() @ of_inputs.T
        return (errors.transpose(1, 2) @ inputs).flatten(1)

    def moments(
        self, rows: Sequence[Row], numbers: Callable[[LayerPair], torch.Tensor], layers: Collection[str]
    ) -> Mapping[str, torch.Tensor]:
        """Return F by layer: the mean of `u u'` over rows, `u` being the numbers of a call."""
        import torch

        vectors = torch.zeros((len(rows), self.dimension), device=self.lm.device)

        def consume(pair: LayerPair, places: Sequence[int]) -> None:
            if pair.layer in layers:
                vectors[list(places[pair.rows]), self.places[pair.layer]] += numbers(pair)

        self.passes.run(rows, consume)
        parts = {name: vectors[:, self.places[name]] for name in layers}
        return {name: own.T @ own / len(rows) for name, own in parts.items()}

    def blank(self) -> Statistics:
        """Return roots that change nothing."""
        import torch

        sizes = {name: place.stop - place.start for name, place in self.places.items()}
        return {name: {"root": torch.eye(size)} for name, size in sizes.items()}


class Logra(TwoSided):
    """The LoGra teacher on a Hugging Face causal language model.

    projection: numbers a side. damping: lambda beside the mean of F's diagonal. Settings: see `LayerOptions`, `ModelSettings`.
    """

    name = "logra"
    title: ClassVar[str] = "LoGra"
    fitting_passes: ClassVar[int] = 1
    cosine: ClassVar[bool] = False

    def fit(self) -> Statistics:
        """Return by layer `(F + lambda I)^-1/2`."""
        rows = list(self.sampled.values())
        found = {}
        for name, moment in self.moments(rows, self.projected, self.places).items():
            root = inverse_root(moment, self.given.damping)
            if root is not None:
                found[name] = {"root": root}
        return found

    def add(self, pair: LayerPair, statistics: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """Add `(F + lambda I)^-1/2 u`."""
        out[:, self.places[pair.layer]] += self.projected(pair) @ statistics["root"]
