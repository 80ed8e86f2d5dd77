# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The study of the trade-off between semantic and structural attention; `examples/run_tradeoff_study.py` runs it."""
