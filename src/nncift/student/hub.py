"""Where a student is: a folder, the directory of a run, or the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from nncift.core.texts import first_line
from nncift.errors import ResourceError

FILES = ("student.json", "student.safetensors")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def student_folder(name: str | Path, *, revision: str | None = None) -> Path:
    """Return the local folder of a student; one that is named `org/name` and is no folder here is fetched from the hub.

    revision: branch, tag or commit on the hub. Only the two files of a student are fetched from there, and no code. Raises
    ResourceError where the hub does not give them.
    """
    folder = Path(name)
    if (folder / "student" / FILES[0]).is_file():
        return folder / "student"
    if folder.exists() or not _NAME.fullmatch(str(name)):
        return folder
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        paths = [Path(hf_hub_download(str(name), file, revision=revision)) for file in FILES]
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ResourceError(
            f"{str(name)!r} is no folder here, and the hub does not give a student of that name: {first_line(error)}"
        ) from error
    return paths[0].parent
