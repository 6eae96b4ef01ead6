"""The probe against plain forward passes, autograd and the teachers that measure the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift.data.examples import Example, Examples, Message
from nncift.errors import DataError, UsageError
from nncift.labels.vectors import VectorFiles
from nncift.models.causal_lm import CausalLM
from nncift.models.probe import SKETCH, STATISTICS, WORST, Probe, features_of, probe_like
from nncift.models.views import HIDDEN, OUTPUT, STATS
from nncift.teachers import Chunk
from nncift.teachers.delift import Delift
from nncift.teachers.loss import Loss
from nncift.teachers.rds import Rds

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


def mean_errors(probe: Probe, row: Example) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Return the loss's gradient at every predicting state, what each layer adds there, and these states, all `(n, hidden)`."""
    prompt, response = split(probe, row)
    model, places = probe.lm.model, slice(len(prompt) - 1, len(prompt) + len(response) - 1)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([prompt + response]), output_hidden_states=True)
    last = out.hidden_states[-1][0, places].clone().requires_grad_(True)
    logits = model.get_output_embeddings()(last)
    torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="sum").backward()
    assert last.grad is not None
    added = [
        (above - below)[0, places].numpy()
        for below, above in zip(out.hidden_states, out.hidden_states[1:], strict=False)
    ]
    return last.grad.numpy(), added, last.detach().numpy()


def matrices(probe: Probe, row: Example) -> list[np.ndarray]:
    """Return the mean of e d' over response tokens for every layer that is sketched, each of length 1."""
    error, added, _ = mean_errors(probe, row)
    found = [np.mean(error[:, :, None] * added[layer][:, None, :], axis=0) for layer in probe._layers]
    return [of / np.linalg.norm(of) for of in found]


def test_the_last_layer_is_not_sketched_and_a_model_of_two_has_one(probe: Probe) -> None:
    assert (probe.lm.layers, probe._layers) == (2, (0,))


def test_layers_lie_evenly_below_the_last(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    for count, expected in ((31, (3, 9, 15, 21, 27)), (4, (0, 1, 2)), (1, ()), (0, ())):
        monkeypatch.setitem(probe.lm.__dict__, "layers", count)
        assert Probe(probe.lm)._layers == expected


def test_a_sketch_is_that_of_what_layers_add_and_of_the_gradient_in_front_of_the_head(probe: Probe) -> None:
    # Both signs, applied to the whole matrix: (R M S')_kk is what a sketch holds, summed over tokens instead of one by one.
    found = probe.views.take(probe.read(list(POOL))[0], OUTPUT)
    for row, values in zip(POOL, found, strict=True):
        parts = [
            np.einsum("hk,hg,gk->k", left, of, right)
            for of, (left, right) in zip(matrices(probe, row), probe._signs, strict=True)
        ]
        expected = np.sum([part / np.linalg.norm(part) for part in parts], axis=0)
        assert values == pytest.approx(expected / np.linalg.norm(expected), abs=1e-4)


@pytest.mark.parametrize("layers", [(0,), (0, 1)])
def test_inner_products_of_sketches_estimate_those_of_the_matrices(
    lm: CausalLM, layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "_layers", layers)
    exact = np.array([np.concatenate([of.ravel() for of in matrices(Probe(lm), row)]) for row in POOL])
    truth = exact @ exact.T / len(layers)
    random, estimates = np.random.default_rng(0), []
    for _ in range(25):
        drawn = Probe(lm)
        signs = tuple(random.choice(np.array([-1, 1], np.float32), (2, 32, SKETCH)) for _ in layers)
        drawn.__dict__["_signs"] = tuple((left, right) for left, right in signs)
        sketch = drawn.views.take(drawn.read(list(POOL))[0], OUTPUT).astype(np.float64)
        estimates.append(sketch @ sketch.T)
    # One sketch of 2,048 numbers errs by less than a tenth; their mean is the truth.
    assert np.sqrt(np.mean((np.array(estimates) - truth) ** 2)) < 0.1
    assert np.mean(estimates, axis=0) == pytest.approx(truth, abs=0.08)


def test_push_is_the_length_of_the_gradient_in_front_of_the_head(probe: Probe) -> None:
    found = probe.views.take(probe.read(list(POOL))[0], STATS)[:, STATISTICS.index("push")]
    for row, value in zip(POOL, found, strict=True):
        error, _, states = mean_errors(probe, row)
        whole = np.mean(error[:, :, None] * states[:, None, :], axis=0)
        assert value == pytest.approx(np.log(np.linalg.norm(whole)), abs=1e-4)


def test_a_model_that_does_not_show_its_layers_is_read_by_its_last_states(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(probe.lm.__dict__, "layers", 0)
    alone = Probe(probe.lm)
    found = alone.views.take(alone.read(list(POOL)[:1])[0], OUTPUT)[0]
    error, _, states = mean_errors(alone, POOL[0])
    left, right = alone._signs[0]
    expected = np.mean((error @ left) * (states @ right), axis=0)
    assert found == pytest.approx(expected / np.linalg.norm(expected), abs=1e-4)
    assert alone.describe()["layers"] == []


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


def cut(probe: Probe, row: Example, share: float) -> tuple[list[int], list[int]]:
    """Return what a share of a row leaves: of all tokens rounded up, of the response rounded, at least one of each."""
    prompt, response = split(probe, row)
    kept = max(2, int(np.ceil(share * (len(prompt) + len(response)))))
    after = min(kept - 1, max(1, round(share * len(response))))
    before = min(len(prompt), kept - after)
    return prompt[-before:], response[: kept - before]


@pytest.mark.parametrize("share", [0.2, 0.45, 0.9])
def test_a_share_of_a_row_is_read_where_its_response_begins(lm: CausalLM, share: float) -> None:
    whole, probe = Probe(lm), Probe(lm, share=share)
    found, counts = probe.read(list(POOL))
    assert np.array_equal(counts, whole.read(list(POOL))[1])
    assert [probe.tokens(row) for row in POOL] == probe.tokens_of(counts).tolist()
    record = probe.views.take(found, STATS)
    for row, own in zip(POOL, record, strict=True):
        prompt, response = cut(probe, row, share)
        if len(prompt) > 1 and split(probe, row)[0][0] == lm.tokenizer.bos_token_id:
            prompt[0] = lm.tokenizer.bos_token_id
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(response))
        assert own[STATISTICS.index("loss")] == pytest.approx(float(loss), abs=1e-4)
        assert own[STATISTICS.index("response")] == pytest.approx(np.log(len(response)), abs=1e-6)
    assert len(prompt) + len(response) < counts[-1]


def test_a_share_of_everything_is_the_whole_row_and_another_share_another_probe(lm: CausalLM) -> None:
    whole, half = Probe(lm, share=1.0), Probe(lm, share=0.5)
    assert whole.describe() == Probe(lm).describe() != half.describe()
    again = probe_like(half.describe(), "cpu")
    assert np.array_equal(again.read(list(POOL))[0], half.read(list(POOL))[0])
    assert (half.passes(15), whole.passes(15), Probe(lm, share=0.45).passes(10_000)) == (8, 15, 4500)


def test_rows_that_were_read_are_not_read_again(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = features_of(probe, Examples(tuple(list(POOL)[:5])))
    assert first.fresh == 5
    asked: list[int] = []
    read = CausalLM.read

    def counting(self: CausalLM, rows: Any, *more: Any, **named: Any) -> Any:
        asked.append(len(rows))
        return read(self, rows, *more, **named)

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


@pytest.mark.parametrize("widest", [8, 256])
def test_what_rds_compares_is_held_whether_or_not_features_project_it(
    widest: int, lm: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("models.probe", "labels.vectors"):
        monkeypatch.setattr(f"nncift.{module}.MOST_HIDDEN", widest)
    probe, teacher = Probe(lm), Rds(lm)
    features = features_of(probe, POOL, into=tmp_path / "probe.npy")
    assert features.vectors.shape == (len(POOL), probe.views.dim)
    about = {"ids": POOL.ids, "views": probe.views.to_json(), "probe": probe.describe(), "truncated": 0}
    (tmp_path / "probe.json").write_text(json.dumps(about))
    np.save(tmp_path / "embeddings.npy", np.eye(len(POOL), 5, dtype=np.float32))
    (tmp_path / "embeddings.json").write_text(json.dumps({"ids": POOL.ids, "truncated": 0, "encoder": {}}))
    files, reader = VectorFiles(tmp_path), json.loads(json.dumps(dict(teacher.describe())))
    teacher.prepare(POOL)
    ids = POOL.ids[::-1]
    assert files.pooled(ids, reader) == pytest.approx(teacher.measure(ids).values, abs=1e-6)
    # Students read what they read before.
    assert np.array_equal(files.of(ids)[:, 5:], features.vectors[::-1])
    assert files.pooled(ids, {**reader, "context": 7}) is None
    # Rows that were cut to the context are cut at another place for RDS.
    (tmp_path / "probe.json").write_text(json.dumps({**about, "truncated": 1}))
    assert VectorFiles(tmp_path).pooled(ids, reader) is None
