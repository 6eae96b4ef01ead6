"""PEFT adapter folders as models: an adapter is applied to the base that its configuration names, where that is at hand.

Nothing is fetched for it: a file decides no download. The adapter is merged into the base's weights, so that all that follows
sees one plain model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.core.memory import pass_on
from nncift.core.texts import first_line, parsed_file
from nncift.errors import ResourceError
from nncift.models.model_folder import shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SIZES = ("r", "num_virtual_tokens", "token_dim", "encoder_hidden_size", "num_layers", "num_attention_heads")
"""Entries of a configuration that say how large parts of an adapter are."""

MOST_BYTES = 1 << 20
"""Of a configuration; more is none."""

KINDS = frozenset("LORA ADALORA IA3 LOHA LOKR OFT BOFT VERA HRA LN_TUNING BONE MISS FOURIERFT".split())
"""Kinds that lie on weights and read no file beside their own; prompts and mixtures of adapters fetch what they name."""

ALTERING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of an adapter that changed the weights of its base, by the start of their names."""

PATTERNS = (
    "target_modules",
    "exclude_modules",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "target_parameters",
)
"""Entries that hold expressions, as texts, in lists or as names."""

SECONDS = 20
MATCHING = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.match(rf"(.*\\.)?({pattern})($|\\..*)", name), re.fullmatch(pattern, name)
"""
"""What matches patterns with names as peft does."""


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
        if os.path.isdir(place) and (place / "config.json").is_file() and place.resolve() != folder.resolve():
            if is_adapter(place):
                raise ResourceError(
                    f"the base of the adapter {str(folder)!r} is {str(place)!r}, which is or holds an adapter itself; merge that "
                    "into its base first"
                )
            return place
    here = cached(name, revision)
    if here is None:
        raise ResourceError(
            f"{str(folder)!r} is a PEFT adapter, and its base {name[:80]!r} is neither a folder here nor in the local cache; "
            f"fetch it once (hf download {name[:80]}) or merge the adapter into it (merge_and_unload, save_pretrained) and give "
            "that folder"
        )
    return here


def applied(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return a base model with an adapter merged into its weights. Raises ResourceError where the two do not fit together."""
    from peft import PeftConfig, PeftModel

    try:
        check_adapter(folder, [name for name, _ in model.named_modules()])
        config: Any = PeftConfig.from_pretrained(str(folder))
        began = config.init_lora_weights if hasattr(config, "init_lora_weights") else True
        if isinstance(began, str) and began.lower().startswith(ALTERING):
            raise ResourceError(
                f"the adapter {str(folder)!r} began as {began[:40]!r}, which changed the weights of its base; convert it (peft's "
                "path_initial_model_for_weight_conversion), or merge it into its base and give that folder"
            )
        # How other weights began does not matter to those that are loaded, and some beginnings open files.
        config.init_lora_weights = True
        # Without memory of its own: the weights of the file become the adapter's. peft cannot do that for layers that it repeats.
        lean = not getattr(config, "layer_replication", None)
        adapted: Any = PeftModel(model, config, adapter_name="default", low_cpu_mem_usage=lean)
        left = adapted.load_adapter(str(folder), adapter_name="default", low_cpu_mem_usage=lean)
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


def check_adapter(folder: Path, modules: Sequence[str]) -> None:
    """Raise ResourceError for an adapter that peft cannot read within bounds, or would read together with what lies elsewhere.

    modules: the names in the model, which an adapter's patterns are matched against.
    """
    about = _read(folder)
    kind = str(about.get("peft_type"))
    if kind not in KINDS or about.get("megatron_config"):
        raise ResourceError(
            f"the adapter {str(folder)!r} is of the kind {kind[:40]!r}{' (megatron)' if kind in KINDS else ''}, which may read "
            f"files and modules elsewhere; nncift takes {', '.join(sorted(KINDS))}. Merge it into its base, and give that folder"
        )
    _check_sizes(folder, about)
    _check_patterns(folder, about, modules)


def _check_sizes(folder: Path, about: Mapping[str, Any]) -> None:
    """Raise ResourceError where an adapter's configuration asks for larger or more parts than its weights are."""
    weights = shapes(folder / WEIGHTS)
    largest = max((size for shape in weights for size in shape), default=0)
    ranks, copies = about.get("rank_pattern"), about.get("layer_replication")
    asked = {name: about.get(name) for name in SIZES} | (ranks if isinstance(ranks, dict) else {})
    for name, size in asked.items():
        if isinstance(size, int) and size > largest:
            raise ResourceError(
                f"the adapter {str(folder)!r} says {name} = {size} in {CONFIG}, and the largest side of its weights is "
                f"{largest:,}; save it again"
            )
    if isinstance(copies, list) and sum(abs(end - start) for start, end in copies) > len(weights):
        raise ResourceError(
            f"the adapter {str(folder)!r} asks for more layers (layer_replication in {CONFIG}) than its weights are tensors, "
            f"{len(weights):,}; save it again"
        )


def _check_patterns(folder: Path, about: Mapping[str, Any], modules: Sequence[str]) -> None:
    """Raise ResourceError where matching an adapter's patterns takes longer than `SECONDS`: some take for ever.

    They are tried in a process of their own, since nothing else can stop an expression.
    """
    found = [about.get(name) for name in PATTERNS]
    texts = {
        text for part in found for text in ([part] if isinstance(part, str) else part or ()) if isinstance(text, str)
    }
    patterns = sorted(text for text in texts if any(sign in text for sign in "*+{"))
    if not patterns:
        return
    given = json.dumps([patterns, list(modules)])
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", MATCHING],
            input=given,
            text=True,
            timeout=SECONDS,
            check=True,
            capture_output=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise ResourceError(
            f"the adapter {str(folder)!r} chooses modules by an expression that cannot be matched within {SECONDS} s, such as "
            f"{patterns[0][:80]!r}; name the modules in {CONFIG}"
        ) from error


def _read(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration. Raises ResourceError where it cannot be read."""
    file = folder / CONFIG
    try:
        config = parsed_file(file, MOST_BYTES)
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ResourceError(f"{str(file)!r} cannot be read: {first_line(error)}") from error
    return config


def _named(folder: Path) -> tuple[str, str | None]:
    """Return name and revision of the base."""
    config = _read(folder)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
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
