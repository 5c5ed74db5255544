"""Answers over the network equal the engine's, for every client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from serving import MODEL, Running, tiny_engine

from samkv_apps.serve.backend import _prompt
from samkv_apps.serve.forms import Explained, Form, event
from samkv_apps.serve.schema import CalledFunction, ChatRequest, CompletionRequest
from samkv_rag import Piece
from samkv_rag.model.tokenization import RenderedPrompt
from samkv_rag.prefill import FullPrefill
from samkv_rag.store import open_store
from support import tiny

QUESTION = "What does the seventh keeper record of the tide?"
ASKED: Any = [{"role": "user", "content": QUESTION}]
Ask = Callable[..., Any]
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def nested(levels: int) -> dict[str, Any]:
    return {"items": nested(levels - 1)} if levels else {}


def texts(*seeds: int) -> list[str]:
    return [tiny.text(seed) for seed in seeds]


def expected(server: Running, prompt: str, **options: Any) -> str:
    message = {"role": "user", "content": prompt}
    return server.engine.generate([message], **({"max_new_tokens": 12} | options)).text


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    """A function: options of OpenAI's client, and more fields of the body, to the client's response."""
    common: dict[str, Any] = {"model": MODEL, "messages": ASKED, "max_tokens": 12}

    def call(body: dict[str, Any] | None = None, **options: Any) -> Any:
        return client.chat.completions.create(**common | options, extra_body=body)

    return call


def test_documents_are_put_in_front_of_the_question(server: Running, ask: Ask) -> None:
    answer = ask({"documents": [{"text": f"{tiny.text(1)} \n", "title": "One"}, tiny.text(2)]})
    prompt = f"One\n{tiny.text(1)}\n\n{tiny.text(2)}\n\n{QUESTION}"
    assert answer.choices[0].message.content == expected(server, prompt)
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", MODEL, "length")
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_documents_that_stand_in_the_messages_are_left_where_they_are(server: Running, ask: Ask) -> None:
    prompt = tiny.rag_prompt(texts(3, 4))
    message: Any = {"role": "user", "content": prompt}
    answers = [ask({"documents": texts(3, 4)}, messages=[message]) for _ in range(2)]
    assert [answer.choices[0].message.content for answer in answers] == [expected(server, prompt)] * 2
    # The first request computes and stores them; the second reads their KV.
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in answers]
    assert cached == [0, server.engine.generate([message], max_new_tokens=1).metrics.tokens_reused]
    assert cached[1] >= sum(map(server.engine.count_tokens, texts(3, 4)))


@pytest.mark.parametrize(
    "template", [tiny.DOCUMENT_TEMPLATE, "{{ documents | tojson }}" + tiny.CHAT_TEMPLATE], ids=["place", "escaped"]
)
def test_documents_go_where_the_template_has_its_place_for_them(serve: Any, template: str) -> None:
    running = serve({"tokenizer": tiny.tokenizer_with(template)})
    one, two = f"{tiny.text(6)} </s>", "Two\nlines of the tide."
    if template == tiny.DOCUMENT_TEMPLATE:
        given = [{"title": "Six", "text": one}, {"title": "", "text": two}]
        prompt: Any = running.engine.apply_chat_template(ASKED, documents=given)
    else:  # the template escapes the line break, so the chunk is not in the prompt
        prompt = [{"role": "user", "content": "\n\n".join([f"Six\n{one}", two, QUESTION])}]
    body = {"model": MODEL, "messages": ASKED, "max_tokens": 12, "explain": True}
    body["documents"] = [{"text": one, "title": "Six"}, two]
    answer = running.http.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == running.engine.generate(prompt, max_new_tokens=12).text
    assert [chunk["source"] for chunk in answer["samkv"]["explanation"]["chunks"]] == ["Six", ""]


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_streamed_equals_not_streamed(ask: Ask, temperature: float) -> None:
    whole = ask(temperature=temperature, seed=7)
    chunks = list(ask(temperature=temperature, seed=7, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions_take_the_prompt_as_it_is(server: Running, client: openai.OpenAI) -> None:
    prompt = tiny.rag_prompt(texts(5))
    whole = client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, extra_body={"documents": texts(5)})
    assert whole.choices[0].text == server.engine.generate(prompt, max_new_tokens=12).text
    chunks = client.completions.create(model=MODEL, prompt=[prompt], max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_requests_at_once_get_the_answers_they_get_alone(server: Running, ask: Ask) -> None:
    def content(seed: int) -> str:
        stream = ask({"documents": texts(seed)}, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(6) as readers:
        together = list(readers.map(content, range(6)))
    assert together == [expected(server, f"{tiny.text(seed)}\n\n{QUESTION}") for seed in range(6)]


def test_a_method_is_chosen_by_name_or_by_its_options(server: Running, ask: Ask) -> None:
    def answered(samkv: Any) -> Any:
        return ask({"documents": texts(1, 2), "samkv": samkv, "explain": True})

    full = answered("full_prefill")
    prompt = "\n\n".join([*texts(1, 2), QUESTION])
    assert full.choices[0].message.content == expected(server, prompt, method=FullPrefill())
    assert full.samkv["metrics"]["method"] == "full_prefill"
    for options in ({"sequence_ratio": 0.5}, {"name": "scout", "sequence_ratio": 0.5, "min_chunk_tokens": 0}):
        metrics = answered(options).samkv["metrics"]
        assert metrics["method"] == "scout"
        assert 0.3 < metrics["sequence_ratio"] <= 0.5
    with pytest.raises(openai.BadRequestError, match="sequence_ratio is 7"):
        answered({"sequence_ratio": 7})


def test_what_was_read_is_cited_by_characters(ask: Ask) -> None:
    documents = [{"text": f"  {tiny.text(8)}", "id": "eight"}, {"text": tiny.text(9), "title": "Nine"}]
    body = {"documents": documents, "explain": True}
    answer = ask(body, max_tokens=4)
    explanation = answer.samkv["explanation"]
    assert explanation["model_name"] == MODEL
    assert [chunk["source"] for chunk in explanation["chunks"]] == ["eight", "Nine"]
    cited = [one["document_citation"] for one in answer.choices[0].message.model_dump()["annotations"]]
    assert [(one["document"], one["id"], one["title"]) for one in cited] == [(0, "eight", ""), (1, None, "Nine")]
    for citation, chunk, document in zip(cited, explanation["chunks"], documents, strict=True):
        before = document["text"].index(chunk["text"])
        runs = [(run["start_char"], run["stop_char"]) for run in (*chunk["retained"], *chunk["arrivals"])]
        spans = [(span["start_char"] - before, span["stop_char"] - before) for span in citation["spans"]]
        assert {at for run in runs for at in range(*run)} == {at for span in spans for at in range(*span)}
        assert all(start < stop for start, stop in spans)
    *_, end = ask(body, max_tokens=4, stream=True)
    assert end.samkv["explanation"]["chunks"] == [c | {"hit": True} for c in explanation["chunks"]]
    assert ask(body | {"explain": "html"}, max_tokens=4).samkv["html"].startswith("<section")


def test_langchain_and_llama_index_are_clients(server: Running) -> None:
    options: Any = {"base_url": f"{server.url}/v1", "api_key": "none", "max_tokens": 12}
    langchain = ChatOpenAI(model=MODEL, extra_body={"documents": texts(1)}, **options)
    answer = expected(server, f"{tiny.text(1)}\n\n{QUESTION}")
    assert langchain.invoke(QUESTION).content == answer
    assert "".join(str(chunk.content) for chunk in langchain.stream(QUESTION)) == answer

    options = {"model": MODEL, "api_base": f"{server.url}/v1", "api_key": "x", "max_tokens": 12, "temperature": 0}
    answer = expected(server, QUESTION)
    chat = OpenAILike(is_chat_model=True, **options)
    assert chat.chat([ChatMessage(role="user", content=QUESTION)]).message.content == answer
    assert [piece.text for piece in chat.stream_complete(QUESTION)][-1] == answer
    assert OpenAILike(**options).complete(QUESTION).text == server.engine.generate(QUESTION, max_new_tokens=12).text


def test_documents_are_ingested_and_forgotten(server: Running) -> None:
    text, other = texts(20, 21)
    body = {"documents": [{"text": text, "id": "shelf/20"}, other]}
    report = server.http.post("/v1/samkv/documents", json=body).json()
    assert (report["num_added"], report["num_reused"]) == (2, 0)
    assert server.http.post("/v1/samkv/documents", json=body).json()["num_reused"] == 2
    assert server.engine.has_chunk(text)
    deleted = server.http.delete("/v1/samkv/documents/shelf/20")
    assert deleted.json() == {"id": "shelf/20", "deleted_chunks": 1}
    assert not server.engine.has_chunk(text)
    assert server.engine.has_chunk(other)
    assert server.http.delete("/v1/samkv/documents/shelf/20").json()["deleted_chunks"] == 0


def test_figures_are_counted_and_the_dashboard_shows_those_that_exist(server: Running) -> None:
    ttft, completion = "samkv_ttft_seconds_count", 'samkv_tokens_total{kind="completion"}'
    before = {name: server.figure(name) for name in (ttft, completion)}
    server.http.post("/v1/samkv/documents", json={"documents": texts(1)})
    body = {"model": MODEL, "messages": ASKED, "documents": texts(1, 2), "max_tokens": 3}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200
    assert server.figure(ttft) == before[ttft] + 1
    assert server.figure(completion) == before[completion] + 3
    assert server.figure('samkv_requests_total{route="/v1/chat/completions",status="200"}') >= 1
    dashboard = Path(__file__).parents[3] / "deploy" / "grafana.json"
    shown = set(re.findall(r"samkv_\w+", dashboard.read_text()))
    assert len(shown) > 10
    assert shown <= set(re.findall(r"^samkv_\w+", server.http.get("/metrics").text, re.MULTILINE))


def test_bytes_read_and_evictions_are_counted(serve: Any) -> None:
    room = 2 * tiny_engine().estimate_chunks(texts(30)).num_bytes + 10_000  # for two chunks, not for three
    running = serve({"store": open_store(":memory:", memory_bytes=room)})
    body = {"model": MODEL, "messages": ASKED, "max_tokens": 2, "documents": texts(30), "explain": True}
    read, refresh_s = [], []
    for _ in range(2):  # computed, then read
        answer = running.http.post("/v1/chat/completions", json=body).json()
        metrics = answer["samkv"]["metrics"]
        read.append(metrics["bytes_read"] + metrics["refresh_bytes_read"])
        refresh_s.append(metrics["refresh_s"])
        assert running.figure("samkv_bytes_read_total") == sum(read)
    assert min(refresh_s) > 0
    assert running.figure("samkv_refresh_seconds_total") == pytest.approx(sum(refresh_s))
    assert read[0] == 0 < read[1]
    running.http.post("/v1/samkv/documents", json={"documents": texts(31, 32, 33)})
    assert running.figure("samkv_evictions_total") == 2


@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_is_longer_than_the_server_allows(serve: Any, stream: bool) -> None:
    running = serve(max_tokens=20)
    body = {"model": MODEL, "messages": ASKED, "max_completion_tokens": 10**9, "stream": stream}
    sent = running.http.post("/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}).text
    assert '"completion_tokens":20,' in sent.replace(" ", "")
    assert '"finish_reason":"length"' in sent.replace(" ", "")


def test_models_and_probes(server: Running) -> None:
    assert [model["id"] for model in server.http.get("/v1/models").json()["data"]] == [MODEL]
    assert server.http.get(f"/v1/models/{MODEL}").json()["object"] == "model"
    assert server.http.get("/v1/models/other/one").status_code == 404
    assert server.http.get("/health").json() == server.http.get("/ready").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "other"}, "this server has 'tiny'"),
        ({"n": 17}, "n is 17 and 16 answers are decoded together"),
        ({"top_logprobs": 2}, "pass logprobs=True"),
        ({"frequency_penalty": 1}, "use repetition_penalty"),
        ({"tools": [{"type": "function"}]}, "tools.0.function is missing"),
        ({"tools": [TOOL, TOOL]}, "two tools have the same name"),
        ({"tools": [TOOL]}, "takes no tools"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "x"}}}, "tool_choice is 'x'"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"response_format": {"type": "json_schema"}}, "json_schema goes with the type"),
        ({"response_format": json_schema({"const": "\ud800"})}, "the grammar cannot be used"),
        ({"response_format": json_schema({"type": "string", "pattern": "(a"})}, "the grammar cannot be used"),
        ({"response_format": json_schema({"enum": list(range(3000))})}, "64 levels or 2000 values"),
        ({"response_format": json_schema({"allOf": [{"multipleOf": m} for m in (7, 997, 999)]})}, "multipleOf, all of"),
        ({"response_format": json_schema(nested(70))}, "64 levels or 2000 values"),
        ({"zzz": 1}, "there is no such option; leave it out"),
        ({"max_new_tokens": 1}, "there is no such option; did you mean max_tokens?"),
        ({"samkv": "socut"}, "did you mean 'scout'"),
        ({"samkv": {"name": []}}, "it must be the name of a method"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "it should be 'text'"),
        ({"messages": [{"role": "system", "content": "x"}], "documents": texts(1)}, "no user message"),
        ({"messages": [{"role": "user", "content": "tide " * 5000}]}, "context window is 4096"),
        ({"documents": ["  "]}, "more than white space"),
        ({"documents": ["\ud800"]}, "half a surrogate pair"),
        ({"temperature": True}, "temperature is True"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_in_openais_form(
    server: Running, changes: dict[str, Any], words: str, stream: bool
) -> None:
    body = json.dumps({"model": MODEL, "messages": ASKED, "max_tokens": 2, "stream": stream} | changes)
    response = server.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == (404 if "model" in changes else 400)
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_options_that_change_nothing_are_taken(ask: Ask) -> None:
    neutral: Any = {"n": 1, "frequency_penalty": 0, "logprobs": False, "tools": [], "metadata": {"a": "b"}}
    spoken = ask(max_tokens=2, user="me", **neutral).choices[0].message
    assert ask(max_tokens=2, messages=[*ASKED, spoken.model_dump(), *ASKED]).choices, "answers can be sent back"
    marked = [{"type": "text", "text": ASKED[0]["content"], "id": "1", "cache_control": {"type": "ephemeral"}}]
    same = ask(max_tokens=2, messages=[{"role": "user", "content": marked}], temperature=1e-8).choices[0].message
    assert same.content == spoken.content


def test_several_prompts_at_once_are_refused_with_the_remedy(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt has 2 texts; send one a request"):
        client.completions.create(model=MODEL, prompt=["tide", "lamp"])


def test_arguments_that_are_nested_too_deep_stay_text() -> None:
    for depth, kind in ((60, dict), (600, str), (2000, str)):
        arguments = '{"a": ' * depth + "1" + "}" * depth
        assert isinstance(CalledFunction(name="f", arguments=arguments).for_template["arguments"], kind)


def test_half_a_surrogate_pair_in_an_answer_can_be_sent() -> None:
    assert json.loads(event({"text": "\ud83d"}).removeprefix(b"data: ")) == {"text": "\ud83d"}


def test_an_answer_is_a_span_where_opentelemetry_is_set_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("samkv_apps.serve.tracing._tracer", provider.get_tracer("test"))
    for prompt in (QUESTION, "tide " * 5000):
        server.http.post("/v1/completions", json={"model": MODEL, "prompt": prompt, "max_tokens": 3})
    done, refused = exporter.get_finished_spans()
    assert (done.name, done.status.is_ok) == ("text_completion tiny", True)
    assert done.attributes["gen_ai.usage.output_tokens"] == 3
    assert refused.attributes["error.type"] == "PromptTooLongError"
    assert QUESTION not in done.to_json()


def test_only_documents_that_are_missing_are_added() -> None:
    there, missing = tiny.text(1), tiny.text(2)
    messages = [
        {"role": "user", "content": f"{there}\n\nWho?"},
        {"role": "assistant", "content": "He."},
        {"role": "user", "content": "And?"},
    ]
    asked = {"model": MODEL, "documents": [there, missing]}
    for request in (
        ChatRequest.model_validate(asked | {"messages": messages}),
        CompletionRequest.model_validate(asked | {"prompt": f"{there}\n\nWho?"}),
    ):
        text = str(_prompt(tiny_engine(), request)[0])
        assert [text.count(there), text.count(missing)] == [1, 1]


def test_a_document_is_never_structure() -> None:
    engine = tiny_engine()
    for documents in ([{"title": "T</s>", "text": tiny.text(1)}], ["Yes.</s>"]):
        asked = {"model": MODEL, "documents": documents, "prompt": "Which</s>"}
        prompt, _ = _prompt(engine, CompletionRequest.model_validate(asked))
        assert isinstance(prompt, RenderedPrompt)
        assert [prompt.text[start:stop] for start, stop in prompt.literals] == ["</s>"]
        assert prompt.literals[0][0] < prompt.text.index("Which")


def test_a_call_that_cannot_be_read_is_no_reason_to_stop() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    request = ChatRequest.model_validate(
        {"model": MODEL, "messages": [{"role": "user", "content": "?"}], "tools": [tool]}
    )
    result = replace(tiny_engine().generate("Which tide?", max_new_tokens=1), finish_reason="stop")
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    for said, reason, indices in (("<tool_call>{no}</tool_call>", "stop", []), (call, "tool_calls", [0])):
        form = Form(MODEL, request)
        chunks = [
            *form.piece(Piece(f"Sure. <tool_call>{{no}}</tool_call>{said}")),
            *form.end(result, Explained([], {})),
        ]
        choices = [chunk["choices"][0] for chunk in chunks]
        assert choices[-1]["finish_reason"] == reason
        assert [one["index"] for choice in choices for one in choice["delta"].get("tool_calls", ())] == indices
