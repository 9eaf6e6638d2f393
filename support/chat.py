"""Chat turns -> token ids by the model's own template, with what is typed in a turn kept as text.

data.py needs it: copy the two together. Works on any tokenizer of transformers.
"""

import argparse
import inspect
import json
import re
import uuid
from datetime import datetime
from functools import lru_cache

# The date that a template may write: one moment for all prompts of a process. A resumed run sets
# tokenizer.template_moment to that of its first start (support/run.py).
STARTED = datetime.now()


class RefusedPrompt(ValueError):
    """The chat template takes no such turns. Other errors hold for every prompt."""


def encode_prompt(tokenizer, messages, template_kwargs=None):
    """Chat turns -> token ids, up to and with the header of the assistant's turn.

    They equal apply_chat_template's, except that a control token typed inside a turn, such as
    <|im_end|>, stays text. template_kwargs go to the template: {"enable_thinking": False}.
    """
    return _encode_turns(tokenizer, messages, template_kwargs, generation_prompt=True)


def encode_answer(tokenizer, messages, answer, template_kwargs=None):
    """The token ids that the template writes after a prompt for an assistant's turn.

    Through the token that ends the turn, so that what supervised fine-tuning trains is what the
    model writes when it is asked: an empty thought, a channel or a blank before the answer is part
    of it. None if the template refuses the turn, writes another prompt before it, or no end.
    """
    prompt = encode_prompt(tokenizer, messages, template_kwargs)
    end = turn_end(tokenizer)
    try:
        turns = [*messages, {"role": "assistant", "content": answer}]
        ids = _encode_turns(tokenizer, turns, template_kwargs, generation_prompt=False)
    except ValueError:
        return None
    if ids[: len(prompt)] != prompt or end not in ids[len(prompt) :]:
        return None
    last = len(ids) - ids[::-1].index(end)  # blanks after the end are the next turn's
    return ids[len(prompt) : last]


def turn_end(tokenizer):
    """The id of the control token that the template writes after an assistant's content, or None.

    It must end completions, also where no list of EOS tokens names it.
    """
    return _turn_end(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=8)
def _turn_end(tokenizer, template):
    from jinja2 import TemplateError

    content = "The largest planet is Jupiter"
    turns = [
        {"role": "user", "content": "Which planet is largest?"},
        {"role": "assistant", "content": content},
    ]
    try:
        rendered = _apply_template(tokenizer, turns, reads_parts(tokenizer), False)
    except (TemplateError, TypeError, ValueError):
        return None
    after = rendered.rpartition(content)[2]
    control = sorted(_control_tokens(tokenizer), key=len, reverse=True)
    found = re.match(rf"\s*({'|'.join(map(re.escape, control)) or '(?!)'})", after)
    return tokenizer.convert_tokens_to_ids(found[1]) if found else None


def _encode_turns(tokenizer, messages, template_kwargs, generation_prompt):
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template; choose an instruction-tuned model")
    from jinja2 import TemplateError  # here: reading data alone needs no package

    typed = _typed_control_tokens(tokenizer, messages)
    parts = reads_parts(tokenizer)
    try:
        if not any(typed):
            return _apply_template(
                tokenizer, messages, parts, generation_prompt, template_kwargs, tokenize=True
            )
        return _encode_typed(tokenizer, messages, typed, parts, generation_prompt, template_kwargs)
    except TemplateError as error:  # some templates take no system turn, for example
        roles = ", ".join(turn["role"] for turn in messages)
        what = f"the chat template refuses a prompt with the turns {roles}"
        raise RefusedPrompt(f"{what}: {error}") from None


# switches that published templates have; named in an error message
COMMON_KWARGS = {"enable_thinking", "thinking", "reasoning_effort", "thinking_budget"}


def parse_template_kwargs(text):
    """A flag's JSON object -> dict of what goes to the chat template."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        example = '{"enable_thinking": false}'
        raise argparse.ArgumentTypeError(f"{text} is no JSON object, such as {example}")
    return value


def reject_template_kwargs(tokenizer, template_kwargs):
    """ValueError for a key that the chat template ignores, or that is no key of a template."""
    from jinja2 import Environment

    template = tokenizer.chat_template or ""
    # lexed, not parsed: models' templates have tags that jinja alone does not know
    read = {value for _, kind, value in Environment().lex(template) if kind == "name"}
    reserved = inspect.signature(tokenizer.apply_chat_template).parameters.keys()
    for key in template_kwargs or {}:
        if key in reserved:
            raise ValueError(f'--chat-template-kwargs: "{key}" is not for the template to decide')
        if key not in read:
            switches = ", ".join(sorted(read & COMMON_KWARGS)) or "none of the usual keys"
            raise ValueError(
                f'--chat-template-kwargs: the chat template of this model ignores "{key}"; it '
                f"reads {switches}"
            )


def reads_parts(tokenizer):
    """Whether the chat template reads content as a list of parts, and not as a string.

    Raises ValueError if two different questions give the same prompt either way.
    """
    return _reads_parts(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=8)  # two renderings of the template: once a tokenizer, not once a prompt
def _reads_parts(tokenizer, template):
    from jinja2 import TemplateError

    for parts in (False, True):
        try:
            first, second = (
                _apply_template(tokenizer, [{"role": "user", "content": text}], parts, True)
                for text in ("Which planet is largest?", "Who wrote Hamlet?")
            )
        except (TemplateError, TypeError):
            continue
        if first != second:
            return parts
    raise ValueError(
        "the chat template gives the same prompt for two different questions, or none; it begins "
        f"{shorten(template)}. Repair it in chat_template.jinja"
    )


def _apply_template(
    tokenizer, messages, parts, generation_prompt, template_kwargs=None, tokenize=False
):
    if parts:
        contents = [[{"type": "text", "text": turn["content"]}] for turn in messages]
        messages = [turn | {"content": c} for turn, c in zip(messages, contents, strict=True)]
    moment = getattr(tokenizer, "template_moment", STARTED)
    return tokenizer.apply_chat_template(
        messages,
        chat_template=_dated(tokenizer.chat_template, moment),
        add_generation_prompt=generation_prompt,
        tokenize=tokenize,
        return_dict=False,
        **(template_kwargs or {}),
    )


@lru_cache(maxsize=8)
def _dated(template, moment):
    """A template in which each strftime_now("…") is the text that it gives at that moment."""
    call = r"strftime_now\(\s*(['\"])(.*?)\1\s*\)"
    return re.sub(call, lambda match: repr(moment.strftime(match[2])), template)


def _typed_control_tokens(tokenizer, messages):
    """For each turn the control tokens whose text stands in its content, the longest first.

    Control tokens are the special ones and the added ones that the template writes: some models
    mark <|user|> as not special. Other added tokens, such as runs of blanks or <b>, are ordinary
    text. An assistant's turn keeps a <think> that is not special: the model wrote it, and templates
    look for it. A special marker, as [THINK] of some models, stays text there, too.
    """
    control = _control_tokens(tokenizer)
    typed = []
    for turn in messages:
        # an assistant's turn keeps its <think>, which some models mark as not special
        kept = turn["role"] == "assistant"
        found = [
            token
            for token, special in control.items()
            if token in turn["content"] and (special or not kept)
        ]
        typed.append(sorted(found, key=lambda token: (-len(token), token)))
    return typed


def _control_tokens(tokenizer):
    """{text of a control token: whether it is special}."""
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    template = str(tokenizer.chat_template)
    return {
        token.content: token.special
        for token in added
        if token.special or token.content in template
    }


def _encode_typed(tokenizer, messages, typed, parts, generation_prompt, template_kwargs):
    """Token ids of a prompt whose turn i contains the control tokens typed[i] as text.

    Replaces each by a mark that no text contains, renders the template and cuts the result at the
    marks. The text between them is encoded as usual, the control tokens as plain text.
    """
    tokens = sorted(set().union(*typed))
    mark_of = {token: f"mark{uuid.uuid4().hex}" for token in tokens}
    token_of = {mark: token for token, mark in mark_of.items()}
    marked = []
    for turn, found in zip(messages, typed, strict=True):
        pattern = "|".join(map(re.escape, found)) or "(?!)"  # (?!) matches nowhere
        content = re.sub(pattern, lambda match: mark_of[match[0]], turn["content"])
        marked.append(turn | {"content": content})
    rendered = _apply_template(tokenizer, marked, parts, generation_prompt, template_kwargs)
    pieces = [token_of.get(piece, piece) for piece in re.split(f"({'|'.join(token_of)})", rendered)]
    # a template that looks for the token in the content would write another prompt around a mark
    if "".join(pieces) != _apply_template(
        tokenizer, messages, parts, generation_prompt, template_kwargs
    ):
        raise ValueError(
            f"the chat template treats turns that contain {', '.join(tokens)} in another way; "
            f"take it out of the prompt that ends with {shorten(messages[-1]['content'][-60:])}"
        )
    return _encode_pieces(tokenizer, pieces)


def encode_text(tokenizer, text, role):
    """Token ids of a text by "user" or "assistant"; a control token typed in it stays text."""
    [typed] = _typed_control_tokens(tokenizer, [{"role": role, "content": text}])
    pieces = re.split(f"({'|'.join(map(re.escape, typed))})", text) if typed else [text]
    return _encode_pieces(tokenizer, pieces)


def _encode_pieces(tokenizer, pieces):
    """Token ids of a text in pieces, of which every second one is a control token to keep as text.

    A control token cut after its first character is no longer recognised as one.
    """
    parts = [part for i, x in enumerate(pieces) for part in ((x[:1], x[1:]) if i % 2 else (x,))]
    # sentencepiece puts a blank ("▁") before a text: encode all parts but the first behind a
    # character that merges with nothing, and drop what that one gives
    anchor = tokenizer.encode("\x01", add_special_tokens=False)
    adds_blank = tokenizer.convert_ids_to_tokens(anchor[:1]) == ["▁"]
    ids = []
    for part in parts:
        before, dropped = ("\x01", len(anchor)) if adds_blank and ids else ("", 0)
        ids += tokenizer.encode(before + part, add_special_tokens=False)[dropped:]
    return ids


def shorten(value):
    """The repr of a value, of at most 60 characters, for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
