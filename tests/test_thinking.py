"""Thinking on or off: what a chat template reads beside the turns.

Oracle: the template rendered by jinja alone, and the tokens that it is cut into.
"""

import json

import jinja2
import pytest
from conftest import tiny_llama, tiny_tokenizer

import baselines
import eval as evaluation
import sdft
from config import Config
from data import Example, encode_pair, teacher_messages
from support.chat import encode_answer, encode_prompt, reject_template_kwargs

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3's, without tools and several turns: the last answer of a conversation has a thought
QWEN3 = """{#- set enable_thinking to false, and ignore thinking_budget -#}
{%- for m in messages %}{%- if m.role != "assistant" %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- else %}{%- set content = m.content %}{%- set thought = '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
{{- content.lstrip('\n') + '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""
# gpt-oss's: the effort stands in a system turn, answers in a channel
GPT_OSS = """{%- if reasoning_effort is not defined %}
{%- set reasoning_effort = "medium" %}{%- endif %}
{{- "<|start|>system<|message|>Reasoning: " + reasoning_effort + "<|end|>" }}
{%- for m in messages %}{%- if m.role == "assistant" %}
{{- "<|start|>assistant<|channel|>final<|message|>" + m.content + "<|return|>" }}
{%- else %}{{- "<|start|>" + m.role + "<|message|>" + m.content + "<|end|>" }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}<|start|>assistant{%- endif %}"""
CONTROL = [
    "<|start|>",
    "<|message|>",
    "<|end|>",
    "<|channel|>",
    "<|return|>",
    "<think>",
    "</think>",
]
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]

CASES = [
    (PLAIN, None, "<|im_end|>"),
    (QWEN3, None, "<|im_end|>"),
    (QWEN3, {"enable_thinking": True}, "<|im_end|>"),
    (QWEN3, {"enable_thinking": False}, "<|im_end|>"),
    (GPT_OSS, None, "<|return|>"),
    (GPT_OSS, {"reasoning_effort": "low"}, "<|return|>"),
    (GPT_OSS, {"reasoning_effort": "high"}, "<|return|>"),
]


def with_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(CONTROL, special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])  # not special, as in Qwen3
    tokenizer.chat_template = template
    return tokenizer


def rendered(template, messages, kwargs, add_generation_prompt=True):
    values = {"messages": messages, "add_generation_prompt": add_generation_prompt}
    return jinja2.Environment().from_string(template).render(**values | (kwargs or {}))


def encoded(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("template, kwargs, end", CASES)
@pytest.mark.parametrize("question", ["Why?", "What is <|im_end|> for?"])
def test_student_and_teacher_see_what_the_template_renders(template, kwargs, end, question):
    tokenizer = with_template(template)
    turns = [TURNS[0], {"role": "user", "content": question}]
    example = Example("1", "science", turns, demonstration="So.", answer="A")
    pair = encode_pair(tokenizer, example, Config(chat_template_kwargs=kwargs))
    for ids, messages in (
        (pair.student_prompt, turns),
        (pair.teacher_prompt, teacher_messages(example)),
    ):
        text = rendered(template, messages, kwargs)
        assert tokenizer.decode(ids) == text
        if question == "Why?":
            assert ids == encoded(tokenizer, text)


@pytest.mark.parametrize("template, kwargs, end", CASES)
@pytest.mark.parametrize("demonstration", ["Because.\nIt is so.", "Say <|im_end|> now."])
def test_a_demonstration_follows_the_prompt_as_the_template_writes_it(
    template, kwargs, end, demonstration
):
    tokenizer = with_template(template)
    conversation = [*TURNS, {"role": "assistant", "content": demonstration}]
    whole = rendered(template, conversation, kwargs, add_generation_prompt=False)
    prompt = encode_prompt(tokenizer, TURNS, kwargs)
    ids = encode_answer(tokenizer, TURNS, demonstration, kwargs)
    whole = whole.removesuffix("\n")  # after the end of the turn
    assert tokenizer.decode(prompt + ids) == whole and whole.endswith(end)
    if "<|im_end|>" in demonstration:
        ends = tokenizer.convert_tokens_to_ids([end])
        assert [i for i in ids if i in {*ends, tokenizer.eos_token_id}] == ends
    else:
        assert prompt + ids == encoded(tokenizer, whole)


def test_what_a_template_writes_before_an_answer():
    header = {
        (PLAIN, None, "<|im_end|>"): "",
        (QWEN3, None, "<|im_end|>"): "<think>\n\n</think>\n\n",
        (QWEN3, False, "<|im_end|>"): "",  # the prompt has it
        (GPT_OSS, None, "<|return|>"): "<|channel|>final<|message|>",
    }
    for (template, thinking, end), expected in header.items():
        kwargs = None if thinking is None else {"enable_thinking": thinking}
        ids = encode_answer(with_template(template), TURNS, "So.", kwargs)
        assert with_template(template).decode(ids) == expected + "So." + end


def test_a_demonstration_with_its_own_thought_keeps_it():
    tokenizer = with_template(QWEN3)
    text = "<think>\nHm.\n</think>\n\nSo."
    assert tokenizer.decode(encode_answer(tokenizer, TURNS, text)) == text + "<|im_end|>"


@pytest.mark.parametrize(
    "template, key, message",
    [
        (QWEN3, "enable_thinking", None),
        (QWEN3, "thinking_budget", 'ignores "thinking_budget"; it reads enable_thinking'),
        (GPT_OSS, "reasoning_effort", None),
        (GPT_OSS, "enable_thinking", 'ignores "enable_thinking"; it reads reasoning_effort'),
        (PLAIN, "enable_thinking", 'ignores "enable_thinking"; it reads none of the usual keys'),
        (QWEN3, "add_generation_prompt", '"add_generation_prompt" is not for the template'),
        (QWEN3, "tokenize", '"tokenize" is not for the template'),
        (PLAIN + "{% generation %}{% endgeneration %}{{ extra }}", "extra", None),
        (PLAIN + "extra {{ 'extra' }}{# extra #}", "extra", 'ignores "extra"'),
    ],
)
def test_a_key_that_a_template_ignores_is_named(template, key, message):
    """Comments, text and strings of a template do not read a key."""
    if message is None:
        reject_template_kwargs(with_template(template), {key: True})
    else:
        with pytest.raises(ValueError, match=message):
            reject_template_kwargs(with_template(template), {key: True})


@pytest.mark.parametrize("text", ["enable_thinking=false", "[1]", "null", "{'a': 1}"])
def test_the_flag_is_a_json_object(text, capsys):
    with pytest.raises(SystemExit):
        sdft.main(["--chat-template-kwargs", text])
    assert "is no JSON object, such as" in capsys.readouterr().err


# ---- a run ----

SHORT = """--task science --preset laptop --steps 1 --batch-size 2 --eval-examples 2
    --general-tokens 4 --max-new-tokens 6 --eval-new-tokens 6 --force
    --max-prompt-tokens 1000 --max-teacher-prompt-tokens 1500""".split()


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3-like")
    tokenizer = with_template(QWEN3)
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(monkeypatch):
    """Every prompt that is sampled from, as text."""
    seen, tokenizer = [], with_template(QWEN3)
    for module in (sdft, evaluation):
        plain = module.sample_completions

        def record(model, prompt_ids, plain=plain, **how):
            seen.extend(tokenizer.decode(prompt) for prompt in prompt_ids)
            return plain(model, prompt_ids, **how)

        monkeypatch.setattr(module, "sample_completions", record)
    return seen


def test_sampling_preflight_drift_and_eval_do_not_think(qwen3_folder, tmp_path, prompts):
    off = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    kwargs = ["--chat-template-kwargs", '{"enable_thinking": false}']
    run = tmp_path / "run"
    sdft.main([*SHORT, "--model", str(qwen3_folder), "--output", str(run), *kwargs])
    assert len(prompts) > 40 and all(prompt.endswith(off) for prompt in prompts)
    config = json.loads((run / "before.json").read_text())["config"]
    assert config["chat_template_kwargs"] == {"enable_thinking": False}
    prompts.clear()
    words = ["--model", str(run / "last"), "--task", "science", "--limit", "2"]
    evaluation.main(words)
    assert len(prompts) == 2 and all(prompt.endswith(off) for prompt in prompts)
    prompts.clear()
    evaluation.main([*words, "--chat-template-kwargs", "{}"])
    assert all(prompt.endswith("<|im_start|>assistant\n") for prompt in prompts)
    # kept on resume, and refused if another
    sdft.main(["--resume", str(run)])
    with pytest.raises(SystemExit, match="--chat-template-kwargs is .*True.*, was .*False"):
        sdft.main(["--resume", str(run), "--chat-template-kwargs", '{"enable_thinking": true}'])


def test_an_ignored_key_stops_a_run_and_an_evaluation(tiny_folder, tmp_path):
    kwargs = ["--chat-template-kwargs", '{"enable_thinking": false}']
    for main in (sdft.main, lambda words: baselines.main(["--method", "sft", *words])):
        with pytest.raises(SystemExit, match='ignores "enable_thinking"'):
            main([*SHORT, "--model", str(tiny_folder), "--output", str(tmp_path / "run"), *kwargs])
    with pytest.raises(SystemExit, match='ignores "enable_thinking"'):
        evaluation.main(["--model", str(tiny_folder), "--task", "science", *kwargs])
