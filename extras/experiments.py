"""Run named experiments in pieces that resume, one results file for each; write the tables.

    python extras/experiments.py                        list the experiments, and what is done
    python extras/experiments.py science knowledge-sft  run those whose names begin so
    python extras/experiments.py --tables               write the tables of all documents in docs/
    python extras/experiments.py --tables --check       only say whether they are up to date

results/experiments.toml holds the experiments. One is a name and these keys:
    command  a script with its flags: "sdft.py --task science --preset laptop"; {NAME} in it is the
             last weights of the experiment NAME of the same seed
    seeds    one run for each; [0] without it
    grid     { learning-rate = [1e-5, 5e-5], epochs = [1, 2] }: one run for each point and seed; the
             best point by validation is named, and the test set plays no part in that
    tasks    ["science", "medical"]: one model learns them in this order (Fig. 3). {task} in the
             command is the task in hand. every = 10 evaluates every 10 steps, too.
             flags = { science = "--steps 40" } adds flags to the stage of a task
    weights  where the weights of a hub's model came from, if not from the hub
    label, paper   the first and the last cell of its row in a table

results/NAME.json is {"command", "machine", "runs": [{"seed", "before", "best", "last", "curve":
[validation by step], ...}]}, written anew after each run. Runs in it are skipped and unfinished
ones resume from their checkpoint. A run's weights are deleted then, unless a command names them.
Its answers stay in results/answers/NAME-seedN.jsonl.gz, which analysis.py rescore reads.
"""

import argparse
import contextlib
import gc
import gzip
import io
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from statistics import mean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of sdft.py

from analysis import (
    confidence_interval,
    drift_at,
    drift_for_good,
    of_test,
    point_flags,
    read_stored,
)

from baselines import METHODS
from config import parse_config
from data import load_splits, load_task
from eval import drift_from_base, evaluate, sample_base_answers
from scoring import validation_rank
from support.checkpoint import list_checkpoints
from support.models import best_device, load_model

ROOT = Path(__file__).resolve().parent.parent
TRAINING = ("sdft.py", "baselines.py")
PROBE_TOKENS = 32
STORED = ("tasks", "every", "flags", "weights")  # of an experiment, beside its command
KEYS = {"command", "seeds", "grid", "tasks", "every", "flags", "weights", "label", "paper"}


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; none: list all")
    parser.add_argument("--list", type=Path, default=ROOT / "results" / "experiments.toml")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="unfinished runs")
    parser.add_argument("--keep-weights", action="store_true", help="of every run")
    parser.add_argument("--tables", action="store_true", help="write the tables, and run nothing")
    parser.add_argument("--check", action="store_true", help="with --tables: only compare")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of documents")
    args = parser.parse_args(argv)
    experiments = read_experiments(args.list)
    if args.tables:
        return write_tables(args.docs, experiments, args.results, args.check)
    chosen = [name for name in experiments if name.startswith(tuple(args.names or [""]))]
    if not chosen:
        raise ValueError(f"no name in {args.list} begins with {' or '.join(args.names)}")
    for name in chosen:
        try:
            record = read_record(args.results / f"{name}.json", experiments[name])
        except ValueError as error:
            if args.names:
                raise
            print(error)
            continue
        done = [piece_of(run) for run in record["runs"]]
        left = [piece for piece in pieces(experiments[name]) if piece not in done]
        if not args.names:
            print(f"{len(done)} done, {len(left)} to do  {name}: {record['command']}")
            continue
        for piece in left:
            run_piece(name, piece, experiments, record, args)
        if "grid" in experiments[name]:
            print(ranking(record))


def read_experiments(file):
    experiments = tomllib.loads(file.read_text(encoding="utf-8"))
    for name, experiment in experiments.items():
        if "command" not in experiment or not experiment.keys() <= KEYS:
            raise ValueError(
                f"{file}: [{name}] has {', '.join(experiment)}; it needs a command, and may have "
                + ", ".join(sorted(KEYS - {"command"}))
            )
        for earlier in needed(experiment):
            if earlier not in experiments:
                raise ValueError(f"{file}: [{name}] needs {{{earlier}}}, which is not in the file")
        tasks = experiment.get("tasks", [None])
        if len(set(tasks)) < len(tasks) or tasks != [None] and len(tasks) < 2:
            raise ValueError(f"{file}: [{name}]: a sequence is two tasks or more, each once")
        if experiment.get("every", 1) < 1:
            raise ValueError(f"{file}: [{name}]: every = 0; it must be 1 or more")
        if experiment["command"].split()[0] in TRAINING:  # a refused one runs nothing at all
            for piece, task in itertools.product(pieces(experiment), tasks):
                words = stage_words(words_of(experiment, piece), task, experiment)
                # the weights that a command takes from another experiment may not be there yet
                config = parse_command([re.sub("{[^}]*}", "smollm2", word) for word in words])
                if task and config.judge:
                    raise ValueError(f"{file}: [{name}]: a sequence is scored without --judge")
    return experiments


def needed(experiment):
    """Names of the experiments whose weights a command takes."""
    return [name for name in re.findall(r"{([^}]*)}", experiment["command"]) if name != "task"]


def pieces(experiment):
    """The runs of an experiment: {"seed"}, and in a grid {"seed", "point"}."""
    grid = experiment.get("grid", {})
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    seeds = experiment.get("seeds", [0])
    return [{"seed": seed} | ({"point": p} if p else {}) for p in points for seed in seeds]


def piece_of(run):
    return {key: run[key] for key in ("seed", "point") if key in run}


def words_of(experiment, piece):
    """The command of a piece, in words, {NAME} still in it."""
    words = shlex.split(experiment["command"])
    for flag, value in piece.get("point", {}).items():
        words += [f"--{flag}", str(value)]
    seedless = words[0] == "eval.py" or "prior" in words  # greedy answers, and likelihoods
    return words if seedless else [*words, "--seed", str(piece["seed"])]


# ---- one run, and its record ----


def read_record(file, experiment):
    """What NAME.json holds, or a new record. ValueError if it is of another command."""
    command = " ".join(["python", *experiment["command"].split()])
    new = {"command": command} | {key: experiment[key] for key in STORED if key in experiment}
    record = json.loads(file.read_text()) if file.exists() else new | {"runs": []}
    if {key: record[key] for key in ("command", *STORED) if key in record} != new:
        raise ValueError(f"{file} is of another command, {record['command']}; move it away")
    return record


def write_json(file, content):
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".tmp").write_text(json.dumps(content, indent=1) + "\n")
    file.with_suffix(".tmp").replace(file)


def run_piece(name, piece, experiments, record, args):
    """One run of an experiment to its end; it is added to the record and results/NAME.json."""
    experiment, seed = experiments[name], f"seed{piece['seed']}"
    point = [f"{flag}-{value}" for flag, value in piece.get("point", {}).items()]
    folder = args.runs / "-".join([name, *point, seed])
    words = words_of(experiment, piece)
    check_command(folder, words, experiment)
    for earlier in needed(experiment):
        weights = args.runs / f"{earlier}-{seed}" / "last"
        if not weights.exists():
            raise ValueError(
                f"{name} starts from the weights of {earlier}, {seed}: {weights} does not exist. "
                f"Take that run out of {earlier}.json, and run {earlier} again"
            )
        words = [word.replace(f"{{{earlier}}}", str(weights)) for word in words]
    if "tasks" in experiment:
        run = run_sequence(words, experiment, folder)
    elif words[0] in TRAINING:
        train(words, folder)
        run = read_run(folder, probed="grid" not in experiment)
    else:
        measured = measure(words, folder / "measured.json")
        split = words[words.index("--split") + 1] if "--split" in words else "test"
        add_answers(folder, "measured", split, measured.get("answers", []))
        run = {key: measured[key] for key in ("summary", "machine")}
    record.setdefault("machine", run["machine"])
    if run["machine"] == record["machine"]:
        del run["machine"]  # a run on another machine keeps it
    store_answers(folder, args.results / "answers" / f"{folder.name}.jsonl.gz")
    record["runs"] = [*record.pop("runs"), piece | run]
    write_json(args.results / f"{name}.json", record)
    if not args.keep_weights:
        for checkpoint in list_checkpoints(folder):
            shutil.rmtree(checkpoint)
        if not any(name in needed(other) for other in experiments.values()):
            shutil.rmtree(folder)
            note_of(folder).unlink()


def note_of(folder):
    return folder.with_name(f"{folder.name}.command.json")


def check_command(folder, words, experiment):
    """Note beside a run's folder what it runs. ValueError if the folder is of something else."""
    new = {"words": words} | {key: experiment[key] for key in STORED if key in experiment}
    note = note_of(folder)
    old = json.loads(note.read_text()) if folder.exists() and note.exists() else new
    if old != new:
        raise ValueError(
            f"{folder} is of another command, python {shlex.join(old['words'])}; move it away"
        )
    write_json(note, new)


def add_answers(folder, when, name, answers):
    """Append answers [{"id", "answer"}], as eval.py --json gives them, to those of a run."""
    with open(folder / "answers.jsonl", "a", encoding="utf-8") as file:
        for answer in answers:
            line = {"when": when, "set": name, "id": answer["id"], "text": answer["answer"]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def store_answers(folder, file):
    """Compress the answers of a run, without token ids; equal answers give equal bytes."""
    source = folder / "answers.jsonl"
    if not source.exists() or not source.read_bytes():  # pass@k and KL keep none
        return
    lines = [
        json.dumps({"when": when, "set": name, "id": id, "text": text}, ensure_ascii=False) + "\n"
        for (when, name), texts in read_stored(source).items()
        for id, text in texts.items()
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def measure(words, file):
    """What a script that only measures writes with --json."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        run_script([*words, "--json", str(file)])
    if not file.exists():
        raise ValueError(f"python {shlex.join(words)} did not end; it says why above")
    return json.loads(file.read_text())


def train(words, folder, students_only=False):
    """A training run to its end, from its last checkpoint if it has one."""
    if (folder / "results.json").exists():
        return
    if list_checkpoints(folder):
        words = [words[0], "--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)  # stopped before its first checkpoint
        words = [*words, "--output", str(folder)]
    run_script(words, folder if students_only else None)
    if not (folder / "results.json").exists():
        raise ValueError(
            f"{folder.name} did not end; python {words[0]} says why above. After a no-go add "
            "--force to its command; otherwise run this again: it resumes from its last checkpoint"
        )


def run_script(words, thinned_run=None):
    """One of our scripts to its end; of a thinned run older checkpoints keep the student alone."""
    print(f"\n==== python {shlex.join(words)}", flush=True)
    process = subprocess.Popen([sys.executable, str(ROOT / words[0]), *words[1:]])
    while process.returncode is None:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            for checkpoint in list_checkpoints(thinned_run)[:-1] if thinned_run else []:
                for pattern in ("*.safetensors", "teacher/*.safetensors"):
                    for file in checkpoint.glob(pattern):
                        file.unlink()
        except KeyboardInterrupt:  # the script has it too: it finishes its step and saves
            continue


def read_run(folder, probed=True):
    """What a finished training run leaves, without weights and paths; if probed, the probe of its
    last weights, those that the tables show. A grid looks at validation alone.
    """
    results = json.loads((folder / "results.json").read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config = results["config"] | {"output": None}
    models = {"before": config["model"], "last": str(folder / "last")} if probed else {}
    for when, model in models.items():
        words = ["eval.py", "--model", model, "--task", "probe"]
        words += ["--dtype", config["dtype"], "--max-new-tokens", str(PROBE_TOKENS)]
        name = f"{model.replace('/', '--')}-{config['dtype']}"
        if kwargs := config.get("chat_template_kwargs"):
            words += ["--chat-template-kwargs", json.dumps(kwargs)]
            name += "-" + re.sub(r"\W+", "-", json.dumps(kwargs)).strip("-")
        file = folder / f"{when}-probe.json"
        if when == "before" and not Path(model).exists():  # of a hub or built in: one for all runs
            file = folder.parent / f"{name}-probe.json"
        probe = measure(words, file)
        add_answers(folder, when, "probe, test", probe["answers"])
        results[when]["probe"] = probe["summary"]
    kept = ["method", "preflight", "before", "best", "last", "best_step", "seconds"]
    kept += ["parameters", "trained_parameters", "merged_divergence", "memory", "machine"]
    run = {key: results[key] for key in kept if key in results}
    run["training_flops"] = training_flops(metrics, results)
    validated = [line for line in metrics if "validation" in line]
    run["curve"] = [{"step": line["step"]} | line["validation"] for line in validated]
    return run | {"config": json.loads(json.dumps(config).replace(str(folder.parent), "runs"))}


def training_flops(metrics, results):
    """Floating-point operations of training, for each token: 2 a parameter forward, 2 backward, and
    2 more for the gradient of each parameter that learns (beside adapters the base does not).

    The student's tokens are sampled, unless a baseline's are given, and trained on; with a KL loss
    the teacher reads its prompt and the completion once. Attention is left out: below a tenth here.
    """
    method, parameters = results["method"], results["parameters"]
    forward = 2 * parameters
    with_backward = 2 * forward + 2 * results.get("trained_parameters", parameters)
    flops = 0
    for line in metrics:
        student = line["prompt_tokens"] + line["completion_tokens"]
        teacher = line["teacher_prompt_tokens"] + line["completion_tokens"]
        flops += with_backward * student
        flops += forward * student if method in ("sdft", "reinvoke") else 0
        flops += forward * teacher if method in ("sdft", "reinvoke", "teacher-kd") else 0
    config = results["config"]
    return flops * config["batch_size"] * config["rollouts_per_prompt"]


# ---- grids: the best point by validation ----


def best_validation(run):
    """validation_rank of the best validation: that of the weights in best/."""
    ranks = [rank for entry in run["curve"] if (rank := validation_rank(entry)) is not None]
    if not ranks:
        raise ValueError(
            "a run has no validation that was scored; a grid needs --eval-every of 1 or more, "
            "and with --judge a server that answers"
        )
    return max(ranks)


def ranking(record):
    """The points as lines, the best first; several seeds count by their mean."""
    ranks = {}
    for run in record["runs"]:
        flags = " ".join(point_flags(run))
        ranks.setdefault(flags, []).append(best_validation(run))
    means = {
        flags: [mean(parts) for parts in zip(*seeds, strict=True)] for flags, seeds in ranks.items()
    }
    best_first = sorted(means, key=means.get, reverse=True)
    return "\n".join(f"{means[flags][0]:8.1%} on validation: {flags}" for flags in best_first)


# ---- sequences: one model through several tasks ----


def stage_words(words, task, experiment):
    """A command in words; in a sequence that of the stage which trains `task`."""
    if task is None:
        return words
    own = shlex.split(experiment.get("flags", {}).get(task, ""))
    return [*(word.replace("{task}", task) for word in words), "--task", task, *own]


def parse_command(words):
    """The Config of a training command."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    fixed = {}
    if words[0] == "baselines.py":
        parser.add_argument("--method", choices=METHODS, required=True)
        fixed = METHODS[parser.parse_known_args(words[1:])[0].method][2]
    with contextlib.redirect_stdout(io.StringIO()):  # which preset it is, once for each point
        return parse_config(["python", *words], "", fixed, parser)[0]


def run_sequence(words, experiment, folder):
    """Stage by stage; each starts from the last weights of the one before, with a new optimizer.

    -> {"before", "evaluations" of all tasks and the probe by step, with the drift from the first
    stage's model, "accuracy" [stage][task], ...}
    """
    tasks, every, file = experiment["tasks"], experiment.get("every"), folder / "sequence.json"
    commands = [stage_words(words, task, experiment) for task in tasks]
    configs = [parse_command(command) for command in commands]
    first = configs[0]
    model, tokenizer = load_model(first.model, best_device(), first.dtype)
    general, kwargs = load_task("general", "test"), first.chat_template_kwargs
    base = sample_base_answers(model, tokenizer, general, first.general_tokens, kwargs)
    how = {"max_new_tokens": PROBE_TOKENS, "template_kwargs": kwargs}
    sets = {"probe": (load_task("probe", "test"), how)}
    for config in configs:
        kwargs = config.chat_template_kwargs
        how = {"max_new_tokens": config.answer_tokens, "template_kwargs": kwargs}
        for name, examples in load_splits(config).reports.items():
            sets[f"{config.task}, {name}"] = examples, how
    state = json.loads(file.read_text()) if file.exists() else {"evaluations": []}
    if "before" not in state:
        state["before"] = evaluate_all(first.model, sets, first.dtype, folder, "before", base)
        write_json(file, state)
    del model
    saving = []
    if every:
        # the plan does not know that older checkpoints are thinned to the student
        saving = ["--save-every", str(every), "--keep-last", "1000000", "--ignore-plan"]
    start, previous = 0, []
    for stage, (task, command) in enumerate(zip(tasks, commands, strict=True), start=1):
        own = folder / f"stage-{stage}-{task}"
        train([*command, *saving, *previous], own, students_only=bool(every))
        for step, weights in weights_of(own):
            place = {"stage": stage, "task": task, "step": start + step}
            if not any(place == {key: e[key] for key in place} for e in state["evaluations"]):
                when = f"step {start + step}"
                scores = evaluate_all(weights, sets, first.dtype, folder, when, base)
                state["evaluations"].append(place | {"scores": scores})
                write_json(file, state)
        for checkpoint in list_checkpoints(own):
            shutil.rmtree(checkpoint)
        # an own --model would lose the preset of the built-in one
        start, previous = start + step, ["--preset", first.preset, "--model", str(own / "last")]
    ends = {entry["stage"]: entry["scores"] for entry in state["evaluations"]}
    A = [[of_test(scores, f"{task}, ")["correct"] for task in tasks] for scores in ends.values()]
    figures = {"average_forgetting": forgetting(A), "backward_transfer": backward_transfer(A)}
    machine = json.loads((own / "results.json").read_text())["machine"]
    return state | {"accuracy": A} | figures | {"machine": machine}


def weights_of(folder):
    """[(step, folder of a model)] of a finished run: checkpoints' students, and last weights."""
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    students = {int(c.name.rpartition("-")[2]): c / "student" for c in list_checkpoints(folder)}
    return sorted((students | {last: folder / "last"}).items())


def evaluate_all(model_name, sets, dtype, folder, when, base):
    """{name: summary} of the sets {name: (examples, how to evaluate)}; stores the answers."""
    model, tokenizer = load_model(str(model_name), best_device(), dtype)
    drift, scores = drift_from_base(base, model), {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (examples, how) in sets.items():
        scores[name], answers = evaluate(model, tokenizer, examples, description=name, **how)
        scores[name]["drift_from_base"] = drift
        pairs = zip(examples, answers, strict=True)
        rows = [{"id": example.id, "answer": answer.text} for example, answer in pairs]
        add_answers(folder, when, "probe, test" if name == "probe" else name, rows)
    del model
    gc.collect()
    torch.cuda.empty_cache()  # leaves the GPU to the next stage
    return scores


def forgetting(A):
    """Mean over tasks j but the last of max over earlier stages i of A[i][j], minus A[last][j]."""
    return mean(max(row[j] for row in A[:-1]) - A[-1][j] for j in range(len(A) - 1))


def backward_transfer(A):
    """Mean over tasks j but the last of A[last][j] - A[j][j]."""
    return mean(A[-1][j] - A[j][j] for j in range(len(A) - 1))


# ---- tables ----

PAPER = {  # task -> (heading, figures of the base model), of Qwen2.5-7B-Instruct
    "science": ("paper: new task / prior", "32.1 / 65.5"),
    "tooluse": ("paper: new task / prior", "42.9 / 65.5"),
    "medical": ("paper: new task / prior", "30.1 / 65.5"),
    "knowledge": ("paper: strict / lenient / OOD", "0 / 0 / 0"),
}
UNITS = {  # of a column: factor, unit, digits; the others are shares, in percent
    "completion tokens": (1, "", 1),
    "drift from base": (1, "", 3),
    "TFLOP": (1e-12, "", 0),
}


MARKED = (
    r"(<!-- (table|sequence|tries|drift|stays|prior|steps|sampling) ([\w .-]+) -->\n)"
    r".*?(<!-- end -->)"
)


def write_tables(docs, experiments, results, check):
    """Fill the tables of each document in a folder, from one mark to the next <!-- end -->.

    A mark is <!-- KIND NAME ... -->: a KIND of ROWS, and the results files that it shows. With
    `check` nothing is written; ValueError if a document is not what would be written, or if no
    document has a mark.
    """

    def fill(match):
        records = {name: read_results(results, name) for name in match[3].split()}
        rows = ROWS[match[2]](records, experiments)
        return match[1] + "".join(f"| {' | '.join(row)} |\n" for row in rows) + match[4]

    old = {file: file.read_text(encoding="utf-8") for file in sorted(docs.glob("*.md"))}
    new = {file: re.sub(MARKED, fill, text, flags=re.DOTALL) for file, text in old.items()}
    if not any(re.search(MARKED, text, flags=re.DOTALL) for text in old.values()):
        raise ValueError(f"{docs}: no .md file has a mark such as <!-- table science -->")
    stale = [file for file in old if new[file] != old[file]]
    if check and stale:
        names = ", ".join(map(str, stale))
        raise ValueError(f"{names}: older than {results}: python extras/experiments.py --tables")
    for file in stale:
        file.write_text(new[file], encoding="utf-8")


def read_results(results, name):
    file = results / f"{name}.json"
    if not file.exists():
        raise ValueError(f"{file} does not exist; python extras/experiments.py {name} makes it")
    return json.loads(file.read_text())


def method_rows(records, experiments):
    """Before training, then the last weights of each experiment; a set's column is correct."""
    first = next(iter(records.values()))["runs"]
    heading, base = PAPER[first[0]["config"]["task"]]
    lines = [("before", "", base, [table_values(run, "before") for run in first[:1]])]
    for name, record in records.items():
        row, runs = experiments.get(name, {}), record["runs"]
        values = [table_values(run, "last") for run in runs]
        lines.append((row.get("label", name), str(len(runs)), row.get("paper", ""), values))
    columns = list(dict.fromkeys(key for *_, values in lines for own in values for key in own))
    yield ["", "seeds", *columns, heading]
    yield ["---"] * (len(columns) + 3)
    for label, seeds, paper, values in lines:
        yield [label, seeds, *(cell([own.get(c) for own in values], c) for c in columns), paper]


def table_values(run, when):
    """{column: figure} of a run's weights before or last."""
    reports = run[when]
    test = of_test(reports)
    values = {name: reports[name]["correct"] for name in reports}
    measures = ("lenient", "recites", "well_formed", "finished", "completion_tokens")
    for name in (*measures, "drift_from_base"):
        values[name.replace("_", " ")] = test.get(name)
    values["TFLOP"] = run["training_flops"] if when == "last" else None
    return {name: value for name, value in values.items() if value is not None}


def sequence_rows(records, experiments):
    """The base, then each experiment after each of its stages: correct on every task's test set."""
    tasks = next(iter(records.values()))["tasks"]
    yield ["", "seeds", *tasks, "probe", "drift from base"]
    yield ["---"] * (len(tasks) + 4)
    for name, record in records.items():
        label, runs = experiments.get(name, {}).get("label", name), record["runs"]
        stages = [[run["before"] for run in runs]]
        for stage in range(1, len(tasks) + 1):
            own = [[e for e in run["evaluations"] if e["stage"] == stage] for run in runs]
            stages.append([evaluations[-1]["scores"] for evaluations in own])
        for when, scores in zip(
            ["before", *(f"after {task}" for task in tasks)], stages, strict=True
        ):
            sets = [[of_test(s, f"{task}, ")["correct"] for s in scores] for task in tasks]
            sets.append([s["probe"]["correct"] for s in scores])
            drift = cell([s["probe"].get("drift_from_base") for s in scores], "drift from base")
            cells = [*(cell(values, "") for values in sets), drift]
            yield [f"{label}, {when}", str(len(runs)), *cells]


def tries_rows(records, experiments):
    """What a choice by validation sees, every 10 steps: a row for each run of the first seed."""
    levels = (0.5, 0.8)
    yield ["", "right on validation", "drift from base", *(f"drift at {x:.0%}" for x in levels)]
    yield ["---"] * 5
    for name, record in records.items():
        label, runs = experiments.get(name, {}).get("label", name), record["runs"]
        for run in (run for run in runs if run["seed"] == runs[0]["seed"]):
            point = [f"`{flag}`" for flag in point_flags(run)]
            curve = [entry for entry in run["curve"] if entry["step"] % 10 == 0]
            right = ", ".join(f"{100 * entry['correct']:.0f}" for entry in curve)
            drift = ", ".join(f"{entry['drift_from_base']:.3f}" for entry in curve)
            found = [drift_at(run | {"curve": curve}, level) for level in levels]
            at_levels = ["never" if x is None else f"{x:.3f}" for x in found]
            yield [" ".join([label, *point]), f"{right} %", drift, *at_levels]


def drift_rows(records, experiments, rule=drift_at, heading="right on validation"):
    """Drift at which a run first passes an accuracy on validation, over the seeds of each point."""
    columns = {}
    for name, record in records.items():
        label = experiments.get(name, {}).get("label", name)
        for run in record["runs"]:
            point = [f"`{flag}`" for flag in point_flags(run)]
            columns.setdefault(" ".join([label, *point]), []).append(run)
    yield [heading, *columns]
    yield ["---"] * (len(columns) + 1)
    for level in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        found = [[rule(run, level) for run in runs] for runs in columns.values()]
        yield [f"{level:.0%}", *map(mean_and_range, found)]


def stays_rows(records, experiments):
    """The same, where a run passes an accuracy and is not below it again."""
    yield from drift_rows(records, experiments, drift_for_good, "right from there on")


def mean_and_range(values):
    """ "0.044 (0.041 to 0.048)", and how many values there are if some are None."""
    known = [value for value in values if value is not None]
    if not known:
        return "never"
    text = f"{mean(known):.3f}"
    if len(known) > 1:
        text += f" ({min(known):.3f} to {max(known):.3f})"
    return text + (f", {len(known)} of {len(values)} seeds" if len(known) < len(values) else "")


def prior_rows(records, experiments):
    """analysis.py prior: one row for each label, one column for each task and metric, ± its
    standard error; the heading has the number of questions.
    """
    lines, columns = {}, []
    for name, record in records.items():
        line = lines.setdefault(experiments.get(name, {}).get("label", name), {})
        [run] = record["runs"]
        for row in run["summary"]["rows"]:
            metric = row["metric"].split(",")[0]
            column = f"{row['task']}, {metric} (n = {row['n']:,})"
            error = "" if row["stderr"] is None else f" ± {100 * row['stderr']:.1f}"
            line[column] = f"{100 * row['value']:.1f}{error} %"
            columns.append(column)
    columns = list(dict.fromkeys(columns))
    yield ["", *columns]
    yield ["---"] * (len(columns) + 1)
    for label, line in lines.items():
        yield [label, *(line.get(column, "") for column in columns)]


def step_rows(records, _):
    """benchmarks/bench_step.py: time and memory of a step; ratios compare the time of a token."""
    labels = {
        "ours": "an SDFT step of ours",
        "lean": "the same, one sequence in a micro-batch",
        "trl": "TRL's `SDFTTrainer`, all equal",
        "sft": "an SFT step of ours, same lengths",
        "products": "the matrix products alone, without sampling's single tokens",
    }
    yield ["", "s per step", "s per completion token", "of TRL's", "of SFT's", "peak memory, MiB"]
    yield ["---"] * 6
    [record] = records.values()
    medians = {name: record["medians"][name] for name in labels if name in record["medians"]}
    per_token = {name: measured["seconds_per_token"] for name, measured in medians.items()}
    for name, measured in medians.items():
        ratios = [
            f"{per_token[name] / per_token[other]:.2f}" if other in per_token else ""
            for other in ("trl", "sft")
        ]
        seconds = f"{measured['seconds']:.1f}", f"{per_token[name]:.3f}"
        yield [labels[name], *seconds, *ratios, f"{measured['peak_mib']:,.0f}"]


def sampling_rows(records, _):
    """benchmarks/bench_sampling.py: new tokens a second, for each number of rows at a time."""
    yield ["rows", "ours, tokens/s", "Hugging Face's `generate`, tokens/s", "ratio"]
    yield ["---"] * 4
    [record] = records.values()
    for rows, measured in record["rows"].items():
        speeds = measured["tokens_per_s"]
        ours, theirs = f"{speeds['ours']:.0f}", f"{speeds['generate']:.0f}"
        yield [rows, ours, theirs, f"{measured['ratio']:.2f}"]


ROWS = {
    "table": method_rows,
    "sequence": sequence_rows,
    "tries": tries_rows,
    "drift": drift_rows,
    "stays": stays_rows,
    "prior": prior_rows,
    "steps": step_rows,
    "sampling": sampling_rows,
}


def cell(values, column):
    """Each of up to three seeds' figures, else their mean and half of its 95 % confidence interval.

    "" without a value.
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    factor, unit, digits = UNITS.get(column, (100, " %", 1))
    text = ", ".join(f"{factor * value:.{digits}f}" for value in known)
    if len(known) > 3:
        mean_and_half = confidence_interval(known)
        text = " ± ".join(f"{factor * value:.{digits}f}" for value in mean_and_half)
    # an older record may lack a measure
    of = f" ({len(known)} of {len(values)} seeds)" if len(known) < len(values) else ""
    return f"{text}{unit}{of}"


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
