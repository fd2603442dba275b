import type { MergeModule } from "../config/contracts.ts";
import { resolveOptions } from "../config/resolve.ts";
import { type MergeOptions, mergeSchema } from "../config/schema-inference.ts";
import { UsageError } from "../core/errors.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";
import { findModel, requireFolder, requireNewFolder } from "./files.ts";
import { flagsOf } from "./flags.ts";
import { talk } from "./talk.ts";

export const command: Command = {
  name: "merge",
  usage: "merge --model DIR --adapter DIR --out DIR",
  maxArgs: 0,
  summary: "put an adapter into the weights of its model",
  examples: () => [
    "rlv merge --model ./Qwen3-0.6B --adapter runs/mine/checkpoints/final --out ./tuned",
    "rlv merge --model runs/mine/checkpoints/final --out ./tuned --dtype bfloat16",
    "rlv merge --model runs/routed/checkpoints/final --adapter_scales 1,0 --out ./without-forget",
  ],
  flags: () => [...flagsOf(mergeSchema), JSON_FLAG],
  async run({ flags, json }) {
    const options = resolveOptions<MergeOptions>(mergeSchema, flags, "merge");
    const found = await findModel(options.model, "model");
    if (options.adapter !== null) requireFolder(options.adapter, "adapter");
    requireNewFolder(options.out, "out");
    const { resolveModel } = await import("../recipe/base.ts");
    const { model, adapter } = resolveModel(found, options.adapter);
    if (adapter === null)
      throw new UsageError("no adapter to merge", options.model, "give --adapter DIR, a PEFT adapter folder");
    const { merge }: MergeModule = await import("../run/merge.ts");
    const summary = merge({ ...options, model, adapter }, talk);
    if (json) printJson(summary);
    else
      talk(
        `${options.split ? "split" : "merged"} ${summary.maps} linear maps (${summary.seconds.toFixed(2)} s): ${summary.out}`,
      );
    return 0;
  },
};
