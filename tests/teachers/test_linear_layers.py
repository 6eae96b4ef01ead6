from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nncift.models.causal_lm import CausalLM, Row
from nncift.models.linear_layers import LayerPair, LinearLayers
from nncift.models.training_steps import IGNORED, RowLoss, mean_loss, row_losses

ROWS = [Row((1, 9, 12, 15), (20, 21, 2)), Row((1, 30), (7, 8, 9, 10, 11)), Row((1, 14, 13, 12, 11, 10), (33,))]


@pytest.fixture(params=["llama_folder", "gpt2_folder"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    loaded: nn.Module = CausalLM.load(request.getfixturevalue(request.param), device="cpu").model
    return loaded


def gradients(layers: LinearLayers, loss: RowLoss = mean_loss) -> dict[str, torch.Tensor]:
    found = {name: torch.zeros(len(ROWS), *shape) for name, shape in layers.shapes.items()}

    def consume(pair: LayerPair) -> None:
        assert not found[pair.layer][pair.rows].any()
        found[pair.layer][pair.rows] = pair.gradients()

    layers.run(ROWS, consume, loss)
    return found


def by_autograd(layers: LinearLayers, row: Row, loss: RowLoss = mean_loss) -> dict[str, torch.Tensor]:
    """One row, every weight's gradient by autograd, as `(out, in)`."""
    weights: dict[str, Any] = {name: module.weight for name, module in layers.layers.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    row_losses(layers.model, [row], torch.device("cpu"), loss=loss).sum().backward()
    found = {name: weight.grad for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(False)
        weight.grad = None
    # Conv1D of GPT-2 keeps its weight the other way round.
    return {
        name: gradient if isinstance(layers.layers[name], nn.Linear) else gradient.T for name, gradient in found.items()
    }


def squared(logits: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """A loss of another kind: the sum of squared logits where a token is due."""
    return (logits.square().sum(-1) * (gold != IGNORED)).sum(1)


@pytest.mark.parametrize("loss", [mean_loss, squared])
def test_pairs_give_the_gradients_of_autograd(model: nn.Module, loss: RowLoss) -> None:
    layers = LinearLayers(model)
    assert layers.batched
    found = gradients(layers, loss)
    assert set(found) == set(layers.layers)
    for index, row in enumerate(ROWS):
        for name, expected in by_autograd(layers, row, loss).items():
            torch.testing.assert_close(found[name][index], expected, atol=1e-4, rtol=1e-4)


def test_the_layer_that_gives_the_logits_is_left_out(llama_folder: Path) -> None:
    names = list(LinearLayers(CausalLM.load(llama_folder, device="cpu").model).layers)
    assert "model.layers.0.self_attn.q_proj" in names
    assert "lm_head" not in names


def test_a_layer_that_mixes_rows_is_passed_row_by_row(llama_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model: Any = CausalLM.load(llama_folder, device="cpu").model

    class Flat(nn.Module):
        """Like an expert: sees tokens of all rows in one axis."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Any) -> Any:
            return self.inner(hidden.reshape(-1, hidden.shape[-1])).reshape(hidden.shape)

    model.model.layers[0].mlp = Flat(model.model.layers[0].mlp)
    layers = LinearLayers(model)
    assert not layers.batched
    assert "one row at a time" in caplog.text
    found = gradients(layers)
    for index, row in enumerate(ROWS):
        for name, expected in by_autograd(layers, row).items():
            torch.testing.assert_close(found[name][index], expected, atol=1e-5, rtol=1e-4)


def test_a_layer_that_is_called_twice_gives_one_pair_with_all_positions(llama_folder: Path) -> None:
    model: Any = CausalLM.load(llama_folder, device="cpu").model
    model.model.layers[1].mlp = model.model.layers[0].mlp
    layers = LinearLayers(model)
    assert layers.batched
    found = gradients(layers)
    for index, row in enumerate(ROWS):
        for name, expected in by_autograd(layers, row).items():
            torch.testing.assert_close(found[name][index], expected, atol=1e-5, rtol=1e-4)


def test_a_pass_leaves_the_model_as_it_was(llama_folder: Path) -> None:
    model = CausalLM.load(llama_folder, device="cpu").model
    LinearLayers(model).run(ROWS, lambda pair: None)
    assert not any(value.requires_grad or value.grad is not None for value in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
