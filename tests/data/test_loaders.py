"""Exports as the trainers' own loaders read them.

TRL's is called where it is installed. Those of axolotl (`prompt_strategies/chat_template.py` and `dpo/chat_template.py`) and of
LLaMA-Factory (`data/parser.py`, `data/converter.py`) are written down here as rules, since neither installs beside the rest.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nncift.data.export import export
from nncift.data.lengths import LengthLimit
from nncift.errors import ResourceError

Row = dict[str, Any]
MakeRun = Callable[..., Path]

ASKED, SAID = {"role": "user", "content": "Name a bird"}, {"role": "assistant", "content": "An owl"}
MORE = [{"role": "user", "content": "Another"}, {"role": "assistant", "content": "A wren"}]
SINGLE = {"messages": [ASKED, SAID]}
SYSTEM = {"messages": [{"role": "system", "content": "Be brief"}, ASKED, SAID, *MORE]}
MASKED = {"messages": [ASKED, {**SAID, "weight": 0}, *MORE]}
ALPACA = {"instruction": "Sort", "input": "b a", "output": "a b"}
CALL = {
    "messages": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2"},
    ],
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
}
PAIR = {"prompt": "Name a bird", "chosen": "An owl", "rejected": "A dog"}
PAIR_OF_TURNS = {
    "chosen": [ASKED, SAID, *MORE],
    "rejected": [ASKED, SAID, MORE[0], {"role": "assistant", "content": "No"}],
}
WITH_SYSTEM = {**PAIR, "system": "Be brief"}

AXOLOTL = frozenset(
    "base_model chat_template rl datasets sequence_len adapter lora_r lora_alpha lora_target_linear num_epochs micro_batch_size "
    "gradient_accumulation_steps learning_rate output_dir".split()
)
"""Of the settings that axolotl's schema knows, those that an export may set."""
AXOLOTL_DATASET = frozenset(
    "path ds_type type field_messages field_chosen field_rejected message_field_training message_field_training_detail".split()
)
LLAMAFACTORY = frozenset(
    "model_name_or_path stage do_train finetuning_type lora_target dataset dataset_dir template cutoff_len mask_history "
    "num_train_epochs per_device_train_batch_size gradient_accumulation_steps learning_rate output_dir".split()
)
LLAMAFACTORY_COLUMNS = frozenset(
    "prompt query response history messages system tools images videos audios chosen rejected kto_tag".split()
)
LLAMAFACTORY_TAGS = frozenset(
    "role_tag content_tag user_tag assistant_tag observation_tag function_tag system_tag".split()
)


def written(run: Path, to: str, **given: Any) -> tuple[list[Row], Path]:
    """Return the rows of an export, and its folder."""
    out = run.parent / to / "train.jsonl"
    export(run, out, to=to, **given)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], out.parent


def axolotl_learns(row: Row, config: Row) -> list[str]:
    """Return the texts that axolotl learns from: turns whose `training` says so, else those of the assistant."""
    (data,) = config["datasets"]
    assert set(config) <= AXOLOTL
    assert set(data) <= AXOLOTL_DATASET
    assert (data["type"], data["ds_type"], config["chat_template"]) == ("chat_template", "json", "tokenizer_default")
    found = []
    for message in row[data["field_messages"]]:
        for call in message.get("tool_calls", ()):
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
        training = message.get(data.get("message_field_training", "message_training"))
        if training if training is not None else message["role"] == "assistant":
            found.append(message.get("content", ""))
    return found


def axolotl_pair(row: Row, config: Row) -> tuple[list[Row], Row, Row]:
    """Return prompt, chosen and rejected as axolotl's `chat_template.default` of DPO reads them."""
    (data,) = config["datasets"]
    assert (config["rl"], data["type"]) == ("dpo", "chat_template.default")
    roles = {"user", "assistant", "system", "tool"}
    sides = [row[data["field_messages"]], row[data["field_chosen"]], row[data["field_rejected"]]]
    assert isinstance(sides[0], list)
    assert all(isinstance(side, dict) for side in sides[1:])
    assert all(set(turn) == {"role", "content"} and turn["role"] in roles for turn in (*sides[0], *sides[1:]))
    assert all(isinstance(turn["content"], str) and turn["content"] for turn in sides[1:])
    return sides[0], sides[1], sides[2]


def llamafactory_reads(row: Row, stanza: Row) -> tuple[list[Row], list[Row], str]:
    """Return prompt, response and system text as LLaMA-Factory's converters make them of a row."""
    columns = stanza["columns"]
    assert set(columns) <= LLAMAFACTORY_COLUMNS
    if stanza["formatting"] == "alpaca":
        prompt = [
            {"role": role, "content": text}
            for pair in (row[columns["history"]] if "history" in columns and row.get("history") else ())
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        asked = [row[columns[name]] for name in ("prompt", "query") if row[columns[name]]]
        prompt.append({"role": "user", "content": "\n".join(asked)})
        return prompt, [{"role": "assistant", "content": row[columns["response"]]}], row.get("system", "")
    tags = stanza["tags"]
    assert set(tags) <= LLAMAFACTORY_TAGS
    roles = {tags[f"{name}_tag"]: name for name in ("user", "assistant", "observation", "function", "system")}
    turns, system = row[columns["messages"]], ""
    if turns[0][tags["role_tag"]] == tags["system_tag"]:
        system, turns = turns[0][tags["content_tag"]], turns[1:]
    read = [{"role": roles[turn[tags["role_tag"]]], "content": turn[tags["content_tag"]]} for turn in turns]
    wanted = (("user", "observation"), ("assistant", "function"))
    assert all(turn["role"] in wanted[place % 2] for place, turn in enumerate(read))
    ranking = bool(stanza.get("ranking"))
    # Rows of another count are skipped with a line in the log.
    assert len(read) % 2 == (1 if ranking else 0)
    if not ranking:
        return read[:-1], read[-1:], system
    sides = [row[columns[name]] for name in ("chosen", "rejected")]
    assert all(isinstance(side, dict) for side in sides)
    answers = [{"role": roles[side[tags["role_tag"]]], "content": side[tags["content_tag"]]} for side in sides]
    assert all(answer["role"] in wanted[1] for answer in answers)
    return read, answers, system


@pytest.mark.parametrize("to", ["trl", "axolotl", "llamafactory", "openai"])
def test_parts_that_are_all_text_are_one_text(make_run: MakeRun, to: str) -> None:
    parts = [{"type": "text", "text": "Name"}, {"type": "text", "text": "a bird"}]
    rows = [SINGLE, {"messages": [{"role": "user", "content": parts}, SAID]}]
    got, _ = written(make_run(*rows), to)
    assert "Name\\na bird" in json.dumps(got[1])
    assert '"type"' not in json.dumps(got)


def test_a_pair_of_parts_that_are_all_text_goes_to_axolotl(make_run: MakeRun) -> None:
    said = [{"type": "text", "text": "An"}, {"type": "text", "text": "owl"}]
    row = {**PAIR, "prompt": [ASKED], "chosen": [{"role": "assistant", "content": said}]}
    (got,), _ = written(make_run({**row, "rejected": [{"role": "assistant", "content": "A dog"}]}), "axolotl")
    assert got["chosen"] == {"role": "assistant", "content": "An\nowl"}


@pytest.mark.parametrize("to", ["trl", "axolotl"])
def test_parts_beside_a_picture_stay_parts_in_every_row(make_run: MakeRun, to: str) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "a.png"}}]
    got, _ = written(make_run(SINGLE, {"messages": [{"role": "user", "content": parts}, SAID]}), to)
    contents = [turn["content"] for row in got for turn in (*row.get("messages", ()), *row.get("prompt", ()))]
    assert contents
    assert all(isinstance(content, list) for content in contents)


def config_of(folder: Path, to: str) -> Row:
    found: Row = yaml.safe_load((folder / f"train.{to}.yaml").read_text())
    return found


@pytest.mark.parametrize(
    ("row", "turns", "learned"),
    [
        (SINGLE, "all", ["An owl"]),
        (SYSTEM, "all", ["An owl", "A wren"]),
        (SYSTEM, "last", ["A wren"]),
        (MASKED, "all", ["A wren"]),
        (ALPACA, "all", ["a b"]),
        (CALL, "all", ["", "It is 2"]),
    ],
)
def test_axolotl_learns_what_the_row_says(make_run: MakeRun, row: Row, turns: str, learned: list[str]) -> None:
    (got,), folder = written(make_run(row), "axolotl", turns=turns)
    assert axolotl_learns(got, config_of(folder, "axolotl")) == learned


@pytest.mark.parametrize(("row", "before"), [(PAIR, 1), (PAIR_OF_TURNS, 3), (WITH_SYSTEM, 2)])
def test_axolotl_reads_pairs(make_run: MakeRun, row: Row, before: int) -> None:
    (got,), folder = written(make_run(row), "axolotl")
    prompt, chosen, rejected = axolotl_pair(got, config_of(folder, "axolotl"))
    assert len(prompt) == before
    assert (chosen["content"], rejected["content"]) in {("An owl", "A dog"), ("A wren", "No")}


@pytest.mark.parametrize(
    ("row", "texts", "system"),
    [
        (SINGLE, ["Name a bird", "An owl"], ""),
        (SYSTEM, ["Name a bird", "An owl", "Another", "A wren"], "Be brief"),
        (ALPACA, ["Sort\nb a", "a b"], ""),
        ({**ALPACA, "input": "", "history": [["Hi", "Hello"]], "system": "S"}, ["Hi", "Hello", "Sort", "a b"], "S"),
        (PAIR, ["Name a bird", "An owl", "A dog"], ""),
        (PAIR_OF_TURNS, ["Name a bird", "An owl", "Another", "A wren", "No"], ""),
        (WITH_SYSTEM, ["Name a bird", "An owl", "A dog"], "Be brief"),
    ],
)
def test_llamafactory_reads_what_the_row_says(make_run: MakeRun, row: Row, texts: list[str], system: str) -> None:
    (got,), folder = written(make_run(row), "llamafactory")
    stanza = json.loads((folder / "dataset_info.json").read_text())["train"]
    prompt, response, said = llamafactory_reads(got, stanza)
    assert [turn["content"] for turn in (*prompt, *response)] == texts
    assert said == system
    config = config_of(folder, "llamafactory")
    assert set(config) <= LLAMAFACTORY
    assert (config["dataset"], stanza["file_name"]) == ("train", "train.jsonl")
    assert config["stage"] == ("dpo" if "rejected" in row else "sft")


def test_llamafactory_reads_calls_and_tools(make_run: MakeRun) -> None:
    (got,), folder = written(make_run(CALL), "llamafactory")
    stanza = json.loads((folder / "dataset_info.json").read_text())["train"]
    prompt, response, _ = llamafactory_reads(got, stanza)
    assert [turn["role"] for turn in prompt] == ["user", "function", "observation"]
    assert json.loads(prompt[1]["content"]) == {"name": "add", "arguments": {"a": 1}}
    assert response == [{"role": "assistant", "content": "It is 2"}]
    assert json.loads(got[stanza["columns"]["tools"]]) == CALL["tools"]


def test_what_starts_a_trainer_is_typed_where_the_file_is(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "a model").mkdir()
    run = make_run(SINGLE, model=str(tmp_path / "a model"))
    for to, command in (("trl", "python"), ("axolotl", "axolotl train"), ("llamafactory", "llamafactory-cli train")):
        record = export(run, tmp_path / "some where" / "train.jsonl", to=to).to_json()
        started = next(name for name in record["files"] if f".{to}." in name)
        assert record["start"] == f"cd '{tmp_path}/some where' && {command} {Path(started).name}"
        assert str((tmp_path / "a model").resolve()) in Path(started).read_text()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{%- generation -%}{{ m.content }}{% endgeneration %}{% endfor %}", "has the `{% gen"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "of the run's model has not"),
        (None, "TRL puts in its own"),
    ],
)
@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_advice_for_several_turns_looks_at_the_chat_template(
    make_run: MakeRun, tmp_path: Path, template: str | None, said: str, name: str
) -> None:
    (tmp_path / "model").mkdir()
    if template is not None:
        text = template if name.endswith("jinja") else json.dumps({"chat_template": template})
        (tmp_path / "model" / name).write_text(text)
    record = export(
        make_run(SYSTEM, model=str(tmp_path / "model")), tmp_path / "train.jsonl", to="trl", turns="all"
    ).to_json()
    (note,) = [note for note in record["notes"] if "assistant_only_loss" in note]
    assert said in note


def test_a_model_is_looked_for_only_where_it_says_something(make_run: MakeRun, tmp_path: Path) -> None:
    asked: list[str] = []

    def locate(name: str) -> str:
        asked.append(name)
        raise ResourceError("it is not installed")

    run = make_run(SINGLE, SYSTEM, model="smollm2")
    for to in ("same", "axolotl", "llamafactory", "openai"):
        export(run, tmp_path / to / "train.jsonl", to=to, locate=locate)
    assert not asked
    record = export(run, tmp_path / "train.jsonl", to="trl", turns="all", locate=locate).to_json()
    assert asked == ["smollm2"]
    assert any("TRL puts in its own" in note for note in record["notes"])
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in (tmp_path / "train.trl.py").read_text()
    with pytest.raises(ResourceError):
        export(run, tmp_path / "train.jsonl", length=LengthLimit(50), locate=locate)


def test_a_card_says_what_was_selected_how_and_from_what(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(SINGLE, CALL, pool=["/home/someone/secret/birds.jsonl"], teacher="length", budget="30%", seed=3)
    summary = {
        "pool": 90,
        "contaminated": 4,
        "holdout": 10,
        "gate": {"used": "student", "skill": {"student": {"skill": 0.71, "interval": [0.6, 0.8]}}},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    for to in ("same", "trl"):
        record = export(run, tmp_path / f"{to}.jsonl", to=to).to_json()
        (place,) = [name for name in record["files"] if name.endswith(".card.md")]
        card = Path(place).read_text()
        head = yaml.safe_load(card.split("---")[1])
        assert head["configs"] == [{"config_name": "default", "data_files": f"{to}.jsonl"}]
        for words in ("2 rows", "2 were selected of 90 usable rows", "birds.jsonl", "`length`", "| budget | 30% |"):
            assert words in card
        for words in ("4 rows that test rows are in", "10 rows were set aside", "0.71 (90 % interval 0.60 to 0.80"):
            assert words in card
        # No path of the machine that it was made on.
        assert "someone" not in card


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the package trl is not installed")
@pytest.mark.parametrize("rows", [[SINGLE, ALPACA], [PAIR, PAIR_OF_TURNS], [SYSTEM, SINGLE]])
def test_the_ten_lines_train(make_run: MakeRun, tmp_path: Path, llama_folder: Path, rows: list[Row]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {% if m.role == 'assistant' %}{% generation %}{{ m.content }} </s>"
        "{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    tokenizer.pad_token = tokenizer.eos_token
    model = tmp_path / "model"
    model.mkdir()
    for file in llama_folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(model)
    _, folder = written(make_run(*rows, model=str(model)), "trl")
    script = folder / "train.trl.py"
    # As it stands it asks for a GPU.
    quick = "(bf16=False, use_cpu=True, max_steps=1, report_to=[], per_device_train_batch_size=2, eos_token='</s>', "
    text = script.read_text().replace("SFTConfig(\n", f"SFTConfig{quick}\n")
    text = text.replace("DPOConfig(\n", f"DPOConfig{quick.replace(chr(44) + ' eos_token=' + repr('</s>'), '')}\n")
    script.write_text(text)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, script.name], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "train_loss" in done.stdout
