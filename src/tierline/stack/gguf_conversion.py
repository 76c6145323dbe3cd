"""``python -m tierline.stack.gguf_conversion GGUF FOLDER``: GGUF weights become a Hugging Face folder in bfloat16.

It runs as a process of its own, so that ``tierline up`` neither imports torch nor keeps its memory.
"""

import json
import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write ``gguf`` as safetensors with tokenizer and chat template into the new ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Dequantized: vLLM reads plain weights, and transformers refuses to save packed ones.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text())
    config.pop("quantization_config", None)  # it would make vLLM look for the packed weights
    config.pop("_model_name_or_path", None)
    config_file.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
