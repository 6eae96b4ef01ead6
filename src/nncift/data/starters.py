"""Beside an exported file, what to start its trainer with: a config for axolotl and LLaMA-Factory, ten lines for TRL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Start:
    """What a starting point says. model: None where the run has none. options: what must be set for the rows to count as meant.

    pairs: the rows are pairs of answers. length: the trainer's limit in tokens.
    """

    to: str
    data: Path
    model: str | None
    options: dict[str, Any]
    pairs: bool = False
    length: int | None = None

    @property
    def file(self) -> Path | None:
        """Where it is written; None for OpenAI, which takes the file alone."""
        suffix = {"trl": "trl.py", "axolotl": "axolotl.yaml", "llamafactory": "llamafactory.yaml"}.get(self.to)
        return None if suffix is None else self.data.with_name(f"{self.data.stem}.{suffix}")

    @property
    def text(self) -> str:
        """What is written."""
        return {"trl": self._trl, "axolotl": self._axolotl, "llamafactory": self._llamafactory}[self.to]()

    @property
    def command(self) -> str:
        """What to type."""
        if self.file is None:
            return f"openai api files.create -f {self.data.name} -p fine-tune"
        return {
            "trl": f"python {self.file.name}",
            "axolotl": f"axolotl train {self.file.name}",
            "llamafactory": f"llamafactory-cli train {self.file.name}",
        }[self.to]

    def _trl(self) -> str:
        kind, short = ("DPO", "dpo") if self.pairs else ("SFT", "sft")
        settings = {"output_dir": f"{self.data.stem}-{short}", **self.options, "max_length": self.length or 2048}
        lines = [
            "from datasets import load_dataset",
            f"from trl import {kind}Config, {kind}Trainer",
            "",
            f'rows = load_dataset("json", data_files={str(self.data.name)!r}, split="train")',
            f"config = {kind}Config(",
            *(f"    {name}={value!r}," for name, value in settings.items()),
            ")",
            f"trainer = {kind}Trainer(model={self.model or 'org/model'!r}, args=config, train_dataset=rows)",
            "trainer.train()",
        ]
        return "\n".join(lines) + "\n"

    def _axolotl(self) -> str:
        data = {
            "path": self.data.name,
            "ds_type": "json",
            "type": "chat_template.default" if self.pairs else "chat_template",
        }
        config: dict[str, Any] = {
            "base_model": self.model or "org/model",
            "chat_template": "tokenizer_default",
            **({"rl": "dpo"} if self.pairs else {}),
            "datasets": [{**data, **self.options}],
            "sequence_len": self.length or 2048,
            "adapter": "lora",
            "lora_r": 16,
            "lora_alpha": 32,
            "lora_target_linear": True,
            "num_epochs": 3,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 8,
            "learning_rate": 0.0002,
            "output_dir": f"./{self.data.stem}-axolotl",
        }
        return _yaml(config)

    def _llamafactory(self) -> str:
        config: dict[str, Any] = {
            "model_name_or_path": self.model or "org/model",
            "stage": "dpo" if self.pairs else "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_target": "all",
            "dataset": self.data.stem,
            "dataset_dir": ".",
            "template": "default",
            "cutoff_len": self.length or 2048,
            **self.options,
            "num_train_epochs": 3.0,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 8,
            "learning_rate": 0.0002,
            "output_dir": f"./{self.data.stem}-llamafactory",
        }
        return (
            "# `template` is the name that LLaMA-Factory gives the model's chat template, such as llama3 or qwen.\n"
            + _yaml(config)
        )


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def has_generation_marks(model: str | None) -> bool | None:
    """Tell whether the chat template of a model in a local folder marks what the assistant says; None where that is not known."""
    if model is None or not Path(model).is_dir():
        return None
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        file = Path(model) / name
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            if "{% generation" in text or "{%- generation" in text:
                return True
    return False
