/** Command streams by chance to the native devices: tests/native/submit_test.cpp, by the thousand. */
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { Ledger, LONG_LIMIT, long, SEED } from "./ledger.ts";

const program = join(import.meta.dir, "../../build/native-tests/submit_test");
// The native tests of the ordinary suite run it as well, from a fixed seed.
const CASES = long ? 100_000 : 2000;

test.skipIf(!existsSync(program))(
  `streams are refused or run${existsSync(program) ? "" : " (skipped: needs scripts/build-native --tests)"}`,
  async () => {
    const ledger = new Ledger("fuzzed: command streams");
    const seed = SEED;
    const child = Bun.spawn([program, String(CASES), String(seed)], { stdout: "pipe", stderr: "pipe" });
    const [code, out] = await Promise.all([child.exited, new Response(child.stdout).text()]);
    const lost = code === 0 ? null : `ended with ${child.signalCode ?? code}`;
    for (let i = 0; i < CASES; i++) ledger.enter(`seed ${seed}`, i === 0 ? lost : null);
    if (lost === null) expect(out).toContain(`${CASES} streams`);
    ledger.close();
  },
  long ? LONG_LIMIT : 120_000,
);
