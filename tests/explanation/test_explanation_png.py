"""Explanations as images: the same bytes every time, whatever the texts, and no state shared."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

import matplotlib
from PIL import Image

from explaining import chunk, explanation, hard, hostile, usual, whole
from samkv_rag import Explanation
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.explanation import png, sheet
from samkv_rag.explanation.lettering import Paragraph, plain_words
from samkv_rag.explanation.sheet import DPI, Sheet
from samkv_rag.explanation.style import LIGHT


def opened(image: bytes) -> Image.Image:
    return Image.open(BytesIO(image)).convert("RGB")


@cache
def pixels(image: bytes) -> Counter[str]:
    """How many pixels have exactly one of the colours, by its name."""
    names = {tuple(bytes.fromhex(colour[1:])): name for name, colour in LIGHT.items() if name[:3] != "ink"}
    counted = opened(image).getcolors(1 << 24) or []
    return Counter({names[colour]: number for number, colour in counted if colour in names})


@pytest.fixture(scope="module")
def drawn() -> bytes:
    return usual().to_png()


def test_it_is_a_png_without_date_or_maker(drawn: bytes) -> None:
    image = Image.open(BytesIO(drawn))
    assert (image.format, image.width) == ("PNG", 10 * DPI)
    assert not {"Software", "Creation Time", "date"} & set(image.info)


def test_equal_explanations_make_equal_bytes_and_files(drawn: bytes, tmp_path: Path) -> None:
    assert usual().to_png(tmp_path / "a.png") == drawn
    assert (tmp_path / "a.png").read_bytes() == drawn
    assert usual().to_png(str(tmp_path / "b.png")) == drawn


def test_marks_are_as_wide_as_what_was_kept() -> None:
    few = explanation(chunk(kept=((2, 4),), scores=(1.0,))).to_png()
    many = explanation(chunk(kept=((2, 6),), scores=(1.0,))).to_png()
    none = explanation(chunk(kept=(), scores=(1.0,))).to_png()
    assert pixels(none)["bar3"] == 0
    assert pixels(many)["bar3"] == pytest.approx(2 * pixels(few)["bar3"], rel=0.1)


def test_marks_are_as_dark_as_the_score_is_high(drawn: bytes) -> None:
    assert all(pixels(drawn)[name] for name in ("bar0", "bar2", "bar3", "mark2", "mark3", "track"))
    unscored = replace(usual(), chunks=tuple(replace(one, blocks=()) for one in usual().chunks)).to_png()
    assert pixels(unscored)["bar0"] > pixels(drawn)["bar0"]
    assert sum(pixels(unscored)[name] for name in ("bar1", "bar2", "bar3", "mark1", "mark2", "mark3")) == 0


@pytest.mark.parametrize(
    "one", [hard(), hostile(), whole(), explanation(), explanation(chunk("$x^2$ \\frac % _"), answer="")],
    ids=["hard", "hostile", "whole", "empty", "mathematics"],
)  # fmt: skip
def test_any_text_can_be_drawn_without_a_warning(one: Explanation) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(one.to_png())["text"] > 0


def test_many_chunks_stay_readable() -> None:
    few, many = (opened(explanation(*[chunk("One short text of few words.")] * number).to_png()) for number in (14, 30))
    assert few.height < many.height < 2.5 * few.height
    assert (many.height / DPI) / 30 > 0.2, "inches a chunk"


def test_too_many_chunks_are_counted_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_MAX_ROWS", 15)
    heights = [opened(explanation(*[chunk("word")] * number).to_png()).height for number in (15, 16, 400)]
    assert heights[0] < heights[1] == heights[2]


def test_the_users_style_and_figures_are_left_alone(drawn: bytes) -> None:
    mine = {"text.usetex": True, "font.size": 30.0, "figure.autolayout": True, "savefig.dpi": 30, "text.color": "red"}
    with matplotlib.rc_context(mine):
        before = dict(matplotlib.rcParams)
        assert usual().to_png() == drawn
        assert dict(matplotlib.rcParams) == before


def test_no_line_is_wider_than_it_may_be() -> None:
    paper = Sheet(10.0, "#ffffff")
    written: list[tuple[str, float]] = []
    paper.write = lambda x, y, text, *_, **__: written.append((text, x))  # type: ignore[method-assign]
    text = "short words and one-" + "x" * 300 + " then 灯塔的两台柴油发电机叫做弗洛拉和梅布尔 end"
    Paragraph(paper, plain_words(text), 8.0, 2.0, max_lines=99).draw(0.0, 0.0)
    assert len(written) > 10
    assert all(x + paper.measure(line, 8.0) <= 2.05 for line, x in written)
    assert "".join("".join(line.split()) for line, _ in written) == "".join(text.split())


def test_what_has_no_room_ends_in_an_ellipsis() -> None:
    paper = Sheet(10.0, "#ffffff")
    written: list[str] = []
    paper.write = lambda x, y, text, *_, **__: written.append(text)  # type: ignore[method-assign]
    paragraph = Paragraph(paper, plain_words("word " * 200), 8.0, 2.0, max_lines=2)
    paragraph.draw(0.0, 0.0)
    assert written[-1] == "…" and len(written) == 3


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r'pip install "samkv-rag\[explain\]"'):
        usual().to_png()
