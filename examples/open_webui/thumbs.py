"""
title: apad: thumbs
description: Sends the thumbs under apad's answers, and what is written with them, to apad's /v1/feedback. Goes with "apad: which answer is which".
version: 1.0
license: MIT OR Apache-2.0
"""

# An Event function of Open WebUI (Admin Panel, Functions, +; then switch it on). Its settings (the gear) say where apad is and with
# which key. Checked against open-webui 0.12.4, which has Event functions.

import asyncio
import json
import logging
import sqlite3
import urllib.error
import urllib.request

from open_webui.env import DATA_DIR
from open_webui.models.feedbacks import Feedbacks
from pydantic import BaseModel, Field

# Shared with answers.py.
FILE = "apad-feedback.sqlite3"
# Longest comment that apad takes, in characters.
COMMENT = 4000

log = logging.getLogger(__name__)


class Event:
    class Valves(BaseModel):
        url: str = Field(default="http://127.0.0.1:8372", description="Where apad is")
        key: str = Field(default="", description="A key of apad's, where it asks for one")
        users: bool = Field(default=True, description="Tell apad whose thumb it is, by Open WebUI's id of the user")

    def __init__(self):
        self.valves = self.Valves()
        # One after the other: a comment follows the thumb that it is about.
        self.turn = asyncio.Lock()

    async def event(self, event: dict):
        if event.get("event") not in ("feedback.created", "feedback.updated"):
            return
        async with self.turn:
            feedback = await Feedbacks.get_feedback_by_id((event.get("subject") or {}).get("id") or "")
            if feedback and feedback.type == "rating":
                await asyncio.to_thread(self.pass_on, feedback)

    def pass_on(self, feedback):
        data, meta = feedback.data or {}, feedback.meta or {}
        generation = answer_of(meta.get("message_id") or "")
        if not generation:
            return log.info("a thumb is about an answer that is not apad's, or was not streamed")
        thumbs = {"1": "up", "-1": "down"}.get(str(data.get("rating")))
        comment = " - ".join(str(said) for said in (data.get("reason"), data.get("comment")) if said)[:COMMENT]
        before = sent(feedback.id)
        body = {"generation_id": generation}
        # Open WebUI tells the same thumb again with each word that is added to it.
        if thumbs and thumbs != before.get("thumbs"):
            body["thumbs"] = thumbs
        if comment and comment != before.get("comment"):
            body["comment"] = comment
        if len(body) == 1:
            return
        if self.valves.users:
            body["user"] = feedback.user_id
        if self.post(body):
            sent(feedback.id, {"thumbs": thumbs, "comment": comment})

    def post(self, body: dict) -> bool:
        headers = {"content-type": "application/json"}
        if self.valves.key:
            headers["authorization"] = f"Bearer {self.valves.key}"
        request = urllib.request.Request(f"{self.valves.url.rstrip('/')}/v1/feedback", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                json.load(answer)
                return True
        except urllib.error.HTTPError as error:
            log.error("apad refused a thumb: %s", error.read()[:500].decode(errors="replace"))
        except (OSError, ValueError) as error:
            log.error("a thumb did not reach apad: %s", error)
        return False


def answer_of(message: str) -> str | None:
    with sqlite3.connect(f"{DATA_DIR}/{FILE}", timeout=5) as db:
        db.execute("CREATE TABLE IF NOT EXISTS answers (message TEXT PRIMARY KEY, generation TEXT NOT NULL, noted REAL NOT NULL)")
        row = db.execute("SELECT generation FROM answers WHERE message = ?", (message,)).fetchone()
    db.close()
    return row[0] if row else None


def sent(feedback: str, now: dict | None = None) -> dict:
    """What was sent of a thumb; with `now`, notes it."""
    with sqlite3.connect(f"{DATA_DIR}/{FILE}", timeout=5) as db:
        db.execute("CREATE TABLE IF NOT EXISTS sent (feedback TEXT PRIMARY KEY, said TEXT NOT NULL)")
        if now is not None:
            db.execute("INSERT OR REPLACE INTO sent VALUES (?, ?)", (feedback, json.dumps(now)))
            db.execute("DELETE FROM sent WHERE rowid <= (SELECT rowid FROM sent ORDER BY rowid DESC LIMIT 1 OFFSET 100000)")
        row = db.execute("SELECT said FROM sent WHERE feedback = ?", (feedback,)).fetchone()
    db.close()
    return json.loads(row[0]) if row else {}
