"""The prior benchmarks. Oracles: the command line and the table, written out here; where lm-eval is
installed, the harness itself against log-likelihoods of the choices, summed here from one forward
pass each.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import analysis
import pytest
import torch

from support.models import load_model

# as the harness writes them: a group of groups, a task without a standard error
RESULTS = {
    "results": {
        "mmlu": {"alias": "mmlu", "acc,none": 0.5, "acc_stderr,none": 0.125},
        "hellaswag": {
            "alias": "hellaswag",
            "acc,none": 0.25,
            "acc_stderr,none": 0.0625,
            "acc_norm,none": 0.9,
            "acc_norm_stderr,none": 0.1,
        },
        "mine": {
            "alias": "mine",
            "exact,none": 1.0,
            "exact_stderr,none": "N/A",
            "f1,strip": 0.75,
            "f1_stderr,strip": 0.5,
        },
    },
    "group_subtasks": {
        "mmlu": ["mmlu_stem", "mmlu_other"],
        "mmlu_stem": ["algebra", "physics"],
        "mmlu_other": ["law"],
        "hellaswag": [],
    },
    "n-shot": {"mmlu_stem": 0, "algebra": 0, "physics": 0, "law": 0, "hellaswag": 0, "mine": 3},
    "n-samples": {
        name: {"original": 9, "effective": n}
        for name, n in (("algebra", 1), ("physics", 2), ("law", 4), ("hellaswag", 8), ("mine", 16))
    },
}


def test_rows_take_the_papers_metric_and_count_through_groups():
    assert analysis.read_rows(RESULTS, ["mmlu", "hellaswag", "mine"]) == [
        {"task": "mmlu", "n": 7, "shots": [0], "metric": "acc,none", "value": 0.5, "stderr": 0.125},
        {
            "task": "hellaswag",
            "n": 8,
            "shots": [0],
            "metric": "acc,none",
            "value": 0.25,
            "stderr": 0.0625,
        },
        {
            "task": "mine",
            "n": 16,
            "shots": [3],
            "metric": "exact,none",
            "value": 1.0,
            "stderr": None,
        },
        {"task": "mine", "n": 16, "shots": [3], "metric": "f1,strip", "value": 0.75, "stderr": 0.5},
    ]
    with pytest.raises(
        ValueError, match="mmlu: this version of the harness has no acc,none, but alias, acc"
    ):
        analysis.read_rows(RESULTS | {"results": {"mmlu": {"alias": "mmlu", "acc": 0.5}}}, ["mmlu"])


def test_the_average_stands_under_all_six_only():
    """The paper's own base figures: their mean is its 65.5."""
    rows = [
        {"task": task, "n": 9, "shots": [0], "metric": metric, "value": paper / 100, "stderr": None}
        for task, (metric, paper) in analysis.BENCHMARKS.items()
    ]
    assert analysis.format_benchmarks(rows).splitlines()[-1].split() == ["average", "65.5", "65.5"]
    assert "average" not in analysis.format_benchmarks(rows[1:])
    assert analysis.format_benchmarks(rows).splitlines()[1].split() == [
        "hellaswag",
        "9",
        "0",
        "acc,none",
        "62.0",
        "62.0",
    ]


def test_command():
    command, environment = analysis.harness_command("runs/a", ["hellaswag", "mmlu"], "out")
    assert (
        command
        == [
            sys.executable,
            "-m",
            "lm_eval",
            "--model",
            "hf",
            "--model_args",
            "pretrained=runs/a",
            "--tasks",
            "hellaswag,mmlu",
            "--batch_size",
            "auto",
            "--output_path",
            "out",
            "--num_fewshot",
            "0",
        ]
        and environment == {}
    )
    command, environment = analysis.harness_command(
        "a", ["x"], "out", tasks_folder="mine", batch_size=4, limit=5, run_model_code=True
    )
    assert command[9:] == [
        "--batch_size",
        "4",
        "--output_path",
        "out",
        "--limit",
        "5",
        "--include_path",
        "mine",
        "--confirm_run_unsafe_code",
    ]
    assert environment == {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_ALLOW_CODE_EVAL": "1",
    }
    with pytest.raises(ValueError, match="has a comma or an equals sign"):
        analysis.harness_command("runs/lr=1", ["x"], "out")


@pytest.fixture
def harness(monkeypatch):
    """In place of the harness: notes commands and environments, and writes RESULTS; its return code
    is harness.code.
    """

    class Harness:
        code, commands, environments = 0, [], []

    def run(command, env):
        Harness.commands.append(command)
        Harness.environments.append(env)
        folder = Path(command[command.index("--output_path") + 1]) / "model"
        folder.mkdir()
        (folder / "results_2026.json").write_text(json.dumps(RESULTS))
        return subprocess.CompletedProcess(command, Harness.code)

    monkeypatch.setattr(analysis.subprocess, "run", run)
    monkeypatch.setattr(analysis.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(analysis, "version", lambda name: "0.4.x")
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return Harness


def test_model_code_is_run_only_on_request(harness, capsys, monkeypatch):
    monkeypatch.setattr(analysis, "read_rows", lambda results, tasks: [])
    monkeypatch.setattr(analysis, "format_benchmarks", lambda rows: "")
    analysis.main(["prior", "--model", "model"])
    assert (
        "hellaswag,ifeval,mmlu,truthfulqa_mc1,winogrande" in harness.commands[-1]
        and "humaneval is left out" in capsys.readouterr().out
    )
    assert (
        "--confirm_run_unsafe_code" not in harness.commands[-1]
        and "HF_ALLOW_CODE_EVAL" not in harness.environments[-1]
    )
    analysis.main(["prior", "--model", "model", "--run-model-code"])
    assert "hellaswag,humaneval,ifeval,mmlu,truthfulqa_mc1,winogrande" in harness.commands[-1]
    assert (
        "--confirm_run_unsafe_code" in harness.commands[-1]
        and harness.environments[-1]["HF_ALLOW_CODE_EVAL"] == "1"
    )
    assert "code that the model writes is executed here" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        analysis.main(["prior", "--model", "model", "--tasks", "mmlu", "humaneval"])
    assert "add --run-model-code" in capsys.readouterr().err and len(harness.commands) == 2


def test_command_line(harness, tmp_path, capsys):
    analysis.main(
        [
            "prior",
            "--model",
            "model",
            "--tasks",
            "hellaswag",
            "mmlu",
            "--limit",
            "8",
            "--json",
            str(tmp_path / "prior.json"),
        ]
    )
    printed = capsys.readouterr().out
    assert (
        "lm-eval 0.4.x, no chat template, only 8 questions of each task: no result" in printed
        and "HF_HUB_OFFLINE" not in harness.environments[-1]
    )
    record = json.loads((tmp_path / "prior.json").read_text())
    assert record["lm_eval"] == "0.4.x" and [row["n"] for row in record["rows"]] == [8, 7]
    harness.code = 1
    with pytest.raises(SystemExit, match="the harness ended with status 1"):
        analysis.main(["prior", "--model", "model", "--tasks", "mmlu"])


def test_refusals(tmp_path, capsys, monkeypatch):
    for flags, message in (
        (["--tasks-folder", str(tmp_path)], "needs --tasks"),
        (["--tasks-folder", "nowhere", "--tasks", "x"], "is not a folder"),
    ):
        with pytest.raises(SystemExit):
            analysis.main(["prior", "--model", "model", *flags])
        assert message in capsys.readouterr().err
    monkeypatch.setattr(analysis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install"):
        analysis.main(["prior", "--model", "model"])


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason='needs pip install "lm-eval[hf]"'
)
def test_harness_on_a_local_task_file(tiny_folder, tmp_path, monkeypatch, capsys):
    """Offline, in an empty cache: acc is the share of questions whose gold choice is the likelier
    one; some are, some are not.
    """
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    questions = [
        {"q": f"Question {i}", "choices": ["a", "b"], "gold": i // 2 % 2} for i in range(8)
    ]
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps(question) + "\n" for question in questions)
    )
    (tmp_path / "mine.yaml").write_text(f"""
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/q.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
num_fewshot: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""")
    model, tokenizer = load_model(str(tiny_folder))
    right = []
    for question in questions:
        prompt, likelihoods = tokenizer(question["q"]).input_ids, []
        for choice in question["choices"]:
            ids = tokenizer(question["q"] + " " + choice).input_ids
            with torch.no_grad():
                logprobs_TV = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            likelihoods.append(
                sum(logprobs_TV[t - 1, ids[t]].item() for t in range(len(prompt), len(ids)))
            )
        right.append(likelihoods[question["gold"]] == max(likelihoods))
    assert 0 < sum(right) < len(right)
    analysis.main(
        [
            "prior",
            "--model",
            str(tiny_folder),
            "--tasks-folder",
            str(tmp_path),
            "--tasks",
            "mine",
            "--batch-size",
            "2",
            "--json",
            str(tmp_path / "out.json"),
        ]
    )
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["rows"] == [
        {
            "task": "mine",
            "n": 8,
            "shots": [0],
            "metric": "acc,none",
            "value": sum(right) / 8,
            "stderr": pytest.approx(0.19, abs=0.02),
        }
    ]
    assert record["lm_eval"] in capsys.readouterr().out
