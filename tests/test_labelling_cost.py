"""What labelling is charged."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import nncift
from nncift.teachers import RowLabels, RowTeacher, Teacher
from nncift.teachers.delift import Delift
from nncift.teachers.given_scores import Length

pytestmark = pytest.mark.usefixtures("hastened")


@pytest.mark.parametrize("kind", ["pair", "row"])
def test_labelling_is_not_charged_more_time_than_passed(
    kind: str, llama_folder: Path, write_pool: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Length.measure

    def slowly(self: Length, ids: Sequence[str]) -> RowLabels:
        time.sleep(0.02)
        return measure(self, ids)

    monkeypatch.setattr(Length, "measure", slowly)
    slow: Teacher | RowTeacher = Length()
    teacher = slow if kind == "row" else Delift(str(llama_folder))
    began = time.perf_counter()
    run = nncift.run(write_pool(40), teacher=teacher, encoder="hash", labels=0.2, budget=0.2, out=tmp_path / "run")
    passed = time.perf_counter() - began
    assert 0 < run.ledger["stages"]["label"]["seconds"] < passed
    assert run.ledger["seconds"] <= passed + 0.1
