"""Self-Distillation Fine-Tuning (Shenfeld et al., arXiv 2601.19897): Algorithm 1, one process, one device, no trainer.

One model in two roles. The student sees a prompt and samples an answer; the teacher, an exponential moving average (EMA)
of the student, sees the prompt AND an expert's demonstration, and scores the student's own tokens. Each step brings the
student's next-token distributions closer to the teacher's on those tokens; then the teacher follows by a small step.

    python sdft.py --task science                  # the built-in 135M model on a CPU, about ten minutes
    python sdft.py --task knowledge
    python sdft.py --resume runs/science           # go on where a run stopped

Shape key: B sequences, T completion tokens, V vocabulary, D hidden. "l. 5" is a line of Algorithm 1.
Where this differs from the paper or from its authors' code, README.md says so ("Where paper and code disagree").
"""

import copy
import dataclasses
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import METHODS, REPORTS, parse_config, total_steps
from data import encode_pairs, from_articles_of, load_task, teacher_messages, text_blocks, with_demonstrations
from eval import BaseAnswers, drift_from_base, evaluate, format_preflight, format_table, preflight, sample_base_answers, teaches, token_report
from kl_estimators import ESTIMATORS, LIKELIHOODS, REDUCTIONS, compare_completions, completion_logprobs, sequence_mean
from models import (checkpoint_layers, describe_machine, finish_step_on_signal, keep_freed_memory, load_checkpoint, load_model, load_weights, save_checkpoint, save_model,
                    start_log, stop_tokens)
from optim import AdamW, clip_gradients, relative_distance, update_ema
from sampling import Rollout, completion_hidden, given_rollout, sample_completions
from scoring import CHANCE, validation_rank


def sdft_step(student, teacher, optimizer, batch, config):
    """Algorithm 1, lines 5 to 19, for one batch of (prompt, demonstration) pairs -> (metrics, rollout)."""
    started = time.perf_counter()
    B = len(batch.student_prompts)
    rollout = batch.given_completions
    if rollout is None:                                                                                        # l. 5-7   y ~ student(. | x)
        rollout = sample_completions(student, batch.student_prompts, max_new_tokens=config.max_new_tokens,
                                     uniforms_BT=batch.uniforms_BT, **batch.stop_tokens)
    sampled = time.perf_counter()

    kl_B = torch.zeros(B, device=student.device)
    for micro in micro_batches(batch, rollout, config):
        student_hidden_BTD = completion_hidden(student, micro.student_prompts, micro.completion_ids_BT, micro.completion_mask_BT)      # l. 11
        with torch.no_grad():
            teacher_hidden_BTD = completion_hidden(teacher, micro.teacher_prompts, micro.completion_ids_BT, micro.completion_mask_BT)  # l. 12
        kl_BT, student_logprobs_BT, teacher_logprobs_BT = compare_completions(
            student_hidden_BTD, student.lm_head, teacher_hidden_BTD, teacher.lm_head, micro.completion_ids_BT, config.divergence)
        loss_BT = ESTIMATORS[config.estimator](kl_BT, student_logprobs_BT, teacher_logprobs_BT)                # l. 15   Eq. 2 (v2)
        loss_B = REDUCTIONS[config.reduction](loss_BT, micro.loss_mask_BT)
        # divided by the whole batch, not by the micro-batch, so that the parts add up to one mean
        (loss_B.sum() / B).backward()                                                                          # l. 16
        kl_B[micro.rows] = sequence_mean(kl_BT.detach(), micro.loss_mask_BT).float()

    grad_norm = clip_gradients(student, config.max_grad_norm)
    stop_if_not_finite(grad_norm, kl_B, batch)
    optimizer.step(batch.learning_rate)                                                                        # l. 18
    if config.teacher == "ema":
        update_ema(teacher, student, config.ema_rate)                                                          # l. 19
    metrics = {"kl": kl_B.mean().item(), "sampling_seconds": sampled - started}
    if config.teacher != "model":               # another model may have other shapes
        metrics["teacher_gap"] = relative_distance(teacher, student)
    return metrics | step_metrics(rollout, grad_norm, batch, config, time.perf_counter() - started), rollout


def likelihood_step(student, teacher, optimizer, batch, config):
    """A step of the baselines that fit given completions: SFT, DFT, CPT -> (metrics, rollout). No token is skipped, no teacher asked."""
    started = time.perf_counter()
    B = len(batch.student_prompts)
    nll_B = torch.zeros(B, device=student.device)
    for micro in micro_batches(batch, batch.given_completions, config):
        hidden_BTD = completion_hidden(student, micro.student_prompts, micro.completion_ids_BT, micro.completion_mask_BT)
        logprobs_BT = completion_logprobs(hidden_BTD, student.lm_head, micro.completion_ids_BT)
        loss_BT = LIKELIHOODS[METHODS[config.method]["loss"]](logprobs_BT)
        (REDUCTIONS[config.reduction](loss_BT, micro.completion_mask_BT).sum() / B).backward()
        nll_B[micro.rows] = sequence_mean(-logprobs_BT.detach(), micro.completion_mask_BT).float()
    grad_norm = clip_gradients(student, config.max_grad_norm)
    stop_if_not_finite(grad_norm, nll_B, batch)
    optimizer.step(batch.learning_rate)
    metrics = step_metrics(batch.given_completions, grad_norm, batch, config, time.perf_counter() - started)
    return {"nll": nll_B.mean().item()} | metrics, batch.given_completions


STEPS = {"kl": sdft_step, "nll": likelihood_step, "dft": likelihood_step}     # by the loss that METHODS names


def train(student, tokenizer, data, config, run_folder, checkpoint=None, teacher=None):
    """Algorithm 1: all steps, with validation, checkpoints and logs -> (best, True if it ran to the end).

    data.train is a list of Pair and data.validation one of Example. best is {"step", "rank"} by validation; its weights
    stand in run_folder/best. checkpoint is the folder to resume from; teacher another model, for --teacher model alone.
    """
    optimizer = AdamW(student, weight_decay=config.weight_decay)    # first: the copy of a bfloat16 student has its remainders
    if config.teacher != "model":
        teacher = student if config.teacher == "student" else copy.deepcopy(student)                           # l. 1
    if config.gradient_checkpointing:
        checkpoint_layers(student)
    take_step = STEPS[METHODS[config.method]["loss"]]
    stop = stop_tokens(student, tokenizer)
    step, best = 0, None
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, student, teacher, optimizer)
        step, best = state["step"], state["best"]
    log, rollout_log = start_log(run_folder / "metrics.jsonl", step), start_log(run_folder / "rollouts.jsonl", step)
    steps = total_steps(config, len(data.train))

    with finish_step_on_signal() as interrupted, tqdm(total=steps, initial=step, unit="step", smoothing=0.1) as bar:
        while step < steps:                                                                                    # l. 2
            batch = make_batch(data.train, step, config, stop, student.device)                                 # l. 3
            metrics, rollout = take_step(student, teacher, optimizer, batch, config)
            step += 1
            bar.update()
            if step % config.log_every == 0 or step == steps:
                bar.write(log_line(step, metrics))
            if config.sample_every and step % config.sample_every == 0 and "kl" in metrics:
                seen = look_at_a_rollout(student, teacher, tokenizer, batch, rollout, config)
                bar.write(f"           {seen['id']}: {seen['completion']!r}")
                rollout_log.write(json.dumps({"step": step, **seen}) + "\n")
            if config.eval_every and (step % config.eval_every == 0 or step == steps):
                metrics["validation"], best = validate(student, tokenizer, data, step, best, config, run_folder)
                bar.write(f"step {step:>4}  validation: " + ", ".join(f"{k} {v:.3g}" for k, v in metrics["validation"].items()))
            log.write(json.dumps({"step": step, **metrics}) + "\n")
            if step % config.save_every == 0 or step == steps or interrupted:
                folder = save_checkpoint(run_folder, step, student, tokenizer, teacher, optimizer,
                                         {"best": best, "config": dataclasses.asdict(config)}, config.keep_last)
            if interrupted and step < steps:
                bar.write(f"stopped after step {step} of {steps}; {folder} is saved. Go on with: python sdft.py --resume {run_folder}")
                return best, False
    return best, True


# ---- the parts of a step ----

@dataclass
class Batch:
    """What one step needs; a function of (seed, step) alone, so that a resumed run repeats it."""
    step: int
    ids: list
    student_prompts: list
    teacher_prompts: list
    uniforms_BT: torch.Tensor
    learning_rate: float
    stop_tokens: dict                           # eos_token_ids, pad_token_id
    given_completions: Rollout | None = None    # a baseline's; None where the student samples


def make_batch(pairs, step, config, stop, device="cpu"):
    """The batch of a step: a fresh shuffle each epoch, and one uniform for each (row, token)."""
    B, n = config.batch_size, len(pairs)
    shuffles = {epoch: np.random.default_rng([config.seed, 0, epoch]).permutation(n) for epoch in range(step * B // n, (step * B + B - 1) // n + 1)}

    def pair_at(position):          # of all prompts since step 0
        epoch, place = divmod(position, n)
        return pairs[shuffles[epoch][place]]
    chosen = [pair_at(position) for position in range(step * B, step * B + B) for _ in range(config.rollouts_per_prompt)]
    uniforms_BT = torch.from_numpy(np.random.default_rng([config.seed, 1, step]).random((len(chosen), config.max_new_tokens)))
    given = None
    if chosen[0].completion is not None:
        given = given_rollout([pair.completion for pair in chosen], **stop, device=device)
    return Batch(step, [pair.id for pair in chosen], [pair.student_prompt for pair in chosen], [pair.teacher_prompt for pair in chosen],
                 uniforms_BT, learning_rate_at(step, total_steps(config, n), config), stop, given)


def learning_rate_at(step, steps, config):
    """Linear warm-up, then a cosine to 0. step counts from 0, and the first one already learns."""
    warmup = config.warmup if config.warmup >= 1 else config.warmup * steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass
class MicroBatch:
    """Some rows of a batch, cut to their longest completion. The loss mask lacks the skipped first tokens."""
    rows: list
    student_prompts: list
    teacher_prompts: list
    completion_ids_BT: torch.Tensor
    completion_mask_BT: torch.Tensor
    loss_mask_BT: torch.Tensor


def micro_batches(batch, rollout, config):
    """Rows of similar length together, so that little is padding: at most micro_batch_size rows and micro_batch_tokens tokens,
    the student's or, where a teacher scores, its own longer ones."""
    lengths = rollout.completion_mask_BT.sum(1).tolist()
    prompts = [batch.student_prompts] + [batch.teacher_prompts] * (METHODS[config.method]["loss"] == "kl")
    total = [max(map(len, row_prompts)) + length for *row_prompts, length in zip(*prompts, lengths)]
    parts = [[]]
    for row in sorted(range(len(total)), key=total.__getitem__):     # each is the longest so far
        full = len(parts[-1]) == config.micro_batch_size or (len(parts[-1]) + 1) * total[row] > config.micro_batch_tokens
        if parts[-1] and full:
            parts.append([])
        parts[-1].append(row)
    for rows in parts:
        T = max(lengths[row] for row in rows)
        mask_BT = rollout.completion_mask_BT[rows, :T]
        loss_mask_BT = mask_BT & (torch.arange(T, device=mask_BT.device) >= config.skip_first_tokens)
        yield MicroBatch(rows, [batch.student_prompts[row] for row in rows], [batch.teacher_prompts[row] for row in rows],
                         rollout.completion_ids_BT[rows, :T], mask_BT, loss_mask_BT)


def stop_if_not_finite(grad_norm, values_B, batch):
    if not math.isfinite(grad_norm + values_B.sum().item()):
        raise FloatingPointError(f"step {batch.step + 1}: loss or gradient is not finite (gradient norm {grad_norm}); examples: {', '.join(batch.ids)}")


def step_metrics(rollout, grad_norm, batch, config, seconds):
    lengths_B = rollout.completion_mask_BT.sum(1).float()
    return {"grad_norm": grad_norm, "completion_tokens": lengths_B.mean().item(), "finished": rollout.finished_B.float().mean().item(),
            "tokens_per_s": lengths_B.sum().item() / seconds, "learning_rate": batch.learning_rate,
            "no_loss_tokens": (lengths_B <= config.skip_first_tokens).float().mean().item(), "seconds": seconds,
            "prompt_tokens": sum(map(len, batch.student_prompts)) / len(batch.ids),
            "teacher_prompt_tokens": sum(map(len, batch.teacher_prompts)) / len(batch.ids)}


# ---- before training: data, and the preflight ----

@dataclass
class Data:
    train: list                 # of data.Pair
    validation: list            # of Example
    reports: dict               # name -> list of Example, for the table before and after
    base_answers: BaseAnswers   # to general prompts that are never trained on: they measure forgetting


def load_data(config):
    """Read all files before the model loads -> (train examples, validation, reports, general). ValueError where one is wrong."""
    train_examples = load_task(config.task, "train", config.data)[:config.train_examples]
    examples = {split: load_task(config.task, split, config.data) for split in ["validation", *REPORTS[config.task].values()]}
    if config.train_examples:
        for split in examples:
            examples[split] = from_articles_of(train_examples, examples[split])
            if not examples[split]:
                raise ValueError(f"{split}: no example is about the articles of the first {config.train_examples} training examples, which "
                                 "--train-examples keeps; raise it, or put the articles of train.jsonl in another order")
    validation = examples["validation"][:config.eval_examples]
    reports = {name: examples[split][:config.eval_examples] for name, split in REPORTS[config.task].items()}
    for example in train_examples + validation:
        teacher_messages(example, config.teacher_context)   # raises where a field that the teacher shall see is missing
    if config.method == "reinvoke":     # on everyday prompts, and not those that measure forgetting
        train_examples = load_task("general", "train")
    return train_examples, validation, reports, load_task("general", "test")


def with_given_completions(pairs, examples, student, tokenizer, config):
    """The pairs with the demonstrations or the article blocks that a method trains on; other methods' pairs as they are."""
    source = METHODS[config.method]["completions"]
    eos_token_id = stop_tokens(student, tokenizer)["eos_token_ids"][0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if source == "demonstration":
        return with_demonstrations(tokenizer, pairs, examples, eos_token_id)
    if source == "text":
        return text_blocks(tokenizer, examples, config.max_prompt_tokens, eos_token_id)
    return pairs


def with_teacher_completions(pairs, base_model, tokenizer, config):
    """The pairs with what the base model in context samples, once for each prompt: what teacher-sft and teacher-kd train on."""
    written, stop = [], stop_tokens(base_model, tokenizer)
    for start in tqdm(range(0, len(pairs), config.batch_size), desc="the teacher writes", leave=False):
        part = pairs[start:start + config.batch_size]
        uniforms_BT = torch.from_numpy(np.random.default_rng([config.seed, 2, start]).random((len(part), config.max_new_tokens)))
        rollout = sample_completions(base_model, [pair.teacher_prompt for pair in part], max_new_tokens=config.max_new_tokens,
                                     uniforms_BT=uniforms_BT, **stop)
        written += [dataclasses.replace(pair, completion=ids_T[mask_T].tolist())
                    for pair, ids_T, mask_T in zip(part, rollout.completion_ids_BT, rollout.completion_mask_BT)]
    return written


def check_lengths(pairs, too_long, config):
    """One line about the prompts; ValueError where none fits, or one does not and --too-long is stop."""
    longest_student = max(len(pair.student_prompt) for pair in pairs + too_long)
    longest_teacher = max(len(pair.teacher_prompt) for pair in pairs + too_long)
    report = (f"{len(pairs)} of {len(pairs) + len(too_long)} fit; longest student prompt {longest_student} tokens (limit {config.max_prompt_tokens}), "
              f"longest teacher prompt {longest_teacher} (limit {config.max_teacher_prompt_tokens})")
    if too_long:
        report += f"\n               left out: {', '.join(pair.id for pair in too_long[:5])}{' …' if len(too_long) > 5 else ''}"
    if not pairs or (too_long and config.too_long == "stop"):
        raise ValueError(f"prompts: {report}\nRaise --max-prompt-tokens or --max-teacher-prompt-tokens, or shorten these examples"
                         + (", or leave them out with --too-long drop" if pairs else ""))
    return report


def estimate(figures, model, pairs, config):
    """One line of what the run will cost, from the speeds that the preflight has seen."""
    method, row_seconds = METHODS[config.method], 0
    for pair in pairs:
        T = len(pair.completion or []) or figures["student"]["completion_tokens"]
        tokens = 3 * (len(pair.student_prompt) + T)             # one forward pass, and a backward pass, which is the work of two
        if method["loss"] == "kl":
            tokens += len(pair.teacher_prompt) + T
        row_seconds += tokens / figures["scoring_tokens_per_s"] / len(pairs)
        if method["completions"] == "student":
            row_seconds += T / figures["sampling_tokens_per_s"] / len(pairs)
    steps, step_seconds = total_steps(config, len(pairs)), config.batch_size * config.rollouts_per_prompt * row_seconds
    bytes_a_parameter = 14 if config.dtype == "bfloat16" else 16        # the table in optim.py; a teacher of its own is 4 more
    if config.teacher != "student":
        bytes_a_parameter += 4
    gigabytes = bytes_a_parameter * sum(parameter.numel() for parameter in model.parameters()) / 1e9
    return f"{steps} steps of about {step_seconds:.0f} s = {steps * step_seconds / 60:.0f} minutes; {gigabytes:.1f} GB, plus activations"


def validate(student, tokenizer, data, step, best, config, run_folder):
    """Greedy accuracy and drift; a new best (by correct, then well_formed; the later one of two equal) is saved in run_folder/best."""
    summary, _ = evaluate(student, tokenizer, data.validation, max_new_tokens=config.max_new_tokens, description="validation")
    summary["drift_from_base"] = drift_from_base(data.base_answers, student)
    rank = validation_rank(summary)
    if best is None or rank >= best["rank"]:
        best = {"step": step, "rank": rank}
        save_model(run_folder / "best", student, tokenizer)
    return summary, best


def log_line(step, metrics):
    shown = {"kl": ".4f", "nll": ".4f", "grad_norm": ".2f", "completion_tokens": ".1f", "finished": ".2f", "teacher_gap": ".1e", "tokens_per_s": ".1f"}
    return f"step {step:>4}" + "".join(f"  {name} {metrics[name]:{form}}" for name, form in shown.items() if name in metrics)


def look_at_a_rollout(student, teacher, tokenizer, batch, rollout, config, longest=512):
    """The first completion of a batch, with what student and teacher say of each token (by the weights after the step)."""
    ids = rollout.completion_ids_BT[0][rollout.completion_mask_BT[0]].tolist()[:longest]
    return {"id": batch.ids[0], "prompt": tokenizer.decode(batch.student_prompts[0]), "teacher_prompt": tokenizer.decode(batch.teacher_prompts[0]),
            "completion": tokenizer.decode(ids), "divergence": config.divergence, "skipped": config.skip_first_tokens,
            "tokens": token_report(student, teacher, tokenizer, batch.student_prompts[0], batch.teacher_prompts[0], ids, config.divergence)}


# ---- python sdft.py ----

def new_run_folder(config):
    """The folder of a new run, made here; an existing one is never written into."""
    if config.output is None:
        names = [Path("runs") / config.task] + [Path("runs") / f"{config.task}-{n}" for n in range(2, 10_000)]
        folder = next(name for name in names if not name.exists())
    else:
        folder = Path(config.output)
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another --output, or go on with it: --resume {folder}")
    folder.mkdir(parents=True)
    return folder


def load_other_teacher(config, student, tokenizer):
    """--teacher-model; ValueError where it has another vocabulary, for then the two distributions are not over the same tokens."""
    teacher, teacher_tokenizer = load_model(config.teacher_model, student.device, config.dtype)
    sizes = [model.lm_head.weight.shape[0] for model in (teacher, student)]
    if sizes[0] != sizes[1] or teacher_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"--teacher-model {config.teacher_model} and --model {config.model} have different vocabularies ({sizes[0]} and {sizes[1]} tokens); "
                         "they are compared token by token. Choose two models of one family whose vocabularies are equal")
    return teacher


def main(argv=None):
    started = time.perf_counter()
    keep_freed_memory()
    try:  # all a user can get wrong, before anything expensive starts
        config, checkpoint, about_preset = parse_config(argv, __doc__)
        print(about_preset + ("" if config.data else "; data: our own small samples, since no --data is given"))
        train_examples, validation, reports, general = load_data(config)
        student, tokenizer = load_model(config.model, "cuda" if torch.cuda.is_available() else "cpu", config.dtype)
        pairs, too_long = encode_pairs(tokenizer, train_examples, config.teacher_context, config.max_prompt_tokens, config.max_teacher_prompt_tokens)
        lengths_report = check_lengths(pairs, too_long, config)
        pairs = with_given_completions(pairs, train_examples, student, tokenizer, config)
        teacher = load_other_teacher(config, student, tokenizer) if config.teacher == "model" else None
        run_folder = checkpoint.parent if checkpoint else new_run_folder(config)
    except ValueError as error:
        sys.exit(f"error: {error}")

    try:
        if checkpoint:
            before = json.loads((run_folder / "before.json").read_text()) | {"config": dataclasses.asdict(config)}
        else:
            before = {"command": " ".join(["python", "sdft.py"] + (argv or sys.argv[1:])), "config": dataclasses.asdict(config),
                      "preflight": preflight(student, tokenizer, validation, config.teacher_context, config.max_new_tokens)}
            # a baseline needs no better teacher, and another model's is not asked in context
            enforced = METHODS[config.method]["completions"] == "student" and config.teacher != "model"
            print(format_preflight(before["preflight"], config.teacher_context, lengths_report, estimate(before["preflight"], student, pairs, config),
                                   enforced))
            if enforced and not teaches(before["preflight"]) and not config.force:
                sys.exit("no-go: nothing was trained. --force trains all the same")
        if METHODS[config.method]["completions"] == "teacher":
            pairs = with_teacher_completions(pairs, student, tokenizer, config)
        data = Data(pairs, validation, reports,
                    sample_base_answers(teacher or student, tokenizer, general, config.general_tokens))     # of --teacher-model, where it is given
        if not checkpoint:
            before["before"] = report(student, tokenizer, data, config, "before")
            (run_folder / "before.json").write_text(json.dumps(before, indent=1) + "\n")
        best, ended = train(student, tokenizer, data, config, run_folder, checkpoint, teacher)
        if ended:
            finish(student, tokenizer, data, config, run_folder, best, started, before)
    except FloatingPointError as error:
        sys.exit(f"error: {error}\nThe last checkpoint is kept. A lower --learning-rate is the usual remedy")
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):  # a GPU's; a CPU's
            raise
        sys.exit(f"error: {str(error).splitlines()[0]}\nA new run takes less memory with a smaller --micro-batch-tokens or --max-new-tokens, with "
                 f"--gradient-checkpointing, or with --dtype bfloat16. --resume {run_folder} goes on from the last checkpoint, if there is one, "
                 "with these flags as they are")
    except (ValueError, OSError) as error:      # a damaged checkpoint, a full disk
        sys.exit(f"error: {error}")
    finally:
        if not any(run_folder.iterdir()):       # stopped before anything was trained: the same command runs again
            run_folder.rmdir()


def finish(student, tokenizer, data, config, run_folder, best, started, results):
    """After the last step: the weights in last/, what they and the best ones score, results.json, and the table on the screen."""
    save_model(run_folder / "last", student, tokenizer)
    results["last"] = report(student, tokenizer, data, config, "last")
    if best is not None and best["step"] < total_steps(config, len(data.train)):
        load_weights(student, run_folder / "best")
        results["best"] = report(student, tokenizer, data, config, "best")
    results |= {"best_step": best and best["step"], "parameters": sum(parameter.numel() for parameter in student.parameters()),
                "seconds": time.perf_counter() - started, "machine": describe_machine()}
    (run_folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + results_table(results) + f"\nweights: {run_folder}/last" + (f", {run_folder}/best" if best else ""))


def report(model, tokenizer, data, config, when):
    """What the final table shows of one set of weights -> {name of the set: summary}."""
    drift = drift_from_base(data.base_answers, model)
    return {name: evaluate(model, tokenizer, examples, max_new_tokens=config.max_new_tokens, description=f"{when}: {name}")[0]
            | {"drift_from_base": drift} for name, examples in data.reports.items()}


def results_table(results):
    rows = [(f"{name}, {when}" + (f" (step {results['best_step']}, by validation)" if when == "best" else ""), results[when][name])
            for name in results["before"] for when in ("before", "best", "last") if when in results]
    rows.append((f"validation, teacher with {results['config']['teacher_context']}", results["preflight"]["teacher"]))
    return format_table(rows, CHANCE.get(results["config"]["task"]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped at once; a run that has a checkpoint goes on with --resume")
