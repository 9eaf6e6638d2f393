"""Around the loop: what a run consists of, its folder, its signals and logs, what it leaves."""

import dataclasses
import hashlib
import json
import math
import shlex
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch

from config import Config
from data import Splits, encode_pairs, leave_out_beyond_positions
from eval import BaseAnswers, drift_from_base, evaluate, hidden_in_parts, sample_base_answers
from lora import adapted_layers, add_adapters, as_if_merged, merge
from sampling import output_head
from support.chat import STARTED, encode_text, reject_template_kwargs
from support.checkpoint import list_checkpoints, load_weights, read_state, save_model
from support.judge import choose_scorer
from support.models import (
    best_device,
    configure_cuda,
    describe_machine,
    is_out_of_memory,
    load_model,
    load_tokenizer,
    model_positions,
    read_config,
)
from support.plan import check_plan, peak_bytes, with_lengths_of
from support.tables import format_results, log_line
from support.watch import AFTER_COLLAPSE, same_opening

AROUND_AN_ANSWER = 16  # tokens, at most: an end of turn, an empty thought


@dataclass
class Run:
    """What the parts of main hand on to each other."""

    command: list  # as typed: python, sdft.py (or another script), its flags
    config: Config
    folder: Path
    checkpoint: Path | None  # to resume from
    student: torch.nn.Module
    tokenizer: object
    splits: Splits  # the data as text
    scorer: object  # the rule of the task, or a judge
    pairs: list  # of data.Pair: the training data as token ids
    base: BaseAnswers  # what drift is measured on
    digests: dict  # of its files and prompts, which a resumed run compares
    needs: dict  # {"host", "disk" and perhaps "card": bytes}, as planned
    method: str = "sdft"  # a baseline has its own, and may have another model as its teacher
    teacher_model: torch.nn.Module | None = None
    steps_taken: int = 0  # when training has ended
    collapse: str | None = None  # what moved, in a line, once a validation showed it
    best: dict | None = None  # {"step", "rank"} of the weights in best/
    started: float = field(default_factory=time.perf_counter)  # earlier, if it was resumed

    def state(self):
        """What a checkpoint keeps of a run beside its tensors."""
        return {
            "collapse": self.collapse,
            "config": dataclasses.asdict(self.config),
            "method": self.method,
            "data": self.digests,
            "moment": self.tokenizer.template_moment.isoformat(),
            "seconds": time.perf_counter() - self.started,
        }

    def how_to_continue(self):
        if not list_checkpoints(self.folder):
            return "With --keep-last 0 there is no checkpoint to go on from"
        return f"Continue with: python {self.command[1]} --resume {shlex.quote(str(self.folder))}"


def prepare(command, config, splits, folder, checkpoint, trains_on="rollouts"):
    """Encode the data, check the plan, load the model -> Run; ValueError for what cannot work.

    trains_on   "rollouts" of up to --max-new-tokens, "demonstrations" of any length, or "articles"
                in blocks of --max-prompt-tokens instead of the prompts
    """
    scored = splits.validation + sum(splits.reports.values(), [])
    scorer = choose_scorer(
        config.task,
        scored,
        config.judge,
        config.judge_model,
        config.judge_timeout,
        config.judge_repeats,
    )
    state = read_state(checkpoint) if checkpoint else {}
    digests = digest_files(splits)
    check_same_data(state.get("data"), digests)
    configure_cuda()
    device = best_device()
    model_config = read_config(config.model)
    check_positions(model_config, config)
    tokenizer = load_tokenizer(config.model)
    # a template that writes the date writes that of the run's first start, also after a resume
    moment = state.get("moment")
    tokenizer.template_moment = datetime.fromisoformat(moment) if moment else STARTED
    kwargs = config.chat_template_kwargs
    reject_template_kwargs(tokenizer, kwargs)
    positions = model_positions(model_config)
    pairs = encode_pairs(tokenizer, splits.train, config, positions)
    digests["prompts"] = digest_prompts(pairs)
    check_same_data(state.get("data"), digests)
    splits.validation = leave_out_beyond_positions(
        tokenizer, splits.validation, config, positions, has_teacher=True
    )
    for name, examples in splits.reports.items():
        splits.reports[name] = leave_out_beyond_positions(
            tokenizer, examples, config, positions, has_teacher=False
        )
    splits.general = leave_out_beyond_positions(
        tokenizer, splits.general, config, positions, has_teacher=False, measures_drift=True
    )
    planned = config if trains_on == "articles" else with_lengths_of(pairs, config)
    if trains_on == "demonstrations":
        longest = longest_demonstration(tokenizer, splits.train)
        planned = dataclasses.replace(planned, max_new_tokens=longest)
    line, needs = check_plan(model_config, planned, device, folder, checkpoint is not None)
    print(line)
    student = load_model(config.model, device, config.dtype, tokenizer)[0]
    digests["base"] = digest_weights(student)
    check_same_data(state.get("data"), digests)
    if config.lora_rank:
        prepare_adapters(student, config)
    elif adapted_layers(student):
        student = merge_for_training(student, config.model)
    base = sample_base_answers(student, tokenizer, splits.general, config.general_tokens, kwargs)
    return Run(
        command,
        config,
        folder,
        checkpoint,
        student,
        tokenizer,
        splits,
        scorer,
        pairs,
        base,
        digests,
        needs,
    )


def check_positions(model_config, config):
    """ValueError if no prompt can fit beside an answer of the length that the flags allow."""
    positions = model_positions(model_config)
    if positions is not None and config.answer_tokens >= positions:
        name = "--max-new-tokens"
        if config.eval_new_tokens > config.max_new_tokens:
            name = "--eval-new-tokens"
        raise ValueError(
            f"{name} is {config.answer_tokens}, and {config.model} has {positions} positions for "
            "prompt and answer together; lower it"
        )


def longest_demonstration(tokenizer, examples):
    """In tokens, with some for what a template writes around it."""
    texts = [example.demonstration for example in examples]
    return max(len(encode_text(tokenizer, text, "assistant")) for text in texts) + AROUND_AN_ANSWER


# ---- adapters ----


def prepare_adapters(student, config):
    """Add adapters, or let those that --model came with go on learning; ValueError if they differ.

    The learning itself, and what the teacher shares, is in lora.py.
    """
    targets = config.targets_of_adapters
    layers = adapted_layers(student).values()
    if not layers:
        add_adapters(
            student,
            config.lora_rank,
            config.lora_alpha,
            targets,
            train_A=config.lora_train_a,
            seed=config.seed,
        )
    for layer in layers:
        rank, alpha = len(layer.lora_A), layer.lora_alpha
        if (rank, alpha) != (config.lora_rank, config.lora_alpha) or targets:
            raise ValueError(
                f"--model {config.model} is an adapter of rank {rank} and alpha {alpha}, with "
                f"layers of its own; train it on with --lora-rank {rank} --lora-alpha {alpha} and "
                "no --lora-targets, or leave --lora-rank out to train all weights"
            )
        layer.lora_A.requires_grad_(config.lora_train_a)


def merge_for_training(student, name):
    """Dense weights, all of which learn, from a base with the adapter that --model named."""
    student, lost = merge(student)
    print(
        f"{name} is an adapter, merged into its base for training; rounding the weights to "
        f"{student.dtype} moves them by {lost:.0%} of the adapter's update".replace("torch.", "")
    )
    return student.requires_grad_(True)


def merged_divergence(run):
    """KL(student || the student merged in its dtype) on the base's answers, in nats a token."""
    base, student = run.base, run.student
    ids_BT, mask_BT = base.completion_ids_BT, base.completion_mask_BT
    with torch.no_grad():
        hidden_BTD = hidden_in_parts(student, base.prompts, ids_BT, mask_BT)
    # the student's head: in re-invocation the base is another model
    unmerged = dataclasses.replace(base, hidden_BTD=hidden_BTD, head=output_head(student))
    with as_if_merged(student):
        return drift_from_base(unmerged, student)


# ---- the data of a run, recognised when it goes on ----


def digest_files(splits):
    """{file: sha256 of its examples}."""
    sets = {"general prompts": splits.general}
    for examples in (splits.train, splits.validation, *splits.reports.values()):
        name = Path(examples[0].source.rpartition(":")[0]).name
        if examples[0].task == "general":  # what re-invocation trains on
            name = f"general {name}"
        # the first stays: "trained wordings" is a part of the train.jsonl that was trained on
        sets.setdefault(name, examples)
    return {name: _digest([_content(example) for example in sets[name]]) for name in sets}


def _content(example):
    """An example without its file and line: a folder may move."""
    content = dataclasses.asdict(example)
    if example.id == example.source:
        del content["id"]
    del content["source"]
    return content


def digest_prompts(pairs):
    return _digest([[pair.student_prompt, pair.teacher_prompt] for pair in pairs])


def digest_weights(model):
    """sha256 of weights that no checkpoint holds: --model as it was loaded, or --teacher-model."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        for part in weight.detach().view(-1).split(2**24):
            digest.update(part.cpu().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _digest(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


# Of digests: the model, from which drift is measured and which a frozen teacher or adapters need.
UNSAVED_WEIGHTS = {"base": "--model", "teacher": "--teacher-model"}
LATER_DIGESTS = {"prompts", *UNSAVED_WEIGHTS}  # made after those of the files


def check_same_data(before, now):
    """ValueError, naming the file, if a resumed run would go on with other data."""
    if before is None:
        return
    if gone := before.keys() - now.keys() - LATER_DIGESTS:
        names = ", ".join(sorted(gone))
        raise ValueError(f"{names} is gone since this run began; restore it to go on with --resume")
    for name, digest in now.items():
        if before.get(name) == digest:
            continue
        if name == "prompts":
            what = (
                "the training prompts are encoded differently than when this run began: tokenizer"
            )
            raise ValueError(f"{what}, chat template or limits have changed. Start a new run")
        if name in UNSAVED_WEIGHTS:
            problem = f"the weights of {UNSAVED_WEIGHTS[name]} are not those that this run began"
            raise ValueError(f"{problem} with; restore them, or start a new run")
        raise ValueError(
            f"{name} has changed since this run began; restore it to go on with --resume, or start "
            "a new run"
        )


# ---- the folder of a run ----


@contextmanager
def run_folder(config, checkpoint):
    """with run_folder(...) as folder: errors inside end the program with a line that helps."""
    try:
        folder = checkpoint.parent if checkpoint else new_run_folder(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    try:
        yield folder
    except KeyboardInterrupt:
        sys.exit("\nstopped at once; a run that has a checkpoint goes on with --resume")
    except (ValueError, OSError, ArithmeticError, RuntimeError, MemoryError) as error:
        message = explain(error, folder)
        if message is None:
            raise
        sys.exit(f"error: {message}")
    finally:
        if not any(folder.iterdir()):  # nothing was trained: the same command runs again
            folder.rmdir()


def new_run_folder(config):
    """Make the folder of a new run; an existing one is never written into."""
    folder = Path(config.output or Path("runs") / config.task)
    number = 2
    while config.output is None and folder.exists():
        folder = Path("runs") / f"{config.task}-{number}"
        number += 1
    if folder.exists():
        remedy = "name another --output, or move it away: it has no checkpoint to resume from"
        if list_checkpoints(folder):
            remedy = f"name another --output, or go on with --resume {shlex.quote(str(folder))}"
        raise ValueError(f"{folder} exists; {remedy}")
    folder.mkdir(parents=True)
    return folder


def explain(error, folder):
    """A line, or two with a remedy, for an error that a user can do something about; else None."""
    resume = "No checkpoint was saved"
    if kept := list_checkpoints(folder):
        resume = f"--resume {shlex.quote(str(folder))} goes on from {kept[-1].name}"
    if isinstance(error, FloatingPointError):
        return f"{error}\n{resume}. The usual remedy is a new run with a lower --learning-rate"
    if isinstance(error, (ValueError, OSError)):  # wrong input, a damaged checkpoint, a full disk
        return str(error)
    if is_out_of_memory(error):
        first_line = (str(error) or "out of memory").splitlines()[0]
        return (
            f"{first_line}\nA new run takes less memory with a smaller "
            "--micro-batch-tokens or --max-new-tokens, with --gradient-checkpointing, with "
            f"--lora-rank 16, or with --dtype bfloat16. {resume}"
            + (", with its flags as they are" if kept else "")
        )
    return None


# ---- signals and logs ----


@contextmanager
def catch_signals(saves):
    """Yield a list of signals: the first Ctrl-C or SIGTERM joins it, a second one stops at once."""
    caught = []
    numbers = signal.SIGINT, signal.SIGTERM
    previous = [signal.getsignal(number) for number in numbers]

    def restore():
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)

    def note(number, _frame):
        caught.append(number)
        restore()
        end = "and saved first" if saves else "first; with --keep-last 0 it is not saved"
        print(f"\nstopping: this step is finished {end}", flush=True)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()


def start_log(file, step):
    """Open a .jsonl for appending, without the lines after `step` or cut off by a full disk."""
    whole = whole_lines(file) if file.exists() else []
    rewrite(file, [line for line in whole if json.loads(line)["step"] <= step])
    return open(file, "a", buffering=1)


def whole_lines(file):
    """The lines of a .jsonl, without one that was cut off."""
    # not str.splitlines: it also ends a line at U+2028 or U+0085, which JSON leaves in a string
    with open(file, encoding="utf-8") as lines:
        return [line for line in lines if line.endswith("\n")]


def rewrite(file, lines):
    """Replace a file's lines; a kill in between leaves the old ones."""
    new = file.with_name(f"{file.name}.new")
    new.write_text("".join(lines), encoding="utf-8")
    new.replace(file)


def drop_later_answers(file, step):
    """Delete the answers that a run resumed at `step` gives again, those of its end among them."""
    if not file.exists():
        return
    rewrite(file, [line for line in whole_lines(file) if _validated_at(json.loads(line)) <= step])


def _validated_at(answer):
    name, _, step = answer["when"].partition(" ")
    if name in ("last", "best"):
        return math.inf
    return int(step) if name == "step" else 0


def lines_of_step(step, metrics, config):
    """What a run prints of a step: its metrics, its validation, and a collapse found there."""
    lines = [log_line(step, metrics)]
    if "validation" in metrics:
        lines.append(log_line(step, metrics["validation"], "  validation"))
        if "collapse" in metrics["validation"]:
            what_follows = AFTER_COLLAPSE[config.on_collapse]
            lines.append(f"warning: {metrics['validation']['collapse']}. {what_follows}")
    return lines


def rollout_report(tokenizer, batch, rollout):
    """The first completion of a batch; extras/plot.py shows where the teacher disagrees."""
    pair, mask_T = batch.pairs[0], rollout.completion_mask_BT[0]
    ids = rollout.completion_ids_BT[0][mask_T].tolist()
    return {"id": pair.id, "completion": tokenizer.decode(ids), "completion_ids": ids}


# ---- what a run measures of its weights, and what it leaves ----


def evaluate_and_log(run, sets, when):
    """{name: summary} of the weights as they are, drift included; answers go to answers.jsonl."""
    drift = drift_from_base(run.base, run.student)
    summaries = {}
    with open(run.folder / "answers.jsonl", "a", encoding="utf-8") as file:
        for name, examples in sets.items():
            summaries[name], answers = evaluate(
                run.student,
                run.tokenizer,
                examples,
                template_kwargs=run.config.chat_template_kwargs,
                scorer=run.scorer,
                max_new_tokens=run.config.answer_tokens,
                description=f"{when}: {name}",
            )
            summaries[name]["drift_from_base"] = drift
            summaries[name]["same_opening"] = same_opening(answers)
            for example, answer in zip(examples, answers, strict=True):
                line = {"when": when, "set": name, "id": example.id} | dataclasses.asdict(answer)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return summaries


def record_before(run, preflight_figures):
    """before.json: what was asked for, the preflight, and what the untrained model scores."""
    record = {
        "command": shlex.join(run.command),
        "config": dataclasses.asdict(run.config),
        "preflight": preflight_figures,
        "before": evaluate_and_log(run, run.splits.reports, "before"),
    }
    (run.folder / "before.json").write_text(json.dumps(record, indent=1) + "\n")


def finish(run):
    """After the last step: the weights, what they and the best ones score, and the table."""
    save_model(run.folder / "last", run.student, run.tokenizer)
    kind = "weights"
    record = json.loads((run.folder / "before.json").read_text())
    record |= {"config": dataclasses.asdict(run.config), "method": run.method}
    record["last"] = evaluate_and_log(run, run.splits.reports, "last")
    if run.config.lora_rank:
        kind = "adapters"
        record["merged_divergence"] = merged_divergence(run)
    if run.best is not None and run.best["step"] != run.steps_taken:
        load_weights(run.student, run.folder / "best")
        record["best"] = evaluate_and_log(run, run.splits.reports, "best")
    record["collapse"] = run.collapse
    record["best_step"] = run.best and run.best["step"]
    parameters = list(run.student.parameters())
    record["parameters"] = sum(p.numel() for p in parameters)
    record["trained_parameters"] = sum(p.numel() for p in parameters if p.requires_grad)
    record["seconds"] = time.perf_counter() - run.started
    record["machine"] = describe_machine()
    peak = peak_bytes(best_device())
    record["memory"] = {place: {"planned": run.needs[place], "peak": peak[place]} for place in peak}
    (run.folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    best = f", {run.folder}/best" if run.best else ""
    print(f"\n{format_results(record)}\n{kind}: {run.folder}/last{best}")
    for place, size in record["memory"].items():
        planned, peak = size["planned"] / 1e9, size["peak"] / 1e9
        print(f"memory: {place} {peak:.1f} GB at the most, planned {planned:.1f}")
    if run.config.lora_rank:
        print(merging_advice(run, record))


def merging_advice(run, record):
    """What rounding would do to the merged weights, beside what training did."""
    drift = next(iter(record["last"].values()))["drift_from_base"]
    by_rounding = max(0, record["merged_divergence"])
    moved = "training moved it by" if run.teacher_model is None else "from --teacher-model it is"
    return (
        f"{record['trained_parameters'] / 1e6:.1f} M of {record['parameters'] / 1e6:.1f} M "
        f"parameters were trained. Merged into {run.config.dtype} weights the model would move by "
        f"{by_rounding:.1g} nats a token; {moved} {drift:.1g}. docs/adapters.md says "
        "how to merge"
    )
