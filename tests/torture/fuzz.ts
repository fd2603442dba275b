/**
 * Cases by the thousand in a process of their own: one that hangs, crashes or takes all memory is seen from outside, with
 * the seed and number that bring it back.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { memoryOf } from "../../src/reward/sandbox.ts";
import { Ledger, long, SEED } from "./ledger.ts";

/** Cases of the long form, of each subject. */
const LONG_CASES = Number(process.env.RLV_TORTURE_CASES ?? 100_000);
/** Seconds without a finished case after which one hangs. */
const HANG_SECONDS = 20;
const MEMORY = 1.5 * 2 ** 30;

export interface Lost {
  readonly what: string;
  readonly why: string;
}

/** What the process writes on its standard output, a line each. */
export interface Said {
  readonly tried: number;
  readonly lost: readonly Lost[];
}

/** Runs `program SUBJECT CASES SEED` and enters what it found. */
export async function fuzz(program: string, subject: string, short: number): Promise<void> {
  const ledger = new Ledger(`fuzzed: ${subject}`);
  const seed = SEED;
  const scratch = mkdtempSync(join(tmpdir(), "rlv-fuzz-"));
  const progress = join(scratch, "progress");
  const cases = long ? LONG_CASES : short;
  const child = Bun.spawn([process.execPath, program, subject, String(cases), String(seed)], {
    env: { ...process.env, TMPDIR: scratch, RLV_FUZZ_PROGRESS: progress },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = [new Response(child.stdout).text(), new Response(child.stderr).text()];
  let last = "";
  let since = performance.now();
  let hang = false;
  let swollen = false;
  const watch = setInterval(() => {
    const now = readProgress(progress);
    if (now !== last) [last, since] = [now, performance.now()];
    hang = performance.now() - since > 1000 * HANG_SECONDS;
    // Before it takes what others on this machine need.
    swollen = memoryOf(child.pid) > 2 * MEMORY;
    if (hang || swollen) child.kill("SIGKILL");
  }, 500);
  const code = await child.exited;
  clearInterval(watch);
  const at = `seed ${seed}, case ${readProgress(progress)}`;
  if (swollen) ledger.enter(at, `it took ${2 * MEMORY} bytes`);
  else if (hang) ledger.enter(at, `it hangs for ${HANG_SECONDS} s`);
  else if (code !== 0) ledger.enter(at, `it ended with ${child.signalCode ?? code}: ${await err}`);
  else {
    const said = JSON.parse(await out) as Said;
    for (const { what, why } of said.lost) ledger.enter(`seed ${seed}: ${what}`, why);
    for (let i = said.lost.length; i < said.tried; i++) ledger.enter("", null);
    const peak = child.resourceUsage()!.maxRSS;
    if (peak > MEMORY) ledger.enter(`seed ${seed}`, `it took ${peak} bytes`);
  }
  rmSync(scratch, { recursive: true, force: true });
  ledger.close();
}

function readProgress(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "none";
  }
}
