"""A hub that speaks Hugging Face's API as far as a model's files are fetched by it, and fails where a test says so."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web

COMMIT = "a" * 40


@dataclass
class FakeHub:
    """Files of one model, and what went wrong with them."""

    files: dict[str, bytes]
    lfs: set[str] = field(default_factory=set)
    token: str = ""
    """Asked for, where it is set."""
    lies: dict[str, bytes] = field(default_factory=dict)
    """Sent in place of a file's bytes, once for each entry."""
    cuts: list[int] = field(default_factory=list)
    """The connection of the next request for bytes is cut after so many."""
    statuses: list[int] = field(default_factory=list)
    """Answers to the next requests for bytes."""
    described: dict[str, bytes] | None = None
    """What is said to be there, where that is not what is sent."""
    gate: asyncio.Event | None = None
    """What all requests for bytes but the first wait for."""
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    """What was asked for: name, begin, end."""
    commit: str = COMMIT
    """That every revision is."""
    asked: int = 0
    """Requests for what there is."""
    url: str = ""

    def describe(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        siblings = []
        for name, content in (self.described or self.files).items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content)}
            blob = b"blob %d\0%b" % (len(content), content)
            entry["blobId"] = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
            if name in self.lfs:
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            siblings.append(entry)
        return web.json_response({"sha": self.commit, "siblings": siblings})

    async def send(self, request: web.Request) -> web.StreamResponse:
        assert request.match_info["commit"] == self.commit
        name = request.match_info["name"]
        if self.gate is not None and self.ranges:
            await self.gate.wait()
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        content = self.lies.pop(name, self.files[name])
        span = request.http_range
        assert span.start is not None
        stop = min(span.stop or len(content), len(content))
        self.ranges.append((name, span.start, stop))
        answer = web.StreamResponse(status=206)
        answer.headers["content-range"] = f"bytes {span.start}-{stop - 1}/{len(content)}"
        answer.content_length = stop - span.start
        await answer.prepare(request)
        if self.cuts:
            await answer.write(content[span.start : span.start + self.cuts.pop(0)])
            assert request.transport is not None
            request.transport.abort()
            return answer
        await answer.write(content[span.start : stop])
        return answer


@contextlib.asynccontextmanager
async def hub(files: dict[str, bytes], **options: object) -> AsyncIterator[FakeHub]:
    fake = FakeHub(files, **options)  # type: ignore[arg-type]

    async def describe(request: web.Request) -> web.Response:
        return fake.describe(request)

    app = web.Application()
    app.router.add_get("/api/models/org/model/revision/{revision}", describe)
    app.router.add_get("/org/model/resolve/{commit}/{name:.+}", fake.send)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()
