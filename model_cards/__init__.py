# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The template of model cards and the sentences of each variant. Installed as `modeling_aoarm.model_cards`."""
