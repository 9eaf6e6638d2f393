"""Saving and resuming. Oracle: Hugging Face's own from_pretrained on the folders that we write."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_llama
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from optim import AdamW, prepare_for_training, relative_distance, update_ema
from support import checkpoint
from support.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_weights,
    read_best,
    read_state,
    save_best,
    save_checkpoint,
    save_model,
)


def same(a, b):
    remainders = [getattr(model, "remainders", {}) for model in (a, b)]
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    ) and all(
        torch.equal(remainders[0][name], remainders[1][name])
        for name in remainders[0].keys() | remainders[1].keys()
    )


def trained(tied, tokenizer, dtype=torch.float32):
    """Student, teacher and optimiser after one update, all different."""
    student, teacher = (
        tiny_llama(tied=tied, dtype=dtype),
        tiny_llama(tied=tied, seed=1, dtype=dtype),
    )
    prepare_for_training(student)
    prepare_for_training(teacher)
    optimizer = AdamW(student)
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter, dtype=torch.float32)
    optimizer.step(0.01)
    update_ema(teacher, student, 0.3)
    return student, teacher, optimizer


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
    assert [folder.name for folder in list_checkpoints(tmp_path)] == [
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


def test_a_users_copy_is_neither_resumed_from_nor_deleted(tokenizer, tmp_path):
    student, teacher, optimizer = trained(True, tokenizer)
    saved = student, tokenizer, teacher, optimizer, {}, 1
    second = save_checkpoint(tmp_path, 2, *saved)
    copies = [tmp_path / name for name in ("checkpoint-000002-v1", "checkpoint-000009 (copy)")]
    for folder in copies:
        shutil.copytree(second, folder)
    assert list_checkpoints(tmp_path) == [second]
    third = save_checkpoint(tmp_path, 3, *saved)
    assert list_checkpoints(tmp_path) == [third] and not second.exists()
    assert all((folder / "state.json").exists() for folder in copies)


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_saved_files_follow_the_umask(mask, mode, tokenizer, tmp_path):
    student, teacher, optimizer = trained(True, tokenizer, torch.bfloat16)
    before = os.umask(mask)
    try:
        save_model(tmp_path / "last", student, tokenizer)
        save_checkpoint(tmp_path, 1, student, tokenizer, teacher, optimizer, {}, keep_last=1)
        assert os.umask(mask) == mask  # it is as it was
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len([file for file in files if file.suffix == ".safetensors"]) == 5
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {oct(mode)}


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

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
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


def test_best_survives_a_kill_between_its_two_renames(tiny, tokenizer, tmp_path):
    save_best(tmp_path, tiny, tokenizer, {"step": 3, "rank": [0.5]})
    (tmp_path / "best").rename(tmp_path / "best.old")
    assert read_best(tmp_path) == {"step": 3, "rank": [0.5]}
    assert (tmp_path / "best" / "best.json").exists() and not (tmp_path / "best.old").exists()
    assert read_best(tmp_path / "nowhere") is None


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
            patch.setattr(checkpoint, "save_file", lambda *_: pytest.fail("a file was begun"))
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


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "denied")])
def test_what_may_pass_is_not_called_damage(error, tmp_path, monkeypatch):
    """A checkpoint that was whole is not to be deleted for it."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint, "read_weights", fail)
    with pytest.raises(type(error)):
        checkpoint.load_weights(tiny_llama(), tmp_path)


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


FILL_THE_DISK = """
import resource, sys
sys.path[:0] = sys.argv[1:3]
from conftest import tiny_llama, tiny_tokenizer
from optim import AdamW, prepare_for_training
from support.checkpoint import list_checkpoints, save_checkpoint

student = tiny_llama(vocab_size=258)
prepare_for_training(student)
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
