from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from nncift.models.gradient_parts import Contributions, Span, Use


class Scaled(nn.Module):
    """Multiplies by its weight entry by entry, as a norm of a language model does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * x.pow(2).mean(-1, keepdim=True).rsqrt()


class Summed(nn.Module):
    """Takes a copy of the weight for each row without complaint, and would then mean something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.sum()


MODULES = {
    "scaled": (Scaled, True),
    "summed": (Summed, False),
    "rms": (lambda: nn.RMSNorm(6), False),
    "layer": (lambda: nn.LayerNorm(6), None),
    "linear": (lambda: nn.Linear(6, 6), None),
}


@pytest.mark.parametrize("name", list(MODULES))
def test_every_kind_of_module_gives_the_gradients_of_autograd(name: str) -> None:
    torch.manual_seed(0)
    make, broadcasts = MODULES[name]
    module = make()
    read, back = torch.randn(3, 5, 6), torch.randn(3, 5, 6)
    found = Contributions()
    for attribute, parameter in module.named_parameters():
        use = Use(module, {attribute: "name"}, read, back)
        out = torch.full((3, parameter.numel()), 9.0)
        found.add(use, "name", slice(0, 3), out, first=True)
        found.add(use, "name", slice(0, 3), out, first=False)
        for row in range(3):
            (expected,) = torch.autograd.grad(module(read[row : row + 1]), parameter, back[row : row + 1])
            torch.testing.assert_close(out[row], 2 * expected.flatten(), atol=1e-5, rtol=1e-5)
    if broadcasts is not None:
        assert found._broadcasts[id(module), "weight"] is broadcasts


def test_an_embedding_scatters_and_leaves_its_padding_out() -> None:
    module = nn.Embedding(4, 2, padding_idx=0)
    use = Use(module, {"weight": "name"}, torch.tensor([[1, 1, 0], [3, 0, 2]]), torch.ones(2, 3, 2))
    out = torch.full((2, 8), 9.0)
    Contributions().add(use, "name", slice(0, 2), out, first=True)
    assert out.view(2, 4, 2)[:, :, 0].tolist() == [[0, 2, 0, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 4, bias=False), lambda: nn.Embedding(4, 3, padding_idx=1)])
def test_lines_of_a_weight_are_those_of_the_whole(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make()
    embeds = isinstance(module, nn.Embedding)
    read = torch.tensor([[1, 3, 0], [3, 2, 2]]) if embeds else torch.randn(2, 3, 3)
    use, found = Use(module, {"weight": "name"}, read, torch.randn(2, 3, 3 if embeds else 4)), Contributions()
    whole, part = torch.empty(2, 12), torch.empty(2, 6)
    found.add(use, "name", slice(0, 2), whole, first=True)
    found.add(use, "name", slice(0, 2), part, first=True, span=Span(1, 3, 3))
    torch.testing.assert_close(part, whole[:, 3:9])
