"""Patterns against a matcher that anybody can check, and their relations against all topics of a small alphabet."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.errors import InvalidPattern
from bridges.topics import Destination, Mapping, Pattern, covers, overlap

TOKENS = ("a", "b")
TOPICS = [".".join(tokens) for length in range(1, 6) for tokens in product(TOKENS, repeat=length)]
# Up to three tokens, and a tail perhaps: topics of five tell any two of them apart.
PATTERNS = [
    ".".join(tokens)
    for length in range(1, 4)
    for heads in product(("a", "b", "*"), repeat=length - 1)
    for last in ("a", "b", "*", ">")
    for tokens in [(*heads, last)]
]

words = st.sampled_from(["a", "b", "ab", "a+", "(", "é", "^$", "\\d", "[a]"])
topics = st.lists(words, min_size=1, max_size=5).map(".".join)
patterns = st.builds(
    lambda head, tail: ".".join([*head, tail]),
    st.lists(st.one_of(words, st.just("*")), max_size=4),
    st.one_of(words, st.sampled_from("*>")),
)


def naive(pattern: list[str], topic: list[str]) -> bool:
    if not pattern or not topic:
        return pattern == topic
    if pattern[0] == ">":
        return True
    return pattern[0] in {"*", topic[0]} and naive(pattern[1:], topic[1:])


def matched(pattern: str) -> set[str]:
    return {topic for topic in TOPICS if naive(pattern.split("."), topic.split("."))}


@given(patterns, topics)
def test_a_pattern_matches_as_the_naive_matcher_does(pattern: str, topic: str) -> None:
    assert Pattern(pattern).matches(topic) == naive(pattern.split("."), topic.split("."))


@given(topics, st.data())
def test_a_topic_with_tokens_made_wildcards_is_a_pattern_that_matches_it(topic: str, data: st.DataObject) -> None:
    tokens = topic.split(".")
    starred = data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    pattern = Pattern(".".join("*" if star else token for star, token in zip(starred, tokens, strict=True)))
    assert pattern.captures(topic) == tuple(token for star, token in zip(starred, tokens, strict=True) if star)
    tail = data.draw(st.integers(0, len(tokens) - 1))
    assert Pattern(".".join([*tokens[:tail], ">"])).captures(topic) == (".".join(tokens[tail:]),)


def test_overlap_and_covers_are_what_the_sets_of_topics_say() -> None:
    sets = {pattern: matched(pattern) for pattern in PATTERNS}
    for one, other in product(PATTERNS, repeat=2):
        assert overlap(one, other) == bool(sets[one] & sets[other]), (one, other)
        assert covers(one, other) == (sets[one] >= sets[other]), (one, other)


@given(st.text(st.sampled_from("ab.*>$ "), max_size=8))
def test_a_text_is_a_pattern_or_refused_as_one(text: str) -> None:
    """No other exception, and never a pattern that matches no topic."""
    tokens = text.split(".")
    fine = all(token and (token in {"*", ">"} or not set(token) & set("*> ")) for token in tokens)
    fine = fine and ">" not in tokens[:-1] and not text.startswith("$")
    if fine:
        assert Pattern(text).matches(text.replace("*", "a").replace(">", "b.b"))
    else:
        with pytest.raises(InvalidPattern):
            Pattern(text)


@given(topics, patterns)
def test_a_destination_maps_patterns_as_it_maps_topics(topic: str, pattern: str) -> None:
    destination = Destination("shop.{topic}")
    assert Pattern(pattern).matches(topic) == Pattern(destination.of(pattern)).matches(destination.of(topic))


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    pattern = draw(patterns)
    wildcards = sum(token in {"*", ">"} for token in pattern.split("."))
    names = st.sampled_from(["{topic}", *(f"{{{n}}}" for n in range(1, wildcards + 1))])
    # A brace would be taken for the beginning of a name.
    pieces = st.lists(st.one_of(names, st.sampled_from(["a", "b", "-", "é"])), min_size=1, max_size=3).map("".join)
    return Mapping(f"{pattern} -> {'.'.join(draw(st.lists(pieces, min_size=1, max_size=4)))}")


@given(mappings(), st.data())
def test_what_a_mapping_makes_is_the_template_with_each_name_replaced(mapping: Mapping, data: st.DataObject) -> None:
    fill = {"*": words, ">": topics}
    topic = ".".join(data.draw(fill.get(token, st.just(token))) for token in mapping.pattern.text.split("."))
    made = mapping.of(topic)
    captures = mapping.pattern.captures(topic)
    assert made is not None
    assert captures is not None
    expected = mapping.text.partition(" -> ")[2].replace("{topic}", topic)
    for n, what in enumerate(captures, start=1):
        expected = expected.replace(f"{{{n}}}", what)
    assert made == expected
    assert Pattern(mapping.image).matches(made)


@given(mappings(), topics)
def test_a_mapping_is_for_the_topics_of_its_pattern_and_for_no_other(mapping: Mapping, topic: str) -> None:
    assert (mapping.of(topic) is not None) == mapping.pattern.matches(topic)


@given(st.text(st.sampled_from("ab.*>{}12- "), max_size=12), topics)
def test_a_text_is_a_mapping_or_refused_as_one(text: str, topic: str) -> None:
    """No other exception, neither when it is made nor when it is used."""
    try:
        mapping = Mapping(f"a.*.> -> {text}")
    except InvalidPattern:
        return
    assert mapping.of(f"a.b.{topic}")
