# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""A toy variant and a toy way of decoding, added from outside of the package as `docs/extending.md` shows it."""

import itertools
from pathlib import Path

import pytest
import torch
from canvases import check_filling, ragged_canvases, replay
from test_docs import blocks
from transformers import AutoModelForCausalLM

from modeling_aoarm.decoding_aoarm import ADAPTIVE_ORDERS, LIMITS


PAGE = "docs/extending.md"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the page's Python blocks define."""
    names = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("extending"))
        for line, code in blocks(PAGE, "python"):
            exec(compile("\n" * line + code, PAGE, "exec"), names)
        names["folder"] = Path("outputs/target_rope").resolve()
    yield names
    ADAPTIVE_ORDERS.pop("collision")
    LIMITS.pop("margin")


@pytest.fixture
def model(names):
    torch.manual_seed(0)
    return names["TargetRopeForCausalLM"](names["config"]).eval()


def test_the_variant_predicts_otherwise_than_its_parent(names, model):
    torch.manual_seed(0)
    parent = names["AOARMForCausalLM"](names["config"]).eval()
    rows, positions = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0, 3, 1, 2]])
    assert not torch.allclose(model(rows, position_ids=positions).logits, parent(rows, position_ids=positions).logits)


def test_the_variant_obeys_the_chain_rule(model):
    """The probabilities of all strings sum to one in any order."""
    strings = torch.tensor(list(itertools.product(range(model.config.vocab_size), repeat=3)))
    canvas = torch.cat([torch.zeros_like(strings[:, :1]), strings], dim=1)
    for order in itertools.permutations((1, 2, 3)):
        scores = model.score(canvas, decoding_order=torch.tensor(order).expand(len(canvas), -1))
        assert scores.log_likelihood.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_variant_leaks_nothing(model):
    rows, positions = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0, 3, 1, 2]])
    changed = rows.clone()
    changed[0, 2] = 5
    before, after = (model(each, position_ids=positions).logits for each in (rows, changed))
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2:], after[:, 2:])


def test_the_variant_is_saved_and_loaded(names):
    loaded = AutoModelForCausalLM.from_pretrained(names["folder"])
    assert type(loaded) is names["TargetRopeForCausalLM"]


def fill(model, **arguments):
    canvas = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 5, 4, 3, 2, 1]])
    blanks = torch.tensor([[False, True, True, False, True, True], [False, False, True, False, False, True]])
    return blanks, model.generate(canvas, generation_mask=blanks, return_dict_in_generate=True, **arguments)


@pytest.mark.parametrize("tokens_per_step", [1, 2])
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_the_way_fills_every_blank(names, model, tokens_per_step, cache):
    """As a default of the model; replaying the order gives the log-probabilities."""
    model.generation_config.decoding_order = "collision"
    model.generation_config.validate()
    blanks, output = fill(model, tokens_per_step=tokens_per_step, **cache)
    assert [sorted(set(each) - {-1}) for each in output.decoding_order.tolist()] == [
        blank.nonzero()[:, 0].tolist() for blank in blanks
    ]
    if tokens_per_step == 1:
        replayed = model.score(output.sequences, blanks, decoding_order=output.decoding_order)
        torch.testing.assert_close(replayed.log_likelihood[0], output.logprobs.sum(1), atol=1e-5, rtol=0)


def test_the_way_chooses_the_largest_collision(names, model):
    """The first blank is the one with the largest sum of squared probabilities given the context alone."""
    blanks, output = fill(model, decoding_order="collision")
    for example, row in enumerate(output.sequences):
        columns = blanks[example].nonzero()[:, 0]
        context = (~blanks[example]).nonzero()[:, 0]
        positions = context.expand(len(columns), -1)
        targets = torch.cat([positions[:, 1:], columns[:, None]], dim=1)
        logits = model(row[positions], position_ids=positions, target_position_ids=targets).logits[:, -1]
        collisions = logits.softmax(-1).square().sum(-1).round(decimals=3)
        assert output.decoding_order[example, 0] == columns[collisions.argmax()]


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_the_limit_fills_what_is_far_apart_together(names, model, cache):
    """Replay gives the same log-probabilities; tokens of a pass are all far ahead of others, or the pass fills one."""
    sizes = []
    for seed in range(4):
        canvases = ragged_canvases("left", seed)
        canvases["input_ids"] %= 6
        output = model.generate(**canvases, tokens_per_step="margin(0.2)", return_dict_in_generate=True, **cache)
        check_filling(canvases, output)
        replayed = replay(model, canvases, output, in_groups=True)
        torch.testing.assert_close(replayed, output.logprobs, atol=1e-5, rtol=0)
        for steps, logprobs in zip(output.decoding_steps, output.logprobs, strict=True):
            for step in steps[steps >= 0].unique():
                together = logprobs[steps == step]
                sizes.append(len(together))
                # With a margin of 0.2 the likeliest of six has at least a third.
                assert len(together) == 1 or (together.exp() >= 0.2 + 0.8 / 6).all()
    assert {1, 2} <= set(sizes)


def test_a_limit_of_the_package_works_with_an_order_from_outside(names, model):
    """The threshold is one of probabilities, whatever the order measures."""
    sizes = set()
    for seed in range(4):
        canvases = ragged_canvases("left", seed)
        canvases["input_ids"] %= 6
        how = {"decoding_order": "collision", "tokens_per_step": "threshold(0.4)", "return_dict_in_generate": True}
        output = model.generate(**canvases, **how)
        for steps, logprobs in zip(output.decoding_steps, output.logprobs, strict=True):
            for step in steps[steps >= 0].unique():
                together = logprobs[steps == step]
                sizes.add(len(together))
                assert len(together) == 1 or (together.exp() > 0.4).all()
    assert {1, 2} <= sizes


def test_the_diffs_apply_to_the_code():
    """Lines that the page's diffs keep or remove stand in the files."""
    diffs = [code for _, code in blocks(PAGE, "diff")]
    assert len(diffs) == 2
    for code in diffs:
        lines = []
        for line in code.splitlines():
            if line.startswith("+++ "):
                lines = (ROOT / line[4:]).read_text(encoding="utf-8").splitlines()
            elif line[:1] in (" ", "-") and not line.startswith("---"):
                assert line[1:] in lines, line
