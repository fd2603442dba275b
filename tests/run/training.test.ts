import { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { verifyCheckpoint } from "../../src/io/checkpoint-folder.ts";
import { readEvents } from "../../src/io/tensorboard.ts";
import { digest, metrics, rlv, SHORT } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-training-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

async function train(name: string, args: readonly string[], env: Record<string, string> = {}) {
  const ended = await rlv(["train", ...SHORT, "--output_dir", scratch, "--run_name", name, ...args], env);
  return { ...ended, run: join(scratch, name) };
}

const METRICS = [
  ...["loss", "policy_loss", "kl_div", "reward_mean", "reward_std", "frac_zero_std", "clip_ratio", "entropy"],
  ...["completion_length_avg", "completion_length_max", "proper_ending_rate", "grad_norm", "lr", "step_time"],
  ...["tokens_per_second", "rollout_time", "reward_time", "train_time", "sampler_logp_diff_max"],
].map((name) => `train/${name}`);

describe("the default job", () => {
  test("its folder, its metrics, its bytes", async () => {
    const first = await train("a", [
      "--eval_every",
      "3",
      "--save_every",
      "2",
      "--loss_type",
      "grpo",
      "--scale_rewards",
      "group",
    ]);
    expect(first.err).toBe("");
    expect(first.code).toBe(0);
    const rows = metrics(first.run);
    expect(rows.map((r) => r.step)).toEqual([0, 1, 2, 3, 4, 5, 6]);
    for (const row of rows.slice(1)) {
      expect(METRICS.filter((name) => typeof row[name] !== "number")).toEqual([]);
      expect(row["train/sampler_logp_diff_max"]).toBe(0);
      expect(row["device/peak_bytes"]).toBeGreaterThan(1e6);
      expect(row["device/flops_utilization"]).toBeGreaterThan(0);
      expect(row["device/flops_utilization"]).toBeLessThan(1);
    }
    expect(rows[1]!["train/kl_div"]).toBe(0);
    expect(rows.filter((r) => "eval/reward" in r).map((r) => r.step)).toEqual([0, 3, 6]);
    expect(rows.every((r) => !("eval/reward" in r) || "eval/reward_greedy" in r)).toBe(true);

    const names = readdirSync(first.run).map((name) => name.replace(/^(events.out.tfevents).*/, "$1"));
    for (const name of [
      "train_config.json",
      "train.log",
      "rollouts.sqlite",
      "checkpoints",
      "events.out.tfevents",
    ]) {
      expect(names).toContain(name);
    }
    const final = join(first.run, "checkpoints/final");
    expect(verifyCheckpoint(final)).toEqual([]);
    for (const name of [
      "config.json",
      "model.safetensors",
      "tokenizer.json",
      "train_state.json",
      "optimizer.safetensors",
    ]) {
      expect(existsSync(join(final, name))).toBe(true);
    }
    expect(readFileSync(join(first.run, "train.log"), "utf8")).toContain("[Sample @ ");
    const file = readdirSync(first.run).find((name) => name.startsWith("events.out"))!;
    const tags = readEvents(join(first.run, file)).filter((e) => e.step === 1);
    expect(tags.length).toBeGreaterThan(METRICS.length);
    const db = new Database(join(first.run, "rollouts.sqlite"), { readonly: true });
    expect(db.query("select count(*) as n from rollouts").get()).toEqual({ n: 6 * 16 });
    expect(db.query("select count(*) as n from eval_rollouts").get()).toEqual({ n: 3 * 8 * 2 });
    db.close();

    const same = [
      "--eval_every",
      "3",
      "--save_every",
      "2",
      "--loss_type",
      "grpo",
      "--scale_rewards",
      "group",
    ];
    const again = await train("b", same, { RLV_THREADS: "2" });
    expect(digest(join(again.run, "checkpoints/final"))).toEqual(digest(final));
    const single = await train("c", same, { RLV_THREADS: "1" });
    expect(digest(join(single.run, "checkpoints/final"))).toEqual(digest(final));
  });

  test.each([
    ["reinforce_kl2", []],
    ["bnpo", []],
    ["dr_grpo", ["--num_iterations", "2"]],
    ["dapo", ["--steps_per_generation", "2", "--mask_truncated_completions", "true"]],
    ["cispo", ["--epsilon_high", "5", "--num_iterations", "2"]],
    ["sapo", ["--kl_coeff", "0"]],
    ["luspo", ["--importance_sampling_level", "sequence", "--num_iterations", "2"]],
    ["vespo", ["--kl_estimator", "k1"]],
    ["ppo_clip", ["--aggregation", "sequence", "--grad_accum_steps", "2"]],
    ["dapo", ["--top_entropy_quantile", "0.5", "--entropy_coef", "0.01", "--gamma", "0.9"]],
    ["grpo", ["--dtype", "bfloat16", "--optimizer_dtype", "bfloat16", "--gradient_checkpointing", "true"]],
    [
      "grpo",
      [
        "--temperature",
        "0.8",
        "--top_p",
        "0.95",
        "--top_k",
        "20",
        "--min_p",
        "0.01",
        "--micro_batch_tokens",
        "64",
      ],
    ],
    ["dapo", ["--compat", "trl", "--grad_accum_steps", "2"]],
  ])("%s %p", async (loss, extra) => {
    const name = `loss-${loss}-${extra.join("").replace(/[^a-z0-9]/g, "")}`;
    const scale = loss === "reinforce_kl2" ? [] : ["--scale_rewards", "group"];
    const { code, err, run } = await train(name, [
      "--loss_type",
      loss,
      ...scale,
      "--eval_every",
      "-1",
      ...extra,
    ]);
    expect(err).toBe("");
    expect(code).toBe(0);
    const rows = metrics(run);
    expect(rows.length).toBe(6);
    for (const row of rows) {
      if ("train/sampler_logp_diff_max" in row) expect(row["train/sampler_logp_diff_max"]).toBe(0);
      expect(Number.isFinite(row["train/loss"]!)).toBe(true);
      expect(row["train/grad_norm"]).toBeGreaterThan(0);
    }
  });

  test("a rate that blows up ends with code 3 and the last good state aside", async () => {
    const { code, err, run } = await train("nan", [
      "--learning_rate",
      "1e38",
      "--warmup_steps",
      "0",
      "--eval_every",
      "-1",
    ]);
    expect(code).toBe(3);
    expect(err).toMatch(
      /^rlv: error: (loss is NaN|gradient norm is NaN|the policy's logits are not finite): step \d+: /,
    );
    const saved = readdirSync(join(run, "checkpoints"));
    expect(saved.some((name) => name.startsWith("diverged-"))).toBe(true);
    expect(existsSync(join(run, "checkpoints/final"))).toBe(false);
  });
});

describe("supervised fine-tuning", () => {
  const data = join(scratch, "sft.jsonl");
  writeFileSync(
    data,
    Array.from(
      { length: 12 },
      (_, i) => `${JSON.stringify({ prompt: `What is ${i} + 1?`, completion: ` ${i + 1}` })}\n`,
    ).join(""),
  );
  const args = ["train", "sft", "--model", "builtin:arithmetic", "--dataset", data, "--eval_file", data];
  const common = [
    "--output_dir",
    scratch,
    "--batch_size",
    "6",
    "--learning_rate",
    "1e-3",
    "--save_every",
    "3",
    "--eval_every",
    "8",
  ];

  test("the loss falls; a longer run resumed is the longer run", async () => {
    const whole = await rlv([
      ...args,
      ...common,
      "--run_name",
      "sft",
      "--num_train_steps",
      "8",
      "--lr_schedule",
      "constant",
    ]);
    expect(whole.err).toBe("");
    const rows = metrics(join(scratch, "sft"));
    expect(rows.at(-1)!["eval/loss"]!).toBeLessThan(0.5 * rows[0]!["eval/loss"]!);
    const part = await rlv([
      ...args,
      ...common,
      "--run_name",
      "part",
      "--num_train_steps",
      "5",
      "--lr_schedule",
      "constant",
    ]);
    expect(part.code).toBe(0);
    const more = await rlv(["train", "--resume_from", join(scratch, "part"), "--num_train_steps", "8"]);
    expect(more.err).toBe("");
    const [a, b] = ["sft", "part"].map((name) => digest(join(scratch, name, "checkpoints/final")));
    for (const name of ["model.safetensors", "optimizer.safetensors"]) expect(b![name]).toBe(a![name]!);
  });

  test("train_on_prompt, from random weights, output folder", async () => {
    const init = join(scratch, "config.json");
    const model = join(import.meta.dir, "../../src/recipe/arithmetic/model");
    writeFileSync(init, readFileSync(join(model, "config.json")));
    const out = join(scratch, "tuned");
    const { code, err } = await rlv([
      ...[
        "train",
        "sft",
        "--init",
        init,
        "--tokenizer",
        model,
        "--dataset",
        data,
        "--train_on_prompt",
        "true",
      ],
      ...["--output_dir", scratch, "--run_name", "fresh", "--num_train_steps", "3", "--output", out],
    ]);
    expect([err, code]).toEqual(["", 0]);
    expect(existsSync(join(out, "model.safetensors"))).toBe(true);
    const listed = await rlv([
      "generate",
      "--model",
      out,
      "--in",
      data,
      "--out",
      join(scratch, "o.jsonl"),
      "--max_new_tokens",
      "3",
    ]);
    expect(listed.code).toBe(0);
  });
});
