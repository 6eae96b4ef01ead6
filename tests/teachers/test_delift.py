from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from nncift.data.examples import Example, Examples, Message
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import CausalLM, Prefix, Row
from nncift.teachers import Chunk
from nncift.teachers.delift import Delift, Variant

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
TARGETS = {
    "t0": ("sort the red list", "red list first"),
    "t1": ("name a bird", "sky bird, sea bird and tree bird."),
    "t2": ("add one to two", "three"),
    "t3": ("tell the last word of house tree short", "short"),
    "t4": ("make: cat dog", "cat and dog\ndog and cat"),
}
SOURCES = {
    "s0": ("name a cat", "long cat"),
    "s1": ("sum five six seven", "the sum is ten of ten"),
    "s2": ("what is blue", "the sky.\nthe sea."),
}


def example(name: str, prompt: str, response: str) -> Example:
    return Example(name, prompt, response, (Message("user", prompt),), "made.jsonl", 1, json.dumps({"id": name}))


def pool(**rows: tuple[str, str]) -> Examples:
    return Examples(tuple(example(name, *texts) for name, texts in rows.items()))


def with_chat(lm: CausalLM, template: str = CHAT) -> CausalLM:
    tokenizer = AutoTokenizer.from_pretrained(lm.name)
    tokenizer.chat_template = template
    return CausalLM(lm.model, tokenizer, lm.name, lm.fingerprint, lm.context)


@pytest.fixture(params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, llama_folder: Path, gpt2_folder: Path) -> CausalLM:
    return CausalLM.load({"llama": llama_folder, "gpt2": gpt2_folder}[request.param], device="cpu")


@pytest.fixture
def llama(llama_folder: Path) -> CausalLM:
    return CausalLM.load(llama_folder, device="cpu")


def ids(lm: CausalLM, text: str) -> list[int]:
    found: list[int] = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def by_hand(lm: CausalLM, target: tuple[str, str], source: tuple[str, str] | None, variant: str, chat: bool) -> float:
    """Score one pair from its texts: one whole sequence, full logits, no cache."""
    eos, bos = str(lm.tokenizer.eos_token), lm.tokenizer.bos_token_id
    if chat:
        question, answer = f"user:\n{target[0]}{eos}\nassistant:\n", target[1] + eos
        shown = "" if source is None else f"user:\n{source[0]}{eos}\nassistant:\n{source[1]}{eos}\n"
    else:
        question, answer = f"Instruction:\n{target[0]}\n\nResponse:\n", target[1]
        shown = "" if source is None else f"Instruction:\n{source[0]}\n\nResponse:\n{source[1]}\n\n"
    response = ids(lm, answer) + ([] if chat else [int(lm.tokenizer.eos_token_id)])
    sequence = ([] if bos is None else [bos]) + ids(lm, shown) + ids(lm, question) + response
    with torch.no_grad():
        chances = torch.softmax(lm.model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].float(), dim=-1)
    first = len(sequence) - len(response)
    gold = [float(chances[position - 1, sequence[position]]) for position in range(first, len(sequence))]
    if variant == "logprob":
        return -float(np.mean(np.log(gold)))
    return float(np.sqrt(np.mean([(1 - p) ** 2 for p in gold])))


def utility(teacher: Delift, targets: Sequence[str], sources: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    base = teacher.label(Chunk(0, None, tuple(targets))).values.astype(np.float64)
    behind = [teacher.label(Chunk(1 + at, source, tuple(targets))).values for at, source in enumerate(sources)]
    return np.stack([base - column for column in behind], axis=1)


def prepared(lm: CausalLM, *more: Example, batch_tokens: int = 2048, variant: Variant = "probability") -> Delift:
    teacher = Delift(lm, variant=variant, batch_tokens=batch_tokens)
    assert teacher.prepare(Examples((*pool(**TARGETS, **SOURCES), *more))) == ()
    return teacher


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("variant", ["probability", "logprob"])
def test_utility_equals_the_hand_calculation(lm: CausalLM, variant: Variant, chat: bool) -> None:
    lm = with_chat(lm) if chat else lm
    found = utility(prepared(lm, variant=variant), list(TARGETS), list(SOURCES))
    expected = [
        [by_hand(lm, t, None, variant, chat) - by_hand(lm, t, s, variant, chat) for s in SOURCES.values()]
        for t in TARGETS.values()
    ]
    assert found.shape == (5, 3)
    assert np.abs(found).max() > (0.1 if variant == "logprob" else 0.002)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_values_do_not_depend_on_batches(lm: CausalLM) -> None:
    found = [utility(prepared(lm, batch_tokens=size), list(TARGETS), list(SOURCES)) for size in (1, 40, 2048)]
    np.testing.assert_allclose(found[0], found[2], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[1], found[2], rtol=0, atol=1e-5)


def test_values_follow_the_order_of_the_chunk(llama: CausalLM) -> None:
    teacher = prepared(llama, batch_tokens=30)
    there = teacher.label(Chunk(0, "s0", ("t0", "t1", "t2"))).values
    back = teacher.label(Chunk(0, "s0", ("t2", "t1", "t0"))).values
    np.testing.assert_allclose(there, back[::-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("off", [("_fast_prefix",), ("_fast_head",), ("_fast_prefix", "_fast_head")])
def test_shortcuts_change_nothing(lm: CausalLM, off: tuple[str, ...]) -> None:
    fast = utility(prepared(lm), list(TARGETS), list(SOURCES))
    for name in off:
        assert getattr(lm, name)
        setattr(lm, name, False)
    slow = utility(prepared(lm), list(TARGETS), list(SOURCES))
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-5)


def calls_of(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], Row]]:
    calls: list[tuple[tuple[int, ...], Row]] = []
    original = lm.log_probabilities

    def spy(prefix: Prefix, rows: Sequence[Row]) -> Any:
        calls.extend((prefix.ids, row) for row in rows)
        return original(prefix, rows)

    monkeypatch.setattr(lm, "log_probabilities", spy)
    return calls


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_bos_stands_once_and_responses_are_the_same(
    llama: CausalLM, chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = with_chat(llama) if chat else llama
    teacher = prepared(lm)
    calls = calls_of(lm, monkeypatch)
    utility(teacher, ["t1"], ["s1"])
    (before, alone), (shown, behind) = calls
    assert alone.response == behind.response
    assert alone.response[-1] == lm.tokenizer.eos_token_id
    assert list(alone.response).count(lm.tokenizer.eos_token_id) == 1
    for sequence in ([*before, *alone.prompt], [*shown, *behind.prompt]):
        assert sequence[0] == lm.tokenizer.bos_token_id
        assert sequence.count(lm.tokenizer.bos_token_id) == 1


def test_cost_counts_the_prefix_once(llama: CausalLM) -> None:
    teacher = prepared(llama)
    rows = [len(teacher.reader.rows[name]) for name in ("t0", "t1")]
    prefix = 1 + len(teacher.wording.block(example("s0", *SOURCES["s0"]), 48).ids)
    # Both begin with the three tokens of `Instruction:\n`, which are read once, as part of the prefix.
    assert teacher.label(Chunk(0, None, ("t0", "t1"))).tokens == (1 + 3) + sum(rows) - 2 * 3
    assert teacher.label(Chunk(0, "s0", ("t0", "t1"))).tokens == (prefix + 3) + sum(rows) - 2 * 3
    assert teacher.label(Chunk(0, None, ("t0",))).tokens == 1 + rows[0]
    llama._fast_prefix = False
    assert teacher.label(Chunk(0, "s0", ("t0", "t1"))).tokens == 2 * prefix + sum(rows)


LONG = " ".join(["red", "blue", "green", "cat", "dog"] * 13)


def test_a_long_example_loses_the_start_of_its_prompt_only(llama: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = prepared(llama, example("long", LONG, "sum of ten"))
    calls = calls_of(llama, monkeypatch)
    labels = teacher.label(Chunk(0, "long", tuple(TARGETS)))
    assert labels.shortened
    assert np.isfinite(labels.values).all()
    shown = {prefix for prefix, _ in calls}
    assert len(shown) == 1
    words = str(llama.tokenizer.decode(list(shown.pop())[1:])).split()
    assert teacher.block_tokens == 48
    kept = words[words.index(":") + 1 : words.index("Response")]
    assert kept == LONG.split()[-len(kept) :]
    assert 0 < len(kept) < 65
    # Behind the example stands what all targets begin with.
    assert words[-5:] == ["sum", "of", "ten", "Instruction", ":"]


def test_a_shortened_example_fills_its_room(llama: CausalLM) -> None:
    block = Delift(llama).wording.block(example("long", LONG, "sum"), 48)
    assert len(block.ids) in (47, 48)


def test_a_short_example_is_not_shortened(llama: CausalLM) -> None:
    assert not prepared(llama).label(Chunk(0, "s0", ("t0",))).shortened


def test_a_long_response_stays_whole_and_pairs_that_cannot_fit_are_missing(llama: CausalLM) -> None:
    answer = " ".join(["tree"] * 65)
    teacher = prepared(llama, example("wordy", "name a tree", answer))
    block = teacher.wording.block(example("wordy", "name a tree", answer), teacher.block_tokens)
    assert list(block.ids).count(ids(llama, "tree")[0]) == 65
    lengths = {name: 1 + len(block.ids) + len(teacher.reader.rows[name]) for name in TARGETS}
    assert min(lengths.values()) <= 96 < max(lengths.values())
    values = teacher.label(Chunk(0, "wordy", tuple(TARGETS))).values
    assert {name: bool(np.isnan(value)) for name, value in zip(TARGETS, values, strict=True)} == {
        name: length > 96 for name, length in lengths.items()
    }


def test_a_chunk_that_cannot_fit_at_all_costs_nothing(llama: CausalLM) -> None:
    teacher = prepared(llama, *pool(a=("name", "tree " * 80), b=("name", "sea " * 80)))
    labels = teacher.label(Chunk(0, "a", ("b",)))
    assert np.isnan(labels.values).tolist() == [True]
    assert labels.tokens == 0


@pytest.mark.parametrize(("words", "fits"), [(83, True), (84, False)])
def test_a_row_must_fit_alone(llama: CausalLM, words: int, fits: bool) -> None:
    # 1 bos, 3 tokens of `Instruction:\n`, 1 of the prompt, 2 line ends, 3 of `Response:\n`, 1 end of sequence.
    room = 96 - 11 - 2
    assert room == 83
    rejected = Delift(llama).prepare(pool(row=("name", " ".join(["tree"] * (words + 2)))))
    if fits:
        assert rejected == ()
    else:
        assert [r.reason for r in rejected] == ["too long: needs 97 tokens, and the model's context holds 96"]
        assert (rejected[0].source, rejected[0].line) == ("made.jsonl", 1)


def test_a_row_without_a_token_of_response_is_rejected(llama: CausalLM) -> None:
    llama.tokenizer.eos_token = None
    teacher = Delift(llama)
    (rejected,) = teacher.prepare(pool(row=("name", "")))
    assert "no tokens" in rejected.reason


def test_a_response_without_anything_before_it_is_rejected(gpt2_folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "bare.txt"
    template.write_text("{prompt}{response}")
    teacher = Delift(str(gpt2_folder), device="cpu", template=str(template))
    (rejected,) = teacher.prepare(pool(good=("name", "tree"), bad=("", "tree")))
    assert "no tokens" in rejected.reason


def test_a_template_that_refuses_turns_rejects_the_row_only(llama: CausalLM) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no\nsystem') }}{% endif %}{% endfor %}"
    )
    teacher = Delift(with_chat(llama, template + CHAT))
    good = example("good", "name a cat", "cat")
    bad = replace(good, id="bad", line=7, messages=(Message("system", "sum"), *good.messages))
    (rejected,) = teacher.prepare(Examples((good, bad)))
    assert rejected.line == 7
    assert rejected.reason.endswith("no system")
    assert "\n" not in rejected.reason
    assert np.isfinite(teacher.label(Chunk(0, None, ("good",))).values).all()


def test_an_example_whose_turns_cannot_be_cut_is_a_missing_value(llama: CausalLM) -> None:
    demand = (
        "{% if messages[0].content | length in [0, 1, 5] or messages[0].content[0:3] in ['red', 'nnc'] %}{% else %}"
    )
    template = demand + "{{ raise_exception('must begin with red') }}{% endif %}"
    teacher = Delift(with_chat(llama, template + CHAT))
    rows = pool(long=(LONG, "sum"), short=("red", "sea"))
    assert teacher.prepare(rows) == ()
    labels = teacher.label(Chunk(0, "long", ("short",)))
    assert np.isnan(labels.values).all()


def test_a_long_conversation_in_front_begins_with_a_question(llama: CausalLM) -> None:
    demand = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    turns = (Message("user", LONG[:200]), Message("assistant", LONG[:100]), Message("user", "what is blue"))
    talk = Example("talk", "", "the sky", turns, "made.jsonl", 1, "{}")
    block = Delift(with_chat(llama, demand + CHAT)).wording.block(talk, 30)
    assert block.shortened
    assert len(block.ids) <= 30
    words = str(llama.tokenizer.decode(list(block.ids))).split()
    assert words[:2] == ["<unk>", ":"]
    assert " ".join(words).count("what is blue") == 1
    assert words.count("<unk>") == 2


DEFAULT = "{% if messages[0].role != 'system' %}system:\nthe sky{{ eos_token }}\n{% endif %}"


@pytest.mark.parametrize("source", [None, "s1"])
def test_a_pair_is_read_as_the_templates_own_conversation(
    llama: CausalLM, source: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = with_chat(llama, CHAT.replace("{{ bos_token }}", "{{ bos_token }}" + DEFAULT))
    teacher = prepared(lm)
    calls = calls_of(lm, monkeypatch)
    targets = ("t0", "t2", "t4")
    teacher.label(Chunk(0, source, targets))
    said = [] if source is None else [SOURCES[source]]
    expected = []
    for target in targets:
        turns = [
            {"role": role, "content": text}
            for row in (*said, TARGETS[target])
            for role, text in zip(("user", "assistant"), row, strict=True)
        ]
        expected.append(ids(lm, str(lm.tokenizer.apply_chat_template(turns, tokenize=False)))[:-1])
    found = [[*prefix, *row.prompt, *row.response] for prefix, row in calls]
    assert sorted(found) == sorted(expected)
    assert teacher.notes() == ()


def test_rows_that_are_joined_plainly_are_counted_with_their_reason(llama: CausalLM) -> None:
    refused = "{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
    teacher = Delift(with_chat(llama, "{% for m in messages %}" + refused + "{% endfor %}" + CHAT))
    good = example("good", "name a cat", "cat")
    own = replace(good, id="own", messages=(Message("system", "sum"), *good.messages))
    assert teacher.prepare(Examples((good, own, *pool(**TARGETS)))) == ()
    assert teacher.notes() == (
        "1 of 7 rows are joined plainly behind an example, not as one conversation: the chat template takes a system turn only "
        "at the start of a conversation.",
    )
    assert np.isfinite(teacher.label(Chunk(0, "good", ("own",))).values).all()


def test_nan_from_the_model_names_the_target(llama: CausalLM) -> None:
    teacher = prepared(llama)
    with torch.no_grad():
        llama.model.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(ResourceError, match="'t0' behind example 's1'"):
        teacher.label(Chunk(0, "s1", ("t0", "t1")))


@pytest.mark.parametrize(
    "other",
    [{"variant": "logprob"}, {"context": 64}, {"batch_tokens": 512}, {"template": "FILE"}, {"dtype": "bfloat16"}],
)
def test_the_description_tells_all_that_decides_values(
    llama_folder: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    if "template" in other:
        other = {"template": str(tmp_path / "template.txt")}
        Path(other["template"]).write_text("{prompt} : {response}")
    settings: dict[str, Any] = {"device": "cpu"}
    usual = Delift(str(llama_folder), **settings).describe()
    assert usual == Delift(str(llama_folder), **settings).describe()
    assert json.loads(json.dumps(usual)) == usual
    changed = Delift(str(llama_folder), **settings, **other).describe()
    assert changed != usual
    assert changed.keys() == usual.keys()


def test_the_context_caps_examples_and_rows(llama_folder: Path) -> None:
    teacher = Delift(str(llama_folder), device="cpu", context=40)
    assert teacher.block_tokens == 20
    rejected = teacher.prepare(pool(row=("name", " ".join(["tree"] * 40))))
    assert "context holds 40" in rejected[0].reason


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UsageError, match="probability or logprob"):
        Delift("model", variant="gain")  # type: ignore[arg-type]


def test_half_precision_stays_close(llama_folder: Path, llama: CausalLM) -> None:
    half = Delift(CausalLM.load(llama_folder, device="cpu", dtype="bfloat16"))
    half.prepare(pool(**TARGETS, **SOURCES))
    exact = utility(prepared(llama), list(TARGETS), list(SOURCES))
    np.testing.assert_allclose(utility(half, list(TARGETS), list(SOURCES)), exact, rtol=0, atol=0.05)


def test_targets_that_differ_in_their_response_alone_keep_a_token_that_predicts_it(llama: CausalLM) -> None:
    same = {"t0": ("name a bird", "sky bird"), "t1": ("name a bird", "red bird and tree"), "t2": ("name a bird", "sea")}
    teacher = Delift(llama)
    teacher.prepare(pool(**same, **SOURCES))
    for source in (None, "s0"):
        together = teacher.label(Chunk(0, source, tuple(same))).values
        alone = [float(teacher.label(Chunk(0, source, (name,))).values[0]) for name in same]
        np.testing.assert_allclose(together, alone, atol=1e-6)
