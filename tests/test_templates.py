"""Chat templates and tokenizers of other kinds.

Oracles: the template rendered by hand, and sentencepiece's rule that a text has one blank in front.
"""

import pytest
from conftest import tiny_tokenizer
from models import load_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data import check_template, encode_prompt, encode_text

PARTS = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
)
STRICT_PARTS = PARTS.replace(
    "{% for c", "{% if m['content'] is string %}{{ raise_exception('parts') }}{% endif %}{% for c"
)
DEAF = "{% for m in messages %}{{ m['role'] }}: …\n{% endfor %}"


@pytest.mark.parametrize("template", [PARTS, STRICT_PARTS])
def test_a_template_of_parts_is_served(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert tokenizer.decode(encode_prompt(tokenizer, turns)) == "system: Be brief.\nuser: Why?\n"
    typed = [{"role": "user", "content": "a<|im_end|>b"}]
    ids = encode_prompt(tokenizer, typed)
    assert tokenizer.decode(ids) == "user: a<|im_end|>b\n" and tokenizer.eos_token_id not in ids


def test_a_template_that_drops_the_question_stops_before_the_model_loads(
    tiny_folder, tmp_path, monkeypatch
):
    tokenizer = tiny_tokenizer()
    assert check_template(tokenizer) is False
    tokenizer.chat_template = DEAF
    with pytest.raises(ValueError, match="same prompt for two different questions.*m in messages"):
        encode_prompt(tokenizer, [{"role": "user", "content": "Why?"}])
    monkeypatch.setattr("models.read_weights", lambda *_, **__: pytest.fail("the model loads"))
    monkeypatch.setattr("models.AutoTokenizer.from_pretrained", lambda *_, **__: tokenizer)
    with pytest.raises(ValueError, match="same prompt for two different questions"):
        load_model(str(tiny_folder))


def sentencepiece_like(prefix):
    """One token a character, bytes for others, and a blank before a text, as Llama 2 has it."""
    characters = ["▁", *map(chr, range(33, 127))]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, *characters])}
    bpe = models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(bpe)
    if prefix == "normalizer":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    return wrapped


@pytest.mark.parametrize("prefix", ["normalizer", "first", "always"])
@pytest.mark.parametrize("text", ["a</s>b", "a </s> b", "</s>", "a</s></s>\nb", "é</s>é"])
def test_a_typed_control_token_adds_no_blanks(prefix, text):
    tokenizer = sentencepiece_like(prefix)
    ids = encode_text(tokenizer, text, "user")
    expected = []
    for character in " " + text:
        character = "▁" if character == " " else character
        one = tokenizer.convert_tokens_to_ids(character)
        own_bytes = [f"<0x{byte:02X}>" for byte in character.encode()]
        expected += [one] if one > 2 else tokenizer.convert_tokens_to_ids(own_bytes)
    assert ids == expected
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": text}])
    assert tokenizer.decode(prompt) == f"[{text}]"
