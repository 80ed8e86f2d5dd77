# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Which cases of a grid run by default: the marks `grid` and `full`, and the option `--all`.

A test with several `parametrize` marks is a grid. `@pytest.mark.grid` keeps as many of its cases as it takes for every
value of every parameter to occur once, and for every pair of mechanisms to occur together once. Values that the engine
treats alike share a mechanism. `@pytest.mark.grid(pairs=False)` asks for the values only; `seldom=VALUE` names a value
that takes long. `@pytest.mark.full` is for a test whose claim others make in a cheaper way. `pytest --all`
(`make test-all`) runs everything.
"""

import itertools
import zlib


# Variants that differ in their embeddings alone share what the engine, the caches and saving distinguish.
VARIANT_MECHANISMS = {
    "two_stream_content": "two_stream",
    "two_stream": "two_stream",
    "two_stream_neighbor": "two_stream, left tokens",
    "decoupled_rope": "copies of rows",
    "double_position": "table",
    "double_position_summed": "table",
    "adaptive_norm": "modulation",
}
ADAPTIVE_ORDERS = ("confidence", "entropy", "margin")


def mechanism_of(name: str, value) -> str:
    """The mechanism behind a parameter's value: a value that has no other one to share it with is its own."""
    if name == "variant":
        return VARIANT_MECHANISMS.get(value, value)
    if isinstance(value, dict) and value.keys() & {"decoding_order", "tokens_per_step", "draft_length"}:
        order = "adaptive" if value.get("decoding_order") in ADAPTIVE_ORDERS else "fixed"
        return f"{order}, {sorted(value.keys() - {'decoding_order'})}"
    return str(value)


def _needs(params: dict, pairs: bool) -> set:
    """What one case covers."""
    mechanisms = [(name, mechanism_of(name, value)) for name, value in sorted(params.items())]
    values = {(name, mechanism_of(name, value) if name == "variant" else str(value)) for name, value in params.items()}
    return values | (set(itertools.combinations(mechanisms, 2)) if pairs else set())


def choose_cases(cases: dict[str, dict], pairs: bool = True, seldom=None) -> set[str]:
    """Chooses greedily among cases, `{id: {parameter: value}}`, until all that they cover together is covered.

    Ties are decided by the ids' checksums, so that the choice is the same everywhere and different tests take different
    variants of a mechanism.
    """
    names = sorted(cases, key=lambda name: (seldom in cases[name].values(), zlib.crc32(name.encode())))
    needs = {name: _needs(cases[name], pairs) for name in names}
    missing, chosen = set().union(*needs.values()), set()
    while missing:
        best = max(names, key=lambda name: len(needs[name] & missing))
        chosen.add(best)
        missing -= needs[best]
    return chosen


def deselect_cases(config, items: list) -> None:
    """Takes what only `--all` runs out of the collected items, and reports it as deselected."""
    grids, left_out = {}, {item.nodeid for item in items if item.get_closest_marker("full")}
    for item in items:
        if item.get_closest_marker("grid") and item.nodeid not in left_out:
            grids.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for grid in grids.values():
        cases = {item.nodeid: item.callspec.params for item in grid}
        chosen = choose_cases(cases, **grid[0].get_closest_marker("grid").kwargs)
        left_out |= cases.keys() - chosen
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = [item for item in items if item.nodeid not in left_out]
