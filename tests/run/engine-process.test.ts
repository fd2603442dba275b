import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { resumePoint } from "../../src/run/folder.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-engine-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

function start(mode: string, run: string) {
  return Bun.spawn([process.execPath, join(import.meta.dir, "engine-fixture.ts"), mode, join(scratch, run)], {
    stdout: "pipe",
    stderr: "pipe",
  });
}

const log = (run: string) => readFileSync(join(scratch, run, "train.log"), "utf8");
const checkpoint = (run: string, step: number) => join(scratch, run, "checkpoints", `step-${step}`);

async function until(holds: () => boolean): Promise<void> {
  for (const end = Date.now() + 20_000; !holds(); await Bun.sleep(10))
    if (Date.now() > end) throw new Error("waited in vain");
}

async function outcome(mode: string, run = mode) {
  const parent = start(mode, run);
  const text = await new Response(parent.stdout).text();
  return JSON.parse(text) as { exitCode: number; failure?: string; done?: unknown; lines: string[] };
}

/** Starts a long job and waits until it has its first checkpoint. */
async function running(mode: string, run: string) {
  const parent = start(mode, run);
  await until(() => existsSync(checkpoint(run, 2)));
  return parent;
}

describe("how an engine ends", () => {
  test("done: nothing is lost, terminal and log agree", async () => {
    const { exitCode, done, lines, failure } = await outcome("quick");
    expect([exitCode, failure]).toEqual([0, undefined]);
    expect(done).toMatchObject({ step: 6, metrics: { "eval/reward": 0.9 } });
    const samples = lines.filter((line) => line.startsWith("[Sample @ 6] p\\x1b[2J -> ccc"));
    expect(samples.length).toBe(200);
    expect(log("quick")).toBe(lines.join(""));
    expect(lines.filter((line) => line.startsWith("step ")).map((line) => line.split("  ")[0])).toEqual([
      "step 2/6",
      "step 4/6",
      "step 6/6",
    ]);
  });
  test("bad input found late: its own line, code 2", async () => {
    const { exitCode, failure } = await outcome("usage");
    expect([exitCode, failure]).toEqual([2, "broken line: data.jsonl line 3: mend it"]);
  });
  test("diverged: code 3", async () => {
    expect(await outcome("diverged")).toMatchObject({
      exitCode: 3,
      failure: "loss is NaN: step 3: lower the rate",
    });
  });
  test("a defect: one line, its stack in the log only", async () => {
    const { exitCode, failure, lines } = await outcome("defect");
    expect([exitCode, failure]).toEqual([1, "x is not a function"]);
    expect(lines.join("")).not.toContain("engine-fixture.ts");
    expect(log("defect")).toContain("engine-fixture.ts");
  });
  test("a crash of native code: the signal, the step and the checkpoint to go on from", async () => {
    const { exitCode, failure } = await outcome("segfault");
    expect(exitCode).toBe(1);
    expect(failure).toContain("SIGSEGV after step 3");
    expect(failure).toContain(`--resume_from ${checkpoint("segfault", 2)}`);
  });
  test("an end without a word is a failure", async () => {
    const { exitCode, failure } = await outcome("silent");
    expect([exitCode, failure?.includes("code 7")]).toEqual([1, true]);
  });
});

describe("asked to stop", () => {
  test.each(["SIGINT", "SIGTERM", "SIGUSR1"] as const)(
    "%s: the step is finished and saved, code 130",
    async (signal) => {
      const parent = await running("long", signal);
      parent.kill(signal);
      const { exitCode, failure } = JSON.parse(await new Response(parent.stdout).text());
      expect(exitCode).toBe(130);
      const saved = resumePoint(join(scratch, signal)).checkpoint;
      expect(log(signal)).toContain(`(interrupt): ${saved}`);
      expect(failure).toContain(`--resume_from ${saved}`);
    },
  );
  test("SIGINT twice: at once, without saving", async () => {
    const parent = await running("long", "twice");
    await until(() => log("twice").includes("step 4"));
    // Between the steps of a deaf engine nothing would be saved either: it is the second signal that counts.
    parent.kill("SIGINT");
    parent.kill("SIGINT");
    const { exitCode } = JSON.parse(await new Response(parent.stdout).text());
    expect(exitCode).toBe(130);
  });
  test("SIGINT twice ends an engine that does not listen", async () => {
    const parent = start("deaf", "deaf");
    await until(() => existsSync(join(scratch, "deaf/train.log")));
    parent.kill("SIGINT");
    await Bun.sleep(100);
    parent.kill("SIGINT");
    const since = performance.now();
    const { exitCode, failure } = JSON.parse(await new Response(parent.stdout).text());
    expect(exitCode).toBe(130);
    expect(failure).toContain("without saving");
    expect(performance.now() - since).toBeLessThan(5000);
  });
  test("the parent is killed: the engine saves and ends, and a resume waits for it", async () => {
    const parent = await running("long", "orphan");
    parent.kill("SIGKILL");
    await parent.exited;
    // The engine may still be saving; asking for the newest checkpoint waits until it has ended.
    const newest = resumePoint(join(scratch, "orphan")).checkpoint;
    expect(log("orphan")).toContain(`(interrupt): ${newest}`);
    const steps = readdirSync(join(scratch, "orphan/checkpoints")).map((name) => Number(name.slice(5)));
    expect(newest).toBe(checkpoint("orphan", Math.max(...steps)));
  });
});
