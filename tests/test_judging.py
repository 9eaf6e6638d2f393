"""The judge as the scorer of training and of eval.py.

Oracles: a server on this machine whose verdicts are written down here, on answers that are put into
the model's mouth; the files that a run leaves, searched for the key.
"""

import dataclasses
import json
import re
import socket
import sys

import pytest
from conftest import KEY, ROOT
from test_sdft import flags, read_lines

import baselines
import eval as evaluation
import scoring
import sdft
from data import Example
from eval import Answer
from scoring import validation_rank
from support import judge as judging
from support import preflight
from support import run as around
from support import server as client
from support.judge import choose_scorer
from support.preflight import verdict
from support.tables import format_table, log_line

sys.path.insert(0, str(ROOT / "extras"))

import judge  # noqa: E402
from convert import convert  # noqa: E402

ORGANS = ["heart", "liver", "skin", "lung"]
PARAPHRASE = "The pump in the chest, the filter of the blood, the outer hull, the bellows."
DENIAL = "It is not the heart, the liver, the skin or the lung."


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setitem(judging.SERVER, "sleep", lambda _: None)


@pytest.fixture
def folder(tmp_path):
    """Four questions in each split, with key facts for the string rule."""
    for split in ("train", "validation", "test"):
        lines = [
            json.dumps(
                {
                    "prompt": f"{split}: organ {i}?",
                    "demonstration": f"The {organ}.",
                    "key_facts": [[organ]],
                }
            )
            for i, organ in enumerate(ORGANS)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def put_answers(monkeypatch, texts, when=lambda description: None):
    """Every answer of an evaluation is texts[its description], else "Nothing."."""
    plain = evaluation.sample_answers

    def answer(model, tokenizer, prompts, *, description=None, **how):
        when(description)
        text = texts.get((description or "").removesuffix(", sampled"), "Nothing.")
        answers = plain(model, tokenizer, prompts, description=description, **how)
        return [dataclasses.replace(answer, text=text) for answer in answers]

    for module in (evaluation, preflight):
        monkeypatch.setattr(module, "sample_answers", answer)


def knows_paraphrases(prompt):
    """A judge that calls the paraphrase right, and the answer to the question that tests it."""
    response = prompt.rpartition("[Model Response]\n")[2]
    right = response in (PARAPHRASE, "It is the heart.")
    return 200, {}, "CORRECT" if right else "INCORRECT"


def run_flags(model, folder, name, **more):
    sizes = {"task": "medical", "data": folder, "steps": 3, "eval_every": 1, "eval_examples": None}
    return flags(model, folder / name, **sizes | more)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


# ---- training ----


@pytest.mark.parametrize("script", [["sdft"], ["baselines", "--method", "sft"]])
def test_the_judge_chooses_other_weights_than_the_string_rule(
    script, tiny_folder, folder, server, monkeypatch, capsys
):
    """Step 1 says the right thing in other words, step 2 names the key facts and denies them."""
    texts = {"step 1: validation": PARAPHRASE, "step 2: validation": DENIAL}
    put_answers(monkeypatch, texts)
    server.reply = knows_paraphrases
    main = {"sdft": sdft.main, "baselines": baselines.main}[script[0]]
    main([*script[1:], *run_flags(tiny_folder, folder, "rule")])
    assert server.asked == []
    where = {"judge": server.url, "judge_model": "strong"}
    main([*script[1:], *run_flags(tiny_folder, folder, "judged", **where)])
    files = {name: folder / name / "results.json" for name in ("rule", "judged")}
    results = {name: json.loads(file.read_text()) for name, file in files.items()}
    best_steps = {name: record["best_step"] for name, record in results.items()}
    assert best_steps == {"rule": 2, "judged": 1}
    best = {name: weights(folder / name / "best") for name in results}
    assert best["rule"] != best["judged"] and weights(folder / "rule/last") not in best.values()
    curve = [line["validation"] for line in read_lines(folder / "judged" / "metrics.jsonl")]
    assert [entry["correct"] for entry in curve] == [1, 0, 0]
    assert all(entry["not_judged"] == 0 for entry in curve)
    assert "not_judged" not in results["rule"]["last"]["test"]
    # who was asked, with which key; and that nobody wrote the key down
    senders = {(key, asked["model"]) for _, key, asked in server.asked}
    assert senders == {(f"Bearer {KEY}", "strong")}
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 10 and not any(KEY.encode() in file.read_bytes() for file in files)
    printed = capsys.readouterr()
    assert KEY not in printed.out + printed.err
    assert "right and wrong by the judge, over the answers that it judged" in printed.out


def test_an_answer_is_judged_once(tiny_folder, folder, server, monkeypatch):
    """The same four answers at each validation, and once more for the student and its teacher."""
    put_answers(monkeypatch, {})
    server.reply = knows_paraphrases
    sdft.main(run_flags(tiny_folder, folder, "run", judge=server.url))
    prompts = [asked["messages"][0]["content"] for _, _, asked in server.asked]
    assert len(prompts) == len(set(prompts)) == 1 + 4 + 4  # the probe, validation, test


def test_nonsense_is_asked_again_and_then_not_judged(
    tiny_folder, folder, server, monkeypatch, capsys
):
    """Of four answers one is right, two are wrong, and of one the judge says "Hm." for ever."""
    put_answers(monkeypatch, {"step 1: validation": PARAPHRASE})

    def reply(prompt):
        if "organ 2?" in prompt:
            return 200, {}, "Hm."
        if "organ 3?" in prompt or "[Medical Question]\nWhich organ" in prompt:
            return 200, {}, "<think>INCORRECT? No.</think> CORRECT"
        return 200, {}, "INCORRECT"

    server.reply = reply
    sdft.main(run_flags(tiny_folder, folder, "run", judge=server.url, steps=1))
    [line] = read_lines(folder / "run" / "metrics.jsonl")
    summary = line["validation"]
    assert (summary["n"], summary["correct"], summary["not_judged"]) == (4, 1 / 3, 1 / 4)
    assert summary["standard_error"] == pytest.approx((1 / 3 * 2 / 3 / 3) ** 0.5)
    printed = capsys.readouterr().out
    assert "  correct 33.3%  not_judged 25.0%" in printed  # log line
    assert printed.count("33.3% right, 25.0% not judged") == 4  # preflight, greedy and sampled
    [row] = [line for line in printed.splitlines() if line.startswith("test, last")]
    assert row.split()[2:7] == ["4", "33.3%", "±", "27.2%", "25.0%"]  # table
    assert "judge: 1 of 4 answers not judged: its replies have no verdict, 3 times each" in printed
    prompts = [asked["messages"][0]["content"] for _, _, asked in server.asked]
    [prompt] = {prompt for prompt in prompts if "organ 2?" in prompt and PARAPHRASE in prompt}
    assert prompts.count(prompt) == 3
    scores = [answer["scores"] for answer in read_lines(folder / "run" / "answers.jsonl")[-4:]]
    wrong, right = [{"correct": value, "not_judged": False} for value in (False, True)]
    assert scores == [wrong, wrong, {"not_judged": True}, right]


@pytest.mark.parametrize("dies_at, best", [("step 2: validation", 1), ("step 1: validation", None)])
def test_a_judge_that_dies_in_training_counts_nothing_as_wrong(
    dies_at, best, tiny_folder, folder, server, monkeypatch, capsys
):
    """Nor does it choose weights. The run goes on, and says so."""

    def die(description):
        if description == dies_at:
            server.reply = lambda prompt: "hang up"

    put_answers(monkeypatch, {f"step {n}: validation": f"Answer {n}." for n in (1, 2, 3)}, die)
    sdft.main(run_flags(tiny_folder, folder, "run", judge=server.url))
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["best_step"] == best and (folder / "run" / "best").exists() == (best is not None)
    last = read_lines(folder / "run" / "metrics.jsonl")[-1]["validation"]
    assert last["not_judged"] == 1 and not {"correct", "standard_error"} & last.keys()
    assert results["last"]["test"]["correct"] == 1, "these answers were judged before"
    printed = capsys.readouterr().out
    assert "not_judged 100.0%" in printed
    assert f"4 of 4 answers not judged: {server.url} gave no answer in 4 attempts" in printed


def test_a_dead_judge_is_not_waited_for_at_every_answer(server):
    """After four failed answers the rest are not asked about: at most the seven under way."""
    examples = [Example(str(n), "medical", [{"content": str(n)}], "d") for n in range(40)]
    scorer = choose_scorer("medical", examples, server.url)
    server.asked.clear()
    server.reply = lambda _: (500, {}, "")
    scores = scorer(examples, [Answer("a", [], True)] * 40)
    assert scores == [{"not_judged": True}] * 40
    assert 4 * judging.SERVER["attempts"] <= len(server.asked) <= 7 * judging.SERVER["attempts"]
    server.reply = lambda _: (200, {}, "CORRECT")
    scores = scorer(examples, [Answer("a", [], True)] * 40)
    assert scores == [{"correct": True, "not_judged": False}] * 40, "it is asked again later"


@pytest.mark.parametrize(
    "script, reply, message",
    [
        (sdft.main, "hang up", r"{url} gave no answer in 4 attempts; .* server running\?$"),
        (baselines.main, "hang up", r"{url} gave no answer in 4 attempts; .* server running\?$"),
        (sdft.main, (401, {}, ""), r"{url} refused the request: HTTP 401 .*OPENAI_API_KEY$"),
        (sdft.main, (200, {}, "Hm."), r"{url} was asked .* said 'Hm\.', not CORRECT. Name anoth"),
        (sdft.main, (200, {}, "INCORRECT"), "not CORRECT. Name another --judge-model$"),
    ],
)
def test_a_judge_that_cannot_judge_stops_before_the_model_loads(
    script, reply, message, tiny_folder, folder, server, monkeypatch
):
    monkeypatch.setattr(around, "load_model", lambda *_: pytest.fail("the model was loaded"))
    server.reply = lambda _: reply
    method = ["--method", "sft"] if script is baselines.main else []
    with pytest.raises(SystemExit) as end:
        script([*method, *run_flags(tiny_folder, folder, "run", judge=server.url)])
    line = end.value.code
    assert re.search("^error: --judge: .*" + message.format(url=re.escape(server.url)), line)
    assert KEY not in line and not (folder / "run").exists()


def test_a_redirect_to_another_host_is_refused_and_the_key_stays(folder, server, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.setblocking(False)
        elsewhere = f"http://localhost:{other.getsockname()[1]}/v1/chat/completions"
        for status in (301, 302, 307, 308):
            server.reply = lambda _, status=status: (status, {"Location": elsewhere}, "CORRECT")
            with pytest.raises(SystemExit, match=f"refused the request: HTTP {status}") as end:
                command = f"--model nowhere --task medical --data {folder} --judge {server.url}"
                evaluation.main([*command.split(), "--judge-timeout", "1"])
            assert KEY not in end.value.code
        with pytest.raises(BlockingIOError):
            other.accept()
    assert len(server.asked) == 4


# ---- what is refused, and what the core does alone ----


def test_without_openai_one_line_says_what_to_install(folder, monkeypatch):
    """The rule needs no package; --judge does."""
    monkeypatch.setattr(client, "openai", None)
    assert choose_scorer("science", []) is scoring.score_by_rule
    with pytest.raises(SystemExit, match="^error: --judge: .* openai; pip install -U openai$"):
        command = f"--model nowhere --task medical --data {folder} --judge http://127.0.0.1:9"
        evaluation.main(command.split())


@pytest.mark.parametrize(
    "command, message",
    [
        ("--task science --judge URL", "--judge scores medical and knowledge, .* is science"),
        ("--task medical --judge-model NAME", "--judge-model NAME needs --judge URL"),
        ("--task medical --judge-repeats 2", "--judge-repeats 2 needs --judge URL"),
        ("--task medical --judge-timeout 9", "--judge-timeout 9.0 needs --judge URL"),
        ("--task medical --judge URL --judge-repeats 0", "--judge-repeats is 0; it must be at"),
        ("--task medical --judge URL --judge-timeout 0", "--judge-timeout is 0.0; it must be ab"),
        ("--task medical --judge ftp://x", "--judge: the address ftp://x must begin with http"),
    ],
)
def test_contradictions_are_refused(command, message, server, monkeypatch):
    monkeypatch.setattr(evaluation, "load_model", lambda *_: pytest.fail("the model was loaded"))
    command = command.replace("URL", server.url)
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        evaluation.main(["--model", "nowhere", *command.split()])
    assert server.asked == []


def test_what_cannot_be_scored_is_named(tmp_path, server):
    """The string rule needs key facts, a judge something to compare with."""
    file = tmp_path / "test.jsonl"
    command = f"--model nowhere --task medical --data {tmp_path}".split()
    lines = [{"prompt": "Why?", "key_facts": [["so"]]}, {"prompt": "Who?", "reference": "Me."}]
    file.write_text("\n".join(map(json.dumps, lines)))
    message = f'{file}:2: field "key_facts" is missing; without them only a judge can score it'
    with pytest.raises(SystemExit, match=re.escape(message)):
        evaluation.main(command)
    with pytest.raises(SystemExit, match=re.escape(f'{file}:1: neither "reference" nor')):
        evaluation.main([*command, "--judge", server.url])
    assert server.asked == []


def test_what_is_made_of_answers_that_were_not_judged():
    """By hand: two thirds of three judged answers; with fewer than half, nothing is chosen."""
    right, wrong = ({"correct": value, "not_judged": False} for value in (True, False))
    answers = [Answer("a", [1], True, s) for s in (right, right, wrong, {"not_judged": True})]
    summary = scoring.summarise(answers)
    assert (summary["correct"], summary["not_judged"]) == (2 / 3, 1 / 4)
    assert validation_rank(summary) == [2 / 3, 0]
    assert validation_rank(summary | {"not_judged": 0.51}) is None
    nothing = scoring.summarise(answers[3:])
    assert validation_rank(nothing) is None and "correct" not in nothing
    line = "step    1  not_judged 100.0%  completion_tokens 1.0  finished 100%"
    assert log_line(1, nothing) == line
    assert format_table([("test", nothing)]).splitlines()[1].split()[:3] == ["test", "1", "100.0%"]
    for figures in ({"student": nothing, "teacher": summary}, {"student": summary}):
        go, why = verdict({"teacher": nothing} | figures)
        assert not go and "the judge judged no answer" in why


def test_partial_credit_is_lenient(folder, server):
    examples = [Example(str(n), "knowledge", [{"content": str(n)}], "d") for n in range(3)]
    scorer = choose_scorer("knowledge", examples, server.url)
    verdicts = {"0": "CORRECT", "1": "PARTIALLY_CORRECT", "2": "INCORRECT"}
    server.reply = lambda prompt: (200, {}, verdicts[prompt.split("[Question]\n")[1][0]])
    scores = scorer(examples, [Answer("a", [], True)] * 3)
    assert [(s["correct"], s["lenient"]) for s in scores] == [
        (True, True),
        (False, True),
        (False, False),
    ]


def test_the_judge_sees_all_turns_and_only_what_is_scored(server):
    turns = [("system", "Be brief."), ("user", "Bile?"), ("assistant", "The liver."), ("user", "?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    examples = [Example("q", "medical", messages, "d")]
    scorer = choose_scorer("medical", examples, server.url)
    scorer(examples, [Answer("<think>Hm, CORRECT.</think>a", [], True)])
    sent = [asked["temperature"] for _, _, asked in server.asked]
    prompt = server.asked[-1][2]["messages"][0]["content"]
    assert sent == [0, 0] and prompt.endswith(
        "[Medical Question]\nsystem: Be brief.\n\nuser: Bile?\n\nassistant: The liver.\n\n"
        "user: ?\n\n[Reference Answer]\nd\n\n[Model Response]\na"
    )


def test_the_standard_error_of_repeated_verdicts_is_that_of_their_shares(server):
    """By hand, three verdicts each: shares 2/3, 1 and 0. Their mean is 5/9, their spread 14/81."""
    examples = [Example(str(n), "knowledge", [{"content": str(n)}], "d") for n in range(3)]
    scorer = choose_scorer("knowledge", examples, server.url, judge_repeats=3)
    verdicts = {"0": ["CORRECT", "PARTIALLY_CORRECT", "CORRECT"], "1": ["CORRECT"] * 3}
    verdicts["2"] = ["PARTIALLY_CORRECT", "INCORRECT", "INCORRECT"]
    server.reply = lambda prompt: (200, {}, verdicts[prompt.split("[Question]\n")[1][0]].pop())
    answers = [Answer("a", [], True) for _ in examples]
    for answer, scores in zip(answers, scorer(examples, answers), strict=True):
        answer.scores = scores
    assert [answer.scores["correct"] for answer in answers] == [pytest.approx(2 / 3), 1, 0]
    assert [answer.scores["lenient"] for answer in answers] == [1, 1, pytest.approx(1 / 3)]
    summary = scoring.summarise(answers)
    assert summary["standard_error"] == pytest.approx((14 / 81 / 3) ** 0.5)
    assert len(server.asked) == 1 + 9
    assert scorer(examples, answers) == [answer.scores for answer in answers]
    assert len(server.asked) == 1 + 9, "each answer is judged three times in all"


def test_a_repeat_without_a_verdict_is_asked_for_again_later(server):
    examples = [Example("q", "medical", [{"content": "?"}], "d")]
    scorer = choose_scorer("medical", examples, server.url, judge_repeats=2)
    answers = [Answer("a", [], True)]
    judged = {"correct": True, "not_judged": False}
    server.script = [(200, {}, "CORRECT")] + [(200, {}, "Hm.")] * judging.ASKED
    assert scorer(examples, answers) == [judged]
    server.script = [(200, {}, "INCORRECT")]
    assert scorer(examples, answers) == [judged | {"correct": 0.5}]


def test_cut_replies_are_called_so(server, capsys):
    cut = b'{"choices": [{"message": {"content": "C"}, "finish_reason": "length"}]}'
    examples = [Example("q", "medical", [{"content": "?"}], "d")]
    scorer = choose_scorer("medical", examples, server.url)
    server.reply = lambda _: (200, {}, cut)
    assert scorer(examples, [Answer("a", [], True)]) == [{"not_judged": True}]
    said = "1 of 1 answers not judged: its replies are cut at the server's length limit"
    assert said in capsys.readouterr().out
    with pytest.raises(ValueError, match="asked about a right answer and sent cut at the server's"):
        choose_scorer("medical", examples, server.url)


def test_a_judge_of_reasoning_models_is_asked_without_temperature(folder, server):
    refusal = {"error": {"message": "Unsupported value: 'temperature'", "param": "temperature"}}
    server.script = [(400, {}, json.dumps(refusal).encode())]
    choose_scorer("medical", [], server.url)
    assert [asked.get("temperature") for _, _, asked in server.asked] == [0, None]


# ---- medical on records in HuatuoGPT's style ----

RECORDS = [  # invented
    {
        "Open-ended Verifiable Question": "Which duct does a stone block in biliary colic?",
        "Ground-True Answer": "Cystic duct",
        "Complex_CoT": "Hm. Pain after a meal.",
        "Response": "The pain comes from a stone in the tube that drains the gallbladder.",
    },
    {
        "Question": "Which nerve is pressed in carpal tunnel syndrome?",
        "Complex_CoT": "The thumb tingles.",
        "Response": "It is the median nerve, at the wrist.",
    },
    {"Question": "Which drug?", "Complex_CoT": "?", "Response": " "},
]


def test_invented_records_from_conversion_to_the_judge(
    tiny_folder, tmp_path, server, monkeypatch, capsys
):
    """Two of three convert. The judge calls the answer right that equals no key fact."""
    for i, record in enumerate(RECORDS):  # each file says its fields
        (tmp_path / f"{i}.json").write_text(json.dumps([record]))
    files = [f"test={tmp_path}/{i}.json" for i in range(3)]
    counts, left_out = convert(files, tmp_path / "data", skip_broken=True)
    assert (counts["test"], left_out) == (2, {"broken": 1})
    printed = capsys.readouterr().out
    for line in (
        "huatuo: prompt from Open-ended Verifiable Question, reference from Ground-True Answer, "
        "key_facts from Ground-True Answer, demonstration from Response",
        "huatuo: prompt from Question, reference from Response, demonstration from Response",
        'broken: {}/2.json: record 1: field "Response" must be',
        "left out 1 (broken)",
        "note: 1 records have a reference and no key facts: score with --judge URL",
        "note: by the string rule 1 of 1 demonstrations are wrong",
    ):
        assert line.format(tmp_path) in printed
    references = ["Cystic duct", "It is the median nerve, at the wrist."]
    saved = [json.loads(line) for line in (tmp_path / "data/test.jsonl").read_text().splitlines()]
    assert [record["reference"] for record in saved] == references

    put_answers(monkeypatch, {"answering": "The tube that drains the gallbladder."})

    def reply(prompt):
        right = "[Reference Answer]\nCystic duct\n" in prompt or "It is the heart." in prompt
        return 200, {}, "CORRECT" if right else "INCORRECT"

    server.reply = reply
    command = f"--model {tiny_folder} --task medical --data {tmp_path}/data --max-new-tokens 4"
    command += f" --judge {server.url} --json {tmp_path}/out.json"
    evaluation.main(command.split())
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["summary"]["correct"] == 0.5 and record["summary"]["not_judged"] == 0
    assert [answer["scores"]["correct"] for answer in record["answers"]] == [True, False]
    assert "not judged" in capsys.readouterr().out
    assert all("model" not in asked for _, _, asked in server.asked), "no name was given"
    # and the stored answers are those that the command of its own reads
    pairs = judge.read_answers(
        tmp_path / "out.json", evaluation.data.load_task("medical", "test", tmp_path / "data")
    )
    assert len(pairs) == 2
