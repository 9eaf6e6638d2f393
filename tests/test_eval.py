"""Scorers, greedy accuracy, drift. Oracles: answers judged by hand here; a KL computed dense, without padding or chunks."""

import copy
import json
import re
import shutil

import pytest
import torch

import eval as evaluation
from conftest import tiny_llama
from data import Example, encode_prompt, load_task
from eval import drift_from_base, evaluate, format_preflight, preflight, sample_answers, sample_base_answers
from scoring import artefact_rate, science_letter, score, score_reference, score_science


@pytest.mark.parametrize("text, letter", [
    ("12.0 + 32.0 = 44.0. The correct answer is C.", "C"),
    ("The answer is A. No, the correct answer is B.", "B"),
    ("The answer is: **D**", "D"),
    ("answer is (B)", "B"),
    ("<reasoning>the answer is A</reasoning><answer>B</answer>", "B"),
    ("<answer>A</answer> … <answer> C \n</answer>", "C"),
    ("<answer>A or B</answer> The answer is A.", None),      # tags come first, and these hold no letter
    ("The correct answer is X.", None),
    ("The correct answer is 44.0 g/mol", None),
    ("The correct answer is Carbon", None),
    ("C", None),
    ("", None),
])
def test_science_letter(text, letter):
    assert science_letter(text) == letter
    assert score_science(text, "B")["correct"] == (letter == "B")


@pytest.mark.parametrize("text, well_formed", [
    ("12.0 + 32.0 = 44.0. The correct answer is C.", True),
    ("The answer is: **D**.\n", True),
    ("<reasoning>…</reasoning><answer>B</answer>", True),
    ("The correct answer is C: 44.0", False),                # goes on after the letter
    ("The correct answer is C. To arrive at it, I", False),
    ("<answer>A or B</answer>", False),                      # ends as asked, but with no letter
    ("C", False),
])
def test_well_formed_is_to_end_with_the_letter(text, well_formed):
    assert score_science(text, "B")["well_formed"] is well_formed


@pytest.mark.parametrize("text, strict, lenient", [
    ("It killed 312 people on 1 May.", True, True),
    ("It killed  312\npeople on MAY 1.", True, True),
    ("It killed 3120 people on 1 May.", False, True),
    ("It killed 1312 on 11 May", False, False),
    ("", False, False),
])
def test_score_reference(text, strict, lenient):
    assert score_reference(text, [["312"], ["1 May", "May 1"]]) == {"correct": strict, "lenient": lenient}


@pytest.mark.parametrize("text, right", [
    ("312", True), ("It is 312.", True), ("312, I think", True), ("(312)", True), ("1,312 euro", False), ("1.312 Euro", False),
    ("312.5 tonnes", False), ("312,000", False), ("3120", False), ("v312", False), ("in room 4, 312 people", True),
])
def test_a_number_inside_another_is_another(text, right):
    assert score_reference(text, [["312"]])["correct"] is right
    assert score_reference("On 3.May,1990", [["May"]])["correct"]      # only digits make a number


@pytest.mark.parametrize("text, right", [
    ("<think>B? The correct answer is A.</think>The correct answer is B.", True),
    ("The correct answer is B.</think>The correct answer is A.", False),
    ("<think>A.</think>The correct answer is A.<think>No.</think> The correct answer is B.", True),
    ("<think>The correct answer is B.", False),                                      # cut off while it thought
    ("The correct answer is B.<think>The correct answer is A.", True),
    ("The correct answer is B.", True),
])
def test_thoughts_are_not_scored(text, right):
    assert score(text, Example("q", "science", [], answer="B"))["correct"] is right
    assert score(text.replace("A", "X"), Example("q", "medical", [], key_facts=[["B"]]))["correct"] is right


@pytest.mark.parametrize("text, artefact", [
    ("Based on the text, it was 312.", True),
    ("following the EXAMPLE: it was 312", True),
    ("<reasoning>\n**According to  the article**, it was 312.", True),
    ("<think>\nThe thinking process is", True),
    ("The text says 312.", True),
    ("The textile mill burned.", False),
    ("In the textbook case", False),
    ("It was 312, based on the text.", False),                                       # no opening
    ("", False),
])
def test_artefacts_are_openings_about_what_only_the_teacher_sees(text, artefact):
    assert artefact_rate([text]) == artefact
    assert artefact_rate([text, "It was 312.", "It was 312.", "Based on the text"]) == (2 if artefact else 1) / 4


def test_no_demonstration_of_ours_opens_like_an_artefact():
    assert artefact_rate([example.demonstration for task in ("science", "knowledge", "medical", "tooluse") for example in load_task(task, "train")]) == 0


@pytest.fixture
def model(tokenizer):
    return tiny_llama(vocab_size=len(tokenizer))


def questions(n=5):
    return [Example(f"q{i}", "science", [{"role": "user", "content": "?" * (i + 1)}], "The correct answer is A.", answer="A") for i in range(n)]


def test_evaluate_counts(model, tokenizer, monkeypatch):
    """Scores are replaced: of 4, two are right and three well formed; the error of 1/2 at n = 4 is sqrt(1/16) = 1/4."""
    outcomes = iter([(1, 1), (1, 1), (0, 1), (0, 0)])
    monkeypatch.setattr(evaluation, "score", lambda text, example: dict(zip(("correct", "well_formed"), next(outcomes))))
    texts = iter(["In the example, A.", "A.", "According to the text, A.", "In the text: A."])
    monkeypatch.setattr(tokenizer, "decode", lambda ids, skip_special_tokens=False: next(texts) if skip_special_tokens else "")
    summary, answers = evaluate(model, tokenizer, questions(4), max_new_tokens=3)
    assert (summary["n"], summary["correct"], summary["well_formed"], summary["standard_error"]) == (4, 0.5, 0.75, 0.25)
    assert summary["completion_tokens"] == sum(len(answer.ids) for answer in answers) / 4 and summary["artefacts"] == 0.75


def test_answers_come_back_in_order(model, tokenizer):
    together = evaluate(model, tokenizer, questions()[::-1], max_new_tokens=6, batch_size=2)[1]
    alone = [evaluate(model, tokenizer, [question], max_new_tokens=6)[1][0] for question in questions()[::-1]]
    assert together == alone


@pytest.mark.parametrize("opener", ["<think>\n", "<think>\n\n</think>\n\n", ""])
def test_templates_that_open_a_thought(model, tokenizer, opener):
    """The prompt ends with the template's opener, and thoughts that the length limit cut off are no answer, whatever stands in them."""
    tokenizer.chat_template += "{% if add_generation_prompt %}{{ " + json.dumps(opener) + " }}{% endif %}"
    prompt = encode_prompt(tokenizer, questions(1)[0].messages)
    assert tokenizer.decode(prompt) == "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n" + opener
    [answer] = evaluate(model, tokenizer, questions(1), max_new_tokens=6)[1]
    [[sampled]] = sample_answers(model, tokenizer, questions(1), samples=1, max_new_tokens=6)
    assert answer.text.startswith("<think>") == sampled.text.startswith("<think>") == (opener == "<think>\n")
    assert score(answer.text + "The correct answer is A.", questions(1)[0])["correct"] == (opener != "<think>\n")


def test_drift_equals_a_dense_computation(model, tokenizer):
    examples = questions()
    base_answers = sample_base_answers(model, tokenizer, examples, 12)
    assert drift_from_base(base_answers, model) == pytest.approx(0, abs=1e-6)
    base, total, tokens = copy.deepcopy(model), 0.0, 0
    with torch.no_grad():
        for parameter in model.parameters():  # also the head, which is tied: the answers keep a copy of the base's
            parameter.mul_(1.1)
    for b, example in enumerate(examples):
        prompt = encode_prompt(tokenizer, example.messages)
        ids = base_answers.completion_ids_BT[b][base_answers.completion_mask_BT[b]].tolist()
        p, q = (torch.distributions.Categorical(logits=m(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1:-1]) for m in (base, model))
        total, tokens = total + torch.distributions.kl_divergence(p, q).sum().item(), tokens + len(ids)
    assert drift_from_base(base_answers, model, batch_size=2) == pytest.approx(total / tokens, rel=1e-4)


def test_preflight_figures(model, tokenizer):
    figures = preflight(model, tokenizer, questions(), "none", 6)
    assert figures["student"] == figures["teacher"] and figures["kl_teacher_student"] == pytest.approx(0, abs=1e-6)
    assert preflight(model, tokenizer, questions(), "demonstration", 6)["kl_teacher_student"] > 0.01


def test_the_verdict_names_what_is_wrong():
    def figures(teacher, ended):
        summary = {"n": 4, "correct": 0.25, "finished": 0.5}
        return {"student": summary, "teacher": summary | {"correct": teacher, "finished": ended}, "copied": 0.0, "kl_teacher_student": 1.0}
    for teacher, ended, enforced, verdict in [(0.5, 0.1, True, "go: "), (0.25, 0.1, True, "no-go: .* cut at --max-new-tokens"),
                                              (0.25, 0.9, True, "no-go: .* larger"), (0.25, 0.9, False, "none: this method needs no teacher")]:
        text = format_preflight(figures(teacher, ended), "demonstration", "", "", enforced)
        assert re.search(rf"verdict +{verdict}", text, re.DOTALL) and f"{ended:.1%} ended" in text


def test_command_line(tiny_folder, tmp_path, capsys):
    evaluation.main(["--model", str(tiny_folder), "--task", "science", "--limit", "3", "--max-new-tokens", "4", "--json", str(tmp_path / "out.json")])
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["summary"]["n"] == 3 and len(record["answers"]) == 3 and "science test" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="cannot be loaded"):
        evaluation.main(["--model", str(tmp_path), "--task", "science"])
    with pytest.raises(SystemExit, match="does not exist; its folder has"):
        evaluation.main(["--model", str(tiny_folder), "--task", "science", "--split", "exam"])
    for flag in ("--limit", "--batch-size", "--max-new-tokens"):
        with pytest.raises(SystemExit):
            evaluation.main(["--model", str(tiny_folder), "--task", "science", flag, "0"])
        assert f"{flag} 0: it must be at least 1" in capsys.readouterr().err


def test_length_and_arithmetic_are_those_of_the_run_that_left_the_model(tiny_folder, tmp_path, capsys, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / "run" / "last")
    (tmp_path / "run" / "before.json").write_text('{"config": {"max_new_tokens": 5, "dtype": "bfloat16"}}')
    loaded, load = [], evaluation.load_model
    monkeypatch.setattr(evaluation, "load_model", lambda name, device, dtype: loaded.append(dtype) or load(name, device, dtype))
    for folder, more, tokens, dtype in [(tmp_path / "run" / "last", [], 5, "bfloat16"), (tmp_path / "run" / "last", ["--dtype", "float32"], 5, "float32"),
                                        (tiny_folder, [], 64, "float32"), (tiny_folder, ["--max-new-tokens", "3"], 3, "float32")]:
        evaluation.main(["--model", str(folder), "--task", "science", "--limit", "1", *more])
        assert f"at most {tokens} tokens" in capsys.readouterr().out and loaded[-1] == dtype
