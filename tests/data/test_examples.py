"""Examples as a collection: lookup, subset, unique ids, content hash."""

import pytest

from nncift.data import Example, Examples, Message, Rejection, content_hash
from nncift.errors import DataError


def example(name: str, response: str = "yes") -> Example:
    return Example(name, "q", response, (Message("user", "q"),), "file", 1, '{"prompt": "q"}')


def test_subset_has_the_order_of_the_ids() -> None:
    pool = Examples((example("a"), example("b"), example("c")))
    assert pool.subset(["c", "a"]).ids == ("c", "a")


def test_unknown_id_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Examples((example("a"),)).by_id("b")


def test_slice_is_a_collection_and_index_an_example() -> None:
    pool = Examples((example("a"), example("b")))
    assert pool[1:].ids == ("b",)
    assert pool[0].id == "a"


def test_ids_must_be_unique() -> None:
    with pytest.raises(DataError, match="'a' names more than one"):
        Examples((example("a"), example("a")))


def test_content_hash_tells_role_content_and_border_apart() -> None:
    hashes = {
        content_hash([Message("user", "ab")], "c"),
        content_hash([Message("user", "a")], "bc"),
        content_hash([Message("system", "ab")], "c"),
        content_hash([Message("user", "ab"), Message("assistant", "c")], "c"),
    }
    assert len(hashes) == 4


def test_content_hash_stays_the_same_between_versions() -> None:
    assert content_hash([Message("user", "q")], "a") == "32d692c1536af8b6588b45dc1b586714"


def test_row_is_the_parsed_original() -> None:
    assert example("a").row == {"prompt": "q"}


def test_kind_of_a_rejection_leaves_the_details_out() -> None:
    assert Rejection("f", 1, "wrong type: 'output' is null: bad").kind == "wrong type"
