"""Answers that keep to a grammar, alone and together, whatever a random model would rather say."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from samkv_rag import GenerationResult, Grammar, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from support import tiny

pytest.importorskip("llguidance")

PROMPT = tiny.rag_prompt([tiny.text(1)])
NUM_SCHEMAS = 200


class Schemas:
    """Random schemas of the kinds that the JSON Schema test suite tests, bounded so that every answer ends."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.defs: dict[str, Any] = {}

    def schema(self, depth: int = 3) -> dict[str, Any]:
        simple = [
            self.string,
            self.pattern,
            self.format,
            self.integer,
            self.number,
            self.constant,
            self.enum,
            self.plain,
        ]
        nested = [
            self.object,
            self.object,
            self.array,
            self.tuple,
            self.any_of,
            self.one_of,
            self.all_of,
            self.reference,
        ]
        return self._random.choice(simple if depth == 0 else simple + 2 * nested)(depth)

    def string(self, _: int) -> dict[str, Any]:
        low = self._random.randint(0, 4)
        return {"type": "string", "minLength": low, "maxLength": low + self._random.randint(0, 6)}

    def pattern(self, _: int) -> dict[str, Any]:
        patterns = [r"^[a-z]{2,5}-\d{3}$", r"^(left|right)$", r"^\d{4}/[A-Z]$", r"^é{1,3}$"]
        return {"type": "string", "pattern": self._random.choice(patterns)}

    def format(self, _: int) -> dict[str, Any]:
        return {"type": "string", "format": self._random.choice(["date", "uuid", "ipv4", "email"])}

    def integer(self, _: int) -> dict[str, Any]:
        low = self._random.randint(-200, 200)
        return {"type": "integer", "minimum": low, "maximum": low + self._random.randint(0, 5000)}

    def number(self, _: int) -> dict[str, Any]:
        low = self._random.randint(-20, 20) / 2
        return {"type": "number", "exclusiveMinimum": low, "maximum": low + 100}

    def constant(self, _: int) -> dict[str, Any]:
        return {"const": self._random.choice([None, False, 3, 'a "b" \n/', [1, {"c": "é"}], {"d": []}])}

    def enum(self, _: int) -> dict[str, Any]:
        return {"enum": self._random.sample([1, "one", None, True, "🦭", [2], {"three": 3}, -0.5], 3)}

    def plain(self, _: int) -> dict[str, Any]:
        return {"type": self._random.choice(["boolean", "null", ["boolean", "null"]])}

    def object(self, depth: int) -> dict[str, Any]:
        names = self._random.sample(
            ["year", "place", "a b", 'qu"ote', "ünï", "$ref", "type"], self._random.randint(1, 4)
        )
        required = [name for name in names if self._random.random() < 0.6]
        properties = {name: self.schema(depth - 1) for name in names}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def array(self, depth: int) -> dict[str, Any]:
        low = self._random.randint(0, 2)
        return {"type": "array", "items": self.schema(depth - 1), "minItems": low, "maxItems": low + 2}

    def tuple(self, depth: int) -> dict[str, Any]:
        items = [self.schema(depth - 1) for _ in range(self._random.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}

    def any_of(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.schema(depth - 1) for _ in range(2)]}

    def one_of(self, depth: int) -> dict[str, Any]:
        return {"oneOf": [self.integer(0), self.string(0), {"type": "boolean"}]}

    def all_of(self, depth: int) -> dict[str, Any]:
        return {"allOf": [{"type": "integer", "minimum": -5}, {"maximum": 70}]}

    def reference(self, _: int) -> dict[str, Any]:
        name = f"node{len(self.defs)}"
        self.defs[name] = {
            "type": "object",
            "properties": {"value": self.schema(0), "next": {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}},
            "required": ["value", "next"],
            "additionalProperties": False,
        }
        return {"$ref": f"#/$defs/{name}"}


def random_schema(seed: int) -> dict[str, Any]:
    made = Schemas(seed)
    return made.schema() | {"$defs": made.defs}


def together(engine: SamKVEngine, grammars: list[Grammar | None], **options: Any) -> list[GenerationResult]:
    async def ask() -> list[GenerationResult]:
        return await asyncio.gather(*(engine.agenerate(PROMPT, grammar=one, **options) for one in grammars))

    return asyncio.run(ask())


def test_answers_fit_their_schemas(tiny_engine: SamKVEngine) -> None:
    asked = [random_schema(seed) for seed in range(NUM_SCHEMAS)]
    grammars: list[Grammar | None] = [Grammar.json_schema(schema) for schema in asked]
    results = together(tiny_engine, grammars, temperature=1.0, seed=1, max_new_tokens=1500)
    for schema, result in zip(asked, results, strict=True):
        assert result.finish_reason == "stop", (schema, result.text)
        jsonschema.validate(json.loads(result.text), schema, format_checker=jsonschema.FormatChecker())
    kinds = {key for schema in asked for key in schema}
    assert kinds >= {
        "properties",
        "prefixItems",
        "anyOf",
        "oneOf",
        "allOf",
        "enum",
        "const",
        "pattern",
        "$ref",
        "format",
    }
    assert len({result.text for result in results}) > NUM_SCHEMAS // 2


def test_answers_of_every_form_are_the_same_together_and_alone(tiny_engine: SamKVEngine) -> None:
    grammars = [
        Grammar.json_schema({"type": "array", "items": {"enum": ["left", "right"]}, "minItems": 1, "maxItems": 3}),
        None,
        Grammar.regex(r"[a-c]{3}/\d\n?x"),
        Grammar.choices(["the seventh keeper", "the tide", "é"]),
        Grammar('start: "a" ("b" | /c+d/)'),
    ]
    options: dict[str, Any] = {"temperature": 1.0, "seed": 4, "max_new_tokens": 200}
    alone = [tiny_engine.generate(PROMPT, grammar=one, **options) for one in grammars]
    assert [one.token_ids for one in together(tiny_engine, grammars, **options)] == [one.token_ids for one in alone]
    items, free, matched, chosen, lark = (result.text for result in alone)
    assert 1 <= len(json.loads(items)) <= 3 and set(json.loads(items)) <= {"left", "right"}
    assert free == tiny_engine.generate(PROMPT, **options).text
    assert re.fullmatch(r"[a-c]{3}/\d\n?x", matched)
    assert chosen in ("the seventh keeper", "the tide", "é")
    assert re.fullmatch("ab|ac+d", lark)


def test_it_is_kept_to_beside_the_other_words(tiny_engine: SamKVEngine) -> None:
    options: dict[str, Any] = {
        "temperature": 1.5,
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.3,
        "logprobs": True,
    }
    grammar = Grammar.regex(r"(left|right){4}")
    result = tiny_engine.generate(PROMPT, grammar=grammar, n=4, seed=0, max_new_tokens=200, **options)
    answers = [result, *result.others]
    assert all(re.fullmatch(r"(left|right){4}", one.text) and one.finish_reason == "stop" for one in answers)
    assert len({one.text for one in answers}) > 1
    assert all(len(one.logprobs) == len(one.token_ids) for one in answers)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_model_with_more_logits_than_tokens_stays_within_them(family: str) -> None:
    model = tiny.model(family, vocab_size=tiny.VOCAB_SIZE + 64)
    engine = SamKVEngine.from_pretrained(model, tokenizer=tiny.tokenizer())
    result = engine.generate(PROMPT, grammar=Grammar.regex("[ab]{8}"), temperature=1.5, seed=1, max_new_tokens=20)
    assert re.fullmatch("[ab]{8}", result.text)


def test_control_tokens_are_never_chosen(tiny_engine: SamKVEngine) -> None:
    grammar = Grammar.regex(r"(.|\n){40}")
    result = tiny_engine.generate(PROMPT, grammar=grammar, temperature=5.0, seed=1, max_new_tokens=400)
    assert not tiny_engine.tokenizer.has_control(result.token_ids)
    assert len(result.text) == 40


def test_what_is_cut_off_is_a_beginning(tiny_engine: SamKVEngine) -> None:
    whole = tiny_engine.generate(PROMPT, grammar=Grammar.choices(["the seventh keeper of the tide"]))
    cut = tiny_engine.generate(PROMPT, grammar=Grammar.choices(["the seventh keeper of the tide"]), max_new_tokens=2)
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert whole.text.startswith(cut.text) and len(cut.text) < len(whole.text)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar.json_schema({"type": "zebra"}), "cannot be used: .*zebra"),
        (Grammar.json_schema({"not": {"type": "string"}}), 'Unimplemented keys: .*"not"'),
        (Grammar.json_schema({"type": "integer", "minimum": 3, "maximum": 2}), "cannot be used"),
        (Grammar("begin: /a/"), "cannot be used"),
        (Grammar.regex("("), "unclosed group"),
    ],
)
def test_a_grammar_that_is_none_is_refused(tiny_engine: SamKVEngine, grammar: Grammar, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        tiny_engine.generate(PROMPT, grammar=grammar)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grammar.choices([]), "at least one"),
        (lambda: Grammar.choices("left"), "at least one"),
        (lambda: Grammar.choices(["a", ""]), "not empty"),
        (lambda: Grammar.json_schema({"const": object()}), "it must be a mapping of JSON"),
        (lambda: Grammar.json_schema([1]), "it must be a mapping of JSON"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_grammar_is_refused(make: Callable[[], Grammar], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_too_much_work_fails_one_answer_and_no_other(tiny_engine: SamKVEngine) -> None:
    from samkv_rag.runtime import guiding

    class Failing(guiding.Matcher):
        def copy(self) -> guiding.Matcher:
            return Failing(self._matcher.deep_copy())

        def consume(self, token_id: int) -> None:
            super().consume(token_id)
            raise ConfigurationError("the grammar cannot be used: too much work")

    matcher, other = Grammar.regex("a{9}"), Grammar.regex("b{9}")
    make = tiny_engine._guide.matcher
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tiny_engine._guide, "matcher", lambda one: Failing(make(one)._matcher) if one == matcher else make(one)
        )
        results = asyncio.run(_both(tiny_engine, matcher, other))
    assert isinstance(results[0], ConfigurationError)
    assert isinstance(results[1], GenerationResult) and results[1].text == "b" * 9


async def _both(engine: SamKVEngine, *grammars: Grammar) -> list[GenerationResult | BaseException]:
    asked = (engine.agenerate(PROMPT, grammar=one) for one in grammars)
    return await asyncio.gather(*asked, return_exceptions=True)


def test_what_to_install_is_said(tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'samkv-rag\[guided\]'"):
        tiny_engine.generate(PROMPT, grammar=Grammar.choices(["a"]))


def test_objects_get_no_properties_that_the_schema_does_not_name(tiny_engine: SamKVEngine) -> None:
    """Or a model that may invent some finds no end."""
    flag: dict[str, Any] = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    schema = flag | {
        "properties": flag["properties"] | {"inner": {"anyOf": [flag]}, "list": {"items": flag, "type": "array"}}
    }
    for seed in range(10):
        result = tiny_engine.generate(
            PROMPT, grammar=Grammar.json_schema(schema), temperature=1.0, seed=seed, max_new_tokens=500
        )
        value = json.loads(result.text)
        assert value.keys() <= {"on", "inner", "list"}
        assert all(one.keys() == {"on"} for one in [value.get("inner", {"on": 1}), *value.get("list", ())])


A: dict[str, Any] = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a", "b"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [A, {"properties": {"b": {"const": 2}}}]},
        A | {"additionalProperties": {"const": 2}},
        A | {"patternProperties": {"^b$": {"const": 2}}},
        A,
    ],
    ids=["allOf", "additionalProperties", "patternProperties", "required"],
)
def test_where_it_speaks_of_others_they_stay(tiny_engine: SamKVEngine, schema: dict[str, Any]) -> None:
    matcher = tiny_engine._guide.matcher(Grammar.json_schema(schema))
    for token_id in tiny_engine.tokenize('{"a": 1, "b": 2}'):
        matcher.consume(token_id)
    assert matcher._matcher.is_accepting()
