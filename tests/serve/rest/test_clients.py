"""Clients as people have them: the openai package, LangChain and curl, against a service on a real port."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.encode import Encoder
from aiasst.profile import quick_config
from tests.serve.running import Running, running

MESSAGES = [{"role": "system", "content": "Tell stories."}, {"role": "user", "content": "Of a fox."}]


@pytest.fixture(scope="module")
def service(story: Path, chatty: Path, tooled: Path, bert: Path) -> Iterator[Running]:
    with running(chatty, story, tooled, bert) as made:
        yield made


@pytest.fixture
def client(service: Running) -> openai.OpenAI:
    return service.openai()


def test_models_are_listed_and_told_one_by_one(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["chatty", "story-7m-int8", "tooled", "bert"]
    assert client.models.retrieve("bert").owned_by == "aiasst"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-4")
    assert refused.value.code == "model_not_found"


def test_a_chat_is_answered_and_the_same_in_pieces(client: openai.OpenAI) -> None:
    asked = {"model": "chatty", "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage is not None and whole.usage.completion_tokens == 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_answers_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    asked = {"model": "chatty", "messages": MESSAGES, "temperature": 1, "max_tokens": 8}
    three = client.chat.completions.create(**asked, n=3, seed=7)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert three.usage is not None and three.usage.completion_tokens == 24
    streamed = client.chat.completions.create(**asked, n=3, seed=7, stream=True)
    heard: dict[int, str] = {}
    for chunk in streamed:
        for choice in chunk.choices:
            heard[choice.index] = heard.get(choice.index, "") + (choice.delta.content or "")
    assert sorted(heard) == [0, 1, 2] and len(set(heard.values())) == 3


def test_log_probabilities_of_a_chat(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="chatty", messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    reported = made.choices[0].logprobs
    assert reported is not None and reported.content is not None and len(reported.content) == 4
    for token in reported.content:
        assert token.logprob == max(other.logprob for other in token.top_logprobs) <= 0
        assert len(token.top_logprobs) == 2
        assert bytes(token.bytes or ()).decode() == token.token
    assert "".join(token.token for token in reported.content) == made.choices[0].message.content


def test_an_answer_is_held_to_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["fox", "wolf"]}, "legs": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["animal", "legs"],
        "additionalProperties": False,
    }
    held = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}}
    made = client.chat.completions.create(model="chatty", messages=MESSAGES, response_format=held, max_tokens=60)
    answer = json.loads(made.choices[0].message.content or "")
    assert answer["animal"] in ("fox", "wolf") and answer["legs"] in range(1, 10)
    made = client.chat.completions.create(
        model="chatty", messages=MESSAGES, max_tokens=20, extra_body={"regex": "[0-9]{3}"}
    )
    assert made.choices[0].finish_reason == "stop"
    assert (made.choices[0].message.content or "").isdecimal()


def test_a_call_that_must_be_made_has_arguments_that_fit(client: openai.OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("weather", "time")]
    asked = {"model": "tooled", "messages": MESSAGES, "tools": tools, "max_tokens": 60}
    made = client.chat.completions.create(**asked, tool_choice="required").choices[0]
    assert made.finish_reason == "tool_calls" and made.message.content is None
    (call,) = made.message.tool_calls or []
    assert call.function.name in ("weather", "time")
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    named = {"type": "function", "function": {"name": "time"}}
    chunks = list(client.chat.completions.create(**asked, tool_choice=named, stream=True))
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert [delta.function.name for delta in deltas] == ["time"]
    assert json.loads(deltas[0].function.arguments)["city"] in ("Paris", "Rome")
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    # The conversation goes on with what the function gave.
    back = [*MESSAGES, made.message, {"role": "tool", "tool_call_id": call.id, "content": "12:00"}]
    assert client.chat.completions.create(**asked | {"messages": back, "tool_choice": "none"}).choices[0].message


def test_tools_need_a_template_that_knows_them(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="chatty", messages=MESSAGES, tools=tools)
    assert refused.value.code == "unsupported" and "tools" in refused.value.message
    switched = client.chat.completions.create(
        model="tooled", messages=MESSAGES, max_tokens=1, extra_body={"chat_template_kwargs": {"polite": True}}
    )
    usual = client.chat.completions.create(model="tooled", messages=MESSAGES, max_tokens=1)
    assert switched.usage is not None and usual.usage is not None
    assert switched.usage.prompt_tokens > usual.usage.prompt_tokens


def test_completions_of_texts_and_ids(client: openai.OpenAI, story: Path) -> None:
    from aiasst.tokenizer import Tokenizer

    texts = ["Once upon a time", "There was a fox"]
    ids = [Tokenizer.load(story).encode(text) for text in texts]
    asked = {"model": "story-7m-int8", "temperature": 0, "max_tokens": 6}
    of_texts = client.completions.create(**asked, prompt=texts)
    of_ids = client.completions.create(**asked, prompt=ids)
    assert [choice.text for choice in of_texts.choices] == [choice.text for choice in of_ids.choices]
    assert of_texts.usage is not None and of_texts.usage.prompt_tokens == sum(map(len, ids))
    echoed = client.completions.create(**asked, prompt=texts[0], echo=True)
    assert echoed.choices[0].text == texts[0] + of_texts.choices[0].text
    told = client.completions.create(**asked, prompt=ids[0], logprobs=2).choices[0]
    assert told.logprobs is not None and "".join(told.logprobs.tokens or ()) == told.text
    assert told.logprobs.text_offset is not None and told.logprobs.text_offset[:2] == [0, len(told.logprobs.tokens[0])]
    pieces = client.completions.create(**asked, prompt=texts, stream=True)
    heard = ["", ""]
    for piece in pieces:
        heard[piece.choices[0].index] += piece.choices[0].text
    assert heard == [choice.text for choice in of_texts.choices]
    stopped = client.completions.create(**asked | {"max_tokens": 40}, prompt=texts[0], stop=[" was", "never"])
    assert stopped.choices[0].text == of_texts.choices[0].text.split(" was")[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_embeddings_are_the_encoders_own(client: openai.OpenAI, bert: Path) -> None:
    texts = ["the cat sat", "rain and wind and rain"]
    folder = ModelFolder.open(bert)
    wanted = Encoder(folder, quick_config(folder)).encode(texts)
    plain = client.embeddings.create(model="bert", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="bert", input=texts)  # the client asks for base64
    for index in (0, 1):
        assert np.allclose(plain.data[index].embedding, wanted[index], atol=1e-6)
        assert np.allclose(packed.data[index].embedding, wanted[index], atol=1e-6)
    assert client.embeddings.create(model="bert", input=[10, 11, 12]).usage.total_tokens > 0
    assert len(client.embeddings.create(model="bert", input=[[10, 11], [12]]).data) == 2
    size = wanted.shape[1]
    assert client.embeddings.create(model="bert", input="cat", dimensions=size).data
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="bert", input="cat", dimensions=size // 2)
    with pytest.raises(openai.APIStatusError, match="this model reads") as refused:
        client.embeddings.create(model="bert", input=["cat", "cat " * 400])
    assert refused.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="makes no vectors"):
        client.embeddings.create(model="chatty", input="cat")


def test_responses_whole_streamed_and_gone_on_with(client: openai.OpenAI) -> None:
    asked = {"model": "chatty", "temperature": 0, "max_output_tokens": 8}
    first = client.responses.create(**asked, input="Of a fox.", instructions="Tell stories.")
    assert first.status == "incomplete" and first.incomplete_details is not None
    assert first.usage is not None and first.usage.output_tokens == 8
    events = list(client.responses.create(**asked, input="Of a fox.", instructions="Tell stories.", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == first.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    onward = client.responses.create(**asked, input="And then?", previous_response_id=first.id)
    spelled = client.responses.create(
        **asked,
        input=[
            {"role": "user", "content": "Of a fox."},
            {"role": "assistant", "content": [{"type": "output_text", "text": first.output_text}]},
            {"role": "user", "content": [{"type": "input_text", "text": "And then?"}]},
        ],
    )
    assert onward.output_text == spelled.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match="no response"):
        client.responses.create(**asked, input="And then?", previous_response_id=first.id)
    unkept = client.responses.create(**asked, input="Of a fox.", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_what_is_not_supported_is_refused_and_what_changes_nothing_is_not(service: Running) -> None:
    asked = {"model": "chatty", "messages": MESSAGES, "max_tokens": 1}
    harmless = {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "modalities": ["text"], "store": True}
    assert service.post("/v1/chat/completions", **asked, **harmless).status_code == 200
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    for changed, where in (
        ({"max_token": 3}, "max_token"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"messages": picture}, "messages.0.content.0"),
        ({"messages": []}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"fox": 1}}, "logit_bias"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ):
        refused = service.post("/v1/chat/completions", **asked | changed)
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, where), error
        assert error["type"] == "invalid_request_error" and error["message"]
    suffix = service.post("/v1/completions", model="story-7m-int8", prompt="a", suffix="b")
    assert (suffix.status_code, suffix.json()["error"]["param"]) == (400, "suffix")
    outside = service.post("/v1/completions", model="story-7m-int8", prompt=[2**20])
    assert outside.status_code == 400 and "vocabulary" in outside.json()["error"]["message"]


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(service: Running) -> None:
    for words, number in ((1100, "1100 tokens"), (200_000, "more than ")):
        for stream in (False, True):
            refused = service.post("/v1/completions", model="story-7m-int8", prompt=" the" * words, stream=stream)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (413, "context_length_exceeded")
            assert number in error["message"] and "1024" in error["message"]


def test_langchain_asks_the_same_way(service: Running, bert: Path) -> None:
    model = ChatOpenAI(
        base_url=f"{service.url}/v1", api_key="none", model="chatty", temperature=0, max_tokens=6, max_retries=0
    )
    answer = model.invoke([HumanMessage("Of a fox.")])
    assert "".join(str(chunk.content) for chunk in model.stream([HumanMessage("Of a fox.")])) == answer.content
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] == 6
    embeddings = OpenAIEmbeddings(
        base_url=f"{service.url}/v1", api_key="none", model="bert", check_embedding_ctx_length=False
    )
    assert len(embeddings.embed_documents(["a cat", "a dog"])) == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_reads_a_stream(service: Running) -> None:
    body = json.dumps({"model": "story-7m-int8", "prompt": "Once", "max_tokens": 3, "stream": True})
    run = subprocess.run(
        ["curl", "-sNi", f"{service.url}/v1/completions", "-H", "Content-Type: application/json", "-d", body],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    head, _, events = run.stdout.partition("\n\n")
    assert "200" in head.splitlines()[0] and "text/event-stream" in head.lower()
    lines = [line for line in events.splitlines() if line]
    assert len(lines) == 4 and all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
