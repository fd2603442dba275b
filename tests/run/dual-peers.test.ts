/** Retain and forget adapters in peft: runs where RLV_PYTHON names a Python with transformers and peft. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import type { DualLoraOptions } from "../../src/io/dual-folder.ts";
import { initialiseAdapters } from "../../src/nn/adapters.ts";
import { Dtype } from "../../src/ops/define.ts";
import { scoreGroups } from "../../src/rollout/score.ts";
import { merge } from "../../src/run/merge.ts";
import { openModel, saveModel } from "../../src/run/open-model.ts";
import { StepMemory } from "../../src/tape/tape.ts";
import { largest, someTokenizer } from "../golden/support.ts";
import { openTestDevice } from "../test-device.ts";
import { promptOf, Tiny } from "./tiny.ts";

const python = process.env.RLV_PYTHON;
const scratch = mkdtempSync(join(tmpdir(), "rlv-dual-peers-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const sequences = [3, 17, 40].map((n, i) => promptOf(n, 97, i));
const base = join(scratch, "base");
const folder = join(scratch, "dual");
const MODES = { retain: [1, 0], forget: [0, 1], both: [1, 1] } as const;

const lora: DualLoraOptions = {
  retain: { r: 4, alpha: 8, targets: "all-linear" },
  forget: { r: 3, alpha: 9, targets: ["q_proj", "down_proj"], rankPattern: { "0.mlp.down_proj": 5 } },
  base,
};

function prepare(): Map<string, number[][]> {
  using plain = new Tiny("qwen3");
  saveModel(base, plain.model, someTokenizer());
  using tiny = new Tiny("qwen3", { lora, trainable: true });
  initialiseAdapters(tiny.model.adapters!, tiny.model.parameters, 11);
  for (const [i, { name, shape }] of tiny.model.adapters!.list.entries()) {
    const random = new Random(3, Purpose.init, i);
    tiny.model.adapters!.load(
      name,
      Float32Array.from({ length: shape[0]! * shape[1]! }, () => 0.1 * random.normal()),
    );
  }
  saveModel(folder, tiny.model, someTokenizer());
  const out = join(scratch, "split");
  merge({ model: base, adapter: folder, split: true, out, dtype: null }, () => {});
  const merged = join(scratch, "merged");
  merge({ model: base, adapter: folder, out: merged, dtype: null }, () => {});
  const ids = sequences.map((list) => [...list]);
  const jobs = [
    { name: "retain", base, adapter: join(out, "retain"), sequences: ids },
    { name: "forget", base, adapter: join(out, "forget"), sequences: ids },
    { name: "both", base: merged, sequences: ids },
  ];
  const [asked, told] = [join(scratch, "jobs.json"), join(scratch, "results.json")];
  writeFileSync(asked, JSON.stringify(jobs));
  const script = join(import.meta.dir, "../python/check_peft.py");
  const env = { ...process.env, HF_HUB_OFFLINE: "1", OMP_NUM_THREADS: "1", OMP_WAIT_POLICY: "passive" };
  const { exitCode, stderr } = Bun.spawnSync([python!, script, asked, told], { env });
  if (exitCode !== 0) throw new Error(stderr.toString().split("\n").slice(-12).join("\n"));
  const results: { outputs: number[][]; problems: string[] }[] = JSON.parse(readFileSync(told, "utf8"));
  expect(results.flatMap(({ problems }) => problems)).toEqual([]);
  return new Map(jobs.map(({ name }, i) => [name, results[i]!.outputs]));
}

if (!python) test.skip("retain and forget adapters in peft: RLV_PYTHON names no Python", () => {});
else {
  const theirs = prepare();
  describe.each(Object.entries(MODES))("%s", (mode, [retain, forget]) => {
    test("the same outputs here and there", () => {
      const device = openTestDevice(1);
      const memory = new StepMemory(device);
      const options = { dtype: Dtype.f32, trainable: false, maxPositions: 64 };
      const model = openModel(base, device, options, "model", folder);
      const groups = sequences.map((ids) => ({ prompt: ids.slice(0, 1), completions: [ids.slice(1)] }));
      const outputs = () => scoreGroups(memory, model, groups, 1, 4096).logprobs.flat();
      const trained = outputs();
      model.setScales(retain, forget);
      const got = outputs();
      for (const [i, values] of got.entries())
        expect(largest(values, theirs.get(mode)![i]!)).toBeLessThan(1e-4);
      const far = Math.max(...got.map((values, i) => largest(values, trained[i]!)));
      if (mode === "both") expect(far).toBe(0);
      else expect(far).toBeGreaterThan(0.01);
      memory.dispose();
      model.dispose();
      device.close();
    });
  });

  test("peft refuses the folder itself, where it would find nothing of its own", () => {
    const program = `import peft, sys; peft.PeftConfig.from_pretrained(sys.argv[1])`;
    const { exitCode, stderr } = Bun.spawnSync([python!, "-c", program, folder]);
    expect(exitCode).not.toBe(0);
    expect(stderr.toString()).toContain("DUAL_LORA");
  });
}
