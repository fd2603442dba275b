/** Folders of retain and forget adapters: what is kept, how they are recognised, opened, merged and divided. */
import { afterAll, describe, expect, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { baseOf, resolveTrain } from "../../src/config/resolve.ts";
import { Purpose, Random } from "../../src/core/rng.ts";
import { type DualLoraOptions, dualRanks, isDualFolder, readDualConfig } from "../../src/io/dual-folder.ts";
import { isAdapterFolder } from "../../src/io/peft-folder.ts";
import { openSafetensors, writeSafetensors } from "../../src/io/safetensors.ts";
import { initialiseAdapters } from "../../src/nn/adapters.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import type { Transformer } from "../../src/nn/transformer.ts";
import { Dtype, type DtypeCode } from "../../src/ops/define.ts";
import { resolveBuiltin } from "../../src/recipe/builtin.ts";
import { dualRun } from "../../src/recipe/dual.ts";
import type { TrainSettings } from "../../src/recipe/settings.ts";
import { folderSource, openTrained } from "../../src/recipe/setup.ts";
import { scoreGroups } from "../../src/rollout/score.ts";
import {
  loadGeneration,
  loadOptimizer,
  readTrainState,
  saveCheckpoint,
  saveGeneration,
} from "../../src/run/checkpoint.ts";
import { merge } from "../../src/run/merge.ts";
import {
  loadAdapters,
  openModel,
  readAdapterOptions,
  saveModel,
  scalesOf,
} from "../../src/run/open-model.ts";
import type { PolicyStep } from "../../src/run/policy-step.ts";
import { ALONE } from "../../src/run/ranks.ts";
import { Reference } from "../../src/run/reference.ts";
import type { RunControl } from "../../src/run/reporter.ts";
import { StepMemory } from "../../src/tape/tape.ts";
import { largest, Opened, someTokenizer } from "../golden/support.ts";
import { openTestDevice } from "../test-device.ts";
import { rlv } from "./program.ts";
import { promptOf } from "./tiny.ts";
import { tinyPolicyStep, tinyPrompts } from "./tiny-policy.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-dual-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
let serial = 0;
const fresh = () => join(scratch, `${serial++}`);

const base = resolveBuiltin("builtin:arithmetic");
const dual: DualLoraOptions = {
  retain: { r: 4, alpha: 8, targets: "all-linear" },
  forget: {
    r: 3,
    alpha: 16,
    targets: ["q_proj", "v_proj", "up_proj"],
    rslora: true,
    rankPattern: { v_proj: 2 },
  },
  base: "builtin:arithmetic",
};
const WEIGHTS = "adapter_model.safetensors";
const CONFIG = "adapter_config.json";
const prompt = "What is 2 + 3? Answer with an integer.";

function moved(model: Transformer): void {
  initialiseAdapters(model.adapters!, model.parameters, 11);
  for (const [i, { name, shape }] of model.adapters!.list.entries()) {
    if (!name.endsWith("lora_B.weight")) continue;
    const random = new Random(3, Purpose.init, i);
    model.adapters!.load(
      name,
      Float32Array.from({ length: shape[0]! * shape[1]! }, () => 0.1 * random.normal()),
    );
  }
}

/** A dual folder of random adapters of the model that ships. */
function made(dtype: DtypeCode = Dtype.f32): { folder: string; values: number[][] } {
  const folder = fresh();
  using opened = new Opened(base, { lora: dual, dtype });
  moved(opened.model);
  saveModel(folder, opened.model, someTokenizer());
  return { folder, values: valuesOf(opened.model) };
}
const valuesOf = (model: Transformer) =>
  model.adapters!.list.map(({ name }) => [...model.adapters!.readRounded(name)]);

function logprobs({ memory, model }: { memory: StepMemory; model: Transformer }): Float32Array {
  const groups = [9, 20].map((n, i) => ({
    prompt: promptOf(n, model.config.vocabSize, i),
    completions: [promptOf(12, model.config.vocabSize, 5 + i)],
  }));
  return Float32Array.from(
    scoreGroups(memory, model, groups, 1, 4096)
      .logprobs.flat(2)
      .flatMap((l) => [...l]),
  );
}

class WithAdapter implements Disposable {
  readonly device = openTestDevice(2);
  readonly memory = new StepMemory(this.device);
  readonly model: Transformer;
  constructor(adapter: string | null, dtype: DtypeCode = Dtype.f32, folder = base) {
    this.model = openModel(
      folder,
      this.device,
      { dtype, trainable: false, maxPositions: 128 },
      "model",
      adapter,
    );
  }
  [Symbol.dispose](): void {
    this.memory.dispose();
    this.model.dispose();
    this.device.close();
  }
}

describe("a folder", () => {
  test.each([Dtype.f32, Dtype.bf16])("gives back what was kept, dtype %p", (dtype) => {
    const { folder, values } = made(dtype);
    using opened = new WithAdapter(folder, dtype);
    expect(opened.model.dual).toBe(true);
    expect(valuesOf(opened.model)).toEqual(values);
    const { retain, forget, base: named } = readDualConfig(folder);
    expect(retain).toMatchObject({ r: 4, alpha: 8, rslora: false });
    expect(forget).toMatchObject({ r: 3, alpha: 16, rslora: true, targets: ["q_proj", "up_proj", "v_proj"] });
    expect(named).toBe("builtin:arithmetic");
    expect(existsSync(join(folder, "tokenizer.json"))).toBe(true);
  });

  test("is recognised, and its ranks read, from the tensors alone; their file says how they are scaled", () => {
    const { folder, values } = made();
    const bare = fresh();
    mkdirSync(bare);
    copyFileSync(join(folder, WEIGHTS), join(bare, WEIGHTS));
    expect(isDualFolder(bare) && isAdapterFolder(bare)).toBe(true);
    using file = openSafetensors(join(bare, WEIGHTS));
    const { retain, forget } = dualRanks(file.tensors)!;
    using opened = new WithAdapter(bare);
    const layers = opened.model.config.numLayers;
    expect([retain.size, new Set(retain.values())]).toEqual([7 * layers, new Set([4])]);
    expect([forget.size, new Set(forget.values())]).toEqual([3 * layers, new Set([3, 2])]);
    expect(forget.get("model.layers.0.self_attn.v_proj")).toBe(2);
    expect(valuesOf(opened.model)).toEqual(values);

    const silent = fresh();
    mkdirSync(silent);
    writeSafetensors(
      join(silent, WEIGHTS),
      [...file.tensors].map(([name, { dtype, shape }]) => ({
        name,
        dtype,
        shape,
        data: () => file.read(name),
      })),
    );
    expect(isDualFolder(silent)).toBe(true);
    expect(() => new WithAdapter(silent)).toThrow("do not say how they are scaled");
  });

  test("of something else, or that lacks a tensor, is refused", () => {
    const { folder } = made();
    const text = readFileSync(join(folder, CONFIG), "utf8");
    const changed = (keys: object, retain: object = {}) => {
      const raw = JSON.parse(text);
      const copy = fresh();
      mkdirSync(copy);
      copyFileSync(join(folder, WEIGHTS), join(copy, WEIGHTS));
      writeFileSync(
        join(copy, CONFIG),
        JSON.stringify({ ...raw, retain: { ...raw.retain, ...retain }, ...keys }),
      );
      return () => new WithAdapter(copy);
    };
    expect(changed({ peft_type: "LORA" })).toThrow('peft_type "LORA" beside retain and forget');
    expect(changed({ task_type: "SEQ_CLS" })).toThrow("task_type");
    expect(changed({ forget: undefined })).toThrow("forget is missing");
    expect(changed({ use_dora: true })).toThrow("use_dora");
    expect(changed({}, { use_dora: true })).toThrow("use_dora");
    expect(changed({}, { r: 5 })).toThrow("expected [5,");
    expect(changed({}, { target_modules: ["q_proj"] })).toThrow("unexpected base_model");
    writeFileSync(join(folder, CONFIG), "{");
    expect(() => new WithAdapter(folder)).toThrow("not JSON");
  });
});

describe("merging", () => {
  test.each([
    [null, [1, 1]],
    ["1,0", [1, 0]],
    ["0.5,-2", [0.5, -2]],
    ["0,0", [0, 0]],
  ] as const)("with scales %p is the model with them", (flag, [retain, forget]) => {
    const { folder } = made();
    const out = fresh();
    merge({ model: base, adapter: folder, adapter_scales: flag, out, dtype: "float32" }, () => {});
    using merged = new WithAdapter(null, Dtype.f32, out);
    using opened = new WithAdapter(folder);
    opened.model.setScales(retain, forget);
    expect(largest(logprobs(merged), logprobs(opened))).toBeLessThan(2e-4);
    if (flag !== "0,0") return;
    using plain = new WithAdapter(null);
    expect([...logprobs(merged)]).toEqual([...logprobs(plain)]);
  });

  test.each([Dtype.f32, Dtype.bf16])("split into two PEFT adapters, dtype %p", (dtype) => {
    const { folder } = made(dtype);
    const out = fresh();
    merge({ model: base, adapter: folder, split: true, out, dtype: null }, () => {});
    using opened = new WithAdapter(folder, dtype);
    for (const [side, scales] of [
      ["retain", [1, 0]],
      ["forget", [0, 1]],
    ] as const) {
      expect(isDualFolder(join(out, side))).toBe(false);
      using single = new WithAdapter(join(out, side), dtype);
      opened.model.setScales(scales[0], scales[1]);
      const far = largest(logprobs(single), logprobs(opened));
      if (side === "retain") expect(far).toBe(0);
      expect(far).toBeLessThan(dtype === Dtype.f32 ? 1e-5 : 0.05);
    }
  });

  test("refuses scales of a single adapter, and scales that are none", () => {
    const { folder } = made();
    const out = fresh();
    merge({ model: base, adapter: folder, split: true, out, dtype: null }, () => {});
    const again = (more: object) => () =>
      merge({ model: base, adapter: join(out, "retain"), out: fresh(), dtype: null, ...more }, () => {});
    expect(again({ adapter_scales: "1,0" })).toThrow("one adapter, not retain and forget");
    expect(again({ split: true })).toThrow("one adapter, not retain and forget");
    for (const bad of ["1", "1,2,3", "a,b", "1,", "1,Infinity"])
      expect(() => scalesOf(bad)).toThrow("two numbers");
    expect(scalesOf(" 1, 0.5")).toEqual([1, 0.5]);
  });
});

describe("commands", () => {
  const lines = `${JSON.stringify({ prompt, completion: " 5" })}\n`;
  const scored = async (args: readonly string[]): Promise<number[]> => {
    const [input, out] = [`${fresh()}.jsonl`, `${fresh()}.jsonl`];
    writeFileSync(input, lines);
    const { code, err } = await rlv(["logprob", "--in", input, "--out", out, ...args]);
    expect(err).not.toContain("error");
    expect(code).toBe(0);
    return JSON.parse(readFileSync(out, "utf8")).logprobs;
  };

  test("logprob opens a folder as --model and as --adapter, with scales", async () => {
    const { folder } = made();
    const named = ["--model", "builtin:arithmetic", "--adapter", folder];
    const both = await scored(named);
    expect(await scored(["--model", folder])).toEqual(both);
    expect(await scored([...named, "--adapter_scales", "1,1"])).toEqual(both);
    expect(await scored([...named, "--adapter_scales", "1,0"])).not.toEqual(both);
    expect(await scored([...named, "--adapter_scales", "0,0"])).toEqual(
      await scored(["--model", "builtin:arithmetic"]),
    );
    const bad = await rlv([
      ...["logprob", "--in", join(folder, CONFIG), "--out", fresh(), ...named],
      ...["--adapter_scales", "1"],
    ]);
    expect(bad.code).toBe(2);
  });

  test("merge writes a model, or two adapters", async () => {
    const { folder } = made();
    const [out, parts] = [fresh(), fresh()];
    expect((await rlv(["merge", "--model", folder, "--scales", "1,0", "--out", out])).code).toBe(0);
    expect(existsSync(join(out, "model.safetensors"))).toBe(true);
    const split = await rlv(["merge", "--model", folder, "--split", "true", "--out", parts]);
    expect([split.code, existsSync(join(parts, "forget", CONFIG))]).toEqual([0, true]);
    const named = ["--model", "builtin:arithmetic", "--adapter"];
    expect(await scored([...named, join(parts, "retain")])).toEqual(
      await scored([...named, folder, "--adapter_scales", "1,0"]),
    );
  });
});

/** A routed run of `steps`, from a checkpoint if one is named; it leaves one. */
async function train(from: string | null, steps: number, dtype: DtypeCode) {
  using opened = new Opened(base, { lora: dual, dtype });
  const { model, memory } = opened;
  moved(model);
  const state = from === null ? null : readTrainState(from);
  const optimizer = new AdamW(model.trained, {
    ...{ beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01, maxGradNorm: 1, seed: 1 },
  });
  if (from !== null) {
    loadAdapters(model, from);
    loadOptimizer(from, model);
  }
  const step: PolicyStep = tinyPolicyStep(memory, model, Reference.kept(model.base, false), {
    options: { routing: "classic", numIterations: 2 },
    flagged: (i) => i % 3 === 0,
    optimizer,
  });
  const prompts = tinyPrompts(model.config.vocabSize);
  const done = state?.step ?? 0;
  if (state?.generation)
    step.restore(state.generation.step, state.generation.plan, loadGeneration(state.generation, prompts));
  const rates: number[] = [];
  for (let i = done + 1; i <= done + steps; i++) {
    if (i > step.lastStep) await step.generate(i, prompts);
    rates.push((await step.update(i, 1e-2))["train/rh_rate"]!);
  }
  const at = done + steps;
  const saved = saveCheckpoint(
    scratch,
    `step-${serial++}`,
    model,
    someTokenizer(),
    {
      ...{ step: at, recipe: "stories", initial_sha256: "", cursor: { position: 0, examples: 0 } },
      generation: at < step.lastStep ? saveGeneration(step.generation!, 0) : null,
    },
    "{}",
  );
  step.dispose();
  const weights = readFileSync(join(saved, WEIGHTS)).toString("hex");
  return {
    saved,
    rates,
    weights,
    optimizer: readFileSync(join(saved, "optimizer.safetensors")).toString("hex"),
  };
}

test.each([Dtype.f32, Dtype.bf16])(
  "a run resumed inside a generation, labels and all, leaves the bytes of the unbroken one: dtype %p",
  async (dtype) => {
    const whole = await train(null, 5, dtype);
    const first = await train(null, 3, dtype);
    const second = await train(first.saved, 2, dtype);
    expect(second.rates).toEqual(whole.rates.slice(3));
    expect(second.rates[0]).toBeCloseTo(1 / 3, 10);
    expect(second.weights).toBe(whole.weights);
    expect(second.optimizer).toBe(whole.optimizer);
  },
);

test("a job opens with retain and forget adapters, fresh and from a checkpoint, the reference without them", () => {
  const defaults = { target: "arithmetic", configFile: undefined, checkpoint: undefined };
  const config = resolveTrain(baseOf(defaults), new Map()) as unknown as TrainSettings;
  const control = (resumeFrom: string | null): RunControl => ({
    stopRequested: () => "none",
    ranks: ALONE,
    signal: new AbortController().signal,
    runDir: scratch,
    resumeFrom,
    checkpointConfig: "{}",
  });
  const source = folderSource(base, "builtin:arithmetic");
  const open = (resumeFrom: string | null) =>
    openTrained(openTestDevice(2), source, config, control(resumeFrom), {
      ...{ maxPositions: 128, reference: true, dual },
    });
  const fresh = open(null);
  expect(fresh.lines.join()).toContain("retain and forget adapters: ");
  expect(fresh.lines.join()).toContain("retain on 28 linear maps, rank 4, scale 2; forget on 12, rank 3, 2");
  const memory = new StepMemory(fresh.device);
  const [policy, reference] = [
    logprobs({ memory, model: fresh.model }),
    fresh.reference!.use((model) => logprobs({ memory, model: model as Transformer })),
  ];
  // B is zero at first.
  expect([...reference]).toEqual([...policy]);
  moved(fresh.model);
  expect([...fresh.reference!.use((model) => logprobs({ memory, model: model as Transformer }))]).toEqual([
    ...reference,
  ]);
  const values = valuesOf(fresh.model);
  const { initial_sha256 } = fresh.state;
  const saved = saveCheckpoint(
    scratch,
    "opened",
    fresh.model,
    fresh.tokenizer,
    { step: 1, recipe: "arithmetic", initial_sha256, cursor: { position: 0, examples: 0 }, generation: null },
    "{}",
  );
  memory.dispose();
  fresh.dispose();
  const again = open(saved);
  expect(valuesOf(again.model)).toEqual(values);
  expect(readDualConfig(saved).base).toBe(again.model.options.lora!.base!);
  again.dispose();
});

test("a checkpoint with other adapters than the settings say is refused", () => {
  const { folder } = made();
  using opened = new WithAdapter(null);
  const { config } = opened.model;
  expect(dualRun(dual, config, "here", folder)).toMatchObject({ folder, options: { base: "here" } });
  expect(dualRun(dual, config, "here", null).folder).toBeNull();
  const other = { ...dual, retain: { ...dual.retain, alpha: 9 } };
  expect(() => dualRun(other, config, "here", folder)).toThrow("other ranks, scales or modules");
  expect(() => dualRun(dual, config, "here", scratch)).toThrow("without retain and forget adapters");
  expect(readAdapterOptions(folder, config)).toMatchObject({ retain: { r: 4 }, forget: { r: 3 } });
});
