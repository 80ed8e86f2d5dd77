# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Metrics for the library `evaluate`, one module each; nothing is downloaded.

Each is made with what it needs besides predictions, so that `evaluate.combine` can call several with the same ones:

    from modeling_aoarm.evaluation.metrics.coherence import Coherence
    from modeling_aoarm.evaluation.metrics.diversity import Diversity

    evaluate.combine([Coherence(vocabulary=words), Diversity()]).compute(predictions=texts)

`evaluate.load("modeling_aoarm/metrics/coherence.py", vocabulary=words)` is the same with the path of the module's file.
This package itself imports none of them: they need `evaluate`.
"""
