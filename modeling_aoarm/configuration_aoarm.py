# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of any-order autoregressive models (AO-ARMs)."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters


# Saved configs have these entries, so that each Auto class finds its code. A variant has one head.
AUTO_MAP = {"AutoConfig": "configuration_aoarm.AOARMConfig", "AutoModel": "modeling_aoarm.AOARMModel"}
HEADS = {
    "AutoModelForCausalLM": "modeling_aoarm.AOARMForCausalLM",
    "AutoModelForMaskedLM": "modeling_aoarm.AOARMForMaskedLM",
}

# The class of each task of `pipeline` that comes with a saved model.
PIPELINES = {"infilling": "pipeline_aoarm.InfillingPipeline"}

# Variants with tables of positions, whose length is limited, instead of rotations.
TABLE_VARIANTS = ("double_position", "adaptive_norm")

# Other types compute their frequencies from the largest position seen, which depends on the generation order.
STATIC_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def head_auto_class(attention_variant: str | None) -> str:
    """Returns the name of the Auto class for a variant's head. Configs without a variant have that of causal models."""
    return "AutoModelForMaskedLM" if attention_variant == "bidirectional" else "AutoModelForCausalLM"


@strict
class AOARMConfig(PreTrainedConfig):
    r"""
    Configuration of [`AOARMModel`], [`AOARMForCausalLM`] and [`AOARMForMaskedLM`]: Llama's decoder, and how the target
    position reaches the predictor. Fields that are not listed here are those of [`LlamaConfig`].

    Args:
        attention_variant (`str`, defaults to `"two_stream"`):
            - `"two_stream"`: a content and a query stream read the same keys and values; the query stream's queries
              are rotated by the target position - 1 and predict (XLNet, arXiv:1906.08237; A3, arXiv:2601.13228).
            - `"decoupled_rope"`: one stream, queries rotated by the target position - 1, keys by their own position
              (arXiv:2602.16092).
            - `"double_position"`: one stream without rotations; embeddings of content and target position are added
              to the token embedding (σ-GPT, arXiv:2404.09562).
            - `"adaptive_norm"`: one stream without rotations; an embedding of the content position is added, and one of
              the target position makes shifts, scales and gates of all layers (AO-GPT, arXiv:2506.19935).
            - `"causal"`: the left-to-right Llama without targets, the autoregressive baseline.
            - `"bidirectional"`: rows in sentence order that all see each other, and the mask token in blanks: masked
              diffusion (MDLM, arXiv:2406.07524; ARDM, arXiv:2110.02037), the baseline without a cache. Its head is
              [`AOARMForMaskedLM`].
        query_stream_init (`"learned"`, `"content"` or `"neighbor"`, defaults to `"learned"`):
            How the query stream of `two_stream` starts: from one learned vector (XLNet); from the row's own token; or
            from the token left of the target if a row up to the own one holds it, else from a learned vector. With the
            last two the identity order equals Llama, and with the last a converted decoder fills blanks without
            training. The other variants ignore it.
        double_position_mode (`"concatenated"` or `"summed"`, defaults to `"concatenated"`):
            One table of half the width for both positions, side by side (the released σ-GPT), or the sum of two tables
            of the full width. The other variants ignore it.
        target_embedding_size (`int`, defaults to 128):
            Width of the target's embedding in `adaptive_norm`, as in AO-GPT. It adds 6 × this × `hidden_size` weights
            to each layer, so narrow models need a smaller value. The other variants ignore it.
        qk_norm (`bool`, defaults to `False`):
            RMS normalisation of queries and keys over the head dimension, as in Qwen3.
        attention_bias (`bool`, defaults to `False`):
            Biases of the query, key and value projections.
        attention_output_bias (`bool`, defaults to `False`):
            Bias of the attention's output projection.
        max_position_embeddings (`int`, defaults to 2048):
            Content positions lie in `[0, max_position_embeddings)`, target positions in `[0, max_position_embeddings]`.
            The tables of `double_position` and `adaptive_norm` have an entry for each position. In the other variants
            left-to-right text may be longer.
        rope_parameters (`dict`, *optional*):
            As in Llama; `rope_type` is one of `default`, `linear`, `llama3` and `yarn`.
        mask_token_id (`int`, *optional*):
            The id that stands in blanks. `bidirectional` needs it, reads it and never predicts it. The other variants
            do not read it.

    Raises:
        huggingface_hub.errors.StrictDataclassError: for an unknown name or a value of the wrong type or range; the
            message names the field, the rule and the value.
    """

    model_type = "aoarm"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    attention_variant: Literal[
        "two_stream", "decoupled_rope", "double_position", "adaptive_norm", "causal", "bidirectional"
    ] = "two_stream"
    query_stream_init: Literal["learned", "content", "neighbor"] = "learned"
    double_position_mode: Literal["concatenated", "summed"] = "concatenated"
    target_embedding_size: int = 128
    qk_norm: bool = False
    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float | int = 0.02
    rms_norm_eps: float | int = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict | None = None
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float | int = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    mask_token_id: int | None = None

    # Tasks whose classes are in the library's registry, which the package sets. Configs do not name them while they are
    # in use, so `pipeline` takes the registered class and asks for no trust. Saved configs name all tasks.
    registered_pipelines = ()

    def __post_init__(self, **kwargs):
        if self.head_dim is None:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)
        if getattr(self, "auto_map", None) is None:
            head = head_auto_class(self.attention_variant)
            self.auto_map = AUTO_MAP | {head: HEADS[head]}
        tasks = self._all_pipelines(getattr(self, "custom_pipelines", None) or {})
        self.custom_pipelines = {task: tasks[task] for task in tasks if task not in self.registered_pipelines}

    def _all_pipelines(self, given: dict[str, dict]) -> dict[str, dict]:
        """Adds this model's tasks to given ones, as a saved config has them."""
        own = {
            task: {"impl": impl, "pt": [head_auto_class(self.attention_variant)]} for task, impl in PIPELINES.items()
        }
        return given | {task: info | {"type": "text"} for task, info in own.items()}

    def to_dict(self) -> dict[str, Any]:
        """Adds `custom_pipelines`, through which `pipeline` finds the code of a saved model's tasks."""
        output = super().to_dict()
        tasks = self._all_pipelines(output["custom_pipelines"])
        for info in tasks.values():
            # `pipeline` puts classes in the place of their names.
            classes = (info["pt"],) if isinstance(info.get("pt", ()), str) else info.get("pt", ())
            info["pt"] = [each if isinstance(each, str) else each.__name__ for each in classes]
        return output | {"custom_pipelines": tasks}

    @property
    def starts_from_neighbors(self) -> bool:
        """Whether query streams start from the tokens left of their targets."""
        return self.attention_variant == "two_stream" and self.query_stream_init == "neighbor"

    def validate_sizes(self):
        """Checks that sizes are positive, and that query heads divide evenly among key/value heads."""
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "target_embedding_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                "`num_attention_heads` must be a multiple of `num_key_value_heads`, got "
                f"{self.num_attention_heads} and {self.num_key_value_heads}."
            )
        if self.head_dim % 2 != 0:
            raise ValueError(f"Rotations need an even `head_dim`, got {self.head_dim}.")

    def validate_halves(self):
        """Checks that two tables of half the width fill the width."""
        concatenates = self.attention_variant == "double_position" and self.double_position_mode == "concatenated"
        if concatenates and self.hidden_size % 2 != 0:
            raise ValueError(
                f"`hidden_size` must be even for double_position_mode='concatenated', got {self.hidden_size}."
            )

    def validate_rope_is_static(self):
        """Checks that rotations depend only on a row's position."""
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        if rope_type not in STATIC_ROPE_TYPES:
            raise ValueError(
                f"`rope_parameters['rope_type']` must be one of {', '.join(STATIC_ROPE_TYPES)}, got {rope_type!r}: "
                "other types change with the largest position seen, which depends on the generation order."
            )

    def validate_special_tokens(self):
        """Checks that special tokens are in the vocabulary."""
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id"):
            value = getattr(self, name)
            for token_id in value if isinstance(value, list) else [value]:
                if token_id is not None and not 0 <= token_id < self.vocab_size:
                    raise ValueError(f"`{name}` must lie in [0, vocab_size={self.vocab_size}), got {token_id}.")

    def validate_mask_token(self):
        """Checks that `bidirectional` has a mask token."""
        if self.attention_variant == "bidirectional" and self.mask_token_id is None:
            raise ValueError(
                "`mask_token_id` must be the id that stands in blanks for attention_variant='bidirectional', got None."
            )


__all__ = ["AOARMConfig"]
