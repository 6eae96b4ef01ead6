"""Which teachers there are, and how settings become one; other packages add theirs as entry points of `nncift.teachers`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack, get_args, get_origin, get_type_hints

from nncift.config import TeacherSettings
from nncift.core.plugins import class_of
from nncift.core.texts import nearest
from nncift.errors import UsageError
from nncift.models.loading import ModelSource
from nncift.teachers import TEACHERS as TEACHERS
from nncift.teachers import RowTeacher, Teacher

SHARED = ("variant", "template", "context", "dtype", "trust_remote_code", "model")
"""Settings that go to every teacher whose constructor takes them."""


def teacher_class(name: str) -> type[Any]:
    """Return the class registered under a name. Raises UsageError as `class_of`."""
    return class_of("teacher", name, TEACHERS, "nncift.teachers")


def create(
    settings: TeacherSettings,
    device: str = "auto",
    *,
    seed: int = 0,
    encoder: str = "minilm",
    workspace: Path | None = None,
) -> Teacher | RowTeacher:
    """Return the teacher that settings name; each setting that its constructor takes is passed on.

    workspace: a folder for what a teacher keeps between sessions. Raises UsageError for an unknown teacher or option, where its
    model is missing, or where a setting was given that it does not take.
    """
    name, colon, column = settings.teacher.partition(":")
    if colon and name != "column":
        raise UsageError(f"the teacher {name} has nothing behind a colon; {settings.teacher!r} was given")
    made = teacher_class(name)
    taken = settings_of(made)
    given = {name: getattr(settings, name) for name in SHARED}
    unset = TeacherSettings()
    for setting, value in given.items():
        if setting not in taken and value != getattr(unset, setting):
            raise UsageError(f"the teacher {settings.teacher} takes no {setting}; it was given {value!r}")
    if settings.model is None and "model" in taken and taken["model"]:
        raise UsageError(
            f"the teacher {settings.teacher} needs a language model: give --model with a local folder, a hub name or smollm2"
        )
    for option in settings.option:
        # The folder for what it keeps is the caller's to choose, and not a file's.
        if option not in taken or option in given or option == "workspace":
            raise UsageError(
                f"the teacher {settings.teacher} has no option {option!r}{nearest(option, set(taken) - set(given))}"
            )
    if settings.model is not None and (settings.load_in or settings.device_map):
        given["model"] = ModelSource(settings.model, settings.load_in, settings.device_map)
    values = {**given, "device": device, "seed": seed, "encoder": encoder, "workspace": workspace, **settings.option}
    if name == "column":
        values["column"] = column
    try:
        built: Teacher | RowTeacher = made(**{key: value for key, value in values.items() if key in taken})
    except TypeError as error:
        raise UsageError(
            f"the teacher {settings.teacher} cannot be made of {dict(settings.option)}: {error}"
        ) from error
    return built


def settings_of(made: type[Any]) -> dict[str, bool]:
    """Return what a teacher's constructor takes by name, and whether it must be given.

    Settings that it passes on to its reader (`**settings: Unpack[ModelSettings]`) are among them.
    """
    found = {}
    # A class may choose a form of itself in `__new__`, which passes on whatever it is given.
    for name, parameter in list(inspect.signature(made.__init__).parameters.items())[1:]:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found.update(dict.fromkeys(_unpacked(get_type_hints(made.__init__).get(name)), False))
        else:
            found[name] = parameter.default is inspect.Parameter.empty
    return found


def takes(name: str, setting: str) -> bool:
    """Tell whether a teacher's constructor takes a setting, such as `model`, or `seed` where it draws at random.

    Raises UsageError for an unknown teacher.
    """
    return setting in settings_of(teacher_class(name.partition(":")[0]))


def _unpacked(hint: Any) -> Iterable[str]:
    """Return the keys of the TypedDict in `Unpack[...]`; none for keyword arguments of any name."""
    return get_type_hints(get_args(hint)[0]) if get_origin(hint) is Unpack else ()


def as_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that stand for a teacher's options: those that all teachers share, and the rest as `option`."""
    given = {name: value for name, value in options.items() if value is not None}
    own = {name: given.pop(name) for name in list(given) if name not in TeacherSettings.model_fields}
    return {**given, "option": own} if own else given
