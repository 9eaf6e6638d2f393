"""Self-Distillation Fine-Tuning (SDFT), arXiv 2601.19897: Algorithm 1 on one device.

One model plays two roles. The student sees a prompt x and samples a completion y. The teacher, an
exponential moving average (EMA) of the student, sees x AND an expert's demonstration c, and scores
the student's own tokens. Training moves the student's next-token distributions to the teacher's.
The numbers are the lines of the paper's Algorithm 1; "l. 11" names one of them below.

     1   teacher = copy of the student
     2   for each training step:
     3       take a batch of pairs (x, c)
     5-7     student samples one completion of each prompt:  y ~ student(. | x)
     9       teacher prompt = x, c, "Now answer with a response of your own…"   (data.py)
    11       student's log-probabilities of y given x
    12       teacher's log-probabilities of y given x and c
    15       divergence between the two, over the whole vocabulary, at each token of y
    16       loss = its sum (paper) or mean (default) over tokens; then the mean over the batch
    18       student = AdamW(student, gradient of the loss)
    19       teacher += ema_rate (student - teacher)        or --teacher base: it stays as it is

    python sdft.py --task science      # on a CPU: preset laptop, the built-in 135M model, minutes

Choices, and why:
- Divergence. Eq. 1 is the REVERSE KL(student || teacher), the default of --divergence. It weighs
  each token by the student's own probability, so what the student never says it hardly learns. The
  authors' code, and so the paper's figures, use the FORWARD KL(teacher || student), which teaches
  such tokens at once; so do the presets `authors` and `laptop` (without --preset: laptop on a CPU).
- The loss covers every token through EOS, so the student also learns when to stop, and all tokens
  of a completion that the length limit cut off. Only the first --skip-first-tokens (3) are masked:
  there a teacher expects "Based on the text…", which a student without the text should not say.
- --temperature (default 1) decides which completions are visited; the loss compares both full
  softmaxes at temperature 1. Estimator `analytic` is right on whatever was visited; `token` and
  `rb` need y ~ student. `laptop` takes 0.5: a small model's samples at 1 are often gibberish.
- An EMA step of rate 0.01 is lost to rounding in bfloat16, which has 8 significant bits. So every
  weight of both models is an exact float32 number, kept in two parts: a bfloat16 weight, which
  computes, and the 16 bits that it lacks, its remainder (optim.py).
- For --task knowledge the teacher's prompt begins with the article; the student sees x alone.
- Drift, the measure of forgetting, is the mean KL(base || model) per token on the base model's own
  answers to general prompts, never trained on: the same tokens for every model, so runs compare.
B sequences, T completion tokens, V vocabulary, D hidden. Read next: kl_estimators.py, sampling.py.
"""

import copy
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import eval as evaluation
import models
from config import Config, Splits, load_splits, parse_config, run_folder
from kl_estimators import ESTIMATORS, REDUCTIONS, compare_completions, sequence_mean
from optim import AdamW, check_plan, clip_gradients, relative_distance, update_ema
from sampling import completion_hidden, sample_completions
from scoring import log_line, start_log, step_metrics, validation_rank


def sdft_step(student, teacher, optimizer, batch, config, rollout=None):
    """Algorithm 1, l. 5-19, for one batch -> (metrics, rollout); a baseline may bring a rollout."""
    started = time.perf_counter()
    if rollout is None:
        # l. 5-7   y ~ student(. | x)
        rollout = sample_completions(
            student,
            [pair.student_prompt for pair in batch.pairs],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            uniforms_BT=batch.uniforms_BT,
            **batch.stop_tokens,
        )
    sampled = time.perf_counter()

    kl_B = torch.zeros(len(batch.pairs), device=student.device)
    for micro in micro_batches(batch, rollout, config):
        ids_BT, mask_BT = micro.completion_ids_BT, micro.completion_mask_BT
        # l. 11
        student_hidden_BTD = completion_hidden(student, micro.student_prompts, ids_BT, mask_BT)
        with torch.no_grad():  # l. 12
            teacher_hidden_BTD = completion_hidden(teacher, micro.teacher_prompts, ids_BT, mask_BT)
        # l. 15
        student_states = student_hidden_BTD, models.output_head(student)
        teacher_states = teacher_hidden_BTD, models.output_head(teacher)
        kl_BT, *token_logprobs_BT = compare_completions(
            *student_states, *teacher_states, ids_BT, config.divergence
        )
        # Eq. 2 (of the paper's version 2) with the estimator `analytic`
        loss_BT = ESTIMATORS[config.estimator](kl_BT, *token_logprobs_BT)
        loss_B = REDUCTIONS[config.reduction](loss_BT, micro.loss_mask_BT)
        # l. 16   divided by the whole batch, so that the micro-batches add up to one mean
        (loss_B.sum() / len(batch.pairs)).backward()
        kl_B[micro.rows] = sequence_mean(kl_BT.detach(), micro.loss_mask_BT).float()

    grad_norm = clip_gradients(student, config.max_grad_norm)
    stop_if_not_finite(grad_norm, kl_B, batch)
    optimizer.step(batch.learning_rate)  # l. 18   it also frees the gradients
    if config.teacher == "ema":  # l. 19
        update_ema(teacher, student, config.ema_rate)
    metrics = {"kl": kl_B.mean().item(), "sampling_seconds": sampled - started}
    lengths_B = rollout.completion_mask_BT.sum(1)
    metrics["no_loss_tokens"] = (lengths_B <= config.skip_first_tokens).float().mean().item()
    return metrics | step_metrics(batch, rollout, grad_norm, started), rollout


def train(run, take_step=sdft_step):
    """Algorithm 1: all steps, with validation, logs and checkpoints -> True if none is left."""
    config, student = run.config, run.student
    # before the teacher, which copies the student with the remainders that AdamW gives it
    optimizer = AdamW(student, weight_decay=config.weight_decay, offload=config.offload_optimizer)
    # l. 1
    teacher = run.teacher_model
    if config.teacher in ("ema", "base"):
        teacher = copy.deepcopy(student)
    elif config.teacher == "student":
        teacher = student
    if config.gradient_checkpointing:
        models.checkpoint_layers(student)
    stop_tokens = models.stop_tokens(student, run.tokenizer)
    step, run.steps = 0, config.total_steps(len(run.pairs))
    if run.checkpoint is not None:
        state = models.load_checkpoint(run.checkpoint, student, teacher, optimizer)
        step, run.best = state["step"], state["best"]
    log = start_log(run.folder / "metrics.jsonl", step)
    rollout_log = start_log(run.folder / "rollouts.jsonl", step)
    progress = tqdm(total=run.steps, initial=step, unit="step", smoothing=0.1)

    with evaluation.catch_signals() as interrupted, progress as bar:
        # l. 2
        while step < run.steps:
            # l. 3
            batch = make_batch(run.pairs, step, config, stop_tokens)
            metrics, rollout = take_step(student, teacher, optimizer, batch, config)
            if config.teacher in ("ema", "base", "student"):  # a --teacher-model has other shapes
                metrics["teacher_gap"] = relative_distance(teacher, student)
            step += 1
            bar.update()
            last = step == run.steps
            if last or step % config.log_every == 0:
                bar.write(log_line(step, metrics))
            if config.sample_every and step % config.sample_every == 0:
                seen = evaluation.rollout_report(run.tokenizer, batch, rollout)
                bar.write(f"           {seen['id']}: {seen['completion']!r}")
                rollout_log.write(json.dumps({"step": step, **seen}) + "\n")
            if config.eval_every and (last or step % config.eval_every == 0):
                metrics["validation"] = validate(run, step)
                bar.write(log_line(step, metrics["validation"], "  validation"))
            log.write(json.dumps({"step": step, **metrics}) + "\n")
            if config.keep_last and (last or interrupted or step % config.save_every == 0):
                state = {"best": run.best, "config": asdict(config), "method": run.method}
                weights = student, run.tokenizer, teacher, optimizer
                models.save_checkpoint(run.folder, step, *weights, state, config.keep_last)
            if interrupted and not last:
                resume = f"Continue with: python {run.command[1]} --resume {run.folder}"
                what = resume if config.keep_last else "With --keep-last 0 nothing was saved"
                bar.write(f"stopped after step {step}. {what}")
                return False
    return True


@dataclass
class Batch:
    """One step's data: depends on config and step alone, so that a resumed run repeats it."""

    step: int
    pairs: list  # of data.Pair
    uniforms_BT: torch.Tensor  # one number for each token that may be sampled
    learning_rate: float
    stop_tokens: dict  # eos_token_ids and pad_token_id


def make_batch(pairs, step, config, stop_tokens):
    """The next batch_size pairs, each rollouts_per_prompt times; each epoch is shuffled anew."""
    chosen = []
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(position, len(pairs))
        order = np.random.default_rng([config.seed, 0, epoch]).permutation(len(pairs))
        chosen += [pairs[order[place]]] * config.rollouts_per_prompt
    shape = len(chosen), config.max_new_tokens
    uniforms_BT = torch.from_numpy(np.random.default_rng([config.seed, 1, step]).random(shape))
    learning_rate = learning_rate_at(step, config.total_steps(len(pairs)), config)
    return Batch(step, chosen, uniforms_BT, learning_rate, stop_tokens)


def learning_rate_at(step, steps, config):
    """Linear warm-up, then a cosine to 0. step counts from 0, and the first one already learns."""
    # below 1 it is a share of all steps
    warmup = config.warmup if config.warmup >= 1 else config.warmup * steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class MicroBatch:
    """Some rows of a batch, cut to their longest completion."""

    rows: list
    student_prompts: list
    teacher_prompts: list
    completion_ids_BT: torch.Tensor
    completion_mask_BT: torch.Tensor
    loss_mask_BT: torch.Tensor  # without the skipped first tokens


def micro_batches(batch, rollout, config):
    """Yield the batch in parts of similar length; their size changes memory, never the gradient."""
    pairs, lengths = batch.pairs, rollout.completion_mask_BT.sum(1).tolist()
    row_lengths = [
        max(len(pair.student_prompt), len(pair.teacher_prompt)) + length
        for pair, length in zip(pairs, lengths, strict=True)
    ]
    parts = [[]]
    for row in sorted(range(len(pairs)), key=lambda row: row_lengths[row]):
        full = len(parts[-1]) == config.micro_batch_size
        if full or (len(parts[-1]) + 1) * row_lengths[row] > config.micro_batch_tokens:
            parts.append([])
        parts[-1].append(row)
    for rows in filter(None, parts):
        T = max(lengths[row] for row in rows)
        mask_BT = rollout.completion_mask_BT[rows, :T]
        not_skipped_T = torch.arange(T, device=mask_BT.device) >= config.skip_first_tokens
        yield MicroBatch(
            rows,
            [pairs[row].student_prompt for row in rows],
            [pairs[row].teacher_prompt for row in rows],
            rollout.completion_ids_BT[rows, :T],
            mask_BT,
            mask_BT & not_skipped_T,
        )


def stop_if_not_finite(grad_norm, values_B, batch):
    if not math.isfinite(grad_norm + values_B.sum().item()):
        ids = ", ".join(pair.id for pair in batch.pairs)
        message = f"loss or gradient is not finite (norm {grad_norm}); examples: {ids}"
        raise FloatingPointError(f"step {batch.step + 1}: {message}")


def validate(run, step):
    """Greedy accuracy on validation, and drift; the best weights so far are saved in best/."""
    summary = evaluation.report(run, {"validation": run.splits.validation}, f"step {step}")
    rank = validation_rank(summary["validation"])
    if rank is not None and (run.best is None or rank >= run.best["rank"]):
        run.best = {"step": step, "rank": rank}
        models.save_model(run.folder / "best", run.student, run.tokenizer)
    return summary["validation"]


# ---- python sdft.py ----


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
    pairs: list  # of data.Pair: the training data as token ids
    base: evaluation.BaseAnswers  # what drift is measured on
    method: str = "sdft"  # a baseline has its own, and may have another model as its teacher
    teacher_model: torch.nn.Module | None = None
    steps: int = 0
    best: dict | None = None  # {"step", "rank"} of the weights in best/
    started: float = field(default_factory=time.perf_counter)


def main(argv=None):
    command = ["python", "sdft.py", *(sys.argv[1:] if argv is None else argv)]
    config, checkpoint = parse_config(command, __doc__)
    with run_folder(config, checkpoint) as folder:
        run = prepare(command, config, load_splits(config), folder, checkpoint)
        if checkpoint is None:
            evaluation.preflight_or_exit(run)
        if train(run):
            evaluation.finish(run)


def prepare(command, config, splits, folder, checkpoint):
    """Load the model and encode the data -> Run; what a user can get wrong raises ValueError."""
    models.keep_freed_memory()
    print(check_plan(models.read_config(config.model), config, models.best_device(), folder))
    student, tokenizer = models.load_model(config.model, models.best_device(), config.dtype)
    pairs = evaluation.encode_pairs(tokenizer, splits.train, config)
    base = evaluation.sample_base_answers(student, tokenizer, splits.general, config.general_tokens)
    return Run(command, config, folder, checkpoint, student, tokenizer, splits, pairs, base)


if __name__ == "__main__":
    main()
