"""Which tokens carry loss, and what training does to a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from nncift.data import Example, Examples, Message, read
from nncift.errors import ResourceError
from nncift.finetune import training
from nncift.finetune.batch_schedule import Measure, schedule
from nncift.finetune.training import FineTuner, Method, Recipe, TrainingSets, defaults, method_of, summed_loss
from nncift.generation.generate import generate
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.prompt_format import PromptFormat

Write = Callable[..., Path]


@pytest.fixture
def training_sets(llama: CausalLM, write_pool: Write) -> TrainingSets:
    return TrainingSets.of(read(write_pool(12)), PromptFormat(llama.tokenizer), llama.context)


def recipe(method: Method = "whole", **given: Any) -> Recipe:
    return Recipe(**{"method": method, "learning_rate": 5e-3, "batch": 4, "epochs": 2.0, **given})


def state(lm: CausalLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_prompt_answer_and_end_are_in_the_input(
    llama: CausalLM, training_sets: TrainingSets, write_pool: Write
) -> None:
    for example in read(write_pool(12)):
        row, tokenizer = training_sets.rows[example.id], llama.tokenizer
        assert row.prompt[0] == tokenizer.bos_token_id
        assert row.response[-1] == tokenizer.eos_token_id
        assert str(tokenizer.decode(list(row.response[:-1]))).split() == example.response.split()
        read_words = str(tokenizer.decode(list(row.prompt[1:]))).split()
        assert [word for word in read_words if word in example.prompt.split()] == example.prompt.split()
        assert len(row) == training_sets.lengths([example.id])[example.id]


def test_rows_of_whose_response_nothing_is_left_are_no_lessons(llama: CausalLM, write_pool: Write) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama.name)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('ten')[-1] }}{{ eos_token }}{% endfor %}"
    )
    rows = [
        Example(f"{k}", "red", text, (Message("user", "red"),), "made", k, "{}")
        for k, text in enumerate(["one ten", "ten one", "sea </s>"])
    ]
    training_sets = TrainingSets.of(Examples(tuple(rows)), PromptFormat(tokenizer), llama.context)
    assert training_sets.unusable == {"0": "the chat template leaves nothing of the response"}
    assert [note.partition(" rows")[0] for note in training_sets.notes] == ["1 of 2", "1 of 2"]
    assert list(training_sets.rows["2"].response).count(tokenizer.eos_token_id) == 1


def test_the_loss_is_that_of_the_response_alone(llama: CausalLM, training_sets: TrainingSets) -> None:
    row = next(iter(training_sets.rows.values()))
    ids = torch.tensor([[*row.prompt, *row.response]])
    labels = ids.clone()
    labels[0, : len(row.prompt)] = -100
    expected = llama.model(input_ids=ids, labels=labels).loss * len(row.response)
    assert float(summed_loss(llama, [row])) == pytest.approx(float(expected), rel=1e-5)


def test_padding_carries_no_loss_and_no_gradient(llama: CausalLM) -> None:
    rows = [Row([1, 8, 9], [10, 11]), Row([1, 12, 13, 14, 15, 16], [17, 18, 19, 2]), Row([1, 20], [2])]
    llama.model.requires_grad_(True)

    def gradients(batches: list[list[Row]]) -> tuple[float, dict[str, torch.Tensor]]:
        llama.model.zero_grad()
        total = torch.stack([summed_loss(llama, batch) for batch in batches]).sum()
        total.backward()
        return float(total.detach()), {
            name: value.grad.clone() for name, value in llama.model.named_parameters() if value.grad is not None
        }

    together, alone = gradients([rows]), gradients([[row] for row in rows])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    assert together[1].keys() == alone[1].keys()
    for name, value in together[1].items():
        assert torch.allclose(value, alone[1][name], rtol=1e-3, atol=1e-4), name


def test_a_step_of_several_passes_is_the_step_of_one(llama: CausalLM, training_sets: TrainingSets) -> None:
    plan = schedule(training_sets.lengths(list(training_sets.rows)), Measure(steps=3), 4, 0)
    found = []
    for tokens in (4096, 1):
        with FineTuner(llama, recipe(batch_tokens=tokens)).trained(training_sets.rows, plan, 0) as losses:
            found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


class Limited:
    """A loss that runs out of memory above so many padded tokens, before or after a part of its gradient is there."""

    def __init__(self, most: int, *, backward: bool) -> None:
        self.most, self.backward, self.tried = most, backward, list[int]()

    def __call__(self, lm: CausalLM, rows: Sequence[Row]) -> torch.Tensor:
        self.tried.append(len(rows) * max(map(len, rows)))
        found = summed_loss(lm, rows)
        if len(rows) > 1 and self.tried[-1] > self.most:
            if self.backward:
                found.backward()
            raise torch.OutOfMemoryError
        return found


@pytest.mark.parametrize("backward", [False, True])
def test_where_memory_runs_out_a_step_is_the_same_in_smaller_passes(
    backward: bool, llama: CausalLM, training_sets: TrainingSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = schedule(training_sets.lengths(list(training_sets.rows)), Measure(steps=4), 4, 0)
    with FineTuner(llama, recipe()).trained(training_sets.rows, plan, 0) as losses:
        whole, weights = losses, state(llama)
    limited = Limited(2 * max(map(len, training_sets.rows.values())), backward=backward)
    monkeypatch.setattr(training, "summed_loss", limited)
    with FineTuner(llama, recipe()).trained(training_sets.rows, plan, 0) as losses:
        halved, other = losses, state(llama)
    # What was too much is remembered: one step begins again, no other.
    assert sum(size > limited.most for size in limited.tried) == 1
    assert len(limited.tried) > len(plan.updates) + 1
    assert halved == pytest.approx(whole, rel=1e-4)
    for name, value in weights.items():
        # Updates of Adam have the size of the rate where a gradient is next to nothing.
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


def test_a_row_that_never_fits_is_named(
    llama: CausalLM, training_sets: TrainingSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError

    before = state(llama)
    monkeypatch.setattr(training, "summed_loss", full)
    plan = schedule(training_sets.lengths(list(training_sets.rows)), Measure(steps=2), 4, 0)
    with (
        pytest.raises(ResourceError, match="does not fit into the memory"),
        FineTuner(llama, recipe()).trained(training_sets.rows, plan, 0),
    ):
        pass
    assert same(before, state(llama))


@pytest.mark.parametrize("method", ["whole", "lora"])
def test_a_model_learns_a_fact_and_forgets_it_afterwards(llama: CausalLM, method: Method) -> None:
    fact = Example("fact", "sort the red dog", "blue sea tree", (Message("user", "sort the red dog"),), "here", 1, "{}")
    wording, tests = PromptFormat(llama.tokenizer), Examples((fact,))
    training_sets = TrainingSets.of(tests, wording, llama.context)
    plan = schedule(training_sets.lengths(["fact"]), Measure(steps=60), 1, 0)
    tuner = FineTuner(llama, recipe(method, learning_rate=1e-2, batch=1, rank=4, alpha=16, dropout=0.0))
    before = state(llama)
    untaught = generate(llama, tests, wording, max_new_tokens=8)[0].text
    assert untaught != fact.response
    with tuner.trained(training_sets.rows, plan, 0) as losses:
        assert losses[-1] < 0.05 < losses[0]
        assert generate(llama, tests, wording, max_new_tokens=8)[0].text == fact.response
    assert generate(llama, tests, wording, max_new_tokens=8)[0].text == untaught
    assert method == "lora" or same(before, state(llama))


@pytest.mark.parametrize("method", ["whole", "lora"])
def test_training_depends_on_the_seed_alone(llama: CausalLM, training_sets: TrainingSets, method: Method) -> None:
    plan = schedule(training_sets.lengths(list(training_sets.rows)), Measure(steps=4), 4, 0)
    tuner = FineTuner(llama, recipe(method, dropout=0.1, rank=4))
    found = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed + 17)
        with tuner.trained(training_sets.rows, plan, seed) as losses:
            found.append((losses, state(llama)))
    assert found[0][0] == found[2][0]
    assert same(found[0][1], found[2][1])
    # A whole model has no dropout and nothing drawn; the order of its rows is the course's.
    assert same(found[0][1], found[1][1]) == (method == "whole")


def test_lora_goes_on_every_linear_layer_but_the_head(llama: CausalLM) -> None:
    tuner = FineTuner(llama, recipe("lora", rank=4))
    kinds = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-3] for name in tuner._trainable.parameters} == kinds
    # Two layers of width 32 and 48, keys and values of width 16: rank times the sum of both sides.
    assert tuner.parameters == 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 2 * (32 + 48) + (48 + 32))


def test_a_rate_that_is_too_high_is_named(llama: CausalLM, training_sets: TrainingSets) -> None:
    plan = schedule(training_sets.lengths(list(training_sets.rows)), Measure(steps=30), 4, 0)
    before = state(llama)
    with (
        pytest.raises(ResourceError, match="lower --learning-rate"),
        FineTuner(llama, recipe(learning_rate=1e25)).trained(training_sets.rows, plan, 0),
    ):
        pass
    assert same(before, state(llama))


def test_a_long_row_loses_its_prompts_start_and_never_its_response(llama: CausalLM) -> None:
    wording = PromptFormat(llama.tokenizer)
    texts = {"fits": "sort red", "long": "sort " * 200 + "blue", "hopeless": "sort"}
    answers = {"fits": "dog", "long": "cat bird", "hopeless": "dog " * 200}
    rows = [
        Example(item, text, answers[item], (Message("user", text),), "here", 1, "{}") for item, text in texts.items()
    ]
    found = TrainingSets.of(Examples(tuple(rows)), wording, llama.context)
    assert found.shortened == ("long",)
    assert list(found.unusable) == ["hopeless"]
    assert "response" in found.unusable["hopeless"]
    row = found.rows["long"]
    assert llama.context - 3 <= len(row) <= llama.context
    assert str(llama.tokenizer.decode(list(row.response[:-1]))).split() == ["cat", "bird"]
    assert "blue" in str(llama.tokenizer.decode(list(row.prompt)))


def test_the_method_follows_the_size() -> None:
    assert method_of("auto", 500_000) == "whole"
    assert method_of("auto", 100_000_000) == "lora"
    assert method_of("qlora", 500_000) == "qlora"
    assert defaults("qlora", 10**9) == (2e-4, 4, 3.0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merged_matrices_train_as_their_own_path_does(
    kind: str, request: pytest.FixtureRequest, write_pool: Write
) -> None:
    lm = CausalLM.load(request.getfixturevalue(f"{kind}_folder"), device="cpu")
    rows = TrainingSets.of(read(write_pool(12)), PromptFormat(lm.tokenizer), lm.context)
    plan = schedule(rows.lengths(list(rows.rows)), Measure(steps=6), 4, 0)
    before = state(lm)
    tuner = FineTuner(lm, recipe("lora", rank=4, dropout=0.0))
    found, losses = [], []
    assert tuner._merged is not None
    for merged in (tuner._merged, None):
        tuner._merged = merged
        with tuner.trained(rows.rows, plan, 0) as own:
            found.append(tuner._trainable.snapshot())
            losses.append([*own, float(summed_loss(lm, list(rows.rows.values())).detach())])
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4)
    moved = max(float(value.abs().max()) for name, value in found[1].items() if "lora_B" in name)
    assert moved > 1e-3
    for name, value in found[1].items():
        # Adam divides by the size of a gradient, so that rounding of the smallest of them shows.
        assert torch.allclose(found[0][name], value, atol=0.02 * moved), name
    kept = {name.replace(".base_layer.", "."): value for name, value in state(lm).items()}
    assert all(torch.equal(value, kept[name]) for name, value in before.items())


def test_dropout_is_seen_by_the_matrices_own_path_alone(llama: CausalLM) -> None:
    assert FineTuner(llama, recipe("lora", rank=4, dropout=0.1))._merged is None
    assert FineTuner(llama, recipe("whole", dropout=0.0))._merged is None


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_of_merged_matrices_are_those_of_their_own_path(
    kind: str, request: pytest.FixtureRequest, write_pool: Write
) -> None:
    lm = CausalLM.load(request.getfixturevalue(f"{kind}_folder"), device="cpu")
    rows = list(TrainingSets.of(read(write_pool(3)), PromptFormat(lm.tokenizer), lm.context).rows.values())
    tuner = FineTuner(lm, recipe("lora", rank=4, dropout=0.0))
    values, merged = list(tuner._trainable.parameters.values()), tuner._merged
    assert merged is not None
    drawn = torch.Generator().manual_seed(0)
    # B away from 0, where the gradients of A are none.
    weights = {name: 0.1 * torch.randn(value.shape, generator=drawn) for name, value in tuner._start.items()}
    found = []
    with tuner._trainable.at(weights):
        for inside in (nullcontext(), merged.inside()):
            for value in values:
                value.requires_grad_(True)
                value.grad = None
            with inside:
                loss = tuner._gradients(rows, values)
            found.append((loss, [value.grad for value in values]))
    (plain, expected), (other, grads) = found
    assert other == pytest.approx(plain, rel=1e-5)
    for grad, wanted in zip(grads, expected, strict=True):
        assert grad is not None
        assert wanted is not None
        assert float(wanted.abs().max()) > 0
        assert torch.allclose(grad, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
