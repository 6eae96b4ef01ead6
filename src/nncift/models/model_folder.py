"""What the files of a model's folder name, followed to its end: layers of encoders, parts of routers, shards of weights.

Only what lies in the folder itself is ever loaded, so that what is loaded is what is hashed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nncift.core.texts import first_line
from nncift.errors import ResourceError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle")
ROUTERS = ("router_config.json", "config.json")
"""Files in which a layer that has layers names them; the second by its entry `types`."""

MOST_BYTES = 1 << 27
"""Of a file of names; more is none."""

_OURS, _ACTIVATION = "sentence_transformers.", "activation_function"


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
    # Also those that are named as layers and that no file names.
    layers = list(dict.fromkeys([*layer_folders(folder), *(path for path in folder.glob("*_*") if path.is_dir())]))
    # A layer that lies in the encoder's own folder, behind the transformer, takes its weights from there.
    if any(not name for name, _ in _layers(folder)[1:]):
        layers.append(folder)
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


def check_shards(folder: Path) -> None:
    """Raise ResourceError where an index of weights names a file that is not in the folder itself."""
    for index in sorted(folder.glob("*.index.json")):
        about = _json(index, {})
        shards = about.get("weight_map", {}) if isinstance(about, dict) else None
        if not isinstance(shards, dict):
            raise ResourceError(f"{str(index)!r} holds no weight_map; save the model again")
        for name in dict.fromkeys(map(str, shards.values())):
            _check_name(name, index)


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
    if not str(kind).startswith(_OURS):
        raise ResourceError(
            f"the encoder {str(folder)!r} names the module {str(kind)[:80]!r}, which is code of its own, and nncift runs none; "
            "expected modules of sentence_transformers"
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
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResourceError(f"{str(path)!r} cannot be read: {first_line(error)}") from error
