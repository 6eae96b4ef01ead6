"""Batches shrink where memory runs out, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift.errors import ResourceError
from nncift.models.batching import BatchLimit
from nncift.models.causal_lm import CausalLM
from nncift.models.encoders import LanguageModelEncoder, SentenceEncoder

from .conftest import content

Start = Callable[..., Any]


@pytest.mark.parametrize("most", range(3, 30, 4))
def test_items_keep_their_order_and_are_done_once(most: int) -> None:
    fits = BatchLimit()
    done: list[int] = []

    def do(part: Sequence[int]) -> Sequence[int]:
        if len(part) * max(part) > most:
            raise torch.OutOfMemoryError
        done.extend(part)
        return [-item for item in part]

    items = [1, 2, 2, 3, 3, 1, 2]
    assert fits.run(items, lambda item: item, do) == [-item for item in items]
    assert done == items
    assert fits.most is None or fits.most >= most // 2


def test_memory_of_the_process_shrinks_batches_too_and_other_errors_do_not() -> None:
    def do(
        part: Sequence[int], refusal: str = "DefaultCPUAllocator: can't allocate memory: you tried"
    ) -> Sequence[int]:
        if len(part) > 2:
            raise RuntimeError(refusal)
        return part

    fits = BatchLimit()
    assert fits.run([1, 2, 3, 4, 5], lambda item: 1, do) == [1, 2, 3, 4, 5]
    assert fits.most == 2
    with pytest.raises(RuntimeError, match="shapes do not match"):
        BatchLimit().run([1, 2, 3], lambda item: 1, lambda part: do(part, "shapes do not match"))


def test_an_item_that_never_fits_is_an_error_after_the_last_halving() -> None:
    def do(part: Sequence[int]) -> Sequence[int]:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        BatchLimit().run([5, 5, 5], lambda item: item, do)


def test_labels_do_not_depend_on_what_fits(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start("alone", labels="30%")
    body, tried = CausalLM._body, []

    def limited(lm: CausalLM, ids: torch.Tensor, **kwargs: Any) -> Any:
        tried.append(ids.shape)
        if ids.shape[0] > 1 and ids.numel() > 24:
            raise torch.OutOfMemoryError
        return body(lm, ids, **kwargs)

    monkeypatch.setattr(CausalLM, "_body", limited)
    start("small", labels="30%")
    assert any(rows > 1 and rows * width > 24 for rows, width in tried)
    (alone, small) = (content(tmp_path / name) for name in ("alone", "small"))
    plans = [name for name in alone if name.startswith("labels/plan")]
    assert plans
    assert [alone[name] for name in plans] == [small[name] for name in plans]
    assert alone["stages"]["label"][1] == small["stages"]["label"][1]
    one, other = (np.load(tmp_path / name / "labels/values-000.npy") for name in ("alone", "small"))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_encoders_halve_their_batches(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = CausalLM.load(llama_folder)
    encoder, texts = LanguageModelEncoder(lambda: lm), ["red blue", "cat dog bird", "one two three four"]
    whole = encoder.encode(texts)[0]
    pool = encoder._pool

    def limited(ids: Sequence[Sequence[int]]) -> Any:
        if len(ids) > 1:
            raise torch.OutOfMemoryError
        return pool(ids)

    monkeypatch.setattr(encoder, "_pool", limited)
    np.testing.assert_allclose(encoder.encode(texts)[0], whole, rtol=1e-5, atol=1e-6)


class FakeSentences:
    """Stands in for a sentence-transformers model that holds so many texts at a time."""

    max_seq_length = 256

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, []  # type: ignore[var-annotated]

    def encode(self, texts: list[str], batch_size: int, **more: Any) -> Any:
        """Return one vector per text."""
        self.sizes.append(batch_size)
        if batch_size > self.most:
            raise torch.OutOfMemoryError
        return np.ones((len(texts), 4), np.float32)

    def tokenizer(self, texts: list[str], **more: Any) -> dict[str, Any]:
        """Return one token per text."""
        return {"input_ids": [[1]] * len(texts)}


def test_a_sentence_encoder_halves_its_batch_and_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, model = SentenceEncoder("minilm", batch_size=32), FakeSentences(8)
    encoder.__dict__["model"] = model
    encoder.encode(["a", "b"])
    encoder.encode(["c"])
    assert model.sizes == [32, 16, 8, 8]
    model.most = 0
    with pytest.raises(ResourceError, match="one text"):
        encoder.encode(["d"])
