import { describe, expect, test } from "bun:test";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { RlvError, Unsupported, UsageError } from "../../src/core/errors.ts";
import {
  checkWeights,
  configText,
  configToJson,
  expectedTensors,
  type ModelConfig,
  openWeights,
  parseModelConfig,
  readModelConfig,
  weightProblems,
  writeModelFolder,
} from "../../src/io/hf-folder.ts";
import { type TensorSource, writeSafetensors } from "../../src/io/safetensors.ts";
import { loadTensors } from "../golden-tensors.ts";
import { goldenCases } from "../goldens-dirs.ts";
import { errorOf, TemporaryFolder } from "./temporary.ts";

const TINY = {
  architectures: ["Qwen3ForCausalLM"],
  model_type: "qwen3",
  vocab_size: 11,
  hidden_size: 8,
  intermediate_size: 6,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 6,
  tie_word_embeddings: true,
  torch_dtype: "float32",
  attention_dropout: 0,
  rope_theta: 1000000,
};
const parse = (changes: Record<string, unknown>) => parseModelConfig({ ...TINY, ...changes }, "config.json");

/** Tensors of a model with value i/10 + its place in the list. */
function tensorsOf(config: ModelConfig): TensorSource[] {
  return [...expectedTensors(config)].map(([name, shape], place) => {
    const length = shape.reduce((product, size) => product * size, 1);
    const values = Float32Array.from({ length }, (_, i) => i / 10 + place);
    return { name, shape, dtype: "F32", data: new Uint8Array(values.buffer) };
  });
}

function writeTiny(
  dir: string,
  changes: Record<string, unknown> = {},
  edit = (tensors: TensorSource[]) => tensors,
) {
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, "config.json"), JSON.stringify({ ...TINY, ...changes }));
  writeSafetensors(join(dir, "model.safetensors"), edit(tensorsOf(parse(changes))));
}

describe("config.json", () => {
  test("transformers 4 and 5 spell the same llama3 rope", () => {
    const rope = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 16 };
    const v5 = parse({
      rope_theta: undefined,
      rope_parameters: { rope_type: "llama3", rope_theta: 500000, ...rope },
    });
    const v4 = parse({ rope_theta: 500000, rope_scaling: { rope_type: "llama3", ...rope } });
    const old = parse({ rope_theta: 500000, rope_scaling: { type: "llama3", ...rope } });
    const { raw: _5, ...a } = v5;
    const { raw: _4, ...b } = v4;
    const { raw: _o, ...c } = old;
    expect(b).toEqual(a);
    expect(c).toEqual(a);
    expect(a.ropeTheta).toBe(500000);
    expect(a.ropeScaling).toEqual({
      type: "llama3",
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositionEmbeddings: 16,
    });
  });

  test("defaults of the config classes", () => {
    const llama = parseModelConfig({ architectures: ["LlamaForCausalLM"] }, "x");
    expect(llama).toMatchObject({
      modelType: "llama",
      kind: "causal",
      vocabSize: 32000,
      hiddenSize: 4096,
      intermediateSize: 11008,
      numLayers: 32,
      numHeads: 32,
      numKvHeads: 32,
      headDim: 128,
      rmsNormEps: 1e-6,
      ropeTheta: 10000,
      ropeScaling: null,
      maxPositionEmbeddings: 2048,
      tieWordEmbeddings: false,
      attentionBias: false,
      qkNorm: false,
      eosTokenIds: [2],
      bosTokenId: 1,
      padTokenId: null,
      dtype: "float32",
    });
    expect(
      parseModelConfig({ architectures: ["LlamaForCausalLM"], num_attention_heads: 16 }, "x").numKvHeads,
    ).toBe(16);
    expect(parse({ head_dim: undefined }).headDim).toBe(128);
    expect(parse({ head_dim: null }).headDim).toBe(2);
    expect(parse({ num_key_value_heads: null }).numKvHeads).toBe(4);
    const qwen2 = { architectures: ["Qwen2ForCausalLM"], model_type: "qwen2", head_dim: undefined };
    expect(parse(qwen2)).toMatchObject({ headDim: 2, attentionBias: true, qkNorm: false, eosTokenIds: [] });
    expect(parse({ eos_token_id: [3, 4], bos_token_id: 0, pad_token_id: -1 })).toMatchObject({
      eosTokenIds: [3, 4],
      bosTokenId: 0,
      padTokenId: null,
    });
    expect(parse({ torch_dtype: undefined, dtype: "bfloat16" }).dtype).toBe("bfloat16");
    expect(parse({ torch_dtype: "torch.float16" }).dtype).toBe("float16");
  });

  const unsupported: [Record<string, unknown>, RegExp][] = [
    [
      { architectures: ["MistralForCausalLM"] },
      /MistralForCausalLM.*Qwen3ForCausalLM, Qwen2ForCausalLM, LlamaForCausalLM/,
    ],
    [{ architectures: ["toString"] }, /unknown architecture/],
    [{ architectures: undefined }, /unknown architecture null/],
    [{ use_sliding_window: true, sliding_window: 4, max_window_layers: 0 }, /sliding window/],
    [{ use_sliding_window: true, max_window_layers: 1 }, /sliding window/],
    [{ layer_types: ["full_attention", "sliding_attention"] }, /sliding_attention/],
    [{ rope_scaling: { rope_type: "yarn", factor: 4 } }, /yarn.*llama3/],
    [{ rope_scaling: { type: "linear", factor: 2 } }, /linear/],
    [{ rope_parameters: { rope_type: "default", partial_rotary_factor: 0.5 } }, /partial_rotary_factor 0.5/],
    [{ hidden_act: "gelu" }, /gelu.*silu/],
    [{ mlp_bias: true }, /mlp_bias/],
    [{ attention_bias: true }, /attention_bias/],
    [{ quantization_config: { quant_method: "awq" } }, /quantization_config \(awq\): .*bitsandbytes/],
    [{ quantization_config: {} }, /quantization_config \(no quant_method\)/],
    [{ torch_dtype: "float8_e4m3fn" }, /float8_e4m3fn/],
    [{ architectures: ["Qwen3ForSequenceClassification"], id2label: { 0: "a", 1: "b" } }, /2 labels/],
    [{ architectures: ["Qwen3ForSequenceClassification"] }, /2 labels/],
  ];
  for (const [changes, message] of unsupported)
    test(`unsupported: ${JSON.stringify(changes)}`, () => {
      const error = errorOf(() => parse(changes));
      expect(error).toBeInstanceOf(Unsupported);
      expect(error.message).toMatch(message);
    });

  test("a sliding window that no layer uses is no obstacle", () => {
    for (const changes of [
      { use_sliding_window: false, sliding_window: 4096 },
      { use_sliding_window: true, sliding_window: null },
      { use_sliding_window: true, sliding_window: 16, max_window_layers: 2 },
      { layer_types: ["full_attention", "full_attention"] },
    ])
      expect(parse(changes).numLayers).toBe(2);
  });

  const wrong: [Record<string, unknown>, RegExp][] = [
    [{ hidden_size: "8" }, /hidden_size is "8"/],
    [{ hidden_size: 8.5 }, /hidden_size/],
    [{ num_hidden_layers: 0 }, /num_hidden_layers/],
    [{ num_key_value_heads: 3 }, /does not divide/],
    [{ head_dim: 5 }, /odd/],
    [{ rms_norm_eps: 0 }, /rms_norm_eps/],
    [{ rope_theta: -1 }, /rope_theta/],
    [{ rope_theta: 1, rope_parameters: { rope_theta: 2, rope_type: "default" } }, /both 1 and 2/],
    [{ rope_scaling: { rope_type: "llama3" } }, /factor is missing/],
    [{ rope_scaling: "llama3" }, /not an object/],
    [{ tie_word_embeddings: "yes" }, /tie_word_embeddings/],
    [{ eos_token_id: "2" }, /eos_token_id/],
    [{ layer_types: ["full_attention"] }, /layer_types/],
    [{ model_type: "llama" }, /model_type/],
  ];
  for (const [changes, message] of wrong)
    test(`wrong: ${JSON.stringify(changes)}`, () => {
      const error = errorOf(() => parse(changes));
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toMatch(message);
    });

  test("no folder, no config.json, not JSON", () => {
    using folder = new TemporaryFolder();
    expect(() => readModelConfig(folder.file("none"))).toThrow(/no such file/);
    writeFileSync(folder.file("config.json"), "{");
    expect(() => readModelConfig(folder.path)).toThrow(/not JSON.*config.json/);
    writeFileSync(folder.file("config.json"), "[]");
    expect(() => readModelConfig(folder.path)).toThrow(/not a JSON object/);
  });

  test("generation_config.json names the ends of a generation; the stored dtype fills in for a missing one", () => {
    using folder = new TemporaryFolder();
    writeTiny(folder.path, { eos_token_id: 5, torch_dtype: undefined }, (tensors) =>
      tensors.map((tensor) => ({
        ...tensor,
        dtype: "F16",
        data: new Uint8Array((tensor.data as Uint8Array).length / 2),
      })),
    );
    expect(readModelConfig(folder.path)).toMatchObject({ eosTokenIds: [5], dtype: "float16" });
    writeFileSync(folder.file("generation_config.json"), '{"eos_token_id": [5, 6]}');
    expect(readModelConfig(folder.path).eosTokenIds).toEqual([5, 6]);
  });

  test("what is written reads back the same, in version-4 spelling, floats as floats", () => {
    const config = parse({
      torch_dtype: undefined,
      rope_theta: undefined,
      dtype: "bfloat16",
      rope_parameters: {
        rope_type: "llama3",
        rope_theta: 500000,
        factor: 8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 16,
      },
      eos_token_id: [1, 2],
      custom: { kept: true },
    });
    const json = configToJson(config);
    expect(json).toMatchObject({ torch_dtype: "bfloat16", rope_theta: 500000, custom: { kept: true } });
    expect(json).not.toHaveProperty("rope_parameters");
    expect(json).not.toHaveProperty("dtype");
    const text = configText(config);
    for (const spelled of [
      '"rope_theta": 500000.0',
      '"factor": 8.0',
      '"attention_dropout": 0.0',
      '"hidden_size": 8,',
    ])
      expect(text).toContain(spelled);
    const { raw: _a, ...again } = parseModelConfig(JSON.parse(text), "x");
    const { raw: _b, ...before } = config;
    expect(again).toEqual(before);
    expect(configText(parseModelConfig(JSON.parse(text), "x"))).toBe(text);
  });
});

describe("weights", () => {
  test("a fitting folder", () => {
    using folder = new TemporaryFolder();
    writeTiny(folder.path);
    const config = readModelConfig(folder.path);
    using weights = openWeights(folder.path);
    checkWeights(config, weights);
    const name = "model.layers.1.self_attn.q_proj.weight";
    expect([...weights.shape(name)]).toEqual([24, 8]);
    expect(weights.dtype(name)).toBe("F32");
    const { path, begin, bytes, dtype } = weights.source(name);
    const mapped = readFileSync(path).subarray(begin, begin + bytes);
    expect(Buffer.compare(mapped, new Uint8Array(weights.readFloat32(name).buffer))).toBe(0);
    expect(dtype).toBe("F32");
    expect(() => weights.shape("none")).toThrow(UsageError);
  });

  test("missing, unexpected, wrong shape, wrong dtype are all named with the expected shape", () => {
    using folder = new TemporaryFolder();
    writeTiny(folder.path, {}, (tensors) => [
      ...tensors
        .filter(({ name }) => name !== "model.norm.weight")
        .map((tensor): TensorSource => {
          if (tensor.name === "model.layers.0.mlp.up_proj.weight") return { ...tensor, shape: [8, 6] };
          if (tensor.name === "model.layers.1.input_layernorm.weight") return { ...tensor, dtype: "I32" };
          return tensor;
        }),
      { name: "model.layers.2.input_layernorm.weight", dtype: "F32", shape: [1], data: new Uint8Array(4) },
      {
        name: "model.layers.0.self_attn.rotary_emb.inv_freq",
        dtype: "F32",
        shape: [1],
        data: new Uint8Array(4),
      },
    ]);
    using weights = openWeights(folder.path);
    expect(weightProblems(readModelConfig(folder.path), weights).sort()).toEqual([
      "missing model.norm.weight [8]",
      "model.layers.0.mlp.up_proj.weight is [8,6], expected [6,8]",
      "model.layers.1.input_layernorm.weight is I32, expected F32, BF16 or F16",
      "unexpected model.layers.2.input_layernorm.weight [1]",
    ]);
    const error = errorOf(() => checkWeights(readModelConfig(folder.path), weights));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toContain("missing model.norm.weight [8]");
    expect(error.message).not.toContain("\n");
  });

  test("a tied head may be stored if it equals the embedding", () => {
    for (const same of [true, false]) {
      using folder = new TemporaryFolder();
      writeTiny(folder.path, {}, (tensors) => {
        const data = Uint8Array.from(tensors[0]!.data as Uint8Array);
        if (!same) data[0]! ^= 1;
        return [...tensors, { ...tensors[0]!, name: "lm_head.weight", data }];
      });
      using weights = openWeights(folder.path);
      const check = () => checkWeights(readModelConfig(folder.path), weights);
      if (same) check();
      else expect(check).toThrow(/lm_head.weight differs.*tie_word_embeddings/);
    }
  });

  test("no weights at all, or pickled ones", () => {
    using folder = new TemporaryFolder();
    expect(() => openWeights(folder.path)).toThrow(/no model.safetensors/);
    writeFileSync(folder.file("pytorch_model.bin"), "");
    expect(() => openWeights(folder.path)).toThrow(/convert it to safetensors/);
  });
});

describe("shards", () => {
  function writeShards(dir: string): void {
    writeModelFolder(
      dir,
      parse({}),
      tensorsOf(parse({})).map(({ data, ...rest }) => ({ ...rest, data: () => data as Uint8Array })),
      [],
      600,
    );
    expect(existsSync(join(dir, "model.safetensors"))).toBe(false);
  }
  function editIndex(dir: string, edit: (map: Record<string, unknown>) => void): void {
    const path = join(dir, "model.safetensors.index.json");
    const index = JSON.parse(readFileSync(path, "utf8"));
    edit(index.weight_map);
    writeFileSync(path, JSON.stringify(index));
  }

  test("written and read back", () => {
    using folder = new TemporaryFolder();
    writeShards(folder.path);
    using weights = openWeights(folder.path);
    checkWeights(readModelConfig(folder.path), weights);
    for (const { name, data } of tensorsOf(parse({})))
      expect(Buffer.compare(weights.read(name), data as Uint8Array)).toBe(0);
  });

  for (const bad of [
    "../model.safetensors",
    "/etc/model.safetensors",
    "a\\b.safetensors",
    "sub/x.safetensors",
    "..",
    "x.bin",
    3,
    "",
  ])
    test(`shard name ${JSON.stringify(bad)} is refused`, () => {
      using folder = new TemporaryFolder();
      writeShards(folder.path);
      editIndex(folder.path, (map) => {
        map["model.norm.weight"] = bad;
      });
      const error = errorOf(() => openWeights(folder.path));
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toMatch(/model.norm.weight.*same folder/);
    });

  test("missing shard, tensor not in its shard, tensor not in the index, broken index", () => {
    using folder = new TemporaryFolder();
    const make = (name: string) => {
      writeShards(folder.file(name));
      return folder.file(name);
    };
    const missing = make("missing");
    const [first] = readdirSync(missing).filter((name) => name.startsWith("model-"));
    rmSync(join(missing, first!));
    expect(() => openWeights(missing)).toThrow(new RegExp(`missing ${first}`));

    const absent = make("absent");
    editIndex(absent, (map) => {
      map.ghost = map["model.norm.weight"];
    });
    expect(() => openWeights(absent)).toThrow(/"ghost" is not in model-/);

    const extra = make("extra");
    editIndex(extra, (map) => {
      delete map["model.norm.weight"];
    });
    expect(() => openWeights(extra)).toThrow(/"model.norm.weight" of model-.* is not in the index/);

    const broken = make("broken");
    writeFileSync(join(broken, "model.safetensors.index.json"), '{"weight_map": {}}');
    expect(() => openWeights(broken)).toThrow(/weight_map is missing/);
    writeFileSync(
      join(broken, "model.safetensors.index.json"),
      '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
    );
    expect(() => openWeights(broken)).toThrow(/duplicate key "a"/);
  });
});

describe("writing a folder", () => {
  const config = parse({});
  const tensors = () =>
    tensorsOf(config).map(({ data, ...rest }) => ({ ...rest, data: () => data as Uint8Array }));

  test("config, weights and copies (links are followed)", () => {
    using folder = new TemporaryFolder();
    writeFileSync(folder.file("blob"), "{}");
    symlinkSync(folder.file("blob"), folder.file("tokenizer.json"));
    const dir = folder.file("out/model");
    writeModelFolder(dir, config, tensors(), [folder.file("tokenizer.json")]);
    expect(readdirSync(dir).sort()).toEqual(["config.json", "model.safetensors", "tokenizer.json"]);
    expect(readFileSync(join(dir, "tokenizer.json"), "utf8")).toBe("{}");
    const again = readModelConfig(dir);
    using weights = openWeights(dir);
    checkWeights(again, weights);
  });

  test("a wrong set of tensors is a defect and writes nothing", () => {
    using folder = new TemporaryFolder();
    const write = (list: ReturnType<typeof tensors>) => writeModelFolder(folder.file("m"), config, list, []);
    expect(() => write(tensors().slice(1))).toThrow(/not written: model.embed_tokens.weight/);
    expect(() => write([...tensors(), tensors()[0]!])).toThrow(RlvError);
    expect(() => write(tensors().map((tensor) => ({ ...tensor, shape: [1] })))).toThrow(RlvError);
    expect(existsSync(folder.file("m"))).toBe(false);
  });
});

describe("golden model folders", () => {
  const cases = goldenCases("models", "reward").filter(({ dir }) =>
    existsSync(join(dir, "model/config.json")),
  );
  test.skipIf(cases.length > 0)("none beside this checkout: skipped", () => {});
  for (const { name, dir, spec } of cases) {
    test(name, () => {
      const folder = join(dir, "model");
      const config = readModelConfig(folder);
      using weights = openWeights(folder);
      checkWeights(config, weights);
      const parameters = [...expectedTensors(config).values()]
        .map((shape) => shape.reduce((product, size) => product * size, 1))
        .reduce((sum, count) => sum + count, 0);
      if (spec.parameters !== undefined) expect(parameters).toBe(spec.parameters);
      // A gradient has its parameter's shape; the reference names every parameter once.
      const expected = loadTensors(dir);
      let gradients = 0;
      for (const [key, tensor] of expected) {
        const parameter = key.replace(/^grad\./, "");
        if (parameter === key || !weights.has(parameter)) continue;
        gradients += 1;
        expect([...weights.shape(parameter)]).toEqual([...tensor.shape]);
      }
      if (spec.kind === "causal_lm") expect(gradients).toBeGreaterThan(0);

      const v4 = join(folder, "config.v4.json");
      if (existsSync(v4)) {
        // The reward models' version-4 files do not repeat pad_token_id.
        const spelled = { pad_token_id: config.raw.pad_token_id, ...JSON.parse(readFileSync(v4, "utf8")) };
        const { raw: _a, ...a } = parseModelConfig(spelled, v4);
        const { raw: _b, ...b } = config;
        expect(a).toEqual(b);
        // What rlv writes is what the reference's version-4 file says, key for key.
        const theirs = JSON.parse(readFileSync(v4, "utf8"));
        const ours = configToJson(config);
        for (const [key, value] of Object.entries(theirs))
          if (key !== "transformers_version" && key in ours) expect([key, ours[key]]).toEqual([key, value]);
      }

      using out = new TemporaryFolder();
      const again = out.file("again");
      writeModelFolder(
        again,
        config,
        [...expectedTensors(config)].map(([tensor, shape]) => ({
          name: tensor,
          shape,
          dtype: weights.dtype(tensor),
          data: () => weights.read(tensor),
        })),
        [],
      );
      using copied = openWeights(again);
      checkWeights(readModelConfig(again), copied);
      for (const tensor of weights.names())
        expect(Buffer.compare(copied.read(tensor), weights.read(tensor))).toBe(0);
    });
  }

  const quantized = goldenCases("quant").filter(({ dir }) => existsSync(join(dir, "model/config.json")));
  for (const { name, dir, spec } of quantized)
    test(`${name}: every tensor of the file belongs to the model`, () => {
      const folder = join(dir, "model");
      const config = readModelConfig(folder);
      using weights = openWeights(folder);
      checkWeights(config, weights);
      const raw = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
      expect(configToJson(config).quantization_config).toEqual(raw.quantization_config);
      expect(configText(config)).toContain('"llm_int8_threshold": 6.0');
      const parts = [...config.quantization!.stored.values()].flatMap(({ names }) => names);
      expect(new Set(parts).size).toBe(parts.length);
      expect(weights.names().length - parts.length).toBe(
        expectedTensors(config).size - spec.checks.quantized_layers,
      );
    });

  test("a golden folder with a truncated file is refused", () => {
    const source = cases[0];
    if (!source) return;
    using folder = new TemporaryFolder();
    const copy = folder.file("m");
    cpSync(join(source.dir, "model"), copy, { recursive: true });
    const [file] = readdirSync(copy).filter((entry) => entry.endsWith(".safetensors"));
    const bytes = readFileSync(join(copy, file!));
    rmSync(join(copy, file!));
    writeFileSync(join(copy, file!), bytes.subarray(0, bytes.length - 1));
    expect(() => openWeights(copy)).toThrow(/truncated/);
  });
});
