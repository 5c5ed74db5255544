"""The README's pictures of an explanation: a real answer, its chunks found by a real retriever.

    python -m benchmarks.explain_pictures [--folder docs/images] [--chromium PATH]

SmolLM2-135M-Instruct answers a question about the demo's handbook from the eight sections nearest to it,
the nearest last. ``explain-light.png`` and ``explain-dark.png`` show the upper part of the page that
``Explanation.to_html`` returns, drawn by the installed chromium with the installed fonts.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from samkv_apps import models
from samkv_apps.demo import corpus
from samkv_apps.demo.corpus import Question, Section
from samkv_apps.evaluate.embedding import Embedder
from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.explanation import Explanation

_QUESTION = 1
"""Which of the demo's, all chosen among those that so small a model answers rightly with full prefill."""
_NUM_CHUNKS = 8
_WIDTH, _END = 1000, "ul.samkv-legend"
"""Width of a screenshot, in CSS pixels, and the element at whose lower edge it ends."""
_CHROMIUM_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the question, and draw what the answer was read from."""
    options = _options(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    explanation = explain(corpus.questions()[_QUESTION])
    print(explanation.answer)
    for scheme in ("light", "dark"):
        screenshot(explanation.to_html(), scheme, options.folder / f"explain-{scheme}.png", options.chromium)


def explain(question: Question) -> Explanation:
    """Retrieve, answer, and explain.

    Raises:
        ConfigurationError: the answer is wrong; a picture of it would mislead.
    """
    engine = SamKVEngine.from_pretrained(models.language_model(say=print), store=":memory:")
    chunks = nearest_last(question.question, corpus.sections())
    engine.add_chunks([chunk.text for chunk in chunks])
    prompt = "\n\n".join([*(chunk.text for chunk in chunks), question.question])
    result = engine.generate([{"role": "user", "content": prompt}], max_new_tokens=32)
    if not question.is_answered_by(result.text):
        raise ConfigurationError(f"the answer {result.text!r} is wrong; choose another question than {_QUESTION}")
    named = result.explain().with_sources({chunk.text: chunk.file for chunk in chunks})
    return replace(named, model_name=models.PACKAGED["demo-small"].title)


def nearest_last(question: str, sections: Sequence[Section]) -> list[Section]:
    """The sections nearest to the question, by cosine similarity of sentence embeddings."""
    embedder = Embedder(torch.device("cpu"))
    asked = embedder.embed(question)[0]
    ranked = sorted(sections, key=lambda section: float(asked @ embedder.embed(section.text)[0]))
    return ranked[-_NUM_CHUNKS:]


def screenshot(html: str, scheme: str, file: Path, chromium: str) -> None:
    """Draw the page's upper part into ``file``; ``scheme`` is light or dark."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM_OPTIONS)
        context = browser.new_context(
            viewport={"width": _WIDTH, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
            device_scale_factor=2,
        )
        page = context.new_page()
        page.set_content(html)
        height = page.eval_on_selector(_END, "element => element.getBoundingClientRect().bottom")
        page.set_viewport_size({"width": _WIDTH, "height": round(height) + 20})
        drawn = page.screenshot()
        browser.close()
    # As many colours as the letters' smooth edges need, in a third of the bytes.
    Image.open(BytesIO(drawn)).convert("RGB").quantize(256).save(file, optimize=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The README's pictures of an explanation.")
    parser.add_argument("--folder", type=Path, default=Path("docs/images"))
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser's program")
    options = parser.parse_args(arguments)
    if options.chromium is None:
        parser.error("no chromium on the PATH; install it, or give --chromium PATH")
    return options


if __name__ == "__main__":
    main()
