"""Numbers, pictures and charts on their own."""

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from jaxrobust.report import charts, images, text


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


@pytest.mark.parametrize(
    ("function", "value", "written"),
    [
        (text.percent, 0.41249, "41.2"),
        (text.percent, 1, "100.0"),
        (text.percent, None, "–"),
        (text.percent, math.nan, "–"),
        (text.percent, True, "–"),
        (text.number, 0.20312, "0.203"),
        (text.number, 12345.0, "12,345"),
        (text.number, -0.5, "−0.5"),
        (text.number, math.inf, "∞"),
        (text.number, 0, "0"),
        (text.count, 10000, "10,000"),
        (text.radius, 8 / 255, "8/255"),
        (text.radius, 0.2, "0.2"),
        (text.radius, 0.05, "0.05"),
        (text.radius, 1200 / 255, "4.706"),
        (text.radius, None, "–"),
        (text.seconds, 0.523, "0.52 s"),
        (text.seconds, 3.04, "3.0 s"),
        (text.seconds, 59.7, "1 min 0 s"),
        (text.seconds, 75, "1 min 15 s"),
        (text.seconds, 8000, "2 h 13 min"),
        (text.date, "2026-11-21T17:26:00+02:00", "21 November 2026, 15:26 UTC"),
        (text.date, "yesterday", "yesterday"),
        (text.interval, {"low": 0.5, "high": None}, ""),
    ],
)
def test_text(function, value, written):
    assert function(value) == written


def test_pictures_keep_their_pixels(rng):
    grey, colour = rng.uniform(size=(4, 5, 1)).astype(np.float32), rng.uniform(size=(4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(decoded(images.picture(grey)), grey[..., 0] * 255, atol=0.51)
    np.testing.assert_allclose(decoded(images.picture(colour)), colour * 255, atol=0.51)
    bad = np.array([[[np.nan], [2.0], [-1.0]]], np.float32)
    np.testing.assert_array_equal(decoded(images.picture(bad)), [[0, 255, 0]])


@pytest.mark.parametrize(
    ("largest", "factor"), [(0.2, 5), (8 / 255, 20), (0.001, 1000), (1.0, 1), (0.6, 1), (0.5, 2), (0, 1), (1e-9, 1)]
)
def test_amplification(largest, factor):
    assert images.amplification(np.array([0.0, -largest, np.nan])) == pytest.approx(factor)


def test_differences_are_signed():
    change = np.array([[[-0.2], [0.0], [0.2], [np.nan]]], np.float32)
    dark, same, light, unknown = decoded(images.difference(change, 5.0))[0].astype(int)
    assert dark[2] > dark[0] + 100
    assert light[0] > light[2] + 100
    np.testing.assert_array_equal(same, [243, 243, 243])
    np.testing.assert_array_equal(unknown, same)
    colour = np.broadcast_to(np.array([-0.2, 0.0, 0.2], np.float32), (1, 1, 3))
    np.testing.assert_allclose(decoded(images.difference(colour, 5.0))[0, 0], [0, 127.5, 255], atol=0.51)


def test_outcomes_one_pixel_an_example_then_blended(rng):
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in images.OUTCOME_COLOURS])
    codes = np.array([0, 1, 2, 3, 0])
    np.testing.assert_array_equal(decoded(images.outcomes(codes))[0], colours[codes])
    many = rng.integers(0, 4, 10_007)
    strip = decoded(images.outcomes(many))
    assert strip.shape == (1, 1200, 3)
    np.testing.assert_allclose(strip[0].mean(0), colours[many].mean(0), atol=1.0)
    np.testing.assert_allclose(strip[0, 0], colours[many[:8]].mean(0), atol=0.51)


def test_chart_lines_bands_gaps_and_mark():
    lines = [
        charts.Line(0, [0, 1, 2, 3], [1, 0.5, None, 0], [0.9, 0.4, None, 0], [1, 0.6, None, 0]),
        charts.Line(9, [0, 1, 2, 3], [1.0, 0.9, 0.8, 0.7]),
    ]
    plain = charts.chart(lines, label="a & <b>", x_label="$x$", y_label="y")
    marked = charts.chart(lines, label="a & <b>", x_label="$x$", y_label="y", mark=2, fraction=True)
    assert 'aria-label="a &amp; &lt;b&gt;"' in plain
    assert "$x$" in plain
    assert "var(--model-0)" in plain
    assert "var(--model-9)" in plain
    assert "fill-opacity: 0.16" in plain
    assert "stroke-dasharray" in plain  # the tenth model repeats a colour and so is dashed
    assert marked.count("stroke: var(--muted)") == plain.count("stroke: var(--muted)") + 1
    assert "100%" in marked
    assert "http" not in plain.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_models_that_share_a_colour_differ_otherwise():
    palette = charts.palette(16)
    for mode in ("light", "dark"):
        assert len(set(palette[mode])) == 7
    looks = [charts._look(model) for model in range(16)]
    assert len({(light, look["marker"]) for light, look in zip(palette["light"], looks, strict=True)}) == 16
    assert len({(light, look["linestyle"]) for light, look in zip(palette["light"], looks, strict=True)}) == 16
