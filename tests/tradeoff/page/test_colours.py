"""Contrast as WCAG 2 counts it, and colours that stay apart for colour-blind readers."""

import itertools
import re
from collections.abc import Mapping
from importlib.resources import files

import pytest

from legibility.tradeoff.page._drawing import _COLOURS

STYLE = files("legibility.tradeoff.page").joinpath("report.css").read_text("utf-8")
# Deuteranopia and protanopia in linear RGB, and tritanopia (Machado, Oliveira and Fernandes 2009, severity 1).
BLIND = {
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
Linear = tuple[float, float, float]


def scheme(name: str) -> dict[str, str]:
    """The colours of the light or the dark scheme, by variable."""
    blocks = re.findall(r":root[^{]*\{([^}]*)\}", STYLE)
    light = dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{3,6})", blocks[0]))
    return light if name == "light" else light | dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{3,6})", blocks[1]))


def linear(colour: str) -> Linear:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return red, green, blue


def contrast(one: str, two: str) -> float:
    light, dark = sorted(
        (0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in map(linear, (one, two))), reverse=True
    )
    return (light + 0.05) / (dark + 0.05)


def lab(colour: Linear) -> Linear:
    red, green, blue = colour
    xyz = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883,
    )
    x, y, z = (max(part, 0.0) ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def seen(colour: str, blindness: str) -> Linear:
    one = linear(colour)
    red, green, blue = (sum(factor * part for factor, part in zip(row, one, strict=True)) for row in BLIND[blindness])
    return lab((red, green, blue))


def test_contrast_is_counted_as_wcag_does() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_texts_and_marks_stand_out(name: str) -> None:
    colours: Mapping[str, str] = scheme(name)
    assert len([one for one in colours if re.fullmatch(r"c\d", one)]) == 8
    texts = [(text, ground) for text in ("ink", "soft", "link", "good", "bad", "note") for ground in ("page", "raised")]
    texts += [("good", "good-bg"), ("bad", "bad-bg"), ("note", "note-bg"), ("ink", "grid")]
    for text, ground in texts:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for number in range(8):
        assert contrast(colours[f"c{number}"], colours["page"]) >= 3, number


@pytest.mark.parametrize("blindness", BLIND)
@pytest.mark.parametrize("name", ["light", "dark"])
def test_methods_stay_apart_for_colour_blind_readers(name: str, blindness: str) -> None:
    # Distance in CIELAB, where 2 is just seen. Shapes differ besides.
    colours = [seen(scheme(name)[f"c{number}"], blindness) for number in range(8)]
    for (first, one), (second, two) in itertools.combinations(enumerate(colours), 2):
        distance = sum((left - right) ** 2 for left, right in zip(one, two, strict=True)) ** 0.5
        assert distance > (15 if second < 4 else 10), (first, second)


def test_exported_pictures_have_the_colours_of_the_light_page() -> None:
    light = scheme("light")
    assert {name: light[name.removeprefix("var(--").removesuffix(")")] for name in _COLOURS} == _COLOURS
