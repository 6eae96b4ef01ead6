"""PEFT adapter folders as models: an adapter is applied to the base that its configuration names, where that is at hand.

Nothing is fetched for it: a file decides no download. The adapter is merged into the base's weights, so that all that follows
sees one plain model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.core.memory import pass_on
from nncift.core.texts import first_line
from nncift.errors import ResourceError
from nncift.models.model_folder import shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SIZES = ("r", "num_virtual_tokens", "token_dim", "encoder_hidden_size", "num_layers", "num_attention_heads")
"""Entries of a configuration that say how large parts of an adapter are."""

MOST_BYTES = 1 << 20
"""Of a configuration; more is none."""


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> Path:
    """Return the folder of the model that an adapter was trained on: a local folder, or what the hub's cache holds of it.

    Raises ResourceError where it is not at hand or an adapter itself, and where whole weights lie beside the adapter.
    """
    if any(folder.glob("model*.safetensors")):
        raise ResourceError(
            f"the model folder {str(folder)!r} holds whole weights and an adapter ({CONFIG}); with the adapter it is another "
            "model. Move one of them to a folder of its own, and give that"
        )
    if not (folder / WEIGHTS).is_file():
        raise ResourceError(
            f"the adapter folder {str(folder)!r} holds no {WEIGHTS}; nncift opens no pickle. Save it again "
            "(model.save_pretrained(...) writes safetensors)"
        )
    name, revision = _named(folder)
    for place in (Path(name), folder / name, folder.parent / Path(name).name):
        if place.is_dir() and (place / "config.json").is_file() and place.resolve() != folder.resolve():
            if is_adapter(place):
                raise ResourceError(
                    f"the base of the adapter {str(folder)!r} is {str(place)!r}, which is or holds an adapter itself; merge that "
                    "into its base first"
                )
            return place
    here = cached(name, revision)
    if here is None:
        raise ResourceError(
            f"{str(folder)!r} is a PEFT adapter, and its base {name!r} is neither a folder here nor in the local cache; fetch it "
            f"once (hf download {name}) or merge the adapter into it (merge_and_unload, save_pretrained) and give that folder"
        )
    return here


def applied(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return a base model with an adapter merged into its weights. Raises ResourceError where the two do not fit together."""
    from peft import PeftConfig, PeftModel

    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        if getattr(config, "megatron_config", None):
            raise ResourceError(
                f"the adapter {str(folder)!r} asks for a module by name (megatron), and nncift runs none"
            )
        _check_sizes(folder)
        # How weights began does not matter to those that are loaded, and some beginnings open files.
        config.init_lora_weights = True
        adapted: Any = PeftModel(model, config, adapter_name="default")
        left = adapted.load_adapter(str(folder), adapter_name="default")
        odd = sorted({*left.missing_keys, *left.unexpected_keys})
        if odd:
            raise ResourceError(
                f"the adapter {str(folder)!r} does not fit its base: {len(odd)} weights have no counterpart, as {odd[0]!r}"
            )
        merged: PreTrainedModel = adapted.merge_and_unload()
    except ResourceError:
        raise
    except Exception as error:
        pass_on(error)
        raise ResourceError(
            f"the adapter {str(folder)!r} cannot be applied to its base: {first_line(error)}; merge it (merge_and_unload, "
            "save_pretrained) and give that folder"
        ) from error
    return merged


def _check_sizes(folder: Path) -> None:
    """Raise ResourceError where an adapter's configuration asks for larger parts than its weights are."""
    about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    largest = max((size for shape in shapes(folder / WEIGHTS) for size in shape), default=0)
    ranks = about.get("rank_pattern")
    asked = {name: about.get(name) for name in SIZES} | (ranks if isinstance(ranks, dict) else {})
    for name, size in asked.items():
        if isinstance(size, int) and size > largest:
            raise ResourceError(
                f"the adapter {str(folder)!r} says {name} = {size} in {CONFIG}, and the largest side of its weights is "
                f"{largest:,}; save it again"
            )


def _named(folder: Path) -> tuple[str, str | None]:
    """Return name and revision of the base."""
    file = folder / CONFIG
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        config = json.loads(file.read_text(encoding="utf-8"))
        name, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise ResourceError(f"{str(file)!r} cannot be read: {first_line(error)}") from error
    if not isinstance(name, str) or not name or "\0" in name:
        raise ResourceError(
            f"the adapter {str(folder)!r} does not name its base (base_model_name_or_path in {CONFIG}); merge it into its base "
            "and give that folder"
        )
    return name, revision if isinstance(revision, str) else None


def cached(name: str, revision: str | None = None) -> Path | None:
    """Return the folder that the hub's local cache holds of a repository, None where it holds none. Asks no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError, HFValidationError):
        return None
