"""Facility location by submodlib-py and apricot-select; run by peers.py with the interpreter of their own environment.

Arguments: library, .npy file of similarities, number of rows, seconds allowed. Prints positions and seconds as JSON.
"""

import json
import signal
import sys
import time
from typing import Any

import numpy as np


def submodlib(similarity: Any, k: int) -> list[int]:
    """Return positions in order."""
    from submodlib.functions.facilityLocation import FacilityLocationFunction

    n = len(similarity)
    function = FacilityLocationFunction(n=n, mode="dense", sijs=similarity, separate_rep=False)
    chosen = function.maximize(
        budget=k,
        optimizer="LazyGreedy",
        stopIfZeroGain=False,
        stopIfNegativeGain=False,
        verbose=False,
        show_progress=False,
    )
    return [int(place) for place, _ in chosen]


def apricot(similarity: Any, k: int) -> list[int]:
    """Return positions in order."""
    from apricot import FacilityLocationSelection

    selection = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy", verbose=False)
    return [int(place) for place in selection.fit(similarity.astype(np.float64)).ranking]


def main() -> None:
    """Time one library on one matrix."""
    library, path, k, limit = sys.argv[1:]
    similarity = np.load(path)
    signal.alarm(int(limit))
    # Compiled code is loaded before anything is timed.
    globals()[library](np.ascontiguousarray(similarity[:50, :50]), 5)
    began = time.perf_counter()
    places = globals()[library](similarity, int(k))
    print(json.dumps({"seconds": time.perf_counter() - began, "places": places}))


if __name__ == "__main__":
    main()
