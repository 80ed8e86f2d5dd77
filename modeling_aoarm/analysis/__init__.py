# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Where attention goes, and what it is for."""

from .attention import *  # noqa: F403
from .interventions import *  # noqa: F403
from .plots import *  # noqa: F403
