"""Scores of a reward model by transformers: check_reward_model.py FOLDER [ADAPTER] < {"ids": […]} lines.

Sequences go in one by one, then as a batch padded on either side; both must agree. Prints a list of scores.
"""

import json
import sys

import torch
from transformers import AutoModelForSequenceClassification

torch.set_num_threads(1)
folder, adapter = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
kwargs = {"num_labels": 1} if adapter else {}
model, loading = AutoModelForSequenceClassification.from_pretrained(
    folder, dtype=torch.float32, output_loading_info=True, **kwargs
)
if adapter:
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, adapter)
else:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not loading[kind], (kind, loading[kind])
    assert model.config.num_labels == 1, model.config.num_labels
model.eval()
rows = [json.loads(line)["ids"] for line in sys.stdin]
with torch.no_grad():
    alone = [model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows]
    pad = model.config.pad_token_id
    if not adapter:
        longest = max(map(len, rows))
        for left in (True, False):
            ids, mask = [], []
            for row in rows:
                gap = [pad] * (longest - len(row))
                ids.append(gap + row if left else row + gap)
                zeros, ones = [0] * len(gap), [1] * len(row)
                mask.append(zeros + ones if left else ones + zeros)
            batch = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits[:, 0].tolist()
            for one, other in zip(alone, batch):
                assert abs(one - other) < 1e-4 * max(1, abs(one)), (left, one, other)
print(json.dumps(alone))
