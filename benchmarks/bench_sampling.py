"""sampling.sample_completions against Hugging Face's generate: tokens a second, turn by turn.

    python benchmarks/bench_sampling.py --json results/bench-sampling.json
    python benchmarks/bench_sampling.py --no-eos          # all rows run to the limit: equal work

Both get the same prompts in one process and draw at temperature 1 from the full softmax, in float32
on the CPU. generate has an untouched from_pretrained model, ours one from load_model. A
token counts through the first EOS. Draws differ, and so do natural lengths: the table shows them.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from common import markdown_table, number, write_record
from transformers import AutoModelForCausalLM, GenerationConfig

from data import load_task
from sampling import sample_completions, stop_tokens
from support.chat import encode_prompt
from support.models import builtin_smollm2, load_model


def some_prompts(tokenizer, least, most, n=64):
    """n prompts of least to most tokens, spread evenly over our samples."""
    examples = [
        example
        for task, split in (("general", "test"), ("knowledge", "train"), ("science", "train"))
        for example in load_task(task, split)
    ]
    prompts = [
        prompt
        for prompt in (encode_prompt(tokenizer, example.messages) for example in examples)
        if least <= len(prompt) <= most
    ]
    if len(prompts) < n:
        raise SystemExit(
            f"error: only {len(prompts)} of our prompts have {least} to {most} tokens with this "
            "tokenizer; see --prompt-tokens"
        )
    return [prompts[i * len(prompts) // n] for i in range(n)]


def sample_ours(model, prompts, stop, args, seed):
    uniforms_BT = torch.rand(
        len(prompts),
        args.max_new_tokens,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    rollout = sample_completions(
        model, prompts, max_new_tokens=args.max_new_tokens, uniforms_BT=uniforms_BT, **stop
    )
    return int(rollout.completion_mask_BT.sum())


@torch.no_grad()
def sample_generate(model, prompts, stop, args, seed):
    torch.manual_seed(seed)
    P = max(len(prompt) for prompt in prompts)
    ids_BP = torch.tensor(
        [[stop["pad_token_id"]] * (P - len(prompt)) + prompt for prompt in prompts]
    )
    mask_BP = torch.tensor([[0] * (P - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=args.max_new_tokens,
        eos_token_id=stop["eos_token_ids"],
        pad_token_id=stop["pad_token_id"],
    )
    ids_BT = model.generate(input_ids=ids_BP, attention_mask=mask_BP, generation_config=config)[
        :, P:
    ]
    ended_BT = torch.isin(ids_BT, torch.tensor(stop["eos_token_ids"])).long().cumsum(1)
    return int(
        (ended_BT.roll(1, dims=1).index_fill(1, torch.tensor([0]), 0) == 0).sum()
    )  # no EOS before this token


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="hub id, folder or smollm2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[8, 16, 32, 64],
        help="prompts sampled side by side; divisors of 64",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--prompt-tokens", type=int, nargs=2, default=[40, 120], metavar=("LEAST", "MOST")
    )
    parser.add_argument("--no-eos", action="store_true", help="no row ends before the limit")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    ours, tokenizer = load_model(args.model)
    plain = AutoModelForCausalLM.from_pretrained(
        builtin_smollm2() if args.model == "smollm2" else args.model, dtype=torch.float32
    ).eval()
    stop = stop_tokens(ours, tokenizer)
    if args.no_eos:
        stop["eos_token_ids"] = [ours.config.vocab_size]  # an id that is never drawn
    prompts = some_prompts(tokenizer, *args.prompt_tokens)
    contenders = {"ours": (sample_ours, ours), "generate": (sample_generate, plain)}
    for sample, model in contenders.values():  # warm-up
        sample(model, prompts[:2], stop, args, 0)

    measured = {rows: {name: [] for name in contenders} for rows in args.rows}
    for repeat in range(args.repeats):
        for rows in args.rows:
            every = len(prompts) // rows
            for name, (sample, model) in contenders.items():
                started = time.perf_counter()
                tokens = sample(model, prompts[repeat % every :: every][:rows], stop, args, repeat)
                measured[rows][name].append(
                    {"tokens": tokens, "seconds": time.perf_counter() - started}
                )

    table, numbers = [], {}
    for rows, found in measured.items():
        speeds = {
            name: median(turn["tokens"] / turn["seconds"] for turn in turns)
            for name, turns in found.items()
        }
        lengths = {
            name: median(turn["tokens"] / rows for turn in turns) for name, turns in found.items()
        }
        ratio = speeds["ours"] / speeds["generate"]
        table.append(
            [
                rows,
                number(speeds["ours"]),
                number(speeds["generate"]),
                f"{ratio:.2f}",
                number(lengths["ours"]),
                number(lengths["generate"]),
            ]
        )
        numbers[str(rows)] = {
            "tokens_per_s": speeds,
            "ratio": ratio,
            "tokens_per_row": lengths,
            "turns": found,
        }
    lengths = [len(prompt) for prompt in prompts]
    print(
        f"{Path(args.model).name}, float32, CPU, {torch.get_num_threads()} threads; "
        f"prompts of {min(lengths)} to {max(lengths)} tokens, up to "
        f"{args.max_new_tokens} new ones{', no EOS' if args.no_eos else ''}; "
        f"medians of {args.repeats}\n"
    )
    print(
        markdown_table(
            [
                "rows",
                "ours, tokens/s",
                "generate, tokens/s",
                "ours / generate",
                "tokens a row, ours",
                "generate",
            ],
            table,
        )
    )
    if args.json:
        write_record(
            args.json,
            "bench_sampling",
            {"model": Path(args.model).name, "threads": torch.get_num_threads(), "rows": numbers},
        )


if __name__ == "__main__":
    main()
