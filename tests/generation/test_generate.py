from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nncift.data.examples import Example, Examples
from nncift.errors import UsageError
from nncift.generation import generate as module
from nncift.generation.generate import generate
from nncift.models.causal_lm import CausalLM
from nncift.models.prompt_format import PromptFormat

Make = Callable[..., Example]

PROMPTS = [
    "sort the list",
    "give me one red dog and the blue house of sky",
    "add",
    "name two three four five six seven",
]


@pytest.fixture
def rows(make: Make) -> Examples:
    return Examples(tuple(make(str(at), prompt) for at, prompt in enumerate(PROMPTS)))


def greedy(lm: CausalLM, ids: list[int], new: int, stops: set[int]) -> list[int]:
    """Continue token by token, the whole sequence read anew each time."""
    found: list[int] = []
    with torch.inference_mode():
        while len(found) < new and not (found and found[-1] in stops):
            found.append(int(lm.model(input_ids=torch.tensor([ids + found])).logits[0, -1].argmax()))
    return found


def test_answers_of_a_batch_are_those_of_prompts_alone(lm: CausalLM, rows: Examples) -> None:
    wording = PromptFormat(lm.tokenizer)
    together = generate(lm, rows, wording, max_new_tokens=12)
    assert together == [generate(lm, Examples((row,)), wording, max_new_tokens=12)[0] for row in rows]
    stops = {lm.tokenizer.eos_token_id}
    for row, answer in zip(rows, together, strict=True):
        ids = greedy(lm, [*wording.bos, *wording.tokens(row).prompt], 12, stops)
        assert answer.text == lm.tokenizer.decode(ids, skip_special_tokens=True)
        assert answer.ended == (ids[-1] in stops)


def test_architectures_that_feel_padding_get_batches_of_one_length(
    llama: CausalLM, rows: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    wording = PromptFormat(llama.tokenizer)
    padded = generate(llama, rows, wording, max_new_tokens=5)
    widths: list[set[int]] = []
    plain = module._Writer.write

    def spy(self: module._Writer, prompts: list[tuple[int, ...]], new: int) -> list[tuple[int, ...]]:
        widths.append(set(map(len, prompts)))
        return plain(self, prompts, new)

    monkeypatch.setattr(module._Writer, "_try_padding", lambda self: False)
    monkeypatch.setattr(module._Writer, "write", spy)
    assert generate(llama, rows, wording, max_new_tokens=5) == padded
    assert all(len(found) == 1 for found in widths)


def test_padding_that_is_felt_is_found_out(llama: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._Writer(llama, PromptFormat(llama.tokenizer)).padding_is_exact
    plain: Any = llama.model.generate
    monkeypatch.setattr(
        llama.model,
        "generate",
        lambda **given: plain(**{**given, "attention_mask": torch.ones_like(given["input_ids"])}),
    )
    assert not module._Writer(llama, PromptFormat(llama.tokenizer)).padding_is_exact


def test_the_models_own_generation_settings_are_left_aside_and_given_back(
    llama: CausalLM, rows: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    wording = PromptFormat(llama.tokenizer)
    plain = generate(llama, rows, wording, max_new_tokens=8)
    habits = type(llama.model.generation_config)(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, min_new_tokens=8, eos_token_id=2
    )
    monkeypatch.setattr(llama.model, "generation_config", habits)
    assert generate(llama, rows, wording, max_new_tokens=8) == plain
    assert llama.model.generation_config is habits


def test_an_answer_ends_at_any_of_the_models_end_tokens(
    llama: CausalLM, rows: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    wording = PromptFormat(llama.tokenizer)
    row = rows[:1]
    ids = greedy(llama, [*wording.bos, *wording.tokens(row[0]).prompt], 6, set())
    at = next(k for k in range(1, 6) if ids[k] not in ids[:k])
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [2, ids[at]])
    answer = generate(llama, row, wording, max_new_tokens=6)[0]
    assert answer.text == llama.tokenizer.decode(ids[:at], skip_special_tokens=True)
    assert answer.ended


def worded(lm: CausalLM, mark: list[int], *, chat: bool) -> PromptFormat:
    """Return a wording that puts these tokens behind every response."""
    wording = PromptFormat(lm.tokenizer)
    wording.__dict__["end"] = tuple(mark)
    wording.chat = chat
    wording.tokens = PromptFormat(lm.tokenizer).tokens  # type: ignore[method-assign]
    return wording


@pytest.mark.parametrize("size", [1, 2])
def test_a_chat_templates_end_mark_ends_an_answer(llama: CausalLM, rows: Examples, size: int) -> None:
    plain = PromptFormat(llama.tokenizer)
    ids = greedy(llama, [*plain.bos, *plain.tokens(rows[1]).prompt], 8, set())
    at = next(k for k in range(1, 7) if ids[k] not in ids[:k])
    answer = generate(llama, rows[1:2], worded(llama, ids[at : at + size], chat=True), max_new_tokens=8)[0]
    assert answer.text == llama.tokenizer.decode(ids[:at], skip_special_tokens=True)
    assert answer.ended


def test_what_a_plain_template_puts_behind_is_cut_off_the_end_alone(llama: CausalLM, rows: Examples) -> None:
    plain = PromptFormat(llama.tokenizer)
    ids = greedy(llama, [*plain.bos, *plain.tokens(rows[1]).prompt], 6, set())
    answer = generate(llama, rows[1:2], worded(llama, ids[2:4], chat=False), max_new_tokens=6)[0]
    assert answer.text == llama.tokenizer.decode(ids, skip_special_tokens=True)
    answer = generate(llama, rows[1:2], worded(llama, ids[5:6], chat=False), max_new_tokens=6)[0]
    assert answer.text == llama.tokenizer.decode(ids[:5], skip_special_tokens=True)


def test_a_prompt_without_room_has_failed_and_its_neighbours_have_not(
    llama: CausalLM, rows: Examples, make: Make
) -> None:
    long = make("long", "red " * 200)
    answers = generate(llama, Examples((rows[0], long, rows[1])), PromptFormat(llama.tokenizer), max_new_tokens=5)
    assert [one.id for one in answers] == ["0", "long", "1"]
    assert answers[1].text is None
    assert "context holds 96" in str(answers[1].failure)
    assert answers[0].text is not None
    assert answers[2].failure is None


def test_a_long_prompt_does_not_shorten_the_answers_beside_it(llama: CausalLM, make: Make, rows: Examples) -> None:
    wording = PromptFormat(llama.tokenizer)
    tight = make("tight", "red " * 80)
    both = generate(llama, Examples((rows[0], tight)), wording, max_new_tokens=20)
    assert both[0] == generate(llama, rows[:1], wording, max_new_tokens=20)[0]
    assert both[1].text is not None


def test_examples_in_front_change_what_is_read(llama: CausalLM, rows: Examples, make: Make) -> None:
    wording = PromptFormat(llama.tokenizer)
    shown = make("shown", "add one", "two three")
    row = rows[0]
    found = generate(llama, Examples((row,)), wording, max_new_tokens=6, before={row.id: [shown, rows[2]]})[0]
    front = [*wording.bos, *wording.block(shown, 99).ids, *wording.block(rows[2], 99).ids, *wording.tokens(row).prompt]
    ids = greedy(llama, front, 6, {2})
    assert found.text == llama.tokenizer.decode(ids, skip_special_tokens=True)


def test_no_tokens_at_all_are_refused(llama: CausalLM, rows: Examples) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        generate(llama, rows, PromptFormat(llama.tokenizer), max_new_tokens=0)
