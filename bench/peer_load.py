"""From the start of Python to a model folder's usable weights in torch: peer_load.py FOLDER. Prints one JSON object."""

import json
import resource
import sys
import time

start = time.perf_counter()
import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

imported = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
# Files may be mapped: weights are usable when they have been read.
total = sum(float(p.detach().sum()) for p in model.parameters())
loaded = time.perf_counter()
print(json.dumps({"peer": "torch", "import_s": imported - start, "load_s": loaded - imported,
                  "total_s": loaded - start, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
