"""Sequential learning (Fig. 3): one model through several tasks; after every stage all of them and the probe are evaluated.

    python extras/sequence.py --task science medical knowledge --output runs/sequence-sdft -- --method sdft --preset laptop --seed 0

What follows -- goes to the sdft.py of every stage. The first starts from its --model, each later one from the last weights of the
one before, as they are saved (a bfloat16 run's remainders stay behind). At a stage's start the optimiser is new, and the teacher is a
copy of the student in hand. A preflight's no-go ends the sequence, unless --force stands behind the --. The same command goes on where
it stopped: finished stages are skipped, an unfinished one is resumed, no evaluation is repeated.

OUTPUT/sequence.json has every evaluation and the accuracy A[stage][task]; extras/plot_results.py draws it.
"""

import argparse
import dataclasses
import gc
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import REPORTS, Config, parse_config, preset_values  # noqa: E402
from data import load_task  # noqa: E402
from eval import evaluate  # noqa: E402
from models import describe_machine, list_checkpoints, load_model  # noqa: E402
from sdft import load_data  # noqa: E402


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args, started = parse_arguments(argv), time.perf_counter()
    file, stages = args.output / "sequence.json", range(1, len(args.task) + 1)
    configs = [parse_config(stage_flags(args, stage), __doc__)[0] for stage in stages]
    sets = {f"{config.task}, {name}": (examples, config.max_new_tokens) for config in configs for name, examples in load_data(config)[2].items()}
    sets["probe"] = load_task("probe", "test"), preset_values(configs[0].preset, "probe").get("max_new_tokens", Config.max_new_tokens)
    record = open_record(file, " ".join(["python", "extras/sequence.py", *argv]), configs)
    earlier = record["seconds"]
    file.parent.mkdir(parents=True, exist_ok=True)

    def save():
        record["seconds"] = earlier + time.perf_counter() - started
        file.with_suffix(".tmp").write_text(json.dumps(record, indent=1) + "\n")
        file.with_suffix(".tmp").replace(file)      # whole or not at all

    if record["before"] is None:
        record["before"] = evaluate_all(configs[0].model, sets, configs[0].dtype, "before")
        save()
    steps = 0       # of all stages so far
    for stage, config in zip(stages, configs):
        folder = Path(config.output)
        if not (folder / "results.json").exists():
            run_stage(stage_flags(args, stage), folder)
        for step, weights in weights_of(folder):
            if not any((done["stage"], done["step"]) == (stage, steps + step) for done in record["evaluations"]):
                scores = evaluate_all(weights, sets, config.dtype, f"stage {stage}, step {step}")
                record["evaluations"].append({"stage": stage, "task": config.task, "step": steps + step, "scores": scores})
                save()
        steps += step
        for checkpoint in list_checkpoints(folder):
            shutil.rmtree(checkpoint)
    ends = [[done["scores"] for done in record["evaluations"] if done["stage"] == stage][-1] for stage in stages]
    A = [[correct(scores, task) for task in args.task] for scores in ends]
    record |= {"accuracy": A, "average_forgetting": average_forgetting(A), "backward_transfer": backward_transfer(A)}
    save()
    print(f"\n{'correct':20}" + "".join(f"{name:>12}" for name in [*args.task, "probe"]))
    for label, scores in zip(["before"] + [f"after {task}" for task in args.task], [record["before"], *ends]):
        print(f"{label:20}" + "".join(f"{share:>12.1%}" for share in [correct(scores, task) for task in args.task] + [scores["probe"]["correct"]]))
    print(f"average forgetting {average_forgetting(A):.1%}, backward transfer {backward_transfer(A):.1%}")


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--task", nargs="+", required=True, choices=list(REPORTS), help="two or more, in this order")
    parser.add_argument("--output", type=Path, required=True, help="folder of the sequence; a stage is OUTPUT/stage-N-TASK")
    parser.add_argument("--every", type=int, help="evaluate every N steps too; until a stage ends each takes the disk of a model")
    parser.add_argument("--data", type=Path, help="folder with a data set in TASK/ for each task (default: our own samples)")
    cut = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:cut])
    args.flags = argv[cut + 1:]
    if len(set(args.task)) != len(args.task) or len(args.task) < 2:
        parser.error(f"--task {' '.join(args.task)}: a sequence is two tasks or more, each once")
    for flag in ["--task", "--output", "--data", "--resume"] + ["--save-every", "--keep-last"] * (args.every is not None):
        if any(given.split("=")[0] == flag for given in args.flags):
            parser.error(f"{flag} after the --: the sequence sets it for each stage")
    return args


def stage_flags(args, stage):
    """What the sdft.py of a stage (1, 2, …) is called with."""
    task, folders = args.task[stage - 1], [args.output / f"stage-{number}-{task}" for number, task in enumerate(args.task, start=1)]
    flags = ["--task", task, *args.flags, "--output", str(folders[stage - 1])]
    flags += ["--model", str(folders[stage - 2] / "last")] if stage > 1 else []
    flags += ["--data", str(args.data / task)] if args.data else []
    return flags + (["--save-every", str(args.every), "--keep-last", "1000000"] if args.every is not None else [])


def open_record(file, command, configs):
    """A new record, or what sequence.json holds of the same sequence; only --force may differ."""
    new = {"command": command, "tasks": [config.task for config in configs], "configs": [dataclasses.asdict(config) for config in configs],
           "machine": describe_machine(), "seconds": 0, "before": None, "evaluations": []}
    old = json.loads(file.read_text()) if file.exists() else new
    if [config | {"force": None} for config in old["configs"]] != [config | {"force": None} for config in new["configs"]]:
        raise ValueError(f"{file} is of another command: {old['command']}\nRepeat that one, or choose another --output")
    return old | {"command": command, "configs": new["configs"]}


def evaluate_all(model_name, sets, dtype, when):
    model, tokenizer = load_model(str(model_name), "cuda" if torch.cuda.is_available() else "cpu", dtype)
    return {name: evaluate(model, tokenizer, examples, max_new_tokens=new_tokens, description=f"{when}: {name}")[0]
            for name, (examples, new_tokens) in sets.items()}


def run_stage(flags, folder):
    """One sdft.py to its end, from its last checkpoint where it has one. Raises ValueError where it does not get there."""
    print(f"\n==== {folder.name}: python sdft.py {' '.join(flags)}", flush=True)
    if not list_checkpoints(folder):
        shutil.rmtree(folder, ignore_errors=True)   # stopped before its first checkpoint: nothing to go on from
    gc.collect()
    torch.cuda.empty_cache()                        # the evaluated model leaves the GPU to the training
    command = ["--resume", str(folder)] if folder.exists() else flags
    process = subprocess.Popen([sys.executable, str(ROOT / "sdft.py"), *command])
    while process.returncode is None:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            for checkpoint in list_checkpoints(folder)[:-1]:    # the newest one is resumed; of the others the student is evaluated
                for file in [*checkpoint.glob("*.safetensors"), *checkpoint.glob("teacher/*.safetensors")]:
                    file.unlink()
        except KeyboardInterrupt:                   # sdft.py has it too: it finishes its step and saves
            continue
    if not (folder / "results.json").exists():
        raise ValueError(f"{folder.name} did not end; python sdft.py said why. After a no-go: the same command with --force behind the --, or "
                         "another model. Else the same command goes on from the last checkpoint")


def weights_of(folder):
    """[(step, folder of a model)] of a finished stage: its checkpoints' students, and its last weights."""
    last_step = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    students = {int(checkpoint.name.removeprefix("checkpoint-")): checkpoint / "student" for checkpoint in list_checkpoints(folder)}
    return sorted((students | {last_step: folder / "last"}).items())


def correct(scores, task):
    """A task's accuracy: that of its test split (of knowledge: held-out wordings)."""
    return next(scores[f"{task}, {name}"]["correct"] for name, split in REPORTS[task].items() if split == "test")


def average_forgetting(A):
    """Mean over the tasks j but the last of  max over earlier stages i of A[i][j]  -  A[last][j]; below 0 where they gained at the end."""
    return mean(max(row[j] for row in A[:-1]) - A[-1][j] for j in range(len(A) - 1))


def backward_transfer(A):
    """Mean over the tasks j but the last of A[last][j] - A[j][j]."""
    return mean(A[-1][j] - A[j][j] for j in range(len(A) - 1))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on")
