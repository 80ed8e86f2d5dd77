# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("infilling")`: fills the blanks of texts and chats, also from a saved folder without this package."""

import re
import uuid
from collections.abc import Sequence
from typing import Any

from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from .blanks_aoarm import BLANK, read_blanks, write_blanks
from .infilling_aoarm import Infilling, fill_texts


class InfillingPipeline(Pipeline):
    r"""Fills the blanks of text: [`~modeling_aoarm.infill`] as a pipeline of the library, under the task `"infilling"`.

    ```python
    from transformers import pipeline

    filler = pipeline("infilling", model="outputs/smollm2", trust_remote_code=True)
    filler("The <blank:3> sat on the <blank>.")  # {"filled_text": "The ... sat on the ....", "fillings": [..., ...]}
    ```

    **Input.** A text, a chat, or a list, a generator or a PyTorch data set of either; `batch_size` of them are filled
    together. See [`~modeling_aoarm.infill`] for how blanks are written.

    **Chats.** A chat is a list of messages, dicts with `role` and `content`. The tokenizer's chat template makes a text
    of it, in which every turn is complete. Blanks stand in the assistant's turns, of which there may be several. In all
    other turns, and in the template, `<blank>` stands for these characters.

    **Output.** A dict for each input:

    - `filled_text` (`str`, or a list of messages for a chat): the input with its blanks filled;
    - `fillings` (`list[str]`): the text in each blank;
    - with `return_candidates=True` also `log_probability` (`float`, nats) of the filled text given its first token, and
      `candidates`, a dict for each combination of blank lengths, the best first, with `filled_text`, `fillings`,
      `blank_lengths` (`list[int]`, tokens) and `log_probability`.

    Args:
        model: a model with a generative head, as for [`~modeling_aoarm.infill`].
        tokenizer: the model's.
        **kwargs: the library's arguments of pipelines, and defaults for the arguments of calls: `return_candidates`,
            `candidate_order`, `score_end`, `max_candidates` and all arguments of `generate`, such as `decoding_order`
            or `do_sample`. Tensors of orders and lists of generators have one entry for each text with blanks of a
            batch, so they fit calls with one text.

    Raises:
        TypeError: an input is neither a text nor a chat, or the model has no `generate` and `score` for canvases.
        ValueError: there is no tokenizer; a chat has blanks only in turns that are not the assistant's, or its template
            does not write each blank once; and as in [`~modeling_aoarm.infill`].
    """

    _load_tokenizer = True
    _load_feature_extractor = _load_image_processor = _load_video_processor = _load_processor = False

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs):
        if not callable(getattr(model, "infill", None)):
            raise TypeError(
                "`model` must be an any-order model with a generative head, such as `AutoModelForCausalLM` loads; got "
                f"{type(model).__name__}. `convert_causal_lm` makes one of a left-to-right decoder."
            )
        if tokenizer is None:
            raise ValueError("`tokenizer` must be the model's tokenizer, got None. Give a tokenizer, or its folder.")
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)

    def __call__(self, inputs: Any, **kwargs) -> Any:
        """Fills the blanks of one input or of several; see the class."""
        if isinstance(inputs, Sequence) and not isinstance(inputs, str):
            inputs = list(inputs)
            if not inputs:
                return []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        shown = {"return_candidates": kwargs["return_candidates"]} if "return_candidates" in kwargs else {}
        return {}, kwargs, shown

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        """Makes a text of a chat. Texts stay as they are."""
        messages = getattr(inputs, "messages", None)
        if messages is not None:
            text, turns = write_chat(self.tokenizer, messages)
            return {"text": text, "messages": messages, "turns": turns}
        if not isinstance(inputs, str):
            raise TypeError(
                "An input of the infilling pipeline must be a text or a chat (a list of messages with `role` and "
                f"`content`), got {type(inputs).__name__}."
            )
        return {"text": inputs, "messages": None, "turns": None}

    def _forward(self, model_inputs: dict[str, Any], **kwargs) -> dict[str, Any]:
        texts = model_inputs.pop("text")
        is_batch = isinstance(texts, list)
        infillings = fill_texts(self.model, self.tokenizer, texts if is_batch else [texts], **kwargs)
        return {"infilling": infillings if is_batch else infillings[0], **model_inputs}

    def postprocess(self, model_outputs: dict[str, Any], return_candidates: bool = False) -> dict[str, Any]:
        """Makes the output of one input; see the class."""
        infilling: Infilling = model_outputs["infilling"]
        candidates = []
        for each in infilling.candidates:
            filled = each.text
            if model_outputs["messages"] is not None:
                filled = fill_chat(model_outputs["messages"], model_outputs["turns"], each.fillings)
            candidates.append(
                {
                    "filled_text": filled,
                    "fillings": list(each.fillings),
                    "blank_lengths": list(each.blank_lengths),
                    "log_probability": each.log_probability,
                }
            )
        names = ("filled_text", "fillings", *(("log_probability",) if return_candidates else ()))
        output = {name: candidates[0][name] for name in names}
        return output | ({"candidates": candidates} if return_candidates else {})


def write_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]]
) -> tuple[str, dict[int, list[str]]]:
    """Makes a text with blanks of a chat, by the tokenizer's chat template.

    Returns:
        The text; and for each of the assistant's turns, by its index, the pieces of its content around the blanks, one
        more than there are blanks.

    Raises:
        ValueError: blanks stand only in turns that are not the assistant's; the template does not write each blank
            once, in their order and apart from each other; or a blank is malformed.
    """
    # The template sees names in place of blanks, so it may change the text around them. No text has such a name.
    name = uuid.uuid4().hex
    turns, blanks, named = {}, [], []
    for index, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "assistant" and isinstance(content, str):
            turns[index], _, own = read_blanks(content)
            content = turns[index][0]
            for piece in turns[index][1:]:
                content += f"{name}-{len(blanks)}-{piece}"
                blanks.append(own.pop(0))
        named.append({**message, "content": content})
    if not blanks:
        for message in messages:
            content = message["content"] if isinstance(message["content"], str) else ""
            if message["role"] != "assistant" and any(len(each[1]) % 2 == 0 for each in BLANK.finditer(content)):
                raise ValueError(
                    "Blanks of a chat must stand in turns with role 'assistant', got blanks only in one with role "
                    f"{message['role']!r}. Write the assistant's answer with blanks, or \\<blank> for these characters."
                )
    first, *others = re.split(f"{name}-([0-9]+)-", tokenizer.apply_chat_template(named, tokenize=False))
    found, pieces = [int(number) for number in others[::2]], [first, *others[1::2]]
    if found != list(range(len(blanks))) or not all(pieces[1:-1]):
        raise ValueError(
            f"The tokenizer's chat template must write each of the chat's {len(blanks)} blanks once, in order, apart "
            f"from each other; it wrote {found}. Some templates leave parts of earlier turns out: put no blanks there."
        )
    return write_blanks(pieces, blanks), turns


def fill_chat(
    messages: Sequence[dict[str, Any]], turns: dict[int, list[str]], fillings: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the messages with the texts of `fillings` in the blanks; see [`write_chat`] for `turns`."""
    fillings = iter(fillings)
    filled = [dict(message) for message in messages]
    for index, (first, *others) in turns.items():
        filled[index]["content"] = first + "".join(next(fillings) + piece for piece in others)
    return filled


__all__ = ["InfillingPipeline", "fill_chat", "write_chat"]
