"""Patterns, destinations, and how patterns stand to each other; tests/properties/test_topics.py compares them with brute force."""

from __future__ import annotations

import pytest

from bridges.errors import InvalidPattern
from bridges.topics import Destination, Mapping, Pattern, covers, overlap


@pytest.mark.parametrize(
    ("pattern", "topic", "captures"),
    [
        ("a.b", "a.b", ()),
        ("a.b", "a.c", None),
        ("a.b", "a.b.c", None),
        ("a.b", "a", None),
        ("a.b", "axb", None),
        ("*", "a", ("a",)),
        ("*", "a.b", None),
        ("a.*", "a.b", ("b",)),
        ("a.*", "a", None),
        ("a.*", "a.b.c", None),
        ("*.b.*", "a.b.c", ("a", "c")),
        (">", "a", ("a",)),
        (">", "a.b.c", ("a.b.c",)),
        ("a.>", "a", None),
        ("a.>", "a.b.c", ("b.c",)),
        ("a.*.>", "a.b", None),
        ("a.*.>", "a.b.c.d", ("b", "c.d")),
        ("a+(b)|c", "a+(b)|c", ()),
        ("a", "A", None),
    ],
)
def test_a_pattern_matches_as_in_nats(pattern: str, topic: str, captures: tuple[str, ...] | None) -> None:
    checked = Pattern(pattern)
    assert checked.matches(topic) == (captures is not None)
    assert checked.captures(topic) == captures


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "token 1 is empty"),
        ("a..b", "token 2 is empty"),
        ("a.", "token 2 is empty"),
        (">.a", "token 1 is '>', which may only stand at the end"),
        ("a.>.b", "token 2 is '>'"),
        ("a.b*", r"token 2, 'b\*', cannot be part of a topic"),
        ("a.b>", "token 2, 'b>'"),
        ("a b", "token 1, 'a b'"),
        ("$SYS.>", r"token 1, '\$SYS'"),
        ("a.\n", "token 2"),
        ("a.**", r"token 2, '\*\*'"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused_with_its_token_and_place(text: str, says: str) -> None:
    with pytest.raises(InvalidPattern, match=says):
        Pattern(text)


def test_a_dollar_sign_may_begin_a_later_token() -> None:
    assert Pattern("a.$b").matches("a.$b")


def test_patterns_are_equal_by_their_text() -> None:
    assert Pattern("a.*") == Pattern("a.*")
    assert Pattern("a.*") != Pattern("a.>")
    assert Pattern("a") != "a"
    assert len({Pattern("a.*"), Pattern("a.*")}) == 1
    assert repr(Pattern("a.*")) == "Pattern('a.*')"


@pytest.mark.parametrize(
    ("one", "other", "do"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", "a.b", False),
        ("*", "a", True),
        ("a.*", "*.b", True),
        ("a.*", "b.*", False),
        (">", "a.b", True),
        ("a.>", "a", False),
        ("a.>", "*", False),
        ("a.>", "*.b.c", True),
        ("a.>", "b.>", False),
        ("*.>", ">", True),
    ],
)
def test_overlap_is_some_topic_of_both(one: str, other: str, do: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is do


@pytest.mark.parametrize(
    ("pattern", "other", "does"),
    [
        ("a", "a", True),
        ("*", "a", True),
        ("a", "*", False),
        (">", ">", True),
        (">", "*", True),
        ("*", ">", False),
        ("*.>", ">", False),
        (">", "*.>", True),
        ("a.>", "a.*.b", True),
        ("a.>", "a", False),
        ("a.*", "a.>", False),
        ("a.*.c", "a.b.*", False),
        ("a.b", "a.b.c", False),
        ("a.b.c", "a.b", False),
    ],
)
def test_covers_is_every_topic_of_the_other(pattern: str, other: str, does: bool) -> None:
    assert covers(pattern, other) is does


@pytest.mark.parametrize(
    ("template", "topic", "name"),
    [("{topic}", "a.b", "a.b"), ("shop.{topic}", "a.b", "shop.a.b"), ("shop-{topic}", "a.b", "shop-a.b"), ("all", "a.b", "all")],
)
def test_a_destination_names_a_topic(template: str, topic: str, name: str) -> None:
    assert Destination(template).of(topic) == name
    assert Destination(template).of("a.>") == name.replace("a.b", "a.>")


def test_a_destination_is_the_topic_itself_by_default() -> None:
    assert Destination().of("a.b") == "a.b"
    assert repr(Destination()) == "Destination('{topic}')"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{tpoic}", "{tpoic} is not known; {topic} is"),
        ("{}", "{} is not known"),
        ("", "destination ''"),
        ("a.", "destination 'a.'"),
        ("a b", "without white space"),
        ("$JS.API.{topic}", "must not begin with"),
        ("shop.>", "wildcards"),
        ("x" * 300, "255"),
    ],
)
def test_a_destination_that_means_nothing_is_refused(template: str, says: str) -> None:
    with pytest.raises(InvalidPattern) as caught:
        Destination(template)
    assert says in str(caught.value)


@pytest.mark.parametrize("template", ["shop.{topic", "shop.topic}", "shop.{topic-x}", "shop.{topic.x}", "{{topic}}"])
def test_a_destination_with_a_stray_brace_is_refused(template: str) -> None:
    """Taken as it stands: with the first, every message of the route goes to the one subject ``shop.{topic``."""
    with pytest.raises(InvalidPattern):
        Destination(template)


@pytest.mark.parametrize(
    ("text", "topic", "mapped"),
    [
        ("orders.*.> -> shop.{1}.{2}", "orders.eu.created.v1", "shop.eu.created.v1"),
        ("orders.*.> -> shop.{2}.{1}", "orders.eu.created.v1", "shop.created.v1.eu"),
        ("orders.*.> -> shop.{1}.{2}", "orders.eu", None),
        ("*.* -> {2}-{1}", "a.b", "b-a"),
        ("> -> {1}", "a.b", "a.b"),
        ("> -> all", "a.b", "all"),
        ("a.> -> copy.{topic}", "a.b", "copy.a.b"),
        ("a.b->c.d", "a.b", "c.d"),
        ("a.* -> {1}.{1}", "a.b", "b.b"),
    ],
)
def test_a_mapping_puts_in_what_the_wildcards_stand_for(text: str, topic: str, mapped: str | None) -> None:
    assert Mapping(text).of(topic) == mapped


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("orders.>", "must be a pattern, an arrow and a destination"),
        ("a -> b -> c", "must be a pattern, an arrow and a destination"),
        ("", "must be a pattern, an arrow and a destination"),
        ("a.>.b -> c", "pattern 'a.>.b': token 2 is '>', which may only stand at the end"),
        ("a..b -> c", "pattern 'a..b': token 2 is empty"),
        (" -> c", "pattern '': token 1 is empty"),
        ("a.* -> c.{2}", "token 2 of the destination names {2}, which is not there: the pattern has 1 wildcard, counted from {1}"),
        ("a -> c.d.{1}", "token 3 of the destination names {1}, which is not there: the pattern has 0 wildcards"),
        ("a.* -> c.{0}", "token 2 of the destination names {0}"),
        ("a.* -> c.{01}", "token 2 of the destination names {01}"),
        ("a.* -> c.{}", "token 2 of the destination names {}"),
        ("a.* -> {tpoic}", "token 1 of the destination names {tpoic}"),
        ("a.* -> ", "token 1 of the destination is empty"),
        ("a.* -> c..{1}", "token 2 of the destination is empty"),
        ("a.* -> c.", "token 2 of the destination is empty"),
        ("a.* -> c.*", "token 2 of the destination, '*', cannot be part of a topic"),
        ("a.* -> c d", "token 1 of the destination, 'c d', cannot be part of a topic"),
        ("a.* -> $JS.{1}", "token 1 of the destination, '$JS', cannot be part of a topic"),
        ("a.* -> c.{1", "token 2 of the destination, '{1', has a brace"),
        ("a.* -> c.1}", "token 2 of the destination, '1}', has a brace"),
        ("a.* -> {{1}}", "token 1 of the destination, '{{1}}', has a brace"),
        (f"a.* -> {'x' * 300}", "token 1 of the destination"),
        (f"a.* -> {'.'.join(['xxxx'] * 60)}", "the destination: topic: is 299 bytes"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused_with_its_text_and_place(text: str, says: str) -> None:
    with pytest.raises(InvalidPattern) as caught:
        Mapping(text)
    assert says in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("orders.*.> -> shop.{1}.{2}", "shop.*.>"),
        ("orders.*.> -> shop.{2}.{1}", "shop.>"),
        ("a.> -> copy.{topic}", "copy.a.>"),
        ("a.* -> copy.{topic}.x", "copy.a.*.x"),
        ("a.* -> x-{1}.y", "*.y"),
        ("a.> -> b.x-{1}.y", "b.>"),
        ("a.* -> b.x-{topic}.y", "b.>"),
        ("a.b -> c.d", "c.d"),
    ],
)
def test_the_image_of_a_mapping_is_a_pattern_for_all_that_it_makes(text: str, image: str) -> None:
    assert Mapping(text).image == image
    assert repr(Mapping(text)) == f"Mapping({text!r})"
