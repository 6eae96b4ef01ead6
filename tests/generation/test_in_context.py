from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from transformers import AutoTokenizer

from nncift.core.arrays import Floats
from nncift.data.examples import Example, Examples
from nncift.errors import UsageError
from nncift.generation.few_shot import examples_in_front
from nncift.generation.prompts import Prompts
from nncift.models.causal_lm import CausalLM
from nncift.models.encoders import HashEncoder
from nncift.models.prompt_format import PromptFormat

Make = Callable[..., Example]


def vectors_of(texts: Sequence[str]) -> Floats:
    return HashEncoder().encode(texts)[0]


@pytest.fixture
def wording(llama: CausalLM) -> PromptFormat:
    return PromptFormat(llama.tokenizer)


def test_the_nearest_by_their_prompts_stand_last(llama: CausalLM, wording: PromptFormat, make: Make) -> None:
    chosen = Examples((make("far", "sea", "red blue"), make("near", "red blue green"), make("mid", "red sky", "dog")))
    found = examples_in_front(chosen, Examples((make("t", "red blue", "sea"),)), vectors_of, 2, llama, wording)
    assert [one.id for one in found["t"]] == ["mid", "near"]
    assert (found.shown, found.shortened, found.left_out, found.same) == (2, 0, 0, 0)


def test_a_test_item_among_the_chosen_is_never_shown_to_itself(
    llama: CausalLM, wording: PromptFormat, make: Make
) -> None:
    chosen = Examples((make("own", "red blue"), make("other", "sea sky")))
    found = examples_in_front(chosen, Examples((make("t", "red blue"),)), vectors_of, 2, llama, wording)
    assert [one.id for one in found["t"]] == ["other"]
    assert found.same == 1


def test_examples_are_cut_from_their_prompts_start_and_the_query_is_whole(
    llama: CausalLM, wording: PromptFormat, make: Make
) -> None:
    long = make("long", "cat " * 100 + "red blue", "one two")
    test = make("t", "red blue", "sea")
    found = examples_in_front(Examples((long,)), Examples((test,)), vectors_of, 1, llama, wording, max_new_tokens=8)
    (shown,) = found["t"]
    assert found.shortened == 1
    assert long.prompt.endswith(shown.prompt)
    assert (shown.response, shown.raw) == (long.response, long.raw)
    row = Prompts(llama, wording, found).row(test, room=8)
    assert row.prompt[-len(wording.tokens(test).prompt) :] == wording.tokens(test).prompt
    # One more character would not have fitted.
    longer = long.prompt[-len(shown.prompt) - 4 :]
    assert len(row.prompt) + 8 <= llama.context
    grown = len(wording.block(make("x", longer, "one two"), 999).ids) - len(wording.block(shown, 999).ids)
    assert len(row.prompt) + 8 + grown > llama.context


def test_a_response_is_never_cut_so_an_example_may_be_left_out(
    llama: CausalLM, wording: PromptFormat, make: Make
) -> None:
    chosen = Examples((make("huge", "red blue", "cat " * 90), make("small", "red")))
    test = make("t", "red blue", "sea")
    found = examples_in_front(chosen, Examples((test,)), vectors_of, 2, llama, wording, max_new_tokens=8)
    assert [one.id for one in found["t"]] == ["small"]
    assert (found.shown, found.left_out) == (1, 1)


def test_a_test_item_that_cannot_be_worded_gets_none_and_is_told(
    llama: CausalLM, wording: PromptFormat, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nncift.errors import DataError

    def refuse(example: Example, *, behind: bool) -> None:
        raise DataError("refused")

    monkeypatch.setattr(wording, "tokens", refuse)
    found = examples_in_front(
        Examples((make("a", "red"),)), Examples((make("t", "sea"),)), vectors_of, 1, llama, wording
    )
    assert found["t"] == ()
    assert found.failures == {"t": "refused"}


DEFAULT = "{% if messages[0].role != 'system' %}system: the sky sea tree{{ eos_token }}\n{% endif %}"
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"


def test_several_examples_and_the_test_are_one_conversation(llama: CausalLM, make: Make) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama.name)
    tokenizer.chat_template = DEFAULT + CHAT + "{% if add_generation_prompt %}assistant:{% endif %}"
    wording = PromptFormat(tokenizer)
    rows = [make("a", "red sky", "one"), make("b", "red blue sky", "two"), make("c", "cat", "ten " * 60)]
    test = make("t", "red blue", "sea")
    found = examples_in_front(Examples(tuple(rows)), Examples((test,)), vectors_of, 3, llama, wording, max_new_tokens=8)
    assert [one.id for one in found["t"]] == ["a", "b"]
    assert (found.joined, found.joined_tests) == (0, 0)
    row = Prompts(llama, wording, found).row(test)
    turns = [
        {"role": role, "content": text}
        for one in (*found["t"], test)
        for role, text in (("user", one.prompt), ("assistant", one.response))
    ]
    whole = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
    assert [*row.prompt, *row.response] == whole[:-1]


def test_what_begins_the_conversation_is_counted_once(llama: CausalLM, make: Make) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama.name)
    tokenizer.chat_template = DEFAULT.replace("sea tree", "sea tree " * 15) + CHAT
    wording = PromptFormat(tokenizer)
    rows = Examples(tuple(make(f"{k}", "red blue " * k, "one") for k in range(2, 6)))
    test = make("t", "red blue", "sea")
    found = examples_in_front(rows, Examples((test,)), vectors_of, 4, llama, wording, max_new_tokens=8)
    assert found.shown == 4
    row = Prompts(llama, wording, found).row(test, room=8)
    assert len(row.prompt) + 8 <= llama.context


def test_order_of_the_chosen_carries_no_meaning(llama: CausalLM, wording: PromptFormat, make: Make) -> None:
    rows = [make(f"{k}", f"red {'blue ' * (k % 3)}") for k in range(6)]
    tests = Examples((make("t", "red blue", "sea"), make("u", "blue", "sea")))
    one = examples_in_front(Examples(tuple(rows)), tests, vectors_of, 3, llama, wording)
    random = np.random.default_rng(0).permutation(6)
    other = examples_in_front(Examples(tuple(rows[k] for k in random)), tests, vectors_of, 3, llama, wording)
    assert one == other


def test_no_chosen_examples_and_k_of_nothing(llama: CausalLM, wording: PromptFormat, make: Make) -> None:
    tests = Examples((make("t", "red"),))
    assert examples_in_front(Examples(()), tests, vectors_of, 2, llama, wording)["t"] == ()
    with pytest.raises(UsageError, match="at least 1"):
        examples_in_front(tests, tests, vectors_of, 0, llama, wording)
