# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`python -m modeling_aoarm COMMAND ...`; see `python -m modeling_aoarm --help`."""

import sys

from .cli import main


if __name__ == "__main__":
    sys.exit(main())
