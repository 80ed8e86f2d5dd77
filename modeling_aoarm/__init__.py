# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Any-order autoregressive language models (AO-ARMs) for the Hugging Face ecosystem."""

import contextlib

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_aoarm import AOARMConfig
from .conversion import convert_causal_lm
from .data.collators import DataCollatorForAnyOrderLM, DataCollatorWithOrders, with_example_index
from .data.masked_diffusion import DataCollatorForMaskedDiffusion
from .data.orders import OrderCurriculum, OrderMixture, sample_orders
from .decoding_aoarm import AOARMGenerationConfig
from .generation_aoarm import AOARMGenerateOutput
from .infilling_aoarm import Candidate, Infilling, infill
from .modeling_aoarm import AOARMForCausalLM, AOARMForMaskedLM, AOARMModel, model_class_for
from .peft import lora_config, register_default_targets
from .pipeline_aoarm import InfillingPipeline
from .scoring_aoarm import AOARMScoreOutput


__all__ = [
    "AOARMConfig",
    "AOARMForCausalLM",
    "AOARMForMaskedLM",
    "AOARMGenerateOutput",
    "AOARMGenerationConfig",
    "AOARMModel",
    "AOARMScoreOutput",
    "Candidate",
    "DataCollatorForAnyOrderLM",
    "DataCollatorForMaskedDiffusion",
    "DataCollatorWithOrders",
    "Infilling",
    "InfillingPipeline",
    "OrderCurriculum",
    "OrderMixture",
    "convert_causal_lm",
    "infill",
    "lora_config",
    "model_class_for",
    "sample_orders",
    "with_example_index",
]

AutoConfig.register("aoarm", AOARMConfig)
AutoModel.register(AOARMConfig, AOARMModel)
AutoModelForCausalLM.register(AOARMConfig, AOARMForCausalLM)
AutoModelForMaskedLM.register(AOARMConfig, AOARMForMaskedLM)

PIPELINE_REGISTRY.register_pipeline(
    "infilling", InfillingPipeline, pt_model=(AutoModelForCausalLM, AutoModelForMaskedLM), type="text"
)
AOARMConfig.registered_pipelines = ("infilling",)

# A saved model takes the code along that it needs to be loaded without this package.
AOARMConfig.register_for_auto_class()
AOARMModel.register_for_auto_class("AutoModel")
AOARMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
AOARMForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")

# PEFT may be missing.
with contextlib.suppress(ImportError):
    register_default_targets()
