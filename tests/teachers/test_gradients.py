from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nncift.errors import UsageError
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.checkpoints import Adam, Checkpoint, Direction
from nncift.models.linear_layers import linear_layers
from nncift.models.lora import ALL_LINEAR, LoraShape, Trainable
from nncift.models.lora_gradients import LoraGradients, gradients_of
from nncift.models.per_sample_gradients import PerSample, Piece
from nncift.teachers.less_projection import Projection, ProjectionKind
from tests.tolerances import distances, of_gradients

ROWS = [Row((1, 9, 12, 15), (20, 21, 2)), Row((1, 30), (7, 8, 9, 10, 11)), Row((1, 14, 13, 12, 11, 10), (33,))]
Make = Callable[[nn.Module], Trainable]


def full(model: nn.Module) -> Trainable:
    return Trainable.whole(model)


def lora(model: nn.Module) -> Trainable:
    trainable = Trainable.with_lora(model, LoraShape(rank=4, alpha=8, dropout=0.1), seed=3)
    # A fresh adapter's B is 0, which would leave A without a gradient.
    for name, value in trainable.parameters.items():
        if "lora_B" in name:
            value.data.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.1)
    return trainable


@pytest.fixture(params=["llama", "tied", "gpt2"], scope="module")
def model(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "gpt2":
        folder: Path = request.getfixturevalue("gpt2_folder")
        return CausalLM.load(folder, device="cpu").model
    loaded = CausalLM.load(request.getfixturevalue("llama_folder"), device="cpu").model
    if request.param == "tied":
        loaded.config.tie_word_embeddings = True
        loaded.lm_head.weight = loaded.model.embed_tokens.weight
    return loaded


def gathered(per_sample: PerSample | LoraGradients, rows: list[Row]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def consume(piece: Piece) -> None:
        size = per_sample.sizes[piece.name]
        whole = found.setdefault(piece.name, torch.full((len(rows), size), torch.nan))
        part = whole[piece.rows, piece.start : piece.start + piece.gradients.shape[1]]
        assert part.isnan().all(), "each coordinate comes once"
        part.copy_(piece.gradients)

    per_sample.run(rows, consume)
    return found


def by_autograd(trainable: Trainable, row: Row) -> dict[str, torch.Tensor]:
    """The plain way: one row, its whole logits, autograd."""
    values = list(trainable.parameters.values())
    for value in values:
        value.requires_grad_(True)
    ids = torch.tensor([[*row.prompt, *row.response]])
    logits = trainable.model(input_ids=ids).logits[0].float()
    logs = torch.log_softmax(logits, dim=-1)
    places = range(len(row.prompt), len(row))
    loss = -torch.stack([logs[place - 1, ids[0, place]] for place in places]).mean()
    found = torch.autograd.grad(loss, values, allow_unused=True)
    for value in values:
        value.requires_grad_(False)
    return {
        name: torch.zeros(value.numel()) if gradient is None else gradient.reshape(-1)
        for (name, value), gradient in zip(trainable.parameters.items(), found, strict=True)
    }


@pytest.mark.parametrize("make", [full, lora])
@pytest.mark.parametrize("at_once", [2**26, 1], ids=["whole", "sliced"])
def test_batch_agrees_with_autograd_row_by_row(model: nn.Module, make: Make, at_once: int) -> None:
    trainable = make(copy.deepcopy(model))
    with trainable.at(trainable.snapshot()):
        per_sample = PerSample(trainable.model, trainable.parameters)
        per_sample._at_once = at_once
        assert per_sample.batched
        found = gathered(per_sample, ROWS)
        assert set(found) == set(trainable.parameters)
        for index, row in enumerate(ROWS):
            for name, gradient in by_autograd(trainable, row).items():
                torch.testing.assert_close(found[name][index], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at_once", [2**26, 1], ids=["whole", "row by row"])
def test_lora_from_pairs_agrees_with_autograd_through_its_own_path(
    model: nn.Module, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift.models.per_sample_gradients.AT_ONCE_CPU", at_once)
    trainable = lora(copy.deepcopy(model))
    weights = trainable.snapshot()
    before = {name: value.clone() for name, value in trainable.model.state_dict().items()}
    gradients = gradients_of(trainable, head_is_last=False, whole=False)
    assert isinstance(gradients, LoraGradients)
    with trainable.merged_at(weights):
        assert gradients.batched
        found = gathered(gradients, ROWS)
    assert all(torch.equal(value, before[name]) for name, value in trainable.model.state_dict().items())
    assert set(found) == set(trainable.parameters)
    with trainable.at(weights):
        for index, row in enumerate(ROWS):
            for name, gradient in by_autograd(trainable, row).items():
                torch.testing.assert_close(found[name][index], gradient, atol=1e-4, rtol=1e-4)


def test_half_precision_keeps_lora_beside_the_weights_which_would_round_it_away(llama_folder: Path) -> None:
    trainable = lora(CausalLM.load(llama_folder, device="cpu", dtype="bfloat16").model)
    layers = trainable.lora_layers()
    assert layers is not None
    own = {name: parts.module.base_layer.weight for name, parts in layers.items()}
    with trainable.merged_at(trainable.snapshot()):
        assert all(parts.module.base_layer.weight is own[name] for name, parts in layers.items())
        assert not any(parts.module.disable_adapters for parts in layers.values())
    assert all(parts.module.disable_adapters for parts in layers.values())


@pytest.mark.parametrize("more", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_more_than_two_matrices_a_layer_goes_the_general_way(
    llama_folder: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **more
    )
    get_peft_model(CausalLM.load(llama_folder, device="cpu").model, config).save_pretrained(str(tmp_path))
    trainable = Trainable.with_adapter(CausalLM.load(llama_folder, device="cpu").model, tmp_path)
    assert trainable.lora_layers() is None
    gradients = gradients_of(trainable, head_is_last=True, whole=False)
    with trainable.merged_at(trainable.snapshot()):
        found = gathered(gradients, ROWS)
        for index, row in enumerate(ROWS):
            for name, gradient in by_autograd(trainable, row).items():
                torch.testing.assert_close(found[name][index], gradient, atol=1e-4, rtol=1e-4)


def test_a_layer_that_no_row_reaches_has_zeros(llama_folder: Path) -> None:
    model: Any = CausalLM.load(llama_folder, device="cpu").model

    class Skipped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Any) -> Any:
            return torch.zeros_like(hidden)

    trainable = Trainable.with_lora(model, LoraShape(rank=2, alpha=4, targets=("up_proj",)), seed=0)
    model.model.layers[1].mlp = Skipped(model.model.layers[1].mlp)
    gradients = gradients_of(trainable, head_is_last=True, whole=False)
    with trainable.merged_at(trainable.snapshot()):
        found = gathered(gradients, ROWS)
    assert set(found) == set(trainable.parameters)
    assert not any(value.any() for name, value in found.items() if "layers.1" in name)
    assert all(value.any(1).all() for name, value in found.items() if "layers.0" in name and "lora_B" in name)


def test_weights_are_chosen_by_the_names_of_their_modules(model: nn.Module) -> None:
    linear = Trainable.whole(copy.deepcopy(model), ALL_LINEAR).parameters
    head = model.get_output_embeddings()  # type: ignore[operator]
    expected = {f"{name}.weight" for name, module in linear_layers(model).items() if module is not head}
    assert set(linear) == expected
    last = next(iter(expected)).split(".")[-2]
    assert all(name.split(".")[-2] == last for name in Trainable.whole(copy.deepcopy(model), (last,)).parameters)
    with pytest.raises(UsageError, match="ends in nowhere"):
        Trainable.whole(model, ("nowhere",))
    adapted = Trainable.with_lora(copy.deepcopy(model), LoraShape(rank=2, targets=ALL_LINEAR), seed=0)
    assert {name.rpartition(".lora_")[0] + ".weight" for name in adapted.parameters} == expected


def test_every_parameter_of_a_model_is_covered(model: nn.Module) -> None:
    trainable = full(copy.deepcopy(model))
    assert sum(value.numel() for value in trainable.parameters.values()) == sum(p.numel() for p in model.parameters())


def test_company_in_a_batch_does_not_change_a_gradient(model: nn.Module) -> None:
    trainable = full(copy.deepcopy(model))
    per_sample = PerSample(trainable.model, trainable.parameters, batched=True)
    together, alone = gathered(per_sample, ROWS), gathered(per_sample, ROWS[2:])
    whole = [
        torch.cat([found[name][row].flatten() for name in alone])[None] for found, row in ((together, 2), (alone, 0))
    ]
    assert distances(*whole) <= of_gradients(layers=2, width=128)


def test_a_model_that_mixes_rows_is_taken_row_by_row(llama_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = CausalLM.load(llama_folder, device="cpu").model

    class Flat(nn.Module):
        """Like an expert: sees tokens of all rows in one axis."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Any) -> Any:
            return self.inner(hidden.reshape(-1, hidden.shape[-1])).reshape(hidden.shape)

    model.model.layers[0].mlp = Flat(model.model.layers[0].mlp)
    trainable = full(model)
    per_sample = PerSample(trainable.model, trainable.parameters)
    assert not per_sample.batched
    assert "one row at a time" in caplog.text
    found = gathered(per_sample, ROWS)
    for index, row in enumerate(ROWS):
        for name, gradient in by_autograd(trainable, row).items():
            torch.testing.assert_close(found[name][index], gradient, atol=1e-5, rtol=1e-4)


def test_gradients_leave_the_model_as_it_was(llama_folder: Path) -> None:
    trainable = full(CausalLM.load(llama_folder, device="cpu").model)
    before = trainable.snapshot()
    for batched in (True, False):
        PerSample(trainable.model, trainable.parameters, batched=batched).run(ROWS, lambda *_: None)
    for name, value in trainable.parameters.items():
        assert torch.equal(value, before[name])
        assert value.grad is None
        assert not value.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainable.model.modules())


@pytest.mark.parametrize("kind", ["sketch", "dense"])
def test_projection_keeps_inner_products_on_average_and_within_its_bound(kind: ProjectionKind) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(600, generator=generator)
    y = x + torch.randn(600, generator=generator)
    x[:3] *= 10
    products = []
    for seed in range(300):
        out = torch.zeros((2, 50))
        Projection(50, seed, kind).add("weight", torch.stack([x, y]), out)
        products.append(float(out[0] @ out[1]))
    bound = float((x @ x) * (y @ y) + (x @ y) ** 2) / 50
    assert abs(np.mean(products) - float(x @ y)) < 4 * np.sqrt(bound / 300)
    assert np.var(products) < 1.4 * bound


@pytest.mark.parametrize("kind", ["sketch", "dense"])
@pytest.mark.parametrize("size", [3, 40, 64, 100, 1000])
def test_projection_is_one_linear_map_per_name_and_seed(kind: ProjectionKind, size: int) -> None:
    projection = Projection(64, 1, kind)
    matrix = projection.matrix("a", size)
    vectors = torch.randn((5, size), generator=torch.Generator().manual_seed(0))
    out = torch.ones((5, 64))
    projection.add("a", vectors, out)
    torch.testing.assert_close(out, 1 + vectors @ matrix)
    assert torch.equal(matrix, Projection(64, 1, kind).matrix("a", size))
    assert not torch.equal(matrix, projection.matrix("b", size))
    assert not torch.equal(matrix, Projection(64, 2, kind).matrix("a", size))
    lengths = (matrix**2).sum(1)
    torch.testing.assert_close(lengths, torch.ones(size))


def test_sketch_gives_every_dimension_its_share() -> None:
    used = (Projection(64, 1).matrix("a", 640) != 0).sum(0)
    assert used.tolist() == [10] * 64


@pytest.mark.parametrize("size", [3, 64, 100, 1000])
def test_a_gathered_sketch_is_the_same_map(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, tried where there is none."""
    expected = Projection(64, 1).matrix("a", size)
    monkeypatch.setattr(Projection, "_gathers", lambda self, device: True)
    assert torch.equal(Projection(64, 1).matrix("a", size), expected)


@pytest.mark.parametrize("form", ["corrected", "as-published"])
@pytest.mark.parametrize("known", [True, False])
def test_compiled_directions_are_those_of_adam_and_pieces_those_of_the_whole(form: Direction, known: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients, first = torch.randn((2, 3, 1000), generator=generator)
    state = {"a": first[0]} if known else {}
    adam = Adam(
        Checkpoint({}, 1.0, 7 * known, state, {"a": first[1].square()} if known else {}), form, torch.device("cpu")
    )
    projection = Projection(64, 1)
    matrix = projection.matrix("a", 1000)
    target, source = torch.zeros((2, 3, 64))
    for start in range(0, 1000, 130):
        piece = Piece("a", slice(0, 3), start, gradients[:, start : start + 130])
        projection.add_piece(piece, 1000, target, adam, source)
    torch.testing.assert_close(target, gradients @ matrix)
    torch.testing.assert_close(source, adam.direction("a", gradients) @ matrix)


def test_coordinates_of_a_sketch_meet_no_more_often_than_by_chance() -> None:
    meetings = np.zeros((40, 40))
    for seed in range(400):
        place = Projection(16, seed).matrix("a", 40).abs().argmax(1).numpy()
        meetings += place[:, None] == place[None, :]
    apart = np.arange(40) // 16
    same = apart[:, None] == apart[None, :]
    np.fill_diagonal(meetings, 0)
    assert meetings[same].max() == 0
    assert abs(meetings[~same].mean() / 400 - 1 / 16) < 0.005


@pytest.mark.parametrize(("settings", "words"), [((8192, 0, "fast"), "sketch or dense"), ((0, 0), "at least 1")])
def test_wrong_projection_is_refused(settings: tuple[Any, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Projection(*settings)
