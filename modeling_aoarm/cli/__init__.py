# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The commands of `python -m modeling_aoarm`."""
