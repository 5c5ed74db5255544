"""Long answers: lists, summaries, several questions in one prompt, and the distance from full prefill along its answer.

Benchmarks ask for short answers. The tokens retained for a short answer may not be enough for a page. A case with
``items`` asks for a list or a summary; consecutive cases with ``answers`` share a prompt. Every method follows full
prefill's own answer: at each token its distribution of the next token is compared with full prefill's. Then the method
answers freely, and its text is searched for the items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

from samkv_apps.evaluate.datasets import Case, LongCase, load_long_cases
from samkv_apps.evaluate.environment import describe_run, open_engine
from samkv_apps.evaluate.errors import CaseFileError
from samkv_apps.evaluate.options import FULL, EvaluationOptions
from samkv_apps.evaluate.prompts import build_messages
from samkv_apps.evaluate.records import RunFolder
from samkv_apps.evaluate.scoring import normalise
from samkv_apps.evaluate.statistics import bootstrap_interval
from samkv_rag.engine import SamKVEngine
from samkv_rag.generation_result import GenerationResult
from samkv_rag.ingestion.recognition import text_digest
from samkv_rag.prefill import PrefillMethod, SparsePrefill

PROMPT = "Passages:\n\n{passages}\n\n{question}"
_INSTRUCTION = (
    "Answer every question below from the passages, in order. Write two full sentences on each, with names and numbers."
)
_NGRAM_WORDS = 4


@dataclass(frozen=True)
class LongAnswer:
    """The result of one method on one prompt."""

    data: str
    case: str
    method: str
    kl: float
    """KL(full prefill ‖ method) in nats, the mean over the tokens of full prefill's answer."""
    agreement: float
    """Share of these tokens that are the likeliest for both."""
    num_tokens: int
    """The length of full prefill's answer."""
    answer: str
    """The method's own answer."""
    item_recall: float
    """Share of the items, or of the questions' right answers, that ``answer`` contains."""
    repetition: float
    """Share of the four-word runs of ``answer`` that occur earlier in it."""
    decode_s_per_token: float
    refreshes: int
    refresh_share: float
    """Share of the time from the first token to the last in which refreshes select."""
    kv_bytes_resident: int


def compare_long_answers(options: EvaluationOptions) -> list[LongAnswer]:
    """Run every method on every prompt; write ``config.json``, ``long.jsonl`` and ``long.md`` into the folder.

    ``options.limit`` counts prompts. A method that refreshes also runs without refreshes.

    Raises:
        CaseFileError: a case file cannot be read.
        ConfigurationError: the folder is not empty.
    """
    data_sets = {file.stem: long_cases(file, options) for file in options.data}
    folder = RunFolder(options.output_dir)
    folder.require_new()
    with open_engine(options) as engine:
        folder.start(describe_run(options, engine))
        engine.add_chunks(chunk for cases in data_sets.values() for case in cases for chunk in case.chunks)
        answers: list[LongAnswer] = []
        for data, case in tqdm([(data, case) for data, cases in data_sets.items() for case in cases], disable=None):
            answers += _compare(engine, options, data, case)
            lines = (json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
            folder.write_text("long.jsonl", "".join(lines))
            folder.write_text("long.md", report(answers, options.seed or 0))
    return answers


def long_cases(file: Path, options: EvaluationOptions) -> list[LongCase]:
    """Return the file's first ``options.limit`` prompts.

    Raises:
        CaseFileError: the file cannot be read, or it has too few cases for a group.
    """
    cases = load_long_cases(file, options.seed)
    short = [case for case in cases if isinstance(case, Case)]
    prompts = [*(case for case in cases if isinstance(case, LongCase)), *grouped(short, options.group)]
    if not prompts:
        raise CaseFileError(f"{file} has {len(cases)} cases, fewer than --group {options.group}; lower --group")
    return prompts[: options.limit]


def grouped(cases: Sequence[Case], size: int) -> list[LongCase]:
    """Put ``size`` consecutive cases into one prompt, with their chunks in an arbitrary fixed order."""
    groups = [cases[i : i + size] for i in range(0, len(cases) - size + 1, size)]
    return [
        LongCase(
            case_id="+".join(case.case_id for case in group),
            question="\n".join([_INSTRUCTION, *(f"{i}. {case.question}" for i, case in enumerate(group, 1))]),
            items=tuple(case.answers for case in group),
            chunks=tuple(sorted({chunk for case in group for chunk in case.chunks}, key=text_digest)),
        )
        for group in groups
    ]


def _compare(engine: SamKVEngine, options: EvaluationOptions, data: str, case: LongCase) -> list[LongAnswer]:
    messages = build_messages(
        case.question, case.chunks, options.prompt or (None if options.template else PROMPT), options.template
    )

    def answer(method: PrefillMethod, choose: Callable[[torch.Tensor], int] | None = None) -> GenerationResult:
        return engine.generate(messages, method=method, choose=choose, max_new_tokens=options.max_new_tokens)

    leader = _Leader()
    answer(options.method(FULL), leader)
    answers = [_scored(data, case, FULL.method, _Follower(leader), answer(options.method(FULL)))]
    for label, method in _methods(engine, options):
        follower = _Follower(leader)
        answer(method, follower)
        answers.append(_scored(data, case, label, follower, answer(method)))
    return answers


def _methods(engine: SamKVEngine, options: EvaluationOptions) -> list[tuple[str, PrefillMethod]]:
    """Return the methods to run and their names in the report."""
    methods: dict[str, PrefillMethod] = {}
    for task in options.tasks()[1:]:
        method = options.method(task)
        name = task.method if task.ratio is None else f"{task.method} {task.ratio:g}"
        if isinstance(method, SparsePrefill) and method.refreshes_every(engine.decoder):
            methods[name] = replace(method, refresh_tokens=None)
            name += f", refresh_tokens={method.refresh_tokens}"
        methods[name] = method
    return list(methods.items())


class _Leader:
    """Chooses the likeliest token and records all log probabilities."""

    def __init__(self) -> None:
        self.log_probs: list[torch.Tensor] = []
        """``[vocab]`` per token, in half precision to save memory: hundreds of megabytes for a long answer."""

    def __call__(self, logits: torch.Tensor) -> int:
        self.log_probs.append(logits[0].float().log_softmax(-1).half().cpu())
        return int(self.log_probs[-1].argmax())


class _Follower:
    """Chooses the leader's tokens and compares its own distribution."""

    def __init__(self, leader: _Leader) -> None:
        self.expected = leader.log_probs
        self.kl: list[float] = []
        self.agrees: list[bool] = []

    def __call__(self, logits: torch.Tensor) -> int:
        expected = self.expected[len(self.kl)].to(logits.device).float()
        own = logits[0].float().log_softmax(-1)
        self.kl.append(float((expected.exp() * (expected - own)).sum()))
        self.agrees.append(bool(own.argmax() == expected.argmax()))
        return int(expected.argmax())


def _scored(data: str, case: LongCase, label: str, follower: _Follower, result: GenerationResult) -> LongAnswer:
    metrics, text = result.metrics, f" {normalise(result.text)} "
    decode_s = metrics.total_s - metrics.ttft_s
    return LongAnswer(
        data=data,
        case=case.case_id,
        method=label,
        kl=fmean(follower.kl or [0.0]),
        agreement=fmean(follower.agrees or [1.0]),
        num_tokens=len(follower.expected),
        answer=result.text,
        item_recall=fmean(any(f" {normalise(a)} " in text for a in answers) for answers in case.items),
        repetition=repetition(result.text),
        decode_s_per_token=decode_s / max(1, metrics.completion_tokens - 1),
        refreshes=metrics.refreshes,
        refresh_share=metrics.refresh_s / decode_s if metrics.refreshes else 0.0,
        kv_bytes_resident=metrics.kv_bytes_resident,
    )


def repetition(text: str) -> float:
    """Return the share of a text's four-word runs that occur earlier in it."""
    words = normalise(text).split()
    runs = [tuple(words[i : i + _NGRAM_WORDS]) for i in range(len(words) - _NGRAM_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def report(answers: Sequence[LongAnswer], seed: int) -> str:
    """Return a Markdown table, one row per data set and method; intervals are paired with full prefill."""
    header = ("data", "method", "n", "tokens", "KL", "95%", "÷ fixed", "top-1", "item recall", "− full, 95%",
              "repetition", "s a token ÷ full", "refreshes", "selecting, share of time", "KV MB")  # fmt: skip
    rows = [header, ("---",) * len(header)]
    for data, method in dict.fromkeys((answer.data, answer.method) for answer in answers):
        own = [answer for answer in answers if (answer.data, answer.method) == (data, method)]
        full = [answer for answer in answers if (answer.data, answer.method) == (data, FULL.method)]
        lost = bootstrap_interval([a.item_recall - b.item_recall for a, b in zip(own, full, strict=True)], seed)
        fixed = [answer for answer in answers if (answer.data, answer.method) == (data, method.split(",")[0])]
        rows.append((
            data,
            method,
            str(len(own)),
            f"{fmean(a.num_tokens for a in own):.0f}",
            f"{fmean(a.kl for a in own):.3f}",
            "{:.3f} to {:.3f}".format(*bootstrap_interval([a.kl for a in own], seed)),
            f"{fmean(a.kl for a in own) / fmean(a.kl for a in fixed):.3f}" if method != FULL.method else "",
            f"{fmean(a.agreement for a in own):.3f}",
            f"{fmean(a.item_recall for a in own):.3f}",
            "{:+.3f} to {:+.3f}".format(*lost),
            f"{fmean(a.repetition for a in own):.3f}",
            f"{fmean(a.decode_s_per_token for a in own) / fmean(a.decode_s_per_token for a in full):.2f}",
            f"{fmean(a.refreshes for a in own):.1f}",
            f"{fmean(a.refresh_share for a in own):.2f}",
            f"{fmean(a.kv_bytes_resident for a in own) / 1e6:.2f}",
        ))  # fmt: skip
    return "# Long answers\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
