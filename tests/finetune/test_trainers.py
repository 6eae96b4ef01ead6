"""The loss beside TRL's, and training on a model in NF4."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nncift.data import read
from nncift.finetune.batch_schedule import Measure, schedule
from nncift.finetune.training import FineTuner, Recipe, TrainingSets, summed_loss
from nncift.models.causal_lm import CausalLM
from nncift.models.loading import ModelSource
from nncift.models.prompt_format import PromptFormat

Write = Callable[..., Path]


@pytest.mark.slow
def test_the_loss_of_a_batch_is_that_of_trl(llama: CausalLM, write_pool: Write, tmp_path: Path) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    examples = read(write_pool(6))
    rows = list(TrainingSets.of(examples, PromptFormat(llama.tokenizer), llama.context).rows.values())
    texts = [{"prompt": f"Instruction:\n{row.prompt}\n\nResponse:\n", "completion": row.response} for row in examples]
    llama.tokenizer.pad_token = llama.tokenizer.eos_token
    trainer = trl.SFTTrainer(
        model=llama.model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path),
            per_device_eval_batch_size=6,
            bf16=False,
            use_cpu=True,
            report_to=[],
            completion_only_loss=True,
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(texts),
        eval_dataset=datasets.Dataset.from_list(texts),
        processing_class=llama.tokenizer,
    )
    found = summed_loss(llama, rows) / sum(len(row.response) for row in rows)
    assert float(found) == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)


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
    training_sets = TrainingSets.of(read(write_pool(4)), PromptFormat(lm.tokenizer), lm.context)
    tuner = FineTuner(lm, Recipe("qlora", learning_rate=1e-2, batch=4, epochs=1))
    plan = schedule(training_sets.lengths(list(training_sets.rows)), Measure(steps=30), 4, 0)
    with tuner.trained(training_sets.rows, plan, 0) as losses:
        assert losses[-1] < losses[0] - 0.5
    assert {value.dtype for value in tuner._trainable.parameters.values()} == {torch.float32}
