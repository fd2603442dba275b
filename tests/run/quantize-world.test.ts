/** A reward model that has learned something keeps it in fewer bits. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeWorld, SMALL, type World } from "./preference-world.ts";
import { rlv } from "./program.ts";

const dir = mkdtempSync(join(tmpdir(), "rlv-quantize-world-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const rewardModel = join(dir, "rm/checkpoints/final");
let world: World;

beforeAll(async () => {
  world = await makeWorld(dir, { train: 2000, test: 400, sft: 600, steps: 40 });
  const ended = await rlv([
    ...["train", "hh-rm", "--model", world.policy, "--dataset", world.data, ...SMALL, "--device", "cpu"],
    ...["--epochs", "4", "--batch_size", "16", "--grad_accum", "2", "--lr", "3e-3", "--max_length", "64"],
    ...["--eval_steps", "-1", "--save_steps", "-1", "--output_dir", dir, "--log_dir", join(dir, "logs")],
    ...["--run_name", "rm"],
  ]);
  if (ended.code !== 0) throw new Error(ended.err);
}, 300_000);

describe.each([
  ["int8", 0.005, 0.99],
  ["int4", 0.02, 0.95],
] as const)("%s", (type, loss, agreement) => {
  test(`accuracy falls by at most ${100 * loss} points`, async () => {
    const data = ["--dataset", world.data, "--max_length", "64", "--device", "cpu"];
    const made = await rlv([
      "quantize",
      "--checkpoint",
      rewardModel,
      "--quant_type",
      type,
      ...data,
      "--json",
    ]);
    expect(made.err).toContain(`saved: ${rewardModel}/quantized_${type}`);
    const result = JSON.parse(made.out);
    expect(result.pairs).toBe(2000);
    // Better than chance by far, so that there is something to lose.
    expect(result.accuracy_original).toBeGreaterThan(0.8);
    expect(result.accuracy_quantized).toBeGreaterThanOrEqual(result.accuracy_original - loss);
    expect(result.agreement).toBeGreaterThan(agreement);
    expect(result.reward_difference_abs).toBeGreaterThan(0);
    const saved = join(rewardModel, `quantized_${type}`);
    expect(JSON.parse(readFileSync(join(saved, "evaluation_results.json"), "utf8"))).toEqual(result);
    // Scoring with the folder is scoring with weights that are quantized as they are loaded.
    const rows = join(dir, "rows.jsonl");
    const ids = Array.from({ length: 5 }, (_, i) => ({ ids: [3 + i, 7, 9, 11 + i, 4] }));
    await Bun.write(rows, ids.map((row) => `${JSON.stringify(row)}\n`).join(""));
    const scored = async (flags: readonly string[], out: string) => {
      const { code } = await rlv([
        "score",
        ...flags,
        "--in",
        rows,
        "--out",
        join(dir, out),
        "--device",
        "cpu",
      ]);
      expect(code).toBe(0);
      return readFileSync(join(dir, out), "utf8");
    };
    const folder = await scored(["--model", saved], "saved.jsonl");
    expect(folder).toBe(await scored(["--model", rewardModel, "--quant_type", type], "loaded.jsonl"));
    expect(folder).not.toBe(await scored(["--model", rewardModel], "plain.jsonl"));
  });
});
