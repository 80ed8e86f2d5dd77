# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Losses with rows hidden: which rows are hidden, that they are, and what the loss is then."""

import math

import pytest
import torch
from masked import MASK, masked_model, masked_rows
from reference import Reference
from scripts import load_script, read_json
from test_attention_mass import batch_for
from variants import (
    all_variants,
    any_order_variants,
    every_variant,
    pad_rows,
    random_rows,
    stack_rows,
    tiny_model,
    two_stream_variants,
)

from modeling_aoarm.analysis import Difference, HiddenRowLosses, hidden_row_losses, plot_hidden_rows
from modeling_aoarm.analysis.rows import AttendedRows
from modeling_aoarm.data.tokenizers import character_tokenizer


def hide(model, batches, counts=(1, 2, 5), **options):
    return hidden_row_losses(model, batches, counts, **{"progress": False} | options)


def scored_batch(variant, examples=3, rows=12, seed=0):
    """As `batch_for`, with the labels that `bidirectional` needs."""
    if variant != "bidirectional":
        return batch_for(variant, examples, rows, seed)
    canvas, tokens = masked_rows(examples, rows, seed)
    return {"input_ids": canvas, "labels": tokens}


def one_row(batch, example, row):
    """The batch with labels that leave a single prediction, that of one row."""
    labels = torch.full_like(batch["input_ids"], -100)
    labels[example, row + 1] = batch["input_ids"][example, row + 1]
    return batch | {"labels": labels}


def hidden_by_loops(model, batch, choice, count, own_row):
    """What is hidden, bool `[batch, rows, keys]`, from the definitions."""
    is_masked = model.config.attention_variant == "bidirectional"
    tokens = batch["input_ids"]
    content = torch.arange(tokens.shape[1]).expand_as(tokens) if is_masked else batch["position_ids"]
    targets = content if is_masked else batch["target_position_ids"]
    hidden = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool)
    for example in range(len(tokens)):
        for row in range(tokens.shape[1]):
            if is_masked and tokens[example, row] != MASK:
                continue
            seen = range(1, tokens.shape[1] if is_masked else row + 1)
            others = [k for k in seen if (own_row or k != row) and not (is_masked and tokens[example, k] == MASK)]
            places = {k: int(content[example, k]) for k in others}
            if choice == "recent":
                others.reverse()
            else:
                place = int((targets if choice == "nearest" else content)[example, row])
                others.sort(key=lambda k, place=place, places=places: (abs(place - places[k]), places[k]))
            hidden[example, row, others[:count]] = True
    return hidden


class HidingReference(Reference):
    """The naive model, one example at a time, whose streams do not see what `hidden` says, bool `[rows, keys]`."""

    def _attend(self, layer, asking, read, ask_positions, read_positions, visible):
        is_content = self.config.attention_variant == "two_stream" and ask_positions is read_positions
        hidden = self.hidden.get("content" if is_content else "prediction")
        visible = visible if hidden is None else visible & ~hidden
        return super()._attend(layer, asking, read, ask_positions, read_positions, visible)


def slow_losses(model, batch, hidden, streams):
    """Nats of each example from the reference, with `hidden` `[batch, rows, keys]` in `streams`."""
    reference, losses = HidingReference(model), []
    for example in range(len(batch["input_ids"])):
        inputs = {name: value[example : example + 1] for name, value in batch.items()}
        tokens, labels = inputs["input_ids"], inputs.pop("labels", None)
        if labels is not None:
            # `bidirectional`: blanks predict their own tokens.
            inputs["position_ids"] = torch.arange(tokens.shape[1])[None]
            predicted = labels.where(tokens == MASK, -100)[0]
        else:
            predicted = torch.cat([tokens[0, 1:], torch.tensor([-100])])
        reference.hidden = {stream: hidden[example] for stream in streams}
        logits = reference.logits(**inputs)[0]
        losses.append(torch.nn.functional.cross_entropy(logits, predicted, ignore_index=-100, reduction="sum").item())
    return losses


@every_variant
def test_nothing_hidden_is_the_plain_loss(variant):
    model, batch = tiny_model(variant), scored_batch(variant)
    found = hide(model, [batch], [0])
    for by_choice in found.hidden_nll.values():
        for nll in by_choice.values():
            assert torch.equal(nll[0], found.example_nll)
    labels = batch["input_ids"]
    if variant == "bidirectional":
        labels = batch["labels"].where(labels == MASK, -100)
    with torch.no_grad():
        loss = model(**batch | {"labels": labels}).loss.item()
    assert found.nll == pytest.approx(loss, abs=1e-6)


@pytest.mark.grid
@every_variant
@pytest.mark.parametrize("own_row", [False, True])
def test_losses_are_those_of_a_dense_mask(variant, own_row):
    model, batch = tiny_model(variant), scored_batch(variant, examples=2, rows=9)
    found = hide(model, [batch], [1, 3], own_row=own_row)
    for stream, by_choice in found.hidden_nll.items():
        for choice, nll in by_choice.items():
            if choice == "random":
                continue
            for losses, count in zip(nll.tolist(), found.counts, strict=True):
                hidden = hidden_by_loops(model, batch, choice, count, own_row)
                streams = ("content", "prediction") if stream == "all" else (stream,)
                assert losses == pytest.approx(slow_losses(model, batch, hidden, streams), abs=2e-4)
                # It matters, so that a wrong mask would be seen.
                if stream != "content":
                    assert losses != pytest.approx(found.example_nll.tolist(), abs=2e-3)


def rows_of(variant="two_stream", **batch):
    return AttendedRows.of({name: torch.tensor([value]) for name, value in batch.items()}, tiny_model(variant))


def test_ranks_by_hand():
    batch = dict(input_ids=[1] * 5, position_ids=[0, 3, 1, 4, 7], target_position_ids=[3, 1, 4, 2, 9])
    rows = rows_of(**batch)
    last = torch.iinfo(torch.int64).max
    # Row 3 predicts position 2: rows 2 (position 1) and 1 (position 3) are as near, the left one goes first.
    assert rows.ranks("nearest", own_row=True)[0, 3].tolist() == [last, 1, 0, 2, last]
    assert rows.ranks("nearest")[0, 3].tolist() == [last, 1, 0, last, last]
    # It stands at 4, and is its own most recent row.
    assert rows.ranks("own", own_row=True)[0, 3].tolist() == [last, 1, 2, 0, last]
    assert rows.ranks("recent", own_row=True)[0, 3].tolist() == [last, 2, 1, 0, last]
    assert rows.ranks("recent")[0, 3].tolist() == [last, 1, 0, last, last]
    assert (rows.ranks("recent")[0, :2] == last).all()
    # Padding on the left: row 2 is the first one.
    padded = rows_of(attention_mask=[0, 0, 1, 1, 1], **batch)
    assert padded.ranks("recent", own_row=True)[0, 4].tolist() == [last, last, last, 1, 0]
    assert padded.predicting.tolist() == [[False, False, True, True, False]]


def test_random_rows_are_even_and_belong_to_the_example():
    rows = rows_of(**{name: value[0].tolist() for name, value in random_rows("two_stream", 1, 6).items()})
    ranks = torch.stack([rows.ranks("random", seed=0, first_example=n)[0, 5] for n in range(2000)])
    # Rows 1 to 4 come first equally often: 500 times, with a standard deviation of 19.
    assert ((ranks == 0).sum(0)[1:5] - 500).abs().max() < 80 and (ranks == 0).sum() == 2000
    drawn = rows.ranks("random", seed=1, first_example=7)
    assert torch.equal(drawn, rows.ranks("random", seed=1, first_example=7))
    assert any(not torch.equal(drawn, rows.ranks("random", seed=seed, first_example=7)) for seed in range(2, 6))


@any_order_variants
def test_hidden_tokens_do_not_matter_to_one_layer(variant):
    model, batch = tiny_model(variant, num_hidden_layers=1), random_rows(variant, 1, 10)
    row = 7
    distance = (batch["position_ids"][0, 1:row] - batch["target_position_ids"][0, row]).abs()
    nearest = 1 + int(distance.argmin())
    changed = batch | {"input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, nearest] += 1
    before, after = (hide(model, [one_row(each, 0, row)], [1], choices=["nearest"]) for each in (batch, changed))
    streams = [stream for stream in before.streams if stream != "content"]
    for stream in streams:
        assert torch.equal(before.hidden_nll[stream]["nearest"], after.hidden_nll[stream]["nearest"])
    assert before.nll != pytest.approx(after.nll, abs=1e-3)


@two_stream_variants
def test_the_last_layer_asks_with_the_prediction_stream_only(variant):
    found = hide(tiny_model(variant, num_hidden_layers=1), [random_rows(variant, 2, 10)])
    for choice in found.choices:
        assert (found.excess("content", choice).mean == 0).all()
        assert torch.equal(found.hidden_nll["prediction"][choice], found.hidden_nll["all"][choice])
    found = hide(tiny_model(variant), [random_rows(variant, 2, 10)])
    assert all((found.excess("content", choice).mean != 0).all() for choice in found.choices)


@all_variants
def test_a_row_that_sees_nothing_further_loses_nothing(variant):
    # Row 1 sees the first row and itself.
    model, batch = tiny_model(variant), random_rows(variant, 1, 2 + 1)
    found = hide(model, [one_row(batch, 0, 1)], [1, 9])
    assert all((found.excess(stream, choice).mean == 0).all() for stream in found.streams for choice in found.choices)
    # Hidden from itself it does.
    found = hide(model, [one_row(batch, 0, 1)], [1, 9], own_row=True)
    for stream in found.streams:
        losses = torch.stack([found.hidden_nll[stream][choice] for choice in found.choices])
        assert (losses == losses[:1, :1]).all() and losses[0, 0, 0] != found.example_nll[0]


@pytest.mark.grid
@every_variant
def test_batches_and_padding_change_nothing(variant):
    model = tiny_model(variant)
    examples = [scored_batch(variant, 1, rows, seed=rows) for rows in (9, 12, 7)]
    alone = hide(model, examples)
    padded = [pad_rows(example, 12, "left" if number else "right") for number, example in enumerate(examples)]
    if variant == "bidirectional":
        for example in padded:
            example["labels"] = example["labels"].masked_fill(example["attention_mask"] == 0, -100)
    together = hide(model, [stack_rows(padded[:2]), padded[2]])
    assert torch.equal(alone.example_tokens, together.example_tokens)
    torch.testing.assert_close(alone.example_nll, together.example_nll, atol=1e-4, rtol=0)
    for stream in alone.streams:
        for choice in alone.choices:
            torch.testing.assert_close(
                alone.hidden_nll[stream][choice], together.hidden_nll[stream][choice], atol=1e-4, rtol=0
            )


def test_masks_of_streams_are_each_streams_own():
    model = tiny_model("two_stream")
    attention, streams = model.model.layers[0].self_attn, torch.randn(2, 3, 5, 32)
    places = torch.arange(5).expand(3, -1)
    rotations = model.model.rotations(streams, places, places[..., None] + 1)
    masks = torch.zeros(2, 3, 1, 5, 5).masked_fill(torch.rand(2, 3, 1, 5, 5) < 0.4, torch.finfo(torch.float32).min)
    with torch.no_grad():
        both = attention(streams, streams[0], *rotations, torch.cat([*masks], dim=2))[0]
        for stream, mask in enumerate(masks):
            shared = attention(streams, streams[0], *rotations, mask)[0]
            torch.testing.assert_close(both[stream], shared[stream], atol=1e-6, rtol=0)
            assert not torch.allclose(both[1 - stream], shared[1 - stream], atol=1e-2)


def test_differences_by_hand():
    found = Difference.per_token(torch.tensor([[1.0, 2.0, 6.0]]).double(), torch.tensor([2, 2, 2]))
    # Per token 0.5, 1 and 3: mean 1.5, standard deviation sqrt(1.75).
    assert found.mean.item() == pytest.approx(1.5)
    assert found.standard_error.item() == pytest.approx(math.sqrt(1.75 / 3))
    # Of different lengths, with the same difference for each token: no error.
    found = Difference.per_token(torch.tensor([[1.0, 3.0]]).double(), torch.tensor([1, 3]))
    assert (found.mean.item(), found.standard_error.item()) == (1, 0)
    single = Difference.per_token(torch.tensor([[1.0]]).double(), torch.tensor([4]))
    assert single.to_dict() == {"mean": [0.25], "standard_error": [None]}


def test_contrasts_by_hand():
    def losses(nearest, recent):
        return {"nearest": torch.tensor([nearest]).double(), "recent": torch.tensor([recent]).double()}

    hidden = {"prediction": losses([9.0, 9.0], [5.0, 4.0]), "content": losses([4.0, 4.0], [6.0, 5.0])}
    found = HiddenRowLosses((3,), False, torch.tensor([2, 2]), torch.tensor([4.0, 4.0]).double(), hidden)
    assert found.nll == 2
    assert found.excess("prediction", "nearest").mean.item() == 2.5
    assert found.contrast("prediction").mean.item() == 9 / 4
    assert found.contrast("content").mean.item() == -3 / 4
    assert found.dissociation.mean.item() == 3
    assert found.to_dict()["dissociation"]["mean"] == [3]
    alone = HiddenRowLosses((3,), False, found.example_tokens, found.example_nll, {"prediction": hidden["content"]})
    assert alone.dissociation is None and alone.to_dict()["dissociation"] is None


def test_examples_of_one_sentence_are_joined():
    nll = torch.tensor([1.0, 3.0, 2.0, 4.0]).double()
    hidden = {"prediction": {"nearest": torch.stack([nll, nll + torch.tensor([1.0, 3.0, 6.0, 0.0])])}}
    found = HiddenRowLosses((0, 1), False, torch.tensor([1, 2, 3, 4]), nll, hidden).joined(2)
    assert found.example_tokens.tolist() == [3, 7] and found.example_nll.tolist() == [4, 6]
    assert found.hidden_nll["prediction"]["nearest"].tolist() == [[4, 6], [8, 12]]
    # As before in the mean, and differently in the error.
    assert found.excess("prediction", "nearest").mean.tolist() == [0, 1]
    for size in (0, 3):
        with pytest.raises(ValueError, match=f"`size` must divide the 4 examples, got {size}"):
            HiddenRowLosses((0, 1), False, torch.tensor([1, 2, 3, 4]), nll, hidden).joined(size)


def test_the_model_is_left_as_it_was():
    model, batch = tiny_model("two_stream").train(), random_rows("two_stream", 2, 8)
    hide(model, [batch])
    with pytest.raises(ValueError, match="`position_ids` must lie in"):
        hide(model, [batch, batch | {name: batch[name] + 1000 for name in ("position_ids", "target_position_ids")}])
    assert model.training and model.config._attn_implementation == "sdpa"
    assert not any(module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        fresh = tiny_model("two_stream")(**batch).logits
        assert torch.equal(model.eval()(**batch).logits, fresh)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": [-1]}, r"`counts` must hold numbers of rows, none below 0, got \(-1,\)"),
        ({"counts": []}, "`counts` must hold"),
        ({"choices": ["near"]}, r"`choices` must be a sequence of \['nearest', 'own', 'recent', 'random'\]"),
        ({"choices": "recent"}, "`choices` must be a sequence"),
        ({"streams": ["content"]}, r"`streams` must be a sequence of \['prediction'\] for this model"),
        ({"batches": []}, "at least one batch"),
        ({"batches": [{"input_ids": torch.ones(1, 1, dtype=torch.int64)}]}, "must hold rows that predict"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        hide(tiny_model("decoupled_rope"), **{"batches": [random_rows("decoupled_rope", 1, 5)]} | options)


def test_targets_and_labels_must_be_known():
    with pytest.raises(TypeError, match="`counts` must hold integers, got 1.5"):
        hide(tiny_model("causal"), [random_rows("causal", 1, 5)], [1.5])
    batch = random_rows("decoupled_rope", 1, 5)
    batch["target_position_ids"][0, 1] += 1
    with pytest.raises(ValueError, match="`target_position_ids` must hold the next row's position"):
        hide(tiny_model("decoupled_rope"), [batch])
    with pytest.raises(ValueError, match="`labels` must be in each batch"):
        hide(masked_model(), [{"input_ids": masked_rows(1, 5)[0]}])
    with pytest.raises(ValueError, match=r"`choices` must be a sequence of \['nearest', 'random'\]"):
        hide(masked_model(), [scored_batch("bidirectional")], choices=["recent"])


@pytest.mark.parametrize("variant", ["decoupled_rope", "two_stream", "bidirectional"])
def test_the_picture_has_its_numbers_beside_it(variant, tmp_path):
    found = hide(tiny_model(variant), [scored_batch(variant)], [0, 1, 4])
    plot_hidden_rows(found, tmp_path / "hidden.png")
    assert (tmp_path / "hidden.png").read_bytes().startswith(b"\x89PNG")
    numbers = read_json(tmp_path, "hidden.json")
    assert numbers == found.to_dict()
    excess = found.excess("prediction", "nearest")
    assert numbers["excess"]["prediction"]["nearest"]["mean"] == excess.mean.tolist()


@pytest.mark.parametrize("variant", ["two_stream", "bidirectional"])
def test_the_example_analyses_a_saved_model(variant, tmp_path, capsys):
    text = "\n".join(f"line {number} of a text that is about nothing" for number in range(40))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = character_tokenizer([text])
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    for saved in (tiny_model(variant, vocab_size=len(tokenizer), **special), tokenizer):
        saved.save_pretrained(tmp_path / "model")
    flags = {"model": "model", "output_dir": "out", "train_file": "text.txt"}
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(tmp_path / value))]
    arguments += "--validation_fraction 0.4 --block_size 16 --examples 6 --batch_size 4 --counts 1 3".split()
    load_script("examples/analyze_attention.py").main(arguments)

    mass, losses = (read_json(tmp_path / "out", f"{name}.json") for name in ("attention_mass", "hidden_rows"))
    assert losses["examples"] == 6 and losses["counts"] == [1, 3] and mass["own_row"] is False
    if variant == "two_stream":
        # Six rows of 16 characters behind the beginning of the sentence.
        assert mass["rows"] == losses["tokens"] == 6 * 16
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png", ".json"}
    printed = capsys.readouterr().out
    assert f"{losses['excess']['prediction']['nearest']['mean'][1]:+.4f}" in printed
