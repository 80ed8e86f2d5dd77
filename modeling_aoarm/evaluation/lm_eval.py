# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Any-order models in the LM Evaluation Harness: the model type `aoarm`, registered when this module is imported.

    import lm_eval, modeling_aoarm.evaluation.lm_eval
    arguments = {"pretrained": "outputs/pretrain", "decoding_order": "random", "num_orders": 8}
    lm_eval.simple_evaluate(model="aoarm", model_args=arguments, tasks=["lambada_openai"])

It is the harness's own `hf` with three things more.

**Orders.** Log-likelihoods of a continuation are those of `score`: the context comes before it, from left to right, and
its own tokens in the asked order. Perplexities (`loglikelihood_rolling`) cut a text into windows, of whose tokens each
is predicted once. `decoding_order="left_to_right"` gives the numbers of `hf`.

**Blanks.** `<blank>` in the context of a log-likelihood says where the continuation goes: `The<blank> sat down.` and
` cat` ask for log p(cat | The, sat down.). So a multiple-choice task has its choices in the middle of a text by writing
`<blank>` in `doc_to_text`; few-shot examples are written filled, in `fewshot_config`. The text is what one gets by
putting the continuation, with its `target_delimiter`, in the place of `<blank>`. At the very end it changes nothing.
A backslash before it makes it text, as in [`~modeling_aoarm.infill`].

**Infilling.** Prompts of `generate_until` with `<blank:n>`, or another form that [`~modeling_aoarm.infill`] knows, are
filled by it, with `generation_kwargs` for its arguments. Prompts without blanks are continued as `hf` continues them.
"""

import collections
import copy
import dataclasses
import hashlib
import itertools
import logging
import math

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ..canvas_aoarm import check_count
from ..compat import encode_pair, harness_batch_size, has_own_max_length, loglikelihood_tokens
from ..infilling_aoarm import BLANK, encode_behind_blank, infill, make_canvases, read_blanks


logger = logging.getLogger(__name__)

# Where each way of joining orders stands in the output of `score`.
ENSEMBLES = {"mean": "mean_log_likelihood", "log_mean": "log_mean_likelihood"}

# Generation arguments that prompts without blanks have no use for.
INFILL_ARGUMENTS = (
    "candidate_order",
    "context_order",
    "decoding_order",
    "draft_length",
    "infill_return",
    "max_candidates",
    "score_end",
    "tokens_per_step",
)


@dataclasses.dataclass
class ScoredText:
    """A text of which a part is scored.

    Args:
        before: token ids to the left of the scored ones, at least one.
        scored: the token ids that are scored, at least one.
        after: token ids to their right.
        key: what random orders are drawn from, together with the seed and the number of scored tokens.
        arguments: the request's context and continuation, for the harness's cache; `None` for windows of a text.
    """

    before: list[int]
    scored: list[int]
    after: list[int]
    key: tuple
    arguments: tuple[str, str] | None = None

    def __len__(self) -> int:
        return len(self.before) + len(self.scored) + len(self.after)

    def cut(self, longest: int) -> bool:
        """Cuts the context to `longest` tokens in all: its left end first, then its right one. Whether it had to.

        Raises:
            ValueError: where the scored tokens and one before them are too many.
        """
        if 1 + len(self.scored) > longest:
            raise ValueError(f"A continuation must have at most {longest - 1} tokens, got {len(self.scored)}.")
        excess = len(self) - longest
        if excess <= 0:
            return False
        cut = min(excess, len(self.before) - 1)
        self.before, self.after = self.before[cut:], self.after[: len(self.after) - (excess - cut)]
        return True


@register_model("aoarm")
class AnyOrderLM(HFLM):
    """The harness's `hf` for any-order models.

    Args:
        pretrained: a folder, a name on the Hub, or a model with `score` and `generate(..., generation_mask=...)`.
        decoding_order: the order of scored tokens, `"left_to_right"` or `"random"` (uniform over orders).
        num_orders: how many random orders each request is scored in. Where its tokens have no more orders than that,
            all of them are taken, and the result is exact.
        ensemble: how orders are joined: `"mean"` of the log-likelihoods, which estimates their expectation over orders,
            or `"log_mean"`, the log of the mean likelihood, which estimates the likelihood under the mixture of all
            orders, from below with few of them. Both per continuation, or per window of a text.
        seed: of random orders, and of sampling in blanks. What is drawn depends on it and on the request's task and
            document alone, not on the batch: choices of a document with equally many tokens have the same orders.
        infilling: whether `<blank>` has its meaning. `False` reads it as any other text.
        **kwargs: as in `HFLM`: `tokenizer`, `batch_size`, `device`, `dtype`, `max_length`, `peft`, ... Tokenizers that
            do not put their beginning-of-sentence token in front by themselves, such as those of
            [`~modeling_aoarm.data.tokenizers`], need `add_bos_token=True` for models that were trained with one.

    The greedy flag of a continuation (the harness's `acc` of `loglikelihood` tasks) is true if greedy decoding, in each
    of its orders, would fill in exactly this continuation.

    `max_length` is the harness's: the most tokens that predict another. In random orders the last token of a text may
    predict others, so the default is one less than `hf` has. Contexts that are too long lose their left end, then text
    behind a blank its right end.

    Raises:
        ValueError: for arguments that are none of these, and models that are not any-order.
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
                f"attention_variant='causal' knows decoding_order='left_to_right' only, got {decoding_order!r}."
            )
        longest = self.config.max_position_embeddings - (decoding_order != "left_to_right")
        if self.max_length > longest:
            raise ValueError(f"`max_length` must be at most {longest} in this order, got {self.max_length}.")
        bos = self.tokenizer.bos_token_id
        is_left_out = bos is not None and bos not in self.tokenizer.encode("")
        if is_left_out and self.add_bos_token:
            # What loading does to a tokenizer that is given by name.
            self.tokenizer = copy.deepcopy(self.tokenizer)
            self.tokenizer.add_bos_token = True
        elif is_left_out and self.add_bos_token is None:
            logger.warning(
                "The tokenizer has a beginning-of-sentence token, which it does not put in front by itself. Models "
                "trained with one, as by DataCollatorForAnyOrderLM, need add_bos_token=True (--add-bos-token)."
            )

    @property
    def max_length(self) -> int:
        if has_own_max_length(self) or self.decoding_order == "left_to_right":
            return super().max_length
        return super().max_length - 1

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods in nats, and greedy flags (see the class).

        Raises:
            ValueError: for a context with several blanks or one of another form than `<blank>`, a continuation without
                tokens or too long for the model, and text behind a blank with `attention_variant="causal"`.
        """
        results: dict[int, tuple[float, bool]] = {}
        texts = {}
        for index, request in enumerate(requests):
            if self._has_form(request.args[0]) or self.decoding_order != "left_to_right":
                texts[index] = self._scored_text(request)
        longest = min(self.max_length + 1, self.config.max_position_embeddings)
        if cut := sum(text.cut(longest) for text in texts.values()):
            logger.warning("%d of %d contexts are too long for %d tokens in all and are cut.", cut, len(texts), longest)
        plain = [index for index in range(len(requests)) if index not in texts]
        if plain:
            # From left to right the harness's own way is as good.
            own = super().loglikelihood([requests[index] for index in plain], disable_tqdm)
            results |= zip(plain, own, strict=True)
        results |= zip(texts, self._score(list(texts.values()), disable_tqdm), strict=True)
        return [results[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, nats: sums over windows, which have as much context as there is room for."""
        windows, owners = [], []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            if tokens[:1] == [self.prefix_token_id]:
                # It is what the first token is predicted from, and not predicted itself.
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
        """Continues prompts, and fills those with blanks.

        `generation_kwargs` for prompts with blanks, beside those of `generate` (`decoding_order`, `tokens_per_step`,
        `do_sample`, `temperature`, ...) and of [`~modeling_aoarm.infill`] (`candidate_order`, `score_end`, ...):

            infill_return: `"blank"` (the default) for what was filled into the only blank, up to the first of the
                `until` strings, or `"text"` for the whole filled prompt, with any number of blanks.
            max_gen_toks has no part in it: the prompt says how long blanks are.

        Raises:
            ValueError: for arguments of `infill` with a prompt without blanks, several blanks with
                `infill_return="blank"`, more tokens than the model has places for, and as in `infill`.
        """
        results: dict[int, str] = {}
        groups = collections.defaultdict(list)
        plain = {}
        for index, request in enumerate(requests):
            text, arguments = request.args
            pieces, lengths = self._read_blanks(text)
            if lengths:
                self._check_blanks(text, arguments)
                groups[repr(sorted(arguments.items()))].append(index)
                continue
            given = sorted(set(INFILL_ARGUMENTS) & set(arguments))
            if given:
                raise ValueError(
                    f"{', '.join(f'`{name}`' for name in given)} of generation_kwargs must come with prompts that have "
                    f"blanks, such as <blank:3>; got the prompt {text!r}."
                )
            asked = normalize_gen_kwargs(arguments, self.max_gen_toks)["max_gen_toks"]
            if asked >= self.max_length:
                raise ValueError(
                    f"`max_gen_toks` of generation_kwargs must be below the max_length={self.max_length} of the model, "
                    f"got {asked}."
                )
            plain[index] = dataclasses.replace(request, arguments=(pieces[0], arguments))
        if plain:
            own = super().generate_until(list(plain.values()), disable_tqdm)
            results |= zip(plain, own, strict=True)
        size = harness_batch_size(self) if groups else 1
        occurrences = collections.Counter()
        total = sum(map(len, groups.values()))
        with tqdm(total=total, desc="Filling blanks", disable=disable_tqdm or self.rank != 0 or total == 0) as bar:
            for members in groups.values():
                for start in range(0, len(members), size):
                    chunk = members[start : start + size]
                    own = [requests[index] for index in chunk]
                    generators = []
                    for request in own:
                        key = (*_key(request), *map(str, request.args))
                        # A request that is repeated is sampled anew.
                        generators.append(self._generator(key, occurrences[key]))
                        occurrences[key] += 1
                    results |= zip(chunk, self._fill(own, generators), strict=True)
                    bar.update(len(chunk))
        return [results[index] for index in range(len(requests))]

    def _has_form(self, text: str) -> bool:
        """Whether a text has blanks, or forms that a backslash makes text."""
        return self.infilling and BLANK.search(text) is not None

    def _read_blanks(self, text: str) -> tuple[list[str], list[str]]:
        """The text around blanks, and the blanks as they are written."""
        if not self.infilling:
            return [text], []
        pieces, _, written = read_blanks(text)
        return pieces, written

    def _scored_text(self, request: Instance) -> ScoredText:
        """A request's tokens: those of `hf`, and those behind the blank."""
        context, continuation = request.args
        (before, *behind), blanks = self._read_blanks(context)
        if blanks not in ([], ["<blank>"]):
            raise ValueError(
                "The context of a log-likelihood must have one blank, written <blank>, in whose place the "
                f"continuation is; got {' and '.join(blanks)} in {context!r}. Few-shot examples are written filled in "
                "a task's `fewshot_config`; infilling=False reads blanks as text."
            )
        after = [index for piece in behind for index in encode_behind_blank(self.tokenizer, piece)]
        if after and self.config.attention_variant == "causal":
            raise ValueError(
                f"attention_variant='causal' knows no text behind a blank; got {behind[0]!r} behind it in {context!r}."
            )
        if not before.strip():
            # The harness counts spaces before a continuation to it.
            before, continuation = "", before + continuation
        if before:
            given, scored = encode_pair(self, before, continuation)
        else:
            scored = self.tok_encode(continuation, add_special_tokens=False)
            given = [self.prefix_token_id]
            if scored[:1] == given:
                scored = scored[1:]
        if not scored:
            raise ValueError(f"A continuation must have at least one token, got {continuation!r} behind {before!r}.")
        return ScoredText(given, scored, after, _key(request), request.args)

    def _orders(self, text: ScoredText) -> list[list[int]]:
        """Orders of the scored tokens, as places among them."""
        places = range(len(text.scored))
        if self.decoding_order == "left_to_right":
            return [list(places)]
        if len(places) <= self.num_orders and math.factorial(len(places)) <= self.num_orders:
            return [list(order) for order in itertools.permutations(places)]
        generator = self._generator(text.key, len(places))
        return [torch.randperm(len(places), generator=generator).tolist() for _ in range(self.num_orders)]

    def _generator(self, *key) -> torch.Generator:
        """Random numbers that follow from the seed and the key."""
        digest = hashlib.sha256(repr((self.seed, key)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _score(self, texts: list[ScoredText], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of the scored tokens, nats, and whether greedy decoding would fill them in."""
        if not texts:
            return []
        # Batches of texts with equally many orders, the longest first: what is too large for the memory comes at once.
        collator = Collator(
            [(text, self._orders(text)) for text in texts],
            sort_fn=lambda pair: -len(pair[0]),
            group_fn=lambda pair: {"orders": len(pair[1])},
            group_by="gen_kwargs",
        )
        results = []
        with tqdm(total=len(texts), desc="Scoring in any order", disable=disable_tqdm or self.rank != 0) as bar:
            for batch in collator.get_batched(n=harness_batch_size(self)):
                for (text, _), result in zip(batch, self._score_batch(batch), strict=True):
                    results.append(result)
                    if text.arguments is not None:
                        self.cache_hook.add_partial("loglikelihood", text.arguments, result)
                bar.update(len(batch))
        return collator.get_original(results)

    @torch.no_grad()
    def _score_batch(self, batch: list[tuple[ScoredText, list[list[int]]]]) -> list[tuple[float, bool]]:
        """As `_score`, for texts and their orders, of which each has equally many."""
        texts, orders_of_texts = zip(*batch, strict=True)
        input_ids = self._padded([text.before + text.scored + text.after for text in texts])
        is_real = self._padded([[1] * len(text) for text in texts]).bool()
        is_scored = self._padded([[0] * len(text.before) + [1] * len(text.scored) for text in texts]).bool()
        is_scored = functional.pad(is_scored, (0, input_ids.shape[1] - is_scored.shape[1]))
        orders = [
            self._padded(
                [[len(text.before) + place for place in order] for text, order in zip(texts, own, strict=True)], -1
            )
            for own in zip(*orders_of_texts, strict=True)
        ]
        mixed = self.mixed_precision_dtype
        with torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
            scores = self.model.score(
                input_ids, is_scored, attention_mask=is_real.long(), decoding_order=torch.stack(orders)
            )
        is_greedy = (scores.token_is_likeliest | ~is_scored).all(-1).all(0)
        return list(zip(scores[ENSEMBLES[self.ensemble]].tolist(), is_greedy.tolist(), strict=True))

    def _padded(self, rows: list[list[int]], filler: int = 0) -> torch.Tensor:
        """int64 `[rows, longest]`, padded on the right."""
        rows = [torch.tensor(row, dtype=torch.int64) for row in rows]
        return pad_sequence(rows, batch_first=True, padding_value=filler).to(self.device)

    def _check_blanks(self, text: str, arguments: dict) -> None:
        """Refuses a prompt before any is filled."""
        max_candidates = arguments.get("max_candidates", 64)
        blanks = make_canvases(self.tokenizer, text, self.config.max_position_embeddings, max_candidates)[0].fillings
        what = arguments.get("infill_return", "blank")
        if what not in ("blank", "text"):
            raise ValueError(f"`infill_return` must be 'blank' or 'text', got {what!r}.")
        if what == "blank" and len(blanks) > 1:
            raise ValueError(
                f"`infill_return` must be 'text' for several blanks, got 'blank' for {len(blanks)}: {text!r}."
            )

    def _fill(self, requests: list[Instance], generators: list[torch.Generator]) -> list[str]:
        """Fills prompts that have the same generation arguments."""
        texts = [request.args[0] for request in requests]
        arguments = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        until, what = arguments.pop("until"), arguments.pop("infill_return", "blank")
        del arguments["max_gen_toks"]
        if not arguments["do_sample"]:
            arguments.pop("temperature", None)
        # `infill` draws a random candidate_order from the global numbers, the same for all batches here.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            filled = infill(
                self.model,
                self.tokenizer,
                texts,
                batch_size=harness_batch_size(self),
                generator=generators,
                **arguments,
            )
        if what == "text":
            return filled
        results = []
        for text, whole in zip(texts, filled, strict=True):
            (before, behind), _ = self._read_blanks(text)
            results.append(postprocess_generated_text(whole[len(before) : len(whole) - len(behind)], until, None))
        return results


def _key(request: Instance) -> tuple:
    """What names a request among others: its task and document, where it has them."""
    return (request.task_name, request.doc_id) if request.doc_id is not None else request.args


__all__ = ["AnyOrderLM"]
