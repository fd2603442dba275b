/** The system has no memory for the native library: every allocation by itself, and those of whole runs. */
import { afterAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { rlv } from "../run/program.ts";
import { Ledger, LONG_LIMIT, long, ROUNDS, SEED } from "./ledger.ts";
import { Subjects } from "./subjects.ts";

const subjects = new Subjects();
afterAll(() => subjects[Symbol.dispose]());
const random = new Random(SEED, Purpose.data);

const program = join(import.meta.dir, "../../build/native-tests/alloc_test");
const missing = long
  ? existsSync(program)
    ? null
    : "needs scripts/build-native --tests"
  : "the native tests of the suite have it";

test.skipIf(missing !== null)(
  `every native allocation and every thread fails in turn${missing === null ? "" : ` (skipped: ${missing})`}`,
  () => {
    const ledger = new Ledger("a native allocation or thread fails");
    const { exitCode, signalCode, stdout } = Bun.spawnSync([program]);
    const out = stdout.toString();
    const lost = exitCode === 0 ? null : `ended with ${signalCode ?? exitCode}: ${out}`;
    const tried = Number(/(\d+) allocations failed/.exec(out)?.[1] ?? 1);
    for (let i = 0; i < tried; i++) ledger.enter("alloc_test", i === 0 ? lost : null);
    ledger.close();
  },
  600_000,
);

test(
  "a run that gets no native memory says so in one line and goes on later",
  async () => {
    const ledger = new Ledger("a run gets no native memory");
    let told = 0;
    for (let round = 0; round < Math.max(1, 3 * ROUNDS); round++) {
      // Most are made as the first step begins; runs that need fewer end as they should.
      const n = round === 0 ? 12 : 1 + Math.floor(60 * random.uniform());
      const name = `allocation-${round}`;
      const { code, err } = await rlv(await subjects.command("arithmetic", name), {
        BUN_OPTIONS: `--preload ${join(import.meta.dir, "no-memory.ts")}`,
        RLV_TORTURE_ALLOCATION: String(n),
      });
      const failed = code === 1 && /^rlv: error: out of memory: [^\n]*: [^\n]*\n$/.test(err);
      if (failed) told += 1;
      const lost =
        code === 0 || failed ? await subjects.recover("arithmetic", name) : `ended with ${code}: ${err}`;
      ledger.enter(`${name}, allocation ${n}`, lost);
    }
    expect(told).toBeGreaterThan(0);
    ledger.close();
  },
  long ? LONG_LIMIT : 120_000,
);
