"""The training curve as Markdown: a picture, and the validation losses in a table."""

import base64
import io
from typing import Any


def curve_markdown(facts: dict[str, Any]) -> str:
    """Return a training's curve: loss and validation loss by step, nats per response token.

    The picture is inside the text, as a PNG under a `data:` address.

    Args:
        facts: Of the training's manifest; its `curve` is read.
    """
    validation = [entry for entry in facts["curve"] if "eval_loss" in entry]
    lines = [f"![training curve](data:image/png;base64,{_picture(facts)})", ""]
    if validation:
        best = min(validation, key=lambda entry: entry["eval_loss"])
        lines += [f"Best validation loss {best['eval_loss']:.4f} at step {best['step']:.0f}.", ""]
        # The loss, then the parts that its objective names.
        columns = ["eval_loss", *(k for k in best if k.startswith("eval_") and k != "eval_loss")]
        parts = (column.removeprefix("eval_").replace("_", " ") for column in columns[1:])
        titles = ["validation loss", *parts]
        lines += [f"| step | {' | '.join(titles)} |", "|---:" * (1 + len(columns)) + "|"]
        for entry in validation:
            cells = (f"{entry[key]:.4f}" for key in columns)
            lines.append(f"| {entry['step']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _picture(facts: dict[str, Any]) -> str:
    """Return the curve as base64 of a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(entry["step"], entry[key]) for entry in facts["curve"] if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3)
    axes.set(xlabel="optimizer step", ylabel="loss, nats per response token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
