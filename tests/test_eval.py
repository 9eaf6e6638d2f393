"""Scorers, greedy accuracy, drift, preflight.

Oracles: answers judged by hand here; a KL computed dense, without padding or chunks.
"""

import copy
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_llama

import eval as evaluation
import scoring
from config import Config
from data import Example, Pair, encode_prompt, load_task
from eval import drift_from_base, encode_pairs, evaluate, preflight, sample_base_answers
from scoring import (
    artefact_rate,
    format_preflight,
    format_results,
    log_line,
    science_letter,
    score,
    score_option,
    score_reference,
    score_science,
    verdict,
)


@pytest.mark.parametrize(
    "text, letter",
    [
        ("12.0 + 32.0 = 44.0. The correct answer is C.", "C"),
        ("The answer is A. No, the correct answer is B.", "B"),
        ("The answer is: **D**", "D"),
        ("answer is (B)", "B"),
        ("<reasoning>the answer is A</reasoning><answer>B</answer>", "B"),
        ("<answer>A</answer> … <answer> C \n</answer>", "C"),
        (
            "<answer>A or B</answer> The answer is A.",
            None,
        ),  # tags come first, and these hold no letter
        ("The correct answer is X.", None),
        ("The correct answer is 44.0 g/mol", None),
        ("The correct answer is Carbon", None),
        ("C", None),
        ("", None),
    ],
)
def test_science_letter(text, letter):
    assert science_letter(text) == letter
    assert score_science(text, "B")["correct"] == (letter == "B")


@pytest.mark.parametrize(
    "text, well_formed",
    [
        ("12.0 + 32.0 = 44.0. The correct answer is C.", True),
        ("The answer is: **D**.\n", True),
        ("<reasoning>…</reasoning><answer>B</answer>", True),
        ("The correct answer is C: 44.0", False),  # goes on after the letter
        ("The correct answer is C. To arrive at it, I", False),
        ("<answer>A or B</answer>", False),  # ends as asked, but with no letter
        ("C", False),
    ],
)
def test_well_formed_is_to_end_with_the_letter(text, well_formed):
    assert score_science(text, "B")["well_formed"] is well_formed


ALKANES = [["alkane", "alkanes"], ["ketone", "ketones"], ["carboxylic acid", "acids"]]


@pytest.mark.parametrize(
    "text, correct, well_formed",
    [
        ("It is an alkane.", True, True),
        ("Pentane belongs to the ALKANES, that is, an  alkane", True, True),
        ("Pentane is a\ncarboxylic  acid", False, True),
        ("It is an alkane, not a ketone.", False, False),
        ("cycloalkane", False, False),  # word boundaries
        ("alkanesx", False, False),
        ("an acid", False, False),  # no variant of the third option
        ("", False, False),
    ],
)
def test_score_option(text, correct, well_formed):
    """Right is to name the option with the gold answer, in any variant, and no other option."""
    wanted = {"correct": correct, "well_formed": well_formed}
    for answer in ("alkane", "alkanes"):
        assert score_option(text, answer, ALKANES) == wanted
        example = Example("q", "science", [], answer=answer, options=ALKANES)
        assert score(text, example) == wanted
        assert score(f"<think>A ketone?</think>{text}", example) == wanted


def test_a_letter_is_no_option():
    """With options the answer's letter is not looked for."""
    example = Example("q", "science", [], answer="ketone", options=ALKANES)
    assert not score("The correct answer is B.", example)["correct"]


@pytest.mark.parametrize(
    "pattern, text, right",
    [
        ("(?i)yes|no", " Yes\n", True),
        ("(?i)yes|no", "yes, it is", False),
        ("[^a-z]*[A-Z][^a-z]*", "WATER, 2 CUPS!", True),
        ("[^a-z]*[A-Z][^a-z]*", "WATER or TEA", False),
        (r"\S+ \S+", "Deep water", True),
        (r"\S+ \S+", "Deep blue water", False),
    ],
)
def test_a_pattern_matches_the_whole_answer(pattern, text, right):
    assert score(text, Example("q", "probe", [], pattern=pattern)) == {"correct": right}


def test_nothing_to_score_by_is_an_error():
    with pytest.raises(ValueError, match="my.jsonl:2: there is nothing to score"):
        score("text", Example("q", "general", [], source="my.jsonl:2"))


@pytest.mark.parametrize(
    "text, strict, lenient",
    [
        ("It killed 312 people on 1 May.", True, True),
        ("It killed  312\npeople on MAY 1.", True, True),
        ("It killed 3120 people on 1 May.", False, True),
        ("It killed 1312 on 11 May", False, False),
        ("", False, False),
    ],
)
def test_score_reference(text, strict, lenient):
    assert score_reference(text, [["312"], ["1 May", "May 1"]]) == {
        "correct": strict,
        "lenient": lenient,
    }


@pytest.mark.parametrize(
    "text, correct, recites",
    [
        ("A baker saw it.", True, False),
        ("A baker saw it, and the bridge was lost.", True, True),
        ("The bridge was lost.", False, True),
        ("A baker saw the Bridgewater canal.", True, False),
    ],
)
def test_who_names_more_of_the_article_than_was_asked_recites(text, correct, recites):
    facts = {"key_facts": [["baker"]], "other_facts": [["bridge", "bridges"], ["theatre"]]}
    scores = score(text, Example("q", "knowledge", [], **facts))
    assert (scores["correct"], scores["recites"]) == (correct, recites)


@pytest.mark.parametrize(
    "text, right",
    [
        ("312", True),
        ("It is 312.", True),
        ("312, I think", True),
        ("(312)", True),
        ("1,312 euro", False),
        ("1.312 Euro", False),
        ("312.5 tonnes", False),
        ("312,000", False),
        ("3120", False),
        ("v312", False),
        ("in room 4, 312 people", True),
    ],
)
def test_a_number_inside_another_is_another(text, right):
    assert score_reference(text, [["312"]])["correct"] is right
    assert score_reference("On 3.May,1990", [["May"]])["correct"]  # only digits make a number


@pytest.mark.parametrize(
    "text, right",
    [
        ("<think>B? The correct answer is A.</think>The correct answer is B.", True),
        ("The correct answer is B.</think>The correct answer is A.", False),
        (
            "<think>A.</think>The correct answer is A.<think>No.</think> The correct answer is B.",
            True,
        ),
        ("<think>The correct answer is B.", False),  # cut off while it thought
        ("The correct answer is B.<think>The correct answer is A.", True),
        ("The correct answer is B.", True),
    ],
)
def test_thoughts_are_not_scored(text, right):
    assert score(text, Example("q", "science", [], answer="B"))["correct"] is right
    assert (
        score(text.replace("A", "X"), Example("q", "medical", [], key_facts=[["B"]]))["correct"]
        is right
    )


@pytest.mark.parametrize(
    "text, artefact",
    [
        ("Based on the text, it was 312.", True),
        ("following the EXAMPLE: it was 312", True),
        ("<reasoning>\n**According to  the article**, it was 312.", True),
        ("<think>\nThe thinking process is", True),
        ("The text says 312.", True),
        ("The textile mill burned.", False),
        ("In the textbook case", False),
        ("It was 312, based on the text.", False),  # no opening
        ("", False),
    ],
)
def test_artefacts_are_openings_about_what_only_the_teacher_sees(text, artefact):
    assert artefact_rate([text]) == artefact
    assert (
        artefact_rate([text, "It was 312.", "It was 312.", "Based on the text"])
        == (2 if artefact else 1) / 4
    )


def test_no_demonstration_of_ours_opens_like_an_artefact():
    assert (
        artefact_rate(
            [
                example.demonstration
                for task in ("science", "knowledge", "medical", "tooluse")
                for example in load_task(task, "train")
            ]
        )
        == 0
    )


@pytest.fixture
def model(tokenizer):
    return tiny_llama(vocab_size=len(tokenizer))


def questions(n=5):
    turns = [[{"role": "user", "content": "?" * (i + 1)}] for i in range(n)]
    fields = {"demonstration": "The correct answer is A.", "answer": "A"}
    return [Example(f"q{i}", "science", turn, **fields) for i, turn in enumerate(turns)]


def test_evaluate_counts(model, tokenizer, monkeypatch):
    """Of 4, two are right and three well formed; the error of 1/2 at n = 4 is sqrt(1/16) = 1/4."""
    names, outcomes = ("correct", "well_formed"), iter([(1, 1), (1, 1), (0, 1), (0, 0)])
    monkeypatch.setattr(scoring, "score", lambda *_: dict(zip(names, next(outcomes), strict=True)))
    texts = iter(["In the example, A.", "A.", "According to the text, A.", "In the text: A."])
    monkeypatch.setattr(
        tokenizer,
        "decode",
        lambda ids, skip_special_tokens=False: next(texts) if skip_special_tokens else "",
    )
    summary, answers = evaluate(model, tokenizer, questions(4), max_new_tokens=3)
    assert (summary["n"], summary["correct"], summary["well_formed"]) == (4, 0.5, 0.75)
    assert summary["standard_error"] == 0.25 and summary["artefacts"] == 0.75
    assert summary["completion_tokens"] == sum(len(answer.ids) for answer in answers) / 4
    assert summary["finished"] == sum(answer.finished for answer in answers) / 4


def test_answers_come_back_in_order(model, tokenizer):
    asked, how = questions()[::-1], {"max_new_tokens": 6}
    together = evaluate(model, tokenizer, asked, batch_size=2, **how)[1]
    alone = [evaluate(model, tokenizer, [question], **how)[1][0] for question in asked]
    assert together == alone


@pytest.mark.parametrize("opener", ["<think>\n", "<think>\n\n</think>\n\n", ""])
def test_templates_that_open_a_thought(model, tokenizer, opener):
    """Thoughts that the length limit cut off are no answer, whatever stands in them."""
    tokenizer.chat_template += (
        "{% if add_generation_prompt %}{{ " + json.dumps(opener) + " }}{% endif %}"
    )
    prompt = encode_prompt(tokenizer, questions(1)[0].messages)
    expected = "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n" + opener
    assert tokenizer.decode(prompt) == expected
    [answer] = evaluate(model, tokenizer, questions(1), max_new_tokens=6)[1]
    opened = opener == "<think>\n"
    assert answer.text.startswith("<think>") == opened
    right = score(answer.text + "The correct answer is A.", questions(1)[0])["correct"]
    assert right != opened


def test_drift_equals_a_dense_computation(model, tokenizer):
    examples = questions()
    base_answers = sample_base_answers(model, tokenizer, examples, 12)
    assert drift_from_base(base_answers, model) == pytest.approx(0, abs=1e-6)
    base, total, tokens = copy.deepcopy(model), 0.0, 0
    with torch.no_grad():
        for parameter in model.parameters():  # the head too: the answers keep a copy of the base's
            parameter.mul_(1.1)
    for b, example in enumerate(examples):
        prompt = encode_prompt(tokenizer, example.messages)
        ids = base_answers.completion_ids_BT[b][base_answers.completion_mask_BT[b]].tolist()
        ids_1L = torch.tensor([prompt + ids])
        p, q = (
            torch.distributions.Categorical(logits=m(ids_1L).logits[0, len(prompt) - 1 : -1])
            for m in (base, model)
        )
        total += torch.distributions.kl_divergence(p, q).sum().item()
        tokens += len(ids)
    found = drift_from_base(base_answers, model, batch_size=2)
    assert found == pytest.approx(total / tokens, rel=1e-4)


# ---- the preflight ----


def config(**changes):
    return dataclasses.replace(Config(max_new_tokens=6), **changes)


def test_preflight_figures(model, tokenizer):
    """Oracle: each model's own evaluation, and a dense KL(teacher || student)."""
    figures = preflight(model, tokenizer, questions(), config())
    how = {"max_new_tokens": 6}
    student, _ = evaluate(model, tokenizer, questions(), **how)
    teacher, answers = evaluate(model, tokenizer, questions(), context="demonstration", **how)
    assert figures["student"] == student and figures["teacher"] == teacher
    assert figures["copied"] == 0
    total, tokens = 0.0, 0
    for example, answer in zip(questions(), answers, strict=True):
        content = (
            f"{example.messages[0]['content']}\n\nThis is an example for a response to the "
            "question:\nThe correct answer is A.\n\nNow answer with a response of your own, "
            "including the thinking process:"
        )
        logprobs = []
        for turn in ({"role": "user", "content": content}, example.messages[0]):
            prompt = encode_prompt(tokenizer, [turn])
            logits_LV = model(torch.tensor([prompt + answer.ids])).logits[0]
            logprobs.append(torch.distributions.Categorical(logits=logits_LV[len(prompt) - 1 : -1]))
        total += torch.distributions.kl_divergence(*logprobs).sum().item()
        tokens += len(answer.ids)
    assert figures["kl_teacher_student"] == pytest.approx(total / tokens, rel=1e-4)


def test_a_scorer_takes_no_part_in_the_speed_of_sampling(model, tokenizer):
    def slow(examples, answers):
        time.sleep(1)
        return [{"correct": False} for _ in answers]

    figures = preflight(model, tokenizer, questions(), config(), slow)
    tokens = 5 * figures["student"]["completion_tokens"]
    assert figures["student"]["correct"] == 0 and figures["sampling_tokens_per_s"] > tokens


def test_copies_of_the_demonstration_are_counted(model, tokenizer, monkeypatch):
    """Thoughts and white space aside."""
    texts = ["The correct\nanswer is A.", "<think>…</think>The correct answer is A. ", "A.", "A"]
    plain = evaluation.answer_greedily

    def with_texts(*arguments, **how):
        pairs = zip(plain(*arguments, **how), texts, strict=True)
        return [dataclasses.replace(answer, text=text) for answer, text in pairs]

    monkeypatch.setattr(evaluation, "answer_greedily", with_texts)
    assert preflight(model, tokenizer, questions(4), config())["copied"] == 0.5


def test_without_a_context_one_model_is_evaluated_once(model, tokenizer, monkeypatch):
    """There is no teacher's row in the preflight, nor in the final table."""
    calls, plain = [], evaluation.answer_greedily
    monkeypatch.setattr(
        evaluation, "answer_greedily", lambda *a, **how: calls.append(how) or plain(*a, **how)
    )
    figures = preflight(model, tokenizer, questions(), config(teacher_context="none"))
    assert len(calls) == 1 and not {"teacher", "copied"} & figures.keys()
    assert figures["kl_teacher_student"] == pytest.approx(0, abs=1e-6)
    assert "teacher" not in format_preflight(figures, "none", "none: why")
    record = {"preflight": figures, "before": {"test": figures["student"]}}
    record |= {"last": record["before"], "config": {"teacher_context": "none"}}
    assert "teacher" not in format_results(record)
    figures = preflight(model, tokenizer, questions(), config())
    record |= {"preflight": figures, "config": {"teacher_context": "demonstration"}}
    assert "validation, teacher with demonstration" in format_results(record)


def figures(student, teacher, ended):
    summary = {"n": 4, "correct": student, "finished": 0.5}
    return {
        "student": summary,
        "teacher": summary | {"correct": teacher, "finished": ended},
        "copied": 0.25,
        "kl_teacher_student": 1.5,
    }


@pytest.mark.parametrize(
    "student, teacher, ended, go, why",
    [
        (0.25, 0.5, 0.1, True, "^go: "),
        (0.96, 1.0, 0.9, True, "^go: "),
        (0.25, 0.25, 0.1, False, "no-go: .* cut off; raise --eval-new-tokens"),
        (0.25, 0.25, 0.9, False, "no-go: .*larger --model"),
        (0.5, 0.25, 0.9, False, "no-go: .*--teacher-instruction"),
        (1.0, 1.0, 0.9, False, "^nothing to learn: "),  # both at the ceiling
        (0.95, 0.95, 0.1, False, "^nothing to learn: "),
    ],
)
def test_the_verdict_names_what_is_wrong(student, teacher, ended, go, why):
    found = verdict(figures(student, teacher, ended))
    assert found[0] is go and re.search(why, found[1], re.DOTALL)
    text = format_preflight(figures(student, teacher, ended), "text", found[1])
    for expected in (f"{ended:.1%} ended; context: text; 25% of its answers", "= 1.50 nats"):
        assert expected in text
    assert text.endswith(found[1])


@pytest.mark.parametrize(
    "method, teacher, line",
    [
        ("sdft", "ema", "50 steps of about 144 s = 120 minutes"),  # 600 x (0.09 + 0.05 + 0.1)
        ("teacher-kd", "base", "50 steps of about 84 s = 70 minutes"),  # samples once, before
        ("sft", "none", "50 steps of about 54 s = 45 minutes"),
    ],
)
def test_the_estimate_by_hand(method, teacher, line):
    """600 rows a step. Student 20 + 10 tokens, three passes; teacher 40 + 10, one; 10 sampled."""
    speeds = {"sampling_tokens_per_s": 100, "scoring_tokens_per_s": 1000}
    measured = {"student": {"completion_tokens": 10}} | speeds
    pairs = [Pair(str(n), [3] * 20, [3] * 40) for n in range(4)]
    sizes = {"batch_size": 200, "rollouts_per_prompt": 3, "steps": 50}
    found = scoring.estimate(measured, pairs, config(teacher=teacher, **sizes), method)
    assert found == line
    short = sizes | {"steps": 10, "warmup": 10, "teacher": teacher}
    found = scoring.estimate(measured, pairs, config(**short), method)
    assert found.endswith("; all of them warm up (--warmup 10), so it learns little: --steps")


def test_a_log_line_says_each_metric_once():
    metrics = {"kl": 0.5, "grad_norm": 2.0, "finished": 1.0, "seconds": 3.0, "correct": 0.25}
    line = log_line(7, metrics, "  validation")
    assert line == "step    7  validation  kl 0.5000  grad_norm 2.00  correct 25.0%  finished 100%"


def test_prompts_that_do_not_fit_are_named_and_never_cut(tokenizer, capsys):
    fields = {"task": "science", "demonstration": "d"}
    lengths = {"short": 5, "long": 500, "longer": 600}
    examples = [
        Example(name, messages=[{"role": "user", "content": "x" * n}], **fields)
        for name, n in lengths.items()
    ]
    limits = {"max_prompt_tokens": 100, "max_teacher_prompt_tokens": 1000}
    [pair] = encode_pairs(tokenizer, examples, config(**limits))
    assert "1 of 3 fit; longest student prompt 619" in (printed := capsys.readouterr().out)
    assert "(limit 100)" in printed and printed.rstrip().endswith("left out: long, longer")
    expected = "<|im_start|>user\nxxxxx<|im_end|>\n<|im_start|>assistant\n"
    assert pair.id == "short" and tokenizer.decode(pair.student_prompt) == expected
    assert tokenizer.decode(pair.teacher_prompt).endswith(":<|im_end|>\n<|im_start|>assistant\n")
    plain = encode_pairs(tokenizer, examples[:1], config(teacher_instruction="plain"))
    assert "of your own.<|im_end|>" in tokenizer.decode(plain[0].teacher_prompt)
    for change, message in [
        ({"too_long": "stop"}, "(?s)left out: long, longer.* --too-long drop"),
        ({"max_prompt_tokens": 10}, r"0 of 3 fit; .* \(limit 10\)"),
        ({"max_teacher_prompt_tokens": 10}, r"0 of 3 fit; .* \(limit 10\)"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            encode_pairs(tokenizer, examples, config(**limits | change))
        assert ("--too-long" in str(error.value)) == ("too_long" in change)


def test_every_evaluated_answer_is_kept(model, tokenizer, tmp_path):
    """answers.jsonl has a line for each answer of each report, appended."""
    base = sample_base_answers(model, tokenizer, questions(2), 4)
    run = SimpleNamespace(folder=tmp_path, base=base, student=model, tokenizer=tokenizer)
    run.config, run.splits = config(), SimpleNamespace(scorer=scoring.score_by_rule)
    sets = {"test": questions(3), "ood": questions(2)}
    summaries = evaluation.report(run, sets, "before")
    evaluation.report(run, {"validation": questions(1)}, "step 5")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(line["when"], line["set"], line["id"]) for line in lines] == [
        *(("before", "test", f"q{i}") for i in range(3)),
        *(("before", "ood", f"q{i}") for i in range(2)),
        ("step 5", "validation", "q0"),
    ]
    _, answers = evaluate(model, tokenizer, questions(3), max_new_tokens=6)
    for line, answer in zip(lines[:3], answers, strict=True):
        assert dataclasses.asdict(answer).items() <= line.items()
    assert summaries["test"]["drift_from_base"] == pytest.approx(0, abs=1e-6)


# ---- python eval.py ----


def test_command_line(tiny_folder, tmp_path, capsys):
    asked = ["--model", str(tiny_folder), "--task", "science"]
    json_file = tmp_path / "out.json"
    more = ["--limit", "3", "--max-new-tokens", "4", "--json", str(json_file)]
    evaluation.main(asked + more)
    record = json.loads(json_file.read_text())
    assert record["summary"]["n"] == 3 and len(record["answers"]) == 3
    assert record["command"] == " ".join(["python", "eval.py", *asked, *more])
    assert "science test" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="cannot be loaded"):
        evaluation.main(["--model", str(tmp_path), "--task", "science"])
    with pytest.raises(SystemExit, match="does not exist; its folder has"):
        evaluation.main([*asked, "--split", "exam"])
    with pytest.raises(SystemExit, match='field "text" is missing'):
        evaluation.main([*asked, "--context", "text"])
    for flag in ("--limit", "--batch-size", "--max-new-tokens"):
        with pytest.raises(SystemExit):
            evaluation.main([*asked, flag, "0"])
        assert f"{flag} 0: it must be at least 1" in capsys.readouterr().err


def test_defaults_are_those_of_the_run_that_left_the_model(
    tiny_folder, tmp_path, capsys, monkeypatch
):
    """Length, arithmetic and the end of the teacher's prompt."""
    last = shutil.copytree(tiny_folder, tmp_path / "run" / "last")
    saved = {"max_new_tokens": 5, "dtype": "bfloat16", "teacher_instruction": "plain"}
    (tmp_path / "run" / "before.json").write_text(json.dumps({"config": saved}))
    longer = shutil.copytree(tiny_folder, tmp_path / "longer" / "last")
    saved = {"max_new_tokens": 5, "eval_new_tokens": 9}
    (tmp_path / "longer" / "before.json").write_text(json.dumps({"config": saved}))
    seen, load = {}, evaluation.models.load_model

    def noted_load(name, device, dtype):
        seen["dtype"] = dtype
        return load(name, device, dtype)

    def noted_messages(example, context, instruction):
        seen["instruction"] = instruction
        return example.messages

    monkeypatch.setattr(evaluation.models, "load_model", noted_load)
    monkeypatch.setattr(evaluation.data, "teacher_messages", noted_messages)
    for folder, more, tokens, dtype, instruction in [
        (last, [], 5, "bfloat16", "plain"),
        (last, ["--dtype", "float32"], 5, "float32", "plain"),
        (last, ["--instruction", "thinking"], 5, "bfloat16", "thinking"),
        (longer, [], 9, "float32", "thinking"),
        (tiny_folder, [], 64, "float32", "thinking"),
        (tiny_folder, ["--max-new-tokens", "3"], 3, "float32", "thinking"),
    ]:
        evaluation.main(["--model", str(folder), "--task", "science", "--limit", "1", *more])
        assert f"at most {tokens} tokens" in capsys.readouterr().out
        assert seen == {"dtype": dtype, "instruction": instruction}


def test_the_json_file_may_be_in_a_new_folder(tiny_folder, tmp_path, monkeypatch):
    """Checked before the model loads; nothing is left there when the run fails."""
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = ["--model", str(tiny_folder), "--task", "science", "--limit", "1"]
    asked += ["--max-new-tokens", "2", "--json"]
    evaluation.main([*asked, str(tmp_path / "new" / "er" / "a.json")])
    assert json.loads((tmp_path / "new" / "er" / "a.json").read_text())["summary"]["n"] == 1
    evaluation.main([*asked, "~/b.json"])
    evaluation.main([*asked, "~/b.json"])  # again, over the first
    assert json.loads((tmp_path / "b.json").read_text())["summary"]["n"] == 1

    def no_model(*_):
        raise ValueError("the model was loaded")

    monkeypatch.setattr(evaluation.models, "load_model", no_model)
    for path in (tmp_path, tmp_path / "b.json" / "c.json"):
        with pytest.raises(SystemExit, match=f"{path} cannot be written"):
            evaluation.main([*asked, str(path)])
    with pytest.raises(SystemExit, match="the model was loaded"):
        evaluation.main([*asked, str(tmp_path / "d.json")])
    assert not (tmp_path / "d.json").exists() and (tmp_path / "b.json").read_text()


def test_a_console_without_the_character(tiny_folder, tmp_path):
    """The table has a ±, which ASCII lacks."""
    command = [sys.executable, str(ROOT / "eval.py"), "--model", str(tiny_folder)]
    command += ["--task", "science", "--limit", "1", "--max-new-tokens", "2"]
    command += ["--json", str(tmp_path / "a.json")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "\\xb1 is one standard error" in done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["summary"]["n"] == 1
