import { Database } from "bun:sqlite";
import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { digest, finishRun, killRun, metrics, processesOf, rlv, start } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-resume-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** RLV_KILLS=20 for the long version. */
const KILLS = Number(process.env.RLV_KILLS ?? 3);
const random = new Random(Date.now() >>> 0, Purpose.data);

// Two updates per batch: a checkpoint may fall inside a generation, whose rollouts it must hold.
const job = (name: string) => [
  ...[
    "train",
    "--num_train_steps",
    "30",
    "--num_iterations",
    "2",
    "--save_every",
    "1",
    "--keep_checkpoints",
    "2",
  ],
  ...["--loss_type", "grpo", "--scale_rewards", "group", "--eval_every", "10", "--eval_num_prompts", "16"],
  ...["--batch_size", "4", "--group_size", "8", "--output_dir", scratch, "--run_name", name],
];

let whole: Record<string, string> | undefined;
async function unbroken(): Promise<Record<string, string>> {
  if (!whole) {
    const { code, err } = await rlv(job("whole"));
    expect([err, code]).toEqual(["", 0]);
    whole = digest(join(scratch, "whole/checkpoints/final"));
  }
  return whole;
}

/** Nothing twice, nothing missing. */
function checkRecords(run: string): void {
  expect(metrics(run).map((r) => r.step)).toEqual(Array.from({ length: 31 }, (_, i) => i));
  const db = new Database(join(run, "rollouts.sqlite"), { readonly: true });
  expect(db.query("select count(*) as n from rollouts").get()).toEqual({ n: 15 * 32 });
  expect(db.query("select count(*) as n from eval_rollouts").get()).toEqual({ n: 4 * 32 });
  db.close();
}

test(`killed at ${KILLS} random moments and resumed: the bytes of the unbroken run`, async () => {
  const want = await unbroken();
  for (let kill = 0; kill < KILLS; kill++) {
    const name = `kill-${kill}`;
    const run = join(scratch, name);
    const child = start(job(name));
    // Anywhere from before the run folder exists to near the end; a run may be killed twice.
    await Bun.sleep(150 + random.below(2600));
    await killRun(child, run);
    const ended = await finishRun(run, job(name));
    if (ended === null) continue;
    expect([ended.err, ended.code]).toEqual(["", 0]);
    expect(digest(join(run, "checkpoints/final"))).toEqual(want);
    checkRecords(run);
    expect(readdirSync(join(run, "checkpoints")).filter((n) => n.startsWith(".tmp-"))).toEqual([]);
  }
}, 600_000);

test("Ctrl-C: the step is finished and saved, 130, and the run goes on from there", async () => {
  const want = await unbroken();
  const run = join(scratch, "interrupted");
  const child = start(job("interrupted"));
  while (!existsSync(join(run, "checkpoints/step-3"))) await Bun.sleep(20);
  for (const pid of processesOf(run).slice(0, 1)) process.kill(pid, "SIGINT");
  process.kill(-child.pid, "SIGINT");
  await child.exited;
  const { code, err } = await rlv(["train", "--resume_from", run]);
  expect([err, code]).toEqual(["", 0]);
  expect(digest(join(run, "checkpoints/final"))).toEqual(want);
  checkRecords(run);
}, 60_000);

test.each([
  ["bfloat16", "bfloat16"],
  ["bfloat16", "8bit"],
  ["float32", "bfloat16"],
  ["float32", "8bit"],
])(
  "%s with %s moments: matrices, norms and moments resume to the same bits",
  async (dtype, moments) => {
    const args = (name: string, steps: number) => [
      ...["train", "--dtype", dtype, "--optimizer_dtype", moments, "--num_train_steps", String(steps)],
      ...["--batch_size", "4", "--group_size", "4", "--eval_every", "-1", "--learning_rate", "1e-3"],
      ...["--lr_schedule", "constant", "--output_dir", scratch, "--run_name", name],
    ];
    const names = [`${dtype}-${moments}`, `${dtype}-${moments}-part`] as const;
    expect((await rlv(args(names[0], 8))).err).toBe("");
    expect((await rlv(args(names[1], 4))).err).toBe("");
    const more = await rlv(["train", "--resume_from", join(scratch, names[1]), "--num_train_steps", "8"]);
    expect([more.err, more.code]).toEqual(["", 0]);
    const [whole, part] = names.map((name) => digest(join(scratch, name, "checkpoints/final")));
    for (const name of ["model.safetensors", "optimizer.safetensors", "train_state.json"]) {
      expect(part![name]).toBe(whole![name]!);
    }
  },
  60_000,
);
