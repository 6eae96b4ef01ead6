"""Settings, studies and rating prompts are read alike: in proportion to their text, and without what lets them grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nncift import config
from nncift.cli.options import typed
from nncift.core.yaml_text import MOST_BYTES, parse_yaml
from nncift.errors import DataError, UsageError
from nncift.studies import grid
from nncift.teachers.rating import read_prompts

BOMBS = {
    "brackets": ("[" * 200_000, "nested more than 50"),
    "braces": ("{a: " * 50_000, "nested more than 50"),
    "questions": ("? " * 100_000, "nested more than 50"),
    "dashes": ("- " * 100_000, "nested more than 50"),
    "indents": ("".join(f"{' ' * depth}a:\n" for depth in range(200)), "nested more than 50"),
    "aliases": ("a: &a [1, 2]\nb: [*a, *a]\n", "alias"),
    "merges": ("a: &a {b: 1}\nc: {<<: *a}\n", "alias"),
    "twice": ("labels: 5%\nbudget: 3\nlabels: 9%\n", "the key 'labels' twice (line 3)"),
    "twice inside": ("option: {a: 1, a: 2}\n", "the key 'a' twice"),
    "an object": ("a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
    "digits": ("a: " + "9" * 5000, "digits"),
    "hexadecimal digits": ("a: 0x" + "f" * 5000, "digits"),
    "digits by sixties": ("a: 1" + ":1" * 5000, "digits"),
    "long": ("#" * (MOST_BYTES + 1), "more than 4 Mi"),
}

READERS: dict[str, Callable[[Path], object]] = {
    "settings": lambda path: config.resolve({}, path),
    "study": lambda path: grid.load(path, {}),
    "rating prompts": read_prompts,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_what_grows_is_refused(tmp_path: Path, reader: str, bomb: str) -> None:
    path, (text, said) = tmp_path / "file.yaml", BOMBS[bomb]
    path.write_text(text)
    with pytest.raises((DataError, UsageError)) as caught:
        READERS[reader](path)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 600


def test_fifty_levels_are_read() -> None:
    value = parse_yaml("[" * 50 + "]" * 50)
    for _ in range(49):
        (value,) = value
    assert value == []
    with pytest.raises(ValueError, match="nested"):
        parse_yaml("[" * 51 + "]" * 51)


def test_plain_yaml_is_what_yaml_says() -> None:
    import yaml

    text = "a: [1, 2.5, yes, null, 'x']\nb: {c: d, 1: e, '1': f}\n? g\n: |\n  two\n  lines\nd: 2026-11-29\n"
    assert parse_yaml(text) == yaml.safe_load(text)


def test_options_are_read_by_it_too() -> None:
    assert typed("a", "[1, 2]") == [1, 2]
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        typed("a", "[" * 100_000)
