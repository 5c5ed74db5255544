"""Tracking numbers and the labels that carry them."""

from __future__ import annotations

from typing import ClassVar

from .errors import LabelError


class Paper:
    """Label stock in the printers, by name, in millimetres and dots.

    The stock "wide" is for pallets, "slim" for letters. Printers find out for themselves which
    one is loaded, so a wrong choice shows up as an error on the display, not as a bad print.
    """

    WIDTH_MM: ClassVar[dict[str, int]] = {"slim": 57, "normal": 102, "wide": 148}
    DOTS_PER_MM: ClassVar[int] = 8
    MAX_LINE_CHARACTERS: ClassVar[int] = 33
    CODE_PAGE: ClassVar[str] = "cp850"


def check_digit(number: str) -> str:
    """Last character of a tracking number, from the digits before it.

    Digits are weighted 3, 7, 3, 7 and so on from the left and summed; the digit is what is missing
    to the next multiple of eleven. Where that would be ten, the letter "K" stands instead. Letters
    in the number are skipped and do not move the weights on.
    """
    digits = [int(character) for character in number if character.isdigit()]
    total = sum(digit * (3, 7)[index % 2] for index, digit in enumerate(digits))
    missing = -total % 11
    return "K" if missing == 10 else str(missing)


def shorten_name(name: str, max_characters: int = Paper.MAX_LINE_CHARACTERS) -> str:
    """A recipient's name cut to one line of a label.

    First names are reduced to initials from the left until the name fits; the last word always
    stays whole. If even that is too long, the text is cut and ends in a tilde, so that the driver
    knows there is more. Nothing is changed where the name fits as it is.
    """
    words = name.split()
    for index in range(len(words) - 1):
        if len(" ".join(words)) <= max_characters:
            break
        words[index] = words[index][0] + "."
    line = " ".join(words)
    return line if len(line) <= max_characters else line[: max_characters - 1] + "~"


def label_width_dots(stock: str = "normal") -> int:
    """Width of the printable area in dots.

    The area is narrower than the paper: 5 mm are lost at both edges together. The resolution is
    that of ``Paper.DOTS_PER_MM`` for every printer in use. The two printers at the ferry terminal
    have a finer head but are run at the same resolution, so that labels look alike everywhere.

    Raises:
        LabelError: The stock's name is unknown.
    """
    if stock not in Paper.WIDTH_MM:
        raise LabelError(f"no stock is called {stock!r}")
    return (Paper.WIDTH_MM[stock] - 5) * Paper.DOTS_PER_MM


def encode_line(text: str) -> bytes:
    """One line of text as the printer's bytes.

    Characters are encoded in ``Paper.CODE_PAGE``. Line breaks and tabs become spaces, since they
    would end the printer's field. The caret starts a command on the printer and is replaced by an
    apostrophe.

    Raises:
        LabelError: A character does not exist in the code page.
    """
    clean = text.translate({ord("\n"): " ", ord("\t"): " ", ord("^"): "'"})
    try:
        return clean.encode(Paper.CODE_PAGE)
    except UnicodeEncodeError as error:
        raise LabelError(f"cannot print {error.object[error.start]!r}") from error
