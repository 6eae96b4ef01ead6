from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from nncift.core.pairs import LabelledPairs
from nncift.errors import DataError
from nncift.models.views import Views
from nncift.student import paper_recipe as fitting
from nncift.student.model import Student
from nncift.student.networks import TrainingData
from nncift.student.paper_recipe import RECIPES, PaperNetwork, Recipe

Array = np.ndarray
QUICK = Recipe(learning_rate=3e-3, epochs=60, batch=64, patience=10)


@dataclass(frozen=True)
class Fitted:
    student: Student
    train_loss: list[float]
    validation_loss: list[float]
    best_epoch: int


def fit(
    train: LabelledPairs,
    validation: LabelledPairs,
    targets: Array,
    sources: Array,
    *,
    recipe: Recipe,
    seed: int,
    hidden: int = 100,
) -> Fitted:
    training_data = TrainingData(train, validation, targets, sources, Views.of({"text": sources.shape[1]}))
    learned = fitting.fit(training_data, recipe=recipe, seed=seed, hidden=hidden)
    student = Student("paper", learned.weights, learned.mean, learned.scale)
    course = learned.course
    return Fitted(student, course["train_mse"], course["validation_mse"], course["best_epoch"])


def unit(n: int, dim: int, seed: int) -> Array:
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def labelled(value: Array, rows: slice = slice(None)) -> LabelledPairs:
    """Return all pairs of these rows of a square matrix of labels."""
    n = len(value)
    ids = tuple(map(str, range(n)))
    t, s = (
        part.ravel().astype(np.int32) for part in np.meshgrid(np.arange(n)[rows], np.arange(n)[rows], indexing="ij")
    )
    return LabelledPairs(ids, ids, t, s, value[t, s].astype(np.float32))


def world(seed: int = 0) -> tuple[Array, LabelledPairs, LabelledPairs]:
    """Return vectors and labels `1 + 0.2 relu(e_t . w + e_s . u)`: a signal that one hidden unit can hold."""
    vectors = unit(60, 12, seed)
    w, u = np.random.default_rng(seed + 1).normal(size=(2, 12))
    value = 1 + 0.2 * np.maximum((vectors @ w)[:, None] + (vectors @ u)[None], 0)
    return vectors, labelled(value, slice(0, 45)), labelled(value, slice(45, 60))


def test_the_network_is_the_concatenated_one_in_values_and_gradients() -> None:
    torch.manual_seed(3)
    network = PaperNetwork(5, 7, 11)
    first, second = torch.nn.Linear(12, 11), torch.nn.Linear(11, 1)
    with torch.no_grad():
        first.weight.copy_(torch.cat([network.target_weight.T, network.source_weight.T], dim=1))
        first.bias.copy_(network.hidden_bias)
        second.weight.copy_(network.output_weight[None])
        second.bias.copy_(network.output_bias[None])
    targets, sources = torch.randn(4, 5), torch.randn(6, 7)
    t, s = torch.tensor([0, 3, 3, 1, 0]), torch.tensor([5, 5, 2, 0, 5])
    value = torch.randn(5)
    explicit = second(torch.relu(first(torch.cat([targets[t], sources[s]], dim=1))))[:, 0]
    factorised = network(targets, sources, t, s)
    assert torch.allclose(factorised, explicit, atol=1e-6)
    for output in (explicit, factorised):
        torch.nn.functional.mse_loss(output, value).backward()
    grad = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert first.weight.grad is not None
    assert second.weight.grad is not None
    expected = {
        "target_weight": first.weight.grad[:, :5].T,
        "source_weight": first.weight.grad[:, 5:].T,
        "hidden_bias": first.bias.grad,
        "output_weight": second.weight.grad[0],
        "output_bias": second.bias.grad,
    }
    for name, wanted in expected.items():
        assert wanted is not None
        found = grad[name]
        assert found is not None
        assert torch.allclose(found, wanted.reshape(found.shape), atol=1e-6), name


def test_the_papers_network_has_its_published_size_and_start() -> None:
    torch.manual_seed(0)
    network = PaperNetwork(1024, 1024)
    assert sum(parameter.numel() for parameter in network.parameters()) == 205_001
    torch.manual_seed(0)
    published = torch.nn.Linear(2048, 100)
    assert torch.equal(torch.cat([network.target_weight.T, network.source_weight.T], dim=1), published.weight)


def test_the_paper_recipe_is_the_published_one() -> None:
    paper = RECIPES["paper"]
    assert (paper.learning_rate, paper.epochs, paper.batch, paper.weight_decay) == (1e-4, 20, 64, 0.0)
    assert not paper.standardise
    assert paper.patience is None


def test_the_paper_recipe_is_plain_adam_on_raw_labels_to_the_end() -> None:
    vectors, train, validation = world()
    fitted = fit(train, validation, vectors, vectors, recipe=RECIPES["paper"], seed=4, hidden=10)
    assert (fitted.student.mean, fitted.student.scale, fitted.best_epoch, len(fitted.train_loss)) == (0.0, 1.0, 19, 20)
    torch.manual_seed(4)
    network = PaperNetwork(12, 12, 10)
    first, second = torch.nn.Linear(24, 10), torch.nn.Linear(10, 1)
    with torch.no_grad():
        first.weight.copy_(torch.cat([network.target_weight.T, network.source_weight.T], dim=1))
        first.bias.copy_(network.hidden_bias)
        second.weight.copy_(network.output_weight[None])
        second.bias.copy_(network.output_bias[None])
    explicit = torch.nn.Sequential(first, torch.nn.ReLU(), second)
    torch.manual_seed(4)
    PaperNetwork(12, 12, 10)
    optimiser = torch.optim.Adam(explicit.parameters(), lr=1e-4)
    pairs = torch.from_numpy(np.concatenate([vectors[train.target], vectors[train.source]], axis=1))
    value = torch.from_numpy(train.value)
    for _ in range(20):
        for picked in torch.randperm(len(value)).split(64):
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(explicit(pairs[picked])[:, 0], value[picked]).backward()
            optimiser.step()
    with torch.no_grad():
        expected = explicit(pairs)[:, 0].numpy()
    student = fitted.student
    found = student.predict_pairs(train, student.project_targets(vectors), student.project_sources(vectors))
    assert found == pytest.approx(expected, abs=1e-4)


def test_scaling_comes_from_training_labels_only() -> None:
    vectors, train, validation = world()
    wild = replace(validation, value=validation.value * 50 + 9)
    fitted = fit(train, wild, vectors, vectors, recipe=replace(QUICK, epochs=2), seed=0)
    assert fitted.student.mean == pytest.approx(train.value.mean(dtype=np.float64))
    assert fitted.student.scale == pytest.approx(train.value.std(dtype=np.float64))


def test_a_planted_signal_is_learned_for_unseen_items() -> None:
    vectors, train, validation = world()
    fitted = fit(train, validation, vectors, vectors, recipe=replace(QUICK, epochs=200), seed=0)
    student = fitted.student
    found = student.predict_pairs(validation, student.project_targets(vectors), student.project_sources(vectors))
    left = np.mean((found - validation.value) ** 2) / np.mean((train.value.mean() - validation.value) ** 2)
    assert left < 0.1


def test_the_course_is_in_label_units_and_its_best_epoch_is_what_was_kept() -> None:
    vectors, train, validation = world()
    fitted = fit(train, validation, vectors, vectors, recipe=QUICK, seed=0)
    student = fitted.student
    found = student.predict_pairs(validation, student.project_targets(vectors), student.project_sources(vectors))
    assert fitted.validation_loss[fitted.best_epoch] == min(fitted.validation_loss)
    assert np.mean((found - validation.value) ** 2) == pytest.approx(min(fitted.validation_loss), rel=1e-3)


def test_early_stop_waits_for_its_patience_and_no_longer() -> None:
    vectors, train, validation = world()
    noise = replace(validation, value=-validation.value)
    fitted = fit(train, noise, vectors, vectors, recipe=replace(QUICK, epochs=200, patience=3), seed=0)
    assert len(fitted.validation_loss) == fitted.best_epoch + 1 + 3


def test_the_same_seed_trains_the_same_student_and_leaves_torch_alone() -> None:
    vectors, train, validation = world()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, two, other = (
        fit(train, validation, vectors, vectors, recipe=replace(QUICK, epochs=3), seed=seed).student
        for seed in (5, 5, 6)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all((one.weights[name] == two.weights[name]).all() for name in one.weights)
    assert (one.weights["target_weight"] != other.weights["target_weight"]).any()


def test_pairs_without_a_value_are_left_out() -> None:
    vectors, train, validation = world()
    holes = replace(train, value=np.where(np.arange(len(train)) % 3 == 0, np.nan, train.value).astype(np.float32))
    kept = train.take(np.arange(len(train)) % 3 != 0)
    one, two = (
        fit(pairs, validation, vectors, vectors, recipe=replace(QUICK, epochs=3), seed=0).student
        for pairs in (holes, kept)
    )
    assert (one.weights["output_weight"] == two.weights["output_weight"]).all()


@pytest.mark.parametrize("empty", ["train", "validation"])
def test_without_any_label_there_is_nothing_to_learn_from(empty: str) -> None:
    vectors, train, validation = world()
    parts = {"train": train, "validation": validation}
    parts[empty] = parts[empty].take(np.zeros(len(parts[empty]), bool))
    with pytest.raises(DataError, match=f"no {'training' if empty == 'train' else empty} pair has a label"):
        fit(parts["train"], parts["validation"], vectors, vectors, recipe=QUICK, seed=0)


def test_equal_labels_are_learned_without_dividing_by_nothing() -> None:
    vectors, train, validation = world()
    flat = replace(train, value=np.full(len(train), 0.25, np.float32))
    student = fit(flat, validation, vectors, vectors, recipe=replace(QUICK, epochs=2), seed=0).student
    assert (student.mean, student.scale) == (0.25, 1.0)
