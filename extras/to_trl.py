"""Hand a run over to several GPUs: write what TRL's SDFTTrainer needs to make the run of sdft.py.

    python extras/to_trl.py --task science --output FOLDER      # and any other flag of sdft.py
    pip install trl==1.16.0
    accelerate launch --num_processes N FOLDER/train.py

sdft.py trains on one device. This file loads no weights; it writes into FOLDER

    data.jsonl      for each example the student's turns, and the teacher's whole last turn
    settings.json   model, order of the examples, learning rate of each step, TRL's settings
    train.py        a copy of extras/trl_train.py, which reads the two

The prompts are the token ids that sdft.py would feed, or the example is left out and named. So are
the flags that TRL has no setting for. docs/several-gpus.md says what differs.
"""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of sdft.py

from transformers import AutoTokenizer

from config import flag, parse_config, run_folder, total_steps
from data import check_template, load_task, teacher_messages
from eval import encode_pairs
from models import builtin_smollm2, read_config
from sdft import make_batch

TRAIN = Path(__file__).resolve().parent / "trl_train.py"
ALPHA = {"forward": 0.0, "jsd": 0.5, "reverse": 1.0}  # TRL's distillation_alpha
TEACHERS = {"ema": "ema", "base": "base", "student": "live"}
MODES = {"analytic": "full_logits", "token": "sampled_token", "rb": "full_logits"}

# Config's field -> (values with which nothing is lost, what TRL does with another)
NOT_CARRIED = {
    "estimator": (["analytic", "token"], "TRL has no such estimator; it takes the analytic one"),
    "reduction": (["mean"], "TRL takes the mean over a completion's tokens"),
    "weight_decay": ([0], "TRL decays neither norms nor biases, sdft.py every weight"),
    "offload_optimizer": ([False], "choose offloading in `accelerate config`"),
}
UNUSED = "force eval_every eval_examples general_tokens sample_every".split()


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
        "logging_steps": config.log_every,
        "report_to": "none",
        "save_strategy": "steps" if config.keep_last else "no",
        "save_steps": config.save_every,
        "save_total_limit": config.keep_last or None,
        "save_only_model": True,
    }


def encode_examples(tokenizer, examples, config):
    """(rows of data.jsonl, their pairs of token ids) of the examples that TRL encodes as we do."""
    if check_template(tokenizer):
        raise ValueError("the chat template reads content as a list of parts; TRL gives it strings")
    examples_by_id, rows, kept, left_out = {x.id: x for x in examples}, [], [], []
    for pair in encode_pairs(tokenizer, examples, config):
        example = examples_by_id[pair.id]
        turns = teacher_messages(example, config.teacher_context, config.teacher_instruction)
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
    """Rows that fit --micro-batch-size and --micro-batch-tokens with the longest prompt; TRL cuts
    a step into equal parts of so many."""
    prompts = [len(p) for pair in pairs for p in (pair.student_prompt, pair.teacher_prompt)]
    rows = config.micro_batch_tokens // (max(prompts) + config.max_new_tokens)
    return max(1, min(rows, config.micro_batch_size))


def run_settings(config, model, pairs):
    """What settings.json holds."""
    steps = total_steps(config, len(pairs))
    batches = [make_batch(range(len(pairs)), step, config, None) for step in range(steps)]
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


def write(config, folder):
    """Write the three files -> the lines to print."""
    examples = load_task(config.task, "train", config.data)[: config.train_examples]
    read_config(config.model)  # refuses what sdft.py would refuse
    model = str(builtin_smollm2()) if config.model == "smollm2" else config.model
    if Path(model).is_dir():
        model = str(Path(model).resolve())
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    rows, pairs = encode_examples(tokenizer, examples, config)
    settings = run_settings(config, model, pairs)
    lines = [json.dumps(row) for row in rows]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    shutil.copy(TRAIN, folder / "train.py")
    steps, completions = settings["trl"]["max_steps"], settings["completions_a_step"]
    return [
        *(f"not carried over: {line}" for line in not_carried(config)),
        f"{folder}: {len(rows)} examples, {steps} steps of {completions} completions. Train with:",
        f"accelerate launch --num_processes N {folder / 'train.py'}",
    ]


def main(argv=None):
    command = ["python", "extras/to_trl.py", *(sys.argv[1:] if argv is None else argv)]
    config, checkpoint = parse_config(command, __doc__)
    with run_folder(config, checkpoint) as folder:
        print("\n".join(write(config, folder)))


if __name__ == "__main__":
    main()
