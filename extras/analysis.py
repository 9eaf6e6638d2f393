"""What the paper measures of a model, apart from the table that every run prints.

    python extras/analysis.py pass-at-k --model DIR --task science --k 128
    python extras/analysis.py kl-to-base --model DIR --task science --base smollm2
    python extras/analysis.py published --model DIR --task tooluse
    python extras/analysis.py prior --model DIR
    python extras/analysis.py rescore runs/science --task science
    python extras/analysis.py equal-accuracy results/science.json results/science-sft.json

pass-at-k    pass@1, 2, 4, ..., K of answers sampled at temperature 1, top-p 0.95 (Fig. 5)
kl-to-base   KL(model || base) in nats per token, on the model's own sampled answers (Fig. 2)
published    greedy tool use, scored by our rule and by the one behind the published figures
prior        the six benchmarks of prior abilities (Table 5), by EleutherAI's lm-evaluation-harness
rescore      the answers that a run stored, scored again by scoring.py as it is now: of a run's
             folder, its answers.jsonl or results/answers/NAME-seedN.jsonl.gz; needs no model

equal-accuracy   the drift at which the curves of results files first pass an accuracy on
             validation, and at which they pass it for good

`confidence_interval`, the 95 % interval over seeds, is what the tables of experiments.py show.
"""

import argparse
import gzip
import importlib.util
import inspect
import io
import itertools
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of eval.py

from data import (
    CONTEXTS,
    REPORTS,
    TASKS,
    TEACHER_INSTRUCTIONS,
    check_context,
    load_task,
    teacher_messages,
)
from eval import (
    Answer,
    answers_of,
    config_of_run,
    evaluate,
    file_to_write,
    in_parts,
    token_divergence,
)
from sampling import pad_completions, sample_completions, stop_tokens
from scoring import final_answer, score, summarise
from support.chat import encode_prompt, parse_template_kwargs, reject_template_kwargs
from support.models import (
    best_device,
    configure_cuda,
    describe_machine,
    load_model,
    places_of,
    reason,
)
from support.tables import format_table

# two-sided 95 % quantiles of Student's t for 2, 3, ... values: 1, 2, ... degrees of freedom
T_95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
TEST_NAMES = ("test", "held-out wordings")  # of a task's test split, in a run's results


# ---- sampled answers and pass@k ----


def sample_answers(
    model,
    tokenizer,
    examples,
    *,
    samples,
    temperature=1.0,
    top_p=0.95,
    max_new_tokens,
    seed=0,
    context="none",
    instruction="thinking",
    own_template=None,
    template_kwargs=None,
    batch_size=32,
    description=None,
):
    """`samples` sampled answers to each example -> a list of lists of Answer, in the same order.

    Draws are a function of (seed, place of the example, sample): neither batch_size nor a larger
    `samples` changes an answer.
    """
    messages = [
        teacher_messages(example, context, instruction, own_template) for example in examples
    ]
    prompts = [encode_prompt(tokenizer, turns, template_kwargs) for turns in messages]
    stop_ids = stop_tokens(model, tokenizer)
    answers = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # less padding
    rows = [(i, j) for i in by_length for j in range(samples)]
    quiet = not description
    for batch in tqdm(in_parts(rows, batch_size), desc=description, leave=False, disable=quiet):
        uniforms = [np.random.default_rng([seed, i, j]).random(max_new_tokens) for i, j in batch]
        some = [prompts[i] for i, _ in batch]
        rollout = sample_completions(
            model,
            some,
            max_new_tokens=max_new_tokens,
            uniforms_BT=torch.from_numpy(np.stack(uniforms)),
            temperature=temperature,
            top_p=top_p,
            **stop_ids,
        )
        for (i, _), answer in zip(batch, answers_of(rollout, some, tokenizer), strict=True):
            answers[i].append(answer)
    return answers


def pass_at_k(n, correct, k):
    """Chance that at least one of k answers is right, from n answers of which `correct` are right.

    Unbiased: 1 - C(n - correct, k) / C(n, k) (Chen et al. 2021), written as a product of `correct`
    factors so that nothing overflows. Raises ValueError unless 1 <= k <= n and 0 <= correct <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(
            f"pass@{k} of {n} samples with {correct} right: k must be in 1..{n} "
            f"and the number of right ones in 0..{n}"
        )
    # (i - k) / i = C(i - 1, k) / C(i, k); with fewer than k wrong answers, i = k makes it 0
    return 1.0 - math.prod((i - k) / i for i in range(n - correct + 1, n + 1))


def evaluate_pass_at_k(model, tokenizer, examples, *, k, samples, **how_to_sample):
    """pass@1, 2, 4, ... and k, each a mean over the examples.

    Returns (summary dict, number of right answers to each example).
    """
    answers = sample_answers(model, tokenizer, examples, samples=samples, **how_to_sample)
    right = [
        sum(score(answer.text, example)["correct"] for answer in own)
        for own, example in zip(answers, examples, strict=True)
    ]
    ks = [2**i for i in range(k.bit_length())] + [k]
    shares = {
        f"pass@{j}": sum(pass_at_k(samples, count, j) for count in right) / len(right) for j in ks
    }
    return {"n": len(examples), "samples": samples} | shares, right


# ---- KL to the base ----


@torch.no_grad()
def kl_to_base(
    model,
    base_model,
    tokenizer,
    examples,
    *,
    batch_size=8,
    context="none",
    instruction="thinking",
    own_template=None,
    template_kwargs=None,
    **how,
):
    """Mean over tokens of KL(model || base) on the model's own sampled answers, nats per token.

    Answers are sampled at temperature 1 and top-p 1; `how` is max_new_tokens, seed, description.
    Only the model's prompt has `context`, so that a teacher is compared with the base that sees the
    question alone.
    """
    seen = {"context": context, "instruction": instruction, "own_template": own_template}
    how |= seen | {"samples": 1, "top_p": 1.0, "batch_size": batch_size}
    sampled = sample_answers(model, tokenizer, examples, template_kwargs=template_kwargs, **how)
    total, tokens = 0.0, 0
    for rows in in_parts(list(zip(examples, sampled, strict=True)), batch_size):
        ids = [answer.ids for _, (answer,) in rows]
        ids_BT, mask_BT = pad_completions(ids, 0, model.device)
        messages = [teacher_messages(example, **seen) for example, _ in rows]
        prompts = [encode_prompt(tokenizer, turns, template_kwargs) for turns in messages]
        base_prompts = [
            encode_prompt(tokenizer, example.messages, template_kwargs) for example, _ in rows
        ]
        kl_BT, _, _ = token_divergence(
            model, prompts, base_model, base_prompts, (ids_BT, mask_BT), "reverse"
        )
        total, tokens = total + kl_BT[mask_BT].sum().item(), tokens + mask_BT.sum().item()
    return total / tokens


# ---- over seeds ----


def confidence_interval(values):
    """(mean, half width of its 95 % confidence interval) over seeds: t s / sqrt(n), Student's t.

    Raises ValueError unless there are 2 to 10 values.
    """
    n = len(values)
    if not 2 <= n <= len(T_95) + 1:
        raise ValueError(
            f"a confidence interval over {n} seeds: it needs 2 to {len(T_95) + 1} of them"
        )
    return statistics.mean(values), T_95[n - 2] * statistics.stdev(values) / math.sqrt(n)


def drift_at(run, accuracy):
    """Drift at which a run's validation curve first passes an accuracy, linear between validations.

    None if it never does. The curve starts where the run does (start_of); a run that starts at the
    accuracy or above has passed it there.
    """
    found = crossings(run, accuracy)
    return found[0] if found else None


def drift_for_good(run, accuracy):
    """Drift at which a run's validation curve passes an accuracy and is not below it again.

    None if the last validation is below it. A curve that rises and falls first passes an accuracy
    at less drift than it keeps it at.
    """
    found = crossings(run, accuracy)
    return found[-1] if found and run["curve"][-1]["correct"] >= accuracy else None


def start_of(run):
    """(accuracy on validation, drift) before the first step; of re-invoke, that of its model."""
    return run["preflight"]["student"]["correct"], of_test(run["before"])["drift_from_base"]


def of_test(reports, task=""):
    """The summary of a task's test split; its names are those of config.REPORTS."""
    return next(reports[task + name] for name in TEST_NAMES if task + name in reports)


def crossings(run, accuracy):
    """The drifts at which a run's validation curve passes an accuracy on its way up."""
    points = [start_of(run)]
    points += [(entry["correct"], entry["drift_from_base"]) for entry in run["curve"]]
    at_start = [drift for correct, drift in points[:1] if correct >= accuracy]
    return at_start + [
        start + (end - start) * (accuracy - low) / (high - low)
        for (low, start), (high, end) in itertools.pairwise(points)
        if low < accuracy <= high
    ]


def equal_accuracy(files, levels=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)):
    """Lines of two markdown tables: mean (lowest to highest) drift over seeds at each accuracy,
    where a curve first passes it, and where it passes it for good.
    """
    stems = [Path(file).stem for file in files]
    names = stems if len(set(stems)) == len(stems) else [str(file) for file in files]
    recipes = by_point(zip(names, map(runs_with_curves, files), strict=True))
    for heading, rule in {"first passes": drift_at, "passes for good": drift_for_good}.items():
        yield f"| {heading}, on validation | " + " | ".join(recipes) + " |"
        yield "|---" * (1 + len(recipes)) + "|"
        for level in levels:
            cells = [f"{level:.0%}"]
            for runs in recipes.values():
                found = [drift for run in runs if (drift := rule(run, level)) is not None]
                span = f"{min(found):.3f} to {max(found):.3f}" if found else ""
                passed = f"{len(found)} of {len(runs)} seeds"
                cells.append(
                    f"{statistics.mean(found):.3f} ({span}; {passed})" if found else "never"
                )
            yield f"| {' | '.join(cells)} |"
        yield ""


def runs_with_curves(file):
    """The runs of a results file. Raises ValueError if they have no curves."""
    try:
        runs = json.loads(Path(file).read_text(encoding="utf-8"))["runs"]
        curves = [run["curve"] for run in runs]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{file} is no results file of extras/experiments.py with training runs ({error!r})"
        ) from None
    if not any(curves):
        raise ValueError(f"{file} has no validation during training, so no drift on the way")
    return runs


def point_flags(run):
    """["--FLAG VALUE"] of the point of a grid that a run is."""
    return [f"--{flag} {value}" for flag, value in run.get("point", {}).items()]


def by_point(named_runs):
    """(name, runs) of some records -> {name, with the flags of a grid's point: its runs}."""
    found = {}
    for name, runs in named_runs:
        for run in runs:
            found.setdefault(" ".join([name, *point_flags(run)]), []).append(run)
    return found


# ---- stored answers, scored again ----


def rescore(file, task, folder=None):
    """[(label, summary)] of stored answers to a task, by the scorer as it is now.

    file is answers.jsonl, also compressed, or the folder of a run that has it. A set is called
    "NAME" or, with several tasks in one file, "TASK, NAME". Raises ValueError for an answer to a
    question that the data lack.
    """
    stored, prefix, rows = read_stored(file), f"{task}, ", []
    splits = {split: split for split in ("train", "validation", "test", "ood")}
    splits |= REPORTS.get(task, {})
    several = any(name.startswith(prefix) for _, name in stored)
    for (when, name), texts in stored.items():
        if name.startswith(prefix) if several else ", " not in name:
            split = splits.get(name.removeprefix(prefix))
            if split is None:
                raise ValueError(f'{file}: set "{name}" is not of task {task}')
            known = {example.id: example for example in load_task(task, split, folder)}
            if unknown := texts.keys() - known.keys():
                raise ValueError(
                    f'{file}: id "{min(unknown)}" is not in the {split} questions of {task}; '
                    "give the --task and --data of the run"
                )
            summary = summarise(
                [Answer(text, [], False, score(text, known[id])) for id, text in texts.items()]
            )
            # these two need the token ids, which are not stored
            del summary["finished"], summary["completion_tokens"]
            rows.append((f"{name}, {when}", summary))
    if not rows:
        raise ValueError(f"{file} has no answers to questions of {task}")
    return rows


def read_stored(file):
    """{(when, set): {id: text}}; of equal ones the last, as a resumed run may repeat some."""
    file = file / "answers.jsonl" if file.is_dir() else file
    stored = {}
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                stored.setdefault((line["when"], line["set"]), {})[line["id"]] = line["text"]
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as the answers of a run ({error!r})") from None
    if not stored:
        raise ValueError(f"{file} has no answer in it")
    return stored


# ---- benchmarks of prior abilities ----

EXTRAS = "pip install -r requirements-extras.txt"
# task of the harness -> (its metric and filter, the paper's figure of Qwen2.5-7B-Instruct)
BENCHMARKS = {
    "hellaswag": ("acc,none", 62.0),
    "humaneval": ("pass@1,create_test", 65.8),
    "ifeval": ("inst_level_loose_acc,none", 74.3),
    "mmlu": ("acc,none", 71.7),
    "truthfulqa_mc1": ("acc,none", 47.9),
    "winogrande": ("acc,none", 71.1),
}


def harness_model(name, dtype="auto"):
    """What lm-eval needs to load a model -> (its --model_args as a dict, the first token as text).

    name   folder, hub id, smollm2, or an adapter of a run or of peft; lm-eval loads that by peft
    dtype  "auto": the one that config.json names

    prefix_token_id is the token before a text that has no context. Raises ValueError for a model
    whose tokenizer or base cannot be found, and for an adapter without peft.
    """
    try:
        base, adapter, tokenizer_folder = places_of(name)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False)
    except Exception as error:  # a library may raise anything on a damaged or unknown model
        raise ValueError(f'model "{name}" cannot be loaded: {reason(error)}') from None
    arguments = {"pretrained": base, "dtype": dtype}
    if adapter:
        if importlib.util.find_spec("peft") is None:
            raise ValueError(
                f'model "{name}" is an adapter, for which lm-eval needs peft; {EXTRAS}'
            )
        arguments |= {"peft": adapter, "tokenizer": tokenizer_folder}
    first = start_of_text(tokenizer)
    return arguments | {"prefix_token_id": first}, tokenizer.convert_ids_to_tokens(first)


def start_of_text(tokenizer):
    """The id of the token before a text that has no context, where lm-eval would take bos.

    Trap: ChatML tokenizers, such as SmolLM2's, name <|im_start|> as bos, or <|im_end|> as eos
    without a bos. After those a chat model expects a role or a line break: short plain sentences
    cost SmolLM2 6.3 instead of 4.5 nats a token (findings/lm_eval_starts_with_a_turn.sh). The first
    choice here is a token that the tokenizer itself puts before a text, the second <|endoftext|>.
    """
    written = tokenizer("a").input_ids[0]
    if written in tokenizer.all_special_ids:
        return written
    if "<|endoftext|>" in tokenizer.get_vocab():
        return tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def harness_command(
    arguments,
    tasks,
    output,
    *,
    tasks_folder=None,
    batch_size=1,
    limit=None,
    chat_template=False,
    run_model_code=False,
):
    """(command, environment variables) that evaluate a model on tasks and write one results_*.json
    below `output`.

    arguments   --model_args as a dict: {"pretrained": "runs/science/last", ...}

    With tasks_folder the harness reads its task files, whose number of shots stands in them, and
    reaches no hub. Raises ValueError for a model name that the harness would split.
    """
    for value in map(str, arguments.values()):
        if "," in value or "=" in value:
            raise ValueError(
                f'model "{value}" has a comma or an equals sign, at which the harness splits; '
                "rename the folder"
            )
    options = {
        "--model": "hf",
        "--model_args": ",".join(f"{name}={value}" for name, value in arguments.items()),
        "--tasks": ",".join(tasks),
        "--batch_size": batch_size,
        "--output_path": output,
        "--limit": limit,
    }
    options |= {"--include_path": tasks_folder} if tasks_folder else {"--num_fewshot": 0}
    command = [sys.executable, "-m", "lm_eval"]
    for name, value in options.items():
        command += [] if value is None else [name, str(value)]
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if tasks_folder else {}
    command += ["--apply_chat_template"] if chat_template else []
    if run_model_code:
        command += ["--confirm_run_unsafe_code"]
        environment |= {"HF_ALLOW_CODE_EVAL": "1"}
    return command, environment


def run_harness(arguments, tasks, **options):
    """The harness's results, from a process of its own -> its dict; ValueError if it fails."""
    with tempfile.TemporaryDirectory() as output:
        command, environment = harness_command(arguments, tasks, output, **options)
        print(shlex.join(command), flush=True)
        process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE)
        trace = show_until_trace(process.stderr, sys.stderr)
        code = process.wait()
        if code and (unreachable := UNREACHABLE.findall(trace)):
            raise ValueError(
                f"the harness cannot reach {unreachable[-1]} on the hub, which has its questions. "
                "Offline give --tasks-folder FOLDER --tasks NAMES: FOLDER has task files that name "
                "local questions; extras/prior_tasks.py writes one from public files"
            )
        sys.stderr.write(trace)
        files = list(Path(output).rglob("results_*.json"))
        if code or len(files) != 1:
            raise ValueError(
                f"the harness ended with status {code} and {len(files)} results; "
                "what it says is above"
            )
        return json.loads(files[0].read_text())


# what the package datasets says of a set that it can neither fetch nor find in its cache
UNREACHABLE = re.compile(r"Error: Couldn't (?:reach|find cache for|find) '?([\w./-]+\w)")


def show_until_trace(stream, screen):
    """Copy a stream of bytes to the screen as it comes, and return what follows a traceback."""
    held = None
    # lines end in \r, too: progress bars
    for line in io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline=""):
        if held is None and line.startswith("Traceback (most recent call last)"):
            held = []
        if held is None:
            screen.write(line)
            screen.flush()
        else:
            held.append(line)
    return "".join(held or [])


def below(results, task):
    """The tasks and groups below a group: MMLU has four groups, and 57 tasks in them."""
    parts = results.get("group_subtasks", {}).get(task, [])
    return [name for part in parts for name in [part, *below(results, part)]]


def leaves(results, task):
    """The tasks with questions of their own below a task, or the task itself."""
    groups = {name for name, parts in results.get("group_subtasks", {}).items() if parts}
    return [name for name in below(results, task) if name not in groups] or [task]


def read_rows(results, tasks):
    """[{"task", "n", "shots", "metric", "value", "stderr"}] from the harness's dict.

    The six have one metric each, other tasks all of theirs. A tag, such as ai2_arc, has no result
    of its own, and stands for its tasks. Raises ValueError if the harness has no such metric: names
    change between its versions.
    """
    rows = []
    there = [task for task in tasks if task in results["results"]]
    if len(there) < len(tasks):
        counted = {part for task in there for part in [task, *below(results, task)]}
        there += [task for task in results["results"] if task not in counted]
    for task in there:
        values, parts = results["results"][task], leaves(results, task)
        metrics = [name for name in values if "," in name and "_stderr" not in name]
        for metric in [BENCHMARKS[task][0]] if task in BENCHMARKS else metrics:
            if metric not in values:
                raise ValueError(
                    f"{task}: this version of the harness has no {metric}, but {', '.join(values)}"
                )
            stderr = values.get(metric.replace(",", "_stderr,"))
            rows.append(
                {
                    "task": task,
                    "n": sum(results["n-samples"][part]["effective"] for part in parts),
                    "shots": sorted({results["n-shot"][part] for part in parts}),
                    "metric": metric,
                    "value": values[metric],
                    "stderr": stderr if isinstance(stderr, float) else None,  # or "N/A"
                }
            )
    return rows


def format_benchmarks(rows):
    """The rows as lines of text; the average only over all six, as in the paper."""
    table = [("task", "n", "shots", "metric", "score", "± stderr", "paper's base, 7B")]
    for row in rows:
        shots, score = "/".join(map(str, row["shots"])), f"{100 * row['value']:.1f}"
        stderr = "" if row["stderr"] is None else f"{100 * row['stderr']:.1f}"
        _, paper = BENCHMARKS.get(row["task"], (None, ""))
        table.append((row["task"], row["n"], shots, row["metric"], score, stderr, paper))
    if {row["task"] for row in rows} == set(BENCHMARKS):
        average = statistics.mean(100 * row["value"] for row in rows)
        table.append(("average", "", "", "", f"{average:.1f}", "", 65.5))
    width = max(len(task) for task, *_ in table)
    form = f"{{:{width}}}{{:>7}}{{:>7}}  {{:26}}{{:>7}}{{:>10}}{{:>19}}"
    return "\n".join(form.format(*cells).rstrip() for cells in table)


# ---- the command ----


def measure_pass_at_k(model, tokenizer, examples, args, **how):
    samples, how = args.samples or args.k, how | {"temperature": args.temperature}
    summary, right = evaluate_pass_at_k(
        model, tokenizer, examples, k=args.k, samples=samples, seed=args.seed, **how
    )
    sampled = f"temperature {args.temperature:g}, top-p 0.95"
    print(f"{samples} answers to each of {summary['n']} questions, {sampled}")
    for name, share in summary.items():
        if name.startswith("pass@"):
            print(f"{name:>9}  {share:.1%}")
    rows = [
        {"id": example.id, "right": count} for example, count in zip(examples, right, strict=True)
    ]
    return {"summary": summary, "right": rows}


def measure_kl_to_base(model, tokenizer, examples, args, **how):
    base_model, _ = load_model(args.base, model.device, args.dtype)
    kl = kl_to_base(model, base_model, tokenizer, examples, seed=args.seed, **how)
    print(f"KL(model || {args.base}) on the model's own sampled answers: {kl:.3f} nats per token")
    return {"summary": {"n": len(examples), "kl_to_base": kl}}


def score_published(text, calls):
    """Whether a text is right by the rule of the authors' code.

    The multiset of names must be the golden one, and so must all arguments merged into one dict.
    The rule reads an input up to the first "}" and a name as one word: nested JSON and names with
    brackets fail even when right. It never sees which call an argument belongs to.
    """
    inputs = []
    for block in re.findall(r"Action Input:\s*(\{[^}]*\})", text):
        try:
            inputs.append(json.loads(block))
        except (ValueError, RecursionError):
            continue  # skipped: part of the rule
    names = Counter(re.findall(r"Action:\s*(\w+)", text))
    golden_names = Counter(call["name"] for call in calls)
    golden = merge(call["arguments"] for call in calls)
    return names == golden_names and merge(inputs) == golden


def merge(dicts):
    """One dict; a later value of a key hides an earlier one."""
    return {key: value for arguments in dicts for key, value in arguments.items()}


def measure_published(model, tokenizer, examples, args, **how):
    summary, answers = evaluate(model, tokenizer, examples, **how)
    rows = [
        {
            "id": example.id,
            "answer": answer.text,
            "published": score_published(final_answer(answer.text), example.calls),
        }
        for example, answer in zip(examples, answers, strict=True)
    ]
    summary["published"] = sum(row["published"] for row in rows) / len(rows)
    print(
        f"right by our rule {summary['correct']:.1%}, by the published {summary['published']:.1%}"
    )
    return {"summary": summary, "answers": rows}


def measure_prior(args):
    """Run the paper's six benchmarks of prior abilities: pip install -r requirements-extras.txt

    HumanEval EXECUTES code that the model wrote, so it is left out, and with it the average over
    all six, unless --run-model-code is given. --tasks-folder takes task files (YAML) and works
    offline: extras/prior_tasks.py writes some, yours may name Python functions, which are run.

    The six fetch their data from the Hugging Face hub. TruthfulQA (mc1) and IFEval (instruction
    level, loose) use the metrics that the authors name in their tracker. For the rest, 0 shots, no
    chat template, and acc rather than acc_norm for HellaSwag, are our reading.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(f"this needs the evaluation harness lm-eval; {EXTRAS}")
    default = [task for task in BENCHMARKS if task != "humaneval" or args.run_model_code]
    tasks = args.tasks or default
    if "ifeval" in tasks:
        check_sentence_splitter()
    if args.run_model_code:
        print("--run-model-code: code that the model writes is executed here, without a sandbox")
    elif not args.tasks:
        print("humaneval is left out: it executes code of the model; --run-model-code includes it")
    arguments, first_token = harness_model(args.model, args.dtype)
    results = run_harness(
        arguments,
        tasks,
        tasks_folder=args.tasks_folder,
        batch_size=args.batch_size or ("auto" if best_device() == "cuda" else 1),
        limit=args.limit,
        chat_template=args.chat_template,
        run_model_code=args.run_model_code,
    )
    try:
        rows = read_rows(results, tasks)
    except (LookupError, ValueError) as error:
        kept = (args.json or Path("prior.json")).with_suffix(".harness.json")
        kept.write_text(json.dumps(results, default=str) + "\n", encoding="utf-8")
        raise ValueError(f"{error}; the harness's own results are in {kept}") from None
    print(format_benchmarks(rows))
    summary = {
        "lm_eval": version("lm_eval"),
        "chat_template": args.chat_template,
        "dtype": args.dtype,
        "prefix_token_id": arguments["prefix_token_id"],
        "prefix_token": first_token,
        "limit": args.limit,
        "rows": rows,
    }
    template = "the chat template" if args.chat_template else "no chat template"
    trial = f", only the first {args.limit} questions of each task" if args.limit else ""
    print(f"lm-eval {summary['lm_eval']}, {template}, dtype {summary['dtype']}{trial}")
    print(
        "a text without a context starts with "
        f"{first_token} (prefix_token_id={arguments['prefix_token_id']})"
    )
    return {"summary": summary}


def check_sentence_splitter():
    """ValueError if NLTK lacks the data that IFEval's rules split sentences by.

    Trap: lm-eval then says that it has downloaded them, and stops after all answers are written.
    """
    try:
        import nltk
    except ImportError:
        raise ValueError(f"ifeval needs nltk and more; {EXTRAS}") from None
    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        raise ValueError(
            "ifeval splits sentences with NLTK's punkt_tab, which is not here; run python -m "
            "nltk.downloader punkt_tab, or set NLTK_DATA to a folder with tokenizers/punkt_tab"
        ) from None


MEASURES = {
    "pass-at-k": measure_pass_at_k,
    "kl-to-base": measure_kl_to_base,
    "published": measure_published,
}


def parse_arguments(argv):
    every = argparse.ArgumentParser(add_help=False)
    add = every.add_argument
    add("--model", required=True, help="folder, hub id, or smollm2")
    add("--limit", type=int, help="only the first N examples of a task: a trial")
    add("--json", type=Path, help="also write the figures to this file")
    shared = argparse.ArgumentParser(add_help=False, parents=[every])
    add = shared.add_argument
    add("--task", required=True, choices=[task for task in TASKS if task != "general"])
    add("--split", default="test", help="file of the data set (default: %(default)s)")
    add("--data", help="folder with our JSONL files (default: our own samples)")
    add(
        "--context",
        default="none",
        choices=CONTEXTS,
        help="what the prompt has beside the question",
    )
    add("--instruction", choices=list(TEACHER_INSTRUCTIONS), help="end of a teacher's prompt")
    kwargs_help = "JSON that the chat template reads (default: its run's)"
    add("--chat-template-kwargs", type=parse_template_kwargs, metavar="JSON", help=kwargs_help)
    add("--max-new-tokens", type=int, help="default: that of the run that left the model, else 64")
    add("--dtype", choices=["float32", "bfloat16"], help="default: that of its run, else float32")
    add("--batch-size", type=int, default=32, help="default: %(default)s")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    measures = parser.add_subparsers(dest="measure", required=True)
    parsers = {name: measures.add_parser(name, parents=[shared]) for name in MEASURES}
    add = parsers["pass-at-k"].add_argument
    add("--k", type=int, required=True, help="largest k")
    add("--samples", type=int, help="answers to each question, at least K; more are less noisy")
    add("--temperature", type=float, default=1.0, help="default: %(default)s")
    parsers["kl-to-base"].add_argument("--base", required=True, help="folder, hub id, or smollm2")
    for name in ("pass-at-k", "kl-to-base"):
        parsers[name].add_argument("--seed", type=int, default=0, help="of the sampled answers")
    how = {"description": inspect.getdoc(measure_prior), "formatter_class": formatter}
    add = measures.add_parser("prior", parents=[every], **how).add_argument
    add("--tasks", nargs="+", help="tasks of the harness (default: the six)")
    add("--tasks-folder", type=Path, help="task files on this machine; nothing is fetched then")
    add("--chat-template", action="store_true", help="ask in chat turns (default: as plain text)")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="auto: its file's")
    add("--run-model-code", action="store_true", help="run HumanEval, without a sandbox")
    add("--batch-size", help="a number, or auto (default: auto on a GPU, 1 on a CPU)")
    add = measures.add_parser("rescore").add_argument
    add("answers", type=Path, metavar="FILE_OR_RUN", help="a run, or its stored answers")
    add("--task", required=True, choices=[task for task in TASKS if task != "general"])
    add("--data", help="folder with our JSONL files (default: our own samples)")
    measures.add_parser("equal-accuracy").add_argument("files", nargs="+", metavar="RESULTS")
    args = parser.parse_args(argv)
    if args.measure in ("rescore", "equal-accuracy"):
        return args
    for name in ("limit", "batch_size", "max_new_tokens", "k"):
        value = getattr(args, name, None)
        if isinstance(value, int) and value < 1:  # a batch size may be "auto"
            parser.error(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    if args.measure == "prior":
        check_prior(parser, args)
        return args
    if args.measure == "pass-at-k" and args.samples is not None and args.samples < args.k:
        parser.error(f"--samples {args.samples} is below --k {args.k}; give at least as many")
    if args.measure == "pass-at-k" and not args.temperature > 0:
        parser.error(f"--temperature {args.temperature}: it must be above 0")
    if args.instruction and "demonstration" not in args.context:
        parser.error("--instruction needs --context demonstration or text+demonstration")
    if args.measure == "published" and args.task != "tooluse":
        parser.error(f"published scores tool use alone; --task is {args.task}")
    run = config_of_run(args.model)
    args.max_new_tokens = args.max_new_tokens or run["answer_tokens"]
    args.dtype = args.dtype or run["dtype"]
    args.own_template = None if args.instruction else run["teacher_template"]
    args.instruction = args.instruction or run["teacher_instruction"]
    if args.chat_template_kwargs is None:
        args.chat_template_kwargs = run["chat_template_kwargs"]
    return args


def check_prior(parser, args):
    if args.tasks:  # lm-eval takes names with commas, too
        args.tasks = [name for word in args.tasks for name in word.split(",") if name]
    if args.tasks_folder and not args.tasks:
        parser.error("--tasks-folder needs --tasks: the names of the tasks in it")
    if args.tasks_folder and not args.tasks_folder.is_dir():
        parser.error(f"--tasks-folder {args.tasks_folder} is not a folder")
    if args.batch_size not in (None, "auto") and not re.fullmatch("[1-9][0-9]*", args.batch_size):
        parser.error(f"--batch-size {args.batch_size}: it must be auto or a number of at least 1")
    if "humaneval" in (args.tasks or []) and not args.run_model_code:
        parser.error(
            "humaneval executes code that the model wrote, on this machine; add "
            "--run-model-code if that is what you want"
        )


def measure(args):
    examples = load_task(args.task, args.split, args.data)[: args.limit]
    for example in examples:
        check_context(example, args.context)
    configure_cuda()
    model, tokenizer = load_model(args.model, best_device(), args.dtype)
    reject_template_kwargs(tokenizer, args.chat_template_kwargs)
    return MEASURES[args.measure](
        model,
        tokenizer,
        examples,
        args,
        context=args.context,
        instruction=args.instruction,
        own_template=args.own_template,
        template_kwargs=args.chat_template_kwargs,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        description=args.measure,
    )


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    try:
        if args.measure == "equal-accuracy":
            print("\n".join(equal_accuracy(args.files)))
            return
        if args.measure == "rescore":
            print(format_table(rescore(args.answers, args.task, args.data)))
            return
        args.json = args.json and file_to_write(args.json)
        measured = measure_prior(args) if args.measure == "prior" else measure(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.json:
        command = shlex.join(["python", "extras/analysis.py", *argv])
        record = {"command": command, "machine": describe_machine()} | measured
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        args.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
