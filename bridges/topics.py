"""Which topics a pattern matches, and what a destination calls them. Pure.

Patterns are those of NATS: ``*`` stands for one token, ``>`` for one or more at the end.
"""

from __future__ import annotations

import re

from bridges.errors import InvalidMessage, InvalidPattern
from bridges.message import check_topic

_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class Pattern:
    """A topic pattern, checked when it is made. Raises `InvalidPattern`, naming the token and its place."""

    __slots__ = ("_regex", "text")

    def __init__(self, text: str) -> None:
        tokens = text.split(".")
        parts = []
        for place, token in enumerate(tokens, start=1):
            if token == ">" and place < len(tokens):
                msg = f"pattern {text!r}: token {place} is '>', which may only stand at the end"
                raise InvalidPattern(msg)
            if token == "*":
                parts.append(r"([^.]+)")
            elif token == ">":
                parts.append(r"(.+)")
            else:
                _check_token(text, place, token)
                parts.append(re.escape(token))
        self.text = text
        self._regex = re.compile(r"\.".join(parts), re.DOTALL)

    def matches(self, topic: str) -> bool:
        """Say whether the topic is one of those that the pattern stands for."""
        return self._regex.fullmatch(topic) is not None

    def captures(self, topic: str) -> tuple[str, ...] | None:
        """Return what each wildcard stands for, or None if the topic does not match."""
        match = self._regex.fullmatch(topic)
        return match.groups() if match else None

    @property
    def regex(self) -> str:
        """The pattern as a regular expression, in the part of the language that Python and Postgres share."""
        return self._regex.pattern

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def overlap(one: str, other: str) -> bool:
    """Say whether some topic could match both patterns."""
    ours, theirs = one.split("."), other.split(".")
    for mine, yours in zip(ours, theirs, strict=False):
        if ">" in {mine, yours}:
            return True
        if mine != yours and "*" not in {mine, yours}:
            return False
    return len(ours) == len(theirs)


def covers(pattern: str, other: str) -> bool:
    """Say whether every topic that matches ``other``, a pattern or a topic, matches ``pattern``."""
    ours, theirs = pattern.split("."), other.split(".")
    for place, mine in enumerate(ours):
        if place == len(theirs):
            return False
        if mine == ">":
            return True
        if theirs[place] == ">" or (mine not in {"*", theirs[place]}):
            return False
    return len(ours) == len(theirs)


class Destination:
    """What a destination calls a topic: a template such as ``shop.{topic}``, checked when it is made."""

    __slots__ = ("text",)

    def __init__(self, text: str = "{topic}") -> None:
        for name in _PLACEHOLDER.findall(text):
            if name != "topic":
                msg = f"destination {text!r}: {{{name}}} is not known; {{topic}} is"
                raise InvalidPattern(msg)
        plain = text.replace("{topic}", "topic")
        if "{" in plain or "}" in plain:
            msg = f"destination {text!r}: a brace that is not part of {{topic}}"
            raise InvalidPattern(msg)
        try:
            check_topic(plain)
        except InvalidMessage as problem:
            msg = f"destination {text!r}: {problem}"
            raise InvalidPattern(msg) from None
        self.text = text

    def of(self, topic: str) -> str:
        """Return the destination's name for the topic."""
        return topic if self.text == "{topic}" else self.text.replace("{topic}", topic)

    def __repr__(self) -> str:
        return f"Destination({self.text!r})"


def _check_token(text: str, place: int, token: str) -> None:
    if not token:
        msg = f"pattern {text!r}: token {place} is empty"
        raise InvalidPattern(msg)
    try:
        check_topic(token if place == 1 else f"x.{token}")
    except InvalidMessage:
        msg = f"pattern {text!r}: token {place}, {token!r}, cannot be part of a topic"
        raise InvalidPattern(msg) from None
