"""Flags, presets and what is refused, before a model loads. Oracle: the messages, written out."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import ROOT
from transformers import AutoConfig, LlamaConfig

import baselines
import sdft
import support.run
from config import (
    ADAPTERS,
    CARDS,
    FREE_ON_RESUME,
    HARDWARE,
    OFFLOAD,
    RECIPES,
    Config,
    bfloat16_is_fast,
    new_config,
    parse_config,
    preset_values,
    reject_contradictions,
    resumed_config,
)
from data import TASKS
from support.plan import count_parameters, plan_run


def saved_run(folder, method="sdft", step=4, **config):
    """A run's folder with the one file of a checkpoint that --resume reads first."""
    checkpoint = folder / f"checkpoint-{step:06d}"
    checkpoint.mkdir(parents=True)
    config = dataclasses.asdict(dataclasses.replace(Config(), **config))
    (checkpoint / "state.json").write_text(json.dumps({"config": config, "method": method}))
    return checkpoint


# ---- presets ----
@pytest.mark.parametrize(
    "gigabytes, size, offload, rank",
    [
        (150.75, "7B", False, 0),  # one H200 has 143,771 MiB
        (85, "7B", True, 0),
        (48, "7B", False, 16),
        (24, "7B", False, 16),
        (16, "3B", False, 16),
        (8, "1.5B", False, 16),
        (6, None, False, 0),
    ],
)
def test_preset_and_model_follow_the_memory_of_the_gpu(gigabytes, size, offload, rank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, gigabytes * 1e9))
    config, _, about = new_config({}, {}, None)
    expected = ("paper", f"Qwen/Qwen2.5-{size}-Instruct") if size else ("laptop", "smollm2")
    assert (config.preset, config.model) == expected and config.offload_optimizer is offload
    assert config.lora_rank == rank and ("adapters" in about) == (rank > 0)
    assert f"preset {config.preset}" in about and f"{gigabytes:.0f} GB" in about
    given = {"preset": "authors", "offload_optimizer": False}
    assert new_config(given, {}, None)[0].offload_optimizer is False


@pytest.mark.parametrize(
    "given, preset, why",
    [
        ({}, "laptop", "there is no GPU"),
        ({"preset": "authors", "model": "smollm2"}, "authors", "as named"),
        ({"model": "smollm2"}, "laptop", "--model smollm2"),
        (
            {"model": "Qwen/Qwen2.5-0.5B-Instruct"},
            "paper",
            "--model is not the built-in one; with lengths for a CPU",
        ),
    ],
)
def test_the_first_line_says_which_preset_and_why(given, preset, why, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, _, about = new_config(given, {}, None)
    assert config.preset == preset and about.startswith(f"preset {preset} ({why})")
    assert about.endswith("data: our own small samples, as no --data is given")
    assert "data:" not in new_config(given | {"data": "mine"}, {}, None)[2]


LAPTOP = RECIPES["laptop"] | HARDWARE["laptop"]


@pytest.mark.parametrize("task", [task for task in TASKS if TASKS[task]])
@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("name", LAPTOP)
def test_another_model_inherits_nothing_from_the_laptop(name, gpu, task, monkeypatch):
    """It has the paper's recipe: rate 1e-5, reverse KL, temperature 1, 3 masked tokens, epochs.

    A CPU changes lengths and arithmetic alone, and both are its own; what a flag gives stands.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    given = {"model": "Qwen/Qwen2.5-0.5B-Instruct", "task": task}
    config = new_config(given, {}, None)[0]
    paper = Config(**preset_values("paper", task) | given)
    if gpu or name not in HARDWARE["cpu"]:
        assert getattr(config, name) == getattr(paper, name)
    elif name == "dtype":
        assert config.dtype == ("bfloat16" if bfloat16_is_fast else "float32")
    else:
        assert LAPTOP[name] < getattr(config, name) <= getattr(Config, name)
    assert getattr(new_config(given | {name: LAPTOP[name]}, {}, None)[0], name) == LAPTOP[name]


def test_a_preset_names_its_recipe_and_its_hardware_apart():
    """No field is in both; the hardware's part decides nothing of what is learned."""
    hardware = "dtype batch_size micro_batch_tokens gradient_checkpointing "
    hardware += "offload_optimizer max_new_tokens max_prompt_tokens max_teacher_prompt_tokens "
    hardware = (hardware + "eval_new_tokens eval_examples general_tokens").split()
    assert all(part.keys() <= set(hardware) for part in HARDWARE.values())
    assert all(not recipe.keys() & set(hardware) for recipe in RECIPES.values())


SIZES = ["14B", "7B", "3B", "1.5B", "0.5B"]


SMALLEST = {  # the least memory of a card that is sold by this name, in bytes
    "141 GB": 143_771 * 2**20,  # H200
    "80 GB": 81_559 * 2**20,  # H100
    "48 GB": 46_068 * 2**20,  # L40S
    "24 GB": 23_028 * 2**20,  # A10
}


WAYS = [{}, OFFLOAD, ADAPTERS]


@pytest.fixture(scope="module")
def needed_gigabytes():
    """(size, how it learns) -> what preset paper needs on the card by its plan, any task."""
    needs = {}
    for size in SIZES:
        file = ROOT / f"benchmarks/configs/qwen2.5-{size.lower()}.json"
        shape = AutoConfig.for_model(**json.loads(file.read_text()))
        counts = count_parameters(shape)
        for way in WAYS:
            runs = [preset_values("paper", task) for task in ("science", "knowledge")]
            runs = [Config(**values, **way) for values in runs]
            plans = [plan_run(shape, run, counts=counts) for run in runs]
            needs[size, *way] = max(plan["needs"]["card"] for plan in plans) / 1e9
    return needs


def test_each_row_of_cards_is_its_plan_and_no_larger_model_would_fit(needed_gigabytes):
    """A row is at most 1 GB above its plan; a larger model does not fit it in any way."""
    for gigabytes, size, flags in CARDS:
        assert gigabytes - 1 < needed_gigabytes[size, *flags] <= gigabytes
        if size != "7B":  # the paper's own: never a larger one, unless --model asks for it
            for larger in SIZES[: SIZES.index(size)]:
                assert all(needed_gigabytes[larger, *way] > gigabytes for way in WAYS)


@pytest.mark.parametrize(
    "card, size, flags",
    [
        ("141 GB", "7B", {}),
        ("80 GB", "7B", OFFLOAD),
        ("48 GB", "7B", ADAPTERS),
        ("24 GB", "7B", ADAPTERS),
    ],
)
def test_a_card_gets_the_paper_s_model_in_the_first_way_that_fits(
    card, size, flags, needed_gigabytes, monkeypatch
):
    gigabytes = SMALLEST[card] / 1e9
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, SMALLEST[card]))
    config = new_config({}, {}, None)[0]
    assert config.model == f"Qwen/Qwen2.5-{size}-Instruct"
    assert (config.offload_optimizer, config.lora_rank) == (
        flags == OFFLOAD,
        16 * ("lora_rank" in flags),
    )
    assert needed_gigabytes[size, *flags] <= gigabytes
    for way in WAYS[: WAYS.index(flags)]:
        assert needed_gigabytes[size, *way] > gigabytes


@pytest.mark.parametrize("task", ["science", "knowledge"])
@pytest.mark.parametrize("layers, is_tiny", [(23, True), (25, False)])
def test_laptop_keeps_its_rate_for_tiny_models_alone(layers, is_tiny, task, tmp_path):
    """2 x 1000 x 1024 of embedding and head, and 12.6 million for each layer."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2730, "num_attention_heads": 8}
    architecture = LlamaConfig(vocab_size=1000, num_hidden_layers=layers, **sizes)
    architecture.save_pretrained(tmp_path)
    a_layer = 4 * 1024**2 + 3 * 1024 * 2730 + 2 * 1024
    assert (2 * 1000 * 1024 + layers * a_layer <= 3e8) is is_tiny
    given = {"preset": "laptop", "task": task, "model": str(tmp_path)}
    config, _, about = new_config(dict(given), {}, None)
    tiny_rate = 5e-5 if task == "science" else 1e-4
    larger_rate = 2e-6 if task == "science" else 5e-6
    assert config.learning_rate == (tiny_rate if is_tiny else larger_rate)
    assert ("the rate of a larger model" in about) is not is_tiny
    steps = 60 if task == "science" and not is_tiny else 50
    found = config.steps, config.temperature, config.teacher_instruction
    assert found == (steps, 0.5, "own-words")
    own = new_config(given | {"learning_rate": 3e-6}, {}, None)[0]
    assert (own.learning_rate, own.steps) == (3e-6, 50)
    assert new_config(given | {"steps": 7}, {}, None)[0].steps == 7


def test_no_model_is_read_if_a_flag_has_the_rate(tmp_path):
    given = {"preset": "laptop", "model": str(tmp_path)}  # an empty folder
    assert new_config(given | {"learning_rate": 1e-5}, {}, None)[0].learning_rate == 1e-5
    with pytest.raises(ValueError, match=f'model "{tmp_path}" cannot be loaded'):
        new_config(given, {}, None)


@pytest.mark.parametrize("task", ["science", "knowledge"])
def test_epochs_replace_the_steps_of_a_preset(task):
    """96 examples, three times, in batches of 16, are 18 steps."""
    preset = {"preset": "laptop", "task": task}
    assert new_config(dict(preset), {}, None)[0].total_steps(96) == 50
    assert new_config(preset | {"epochs": 3}, {}, None)[0].total_steps(96) == 18
    with pytest.raises(ValueError, match="^--epochs and --steps both give the length of a run"):
        new_config(preset | {"epochs": 3, "steps": 50}, {}, None)


@pytest.mark.parametrize("warmup, steps", [(10, 10), (1, 1), (0.1, 5), (0, 0)])
def test_a_warmup_below_1_is_a_share_of_50_steps(warmup, steps):
    assert Config(warmup=warmup).warmup_steps(50) == pytest.approx(steps)


@pytest.mark.parametrize("preset, rate", [("paper", 1e-4), ("authors", 5e-4), ("laptop", 5e-4)])
def test_adapters_learn_at_ten_times_the_rate_of_a_preset(preset, rate):
    given = {"preset": preset, "lora_rank": 8}
    config, _, about = new_config(dict(given), {}, None)
    assert config.learning_rate == pytest.approx(rate, rel=1e-12)
    assert f"--learning-rate {rate:g}, 10 times the preset's" in about
    own = new_config(given | {"learning_rate": 3e-6}, {}, None)
    assert own[0].learning_rate == 3e-6 and "times" not in own[2]


@pytest.mark.parametrize(
    "name, value", [("lora_alpha", 8), ("lora_targets", "q_proj"), ("lora_train_a", False)]
)
def test_flags_of_adapters_need_a_rank(name, value):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} needs --lora-rank"):
        reject_contradictions(Config(**{name: value}))
    reject_contradictions(Config(lora_rank=4, **{name: value}))


def test_presets_are_configurations():
    for preset in RECIPES:
        for task in TASKS:
            reject_contradictions(Config(preset=preset, task=task, **preset_values(preset, task)))


# ---- what is refused ----
RB = "--estimator rb --reduction sum --skip-first-tokens 0"


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--estimator rb --skip-first-tokens 0", "--estimator rb needs --reduction sum"),
        ("--estimator rb --reduction sum", "--estimator rb needs .* and --skip-first-tokens 0"),
        (f"{RB} --skip-first-tokens 1", "--estimator rb needs .* and --skip-first-tokens 0"),
        (f"{RB} --divergence jsd", "with --divergence jsd use --estimator analytic"),
        ("--estimator token --divergence forward", "estimates the gradient of the reverse KL"),
        ("--estimator token --temperature 0.5", "token assumes .* needs --temperature 1, not 0.5"),
        (f"{RB} --temperature 0.5", "rb assumes .* needs --temperature 1, not 0.5"),
        ("--temperature 0", "--temperature is 0.0; it must be above 0"),
        ("--steps 0", "--steps is 0; it must be at least 1"),
        ("--save-every 0", "--save-every is 0; it must be at least 1"),
        ("--eval-new-tokens -1", "--eval-new-tokens is -1; it must be at least 0"),
        ("--learning-rate nan", "--learning-rate is nan"),
        ("--ema-rate 2", "--ema-rate is 2.0; it must be above 0 and at most 1"),
        ("--teacher base --ema-rate 0.01", "--ema-rate needs --teacher ema, not base"),
        ("--teacher student --ema-rate 0.5", "--ema-rate needs --teacher ema, not student"),
        ("--task knowledge --ema-rate 0.5", "--ema-rate needs --teacher ema, not base"),
        ("--skip-first-tokens 9 --max-new-tokens 9", "leaves no token of --max-new-tokens 9"),
        ("--teacher-model smollm2", "--teacher-model and baselines.py --method reinvoke need each"),
        ("--teacher none", "--teacher none is for baselines.py alone"),
        ("--teacher model", "--teacher model is for baselines.py alone"),
        (
            "--teacher model --teacher-model smollm2",
            "--teacher model is for baselines.py alone",
        ),
        ("--data nowhere", "nowhere is not a folder"),
        ("--teacher-context text", 'field "text" is missing'),
        (
            "--teacher-context none --teacher-instruction plain",
            "--teacher-instruction is not read with --teacher-context none",
        ),
        ("--lora-rank 4 --lora-targets q_proj,", "--lora-targets has an empty name"),
    ],
)
def test_refusals(flags, message, tmp_path, monkeypatch):
    monkeypatch.setattr(support.run, "load_model", lambda *_: pytest.fail("the model was loaded"))
    start = ["--preset", "laptop", "--divergence", "reverse", "--output", str(tmp_path / "run")]
    start += ["--temperature", "1", "--skip-first-tokens", "3"]
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        sdft.main([*start, *flags.split()])
    assert not (tmp_path / "run").exists()


BOUNDED = {  # each field with a bound: the smallest value that is allowed, or that it is above
    "seed": "least 0",
    "skip_first_tokens": "least 0",
    "temperature": "above 0",
    "ema_rate": "above 0",
    "learning_rate": "above 0",
    "warmup": "least 0",
    "epochs": "above 0",
    "steps": "least 1",
    "batch_size": "least 1",
    "rollouts_per_prompt": "least 1",
    "micro_batch_tokens": "least 1",
    "max_grad_norm": "above 0",
    "weight_decay": "least 0",
    "max_new_tokens": "least 1",
    "eval_new_tokens": "least 0",
    "max_prompt_tokens": "least 1",
    "max_teacher_prompt_tokens": "least 1",
    "eval_examples": "least 1",
    "general_tokens": "least 1",
    "eval_every": "least 0",
    "save_every": "least 1",
    "keep_last": "least 0",
    "sample_every": "least 0",
    "judge_timeout": "above 0",
    "judge_repeats": "least 1",
    "lora_rank": "least 0",
    "lora_alpha": "least 1",
}


def test_every_number_of_a_configuration_has_a_bound():
    numbers = {int, float, int | None}
    assert {f.name for f in dataclasses.fields(Config) if f.type in numbers} == BOUNDED.keys()


@pytest.mark.parametrize("name", BOUNDED)
def test_each_field_refuses_what_is_below_its_bound(name):
    kind, bound = BOUNDED[name].split()
    flag, bound = f"--{name.replace('_', '-')}", int(bound)
    words = f"at least {bound}" if kind == "least" else f"above {bound}"
    below = [bound - 1, math.inf, math.nan] + [bound] * (kind == "above")
    for value in below:
        with pytest.raises(ValueError, match=f"^{flag} is {value}; it must be {words}$"):
            reject_contradictions(Config(**{name: value}))
    allowed = bound if kind == "least" else 0.5
    needed = {"max_new_tokens": {"skip_first_tokens": 0}, "lora_alpha": {"lora_rank": 1}}
    reject_contradictions(Config(**{name: allowed} | needed.get(name, {})))


@pytest.mark.parametrize("estimator", ["analytic", "token", "rb"])
def test_each_estimator_is_allowed_where_it_is_right(estimator):
    reject_contradictions(Config(estimator=estimator, reduction="sum", skip_first_tokens=0))
    reject_contradictions(Config(temperature=0.5, divergence="forward", skip_first_tokens=3))


@pytest.mark.parametrize(
    "argument, choices",
    [
        ("--task=chess", "science"),
        ("--divergence=kl", "reverse"),
        ("--dtype=float16", "float32"),
        ("--preset=x", "laptop"),
        ("--teacher-instruction=x", "plain"),
        ("--teacher=x", "'ema', 'base', 'student'"),
        ("--method=sft", "unrecognized arguments: --method=sft"),
    ],
)
def test_unknown_values_list_the_choices(argument, choices, capsys):
    with pytest.raises(SystemExit):
        sdft.main([argument])
    assert choices in capsys.readouterr().err


@pytest.mark.parametrize("main", [sdft.main, baselines.main])
def test_help_names_defaults(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "peak; cosine to 0 (default: 1e-05; laptop: 5e-05)" in shown
    assert "longest completion in training (default: 2048; laptop: 28)" in shown


# ---- resuming ----
def test_only_free_flags_may_change_on_resume(tmp_path):
    saved_run(tmp_path)
    config, checkpoint, about = resumed_config(tmp_path, {"keep_last": 5, "seed": 0}, "sdft.py")
    assert config.keep_last == 5 and checkpoint.name == "checkpoint-000004"
    assert about.endswith("; --keep-last is 5, was 1")
    free = {"sample_every", "save_every", "keep_last", "ignore_plan"}
    assert set(FREE_ON_RESUME) == free
    for name in Config.__dataclass_fields__.keys() - free:
        flag = f"--{name.replace('_', '-')}"
        message = rf"^a resumed run keeps its configuration; {flag} is other, was [^;]*\. Leave"
        with pytest.raises(ValueError, match=message):
            resumed_config(tmp_path, {name: "other"}, "sdft.py")


def test_a_run_is_resumed_by_the_script_that_wrote_it(tmp_path):
    ours, theirs = tmp_path / "science", tmp_path / "science-sft"
    saved_run(ours)
    saved_run(theirs, method="sft", teacher="none")
    for main, run, writer in [(baselines.main, ours, "sdft"), (sdft.main, theirs, "baselines")]:
        command = f"python {writer}.py --resume {run}"
        message = f"^error: {run} was written by {writer}.py; continue it with: {command}$"
        with pytest.raises(SystemExit, match=message):
            main(["--resume", str(run)])


def test_a_run_is_resumed_with_the_method_that_it_began_with(tmp_path):
    checkpoint = saved_run(tmp_path, method="sft", teacher="none", data="nowhere")
    with pytest.raises(SystemExit, match="^error: --method is dft, was sft; leave it out"):
        baselines.main(["--resume", str(tmp_path), "--method", "dft"])
    for method in (None, "sft"):
        assert resumed_config(tmp_path, {}, "baselines.py", method)[1] == checkpoint


def test_a_judge_may_move_and_be_no_other(tmp_path):
    """On resume --judge is the new address of the same judge."""
    saved_run(tmp_path / "judged", judge="http://a/v1", judge_model="strong")
    saved_run(tmp_path / "ruled")
    moved, _, about = resumed_config(tmp_path / "judged", {"judge": "http://b/v1"}, "sdft.py")
    assert (moved.judge, moved.judge_model) == ("http://b/v1", "strong")
    assert "--judge is http://b/v1, was http://a/v1" in about
    slower, _, _ = resumed_config(tmp_path / "judged", {"judge_timeout": 90.0}, "sdft.py")
    assert (slower.judge, slower.judge_timeout) == ("http://a/v1", 90)
    refused = [("ruled", {"judge": "http://b/v1"}), ("ruled", {"judge_timeout": 90.0})]
    refused += [("judged", {"judge_model": "weak"}), ("judged", {"judge": ""})]
    for run, given in refused:
        with pytest.raises(ValueError, match="a resumed run keeps its configuration; --judge"):
            resumed_config(tmp_path / run, given, "sdft.py")


def test_a_checkpoint_of_another_version_is_refused_by_name(tmp_path):
    checkpoint = saved_run(tmp_path)
    state = json.loads((checkpoint / "state.json").read_text())
    state["config"] |= {"log_every": 1, "colour": "red"}
    (checkpoint / "state.json").write_text(json.dumps(state))
    message = f"^error: {checkpoint} was written by another version, which had colour, log_every$"
    with pytest.raises(SystemExit, match=message):
        sdft.main(["--resume", str(tmp_path)])


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """Also after an = , where no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    words = "--output=~/run --data=~/mine --model=~/model --general-data=~/general.jsonl".split()
    config, _ = parse_config(["python", "sdft.py", *words], "")
    found = [config.output, config.data, config.model, config.general_data]
    names = ("run", "mine", "model", "general.jsonl")
    assert found == [str(tmp_path / name) for name in names]
    checkpoint = saved_run(tmp_path / "run")
    _, resumed = parse_config(["python", "sdft.py", "--resume=~/run"], "")
    assert resumed == checkpoint
    teacher = {"teacher_model": "~/base", "model": "org/name"}
    reinvoke = new_config(teacher, {"teacher": "model"}, "reinvoke")[0]
    assert reinvoke.teacher_model == str(tmp_path / "base") and reinvoke.model == "org/name"


def test_a_folder_named_as_the_built_in_model_is_a_folder(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, _, _ = new_config({"model": "./smollm2"}, {}, None)
    assert (config.model, config.preset) == ("./smollm2", "paper")


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(SystemExit, match="has no checkpoint to resume from; name the folder of a"):
        sdft.main(["--resume", str(tmp_path)])
    (tmp_path / "before.json").write_text("{}")  # of a run that was killed before its first one
    with pytest.raises(SystemExit, match="no checkpoint to resume from; the run saved none, so be"):
        sdft.main(["--resume", str(tmp_path)])
