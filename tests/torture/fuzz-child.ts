/** The process that `fuzz` starts: counts cases, and keeps what is lost. */
import { openSync, writeSync } from "node:fs";
import fc from "fast-check";
import { Bug, RlvError } from "../../src/core/errors.ts";
import type { Lost, Said } from "./fuzz.ts";

/** Milliseconds of processor time that one case may take. */
const LIMIT = 2000;
const MOST_LOST = 20;
/** Characters of an error: paths and a few values. */
const LONGEST = 1000;

/** An error that a user can be told, or what is wrong with it. */
export function faultOf(error: unknown): string | null {
  if (error instanceof RlvError && !(error instanceof Bug)) {
    if (error.message.includes("\n")) return `more than one line: ${error.message}`;
    return error.message.length > LONGEST ? `a line of ${error.message.length} characters` : null;
  }
  return error instanceof Error
    ? `${error.name}: ${error.stack ?? error.message}`
    : `thrown: ${String(error)}`;
}

/** Makes `cases` cases by `arbitrary` and gives them to `body`, which throws what is to be judged. */
export async function runCases<T>(
  arbitrary: fc.Arbitrary<T>,
  cases: number,
  seed: number,
  body: (value: T) => void | Promise<void>,
  milliseconds = LIMIT,
): Promise<never> {
  const progress = openSync(process.env.RLV_FUZZ_PROGRESS!, "w");
  const lost: Lost[] = [];
  const kinds = new Set<string>();
  let tried = 0;
  for (let block = 0; tried < cases && lost.length < MOST_LOST; block++) {
    // What counts is the memory of a case, not what the collector has not yet looked at.
    Bun.gc(true);
    for (const value of fc.sample(arbitrary, { numRuns: Math.min(200, cases - tried), seed: seed + block })) {
      writeSync(progress, `${tried} (block ${block})\n`, 0);
      tried += 1;
      const since = process.cpuUsage();
      let why: string | null = null;
      try {
        await body(value);
      } catch (error) {
        why = faultOf(error);
      }
      const spent = process.cpuUsage(since);
      const took = (spent.user + spent.system) / 1000;
      if (why === null && took > milliseconds) why = `took ${took.toFixed(0)} ms`;
      const kind = why?.replace(/\d+/g, "N").slice(0, 120);
      if (why === null || kinds.has(kind!)) continue;
      kinds.add(kind!);
      lost.push({ what: fc.stringify(value).slice(0, 3000), why: why.slice(0, 1500) });
    }
  }
  const said: Said = { tried, lost };
  process.stdout.write(JSON.stringify(said));
  process.exit(0);
}
