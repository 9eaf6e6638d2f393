"""Pages and pictures. Oracles: made-up numbers with results worked out by hand; matplotlib's own
lines; the page's text.
"""

import json
import subprocess
import sys

import plot
import pytest
import torch
from conftest import ROOT, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

import baselines
import sdft
from data import load_task

TOKEN = {"token": "<b>&", "kl": 0.7, "student": [["<i>", 0.5]], "teacher": [["\n", 0.25]]}
ROLLOUT = {
    "step": 3,
    "id": "q<1>",
    "prompt": "<|im_start|>",
    "teacher_prompt": "x",
    "divergence": "forward",
    "skipped": 1,
    "student": "runs/<a>/last",
    "teacher": "base",
    "tokens": [TOKEN, TOKEN],
}
METRICS = [
    {"step": 1, "kl": 0.5, "grad_norm": 2.0, "completion_tokens": 9.0},
    {
        "step": 2,
        "kl": 0.25,
        "grad_norm": 1.0,
        "completion_tokens": 7.0,
        "validation": {"correct": 0.75, "finished": 1.0},
    },
]


def summary(correct, drift=None):
    return {"correct": correct} | ({} if drift is None else {"drift_from_base": drift})


RUN = {
    "seed": 0,
    "preflight": {"student": summary(0.1)},
    "before": {"trained wordings": summary(0.0, 0.02), "held-out wordings": summary(0.0, 0.01)},
    "last": {"trained wordings": summary(0.9, 0.5), "held-out wordings": summary(0.5, 0.4)},
    "curve": [
        {"step": 5} | summary(0.2, 0.15),
        {"step": 9} | summary(0.3),
        {"step": 10} | summary(0.4, 0.3),
    ],
}
SECOND = RUN | {
    "seed": 1,
    "last": {"held-out wordings": summary(0.7, 0.2)},
    "curve": [{"step": 5} | summary(0.4, 0.05), {"step": 10} | summary(0.8, 0.1)],
}


def sequence_run(science, medical):
    """Accuracies of two tasks before, at step 5 and at the ends of two stages, steps 10 and 30."""

    def scores(i):
        return {
            "science, test": summary(science[i]),
            "medical, test": summary(medical[i]),
            "probe": summary(0.3),
        }

    places = [(1, "science", 5), (1, "science", 10), (2, "medical", 30)]
    evaluations = [
        {"stage": stage, "task": task, "step": step, "scores": scores(i)}
        for i, (stage, task, step) in enumerate(places, start=1)
    ]
    return {"before": scores(0), "accuracy": [], "evaluations": evaluations}


def sequence_record(*runs):
    return {"tasks": ["science", "medical"], "runs": [sequence_run(*run) for run in runs]}


SEQUENCES = {
    "sdft": sequence_record(
        ([0.2, 0.2, 0.5, 0.5], [0.4, 0.4, 0.3, 0.4]), ([0.2, 0.4, 0.7, 0.5], [0.4, 0.4, 0.3, 0.4])
    ),
    "sft": sequence_record(([0.2, 0.4, 0.4, 0.1], [0.4, 0.3, 0.3, 0.2])),
}
PASS = {
    "runs": [
        {
            "seed": 0,
            "summary": {"n": 3, "samples": 8, "pass@1": 0.25, "pass@10": 0.5, "pass@2": 0.5},
        },
        {
            "seed": 1,
            "summary": {"n": 3, "samples": 8, "pass@1": 0.75, "pass@10": 0.9, "pass@2": 0.5},
        },
    ]
}


@pytest.fixture
def folder(tmp_path):
    records = {
        "science": {"runs": [RUN, SECOND]},
        "science-sft": {"runs": [RUN]},
        "sequence-sdft": SEQUENCES["sdft"],
        "sequence-sft": SEQUENCES["sft"],
        "base": PASS,
    }
    for name, record in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


# ---- a run's page ----


def test_the_page_shows_every_token_as_text():
    page = plot.rollouts_page([ROLLOUT])
    assert page.count("&lt;b&gt;&amp;") == 2 and "<b>" not in page
    assert "&lt;|im_start|&gt;" in page and "q&lt;1&gt;" in page and "(forward KL)" in page
    assert "Student: runs/&lt;a&gt;/last. Teacher: base." in page
    assert page.count("t skipped") == 1 and page.count("0.70 nats") == 2
    assert page.count("⏎ 25%") == 2 and "<script" not in page and "http" not in page


def test_colours_run_from_white_to_full():
    assert plot.colour(0) == (255, 255, 255)
    assert plot.colour(3) == plot.colour(9) == (240, 120, 20)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="metrics.jsonl does not exist; give the folder of a run"):
        plot.main(["run", str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="neither a checkpoint nor the weights of a finished run"):
        plot.main(["run", str(tmp_path)])


# ---- which token costs how much ----


def dense(model, prompt, completion_ids):
    """The distribution at each token of a completion, from one plain pass."""
    logits_TV = model(torch.tensor([prompt + completion_ids])).logits[0, len(prompt) - 1 : -1]
    return torch.distributions.Categorical(logits=logits_TV.detach())


def test_token_report_equals_a_dense_computation(tokenizer):
    models = [tiny_llama(vocab_size=len(tokenizer), seed=seed) for seed in (0, 1)]
    prompts, ids = ([5, 6, 7], [8, 9, 5, 6, 7]), [70, 80, 1]
    report = plot.token_report(models, prompts, tokenizer, ids, "reverse")
    student, teacher = (dense(m, prompt, ids) for m, prompt in zip(models, prompts, strict=True))
    kl_T = torch.distributions.kl_divergence(student, teacher).tolist()
    assert [row["kl"] for row in report] == pytest.approx(kl_T, rel=1e-4)
    assert [row["token"] for row in report] == [tokenizer.decode([i]) for i in ids]
    for name, q in (("student", student), ("teacher", teacher)):
        for row, probs_V in zip(report, q.probs, strict=True):
            best = probs_V.sort(descending=True)
            assert [p for _, p in row[name]] == pytest.approx(best.values[:3].tolist(), rel=1e-4)
            tokens = [tokenizer.decode([i]) for i in best.indices[:3].tolist()]
            assert [token for token, _ in row[name]] == tokens
    backward = plot.token_report(models, prompts, tokenizer, ids, "forward")
    assert backward[0]["kl"] != pytest.approx(report[0]["kl"])


FLAGS = (
    "--force --task science --preset laptop --dtype float32 --steps 6 --batch-size 2 "
    "--max-new-tokens 4 --max-prompt-tokens 1000 --max-teacher-prompt-tokens 1500 "
    "--eval-examples 2 --general-tokens 4 --learning-rate 0.01 --eval-every 0 "
    "--skip-first-tokens 0 --sample-every 1 --save-every 1"
).split()


@pytest.mark.parametrize("flags", ["--ema-rate 0.2", "--keep-last 0", "--teacher student"])
def test_a_runs_rollouts_are_explained_by_its_last_weights(flags, tiny_folder, tmp_path):
    """The oracle loads the weights file by file, and reads the question from our sample."""
    folder = tmp_path / "run"
    sdft.main([*FLAGS, "--model", str(tiny_folder), "--output", str(folder), *flags.split()])
    explained = plot.explain_rollouts(folder)
    assert [rollout["step"] for rollout in explained] == [3, 4, 5, 6]
    rollout = explained[-1]
    line = json.loads((folder / "rollouts.jsonl").read_text().splitlines()[-1])
    assert "".join(token["token"] for token in rollout["tokens"]) == line["completion"]
    [example] = [e for e in load_task("science", "train") if e.id == line["id"]]
    assert example.messages[-1]["content"] in rollout["prompt"]
    assert example.demonstration not in rollout["prompt"]
    assert example.demonstration in rollout["teacher_prompt"]

    student, teacher = folder / "last", folder / "checkpoint-000006" / "teacher"
    if flags != "--ema-rate 0.2":
        teacher = tiny_folder if "keep" in flags else student
    weights = [
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        for source in (student, teacher)
    ]
    tokenizer = tiny_tokenizer()
    prompts = [tokenizer.encode(rollout[name]) for name in ("prompt", "teacher_prompt")]
    p, q = (
        dense(model, prompt, line["completion_ids"])
        for model, prompt in zip(weights, prompts, strict=True)
    )
    kl_T = torch.distributions.kl_divergence(q, p).tolist()  # forward, as the preset
    assert [token["kl"] for token in rollout["tokens"]] == pytest.approx(kl_T, rel=1e-3, abs=1e-6)


def test_a_run_without_a_teacher_has_curves_alone(tiny_folder, tmp_path):
    folder = tmp_path / "run"
    flags = [*FLAGS, "--model", str(tiny_folder), "--output", str(folder), "--steps", "1"]
    baselines.main(["--method", "sft", *flags])
    assert plot.explain_rollouts(folder) == []


def test_reinvoked_runs_have_general_prompts():
    config = {"task": "science", "data": "elsewhere", "teacher_context": "none"}
    prompts = plot.prompts_of_run(config | {"teacher_instruction": "plain"}, "reinvoke")
    general = {example.id: example.messages for example in load_task("general", "train")}
    assert prompts == {id: (messages, messages) for id, messages in general.items()}


# ---- numbers from files ----


@pytest.mark.parametrize(
    "file, picture",
    [
        ("base", "trade-off"),
        ("base", "sequence"),
        ("science", "pass-at-k"),
        ("science", "sequence"),
    ],
)
def test_other_files_are_named(file, picture, folder):
    with pytest.raises(ValueError, match=f"{file}.json has nothing for {picture}"):
        plot.read_record(folder / f"{file}.json", picture)
    with pytest.raises(ValueError, match="missing.json cannot be read"):
        plot.read_record(folder / "missing.json", picture)
    (folder / "old.json").write_text('{"command": "python sdft.py"}')
    with pytest.raises(ValueError, match="old.json cannot be read as results"):
        plot.read_record(folder / "old.json", picture)


def test_trade_off_begins_at_the_start_of_the_run_and_has_only_what_was_measured():
    assert plot.trade_off(RUN) == ([(0.01, 0.1), (0.15, 0.2), (0.3, 0.4)], (0.4, 0.5))
    without = RUN | {"curve": [{"step": 9} | summary(0.3)]}
    assert plot.trade_off(without) == ([], (0.4, 0.5))


def frontier_run(method, model, curve, **more):
    """A run from 0 drift, 0 right through [(drift, right)], the last of them on the test set."""
    entries = [{"step": n} | summary(right, drift) for n, (drift, right) in enumerate(curve)]
    return {
        "method": method,
        "config": {"model": model} | more,
        "preflight": {"student": summary(0.0)},
        "before": {"test": summary(0.0, 0.0)},
        "last": {"test": summary(*reversed(curve[-1]))},
        "curve": entries,
    }


def test_recipes_are_grouped_by_model_method_and_what_decides_the_weights():
    """Two seeds are one recipe, in two records, too; a run that is in both counts once. A field
    that an older run lacks has its default.
    """

    def run(method, model, seed=0, drift=0.1, **more):
        return frontier_run(method, model, [(drift, 0.5)], seed=seed, **more)

    first, second = run("sdft", "hub/one"), run("sdft", "hub/one", seed=1, teacher="ema")
    again = run("sdft", "hub/one", eval_new_tokens=40, keep_last=0)
    other_threads = run("sdft", "hub/one", drift=0.11)
    grid = [run("sft", "hub/one", learning_rate=rate) for rate in (1e-5, 2e-5)]
    back = run("reinvoke", "runs/sft/last", teacher_model="hub/one")
    records = [
        ("x", {"command": "a", "runs": [first, second]}),
        ("w", {"command": "d", "runs": [again, other_threads]}),
        ("y", {"command": "b", "runs": grid}),
        ("z", {"command": "c", "runs": [run("sdft", "two"), back]}),
    ]
    found = plot.recipes(records)
    sizes = {m: {k: [len(s) for s in some] for k, some in v.items()} for m, v in found.items()}
    assert sizes == {"one": {"sdft": [3], "sft": [1, 1], "reinvoke": [1]}, "two": {"sdft": [1]}}


def test_a_frontier_is_the_least_drift_at_each_accuracy_that_all_seeds_reach():
    """Slow: 0.5 right at a drift of 0.2 and 0.4; fast: 0.5 at 0.5, 1.0 at 1; lucky: one of two."""
    slow = [frontier_run("sft", "m", [(0.2, 0.5)]), frontier_run("sft", "m", [(0.4, 0.5)])]
    fast = [frontier_run("sft", "m", [(0.5, 0.5), (1.0, 1.0)])]
    lucky = [frontier_run("sft", "m", [(0.01, 0.9)]), frontier_run("sft", "m", [(0.01, 0.1)])]
    points = {level: drift for drift, level in plot.frontier([slow, fast, lucky])}
    assert points[0.25] == pytest.approx(0.15) and points[0.5] == pytest.approx(0.3)
    assert points[0.75] == pytest.approx(0.75) and points[1.0] == pytest.approx(1.0)
    assert points[0.1] == pytest.approx((0.01 / 9 + 0.01) / 2)
    assert len(plot.frontier([slow])) == 20  # none above 0.5


def test_curves_are_normalised_by_the_best_of_any_method():
    """science: base 0.2, best 0.6 (sdft's seeds 0.5 and 0.7), so sft's 0.4 is 0.5 and its 0.1 is
    -0.25; medical: no method is above the base.
    """
    sdft, sft = plot.sequence_curves(list(SEQUENCES.values()))
    assert [step for step, _ in sdft["science"]] == [0, 5, 10, 30]
    first, second = zip(*(seeds for _, seeds in sdft["science"]), strict=True)
    assert first == pytest.approx([0, 0, 0.75, 0.75]) and second == pytest.approx(
        [0, 0.5, 1.25, 0.75]
    )
    assert [seeds[0] for _, seeds in sft["science"]] == pytest.approx([0, 0.5, 0.5, -0.25])
    assert sdft["medical"] is None and sft["medical"] is None
    assert plot.stage_ends(SEQUENCES["sdft"]) == [(10, "science"), (30, "medical")]


def test_pass_at_k_by_k():
    assert plot.pass_curve(PASS) == [(1, [0.25, 0.75]), (2, [0.5, 0.5]), (10, [0.5, 0.9])]


# ---- with matplotlib ----


def drawn(ax):
    """{label: [(x, y), ...]} of the lines that have a label."""
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in lines}


def figure_of(picture, files, folder):
    pytest.importorskip("matplotlib").use("Agg")
    records = [plot.read_record(folder / f"{file}.json", picture) for file in files]
    return plot.PICTURES[picture](records)


def test_the_points_of_a_grid_are_no_seeds():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    runs = [RUN | {"point": {"learning-rate": rate}} for rate in (1, 2)]
    figure = plot.draw_trade_off([("sft", {"runs": runs})])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    pyplot.close(figure)
    assert labels == ["sft --learning-rate 1, 1 seed", "sft --learning-rate 2, 1 seed"]


def test_trade_off_is_drawn(folder):
    """Test: drifts 0.4 and 0.2, accuracies 0.5 and 0.7: (0.3, 0.6) in the mean, 0.1 each way."""
    figure = figure_of("trade-off", ["science", "science-sft"], folder)
    validation, test = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["science, 2 seeds", "science-sft, 1 seed"]
    one, other, middle, *_ = validation.get_lines()
    assert list(one.get_xdata()) == [0.01, 0.15, 0.3] and list(one.get_ydata()) == [0.1, 0.2, 0.4]
    assert list(other.get_xdata()) == [0.01, 0.05, 0.1]
    assert list(middle.get_ydata()) == pytest.approx([0.1, 0.3, 0.6])
    assert list(middle.get_xdata()) == pytest.approx([0.01, 0.1, 0.2])
    assert middle.get_linestyle() == "-" and validation.get_lines()[-1].get_linestyle() == "--"
    assert one.get_color() == middle.get_color() != validation.get_lines()[-1].get_color()
    point, across, upward = test.containers[0][0], *test.containers[0][2]
    assert point.get_xydata()[0] == pytest.approx([0.3, 0.6])
    assert across.get_segments()[0].ravel() == pytest.approx([0.2, 0.6, 0.4, 0.6])
    assert upward.get_segments()[0].ravel() == pytest.approx([0.3, 0.5, 0.3, 0.7])


def test_frontiers_are_drawn():
    pytest.importorskip("matplotlib").use("Agg")
    ema = [frontier_run("sdft", "hub/small", [(0.1, 0.5)], seed=seed) for seed in (0, 1)]
    back = frontier_run("reinvoke", "x/last", [(0.1, 0.5)], teacher_model="hub/small")
    records = [
        ("a", {"command": "a", "runs": ema}),
        ("b", {"command": "b", "runs": [back]}),
        ("c", {"command": "c", "runs": [frontier_run("sft", "large", [(0.4, 1.0)])]}),
    ]
    small, large = plot.draw_frontiers(records).axes
    assert (small.get_title(), large.get_title()) == ("small", "large")
    assert small.get_xlim()[1] == pytest.approx(0.15) and large.get_xlim()[1] == pytest.approx(0.6)
    lines = drawn(small)
    assert lines["sdft, 2 of 1"][-1] == pytest.approx((0.1, 0.5))
    assert lines["reinvoke, 1 of 1"] == [(None, None)]
    assert drawn(large)["sft, 1 of 1"][-1] == pytest.approx((0.4, 1.0))


def test_sequences_are_drawn(folder):
    sdft, sft = figure_of("sequence", ["sequence-sdft", "sequence-sft"], folder).axes
    assert (sdft.get_title(), sft.get_title()) == ("sequence-sdft", "sequence-sft")
    steps, values = zip(*drawn(sft)["science"], strict=True)
    assert steps == (0, 5, 10, 30) and values == pytest.approx((0, 0.5, 0.5, -0.25))
    assert [value for _, value in drawn(sdft)["science"]] == pytest.approx([0, 0.25, 1, 0.75])
    assert drawn(sft)["medical: no method above the base"] == []
    [band] = sdft.collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(1.25)  # the higher seed


def test_pass_at_k_is_drawn(folder):
    [ax] = figure_of("pass-at-k", ["base"], folder).axes
    assert drawn(ax) == {"base": [(1, 0.5), (2, 0.5), (10, 0.7)]} and ax.get_xscale() == "log"


def test_a_run_is_drawn(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    page = plot.draw_rollouts([ROLLOUT]).axes[0]
    assert "".join(text.get_text() for text in page.texts[1:]) == "<b>&<b>&"
    assert [patch.get_x() for patch in page.patches] == [0, 4]
    kl, norm, tokens, validation = plot.draw_curves(METRICS).axes
    values = [list(ax.get_lines()[0].get_ydata()) for ax in (kl, norm, tokens)]
    assert values == [[0.5, 0.25], [2, 1], [9, 7]]
    assert drawn(validation) == {"correct": [(2, 0.75)], "finished": [(2, 1)]}
    baseline = [{"nll" if key == "kl" else key: line[key] for key in line} for line in METRICS]
    assert plot.draw_curves(baseline).axes[0].get_title() == "nll"
    # a judge that died judged none of the answers of step 3
    dead = METRICS[1] | {"step": 3, "validation": {"not_judged": 1.0, "finished": 1.0}}
    lines = plot.draw_curves([*METRICS, dead]).axes[3].lines
    assert [list(line.get_xdata()) for line in lines] == [[2], [2, 3]]


def test_command_line(folder, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plot, "explain_rollouts", lambda run: [ROLLOUT])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    script, png = str(ROOT / "extras" / "plot.py"), folder / "pass.png"
    command = [sys.executable, script, "pass-at-k", folder / "base.json", "--output", png]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(png)
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 5000
    plot.main(["run", str(folder), "--output", str(folder / "new")])
    assert {file.name for file in (folder / "new").iterdir()} == {
        "rollouts.html",
        "rollouts.png",
        "curves.png",
    }
    with pytest.raises(SystemExit):
        plot.main(["sequence", str(folder / "sequence-sft.json")])
    assert "sequence needs --output FILE" in capsys.readouterr().err
