# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The page: inputs, buttons, and what happens when they are used. What belongs to one visitor is in `gr.State`."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import render
from filling import Filling, Settings, count_tokens, fill, find_alternatives
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from words import BlankedText, read_text, split_items, toggle_item


TITLE = "Fill in the blanks, in any order"
ABOUT = """# {title}

Write a text with blanks, or tap its words to blank them. The model `{name}` fills them, looking at both sides.
`<blank>` is one token (a word or a part of one), `<blank:3>` three tokens, `<blank:1-4>` one to four.
"""
EXAMPLES = [
    "The capital of <blank> is Paris, which is a large city.",
    "I forgot my umbrella, so when the rain started I <blank:3-6> and waited.",
    "My favourite drink is <blank:1-3>, because it keeps me <blank:1-2> at night.",
]
ORDERS = [
    ("left to right", "left_to_right"),
    ("random", "random"),
    ("most probable token first", "confidence"),
    ("lowest entropy first", "entropy"),
    ("widest margin first", "margin"),
]
HINT = "Press a filled token to see what else could stand there."
# One listener for all buttons that a component shows now or later.
ON_PRESS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-%s]');
  if (!button) return;
  if (button.classList.contains('token')) {
    element.querySelectorAll('[aria-pressed=true]').forEach((other) => other.setAttribute('aria-pressed', 'false'));
    button.setAttribute('aria-pressed', 'true');
  }
  trigger('select', Object.fromEntries(Object.entries(button.dataset).map(([key, value]) => [key, Number(value)])));
});
"""
# On a phone, results are below what is in view.
SCROLL = "() => document.getElementById('%s').scrollIntoView({behavior: 'smooth', block: 'nearest'})"
SETTINGS = """At temperature 0 each token is the likeliest one. Then candidates differ only in the lengths of their
blanks, or in their random order. Candidates are compared by the log-probability of the whole text."""


class Page:
    """What the page does. It holds the model and nothing of any visitor.

    Args:
        model, tokenizer: shared by all visitors.
        most_tokens: how long a text may be.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, most_tokens: int):
        self.model, self.tokenizer, self.most_tokens = model, tokenizer, most_tokens

    def show_words(self, text: str, blanked: BlankedText | None) -> tuple[BlankedText | None, str]:
        """Reads the text box anew."""
        try:
            blanked = read_text(text, blanked)
        except ValueError as error:
            return None, render.render_message(str(error), is_error=True)
        return blanked, render.render_words(blanked)

    def toggle_word(self, blanked: BlankedText | None, new_blanks: str, event: gr.EventData) -> tuple:
        """Makes a blank of the pressed word, or the reverse. Returns the text, its blanks, and the words."""
        items = split_items(blanked) if blanked else []
        if not 0 <= event.index < len(items):
            return gr.skip(), gr.skip(), gr.skip()
        blanked = toggle_item(blanked, items[event.index], lambda words: self._write_blank(words, new_blanks))
        return blanked.text, blanked, render.render_words(blanked)

    def _write_blank(self, words: str, new_blanks: str) -> str:
        count = count_tokens(self.tokenizer, words)
        return f"<blank:{count}>" if new_blanks == "exact" else f"<blank:1-{2 * count}>"

    def fill(
        self, text: str, order: str, candidates: int, temperature: float, seed: float | None, colour_by: str
    ) -> Iterator[tuple]:
        """Yields the candidates' HTML, the message, the fillings, and the alternatives' HTML after each pass."""
        settings = Settings(order, int(candidates), float(temperature), int(seed or 0) % 2**32, self.most_tokens)
        yield "", render.render_message("Waiting for the model ..."), (), ""
        try:
            for snapshot in fill(self.model, self.tokenizer, text, settings):
                if snapshot.fillings:
                    shown = render.render_fillings(snapshot.fillings, colour_by)
                    yield shown, render.render_message(_describe_end(snapshot)), snapshot.fillings, ""
                else:
                    shown = render.render_progress(snapshot, colour_by)
                    yield shown, render.render_message(_describe_progress(snapshot)), gr.skip(), gr.skip()
        except ValueError as error:
            gr.Warning(escape(str(error)))
            yield "", render.render_message(str(error), is_error=True), (), ""

    def show_alternatives(self, fillings: tuple[Filling, ...], event: gr.EventData) -> str:
        """What else could stand in the pressed token's place."""
        for filling in fillings[event.candidate : event.candidate + 1]:
            for token in (token for blank in filling.line.blanks for token in blank):
                if token.column == event.column:
                    found = find_alternatives(self.model, self.tokenizer, filling.ids, token.column)
                    return render.render_alternatives(found, token)
        return render.render_message("This text is not there any more. Fill it again.", is_error=True)

    def colour(self, fillings: tuple[Filling, ...], colour_by: str) -> tuple[str, str]:
        """Shows the fillings in other colours, and their legend. While there are none, the canvas stays as it is."""
        canvas = render.render_fillings(fillings, colour_by) if fillings else gr.skip()
        return canvas, render.render_legend(colour_by)


def _describe_progress(snapshot) -> str:
    counts = [line.count() for line in snapshot.lines]
    done, total = (sum(each) for each in zip(*counts, strict=True))
    return f"Pass {snapshot.passes}: {done} of {total} tokens filled"


def _describe_end(snapshot) -> str:
    if not snapshot.passes:
        return "This text has no blanks, so it is only scored. Tap words to blank them."
    passes = f"{snapshot.passes} pass{'es' if snapshot.passes > 1 else ''}"
    tried, shown = len(snapshot.lines), len(snapshot.fillings)
    best = f", the best {shown} of {tried} candidates" if tried > shown > 1 else ""
    best = best or (f", the best of {tried} candidates" if tried > 1 == shown else "")
    return f"Done in {passes}{best}. {HINT}"


class Inputs(NamedTuple):
    """What a visitor sets, and the parts of the page about it."""

    text: gr.Textbox
    blanked: gr.State
    words: gr.HTML
    start: gr.Button
    stop: gr.Button
    order: gr.Dropdown
    candidates: gr.Slider
    temperature: gr.Slider
    seed: gr.Number
    new_blanks: gr.Radio


class Results(NamedTuple):
    """What the page shows of a filling."""

    message: gr.HTML
    fillings: gr.State
    canvas: gr.HTML
    alternatives: gr.HTML
    colour_by: gr.Radio
    legend: gr.HTML


def build_app(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, most_tokens: int = 256, parallel: int = 2
) -> gr.Blocks:
    """Builds the page.

    Args:
        name: how the page calls the model.
        most_tokens: how long a text may be.
        parallel: how many texts are filled at the same time. Others wait.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as app:
        gr.Markdown(ABOUT.format(title=TITLE, name=name))
        with gr.Row():
            with gr.Column(min_width=300):
                inputs = _add_inputs()
            with gr.Column(min_width=300):
                results = _add_results()
        gr.Examples(EXAMPLES, inputs.text, label="Examples")
        _connect(Page(model, tokenizer, most_tokens), inputs, results, parallel)
    return app.queue(max_size=32)


def _add_inputs() -> Inputs:
    blanked = gr.State(read_text(EXAMPLES[0]))
    text = gr.Textbox(EXAMPLES[0], label="Text with blanks", lines=3, max_lines=12, max_length=5000, elem_id="text")
    gr.Markdown("**Tap words to blank them.** Tap a blank to put its words back.")
    words = gr.HTML(render.render_words(blanked.value), js_on_load=ON_PRESS % "index", elem_id="words")
    with gr.Row():
        start = gr.Button("Fill the blanks", variant="primary", elem_id="start", scale=2, min_width=130)
        stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=90)
    order = gr.Dropdown(ORDERS, value="left_to_right", label="Order in which blanks are filled", elem_id="order")
    with gr.Row():
        candidates = gr.Slider(1, 5, value=1, step=1, label="Candidates", min_width=130, elem_id="candidates")
        temperature = gr.Slider(0, 1.5, value=0, step=0.1, label="Temperature", min_width=130, elem_id="temperature")
    with gr.Accordion("More settings", open=False):
        gr.Markdown(SETTINGS)
        seed = gr.Number(0, precision=0, label="Seed of random orders and draws", elem_id="seed")
        lengths = [("as long as the words", "exact"), ("of unknown length", "unknown")]
        new_blanks = gr.Radio(lengths, value="exact", label="Blanks made by tapping are", elem_id="new-blanks")
    return Inputs(text, blanked, words, start, stop, order, candidates, temperature, seed, new_blanks)


def _add_results() -> Results:
    message = gr.HTML(render.render_message("Press “Fill the blanks”."), elem_id="message")
    canvas = gr.HTML(js_on_load=ON_PRESS % "column", elem_id="canvas")
    legend = gr.HTML(render.render_legend("probability"), elem_id="legend")
    colour_by = gr.Radio(["probability", "pass"], value="probability", label="Colour tokens by", elem_id="colour")
    alternatives = gr.HTML(elem_id="alternatives")
    return Results(message, gr.State(()), canvas, alternatives, colour_by, legend)


def _connect(page: Page, inputs: Inputs, results: Results, parallel: int) -> None:
    """Says what happens when something is used. Fillings and alternatives share the model, so they share a queue."""
    quiet, model = {"show_progress": "hidden"}, {"concurrency_limit": parallel, "concurrency_id": "model"}
    canvas, message, alternatives = results.canvas, results.message, results.alternatives
    blanked, words = inputs.blanked, inputs.words
    inputs.text.change(page.show_words, [inputs.text, blanked], [blanked, words], trigger_mode="always_last", **quiet)
    words.select(page.toggle_word, [blanked, inputs.new_blanks], [inputs.text, blanked, words], **quiet)
    settings = [inputs.order, inputs.candidates, inputs.temperature, inputs.seed, results.colour_by]
    run = inputs.start.click(
        page.fill, [inputs.text, *settings], [canvas, message, results.fillings, alternatives], **quiet, **model
    )
    # The visitor may have chosen other colours meanwhile.
    run.then(page.colour, [results.fillings, results.colour_by], [canvas, results.legend], **quiet)
    inputs.start.click(None, js=SCROLL % "message")
    stopped = inputs.stop.click(None, cancels=[run])
    # Only then, or the last pass would write over it.
    stopped.then(lambda: render.render_message("Stopped."), None, message, **quiet)
    pressed = canvas.select(page.show_alternatives, results.fillings, alternatives, **quiet, **model)
    pressed.then(None, js=SCROLL % "alternatives")
    results.colour_by.change(page.colour, [results.fillings, results.colour_by], [canvas, results.legend], **quiet)


def launch_app(app: gr.Blocks, **options) -> None:
    """Starts the page with its own style and without anything from other servers."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app.launch(theme=theme, css_paths=Path(__file__).with_name("style.css"), footer_links=["settings"], **options)
