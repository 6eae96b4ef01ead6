"""Teachers on a GPU: randomly initialised Llama configurations in bfloat16, since weights do not matter for speed (see speed.py).

For every teacher: tokens a second, against the plain way, peak memory, and the share of the machine's own ceiling for products of
large bfloat16 matrices, measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import teachers

from nncift.data import Examples
from nncift.models.causal_lm import CausalLM
from nncift.teachers import Chunk
from nncift.teachers.delift import Delift
from nncift.teachers.less import Less
from nncift.teachers.selectit import SelectIt

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}
REPEATS = 3
BATCH_TOKENS = 16_384


def compare(tokenizer: Any, pool: Examples) -> dict[str, Any]:
    """Measure every teacher on every configuration; `pool` are rows that the tokenizer reads."""
    import torch

    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "ceiling_teraflops": ceiling() / 1e12}
    for name, sizes in CONFIGURATIONS.items():
        lm = build(tokenizer, name, sizes)
        found[name] = {
            "delift": teachers.delift(lm, pool, 4, 64, REPEATS) | rate(lm, *delift_work(lm, pool)),
            "less": teachers.less(lm, pool, 64, REPEATS, lora=True) | rate(lm, *less_work(lm, pool)),
            "selectit": teachers.selectit(lm, pool, 32, REPEATS) | rate(lm, *selectit_work(lm, pool)),
        }
        del lm
        torch.cuda.empty_cache()
    return found


def build(tokenizer: Any, name: str, sizes: dict[str, Any]) -> CausalLM:
    """Return a randomly initialised Llama in bfloat16 on the GPU, with a vocabulary of 128,256."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128_256, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=4096, **sizes
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return CausalLM(model.eval().requires_grad_(False), tokenizer, name, name, 4096)


def ceiling(size: int = 8192) -> float:
    """Return the floating point operations a second of a product of two large bfloat16 matrices."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b)


def seconds(action: Callable[[], Any]) -> float:
    """Return the median seconds of an action, waited for, after one warm-up."""
    import torch

    times = []
    for turn in range(6):
        torch.cuda.synchronize()
        began = time.perf_counter()
        action()
        torch.cuda.synchronize()
        if turn:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def rate(lm: CausalLM, action: Callable[[], Any], tokens: int, work: float) -> dict[str, float]:
    """Return tokens a second, the share of the ceiling, and peak memory. work: floating point operations of the action."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    spent = seconds(action)
    return {
        "tokens_per_second": tokens / spent,
        "share_of_ceiling": work / spent / ceiling(),
        "peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9,
    }


def operations(lm: CausalLM, read: int, due: int, *, backward: bool = False) -> float:
    """Return the operations of products with weights: of `read` tokens in the body and of `due` in the head.

    The way back to the inputs costs as much as the way there. Attention's own products are left out, few on short texts.
    """
    config = lm.model.config
    head = int(config.vocab_size) * int(config.hidden_size)
    body = sum(value.numel() for name, value in lm.model.named_parameters() if value.dim() == 2) - 2 * head
    return (2 if backward else 1) * 2.0 * (read * body + due * head)


def delift_work(lm: CausalLM, pool: Examples) -> tuple[Callable[[], Any], int, float]:
    """Return labelling of 4 chunks, its tokens and its operations."""
    teacher = Delift(lm, batch_tokens=BATCH_TOKENS)
    teacher.prepare(pool)
    chunks = [Chunk(0, source, pool.ids[-64:]) for source in pool.ids[:4]]
    tokens = sum(teacher.label(chunk).tokens for chunk in chunks)
    due = len(chunks) * responses(teacher.wording, pool, pool.ids[-64:])
    return lambda: [teacher.label(chunk) for chunk in chunks], tokens, operations(lm, tokens, due)


def less_work(lm: CausalLM, pool: Examples) -> tuple[Callable[[], Any], int, float]:
    """Return measuring of 64 rows by LoRA gradients, its tokens and its operations (LoRA's own left out)."""
    teacher = Less(lm, warmup_share=0.0, adam="none", batch_tokens=BATCH_TOKENS)
    teacher.prepare(pool)
    ids = pool.ids[:64]
    tokens = teacher.measure(ids).tokens
    return (
        lambda: teacher.measure(ids),
        tokens,
        operations(lm, tokens, responses(teacher.wording, pool, ids), backward=True),
    )


def selectit_work(lm: CausalLM, pool: Examples) -> tuple[Callable[[], Any], int, float]:
    """Return rating of 32 rows, its tokens and its operations."""
    teacher = SelectIt(lm, batch_tokens=BATCH_TOKENS)
    teacher.prepare(pool)
    ids = pool.ids[:32]
    teacher.measure(ids)
    tokens = teacher.measure(ids).tokens
    return lambda: teacher.measure(ids), tokens, operations(lm, tokens, 5 * len(ids))


def responses(wording: Any, pool: Examples, ids: Sequence[str]) -> int:
    """Return the response tokens of rows."""
    return sum(len(wording.tokens(pool.by_id(item)).response) for item in ids)
