/** Runs the examples of docs/api.md as programs of a user's. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Transformer } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { initialise, saveModel } from "../../src/run/open-model.ts";
import { rewardSource } from "../../src/run/reward-model.ts";
import { openTestDevice } from "../test-device.ts";

const root = resolve(import.meta.dir, "../..");
const text = readFileSync(join(root, "docs/api.md"), "utf8");
const examples = [...text.matchAll(/```ts\n([\s\S]*?)```/g)].map((match) => match[1]!);
const titles = [...text.matchAll(/^##+ (.*)$/gm)].map((match) => ({ title: match[1]!, at: match.index }));

// Inside the package, so that "rlv" is this checkout; elsewhere the working folder, as a user's.
const scripts = join(root, `build/api-docs-${process.pid}`);
const scratch = mkdtempSync(join(tmpdir(), "rlv-api-"));
afterAll(() => {
  for (const dir of [scripts, scratch]) rmSync(dir, { recursive: true, force: true });
});

beforeAll(() => {
  mkdirSync(scripts, { recursive: true });
  const device = openTestDevice(1);
  const source = rewardSource(join(root, "src/recipe/arithmetic/model"), 1);
  const options = { dtype: Dtype.f32, trainable: false, maxPositions: 16 } as const;
  const model = new Transformer(device, source.config, options);
  initialise(model, 3);
  saveModel(join(scratch, "reward-model"), model, source.tokenizer);
  model.dispose();
  device.close();
});

describe("docs/api.md", () => {
  expect(examples.length).toBeGreaterThanOrEqual(7);
  for (const [i, code] of examples.entries()) {
    const at = text.indexOf(code);
    const title = titles.findLast((each) => each.at < at)!.title;
    test(`${title}: runs, and prints what it says`, async () => {
      const file = join(scripts, `example-${i}.ts`);
      writeFileSync(file, code);
      const child = Bun.spawn([process.execPath, file], {
        cwd: scratch,
        stdout: "pipe",
        stderr: "pipe",
        env: { ...process.env, NO_COLOR: "1" },
      });
      const [out, err] = await Promise.all([
        new Response(child.stdout).text(),
        new Response(child.stderr).text(),
      ]);
      const expected = [...code.matchAll(/^\/\/ → (.*)$/gm)].map((match) => `${match[1]}\n`).join("");
      expect(expected).not.toBe("");
      expect([out, err, await child.exited]).toEqual([expected, "", 0]);
    });
  }
});

test("every public name is documented", () => {
  const index = readFileSync(join(root, "src/index.ts"), "utf8");
  const functions = [...index.matchAll(/export async function (\w+)/g)].map((match) => match[1]!);
  expect(functions).toEqual(["openModel", "openRewardModel"]);
  for (const name of [...functions, "generate", "logprobs", "logprobsOfMany", "prompt", "score", "tokenizer"])
    expect(text).toContain(name);
});
