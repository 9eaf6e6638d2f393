"""The methods that the paper compares SDFT with. Read sdft.py first: they share its loop.

    python baselines.py --method sft --task science --output runs/science-sft
    python baselines.py --method reinvoke --model runs/science-sft/last --teacher-model smollm2
    python baselines.py --resume runs/science-sft

    method        tokens from                          loss                  teacher
    sft           demonstration                        -log p                none
    dft           demonstration                        -stopgrad(p) log p    none
    cpt           article text, in blocks              -log p                none
    teacher-sft   the base in context, sampled once    -log p                none
    teacher-kd    the base in context, sampled once    forward KL            the base, in context
    reinvoke      the student, on general prompts      KL                    --teacher-model

sft: supervised fine-tuning. dft: dynamic fine-tuning (Wu et al. 2025), SFT without the 1/p in its
gradient. cpt: continued pre-training. teacher-sft, teacher-kd: the offline rivals of section 4.6.
reinvoke: after SFT, on-policy distillation from the original model on everyday prompts.

A likelihood loss covers every token: first tokens are masked for the KL alone.
"""

import argparse
import dataclasses
import json
import sys

import torch
from tqdm import tqdm

from config import parse_config
from data import Pair, load_splits, name_left_out
from eval import in_parts, sample_base_answers
from kl_estimators import REDUCTIONS, completion_logprobs, sequence_mean
from optim import clip_gradients
from sampling import (
    Rollout,
    completion_hidden,
    output_head,
    pad_completions,
    sample_completions,
    stop_tokens,
)
from scoring import THOUGHTS, opened_thought
from sdft import (
    INTERRUPTED,
    PREFLIGHT,
    TEACHER_ANSWERS,
    micro_batches,
    random_stream,
    sdft_step,
    stop_if_not_finite,
    train,
    update,
)
from support.chat import encode_answer, encode_text, turn_end
from support.checkpoint import read_state
from support.console import replace_unprintable
from support.models import load_model, model_positions
from support.preflight import preflight_or_exit
from support.run import (
    check_same_data,
    digest_weights,
    finish,
    prepare,
    record_before,
    run_folder,
)


def likelihood_loss(token_logprobs_BT):
    """-log p of each token -> [B, T]: SFT, and CPT on plain text."""
    return -token_logprobs_BT


def dynamic_loss(token_logprobs_BT):
    """-stopgrad(p) log p of each token -> [B, T]: DFT."""
    return -token_logprobs_BT.exp().detach() * token_logprobs_BT


# ---- steps: like sdft_step(student, teacher, optimizer, batch, config) -> (metrics, rollout) ----


def likelihood_step(student, teacher, optimizer, batch, config, loss=likelihood_loss):
    """One step of SFT, CPT or DFT on the completions of the batch; there is no teacher."""
    rollout = given_rollout(batch, student.device)
    nll_B = torch.zeros(len(batch.pairs), device=student.device)
    for micro in micro_batches(batch, rollout, config):
        ids_BT, mask_BT = micro.completion_ids_BT, micro.completion_mask_BT
        hidden_BTD = completion_hidden(student, micro.student_prompts, ids_BT, mask_BT)
        logprobs_BT = completion_logprobs(hidden_BTD, output_head(student), ids_BT)
        loss_B = REDUCTIONS[config.reduction](loss(logprobs_BT), mask_BT)
        (loss_B.sum() / len(batch.pairs)).backward()
        nll_B[micro.rows] = sequence_mean(-logprobs_BT.detach(), mask_BT).float()
    grad_norm = clip_gradients(student, config.max_grad_norm)
    stop_if_not_finite(grad_norm, nll_B, batch)
    optimizer.step(batch.learning_rate)
    return {"nll": nll_B.mean().item(), "grad_norm": grad_norm}, rollout


def dynamic_step(student, teacher, optimizer, batch, config):
    return likelihood_step(student, teacher, optimizer, batch, config, loss=dynamic_loss)


def given_step(student, teacher, optimizer, batch, config):
    """SDFT's update on completions that were sampled once, from the base in context."""
    rollout = given_rollout(batch, student.device)
    return update(student, teacher, optimizer, batch, rollout, config), rollout


def given_rollout(batch, device):
    """The completions that the pairs of a batch bring, in the form of a Rollout."""
    completions = [pair.completion for pair in batch.pairs]
    ended = [ids[-1] in batch.eos_token_ids for ids in completions]
    padded = pad_completions(completions, batch.pad_token_id, device)
    return Rollout(*padded, torch.tensor(ended, device=device))


# ---- completions: a function of the run -> its pairs, each with a completion ----


def demonstrations(run):
    """What SFT and DFT train on: the assistant's turn, as the model's template writes it."""
    examples = {example.id: example for example in run.splits.train}
    kwargs = run.config.chat_template_kwargs
    pairs, plain = [], 0
    for pair in run.pairs:
        example = examples[pair.id]
        ids = encode_answer(run.tokenizer, example.messages, example.demonstration, kwargs)
        if ids is None:
            plain += 1
            ids = plain_answer(run, pair, example)
        pairs.append(dataclasses.replace(pair, teacher_prompt=[], completion=ids))
    if plain:
        print(
            f"demonstrations: the chat template writes no turn after {plain} of {len(pairs)} "
            "prompts; these train the demonstration and an EOS"
        )
    positions = model_positions(run.student.config)
    fitting = [
        pair
        for pair in pairs
        if positions is None or len(pair.student_prompt) + len(pair.completion) <= positions
    ]
    why = f"prompt and demonstration exceed the model's {positions} positions"
    remedy = "Shorten them, or choose a model with more positions"
    name_left_out(pairs, fitting, run.config.too_long, "left out", why, remedy)
    return fitting


def plain_answer(run, pair, example):
    """The demonstration and an EOS, where the template cannot say what a turn looks like."""
    text = example.demonstration
    opened = opened_thought(run.tokenizer.decode(pair.student_prompt[-16:]))
    closing = THOUGHTS.get(opened)
    if closing and closing not in text:
        # or the whole demonstration would be a thought, and no answer
        text = f"\n{closing}\n\n{text}"
    return encode_text(run.tokenizer, text, "assistant") + [end_of_answer(run)]


def article_blocks(run):
    """What CPT reads: every article once, one after the other, in blocks of max_prompt_tokens.

    Blocks are shorter, and a line says so, if the model has fewer positions.
    """
    length = run.config.max_prompt_tokens
    positions = model_positions(run.student.config)
    if positions is not None and positions < length:
        print(f"articles: blocks of {positions} tokens, which is all the positions of the model")
        length = positions
    begin = start_of_text(run.tokenizer)
    ids = []
    for text in dict.fromkeys(example.text for example in run.splits.train):
        ids += begin + encode_text(run.tokenizer, text, "user") + [end_of_text(run)]
    blocks = [ids[i : i + length] for i in range(0, len(ids), length)]
    return [Pair(f"block-{n}", b[:1], [], b[1:]) for n, b in enumerate(blocks) if len(b) > 1]


def teacher_answers(run):
    """What the base in context answers, once to each prompt; for teacher-kd it also scores.

    teacher-answers.json in the run's folder keeps the token ids, which a resumed run reads.
    """
    file = run.folder / "teacher-answers.json"
    if run.checkpoint is None:
        file.write_text(json.dumps(sample_in_context(run)) + "\n")
    completions = json.loads(file.read_text())
    sees_context = run.config.teacher != "none"
    return [
        dataclasses.replace(
            pair, teacher_prompt=pair.teacher_prompt if sees_context else [], completion=ids
        )
        for pair, ids in zip(run.pairs, completions, strict=True)
    ]


def sample_in_context(run):
    """The token ids of an answer to each of the teacher's prompts."""
    config = run.config
    stop_ids = stop_tokens(run.student, run.tokenizer)
    completions = []
    parts = in_parts(run.pairs, config.batch_size)
    for number, part in enumerate(tqdm(parts, desc="the teacher answers", leave=False)):
        draws = random_stream(config.seed, TEACHER_ANSWERS, number * config.batch_size)
        rollout = sample_completions(
            run.student,
            [pair.teacher_prompt for pair in part],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            uniforms_BT=torch.from_numpy(draws.random((len(part), config.max_new_tokens))),
            **stop_ids,
        )
        rows = zip(rollout.completion_ids_BT, rollout.completion_mask_BT, strict=True)
        completions += [ids_T[mask_T].tolist() for ids_T, mask_T in rows]
    return completions


def start_of_text(tokenizer):
    """[BOS] where the tokenizer begins a text with it, else []."""
    first = tokenizer.encode("A text.")[:1]
    return first if first == [tokenizer.bos_token_id] else []


def end_of_text(run):
    """The tokenizer's EOS, or the first that the model names."""
    own = run.tokenizer.eos_token_id
    return stop_tokens(run.student, run.tokenizer)["eos_token_ids"][0] if own is None else own


def end_of_answer(run):
    """The token that ends an assistant's turn in the template, else the EOS."""
    end = turn_end(run.tokenizer)
    return end_of_text(run) if end is None else end


# ---- python baselines.py ----

NO_TEACHER = {"teacher": "none", "skip_first_tokens": 0}
METHODS = {  # method -> (its completions, its step, the Config fields that it fixes)
    "sft": (demonstrations, likelihood_step, NO_TEACHER),
    "dft": (demonstrations, dynamic_step, NO_TEACHER),
    "cpt": (article_blocks, likelihood_step, NO_TEACHER | {"teacher_context": "none"}),
    "teacher-sft": (teacher_answers, likelihood_step, NO_TEACHER),
    "teacher-kd": (teacher_answers, given_step, {"teacher": "base", "divergence": "forward"}),
    # None: the student samples in each step, as in SDFT
    "reinvoke": (None, sdft_step, {"teacher": "model", "teacher_context": "none"}),
}
TRAINS_ON = {demonstrations: "demonstrations", article_blocks: "articles"}  # the rest: on rollouts


def main(argv=None):
    replace_unprintable()
    command = ["python", "baselines.py", *(sys.argv[1:] if argv is None else argv)]
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--method", choices=list(METHODS), help="a row of the table above")
    method = own.parse_known_args(command[2:])[0].method
    parser = argparse.ArgumentParser(parents=[own], allow_abbrev=False)
    fixed = METHODS[method][2] if method else {}
    config, checkpoint = parse_config(command, __doc__, fixed, parser)
    method = read_state(checkpoint)["method"] if checkpoint else method
    if method is None:
        parser.error(f"name a --method: {', '.join(METHODS)}")
    completions, step, _ = METHODS[method]
    with run_folder(config, checkpoint) as folder:
        check_method(method, config)
        splits = load_splits(config)
        trains_on = TRAINS_ON.get(completions, "rollouts")
        run = prepare(command, config, splits, folder, checkpoint, trains_on)
        run.method = method
        if method == "reinvoke":
            run.teacher_model = load_teacher(run)
            run.digests["teacher"] = digest_weights(run.teacher_model)
            if checkpoint is not None:
                check_same_data(read_state(checkpoint)["data"], run.digests)
            # drift is measured from the original model, which is the teacher here
            run.base = sample_base_answers(
                run.teacher_model,
                run.tokenizer,
                splits.general,
                config.general_tokens,
                config.chat_template_kwargs,
            )
        # demonstrations and articles cost nothing; the teacher's answers wait for the preflight,
        # whose estimate counts them
        samples_once = completions is teacher_answers
        if completions is not None and not samples_once:
            run.pairs = completions(run)
        if checkpoint is None:
            sampled_before = len(run.pairs) if samples_once else 0
            samples = completions is None or samples_once
            draws = random_stream(config.seed, PREFLIGHT, 0) if samples else None
            figures = preflight_or_exit(run, draws, samples_once, sampled_before)
            record_before(run, figures)
        if samples_once:
            run.pairs = completions(run)
        if not train(run, step):
            sys.exit(INTERRUPTED)
        finish(run)


def load_teacher(run):
    """--teacher-model; ValueError if its vocabulary is another: tokens are compared one by one."""
    name = run.config.teacher_model
    teacher, tokenizer = load_model(name, run.student.device, run.config.dtype)
    sizes = [model.get_output_embeddings().weight.shape[0] for model in (teacher, run.student)]
    if sizes[0] != sizes[1] or tokenizer.get_vocab() != run.tokenizer.get_vocab():
        raise ValueError(
            f"--teacher-model {name} and --model {run.config.model} have different vocabularies "
            f"({sizes[0]} and {sizes[1]} tokens); choose two models of one family"
        )
    return teacher


def check_method(method, config):
    """Reject flags that contradict the method, by name."""
    if method != "reinvoke" and config.rollouts_per_prompt != 1:
        raise ValueError(f"--method {method} has no rollouts; leave --rollouts-per-prompt out")
    if method == "cpt" and config.task != "knowledge":
        raise ValueError("--method cpt reads articles; only --task knowledge has them")


if __name__ == "__main__":
    main()
