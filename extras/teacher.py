"""The teacher's bench: which prompt makes this model a teacher, before anything is trained.

    python extras/teacher.py --task science --templates thinking plain own-words
    python extras/teacher.py --task knowledge --templates own-words my.txt --temperatures 0.5 1
    python extras/teacher.py --task science --templates plain --model DIR --json F --html F

Ranks templates (names of --teacher-instruction, or files as for --teacher-template), contexts and
temperatures by what sampled answers of the teacher show on the validation questions:

right, ended, tokens, artefacts, copied   of the teacher's answers, as in the preflight
KL          KL(teacher || student) a token, on the student's own sampled answers: what a step of
            forward KL learns from; without the first tokens that training masks
content     of that KL, the share that this demonstration adds: KL to the mean of the same teacher
            under OTHER examples' demonstrations, which says what the template's manner alone would
style       the rest, KL - content: what the student learns of the template, whatever the example

Each ± is one standard error over the questions. A teacher is good if its samples are right and most
of what it moves is content. All templates answer with the same random numbers. --html colours one
answer of the student, token by token: orange is style, blue is content.
"""

import argparse
import html
import itertools
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of data.py

import data
from config import new_config
from eval import file_to_write, sample_answers, score_answers
from sampling import sample_completions, stop_tokens
from support.chat import encode_prompt, parse_template_kwargs, reject_template_kwargs
from support.judge import choose_scorer
from support.models import best_device, configure_cuda, describe_machine, load_model
from support.preflight import copied_share, error_over_questions
from support.watch import content_share, divided_signal, teacher_prompts


@dataclass
class Candidate:
    """One prompt of a teacher, and the temperature that it is sampled at."""

    name: str
    context: str
    temperature: float
    instruction: str = "thinking"
    own_template: str | None = None

    def seen(self):
        """The arguments of data.teacher_messages after the example."""
        return self.context, self.instruction, self.own_template


def candidates(templates, contexts, temperatures):
    """Every combination; a template of one's own has the context that it shows -> list."""
    found = []
    for template in templates:
        if template in data.TEACHER_INSTRUCTIONS:
            prompts = [(context, template, None) for context in contexts]
        elif Path(template).is_file():
            own = data.read_template(template)
            prompts = [(data.context_of_template(own), "thinking", own)]
        else:
            names = ", ".join(data.TEACHER_INSTRUCTIONS)
            raise ValueError(f'template "{template}" is no file; choose one, or from {names}')
        for (context, *words), temperature in itertools.product(prompts, temperatures):
            name = template if words[1] is None else Path(template).name
            found.append(Candidate(name, context, temperature, *words))
    return found


class Bench:
    """A model and its questions, with the student's answers that every candidate scores."""

    def __init__(self, model, tokenizer, examples, config, samples, scorer):
        self.model, self.tokenizer, self.examples = model, tokenizer, examples
        self.config, self.samples, self.scorer = config, samples, scorer
        self.kwargs = config.chat_template_kwargs
        self.prompts = [encode_prompt(tokenizer, e.messages, self.kwargs) for e in examples]
        self.rollouts = {}  # temperature -> (ids_BT, mask_BT)

    def uniforms(self, rows, length, stream):
        generator = np.random.default_rng([self.config.seed, stream])
        return torch.from_numpy(generator.random((rows, length)))

    def rollout(self, temperature):
        """One sampled answer of the student to each question, as long as training's."""
        if temperature not in self.rollouts:
            length = self.config.max_new_tokens
            rollout = sample_completions(
                self.model,
                self.prompts,
                max_new_tokens=length,
                temperature=temperature,
                uniforms_BT=self.uniforms(len(self.prompts), length, stream=0),
                **stop_tokens(self.model, self.tokenizer),
            )
            found = rollout.completion_ids_BT, rollout.completion_mask_BT
            self.rollouts[temperature] = found
        return self.rollouts[temperature]

    def measure(self, candidate):
        """The figures of one candidate -> dict."""
        asked = [example for example in self.examples for _ in range(self.samples)]
        own, swapped = teacher_prompts(
            self.tokenizer, self.examples, *candidate.seen(), kwargs=self.kwargs
        )
        answers = sample_answers(
            self.model,
            self.tokenizer,
            [prompt for prompt in own for _ in range(self.samples)],
            temperature=candidate.temperature,
            uniforms_BT=self.uniforms(len(asked), self.config.answer_tokens, stream=1),
            description=f"{candidate.name} at {candidate.temperature:g}",
        )
        figures = score_answers(asked, answers, self.scorer)
        figures["standard_error"] = error_over_questions(answers, self.samples)
        figures["copied"] = copied_share(answers, asked)
        ids_BT, mask_BT = self.rollout(candidate.temperature)
        total_BT, content_BT = divided_signal(
            self.model, self.model, self.prompts, own, swapped, (ids_BT, mask_BT)
        )
        columns_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        loss_mask_BT = mask_BT & (columns_T >= self.config.skip_first_tokens)
        figures |= content_share(total_BT, content_BT, loss_mask_BT)
        if "content_share" not in figures:
            raise ValueError(
                f"no answer of the student is longer than the {self.config.skip_first_tokens} "
                "tokens that training masks; raise --temperatures"
            )
        ids = ids_BT[0][mask_BT[0]].tolist()
        figures["picture"] = {
            "question": self.examples[0].messages[-1]["content"],
            "tokens": [self.tokenizer.decode([i]) for i in ids],
            "kl": total_BT[0][: len(ids)].tolist(),
            "content": content_BT[0][: len(ids)].tolist(),
        }
        figures["answer"] = answers[0].text
        return vars(candidate) | figures


def rank(rows):
    """Best first: right in more of its samples; among equals, more of its KL is content."""
    return sorted(rows, key=lambda row: (-row.get("correct", 0), -row["content_share"]))


def why_behind(row, best):
    """In words, what a candidate lacks beside the best one; "" if nothing stands out."""
    parts = []
    if row.get("correct", 0) < best.get("correct", 0):
        parts.append(f"right in {row['correct']:.0%} of its samples, not {best['correct']:.0%}")
    if row["finished"] < best["finished"] - 0.05:
        parts.append(f"{1 - row['finished']:.0%} of its answers do not end")
    if row["completion_tokens"] > 1.2 * best["completion_tokens"]:
        parts.append(f"{row['completion_tokens']:.0f} tokens, not {best['completion_tokens']:.0f}")
    if row["artefacts"] > best["artefacts"] + 0.05:
        parts.append(f"{row['artefacts']:.0%} open with words about what only it sees")
    gap = best["content_share"] - row["content_share"]
    if gap > 0.05:
        shares = f"{row['content_share']:.0%} of its KL is content, not {best['content_share']:.0%}"
        parts.append(shares)
    return "; ".join(parts)


def format_rows(rows):
    """The ranked rows as a table, and a line for each that says why it is not the first."""
    head = ["", "template", "context", "temperature", "right", "ended", "tokens", "artefacts"]
    head += ["copied", "KL a token", "content", "content share"]
    table = [head]
    for place, row in enumerate(rows, start=1):
        right = f"{row['correct']:.1%} ± {row['standard_error']:.1%}" if "correct" in row else "–"
        share = f"{row['content_share']:.0%} ± {row['content_share_error']:.0%}"
        table.append(
            [
                str(place),
                row["name"],
                row["context"],
                f"{row['temperature']:g}",
                right,
                f"{row['finished']:.0%}",
                f"{row['completion_tokens']:.1f}",
                f"{row['artefacts']:.0%}",
                f"{row['copied']:.0%}",
                f"{row['kl']:.3f}",
                f"{row['content']:.3f}",
                share,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in table
    ]
    for place, row in enumerate(rows[1:], start=2):
        lines.append(f"{place} {row['name']}: {why_behind(row, rows[0]) or 'nothing stands out'}")
    return "\n".join(lines)


# ---- the picture ----

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>What a teacher's prompt moves</title>
<style>
body {{ font: 16px/1.6 sans-serif; max-width: 52em; margin: 2em auto; padding: 0 1em }}
.tokens {{ font: 15px/2 monospace }} .tokens span {{ padding: 3px 0 }}
td, th {{ padding: 2px 10px; text-align: right }} h2 {{ margin-bottom: 0 }}
</style>
<h1>What a teacher's prompt moves</h1>
<p>One sampled answer of the student to “{question}”. Its tokens are coloured by the KL divergence
of teacher and student at their positions: <span style="background: {orange}">orange</span> is
style, what the prompt moves whatever its demonstration;
<span style="background: {blue}">blue</span> is content, what this demonstration adds. Full colour
is {full:g} nats. Point at a token for its figures.</p>
{blocks}
</html>
"""
ORANGE, BLUE = (230, 120, 0), (0, 90, 200)
FULL = 3.0  # nats at which a colour is full


def shade(colour, nats):
    return "rgba({}, {}, {}, {:.2f})".format(*colour, min(max(nats, 0), FULL) / FULL)


def page(rows):
    """HTML with one block a candidate: the answer coloured by style, then by content."""
    blocks = []
    for row in rows:
        picture = row["picture"]
        figures = f"KL {row['kl']:.2f} nats a token, content {row['content_share']:.0%}"
        about = f"{row['context']}, temperature {row['temperature']:g}: {figures}"
        blocks.append(f"<h2>{html.escape(row['name'])}</h2><p>{html.escape(about)}</p>")
        for word, colour in (("style", ORANGE), ("content", BLUE)):
            spans = []
            columns = zip(picture["tokens"], picture["kl"], picture["content"], strict=True)
            for token, kl, content in columns:
                nats = content if word == "content" else kl - content
                title = f"KL {kl:.2f} = content {content:.2f} + style {kl - content:.2f}"
                text = html.escape(token).replace("\n", "⏎<br>")
                spans.append(
                    f'<span title="{title}" style="background: {shade(colour, nats)}">{text}</span>'
                )
            blocks.append(f"<p class=tokens>{word}: {''.join(spans)}</p>")
    question = html.escape(rows[0]["picture"]["question"])
    colours = {"orange": shade(ORANGE, FULL), "blue": shade(BLUE, FULL), "full": FULL}
    return PAGE.format(question=question, blocks="\n".join(blocks), **colours)


# ---- python extras/teacher.py ----


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", required=True, choices=[task for task in data.TASKS if data.TASKS[task]])
    add("--templates", nargs="+", required=True, help="names or files")
    add("--contexts", nargs="+", choices=["demonstration", "text+demonstration"])
    add("--temperatures", nargs="+", type=float, help="(default: the preset's)")
    add("--model", help="(default: as sdft.py chooses it)")
    add("--preset", help="whose lengths, temperature and context are the defaults")
    add("--data", help="folder with our JSONL files (default: our own samples)")
    add("--split", default="validation")
    add("--questions", type=int, default=24, help="the first N (default: 24)")
    add("--samples", type=int, default=4, help="answers of each teacher to each (default: 4)")
    add("--seed", type=int, default=0)
    add("--chat-template-kwargs", type=parse_template_kwargs, metavar="JSON")
    add("--judge", metavar="URL")
    add("--judge-model", metavar="NAME")
    add("--json", type=Path, help="also write all figures to this file")
    add("--html", type=Path, help="also write the picture to this file")
    args = parser.parse_args(argv)
    if args.questions < 2 or args.samples < 1:
        parser.error("--questions needs at least 2, --samples at least 1")
    if any(temperature <= 0 for temperature in args.temperatures or []):
        parser.error("--temperatures must be above 0; the preflight answers greedily")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    names = ("task", "model", "preset", "data", "seed", "chat_template_kwargs")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        for name in ("json", "html"):
            if getattr(args, name):
                setattr(args, name, file_to_write(getattr(args, name)))
        config, _, about = new_config(given, {}, None)
        contexts = args.contexts or [config.teacher_context]
        tried = candidates(args.templates, contexts, args.temperatures or [config.temperature])
        examples = data.load_task(args.task, args.split, args.data)[: args.questions]
        for example, candidate in itertools.product(examples, tried):
            data.check_context(example, candidate.context)
        scorer = choose_scorer(args.task, examples, args.judge, args.judge_model)
        print(about)
        configure_cuda()
        model, tokenizer = load_model(config.model, best_device(), config.dtype)
        reject_template_kwargs(tokenizer, config.chat_template_kwargs)
        bench = Bench(model, tokenizer, examples, config, args.samples, scorer)
        rows = rank([bench.measure(candidate) for candidate in tried])
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(
        f"{len(examples)} {args.task} {args.split} questions, {args.samples} answers of each "
        f"teacher, at most {config.answer_tokens} tokens\n{format_rows(rows)}"
    )
    if args.json:
        command = shlex.join(["python", "extras/teacher.py", *(argv or sys.argv[1:])])
        record = {"command": command, "machine": describe_machine(), "rows": rows}
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if args.html:
        args.html.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
