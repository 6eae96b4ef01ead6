"""ICA against one plain pass for each row, and against DELIFT with the roles exchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import nncift
from nncift.config import resolve
from nncift.data.examples import Example, Examples, Message
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import CausalLM
from nncift.pipeline import execute
from nncift.stages.estimate import estimate
from nncift.stages.request import Request
from nncift.teachers import Chunk, FeatureTeacher, Ica, RowTeacher, Teacher
from nncift.teachers.delift import Delift
from nncift.teachers.ica import IcaOfPairs, IcaOfSet

pytestmark = pytest.mark.usefixtures("hastened")
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
PAIRS = {
    "a": ("name a bird", "sky bird, sea bird and tree bird."),
    "b": ("add one to two", "three"),
    "c": ("sort the red list", "list red"),
    "d": ("what is the sky", "blue"),
    "e": ("give one color of the sea", "green and blue"),
}


def pool(**rows: tuple[str, str]) -> Examples:
    return Examples(
        tuple(
            Example(name, *texts, (Message("user", texts[0]),), "made.jsonl", line, json.dumps({"id": name}))
            for line, (name, texts) in enumerate(rows.items(), 1)
        )
    )


@pytest.fixture(params=["llama", "gpt2", "chat"])
def lm(request: pytest.FixtureRequest, llama_folder: Path, gpt2_folder: Path) -> CausalLM:
    found = CausalLM.load(gpt2_folder if request.param == "gpt2" else llama_folder, device="cpu")
    if request.param != "chat":
        return found
    tokenizer = AutoTokenizer.from_pretrained(found.name)
    tokenizer.chat_template = CHAT
    return CausalLM(found.model, tokenizer, found.name, found.fingerprint, found.context)


def plain_loss(lm: CausalLM, prompt: Sequence[int], response: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of a response by one plain pass."""
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
    logs = torch.log_softmax(logits, dim=-1)
    return -float(np.mean([float(logs[len(prompt) - 1 + k, token]) for k, token in enumerate(response)]))


def of_pairs(lm: CausalLM, **settings: Any) -> IcaOfPairs:
    made = Ica(lm, **settings)
    assert isinstance(made, IcaOfPairs)
    return made


def of_set(lm: CausalLM, in_front: int, **settings: Any) -> IcaOfSet:
    made = Ica(lm, in_front=in_front, **settings)
    assert isinstance(made, IcaOfSet)
    return made


@pytest.mark.parametrize("batch_tokens", [1, 2048])
def test_a_pair_is_the_source_s_loss_alone_less_that_behind_the_target(lm: CausalLM, batch_tokens: int) -> None:
    teacher = of_pairs(lm, batch_tokens=batch_tokens)
    examples = pool(**PAIRS)
    assert teacher.prepare(examples) == ()
    wording, targets = teacher.wording, ("b", "c", "d", "e")
    labels = teacher.label(Chunk(0, "a", targets))
    source, expected, tokens = examples.by_id("a"), [], 0
    alone, behind = wording.tokens(source), wording.tokens(source, behind=True)
    for target in targets:
        front = wording.block(examples.by_id(target), 10_000).ids
        rows = ((*wording.bos, *alone.prompt), (*wording.bos, *front, *behind.prompt))
        expected.append(plain_loss(lm, rows[0], alone.response) - plain_loss(lm, rows[1], alone.response))
        tokens += len(rows[1]) + len(alone.response)
    np.testing.assert_allclose(labels.values, expected, atol=2e-5)
    assert np.abs(labels.values).max() > 1e-3
    assert labels.tokens == tokens + len(rows[0]) + len(alone.response)
    assert teacher.chunk_tokens(Chunk(0, "a", targets)) == labels.tokens


def test_it_is_delift_with_the_roles_exchanged(lm: CausalLM) -> None:
    examples = pool(**PAIRS)
    ica, delift = of_pairs(lm), Delift(lm, variant="logprob")
    for teacher in (ica, delift):
        teacher.prepare(examples)
    for target in "bcde":
        (found,) = ica.label(Chunk(0, "a", (target,))).values
        (alone,), (behind,) = (delift.label(Chunk(0, front, ("a",))).values for front in (None, target))
        assert found == pytest.approx(float(alone - behind), abs=2e-5)


def test_several_targets_stand_in_front_at_once(lm: CausalLM) -> None:
    teacher, targets = of_set(lm, 2, seed=3), pool(t0=("name a cat", "long cat"), t1=("what is red", "a bird"))
    examples = pool(**PAIRS)
    for rows in (examples, targets):
        assert teacher.prepare(rows) == ()
    teacher.aim(targets)
    labels, wording = teacher.measure(examples.ids), teacher.wording
    orders = []
    for order in (("t0", "t1"), ("t1", "t0")):
        blocks = [wording.block(targets.by_id(name), 10_000, first=not at).ids for at, name in enumerate(order)]
        front, expected = [token for ids in (wording.bos, *blocks) for token in ids], []
        for source in examples:
            alone, behind = wording.tokens(source), wording.tokens(source, behind=True)
            before = plain_loss(lm, (*wording.bos, *alone.prompt), alone.response)
            expected.append(before - plain_loss(lm, (*front, *behind.prompt), alone.response))
        orders.append(np.array(expected))
    # The seed draws the order.
    assert min(np.abs(labels.values[:, 0] - expected).max() for expected in orders) < 2e-5
    assert labels.passes == 2 * len(examples)
    table = teacher.utility(np.zeros((3, 1), np.float32), labels.values)
    np.testing.assert_array_equal(table, np.repeat(labels.values.T, 3, axis=0))


def test_the_form_follows_the_option(llama_folder: Path) -> None:
    pairs, together = Ica(str(llama_folder)), Ica(str(llama_folder), in_front=4)
    assert isinstance(pairs, Teacher)
    assert not isinstance(pairs, RowTeacher)
    assert isinstance(together, FeatureTeacher)
    assert not isinstance(together, Teacher)
    assert (pairs.options.get("in_front"), together.options["in_front"]) == (None, 4)
    for wrong in (0, -1, "many"):
        with pytest.raises(UsageError, match="at least 1"):
            Ica(str(llama_folder), in_front=wrong)


@pytest.fixture
def llama(llama_folder: Path) -> CausalLM:
    return CausalLM.load(llama_folder, device="cpu")


def test_a_pair_that_cannot_fit_has_no_value(llama: CausalLM) -> None:
    rows = {**PAIRS, "long": ("name it", "cat " * 60), "wide": ("name it", "dog " * 40)}
    teacher = of_pairs(llama)
    assert teacher.prepare(pool(**rows)) == ()
    values = teacher.label(Chunk(0, "long", ("a", "wide", "b"))).values
    assert np.isfinite(values).tolist() == [True, False, True]
    nothing = teacher.label(Chunk(0, "long", ("wide",)))
    assert np.isnan(nothing.values).all()
    assert nothing.tokens == teacher.chunk_tokens(Chunk(0, "long", ("wide",))) == 0


def test_a_long_target_loses_the_start_of_its_prompt(llama: CausalLM) -> None:
    teacher = of_pairs(llama)
    teacher.prepare(pool(**PAIRS, long=("cat " * 80, "dog")))
    assert not teacher.label(Chunk(0, "a", ("b",))).shortened
    assert teacher.label(Chunk(0, "a", ("b", "long"))).shortened


def test_damaged_weights_are_reported(llama_folder: Path) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    teacher = of_pairs(lm)
    teacher.prepare(pool(**PAIRS))
    with torch.no_grad():
        next(lm.model.parameters())[:] = float("nan")
    with pytest.raises(ResourceError, match="gave no number for source 'a'"):
        teacher.label(Chunk(0, "a", ("b",)))


def test_without_a_target_set_nothing_stands_in_front(llama: CausalLM) -> None:
    teacher = of_set(llama, 2)
    teacher.prepare(pool(**PAIRS))
    with pytest.raises(UsageError, match="was given none"):
        teacher.measure(["a"])


def test_another_process_takes_the_same_targets_from_the_workspace(llama: CausalLM, tmp_path: Path) -> None:
    targets = pool(**{f"t{i}": ("name a cat", f"cat {word}") for i, word in enumerate("one two three four".split())})
    first = of_set(llama, 2, workspace=tmp_path)
    for rows in (pool(**PAIRS), targets):
        first.prepare(rows)
    first.aim(targets)
    second = of_set(llama, 2, workspace=tmp_path)
    second.prepare(pool(a=PAIRS["a"]))
    assert second.describe() == first.describe()
    np.testing.assert_array_equal(second.measure(["a"]).values, first.measure(["a"]).values)
    # Another set is another teacher.
    first.aim(targets[:1])
    assert second.describe() != first.describe()


def test_fewer_targets_than_asked_for_are_said(llama: CausalLM) -> None:
    teacher, targets = of_set(llama, 9), pool(t=("name a cat", "cat"))
    for rows in (pool(**PAIRS), targets):
        teacher.prepare(rows)
    teacher.aim(targets)
    assert any("1 of 9 targets" in note for note in teacher.notes())


@pytest.mark.parametrize(("in_front", "full"), [(None, 20 * 24 + 24), (2, 2 * (20 + 24))])
def test_a_run_selects_with_it_at_the_cost_that_was_estimated(
    write_pool: Callable[..., Path], llama_folder: Path, tmp_path: Path, in_front: int | None, full: int
) -> None:
    settings = resolve(
        {
            "pool": (str(write_pool(24)),),
            "target": (str(write_pool(20, "target.jsonl", start=50)),),
            "teacher": "ica",
            "option": {} if in_front is None else {"in_front": in_front},
            "model": str(llama_folder),
            "encoder": "hash",
            "features": "text",
            "labels": "50%",
            "budget": 3,
            "device": "cpu",
        }
    )
    planned = estimate(Request.resolve(settings)).to_json()
    done = execute(Request.resolve(settings, out=tmp_path / "run"), tmp_path / "run")
    assert planned["full_teacher"]["passes"] == done.ledger["full_teacher_passes"] == full
    assert planned["label"]["passes"] == done.ledger["teacher_passes"]
    assert len(done.subset) == 3
    # Whoever reads the finished run finds the same targets in front.
    judged = nncift.evaluate(tmp_path / "run", full_teacher=True, device="cpu")
    assert judged is not None


def test_one_target_in_front_is_refused_without_a_target_set(
    write_pool: Callable[..., Path], llama_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="give --target FILE"):
        nncift.run(
            write_pool(24),
            teacher="ica",
            option={"in_front": 2},
            model=str(llama_folder),
            encoder="hash",
            budget=3,
            device="cpu",
            out=tmp_path / "run",
        )
