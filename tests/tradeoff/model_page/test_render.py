"""A model's page as text: every picture or why it is missing, every name escaped, numbers that come back."""

import base64
import dataclasses
import gzip
import html
import io
import json
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from pictures import HOSTILE, full_picture, full_record
from rich.console import Console

from legibility.tradeoff import ScoreEntry
from legibility.tradeoff.model_page import (
    ModelPicture,
    load_picture,
    page_path,
    picture_path,
    print_model,
    render_model_html,
    save_picture,
    write_model_html,
)
from legibility.tradeoff.model_page._png import grid_png, joined
from legibility.tradeoff.model_page._words import _WORDS

_TAGS = (
    "a b body br caption circle code dd details div dl dt figcaption figure h1 h2 h3 h4 header img li line main nav p path "
    "polyline rect section small span strong summary svg table tbody td text th thead title tr"
)


def pixels(url: str) -> list[list[int]]:
    """The palette's numbers of a PNG, read by its format."""
    data = base64.b64decode(url.partition(",")[2])
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and (depth, kind) == (8, 3)
    place, packed = 8, b""
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        name, chunk = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(name + chunk)
        packed += chunk if name == b"IDAT" else b""
        place += 12 + length
    rows = zlib.decompress(packed)
    assert len(rows) == height * (width + 1)
    return [[value - 99 for value in rows[r * (width + 1) + 1 : (r + 1) * (width + 1)]] for r in range(height)]


def test_a_grid_is_what_its_picture_holds() -> None:
    grid = [[0, 99, -99], [5, -5, 120]]
    assert pixels(grid_png(grid)) == [[0, 99, -99], [5, -5, 99]]
    assert joined([[[1], [2]], [[3], [4]]], gap=2) == [[1, 0, 0, 3], [2, 0, 0, 4]]
    broken: list[list[list[int]]] = [[], [[]], [[1], [1, 2]]]
    for wrong in broken:
        with pytest.raises(ValueError, match="`grid`"):
            grid_png(wrong)


def test_every_part_is_there_or_says_why_not() -> None:
    page = render_model_html(full_record(), ModelPicture("Net", "none", missing={"lens": "it has <no> stream"}))
    for title in (
        "Activations, by unit and input", "What units stand for", "Lens, layer by layer", "The circuit",
        "Weights as a graph", "Weights", "What held-out students learn and miss", "Attention", "Guards",
    ):  # fmt: skip
        assert f">{title}</h3>" in page
    assert "Not here: it has &lt;no&gt; stream." in page
    assert page.count("Not here: nothing of this kind was found in this model.") == 7
    full = render_model_html(full_record(), full_picture())
    assert "Not here" not in full and full.count("<figure") == 11 and full.count("<img") >= 6
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in re.findall(r"<img[^>]*>", full))
    assert all("aria-label=" in chart for chart in re.findall(r"<svg[^>]*>", full))


def test_the_scores_stand_beside_their_controls_and_one_that_is_beaten_is_marked() -> None:
    page = render_model_html(full_record(), full_picture())
    assert "constant 0.9 does better" in page and "random-init 0.1 does better" not in page
    assert "saving on the true labels 0.5" in page and "0.5 does better" not in page
    assert "would take about 9 s" in page and "12.5 % of the fit" in page
    assert "random-init, which hasn&#39;t learnt, would have 0.95" in page or "hasn't learnt, would have 0.95" in page
    shown = io.StringIO()
    print_model(full_record(), Console(file=shown, width=180))
    printed = shown.getvalue()
    assert "constant 0.9 !" in printed and "random-init 0.1," in printed and "circuit, nodes: would take" in printed
    assert "(trained on)" in printed and "random-init, unlearnt, 0.95 !" in printed


def test_the_terminal_says_why_a_score_stands_beside_no_control() -> None:
    record = full_record()
    why = {"random-init": "the primary is constant"}
    alone = [
        ScoreEntry(name, 0.4, "nats", "lower", None, None, trained_on=False, control_reasons=why)
        for name in ("held_out_kl", "code_length")
    ]
    shown = io.StringIO()
    print_model(replace(record, scores=alone), Console(file=shown, width=180))
    assert "No control beside:\n  held-out KL, code length: random-init: the primary is constant\n" in shown.getvalue()
    shown = io.StringIO()
    print_model(replace(record, scores=[replace(alone[0], controls={"constant": 0.5})]), Console(file=shown, width=180))
    assert "No control beside" not in shown.getvalue()


def test_no_name_can_be_markup() -> None:
    for name in HOSTILE:
        page = render_model_html(full_record(name), full_picture(name))
        body = page.partition("<body>")[2]
        assert html.escape(name, quote=True) in body or html.escape(name, quote=True).replace("&#x27;", "&#39;") in body
        assert "<script" not in page and "<a href='java" not in page
        tags = {tag.lower() for tag in re.findall(r"<([a-zA-Z0-9]+)", body)}
        assert tags <= set(_TAGS.split())


def test_the_page_forbids_what_it_does_not_need() -> None:
    page = render_model_html(full_record(), full_picture())
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "http://" not in page and "https://" not in page


def test_numbers_come_back_and_what_is_broken_says_where(tmp_path: Path) -> None:
    picture = full_picture()
    path = save_picture(picture, tmp_path / "picture.json.gz")
    assert load_picture(path) == picture
    payload = json.loads(gzip.decompress(path.read_bytes()))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        load_picture(path)
    path.write_bytes(gzip.compress(json.dumps(payload | {"format": "legibility.model-picture/9"}).encode()))
    with pytest.raises(ValueError, match="model-picture/9.*measure again"):
        load_picture(path)
    payload["units"][0]["live"] = "many"
    path.write_bytes(gzip.compress(json.dumps(payload).encode()))
    with pytest.raises(ValueError, match=r"`units\[0\].live` must be a whole number"):
        load_picture(path)
    assert picture.lens is not None
    nowhere = dataclasses.replace(picture.lens, information=float("nan"))
    with pytest.raises(ValueError, match="[Nn]ot JSON compliant|[Oo]ut of range"):
        save_picture(dataclasses.replace(picture, lens=nowhere), path)


def test_pages_and_numbers_lie_beside_their_record(tmp_path: Path) -> None:
    assert page_path(tmp_path / "record-3.json") == tmp_path / "model-3.html"
    assert picture_path("a/mine.json") == Path("a/mine-picture.json.gz")
    written = write_model_html(full_record(), full_picture(), tmp_path / "new" / "model.html")
    assert written.read_text().startswith("<!DOCTYPE html>")


def test_words_are_short_enough_for_a_table() -> None:
    for title, meaning in _WORDS.values():
        assert len(title) <= 30 and 10 < len(meaning) <= 90 and not meaning.endswith(".")
