"""BM25: how many rare words two rows share, the plainest rival of every estimate; by the library bm25s (extra `train`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from nncift.core.arrays import Doubles
from nncift.errors import ResourceError


def bm25(targets: Sequence[str], sources: Sequence[str]) -> Doubles:
    """Return how well each source answers each target's words, `(n_targets, n_sources)`, at least 0.

    Words of two letters and more, in lower case, no stop words taken out; k1 = 1.5, b = 0.75, the idf of Lucene. Raises
    ResourceError without bm25s.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ResourceError(
            "BM25 needs the library bm25s, which is not installed: pip install bm25s, or leave BM25 out"
        ) from error
    # It says on standard error that it works.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    words = {"stopwords": None, "return_ids": False, "show_progress": False, "leave": False}
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    # A source without a single word stands for itself: an empty list among documents is refused.
    index.index([found or [""] for found in bm25s.tokenize(list(sources), **words)], show_progress=False)
    known = set(index.vocab_dict)
    # Scores are summed in float32.
    found = np.zeros((len(targets), len(sources)))
    for at, query in enumerate(bm25s.tokenize(list(targets), **words)):
        asked = [word for word in query if word in known]
        if asked:
            found[at] = index.get_scores(asked)
    return found
