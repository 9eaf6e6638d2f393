"""The hyperparameter grid of a method (Tables 3 and 4): every point one run, the best by validation; the test set is not looked at.

    python extras/sweep.py --task science --method sft -- --preset paper --data DATA
    python extras/sweep.py --task science --method sdft --list -- --preset paper --data DATA        # the commands, and run nothing
    python extras/sweep.py --task science --method sdft --grid learning-rate=3e-5,1e-4 ema-rate=0.01,0.02 -- --preset laptop

What follows -- goes to every sdft.py. A point's record is results/sweep-TASK-METHOD-POINT-seedN.json, as extras/matrix.py writes it;
those that exist are not run again, and an interrupted run goes on from its checkpoint. The methods that the tables do not name
(teacher-sft, teacher-kd, reinvoke) take the grid of SFT.
"""

import argparse
import itertools
import json
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "extras"))

from config import METHODS, REPORTS, parse_config  # noqa: E402
from matrix import run  # noqa: E402
from scoring import validation_rank  # noqa: E402


def paper_grid(task, method):
    """{flag: values} of Table 3 (skills) or Table 4 (knowledge), which the paper calls sets to search and of which it prints no choice."""
    if method == "cpt":
        return {"learning-rate": [1e-6, 5e-6, 1e-5], "epochs": [1, 2, 4, 8]}
    epochs = [1, 2, 4] if (task, method) == ("knowledge", "sdft") else [1, 2]
    grid = {"learning-rate": [5e-6, 1e-5, 5e-5], "batch-size": [16, 32, 64], "epochs": epochs}
    return grid | ({"ema-rate": [0.01, 0.02, 0.05]} if method == "sdft" else {})


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--task", required=True, choices=list(REPORTS))
    parser.add_argument("--method", required=True, choices=list(METHODS))
    parser.add_argument("--grid", nargs="+", metavar="FLAG=V,V,…", help="instead of the paper's grid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="say what is done and what is not, and run nothing")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where runs in progress stand")
    cut = argv.index("--") if "--" in argv else len(argv)
    args, shared = parser.parse_args(argv[:cut]), argv[cut + 1:]
    grid = paper_grid(args.task, args.method)
    if args.grid:
        given = dict(axis.partition("=")[::2] for axis in args.grid)
        if not all(flag and values for flag, values in given.items()):
            parser.error("--grid takes FLAG=VALUE,VALUE, for example learning-rate=1e-5,5e-5")
        grid = {flag: values.split(",") for flag, values in given.items()}

    points = {}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values))
        name = "-".join(["sweep", args.task, args.method, *(f"{flag}-{value}" for flag, value in point.items()), f"seed{args.seed}"])
        flags = ["--task", args.task, "--method", args.method, *shared, *(word for flag, value in point.items() for word in (f"--{flag}", str(value))),
                 "--seed", str(args.seed)]
        parse_config(flags, __doc__)        # a flag that is refused is refused before the first run
        points[name] = shlex.join(flags)
    for name, flags in points.items():
        file = args.results / f"{name}.json"
        if args.list:
            print(f"{'done' if file.exists() else 'to do':6} python sdft.py {flags}")
        elif not file.exists():
            run(name, flags, args.runs, file, keep_weights=False)
    if not args.list:
        print(ranking({flags: json.loads((args.results / f"{name}.json").read_text()) for name, flags in points.items()}))


def best_validation(record):
    """scoring.validation_rank of the run's best validation: that of the weights in its best/. ValueError where it had none."""
    ranks = [validation_rank(line["validation"]) for line in record["curve"] if "validation" in line]
    if not ranks:
        raise ValueError(f"{record['command']}: no validation was made; a sweep needs --eval-every of 1 or more")
    return max(ranks)


def ranking(records):
    """{flags: record} as lines, the best validation first."""
    ranked = sorted(records, key=lambda flags: best_validation(records[flags]), reverse=True)
    lines = [f"{best_validation(records[flags])[0]:8.1%} on validation: python sdft.py {flags}" for flags in ranked]
    return "\n".join([*lines, f"the best of {len(ranked)} by validation is the first"])


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
