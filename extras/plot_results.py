"""Pictures of several runs beside each other, from result files alone. They need matplotlib: pip install matplotlib.

    python extras/plot_results.py trade-off results/science*-seed*.json --output results/trade-off.png       new task against forgetting (Fig. 4)
    python extras/plot_results.py sequence runs/sequence-*/sequence.json --output results/sequence.png       tasks over a sequence (Fig. 3)
    python extras/plot_results.py pass-at-k base.json sdft.json sft.json --output results/pass-at-k.png      pass@k (Fig. 5)

trade-off reads what extras/matrix.py writes, sequence what extras/sequence.py does, pass-at-k what eval.py --pass-at-k --json does. The
name of a file without -seedN is the name of its method, of a sequence.json that of its folder.
"""

import argparse
import json
import re
import sys
from pathlib import Path

MARKERS = "osD^vP*X<>"
TITLES = {"validation": "validation, over the steps", "test": "test, at the end", "probe": "test and probe, at the end"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=PICTURES)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="a PNG, or what else matplotlib writes")
    args = parser.parse_args()
    try:
        runs = [read_run(file, args.picture) for file in args.files]
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        import matplotlib
    except ImportError:
        sys.exit("pictures need matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    PICTURES[args.picture](runs).savefig(args.output, dpi=110)
    print(args.output)


# ---- numbers from files ----

def read_run(file, picture):
    """(name of the method, seed, record) of a result file. Raises ValueError where it is not of the kind that the picture shows."""
    name, seed = re.fullmatch(r"(.*?)(?:-seed(\d+))?", file.resolve().parent.name if file.stem == "sequence" else file.stem).groups()
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from None
    has = {"trade-off": "curve" in record, "sequence": "accuracy" in record, "pass-at-k": "pass@1" in record.get("summary", {})}
    if not has[picture]:
        raise ValueError(f"{file} has nothing for {picture}; see python extras/plot_results.py --help for what does")
    return name, int(seed or 0), record


def of_test(reports, task=""):
    """The summary of a task's test split. Its names are those of config.REPORTS, whose imports a picture should not need."""
    return next(reports[task + name] for name in ("test", "held-out wordings") if task + name in reports)


def trade_off(record):
    """{panel: [(new-task accuracy, forgetting), …]} of one run, of the panels that it has numbers for.

    validation   over the steps, from the run's start on: drift_from_base in nats a token
    test, probe  one point, of the last weights: drift_from_base; the probe's accuracy, of which more is less forgetting
    """
    validated = [line["validation"] for line in record["curve"] if "drift_from_base" in line.get("validation", {})]
    last, panels = of_test(record["last"]), {}
    if validated:
        start = record["preflight"]["student"]["correct"], of_test(record["before"])["drift_from_base"]     # re-invoke starts away from the base
        panels["validation"] = [start] + [(v["correct"], v["drift_from_base"]) for v in validated]
    panels["test"] = [(last["correct"], last["drift_from_base"])]
    if "probe" in record:
        panels["probe"] = [(last["correct"], record["probe"]["correct"])]
    return panels


def normalise(accuracy, base, best):
    """(accuracy - base) / (best - base): 0 at the base model, 1 at the best of any method; None where no method is above the base."""
    return (accuracy - base) / (best - base) if best > base else None


def sequence_curves(records):
    """For each sequence {task: [(step, normalised accuracy), …]}, from the base model on; the best is over all of the records."""
    raw = [{task: [(0, of_test(record["before"], f"{task}, ")["correct"])]
            + [(done["step"], of_test(done["scores"], f"{task}, ")["correct"]) for done in record["evaluations"]]
            for task in record["tasks"]} for record in records]
    best = {task: max(accuracy for curves in raw if task in curves for _, accuracy in curves[task]) for curves in raw for task in curves}
    return [{task: [(step, normalise(accuracy, curve[0][1], best[task])) for step, accuracy in curve] for task, curve in curves.items()}
            for curves in raw]


def stage_ends(record):
    """[(step at which a stage ended, its task), …]; the last evaluation of a stage is at its end."""
    return [(max(done["step"] for done in record["evaluations"] if done["stage"] == stage), task)
            for stage, task in enumerate(record["tasks"], start=1)]


def pass_curve(record):
    """[(k, pass@k), …] by k."""
    return sorted((int(name.removeprefix("pass@")), share) for name, share in record["summary"].items() if name.startswith("pass@"))


# ---- pictures ----

def colours(names):
    """One colour for each name, in order of appearance."""
    return {name: f"C{i}" for i, name in enumerate(dict.fromkeys(names))}


def draw_trade_off(runs):
    """A panel each for validation, test and probe; to the right is more of the new task, up is less forgetting."""
    from matplotlib import pyplot
    found = [trade_off(record) for _, _, record in runs]
    names = [panel for panel in TITLES if any(panel in panels for panels in found)]
    figure, axes = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4.2), layout="constrained", squeeze=False)
    colour, seeds = colours(name for name, _, _ in runs), sorted({seed for _, seed, _ in runs})
    marker = {seed: MARKERS[i % len(MARKERS)] for i, seed in enumerate(seeds)}
    for ax, panel in zip(axes[0], names):
        for (name, seed, _), panels in zip(runs, found):
            if panel in panels:
                x, y = zip(*panels[panel])
                # small marks along the way, a large one where the run ended
                ax.plot(x, y, color=colour[name], marker=".", linewidth=1, alpha=0.6)
                ax.plot(x[-1], y[-1], color=colour[name], marker=marker[seed], markersize=8, linestyle="none", label=f"{name}, seed {seed}")
        ax.set(title=TITLES[panel], xlabel="new task: share correct",
               ylabel="probe: share correct" if panel == "probe" else "drift from base, nats a token (up: less)")
        if panel != "probe":
            ax.axhline(0, color="#999", linewidth=1, linestyle=":")
            ax.invert_yaxis()
    # of the one panel that every run is in
    figure.legend(*axes[0][names.index("test")].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def draw_sequences(runs):
    """A panel for each sequence, a line for each task; the shaded stage is the one in which the task is trained."""
    from matplotlib import pyplot
    curves = sequence_curves([record for _, _, record in runs])
    figure, axes = pyplot.subplots(1, len(runs), figsize=(5 * len(runs), 3.6), layout="constrained", squeeze=False, sharey=True)
    colour = colours(task for _, _, record in runs for task in record["tasks"])
    for ax, (name, seed, record), tasks in zip(axes[0], runs, curves):
        start = 0
        for end, task in stage_ends(record):
            ax.axvspan(start, end, color=colour[task], alpha=0.1, linewidth=0)
            start = end
        for task, curve in tasks.items():
            if curve[0][1] is None:
                ax.plot([], [], color=colour[task], label=f"{task}: no method above the base")
            else:
                ax.plot(*zip(*curve), color=colour[task], marker="o", label=task)
        ax.axhline(0, color="#999", linewidth=1, linestyle=":")
        ax.set(title=f"{name}, seed {seed}", xlabel="step", ylabel="(accuracy − base) / (best − base)" if ax is axes[0][0] else None)
    axes[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_pass_at_k(runs):
    from matplotlib import pyplot
    figure, ax = pyplot.subplots(figsize=(5, 3.6), layout="constrained")
    colour = colours(name for name, _, _ in runs)
    for name, seed, record in runs:
        ks, shares = zip(*pass_curve(record))
        ax.plot(ks, shares, color=colour[name], marker="o", label=name)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="k", ylabel="pass@k", xticks=ks, xticklabels=ks)
    ax.legend(frameon=False)
    return figure


PICTURES = {"trade-off": draw_trade_off, "sequence": draw_sequences, "pass-at-k": draw_pass_at_k}


if __name__ == "__main__":
    main()
