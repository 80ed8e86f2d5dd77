# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""A synthetic source whose conditionals are known exactly in any order: a mixture of random Markov chains.

A sentence is drawn from one of K equally likely chains over S symbols. The chains are stationary, so every position has
the same marginal distribution. Within a chain, a symbol depends only on the nearest observed symbols to its left and
right. The posterior of the chain depends on all observed symbols.
"""

import numpy as np
import torch


# Share of the uniform distribution in every transition, so that no symbol is ever impossible.
FLOOR = 0.02


class MarkovMixture:
    """K stationary Markov chains. Transition rows come from a symmetric Dirichlet distribution, mixed with the uniform.

    Args:
        max_length: length of the longest sentence.
        num_chains: K.
        num_symbols: S.
        concentration: of the Dirichlet distribution. Small values make chains that are easy to predict.
        seed: seed of the chains.

    Attributes:
        transitions: float64 `[chains, symbols, symbols]`, p(next | symbol).
        stationary: float64 `[chains, symbols]`.
        vocab_size: S.

    Raises:
        ValueError: a number is below 1, or `concentration` is not positive.
    """

    def __init__(
        self, max_length: int, num_chains: int = 8, num_symbols: int = 8, concentration: float = 0.2, seed: int = 0
    ):
        for name, value in (("max_length", max_length), ("num_chains", num_chains), ("num_symbols", num_symbols)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not concentration > 0:
            raise ValueError(f"`concentration` must be positive, got {concentration}.")
        self.vocab_size = num_symbols
        rng = np.random.default_rng(seed)
        drawn = rng.dirichlet(np.full(num_symbols, concentration), size=(num_chains, num_symbols))
        self.transitions = torch.from_numpy((1 - FLOOR) * drawn + FLOOR / num_symbols)
        powers = [torch.eye(num_symbols, dtype=torch.float64).expand_as(self.transitions)]
        for _ in range(max_length):
            powers.append(powers[-1] @ self.transitions)
        # [steps, chains, symbols, symbols]: p(symbol so many steps later | symbol).
        self.powers = torch.stack(powers)
        # p = p T with sum 1, as a linear system with one equation replaced.
        system = self.transitions.transpose(1, 2) - torch.eye(num_symbols, dtype=torch.float64)
        system[:, -1] = 1
        one = torch.zeros(num_chains, num_symbols, 1, dtype=torch.float64)
        one[:, -1] = 1
        self.stationary = torch.linalg.solve(system, one)[..., 0]

    def to(self, device: torch.device | str) -> "MarkovMixture":
        """Moves the tables to a device, and later sentences with them."""
        for name in ("transitions", "powers", "stationary"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def sample(self, batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Draws sentences, int64 `[batch, length]`, on the generator's device."""
        device = self.transitions.device
        chain = torch.randint(len(self.transitions), (batch,), generator=generator, device=device)
        # Inverse distribution functions, symbol by symbol.
        uniform = torch.rand(batch, length, generator=generator, device=device, dtype=torch.float64)
        first, following = self.stationary.cumsum(-1), self.transitions.cumsum(-1)
        symbols, cumulative = [], first[chain]
        for column in range(length):
            below = (cumulative < uniform[:, column, None]).sum(-1)
            symbols.append(below.clamp(max=self.vocab_size - 1))
            cumulative = following[chain, symbols[-1]]
        return torch.stack(symbols, dim=1)

    def conditionals(self, tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Finds the exact conditional distribution of each row's target, given the tokens before it in the order.

        Observing a symbol between its observed neighbours l and u multiplies a chain's posterior by
        T^(t-l) T^(u-t) / T^(u-l) at those symbols, so a row costs no pass over the sentence.

        Args:
            tokens: int64 `[batch, length]`, sentences.
            order: int64 `[batch, length]`, permutations of the columns.

        Returns:
            float64 `[batch, length, symbols]`: entry r is p(symbol at column order[:, r] | those at order[:, :r]).

        Raises:
            ValueError: the sentences are longer than `max_length`.
        """
        batch, length = tokens.shape
        if length >= len(self.powers):
            raise ValueError(f"`tokens` must have at most max_length={len(self.powers) - 1} columns, got {length}.")
        examples, columns = torch.arange(batch, device=tokens.device), torch.arange(length, device=tokens.device)
        observed = torch.zeros_like(tokens, dtype=torch.bool)
        log_posterior = tokens.new_zeros(batch, len(self.transitions), dtype=torch.float64)
        rows = []
        for target in order.unbind(1):
            before, after = columns < target[:, None], columns > target[:, None]
            left = columns.where(observed & before, -1).amax(1)
            right = columns.where(observed & after, length).amin(1)
            has_left, has_right = (left >= 0)[:, None, None], (right < length)[:, None, None]
            left, right = left.clamp(min=0), right.clamp(max=length - 1)
            left_token, right_token = tokens[examples, left], tokens[examples, right]
            # [batch, chains, symbols]
            forward = self.powers[(target - left).clamp(min=0), :, left_token].where(has_left, self.stationary)
            backward = self.powers[(right - target).clamp(min=0), :, :, right_token].where(has_right, 1.0)
            # [batch, chains, 1]: p(right neighbour | left neighbour), or the marginal of the only one.
            across = self.powers[(right - left).clamp(min=0), :, left_token, right_token][..., None]
            alone = self.stationary[:, right_token].T[..., None]
            known = across.where(has_left, alone).where(has_right, 1.0)
            by_chain = forward * backward / known
            rows.append((log_posterior.softmax(-1)[..., None] * by_chain).sum(1))
            token = tokens[examples, target]
            log_posterior = log_posterior + by_chain[examples, :, token].log()
            observed[examples, target] = True
        return torch.stack(rows, dim=1)

    def unigram_entropy(self) -> float:
        """Entropy of a symbol's marginal distribution, nats."""
        marginal = self.stationary.mean(0)
        return -float((marginal * marginal.log()).sum())
