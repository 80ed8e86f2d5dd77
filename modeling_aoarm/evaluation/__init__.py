# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What a model's likelihoods, fillings and samples are worth."""
