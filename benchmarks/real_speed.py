"""Speed of teachers on a real model, each as a share of the pass that it needs (see speed.py, part `real`).

Three passes set the measure: forward through the body; forward and back with gradients of activations alone; and with gradients
of all weights. A teacher that reads is set beside the first, one that takes gradients beside the second, over the tokens that it
has to read: what several sequences begin with counts once. Beside it stands the plain loop that anyone would write first, and for
gradients of all linear layers bergson in its own environment. All take turns in one run, in seconds of the processor on one
thread: other work on the machine then counts little, and what is left of it meets all alike.
"""

from __future__ import annotations

import ctypes
import json
import logging
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nncift.data import Examples, read
from nncift.labels.row_labels import chunks_of
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.model_parts import last_hidden_states
from nncift.models.per_sample_gradients import gradient_batches
from nncift.models.probe import Probe
from nncift.models.training_steps import row_losses
from nncift.teachers import Chunk
from nncift.teachers.delift import Delift
from nncift.teachers.ifd import Ifd
from nncift.teachers.less import Less
from nncift.teachers.loss import Loss
from nncift.teachers.rds import Rds
from nncift.teachers.selectit import SelectIt

log = logging.getLogger(__name__)
FORWARD, VOCABULARY = "forward", "forward, and the vocabulary where due"
ACTIVATIONS, WEIGHTS = "forward and back, activations", "forward and back, weights"
BATCH_TOKENS, SIDE = 2048, 16
CHUNKS = 2
"""Examples that DELIFT puts in front of all targets."""


@dataclass
class Way:
    """One thing to time.

    tokens: that must be read, each beginning once. needs: the pass that it is set beside. due: positions that must be taken to
    the vocabulary, beside a forward pass; a probe's gradient with respect to the states counts as much again.
    """

    tokens: int
    needs: str
    action: Callable[[], Any]
    due: int = 0
    plain: Callable[[], Any] | None = None
    seconds: list[float] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)
    memory_mb: float = 0.0


def compare(model: str, data: str, rows: int, repeats: int, bergson: str | None) -> Iterator[dict[str, Any]]:
    """Yield tokens a second, shares and plain loops of all teachers on a model and rows of a file, anew after every turn."""
    import torch

    torch.set_num_threads(1)
    lm = CausalLM.load(model, device="cpu")
    pool = read(data, limit=rows)
    plain = _prepared(Loss(lm), pool)
    known = list(plain.reader.rows.values())
    lengths = [len(row) for row in known]
    about = {
        "model": model if not Path(model).exists() else Path(model).name,
        "parameters": lm.model.num_parameters(),
        "rows": len(lengths),
        "tokens": sum(lengths),
        "tokens_once": once(known),
        "median_tokens": statistics.median(lengths),
    }
    with _peer(bergson, lm, pool) as peer:
        if peer is not None:
            peer.run(keep=False)
        ways = dict(_ways(lm, pool))
        for turn in range(1, repeats + 1):
            for name, way in ways.items():
                _time(way)
                log.info("turn %d: %s %s %.0f MB", turn, name, way.seconds[-1:] + way.plain_seconds[-1:], way.memory_mb)
            if peer is not None:
                peer.run(keep=True)
            found = _figures(ways)
            if peer is not None:
                found["bergson"] = peer.figures(ways[ACTIVATIONS])
            yield {"about": {**about, "repeats": turn}, "ways": found}


def command(figures: dict[str, Any]) -> str:
    """Return the command as the page shows it: without this machine's folders."""
    about = figures["about"]
    peer = " --bergson PYTHON" if "bergson" in figures["ways"] else ""
    return (
        f"python benchmarks/speed.py --only real --model {about['model']} --data FILE --rows {about['rows']} "
        f"--repeats {about['repeats']}{peer} --write"
    )


def page(figures: dict[str, Any]) -> list[str]:
    """Return the part of the page: what was read, and a table of rates and shares."""
    about, ways = figures["about"], figures["ways"]
    lines = [
        f"{about['model']}, {about['parameters'] / 1e6:.1f} M parameters, float32, one thread; {about['rows']} short rows "
        f"of public instruction sets, {about['tokens']:,} tokens under its chat template, of which {about['tokens_once']:,} are "
        "left when what rows begin with is read once. Tokens a processor second over the tokens that must be read. The share is "
        "that of the seconds which a teacher needs: of a forward pass through the body, and for each position that is due of the "
        "vocabulary's product (twice for a probe, which takes its gradient too), or of forward and back, which includes that. "
        "Memory is what a turn takes at most beyond what the process holds before it: weights, and signs of projections.",
        "",
        "| | tokens/s | of the body's forward rate | share of what it needs | times faster than the plain loop | memory, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, own in ways.items():
        share = f"{100 * own['share']:.0f} %" if "share" in own else ""
        beside = f"{100 * own['tokens_per_second'] / ways[FORWARD]['tokens_per_second']:.0f} %"
        faster = f"{own['times_faster_than_plain']:.2f}" if "times_faster_than_plain" in own else ""
        lines.append(
            f"| {name} | {own['tokens_per_second']:.0f} | {beside} | {share} | {faster} | {own['memory_mb']:.0f} |"
        )
    if "bergson" in ways:
        lines += ["", *_beside_bergson(ways)]
    return lines


def _beside_bergson(ways: dict[str, Any]) -> list[str]:
    peer = ways["bergson"]
    faster = {
        name: own["tokens_per_second"] / peer["tokens_per_second"] for name, own in ways.items() if "all linear" in name
    }
    said = "; ".join(f"{name}: {times:.2f} times" for name, times in faster.items())
    return [
        f"bergson 2.5.1 collects gradients of all linear layers of the body, projected to {SIDE} x {SIDE} numbers each, as "
        f"`logra` does here; LESS projects whole gradients to 32,768 numbers. Rates beside bergson's: {said}."
    ]


def _time(way: Way) -> None:
    began = time.process_time()
    grown = memory_of(way.action)
    way.seconds.append(time.process_time() - began)
    way.memory_mb = max(way.memory_mb, grown)
    if way.plain is not None:
        began = time.process_time()
        way.plain()
        way.plain_seconds.append(time.process_time() - began)


def _figures(ways: dict[str, Way]) -> dict[str, Any]:
    rates = {name: way.tokens / statistics.median(way.seconds) for name, way in ways.items()}
    found: dict[str, Any] = {}
    body = statistics.median(ways[FORWARD].seconds)
    vocabulary = (statistics.median(ways[VOCABULARY].seconds) - body) / ways[VOCABULARY].due
    for name, way in ways.items():
        found[name] = {"tokens_per_second": rates[name], "memory_mb": way.memory_mb}
        if name not in (FORWARD, VOCABULARY, ACTIVATIONS, WEIGHTS):
            needed = way.tokens / rates[way.needs] + (way.due * vocabulary if way.needs == FORWARD else 0.0)
            found[name] |= {"needs": way.needs, "share": needed / statistics.median(way.seconds)}
        if way.plain is not None:
            seconds = statistics.median(way.plain_seconds)
            found[name]["times_faster_than_plain"] = seconds / statistics.median(way.seconds)
    return found


def _ways(lm: CausalLM, pool: Examples) -> Iterator[tuple[str, Way]]:
    loss = Loss(lm, batch_tokens=BATCH_TOKENS)
    loss.prepare(pool)
    ids = tuple(loss.reader.rows)
    rows = list(loss.reader.rows.values())
    tokens = sum(map(len, rows))
    due = sum(len(row.response) for row in rows)
    yield FORWARD, Way(tokens, FORWARD, lambda: _forward(lm, rows))
    yield VOCABULARY, Way(tokens, FORWARD, lambda: _forward(lm, rows, due=True), due)
    yield ACTIVATIONS, Way(tokens, ACTIVATIONS, lambda: _back(lm, rows, weights=False))
    yield WEIGHTS, Way(tokens, WEIGHTS, lambda: _back(lm, rows, weights=True))
    chunks = _chunks(pool, ids)
    yield "loss", Way(once(rows), FORWARD, _all(loss, chunks), due, lambda: _losses_one_by_one(lm, rows))
    yield from _readers(lm, pool, ids, chunks)
    yield "delift", _delift(lm, pool, ids)
    yield from _gradients(lm, pool, ids, chunks, tokens)


def _chunks(pool: Examples, ids: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return rows in chunks of like length, as a run measures them."""
    characters = {item: len(pool.by_id(item).prompt) + len(pool.by_id(item).response) for item in ids}
    return chunks_of(ids, characters.__getitem__)


def _all(teacher: Any, chunks: Sequence[tuple[str, ...]]) -> Callable[[], Any]:
    return lambda: [teacher.measure(chunk) for chunk in chunks]


def _readers(
    lm: CausalLM, pool: Examples, ids: tuple[str, ...], chunks: Sequence[tuple[str, ...]]
) -> Iterator[tuple[str, Way]]:
    rds, ifd, probe = Rds(lm, batch_tokens=BATCH_TOKENS), Ifd(lm, batch_tokens=BATCH_TOKENS), Probe(lm)
    rds.prepare(pool)
    ifd.prepare(pool)
    known, examples = ifd.reader.rows, [pool.by_id(item) for item in ids]
    with_prompts = once(list(known.values()))
    due = sum(len(row.response) for row in known.values())
    alone = due + len(known)
    yield "rds", Way(with_prompts, FORWARD, _all(rds, chunks))
    yield "ifd", Way(with_prompts + alone, FORWARD, _all(ifd, chunks), 2 * due)
    yield "probe", Way(with_prompts, FORWARD, lambda: probe.read(examples), 2 * due)
    few = ids[: max(2, len(ids) // 4)]
    selectit = SelectIt(lm, batch_tokens=BATCH_TOKENS)
    selectit.prepare(pool)
    selectit.measure(few)
    needed = selectit.measure(few).tokens
    texts = [text for rater in selectit.raters for text in rater.texts]

    def plain() -> None:
        import torch

        for item in few:
            example = pool.by_id(item)
            for text in texts:
                whole = text.replace("{prompt}", example.prompt).replace("{response}", example.response)
                with torch.inference_mode():
                    lm.model(input_ids=torch.tensor([selectit.wording._ids(whole)])).logits[:, -1].softmax(-1)

    yield "selectit", Way(needed, FORWARD, lambda: selectit.measure(few), len(few) * len(texts), plain)


def _delift(lm: CausalLM, pool: Examples, ids: tuple[str, ...]) -> Way:
    import torch

    teacher = Delift(lm, batch_tokens=BATCH_TOKENS)
    teacher.prepare(pool)
    chunks = [Chunk(at, source, ids[CHUNKS:]) for at, source in enumerate(ids[:CHUNKS])]
    needed = sum(teacher.label(chunk).tokens for chunk in chunks)
    behind = {item: teacher.wording.tokens(pool.by_id(item), behind=True) for item in ids[CHUNKS:]}

    def plain() -> None:
        for chunk in chunks:
            source = pool.by_id(str(chunk.source))
            front = [*teacher.wording.bos, *teacher.wording.block(source, teacher.block_tokens).ids]
            for row in behind.values():
                with torch.inference_mode():
                    lm.model(input_ids=torch.tensor([[*front, *row.prompt, *row.response]])).logits.softmax(-1)

    due = len(chunks) * sum(len(row.response) for row in behind.values())
    return Way(needed, FORWARD, lambda: [teacher.label(chunk) for chunk in chunks], due, plain)


def _gradients(
    lm: CausalLM, pool: Examples, ids: tuple[str, ...], chunks: Sequence[tuple[str, ...]], tokens: int
) -> Iterator[tuple[str, Way]]:
    from nncift.teachers.logra import Logra

    whole = {"lora": False, "targets": ["all-linear"], "adam": "none"}
    ways: tuple[tuple[str, dict[str, Any]], ...] = (("less, lora", {}), ("less, all linear layers, no adam", whole))
    for name, settings in ways:
        teacher = _prepared(Less(lm, warmup_share=0.0, batch_tokens=BATCH_TOKENS, **settings), pool)
        # What is made once and kept: compiled loops, signs, a copy of a model that is borrowed.
        teacher.measure(ids[:1])
        plain = partial(_gradients_one_by_one, teacher, ids) if name == "less, lora" else None
        yield name, Way(tokens, ACTIVATIONS, _all(teacher, chunks), 0, plain)
    logra = _prepared(Logra(lm, projection=SIDE, batch_tokens=BATCH_TOKENS), pool)
    logra = getattr(logra, "without_warm_up", lambda: logra)()
    _prepared(logra, pool).measure(ids[:1])
    yield "logra, all linear layers", Way(tokens, ACTIVATIONS, _all(logra, chunks))


def _prepared(teacher: Any, pool: Examples) -> Any:
    teacher.prepare(pool)
    return teacher


def once(rows: Sequence[Row]) -> int:
    """Return the tokens of rows that must be read: what several begin with counts once."""
    from nncift.models.beginnings import beginnings_of, tokens_once

    return tokens_once([len(row) for row in rows], beginnings_of([row.prompt for row in rows]))


def _forward(lm: CausalLM, rows: Sequence[Row], *, due: bool = False) -> None:
    import torch

    from nncift.models.batching import batches
    from nncift.models.token_rows import laid_out

    with torch.inference_mode():
        for batch in batches([len(row) for row in rows], BATCH_TOKENS, limit=lm.padding_limit):
            laid = laid_out([rows[at] for at in batch], ())
            states = last_hidden_states(lm.model, input_ids=laid.ids, use_cache=False)
            if due:
                lm.model.get_output_embeddings()(states[laid.rows, laid.positions]).log_softmax(-1)


def _back(lm: CausalLM, rows: Sequence[Row], *, weights: bool) -> None:
    def ask(module: Any, given: Any, output: Any) -> Any:
        return output if weights else output.requires_grad_(True)

    handle = lm.model.get_input_embeddings().register_forward_hook(ask)
    lm.model.requires_grad_(weights)
    try:
        for batch in gradient_batches(lm, rows, BATCH_TOKENS):
            part = [rows[at] for at in batch]
            row_losses(lm.model, part, lm.device, head_is_last=lm.head_is_last).sum().backward()
    finally:
        handle.remove()
        lm.model.requires_grad_(False)
        for value in lm.model.parameters():
            value.grad = None


def _losses_one_by_one(lm: CausalLM, rows: Sequence[Row]) -> None:
    import torch

    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.response]])
        labels = ids.clone()
        labels[0, : len(row.prompt)] = -100
        with torch.inference_mode():
            float(lm.model(input_ids=ids, labels=labels).loss)


def _gradients_one_by_one(teacher: Less, ids: Sequence[str]) -> None:
    """Measure as anyone would first: one row, backward, Adam's first step, and both sketched coordinate by coordinate."""
    import torch

    trainable, k = teacher.trainable, teacher.projection.dimension
    size = sum(value.numel() for value in trainable.parameters.values())
    random = torch.Generator().manual_seed(0)
    places = torch.randint(k, (size,), generator=random)
    signs = torch.randint(2, (size,), generator=random).float() * 2 - 1
    with trainable.at(trainable.snapshot()):
        for value in trainable.parameters.values():
            value.requires_grad_(True)
        for item in ids:
            row = teacher.reader.rows[item]
            sequence = torch.tensor([[*row.prompt, *row.response]])
            labels = sequence.clone()
            labels[0, : len(row.prompt)] = -100
            trainable.model.zero_grad(set_to_none=True)
            trainable.model(input_ids=sequence, labels=labels).loss.backward()
            parts = [value.grad for value in trainable.parameters.values() if value.grad is not None]
            gradient = torch.cat([part.reshape(-1) for part in parts])
            for vector in (gradient, gradient / (gradient.abs() + 1e-8)):
                torch.zeros(k).index_add_(0, places, signs * vector)
        for value in trainable.parameters.values():
            value.requires_grad_(False)
            value.grad = None


def memory_of(action: Callable[[], Any]) -> float:
    """Return by how many megabytes this process grew at most while something ran; Linux alone tells."""
    # What was freed and kept by the allocator would hide what is taken next.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    action()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class _Peer:
    """bergson in a process of its own, which collects the rows' gradients whenever it is asked."""

    def __init__(self, process: subprocess.Popen[str], tokens: int) -> None:
        self._process, self._tokens = process, tokens
        self._seconds: list[float] = []

    def run(self, *, keep: bool) -> None:
        """Collect once."""
        seconds = self._asked("collect")
        if keep:
            self._seconds.append(seconds)

    def figures(self, activations: Way) -> dict[str, Any]:
        """Return its rate, its share of forward and back, and its peak memory."""
        rate = self._tokens / statistics.median(self._seconds)
        ceiling = activations.tokens / statistics.median(activations.seconds)
        return {
            "tokens_per_second": rate,
            "needs": ACTIVATIONS,
            "share": rate / ceiling,
            "memory_mb": self._asked("memory"),
        }

    def _asked(self, what: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            try:
                return float(line)
            except ValueError:
                continue
        raise SystemExit("bergson ended without an answer; run benchmarks/peer_bergson.py by hand to see why")


@contextmanager
def _peer(python: str | None, lm: CausalLM, pool: Examples) -> Iterator[_Peer | None]:
    if python is None:
        yield None
        return
    from nncift.models.loading import locate

    teacher = _prepared(Loss(lm), pool)
    rows = list(teacher.reader.rows.values())
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "rows.json"
        labels = [[-100] * len(row.prompt) + list(row.response) for row in rows]
        given.write_text(
            json.dumps({"input_ids": [[*row.prompt, *row.response] for row in rows], "labels": labels}),
            encoding="utf-8",
        )
        script = Path(__file__).with_name("peer_bergson.py")
        words = [python, str(script), str(locate(lm.name)), str(given), scratch, str(SIDE), str(BATCH_TOKENS)]
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            yield _Peer(process, sum(map(len, rows)))
        finally:
            process.terminate()
            process.wait()
