"""Does a run fit: bytes on the card, the host and the disk, before any weights are loaded.

Lengths are the longest that the configuration allows, or those of a run's prompts. The table of
optim.py has the bytes of a parameter; docs/cost.md compares the plan with measured peaks.
"""

import re
import shutil
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from data import GENERAL_PROMPTS
from kl_estimators import CHUNK_SIZE
from lora import choose_layers, is_conv1d
from optim import SLICE
from sampling import DRAW_BYTES, PREFILL_ROWS, pass_numbers
from support.checkpoint import list_checkpoints

LIBRARIES = 10**9  # allowance: the CUDA context on a card, Python's libraries on a host
STAGING = {device: 16 * size for device, size in SLICE.items()}  # two buffers, 8 bytes a number
# float32 tensors [positions, vocabulary] at once in the loss: 6 in results/bench-memory.json;
# bfloat16 adds both models' logits and a gradient, of half the size
LOSS_TENSORS = {"float32": 6, "bfloat16": 8}
BYTES = {"bfloat16": 2, "float32": 4}  # of a number of the model
NEVER_AT_ONCE = "less: gradients or activations, never both"


def count_parameters(model_config):
    """(all parameters, those of the largest tensor), without memory; tied ones count once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    sizes = [parameter.numel() for parameter in model.parameters()]
    return sum(sizes), max(sizes)


def count_adapters(model_config, config):
    """(numbers in A and B together, those of them that learn); (0, 0) without adapters.

    ValueError if the model has no such layers.
    """
    if config.lora_rank == 0:
        return 0, 0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    all_numbers = numbers_of_B = 0
    for layer in choose_layers(model, config.targets_of_adapters).values():
        outputs = layer.weight.shape[1 if is_conv1d(layer) else 0]
        all_numbers += config.lora_rank * sum(layer.weight.shape)
        numbers_of_B += config.lora_rank * outputs
    return all_numbers, all_numbers if config.lora_train_a else numbers_of_B


def plan_run(model_config, config, device="cuda", counts=None, adapters=None):
    """{"training", "sampling", "host", "disk"}: {part: bytes}, and "parameters", "needs".

    training and sampling are the two phases of a step, on the card or, with device "cpu", in host
    memory. needs has the sums {"card", "host", "disk"}. counts is what count_parameters returns,
    adapters what count_adapters does.
    """
    parameters, largest_tensor = counts or count_parameters(model_config)
    adapters = adapters or count_adapters(model_config, config)
    shape = layer_shape(model_config)
    shape.keeps_scores = keeps_scores(model_config, shape, config.dtype, device)
    weights = plan_weights(parameters, adapters, shape, config)
    state = plan_state(parameters, adapters, config)
    host = {"libraries": LIBRARIES}
    if config.offload_optimizer:
        host |= state
        resident = weights | {"slices of the state": STAGING[device]}
    else:
        resident = weights | state
    passes = plan_training(parameters, adapters, largest_tensor, shape, config)
    training = resident | passes
    sampling = resident | plan_sampling(parameters, shape, config, device, sum(passes.values()))
    if device == "cpu":
        host |= max(training, sampling, key=lambda parts: sum(parts.values()))
        training, sampling = {}, {}
    else:
        training["CUDA context"] = sampling["CUDA context"] = LIBRARIES
        optimizer_file = 0 if config.offload_optimizer else 6 * parameters
        if config.lora_rank:  # its files are small
            host["the base on its way to the card"] = weights["weights"]
        else:
            largest_file = max(weights["weights"], optimizer_file)
            host["a file's tensors on their way to the disk"] = largest_file
    disk = plan_disk(parameters, adapters, state, config)
    return {
        "parameters": parameters,
        "training": training,
        "sampling": sampling,
        "host": host,
        "disk": disk,
        "needs": {
            "card": max(sum(training.values()), sum(sampling.values())),
            "host": sum(host.values()),
            "disk": sum(disk.values()),
        },
    }


@dataclass
class LayerShape:
    """The widths that decide a model's activations."""

    layers: int
    heads: int
    hidden: int
    queries: int  # heads x head dimension
    keys: int  # key-value heads x head dimension
    intermediate: int
    vocabulary: int
    pass_numbers: int  # sampling.pass_numbers
    keeps_scores: bool = False  # whether attention holds a number for each pair of tokens


def keeps_scores(model_config, shape, dtype, device):
    """Whether a family's attention, or torch's for it, computes the scores of all pairs at once.

    Families without "sdpa" do, such as Gemma 2 and gpt-oss; on a GPU so does float32 with fewer
    keys than queries, for which torch 2.13 has the kernel "math" alone.
    """
    found = AutoModelForCausalLM._model_mapping[type(model_config)]
    families = found if isinstance(found, tuple) else [found]
    only_math = device == "cuda" and dtype == "float32" and shape.keys < shape.queries
    return only_math or not all(family._supports_sdpa for family in families)


def layer_shape(model_config):
    c = model_config.get_text_config()
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    key_heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    return LayerShape(
        layers=c.num_hidden_layers,
        heads=c.num_attention_heads,
        hidden=c.hidden_size,
        queries=c.num_attention_heads * head_dim,
        keys=key_heads * head_dim,
        intermediate=getattr(c, "intermediate_size", None) or 4 * c.hidden_size,
        vocabulary=c.vocab_size,
        pass_numbers=pass_numbers(model_config),
    )


def plan_weights(parameters, adapters, shape, config):
    """Both models, and what drift is measured against."""
    size = BYTES[config.dtype]
    weights = {"weights": size * parameters}
    if config.lora_rank:
        every, learning = adapters
        weights["adapters"] = 4 * every
        if config.teacher == "ema":  # the base is shared
            weights["teacher's adapters"] = 4 * learning
    elif config.has_copied_teacher:
        weights["teacher"] = size * parameters
    if config.teacher == "model":
        weights["teacher"] = size * parameters
    if config.general_tokens:
        states = GENERAL_PROMPTS * config.general_tokens
        if config.lora_rank:  # the head is frozen, and shared
            weights["drift: states of the base"] = size * states * shape.hidden
        else:
            head_and_states = (states + shape.vocabulary) * shape.hidden
            weights["drift: head and states of the base"] = size * head_and_states
    return weights


def plan_state(parameters, adapters, config):
    """Moments and remainders: the table in optim.py. Adapters are float32, without remainders."""
    if config.lora_rank:
        _, learning = adapters
        return {"first moment": 4 * learning, "second moment": 4 * learning}
    size = BYTES[config.dtype]
    state = {"first moment": size * parameters, "second moment": 4 * parameters}
    if config.dtype == "bfloat16":
        owners = 2 if config.has_copied_teacher else 1
        state["remainders"] = 2 * parameters * owners
    return state


def plan_training(parameters, adapters, largest_tensor, shape, config):
    """Gradients, activations, and the largest of the short-lived tensors of a pass."""
    size = BYTES[config.dtype]
    student_length = config.max_prompt_tokens + config.max_new_tokens
    teacher_length = max(student_length, config.max_teacher_prompt_tokens + config.max_new_tokens)
    # a micro-batch has at most micro_batch_tokens, and at least one row
    rows = config.batch_size * config.rollouts_per_prompt
    student_tokens = min(max(config.micro_batch_tokens, student_length), rows * student_length)
    teacher_tokens = min(max(config.micro_batch_tokens, teacher_length), rows * teacher_length)
    # of the loss: with the longest prompts so many rows fit into a micro-batch
    longest_rows = min(rows, max(1, config.micro_batch_tokens // teacher_length))
    positions = min(CHUNK_SIZE, longest_rows * config.max_new_tokens)
    final_states = student_tokens * shape.hidden * size
    layer = student_tokens * layer_bytes(shape, size, student_length)
    # one use of the output head, and the sum over its uses, before .grad has them
    head_gradients = (size + 8 if config.dtype == "bfloat16" else 8) * largest_tensor
    gradients = 4 * parameters
    if config.lora_rank:  # the head is frozen
        _, learning = adapters
        gradients, head_gradients = 4 * learning, 0
    loss_tensors = LOSS_TENSORS[config.dtype] * 4 * positions * shape.vocabulary
    short_lived = {
        "loss, and gradients of the head": loss_tensors + head_gradients,
        "one layer and its gradients": 2 * layer,
        "teacher's pass": teacher_tokens
        * (size * shape.pass_numbers + score_bytes(shape, size, teacher_length)),
    }
    largest = max(short_lived, key=short_lived.get)  # never two of them at once
    activations = {
        "activations": shape.layers * (final_states if config.gradient_checkpointing else layer),
        "final states and their gradient": 3 * final_states,
        largest: short_lived[largest],
    }
    parts = {"gradients": gradients} | activations
    if rows * teacher_length <= config.micro_batch_tokens:
        # the only backward pass of a step: gradients take the place of what it frees
        parts[NEVER_AT_ONCE] = -min(gradients, sum(activations.values()))
    return parts


def plan_sampling(parameters, shape, config, device, training):
    """The cache, the pass over the prompts, and the softmax that tokens are drawn from.

    A GPU with less memory decodes fewer rows together (sampling.py). With adapters the plan counts
    as many, 8 at most, as fit into what training takes: all the rest of a step is small.
    """
    rows = config.batch_size * config.rollouts_per_prompt
    if device == "cpu":
        # of the linear layers, and of the head: all but the norms where it is tied
        copy = {"packed weights": BYTES[config.dtype] * parameters}
        return copy | sampling_parts(shape, config, rows, PREFILL_ROWS)
    rows = min(rows, PREFILL_ROWS)
    if config.lora_rank:
        while rows > 1 and sum(sampling_parts(shape, config, rows, rows).values()) > training:
            rows -= 1
        return sampling_parts(shape, config, rows, rows)
    return sampling_parts(shape, config, rows, PREFILL_ROWS)


def sampling_parts(shape, config, rows, prefill_rows):
    size = BYTES[config.dtype]
    cache_numbers = 2 * shape.layers * shape.keys
    longest = config.max_prompt_tokens + config.answer_tokens
    prompt_bytes = size * (shape.pass_numbers + cache_numbers)
    prompt_bytes += score_bytes(shape, size, config.max_prompt_tokens)
    return {
        "keys and values": cache_numbers * size * rows * longest,
        "prompts' pass": prefill_rows * config.max_prompt_tokens * prompt_bytes,
        "softmax and its float64 sums": DRAW_BYTES * rows * shape.vocabulary,
    }


def plan_disk(parameters, adapters, state, config):
    size = BYTES[config.dtype]
    if config.lora_rank:
        parameters, size = adapters[0], 4
    models = 2 if config.has_copied_teacher else 1
    checkpoint = size * parameters * models + sum(state.values()) if config.keep_last else 0
    return {
        "checkpoints": config.keep_last * checkpoint,
        "best/": size * parameters,
        "the next checkpoint, or last/": max(checkpoint, size * parameters),
    }


def score_bytes(shape, size, length):
    """Bytes of a token's attention scores in a row of that length, if they are all there at once:
    in float32 after the softmax, and in the model's numbers before and after it.
    """
    return shape.heads * length * (4 + 2 * size) if shape.keeps_scores else 0


def layer_bytes(shape, size, length=0):
    """Bytes of a token that one decoder layer keeps for its backward pass, in a row of a length."""
    # two norms: input in float32, normalised, output, one number; rotated queries and keys, values,
    # attention and one number a head; gate, its activation, up and their product
    numbers = 4 * shape.hidden + 2 * shape.queries + 2 * shape.keys + 4 * shape.intermediate
    linear = 4 * (2 * shape.hidden + 2 + shape.heads) + size * numbers
    return linear + score_bytes(shape, size, length)


def free_bytes(device, folder, keep_last):
    """{place: bytes}; on the disk also what a run has saved and later saves take the place of."""
    free = {"host": free_host_bytes()}
    free = {place: number for place, number in free.items() if number is not None}
    free["disk"] = shutil.disk_usage(folder).free + replaced_bytes(folder, keep_last)
    return free | ({"card": torch.cuda.mem_get_info()[0]} if device == "cuda" else {})


def free_host_bytes(root=Path("/")):
    """Bytes of memory that this process can still take, None if the system does not say.

    MemAvailable, or less where a container or another control group has a limit of its own, which
    /proc/meminfo does not show. The group's cache of files counts as free, as in MemAvailable.
    """
    meminfo = root / "proc/meminfo"
    text = meminfo.read_text() if meminfo.exists() else ""
    found = [1024 * int(number) for number in re.findall(r"MemAvailable: *(\d+) kB", text)]
    own = root / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = mount / path.strip("/")
        for folder in [group, *group.parents]:  # the limits of all groups above hold, too
            if folder.is_relative_to(mount) and all((folder / name).exists() for name in names):
                limit, used = ((folder / name).read_text().strip() for name in names)
                if limit != "max":
                    found.append(int(limit) - int(used) + cached_files(folder / "memory.stat"))
    return min(found, default=None)


def cached_files(stat):
    """Bytes of files that a control group has in memory, and would give up."""
    text = stat.read_text() if stat.exists() else ""
    found = dict(re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE))
    return int(found.get("total_inactive_file") or found.get("inactive_file") or 0)


def replaced_bytes(folder, keep_last):
    """Bytes of best/, last/ and, unless no more checkpoints follow, of a run's checkpoints."""
    saved = [folder / "best", folder / "last", *(list_checkpoints(folder) if keep_last else [])]
    files = [path for part in saved for path in part.rglob("*") if path.is_file()]
    return sum(file.stat().st_size for file in files)


def check_plan(model_config, config, device, folder, resumed=False):
    """(the plan in one line, {place: bytes}).

    ValueError, with what would fit, if it exceeds what is free.
    """
    free = free_bytes(device, folder, config.keep_last)
    plan = plan_run(model_config, config, device)
    needs = {place: plan["needs"][place] for place in free}
    line = "; ".join(
        f"{place} {needs[place] / 1e9:.1f} of {free[place] / 1e9:.1f} GB" for place in free
    )
    if not fits(plan, free) and not config.ignore_plan:
        if resumed:
            remedy = what_resuming_may_change(model_config, config, device, folder)
        else:
            remedy = f"It would with {what_would_fit(model_config, config, device, free)}"
        raise ValueError(
            f"this run does not fit: {line}. {remedy}; --ignore-plan tries all the same"
        )
    return f"plan: {plan['parameters'] / 1e9:.2f} B parameters; {line}", needs


def peak_bytes(device):
    """{"host"} and, on a GPU, {"card"}: the most memory that this process has held so far.

    The card's is what torch has reserved, with the plan's allowance for the CUDA context.
    """
    status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
    highest = re.findall(r"VmHWM:\s*(\d+) kB", status)
    peak = {"host": 1024 * int(highest[0])} if highest else {}
    on_card = {"card": torch.cuda.max_memory_reserved() + LIBRARIES} if device == "cuda" else {}
    return peak | on_card


def with_lengths_of(pairs, config):
    """The configuration with limits that the longest of the given prompts just meet."""
    return replace(
        config,
        max_prompt_tokens=max(len(pair.student_prompt) for pair in pairs),
        max_teacher_prompt_tokens=max(len(pair.teacher_prompt) for pair in pairs),
    )


def fits(plan, free):
    """Whether a plan needs no more than free has; free may lack some of "card", "host", "disk"."""
    return all(plan["needs"][place] <= bytes_ for place, bytes_ in free.items())


def what_would_fit(model_config, config, device, free):
    """What would make a run fit: the cheapest flags, as few as possible, or a smaller model."""
    counts, tokens = count_parameters(model_config), config.micro_batch_tokens
    halves = [tokens >> i for i in range(1, tokens.bit_length())]
    choices = [
        [("--gradient-checkpointing", {"gradient_checkpointing": True})],
        [(f"--micro-batch-tokens {n}", {"micro_batch_tokens": n}) for n in halves],
        [("--offload-optimizer", {"offload_optimizer": True})],
    ]
    if "disk" in free:  # weights at the end, but no checkpoints
        choices.append([("--keep-last 0", {"keep_last": 0})])
    every = [flag for flag, _ in (choice[-1] for choice in choices)]
    for rank in candidate_ranks(model_config, config):
        ranked = replace(config, lora_rank=rank)
        adapters = count_adapters(model_config, ranked)
        of_rank = [f"--lora-rank {rank}"] if rank != config.lora_rank else []
        for count in range(0 if of_rank else 1, len(choices) + 1):
            for some in combinations(choices, count):
                for changes in product(*some):
                    values = {n: value for _, change in changes for n, value in change.items()}
                    changed = replace(ranked, **values)
                    plan = plan_run(model_config, changed, device, counts, adapters)
                    if fits(plan, free):
                        return " ".join([*of_rank, *(flag for flag, _ in changes)])
    share = min(bytes_ / plan["needs"][place] for place, bytes_ in free.items())
    with_flags = " ".join([*of_rank, *every])
    return f"a model of about {share * counts[0] / 1e9:.1f} B parameters, with {with_flags}"


def what_resuming_may_change(model_config, config, device, folder):
    """What would make a resumed run fit, which keeps all flags but that of its checkpoints."""
    for keep_last in reversed(range(config.keep_last)):
        plan = plan_run(model_config, replace(config, keep_last=keep_last), device)
        if fits(plan, free_bytes(device, folder, keep_last)):
            return f"It would with --keep-last {keep_last}"
    return "Make room, as a resumed run keeps the flags that decide this"


def candidate_ranks(model_config, config):
    """The rank of the run and, as a last resort where all weights learn, 16."""
    if config.lora_rank:
        return [config.lora_rank]
    try:
        count_adapters(model_config, replace(config, lora_rank=16))
    except ValueError:  # experts, which take no adapters
        return [0]
    return [0, 16]
