"""Forgetting by more than one measure: how trained models answer what they were not trained on.

    python extras/manner.py runs/science/last --base smollm2 --task science

On the 32 general prompts that drift is measured on, with answers of up to 256 tokens:

drift_from_base    KL(base || model) in nats a token, on the base model's sampled answers
completion_tokens, finished    of the model's own greedy answers: mean length, share that ended
same_opening       the share of these that begin with the most frequent first three tokens
task_words         the share of these with a word of the task: one that a quarter of its training
                   demonstrations hold, but no greedy answer of the base

The base has a row of its own. A model that took on the manner of its demonstrations everywhere
shows it in the last three.
"""

import argparse
import json
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of eval.py

from data import TASKS, load_task
from eval import (
    answer_greedily,
    config_of_run,
    drift_from_base,
    file_to_write,
    sample_base_answers,
)
from support.chat import encode_prompt, parse_template_kwargs, reject_template_kwargs
from support.models import best_device, configure_cuda, describe_machine, load_model
from support.watch import same_opening


def words_in(text):
    return set(re.findall(r"\w+", text.casefold()))


def words_of_task(demonstrations, base_texts):
    """Words that a quarter of the demonstrations hold, but none of the base's answers."""
    counts = Counter(word for text in demonstrations for word in words_in(text))
    often = {word for word, count in counts.items() if count >= len(demonstrations) / 4}
    return often.difference(*map(words_in, base_texts))


def describe(answers, task_words):
    """The figures of a model's own greedy answers."""
    return {
        "completion_tokens": mean(len(answer.ids) for answer in answers),
        "finished": mean(answer.finished for answer in answers),
        "same_opening": same_opening(answers),
        "task_words": mean(bool(words_in(answer.text) & task_words) for answer in answers),
    }


def measure(models, base, task, folder, max_new_tokens, dtype, template_kwargs=None):
    """{"words": [the task's words], "models": {name: figures}}, the base first."""
    general = load_task("general", "test")
    demonstrations = [example.demonstration for example in load_task(task, "train", folder)]

    def greedy_answers(model, tokenizer):
        prompts = [encode_prompt(tokenizer, turns.messages, template_kwargs) for turns in general]
        return answer_greedily(model, tokenizer, prompts, max_new_tokens, description="general")

    model, tokenizer = load_model(base, best_device(), dtype)
    reject_template_kwargs(tokenizer, template_kwargs)
    base_answers = sample_base_answers(
        model, tokenizer, general, max_new_tokens, template_kwargs=template_kwargs
    )
    answers = greedy_answers(model, tokenizer)
    task_words = words_of_task(demonstrations, [answer.text for answer in answers])
    figures = {base: {"drift_from_base": 0.0} | describe(answers, task_words)}
    for name in models:
        del model  # one at a time
        model, tokenizer = load_model(name, best_device(), dtype)
        drift = drift_from_base(base_answers, model)
        answers = greedy_answers(model, tokenizer)
        figures[name] = {"drift_from_base": drift} | describe(answers, task_words)
    return {"words": sorted(task_words), "models": figures}


def template_kwargs_of(models):
    """What the chat template read in the runs of these models; ValueError if they differ."""
    kwargs = [config_of_run(model)["chat_template_kwargs"] for model in models]
    if any(other != kwargs[0] for other in kwargs):
        raise ValueError("the runs have several --chat-template-kwargs; give those to compare with")
    return kwargs[0]


def print_table(measured):
    width = max(map(len, measured["models"]))
    print(" " * width, "   drift  tokens  ended  one opening  task words")
    for name, row in measured["models"].items():
        print(
            f"{name:<{width}}  {row['drift_from_base']:6.3f}  {row['completion_tokens']:6.1f}"
            f"  {row['finished']:5.0%}  {row['same_opening']:11.0%}  {row['task_words']:10.0%}"
        )
    print("words of the task:", ", ".join(measured["words"]))


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("models", nargs="+", help="hub ids, folders or smollm2")
    add("--base", required=True, help="the model that they were trained from")
    add("--task", required=True, choices=[task for task in TASKS if TASKS[task]])
    add("--data", help="folder of the task with train.jsonl (default: our own samples)")
    kwargs_help = "JSON that the chat template reads (default: as in the models' runs)"
    add("--chat-template-kwargs", type=parse_template_kwargs, metavar="JSON", help=kwargs_help)
    add("--max-new-tokens", type=int, default=256, help="longest answer (default: %(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    if args.max_new_tokens < 1:
        parser.error(f"--max-new-tokens {args.max_new_tokens}: it must be at least 1")
    configure_cuda()
    try:
        kwargs = args.chat_template_kwargs
        if kwargs is None:
            kwargs = template_kwargs_of(args.models)
        args.json = args.json and file_to_write(args.json)
        measured = measure(
            args.models, args.base, args.task, args.data, args.max_new_tokens, args.dtype, kwargs
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_table(measured)
    if args.json:
        command = shlex.join(["python", "extras/manner.py", *argv])
        record = {"command": command, "machine": describe_machine()} | measured
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
