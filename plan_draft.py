"""The bytes that a run needs on the card, the host and the disk, from its configuration alone."""

from dataclasses import replace
from itertools import combinations, product

import torch

PREFILL_ROWS, LOSS_POSITIONS = 8, 256  # of sampling.py and kl_estimators.py
GENERAL_PROMPTS = 32  # of samples/general/test.jsonl
LIBRARIES = (
    10**9
)  # allowance: the CUDA context and workspaces on a card, Python's libraries on a host
STAGING = {"cuda": 16 * 2**24, "cpu": 16 * 2**18}  # optim.py: two buffers of 8 bytes a number
# float32 tensors [positions, vocabulary] at once in the loss: 6 in results/bench-memory.json;
# bfloat16 adds both models' logits and a gradient, of half the size
LOSS_TENSORS = {"float32": 6, "bfloat16": 8}


def count_parameters(model_config):
    """(all parameters, those of the largest tensor), without memory; tied ones count once."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    sizes = [parameter.numel() for parameter in model.parameters()]
    return sum(sizes), max(sizes)


def plan_run(model_config, config, device="cuda", counts=None):
    """{"training", "sampling", "host", "disk"}: {part: bytes}, and "parameters", "needs".

    training and sampling are the two phases of a step, on the card; with device "cpu" they are in
    host memory. needs has the sums {"card", "host", "disk"}. The lengths are the longest that
    config allows: give it those of the data to plan tighter. A --teacher-model counts as large as
    the student. counts: of count_parameters, for a caller who plans more than once.
    """
    c, size = model_config, {"bfloat16": 2, "float32": 4}[config.dtype]
    P, largest = counts or count_parameters(c)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    copied = config.teacher in ("ema", "base")  # a copy of the student, with its remainders
    weights = {"weights": size * P}
    if copied or config.teacher == "model":
        weights["teacher"] = size * P
    state = {"first moment": size * P, "second moment": 4 * P}  # the table in optim.py
    if size == 2:
        state["remainders"] = 2 * P * (1 + copied)
    if config.general_tokens:
        answers = GENERAL_PROMPTS * config.general_tokens + c.vocab_size
        weights["drift: head and states of the base"] = size * answers * c.hidden_size
    host = {"libraries": LIBRARIES}
    if config.offload_optimizer:
        host |= state
        resident = weights | {"slices of the state": STAGING[device]}
    else:
        resident = weights | state

    # micro-batches: at most so many rows and so many tokens, and at least one row
    student = config.max_prompt_tokens + config.max_new_tokens
    teacher = max(student, config.max_teacher_prompt_tokens + config.max_new_tokens)
    rows = min(config.micro_batch_size, config.batch_size)
    student_tokens = min(max(config.micro_batch_tokens, student), rows * student)
    teacher_tokens = min(max(config.micro_batch_tokens, teacher), rows * teacher)
    positions = min(LOSS_POSITIONS, rows * config.max_new_tokens)
    layers, layer = c.num_hidden_layers, student_tokens * layer_bytes(c, head_dim, size)
    states = student_tokens * c.hidden_size * size
    inference = 3 * c.intermediate_size + 4 * c.hidden_size  # numbers of a token in one layer
    training = resident | {
        "gradients": 4 * P,
        "activations": layers * (states if config.gradient_checkpointing else layer),
        "final states and their gradient": 3 * states,
    }
    moments_of_a_pass = {
        # one use of the head, and the sum over its uses, before .grad has them
        "loss, and gradients of the head": LOSS_TENSORS[config.dtype] * 4 * positions * c.vocab_size
        + (size + 8 if size == 2 else 8) * largest,
        "one layer and its gradients": 2 * layer,
        "teacher's pass": teacher_tokens * size * inference,
    }
    most = max(moments_of_a_pass, key=moments_of_a_pass.get)  # never two of them at once
    training[most] = moments_of_a_pass[most]
    cache = 2 * layers * c.num_key_value_heads * head_dim
    sampling = resident | {
        "keys and values": cache * size * config.batch_size * student,
        "prompts' pass": PREFILL_ROWS * config.max_prompt_tokens * (inference + cache) * size,
        "softmax and its float64 sums": 28 * config.batch_size * c.vocab_size,
    }
    if device == "cpu":
        host |= max(training, sampling, key=lambda parts: sum(parts.values()))
        training, sampling = {}, {}
    else:
        training["CUDA context"] = sampling["CUDA context"] = LIBRARIES
        files = weights["weights"], *(() if config.offload_optimizer else (6 * P,))
        host["a file's tensors on their way to the disk"] = max(files)

    checkpoint = size * P * (1 + copied) + sum(state.values()) if config.keep_last else 0
    disk = {
        "checkpoints": config.keep_last * checkpoint,
        "best/": size * P,
        "the next checkpoint, or last/": max(checkpoint, size * P),
    }
    needs = {"card": max(sum(training.values()), sum(sampling.values()))}
    needs |= {"host": sum(host.values()), "disk": sum(disk.values())}
    return dict(
        parameters=P, training=training, sampling=sampling, host=host, disk=disk, needs=needs
    )


def layer_bytes(c, head_dim, size):
    """What one decoder layer keeps of a token for its backward pass."""
    D, M = c.hidden_size, c.intermediate_size
    Q, K = c.num_attention_heads * head_dim, c.num_key_value_heads * head_dim
    # two norms: input in float32, normalised, output, one number; rotated queries and keys, values,
    # attention and one number a head; gate, its activation, up and their product
    numbers = 4 * D + 2 * Q + 2 * K + 4 * M
    return 4 * (2 * D + 2 + c.num_attention_heads) + size * numbers


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
    for count in range(1, len(choices) + 1):
        for some in combinations(choices, count):
            for changes in product(*some):
                values = {name: value for _, change in changes for name, value in change.items()}
                plan = plan_run(model_config, replace(config, **values), device, counts)
                if fits(plan, free):
                    return " ".join(flag for flag, _ in changes)
    share = min(bytes_ / plan["needs"][place] for place, bytes_ in free.items())
    return f"a model of about {share * counts[0] / 1e9:.1f} B parameters, with " + " ".join(
        flag for flag, _ in changes
    )
