# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The collator's clock: epochs and curricula reach worker processes, and their number changes nothing."""

import copy
import dataclasses
import pickle

import pytest
import torch
from accelerate import skip_first_batches
from collation import (
    CURRICULUM,
    EXAMPLES,
    assert_all_equal,
    assert_equal_batches,
    make_collator,
)
from torch.utils.data import BatchSampler, DataLoader


PLAN = [list(range(start, min(start + 4, 50))) for start in range(0, 50, 4)]


def run_epochs(collator, num_workers, persistent=False, context=None):
    """Two epochs of 13 batches, 2 batches a step: 7 steps each."""
    loader = DataLoader(
        EXAMPLES,
        batch_sampler=PLAN,
        collate_fn=collator,
        num_workers=num_workers,
        persistent_workers=persistent,
        multiprocessing_context=context,
    )
    batches = []
    for epoch in range(2):
        collator.start_epoch(epoch, first_step=7 * epoch, total_steps=14, gradient_accumulation_steps=2)
        batches.extend(loader)
    return batches


@pytest.fixture(scope="module")
def expected_batches():
    """Each batch made on its own, at its own progress."""
    batches = []
    for epoch in range(2):
        for number, chosen in enumerate(PLAN):
            collator = make_collator(CURRICULUM.at((7 * epoch + number // 2) / 14), seed=2)
            collator.start_epoch(epoch)
            batches.append(collator([EXAMPLES[i] for i in chosen]))
    return batches


# Three workers are more than a small machine has cores, which is as it should be here.
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    ("num_workers", "persistent"), [(0, False), (1, False), (1, True), (2, False), (2, True), (3, False), (3, True)]
)
def test_batches_and_annealing_are_the_same_for_any_number_of_workers(num_workers, persistent, expected_batches):
    batches = run_epochs(make_collator(CURRICULUM, seed=2), num_workers, persistent)
    assert_all_equal(batches, expected_batches)


def test_annealing_moves_within_and_between_epochs(expected_batches):
    def disorder(batch):
        return (batch["position_ids"].diff(dim=1) != 1)[batch["attention_mask"][:, 1:].bool()].float().mean()

    first, middle, last = expected_batches[0], expected_batches[12], expected_batches[-2]
    assert disorder(first) == 0
    assert disorder(middle) > 0.3
    assert disorder(last) > 0.3
    # The same examples again, an epoch later.
    assert not torch.equal(expected_batches[11]["position_ids"], expected_batches[24]["position_ids"])


def test_spawned_workers_see_the_clock_too(expected_batches):
    batches = run_epochs(make_collator(CURRICULUM, seed=2), 1, persistent=True, context="spawn")
    assert_all_equal(batches, expected_batches)


def test_workers_count_from_zero_whatever_their_parent_collated(expected_batches):
    collator = make_collator(CURRICULUM, seed=2)
    collator.start_epoch(0, total_steps=14, gradient_accumulation_steps=2)
    for _ in range(3):
        collator(EXAMPLES[:2])
    loader = DataLoader(EXAMPLES, batch_sampler=PLAN, collate_fn=collator, num_workers=2)
    assert_all_equal(list(loader), expected_batches[:13])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_resumed_within_an_epoch_continues_with_the_same_batches(num_workers, expected_batches):
    collator = make_collator(CURRICULUM, seed=2)
    loader = DataLoader(EXAMPLES, batch_sampler=BatchSampler(range(50), 4, False), collate_fn=collator)
    loader = DataLoader(EXAMPLES, batch_sampler=loader.batch_sampler, collate_fn=collator, num_workers=num_workers)
    # Three steps of two batches are done in the second epoch.
    collator.start_epoch(1, first_step=10, total_steps=14, gradient_accumulation_steps=2)
    assert_all_equal(list(skip_first_batches(loader, 6)), expected_batches[13 + 6 :])


def test_an_evaluation_with_the_same_collator_can_be_taken_out_of_the_count(expected_batches):
    collator = make_collator(CURRICULUM, seed=2)
    collator.start_epoch(0, total_steps=14, gradient_accumulation_steps=2)
    batches = []
    for number, chosen in enumerate(PLAN):
        assert collator.batches_seen == number
        batches.append(collator([EXAMPLES[i] for i in chosen]))
        collator(EXAMPLES[:3])
        assert collator.batches_seen == number + 2
        collator.batches_seen = number + 1
    assert_all_equal(batches, expected_batches[:13])
    collator.start_epoch(1, first_step=7, total_steps=14)
    assert collator.batches_seen == 0


def test_batches_that_are_made_ahead_of_the_last_step_stay_at_the_end_of_the_curriculum():
    collator = make_collator(CURRICULUM)
    collator.start_epoch(0, first_step=9, total_steps=10)
    end = make_collator(CURRICULUM.at(1))
    collator(EXAMPLES[:1])
    for _ in range(3):
        assert_equal_batches(collator(EXAMPLES), end(EXAMPLES))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda collator: pickle.loads(pickle.dumps(collator))])
def test_a_copy_keeps_the_clock_and_then_has_its_own(clone):
    collator = make_collator(CURRICULUM, seed=2)
    collator.start_epoch(1, first_step=7, total_steps=14, gradient_accumulation_steps=2)
    collator(EXAMPLES[:4])
    twin = clone(collator)
    assert twin.batches_seen == 1
    expected = collator(EXAMPLES)
    collator.start_epoch(0, total_steps=14)
    assert_equal_batches(twin(EXAMPLES), expected)
    # A copy's workers follow the copy's clock.
    loader = DataLoader(EXAMPLES, batch_size=50, collate_fn=twin, num_workers=1, persistent_workers=True)
    for step in (3, 12):
        twin.start_epoch(1, first_step=step, total_steps=14)
        assert_equal_batches(next(iter(loader)), make_reference(step)(EXAMPLES))


def make_reference(step):
    collator = make_collator(CURRICULUM.at(step / 14), seed=2)
    collator.start_epoch(1)
    return collator


def test_replacing_an_option_gives_a_collator_with_a_new_clock():
    collator = make_collator()
    collator.start_epoch(3)
    assert_equal_batches(dataclasses.replace(collator, seed=5)(EXAMPLES), make_collator(seed=5)(EXAMPLES))


def test_a_curriculum_without_a_clock_is_refused_with_the_remedy():
    collator = make_collator(CURRICULUM)
    with pytest.raises(ValueError, match=r"Call `collator.start_epoch\(epoch, first_step, total_steps\)`"):
        collator(EXAMPLES)
    collator.start_epoch(0)
    with pytest.raises(ValueError, match=r"Call `collator.start_epoch"):
        collator(EXAMPLES)


@pytest.mark.parametrize(
    ("name", "smallest"), [("epoch", 0), ("first_step", 0), ("total_steps", 1), ("gradient_accumulation_steps", 1)]
)
def test_bad_clock_settings_are_refused_with_the_reason(name, smallest):
    collator = make_collator()
    with pytest.raises(ValueError, match=f"`{name}` must be at least {smallest}, got {smallest - 1}"):
        collator.start_epoch(**{"epoch": 0, name: smallest - 1})
    with pytest.raises(TypeError, match=f"`{name}` must hold integers, got 1.5"):
        collator.start_epoch(**{"epoch": 0, name: 1.5})
