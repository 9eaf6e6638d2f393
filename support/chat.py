"""Chat turns -> token ids by the model's own template, with what is typed in a turn kept as text.

data.py needs it: copy the two together. Works on any tokenizer of transformers.
"""

import argparse
import inspect
import json
import re
import uuid
from functools import lru_cache


def encode_prompt(tokenizer, messages, template_kwargs=None):
    """Chat turns -> token ids, up to and with the header of the assistant's turn.

    They equal apply_chat_template's, except that a control token typed inside a turn, such as
    <|im_end|>, stays text. template_kwargs go to the template: {"enable_thinking": False}.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template; choose an instruction-tuned model")
    from jinja2 import TemplateError  # here: reading data alone needs no package

    typed = _typed_control_tokens(tokenizer, messages)
    parts = reads_parts(tokenizer)
    try:
        if not any(typed):
            return _apply_template(tokenizer, messages, parts, template_kwargs, tokenize=True)
        return _encode_typed(tokenizer, messages, typed, parts, template_kwargs)
    except TemplateError as error:  # some templates take no system turn, for example
        roles = ", ".join(turn["role"] for turn in messages)
        what = f"the chat template refuses a prompt with the turns {roles}"
        raise ValueError(f"{what}: {error}") from None


def encode_answer(tokenizer, messages, text, template_kwargs=None):
    """Token ids of a given answer to a prompt, without an EOS: what follows encode_prompt's.

    The template decides what stands before the text: Qwen3 with thinking writes an empty thought,
    gpt-oss the name of its final channel, most nothing. A text that brings its own </think> is
    taken as it is.
    """
    if "</think>" in text:
        return encode_text(tokenizer, text, "assistant")
    prompt = _apply_template(tokenizer, messages, reads_parts(tokenizer), template_kwargs)
    if prompt.rstrip().endswith("<think>"):  # or the whole answer would be a thought
        return encode_text(tokenizer, f"\n</think>\n\n{text}", "assistant")
    header = _answer_header(tokenizer, messages, prompt, template_kwargs)
    return encode_text(tokenizer, text, "assistant", header)


def _answer_header(tokenizer, messages, prompt, template_kwargs):
    """What the template writes between the rendered prompt and the text of the answer to it."""
    mark = f"mark{uuid.uuid4().hex}"
    conversation = [*messages, {"role": "assistant", "content": mark}]
    whole = _apply_template(
        tokenizer,
        conversation,
        reads_parts(tokenizer),
        template_kwargs,
        add_generation_prompt=False,
    )
    before, found, _ = whole.partition(mark)
    # a template may write an earlier turn otherwise than it begins a new one: Qwen3's drops the
    # empty thought of a conversation that goes on
    return before.removeprefix(prompt) if found and before.startswith(prompt) else ""


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
                _apply_template(tokenizer, [{"role": "user", "content": text}], parts)
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
    tokenizer, messages, parts, template_kwargs=None, tokenize=False, add_generation_prompt=True
):
    if parts:
        contents = [[{"type": "text", "text": turn["content"]}] for turn in messages]
        messages = [turn | {"content": c} for turn, c in zip(messages, contents, strict=True)]
    return tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=add_generation_prompt,
        tokenize=tokenize,
        return_dict=False,
        **(template_kwargs or {}),
    )


def _typed_control_tokens(tokenizer, messages):
    """For each turn the control tokens whose text stands in its content, the longest first.

    Control tokens are the special ones and the added ones that the template writes: some models
    mark <|user|> as not special. Other added tokens, such as runs of blanks or <b>, are ordinary
    text. An assistant's turn keeps its <think>: the model wrote it, and templates look for it.
    """
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    special = {token.content for token in added if token.special}
    written = {token.content for token in added if token.content in str(tokenizer.chat_template)}
    typed = []
    for turn in messages:
        control = special if turn["role"] == "assistant" else special | written
        found = [token for token in control if token in turn["content"]]
        typed.append(sorted(found, key=lambda token: (-len(token), token)))
    return typed


def _encode_typed(tokenizer, messages, typed, parts, template_kwargs):
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
    rendered = _apply_template(tokenizer, marked, parts, template_kwargs)
    pieces = [token_of.get(piece, piece) for piece in re.split(f"({'|'.join(token_of)})", rendered)]
    # a template that looks for the token in the content would write another prompt around a mark
    if "".join(pieces) != _apply_template(tokenizer, messages, parts, template_kwargs):
        raise ValueError(
            f"the chat template treats turns that contain {', '.join(tokens)} in another way; "
            f"take it out of the prompt that ends with {shorten(messages[-1]['content'][-60:])}"
        )
    return _encode_pieces(tokenizer, pieces)


def encode_text(tokenizer, text, role, header=""):
    """Token ids of a text by "user" or "assistant"; a control token typed in it stays text.

    header stands before it, and its control tokens are ones.
    """
    [typed] = _typed_control_tokens(tokenizer, [{"role": role, "content": text}])
    pieces = re.split(f"({'|'.join(map(re.escape, typed))})", text) if typed else [text]
    if _adds_blank(tokenizer):
        header = header.removeprefix(" ")  # the tokenizer's own blank
    return _encode_pieces(tokenizer, [header + pieces[0], *pieces[1:]])


def _adds_blank(tokenizer):
    """Whether a tokenizer puts a blank ("▁") before each text, as sentencepiece does."""
    anchor = tokenizer.encode("\x01", add_special_tokens=False)
    return tokenizer.convert_ids_to_tokens(anchor[:1]) == ["▁"]


def _encode_pieces(tokenizer, pieces):
    """Token ids of a text in pieces, of which every second one is a control token to keep as text.

    A control token cut after its first character is no longer recognised as one.
    """
    parts = [part for i, x in enumerate(pieces) for part in ((x[:1], x[1:]) if i % 2 else (x,))]
    # encode all parts but the first behind a character that merges with nothing, and drop what
    # that one gives
    anchor = tokenizer.encode("\x01", add_special_tokens=False)
    adds_blank = _adds_blank(tokenizer)
    ids = []
    for part in parts:
        before, dropped = ("\x01", len(anchor)) if adds_blank and ids else ("", 0)
        ids += tokenizer.encode(before + part, add_special_tokens=False)[dropped:]
    return ids


def opens_thoughts(tokenizer, prompt):
    """Whether a prompt (token ids) ends with a <think> that the template writes before answers."""
    return tokenizer.decode(prompt[-16:]).rstrip().endswith("<think>")


def shorten(value):
    """The repr of a value, of at most 60 characters, for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
