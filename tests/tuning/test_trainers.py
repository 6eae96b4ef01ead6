"""The loss beside TRL's, and training on a model in NF4."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nncift.data import read
from nncift.lm import CausalLM
from nncift.loading import ModelSource
from nncift.tuning.courses import Measure, course
from nncift.tuning.training import Lessons, Pupil, Recipe, summed_loss
from nncift.wording import Wording

Write = Callable[..., Path]


@pytest.mark.slow
def test_the_loss_of_a_batch_is_that_of_trl(llama: CausalLM, write_pool: Write) -> None:
    collators = pytest.importorskip("trl.trainer.sft_trainer")
    rows = list(Lessons.of(read(write_pool(6)), Wording(llama.tokenizer), llama.context).rows.values())
    collate = collators.DataCollatorForLanguageModeling(pad_token_id=2, completion_only_loss=True)
    batch = collate(
        [
            {
                "input_ids": [*row.prompt, *row.response],
                "completion_mask": [0] * len(row.prompt) + [1] * len(row.response),
            }
            for row in rows
        ]
    )
    expected = llama.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
    ).loss
    found = summed_loss(llama, rows) / sum(len(row.response) for row in rows)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the extra quantised is not installed")
def test_a_model_in_four_bits_learns_through_lora(llama_folder: Path, tmp_path: Path, write_pool: Write) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    # Layers of sizes that 4-bit kernels take.
    config = LlamaConfig.from_pretrained(llama_folder)
    config.update({"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "initializer_range": 0.05})
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path)
    lm = CausalLM.load(ModelSource(str(tmp_path), load_in="4bit"), device="cpu", dtype="float32")
    lessons = Lessons.of(read(write_pool(4)), Wording(lm.tokenizer), lm.context)
    pupil = Pupil(lm, Recipe("qlora", learning_rate=1e-2, batch=4, epochs=1))
    plan = course(lessons.lengths(list(lessons.rows)), Measure(steps=30), 4, 0)
    with pupil.taught(lessons.rows, plan, 0) as losses:
        assert losses[-1] < losses[0] - 0.5
    assert {value.dtype for value in pupil._trainable.parameters.values()} == {torch.float32}
