"""Retraining against a plain training loop of its own, and scikit-learn's ridge regression."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import Ridge

import nncift
from nncift.core.seeds import derive, shuffled
from nncift.data import Examples, read
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import CausalLM
from nncift.models.training_steps import row_losses
from nncift.teachers import FeatureTeacher, Retrain, less_warmup, retrain
from nncift.teachers.abilities import AimsAtTargets, KeepsWorkspace, WarmsUp

pytestmark = pytest.mark.usefixtures("hastened")
SMALL: dict[str, Any] = {
    "trainings": 4,
    "rank": 2,
    "learning_rate": 0.01,
    "epochs": 2,
    "batch_rows": 3,
    "device": "cpu",
}


@pytest.fixture
def sets(write_pool: Callable[..., Path]) -> tuple[Examples, Examples]:
    pool, target = read(write_pool(9)), read(write_pool(3, "target.jsonl", start=40))
    return pool, Examples(tuple(replace(row, id=f"target:{row.id}", source="target") for row in target))


@pytest.fixture(params=["llama_folder", "gpt2_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def prepared(model: Any, sets: tuple[Examples, Examples], **settings: Any) -> Retrain:
    teacher = Retrain(model, **{**SMALL, **settings})
    for rows in sets:
        assert teacher.prepare(rows) == ()
    teacher.aim(sets[1])
    return teacher


def plain_losses(teacher: Retrain, number: int) -> dict[str, float]:
    """Return all rows' losses after a training, by a loop that takes one row at a time."""
    trainable, given = copy.deepcopy(teacher.trainable), teacher.given
    rows, order = [teacher.reader.rows[item] for item in teacher.half(number)], derive(teacher.seed, "retrain", "order")
    with trainable.at(teacher.start):
        values = list(trainable.parameters.values())
        for value in values:
            value.requires_grad_(True)
        optimiser = torch.optim.AdamW(values, lr=given.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        steps, step = given.epochs * math.ceil(len(rows) / given.batch_rows), 0
        for epoch in range(given.epochs):
            places = [int(place) for place in shuffled(map(str, range(len(rows))), order, "warm-up", str(epoch))]
            for at in range(0, len(places), given.batch_rows):
                update = places[at : at + given.batch_rows]
                for place in update:
                    (row_losses(trainable.model, [rows[place]], torch.device("cpu")).sum() / len(update)).backward()
                torch.nn.utils.clip_grad_norm_(values, 1.0)
                optimiser.param_groups[0]["lr"] = given.learning_rate * (steps - step) / steps
                optimiser.step()
                optimiser.zero_grad()
                step += 1
        for value in values:
            value.requires_grad_(False)
        losses = {}
        for item, row in teacher.reader.rows.items():
            losses[item] = float(row_losses(trainable.model, [row], torch.device("cpu"))[0])
    return losses


@pytest.mark.parametrize("lora", [True, False])
def test_utilities_are_a_ridge_regression_of_plain_trainings(
    folder: Path, sets: tuple[Examples, Examples], lora: bool
) -> None:
    teacher = prepared(str(folder), sets, lora=lora)
    sources, targets = (teacher.measure(rows.ids) for rows in sets)
    assert sources.values.shape == (9, teacher.width) == (9, 8)
    assert (sources.passes, sources.tokens) == (4 * 9, 4 * sum(len(teacher.reader.rows[item]) for item in sets[0].ids))
    losses = [plain_losses(teacher, number) for number in range(4)]
    for labels, rows in ((sources, sets[0]), (targets, sets[1])):
        expected = [[losses[m][item] for m in range(4)] for item in rows.ids]
        np.testing.assert_allclose(labels.values[:, :4], expected, rtol=2e-3, atol=2e-3)
    inside: npt.NDArray[np.float64] = np.array(
        [[item in teacher.half(m) for item in sets[0].ids] for m in range(4)], np.float64
    )
    assert set(inside.sum(axis=1)) == {4.0}
    centred = inside - inside.mean(axis=0)
    alpha = 1.0 * float(np.mean(np.sum(centred**2, axis=1)))
    expected = [
        Ridge(alpha=alpha).fit(inside, [-losses[m][item] for m in range(4)]).coef_.tolist() for item in sets[1].ids
    ]
    found = teacher.utility(targets.values, sources.values)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    assert np.abs(expected).max() > 0


def test_a_run_that_was_stopped_goes_on_behind_the_last_training(
    llama_folder: Path, sets: tuple[Examples, Examples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(str(llama_folder), sets).measure(sets[0].ids).values
    made: list[int] = []
    plain = less_warmup.train

    def stopped(*given: Any, **more: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return plain(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(retrain, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepared(str(llama_folder), sets, workspace=tmp_path).measure(sets[0].ids)
    again: list[int] = []

    def counted(*given: Any, **more: Any) -> Any:
        again.append(1)
        return plain(*given, **more)

    monkeypatch.setattr(retrain, "train", counted)
    values = prepared(str(llama_folder), sets, workspace=tmp_path).measure(sets[0].ids).values
    np.testing.assert_array_equal(values, whole)
    assert len(again) == 2


def test_another_process_takes_the_same_pool(
    llama_folder: Path, sets: tuple[Examples, Examples], tmp_path: Path
) -> None:
    first = prepared(str(llama_folder), sets, workspace=tmp_path)
    values = first.measure(sets[0].ids).values
    second = Retrain(str(llama_folder), workspace=tmp_path, **SMALL)
    second.prepare(Examples((*sets[0][3:5], *sets[1][:1])))
    assert second.describe() == first.describe()
    np.testing.assert_allclose(second.measure(sets[0].ids[3:5]).values, values[3:5], atol=1e-5)
    assert (second.measure(sets[1].ids[:1]).values[:, 4:] == 0).all()


def test_rows_that_no_training_knew_are_refused(llama_folder: Path, sets: tuple[Examples, Examples]) -> None:
    teacher = Retrain(str(llama_folder), **SMALL)
    for rows in sets:
        teacher.prepare(rows)
    with pytest.raises(UsageError, match="a pool cannot grow under them"):
        teacher.measure(sets[1].ids)


def test_all_trainings_are_counted_in_forward_passes(llama_folder: Path, sets: tuple[Examples, Examples]) -> None:
    teacher = prepared(str(llama_folder), sets)
    assert all(isinstance(teacher, of) for of in (FeatureTeacher, WarmsUp, KeepsWorkspace, AimsAtTargets))
    assert teacher.warm_up_passes == 3 * 4 * 2 * 4
    assert any("4 times on 4 rows for 2 epochs: 96 forward passes" in note for note in teacher.notes())
    timed = teacher.without_warm_up()
    timed.prepare(sets[0])
    assert timed.measure(sets[0].ids[:2]).passes == 2 * timed.row_passes


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"trainings": 1}, "at least 2"),
        ({"share": 1.0}, "between 0 and 1"),
        ({"ridge": 0.0}, "above 0"),
        ({"epochs": 0}, "at least 1 epoch"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Retrain("model", **wrong)


def test_a_training_that_diverges_is_refused(llama_folder: Path, sets: tuple[Examples, Examples]) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    teacher = prepared(lm, sets)
    with torch.no_grad():
        next(iter(teacher.trainable.parameters.values()))[:] = float("nan")
    with pytest.raises(ResourceError, match="diverged"):
        teacher.measure(sets[0].ids)


def test_a_run_selects_with_it(write_pool: Callable[..., Path], llama_folder: Path, tmp_path: Path) -> None:
    run = nncift.run(
        write_pool(24),
        target=write_pool(5, "target.jsonl", start=50),
        teacher="retrain",
        option={"trainings": 3, "rank": 2},
        model=str(llama_folder),
        encoder="hash",
        labels="50%",
        budget=3,
        device="cpu",
        out=tmp_path / "run",
    )
    assert len(run.selected_ids) == 3
    assert run.ledger["full_teacher_passes"] == 3 * (24 + 5) + 3 * 3 * 12
    assert nncift.evaluate(tmp_path / "run", full_teacher=True, device="cpu") is not None
