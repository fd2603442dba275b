import type { ScoreModule } from "../config/contracts.ts";
import { resolveOptions } from "../config/resolve.ts";
import { type ScoreOptions, scoreSchema } from "../config/schema-inference.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";
import { findModel, requireFile, requireFolder, requireOutput } from "./files.ts";
import { flagsOf } from "./flags.ts";
import { summaryLine, talk } from "./talk.ts";

export const command: Command = {
  name: "score",
  usage: "score --model RM_DIR --in F.jsonl --out F.jsonl",
  maxArgs: 0,
  summary: "rewards of given texts by a reward model",
  examples: () => [
    "rlv score --model checkpoints/rm/mine/checkpoints/final --in answers.jsonl --out scored.jsonl",
    "rlv score --model ./Qwen3-0.6B --adapter checkpoints/rm/mine/checkpoints/final --in answers.jsonl --out scored.jsonl",
  ],
  flags: () => [...flagsOf(scoreSchema), JSON_FLAG],
  async run({ flags, json }) {
    const options = resolveOptions<ScoreOptions>(scoreSchema, flags, "score");
    const model = await findModel(options.model, "model");
    if (options.adapter !== null) requireFolder(options.adapter, "adapter");
    requireFile(options.in, "in");
    requireOutput(options.out, "out", options.in);
    const { resolveModel } = await import("../recipe/base.ts");
    const { score }: ScoreModule = await import("../run/score.ts");
    const summary = await score({ ...options, ...resolveModel(model, options.adapter) }, talk);
    if (json) printJson(summary);
    else talk(summaryLine("scored", summary));
    return 0;
  },
};
