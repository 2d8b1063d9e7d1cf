"""
title: apad: which answer is which
description: Notes the id that apad gives each answer, so that thumbs reach the answer that they are about. Goes with "apad: thumbs".
version: 1.0
license: MIT OR Apache-2.0
"""

# A Filter function of Open WebUI (Admin Panel, Functions, +; then switch it on, and Global in its menu). It changes nothing of a
# chat. Checked against open-webui 0.12.4. Answers have to be streamed, as Open WebUI does unless a model's settings say otherwise.

import sqlite3
import time

from open_webui.env import DATA_DIR
from pydantic import BaseModel, Field

# Shared with thumbs.py.
FILE = "apad-feedback.sqlite3"
# Answers that are remembered: the newest.
KEPT = 100_000


class Filter:
    class Valves(BaseModel):
        priority: int = Field(default=0, description="Its place among filters")

    def __init__(self):
        self.valves = self.Valves()
        # The answers that are being streamed, so that each is written once. Bounded.
        self.noted = {}

    async def stream(self, event: dict, __metadata__: dict | None = None) -> dict:
        message = (__metadata__ or {}).get("message_id")
        choices = event.get("choices") or [{}]
        # Only apad's chunks have it, so answers of other models are left alone.
        generation = choices[0].get("generation_id") if isinstance(choices[0], dict) else None
        if message and generation and self.noted.get(message) != generation:
            self.noted[message] = generation
            while len(self.noted) > 1000:
                self.noted.pop(next(iter(self.noted)))
            note(message, generation)
        return event


def note(message: str, generation: str):
    with sqlite3.connect(f"{DATA_DIR}/{FILE}", timeout=5) as db:
        db.execute("CREATE TABLE IF NOT EXISTS answers (message TEXT PRIMARY KEY, generation TEXT NOT NULL, noted REAL NOT NULL)")
        db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (message, generation, time.time()))
        db.execute(
            "DELETE FROM answers WHERE rowid <= (SELECT rowid FROM answers ORDER BY rowid DESC LIMIT 1 OFFSET ?)", (KEPT,)
        )
    db.close()
