"""Three benchmarks of prior abilities from public files, for a machine that reaches no model hub.

    python extras/prior_tasks.py FOLDER --winogrande winogrande.jsonl \\
        --truthfulqa mc_task.json --ifeval input_data.jsonl
    python extras/analysis.py prior --model DIR --tasks-folder FOLDER --tasks winogrande

--winogrande   scripts/eval/local_data/language_understanding/winogrande.jsonl of
               github.com/mosaicml/llm-foundry: the 1,267 validation questions, as two contexts and
               one continuation
--truthfulqa   data/mc_task.json of github.com/sylinrl/TruthfulQA: 817 questions
--ifeval       instruction_following_eval/data/input_data.jsonl of
               github.com/google-research/google-research: 541 prompts

FOLDER gets the questions as lm-eval's own tasks read them from the hub, and for each task a YAML
file that includes lm-eval's and names the local questions. So prompts, shots and metrics are those
of the installed lm-eval. The paths in FOLDER are those of this machine.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

# task of lm-eval -> (its file below lm_eval/tasks, the split that it reads)
TASKS = {
    "winogrande": ("winogrande/default.yaml", "validation"),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "validation"),
    "ifeval": ("ifeval/ifeval.yaml", "train"),
}


def read_winogrande(file):
    """Questions as on the hub: a sentence with a gap, two options, the number of the right one.

    The gap stands for all of a context, so both choices are the two contexts, word for word.
    """
    for record in read_lines(file):
        first, second = record["context_options"]
        yield {
            "sentence": f"_ {record['continuation']}",
            "option1": first,
            "option2": second,
            "answer": str(record["gold"] + 1),
        }


def read_truthfulqa(file):
    """Questions as on the hub: mc1_targets is {"choices": [...], "labels": [...]}, right one first.

    Raises ValueError for another order: lm-eval takes the first choice as the right one.
    """
    for record in json.loads(Path(file).read_text(encoding="utf-8")):
        choices, labels = zip(*record["mc1_targets"].items(), strict=True)
        if labels[0] != 1 or sum(labels) != 1:
            raise ValueError(
                f'{file}: "{record["question"]}" has the labels {labels} in mc1_targets; '
                "the first choice must be the right one, and the only one"
            )
        targets = {"choices": choices, "labels": labels}
        yield {"question": record["question"], "mc1_targets": targets}


def read_lines(file):
    """The records of a JSONL file."""
    with open(file, encoding="utf-8") as lines:
        yield from map(json.loads, lines)


READERS = {
    "winogrande": read_winogrande,
    "truthfulqa_mc1": read_truthfulqa,
    "ifeval": read_lines,
}


def write_task(folder, task, records, harness):
    """Write TASK.jsonl and TASK.yaml into a folder; harness is the folder of lm_eval's tasks."""
    path, split = TASKS[task]
    if not (harness / path).exists():
        raise ValueError(
            f"{harness / path} is not there, so this lm-eval has another layout; "
            "pip install -r requirements-extras.txt has the version that this was written for"
        )
    questions = folder.resolve() / f"{task}.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    questions.write_text("".join(lines), encoding="utf-8")
    config = {
        "include": str(harness / path),
        "task": task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(questions)}},
        "training_split": None,
        "num_fewshot": 0,
    }
    # JSON is YAML, too
    (folder / f"{task}.yaml").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return len(lines)


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new, or written by this")
    for task in TASKS:
        flag = "--" + task.removesuffix("_mc1")
        parser.add_argument(flag, dest=task, type=Path, metavar="FILE", help="see above")
    args = parser.parse_args(argv)
    files = {task: file for task in TASKS if (file := getattr(args, task))}
    if not files:
        parser.error("give at least one of --winogrande, --truthfulqa, --ifeval")
    harness = importlib.util.find_spec("lm_eval")
    if harness is None:
        sys.exit("error: this needs lm-eval: pip install -r requirements-extras.txt")
    args.folder.mkdir(parents=True, exist_ok=True)
    for task, file in files.items():
        try:
            records = list(READERS[task](file))
            count = write_task(args.folder, task, records, Path(harness.origin).parent / "tasks")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"has no field {error}" if isinstance(error, KeyError) else error
            sys.exit(f"error: {file} cannot be read as the public file of {task}: {what}")
        print(f"{args.folder}/{task}.yaml: {count} questions")


if __name__ == "__main__":
    main()
