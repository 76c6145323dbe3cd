"""What the health checker learns of an endpoint, over real sockets."""

from tests.integration.router.backend import Backend, answering, backends, router, until, whole

from tierline.router.strategies.base import share

LINE = b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="%d"} 1.0\n'


async def test_the_size_of_an_engine_s_cache_is_learnt_and_again_after_its_restart() -> None:
    backend = Backend(metrics=LINE % 100)
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
    backend, other = Backend(), Backend()
    await backend.start()
    await other.start()
    try:
        async with router(backend, other) as server:
            crashed, steady = server.services.endpoints.all
            await until(lambda: crashed.is_up is True and steady.is_up is True)
            now = server.services.clock()
            assert (share(crashed, now), share(steady, now)) == (1.0, 1.0)
            await backend.kill()
            await until(lambda: crashed.is_up is False)
            await backend.start()
            await until(lambda: crashed.is_up is True)
            now = server.services.clock()
            assert share(crashed, now) < share(steady, now) == 1.0
    finally:
        await backend.kill()
        await other.kill()


async def test_an_endpoint_that_the_router_had_to_wait_for_is_no_crashed_one() -> None:
    backend = Backend()
    await backend.start()
    await backend.kill()
    try:
        async with router(backend) as server:
            endpoint = server.services.endpoints.all[0]
            await until(lambda: endpoint.is_up is False)
            await backend.start()
            await until(lambda: endpoint.is_up is True)
            assert share(endpoint, server.services.clock()) == 1.0
    finally:
        await backend.kill()
