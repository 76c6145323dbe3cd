"""``tierline simulate calibrate``: coefficients from a real endpoint."""

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    base_url: Annotated[str, typer.Option(metavar="URL", help="The engine: one replica, with nothing else to do.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="As requests name it.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="What is written, .yaml or .json.")],
    hardware: Annotated[str, typer.Option(help="What it runs on, in words.")],
    kv_bytes_per_token: Annotated[
        int, typer.Option(min=1, help="2 · layers · KV heads · head size · bytes of a number.")
    ],
    kv_tokens: Annotated[int, typer.Option(min=1024, help="Room of its cache; vLLM logs it when it starts.")],
    engine: Annotated[str, typer.Option(help="Which engine it is, with its version.")] = "vLLM",
    step_tokens: Annotated[int, typer.Option(min=1, help="vLLM's --max-num-batched-tokens.")] = 8192,
    sequences: Annotated[int, typer.Option(min=1, help="vLLM's --max-num-seqs.")] = 256,
    max_input_len: Annotated[int, typer.Option(min=256, help="Tokens of the longest prompt.")] = 4096,
    output_len: Annotated[int, typer.Option(min=8, help="Tokens of answers that are decoded.")] = 64,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Most answers at once.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 3,
) -> None:
    """Measure an engine and write its coefficients.

    Prompts of several lengths and answers, some at once, are asked for by one client; how long they took is fitted, and
    kept in the file beside what was fitted. Nobody else may use the engine meanwhile.

    \b
    Examples:
      tierline simulate calibrate --base-url http://127.0.0.1:8001 --model meta-llama/Llama-3.1-8B-Instruct \\
        --hardware '1 x H100' --kv-bytes-per-token 131072 --kv-tokens 390000 --output mine.yaml
      tierline simulate run --coefficients mine.yaml --replicas 4
    """
    import asyncio

    from tierline.bench.report import require_writable
    from tierline.cli.printing import Output
    from tierline.errors import ConfigurationError
    from tierline.simulate.calibrating import Described, Design
    from tierline.simulate.calibrating import calibrate as measure
    from tierline.simulate.coefficients import check_place, write

    check_place("--output", output)
    require_writable({"--output": output})
    if max_concurrency > sequences:
        raise ConfigurationError("--max-concurrency", max_concurrency, f"at most --sequences, {sequences}")
    printed = Output(is_json=False)
    design = Design(max_input_len, output_len, max_concurrency, repeats)
    described = Described(model, hardware, engine, kv_bytes_per_token, kv_tokens, step_tokens, sequences)
    with printed.progress("measuring") as bar:
        task = bar.add_task("measuring", total=design.measurements)
        made = asyncio.run(
            measure(base_url, described, design, lambda what: bar.update(task, description=what, advance=1))
        )
    write(made, output)
    printed.facts(
        [
            ("written", str(output)),
            (
                "prefill",
                f"{made.prefill.first_s:.4g} s, {1 / made.prefill.token_s:,.0f} tokens/s, "
                f"{made.prefill.attention_s:.3g} s a token attended to",
            ),
            (
                "decode",
                f"{made.decode.step_s:.4g} s a step, {made.decode.sequence_s:.3g} s a sequence, "
                f"{made.decode.context_s:.3g} s a token of context",
            ),
            ("accuracy", str(made.accuracy)),
        ]
    )
