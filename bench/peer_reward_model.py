"""One step of a reward model in torch on random weights: forward, Bradley-Terry loss, backward, AdamW.

peer_reward_model.py CONFIG_FOLDER [PAIRS] [TOKENS] [STEPS]

The body has the shape of CONFIG_FOLDER/config.json, the head one label, weights are bfloat16. Gradient checkpointing is
tried on and off; the faster one counts. Prints one JSON object.
"""

import json
import os
import resource
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

torch.set_num_threads(int(os.environ.get("THREADS", "2")))
torch.manual_seed(0)
pairs, tokens, steps = (int(sys.argv[i]) if len(sys.argv) > i else d for i, d in ((2, 8), (3, 220), (4, 2)))
config = AutoConfig.from_pretrained(sys.argv[1])
config.num_labels = 1
# Sequences are equally long and end with a token that is not padding.
config.pad_token_id = 0
model = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
ids = torch.randint(5, 1000, (2 * pairs, tokens))


def step():
    start = time.perf_counter()
    rewards = model(input_ids=ids, use_cache=False).logits[:, 0].float()
    loss = -torch.nn.functional.logsigmoid(rewards[0::2] - rewards[1::2]).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


results = {}
for checkpointing in (True, False):
    if checkpointing:
        model.gradient_checkpointing_enable()
    else:
        model.gradient_checkpointing_disable()
    step()
    results[checkpointing] = [step() for _ in range(steps)]
    if checkpointing:
        peak_with = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
best = min(results, key=lambda c: median(results[c]))
peak = peak_with if best else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps({"peer": "torch", "pairs": pairs, "tokens": tokens, "checkpointing": best, "step_s": median(results[best]),
                  "steps": results[best], "peak_mb": peak}))
