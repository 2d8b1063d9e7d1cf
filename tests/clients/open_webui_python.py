"""The functions of examples/open_webui against a daemon: open_webui_python.py URL EXAMPLES FOLDER. Where the `open_webui` package is
installed its own loader and table are used, else stand-ins with what they say in 0.12.4. Prints which, and ok."""

import asyncio
import json
import os
import sys
import types
import urllib.request

url, examples, folder = sys.argv[1:]
os.environ.update(DATA_DIR=folder, WEBUI_SECRET_KEY="for the test alone")

try:
    from open_webui.models.feedbacks import FeedbackForm, Feedbacks
    from open_webui.utils.plugin import load_function_module_by_id

    real = True
except ImportError:
    real = False

    class Feedbacks:
        rows = {}

        @classmethod
        async def get_feedback_by_id(cls, id):
            return cls.rows.get(id)

    def module(name, **members):
        made = sys.modules[name] = types.ModuleType(name)
        made.__dict__.update(members)

    module("open_webui")
    module("open_webui.models")
    module("open_webui.env", DATA_DIR=folder)
    module("open_webui.models.feedbacks", Feedbacks=Feedbacks)


async def function(name):
    source = open(os.path.join(examples, name)).read()
    if real:
        made, kind, about, _ = await load_function_module_by_id(name.removesuffix(".py"), source)
        assert about["title"], about
        return made, kind
    made = types.ModuleType(name)
    exec(source, made.__dict__)
    return (made.Filter(), "filter") if hasattr(made, "Filter") else (made.Event(), "event")


async def rated(id, data, message):
    """Keeps a rating as Open WebUI does; its id."""
    meta = {"chat_id": "chat", "message_id": message}
    if real:
        if id:
            return (await Feedbacks.update_feedback_by_id(id, FeedbackForm(type="rating", data=data, meta=meta))).id
        return (await Feedbacks.insert_new_feedback("ann", FeedbackForm(type="rating", data=data, meta=meta))).id
    id = id or f"f{len(Feedbacks.rows)}"
    Feedbacks.rows[id] = types.SimpleNamespace(id=id, user_id="ann", type="rating", data=data, meta=meta)
    return id


def get(path):
    return json.load(urllib.request.urlopen(url + path))


async def main():
    if real:
        from open_webui.internal.db import Base, async_engine

        async with async_engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
    (answers, filter), (thumbs, event) = await function("answers.py"), await function("thumbs.py")
    assert (filter, event) == ("filter", "event"), (filter, event)
    thumbs.valves = thumbs.Valves(url=url)

    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode())
    generation = None
    for line in urllib.request.urlopen(request):
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            assert await answers.stream(event=chunk, __metadata__={"chat_id": "chat", "message_id": "m1"}) == chunk
            generation = chunk["id"]
    await answers.stream(event={"choices": [{"delta": {"content": "of another model"}}]}, __metadata__={"message_id": "m2"})

    def said():
        return [(one["signal"], one["comment"], one["user"]) for one in get("/v1/generations/" + generation)["feedback"]]

    id = await rated(None, {"rating": 1, "model_id": "m"}, "m1")
    await thumbs.event({"event": "feedback.created", "subject": {"id": id, "type": "feedback"}})
    assert len(said()) == 1, said()
    await rated(id, {"rating": 1, "model_id": "m", "reason": "accurate_information", "comment": "just so"}, "m1")
    for _ in range(2):
        await thumbs.event({"event": "feedback.updated", "subject": {"id": id}})
    assert len(said()) == 2 and said()[1][1:] == ("accurate_information - just so", "ann"), said()
    await rated(id, {"rating": -1, "model_id": "m", "comment": "after all not"}, "m1")
    await thumbs.event({"event": "feedback.updated", "subject": {"id": id}})
    assert len(said()) == 3, said()
    # What is not apad's, not there, or not a thumb changes nothing.
    other = await rated(None, {"rating": 1}, "m2")
    for wrong in (
        {"event": "feedback.created", "subject": {"id": other}},
        {"event": "feedback.created", "subject": {"id": "none"}},
        {"event": "feedback.deleted", "subject": {"id": id}},
        {"event": "chat.finished"},
    ):
        await thumbs.event(wrong)
    # A daemon that is away is said, and nothing breaks.
    thumbs.valves = thumbs.Valves(url="http://127.0.0.1:9")
    third = await rated(None, {"rating": 1}, "m1")
    await thumbs.event({"event": "feedback.created", "subject": {"id": third}})
    assert len(said()) == 3, said()


asyncio.run(main())
print("against the open_webui package" if real else "against stand-ins of open_webui")
print("ok")
