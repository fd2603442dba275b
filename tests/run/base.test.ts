/** What adapters call the model that they are for, and where it is found again. */
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { baseName, resolveModel } from "../../src/recipe/base.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-base-"));
const before = process.env.HF_HUB_CACHE;
afterAll(() => {
  if (before === undefined) delete process.env.HF_HUB_CACHE;
  else process.env.HF_HUB_CACHE = before;
  rmSync(scratch, { recursive: true, force: true });
});

const COMMIT = "0123456789abcdef0123456789abcdef01234567";

test("a model from the hub by its name there, also when its folder in the cache was given", () => {
  process.env.HF_HUB_CACHE = scratch;
  const repo = join(scratch, "models--acme--tiny-1.2");
  const snapshot = join(repo, "snapshots", COMMIT);
  mkdirSync(snapshot, { recursive: true });
  mkdirSync(join(repo, "refs"));
  writeFileSync(join(repo, "refs/main"), COMMIT);
  writeFileSync(join(snapshot, "config.json"), "{}");
  expect(baseName(snapshot)).toBe("acme/tiny-1.2");
  expect(baseName(scratch)).toBe(scratch);
  expect(baseName("acme/nothing-here")).toBe("acme/nothing-here");
  const adapter = join(scratch, "adapter");
  mkdirSync(adapter);
  const config = (base: string) =>
    JSON.stringify({
      peft_type: "LORA",
      r: 4,
      lora_alpha: 8,
      target_modules: ["q_proj"],
      base_model_name_or_path: base,
    });
  writeFileSync(join(adapter, "adapter_config.json"), config("acme/tiny-1.2"));
  expect(resolveModel(adapter, null)).toEqual({ model: snapshot, adapter });
  writeFileSync(join(adapter, "adapter_config.json"), config("acme/other"));
  expect(() => resolveModel(adapter, null)).toThrow(/"acme\/other" is no model folder here/);
});
