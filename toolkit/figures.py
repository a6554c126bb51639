"""The pictures of a training and of a comparison, each a function that returns a figure.

Numbers come from comparison.py and drift.py. pyplot, slow and with a global state, is not imported.
"""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from toolkit.comparison import PARENT, RETRAINED, HeldOut
from toolkit.drift import DRIFT_DISTANCE
from toolkit.language import translate
from toolkit.words import format_amount, format_interval

# Okabe and Ito, https://jfly.uni-koeln.de/color: told apart with any kind of colour vision.
BLUE, ORANGE, GREY, LIGHT = "#0072B2", "#D55E00", "#666666", "#BBBBBB"
COLOURS = {PARENT: BLUE, RETRAINED: ORANGE}
CURVES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MAX_POINTS = 2_000
MAX_LINES = 80  # categories or columns in one picture
MAX_DISTANCE = 2.0  # longer bars are cut, or one column would hide all others
AMOUNTS = FuncFormatter(
    lambda value, _: (
        f"{translate(f'{value / 1e6:,.4g}')}M"
        if abs(value) >= 1e6
        else translate(format_amount(value))
    )
)
NUMBERS = FuncFormatter(lambda value, _: translate(f"{value:.10g}"))


def as_svg(figure: Figure) -> str:
    """Draw a figure as SVG, a file of its own or a part of a page."""
    text = io.StringIO()
    with warnings.catch_warnings(action="ignore"):  # of a letter that the font lacks
        FigureCanvasSVG(figure).print_svg(text)
    return text.getvalue()[text.getvalue().index("<svg") :]


def learning_curve(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw named curves over the epochs, each of shape (n_epochs,); empty ones are left out."""
    figure, (axes,) = _canvas(3.7, ["Learning curve"])
    axes.set_prop_cycle(color=CURVES)
    for name, values in curves.items():
        if len(values):
            label = translate(name.replace("_", " "))
            axes.plot(range(1, len(values) + 1), values, ".-", label=label, linewidth=1.3)
    axes.set(xlabel=translate("epoch"), ylabel=translate("loss"))
    axes.yaxis.set_major_formatter(NUMBERS)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(axes.lines) > 1:
        axes.legend(frameon=False)
    return figure


def over_generations(errors: Mapping[int, float], unit: str = "") -> Figure:
    """Draw the champion's MAE on each new file, by generation, before it was trained on that."""
    figure, (axes,) = _canvas(3.0, ["What users lived with, file by file"])
    axes.plot(list(errors), list(errors.values()), "o-", color=BLUE)
    axes.set(xlabel=translate("generation"), ylabel=_with_unit("MAE", unit))
    axes.set_ylim(0, 1.1 * np.nanmax([*errors.values(), 1e-9]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(AMOUNTS)
    return figure


def predicted_against_actual(
    y_true: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    unit: str = "",
    weights: ArrayLike | None = None,
) -> Figure:
    """Draw predicted against actual amounts of 2,000 rows, a panel per model; MAE by `weights`."""
    y = np.asarray(y_true, float)
    shown = np.random.default_rng(0).permutation(len(y))[:MAX_POINTS]
    errors = {name: np.abs(np.subtract(made, y)) for name, made in predictions.items()}
    maes = {name: np.average(each, weights=weights) for name, each in errors.items()}
    titles = [f"{name}: MAE {format_amount(mae, unit)}" for name, mae in maes.items()]
    figure, panels = _canvas(3.7, titles, sharex=True, sharey=True)
    for axes, (name, made) in zip(panels, predictions.items(), strict=True):
        colour = COLOURS.get(name, ORANGE)
        axes.axline((y[0], y[0]), slope=1, color="black", linewidth=0.8)
        dots = axes.scatter(y[shown], np.asarray(made)[shown], 10, colour, alpha=0.4, linewidths=0)
        dots.set_rasterized(True)  # or a page would hold 2,000 paths
        axes.set_xlabel(translate("actual"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(AMOUNTS)
            axis.set_major_locator(MaxNLocator(5))
    panels[0].set_ylabel(translate("predicted"))
    return figure


def error_per_group(groups_table: pd.DataFrame, unit: str = "") -> Figure:
    """Draw the MAE of the largest categories in `comparison.groups`' table; a star means worse."""
    table = groups_table.nlargest(MAX_LINES, "rows").sort_index()
    labels, places = list[str](), list[int]()
    for column, lines in table.groupby("column", sort=False):
        labels.append(_label(column))  # stands above its categories
        for line in lines.itertuples():
            star = " *" if getattr(line, "worse", False) else ""
            places.append(len(labels))
            labels.append(f"{_label(line.category)} ({translate(f'{line.rows:,}')}){star}")
    xlabel = _with_unit("MAE", unit) + translate(", number of rows in brackets")
    figure, axes = _lines("Mean absolute error per group", labels, xlabel, 0.2 * len(labels) + 1.4)
    series = {PARENT: "MAE_before", RETRAINED: "MAE_after"}
    _bars(axes, places, {name: table[key] for name, key in series.items() if key in table})
    for place in set(range(len(labels))).difference(places):
        axes.get_yticklabels()[place].set_fontweight("bold")
    return figure


def before_after(held_out: Mapping[str, HeldOut], unit: str = "") -> Figure:
    """Draw the MAE of parent and retrained model on the same rows, one line per set of rows.

    The bar is the interval of the difference: where it does not reach the parent, that is proven.
    """
    labels = [f"{_label(translate(k))} ({translate(f'{v.rows:,}')})" for k, v in held_out.items()]
    title, height = "Same held-out rows, both models: left is better", 1.7 + 0.9 * len(labels)
    figure, axes = _lines(title, labels, _with_unit("MAE", unit), height)
    for line, held in enumerate(held_out.values()):
        parent, child = held.scores["MAE"][[PARENT, RETRAINED]]
        bounds = parent + held.change.low, parent + held.change.high
        axes.plot([parent, child], [line, line], color=GREY, linewidth=0.8)
        if np.isfinite(bounds).all():
            axes.hlines(line, *bounds, ORANGE, lw=7, alpha=0.35, label=translate("interval"))
        text, at = _label(translate(format_interval(held.change, unit)), 60), (parent + child) / 2
        axes.annotate(text, (at, line - 0.26), ha="center", va="bottom", fontsize=9)
        axes.plot(parent, line, "o", color=BLUE, markersize=9, label=translate(PARENT))
        axes.plot(child, line, "D", color=ORANGE, markersize=8, label=translate(RETRAINED))
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def drift_figure(drift_table: pd.DataFrame) -> Figure:
    """Draw the distance of the farthest columns in `drift.drift`'s table; bars are cut at 2."""
    table = drift_table.sort_values("distance", ascending=False, na_position="last")[:MAX_LINES]
    title = "New rows against old ones (orange: drifted)"
    xlabel = translate("distance in standard deviations; of text from 0 to 1")
    figure, axes = _lines(title, map(_label, table["column"]), xlabel, 0.25 * len(table) + 1.4)
    colours = np.where(table["drifted"], ORANGE, LIGHT)
    lengths = table["distance"].fillna(0.0).clip(upper=MAX_DISTANCE)
    bars = axes.barh(range(len(table)), lengths, 0.7, color=colours)
    shown = [translate(format_amount(value)) for value in table["distance"]]
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # or the line would cross them
    axes.bar_label(bars, shown, padding=3, size=9, bbox=box, zorder=3)
    axes.axvline(DRIFT_DISTANCE, color="black", ls="--", lw=1, label=translate("threshold"))
    axes.margins(x=0.1)
    axes.legend(loc="lower right", frameon=False)
    return figure


def importance(table: pd.DataFrame, unit: str = "") -> Figure:
    """Draw `comparison.importance`'s table: the rise of each model's MAE, with its interval."""
    title, xlabel = "Rise of the error when a column is shuffled", _with_unit("rise in MAE", unit)
    figure, axes = _lines(title, map(_label, table["column"]), xlabel, 0.3 * len(table) + 1.4)
    _bars(axes, range(len(table)), {name: table[name] for name in COLOURS})
    for bars, name in zip(axes.containers, COLOURS, strict=True):
        middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
        axes.hlines(middles, table[f"{name}_low"], table[f"{name}_high"], GREY, lw=1.5)
    return figure


def dependence(tables: Mapping[str, pd.DataFrame], unit: str = "") -> Figure:
    """Draw `comparison.dependence`'s table of each column: mean predictions over its values."""
    figure, panels = _canvas(3.0, list(tables), sharey=True)
    for axes, table in zip(panels, tables.values(), strict=True):
        is_number = pd.api.types.is_numeric_dtype(table.index)
        places, style = (table.index, ".-") if is_number else (range(len(table)), "o")
        for name, colour in COLOURS.items():
            axes.plot(places, table[name], style, color=colour, label=translate(name))
        if not is_number:
            names = [_label(name, 18) for name in table.index]
            axes.set_xticks(places, names, rotation=40, ha="right", fontsize=8)
        else:
            axes.xaxis.set_major_formatter(NUMBERS)
        axes.yaxis.set_major_formatter(AMOUNTS)
    panels[0].set_ylabel(_with_unit("mean prediction", unit))
    figure.legend(handles=panels[0].lines, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _canvas(height: float, titles: Sequence[str], **shared: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per title, narrow enough to be read on a telephone."""
    figure = Figure(figsize=(6.6, max(2.6, height)), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False, **shared)[0]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(_label(translate(title), 56 // len(titles)), fontsize=11, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, list(panels)


def _bars(axes: Axes, places: Sequence[int], series: Mapping[str, pd.Series]) -> None:
    """Draw one horizontal bar per model at each place, with a legend if there are two."""
    height = 0.8 / len(series)
    for number, (name, lengths) in enumerate(series.items()):
        at = np.array(places) + (number - (len(series) - 1) / 2) * height
        axes.barh(at, lengths, height, color=COLOURS[name], label=translate(name))
    if len(series) > 1:
        axes.figure.legend(loc="outside lower center", ncols=2, frameon=False)


def _lines(title: str, labels: Iterable, xlabel: str, height: float) -> tuple[Figure, Axes]:
    """Return a figure and its panel, whose horizontal lines are named by `labels` from the top."""
    (figure, (axes,)), labels = _canvas(height, [title]), list(labels)
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_formatter(AMOUNTS)
    axes.xaxis.set_major_locator(MaxNLocator(6))  # long labels leave little room
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _with_unit(name: str, unit: str) -> str:
    return _label(translate(name) + (f" ({unit})" if unit else ""))


def _label(text: object, longest: int = 32) -> str:
    """Shorten text from the data in its middle, as names differ at their ends; show no formula."""
    words = " ".join(str(text).split())
    if len(words) > longest:
        words = f"{words[: longest - 13]}…{words[-12:]}"
    return words.replace("$", r"\$")
