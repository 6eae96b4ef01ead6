"""Tokenizers of others: `tokenizer.json` is read before it is used, and tried before a row is.

Such a file is a program of replacements. It may make a thousand letters of one, again and again until memory ends, draw other
tokens every time, or stop in native code, which raises what no library names.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nncift.core.texts import first_line, parsed_file
from nncift.errors import ResourceError

FILE = "tokenizer.json"

MOST_BYTES = 1 << 27
"""Of a file; the largest vocabularies take 35 MB."""

MOST_GROWTH = 256
"""Characters or tokens that one character of a text may become. NFKC makes 18, of 33 bytes, of one, and byte-level pieces 4."""

MOST_FRAME = 64
"""Tokens that may be put around a text."""

MOST_LETTERS = 1_000
"""Letters of a word that WordPiece may look at, which takes time by their square; BERT's is 100."""

_PARTS = ("normalizers", "pretokenizers", "processors", "decoders")
"""Where sequences of steps keep them."""

_TRIED = ("Tell me about the sea.\n\n12 + 3 = 15", "<s>é中</s>")
"""Texts that a tokenizer has to read before rows are given to it."""

Step = Mapping[str, Any]


def check_tokenizer(folder: Path) -> None:
    """Raise ResourceError for a `tokenizer.json` that lets texts grow without bounds, or draws tokens at random."""
    path = folder / FILE
    try:
        if not path.is_file():
            return
        about = parsed_file(path, MOST_BYTES)
        for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            _check_growth(part, about.get(part))
        _check_model(about.get("model") or {})
    except (OSError, ValueError) as error:
        raise ResourceError(f"the tokenizer {str(path)!r} cannot be used: {first_line(error)}") from error
    except (KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ResourceError(
            f"the tokenizer {str(path)!r} cannot be used: it is not as the library tokenizers writes such a file"
        ) from error


@contextmanager
def native_errors() -> Iterator[None]:
    """Raise ValueError for what tokenizers ends in where its native code stops, which is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(first_line(error)) from error


def check_reads(read: Callable[[str], Any]) -> None:
    """Raise ValueError where a tokenizer cannot read plain texts. read: tokenises one, without special tokens."""
    for text in _TRIED:
        try:
            with native_errors():
                read(text)
        except Exception as error:
            raise ValueError(f"its tokenizer cannot read {text!r}: {first_line(error)}") from error


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of a folder or of a hub's name, of which no code is run. Raises ResourceError where it has none."""
    from transformers import AutoTokenizer

    if Path(name).is_dir():
        check_tokenizer(Path(name))
    try:
        with native_errors():
            tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        check_reads(lambda text: tokenizer(text, add_special_tokens=False))
    except Exception as error:  # damaged files raise exceptions outside all families
        raise ResourceError(f"--tokenizer {name!r} cannot be loaded: {first_line(error)}") from error
    return tokenizer


def load_file(path: Path) -> Any:
    """Return the tokenizer of a file `tokenizer.json` alone, which cuts and pads nothing. Raises ResourceError for a bad one."""
    from tokenizers import Tokenizer

    check_tokenizer(path.parent)
    try:
        with native_errors():
            made = Tokenizer.from_file(str(path))
        made.no_truncation()
        made.no_padding()
        check_reads(lambda text: made.encode(text, add_special_tokens=False))
    except Exception as error:
        raise ResourceError(f"the tokenizer {str(path)!r} cannot be used: {first_line(error)}") from error
    return made


def _check_growth(part: str, step: Step | None) -> None:
    """Raise ValueError where the steps of a part may make more than `MOST_GROWTH` of one character."""
    growth = 1.0
    for one in _steps(step):
        grows = _GROWTH.get(str(one.get("type")))
        growth *= 1.0 if grows is None else grows(one)
        if growth > MOST_GROWTH:
            raise ValueError(f"its {part} may make more than {MOST_GROWTH} characters of one, which no model's does")
        _check_frame(one)


def _steps(step: Step | None) -> Iterator[Step]:
    """Yield the steps of a part, those of sequences in their order."""
    if step is None:
        return
    inner = next((step[name] for name in _PARTS if name in step), None)
    if inner is None:
        yield step
        return
    for one in inner:
        yield from _steps(one)


def _replaced(step: Step) -> float:
    pattern, content = step["pattern"], str(step["content"])
    # An expression may find nothing at all, and then its content stands beside every character.
    if "String" not in pattern or not pattern["String"]:
        return 1.0 + len(content)
    return max(1.0, len(content) / len(pattern["String"]))


def _mapped(step: Step) -> float:
    """Return the bytes of the longest text that a compiled map puts in a character's place."""
    packed = base64.b64decode(step.get("precompiled_charsmap") or "")
    if len(packed) < 4:
        return 1.0
    (trie,) = struct.unpack_from("<I", packed)
    return float(max(1, *map(len, packed[4 + trie :].split(b"\0"))))


_GROWTH: Mapping[str, Callable[[Step], float]] = {
    "Replace": _replaced,
    "Prepend": lambda step: 1.0 + len(str(step["prepend"])),
    "Precompiled": _mapped,
    # Four bytes at most, each of which is a character.
    "ByteLevel": lambda step: 4.0,
    "TemplateProcessing": lambda step: float(max(1, sum("Sequence" in piece for piece in step["single"]))),
}
"""What one character may become by a step of a kind; others leave their number as it is, or nearly so."""


def _check_frame(step: Step) -> None:
    """Raise ValueError where a step puts more than `MOST_FRAME` tokens around a text."""
    if step.get("type") != "TemplateProcessing":
        return
    ids = {name: len(about["ids"]) for name, about in step.get("special_tokens", {}).items()}
    for name in ("single", "pair"):
        special = [piece["SpecialToken"]["id"] for piece in step[name] if "SpecialToken" in piece]
        if len(step[name]) > MOST_FRAME or sum(ids.get(one, 1) for one in special) > MOST_FRAME:
            raise ValueError(f"it puts more than {MOST_FRAME} tokens around a text, which no model's does")


def _check_model(model: Step) -> None:
    if model.get("dropout"):
        raise ValueError(f"it drops merges at random (dropout {model['dropout']}), and every reading would be another")
    letters = model.get("max_input_chars_per_word")
    if letters is not None and letters > MOST_LETTERS:
        raise ValueError(f"it looks at words of {letters:,} letters, and nncift at those of {MOST_LETTERS:,}")
