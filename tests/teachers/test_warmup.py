from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nncift.errors import DataError, ResourceError, UsageError
from nncift.models.batching import batches
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.checkpoints import Checkpoint, bring
from nncift.models.lora import LoraShape, Trainable, attention_modules
from nncift.models.training_steps import rate, row_losses
from nncift.storage.atomic import read_json
from nncift.teachers import less_warmup as warmup
from nncift.teachers.less_warmup import Recipe, thinned, train

ROWS = [Row((1, 9 + k, 12), tuple((7 + k * j) % 40 + 3 for j in range(1, 4 + k % 3))) for k in range(6)]
RECIPE = Recipe(share=0.5, epochs=3, learning_rate=0.01, batch_rows=4)


def lora(folder: Path) -> Trainable:
    return Trainable.with_lora(CausalLM.load(folder, device="cpu").model, LoraShape(4, 8, 0.1), seed=0)


def trained(trainable: Trainable, folder: Path | None = None, key: str = "k", seed: int = 0) -> list[Checkpoint]:
    return train(trainable, ROWS, RECIPE, seed=seed, batch_tokens=64, folder=folder, key=key)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    parts = [(one.weights, other.weights), (one.first, other.first), (one.second, other.second)]
    tensors = all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in parts)
    return tensors and (one.step, one.learning_rate) == (other.step, other.learning_rate)


def test_every_epoch_leaves_a_checkpoint_with_state_by_name(llama_folder: Path) -> None:
    trainable = lora(llama_folder)
    found = trained(trainable)
    # 6 rows in updates of 4: two updates an epoch; rates fall in a line from 0.01 over six updates.
    assert [checkpoint.step for checkpoint in found] == [2, 4, 6]
    assert [checkpoint.learning_rate for checkpoint in found] == pytest.approx([0.055 / 6, 0.035 / 6, 0.015 / 6])
    assert set(found[0].first) == set(found[0].second) == set(found[0].weights) == set(trainable.parameters)
    assert "model.layers.0.self_attn.q_proj.lora_A.weight" in trainable.parameters
    assert all(float(value.max()) > 0 for name, value in found[2].second.items() if "lora_A" in name)


@pytest.mark.parametrize(
    ("pool", "published", "enough"),
    [(7, 1, 1), (240, 12, 12), (1000, 50, 50), (3000, 150, 50), (5000, 250, 75), (100_000, 5000, 1500)],
)
def test_a_large_pool_warms_up_on_what_a_run_can_pay_for(pool: int, published: int, enough: int) -> None:
    assert (Recipe().rows(pool, enough=False), Recipe().rows(pool, enough=True)) == (published, enough)


def test_warm_up_lowers_the_loss(llama_folder: Path) -> None:
    trainable = lora(llama_folder)
    losses = []
    for checkpoint in [Checkpoint(trainable.snapshot()), *trained(trainable)]:
        with trainable.at(checkpoint.weights), torch.no_grad():
            losses.append(float(row_losses(trainable.model, ROWS, torch.device("cpu")).mean()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05


def test_the_same_seed_trains_the_same_and_another_does_not(llama_folder: Path) -> None:
    first, again, other = (trained(lora(llama_folder), seed=seed)[-1] for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("make", [lora, lambda folder: Trainable.whole(CausalLM.load(folder, device="cpu").model)])
def test_a_stopped_warm_up_goes_on_as_if_never_stopped(llama_folder: Path, tmp_path: Path, make: Any) -> None:
    whole = trained(make(llama_folder), tmp_path / "a")
    shutil.copytree(tmp_path / "a" / "checkpoint-1", tmp_path / "b" / "checkpoint-1")
    (tmp_path / "b" / "checkpoint-2.part").mkdir()
    resumed = trained(make(llama_folder), tmp_path / "b")
    assert all(same(one, other) for one, other in zip(whole, resumed, strict=True))


def test_finished_checkpoints_are_taken_only_under_the_same_key(llama_folder: Path, tmp_path: Path) -> None:
    trained(lora(llama_folder), tmp_path)
    path = tmp_path / "checkpoint-2" / "checkpoint.json"
    about = read_json(path) | {"learning_rate": 0.5}
    path.write_text(json.dumps(about))
    assert trained(lora(llama_folder), tmp_path)[1].learning_rate == 0.5
    assert trained(lora(llama_folder), tmp_path, key="other")[1].learning_rate != 0.5


class Limited:
    """Stands for a device that holds so many padded tokens of several rows; it runs out in the forward or the backward pass."""

    def __init__(self, most: int, *, backward: bool) -> None:
        self.most, self.backward = most, backward
        self.tried: list[int] = []
        self._losses, self._grad = row_losses, torch.autograd.grad
        self._rows: list[Row] = []

    def losses(self, model: Any, rows: list[Row], device: torch.device) -> torch.Tensor:
        """Give losses, or run out."""
        self._rows = rows
        self.tried.append(len(rows) * max(map(len, rows)))
        if not self.backward:
            self._refuse()
        return self._losses(model, rows, device)

    def grad(self, *given: Any, **more: Any) -> Any:
        """Give gradients, or run out after they were computed."""
        found = self._grad(*given, **more)
        self._refuse()
        return found

    def _refuse(self) -> None:
        if len(self._rows) > 1 and len(self._rows) * max(map(len, self._rows)) > self.most:
            raise torch.OutOfMemoryError


@pytest.mark.parametrize("backward", [False, True])
def test_where_memory_runs_out_an_update_is_the_same_in_halves(
    backward: bool, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warmed() -> list[Checkpoint]:
        # Without dropout, whose masks depend on how rows lie together.
        model = CausalLM.load(llama_folder, device="cpu").model
        trainable = Trainable.with_lora(model, LoraShape(4, 8, 0.0), seed=0)
        return train(trainable, ROWS, RECIPE, seed=0, batch_tokens=64, folder=None, key="k")

    whole = warmed()
    limited = Limited(20, backward=backward)
    monkeypatch.setattr(warmup, "row_losses", limited.losses)
    monkeypatch.setattr(torch.autograd, "grad", limited.grad)
    halved = warmed()
    assert limited.tried[0] > 20
    # What was too much is remembered: one update runs out, no other.
    assert sum(size > limited.most for size in limited.tried) == 1
    for one, other in zip(whole, halved, strict=True):
        assert (one.step, one.learning_rate) == (other.step, other.learning_rate)
        for name in one.weights:
            torch.testing.assert_close(other.weights[name], one.weights[name], rtol=1e-4, atol=1e-6)


def test_a_row_that_never_fits_is_an_error(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(warmup, "row_losses", full)
    with pytest.raises(torch.OutOfMemoryError):
        trained(lora(llama_folder))


def test_adapters_are_off_outside_and_random_state_is_left_alone(llama_folder: Path) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    ids = torch.tensor([[1, 9, 12, 20]])
    torch.manual_seed(3)
    before, expected = lm.model(input_ids=ids).logits, torch.rand(1)
    torch.manual_seed(3)
    trainable = Trainable.with_lora(lm.model, LoraShape(4, 8, 0.1), seed=0)
    last = trained(trainable)[-1]
    assert torch.equal(torch.rand(1), expected)
    with trainable.at(last.weights):
        assert not torch.allclose(lm.model(input_ids=ids).logits, before)
    assert torch.allclose(lm.model(input_ids=ids).logits, before, atol=1e-6)


def test_state_is_found_by_name_whatever_the_order(llama_folder: Path, tmp_path: Path) -> None:
    last = trained(lora(llama_folder))[-1]
    parts = [dict(reversed(list(part.items()))) for part in (last.weights, last.first, last.second)]
    Checkpoint(parts[0], last.learning_rate, last.step, parts[1], parts[2]).save(tmp_path / "c", "k")
    loaded = Checkpoint.load(tmp_path / "c", "k")
    assert loaded is not None
    assert same(loaded, last)
    trainable = lora(llama_folder)
    trainable.load(parts[0])
    assert all(torch.equal(value, last.weights[name]) for name, value in trainable.parameters.items())


def blocks(page: str, language: str) -> list[str]:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def brought(folder: Path, llama_folder: Path, seed: int, *, optimizer: bool = True, rank: int = 4) -> None:
    """Train two steps the usual way, with peft and torch, and save as a transformers Trainer does."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = CausalLM.load(llama_folder, device="cpu").model
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    values: list[Any] = [value for value in adapted.parameters() if value.requires_grad]
    optimizer_ = torch.optim.AdamW([{"params": values}, {"params": []}], lr=1e-2)
    for _ in range(2):
        adapted(input_ids=torch.tensor([[1, 9, 12, 20 + seed]])).logits.logsumexp(-1).sum().backward()
        optimizer_.step()
    adapted.save_pretrained(str(folder))
    log = [{"step": step, "learning_rate": 0.1 * step} for step in (1, 2, 3, 4)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": log[: 2 * seed]}))
    if optimizer:
        save_moments(adapted, optimizer_, folder)


def save_moments(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Do as docs/teachers.md says."""
    (example,) = [block for block in blocks("docs/teachers.md", "python") if "exp_avg" in block]
    exec(example, {"model": model, "optimizer": optimizer, "folder": str(folder)})


def test_checkpoints_of_a_trainer_are_read_with_state_and_rate(llama_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders, start=1):
        brought(folder, llama_folder, seed)
    trainable = Trainable.with_adapter(CausalLM.load(llama_folder, device="cpu").model, folders[0])
    found = bring(trainable, folders)
    assert [checkpoint.step for checkpoint in found] == [2, 2]
    assert [checkpoint.learning_rate for checkpoint in found] == pytest.approx([0.15, 0.35])
    name = "model.layers.1.self_attn.v_proj.lora_B.weight"
    for folder, checkpoint in zip(folders, found, strict=True):
        raw = load_file(folder / "adapter_model.safetensors")
        assert torch.equal(checkpoint.weights[name], raw[f"base_model.model.{name}"])
        state = load_file(folder / "optimizer.safetensors")
        (key,) = [key for key in state if key.startswith("exp_avg.") and "layers.1.self_attn.v_proj.lora_B" in key]
        assert torch.equal(checkpoint.first[name], state[key])
        assert torch.equal(checkpoint.second[name], state[key.replace("exp_avg.", "exp_avg_sq.")])


def test_a_pickled_optimiser_is_refused_with_a_way_out(llama_folder: Path, tmp_path: Path) -> None:
    brought(tmp_path / "one", llama_folder, 1, optimizer=False)
    (tmp_path / "one" / "optimizer.pt").write_bytes(b"never opened")
    trainable = Trainable.with_adapter(CausalLM.load(llama_folder, device="cpu").model, tmp_path / "one")
    with pytest.raises(DataError, match=r"pickle.*optimizer\.safetensors"):
        bring(trainable, [tmp_path / "one"])


def test_an_adapter_without_state_counts_as_untrained(llama_folder: Path, tmp_path: Path) -> None:
    brought(tmp_path / "one", llama_folder, 1, optimizer=False)
    trainable = Trainable.with_adapter(CausalLM.load(llama_folder, device="cpu").model, tmp_path / "one")
    (found,) = bring(trainable, [tmp_path / "one"])
    assert (found.step, found.first, found.second) == (0, {}, {})


def test_adapters_that_do_not_fit_are_refused(llama_folder: Path, gpt2_folder: Path, tmp_path: Path) -> None:
    brought(tmp_path / "one", llama_folder, 1)
    brought(tmp_path / "two", llama_folder, 1, rank=2)
    model = CausalLM.load(llama_folder, device="cpu").model
    trainable = Trainable.with_adapter(model, tmp_path / "one")
    with pytest.raises(DataError, match=r"two.*another shape"):
        bring(trainable, [tmp_path / "one", tmp_path / "two"])
    shutil.copy(tmp_path / "two" / "optimizer.safetensors", tmp_path / "one" / "optimizer.safetensors")
    with pytest.raises(DataError, match="does not fit the adapter"):
        bring(trainable, [tmp_path / "one"])
    with pytest.raises(DataError, match="does not fit this model"):
        Trainable.with_adapter(CausalLM.load(gpt2_folder, device="cpu").model, tmp_path / "one")
    with pytest.raises(DataError, match="does not fit this model"):
        Trainable.with_adapter(CausalLM.load(llama_folder, device="cpu").model, tmp_path / "none")


def test_attention_is_found_by_name(llama_folder: Path, gpt2_folder: Path) -> None:
    names = attention_modules(CausalLM.load(gpt2_folder, device="cpu").model)
    assert names == [f"transformer.h.{k}.attn.{part}" for k in (0, 1) for part in ("c_attn", "c_proj")]
    found = attention_modules(CausalLM.load(llama_folder, device="cpu").model)
    assert [name.rpartition(".")[2] for name in found[:4]] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    with pytest.raises(UsageError, match="option targets"):
        attention_modules(torch.nn.Linear(2, 2))


def test_without_peft_the_package_is_named(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ResourceError, match="pip install peft"):
        lora(llama_folder)


def test_a_warm_up_that_diverges_says_so(llama_folder: Path) -> None:
    trainable = lora(llama_folder)
    trainable.model.get_parameter("model.norm.weight").data[0] = float("nan")
    with pytest.raises(ResourceError, match="diverged in epoch 1"):
        trained(trainable)


def test_rate_rises_for_three_percent_and_falls_in_a_line() -> None:
    rates = [rate(step, 100) for step in range(100)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[99] == pytest.approx(1 / 97)
    assert [rate(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_batches_hold_all_rows_once_within_their_tokens() -> None:
    found = batches(list(map(len, ROWS)), 20)
    assert sorted(place for batch in found for place in batch) == list(range(6))
    assert all(len(batch) * max(len(ROWS[place]) for place in batch) <= 20 for batch in found)
    assert [len(batch) for batch in batches(list(map(len, ROWS)), 1)] == [1] * 6


@pytest.mark.parametrize(
    "wrong", [{"share": 1.5}, {"share": -0.1}, {"epochs": -1}, {"learning_rate": 0.0}, {"batch_rows": 0}]
)
def test_wrong_recipes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Recipe(**wrong)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}])
def test_wrong_lora_shapes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LoraShape(**wrong)


@pytest.mark.parametrize(
    ("rows", "wanted", "kept"),
    [
        # 32 rows an update: 16 updates an epoch are enough, of 8 every second epoch is left, of 6 every third.
        (16 * 32, None, (1, 2, 3, 4)),
        (15 * 32, None, (2, 4)),
        (8 * 32, None, (2, 4)),
        (6 * 32, None, (4,)),
        (12, None, (4,)),
        (0, None, (4,)),
        (12, 4, (1, 2, 3, 4)),
        (12, 3, (2, 3, 4)),
        (12, 2, (2, 4)),
        (512, 1, (4,)),
    ],
)
def test_features_are_taken_where_enough_updates_lie_between(
    rows: int, wanted: int | None, kept: tuple[int, ...]
) -> None:
    assert Recipe(epochs=4).kept(rows, wanted) == kept


def test_what_is_left_out_counts_in_the_mean_learning_rate() -> None:
    every = [Checkpoint({}, rate, step) for step, rate in enumerate((4.0, 3.0, 2.0, 1.0), start=1)]
    assert [(each.step, each.learning_rate) for each in thinned(every, (2, 4))] == [(2, 3.5), (4, 1.5)]
    assert [(each.step, each.learning_rate) for each in thinned(every, (4,))] == [(4, 2.5)]
