# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""A canvas filling in, as an animated GIF or as a page of HTML: the files behind `animate_generation`."""

import html
import json
import math
from dataclasses import dataclass
from pathlib import Path
from string import Template

from rich.cells import cell_len

from .display import age_colour, confidence_colour, label, legend
from .io import replacing


BLANK, NEW, INK, QUIET = "#dfe3e8", "#fff1e0", "#24292f", "#6e7781"
# Sizes of the GIF, in characters and in inches.
CHARACTERS_PER_LINE, FONT_SIZE, LINE_HEIGHT, MARGIN = 64, 12, 0.28, 0.2
# DejaVu Sans Mono, which comes with matplotlib.
CHARACTER_WIDTH = 0.602 * FONT_SIZE / 72


@dataclass
class CanvasToken:
    """One column of a filled canvas.

    Args:
        column: where it stands.
        text: the text of its token; empty for a closed blank.
        step: the number of the forward pass that filled it, -1 for a given token and for a closed blank.
        logprob: of its token, nats; NaN where `step` is -1.
        closed: the number of the forward pass whose end of sentence closed this blank, -1 where none did.
    """

    column: int
    text: str
    step: int
    logprob: float
    closed: int = -1

    @property
    def was_blank(self) -> bool:
        return self.step >= 0 or self.closed >= 0

    def is_blank(self, passes: int) -> bool:
        """Whether it is blank after that many forward passes."""
        return max(self.step, self.closed) >= passes


def passes_of(tokens: list[CanvasToken]) -> int:
    """How many forward passes it took to fill the last blank."""
    return 1 + max(token.step for token in tokens)


def write_gif(path: Path, tokens: list[CanvasToken], colour_by: str, seconds_per_pass: float) -> None:
    """One frame of the canvas as given and one after each forward pass."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from PIL import Image

    passes = passes_of(tokens)
    pieces, lines = _lay_out(tokens)
    width = CHARACTERS_PER_LINE * CHARACTER_WIDTH + 2 * MARGIN
    height = (lines + 2.6) * LINE_HEIGHT + 2 * MARGIN
    figure = Figure(figsize=(width, height), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    # In inches, from the top left corner.
    axes.set_xlim(-MARGIN, width - MARGIN)
    axes.set_ylim(height - MARGIN, -MARGIN)
    style = {"family": "monospace", "fontsize": FONT_SIZE, "va": "center", "parse_math": False}
    title = axes.text(0, 0.5 * LINE_HEIGHT, "", **{**style, "fontsize": 10, "color": QUIET})
    drawn = []
    for token, text, line, start in pieces:
        left, top = start * CHARACTER_WIDTH, (line + 1.4) * LINE_HEIGHT
        size = cell_len(text) * CHARACTER_WIDTH
        box = Rectangle((left + 0.01, top + 0.03), size - 0.02, LINE_HEIGHT - 0.06, visible=False)
        axes.add_patch(box)
        drawn.append((token, box, axes.text(left, top + 0.53 * LINE_HEIGHT, text, **style)))
    _draw_legend(axes, colour_by, (lines + 2.1) * LINE_HEIGHT, style)

    def frame(number: int) -> Image.Image:
        title.set_text(f"after {number} of {passes} forward passes: {_progress(tokens, number)}")
        for token, box, text in drawn:
            is_blank, is_new = token.is_blank(number), token.step == number - 1 >= 0
            box.set_visible(is_blank or is_new)
            box.set_facecolor(BLANK if is_blank else NEW)
            text.set_visible(not is_blank and token.closed < 0)
            text.set_color(colour_of(token, colour_by, number))
        canvas.draw()
        return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")

    # One palette for all frames, or colours would flicker.
    samples = [frame(number) for number in (0, passes // 2, passes)]
    sheet = Image.new("RGB", (samples[0].width, samples[0].height * len(samples)))
    for place, sample in enumerate(samples):
        sheet.paste(sample, (0, place * sample.height))
    palette = sheet.quantize(256)
    frames = [frame(number).quantize(palette=palette, dither=Image.Dither.NONE) for number in range(passes + 1)]
    milliseconds = [round(1000 * seconds_per_pass)] * passes + [round(1000 * seconds_per_pass) + 2000]
    with replacing(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


def _lay_out(tokens: list[CanvasToken]) -> tuple[list[tuple[CanvasToken, str, int, int]], int]:
    """Where each token's text goes, as (token, text, line, first character), and the number of lines.

    Lines break between words and at line breaks; what is longer than a line is cut.
    """
    words: list[list[tuple[CanvasToken, str]]] = [[]]
    for token in tokens:
        text = label(token.text)
        if words[-1] and (text.startswith(" ") or words[-1][-1][1].endswith((" ", "↵"))):
            words.append([])
        words[-1].append((token, text))
    pieces, line, start = [], 0, 0
    for word in words:
        length = sum(cell_len(text) for _, text in word)
        if start > 0 and start + length > CHARACTERS_PER_LINE and length <= CHARACTERS_PER_LINE:
            line, start = line + 1, 0
        for token, text in word:
            for character in text if start + cell_len(text) > CHARACTERS_PER_LINE else [text]:
                if start + cell_len(character) > CHARACTERS_PER_LINE:
                    line, start = line + 1, 0
                pieces.append((token, character, line, start))
                start += cell_len(character)
            if text.endswith("↵"):
                line, start = line + 1, 0
    return pieces, line + 1


def _draw_legend(axes, colour_by: str, top: float, style: dict) -> None:
    words = [("blank ", QUIET), ("  ", BLANK), ("   given ", QUIET), ("text   ", INK), *legend(colour_by)]
    left, size = 0.0, 0.602 * 9 / 72
    for text, colour in words:
        if text.isspace():
            axes.plot([left, left + len(text) * size], [top, top], color=colour, linewidth=9, solid_capstyle="butt")
        else:
            axes.text(left, top, text, **{**style, "fontsize": 9, "color": colour or QUIET})
        left += len(text) * size


def colour_of(token: CanvasToken, colour_by: str, passes: int) -> str:
    """`#rrggbb` of a token's text after that many forward passes."""
    if token.step < 0:
        return INK
    if colour_by == "age":
        return age_colour(max(passes - 1 - token.step, 0))
    return confidence_colour(math.exp(token.logprob))


def _progress(tokens: list[CanvasToken], passes: int) -> str:
    blanks = [token for token in tokens if token.was_blank]
    return f"{sum(not token.is_blank(passes) for token in blanks)} of {len(blanks)} blanks done"


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>A canvas filling in</title>
<style>
body { color: $ink; background: white; font-family: system-ui, sans-serif; margin: 2em auto; max-width: 50em; }
#canvas { font: 1.1em/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
#canvas .blank { color: transparent !important; background: $blank; box-shadow: inset 0 0 0 1px white; }
#canvas .new { background: $new; }
#canvas .closed { visibility: hidden; }
form { display: flex; gap: 0.8em; align-items: center; }
input { flex: 1; }
button { width: 5em; }
.quiet, output { color: $quiet; }
</style>
</head>
<body>
<p id="canvas">$spans</p>
<form>
<button type="button" id="play">Pause</button>
<input type="range" id="passes" min="0" max="$passes" value="$passes" aria-label="forward passes">
</form>
<p><output id="progress">$progress</output></p>
<p class="quiet">$legend</p>
<script>
const colours = $colours, seconds = $seconds, last = $passes;
const spans = [...document.querySelectorAll("#canvas span")];
const blanks = spans.filter(span => Number(span.dataset.until) > 0);
const slider = document.getElementById("passes"), play = document.getElementById("play");
let timer = null;
function show(passes) {
  slider.value = passes;
  let done = 0;
  for (const span of blanks) {
    const until = Number(span.dataset.until), isBlank = until > passes, isClosed = "closed" in span.dataset;
    span.classList.toggle("blank", isBlank);
    span.classList.toggle("new", until === passes && !isClosed);
    span.classList.toggle("closed", isClosed && !isBlank);
    if (colours.length && !isBlank) span.style.color = colours[passes - until];
    done += !isBlank;
  }
  document.getElementById("progress").textContent =
    `after $${passes} of $${last} forward passes: $${done} of $${blanks.length} blanks done`;
}
function stop() { clearTimeout(timer); timer = null; play.textContent = "Play"; }
function tick() {
  const passes = (Number(slider.value) + 1) % (last + 1);
  show(passes);
  timer = setTimeout(tick, 1000 * seconds + (passes === last ? 2000 : 0));
}
function start() { play.textContent = "Pause"; timer = setTimeout(tick, 1000 * seconds); }
play.onclick = () => timer === null ? start() : stop();
slider.oninput = () => { stop(); show(Number(slider.value)); };
show(0);
start();
</script>
</body>
</html>
""")


def write_page(path: Path, tokens: list[CanvasToken], colour_by: str, seconds_per_pass: float) -> None:
    """A page that plays the forward passes; without scripts it shows the filled canvas."""
    passes = passes_of(tokens)
    page = PAGE.substitute(
        ink=INK,
        blank=BLANK,
        new=NEW,
        quiet=QUIET,
        spans="".join(_span(token, colour_by, passes) for token in tokens),
        passes=passes,
        progress=f"after {passes} of {passes} forward passes: {_progress(tokens, passes)}",
        legend="".join(f'<span style="color: {colour or QUIET}">{word}</span>' for word, colour in legend(colour_by)),
        # A probability is the same at all times; ages are not.
        colours=json.dumps([age_colour(age) for age in range(passes)] if colour_by == "age" else []),
        seconds=json.dumps(seconds_per_pass),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _span(token: CanvasToken, colour_by: str, passes: int) -> str:
    """A token; `data-until` is how many forward passes it was blank for, 0 for a given one."""
    text = html.escape(label(token.text).replace("↵", "↵\n"))
    until = max(token.step, token.closed) + 1
    if token.closed >= 0:
        return f'<span data-until="{until}" data-closed="" class="closed">{text}</span>'
    if token.step < 0:
        return f'<span data-until="0">{text}</span>'
    title = f"column {token.column}, pass {until}, probability {math.exp(token.logprob):.3g}"
    return (
        f'<span data-until="{until}" title="{title}" style="color: {colour_of(token, colour_by, passes)}">{text}</span>'
    )
