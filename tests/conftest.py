# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Fixtures that several files use, and the example folders that tests import from."""

import importlib.util
import sys
from pathlib import Path

import pytest
from transformers.utils import logging


EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# For `timing` and `baselines`.
sys.path.append(str(EXAMPLES / "benchmarks"))
# By its path: `examples` on the path would hide the library `evaluate` behind `examples/evaluate.py`.
study = importlib.util.spec_from_file_location("tradeoff_study", EXAMPLES / "tradeoff_study" / "__init__.py")
sys.modules["tradeoff_study"] = importlib.util.module_from_spec(study)
study.loader.exec_module(sys.modules["tradeoff_study"])


@pytest.fixture
def restored_logging():
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
