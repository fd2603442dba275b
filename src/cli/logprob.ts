import type { InferenceModule } from "../config/contracts.ts";
import { resolveOptions } from "../config/resolve.ts";
import { type LogprobOptions, logprobSchema } from "../config/schema-inference.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";
import { findModel, requireFile, requireFolder, requireOutput } from "./files.ts";
import { flagsOf } from "./flags.ts";
import { summaryLine, talk } from "./talk.ts";

export const command: Command = {
  name: "logprob",
  usage: "logprob --model DIR --in F.jsonl --out F.jsonl",
  maxArgs: 0,
  summary: "log-probabilities of given completions, each prompt encoded once",
  examples: () => ["rlv logprob --model builtin:arithmetic --in pairs.jsonl --out scored.jsonl"],
  flags: () => [...flagsOf(logprobSchema), JSON_FLAG],
  async run({ flags, json }) {
    const options = resolveOptions<LogprobOptions>(logprobSchema, flags, "logprob");
    const model = await findModel(options.model, "model");
    if (options.adapter !== null) requireFolder(options.adapter, "adapter");
    requireFile(options.in, "in");
    requireOutput(options.out, "out", options.in);
    const { resolveModel } = await import("../recipe/base.ts");
    const { logprob }: InferenceModule = await import("../run/inference.ts");
    const summary = await logprob({ ...options, ...resolveModel(model, options.adapter) }, talk);
    if (json) printJson(summary);
    else talk(summaryLine("scored", summary));
    return 0;
  },
};
