"""A sheet to draw on, measured in inches from its top left corner; all there is of matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.explanation.markup import spelled

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

DPI = 160
_LATIN = "DejaVu Sans"
"""Comes with matplotlib, so that a picture is the same everywhere."""
_OTHERS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Malgun Gothic", "Arial Unicode MS",
    "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Thai",
)  # fmt: skip
"""Used, where installed, for what it has no glyph of."""
_NO_GLYPH = "□"


class Sheet:
    """Draws text and rectangles on a figure of its own: no window, no state that pyplot or a style would share.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """

    def __init__(self, width: float, background: str) -> None:
        if find_spec("matplotlib") is None:
            raise ConfigurationError('the picture is drawn with matplotlib; pip install "samkv-rag[explain]"')
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(width, 1), dpi=DPI, facecolor=background, edgecolor=background)
        self._figure.set_layout_engine("none")
        canvas: Any = FigureCanvasAgg(self._figure)
        self._canvas, self._renderer = canvas, canvas.get_renderer()
        self._artists: list[tuple[Any, float]] = []
        self._widths: dict[tuple[str, float, bool], float] = {}
        self.width = width

    def measure(self, text: str, size: float, bold: bool = False) -> float:
        """Width of ``text`` in inches; ``size`` is in points."""
        key = (text, size, bold)
        if key not in self._widths:
            font = _font(size, bold)
            self._widths[key] = self._renderer.get_text_width_height_descent(_drawable(text), font, False)[0] / DPI
        return self._widths[key]

    def write(self, x: float, y: float, text: str, size: float, colour: str, bold: bool = False) -> None:
        """Write one line whose baseline is at ``y``."""
        from matplotlib.text import Text

        font = _font(size, bold)
        artist = Text(x, 0, _drawable(text), color=colour, fontproperties=font, usetex=False, parse_math=False)
        self._artists.append((artist, y))

    def fill(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Fill a rectangle whose upper left corner is at ``x``, ``y``."""
        from matplotlib.patches import Rectangle

        artist = Rectangle((x, 0), width, height, facecolor=colour, edgecolor="none", linewidth=0)
        self._artists.append((artist, y + height))

    def png(self, height: float) -> bytes:
        """Return the image, cut off at ``height``; the same bytes for the same drawing."""
        self._figure.set_size_inches(self.width, height)
        for artist, y in self._artists:
            artist.set_y(height - y)
            artist.set_transform(self._figure.dpi_scale_trans)
            self._figure.add_artist(artist)
        buffer = BytesIO()
        self._canvas.print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()


@cache
def _font(size: float, bold: bool) -> FontProperties:
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=_families(), size=size, weight="bold" if bold else "normal")


@cache
def _families() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = {entry.name for entry in fontManager.ttflist}
    return [_LATIN, *(name for name in _OTHERS if name in installed)]


def _drawable(text: str) -> str:
    """``text`` with a box for every character that no font has, and its controls spelled out."""
    return "".join(_glyph(character) for character in spelled(text))


@cache
def _glyph(character: str) -> str:
    return character if any(font.get_char_index(ord(character)) for font in _faces()) else _NO_GLYPH


@cache
def _faces() -> Iterable[Any]:
    from matplotlib.font_manager import findfont, get_font

    return [get_font(findfont(name)) for name in _families()]
