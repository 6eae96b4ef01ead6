"""What exports carry over beside the text: masks, media, pairs, thoughts, lengths, scores, and what to start a trainer with."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nncift.data.export import TRAINERS, export
from nncift.data.lengths import LengthLimit
from nncift.errors import DataError, UsageError

Row = dict[str, Any]
MakeRun = Callable[..., Path]


def turn(role: str, content: Any, **marks: Any) -> Row:
    return {"role": role, "content": content, **marks}


def talk_of(*turns: Row) -> Row:
    return {"messages": list(turns)}


def written(run: Path, to: str, turns: str = "all", **more: Any) -> tuple[list[Row], Row]:
    out = run.parent / "out.jsonl"
    record = export(run, out, to=to, turns=turns, **more).to_json()
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], record


FIRST_MASKED = {
    "messages": [turn("user", "1"), turn("assistant", "wrong", weight=0), turn("user", "2"), turn("assistant", "two")]
}
LAST_MASKED = {
    "messages": [turn("user", "1"), turn("assistant", "one"), turn("user", "2"), turn("assistant", "no", loss=False)]
}
BOTH = {"messages": [turn("user", "1"), turn("assistant", "one"), turn("user", "2"), turn("assistant", "two")]}
MIDDLE_MASKED = {
    "messages": [*BOTH["messages"][:2], turn("user", "x"), turn("assistant", "no", train=False), *BOTH["messages"][2:]]
}
PART_MASKED = {
    "messages": [
        turn("user", "1"),
        turn(
            "assistant",
            "one two",
            train_detail=[
                {"begin_offset": 0, "end_offset": 2, "train": False},
                {"begin_offset": 3, "end_offset": 6, "train": True},
            ],
        ),
    ]
}
HALF = {"messages": [turn("user", "1"), turn("assistant", "one", weight=0.5)]}


def learned(row: Row, to: str, options: Row) -> list[str]:
    """Return the texts that a trainer learns from, by its rules."""
    if to == "trl":
        side = row["completion"] if "completion" in row else row["messages"]
        return [one["content"] for one in side if one["role"] == "assistant"]
    if to == "openai":
        return [one["content"] for one in row["messages"] if one["role"] == "assistant" and one.get("weight", 1)]
    if to == "axolotl":
        marked = "message_field_training" in options
        said = [one for one in row["messages"] if one["role"] == "assistant"]
        return [one["content"] for one in said if not marked or one["training"]]
    said = [one["value"] for one in row["conversations"] if one["from"] == "gpt"]
    return said[-1:] if options.get("mask_history") else said


def options_of(run: Path, to: str) -> Row:
    if to == "axolotl":
        return dict(yaml.safe_load((run.parent / "out.axolotl.yaml").read_text())["datasets"][0])
    if to == "llamafactory":
        return dict(yaml.safe_load((run.parent / "out.llamafactory.yaml").read_text()))
    return {}


@pytest.mark.parametrize("to", ["trl", "axolotl", "llamafactory", "openai"])
@pytest.mark.parametrize("turns", ["all", "last"])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([FIRST_MASKED], [["two"]]),
        ([LAST_MASKED], [["one"]]),
        ([FIRST_MASKED, LAST_MASKED], [["two"], ["one"]]),
        ([BOTH], [["one", "two"]]),
        ([BOTH, FIRST_MASKED], [["one", "two"], ["two"]]),
        ([BOTH, MIDDLE_MASKED], [["one", "two"], ["one", "two"]]),
    ],
)
def test_what_is_masked_is_learned_by_no_trainer(
    make_run: MakeRun, to: str, turns: str, rows: list[Row], expected: list[list[str]]
) -> None:
    run = make_run(*rows)
    got, record = written(run, to, turns)
    out = {int(left["id"].removeprefix("id-")) for left in record["left_out"]}
    kept = [texts[-1:] if turns == "last" else texts for place, texts in enumerate(expected) if place not in out]
    assert [learned(row, to, options_of(run, to)) for row in got] == kept
    assert all(left["reason"].startswith("masked turns") for left in record["left_out"])
    assert not out or (to in ("trl", "llamafactory") and turns == "all")


def test_masked_parts_go_to_axolotl_alone_and_weights_to_none(make_run: MakeRun) -> None:
    rows, record = written(make_run(PART_MASKED, BOTH), "axolotl")
    assert rows[0]["messages"][1]["train_detail"] == PART_MASKED["messages"][1]["train_detail"]
    assert any("message_field_training_detail: train_detail" in note for note in record["notes"])
    for to in ("trl", "llamafactory", "openai"):
        left = written(make_run(PART_MASKED, HALF, BOTH), to)[1]["left_out"]
        assert [one["reason"].partition(":")[0] for one in left] == ["masked parts", "turn weights"]
    assert [one["id"] for one in written(make_run(HALF, BOTH), "axolotl")[1]["left_out"]] == ["id-0"]


@pytest.mark.parametrize(
    ("column", "plural", "mark"),
    [("image", "images", "<image>"), ("video", "videos", "<video>"), ("audio", "audios", "<audio>")],
)
@pytest.mark.parametrize("to", ["trl", "axolotl", "llamafactory"])
def test_a_medium_in_a_column_of_its_own_is_in_the_trainers_list(
    make_run: MakeRun, to: str, column: str, plural: str, mark: str
) -> None:
    talk = [{"from": "human", "value": f"{mark}\nWhat?"}, {"from": "gpt", "value": "It."}]
    run = make_run({column: "a.bin", "conversations": talk}, {plural: ["b.bin"], "conversations": talk})
    rows, record = written(run, to)
    assert [row[plural] for row in rows] == [["a.bin"], ["b.bin"]]
    assert not any(column in row for row in rows)
    assert any("2 rows have media" in note for note in record["notes"])
    if to == "llamafactory":
        assert json.loads((run.parent / "dataset_info.json").read_text())["out"]["columns"][plural] == plural


def test_media_that_do_not_fit_their_marks_or_are_bytes_are_left_out(make_run: MakeRun) -> None:
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
    run = make_run(
        {"images": ["a", "b"], "conversations": talk},
        {"images": ["a"], "conversations": talk},
        {"images": [{"bytes": "iVBO", "path": None}], "conversations": talk},
        {"images": [{"bytes": None, "path": "c.png"}], "conversations": talk},
    )
    rows, record = written(run, "llamafactory")
    assert [row["images"] for row in rows] == [["a"], ["c.png"]]
    assert [one["reason"][:40] for one in record["left_out"]] == [
        "media: the text has 1 <image> and the ro",
        "media: the row holds the bytes of a medi",
    ]
    rows, record = written(run, "same")
    assert len(rows) == 4
    assert record["notes"] == ["Bytes of media go out as base64 text in 1 row; trainers want their paths."]


def pair(prompt: Any, chosen: Any, rejected: Any, **more: Any) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


ASKED = turn("user", "Q")
PAIRS = [
    pair("Q", "good", "bad"),
    pair([ASKED], [turn("assistant", "good")], [turn("assistant", "bad")]),
    {"chosen": [ASKED, turn("assistant", "good")], "rejected": [ASKED, turn("assistant", "bad")]},
    pair("Q", [ASKED, turn("assistant", "good")], [ASKED, turn("assistant", "bad")], score_chosen=8.5),
    {"instruction": "Q", "input": "", "chosen": "good", "rejected": "bad"},
    {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    {"messages": [ASKED], "chosen": turn("assistant", "good"), "rejected": turn("assistant", "bad")},
    {
        "chosen": json.dumps(talk_of(ASKED, turn("assistant", "good"))),
        "rejected": json.dumps(talk_of(ASKED, turn("assistant", "bad"))),
    },
]


def sides(row: Row, to: str) -> tuple[str, str, str]:
    if to == "trl":
        prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
        return prompt[0]["content"], chosen[0]["content"], rejected[0]["content"]
    if to == "axolotl":
        return row["messages"][0]["content"], row["chosen"]["content"], row["rejected"]["content"]
    if to == "openai":
        answers = row["preferred_output"][0]["content"], row["non_preferred_output"][0]["content"]
        return row["input"]["messages"][0]["content"], *answers
    return row["conversations"][0]["value"], row["chosen"]["value"], row["rejected"]["value"]


@pytest.mark.parametrize("to", ["trl", "axolotl", "llamafactory", "openai"])
def test_pairs_of_every_form_go_out_whole(make_run: MakeRun, to: str) -> None:
    run = make_run(*PAIRS)
    rows, record = written(run, to)
    assert [sides(row, to) for row in rows] == [("Q", "good", "bad")] * len(PAIRS)
    assert any("The rows are pairs" in note for note in record["notes"])
    if to == "llamafactory":
        stanza = json.loads((run.parent / "dataset_info.json").read_text())["out"]
        assert (stanza["ranking"], stanza["formatting"]) == (True, "sharegpt")
        assert {"chosen", "rejected", "messages"} <= stanza["columns"].keys()


def test_pairs_as_they_were(make_run: MakeRun) -> None:
    run = make_run(*PAIRS)
    assert written(run, "same")[0] == PAIRS


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair("Q", "same", "same"), "pair: both sides say the same"),
        (
            pair("Q", [turn("assistant", "a"), turn("user", "u"), turn("assistant", "b")], "no"),
            "pair: a side has several turns",
        ),
        (
            {"chosen": [ASKED, turn("assistant", "a")], "rejected": [turn("user", "other"), turn("assistant", "b")]},
            "pair: the sides do not begin",
        ),
    ],
)
def test_pairs_that_a_loader_would_misread_are_left_out(make_run: MakeRun, row: Row, reason: str) -> None:
    rows, record = written(make_run(PAIRS[0], row), "axolotl")
    assert len(rows) == 1
    assert record["left_out"][0]["reason"].startswith(reason)


def test_a_pair_of_several_turns_goes_to_trl(make_run: MakeRun) -> None:
    answers = [turn("assistant", "a"), turn("user", "u"), turn("assistant", "b")]
    rows, _ = written(make_run(pair("Q", answers, "no")), "trl")
    assert (rows[0]["chosen"], rows[0]["rejected"]) == (answers, [turn("assistant", "no")])


def test_pairs_among_other_rows_go_out_by_their_chosen_side_with_a_note(make_run: MakeRun) -> None:
    rows, record = written(make_run(PAIRS[0], {"prompt": "P", "completion": "C"}), "trl")
    assert [row["completion"][0]["content"] for row in rows] == ["good", "C"]
    assert any("1 row are pairs and others are not" in note for note in record["notes"])


def test_a_history_that_is_no_pairs_of_texts_goes_out_as_sharegpt_or_not_at_all(make_run: MakeRun) -> None:
    parts = [{"type": "text", "text": "q0"}]
    row = {"instruction": "Q", "output": "A", "history": [turn("user", parts), turn("assistant", "a0")]}
    odd = {"instruction": "Q", "output": "A", "history": [turn("user", "q0")]}
    rows, record = written(make_run(row, odd), "llamafactory")
    assert [one["value"] for one in rows[0]["conversations"]] == ["q0", "a0", "Q", "A"]
    assert record["left_out"][0]["reason"].startswith("turns do not alternate")


def test_thoughts_stand_where_each_trainer_looks_for_them(make_run: MakeRun) -> None:
    run = make_run({"messages": [ASKED, turn("assistant", "A", reasoning_content="Hm")]})
    assert written(run, "trl")[0][0]["completion"][0]["reasoning_content"] == "Hm"
    assert written(run, "axolotl")[0][0]["messages"][1]["reasoning_content"] == "Hm"
    rows, record = written(run, "llamafactory")
    assert rows[0]["conversations"][1]["value"] == "<think>\nHm\n</think>\n\nA"
    assert any("<think>" in note for note in record["notes"])
    rows, record = written(run, "openai")
    assert rows[0]["messages"][1] == turn("assistant", "A")
    assert any("left away" in note for note in record["notes"])


def test_a_thought_keeps_the_name_that_its_template_reads(make_run: MakeRun) -> None:
    run = make_run({"messages": [ASKED, turn("assistant", "A", thinking="Hm")]})
    assert written(run, "trl")[0][0]["completion"][0] == turn("assistant", "A", thinking="Hm")
    assert written(run, "llamafactory")[0][0]["conversations"][1]["value"] == "<think>\nHm\n</think>\n\nA"
    assert any("left away" in note for note in written(run, "openai")[1]["notes"])


def test_keys_of_turns_that_no_trainer_is_given_are_told(make_run: MakeRun) -> None:
    run = make_run(
        {"messages": [ASKED, turn("assistant", "A", prefix=True, mood="")]}, talk_of(ASKED, turn("assistant", "B"))
    )
    (note,) = (note for note in written(run, "trl")[1]["notes"] if "left away" in note)
    assert note == "The key 'prefix' of turns is left away in 1 row."
    assert not [note for note in written(run, "same")[1]["notes"] if "left away" in note]


def test_tools_of_an_alpaca_row_go_along(make_run: MakeRun) -> None:
    tools = '[{"name": "add", "parameters": {}}]'
    run = make_run({"instruction": "Q", "output": "A", "tools": tools})
    rows, _ = written(run, "llamafactory")
    assert json.loads(rows[0]["tools"]) == json.loads(tools)
    stanza = json.loads((run.parent / "dataset_info.json").read_text())["out"]
    assert stanza["columns"]["tools"] == "tools"


def test_tool_definitions_count_for_the_trainers_limit(make_run: MakeRun, llama_folder: Path) -> None:
    tools = [{"name": "sort", "description": "sort the list " * 20}]
    run = make_run({**talk_of(turn("user", "one"), turn("assistant", "two")), "tools": tools})
    with pytest.raises(DataError, match="1 of 1 rows have more than 40 tokens"):
        written(run, "trl", length=LengthLimit(40, str(llama_folder)))


def test_openai_rows_have_ids_for_calls_and_results(make_run: MakeRun) -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call, call]}
    talk = [ASKED, calling, turn("tool", "1"), turn("tool", "2"), turn("assistant", "3")]
    rows, _ = written(
        make_run({"messages": talk, "tools": [{"type": "function", "function": {"name": "add"}}]}), "openai"
    )
    said = rows[0]["messages"]
    assert [one["id"] for one in said[1]["tool_calls"]] == ["call_1", "call_2"]
    assert [one["tool_call_id"] for one in said[2:4]] == ["call_1", "call_2"]
    assert said[1]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert rows[0]["tools"][0]["function"]["name"] == "add"
    orphan = {"messages": [ASKED, turn("tool", "1"), turn("assistant", "2")]}
    _, record = written(make_run({"messages": talk}, orphan), "openai")
    assert record["left_out"][0]["reason"].startswith("tool call: a result answers no call")


def test_rows_beyond_the_trainers_limit_are_refused_or_dropped(make_run: MakeRun, llama_folder: Path) -> None:
    run = make_run({"prompt": "one", "completion": "two"}, {"prompt": "sort the list " * 20, "completion": "one"})
    with pytest.raises(DataError, match=r"1 of 2 rows have more than 20 tokens.* longest is 'id-1'"):
        written(run, "trl", length=LengthLimit(20, str(llama_folder)))
    for to in TRAINERS:
        rows, record = written(run, to, length=LengthLimit(20, str(llama_folder), "drop"))
        assert (len(rows), [one["id"] for one in record["left_out"]]) == (1, ["id-1"])
        assert len(written(run, to, length=LengthLimit(500, str(llama_folder)))[0]) == 2
    with pytest.raises(UsageError, match="give --tokenizer"):
        written(run, "trl", length=LengthLimit(20))
    for wrong in ({"tokens": 0}, {"tokens": 5, "too_long": "cut"}):
        with pytest.raises(UsageError):
            LengthLimit(**wrong)


@pytest.mark.parametrize("to", ["same", "trl", "axolotl", "llamafactory"])
def test_rows_carry_their_scores(make_run: MakeRun, to: str) -> None:
    rows, _ = written(
        make_run({"prompt": "one", "completion": "two"}, [ASKED, turn("assistant", "A")]), to, with_scores=True
    )
    assert [(row["nncift_rank"], row["nncift_score"], row["nncift_gain"]) for row in rows] == [
        (1, 1.0, 0.5),
        (2, 0.5, 0.5),
    ]


@pytest.mark.parametrize("rows", [[BOTH], [FIRST_MASKED, BOTH], PAIRS])
@pytest.mark.parametrize("to", ["trl", "axolotl", "llamafactory"])
def test_a_starting_point_lies_beside_the_data(make_run: MakeRun, to: str, rows: list[Row]) -> None:
    run = make_run(*rows, model="org/small")
    _, record = written(run, to)
    start = Path(record["files"][-1])
    assert record["start"].endswith(start.name)
    assert "org/small" in start.read_text()
    if to == "trl":
        compile(start.read_text(), start.name, "exec")
        assert ("DPOTrainer" in start.read_text()) == (rows is PAIRS)
        return
    config = yaml.safe_load(start.read_text())
    if to == "axolotl":
        assert config["datasets"][0]["path"] == "out.jsonl"
        assert (config.get("rl") == "dpo") == (rows is PAIRS)
    else:
        assert (config["dataset"], config["stage"]) == ("out", "dpo" if rows is PAIRS else "sft")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the package trl is not installed")
@pytest.mark.parametrize("rows", [[BOTH], [FIRST_MASKED, BOTH], PAIRS])
def test_trl_takes_the_settings_and_the_columns(make_run: MakeRun, rows: list[Row]) -> None:
    import ast

    from trl.data_utils import is_conversational
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.sft_config import SFTConfig

    run = make_run(*rows)
    got, record = written(run, "trl")
    assert all(is_conversational(row) for row in got)
    tree = ast.parse(Path(record["files"][-1]).read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and str(getattr(node.func, "id", "")).endswith("Config")
    ]
    settings = {word.arg: ast.literal_eval(word.value) for word in calls[0].keywords if word.arg}
    kind: Any = DPOConfig if rows is PAIRS else SFTConfig
    settings["output_dir"] = str(run.parent / "trained")
    assert kind(**settings, bf16=False, use_cpu=True, report_to=[]).max_length == 2048
