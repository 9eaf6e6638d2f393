"""Write the README's tables from results/*.json, and from nothing else.

    python extras/tables.py            # rewrites README.md between its marks
    python extras/tables.py --check    # only says whether it is up to date

<!-- table NAME --> … <!-- end --> holds every set of one experiment, before and after; <!-- methods TASK NAME NAME … --> … <!-- end --> one row
for each experiment: its last weights on the test set, what it kept of the probe and what it cost. A cell of several seeds is their mean ± half
of a 95 % confidence interval (Student's t over seeds); of one seed, its figure alone.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "extras"))

from plot_results import of_test  # noqa: E402
from scoring import confidence_interval  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    readme = ROOT / "README.md"
    check = parser.parse_args().check
    old = readme.read_text(encoding="utf-8")
    new = re.sub(r"(<!-- (table|methods) ([\w -]+) -->\n).*?(<!-- end -->)",
                 lambda match: match[1] + {"table": table, "methods": methods}[match[2]](*match[3].split()) + match[4], old, flags=re.DOTALL)
    if check:
        sys.exit(None if new == old else "README.md is older than results/: python extras/tables.py")
    readme.write_text(new, encoding="utf-8")


def read_runs(name):
    runs = [json.loads(file.read_text()) for file in sorted((ROOT / "results").glob(f"{name}-seed*.json"))]
    return runs or sys.exit(f"results/{name}-seed*.json: there is none")


def without_seed(command):
    return re.sub(r" --seed \d+", "", command)


PAPER = {"science": "paper: new task / prior", "knowledge": "paper: strict / lenient / OOD"}     # Qwen2.5-7B; its SDFT is the forward KL of its code

ROWS = {  # experiment -> (what its row is called, the paper's figures); what is not here is called by its name
    "science": ("SDFT, forward KL", "70.2 / 64.5"),
    "science-reverse": ("SDFT, reverse KL", ""),
    "science-sft-1e-4": ("SFT, rate 1e-4", "66.2 / 53.4"),
    "science-sft-3e-5": ("SFT, rate 3e-5", ""),
    "science-dft": ("DFT", "54.8 / 60.2"),
    "science-reinvoke": ("SFT, then re-invoke", "66.0 / 60.2"),
    "science-teacher-base": ("teacher: the frozen base", ""),
    "science-teacher-student": ("teacher: the student itself", ""),
    "science-token": ("reverse KL, estimator token", ""),
    "science-rb": ("reverse KL, estimator rb, sum", ""),
    "science-skip-0": ("no first tokens masked", ""),
    "science-4-rollouts": ("4 rollouts for each of 2 prompts", ""),
    "knowledge": ("SDFT, forward KL", "89 / 100 / 98"),
    "knowledge-100-steps": ("the same, 100 steps", ""),
    "knowledge-250-steps": ("the same, 250 steps", ""),
    "knowledge-reverse": ("SDFT, reverse KL", ""),
    "knowledge-sft-1e-4": ("SFT, rate 1e-4", "80 / 95 / 80"),
    "knowledge-sft-3e-5": ("SFT, rate 3e-5", ""),
    "knowledge-dft": ("DFT", ""),
    "knowledge-reinvoke": ("SFT, then re-invoke", ""),
    "knowledge-cpt": ("CPT on the articles", "9 / 37 / 7"),
    "knowledge-teacher-sft": ("SFT on the teacher's answers", ""),
    "knowledge-teacher-kd": ("KL on the teacher's answers", ""),
    "knowledge-text": ("teacher sees the article alone", ""),
    "knowledge-demonstration": ("teacher sees the answer alone", ""),
}
BASE = {"science": "32.1 / 65.5", "knowledge": "0 / 0 / 0"}


METHOD_COLUMNS = {  # task -> [(heading, how to read it from a run's record)]
    "science": [("right", lambda run: run["last"]["test"]["correct"]), ("well formed", lambda run: run["last"]["test"]["well_formed"])],
    "knowledge": [("trained wordings", lambda run: run["last"]["trained wordings"]["correct"]),
                  ("held-out", lambda run: run["last"]["held-out wordings"]["correct"]),
                  ("held-out, lenient", lambda run: run["last"]["held-out wordings"]["lenient"]),
                  ("indirect", lambda run: run["last"]["indirect (OOD)"]["correct"])],
    "every task": [("probe", lambda run: run.get("probe", {}).get("correct")),
                   ("drift from base", lambda run: of_test(run["last"])["drift_from_base"]),
                   ("completion tokens", lambda run: of_test(run["last"])["completion_tokens"]),
                   ("TFLOP", lambda run: run["training_flops"] / 1e12 if "training_flops" in run else None)],
}


def methods(task, *names):
    """One markdown row for the base model, one for each of the experiments NAME-seedN.json, and below the table their commands."""
    columns = METHOD_COLUMNS[task] + METHOD_COLUMNS["every task"]
    lines = ["| | seeds | " + " | ".join(heading for heading, _ in columns) + f" | {PAPER[task]} |", "|---" * (len(columns) + 3) + "|"]
    experiments = {name: read_runs(name) for name in names}
    probe = json.loads((ROOT / "results" / "base-model.json").read_text())["probe"]["summary"]
    base = {"last": experiments[names[0]][0]["before"], "probe": probe, "training_flops": 0}
    called = {name: ROWS.get(name, (name, "")) for name in names}
    for (label, paper), seeds, runs in [(("base", BASE[task]), "", [base]), *((called[name], len(runs), runs) for name, runs in experiments.items())]:
        cells = [cell([read(run) for run in runs], heading) for heading, read in columns]
        lines.append(f"| {label} | {seeds} | " + " | ".join([*cells, paper]) + " |")
    commands = [f"- {called[name][0]}: `{without_seed(runs[0]['command'])}`" for name, runs in experiments.items()]
    return "\n".join(lines) + "\n\n" + "\n".join(commands) + "\n"


def table(name):
    """The results files NAME-seedN.json as one markdown table with its command, seeds and machine."""
    runs = read_runs(name)
    rows = defaultdict(list)
    for run in runs:
        for report in run["before"]:
            for when in ("before", "best", "last"):
                # where the best step by validation is the last one, there is one set of weights
                rows[f"{report}, {when}"].append(run.get(when, run["last"])[report])
        rows["validation, teacher in context"].append(run["preflight"]["teacher"])
    rows = {label: summaries for label, summaries in rows.items() if "best" not in label or any("best" in run for run in runs)}
    columns = [column for column in ("correct", "lenient", "well_formed", "finished", "completion_tokens", "drift_from_base")
               if any(column in summary for summaries in rows.values() for summary in summaries)]
    lines = ["| | n | " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for label, summaries in rows.items():
        cells = [cell([summary.get(column) for summary in summaries], column) for column in columns]
        lines.append(f"| {label} | {summaries[0]['n']} | " + " | ".join(cells) + " |")
    fastest = min(runs, key=lambda run: run["seconds"])
    lines.append(f"\n`{without_seed(runs[0]['command'])}`, {len(runs)} seed{'s' if len(runs) > 1 else ''}; {'the fastest ' if len(runs) > 1 else ''}in {fastest['seconds'] / 60:.1f} minutes "
                 f"on {fastest['machine']['processor']}.\n")
    return "\n".join(lines)


def cell(values, column):
    known = [value for value in values if value is not None]
    if not known:
        return ""
    scale, unit, digits = {"completion tokens": (1, "", 1), "drift from base": (1, "", 3), "TFLOP": (1, "", 0)}.get(column.replace("_", " "), (100, " %", 1))
    half = f" ± {scale * confidence_interval(known)[1]:.{digits}f}" if len(known) > 1 else ""
    of = f" ({len(known)} of {len(values)} seeds)" if len(known) < len(values) else ""      # an older record may lack a measure
    return f"{scale * mean(known):.{digits}f}{half}{unit}{of}"


if __name__ == "__main__":
    main()
