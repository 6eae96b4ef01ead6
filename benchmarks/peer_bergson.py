"""bergson 2.5.1 on rows of tokens, for `speed.py --only real --bergson PYTHON`; it runs in an environment of its own.

    python -m venv PEER; PEER/bin/pip install -c constraints.txt bergson==2.5.1; PEER/bin/pip uninstall -y torchvision torchaudio

Called with a model folder, a JSON file of rows (`input_ids` and `labels`) and a scratch folder. For every line on standard input
it collects the rows' gradients once, as `bergson build` does (all linear layers, projected from both sides), and prints the
processor seconds of that, or where the line is `memory` by how much the process grew at most, beyond the model, in megabytes.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bergson.collection import collect_gradients
from bergson.config.config import IndexConfig, PreprocessConfig
from bergson.data import allocate_batches
from bergson.utils.worker_utils import create_processor, setup_model_and_peft
from datasets import Dataset


def main() -> None:
    """Load once, then collect for every line."""
    model_folder, rows, scratch = sys.argv[1:4]
    side, batch_tokens = int(sys.argv[4]), int(sys.argv[5])
    torch.set_num_threads(1)
    given = json.loads(Path(rows).read_text(encoding="utf-8"))
    data = Dataset.from_dict({**given, "length": [len(ids) for ids in given["input_ids"]]})
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
