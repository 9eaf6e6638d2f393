"""Watching a run: what the teacher's signal consists of, and whether the student collapses."""

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from data import teacher_messages
from eval import split
from kl_estimators import compare_completions
from sampling import completion_hidden, output_head, sample_completions
from support.chat import encode_prompt

# ---- content and style: the part of the teacher's signal that its demonstration adds ----


def another_example(examples, i):
    """The next example whose demonstration, and answer where there is one, differ from i's.

    None if all examples have the same.
    """
    own = examples[i]
    for step in range(1, len(examples)):
        other = examples[(i + step) % len(examples)]
        differs = other.demonstration != own.demonstration or other.text != own.text
        if differs and (own.answer is None or other.answer != own.answer):
            return other
    return None


def swapped_messages(example, other, context, instruction, own_template=None):
    """The teacher's prompt for example's question with what it sees of another example."""
    shown = type(example)(
        example.id,
        example.task,
        example.messages,
        demonstration=other.demonstration,
        text=other.text,
        source=example.source,
    )
    return teacher_messages(shown, context, instruction, own_template)


def teacher_prompts(
    tokenizer, examples, context, instruction, own_template=None, kwargs=None, first=None
):
    """(own, swapped): the teacher's prompts with each example's demonstration, and another's.

    Of the first examples alone, if first is a number; any may be the other one. ValueError if
    there is no other.
    """
    own, swapped = [], []
    for i, example in enumerate(examples[:first]):
        other = another_example(examples, i)
        if other is None:
            raise ValueError(f"no example has another demonstration than {example.id}; name more")
        turns = teacher_messages(example, context, instruction, own_template)
        own.append(encode_prompt(tokenizer, turns, kwargs))
        turns = swapped_messages(example, other, context, instruction, own_template)
        swapped.append(encode_prompt(tokenizer, turns, kwargs))
    return own, swapped


@torch.no_grad()
def divided_signal(student, teacher, student_prompts, own, swapped, completions, batch_size=8):
    """(total_BT, style_BT): KL(teacher || student) at each token of given completions, in nats.

    total: the teacher sees the row's own demonstration. style: the same tokens under another
    example's, which is what the template's manner alone moves. total - style is what this
    demonstration adds: the content. completions are (ids_BT, mask_BT).
    """
    totals, styles = [], []
    for rows in split(list(range(len(student_prompts))), batch_size):
        ids_BT, mask_BT = (tensor[rows] for tensor in completions)
        prompts = [student_prompts[row] for row in rows]
        student_hidden_BTD = completion_hidden(student, prompts, ids_BT, mask_BT)
        for seen, kls in ((own, totals), (swapped, styles)):
            prompts = [seen[row] for row in rows]
            teacher_hidden_BTD = completion_hidden(teacher, prompts, ids_BT, mask_BT)
            kl_BT, _, _ = compare_completions(
                student_hidden_BTD,
                output_head(student),
                teacher_hidden_BTD,
                output_head(teacher),
                ids_BT,
                "forward",
            )
            kls.append(kl_BT)
    return torch.cat(totals), torch.cat(styles)


def content_share(total_BT, style_BT, mask_BT):
    """{"kl", "style", "content_share", "content_share_error"} of masked tokens.

    kl and style are nats a token; content_share = 1 - style / kl, negative if another example's
    demonstration moves the student further than its own. Its error is the jackknife's over rows,
    since the tokens of one row belong together.
    """
    total_B = torch.where(mask_BT, total_BT, 0.0).sum(1).double()
    style_B = torch.where(mask_BT, style_BT, 0.0).sum(1).double()
    tokens = mask_BT.sum().item()
    kl, style = total_B.sum().item(), style_B.sum().item()
    figures = {"kl": kl / tokens, "style": style / tokens, "content_share": 1 - style / kl}
    B = len(total_B)
    if B > 1:
        without_B = 1 - (style - style_B) / (kl - total_B)
        spread = (without_B - without_B.mean()).square().sum().item()
        figures["content_share_error"] = ((B - 1) / B * spread) ** 0.5
    return figures


# ---- the same on a few fixed prompts, with each validation of a run ----

WATCHED_ROWS, WATCHED_TOKENS = 8, 64


@dataclass
class Watched:
    """The first training prompts of a run, as token ids, with and without contexts."""

    student_prompts: list
    own: list  # the teacher's prompts
    swapped: list  # the same with another example's demonstration
    uniforms_BT: torch.Tensor


def watched_rows(tokenizer, train, pairs, config):
    """The rows that `watch_content` measures -> Watched; None where no teacher sees more."""
    if config.teacher == "none" or config.teacher_context == "none":
        return None
    fitting = {pair.id for pair in pairs}
    examples = [example for example in train if example.id in fitting]
    if any(another_example(examples, i) is None for i in range(len(examples[:WATCHED_ROWS]))):
        return None
    seen = config.teacher_context, config.teacher_instruction, config.teacher_template
    own, swapped = teacher_prompts(
        tokenizer, examples, *seen, kwargs=config.chat_template_kwargs, first=WATCHED_ROWS
    )
    prompts = [
        encode_prompt(tokenizer, example.messages, config.chat_template_kwargs)
        for example in examples[:WATCHED_ROWS]
    ]
    # no seed of the run, and the same draws at each validation, so that figures compare
    shape = len(prompts), min(WATCHED_TOKENS, config.max_new_tokens)
    return Watched(prompts, own, swapped, torch.from_numpy(np.random.default_rng(0).random(shape)))


@torch.no_grad()
def watch_content(student, teacher, watched, config, ending):
    """content_share and its error, of the student's sampled answers to the watched rows."""
    rollout = sample_completions(
        student,
        watched.student_prompts,
        max_new_tokens=watched.uniforms_BT.shape[1],
        temperature=config.temperature,
        uniforms_BT=watched.uniforms_BT,
        **ending,
    )
    completions = rollout.completion_ids_BT, rollout.completion_mask_BT
    total_BT, style_BT = divided_signal(
        student, teacher, watched.student_prompts, watched.own, watched.swapped, completions
    )
    figures = content_share(total_BT, style_BT, rollout.completion_mask_BT)
    return {
        name: figures[name] for name in ("content_share", "content_share_error") if name in figures
    }


# ---- collapse: the rule, on the validations of a run ----


def same_opening(answers, length=3):
    """Share of the most frequent first three tokens among answers (with .ids)."""
    openings = Counter(tuple(answer.ids[:length]) for answer in answers)
    return openings.most_common(1)[0][1] / len(answers)


AFTER_COLLAPSE = {  # --on-collapse -> what a run does then
    "warn": "Training goes on; --on-collapse stop or freeze would not",
    "stop": "Training stops here; best/ has the best weights before",
    "freeze": "The teacher stays as it is from here on",
}


def find_collapse(folder, step, validation):
    """The line of `collapse` if the validation just made shows one beside those in a run's folder.

    The first point is the untrained model, as the preflight measured it greedily.
    """
    points = []
    before = folder / "before.json"
    if before.exists():
        student = json.loads(before.read_text())["preflight"]["student"]
        points.append({"step": 0, "drift_from_base": 0.0} | student)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        if "validation" in metrics:
            points.append({"step": metrics["step"]} | metrics["validation"])
    return collapse([*points, {"step": step} | validation])


def collapse(points):
    """What moved, in one line, if the last of a run's validations is a collapse; else None.

    points    {"step", "correct", "standard_error", "finished", "completion_tokens",
              "drift_from_base", and "same_opening" where it was measured}, in the order of steps
    The last is compared with the best before it. It is a collapse if
    - its answers changed their form (half of them or more stopped ending, they shrank to a quarter,
      or half of them or more took up one opening), the drift doubled, and accuracy is lower by
      more than its standard error; or
    - accuracy fell to less than half, by more than two standard errors.
    A change of form alone is none: runs that learn well pass through one, with higher accuracy.
    """
    earlier = [point for point in points[:-1] if "correct" in point]
    now = points[-1]
    if not earlier or "correct" not in now:  # a judge that failed judged nothing
        return None
    best = max(earlier, key=lambda point: point["correct"])
    fell = best["correct"] - now["correct"] > now["standard_error"]
    doubled = now["drift_from_base"] > 2 * best["drift_from_base"]
    if fell_by_far(best, now) or (fell and doubled and changed_form(best, now)):
        return describe_collapse(best, now)
    return None


def changed_form(best, now):
    opening = now.get("same_opening", 0.0) - best.get("same_opening", 0.0)
    return (
        best["finished"] - now["finished"] >= 0.5
        or now["completion_tokens"] < best["completion_tokens"] / 4
        or ("same_opening" in best and opening >= 0.5)
    )


def fell_by_far(best, now):
    error = (best["standard_error"] ** 2 + now["standard_error"] ** 2) ** 0.5
    fell = best["correct"] - now["correct"]
    return now["correct"] < best["correct"] / 2 and fell > 2 * error


MOVED = {  # of a validation: (its name in the line, its form)
    "correct": ("right", "{:.1%}"),
    "finished": ("ended", "{:.0%}"),
    "completion_tokens": ("tokens", "{:.0f}"),
    "same_opening": ("one opening", "{:.0%}"),
    "drift_from_base": ("drift", "{:.3f}"),
    "content_share": ("content share", "{:.0%}"),
}


def describe_collapse(best, now):
    parts = []
    for name, (word, form) in MOVED.items():
        if name in best and name in now:
            before, after = form.format(best[name]), form.format(now[name])
            if before != after:
                parts.append(f"{word} {before} -> {after}")
    return f"collapse after step {best['step']}, seen at step {now['step']}: {', '.join(parts)}"
