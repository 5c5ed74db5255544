"""The ways LangChain users build RAG: each recognises the chunks and returns the engine's answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, dynamic_prompt
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import create_retriever_tool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_samkv import ChatSamKV, SamKVVectorStore
from samkv_rag import SamKVEngine
from support import tiny
from tests.lighthouse import KEEPER, QUERY, TEXTS, WordEmbeddings
from tests.scripted import ScriptedEngine, tiny_engine

RULES = "Answer from these passages alone."
QUESTIONS = [QUERY, "And the lamp?", "What is the sea like in winter?"]
PROMPT = ChatPromptTemplate.from_messages([("system", RULES + "\n\n{context}"), ("human", "{input}")])


class Answers(BaseCallbackHandler):
    """Keeps the model's messages, even if the chain continues with their text only."""

    def __init__(self) -> None:
        self.messages: list[AIMessage] = []

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.messages.append(response.generations[0][0].message)  # type: ignore[union-attr, arg-type]


@pytest.fixture
def engine() -> SamKVEngine:
    return tiny_engine()


@pytest.fixture
def llm(engine: SamKVEngine) -> ChatSamKV:
    return ChatSamKV(engine=engine, max_tokens=8, method=tiny.method(sequence_ratio=0.5))


@pytest.fixture
def retriever(llm: ChatSamKV) -> BaseRetriever:
    store = SamKVVectorStore.from_texts(TEXTS, WordEmbeddings(), llm=llm)
    return store.as_retriever(search_kwargs={"k": 2})


@pytest.fixture
def lcel(llm: ChatSamKV, retriever: BaseRetriever) -> Runnable[str, str]:
    return {"context": retriever | format_docs, "input": RunnablePassthrough()} | PROMPT | llm | StrOutputParser()


def format_docs(docs: list[Document]) -> str:
    return "\n\n".join(doc.page_content for doc in docs)


def check(message: Any, num_chunks: int = 2) -> None:
    """All chunks were read from the store and sparsified; nothing fell back to full prefill."""
    metrics = message.response_metadata["metrics"]
    assert (metrics["chunks_hit"], metrics["chunks_missed"]) == (num_chunks, 0)
    assert (metrics["method"], metrics["fallback_reason"]) == ("scout", None)
    assert 0 < metrics["sequence_ratio"] <= 0.5
    assert message.usage_metadata["input_token_details"]["cache_read"] >= metrics["chunk_tokens"] > 0


def direct_answer(engine: SamKVEngine, context: str, *turns: str, question: str = QUERY) -> str:
    """The engine's answer to the same messages without LangChain; ``turns`` are earlier questions and answers."""
    roles = ("user", "assistant") * len(turns)
    history = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    messages = [{"role": "system", "content": context}, *history, {"role": "user", "content": question}]
    return engine.generate(messages, max_new_tokens=8, method=tiny.method(sequence_ratio=0.5)).text


def expected_context(retriever: BaseRetriever, question: str = QUERY) -> str:
    return f"{RULES}\n\n{format_docs(retriever.invoke(question))}"


def test_lcel_with_a_plain_format_docs(lcel: Runnable[str, str], retriever: BaseRetriever, engine: SamKVEngine) -> None:
    answers = Answers()
    answer = lcel.invoke(QUERY, {"callbacks": [answers]})
    check(answers.messages[0])
    assert answer == answers.messages[0].text == direct_answer(engine, expected_context(retriever))


def test_stuff_documents_in_a_retrieval_chain(llm: ChatSamKV, retriever: BaseRetriever, engine: SamKVEngine) -> None:
    answers = Answers()
    document_prompt = PromptTemplate.from_template("{page_content}\n--")
    stuff = create_stuff_documents_chain(llm, PROMPT, document_prompt=document_prompt, document_separator="\n")
    chain = create_retrieval_chain(retriever, stuff)
    result = chain.invoke({"input": QUERY}, {"callbacks": [answers]})
    check(answers.messages[0])
    passages = "\n".join(f"{document.page_content}\n--" for document in retriever.invoke(QUERY))
    assert result["answer"] == direct_answer(engine, f"{RULES}\n\n{passages}")
    assert result["context"] == retriever.invoke(QUERY), "documents come back as they were"


def an_agent(llm: ChatSamKV, retriever: BaseRetriever) -> Callable[[str], Any]:
    """An agent with chunks in its prompt and a checkpointer."""

    @dynamic_prompt
    def with_passages(request: ModelRequest) -> str:
        return expected_context(retriever, request.state["messages"][-1].text)

    agent = create_agent(llm, tools=[], middleware=[with_passages], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "one"}}
    return lambda question: agent.invoke({"messages": [HumanMessage(question)]}, thread)["messages"][-1]


def a_chain(llm: ChatSamKV, retriever: BaseRetriever) -> Callable[[str], Any]:
    """A chain with a message history."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", RULES + "\n\n{context}"), MessagesPlaceholder("history"), ("human", "{input}")]
    )
    passages = RunnablePassthrough.assign(context=lambda asked: format_docs(retriever.invoke(asked["input"])))
    history = InMemoryChatMessageHistory()
    chain = RunnableWithMessageHistory(
        passages | prompt | llm, lambda _: history, input_messages_key="input", history_messages_key="history"
    )
    return lambda question: chain.invoke({"input": question}, {"configurable": {"session_id": "one"}})


@pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning")
@pytest.mark.parametrize("made", [an_agent, a_chain])
def test_a_conversation(made: Any, llm: ChatSamKV, retriever: BaseRetriever, engine: SamKVEngine) -> None:
    asked, turns = made(llm, retriever), list[str]()
    for question in QUESTIONS:
        answer = asked(question)
        check(answer)
        context = expected_context(retriever, question)
        assert answer.text == direct_answer(engine, context, *turns, question=question)
        turns += [question, answer.text]


def test_an_agent_that_searches_by_a_tool() -> None:
    """The tool call comes from a script, the metrics from the real engine."""
    scripted: Any = ScriptedEngine(tiny_engine(tiny.TOOL_TEMPLATE))
    llm = ChatSamKV(engine=scripted, max_tokens=8, method=tiny.method(sequence_ratio=0.5))
    store = SamKVVectorStore.from_texts(TEXTS, WordEmbeddings(), llm=llm)
    search = create_retriever_tool(store.as_retriever(search_kwargs={"k": 2}), "search", "Search the station's book.")
    messages = create_agent(llm, [search]).invoke({"messages": [HumanMessage(QUERY)]})["messages"]
    _, call, found, answer = messages
    assert call.tool_calls[0]["args"] == {"query": QUERY}
    assert isinstance(found, ToolMessage) and KEEPER in found.text
    check(answer)


async def test_events_of_a_stream(lcel: Runnable[str, str], retriever: BaseRetriever) -> None:
    events = [event async for event in lcel.astream_events(QUERY, version="v2")]
    by_kind = {event["event"]: event for event in events}
    assert by_kind["on_retriever_end"]["data"]["output"] == retriever.invoke(QUERY)
    pieces = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    assert len(pieces) > 2 and "".join(pieces) == lcel.invoke(QUERY)
    check(by_kind["on_chat_model_end"]["data"]["output"])
