"""An example in front of a target is one conversation with it, under chat templates of many natures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nncift.data.examples import Example, Message
from nncift.models.chat_template import CHANGES, FIXED_DAY, ONE_SYSTEM, REFUSES
from nncift.models.prompt_format import PromptFormat

ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
DEFAULT = "{% if loop.first and messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + ASK
SMOLLM2 = "{% for m in messages %}" + DEFAULT + TURN + "{% endfor %}" + ASK
QWEN = (
    "{% if messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% else %}"
    "<|im_start|>system\nYou are Q.<|im_end|>\n{% endif %}{% for m in messages %}"
    "{% if m.role != 'system' or not loop.first %}" + TURN + "{% endif %}{% endfor %}" + ASK
)
LLAMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
    "<|start|>system<|end|>\n\nToday: {{ strftime_now('%d %b %Y') }}\n\n{{ said }}<|eot|>"
    "{% for m in rest %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}" + ALTERNATE + "<|start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}" + ALTERNATE + "{% if m.role == 'user' %}[INST] {{ said if loop.first }}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA2 = MISTRAL.removeprefix("{{ bos_token }}").replace("[INST] {{", "{{ bos_token }}[INST] {{")
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
FORCED = "{% if messages[0].role != 'system' %}{{ raise_exception('begin with a system turn') }}{% endif %}" + CHATML
THINKING = CHATML.replace(
    "{{ m.content }}", "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
)
ONE_QUESTION = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + CHATML
COUNTED = "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} questions\n" + CHATML
LATEST = "{% for m in messages[-2:] %}" + TURN + "{% endfor %}" + ASK
HOISTED = (
    "{% for m in messages if m.role == 'system' %}" + TURN + "{% endfor %}"
    "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + ASK
)
TEMPLATES = {
    "chatml": CHATML,
    "smollm2": SMOLLM2,
    "qwen": QWEN,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "llama2": LLAMA2,
    "phi3": PHI3,
    "forced": FORCED,
    "thinking": THINKING,
    "hoisted": HOISTED,
}
SYSTEM = Message("system", "name the sea")


def load(folder: Path, name: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    marks = [
        "<|im_start|>",
        "<|im_end|>",
        "<|start|>",
        "<|end|>",
        "<|eot|>",
        "<|user|>",
        "<|assistant|>",
        "<|system|>",
        "[INST]",
    ]
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": [*marks, "[/INST]"]})
    if name in ("smollm2", "forced"):
        # As in SmolLM2: what begins every turn also begins the sequence.
        tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = TEMPLATES.get(name, name)
    return tokenizer


def example(prompt: str, response: str, *before: Message, system: bool = False) -> Example:
    turns = (*([SYSTEM] if system else []), *before, Message("user", prompt))
    return Example(prompt, prompt, response, turns, "made.jsonl", 1, "{}")


def turns(*rows: Example) -> list[dict[str, str]]:
    return [
        {"role": turn.role, "content": turn.content}
        for row in rows
        for turn in (*row.messages, Message("assistant", row.response))
    ]


def own(tokenizer: Any, *rows: Example) -> list[int]:
    """Return the ids that the chat template itself gives for one conversation of all rows."""
    text = tokenizer.apply_chat_template(
        turns(*rows), chat_template=FIXED_DAY + tokenizer.chat_template, tokenize=False
    )
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def ours(wording: PromptFormat, *rows: Example) -> list[int]:
    """Return the ids of all but the last row in front of the last one, with its response."""
    front = [wording.block(row, 10_000, first=not place).ids for place, row in enumerate(rows[:-1])]
    target = wording.tokens(rows[-1], behind=len(rows) > 1)
    return [*wording.bos, *(token for ids in front for token in ids), *target.prompt, *target.response]


def text_of(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


SHOWN, OTHER = example("name a cat", "long cat"), example("sum two", "three")
TARGET = example("sort the red list", "red list first")
TALK = example("and dog?", "dog", Message("user", "tell"), Message("assistant", "what?"))


@pytest.fixture(params=list(TEMPLATES))
def named(request: pytest.FixtureRequest, gpt2_folder: Path) -> tuple[str, Any]:
    return request.param, load(gpt2_folder, request.param)


def with_system(row: Example) -> Example:
    return example(row.prompt, row.response, *row.messages[:-1], system=True)


def whole(named: tuple[str, Any], *rows: Example) -> None:
    """Hold our ids to the template's own, which may end with what we leave out: white space, an end of sequence."""
    _, tokenizer = named
    wording = PromptFormat(tokenizer)
    found, expected = ours(wording, *rows), own(tokenizer, *rows)
    assert found == expected[: len(found)]
    assert text_of(tokenizer, expected[len(found) :]) in ("", "\n", "\n<|endoftext|>")


@pytest.mark.parametrize("rows", [(TARGET,), (SHOWN, TARGET), (TALK, TALK), (SHOWN, TALK, OTHER, TARGET)])
@pytest.mark.parametrize("system", [False, True], ids=["", "system"])
def test_examples_and_target_read_as_the_template_words_their_conversation(
    named: tuple[str, Any], rows: tuple[Example, ...], system: bool
) -> None:
    name, tokenizer = named
    if (name == "forced" and not system) or (name == "gemma" and system):
        pytest.skip("the template refuses the first turn")
    # A template that wants a system turn refuses rows without one, which are no targets then.
    rows = (
        with_system(rows[0]) if system else rows[0],
        *(with_system(row) if name == "forced" else row for row in rows[1:]),
    )
    whole(named, *rows)
    assert PromptFormat(tokenizer).joined(rows[0]) is None
    assert len(rows) == 1 or PromptFormat(tokenizer).tokens(rows[-1], behind=True).joined is None


@pytest.mark.parametrize("named", ["chatml", "smollm2", "qwen", "llama3", "phi3", "forced"], indirect=True)
@pytest.mark.parametrize("shown", [SHOWN, with_system(TALK)], ids=["", "system"])
def test_a_targets_own_system_turn_stands_behind_the_example_where_the_template_takes_it(
    named: tuple[str, Any], shown: Example
) -> None:
    target = with_system(TARGET)
    whole(named, with_system(shown) if named[0] == "forced" and shown is SHOWN else shown, target)
    assert PromptFormat(named[1]).tokens(target, behind=True).joined is None


@pytest.mark.parametrize("named", ["mistral", "llama2", "hoisted"], indirect=True)
def test_a_target_with_a_system_turn_reads_as_alone_where_the_template_takes_one_only_first(
    named: tuple[str, Any],
) -> None:
    name, tokenizer = named
    wording, target = PromptFormat(tokenizer), with_system(TARGET)
    alone, behind = wording.tokens(target), wording.tokens(target, behind=True)
    assert behind.joined == ONE_SYSTEM
    assert behind.response == alone.response
    # Llama 2 begins every question with the token, Mistral a conversation.
    assert behind.prompt == ((tokenizer.bos_token_id,) if name == "llama2" else ()) + alone.prompt
    assert wording.tokens(TARGET, behind=True).joined is None


@pytest.mark.parametrize("named", [LATEST], indirect=True)
def test_turns_that_are_worded_by_what_is_around_them_are_joined_plainly(named: tuple[str, Any]) -> None:
    wording = PromptFormat(named[1])
    target, block = wording.tokens(TARGET, behind=True), wording.block(SHOWN, 1000)
    assert (target.joined, block.joined, wording.joined(SHOWN)) == (CHANGES, CHANGES, CHANGES)
    assert target.prompt == wording.tokens(TARGET).prompt
    alone = wording.tokens(SHOWN)
    assert text_of(named[1], block.ids) == text_of(named[1], [*alone.prompt, *alone.response]) + "\n"


def test_where_a_second_question_is_refused_turns_keep_their_marker(gpt2_folder: Path) -> None:
    tokenizer = load(gpt2_folder, ONE_QUESTION)
    wording = PromptFormat(tokenizer)
    behind = wording.tokens(TARGET, behind=True)
    assert (behind.joined, wording.block(SHOWN, 1000).joined) == (REFUSES, REFUSES)
    assert behind.prompt == wording.tokens(TARGET).prompt
    assert behind.prompt[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_only_targets_before_which_an_example_reads_otherwise_are_joined_plainly(gpt2_folder: Path) -> None:
    tokenizer = load(gpt2_folder, COUNTED)
    wording = PromptFormat(tokenizer)
    assert ours(wording, SHOWN, TARGET) == own(tokenizer, SHOWN, TARGET)[:-1]
    # What stands in front of one question counts two, and must not depend on the target.
    assert wording.tokens(TALK, behind=True).joined == CHANGES


def test_only_examples_that_read_otherwise_before_another_target_are_joined_plainly(gpt2_folder: Path) -> None:
    about = "{% if messages | length > 2 and messages[0].content == 'name a cat' %}of {{ messages[2].content }}: {% endif %}"
    wording = PromptFormat(load(gpt2_folder, about + CHATML))
    assert (wording.joined(SHOWN), wording.joined(OTHER)) == (CHANGES, None)
    assert wording.tokens(TARGET, behind=True).joined is None


def test_a_default_system_turn_stands_once_and_every_turn_keeps_its_marker(gpt2_folder: Path) -> None:
    tokenizer = load(gpt2_folder, "smollm2")
    wording = PromptFormat(tokenizer)
    front, target = wording.block(SHOWN, 1000), wording.tokens(TARGET, behind=True)
    text = text_of(tokenizer, [*wording.bos, *front.ids, *target.prompt])
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nname a cat<|im_end|>\n"
        "<|im_start|>assistant\nlong cat<|im_end|>\n<|im_start|>user\nsort the red list<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text_of(tokenizer, wording.tokens(TARGET).prompt).startswith(
        "system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    )


def test_a_shortened_example_is_part_of_the_conversation(named: tuple[str, Any]) -> None:
    name, tokenizer = named
    wording = PromptFormat(tokenizer)
    long = example("name " * 40 + "the cat", "long cat", system=name == "forced")
    cut = wording.shortened(long, 80)
    assert len(wording.block(long, 80).ids) <= 80 < len(wording.block(long, 10_000).ids)
    assert wording.block(cut, 10_000).ids == wording.block(long, 80).ids
    whole(named, cut, with_system(TARGET) if name == "forced" else TARGET)


def test_labels_of_joined_blocks_are_not_mixed_with_these(gpt2_folder: Path) -> None:
    tokenizer = load(gpt2_folder, "chatml")
    assert PromptFormat(tokenizer).describe() == {"chat": CHATML, "text": "", "form": 3}
    assert "form" not in PromptFormat(tokenizer, "plain").describe()
