"""Adapter folders through transformers and peft: JOBS.json RESULTS.json

A job is {"base", "sequences"} with
  "adapter"  a folder that peft opens on the base; without it the base alone answers
  "config"   arguments of LoraConfig: peft first makes that adapter with random values and saves it there
Its result has
  outputs    float32: for each sequence the log-probability of every token but the first, or its reward
  problems   tensors of the adapter file that peft did not take, lacks or holds with other values
"""
import json
import sys

import peft
import safetensors.torch
import torch
import transformers

torch.set_num_threads(1)


def open_base(folder):
    with open(f"{folder}/config.json") as file:
        architecture = json.load(file)["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()


def write_adapter(base, adapter, config):
    torch.manual_seed(5)
    model = peft.get_peft_model(open_base(base), peft.LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(adapter)


def problems_of(model, adapter):
    stored = safetensors.torch.load_file(f"{adapter}/adapter_model.safetensors")
    held = peft.get_peft_model_state_dict(model)
    problems = [f"{name} in one only" for name in set(stored) ^ set(held)]
    problems += [f"{n} differs" for n in set(stored) & set(held) if not torch.equal(stored[n].float(), held[n])]
    return sorted(problems)


def outputs_of(model, sequences):
    outputs = []
    for ids in sequences:
        ids = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        if logits.dim() == 1:
            outputs.append(logits.tolist())
            continue
        logprobs = torch.log_softmax(logits[:-1], -1)
        outputs.append(logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist())
    return outputs


def result_of(job):
    if "config" in job:
        write_adapter(job["base"], job["adapter"], job["config"])
    model, problems = open_base(job["base"]), []
    if "adapter" in job:
        model = peft.PeftModel.from_pretrained(model, job["adapter"]).eval()
        problems = problems_of(model, job["adapter"])
    return {"outputs": outputs_of(model, job["sequences"]), "problems": problems}


def main(asked, told):
    with open(asked) as file:
        jobs = json.load(file)
    with open(told, "w") as file:
        json.dump([result_of(job) for job in jobs], file)


if __name__ == "__main__":
    main(*sys.argv[1:])
