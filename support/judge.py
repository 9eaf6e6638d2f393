"""A judge model as a scorer. (placeholder)"""

import sys
from pathlib import Path

import scoring


def choose_scorer(task, examples, judge=None, judge_model=None):
    """The rule of the task, or a judge at a URL -> scorer(examples, answers).

    Raises ValueError, before any model loads, if it cannot score these examples.
    """
    if judge is None and judge_model is not None:
        raise ValueError(f"--judge-model {judge_model} needs --judge URL")
    if judge is not None:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "extras"))
        from judge import judge_scorer

        return judge_scorer(task, examples, judge, judge_model)
    for example in examples:
        if task in ("knowledge", "medical") and not example.key_facts:
            remedy = "without them only a judge can score it: --judge URL"
            raise ValueError(f'{example.source}: field "key_facts" is missing; {remedy}')
    return scoring.score_by_rule
