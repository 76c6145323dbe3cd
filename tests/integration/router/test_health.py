"""What the health checker learns of an endpoint, over real sockets."""

from structlog.testing import capture_logs
from tests.integration.router.backend import (
    Backend,
    answering,
    backends,
    chat,
    client,
    router,
    until,
    until_models_are_known,
    whole,
)
from tests.ports import free_port

from tierline.router.endpoints import FAILURES_BEFORE_EJECTION
from tierline.router.strategies.base import share

LINE = b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="%d"} 1.0\n'


async def test_the_size_of_an_engine_s_cache_is_learnt_and_again_after_its_restart() -> None:
    backend = Backend(metrics=LINE % 100, port=free_port())
    await backend.start()
    try:
        async with router(backend) as server:
            endpoint = server.services.endpoints.all[0]
            await until(lambda: (endpoint.capacity_blocks, endpoint.block_tokens) == (100, 16))
            await backend.kill()
            await until(lambda: endpoint.is_up is False)
            backend.metrics = LINE % 200
            await backend.start()
            await until(lambda: endpoint.capacity_blocks == 200)
    finally:
        await backend.kill()


async def test_an_endpoint_that_says_nothing_of_its_cache_is_up_all_the_same() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server:
        endpoint = server.services.endpoints.all[0]
        await until(lambda: endpoint.is_up is True)
        assert endpoint.capacity_blocks is None


async def test_an_endpoint_that_is_back_after_a_crash_begins_with_a_part_of_its_weight() -> None:
    backend, other = Backend(port=free_port()), Backend()
    await backend.start()
    await other.start()
    try:
        async with router(backend, other) as server:
            crashed, steady = server.services.endpoints.all
            await until(lambda: crashed.is_up is True and steady.is_up is True)
            now = server.services.clock()
            assert (share(crashed, now), share(steady, now)) == (1.0, 1.0)
            await backend.kill()
            await until(lambda: crashed.is_gone)  # a check that was under way says only that it is down
            await backend.start()
            await until(lambda: crashed.is_up is True)
            now = server.services.clock()
            assert share(crashed, now) < share(steady, now) == 1.0
    finally:
        await backend.kill()
        await other.kill()


async def test_an_endpoint_that_the_router_had_to_wait_for_is_no_crashed_one() -> None:
    backend = Backend(port=free_port())
    try:
        async with router(backend) as server:
            endpoint = server.services.endpoints.all[0]
            await until(lambda: endpoint.is_up is False)
            await backend.start()
            await until(lambda: endpoint.is_up is True)
            assert share(endpoint, server.services.clock()) == 1.0
    finally:
        await backend.kill()


async def test_what_a_request_meets_is_logged_under_its_id() -> None:
    async with (
        backends(answering(whole(status=503)), answering(whole())) as (ill, gone),
        router(ill, retries=0, health_interval_s=60) as to_ill,
        router(gone, retries=0, health_interval_s=60) as to_gone,
    ):
        await until_models_are_known(to_ill)
        await until_models_are_known(to_gone)
        await gone.kill()
        with capture_logs() as events:
            async with client(to_ill) as peer:
                for number in range(1, FAILURES_BEFORE_EJECTION + 1):
                    await peer.ask(chat(), fields=f"x-request-id: ill {number}\r\n")
            async with client(to_gone) as peer:
                await peer.ask(chat(), fields="x-request-id: gone\r\n")
    assert [(event["event"], event["request_id"]) for event in events if event["log_level"] == "warning"] == [
        ("endpoint fails to answer and is passed over for a while", f"ill {FAILURES_BEFORE_EJECTION}"),
        ("endpoint cannot be reached", "gone"),
    ]
