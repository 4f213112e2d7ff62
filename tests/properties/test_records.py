"""A message through its bytes, and a log through damage: any cut, any flipped byte, at any place."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bridges.errors import CorruptLog, InvalidMessage
from bridges.inprocess.codec import decode, encode, key_of
from bridges.inprocess.keeping import LogSettings
from bridges.inprocess.records import OVERHEAD, Framing
from bridges.inprocess.segments import HEAD_SIZE
from bridges.inprocess.stamps import Stamps
from bridges.inprocess.store import Store
from bridges.message import Message, uuid7

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridges.inprocess.recovery import RecoveryReport

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
zones = st.sampled_from([UTC, timezone(timedelta(hours=-5)), timezone(timedelta(hours=5, minutes=30, seconds=7, microseconds=9))])
messages = st.builds(
    Message,
    id=st.uuids(),
    topic=texts,
    payload=st.binary(max_size=30),
    key=st.one_of(st.none(), texts),
    content_type=texts,
    headers=st.dictionaries(texts, texts, max_size=4),
    created_at=st.one_of(st.none(), st.datetimes(timezones=zones)),
)
moments = st.one_of(st.none(), st.floats(allow_nan=False))
stamps = st.builds(Stamps, priority=st.integers(-(2**63), 2**63 - 1), expires=moments, due=moments)
on_disk = settings(deadline=None)  # a sync takes as long as it takes
salts = st.binary(min_size=16, max_size=16)
bodies = st.lists(st.binary(max_size=60), min_size=1, max_size=12)


@given(messages, stamps)
def test_a_message_comes_back_from_its_bytes(message: Message, its: Stamps) -> None:
    back, stamped = decode(encode(message, its))
    assert (back, stamped) == (message, its)
    assert back.created_at is None or (message.created_at and back.created_at.utcoffset() == message.created_at.utcoffset())


@given(messages, stamps)
def test_the_key_is_known_without_the_rest(message: Message, its: Stamps) -> None:
    key = None if message.key is None else message.key.encode()
    assert key_of(encode(message, its)) == (key, key is not None and not message.payload)


@given(messages, st.sampled_from([0, 2, 255]))
def test_a_later_layout_is_refused(message: Message, version: int) -> None:
    with pytest.raises(InvalidMessage, match="version"):
        decode(bytes([version]) + encode(message)[1:])


@pytest.mark.parametrize("field", ["topic", "key", "content_type"])
def test_what_the_layout_cannot_hold_is_refused_by_its_name(field: str) -> None:
    for text in ("x" * 65535, "\ud800"):
        change: dict[str, Any] = {field: text}
        with pytest.raises(InvalidMessage, match=field):
            encode(Message(uuid7(), "a", b"")._replace(**change))
    with pytest.raises(InvalidMessage, match="created_at"):
        encode(Message(uuid7(), "a", b"", created_at=datetime(2026, 1, 1)))  # noqa: DTZ001 - that is the point
    with pytest.raises(InvalidMessage, match="priority"):
        encode(Message(uuid7(), "a", b""), Stamps(priority=2**63))


@given(bodies, salts, st.binary(max_size=9), st.data())
def test_every_sound_record_is_found_between_the_damaged(bodies: list[bytes], salt: bytes, noise: bytes, data: st.DataObject) -> None:
    framing = Framing(salt)
    whole = [framing.frame(offset, offset / 3, body) for offset, body in enumerate(bodies)]
    broken = data.draw(st.sets(st.integers(0, len(bodies) - 1)))
    for offset in broken:
        at = data.draw(st.integers(0, len(whole[offset]) - 1))
        whole[offset] = flipped(whole[offset], at, data.draw(st.integers(0, 7)))
    found = list(framing.scattered(noise + b"".join(whole)))
    assert [(record.offset, record.time, record.body) for record in found] == [
        (offset, offset / 3, body) for offset, body in enumerate(bodies) if offset not in broken
    ]


@given(bodies, salts, salts)
def test_a_record_of_another_segment_is_none_of_this_one(bodies: list[bytes], salt: bytes, other: bytes) -> None:
    """Nobody can put a record into a log by sending one inside a message, which is then torn: its frame has another salt."""
    assume(salt != other)
    inside = b"".join(Framing(salt).frame(offset, 0.0, body) for offset, body in enumerate(bodies))
    torn = Framing(other).frame(7, 0.0, inside)[:-1]
    assert not list(Framing(other).scattered(torn))


@on_disk
@given(bodies, st.integers(1, 400), st.data())
def test_any_cut_leaves_the_records_before_it(bodies: list[bytes], segment_bytes: int, data: st.DataObject) -> None:
    """As a crash does it: the newest file ends anywhere. What is cut is said, and the log goes on from there."""
    with log_of(bodies, segment_bytes) as folder:
        newest = segments(folder)[-1]
        cut = data.draw(st.integers(0, newest.stat().st_size))
        os.truncate(newest, cut)
        base = int(newest.name[:20])
        ends = [end for end in ends_of(bodies[base:]) if end <= cut]
        left = base + len(ends)
        stored, report = reopened(folder)
        assert stored == list(enumerate(bodies))[:left]
        assert report.next == left
        sound = max(ends, default=HEAD_SIZE if cut >= HEAD_SIZE else 0)
        assert (report.cut and (report.cut.file, report.cut.position, report.cut.size)) == (
            (newest.name, sound, cut - sound) if cut != sound or not cut else None
        )
        store = Store(folder, LogSettings(segment_bytes=segment_bytes))
        assert store.recovery.clean
        store.append([(left, 0.0, b"more")])
        store.close()
        assert reopened(folder)[0] == [*stored, (left, b"more")]


@on_disk
@given(bodies, st.integers(1, 400), st.data())
def test_any_flipped_bit_is_cut_off_at_the_end_and_refused_elsewhere(bodies: list[bytes], segment_bytes: int, data: st.DataObject) -> None:
    """At the end it cannot be told from a torn record. Elsewhere nothing is changed but when told so, and then once and for all."""
    with log_of(bodies, segment_bytes) as folder:
        files = segments(folder)
        file = data.draw(st.sampled_from(files))
        at = data.draw(st.integers(0, file.stat().st_size - 1))
        file.write_bytes(flipped(file.read_bytes(), at, data.draw(st.integers(0, 7))))
        hit = hit_by(file, at, bodies, segment_bytes)
        if hit == {len(bodies) - 1} and at >= HEAD_SIZE:
            stored, report = reopened(folder)
            assert stored == list(enumerate(bodies))[:-1]
            assert report.cut
            assert report.cut.file == file.name
            return
        before = content(folder)
        with pytest.raises(CorruptLog, match=r"skip_corrupt=True") as refusal:
            reopened(folder)
        assert refusal.value.file == str(file)
        assert content(folder) == before
        stored, report = reopened(folder, skip_corrupt=True)
        assert stored == [(offset, body) for offset, body in enumerate(bodies) if offset not in hit]
        assert [damage.file for damage in report.skipped] == [file.name]
        assert file.with_suffix(".corrupt").exists()
        assert report.next >= len(bodies)
        again, after = reopened(folder)
        assert again == stored
        assert after.clean
        assert after.next == report.next


@on_disk
@given(bodies, st.data())
def test_a_file_that_is_missing_in_the_middle_is_refused(bodies: list[bytes], data: st.DataObject) -> None:
    bodies = [*bodies, b"one", b"more"]
    with log_of(bodies, 1) as folder:  # one record a segment
        gone = data.draw(st.integers(1, len(bodies) - 2))
        segments(folder)[gone].unlink()
        with pytest.raises(CorruptLog, match=f"offsets {gone} to {gone + 1} are missing"):
            reopened(folder)
        stored, _ = reopened(folder, skip_corrupt=True)
        assert stored == [(offset, body) for offset, body in enumerate(bodies) if offset != gone]
        assert reopened(folder)[1].clean


@contextmanager
def log_of(bodies: list[bytes], segment_bytes: int) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="outboxd-log-"))
    try:
        store = Store(folder, LogSettings(segment_bytes=segment_bytes))
        store.append([(offset, 0.0, body) for offset, body in enumerate(bodies)])
        store.close()
        yield folder
    finally:
        shutil.rmtree(folder)


def reopened(folder: Path, *, skip_corrupt: bool = False) -> tuple[list[tuple[int, bytes]], RecoveryReport]:
    store = Store(folder, LogSettings(), skip_corrupt=skip_corrupt)
    first = store.first(store.next)
    stored = [(record.offset, record.body) for record in store.read(first, 1000, store.next)]
    assert store.recovery.records == len(stored)
    store.close()
    return stored, store.recovery


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def ends_of(bodies: list[bytes]) -> list[int]:
    """Where each record ends in a segment that holds these."""
    return list(accumulate((OVERHEAD + len(body) for body in bodies), initial=HEAD_SIZE))[1:]


def hit_by(file: Path, at: int, bodies: list[bytes], segment_bytes: int) -> set[int]:
    """The offsets of what a damaged byte of a segment takes away: all of them, if it is in the head."""
    base = int(file.name[:20])
    ends = ends_of(bodies[base:])
    full = next((number + 1 for number, end in enumerate(ends) if end >= segment_bytes), len(ends))
    if at < HEAD_SIZE:
        return set(range(base, base + full))
    return {base + sum(1 for end in ends[:full] if end <= at)}


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
