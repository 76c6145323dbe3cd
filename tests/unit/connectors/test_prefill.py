"""The engine's prefill rate, by its steps."""

import pytest

pytest.importorskip("vllm")

from tierline.connectors.vllm.prefill import LEAST_TOKENS, PrefillMeter


class Engine:
    """Steps of so many seconds, planned one ahead or not."""

    def __init__(self) -> None:
        self.now = 10.0
        self.meter = PrefillMeter(lambda: self.now)

    def step(self, tokens: int, before: int, seconds: float, decoding: int = 0) -> None:
        number = self.meter.planned([(tokens, before)], tokens + decoding)
        self.now += seconds
        self.meter.ended({number} if number else ())


def test_a_token_takes_its_share_of_the_step() -> None:
    engine = Engine()
    engine.step(512, 0, 1.024)
    cost = engine.meter.cost()
    assert cost is not None
    assert cost.seconds(0, 512) == pytest.approx(1.024)


def test_tokens_deep_in_a_prompt_take_longer() -> None:
    engine = Engine()
    for start in range(0, 8192, 512):
        engine.step(512, start, sum(0.001 + 1e-6 * place for place in range(start, start + 512)))
    cost = engine.meter.cost()
    assert cost is not None
    assert cost == pytest.approx((0.001, 1e-6), rel=0.01)


@pytest.mark.parametrize(("tokens", "decoding"), [(LEAST_TOKENS - 1, 0), (128, 64), (0, 200)])
def test_steps_that_mostly_decode_say_nothing_of_prompts(tokens: int, decoding: int) -> None:
    engine = Engine()
    engine.step(tokens, 0, 5.0, decoding)
    assert engine.meter.cost() is None


def test_a_step_planned_while_another_runs_begins_when_that_ends() -> None:
    engine = Engine()
    first = engine.meter.planned([(512, 0)], 512)
    engine.now += 0.1
    second = engine.meter.planned([(512, 0)], 512)
    engine.now += 0.9
    engine.meter.ended({first})
    engine.now += 1.0
    engine.meter.ended({second})
    cost = engine.meter.cost()
    assert cost is not None
    assert cost.seconds(0, 512) == pytest.approx(1.0)


def test_steps_whose_end_is_never_told_are_forgotten() -> None:
    engine = Engine()
    for _ in range(100):
        engine.meter.planned([(512, 0)], 512)
    assert len(engine.meter._running) <= 16
    engine.meter.ended({1})
    assert engine.meter.cost() is None
