"""Teachers against the plain way, and their planned against their measured cost (see speed.py)."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import numpy as np

from nncift.data import Examples, read
from nncift.models.causal_lm import CausalLM
from nncift.teachers import Chunk, RowTeacher, Teacher, registry
from nncift.teachers.delift import Delift
from nncift.teachers.less import Less
from nncift.teachers.selectit import SelectIt

NAMES = ("delift", "less", "rds", "delift-se", "selectit", "ifd", "loss", "length")


def medians(fast: Callable[[], Any], slow: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return median seconds of two actions that take turns, after one warm-up of each.

    Seconds of the processor where one thread does all the work, so that others on the machine do not count, else of the clock.
    """
    import torch

    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if alone else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for action, found in zip((fast, slow), times, strict=True):
            began = clock()
            action()
            if turn:
                found.append(clock() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def larger(tokenizer: Any) -> CausalLM:
    """Return a randomly initialised Llama of 25M parameters with a vocabulary of 32,000."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=7,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return CausalLM(LlamaForCausalLM(config).eval().requires_grad_(False), tokenizer, "25M", "25M", 1024)


def delift(lm: CausalLM, pool: Examples, sources: int, targets: int, repeats: int) -> dict[str, Any]:
    """Label pairs: shipped, and joint sequences in padded batches of 16 with full logits."""
    import torch

    teacher = Delift(lm)
    teacher.prepare(pool)
    chosen, others = pool.ids[:sources], pool.ids[-targets:]
    rows = {item: teacher.wording.tokens(pool.by_id(item), behind=True) for item in others}
    values: dict[str, list[float]] = {"shipped": [], "plain": []}

    def shipped() -> None:
        values["shipped"] = [float(x) for source in chosen for x in teacher.label(Chunk(0, source, others)).values]

    def plain() -> None:
        found: list[float] = []
        for source in chosen:
            front = [*teacher.wording.bos, *teacher.wording.block(pool.by_id(source), teacher.block_tokens).ids]
            for start in range(0, targets, 16):
                part = others[start : start + 16]
                batch = [[*front, *rows[item].prompt, *rows[item].response] for item in part]
                width = max(map(len, batch))
                ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in batch], device=lm.device)
                lengths = torch.tensor([len(sequence) for sequence in batch], device=lm.device)
                mask = (torch.arange(width, device=lm.device) < lengths[:, None]).long()
                with torch.inference_mode():
                    probabilities = lm.model(input_ids=ids, attention_mask=mask).logits.float().softmax(-1)
                for row, (item, sequence) in enumerate(zip(part, batch, strict=True)):
                    first = len(sequence) - len(rows[item].response)
                    gold = torch.tensor(sequence[first:], device=lm.device)
                    p = probabilities[row, first - 1 : len(sequence) - 1].gather(1, gold[:, None])[:, 0]
                    found.append(float(((1 - p) ** 2).mean().sqrt()))
        values["plain"] = found

    fast, slow = medians(shipped, plain, repeats)
    return {
        "pairs_per_second": sources * targets / fast,
        "times_faster_than_joint_sequences": slow / fast,
        "largest_difference": difference(values["shipped"], values["plain"]),
        **spent(shipped, plain, slow / fast, lm),
    }


def less(lm: CausalLM, pool: Examples, rows: int, repeats: int, *, lora: bool) -> dict[str, Any]:
    """Measure rows at one checkpoint: shipped, and one row at a time through autograd, with the same projection."""
    import torch

    teacher, alone = (Less(lm, lora=lora, warmup_share=0.0, adam="none") for _ in range(2))
    teacher.prepare(pool)
    ids = pool.ids[:rows]
    tokens = [teacher.wording.tokens(pool.by_id(item)) for item in ids]
    model, parameters = alone.trainable.model, alone.trainable.parameters
    values: dict[str, Any] = {}

    def shipped() -> None:
        values["shipped"] = teacher.measure(ids).values[:, : teacher.projection.dimension]

    def plain() -> None:
        out = torch.zeros(rows, alone.projection.dimension, device=lm.device)
        with alone.trainable.at(alone.trainable.snapshot()):
            for value in parameters.values():
                value.requires_grad_(True)
            for place, row in enumerate(tokens):
                sequence = torch.tensor([[*teacher.wording.bos, *row.prompt, *row.response]], device=lm.device)
                labels = sequence.clone()
                labels[0, : -len(row.response)] = -100
                model.zero_grad(set_to_none=True)
                model(input_ids=sequence, labels=labels).loss.backward()
                for name, value in parameters.items():
                    if value.grad is not None:
                        alone.projection.add(name, value.grad.float().reshape(1, -1), out[place : place + 1])
            for value in parameters.values():
                value.requires_grad_(False)
        values["plain"] = torch.nn.functional.normalize(out, dim=1).cpu().numpy()

    fast, slow = medians(shipped, plain, repeats)
    lengths = [len(teacher.wording.bos) + len(row.prompt) + len(row.response) for row in tokens]
    return {
        "features_per_second": rows / fast,
        "times_faster_than_one_by_one": slow / fast,
        "largest_difference_of_unit_vectors": difference(values["shipped"], values["plain"]),
        "parameters": sum(value.numel() for value in parameters.values()),
        "median_tokens": statistics.median(lengths),
        **spent(shipped, plain, slow / fast, lm),
    }


def difference(one: Any, other: Any) -> float:
    """Return the largest absolute difference."""
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def spent(shipped: Callable[[], Any], plain: Callable[[], Any], faster: float, lm: CausalLM) -> dict[str, float]:
    """Return what share of each side's time goes into matrix products and attention, and the gain if nothing else were left.

    By torch's profiler, on the CPU only: a GPU's own times overlap with the launches.
    """
    from torch.profiler import ProfilerActivity, profile

    if lm.device.type != "cpu":
        return {}
    shares = []
    for action in (shipped, plain):
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            action()
        own = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
        named = ("mm", "addmm", "bmm", "baddbmm", "baddbmm_")
        kernels = sum(t for key, t in own.items() if key.removeprefix("aten::") in named or "attention" in key)
        shares.append(kernels / sum(own.values()))
    return {
        "share_of_products_and_attention": shares[0],
        "share_of_them_in_the_plain_way": shares[1],
        "times_faster_if_all_else_were_free": faster / shares[0],
    }


def selectit(lm: CausalLM, pool: Examples, rows: int, repeats: int) -> dict[str, Any]:
    """Rate rows by five prompts: shipped, and one prompt at a time with full logits."""
    import torch

    demo = lm.tokenizer.unk_token_id == lm.tokenizer.convert_tokens_to_ids("5")
    teacher = SelectIt(lm, rating_prompts="demo" if demo else None)
    teacher.prepare(pool)
    ids = pool.ids[:rows]
    texts = [text for rater in teacher.raters for text in rater.texts]
    wording = teacher.raters[0].reader.wording

    def plain() -> None:
        for item in ids:
            example = pool.by_id(item)
            for text in texts:
                whole = text.replace("{prompt}", example.prompt).replace("{response}", example.response)
                sequence = torch.tensor([[*wording.bos, *wording._ids(whole)]], device=lm.device)[:, : lm.context]
                with torch.inference_mode():
                    lm.model(input_ids=sequence).logits[:, -1].softmax(-1).cpu()

    fast, slow = medians(lambda: teacher.measure(ids), plain, repeats)
    return {"rows_per_second": rows / fast, "times_faster_than_one_by_one": slow / fast}


def compare(model: str | None, data: str | None, repeats: int, threads: int) -> dict[str, Any]:
    """Run all comparisons on a model and rows given or on those of the demo, on a model of 25M parameters, and on a GPU's."""
    import torch

    torch.set_num_threads(threads)
    small, pool = load(model, data)
    big = larger(small.tokenizer)
    few = min(repeats, 3)
    found = {
        "model": {
            "small": small.name if model is None else Path(model).name,
            "parameters": small.model.num_parameters(),
            "threads": threads,
        },
        "delift": delift(small, pool, 6, 48, repeats),
        "delift_25M": delift(big, pool, 2, 32, few),
        "less_all_parameters": less(small, pool, 48, repeats, lora=False),
        "less_lora": less(small, pool, 48, repeats, lora=True),
        "less_all_parameters_25M": less(big, pool, 8, few, lora=False),
        "less_lora_25M": less(big, pool, 8, few, lora=True),
        "selectit": selectit(small, pool, 32, repeats),
        "selectit_25M": selectit(big, pool, 8, few),
    }
    if torch.cuda.is_available():
        found["gpu"] = gpu.compare(small.tokenizer, pool)
    return found


def load(model: str | None, data: str | None, rows: int = 96) -> tuple[CausalLM, Examples]:
    """Return the model, and rows that it can read whole with room for an example."""
    from nncift.demo import make_world, model_path

    small = CausalLM.load(model or str(model_path()), device="cpu")
    if data is not None:
        pool = read(data, limit=4 * rows)
    else:
        with tempfile.TemporaryDirectory() as folder:
            pool = read(make_world(200, 0).write(folder).pool)
    teacher = Delift(small)
    room = small.context // 4
    teacher.prepare(pool)
    short = [
        row
        for row in pool
        if len(teacher.wording.tokens(row)) <= room and len(teacher.wording.block(row, 10**6).ids) <= room
    ]
    return small, Examples(tuple(short[:rows]))


def costs(model: str | None, data: str | None) -> dict[str, Any]:
    """Return planned (as `--dry-run` says) and measured passes, tokens and seconds of labelling, for every teacher."""
    import torch

    from nncift import config, pipeline
    from nncift.stages import inputs
    from nncift.stages.estimate import estimate
    from nncift.stages.request import Request

    torch.set_num_threads(1)
    small, pool = load(model, data, rows=96)
    found: dict[str, Any] = {}
    for name in NAMES:
        given: dict[str, Any] = {
            "teacher": name,
            "labels": "20%",
            "budget": "20%",
            "encoder": "hash",
            "pool": ("rows",),
        }
        needs_model = "model" in registry.settings_of(registry.teacher_class(name))
        if needs_model:
            given["model"] = small.name
        if name == "selectit" and model is None:
            given["option"] = {"rating_prompts": "demo"}
        settings = config.resolve(given)

        def fresh(settings: Any = settings, workspace: Path | None = None) -> Teacher | RowTeacher:
            return registry.create(settings, "cpu", encoder="hash", workspace=workspace)

        planned = estimate(Request.resolve(settings, pool=pool, teacher=fresh())).to_json()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            teacher = fresh(workspace=inputs.workspace_of(out))
            run = pipeline.execute(Request.resolve(settings, pool=pool, teacher=teacher, out=out), out)
        stage = run.ledger["stages"]["label"]
        found[name] = {
            "planned": planned["label"],
            "measured": {"passes": stage["model_passes"], "tokens": stage["model_tokens"], "seconds": stage["seconds"]},
            "full_teacher_passes": run.ledger["full_teacher_passes"],
            "saving": run.ledger["saving"],
        }
    return found
