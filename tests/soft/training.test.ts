/** The default job on software Metal: what the CPU device draws and learns, the Metal device draws and learns. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { openWeights } from "../../src/io/hf-folder.ts";
import { metrics, rlv } from "../run/program.ts";

const library = resolve(import.meta.dir, "../../build/librlv-soft.so");
const scratch = mkdtempSync(join(tmpdir(), "rlv-soft-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

async function train(device: string): Promise<string> {
  const ended = await rlv([
    ...["train", "arithmetic", "--device", device, "--num_train_steps", "3", "--eval_num_prompts", "4"],
    ...["--batch_size", "4", "--group_size", "8"],
    ...["--eval_every", "3", "--output_dir", scratch, "--run_name", device],
  ]);
  expect(ended.err).toBe("");
  expect(ended.code).toBe(0);
  return join(scratch, device);
}

/** ‖a − b‖ / ‖b‖. */
function distance(a: Float32Array, b: Float32Array): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (a[i]! - b[i]!) ** 2;
    norm += b[i]! ** 2;
  }
  return Math.sqrt(difference / norm);
}

describe.skipIf(!existsSync(library))("software Metal (scripts/build-native --soft)", () => {
  test("three steps of arithmetic: the same rewards, the same weights to 1e-5", async () => {
    const cpu = await train("cpu");
    const soft = await train("soft");
    const rewards = (run: string) =>
      metrics(run).map((row) => [
        row.step,
        row["train/reward_mean"],
        row["eval/reward"],
        row["eval/reward_greedy"],
      ]);
    expect(rewards(soft)).toEqual(rewards(cpu));
    for (const row of metrics(soft).slice(1)) expect(row["train/sampler_logp_diff_max"]).toBe(0);

    using ours = openWeights(join(soft, "checkpoints/final"));
    using theirs = openWeights(join(cpu, "checkpoints/final"));
    const names = theirs.names();
    expect(ours.names().toSorted()).toEqual(names.toSorted());
    for (const name of names) {
      const far = distance(ours.readFloat32(name), theirs.readFloat32(name));
      if (!(far < 1e-5)) throw new Error(`${name}: ${far}`);
    }
  }, 600_000);
});
