"""An OpenAI-compatible server that computes nothing: it models when a vLLM replica would answer, and says so."""

from tierline.stack.simulated_engine.config import SimulatedEngineConfig
from tierline.stack.simulated_engine.server import make_app, run

__all__ = ["SimulatedEngineConfig", "make_app", "run"]
