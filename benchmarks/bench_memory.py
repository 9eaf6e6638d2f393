"""Memory: what the chunked loss saves, measured; and whether a model fits on a card, from its configuration alone.

    python benchmarks/bench_memory.py --json results/bench-memory.json       # the loss, chunked and dense, each in its own process
    python benchmarks/bench_memory.py --plan benchmarks/configs/qwen2.5-7b.json                        # one H200, bfloat16
    python benchmarks/bench_memory.py --plan smollm2 --gpu-mib 24576 --dtype float32 --batch 16 --new-tokens 1024

--plan takes a hub id, a folder, a config.json or smollm2, loads no weights, and ends with status 1 where the run does not fit.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

from common import markdown_table, write_record

import torch

from config import Config
from kl_estimators import DIVERGENCES, compare_completions


# ---- the loss: forward and backward, in a process of its own ----

def dense_loss(student_hidden_BTD, student_head, teacher_hidden_BTD, teacher_head):
    """The same sum, without chunks: both models' log-probabilities stand whole."""
    with torch.no_grad():
        teacher_logprobs_BTV = teacher_head(teacher_hidden_BTD).log_softmax(-1)
    return DIVERGENCES["reverse"](student_head(student_hidden_BTD).log_softmax(-1), teacher_logprobs_BTV).sum()


def chunked_loss(student_hidden_BTD, student_head, teacher_hidden_BTD, teacher_head):
    ids_BT = torch.zeros(student_hidden_BTD.shape[:2], dtype=torch.long)
    return compare_completions(student_hidden_BTD, student_head, teacher_hidden_BTD, teacher_head, ids_BT, "reverse")[0].sum()


def measure_loss(form, T, V, D=64):
    """Peak memory of one forward and backward above what stood before it, in MiB."""
    student_head, teacher_head = (torch.nn.Linear(D, V, bias=False) for _ in range(2))
    student_hidden_BTD, teacher_hidden_BTD = torch.randn(1, T, D, requires_grad=True), torch.randn(1, T, D)
    loss = {"chunked": chunked_loss, "dense": dense_loss}[form]
    loss(student_hidden_BTD[:, :1], student_head, teacher_hidden_BTD[:, :1], teacher_head).backward()     # libraries' own buffers, and .grad
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss(student_hidden_BTD, student_head, teacher_hidden_BTD, teacher_head).backward()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return kilobytes / (1024 if sys.platform != "darwin" else 1024 ** 2)


def bench_loss(args):
    # glibc's heap would be full of holes after small chunks: each large block from the system, and back
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000"}
    measured = []
    for V in args.vocabularies:
        for T in args.lengths:
            peaks = {"dense": [], "chunked": []}
            for _ in range(args.repeats):
                for form in peaks:
                    command = [sys.executable, __file__, "--worker", form, str(T), str(V)]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(f"error: the {form} loss of {T} positions and {V} tokens did not end (status {done.returncode}):\n{done.stderr[-1000:]}")
                    peaks[form].append(float(done.stdout))
            medians = {form: median(found) for form, found in peaks.items()}
            measured.append({"positions": T, "vocabulary": V} | medians | {"ratio": medians["dense"] / max(medians["chunked"], 1e-9)})
    print(f"peak of the loss above its inputs, forward and backward, float32, one sequence, hidden size 64, MiB; medians of {args.repeats}\n")
    print(markdown_table(["vocabulary", "positions", "dense", "chunked", "dense / chunked"],
                         [[m["vocabulary"], m["positions"], f"{m['dense']:.0f}", f"{m['chunked']:.0f}", f"{m['ratio']:.1f}"] for m in measured]))
    return measured


# ---- the plan ----

BYTES_A_PARAMETER = {  # optim.py has the reasons; the sums are 18 and 20
    "bfloat16": {"weights": 2, "remainders of the weights": 2, "gradients": 4, "first moment": 2, "second moment": 4,
                 "teacher": 2, "remainders of the teacher": 2},
    "float32": {"weights": 4, "gradients": 4, "first moment": 4, "second moment": 4, "teacher": 4},
}
PREFILL_ROWS, CHUNK_SIZE = 8, 256       # of sampling._prefill and kl_estimators.compare_completions
GENERAL_PROMPTS = 32                    # of samples/general/test.jsonl
CONTEXT_BYTES = 10 ** 9                 # CUDA context and library workspaces: an allowance, not a measurement


def read_config(name):
    """The configuration of a hub id, a folder, a config.json or smollm2."""
    from transformers import AutoConfig
    try:
        if name == "smollm2":
            from models import builtin_smollm2
            name = builtin_smollm2()
        if Path(name).is_file():
            return AutoConfig.for_model(**json.loads(Path(name).read_text(encoding="utf-8")))
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f'no configuration at "{name}": {str(error).strip().splitlines()[0]}\nGive a config.json, a folder that has one, '
                         "or a hub id that this machine can reach") from None


def count_parameters(config):
    """(all parameters, those of the largest tensor), from tensors without storage; a tied embedding counts once."""
    from transformers import AutoModelForCausalLM
    with torch.device("meta"):
        sizes = [parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters()]
    return sum(sizes), max(sizes)


def make_plan(config, dtype, card_bytes, batch, new_tokens, prompt_tokens, micro_batch=1):
    """The bytes of both phases of a step -> {"parameters", "training", "sampling", "peak", "card", "fits"}.

    prompt_tokens is the longest teacher prompt. Training assumes gradient checkpointing: one state a layer is kept, and one
    layer at a time is computed again. Gradients are gone while sampling, and the cache and the activations are never there together.
    """
    parameters, largest = count_parameters(config)
    size, per_parameter = {"bfloat16": 2, "float32": 4}[dtype], BYTES_A_PARAMETER[dtype]
    D, V, layers, I = config.hidden_size, config.vocab_size, config.num_hidden_layers, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or D // config.num_attention_heads
    kept = {name: bytes_ * parameters for name, bytes_ in per_parameter.items() if name != "gradients"}
    kept["what measures drift: the base's head, states of its answers"] = size * D * (V + GENERAL_PROMPTS * Config.general_tokens)
    L, N = prompt_tokens + new_tokens, min(CHUNK_SIZE, micro_batch * new_tokens)
    training = kept | {
        "gradients": per_parameter["gradients"] * parameters,
        # one use of the head, in its own precision and in float32, and the sum over uses, before .grad has them
        "the largest tensor's gradient on its way": (size + 8 if dtype == "bfloat16" else 8) * largest,
        "activations: a state for each layer": layers * micro_batch * L * D * size,
        "activations: one layer and its gradients": 2 * micro_batch * L * layer_bytes_a_token(config, head_dim, size),
        "final states of both models, and their gradient": 3 * micro_batch * L * D * size,
        "loss: one chunk of positions": LOSS_NUMBERS * 4 * N * V,
        "CUDA context": CONTEXT_BYTES,
    }
    sampling = kept | {
        "key-value cache": 2 * layers * config.num_key_value_heads * head_dim * size * batch * L,
        "prompts' pass": PREFILL_ROWS * prompt_tokens * (3 * I + 4 * D) * size,
        "softmax and its float64 sums": 28 * batch * V,
        "CUDA context": CONTEXT_BYTES,
    }
    peak = max(sum(training.values()), sum(sampling.values()))
    return {"parameters": parameters, "training": training, "sampling": sampling, "peak": peak, "card": card_bytes, "fits": peak <= card_bytes}


# float32 tensors [chunk, vocabulary] that stand at once: 6 to 7 when this script measures it (chunked, over 4 x 256 x vocabulary bytes);
# bfloat16 adds both logits, their gradient, and a copy in float32
LOSS_NUMBERS = 9


def layer_bytes_a_token(config, head_dim, size):
    """What one decoder layer keeps of a token for its backward pass: norms, projections, rotary forms, attention, gated MLP."""
    D, I, Q, K = config.hidden_size, config.intermediate_size, config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    # two norms: their input in float32 and its normalised form; their outputs, queries, keys, values, attention; gate, up and both products
    return 2 * 2 * D * 4 + size * (2 * D + 2 * Q + 2 * K + K + Q + 4 * I)


def what_would_fit(config, plan, dtype, batch, new_tokens, prompt_tokens, micro_batch):
    """Sentences; each names one change that is enough on its own."""
    def fits(dtype=dtype, batch=batch, new_tokens=new_tokens, micro_batch=micro_batch):
        return make_plan(config, dtype, plan["card"], batch, new_tokens, prompt_tokens, micro_batch)["fits"]

    advice = []
    if dtype == "float32" and fits(dtype="bfloat16"):
        advice.append("--dtype bfloat16, which optim.py trains exactly")
    for flag, value in (("micro_batch", micro_batch), ("batch", batch), ("new_tokens", new_tokens)):
        smaller = next((value >> i for i in range(1, value.bit_length()) if fits(**{flag: value >> i})), None)
        if smaller:
            advice.append(f"--{flag.replace('_', '-')} {smaller}")
    per_parameter = sum(BYTES_A_PARAMETER[dtype].values())
    beside = sum(plan["training"].values()) - per_parameter * plan["parameters"]
    largest = max(0.0, plan["card"] - beside) / per_parameter
    if largest < plan["parameters"]:
        advice.append(f"a model of at most {largest / 1e9:.1f} B parameters, at {per_parameter} bytes each and {beside / 1e9:.1f} GB beside them")
    needed = math.ceil(plan["peak"] / 2 ** 20)
    return advice + [f"a card of at least {needed:,} MiB"]


def print_plan(args):
    config = read_config(args.plan)
    lengths = (args.batch, args.new_tokens, args.prompt_tokens, args.micro_batch)
    plan = make_plan(config, args.dtype, args.gpu_mib * 2 ** 20, *lengths)
    print(f"{Path(args.plan).stem}: {plan['parameters'] / 1e9:.2f} B parameters, {args.dtype}, {sum(BYTES_A_PARAMETER[args.dtype].values())} bytes each; batch "
          f"{args.batch}, micro-batch {args.micro_batch}, prompts up to {args.prompt_tokens} tokens, {args.new_tokens} new\n")
    for phase in ("sampling", "training"):
        rows = [[name, f"{bytes_ / 1e9:.2f}"] for name, bytes_ in plan[phase].items()]
        print(markdown_table([phase, "GB"], rows + [["**sum**", f"**{sum(plan[phase].values()) / 1e9:.2f}**"]]) + "\n")
    if plan["fits"]:
        print(f"fits: {plan['peak'] / 1e9:.1f} of {plan['card'] / 1e9:.2f} GB ({args.gpu_mib:,} MiB), {(plan['card'] - plan['peak']) / 1e9:.1f} GB left")
    else:
        print(f"does not fit: {plan['peak'] / 1e9:.1f} GB, and the card has {plan['card'] / 1e9:.2f} ({args.gpu_mib:,} MiB). Any one of these would:")
        print("\n".join(f"  {line}" for line in what_would_fit(config, plan, args.dtype, *lengths)))
    return plan


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", metavar="MODEL", help="hub id, folder, config.json or smollm2")
    parser.add_argument("--gpu-mib", type=int, default=143_771, help="memory of the card; the default is an H200's")
    parser.add_argument("--dtype", choices=list(BYTES_A_PARAMETER), default="bfloat16")
    parser.add_argument("--batch", type=int, default=32, help="completions sampled side by side")
    parser.add_argument("--micro-batch", type=int, default=1, help="sequences in one forward and backward")
    parser.add_argument("--new-tokens", type=int, default=2048)
    parser.add_argument("--prompt-tokens", type=int, default=512, help="of the longest teacher prompt")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 2048], help="positions of the measured loss")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[49_152, 151_936])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        form, T, V = args.worker
        return print(measure_loss(form, int(T), int(V)))
    try:
        numbers = {"plan": print_plan(args)} if args.plan else {"loss_mib": bench_loss(args)}
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.json:
        write_record(args.json, "bench_memory", numbers)
    sys.exit(0 if not args.plan or numbers["plan"]["fits"] else 1)


if __name__ == "__main__":
    main()
