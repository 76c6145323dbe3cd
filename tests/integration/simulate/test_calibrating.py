"""Calibrating against an engine whose times are known, and simulating with what was found."""

from pathlib import Path

import pytest
from aiohttp import web
from tests import virtual_http
from tests.ports import free_port
from tests.unit.node import virtual_time

from tierline.bench import chat
from tierline.errors import EngineError, TierlineError
from tierline.simulate.calibrating import Described, Design, calibrate
from tierline.simulate.coefficients import Coefficients, read, write
from tierline.simulate.fitting import Decode, Prefill
from tierline.simulate.loads import generate_questions
from tierline.simulate.results import figures
from tierline.simulate.running import Cluster, Load, simulate
from tierline.stack.simulated_engine import SimulatedEngineConfig, make_app

PREFILL_RATE, DECODE_RATE = 4000.0, 40.0
DESCRIBED = Described(
    model="simulated-model",
    hardware="none",
    engine="simulated",
    kv_bytes_per_token=1024,
    kv_tokens=65536,
    step_tokens=2048,
    sequences=64,
)
DESIGN = Design(most_tokens=2048, answer_tokens=12, concurrency=4, repeats=3)


async def measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Coefficients:
    settings = SimulatedEngineConfig(prefill_rate=PREFILL_RATE, decode_rate=DECODE_RATE)
    async with virtual_http.serving(make_app(settings), folder, monkeypatch) as url:
        return await calibrate(url, DESCRIBED, DESIGN, lambda _: None)


def test_the_coefficients_of_an_engine_with_known_times_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    virtual_http.tell_time(monkeypatch, chat)
    made = virtual_time.run(measured(tmp_path, monkeypatch))
    prefill, decode = Prefill(**dict(made.prefill)), Decode(**dict(made.decode))
    for tokens in (1024, 2048):
        assert prefill.seconds(tokens, 0) == pytest.approx(tokens / PREFILL_RATE, rel=0.02)
    assert prefill.seconds(512, 1024) < 0.5 * prefill.seconds(1536, 0)
    assert decode.seconds(1, 100) == pytest.approx(1 / DECODE_RATE, rel=0.02)
    assert decode.seconds(4, 4000) == pytest.approx(1 / DECODE_RATE, rel=0.02)
    assert len(made.observations.prefill) == 2 * len(DESIGN.prompts)
    assert max(cached for _, cached, _ in made.observations.prefill) >= 1900

    write(made, tmp_path / "made.yaml")
    trace = generate_questions(1, 4, 2, prompt_tokens=2048, output_tokens=11, per_s=0.1)
    said = figures(simulate(Cluster(read(str(tmp_path / "made.yaml"))), Load(trace)))
    assert said["p99_ttft_ms"] == pytest.approx(1000 * 2048 / PREFILL_RATE, rel=0.05)
    assert said["median_itl_ms"] == pytest.approx(1000 / DECODE_RATE, rel=0.02)


async def test_an_endpoint_that_is_not_there_is_an_error_of_one_line() -> None:
    with pytest.raises(EngineError, match=r"^http://127\.0\.0\.1:\d+: Cannot connect"):
        await calibrate(f"http://127.0.0.1:{free_port()}", DESCRIBED, DESIGN, lambda _: None)


async def test_an_endpoint_that_refuses_is_an_error_that_says_what_it_said() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=404, text="no such model")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        with pytest.raises(TierlineError, match="answered 404: no such model"):
            await calibrate(f"http://127.0.0.1:{port}", DESCRIBED, DESIGN, lambda _: None)
    finally:
        await runner.cleanup()
