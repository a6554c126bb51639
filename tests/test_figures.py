"""Claims about figures.py: what is drawn, with which words, and that it can be saved."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from toolkit import comparison, figures

RNG = np.random.default_rng
FORMULA = "prix_$x^"  # a formula for matplotlib, and a broken one


def held_out(n_rows=50, **errors):
    y = RNG(0).uniform(500, 40_000, n_rows)
    models = {name: y + error for name, error in errors.items()}
    return comparison.evaluate(y, models)


def groups_table(n_categories=3, before=True, names="catégorie {}", n_columns=1):
    labels = np.array([names.format(k) for k in range(n_categories)])
    y = RNG(0).uniform(500, 40_000, 40 * n_categories)
    rows = pd.DataFrame({f"colonne {k}": np.repeat(labels, 40) for k in range(n_columns)})
    parent = y + RNG(1).normal(0, 2000, len(y))
    child = y + RNG(2).normal(0, 1000, len(y))
    return comparison.groups(rows, rows.columns, y, parent if before else None, child)


def drift_table(**distances):
    table = pd.DataFrame({"column": distances.keys(), "distance": distances.values()})
    return table.assign(drifted=table["distance"] > 0.1)


def importance_table(**rises):
    table = pd.DataFrame({"column": rises.keys(), "parent": 1.0, "parent_low": 0.5})
    table = table.assign(parent_high=1.5, retrained=rises.values())
    return table.assign(retrained_low=table["retrained"] - 1, retrained_high=table["retrained"] + 2)


def dependence_tables():
    pair = {"parent": [1e6, 2e6], "retrained": [2e6, 3e6]}
    return {
        FORMULA: pd.DataFrame(pair, index=[3.0, 4.0]),
        "city": pd.DataFrame(pair, index=["a $x^", "b" * 50]),
    }


def words(figure):
    """Collect all text that a saved figure shows."""
    figure.draw_without_rendering()
    shown = [text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text"))]
    return "\n".join(shown)


def every_figure():
    y = RNG(0).uniform(500, 40_000, 50)
    both = held_out(parent=4000, retrained=3000, control=3500)
    return {
        "learning_curve": figures.learning_curve({"loss": [3, 2, 1], "val_loss": [3, 2.5, 2]}),
        "predicted": figures.predicted_against_actual(y, {"parent": y + 9, "retrained": y}, "€"),
        "groups": figures.error_per_group(groups_table(), "€"),
        "before_after": figures.before_after({"new": both, "old": both}, "€"),
        "drift": figures.drift_figure(drift_table(age=0.4, taille=0.04)),
        "importance": figures.importance(importance_table(age=9.0, taille=0.1), "€"),
        "dependence": figures.dependence(dependence_tables(), "€"),
    }


@pytest.mark.parametrize("name", every_figure())
def test_each_function_returns_a_figure_that_saves_as_a_png_with_something_on_it(name, tmp_path):
    figure = every_figure()[name]
    assert type(figure) is Figure
    path = tmp_path / f"{name}.png"
    figure.savefig(path)
    pixels = imread(path)
    assert path.stat().st_size > 5_000
    assert 800 <= pixels.shape[1] <= 1000
    assert pixels.std() > 0.05


def test_pyplot_is_never_imported():
    program = (
        "import sys; from toolkit import figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(figures.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


def test_learning_curve_draws_every_named_curve_from_epoch_one_and_no_empty_one():
    curves = {"loss": [3.0, 2.0], "val_loss": [4.0, 5.0], "final_loss": []}
    axes = figures.learning_curve(curves).axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {"loss": [[1, 3], [2, 2]], "val loss": [[1, 4], [2, 5]]}
    assert len({line.get_color() for line in axes.lines}) == 2
    assert len(figures.learning_curve({"loss": [3.0]}).axes[0].lines) == 1


def test_predictions_are_drawn_in_one_panel_per_model_with_its_error():
    y = np.array([100.0, 200.0, 300.0])
    figure = figures.predicted_against_actual(y, {"parent": y + 120, "retrained": y - 20}, "€")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["parent: MAE 120 €", "retrained: MAE 20.0 €"]
    points = figure.axes[0].collections[0].get_offsets()
    assert sorted(points.tolist()) == [[100, 220], [200, 320], [300, 420]]
    made = {"model": [100, 200, 340]}
    weighted = figures.predicted_against_actual(y, made, "€", weights=[1, 1, 2])
    assert weighted.axes[0].get_title(loc="left") == "model: MAE 20.0 €"
    colours = [to_hex(axes.collections[0].get_facecolor()[0]).upper() for axes in figure.axes]
    assert colours == [figures.BLUE, figures.ORANGE]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    alone = figures.predicted_against_actual(y, {"model": y}).axes
    assert len(alone) == 1
    assert to_hex(alone[0].collections[0].get_facecolor()[0]).upper() == figures.ORANGE


def test_diagonal_is_where_predicted_equals_actual():
    y = np.array([100.0, 200.0])
    line = figures.predicted_against_actual(y, {"model": y}).axes[0].lines[0]
    assert line.get_slope() == 1
    assert line.get_xy1() == (100, 100)


def test_millions_are_written_short_enough_not_to_overlap():
    y = RNG(0).uniform(1e6, 2.5e7, 50)
    figure = figures.predicted_against_actual(y, {"parent": y, "retrained": y}, "€")
    lines = {"column": "c" * 40, "category": "d" * 40, "rows": 9, "MAE_before": 1.8e6}
    per_group = figures.error_per_group(pd.DataFrame([lines]), "€")
    for each in (figure, per_group):
        each.draw_without_rendering()
        for axes in each.axes:
            boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert "12M" in words(figure)


def test_at_most_two_thousand_points_are_drawn_and_always_the_same():
    y = RNG(0).normal(size=5000)
    drawn = [
        figures.predicted_against_actual(y, {"a": y}).axes[0].collections[0].get_offsets()
        for _ in range(2)
    ]
    assert len(drawn[0]) == 2000
    assert (drawn[0] == drawn[1]).all()


def test_error_of_each_group_is_a_bar_before_and_one_after():
    table = groups_table(3)
    axes = figures.error_per_group(table, "€").axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [table["MAE_before"].tolist(), table["MAE_after"].tolist()]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["colonne 0", *(f"catégorie {k} (40)" for k in range(3))]
    middle = [bar.get_y() + bar.get_height() for bar in axes.containers[0]]
    assert middle == pytest.approx([1, 2, 3])
    assert "MAE (€)" in axes.get_xlabel()


def test_first_training_has_one_bar_per_group_and_no_legend():
    figure = figures.error_per_group(groups_table(before=False))
    assert len(figure.axes[0].containers) == 1
    assert not figure.legends


def test_group_that_got_worse_carries_a_star():
    table = groups_table(2)
    table["worse"] = [True, False]
    shown = words(figures.error_per_group(table))
    assert "catégorie 0 (40) *" in shown
    assert "catégorie 1 (40) *" not in shown


def test_many_long_names_neither_overlap_nor_leave_the_picture():
    name = "une catégorie au nom franchement interminable, numéro {}"
    figure = figures.error_per_group(groups_table(12, names=name, n_columns=2))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 26
    assert min(box.x0 for box in boxes) >= 0
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))


def test_of_very_many_groups_the_largest_are_drawn():
    table = groups_table(12, n_columns=8)
    table["rows"] = np.arange(len(table)) + 1
    shown = words(figures.error_per_group(table))
    assert len(table) == 96
    assert "(96)" in shown
    assert "(17)" in shown
    assert "(16)" not in shown


def test_before_and_after_stand_on_one_line_with_the_difference_in_words():
    held = held_out(parent=4000, retrained=3000, control=3500, mean=9_000)
    figure = figures.before_after({"new": held, "old": held}, "€")
    axes = figure.axes[0]
    points = {(line.get_label(), *line.get_xydata()[0].round(6)) for line in axes.lines}
    for name, error in (("parent", 4000), ("retrained", 3000)):
        assert {(name, error, 0), (name, error, 1)} <= points
    shown = words(figure)
    assert "-1,000 € (-1,000 to -1,000)" in shown
    assert [label.get_text() for label in axes.get_yticklabels()] == ["new (50)", "old (50)"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["interval", "parent", "retrained"]


def test_bar_is_the_interval_of_the_difference_set_off_from_the_parent():
    scores = held_out(parent=4000, retrained=3000).scores
    interval = comparison.Interval(-1000, -1300, -800)
    held = comparison.HeldOut(50, scores, interval, interval)
    bar = figures.before_after({"new": held}).axes[0].collections[0]
    assert bar.get_segments()[0].tolist() == [
        pytest.approx([2700, 0]),
        pytest.approx([3200, 0]),
    ]


def test_difference_without_bounds_is_drawn_all_the_same():
    one_row = held_out(1, parent=4000, retrained=3000)
    figure = figures.before_after({"new": one_row})
    assert "-infinite to infinite" in words(figure)
    assert not figure.axes[0].collections


def test_drift_is_a_bar_per_column_farthest_on_top_with_drifted_ones_coloured():
    axes = figures.drift_figure(drift_table(taille=0.04, age=0.4)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["age", "taille"]
    bars = axes.containers[0]
    assert [bar.get_width() for bar in bars] == [0.4, 0.04]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == [figures.ORANGE, figures.LIGHT]
    assert axes.lines[0].get_xdata()[0] == 0.1
    top, bottom = bars[0].get_y(), bars[1].get_y()
    assert axes.transData.transform((0, top))[1] > axes.transData.transform((0, bottom))[1]


def test_long_bars_are_cut_and_labelled_and_unmeasured_columns_say_so():
    figure = figures.drift_figure(drift_table(unit_changed=1000.0, empty=math.nan, age=0.2))
    assert figure.axes[0].containers[0][0].get_width() == 2
    shown = words(figure)
    assert "1,000" in shown
    assert "n/a" in shown


def test_importance_is_a_bar_per_model_and_column_with_its_interval():
    axes = figures.importance(importance_table(age=9.0, taille=0.1), "€").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["age", "taille"]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[1.0, 1.0], [9.0, 0.1]]
    lines = [each.get_segments() for each in axes.collections]
    assert lines[1][0][:, 0].tolist() == [8, 11]
    bar = axes.containers[1][0]
    assert lines[1][0][0, 1] == pytest.approx(bar.get_y() + bar.get_height() / 2)


def test_dependence_has_a_panel_per_column_on_one_scale():
    figure = figures.dependence(dependence_tables(), "€")
    by_number, by_text = figure.axes
    assert by_number.lines[1].get_xydata().tolist() == [[3, 2e6], [4, 3e6]]
    assert by_text.lines[0].get_xydata().tolist() == [[0, 1e6], [1, 2e6]]
    assert by_number.get_ylim() == by_text.get_ylim()
    assert "2M" in words(figure)
    assert "mean prediction (€)" in words(figure)


def test_dollar_signs_line_breaks_and_long_names_are_harmless(tmp_path):
    y = np.array([1.0, 2.0])
    held = held_out(parent=2, retrained=1)
    table = groups_table(2, names=FORMULA + " {}")
    drawn = [
        figures.predicted_against_actual(y, {FORMULA: y}, "$"),
        figures.error_per_group(table, "$"),
        figures.before_after({FORMULA: held}, "$"),
        figures.importance(importance_table(**{FORMULA: 1.0}), "$"),
        figures.dependence(dependence_tables(), "$"),
        figures.drift_figure(drift_table(**{FORMULA: 1.0, "a\nb" + "x" * 99: 2.0})),
    ]
    for number, figure in enumerate(drawn):
        figure.savefig(tmp_path / f"{number}.png")
        assert r"prix_\$x^" in words(figure)
    assert "a b" + "x" * 16 + "…" + "x" * 12 + "\n" in words(drawn[-1])
