import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nncift.data.export import export
from nncift.errors import DataError, UsageError

Row = dict[str, Any]
MakeRun = Callable[..., Path]

PLAIN = {"id": "a", "instruction": "Name a bird", "input": "", "output": "owl"}
WITH_INPUT = {
    "instruction": "Sort",
    "input": "b a",
    "output": "a b",
    "history": [["Hi", "Hello"]],
    "system": "Be brief.",
}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "1"},
        {"from": "gpt", "value": "one"},
        {"from": "human", "value": "2"},
        {"from": "gpt", "value": "two"},
    ]
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
]
CALLING = {
    "messages": [
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 1}}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "2"},
    ],
    "tools": TOOLS,
}
OTHER_TOOL = {
    "messages": [
        {"role": "human", "content": "Weather?"},
        {"role": "model", "tool_calls": [{"function": {"name": "look", "arguments": '{"city": "Bonn"}'}}]},
        {"role": "tool", "content": "sun"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "Thanks"},
    ]
}


def written(run: Path, to: str, turns: str = "all", name: str = "out.jsonl") -> tuple[list[Row], dict[str, Any]]:
    out = run.parent / name
    record = export(run, out, to=to, turns=turns).to_json()
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], record


def llamafactory_drops(row: Row, stanza: Row) -> bool:
    """Say whether LLaMA-Factory would skip a row, by the rules of its data page; raises KeyError where it would stop."""
    columns = stanza["columns"]
    if stanza["formatting"] == "alpaca":
        assert isinstance(row[columns["query"]], str)
        return not (isinstance(row[columns["response"]], str) and isinstance(row[columns["prompt"]], str))
    turns = row[columns["messages"]]
    tags = stanza["tags"]
    if turns and turns[0][tags["role_tag"]] == tags["system_tag"]:
        turns = turns[1:]
    odd, even = {tags["user_tag"], tags["observation_tag"]}, {tags["assistant_tag"], tags["function_tag"]}
    wrong = any(turn[tags["role_tag"]] not in (even if k % 2 else odd) for k, turn in enumerate(turns))
    for turn in turns:
        assert isinstance(turn[tags["content_tag"]], str)
        if turn[tags["role_tag"]] == tags["function_tag"]:
            calls = json.loads(turn[tags["content_tag"]])
            assert all(set(call) == {"name", "arguments"} for call in (calls if isinstance(calls, list) else [calls]))
    return wrong or len(turns) % 2 == 1 or not turns


def test_same_writes_the_rows_as_they_were_in_rank_order(make_run: MakeRun) -> None:
    run = make_run(PLAIN, SHAREGPT, {"prompt": "ö", "completion": "ü", "n": 1.50})
    record = export(run, run.parent / "out.jsonl").to_json()
    assert (run.parent / "out.jsonl").read_bytes() == (run / "subset.jsonl").read_bytes()
    assert (record["rows"], record["left_out"]) == (3, [])


def test_a_json_file_is_one_array(make_run: MakeRun) -> None:
    run = make_run(PLAIN, SHAREGPT)
    export(run, run.parent / "out.json")
    assert json.loads((run.parent / "out.json").read_text()) == [PLAIN, SHAREGPT]


def test_trl_rows_are_messages_only_with_the_four_roles(make_run: MakeRun) -> None:
    rows, record = written(make_run(PLAIN, WITH_INPUT, SHAREGPT, {"prompt": "P", "completion": "C"}), "trl")
    assert [set(row) for row in rows] == [{"messages"}] * 4
    assert rows[0]["messages"] == [{"role": "user", "content": "Name a bird"}, {"role": "assistant", "content": "owl"}]
    assert [turn["role"] for turn in rows[1]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert rows[1]["messages"][3]["content"] == "Sort\nb a"
    assert {turn["role"] for row in rows for turn in row["messages"]} == {"system", "user", "assistant"}
    assert any("assistant_only_loss" in note for note in record["notes"])


def test_trl_learns_only_from_the_last_response_by_prompt_and_completion(make_run: MakeRun) -> None:
    rows, record = written(make_run(PLAIN, SHAREGPT), "trl", "last")
    assert [set(row) for row in rows] == [{"prompt", "completion"}] * 2
    assert rows[1]["completion"] == [{"role": "assistant", "content": "two"}]
    assert len(rows[1]["prompt"]) == 4
    assert "the last response (1 row have several)" in record["notes"][0]


@pytest.mark.parametrize("turns", ["all", "last"])
def test_rows_of_one_response_are_prompt_and_completion_which_every_template_takes(
    make_run: MakeRun, turns: str
) -> None:
    rows, record = written(make_run(PLAIN), "trl", turns)
    assert rows == [
        {
            "prompt": [{"role": "user", "content": "Name a bird"}],
            "completion": [{"role": "assistant", "content": "owl"}],
        }
    ]
    assert not any("assistant_only_loss" in note for note in record["notes"])


def test_trl_tool_arguments_are_objects_and_tools_one_text(make_run: MakeRun) -> None:
    rows, record = written(make_run(CALLING, OTHER_TOOL), "trl")
    assert rows[0]["messages"][1] == {
        "role": "assistant",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 1}}}],
    }
    assert rows[0]["messages"][2]["tool_call_id"] == "c1"
    assert json.loads(rows[0]["tools"]) == TOOLS
    assert "tools" not in rows[1]
    assert rows[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Bonn"}
    assert [turn["role"] for turn in rows[1]["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert any("datasets 5" in note for note in record["notes"])
    assert any("cut in 1 row" in note for note in record["notes"])


def test_axolotl_arguments_and_parameters_are_text(make_run: MakeRun) -> None:
    rows, _ = written(make_run(CALLING, OTHER_TOOL), "axolotl")
    call = rows[0]["messages"][1]["tool_calls"][0]["function"]
    assert json.loads(call["arguments"]) == {"a": 1, "b": 1}
    assert rows[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Bonn"}'
    assert isinstance(rows[0]["tools"][0]["function"]["parameters"], str)


def test_axolotl_marks_the_turns_to_learn_from(make_run: MakeRun) -> None:
    rows, record = written(make_run(SHAREGPT), "axolotl", "last")
    assert [turn["training"] for turn in rows[0]["messages"]] == [False] * 4 + [True]
    assert any("message_field_training: training" in note for note in record["notes"])
    assert all("training" not in turn for turn in written(make_run(SHAREGPT), "axolotl")[0][0]["messages"])


def test_llamafactory_keeps_alpaca_rows_and_names_their_columns(make_run: MakeRun) -> None:
    run = make_run(PLAIN, {"instruction": "No input", "output": "fine"}, WITH_INPUT)
    rows, record = written(run, "llamafactory")
    stanza = json.loads((run.parent / "dataset_info.json").read_text())["out"]
    assert rows[1] == {"instruction": "No input", "input": "", "output": "fine"}
    assert rows[2] == {
        "instruction": "Sort",
        "input": "b a",
        "output": "a b",
        "system": "Be brief.",
        "history": [["Hi", "Hello"]],
    }
    assert stanza["file_name"] == "out.jsonl"
    assert stanza["columns"]["system"] == "system"
    assert stanza["columns"]["history"] == "history"
    assert not any(llamafactory_drops(row, stanza) for row in rows)
    assert record["files"][1].endswith("dataset_info.json")


def test_llamafactory_gets_sharegpt_with_calls_as_turns(make_run: MakeRun) -> None:
    run = make_run(CALLING, SHAREGPT, PLAIN, OTHER_TOOL)
    rows, _ = written(run, "llamafactory")
    stanza = json.loads((run.parent / "dataset_info.json").read_text())["out"]
    assert [turn["from"] for turn in rows[0]["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(rows[0]["conversations"][1]["value"]) == {"name": "add", "arguments": {"a": 1, "b": 1}}
    assert json.loads(rows[0]["tools"]) == TOOLS
    assert len(rows) == 4
    assert not any(llamafactory_drops(row, stanza) for row in rows)


def test_parallel_results_become_one_observation(make_run: MakeRun) -> None:
    calls: list[Row] = [{"function": {"name": name, "arguments": {}}} for name in ("one", "two")]
    row = {
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "tool_calls": calls},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "3"},
        ]
    }
    rows, _ = written(make_run(row), "llamafactory")
    assert rows[0]["conversations"][2] == {"from": "observation", "value": "1\n2"}
    assert len(json.loads(rows[0]["conversations"][1]["value"])) == 2


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("assistant", "Hello"), ("user", "Hi"), ("assistant", "Yes")], "turns do not alternate: turn 1 is gpt"),
        ([("user", "Hi"), ("user", "You?"), ("assistant", "Yes")], "turns do not alternate: turn 2 is human"),
        (
            [("user", "Hi"), ("system", "S"), ("user", "a"), ("assistant", "Yes")],
            "turns do not alternate: turn 2 is system",
        ),
    ],
)
def test_what_llamafactory_would_skip_is_left_out_with_its_reason(
    make_run: MakeRun, turns: list[tuple[str, str]], reason: str
) -> None:
    bad = {"messages": [{"role": role, "content": text} for role, text in turns]}
    rows, record = written(make_run(SHAREGPT, bad), "llamafactory")
    assert len(rows) == 1
    (left,) = record["left_out"]
    assert (left["id"], left["rank"]) == ("id-1", 2)
    assert left["reason"].startswith(reason)
    # The rule is LLaMA-Factory's alone.
    assert len(written(make_run(SHAREGPT, bad), "trl")[0]) == 2


def test_text_beside_a_call_is_not_lost_in_silence(make_run: MakeRun) -> None:
    talk = json.loads(json.dumps(CALLING))
    talk["messages"][1]["content"] = "I add."
    _, record = written(make_run(PLAIN, talk), "llamafactory")
    assert record["left_out"][0]["reason"].startswith("text beside a tool call")


def test_media_pass_through_and_are_told(make_run: MakeRun) -> None:
    parts = [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]}
    rows, record = written(make_run(row, PLAIN), "trl")
    # One type per column: the other row's text becomes a list of parts too.
    assert rows[0]["prompt"][0]["content"] == parts
    assert rows[1]["prompt"][0]["content"] == [{"type": "text", "text": "Name a bird"}]
    assert any("1 row have media" in note and "only text was scored" in note for note in record["notes"])
    run = make_run(row)
    rows, _ = written(run, "llamafactory")
    assert rows[0]["conversations"][0]["value"] == "<image>\nWhat is it?"
    assert rows[0]["images"] == ["cat.png"]
    assert json.loads((run.parent / "dataset_info.json").read_text())["out"]["columns"]["images"] == "images"


def test_a_row_of_another_type_is_left_out(make_run: MakeRun) -> None:
    odd = {"messages": [{"role": "user", "name": 7, "content": "x"}, {"role": "assistant", "content": "y"}]}
    named = {"messages": [{"role": "user", "name": "Ann", "content": "x"}, {"role": "assistant", "content": "y"}]}
    rows, record = written(make_run(named, odd), "trl")
    assert len(rows) == 1
    assert record["left_out"][0]["reason"] == (
        "mixed types: prompt[].name is a number here and text in row id-0; tables hold one type per column"
    )


def test_columns_are_mapped_as_the_run_read_them(make_run: MakeRun) -> None:
    rows, _ = written(
        make_run({"question": "Q", "answer": "A"}, map={"prompt": "question", "completion": "answer"}), "trl"
    )
    assert [turn["content"] for side in ("prompt", "completion") for turn in rows[0][side]] == ["Q", "A"]


def test_another_data_set_keeps_its_stanza(make_run: MakeRun) -> None:
    run = make_run(PLAIN)
    info = run.parent / "dataset_info.json"
    info.write_text('{"mine": {"file_name": "mine.json"}}')
    written(run, "llamafactory")
    assert set(json.loads(info.read_text())) == {"mine", "out"}
    info.write_text("[]")
    with pytest.raises(DataError, match="expected an object of data sets"):
        written(run, "llamafactory")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"to": "openai", "out": "out.json"}, "takes .jsonl files"),
        ({"to": "openai", "with_scores": True}, "of its own columns alone"),
        ({"to": "unsloth"}, "--to was given as 'unsloth'"),
        ({"turns": "first"}, "--turns was given as 'first'"),
        ({"turns": "last"}, "leaves rows as they are"),
        ({"out": "out.csv"}, "--out was given as '.csv'"),
    ],
)
def test_wrong_wishes_are_refused(make_run: MakeRun, tmp_path: Path, given: Row, said: str) -> None:
    out = tmp_path / given.pop("out", "out.jsonl")
    with pytest.raises(UsageError, match=said):
        export(make_run(PLAIN), out, **given)
    assert not out.exists()


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        export(tmp_path, tmp_path / "out.jsonl")


def test_nothing_is_written_where_no_row_is_left(make_run: MakeRun) -> None:
    bad = {
        "messages": [
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "x"},
        ]
    }
    run = make_run(bad)
    with pytest.raises(DataError, match="none of the 1 selected rows"):
        written(run, "llamafactory")
    assert not (run.parent / "out.jsonl").exists()


LOAD = """
import json, sys
import datasets
table = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
print(json.dumps([datasets.__version__, table[:]]))
"""


def loaded(path: Path, cache: Path, site: Path | None = None) -> tuple[str, dict[str, list[Any]]]:
    """Load a file with `datasets` in a process of its own, another release of it where `site` has one."""
    code = (f"import sys; sys.path.insert(0, {str(site)!r})\n" if site else "") + LOAD
    done = subprocess.run([sys.executable, "-c", code, path, cache], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, columns = json.loads(done.stdout.splitlines()[-1])
    return version, columns


def check_loads(make_run: MakeRun, cache: Path, site: Path | None = None) -> str:
    version = ""
    for to in ("trl", "axolotl", "llamafactory"):
        run = make_run(PLAIN, WITH_INPUT, SHAREGPT, CALLING)
        rows, record = written(run, to, name=f"{to}.jsonl")
        version, columns = loaded(run.parent / f"{to}.jsonl", cache, site)
        (main,) = {"messages", "conversations"} & set(columns)
        assert len(columns[main]) == record["rows"] == len(rows)
        for row, turns in zip(rows, columns[main], strict=True):
            known = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
            assert known == row[main]
    return str(version)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="the package datasets is not installed")
def test_the_newest_datasets_loads_every_export_without_loss(make_run: MakeRun, tmp_path: Path) -> None:
    assert int(check_loads(make_run, tmp_path / "cache").split(".")[0]) >= 4


@pytest.mark.slow
def test_the_oldest_supported_datasets_loads_every_export_without_loss(make_run: MakeRun, tmp_path: Path) -> None:
    wanted = ["datasets==4.0.0", "dill<0.3.9", "multiprocess<0.70.17", "fsspec==2025.3.0"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "old"), *wanted]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip("pip cannot install datasets 4.0.0 here")
    assert check_loads(make_run, tmp_path / "cache", tmp_path / "old") == "4.0.0"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the package trl is not installed")
def test_trl_itself_trains_on_what_is_exported(
    make_run: MakeRun, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.data_utils import is_conversational
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {% if m.role == 'assistant' %}{% generation %}{{ m.content }} </s>"
        "{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    pairs = [("user", "sort the list"), ("assistant", "red blue"), ("user", "add one"), ("assistant", "two three four")]
    talk = {"messages": [{"role": role, "content": text} for role, text in pairs]}
    short = {"instruction": "name a bird", "output": "green bird"}
    learned = {}
    for turns in ("all", "last"):
        run = make_run(talk, short)
        written(run, "trl", turns)
        data = load_dataset("json", data_files=str(run.parent / "out.jsonl"), split="train")
        assert all(is_conversational(row) for row in data)
        config = SFTConfig(
            output_dir=str(tmp_path / turns),
            bf16=False,
            use_cpu=True,
            report_to=[],
            max_steps=1,
            eos_token="</s>",
            assistant_only_loss=turns == "all",
            per_device_train_batch_size=2,
            disable_tqdm=True,
        )
        model = AutoModelForCausalLM.from_pretrained(llama_folder)
        trainer = SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
        batch = trainer.data_collator([next(iter(trainer.get_train_dataloader().dataset))])
        learned[turns] = tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
        trainer.train()
    assert "red blue" in learned["all"]
    assert "red blue" not in learned["last"]
    assert "two three four" in learned["last"]


@pytest.mark.parametrize(
    ("line", "said"), [('{"id" 1}', "broken JSON"), ("[1]", "a list"), ("[" * 9999, "nested too deeply")]
)
def test_a_damaged_row_of_a_run_is_named(make_run: MakeRun, tmp_path: Path, line: str, said: str) -> None:
    run = make_run(PLAIN, WITH_INPUT)
    whole = (run / "subset.jsonl").read_text().splitlines()
    (run / "subset.jsonl").write_text("\n".join([whole[0], line]))
    with pytest.raises(DataError, match=f"a row that the run kept is damaged .*{said}"):
        export(run, tmp_path / "out.jsonl", to="trl")
