"""What decides a run: Config, whose fields are the flags, the presets, and what is refused.

Needs torch, and data.py, kl_estimators.py, models.py, optim.py and scoring.py beside it.
"""

import argparse
import dataclasses
import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

import data
from data import CONTEXTS, SAMPLES, TASKS, TEACHER_INSTRUCTIONS, load_task
from kl_estimators import DIVERGENCES, ESTIMATORS, REDUCTIONS
from models import list_checkpoints, read_state
from optim import GENERAL_PROMPTS
from scoring import check_unseen, score_by_rule
from support.judge import choose_scorer


def option(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices and list(choices)})


@dataclass
class Config:
    """Everything that decides a run. The defaults are the paper as written, for skills."""

    task: str = option("science", "what to learn", [task for task in TASKS if TASKS[task]])
    preset: str = option("paper", "recipe and hardware part, which other flags override")
    data: str | None = option(None, "folder with train.jsonl, validation.jsonl, test.jsonl")
    model: str = option("Qwen/Qwen2.5-7B-Instruct", "hub id, folder, or smollm2 (135M, from PyPI)")
    dtype: str = option("bfloat16", "of the model's arithmetic", ["float32", "bfloat16"])
    output: str | None = option(None, "folder of the run; else runs/TASK or the next free one")
    seed: int = option(0, "decides the order of the data and every draw")
    force: bool = option(False, "train though the preflight finds nothing to teach")
    # the method
    divergence: str = option("reverse", "reverse is Eq. 1, forward the authors' code", DIVERGENCES)
    estimator: str = option("analytic", "of A.1; token and rb exist for reverse", ESTIMATORS)
    reduction: str = option("mean", "over tokens; sum is Algorithm 1 as printed", REDUCTIONS)
    skip_first_tokens: int = option(3, "tokens at the start of a completion without a loss")
    temperature: float = option(1.0, "of the training rollouts; the loss is always at 1")
    teacher: str = option("ema", "whose weights teach", ["ema", "base", "student"])
    teacher_model: str | None = option(None, "for re-invocation: hub id, folder or smollm2")
    ema_rate: float = option(0.01, "share of the student mixed into the teacher each step")
    teacher_context: str = option("demonstration", "what the teacher sees beside x", CONTEXTS)
    teacher_instruction: str = option("thinking", "end of its prompt", TEACHER_INSTRUCTIONS)
    # optimisation
    learning_rate: float = option(1e-5, "peak; cosine to 0")
    warmup: float = option(10, "steps of linear warm-up; below 1 a share of all steps")
    epochs: float = option(2, "passes over the training examples")
    steps: int | None = option(None, "number of steps, instead of epochs")
    batch_size: int = option(32, "prompts a step")
    rollouts_per_prompt: int = option(1, "completions sampled for each of them")
    micro_batch_size: int = option(32, "maximum sequences per forward and backward pass")
    micro_batch_tokens: int = option(2048, "maximum tokens in one, padding included")
    gradient_checkpointing: bool = option(True, "recompute layers in backward: less memory")
    offload_optimizer: bool = option(False, "moments and remainders in host memory; same bits")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this 2-norm")
    weight_decay: float = option(0.0, "decoupled, as in AdamW")
    # lengths, in tokens
    max_new_tokens: int = option(2048, "longest completion in training")
    eval_new_tokens: int = option(0, "longest answer in evaluation, if longer than that")
    max_prompt_tokens: int = option(2048, "longest student prompt; the blocks of cpt")
    max_teacher_prompt_tokens: int = option(4096, "longest teacher prompt")
    too_long: str = option("drop", "prompts above the limit: never cut", ["drop", "stop"])
    # evaluation and saving
    train_examples: int | None = option(None, "use only the first N training examples")
    eval_examples: int | None = option(None, "use only the first N of each evaluation set")
    judge: str | None = option(None, "URL of a model that scores knowledge and medical answers")
    judge_model: str | None = option(None, "its name there, if the server needs one")
    judge_timeout: float = option(60, "seconds for a verdict")
    judge_repeats: int = option(1, "verdicts for each answer; their spread widens standard_error")
    general_data: str | None = option(None, "JSONL of up to 32 prompts to measure drift on")
    general_tokens: int = option(256, "length of the answers that drift is measured on")
    eval_every: int = option(50, "steps between validations; 0: never, and no best weights")
    save_every: int = option(50, "steps between checkpoints")
    keep_last: int = option(1, "checkpoints to keep; 0: none, only the weights at the end")
    log_every: int = option(1, "steps between log lines; metrics.jsonl has every step")
    sample_every: int = option(10, "steps between printed completions; 0: none")

    @property
    def answer_tokens(self):
        return max(self.max_new_tokens, self.eval_new_tokens)

    def total_steps(self, n_examples):
        return self.steps or max(1, math.ceil(self.epochs * n_examples / self.batch_size))


# eval_every is not among them: it chooses the best weights
FREE_ON_RESUME = ["log_every", "sample_every", "save_every", "keep_last"]

TEXT = {"teacher_context": "text+demonstration"}
# a small model asked for its thinking process talks about it, and the student learns that talk
KNOWLEDGE = TEXT | {"teacher_instruction": "plain"}

# two to three times faster where the CPU multiplies bfloat16; the trained numbers are exact anyway
bfloat16_is_fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
fast_dtype = "bfloat16" if bfloat16_is_fast else "float32"

# A preset has a recipe: what is learned, and how; a hardware part: what the machine can hold, or do
# in the time; and what differs for a task. Config's defaults are the paper's, for skills, on a GPU.
RECIPES = {
    "paper": {},
    "authors": {"divergence": "forward", "learning_rate": 5e-5, "warmup": 0.1},
    "laptop": {  # for the built-in model alone, chosen on validation: docs/experiments.md
        "model": "smollm2",
        "divergence": "forward",
        "temperature": 0.5,
        "teacher_instruction": "own-words",
        "learning_rate": 5e-5,
        "steps": 50,
        "eval_every": 10,
        "save_every": 25,
    },
}
HARDWARE = {
    "authors": {"max_new_tokens": 1024},
    "laptop": {
        "dtype": fast_dtype,
        "batch_size": 16,
        "micro_batch_tokens": 4096,
        "gradient_checkpointing": False,
        "max_new_tokens": 28,
        "eval_new_tokens": 40,
        "max_prompt_tokens": 256,
        "max_teacher_prompt_tokens": 512,
        "eval_examples": 64,
        "general_tokens": 32,
    },
    "cpu": {  # the recipe of paper with another model than the built-in one
        "dtype": fast_dtype,
        "max_new_tokens": 512,
        "max_prompt_tokens": 1024,
        "max_teacher_prompt_tokens": 2048,
    },
}
LONGER = {"max_new_tokens": 96, "max_prompt_tokens": 512, "max_teacher_prompt_tokens": 768}
FOR_A_TASK = {
    ("paper", "knowledge"): KNOWLEDGE | {"epochs": 4, "max_new_tokens": 1024},
    ("authors", "knowledge"): KNOWLEDGE | {"epochs": 4},
    ("laptop", "knowledge"): TEXT
    | {"teacher": "base", "learning_rate": 1e-4, "skip_first_tokens": 0},
    ("laptop", "tooluse"): LONGER,
}


def preset_values(preset, task):
    return RECIPES[preset] | HARDWARE.get(preset, {}) | FOR_A_TASK.get((preset, task), {})


# ---- from the command line ----


def parse_config(command, description, fixed=None, parser=None):
    """["python", script, *flags] -> (Config, checkpoint to resume from or None).

    Prints which preset was taken, and why. fixed are the fields that a baseline decides. What is
    wrong ends the program with one line.
    """
    parser = parser or argparse.ArgumentParser(allow_abbrev=False)
    parser.description, parser.formatter_class = description, argparse.RawDescriptionHelpFormatter
    for f in dataclasses.fields(Config):
        how = {"help": described(f), "default": argparse.SUPPRESS}
        if f.type is bool:
            how["action"] = argparse.BooleanOptionalAction
        else:
            how["type"] = {int: int, float: float, int | None: int}.get(f.type, str)
            how["choices"] = list(RECIPES) if f.name == "preset" else f.metadata["choices"]
        parser.add_argument(flag(f.name), **how)
    help = f"continue a run as it was configured; only {FREE_FLAGS} may change"
    parser.add_argument("--resume", metavar="RUN", help=help)
    given = vars(parser.parse_args(command[2:]))
    method, resume = given.pop("method", None), given.pop("resume")
    try:
        if resume is None:
            config, checkpoint, about = new_config(given, fixed or {}, method)
        else:
            config, checkpoint, about = resumed_config(Path(resume), given, command[1])
        check_config(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(about)
    return config, checkpoint


def flag(name):
    return "--" + name.replace("_", "-")


FREE_FLAGS = ", ".join(map(flag, FREE_ON_RESUME))


def described(f):
    """The help of a flag, with its default and that of the preset laptop if it is another."""
    laptop, values = preset_values("laptop", Config.task), []
    if f.default is not None:
        values.append(f"default: {f.default}")
    if f.name in laptop:
        values.append(f"laptop: {laptop[f.name]}")
    return f.metadata["help"] + (f" ({'; '.join(values)})" if values else "")


def new_config(given, fixed, method):
    for name, value in fixed.items():
        if given.get(name, value) != value:
            why = f"--method {method} fixes it to {value}"
            raise ValueError(f"{flag(name)} is {given[name]}; {why}")
    preset, values, why = choose_preset(given)
    values = preset_values(preset, given.get("task", Config.task)) | values | fixed | given
    samples = "" if "data" in given else "; data: our own small samples, as no --data is given"
    return Config(**{"preset": preset} | values), None, f"preset {preset} ({why}){samples}"


# GB of a plan, Qwen2.5's size, offload: python benchmarks/bench_memory.py --table
CARDS = [(147, "7B", False), (71, "7B", True), (32, "3B", True), (19, "1.5B", True)]
CARDS += [(13, "0.5B", False), (9, "0.5B", True)]


def choose_preset(given):
    """(preset, values that the machine decides, why); laptop is a recipe for its model alone."""
    if "preset" in given:
        return given["preset"], {}, "as named"
    if given.get("model", "smollm2") != "smollm2":
        if torch.cuda.is_available():
            return "paper", {}, "--model is not the built-in one"
        return "paper", HARDWARE["cpu"], "--model is not the built-in one; with lengths for a CPU"
    if torch.cuda.is_available() and "model" not in given:
        gigabytes = torch.cuda.mem_get_info()[1] / 1e9
        for needed, size, offload in CARDS:
            if gigabytes >= needed:
                values = {"model": f"Qwen/Qwen2.5-{size}-Instruct", "offload_optimizer": offload}
                return "paper", values, f"a GPU of {gigabytes:.0f} GB trains up to {size}"
        return "laptop", {}, f"the GPU has only {gigabytes:.0f} GB"
    return "laptop", {}, "--model smollm2" if "model" in given else "there is no GPU"


def resumed_config(run_folder, given, script):
    checkpoints = list_checkpoints(run_folder)
    if not checkpoints:
        raise ValueError(f"{run_folder} has no checkpoint to resume from; name the folder of a run")
    state = read_state(checkpoints[-1])
    saved, writer = state["config"], "sdft.py" if state["method"] == "sdft" else "baselines.py"
    if writer != script:
        raise ValueError(
            f"{run_folder} was written by {writer}; continue it with: "
            f"python {writer} --resume {run_folder}"
        )
    changed = {name: value for name, value in given.items() if saved.get(name) != value}
    changes = [f"{flag(name)} is {value}, was {saved.get(name)}" for name, value in changed.items()]
    moved = {"judge", "judge_timeout"} if saved.get("judge") and given.get("judge") else set()
    if changed.keys() - set(FREE_ON_RESUME) - moved:
        raise ValueError(
            f"a resumed run keeps its configuration; {'; '.join(changes)}. Leave these flags out, "
            f"or start a new run; only {FREE_FLAGS} may change"
        )
    about = [f"preset {saved['preset']} (as it was), resumed from {checkpoints[-1]}", *changes]
    return Config(**saved | given), checkpoints[-1], "; ".join(about)


AT_LEAST = {0: "skip_first_tokens eval_every sample_every warmup weight_decay seed keep_last"}
AT_LEAST[0] += " eval_new_tokens"
AT_LEAST[1] = """batch_size rollouts_per_prompt micro_batch_size micro_batch_tokens max_new_tokens
    max_prompt_tokens max_teacher_prompt_tokens save_every log_every train_examples
    eval_examples steps general_tokens"""


def check_config(config):
    """Reject contradictory flags, by name, and values out of range."""
    if (config.teacher == "model") != (config.teacher_model is not None):
        raise ValueError("--teacher-model and baselines.py --method reinvoke need each other")
    if config.estimator != "analytic":
        estimator = f"--estimator {config.estimator}"
        if config.divergence != "reverse":
            raise ValueError(
                f"{estimator} estimates the gradient of the reverse KL; with --divergence "
                f"{config.divergence} use --estimator analytic"
            )
        if config.temperature != 1:
            raise ValueError(
                f"{estimator} assumes that completions are drawn from the student's own softmax: "
                f"it needs --temperature 1, not {config.temperature}"
            )
    if config.estimator == "rb" and (config.reduction != "sum" or config.skip_first_tokens > 0):
        raise ValueError(
            "--estimator rb needs --reduction sum and --skip-first-tokens 0; "
            "rao_blackwell_surrogate in kl_estimators.py says why"
        )
    for least, names in AT_LEAST.items():
        for name in names.split():
            value = getattr(config, name)
            if value is not None and not value >= least:
                raise ValueError(f"{flag(name)} is {value}; it must be at least {least}")
    for name in ("learning_rate", "epochs", "max_grad_norm", "temperature"):
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{flag(name)} is {getattr(config, name)}; it must be above 0")
    if not 0 < config.ema_rate <= 1:
        raise ValueError(f"--ema-rate is {config.ema_rate}; it must be above 0 and at most 1")
    if config.skip_first_tokens >= config.max_new_tokens:
        raise ValueError(
            f"--skip-first-tokens {config.skip_first_tokens} leaves no token of "
            f"--max-new-tokens {config.max_new_tokens} to learn from"
        )


# ---- around a run ----


@dataclass
class Splits:
    """The data of a run: lists of Example."""

    train: list
    validation: list
    reports: dict  # name -> the examples of a row of the final table
    general: list  # everyday questions, never trained on, that drift is measured on
    scorer: object = score_by_rule  # or a judge (support/judge.py)


REPORTS = {  # rows of the final table, {name: split}; all but test.jsonl a folder may lack
    "science": {"test": "test", "new stems": "test_new_stems"},
    "knowledge": {
        "trained wordings": "train",
        "held-out wordings": "test",
        "indirect (OOD)": "ood",
    },
}


def load_splits(config):
    """Read every file of a run, before the model loads -> Splits; ValueError if one is wrong."""
    folder, N = config.data, config.eval_examples
    train = load_task(config.task, "train", folder)[: config.train_examples]
    validation = load_task(config.task, "validation", folder)[:N]
    reports = {
        name: load_task(config.task, split, folder)[:N]
        for name, split in REPORTS.get(config.task, {"test": "test"}).items()
        if split == "test" or Path(folder or SAMPLES / config.task, f"{split}.jsonl").exists()
    }
    for example in train + validation:
        data.check_context(example, config.teacher_context)
    file = config.general_data
    general = data.read_jsonl(file, "general", False) if file else load_task("general", "test")
    # re-invocation trains on everyday prompts
    check_unseen(general, load_task("general", "train") if config.teacher == "model" else train)
    scored = validation + sum(reports.values(), [])
    judge = config.judge, config.judge_model, config.judge_timeout, config.judge_repeats
    scorer = choose_scorer(config.task, scored, *judge)
    return Splits(train, validation, reports, general[:GENERAL_PROMPTS], scorer)


@contextmanager
def run_folder(config, checkpoint):
    """with run_folder(...) as folder: errors inside end the program with a line that helps."""
    try:
        folder = checkpoint.parent if checkpoint else new_run_folder(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        yield folder
    except KeyboardInterrupt:
        sys.exit("\nstopped at once; a run that has a checkpoint goes on with --resume")
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        message = explain(error, folder)
        if message is None:
            raise
        sys.exit(f"error: {message}")
    finally:
        if not any(folder.iterdir()):  # nothing was trained: the same command runs again
            folder.rmdir()


def new_run_folder(config):
    """Make the folder of a new run; an existing one is never written into."""
    folder, n = Path(config.output or Path("runs") / config.task), 2
    while config.output is None and folder.exists():
        folder, n = Path("runs") / f"{config.task}-{n}", n + 1
    if folder.exists():
        raise ValueError(f"{folder} exists; name another --output, or go on with --resume {folder}")
    folder.mkdir(parents=True)
    return folder


def explain(error, folder):
    """A line, or two with a remedy, for an error that a user can do something about; else None."""
    kept = list_checkpoints(folder)
    resume = (
        f"--resume {folder} goes on from {kept[-1].name}" if kept else "No checkpoint was saved"
    )
    if isinstance(error, FloatingPointError):
        return f"{error}\n{resume}. The usual remedy is a new run with a lower --learning-rate"
    if isinstance(error, (ValueError, OSError)):  # wrong input, a damaged checkpoint, a full disk
        return str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return (
            f"{str(error).splitlines()[0]}\nA new run takes less memory with a smaller "
            "--micro-batch-tokens or --max-new-tokens, with --gradient-checkpointing, or with "
            f"--dtype bfloat16. {resume}, with its flags as they are"
        )
    return None
