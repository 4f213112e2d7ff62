"""Which topics a pattern matches, and what a destination calls them. Pure.

Patterns are those of NATS: ``*`` stands for one token, ``>`` for one or more at the end.
"""

from __future__ import annotations

import re

from bridges.errors import InvalidMessage, InvalidPattern
from bridges.message import check_topic

_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_TOPIC = "topic"


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
                _check_token(f"pattern {text!r}: token {place}", token, token, first=place == 1)
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


class Mapping:
    """What a bridge makes of a topic: ``orders.*.> -> shop.{1}.{2}``, checked when it is made.

    ``{n}`` is what the n-th wildcard of the pattern stands for, ``{topic}`` the whole topic. Raises `InvalidPattern`, naming the token and
    its place.

    Attributes:
        text: as it was given.
        pattern: the topics that it is for.
        image: a pattern that matches all that it can make; it may match more.
    """

    __slots__ = ("_parts", "image", "pattern", "text")

    def __init__(self, text: str) -> None:
        left, arrow, right = text.partition("->")
        if not arrow or "->" in right:
            msg = f"mapping {text!r}: must be a pattern, an arrow and a destination, such as orders.*.> -> shop.{{1}}.{{2}}"
            raise InvalidPattern(msg)
        try:
            self.pattern = Pattern(left.strip())
        except InvalidPattern as problem:
            msg = f"mapping {text!r}: {problem}"
            raise InvalidPattern(msg) from None
        tokens = self.pattern.text.split(".")
        wildcards = [token for token in tokens if token in {"*", ">"}]
        template = right.strip()
        _check_template(text, template, len(wildcards))
        self.text = text
        # Text and names in turn: what `re.split` makes of a pattern with one group.
        self._parts = _PLACEHOLDER.split(template)
        self.image = _image(template, {_TOPIC: self.pattern.text, **{str(n): what for n, what in enumerate(wildcards, start=1)}})

    def of(self, topic: str) -> str | None:
        """Return what the topic becomes; None if the mapping is not for it. What comes of it may be longer than a topic may be."""
        captures = self.pattern.captures(topic)
        if captures is None:
            return None
        values = {_TOPIC: topic, **{str(n): what for n, what in enumerate(captures, start=1)}}
        return "".join(values[part] if place % 2 else part for place, part in enumerate(self._parts))

    def __repr__(self) -> str:
        return f"Mapping({self.text!r})"


def _check_template(text: str, template: str, wildcards: int) -> None:
    """Check the destination of a mapping whose pattern has so many wildcards."""
    for place, token in enumerate(template.split("."), start=1):
        where = f"mapping {text!r}: token {place} of the destination"
        for name in _PLACEHOLDER.findall(token):
            if name != _TOPIC and name not in map(str, range(1, wildcards + 1)):
                has = f"{wildcards} wildcard{'' if wildcards == 1 else 's'}"
                msg = f"{where} names {{{name}}}, which is not there: the pattern has {has}, counted from {{1}}, and there is {{topic}}"
                raise InvalidPattern(msg)
        plain = _PLACEHOLDER.sub("x", token)
        _check_token(where, token, plain, first=place == 1)
        if "{" in plain or "}" in plain:
            msg = f"{where}, {token!r}, has a brace that is not part of {{1}}, {{2}}, ... or {{topic}}"
            raise InvalidPattern(msg)
    try:
        check_topic(_PLACEHOLDER.sub("x", template))
    except InvalidMessage as problem:
        msg = f"mapping {text!r}: the destination: {problem}"
        raise InvalidPattern(msg) from None


def _image(template: str, wildcards: dict[str, str]) -> str:
    """Return the narrowest pattern that this finds for what a template makes, each placeholder standing for what its wildcard matches."""
    made: list[str] = []
    for token in template.split("."):
        names = _PLACEHOLDER.findall(token)
        if not names:
            made.append(token)
        elif token == f"{{{names[0]}}}":
            made += wildcards[names[0]].split(".")
        else:
            # A part of a token: with more than one token in it, nothing is known of where the next one begins.
            made.append("*" if all(wildcards[name] == "*" for name in names) else ">")
        if made[-1] == ">":
            break  # whatever follows is one or more tokens too
    return ".".join(made)


def _check_token(where: str, token: str, plain: str, *, first: bool) -> None:
    """Check one token by what it is where its placeholders have a value. What may be inside a topic may not always begin one."""
    if not plain:
        msg = f"{where} is empty"
        raise InvalidPattern(msg)
    try:
        check_topic(plain if first else f"x.{plain}")
    except InvalidMessage:
        msg = f"{where}, {token!r}, cannot be part of a topic"
        raise InvalidPattern(msg) from None
