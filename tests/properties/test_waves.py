"""Waves, for every batch: nothing is lost, and no key is in flight twice where its order could be lost."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from bridges.ordering import parted, waves
from tests.unit.fakes import batch_of

keys = st.lists(st.sampled_from([None, "", "a", "b", "c"]), max_size=40)
grouped = st.lists(st.tuples(st.sampled_from([None, "a", "b"]), st.sampled_from([None, 1, 2, "x"])), max_size=40)


@given(keys)
def test_waves_are_a_permutation_and_keep_the_order_of_the_batch(keys: list[str | None]) -> None:
    split = waves(batch_of(*keys))
    assert sorted(index for wave in split for index in wave) == list(range(len(keys)))
    assert all(wave == sorted(wave) for wave in split)
    assert all(split[1:]), "no wave but the first is empty"


@given(keys)
def test_only_keys_that_repeat_are_parted_from_the_others(keys: list[str | None]) -> None:
    batch = batch_of(*keys)
    alone, repeating = parted(batch)
    assert sorted(alone + repeating) == list(range(len(keys)))
    assert (alone, repeating) == (sorted(alone), sorted(repeating))
    assert bool(repeating) == (len(waves(batch)) > 1)
    assert all(len(waves([batch[index] for index in repeating if keys[index] == key])) > 1 for key in {keys[index] for index in repeating})
    assert len(waves([batch[index] for index in alone])) == 1


@given(keys)
def test_no_key_is_twice_in_a_wave(keys: list[str | None]) -> None:
    for wave in waves(batch_of(*keys)):
        keyed = [keys[index] for index in wave if keys[index] is not None]
        assert len(keyed) == len(set(keyed))


@given(keys)
def test_there_are_as_many_waves_as_the_most_frequent_key_needs(keys: list[str | None]) -> None:
    most = max((keys.count(key) for key in set(keys) - {None}), default=1)
    assert len(waves(batch_of(*keys))) == max(most, 1)


@given(grouped)
def test_with_groups_a_key_repeats_in_a_wave_within_one_group_only(batch: list[tuple[str | None, object]]) -> None:
    split = waves(batch_of(*(key for key, _ in batch)), [group for _, group in batch])
    assert sorted(index for wave in split for index in wave) == list(range(len(batch)))
    for wave in split:
        groups = defaultdict(set)
        for index in wave:
            key, group = batch[index]
            if key is not None:
                groups[key].add(group)
        assert all(len(of_key) == 1 for of_key in groups.values())


@given(grouped)
def test_the_order_within_a_key_is_the_order_of_the_batch(batch: list[tuple[str | None, object]]) -> None:
    split = waves(batch_of(*(key for key, _ in batch)), [group for _, group in batch])
    sent = [index for wave in split for index in wave]
    for key in {key for key, _ in batch} - {None}:
        of_key = [index for index in sent if batch[index][0] == key]
        assert of_key == sorted(of_key)
