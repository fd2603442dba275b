import type { QuantizeModule } from "../config/contracts.ts";
import { resolveOptions } from "../config/resolve.ts";
import { type QuantizeOptions, quantizeSchema } from "../config/schema-inference.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";
import { findDataset, findModel, isBuiltin } from "./files.ts";
import { flagsOf } from "./flags.ts";
import { talk } from "./talk.ts";

export const command: Command = {
  name: "quantize",
  usage: "quantize --model DIR --quant_type int8|int4",
  maxArgs: 0,
  summary: "write a model in 8 or 4 bits and measure what that changes",
  examples: () => [
    "rlv quantize --model builtin:arithmetic --quant_type int4 --dataset builtin:arithmetic/eval.jsonl --max_new_tokens 16",
    "rlv quantize --checkpoint checkpoints/rm/mine/checkpoints/final --quant_type int8",
  ],
  notes: () => [
    "The folder is bitsandbytes' format: transformers and rlv open it. A reward model is judged on test pairs (accuracy",
    "before and after, agreement, reward differences), a policy on tokens that it draws itself (KL(original || quantized)",
    "a token over the whole vocabulary and its sampled estimate, agreement on the likeliest token, perplexities).",
  ],
  flags: () => [...flagsOf(quantizeSchema), JSON_FLAG],
  async run({ flags, json }) {
    const options = resolveOptions<QuantizeOptions>(quantizeSchema, flags, "quantize");
    const model = await findModel(options.model, "model");
    const { resolveModel } = await import("../recipe/base.ts");
    const { resolveBuiltin } = await import("../recipe/builtin.ts");
    const { quantize }: QuantizeModule = await import("../run/quantize.ts");
    const result = await quantize(
      {
        ...options,
        ...resolveModel(model, null),
        name: options.model,
        dataset: isBuiltin(options.dataset)
          ? resolveBuiltin(options.dataset)
          : await findDataset(options.dataset, "dataset"),
      },
      new Set(flags.keys()),
      talk,
    );
    if (json) printJson(result);
    else for (const [name, value] of Object.entries(result)) talk(`${name.padEnd(24)} ${value ?? "none"}`);
    return 0;
  },
};
