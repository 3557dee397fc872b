"""Figures: what they say, and that they can stand in a page."""

import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from jaxface.evaluation.metrics import reliability
from jaxface.plots import INK, to_data_uri, to_png_bytes, to_svg
from jaxface.report import figures

LINE = (np.arange(1.0, 51), 1 / np.arange(1.0, 51))
NONE = (np.zeros(0), np.zeros(0))
DRAWINGS = {
    "loss": lambda: figures.loss_curve(LINE, (LINE[0][::10], LINE[1][::10])),
    "loss of nothing": lambda: figures.loss_curve(NONE, NONE),
    "accuracy": lambda: figures.curves({"age": LINE, "gender": LINE}, "accuracy", percent=True),
    "weights": lambda: figures.curves({"age": LINE}, "weight of the loss"),
    "confusion": lambda: figures.confusion(np.array([[3, 1], [0, 0]]), ["<male>", "female"]),
    "reliability": lambda: figures.reliability_diagram(reliability(np.array([[0.7, 0.3]]), np.array([0]))),
    "before and after": lambda: figures.before_after({"age": {"after": 0.8, "before": 0.2, "pixels": 0.3}, "gender": {"before": 0.5}}),
    "faces": lambda: figures.faces(np.zeros((7, 8, 8, 3), np.uint8), [[("happy 98 %", True), ("male 60 %", None)]] * 7, columns=3),
}


def texts(figure):
    return [node.text for node in ElementTree.fromstring(to_svg(figure)).iter() if node.tag.endswith("text")]


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_wellformed_svg_without_a_name_that_others_could_share(name):
    svg = to_svg(DRAWINGS[name](), name)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == name
    ids = {node.get("id") for node in root.iter()} - {None}
    others = {node.get("id") for node in ElementTree.fromstring(to_svg(DRAWINGS[name](), "another")).iter()} - {None}
    assert not ids & others
    for node in root.iter():
        for value in node.attrib.values():
            if "url(#" in value:
                assert value.split("url(#")[1].split(")")[0] in ids
            assert not value.startswith(("http:", "https:"))


def test_the_same_drawing_is_the_same_text():
    assert to_svg(DRAWINGS["confusion"](), "a") == to_svg(DRAWINGS["confusion"](), "a")


def test_ink_follows_the_page():
    svg = to_svg(DRAWINGS["accuracy"]())
    assert "currentColor" in svg
    assert "var(--grid)" in svg
    assert INK not in svg


def test_a_confusion_matrix_shows_each_rows_percent_and_the_counts():
    shown = texts(figures.confusion(np.array([[30, 10], [0, 1200]]), ["no", "yes"]))
    assert [text for text in shown if text in ("75", "25", "100", "30", "10", "1,200")] == ["75", "30", "25", "10", "100", "1,200"]
    assert "0" not in shown


def test_before_and_after_are_drawn_at_their_values():
    figure = figures.before_after({"age": {"after": 0.8, "before": 0.25}})
    (axes,) = figure.axes
    assert axes.patches[0].get_width() == pytest.approx(80)
    assert axes.lines[0].get_xdata() == pytest.approx([25])


def test_faces_carry_their_captions_in_the_colour_of_right_and_wrong():
    figure = figures.faces(np.zeros((2, 8, 8, 3), np.uint8), [[("happy", True)], [("sad", False)]])
    colours = {text.get_text(): text.get_color() for axes in figure.axes for text in axes.texts}
    assert colours == {"✓ happy": figures.RIGHT, "✗ sad": figures.WRONG}


def test_thinning_keeps_the_mean_and_the_range():
    steps, values = figures.thin((np.arange(1000.0), np.arange(1000.0)), 100)
    assert len(steps) == len(values) == 100
    assert values.mean() == pytest.approx(499.5)
    assert figures.thin(LINE, 100) is LINE


def test_smoothing_has_no_bias_to_zero_at_the_start():
    np.testing.assert_allclose(figures.smooth(np.full(5, 3.0)), 3.0)
    assert figures.smooth(np.zeros(0)).shape == (0,)


def test_smoothing_does_not_lag_behind_a_falling_curve():
    line = 10 - 0.1 * np.arange(60.0)
    np.testing.assert_allclose(figures.smooth(line)[10:-10], line[10:-10], atol=1e-6)


def test_validation_losses_far_above_are_marked_with_their_value_and_do_not_flatten_the_rest():
    validation = (np.array([10.0, 20, 30, 50]), np.array([15.6, 0.9, 0.5, 0.4]))
    (axes,) = figures.loss_curve((LINE[0], LINE[1]), validation).axes
    assert axes.get_ylim()[1] < 1.2
    assert [text.get_text() for text in axes.texts] == ["15.6"]
    (triangle,) = [line for line in axes.lines if line.get_marker() == "^"]
    assert triangle.get_xdata().tolist() == [10.0]


def test_a_validation_loss_alone_is_drawn_as_high_as_it_is():
    (axes,) = figures.loss_curve(NONE, (np.array([1.0, 2, 3]), np.array([3.0, 2.5, 2.0]))).axes
    assert axes.get_ylim()[1] > 3
    assert not axes.texts


def test_png_bytes_are_an_image_and_matplotlibs_settings_stay():
    settings = dict(mpl.rcParams)
    data = to_png_bytes(DRAWINGS["faces"](), dpi=40)
    assert data.startswith(b"\x89PNG")
    assert to_data_uri(data).startswith("data:image/png;base64,iVBOR")
    assert dict(mpl.rcParams) == settings
