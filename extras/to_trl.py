"""Hand a run over to several GPUs: write the run of sdft.py for TRL's SDFTTrainer, and train it.

    python extras/to_trl.py --task science --output FOLDER      # and any other flag of sdft.py
    pip install trl==1.16.0
    accelerate launch --num_processes N extras/to_trl.py --train FOLDER

sdft.py trains on one device. The first command loads no weights; it writes into FOLDER

    data.jsonl      for each example the student's turns, and the teacher's whole last turn
    settings.json   model, order of the examples, learning rate of each step, TRL's settings

The prompts are the token ids that sdft.py would feed, or the example is left out and named. So are
the flags that TRL has no setting for. docs/several-gpus.md says what differs.

The second command needs this file and FOLDER, nothing else of ours, so that the two can be copied
to another machine. FSDP or DeepSpeed come from `accelerate config`. The trained weights end up in
FOLDER/last.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig

# ---- writing; only these functions import what is ours ----

ALPHA = {"forward": 0.0, "jsd": 0.5, "reverse": 1.0}  # TRL's distillation_alpha
TEACHERS = {"ema": "ema", "base": "base", "student": "live"}
MODES = {"analytic": "full_logits", "token": "sampled_token", "rb": "full_logits"}

# Config's field -> (values with which nothing is lost, what TRL does with another)
NOT_CARRIED = {
    "estimator": (["analytic", "token"], "TRL has no such estimator; it takes the analytic one"),
    "reduction": (["mean"], "TRL takes the mean over a completion's tokens"),
    "weight_decay": ([0], "TRL decays neither norms nor biases, sdft.py every weight"),
    "offload_optimizer": ([False], "choose offloading in `accelerate config`"),
    "on_collapse": (["warn"], "TRL looks for no collapse"),
}
UNUSED = [
    "force",
    "ignore_plan",
    "eval_every",
    "eval_examples",
    "eval_new_tokens",
    "general_data",
    "general_tokens",
    "judge",
    "judge_model",
    "judge_timeout",
    "judge_repeats",
    "sample_every",
]


def trl_settings(config, steps):
    """The fields of TRL's SDFTConfig that make a step of ours."""
    return {
        # Algorithm 1
        "distillation_mode": MODES[config.estimator],
        "distillation_alpha": ALPHA[config.divergence],
        "distillation_is_clip": None,
        "num_loss_tokens_to_skip": config.skip_first_tokens,
        "teacher_model_kind": TEACHERS[config.teacher],
        "teacher_update_rate": config.ema_rate,
        "teacher_sync_steps": 1,
        # rollouts. TRL's own temperature would also divide the logits in the loss
        "temperature": 1.0,
        "generation_kwargs": {"temperature": config.temperature},
        "top_p": 1.0,
        "top_k": 0,
        "num_generations": config.rollouts_per_prompt,
        "max_completion_length": config.max_new_tokens,
        "max_prompt_length": None,  # TRL would cut prompts on the left; long ones are left out here
        # optimisation: float32 weights, and bfloat16 arithmetic by autocast
        "model_init_kwargs": {"dtype": "float32"},
        "bf16": config.dtype == "bfloat16",
        "gradient_checkpointing": config.gradient_checkpointing,
        "max_steps": steps,
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "shuffle_dataset": False,  # settings.json has our order
        "seed": config.seed,
        # logs and checkpoints; these hold weights alone, for TRL saves no teacher
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "steps" if config.keep_last else "no",
        "save_steps": config.save_every,
        "save_total_limit": config.keep_last or None,
        "save_only_model": True,
    }


def encode_examples(tokenizer, examples, config, positions=None):
    """(rows of data.jsonl, their pairs of token ids) of the examples that TRL encodes as we do."""
    from data import encode_pairs, teacher_messages
    from support.chat import reads_parts

    if reads_parts(tokenizer):
        raise ValueError("the chat template reads content as a list of parts; TRL gives it strings")
    examples_by_id, rows, kept, left_out = {x.id: x for x in examples}, [], [], []
    for pair in encode_pairs(tokenizer, examples, config, positions):
        example = examples_by_id[pair.id]
        turns = teacher_messages(
            example, config.teacher_context, config.teacher_instruction, config.teacher_template
        )
        by_trl = tokenizer.apply_chat_template(
            [example.messages, turns], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        if by_trl == [pair.student_prompt, pair.teacher_prompt]:
            rows.append({"prompt": example.messages, "privileged_context": turns[-1]["content"]})
            kept.append(pair)
        else:
            left_out.append(pair.id)
    if left_out:
        some = ", ".join(left_out[:5]) + (" …" if len(left_out) > 5 else "")
        print(f"left out, as TRL would read control tokens typed in their text: {some}")
    if not rows:
        raise ValueError("no example is left")
    return rows, kept


def largest_micro_batch(config, pairs):
    """Rows that fit --micro-batch-tokens with the longest prompt; TRL cuts a step into equal parts
    of so many."""
    prompts = [len(p) for pair in pairs for p in (pair.student_prompt, pair.teacher_prompt)]
    rows = config.micro_batch_tokens // (max(prompts) + config.max_new_tokens)
    return max(1, rows)


def run_settings(config, model, pairs):
    """What settings.json holds."""
    from sdft import make_batch

    steps = config.total_steps(len(pairs))
    no_stop = {"eos_token_ids": [], "pad_token_id": 0}  # TRL has its own
    batches = [make_batch(range(len(pairs)), step, config, no_stop) for step in range(steps)]
    each = config.rollouts_per_prompt
    return {
        "model": model,
        "order": [row for batch in batches for row in batch.pairs[::each]],
        "learning_rates": [batch.learning_rate for batch in batches],
        "completions_a_step": config.batch_size * each,
        "largest_micro_batch": largest_micro_batch(config, pairs),
        "trl": trl_settings(config, steps),
    }


def not_carried(config):
    """What TRL has no setting for, a line each."""
    from config import flag

    lost = [
        f"{flag(name)} {getattr(config, name)}: {instead}"
        for name, (nothing_lost, instead) in NOT_CARRIED.items()
        if getattr(config, name) not in nothing_lost
    ]
    unused = ", ".join(map(flag, UNUSED))
    return [
        *lost,
        f"{unused}: no preflight, validation, best/, drift or printed completions",
        "--resume: TRL saves no teacher",
        "the draws of --seed: TRL samples by itself, with other random numbers",
    ]


# families measured to compute positions from columns, padding included
LEARNED_POSITIONS = ("gpt2", "gpt_neo")
# rules of a checkpoint's generation_config that act on TRL's rollouts -> values without effect
SAMPLING_RULES = {
    "min_p": (None, 0.0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "bad_words_ids": (None, []),
    "sequence_bias": (None,),
    "forced_eos_token_id": (None,),
}


def model_differences(model, model_config, tokenizer):
    """What TRL does with this model in another way than sdft.py, a line each."""
    from support.chat import turn_end

    lines = []
    text_config = model_config.get_text_config(decoder=True)
    if model_config.model_type in LEARNED_POSITIONS:
        lines.append("learned positions: TRL pads on the left without position ids and shifts them")
    for name in ("attention_dropout", "attn_pdrop"):
        if getattr(text_config, name, None):
            lines.append(f"{name} {getattr(text_config, name)}: TRL leaves it on in training")
    try:
        generation = GenerationConfig.from_pretrained(model)
    except OSError:
        generation = GenerationConfig.from_model_config(model_config)
    for name, without_effect in SAMPLING_RULES.items():
        value = getattr(generation, name, None)
        if value not in without_effect:
            lines.append(f"generation_config's {name} {value}: it acts on TRL's rollouts")
    of_trl = {tokenizer.eos_token_id} | _ids(generation.eos_token_id)
    for place, ids in (
        ("config.json", _ids(getattr(model_config, "eos_token_id", None))),
        ("the chat template's end of a turn", _ids(turn_end(tokenizer))),
    ):
        if missing := ids - of_trl:
            where = f"EOS ids {sorted(missing)} of {place}"
            lines.append(f"{where}: they end no completion in TRL; add them to generation_config")
    return lines


def _ids(eos_token_id):
    """An EOS id, a list of them or None -> set."""
    if isinstance(eos_token_id, (list, tuple)):
        return set(eos_token_id)
    return {eos_token_id} - {None}


def write(config, folder):
    """Write the two files -> the lines to print."""
    from data import load_task
    from support.adapters import find_adapter
    from support.models import builtin_smollm2, model_positions, read_config

    if config.chat_template_kwargs:
        raise ValueError("--chat-template-kwargs is not handed over; set it in the chat template")
    examples = load_task(config.task, "train", config.data)
    model_config = read_config(config.model)  # refuses what sdft.py would refuse
    model = str(builtin_smollm2()) if config.model == "smollm2" else config.model
    if config.lora_rank or find_adapter(model):
        raise ValueError(
            "adapters cannot be handed over: TRL starts both factors of an EMA teacher's adapters "
            "at zero, and it would hardly follow (docs/adapters.md). Leave --lora-rank out, and "
            "merge an adapter that --model names"
        )
    if Path(model).is_dir():
        model = str(Path(model).resolve())
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    rows, pairs = encode_examples(tokenizer, examples, config, model_positions(model_config))
    settings = run_settings(config, model, pairs)
    lines = [json.dumps(row) for row in rows]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    steps, completions = settings["trl"]["max_steps"], settings["completions_a_step"]
    return [
        *(f"not carried over: {line}" for line in not_carried(config)),
        *(f"TRL differs: {line}" for line in model_differences(model, model_config, tokenizer)),
        f"{folder}: {len(rows)} examples, {steps} steps of {completions} completions. Train with:",
        f"accelerate launch --num_processes N extras/to_trl.py --train {folder}",
    ]


# ---- training; only these functions need TRL ----

CHECKED = "1.16.0"  # the TRL that tests/test_to_trl.py compares with sdft.py


def trainer_class(rates):
    """SDFTTrainer with the learning rates of sdft.py, one a step: TRL's own warm-up starts at 0.

    And with one trap closed: where all tokens of a process's micro-batch are masked, TRL leaves out
    a gather that the other processes then wait in for ever.
    """
    from trl.experimental.sdft import SDFTTrainer

    class Trainer(SDFTTrainer):
        def _compute_self_distillation_loss(self, model, inputs, distillation_logits):
            if not distillation_logits.loss_mask.any():
                self.accelerator.gather(torch.zeros((), device=self.accelerator.device))
            return super()._compute_self_distillation_loss(model, inputs, distillation_logits)

        def create_scheduler(self, num_training_steps, optimizer=None):
            def share_of_peak(step):
                return rates[min(step, len(rates) - 1)] / self.args.learning_rate

            optimizer = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
            return self.lr_scheduler

    return Trainer


def micro_batch_size(rows, processes, largest):
    """The most rows, up to `largest`, in which a process's share of a step can be cut evenly."""
    if rows % processes:
        raise ValueError(f"{rows} completions a step cannot be shared among {processes} processes")
    share = rows // processes
    return max(size for size in range(1, min(share, largest) + 1) if share % size == 0)


def build_trainer(folder):
    """TRL's trainer of what `write` left in a folder."""
    from accelerate.utils import set_seed
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig

    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    # split at \n alone: a prompt may hold other line ends
    lines = (folder / "data.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    rows, processes = settings["completions_a_step"], int(os.environ.get("WORLD_SIZE", 1))
    size = micro_batch_size(rows, processes, settings["largest_micro_batch"])
    config = SDFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=rows // processes // size,
        use_cpu=not torch.accelerator.is_available(),
        **settings["trl"],
    )
    # after TRL's check, which wants {prompt} in it: the column has the teacher's whole turn
    config.teacher_prompt_template = "{privileged_context}"
    examples = Dataset.from_list([json.loads(line) for line in lines])
    trainer = trainer_class(settings["learning_rates"])(
        model=settings["model"],
        args=config,
        train_dataset=examples.select(settings["order"]),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
    )
    # TRL seeds all processes alike, and they would draw the same completions of the same prompt
    set_seed(config.seed, device_specific=True)
    return trainer


def train(folder):
    if importlib.util.find_spec("trl") is None:
        sys.exit(f"error: training needs TRL: pip install trl=={CHECKED}")
    import trl

    if trl.__version__ != CHECKED:
        print(f"TRL {trl.__version__} is installed; this file was checked with {CHECKED}")
    try:
        trainer = build_trainer(folder)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    trainer.train()
    trainer.save_model(str(folder / "last"))


# ---- the two commands ----


def main(argv=None):
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    args, flags = parser.parse_known_args(argv)
    if args.train is None:
        write_run(flags)
    elif flags:
        parser.error(f"FOLDER has every setting of the run; leave out {' '.join(flags)}")
    else:
        train(args.train)


def write_run(flags):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of sdft.py
    from config import parse_config
    from support.run import run_folder

    config, checkpoint = parse_config(["python", "extras/to_trl.py", *flags], __doc__)
    with run_folder(config, checkpoint) as folder:
        print("\n".join(write(config, folder)))


if __name__ == "__main__":
    main()
