"""What can be checked in a moment is checked first: before rows are read, a model is loaded or anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from nncift.config import RunSettings
from nncift.models.encoders import SentenceEncoder, create, full_name
from nncift.models.loading import ModelSource, check_model, check_packages, resolve_device
from nncift.storage.run_directory import RunDir
from nncift.student import pretrained_map


def check_first(
    settings: RunSettings, *, model: bool = True, encoder: bool = True, out: str | Path | None = None
) -> None:
    """Check the run's directory, packages, device, models and encoder. model, encoder: those that settings name are used.

    Of a hub's model only the small files are fetched. Raises ResourceError for what is missing, UsageError for a directory that
    this run cannot have.
    """
    check_directory(settings, out)
    if encoder and settings.student == pretrained_map.PRETRAINED:
        pretrained_map.check(full_name({"encoder": settings.encoder}))
    if settings.device not in ("auto", "cpu"):
        # torch, which knows of devices, takes seconds to import.
        resolve_device(settings.device)
    if model:
        many = settings.option.get("models") or ()
        for name in (settings.model, *(many if isinstance(many, list | tuple) else ())):
            if isinstance(name, str):
                check_packages(ModelSource(name, settings.load_in, settings.device_map))
                check_model(name)
    if encoder and isinstance(made := create(settings.encoder, load_lm=_no_model), SentenceEncoder):
        made.check()


def check_directory(settings: RunSettings, out: str | Path | None) -> None:
    """Raise ResourceError or UsageError for a directory that this run cannot have, where one is given."""
    if out is not None:
        RunDir(out, settings).check()


def _no_model() -> NoReturn:
    raise AssertionError("nothing is loaded here")
