"""The trie finds what the patterns match, whatever was added and removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridges.inprocess.trie import Trie
from bridges.topics import Pattern

TOKENS = st.sampled_from(["a", "b", "c"])
TOPICS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]),
    st.lists(st.one_of(TOKENS, st.just("*")), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
) | st.just(">")


@given(st.lists(st.tuples(PATTERNS, st.integers(0, 3)), max_size=20), st.data())
def test_it_finds_what_matches(added: list[tuple[str, int]], data: st.DataObject) -> None:
    trie: Trie[int] = Trie()
    for pattern, thing in added:
        trie.add(pattern, thing)
    removed = data.draw(st.lists(st.sampled_from(added), unique=True) if added else st.just([]))
    left = list(added)
    for pattern, thing in removed:
        trie.remove(pattern, thing)
        left.remove((pattern, thing))
    topic = data.draw(TOPICS)
    assert set(trie.match(topic)) == {thing for pattern, thing in left if Pattern(pattern).matches(topic)}
    for pattern, thing in left:
        trie.remove(pattern, thing)
    assert not trie._root, "branches that are empty are gone"
