"""What the benchmarks share: the repository on Python's path, tables, records."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def random_batch(step, vocabulary, config):
    """A batch of random prompts of the longest length, with an EOS that no row draws."""
    import torch  # here, and below: a process that measures memory loads what it needs itself

    from data import Pair
    from sdft import Batch

    generator = torch.Generator().manual_seed(step)
    B, T = config.batch_size, config.max_new_tokens
    prompts, longer = (
        torch.randint(vocabulary, (B, length), generator=generator).tolist()
        for length in (config.max_prompt_tokens, config.max_teacher_prompt_tokens)
    )
    uniforms_BT = torch.rand(B, T, generator=generator, dtype=torch.float64)
    pairs = [Pair("random", *pair) for pair in zip(prompts, longer, strict=True)]
    return Batch(step, pairs, uniforms_BT, 1e-5, [vocabulary], 0)


def timed_step(student, teacher, optimizer, batch, config, clock):
    """An SDFT step in its parts -> {part: seconds by clock()}, "step" their sum."""
    from sdft import sample_batch, update

    def take_optimizer_step(learning_rate):
        at.append(clock())
        optimizer.step(learning_rate)
        at.append(clock())

    at = [clock()]
    rollout = sample_batch(student, batch, config)
    at.append(clock())
    timed_optimizer = SimpleNamespace(step=take_optimizer_step)
    update(student, teacher, timed_optimizer, batch, rollout, config)
    at.append(clock())
    parts = ["sampling", "scoring and backward", "AdamW", "EMA"]
    seconds = [after - before for before, after in pairwise(at)]
    return dict(zip(parts, seconds, strict=True)) | {"step": sum(seconds)}


def markdown_table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def number(value, digits=3):
    """Three digits that matter, without exponents."""
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def write_record(file, script, numbers):
    """Command, machine and numbers as JSON; an absolute path in the command is cut to its name."""
    # here: it brings transformers, whose memory a measuring process must not have
    from support.models import describe_machine

    given = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    record = {
        "command": " ".join(["python", f"benchmarks/{script}.py", *given]),
        "machine": describe_machine(),
    } | numbers
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
