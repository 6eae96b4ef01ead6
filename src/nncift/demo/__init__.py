"""The demo world: a generated pool whose true influences are known, and a tiny language model that can judge it."""

from __future__ import annotations

from pathlib import Path

from nncift.demo.world import Truth, World, WorldFiles, make_world, read_truth

__all__ = ["Truth", "World", "WorldFiles", "make_world", "model_path", "read_truth"]


def model_path() -> Path:
    """Return the folder of the tiny causal language model that ships with the package (Hugging Face layout)."""
    return Path(__file__).parent / "model"
