"""Low-rank adapters: how exact an EMA teacher is, what a layer keeps, what merging rounds away.

    python benchmarks/bench_adapters.py     # minutes on a CPU; writes results/bench-adapters.json

The first is a simulation with one matrix; the others use the built-in model, whose weights are
rounded to bfloat16 first.
"""

import argparse
import copy
import json

import torch
import torch.nn.functional as F
from common import ROOT, markdown_table, number, write_record

from lora import add_adapters, merge, share_base
from optim import AdamW, prepare_for_training, update_ema
from support.models import load_model

# ---- the EMA teacher ----

FORMS = ["both from zero", "copied A", "frozen A"]


class OneLayer(torch.nn.Module):
    """y = W x, which learns to be another matrix."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = torch.nn.Linear(64, 64, bias=False)
        self.linear.weight.data = torch.randn(64, 64, generator=generator) / 8
        self.target = self.linear.weight.detach() + torch.randn(64, 64, generator=generator) / 40

    def get_decoder(self):
        return self

    def get_output_embeddings(self):
        return None

    def loss(self, x):
        return (self.linear(x) - F.linear(x, self.target)).square().mean()


def average_errors(form, learning_rate, rate=0.01, steps=(1, 20, 50, 200, 500)):
    """||B A of the teacher - average of the student's B A|| / ||that average|| after each of steps.

    The exact average M follows M += rate (B A - M) on the dense matrix, from 0.
    """
    student, generator = OneLayer(), torch.Generator().manual_seed(1)
    add_adapters(student, 16, 16, train_A=form != "frozen A")
    prepare_for_training(student)
    optimizer, teacher = AdamW(student), share_base(student)
    if form == "both from zero":
        teacher.linear.lora_A.data.zero_()
    average, errors = torch.zeros(64, 64, dtype=torch.float64), []
    for step in range(1, steps[-1] + 1):
        student.loss(torch.randn(32, 64, generator=generator)).backward()
        optimizer.step(learning_rate)
        update_ema(teacher, student, rate)
        with torch.no_grad():
            exact, own = (m.linear.lora_B @ m.linear.lora_A for m in (student, teacher))
        average += rate * (exact - average)
        if step in steps:
            errors.append(((own - average).norm() / average.norm()).item())
    return errors


def compare_averages():
    rows = [
        {"learning_rate": rate, "form": form, "errors": average_errors(form, rate)}
        for rate in (1e-4, 5e-4, 2e-3)
        for form in FORMS
    ]
    header = ["learning rate", "form", *(f"step {n}" for n in (1, 20, 50, 200, 500))]
    cells = [[r["learning_rate"], r["form"], *(f"{e:.1%}" for e in r["errors"])] for r in rows]
    print(markdown_table(header, cells), flush=True)
    return rows


# ---- activations ----


def kept_for_backward(model, run):
    """{address: bytes} of the storages that autograd keeps while run(), but for the model's own."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # or another tensor may get its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive.append(run())
    return kept


def compare_activations(base):
    ids = torch.randint(0, 40000, (2, 256), generator=torch.Generator().manual_seed(0))
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for form in ("all weights", "adapters", "adapters, frozen A"):
            model = copy.deepcopy(base).to(dtype)
            if form != "all weights":
                add_adapters(model, 16, 32, train_A=form == "adapters")
            options = {"input_ids": ids, "use_cache": False}
            kept = kept_for_backward(model, lambda m=model, o=options: m.base_model(**o)[0])
            learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
            rows.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "learning": form,
                    "parameters": learning,
                    "kilobytes_a_token": sum(kept.values()) / ids.numel() / 1000,
                }
            )
    print(markdown_table(list(rows[0]), [r.values() for r in rows]), flush=True)
    return rows


# ---- merging ----


def science_ids(tokenizer, split, count):
    """The first pairs of samples/science as token ids (prompt, demonstration) in fours."""
    file = ROOT / "samples" / "science" / f"{split}.jsonl"
    pairs = [json.loads(line) for line in file.read_text().splitlines()[:count]]
    texts = [
        [*pair["prompt"], {"role": "assistant", "content": pair.get("demonstration", "")}]
        for pair in pairs
    ]
    rows = [tokenizer.apply_chat_template(text, return_dict=False) for text in texts]
    rows.sort(key=len)
    batches = []
    for start in range(0, len(rows), 4):
        batch = rows[start : start + 4]
        batches.append(torch.tensor([row[: len(batch[0])] for row in batch]))
    return batches


@torch.no_grad()
def logprobs(model, batches):
    return torch.cat([model(input_ids=ids).logits.log_softmax(-1).flatten(0, 1) for ids in batches])


def kl(logprobs_NV, other_logprobs_NV):
    """Mean over tokens of KL(first || second), in nats."""
    difference_NV = logprobs_NV - other_logprobs_NV
    return (logprobs_NV.exp() * difference_NV).sum(-1).mean().item()


def merged_in_bfloat16(model):
    """(weights W + (alpha / r) B A rounded to bfloat16, which compute in float32; share lost)."""
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    merged, lost = merge(rounded)
    return merged.float(), lost


def compare_merging(base, tokenizer, learning_rate, steps):
    """Fine-tune adapters on demonstrations; what does rounding W + B A to bfloat16 undo?"""
    train, held_out = (science_ids(tokenizer, *s) for s in (("train", 64), ("validation", 16)))
    student, of_base, rows = copy.deepcopy(base), logprobs(base, held_out), []
    add_adapters(student, 16, 32)
    prepare_for_training(student)
    optimizer = AdamW(student)
    for step in range(1, steps[-1] + 1):
        ids = train[step * 7 % len(train)]
        logits = student(input_ids=ids).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step(learning_rate)
        if step in steps:
            exact, (merged, lost) = logprobs(student, held_out), merged_in_bfloat16(student)
            of_merged = logprobs(merged, held_out)
            row = {"learning_rate": learning_rate, "step": step, "lost": lost}
            row["kl_exact_base"] = kl(exact, of_base)
            row["kl_exact_merged"] = kl(exact, of_merged)
            row["largest_change_of_a_logprob"] = (exact - of_merged).abs().max().item()
            rows.append(row)
            print(" ".join(f"{name} {number(value)}" for name, value in row.items()), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 10, 40])
    arguments = parser.parse_args()
    averages = compare_averages()
    base, tokenizer = load_model("smollm2")
    base = base.bfloat16().float()
    activations = compare_activations(base)
    merging = [
        row
        for rate in (1e-5, 1e-4)
        for row in compare_merging(base, tokenizer, rate, arguments.steps)
    ]
    numbers = {"average": averages, "activations": activations, "merging": merging}
    write_record(ROOT / "results" / "bench-adapters.json", "bench_adapters", numbers)


if __name__ == "__main__":
    main()
