"""What a report shows of texts, and the ends of many labels: the same as from all of them, with less work."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nncift.core.pairs import LabelledPairs
from nncift.runs.report.extreme_pairs import _ends
from nncift.runs.report.samples import cut


@given(st.text("ab \n\té字", max_size=400), st.integers(1, 30))
def test_texts_are_cut_as_if_they_were_looked_at_whole(text: str, most: int) -> None:
    line = " ".join(text.split())
    data = line.encode()
    whole = line if len(data) <= most else data[:most].decode(errors="ignore").rstrip() + " …"
    assert cut(text, most) == whole


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 8))
def test_ends_are_those_of_all_pairs_in_order(values: list[int], keep: int) -> None:
    ids = tuple(map(str, range(len(values))))
    at = np.arange(len(values), dtype=np.int32)
    order = np.argsort(np.array(values, float), kind="stable")
    wanted = sorted({*order[:keep].tolist(), *order[-keep:].tolist()})
    found = _ends(LabelledPairs(ids, ids, at, at, np.array(values, np.float32)), keep)
    assert [place for _, place, _ in found] == [ids[k] for k in wanted]
