"""What a run watches. Oracles: the recorded runs of results/, dense KLs, figures by hand."""

import dataclasses
import gzip
import json
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_llama, tiny_tokenizer

import sdft
from config import Config, reject_contradictions
from data import Example, Pair
from sampling import sample_completions
from support import watch
from support.chat import encode_prompt
from support.watch import (
    collapse,
    content_share,
    divided_signal,
    find_collapse,
    other_examples,
    same_opening,
    teacher_prompts,
)

# ---- the rule, on every recorded run ----


def openings(name, seed):
    """{step: share of the most frequent first three words} of the stored validation answers."""
    file = ROOT / "results" / "answers" / f"{name}-seed{seed}.jsonl.gz"
    if not file.exists():
        return {}
    texts = {}
    for line in gzip.open(file, "rt", encoding="utf-8"):
        answer = json.loads(line)
        if answer["set"] == "validation" and answer["when"].startswith("step "):
            step = int(answer["when"].removeprefix("step "))
            texts.setdefault(step, []).append(tuple(answer["text"].split()[:3]))
    return {step: Counter(some).most_common(1)[0][1] / len(some) for step, some in texts.items()}


def recorded():
    """(name, seed, points) of every run of results/ with validations on its way."""
    runs = []
    for file in sorted((ROOT / "results").glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        for run in record.get("runs", []) if isinstance(record, dict) else []:
            if run.get("curve"):
                start = {"step": 0, "drift_from_base": 0.0} | run["preflight"]["student"]
                shares = openings(file.stem, run["seed"])
                curve = [
                    point | ({"same_opening": shares[point["step"]]} if shares else {})
                    for point in run["curve"]
                ]
                runs.append((file.stem, run["seed"], [start, *curve]))
    return runs


COLLAPSED = {("science-teacher-student", 0): 20}  # the first validation after it
HEALTHY = [run for run in recorded() if run[:2] not in COLLAPSED]


def first_found(points):
    """The step of the first validation that the rule notices, as a run would see them."""
    for end in range(2, len(points) + 1):
        if collapse(points[:end]):
            return points[end - 1]["step"]
    return None


def test_every_recorded_collapse_is_noticed_at_the_next_validation():
    found = {run[:2]: first_found(run[2]) for run in recorded() if run[:2] in COLLAPSED}
    assert found == COLLAPSED


def test_no_healthy_record_trips_the_rule():
    """Among them runs whose answers stop ending for a while: knowledge, SFT on science."""
    assert len(HEALTHY) >= 80
    assert [(name, seed) for name, seed, points in HEALTHY if first_found(points)] == []


def test_the_line_says_what_moved_and_since_when():
    [points] = [run[2] for run in recorded() if run[:2] in COLLAPSED]
    line = collapse(points[:3])
    assert line.startswith(
        "collapse after step 10, seen at step 20: right 37.5% -> 25.0%, ended 100% -> 0%, "
        "tokens 14 -> 40"
    )
    assert line.endswith("drift 0.022 -> 0.307")


def point(step, correct, finished=1.0, tokens=20.0, drift=0.05, opening=0.2, n=24):
    error = (correct * (1 - correct) / n) ** 0.5
    return {
        "step": step,
        "correct": correct,
        "standard_error": error,
        "finished": finished,
        "completion_tokens": tokens,
        "drift_from_base": drift,
        "same_opening": opening,
    }


@pytest.mark.parametrize(
    "changes, found",
    [
        ({"correct": 0.45, "finished": 0.4, "drift": 0.2}, True),
        ({"correct": 0.55, "finished": 0.4, "drift": 0.2}, False),  # within a standard error of 0.1
        ({"correct": 0.6, "finished": 0.4, "drift": 0.2}, False),  # as right as before
        ({"correct": 0.45, "finished": 0.4, "drift": 0.09}, False),  # and hardly moved
        ({"correct": 0.45, "finished": 0.6, "drift": 0.2}, False),
        ({"correct": 0.45, "tokens": 4.0, "drift": 0.2}, True),  # ends almost at once
        ({"correct": 0.45, "tokens": 6.0, "drift": 0.2}, False),
        ({"correct": 0.45, "opening": 0.8, "drift": 0.2}, True),  # "This is a classic example"
        ({"correct": 0.45, "opening": 0.6, "drift": 0.2}, False),
        ({"correct": 0.2}, True),  # by 0.4, with standard errors of 0.1 and 0.08
        ({"correct": 0.35}, False),
        ({"correct": 0.2, "n": 4}, False),  # the same fall of few questions
    ],
)
def test_the_rule_by_hand(changes, found):
    points = [point(0, 0.1), point(10, 0.6), point(20, 0.4), point(30, **changes)]
    line = collapse(points)
    assert (line is not None) is found
    if found:
        assert line.startswith("collapse after step 10, seen at step 30: right 60.0% ->")


def test_a_validation_that_no_judge_judged_is_left_out():
    failed = {"step": 20, "finished": 0.0, "completion_tokens": 40.0, "drift_from_base": 0.5}
    assert collapse([point(10, 0.6), failed]) is None
    assert collapse([failed, point(30, 0.1)]) is None
    assert collapse([point(10, 0.6), failed, point(30, 0.1)]) is not None


@pytest.mark.parametrize("start, found", [(0.0, True), (0.15, False)])
def test_the_untrained_model_has_the_drift_that_was_measured(start, found, tmp_path):
    """Re-invocation begins far from the model that drift is measured from: 0.15 -> 0.2."""
    untrained, now = point(0, 0.6), point(10, 0.45, finished=0.4, drift=0.2)
    del untrained["step"], untrained["drift_from_base"]
    before = {"preflight": {"student": untrained}, "before": {"test": {"drift_from_base": start}}}
    (tmp_path / "before.json").write_text(json.dumps(before))
    (tmp_path / "metrics.jsonl").write_text("")
    assert (find_collapse(tmp_path, 10, now) is not None) is found


def test_same_opening_counts_the_first_three_tokens():
    ids = [[5, 6, 7, 1], [5, 6, 7, 8, 9], [5, 6, 8], [5, 6]]
    assert same_opening([SimpleNamespace(ids=own) for own in ids]) == 0.5


# ---- content and style ----


def examples():
    texts = [
        ("Is it a?", "It is an a.", "A"),
        ("Is it b?", "It is a b.", "A"),
        ("c?", "C it is.", "B"),
        ("d?", "Say {question}.", "D"),
    ]
    return [
        Example(str(i), "science", [{"role": "user", "content": q}], demonstration=d, answer=a)
        for i, (q, d, a) in enumerate(texts)
    ]


def test_other_demonstrations_have_another_answer():
    """The second example has the first one's letter, so it is no other of it."""
    some = examples()
    found = [[other.id for other in other_examples(some, i, "demonstration")] for i in range(4)]
    assert found == [["2", "3"], ["2", "3"], ["3", "0", "1"], ["0", "1", "2"]]
    assert [other.id for other in other_examples(some, 2, "demonstration", most=1)] == ["3"]
    with pytest.raises(ValueError, match="no example has another demonstration than 0"):
        teacher_prompts(tiny_tokenizer(), some[:2], "demonstration", "plain")


def test_others_differ_in_what_the_teacher_sees():
    """Three examples of one article, and one of another: shown alone, the article must differ."""
    some = [
        Example(str(i), "knowledge", [], demonstration=f"It is {i}.", text=text)
        for i, text in enumerate(["one", "one", "one", "two"])
    ]
    found = {
        context: [other.id for other in other_examples(some, 0, context)]
        for context in ("text", "demonstration", "text+demonstration")
    }
    assert found["text"] == ["3"]
    assert found["demonstration"] == found["text+demonstration"] == ["1", "2", "3"]


@pytest.mark.parametrize("positions, watched", [(None, True), (100, False)])
def test_prompts_beyond_the_models_positions_are_not_watched(positions, watched):
    pairs = [Pair(example.id, [], []) for example in examples()]
    rows = watch.watched_rows(tiny_tokenizer(), examples(), pairs, Config(), positions)
    assert (rows is not None) is watched


def dense(model, prompt, ids):
    """The next-token probabilities at each of ids, from one full pass -> [T, V]."""
    logits_LV = model(torch.tensor([prompt + ids])).logits[0]
    return logits_LV[len(prompt) - 1 : -1].double().softmax(-1)


@pytest.mark.parametrize("chunk", [256, 5])
def test_content_and_total_are_dense_kls(chunk, monkeypatch):
    """Oracle: torch.distributions on full passes of prompts that are written out here."""
    monkeypatch.setattr(watch, "CHUNK_SIZE", chunk)
    tokenizer = tiny_tokenizer()
    student = tiny_llama(vocab_size=len(tokenizer))
    teacher = tiny_llama(vocab_size=len(tokenizer), seed=1)
    some = examples()
    own, swapped = teacher_prompts(tokenizer, some, "demonstration", "plain")
    students = [encode_prompt(tokenizer, example.messages) for example in some]
    ids_BT = torch.tensor([[40, 41, 42], [43, 44, 1], [45, 1, 1], [46, 47, 48]])
    mask_BT = torch.tensor([[True] * 3, [True] * 3, [True, True, False], [True] * 3])
    total_BT, content_BT = divided_signal(
        student, teacher, students, own, swapped, (ids_BT, mask_BT)
    )
    others = [[2, 3], [2, 3], [3, 0, 1], [0, 1, 2]]

    def seen(question, demonstration):
        content = (
            f"{question}\n\nThis is an example for a response to the question:\n{demonstration}"
            "\n\nNow answer with a response of your own."
        )
        return encode_prompt(tokenizer, [{"role": "user", "content": content}])

    kl = torch.distributions.kl_divergence
    for b, example in enumerate(some):
        ids = ids_BT[b][mask_BT[b]].tolist()
        question = example.messages[0]["content"]
        s_TV = dense(student, students[b], ids)
        t_TV = dense(teacher, seen(question, example.demonstration), ids)
        m_TV = sum(
            dense(teacher, seen(question, some[j].demonstration), ids) for j in others[b]
        ) / len(others[b])
        p, q, m = (torch.distributions.Categorical(probs=x) for x in (t_TV, s_TV, m_TV))
        for found_BT, expected in ((total_BT, kl(p, q)), (content_BT, kl(p, m))):
            found = found_BT[b][: len(ids)].double()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_that_no_demonstration_moves_teaches_style_alone(monkeypatch):
    """Its prompts are equal whatever is shown: content is 0, and all of the KL is style."""
    tokenizer = tiny_tokenizer()
    student, teacher = (tiny_llama(vocab_size=len(tokenizer), seed=seed) for seed in (0, 1))
    prompts = [[5, 6, 7], [5, 6, 8]]
    completions = torch.tensor([[40, 41], [42, 43]]), torch.ones(2, 2, dtype=torch.bool)
    total_BT, content_BT = divided_signal(
        student, teacher, prompts, prompts, [[prompt] * 3 for prompt in prompts], completions
    )
    assert total_BT.min() > 0.01
    torch.testing.assert_close(content_BT, torch.zeros(2, 2), rtol=0, atol=1e-5)


def test_the_share_and_its_error_by_hand():
    """KL 4 + 2 over 3 tokens, content 1 + 1: a share of 2/6.

    Without the first row it is 1/2, without the second 1/4: jackknife
    sqrt(1/2 (0.125^2 + 0.125^2)) = 0.125. What the mask hides is not counted.
    """
    total = torch.tensor([[1.0, 3.0], [2.0, float("nan")]])
    content = torch.tensor([[0.5, 0.5], [1.0, 9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    figures = content_share(total, content, mask)
    assert figures["kl"] == pytest.approx(2) and figures["content"] == pytest.approx(2 / 3)
    assert figures["content_share"] == pytest.approx(1 / 3)
    assert figures["content_share_error"] == pytest.approx(0.125)
    assert "content_share" not in content_share(total * 0, content * 0, mask & False)


# ---- in a run ----

SHORT = """--task science --preset laptop --steps 6 --batch-size 2 --eval-examples 2 --eval-every 2
    --general-tokens 4 --max-new-tokens 6 --eval-new-tokens 6 --force --save-every 1 --keep-last 9
    --max-prompt-tokens 1000 --max-teacher-prompt-tokens 1500""".split()


@pytest.fixture
def collapsing(monkeypatch):
    """The rule notices a collapse at step 2; what a run does then is under test."""
    monkeypatch.setattr(sdft, "find_collapse", lambda folder, step, validation: f"collapse {step}")


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder, step, role):
    from safetensors.torch import load_file

    return load_file(folder / f"checkpoint-{step:06d}" / role / "model.safetensors")


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_validations_log_what_is_watched(tiny_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    sdft.main([*SHORT, "--steps", "2", "--model", str(tiny_folder), "--output", str(folder)])
    *_, line = read_metrics(folder)
    watched = {"same_opening", "watched_kl", "watched_content", "drift_from_base"}
    assert watched <= line["validation"].keys() and "collapse" not in line
    assert 0 < line["validation"]["same_opening"] <= 1
    assert line["validation"]["watched_content"] > 0
    assert "  watched_content " in capsys.readouterr().out
    assert json.loads((folder / "results.json").read_text())["collapse"] is None


def test_what_is_watched_is_the_teachers_kl_on_the_students_draws():
    """The same prompt whatever is shown, so content is 0."""
    size = len(tiny_tokenizer())
    student, teacher = (tiny_llama(vocab_size=size, seed=seed) for seed in (0, 1))
    prompts, uniforms_BT = [[5, 6, 7]], torch.tensor([[0.2, 0.7]], dtype=torch.float64)
    watched = watch.Watched(prompts, prompts, [prompts * 3], uniforms_BT)
    stop = {"eos_token_ids": [1], "pad_token_id": 1}
    found = watch.watch_content(student, teacher, watched, Config(), stop)
    how = {"max_new_tokens": 2, "uniforms_BT": uniforms_BT}
    ids = sample_completions(student, prompts, **how, **stop).completion_ids_BT[0].tolist()
    p, q = (
        torch.distributions.Categorical(probs=dense(model, prompts[0], ids))
        for model in (teacher, student)
    )
    expected = torch.distributions.kl_divergence(p, q).mean().item()
    assert found["watched_kl"] == pytest.approx(expected, rel=1e-4)
    assert found["watched_content"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("action", ["warn", "stop", "freeze"])
def test_what_a_run_does_after_a_collapse(action, tiny_folder, tmp_path, collapsing, capsys):
    folder = tmp_path / "run"
    command = [
        *SHORT,
        "--model",
        str(tiny_folder),
        "--output",
        str(folder),
        "--on-collapse",
        action,
    ]
    sdft.main([*command, "--dtype", "float32", "--teacher", "ema"])
    printed = capsys.readouterr().out
    assert printed.count("warning: collapse 2. ") == 1
    metrics = read_metrics(folder)
    assert [line["step"] for line in metrics] == ([1, 2] if action == "stop" else list(range(1, 7)))
    assert ["collapse" in line.get("validation", {}) for line in metrics[:2]] == [False, True]
    results = json.loads((folder / "results.json").read_text())
    assert results["collapse"] == "collapse 2" and "last" in results
    assert results["best_step"] == (None if action == "stop" else 6)  # not the collapsed weights
    if action == "stop":
        assert not (folder / "checkpoint-000003").exists()
        sdft.main(["--resume", str(folder)])  # and stays stopped
        assert len(read_metrics(folder)) == 2
        return
    moved = not same(weights(folder, 2, "teacher"), weights(folder, 6, "teacher"))
    assert moved is (action == "warn")
    assert not same(weights(folder, 2, "student"), weights(folder, 6, "student"))
    assert not same(weights(folder, 1, "teacher"), weights(folder, 2, "teacher"))


def test_a_resumed_run_keeps_its_teacher_frozen(tiny_folder, tmp_path, collapsing):
    """It ends in the bits of the run that never stopped."""
    folder = tmp_path / "run"
    command = [*SHORT, "--model", str(tiny_folder), "--output", str(folder)]
    sdft.main([*command, "--on-collapse", "freeze"])
    unbroken = {role: weights(folder, 6, role) for role in ("student", "teacher")}
    for step in (5, 6):
        shutil.rmtree(folder / f"checkpoint-{step:06d}")
    sdft.main(["--resume", str(folder)])
    for role, expected in unbroken.items():
        assert same(weights(folder, 6, role), expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"on_collapse": "freeze", "teacher": "student"}, "needs --teacher ema, not student"),
        ({"on_collapse": "freeze", "teacher": "base"}, "needs --teacher ema, not base"),
        ({"on_collapse": "stop", "eval_every": 0}, "--on-collapse stop needs validations"),
        ({"on_collapse": "warn", "eval_every": 0}, None),
        ({"on_collapse": "stop", "teacher": "student"}, None),
    ],
)
def test_flags_that_cannot_be_meant(changes, message):
    config = dataclasses.replace(Config(), **changes)
    if message is None:
        reject_contradictions(config)
    else:
        with pytest.raises(ValueError, match=message):
            reject_contradictions(config)
