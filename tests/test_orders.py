# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Orders: every distribution gives permutations, has its defining property and follows its stated law."""

import itertools
import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from modeling_aoarm.data.orders import MAX_BLANK_SPANS, OrderCurriculum, OrderDistribution, OrderMixture, sample_orders


SPECS = [
    "uniform",
    "left_to_right",
    "lattice",
    "block",
    "block(3)",
    "fractal",
    "strided(3)",
    "windowed(4)",
    "local(2.5)",
]
WITHOUT_CONTEXT = [spec for spec in SPECS if spec not in ("lattice", "block", "block(3)")]
ANY_WORD = st.integers(0, 2**64 - 1)


def draw(order, length, count, **kwargs):
    """`count` orders of one length, `[count, length]`, and their context sizes."""
    kwargs.setdefault("example_indices", range(count))
    orders = sample_orders(order, [length] * count, **kwargs)
    return orders.columns.numpy(), orders.num_context.numpy()


def one(order, length, **kwargs):
    return draw(order, length, 1, **kwargs)[0][0].tolist()


def assert_follows(values, law):
    """Chi-square of observed values against a law, a mapping from value to probability."""
    counts = Counter(values)
    assert set(counts) <= set(law)
    expected = {value: probability * len(values) for value, probability in law.items()}
    assert min(expected.values()) >= 5
    p_value = stats.chisquare([counts[value] for value in law], list(expected.values())).pvalue
    assert p_value > 1e-3


def equally_likely(values):
    values = list(values)
    return dict.fromkeys(values, 1 / len(values))


def all_orders(length):
    return equally_likely(itertools.permutations(range(length)))


def is_sorted(columns):
    return (np.diff(columns) > 0).all()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SPECS), st.integers(0, 40), st.integers(0, 3), ANY_WORD, ANY_WORD, ANY_WORD)
def test_every_order_is_a_permutation_with_the_least_context_in_front(
    spec, length, min_context, seed, epoch, example_index
):
    min_context = min(min_context, length)
    columns, num_context = draw(
        spec, length, 1, example_indices=[example_index], seed=seed, epoch=epoch, min_context=min_context
    )
    assert sorted(columns[0]) == list(range(length))
    if spec in WITHOUT_CONTEXT:
        assert num_context[0] == min_context
    else:
        assert min_context <= num_context[0] <= max(min_context, length - 1)
        assert is_sorted(columns[0, : num_context[0]])
        assert is_sorted(columns[0, num_context[0] :])


@pytest.mark.parametrize("axis", ["example_index", "epoch", "seed"])
def test_uniform_gives_every_permutation_equally_often_along_each_axis(axis):
    count = 2400
    if axis == "example_index":
        columns, _ = draw("uniform", 4, count)
    else:
        columns = [one("uniform", 4, example_indices=[7], **{axis: number}) for number in range(count)]
    assert_follows([tuple(row) for row in columns], all_orders(4))


@pytest.mark.parametrize(
    "neighbours",
    [
        lambda i: ((0, 0, 2 * i), (0, 0, 2 * i + 1)),
        lambda i: ((0, 2 * i, 3), (0, 2 * i + 1, 3)),
        lambda i: ((2 * i, 0, 3), (2 * i + 1, 0, 3)),
        lambda i: ((1, i + 2, 3), (i + 2, 1, 3)),
        lambda i: ((1, 2, i + 3), (1, i + 3, 2)),
    ],
    ids=["example and next", "epoch and next", "seed and next", "seed and epoch swapped", "epoch and example swapped"],
)
def test_neighbouring_streams_are_independent(neighbours):
    pairs = []
    for number in range(1200):
        orders = [one("uniform", 3, seed=s, epoch=e, example_indices=[i]) for s, e, i in neighbours(number)]
        pairs.append(tuple(tuple(order) for order in orders))
    singles = list(itertools.permutations(range(3)))
    assert_follows(pairs, equally_likely(itertools.product(singles, singles)))


def test_long_streams_of_neighbouring_examples_do_not_overlap():
    length = 400
    # The ranks of the random numbers: a stream that starts a little later would show as a correlation at some lag.
    columns, _ = draw(f"windowed({length})", length, 2)
    first, second = np.argsort(columns, axis=1)
    for lag in range(1, 100):
        for one, other in ((first, second), (second, first)):
            assert abs(np.corrcoef(one[lag:], other[:-lag])[0, 1]) < 0.3


def test_large_numbers_give_streams_of_their_own():
    edge = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    orders = [
        tuple(one("uniform", 40, seed=seed, epoch=epoch, example_indices=[index]))
        for seed, epoch, index in itertools.product(edge, repeat=3)
    ]
    assert len(set(orders)) == len(edge) ** 3


def test_left_to_right_is_the_identity():
    assert one("left_to_right", 6) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("min_context", [0, 1])
def test_lattice_context_has_uniform_size_and_is_a_uniform_subset(min_context):
    columns, num_context = draw("lattice", 4, 4000, min_context=min_context)
    sizes = range(min_context, 4)
    law = {}
    for size in sizes:
        law |= dict.fromkeys(itertools.combinations(range(4), size), 1 / len(sizes) / math.comb(4, size))
    assert_follows([tuple(row[:k]) for row, k in zip(columns, num_context, strict=True)], law)


def spans_of(blanks):
    return sum(1 for column in blanks if column - 1 not in blanks)


@pytest.mark.parametrize("min_context", [0, 2])
def test_block_follows_its_stated_law(min_context):
    length = 6
    law = {}
    for blanks in range(1, length - min_context + 1):
        most_spans = min(MAX_BLANK_SPANS, blanks, length - blanks + 1)
        for subset in itertools.combinations(range(length), blanks):
            spans = spans_of(subset)
            ways = math.comb(blanks - 1, spans - 1) * math.comb(length - blanks + 1, spans)
            law[subset] = 1 / (length - min_context) / most_spans / ways
    assert sum(law.values()) == pytest.approx(1)
    columns, num_context = draw("block", length, 6000, min_context=min_context)
    assert_follows([tuple(row[k:]) for row, k in zip(columns, num_context, strict=True)], law)


@pytest.mark.parametrize("min_context", [0, 2])
def test_block_with_a_longest_span_follows_its_stated_law(min_context):
    length, longest, law = 5, 2, Counter()
    for spans in range(1, MAX_BLANK_SPANS + 1):
        for drawn in itertools.product(range(1, longest + 1), repeat=spans):
            room, kept = length - min_context, []
            for span in drawn:
                kept += [min(span, room)] if room else []
                room -= kept[-1] if room else 0
            while len(kept) - 1 > length - sum(kept):
                kept.pop()
            placed = [
                starts
                for starts in itertools.combinations(range(length), len(kept))
                if all(a + span < b for a, span, b in zip(starts, kept, starts[1:], strict=False))
                and starts[-1] + kept[-1] <= length
            ]
            for starts in placed:
                blanks = tuple(column for a, span in zip(starts, kept, strict=True) for column in range(a, a + span))
                law[blanks] += 1 / MAX_BLANK_SPANS / longest**spans / len(placed)
    assert sum(law.values()) == pytest.approx(1)
    columns, num_context = draw(f"block({longest})", length, 6000, min_context=min_context)
    assert_follows([tuple(row[k:]) for row, k in zip(columns, num_context, strict=True)], law)
    assert one("block(3)", 2, min_context=2) == [0, 1]


def test_block_leaves_at_most_a_few_spans_blank():
    columns, num_context = draw("block", 200, 400)
    spans = Counter(spans_of(set(row[k:].tolist())) for row, k in zip(columns, num_context, strict=True))
    assert set(spans) == set(range(1, MAX_BLANK_SPANS + 1))


def test_fractal_takes_the_middles_of_a_binary_tree_breadth_first():
    assert one("fractal", 7) == [3, 1, 5, 0, 2, 4, 6]
    assert one("fractal", 6) == [3, 1, 5, 0, 2, 4]
    order = one("fractal", 1000)
    gaps = [max(np.diff([-1, *sorted(order[: 2**level - 1]), 1000])) for level in range(1, 9)]
    assert gaps == [501, 251, 126, 63, 32, 16, 8, 4]


def test_strided_takes_every_dth_column_in_rounds():
    assert one("strided(3)", 8) == [0, 3, 6, 1, 4, 7, 2, 5]
    assert one("strided(1)", 5) == one("strided(9)", 5) == [0, 1, 2, 3, 4]


def test_windowed_is_uniform_inside_blocks_that_come_left_to_right():
    columns, _ = draw("windowed(3)", 8, 3000)
    firsts, seconds = list(itertools.permutations(range(3))), list(itertools.permutations(range(3, 6)))
    lasts = list(itertools.permutations(range(6, 8)))
    law = equally_likely(a + b + c for a in firsts for b in seconds for c in lasts)
    assert_follows([tuple(row) for row in columns], law)


def test_local_is_the_identity_at_width_zero_and_uniform_at_a_large_width():
    assert (draw("local(0)", 50, 20)[0] == np.arange(50)).all()
    columns, _ = draw("local(1000000)", 4, 2400)
    assert_follows([tuple(row) for row in columns], all_orders(4))


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_local_swaps_two_neighbours_as_often_as_the_normal_law_says(width):
    columns, _ = draw(f"local({width})", 2, 3000)
    swapped = stats.norm.sf(1 / (width * math.sqrt(2)))
    assert_follows([tuple(row) for row in columns], {(0, 1): 1 - swapped, (1, 0): swapped})


def test_local_moves_columns_further_as_the_width_grows():
    shifts = [np.abs(draw(f"local({width})", 100, 20)[0] - np.arange(100)).mean() for width in (0, 1, 4, 16, 64, 1e4)]
    assert shifts == sorted(shifts)
    assert shifts[-1] == pytest.approx(100 / 3, rel=0.05)


def test_an_order_does_not_depend_on_the_batch_it_is_drawn_in():
    lengths = [5, 0, 9, 30, 1]
    for spec in [*SPECS, "0.5*lattice+0.5*local(3)"]:
        together = sample_orders(spec, lengths, example_indices=[4, 3, 2, 1, 0], seed=5, epoch=2)
        assert together.columns.shape == (5, 30) and together.columns.dtype == torch.int64
        assert together.num_context.shape == (5,) and together.num_context.dtype == torch.int64
        for row, (length, index) in enumerate(zip(lengths, [4, 3, 2, 1, 0], strict=True)):
            alone = sample_orders(spec, [length], example_indices=[index], seed=5, epoch=2)
            assert torch.equal(together.columns[row, :length], alone.columns[0])
            assert (together.columns[row, length:] == -1).all()
            assert together.num_context[row] == alone.num_context[0]


def test_columns_start_behind_a_bos_where_there_is_one():
    plain, behind = (sample_orders("lattice", [4, 2], example_indices=[8, 9], first_column=first) for first in (0, 1))
    assert torch.equal(behind.columns, torch.where(plain.columns >= 0, plain.columns + 1, -1))
    assert torch.equal(behind.num_context, plain.num_context)


def test_tensors_arrays_and_lists_of_numbers_are_taken_alike():
    expected = sample_orders("uniform", [4, 5], example_indices=[8, 9]).columns
    for kind in (torch.tensor, np.array, tuple):
        assert torch.equal(sample_orders("uniform", kind([4, 5]), example_indices=kind([8, 9])).columns, expected)


def test_a_mixture_draws_its_component_for_each_example():
    columns, _ = draw("0.75*uniform+0.25*left_to_right", 12, 2000)
    identity = [bool((row == np.arange(12)).all()) for row in columns]
    assert_follows(identity, {True: 0.25, False: 0.75})


def test_components_keep_their_own_law_in_a_mixture():
    columns, _ = draw({"uniform": 0.5, "strided(2)": 0.5}, 4, 4800)
    law = {order: 0.5 / 24 + 0.5 * (order == (0, 2, 1, 3)) for order in all_orders(4)}
    assert_follows([tuple(row) for row in columns], law)


distributions = st.one_of(
    st.builds(OrderDistribution, st.sampled_from(["uniform", "left_to_right", "lattice", "block", "fractal"])),
    st.builds(OrderDistribution, st.sampled_from(["strided", "windowed"]), st.integers(1, 10**6)),
    st.builds(OrderDistribution, st.just("local"), st.floats(0, 1e30)),
)


@given(st.dictionaries(distributions, st.integers(1, 1000), min_size=1, max_size=5))
def test_str_of_a_mixture_reads_back_as_the_same_mixture(parts):
    total = sum(parts.values())
    mixture = OrderMixture(tuple(parts), tuple(weight / total for weight in parts.values()))
    assert OrderMixture.parse(str(mixture)) == mixture
    assert pickle.loads(pickle.dumps(mixture)) == mixture


def test_all_ways_to_write_a_mixture_agree():
    mixture = OrderMixture.parse("0.9*uniform+0.1*left_to_right")
    assert mixture == OrderMixture.parse(" 0.9 * uniform + 0.1*left_to_right ")
    assert mixture == OrderMixture.parse({"uniform": 0.9, "left_to_right": 0.1, "block": 0})
    assert mixture == OrderMixture.parse(mixture)
    assert str(mixture) == "0.9*uniform+0.1*left_to_right"
    assert str(OrderMixture.parse("local(8.0)")) == "local(8)"
    assert OrderMixture.parse("local(1e+3)") == OrderMixture.parse("local( 1000 )")
    assert OrderMixture.parse("strided(4)").distributions[0].parameter == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("unifrom", "Unknown order 'unifrom'; known are uniform, .*local"),
        ("", "Cannot read the order ''"),
        ("uniform+", "Cannot read the order ''"),
        ("local(8", r"Cannot read the order 'local\(8'"),
        ("uniform(3)", "'uniform' takes no parameter, got 3.0"),
        ("local", "'local' needs a width that is a finite number >= 0, got None"),
        ("local(-1)", "finite number >= 0, got -1.0"),
        ("local(inf)", "finite number >= 0, got inf"),
        ("local(wide)", r"'local\(wide\)': could not convert"),
        ("strided(0)", "'strided' needs a stride that is a whole number >= 1, got 0.0"),
        ("strided(2.5)", "whole number >= 1, got 2.5"),
        ("block(0)", "'block' needs a longest span that is a whole number >= 1, got 0"),
        ("windowed(nan)", "'windowed' needs a block size that is a whole number >= 1, got nan"),
        ("0.5*uniform+0.4*block", "must sum to 1, got .*0.9"),
        ("uniform+block", "must sum to 1, got .*2"),
        ("0.9*uniform+x*block", "Cannot read the weights"),
        ({"uniform": None}, "Cannot read the weights"),
        ({}, "must sum to 1"),
        ({"uniform": 1.5, "block": -0.5}, "must be finite and >= 0"),
        ({"uniform": math.nan}, "must be finite and >= 0"),
        ("0.5*local(8)+0.5*local(8.0)", r"must not repeat a component, got local\(8\), local\(8\)"),
        ({3: 1.0}, "Unknown order '3'"),
    ],
)
def test_bad_specifications_are_refused_with_the_reason(spec, message):
    with pytest.raises(ValueError, match=message):
        sample_orders(spec, [4], example_indices=[0])


def test_bad_types_and_numbers_are_refused_with_the_reason():
    with pytest.raises(TypeError, match="`order` must be a string, a mapping or an OrderMixture, got int"):
        sample_orders(3, [4], example_indices=[0])
    with pytest.raises(ValueError, match="one weight for each distribution, got 1 weights for 2"):
        OrderMixture((OrderDistribution("uniform"), OrderDistribution("block")))
    with pytest.raises(ValueError, match="one entry for each of the 2 lengths, got 1"):
        sample_orders("uniform", [4, 5], example_indices=[0])
    with pytest.raises(ValueError, match="`min_context` must lie between 0 .* got 2 for the length 1 of example 9"):
        sample_orders("uniform", [1], example_indices=[9], min_context=2)
    with pytest.raises(ValueError, match="`min_context` must lie between 0 .* got 0 for the length -1"):
        OrderMixture.parse("uniform").draw(-1, example_index=0)
    for name in ("seed", "epoch"):
        for value in (-1, 2**64):
            with pytest.raises(ValueError, match=rf"`{name}` must lie in \[0, 2\*\*64\), got {value}"):
                sample_orders("uniform", [4], example_indices=[0], **{name: value})
        with pytest.raises(TypeError, match=f"`{name}` must hold integers, got 0.5"):
            sample_orders("uniform", [4], example_indices=[0], **{name: 0.5})
    with pytest.raises(ValueError, match="`example_index` must lie"):
        sample_orders("uniform", [4], example_indices=[-1])
    with pytest.raises(TypeError, match="`lengths` must hold integers, got 4.0"):
        sample_orders("uniform", [4.0], example_indices=[0])
    with pytest.raises(TypeError, match="`example_indices` must hold integers, got 'a'"):
        sample_orders("uniform", [4], example_indices=["a"])


def parts(mixture):
    return {str(name): weight for name, weight in zip(mixture.distributions, mixture.weights, strict=True)}


def test_a_curriculum_moves_its_weights_linearly_and_then_stays():
    curriculum = OrderCurriculum("0.3*left_to_right+0.7*block", {"left_to_right": 0.1, "uniform": 0.9}, until=0.8)
    assert parts(curriculum.at(0)) == {"left_to_right": 0.3, "block": 0.7}
    assert parts(curriculum.at(0.2)) == pytest.approx({"left_to_right": 0.25, "block": 0.525, "uniform": 0.225})
    for progress in (0.8, 0.9, 1.0, 1.5):
        assert parts(curriculum.at(progress)) == {"left_to_right": 0.1, "uniform": 0.9}


def test_a_curriculum_moves_a_changed_parameter_linearly():
    assert str(OrderCurriculum("local(0)", "local(64)").at(0.25)) == "local(16)"
    assert str(OrderCurriculum("windowed(1)", "windowed(8)").at(0.5)) == "windowed(4)"
    mixed = OrderCurriculum("0.5*local(2)+0.5*uniform", "local(6)", until=0.5)
    assert parts(mixed.at(0.25)) == {"local(4)": 0.75, "uniform": 0.25}


def test_components_of_a_curriculum_that_are_equal_at_both_ends_keep_their_parameter():
    curriculum = OrderCurriculum("0.5*local(2)+0.5*local(4)", "0.2*local(4)+0.8*local(10)")
    assert parts(curriculum.at(0.5)) == {"local(6)": 0.65, "local(4)": pytest.approx(0.35)}
    # Both components stand at width 4 here.
    assert parts(curriculum.at(0.25)) == {"local(4)": 1.0}
    leaving = OrderCurriculum("0.5*local(2)+0.5*local(4)", "uniform")
    assert parts(leaving.at(0.5)) == {"local(2)": 0.25, "local(4)": 0.25, "uniform": 0.5}


@pytest.mark.parametrize("start", list(itertools.permutations(("0.3*local(2)", "0.3*local(4)", "0.4*uniform"))))
@pytest.mark.parametrize("end", list(itertools.permutations(("0.2*local(4)", "0.5*local(10)", "0.3*block"))))
def test_the_order_of_components_does_not_change_a_curriculum(start, end):
    curriculum = OrderCurriculum("+".join(start), "+".join(end))
    expected = {"local(6)": 0.4, "local(4)": 0.25, "uniform": 0.2, "block": 0.15}
    assert parts(curriculum.at(0.5)) == pytest.approx(expected)


def test_progress_moves_thresholds_and_widths_but_does_not_draw_anew():
    curriculum = OrderCurriculum("uniform", "left_to_right")
    stages = [draw(curriculum, 10, 200, progress=progress)[0] for progress in (0, 0.3, 0.6, 1)]
    is_identity = [(stage == np.arange(10)).all(axis=1) for stage in stages]
    assert [int(round(flags.mean() * 10)) for flags in is_identity] == [0, 3, 6, 10]
    for stage, flags, later in zip(stages, is_identity, is_identity[1:], strict=False):
        assert later[flags].all()
        assert (stage[~flags] == stages[0][~flags]).all()
    widths = OrderCurriculum("local(0)", "local(64)")
    assert (draw(widths, 30, 20, progress=0.25)[0] == draw("local(16)", 30, 20)[0]).all()


def test_bad_curricula_are_refused_with_the_reason():
    for until in (0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"`until` must lie in \(0, 1\], got"):
            OrderCurriculum("uniform", "block", until=until)
    with pytest.raises(ValueError, match="cannot tell which 'local' of .* at most one parameter of a name may change"):
        OrderCurriculum("0.5*local(2)+0.5*local(4)", "local(8)")
    with pytest.raises(ValueError, match="Unknown order"):
        OrderCurriculum("uniform", "blocks")
    for progress in (-0.1, math.nan):
        with pytest.raises(ValueError, match="`progress` must be >= 0"):
            OrderCurriculum("uniform", "block").at(progress)


def test_a_curriculum_survives_pickling():
    curriculum = OrderCurriculum("local(0)", "0.5*uniform+0.5*local(8)", until=0.5)
    copy = pickle.loads(pickle.dumps(curriculum))
    assert copy == curriculum and copy.at(0.3) == curriculum.at(0.3)
