"""The assistant's turn: what SFT trains, what ends a completion, the date that a template writes.

Oracle: the template's own rendering of the whole chat, cut by hand after the prompt's.
"""

from datetime import datetime
from types import SimpleNamespace

import pytest
from conftest import tiny_llama, tiny_tokenizer

import baselines
from config import Config
from data import Example, Pair
from sampling import stop_tokens
from support.chat import encode_answer, encode_prompt, turn_end
from support.models import add_turn_end, load_model

QUESTION = [{"role": "user", "content": "What is tin?"}]
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {  # name -> (template, special tokens, what is trained for the answer "A metal.")
    "eos": (TURNS + "<|im_end|>\n{% endfor %}" + HEADER, [], "A metal.<|im_end|>"),
    "another end": (TURNS + "<end>\n{% endfor %}" + HEADER, ["<end>"], "A metal.<end>"),
    "a blank before the end": (
        TURNS + " <end>{% endfor %}" + HEADER,
        ["<end>"],
        "A metal. <end>",
    ),
    "an empty thought": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}" + HEADER,
        [],
        "<think>\n\n</think>\n\nA metal.<|im_end|>",
    ),
    "a channel": (
        "{% for m in messages %}<start>{{ m['role'] }}"
        "{% if m['role'] == 'assistant' %}<channel>final{% endif %}"
        "<message>{{ m['content'] }}"
        "{% if loop.last and m['role'] == 'assistant' %}<return>{% else %}<end>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<start>assistant{% endif %}",
        ["<start>", "<channel>", "<message>", "<return>", "<end>"],
        "<channel>final<message>A metal.<return>",
    ),
}


def tokenizer_with(template, special=()):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_sft_trains_the_turn_that_the_template_writes(name):
    template, special, wanted = TEMPLATES[name]
    tokenizer = tokenizer_with(template, special)
    ids = encode_answer(tokenizer, QUESTION, "A metal.")
    assert tokenizer.decode(ids) == wanted
    whole = tokenizer.apply_chat_template(
        [*QUESTION, {"role": "assistant", "content": "A metal."}],
        tokenize=True,
        return_dict=False,
    )
    prompt = encode_prompt(tokenizer, QUESTION)
    assert whole[: len(prompt) + len(ids)] == prompt + ids
    assert tokenizer.decode([turn_end(tokenizer)]) in wanted


def test_a_control_token_typed_in_a_demonstration_stays_text():
    tokenizer = tokenizer_with(*TEMPLATES["another end"][:2])
    end = turn_end(tokenizer)
    ids = encode_answer(tokenizer, QUESTION, "Write <end> last.")
    assert ids.count(end) == 1 and ids[-1] == end
    assert tokenizer.decode(ids) == "Write <end> last.<end>"


def run_of(tokenizer, examples, **config):
    model = tiny_llama(vocab_size=len(tokenizer))
    pairs = [Pair(e.id, encode_prompt(tokenizer, e.messages), []) for e in examples]
    return SimpleNamespace(
        student=model,
        tokenizer=tokenizer,
        pairs=pairs,
        splits=SimpleNamespace(train=examples),
        config=Config(**config),
    )


def example(demonstration, id="a"):
    return Example(id, "medical", QUESTION, demonstration=demonstration)


def test_where_the_template_writes_another_prompt_the_demonstration_is_trained_and_said(capsys):
    """The prompt opens a thought that the turn of a finished chat does not have."""
    template = TURNS + "<|im_end|>\n{% endfor %}" + HEADER.replace("\n{%", "\n<think>\n{%")
    tokenizer = tokenizer_with(template)
    assert encode_answer(tokenizer, QUESTION, "A metal.") is None
    [pair] = baselines.demonstrations(run_of(tokenizer, [example("A metal.")]))
    assert tokenizer.decode(pair.completion) == "\n</think>\n\nA metal.<|im_end|>"
    assert "writes no turn after 1 of 1 prompts" in capsys.readouterr().out


def test_the_end_of_a_turn_ends_completions_and_is_saved(tmp_path, capsys):
    tokenizer = tokenizer_with(*TEMPLATES["another end"][:2])
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "in")
    model, tokenizer = load_model(str(tmp_path / "in"))
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert end in stop_tokens(model, tokenizer)["eos_token_ids"]
    assert "<end> ends completions, too" in capsys.readouterr().out
    model.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    load_model(str(tmp_path / "out"))
    assert capsys.readouterr().out == ""  # generation_config has it


def test_an_end_that_is_named_already_changes_nothing(capsys):
    tokenizer = tokenizer_with(TEMPLATES["eos"][0])
    model = tiny_llama(vocab_size=len(tokenizer))
    before = stop_tokens(model, tokenizer)
    add_turn_end(model, tokenizer)
    assert stop_tokens(model, tokenizer) == before and capsys.readouterr().out == ""


def test_a_template_without_an_end_adds_none():
    tokenizer = tokenizer_with(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    assert turn_end(tokenizer) is None and encode_answer(tokenizer, QUESTION, "A metal.") is None


def test_a_template_writes_the_date_of_the_runs_first_start():
    template = "{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%H:%M\") }}" + TEMPLATES["eos"][0]
    tokenizer = tokenizer_with(template)
    tokenizer.template_moment = datetime(2031, 5, 4, 6, 7)
    assert tokenizer.decode(encode_prompt(tokenizer, QUESTION)).startswith("04 May 2031 06:07")


def test_articles_begin_with_the_token_that_the_tokenizer_writes_before_a_text(monkeypatch):
    tokenizer = tiny_tokenizer()
    articles = [Example("a", "knowledge", QUESTION, demonstration="x", text="Tin is soft.")]
    run = run_of(tokenizer, articles, task="knowledge", max_prompt_tokens=100)
    [plain] = baselines.article_blocks(run)
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer,
        "encode",
        lambda text, add_special_tokens=True: (
            [tokenizer.bos_token_id] * add_special_tokens + encode(text, add_special_tokens=False)
        ),
    )
    [with_bos] = baselines.article_blocks(run)
    assert with_bos.student_prompt == [tokenizer.bos_token_id]
    assert with_bos.completion == plain.student_prompt + plain.completion


def test_a_demonstration_beyond_the_positions_is_left_out_by_name(capsys):
    tokenizer = tokenizer_with(TEMPLATES["eos"][0])
    examples = [example("A metal."), example("long " * 500, id="the-long-one")]
    run = run_of(tokenizer, examples)
    run.student.config.max_position_embeddings = 200
    assert [pair.id for pair in baselines.demonstrations(run)] == ["a"]
    assert "200 positions: the-long-one" in capsys.readouterr().out
    run.config.too_long = "stop"
    with pytest.raises(ValueError, match="the-long-one"):
        baselines.demonstrations(run)
