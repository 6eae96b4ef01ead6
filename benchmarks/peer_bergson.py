"""bergson 2.5.1 on rows of tokens, for `speed.py --bergson PYTHON` and `peer_rankings.py`; in an environment of its own.

    python -m venv PEER; PEER/bin/pip install -c constraints.txt bergson==2.5.1; PEER/bin/pip uninstall -y torchvision torchaudio

Called with a model folder, a JSON file of rows (`input_ids` and `labels`) and a scratch folder. For every line on standard input
it collects the rows' gradients once, as `bergson build` does (all linear layers, projected from both sides), and prints the
processor seconds of that, or where the line is `memory` by how much the process grew at most, beyond the model, in megabytes.

Called with `rank` and a JSON file of what is asked, it scores pool rows for every target row by the steps of its own pipelines
`ekfac` and `trackstar`, and writes the scores of each into the scratch folder.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bergson.build import build_worker
from bergson.cli.commands import Build, Hessian
from bergson.collection import collect_gradients
from bergson.collector.collector import HookCollectorBase, create_module_projection_matrix
from bergson.config.config import HessianConfig, IndexConfig, InversionConfig, PreprocessConfig, ScoreConfig
from bergson.config.config_io import save_run_config
from bergson.data import allocate_batches, load_scores
from bergson.gradients import GradientProcessor
from bergson.hessians.apply_hessian import EkfacConfig, apply_worker
from bergson.hessians.hessian_approximations import hessian_worker
from bergson.process_grads import mix_autocorrelation_matrices
from bergson.score.score import score_worker
from bergson.utils.math import compute_lambda
from bergson.utils.worker_utils import create_processor, setup_model_and_peft
from datasets import Dataset
from safetensors.torch import load_file, save_file

ALONE = (0, 0, 1)
"""Rank, local rank and number of processes."""


def main() -> None:
    """Rank where that is asked, else load once and collect for every line."""
    torch.set_num_threads(1)
    if sys.argv[1] == "rank":
        Ranker(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))).run()
    else:
        collect()


def collect() -> None:
    """Load once, then collect for every line."""
    model_folder, rows, scratch = sys.argv[1:4]
    side, batch_tokens = int(sys.argv[4]), int(sys.argv[5])
    data = dataset(json.loads(Path(rows).read_text(encoding="utf-8")))
    out = Path(scratch) / "index"
    config = IndexConfig(
        run_path=str(out), model=model_folder, precision="fp32", projection_dim=side, token_batch_size=batch_tokens
    )
    model, targets = setup_model_and_peft(config)
    # What was freed and kept by the allocator would hide what is taken next.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print((_status("VmHWM") - before) / 1024, flush=True)
            continue
        print(_collected(model, targets, data, config), flush=True)


def dataset(rows: dict[str, Any]) -> Dataset:
    """Return rows of `input_ids` and `labels` as the pipelines read them."""
    return Dataset.from_dict({**rows, "length": [len(ids) for ids in rows["input_ids"]]})


class Ranker:
    """Scores of pool rows for target rows. given: `model`, `scratch`, `filter`, `side`, `seed`, and rows by name.

    The rows are `pool`, `targets`, and `drawn`: those of the pool with labels that another sampled. `moments`: a safetensors file
    of second moments by parameter, for TrackStar.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.scratch = given, Path(given["scratch"])
        self.rows = {name: dataset(given[name]) for name in ("pool", "targets", "drawn")}

    def run(self) -> None:
        """Write `scores.npz`, pool rows by target rows, `about.json`, and the projections of layers, `sides.safetensors`."""
        torch.manual_seed(self.given["seed"])
        about: dict[str, float] = {}
        found = {"plain": self._scores("plain", self._queries("queries"), PreprocessConfig(), 0)}
        for name, data, given_labels in (("ekfac", "pool", False), ("ekfac, same labels", "drawn", True)):
            fitted = HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=given_labels)
            applied = EkfacConfig(
                hessian_method_path=self._hessian(name, data, fitted, 0),
                gradient_path=self._queries("queries"),
                run_path=str(self.scratch / f"{name}-query"),
                ev_correction=True,
            )
            apply_worker(*ALONE, applied, InversionConfig())
            found[name] = self._scores(name, applied.run_path, PreprocessConfig(), 0)
        for name, moments in (("trackstar", ""), ("trackstar, same moments", self._optimizer())):
            found[name], about[name] = self._trackstar(name, moments)
        save_file(self._sides(), self.scratch / "sides.safetensors")
        arrays: dict[str, Any] = dict(found)
        np.savez(self.scratch / "scores.npz", **arrays)
        (self.scratch / "about.json").write_text(json.dumps(about), encoding="utf-8")

    def _trackstar(self, name: str, moments: str) -> tuple[np.ndarray, float]:
        """Return scores, and the share of the targets in the matrix that gradients are preconditioned with."""
        side, fitted = self.given["side"], HessianConfig(method="autocorrelation")
        own, theirs = (
            self._hessian(f"{name}-{data}", data, fitted, side, optimizer_state=moments) for data in ("pool", "targets")
        )
        mixed = str(self.scratch / f"{name}-mixed")
        mix_autocorrelation_matrices(query_path=theirs, index_path=own, output_path=mixed)
        parts = [GradientProcessor.load(Path(path)).hessians_eigen for path in (theirs, own)]
        scored = PreprocessConfig(unit_normalize=True, hessian_path=mixed)
        queries = self._queries(f"{name}-query", scored, side, optimizer_state=moments)
        return self._scores(name, queries, scored, side, optimizer_state=moments), compute_lambda(*parts)

    def _config(self, name: str, side: int, **more: Any) -> IndexConfig:
        return IndexConfig(
            run_path=str(self.scratch / name),
            model=self.given["model"],
            precision="fp32",
            projection_dim=side,
            loss_reduction="mean",
            filter_modules=self.given["filter"],
            **more,
        )

    def _queries(self, name: str, given: PreprocessConfig | None = None, side: int = 0, **more: Any) -> str:
        config, given = self._config(name, side, **more), given or PreprocessConfig()
        if not Path(config.run_path).exists():
            save_run_config(Build(config, given), config.partial_run_path)
            build_worker(*ALONE, config, given, self.rows["targets"])
            config.partial_run_path.rename(config.run_path)
        return str(config.run_path)

    def _hessian(self, name: str, data: str, fitted: HessianConfig, side: int, **more: Any) -> str:
        config = self._config(f"{name}-hessian", side, **more)
        save_run_config(Hessian(hessian_cfg=fitted, index_cfg=config), config.partial_run_path)
        hessian_worker(*ALONE, config, fitted, self.rows[data])
        config.partial_run_path.rename(config.run_path)
        return str(config.run_path)

    def _scores(self, name: str, queries: str, given: PreprocessConfig, side: int, **more: Any) -> np.ndarray:
        config = self._config(f"{name}-scores", side, **more)
        config.partial_run_path.mkdir()
        score_worker(*ALONE, config, ScoreConfig(query_path=queries), given, self.rows["pool"])
        return np.array(load_scores(config.partial_run_path)[:])

    def _sides(self) -> dict[str, torch.Tensor]:
        """Return the projections of errors (`|left`) and of inputs (`|right`) by layer, `(side, width)`."""
        side, (model, _) = self.given["side"], setup_model_and_peft(self._config("sides", 0))
        layers = HookCollectorBase.discover_targets(model.base_model, None, False, self.given["filter"])
        cpu, drawn = torch.device("cpu"), ("rademacher", "jl", None)
        return {
            f"{name}|{role}": create_module_projection_matrix(name, role, side, width, torch.float32, cpu, *drawn)
            for name, (_, widths, _) in layers.items()
            for role, width in zip(("left", "right"), widths, strict=True)
        }

    def _optimizer(self) -> str:
        """Return the path of an optimiser's state that holds the second moments."""
        moments = load_file(self.given["moments"])
        state = {at: {"param_name": name, "exp_avg_sq": value} for at, (name, value) in enumerate(moments.items())}
        path = self.scratch / "optimizer.pt"
        torch.save({"state": state, "param_groups": []}, path)
        return str(path)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _collected(model: Any, targets: Any, data: Dataset, config: IndexConfig) -> float:
    shutil.rmtree(config.partial_run_path, ignore_errors=True)
    config.partial_run_path.mkdir(parents=True)
    began = time.process_time()
    collect_gradients(
        model=model,
        data=data,
        processor=create_processor(model, config, targets),
        cfg=config,
        target_modules=targets,
        attention_cfgs={},
        preprocess_cfg=PreprocessConfig(),
        batches=allocate_batches(data["length"][:], config.token_batch_size),
    )
    return time.process_time() - began


if __name__ == "__main__":
    main()
