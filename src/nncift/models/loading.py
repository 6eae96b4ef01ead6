"""Loading of causal language models: where they lie, on which device and in which precision, and how long their context is."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.core.memory import check_torch, pass_on
from nncift.core.texts import first_line as first_line
from nncift.core.threads import wait_passively
from nncift.data.tokenizer_files import check_reads, check_tokenizer, native_errors
from nncift.errors import ResourceError, UsageError
from nncift.models import adapters
from nncift.models.model_folder import check_built, check_config, check_shards, layer_folders
from nncift.models.packaged import PACKAGES, converted, gguf_of, identity
from nncift.models.quiet import without_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelSource:
    """A model to be loaded later, with what `CausalLM.load` takes beyond a teacher's own settings; `str` gives its name.

    load_in: 4bit (NF4) or 8bit through bitsandbytes. device_map: `auto` spreads a model over all devices.
    """

    name: str
    load_in: str | None = None
    device_map: str | None = None

    def __str__(self) -> str:
        return self.name


@without_bars()
def load_model(
    source: ModelSource, folder: Path, device: str, dtype: Any, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a folder, on their device, in evaluation mode, from safetensors only.

    The base of an adapter is named by a file: leave to run code of its own is not given to it. Raises ResourceError where
    something is missing or damaged, UsageError for an unknown placing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    placing = _placing(source, device, dtype)
    weights = folder
    check_shards(folder)
    if adapters.is_adapter(folder):
        weights, trust_remote_code = adapters.base_of(folder), False
        check_shards(weights)
        if source.load_in:
            raise UsageError(f"--load-in {source.load_in} does not go with an adapter; merge it into its base first")
    check_config(weights)
    check_tokenizer(folder)
    check_tokenizer(weights)
    # A damaged file can raise anything here: safetensors and tokenizers have exceptions outside all families.
    try:
        own = (folder / "tokenizer_config.json").is_file()
        with native_errors():
            tokenizer = AutoTokenizer.from_pretrained(folder if own else weights, trust_remote_code=trust_remote_code)
        check_reads(lambda text: tokenizer(text, add_special_tokens=False))
        if not trust_remote_code:
            check_built(weights, AutoModelForCausalLM)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            weights,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **placing,
        )
    except Exception as error:
        pass_on(error)
        raise ResourceError(
            f"the model {source.name!r} cannot be loaded: {first_line(error)}. Expected a Hugging Face causal model "
            "with config.json, *.safetensors and tokenizer files"
        ) from error
    model, absent = loaded[0], sorted(loaded[1]["missing_keys"])
    if absent:
        raise ResourceError(
            f"the model {source.name!r} lacks {len(absent)} of its weights, such as {absent[0]!r}, and random numbers would "
            "stand in for them; expected the weights of a causal language model (an encoder has no head, a lone adapter "
            "no base)"
        )
    if weights != folder:
        model = adapters.applied(model, folder)
    try:
        model.eval().requires_grad_(False)
        if not placing:
            model.to(torch.device(device))
    except RuntimeError as error:
        raise ResourceError(f"the model {source.name!r} cannot be put on {device}: {first_line(error)}") from error
    return model, tokenizer


def _placing(source: ModelSource, device: str, dtype: Any) -> dict[str, Any]:
    """Return what transformers needs to quantise or spread a model. Raises UsageError or ResourceError where it cannot."""
    import torch

    check_packages(source)
    found: dict[str, Any] = {}
    if source.load_in:
        from transformers import BitsAndBytesConfig

        compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute} if source.load_in == "4bit" else {}
        found["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=source.load_in == "4bit", load_in_8bit=source.load_in == "8bit", **four
        )
        found["device_map"] = {"": device}
    if source.device_map:
        if device == "cpu":
            raise ResourceError("--device-map auto spreads a model over GPUs, and there is none here; leave it out")
        found["device_map"] = "auto"
    return found


def check_packages(source: ModelSource) -> None:
    """Raise UsageError for an unknown placing of a model, ResourceError where packages for it are missing; nothing is loaded."""
    if source.load_in not in (None, "4bit", "8bit"):
        raise UsageError(f"--load-in is 4bit or 8bit, not {source.load_in!r}")
    if source.device_map not in (None, "auto"):
        raise UsageError(f"--device-map is auto, not {source.device_map!r}")
    needed = {"bitsandbytes": source.load_in, "accelerate": source.load_in or source.device_map}
    for package, wanted in needed.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise ResourceError(f"--load-in and --device-map need {package}: pip install {package}")


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def go_offline() -> None:
    """Keep this process and its libraries off the network for good: what is neither a local file nor cached is refused."""
    for name in OFFLINE:
        os.environ[name] = "1"
    # Both read the environment when they are loaded, which may have happened.
    for module, constant in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
        if module in sys.modules:
            setattr(sys.modules[module], constant, True)


def is_offline() -> bool:
    """Tell whether the hub may not be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def check_model(name: str | Path) -> None:
    """Raise ResourceError where a model cannot be had; of a hub's only the small files are fetched, and nothing is converted."""
    if gguf_of(name) is None:
        locate(name, weights=False)


def is_here(name: str | Path) -> bool:
    """Tell whether a model lies on this machine: a folder, a package, a GGUF file, or in the hub's cache. Nothing is fetched."""
    try:
        if gguf_of(name) is not None:
            return True
    except ResourceError:
        return False
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        try:
            folder = Path(snapshot_download(str(name), local_files_only=True))
        except (OSError, ValueError, HFValidationError):
            return False
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def locate(name: str | Path, *, weights: bool = True) -> Path:
    """Return the local folder of a model: a directory, or the snapshot of a hub repository (fetched when allowed).

    Of a packaged model or a GGUF file it is the converted folder (see `packaged`). weights: False = a hub's small files are
    enough. Raises ResourceError where none exists.
    """
    if (gguf := gguf_of(name)) is not None:
        return converted(gguf)
    folder = Path(name)
    if folder.is_dir():
        if adapters.is_adapter(folder):
            adapters.base_of(folder)
            return folder
        if not (folder / "config.json").is_file():
            raise ResourceError(
                f"{str(name)!r} is a directory without config.json; expected a Hugging Face model folder"
            )
        if not any(folder.glob("*.safetensors")):
            raise ResourceError(
                f"the model folder {str(name)!r} holds no *.safetensors; convert its weights "
                "(model.save_pretrained(...) writes safetensors)"
            )
        return folder
    if str(name).startswith((".", "/", "~")):
        raise ResourceError(f"there is no model folder {str(name)!r}; check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.json", "*.model", "*.txt", "*.jinja", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(str(name), allow_patterns=wanted))
    except (OSError, ValueError, HFValidationError) as error:
        if is_offline():
            raise ResourceError(
                f"{str(name)!r} is no local directory and is not in the local cache, and the hub may not be asked (--offline or "
                "HF_HUB_OFFLINE); fetch it once without, or give a folder"
            ) from error
        if isinstance(error, HFValidationError):
            raise ResourceError(
                f"{str(name)!r} is no local directory, and no name of the hub either, which is org/name; check the path"
            ) from error
        near = difflib.get_close_matches(str(name), PACKAGES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ResourceError(
            f"{str(name)!r} is no local directory, and the hub did not give a model of that name; {hint}{first_line(error)}"
        ) from error


FETCH = "give --fetch (fetch=True in Python) to fetch it from the hub"


def check_is_local(name: str, by: str, *, fetch: bool = False, yes: str = FETCH) -> None:
    """Raise UsageError where a model that a file names would be fetched from the hub without anybody's yes.

    by: whose file it is. fetch: the yes of this call. yes: how to give it.
    """
    if fetch or name in PACKAGES or os.path.isdir(name) or Path(name).suffix.lower() == ".gguf":
        return
    if adapters.cached(name) is None:
        raise UsageError(
            f"{by} names {name!r}, which is neither a folder here nor in the local cache, and a file decides no download. If you "
            f"trust it, {yes}"
        )


def fingerprint(folder: Path) -> str:
    """Hash the weights, configuration, tokenizer and code of a model folder; 16 hex digits.

    A sentence encoder keeps its layers in folders inside, and they count too. What was converted from a GGUF file is
    known by that file, an adapter by itself and its base.
    """
    if (known := identity(folder)) is not None:
        return known
    digest = hashlib.sha256()
    layers = {path for layer in layer_folders(folder) for path in layer.iterdir()}
    for path in sorted({*folder.iterdir(), *folder.glob("[0-9]*_*/*"), *layers}):
        if path.suffix in {".safetensors", ".json", ".model", ".jinja", ".txt", ".py"} and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    if adapters.is_adapter(folder):
        digest.update(fingerprint(adapters.base_of(folder)).encode())
    return digest.hexdigest()[:16]


def fingerprint_of_loaded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash weights, configuration and tokenizer of what is in memory; 16 hex digits."""
    import torch

    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    digest.update(repr((tokenizer.special_tokens_map, tokenizer.chat_template)).encode())
    return digest.hexdigest()[:16]


def resolve_device(device: str) -> str:
    """Return the device that `auto` or a name stands for. Raises ResourceError for one that is not there."""
    check_torch()
    wait_passively()
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"--device {device!r} is unknown; use auto, cpu, cuda, cuda:0 or mps") from error
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {device!r} is unknown; use auto, cpu, cuda, cuda:0 or mps")
    index = torch.device(device).index or 0
    missing = (kind == "cuda" and index >= torch.cuda.device_count()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ResourceError(f"--device {device} was asked for, but this machine or this build of torch has none")
    return device


def resolve_dtype(dtype: str, device: str) -> Any:
    """Return the torch dtype for a name; `auto` is float32 on CPU, where half precision is several times slower."""
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        return torch.float32 if device.startswith("cpu") else "auto"
    if dtype not in known:
        raise UsageError(f"--dtype {dtype!r} is unknown; use auto, {', '.join(known)}")
    return known[dtype]


def context_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens that one sequence may have; 4096 where neither model nor tokenizer names a limit."""
    config = model.config.get_text_config()
    limits = [
        getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    ]
    limits.append(tokenizer.model_max_length)
    # Long-context rotary embeddings change all positions once a sequence, padding included, outgrows the first limit.
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limits.append(rope.get("original_max_position_embeddings"))
    usable = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < 10**9]
    return min(usable, default=4096)
