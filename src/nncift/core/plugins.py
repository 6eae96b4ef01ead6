"""Classes by name: ours, and those that other packages register as entry points."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from nncift.core.texts import nearest
from nncift.errors import UsageError


def class_of(what: str, name: str, ours: Mapping[str, str], group: str = "") -> type[Any]:
    """Return the class of a name, by `module:attribute`; ours come before those of a group of entry points.

    what: what it is to people. Raises UsageError for a name that nobody registered, and for a class that cannot be loaded.
    """
    known = dict(ours)
    if name not in known and group:
        known |= {entry.name: entry.value for entry in metadata.entry_points(group=group)}
    if name not in known:
        raise UsageError(f"there is no {what} {name!r}{nearest(name, known)}")
    module, _, attribute = known[name].partition(":")
    try:
        found: type[Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the {what} {name} cannot be loaded from {known[name]}: {error}") from error
    return found
