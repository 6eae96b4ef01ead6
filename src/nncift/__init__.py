"""nncift: which instruction examples are worth training on, learned from a few percent of the influence values.

    import nncift
    run = nncift.run("alpaca.jsonl", teacher=nncift.teachers.Delift("org/model"), labels=0.05, budget=0.30, out="runs/a")
    run.subset, run.fidelity, run.ledger

Names are loaded when they are used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nncift import teachers as teachers
    from nncift.data import Example as Example
    from nncift.data import Examples as Examples
    from nncift.data import read as read
    from nncift.errors import NnciftError as NnciftError
    from nncift.models.encoders import Encoder as Encoder
    from nncift.pipeline import run as run
    from nncift.stages.finish import Run as Run
    from nncift.student.model import Student as Student
    from nncift.teachers import Teacher as Teacher

__version__ = "0.1.0"

_WHERE = {
    "Encoder": "nncift.models.encoders",
    "Example": "nncift.data",
    "Examples": "nncift.data",
    "NnciftError": "nncift.errors",
    "Run": "nncift.stages.finish",
    "Student": "nncift.student.model",
    "Teacher": "nncift.teachers",
    "read": "nncift.data",
    "run": "nncift.pipeline",
    "teachers": "nncift.teachers",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'nncift' has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    return module if name == "teachers" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
