# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Fixtures that several files use."""

import pytest
from transformers.utils import logging


@pytest.fixture
def restored_logging():
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
