"""Named experiments: runs, grids, sequences, tables. Oracles: records and figures worked out by
hand; the sizes of the paper's grids; what each stage's own run reports of the same weights.
"""

import gzip
import json
import re
import subprocess

import analysis
import experiments
import pytest
from conftest import ROOT

import eval as evaluation
import sdft
from data import load_task

TINY = (
    "sdft.py --force --preset laptop --steps 2 --batch-size 2 --max-new-tokens 4 "
    "--max-prompt-tokens 1000 --max-teacher-prompt-tokens 1500 "
    "--eval-examples 2 --general-tokens 4 --learning-rate 0.01 --skip-first-tokens 0 "
)


AT_BASE = {"before": {"test": {"drift_from_base": 0.0}}}  # where a run's curve begins


@pytest.fixture
def lab(tmp_path):
    """Runs the command on a list of experiments given as TOML, in folders of its own."""

    def run(toml, *arguments):
        (tmp_path / "list.toml").write_text(toml)
        folders = {"--list": "list.toml", "--results": "results", "--runs": "runs"}
        flags = [word for flag, name in folders.items() for word in (flag, str(tmp_path / name))]
        experiments.main([*arguments, *flags, "--docs", str(tmp_path)])

    def store(**records):
        (tmp_path / "results").mkdir()
        for name, record in records.items():
            (tmp_path / "results" / f"{name}.json").write_text(json.dumps(record))

    def table(mark, toml):
        """The lines that --tables writes for <!-- mark -->."""
        document = tmp_path / "tables.md"
        document.write_text(f"<!-- {mark} -->\n<!-- end -->\n")
        run(toml, "--tables")
        return document.read_text().splitlines()[1:-1]

    run.folder, run.store, run.table = tmp_path, store, table
    run.result = lambda name: json.loads((tmp_path / "results" / f"{name}.json").read_text())
    return run


@pytest.fixture
def scripts(monkeypatch):
    """Names of the scripts that were run; they run in this process, with a short probe."""
    asked = []

    def run_script(words, thinned_run=None):
        asked.append(words[0])
        short = ["--limit", "3"] if words[0] == "eval.py" else []
        {"sdft.py": sdft.main, "eval.py": evaluation.main}[words[0]](words[1:] + short)

    monkeypatch.setattr(experiments, "run_script", run_script)
    return asked


def report(correct, drift=0.0):
    return {
        "n": 64,
        "correct": correct,
        "well_formed": 1.0,
        "finished": 1.0,
        "completion_tokens": 14.0,
        "drift_from_base": drift,
    }


# ---- one run ----


def test_a_finished_run_is_recorded_and_skipped(tiny_folder, lab, scripts, capsys):
    flags = f"--task science --model {tiny_folder} --eval-every 1"
    toml = f'[tiny]\ncommand = "{TINY} {flags}"\nseeds = [0, 3]\nweights = "random"\n'
    lab(toml, "tiny")
    # a run each, and probes of the base, of its last weights, and of its best if they are others
    assert scripts.count("sdft.py") == 2 and scripts[:2] == ["sdft.py", "eval.py"]
    record = lab.result("tiny")
    assert list(record) == ["command", "weights", "machine", "runs"]
    assert record["weights"] == "random"
    assert record["command"].startswith("python sdft.py --force --preset laptop")
    assert [run["seed"] for run in record["runs"]] == [0, 3]
    for run in record["runs"]:
        assert [entry["step"] for entry in run["curve"]] == [1, 2]
        assert {"correct", "drift_from_base"} <= run["curve"][0].keys()
        assert run["before"]["probe"]["n"] == run["last"]["probe"]["n"] == 3
        assert run["config"]["seed"] == run["seed"] and run["config"]["output"] is None
        assert str(lab.folder) not in json.dumps(run["config"] | {"model": None})
        assert "machine" not in run and run["training_flops"] > 0
    assert scripts.count("eval.py") == sum(2 + ("best" in run) for run in record["runs"])
    assert not list((lab.folder / "runs").glob("tiny*"))
    for run in record["runs"]:  # the stored answers give the figures again
        file = lab.folder / "results" / "answers" / f"tiny-seed{run['seed']}.jsonl.gz"
        with gzip.open(file, "rt") as lines:
            for line in lines:
                assert list(json.loads(line)) == ["when", "set", "id", "text"]
        rescored = dict(analysis.rescore(file, "science"))
        assert {"test, before", "validation, step 1", "test, last"} <= rescored.keys()
        assert rescored["test, last"]["correct"] == run["last"]["test"]["correct"]
        assert rescored["test, last"]["artefacts"] == run["last"]["test"]["artefacts"]
        probes = dict(analysis.rescore(file, "probe"))
        assert probes["probe, test, before"]["n"] == 3

    lab(toml, "tiny")
    assert scripts.count("sdft.py") == 2
    capsys.readouterr()
    lab(toml.replace("[0, 3]", "[0, 3, 4]"))
    assert capsys.readouterr().out.startswith("2 done, 1 to do  tiny: python sdft.py --force")
    changed = toml.replace("--eval-every 1", "--eval-every 2")
    with pytest.raises(ValueError, match="tiny.json is of another command"):
        lab(changed, "tiny")
    lab(changed)
    assert "tiny.json is of another command" in capsys.readouterr().out


def test_a_script_runs_in_a_process_of_its_own(tmp_path, capfd):
    (tmp_path / "script.py").write_text("import sys; print(sys.argv[1:])")
    experiments.run_script([str(tmp_path / "script.py"), "--flag", "two words"])
    printed = capfd.readouterr().out
    assert "script.py --flag 'two words'" in printed and "['--flag', 'two words']" in printed


def test_training_flops():
    """8 rows and 1000 parameters: the student samples and trains on 13 tokens (2 + 6), the teacher
    reads 23 (2). SFT trains alone; teacher-kd does not sample.
    """
    metrics = [{"prompt_tokens": 10, "teacher_prompt_tokens": 20, "completion_tokens": 3}]
    config = {"batch_size": 8, "rollouts_per_prompt": 1}
    results = {"parameters": 1000, "config": config, "method": "sdft"}

    def flops(**changes):
        return experiments.training_flops(metrics, results | changes)

    assert flops() == flops(method="reinvoke") == 8 * 1000 * (8 * 13 + 2 * 23)
    assert flops(method="sft") == 8 * 1000 * 6 * 13
    assert flops(method="teacher-kd") == 8 * 1000 * (6 * 13 + 2 * 23)
    assert flops(config=config | {"rollouts_per_prompt": 3}) == 3 * flops()
    # of adapters backward passes through 1000 parameters, and has gradients of 10
    assert flops(method="sft", trained_parameters=10) == 8 * (4 * 1000 + 2 * 10) * 13


@pytest.mark.parametrize("checkpoints", [[], ["checkpoint-000001", "checkpoint-000002"]])
def test_an_unfinished_run_is_resumed_or_begun_anew(checkpoints, tmp_path, monkeypatch):
    """The run is replaced by one that fails, as after a no-go."""
    folder, commands = tmp_path / "science-seed0", []
    for name in checkpoints:
        (folder / name).mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    (folder / "before.json").write_text("{}")
    monkeypatch.setattr(experiments, "run_script", lambda words, thinned: commands.append(words))
    with pytest.raises(ValueError, match="science-seed0 did not end.* After a no-go add --force"):
        experiments.train(["sdft.py", "--task", "science"], folder)
    anew = ["sdft.py", "--task", "science", "--output", str(folder)]
    assert commands == [["sdft.py", "--resume", str(folder)] if checkpoints else anew]
    assert folder.exists() == bool(checkpoints)


def test_older_checkpoints_of_a_thinned_run_keep_the_student_alone(tmp_path, monkeypatch):
    class Process:
        """Runs on at the first look, is interrupted at the second, has ended at the third."""

        returncode, looks = None, 0

        def wait(self, timeout):
            self.looks += 1
            if self.looks == 1:
                raise subprocess.TimeoutExpired("sdft.py", timeout)
            if self.looks == 2:
                raise KeyboardInterrupt
            self.returncode = 0

    monkeypatch.setattr(experiments.subprocess, "Popen", lambda _: Process())
    kept = ["optimizer.safetensors", "student/model.safetensors", "teacher/model.safetensors"]
    for step in (1, 2):
        for file in kept:
            path = tmp_path / f"checkpoint-{step:06d}" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    experiments.run_script(["sdft.py"])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6
    experiments.run_script(["sdft.py"], tmp_path)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.safetensors"))
    assert files == [
        "checkpoint-000001/student/model.safetensors",
        *(f"checkpoint-000002/{file}" for file in kept),
    ]


def test_a_command_may_take_an_earlier_experiments_weights(lab, monkeypatch):
    """Weights that a command names are kept, those of its own seed are taken, and measured files
    leave summary and machine.
    """
    commands = []

    def run_script(words, thinned=None):
        commands.append(words)
        file = lab.folder / "runs" / "passes-seed2" / "measured.json"
        answers = [{"id": "a", "answer": "A\n"}] if words[0] == "eval.py" else []
        measured = {"summary": {"pass@1": 0.5}, "machine": "m", "answers": answers}
        file.write_text(json.dumps(measured))

    monkeypatch.setattr(experiments, "run_script", run_script)
    toml = """[passes]
    command = "extras/analysis.py pass-at-k --model {first} --k 1"
    seeds = [2]
    [first]
    command = "sdft.py"
    """
    with pytest.raises(ValueError, match="starts from the weights of first, seed2: .*first-seed2"):
        lab(toml, "passes")
    weights = lab.folder / "runs" / "first-seed2" / "last"
    weights.mkdir(parents=True)
    lab(toml, "passes")
    words = ["extras/analysis.py", "pass-at-k", "--model", str(weights), "--k", "1", "--seed", "2"]
    assert commands[0][:-2] == words
    assert lab.result("passes") == {
        "command": "python extras/analysis.py pass-at-k --model {first} --k 1",
        "machine": "m",
        "runs": [{"seed": 2, "summary": {"pass@1": 0.5}}],
    }
    assert weights.exists() and not (lab.folder / "runs" / "passes-seed2").exists()
    answers = lab.folder / "results" / "answers" / "passes-seed2.jsonl.gz"
    assert not answers.exists()
    (lab.folder / "results" / "passes.json").unlink()
    lab(toml.replace("extras/analysis.py pass-at-k", "eval.py --split ood"), "passes")
    assert analysis.read_stored(answers) == {("measured", "ood"): {"a": "A\n"}}


@pytest.mark.parametrize(
    "toml, message",
    [
        (
            "[a]\nseeds = [0]",
            r"\[a\] has seeds; it needs a command, and may have every, flags, grid",
        ),
        ('[a]\ncommand = "sdft.py"\nseed = 1', r"\[a\] has command, seed; it needs a command"),
        ('[a]\ncommand = "sdft.py --model {b}"', r"\[a\] needs {b}, which is not in the file"),
        (
            '[a]\ncommand = "sdft.py --preset laptop"\ngrid = {learning-rate = [1e-5, -1]}',
            "learning-rate is -1",
        ),
        (
            '[a]\ncommand = "baselines.py --method sft --preset laptop --teacher ema"',
            "--teacher is ema; --method sft fixes it to none",
        ),
        ('[a]\ncommand = "sdft.py --estimator rb --preset laptop"', "--estimator rb"),
        (
            '[a]\ncommand = "sdft.py --preset laptop"\ntasks = ["science", "medical"]\nevery = 0',
            "every = 0; it must be 1 or more",
        ),
        ('[a]\ncommand = "sdft.py"\ntasks = ["science"]', "a sequence is two tasks or more"),
        ('[b]\ncommand = "sdft.py"', "no name in .*list.toml begins with a"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_first_run(toml, message, lab, monkeypatch):
    monkeypatch.setattr(experiments, "run_piece", lambda *_: pytest.fail("a run was started"))
    with pytest.raises((ValueError, SystemExit), match=message):
        lab(toml, "a")


# ---- grids ----


def test_the_papers_grids_have_their_sizes():
    """Tables 3 and 4, counted by hand; every name in the list can be run."""
    listed = experiments.read_experiments(ROOT / "results" / "experiments.toml")
    sizes = {
        name.removeprefix("grid-"): len(experiments.pieces(listed[name]))
        for name in listed
        if name.startswith("grid-")
    }
    assert sizes == {
        "science-sdft": 3 * 3 * 2 * 3,
        "science-sft": 3 * 3 * 2,
        "science-dft": 3 * 3 * 2,
        "knowledge-sdft": 3 * 3 * 3 * 3,
        "knowledge-sft": 3 * 3 * 2,
        "knowledge-cpt": 3 * 4,
    }
    pieces = experiments.pieces(listed["grid-science-sft"])
    words = [" ".join(experiments.words_of(listed["grid-science-sft"], piece)) for piece in pieces]
    assert len(set(words)) == 18 and words[0] == (
        "baselines.py --method sft --task science --preset paper --data DATA "
        "--learning-rate 5e-06 --batch-size 16 --epochs 1 --seed 0"
    )


def test_the_best_by_validation_comes_first(lab, monkeypatch, capsys):
    """Two seeds. 1e-5: 0.75 and 0.25 at best, mean 0.5; 2e-5: 0.5 and 0.75, mean 0.625; 3e-5 is
    equal to that in correct, and better in lenient. What is done is not repeated.
    """
    best = {(1e-5, 0): 0.75, (1e-5, 1): 0.25, (2e-5, 0): 0.5, (2e-5, 1): 0.75}
    ran = []

    def train(words, folder):
        rate, seed = (words[words.index(flag) + 1] for flag in ("--learning-rate", "--seed"))
        ran.append((float(rate), int(seed)))

    def read_run(folder, probed):
        assert not probed
        score = best.get(ran[-1], 0.625)
        lenient = 1.0 if ran[-1][0] == 3e-5 else 0.5
        first = {"step": 1, "correct": score, "lenient": lenient}
        return {"machine": "m", "curve": [first, {"step": 2, "correct": 0.0, "lenient": 1.0}]}

    monkeypatch.setattr(experiments, "train", train)
    monkeypatch.setattr(experiments, "read_run", read_run)
    monkeypatch.setattr(experiments.shutil, "rmtree", lambda *_: None)
    toml = """[grid]
    command = "sdft.py --task knowledge --preset laptop"
    seeds = [0, 1]
    grid = {learning-rate = [1e-5, 2e-5, 3e-5]}
    """
    lab(toml.replace(", 3e-5", ""), "grid")
    lab(toml, "grid")
    assert ran == [*best, (3e-5, 0), (3e-5, 1)]
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in lines] == ["62.5%", "62.5%", "50.0%"]
    assert [line.split()[-1] for line in lines] == ["3e-05", "2e-05", "1e-05"]
    with pytest.raises(ValueError, match="--eval-every of 1 or more"):
        experiments.best_validation({"curve": []})
    unjudged, judged = {"not_judged": 1.0}, {"not_judged": 0.0, "correct": 0.25, "lenient": 0.5}
    assert experiments.best_validation({"curve": [judged, unjudged]}) == [0.25, 0.5]
    with pytest.raises(ValueError, match="a server that answers"):
        experiments.best_validation({"curve": [unjudged]})


# ---- sequences ----


def test_forgetting_and_transfer_by_hand():
    """Task 1 falls from its best 0.8 (after stage 2) to 0.5, task 2 rises from 0.4 to 0.6:
    forgetting (0.3 - 0.2) / 2 = 0.05. Relative to their own stages, 0.7 and 0.4, the changes are
    -0.2 and +0.2: transfer 0.
    """
    A = [[0.7, 0.1, 0.9], [0.8, 0.4, 0.2], [0.5, 0.6, 0.3]]
    assert experiments.forgetting(A) == pytest.approx(0.05)
    assert experiments.backward_transfer(A) == pytest.approx(0)
    assert experiments.forgetting([[0.7, 0.1], [0.2, 0.9]]) == pytest.approx(0.5)
    assert experiments.backward_transfer([[0.7, 0.1], [0.2, 0.9]]) == pytest.approx(-0.5)


def test_a_sequence_and_again(tiny_folder, lab, scripts, monkeypatch):
    few = {"probe": 6, "general": None}
    monkeypatch.setattr(experiments, "load_task", lambda *names: load_task(*names)[: few[names[0]]])
    evaluated, evaluate_all, results = [], experiments.evaluate_all, {}
    monkeypatch.setattr(
        experiments,
        "evaluate_all",
        lambda model, *more: evaluated.append(model) or evaluate_all(model, *more),
    )
    toml = f"""[both]
    command = "{TINY} --eval-every 0 --model {tiny_folder}"
    tasks = ["science", "knowledge"]
    every = 1
    """
    lab(toml, "both", "--keep-weights")
    folder = lab.folder / "runs" / "both-seed0"
    stages = ["stage-1-science", "stage-2-knowledge"]
    for stage in stages:
        results[stage] = json.loads((folder / stage / "results.json").read_text())
    record = lab.result("both")
    assert list(record) == ["command", "tasks", "every", "machine", "runs"]
    [run] = record["runs"]
    places = [(done["stage"], done["task"], done["step"]) for done in run["evaluations"]]
    assert places == [
        (1, "science", 1),
        (1, "science", 2),
        (2, "knowledge", 3),
        (2, "knowledge", 4),
    ]
    assert results[stages[0]]["config"]["model"] == str(tiny_folder)
    assert results[stages[1]]["config"]["model"] == str(folder / stages[0] / "last")

    scores = [done["scores"] for done in run["evaluations"]]
    for found, stage, when in [
        (run["before"], stages[0], "before"),
        (scores[1], stages[0], "last"),
        (scores[1], stages[1], "before"),
        (scores[3], stages[1], "last"),
    ]:
        for name, summary in results[stage][when].items():
            own, drift = dict(found[f"{stage[8:]}, {name}"]), summary.pop("drift_from_base")
            del summary["same_opening"]  # a run watches it, a sequence does not
            # a stage measures its drift from where it began, the sequence from where all began
            assert stage == stages[1] or own["drift_from_base"] == pytest.approx(drift, abs=1e-5)
            assert own == summary | {"drift_from_base": own["drift_from_base"]}
    drifts = [done["scores"]["probe"]["drift_from_base"] for done in run["evaluations"]]
    assert abs(run["before"]["probe"]["drift_from_base"]) < 1e-5 < min(drifts)
    assert run["before"]["probe"]["n"] == 6
    weights = ("checkpoint-000001/student", "last")
    assert evaluated == [str(tiny_folder)] + [folder / s / w for s in stages for w in weights]
    assert not list(folder.glob("*/checkpoint-*"))
    answers = lab.folder / "results" / "answers" / "both-seed0.jsonl.gz"
    rescored = dict(analysis.rescore(answers, "science") + analysis.rescore(answers, "probe"))
    for when, own in (("before", run["before"]), ("step 2", scores[1]), ("step 4", scores[3])):
        assert rescored[f"science, test, {when}"]["correct"] == own["science, test"]["correct"]
        assert rescored[f"probe, test, {when}"]["n"] == 6

    # as if it had been stopped before the last evaluation
    state = json.loads((folder / "sequence.json").read_text())
    state["evaluations"].pop()
    (folder / "sequence.json").write_text(json.dumps(state))
    (lab.folder / "results" / "both.json").unlink()
    monkeypatch.setattr(
        experiments, "run_script", lambda *_: pytest.fail("a finished stage was run again")
    )
    lab(toml, "both")
    assert len(evaluated) == 6 and evaluated[-1] == folder / stages[1] / "last"
    again = lab.result("both")["runs"][0]["evaluations"]
    assert [done["scores"] for done in again] == scores and not folder.exists()


def test_a_sequence_may_have_a_folder_for_each_task():
    words = "baselines.py --method sft --preset laptop --data sets/{task} --seed 1".split()
    experiment = {"flags": {"medical": "--steps 7"}}
    config = experiments.parse_command(experiments.stage_words(words, "medical", experiment))
    assert (config.task, config.data, config.seed) == ("medical", "sets/medical", 1)
    assert config.steps == 7
    other = experiments.parse_command(experiments.stage_words(words, "science", experiment))
    assert (other.task, other.data, other.steps) == ("science", "sets/science", 50)


# ---- tables ----


def test_cells():
    """Values 0.1, 0.1, 0.3, 0.3: mean 0.2, standard deviation 0.1155, t = 3.182, so half of the
    interval is 0.1155 x 3.182 / sqrt(4) = 0.184.
    """
    cell = experiments.cell
    assert cell([0.1, 0.2, 0.3], "correct") == "10.0, 20.0, 30.0 %"
    assert cell([0.1, 0.1, 0.3, 0.3], "correct") == "20.0 ± 18.4 %"
    assert cell([0.5], "correct") == "50.0 %" and cell([12.34], "completion tokens") == "12.3"
    assert cell([1.6e12], "TFLOP") == "2" and cell([0.0123], "drift from base") == "0.012"
    assert cell([None], "lenient") == "" and cell([None, 0.5], "correct") == "50.0 % (1 of 2 seeds)"


def test_one_row_for_each_method(lab):
    """Two seeds, right in 0.5 and 0.7 of the questions; best weights have no row."""

    def run(last, **more):
        return {
            "config": {"task": "science"},
            "before": {"test": report(0.125), "probe": {"correct": 0.6}},
            "last": {"test": report(last, 0.05), "probe": {"correct": 0.5}},
            "training_flops": 9.4e12,
        } | more

    best = {"best": {"test": report(0.5, 0.04), "probe": {"correct": 0.5}}}
    lab.store(science={"runs": [run(0.5), run(0.7, **best)]}, other={"runs": [run(0.25)]})
    document = lab.folder / "tables.md"
    document.write_text("Before.\n<!-- table science other -->\nold\n<!-- end -->\nAfter.\n")
    toml = '[science]\ncommand = "sdft.py"\nlabel = "SDFT"\npaper = "70.2 / 64.5"\n'
    with pytest.raises(ValueError, match="tables.md: older than .*results"):
        lab(toml, "--tables", "--check")
    lab(toml, "--tables")
    assert document.read_text().splitlines() == [
        "Before.",
        "<!-- table science other -->",
        "|  | seeds | test | probe | well formed | finished | completion tokens | drift from base "
        "| TFLOP | paper: new task / prior |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| before |  | 12.5 % | 60.0 % | 100.0 % | 100.0 % | 14.0 | 0.000 |  | 32.1 / 65.5 |",
        "| SDFT | 2 | 50.0, 70.0 % | 50.0, 50.0 % | 100.0, 100.0 % | 100.0, 100.0 % "
        "| 14.0, 14.0 | 0.050, 0.050 | 9, 9 | 70.2 / 64.5 |",
        "| other | 1 | 25.0 % | 50.0 % | 100.0 % | 100.0 % | 14.0 | 0.050 | 9 |  |",
        "<!-- end -->",
        "After.",
    ]
    lab(toml, "--tables", "--check")

    other = lab.folder / "other.md"  # each document of the folder is looked at
    other.write_text("<!-- table other -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="other.md: older than .*results"):
        lab(toml, "--tables", "--check")
    lab(toml, "--tables")
    assert other.read_text().count("| 25.0 % |") == 1
    lab(toml, "--tables", "--check")
    other.unlink()
    document.write_text("No mark.\n")
    with pytest.raises(ValueError, match="no .md file has a mark"):
        lab(toml, "--tables", "--check")
    document.write_text("<!-- table nothing -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="nothing.json does not exist; python extras/experiments"):
        lab(toml, "--tables")


def test_a_sequences_table(lab):
    """Two evaluations in the first stage: the later one counts."""

    def scores(science, medical):
        return {
            "science, test": {"correct": science},
            "medical, test": {"correct": medical},
            "probe": {"correct": 0.5, "drift_from_base": 0.125},
        }

    after = [(1, scores(0.2, 0.3)), (1, scores(0.6, 0.25)), (2, scores(0.4, 0.75))]
    evaluations = [{"stage": stage, "scores": own} for stage, own in after]
    run = {"before": scores(0.1, 0.2), "evaluations": evaluations}
    lab.store(both={"tasks": ["science", "medical"], "runs": [run]})
    assert lab.table("sequence both", '[both]\ncommand = "sdft.py"\nlabel = "SDFT"\n') == [
        "|  | seeds | science | medical | probe | drift from base |",
        "| --- | --- | --- | --- | --- | --- |",
        "| SDFT, before | 1 | 10.0 % | 20.0 % | 50.0 % | 0.125 |",
        "| SDFT, after science | 1 | 60.0 % | 25.0 % | 50.0 % | 0.125 |",
        "| SDFT, after medical | 1 | 40.0 % | 75.0 % | 50.0 % | 0.125 |",
    ]


def test_a_table_of_tries(lab):
    """One seed of each point, every tenth step; between 20 % at 0.02 and 90 % at 0.09 half of the
    answers are right at 0.05.
    """

    def run(seed, *correct, **point):
        curve = [
            {"step": 5 * i, "correct": right, "drift_from_base": right / 10}
            for i, right in enumerate(correct, start=1)
        ]
        start = {"student": {"correct": 0.0}}
        return AT_BASE | {"seed": seed, "point": point, "preflight": start, "curve": curve}

    rates = [run(0, 0.0, 0.25, rate=1e-5), run(0, 0.0, 0.5, rate=2e-5)]
    science = [run(0, 0.1, 0.2, 0.3, 0.9), run(1, 1.0, 1.0)]
    lab.store(science={"runs": science}, rates={"runs": rates})
    toml = '[rates]\ncommand = "sdft.py"\nlabel = "SFT"\n'
    assert lab.table("tries science rates", toml) == [
        "|  | right on validation | drift from base | drift at 50% | drift at 80% |",
        "| --- | --- | --- | --- | --- |",
        "| science | 20, 90 % | 0.020, 0.090 | 0.050 | 0.080 |",
        "| SFT `--rate 1e-05` | 25 % | 0.025 | never | never |",
        "| SFT `--rate 2e-05` | 50 % | 0.050 | 0.050 | never |",
    ]


def test_a_table_of_drift_at_equal_accuracy(lab):
    """Between 20 % at 0.02 and 60 % at 0.06 half of the answers are right at 0.05; the second seed
    is at 90 % at once, with 0.09: half right at 0.05 too, and 80 % at 0.08.
    """

    def run(seed, *correct, **point):
        curve = [
            {"step": i, "correct": right, "drift_from_base": right / 10}
            for i, right in enumerate(correct, start=1)
        ]
        start = {"student": {"correct": 0.0}}
        return AT_BASE | {"seed": seed, "point": point, "preflight": start, "curve": curve}

    two = [run(0, 0.2, 0.6), run(1, 0.9)]
    lab.store(two={"runs": two}, rates={"runs": [run(0, 0.5, rate=1e-5), run(0, 0.1, rate=2e-5)]})
    table = lab.table("drift two rates", '[rates]\ncommand = "sdft.py"\nlabel = "SFT"\n')
    assert table[0] == "| right on validation | two | SFT `--rate 1e-05` | SFT `--rate 2e-05` |"
    assert table[4] == "| 50% | 0.050 (0.050 to 0.050) | 0.050 | never |"
    assert table[7] == "| 80% | 0.080, 1 of 2 seeds | never | never |"
    assert len(table) == 2 + 7


def test_a_table_of_drift_where_an_accuracy_stays(lab):
    """The first seed passes 50 % at 0.05, falls to 20 % and passes it again, from 20 % at 0.03 to
    80 % at 0.09, at 0.06; the second is below at its end, after 90 % at 0.09.
    """

    def run(*correct):
        points = zip(correct, (0.06, 0.03, 0.09), strict=False)
        curve = [{"step": 1, "correct": right, "drift_from_base": x} for right, x in points]
        return AT_BASE | {"seed": 0, "preflight": {"student": {"correct": 0.0}}, "curve": curve}

    lab.store(two={"runs": [run(0.6, 0.2, 0.8), run(0.9, 0.4)]})
    table = lab.table("stays two", "")
    assert table[0] == "| right from there on | two |"
    assert table[4] == "| 50% | 0.060, 1 of 2 seeds |" and table[8] == "| 90% | never |"


def test_tables_of_the_benchmarks(lab):
    """2 s for 10 tokens is 0.2 s a token: half of TRL's 0.4, twice SFT's 0.1."""

    def measured(seconds, tokens, peak):
        return {"seconds": seconds, "seconds_per_token": seconds / tokens, "peak_mib": peak}

    medians = {"ours": measured(2, 10, 1000), "trl": measured(4, 10, 2), "sft": measured(1, 10, 3)}
    speeds = {"tokens_per_s": {"ours": 96.4, "generate": 55.2}, "ratio": 1.746}
    lab.store(step={"medians": medians}, draws={"rows": {"32": speeds}})
    assert lab.table("steps step", "")[2:] == [
        "| an SDFT step of ours | 2.0 | 0.200 | 0.50 | 2.00 | 1,000 |",
        "| TRL's `SDFTTrainer`, all equal | 4.0 | 0.400 | 1.00 | 4.00 | 2 |",
        "| an SFT step of ours, same lengths | 1.0 | 0.100 | 0.25 | 1.00 | 3 |",
    ]
    assert lab.table("sampling draws", "")[2:] == ["| 32 | 96 | 55 | 1.75 |"]


def prior_record(task, metrics, n):
    """What analysis.py prior leaves of one task; metrics is {metric: (value, standard error)}."""
    rows = [
        {"task": task, "n": n, "shots": [0], "metric": f"{name},none"}
        | {"value": value, "stderr": stderr}
        for name, (value, stderr) in metrics.items()
    ]
    return {"runs": [{"seed": 0, "summary": {"rows": rows}}]}


def test_public_benchmarks_of_one_model_stand_in_one_row(lab):
    lab.store(
        base_w=prior_record("winogrande", {"acc": (0.5, 0.0125)}, 1267),
        base_i=prior_record("ifeval", {"strict": (0.25, None), "loose": (0.375, 0.0625)}, 32),
        trained_w=prior_record("winogrande", {"acc": (0.75, 0.01)}, 1267),
    )
    toml = "".join(
        f'[{name}]\ncommand = "extras/analysis.py prior"\nlabel = "{label}"\n'
        for name, label in {"base_w": "before", "base_i": "before", "trained_w": "SDFT"}.items()
    )
    assert lab.table("prior base_w trained_w base_i", toml) == [
        "|  | winogrande, acc (n = 1,267) | ifeval, strict (n = 32) | ifeval, loose (n = 32) |",
        "| --- | --- | --- | --- |",
        "| before | 50.0 ± 1.2 % | 25.0 % | 37.5 ± 6.2 % |",
        "| SDFT | 75.0 ± 1.0 % |  |  |",
    ]


def test_prior_abilities_have_no_seed():
    experiment = {"command": "extras/analysis.py prior --model smollm2 --tasks mmlu"}
    words = experiments.words_of(experiment, {"seed": 3})
    assert words == experiment["command"].split()
    sampled = {"command": "extras/analysis.py pass-at-k --model smollm2"}
    assert experiments.words_of(sampled, {"seed": 3})[-2:] == ["--seed", "3"]


def test_the_documents_are_as_new_as_the_results_files():
    """Every table of docs/ is what its results files give, and no mark is misspelt."""
    experiments.main(["--tables", "--check"])
    kinds = []
    for file in (ROOT / "docs").glob("*.md"):
        text = file.read_text(encoding="utf-8")
        found = [kind for _, kind, *_ in re.findall(experiments.MARKED, text, re.DOTALL)]
        assert len(found) == text.count("<!-- end -->"), file.name
        kinds += found
    assert set(kinds) == experiments.ROWS.keys()


# ---- what an older run of the same name leaves ----


def test_a_folder_of_another_command_is_not_taken(tmp_path):
    experiment = {"command": "sdft.py --task {task}", "tasks": ["science", "medical"]}
    folder = tmp_path / "x-learning-rate-1e-05-seed0"
    words = ["sdft.py", "--task", "science"]
    experiments.check_command(folder, words, experiment)
    folder.mkdir()
    experiments.check_command(folder, words, experiment)
    with pytest.raises(ValueError, match="x-learning-rate-1e-05-seed0 is of another command"):
        experiments.check_command(folder, [*words, "--force"], experiment)
    with pytest.raises(ValueError, match="is of another command"):
        experiments.check_command(folder, words, experiment | {"flags": {"science": "--force"}})
    experiments.check_command(folder, words, experiment)


def test_a_record_of_a_sequence_with_other_flags_is_refused(tmp_path):
    experiment = {"command": "sdft.py", "tasks": ["science", "medical"], "flags": {"science": "-x"}}
    record = experiments.read_record(tmp_path / "x.json", experiment)
    experiments.write_json(tmp_path / "x.json", record)
    assert experiments.read_record(tmp_path / "x.json", experiment) == record
    for other in (experiment | {"every": 5}, {**experiment, "flags": {"science": "-y"}}):
        with pytest.raises(ValueError, match="x.json is of another command"):
            experiments.read_record(tmp_path / "x.json", other)
    del experiment["flags"]
    with pytest.raises(ValueError, match="x.json is of another command"):
        experiments.read_record(tmp_path / "x.json", experiment)


def test_the_probe_is_asked_as_the_run_was(tmp_path, monkeypatch):
    """A template's switches reach the probe of the base, too, and name its file."""
    asked = []

    def measure(words, file):
        asked.append((words, file.name))
        return {"summary": {}, "answers": []}

    monkeypatch.setattr(experiments, "measure", measure)
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"model": "hub/model", "dtype": "float32", "batch_size": 1, "rollouts_per_prompt": 1}
    results = {"before": {}, "last": {}, "method": "sdft", "parameters": 1}
    (folder / "metrics.jsonl").write_text("")
    for kwargs, name in ((None, ""), ({"enable_thinking": False}, "-enable_thinking-false")):
        results["config"] = config | {"chat_template_kwargs": kwargs}
        (folder / "results.json").write_text(json.dumps(results))
        asked.clear()
        experiments.read_run(folder)
        (before, file), (last, _) = asked
        assert file == f"hub--model-float32{name}-probe.json"
        for words in (before, last):
            assert ("--chat-template-kwargs" in words) == (kwargs is not None)


def test_a_sequence_with_a_judge_is_refused(tmp_path):
    file = tmp_path / "list.toml"
    url = "http://127.0.0.1:9/v1"
    file.write_text(f'[x]\ncommand = "sdft.py --judge {url}"\ntasks = ["knowledge", "medical"]\n')
    with pytest.raises(ValueError, match="a sequence is scored without --judge"):
        experiments.read_experiments(file)
