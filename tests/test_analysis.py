"""pass@k, sampled answers, intervals, KL to the base, the published tool-use rule.

Oracles: all subsets by itertools; one answer sampled alone; Student's density integrated; a KL
computed dense, without padding or chunks; answers judged by hand (those of the published rule are
in test_tooluse.py).
"""

import copy
import gzip
import json
import math
from itertools import combinations

import analysis
import numpy as np
import pytest
import torch
from analysis import (
    confidence_interval,
    evaluate_pass_at_k,
    kl_to_base,
    pass_at_k,
    sample_answers,
)
from conftest import tiny_llama

import scoring
from data import Example, teacher_messages
from sampling import sample_completions, stop_tokens
from support.chat import encode_prompt


@pytest.fixture
def model(tokenizer):
    return tiny_llama(vocab_size=len(tokenizer))


def questions(n=3):
    return [
        Example(
            f"q{i}",
            "science",
            [{"role": "user", "content": "?" * (2 * n - 2 * i)}],
            "The correct answer is A.",
            answer="A",
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n):
    for correct in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([1] * correct + [0] * (n - correct), k))
            assert pass_at_k(n, correct, k) == pytest.approx(
                sum(map(any, subsets)) / len(subsets), abs=1e-12
            )


def test_pass_at_k_of_many_samples():
    """Python's whole numbers hold C(10000, 1000), which no float does. With one right answer,
    pass@k is k / n.
    """
    assert pass_at_k(10_000, 3, 1000) == pytest.approx(
        1 - math.comb(9997, 1000) / math.comb(10_000, 1000), rel=1e-12
    )
    assert pass_at_k(10_000, 1, 128) == pytest.approx(0.0128, rel=1e-9)


@pytest.mark.parametrize("n, correct, k", [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses(n, correct, k):
    with pytest.raises(ValueError, match=f"pass@{k} of {n} samples"):
        pass_at_k(n, correct, k)


def test_sampled_answers_do_not_depend_on_batches_or_their_number(model, tokenizer):
    """Each answer equals the one of its prompt sampled alone, with uniforms of (seed, place,
    sample).
    """
    together = sample_answers(
        model, tokenizer, questions(), samples=4, max_new_tokens=6, seed=5, batch_size=3
    )
    assert [len(answers) for answers in together] == [4, 4, 4]
    assert sample_answers(model, tokenizer, questions(), samples=2, max_new_tokens=6, seed=5) == [
        answers[:2] for answers in together
    ]
    assert (
        sample_answers(model, tokenizer, questions(), samples=4, max_new_tokens=6, seed=6)
        != together
    )
    for i, question in enumerate(questions()):
        for j, answer in enumerate(together[i]):
            uniforms_BT = torch.from_numpy(np.random.default_rng([5, i, j]).random((1, 6)))
            alone = sample_completions(
                model,
                [encode_prompt(tokenizer, question.messages)],
                max_new_tokens=6,
                uniforms_BT=uniforms_BT,
                top_p=0.95,
                **stop_tokens(model, tokenizer),
            )
            assert alone.completion_ids_BT[0].tolist() == answer.ids
    assert len({tuple(answer.ids) for answer in together[0]}) > 1


def test_sampled_answers_see_the_context_and_the_temperature(model, tokenizer):
    seen = {"context": "demonstration"}
    plain, thinking, no_thoughts, cold = (
        sample_answers(model, tokenizer, questions(1), samples=3, max_new_tokens=6, **how)[0]
        for how in ({}, seen, seen | {"instruction": "plain"}, {"temperature": 1e-4})
    )
    assert plain != thinking != no_thoughts != plain
    assert len({tuple(answer.ids) for answer in cold}) == 1


def test_summary_of_pass_at_k(model, tokenizer, monkeypatch):
    """Scores are replaced: of 3 answers, 1 and 0 are right. pass@1 = (1/3 + 0) / 2, pass@2 = (2/3)
    / 2, pass@3 = 1/2.
    """
    outcomes = iter([True, False, False, False, False, False])
    monkeypatch.setattr(analysis, "score", lambda text, example: {"correct": next(outcomes)})
    summary, right = evaluate_pass_at_k(
        model, tokenizer, questions(2), k=3, samples=3, max_new_tokens=2
    )
    assert right == [1, 0] and list(summary) == ["n", "samples", "pass@1", "pass@2", "pass@3"]
    assert [summary[f"pass@{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 6, 1 / 3, 1 / 2])


def test_the_ks_are_powers_of_two_and_k(model, tokenizer):
    for k, ks in ((1, [1]), (8, [1, 2, 4, 8]), (6, [1, 2, 4, 6])):
        summary, _ = evaluate_pass_at_k(
            model, tokenizer, questions(1), k=k, samples=8, max_new_tokens=1
        )
        assert list(summary)[2:] == [f"pass@{j}" for j in ks]


@pytest.mark.parametrize("n", range(2, 11))
def test_half_width_holds_95_percent_of_students_density(n):
    """The half width in units of s / sqrt(n) is t; the density of Student's t with n - 1 degrees of
    freedom from -t to t is 0.95.
    """
    values = [0.0] * (n - 1) + [1.0]
    mean, half = confidence_interval(values)
    assert mean == pytest.approx(1 / n)
    t = half / (np.std(values, ddof=1) / math.sqrt(n))
    nu, x = n - 1, np.linspace(-t, t, 200_001)
    density = (
        math.gamma((nu + 1) / 2)
        / (math.sqrt(nu * math.pi) * math.gamma(nu / 2))
        * (1 + x**2 / nu) ** (-(nu + 1) / 2)
    )
    assert np.trapezoid(density, x) == pytest.approx(0.95, abs=5e-5)


def test_no_interval_of_one_seed():
    with pytest.raises(ValueError, match="over 1 seeds: it needs 2 to 10"):
        confidence_interval([0.5])


@pytest.mark.parametrize("context", ["none", "demonstration"])
def test_kl_to_base_equals_a_dense_computation(model, tokenizer, context, monkeypatch):
    # 80 of the tokens end an answer, so that answers differ in length and the short ones are padded
    monkeypatch.setattr(
        analysis,
        "stop_tokens",
        lambda *_: {"eos_token_ids": range(1, 80), "pad_token_id": 1},
    )
    base, total, tokens, lengths = copy.deepcopy(model), 0.0, 0, set()
    if context == "none":
        assert kl_to_base(model, base, tokenizer, questions(), max_new_tokens=10) == pytest.approx(
            0, abs=1e-6
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    sampled = sample_answers(
        model,
        tokenizer,
        questions(),
        samples=1,
        top_p=1.0,
        max_new_tokens=10,
        seed=2,
        context=context,
    )
    for example, (answer,) in zip(questions(), sampled, strict=True):
        lengths.add(len(answer.ids))
        shown = teacher_messages(example, context)
        p, q = (
            torch.distributions.Categorical(
                logits=m(torch.tensor([prompt + answer.ids])).logits[0, len(prompt) - 1 : -1]
            )
            for m, prompt in (
                (model, encode_prompt(tokenizer, shown)),
                (base, encode_prompt(tokenizer, example.messages)),
            )
        )
        total, tokens = (
            total + torch.distributions.kl_divergence(p, q).sum().item(),
            tokens + len(answer.ids),
        )
    measured = kl_to_base(
        model,
        base,
        tokenizer,
        questions(),
        max_new_tokens=10,
        seed=2,
        context=context,
        batch_size=2,
    )
    assert len(lengths) > 1 and total / tokens > 0.01
    assert measured == pytest.approx(total / tokens, rel=1e-4)


def test_thoughts_that_the_template_opened_are_in_the_answer(model, tokenizer):
    opened = tokenizer.chat_template.replace("assistant\n", "assistant\n<think>\n")
    tokenizer.chat_template = opened
    [[answer]] = sample_answers(model, tokenizer, questions(1), samples=1, max_new_tokens=2)
    assert answer.text.startswith("<think>") and len(answer.ids) <= 2


# ---- stored answers ----


def stored(*answers):
    lines = [dict(zip(("when", "set", "id", "text"), answer, strict=True)) for answer in answers]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def data(tmp_path):
    """Two test questions, whose right letter is A, and a validation question."""
    line = {"prompt": "A or B?", "answer": "A", "demonstration": "The answer is A."}
    for split, ids in (("test", "pq"), ("validation", "r")):
        lines = "".join(json.dumps(line | {"id": id}) + "\n" for id in ids)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    return tmp_path


ANSWERS = [
    ("before", "test", "p", "The answer is A."),
    ("before", "test", "q", "The answer is B."),
    ("step 5", "validation", "r", "no letter"),
    ("step 5", "validation", "r", "<answer>A</answer>"),  # a resumed run came here again
    ("last", "test", "p", "A!"),
    ("last", "test", "q", "The answer is A."),
]


def test_rescore_reads_runs_files_and_compressed_files(data, capsys):
    (data / "answers.jsonl").write_text(stored(*ANSWERS))
    with gzip.open(data / "science-seed0.jsonl.gz", "wt") as file:
        file.write(stored(*ANSWERS))
    shares = {"test, before": 0.5, "validation, step 5": 1.0, "test, last": 0.5}
    for name in (".", "answers.jsonl", "science-seed0.jsonl.gz"):
        rows = analysis.rescore(data / name, "science", data)
        assert {label: summary["correct"] for label, summary in rows} == shares
        analysis.main(["rescore", str(data / name), "--task", "science", "--data", str(data)])
        before, step, last = capsys.readouterr().out.splitlines()[1:4]
        assert before.split()[:4] == ["test,", "before", "2", "50.0%"]
        assert step.split()[:5] == ["validation,", "step", "5", "1", "100.0%"]
        assert "finished" not in before and last.split()[3] == "50.0%"


def test_rescore_takes_the_sets_of_its_task(data):
    """With several tasks in a file a set's name begins with its task."""
    several = [("last", "science, test", "p", "The answer is A."), ("last", "probe, test", "x", "")]
    (data / "answers.jsonl").write_text(stored(*several))
    [(label, summary)] = analysis.rescore(data, "science", data)
    assert label == "science, test, last" and summary["correct"] == 1
    (data / "answers.jsonl").write_text(stored(*ANSWERS, several[1]))
    assert [label for label, _ in analysis.rescore(data, "science", data)] == [
        "test, before",
        "validation, step 5",
        "test, last",
    ]


def test_a_changed_scorer_changes_the_table(data, monkeypatch, capsys):
    """Another scorer takes "A!" for right, too; no model is loaded."""
    (data / "answers.jsonl").write_text(stored(*ANSWERS))
    monkeypatch.setattr(analysis, "load_model", lambda *_: pytest.fail("a model loads"))

    def lenient(text, answer):
        return {"correct": answer in text, "well_formed": False}

    monkeypatch.setattr(scoring, "score_science", lenient)
    analysis.main(["rescore", str(data), "--task", "science", "--data", str(data)])
    printed = capsys.readouterr().out
    assert printed.splitlines()[3].split()[3] == "100.0%" and "50.0%" in printed.splitlines()[1]


@pytest.mark.parametrize(
    "answers, message",
    [
        ([("last", "test", "z", "A")], 'id "z" is not in the test questions of science; give'),
        ([("last", "held-out wordings", "p", "A")], 'set "held-out wordings" is not of task'),
        ([], "has no answer in it"),
        ([("last", "probe, test", "x", "A")], "has no answers to questions of science"),
        ("[1]\n", "cannot be read as the answers of a run"),
        (None, "cannot be read as the answers of a run"),
    ],
)
def test_what_cannot_be_scored_again(answers, message, data):
    if answers is not None:
        text = answers if isinstance(answers, str) else stored(*answers)
        (data / "answers.jsonl").write_text(text)
    with pytest.raises(SystemExit, match=message):
        analysis.main(["rescore", str(data), "--task", "science", "--data", str(data)])


# ---- the command line ----


def run(measure, folder, tmp_path, *flags, task="science"):
    """The record that the command writes."""
    file = tmp_path / "out.json"
    command = [measure, "--model", str(folder), "--task", task, "--limit", "2"]
    analysis.main([*command, "--max-new-tokens", "3", "--json", str(file), *flags])
    record = json.loads(file.read_text())
    assert record["command"].startswith(f"python extras/analysis.py {measure} --model")
    assert "processor" in record["machine"] and record["summary"]["n"] == 2
    return record


def test_pass_at_k_from_the_command_line(tiny_folder, tmp_path, capsys):
    record = run("pass-at-k", tiny_folder, tmp_path, "--k", "2", "--samples", "3")
    printed = capsys.readouterr().out
    assert "3 answers to each of 2 questions" in printed
    assert "pass@1 " in printed and "pass@2 " in printed and "pass@3" not in printed
    assert record["summary"]["samples"] == 3 and len(record["right"]) == 2


def test_kl_to_base_from_the_command_line(tiny_folder, tmp_path, capsys):
    record = run("kl-to-base", tiny_folder, tmp_path, "--base", str(tiny_folder), "--seed", "1")
    assert record["summary"]["kl_to_base"] == pytest.approx(0, abs=1e-6)
    assert "0.000 nats" in capsys.readouterr().out


def test_published_from_the_command_line(tiny_folder, tmp_path, monkeypatch, capsys):
    """The rule is replaced: it finds one of two answers right, where our scorer finds none."""
    outcomes = iter([True, False])
    monkeypatch.setattr(analysis, "score_published", lambda text, calls: next(outcomes))
    record = run("published", tiny_folder, tmp_path, task="tooluse")
    assert record["summary"]["published"] == 0.5 and record["summary"]["correct"] == 0
    assert [row["published"] for row in record["answers"]] == [True, False]
    assert "right by our rule 0.0%, by the published 50.0%" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        ("pass-at-k --task science", "required: --k"),
        ("pass-at-k --task science --k 0", "--k 0: it must be at least 1"),
        ("pass-at-k --task science --k 4 --samples 3", "--samples 3 is below --k 4"),
        ("pass-at-k --task science --k 4 --limit 0", "--limit 0: it must be at least 1"),
        ("kl-to-base --task science", "required: --base"),
        ("published --task science", "published scores tool use alone; --task is science"),
        ("pass-at-k --task science --k 1 --instruction plain", "--instruction needs --context"),
        ("published --task tooluse --seed 1", "unrecognized arguments: --seed 1"),
    ],
)
def test_refused_flags(flags, message, capsys):
    with pytest.raises(SystemExit):
        analysis.main([*flags.split(), "--model", "nowhere"])
    assert message in capsys.readouterr().err


def test_a_missing_field_stops_before_the_model_loads(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"prompt": "A or B?", "answer": "A"}\n')
    command = "pass-at-k --model nowhere --task science --k 1 --context demonstration --data"
    with pytest.raises(SystemExit, match='test.jsonl:1: field "demonstration" is missing'):
        analysis.main([*command.split(), str(tmp_path)])


def test_drift_at_equal_accuracy_by_hand(tmp_path, capsys):
    """From 0.2 at 0 to 0.6 at 0.1: 0.4 half-way, at 0.05; after the dip to 0.3 at 0.2, for good at
    0.22, a fifth of the way to 0.8 at 0.3. A curve that ends at 0.3 has not passed 0.4 for good.
    """
    curve = [(0.6, 0.1), (0.3, 0.2), (0.8, 0.3)]
    points = [{"correct": y, "drift_from_base": x} for y, x in curve]
    run = {"preflight": {"student": {"correct": 0.2}}, "curve": points}
    run["before"] = {"test": {"drift_from_base": 0.0}}
    assert analysis.drift_at(run, 0.4) == pytest.approx(0.05)
    assert analysis.drift_at(run, 0.7) == pytest.approx(0.28)
    assert analysis.drift_at(run, 0.9) is None
    assert analysis.drift_for_good(run, 0.4) == pytest.approx(0.22)
    assert analysis.drift_for_good(run, 0.8) == analysis.drift_at(run, 0.8) == pytest.approx(0.3)
    assert analysis.drift_for_good(run, 0.9) is None
    assert analysis.drift_for_good(run | {"curve": points[:2]}, 0.4) is None
    (tmp_path / "sft.json").write_text(json.dumps({"runs": [run, run]}))
    analysis.main(["equal-accuracy", str(tmp_path / "sft.json")])
    printed = capsys.readouterr().out
    assert "| 40% | 0.050 (0.050 to 0.050; 2 of 2 seeds) |" in printed
    assert "| 40% | 0.220 (0.220 to 0.220; 2 of 2 seeds) |" in printed
    # a base that is right on 0.2 has passed that at the start; a re-invoked model starts elsewhere
    assert analysis.drift_at(run, 0.2) == analysis.drift_for_good(run, 0.1) == 0.0
    moved = run | {"preflight": {"student": {"correct": 0.9}}}
    moved["before"] = {"test": {"drift_from_base": 0.4}}
    assert analysis.drift_at(moved, 0.7) == 0.4 and analysis.drift_at(moved, 0.95) is None
    assert analysis.drift_for_good(moved, 0.7) == pytest.approx(0.28)


def test_equal_accuracy_tells_grids_and_files_apart(tmp_path, capsys):
    """Two points of a grid are two recipes; two files of one name are two, too."""
    runs = [
        {
            "preflight": {"student": {"correct": 0.0}},
            "before": {"test": {"drift_from_base": 0.0}},
            "curve": [{"correct": 1.0, "drift_from_base": drift}],
            "point": {"learning-rate": rate},
        }
        for drift, rate in ((0.1, 1e-5), (0.2, 1e-4))
    ]
    files = [tmp_path / folder / "sft.json" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps({"runs": runs}))
    analysis.main(["equal-accuracy", str(files[0])])
    printed = capsys.readouterr().out
    assert "| sft --learning-rate 1e-05 | sft --learning-rate 0.0001 |" in printed
    assert "0.050 (0.050 to 0.050; 1 of 1 seeds) | 0.100 (0.100 to 0.100; 1 of 1" in printed
    analysis.main(["equal-accuracy", *map(str, files)])
    assert f"| {files[1]} --learning-rate 1e-05 |" in capsys.readouterr().out
    (tmp_path / "results.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(SystemExit, match="results.json is no results file of"):
        analysis.main(["equal-accuracy", str(tmp_path / "results.json")])


def test_files_that_cannot_be_written_stop_before_the_model_loads(tmp_path):
    (tmp_path / "file").write_text("")
    command = "pass-at-k --model nowhere --task science --k 1 --json".split()
    with pytest.raises(SystemExit, match="x.json cannot be written"):
        analysis.main([*command, str(tmp_path / "file" / "x.json")])
