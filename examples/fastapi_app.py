"""A FastAPI application: multidb opens and closes with it. Run it with `uvicorn examples.fastapi_app:app`."""

from typing import Any

from fastapi import FastAPI, HTTPException

import multidb
from multidb import ConflictError, InvalidArgumentError, logs, profiles, state

app = FastAPI(title="Members", lifespan=multidb.lifespan)


@app.put("/members/{username}")
async def put_member(
    username: str, data: dict[str, Any], expected_version: int | None = None
) -> dict[str, Any]:
    """Create or update a member. A version that somebody else changed meanwhile is a 409."""
    try:
        return await profiles.create_or_update_profile(username, data, expected_version=expected_version)
    except ConflictError:
        raise HTTPException(409, "changed meanwhile; read it again") from None
    except InvalidArgumentError as exc:
        raise HTTPException(422, str(exc)) from None


@app.get("/members/{username}")
async def get_member(username: str) -> dict[str, Any]:
    """Return a member."""
    profile = await profiles.get_profile_by_username(username)
    if profile is None:
        raise HTTPException(404)
    return profile


@app.post("/members/{username}/messages")
async def post_message(username: str, text: str) -> dict[str, int]:
    """Record a message; at most five a minute."""
    sent = await state.increment_counter(username, "messages", expire_seconds=60)
    if sent > 5:
        raise HTTPException(429, "five messages a minute")
    await logs.log_message(username, text)
    return {"sent_this_minute": sent}
