"""LoGra, EK-FAC and TrackStar against explicit matrices, one row at a time by autograd."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nncift
from nncift.core.arrays import Doubles
from nncift.data import Examples, read
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.training_steps import IGNORED, mean_loss, row_losses
from nncift.teachers import EkFac, FeatureTeacher, Logra, TrackStar
from nncift.teachers.abilities import AimsAtTargets, HasSubtasks, KeepsWorkspace, Monitored, WarmsUp
from nncift.teachers.ekfac import drawn_labels
from nncift.teachers.layer_statistics import keep_statistics, kept_statistics
from nncift.teachers.layer_teacher import LayerTeacher

pytestmark = pytest.mark.usefixtures("hastened")
MADE: Mapping[str, Any] = {"ekfac": EkFac, "logra": Logra, "trackstar": TrackStar}
SMALL: Mapping[str, dict[str, Any]] = {
    "ekfac": {"projection": 2048},
    "logra": {"projection": 3},
    "trackstar": {"projection": 3},
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


@pytest.fixture(params=["plain", "lora"])
def lora(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], dict[str, Any]]:
    """Return the options for all weights, or for a LoRA adapter whose matrices are none of them 0."""

    def options(folder: Path) -> dict[str, Any]:
        if request.param == "plain":
            return {}
        import peft

        model: Any = CausalLM.load(folder, device="cpu").model
        llama = "llama" in type(model).__name__.lower()
        config = peft.LoraConfig(
            r=3, target_modules=["q_proj", "o_proj"] if llama else ["c_attn"], fan_in_fan_out=not llama
        )
        adapted = peft.get_peft_model(model, config)
        torch.manual_seed(5)
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                nn.init.normal_(value, std=0.3)
        adapted.save_pretrained(str(tmp_path / "adapter"))
        return {"adapter": str(tmp_path / "adapter")}

    return options


def prepared(name: str, model: Any, sets: tuple[Examples, Examples], **settings: Any) -> Any:
    teacher = MADE[name](model, **{"device": "cpu", "sample": 5, **SMALL[name], **settings})
    for rows in sets:
        assert teacher.prepare(rows) == ()
    if isinstance(teacher, TrackStar):
        teacher.aim(sets[1])
    return teacher


def gradients(teacher: LayerTeacher, row: Row, loss: Any = mean_loss) -> dict[str, Doubles]:
    """Return a row's gradient of every layer by autograd, `(out, in)`."""
    modules: Mapping[str, Any] = teacher.passes.layers.layers
    weights = [module.weight for module in modules.values()]
    with teacher.passes.computing():
        for weight in weights:
            weight.requires_grad_(True)
        value = row_losses(teacher.passes.model, [row], torch.device("cpu"), loss=loss).sum()
        found = torch.autograd.grad(value, weights)
        for weight in weights:
            weight.requires_grad_(False)
    parts = zip(modules.items(), found, strict=True)
    return {
        name: (part if isinstance(module, nn.Linear) else part.T).double().numpy() for (name, module), part in parts
    }


def inverse(matrix: Doubles, damping: float = 0.1) -> Doubles:
    return np.asarray(np.linalg.inv(matrix + damping * np.diag(matrix).mean() * np.eye(len(matrix))))


def covered(teacher: Any) -> list[Any]:
    """Return projections by layer, of those that a pass calls."""
    silent = never_called(teacher)
    return [(name, sides) for name, sides in teacher.sides.items() if name not in silent]


def never_called(teacher: Any) -> set[str]:
    """Return layers that a pass does not call: Mamba of newer transformers reads the weight of one by itself."""
    called: set[str] = set()
    layers: Mapping[str, Any] = teacher.passes.layers.layers
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, module in layers.items()
    ]
    with teacher.passes.computing():
        teacher.passes.model(torch.tensor([[1, 2, 3]]))
    for handle in handles:
        handle.remove()
    return set(layers) - called


def logra(teacher: Any, sets: tuple[Examples, Examples]) -> Doubles:
    rows = teacher.reader.rows
    total = np.zeros((len(sets[1]), len(sets[0])))
    every = {item: gradients(teacher, row) for item, row in rows.items()}
    sample = [gradients(teacher, row) for row in teacher.sampled.values()]
    for name, (of_errors, of_inputs) in covered(teacher):

        def u(found: dict[str, Doubles], name: str = name, left: Any = of_errors, right: Any = of_inputs) -> Doubles:
            return np.asarray(left.numpy() @ found[name] @ right.numpy().T).ravel()

        moment = np.mean([np.outer(u(one), u(one)) for one in sample], axis=0)
        targets, sources = (np.stack([u(every[item]) for item in part.ids]) for part in (sets[1], sets[0]))
        total += targets @ inverse(moment) @ sources.T
    return total


def trackstar(teacher: Any, sets: tuple[Examples, Examples]) -> Doubles:
    rows = teacher.reader.rows
    every = {item: gradients(teacher, row) for item, row in rows.items()}
    sample = [gradients(teacher, row) for row in teacher.sampled.values()]
    parts: dict[str, list[Doubles]] = {item: [] for item in every}
    for name, (of_errors, of_inputs) in covered(teacher):
        second = np.mean([one[name] ** 2 for one in sample], axis=0)
        scale = (second + 1e-4 * second.mean()) ** -0.5

        def u(found: Doubles, scale: Any = scale, left: Any = of_errors, right: Any = of_inputs) -> Doubles:
            return np.asarray(left.numpy() @ (found * scale) @ right.numpy().T).ravel()

        theirs = np.mean([np.outer(u(one), u(one)) for one in (every[item][name] for item in sets[1].ids)], axis=0)
        own = np.mean([np.outer(u(one[name]), u(one[name])) for one in sample], axis=0)
        values, vectors = np.linalg.eigh(inverse(0.5 * own + 0.5 * theirs))
        root = vectors @ np.diag(values**0.5) @ vectors.T
        for item, found in every.items():
            parts[item].append(root @ u(found[name]))
    unit = {item: np.concatenate(own) / np.linalg.norm(np.concatenate(own)) for item, own in parts.items()}
    return np.array([[unit[t] @ unit[s] for s in sets[0].ids] for t in sets[1].ids])


def ekfac(teacher: Any, sets: tuple[Examples, Examples]) -> Doubles:
    """Everything written out, and the sketch as an explicit matrix."""
    seen: dict[str, dict[str, list[Any]]] = {name: {"inputs": [], "errors": []} for name in teacher.shapes}
    sample = list(teacher.sampled.values())

    def loss(place: int) -> Any:
        return lambda logits, gold: mean_loss(logits, drawn_labels(logits, gold, teacher.seed, [place]))

    handles = []
    for name, module in teacher.passes.layers.layers.items():

        def hook(module: Any, given: Any, result: Any, name: str = name) -> None:
            seen[name]["inputs"].append(given[0][0].detach().double().numpy())
            result.register_hook(lambda error: seen[name]["errors"].append(error[0].detach().double().numpy()))

        handles.append(module.register_forward_hook(hook))
    labelled = [gradients(teacher, row, loss(place)) for place, row in enumerate(sample)]
    for handle in handles:
        handle.remove()
    whole: dict[str, Doubles] = {item: np.zeros(teacher.dimension) for item in teacher.reader.rows}
    exact = np.zeros((2, len(sets[1]), len(sets[0])))
    every = {item: gradients(teacher, row) for item, row in teacher.reader.rows.items()}
    for name, both in seen.items():
        moments = [sum(one.T @ one for one in both[side]) for side in ("inputs", "errors")]
        own = [np.linalg.eigh(moment / np.trace(moment))[1] for moment in moments]
        theirs = [teacher.warm_up()[name][side].double().numpy() for side in ("inputs", "errors")]
        for moment, basis in zip(moments, theirs, strict=True):
            turned = basis.T @ moment @ basis / np.trace(moment)
            np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-5)
        # Eigenvectors are known up to signs, and up to a rotation where eigenvalues are equal: both say the same.
        for place, (inputs, errors) in enumerate((own, theirs)):
            second = np.mean([(errors.T @ one[name] @ inputs) ** 2 for one in labelled], axis=0)
            scaled = {
                item: (errors.T @ found[name] @ inputs) / np.sqrt(second + 0.1 * second.mean())
                for item, found in every.items()
            }
            exact[place] += [[np.sum(scaled[t] * scaled[s]) for s in sets[0].ids] for t in sets[1].ids]
        matrix = teacher.sketch.matrix(name, second.size).double().numpy()
        for item, found in scaled.items():
            whole[item] += found.ravel() @ matrix
    np.testing.assert_allclose(exact[0], exact[1], atol=1e-3 * np.abs(exact).max())
    targets, sources = (np.stack([whole[item] for item in part.ids]) for part in (sets[1], sets[0]))
    sketched = targets @ sources.T
    assert np.corrcoef(sketched.ravel(), exact[0].ravel())[0, 1] > 0.97
    return np.asarray(sketched)


REFERENCES: Mapping[str, Callable[[Any, tuple[Examples, Examples]], Doubles]] = {
    "ekfac": ekfac,
    "logra": logra,
    "trackstar": trackstar,
}


@pytest.mark.parametrize("name", ["logra", "trackstar", "ekfac"])
def test_utilities_agree_with_explicit_matrices(
    folder: Path, sets: tuple[Examples, Examples], name: str, lora: Callable[[Path], dict[str, Any]]
) -> None:
    teacher = prepared(name, str(folder), sets, **lora(folder))
    sources, targets = (teacher.measure(rows.ids) for rows in sets)
    assert sources.values.shape == (8, teacher.width)
    assert (sources.passes, sources.tokens) == (8, sum(len(teacher.reader.rows[item]) for item in sets[0].ids))
    expected, found = REFERENCES[name](teacher, sets), teacher.utility(targets.values, sources.values)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found / largest, expected / largest, atol=5e-3)
    assert np.ptp(expected / largest) > 0.2
    # A target that the pool has too serves itself best of all.
    if name != "ekfac":
        assert int(expected[0].argmax()) == 7


@pytest.mark.parametrize("name", MADE)
def test_grouping_and_batches_do_not_change_values(
    llama_folder: Path, sets: tuple[Examples, Examples], name: str
) -> None:
    wide, narrow = (prepared(name, str(llama_folder), sets, batch_tokens=tokens) for tokens in (2048, 16))
    if name == "ekfac":
        # Eigenvectors of equal eigenvalues may turn with the last bits, and the sketch with them.
        narrow._statistics = wide.warm_up()
    whole, single = wide.measure(sets[0].ids).values, narrow.measure(sets[0].ids).values
    tables = [teacher.utility(values, values) for teacher, values in ((wide, whole), (narrow, single))]
    np.testing.assert_allclose(tables[0], tables[1], atol=2e-3 * np.abs(tables[0]).max())
    parts = np.concatenate([wide.measure(sets[0].ids[:3]).values, wide.measure(sets[0].ids[3:]).values])
    np.testing.assert_allclose(parts, whole, atol=1e-4)


@pytest.mark.parametrize("name", MADE)
def test_statistics_in_the_workspace_are_taken_up(
    llama_folder: Path, sets: tuple[Examples, Examples], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(name, str(llama_folder), sets, workspace=tmp_path)
    values = first.measure(sets[0].ids).values
    # Another process knows a few rows of the pool alone, and none of the targets.
    second = MADE[name](str(llama_folder), device="cpu", sample=5, workspace=tmp_path, **SMALL[name])
    assert second.prepare(sets[0].subset(sets[0].ids[5:])) == ()
    assert second.describe() == first.describe()
    with monkeypatch.context() as patch:
        patch.setattr(MADE[name], "fit", lambda self: pytest.fail("statistics were fitted again"))
        np.testing.assert_allclose(second.measure(sets[0].ids[5:]).values, values[5:], atol=1e-4)
    assert (second.warm_up_passes, second.warm_up_tokens) == (first.warm_up_passes, first.warm_up_tokens)


def test_of_two_processes_that_fit_at_once_the_first_is_followed(tmp_path: Path) -> None:
    first, second = ({"layer": {"root": torch.full((2, 2), value)}} for value in (1.0, 2.0))
    kept = [keep_statistics(tmp_path / "logra", "key", each) for each in (first, second)]
    assert all(float(each["layer"]["root"][0, 0]) == 1.0 for each in kept)
    # Those of another state give way.
    changed = keep_statistics(tmp_path / "logra", "another key", second)
    assert float(changed["layer"]["root"][0, 0]) == 2.0
    assert kept_statistics(tmp_path / "logra", "key") is None


def test_damaged_statistics_are_taken_again(
    llama_folder: Path, sets: tuple[Examples, Examples], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = prepared("logra", str(llama_folder), sets, workspace=tmp_path).measure(sets[0].ids).values
    file = tmp_path / "logra" / "statistics.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x40
    file.write_bytes(bytes(content))
    again = prepared("logra", str(llama_folder), sets, workspace=tmp_path).measure(sets[0].ids).values
    np.testing.assert_array_equal(again, values)
    assert "damaged" in caplog.text


@pytest.mark.parametrize(("name", "passes"), [("ekfac", 2 * 5), ("logra", 5), ("trackstar", 2 * 5 + 4)])
def test_passes_over_the_sample_precede_all_rows(
    llama_folder: Path, sets: tuple[Examples, Examples], name: str, passes: int
) -> None:
    teacher = prepared(name, str(llama_folder), sets)
    assert all(isinstance(teacher, of) for of in (FeatureTeacher, WarmsUp, KeepsWorkspace, Monitored, HasSubtasks))
    assert isinstance(teacher, AimsAtTargets) == (name == "trackstar")
    assert (teacher.warm_up_passes, teacher.pass_weight) == (passes, 3)
    timed: Any = teacher.without_warm_up()
    timed.prepare(sets[0])
    assert timed.measure(sets[0].ids[:2]).tokens == teacher.tokens_of(sets[0].ids[:2])


@pytest.mark.parametrize("name", MADE)
def test_nothing_is_loaded_before_rows_are_prepared(name: str) -> None:
    teacher = MADE[name]("a/model-that-is-nowhere")
    assert isinstance(teacher, FeatureTeacher)
    assert teacher.width == 0


class Fused(nn.Module):
    """Like fused experts: the weight is a parameter of a module that is no linear layer."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.weight = inner.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = hidden @ self.weight.T
        return found


def fused(folder: Path, *kinds: str) -> CausalLM:
    lm = CausalLM.load(folder, device="cpu")
    for name, module in list(lm.model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head" and any(kind in name for kind in kinds):
            parent, _, own = name.rpartition(".")
            setattr(lm.model.get_submodule(parent), own, Fused(module))
    return lm


@pytest.mark.parametrize("name", MADE)
def test_a_model_without_linear_layers_is_refused(
    llama_folder: Path, sets: tuple[Examples, Examples], name: str
) -> None:
    teacher = MADE[name](fused(llama_folder, "attn", "mlp"))
    with pytest.raises(UsageError, match=r"has none beside .* lie in Embedding, Fused, .*, output head\..*lora=false"):
        teacher.prepare(sets[0])
    with pytest.raises(UsageError, match="whose names end in nowhere"):
        MADE[name](str(llama_folder), layers=["nowhere"]).prepare(sets[0])


def test_layers_that_are_left_out_are_named(llama_folder: Path, sets: tuple[Examples, Examples]) -> None:
    teacher = EkFac(fused(llama_folder, "mlp"), sample=5, projection=64)
    teacher.prepare(sets[0])
    (note,) = (note for note in teacher.notes() if "covers" in note)
    assert "EK-FAC covers 8 linear layers" in note
    assert "left out are those of Embedding, Fused, LlamaRMSNorm, output head." in note
    assert set(teacher.shapes) == {f"model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in "qkvo"}
    assert np.isfinite(teacher.measure(sets[0].ids).values).all()


@pytest.mark.parametrize("name", MADE)
def test_a_layer_that_is_called_twice_counts_once_with_the_sum(
    llama_folder: Path, sets: tuple[Examples, Examples], name: str
) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    model: Any = lm.model
    model.model.layers[1].mlp = model.model.layers[0].mlp
    teacher = prepared(name, lm, sets)
    found = teacher.measure(sets[0].ids).values
    expected = REFERENCES[name](teacher, sets) if name != "ekfac" else None
    if expected is not None:
        table = teacher.utility(teacher.measure(sets[1].ids).values, found)
        np.testing.assert_allclose(table / np.abs(expected).max(), expected / np.abs(expected).max(), atol=5e-3)
    else:
        sums: dict[str, Doubles] = {}
        row = sets[0].ids[0]

        def consume(name: str, part: torch.Tensor) -> None:
            sums[name] = part[0].double().numpy()

        teacher.passes.gradients([teacher.reader.rows[row]], consume)
        for layer, own in gradients(teacher, teacher.reader.rows[row]).items():
            np.testing.assert_allclose(sums[layer], own, atol=1e-5)


def test_fresh_lora_matrices_that_have_no_gradient_are_said(
    llama_folder: Path, sets: tuple[Examples, Examples]
) -> None:
    teacher = prepared("logra", str(llama_folder), sets, lora=True, rank=2)
    labels = teacher.measure(sets[0].ids)
    means = {name: value / len(sets[0]) for name, value in labels.figures.items()}
    (said,) = teacher.warnings(means)
    assert "leaves out 8 of 16 layers" in said
    assert "fresh LoRA" in said
    assert teacher.warnings({"silent_layers": 0.0}) == ()


@pytest.mark.parametrize("name", MADE)
def test_a_gradient_that_is_no_number_is_refused(
    llama_folder: Path, sets: tuple[Examples, Examples], name: str
) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    with torch.no_grad():
        weight: Any = lm.model.get_input_embeddings().weight
        weight[5:] = float("nan")
    with pytest.raises(ResourceError, match="are no numbers in layer"):
        prepared(name, lm, sets).measure(sets[0].ids)


@pytest.mark.parametrize("name", MADE)
def test_a_row_that_is_no_number_is_refused(llama_folder: Path, sets: tuple[Examples, Examples], name: str) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    teacher = prepared(name, lm, sets)
    teacher.warm_up()
    with torch.no_grad():
        weight: Any = lm.model.get_input_embeddings().weight
        weight[5:] = float("nan")
    with pytest.raises(ResourceError, match="gave no number for the gradient of row 'row-0000'"):
        teacher.measure(sets[0].ids)


def test_half_precision_is_refused_where_gradients_vanish(llama_folder: Path, sets: tuple[Examples, Examples]) -> None:
    with pytest.raises(ResourceError, match="in float16 most of them round to 0"):
        EkFac(str(llama_folder), device="cpu", dtype="float16").prepare(sets[0])


@pytest.mark.parametrize("name", MADE)
def test_a_model_at_hand_is_left_as_it_was(llama_folder: Path, sets: tuple[Examples, Examples], name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    teacher = MADE[name](model, AutoTokenizer.from_pretrained(llama_folder), sample=3, **SMALL[name])
    teacher.prepare(sets[0])
    teacher.measure(sets[0].ids[:2])
    assert all(value.requires_grad and value.grad is None for value in model.parameters())


def test_drawn_labels_follow_the_model_s_chances_and_no_batch() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(2, 4000, 3).clone()
    gold = torch.zeros((2, 4000), dtype=torch.long)
    gold[1, 10:] = IGNORED
    found = drawn_labels(logits, gold, 0, [4, 9])
    shares = torch.bincount(found[0], minlength=3) / 4000
    np.testing.assert_allclose(shares.numpy(), [0.5, 0.3, 0.2], atol=0.03)
    assert (found[1, 10:] == IGNORED).all()
    alone = drawn_labels(logits[1:, :10], gold[1:, :10], 0, [9])
    assert torch.equal(alone[0], found[1, :10])
    assert not torch.equal(drawn_labels(logits, gold, 1, [4, 9])[0], found[0])


@pytest.mark.parametrize("name", MADE)
def test_subtasks_share_the_utility_of_their_mean(
    llama_folder: Path, sets: tuple[Examples, Examples], name: str
) -> None:
    pool, target = sets
    rows = tuple(replace(row, raw=json.dumps(row.row | {"task": f"{at % 2}"})) for at, row in enumerate(target))
    teacher = prepared(name, str(llama_folder), (pool, Examples(rows)), subtask="task")
    sources, targets = teacher.measure(pool.ids).values, teacher.measure(target.ids).values
    table = teacher.subtask_utility(targets, sources, target.ids)
    np.testing.assert_array_equal(table[0], table[2])
    assert np.abs(table[0] - table[1]).max() > 0
    if not teacher.cosine:
        plain = teacher.utility(targets, sources)
        np.testing.assert_allclose(table[0], (plain[0] + plain[2]) / 2, rtol=1e-3, atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize(("name", "once"), [("ekfac", 2 * 6), ("logra", 6), ("trackstar", 2 * 6 + 5)])
def test_a_run_selects_with_it(
    write_pool: Callable[..., Path], llama_folder: Path, tmp_path: Path, name: str, once: int
) -> None:
    run = nncift.run(
        write_pool(24),
        target=write_pool(5, "target.jsonl", start=50),
        teacher=name,
        option={"sample": 6, **SMALL[name]},
        model=str(llama_folder),
        encoder="hash",
        labels="50%",
        budget=3,
        device="cpu",
        out=tmp_path / "run",
    )
    assert len(run.selected_ids) == 3
    assert run.ledger["full_teacher_passes"] == 24 + 5 + once
    assert any("covers 14 linear layers" in warning for warning in run.warnings)
    assert nncift.evaluate(tmp_path / "run", full_teacher=True, device="cpu") is not None


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("wrong", [{"sample": 0}, {"damping": 0.0}, {"projection": 0}])
def test_settings_that_cannot_be_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        MADE[name]("model", **wrong)
    with pytest.raises(UsageError, match="share in F"):
        TrackStar("model", mix=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        ("trackstar", ["sample=6", "projection=3"]),
        ("retrain", ["trainings=3", "rank=2"]),
        ("ica", ["in_front=2"]),
        ("less", ["projection_kind=target", "rank=2", "epochs=1", "warmup_share=0.2"]),
    ],
)
def test_shards_that_know_some_rows_alone_are_the_plain_run(
    call: Callable[..., Any],
    write_pool: Callable[..., Path],
    llama_folder: Path,
    tmp_path: Path,
    teacher: str,
    options: list[str],
) -> None:
    pool, target = write_pool(40), write_pool(8, "target.jsonl", start=60)
    plain = ["run", pool, "--target", target, "--model", llama_folder, "--encoder", "hash", "--teacher", teacher]
    plain += ["--features", "text", "--labels", "60%", "--budget", "4", "--objective", "rr", "--json", "--quiet"]
    plain += [part for option in options for part in ("--option", option)]
    assert call(*plain, "--out", tmp_path / "plain").code == 0
    for shard in ("1/2", "2/2"):
        assert call(*plain, "--out", tmp_path / "shards", "--shard", shard).code in (0, 130)
    assert call(*plain, "--out", tmp_path / "shards").code == 0
    chosen = [(tmp_path / name / "subset.jsonl").read_text(encoding="utf-8") for name in ("plain", "shards")]
    assert chosen[0] == chosen[1]


def mixture(folder: Path) -> CausalLM:
    """A mixture of experts that keeps all experts' weights in parameters of one module."""
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=96,
        initializer_range=0.3,
    )
    return CausalLM.of(MixtralForCausalLM(config), tokenizer)


def convolutions(folder: Path) -> CausalLM:
    """A state-space model, whose layers hold convolutions beside linear projections."""
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=32, state_size=8, num_hidden_layers=2, initializer_range=0.3
    )
    return CausalLM.of(MambaForCausalLM(config), tokenizer)


@pytest.mark.parametrize(("made", "left_out"), [(mixture, "MixtralExperts"), (convolutions, "Conv1d")])
@pytest.mark.parametrize("name", MADE)
def test_of_experts_and_convolutions_linear_layers_alone_are_covered(
    llama_folder: Path, sets: tuple[Examples, Examples], made: Callable[[Path], CausalLM], left_out: str, name: str
) -> None:
    teacher = prepared(name, made(llama_folder), sets)
    (note,) = (note for note in teacher.notes() if "covers" in note)
    assert left_out in note.partition("left out")[2]
    sources, targets = (teacher.measure(rows.ids).values for rows in sets)
    found = teacher.utility(targets, sources)
    assert np.isfinite(found).all()
    if name != "ekfac":
        expected = REFERENCES[name](teacher, sets)
        np.testing.assert_allclose(found / np.abs(expected).max(), expected / np.abs(expected).max(), atol=5e-3)
    assert set(teacher.shapes) - set(teacher.warm_up()) == never_called(teacher)
