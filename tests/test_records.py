from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from nncift import __version__
from nncift.core.result_types import OPTIONAL, Record
from nncift.errors import DataError


@dataclass(frozen=True)
class Part(Record):
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Whole(Record):
    name: str
    parts: Mapping[str, Part]
    counts: tuple[int, ...]
    tokens: int | None = field(default=None, metadata=OPTIONAL)


def test_a_record_is_read_back_as_it_was_written() -> None:
    whole = Whole("a", {"x": Part(0.5, (0.0, 1.0)), "y": Part(1.0, None)}, (1, 2), tokens=7)
    assert Whole.of_json(json.loads(json.dumps(whole.to_json())), "a.json") == whole


def test_numbers_of_numpy_become_plain_and_fields_keep_their_order() -> None:
    found = Whole("a", {"x": Part(np.float64(0.5), None)}, (np.int64(3),)).to_json()  # type: ignore[arg-type]
    assert json.dumps(found) == '{"name": "a", "parts": {"x": {"value": 0.5, "interval": null}}, "counts": [3]}'


def test_an_optional_field_is_left_out_only_where_it_has_its_default() -> None:
    assert "tokens" not in Whole("a", {}, ()).to_json()
    assert Whole("a", {}, (), tokens=0).to_json()["tokens"] == 0


@pytest.mark.parametrize(
    ("damaged", "place"),
    [
        ({"name": "a", "parts": {"x": {"value": "high", "interval": None}}, "counts": []}, "parts.x.value"),
        ({"name": "a", "parts": {}}, "counts"),
        ([], "it"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_file_and_place(damaged: object, place: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.json is damaged: {place}"):
        Whole.of_json(damaged, "a.json")


def test_what_another_version_wrote_is_not_called_damaged() -> None:
    said = rf"^a\.json was written by nncift 0\.0\.9, and nncift {__version__} .*: counts: .* another --out, or use nncift 0"
    with pytest.raises(DataError, match=said):
        Whole.of_json({"name": "a", "parts": {}}, "a.json", "0.0.9")
    with pytest.raises(DataError, match=r"^a\.json is damaged: counts"):
        Whole.of_json({"name": "a", "parts": {}}, "a.json", __version__)
