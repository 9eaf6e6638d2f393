"""Adapters in a run: steps, checkpoints, --model, the plan and what is left at the end.

Oracles: dense weights W + (alpha / r) B A written out; the exact average of the dense updates; the
bytes of files and tensors; the library peft, where it is installed.
"""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_llama, tiny_model, tiny_tokenizer
from test_lora import ALPHA, RANK, some_ids, trainable, with_adapters
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, Qwen2Config

import eval as evaluation
import sdft
from config import Config
from data import Example, Pair
from kl_estimators import forward_kl
from lora import adapted_layers, add_adapters, as_if_merged, merge, share_base
from optim import AdamW, prepare_for_training, relative_distance, update_ema
from sampling import Rollout
from support import run as run_module
from support.adapters import load_adapter
from support.checkpoint import load_checkpoint, save_checkpoint, save_model
from support.models import load_model, read_config
from support.plan import check_plan, count_adapters, count_parameters, plan_run, what_would_fit

CONFIGS = ROOT / "benchmarks" / "configs"
RUN = (
    "--force --task science --preset laptop --steps 3 --batch-size 2 --max-new-tokens 6 "
    "--max-prompt-tokens 1000 --max-teacher-prompt-tokens 1500 --dtype float32 "
    "--eval-examples 2 --general-tokens 4 --eval-every 3 --save-every 2 --learning-rate 1e-2"
).split()


def shape_of(name):
    return AutoConfig.for_model(**json.loads((CONFIGS / f"qwen2.5-{name}.json").read_text()))


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A run of three steps with adapters of rank 4."""
    folder = tmp_path_factory.mktemp("adapters") / "run"
    sdft.main([*RUN, "--lora-rank", "4", "--model", str(tiny_folder), "--output", str(folder)])
    return folder


# ---- steps ----


def some_batch(seed):
    """Two pairs, completions of 5 and 3 tokens, and no first tokens to skip."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(2, 40, (2, 5), generator=generator)
    mask_BT = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    pairs = [Pair(str(row), [3, 4 + row], [5, 6, 7 + row]) for row in range(2)]
    batch = sdft.Batch(0, pairs, None, 1e-2, [], 0)
    return batch, Rollout(ids_BT, mask_BT, torch.tensor([True, True]))


class NotingAdamW(AdamW):
    """It keeps the gradients, which a step frees."""

    def step(self, learning_rate):
        self.gradients = {n: p.grad.clone() for n, p in trainable(self.model).items()}
        super().step(learning_rate)


def dense_loss(base, student_weights, teacher_weights, batch, rollout):
    """Algorithm 1, l. 9-16, row by row over whole forward passes with weights written out."""
    losses = []
    for row, pair in enumerate(batch.pairs):
        ids = rollout.completion_ids_BT[row][rollout.completion_mask_BT[row]].tolist()
        logprobs = []
        for prompt, weights in (
            (pair.student_prompt, student_weights),
            (pair.teacher_prompt, teacher_weights),
        ):
            whole = {"input_ids": torch.tensor([prompt + ids])}
            logits = functional_call(base, weights, kwargs=whole).logits[0]
            logprobs.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
        student_TV, teacher_TV = logprobs
        losses.append(forward_kl(student_TV, teacher_TV.detach()).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("teacher_kind", ["ema", "base"])
@pytest.mark.parametrize("train_A", [True, False])
def test_two_steps_of_sdft_are_those_of_dense_weights(teacher_kind, train_A):
    """Gradients and factors to 1e-5; torch's AdamW; the teacher's factors averaged by hand."""
    config = Config(
        divergence="forward",
        batch_size=2,
        skip_first_tokens=0,
        max_grad_norm=1e9,
        ema_rate=0.3,
        teacher=teacher_kind,
        lora_rank=RANK,
    )
    student = with_adapters(tiny_llama(), train_A=train_A)
    if teacher_kind == "base":
        for layer in adapted_layers(student).values():
            layer.lora_B.data.zero_()  # as a run begins
    base = tiny_llama()
    prepare_for_training(student)
    teacher = sdft.make_teacher(student, config, None)
    optimizer = NotingAdamW(student)
    assert bool(adapted_layers(teacher)) == (teacher_kind == "ema")

    layers = adapted_layers(student)
    own = {name: p.detach().clone().requires_grad_() for name, p in trainable(student).items()}
    fixed = {f"{n}.lora_A": layer.lora_A.detach().clone() for n, layer in layers.items()}
    averaged = {name: factor.detach().clone() for name, factor in own.items()}
    theirs = torch.optim.AdamW(own.values(), lr=1e-2, weight_decay=0.0)

    def written_out(factors):
        update = {
            n: ALPHA
            / RANK
            * factors[f"{n}.lora_B"]
            @ factors.get(f"{n}.lora_A", fixed[f"{n}.lora_A"])
            for n in layers
        }
        return {f"{n}.weight": base.get_submodule(n).weight.detach() + update[n] for n in layers}

    for step in range(2):
        batch, rollout = some_batch(step)
        taught_by = written_out(averaged) if teacher_kind == "ema" else {}
        loss = dense_loss(base, written_out(own), taught_by, batch, rollout)
        theirs.zero_grad()
        loss.backward()
        metrics = sdft.update(student, teacher, optimizer, batch, rollout, config)
        assert metrics["kl"] == pytest.approx(loss.item(), rel=1e-4)
        assert optimizer.gradients.keys() == own.keys()
        for name, gradient in optimizer.gradients.items():
            torch.testing.assert_close(gradient, own[name].grad, rtol=1e-4, atol=1e-5)
        theirs.step()
        for name, factor in own.items():
            averaged[name] += 0.3 * (factor.detach() - averaged[name])
    for name, parameter in trainable(student).items():
        torch.testing.assert_close(parameter, own[name], rtol=1e-5, atol=1e-5)
    for name, parameter in trainable(teacher).items():
        torch.testing.assert_close(parameter, averaged[name], rtol=1e-5, atol=1e-5)
    plain = dict(tiny_llama().named_parameters())
    for name, parameter in student.named_parameters():
        assert ".lora_" in name or torch.equal(parameter, plain[name])


@pytest.mark.parametrize(
    "rate, most", [(1e-4, [0.001, 0.02, 0.04, 0.08]), (5e-4, [0.001, 0.1, 0.2, 0.25])]
)
def test_the_teacher_follows_the_exact_average_at_the_presets_rates(rate, most):
    """After 1, 20, 50 and 200 steps of Adam towards a random matrix, at ema_rate 0.01.

    The oracle averages B A itself. Factors that both start at zero miss it by 99, 82, 61 and 15 %.
    """
    from bench_adapters import average_errors

    ours = average_errors("copied A", rate, steps=(1, 20, 50, 200))
    from_zero = average_errors("both from zero", rate, steps=(1, 20, 50, 200))
    assert all(error <= bound for error, bound in zip(ours, most, strict=True)), ours
    assert from_zero == pytest.approx([0.99, 0.82, 0.61, 0.15], abs=0.03)


def test_the_teacher_is_not_moved_by_what_it_shares():
    """update_ema averages adapters alone; the gap of a copy is 0 and the base stays the base."""
    student = with_adapters(tiny_llama(dtype=torch.bfloat16))
    prepare_for_training(student)
    assert student.remainders == {}  # adapters are float32
    teacher = share_base(student)
    assert relative_distance(teacher, student) == 0
    before = {n: p.clone() for n, p in student.named_parameters()}
    for parameter in trainable(student).values():
        parameter.data += 0.5
    update_ema(teacher, student, 0.25)
    for name, parameter in teacher.named_parameters():
        moved = 0.125 if ".lora_" in name else 0
        torch.testing.assert_close(parameter, before[name] + moved)


# ---- checkpoints ----


def trained(seed, teacher_kind="ema"):
    student = with_adapters(tiny_llama(vocab_size=258), seed=seed)
    prepare_for_training(student)
    teacher, optimizer = share_base(student, teacher_kind == "ema"), AdamW(student)
    for parameter in trainable(student).values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(0.1)
    if teacher_kind == "ema":
        update_ema(teacher, student, 0.3)
    return student, teacher, optimizer


@pytest.mark.parametrize("kind", ["ema", "base"])
def test_a_checkpoint_holds_adapters_alone_and_comes_back_in_the_same_bits(kind, tmp_path):
    student, teacher, optimizer = trained(1, kind)
    folder = save_checkpoint(tmp_path, 1, student, tiny_tokenizer(), teacher, optimizer, {}, 1)
    other = trained(2, kind)
    load_checkpoint(folder, *other)
    for before, after in zip((student, teacher), other, strict=False):
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
            assert torch.equal(a, b), name
    moments = zip(optimizer.moments.values(), other[2].moments.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in moments)
    assert (folder / "teacher").exists() == (kind == "ema")
    numbers = sum(p.numel() for p in trainable(student).values())
    files = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    copies = 4 if kind == "ema" else 3  # student, its moments, the teacher
    assert 0 < files - copies * 4 * numbers < 20_000  # names


def test_a_checkpoint_of_the_built_in_model_is_below_100_megabytes():
    """By its shape: 30 layers of hidden size 576, MLP 1536, 3 key-value heads of 64; rank 16."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    run = Config(lora_rank=16, keep_last=1)
    sides = [(576, 576)] * 2 + [(576, 192)] * 2 + [(576, 1536)] * 3
    numbers = 30 * 16 * sum(a + b for a, b in sides)
    assert count_adapters(config, run) == (numbers, numbers)
    assert plan_run(config, run)["disk"]["checkpoints"] == 4 * 4 * numbers < 100e6
    assert plan_run(config, replace(run, lora_rank=0))["disk"]["checkpoints"] > 1.8e9


@pytest.mark.parametrize("more", [["--lora-rank", "4"], []])
def test_another_model_is_noticed_on_resume(more, tiny_folder, tmp_path):
    """Drift is measured from it, and a checkpoint holds none of it, or no base of adapters."""
    folder, moved = tmp_path / "run", shutil.copytree(tiny_folder, tmp_path / "base")
    sdft.main([*RUN, *more, "--model", str(moved), "--output", str(folder)])
    model, tokenizer = load_model(str(moved))
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] += 1e-3
    model.save_pretrained(moved)
    with pytest.raises(SystemExit, match="weights of --model are not those that this run began"):
        sdft.main(["--resume", str(folder)])


# ---- --model ----


def test_what_a_run_leaves_is_loaded_with_its_base(finished, tiny_folder):
    base, _ = load_model(str(tiny_folder))
    model, _ = load_model(str(finished / "last"))
    load_adapter(finished / "last", base)
    ids = some_ids(base)
    assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    layers = adapted_layers(model).values()
    assert len(layers) == 14 and any(layer.lora_B.any() for layer in layers)
    assert read_config(str(finished / "last")).hidden_size == 16
    assert not (finished / "last" / "model.safetensors").exists()


def test_peft_reads_what_a_run_leaves(finished, tiny_folder):
    peft = pytest.importorskip("peft", reason="compares with peft: pip install peft==0.21.2")
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    theirs = peft.PeftModel.from_pretrained(base, finished / "last").eval()
    ours, _ = load_model(str(finished / "last"))
    ids = some_ids(ours)
    torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_eval_reads_an_adapter_of_peft(finished, capsys):
    evaluation.main(["--model", str(finished / "best"), "--task", "science", "--limit", "2"])
    assert "science test" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"base_model_name_or_path": "/nowhere/base"}, "the base at /nowhere/base: .*names it"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"peft_type": "IA3"}, "peft_type IA3; only LORA is supported"),
        ({"use_dora": True}, "use_dora True is not supported; merge it with peft"),
    ],
)
def test_an_adapter_that_cannot_be_opened_says_why(fields, words, finished, tmp_path):
    folder = shutil.copytree(finished / "last", tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(ValueError, match=f"cannot be loaded: .*{words}"):
        load_model(str(folder))


def test_an_adapter_of_an_adapter_is_refused(finished, tmp_path):
    folder = shutil.copytree(finished / "last", tmp_path / "adapter")
    file = folder / "adapter_config.json"
    own = json.loads(file.read_text()) | {"base_model_name_or_path": str(finished / "best")}
    file.write_text(json.dumps(own))
    with pytest.raises(ValueError, match="the base at .*best: it holds an adapter; merge it"):
        load_model(str(folder))


def test_the_flags_of_adapters_decide_what_is_added():
    given = {"lora_targets": "q_proj,up_proj", "lora_train_a": False, "seed": 3}
    student, expected, loaded = tiny_llama(), tiny_llama(), tiny_llama()
    run_module.prepare_adapters(student, Config(lora_rank=4, lora_alpha=8, **given))
    add_adapters(expected, 4, 8, ["q_proj", "up_proj"], train_A=False, seed=3)
    assert trainable(student).keys() == trainable(expected).keys()
    for name, layer in adapted_layers(expected).items():
        assert torch.equal(student.get_submodule(name).lora_A, layer.lora_A)
    add_adapters(loaded, 4, 8)  # as --model brings them
    config = Config(lora_rank=4, lora_alpha=8, lora_train_a=False)
    run_module.prepare_adapters(loaded, config)
    assert all(name.endswith("lora_B") for name in trainable(loaded))


@pytest.mark.parametrize("teacher", ["ema", "base"])
def test_a_run_goes_on_with_the_adapter_that_it_is_given(teacher, finished, tmp_path):
    """The teacher starts as the whole model, adapter included, also where it is the base."""
    config = Config(teacher=teacher, lora_rank=4)
    student, _ = load_model(str(finished / "last"))
    run_module.prepare_adapters(student, config)
    prepare_for_training(student)
    teacher_model = sdft.make_teacher(student, config, None)
    ids = some_ids(student)
    before = student(input_ids=ids).logits
    assert torch.equal(teacher_model(input_ids=ids).logits, before)
    for parameter in trainable(student).values():
        parameter.data += 0.1
    assert torch.equal(teacher_model(input_ids=ids).logits, before)


def test_an_adapter_of_another_rank_is_refused_and_all_weights_start_merged(finished, tmp_path):
    flags = [*RUN, "--model", str(finished / "last"), "--output"]
    with pytest.raises(SystemExit, match="is an adapter of rank 4 and alpha 32.*--lora-rank 4"):
        sdft.main([*flags, str(tmp_path / "other"), "--lora-rank", "8"])
    student, _ = load_model(str(finished / "last"))
    expected, _ = merge(student)
    dense = run_module.merge_for_training(student, "it")
    assert all(p.requires_grad for p in dense.parameters()) and not adapted_layers(dense)
    for a, b in zip(dense.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    sdft.main([*flags, str(tmp_path / "dense")])
    assert (tmp_path / "dense" / "last" / "model.safetensors").exists()


# ---- the end of a run ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computing_as_if_merged_is_computing_with_the_merged_model(dtype):
    model = with_adapters(tiny_llama(dtype=dtype))
    merged, _ = merge(model)
    ids = some_ids(model)
    before = model(input_ids=ids).logits
    with as_if_merged(model):
        assert torch.equal(model(input_ids=ids).logits, merged(input_ids=ids).logits)
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("config_class", [Qwen2Config, GPT2Config])
def test_as_if_merged_keeps_biases_and_transposed_weights(config_class):
    model = tiny_model(config_class)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()  # a new model has zeros
    with_adapters(model)
    merged, _ = merge(model)
    ids = some_ids(model)
    expected = merged(input_ids=ids).logits
    with as_if_merged(model):
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_divergence_of_merging_is_that_of_the_merged_model():
    """bfloat16 rounds the update. Oracle: the drift of `merge`'s own model from the student."""
    tokenizer = tiny_tokenizer()
    student = with_adapters(tiny_llama(vocab_size=len(tokenizer), dtype=torch.bfloat16))
    asked = [Example("q", "general", [{"role": "user", "content": "Why?"}])]
    base = evaluation.sample_base_answers(student, tokenizer, asked, 8)
    expected = evaluation.drift_from_base(base, merge(student)[0])
    assert expected > 1e-6
    found = run_module.merged_divergence(SimpleNamespace(base=base, student=student))
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_merged_folder_of_the_docs_answers_as_the_adapter_does(finished, tmp_path):
    """The lines of docs/adapters.md, loaded by transformers alone."""
    model, tokenizer = load_model(str(finished / "last"), dtype="float32")
    save_model(tmp_path / "merged", merge(model)[0], tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = some_ids(model)
    torch.testing.assert_close(merged(input_ids=ids).logits, model(input_ids=ids).logits)
    prompt, options = ids[:1, :6], {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(merged.generate(prompt, **options), model.generate(prompt, **options))


def test_results_say_what_was_trained(finished):
    record = json.loads((finished / "results.json").read_text())
    numbers = sum(p.numel() for p in trainable(load_model(str(finished / "last"))[0]).values())
    assert record["trained_parameters"] == numbers
    base = record["parameters"] - numbers
    assert base == sum(p.numel() for p in tiny_llama(vocab_size=258).parameters())
    assert abs(record["merged_divergence"]) < 1e-6  # float32


def test_the_head_that_drift_needs_is_shared_only_if_it_is_frozen():
    tokenizer = tiny_tokenizer()
    asked = [Example("q", "general", [{"role": "user", "content": "Why?"}])]
    for adapters in (True, False):
        model = tiny_llama(vocab_size=len(tokenizer))
        if adapters:
            with_adapters(model)
        head = evaluation.sample_base_answers(model, tokenizer, asked, 2).head
        assert (head.weight is model.get_output_embeddings().weight) == adapters


# ---- the plan ----


def test_7b_14b_and_32b_with_adapters_take_cards_of_24_40_and_80_gb():
    """Asked for: 21 GB of card and 20 of host for 7B, 36 GB for 14B, one 80 GB card for 32B."""
    for name, card, host in (("7b", 21, 20), ("14b", 36, 31), ("32b", 80, 68)):
        needs = plan_run(shape_of(name), Config(lora_rank=16))["needs"]
        assert needs["card"] < card * 1e9 and needs["host"] < host * 1e9, needs
    assert count_parameters(shape_of("32b"))[0] == 32_763_876_352


@pytest.mark.parametrize("teacher", ["ema", "base", "student"])
@pytest.mark.parametrize("train_A", [True, False])
def test_weights_state_and_gradients_are_the_bytes_of_real_tensors(teacher, train_A):
    config = Config(teacher=teacher, lora_rank=RANK, lora_train_a=train_A, general_tokens=0)
    student = with_adapters(tiny_llama(dtype=torch.bfloat16), train_A=train_A)
    for layer in adapted_layers(student).values():
        layer.lora_B.data.zero_()
    prepare_for_training(student)
    optimizer, held_teacher = AdamW(student), sdft.make_teacher(student, config, None)
    student(input_ids=torch.tensor([[3, 4, 5]])).logits.float().sum().backward()
    held = {id(p): p for model in (student, held_teacher) for p in model.parameters()}
    tensors = [*held.values(), *optimizer.moments.values()]
    tensors += [p.grad for p in student.parameters() if p.grad is not None]
    parts = plan_run(student.config, config)["training"]
    names = ["weights", "adapters", "teacher's adapters", "first moment", "second moment"]
    planned = sum(parts.get(name, 0) for name in [*names, "gradients"])
    assert planned == sum(tensor.nbytes for tensor in tensors)


def test_adapters_are_the_last_resort_before_a_smaller_model():
    config = shape_of("7b")
    assert what_would_fit(config, Config(), "cuda", {"card": 24e9}) == "--lora-rank 16"
    assert what_would_fit(config, Config(), "cuda", {"card": 80e9}) == "--offload-optimizer"
    smaller = what_would_fit(config, Config(), "cuda", {"card": 12e9})
    assert smaller.startswith("a model of about") and "--lora-rank 16" in smaller


def test_targets_that_are_not_there_are_refused_before_weights_load(tmp_path):
    run = Config(lora_rank=4, lora_targets="q_proj,c_attn")
    with pytest.raises(ValueError, match='target "c_attn" is not there; choose from'):
        check_plan(tiny_llama().config, run, "cpu", tmp_path)


def test_a_saved_adapter_of_a_model_on_a_hub_names_the_hub(tmp_path):
    model = with_adapters(tiny_llama(vocab_size=258))
    for name, written in (("some/base", "some/base"), (str(tmp_path), str(tmp_path.resolve()))):
        model.config._name_or_path = name
        save_model(tmp_path / "adapter", model, tiny_tokenizer())
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == written
