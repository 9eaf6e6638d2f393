"""What decides a run: Config, whose fields are the flags; the presets; contradictory flags."""

import argparse
import dataclasses
import math
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data import CONTEXTS, TASKS, TEACHER_INSTRUCTIONS, context_of_template, read_template
from kl_estimators import DIVERGENCES, ESTIMATORS, REDUCTIONS
from support.chat import parse_template_kwargs, shorten
from support.checkpoint import list_checkpoints, read_state
from support.judge import TIMEOUT
from support.models import read_config
from support.plan import count_parameters

TEACHERS = {  # whose weights teach
    "ema": "the moving average of the student",
    "base": "the model as it was before training",
    "student": "the student itself",
    "model": "--teacher-model; baselines.py --method reinvoke sets it",
    "none": "no teacher; baselines.py sets it for likelihood losses",
}


def option(default, help, choices=None, least=None, above=None):
    """A field of Config with its help, its choices and its bound: >= least, or > above."""
    metadata = {"help": help, "choices": choices and list(choices), "least": least, "above": above}
    return field(default=default, metadata=metadata)


@dataclass
class Config:
    """Everything that decides a run.

    The defaults are the paper as written, for skills; the reduction alone is the authors' code's.
    """

    task: str = option("science", "what to learn", [task for task in TASKS if TASKS[task]])
    preset: str = option("paper", "recipe and hardware part, which other flags override")
    data: str | None = option(None, "folder with train.jsonl, validation.jsonl, test.jsonl")
    model: str = option("Qwen/Qwen2.5-7B-Instruct", "hub id, folder, or smollm2 (135M, from PyPI)")
    dtype: str = option("bfloat16", "of the model's arithmetic", ["float32", "bfloat16"])
    output: str | None = option(None, "folder of the run; else runs/TASK or the next free one")
    seed: int = option(0, "decides the order of the data and every draw", least=0)
    force: bool = option(False, "train though the preflight finds nothing to teach")
    ignore_plan: bool = option(False, "start though the plan exceeds the memory or disk")
    # the method
    divergence: str = option("reverse", "reverse is Eq. 1, forward the authors' code", DIVERGENCES)
    estimator: str = option("analytic", "of A.1; token and rb need reverse", ESTIMATORS)
    reduction: str = option("mean", "over tokens; sum is Algorithm 1 as printed", REDUCTIONS)
    skip_first_tokens: int = option(
        3, "tokens at the start of a completion without a loss", least=0
    )
    # a small model's samples at 1 are often gibberish, on which no teacher can teach: laptop 0.5
    temperature: float = option(1.0, "of the training rollouts; the loss is always at 1", above=0)
    teacher: str = option("ema", "whose weights teach", TEACHERS)
    teacher_model: str | None = option(None, "for re-invocation: hub id, folder or smollm2")
    ema_rate: float = option(0.01, "share of the student mixed into the teacher each step", above=0)
    teacher_context: str = option("demonstration", "what the teacher sees beside x", CONTEXTS)
    teacher_instruction: str = option(
        "thinking", "last sentence of the teacher's prompt", TEACHER_INSTRUCTIONS
    )
    # the text itself, not the name of its file: a run keeps the words that it was trained with
    teacher_template: str | None = option(
        None, "file with your own text around {question}, {demonstration} and perhaps {text}"
    )
    chat_template_kwargs: dict | None = option(
        None, "JSON that the model's chat template reads, for student and teacher alike"
    )
    on_collapse: str = option(
        "warn",
        "after a validation shows one: go on, end the run, or keep the teacher as it is",
        ["warn", "stop", "freeze"],
    )
    # optimisation
    learning_rate: float = option(1e-5, "peak; cosine to 0", above=0)
    warmup: float = option(10, "steps of linear warm-up; below 1 a share of all steps", least=0)
    epochs: float = option(2, "passes over the training examples", above=0)
    steps: int | None = option(None, "number of steps, instead of epochs", least=1)
    batch_size: int = option(32, "prompts a step", least=1)
    rollouts_per_prompt: int = option(1, "completions sampled for each of them", least=1)
    micro_batch_tokens: int = option(
        2048, "maximum tokens of a forward and backward pass, padding included", least=1
    )
    gradient_checkpointing: bool = option(True, "recompute layers in backward: less memory")
    offload_optimizer: bool = option(False, "moments and remainders in host memory; same bits")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this 2-norm", above=0)
    weight_decay: float = option(0.0, "decoupled, as in AdamW", least=0)
    # low-rank adapters (lora.py)
    lora_rank: int = option(0, "train adapters of this rank; 0: all weights", least=0)
    lora_alpha: int = option(32, "adapters add (alpha / rank) B A to a weight", least=1)
    lora_targets: str | None = option(None, "ends of layer names, with commas; else all linear")
    lora_train_a: bool = option(True, "train A and B; without, B alone: an exact EMA teacher")
    # lengths, in tokens
    max_new_tokens: int = option(2048, "longest completion in training", least=1)
    eval_new_tokens: int = option(0, "longest answer in evaluation, if more than that", least=0)
    max_prompt_tokens: int = option(2048, "longest student prompt; the blocks of cpt", least=1)
    max_teacher_prompt_tokens: int = option(4096, "longest teacher prompt", least=1)
    too_long: str = option("drop", "prompts above the limit: never cut", ["drop", "stop"])
    # evaluation and saving
    eval_examples: int | None = option(None, "use only the first N of each evaluation set", least=1)
    judge: str | None = option(None, "URL of a model that scores knowledge and medical answers")
    judge_model: str | None = option(None, "name of the judge on its server, if that needs one")
    judge_timeout: float = option(TIMEOUT, "seconds for a verdict", above=0)
    judge_repeats: int = option(1, "verdicts for each answer; a score is their share", least=1)
    general_data: str | None = option(None, "JSONL of up to 32 prompts to measure drift on")
    general_tokens: int = option(256, "length of the answers that drift is measured on", least=1)
    eval_every: int = option(50, "steps between validations; 0: never, no best weights", least=0)
    save_every: int = option(50, "steps between checkpoints", least=1)
    keep_last: int = option(1, "checkpoints to keep; 0: none, only the last weights", least=0)
    sample_every: int = option(10, "steps between printed completions; 0: none", least=0)

    @property
    def has_copied_teacher(self):
        """Whether the teacher begins as a copy of the student."""
        return self.teacher in ("ema", "base")

    @property
    def targets_of_adapters(self):
        """--lora-targets as a list, or None."""
        return self.lora_targets and self.lora_targets.split(",")

    @property
    def answer_tokens(self):
        """The longest answer in evaluation."""
        return max(self.max_new_tokens, self.eval_new_tokens)

    def total_steps(self, n_examples):
        return self.steps or max(1, math.ceil(self.epochs * n_examples / self.batch_size))

    def warmup_steps(self, steps):
        """Of all steps of a run; below 1 the flag is a share of them."""
        return self.warmup if self.warmup >= 1 else self.warmup * steps


# A and B need about ten times the rate of all weights, whatever the rank: Schulman et al. 2025,
# "LoRA without regret". The presets' rates are for all weights.
ADAPTER_RATE = 10

# what --resume may change; not eval_every, which chooses the best weights
FREE_ON_RESUME = ["sample_every", "save_every", "keep_last", "ignore_plan"]

KNOWLEDGE_CONTEXT = {"teacher_context": "text+demonstration"}

# two to three times faster where the CPU multiplies bfloat16; the trained numbers are exact anyway
bfloat16_is_fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
fast_dtype = "bfloat16" if bfloat16_is_fast else "float32"

# A preset has a recipe: what is learned, and how; a hardware part: what the machine can hold, or do
# in the time; and what differs for a task. Config's defaults are the paper's, for skills, on a GPU.
RECIPES = {
    "paper": {},
    "authors": {"divergence": "forward", "learning_rate": 5e-5, "warmup": 0.1},  # their code's
    # behind the paper's figures, as the authors gave it in public: 1e-5, 10 warm-up steps and three
    # masked tokens are Config's defaults
    "published": {"divergence": "forward"},
    "laptop": {  # for the built-in model, chosen on validation: docs/lab-log.md
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
# The rates of laptop are those of 135 M parameters. A model of 0.63 B learns science with smaller
# ones: to 100 % of validation at a drift of 0.013 with 2e-6, 0.038 with 5e-6, 0.080 with 1e-5
# (docs/results.md). It was not run on other tasks.
TINY = 3e8  # parameters, up to which laptop keeps its rates
ABOVE_TINY = {"learning_rate": 5e-6}
SCIENCE_ABOVE_TINY = {"learning_rate": 2e-6, "steps": 60}
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
    ("paper", "knowledge"): KNOWLEDGE_CONTEXT | {"epochs": 4, "max_new_tokens": 1024},
    ("authors", "knowledge"): KNOWLEDGE_CONTEXT | {"epochs": 4},
    ("published", "knowledge"): KNOWLEDGE_CONTEXT | {"epochs": 4, "max_new_tokens": 1024},
    ("laptop", "knowledge"): KNOWLEDGE_CONTEXT
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
    parser.description = description
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for f in dataclasses.fields(Config):
        add_flag(parser, f)
    help = f"continue a run as it was configured; only {MAY_CHANGE} may change"
    parser.add_argument("--resume", metavar="RUN", help=help)
    given = vars(parser.parse_args(command[2:]))
    method = given.pop("method", None)
    resume = given.pop("resume")
    try:
        if "teacher_template" in given:
            given["teacher_template"] = read_template(Path(given["teacher_template"]).expanduser())
        if resume is None:
            config, checkpoint, about = new_config(given, fixed or {}, method)
        else:
            config, checkpoint, about = resumed_config(
                Path(resume).expanduser(), given, command[1], method
            )
        reject_contradictions(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(about)
    return config, checkpoint


def flag(name):
    return "--" + name.replace("_", "-")


def add_flag(parser, f):
    """The flag of a field of Config; one that is not given leaves no trace in the result."""
    help = described(f)
    if f.type is bool:
        switch = argparse.BooleanOptionalAction
        parser.add_argument(flag(f.name), action=switch, default=argparse.SUPPRESS, help=help)
        return
    types = {int: int, float: float, int | None: int, dict | None: parse_template_kwargs}
    type_ = types.get(f.type, str)
    choices = list(RECIPES) if f.name == "preset" else f.metadata["choices"]
    parser.add_argument(
        flag(f.name), type=type_, choices=choices, default=argparse.SUPPRESS, help=help
    )


# ~ is the home folder in these, also after an =
PATHS = ["data", "model", "teacher_model", "output", "general_data"]
MAY_CHANGE = ", ".join(map(flag, FREE_ON_RESUME)) + ", and of a judge its address and timeout"


CHOSEN_BY_MACHINE = {
    "preset": "by --model and the machine; the defaults below are those of paper",
    "model": "the largest Qwen2.5-Instruct that the card can train; without a card smollm2",
}


def described(f):
    """The help of a flag, with its default and that of the preset laptop if it is another."""
    if f.name in CHOSEN_BY_MACHINE:
        return f"{f.metadata['help']} (default: {CHOSEN_BY_MACHINE[f.name]})"
    laptop = preset_values("laptop", Config.task)
    values = []
    if f.default is not None:
        values.append(f"default: {f.default}")
    if f.name in laptop:
        values.append(f"laptop: {laptop[f.name]}")
    return f.metadata["help"] + (f" ({'; '.join(values)})" if values else "")


LIKELIHOOD_UNREAD = ["divergence", "estimator"]
UNREAD = {  # fields that a method of baselines.py never reads, beside those that it fixes
    "sft": [*LIKELIHOOD_UNREAD, "temperature"],
    "dft": [*LIKELIHOOD_UNREAD, "temperature"],
    "cpt": [*LIKELIHOOD_UNREAD, "temperature"],
    "teacher-sft": LIKELIHOOD_UNREAD,
    "reinvoke": ["teacher_instruction"],
}


def new_config(given, fixed, method):
    for name, value in fixed.items():
        if given.get(name, value) != value:
            why = f"--method {method} fixes it to {value}"
            raise ValueError(f"{flag(name)} is {given[name]}; {why}")
    for name in UNREAD.get(method, []):
        if name in given:
            raise ValueError(f"--method {method} never reads {flag(name)}; leave it out")
    for name in PATHS:
        if given.get(name):
            # not Path, which would make the built-in model of ./smollm2
            given[name] = os.path.expanduser(given[name])
    preset, values, why = choose_preset(given)
    task = given.get("task", Config.task)
    if preset == "laptop" and is_above_tiny(given):
        values = SCIENCE_ABOVE_TINY if task == "science" else ABOVE_TINY
        why += ", with the rate of a larger model"
    values = preset_values(preset, task) | values | fixed | given
    if "epochs" in given:
        if "steps" in given:
            raise ValueError("--epochs and --steps both give the length of a run; leave one out")
        values.pop("steps", None)  # of the preset, which total_steps would prefer
    if "teacher_template" in given:
        if "teacher_instruction" in given:
            raise ValueError("--teacher-template replaces the words of --teacher-instruction")
        # presets name a context, too: the template decides, unless a flag names another
        if "teacher_context" not in given | fixed:
            values["teacher_context"] = context_of_template(given["teacher_template"])
    context = values.get("teacher_context", Config.teacher_context)
    if "teacher_instruction" in given and "demonstration" not in context:
        raise ValueError(f"--teacher-instruction is not read with --teacher-context {context}")
    teacher = values.get("teacher", Config.teacher)
    if method is None and teacher in ("model", "none"):
        raise ValueError(f"--teacher {teacher} is for baselines.py alone")
    if "ema_rate" in given and teacher != "ema":
        raise ValueError(f"--ema-rate needs --teacher ema, not {teacher}")
    about = f"preset {preset} ({why})"
    if values.get("lora_rank") and "learning_rate" not in given:
        values["learning_rate"] = ADAPTER_RATE * values.get("learning_rate", Config.learning_rate)
        about += f"; --learning-rate {values['learning_rate']:g}, {ADAPTER_RATE} times the preset's"
        about += ", as adapters learn"
    if "data" not in given:
        about += "; data: our own small samples, as no --data is given"
    return Config(**{"preset": preset} | values), None, about


OFFLOAD = {"offload_optimizer": True}
ADAPTERS = {"lora_rank": 16}
CARDS = [  # GB of a plan, Qwen2.5's size, flags: python benchmarks/bench_memory.py --table
    (147, "7B", {}),
    (71, "7B", OFFLOAD),
    (20, "7B", ADAPTERS),
    (10, "3B", ADAPTERS),
    (7, "1.5B", ADAPTERS),
]


def choose_preset(given):
    """(preset, values that the machine decides, why); laptop is named, or for its own model."""
    if "preset" in given:
        return given["preset"], {}, "as named"
    if given.get("model", "smollm2") != "smollm2":
        if torch.cuda.is_available():
            return "paper", {}, "--model is not the built-in one"
        return "paper", HARDWARE["cpu"], "--model is not the built-in one; with lengths for a CPU"
    if torch.cuda.is_available() and "model" not in given:
        gigabytes = torch.cuda.mem_get_info()[1] / 1e9
        for needed, size, flags in CARDS:
            if gigabytes >= needed:
                values = {"model": f"Qwen/Qwen2.5-{size}-Instruct"} | flags
                how = ", with adapters" if "lora_rank" in flags else ""
                return "paper", values, f"a GPU of {gigabytes:.0f} GB trains up to {size}{how}"
        return "laptop", {}, f"the GPU has only {gigabytes:.0f} GB"
    return "laptop", {}, "--model smollm2" if "model" in given else "there is no GPU"


def is_above_tiny(given):
    """Whether the model is larger than those that laptop's rates were chosen for.

    Reads its config.json, unless a rate is given.
    """
    model = given.get("model", "smollm2")
    if model == "smollm2" or "learning_rate" in given:
        return False
    parameters, _ = count_parameters(read_config(model))
    return parameters > TINY


def resumed_config(run_folder, given, script, method=None):
    checkpoints = list_checkpoints(run_folder)
    if not checkpoints:
        remedy = "name the folder of a run"
        if (run_folder / "before.json").exists():
            remedy = "the run saved none, so begin it anew under another --output"
        raise ValueError(f"{run_folder} has no checkpoint to resume from; {remedy}")
    state = read_state(checkpoints[-1])
    saved = state["config"]
    if unknown := saved.keys() - {f.name for f in dataclasses.fields(Config)}:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"{checkpoints[-1]} was written by another version, which had {names}")
    writer = "sdft.py" if state["method"] == "sdft" else "baselines.py"
    if writer != script:
        raise ValueError(
            f"{run_folder} was written by {writer}; continue it with: "
            f"python {writer} --resume {shlex.quote(str(run_folder))}"
        )
    if method not in (None, state["method"]):
        raise ValueError(f"--method is {method}, was {state['method']}; leave it out with --resume")
    changed = {name: value for name, value in given.items() if saved.get(name) != value}
    changes = [
        f"{flag(name)} is {shown(value)}, was {shown(saved.get(name))}"
        for name, value in changed.items()
    ]
    moved = {"judge", "judge_timeout"} if saved.get("judge") and given.get("judge", True) else set()
    if changed.keys() - set(FREE_ON_RESUME) - moved:
        raise ValueError(
            f"a resumed run keeps its configuration; {'; '.join(changes)}. Leave these flags out, "
            f"or start a new run; only {MAY_CHANGE} may change"
        )
    about = [f"preset {saved['preset']} (as it was), resumed from {checkpoints[-1]}", *changes]
    return Config(**saved | given), checkpoints[-1], "; ".join(about)


def shown(value):
    """A value in an error message; a teacher's template may have many lines."""
    return shorten(value) if isinstance(value, str) and "\n" in value else value


def reject_contradictions(config):
    """ValueError for a value out of its bounds, and for flags that contradict each other."""
    for f in dataclasses.fields(Config):
        reject_out_of_bounds(f, getattr(config, f.name))
    if (config.teacher == "model") != (config.teacher_model is not None):
        raise ValueError("--teacher-model and baselines.py --method reinvoke need each other")
    if config.on_collapse == "freeze" and config.teacher != "ema":
        raise ValueError(
            f"--on-collapse freeze stops a moving average; it needs --teacher ema, not "
            f"{config.teacher}"
        )
    if config.on_collapse != "warn" and config.eval_every == 0:
        raise ValueError(f"--on-collapse {config.on_collapse} needs validations: --eval-every")
    if config.teacher_template is not None:
        context = context_of_template(config.teacher_template)
        if config.teacher_context != context:
            raise ValueError(
                f"--teacher-template shows {context}, which contradicts "
                f"--teacher-context {config.teacher_context}"
            )
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
    for f in dataclasses.fields(Config):
        if f.name.startswith("lora_") and config.lora_rank == 0:
            if getattr(config, f.name) != f.default:
                raise ValueError(f"{flag(f.name)} needs --lora-rank, such as --lora-rank 16")
    if config.lora_targets is not None and "" in config.lora_targets.split(","):
        raise ValueError("--lora-targets has an empty name; it is like q_proj,v_proj")
    if config.ema_rate > 1:
        raise ValueError(f"--ema-rate is {config.ema_rate}; it must be above 0 and at most 1")
    if config.skip_first_tokens >= config.max_new_tokens:
        raise ValueError(
            f"--skip-first-tokens {config.skip_first_tokens} leaves no token of "
            f"--max-new-tokens {config.max_new_tokens} to learn from"
        )


def reject_out_of_bounds(f, value):
    """ValueError for a number below the bound that its field names, infinite, or no number."""
    least, above = f.metadata["least"], f.metadata["above"]
    if value is None:
        return
    if least is not None and not least <= value < math.inf:
        raise ValueError(f"{flag(f.name)} is {value}; it must be at least {least}")
    if above is not None and not above < value < math.inf:
        raise ValueError(f"{flag(f.name)} is {value}; it must be above {above}")
