"""Makes `golden.safetensors`: what the adapters library gives for each way to set a bottleneck.

The library pins its own transformers, so it runs in an environment of its own, and what it gave is
kept: `pip install adapters==1.3.0`, then `python make_golden.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MODEL = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "attention_bias": True,
}
HOULSBY = ("DoubleSeqBnConfig", {"reduction_factor": 4})
PFEIFFER = ("SeqBnConfig", {"reduction_factor": 4})
PARALLEL = ("ParBnConfig", {})
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "houlsby": HOULSBY,
    "pfeiffer": PFEIFFER,
    "parallel": PARALLEL,
    "plus": ("AdapterPlusConfig", {"reduction_factor": 4, "stochastic_depth": 0.0}),
    "houlsby_norms": (HOULSBY[0], {**HOULSBY[1], "ln_before": True, "ln_after": True}),
    "houlsby_whole": (
        HOULSBY[0],
        {**HOULSBY[1], "ln_after": True, "adapter_residual_before_ln": True},
    ),
    "pfeiffer_norms": (PFEIFFER[0], {**PFEIFFER[1], "ln_before": True, "ln_after": True}),
    "pfeiffer_whole": (
        PFEIFFER[0],
        {
            **PFEIFFER[1],
            "ln_after": True,
            "adapter_residual_before_ln": True,
            "original_ln_after": False,
            "residual_before_ln": False,
        },
    ),
    "pfeiffer_learned": (PFEIFFER[0], {**PFEIFFER[1], "scaling": "learned", "mh_adapter": True}),
    "parallel_channel": (
        PARALLEL[0],
        {"scaling": "channel", "mh_adapter": True, "ln_after": True, "ln_before": True},
    ),
    "left_out": (HOULSBY[0], {**HOULSBY[1], "leave_out": [0]}),
    "table": (HOULSBY[0], {"reduction_factor": {"1": 2, "default": 8}}),
    **{
        name: (PFEIFFER[0], {**PFEIFFER[1], "non_linearity": name})
        for name in ("gelu", "gelu_new", "leakyrelu", "tanh", "sigmoid", "mish", "relu6", "silu")
    },
}


def case(name: str, ids: torch.Tensor, folder: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors and the settings of one case."""
    import adapters
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**MODEL)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    base = {f"base/{k}": v.detach().clone() for k, v in model.state_dict().items()}
    adapters.init(model)
    kind, options = CASES[name]
    model.add_adapter("mine", config=getattr(adapters, kind)(**options))
    model.train_adapter("mine")
    own = {n: p for n, p in model.named_parameters() if ".adapters.mine." in n}
    for parameter in own.values():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    logits = model.eval()(ids).logits
    logits.square().mean().backward()
    model.save_adapter(str(folder), "mine", use_safetensors=not options.get("ln_before"))
    file = folder / "adapter.safetensors"
    if file.exists():
        saved = load_file(file)
    else:  # safetensors refuses the norm that is registered twice
        saved = torch.load(folder / "pytorch_adapter.bin", weights_only=True)
    found = {f"{name}/saved/{k}": v.clone() for k, v in saved.items()}
    found |= {f"{name}/gradient/{n}": p.grad for n, p in own.items()}
    found[f"{name}/logits"] = logits.detach()
    return {**base, **found}, json.loads((folder / "adapter_config.json").read_text())


def main() -> None:
    tensors: dict[str, torch.Tensor] = {"ids": torch.tensor([[1, 5, 2, 8, 3], [9, 9, 0, 4, 7]])}
    settings: dict[str, str] = {"model": json.dumps({"model_type": "llama", **MODEL})}
    for name in CASES:
        with TemporaryDirectory() as folder:
            found, config = case(name, tensors["ids"], Path(folder))
        tensors |= found
        settings[name] = json.dumps(config)
    save_file(tensors, Path(__file__).with_name("golden.safetensors"), settings)


if __name__ == "__main__":
    main()
