"""The demo's teacher in a shape that vLLM serves on a CPU: the same model with wider heads.

vLLM's attention on CPUs takes heads of 32 and more (`v1/attention/backends/cpu_attn.py`, 0.32), and
those of the demo's teacher are 24 wide. Zeros beside its weights make them 32 wide without another
number in any result but for rounding:

    query, key, value   the other 8 components are 0, so they add nothing to any product
    rotary embedding    divisors that give the 12 pairs of components the angles they had
    1 / sqrt(32)        instead of 1 / sqrt(24): the weights of the query make up for it
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

WIDTH = 32


def widen_heads(source: Path, target: Path) -> Path:
    """Write the Llama in ``source`` with heads of 32 into ``target``, in float32; return that."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((source / "config.json").read_text())
    width, half = config["head_dim"], config["head_dim"] // 2
    place = torch.tensor([*range(half), *range(WIDTH // 2, WIDTH // 2 + half)])

    def widened(weight: Any) -> Any:
        """Return rows per head at their new places, with zeros between them."""
        heads = weight.float().view(-1, width, weight.shape[-1])
        wide = heads.new_zeros(len(heads), WIDTH, weight.shape[-1])
        wide[:, place] = heads
        return wide.reshape(-1, weight.shape[-1])

    weights = {}
    for name, weight in load_file(source / "model.safetensors").items():
        match name.split(".")[-2]:
            case "q_proj":
                weights[name] = widened(weight) * math.sqrt(WIDTH / width)
            case "k_proj" | "v_proj":
                weights[name] = widened(weight)
            case "o_proj":
                weights[name] = widened(weight.T).T.contiguous()
            case _:
                weights[name] = weight.float()
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        shutil.copy(file, target)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config |= {"head_dim": WIDTH, "dtype": "float32", "rope_parameters": _rope(config, half)}
    (target / "config.json").write_text(json.dumps(config, indent=2))
    return target


def _rope(config: dict[str, Any], half: int) -> dict[str, Any]:
    """Return rotary parameters with the angles of narrower heads.

    Pair i turns by theta^(-i / half) per place. `longrope` divides what it would turn by otherwise,
    theta^(-i / 16), by a number for each pair.
    """
    theta = config["rope_parameters"]["rope_theta"]
    divisors = [theta ** (pair / half - pair / (WIDTH // 2)) for pair in range(half)]
    divisors += [1.0] * (WIDTH // 2 - half)
    return {
        "rope_type": "longrope",
        "rope_theta": theta,
        "short_factor": divisors,
        "long_factor": divisors,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }
