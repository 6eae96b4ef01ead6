from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nncift.data.examples import Example, Examples, Message
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import CausalLM
from nncift.models.prompt_format import PromptFormat
from nncift.teachers import RowTeacher, grading
from nncift.teachers.grading import token_scores
from nncift.teachers.rating import Form, make_form, read_prompts
from nncift.teachers.selectit import SelectIt, sentence_scores
from tests.tolerances import of_models

SHORT = [
    "give one to {best} for\n{prompt}\nis\n{response}\nnumber:",
    "the first {prompt} the last {response}\n\nlong or short, 1 to {best}:",
    "tell what {prompt} and {response} make\nResponse:",
]
ALIKE = [
    f"give one to {{best}} for\n{{prompt}}\nis\n{{response}}\n{end}:" for end in ("number", "is the word long", "add")
]
WORDS = ["sort the red list", "add two and three to the sum", "name a bird", "what is the long blue sky", "cat"]
ANSWERS = ["blue", "the list of the sea", "bird cat dog", "tree house in the green sea of the sky and one cat", "ten"]


def examples(prompts: Sequence[str] = WORDS, responses: Sequence[str] = ANSWERS) -> Examples:
    return Examples(
        tuple(
            Example(f"r{i}", prompt, response, (Message("user", prompt),), "pool", i + 1, json.dumps({"id": f"r{i}"}))
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        )
    )


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "short.yaml"
    path.write_text(yaml.safe_dump(SHORT), encoding="utf-8")
    return path


def words_with_digits() -> Tokenizer:
    known = [
        "<unk>",
        "<s>",
        "</s>",
        "\n",
        ":",
        ",",
        *"123456789",
        *sorted(set(" ".join([*WORDS, *ANSWERS, *SHORT]).split())),
    ]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(dict.fromkeys(known))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def byte_level(text: str, *, split_digits: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 5, trainer)
    return tokenizer


def split_digits() -> Tokenizer:
    return byte_level(" ".join([*WORDS, *ANSWERS]), split_digits=True)


def uneven() -> Tokenizer:
    # " 1" and " 2" are one token each, " 3" to " 5" take two and share the first of them.
    return byte_level("1 2 1 2 : 1 : 2", split_digits=False)


def space_pieces() -> Tokenizer:
    # As in SentencePiece models: every text gets a space in front, and a space is a piece of its own before a digit.
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *[f"<0x{value:02X}>" for value in range(256)]]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([" ".join([*WORDS, *ANSWERS, "1 2 3 4 5"])] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def merged() -> Tokenizer:
    # Grades 1 and 2 melt together with the end of the rating prompt; only what stands before it is common to all.
    letters = sorted({*"".join([*WORDS, *ANSWERS, *SHORT]).replace(" ", "▁"), *"123456789"})
    known = ["<unk>", "<s>", "</s>", *letters, ":▁", ":▁1", ":▁2"]
    merges = [(":", "▁"), (":▁", "1"), (":▁", "2")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(known)}, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def two_letters() -> Tokenizer:
    # A grade takes two tokens, and first tokens are shared by some: no two grades agree in both.
    tokenizer = words_with_digits()
    pairs = {"1": "a x", "2": "a y", "3": "b x", "4": "b y", "5": "c z"}
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(digit, pair) for digit, pair in pairs.items()])
    tokenizer.add_tokens(["b", "c", "x", "y", "z"])
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "words": words_with_digits,
    "split digits": split_digits,
    "uneven": uneven,
    "space pieces": space_pieces,
    "merged": merged,
    "two letters": two_letters,
}


def make_lm(tokenizer: Tokenizer, *, context: int = 256, hidden: int = 32, seed: int = 0) -> CausalLM:
    bos = "<s>" if tokenizer.post_processor is not None else None
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token=bos, eos_token="</s>", model_max_length=context
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    return CausalLM(model, fast, f"made-{seed}", f"print-{seed}", context)


@pytest.fixture(scope="module")
def made() -> dict[str, CausalLM]:
    return {name: make_lm(maker(), seed=number) for number, (name, maker) in enumerate(MAKERS.items())}


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: Path) -> CausalLM:
    return CausalLM.load(gpt2_folder, device="cpu")


def by_hand(lm: CausalLM, example: Example, text: str, grades: int, bos: Sequence[int] = ()) -> list[float]:
    """Return the grades' probabilities: one sequence per grade, all logits, all tokens behind the response."""

    def encode(piece: str) -> list[int]:
        return list(lm.tokenizer(piece, add_special_tokens=False)["input_ids"])

    head, rest = text.replace("{best}", str(grades)).split("{prompt}")
    middle, ending = rest.split("{response}")
    before = [*bos, *encode(head), *encode(example.prompt), *encode(middle), *encode(example.response)]
    logs = []
    for grade in range(1, grades + 1):
        tail = encode(f"{ending} {grade}")
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([before + tail])).logits[0].double()
        total = 0.0
        for offset, token in enumerate(tail):
            row = logits[len(before) + offset - 1].tolist()
            top = max(row)
            total += row[token] - top - math.log(sum(math.exp(value - top) for value in row))
        logs.append(total)
    top = max(logs)
    chances = [math.exp(value - top) for value in logs]
    return [value / sum(chances) for value in chances]


def token_by_hand(chances: Sequence[float]) -> float:
    base = 0
    for k, chance in enumerate(chances):
        if chance > chances[base]:
            base = k
    return (base + 1) * sum(abs(chance - chances[base]) for chance in chances) / (len(chances) - 1)


def sentence_by_hand(lm: CausalLM, example: Example, texts: Sequence[str], grades: int, alpha: float) -> float:
    bos = [1] if lm.tokenizer.bos_token_id is not None else []
    scores = [token_by_hand(by_hand(lm, example, text, grades, bos)) for text in texts]
    return statistics.fmean(scores) / (1 + alpha * statistics.pstdev(scores))


def measured(teacher: SelectIt, pool: Examples) -> list[float]:
    assert teacher.prepare(pool) == ()
    return [float(value) for value in teacher.measure(pool.ids).values[:, 0]]


@pytest.mark.parametrize("name", MAKERS)
def test_scores_equal_the_hand_calculation(made: dict[str, CausalLM], prompts: Path, name: str) -> None:
    pool = examples()
    teacher = SelectIt(made[name], rating_prompts=prompts)
    expected = [sentence_by_hand(made[name], example, SHORT, 5, 0.2) for example in pool]
    assert measured(teacher, pool) == pytest.approx(expected, abs=2e-5)
    assert len({round(value, 4) for value in expected}) == len(pool), "a reference that does not tell rows apart"


def test_scores_equal_the_hand_calculation_on_gpt2(gpt2: CausalLM, prompts: Path) -> None:
    pool = examples()
    expected = [sentence_by_hand(gpt2, example, SHORT, 5, 0.2) for example in pool]
    assert measured(SelectIt(gpt2, rating_prompts=prompts), pool) == pytest.approx(expected, abs=2e-5)


def test_word_level_llama_without_digits_is_refused(llama_folder: Path, prompts: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot tell the grades 1, 2, 3, 4, 5 apart.*<unk>.*rating_prompts=FILE"):
        SelectIt(str(llama_folder), rating_prompts=prompts, device="cpu").prepare(examples())


def form(lm: CausalLM, text: str, grades: int = 5) -> Form:
    return make_form(PromptFormat(lm.tokenizer, "plain"), lm.tokenizer, text, "123456789"[:grades])


@pytest.mark.parametrize(
    ("name", "grades", "branches"),
    [
        ("words", ["1", "2", "3", "4", "5"], 1),
        ("split digits", ["1", "2", "3", "4", "5"], 1),
        ("uneven", ["Ġ1", "Ġ2", "Ġ 3", "Ġ 4", "Ġ 5"], 1),
        ("two letters", ["a x", "a y", "b x", "b y", "c z"], 3),
    ],
)
def test_grade_tokens_come_from_the_context(
    made: dict[str, CausalLM], name: str, grades: list[str], branches: int
) -> None:
    found = form(made[name], "{prompt} {response} Rating:")
    tokens = [" ".join(made[name].tokenizer.convert_ids_to_tokens(list(ids))) for ids in found.grades]
    assert tokens == grades
    assert len(found.branches) == branches


def test_grades_may_melt_into_the_end_of_the_rating_prompt(made: dict[str, CausalLM]) -> None:
    found = form(made["merged"], SHORT[0])
    tokens = made["merged"].tokenizer.convert_ids_to_tokens
    assert tokens(found.ending[-1]) == "r"
    assert [tokens(list(grade)) for grade in found.grades] == [[":▁1"], [":▁2"], [":▁", "3"], [":▁", "4"], [":▁", "5"]]


def test_a_leading_space_piece_joins_the_ending(made: dict[str, CausalLM]) -> None:
    found = form(made["space pieces"], "{prompt} {response} the sum:")
    tokens = made["space pieces"].tokenizer.convert_ids_to_tokens
    assert tokens(found.ending[-1]) == "▁"
    assert [tokens(list(ids)) for ids in found.grades] == [["1"], ["2"], ["3"], ["4"], ["5"]]


def test_token_score_by_numbers() -> None:
    # base 3: (0.3 + 0.2 + 0 + 0.2 + 0.3) / 4 = 0.25; sure of 5: (1 + 1 + 1 + 1) / 4 = 1.
    chances = np.array([[0.1, 0.2, 0.4, 0.2, 0.1], [0, 0, 0, 0, 1.0]])
    assert token_scores(chances).tolist() == pytest.approx([0.75, 5.0])


def test_of_equal_grades_the_lowest_counts() -> None:
    assert token_scores(np.array([0.05, 0.4, 0.4, 0.1, 0.05])).item() == pytest.approx(2 * 1.0 / 4)
    assert token_scores(np.full(5, 0.2)).item() == 0.0


def test_sentence_score_takes_the_population_deviation() -> None:
    scores = np.array([[1.0, 3.0], [2.0, 2.0]])
    assert sentence_scores(scores, 0.2).tolist() == pytest.approx([2 / 1.2, 2.0])
    assert sentence_scores(scores, 0.0).tolist() == [2.0, 2.0]


def test_number_of_grades_and_of_prompts_are_separate(made: dict[str, CausalLM], tmp_path: Path, prompts: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(SHORT[:2]), encoding="utf-8")
    pool, lm = examples(), made["words"]
    for grades, file, texts in ((3, prompts, SHORT), (7, path, SHORT[:2]), (5, path, SHORT[:2])):
        teacher = SelectIt(lm, grades=grades, rating_prompts=file)
        expected = [sentence_by_hand(lm, example, texts, grades, 0.2) for example in pool]
        assert measured(teacher, pool) == pytest.approx(expected, abs=2e-5)
        assert teacher.measure(pool.ids).passes == len(pool) * len(texts)


def test_alpha_lowers_scores_where_prompts_disagree(made: dict[str, CausalLM], prompts: Path) -> None:
    pool, lm = examples(), made["words"]
    plain = measured(SelectIt(lm, alpha=0.0, rating_prompts=prompts), pool)
    strict = measured(SelectIt(lm, alpha=2.0, rating_prompts=prompts), pool)
    assert strict == pytest.approx([sentence_by_hand(lm, example, SHORT, 5, 2.0) for example in pool], abs=2e-5)
    assert all(low < high for low, high in zip(strict, plain, strict=True))


def test_models_are_weighted_by_their_parameters(made: dict[str, CausalLM], prompts: Path) -> None:
    small, large, pool = made["words"], make_lm(split_digits(), hidden=64, seed=9), examples()
    sizes = [sum(weight.numel() for weight in lm.model.parameters()) for lm in (small, large)]
    alone = [np.array(measured(SelectIt(lm, rating_prompts=prompts), pool)) for lm in (small, large)]
    teacher = SelectIt(models=[small, large], rating_prompts=prompts)
    expected = (sizes[0] * alone[0] + sizes[1] * alone[1]) / sum(sizes)
    assert measured(teacher, pool) == pytest.approx(expected.tolist(), abs=1e-5)
    assert teacher.measure(pool.ids).passes == 2 * 3 * len(pool)
    assert [model["weight"] for model in teacher.describe()["models"]] == [size / sum(sizes) for size in sizes]


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "alike.yaml"
    path.write_text(yaml.safe_dump([*ALIKE, SHORT[1]]), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", [*MAKERS, "gpt2"])
def test_prompts_that_differ_in_their_ending_share_a_row_exactly(
    made: dict[str, CausalLM], gpt2: CausalLM, alike: Path, name: str
) -> None:
    pool, lm = examples(), made.get(name, gpt2)
    teacher = SelectIt(lm, rating_prompts=alike)
    expected = [sentence_by_hand(lm, example, [*ALIKE, SHORT[1]], 5, 0.2) for example in pool]
    assert measured(teacher, pool) == pytest.approx(expected, abs=2e-5)
    assert [len(group) for group in teacher.raters[0]._groups] == [3, 1]
    single = SelectIt(lm, rating_prompts=alike, batch_tokens=1)
    assert measured(single, pool) == pytest.approx(expected, abs=2e-5)


def test_an_ending_that_grades_swallow_is_graded_too(made: dict[str, CausalLM], tmp_path: Path) -> None:
    texts = ["the {prompt} is {response} or:", "the {prompt} is {response}:"]
    path = tmp_path / "colon.yaml"
    path.write_text(yaml.safe_dump(texts), encoding="utf-8")
    pool, lm = examples(), made["merged"]
    teacher = SelectIt(lm, rating_prompts=path)
    expected = [sentence_by_hand(lm, example, texts, 5, 0.2) for example in pool]
    assert measured(teacher, pool) == pytest.approx(expected, abs=2e-5)
    assert teacher.raters[0].forms[1].ending == ()


def test_shared_rows_are_read_once(made: dict[str, CausalLM], alike: Path) -> None:
    pool, teacher = examples(), SelectIt(made["words"], rating_prompts=alike)
    teacher.prepare(pool)
    *same, other = teacher.raters[0].forms
    teacher.measure(pool.ids)
    own = sum(len(f"{row.prompt} {row.response}".split()) for row in pool)
    once = len(same[0].middle) + sum(len(form.ending) for form in same)
    again = teacher.measure(pool.ids)
    assert again.tokens == 2 * own + len(pool) * (once + len(other.middle) + len(other.ending))
    assert again.passes == 4 * len(pool)


@pytest.mark.parametrize("way", ["no cache", "a sliding window", "an inexact cache"])
def test_rows_are_not_shared_where_that_is_not_exact(alike: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, pool = make_lm(words_with_digits()), examples()
    if way == "no cache":
        lm._fast_prefix = False
    elif way == "a sliding window":
        lm.model.config.sliding_window = 64
    else:
        inexact = grading.Grades(np.full((2, 2, 5), 0.2), np.ones((2, 2)))
        monkeypatch.setattr(grading, "shared_probabilities", lambda *given: inexact)
    teacher = SelectIt(lm, rating_prompts=alike)
    expected = [sentence_by_hand(lm, example, [*ALIKE, SHORT[1]], 5, 0.2) for example in pool]
    assert measured(teacher, pool) == pytest.approx(expected, abs=2e-5)
    assert teacher.raters[0]._groups == [[0], [1], [2], [3]]


@pytest.mark.parametrize("name", ["words", "uneven", "two letters"])
def test_batches_and_shortcuts_change_nothing(
    made: dict[str, CausalLM], prompts: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, lm = examples(), made[name]
    together = SelectIt(lm, rating_prompts=prompts, batch_tokens=100_000)
    expected = measured(together, pool)
    assert measured(SelectIt(lm, rating_prompts=prompts, batch_tokens=1), pool) == pytest.approx(expected, abs=1e-5)
    backwards = together.measure(pool.ids[::-1]).values[::-1, 0].tolist()
    assert backwards == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(lm, "_fast_prefix", False)
    monkeypatch.setattr(lm, "_fast_head", False)
    plain = SelectIt(lm, rating_prompts=prompts)
    assert measured(plain, pool) == pytest.approx(expected, abs=1e-5)


def test_the_beginning_of_a_rating_prompt_is_read_once(made: dict[str, CausalLM], prompts: Path) -> None:
    pool, teacher = examples(), SelectIt(made["words"], rating_prompts=prompts)
    teacher.prepare(pool)
    forms = teacher.raters[0].forms
    first, second = teacher.measure(pool.ids).tokens, teacher.measure(pool.ids).tokens
    assert first - second == sum(len(one.head) for one in forms)
    own = [len(f"{row.prompt} {row.response}".split()) for row in pool]
    assert second == sum(words + len(one.middle) + len(one.ending) for words in own for one in forms)


def test_a_long_prompt_loses_its_start(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(["{prompt} the {response} :"]), encoding="utf-8")
    lm = make_lm(words_with_digits(), context=12)
    # 1 bos + prompt + "the" + 3 words + ":" in 12 tokens leave 6 for the prompt.
    long = "sort the red list add two and three to the sum"
    teacher = SelectIt(lm, rating_prompts=path)
    cut = measured(teacher, examples([long, "and three to the sum"], ["bird cat dog"] * 2))
    whole = measured(SelectIt(lm, rating_prompts=path), examples(["two and three to the sum"], ["bird cat dog"]))
    assert cut[0] == pytest.approx(whole[0], rel=of_models(layers=2, width=48))
    assert cut[0] != pytest.approx(cut[1], abs=1e-4)
    assert teacher.shortened == {"r0"}


def test_a_response_that_does_not_fit_is_rejected_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(["{prompt} the {response} :"]), encoding="utf-8")
    teacher = SelectIt(make_lm(words_with_digits(), context=12), rating_prompts=path)
    rejected = teacher.prepare(examples(["cat", "cat cat"], ["dog " * 8, "dog " * 9]))
    assert [(one.line, one.reason) for one in rejected] == [
        (2, "too long: needs 13 tokens, and the model's context holds 12")
    ]
    assert teacher.measure(["r0"]).values.shape == (1, 1)
    with pytest.raises(UsageError, match="row 'r1' cannot be measured: it was never prepared, or it was rejected"):
        teacher.measure(["r1"])


def test_chat_template_puts_the_rating_prompt_into_a_turn(prompts: Path) -> None:
    lm = make_lm(split_digits())
    lm.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[reply]{% endif %}"
    )
    pool = examples()
    turns = [f"[user] {text}\n[reply]" for text in SHORT]
    teacher = SelectIt(lm, rating_prompts=prompts)
    found = teacher.raters[0].forms[0]
    assert str(lm.tokenizer.decode(list(found.head))).startswith("[user] give one")
    assert str(lm.tokenizer.decode(list(found.ending))).endswith("number:\n[reply]")
    chances = [[by_hand_in_turn(lm, example, text) for text in turns] for example in pool]
    scores = [[token_by_hand(one) for one in row] for row in chances]
    expected = [statistics.fmean(row) / (1 + 0.2 * statistics.pstdev(row)) for row in scores]
    assert measured(teacher, pool) == pytest.approx(expected, abs=2e-5)
    plain = measured(SelectIt(lm, rating_prompts=prompts, template="plain"), pool)
    assert plain != pytest.approx(expected, abs=1e-3)


def by_hand_in_turn(lm: CausalLM, example: Example, text: str) -> list[float]:
    """As `by_hand`, with the grade right behind the text: digits are single tokens here."""
    head, rest = text.replace("{best}", "5").split("{prompt}")
    middle, ending = rest.split("{response}")
    ids = [
        token
        for piece in (head, example.prompt, middle, example.response, ending)
        for token in lm.tokenizer(piece, add_special_tokens=False)["input_ids"]
    ]
    digits = [lm.tokenizer.convert_tokens_to_ids(str(grade)) for grade in range(1, 6)]
    with torch.no_grad():
        chances = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(0)[digits]
    return [float(value) for value in chances / chances.sum()]


def test_text_of_a_row_never_becomes_a_control_token(made: dict[str, CausalLM], prompts: Path) -> None:
    teacher = SelectIt(made["split digits"], rating_prompts=prompts)
    teacher.prepare(examples(["stop </s> here"], ["cat"]))
    prompt, _ = teacher.raters[0]._rows["r0"]
    assert made["split digits"].tokenizer.eos_token_id not in prompt


def test_damaged_weights_are_reported(prompts: Path) -> None:
    lm = make_lm(words_with_digits())
    with torch.no_grad():
        damaged = lm.tokenizer.convert_tokens_to_ids("bird")
        lm.model.get_parameter("model.embed_tokens.weight")[damaged] = float("nan")
    teacher = SelectIt(lm, rating_prompts=prompts)
    teacher.prepare(examples())
    with pytest.raises(ResourceError, match="'r2'"):
        teacher.measure(["r0", "r2"])


def test_shipped_prompts_are_five_and_hold_what_they_must(made: dict[str, CausalLM]) -> None:
    texts = read_prompts().texts
    assert len(set(texts)) == 5
    assert all("{best}" in text for text in texts)
    lm = make_lm(split_digits(), context=512)
    teacher = SelectIt(lm)
    assert all(0 <= value <= 5 for value in measured(teacher, examples()))
    assert teacher.measure(["r0"]).passes == 5
    assert teacher.raters[0]._groups == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("just text", "YAML list"),
        ("[]", "at least one"),
        ("['{response} {prompt} :']", "rating prompt 1"),
        ("['{prompt} {response} :', '{prompt} {prompt} {response} :']", "rating prompt 2"),
        ("['{prompt} {response}']", "a grade can follow"),
        ("[", "cannot be read"),
        ("{prompts: ['{prompt} {response} :']}", "grades and prompts, not prompts"),
        ("{grades: [no, good], prompts: ['{prompt} {response} :']}", "in quotes"),
        ("{grades: [bad], prompts: ['{prompt} {response} :']}", "2 to 9 different"),
        ("{grades: [bad, bad], prompts: ['{prompt} {response} :']}", "2 to 9 different"),
        ("{grades: [bad, good], prompts: []}", "at least one"),
    ],
)
def test_unfit_rating_prompts_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_prompts(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either model"),
        ({"model": "a", "models": ["b"]}, "either model"),
        ({"model": "a", "grades": 1}, "2 to 9"),
        ({"model": "a", "grades": 10}, "2 to 9"),
        ({"model": "a", "alpha": -0.1}, "alpha"),
        ({"model": "a", "template": "mine.txt"}, "rating prompts"),
        ({"model": "a", "rating_prompts": "nowhere.yaml"}, "cannot be read"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SelectIt(**settings)


def test_it_is_a_row_teacher_that_its_options_create_again(prompts: Path) -> None:
    teacher = SelectIt(models=["a", "b"], grades=4, alpha=0.5, rating_prompts=prompts, context=64)
    assert isinstance(teacher, RowTeacher)
    options = dict(teacher.options)
    assert options.pop("teacher") == "selectit"
    assert SelectIt(**options).options == teacher.options


def test_a_file_may_name_its_own_words_for_grades(made: dict[str, CausalLM], tmp_path: Path) -> None:
    lm, pool = made["words"], examples()
    words = ["cat", "bird", "sea", "sky"]
    path = tmp_path / "words.yaml"
    path.write_text(yaml.safe_dump({"grades": words, "prompts": ["{prompt} {response} {worst} to {best}:"]}), "utf-8")
    teacher = SelectIt(lm, rating_prompts=path)
    assert teacher.grades == 4
    expected = []
    for example in pool:
        ids = lm.tokenizer(f"{example.prompt} {example.response} cat to sky:")["input_ids"]
        with torch.no_grad():
            last = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        shares = torch.stack([last[lm.tokenizer.convert_tokens_to_ids(word)] for word in words]).softmax(0)
        base = int(shares.argmax())
        expected.append((base + 1) / 3 * sum(abs(float(share - shares[base])) for share in shares))
    assert measured(teacher, pool) == pytest.approx(expected, abs=2e-5)
    assert teacher.describe()["words"] == words
    assert SelectIt(lm, grades=4, rating_prompts=path).grades == 4
    with pytest.raises(UsageError, match="4 words for grades"):
        SelectIt(lm, grades=5, rating_prompts=path)


def test_the_demo_model_is_rated_by_words_that_it_knows() -> None:
    from nncift.demo import model_path

    with pytest.raises(UsageError, match="rating_prompts=demo"):
        SelectIt(str(model_path()), device="cpu").prepare(examples())
    teacher = SelectIt(str(model_path()), rating_prompts="demo", device="cpu")
    unknown = teacher.raters[0].reader.lm.tokenizer.unk_token_id
    for form in teacher.raters[0].forms:
        assert unknown not in (*form.head, *form.middle, *form.ending)
        assert len({grade for (grade,) in form.grades} - {unknown}) == 5
    assert teacher.raters[0]._groups == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("name", ["words", "uneven", "two letters"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_grades_mass_is_what_the_model_gives_to_all_of_them(
    made: dict[str, CausalLM], prompts: Path, alike: Path, name: str, shared: bool
) -> None:
    pool, lm = examples(), made[name]
    teacher = SelectIt(lm, rating_prompts=alike if shared else prompts)
    teacher.prepare(pool)
    labels, expected = teacher.measure(pool.ids), []
    rater = teacher.raters[0]
    for item in pool.ids:
        prompt, response = rater._rows[item]
        for form in rater.forms:
            text = (*form.head, *prompt, *form.middle, *response, *form.ending)
            total = 0.0
            for grade in form.grades:
                ids = torch.tensor([[*text, *grade]])
                logs = lm.model(input_ids=ids).logits[0].detach().log_softmax(-1)
                chances = [float(logs[len(text) - 1 + k, token]) for k, token in enumerate(grade)]
                total += math.exp(sum(chances))
            expected.append(total)
    assert labels.figures["grade_mass"] / len(pool) == pytest.approx(statistics.fmean(expected), rel=1e-4)
    assert sum(labels.figures[f"wins_{grade}"] for grade in range(1, 6)) == pytest.approx(len(pool))


def test_small_mass_and_a_grade_that_always_wins_are_said_with_their_numbers() -> None:
    teacher = SelectIt("model")
    sound = {"grade_mass": 0.9, "wins_1": 0.1, "wins_2": 0.1, "wins_3": 0.3, "wins_4": 0.3, "wins_5": 0.2}
    assert teacher.warnings(sound) == ()
    (mass,) = teacher.warnings({**sound, "grade_mass": 0.021})
    assert "the grades 1 to 5 together only 2.1 % of its probability" in mass
    (wins,) = teacher.warnings({**sound, "wins_5": 0.98})
    assert "the grade 5 wins in 98.0 % of all ratings" in wins
    demo = SelectIt("model", rating_prompts="demo")
    assert demo.rating.words is not None
    named = {name: float(name == "wins_1") for name in demo.figures}
    assert f"the grade {demo.rating.words[0]} wins" in demo.warnings({**named, "grade_mass": 1.0})[0]
