"""The pictures of a training and of a comparison, each a function that returns a figure.

Here belongs how things look. Numbers come from comparison.py and drift.py; whoever calls decides
where a figure goes. Nothing is written; pyplot, slow and with a global state, is never imported.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from toolkit.comparison import PARENT, RETRAINED, HeldOut
from toolkit.drift import DRIFT_DISTANCE
from toolkit.words import format_amount, format_interval

# Okabe and Ito, https://jfly.uni-koeln.de/color: told apart with any kind of colour vision.
BLUE, ORANGE, GREY, LIGHT = "#0072B2", "#D55E00", "#666666", "#BBBBBB"
CURVES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MAX_POINTS = 2_000
MAX_LINES = 80  # categories or columns in one picture
MAX_DISTANCE = 2.0  # longer bars are cut, or one column would hide all others
AMOUNTS = FuncFormatter(
    lambda value, _: f"{value / 1e6:,.4g}M" if abs(value) >= 1e6 else format_amount(value)
)


def learning_curve(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw named curves over the epochs, each of shape (n_epochs,); empty ones are left out.

    The axis is logarithmic where all losses are positive and the largest is over 20 times the
    smallest.
    """
    figure, axes = _canvas(4.5, "Learning curve")
    drawn = {name: np.asarray(values, float) for name, values in curves.items() if len(values)}
    for number, (name, values) in enumerate(drawn.items()):
        colour, label = CURVES[number % len(CURVES)], _label(name.replace("_", " "))
        epochs = np.arange(1, len(values) + 1)
        axes.plot(epochs, values, ".-", color=colour, label=label, linewidth=1.3)
    losses = np.concatenate([np.empty(0), *drawn.values()])
    losses = losses[np.isfinite(losses)]
    if len(losses) and losses.min() > 0 and losses.max() > 20 * losses.min():
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(drawn) > 1:
        axes.legend(frameon=False)
    return figure


def predicted_against_actual(
    y_true: ArrayLike, predictions: Mapping[str, ArrayLike], unit: str = ""
) -> Figure:
    """Draw predicted against actual amounts, one panel per model, arrays of shape (n_rows,).

    At most 2,000 points are drawn, always the same. On the diagonal a prediction is right.
    """
    y = np.asarray(y_true, float)
    shown = np.random.default_rng(0).permutation(len(y))[:MAX_POINTS]
    figure = Figure(figsize=(max(5, 4 * len(predictions)), 4.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(predictions), sharex=True, sharey=True, squeeze=False)[0]
    for number, (axes, name) in enumerate(zip(panels, predictions, strict=True)):
        predicted = np.asarray(predictions[name], float)
        colour = BLUE if number == 0 and len(predictions) > 1 else ORANGE
        error = format_amount(float(np.abs(predicted - y).mean()), unit)
        axes.axline((y[0], y[0]), slope=1, color="black", linewidth=0.8)
        axes.scatter(y[shown], predicted[shown], s=10, alpha=0.4, color=colour, linewidths=0)
        _restrain(axes, f"{name}: MAE {error}")
        axes.set(xlabel="actual", ylabel="" if number else "predicted")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(AMOUNTS)
            axis.set_major_locator(MaxNLocator(5))
    return figure


def error_per_group(groups_table: pd.DataFrame, unit: str = "") -> Figure:
    """Draw the MAE of each category in `comparison.groups`' table, before and after if both.

    Of more than 80 categories the largest are drawn. A star marks groups that got worse.
    """
    table = groups_table.nlargest(MAX_LINES, "rows").sort_index()
    labels: list[str] = []
    places: list[int] = []
    headers: list[int] = []
    for column, part in table.groupby("column", sort=False):
        headers.append(len(labels))
        places += range(len(labels) + 1, len(labels) + 1 + len(part))
        stars = np.where(part["worse"], " *", "") if "worse" in part else [""] * len(part)
        named = zip(part["category"], part["rows"], stars, strict=True)
        labels += [_label(column), *(f"{_label(name)} ({n:,}){star}" for name, n, star in named)]
    series = [("before", PARENT, BLUE), ("after", RETRAINED, ORANGE)]
    series = [entry for entry in series if f"MAE_{entry[0]}" in table]
    figure, axes = _canvas(max(3.0, 0.22 * len(labels) + 1.2), "Mean absolute error per group")
    height = 0.8 / len(series)
    for number, (when, name, colour) in enumerate(series):
        at = np.array(places) + (number - (len(series) - 1) / 2) * height
        axes.barh(at, table[f"MAE_{when}"], height, color=colour, label=name)
    _name_lines(axes, labels)
    for header in headers:
        axes.get_yticklabels()[header].set_fontweight("bold")
    axes.set_xlabel(_with_unit("MAE", unit) + ", number of rows in brackets")
    axes.xaxis.set_major_formatter(AMOUNTS)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def before_after(held_out: Mapping[str, HeldOut], unit: str = "") -> Figure:
    """Draw the MAE of parent and retrained model on the same rows, one line per set of rows.

    The bar around the retrained model is the interval of the difference, set off from the
    parent. Ticks are the controls, those beyond twice the larger of the two left out.
    """
    figure, axes = _canvas(1.8 + 1.1 * len(held_out), "Same held-out rows, both models")
    names = dict.fromkeys(name for held in held_out.values() for name in held.scores.index)
    controls = [name for name in names if name not in (PARENT, RETRAINED)]
    styles = dict(zip(controls, cycle(["-", ":", "--", "-."]), strict=False))
    for line, held in enumerate(held_out.values()):
        _draw_pair(axes, line, held, unit, styles)
    _name_lines(axes, [f"{_label(name)} ({held.rows:,})" for name, held in held_out.items()])
    axes.set_xlabel(_with_unit("MAE", unit))
    axes.xaxis.set_major_formatter(AMOUNTS)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _draw_pair(axes: Axes, line: int, held: HeldOut, unit: str, styles: Mapping[str, Any]) -> None:
    error = held.scores["MAE"]
    pair = error.reindex([PARENT, RETRAINED])
    for name, style in styles.items():
        if name in error and error[name] < 2 * pair.max():
            ends = (line - 0.2, line + 0.2)
            axes.vlines(error[name], *ends, GREY, style, label=_label(name), linewidth=1.2)
    if held.difference is not None:
        low, high = held.difference.low + pair[PARENT], held.difference.high + pair[PARENT]
        axes.plot(pair, [line, line], color=GREY, linewidth=0.8)
        if np.isfinite([low, high]).all():
            axes.hlines(line, low, high, ORANGE, lw=7, alpha=0.35, label="95 % interval")
        text = _label(format_interval(held.difference, unit), 60)
        axes.annotate(text, (pair.mean(), line - 0.26), ha="center", va="bottom", fontsize=9)
    axes.plot(pair[PARENT], line, "o", color=BLUE, markersize=9, label=PARENT)
    axes.plot(pair[RETRAINED], line, "D", color=ORANGE, markersize=8, label=RETRAINED)


def drift_figure(drift_table: pd.DataFrame, threshold: float = DRIFT_DISTANCE) -> Figure:
    """Draw the distance of each column in `comparison.drift`'s table, far ones on top.

    Bars are cut at 2 and carry their value; of more than 80 columns the farthest are drawn.
    """
    table = drift_table.sort_values("distance", ascending=False, na_position="last")[:MAX_LINES]
    title = "New rows against old ones (orange: drifted)"
    figure, axes = _canvas(max(3.0, 0.3 * len(table) + 1.6), title)
    colours = np.where(table["drifted"], ORANGE, LIGHT)
    lengths = table["distance"].fillna(0.0).clip(upper=MAX_DISTANCE)
    bars = axes.barh(range(len(table)), lengths, 0.7, color=colours)
    texts = [format_amount(value) for value in table["distance"]]
    background = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.bar_label(bars, texts, padding=3, fontsize=9, bbox=background)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label="threshold")
    _name_lines(axes, [_label(name) for name in table["column"]])
    axes.margins(x=0.1)
    axes.legend(loc="lower right", frameon=False)
    axes.set_xlabel("distance: Wasserstein / standard deviation (numbers), Jensen–Shannon (text)")
    return figure


def _canvas(height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    _restrain(axes, title)
    return figure, axes


def _restrain(axes: Axes, title: str) -> None:
    axes.set_title(_label(title, 60), fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)


def _name_lines(axes: Axes, labels: Sequence[str]) -> None:
    """Put one label per horizontal line, the first on top."""
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _with_unit(name: str, unit: str) -> str:
    return _label(f"{name} ({unit})" if unit else name)


def _label(text: object, longest: int = 32) -> str:
    """Shorten text from the data in its middle, since names often differ at their ends alone.

    A dollar sign is kept from starting a formula.
    """
    words = " ".join(str(text).split())
    if len(words) > longest:
        words = f"{words[: longest - 13]}…{words[-12:]}"
    return words.replace("$", r"\$")
