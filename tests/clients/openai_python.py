"""The official `openai` package of PyPI against a daemon, as its users write it: python openai_python.py URL."""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id
hello = [{"role": "user", "content": "hello"}]

whole = client.chat.completions.create(model=model, messages=hello, max_tokens=8, seed=1, logprobs=True, top_logprobs=3)
choice = whole.choices[0]
assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length"), whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
told = choice.logprobs.content
assert len(told) >= whole.usage.completion_tokens - 1 and all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in told)

again = client.chat.completions.create(model=model, messages=hello, max_tokens=8, seed=1)
assert again.choices[0].message.content == choice.message.content, "the same seed gave another text"

text, usage = "", None
options = dict(max_tokens=8, seed=1, stream=True, stream_options={"include_usage": True})
for chunk in client.chat.completions.create(model=model, messages=hello, **options):
    text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    usage = chunk.usage or usage
assert text == choice.message.content and usage == whole.usage, (text, usage)

plain = client.completions.create(model=model, prompt="once", max_tokens=4, n=2)
assert [c.index for c in plain.choices] == [0, 1]

schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
answer = client.chat.completions.create(model=model, messages=hello, max_tokens=200, response_format=format)
assert answer.choices[0].message.content.strip().startswith("{"), answer

parameters = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"], "additionalProperties": False}
tools = [{"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": parameters}}]
demand = dict(model=model, messages=hello, tools=tools, tool_choice="required", max_tokens=400)
asked = client.chat.completions.create(**demand).choices[0]
assert asked.finish_reason == "tool_calls" and asked.message.tool_calls[0].function.name == "weather", asked
assert json.loads(asked.message.tool_calls[0].function.arguments) in ({"unit": "C"}, {"unit": "F"}), asked
with client.chat.completions.stream(**demand) as stream:
    for event in stream:
        pass
    streamed = stream.get_final_completion().choices[0]
assert streamed.finish_reason == "tool_calls" and streamed.message.tool_calls[0].function.name == "weather", streamed
result = {"role": "tool", "tool_call_id": asked.message.tool_calls[0].id, "content": "12"}
after = client.chat.completions.create(model=model, messages=hello + [asked.message.model_dump(exclude_none=True), result], tools=tools, max_tokens=4)
assert after.usage.prompt_tokens > whole.usage.prompt_tokens

# The same by the Responses API.
said = client.responses.create(model=model, input="hello", instructions="Be brief.", max_output_tokens=8, temperature=0)
assert said.status in ("completed", "incomplete") and said.usage.total_tokens > said.usage.output_tokens, said
assert said.status == "completed" or said.incomplete_details.reason == "max_output_tokens", said
with client.responses.stream(model=model, input="hello", instructions="Be brief.", max_output_tokens=8, temperature=0) as stream:
    shown = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    same = stream.get_final_response() if said.status == "completed" else None
assert shown == said.output_text and (same is None or same.output_text == shown), (shown, said)
more = client.responses.create(model=model, input="more", previous_response_id=said.id, max_output_tokens=4)
alone = client.responses.create(model=model, input="more", max_output_tokens=4, store=False)
assert more.usage.input_tokens > alone.usage.input_tokens and more.previous_response_id == said.id, (more, alone)
assert client.responses.retrieve(said.id).output_text == said.output_text
flat = [{"type": "function", "name": "weather", "parameters": parameters, "strict": True}]
call = client.responses.create(model=model, input="hello", tools=flat, tool_choice="required", max_output_tokens=400)
called = call.output[-1]
assert called.type == "function_call" and json.loads(called.arguments) in ({"unit": "C"}, {"unit": "F"}), call
with client.responses.stream(model=model, input="hello", tools=flat, tool_choice="required", max_output_tokens=400) as stream:
    pieces = [event for event in stream if event.type == "response.function_call_arguments.delta"]
    streamed = stream.get_final_response().output[-1]
assert "".join(piece.delta for piece in pieces) == streamed.arguments and len(pieces) > 1, (pieces, streamed)
output = [{"type": "function_call_output", "call_id": called.call_id, "output": "12"}]
after = client.responses.create(model=model, input=output, tools=flat, previous_response_id=call.id, max_output_tokens=4)
assert after.usage.input_tokens > call.usage.input_tokens, (after, call)
client.responses.delete(said.id)
for gone in (said.id, alone.id, "gen-none"):
    try:
        client.responses.create(model=model, input="more", previous_response_id=gone, max_output_tokens=4)
    except openai.NotFoundError as e:
        assert e.body["message"], e
    else:
        raise AssertionError(gone)

vectors = client.embeddings.create(model=model, input=["the sea", "the sea", "a window"]).data
assert vectors[0].embedding == vectors[1].embedding != vectors[2].embedding
assert abs(sum(x * x for x in vectors[0].embedding) - 1) < 1e-3
floats = client.embeddings.create(model=model, input="the sea", encoding_format="float").data[0].embedding
assert all(abs(a - b) < 1e-6 for a, b in zip(floats, vectors[0].embedding))

stream = client.chat.completions.create(model=model, messages=hello, max_tokens=1500, stream=True)
next(iter(stream))
stream.close()

for wrong, error in (
    (dict(messages=[]), openai.BadRequestError),
    (dict(messages=hello, temperature=99), openai.BadRequestError),
    (dict(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), openai.BadRequestError),
):
    try:
        client.chat.completions.create(model=model, **wrong)
    except error as e:
        assert e.body["message"], e
    else:
        raise AssertionError(wrong)
assert client.chat.completions.create(model=model, messages=hello, max_tokens=2).choices
print("ok")
