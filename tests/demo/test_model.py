"""The shipped demo model: small, loadable offline, and helped by an example of the same skill (method.md 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nncift.core.seeds import generator
from nncift.demo import World, make_world, model_path
from nncift.demo.words import tokens
from tools.train_demo_model import TrainSettings, build_tokenizer, draw_document, encode_document, train


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model_path(), use_safetensors=True, local_files_only=True, dtype=torch.float32
    )
    return loaded.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(model_path(), local_files_only=True)


def prompt(row: dict[str, str]) -> str:
    return f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]


@torch.inference_mode()
def distances(model: Any, tokenizer: Any, example: dict[str, str] | None, targets: list[dict[str, str]]) -> list[float]:
    """Return d(target | example) for every target, straight from the definition."""

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return found

    front = [tokenizer.bos_token_id]
    if example is not None:
        front += ids(f"Instruction:\n{prompt(example)}\n\nResponse:\n{example['output']}\n\n")
    befores = [front + ids(f"Instruction:\n{prompt(row)}\n\nResponse:\n") for row in targets]
    answers = [[*ids(row["output"]), tokenizer.eos_token_id] for row in targets]
    longest = max(len(before) + len(answer) for before, answer in zip(befores, answers, strict=True))
    batch = torch.full((len(targets), longest), tokenizer.pad_token_id)
    for line, (before, answer) in enumerate(zip(befores, answers, strict=True)):
        batch[line, : len(before) + len(answer)] = torch.tensor(before + answer)
    probability = torch.softmax(model(input_ids=batch).logits, dim=-1)
    found = []
    for line, (before, answer) in enumerate(zip(befores, answers, strict=True)):
        places = torch.arange(len(before) - 1, len(before) - 1 + len(answer))
        gold = probability[line, places, torch.tensor(answer)]
        found.append(float(((1 - gold) ** 2).mean().sqrt()))
    return found


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(200, seed=11, corrupted=0.25, duplicates=0.0)


@pytest.fixture(scope="module")
def utility(model: Any, tokenizer: Any, world: World) -> npt.NDArray[np.float64]:
    """Utilities, shape (n_targets, n_sources), over the first sixty rows of a pool."""
    rows = list(world.pool[:60])
    alone = np.array(distances(model, tokenizer, None, rows))
    return np.stack([alone - np.array(distances(model, tokenizer, row, rows)) for row in rows], axis=1)


@pytest.fixture(scope="module")
def masks(world: World) -> dict[str, npt.NDArray[np.bool_]]:
    known = [world.truth[row["id"]] for row in world.pool[:60]]
    skill = np.array([truth.skill for truth in known])
    clean = ~np.array([truth.corrupted for truth in known])
    same = (skill[:, None] == skill[None, :]) & ~np.eye(60, dtype=bool)
    other = skill[:, None] != skill[None, :]
    return {
        "same": same & clean[:, None] & clean[None, :],
        "other": other & clean[:, None] & clean[None, :],
        "wrong": same & clean[:, None] & ~clean[None, :],
    }


def test_model_is_small_and_comes_with_its_log() -> None:
    assert (model_path() / "model.safetensors").stat().st_size <= 4 * 2**20
    assert "step" in (model_path() / "train.log").read_text(encoding="utf-8")


def test_tokenizer_keeps_line_ends_and_adds_the_start(tokenizer: Any) -> None:
    text = "Instruction:\nTranslate into Zorvic: fox\n\nResponse:\naha fox taka"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids) == tokens(text)
    assert tokenizer(text).input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id is not None


def test_tokenising_in_parts_changes_nothing(tokenizer: Any) -> None:
    parts = [
        "Instruction:\nLabel every word the Tinta way.\nfox\n\nResponse:\n",
        "aha fox jade",
        "\n\n",
        "Instruction:",
    ]
    ids = [tokenizer(part, add_special_tokens=False).input_ids for part in parts]
    assert [found for part in ids for found in part] == tokenizer("".join(parts), add_special_tokens=False).input_ids


def test_shipped_tokenizer_is_the_one_that_is_built(tokenizer: Any) -> None:
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()


@pytest.mark.parametrize("seed", range(4))
def test_every_word_of_a_world_is_known_and_rows_are_short(tokenizer: Any, seed: int) -> None:
    for row in make_world(200, seed).pool:
        ids = tokenizer(f"Instruction:\n{prompt(row)}\n\nResponse:\n{row['output']}").input_ids
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= 40


def test_clean_examples_of_the_same_skill_help_most_targets(
    utility: npt.NDArray[np.float64], masks: dict[str, npt.NDArray[np.bool_]]
) -> None:
    targets = np.flatnonzero(masks["same"].any(axis=1) & masks["other"].any(axis=1))
    better = [utility[t, masks["same"][t]].mean() > utility[t, masks["other"][t]].mean() for t in targets]
    assert len(better) >= 30
    assert np.mean(better) >= 0.9


def test_mean_gains(utility: npt.NDArray[np.float64], masks: dict[str, npt.NDArray[np.bool_]]) -> None:
    gain = {name: float(utility[mask].mean()) for name, mask in masks.items()}
    assert gain["same"] >= 0.2
    assert abs(gain["other"]) <= 0.05
    assert gain["wrong"] <= 0.6 * gain["same"]


def test_training_repeats_itself() -> None:
    settings = TrainSettings(steps=2, documents=2, width=16, inner=16, layers=2, heads=2)
    said: list[str] = []
    weights = [train(settings, said.append)[0].state_dict() for _ in range(2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert "parameters" in said[0]


def test_training_documents_never_reward_a_corrupted_answer() -> None:
    rng, index = generator(0, "test"), build_tokenizer().get_vocab()
    wrong = 0
    for _ in range(200):
        rows = draw_document(rng, 0.9, corrupted=0.5)
        _, labels = encode_document(rows, index)
        scored = sum(label >= 0 for label in labels)
        assert scored == sum(len(tokens(row.response)) + 1 for row in rows if row.clean)
        assert rows[-1].clean
        wrong += sum(not row.clean for row in rows)
    assert wrong > 50
