# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""A slow and naive implementation of the models in float64, with dense masks, one head and one stream at a time.

It follows the design's definitions and the papers, and shares only the names of parameters with the package.
"""

import math

import torch


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def _rope(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotates pairs (i, i + d/2) of `[rows, d]` by position * theta^(-2i/d), as complex numbers."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = positions.double()[:, None] * frequencies
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.complex(angles.cos(), angles.sin())
    return torch.cat([turned.real, turned.imag], dim=-1)


# All options of the backbone.
ALL_OPTIONS = {
    "qk_norm": True,
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "head_dim": 6,
    "tie_word_embeddings": True,
}


class Reference:
    """Computes logits `[batch, rows, vocab]` of a model from a float64 copy of its parameters, with gradients."""

    def __init__(self, model):
        self.config = model.config
        self.parameters = {
            name: parameter.detach().double().requires_grad_() for name, parameter in model.named_parameters()
        }
        self.tied = model.config.tie_word_embeddings

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        output = x @ self.parameters[f"{name}.weight"].T
        bias = self.parameters.get(f"{name}.bias")
        return output if bias is None else output + bias

    def _attend(self, layer: str, asking, read, ask_positions, read_positions, visible) -> torch.Tensor:
        """Attention of one stream to another stream's keys and values, head by head, `[rows, hidden]`."""
        config, d = self.config, self.config.head_dim
        queries = self._linear(f"{layer}.self_attn.q_proj", asking)
        keys = self._linear(f"{layer}.self_attn.k_proj", read)
        values = self._linear(f"{layer}.self_attn.v_proj", read)
        heads = []
        for head in range(config.num_attention_heads):
            shared = head // (config.num_attention_heads // config.num_key_value_heads)
            query = queries[:, head * d : (head + 1) * d]
            key = keys[:, shared * d : (shared + 1) * d]
            value = values[:, shared * d : (shared + 1) * d]
            if config.qk_norm:
                query = _norm(query, self.parameters[f"{layer}.self_attn.q_norm.weight"], config.rms_norm_eps)
                key = _norm(key, self.parameters[f"{layer}.self_attn.k_norm.weight"], config.rms_norm_eps)
            if ask_positions is not None:
                theta = config.rope_parameters["rope_theta"]
                query, key = _rope(query, ask_positions, theta), _rope(key, read_positions, theta)
            scores = query @ key.T / math.sqrt(d)
            heads.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value)
        return self._linear(f"{layer}.self_attn.o_proj", torch.cat(heads, dim=-1))

    def _block(self, index: int, asking, read, ask_positions, read_positions, visible) -> torch.Tensor:
        layer, eps = f"model.layers.{index}", self.config.rms_norm_eps
        first = self.parameters[f"{layer}.input_layernorm.weight"]
        second = self.parameters[f"{layer}.post_attention_layernorm.weight"]
        x = asking + self._attend(
            layer, _norm(asking, first, eps), _norm(read, first, eps), ask_positions, read_positions, visible
        )
        normed = _norm(x, second, eps)
        gate = torch.nn.functional.silu(self._linear(f"{layer}.mlp.gate_proj", normed))
        return x + self._linear(f"{layer}.mlp.down_proj", gate * self._linear(f"{layer}.mlp.up_proj", normed))

    def _modulated_block(self, index: int, x: torch.Tensor, condition: torch.Tensor, visible) -> torch.Tensor:
        """AO-GPT's block: shift and scale after each norm, and a gate before each addition."""
        layer, eps = f"model.layers.{index}", self.config.rms_norm_eps
        parts = self._linear(f"{layer}.modulation", condition).view(len(x), 6, -1)
        normed = _norm(x, self.parameters[f"{layer}.input_layernorm.weight"], eps)
        normed = normed + normed * parts[:, 1] + parts[:, 0]
        x = x + parts[:, 2] * self._attend(layer, normed, normed, None, None, visible)
        normed = _norm(x, self.parameters[f"{layer}.post_attention_layernorm.weight"], eps)
        normed = normed + normed * parts[:, 4] + parts[:, 3]
        gate = torch.nn.functional.silu(self._linear(f"{layer}.mlp.gate_proj", normed))
        return x + parts[:, 5] * self._linear(
            f"{layer}.mlp.down_proj", gate * self._linear(f"{layer}.mlp.up_proj", normed)
        )

    def _neighbor(self, content, positions, wanted, visible) -> torch.Tensor:
        """The token at position `wanted` if a visible row holds it, else the learned vector, `[hidden]`."""
        for row in range(len(content)):
            if visible[row] and positions[row] == wanted:
                return content[row]
        return self.parameters["model.query_embedding.weight"][0]

    def _example(self, input_ids, positions, targets, visible) -> torch.Tensor:
        content = self.parameters["model.embed_tokens.weight"][input_ids]
        variant = self.config.attention_variant
        if variant == "two_stream":
            query = content
            if self.config.query_stream_init == "learned":
                query = self.parameters["model.query_embedding.weight"].expand_as(content)
            elif self.config.query_stream_init == "neighbor":
                query = torch.stack(
                    [self._neighbor(content, positions, targets[row] - 1, visible[row]) for row in range(len(content))]
                )
            for index in range(self.config.num_hidden_layers):
                # The query stream reads the content stream as it was before this layer, like the content stream itself.
                query, content = (
                    self._block(index, query, content, targets - 1, positions, visible),
                    self._block(index, content, content, positions, positions, visible),
                )
            predicting = query
        elif variant == "double_position":
            own = self.parameters["model.position_embedding.own.weight"]
            if self.config.double_position_mode == "summed":
                content = content + own[positions] + self.parameters["model.position_embedding.target.weight"][targets]
            else:
                content = content + torch.cat([own[positions], own[targets]], dim=1)
            for index in range(self.config.num_hidden_layers):
                content = self._block(index, content, content, None, None, visible)
            predicting = content
        elif variant == "adaptive_norm":
            content = content + self.parameters["model.position_embedding.weight"][positions]
            condition = torch.nn.functional.silu(self.parameters["model.target_embedding.weight"][targets])
            for index in range(self.config.num_hidden_layers):
                content = self._modulated_block(index, content, condition, visible)
            predicting = content
        else:
            rotated_to = targets - 1 if variant == "decoupled_rope" else positions
            for index in range(self.config.num_hidden_layers):
                content = self._block(index, content, content, rotated_to, positions, visible)
            predicting = content
        predicting = _norm(predicting, self.parameters["model.norm.weight"], self.config.rms_norm_eps)
        if variant == "adaptive_norm":
            shift, scale = self._linear("model.norm_modulation", condition).chunk(2, dim=1)
            predicting = predicting + predicting * scale + shift
        head = self.parameters["model.embed_tokens.weight" if self.tied else "lm_head.weight"]
        return predicting @ head.T

    def logits(self, input_ids, position_ids, target_position_ids=None, visible=None) -> torch.Tensor:
        """Logits with an optional bool mask `visible` `[batch, rows, rows]` on top of the causal triangle.

        `bidirectional` has neither triangle nor targets, and minus infinity for the mask token.
        """
        batch, rows = input_ids.shape
        triangle = torch.arange(rows)[:, None] >= torch.arange(rows)[None, :]
        is_masked = self.config.attention_variant == "bidirectional"
        if is_masked:
            triangle, target_position_ids = torch.ones(rows, rows, dtype=torch.bool), position_ids
        visible = triangle.expand(batch, -1, -1) if visible is None else visible & triangle
        # A row of padding that sees nothing would be NaN; it may see itself.
        visible = visible | torch.eye(rows, dtype=torch.bool)
        logits = torch.stack(
            [self._example(input_ids[b], position_ids[b], target_position_ids[b], visible[b]) for b in range(batch)]
        )
        is_mask_token = torch.arange(logits.shape[-1]) == self.config.mask_token_id
        return logits.masked_fill(is_mask_token, -torch.inf) if is_masked else logits
