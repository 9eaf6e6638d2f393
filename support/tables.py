"""Log lines and tables: figures as text."""

PERCENT, PERCENT_1 = "{:.0%}", "{:.1%}"
LOGGED = {  # what a log line shows, in this order, of what a step or a validation measured
    "kl": "{:.4f}",
    "nll": "{:.4f}",
    "grad_norm": "{:.2f}",
    "correct": PERCENT_1,
    "lenient": PERCENT_1,
    "not_judged": PERCENT_1,
    "well_formed": PERCENT_1,
    "completion_tokens": "{:.1f}",
    "finished": PERCENT,
    "drift_from_base": "{:.3f}",
    "same_opening": PERCENT,
    "watched_kl": "{:.3f}",
    "watched_content": "{:.3f}",
    "teacher_gap": "{:.1e}",
    "tokens_per_s": "{:.1f}",
}
COLUMNS = {  # of a table, in this order
    "correct": PERCENT_1,
    "lenient": PERCENT_1,
    "recites": PERCENT_1,
    "not_judged": PERCENT_1,
    "well_formed": PERCENT_1,
    "finished": PERCENT_1,
    "completion_tokens": "{:.1f}",
    "drift_from_base": "{:.3f} nats",
}


def log_line(step, metrics, label=""):
    cells = [
        f"  {name} {form.format(metrics[name])}" for name, form in LOGGED.items() if name in metrics
    ]
    return f"step {step:>4}{label}" + "".join(cells)


def format_results(record):
    """The final table of a run: before, best and last, and the teacher in its context."""
    rows = []
    for name in record["before"]:
        for when in ("before", "best", "last"):
            if when in record:
                step = f" (step {record['best_step']}, by validation)" if when == "best" else ""
                rows.append((f"{name}, {when}{step}", record[when][name]))
    if "teacher" in record["preflight"]:
        context = record["config"]["teacher_context"]
        rows.append((f"validation, teacher with {context}", record["preflight"]["teacher"]))
    return format_table(rows)


def format_table(rows):
    """[(label, summary)] as lines of text; what a summary lacks is left blank."""
    names = [name for name in COLUMNS if any(name in summary for _, summary in rows)]
    width = max(len(label) for label, _ in rows)
    lines = [" " * width + "     n" + "".join(f"{name.replace('_', ' '):>18}" for name in names)]
    for label, summary in rows:
        cells = [COLUMNS[name].format(summary[name]) if name in summary else "" for name in names]
        if "correct" in summary:
            cells[0] += f" ± {summary['standard_error']:.1%}"
        lines.append(f"{label:{width}}  {summary['n']:>4}" + "".join(f"{c:>18}" for c in cells))
    lines.append("± is one standard error over the questions")
    if "not_judged" in names:
        lines.append("right and wrong by the judge, over the answers that it judged")
    return "\n".join(lines)
