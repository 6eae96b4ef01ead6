"""nncift: which instruction examples are worth training on, learned from a few percent of the influence values.

    import nncift
    run = nncift.run("alpaca.jsonl", model="org/model", budget=0.30)
    run.skill, run.selected_ids, run.to_pandas(), run.export(to="trl", out="train.jsonl")

Names are loaded when they are used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nncift import teachers as teachers
    from nncift.api.functions import compare as compare
    from nncift.api.functions import evaluate as evaluate
    from nncift.api.functions import explain as explain
    from nncift.api.functions import export as export
    from nncift.api.functions import inspect as inspect
    from nncift.api.functions import load as load
    from nncift.api.functions import query as query
    from nncift.api.functions import report as report
    from nncift.api.functions import run as run
    from nncift.api.functions import score as score
    from nncift.api.functions import select as select
    from nncift.api.functions import study as study
    from nncift.api.functions import tune as tune
    from nncift.api.run_object import Run as Run
    from nncift.data import Example as Example
    from nncift.data import Examples as Examples
    from nncift.data import read as read
    from nncift.errors import NnciftError as NnciftError
    from nncift.models.encoders import Encoder as Encoder
    from nncift.student.model import Student as Student
    from nncift.teachers import Teacher as Teacher

__version__ = "0.2.0"

_NAMES = {
    "nncift.api.functions": "compare evaluate explain export inspect load query report run score select study tune",
    "nncift.api.run_object": "Run",
    "nncift.data": "Example Examples read",
    "nncift.errors": "NnciftError",
    "nncift.models.encoders": "Encoder",
    "nncift.student.model": "Student",
    "nncift.teachers": "Teacher teachers",
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'nncift' has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    return module if name == "teachers" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
