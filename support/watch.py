"""Watching a run: what the teacher's signal consists of, and whether the student collapses."""

import json
import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch

from data import teacher_messages
from kl_estimators import CHUNK_SIZE
from sampling import completion_hidden, output_head, sample_completions
from support.chat import encode_prompt

# ---- content and style: the part of the teacher's signal that its demonstration adds ----

OTHERS = 3  # demonstrations of other examples, whose mixture stands for the template without one


def other_examples(examples, i, context, most=OTHERS):
    """The next examples that show another context, and have another answer where there is one."""
    own = examples[i]
    shown = [field for field in ("demonstration", "text") if field in context]
    found = []
    for step in range(1, len(examples)):
        other = examples[(i + step) % len(examples)]
        differs = any(getattr(other, field) != getattr(own, field) for field in shown)
        if differs and (own.answer is None or other.answer != own.answer):
            found.append(other)
        if len(found) == most:
            break
    return found


def swapped_messages(example, other, context, instruction, own_template=None):
    """The teacher's prompt for example's question with what it sees of another example."""
    shown = replace(example, demonstration=other.demonstration, text=other.text)
    return teacher_messages(shown, context, instruction, own_template)


def teacher_prompts(
    tokenizer, examples, context, instruction, own_template=None, kwargs=None, first=None
):
    """(own, swapped) of the first examples (None: of all), as token ids.

    own[i] is the teacher's prompt for example i, swapped[i] a list of the same prompt with the
    demonstrations of other examples. ValueError if there is none.
    """
    own, swapped = [], []
    for i, example in enumerate(examples[:first]):
        others = other_examples(examples, i, context)
        if not others:
            raise ValueError(f"no example has another {context} than {example.id}; name more")
        turns = teacher_messages(example, context, instruction, own_template)
        own.append(encode_prompt(tokenizer, turns, kwargs))
        turns_of_others = [
            swapped_messages(example, other, context, instruction, own_template) for other in others
        ]
        swapped.append([encode_prompt(tokenizer, turns, kwargs) for turns in turns_of_others])
    return own, swapped


@torch.no_grad()
def divided_signal(student, teacher, student_prompts, own, swapped, completions):
    """(total_BT, content_BT) at each token of given completions (ids_BT, mask_BT), in nats.

    With S the student, T the teacher with the row's own demonstration, and M the mean of the
    teacher's distributions with other examples' demonstrations,

        total = KL(T || S)      content = KL(T || M)      style = total - content

    M is what the template's manner says whatever the demonstration; content, what this
    demonstration adds, is never negative. style is sum_v T(v) log (M(v) / S(v)), negative where the
    manner alone would move the student away from T.
    """
    ids_BT, mask_BT = completions
    total_BT = torch.zeros(ids_BT.shape, device=ids_BT.device)
    content_BT = torch.zeros_like(total_BT)
    for row in range(len(student_prompts)):
        length = int(mask_BT[row].sum())
        ids_1T, mask_1T = ids_BT[row, None, :length], mask_BT[row, None, :length]
        K = len(swapped[row])
        prompts = [own[row], *swapped[row]]
        repeated = ids_1T.expand(1 + K, -1), mask_1T.expand(1 + K, -1)
        student_hidden_1TD = completion_hidden(student, [student_prompts[row]], ids_1T, mask_1T)
        teacher_hidden_KTD = completion_hidden(teacher, prompts, *repeated)
        for start in range(0, length, CHUNK_SIZE // (2 + K)):
            part = slice(start, start + CHUNK_SIZE // (2 + K))
            student_TV = log_softmax(output_head(student)(student_hidden_1TD[0, part]))
            teacher_KTV = log_softmax(output_head(teacher)(teacher_hidden_KTD[:, part]))
            mixture_TV = teacher_KTV[1:].logsumexp(0) - math.log(K)
            own_TV = teacher_KTV[0]
            total_BT[row, :length][part] = (own_TV.exp() * (own_TV - student_TV)).sum(-1)
            content_BT[row, :length][part] = (own_TV.exp() * (own_TV - mixture_TV)).sum(-1)
    return total_BT, content_BT


def log_softmax(logits):
    return logits.float().log_softmax(-1)


def content_share(total_BT, content_BT, mask_BT):
    """{"kl", "content", "content_share", "content_share_error"} of masked tokens.

    kl and content are nats a token; content_share = content / kl. It is above 1 where the template
    alone would move the student away from the teacher. Its error is the jackknife's over rows,
    since the tokens of one row belong together.
    """
    total_B = torch.where(mask_BT, total_BT, 0.0).sum(1).double()
    content_B = torch.where(mask_BT, content_BT, 0.0).sum(1).double()
    tokens = max(1, mask_BT.sum().item())
    kl, content = total_B.sum().item(), content_B.sum().item()
    figures = {"kl": kl / tokens, "content": content / tokens}
    B = len(total_B)
    if kl > 0 and B > 1:
        without_B = (content - content_B) / (kl - total_B)
        spread = (without_B - without_B.mean()).square().sum().item()
        figures["content_share"] = content / kl
        figures["content_share_error"] = ((B - 1) / B * spread) ** 0.5
    return figures


# ---- the same on a few fixed prompts, with each validation of a run ----

WATCHED_ROWS, WATCHED_TOKENS = 8, 64


@dataclass
class Watched:
    """The first training prompts of a run, as token ids, with and without contexts."""

    student_prompts: list
    own: list  # the teacher's prompts
    swapped: list  # for each, the same with other examples' demonstrations
    uniforms_BT: torch.Tensor


def watched_rows(tokenizer, train, pairs, config, positions=None):
    """The rows that `watch_content` measures -> Watched; None where no teacher sees more.

    positions is the most tokens of prompt and answer that the model takes.
    """
    if config.teacher == "none" or config.teacher_context == "none":
        return None
    fitting = {pair.id for pair in pairs}
    examples = [example for example in train if example.id in fitting]
    context = config.teacher_context
    watched = range(len(examples[:WATCHED_ROWS]))
    if not all(other_examples(examples, i, context, most=1) for i in watched):
        return None
    seen = context, config.teacher_instruction, config.teacher_template
    own, swapped = teacher_prompts(
        tokenizer, examples, *seen, kwargs=config.chat_template_kwargs, first=WATCHED_ROWS
    )
    answer_tokens = min(WATCHED_TOKENS, config.max_new_tokens)
    longest = config.max_teacher_prompt_tokens
    if positions is not None:
        longest = min(longest, positions - answer_tokens)
    rows = []
    for example, prompt, others in zip(examples, own, swapped, strict=False):
        # with another's longer article the prompt may exceed what the model can take
        fitting = [other for other in others if len(other) <= longest]
        if fitting:
            student_prompt = encode_prompt(tokenizer, example.messages, config.chat_template_kwargs)
            rows.append((student_prompt, prompt, fitting))
    if not rows:
        return None
    prompts, own, swapped = (list(column) for column in zip(*rows, strict=True))
    # no seed of the run, and the same draws at each validation, so that figures compare
    shape = len(prompts), answer_tokens
    return Watched(prompts, own, swapped, torch.from_numpy(np.random.default_rng(0).random(shape)))


@torch.no_grad()
def watch_content(student, teacher, watched, config, stop_ids):
    """KL(teacher || student) and its content, nats a token, on sampled answers to watched rows.

    Not the share: once the student has learned, the KL is near 0, and the share anything. Content
    that falls to 0 says that the teacher no longer heeds its demonstration.
    """
    rollout = sample_completions(
        student,
        watched.student_prompts,
        max_new_tokens=watched.uniforms_BT.shape[1],
        temperature=config.temperature,
        uniforms_BT=watched.uniforms_BT,
        **stop_ids,
    )
    completions = rollout.completion_ids_BT, rollout.completion_mask_BT
    total_BT, content_BT = divided_signal(
        student, teacher, watched.student_prompts, watched.own, watched.swapped, completions
    )
    figures = content_share(total_BT, content_BT, rollout.completion_mask_BT)
    return {"watched_kl": figures["kl"], "watched_content": figures["content"]}


# ---- collapse: the rule, on the validations of a run ----


def same_opening(answers):
    """Share of the most frequent first three tokens among answers (with .ids)."""
    openings = Counter(tuple(answer.ids[:3]) for answer in answers)
    return openings.most_common(1)[0][1] / len(answers)


AFTER_COLLAPSE = {  # --on-collapse -> what a run does then
    "warn": "Training goes on; --on-collapse stop would end it, freeze would stop an EMA teacher",
    "stop": "Training stops here; best/, if there is one, has the best weights before",
    "freeze": "The teacher stays as it is from here on",
}


def find_collapse(folder, step, validation):
    """The line of `collapse` if the validation just made shows one beside those in a run's folder.

    The first point is the untrained model, as the preflight measured it greedily.
    """
    points = []
    before = folder / "before.json"
    if before.exists():
        record = json.loads(before.read_text())
        # not 0 in re-invocation, which measures from another model than it starts from
        drift = next(iter(record["before"].values()))["drift_from_base"]
        points.append({"step": 0, "drift_from_base": drift} | record["preflight"]["student"])
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
    "watched_content": ("content", "{:.2f}"),
}


def describe_collapse(best, now):
    parts = []
    for name, (word, form) in MOVED.items():
        if name in best and name in now:
            before, after = form.format(best[name]), form.format(now[name])
            if before != after:
                parts.append(f"{word} {before} -> {after}")
    return f"collapse after step {best['step']}, seen at step {now['step']}: {', '.join(parts)}"
