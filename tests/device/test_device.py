"""Everything that holds a language model, on a device that is not the CPU: the same numbers, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch.utils.backend_registration as backends

from nncift import cli

Write = Callable[..., Path]
SCRIPT = Path(__file__).with_name("claimed.py")
TEACHERS = {
    "delift": ["--features", "probe", "--plan", "active"],
    "less": ["--option", "lora=true", "--option", "rank=4"],
    "selectit": ["--option", "rating_prompts=rating.yaml"],
    "ifd": [],
}

RATING = """\
grades: [one, two, three, four, five]
prompts: ["{prompt} {response} what number is this:"]
"""


def commands(folder: Path, pool: Path, test: Path, model: Path) -> list[list[str]]:
    """Return a run for every teacher that asks a model, one by a sentence encoder, and a training on what the first selected."""
    found = []
    for name, given in TEACHERS.items():
        teacher = ["--teacher", name, *given, "--labels", "20%", "--budget", "6"]
        encoder = ["--encoder", str(model) if name == "ifd" else "hash"]
        found.append(["run", str(pool), "--model", str(model), *teacher, *encoder, "--out", str(folder / name)])
    lesson = ["--steps", "3", "--seeds", "1", "--arms", "selected,none", "--metrics", "loss,rougeL", "--method", "lora"]
    out = ["--model", str(model), "--test", str(test), "--out", str(folder / "tune")]
    found.append(["tune", str(folder / "delift"), *lesson, *out])
    return found


@pytest.mark.skipif(
    not hasattr(backends, "_setup_privateuseone_for_python_backend"), reason="needs a newer torch: a device in Python"
)
def test_what_runs_elsewhere_gives_what_the_cpu_gives(
    write_pool: Write, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rating.yaml").write_text(RATING)
    pool, test = write_pool(40), write_pool(6, "test.jsonl", 60)
    there, here = tmp_path / "there", tmp_path / "here"
    asked = tmp_path / "commands.json"
    asked.write_text(json.dumps(commands(there, pool, test, llama_folder)))
    own = {**os.environ, "NNCIFT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, SCRIPT, asked], capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["codes"] == [0] * (len(TEACHERS) + 1), done.stderr[-3000:]
    # The device itself is one where this could fail.
    assert told["refused"] == {"mixed": "RuntimeError", "as an array": "RuntimeError"}
    for command in commands(here, pool, test, llama_folder):
        monkeypatch.setattr(sys, "argv", ["nncift", *command, "--device", "cpu", "--quiet"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
    kept = ("embeddings", "probe", "values", "rowvalues")
    arrays = [path.relative_to(here) for path in here.rglob("*.npy") if path.name.split(".")[0].split("-")[0] in kept]
    arrays = [name for name in arrays if not name.name.endswith(".sums.npy")]
    assert {name.parts[:2] for name in arrays} >= {(name, "labels") for name in TEACHERS}
    for name in arrays:
        # Other devices get other kernels of AdamW, which round otherwise.
        np.testing.assert_allclose(np.load(there / name), np.load(here / name), rtol=1e-3, atol=1e-4, err_msg=str(name))
    for teacher in TEACHERS:
        assert (there / teacher / "subset.jsonl").read_bytes() == (here / teacher / "subset.jsonl").read_bytes(), (
            teacher
        )
    found = [json.loads((folder / "tune" / "tune.json").read_text()) for folder in (there, here)]
    losses = [
        {arm: part["metrics"]["loss"]["mean"] for arm, part in one["results"][0]["arms"].items()} for one in found
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
