"""The official `anthropic` package of PyPI against a daemon, as its users write it: python anthropic_python.py URL."""

import json
import sys
import urllib.request

import anthropic

url = sys.argv[1]
client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
hello = [{"role": "user", "content": "hello"}]
ask = dict(model="any", messages=hello, max_tokens=8, extra_body={"temperature": 0})

whole = client.messages.create(**ask)
assert whole.type == "message" and whole.role == "assistant" and whole.stop_reason in ("end_turn", "max_tokens"), whole
assert whole.stop_reason != "max_tokens" or whole.usage.output_tokens == 8, whole
text = "".join(block.text for block in whole.content)
assert client.messages.count_tokens(model="any", messages=hello).input_tokens == whole.usage.input_tokens
told = [client.messages.count_tokens(model="any", messages=hello, system=text).input_tokens for text in ("Brief.", "Brief, in verse.")]
assert told[0] < told[1], told

with client.messages.stream(**ask) as stream:
    assert "".join(stream.text_stream) == text
    final = stream.get_final_message()
assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens), final
assert final.usage.input_tokens == whole.usage.input_tokens and final.id != whole.id, final

schema = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"], "additionalProperties": False}
tools = [{"name": "weather", "description": "The weather", "input_schema": schema}]
demand = dict(model="any", messages=hello, tools=tools, tool_choice={"type": "any"}, max_tokens=400)
asked = client.messages.create(**demand)
call = asked.content[-1]
assert asked.stop_reason == "tool_use" and call.type == "tool_use" and call.name == "weather", asked
assert call.input in ({"unit": "C"}, {"unit": "F"}), asked
with client.messages.stream(**demand) as stream:
    kinds = [event.type for event in stream]
    streamed = stream.get_final_message()
assert "input_json" in kinds and streamed.stop_reason == "tool_use", (kinds, streamed)
assert streamed.content[-1].input in ({"unit": "C"}, {"unit": "F"}), streamed
results = [{"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "12"}]}]
talk = hello + [{"role": "assistant", "content": asked.content}, {"role": "user", "content": results}]
after = client.messages.create(model="any", messages=talk, tools=tools, max_tokens=4)
assert after.usage.input_tokens > asked.usage.input_tokens, after

# Each answer of one token; then its text ends another.
letters = client.messages.create(**{**ask, "max_tokens": 1}).content
if letters and letters[0].text.isascii():
    stopped = client.messages.create(**ask, stop_sequences=["not this", letters[0].text])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", letters[0].text), stopped

# The id is one that feedback knows.
body = json.dumps({"generation_id": whole.id, "thumbs": "up"}).encode()
request = urllib.request.Request(url + "/v1/feedback", body, {"content-type": "application/json", "x-api-key": "none"})
assert json.load(urllib.request.urlopen(request))["feedback_id"]

image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
for wrong in (dict(messages=[]), dict(messages=hello, extra_body={"temperature": 99}), dict(messages=[{"role": "user", "content": [image]}])):
    try:
        client.messages.create(model="any", max_tokens=4, **wrong)
    except anthropic.BadRequestError as e:
        assert e.body["type"] == "error" and e.body["error"]["message"], e.body
    else:
        raise AssertionError(wrong)
print("ok")
