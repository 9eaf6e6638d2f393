"""Run the paper's six benchmarks of prior capabilities with EleutherAI's lm-evaluation-harness.

    pip install "lm-eval[hf,ifeval]"
    python extras/prior.py runs/science/best
    python extras/prior.py runs/science/best --run-model-code
    python extras/prior.py MODEL --tasks-folder DIR --tasks NAME

The first command leaves out HumanEval, which EXECUTES code that the model wrote, and the average
over all six; --run-model-code includes both. --tasks-folder takes your own task files (YAML) and
works offline; a task file may name Python functions, which the harness runs.

The six fetch their data from the Hugging Face hub. No chat template is used. TruthfulQA (mc1) and
IFEval (instruction level, loose) use the metrics that the authors name in their tracker. For the
rest, 0 shots, and acc rather than acc_norm for HellaSwag, are our reading.
"""

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import mean

# task of the harness -> (its metric and filter, the paper's figure of Qwen2.5-7B-Instruct)
BENCHMARKS = {
    "hellaswag": ("acc,none", 62.0),
    "humaneval": ("pass@1,create_test", 65.8),
    "ifeval": ("inst_level_loose_acc,none", 74.3),
    "mmlu": ("acc,none", 71.7),
    "truthfulqa_mc1": ("acc,none", 47.9),
    "winogrande": ("acc,none", 71.1),
}
SHOTS = 0


def harness_command(
    model,
    tasks,
    output,
    *,
    shots=None,
    tasks_folder=None,
    batch_size="auto",
    limit=None,
    run_model_code=False,
):
    """(command, environment variables) that evaluate a model on tasks and write one results_*.json
    below `output`.

    shots None leaves each task file its own number. With tasks_folder the harness reads its task
    files and reaches no hub. Raises ValueError for a model name that the harness would split.
    """
    if "," in str(model) or "=" in str(model):
        raise ValueError(
            f'model "{model}" has a comma or an equals sign, at which the harness splits; '
            "rename the folder"
        )
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={model}",
        "--tasks",
        ",".join(tasks),
        "--batch_size",
        str(batch_size),
        "--output_path",
        str(output),
    ]
    environment = {}
    if shots is not None:
        command += ["--num_fewshot", str(shots)]
    if limit is not None:
        command += ["--limit", str(limit)]
    if tasks_folder is not None:
        command += ["--include_path", str(tasks_folder)]
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if run_model_code:
        command += ["--confirm_run_unsafe_code"]
        environment |= {"HF_ALLOW_CODE_EVAL": "1"}
    return command, environment


def run_harness(model, tasks, **options):
    """The harness's results, in a process of its own -> its dict; stops the command when the
    harness does.
    """
    with tempfile.TemporaryDirectory() as output:
        command, environment = harness_command(model, tasks, output, **options)
        print(shlex.join(command), flush=True)
        done = subprocess.run(command, env=os.environ | environment)
        files = list(Path(output).rglob("results_*.json"))
        if done.returncode or len(files) != 1:
            sys.exit(
                f"error: the harness ended with status {done.returncode} and {len(files)} "
                "results; what it says is above"
            )
        return json.loads(files[0].read_text())


def leaves(results, task):
    """The tasks with questions of their own below a task: MMLU is a group of four groups, 57 in
    all.
    """
    parts = results.get("group_subtasks", {}).get(task, [])
    return [leaf for part in parts for leaf in leaves(results, part)] or [task]


def read_rows(results, tasks):
    """[{"task", "n", "shots", "metric", "value", "stderr"}] from the harness's dict.

    The six have one metric each, other tasks all of theirs. Raises ValueError if the harness has no
    such metric: names change between its versions.
    """
    rows = []
    for task in tasks:
        values, parts = results["results"][task], leaves(results, task)
        metrics = [name for name in values if "," in name and "_stderr" not in name]
        for metric in [BENCHMARKS[task][0]] if task in BENCHMARKS else metrics:
            if metric not in values:
                raise ValueError(
                    f"{task}: this version of the harness has no {metric}, but {', '.join(values)}"
                )
            stderr = values.get(metric.replace(",", "_stderr,"))
            rows.append(
                {
                    "task": task,
                    "n": sum(results["n-samples"][part]["effective"] for part in parts),
                    "shots": sorted({results["n-shot"][part] for part in parts}),
                    "metric": metric,
                    "value": values[metric],
                    "stderr": stderr if isinstance(stderr, float) else None,  # or "N/A"
                }
            )
    return rows


def format_rows(rows):
    """The rows as lines of text; the average only over all six, as in the paper."""

    def line(*cells):
        return "{:{width}}{:>7}{:>7}  {:26}{:>7}{:>10}{:>19}".format(*cells, width=width).rstrip()

    width = max(len(row["task"]) for row in rows)
    lines = [line("task", "n", "shots", "metric", "score", "± stderr", "paper's base, 7B")]
    for row in rows:
        stderr = "" if row["stderr"] is None else f"{100 * row['stderr']:.1f}"
        paper = BENCHMARKS[row["task"]][1] if row["task"] in BENCHMARKS else ""
        lines.append(
            line(
                row["task"],
                row["n"],
                "/".join(map(str, row["shots"])),
                row["metric"],
                f"{100 * row['value']:.1f}",
                stderr,
                paper,
            )
        )
    if {row["task"] for row in rows} == set(BENCHMARKS):
        lines.append(
            line("average", "", "", "", f"{100 * mean(row['value'] for row in rows):.1f}", "", 65.5)
        )
    return "\n".join(lines)


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("model", help="folder with config.json and safetensors, or hub id")
    add("--tasks", nargs="+", help="tasks of the harness (default: the six)")
    add(
        "--tasks-folder",
        type=Path,
        help="folder with task files of your own; nothing is fetched then",
    )
    add(
        "--run-model-code",
        action="store_true",
        help=(
            "run HumanEval, which executes code written by the model on this machine, without a "
            "sandbox"
        ),
    )
    add("--batch-size", default="auto")
    add("--limit", type=int, help="only the first N questions of each task: a trial, not a result")
    add("--json", type=Path, help="also write the table to this file")
    args = parser.parse_args(argv)
    if args.tasks_folder and not args.tasks:
        parser.error("--tasks-folder needs --tasks: the names of the tasks in it")
    if args.tasks_folder and not args.tasks_folder.is_dir():
        parser.error(f"--tasks-folder {args.tasks_folder} is not a folder")
    if "humaneval" in (args.tasks or []) and not args.run_model_code:
        parser.error(
            "humaneval executes code that the model wrote, on this machine; add "
            "--run-model-code if that is what you want"
        )
    tasks = args.tasks or [
        task for task in BENCHMARKS if task != "humaneval" or args.run_model_code
    ]
    if importlib.util.find_spec("lm_eval") is None:
        sys.exit('error: this needs the evaluation harness: pip install "lm-eval[hf,ifeval]"')
    if args.run_model_code:
        print(
            (
                "--run-model-code: code that the model writes is executed on this machine, "
                "without a sandbox"
            ),
            flush=True,
        )
    elif not args.tasks:
        print(
            (
                "humaneval is left out: it executes code that the model wrote; --run-model-code "
                "includes it"
            ),
            flush=True,
        )
    try:
        results = run_harness(
            args.model,
            tasks,
            shots=None if args.tasks_folder else SHOTS,
            tasks_folder=args.tasks_folder,
            batch_size=args.batch_size,
            limit=args.limit,
            run_model_code=args.run_model_code,
        )
        rows = read_rows(results, tasks)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(format_rows(rows))
    print(
        f"lm-eval {version('lm_eval')}, no chat template"
        + (f", only {args.limit} questions of each task: no result" if args.limit else "")
    )
    if args.json:
        record = {
            "model": args.model,
            "lm_eval": version("lm_eval"),
            "chat_template": False,
            "limit": args.limit,
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
