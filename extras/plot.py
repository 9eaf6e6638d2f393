"""Pictures of a run: where the teacher disagrees with the student, and the training curves.

    python extras/plot.py runs/science            # -> runs/science/rollouts.html, and with matplotlib rollouts.png, curves.png
    python extras/plot.py runs/science --output results

The page is one file without scripts or links. PNG files need matplotlib: pip install matplotlib.
"""

import argparse
import html
import json
import sys
from pathlib import Path

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>SDFT: where the teacher disagrees</title>
<style>
body {{ font: 16px/1.9 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }}
h2 {{ font-size: 1em; margin: 2.2em 0 .4em }}
.prompt {{ white-space: pre-wrap; font: 13px/1.5 ui-monospace, monospace; color: #555; background: #f6f6f6; padding: .6em .8em; margin: .3em 0 }}
summary {{ cursor: pointer; color: #555; font-size: 13px }}
.tokens {{ font: 16px/2.1 ui-monospace, monospace; margin: .6em 0 }}
.t {{ position: relative; padding: .15em 0; border-radius: 2px; cursor: default; white-space: pre-wrap }}
.t.skipped {{ border-bottom: 2px dotted #999 }}
.t:hover {{ outline: 1px solid #222 }}
.t table {{ display: none; position: absolute; left: 0; top: 2em; z-index: 1; background: #fff; border: 1px solid #888; border-collapse: collapse;
            font: 13px/1.5 ui-monospace, monospace; box-shadow: 0 2px 8px #0003; white-space: pre }}
.t:hover table {{ display: table }}
.t td, .t th {{ padding: .1em .6em; text-align: left; font-weight: normal }}
.t th {{ color: #555; border-bottom: 1px solid #ccc }}
.scale span {{ padding: .2em .5em; font-size: 13px }}
</style>
<h1>Where the teacher disagrees</h1>
<p>Each answer was sampled by the student, which saw the prompt alone. A token's colour is the divergence ({divergence}) of the two
next-token distributions at its place, in nats: what the loss pulls on. Point at a token for the likeliest tokens of both. Dotted:
the first {skipped} tokens, which have no loss.</p>
<p class="scale">{scale}</p>
{rollouts}
</html>
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--output", type=Path, help="folder for the pictures (default: the run's)")
    args = parser.parse_args()
    output = args.output or args.run
    output.mkdir(parents=True, exist_ok=True)
    rollouts, metrics = (read_lines(args.run / name) for name in ("rollouts.jsonl", "metrics.jsonl"))
    if rollouts:
        (output / "rollouts.html").write_text(rollouts_page(rollouts), encoding="utf-8")
        print(output / "rollouts.html")
    try:
        import matplotlib
    except ImportError:
        sys.exit("the PNG files need matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    if rollouts:
        draw_rollouts(rollouts, output / "rollouts.png")
    draw_curves(metrics, output / "curves.png")


def read_lines(file):
    if not file.exists():
        sys.exit(f"error: {file} does not exist; give the folder of a run, such as runs/science")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def colour(kl):
    """White at 0, full orange from 3 nats on -> (red, green, blue), 0 to 255. Square root, so that small divergences are seen."""
    share = min(1.0, kl / 3) ** 0.5
    return tuple(round(255 + share * (end - 255)) for end in (240, 120, 20))


def rollouts_page(rollouts):
    scale = "".join(f'<span style="background:rgb{colour(kl)}">{kl} nats</span>' for kl in (0, 0.1, 0.5, 1, 2, 3))
    parts = []
    for rollout in rollouts:
        tokens = "".join(token_span(token, place < rollout["skipped"]) for place, token in enumerate(rollout["tokens"]))
        parts.append(f"<h2>step {rollout['step']}, {html.escape(rollout['id'])}</h2>\n"
                     f"<details><summary>what the student saw</summary><div class=prompt>{html.escape(rollout['prompt'])}</div></details>\n"
                     f"<details><summary>what the teacher saw</summary><div class=prompt>{html.escape(rollout['teacher_prompt'])}</div></details>\n"
                     f"<div class=tokens>{tokens}</div>")
    return PAGE.format(divergence=rollouts[0]["divergence"] + " KL", skipped=rollouts[0]["skipped"], scale=scale, rollouts="\n".join(parts))


def token_span(token, skipped):
    rows = "".join(f"<tr><td>{visible(s)} {p:.0%}</td><td>{visible(t)} {q:.0%}</td></tr>"
                   for (s, p), (t, q) in zip(token["student"], token["teacher"]))
    table = f"<table><tr><th>student</th><th>teacher</th></tr>{rows}<tr><th colspan=2>{token['kl']:.2f} nats</th></tr></table>"
    text = html.escape(token["token"]).replace("\n", "⏎<br>")
    return f'<span class="t{" skipped" if skipped else ""}" style="background:rgb{colour(token["kl"])}">{text}{table}</span>'


def visible(text):
    return html.escape(text.replace("\n", "⏎").replace(" ", "␣"))


def draw_rollouts(rollouts, file, columns=100):
    """The same as a still picture: one block of lines for each rollout."""
    from matplotlib import pyplot
    lines = []                                          # each a list of (column, token) or a heading
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
    axes = figure.add_axes((0.01, 0, 0.98, 1), xlim=(0, columns), ylim=(len(lines), 0))
    axes.axis("off")
    for row, line in enumerate(lines):
        if isinstance(line, str):
            axes.text(0, row + 0.7, line, fontsize=9, color="#555")
            continue
        for column, text, kl in line:
            axes.add_patch(pyplot.Rectangle((column, row + 0.1), len(text), 0.85, color=[c / 255 for c in colour(kl)]))
            for place, character in enumerate(text):    # one by one: the font's own width need not be a column's
                axes.text(column + place + 0.5, row + 0.75, character, fontsize=9, family="monospace", ha="center", parse_math=False)
    figure.savefig(file, dpi=110)
    print(file)


def draw_curves(metrics, file):
    """KL, gradient norm, length and validation scores over the steps."""
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3), layout="constrained")
    steps = [line["step"] for line in metrics]
    for ax, name, unit in zip(axes, ("kl", "grad_norm", "completion_tokens"), ("nats a token", "before clipping", "tokens")):
        ax.plot(steps, [line[name] for line in metrics])
        ax.set(title=name.replace("_", " "), xlabel="step", ylabel=unit, ylim=(0, None))
    validated = [line for line in metrics if "validation" in line]
    for name in ("correct", "well_formed", "lenient", "finished"):
        if validated and name in validated[0]["validation"]:
            axes[3].plot([line["step"] for line in validated], [line["validation"][name] for line in validated], marker="o", label=name.replace("_", " "))
    axes[3].set(title="validation", xlabel="step", ylabel="share", ylim=(0, 1.02))
    if validated:
        axes[3].legend(frameon=False)
    figure.savefig(file, dpi=110)
    print(file)


if __name__ == "__main__":
    main()
