"""The prior benchmarks. Oracles: the command line and the table, written out here; where lm-eval is
installed, the harness itself against log-likelihoods of the choices, summed here from one forward
pass each. Elsewhere a small program named lm_eval takes its place.
"""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import analysis
import prior_tasks
import pytest
import torch
from conftest import tiny_llama, tiny_tokenizer
from tokenizers import processors

from lora import add_adapters
from support.adapters import save_adapter
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


def test_a_tag_stands_for_its_tasks():
    """lm-eval knows ai2_arc, and has results of arc_easy and arc_challenge alone."""
    rows = analysis.read_rows(RESULTS, ["mmlu", "some_tag"])
    assert [row["task"] for row in rows] == ["mmlu", "hellaswag", "mine", "mine"]


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
    model = {"pretrained": "runs/a", "dtype": "auto", "prefix_token_id": 0}
    command, environment = analysis.harness_command(model, ["hellaswag", "mmlu"], "out")
    assert (
        command
        == [
            sys.executable,
            "-m",
            "lm_eval",
            "--model",
            "hf",
            "--model_args",
            "pretrained=runs/a,dtype=auto,prefix_token_id=0",
            "--tasks",
            "hellaswag,mmlu",
            "--batch_size",
            "1",
            "--output_path",
            "out",
            "--num_fewshot",
            "0",
        ]
        and environment == {}
    )
    command, environment = analysis.harness_command(
        model,
        ["x"],
        "out",
        tasks_folder="mine",
        batch_size=4,
        limit=5,
        chat_template=True,
        run_model_code=True,
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
        "--apply_chat_template",
        "--confirm_run_unsafe_code",
    ]
    assert environment == {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_ALLOW_CODE_EVAL": "1",
    }
    with pytest.raises(ValueError, match='"runs/lr=1" has a comma or an equals sign'):
        analysis.harness_command({"pretrained": "runs/lr=1"}, ["x"], "out")


# what takes lm-eval's place: notes its command and environment, and does what the test wrote down
STAND_IN = """
import json, os, sys
from pathlib import Path

here = Path(__file__).resolve().parent
plan = json.loads((here / "plan.json").read_text())
with open(here / "calls.jsonl", "a") as calls:
    calls.write(json.dumps({"command": sys.argv[1:], "environment": dict(os.environ)}) + "\\n")
print(plan["stdout"])
sys.stderr.write(plan["stderr"])
if plan["code"] == 0:
    folder = Path(sys.argv[sys.argv.index("--output_path") + 1]) / "model"
    folder.mkdir()
    (folder / "results_2026.json").write_text(json.dumps(plan["results"]))
sys.exit(plan["code"])
"""


@pytest.fixture
def harness(monkeypatch, tmp_path, tiny_folder):
    """prior(*flags) runs the command on the tiny model with STAND_IN; calls() has its notes."""
    package = tmp_path / "stand-in" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))  # of the harness's process
    monkeypatch.syspath_prepend(package.parent)  # of ours, which looks whether it is there
    monkeypatch.setattr(analysis, "version", lambda name: "0.4.x")
    for name in ("HF_ALLOW_CODE_EVAL", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)

    class Harness:
        def plan(self, code=0, stderr="", stdout="", results=RESULTS):
            plan = {"code": code, "stderr": stderr, "stdout": stdout, "results": results}
            (package / "plan.json").write_text(json.dumps(plan))

        def prior(self, *flags):
            analysis.main(["prior", "--model", str(tiny_folder), *flags])

        def calls(self):
            lines = (package / "calls.jsonl").read_text().splitlines()
            return [json.loads(line) for line in lines]

        def option(self, name):
            command = self.calls()[-1]["command"]
            return command[command.index(name) + 1]

    harness = Harness()
    harness.plan()
    return harness


def test_model_code_is_run_only_on_request(harness, capsys, monkeypatch):
    monkeypatch.setattr(analysis, "read_rows", lambda results, tasks: [])
    monkeypatch.setattr(analysis, "format_benchmarks", lambda rows: "")
    monkeypatch.setattr(analysis, "check_sentence_splitter", lambda: None)
    harness.prior()
    assert (
        harness.option("--tasks") == "hellaswag,ifeval,mmlu,truthfulqa_mc1,winogrande"
        and "humaneval is left out" in capsys.readouterr().out
    )
    assert (
        "--confirm_run_unsafe_code" not in harness.calls()[-1]["command"]
        and "HF_ALLOW_CODE_EVAL" not in harness.calls()[-1]["environment"]
    )
    harness.prior("--run-model-code")
    assert harness.option("--tasks") == "hellaswag,humaneval,ifeval,mmlu,truthfulqa_mc1,winogrande"
    assert (
        "--confirm_run_unsafe_code" in harness.calls()[-1]["command"]
        and harness.calls()[-1]["environment"]["HF_ALLOW_CODE_EVAL"] == "1"
    )
    assert "code that the model writes is executed here" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        harness.prior("--tasks", "mmlu", "humaneval")
    assert "add --run-model-code" in capsys.readouterr().err and len(harness.calls()) == 2


def test_command_line(harness, tmp_path, capsys, tiny_folder):
    file = tmp_path / "prior.json"
    harness.prior("--tasks", "hellaswag", "mmlu", "--limit", "8", "--json", str(file))
    printed = capsys.readouterr().out
    assert "lm-eval 0.4.x, no chat template, dtype auto, only the first 8 questions of" in printed
    assert "HF_HUB_OFFLINE" not in harness.calls()[-1]["environment"]
    # the tiny tokenizer has the markers of ChatML and no <|endoftext|>
    assert "a text without a context starts with <|im_start|> (prefix_token_id=0)" in printed
    arguments = f"pretrained={tiny_folder},dtype=auto,prefix_token_id=0"
    assert harness.option("--model_args") == arguments
    summary = json.loads(file.read_text())["summary"]
    assert [row["n"] for row in summary.pop("rows")] == [8, 7]
    assert summary == {
        "lm_eval": "0.4.x",
        "chat_template": False,
        "dtype": "auto",
        "prefix_token_id": 0,
        "prefix_token": "<|im_start|>",
        "limit": 8,
    }
    harness.prior("--tasks", "mmlu", "--chat-template", "--dtype", "bfloat16")
    assert "dtype=bfloat16" in harness.option("--model_args")
    assert "--apply_chat_template" in harness.calls()[-1]["command"]
    assert "0.4.x, the chat template, dtype bfloat16\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "flags", "expected"),
    [("cpu", [], "1"), ("cuda", [], "auto"), ("cpu", ["--batch-size", "8"], "8")],
)
def test_batch_size(harness, monkeypatch, device, flags, expected):
    """On a CPU "auto" tries sizes for minutes: 112 s for four questions that take 18 with 1."""
    monkeypatch.setattr(analysis, "best_device", lambda: device)
    harness.prior("--tasks", "mmlu", *flags)
    assert harness.option("--batch_size") == expected


# the end of what lm-eval 0.4.13 with datasets 5.2.0 writes on a machine without a network
OFFLINE = """\
2026-11-27:19:06:07 INFO     [_cli.run:392] Selected Tasks: ['winogrande']
Loading weights: 100%|#| 272/272\rRetrying in 1s [Retry 1/5].
Traceback (most recent call last):
  File "site-packages/datasets/load.py", line 1115, in dataset_module_factory
    raise ConnectionError(f"Couldn't reach '{path}' on the Hub ({e.__class__.__name__})") from e
ConnectionError: Couldn't reach 'allenai/winogrande' on the Hub (LocalEntryNotFoundError)
"""


def test_without_a_hub_one_line_says_what_to_give(harness, capsys):
    harness.plan(code=1, stderr=OFFLINE)
    what = (
        r"^error: the harness cannot reach allenai/winogrande on the hub, .*--tasks-folder FOLDER"
    )
    with pytest.raises(SystemExit, match=what):
        harness.prior("--tasks", "winogrande")
    shown = capsys.readouterr().err
    assert shown == OFFLINE[: OFFLINE.index("Traceback")]


def test_another_failure_is_shown_whole(harness, capsys):
    trace = "Traceback (most recent call last):\n  ...\nValueError: of the harness\n"
    harness.plan(code=3, stderr="before\n" + trace)
    with pytest.raises(SystemExit, match="^error: the harness ended with status 3 and 0 results"):
        harness.prior("--tasks", "mmlu")
    assert capsys.readouterr().err == "before\n" + trace
    harness.plan(stderr=trace)  # a traceback that was only logged
    harness.prior("--tasks", "mmlu")
    assert capsys.readouterr().err == trace


def test_refusals(harness, tmp_path, capsys, monkeypatch):
    for flags, message in (
        (["--tasks-folder", str(tmp_path)], "needs --tasks"),
        (["--tasks-folder", "nowhere", "--tasks", "x"], "is not a folder"),
        (["--batch-size", "0"], "--batch-size 0: it must be auto or a number of at least 1"),
        (["--batch-size", "many"], "--batch-size many: it must be auto or a number of at least 1"),
    ):
        with pytest.raises(SystemExit):
            harness.prior(*flags)
        assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match='^error: model ".*empty" cannot be loaded: '):
        analysis.main(["prior", "--model", str(tmp_path / "empty"), "--tasks", "mmlu"])
    monkeypatch.setattr(analysis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SystemExit, match="needs the .* lm-eval; pip install -r requirements-extras"
    ):
        harness.prior()


def test_ifeval_is_not_begun_without_its_sentence_splitter(harness, monkeypatch):
    """lm-eval would write all answers first, and then fail."""
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(SystemExit, match="^error: ifeval needs nltk and more; pip install -r req"):
        harness.prior("--tasks", "ifeval")
    asked = []

    def find(name):
        asked.append(name)
        raise LookupError(name)

    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace(data=SimpleNamespace(find=find)))
    with pytest.raises(SystemExit, match="set NLTK_DATA to a folder with tokenizers/punkt_tab"):
        harness.prior("--tasks", "ifeval")
    assert asked == ["tokenizers/punkt_tab/english"]


# ---- the token before a text without a context ----


def with_tokens(*texts, bos="<|im_start|>"):
    """The tiny tokenizer, whose ids 0 and 1 are <|im_start|> and <|im_end|>, with more tokens."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(texts)})
    tokenizer.bos_token = bos
    return tokenizer


def test_start_of_text():
    size = len(tiny_tokenizer())
    assert analysis.start_of_text(with_tokens("<|endoftext|>")) == size  # SmolLM2
    assert analysis.start_of_text(with_tokens("<|endoftext|>", bos=None)) == size  # Qwen 2.5
    assert analysis.start_of_text(with_tokens("<s>")) == 0  # bos, as lm-eval
    assert analysis.start_of_text(with_tokens("<s>", bos=None)) == 1  # eos, as lm-eval
    writes_it = with_tokens("<|endoftext|>", "<s>", bos="<s>")  # Llama
    writes_it.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", size + 1)]
    )
    assert analysis.start_of_text(writes_it) == size + 1


# ---- adapters ----


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    """A random adapter of the tiny model, without a tokenizer of its own."""
    model, _ = load_model(str(tiny_folder))
    add_adapters(model, rank=4, alpha=32)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    save_adapter(tmp_path / "adapter", model, tiny_folder)
    return tmp_path / "adapter"


def test_an_adapter_is_handed_on_with_its_base(adapter, tiny_folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        analysis.importlib.util, "find_spec", lambda name: name == "peft" or found(name)
    )
    given = {"pretrained": str(tiny_folder), "dtype": "auto", "peft": adapter}
    expected = given | {"tokenizer": str(tiny_folder), "prefix_token_id": 0}
    assert analysis.harness_model(str(adapter)) == (expected, "<|im_start|>")
    tiny_tokenizer().save_pretrained(adapter)
    arguments, _ = analysis.harness_model(str(adapter))
    assert arguments == expected | {"tokenizer": adapter}

    monkeypatch.setattr(analysis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="is an adapter, for which lm-eval needs peft; pip install"
    ):
        analysis.harness_model(str(adapter))
    shutil.rmtree(adapter / "tokenizer_config.json", ignore_errors=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = ""
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded: .*names no base_model_name_or_path"):
        analysis.harness_model(str(adapter))


# ---- the harness itself ----

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs: pip install lm-eval[ifeval]==0.4.13"
)


def logprob(model, ids, start):
    """The log-probability of ids[start:] after ids[:start], from one forward pass."""
    with torch.no_grad():
        logprobs_TV = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return sum(logprobs_TV[t - 1, ids[t]].item() for t in range(start, len(ids)))


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))


def write_task(folder, questions, text):
    """A task file of multiple choice, named mine; the context is a template of a question."""
    lines = [json.dumps(question) + "\n" for question in questions]
    (folder / "q.jsonl").write_text("".join(lines))
    (folder / "mine.yaml").write_text(f"""
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/q.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{text}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
num_fewshot: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""")


def prior_of(model, folder, task, *flags):
    """The rows of one task of a folder of tasks."""
    file = folder / "out.json"
    local = ["--tasks-folder", str(folder), "--tasks", task, "--json", str(file)]
    analysis.main(["prior", "--model", str(model), *local, *flags])
    return json.loads(file.read_text())["summary"]["rows"]


@needs_harness
def test_harness_on_a_local_task_file(tiny_folder, tmp_path, empty_cache):
    """Offline, in an empty cache: acc is the share of questions whose gold choice is the likelier
    one; some are, some are not.
    """
    questions = [
        {"q": f"Question {i}", "choices": ["a", "b"], "gold": i // 2 % 2} for i in range(8)
    ]
    write_task(tmp_path, questions, "{{q}}")
    model, tokenizer = load_model(str(tiny_folder))
    right = []
    for question in questions:
        start = len(tokenizer(question["q"]).input_ids)
        likelihoods = [
            logprob(model, tokenizer(f"{question['q']} {choice}").input_ids, start)
            for choice in question["choices"]
        ]
        right.append(likelihoods[question["gold"]] == max(likelihoods))
    assert 0 < sum(right) < len(right)
    assert prior_of(tiny_folder, tmp_path, "mine", "--batch-size", "2") == [
        {
            "task": "mine",
            "n": 8,
            "shots": [0],
            "metric": "acc,none",
            "value": sum(right) / 8,
            "stderr": pytest.approx(0.19, abs=0.02),
        }
    ]


@needs_harness
def test_harness_starts_an_empty_context_with_the_chosen_token(tmp_path, empty_cache):
    """Each question has the choice that is likelier after <|endoftext|> first and, as its gold, the
    one that is likelier after <|im_start|>, where those differ: acc is 0 of 8, and would be 8 of 8.
    """
    tokenizer = with_tokens("<|endoftext|>")
    model = tiny_llama(vocab_size=len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    neutral, role = len(tokenizer) - 1, 0
    questions = []
    for i in range(400):
        choices = [f"{i} b", f"{i + 1} c"]
        by_start = []
        for first in (neutral, role):
            # lm-eval puts a blank between a context, here an empty one, and each choice
            rows = [[first, *tokenizer(f" {choice}").input_ids] for choice in choices]
            likelihoods = [logprob(model, ids, 1) for ids in rows]
            by_start.append(likelihoods.index(max(likelihoods)))
        if by_start[0] != by_start[1]:
            questions.append({"choices": choices, "gold": by_start[1]})
    assert len(questions) >= 8
    write_task(tmp_path, questions[:8], "")
    [row] = prior_of(tmp_path / "model", tmp_path, "mine")
    assert row["value"] == 0.0


@needs_harness
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs: pip install peft")
def test_harness_adds_an_adapter(adapter, tiny_folder, tmp_path, empty_cache):
    """acc is 1 where each gold choice is the one that base and adapter prefer, and the base does
    not.
    """
    base, tokenizer = load_model(str(tiny_folder))
    adapted, _ = load_model(str(adapter))
    questions = []
    for i in range(120):
        prompt, choices, best = f"Question {i}", ["a", "b", "c"], []
        for model in (base, adapted):
            rows = [tokenizer(f"{prompt} {choice}").input_ids for choice in choices]
            likelihoods = [logprob(model, ids, len(tokenizer(prompt).input_ids)) for ids in rows]
            best.append(likelihoods.index(max(likelihoods)))
        if best[0] != best[1]:
            questions.append({"q": prompt, "choices": choices, "gold": best[1]})
    assert len(questions) >= 8
    write_task(tmp_path, questions[:8], "{{q}}")
    [row] = prior_of(adapter, tmp_path, "mine", "--dtype", "float32")
    assert row["value"] == 1.0
    [row] = prior_of(tiny_folder, tmp_path, "mine", "--dtype", "float32")
    assert row["value"] == 0.0


# ---- local tasks from public files ----

WINOGRANDE = [
    {
        "context_options": ["Al met Bo and Al", "Al met Bo and Bo"],
        "continuation": "left.",
        "gold": 1,
    },
    {"context_options": ["The cup is red, so the cup", "The cup is red, so the tea"]}
    | {"continuation": "is hot.", "gold": 0},
    {"context_options": ["One, so it", "One, so they"], "continuation": "went away.", "gold": 0},
]
TRUTHFULQA = [
    {"question": "Is it?", "mc1_targets": {"It is.": 1, "It isn't.": 0, "Who knows?": 0}},
    {"question": "How many?", "mc1_targets": {"Two.": 1, "Three.": 0}},
]
IFEVAL = [{"key": 7, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"]}]
IFEVAL[0]["kwargs"] = [{}]


def write_public(folder):
    """The flags of prior_tasks.py for three public files."""
    files = {name: folder / f"public-{name}" for name in ("winogrande", "truthfulqa", "ifeval")}
    for name, records in (("winogrande", WINOGRANDE), ("ifeval", IFEVAL)):
        files[name].write_text("".join(json.dumps(record) + "\n" for record in records))
    files["truthfulqa"].write_text(json.dumps(TRUTHFULQA))
    return [part for name, file in files.items() for part in (f"--{name}", str(file))]


def test_public_files_become_the_records_of_the_hub(harness, tmp_path):
    """The fields that lm-eval's task files read; harness gives the stand-in for its folder."""
    with pytest.raises(SystemExit, match="winogrande/default.yaml is not there, so this lm-eval"):
        prior_tasks.main([str(tmp_path / "tasks"), *write_public(tmp_path)])
    tasks = tmp_path / "stand-in" / "lm_eval" / "tasks"
    for path, _ in prior_tasks.TASKS.values():
        (tasks / path).parent.mkdir(parents=True)
        (tasks / path).touch()
    prior_tasks.main([str(tmp_path / "tasks"), *write_public(tmp_path)])

    def lines(name):
        return [json.loads(line) for line in (tmp_path / "tasks" / name).read_text().splitlines()]

    assert lines("winogrande.jsonl")[0] == {
        "sentence": "_ left.",
        "option1": "Al met Bo and Al",
        "option2": "Al met Bo and Bo",
        "answer": "2",
    }
    assert lines("truthfulqa_mc1.jsonl")[1] == {
        "question": "How many?",
        "mc1_targets": {"choices": ["Two.", "Three."], "labels": [1, 0]},
    }
    assert lines("ifeval.jsonl") == IFEVAL
    config = json.loads((tmp_path / "tasks" / "ifeval.yaml").read_text())
    assert config["include"] == str(tasks / "ifeval" / "ifeval.yaml")
    assert config["dataset_kwargs"]["data_files"] == {"train": f"{tmp_path}/tasks/ifeval.jsonl"}


def test_what_is_wrong_in_a_public_file_is_named(harness, tmp_path, capsys):
    def refused(flag, text):
        (tmp_path / "file").write_text(text)
        with pytest.raises(SystemExit) as stopped:
            prior_tasks.main([str(tmp_path / "tasks"), flag, str(tmp_path / "file")])
        return str(stopped.value)

    start = f"error: {tmp_path}/file cannot be read as the public file of"
    assert refused("--winogrande", "{}\n") == f"{start} winogrande: has no field 'context_options'"
    assert refused("--ifeval", "no\n").startswith(f"{start} ifeval: Expecting value")
    second = [{"question": "Is it?", "mc1_targets": {"No.": 0, "Yes.": 1}}]
    assert '"Is it?" has the labels (0, 1)' in refused("--truthfulqa", json.dumps(second))
    with pytest.raises(SystemExit):
        prior_tasks.main([str(tmp_path / "tasks")])
    assert "give at least one of --winogrande" in capsys.readouterr().err


@needs_harness
def test_harness_on_public_files(tiny_folder, tmp_path, empty_cache):
    """Winogrande: the continuation is scored after either context. TruthfulQA: each choice is
    scored after six questions and answers, which are lm-eval's, and the question.
    """
    prior_tasks.main([str(tmp_path / "tasks"), *write_public(tmp_path)])
    model, tokenizer = load_model(str(tiny_folder))

    def best(pairs):
        likelihoods = []
        for context, continuation in pairs:
            ids = tokenizer(f"{context} {continuation}").input_ids
            likelihoods.append(logprob(model, ids, len(tokenizer(context).input_ids)))
        return likelihoods.index(max(likelihoods))

    right = [
        best((context, record["continuation"]) for context in record["context_options"])
        == record["gold"]
        for record in WINOGRANDE
    ]
    [row] = prior_of(tiny_folder, tmp_path / "tasks", "winogrande", "--dtype", "float32")
    assert row["n"] == 3 and row["value"] == pytest.approx(sum(right) / 3)

    harness = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks" / "truthfulqa"
    shots = re.search(r"prompt_qa = '(.*?)'%", (harness / "truthfulqa_mc1.yaml").read_text(), re.S)
    shots = shots[1].replace("\\\n", "").replace("\\n", "\n")
    shots = re.sub(r"^ +", "", shots, flags=re.M)
    assert shots.startswith("Q: What is human life expectancy") and shots.count("\nA: ") == 6
    right = [
        best((f"{shots}\n\nQ: {record['question']}\nA:", c) for c in record["mc1_targets"]) == 0
        for record in TRUTHFULQA
    ]
    [row] = prior_of(tiny_folder, tmp_path / "tasks", "truthfulqa_mc1", "--dtype", "float32")
    assert row["n"] == 2 and row["value"] == pytest.approx(sum(right) / 2)
