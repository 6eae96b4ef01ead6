"""Settings that are declared once: type, default and bounds for pydantic, and a description for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class Settings(BaseModel):
    """A class of settings. title: the group of its flags."""

    # Built when settings are made, which help and completion do not.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    title: ClassVar[str] = "Run"


@dataclass(frozen=True)
class Setting:
    """What a setting is: the flag, its help, the comment of a settings file and the row of the docs' table come from here.

    default: as it is shown, empty for none. choices: values to complete, those of `plugins` (a group of entry points) too.
    """

    name: str
    description: str
    default: str
    choices: tuple[str, ...]
    kind: Literal["text", "integer", "number", "switch", "list", "mapping"]
    metavar: str | None
    plugins: str | None
    group: str

    @property
    def flag(self) -> str:
        """The flag of the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def sentence(self) -> str:
        """What it is, with its choices."""
        return f"{self.description}{_listed(self.choices)}."


def setting(
    default: Any,
    description: str,
    *,
    choices: tuple[str, ...] = (),
    shown: str | None = None,
    metavar: str | None = None,
    **more: Any,
) -> Any:
    """Declare a setting; the choices of a Literal need not be given. shown: the default in words.

    more: `plugins`, `group` (by default the class's title), and the bounds that pydantic knows (`ge`, `le`, `gt`, `lt`).
    """
    about = {"choices": choices, "shown": shown, "metavar": metavar}
    about |= {name: more.pop(name, None) for name in ("plugins", "group")}
    given: Any = {"default_factory": default} if default is dict else {"default": default}
    given |= {"description": description, "json_schema_extra": about}
    return Field(**given, **more)


def declared(kind: type[Settings]) -> dict[str, Setting]:
    """Return the settings of a class by name: those of its bases in their order, then its own."""
    bases = [base for base in kind.__mro__[1:] if issubclass(base, Settings)]
    return {name: _declared(name, kind.model_fields[name], owner) for owner in (*bases, kind) for name in own(owner)}


def own(kind: type[Settings]) -> tuple[str, ...]:
    """Return the names of the settings that a class declares itself."""
    return tuple(name for name in kind.model_fields if _owner(kind, name) is kind)


def _owner(kind: type[Settings], name: str) -> type[Settings]:
    """Return the class that declares a setting."""
    return next(base for base in reversed(kind.__mro__) if issubclass(base, Settings) and name in base.model_fields)


def _declared(name: str, field: FieldInfo, owner: type[Settings]) -> Setting:
    about: Any = field.json_schema_extra or {}
    value, found = field.get_default(call_default_factory=True), _value_type(field.annotation)
    choices = tuple(str(one) for one in get_args(found)) if get_origin(found) is Literal else about["choices"]
    kind = _KINDS.get(get_origin(found) or found, "text")
    shown = "" if value is None or isinstance(value, bool) or value in ((), {}) else str(value)
    if isinstance(value, tuple):
        shown = ",".join(value)
    shown = shown if about["shown"] is None else about["shown"]
    group = about["group"] or owner.title
    return Setting(name, str(field.description), shown, choices, kind, about["metavar"], about["plugins"], group)


_KINDS: Mapping[Any, Any] = {int: "integer", float: "number", bool: "switch", tuple: "list", dict: "mapping"}


def _value_type(annotation: Any) -> Any:
    """Return a type without `None` and annotations."""
    if get_origin(annotation) is Annotated:
        return _value_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _value_type(next(part for part in get_args(annotation) if part is not NoneType))
    return annotation


def _listed(choices: Sequence[str]) -> str:
    if not choices:
        return ""
    return f": {', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else f": {choices[0]}"
