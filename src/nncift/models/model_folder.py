"""What the files of a model's folder name, followed to its end: layers of encoders, parts of routers, shards of weights.

Only what lies in the folder itself is ever loaded, so that what is loaded is what is hashed.
"""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nncift.core.texts import first_line, parsed, parsed_file
from nncift.errors import ResourceError

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers")
"""What configurations call the number of layers."""

MOST_TIMES, PACKED, SPARE_NUMBERS = 4, 16, 1 << 24
"""How many times the numbers of all weights a model may have by its configuration, how many one number of a quantised model may
stand for, and how many it may have in any case: parts of small models are not in every file of weights."""

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle")
ROUTERS = ("router_config.json", "config.json")
"""Files in which a layer that has layers names them; the second by its entry `types`."""

MOST_BYTES = 1 << 27
"""Of a file of names; more is none."""

_OURS, _ACTIVATION = "sentence_transformers.", "activation_function"

_CLASSES = frozenset(
    "Transformer Pooling Normalize Dense Dropout LayerNorm Router Asym StaticEmbedding WeightedLayerPooling LSTM CNN".split()
)
"""Layers of encoders that read nothing but files of their own folders."""

_ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_PLAIN = frozenset(
    "padding_side truncation_side model_max_length max_length padding truncation add_eos_token torch_dtype dtype use_cache "
    "is_causal attn_implementation add_pooling_layer do_lower_case".split()
)
"""What the file of a transformer layer hands on to transformers, and what of it neither fetches nor runs anything."""

_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
_BUILT_IN = frozenset({"eager", "sdpa", "flex_attention", "paged|eager", "paged|sdpa", "batched_mm", "grouped_mm"})
"""Entries of a configuration that choose kernels, and those that come with torch or transformers."""


def layer_folders(folder: Path) -> list[Path]:
    """Return the folders of an encoder's layers, those of routers too, each once; the encoder's own is not among them.

    Raises ResourceError for a file that cannot be read, for a layer elsewhere, and for one whose class is code of its own.
    """
    found: dict[Path, None] = {}
    for name, kind in _layers(folder):
        _check_class(folder, kind)
        if name:
            found |= dict.fromkeys(_with_parts(folder, name, folder))
    return list(found)


def check_no_code(folder: Path) -> None:
    """Raise ResourceError for an encoder that brings code, or weights that only unpickling opens.

    sentence-transformers imports the classes that the files of a local folder name, and opens the pickles of its layers.
    """
    if (folder / "adapter_config.json").exists():
        raise ResourceError(
            f"the encoder {str(folder)!r} is a PEFT adapter; merge it into its base (merge_and_unload) and give that folder"
        )
    # Also those that are named as layers and that no file names.
    layers = list(dict.fromkeys([*layer_folders(folder), *(path for path in folder.glob("*_*") if path.is_dir())]))
    # A layer that lies in the encoder's own folder, behind the transformer, takes its weights from there.
    if any(not name for name, _ in _layers(folder)[1:]):
        layers.append(folder)
    for layer in dict.fromkeys([folder, *layers]):
        _check_arguments(layer)
    for layer in layers:
        pickled = sorted(path for path in layer.iterdir() if path.suffix in PICKLES)
        if pickled:
            raise ResourceError(
                f"the encoder {str(folder)!r} keeps weights in {pickled[0].name!r}, a pickle, which nncift never opens; convert "
                "it to safetensors"
            )
        about = _json(layer / "config.json", {}) if layer != folder else {}
        activation = about.get(_ACTIVATION) if isinstance(about, dict) else None
        if activation is not None and not str(activation).startswith("torch.nn."):
            raise ResourceError(
                f"the encoder {str(folder)!r} names the function {str(activation)[:80]!r}, which is code of its own, and nncift "
                "runs none; expected one of torch.nn"
            )


def _check_arguments(layer: Path) -> None:
    """Raise ResourceError where a transformer layer's own file hands on more than how texts are read."""
    for file in sorted(layer.glob("sentence_*_config.json")):
        about = _json(file, {})
        if not isinstance(about, dict):
            continue
        given = {name for part in _ARGUMENTS for name in (about.get(part) or {})} - _PLAIN
        given |= {"tokenizer_name_or_path"} & {name for name, value in about.items() if value is not None}
        if given:
            raise ResourceError(
                f"{str(file)!r} gives {min(given)[:80]!r} to transformers, which may fetch or run what is elsewhere; take it out"
            )
        _check_kernels(about, file)


def check_shards(folder: Path) -> None:
    """Raise ResourceError where an index of weights names a file that is not in the folder itself."""
    for index in sorted(folder.glob("*.index.json")):
        about = _json(index, {})
        shards = about.get("weight_map", {}) if isinstance(about, dict) else None
        if not isinstance(shards, dict):
            raise ResourceError(f"{str(index)!r} holds no weight_map; save the model again")
        for name in dict.fromkeys(map(str, shards.values())):
            _check_name(name, index)


def check_config(folder: Path) -> None:
    """Raise ResourceError where a configuration asks for far more than the weights are: it would be built before it fails.

    Compared with the headers of the weights: layers with the number of tensors, the embedding with the numbers that they hold.
    """
    about = _json(folder / "config.json", {})
    if not isinstance(about, dict):
        return
    _check_kernels(about, folder / "config.json")
    if (weights := about.get("transformers_weights")) is not None:
        _check_name(str(weights), folder / "config.json")
    if not any(folder.glob("*.safetensors")):
        return
    tensors, numbers = _weights(folder)
    numbers *= PACKED if about.get("quantization_config") else 1
    if "model_type" not in about:
        _check_layer(folder, about, numbers)
    for part in (
        about,
        *(value for name, value in about.items() if name.endswith("_config") and isinstance(value, dict)),
    ):
        for name in LAYERS:
            if _whole(part.get(name)) > tensors:
                raise ResourceError(
                    f"the configuration of {str(folder)!r} says {name} = {part[name]}, and its weights are {tensors:,} tensors; "
                    "save the model again"
                )
        embedding = _whole(part.get("vocab_size")) * _whole(part.get("hidden_size"))
        if embedding > MOST_TIMES * numbers:
            raise ResourceError(
                f"the configuration of {str(folder)!r} says vocab_size = {part['vocab_size']} and hidden_size = "
                f"{part['hidden_size']}, and its weights hold {numbers:,} numbers; save the model again"
            )


def _check_layer(folder: Path, about: dict[str, Any], numbers: int) -> None:
    """Raise ResourceError where the sizes of an encoder's layer, which is no model, ask for more than its weights are."""
    sizes = sorted((size, name) for name, size in about.items() if isinstance(size, int))[-2:]
    if math.prod(size for size, _ in sizes) > MOST_TIMES * numbers + SPARE_NUMBERS:
        raise ResourceError(
            f"the configuration of {str(folder)!r} says {' and '.join(f'{name} = {size}' for size, name in sizes)}, and its "
            f"weights hold {numbers:,} numbers; save the encoder again"
        )


def check_built(folder: Path, auto: Any) -> None:
    """Raise ResourceError where what a configuration builds has far more numbers than the weights: memory is taken for all.

    auto: the class of transformers that builds it. It is built on no device, after `check_config`, which bounds its layers.
    Raises what transformers raises for a configuration that it cannot read.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    numbers = _weights(folder)[1] * (PACKED if getattr(config, "quantization_config", None) else 1)
    check_numbers(config, auto, numbers, folder)


def check_numbers(config: Any, auto: Any, numbers: int, of: Path) -> None:
    """Raise ResourceError where a configuration builds far more numbers than there are. of: the file or folder of both."""
    import torch

    with torch.device("meta"):
        built = auto.from_config(config, trust_remote_code=False)
    asked = sum(tensor.numel() for tensor in (*built.parameters(), *built.buffers()))
    if asked > MOST_TIMES * numbers + SPARE_NUMBERS:
        raise ResourceError(
            f"the configuration of {str(of)!r} is of a model of {asked:,} numbers, and its weights hold {numbers:,}; save "
            "the model again"
        )


def _check_kernels(about: Any, file: Path) -> None:
    """Raise ResourceError where a configuration, or a part of it, chooses kernels that would be fetched, and then run."""
    # Without recursion: a file may be nested as deep as the reader of JSON goes.
    left = [about]
    while left:
        value = left.pop()
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for name, chosen in value.items() if isinstance(value, dict) else ():
            if any(part in name for part in _IMPLEMENTATIONS):
                for one in chosen.values() if isinstance(chosen, dict) else (chosen,):
                    _check_kernel(one, file)


def _check_kernel(name: Any, file: Path) -> None:
    if name is None or name in _BUILT_IN:
        return
    # Without this package transformers fetches a stand-in.
    if str(name).startswith("flash_attention_") and importlib.util.find_spec("flash_attn") is not None:
        return
    raise ResourceError(
        f"{str(file)!r} asks for the kernel {str(name)[:80]!r}, which is not here, and a file decides no download; take the "
        "entry out, or write 'sdpa'"
    )


def _weights(folder: Path) -> tuple[int, int]:
    """Return how many tensors the files of weights hold, and how many numbers."""
    found = [shape for file in sorted(folder.glob("*.safetensors")) for shape in shapes(file)]
    return len(found), sum(map(math.prod, found))


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def shapes(file: Path) -> list[list[int]]:
    """Return the shapes of the tensors in a file of weights, from its header."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MOST_BYTES:
                raise ValueError(f"its header has more than {MOST_BYTES >> 20} MiB")
            header = parsed(stream.read(length).decode("utf-8"))
        return [[int(size) for size in about["shape"]] for name, about in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ResourceError(f"the weights {str(file)!r} cannot be loaded: {first_line(error)}") from error


def _with_parts(folder: Path, name: str, root: Path) -> Iterator[Path]:
    """Yield a layer's folder and those of its parts."""
    _check_name(name, folder)
    layer = folder / name
    if not layer.is_dir():
        return
    if layer.resolve().parent != folder.resolve():
        raise ResourceError(
            f"the layer {name!r} of the encoder {str(root)!r} is a link to elsewhere; copy it into its place"
        )
    yield layer
    for file in ROUTERS:
        about = _json(layer / file, {})
        types = about.get("types") if isinstance(about, dict) else None
        for part, kind in types.items() if isinstance(types, dict) else ():
            _check_class(root, kind)
            yield from _with_parts(layer, str(part), root)


def _layers(folder: Path) -> list[tuple[str, Any]]:
    named = folder / "modules.json"
    layers = _json(named, [])
    try:
        return [(str(layer.get("path", "")), layer["type"]) for layer in layers]
    except (AttributeError, KeyError, TypeError) as error:
        raise ResourceError(f"{str(named)!r} cannot be read: it holds no list of layers with a type") from error


def _check_class(folder: Path, kind: Any) -> None:
    if not str(kind).startswith(_OURS) or str(kind).rpartition(".")[2] not in _CLASSES:
        raise ResourceError(
            f"the encoder {str(folder)!r} names the module {str(kind)[:80]!r}, which is code of its own or reads files "
            f"elsewhere; expected modules of sentence_transformers: {', '.join(sorted(_CLASSES))}"
        )


def _check_name(name: str, where: Path) -> None:
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0:"):
        raise ResourceError(
            f"{str(where)!r} names {name[:80]!r}, which is no name in its own folder; nncift loads nothing from elsewhere. Save "
            "the model again"
        )


def _json(path: Path, default: Any) -> Any:
    try:
        if not path.exists():
            return default
        return parsed_file(path, MOST_BYTES)
    except (OSError, ValueError, RecursionError) as error:
        raise ResourceError(f"{str(path)!r} cannot be loaded: {first_line(error)}") from error
