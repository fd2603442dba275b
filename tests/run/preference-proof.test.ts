/** A reward model steers a policy to what is preferred, measured where it can be: scripts/preference-proof.ts, short. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { prove, SHORT } from "../../scripts/preference-proof.ts";
import { rlv } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-proof-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

test("pairs teach a reward model, and that one a policy, what is hidden in the pairs", async () => {
  const { accuracy, quantized, before, after } = await prove(scratch, SHORT, async (args) => {
    const { code, err } = await rlv(args);
    if (code !== 0) throw new Error(err);
  });
  expect(accuracy).toBeGreaterThan(0.95);
  expect(quantized.int8).toBeGreaterThanOrEqual(-0.005);
  expect(quantized.int4).toBeGreaterThanOrEqual(-0.02);
  // The preference lies in [0, 1].
  expect(before).toBeLessThan(0.45);
  expect(after - before).toBeGreaterThan(0.5);
}, 600_000);
