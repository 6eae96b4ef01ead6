"""The shapes of a conversation say the same; masks, roles of the user's own, and columns inside objects."""

import json
from pathlib import Path
from typing import Any

import pytest

from nncift.data import read
from nncift.data.conversation import converse
from nncift.data.formats import parse, prompt_text
from nncift.data.layout import Layout
from nncift.data.proposals import proposed_map, typed_map
from nncift.data.turns import UnusableError
from nncift.errors import DataError, UsageError

AUTO = Layout(None)
TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
Row = dict[str, Any]


def said(row: Row, layout: Layout = AUTO) -> tuple[str, str]:
    dialogue = parse(row, layout)
    talk = converse(row, layout)
    # What trainers are given ends with what was scored.
    assert talk.turns[-1].content == dialogue.response
    return prompt_text(dialogue.messages), dialogue.response


@pytest.mark.parametrize(
    "row",
    [
        {"messages": json.dumps(TURNS)},
        {"messages": {"role": ["user", "assistant"], "content": ["Q", "A"], "n": 1}},
        {"messages": [json.dumps(turn) for turn in TURNS]},
        {"messages": [{"role": "user", "text": "Q"}, {"role": "assistant", "text": "A"}]},
        {"conversations": [{"speaker": "human", "text": "Q"}, {"speaker": "assistant", "text": "A"}]},
        {"conversations": ["Q", "A"], "source": "x"},
        {"data": ["Q", "A"], "id": "0"},
        {"prompt": TURNS[0], "completion": TURNS[1]},
        {"prompt": json.dumps(TURNS[:1]), "completion": json.dumps(TURNS[1:])},
        {"messages": {"messages": TURNS}},
    ],
)
def test_every_shape_says_the_same(row: Row) -> None:
    assert said(row) == ("Q", "A")


def test_numbers_are_read_as_their_text() -> None:
    assert said({"instruction": "Add", "input": 1, "output": 2.5}) == ("Add\n1", "2.5")
    assert said({"prompt": 3, "completion": 0}) == ("3", "0")
    assert said({"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": 14}]}) == ("1", "14")
    assert parse({"instruction": "Add", "input": 1, "output": 2.5}, AUTO).numbers == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": str(TURNS)}, "printed Python: 'messages' is text with single quotes, not JSON; write the column"),
        (
            {"messages": {"role": ["user"], "content": ["Q", "A"]}},
            "wrong type: the lists in 'messages' differ in length",
        ),
        ({"messages": {"a": 1}}, "wrong type: 'messages' is an object of 'a', expected a list of turns"),
        ({"instruction": "Q", "output": ["A", "B"]}, "wrong type: 'output' is a list, expected text"),
    ],
)
def test_what_cannot_be_read_is_said(row: Row, reason: str) -> None:
    with pytest.raises(UnusableError) as caught:
        parse(row, AUTO)
    assert str(caught.value).startswith(reason)


def test_an_answer_that_is_json_stays_an_answer() -> None:
    answer = json.dumps(TURNS)
    assert said({"prompt": "Write a chat as JSON", "completion": answer}) == ("Write a chat as JSON", answer)


MASKS: list[Row] = [
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"training": False},
    {"loss": False},
    {"train": 0},
    {"weight": "0"},
    {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
    {"weight": 1, "train": False},
]


@pytest.mark.parametrize("mark", MASKS)
def test_the_response_is_the_last_turn_that_is_learned_from(mark: Row) -> None:
    row = {"messages": [*TURNS, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Bad", **mark}]}
    dialogue = parse(row, AUTO)
    assert (prompt_text(dialogue.messages), dialogue.response) == ("Q", "A")
    assert (dialogue.unused_turns, dialogue.masked_last) == (2, 1)
    assert said(row) == ("Q", "A")


@pytest.mark.parametrize(
    "mark",
    [
        {},
        {"weight": 1},
        {"weight": None},
        {"train": True},
        {"loss": None},
        {"loss": 0.73},
        {"train": "yes"},
        {"weight": 0.5},
    ],
)
def test_turns_without_a_mask_are_learned_from(mark: Row) -> None:
    row = {"messages": [TURNS[0], {"role": "assistant", "content": "B", **mark}]}
    assert parse(row, AUTO).masked_last == 0
    assert said(row) == ("Q", "B")


def test_a_row_whose_turns_are_all_masked_is_rejected_and_so_is_an_unreadable_mask() -> None:
    for mark, kind in (
        ({"weight": 0}, "no turn to learn from"),
        ({"weight": [0]}, "wrong mask"),
        ({"weight": "often"}, "wrong mask"),
    ):
        with pytest.raises(UnusableError, match=kind):
            parse({"messages": [TURNS[0], {**TURNS[1], **mark}]}, AUTO)


def test_marks_on_other_turns_mask_nothing() -> None:
    assert said({"messages": [{**TURNS[0], "weight": 0}, TURNS[1]]}) == ("Q", "A")


def test_a_masked_last_turn_is_noted(tmp_path: Path) -> None:
    row = {"messages": [*TURNS, {"role": "user", "content": "?"}, {"role": "assistant", "content": "B", "weight": 0}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    notes = read(tmp_path / "a.jsonl").notes
    assert any("The last assistant turn is masked in 1 row" in note for note in notes)


def test_roles_of_the_users_own() -> None:
    row = {"conversations": [{"from": "Frage", "value": "Q"}, {"from": "KI", "value": "A"}]}
    layout = Layout.from_settings("auto", {"role:frage": "user", "role:KI": "assistant"})
    assert said(row, layout) == ("Q", "A")
    with pytest.raises(UnusableError, match="unknown role: turn 1 of 'conversations' has 'Frage'"):
        parse(row, AUTO)
    with pytest.raises(UsageError, match="role:ki as 'robot'; expected one of system, user, assistant, tool"):
        Layout.from_settings("auto", {"role:KI": "robot"})


def test_columns_inside_objects() -> None:
    layout = Layout.from_settings("auto", {"prompt": "data.question", "completion": "data.answer"})
    assert said({"data": {"question": "Q", "answer": "A"}}, layout) == ("Q", "A")
    assert said({"data.question": "Q", "data": {"answer": "A"}}, layout) == ("Q", "A")


def test_history_stands_before_a_prompt_of_any_column() -> None:
    layout = Layout.from_settings("auto", {"prompt": "query"})
    expected = ("User: hi\n\nAssistant: hello\n\nUser: Q", "A")
    for history in (
        [["hi", "hello"]],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        '[["hi", "hello"]]',
    ):
        assert said({"query": "Q", "response": "A", "history": history}, layout) == expected
        assert said({"instruction": "Q", "output": "A", "history": history}) == expected
    assert parse({"prompt": "Q", "completion": "A", "history": "of Rome"}, AUTO).ignored == ("history",)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": TURNS},
        {"prompt": [TURNS[0]], "completion": TURNS},
        {
            "prompt": [{"role": "system", "content": "S"}, TURNS[0]],
            "completion": [{"role": "system", "content": "S"}, *TURNS],
        },
        {"prompt": [TURNS[0]], "completion": [{"role": "system", "content": "S"}, *TURNS]},
        {"prompt": [{"role": "system", "content": "S"}, TURNS[0]], "completion": TURNS},
        {"prompt": " Q\n", "completion": TURNS},
    ],
)
def test_a_prompt_that_the_completion_repeats_stands_once(row: Row) -> None:
    asked, response = said(row)
    assert (asked.removeprefix("S\n\n"), response) == ("Q", "A")
    assert [turn.role for turn in converse(row, AUTO).turns].count("user") == 1


def test_a_prompt_that_the_completion_does_not_repeat_stays() -> None:
    again = [{"role": "assistant", "content": "Yes?"}, TURNS[0], TURNS[1]]
    assert said({"prompt": "Q", "completion": again})[0] == "User: Q\n\nAssistant: Yes?\n\nUser: Q"


def test_one_map_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text('{"question": "Q", "answer": "A"}')
    (tmp_path / "alpaca.jsonl").write_text('{"instruction": "Q", "output": "A", "question": "no"}')
    columns = {"qa.jsonl:prompt": "question", "qa:completion": "answer"}
    with pytest.raises(DataError, match="none of the 1 rows"):
        read(tmp_path / "qa.jsonl", tmp_path / "alpaca.jsonl", map={"qa.jsonl:prompt": "question"})
    for one in (
        columns | {"qa.jsonl:completion": "answer"},
        {f"{tmp_path}/qa.jsonl:prompt": "question", f"{tmp_path}/qa.jsonl:completion": "answer"},
    ):
        one.pop("qa:completion", None)
        found = read(tmp_path / "qa.jsonl", tmp_path / "alpaca.jsonl", map=one)
        assert [(row.prompt, row.response) for row in found] == [("Q", "A")] * 2
    with pytest.raises(UsageError, match=r"map names the file 'other.jsonl', and the inputs are qa"):
        read(tmp_path / "qa.jsonl", map={"other.jsonl:prompt": "question"})


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        ({"question": "Q", "answer": "A"}, "--map prompt=question --map completion=answer"),
        ({"Instruction": "Q", "Output": "A"}, "--map instruction=Instruction --map output=Output"),
        ({"instruction": "Q", "context": "", "response": "A"}, "--map input=context --map output=response"),
        (
            {"system_prompt": "S", "question": "Q", "response": "A"},
            "--map prompt=question --map completion=response --map system=system_prompt",
        ),
        ({"input": "Q", "output": "A"}, "--map prompt=input --map completion=output"),
        ({"conversation": TURNS}, "--map messages=conversation"),
        ({"data": {"question": "Q", "answer": "A"}}, "--map prompt=data.question --map completion=data.answer"),
        ({"the question": "Q", "query": "Q", "outputs": "A"}, "--map prompt=query --map completion=outputs"),
        ({"text": "Q A"}, None),
    ],
)
def test_a_map_is_proposed_that_reads_the_row(row: Row, flags: str | None) -> None:
    columns = proposed_map(row)
    assert (None if columns is None else typed_map(columns)) == flags
    if columns is not None:
        assert parse(row, Layout.from_settings("auto", columns)).response == "A"


def test_a_file_without_a_usable_row_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "Q", "answer": "A"}\n' * 3)
    with pytest.raises(DataError, match="Type --map prompt=question --map completion=answer"):
        read(tmp_path / "a.jsonl")


def test_floats_that_are_whole_numbers_are_ids(tmp_path: Path) -> None:
    rows = [{"id": value, "prompt": "Q", "completion": str(k)} for k, value in enumerate([0.0, 1.0, 2.5, 1e300])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "a.jsonl").ids[:2] == ("0", "1")


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_beside_the_answer_is_noted_and_alone_is_said(tmp_path: Path, key: str) -> None:
    both = {"messages": [TURNS[0], {**TURNS[1], key: "Hm"}]}
    alone = {"messages": [TURNS[0], {"role": "assistant", "content": None, key: "Hm"}]}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [both, alone])))
    found = read(tmp_path / "a.jsonl")
    assert any(note.startswith("Turns with a thought") and "in 1 row:" in note for note in found.notes)
    assert [no.reason for no in found.rejected] == [
        "empty response: the last assistant turn has no text beside its reasoning_content"
    ]


@pytest.mark.parametrize(
    ("more", "noted"),
    [
        ({"context": "The sky is green."}, "'context' in 1 row"),
        ({"system_prompt": "Be brief."}, "map system=NAME"),
        ({"functions": [{"name": "f"}]}, "tool definitions"),
        ({"tools": '[{"name": "f"}]'}, "'tools' in 1 row"),
        ({"image": "cat.png"}, "only text is scored"),
        ({"label": False}, "KTO"),
        ({"kto_tag": "False"}, "KTO"),
        ({"label": 0}, None),
        ({"label": True}, None),
        ({"context": ""}, None),
        ({"documents": []}, None),
    ],
)
@pytest.mark.parametrize("row", [{"instruction": "Q", "output": "A"}, {"messages": TURNS}])
def test_a_column_that_others_would_ask_with_is_noted(tmp_path: Path, row: Row, more: Row, noted: str | None) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**row, **more}) + "\n" + json.dumps(row))
    notes = read(tmp_path / "a.jsonl").notes
    assert (notes == ()) if noted is None else (len(notes) == 1 and noted in notes[0])


def test_a_column_that_map_names_is_not_noted(tmp_path: Path) -> None:
    row = {"instruction": "Q", "context": "C", "output": "A", "system_prompt": "S"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row))
    found = read(tmp_path / "a.jsonl", map={"input": "context", "system": "system_prompt"})
    assert (found[0].prompt, found.notes) == ("S\n\nQ\nC", ())


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("answer", ["completion", "response"])
def test_an_answer_apart_from_its_turns_is_not_an_earlier_one(column: str, answer: str) -> None:
    row = {column: [*TURNS, {"role": "user", "content": "and then?"}], answer: "B"}
    with pytest.raises(UnusableError, match=f"--map prompt={column} --map completion={answer}"):
        parse(row, Layout(None))
    found = parse(row, Layout.from_settings("auto", {"prompt": column, "completion": answer}))
    assert (found.response, len(found.messages)) == ("B", 3)


def test_a_response_that_repeats_its_prompt_is_noted(tmp_path: Path) -> None:
    asked = "Human: what is a lathe?\n\nAssistant:"
    rows = [
        {"prompt": asked, "chosen": f"{asked} a tool", "rejected": f"{asked} a fish"},
        {"prompt": asked, "completion": "a tool"},
        {"prompt": "a", "completion": "a tool"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (note,) = (note for note in read(tmp_path / "a.jsonl").notes if "once more" in note)
    assert "in 1 row:" in note
