"""Every id lies in the partition of its day, and in no other; no day is dropped that has an id which is still asked for."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from hypothesis import example, given
from hypothesis import strategies as st

from bridges.message import Message, uuid7
from dedupe.retention import PROCESSED, SLACK, birth_of, processed_schedule
from migrations.schedule import begin_of_timestamps, begin_of_uuid7, milliseconds
from outbox.janitor import ARCHIVE

DAY = timedelta(days=1)
moments = st.integers(86_400_000, 64_000_000_000_000).map(lambda ms: datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms))
randoms = st.integers(0, (1 << 80) - 1)
MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)


def made_at(moment: datetime, random: int) -> UUID:
    """Return a UUIDv7 of the moment."""
    return UUID(int=milliseconds(moment) << 80 | 7 << 76 | (random >> 68 & 0xFFF) << 64 | 2 << 62 | random & (1 << 62) - 1)


@given(moments, randoms)
@example(MIDNIGHT, 0)
@example(MIDNIGHT, (1 << 80) - 1)
@example(MIDNIGHT - timedelta(milliseconds=1), (1 << 80) - 1)
def test_every_uuid7_lies_in_the_day_of_its_time_alone(moment: datetime, random: int) -> None:
    made = made_at(moment, random)
    for n in (-1, 0, 1):
        begin, end = map(UUID, PROCESSED.bounds(moment.date() + n * DAY))
        assert (begin <= made < end) == (n == 0)


@given(moments, randoms, st.timedeltas(timedelta(minutes=1), timedelta(days=400)), st.timedeltas(timedelta(0), timedelta(days=500)))
@example(MIDNIGHT - timedelta(milliseconds=1), 0, DAY, DAY + SLACK)
def test_no_day_is_dropped_that_has_an_id_which_is_not_refused(moment: datetime, random: int, keep: timedelta, later: timedelta) -> None:
    """What `keep_processed` drops at a time, is what is judged too old from that time on."""
    now = moment + later
    over = processed_schedule(now, keep).over
    assert over is not None
    birth = birth_of(Message(made_at(moment, random), "t", b""))
    assert birth is not None
    assert moment.date() >= over or birth < milliseconds(now - keep)


def test_an_id_of_ours_lies_in_its_day() -> None:
    before = datetime.now(UTC)
    made = uuid7()
    after = datetime.now(UTC)
    assert UUID(begin_of_uuid7(before.date())) <= made < UUID(begin_of_uuid7(after.date() + DAY))


@given(st.dates(date(1970, 1, 1), date(9998, 1, 1)))
def test_the_days_leave_no_gap_and_their_names_tell_them_apart(day: date) -> None:
    for daily in (ARCHIVE, PROCESSED):
        assert daily.bounds(day)[1] == daily.bounds(day + DAY)[0]
        assert daily.name(day) == f"{daily.table}_{day.isoformat().replace('-', '')}"
    assert datetime.fromisoformat(begin_of_timestamps(day)) == datetime(day.year, day.month, day.day, tzinfo=UTC)


def test_an_id_of_another_kind_is_as_old_as_its_message_says() -> None:
    random = UUID("018f2c3e-0000-4000-8000-000000000000")
    assert birth_of(Message(random, "t", b"")) is None
    assert birth_of(Message(random, "t", b"", created_at=MIDNIGHT)) == milliseconds(MIDNIGHT)
    assert birth_of(Message(made_at(MIDNIGHT, 0), "t", b"", created_at=MIDNIGHT + DAY)) == milliseconds(MIDNIGHT)
