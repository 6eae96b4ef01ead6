"""What each row format says: known answers for one row each, and the reasons of rows that cannot be used."""

import json
from typing import Any

import pytest

from nncift.data.formats import Dialogue, parse, prompt_text
from nncift.data.layout import Layout
from nncift.data.turns import UnusableError
from nncift.errors import UsageError

AUTO = Layout(None)


def said(row: dict[str, Any], layout: Layout = AUTO) -> tuple[str, str]:
    dialogue = parse(row, layout)
    return prompt_text(dialogue.messages), dialogue.response


def roles(dialogue: Dialogue) -> list[str]:
    return [turn.role for turn in dialogue.messages]


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def reason(row: dict[str, Any], layout: Layout = AUTO) -> str:
    with pytest.raises(UnusableError) as caught:
        parse(row, layout)
    return str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "output": "A"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "response": "A"},
        {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
        {"prompt": "Q", "completion": [{"role": "assistant", "content": "A"}]},
        {"prompt": [{"role": "user", "content": "Q"}], "completion": "A"},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    ],
)
def test_every_format_says_the_same(row: dict[str, Any]) -> None:
    dialogue = parse(row, AUTO)
    assert said(row) == ("Q", "A")
    assert [(turn.role, turn.content) for turn in dialogue.messages] == [("user", "Q")]


def test_alpaca_input_follows_the_instruction_on_its_own_line() -> None:
    assert said({"instruction": "Add", "input": "1, 2", "output": "3"}) == ("Add\n1, 2", "3")


def test_alpaca_system_and_history_come_first() -> None:
    row = {"system": "S", "history": [["q0", "a0"]], "instruction": "Q", "output": "A"}
    assert said(row) == ("System: S\n\nUser: q0\n\nAssistant: a0\n\nUser: Q", "A")


def test_system_text_stands_before_a_lone_user_turn_without_labels() -> None:
    assert said(chat(("system", "S"), ("user", "Q"), ("assistant", "A"))) == ("S\n\nQ", "A")


def test_blank_system_turn_is_as_if_absent() -> None:
    blank = parse(chat(("system", " "), ("user", "Q"), ("assistant", "A")), AUTO)
    assert blank == parse(chat(("user", "Q"), ("assistant", "A")), AUTO)


def test_several_turns_are_labelled() -> None:
    row = chat(("user", "q0"), ("assistant", "a0"), ("user", "q1"), ("assistant", "a1"))
    assert said(row) == ("User: q0\n\nAssistant: a0\n\nUser: q1", "a1")


def test_turns_after_the_last_assistant_turn_are_counted_and_not_used() -> None:
    dialogue = parse(chat(("user", "Q"), ("assistant", "A"), ("user", "thanks"), ("user", "bye")), AUTO)
    assert (roles(dialogue), dialogue.response, dialogue.unused_turns) == (["user"], "A", 2)


def test_sharegpt_role_names() -> None:
    names = ["system", "human", "function_call", "observation", "gpt", "user", "chatgpt", "tool", "Bot"]
    row = {"conversations": [{"from": name, "value": "x"} for name in names]}
    dialogue = parse(row, AUTO)
    assert roles(dialogue) == ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"]


def test_tool_call_without_content_is_a_response_of_compact_json() -> None:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}]
    answer: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls}
    row = {"messages": [{"role": "user", "content": "Q"}, answer]}
    response = parse(row, AUTO).response
    assert response == '[{"type":"function","function":{"name":"weather","arguments":{"city":"Zürich"}}}]'
    answer["content"] = "Looking."
    assert parse(row, AUTO).response == f"Looking.\n{response}"


def test_tool_round_trip_ends_with_the_answer() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "18 C"},
            {"role": "assistant", "content": "It is 18 C."},
        ]
    }
    assert said(row) == ('User: Q\n\nAssistant: [{"id":"1"}]\n\nTool: 18 C', "It is 18 C.")


def test_content_parts_are_joined_and_media_leave_a_placeholder() -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "?"}]
    dialogue = parse(chat(("user", parts), ("assistant", [{"type": "text", "text": "A cat"}])), AUTO)
    assert (dialogue.messages[0].content, dialogue.response) == ("What is\n[image_url]\n?", "A cat")
    assert dialogue.media_parts == 1


def test_response_of_media_alone_is_empty() -> None:
    assert reason(chat(("user", "Q"), ("assistant", [{"type": "image"}]))).startswith("empty response")


def test_precedence_is_messages_sharegpt_alpaca_prompt() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "completion": "4"},
        {"instruction": "i", "output": "3"},
        {"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "2"}]},
        chat(("user", "m"), ("assistant", "1")),
    ]
    merged: dict[str, Any] = {}
    for row, expected in zip(rows, "4321", strict=True):
        merged |= row
        assert said(merged)[1] == expected


def test_columns_of_nulls_count_as_absent() -> None:
    assert said({"messages": None, "conversations": None, "instruction": "Q", "output": "A"}) == ("Q", "A")


def test_forced_format_reads_the_other_columns_of_a_row() -> None:
    row = {"instruction": "i", "output": "o", "prompt": "p", "completion": "c"}
    assert said(row, Layout.from_settings("prompt", None)) == ("p", "c")


def test_map_names_columns_and_takes_precedence_over_detection() -> None:
    row = {"instruction": "i", "output": "o", "question": "Q", "answer": "A"}
    layout = Layout.from_settings("auto", {"prompt": "question", "response": "answer"})
    assert said(row, layout) == ("Q", "A")


def test_mapped_column_is_not_read_twice() -> None:
    assert said({"input": "Q", "output": "A"}, Layout.from_settings("auto", {"instruction": "input"})) == ("Q", "A")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "x", "label": 1}, "no known format: the row has 'text', 'label'"),
        ({}, "no known format: the row has no columns"),
        ({"instruction": "Q", "output": True}, "wrong type: 'output' is a boolean (True), expected text"),
        ({"instruction": "Q", "output": None}, "wrong type: 'output' is null, expected text"),
        ({"instruction": ["Q"], "output": "A"}, "wrong type: 'instruction' is a list, expected text"),
        ({"instruction": "Q", "input": True, "output": "A"}, "wrong type: 'input' is a boolean (True), expected text"),
        ({"instruction": "Q", "output": " \n"}, "empty response: the last assistant turn has no text"),
        ({"instruction": "", "input": " ", "output": "A"}, "empty prompt: no user turn with text comes before"),
        (chat(("assistant", "A")), "empty prompt: no user turn with text comes before"),
        (chat(("system", "S"), ("assistant", "A")), "empty prompt: no user turn with text comes before"),
        (chat(("user", "Q")), "no assistant turn: the turns are user"),
        ({"messages": []}, "no assistant turn: the list of turns is empty"),
        (chat(("user", "Q"), ("narrator", "A")), "unknown role: turn 2 of 'messages' has 'narrator'"),
        (chat(("user", "Q"), ("assistant", None)), "wrong type: the content of turn 2 of 'messages' is null"),
        ({"messages": "hello"}, "wrong type: 'messages' is text, expected a list of turns"),
        ({"conversations": ["hello", 1]}, "wrong type: turn 1 of 'conversations' is text, expected an object"),
        ({"conversations": [{"value": "x"}]}, "unknown role: turn 1 of 'conversations' has null as its role"),
        ({"prompt": "Q", "completion": "A\ud83d"}, "lone surrogate: U+D83D in the assistant text"),
    ],
)
def test_reason_says_what_was_found(row: dict[str, Any], expected: str) -> None:
    assert reason(row).startswith(expected)


def test_assistant_turn_of_the_prompt_is_not_the_response() -> None:
    prompt = chat(("user", "Q"), ("assistant", "A"), ("user", "again"))["messages"]
    assert reason({"prompt": prompt, "completion": []}).startswith("no assistant turn: in 'completion'")


def test_forced_format_names_the_missing_column() -> None:
    assert reason({"q": "Q"}, Layout.from_settings("alpaca", None)).startswith("missing column: 'instruction'")


def test_reason_shows_a_hostile_key_shortened_on_one_line() -> None:
    text = reason({"a\n" * 1000: 1})
    assert "\n" not in text
    assert len(text) < 120


def test_system_column_of_another_meaning_does_not_cost_the_row() -> None:
    dialogue = parse(chat(("user", "Q"), ("assistant", "A")) | {"system": {"os": "linux"}}, AUTO)
    assert (roles(dialogue), dialogue.ignored) == (["user"], ("system",))


@pytest.mark.parametrize(
    ("format", "columns", "expected"),
    [
        ("alpacca", None, "did you mean 'alpaca'"),
        ("auto", {"promt": "q"}, "did you mean 'prompt'"),
        ("auto", {"prompt": "q", "output": "a"}, "fields of format alpaca and prompt"),
        ("messages", {"prompt": "q"}, "not messages"),
        ("auto", {"completion": "a", "response": "b"}, "the same field"),
        ("auto", {"prompt": ""}, "expected the name of a column"),
    ],
)
def test_wrong_settings(format: str, columns: dict[str, str] | None, expected: str) -> None:  # noqa: A002
    with pytest.raises(UsageError, match=expected):
        Layout.from_settings(format, columns)


def test_prompt_of_a_lone_user_turn_is_the_same_object() -> None:
    dialogue = parse(json.loads('{"prompt": "a long text", "completion": "A"}'), AUTO)
    assert prompt_text(dialogue.messages) is dialogue.messages[0].content
