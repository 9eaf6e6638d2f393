"""Accuracy, and drift from the base model.

python eval.py --model runs/science/last --task science
python eval.py --model smollm2 --task science --split validation --context demonstration
"""

import argparse
import json
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
import scoring
from kl_estimators import compare_completions
from lora import share_base
from sampling import completion_hidden, output_head, sample_completions, stop_tokens
from support.chat import encode_prompt, parse_template_kwargs, reject_template_kwargs
from support.console import replace_unprintable
from support.judge import TIMEOUT, choose_scorer
from support.models import (
    best_device,
    configure_cuda,
    describe_machine,
    is_out_of_memory,
    load_model,
)
from support.tables import format_table

# ---- accuracy ----


@dataclass
class Answer:
    """One answer, greedy or sampled."""

    text: str  # thoughts and their markers included, also if the template wrote the first marker
    ids: list  # through the EOS, if there is one
    finished: bool
    scores: dict | None = None  # {"correct": …}; a judge that failed gives {"not_judged": True}


def evaluate(
    model,
    tokenizer,
    examples,
    *,
    context="none",
    instruction="thinking",
    own_template=None,
    template_kwargs=None,
    scorer=scoring.score_by_rule,
    max_new_tokens,
    batch_size=32,
    description=None,
):
    """Greedy accuracy -> (summary dict, list of Answer).

    scorer(examples, answers) is the rule or a judge (support/judge.py). summary: n; the share of
    each score ("correct", "lenient", "well_formed", "not_judged"); standard_error of "correct";
    finished, the share that reached an EOS; completion_tokens, their mean number; artefacts, the
    share that opens with words about what only a teacher sees.
    """
    messages = [
        data.teacher_messages(example, context, instruction, own_template) for example in examples
    ]
    prompts = [encode_prompt(tokenizer, turns, template_kwargs) for turns in messages]
    answers = answer_greedily(model, tokenizer, prompts, max_new_tokens, batch_size, description)
    return score_answers(examples, answers, scorer), answers


def score_answers(examples, answers, scorer):
    """Keep the scores of each answer in it -> their summary."""
    for answer, scores in zip(answers, scorer(examples, answers), strict=True):
        answer.scores = scores
    return scoring.summarise(answers)


def answer_greedily(model, tokenizer, prompts, max_new_tokens, batch_size=32, description=None):
    """Greedy completions of prompts (lists of token ids) -> list of Answer, in the same order."""
    return sample_answers(
        model,
        tokenizer,
        prompts,
        temperature=0,
        uniforms_BT=torch.zeros(len(prompts), max_new_tokens),  # greedy answers use none
        batch_size=batch_size,
        description=description,
    )


def sample_answers(
    model, tokenizer, prompts, *, temperature, uniforms_BT, batch_size=32, description=None
):
    """Sampled completions of prompts (lists of token ids) -> list of Answer, in the same order.

    uniforms_BT [len(prompts), most new tokens] holds the number that each token is drawn with, so
    batch_size changes no draw.
    """
    stop_ids = stop_tokens(model, tokenizer)
    answers = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # less padding
    quiet = description is None
    for rows in tqdm(in_parts(by_length, batch_size), desc=description, leave=False, disable=quiet):
        batch = [prompts[i] for i in rows]
        rollout = sample_completions(
            model,
            batch,
            max_new_tokens=uniforms_BT.shape[1],
            temperature=temperature,
            uniforms_BT=uniforms_BT[rows],
            **stop_ids,
        )
        for i, answer in zip(rows, answers_of(rollout, batch, tokenizer), strict=True):
            answers[i] = answer
    return answers


def answers_of(rollout, prompts, tokenizer):
    """The completions of a rollout as a list of Answer.

    Special tokens are left out, but not those that mark thoughts: final_answer looks for them.
    """
    special = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    markers = scoring.thought_markers(special.values())
    marker_of = {i: content for i, content in special.items() if content in markers}
    answers = []
    for row, prompt in enumerate(prompts):
        ids = rollout.completion_ids_BT[row][rollout.completion_mask_BT[row]].tolist()
        # or thoughts that the length limit cut off would look like an answer
        text = scoring.opened_thought(tokenizer.decode(prompt[-16:]))
        piece = []
        for i in ids:
            if i in marker_of:
                text += tokenizer.decode(piece, skip_special_tokens=True) + marker_of[i]
                piece = []
            else:
                piece.append(i)
        text += tokenizer.decode(piece, skip_special_tokens=True)
        answers.append(Answer(text, ids, bool(rollout.finished_B[row])))
    return answers


def in_parts(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]


# ---- where two models, or one model with two prompts, disagree ----


def token_divergence(student, student_prompts, teacher, teacher_prompts, completions, divergence):
    """compare_completions on given completions (ids_BT, mask_BT) -> its three [B, T] tensors."""
    ids_BT, mask_BT = completions
    student_hidden_BTD = completion_hidden(student, student_prompts, ids_BT, mask_BT)
    teacher_hidden_BTD = completion_hidden(teacher, teacher_prompts, ids_BT, mask_BT)
    return compare_completions(
        student_hidden_BTD,
        output_head(student),
        teacher_hidden_BTD,
        output_head(teacher),
        ids_BT,
        divergence,
    )


# ---- drift: how far a model has moved on what it was never trained on ----

DRIFT_ROWS = 8  # in one pass


@dataclass
class BaseAnswers:
    """The base model's sampled answers to general prompts, and its states at each token."""

    prompts: list
    completion_ids_BT: torch.Tensor
    completion_mask_BT: torch.Tensor
    hidden_BTD: torch.Tensor
    head: torch.nn.Module


@torch.no_grad()
def sample_base_answers(base_model, tokenizer, examples, max_new_tokens, template_kwargs=None):
    """Answers of the base model to general prompts, sampled at temperature 1 -> BaseAnswers."""
    prompts = [encode_prompt(tokenizer, example.messages, template_kwargs) for example in examples]
    shape = len(prompts), max_new_tokens
    rollout = sample_completions(
        base_model,
        prompts,
        max_new_tokens=max_new_tokens,
        # no seed of the run: the same draws for every run, so that their drifts compare
        uniforms_BT=torch.from_numpy(np.random.default_rng(0).random(shape)),
        **stop_tokens(base_model, tokenizer),
    )
    ids_BT, mask_BT = rollout.completion_ids_BT, rollout.completion_mask_BT
    hidden_BTD = hidden_in_parts(base_model, prompts, ids_BT, mask_BT)
    # training changes the head, so it is copied; beside adapters it is frozen, and shared
    head = share_base(output_head(base_model))
    return BaseAnswers(prompts, ids_BT, mask_BT, hidden_BTD, head)


def hidden_in_parts(model, prompts, ids_BT, mask_BT):
    """completion_hidden of many rows, the same rows at a time as in drift_from_base."""
    parts = in_parts(list(range(len(prompts))), DRIFT_ROWS)
    hidden = [
        completion_hidden(model, [prompts[i] for i in rows], ids_BT[rows], mask_BT[rows])
        for rows in parts
    ]
    return torch.cat(hidden)


@torch.no_grad()
def drift_from_base(base, model):
    """Mean over tokens of KL(base || model) on the base model's answers, in nats; 0 for itself.

    It measures forgetting, on prompts that are never trained on. Every model is measured on the
    same tokens, so models compare.
    """
    total = 0.0
    for rows in in_parts(list(range(len(base.prompts))), DRIFT_ROWS):
        prompts = [base.prompts[i] for i in rows]
        ids_BT, mask_BT = base.completion_ids_BT[rows], base.completion_mask_BT[rows]
        hidden_BTD = completion_hidden(model, prompts, ids_BT, mask_BT)
        # with the base in the teacher's place, KL(base || model) is "forward"
        kl_BT, _, _ = compare_completions(
            hidden_BTD, output_head(model), base.hidden_BTD[rows], base.head, ids_BT, "forward"
        )
        total += kl_BT[mask_BT].sum().item()
    return total / base.completion_mask_BT.sum().item()


# ---- python eval.py ----


def config_of_run(model):
    """The configuration of the run whose last/ or best/ a model's folder is; else defaults."""
    run = {
        "max_new_tokens": 64,
        "dtype": "float32",
        "teacher_instruction": "thinking",
        "teacher_template": None,
        "chat_template_kwargs": None,
    }
    with suppress(OSError, ValueError, KeyError, TypeError):
        run |= json.loads((Path(model).parent / "before.json").read_text())["config"]
    return run | {"answer_tokens": max(run["max_new_tokens"], run.get("eval_new_tokens", 0))}


def file_to_write(path):
    """A path with its ~, whose folder now exists; ValueError if no file can be written there."""
    path = path.expanduser()
    is_new = not path.exists() and not path.is_symlink()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}; name another file") from None
    return path


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder, hub id, or smollm2")
    add("--task", required=True, choices=[task for task in data.TASKS if task != "general"])
    add("--split", default="test", help="file of the data set (default: test)")
    add("--data", help="folder with our JSONL files (default: our own samples)")
    context_help = "what stands beside the question (default: none; what --template shows)"
    add("--context", choices=data.CONTEXTS, help=context_help)
    add("--instruction", choices=list(data.TEACHER_INSTRUCTIONS), help="end of a teacher's prompt")
    add("--template", metavar="FILE", help="own text of a teacher's prompt (default: its run's)")
    kwargs_help = "JSON that the chat template reads (default: its run's)"
    add("--chat-template-kwargs", type=parse_template_kwargs, metavar="JSON", help=kwargs_help)
    add("--judge", metavar="URL", help="a model at this server scores knowledge and medical")
    add("--judge-model", metavar="NAME", help="its name there, if the server needs one")
    timeout_help = f"seconds for a verdict (default: {TIMEOUT})"
    add("--judge-timeout", type=float, default=TIMEOUT, help=timeout_help)
    add("--judge-repeats", type=int, default=1, metavar="N", help="verdicts for each answer")
    add("--limit", type=int, help="only the first N examples")
    add("--max-new-tokens", type=int, help="longest answer (default: its run's, else 64)")
    add("--dtype", choices=["float32", "bfloat16"], help="(default: its run's, else float32)")
    add("--batch-size", type=int, default=32)
    add("--json", type=Path, help="also write summary and answers to this file")
    args = parser.parse_args(argv)
    for name in ("limit", "max_new_tokens", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: it must be at least 1")
    run = config_of_run(os.path.expanduser(args.model))
    length = args.max_new_tokens or run["answer_tokens"]
    instruction = args.instruction or run["teacher_instruction"]
    template_kwargs = args.chat_template_kwargs
    if template_kwargs is None:
        template_kwargs = run["chat_template_kwargs"]
    if args.instruction and args.template:
        parser.error("--template replaces the words of --instruction")
    if args.instruction and "demonstration" not in (args.context or "none"):
        parser.error("--instruction needs --context demonstration or text+demonstration")
    own_template = None if args.instruction else run["teacher_template"]
    replace_unprintable()
    try:
        if args.template:
            own_template = data.read_template(Path(args.template).expanduser())
            shown = data.context_of_template(own_template)
            if args.context not in (None, shown):
                raise ValueError(f"--template {args.template} shows {shown}, not {args.context}")
            args.context = shown
        args.context = args.context or "none"
        if own_template and "demonstration" in args.context:
            shown = data.context_of_template(own_template)
            if shown != args.context:
                raise ValueError(
                    f"the template of this model's run shows {shown}: give --context {shown}, or "
                    "name another --template or an --instruction"
                )
        folder = args.data and Path(args.data).expanduser()
        examples = data.load_task(args.task, args.split, folder)[: args.limit]
        for example in examples:
            data.check_context(example, args.context)
        scorer = choose_scorer(
            args.task,
            examples,
            args.judge,
            args.judge_model,
            args.judge_timeout,
            args.judge_repeats,
        )
        json_file = args.json and file_to_write(args.json)
        configure_cuda()
        model_name = os.path.expanduser(args.model)
        model, tokenizer = load_model(model_name, best_device(), args.dtype or run["dtype"])
        reject_template_kwargs(tokenizer, template_kwargs)
        summary, answers = evaluate(
            model,
            tokenizer,
            examples,
            context=args.context,
            instruction=instruction,
            own_template=own_template,
            template_kwargs=template_kwargs,
            scorer=scorer,
            max_new_tokens=length,
            batch_size=args.batch_size,
            description="answering",
        )
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing was written")
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            sys.exit(f"error: out of memory; lower --batch-size, now {args.batch_size}")
        if isinstance(error, RuntimeError):
            raise
        sys.exit(f"error: {error}")
    label = f"{args.task} {args.split}, context {args.context}, at most {length} tokens"
    print(format_table([(label, summary)]))
    if json_file:
        command = shlex.join(["python", "eval.py", *(argv or sys.argv[1:])])
        record = {"command": command, "summary": summary, "machine": describe_machine()}
        pairs = zip(examples, answers, strict=True)
        record["answers"] = [{"id": e.id, "answer": a.text, "scores": a.scores} for e, a in pairs]
        json_file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
