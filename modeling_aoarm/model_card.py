# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Model cards: the `README.md` of a saved model, from its config and the reports of its training and evaluation.

`model_cards/` has the template (Jinja), and the sentences of each `attention_variant`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from .configuration_aoarm import head_auto_class
from .io import replacing


# Identifiers of the Hub, "apache-2.0" or "other".
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass
class CardArguments:
    """The entries of a model card that a run does not know, for `HfArgumentParser`."""

    license: str | None = field(
        default=None,
        metadata={"help": "Licence of the weights for the model card, as on the Hub: apache-2.0, mit, ..."},
    )
    language: str | None = field(default=None, metadata={"help": "Language for the model card: en, de, ..."})

    def __post_init__(self):
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise ValueError(f"license must be an identifier of the Hub such as apache-2.0, got {self.license!r}.")


def make_model_card(
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
    """Makes the card of a model, with the metadata that the Hub reads.

    Args:
        config: the model's [`AOARMConfig`].
        report: facts about the model, all optional. `parameters`: their number. `data`, `training`: tables of names and
            values (`training["hyperparameters"]` is another table). `evaluation`: by the name of a measure, the figures
            of `OrderNLL.to_dict`. `unigram`: the result of `unigram_bits`. `samples`: dictionaries of `canvas`,
            `filled` and `original`. `command`, `versions`. Other entries are ignored, so a run's `results.json` works.
        model_id: name on the Hub or path of the folder, which the usage snippets load.
        license: licence of the weights, an identifier of the Hub.
        language: language of the text, as on the Hub.
        base_model: the model from which this one was converted or fine-tuned.
        adapter: whether the folder holds a PEFT adapter of `base_model` and no model.
        curve: file name of a picture of the loss curve, next to the card.

    Raises:
        ValueError: `adapter` has no `base_model`, or `license` is not an identifier.
    """
    CardArguments(license, language)
    if adapter and base_model is None:
        raise ValueError("base_model must name the adapter's model, got None.")
    report = {"data": {}, "training": {}, "samples": [], "evaluation": {}, **report}
    auto_class = head_auto_class(config.attention_variant)
    metadata = ModelCardData(
        language=language,
        license=license,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="fill-mask" if auto_class == "AutoModelForMaskedLM" else "text-generation",
        tags=["any-order", "infilling", config.attention_variant, "custom_code"],
        # The Hub does not know paths.
        base_model=base_model if base_model is not None and not Path(base_model).exists() else None,
        model_name=model_id,
        eval_results=_make_eval_results(report["evaluation"], report["data"].get("source")) or None,
    )
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _format_cell
    text = environment.from_string(_read("card.md.jinja")).render(
        config=config,
        variant=yaml.safe_load(_read("variants.yaml"))[config.attention_variant],
        auto_class=auto_class,
        report=report,
        figures=report["evaluation"],
        model_id=model_id,
        base_model=base_model,
        adapter=adapter,
        curve=curve,
        license=license,
    )
    # Omitted parts leave blank lines.
    text = re.sub(r"\n{3,}", "\n\n", text)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text.strip()}\n")


def rename_model_card(card: ModelCard, model_id: str) -> ModelCard:
    """Copies a card with another name of the model, for example that of its repository on the Hub.

    Raises:
        ValueError: the card's metadata does not have its name.
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


def _read(name: str) -> str:
    return resources.files("modeling_aoarm.model_cards").joinpath(name).read_text(encoding="utf-8")


def _make_eval_results(figures: Mapping[str, Mapping[str, Any]], source: str | None) -> list[EvalResult]:
    """Makes one entry for each figure: bits per character if they are known, else nats per token."""
    results = []
    for name, figure in figures.items():
        metric = "nll" if figure["bits_per_character"] is None else "bits_per_character"
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_name=source or "held-out text",
                dataset_type=re.sub(r"[^a-z0-9./_-]+", "-", (source or "held-out").lower()),
                metric_type=metric,
                metric_name=f"{'nats per token' if metric == 'nll' else 'bits per character'}, {name}",
                metric_value=figure[metric],
            )
        )
    return results


def _format_cell(value) -> str:
    """Escapes a value for a cell of a Markdown table."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value).replace("\n", "⏎").replace("|", "\\|")
    return re.sub(r"([<>*_`\[\]])", r"\\\1", text)


__all__ = ["CardArguments", "make_model_card", "rename_model_card", "write_model_card"]
