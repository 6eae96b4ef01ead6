from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nncift.data.examples import Example, Message
from nncift.errors import DataError, UsageError
from nncift.models.prompt_format import PromptFormat, plain_prompt

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}<|start|>{{ m.role }}<|end|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<s>"]


@pytest.fixture
def tokenizer(gpt2_folder: Path) -> Any:
    """A tokenizer that spells any text, with the control tokens of the chat templates, and that adds none itself."""
    found = AutoTokenizer.from_pretrained(gpt2_folder)
    found.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": MARKS[:-1]})
    return found


@pytest.fixture
def words(llama_folder: Path) -> Any:
    """A word-level tokenizer that puts a bos token in front of every text."""
    return AutoTokenizer.from_pretrained(llama_folder)


def example(prompt: str = "name a cat", response: str = "long cat", *before: tuple[str, str]) -> Example:
    turns = (*(Message(*turn) for turn in before), Message("user", prompt))
    return Example("e", prompt, response, turns, "made.jsonl", 1, "{}")


def chat(tokenizer: Any, template: str) -> PromptFormat:
    tokenizer.chat_template = template
    return PromptFormat(tokenizer)


def read(wording: PromptFormat, row: Example) -> tuple[str, str, str]:
    """Return prompt, response and example block as text."""
    decode: Any = wording._tokenizer.decode
    tokens = wording.tokens(row)
    block = wording.block(row, 1000)
    texts = [
        decode(list(ids), clean_up_tokenization_spaces=False) for ids in (tokens.prompt, tokens.response, block.ids)
    ]
    return texts[0], texts[1], texts[2]


def test_plain_text_is_as_documented(tokenizer: Any) -> None:
    assert read(PromptFormat(tokenizer), example()) == (
        "Instruction:\nname a cat\n\nResponse:\n",
        "long cat<|endoftext|>",
        "Instruction:\nname a cat\n\nResponse:\nlong cat\n\n",
    )


def test_plain_is_used_on_demand_where_there_is_a_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    assert read(PromptFormat(tokenizer, "plain"), example())[1] == "long cat<|endoftext|>"


def test_prompt_and_response_are_tokenised_apart(tokenizer: Any) -> None:
    wording = PromptFormat(tokenizer)
    tokens = wording.tokens(example("sum", "ten"))
    assert list(tokens.response[:-1]) == tokenizer("ten", add_special_tokens=False)["input_ids"]
    assert len(tokens) == len(tokens.prompt) + len(tokens.response)


def test_a_template_file_words_everything(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_bytes(b"\xef\xbb\xbfQ: {prompt}\r\nA: {response}!")
    wording = PromptFormat(tokenizer, str(path))
    assert read(wording, example("{response}", "{prompt}")) == (
        "Q: {response}\nA: ",
        "{prompt}!<|endoftext|>",
        "Q: {response}\nA: {prompt}!\n\n",
    )
    assert wording.describe() == {"chat": None, "text": "Q: {prompt}\nA: {response}!"}


@pytest.mark.parametrize(
    "text", ["", "{prompt}", "{response} {prompt}", "{prompt} {prompt} {response}", "{prompt} {response} {response}"]
)
def test_a_template_file_must_hold_both_names_once_in_order(tokenizer: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match="once each"):
        PromptFormat(tokenizer, str(path))


def test_a_template_file_must_be_there(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        PromptFormat(tokenizer, str(tmp_path / "none.txt"))


def test_a_template_file_must_be_text(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_bytes(b"{prompt} \xff {response}")
    with pytest.raises(UsageError, match="UTF-8"):
        PromptFormat(tokenizer, str(path))


def test_chat_needs_a_chat_template(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        PromptFormat(tokenizer, "chat")


@pytest.mark.parametrize("mark", ["</s>", "<s>"])
def test_control_tokens_in_a_row_are_plain_text(words: Any, mark: str) -> None:
    wording = PromptFormat(words)
    row = example(f"cat {mark} dog", f"sum {mark} add")
    control = words.convert_tokens_to_ids(mark)
    tokens = wording.tokens(row)
    assert control in words(mark, add_special_tokens=False)["input_ids"]
    assert control not in tokens.prompt
    assert control not in tokens.response[:-1]
    assert control not in wording.block(row, 1000).ids


def test_bos_is_the_tokenizers_habit(words: Any, tokenizer: Any) -> None:
    assert PromptFormat(words).bos == (words.bos_token_id,)
    assert PromptFormat(tokenizer).bos == ()


def test_bos_that_is_left_to_the_chat_template_stands_in_plain_text_too(tokenizer: Any) -> None:
    tokenizer.chat_template = MISTRAL
    assert PromptFormat(tokenizer, "plain").bos == (tokenizer.bos_token_id,)


def test_an_end_mark_that_is_also_bos_is_no_bos(gpt2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}"
    assert PromptFormat(tokenizer).bos == PromptFormat(tokenizer, "plain").bos == ()


def test_a_tokenizer_without_any_special_token_is_fine(words: Any) -> None:
    words.bos_token = words.eos_token = words.pad_token = None
    wording = PromptFormat(words)
    assert (wording.bos, wording.eos) == ((), ())
    assert len(wording.tokens(example("name", "long cat")).response) == 2


def test_turns_before_the_response_are_labelled_where_there_are_several() -> None:
    talk = [Message("system", "Be short."), Message("user", "one?"), Message("assistant", "1"), Message("user", "two?")]
    assert plain_prompt(talk) == "System: Be short.\n\nUser: one?\n\nAssistant: 1\n\nUser: two?"
    assert plain_prompt(talk[:2]) == "Be short.\n\none?"
    assert plain_prompt(talk[1:2]) == "one?"


def test_chatml(tokenizer: Any) -> None:
    wording = chat(tokenizer, CHATML)
    question = "<|im_start|>user\nname a cat<|im_end|>\n<|im_start|>assistant\n"
    assert read(wording, example()) == (question, "long cat<|im_end|>", f"{question}long cat<|im_end|>\n")
    assert wording.bos == ()
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in wording.tokens(example()).prompt
    assert wording.describe()["chat"] == CHATML


def test_llama3(tokenizer: Any) -> None:
    wording = chat(tokenizer, LLAMA3)
    question = "<|start|>user<|end|>\n\nname a cat<|eot|><|start|>assistant<|end|>\n\n"
    assert read(wording, example(response="long cat \n")) == (question, "long cat<|eot|>", f"{question}long cat<|eot|>")
    assert wording.bos == (tokenizer.bos_token_id,)


def test_mistral(tokenizer: Any) -> None:
    wording = chat(tokenizer, MISTRAL)
    question = "[INST] name a cat [/INST]"
    assert read(wording, example()) == (question, " long cat<|endoftext|>", f"{question} long cat<|endoftext|>")
    assert wording.bos == (tokenizer.bos_token_id,)


def test_an_empty_thought_belongs_to_the_prompt(tokenizer: Any) -> None:
    wording = chat(tokenizer, THINKING)
    prompt, response, block = read(wording, example())
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert response == "long cat<|im_end|>"
    # In front of a target it is an earlier turn, where the template puts no thought.
    assert block == f"<|im_start|>user\nname a cat<|im_end|>\n<|im_start|>assistant\n{response}\n"


@pytest.mark.parametrize("response", ["user", "<|im", "im_end|>\n", "long\n\n", " long ", "?"])
def test_the_end_mark_is_found_whatever_the_response(tokenizer: Any, response: str) -> None:
    assert read(chat(tokenizer, CHATML), example(response=response))[1] == f"{response}<|im_end|>"


def test_a_chat_template_without_end_mark_gets_the_tokenizers(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert read(chat(tokenizer, template), example()) == (
        "user: name a cat\nassistant:",
        " long cat<|endoftext|>",
        "user: name a cat\nassistant: long cat\n",
    )


def test_a_chat_template_that_refuses_turns_is_a_defect_of_the_row(tokenizer: Any) -> None:
    wording = chat(tokenizer, MISTRAL)
    with pytest.raises(DataError, match="roles must alternate"):
        wording.tokens(example("one", "two", ("system", "sum")))


def test_a_chat_template_that_refuses_everything_is_an_error_of_the_setting(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="--template plain"):
        chat(tokenizer, "{{ raise_exception('never') }}")


def test_a_prompt_that_is_not_the_beginning_of_the_whole_is_refused(tokenizer: Any) -> None:
    wording = chat(tokenizer, "{% if add_generation_prompt %}Now: {% endif %}" + CHATML)
    with pytest.raises(DataError, match="--template plain"):
        wording.tokens(example())


def test_a_template_that_names_the_day_is_the_same_on_every_day(tokenizer: Any) -> None:
    template = (
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d') }}\n{% endif %}"
    )
    prompt = read(chat(tokenizer, template + CHATML), example())[0]
    assert prompt.startswith("26 Jul 2024 2024-07-26\n<|im_start|>user\n")


def test_cutting_goes_from_turn_to_turn(tokenizer: Any) -> None:
    wording = PromptFormat(tokenizer)
    talk = example("two?", "2", ("user", "one?"), ("assistant", "1"))
    left = [plain_prompt(wording._cut(talk.messages, count)) for count in (1, 4, 5, 6, 9)]
    assert left == ["User: ne?\n\nAssistant: 1\n\nUser: two?", "Assistant: 1\n\nUser: two?", "two?", "wo?", ""]


def test_an_empty_prompt_cannot_be_shortened(tokenizer: Any) -> None:
    block = PromptFormat(tokenizer).block(example("", "tree " * 20), 5)
    assert not block.shortened
    assert len(block.ids) > 20


def test_a_shortened_example_is_what_its_block_reads(tokenizer: Any) -> None:
    wording = PromptFormat(tokenizer)
    talk = example("two?", "2", ("user", "one?"), ("assistant", "1"))
    whole = len(wording.block(talk, 1000).ids)
    assert wording.shortened(talk, whole) is talk
    cut = wording.shortened(talk, whole - 6)
    assert wording.block(cut, 1000).ids == wording.block(talk, whole - 6).ids
    assert cut.prompt == plain_prompt(cut.messages)
    assert (cut.id, cut.response, cut.raw) == (talk.id, talk.response, talk.raw)


@pytest.mark.parametrize(
    ("template", "mark"),
    [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot|>"), (MISTRAL, "<|endoftext|>"), (THINKING, "<|im_end|>")],
)
def test_the_end_of_a_response_is_the_chat_templates_mark(tokenizer: Any, template: str, mark: str) -> None:
    assert chat(tokenizer, template).end == (tokenizer.convert_tokens_to_ids(mark),)


def test_plain_text_ends_with_what_its_template_puts_behind(tokenizer: Any, tmp_path: Path) -> None:
    assert PromptFormat(tokenizer).end == ()
    path = tmp_path / "own.txt"
    path.write_text("Q: {prompt}\nA: {response}\n!")
    assert PromptFormat(tokenizer, str(path)).end == tuple(PromptFormat(tokenizer)._ids("!"))
