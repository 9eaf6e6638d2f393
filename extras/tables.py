"""Write the README's tables from results/*.json, and from nothing else.

    python extras/tables.py            # rewrites README.md between its <!-- table NAME --> and <!-- end --> marks
    python extras/tables.py --check    # only says whether it is up to date

A cell of several seeds is their mean ± half of a 95 % confidence interval (Student's t over seeds); of one seed, its figure alone.
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

from scoring import confidence_interval  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    readme = ROOT / "README.md"
    check = parser.parse_args().check
    old = readme.read_text(encoding="utf-8")
    new = re.sub(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", lambda match: match[1] + table(match[2]) + match[3], old, flags=re.DOTALL)
    if check:
        sys.exit(None if new == old else "README.md is older than results/: python extras/tables.py")
    readme.write_text(new, encoding="utf-8")


def table(name):
    """The results files NAME-seedN.json as one markdown table with its command, seeds and machine."""
    runs = [json.loads(file.read_text()) for file in sorted((ROOT / "results").glob(f"{name}-seed*.json"))]
    if not runs:
        sys.exit(f"results/{name}-seed*.json: there is none")
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
    command = re.sub(r" --seed \d+", "", runs[0]["command"])
    minutes = mean(run["seconds"] for run in runs) / 60
    lines.append(f"\n`{command}`, {len(runs)} seed{'s' if len(runs) > 1 else ''}, {minutes:.1f} minutes each on {runs[0]['machine']['processor']}.\n")
    return "\n".join(lines)


def cell(values, column):
    if any(value is None for value in values):
        return ""
    scale, unit, digits = {"completion_tokens": (1, "", 1), "drift_from_base": (1, "", 3)}.get(column, (100, " %", 1))
    half = f" ± {scale * confidence_interval(values)[1]:.{digits}f}" if len(values) > 1 else ""
    return f"{scale * mean(values):.{digits}f}{half}{unit}"


if __name__ == "__main__":
    main()
