"""Answers of a random model that keep to a grammar, alone and in a batch."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from samkv_rag import Grammar, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.runtime.guiding import Matcher
from support import tiny
from support.engines import together

pytest.importorskip("llguidance")

PROMPT = tiny.rag_prompt([tiny.text(1)])
NUM_SCHEMAS = 200

CONSTANTS: list[Any] = [None, False, 3, 'a "b" \n/', [1, {"c": "é"}], {"d": []}]
SIMPLE: list[dict[str, Any]] = [
    {"type": "string", "minLength": 2, "maxLength": 6},
    *({"type": "string", "pattern": one} for one in (r"^[a-z]{2,5}-\d{3}$", r"^(left|right)$", r"^é{1,3}$")),
    *({"type": "string", "format": one} for one in ("date", "uuid", "ipv4", "email")),
    {"type": "integer", "minimum": -150, "maximum": 4000},
    {"type": "number", "exclusiveMinimum": -4.5, "maximum": 95.5},
    *({"const": one} for one in CONSTANTS),
    {"enum": [1, "one", None, True, "🦭", [2], {"three": 3}, -0.5]},
    {"type": ["boolean", "null"]},
    {"oneOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"const": "é"}, {"type": "boolean"}]},
    {"allOf": [{"type": "integer", "minimum": -5}, {"maximum": 70}]},
]
NAMES = ["year", "place", "a b", 'qu"ote', "ünï", "$ref", "type"]


def random_schema(seed: int) -> dict[str, Any]:
    """A schema of the kinds that the JSON Schema test suite tests, bounded so that every answer ends."""
    chooser = random.Random(seed)

    def closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def schema(depth: int) -> dict[str, Any]:
        nested = ["object", "array", "tuple", "anyOf", "$ref"] if depth else []
        kind = chooser.choice(["simple", "simple", *nested])
        few = range(chooser.randint(1, 3))
        if kind == "object":
            names = chooser.sample(NAMES, 1 + len(few))
            return closed({name: schema(depth - 1) for name in names}, chooser.sample(names, len(few)))
        if kind == "array":
            return {"type": "array", "items": schema(depth - 1), "minItems": len(few) - 1, "maxItems": 3}
        if kind == "tuple":
            items = [schema(depth - 1) for _ in few]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        if kind == "anyOf":
            return {"anyOf": [schema(depth - 1), schema(depth - 1)]}
        return {"$ref": "#/$defs/node"} if kind == "$ref" else chooser.choice(SIMPLE)

    following = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
    node = closed({"value": schema(0), "next": following}, ["value", "next"])
    return schema(2) | {"$defs": {"node": node}}


def test_answers_fit_their_schemas(tiny_engine: SamKVEngine) -> None:
    asked = [random_schema(seed) for seed in range(NUM_SCHEMAS)]
    grammars = [{"grammar": Grammar.json_schema(schema)} for schema in asked]
    results = together(tiny_engine, grammars, prompt=PROMPT, temperature=1.0, seed=1, max_new_tokens=1500)
    for schema, result in zip(asked, results, strict=True):
        assert result.finish_reason == "stop", (schema, result.text)
        jsonschema.validate(json.loads(result.text), schema, format_checker=jsonschema.FormatChecker())
    for kind in ("prefixItems", "maxItems", "anyOf", "oneOf", "allOf", "enum", "const", "pattern", "#/$defs", "format"):
        assert kind in str(asked)
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
    batched = together(tiny_engine, [{"grammar": one} for one in grammars], prompt=PROMPT, **options)
    assert [one.token_ids for one in batched] == [one.token_ids for one in alone]
    items, free, matched, chosen, lark = (result.text for result in alone)
    assert 1 <= len(json.loads(items)) <= 3 and set(json.loads(items)) <= {"left", "right"}
    assert free == tiny_engine.generate(PROMPT, **options).text
    assert re.fullmatch(r"[a-c]{3}/\d\n?x", matched)
    assert chosen in ("the seventh keeper", "the tide", "é")
    assert re.fullmatch("ab|ac+d", lark)


def test_grammars_work_with_other_options(tiny_engine: SamKVEngine) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.3}
    grammar = Grammar.regex(r"(left|right){4}")
    result = tiny_engine.generate(PROMPT, grammar=grammar, n=4, seed=0, max_new_tokens=200, logprobs=True, **options)
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


def test_an_answer_that_the_limit_cuts_off_begins_as_the_whole(tiny_engine: SamKVEngine) -> None:
    grammar = Grammar.choices(["the seventh keeper of the tide"])
    whole, cut = (tiny_engine.generate(PROMPT, grammar=grammar, max_new_tokens=n) for n in (256, 2))
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert whole.text.startswith(cut.text) and len(cut.text) < len(whole.text)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grammar.json_schema({"type": "zebra"}), "cannot be used: .*zebra"),
        (lambda: Grammar.json_schema({"not": {"type": "string"}}), 'Unimplemented keys: .*"not"'),
        (lambda: Grammar.json_schema({"type": "integer", "minimum": 3, "maximum": 2}), "cannot be used"),
        (lambda: Grammar("begin: /a/"), "cannot be used"),
        (lambda: Grammar.regex("("), "unclosed group"),
        (lambda: Grammar.choices([]), "at least one"),
        (lambda: Grammar.choices("left"), "at least one"),
        (lambda: Grammar.choices(["a", ""]), "not empty"),
        (lambda: Grammar.json_schema({"const": object()}), "it must be a mapping of JSON"),
        (lambda: Grammar.json_schema([1]), "it must be a mapping of JSON"),  # type: ignore[arg-type]
    ],
)
def test_invalid_grammars_are_refused(tiny_engine: SamKVEngine, make: Callable[[], Grammar], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        tiny_engine.generate(PROMPT, grammar=make())


def test_too_much_work_fails_one_answer_and_no_other(tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise ConfigurationError("too much work")

    monkeypatch.setattr(Matcher, "consume", fail)
    asked = [{"grammar": Grammar.regex("a{9}")}, {"choose": fail}, {}]
    *failed, answered = together(tiny_engine, asked, prompt=PROMPT, max_new_tokens=9)
    assert [str(one) for one in failed] == ["too much work"] * 2
    assert answered.token_ids == tiny_engine.generate(PROMPT, max_new_tokens=9).token_ids


def test_a_missing_package_is_named(tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'samkv-rag\[guided\]'"):
        tiny_engine.generate(PROMPT, grammar=Grammar.choices(["a"]))


def test_objects_get_no_properties_that_the_schema_does_not_name(tiny_engine: SamKVEngine) -> None:
    """A model that may invent properties never ends."""
    flag: dict[str, Any] = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    inner = {"inner": {"anyOf": [flag]}, "list": {"items": flag, "type": "array"}}
    grammar = Grammar.json_schema(flag | {"properties": flag["properties"] | inner})
    options: dict[str, Any] = {"prompt": PROMPT, "grammar": grammar, "temperature": 1.0, "max_new_tokens": 500}
    for result in together(tiny_engine, [{"seed": seed} for seed in range(10)], **options):
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
        A | {"anyOf": [{"properties": {"b": {"const": 2}}}, {"properties": {"c": {"const": 3}}}]},
        A | {"$ref": "#/$defs/B", "$defs": {"B": {"properties": {"b": {"const": 2}}}}},
    ],
    ids=["allOf", "additionalProperties", "patternProperties", "required", "anyOf", "ref"],
)
def test_properties_that_the_schema_mentions_stay_allowed(tiny_engine: SamKVEngine, schema: dict[str, Any]) -> None:
    matcher = tiny_engine._guide.matcher(Grammar.json_schema(schema))
    for token_id in tiny_engine.tokenize('{"a": 1, "b": 2}'):
        matcher.consume(token_id)
    assert matcher._matcher.is_accepting()


def test_choosing_and_a_grammar_exclude_each_other(tiny_engine: SamKVEngine) -> None:
    with pytest.raises(ConfigurationError, match="choose and grammar are both given"):
        tiny_engine.generate(PROMPT, grammar=Grammar.regex("a+"), choose=lambda logits: 5)
