import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type AdapterConfig,
  isAdapterFolder,
  openAdapterWeights,
  readAdapterConfig,
  writeAdapterFolder,
} from "../../src/io/peft-folder.ts";
import { openSafetensors, writeSafetensors } from "../../src/io/safetensors.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-peft-folder-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
let serial = 0;
const fresh = () => join(scratch, `adapter-${serial++}`);

const LEAST = { peft_type: "LORA", r: 8, lora_alpha: 16, target_modules: ["q_proj"] };

/** The config of a folder with these keys. */
function configured(keys: Record<string, unknown>): AdapterConfig {
  const folder = fresh();
  mkdirSync(folder);
  writeFileSync(join(folder, "adapter_config.json"), JSON.stringify({ ...LEAST, ...keys }));
  return readAdapterConfig(folder);
}

describe("adapter_config.json", () => {
  test("the least that PEFT reads, with its defaults", () => {
    expect(configured({})).toEqual({
      ...{ taskType: null, base: null, r: 8, alpha: 16, dropout: 0, rslora: false, targets: ["q_proj"] },
      ...{ rankPattern: {}, alphaPattern: {}, modulesToSave: [] },
    });
  });

  test("targets as names, as a regular expression, as all-linear in any case", () => {
    expect(configured({ target_modules: ["a", "b"] }).targets).toEqual(["a", "b"]);
    expect(configured({ target_modules: ".*q_proj" }).targets).toEqual({ pattern: ".*q_proj" });
    expect(configured({ target_modules: "All-Linear" }).targets).toBe("all-linear");
  });

  test("SEQ_CLS trains the value head whole, said or not", () => {
    expect(configured({ task_type: "SEQ_CLS" }).modulesToSave).toEqual(["score"]);
    expect(configured({ modules_to_save: ["classifier", "score"] }).modulesToSave).toEqual(["score"]);
    expect(configured({ task_type: "CAUSAL_LM" }).modulesToSave).toEqual([]);
  });

  test.each([
    ["peft_type", "IA3"],
    ["task_type", "SEQ_2_SEQ_LM"],
    ["use_dora", true],
    ["lora_bias", true],
    ["bias", "all"],
    ["fan_in_fan_out", true],
    ["use_qalora", true],
    ["target_parameters", ["mlp.experts"]],
    ["trainable_token_indices", [1, 2]],
    ["layer_replication", [[0, 2]]],
    ["alora_invocation_tokens", [5]],
    ["exclude_modules", ["lm_head"]],
    ["layers_to_transform", [0]],
    ["loftq_config", { loftq_bits: 4 }],
    ["init_lora_weights", "pissa"],
    ["modules_to_save", ["embed_tokens"]],
    ["something_new", 1],
  ])("%s %p is refused by its name", (key, value) => {
    expect(() => configured({ [key]: value })).toThrow(
      `${key} ${JSON.stringify(value)} is not supported: ${scratch}`,
    );
  });

  test.each([
    ["r", 0, "r is 0"],
    ["r", 1.5, "r is 1.5"],
    ["lora_alpha", "16", 'lora_alpha is "16"'],
    ["lora_dropout", 1, "lora_dropout is 1"],
    ["target_modules", null, "target_modules is null"],
    ["target_modules", [1], "target_modules is [1]"],
    ["rank_pattern", { q_proj: 0 }, "rank_pattern is"],
    ["use_rslora", 1, "use_rslora is 1"],
  ])("%s %p is no value", (key, value, message) => {
    expect(() => configured({ [key]: value })).toThrow(message);
  });

  test("a folder without one, and a broken one", () => {
    expect(() => readAdapterConfig(scratch)).toThrow("no adapter_config.json");
    const folder = fresh();
    mkdirSync(folder);
    writeFileSync(join(folder, "adapter_config.json"), "{");
    expect(() => readAdapterConfig(folder)).toThrow("not JSON");
    writeFileSync(join(folder, "adapter_config.json"), "[]");
    expect(() => readAdapterConfig(folder)).toThrow("not a JSON object");
  });
});

const NAMES = ["base_model.model.m.q_proj.lora_A.weight", "base_model.model.m.q_proj.lora_B.weight"] as const;
const SHAPES = new Map<string, readonly number[]>([
  [NAMES[0], [2, 3]],
  [NAMES[1], [4, 2]],
]);
const values = (n: number) => new Uint8Array(Float32Array.from({ length: n }, (_, i) => i).buffer);

function written(config: Partial<AdapterConfig> = {}): string {
  const folder = fresh();
  const whole: AdapterConfig = {
    ...{ taskType: "CAUSAL_LM", base: "some/model", r: 2, alpha: 4, dropout: 0.05, rslora: true },
    ...{ targets: ["v_proj", "q_proj"], rankPattern: { q_proj: 2 }, alphaPattern: {}, modulesToSave: [] },
    ...config,
  };
  const tensors = [...SHAPES].map(([name, shape]) => ({
    ...{ name, shape, dtype: "F32" as const },
    data: () => values(shape[0]! * shape[1]!),
  }));
  writeAdapterFolder(folder, whole, ["q_proj", "k_proj"], tensors, []);
  return folder;
}

describe("folders", () => {
  test("are read as they were written, and look as PEFT's own", () => {
    const folder = written();
    expect(isAdapterFolder(folder)).toBe(true);
    expect(readAdapterConfig(folder)).toEqual({
      ...{ taskType: "CAUSAL_LM", base: "some/model", r: 2, alpha: 4, dropout: 0.05, rslora: true },
      ...{ targets: ["q_proj", "v_proj"], rankPattern: { q_proj: 2 }, alphaPattern: {}, modulesToSave: [] },
    });
    const path = join(folder, "adapter_model.safetensors");
    expect(statSync(path).mode & 0o777).toBe(0o600);
    using file = openSafetensors(path);
    expect({ ...file.metadata }).toEqual({ format: "pt" });
    const text = readFileSync(join(folder, "adapter_config.json"), "utf8");
    const keys = Object.keys(JSON.parse(text));
    expect(keys).toEqual([...keys].sort());
    expect(text.endsWith("}")).toBe(true);
  });

  test("all-linear is written as names, a pattern as it is, a value head with PEFT's names", () => {
    expect(readAdapterConfig(written({ targets: "all-linear" })).targets).toEqual(["k_proj", "q_proj"]);
    expect(readAdapterConfig(written({ targets: { pattern: ".*q" } })).targets).toEqual({ pattern: ".*q" });
    const head = written({ taskType: "SEQ_CLS", modulesToSave: ["score"] });
    const raw = JSON.parse(readFileSync(join(head, "adapter_config.json"), "utf8"));
    expect(raw.modules_to_save).toEqual(["classifier", "score"]);
  });

  test("a model folder with an adapter beside it is a model folder", () => {
    const folder = written();
    writeFileSync(join(folder, "config.json"), "{}");
    expect(isAdapterFolder(folder)).toBe(false);
  });

  const weightsOf = (tensors: Record<string, { shape: number[]; dtype?: "F32" | "I32" }>) => {
    const folder = fresh();
    mkdirSync(folder);
    writeSafetensors(
      join(folder, "adapter_model.safetensors"),
      Object.entries(tensors).map(([name, { shape, dtype = "F32" }]) => ({
        ...{ name, shape, dtype },
        data: values(shape[0]! * shape[1]!),
      })),
    );
    return folder;
  };
  const [a, b] = NAMES;
  test.each([
    ["a missing tensor", { [a]: { shape: [2, 3] } }, `missing ${b} [4,2]`],
    [
      "a tensor too many",
      { [a]: { shape: [2, 3] }, [b]: { shape: [4, 2] }, "base_model.model.x": { shape: [1, 1] } },
      "unexpected base_model.model.x [1,1]",
    ],
    ["another shape", { [a]: { shape: [2, 5] }, [b]: { shape: [4, 2] } }, `${a} is [2,5], expected [2,3]`],
    [
      "another type",
      { [a]: { shape: [2, 3], dtype: "I32" as const }, [b]: { shape: [4, 2] } },
      `${a} is I32, expected F32, BF16 or F16`,
    ],
  ])("%s is an adapter for another model", (_name, tensors, message) => {
    expect(() => openAdapterWeights(weightsOf(tensors), SHAPES)).toThrow(
      `adapter for another model: ${message}: `,
    );
  });

  test("no weights, or pickled ones", () => {
    const folder = fresh();
    mkdirSync(folder);
    expect(() => openAdapterWeights(folder, SHAPES)).toThrow("get the adapter again");
    writeFileSync(join(folder, "adapter_model.bin"), "");
    expect(() => openAdapterWeights(folder, SHAPES)).toThrow("convert it to safetensors");
    expect(existsSync(join(folder, "adapter_model.safetensors"))).toBe(false);
  });
});
