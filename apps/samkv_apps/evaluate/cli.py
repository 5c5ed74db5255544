"""The command `samkv evaluate`: on case files, or on your own documents and questions."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from samkv_rag.exceptions import ConfigurationError

_WORDS = {"true": "True", "false": "False", "none": "None"}


def evaluate(
    model: Annotated[str, typer.Option(help="Hub id, folder or .gguf file.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the results; an earlier run in it is continued.")],
    data: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Case files, one JSON object per line.")
    ] = None,
    more_data: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More case files.")] = None,
    documents: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Instead of --data: text, Markdown and PDF files.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(metavar="CSV", help="With --documents: columns question, answer (a|b), source.")
    ] = None,
    corpus: Annotated[
        bool, typer.Option("--corpus", help="With --data: retrieve from the chunks of all cases of a file.")
    ] = False,
    retriever: Annotated[str, typer.Option(help="With --corpus or --order: minilm or bm25.")] = "minilm",
    top_k: Annotated[
        int | None, typer.Option(min=1, help="With --documents or --corpus: chunks to retrieve.", show_default="8")
    ] = None,
    more_top_k: Annotated[int, typer.Option(min=1, help="Most chunks of the method more_chunks.")] = 30,
    order: Annotated[
        str | None,
        typer.Option(
            help="Order of the chunks: best_first, best_last, random or file.",
            show_default="file; with --corpus best_first",
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Prompt: llama_index, langchain or plain.", show_default="built in")
    ] = None,
    methods: Annotated[str, typer.Option(help="Names, separated by commas; full_prefill always runs.")] = "scout",
    sequence_ratio: Annotated[str, typer.Option(help="Budgets, separated by commas.")] = "0.15",
    prompt: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your prompt, with {passages} and {question}.", show_default="built in"),
    ] = None,
    task: Annotated[str, typer.Option(help="short, or long: answers of a page.")] = "short",
    group: Annotated[int, typer.Option(min=1, help="With --task long: questions per prompt, if the file has any.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Cases of each file.", show_default="all")] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the sample that --limit takes, and of the bootstrap.", show_default="none"),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Folder for chunk KV.", show_default="kv in output-dir")] = None,
    reference: Annotated[Path | None, typer.Option(help="Evaluation whose full-prefill answers to reuse.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Such as bfloat16.", show_default="by processor")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.", show_default="16; with --task long 256")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of a method or of EngineConfig.")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots", help="Draw plots; needs matplotlib.")] = False,
) -> None:
    """Answer questions with several methods; compare quality, speed and memory."""
    cases = [*(data or []), *(more_data or [])]
    _require_one_input(cases, documents, questions, top_k, corpus)
    from samkv_apps.terminal import quieten_libraries

    quieten_libraries()
    from samkv_apps.evaluate import EvaluationOptions, cases_from_folder, compare_long_answers
    from samkv_apps.evaluate import evaluate as run_evaluation
    from samkv_apps.evaluate.options import TOP_K
    from samkv_apps.evaluate.records import CASES_FILE, RunFolder

    options = EvaluationOptions(
        model=model,
        data=cases or [output_dir / CASES_FILE],
        output_dir=output_dir,
        methods=_split_list(methods),
        sequence_ratios=_parse_ratios(sequence_ratio),
        limit=limit,
        seed=seed,
        store=store,
        reference=reference,
        dtype=dtype,
        max_new_tokens=max_new_tokens or (256 if task == "long" else 16),
        task=task,  # type: ignore[arg-type]
        group=group,
        prompt=_read_prompt(prompt),
        template=template,  # type: ignore[arg-type]  # names are checked there
        corpus=corpus,
        retriever=retriever,  # type: ignore[arg-type]
        top_k=top_k or TOP_K,
        more_top_k=more_top_k,
        order=order,  # type: ignore[arg-type]
        plots=plots,
        options=_parse_options(option or []),
    )
    if documents and questions:
        RunFolder(output_dir)  # refuses a folder of something else before the cases are made
        cases_from_folder(documents, questions, output_dir, model, options.top_k)
    if task == "long":
        compare_long_answers(options)
        typer.echo((output_dir / "long.md").read_text(encoding="utf-8"))
        return
    metrics = run_evaluation(options)
    typer.echo(f"results in {output_dir}: report.md, metrics.json, predictions.jsonl")
    for run in metrics.runs:
        low, high = run.recall_diff_ci95
        typer.echo(
            f"{run.data}  {run.method} {run.sequence_ratio:g}  recall {run.recall:.3f} "
            f"({low:+.3f} to {high:+.3f} of full prefill's)  first token {run.ttft_ratio_median:.2f} of it"
        )


def _require_one_input(
    cases: list[Path], documents: Path | None, questions: Path | None, top_k: int | None, corpus: bool
) -> None:
    if (documents is None) != (questions is None):
        raise typer.BadParameter("--documents and --questions belong together; give both")
    if bool(cases) == (documents is not None):
        raise typer.BadParameter("give either --data FILE, or --documents FOLDER and --questions CSV")
    if top_k is not None and documents is None and not corpus:
        raise typer.BadParameter("--top-k goes with --documents or --corpus; the cases in --data have their chunks")
    if corpus and documents is not None:
        raise typer.BadParameter("--corpus goes with --data; from --documents chunks are retrieved anyway")


def _split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parse_ratios(text: str) -> list[float]:
    """Turn ``"0.15,0.3"`` into numbers."""
    try:
        return [float(part) for part in _split_list(text)]
    except ValueError as error:
        raise ConfigurationError(f"sequence_ratio is {text!r}; give numbers, separated by commas") from error


def _parse_options(settings: Sequence[str]) -> dict[str, Any]:
    """Turn ``["block_tokens=8", "recompute=false"]`` into options. A value that is not a literal is a string."""
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"--option is {setting!r}; give name=value")
        value = _WORDS.get(value.strip().lower(), value.strip())
        try:
            options[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            options[name.strip()] = value
    return options


def _read_prompt(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--prompt {file} cannot be read ({error}); give a text file in UTF-8") from error
