"""GIST against explicit gradients, one row at a time, and an explicit singular value decomposition."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import nncift
from nncift.data import Examples, read
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import CausalLM
from nncift.models.checkpoints import Checkpoint
from nncift.models.training_steps import row_losses
from nncift.teachers import FeatureTeacher, Less, gist
from nncift.teachers.gist import Gist

pytestmark = pytest.mark.usefixtures("hastened")
SMALL: dict[str, Any] = {
    "projection_kind": "target",
    "warmup_share": 0.5,
    "epochs": 2,
    "checkpoints": 2,
    "learning_rate": 0.01,
    "rank": 4,
    "alpha": 8,
    "device": "cpu",
}


@pytest.fixture
def sets(write_pool: Callable[..., Path]) -> tuple[Examples, Examples]:
    """Return a pool and a target set, whose first row is one of the pool."""
    pool, target = read(write_pool(8)), read(write_pool(4, "target.jsonl", start=7))
    named = tuple(replace(row, id=f"target:{row.id}", source=f"target:{row.source}") for row in target)
    return pool, Examples(named)


@pytest.fixture(params=["llama_folder", "gpt2_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def aimed(model: Any, sets: tuple[Examples, Examples], **settings: Any) -> Gist:
    teacher = Less(model, **{**SMALL, **settings})
    assert isinstance(teacher, Gist)
    for rows in sets:
        assert teacher.prepare(rows) == ()
    teacher.aim(sets[1])
    return teacher


def gradient(teacher: Gist, checkpoint: Checkpoint, item: str) -> npt.NDArray[np.float64]:
    """Return a row's whole gradient by autograd."""
    values = list(teacher.trainable.parameters.values())
    with teacher.trainable.at(checkpoint.weights):
        for value in values:
            value.requires_grad_(True)
        loss = row_losses(teacher.trainable.model, [teacher._rows[item]], torch.device("cpu")).sum()
        found = torch.autograd.grad(loss, values)
        for value in values:
            value.requires_grad_(False)
    return np.concatenate([part.double().reshape(-1).numpy() for part in found])


def reference(teacher: Gist, sets: tuple[Examples, Examples], k: int) -> npt.NDArray[np.float64]:
    """Return utilities `(n_targets, n_pool)` from explicit matrices."""
    total = np.zeros((len(sets[1]), len(sets[0])))
    rates = [checkpoint.learning_rate for checkpoint in teacher.warm_up()]
    for checkpoint in teacher.warm_up():
        of_targets = np.stack([gradient(teacher, checkpoint, item) for item in sets[1].ids])
        of_pool = np.stack([gradient(teacher, checkpoint, item) for item in sets[0].ids])
        u, s, _ = np.linalg.svd(of_targets, full_matrices=False)
        targets, sources = u[:, :k] * s[:k], of_pool @ of_targets.T @ u[:, :k] / s[:k]
        unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (targets, sources)]
        total += checkpoint.learning_rate / sum(rates) * (unit[0] @ unit[1].T)
    return total


@pytest.mark.parametrize("lora", [None, False])
@pytest.mark.parametrize("k", [2, 150])
def test_utilities_agree_with_an_explicit_decomposition(
    folder: Path, sets: tuple[Examples, Examples], lora: bool | None, k: int
) -> None:
    teacher = aimed(CausalLM.load(folder, device="cpu"), sets, lora=lora, projection=k)
    sources, targets = (teacher.measure(rows.ids) for rows in sets)
    width = min(k, 4)
    assert sources.values.shape == (8, teacher.width) == (8, 2 * (2 * width + 2))
    expected = reference(teacher, sets, width)
    np.testing.assert_allclose(teacher.utility(targets.values, sources.values), expected, atol=2e-3)
    assert np.ptp(expected) > 0.05
    # A target that the pool has too serves itself best of all.
    assert expected[0, 7] == pytest.approx(1, abs=1e-6)


def test_a_basis_in_the_workspace_is_taken_up(
    llama_folder: Path, sets: tuple[Examples, Examples], tmp_path: Path
) -> None:
    first = aimed(str(llama_folder), sets, workspace=tmp_path)
    values = first.measure(sets[0].ids).values
    assert sorted(path.name for path in tmp_path.glob("gist-*")) == ["gist-0", "gist-1", "gist-targets.json"]
    # Another process knows some rows of the pool alone.
    second = Less(str(llama_folder), **SMALL, workspace=tmp_path)
    second.prepare(sets[0].subset(sets[0].ids[:3]))
    assert second.describe() == first.describe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gist, "_gram", lambda *given: pytest.fail("the basis was made again"))
        np.testing.assert_allclose(second.measure(sets[0].ids[:3]).values, values[:3], atol=1e-5)


def test_another_target_set_is_another_teacher(
    llama_folder: Path, sets: tuple[Examples, Examples], tmp_path: Path
) -> None:
    first = aimed(str(llama_folder), sets, workspace=tmp_path)
    before = first.describe()
    first.measure(sets[0].ids)
    again = aimed(str(llama_folder), (sets[0], sets[1][:2]), workspace=tmp_path)
    assert again.describe() != before
    assert again.measure(sets[0].ids).values.shape == (8, 2 * (2 * 2 + 2))


def test_one_target_gives_one_direction(llama_folder: Path, sets: tuple[Examples, Examples]) -> None:
    teacher = aimed(str(llama_folder), (sets[0], sets[1][:1]), warmup_share=0.0, checkpoints=None)
    sources, targets = teacher.measure(sets[0].ids), teacher.measure(sets[1].ids[:1])
    # In one direction, a cosine is a sign.
    table = teacher.utility(targets.values, sources.values)
    np.testing.assert_allclose(np.abs(table), 1, atol=1e-5)


def test_passes_of_targets_precede_all_rows(llama_folder: Path, sets: tuple[Examples, Examples]) -> None:
    teacher, plain = aimed(str(llama_folder), sets), Less(str(llama_folder), **{**SMALL, "projection_kind": "sketch"})
    plain.prepare(sets[0])
    assert teacher.warm_up_passes == plain.warm_up_passes + 2 * len(sets[1])
    assert teacher.warm_up_tokens > plain.warm_up_tokens
    assert (teacher.row_passes, teacher.pass_weight) == (2, 3)
    timed = teacher.without_warm_up()
    timed.prepare(sets[0])
    assert timed.measure(sets[0].ids[:2]).passes == 2


def test_it_is_refused_without_targets_and_with_adam(llama_folder: Path, sets: tuple[Examples, Examples]) -> None:
    teacher = Less(str(llama_folder), **SMALL)
    teacher.prepare(sets[0])
    with pytest.raises(UsageError, match="give --target FILE"):
        teacher.measure(sets[0].ids)
    with pytest.raises(UsageError, match="takes plain gradients"):
        Less(str(llama_folder), **{**SMALL, "adam": "corrected"})
    assert isinstance(Less(str(llama_folder), projection_kind="sketch"), FeatureTeacher)
    assert not isinstance(Less(str(llama_folder), projection_kind="sketch"), Gist)


def test_a_disk_that_is_too_small_is_said(
    llama_folder: Path, sets: tuple[Examples, Examples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = aimed(str(llama_folder), sets, workspace=tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ResourceError, match="lower LoRA rank"):
        teacher.measure(sets[0].ids)


def test_a_gradient_that_is_no_number_is_refused(llama_folder: Path, sets: tuple[Examples, Examples]) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    with torch.no_grad():
        model: Any = lm.model
        model.get_input_embeddings().weight[5:] = float("nan")
    teacher = aimed(lm, sets, lora=False, warmup_share=0.0, checkpoints=None)
    with pytest.raises(ResourceError, match="gave no number"):
        teacher.measure(sets[0].ids)


def test_subtasks_count_by_their_mean_gradient(llama_folder: Path, sets: tuple[Examples, Examples]) -> None:
    pool, target = sets
    rows = tuple(replace(row, raw=row.raw[:-1] + f', "task": "{at % 2}"}}') for at, row in enumerate(target))
    teacher = aimed(str(llama_folder), (pool, Examples(rows)), subtask="task", warmup_share=0.0, checkpoints=None)
    sources, targets = teacher.measure(pool.ids).values, teacher.measure(target.ids).values
    table = teacher.subtask_utility(targets, sources, target.ids)
    (checkpoint,) = teacher.warm_up()
    of_targets = np.stack([gradient(teacher, checkpoint, item) for item in target.ids])
    of_pool = np.stack([gradient(teacher, checkpoint, item) for item in pool.ids])
    u, s, _ = np.linalg.svd(of_targets, full_matrices=False)
    own = u * s
    means = np.stack([own[at % 2 :: 2].mean(axis=0) for at in range(4)])
    others = of_pool @ of_targets.T @ u / s
    expected = (means / np.linalg.norm(means, axis=1, keepdims=True)) @ (
        others / np.linalg.norm(others, axis=1, keepdims=True)
    ).T
    np.testing.assert_allclose(table, expected, atol=2e-3)


def test_a_run_selects_with_it(write_pool: Callable[..., Path], llama_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "target": write_pool(6, "target.jsonl", start=50),
        "teacher": "less",
        "option": {"projection_kind": "target", "rank": 2, "epochs": 1, "warmup_share": 0.2},
        "model": str(llama_folder),
        "encoder": "hash",
        "labels": "50%",
        "budget": 3,
        "device": "cpu",
    }
    run = nncift.run(write_pool(24), **settings, out=tmp_path / "run")
    assert len(run.selected_ids) == 3
    assert run.ledger["full_teacher_passes"] == 24 + 6 + 5 + 6
    assert nncift.evaluate(tmp_path / "run", full_teacher=True, device="cpu") is not None
    del settings["target"]
    with pytest.raises(UsageError, match="give --target FILE"):
        nncift.run(write_pool(24), **settings, out=tmp_path / "other")
