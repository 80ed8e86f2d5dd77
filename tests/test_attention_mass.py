# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Attention mass against Python loops over attention weights, and laws that it keeps."""

import copy
import gc
import math
import weakref

import pytest
import torch
from masked import MASK, masked_model, masked_rows
from scripts import read_json
from variants import TWO_STREAM, all_variants, every_variant, pad_rows, random_rows, tiny_model, two_stream_variants

from modeling_aoarm.analysis import attention_mass, plot_attention_mass, specialisation_score
from modeling_aoarm.modeling_aoarm import AOARMAttention


LINEAR, NEAR = 3, 2


def batch_for(variant, examples=3, rows=14, seed=0):
    if variant == "bidirectional":
        return {"input_ids": masked_rows(examples, rows, seed)[0]}
    return random_rows(variant, examples, rows, seed)


def measure(model, batches, **options):
    return attention_mass(model, batches, **{"linear": LINEAR, "near": NEAR, "progress": False} | options)


def label_of(distance):
    """`LINEAR` is 3: after it come 4-6, 7-12, 13-24, ...."""
    if distance <= LINEAR:
        return str(distance)
    high = LINEAR
    while distance > high:
        low, high = high + 1, 2 * high
    return f"{low}–{high}"


def streams_of(model, batch):
    """Attention weights by stream, `[layers][batch, heads, rows, keys]`, from a model of its own."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**batch, output_attentions=True)
    streams = {"prediction": outputs.attentions}
    if getattr(outputs, "content_attentions", None) is not None:
        streams["content"] = outputs.content_attentions
    return streams


def slow_mass(model, batch, asked, own_row=False):
    """By loops: mass, uniform mass, s and t, from the definitions. `asked`: pairs of example and row."""
    is_masked = model.config.attention_variant == "bidirectional"
    tokens = batch["input_ids"].tolist()
    rows = len(tokens[0])
    real = batch.get("attention_mask", torch.ones(len(tokens), rows)).bool().tolist()
    content = batch["position_ids"].tolist() if not is_masked else [list(range(rows)) for _ in tokens]
    targets = batch["target_position_ids"].tolist() if not is_masked else content
    mass, uniform, keys, special = {}, {}, {}, {}

    def add(table, key, value):
        table[key] = table.get(key, 0) + value

    for stream, layers in streams_of(model, batch).items():
        for layer, weights in enumerate(layers):
            for example, row in asked:
                seen = [k for k in range(rows) if real[example][k] and (is_masked or k <= row)]
                blank = [is_masked and tokens[example][k] == MASK for k in range(rows)]
                distances = {"target": lambda k, e=example, r=row: abs(targets[e][r] - content[e][k])}
                if not is_masked:
                    distances["own"] = lambda k, e=example, r=row: abs(content[e][r] - content[e][k])
                    distances["rows"] = lambda k, r=row: r - k
                for name, distance in distances.items():
                    for k in seen:
                        label = "blank" if blank[k] else "first row" if k == seen[0] else label_of(distance(k))
                        if layer == 0 and stream == "prediction":
                            add(uniform, (name, label), 1 / len(seen) / len(asked))
                            add(keys, (name, label), 1)
                        for head in range(weights.shape[1]):
                            part = weights[example, head, row, k].item() / len(asked)
                            add(mass, (stream, name, layer, head, label), part)
                others = [k for k in seen[1:] if own_row or k != row]
                near = sorted(
                    others, key=lambda k, e=example, r=row: (abs(targets[e][r] - content[e][k]), content[e][k])
                )
                near, recent = set(near[:NEAR]), set(sorted(others)[-NEAR:])
                for kind, chosen in (("nearest", near - recent), ("recent", recent - near)):
                    for head in range(weights.shape[1]):
                        part = sum(weights[example, head, row, k].item() for k in chosen) / len(asked)
                        add(special, (kind, stream, layer, head), part)
    return mass, uniform, keys, special


def check_against_loops(model, batch, measured, asked, own_row=False):
    mass, uniform, keys, special = slow_mass(model, batch, asked, own_row)
    assert measured.rows == len(asked)
    assert {label for _, label in uniform} <= set(measured.bins)
    assert set(measured.streams) == {key[0] for key in mass}
    for stream in measured.streams:
        for name in measured.distances:
            for layer, heads in enumerate(measured.mass[stream][name].tolist()):
                for head, bins in enumerate(heads):
                    expected = [mass.get((stream, name, layer, head, label), 0) for label in measured.bins]
                    assert bins == pytest.approx(expected, abs=1e-6)
    for name in measured.distances:
        assert measured.keys[name].tolist() == [keys.get((name, label), 0) for label in measured.bins]
        expected = [uniform.get((name, label), 0) for label in measured.bins]
        assert measured.uniform[name].tolist() == pytest.approx(expected, abs=1e-9)
    for stream in measured.nearest:
        for kind in ("nearest", "recent"):
            for layer, heads in enumerate(getattr(measured, kind)[stream].tolist()):
                expected = [special[kind, stream, layer, head] for head in range(len(heads))]
                assert heads == pytest.approx(expected, abs=1e-6)


@all_variants
@pytest.mark.parametrize("own_row", [False, True])
def test_mass_is_that_of_loops_over_the_weights(variant, own_row):
    model, batch = tiny_model(variant), random_rows(variant, 2, 14)
    # The last row predicts a token that is not there.
    asked = [(example, row) for example in range(2) for row in range(13)]
    check_against_loops(model, batch, measure(model, [batch], own_row=own_row), asked, own_row)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", ["two_stream", "double_position"])
def test_padding_is_neither_seen_nor_asked(variant, side):
    model, batch = tiny_model(variant), pad_rows(random_rows(variant, 2, 9), 12, side)
    first = 3 if side == "left" else 0
    asked = [(example, first + row) for example in range(2) for row in range(8)]
    check_against_loops(model, batch, measure(model, [batch]), asked)


def test_labels_say_which_rows_predict():
    model, batch = tiny_model("two_stream"), random_rows("two_stream", 2, 10)
    labels = batch["input_ids"].clone()
    labels[0, :6] = labels[1] = -100
    check_against_loops(model, batch, measure(model, [batch | {"labels": labels}]), [(0, row) for row in range(5, 9)])


def test_bidirectional_asks_blanks_and_tells_blanks_from_observed_rows():
    model, tokens = masked_model(), masked_rows(3, 11)[0]
    # Blank and observed first rows, a padded example.
    tokens[0, 0], tokens[1, 0], tokens[2, 8:] = MASK, 5, MASK
    mask = torch.ones_like(tokens)
    mask[2, 8:] = 0
    asked = [(b, r) for b in range(3) for r in range(11) if tokens[b, r] == MASK and mask[b, r]]
    batch = {"input_ids": tokens, "attention_mask": mask}
    measured = measure(model, [batch])
    check_against_loops(model, batch, measured, asked)
    assert measured.distances == ("target",) and measured.bins[-1] == "blank" and not measured.nearest

    # Labels and weights leave out blanks whose tokens do not count.
    labels, weights = torch.full_like(tokens, 3), torch.ones(3, 11)
    labels[0], weights[1] = -100, 0
    measured = measure(model, [batch | {"labels": labels, "loss_weights": weights}])
    check_against_loops(model, batch, measured, [(b, r) for b, r in asked if b == 2])


@every_variant
def test_mass_sums_to_one(variant):
    measured = measure(tiny_model(variant), [batch_for(variant)])
    for by_distance in measured.mass.values():
        for mass in by_distance.values():
            assert mass.sum(-1).flatten().tolist() == pytest.approx([1] * mass.shape[:2].numel(), abs=1e-5)
    for uniform in measured.uniform.values():
        assert uniform.sum().item() == pytest.approx(1)


@every_variant
def test_uniform_attention_has_lift_one_everywhere_and_score_zero(variant):
    model = tiny_model(variant)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    measured = measure(model, [batch_for(variant)])
    for stream in measured.streams:
        for name in measured.distances:
            lift = measured.lift(stream, name)
            has_keys = measured.keys[name] > 0
            assert lift[..., has_keys].flatten().tolist() == pytest.approx([1] * lift[..., has_keys].numel(), abs=1e-5)
            assert lift[..., ~has_keys].isnan().all()
        # From left to right the nearest rows are the most recent ones: there is no score.
        if variant == "causal":
            assert math.isnan(measured.specialisation(stream).score)
        elif variant != "bidirectional":
            assert measured.nearest[stream].min() > 0.01
            assert measured.specialisation(stream).score == pytest.approx(0, abs=1e-5)


@every_variant
def test_batches_change_nothing(variant):
    model, batch = tiny_model(variant), batch_for(variant, examples=4)
    together = measure(model, [batch])
    alone = measure(model, ({name: value[i : i + 1] for name, value in batch.items()} for i in range(4)))
    assert together.bins == alone.bins and together.rows == alone.rows
    for stream in together.streams:
        for name in together.distances:
            torch.testing.assert_close(together.mass[stream][name], alone.mass[stream][name], atol=1e-6, rtol=0)
        if together.nearest:
            torch.testing.assert_close(together.nearest[stream], alone.nearest[stream], atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", ["two_stream", "double_position", "bidirectional"])
def test_packed_examples_are_measured_like_separate_ones(variant):
    model = tiny_model(variant)
    examples = [batch_for(variant, 1, rows, seed=rows) for rows in (6, 9)]
    packed = {name: torch.cat([example[name] for example in examples], dim=1) for name in examples[0]}
    labels = packed["input_ids"].masked_fill(packed["input_ids"] == MASK, 3)
    if variant != "bidirectional":
        labels[0, 0] = labels[0, 6] = -100
    packed |= {"labels": labels, "segment_ids": torch.tensor([[0] * 6 + [1] * 9])}
    together, alone = measure(model, [packed]), measure(model, examples)
    assert together.rows == alone.rows
    for stream in alone.streams:
        for name in alone.distances:
            torch.testing.assert_close(together.mass[stream][name], alone.mass[stream][name], atol=1e-6, rtol=0)
            torch.testing.assert_close(together.keys[name], alone.keys[name])


@two_stream_variants
def test_the_content_stream_asks_in_all_layers_but_the_last(variant):
    measured = measure(tiny_model(variant), [random_rows(variant, 2, 8)])
    assert measured.streams == ("prediction", "content")
    assert [len(measured.mass[stream]["rows"]) for stream in measured.streams] == [3, 2]


def test_layers_that_are_applied_twice_are_layers_of_their_own():
    model, batch = tiny_model("decoupled_rope"), random_rows("decoupled_rope", 2, 8)
    weights = []
    first = model.model.layers[0].self_attn
    handle = first.register_forward_hook(lambda module, arguments, output: weights.append(output[1]))
    # The same module once more, and a copy that shares its parameters.
    shared = copy.copy(model.model.layers[1])
    shared._modules = dict(shared._modules) | {"self_attn": copy.copy(shared.self_attn)}
    model.model.layers.extend([model.model.layers[0], shared])
    measured = measure(model, [batch])
    handle.remove()
    assert len(measured.mass["prediction"]["rows"]) == 5 and len(weights) == 2
    for layer, each in zip((0, 3), weights, strict=True):
        # Rows 1 to 6 to themselves; row 0 is the first row, and row 7 predicts nothing that is there.
        expected = each.diagonal(0, 2, 3)[:, :, 1:-1].sum(dim=(0, 2)) / measured.rows
        own_bin = measured.mass["prediction"]["rows"][layer, :, measured.bins.index("0")]
        torch.testing.assert_close(own_bin, expected.double(), atol=1e-6, rtol=0)


def test_scores_by_hand():
    nearest = torch.tensor([[0.3, 0.1], [0.0, 0.0]], dtype=torch.float64)
    recent = torch.tensor([[0.1, 0.3], [0.2, 0.0]], dtype=torch.float64)
    found = specialisation_score(nearest, recent)
    assert found.heads[0].tolist() == pytest.approx([0.5, -0.5]) and found.heads[1, 0] == -1
    assert found.heads[1, 1].isnan()
    # (0.4 - 0.6) / (0.4 + 0.6), and weights 0.4, 0.4, 0.2 of 0.5, -0.5, -1.
    assert found.score == pytest.approx(-0.2)
    assert found.spread == pytest.approx(math.sqrt(0.4 * 0.7**2 + 0.4 * 0.3**2 + 0.2 * 0.8**2))
    split = specialisation_score(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert (split.score, split.spread) == (0, 1)
    assert math.isnan(specialisation_score(torch.zeros(1, 1), torch.zeros(1, 1)).score)


def test_dissociation_is_half_the_difference_of_the_streams():
    measured = measure(tiny_model("two_stream"), [random_rows("two_stream", 2, 10)])
    prediction, content = (measured.specialisation(stream).score for stream in ("prediction", "content"))
    assert measured.dissociation == pytest.approx((prediction - content) / 2) and prediction != content
    assert measure(tiny_model("decoupled_rope"), [random_rows("decoupled_rope", 2, 10)]).dissociation is None


def test_the_model_is_left_as_it_was():
    model, batch = tiny_model("two_stream", attention_dropout=0.5).train(), random_rows("two_stream", 2, 8)
    measured, expected = measure(model, [batch]), measure(tiny_model("two_stream"), [batch])
    assert torch.equal(measured.mass["content"]["rows"], expected.mass["content"]["rows"])
    # Refused by the model, with everything in place.
    with pytest.raises(ValueError, match="`position_ids` must lie in"):
        measure(model, [batch, batch | {"position_ids": batch["position_ids"] + 1000}])
    assert model.training and model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["two_stream", "double_position"])
def test_weights_of_one_layer_at_a_time(variant):
    model, batch = tiny_model(variant), random_rows(variant, 2, 8)
    alive, seen = [], []

    def count(module, arguments, output):
        seen.append(weakref.ref(output[1]))
        alive.append(sum(each() is not None for each in seen))

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, AOARMAttention)]
    measure(model, [batch, batch])
    for handle in handles:
        handle.remove()
    assert alive == [1] * 6
    gc.collect()
    # Weights: two examples, four heads, eight rows, eight keys.
    assert not [each for each in gc.get_objects() if type(each) is torch.Tensor and each.shape[-4:] == (2, 4, 8, 8)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear": 0}, "`linear` must be at least 1, got 0"),
        ({"near": 0}, "`near` must be at least 1, got 0"),
        ({"batches": []}, "at least one batch"),
        ({"batches": [{"tokens": 1}]}, r"batch 0 has the keys \['tokens'\]"),
        ({"batches": [{"input_ids": torch.ones(1, 1, dtype=torch.int64)}]}, "must hold rows that predict"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        measure(tiny_model("causal"), **{"batches": [random_rows("causal", 1, 4)]} | changes)


def test_what_has_no_single_target_per_row_is_refused():
    model, batch = tiny_model("two_stream"), random_rows("two_stream", 1, 4)
    with pytest.raises(ValueError, match=r"`target_position_ids` must have the shape \[batch, rows\]"):
        measure(model, [batch | {"target_position_ids": batch["target_position_ids"][..., None]}])
    with pytest.raises(ValueError, match=r"`attention_mask` must have the shape \[batch, rows\]"):
        measure(model, [batch | {"attention_mask": torch.ones(1, 1, 4, 4)}])
    with pytest.raises(TypeError, match="got Linear without AOARMAttention"):
        linear = torch.nn.Linear(1, 1)
        linear.config = model.config
        measure(linear, [batch])
    with pytest.raises(ValueError, match="`stream` must be one of"):
        measure(model, [batch]).specialisation("query")


@pytest.mark.parametrize("variant", ["decoupled_rope", "two_stream", "bidirectional"])
def test_pictures_have_their_numbers_beside_them(variant, tmp_path):
    measured = measure(tiny_model(variant), [batch_for(variant)])
    plot_attention_mass(measured, tmp_path / "mass.png")
    assert (tmp_path / "mass.png").read_bytes().startswith(b"\x89PNG")
    numbers = read_json(tmp_path, "mass.json")
    assert numbers["mass"]["prediction"]["target"] == measured.mass["prediction"]["target"].tolist()
    assert (numbers["dissociation"] is not None) == (variant in TWO_STREAM)
    assert numbers["lift"]["prediction"]["target"][0][0][measured.bins.index("0")] is None
    lift = measured.lift("prediction", "target")
    assert numbers["lift"]["prediction"]["target"][1][0][0] == pytest.approx(lift[1, 0, 0].item())
    with pytest.raises(ValueError, match="must end in .png"):
        plot_attention_mass(measured, tmp_path / "mass.pdf")
