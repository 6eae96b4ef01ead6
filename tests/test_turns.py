"""`--turns`: one rule for the turns that are scored, trained on and exported."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nncift
from nncift.data import read
from nncift.data.examples import Example, Examples, Message
from nncift.data.export import export
from nncift.errors import DataError, UsageError
from nncift.finetune.training import TrainingSets
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.per_sample_gradients import PerSample, Piece
from nncift.models.probe import STATISTICS, Probe
from nncift.models.prompt_format import PromptFormat
from nncift.models.training_steps import row_losses
from nncift.teachers import Chunk
from nncift.teachers.delift import Delift
from nncift.teachers.given_scores import Length
from nncift.teachers.ifd import Ifd
from nncift.teachers.loss import Loss

pytestmark = pytest.mark.usefixtures("hastened")
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }} :\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant :\n{% endif %}"
)
FORGETFUL = CHAT.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else 'cat' }}")
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "name a bird"},
    {"role": "assistant", "content": "sea bird"},
    {"role": "user", "content": "add one"},
    {"role": "assistant", "content": "three", "weight": 0},
    {"role": "user", "content": "sort the list"},
    {"role": "assistant", "content": "red list first"},
]
SINGLE = {"messages": TURNS[:2]}


def rows_of(folder: Path, *rows: dict[str, Any], turns: Any = "all") -> Examples:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(path, turns=turns)


@pytest.fixture
def lm(llama_folder: Path) -> CausalLM:
    return CausalLM.load(llama_folder, device="cpu")


def with_chat(lm: CausalLM, template: str) -> CausalLM:
    lm.tokenizer.chat_template = template
    return lm


def learned(row: Row, lm: CausalLM) -> str:
    return str(lm.tokenizer.decode(list(row.gold)))


def log_probabilities(lm: CausalLM, ids: list[int]) -> torch.Tensor:
    """Return what a plain pass says of every token after the first."""
    logits = lm.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    found: torch.Tensor = logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return found


def test_every_turn_is_learned_from_that_answers_and_is_not_masked(tmp_path: Path) -> None:
    greeting = {"messages": [{"role": "assistant", "content": "short"}, *TURNS[:3], TURNS[5]]}
    every, last = (rows_of(tmp_path, {"messages": TURNS}, greeting, turns=turns) for turns in ("all", "last"))
    assert [[turn.content for turn in row.messages if turn.learned] for row in every] == [["sea bird"], ["sea bird"]]
    assert not any(turn.learned for row in last for turn in row.messages)
    assert [note for note in every.notes if note.startswith("Several responses in 2 rows: every one is scored")]
    assert [note for note in last.notes if note.startswith("Several responses in 2 rows: the last that is learned")]


def test_what_is_learned_from_is_part_of_a_rows_content(tmp_path: Path) -> None:
    rows = ({"messages": TURNS}, SINGLE)
    every, last = (rows_of(tmp_path, *rows, turns=turns) for turns in ("all", "last"))
    assert every[0].content_hash != last[0].content_hash
    assert every[1].content_hash == last[1].content_hash
    unmasked = [{key: value for key, value in turn.items() if key != "weight"} for turn in TURNS]
    assert rows_of(tmp_path, {"messages": unmasked})[0].content_hash != every[0].content_hash


@pytest.mark.parametrize(
    ("template", "said"),
    [(None, "sea bird red list first </s>"), (CHAT, "sea bird </s> red list first </s>")],
)
def test_responses_that_count_are_those_of_the_turns(
    tmp_path: Path, lm: CausalLM, template: str | None, said: str
) -> None:
    wording = PromptFormat(with_chat(lm, template or CHAT).tokenizer, None if template else "plain")
    every, last = (rows_of(tmp_path, {"messages": TURNS}, turns=turns)[0] for turns in ("all", "last"))
    row, alone = wording.tokens(every).row(wording.bos), wording.tokens(last).row(wording.bos)
    assert learned(row, lm) == said
    # The same conversation is read: only what counts of it differs.
    assert [*row.prompt, *row.response] == [*alone.prompt, *alone.response]
    assert alone.scored is None


def test_a_template_that_forgets_earlier_responses_is_refused_for_them(tmp_path: Path, lm: CausalLM) -> None:
    wording = PromptFormat(with_chat(lm, FORGETFUL).tokenizer)
    every, last = (rows_of(tmp_path, {"messages": TURNS}, turns=turns)[0] for turns in ("all", "last"))
    with pytest.raises(DataError, match="words an earlier response differently once others follow"):
        wording.tokens(every)
    assert wording.tokens(last).scored is None


def test_an_end_mark_of_the_last_response_alone_counts_there_alone(tmp_path: Path, lm: CausalLM) -> None:
    ends = CHAT.replace("{{ eos_token }}", "{{ ('.' if loop.last and not add_generation_prompt else '') }}")
    wording = PromptFormat(with_chat(lm, ends).tokenizer)
    tokens = wording.tokens(rows_of(tmp_path, {"messages": TURNS})[0])
    assert learned(tokens.row(), lm) == "sea bird red list first ."


@pytest.mark.parametrize("behind", [False, True])
def test_an_empty_thought_before_the_last_response_stands_there_alone(
    tmp_path: Path, lm: CausalLM, behind: bool
) -> None:
    thought = "{% if loop.last and m.role == 'assistant' %}: :\n{% endif %}{{ m.content }}"
    wording = PromptFormat(with_chat(lm, CHAT.replace("{{ m.content }}", thought)).tokenizer)
    tokens = wording.tokens(rows_of(tmp_path, {"messages": TURNS})[0], behind=behind)
    assert learned(tokens.row(), lm) == "sea bird </s> red list first </s>"
    assert str(lm.tokenizer.decode(list(tokens.prompt))).endswith("name a bird </s> \n <unk> : \n")


def test_loss_is_the_mean_over_all_responses(tmp_path: Path, lm: CausalLM) -> None:
    teacher = Loss(with_chat(lm, CHAT))
    (row,) = pool = rows_of(tmp_path, {"messages": TURNS})
    assert not teacher.prepare(pool)
    read_row = teacher.reader.rows[row.id]
    logs = log_probabilities(lm, [*read_row.prompt, *read_row.response])
    expected = -np.mean([float(logs[place]) for place in read_row.places])
    assert teacher.measure([row.id]).values[0, 0] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(-float(logs[len(read_row.prompt) - 1 :].mean()), rel=1e-3)


def test_ifd_leaves_out_what_stands_before_the_first_response(tmp_path: Path, lm: CausalLM) -> None:
    teacher = Ifd(lm, above_one="keep")
    (row,) = pool = rows_of(tmp_path, {"messages": TURNS})
    teacher.prepare(pool)
    known = teacher.reader.rows[row.id]
    counted = np.array(known.scored)
    whole = log_probabilities(lm, [*known.prompt, *known.response]).detach().numpy()[counted + len(known.prompt) - 1]
    alone = log_probabilities(lm, [1, *known.response]).detach().numpy()[counted]
    assert teacher.measure([row.id]).values[0, 0] == pytest.approx(whole.mean() / alone.mean(), rel=1e-5)


def test_delift_compares_all_responses_behind_an_example(tmp_path: Path, lm: CausalLM) -> None:
    teacher = Delift(with_chat(lm, CHAT), variant="logprob")
    target, source = pool = rows_of(tmp_path, {"messages": TURNS}, SINGLE)
    teacher.prepare(pool)
    wording = teacher.wording
    block, behind = wording.block(source, 48), wording.tokens(target, behind=True)
    row = replace(wording.tokens(target), prompt=behind.prompt).row((*wording.bos, *block.ids))
    logs = log_probabilities(lm, [*row.prompt, *row.response])
    expected = -np.mean([float(logs[place]) for place in row.places])
    assert teacher.label(Chunk(0, source.id, (target.id,))).values[0] == pytest.approx(expected, rel=1e-4)


def test_gradients_and_training_are_of_all_responses(tmp_path: Path, lm: CausalLM) -> None:
    pool = rows_of(tmp_path, {"messages": TURNS}, SINGLE)
    rows = list(TrainingSets.of(pool, PromptFormat(lm.tokenizer), lm.context).rows.values())
    head = dict(lm.model.named_parameters())["model.layers.1.mlp.up_proj.weight"]
    head.requires_grad_(True)
    expected = []
    for row in rows:
        logs = log_probabilities(lm, [*row.prompt, *row.response])
        (gradient,) = torch.autograd.grad(-logs[row.places].mean(), head)
        expected.append(gradient.flatten())
    found = torch.zeros(len(rows), head.numel())

    def take(piece: Piece) -> None:
        found[piece.rows, piece.start : piece.start + piece.gradients.shape[1]] = piece.gradients

    lm.model.requires_grad_(False)
    PerSample(lm.model, {"up": head}, head_is_last=lm.head_is_last).run(rows, take)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-5)
    losses = row_losses(lm.model, rows, lm.device)
    assert float(losses[0]) == pytest.approx(
        -float(log_probabilities(lm, [*rows[0].prompt, *rows[0].response])[rows[0].places].mean()), rel=1e-4
    )


def test_a_probe_reads_all_responses(tmp_path: Path, lm: CausalLM) -> None:
    probe = Probe(lm)
    (row,) = rows_of(tmp_path, {"messages": TURNS})
    features, _ = probe.read([row])
    read_row = probe.wording.tokens(row).row(probe.wording.bos)
    logs = log_probabilities(lm, [*read_row.prompt, *read_row.response])[read_row.places]
    statistics = dict(zip(STATISTICS, features[0][-len(STATISTICS) :], strict=True))
    assert statistics["loss"] == pytest.approx(-float(logs.mean()), rel=1e-4)
    assert statistics["response"] == pytest.approx(np.log(len(read_row.places)), rel=1e-5)


def test_length_counts_all_responses(tmp_path: Path) -> None:
    found = []
    for turns in ("last", "all"):
        (row,) = pool = rows_of(tmp_path, {"messages": TURNS}, turns=turns)
        teacher = Length()
        teacher.prepare(pool)
        found.append(float(teacher.measure([row.id]).values[0, 0]))
    assert found == [len("red list first"), len("sea bird\n\nred list first")]


def test_a_cut_row_does_not_learn_from_what_is_left_of_a_response(lm: CausalLM) -> None:
    wording = PromptFormat(lm.tokenizer, "plain")
    turns = (
        Message("user", "name a bird"),
        Message("assistant", "sea bird and tree bird", learned=True),
        Message("user", "add one"),
    )
    cut = wording.shortened(Example("a", "", "three", turns, "made", 1, "{}"), 16)
    assert not any(turn.learned for turn in cut.messages)
    assert cut.messages[-1].content == "add one"


def test_rows_are_kept_with_what_counts_of_them() -> None:
    row = Row([1, 2], [3, 4, 5], [0, 2])
    assert Row(*row.record()) == row
    assert Row(*Row([1], [2]).record()) == Row([1], [2])
    assert row.gold == [3, 5]
    assert row.behind([9]).places.tolist() == [2, 4]


def test_a_run_keeps_to_its_turns(tmp_path: Path, call: Callable[..., Any]) -> None:
    pool, out = tmp_path / "pool.jsonl", tmp_path / "run"
    rows = [
        {"id": f"r{k}", "messages": [*TURNS, {"role": "user", "content": f"name {k}"}, TURNS[5]]} for k in range(40)
    ]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("--teacher", "length", "--encoder", "hash", "--labels", "50%", "--budget", "50%", "--json")
    done = call("run", pool, "--turns", "all", *common, "--out", out)
    assert done.code in (0, 5), done.err
    assert any("every one is scored" in warning for warning in json.loads(done.out)["warnings"])
    assert "every one is scored" in (out / "report.html").read_text(encoding="utf-8")
    changed = call("run", pool, "--turns", "last", *common, "--out", out)
    assert changed.code == 2
    assert "turns" in changed.err
    run = nncift.load(out)
    assert all(turn.learned for row in run.subset for turn in row.messages[1:2])
    record = export(out, tmp_path / "train.jsonl", to="axolotl").to_json()
    assert record["turns"] == "all"
    first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["messages"]
    assert [turn["training"] for turn in first if turn["role"] == "assistant"] == [True, False, True, True]
    other = export(out, tmp_path / "last.jsonl", to="axolotl", turns="last").to_json()
    assert any("this file learns from the last, and the run scored every one" in note for note in other["notes"])


def test_inspect_says_which_turns(tmp_path: Path, call: Callable[..., Any]) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps({"messages": TURNS}) + "\n")
    assert "1 rows have several responses: every one is scored" in call("inspect", pool, "--turns", "all").out
    assert "the last that is learned from is scored" in call("inspect", pool).out


def test_other_turns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="turns was given as 'first'; expected last or all"):
        rows_of(tmp_path, SINGLE, turns="first")
