# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Any-order models in the LM Evaluation Harness. Importing this module registers the model type `aoarm`.

    import lm_eval, modeling_aoarm.evaluation.lm_eval
    arguments = {"pretrained": "outputs/pretrain", "decoding_order": "random", "num_orders": 8}
    lm_eval.simple_evaluate(model="aoarm", model_args=arguments, tasks=["lambada_openai"])

It is the harness's own `hf` with three additions.

**Orders.** The log-likelihood of a continuation is that of `score`: the context comes first, from left to right, then
the tokens of the continuation in the chosen order. Perplexities (`loglikelihood_rolling`) cut a text into windows and
predict each token once. `decoding_order="left_to_right"` gives the numbers of `hf`.

**Blanks.** The continuation, with its `target_delimiter`, replaces `<blank>` in the context of a log-likelihood:
`The<blank> sat down.` and ` cat` give log p(cat | The, sat down.). A multiple-choice task that has its choices in the
middle of a text writes `<blank>` in `doc_to_text`, and filled few-shot examples in `fewshot_config`. A `<blank>` at the
very end changes nothing. A backslash before it makes it text, as in [`~modeling_aoarm.infill`].

**Infilling.** Prompts of `generate_until` with `<blank:n>`, or another form of [`~modeling_aoarm.infill`], are filled
by it, with `generation_kwargs` as its arguments. Prompts without blanks are continued as by `hf`.
"""

import collections
import copy
import dataclasses
import hashlib
import itertools
import logging
import math
from collections.abc import Callable

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ..canvas_aoarm import check_count, padded_rows
from ..compat import encode_pair, harness_batch_size, has_own_max_length, loglikelihood_tokens
from ..infilling_aoarm import BLANK, encode_behind_blank, infill, read_blanks


logger = logging.getLogger(__name__)

# Fields of the output of `score`, by the way in which they join orders.
ENSEMBLES = {"mean": "mean_log_likelihood", "log_mean": "log_mean_likelihood"}

# Generation arguments that only prompts with blanks take.
INFILL_ARGUMENTS = {"candidate_order", "context_order", "decoding_order", "draft_length", "infill_return"}
INFILL_ARGUMENTS |= {"max_candidates", "score_end", "tokens_per_step"}


@dataclasses.dataclass
class ScoredText:
    """A text and the part of it that is scored.

    Args:
        before: token ids to the left of the scored ones, at least one.
        scored: the scored token ids, at least one.
        after: token ids to the right.
        key: with the seed and the number of scored tokens, it determines the random orders.
        arguments: the request's context and continuation, for the harness's cache; `None` for windows of a text.
    """

    before: list[int]
    scored: list[int]
    after: list[int]
    key: tuple
    arguments: tuple[str, str] | None = None

    @property
    def ids(self) -> list[int]:
        return self.before + self.scored + self.after

    def cut_context(self, longest: int) -> bool:
        """Cuts the context to `longest` tokens in all, first at its left end, then at its right end.

        Returns:
            Whether the context was too long.

        Raises:
            ValueError: the scored tokens and one before them are too many.
        """
        if 1 + len(self.scored) > longest:
            raise ValueError(f"A continuation must have at most {longest - 1} tokens, got {len(self.scored)}.")
        excess = max(0, len(self.ids) - longest)
        cut = min(excess, len(self.before) - 1)
        self.before, self.after = self.before[cut:], self.after[: len(self.after) - (excess - cut)]
        return excess > 0


@register_model("aoarm")
class AnyOrderLM(HFLM):
    """The harness's `hf` for any-order models.

    The greedy flag of a continuation (the harness's `acc` of `loglikelihood` tasks) is true if greedy decoding in each
    of its orders would fill in exactly this continuation.

    Args:
        pretrained: a folder, a name on the Hub, or a model with `score` and `generate(..., generation_mask=...)`.
        decoding_order: the order of scored tokens, `"left_to_right"` or `"random"` (uniform over orders).
        num_orders: the number of random orders in which each request is scored. If its tokens have no more orders than
            that, all of them are used, and the result is exact.
        ensemble: how orders are joined, per continuation or per window of a text: `"mean"` of the log-likelihoods,
            which estimates their expectation over orders, or `"log_mean"`, the log of the mean likelihood, which
            estimates the likelihood under the mixture of all orders (with few orders, from below).
        seed: seed of random orders, and of sampling in blanks. Random numbers depend on it and on the request's task
            and document, not on the batch. Choices of a document with the same number of tokens have the same orders.
        infilling: whether `<blank>` marks a blank. `False` reads it as text.
        **kwargs: as in `HFLM`: `tokenizer`, `batch_size`, `device`, `dtype`, `max_length`, `peft`, ... Models that were
            trained with a beginning-of-sentence token need `add_bos_token=True` if their tokenizer does not add it, as
            those of [`~modeling_aoarm.data.tokenizers`]. `max_length` is the largest number of tokens that predict
            another one. In random orders the last token of a text may predict others, so the default is one less than
            that of `hf`.

    Raises:
        ValueError: an argument has another value, or the model is not any-order.
    """

    def __init__(
        self,
        pretrained,
        *,
        decoding_order: str = "left_to_right",
        num_orders: int = 1,
        ensemble: str = "mean",
        seed: int = 0,
        infilling: bool = True,
        **kwargs,
    ):
        for name, value, names in (
            ("decoding_order", decoding_order, ("left_to_right", "random")),
            ("ensemble", ensemble, tuple(ENSEMBLES)),
            ("infilling", infilling, (True, False)),
        ):
            if value not in names:
                raise ValueError(f"`{name}` must be {' or '.join(map(repr, names))}, got {value!r}.")
        if check_count("num_orders", num_orders) > 1 and decoding_order == "left_to_right":
            raise ValueError(f"`num_orders` must be 1 with decoding_order='left_to_right', got {num_orders}.")
        if not isinstance(seed, int):
            raise ValueError(f"`seed` must be an integer, got {seed!r}.")
        self.decoding_order, self.num_orders, self.ensemble = decoding_order, num_orders, ensemble
        self.seed, self.infilling = seed, infilling
        super().__init__(pretrained, **kwargs)
        variant = getattr(self.config, "attention_variant", None)
        if variant is None or not hasattr(self.model, "score"):
            raise ValueError(f"`pretrained` must be an any-order model with `score`, got {type(self.model).__name__}.")
        if variant == "causal" and decoding_order != "left_to_right":
            raise ValueError(
                f"`decoding_order` must be 'left_to_right' for attention_variant='causal', got {decoding_order!r}."
            )
        longest = self.config.max_position_embeddings - (decoding_order != "left_to_right")
        if self.max_length > longest:
            raise ValueError(f"`max_length` must be at most {longest} in this order, got {self.max_length}.")
        bos = self.tokenizer.bos_token_id
        if bos is not None and bos not in self.tokenizer.encode(""):
            if self.add_bos_token:
                # As `hf` does for a tokenizer that is given by name.
                self.tokenizer = copy.deepcopy(self.tokenizer)
                self.tokenizer.add_bos_token = True
            elif self.add_bos_token is None:
                logger.warning(
                    "The tokenizer has a beginning-of-sentence token and does not put it in front. Models trained with "
                    "one, as by DataCollatorForAnyOrderLM, need add_bos_token=True."
                )

    @property
    def max_length(self) -> int:
        if has_own_max_length(self) or self.decoding_order == "left_to_right":
            return super().max_length
        return super().max_length - 1

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns log-likelihoods in nats, and greedy flags (see the class).

        Raises:
            ValueError: a context has several blanks or another form than `<blank>`, a continuation has no tokens or too
                many, or there is text behind a blank with `attention_variant="causal"`.
        """
        texts = {
            index: self._encode(request)
            for index, request in enumerate(requests)
            if self.decoding_order != "left_to_right" or (self.infilling and BLANK.search(request.args[0]))
        }
        longest = min(self.max_length + 1, self.config.max_position_embeddings)
        if cut := sum(text.cut_context(longest) for text in texts.values()):
            logger.warning("%d of %d contexts are too long for %d tokens in all and are cut.", cut, len(texts), longest)
        results = dict(zip(texts, self._score(list(texts.values()), disable_tqdm), strict=True))
        plain = [index for index in range(len(requests)) if index not in texts]
        if plain:
            # From left to right the harness's own method gives the same numbers.
            own = super().loglikelihood([requests[index] for index in plain], disable_tqdm)
            results |= zip(plain, own, strict=True)
        return [results[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns log-likelihoods of whole texts in nats: sums over windows, each with as much context as fits."""
        windows, owners = [], []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            if tokens[:1] == [self.prefix_token_id]:
                # It only predicts the first token.
                tokens = tokens[1:]
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for number, (before, scored) in enumerate(map(make_disjoint_window, rolling)):
                windows.append(ScoredText(before, scored, [], (*_key(request), number)))
                owners.append(index)
        if self.decoding_order == "left_to_right":
            pairs = [(None, window.before, window.scored) for window in windows]
            results = loglikelihood_tokens(self, pairs, disable_tqdm)
        else:
            results = self._score(windows, disable_tqdm)
        sums = [0.0] * len(requests)
        for owner, (log_likelihood, _) in zip(owners, results, strict=True):
            sums[owner] += log_likelihood
        for request, log_likelihood in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, log_likelihood)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continues prompts, and fills prompts that have blanks.

        For prompts with blanks, `generation_kwargs` are arguments of `generate` (`decoding_order`, `tokens_per_step`,
        `do_sample`, `temperature`, ...), of [`~modeling_aoarm.infill`] (`candidate_order`, `score_end`, ...), and
        `infill_return`: `"blank"` (the default) returns the filling of the only blank, up to the first of the `until`
        strings, and `"text"` the whole filled prompt. `max_gen_toks` has no effect on blanks.

        Raises:
            ValueError: arguments of `infill` come with a prompt without blanks, a prompt has several blanks with
                `infill_return="blank"`, there are more tokens than the model has positions, or as in `infill`.
        """
        plain, blanks = {}, {}
        for index, request in enumerate(requests):
            text, arguments = request.args
            pieces, written = self._read_blanks(text)
            if written:
                returned = arguments.get("infill_return", "blank")
                if returned not in ("blank", "text"):
                    raise ValueError(f"`infill_return` must be 'blank' or 'text', got {returned!r}.")
                if returned == "blank" and len(written) > 1:
                    raise ValueError(
                        f"`infill_return` must be 'text' for several blanks, got 'blank' for {len(written)}: {text!r}."
                    )
                blanks[index] = request
                continue
            if misplaced := sorted(INFILL_ARGUMENTS & set(arguments)):
                raise ValueError(
                    f"{', '.join(f'`{name}`' for name in misplaced)} of generation_kwargs must come with prompts that "
                    f"have blanks, such as <blank:3>; got the prompt {text!r}."
                )
            asked = normalize_gen_kwargs(arguments, self.max_gen_toks)["max_gen_toks"]
            if asked >= self.max_length:
                raise ValueError(
                    f"`max_gen_toks` of generation_kwargs must be below the max_length={self.max_length} of the model, "
                    f"got {asked}."
                )
            plain[index] = dataclasses.replace(request, arguments=(pieces[0], arguments))
        continued = super().generate_until(list(plain.values()), disable_tqdm) if plain else []
        filled = self._fill(list(blanks.values()), disable_tqdm)
        results = dict(zip([*plain, *blanks], continued + filled, strict=True))
        return [results[index] for index in range(len(requests))]

    def _read_blanks(self, text: str) -> tuple[list[str], list[str]]:
        """Returns the text around blanks, and the blanks as they are written."""
        if not self.infilling:
            return [text], []
        pieces, _, written = read_blanks(text)
        return pieces, written

    def _encode(self, request: Instance) -> ScoredText:
        """Encodes context and continuation as `hf` does, and the text behind a blank."""
        context, continuation = request.args
        (before, *behind), written = self._read_blanks(context)
        if written not in ([], ["<blank>"]):
            raise ValueError(
                "The context of a log-likelihood must have one blank, written <blank>, for the continuation; got "
                f"{' and '.join(written)} in {context!r}. Write few-shot examples filled in a task's `fewshot_config`; "
                "infilling=False reads blanks as text."
            )
        after = [index for piece in behind for index in encode_behind_blank(self.tokenizer, piece)]
        if after and self.config.attention_variant == "causal":
            raise ValueError(
                f"attention_variant='causal' cannot read text behind a blank; got {behind[0]!r} in {context!r}."
            )
        if before.strip():
            given, scored = encode_pair(self, before, continuation)
        else:
            # As in the harness, spaces before a continuation belong to it.
            given = [self.prefix_token_id]
            scored = self.tok_encode(before + continuation, add_special_tokens=False)
            scored = scored[1:] if scored[:1] == given else scored
        if not scored:
            raise ValueError(f"A continuation must have at least one token, got {continuation!r} behind {before!r}.")
        return ScoredText(given, scored, after, _key(request), request.args)

    def _draw_orders(self, text: ScoredText) -> list[list[int]]:
        """Draws orders of the scored tokens, as columns of the text."""
        columns = range(len(text.before), len(text.before) + len(text.scored))
        if self.decoding_order == "left_to_right":
            return [list(columns)]
        if len(columns) <= self.num_orders and math.factorial(len(columns)) <= self.num_orders:
            return [list(order) for order in itertools.permutations(columns)]
        generator = self._make_generator(text.key, len(columns))
        drawn = [torch.randperm(len(columns), generator=generator) for _ in range(self.num_orders)]
        return [(order + columns.start).tolist() for order in drawn]

    def _make_generator(self, *key) -> torch.Generator:
        """Makes a generator whose random numbers depend on the seed and the key alone."""
        digest = hashlib.sha256(repr((self.seed, key)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _score(self, texts: list[ScoredText], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns log-likelihoods of the scored tokens in nats, and greedy flags."""
        # A batch has texts with the same number of orders. The longest come first, to fail early if memory is short.
        return self._run_in_batches(
            self._score_batch,
            [(text, self._draw_orders(text)) for text in texts],
            sort_key=lambda pair: -len(pair[0].ids),
            group_key=lambda pair: len(pair[1]),
            progress=None if disable_tqdm else "Scoring in any order",
        )

    def _run_in_batches(self, run: Callable, pairs: list[tuple], sort_key, group_key, progress: str | None) -> list:
        """Calls `run` with batches of pairs that have the same group key. Returns its results in the pairs' order."""
        if not pairs:
            return []
        groups = {"group_by": "gen_kwargs", "group_fn": lambda pair: {"key": group_key(pair)}}
        collator, results = Collator(pairs, sort_fn=sort_key, **groups), []
        with tqdm(total=len(pairs), desc=progress, disable=progress is None or self.rank != 0) as bar:
            for batch in collator.get_batched(n=harness_batch_size(self)):
                results += run(*map(list, zip(*batch, strict=True)))
                bar.update(len(batch))
        return collator.get_original(results)

    @torch.no_grad()
    def _score_batch(self, texts: list[ScoredText], orders_of_texts: list[list[list[int]]]) -> list[tuple[float, bool]]:
        """Scores texts that have the same number of orders, see `_score`."""
        ids, mask = padded_rows([text.ids for text in texts])
        is_scored = torch.zeros_like(ids, dtype=torch.bool)
        for own, orders in zip(is_scored, orders_of_texts, strict=True):
            own[orders[0]] = True
        by_order = [[torch.tensor(order) for order in each] for each in zip(*orders_of_texts, strict=True)]
        orders = torch.stack([pad_sequence(each, batch_first=True, padding_value=-1) for each in by_order])
        ids, mask, is_scored, orders = (each.to(self.device) for each in (ids, mask, is_scored, orders))
        mixed = self.mixed_precision_dtype
        with torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
            scores = self.model.score(ids, is_scored, attention_mask=mask, decoding_order=orders)
        is_greedy = (scores.token_is_likeliest | ~is_scored).all(-1).all(0)
        results = list(zip(scores[ENSEMBLES[self.ensemble]].tolist(), is_greedy.tolist(), strict=True))
        for text, result in zip(texts, results, strict=True):
            if text.arguments is not None:
                self.cache_hook.add_partial("loglikelihood", text.arguments, result)
        return results

    def _fill(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Fills prompts with blanks."""
        occurrences, keyed = collections.Counter(), []
        for request in requests:
            key = (*_key(request), *map(str, request.args))
            # A repeated request gets another sample.
            keyed.append((request, self._make_generator(key, occurrences[key])))
            occurrences[key] += 1
        return self._run_in_batches(
            self._fill_batch,
            keyed,
            sort_key=lambda _: 0,
            group_key=lambda pair: repr(pair[0].args[1]),
            progress=None if disable_tqdm else "Filling blanks",
        )

    def _fill_batch(self, requests: list[Instance], generators: list[torch.Generator]) -> list[str]:
        """Fills prompts that have the same generation arguments."""
        texts = [request.args[0] for request in requests]
        arguments = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        until, returned = arguments.pop("until"), arguments.pop("infill_return", "blank")
        del arguments["max_gen_toks"]
        if not arguments["do_sample"]:
            arguments.pop("temperature", None)
        # `infill` draws a random candidate_order from the global random numbers. It is the same in all batches.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            options = {"batch_size": len(texts), "generator": generators}
            filled = infill(self.model, self.tokenizer, texts, **options, **arguments)
        if returned == "text":
            return filled
        results = []
        for text, whole in zip(texts, filled, strict=True):
            (before, behind), _ = self._read_blanks(text)
            results.append(postprocess_generated_text(whole[len(before) : len(whole) - len(behind)], until, None))
        return results


def _key(request: Instance) -> tuple:
    """Returns the request's task and document, or its arguments if it has none."""
    return (request.task_name, request.doc_id) if request.doc_id is not None else request.args


__all__ = ["AnyOrderLM"]
