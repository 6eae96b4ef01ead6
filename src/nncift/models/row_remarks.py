"""What is to be told about rows under a chat template, gathered while they are tokenised."""

from __future__ import annotations

from nncift.data.examples import Example
from nncift.models.prompt_format import Tokens

SHOWN = 3
"""Control tokens that are named."""


class Remarks:
    """Counts rows, each once, that hold control tokens' text or lose a part of their response."""

    def __init__(self) -> None:
        self._rows: set[str] = set()
        self._partial: set[str] = set()
        self._controls: dict[str, tuple[str, ...]] = {}

    def add(self, example: Example, tokens: Tokens) -> None:
        """Look at a row that was tokenised."""
        self._rows.add(example.id)
        if tokens.partial:
            self._partial.add(example.id)
        if tokens.spelled:
            self._controls[example.id] = tokens.spelled

    def notes(self, what: str = "rows") -> tuple[str, ...]:
        """Return plain sentences. what: name of the rows."""
        found = []
        if self._controls:
            held = sorted({control for controls in self._controls.values() for control in controls})
            names = ", ".join(held[:SHOWN]) + (", ..." if len(held) > SHOWN else "")
            share = f"{len(self._controls)} of {len(self._rows)} {what}"
            found.append(f"{share} hold the text of control tokens ({names}), which is read as text.")
        if self._partial:
            found.append(
                f"{len(self._partial)} of {len(self._rows)} {what} keep only a part of their response under the model's chat "
                "template, and nothing else of it is read."
            )
        return tuple(found)
