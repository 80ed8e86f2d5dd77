# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Templates (Jinja) of model cards: one for each `attention_variant`, which states only its difference from `base`.

`modeling_aoarm.model_card` fills them in. They are installed as `modeling_aoarm.model_cards`.
"""
