"""YAML that people write and pass on: settings, studies, rating prompts. One reader, which does work in proportion to the text.

Of YAML it leaves out what such files do not need and what lets a few lines stand for more than memory holds: aliases, depths that
nobody writes, keys that come twice, and tags that make objects.
"""

from __future__ import annotations

from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from nncift.core.texts import read_text

MOST_BYTES = 1 << 22
"""Longest text."""

MOST_DEPTH, MOST_DIGITS = 50, 40


def read_yaml(path: Path | Traversable) -> Any:
    """Return what a YAML file holds. Raises OSError, and ValueError for one that cannot be read or holds what is left out."""
    return parse_yaml(read_text(path, MOST_BYTES))


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds. Raises ValueError as `read_yaml`."""
    import yaml

    if len(text) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} Mi characters")
    try:
        return _loader()(text).get_single_data()
    except yaml.YAMLError as error:
        # What stands behind the first line shows where in the text, which may be as long as it likes.
        lines = str(error).splitlines()
        raise ValueError(" ".join(" ".join(lines).split())[:300] if lines else type(error).__name__) from error
    except RecursionError as error:
        raise ValueError(_deep()) from error


def _deep() -> str:
    return f"it is nested more than {MOST_DEPTH} levels deep"


@cache
def _loader() -> Any:
    """Return the class that loads; made when it is needed, since yaml takes time to import."""
    import yaml

    class Plain(yaml.SafeLoader):
        """Safe YAML without aliases, deep nesting, and keys that come twice."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            # Checked while the text is read: of what lies deeper nothing is looked at, which took quadratic time.
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it has an alias (*name), which is not needed; write the value out")
            self.depth += 1
            if self.depth > MOST_DEPTH:
                raise ValueError(_deep())
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_whole(self, node: Any) -> int:
            # In hexadecimal or by sixties a number may be one that Python does not write out.
            if len(node.value) > MOST_DIGITS:
                raise ValueError(f"it has a number of more than {MOST_DIGITS} digits (line {node.start_mark.line + 1})")
            return int(super().construct_yaml_int(node))

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            known = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in known:
                        line = key.start_mark.line + 1
                        raise ValueError(f"it has the key {key.value[:40]!r} twice (line {line}); keep one of them")
                    known.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    Plain.add_constructor("tag:yaml.org,2002:int", Plain.construct_whole)
    return Plain
