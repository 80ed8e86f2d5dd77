# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The repository's scripts, which are not installed: as modules, and run as a user runs them, and what runs leave."""

import importlib.util
import json
import os
import subprocess
import sys

from warm_python import REPOSITORY, VARIABLES, run_python


def load_script(path):
    """A script, by its path in the repository, as a module."""
    path = REPOSITORY / path
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    # Trainer pickles its arguments by the name of their module.
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


def run_script(path, *arguments, launcher=None, cwd=REPOSITORY, from_scratch=False, **variables):
    """Runs a script, by its path in the repository, on one thread; nobody answers its questions.

    Args:
        launcher: a command that starts the script, such as accelerate's.
        from_scratch: see `run_python`.
    """
    if launcher is None:
        return run_python(REPOSITORY / path, *arguments, cwd=cwd, from_scratch=from_scratch, **variables)
    return subprocess.run(
        [*launcher, str(REPOSITORY / path), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **VARIABLES, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def read_json(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def losses(folder):
    """Training losses and evaluation losses of a run."""
    curve = read_json(folder, "loss_curve.json")
    return [entry["loss"] for entry in curve["train"]], [entry["eval_loss"] for entry in curve["eval"]]
