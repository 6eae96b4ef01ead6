"""The peers' own environment, made on first use, and a call into it: they need other packages than nncift does."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PEERS = ("submodlib", "apricot")
PACKAGES = ("submodlib-py==0.0.3", "apricot-select==0.6.1", "nose", "scikit-learn", "numpy")
FOLDER = Path(__file__).parent / ".peers"
LIMIT_S = 400


def python() -> Path:
    """Return the interpreter of the peers' environment, made in a minute where it is not there yet."""
    interpreter = FOLDER / "bin" / "python"
    ready = FOLDER / ".ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "-qq", *PACKAGES], check=True)
        ready.touch()
    return interpreter


def choose(library: str, similarity: npt.NDArray[np.float32], k: int, limit_s: int = LIMIT_S) -> dict[str, Any] | None:
    """Return the positions that a peer chooses by facility location and its seconds; None beyond the limit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "similarity.npy"
        np.save(path, similarity, allow_pickle=False)
        script = str(Path(__file__).with_name("peer_select.py"))
        done = subprocess.run(
            [str(python()), script, library, str(path), str(k), str(limit_s)], capture_output=True, check=False
        )
    if done.returncode == -14:
        return None
    if done.returncode:
        raise RuntimeError(f"{library} failed: {done.stderr.decode()[-500:]}")
    # Progress bars may stand before the last line.
    found: dict[str, Any] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return found
