# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The page in `examples/space`: what it computes, without a browser."""

import html
import re
import sys
import threading
import tomllib

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from variants import SIZES, tiny_model
from warm_python import REPOSITORY

from modeling_aoarm import infill, lora_config
from modeling_aoarm.data.tokenizers import character_tokenizer, train_bpe_tokenizer


# Behind all others, so that its modules hide none.
sys.path.append(str(REPOSITORY / "examples" / "space"))

import app  # noqa: E402
import filling  # noqa: E402
import render  # noqa: E402
import words  # noqa: E402


CORPUS = [
    f"the {animal} sat on the {place}, and the {animal} slept."
    for animal in ("cat", "dog", "bird", "horse")
    for place in ("mat", "tree", "roof", "stable")
]
TEXT = "the <blank:3> sat on <blank:1-3>, and the <blank> slept."
ORDERS = ["left_to_right", "random", "confidence", "entropy", "margin"]


def model_for(tokenizer, variant="two_stream_neighbor", **changes):
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    return tiny_model(variant, vocab_size=len(tokenizer), **special, **changes)


@pytest.fixture(scope="module", params=[character_tokenizer, lambda texts: train_bpe_tokenizer(texts, 320)])
def tokenizer(request):
    return request.param(CORPUS)


@pytest.fixture(scope="module")
def model(tokenizer):
    return model_for(tokenizer)


def fill(model, tokenizer, text=TEXT, **settings):
    return list(filling.fill(model, tokenizer, text, filling.Settings(**settings)))


# The model, and the Space


def logits_of(model):
    with torch.no_grad():
        return model(torch.arange(5, 17)[None]).logits


def test_a_decoder_is_converted_and_an_adapter_is_merged(tmp_path):
    tokenizer = character_tokenizer(CORPUS)
    torch.manual_seed(0)
    decoder = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": len(tokenizer)})).eval()
    for saved in (decoder, tokenizer):
        saved.save_pretrained(tmp_path / "decoder")
    model, _ = app.load(str(tmp_path / "decoder"))
    assert model.config.attention_variant == "two_stream"
    torch.testing.assert_close(logits_of(model), logits_of(decoder))

    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "model")
    adapted = get_peft_model(model, lora_config(model, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    merged, _ = app.load(str(tmp_path / "model"), str(tmp_path / "adapter"))
    assert not isinstance(merged, PeftModel) and not merged.training
    torch.testing.assert_close(logits_of(merged), logits_of(adapted.eval()), atol=1e-5, rtol=1e-4)
    assert (logits_of(merged) - logits_of(decoder)).abs().max() > 0.01


def test_the_space_needs_the_versions_that_the_package_needs():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {str(Requirement(each)) for each in sum(project["optional-dependencies"].values(), project["dependencies"])}
    folder = REPOSITORY / "examples" / "space"
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needed = {str(Requirement(line)) for line in lines if not line.startswith("#")}
    assert needed <= known and {Requirement(each).name for each in needed} >= {"gradio", "torch", "transformers"}
    front = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (folder / front["app_file"]).is_file() and front["sdk"] == "gradio"
    pinned = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert f"gradio=={front['sdk_version']}\n" in pinned and len(front["short_description"]) <= 60


# Words and blanks


@pytest.mark.parametrize(
    "text", ["The cat's (big) mat: 3.5 m!", r"a \<blank> b <blank:2> c <blank>, d", "été\n\n 猫  ok"]
)
def test_a_word_becomes_a_blank_and_comes_back(text):
    blanked = words.read_text(text)
    items = words.split_items(blanked)
    assert "".join(item.text for item in items).replace("<blank> b", r"\<blank> b") == text
    numbers = [number for number, item in enumerate(items) if item.kind == "word"]
    assert numbers
    for number in numbers:
        changed = words.toggle_item(blanked, items[number], lambda chosen: f"<blank:{len(chosen)}>")
        assert changed.text != text and items[number].text in changed.words
        again = words.split_items(changed)
        (blank,) = (item for item in again if item.kind == "blank" and changed.words[item.piece])
        assert words.toggle_item(changed, blank, None) == blanked


def tap(blanked, *chosen):
    for text in chosen:
        item = next(item for item in words.split_items(blanked) if item.text == text)
        blanked = words.toggle_item(blanked, item, lambda chosen: f"<blank:{len(chosen)}>")
    return blanked


@pytest.mark.parametrize("order", [("one", "two", "three"), ("three", "one", "two"), ("two", "three", "one")])
def test_neighbours_share_a_blank_and_what_stands_between_stays(order):
    blanked = tap(words.read_text("one two  three, four"), *order)
    assert (blanked.text, blanked.words) == ("<blank:14>, four", ("one two  three",))
    assert tap(blanked, "four").text == "<blank:14>, <blank:4>"
    assert tap(blanked, "<blank:14>").text == "one two  three, four"


def test_blanks_that_were_written_by_hand_stay():
    blanked = tap(words.read_text("a <blank:2> cat<blank> b"), "cat")
    # Adjacent blanks are read as one, and nobody knows the words of all of it.
    assert (blanked.text, blanked.words) == ("a <blank:2> <blank:3><blank> b", (None, None))
    assert tap(blanked, "<blank:2>") == blanked


def test_words_are_kept_while_the_blanks_stay_the_same():
    blanked = tap(words.read_text("the cat sat"), "cat")
    assert words.read_text("THE <blank:3> sat", blanked).words == ("cat",)
    assert words.read_text("THE <blank:4> sat", blanked).words == (None,)


# Filling


@pytest.mark.parametrize("order", ORDERS)
def test_the_page_fills_like_infill(order, model, tokenizer):
    """The same texts, in the same order, with the same log-probabilities."""
    for temperature in (0.0, 0.9):
        options = {"decoding_order": order}
        if temperature:
            options |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
        expected = infill(model, tokenizer, [TEXT] * 2, return_candidates=True, generator=generators, **options)
        expected = {each.text: each.log_probability for infilling in expected for each in infilling.candidates}
        best = sorted(expected, key=expected.get, reverse=True)[:2]
        settings = {"num_candidates": 2, "temperature": temperature, "seed": 7, "decoding_order": order}
        fillings = fill(model, tokenizer, **settings)[-1].fillings
        assert [each.line.text for each in fillings] == best
        assert [each.log_probability for each in fillings] == pytest.approx([expected[text] for text in best], abs=1e-4)


def test_each_pass_fills_more_and_changes_nothing(model, tokenizer):
    *snapshots, end = fill(model, tokenizer, "the <blank:4> sat on the <blank:3>.", decoding_order="random", seed=3)
    assert len(snapshots) >= 7 and end.passes == snapshots[-1].passes
    counts = [snapshot.lines[0].count() for snapshot in snapshots]
    assert (
        counts[0][0] <= 1
        and counts[-1] == (7, 7)
        and [done for done, _ in counts] == sorted(done for done, _ in counts)
    )
    last = {token.column: token for blank in snapshots[-1].lines[0].blanks for token in blank}
    assert sorted(token.step for token in last.values()) == list(range(end.passes - 7, end.passes))
    for snapshot in snapshots:
        assert snapshot.lines[0].pieces == ("the ", " sat on the ", ".")
        for token in (token for blank in snapshot.lines[0].blanks for token in blank):
            if token.step >= 0:
                assert (token.step, token.probability) == (last[token.column].step, last[token.column].probability)


def test_probabilities_are_those_of_the_order(model, tokenizer):
    """From left to right, they are the ones that `score` gives."""
    text = "the <blank:4> sat on the <blank:3>."
    ends = (fill(model, tokenizer, text, temperature=1.0, seed=seed)[-1] for seed in range(20))
    # Special tokens are not shown.
    best = next(end.fillings[0] for end in ends if end.lines[0].count() == (7, 7))
    tokens = [token for blank in best.line.blanks for token in blank]
    ids, blanks = torch.tensor([best.ids]), torch.zeros(1, len(best.ids), dtype=torch.bool)
    blanks[0, [token.column for token in tokens]] = True
    scored = model.score(ids, blanks, decoding_order="left_to_right").token_log_probs[0, 0].exp()
    assert [token.probability for token in tokens] == pytest.approx(
        [scored[token.column].item() for token in tokens], abs=1e-5
    )


@pytest.mark.parametrize("variant", ["two_stream_neighbor", "decoupled_rope", "adaptive_norm", "bidirectional"])
def test_alternatives_are_given_all_other_tokens(variant):
    """Each one has the probability that `score` gives to it in its place."""
    tokenizer = character_tokenizer(CORPUS)
    model = model_for(tokenizer, variant)
    ids = tuple([tokenizer.bos_token_id, *tokenizer.encode("the cat sat", add_special_tokens=False)])
    column = 6
    found = filling.find_alternatives(model, tokenizer, ids, column, count=len(tokenizer))
    canvas = torch.tensor([ids]).repeat(len(tokenizer), 1)
    canvas[:, column] = torch.arange(len(tokenizer))
    blanks = torch.zeros_like(canvas, dtype=torch.bool)
    blanks[:, column] = True
    expected = model.score(canvas, blanks, decoding_order="left_to_right").log_likelihood[0].exp()
    if variant == "bidirectional":
        # The mask token is no token of a text.
        expected[tokenizer.mask_token_id] = 0
    values = [probability for _, probability, _ in found.tokens]
    assert values == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-5)
    assert found.probability == pytest.approx(expected[ids[column]].item(), abs=1e-5)
    (place,) = (place for place, (_, _, stands_here) in enumerate(found.tokens) if stands_here)
    assert found.rank == place and found.tokens[place][0] == "a"
    assert sum(values) == pytest.approx(1, abs=1e-4)


def test_a_text_without_blanks_is_scored(model, tokenizer):
    text = CORPUS[0]
    (snapshot,) = fill(model, tokenizer, text)
    expected = infill(model, tokenizer, text, return_candidates=True).log_probability
    assert snapshot.passes == 0 and snapshot.fillings[0].line.text == text
    assert snapshot.fillings[0].log_probability == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("text", ["a <blank:0> b", "a <blank:6-2> b", "a <blank:99> b", "<blank:1-9> a <blank:1-9>"])
def test_wrong_blanks_are_refused_in_the_words_of_infill(text, model, tokenizer):
    with pytest.raises(ValueError) as expected:
        infill(model, tokenizer, text, max_candidates=filling.MOST_LENGTHS)
    with pytest.raises(ValueError) as found:
        fill(model, tokenizer, text)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(("text", "words"), [(" \n", "There is no text"), ("the <blank:30>", "at most 20 tokens")])
def test_the_pages_own_limits(text, words, model, tokenizer):
    with pytest.raises(ValueError, match=words):
        fill(model, tokenizer, text, most_tokens=20)


def test_fillings_at_the_same_time_do_not_mix(model, tokenizer):
    texts = {"the <blank:6> sat on the mat.": 1, "a <blank:4> slept <blank:2>.": 2}
    alone = [fill(model, tokenizer, text, seed=seed, temperature=1.0) for text, seed in texts.items()]
    running = [
        filling.fill(model, tokenizer, text, filling.Settings(seed=seed, temperature=1.0))
        for text, seed in texts.items()
    ]
    together = [[], []]
    for _ in range(20):
        for own, snapshots in zip(together, running, strict=True):
            own += [snapshot] if (snapshot := next(snapshots, None)) else []
    for own, expected in zip(together, alone, strict=True):
        assert [snapshot.lines[0].text for snapshot in own] == [snapshot.lines[0].text for snapshot in expected]
        assert own[-1].fillings[0].ids == expected[-1].fillings[0].ids
        assert own[-1].fillings[0].log_probability == pytest.approx(expected[-1].fillings[0].log_probability, abs=1e-4)


def test_a_filling_that_nobody_waits_for_ends(model, tokenizer):
    passes, threads = [], threading.active_count()
    go_on = threading.Event()

    def count(module, *_):
        passes.append(1)
        if len(passes) > 2:
            go_on.wait(10)

    handle = model.register_forward_hook(count)
    try:
        snapshots = filling.fill(model, tokenizer, "the <blank:20>.", filling.Settings())
        next(snapshots)
        threading.Timer(0.2, go_on.set).start()
        snapshots.close()
    finally:
        handle.remove()
    assert len(passes) <= 4
    assert threading.active_count() <= threads + 1


# What is shown


def text_of(markup):
    """The text between tags, without the figures below tokens."""
    return html.unescape(re.sub(r"<rt>.*?</rt>|<[^>]*>", "", markup))


@pytest.mark.parametrize("colour_by", ["probability", "pass"])
def test_candidates_show_their_text_as_it_is(colour_by, model, tokenizer):
    text = "the <b>cat</b> & <blank:3> sat on\n <blank:2>."
    *snapshots, end = fill(model, tokenizer, text, decoding_order="random", seed=2)
    assert "<b>cat" not in render.render_fillings(end.fillings, colour_by).replace("<b>−", "")
    shown = text_of(render.render_fillings(end.fillings, colour_by)).partition("log-probability")[0]
    # White space and control characters of a random model's tokens are shown as signs.
    assert shown.startswith("the <b>cat</b> & ") and " sat on\n " in shown and shown.endswith(".")
    assert "__" in text_of(render.render_progress(snapshots[0], colour_by))
    pressed = re.findall(
        r'<button[^>]* data-candidate="(\d+)" data-column="(\d+)"', render.render_fillings(end.fillings, colour_by)
    )
    columns = [token.column for blank in end.fillings[0].line.blanks for token in blank]
    assert pressed == [("0", str(column)) for column in columns]


def test_colours_say_the_probability_and_the_pass():
    def classes(probability, step, colour_by):
        token = filling.BlankToken(" cat", 1, step, probability)
        line = filling.Line(("the", "."), ((token,),))
        return render.render_fillings([filling.Filling(line, (1, 2, 3), -1.5)], colour_by)

    levels = [(0.0, 0), (0.099, 0), (0.1, 1), (0.3, 2), (0.5, 3), (0.81, 4), (1.0, 4)]
    for probability, level in levels:
        assert f'"token sure{level}"' in classes(probability, 0, "probability")
    assert 'title="cat: 30%, pass 3"' in classes(0.3, 2, "pass") and "<rt>3</rt>" in classes(0.3, 2, "pass")
    assert "<rt>30</rt>" in classes(0.3, 2, "probability") and "−1.50 nats" in classes(0.3, 2, "pass")
    assert [render.format_percent(each) for each in (0.0, 0.0123, 0.0999, 0.5, 1.0)] == [
        "under 0.1%",
        "1.2%",
        "10%",
        "50%",
        "100%",
    ]


def test_alternatives_name_the_token_that_stands_there():
    token = filling.BlankToken(" <i>", 4, 1, 0.02)
    likely = ((" dog", 0.5, False), ("\n", 0.2, False))
    markup = render.render_alternatives(filling.Alternatives(0.015, 41, likely), token)
    assert "<i>" not in markup and "␣&lt;i&gt;" in markup and "⏎" in markup
    rows = [text_of(row) for row in re.findall(r"<tr><td>.*?</tr>", markup)]
    assert rows == ["1␣dog50%", "2⏎20%", "42␣<i> ✓ in the text1.5%"]


def test_messages_are_text():
    markup = render.render_message("`text`: <blank:0>", is_error=True)
    assert 'role="alert"' in markup and "&lt;blank:0&gt;" in markup
