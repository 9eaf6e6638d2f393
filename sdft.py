"""Self-Distillation Fine-Tuning (SDFT), arXiv 2601.19897: Algorithm 1 on one device.

One model plays two roles. The student sees a prompt x and samples a completion y. The teacher, an
exponential moving average (EMA) of the student, sees x AND an expert's demonstration c, and scores
the student's own tokens. Training moves the student's next-token distributions to the teacher's.
The numbers are the lines of the paper's Algorithm 1; those missing begin or end its loops, or
(l. 17) correct for a sampler other than the model that learns. "l. 11" names one of them below.

     1   teacher = copy of the student
     2   for each training step:
     3       take a batch of pairs (x, c)
     5-7     student samples one completion of each prompt:  y ~ student(. | x)
     9       teacher prompt = x, c, "Now answer with a response of your own…"
    11       student's log-probabilities of y given x
    12       teacher's log-probabilities of y given x and c
    15       divergence between the two distributions at each token of y
    16       loss = its sum (paper) or mean (default) over tokens; then the mean over the batch
    18       student = AdamW(student, gradient of the loss)
    19       teacher += ema_rate (student - teacher)

    python sdft.py --task science      # on a CPU: preset laptop, the built-in 135M model, minutes

Names of tensors end in their axes: B sequences, T completion tokens, V vocabulary, D hidden.
Read next: kl_estimators.py (l. 15-16), sampling.py (l. 5-7 and the states of l. 11-12), data.py
(l. 9), optim.py (l. 18-19).
"""

import json
import math
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from config import parse_config
from data import load_splits
from kl_estimators import ESTIMATORS, REDUCTIONS, compare_completions, sequence_mean
from lora import adapter_gap, adapters_are_zero, share_base
from optim import (
    AdamW,
    clip_gradients,
    copy_model,
    prepare_for_training,
    relative_distance,
    update_ema,
)
from sampling import completion_hidden, output_head, sample_completions, stop_tokens
from scoring import validation_rank
from support.checkpoint import load_checkpoint, read_best, save_best, save_checkpoint
from support.console import replace_unprintable
from support.models import checkpoint_layers, give_back_freed_memory, model_positions
from support.preflight import preflight_or_exit
from support.run import (
    catch_signals,
    drop_later_answers,
    evaluate_and_log,
    finish,
    lines_of_step,
    prepare,
    record_before,
    rollout_report,
    run_folder,
    start_log,
)
from support.watch import find_collapse, watch_content, watched_rows


def sdft_step(student, teacher, optimizer, batch, config):
    """Algorithm 1, l. 5-19, for one batch -> (metrics, rollout)."""
    rollout = sample_batch(student, batch, config)  # l. 5-7   y ~ student(. | x)
    metrics = update(student, teacher, optimizer, batch, rollout, config)  # l. 9-19
    return metrics, rollout


def sample_batch(student, batch, config):
    """l. 5-7: one completion of each student prompt -> Rollout."""
    return sample_completions(
        student,
        [pair.student_prompt for pair in batch.pairs],
        max_new_tokens=config.max_new_tokens,
        # This decides only which prefixes are visited; the loss there is always at temperature 1.
        temperature=config.temperature,
        uniforms_BT=batch.uniforms_BT,
        eos_token_ids=batch.eos_token_ids,
        pad_token_id=batch.pad_token_id,
    )


def update(student, teacher, optimizer, batch, rollout, config):
    """l. 9-19: one update of the student, then of the teacher -> {"kl", "grad_norm"}."""
    surrogate = ESTIMATORS[config.estimator]
    reduce = REDUCTIONS[config.reduction]
    kl_B = torch.zeros(len(batch.pairs), device=student.device)
    for micro in micro_batches(batch, rollout, config):
        ids_BT, mask_BT = micro.completion_ids_BT, micro.completion_mask_BT
        # l. 11-12 end in compare_completions. Here are the last hidden states alone: the
        # log-probabilities [B, T, V] of both models would take gigabytes, so it makes them from
        # these, a part at a time.
        # l. 11
        student_hidden_BTD = completion_hidden(student, micro.student_prompts, ids_BT, mask_BT)
        # l. 12   The teacher gets no gradient.
        with torch.no_grad():
            teacher_hidden_BTD = completion_hidden(teacher, micro.teacher_prompts, ids_BT, mask_BT)
        give_back_freed_memory()  # here, since the loss is where memory peaks
        # l. 15
        kl_BT, student_logprobs_BT, teacher_logprobs_BT = compare_completions(
            student_hidden_BTD,
            output_head(student),
            teacher_hidden_BTD,
            output_head(teacher),
            ids_BT,
            config.divergence,
        )
        # l. 16   Its gradient is Eq. 2 (version 2) with the reverse KL, the estimator `analytic`,
        # the reduction `sum` and no skipped tokens; the presets say what they have instead.
        loss_BT = surrogate(kl_BT, student_logprobs_BT, teacher_logprobs_BT)
        loss_B = reduce(loss_BT, micro.loss_mask_BT)
        # Divided by the size of the whole batch: micro-batches differ in size, and their gradients
        # must add up to that of one mean over the batch.
        (loss_B.sum() / len(batch.pairs)).backward()
        kl_B[micro.rows] = sequence_mean(kl_BT.detach(), micro.loss_mask_BT).float()

    grad_norm = clip_gradients(student, config.max_grad_norm)
    stop_if_not_finite(grad_norm, kl_B, batch)
    optimizer.step(batch.learning_rate)  # l. 18   it also frees the gradients
    if config.teacher == "ema":  # l. 19   after l. 18: it mixes in the student just updated
        update_ema(teacher, student, config.ema_rate)
    return {"kl": kl_B.mean().item(), "grad_norm": grad_norm}


def train(run, take_step=sdft_step):
    """Algorithm 1: all steps, with validation, logs and checkpoints -> False if interrupted.

    A baseline brings a take_step of its own, with the arguments and results of sdft_step, and pairs
    with completions if it does not sample; some fields of Config are fixed for it (baselines.py).
    The rest of the loop is the same.
    """
    config, student = run.config, run.student
    # In this order: the teacher copies the student's remainders, but not its recomputed layers.
    prepare_for_training(student, offload=config.offload_optimizer)
    teacher = make_teacher(student, config, run.teacher_model)  # l. 1
    # --teacher-model stays as it was loaded, and a resumed run loads it again
    saved_teacher = None if config.teacher == "model" else teacher
    optimizer = AdamW(student, weight_decay=config.weight_decay)
    if config.gradient_checkpointing:
        checkpoint_layers(student)
    stop_ids = stop_tokens(student, run.tokenizer)
    steps = config.total_steps(len(run.pairs))
    step = restore(run, student, saved_teacher, optimizer)
    drop_later_answers(run.folder / "answers.jsonl", step)
    positions = model_positions(student.config)
    watched = watched_rows(run.tokenizer, run.splits.train, run.pairs, config, positions)

    with (
        start_log(run.folder / "metrics.jsonl", step) as log,
        start_log(run.folder / "rollouts.jsonl", step) as rollout_log,
        tqdm(total=steps, initial=step, unit="step", smoothing=0.1) as bar,
        catch_signals(saves=config.keep_last > 0) as signals,
    ):
        while step < steps and not stopped_by_collapse(run):  # l. 2
            started = time.perf_counter()
            batch = make_batch(run.pairs, step, config, stop_ids)  # l. 3
            metrics, rollout = take_step(student, teacher, optimizer, batch, config_of_step(run))
            metrics |= rollout_metrics(batch, rollout, config, time.perf_counter() - started)
            step += 1
            if config.eval_every and (step == steps or step % config.eval_every == 0):
                metrics |= validate(run, teacher, step, watched, stop_ids)

            bar.update()
            bar.write("\n".join(lines_of_step(step, metrics, config)))
            log.write(json.dumps({"step": step, **metrics}) + "\n")
            if config.sample_every and step % config.sample_every == 0:
                seen = rollout_report(run.tokenizer, batch, rollout)
                bar.write(f"           {seen['id']}: {seen['completion']!r}")
                rollout_log.write(json.dumps({"step": step, **seen}) + "\n")

            done = step == steps or stopped_by_collapse(run)
            interrupted = len(signals) > 0  # read once: another signal may arrive at any time
            if config.keep_last and (done or interrupted or step % config.save_every == 0):
                save_checkpoint(
                    run.folder,
                    step,
                    student,
                    run.tokenizer,
                    saved_teacher,
                    optimizer,
                    run.state(),
                    config.keep_last,
                )
            if interrupted and not done:
                bar.write(f"stopped after step {step}. {run.how_to_continue()}")
                return False
    run.steps_taken = step
    return True


def restore(run, student, teacher, optimizer):
    """Copy a run's checkpoint, if it has one, into what is in memory -> the step to go on from."""
    if run.checkpoint is None:
        return 0
    state = load_checkpoint(run.checkpoint, student, teacher, optimizer)
    run.best = read_best(run.folder)
    run.collapse = state["collapse"]
    run.started -= state["seconds"]
    return state["step"]


def stopped_by_collapse(run):
    return run.collapse is not None and run.config.on_collapse == "stop"


def config_of_step(run):
    """A teacher that is frozen after a collapse is one that does not move, as `base` is."""
    if run.collapse is not None and run.config.on_collapse == "freeze":
        return replace(run.config, teacher="base")
    return run.config


def make_teacher(student, config, teacher_model):
    """l. 1: a copy of the student in memory; its files may hold an earlier model."""
    if config.has_copied_teacher:
        if config.lora_rank:  # the same frozen weights; adapters of its own unless B A stays 0
            with_adapters = config.teacher == "ema" or not adapters_are_zero(student)
            return share_base(student, with_adapters)
        return copy_model(student)
    if config.teacher == "student":
        return student
    return teacher_model  # of baselines.py: another model, or None


def validate(run, teacher, step, watched, stop_ids):
    """Accuracy on validation, drift and signs of collapse; best/ gets the best weights so far.

    -> metrics: {"validation"}, and "teacher_gap" if the teacher began as a copy of the student
    """
    summary = evaluate_and_log(run, {"validation": run.splits.validation}, f"step {step}")[
        "validation"
    ]
    if watched is not None:
        summary |= watch_content(run.student, teacher, watched, run.config, stop_ids)
    if run.collapse is None:
        run.collapse = find_collapse(run.folder, step, summary)
        if run.collapse is not None:
            summary["collapse"] = run.collapse
    rank = None if "collapse" in summary else validation_rank(summary)
    # >=: of two equal validations the later one has learned more from the teacher
    if rank is not None and (run.best is None or rank >= run.best["rank"]):
        run.best = {"step": step, "rank": rank}
        save_best(run.folder, run.student, run.tokenizer, run.best)
    metrics = {"validation": summary}
    if run.config.has_copied_teacher:
        gap = adapter_gap if run.config.lora_rank else relative_distance
        metrics["teacher_gap"] = gap(teacher, run.student)
    return metrics


# ---- the batch of a step: a function of config and step, so that a resumed run repeats it ----

# Four streams of random numbers, each a function of (seed, stream, index): no generator's state is
# ever stored. Drift and the watched rows have one that no seed changes (eval.py, support/watch.py).
ORDER = 0  # of the training data; index: the epoch
ROLLOUTS = 1  # the uniforms that tokens are drawn with; index: the step
TEACHER_ANSWERS = 2  # the same, of completions that baselines.py samples before the first step
PREFLIGHT = 3  # the same, of the answers that support/preflight.py samples; index: 0


def random_stream(seed, stream, index):
    return np.random.default_rng([seed, stream, index])


@dataclass
class Batch:
    """One step's data."""

    step: int
    pairs: list  # of data.Pair, each rollouts_per_prompt times
    uniforms_BT: torch.Tensor  # one number for each token that may be sampled
    learning_rate: float
    eos_token_ids: list
    pad_token_id: int


def make_batch(pairs, step, config, stop_ids):
    """l. 3: the next batch_size pairs; each epoch is shuffled anew."""
    chosen = []
    orders = {}
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(position, len(pairs))
        if epoch not in orders:
            orders[epoch] = random_stream(config.seed, ORDER, epoch).permutation(len(pairs))
        chosen += [pairs[orders[epoch][place]]] * config.rollouts_per_prompt
    shape = len(chosen), config.max_new_tokens
    uniforms_BT = torch.from_numpy(random_stream(config.seed, ROLLOUTS, step).random(shape))
    learning_rate = learning_rate_at(step, config.total_steps(len(pairs)), config)
    return Batch(step, chosen, uniforms_BT, learning_rate, **stop_ids)


def learning_rate_at(step, steps, config):
    """Linear warm-up, then a cosine to 0. step counts from 0, where the rate is above 0."""
    warmup = config.warmup_steps(steps)
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
    """Yield the batch in parts of similar length, which change memory and not the mathematics."""
    lengths = rollout.completion_mask_BT.sum(1).tolist()
    for rows in split_by_tokens(batch.pairs, lengths, config.micro_batch_tokens):
        longest = max(lengths[row] for row in rows)
        mask_BT = rollout.completion_mask_BT[rows, :longest]
        yield MicroBatch(
            rows,
            [batch.pairs[row].student_prompt for row in rows],
            [batch.pairs[row].teacher_prompt for row in rows],
            rollout.completion_ids_BT[rows, :longest],
            mask_BT,
            loss_mask(mask_BT, config.skip_first_tokens),
        )


def loss_mask(completion_mask_BT, skip_first_tokens):
    """True at the tokens that have a loss.

    A teacher likes to open with "Based on the text…", and the student would learn to refer to a
    text it cannot see. So the first tokens have no loss: what the student says there changes only
    through the loss at other tokens. A completion without others has loss 0.
    """
    places_T = torch.arange(completion_mask_BT.shape[1], device=completion_mask_BT.device)
    return completion_mask_BT & (places_T >= skip_first_tokens)


def split_by_tokens(pairs, completion_lengths, most_tokens):
    """Rows, shortest first, in parts of at most most_tokens with padding, or of a single row."""
    row_lengths = [
        max(len(pair.student_prompt), len(pair.teacher_prompt)) + length
        for pair, length in zip(pairs, completion_lengths, strict=True)
    ]
    parts = []
    part = []
    for row in sorted(range(len(pairs)), key=lambda row: row_lengths[row]):
        if part and (len(part) + 1) * row_lengths[row] > most_tokens:
            parts.append(part)
            part = []
        part.append(row)
    return [*parts, part]


def stop_if_not_finite(grad_norm, values_B, batch):
    if not math.isfinite(grad_norm + values_B.sum().item()):
        ids = ", ".join(pair.id for pair in batch.pairs)
        message = f"loss or gradient is not finite (norm {grad_norm}); examples: {ids}"
        raise FloatingPointError(f"step {batch.step + 1}: {message}")


def rollout_metrics(batch, rollout, config, seconds):
    """What a step logs beside its loss; docs/flags.md explains each."""
    lengths_B = rollout.completion_mask_BT.sum(1).float()
    has_loss_B = loss_mask(rollout.completion_mask_BT, config.skip_first_tokens).any(1)
    n = len(batch.pairs)
    return {
        "completion_tokens": lengths_B.mean().item(),
        "finished": rollout.finished_B.float().mean().item(),
        "without_loss": 1 - has_loss_B.float().mean().item(),
        "tokens_per_s": lengths_B.sum().item() / seconds,
        "learning_rate": batch.learning_rate,
        "seconds": seconds,
        "prompt_tokens": sum(len(pair.student_prompt) for pair in batch.pairs) / n,
        "teacher_prompt_tokens": sum(len(pair.teacher_prompt) for pair in batch.pairs) / n,
    }


# ---- python sdft.py ----

INTERRUPTED = 130  # exit status, as of a command that Ctrl-C ended: `&&` does not go on


def main(argv=None):
    """Train a model. What can stop a run, in this order; each says how to continue:

    flags that contradict each other                        parse_config
    a folder that exists, data that cannot be read          run_folder, load_splits
    no judge, or a model that does not fit or load          prepare
    a teacher that has nothing to teach                     preflight_or_exit
    a loss that is not finite; memory or disk that runs out train
    Ctrl-C or SIGTERM                                       train saves after the step under way;
                                                            a second one stops at once
    """
    replace_unprintable()
    command = ["python", "sdft.py", *(sys.argv[1:] if argv is None else argv)]
    config, checkpoint = parse_config(command, __doc__)
    with run_folder(config, checkpoint) as folder:
        run = prepare(command, config, load_splits(config), folder, checkpoint)
        if checkpoint is None:
            draws = random_stream(config.seed, PREFLIGHT, 0)
            figures = preflight_or_exit(run, draws)
            record_before(run, figures)
        if not train(run):
            sys.exit(INTERRUPTED)
        finish(run)


if __name__ == "__main__":
    main()
