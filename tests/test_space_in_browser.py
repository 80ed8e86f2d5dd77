# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The page in `examples/space` in a headless Chromium, on a desktop and on a phone."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial

import pytest
from test_space import CORPUS, model_for
from warm_python import REPOSITORY, VARIABLES

from modeling_aoarm.data.tokenizers import train_bpe_tokenizer


pytestmark = pytest.mark.full
TEXT = "the <blank:3> sat on the <blank:2>, and the cat slept."
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SECONDS = 30


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of the page with a random model, served from a folder like that of a Space."""
    pytest.importorskip("gradio", reason="the page needs gradio, the extra `space`")
    folder = tmp_path_factory.mktemp("space")
    tokenizer = train_bpe_tokenizer(CORPUS, 320)
    # Many layers, so that a pass takes as long as one of a real model.
    for saved in (model_for(tokenizer, max_position_embeddings=256, num_hidden_layers=24), tokenizer):
        saved.save_pretrained(folder / "model")
    space, log = folder / "space", folder / "log"
    shutil.copytree(REPOSITORY / "examples" / "space", space)
    shutil.copytree(REPOSITORY / "modeling_aoarm", space / "modeling_aoarm")
    changed = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PYTHONUNBUFFERED": "1", "MODEL": str(folder / "model")}
    with log.open("w") as output:
        environment = {**os.environ, **VARIABLES, **changed}
        streams = {"stdout": output, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, **streams)
    try:
        yield wait_for(partial(_read_address, log, process), 120)
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in log.read_text(encoding="utf-8")


def _read_address(log, process):
    text = log.read_text(encoding="utf-8")
    assert process.poll() is None, text
    found = re.search(r"http://127\.0\.0\.1:\d+", text)
    return found and found[0]


def wait_for(read, seconds=SECONDS):
    """What `read` returns, as soon as it is true. Elements that are drawn anew meanwhile are looked for again."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        try:
            if value := read():
                return value
        except StaleElementReferenceException:
            pass
        assert time.monotonic() < end, f"{read} is still {value!r} after {seconds} seconds"
        time.sleep(0.05)


class Browser:
    """One visitor."""

    def __init__(self, size, address):
        from selenium import webdriver

        width, height = SIZES[size]
        self.width = width
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        # Containers often have neither a sandbox for root nor much shared memory.
        for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"window-size={width},{height}"):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        if size == "phone":
            metrics = {"width": width, "height": height, "pixelRatio": 2, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.driver.get(address)
        wait_for(lambda: self.find("#words button"))

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text_of(self, selector):
        """What a part shows, without the figures below tokens."""
        script = """const copy = document.querySelector(arguments[0]).cloneNode(true);
        copy.querySelectorAll('rt').forEach((each) => each.remove());
        return copy.textContent.trim();"""
        return self.driver.execute_script(script, selector)

    def write(self, text):
        box = self.find("#text textarea")[0]
        self.driver.execute_script("arguments[0].select()", box)
        box.send_keys(text)
        wait_for(lambda: box.get_attribute("value") == text)

    def read(self):
        return self.find("#text textarea")[0].get_attribute("value")

    def fill(self):
        """Fills the text and waits for the end. Returns the candidate's text."""
        self.press("#start")
        self.wait_for_message("Done in")
        return self.text_of("#canvas .text")

    def press(self, selector, index=0):
        def click():
            self.find(selector)[index].click()
            return True

        wait_for(lambda: len(self.find(selector)) > index)
        wait_for(click)

    def wait_for_message(self, words):
        return wait_for(lambda: words in self.text_of("#message") and self.text_of("#message"))

    def close(self):
        """Nothing may have gone wrong, come from elsewhere, or be wider than the screen."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        loaded = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        origin = self.driver.execute_script("return location.origin")
        # A phone's viewport grows with what is too wide, so the width that was asked for counts.
        script = """const edges = [...document.querySelectorAll('main *')].map((each) => each.getBoundingClientRect());
        return Math.max(document.documentElement.scrollWidth, ...edges.map((each) => each.right));"""
        right = self.driver.execute_script(script)
        log = [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        self.driver.quit()
        assert loaded and [name for name in loaded if not name.startswith((origin, "data:", "blob:"))] == []
        assert 100 < right <= self.width + 1
        assert log == []


@pytest.fixture
def open_browser(address):
    """Opens browsers, and closes them after the test."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("there is no Chromium with its driver: Debian's packages chromium and chromium-driver")
    pytest.importorskip("selenium", reason="selenium drives the browser")
    opened = []

    def open_one(size="desktop"):
        opened.append(Browser(size, address))
        return opened[-1]

    yield open_one
    for browser in opened:
        browser.close()


@pytest.mark.parametrize("size", SIZES)
def test_a_visitor_fills_blanks_and_looks_at_alternatives(size, open_browser):
    browser = open_browser(size)
    browser.write(TEXT)
    text = browser.fill()
    assert re.fullmatch(r"the (.*) sat on the (.*), and the cat slept\.", text, flags=re.DOTALL)
    assert "nats" in browser.text_of("#canvas .note")
    tokens = browser.find("#canvas button.token")
    assert 1 <= len(tokens) <= 5
    # Colours are not all that says how sure the model was.
    (name,) = re.findall(r".+: (?:under )?[\d.]+%, pass \d", tokens[0].get_attribute("aria-label"))
    browser.press("#canvas button.token")
    wait_for(lambda: "In place of" in browser.text_of("#alternatives"))
    assert len(browser.find("#alternatives tbody tr")) >= 8 and "✓" in browser.text_of("#alternatives")
    assert browser.find("#canvas button.token")[0].get_attribute("aria-pressed") == "true"
    wait_for(
        lambda: browser.driver.execute_script(
            "return document.querySelector('#alternatives').getBoundingClientRect().top < innerHeight"
        )
    )
    browser.find("#colour input")[1].click()
    wait_for(lambda: "pass of the model" in browser.text_of("#legend") and browser.find("#canvas .token.pass0"))
    assert browser.text_of("#canvas .text") == text and browser.read() == TEXT


@pytest.mark.parametrize("size", SIZES)
def test_words_are_tapped_to_blank_them(size, open_browser):
    browser = open_browser(size)
    browser.write("the cat sat on the mat.")
    wait_for(lambda: browser.text_of("#words") == "the cat sat on the mat.")
    browser.press("#words button", 1)
    wait_for(lambda: re.fullmatch(r"the <blank:\d> sat on the mat\.", browser.read()))
    browser.press("#words button", 2)
    wait_for(lambda: re.fullmatch(r"the <blank:\d> on the mat\.", browser.read()))
    text = browser.fill()
    assert text.startswith("the ") and text.endswith(" on the mat.") and "cat sat" not in text
    wait_for(lambda: browser.find("#words button.blanked"))
    browser.press("#words button.blanked")
    wait_for(lambda: browser.read() == "the cat sat on the mat.")


def test_the_canvas_fills_token_by_token(open_browser):
    browser = open_browser()
    browser.write("the <blank:40>.")
    browser.driver.execute_script("""window.counts = new Set();
    new MutationObserver(() => counts.add(document.querySelectorAll('#canvas .token.open').length))
        .observe(document.querySelector('#canvas'), {childList: true, subtree: true, characterData: true});""")
    browser.fill()
    counts = set(browser.driver.execute_script("return [...counts]"))
    assert len(counts - {0, 40}) >= 3, counts


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a <blank:0> b", "must be written <blank>, <blank:n> or <blank:m-n>"),
        ("a <blank:500> b", "at most max_position"),
    ],
)
def test_bad_input_gets_a_message_and_the_page_goes_on(text, words, size, open_browser):
    browser = open_browser(size)
    browser.write(text)
    browser.press("#start")
    browser.wait_for_message(words)
    # As text, not as a tag.
    wait_for(lambda: text.split()[1] in "".join(each.text for each in browser.find(".toast-body")))
    assert browser.text_of("#canvas") == ""
    browser.write(TEXT)
    assert browser.fill().endswith(", and the cat slept.")


def test_two_visitors_do_not_mix(open_browser):
    texts = ["the <blank:30> one.", "the <blank:25> two."]
    visitors = [open_browser(), open_browser("phone")]
    for visitor, text in zip(visitors, texts, strict=True):
        visitor.write(text)
    for visitor in visitors:
        visitor.press("#start")
    for visitor, end in zip(visitors, (" one.", " two."), strict=True):
        visitor.wait_for_message("Done in")
        assert visitor.text_of("#canvas .text").endswith(end)
    # What each one sees afterwards is still about the own text.
    for visitor in visitors:
        shown = visitor.text_of("#canvas .text")
        visitor.find("#colour input")[1].click()
        wait_for(lambda visitor=visitor: visitor.find("#canvas .token.pass0"))
        assert visitor.text_of("#canvas .text") == shown
        token = visitor.find("#canvas button.token")[-1]
        name = token.get_attribute("aria-label").rpartition(":")[0]
        visitor.press("#canvas button.token", len(visitor.find("#canvas button.token")) - 1)
        wait_for(lambda visitor=visitor: "In place of" in visitor.text_of("#alternatives"))
        assert name == "white space" or name in visitor.text_of("#alternatives h3")


def test_stop_ends_a_filling(open_browser):
    browser = open_browser()
    browser.write("the <blank:240>.")
    browser.press("#start")
    browser.wait_for_message("Pass ")
    browser.press("#stop")
    browser.wait_for_message("Stopped.")
    left = len(browser.find("#canvas .token.open"))
    assert left > 0
    time.sleep(0.5)
    assert len(browser.find("#canvas .token.open")) == left and browser.text_of("#message") == "Stopped."
    browser.write(TEXT)
    assert browser.fill().endswith(", and the cat slept.")
