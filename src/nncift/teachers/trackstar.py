"""TrackStar: gradients corrected by Adam's second moments, projected, whitened and scaled to length 1 (arXiv 2410.17413).

Of a linear layer with the gradient `G` of a row, `u = vec(P_o (G / sqrt(v)) P_i')` with `v` the second moments over a sample, r
numbers a side (method.md 3.5). `F` is the mean of `u u'`, mixed from the pool's sample and the target set; a row's vector is
`(F + lambda I)^-1/2 u` of all layers at length 1, `lambda = damping * mean diag F`, and the utility is the cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from nncift.core.seeds import shuffled
from nncift.data.examples import Examples
from nncift.errors import UsageError
from nncift.models.linear_layers import LayerPair
from nncift.models.response_reader import AnyModel, AnyTokenizer
from nncift.teachers.kept_rows import Kept, contents, on_record, put
from nncift.teachers.layer_statistics import Statistics, inverse_root
from nncift.teachers.layer_teacher import LayerSettings
from nncift.teachers.logra import TwoSided

if TYPE_CHECKING:
    import torch

SIDE = 16
"""Numbers a side. With 8, two draws of the projection ranked SmolLM2's rows at a Spearman of 0.42, with 16 at 0.60
(benchmarks/peer_rankings.py)."""

FLOOR = 1e-4
"""Beside the mean of a layer's second moments: what no row of the sample moves is scaled up a hundred times at most."""


class TrackStar(TwoSided):
    """The TrackStar teacher on a Hugging Face causal language model.

    projection: numbers a side. mix: share of the target set in F, where `aim` gave one. damping: lambda beside the mean of F's
    diagonal. Settings: see `LayerOptions`, `ModelSettings`.
    """

    name = "trackstar"
    title: ClassVar[str] = "TrackStar"
    fitting_passes: ClassVar[int] = 2
    cosine: ClassVar[bool] = True
    needs_targets = False

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        projection: int = SIDE,
        mix: float = 0.5,
        seed: int = 0,
        workspace: Path | None = None,
        **settings: Unpack[LayerSettings],
    ) -> None:
        if not 0 <= mix < 1:
            raise UsageError(f"trackstar's mix is the target set's share in F, from 0 to below 1, not {mix!r}")
        self.mix = mix
        super().__init__(
            model, tokenizer, projection=projection, seed=seed, workspace=workspace, own={"mix": mix}, **settings
        )
        self._aimed_at: Kept | None = None

    def aim(self, targets: Examples) -> None:
        """Take the rows of the target set, at most as many as the sample has, for F."""
        drawn = [item for item in shuffled(targets.ids, self.seed, self.name, "targets") if item in self.reader.rows]
        rows = {item: self.reader.rows[item] for item in drawn[: self.given.sample]}
        self._aimed_at, self._statistics = put(self._in_workspace("trackstar-targets.json"), self._reading, rows), None

    def _targets(self) -> Kept:
        if self._aimed_at is None:
            self._aimed_at = on_record(self._in_workspace("trackstar-targets.json"), lambda: self._reading)
        return self._aimed_at or {}

    @property
    def warm_up_passes(self) -> int:
        """Passes over the sample, and one over the targets."""
        return super().warm_up_passes + len(self._targets())

    @property
    def warm_up_tokens(self) -> int:
        """Tokens of these passes."""
        return super().warm_up_tokens + sum(map(len, self._targets().values()))

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the values, the target set among it."""
        return {**super().describe(), "targets": contents(self._targets())}

    def fit(self) -> Statistics:
        """Return by layer `1 / sqrt(v)`, `(out, in)`, and `(F + lambda I)^-1/2`."""
        import torch

        rows, targets = list(self.sampled.values()), list(self._targets().values())
        second = {name: torch.zeros(shape, device=self.lm.device) for name, shape in self.shapes.items()}

        def consume(name: str, gradients: torch.Tensor) -> None:
            second[name] += gradients.square().sum(0) / len(rows)

        self.passes.gradients(rows, consume)
        scales = {name: _inverse(own) for name, own in second.items() if float(own.sum()) != 0}

        def corrected(pair: LayerPair) -> torch.Tensor:
            return self._corrected(pair, scales[pair.layer])

        moments = self.moments(rows, corrected, scales)
        if targets and self.mix:
            theirs = self.moments(targets, corrected, scales)
            moments = {name: (1 - self.mix) * own + self.mix * theirs[name] for name, own in moments.items()}
        found = {}
        for name, moment in moments.items():
            root = inverse_root(moment, self.given.damping)
            if root is not None:
                found[name] = {"scale": scales[name], "root": root}
        return found

    def _corrected(self, pair: LayerPair, scale: torch.Tensor) -> torch.Tensor:
        """Return `u` of a call, `(n_rows, r * r)`."""
        import torch

        of_errors, of_inputs = self.sides[pair.layer]
        parts = []
        for at in self.passes.slices(len(pair.inputs), scale.numel()):
            gradients = pair.errors[at].float().transpose(1, 2) @ pair.inputs[at].float()
            parts.append((of_errors @ gradients.mul_(scale) @ of_inputs.T).flatten(1))
        return torch.cat(parts)

    def blank(self) -> Statistics:
        """Return scales and roots that change nothing."""
        import torch

        return {name: {**own, "scale": torch.ones(self.shapes[name])} for name, own in super().blank().items()}

    def add(self, pair: LayerPair, statistics: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """Add `(F + lambda I)^-1/2 u`."""
        out[:, self.places[pair.layer]] += self._corrected(pair, statistics["scale"]) @ statistics["root"]


def _inverse(second: torch.Tensor) -> torch.Tensor:
    """Return `1 / sqrt(v)`, with a floor beside the mean of v."""
    mean = float(second.double().mean())
    found: torch.Tensor = (second / mean + FLOOR).rsqrt() * mean**-0.5
    return found
