"""Trains the demo's tiny language model: `python tools/train_demo_model.py --out DIR --seed 0` (one core, minutes).

Every training document draws fresh skills, so a rule can only be read off the rows that stand before a target; in the
demo pool the same kind of rules is fixed. That is what makes an example's help real. Rows with corrupted answers stand
in the documents too, but the loss never rewards saying such an answer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nncift.core.seeds import derive, generator
from nncift.demo.words import CONTENT, FAMILIES, NAMES, tokens, vocabulary
from nncift.demo.world_rules import CORRUPTIONS, Skill, draw_skill, draw_words

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
CONTEXT = 512
NOT_SCORED = -100
_Encoded = tuple[list[int], list[int]]


@dataclass(frozen=True)
class TrainSettings:
    """How the model is built and trained. `documents` per step; `corrupted` is the share of corrupted rows in front."""

    seed: int = 0
    steps: int = 1200
    documents: int = 12
    warmup: int = 60
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    corrupted: float = 0.08
    width: int = 128
    inner: int = 256
    layers: int = 3
    heads: int = 4
    spread: float = 0.08


SHAPE = ("width", "inner", "layers", "heads")
"""What makes a model of another size."""


@dataclass(frozen=True)
class _Row:
    prompt: str
    response: str
    clean: bool


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer: words, punctuation marks and line ends are tokens; `<s>` is put in front."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = [PAD, BOS, EOS, UNKNOWN, *vocabulary()]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, words.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(settings: TrainSettings, entries: int) -> PreTrainedModel:
    """Return an untrained Llama of the settings' size over a vocabulary of so many entries."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(derive(settings.seed, "demo", "weights"))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=entries,
            hidden_size=settings.width,
            intermediate_size=settings.inner,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            initializer_range=settings.spread,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            attention_bias=True,
        )
    )
    _start_looking_back(model)
    return model


def _start_looking_back(model: PreTrainedModel) -> None:
    """Start the first two layers near an induction circuit, which training else takes most of its time to find.

    What layers add is scaled down, so that a token's own embedding stays legible in the residual stream.

    Half of the first layer's heads attend to the token before (through biases that the rotary embedding turns by one
    position) and copy it into a block of their own; the same heads of the second layer look for tokens whose
    predecessor equals the current token and copy them.
    """
    import torch

    config = model.config
    size = config.hidden_size // config.num_attention_heads
    basis = torch.linalg.qr(torch.randn(config.hidden_size, config.hidden_size))[0]
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    angles = torch.tensor([config.rope_parameters["rope_theta"] ** (-2 * pair / size) for pair in range(3)])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.1
            layer.mlp.down_proj.weight *= 0.1
        for head in range(config.num_attention_heads // 2):
            rows = slice(head * size, (head + 1) * size)
            here = basis[2 * head * size : (2 * head + 1) * size]
            before = basis[(2 * head + 1) * size : (2 * head + 2) * size]
            for projection in (first.q_proj, first.k_proj):
                projection.weight[rows] *= 0.1
            real, imaginary = torch.arange(3) + head * size, torch.arange(3) + head * size + size // 2
            first.q_proj.bias[real], first.q_proj.bias[imaginary] = 7 * torch.cos(angles), -7 * torch.sin(angles)
            first.k_proj.bias[real] = 7.0
            first.v_proj.weight[rows] = here
            first.o_proj.weight[:, rows] = 0.15 * before.T
            second.q_proj.weight[rows] = 2 * here
            second.k_proj.weight[rows] = before
            second.v_proj.weight[rows] = here
            second.o_proj.weight[:, rows] = 0.3 * here.T


def draw_document(rng: np.random.Generator, progress: float, corrupted: float) -> list[_Row]:
    """Draw the rows of one training document: fresh skills, a few rows, the last of them clean.

    progress: 0 to 1, how far the training is. Early documents have one skill, many rows and small dictionaries, so that
    looking back pays at once; later ones have 0 to 6 rows in front, of the same skill and of others.
    """
    easy = rng.random() > 2.5 * progress
    count = int(rng.integers(4, 9)) if easy else 1 + int(rng.choice(7, p=[0.08, 0.4, 0.2, 0.12, 0.08, 0.06, 0.06]))
    width = int(rng.integers(3, 7)) if easy else int(rng.integers(6, 11))
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[: 1 if easy else int(rng.integers(1, 4))]]
    skills = [draw_skill(name, FAMILIES[int(rng.integers(len(FAMILIES)))], rng, width) for name in names]
    rows: list[_Row] = []
    for index in range(count):
        skill = skills[int(rng.integers(len(skills)))]
        wrong = index < count - 1 and rng.random() < corrupted
        rows.append(_draw_row(skill, rng, wrong))
    return rows


def _draw_row(skill: Skill, rng: np.random.Generator, wrong: bool) -> _Row:
    words = draw_words(skill, int(rng.integers(2, 7)), rng)
    instruction, extra = skill.prompt(words, int(rng.integers(12)))
    response = skill.answer(words)
    if wrong:
        other = draw_skill("", FAMILIES[int(rng.integers(len(FAMILIES)))], rng)
        response, _ = skill.corrupt(words, CORRUPTIONS[int(rng.integers(len(CORRUPTIONS)))], other, rng)
    return _Row(f"{instruction}\n{extra}" if extra else instruction, response, not wrong)


def encode_document(rows: Sequence[_Row], index: dict[str, int]) -> tuple[list[int], list[int]]:
    """Return ids and labels of a document in the plain template; labels are NOT_SCORED outside clean responses.

    The end of every clean response is scored as the end of the sequence, although a further row may follow it.
    """
    ids, labels = [index[BOS]], [NOT_SCORED]
    for position, row in enumerate(rows):
        last = position == len(rows) - 1
        before = [index[token] for token in tokens(f"Instruction:\n{row.prompt}\n\nResponse:\n")]
        after = [index[token] for token in tokens(row.response)] + ([index[EOS]] if last else [])
        ids += before + after
        labels += [NOT_SCORED] * len(before) + (after if row.clean else [NOT_SCORED] * len(after))
        if not last:
            ids += [index["\n"]] * 2
            labels += [index[EOS] if row.clean else NOT_SCORED, NOT_SCORED]
    return ids, labels


def train(
    settings: TrainSettings, say: Callable[[str], None] = print
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train a model and return it with its tokenizer; the same settings give the same weights on one machine."""
    import torch

    tokenizer = build_tokenizer()
    index = tokenizer.get_vocab()
    model = build_model(settings, len(index))
    say(f"{sum(weight.numel() for weight in model.parameters())} parameters, {len(index)} tokens in the vocabulary")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    rng = generator(settings.seed, "demo", "documents")
    model.train()
    start, seen = time.perf_counter(), 0
    copied = torch.zeros(len(index), dtype=torch.bool)
    copied[[index[word] for word in CONTENT]] = True
    end = index[EOS]
    means: dict[str, float] = {}
    waiting: list[list[_Encoded]] = []
    for step in range(settings.steps):
        waiting = waiting or _batches(settings, step / settings.steps, index, rng)
        ids, labels = _pad(waiting.pop())
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        scored = labels[:, 1:] != NOT_SCORED
        gold = labels[:, 1:][scored]
        losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[scored]), gold, reduction="none")
        loss = losses.mean()
        _tally(
            means, losses.detach(), {"words": copied[gold], "ends": gold == end, "rules": ~copied[gold] & (gold != end)}
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen += ids.numel()
        if step % 50 == 49 or step == settings.steps - 1:
            seconds = time.perf_counter() - start
            parts = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
            say(f"step {step + 1:5d}  loss {loss.item():.3f}  {parts}  tokens {seen}  {seconds:.0f} s")
    model.eval()
    return model, tokenizer


def _tally(means: dict[str, float], losses: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
    """Keep running means of the loss by kind of token, over about fifty steps."""
    for name, part in parts.items():
        if bool(part.any()):
            now = float(losses[part].mean())
            means[name] = 0.98 * means.get(name, now) + 0.02 * now


def _batches(
    settings: TrainSettings, progress: float, index: dict[str, int], rng: np.random.Generator
) -> list[list[_Encoded]]:
    """Draw the documents of eight steps and batch those of similar length together, which saves padding."""
    drawn = [draw_document(rng, progress, settings.corrupted) for _ in range(8 * settings.documents)]
    encoded = sorted((encode_document(rows, index) for rows in drawn), key=lambda pair: len(pair[0]))
    cuts = [encoded[start : start + settings.documents] for start in range(0, len(encoded), settings.documents)]
    return [cuts[i] for i in rng.permutation(len(cuts))]


def _rate(step: int, settings: TrainSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * done)))


def _pad(documents: Sequence[_Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    longest = max(len(ids) for ids, _ in documents)
    ids = torch.zeros((len(documents), longest), dtype=torch.long)
    labels = torch.full((len(documents), longest), NOT_SCORED)
    for position, (row_ids, row_labels) in enumerate(documents):
        ids[position, : len(row_ids)] = torch.tensor(row_ids)
        labels[position, : len(row_labels)] = torch.tensor(row_labels)
    return ids, labels


def main() -> None:
    """Train from the command line and write model, tokenizer and log into a folder."""
    import torch

    parser = argparse.ArgumentParser(description="Train the demo's tiny language model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, the tokenizer and train.log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=TrainSettings.steps)
    for name in SHAPE:
        parser.add_argument(f"--{name}", type=int, default=getattr(TrainSettings, name))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    shape = {name: getattr(options, name) for name in SHAPE}
    settings = TrainSettings(seed=options.seed, steps=options.steps, **shape)
    with (options.out / "train.log").open("w", encoding="utf-8") as log:

        def say(line: str) -> None:
            print(line, flush=True)
            log.write(line + "\n")
            log.flush()

        say(f"train_demo_model {settings}, torch {torch.__version__}, one thread")
        model, tokenizer = train(settings, say)
    model.save_pretrained(options.out)
    (options.out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
