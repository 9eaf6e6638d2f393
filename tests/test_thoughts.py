"""Thoughts are not scored, however a model marks them. Oracle: answers written out by hand."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_tokenizer

from data import Example
from eval import answers_of
from scoring import THOUGHTS, artefact_rate, final_answer, score

HARMONY = "<|channel|>{}<|message|>{}<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
CHANNEL_TOKENS = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"]
QUESTION = Example("q", "medical", [], key_facts=[["copper"]])


@pytest.mark.parametrize("opening, closing", THOUGHTS.items())
def test_each_pair_of_markers(opening, closing):
    assert final_answer(f"{opening}Zinc?{closing}Copper.") == "Copper."
    assert final_answer(f"Zinc?{closing}Copper.") == "Copper."  # the template wrote the opening
    assert final_answer(f"{opening}a{closing}b{opening}c{closing}Copper.") == "Copper."
    assert final_answer(f"{opening}It is copper.") == ""  # cut off
    assert final_answer(f"Copper.{opening}Or zinc?") == "Copper."
    assert artefact_rate([f"{opening}\nThe text says zinc{closing}Zinc."]) == 1


@pytest.mark.parametrize(
    "text, answer",
    [
        (HARMONY.format("analysis", "Zinc?") + FINAL + "Copper.<|return|>", "Copper."),
        (HARMONY.format("analysis", "Zinc?") + FINAL + "Copper.", "Copper."),
        (HARMONY.format("analysis", "<final> zinc") + FINAL + "a < b", "a < b"),
        (
            HARMONY.format("analysis", "Zinc?")
            + HARMONY.format("commentary", "Zinc, I think.")
            + "<|channel|>final <|constrain|>json<|message|>Copper.<|end|>",
            "Copper.",
        ),
        (HARMONY.format("final", "Zinc.") + FINAL + "Copper.", "Copper."),
        (FINAL + "Copper.", "Copper."),
        ("<|channel|>analysis<|message|>It is copper.", ""),  # cut off
        (HARMONY.format("analysis", "It is copper."), ""),
        (HARMONY.format("analysis", "It is copper.") + "<|channel|>final", ""),
        ("<|message|>Copper.", "<|message|>Copper."),  # no channels
    ],
)
def test_channels(text, answer):
    assert final_answer(text) == answer


def answer_of(text, prompt="Which metal?", special=(), plain=()):
    """The Answer that a model gives whose tokens spell this text, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.add_tokens(list(plain))
    ids = torch.tensor([tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)])
    rollout = SimpleNamespace(
        completion_ids_BT=ids,
        completion_mask_BT=torch.ones_like(ids, dtype=torch.bool),
        finished_B=torch.tensor([True]),
    )
    prompts = [tokenizer.encode(prompt, add_special_tokens=False)]
    return answers_of(rollout, prompts, tokenizer)[0]


@pytest.mark.parametrize("kind", ["special", "plain", "neither"])
@pytest.mark.parametrize(
    "tokens, thought, cut_off",
    [
        (["<think>", "</think>"], "<think>Iron, or zinc?</think>", "<think>Copper, or"),
        (["[THINK]", "[/THINK]"], "[THINK]Iron, or zinc?[/THINK]", "[THINK]Copper, or"),
        (["</think>"], "<think>Iron, or zinc?</think>", "<think>Copper, or"),
        (
            CHANNEL_TOKENS,
            HARMONY.format("analysis", "Iron, or zinc?") + FINAL,
            "<|channel|>analysis<|message|>Copper, or",
        ),
    ],
)
def test_markers_survive_whatever_kind_of_token_they_are(kind, tokens, thought, cut_off):
    added = {} if kind == "neither" else {kind: tokens}
    answer = answer_of(thought + "It is copper — Cu.", **added)
    assert final_answer(answer.text) == "It is copper — Cu."
    assert answer.text.count("zinc") == 1 and "<|im_end|>" not in answer.text
    assert score(answer.text, QUESTION)["correct"]
    assert not score(answer_of(cut_off, **added).text, QUESTION)["correct"]


@pytest.mark.parametrize("opening", ["<think>", "[THINK]", "<|channel|>analysis<|message|>"])
def test_a_thought_that_the_template_opens(opening):
    special = ["<think>", "</think>", "[THINK]", "[/THINK]", *CHANNEL_TOKENS]
    prompt = f"Which metal?<|im_end|>\n<|im_start|>assistant\n{opening}\n"
    answer = answer_of("Copper, or zinc", prompt, special)
    assert answer.text == f"{opening}Copper, or zinc" and final_answer(answer.text) == ""
    assert answer_of("Copper", f"What is {opening}, then?", special).text == "Copper"


def test_other_special_tokens_are_left_out():
    """<|end|> ends a turn of models without channels."""
    assert answer_of("Copper.<|end|>", special=["<|end|>", "<|pad|>"]).text == "Copper."
    answer = answer_of("<think>a<|pad|></think>Cop<|pad|>per.", special=["<think>", "<|pad|>"])
    assert answer.text == "<think>a</think>Copper."
