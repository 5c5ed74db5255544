"""Whole query and chat engines on a tiny random model.

For every prompt that LlamaIndex sends, the answer must be the engine's own, and the chunks that the prompt contains
verbatim must come from the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.query_engine import CitationQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.llms.samkv import SamKVIngestion, SamKVLLM, SamKVPostprocessor

from samkv_rag import GenerationMetrics, SamKVEngine

TEXTS = [
    "The lamp of the lighthouse turns once a minute.\nIts keeper winds the clockwork every evening at dusk.",
    "The keeper of the lighthouse is called Marrable.\nHe came to the island in a gale and stayed for years.",
    "The boat to the lighthouse is called Marigold.\nIt carries the keeper's oil and flour twice a month.",
]
QUESTION = "Who is the keeper of the lighthouse?"
QUESTIONS = [QUESTION, "And its lamp?"]
ONE_CALL, CALL_PER_CHUNK = [3], [1, 1, 1]
HITS = {
    "compact": ONE_CALL,
    "refine": CALL_PER_CHUNK,
    "tree_summarize": ONE_CALL,
    "accumulate": CALL_PER_CHUNK,
    "compact_accumulate": ONE_CALL,
    "simple_summarize": [0],  # LlamaIndex sends repr() of the list of texts, so no text is verbatim
}
STARTS = ("LLMChatStartEvent", "LLMCompletionStartEvent")
awaited_or_not = pytest.mark.parametrize("is_async", [False, True])


@pytest.fixture
def calls() -> list[GenerationMetrics]:
    """Metrics of every generation, in order."""
    return []


@pytest.fixture
def llm(tiny_engine: Any, calls: list[GenerationMetrics]) -> SamKVLLM:
    llm = SamKVLLM.from_engine(tiny_engine, max_tokens=6, on_metrics=calls.append)
    Settings.llm, Settings.tokenizer = llm, llm.tokenizer
    return llm


@pytest.fixture
def index(llm: SamKVLLM) -> VectorStoreIndex:
    documents = [Document(text=text) for text in TEXTS]
    return VectorStoreIndex.from_documents(documents, transformations=[SamKVIngestion(llm)])


@pytest.fixture
def direct(tiny_engine: Any, dispatched: Any, calls: list[GenerationMetrics]) -> Callable[[], list[str]]:
    """A function that returns the engine's own answers to the prompts that reached the LLM, in order.

    A random model may give two prompts the same answer, so it also compares the prompts' lengths.
    """

    def answers() -> list[str]:
        starts = [event for event in dispatched.events if type(event).__name__ in STARTS]
        results = [_ask(tiny_engine, event) for event in starts]
        lengths = sorted(call.prompt_tokens for call in calls)  # concurrent calls finish in any order
        assert sorted(result.metrics.prompt_tokens for result in results) == lengths
        return [result.text for result in results]

    return answers


def _ask(engine: Any, event: Any) -> Any:
    if type(event).__name__ == "LLMChatStartEvent":
        prompt = [{"role": m.role.value, "content": m.content} for m in event.messages]
    else:
        prompt = [{"role": "user", "content": event.prompt}] if engine.has_chat_template else event.prompt
    return engine.generate(prompt, max_new_tokens=6)


def query_engine(index: VectorStoreIndex, llm: SamKVLLM, mode: str, **options: Any) -> Any:
    return index.as_query_engine(
        response_mode=ResponseMode(mode),
        similarity_top_k=3,
        node_postprocessors=[SamKVPostprocessor(llm)],
        **options,
    )


def is_made_of(response: str, mode: str, answers: list[str]) -> bool:
    """Whether LlamaIndex would make ``response`` from the LLM's ``answers``."""
    if not mode.endswith("accumulate"):
        return response == (answers[-1] or "Empty Response")
    numbered = (f"Response {number}: " for number in range(1, len(answers) + 1))
    parts = response.split("\n---------------------\n")
    return sorted(part.removeprefix(prefix) for part, prefix in zip(parts, numbered, strict=True)) == sorted(answers)


async def joined(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


async def astreamed(engine: Any) -> str:
    return await joined((await engine.aquery(QUESTION)).async_response_gen())


async def talk(engine: Any, how: str) -> list[str]:
    """Answers to two questions of one conversation."""
    answers = []
    for question in QUESTIONS:
        said = getattr(engine, how)(question)
        said = await said if how.startswith("a") else said
        if "stream" not in how:
            answers.append(said.response)
        else:
            answers.append(await joined(said.async_response_gen()) if how[0] == "a" else "".join(said.response_gen))
    return answers


class TestQueryEngines:
    @awaited_or_not
    @pytest.mark.parametrize("mode", HITS)
    def test_query(self, index: Any, llm: SamKVLLM, calls: list[Any], direct: Any, mode: str, is_async: bool) -> None:
        engine = query_engine(index, llm, mode)
        response = str(asyncio.run(engine.aquery(QUESTION)) if is_async else engine.query(QUESTION))
        assert [call.chunks_hit for call in calls] == HITS[mode]
        assert all(call.chunks_missed == 0 for call in calls)
        assert is_made_of(response, mode, direct())

    @awaited_or_not
    @pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
    def test_streaming_query(
        self, index: Any, llm: SamKVLLM, calls: list[Any], direct: Any, mode: str, is_async: bool
    ) -> None:
        engine = query_engine(index, llm, mode, streaming=True)
        said = asyncio.run(astreamed(engine)) if is_async else "".join(engine.query(QUESTION).response_gen)
        assert said == direct()[-1]
        assert [call.chunks_hit for call in calls][: len(HITS[mode])] == HITS[mode]

    def test_metadata_before_a_text_does_not_hide_it(self, llm: SamKVLLM, calls: list[Any]) -> None:
        documents = [Document(text=text, metadata={"file_path": f"{n}.md"}) for n, text in enumerate(TEXTS)]
        index = VectorStoreIndex.from_documents(documents, transformations=[SamKVIngestion(llm)])
        query_engine(index, llm, "compact").query(QUESTION)
        assert calls[0].chunks_hit == 3

    def test_a_model_without_chat_template(
        self, index: Any, llm: SamKVLLM, calls: list[Any], direct: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(SamKVEngine, "has_chat_template", False)
        assert not llm.metadata.is_chat_model
        response = str(query_engine(index, llm, "compact").query(QUESTION))
        assert [call.chunks_hit for call in calls] == ONE_CALL
        assert is_made_of(response, "compact", direct())

    @pytest.mark.parametrize("streaming", [False, True])
    def test_citations(self, index: Any, llm: SamKVLLM, calls: list[Any], direct: Any, streaming: bool) -> None:
        processors = [SamKVPostprocessor(llm)]
        engine = CitationQueryEngine.from_args(
            index, similarity_top_k=3, node_postprocessors=processors, streaming=streaming
        )
        response = engine.query(QUESTION)
        answer = "".join(response.response_gen) if streaming else str(response)
        assert [call.chunks_hit for call in calls] == ONE_CALL
        assert is_made_of(answer, "compact", direct())


def test_announced_chunks_are_computed_once_and_then_reused(llm: SamKVLLM, calls: list[Any], direct: Any) -> None:
    """As after a pipeline-cache hit, or with an index older than the KV store."""
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], transformations=[])
    engine = query_engine(index, llm, "compact")
    first, second = str(engine.query(QUESTION)), str(engine.query(QUESTION))
    assert [(call.chunks_hit, call.chunks_missed) for call in calls] == [(0, 3), (3, 0)]
    assert first == second and is_made_of(second, "compact", direct())


@pytest.mark.parametrize("how", ["chat", "achat", "stream_chat", "astream_chat"])
@pytest.mark.parametrize(
    ("mode", "hits"),
    [("context", [3, 3]), ("condense_plus_context", [3, 0, 3])],  # the second question is condensed first
)
def test_a_chat_of_two_turns(
    index: Any, llm: SamKVLLM, calls: list[Any], direct: Any, mode: Any, hits: list[int], how: str
) -> None:
    """In the second turn, history comes between the context and the question."""
    engine = index.as_chat_engine(chat_mode=mode, similarity_top_k=3, node_postprocessors=[SamKVPostprocessor(llm)])
    answers = asyncio.run(talk(engine, how))
    assert [call.chunks_hit for call in calls] == hits
    expected = direct()
    assert answers == [expected[0], expected[-1]]
