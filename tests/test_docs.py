# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The README and the pages: Python blocks run, commands have the flags they are shown with, links lead somewhere."""

import argparse
import json
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser
from variants import tiny_model
from warm_python import run_python

from modeling_aoarm.data.tokenizers import character_tokenizer


ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "configuration" / "accelerate" / "README.md",
        ROOT / "examples" / "results" / "README.md",
        ROOT / "examples" / "space" / "README.md",
    )
}
# What stands behind the language says why a block cannot run: "bash notest: needs SLURM".
BLOCK = re.compile(r"^```(\w+) ?(.*)\n((?:.*\n)*?)```$", flags=re.MULTILINE)
# Their arguments are not ours to check.
OTHER_PROGRAMS = {"cd", "git", "hf", "lm_eval", "pip", "python3.11"}
# Runs the blocks of each page in turn, in a folder of the page, with one namespace for the page.
RUN = """
import contextlib, io, json, os, sys, traceback
from pathlib import Path

results, folder = {}, os.getcwd()
for page, blocks in json.loads(Path("pages.json").read_text(encoding="utf-8")).items():
    os.chdir(os.path.join(folder, page.replace("/", "-")))
    names, output, error = {"__name__": "__main__"}, io.StringIO(), None
    with contextlib.redirect_stdout(output):
        try:
            for line, code in blocks:
                # Tracebacks have the page's own line numbers.
                exec(compile("\\n" * line + code, page, "exec"), names)
        except BaseException:
            error = traceback.format_exc()
    results[page] = output.getvalue(), error
os.chdir(folder)
Path("results.json").write_text(json.dumps(results), encoding="utf-8")
"""


def blocks(page, language):
    """Line before it, and code, of each block of a language that is to be run."""
    text = PAGES[page]
    for match in BLOCK.finditer(text):
        if match[1] == language and not match[2]:
            yield text[: match.start(3)].count("\n"), match[3]


def commands():
    """Every command of the pages, as its page and its words."""
    for page in PAGES:
        for _, code in blocks(page, "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                for command in line.split(" && "):
                    if words := shlex.split(command, comments=True):
                        yield page, words


WITH_PYTHON = [page for page in PAGES if any(blocks(page, "python"))]
COMMANDS = {shlex.join(words): (page, words) for page, words in commands()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the Python blocks of each page printed and raised, next to untrained models where they have trained ones."""
    folder = tmp_path_factory.mktemp("pages")
    tokenizer = character_tokenizer(PAGES.values())
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "query_stream_init": "neighbor"}
    model = tiny_model("two_stream", **options, **special)
    for page in WITH_PYTHON:
        for name in ("pretrain", "smollm2"):
            place = folder / page.replace("/", "-") / "outputs" / name
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
    (folder / "pages.json").write_text(json.dumps({page: list(blocks(page, "python")) for page in WITH_PYTHON}))
    (folder / "run.py").write_text(RUN, encoding="utf-8")
    process = run_python("run.py", cwd=folder)
    assert process.returncode == 0, process.stderr
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run(page, results):
    """One after the other; what is printed has its blanks filled."""
    output, error = results[page]
    assert error is None, error
    assert "<blank" not in output


def test_the_readme_fills_a_blank(results):
    output, _ = results["README.md"]
    assert output.startswith("The capital of ") and "is Paris, which is a large city." in output


class _Parsed(BaseException):
    """A program has parsed all of its arguments."""


def parse_only(monkeypatch, run, words):
    """Runs a program until it has parsed its arguments; fails where some are wrong or unknown."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(parser, *args, **kwargs):
        parsed, unknown = parse(parser, *args, **kwargs)
        if not unknown:
            raise _Parsed
        return parsed, unknown

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", words)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
        with pytest.raises(_Parsed):
            run()


def check_command(monkeypatch, words):
    """Fails unless the program exists and its parser takes the arguments."""
    while "=" in words[0]:
        words = words[1:]
    program, *arguments = words
    name = Path(program).name
    if name == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif name == "python" and arguments[0] == "-m":
        if arguments[1] == "modeling_aoarm":
            run = lambda: runpy.run_module("modeling_aoarm", run_name="__main__")  # noqa: E731
            parse_only(monkeypatch, run, ["modeling_aoarm", *arguments[2:]])
        else:
            assert arguments[1] in ("pip", "pytest"), words
    elif name == "python":
        monkeypatch.syspath_prepend(ROOT / Path(arguments[0]).parent)
        parse_only(monkeypatch, lambda: runpy.run_path(arguments[0], run_name="__main__"), arguments)
    elif name == "accelerate":
        launched = launch_command_parser().parse_args(arguments[1:])
        assert launched.config_file is None or Path(launched.config_file).is_file()
        check_command(monkeypatch, ["python", launched.training_script, *launched.training_script_args])
    elif name == "torchrun":
        launched = get_args_parser().parse_args(arguments)
        check_command(monkeypatch, ["python", launched.training_script, *launched.training_script_args])
    else:
        assert name in OTHER_PROGRAMS, words


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_these_arguments(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_command(monkeypatch, COMMANDS[command][1])


def test_blocks_that_do_not_run_say_why():
    for page, text in PAGES.items():
        assert text.count("```") == 2 * len(BLOCK.findall(text)), page
        for language, marker, _ in BLOCK.findall(text):
            assert not marker or re.fullmatch(r"notest: \w.*", marker), (page, language, marker)


def headings(text):
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", PAGES[page])):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in headings(path.read_text(encoding="utf-8")), target


def test_every_path_that_is_named_exists():
    folders = "modeling_aoarm|configuration|examples|tests|model_cards|docs"
    paths = {path for text in PAGES.values() for path in re.findall(rf"(?<![\w/])(?:{folders})/[\w./-]*", text)}
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path.rstrip(".-")).exists()] == []


def test_every_name_of_the_package_exists():
    """Modules and their members, by their dotted names."""
    names = {name for text in PAGES.values() for name in re.findall(r"\bmodeling_aoarm(?:\.[a-zA-Z_]\w*)+", text)}
    names = {name for name in names if not name.endswith(".py")}
    assert len(names) > 10
    for name in names:
        assert pkgutil.resolve_name(name), name


def test_pages_are_short_and_linked():
    readme = PAGES["README.md"]
    assert readme.count("\n") <= 250
    assert [line for line in readme.splitlines() if len(line) > 120 and not line.startswith("|")] == []
    for page, text in PAGES.items():
        assert text.count("\n") <= 250, page
        assert page == "README.md" or f"]({page})" in readme, page


def test_figures_say_what_to_see():
    """A sentence stands under each figure."""
    for page, text in PAGES.items():
        for below in re.findall(r"^!\[.*\]\(.*\)\n(.*\n.*)", text, flags=re.MULTILINE):
            assert below.startswith("\n*") and len(below) > 40, (page, below)
