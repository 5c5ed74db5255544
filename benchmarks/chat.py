"""Growing chats: time to the first token turn by turn, with and without the KV of earlier turns.

    python -m benchmarks.chat --model FOLDER --cases cases.jsonl [--turns 5] [--chats 9] [--json FILE]

Each chat asks the questions of a case file of ``samkv evaluate`` in turn. As in the frameworks' chat engines, the
passages of the current question are in the system message, and earlier turns follow them. The ways take turns; in
each, the chat continues with its own answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.machine import describe_machine
from samkv_apps.evaluate.datasets import Case, load_cases
from samkv_apps.evaluate.prompts import build_messages
from samkv_apps.evaluate.scoring import answer_recall
from samkv_rag import SamKVEngine
from samkv_rag.prefill import FullPrefill, PrefillMethod, Scout


@dataclass(frozen=True)
class Answer:
    """The answer of one turn."""

    ttft_s: float
    prompt_tokens: int
    right: bool


class Chat:
    """A chat answered in one way."""

    def __init__(self, engine: SamKVEngine, method: PrefillMethod, max_new_tokens: int) -> None:
        self.engine, self.method, self.max_new_tokens = engine, method, max_new_tokens
        self.said: list[dict[str, str]] = []

    def ask(self, case: Case) -> Answer:
        """Ask a case's question, with its passages before the earlier turns."""
        system, question = build_messages(case.question, case.chunks, template="langchain")
        messages = [system, *self.said, question]
        result = self.engine.generate(messages, method=self.method, max_new_tokens=self.max_new_tokens)
        self.said += [question, {"role": "assistant", "content": result.text}]
        metrics = result.metrics
        return Answer(metrics.ttft_s, metrics.prompt_tokens, answer_recall(result.text, case.answers) == 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each way and turn, and write JSON where asked to."""
    options = _options(arguments)
    cases = load_cases(options.cases, options.chats * options.turns)
    kept = SamKVEngine.from_pretrained(options.model, dtype=options.dtype, store=options.store)
    computed = SamKVEngine(kept.decoder.model, kept.tokenizer.tokenizer, kept.store, history_tokens=0)
    ways: dict[str, tuple[SamKVEngine, PrefillMethod]] = {
        "history kept": (kept, Scout()),
        "history computed": (computed, Scout()),
        "full prefill": (kept, FullPrefill()),
    }
    chats: dict[str, list[list[Answer]]] = {way: [] for way in ways}
    with kept, computed:
        for engine in (kept, computed):
            engine.add_chunks({text: None for case in cases for text in case.chunks})
        for first in range(0, len(cases), options.turns):
            for way, answers in _in_turn(ways, cases[first : first + options.turns], options.max_new_tokens).items():
                chats[way].append(answers)
    rows = [row for way, of_way in chats.items() for row in _rows(way, of_way)]
    for row in rows:
        print(
            f"{row['way']:17} turn {row['turn']}: {row['ttft_s']:.3f} s, {row['ttft_ratio']:.2f} of the first turn's; "
            f"{row['prompt_tokens']:.0f} tokens; right {row['right']} of {row['n']}"
        )
    if options.json is not None:
        setup = {"model": Path(options.model).name, "cases": options.cases.name, "new_tokens": options.max_new_tokens}
        document = {"machine": describe_machine(), "setup": setup, "rows": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def _in_turn(
    ways: dict[str, tuple[SamKVEngine, PrefillMethod]], asked: Sequence[Case], max_new_tokens: int
) -> dict[str, list[Answer]]:
    """The same chat in every way, a turn of each after the other."""
    chats = {way: Chat(engine, method, max_new_tokens) for way, (engine, method) in ways.items()}
    answers: dict[str, list[Answer]] = {way: [] for way in ways}
    for case in asked:
        for way, chat in chats.items():
            answers[way].append(chat.ask(case))
    return answers


def _rows(way: str, chats: Sequence[Sequence[Answer]]) -> Iterator[dict[str, Any]]:
    """Yield for each turn the median time, its ratio to the same chat's first turn, and the number of right answers."""
    for number in range(max(map(len, chats))):
        turns = [(chat[0], chat[number]) for chat in chats if number < len(chat)]
        yield {
            "way": way,
            "turn": number + 1,
            "n": len(turns),
            "ttft_s": median(turn.ttft_s for _, turn in turns),
            "ttft_ratio": median(turn.ttft_s / first.ttft_s for first, turn in turns),
            "prompt_tokens": fmean(turn.prompt_tokens for _, turn in turns),
            "right": sum(turn.right for _, turn in turns),
        }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--chats", type=int, default=9)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--store", default=":memory:")
    parser.add_argument("--dtype", help="default by processor")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
