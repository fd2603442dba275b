/** A small language of preferences (scripts/preference-grammar.ts) and a tiny policy that has begun to speak it. */
import { join } from "node:path";
import { makePreferences } from "../../scripts/make-preferences.ts";
import { rlv } from "./program.ts";

export interface World {
  /** Pairs in the layout of Anthropic/hh-rlhf. */
  readonly data: string;
  /** A folder of a language model. */
  readonly policy: string;
}

export interface WorldSizes {
  readonly train: number;
  readonly test: number;
  readonly sft: number;
  readonly steps: number;
}

/** Makes both below `dir`. */
export async function makeWorld(dir: string, { steps, ...sizes }: WorldSizes): Promise<World> {
  const data = join(dir, "world");
  const policy = join(dir, "policy");
  makePreferences(data, { ...sizes, good: 0.5, gap: 0.15, noise: 0, broken: 0, seed: 1 });
  const ended = await rlv([
    ...["train", "sft", "--init", join(data, "config.json"), "--tokenizer", join(data, "tokenizer")],
    ...["--dataset", join(data, "sft.jsonl"), "--num_train_steps", String(steps), "--batch_size", "64"],
    ...[
      "--learning_rate",
      "3e-3",
      "--eval_every",
      "-1",
      "--output_dir",
      join(dir, "sft"),
      "--output",
      policy,
    ],
  ]);
  if (ended.code !== 0) throw new Error(ended.err);
  return { data, policy };
}

/** Flags that both recipes share on the small world. */
export const SMALL = [
  ...["--dtype", "float32", "--optimizer_dtype", "float32", "--gradient_checkpointing", "false"],
];
