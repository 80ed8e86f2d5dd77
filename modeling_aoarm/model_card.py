# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Model cards: the `README.md` of a saved model, made of its config and of what its training and evaluation reported.

The templates (Jinja) are in `model_cards/`, one for each `attention_variant`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FunctionLoader, StrictUndefined

from .configuration_aoarm import head_auto_class
from .io import replacing


TEMPLATES = "modeling_aoarm.model_cards"

# The form of the Hub's identifiers, "apache-2.0" or "other".
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass
class CardArguments:
    """What a model card states and no run can know, for `HfArgumentParser`."""

    license: str | None = field(
        default=None,
        metadata={"help": "Licence of the weights for the model card, as on the Hub: apache-2.0, mit, ..."},
    )
    language: str | None = field(default=None, metadata={"help": "Language for the model card: en, de, ..."})

    def __post_init__(self):
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise ValueError(f"license must be an identifier of the Hub such as apache-2.0, got {self.license!r}.")


def model_card(
    config,
    report: Mapping[str, Any],
    *,
    model_id: str,
    license: str | None = None,
    language: str | None = None,
    base_model: str | None = None,
    adapter: bool = False,
    curve: str | None = None,
) -> ModelCard:
    """The card of a model, with the metadata that the Hub reads.

    Args:
        config: the model's [`AOARMConfig`]; its `attention_variant` chooses the template.
        report: what is known about the model, all of it optional. `parameters`: their number. `data`, `training`:
            tables of names and values (`training["hyperparameters"]` is a further table). `evaluation`: a dictionary
            from what was measured to the figures of `OrderNLL.to_dict`. `unigram`: what `unigram_bits` returns.
            `samples`: dictionaries of `canvas`, `filled` and `original`. `command`, `versions`. Anything else is left
            out, so a run's `results.json` will do.
        model_id: name of the repository on the Hub or path of the folder, which the usage snippets load.
        license: of the weights; an identifier of the Hub.
        language: of the text, as on the Hub.
        base_model: the model from which this one was converted or fine-tuned.
        adapter: whether the folder holds a PEFT adapter of `base_model` and no model.
        curve: file name of a picture of the loss curve, next to the card.

    Raises:
        ValueError: `adapter` without a `base_model`; a `license` that is no identifier; a variant without a template.
    """
    CardArguments(license, language)
    if adapter and base_model is None:
        raise ValueError("base_model must name the adapter's model, got None.")
    source = report.get("data", {}).get("source")
    auto_class = head_auto_class(config.attention_variant)
    metadata = ModelCardData(
        language=language,
        license=license,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="fill-mask" if auto_class == "AutoModelForMaskedLM" else "text-generation",
        tags=["any-order", "infilling", config.attention_variant, "custom_code"],
        # A path on somebody's disk is no name on the Hub.
        base_model=base_model if base_model is not None and not Path(base_model).exists() else None,
        model_name=model_id,
        eval_results=_eval_results(report.get("evaluation", {}), source) or None,
    )
    text = _template(f"{config.attention_variant}.md.jinja").render(
        config=config,
        auto_class=auto_class,
        report={"data": {}, "training": {}, "samples": [], **report},
        figures=report.get("evaluation", {}),
        model_id=model_id,
        base_model=base_model,
        adapter=adapter,
        curve=curve,
        license=license,
    )
    # Parts that are left out leave blank lines.
    text = re.sub(r"\n{3,}", "\n\n", text)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text.strip()}\n")


def renamed(card: ModelCard, model_id: str) -> ModelCard:
    """The card under another name: a folder's card, once the folder is a repository on the Hub.

    Raises:
        ValueError: the card's metadata does not tell its name.
    """
    if not card.data.model_name:
        raise ValueError(f"The metadata of the card must have a model-index with the model's name, got {card.data}.")
    content = card.content
    for quote in ("# {}\n", '"{}"', "name: {}\n"):
        content = content.replace(quote.format(card.data.model_name), quote.format(model_id))
    return ModelCard(content)


def write_model_card(folder: str | os.PathLike, card: ModelCard) -> None:
    """Writes `README.md` into a folder, the whole file at once."""
    with replacing(Path(folder) / "README.md") as temporary:
        temporary.write_text(str(card), encoding="utf-8")


def _eval_results(figures: Mapping[str, Mapping[str, Any]], source: str | None) -> list[EvalResult]:
    """One entry for each figure: bits per character where they are known, else nats per token."""
    results = []
    for name, figure in figures.items():
        in_characters = figure["bits_per_character"] is not None
        metric, value = (
            ("bits_per_character", figure["bits_per_character"]) if in_characters else ("nll", figure["nll"])
        )
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_name=source or "held-out text",
                dataset_type=re.sub(r"[^a-z0-9./_-]+", "-", (source or "held-out").lower()),
                metric_type=metric,
                metric_name=f"{metric.replace('_', ' ') if in_characters else 'nats per token'}, {name}",
                metric_value=figure[metric],
            )
        )
    return results


def _template(name: str):
    environment = Environment(
        loader=FunctionLoader(_source),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["cell"] = _cell
    return environment.get_template(name)


def _source(name: str) -> str:
    path = resources.files(TEMPLATES) / name
    if not path.is_file():
        raise ValueError(f"attention_variant must have a template of a model card, got {name}.")
    return path.read_text(encoding="utf-8")


def _cell(value) -> str:
    """Text for a cell of a Markdown table, shown as it is."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value).replace("\n", "⏎").replace("|", "\\|")
    return re.sub(r"([<>*_`\[\]])", r"\\\1", text)


__all__ = ["CardArguments", "model_card", "renamed", "write_model_card"]
