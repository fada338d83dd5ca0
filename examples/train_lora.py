"""Train a LoRA on a file of examples, and save it: python train_lora.py FILE [STEPS]."""

import sys

import torch

import inarch
from inarch_training import train

torch.manual_seed(0)
base = inarch.load("smollm2", dtype="float32")
model = base.adapt(inarch.adapter("lora", name="mine", rank=4, targets=["mlp.*"]))
result = train(
    model,
    sys.argv[1],
    adapter="mine",
    out="mine",
    steps=int(sys.argv[2]) if len(sys.argv) > 2 else 120,
    on_step=lambda step, loss: print(f"step {step}: loss {loss:.3f}"),
)
print(model.generate([{"role": "user", "content": "Who are you?"}], max_new_tokens=40))
print(f"saved in PEFT's format in {result.folder}/, with its loss curve")
