"""Everything that holds a language model, on a device that is not the CPU: the same numbers, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch.utils.backend_registration as backends

from nncift.cli import main as cli
from tests.tolerances import close, features_agree, of_gradients, of_models

Write = Callable[..., Path]
Teachers = Mapping[str, Sequence[str]]
SCRIPT = Path(__file__).with_name("claimed.py")
K, EPOCHS, STEPS = 1024, 2, 3
MODEL, GRADIENT = of_models(layers=2, width=48), of_gradients(layers=2, width=48)
"""Relative errors of the tiny Llama: its sums have 48 terms at most."""

TEACHERS = {
    "delift": ["--features", "probe", "--plan", "active"],
    "less": [
        "--option",
        "lora=true",
        "--option",
        "rank=4",
        "--option",
        f"projection={K}",
        "--option",
        f"epochs={EPOCHS}",
    ],
    "selectit": ["--option", "rating_prompts=rating.yaml"],
    "ifd": [],
}

ONE = {"delift": ["--features", "probe", "--plan", "scatter"]}
"""What `make test` tries; `make test-slow` tries all, and a training."""

RATING = """\
grades: [one, two, three, four, five]
prompts: ["{prompt} {response} what number is this:"]
"""


def commands(folder: Path, pool: Path, test: Path, model: Path, teachers: Teachers) -> list[list[str]]:
    """Return a run for each of these teachers; where all are asked, also a training on what the first selected."""
    found = []
    for name, given in teachers.items():
        teacher = ["--teacher", name, *given, "--labels", "20%", "--budget", "6"]
        encoder = ["--encoder", str(model) if name == "ifd" else "hash"]
        found.append(["run", str(pool), "--model", str(model), *teacher, *encoder, "--out", str(folder / name)])
    if teachers is ONE:
        return found
    training_data = ["--steps", str(STEPS), "--seeds", "1", "--arms", "selected,none"]
    training_data += ["--metrics", "loss,rougeL", "--method", "lora"]
    out = ["--model", str(model), "--test", str(test), "--out", str(folder / "tune")]
    found.append(["tune", str(folder / "delift"), *training_data, *out])
    return found


def agree(there: Path, here: Path) -> None:
    """Compare the numbers of two runs by what arithmetic promises."""
    kept = ("embeddings", "probe", "values")
    arrays = {path.relative_to(here) for path in here.rglob("*.npy") if path.name.split(".")[0].split("-")[0] in kept}
    arrays = {name for name in arrays if not name.name.endswith(".sums.npy")}
    assert {name.parts[0] for name in arrays} >= {"labels"}
    for name in arrays:
        found, expected = np.load(there / name), np.load(here / name)
        if here.name == "less" and name.parts[0] == "labels":
            assert features_agree(found, expected, K, GRADIENT), name
        else:
            assert close(found, expected, GRADIENT if name.name.startswith("probe") else MODEL), name


@pytest.mark.parametrize(
    "teachers", [pytest.param(ONE, id="one"), pytest.param(TEACHERS, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.skipif(
    not hasattr(backends, "_setup_privateuseone_for_python_backend"), reason="needs a newer torch: a device in Python"
)
def test_what_runs_elsewhere_gives_what_the_cpu_gives(
    write_pool: Write, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, teachers: Teachers
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rating.yaml").write_text(RATING)
    pool, test = write_pool(40), write_pool(6, "test.jsonl", 60)
    there, here = tmp_path / "there", tmp_path / "here"
    asked = tmp_path / "commands.json"
    asked.write_text(json.dumps(commands(there, pool, test, llama_folder, teachers)))
    own = {**os.environ, "NNCIFT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, SCRIPT, asked], capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(done.stdout.splitlines()[-1])
    expected = commands(here, pool, test, llama_folder, teachers)
    assert record["codes"] == [0] * len(expected), done.stderr[-3000:]
    # The device itself is one where this could fail.
    assert record["refused"] == {"mixed": "RuntimeError", "as an array": "RuntimeError"}
    for command in expected:
        monkeypatch.setattr(sys, "argv", ["nncift", *command, "--device", "cpu", "--quiet"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
    for name in teachers:
        agree(there / name, here / name)
        # Rows that lie within rounding of each other may change places, and are worth the same.
        worth = [json.loads((run / name / "summary.json").read_text())["selection"]["value"] for run in (there, here)]
        assert worth[0] == pytest.approx(worth[1], rel=1e-3), name
    if teachers is ONE:
        return
    found = [json.loads((folder / "tune" / "tune.json").read_text()) for folder in (there, here)]
    losses = [
        {arm: part["metrics"]["loss"]["mean"] for arm, part in one["results"][0]["arms"].items()} for one in found
    ]
    assert losses[0] == pytest.approx(losses[1], rel=STEPS * GRADIENT)
