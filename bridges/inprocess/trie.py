"""Which subscriptions a topic reaches: a trie of pattern tokens. Its cost grows with the depth of the topic and with what matches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class _Node(Generic[T]):
    __slots__ = ("children", "ending", "remainder")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        """By the next token; ``*`` among them."""
        self.ending: dict[T, int] = {}
        """What a topic that ends here reaches, with the number of times it was added."""
        self.remainder: dict[T, int] = {}
        """What a topic with at least one more token reaches: the patterns with ``>`` here."""

    def __bool__(self) -> bool:
        return bool(self.children or self.ending or self.remainder)


class Trie(Generic[T]):
    """Things by pattern. The patterns are checked already (`bridges.topics.Pattern`)."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, pattern: str, thing: T) -> None:
        """Put a thing under a pattern; as often as it is put there, it has to be removed."""
        place = self._place(pattern)
        place[thing] = place.get(thing, 0) + 1

    def remove(self, pattern: str, thing: T) -> None:
        """Undo one `add`; branches that are empty by then go with it."""
        path: list[tuple[_Node[T], str]] = []
        node = self._root
        tokens = pattern.split(".")
        remainder = tokens[-1] == ">"
        for token in tokens[:-1] if remainder else tokens:
            path.append((node, token))
            node = node.children[token]
        place = node.remainder if remainder else node.ending
        place[thing] -= 1
        if not place[thing]:
            del place[thing]
        for parent, token in reversed(path):
            if parent.children[token]:
                break
            del parent.children[token]

    def match(self, topic: str) -> dict[T, None]:
        """Return each thing that a topic reaches, once."""
        found: dict[T, None] = {}
        nodes = [self._root]
        for token in topic.split("."):
            deeper: list[_Node[T]] = []
            for node in nodes:
                found.update(dict.fromkeys(node.remainder))
                deeper.extend(self._next(node, token))
            nodes = deeper
        for node in nodes:
            found.update(dict.fromkeys(node.ending))
        return found

    def _next(self, node: _Node[T], token: str) -> Iterator[_Node[T]]:
        for name in (token, "*"):
            if child := node.children.get(name):
                yield child

    def _place(self, pattern: str) -> dict[T, int]:
        node = self._root
        tokens = pattern.split(".")
        remainder = tokens[-1] == ">"
        for token in tokens[:-1] if remainder else tokens:
            node = node.children.setdefault(token, _Node())
        return node.remainder if remainder else node.ending
