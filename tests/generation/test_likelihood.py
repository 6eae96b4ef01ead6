from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from nncift.data.examples import Example, Examples
from nncift.generation.likelihood import Losses, perplexity, response_losses
from nncift.models.causal_lm import CausalLM
from nncift.models.prompt_format import PromptFormat

Make = Callable[..., Example]


def by_transformers(lm: CausalLM, before: tuple[int, ...], example: Example, wording: PromptFormat) -> float:
    """Return the loss that transformers computes of labels which are -100 outside the response."""
    tokens = wording.tokens(example)
    prompt = [*wording.bos, *before, *tokens.prompt]
    ids = torch.tensor([[*prompt, *tokens.response]])
    labels = ids.clone()
    labels[0, : len(prompt)] = -100
    with torch.inference_mode():
        return float(lm.model(input_ids=ids, labels=labels).loss)


def test_losses_are_those_of_transformers_with_the_prompt_masked(lm: CausalLM, make: Make) -> None:
    wording = PromptFormat(lm.tokenizer)
    rows = Examples(tuple(make(str(k), "sort " * (k + 1), "red cat " * (3 - k)) for k in range(3)))
    shown = make("shown", "add one", "two")
    losses = response_losses(lm, rows, wording, {"1": [shown]}, batch_tokens=40)
    block = wording.block(shown, 999).ids
    wanted = [by_transformers(lm, block if row.id == "1" else (), row, wording) for row in rows]
    np.testing.assert_allclose(losses.loss, wanted, rtol=1e-5)
    assert losses.ids == rows.ids
    assert losses.tokens.tolist() == [len(wording.tokens(row).response) for row in rows]
    assert not losses.failures


def test_items_that_do_not_fit_keep_their_place_and_reason(llama: CausalLM, make: Make) -> None:
    rows = Examples((make("long", "red " * 200), make("fits", "sort")))
    losses = response_losses(llama, rows, PromptFormat(llama.tokenizer))
    assert np.isnan(losses.loss).tolist() == [True, False]
    assert losses.tokens[0] == 0
    assert list(losses.failures) == ["long"]
    assert "context holds 96" in losses.failures["long"]


def test_a_model_without_numbers_fails_every_item(llama: CausalLM, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        llama,
        "log_probabilities",
        lambda prefix, rows: [np.full(len(row.response), np.nan, np.float32) for row in rows],
    )
    losses = response_losses(llama, Examples((make("a", "sort"),)), PromptFormat(llama.tokenizer))
    assert "no number" in losses.failures["a"]


def test_perplexity_weighs_items_by_their_tokens() -> None:
    losses = Losses(("a", "b", "c"), np.array([1.0, 2.0, np.nan]), np.array([3, 1, 0]))
    assert perplexity(losses) == pytest.approx(np.exp(5 / 4))
    assert np.isnan(perplexity(Losses((), np.zeros(0), np.zeros(0, np.int64))))
