"""Rows of a pool that test rows are in: every kind by hand, and what must not be called a hit."""

from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.data import Example, Examples, Message, Rejection
from nncift.data import contamination as module
from nncift.data.contamination import Contamination, Thresholds, contamination, jaccard, left_out, shingles_of
from nncift.data.passages import Batch, Passages, Texts, words_of
from nncift.errors import UsageError

NUMBER = count()
FABLE = "a hungry fox saw some fine bunches of grapes hanging from a vine that was trained along a high trellis"
"""Twenty words."""


def row(prompt: str, response: str = "ok", *, system: str = "", name: str = "") -> Example:
    turns = (*([Message("system", system)] if system else []), Message("user", prompt))
    return Example(name or f"r{next(NUMBER)}", prompt, response, turns, "pool", 1, "{}")


def found(pool: list[Example], tests: list[Example], **more: Any) -> Contamination:
    return contamination(Examples(tuple(pool)), Examples(tuple(tests)), **more)


def kinds(pool: Example, test: Example, **more: Any) -> dict[str, float]:
    return {hit.kind: hit.score for hit in found([pool], [test], **more).hits}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't  stop, \n now!", ["don", "t", "stop", "now"]),
        ("What is 2+2?", ["what", "is", "2", "+", "2"]),
        ("3 - 1, x*y, 2 * 3, **bold** self-made", "3 - 1 x * y 2 * 3 bold self made".split()),
        ("ＦＵＬＬ Straße", ["full", "strasse"]),
        ("日本語です。", list("日本語です")),
        ("की के", ["की", "के"]),
        ("!!!", ["!!!"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_texts_that_differ_in_case_punctuation_and_system_turn_are_exactly_the_same() -> None:
    pool = row("What IS the capital of France?", "Paris.", system="You help.")
    assert kinds(pool, row("what is the capital of france", "paris")) == {"exact": 1.0}


def test_a_calculation_with_another_sign_is_another_text() -> None:
    assert kinds(row("What is 2+2?", "4"), row("What is 2-2?", "4")) == {}


def test_the_same_prompt_with_another_response_is_found_unless_it_is_short() -> None:
    (hit,) = found([row("Who wrote the play Hamlet?", "Marlowe")], [row("Who wrote the play Hamlet?", "He did")]).hits
    assert (hit.kind, hit.part) == ("exact", "prompt")
    assert kinds(row("Hello there", "Hi"), row("Hello there", "Good day to you")) == {}


def test_the_jaccard_similarity_of_near_copies() -> None:
    # Eight words of the test row are shingled into 6 threes; another last word exchanges one of them: 5 / 7.
    test, near = "one two three four five six seven eight".split(), "one two three four five six seven nine".split()
    assert jaccard(shingles_of(test), shingles_of(near)) == 5 / 7
    pool = row(" ".join(near[:-1]), near[-1])
    # The prompts are the same, which says more.
    assert kinds(pool, row(" ".join(test[:-1]), test[-1])) == {"exact": 1.0}
    first = row("zero " + " ".join(test[1:-1]), test[-1])
    assert kinds(first, row(" ".join(test[:-1]), test[-1])) == {"near_copy": pytest.approx(5 / 7)}
    assert kinds(first, row(" ".join(test[:-1]), test[-1]), thresholds=Thresholds(near_copy=0.72)) == {}


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_none() -> None:
    test = row("Tell a fable.", FABLE)
    words = FABLE.split()
    for shared, score in ((13, 1 / 11), (14, 2 / 11), (12, None)):
        pool = row("Go on from here:", "Once upon a time " + " ".join(words[:shared]) + " and so on for a long time")
        # 23 words of the test row are 11 passages of 13.
        assert kinds(pool, test) == ({} if score is None else {"overlap": pytest.approx(score)})


def test_signs_that_calculate_are_no_words_of_a_passage() -> None:
    sum_of = "2*6=<<2*6=12>>12"
    assert kinds(row("How many strings?", f"He breaks {sum_of} strings."), row("Age?", f"Joe is {sum_of} years.")) == {}
    formula = " ".join(f"{k}+{k}" for k in range(7))
    assert kinds(row("Go on:", f"so {formula} {FABLE}"), row("What is it?", f"see {formula}")) == {
        "overlap": pytest.approx(1 / 3)
    }


def test_a_share_of_passages_may_be_asked_for() -> None:
    pool, words = row("Go on from here:", " ".join(FABLE.split()[:14]) + " and that was all there was to it"), FABLE
    assert kinds(pool, row("Tell a fable.", words), thresholds=Thresholds(overlap=0.15)) != {}
    assert kinds(pool, row("Tell a fable.", words), thresholds=Thresholds(overlap=0.2)) == {}


def test_rows_and_prompts_of_eight_to_twelve_words_are_a_passage_as_a_whole() -> None:
    question = "why is the sky blue on a clear day"
    pool = row(
        "I have a question for you.", f"You ask: {question.title()}? Because of the air, and of much else besides."
    )
    # Ten different passages of 13 words, nine of which begin in the prompt, and the prompt itself.
    assert kinds(pool, row(question, "because " * 30)) == {"overlap": pytest.approx(1 / 11)}
    assert kinds(pool, row("why is the sky blue", "on a clear day")) == {"overlap": 1.0}
    assert kinds(pool, row("why is the sky", "blue")) == {}


def test_passages_of_a_template_are_ignored_and_said_to_be() -> None:
    template = " ".join(f"template{k}" for k in range(13))
    tests = [row(f"{template} number{k} " + " ".join(f"own{k}x{j}" for j in range(20))) for k in range(11)]
    pool = [row(f"{template} something else entirely"), row("see " + " ".join(f"own3x{j}" for j in range(13)))]
    result = found(pool, tests)
    assert [(hit.row.id, hit.test.id, hit.kind) for hit in result.hits] == [(pool[1].id, tests[3].id, "overlap")]
    assert result.notes == ("1 passages or prompts that more than 10 test rows share were ignored.",)
    assert len(found(pool, tests[:10]).hits) == 2


def test_meaning_is_compared_by_the_encoder_that_is_given() -> None:
    vectors = {"cat\n\nok": [1.0, 0.0], "feline\n\nok": [0.96, 0.28], "dog\n\nok": [0.0, 1.0]}

    def embed(texts: Any) -> Any:
        return np.array([vectors[text] for text in texts], np.float32)

    pool = [row("feline"), row("dog")]
    result = found(pool, [row("cat")], embed=embed)
    assert [(hit.kind, hit.row.id) for hit in result.hits] == [("similar", pool[0].id)]
    assert result.hits[0].score == pytest.approx(0.96)
    assert found(pool, [row("cat")], embed=embed, thresholds=Thresholds(similar=0.97)).hits == ()


def test_a_pool_against_itself_is_all_exact() -> None:
    pool = [row(f"question number {k} about {FABLE[k:]}") for k in range(30)]
    result = found(pool, pool)
    assert result.counts == {"exact": 30, "near_copy": 0, "overlap": 0, "similar": 0}
    assert list(left_out(pool, result)) == []


def test_test_rows_that_cannot_be_read_are_told() -> None:
    tests = Examples(
        (row("What is a lathe?"),), (Rejection("test", 7, "empty response: the last assistant turn has no text"),)
    )
    (note,) = contamination([row("What is a plane?")], tests).notes
    assert note == (
        "Test rows that cannot be read were not looked for, 1 row; the first: test line 7, empty response: the last assistant "
        "turn has no text."
    )


def test_the_json_names_both_rows() -> None:
    result = found([row("Name a large river.", "Nile", name="p")], [row("name a large river", "nile", name="t")])
    (hit,) = result.to_json()["hits"]
    assert (hit["kind"], hit["score"], hit["row"]["id"], hit["test"]["id"]) == ("exact", 1.0, "p", "t")
    assert hit["row"]["text"] == "Name a large river.\n\nNile"
    assert (result.to_json()["contaminated"], result.strongest["p"].test.id) == (1, "t")
    assert result.strongest["p"].reason() == "in the test rows: exact (1.00), t of pool"


def test_without_test_rows_and_with_thresholds_that_mean_nothing_it_is_refused() -> None:
    with pytest.raises(UsageError, match="no test rows"):
        found([row("a")], [])
    for wrong in ({"words": 7}, {"near_copy": 0.0}, {"similar": 1.5}, {"overlap": -0.1}):
        with pytest.raises(UsageError, match="was given as"):
            Thresholds(**wrong)


WORDS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, min_size=1, max_size=6))
def test_passages_are_found_where_a_plain_search_finds_them(first: list[list[str]], second: list[list[str]]) -> None:
    tests, pool = (Batch([row(" ".join(words)) for words in texts]).spoken for texts in (first, second))

    def passages(batch: Texts, place: int) -> set[tuple[str, ...]]:
        words = batch.texts[place].words
        return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}

    known = Passages(3, tests, None, most=2)
    of_tests = [passages(tests, place) for place in range(len(first))]
    rare = {part for parts in of_tests for part in parts if sum(part in other for other in of_tests) <= 2}
    counts: dict[tuple[int, int], int] = {}
    for mine, test, _ in {*known.shared(pool)}:
        counts[mine, test] = counts.get((mine, test), 0) + 1
    plain = {
        (mine, test): len(passages(pool, mine) & of_tests[test] & rare)
        for mine in range(len(second))
        for test in range(len(first))
    }
    assert counts == {pair: number for pair, number in plain.items() if number}
    assert known.count.tolist() == [len(parts & rare) for parts in of_tests]


@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(WORDS, min_size=1, max_size=5))
def test_near_copies_are_those_of_a_plain_comparison(first: list[list[str]], second: list[list[str]]) -> None:
    tests, pool = ([row("x " + " ".join(words), "y") for words in texts] for texts in (first, second))
    best = {}
    for mine in pool:
        scores = [
            jaccard(*(shingles_of(words_of(f"{one.prompt} {one.response}")) for one in (mine, test))) for test in tests
        ]
        if max(scores) >= 0.7:
            best[mine.id] = max(scores)
    known = module._TestRows(tests, Thresholds(), None)
    assert {pool[place].id: score for place, (score, _) in known._near_copies(Batch(pool)).items()} == best
