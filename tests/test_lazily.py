import pickle

from nncift.core.lazily import Lazily


def test_elements_are_made_when_they_are_asked_for() -> None:
    made: list[int] = []
    found = Lazily(lambda item: made.append(item) or item * 2, (1, 2, 3))  # type: ignore[func-returns-value]
    assert (len(found), made) == (3, [])
    assert (found[-1], list(found[1:]), made) == (6, [4, 6], [3, 2, 3])
    assert pickle.loads(pickle.dumps(found)) == (2, 4, 6)
