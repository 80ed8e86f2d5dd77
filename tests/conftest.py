# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The option `--all`, fixtures that several files use, and the example folders that tests import from."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from grid import deselect_cases
from hypothesis import HealthCheck, settings
from transformers.utils import logging


EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# For `timing` and `baselines`.
sys.path.append(str(EXAMPLES / "benchmarks"))
# By its path: `examples` on the path would hide the library `evaluate` behind `examples/evaluate.py`.
study = importlib.util.spec_from_file_location("tradeoff_study", EXAMPLES / "tradeoff_study" / "__init__.py")
sys.modules["tradeoff_study"] = importlib.util.module_from_spec(study)
study.loader.exec_module(sys.modules["tradeoff_study"])


# The modules that take longest: begun first, so that several processes (`--dist worksteal`) end together.
SLOW_MODULES = [
    *("test_reliability", "test_speculation", "test_distributed", "test_accelerator_benchmark", "test_laws"),
    *("test_hub", "test_lm_eval", "test_training", "test_peft", "test_pretrain", "test_packaging", "test_canvas_cache"),
    *("test_benchmarks", "test_study", "test_library_calls", "test_adapt_decoder", "test_masked_diffusion"),
]


@pytest.fixture
def restored_logging():
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run every case of every grid, and more drawn cases")


def pytest_configure(config):
    everything = config.getoption("--all")
    if everything:
        os.environ["FRESH_PYTHON"] = "1"
    drawn = 25 if everything else 5
    suppressed = [HealthCheck.function_scoped_fixture]
    settings.register_profile("drawn", max_examples=drawn, deadline=None, suppress_health_check=suppressed)
    settings.load_profile("drawn")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        deselect_cases(config, items)
    rank = {module: index for index, module in enumerate(SLOW_MODULES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
