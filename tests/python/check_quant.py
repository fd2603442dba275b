"""Quantized folders through transformers and bitsandbytes: JOBS.json RESULTS.json

A job is {"do": "open", "folder", "sequences"} or, with "source" and "type" (int8, nf4, nf4-single, fp4) in addition,
{"do": "write", ...}: the library then quantizes the plain folder "source" into "folder" first, loaded as "dtype". Its result has
  modules    how many linear maps bitsandbytes holds, by class
  config     quantization_config as the library wrote or read it
  outputs    float32 forward of the plain model over dequantized weights: for each sequence the log-probability of
             every token but the first, or its reward
  forward    the same from transformers' own forward of the quantized model, if the rest of it is float32
The dequantization is written out here: the library's own kernel for CPUs with AVX-512 is wrong for some shapes, and
its forward pass there repacks weights.
"""
import json
import sys

import bitsandbytes as bnb
import torch
import transformers

torch.set_num_threads(1)


def quantized(model):
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def dequantized(module):
    weight = module.weight
    if isinstance(module, bnb.nn.Linear8bitLt):
        scale = weight.SCB if weight.SCB is not None else module.state.SCB
        return weight.data.float() * scale.float()[:, None] / 127
    state = weight.quant_state
    absmax = state.absmax
    if state.nested:
        inner = state.state2
        step = inner.absmax.repeat_interleave(inner.blocksize)[: absmax.numel()]
        absmax = inner.code[absmax.long()] * step + state.offset
    packed = weight.data.view(torch.uint8).flatten()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[: state.shape.numel()].long()
    scale = absmax.float().repeat_interleave(state.blocksize)[: codes.numel()]
    return (state.code[codes] * scale).view(state.shape)


def class_of(folder):
    with open(f"{folder}/config.json") as file:
        return getattr(transformers, json.load(file)["architectures"][0])


def plain_model(model):
    config = model.config.__class__.from_dict(
        {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    plain = type(model)(config).float()
    values = {}
    maps = quantized(model)
    for name, parameter in model.named_parameters():
        module = name.rsplit(".", 1)[0]
        takes = module in maps and name.endswith(".weight")
        values[name] = dequantized(maps[module]) if takes else parameter.data.float()
    plain.load_state_dict(values, strict=False)
    missing = set(dict(plain.named_parameters())) - set(values)
    assert not missing, missing
    return plain.eval()


@torch.no_grad()
def outputs(model, sequences):
    results = []
    for ids in sequences:
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
        if logits.dim() == 1:
            results.append(logits.tolist())
        else:
            logp = logits.log_softmax(-1)[:-1]
            results.append(logp.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return results


def config_for(kind):
    if kind == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind[:3], bnb_4bit_use_double_quant=kind == "nf4"
    )


def run(job):
    folder = job["folder"]
    if job["do"] == "write":
        cls = class_of(job["source"])
        asked = config_for(job["type"])
        made = cls.from_pretrained(
            job["source"], quantization_config=asked, device_map="cpu", dtype=getattr(torch, job["dtype"])
        )
        # Before any forward pass: that would repack the weights.
        made.save_pretrained(folder)
    model, info = class_of(folder).from_pretrained(
        folder, device_map="cpu", dtype=torch.float32, output_loading_info=True
    )
    problems = {k: sorted(map(str, v)) for k, v in info.items() if v and k != "error_msgs"}
    plain = plain_model(model)
    result = outputs(plain, job["sequences"])
    maps = quantized(model)
    for module in maps.values():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    counts = {}
    for module in maps.values():
        counts[type(module).__name__] = counts.get(type(module).__name__, 0) + 1
    return {
        "modules": counts,
        "problems": problems,
        "config": model.config.quantization_config.to_dict(),
        "outputs": result,
        "forward": outputs(model.eval(), job["sequences"]) if job["dtype"] == "float32" else None,
    }


with open(sys.argv[1]) as file:
    jobs = json.load(file)
results = [run(job) for job in jobs]
with open(sys.argv[2], "w") as file:
    json.dump(results, file)
