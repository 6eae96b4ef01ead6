"""The probe against plain forward passes, autograd and the teachers that measure the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift.data.examples import Example, Examples, Message
from nncift.errors import DataError, UsageError
from nncift.models.causal_lm import CausalLM
from nncift.models.probe import SKETCH, STATISTICS, WORST, Probe, features_of, probe_like
from nncift.models.views import HIDDEN, OUTPUT, STATS
from nncift.teachers import Chunk
from nncift.teachers.delift import Delift
from nncift.teachers.loss import Loss

PAIRS = [
    ("sort the red list", "list red"),
    ("name a bird", "bird"),
    ("add two and three to the sum of one and ten", "sum sum sum the sea"),
    ("what is the sky", "blue"),
    ("tell the first word", "first tree house cat dog sky"),
    ("give one color of the sea", "green and blue"),
    ("sort the blue list", "list blue"),
    ("name a tree in a house", "tree of the house"),
]


def example(name: str, prompt: str, answer: str, line: int = 1) -> Example:
    return Example(name, prompt, answer, (Message("user", prompt),), "pool", line, "{}")


POOL = Examples(tuple(example(f"r{i}", prompt, answer, i + 1) for i, (prompt, answer) in enumerate(PAIRS)))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, llama_folder: Path, gpt2_folder: Path) -> CausalLM:
    return CausalLM.load({"llama": llama_folder, "gpt2": gpt2_folder}[request.param], device="cpu")


@pytest.fixture
def probe(lm: CausalLM) -> Probe:
    return Probe(lm)


def split(probe: Probe, row: Example) -> tuple[list[int], list[int]]:
    tokens = probe.wording.tokens(row)
    return [*probe.wording.bos, *tokens.prompt], list(tokens.response)


def plain(probe: Probe, row: Example) -> tuple[torch.Tensor, torch.Tensor, int, list[int]]:
    """Return last hidden states and logits of one row alone in a plain pass, where its response begins, and its tokens."""
    prompt, response = split(probe, row)
    with torch.no_grad():
        out = probe.lm.model(input_ids=torch.tensor([prompt + response]), output_hidden_states=True)
    return out.hidden_states[-1][0], out.logits[0], len(prompt), response


def gradient(probe: Probe, row: Example) -> np.ndarray:
    """Return the gradient of a row's mean loss with respect to an identity in front of the head, by autograd."""
    hidden, _, start, response = plain(probe, row)
    front = torch.eye(hidden.shape[1], requires_grad=True)
    logits = probe.lm.model.get_output_embeddings()(hidden[start - 1 : start - 1 + len(response)] @ front.T)
    torch.nn.functional.cross_entropy(logits, torch.tensor(response)).backward()
    assert front.grad is not None
    return front.grad.numpy()


def matrix(probe: Probe, row: Example) -> np.ndarray:
    """Return the mean of (p W - w_gold) h' over response tokens."""
    hidden, logits, start, response = plain(probe, row)
    weight = probe.lm.model.get_output_embeddings().weight.detach()
    total = torch.zeros(hidden.shape[1], hidden.shape[1])
    for k, gold in enumerate(response):
        likely = torch.softmax(logits[start - 1 + k], dim=0)
        total += torch.outer(likely @ weight - weight[gold], hidden[start - 1 + k])
    return (total / len(response)).numpy()


def sketches(probe: Probe) -> np.ndarray:
    """Return the sketches of the pool at their own lengths."""
    found, _ = probe.read(list(POOL))
    length = np.exp(probe.views.take(found, STATS)[:, STATISTICS.index("push")])
    return np.asarray(probe.views.take(found, OUTPUT) * length[:, None], np.float64)


def test_the_matrix_is_the_gradient_in_front_of_the_head(probe: Probe) -> None:
    for row in list(POOL)[:3]:
        assert matrix(probe, row) == pytest.approx(gradient(probe, row), abs=1e-5)


def test_a_sketch_is_that_of_the_gradient(probe: Probe) -> None:
    # Both signs, applied to the whole matrix: (R G S')_kk is what a sketch holds, summed over tokens instead of one by one.
    one, two = probe._signs
    expected = [np.einsum("hk,hg,gk->k", one, gradient(probe, row), two) / np.sqrt(SKETCH) for row in POOL]
    assert sketches(probe) == pytest.approx(np.array(expected), abs=1e-3)


def test_inner_products_of_sketches_estimate_those_of_the_gradients(lm: CausalLM) -> None:
    exact = np.array([gradient(Probe(lm), row).ravel() for row in POOL])
    size = np.linalg.norm(exact, axis=1)
    truth = exact @ exact.T / np.outer(size, size)
    random, estimates = np.random.default_rng(0), []
    for _ in range(25):
        drawn = Probe(lm)
        drawn.__dict__["_signs"] = tuple(random.choice(np.array([-1, 1], np.float32), (32, SKETCH)) for _ in range(2))
        sketch = sketches(drawn)
        estimates.append(sketch @ sketch.T / np.outer(size, size))
    # One sketch of 512 numbers errs by a tenth or so; their mean is the truth.
    assert np.sqrt(np.mean((np.array(estimates) - truth) ** 2)) < 0.15
    assert np.mean(estimates, axis=0) == pytest.approx(truth, abs=0.12)


def test_statistics_are_those_of_a_plain_pass(probe: Probe) -> None:
    found, counts = probe.read(list(POOL))
    record = probe.views.take(found, STATS)
    for row, values, count in zip(POOL, record, counts, strict=True):
        _, logits, start, response = plain(probe, row)
        logs = torch.log_softmax(logits[start - 1 : start - 1 + len(response)].double(), dim=-1)
        gold = logs[torch.arange(len(response)), torch.tensor(response)].numpy()
        expected = {
            "loss": -gold.mean(),
            "spread": gold.std(),
            "probability": np.exp(gold).mean(),
            "distance": np.sqrt(np.mean((1 - np.exp(gold)) ** 2)),
            "worst": min(WORST, -gold.min()),
            "entropy": float(-(logs.exp() * logs).sum(dim=-1).mean()),
            "response": np.log(len(response)),
            "prompt": np.log(start),
        }
        for name, value in expected.items():
            assert values[STATISTICS.index(name)] == pytest.approx(value, abs=1e-4), name
        assert count == start + len(response)


def test_loss_and_distance_are_the_teachers(lm: CausalLM, probe: Probe) -> None:
    record = probe.views.take(probe.read(list(POOL))[0], STATS)
    loss, delift = Loss(lm), Delift(lm)
    for teacher in (loss, delift):
        assert not teacher.prepare(POOL)
    assert record[:, STATISTICS.index("loss")] == pytest.approx(loss.measure(POOL.ids).values[:, 0], abs=1e-4)
    alone = delift.label(Chunk(0, None, POOL.ids)).values
    assert record[:, STATISTICS.index("distance")] == pytest.approx(alone, abs=1e-4)


def test_hidden_states_are_pooled_over_response_prompt_and_both(probe: Probe) -> None:
    found = probe.views.take(probe.read(list(POOL))[0], HIDDEN)
    for row, values in zip(POOL, found, strict=True):
        states, _, start, _ = plain(probe, row)
        place = torch.arange(1, len(states) + 1).float()
        expected = [states[start:].mean(dim=0), states[:start].mean(dim=0), place @ states / place.sum()]
        assert values == pytest.approx(torch.cat(expected).numpy(), abs=1e-4)


@pytest.mark.parametrize("tokens", [1, 40])
def test_the_size_of_batches_changes_nothing(lm: CausalLM, tokens: int) -> None:
    whole, cut = Probe(lm).read(list(POOL)), Probe(lm, batch_tokens=tokens).read(list(POOL))
    assert cut[0] == pytest.approx(whole[0], abs=1e-4)
    assert (cut[1] == whole[1]).all()


def test_many_logits_are_taken_in_parts(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = probe.read(list(POOL))
    monkeypatch.setattr("nncift.models.probe.AT_ONCE", 1)
    assert probe.read(list(POOL))[0] == pytest.approx(whole, abs=1e-4)


def test_a_long_prompt_loses_its_start_and_a_long_response_its_end(probe: Probe) -> None:
    room = probe.lm.context
    prompts = (
        example("p", "cat " * 3 * room + "name a bird", "bird"),
        example("q", "dog " * 3 * room + "name a bird", "bird"),
    )
    answers = example("a", "name", "sea tree " * room + "cat"), example("b", "name", "sea tree " * room + "dog")
    found, counts = probe.read([*prompts, *answers])
    assert (counts > room).all()
    assert np.isfinite(found).all()
    record = probe.views.take(found, STATS)
    # What was cut off decides nothing but for the prompt, of which one word of each kind is left.
    assert found[2] == pytest.approx(found[3], abs=1e-5)
    assert not np.allclose(found[0], found[1], atol=1e-3)
    assert record[2, STATISTICS.index("response")] == pytest.approx(np.log(room - 1), abs=1e-6)
    short = split(probe, example("s", "name a bird", "bird"))[1]
    assert record[0, STATISTICS.index("prompt")] == pytest.approx(np.log(room - len(short)), abs=1e-6)
    features = features_of(probe, Examples((*prompts, *answers, example("s", "name a bird", "bird"))))
    assert (features.truncated, features.fresh) == (4, 5)


def test_rows_that_were_read_are_not_read_again(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = features_of(probe, Examples(tuple(list(POOL)[:5])))
    assert first.fresh == 5
    asked: list[int] = []
    read = CausalLM.read

    def counting(self: CausalLM, rows: Any) -> Any:
        asked.append(len(rows))
        return read(self, rows)

    monkeypatch.setattr(CausalLM, "read", counting)
    renamed = [example(f"other-{row.id}", row.prompt, row.response) for row in POOL]
    again = features_of(Probe(probe.lm), Examples(tuple(renamed[::-1])))
    assert (again.fresh, sum(asked)) == (3, 3)
    assert np.array_equal(again.vectors[::-1][:5], first.vectors)


def test_another_wording_is_another_probe(lm: CausalLM, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("sort: {prompt} tell: {response}")
    usual, own = Probe(lm), Probe(lm, str(tmp_path / "own.txt"))
    assert features_of(usual, POOL).fresh == features_of(own, POOL).fresh == len(POOL)
    assert usual.describe() != own.describe()


def test_a_probe_is_made_again_from_its_description(probe: Probe, tmp_path: Path) -> None:
    import shutil

    again = probe_like(probe.describe(), "cpu")
    assert np.array_equal(again.read(list(POOL))[0], probe.read(list(POOL))[0])
    shutil.copytree(str(probe.lm.name), tmp_path / "model")
    moved = probe_like({**probe.describe(), "name": str(tmp_path / "model")}, "cpu")
    assert moved.lm.fingerprint == probe.lm.fingerprint
    with pytest.raises(UsageError, match="shows of rows, and model differ now"):
        probe_like({**probe.describe(), "model": "0123"}, "cpu")


def test_a_row_that_cannot_be_read_is_named(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise DataError("it is too odd")

    monkeypatch.setattr("nncift.models.prompt_format.PromptFormat.tokens", refuse)
    with pytest.raises(DataError, match="the probe cannot read row 'r0': it is too odd"):
        probe.read(list(POOL))
