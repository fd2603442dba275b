/** The offline stories with a small model that has learnt a little of them, made once a test file. */
import { Database } from "bun:sqlite";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DEFAULTS, makeStories, STORY_MODEL } from "../../scripts/make-stories-model.ts";
import { type Ended, rlv } from "./program.ts";

const SHAPE = { hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2, num_attention_heads: 2 };

export interface StoryRow {
  readonly step: number;
  readonly mode?: string;
  readonly prompt: string;
  readonly prompt_index: number;
  readonly rollout_index: number;
  readonly completion: string;
  readonly reward: number;
  readonly advantage: number;
  readonly flagged: number | null;
  readonly components: string;
  readonly details: string | null;
}

export class StoryWorld implements Disposable {
  readonly root = mkdtempSync(join(tmpdir(), "rlv-stories-"));
  readonly runs = join(this.root, "runs");
  readonly dataset = join(this.root, "dataset");
  readonly model = join(this.root, "model");

  /** Half of the stories repeat a word: a policy of a few steps does it too. */
  static async make(): Promise<StoryWorld> {
    const world = new StoryWorld();
    makeStories(world.root, { ...DEFAULTS, train: 600, test: 40, keep: 0.5, repeat: 0.5 });
    writeFileSync(
      join(world.root, "config.json"),
      JSON.stringify({ ...STORY_MODEL, ...SHAPE, num_key_value_heads: 1 }),
    );
    const flags = {
      ...{ init: "config.json", tokenizer: "tokenizer", output: "model", dataset: "sft.jsonl" },
    };
    const ended = await rlv([
      ...["train", "sft", "--train_on_prompt", "true", "--num_train_steps", "100", "--batch_size", "16"],
      ...["--learning_rate", "1e-2", "--lr_schedule", "cosine", "--eval_every", "-1", "--save_every", "-1"],
      ...["--output_dir", join(world.root, "sft"), "--run_name", "base"],
      ...Object.entries(flags).flatMap(([key, file]) => [`--${key}`, join(world.root, file)]),
    ]);
    if (ended.code !== 0) throw new Error(ended.err);
    return world;
  }

  /** A short run. */
  train(name: string, args: readonly string[]): Promise<Ended> {
    return rlv([
      ...["train", "stories", "--model", this.model, "--dataset", this.dataset, "--output_dir", this.runs],
      ...["--run_name", name, "--max_steps", "4", "--batch_size", "16", "--num_generations", "8"],
      ...["--reward", "asked_ending,repeated_words", "--max_completion_length", "48", "--lr", "3e-3"],
      ...[
        "--lr_schedule",
        "constant",
        "--eval_num_prompts",
        "12",
        "--eval_routing_steps",
        "2",
        "--log_every",
        "1",
      ],
      ...args,
    ]);
  }

  run(name: string): string {
    return join(this.runs, name);
  }

  log(name: string): string {
    return readFileSync(join(this.run(name), "train.log"), "utf8");
  }

  rows(name: string, table: "rollouts" | "eval_rollouts"): StoryRow[] {
    const db = new Database(join(this.run(name), "rollouts.sqlite"), { readonly: true });
    try {
      return db
        .query(`SELECT * FROM ${table} ORDER BY step, prompt_index, rollout_index`)
        .all() as StoryRow[];
    } finally {
      db.close();
    }
  }

  [Symbol.dispose](): void {
    rmSync(this.root, { recursive: true, force: true });
  }
}

export const DUAL = ["--lora_config", "r4", "--detector", "{name: repetition, params: {least: 2}}"];
