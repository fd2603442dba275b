import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Random } from "../../src/core/rng.ts";
import { blockScales, encode4, encode8, nestScales, roundTrip } from "../../src/io/bitsandbytes.ts";
import {
  checkWeights,
  type ModelConfig,
  openWeights,
  readModelConfig,
  rewardConfigOf,
  writeQuantizedFolder,
} from "../../src/io/hf-folder.ts";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import { type Quantization, schemeOf } from "../../src/nn/quantized.ts";
import type { Transformer } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { resolveBuiltin } from "../../src/recipe/builtin.ts";
import { scoreGroups } from "../../src/rollout/score.ts";
import { DivergenceMeans, divergences, rowDivergence } from "../../src/run/divergence.ts";
import { saveModel } from "../../src/run/open-model.ts";
import { type QuantizeSettings, quantize, rewardFigures } from "../../src/run/quantize.ts";
import type { StepMemory } from "../../src/tape/tape.ts";
import { largest } from "../golden/support.ts";
import { testDeviceName } from "../test-device.ts";
import {
  configOf,
  makeFolder as makeFolderAt,
  Opened,
  outputs as outputsOf,
  type StoredType,
  sequences,
} from "./quantize-fixture.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-quantize-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const makeFolder = (name: string, config: ModelConfig, dtype: StoredType) =>
  makeFolderAt(join(scratch, name), config, dtype);
const bitsOf = (values: readonly Float32Array[]) => values.map((v) => [...new Uint32Array(v.slice().buffer)]);
const outputs = (memory: StepMemory, model: Transformer) => bitsOf(outputsOf(memory, model));

const quantizations: readonly Quantization[] = [
  { type: "int8", head: false },
  { type: "nf4", head: false, double: true },
  { type: "nf4", head: false, double: false },
];
const kinds = ["causal", "reward"] as const;
const stored: readonly StoredType[] = ["float32", "bfloat16", "float16"];
const cases = quantizations.flatMap((q) =>
  kinds.flatMap((kind) => stored.map((dtype) => [`${q.type} ${q.double ?? ""}`, kind, dtype, q] as const)),
);

describe("quantize, save, open", () => {
  test.each(cases)(
    "%s, %s stored as %s: the bits of quantizing at load",
    (name, kind, dtype, quantization) => {
      const config = configOf(kind);
      const folder = makeFolder(`plain-${name}-${kind}-${dtype}`, config, dtype);
      const out = join(scratch, `saved-${name}-${kind}-${dtype}`);
      {
        using weights = openWeights(folder);
        writeQuantizedFolder(out, readModelConfig(folder), weights, schemeOf(quantization), []);
      }
      for (const compute of [Dtype.f32, Dtype.bf16]) {
        using opened = new Opened();
        const plain = outputs(opened.memory, opened.open(folder, { dtype: compute }));
        const atLoad = outputs(opened.memory, opened.open(folder, { dtype: compute, quantization }));
        const saved = opened.open(out, { dtype: compute });
        expect(outputs(opened.memory, saved)).toEqual(atLoad);
        expect(atLoad).not.toEqual(plain);
        expect(saved.quantizationNote).toBeNull();
        // The same type may be asked for again, another one not.
        expect(outputs(opened.memory, opened.open(out, { dtype: compute, quantization }))).toEqual(atLoad);
        const other = quantization.type === "int8" ? "nf4" : "int8";
        expect(() => opened.open(out, { quantization: { type: other, head: false } })).toThrow(
          `a model quantized to ${quantization.type} is not quantized to ${other}`,
        );
      }
    },
  );

  test("rows that are no whole blocks: dequantized, said, and the same values either way", () => {
    const config = configOf("causal", { intermediate_size: 88 });
    const folder = makeFolder("straddling", config, "float32");
    const out = join(scratch, "straddling-nf4");
    const quantization = { type: "nf4", head: false } as const;
    {
      using weights = openWeights(folder);
      writeQuantizedFolder(out, readModelConfig(folder), weights, schemeOf(quantization), []);
    }
    using opened = new Opened();
    const atLoad = opened.open(folder, { quantization });
    const saved = opened.open(out);
    expect(outputs(opened.memory, saved)).toEqual(outputs(opened.memory, atLoad));
    for (const model of [atLoad, saved])
      expect(model.quantizationNote).toStartWith(
        "2 of 14 quantized matrices (nf4) lie dequantized in memory",
      );
    const name = "model.layers.0.mlp.down_proj.weight";
    const values = opened.open(folder).parameters.read(name);
    expect(saved.parameters.read(name)).toEqual(roundTrip(values, 88, schemeOf(quantization)));
  });

  test("a quantized model is no base of full training, and one of adapters", () => {
    const folder = makeFolder("for-lora", configOf("causal"), "float32");
    const out = join(scratch, "for-lora-nf4");
    {
      using weights = openWeights(folder);
      writeQuantizedFolder(out, readModelConfig(folder), weights, { type: "nf4", double: true }, []);
    }
    using opened = new Opened();
    expect(() => opened.open(out, { trainable: true })).toThrow("quantized weights cannot be trained");
    const lora = { r: 4, alpha: 8, targets: "all-linear" } as const;
    const model = opened.open(out, { trainable: true, lora });
    expect(model.parameters.list.filter(({ quantized }) => quantized).length).toBe(14);
    expect(model.trained).toBe(model.adapters!);
  });
});

describe("damaged folders", () => {
  const damaged = (name: string, change: (config: Record<string, unknown>) => void) => {
    const source = join(import.meta.dir, "../goldens/quant/qwen3_nf4_double_folder/model");
    const folder = join(scratch, name);
    cpSync(source, folder, { recursive: true });
    const path = join(folder, "config.json");
    const config = JSON.parse(readFileSync(path, "utf8"));
    change(config);
    rmSync(path);
    writeFileSync(path, JSON.stringify(config));
    return folder;
  };
  const check = (folder: string) => {
    const config = readModelConfig(folder);
    using weights = openWeights(folder);
    checkWeights(config, weights);
  };

  test("another method is refused by name", () => {
    const folder = damaged("gptq", (config) => {
      config.quantization_config = { quant_method: "gptq", bits: 4 };
    });
    expect(() => check(folder)).toThrow("unsupported quantization_config (gptq)");
  });
  test("8 bits said, 4 bits stored", () => {
    const folder = damaged("bits", (config) => {
      Object.assign(config.quantization_config as object, { load_in_4bit: false, load_in_8bit: true });
    });
    expect(() => check(folder)).toThrow("is nf4, expected 8 bits");
  });
  test("neither or both said", () => {
    const folder = damaged("neither", (config) => {
      Object.assign(config.quantization_config as object, { load_in_4bit: false });
    });
    expect(() => check(folder)).toThrow("quantization_config with load_in_4bit false and load_in_8bit false");
  });
  test("quantized tensors without quantization_config", () => {
    const folder = damaged("unsaid", (config) => {
      delete config.quantization_config;
    });
    expect(() => check(folder)).toThrow("weights do not fit Qwen3ForCausalLM");
  });
});

test("weights beyond float16 are not quantized to int8", () => {
  const config = configOf("causal");
  const folder = makeFolder("large", config, "float32");
  using opened = new Opened();
  const model = opened.open(folder, { quantization: { type: "int8", head: false } });
  const name = "model.layers.0.self_attn.q_proj.weight";
  const values = model.parameters.read(name);
  values[5] = 70000;
  expect(() => model.parameters.load(name, values)).toThrow("weights that are not finite, or beyond float16");
  values[5] = Number.NaN;
  const nf4 = opened.open(folder, { quantization: { type: "nf4", head: false } });
  expect(() => nf4.parameters.load(name, values)).toThrow("weights that are not finite");
});

test("codes are the nearest values: no other code of a block is nearer", () => {
  const random = new Random(8, 4);
  const values = Float32Array.from({ length: 64 * 40 + 21 }, () => random.normal());
  const scales = blockScales(values, 64);
  for (const type of ["nf4", "fp4"] as const) {
    const packed = encode4(values, scales, 64, type);
    const error = (scale: number) => {
      // The table, read back through a scale of 1.
      const table = tableOf(type);
      return values.reduce((worst, x, i) => {
        const code = i % 2 === 0 ? packed[i >> 1]! >> 4 : packed[i >> 1]! & 15;
        const s = scales[i >> 6]! * scale;
        const nearest = Math.min(...table.map((t) => Math.abs(t * s - x)));
        return Math.max(worst, Math.abs(table[code]! * s - x) - nearest);
      }, 0);
    };
    expect(error(1)).toBeLessThan(1e-6);
    expect(error(1.1)).toBeGreaterThan(1e-3);
  }
  const { codes, scales: rows } = encode8(values.subarray(0, 2560), 64);
  codes.forEach((code, i) => {
    const step = rows[i >> 6]! / 127;
    expect(Math.abs(code * step - values[i]!)).toBeLessThan(step * 0.5 + 2 ** -11 * rows[i >> 6]!);
  });
  // A byte a scale: its error is small beside the spread of the scales.
  const nested = nestScales(scales);
  expect(nested.codes.length).toBe(scales.length);
  expect(Math.max(...nested.absmax)).toBeLessThan(Math.max(...scales));
});

function tableOf(type: "nf4" | "fp4"): number[] {
  if (type === "fp4")
    return [1, -1].flatMap((s) => [0, 0.0625 / 12, 8 / 12, 1, 4 / 12, 0.5, 2 / 12, 0.25].map((x) => s * x));
  return [
    -1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0, 0.0795803, 0.1609302,
    0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1,
  ];
}

describe("divergence", () => {
  test("of a row: the formula, in another order", () => {
    const random = new Random(2, 4);
    const [p, q] = [0, 1].map(() => Float32Array.from({ length: 700 }, () => 6 * random.normal())) as [
      Float32Array,
      Float32Array,
    ];
    for (const temperature of [0.7, 1]) {
      const soft = (z: Float32Array, t: number) => {
        const e = [...z].map((x) => Math.exp(x / t));
        const sum = e.reduce((a, b) => a + b, 0);
        return e.map((x) => x / sum);
      };
      const [a, b] = [soft(p, temperature), soft(q, temperature)];
      const want = a.reduce((sum, x, i) => sum + x * Math.log(x / b[i]!), 0);
      const got = rowDivergence(p, q, 5, temperature);
      expect(got.kl).toBeCloseTo(want, 9);
      expect(got.sampled).toBeCloseTo(Math.log(a[5]! / b[5]!), 9);
      expect(got.nll[1]).toBeCloseTo(-Math.log(soft(q, 1)[5]!), 9);
      expect(got.agree).toBe(a.indexOf(Math.max(...a)) === b.indexOf(Math.max(...b)));
    }
    expect(rowDivergence(p, p, 0, 1)).toMatchObject({ kl: 0, sampled: 0, agree: true });
  });

  test("log-probabilities are those of scoring; batches do not matter", () => {
    const folder = makeFolder("divergence", configOf("causal"), "float32");
    using opened = new Opened();
    const plain = opened.open(folder);
    const quantized = opened.open(folder, { quantization: { type: "nf4", head: false } });
    const groups = sequences.map((all) => ({ prompt: all.slice(0, 3), completions: [all.slice(3)] }));
    const rows = [4096, 50].map((budget) => [
      ...divergences(opened.memory, [plain, quantized], groups, 1, budget),
    ]);
    expect(rows[1]!.flat()).toEqual(rows[0]!.flat());
    expect(rows[1]!.length).toBeGreaterThan(1);
    const scored = [plain, quantized].map((model) =>
      scoreGroups(opened.memory, model, groups, 1, 4096)
        .logprobs.flat()
        .flatMap((l) => [...l]),
    );
    const flat = rows[0]!.flat();
    expect(flat.length).toBe(scored[0]!.length);
    flat.forEach(({ nll }, i) => {
      expect(Math.abs(nll[0] + scored[0]![i]!)).toBeLessThan(1e-5);
      expect(Math.abs(nll[1] + scored[1]![i]!)).toBeLessThan(1e-5);
    });
    const means = new DivergenceMeans();
    for (const part of rows[1]!) means.add(part);
    const figures = means.figures();
    expect(figures.tokens).toBe(flat.length);
    expect(figures.kl_divergence).toBeCloseTo(flat.reduce((sum, { kl }) => sum + kl, 0) / flat.length, 12);
    expect(opened.memory.used).toBe(0);
  });
});

test("figures of rewards", () => {
  const figures = rewardFigures([
    { plain: [1, 0], quantized: [0.5, 0] },
    { plain: [1, 0], quantized: [-0.5, 0] },
    { plain: [0, 0], quantized: [0, 1] },
    { plain: [0, 2], quantized: [3, 2] },
  ]);
  expect(figures).toEqual({
    pairs: 4,
    accuracy_original: 0.5,
    accuracy_quantized: 0.5,
    accuracy_change: 0,
    agreement: 0.5,
    reward_difference: (-0.5 - 1.5 + 1 + 3) / 8,
    reward_difference_abs: (0.5 + 1.5 + 1 + 3) / 8,
  });
  expect(() => rewardFigures([{ plain: [Number.NaN, 0], quantized: [0, 0] }])).toThrow("not finite");
});

const DEFAULTS: QuantizeSettings = {
  model: resolveBuiltin("builtin:arithmetic"),
  adapter: null,
  name: "builtin:arithmetic",
  quant_type: "int8",
  output_dir: null,
  skip_save: false,
  dataset: resolveBuiltin("builtin:arithmetic/eval.jsonl"),
  eval_batch_size: 4,
  eval_num_batches: 10,
  max_length: 2048,
  num_prompts: 40,
  max_new_tokens: 24,
  temperature: 1,
  prompt_max_length: 1536,
  seed: 42,
  device: "cpu",
  threads: 2,
  dtype: "float32",
};
const none = new Set<string>();
const quiet = () => {};

// Hundreds of tokens of generation take software Metal minutes.
describe.skipIf(testDeviceName !== "cpu")("rlv quantize", () => {
  test.each([
    ["int8", 0.01, 0.97],
    ["int4", 0.1, 0.8],
  ] as const)(
    "the trained model that ships, %s: KL below %d nats a token",
    async (quant_type, most, agree) => {
      const out = join(scratch, `shipped-${quant_type}`);
      const settings = { ...DEFAULTS, quant_type, output_dir: out };
      const result = await quantize(settings, none, quiet);
      expect(result.kl_divergence).toBeGreaterThan(0);
      expect(result.kl_divergence).toBeLessThanOrEqual(most);
      expect(result.top1_agreement).toBeGreaterThan(agree);
      const { kl_sampled, kl_sampled_error, kl_divergence } = result as Record<string, number>;
      expect(Math.abs(kl_sampled! - kl_divergence!)).toBeLessThan(5 * kl_sampled_error!);
      expect(JSON.parse(readFileSync(join(out, "evaluation_results.json"), "utf8"))).toEqual(result);
      expect(readModelConfig(out).quantization!.bits).toBe(quant_type === "int8" ? 8 : 4);
      expect(result.bytes_quantized as number).toBeLessThan(result.bytes_original as number);
      // What was saved is what is computed without saving.
      const again = await quantize({ ...settings, skip_save: true }, none, quiet);
      for (const key of ["kl_divergence", "kl_sampled", "perplexity_quantized", "tokens"])
        expect(again[key]).toBe(result[key]!);
      expect(again.output).toBeNull();
      expect(quantize({ ...settings, model: out, name: out, output_dir: null }, none, quiet)).rejects.toThrow(
        `the model is quantized already, to ${quant_type === "int8" ? 8 : 4} bits`,
      );
    },
  );

  test.each(["int8", "int4"] as const)("a reward model, %s, into a folder of its own", async (quant_type) => {
    const folder = makeFolder(`rm-${quant_type}`, configOf("reward"), "bfloat16");
    const dataset = join(scratch, "pairs.jsonl");
    const words = ["the", "cat", "dog", "sat", "ran", "happy", "sad", "tree", "sky"];
    const random = new Random(4, 4);
    const say = () => Array.from({ length: 6 }, () => words[random.below(words.length)]).join(" ");
    const rows = Array.from({ length: 60 }, () =>
      JSON.stringify({ prompt: `${say()} `, chosen: say(), rejected: say() }),
    );
    writeFileSync(dataset, `${rows.join("\n")}\n`);
    const settings = { ...DEFAULTS, model: folder, name: folder, quant_type, dataset };
    const result = await quantize(settings, none, quiet);
    const out = join(folder, `quantized_${quant_type}`);
    expect(result).toMatchObject({ kind: "reward_model", pairs: 40, output: out });
    expect(result.agreement as number).toBeGreaterThan(quant_type === "int8" ? 0.9 : 0.6);
    expect(JSON.parse(readFileSync(join(out, "evaluation_results.json"), "utf8"))).toEqual(result);
    using opened = new Opened();
    expect(opened.open(out).config.quantization).not.toBeNull();
    expect(quantize(settings, new Set(["num_prompts"]), quiet)).rejects.toThrow(
      "--num_prompts is for policies",
    );
  });

  test("adapters are merged first: of a policy, and of a reward model over a language model", async () => {
    const base = makeFolder("adapted", configOf("causal"), "float32");
    const dataset = join(scratch, "adapted.jsonl");
    const row = { prompt: "the cat ", chosen: "sat happy", rejected: "ran sad" };
    writeFileSync(dataset, `${Array.from({ length: 40 }, () => JSON.stringify(row)).join("\n")}\n`);
    for (const kind of ["causal", "reward"] as const) {
      const adapter = join(scratch, `adapter-${kind}`);
      const given = readModelConfig(base);
      const config = kind === "causal" ? given : rewardConfigOf(given, 0);
      using opened = new Opened();
      const modulesToSave = kind === "reward" ? ["score"] : [];
      const lora = { r: 2, alpha: 4, targets: "all-linear", base, modulesToSave } as const;
      const model = opened.make(config, { trainable: true, lora });
      for (const [i, { name, shape }] of model.adapters!.list.entries()) {
        const random = new Random(i, 4);
        const size = shape.reduce((a, b) => a * b, 1);
        model.adapters!.load(
          name,
          Float32Array.from({ length: size }, () => 0.3 * random.normal()),
        );
      }
      saveModel(adapter, model, Tokenizer.load(base));
      const out = join(scratch, `adapter-${kind}-int8`);
      const settings = { ...DEFAULTS, model: base, adapter, name: adapter, output_dir: out, dataset };
      const result = await quantize(settings, none, quiet);
      expect(result.kind).toBe(kind === "causal" ? "policy" : "reward_model");
      // What the folder computes is the adapted model up to int8, and not its base.
      const plain = opened.make(config, { lora });
      {
        using weights = openWeights(base);
        plain.loadWeights(weights, new Set(["score.weight"]));
      }
      if (kind === "reward") plain.parameters.load("score.weight", new Float32Array(config.hiddenSize));
      plain.adapters!.copyFrom(model.adapters!);
      const [saved, adapted] = [opened.open(out), plain].map((m) => outputsOf(opened.memory, m));
      const worst = Math.max(...saved!.map((values, i) => largest(values, adapted![i]!)));
      const size = Math.max(...adapted!.map((values) => Math.max(...values.map(Math.abs))));
      expect(worst / size).toBeLessThan(0.1);
      expect(worst).toBeGreaterThan(0);
    }
  });

  test("bad input is one clear line", async () => {
    const fails = (changes: Partial<QuantizeSettings>, given: string[], message: string) =>
      expect(quantize({ ...DEFAULTS, ...changes }, new Set(given), quiet)).rejects.toThrow(message);
    const empty = join(scratch, "empty");
    mkdirSync(empty);
    await fails({ model: empty, name: empty }, [], "no such file");
    await fails({}, ["eval_batch_size"], "--eval_batch_size is for reward models");
    await fails({ max_new_tokens: 128 }, [], "128 new tokens fill the context of 128");
    await fails({ output_dir: DEFAULTS.model }, [], "--output_dir is the model itself");
    const classifier = makeFolder("classifier", configOf("reward"), "float32");
    const path = join(classifier, "config.json");
    const config = JSON.parse(readFileSync(path, "utf8"));
    writeFileSync(path, JSON.stringify({ ...config, id2label: { "0": "A", "1": "B" } }));
    await fails({ model: classifier, name: classifier }, [], "a classifier of 2 labels");
  });
});
