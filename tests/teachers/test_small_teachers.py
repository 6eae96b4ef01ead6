from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import nncift
from nncift.data.examples import Example, Examples, Message
from nncift.errors import ResourceError, UsageError
from nncift.models.batching import batches
from nncift.models.causal_lm import CausalLM
from nncift.models.encoders import HashEncoder
from nncift.models.prompt_format import PromptFormat
from nncift.teachers import Chunk, FeatureTeacher, RowTeacher
from nncift.teachers.abilities import HasNotes
from nncift.teachers.delift import Delift
from nncift.teachers.delift_se import Similarity
from nncift.teachers.given_scores import Column, Length, Random
from nncift.teachers.ica import Ica
from nncift.teachers.ifd import Ifd
from nncift.teachers.less import Less
from nncift.teachers.loss import Loss
from nncift.teachers.neutral import neutral_start
from nncift.teachers.rds import Rds

pytestmark = pytest.mark.usefixtures("hastened")
PAIRS = [
    ("sort the red list", "list red"),
    ("name a bird", "bird"),
    ("add two and three to the sum of one and ten", "sum sum sum the sea"),
    ("what is the sky", "blue"),
    ("tell the first word", "first tree house cat dog sky"),
    ("give one color of the sea", "green and blue"),
]


def pool(pairs: list[tuple[str, str]] = PAIRS, **columns: list[Any]) -> Examples:
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(pairs))]
    return Examples(
        tuple(
            Example(f"r{i}", prompt, answer, (Message("user", prompt),), "pool", i + 1, json.dumps(rows[i]))
            for i, (prompt, answer) in enumerate(pairs)
        )
    )


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, llama_folder: Path, gpt2_folder: Path) -> CausalLM:
    return CausalLM.load({"llama": llama_folder, "gpt2": gpt2_folder}[request.param], device="cpu")


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> CausalLM:
    return CausalLM.load(llama_folder, device="cpu")


THOUGHTLESS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content.split('ten')[-1] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A chat template that leaves out what stands before a mark, as some do with thoughts."""


@pytest.mark.parametrize("made", [Delift, Loss, Ifd, Rds, lambda lm: Less(lm, lora=False, warmup_share=0.0)])
def test_rows_of_whose_response_nothing_is_left_are_rejected_and_parts_are_counted(llama: CausalLM, made: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama.name)
    tokenizer.chat_template = THOUGHTLESS
    teacher = made(CausalLM(llama.model, tokenizer, llama.name, llama.fingerprint, llama.context))
    rows = pool([("sky", "red ten"), ("sky", "red ten sea"), ("sky", "sea"), ("sky </s>", "tree"), ("cat", "dog")])
    (rejected,) = teacher.prepare(rows)
    assert rejected.reason == "the chat template leaves nothing of the response"
    assert rejected.line == 1
    assert isinstance(teacher, HasNotes)
    assert teacher.notes() == (
        "1 of 4 rows hold the text of control tokens (</s>), which is read as text.",
        "1 of 4 rows keep only a part of their response under the model's chat template, and nothing else of it is read.",
    )


def ids(lm: CausalLM, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def bos(lm: CausalLM) -> list[int]:
    return [] if lm.tokenizer.bos_token_id is None else [lm.tokenizer.bos_token_id]


def loss_by_hand(lm: CausalLM, before: list[int], response: list[int]) -> float:
    """One sequence, all logits, a sum in plain Python."""
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([before + response])).logits[0].double()
    total = 0.0
    for offset, token in enumerate(response):
        row = logits[len(before) + offset - 1].tolist()
        total += math.log(sum(math.exp(value) for value in row)) - row[token]
    return total / len(response)


def conditional(lm: CausalLM, prompt: str, answer: str) -> float:
    before = [*bos(lm), *ids(lm, f"Instruction:\n{prompt}\n\nResponse:\n")]
    return loss_by_hand(lm, before, [*ids(lm, answer), lm.tokenizer.eos_token_id])


def unconditional(lm: CausalLM, answer: str) -> float:
    start = bos(lm) or [lm.tokenizer.eos_token_id]
    return loss_by_hand(lm, start, [*ids(lm, answer), lm.tokenizer.eos_token_id])


def values(teacher: RowTeacher, examples: Examples) -> list[float]:
    assert teacher.prepare(examples) == ()
    labels = teacher.measure(examples.ids)
    assert labels.values.shape == (len(examples), 1)
    return [float(value) for value in labels.values[:, 0]]


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_loss_equals_the_hand_calculation(lm: CausalLM, batch_tokens: int) -> None:
    expected = [conditional(lm, prompt, answer) for prompt, answer in PAIRS]
    assert values(Loss(lm, batch_tokens=batch_tokens), pool()) == pytest.approx(expected, abs=1e-5)


def test_loss_counts_its_tokens_and_passes(llama: CausalLM) -> None:
    teacher = Loss(llama)
    teacher.prepare(pool())
    labels = teacher.measure(["r1", "r3"])
    # bos, 9 words and marks around the prompt, end of sequence: see the plain template.
    around = 1 + len(ids(llama, "Instruction:\n\n\nResponse:\n")) + 1
    assert (labels.tokens, labels.passes) == (3 + 1 + 4 + 1 + 2 * around, 2)


def test_ifd_is_conditional_over_unconditional_loss(lm: CausalLM) -> None:
    expected = [conditional(lm, prompt, answer) / unconditional(lm, answer) for prompt, answer in PAIRS]
    assert values(Ifd(lm, above_one="keep"), pool()) == pytest.approx(expected, rel=1e-5)


def test_ifd_puts_rows_whose_prompt_misleads_last(lm: CausalLM) -> None:
    ratios = values(Ifd(lm, above_one="keep"), pool())
    assert min(ratios) < 1 < max(ratios), "a reference without both cases"
    found = values(Ifd(lm), pool())
    assert found == [ratio if ratio <= 1 else 0.0 for ratio in ratios]


def test_ifd_reads_every_row_twice(llama: CausalLM) -> None:
    once, twice = Loss(llama), Ifd(llama)
    once.prepare(pool())
    twice.prepare(pool())
    alone = sum(1 + len(answer.split()) + 1 for _, answer in PAIRS)
    assert twice.measure(pool().ids).tokens == once.measure(pool().ids).tokens + alone
    assert twice.measure(pool().ids).passes == 2 * len(PAIRS)


def test_ifd_needs_a_first_token(llama_folder: Path) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    lm.tokenizer.bos_token = lm.tokenizer.eos_token = None
    with pytest.raises(ResourceError, match="begins or ends a text"):
        Ifd(lm).prepare(pool())


def test_ifd_refuses_an_unknown_way_with_ratios_above_one() -> None:
    with pytest.raises(UsageError, match="above_one"):
        Ifd("model", above_one="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Loss, Ifd])
def test_a_row_longer_than_the_context_is_rejected(llama: CausalLM, kind: type[Loss] | type[Ifd]) -> None:
    teacher = kind(llama)
    rejected = teacher.prepare(pool([("name a bird", "bird"), ("cat " * 50, "dog " * 40)]))
    around = 1 + len(ids(llama, "Instruction:\n\n\nResponse:\n")) + 1
    assert [(one.line, one.reason) for one in rejected] == [
        (2, f"too long: needs {90 + around} tokens, and the model's context holds 96")
    ]
    assert teacher.measure(["r0"]).values.shape == (1, 1)


@pytest.mark.parametrize("kind", [Loss, Ifd, Rds])
def test_damaged_weights_are_reported(llama_folder: Path, kind: type[Loss] | type[Ifd] | type[Rds]) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    with torch.no_grad():
        damaged = lm.tokenizer.convert_tokens_to_ids("bird")
        lm.model.get_parameter("model.embed_tokens.weight")[damaged] = float("nan")
    teacher = kind(lm)
    teacher.prepare(pool([("name a dog", "dog dog"), ("name a bird", "bird")]))
    with pytest.raises(ResourceError, match="'r1'"):
        teacher.measure(["r0", "r1"])


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_rds_equals_plain_torch(lm: CausalLM, batch_tokens: int) -> None:
    expected = []
    for prompt, answer in PAIRS:
        tokens = [
            *bos(lm),
            *ids(lm, f"Instruction:\n{prompt}\n\nResponse:\n"),
            *ids(lm, answer),
            lm.tokenizer.eos_token_id,
        ]
        with torch.no_grad():
            hidden = lm.model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]
        weighted = [(place + 1) * vector / sum(range(1, len(tokens) + 1)) for place, vector in enumerate(hidden)]
        mean = torch.stack(weighted).sum(dim=0)
        expected.append(mean / mean.norm())
    teacher = Rds(lm, batch_tokens=batch_tokens)
    assert teacher.prepare(pool()) == ()
    features = teacher.measure(pool().ids).values
    assert features.shape == (len(PAIRS), teacher.width)
    np.testing.assert_allclose(features, torch.stack(expected).numpy(), atol=1e-5)
    cosines = [[float(torch.cosine_similarity(a, b, dim=0)) for b in expected] for a in expected[:2]]
    np.testing.assert_allclose(teacher.utility(features[:2], features), cosines, atol=1e-5)


def test_rds_cuts_a_long_prompt_and_rejects_a_long_response(llama: CausalLM) -> None:
    # The first and the third row agree in the last 94 tokens before the end of sequence; the fourth does not.
    rows = [
        ("cat " * 200 + "dog", "bird"),
        ("name a bird", "bird " * 95),
        ("red " * 100 + "cat " * 200 + "dog", "bird"),
        ("dog " + "cat " * 200, "bird"),
    ]
    teacher = Rds(llama)
    rejected = teacher.prepare(pool(rows))
    assert [(one.line, one.reason) for one in rejected] == [
        (2, "too long: needs 98 tokens, and the model's context holds 96")
    ]
    labels = teacher.measure(["r0", "r2", "r3"])
    # All begin with the same tokens, which are read once.
    assert labels.tokens == teacher.tokens_of(["r0", "r2", "r3"]) < 3 * 96 == 3 * teacher.tokens_of(["r0"])
    np.testing.assert_allclose(labels.values[0], labels.values[1], atol=1e-6)
    assert np.abs(labels.values[0] - labels.values[2]).max() > 1e-3


def test_similarity_is_the_cosine_of_the_encoder_s_vectors() -> None:
    encoder, examples = HashEncoder(64), pool()
    teacher = Similarity(encoder)
    assert teacher.prepare(examples) == ()
    labels = teacher.measure(examples.ids)
    vectors, counts = encoder.encode([f"{prompt}\n\n{answer}" for prompt, answer in PAIRS])
    assert (labels.tokens, labels.passes, teacher.width) == (counts.sum(), len(PAIRS), 64)
    expected = [[float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)) for b in vectors] for a in vectors[2:]]
    np.testing.assert_allclose(teacher.utility(labels.values[2:], labels.values), expected, atol=1e-6)


def test_similarity_pays_nothing_for_what_the_student_read_and_says_so() -> None:
    examples = pool()
    teacher = Similarity("hash")
    teacher.prepare(examples)
    first = teacher.measure(examples.ids)
    again = teacher.measure(examples.ids)
    assert (again.tokens, again.passes) == (0, 0)
    np.testing.assert_array_equal(first.values, again.values)
    assert "a student saves nothing" in teacher.describe()["note"]


def test_length_counts_characters_of_the_response() -> None:
    assert values(Length(), pool([("a long prompt here", "four"), ("b", "zwölf 12")])) == [4.0, 8.0]


def test_random_depends_on_seed_and_id_alone() -> None:
    examples = pool([("name", "cat")] * 400)
    first = values(Random(3), examples)
    assert values(Random(3), examples[100:]) == first[100:]
    assert values(Random(4), examples) != first
    assert len(set(first)) > 390
    assert 0 <= min(first) < 0.05
    assert 0.95 < max(first) < 1
    assert abs(np.mean(first) - 0.5) < 0.08


def test_column_takes_numbers_bools_and_numbers_as_text() -> None:
    examples = pool(PAIRS[:5], quality=[3, -0.5, True, " 2.5 ", False])
    assert values(Column("quality"), examples) == [3.0, -0.5, 1.0, 2.5, 0.0]


@pytest.mark.parametrize("value", [None, "good", "", "nan", [1], {"a": 1}, 1e300, 10**400])
def test_column_rejects_rows_without_a_number(value: Any) -> None:
    teacher = Column("quality")
    rejected = teacher.prepare(pool(PAIRS[:2], quality=[1, value]))
    assert [one.line for one in rejected] == [2]
    assert rejected[0].kind == "no number in column 'quality'"
    assert teacher.measure(["r0"]).values.tolist() == [[1.0]]


def test_column_rejects_rows_without_the_column() -> None:
    teacher = Column("mark")
    assert [one.reason for one in teacher.prepare(pool(PAIRS[:1], quality=[1]))] == ["no column 'mark'"]
    with pytest.raises(UsageError, match="name of a column"):
        Column("")


def test_all_are_row_teachers_under_their_names(llama: CausalLM) -> None:
    pointwise: list[RowTeacher] = [Loss(llama), Ifd(llama), Length(), Random(), Column("quality")]
    features: list[FeatureTeacher] = [Rds(llama), Similarity("hash")]
    assert [teacher.name for teacher in pointwise] == ["loss", "ifd", "length", "random", "column:quality"]
    assert all(isinstance(one, RowTeacher) and one.kind == "pointwise" and one.width == 1 for one in pointwise)
    assert all(isinstance(one, FeatureTeacher) and one.kind == "pairwise" for one in features)
    for one in (*pointwise, *features):
        assert one.options["teacher"] == one.describe()["teacher"] == one.name
        assert one.measure([]).values.shape[0] == 0


def test_batches_hold_every_row_once_within_their_size() -> None:
    lengths = [5, 1, 9, 3, 3, 7]
    found = batches(lengths, 10)
    assert found == [[1, 3, 4], [0], [5], [2]]
    assert batches(lengths, 10, before=30) == [[1, 3], [4, 0], [5], [2]]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} "
    "{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [None, "plain"])
@pytest.mark.parametrize(
    ("chat", "special", "bos_token", "eos_token", "start"),
    [
        # SmolLM2: the bos token begins every turn. Qwen2.5: no bos token, and the eos token ends every turn.
        (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "<|endoftext|>"),
        (CHATML, ["<s>", "</s>", "<|im_start|>", "<|im_end|>"], "<s>", "<|im_end|>", "<s>"),
        (GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", "<bos>"),
        # Every turn begins a document here: there is nothing more neutral.
        (LLAMA2, ["<s>", "</s>"], "<s>", "</s>", "<s>"),
        (None, ["<|endoftext|>"], None, "<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_what_stands_before_a_response_alone_is_no_turn_mark(
    template: str | None, chat: str | None, special: list[str], bos_token: str | None, eos_token: str, start: str
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: number for number, token in enumerate([*special, "<unk>", "a", "user", "assistant", "model"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token=bos_token, eos_token=eos_token, unk_token="<unk>"
    )
    tokenizer.chat_template = chat
    assert neutral_start(tokenizer, PromptFormat(tokenizer, template)) == (words[start],)


def test_most_prompts_that_mislead_are_said_with_their_share() -> None:
    assert Ifd("model").warnings({"above_one": 0.4}) == ()
    (warning,) = Ifd("model").warnings({"above_one": 0.62})
    assert "in 62 % of the measured rows" in warning


def test_ifd_counts_the_rows_whose_prompt_misleads(lm: CausalLM) -> None:
    teacher = Ifd(lm, above_one="keep")
    teacher.prepare(pool())
    labels = teacher.measure(pool().ids)
    assert labels.figures == {"above_one": (labels.values > 1).sum()}


def test_subtasks_of_rds_take_turns(write_pool: Callable[..., Path], llama_folder: Path, tmp_path: Path) -> None:
    target = write_pool(5, "target.jsonl", start=50)
    rows = [json.loads(line) | {"task": "few" if at == 0 else "many"} for at, line in enumerate(target.open())]
    target.write_text("\n".join(map(json.dumps, rows)) + "\n")
    run = nncift.run(
        write_pool(24),
        target=target,
        teacher="rds",
        option={"subtask": "task"},
        model=str(llama_folder),
        encoder="hash",
        labels="100%",
        budget=4,
        device="cpu",
        out=tmp_path / "run",
    )
    table = run.to_pandas()
    turns = table[table["selected"]].sort_values("rank")["reason"].str.extract(r"in the turn of target:(row-\d+)")[0]
    # The subtask of one row has every other turn.
    assert [turn == "row-0050" for turn in turns] in ([True, False] * 2, [False, True] * 2)


@pytest.mark.parametrize("make", [Loss, Ifd, Rds, Delift, Ica, Length, Similarity])
def test_a_row_that_was_set_aside_is_refused_by_name(make: Any, llama: CausalLM) -> None:
    given: dict[Any, tuple[Any, ...]] = {Length: (), Similarity: ("hash",)}
    teacher = make(*given.get(make, (llama,)))
    teacher.prepare(pool())
    pairs = isinstance(teacher, Delift | Ica)
    with pytest.raises(UsageError, match="row 'other' cannot be measured: it was never prepared, or it was rejected"):
        _ = teacher.label(Chunk(0, "other", ("r0",))) if pairs else teacher.measure(["other"])
