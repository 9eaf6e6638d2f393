"""Choose what scores a run: the string rules of scoring.py, or a language model as the judge.

The paper judges medical and knowledge answers with GPT-5-mini. The prompt is ours, after the
paper's description. docs/judge.md says how to start a judge whose verdicts repeat.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

from tqdm import tqdm

from scoring import final_answer, score_by_rule
from support.server import Server

INSTRUCTIONS = {
    "medical": """Compare a model's response to a medical question with the reference answer.

CORRECT: the response contains the key medical information of the reference answer, \
even if it is phrased differently or adds more correct detail.
INCORRECT: the response is wrong, or misses the main point of the reference answer.

Output ONLY one of: "CORRECT" or "INCORRECT".""",
    "knowledge": """Compare a model's response to a question with the reference answer.

CORRECT: the response contains all the key information of the reference answer, \
even if it is phrased differently, and nothing that contradicts it.
PARTIALLY_CORRECT: the response contains most of the key information of the reference answer, \
but misses some details.
INCORRECT: the response is wrong, or misses the main point of the reference answer.

Output ONLY one of: "CORRECT", "PARTIALLY_CORRECT" or "INCORRECT".""",
}
VERDICTS = {
    "medical": ["CORRECT", "INCORRECT"],
    "knowledge": ["CORRECT", "PARTIALLY_CORRECT", "INCORRECT"],
}
QUESTION = {"medical": "[Medical Question]", "knowledge": "[Question]"}
TIMEOUT = 60  # seconds for a verdict
ASKED = 3  # times for one answer, until a reply has a verdict
GIVE_UP = 4  # failed answers of one evaluation, each after retries: the others are not asked about
SERVER = {  # of Server
    "temperature": 0,  # a default of 0.8 changed most verdicts from one judging to the next
    "attempts": 4,
    "remedy": "Is the judge's server running?",
    "flags": ("--judge-model", "--judge-timeout"),
}
PROBE = SimpleNamespace(  # a judge must call its answer CORRECT
    messages=[{"role": "user", "content": "Which organ pumps blood through the body?"}],
    reference="The heart pumps blood through the body.",
    answer="It is the heart.",
)


def choose_scorer(
    task, examples, judge=None, judge_model=None, judge_timeout=TIMEOUT, judge_repeats=1
):
    """The rule of the task, or the judge at a URL -> scorer(examples, answers).

    A scorer returns a dict of scores for each answer. Raises ValueError, before any model loads,
    if it cannot score these examples.
    """
    if judge is not None:
        return judge_scorer(task, examples, judge, judge_model, judge_timeout, judge_repeats)
    for flag, value, default in (
        ("--judge-model", judge_model, None),
        ("--judge-timeout", judge_timeout, TIMEOUT),
        ("--judge-repeats", judge_repeats, 1),
    ):
        if value != default:
            raise ValueError(f"{flag} {value} needs --judge URL")
    for example in examples:
        if task in ("knowledge", "medical") and not example.key_facts:
            remedy = "without them only a judge can score it: --judge URL"
            raise ValueError(f'{example.source}: field "key_facts" is missing; {remedy}')
    return score_by_rule


# ---- the prompt and the verdict ----


def judge_prompt(task, example, answer):
    """What the judge reads: all turns of the question, the reference and the answer that is scored.

    The reference is the example's `reference` or, without one, its demonstration.
    """
    reference = example.reference or example.demonstration
    if reference is None:
        raise ValueError(
            f'{example.source}: neither "reference" nor "demonstration"; a judge needs one to '
            "compare with"
        )
    question = example.messages[-1]["content"]
    if len(example.messages) > 1:
        question = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in example.messages)
    # joined, never .format: answers contain curly braces
    return "\n\n".join(
        [
            INSTRUCTIONS[task],
            QUESTION[task] + "\n" + question,
            "[Reference Answer]\n" + reference,
            "[Model Response]\n" + final_answer(answer),
        ]
    )


def parse_verdict(reply, task):
    """The verdict that a reply has as a word of its own, in capitals.

    None if it has none, two different ones, or a qualified one. Thoughts are not read.
    Traps: INCORRECT ends with CORRECT, PARTIALLY_CORRECT contains it (neither has a word boundary
    before it), and "not CORRECT" or "PARTIALLY CORRECT" mean something else.
    """
    verdict, reply = "|".join(VERDICTS[task]), final_answer(reply)
    found = re.findall(rf"(?:([\w'’]+)[\s*\"'“-]+)?\b({verdict})\b", reply)
    qualified = any(
        before.casefold()
        in ("not", "never", "neither", "nor", "hardly", "partially", "partly", "mostly")
        or before.casefold().endswith(("n't", "n’t"))
        for before, _ in found
    )
    verdicts = {verdict for _, verdict in found}
    return verdicts.pop() if len(verdicts) == 1 and not qualified else None


# ---- the judge as a scorer ----


def judge_scorer(task, examples, url, model=None, timeout=TIMEOUT, repeats=1):
    """scorer(examples, answers) -> a dict of scores for each answer, as scoring.py has them.

    {"correct", "not_judged": False}, of knowledge with "lenient"; {"not_judged": True} where the
    judge failed. Raises ValueError unless an example question shows that the judge can judge, and
    each example has a reference.
    """
    if task not in VERDICTS:
        judged = " and ".join(VERDICTS)
        raise ValueError(f"--judge scores {judged}, whose reference is text; --task is {task}")
    if repeats < 1:
        raise ValueError(f"--judge-repeats is {repeats}; it must be at least 1")
    if not timeout > 0:
        raise ValueError(f"--judge-timeout is {timeout}; it must be above 0")
    for example in examples:
        judge_prompt(task, example, "")
    try:
        server = Server(url, model, timeout=timeout, **SERVER)
        check_judge(task, server)
    except ValueError as error:
        raise ValueError(f"--judge: {error}") from None
    return partial(judge_answers, task, server, repeats, {})


def check_judge(task, server):
    """ValueError with a remedy unless the judge calls a right answer CORRECT."""
    prompt = judge_prompt(task, PROBE, PROBE.answer)
    reply = server.ask([{"role": "user", "content": prompt}])
    what = f"{server.url} was asked about a right answer and"
    if reply.lacks:
        raise ValueError(f"{what} sent {reply.lacks}")
    if parse_verdict(reply.text, task) != "CORRECT":
        said = final_answer(reply.text)[-60:]
        raise ValueError(f"{what} said {said!r}, not CORRECT. Name another --judge-model")


def judge_answers(task, server, repeats, verdicts, examples, answers):
    """The scorer itself; verdicts {prompt: its verdicts} keeps it from asking twice."""
    pairs = zip(examples, answers, strict=True)
    prompts = [judge_prompt(task, example, answer.text) for example, answer in pairs]
    missing = {prompt: repeats - len(verdicts.get(prompt, [])) for prompt in prompts}
    requests = [prompt for prompt, n in missing.items() for _ in range(n)]
    failures, pool = [], ThreadPoolExecutor(server.concurrency)
    try:
        asked = pool.map(partial(ask_verdict, task, server, failures), requests)
        found = list(tqdm(asked, total=len(requests), desc="judging", leave=False))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits only for what was asked already
    for prompt, (verdict, _) in zip(requests, found, strict=True):
        verdicts.setdefault(prompt, []).extend([verdict] if verdict else [])
    new = [prompt for prompt, n in missing.items() if n > 0]
    if unjudged := sum(not verdicts[prompt] for prompt in new):
        why = failures[0] if failures else next(why for verdict, why in found if not verdict)
        tqdm.write(f"judge: {unjudged} of {len(new)} answers not judged: {why}")
    return [verdict_scores(task, verdicts[prompt]) for prompt in prompts]


def ask_verdict(task, server, failures, prompt):
    """(verdict, None), or (None, why); failures has the errors of all requests of an evaluation."""
    for _ in range(ASKED):
        if len(failures) >= GIVE_UP:
            return None, failures[0]
        try:
            reply = server.ask([{"role": "user", "content": prompt}])
        except ValueError as error:
            failures.append(str(error))
            return None, str(error)
        if verdict := parse_verdict(reply.text, task):
            return verdict, None
    what = f"are {reply.lacks}" if reply.lacks else "have no verdict"
    return None, f"its replies {what}, {ASKED} times each"


def verdict_scores(task, verdicts):
    """The scores of an answer that was judged len(verdicts) times: shares, if more than once."""
    n = len(verdicts)
    if n == 0:
        return {"not_judged": True}
    correct = sum(verdict == "CORRECT" for verdict in verdicts) / n
    lenient = sum(verdict != "INCORRECT" for verdict in verdicts) / n
    scores = {"correct": correct} | ({"lenient": lenient} if task == "knowledge" else {})
    if n == 1:
        scores = {name: value == 1 for name, value in scores.items()}
    return scores | {"not_judged": False}
