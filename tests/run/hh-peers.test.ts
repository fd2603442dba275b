/** What rlv writes, read by TensorBoard and transformers themselves: runs where RLV_PYTHON names a Python with them. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { makeWorld, SMALL } from "./preference-world.ts";
import { metrics, rlv } from "./program.ts";

const python = process.env.RLV_PYTHON;
const scratch = mkdtempSync(join(tmpdir(), "rlv-hh-peers-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const RM_TAGS = [
  ...["train/loss", "train/accuracy", "train/grad_norm", "train/lr", "train/step_time"],
  ...["eval/loss", "eval/accuracy"],
];
const GRPO_TAGS = [
  ...["train/loss", "train/policy_loss", "train/kl_div", "train/reward_mean", "train/completion_length_avg"],
  ...["train/completion_length_max", "train/proper_ending_rate", "eval/reward", "eval/kl_div"],
];

async function check(script: string, args: readonly string[], input = ""): Promise<unknown> {
  const path = resolve(import.meta.dir, "../python", script);
  const child = Bun.spawn([python!, path, ...args], {
    stdin: Buffer.from(input),
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, OMP_WAIT_POLICY: "passive", CUDA_VISIBLE_DEVICES: "", HF_HUB_OFFLINE: "1" },
  });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  if (code !== 0) throw new Error(err);
  return JSON.parse(out.trimEnd().split("\n").at(-1)!);
}

async function succeed(args: readonly string[]): Promise<void> {
  const { code, err } = await rlv(args);
  if (code !== 0) throw new Error(err);
}

test.skipIf(!python)(
  `TensorBoard shows every figure, transformers scores as rlv does${python ? "" : " (skipped: RLV_PYTHON names no Python)"}`,
  async () => {
    const world = await makeWorld(scratch, { train: 120, test: 40, sft: 200, steps: 20 });
    const logs = join(scratch, "logs");
    const places = ["--output_dir", scratch, "--log_dir", logs, ...SMALL];
    const rm = (name: string, more: readonly string[]) => [
      ...[
        "train",
        "hh-rm",
        "--model",
        world.policy,
        "--dataset",
        world.data,
        "--max_length",
        "64",
        "--lr",
        "3e-3",
      ],
      ...["--batch_size", "4", "--grad_accum", "1", "--num_train_steps", "6", "--eval_steps", "2"],
      ...["--eval_num_batches", "2", "--run_name", name, ...places, ...more],
    ];
    await succeed(rm("rm", []));
    // A resumed run: its figures by examples are on another axis than the step it goes on from.
    await succeed(["train", "--resume_from", join(scratch, "rm"), "--num_train_steps", "8"]);
    await succeed(rm("rm-lora", ["--lora", "true"]));
    await succeed([
      ...["train", "hh-grpo", "--model", world.policy, "--dataset", world.data, "--num_train_steps", "2"],
      ...[
        "--reward_model_path",
        join(scratch, "rm/checkpoints/final"),
        "--batch_size",
        "2",
        "--group_size",
        "2",
      ],
      ...[
        "--max_prompt_length",
        "40",
        "--max_new_tokens",
        "8",
        "--eval_num_prompts",
        "4",
        "--run_name",
        "grpo",
      ],
      ...places,
    ]);
    const shown = (await check("check_tensorboard.py", [join(logs, "rm")])) as Record<
      string,
      [number, number][]
    >;
    const rows = metrics(join(scratch, "rm"));
    for (const tag of RM_TAGS) {
      const said = rows.filter((row) => row[tag] !== undefined);
      expect(said.length).toBeGreaterThan(2);
      const points = (axis: string): unknown => said.map((row) => [row[axis]!, Math.fround(row[tag]!)]);
      expect<unknown>([tag, shown[tag]]).toEqual([tag, points("step")]);
      expect<unknown>([tag, shown[`${tag}_by_examples`]]).toEqual([tag, points("examples")]);
    }
    const policy = (await check("check_tensorboard.py", [join(logs, "grpo")])) as Record<string, unknown>;
    for (const tag of GRPO_TAGS) expect(Object.keys(policy)).toContain(tag);

    const ids = Array.from({ length: 5 }, (_, i) =>
      Array.from({ length: 6 + 5 * i }, (_, t) => 40 + ((t * 7 + i) % 90)),
    );
    const input = join(scratch, "ids.jsonl");
    writeFileSync(input, ids.map((row) => `${JSON.stringify({ ids: row })}\n`).join(""));
    const models: [string, string | null][] = [
      [join(scratch, "rm/checkpoints/final"), null],
      [world.policy, join(scratch, "rm-lora/checkpoints/final")],
    ];
    for (const [model, adapter] of models) {
      const out = join(scratch, "out.jsonl");
      await succeed([
        ...["score", "--model", model, "--in", input, "--out", out],
        ...(adapter ? ["--adapter", adapter] : []),
      ]);
      const own = readFileSync(out, "utf8").trimEnd().split("\n");
      const theirs = await check(
        "check_reward_model.py",
        adapter ? [model, adapter] : [model],
        readFileSync(input, "utf8"),
      );
      own.forEach((line, i) => {
        const { reward } = JSON.parse(line) as { reward: number };
        expect(Math.abs(reward - (theirs as number[])[i]!)).toBeLessThan(1e-4);
      });
    }
  },
  300_000,
);
