/** A day of training in small: thousands of tiny steps, with checkpoints and evaluations; memory, files and step time stay. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { lockHolders } from "../../src/io/run-lock.ts";
import { metrics, start } from "../run/program.ts";
import { Ledger, LONG_LIMIT, long } from "./ledger.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-soak-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const STEPS = long ? 10_000 : 250;
/** The heap and SQLite's cache breathe, most at first; a leak of 2 kB a step is more than this in the long form. */
const RESIDENT_SLACK = (long ? 20 : 64) * 2 ** 20;

interface Sample {
  readonly step: number;
  readonly resident: number;
  readonly files: number;
}

function sampleOf(pid: number, step: number): Sample | null {
  try {
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    const resident = 1024 * Number(/^VmRSS:\s+(\d+)/m.exec(status)![1]);
    return { step, resident, files: readdirSync(`/proc/${pid}/fd`).length };
  } catch {
    return null;
  }
}

const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[values.length >> 1]!;

test.skipIf(process.platform !== "linux")(
  `${STEPS} steps: memory, open files and time of a step stay${process.platform === "linux" ? "" : " (skipped: needs /proc)"}`,
  async () => {
    const run = join(scratch, "soak");
    const flags = {
      ...{
        num_train_steps: STEPS,
        batch_size: 1,
        group_size: 2,
        max_completion_length: 6,
        learning_rate: 1e-6,
      },
      ...{
        save_every: STEPS / 25,
        keep_checkpoints: 2,
        eval_every: STEPS / 10,
        eval_num_prompts: 4,
        log_every: 50,
      },
      ...{ lr_schedule: "constant", threads: 1, output_dir: scratch, run_name: "soak" },
    };
    const child = start([
      "train",
      ...Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, String(value)]),
    ]);
    const samples: Sample[] = [];
    let step = 0;
    const reader = child.stdout.getReader();
    const decoder = new TextDecoder();
    for (let text = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      text += decoder.decode(value, { stream: true });
      const lines = text.split("\n");
      text = lines.pop()!;
      for (const line of lines) {
        const at = /^step (\d+)\//.exec(line);
        if (at === null) continue;
        step = Number(at[1]);
        const engine = Number.parseInt(lockHolders(run)[1] ?? "", 10);
        const sample = Number.isNaN(engine) ? null : sampleOf(engine, step);
        if (sample !== null) samples.push(sample);
      }
    }
    expect([await new Response(child.stderr).text(), await child.exited]).toEqual(["", 0]);
    const rows = metrics(run).filter((row) => row.step! > 0);
    expect(rows.map((row) => row.step)).toEqual(Array.from({ length: STEPS }, (_, i) => i + 1));
    expect(rows.every((row) => row["train/sampler_logp_diff_max"] === 0)).toBe(true);

    // What the first tenth has is what a run needs: buffers, compiled code, one evaluation and a few checkpoints.
    const settled = samples.filter((each) => each.step <= STEPS / 5);
    const after = samples.filter((each) => each.step > STEPS / 5);
    expect(settled.length).toBeGreaterThan(0);
    expect(after.length).toBeGreaterThan(1);
    const most = (of: (sample: Sample) => number, among: readonly Sample[]) => Math.max(...among.map(of));
    const ledger = new Ledger(`${STEPS} steps in one process`);
    const resident = most((each) => each.resident, after) - most((each) => each.resident, settled);
    const files = most((each) => each.files, after) - most((each) => each.files, settled);
    const times = rows.map((row) => row["train/step_time"]!);
    const third = Math.floor(STEPS / 3);
    const slower = median(times.slice(-third)) / median(times.slice(0, third));
    console.log(
      `resident ${(resident / 2 ** 20).toFixed(1)} MiB more, ${files} files more, step ${slower.toFixed(2)} times the first third's ${(1000 * median(times.slice(0, third))).toFixed(1)} ms`,
    );
    ledger.enter("memory", resident > RESIDENT_SLACK ? `${resident} bytes more` : null);
    ledger.enter("files", files > 1 ? `${files} more open files` : null);
    // Only the long form lasts long enough for what else the machine does to even out.
    ledger.enter("time", long && slower > 1.15 ? `${slower} times slower` : null);
    ledger.close();
  },
  long ? LONG_LIMIT : 120_000,
);
