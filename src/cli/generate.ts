import type { InferenceModule } from "../config/contracts.ts";
import { resolveOptions } from "../config/resolve.ts";
import { type GenerateOptions, generateSchema } from "../config/schema-inference.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";
import { findModel, requireFile, requireFolder, requireOutput } from "./files.ts";
import { flagsOf } from "./flags.ts";
import { summaryLine, talk } from "./talk.ts";

export const command: Command = {
  name: "generate",
  usage: "generate --model DIR --in F.jsonl --out F.jsonl",
  maxArgs: 0,
  summary: "complete the prompts of a JSONL file",
  examples: () => [
    "rlv generate --model builtin:arithmetic --in prompts.jsonl --out completions.jsonl --n 4 --max_new_tokens 16",
    "rlv generate --model runs/mine/checkpoints/final --in prompts.jsonl --out out.jsonl --temperature 0 --json",
  ],
  flags: () => [...flagsOf(generateSchema), JSON_FLAG],
  async run({ flags, json }) {
    const options = resolveOptions<GenerateOptions>(generateSchema, flags, "generate");
    const model = await findModel(options.model, "model");
    if (options.adapter !== null) requireFolder(options.adapter, "adapter");
    requireFile(options.in, "in");
    requireOutput(options.out, "out", options.in);
    const { resolveModel } = await import("../recipe/base.ts");
    const { generate }: InferenceModule = await import("../run/inference.ts");
    const summary = await generate({ ...options, ...resolveModel(model, options.adapter) }, talk);
    if (json) printJson(summary);
    else talk(summaryLine("made", summary));
    return 0;
  },
};
