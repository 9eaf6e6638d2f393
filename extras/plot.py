"""Draw results: a run's rollouts and curves, and methods beside each other.

    python extras/plot.py run runs/science --output results
    python extras/plot.py trade-off results/science*.json --output results/science-trade-off.png
    python extras/plot.py frontiers results/science*.json results/qwen-*.json --output F.png
    python extras/plot.py sequence results/sequence-*.json --output results/sequence.png
    python extras/plot.py pass-at-k results/pass-at-k-*.json --output results/pass-at-k.png

run         where the teacher disagrees with the student, token by token, in the last few sampled
            answers, as a page and a picture; training curves. The two models are those of the
            run's last checkpoint; if --keep-last 0 left none, those of last/ and the base
trade-off   new-task accuracy against drift from the base (Fig. 4)
frontiers   the same, a panel for each model and a colour for each method: a method is the least
            drift at each accuracy over all its rates, not one run
sequence    accuracy on every task while one model learns them in turn (Fig. 3)
pass-at-k   pass@k of several models (Fig. 5)

The last three read what extras/experiments.py writes; the file's name is the method's. With several
seeds a line is their mean and a band their range. Pictures need matplotlib.
"""

import argparse
import html
import json
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of data.py

from analysis import by_point, drift_at, of_test, start_of

import data
from config import Config

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>SDFT: where the teacher disagrees</title>
<style>
body {{ font: 16px/1.9 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }}
h2 {{ font-size: 1em; margin: 2.2em 0 .4em }}
.prompt {{ white-space: pre-wrap; font: 13px/1.5 ui-monospace, monospace; color: #555;
          background: #f6f6f6; padding: .6em .8em; margin: .3em 0 }}
summary {{ cursor: pointer; color: #555; font-size: 13px }}
.tokens {{ font: 16px/2.1 ui-monospace, monospace; margin: .6em 0 }}
.t {{ position: relative; padding: .15em 0; border-radius: 2px; cursor: default;
     white-space: pre-wrap }}
.t.skipped {{ border-bottom: 2px dotted #999 }}
.t:hover {{ outline: 1px solid #222 }}
.t table {{ display: none; position: absolute; left: 0; top: 2em; z-index: 1;
            background: #fff; border: 1px solid #888; border-collapse: collapse; white-space: pre;
            font: 13px/1.5 ui-monospace, monospace; box-shadow: 0 2px 8px #0003 }}
.t:hover table {{ display: table }}
.t td, .t th {{ padding: .1em .6em; text-align: left; font-weight: normal }}
.t th {{ color: #555; border-bottom: 1px solid #ccc }}
.scale span {{ padding: .2em .5em; font-size: 13px }}
</style>
<h1>Where the teacher disagrees</h1>
<p>The student sampled each answer and saw the prompt alone. A token's colour is the divergence
({divergence}) of the two next-token distributions at its position, in nats: what the loss pulls on.
Point at a token for the likeliest tokens of both. Dotted: the first {skipped} tokens, which have no
loss. Student: {student}. Teacher: {teacher}.</p>
<p class="scale">{scale}</p>
{rollouts}
</html>
"""


# ---- one run: where the teacher disagrees ----


def read_lines(file):
    if not file.exists():
        raise ValueError(f"{file} does not exist; give the folder of a run, such as runs/science")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def explain_rollouts(folder, shown=4):
    """The last few sampled answers of a run, token by token -> list of dict, for `rollouts_page`.

    [] for a method without a teacher. Raises ValueError without a run, its weights or its data.
    """
    # here, as below: the other pictures need neither torch nor transformers
    from support.chat import encode_prompt
    from support.checkpoint import list_checkpoints

    kept = list_checkpoints(folder)
    file = kept[-1] / "state.json" if kept else folder / "results.json"
    if not file.exists():
        raise ValueError(f"{folder} has neither a checkpoint nor the weights of a finished run")
    record = json.loads(file.read_text(encoding="utf-8"))
    config, rollouts = record["config"], read_lines(folder / "rollouts.jsonl")[-shown:]
    if config["teacher"] == "none" or not rollouts:
        return []
    prompts = prompts_of_run(config, record["method"])
    student, teacher, tokenizer, names = load_models(folder, kept, config)
    kwargs = config.get("chat_template_kwargs")
    explained = []
    for rollout in rollouts:
        if rollout["id"] not in prompts:
            raise ValueError(f'{folder}: id "{rollout["id"]}" is no longer in the data of the run')
        pair = [encode_prompt(tokenizer, turns, kwargs) for turns in prompts[rollout["id"]]]
        tokens = token_report(
            (student, teacher), pair, tokenizer, rollout["completion_ids"], config["divergence"]
        )
        texts = dict(zip(("prompt", "teacher_prompt"), map(tokenizer.decode, pair), strict=True))
        about = {"divergence": config["divergence"], "skipped": config["skip_first_tokens"]}
        place = {"step": rollout["step"], "id": rollout["id"]}
        explained.append(place | names | about | texts | {"tokens": tokens})
    return explained


def prompts_of_run(config, method):
    """{id of a training example: (the student's turns, the teacher's)}."""
    task, folder = config["task"], config["data"]
    if method == "reinvoke":
        task, folder = "general", None
    seen = config["teacher_context"], config["teacher_instruction"], config.get("teacher_template")
    examples = data.load_task(task, "train", folder)
    return {e.id: (e.messages, data.teacher_messages(e, *seen)) for e in examples}


def load_models(folder, kept, config):
    """(student, teacher, tokenizer, {"student": its source, "teacher": its source}) of a run."""
    from support.models import best_device, load_model, read_weights

    source = str(kept[-1] / "student" if kept else folder / "last")
    student, tokenizer = load_model(source, best_device(), config["dtype"])
    names = {"student": source, "teacher": source}
    if config["teacher"] == "student":
        return student, student, tokenizer, names
    if kept and (kept[-1] / "teacher" / "config.json").exists():
        names["teacher"] = str(kept[-1] / "teacher")
        teacher = read_weights(names["teacher"], dtype=student.dtype)
        return student, teacher.to(student.device).eval(), tokenizer, names
    names["teacher"] = config["teacher_model"] or config["model"]
    if kept and (kept[-1] / "teacher" / "adapter_config.json").exists():
        names["teacher"] = str(kept[-1] / "teacher")
    teacher, _ = load_model(names["teacher"], student.device, config["dtype"])
    return student, teacher, tokenizer, names


def token_report(models, prompts, tokenizer, completion_ids, divergence):
    """For each token its divergence in nats, and the likeliest tokens of both -> list of dict.

    models and prompts are the student's and the teacher's. One entry is
    {"token": "44", "kl": 1.9, "student": [["12", 0.3], ...], "teacher": [["44", 0.9], ...]}.
    """
    import torch

    from eval import token_divergence

    ids_BT = torch.tensor([completion_ids], device=models[0].device)
    completions = ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)
    with torch.no_grad():
        pairs = list(zip(models, prompts, strict=True))
        likely = [likeliest_tokens(*pair, completions, tokenizer) for pair in pairs]
        (student, s), (teacher, t) = pairs
        kl_BT, _, _ = token_divergence(student, [s], teacher, [t], completions, divergence)
    names = "token", "kl", "student", "teacher"
    rows = zip(map(tokenizer.decode, completion_ids), kl_BT[0].tolist(), *likely, strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def likeliest_tokens(model, prompt, completions, tokenizer, n=3):
    """For each position [[token, probability], ...], the likeliest first."""
    from sampling import completion_hidden, output_head

    hidden_TD = completion_hidden(model, [prompt], *completions)[0]
    top = output_head(model)(hidden_TD).float().softmax(-1).topk(n)
    tokens = [[tokenizer.decode(i) for i in ids] for ids in top.indices.tolist()]
    rows = zip(tokens, top.values.tolist(), strict=True)
    return [list(map(list, zip(*row, strict=True))) for row in rows]


def colour(kl):
    """White at 0, full orange from 3 nats on -> (red, green, blue), 0 to 255.

    The square root makes small divergences visible.
    """
    share = min(1.0, kl / 3) ** 0.5
    return tuple(round(255 + share * (end - 255)) for end in (240, 120, 20))


def rollouts_page(rollouts):
    """One HTML file without scripts or links."""
    scale = "".join(
        f'<span style="background:rgb{colour(kl)}">{kl} nats</span>'
        for kl in (0, 0.1, 0.5, 1, 2, 3)
    )
    parts = []
    for rollout in rollouts:
        parts.append(f"<h2>step {rollout['step']}, {html.escape(rollout['id'])}</h2>")
        for who, prompt in (("student", "prompt"), ("teacher", "teacher_prompt")):
            text = f"<div class=prompt>{html.escape(rollout[prompt])}</div>"
            parts.append(f"<details><summary>what the {who} saw</summary>{text}</details>")
        spans = [
            token_span(token, position < rollout["skipped"])
            for position, token in enumerate(rollout["tokens"])
        ]
        parts.append(f"<div class=tokens>{''.join(spans)}</div>")
    first = rollouts[0]
    return PAGE.format(
        divergence=first["divergence"] + " KL",
        skipped=first["skipped"],
        scale=scale,
        student=html.escape(first["student"]),
        teacher=html.escape(first["teacher"]),
        rollouts="\n".join(parts),
    )


def token_span(token, skipped):
    rows = "".join(
        f"<tr><td>{visible(s)} {p:.0%}</td><td>{visible(t)} {q:.0%}</td></tr>"
        for (s, p), (t, q) in zip(token["student"], token["teacher"], strict=True)
    )
    nats = f"<tr><th colspan=2>{token['kl']:.2f} nats</th></tr>"
    table = f"<table><tr><th>student</th><th>teacher</th></tr>{rows}{nats}</table>"
    text = html.escape(token["token"]).replace("\n", "⏎<br>")
    style = f"background:rgb{colour(token['kl'])}"
    return f'<span class="t{" skipped" if skipped else ""}" style="{style}">{text}{table}</span>'


def visible(text):
    return html.escape(text.replace("\n", "⏎").replace(" ", "␣"))


def draw_rollouts(rollouts, columns=100):
    """The page as a still picture: a block of lines for each rollout."""
    from matplotlib import pyplot

    lines = []  # each a heading, or a list of (column, token, divergence)
    for rollout in rollouts:
        lines += [[], f"step {rollout['step']}, {rollout['id']}", []]
        column = 0
        for token in rollout["tokens"]:
            text = token["token"].replace("\n", "⏎")
            if column + len(text) > columns:
                lines.append([])
                column = 0
            lines[-1].append((column, text, token["kl"]))
            column += len(text)
    figure = pyplot.figure(figsize=(columns * 0.085, len(lines) * 0.24))
    ax = figure.add_axes((0.01, 0, 0.98, 1), xlim=(0, columns), ylim=(len(lines), 0))
    ax.axis("off")
    for row, line in enumerate(lines):
        if isinstance(line, str):
            ax.text(0, row + 0.7, line, fontsize=9, color="#555")
            continue
        for column, text, kl in line:
            face = [part / 255 for part in colour(kl)]
            ax.add_patch(pyplot.Rectangle((column, row + 0.1), len(text), 0.85, color=face))
            for i, letter in enumerate(text):  # one by one: a font's width need not be a column's
                at = column + i + 0.5, row + 0.75
                ax.text(*at, letter, fontsize=9, family="monospace", ha="center", parse_math=False)
    return figure


def draw_curves(metrics):
    """Divergence, gradient norm, length and validation scores over the steps."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3), layout="constrained")
    names = ("kl" if "kl" in metrics[0] else "nll", "grad_norm", "completion_tokens")
    units = ("nats per token", "before clipping", "tokens")
    for ax, name, unit in zip(axes[:3], names, units, strict=True):
        ax.plot([line["step"] for line in metrics], [line[name] for line in metrics])
        ax.set(title=name.replace("_", " "), xlabel="step", ylabel=unit, ylim=(0, None))
    validated = [line for line in metrics if "validation" in line]
    for name in ("correct", "well_formed", "lenient", "finished"):
        # a judge that failed leaves validations without a score
        scored = [line for line in validated if name in line["validation"]]
        if scored:
            steps = [line["step"] for line in scored]
            shares = [line["validation"][name] for line in scored]
            axes[3].plot(steps, shares, marker="o", label=name.replace("_", " "))
    axes[3].set(title="validation", xlabel="step", ylabel="share", ylim=(0, 1.02))
    if validated:
        axes[3].legend(frameon=False)
    return figure


# ---- several methods: numbers from files ----


def read_record(file, picture):
    """(name, record) of a results file. Raises ValueError if it has nothing for the picture."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        runs = record["runs"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as results of experiments ({error!r})") from None
    has = {
        "trade-off": all("curve" in run for run in runs),
        "frontiers": all("curve" in run for run in runs),
        "sequence": all("accuracy" in run for run in runs),
        "pass-at-k": all("pass@1" in run.get("summary", {}) for run in runs),
    }
    if not runs or not has[picture]:
        raise ValueError(
            f"{file} has nothing for {picture}; python extras/plot.py --help says more"
        )
    listed = file.parent / "experiments.toml"
    experiments = tomllib.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
    return experiments.get(file.stem, {}).get("label", file.stem).replace("`", ""), record


def trade_off(run):
    """(points by validation, point by test) of one run: (drift in nats per token, accuracy).

    The points by validation begin at the start of the run; re-invoke starts away from the base.
    """
    curve = [entry for entry in run["curve"] if "drift_from_base" in entry]
    accuracy, drift = start_of(run)
    last = of_test(run["last"])
    points = [(entry["drift_from_base"], entry["correct"]) for entry in curve]
    points = [(drift, accuracy), *points] if points else []
    return points, (last["drift_from_base"], last["correct"])


def sequence_curves(records):
    """For each record {task: [(step, normalised accuracy of each seed), ...]}, base model first.

    (accuracy - base) / (best - base): 0 is the base, 1 the best of any method, step and seed (mean
    of seeds); None if no method is above the base.
    """
    raw = [
        {task: accuracies(record["runs"], task) for task in record["tasks"]} for record in records
    ]
    best = {
        task: max(mean(seeds) for curves in raw for _, seeds in curves.get(task, []))
        for curves in raw
        for task in curves
    }
    return [
        {task: normalise(curve, best[task]) for task, curve in curves.items()} for curves in raw
    ]


def accuracies(runs, task):
    """[(step, [accuracy of each seed])] on a task's test set."""
    curve = [(0, [of_test(run["before"], f"{task}, ")["correct"] for run in runs])]
    for entries in zip(*(run["evaluations"] for run in runs), strict=True):
        seeds = [of_test(entry["scores"], f"{task}, ")["correct"] for entry in entries]
        curve.append((entries[0]["step"], seeds))
    return curve


def normalise(curve, best):
    base = mean(curve[0][1])
    if best <= base:
        return None
    return [(step, [(value - base) / (best - base) for value in seeds]) for step, seeds in curve]


def stage_ends(record):
    """[(step at which a stage ended, its task), ...]."""
    steps = {entry["task"]: entry["step"] for entry in record["runs"][0]["evaluations"]}
    return [(steps[task], task) for task in record["tasks"]]


def pass_curve(record):
    """[(k, [pass@k of each seed]), ...] by k."""
    ks = sorted(int(name[5:]) for name in record["runs"][0]["summary"] if name.startswith("pass@"))
    return [(k, [run["summary"][f"pass@{k}"] for run in record["runs"]]) for k in ks]


# ---- several methods: pictures ----


def draw_line(ax, curve, **look):
    """Mean over seeds of [(x, values of seeds)], and a band of their range."""
    xs, seeds = zip(*curve, strict=True)
    [line] = ax.plot(xs, [mean(values) for values in seeds], marker="o", **look)
    lowest, highest = [min(values) for values in seeds], [max(values) for values in seeds]
    ax.fill_between(xs, lowest, highest, color=line.get_color(), alpha=0.15, linewidth=0)


def draw_trade_off(records):
    """Validation over the steps, then test at the end; up is more of the new task, left less drift.

    Thin lines are seeds, thick ones their mean by step, dashed if there is only one seed; bars span
    the seeds' range.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    recipes = by_point((name, record["runs"]) for name, record in records)
    for number, (name, runs) in enumerate(recipes.items()):
        found, look = [trade_off(run) for run in runs], {"color": f"C{number}"}
        paths = [points for points, _ in found if points]
        for points in paths:
            axes[0].plot(*zip(*points, strict=True), linewidth=0.6, alpha=0.6, **look)
        if paths:
            dashed = "--" if len(found) == 1 else "-"
            middle = [
                [mean(values) for values in zip(*points, strict=True)]
                for points in zip(*paths, strict=True)
            ]
            axes[0].plot(*zip(*middle, strict=True), dashed, linewidth=2, marker=".", **look)
        ends = list(zip(*(point for _, point in found), strict=True))
        x, y = map(mean, ends)
        spans = [[[mean(end) - min(end)], [max(end) - mean(end)]] for end in ends]
        seeds = f"{len(found)} seed{'s' * (len(found) > 1)}"
        label = f"{name}, {seeds}"
        axes[1].errorbar(x, y, xerr=spans[0], yerr=spans[1], marker="o", label=label, **look)
    titles = ("validation, during training", "test, after the last step")
    for ax, title in zip(axes, titles, strict=True):
        ax.set(title=title, xlabel="drift from base, nats per token", xlim=(0, None))
    axes[0].set_ylabel("new task: share correct")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


LEVELS = [level / 40 for level in range(1, 41)]  # accuracies at which a frontier is looked up
COLOURS = {"sdft": "C0", "sft": "C1", "dft": "C4", "reinvoke": "C3"}


# fields of a configuration that change no weight
NO_RECIPE = """seed output preset eval_every eval_examples eval_new_tokens general_tokens save_every
    sample_every keep_last offload_optimizer gradient_checkpointing force ignore_plan model
    """.split()


def recipe_of(run):
    """What of a run's configuration decides its weights; a field that an older run lacks has its
    default.
    """
    config = asdict(Config()) | run["config"]
    return sorted((name, str(value)) for name, value in config.items() if name not in NO_RECIPE)


def seed_and_curve(run):
    points = [(entry["step"], entry.get("drift_from_base")) for entry in run["curve"]]
    return run["config"].get("seed"), points


def recipes(records):
    """{model: {method: [the runs of one recipe]}}.

    Runs of one recipe have equal configurations, but for the seed and for what only measures or
    saves. A run that is in two records counts once. A re-invoked model belongs to the one that it
    is brought back to.
    """
    found = {}
    for run in (run for _, record in records for run in record["runs"]):
        config, method = run["config"], run["method"]
        model = config["teacher_model" if method == "reinvoke" else "model"].split("/")[-1]
        recipe = str(recipe_of(run))
        seeds = found.setdefault(model, {}).setdefault(method, {}).setdefault(recipe, [])
        if seed_and_curve(run) not in map(seed_and_curve, seeds):
            seeds.append(run)
    return {
        model: {method: list(some.values()) for method, some in methods.items()}
        for model, methods in found.items()
    }


def frontier(some):
    """[(least drift, accuracy)] over the recipes of one method, each the mean of its seeds.

    Only where every seed of a recipe reaches the accuracy, so that no lucky one decides.
    """
    points = []
    for level in LEVELS:
        drifts = [[drift_at(run, level) for run in seeds] for seeds in some]
        reached = [mean(values) for values in drifts if None not in values]
        if reached:
            points.append((min(reached), level))
    return points


def draw_frontiers(records):
    """A panel for each model. Thin: validations of each run; thick: the frontier of each method;
    rings: the test set after the last step, mean of a recipe's seeds with their range.
    """
    from matplotlib import pyplot

    panels = recipes(records)
    size = {"figsize": (5.4 * len(panels), 4.6), "layout": "constrained"}
    figure, axes = pyplot.subplots(1, len(panels), squeeze=False, sharey=True, **size)
    for ax, (model, methods) in zip(axes[0], panels.items(), strict=True):
        widest = 0.0
        for method, some in methods.items():
            look = {"color": COLOURS.get(method, "C7")}
            for seeds in some:
                for run in seeds:
                    points, _ = trade_off(run)
                    ax.plot(*zip(*points, strict=True), linewidth=0.6, alpha=0.6, **look)
                xs, ys = zip(*(trade_off(run)[1] for run in seeds), strict=True)
                spans = [[[mean(v) - min(v)], [max(v) - mean(v)]] for v in (xs, ys)]
                ring = {"marker": "o", "markerfacecolor": "white", "linestyle": "none"}
                ax.errorbar(mean(xs), mean(ys), xerr=spans[0], yerr=spans[1], **ring, **look)
            # re-invocation starts away from the base, so no accuracy is reached on the way up
            points = frontier(some) if method != "reinvoke" else []
            runs = sum(map(len, some))
            look |= {"linewidth": 2.5, "label": f"{method}, {runs} of {len(some)}"}
            ax.plot(*zip(*points or [(None, None)], strict=True), **look)
            if method in ("sdft", "sft"):
                widest = max([widest, *(drift for drift, _ in points)])
        ax.set(title=model, xlabel="drift from base, nats per token", xlim=(0, 1.5 * widest))
        ax.legend(loc="lower right", frameon=False, fontsize=8, title="method, runs of recipes")
    axes[0][0].set_ylabel("new task: share correct")
    return figure


def draw_sequence(records):
    """A panel for each method, a line for each task; the shaded stage trains the task."""
    from matplotlib import pyplot

    size = {"figsize": (5 * len(records), 3.6), "layout": "constrained"}
    figure, axes = pyplot.subplots(1, len(records), squeeze=False, sharey=True, **size)
    tasks = list(dict.fromkeys(task for _, record in records for task in record["tasks"]))
    curves = sequence_curves([record for _, record in records])
    for ax, (name, record), own in zip(axes[0], records, curves, strict=True):
        start = 0
        for end, task in stage_ends(record):
            ax.axvspan(start, end, color=f"C{tasks.index(task)}", alpha=0.1, linewidth=0)
            start = end
        for task, curve in own.items():
            look = {"color": f"C{tasks.index(task)}", "label": task}
            if curve is None:
                ax.plot([], [], **look | {"label": f"{task}: no method above the base"})
            else:
                draw_line(ax, curve, **look)
        ax.axhline(0, color="#999", linewidth=1, linestyle=":")
        ax.set(title=name, xlabel="step")
    axes[0][0].set_ylabel("(accuracy - base) / (best - base)")
    axes[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_pass_at_k(records):
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(5, 3.6), layout="constrained")
    for name, record in records:
        draw_line(ax, pass_curve(record), label=name)
    ks = sorted({k for _, record in records for k, _ in pass_curve(record)})
    ax.set_xscale("log", base=2)
    ax.set(xlabel="k", ylabel="pass@k", xticks=ks, xticklabels=ks)
    ax.legend(frameon=False)
    return figure


PICTURES = {
    "trade-off": draw_trade_off,
    "frontiers": draw_frontiers,
    "sequence": draw_sequence,
    "pass-at-k": draw_pass_at_k,
}


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("picture", choices=["run", *PICTURES])
    parser.add_argument("files", nargs="+", type=Path, help="results files; of run: a run's folder")
    parser.add_argument("--output", type=Path, help="file; of run: folder (default: the run's)")
    args = parser.parse_args(argv)
    if args.picture != "run" and args.output is None:
        parser.error(f"{args.picture} needs --output FILE")
    if args.picture == "run":
        [folder] = args.files
        output = args.output or folder
        metrics = read_lines(folder / "metrics.jsonl")
        rollouts = explain_rollouts(folder)
        output.mkdir(parents=True, exist_ok=True)
        if rollouts:  # a method without a teacher has none
            (output / "rollouts.html").write_text(rollouts_page(rollouts), encoding="utf-8")
            print(output / "rollouts.html")
    else:
        records = [read_record(file, args.picture) for file in args.files]
    try:
        import matplotlib
    except ImportError:
        raise ValueError("PNG files need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    if args.picture == "run":
        pictures = {output / "curves.png": draw_curves(metrics)}
        pictures |= {output / "rollouts.png": draw_rollouts(rollouts)} if rollouts else {}
    else:
        pictures = {args.output: PICTURES[args.picture](records)}
    for file, figure in pictures.items():
        figure.savefig(file, dpi=110)
        print(file)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
