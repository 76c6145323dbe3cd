"""One request through a router, an engine and a node store: one trace over all programs, one id in all logs."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import openai
from tests.integration.node.processes import NodeProcess, wait_until
from tests.integration.stack.conftest import Tierline, is_answering

from tierline.tracing.reading import TraceTree, read_traces

MODEL = "simulated-model"
PROMPT = list(range(600))


def drawn(tree: TraceTree) -> list[object]:
    return [f"{tree.span.service} {tree.span.name}", *map(drawn, tree.children)]


async def test_a_request_is_one_trace_and_one_id_over_all_programs(
    tierline: Callable[..., Tierline],
    simulated_engine: Callable[..., str],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    files = [tmp_path / f"{name}.jsonl" for name in ("router", "node")]
    node = NodeProcess(tmp_path, traces_file=files[1], log_level="debug", log_format="json")
    engine = simulated_engine("--prefill-rate", "1000000", "--decode-rate", "1000", "--store", node.url)
    port, proxy_port, proxy_page = free_port(), free_port(), free_port()
    addresses = ["--port", str(proxy_port), "--metrics-port", str(proxy_page), "--upstream", engine]
    proxy = tierline("proxy", *addresses, "--log-level", "debug", "--log-format", "json")
    proxy.wait_for(lambda: is_answering(f"http://127.0.0.1:{proxy_port}/health"))
    endpoint = f"http://127.0.0.1:{proxy_port}"
    arguments = ["--traces-file", str(files[0]), "--log-level", "debug", "--log-format", "json"]
    router = tierline("router", "--port", str(port), "--endpoint", endpoint, *arguments)
    router.wait_for(lambda: is_answering(f"http://127.0.0.1:{port}/health"))
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        ask = client.completions.with_raw_response.create
        answer = await ask(model=MODEL, prompt=PROMPT, max_tokens=2)
        named = await ask(model=MODEL, prompt=PROMPT[::-1], max_tokens=2, extra_headers={"x-request-id": "of a client"})

    def spans() -> int:
        return sum(len(trace.spans) for trace in read_traces(files).traces) if all(map(Path.exists, files)) else 0

    def are_in(log: str) -> bool:
        whole = [line for line in log.splitlines(keepends=True) if line.endswith("\n")]
        lines = [json.loads(line) for line in whole if line.startswith("{")]
        return {answer.headers["x-request-id"], "of a client"} <= {line.get("request_id") for line in lines}

    try:
        await asyncio.to_thread(wait_until, lambda: spans() >= 8)
        cold, _ = read_traces(files).traces
        (root,) = cold.roots()
        router_s = ["tierline-router POST /v1/completions", ["tierline-router POST"]]
        router_s[1] += [["tierline-node prefix lease"], ["tierline-node commit"]]  # type: ignore[operator]
        assert drawn(root) == router_s
        request_id = answer.headers["x-request-id"]
        assert (cold.request_id, request_id.partition("-")[0]) == (request_id, cold.trace_id)
        assert named.headers["x-request-id"] == "of a client"
        # Who has answered writes his line of it a moment later.
        await asyncio.to_thread(wait_until, lambda: all(are_in(log) for log in (router.output, proxy.output, node.log)))
    finally:
        node.close()
