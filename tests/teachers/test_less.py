from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nncift.data import Example, Examples, Message, read
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import CausalLM
from nncift.models.checkpoints import Adam, Checkpoint, Direction
from nncift.teachers import FeatureTeacher
from nncift.teachers.less import Less
from nncift.teachers.less_features import GradientFeatures
from tests.tolerances import features_agree, of_gradients

SMALL: dict[str, Any] = {
    "projection": 96,
    "warmup_share": 0.5,
    "epochs": 2,
    "checkpoints": 2,
    "learning_rate": 0.01,
    "rank": 4,
    "alpha": 8,
    "device": "cpu",
}
Pool = Callable[..., Path]


@pytest.fixture
def pool(write_pool: Pool) -> Examples:
    return read(write_pool(8))


@pytest.fixture(params=["llama_folder", "gpt2_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def prepared(model: Any, pool: Examples, **settings: Any) -> Less:
    less = Less(model, **{**SMALL, **settings})
    assert less.prepare(pool) == ()
    return less


def double(folder: Path) -> CausalLM:
    """A model in double precision, so that gradients that are 0 in theory are 0 and Adam does not blow up their noise."""
    lm = CausalLM.load(folder, device="cpu")
    return CausalLM(lm.model.double(), lm.tokenizer, lm.name, lm.fingerprint, lm.context)


def reference(less: Less, ids: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Utilities with everything written out: autograd row by row, explicit matrices, Adam from the checkpoints' state."""
    trainable, checkpoints = less.trainable, less.warm_up()
    matrices = {
        name: less.projection.matrix(name, value.numel()).double() for name, value in trainable.parameters.items()
    }
    total = np.zeros((len(ids), len(ids)))
    for checkpoint in checkpoints:
        targets, sources = [], []
        for example_id in ids:
            row = less._rows[example_id]
            sequence = torch.tensor([[*row.prompt, *row.response]])
            values = list(trainable.parameters.values())
            with trainable.at(checkpoint.weights):
                for value in values:
                    value.requires_grad_(True)
                logs = trainable.model(input_ids=sequence).logits[0].log_softmax(-1)
                places = range(len(row.prompt), len(row))
                loss = -sum(logs[place - 1, sequence[0, place]] for place in places) / len(row.response)
                gradients = torch.autograd.grad(loss, values)
                for value in values:
                    value.requires_grad_(False)
            target, source = torch.zeros(2, less.projection.dimension, dtype=torch.float64)
            for name, gradient in zip(trainable.parameters, gradients, strict=True):
                g = gradient.double().reshape(-1)
                m = 0.9 * checkpoint.first[name].double().reshape(-1) + 0.1 * g
                v = 0.999 * checkpoint.second[name].double().reshape(-1) + 0.001 * g**2
                t = checkpoint.step + 1
                update = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
                target += g @ matrices[name]
                source += update @ matrices[name]
            targets.append(target / target.norm())
            sources.append(source / source.norm())
        cosines = torch.stack(targets) @ torch.stack(sources).T
        total += checkpoint.learning_rate / sum(each.learning_rate for each in checkpoints) * cosines.numpy()
    return total


@pytest.mark.parametrize("kind", ["sketch", "dense"])
@pytest.mark.parametrize("lora", [None, False])
def test_utilities_agree_with_autograd_and_explicit_matrices(
    folder: Path, pool: Examples, lora: bool | None, kind: str
) -> None:
    less = prepared(double(folder), pool, lora=lora, projection_kind=kind, seed=4)
    labels = less.measure(pool.ids)
    assert labels.values.shape == (8, less.width) == (8, 2 * (2 * 96 + 2))
    assert (labels.passes, labels.tokens) == (16, 2 * sum(len(row) for row in less._rows.values()))
    expected = reference(less, pool.ids)
    np.testing.assert_allclose(less.utility(labels.values, labels.values), expected, atol=1e-4)
    assert np.ptp(expected) > 0.05


@pytest.mark.parametrize("lora", [None, False])
def test_grouping_and_batches_do_not_change_features(folder: Path, pool: Examples, lora: bool | None) -> None:
    wide = prepared(double(folder), pool, lora=lora)
    whole = wide.measure(pool.ids).values
    parts = np.concatenate([wide.measure(pool.ids[:3]).values, wide.measure(pool.ids[3:]).values])
    assert features_agree(parts, whole, 96, of_gradients(layers=2, width=48))
    order = wide.measure(pool.ids[::-1]).values[::-1]
    assert features_agree(order, whole, 96, of_gradients(layers=2, width=48))


def test_single_precision_is_close_too(llama_folder: Path, pool: Examples) -> None:
    less = prepared(str(llama_folder), pool)
    features = less.measure(pool.ids).values
    np.testing.assert_allclose(less.utility(features, features), reference(less, pool.ids), atol=1e-4)


@pytest.mark.parametrize(
    ("form", "step", "expected"),
    [
        # m' = .9 * .5 + .1 * 2 = .65, v' = .999 * .04 + .001 * 4 = .04396
        ("corrected", 0, (0.65 / 0.1) / (math.sqrt(0.04396 / 0.001) + 1e-8)),
        ("corrected", 9, (0.65 / (1 - 0.9**10)) / (math.sqrt(0.04396 / (1 - 0.999**10)) + 1e-8)),
        ("as-published", 9, 0.65 / math.sqrt(0.04396 + 1e-8)),
    ],
)
def test_adam_direction_by_hand(form: Direction, step: int, expected: float) -> None:
    state = Checkpoint({}, 1.0, step, {"w": torch.tensor([[0.5]])}, {"w": torch.tensor([[0.04]])})
    direction = Adam(state, form, torch.device("cpu")).direction("w", torch.tensor([[2.0], [0.0]]))
    assert float(direction[0, 0]) == pytest.approx(expected, rel=1e-5)
    assert float(direction[1, 0]) != 0


def test_adam_from_nothing_is_its_first_step() -> None:
    gradients = torch.tensor([[3.0, -0.5, 0.0, 1e-8]])
    adam = Adam(Checkpoint({}), "corrected", torch.device("cpu"))
    assert adam.direction("w", gradients)[0].tolist() == pytest.approx([1.0, -1.0, 0.0, 0.5], abs=1e-4)


def test_plain_gradients_give_a_symmetric_matrix(llama_folder: Path, pool: Examples) -> None:
    less = prepared(str(llama_folder), pool, warmup_share=0, checkpoints=None, lora=False, adam="none")
    features = less.measure(pool.ids).values
    utility = less.utility(features, features)
    np.testing.assert_allclose(utility, utility.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(utility), 1, atol=1e-5)


@pytest.mark.parametrize("lora", [None, False])
def test_without_a_warm_up_there_is_one_checkpoint(llama_folder: Path, pool: Examples, lora: bool | None) -> None:
    less = prepared(str(llama_folder), pool, warmup_share=0, checkpoints=None, lora=lora)
    assert (less.n_checkpoints, less.warm_up_tokens, less.warm_up_passes) == (1, 0, 0)
    labels = less.measure(pool.ids)
    assert labels.passes == 8
    utility = less.utility(labels.values, labels.values)
    assert np.isfinite(utility).all()
    assert (np.diag(utility) > 0).all()


def test_resumed_in_a_workspace_features_are_the_same(llama_folder: Path, write_pool: Pool, tmp_path: Path) -> None:
    pool = read(write_pool(8))
    first = prepared(str(llama_folder), pool, workspace=tmp_path / "run")
    expected, described = first.measure(pool.ids).values, dict(first.describe())
    weights = tmp_path / "run" / "warmup" / "checkpoint-2" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    # The process that goes on knows fewer rows, then a larger pool: the warm-up stays what it was.
    for again in (pool.subset(pool.ids[:2]), read(write_pool(12, "larger.jsonl"))):
        second = prepared(str(llama_folder), again, workspace=tmp_path / "run")
        assert dict(second.describe()) == described
        np.testing.assert_array_equal(second.measure(pool.ids[:2]).values, first.measure(pool.ids[:2]).values)
    assert weights.stat().st_mtime_ns == written
    assert len(json.loads((tmp_path / "run" / "warmup.json").read_text())["ids"]) == 4
    np.testing.assert_allclose(second.measure(pool.ids).values, expected, atol=1e-6)


def test_a_lent_model_is_left_alone(llama_folder: Path, pool: Examples) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    for lora in (None, False):
        prepared(lm, pool, lora=lora).measure(pool.ids[:2])
    after = lm.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_lora_folders_of_the_user_are_used_as_they_are(llama_folder: Path, pool: Examples, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = get_peft_model(
            CausalLM.load(llama_folder, device="cpu").model,
            LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
        )
        folders.append(tmp_path / str(seed))
        model.save_pretrained(str(folders[-1]))
    less = prepared(str(llama_folder), pool, checkpoints=folders)
    assert less.n_checkpoints == 2
    features = less.measure(pool.ids).values
    halves = [prepared(str(llama_folder), pool, checkpoints=[folder]) for folder in folders]
    single = [one.measure(pool.ids).values for one in halves]
    mean = (halves[0].utility(single[0], single[0]) + halves[1].utility(single[1], single[1])) / 2
    np.testing.assert_allclose(less.utility(features, features), mean, atol=1e-5)
    assert less.describe()["warmup"] != halves[0].describe()["warmup"]


def test_utility_and_subtasks_by_hand() -> None:
    layout = GradientFeatures(checkpoints=2, dimension=2)
    targets, sources = np.zeros((2, 3, 12), np.float32)
    # Targets at checkpoint 0: (2, 0), (0, 1), (0, 3); at checkpoint 1 all (1, 0).
    layout.put(targets, 0, np.array([[2, 0], [0, 1], [0, 3]], np.float32), np.ones((3, 2), np.float32))
    layout.put(targets, 1, np.array([[1, 0]] * 3, np.float32), np.ones((3, 2), np.float32))
    # Sources at checkpoint 0: (5, 0), (3, 4), nothing; at checkpoint 1: (1, 0), (0, 1), (-1, 0).
    layout.put(sources, 0, np.ones((3, 2), np.float32), np.array([[5, 0], [3, 4], [0, 0]], np.float32))
    layout.put(sources, 1, np.ones((3, 2), np.float32), np.array([[1, 0], [0, 1], [-1, 0]], np.float32))
    rates = [3.0, 1.0]
    expected = [[1, 0.45, -0.25], [0.25, 0.6, -0.25], [0.25, 0.6, -0.25]]
    np.testing.assert_allclose(layout.utility(targets, sources, rates), expected, atol=1e-6)
    names, cosines = layout.subtask_utility(targets, sources, rates, ["b", "b", "a"], "cosine-of-mean")
    assert names == ["a", "b"]
    # Mean of b at checkpoint 0 is (1, 1/2): cosines with the sources are 2/sqrt 5, (3 * 2 + 4) / (5 sqrt 5), 0.
    b = [0.75 * 2 / math.sqrt(5) + 0.25, 0.75 * 2 / math.sqrt(5), -0.25]
    np.testing.assert_allclose(cosines, [expected[2], b], atol=1e-6)
    _, means = layout.subtask_utility(targets, sources, rates, ["b", "b", "a"], "mean-of-cosines")
    np.testing.assert_allclose(means, [expected[2], [0.625, 0.525, -0.25]], atol=1e-6)
    with pytest.raises(UsageError, match="3 targets need as many subtasks"):
        layout.subtask_utility(targets, sources, rates, ["a"], "mean-of-cosines")


def test_rows_that_do_not_fit_are_rejected_with_both_numbers(llama_folder: Path, pool: Examples) -> None:
    long = Example("long", "p", "red " * 90, (Message("user", "sort"),), "file", 9, "{}")
    less = Less(str(llama_folder), **SMALL)
    (rejection,) = less.prepare(Examples((*pool, long)))
    assert rejection.line == 9
    assert rejection.reason == "too long: needs 101 tokens, and the model's context holds 96"
    with pytest.raises(UsageError, match="'long' cannot be measured"):
        less.measure(["long"])


@pytest.mark.parametrize("lora", [None, False])
def test_a_gradient_that_is_no_number_names_the_row(llama_folder: Path, pool: Examples, lora: bool | None) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    less = prepared(lm, pool, warmup_share=0, checkpoints=None, lora=lora)
    seen = {i: {*less._rows[i].prompt, *less._rows[i].response} for i in pool.ids}
    bad, token = next(
        (i, token) for i in pool.ids for token in seen[i] if not any(token in seen[j] for j in pool.ids if j != i)
    )
    embeddings: Any = less.trainable.model.get_parameter("model.embed_tokens.weight")
    embeddings.data[token] = float("nan")
    less._checkpoints = [Checkpoint(less.trainable.snapshot())]
    with pytest.raises(ResourceError, match=bad):
        less.measure(pool.ids)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adam": "fixed"}, "LESS's adam is"),
        ({"aggregate": "max"}, "LESS's aggregate is"),
        ({"checkpoints": []}, "at least one"),
        ({"checkpoints": 3}, "asked for 3 checkpoints, and its warm-up leaves 1 to 2"),
        ({"checkpoints": 0}, "leaves 1 to 2"),
        ({"checkpoints": 2, "warmup_share": 0}, "leaves 1 to 1"),
        ({"checkpoints": ["a"], "lora": False}, "exclude lora=False"),
        ({"warmup_share": 2}, "between 0 and 1"),
        ({"projection": 0}, "at least 1 dimension"),
        ({"rank": 0}, "rank of at least 1"),
        ({"batch_tokens": 0}, "batch_tokens"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Less("model", **{"epochs": 2, **settings})


def test_it_is_a_feature_teacher_that_says_what_decides_its_values(llama_folder: Path, pool: Examples) -> None:
    less: FeatureTeacher = prepared(str(llama_folder), pool)
    assert isinstance(less, FeatureTeacher)
    record = json.loads(json.dumps(less.describe()))
    assert record["projection"] == {"kind": "sketch of turned blocks", "dimension": 96, "seed": 0, "dtype": "float32"}
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"projection": 64},
        {"adam": "as-published"},
        {"epochs": 3},
        {"rank": 2},
    ]
    assert all(dict(prepared(str(llama_folder), pool, **other).describe()) != less.describe() for other in others)
    assert json.loads(json.dumps(less.options))["teacher"] == "less"


def test_targets_choose_layers_for_lora_and_weights_without_it(llama_folder: Path, pool: Examples) -> None:
    one = prepared(str(llama_folder), pool, lora=False, targets="all-linear")
    names = set(one.trainable.parameters)
    assert len(names) == 2 * 7
    assert all(name.endswith("proj.weight") for name in names)
    assert one.options["targets"] == ["all-linear"]
    with_lora = prepared(str(llama_folder), pool, targets=["all-linear"])
    assert {name.split(".lora_")[0] + ".weight" for name in with_lora.trainable.parameters} == names
    described = [
        dict(prepared(str(llama_folder), pool, lora=False, targets=given).describe()) for given in (None, "up_proj")
    ]
    assert described[0] != described[1] != one.describe()
    labels = one.measure(pool.ids)
    np.testing.assert_allclose(one.utility(labels.values, labels.values), reference(one, pool.ids), atol=1e-4)


def test_nothing_to_warm_up_on_is_an_error(llama_folder: Path) -> None:
    with pytest.raises(UsageError, match="prepare a pool first"):
        Less(str(llama_folder), **SMALL).warm_up()


def test_float16_is_refused_since_gradients_vanish_in_it(llama_folder: Path, pool: Examples) -> None:
    with pytest.raises(ResourceError, match="bfloat16"):
        Less(str(llama_folder), **SMALL, dtype="float16").prepare(pool)


def test_few_updates_leave_one_checkpoint_and_the_teacher_says_so(llama_folder: Path, pool: Examples) -> None:
    less = prepared(str(llama_folder), pool, checkpoints=None)
    assert (less.n_checkpoints, less.width, less.warm_up_passes) == (1, 2 * 96 + 2, 2 * 4)
    (note,) = less.notes()
    assert note.startswith("LESS takes gradients at 1 checkpoint instead of 2: the warm-up makes only 2 updates")
    assert "--option checkpoints=2" in note
    assert less.measure(pool.ids[:2]).passes == 2
    (last,) = less.warm_up()
    both = prepared(str(llama_folder), pool)
    assert both.notes() == ()
    assert all(torch.equal(value, both.warm_up()[1].weights[name]) for name, value in last.weights.items())
    assert last.learning_rate == pytest.approx(np.mean([each.learning_rate for each in both.warm_up()]))
    assert less.describe()["checkpoints"] == [2]


def test_a_warm_up_on_fewer_rows_than_published_is_told_of(
    llama_folder: Path, pool: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift.teachers.less_warmup.ENOUGH_ROWS", 2)
    monkeypatch.setattr("nncift.teachers.less.Recipe.share", 0.5)
    few = prepared(str(llama_folder), pool, warmup_share=None)
    (note,) = few.notes()
    rows = len(pool)
    assert few.warm_up_passes == 2 * 2
    assert note.startswith(f"LESS warms up on 2 of {rows} rows, where 50 % would be {rows // 2}")
    assert "--option warmup_share=0.5" in note
    assert prepared(str(llama_folder), pool, warmup_share=0.5).warm_up_passes == 2 * (rows // 2)


def test_the_number_of_checkpoints_stays_when_the_pool_grows(
    llama_folder: Path, write_pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift.teachers.less_warmup.UPDATES_APART", 2)
    first = prepared(str(llama_folder), read(write_pool(8)), checkpoints=None, workspace=tmp_path)
    # 32 of 64 rows would make an update an epoch too, 64 of 128 two of them: enough to keep both.
    larger = read(write_pool(128, "larger.jsonl"))
    assert prepared(str(llama_folder), larger, checkpoints=None, workspace=tmp_path).describe() == first.describe()
    assert prepared(str(llama_folder), larger, checkpoints=None).n_checkpoints == 2


def test_checkpoints_that_are_nearly_alike_are_named(llama_folder: Path, pool: Examples) -> None:
    # A warm-up that hardly moves, and sources without the optimiser's memory of it.
    less = prepared(str(llama_folder), pool, learning_rate=1e-9, adam="none")
    labels = less.measure(pool.ids)
    means = {name: total / len(pool) for name, total in labels.figures.items()}
    (warning,) = less.warnings(means)
    assert "2 checkpoints are nearly alike" in warning
    assert "1.000" in warning
    assert less.warnings({"neighbours_alike": 0.9}) == ()
    assert prepared(str(llama_folder), pool, checkpoints=1).figures == ()


def test_neighbours_alike_by_hand() -> None:
    layout = GradientFeatures(checkpoints=2, dimension=2)
    values = np.zeros((1, layout.width), np.float32)
    layout.put(values, 0, np.array([[1, 0]], np.float32), np.array([[0, 5]], np.float32))
    layout.put(values, 1, np.array([[3, 4]], np.float32), np.array([[0, 1]], np.float32))
    # Cosines: targets 3/5, sources 1.
    assert layout.neighbours_alike(values)[0] == pytest.approx(0.8)


@pytest.mark.parametrize("norm", [1e-12, 3.7, 1e9])
def test_half_precision_keeps_norms_of_any_size(norm: float) -> None:
    layout = GradientFeatures(checkpoints=1, dimension=2)
    values = np.zeros((2, layout.width), np.float32)
    layout.put(values, 0, np.array([[norm, 0], [0, 3 * norm]], np.float32), np.ones((2, 2), np.float32))
    sources = np.array([[1, 0, 0.6, 0.8, 0, 0]], np.float32)
    whole, half = (
        layout.subtask_utility(kept.astype(np.float32), sources, [1.0], ["a", "a"], "cosine-of-mean")[1]
        for kept in (values, values.astype(np.float16))
    )
    # The mean gradient is (1, 3) / 2 times the norm.
    assert whole[0, 0] == pytest.approx((0.6 + 3 * 0.8) / 10**0.5, rel=1e-5)
    assert half[0, 0] == pytest.approx(whole[0, 0], rel=1e-3)
