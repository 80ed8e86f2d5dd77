# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Any-order autoregressive language models (AO-ARMs) for the Hugging Face ecosystem."""

import contextlib

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from .configuration_aoarm import AOARMConfig
from .conversion import convert_causal_lm
from .data_collator import DataCollatorForAnyOrderLM, DataCollatorWithOrders, with_example_index
from .generation_aoarm import AOARMGenerateOutput
from .generation_config_aoarm import AOARMGenerationConfig
from .infilling import Candidate, Infilling, infill
from .masked_diffusion_collator import DataCollatorForMaskedDiffusion
from .masked_lm_aoarm import AOARMForMaskedLM
from .modeling_aoarm import AOARMForCausalLM, AOARMModel, generative_head
from .orders import OrderCurriculum, OrderMixture, sample_orders
from .peft_support import lora_config, register_default_targets
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
    "OrderCurriculum",
    "OrderMixture",
    "convert_causal_lm",
    "generative_head",
    "infill",
    "lora_config",
    "sample_orders",
    "with_example_index",
]

AutoConfig.register("aoarm", AOARMConfig)
AutoModel.register(AOARMConfig, AOARMModel)
AutoModelForCausalLM.register(AOARMConfig, AOARMForCausalLM)
AutoModelForMaskedLM.register(AOARMConfig, AOARMForMaskedLM)

# A saved model takes the code along that it needs to be loaded without this package.
AOARMConfig.register_for_auto_class()
AOARMModel.register_for_auto_class("AutoModel")
AOARMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
AOARMForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")

# PEFT may be missing.
with contextlib.suppress(ImportError):
    register_default_targets()
