"""Beside an exported file, what to start its trainer with: a config for axolotl and LLaMA-Factory, ten lines for TRL."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nncift.core.fingerprints import fingerprint
from nncift.core.texts import read_bytes
from nncift.errors import UsageError
from nncift.storage.atomic import write_text

_ON_THE_HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Names of ours for models that the hub has under its own."""


MOST_BYTES = 1 << 24
"""Of a file beside an export, and of a chat template."""

_SIGNED = re.compile(r"(?:<!--|#) written by nncift export: ([0-9a-f]{16})(?: -->)?\n\Z")


def write_beside(path: Path, text: str) -> None:
    """Write a file beside an export, with a last line by which `check_is_ours` knows it while nobody has changed it."""
    # As it is written: names of files may be no text.
    text = text.encode("utf-8", "backslashreplace").decode()
    sign = f"written by nncift export: {fingerprint(text)}"
    write_text(path, text + (f"<!-- {sign} -->\n" if path.suffix == ".md" else f"# {sign}\n"))


def check_is_ours(*paths: Path) -> None:
    """Raise UsageError where a file that would be written beside an export is there and is not what an export left."""
    for path in paths:
        if not path.exists():
            continue
        if not _is_ours(path):
            raise UsageError(
                f"{str(path)!r}, which goes with the exported file, is there and is not what an export left; move it away, or "
                "give another --out"
            )


def _is_ours(path: Path) -> bool:
    """Tell whether a file ends with the line of an export, and is as that wrote it."""
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8")
    except (OSError, ValueError):
        return False
    signed = _SIGNED.search(text)
    return signed is not None and fingerprint(text[: signed.start()]) == signed[1]


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
            return f"openai api files.create -f {shlex.quote(str(self.data))} -p fine-tune"
        command = {"trl": "python", "axolotl": "axolotl train", "llamafactory": "llamafactory-cli train"}[self.to]
        # Names in the file are relative to where the trainer is started.
        where = f"cd {shlex.quote(str(self.data.parent))} && " if self.data.parent != Path() else ""
        return f"{where}{command} {shlex.quote(self.file.name)}"

    @property
    def _model(self) -> str:
        """The model's name as a trainer that is started elsewhere finds it."""
        if self.model is None:
            return "org/model"
        folder = Path(self.model)
        return str(folder.resolve()) if folder.is_dir() else _ON_THE_HUB.get(self.model, self.model)

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
            f"trainer = {kind}Trainer(model={self._model!r}, args=config, train_dataset=rows)",
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
            "base_model": self._model,
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
            "model_name_or_path": self._model,
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
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=4096)


_GENERATION = re.compile(r"\{%-?\s*generation\b")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


def has_generation_marks(model: str | None) -> bool | None:
    """Tell whether the chat template of a model in a local folder marks what the assistant says; None where that is not known."""
    if model is None or not Path(model).is_dir():
        return None
    # What a tokenizer has in a file of its own counts before what its settings hold.
    for file in (Path(model) / name for name in _TEMPLATES):
        try:
            text = read_bytes(file, MOST_BYTES).decode("utf-8", "replace") if file.is_file() else ""
        except (OSError, ValueError):
            return None
        if "{%" in text:
            return bool(_GENERATION.search(text))
    return None
