"""Loading and saving. Oracle: Hugging Face's own from_pretrained on the folders that we write."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import models
import pytest
import torch
from conftest import ROOT, gradients, tiny_llama, tiny_model
from models import (
    checkpoint_layers,
    list_checkpoints,
    load_checkpoint,
    load_model,
    load_weights,
    output_head,
    read_state,
    save_checkpoint,
    save_model,
    stop_tokens,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    Gemma2Config,
    GPTNeoConfig,
    GPTNeoXJapaneseConfig,
    GraniteConfig,
    LlamaConfig,
)

from optim import AdamW, prepare_for_training, relative_distance, update_ema
from scoring import start_log


def same(a, b):
    remainders = [getattr(model, "remainders", {}) for model in (a, b)]
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    ) and all(
        torch.equal(remainders[0][name], remainders[1][name])
        for name in remainders[0].keys() | remainders[1].keys()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_folder_loads_with_from_pretrained(dtype, tokenizer, tmp_path):
    tiny = tiny_llama(dtype=dtype)
    save_model(tmp_path / "model", tiny, tokenizer)
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tiny)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "model")("a<|im_end|>").input_ids
        == tokenizer("a<|im_end|>").input_ids
    )
    assert not list(tmp_path.glob("*.tmp"))


def trained(tied, tokenizer, dtype=torch.float32):
    """Student, teacher and optimiser after one update, all different."""
    student, teacher = (
        tiny_llama(tied=tied, dtype=dtype),
        tiny_llama(tied=tied, seed=1, dtype=dtype),
    )
    optimizer = AdamW(student)
    prepare_for_training(teacher)
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter, dtype=torch.float32)
    optimizer.step(0.01)
    update_ema(teacher, student, 0.3)
    return student, teacher, optimizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoint_round_trip_is_bit_identical(tied, dtype, tokenizer, tmp_path):
    student, teacher, optimizer = trained(tied, tokenizer, dtype)
    for step in (2, 4, 6):
        folder = save_checkpoint(
            tmp_path,
            step,
            student,
            tokenizer,
            teacher,
            optimizer,
            {"config": {"seed": 3}},
            keep_last=2,
        )
    assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path)] == [
        "checkpoint-000004",
        "checkpoint-000006",
    ]
    assert read_state(folder) == {"step": 6, "updates": 1, "config": {"seed": 3}}
    student_2, teacher_2, optimizer_2 = trained(tied, tokenizer, dtype)
    optimizer_2.updates = 7
    load_checkpoint(folder, student_2, teacher_2, optimizer_2)
    assert same(student, student_2) and same(teacher, teacher_2) and optimizer_2.updates == 1
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype
        for a, b in zip(
            *(x.state_tensors().values() for x in (optimizer, optimizer_2)), strict=True
        )
    )
    files = {path.name for path in folder.iterdir()}
    assert files - {"remainders.safetensors"} == {
        "student",
        "teacher",
        "optimizer.safetensors",
        "state.json",
    }
    assert ("remainders.safetensors" in files) == (dtype == torch.bfloat16)


def test_a_bfloat16_teacher_that_is_the_student_is_stored_once(tokenizer, tmp_path):
    student, _, optimizer = trained(True, tokenizer, torch.bfloat16)
    folder = save_checkpoint(tmp_path, 1, student, tokenizer, student, optimizer, {}, keep_last=1)
    before = copy.deepcopy(student)
    other, _, optimizer_2 = trained(True, tokenizer, torch.bfloat16)
    load_checkpoint(folder, other, other, optimizer_2)
    assert same(before, other) and not (folder / "teacher").exists()


def test_weights_of_a_folder_have_no_remainder(tokenizer, tmp_path):
    student, _, _ = trained(True, tokenizer, torch.bfloat16)
    save_model(tmp_path / "model", student, tokenizer)
    plain = tiny_llama(dtype=torch.bfloat16)
    prepare_for_training(plain)
    load_weights(plain, tmp_path / "model")
    assert relative_distance(plain, student) > 0
    load_weights(student, tmp_path / "model")
    assert relative_distance(plain, student) == 0 and same(plain, student)


def test_a_checkpoint_of_another_dtype_is_refused(tokenizer, tmp_path):
    half = trained(True, tokenizer, torch.bfloat16)
    folder = save_checkpoint(tmp_path, 1, half[0], tokenizer, half[1], half[2], {}, keep_last=1)
    student, teacher, optimizer = trained(True, tokenizer)
    with pytest.raises(ValueError, match="names or dtypes differ"):
        load_checkpoint(folder, student, teacher, optimizer)


def test_a_failed_save_leaves_the_previous_checkpoint(tokenizer, tmp_path, monkeypatch):
    student, teacher, optimizer = trained(True, tokenizer)
    first = save_checkpoint(tmp_path, 1, student, tokenizer, teacher, optimizer, {}, keep_last=1)

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(models, "save_file", full_disk)
    with pytest.raises(OSError):
        save_checkpoint(tmp_path, 2, student, tokenizer, teacher, optimizer, {}, keep_last=1)
    assert list(tmp_path.iterdir()) == [first]
    load_checkpoint(first, student, teacher, optimizer)


def test_damaged_checkpoints_are_named(tokenizer, tmp_path):
    student, teacher, optimizer = trained(True, tokenizer)
    folder = save_checkpoint(tmp_path, 1, student, tokenizer, teacher, optimizer, {}, keep_last=1)
    with pytest.raises(ValueError, match="belongs to another model"):
        load_checkpoint(folder, tiny_llama(vocab_size=41), teacher, optimizer)
    (folder / "optimizer.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="optimizer.safetensors cannot be read"):
        load_checkpoint(folder, student, teacher, optimizer)
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match="state.json cannot be read"):
        read_state(folder)


def test_stop_tokens_are_all_eos_of_model_and_tokenizer(tiny, tokenizer):
    tiny.generation_config.eos_token_id = [7, 9]
    assert stop_tokens(tiny, tokenizer) == {"eos_token_ids": [1, 7, 9], "pad_token_id": 1}


def test_models_that_change_their_logits_are_refused(tiny):
    models._check_head(tiny)
    scaled = copy.deepcopy(tiny)
    forward = scaled.forward
    scaled.forward = lambda **inputs: type(tiny(**inputs))(logits=forward(**inputs).logits * 0.5)
    with pytest.raises(ValueError, match="changes its logits"):
        models._check_head(scaled)


@pytest.mark.parametrize(
    "config_class, fields",
    [
        (LlamaConfig, {}),
        (Gemma2Config, {"head_dim": 4, "final_logit_softcapping": 3.0}),
        (GraniteConfig, {"logits_scaling": 8.0}),
        (CohereConfig, {"logit_scale": 0.25}),
    ],
)
def test_a_copied_head_stays_as_it_was(config_class, fields):
    """Oracle: the model's own logits, before and after its weights change."""
    model, ids_BL = tiny_model(config_class, **fields), torch.tensor([[3, 4, 5]])
    frozen = copy.deepcopy(output_head(model))
    before, hidden = model(ids_BL).logits, model.base_model(ids_BL).last_hidden_state
    torch.testing.assert_close(frozen(hidden), before)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    torch.testing.assert_close(frozen(hidden), before)
    assert not torch.allclose(output_head(model)(hidden), before, atol=1e-2)


def shift_cached_logits(model):
    """Break the pass with a cache, and no other: the kind of fault that check_sampling is for."""
    plain = model.forward

    def forward(*args, past_key_values=None, **inputs):
        output = plain(*args, past_key_values=past_key_values, **inputs)
        if past_key_values is not None:
            output.logits = output.logits.roll(1, dims=-1)
        return output

    model.forward = forward


def raise_in_forward(model):
    def forward(*args, **inputs):
        raise AttributeError("'InnerCache' object has no attribute 'keys'")

    model.forward = forward


def scale_hidden_states(model):
    plain = model.base_model.norm.forward
    # only where several rows are scored together
    model.base_model.norm.forward = lambda x: plain(x) * (1.1 if len(x) > 1 else 1.0)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (shift_cached_logits, "of llama differ from a full pass by .* nats"),
        (scale_hidden_states, "of llama differ from a full pass by .* nats"),
        (raise_in_forward, r"of llama does not run \(AttributeError\)$"),
    ],
)
def test_a_model_that_the_sampler_is_wrong_for_is_refused(tiny, break_it, message):
    models.check_sampling(tiny)
    break_it(tiny)
    with pytest.raises(ValueError, match=message):
        models.check_sampling(tiny)


def test_names_that_could_not_be_read_back_are_refused(tiny, monkeypatch):
    models.check_saved_names(tiny)

    def rename(model, weights):
        return {name.replace("q_proj", "query"): weight for name, weight in weights.items()}

    monkeypatch.setattr(models, "revert_weight_conversion", rename)
    with pytest.raises(ValueError, match="unexpected: .*query.* missing: .*q_proj"):
        models.check_saved_names(tiny)


def drop_key(weights):
    del weights["model.layers.0.mlp.up_proj.weight"]


def add_key(weights):
    weights["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)


def reshape_key(weights):
    weights["model.norm.weight"] = torch.zeros(5)


def compile_prefix(weights):
    for name in list(weights):
        weights["_orig_mod." + name] = weights.pop(name)


@pytest.mark.parametrize(
    "change, message",
    [
        (drop_key, "missing: model.layers.0.mlp.up_proj.weight"),
        (add_key, "unexpected: model.layers.9.mlp.up_proj.weight"),
        (reshape_key, "of another shape: model.norm.weight"),
        (compile_prefix, "unexpected: _orig_mod.*missing: .*torch.compile added _orig_mod"),
    ],
)
def test_weights_that_do_not_fit_stop_the_load(change, message, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message) as caught:
        load_model(str(folder))
    assert str(caught.value).count("weight, ") <= 4 and "\n" not in str(caught.value)


def test_the_causal_mask_that_old_files_carry_is_no_weight(tokenizer, tmp_path):
    tiny = tiny_model(GPTNeoConfig, num_layers=2, attention_types=[[["global", "local"], 1]])
    save_model(tmp_path / "model", tiny, tokenizer)
    file = tmp_path / "model" / "model.safetensors"
    masks = {f"transformer.h.0.attn.attention.{x}": torch.ones(4) for x in ("bias", "masked_bias")}
    save_file(load_file(file) | masks, file, metadata={"format": "pt"})
    assert same(load_model(str(tmp_path / "model"))[0], tiny)


def edit_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors", "fp8"])
def test_quantised_models_are_refused_without_naming_a_package(method, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    edit_config(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ValueError, match="quantised; training needs the full weights") as caught:
        load_model(str(folder))
    assert "pip" not in str(caught.value)


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_says_how_to_merge_it(alone, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir() if alone else shutil.copytree(tiny_folder, folder)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match="adapter; merge it with peft, .*merge_and_unload"):
        load_model(str(folder))


def test_code_of_a_model_is_never_asked_about(tiny_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit_config(folder, model_type="unknown", auto_map=classes)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(ValueError, match="it needs program code of its own, which is never run"):
        load_model(str(folder))


@pytest.mark.parametrize("kind", [ImportError, RuntimeError, AttributeError, KeyError, MemoryError])
def test_every_exception_of_a_load_becomes_one_line(kind, tiny_folder, monkeypatch):
    def fail(*_, **__):
        raise kind("first\nsecond")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ValueError, match=f"cannot be loaded: {kind.__name__}: .*first") as caught:
        load_model(str(tiny_folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "check",
    ["check_config", "check_template", "_check_head", "check_saved_names", "check_sampling"],
)
def test_a_load_makes_every_check(check, tiny_folder, monkeypatch):
    def refuse(_):
        raise ValueError(f"refused by {check}")

    monkeypatch.setattr(models, check, refuse)
    with pytest.raises(ValueError, match=f"cannot be loaded: refused by {check}. Choose"):
        load_model(str(tiny_folder))


def test_a_log_line_that_a_full_disk_cut_off_is_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "kl": 0.5}\n{"step": 2, "kl": 0.4}\n{"step": 3, "k')
    with start_log(file, 2) as log:
        log.write('{"step": 3, "kl": 0.3}\n')
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]


def test_a_model_that_cannot_be_read_gives_one_plain_message(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="cannot be loaded: .* Choose a folder .*smollm2"):
        load_model(str(tmp_path))


def test_a_full_disk_leaves_what_was_there(tiny, tokenizer, tmp_path, monkeypatch):
    """The second save finds no space: the first stays loadable, and nothing half-written stays."""
    save_model(tmp_path / "best", tiny, tokenizer)
    before = (tmp_path / "best" / "model.safetensors").read_bytes()

    def no_space(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", no_space)
    with pytest.raises(
        OSError,
        match="best could not be written .*No space left on device.*What was saved before is whole",
    ):
        save_model(tmp_path / "best", tiny_llama(seed=1), tokenizer)
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_save_that_does_not_fit_is_not_begun(tokenizer, tmp_path, monkeypatch):
    """Oracle: the bytes of the files. One byte too few, and nothing is written or lost."""
    student, teacher, optimizer = trained(True, tokenizer, torch.bfloat16)
    saved = student, tokenizer, teacher, optimizer, {}, 1
    first = save_checkpoint(tmp_path, 1, *saved)
    save_model(tmp_path / "best", student, tokenizer)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for save, name, folder in [
        (lambda: save_checkpoint(tmp_path, 2, *saved), "checkpoint-000002", first),
        (lambda: save_model(tmp_path / "best", student, tokenizer), "best", tmp_path / "best"),
    ]:
        tensors = [x for file in folder.rglob("*.safetensors") for x in load_file(file).values()]
        needed = sum(tensor.nbytes for tensor in tensors)
        assert needed > 1000
        with monkeypatch.context() as patch:
            free = SimpleNamespace(free=needed - 1)
            patch.setattr(shutil, "disk_usage", lambda folder, free=free: free)
            patch.setattr(models, "save_file", lambda *_: pytest.fail("a file was begun"))
            patch.setattr(student, "save_pretrained", lambda *_: pytest.fail("a file was begun"))
            with pytest.raises(OSError) as error:
                save()
        megabytes = f"it takes {needed / 1e6:,.1f} MB of disk, {(needed - 1) / 1e6:,.1f} are free"
        assert str(error.value) == (
            f"{tmp_path / name} could not be written ({megabytes}). What was saved before is "
            "whole; make room and go on with --resume"
        )
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed))
        save_model(tmp_path / "best", student, tokenizer)


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 1 MiB: a tmpfs in the mount namespace of a sleeping process, gone with it.

    It is reached through the process's entry in /proc.
    """
    for namespace in (
        ["unshare", "-m"],
        ["unshare", "-rm"],
    ):  # as root, and as anybody where user namespaces are allowed
        try:
            process = subprocess.Popen(
                [
                    *namespace,
                    "sh",
                    "-c",
                    f"mount -t tmpfs -o size=1m tmpfs '{tmp_path}' && echo mounted && exec cat",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            pytest.skip(f"no tmpfs can be mounted here: {error}")
        with process:  # closes cat's input, and waits
            if process.stdout.readline() == "mounted\n":
                yield Path(f"/proc/{process.pid}/root{tmp_path}")
                return
            reason = process.stderr.read()
    pytest.skip(f"no tmpfs can be mounted here: {reason}")


def test_a_disk_that_is_really_full(small_disk, tokenizer, monkeypatch):
    """The second checkpoint meets the end of the disk in each of its files, and spares the first.

    It gets 4 kB more each time, until it fits; somebody else fills the disk after the look at it.
    """
    disk_usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**15))
    student, teacher, optimizer = trained(True, tokenizer)
    first = save_checkpoint(small_disk, 1, student, tokenizer, teacher, optimizer, {}, keep_last=1)
    before = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    failures, room, done = [], 0, False
    while not done:
        free = disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(bytes(free - room))
        try:
            second = save_checkpoint(
                small_disk, 2, student, tokenizer, teacher, optimizer, {}, keep_last=1
            )
            done = True
        except OSError as error:
            failures.append(str(error))
            assert {
                file: file.read_bytes() for file in first.rglob("*") if file.is_file()
            } == before
            assert sorted(path.name for path in small_disk.iterdir()) == [
                "checkpoint-000001",
                "filler",
            ]
        (small_disk / "filler").unlink()
        room += 4096
    assert len(failures) > 5, failures
    for message in failures:
        assert (
            message.startswith(f"{small_disk / 'checkpoint-000002'} could not be written (")
            and "No space left on device" in message
        )
        assert message.endswith("What was saved before is whole; make room and go on with --resume")
    student_2, teacher_2, optimizer_2 = trained(True, tokenizer)
    load_checkpoint(second, student_2, teacher_2, optimizer_2)
    assert same(student, student_2) and same(teacher, teacher_2)


def test_layers_that_are_not_found_are_not_checkpointed():
    model = tiny_model(GPTNeoXJapaneseConfig, intermediate_multiple_size=2)
    message = "--gradient-checkpointing finds no layers in gpt_neox_japanese"
    with pytest.raises(ValueError, match=message):
        checkpoint_layers(model)


def test_checkpointed_layers_give_the_same_gradient_and_run_twice(tiny):
    """Against the model as it was; a layer runs once without gradients, and twice with them."""
    plain, ids_BL = copy.deepcopy(tiny), torch.tensor([[3, 4, 5, 6]])
    runs = []
    tiny.base_model.layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    models.checkpoint_layers(tiny)
    for model in (plain, tiny):
        model(input_ids=ids_BL, use_cache=False).logits.square().sum().backward()
    assert len(runs) == 2
    assert torch.equal(gradients(plain), gradients(tiny))
    with torch.no_grad():
        tiny(input_ids=ids_BL)
    assert len(runs) == 3


FILL_THE_DISK = """
import resource, sys
sys.path[:0] = sys.argv[1:3]
from conftest import tiny_llama, tiny_tokenizer
from models import list_checkpoints, save_checkpoint
from optim import AdamW

student = tiny_llama(vocab_size=258)
saved = student, tiny_tokenizer(), None, AdamW(student), {"best": None}, 1
save_checkpoint(sys.argv[3], 1, *saved)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_checkpoint(sys.argv[3], 2, *saved)
except OSError as error:
    print([checkpoint.name for checkpoint in list_checkpoints(sys.argv[3])], error)
"""


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path):
    """A quota of the process in the disk's place: no file may grow beyond 10 kB."""
    code = f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{FILL_THE_DISK}"
    command = [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['checkpoint-000001']") and "could not be written" in done.stdout
    before = tiny_llama(vocab_size=258, seed=1)
    load_weights(before, tmp_path / "checkpoint-000001" / "student")
    expected = tiny_llama(vocab_size=258).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in before.state_dict().items())
