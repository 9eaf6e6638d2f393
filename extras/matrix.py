"""Run a list of experiments in pieces: what results/ has is skipped, what was interrupted goes on from its checkpoint.

    python extras/matrix.py                  # all of MATRIX below
    python extras/matrix.py science          # names that begin so
    python extras/matrix.py --list

Each run becomes results/NAME-seedN.json: the command, its configuration, every table, the curve over steps, the machine. Weights
are deleted once it is written, so a matrix needs the disk of one run; --keep-weights keeps them, and those that a later run starts
from, {NAME-seedN} in its flags, are kept in any case.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import METHODS  # noqa: E402

MATRIX = {  # name -> (flags of sdft.py, seeds)
    # the paper's comparison; every run keeps its curve over the steps
    "science": ("--task science --preset laptop", [0, 1, 2]),
    "science-reverse": ("--task science --preset laptop --divergence reverse", [0, 1, 2]),
    "science-sft-1e-4": ("--task science --preset laptop --method sft", [0, 1, 2]),
    "science-sft-3e-5": ("--task science --preset laptop --method sft --learning-rate 3e-5", [0]),
    "science-dft": ("--task science --preset laptop --method dft", [0]),
    "science-reinvoke": ("--task science --preset laptop --method reinvoke --model {science-sft-1e-4-seed0} --teacher-model smollm2", [0]),
    "knowledge": ("--task knowledge --preset laptop", [0, 1, 2]),
    "knowledge-reverse": ("--task knowledge --preset laptop --divergence reverse", [0, 1, 2]),
    "knowledge-sft-1e-4": ("--task knowledge --preset laptop --method sft --learning-rate 1e-4", [0, 1, 2]),
    "knowledge-sft-3e-5": ("--task knowledge --preset laptop --method sft --learning-rate 3e-5", [0]),
    "knowledge-dft": ("--task knowledge --preset laptop --method dft --learning-rate 1e-4", [0]),
    "knowledge-cpt": ("--task knowledge --preset laptop --method cpt --learning-rate 1e-4 --batch-size 3 --steps 25", [0]),
    "knowledge-teacher-sft": ("--task knowledge --preset laptop --method teacher-sft --learning-rate 1e-4", [0]),
    "knowledge-teacher-kd": ("--task knowledge --preset laptop --method teacher-kd --learning-rate 1e-4", [0]),
    "knowledge-reinvoke": ("--task knowledge --preset laptop --method reinvoke --learning-rate 1e-4"
                           " --model {knowledge-sft-1e-4-seed2} --teacher-model smollm2", [2]),
    # what more steps than a laptop's ten minutes bring
    "knowledge-100-steps": ("--task knowledge --preset laptop --steps 100 --eval-every 20", [0]),
    "knowledge-250-steps": ("--task knowledge --preset laptop --steps 250 --eval-every 25", [0]),
    "medical": ("--task medical --preset laptop", [0]),
    # ablations, last weights alone: teacher's weights, estimator, first tokens, rollouts on science; the teacher's context, which only
    # an article has, on knowledge
    "science-teacher-base": ("--task science --preset laptop --teacher base --eval-every 0", [0]),
    "science-teacher-student": ("--task science --preset laptop --teacher student --eval-every 0", [0]),
    "science-token": ("--task science --preset laptop --divergence reverse --estimator token --eval-every 0", [0]),
    "science-rb": ("--task science --preset laptop --divergence reverse --estimator rb --reduction sum --eval-every 0", [0]),
    "science-skip-0": ("--task science --preset laptop --skip-first-tokens 0 --eval-every 0", [0]),
    "science-4-rollouts": ("--task science --preset laptop --rollouts-per-prompt 4 --batch-size 2 --eval-every 0", [0]),
    "knowledge-text": ("--task knowledge --preset laptop --teacher-context text --eval-every 0", [0]),
    "knowledge-demonstration": ("--task knowledge --preset laptop --teacher-context demonstration --eval-every 0", [0]),
    # Table 2 at toy size: it starts and ends; what it shows takes a reasoning model
    "medical-answer-only": ("--task medical --preset laptop --data samples/medical-answer-only --steps 5 --eval-every 0 --force", [0]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names in MATRIX; none means all")
    parser.add_argument("--list", action="store_true", help="say what is done and what is not, and run nothing")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where runs in progress stand")
    parser.add_argument("--keep-weights", action="store_true")
    args = parser.parse_args()
    for name, (flags, seeds) in MATRIX.items():
        if args.names and not any(name.startswith(beginning) for beginning in args.names):
            continue
        for seed in seeds:
            file = args.results / f"{name}-seed{seed}.json"
            if file.exists() or args.list:
                print(f"{'done' if file.exists() else 'to do':6} {name} seed {seed}: python sdft.py {flags} --seed {seed}")
                continue
            needed = any(f"{{{name}-seed{seed}}}" in other for other, _ in MATRIX.values())
            run(f"{name}-seed{seed}", f"{flags} --seed {seed}", args.runs, file, args.keep_weights or needed)


def run(name, flags, runs, file, keep_weights):
    """One experiment to its end, and its record into `file`; stops the matrix when the command fails."""
    folder = runs / name
    for earlier in re.findall(r"{(.*?)}", flags):
        if not (runs / earlier / "last").exists():
            sys.exit(f"error: {name} starts from the weights of {earlier}, and {runs / earlier / 'last'} does not exist; take "
                     f"{earlier}.json out of the results, so that it is run again")
    recorded = re.sub(r"{(.*?)}", r"runs/\1/last", flags)
    flags = re.sub(r"{(.*?)}", lambda match: shlex.quote(str(runs / match[1] / "last")), flags)
    if any(folder.glob("checkpoint-*")):
        command = ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)   # stopped before its first checkpoint: nothing to go on from
        command = [*shlex.split(flags), "--output", str(folder)]
    print(f"\n==== {name}: python sdft.py {flags}", flush=True)
    done = subprocess.run([sys.executable, str(ROOT / "sdft.py"), *command])
    if done.returncode or not (folder / "results.json").exists():
        sys.exit(f"error: {name} did not end; run this again to go on with it")
    subprocess.run([sys.executable, str(ROOT / "eval.py"), "--model", str(folder / "last"), "--task", "probe", "--max-new-tokens", "32",
                    "--json", str(folder / "probe.json")], check=True)
    write_record(folder, f"python sdft.py {recorded}", file)
    if not keep_weights:
        shutil.rmtree(folder)


def write_record(folder, command, file):
    """What a finished run leaves, without weights and paths, as one file."""
    record = json.loads((folder / "results.json").read_text()) | {"command": command, "curve": read_curve(folder / "metrics.jsonl")}
    record["training_flops"] = training_flops(folder / "metrics.jsonl", record["config"], record["parameters"])
    if (folder / "probe.json").exists():
        record["probe"] = json.loads((folder / "probe.json").read_text())["summary"]
    record["config"]["output"] = None
    model = Path(record["config"]["model"])
    if model.is_relative_to(folder.parent):     # another run's weights
        record["config"]["model"] = str("runs" / model.relative_to(folder.parent))
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")


def read_curve(metrics_file):
    """[{"step", "kl" or "nll", "completion_tokens", "seconds", and "validation" where there was one}] of a run."""
    lines = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    return [{key: line[key] for key in ("step", "kl", "nll", "completion_tokens", "seconds", "validation") if key in line} for line in lines]


def training_flops(metrics_file, config, parameters):
    """Floating-point operations of a run's training: 2 for each parameter and token of a forward pass, 6 with backward.

    The student samples (unless completions were given) and is trained; the teacher, where the loss is a KL, makes one forward
    pass over its own prompt and the completion. Attention over the sequence is left out: below a tenth at these lengths.
    """
    method, tokens = METHODS[config["method"]], 0
    for line in map(json.loads, metrics_file.read_text().splitlines()):
        student, teacher = (line[prompt] + line["completion_tokens"] for prompt in ("prompt_tokens", "teacher_prompt_tokens"))
        tokens += 6 * student + 2 * student * (method["completions"] == "student") + 2 * teacher * (method["loss"] == "kl")
    return parameters * config["batch_size"] * config["rollouts_per_prompt"] * tokens


if __name__ == "__main__":
    main()
