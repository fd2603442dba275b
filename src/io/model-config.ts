import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { shown, Unsupported, UsageError } from "../core/errors.ts";
import { withFileErrors } from "./atomic.ts";
import type { StoredFormat } from "./bitsandbytes.ts";

export type ModelDtype = "float32" | "bfloat16" | "float16";
export type ModelType = "qwen3" | "qwen2" | "llama";

export interface Llama3RopeScaling {
  readonly type: "llama3";
  readonly factor: number;
  readonly lowFreqFactor: number;
  readonly highFreqFactor: number;
  readonly originalMaxPositionEmbeddings: number;
}

/** What config.json says about a model, defaults filled in as transformers' config classes do. */
export interface ModelConfig {
  readonly architecture: string;
  readonly modelType: ModelType;
  /** "causal": a language model; "reward": a body with a linear head C -> 1 on the last token. */
  readonly kind: "causal" | "reward";
  /** V */
  readonly vocabSize: number;
  /** C */
  readonly hiddenSize: number;
  /** F */
  readonly intermediateSize: number;
  readonly numLayers: number;
  /** H */
  readonly numHeads: number;
  /** K; divides H. */
  readonly numKvHeads: number;
  /** D; even. */
  readonly headDim: number;
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
  readonly ropeScaling: Llama3RopeScaling | null;
  readonly maxPositionEmbeddings: number;
  readonly tieWordEmbeddings: boolean;
  /** Biases on q, k and v (never on o). */
  readonly attentionBias: boolean;
  /** RMSNorm over D on every head of q and k. */
  readonly qkNorm: boolean;
  /** Tokens that end a generation: generation_config.json's where it names some, else config.json's. */
  readonly eosTokenIds: readonly number[];
  readonly bosTokenId: number | null;
  readonly padTokenId: number | null;
  /** Type of the stored weights; in a quantized folder of those that are not. */
  readonly dtype: ModelDtype;
  /** How the linear maps are stored; null: like the rest. */
  readonly quantization: QuantizationConfig | null;
  /** config.json as it was read. */
  readonly raw: Readonly<Record<string, unknown>>;
}

/** quantization_config of bitsandbytes. */
export interface QuantizationConfig {
  readonly bits: 4 | 8;
  /** As it stands in config.json. */
  readonly raw: Readonly<Record<string, unknown>>;
  /** What the folder's weights say of each quantized tensor. */
  readonly stored: ReadonlyMap<string, StoredFormat>;
}

const REPAIR = "correct config.json, or get the model again";

interface Family {
  readonly modelType: ModelType;
  readonly kind: ModelConfig["kind"];
}

const ARCHITECTURES: Readonly<Record<string, Family>> = {
  Qwen3ForCausalLM: { modelType: "qwen3", kind: "causal" },
  Qwen2ForCausalLM: { modelType: "qwen2", kind: "causal" },
  LlamaForCausalLM: { modelType: "llama", kind: "causal" },
  Qwen3ForSequenceClassification: { modelType: "qwen3", kind: "reward" },
  Qwen2ForSequenceClassification: { modelType: "qwen2", kind: "reward" },
  LlamaForSequenceClassification: { modelType: "llama", kind: "reward" },
};

/** Defaults of transformers' Qwen2Config, Qwen3Config and LlamaConfig. */
const QWEN = { vocab: 151936, hidden: 4096, ffn: 22016, layers: 32, heads: 32, kv: 32, positions: 32768 };
const DEFAULTS = {
  qwen2: { ...QWEN, headDim: null, bos: null, eos: null },
  qwen3: { ...QWEN, headDim: 128, bos: null, eos: null },
  llama: {
    vocab: 32000,
    hidden: 4096,
    ffn: 11008,
    layers: 32,
    heads: 32,
    kv: null,
    positions: 2048,
    headDim: null,
    bos: 1,
    eos: 2,
  },
} as const;

function readJsonObject(path: string): Record<string, unknown> {
  if (!existsSync(path))
    throw new UsageError("no such file", path, "name a folder with a Hugging Face model");
  const text = withFileErrors("read", path, () => readFileSync(path, "utf8"));
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new UsageError(
      `not JSON (${(error as Error).message.split("\n")[0]})`,
      path,
      "repair it or get it again",
    );
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new UsageError("not a JSON object", path, "repair it or get it again");
  return value as Record<string, unknown>;
}

/** Reads FOLDER/config.json and generation_config.json. */
export function readConfigFiles(folder: string): ModelConfig {
  const generation = join(folder, "generation_config.json");
  return parseModelConfig(
    readJsonObject(join(folder, "config.json")),
    join(folder, "config.json"),
    existsSync(generation) ? readJsonObject(generation) : {},
  );
}

/** The same from parsed JSON; `where` names it in errors. */
export function parseModelConfig(
  raw: Readonly<Record<string, unknown>>,
  where: string,
  generation: Readonly<Record<string, unknown>> = {},
): ModelConfig {
  const fields = new Fields(raw, where);
  const { architecture, family } = architectureOf(raw, where);
  const { modelType, kind } = family;
  if (raw.model_type !== undefined && raw.model_type !== modelType)
    throw new UsageError(
      `model_type ${shown(raw.model_type)} does not belong to ${architecture}`,
      where,
      REPAIR,
    );
  refuseUnsupported(raw, modelType, where);
  if (kind === "reward") refuseLabels(raw, where);
  const defaults = DEFAULTS[modelType];
  const hiddenSize = fields.size("hidden_size", defaults.hidden);
  const numHeads = fields.size("num_attention_heads", defaults.heads);
  const numKvHeads = fields.size("num_key_value_heads", defaults.kv ?? numHeads, numHeads);
  const numLayers = fields.size("num_hidden_layers", defaults.layers);
  if (numLayers > MOST_LAYERS)
    throw new UsageError(
      `num_hidden_layers is ${numLayers}`,
      where,
      `rlv reads models of up to ${MOST_LAYERS}`,
    );
  if (numHeads % numKvHeads !== 0)
    throw new UsageError(
      `num_key_value_heads ${numKvHeads} does not divide num_attention_heads ${numHeads}`,
      where,
      REPAIR,
    );
  const share = hiddenSize / numHeads;
  const headDim = fields.size("head_dim", defaults.headDim ?? share, share);
  if (headDim % 2 !== 0) throw new UsageError(`head_dim ${headDim} is odd, RoPE needs pairs`, where, REPAIR);
  refuseSlidingWindow(raw, modelType, numLayers, where);
  const maxPositionEmbeddings = fields.size("max_position_embeddings", defaults.positions);
  const rope = readRope(raw, maxPositionEmbeddings, where);
  const generationEos = tokenIds(generation.eos_token_id, "eos_token_id", "generation_config.json");
  return {
    architecture,
    modelType,
    kind,
    vocabSize: fields.size("vocab_size", defaults.vocab),
    hiddenSize,
    intermediateSize: fields.size("intermediate_size", defaults.ffn),
    numLayers,
    numHeads,
    numKvHeads,
    headDim,
    rmsNormEps: fields.positive("rms_norm_eps", 1e-6),
    ropeTheta: rope.theta,
    ropeScaling: rope.scaling,
    maxPositionEmbeddings,
    tieWordEmbeddings: fields.boolean("tie_word_embeddings", false),
    attentionBias: modelType === "qwen2",
    qkNorm: modelType === "qwen3",
    eosTokenIds:
      generationEos.length > 0
        ? generationEos
        : tokenIds(raw.eos_token_id === undefined ? defaults.eos : raw.eos_token_id, "eos_token_id", where),
    bosTokenId:
      tokenIds(raw.bos_token_id === undefined ? defaults.bos : raw.bos_token_id, "bos_token_id", where)[0] ??
      null,
    padTokenId: tokenIds(raw.pad_token_id, "pad_token_id", where)[0] ?? null,
    dtype: readDtype(raw, where),
    quantization: readQuantization(raw.quantization_config, where),
    raw,
  };
}

/** The deepest models have some 130; each names a dozen tensors before one of them is looked for. */
const MOST_LAYERS = 1000;

function architectureOf(raw: Readonly<Record<string, unknown>>, where: string) {
  const names = raw.architectures;
  const architecture = Array.isArray(names) && names.length === 1 ? names[0] : undefined;
  const family =
    typeof architecture === "string" && Object.hasOwn(ARCHITECTURES, architecture)
      ? ARCHITECTURES[architecture]
      : undefined;
  if (!family)
    throw new Unsupported(
      `unknown architecture ${shown(names ?? null)}`,
      where,
      `supported: ${Object.keys(ARCHITECTURES).join(", ")}`,
    );
  return { architecture: architecture as string, family };
}

function refuseUnsupported(
  raw: Readonly<Record<string, unknown>>,
  modelType: ModelType,
  where: string,
): void {
  const refuse = (what: string, remedy: string): never => {
    throw new Unsupported(`unsupported ${what}`, where, remedy);
  };
  if (raw.hidden_act !== undefined && raw.hidden_act !== "silu")
    refuse(`hidden_act ${shown(raw.hidden_act)}`, "only silu is supported");
  if (raw.mlp_bias === true) refuse("mlp_bias true", "only models without biases in the MLP are supported");
  // Qwen2 has its q, k and v biases by definition and knows no such key.
  if (raw.attention_bias === true && modelType !== "qwen2")
    refuse("attention_bias true", "only Qwen2's q, k and v biases are supported");
}

function readQuantization(named: unknown, where: string): QuantizationConfig | null {
  if (named === undefined || named === null) return null;
  if (typeof named !== "object" || Array.isArray(named))
    throw new UsageError("quantization_config is not an object", where, REPAIR);
  const raw = named as Readonly<Record<string, unknown>>;
  const [four, eight] = [raw.load_in_4bit === true, raw.load_in_8bit === true];
  // Early folders name no method.
  const method = raw.quant_method ?? (four || eight ? "bitsandbytes" : "no quant_method");
  if (method !== "bitsandbytes")
    throw new Unsupported(
      `unsupported quantization_config (${String(method)})`,
      where,
      "supported: bitsandbytes; or load the unquantized model",
    );
  if (four === eight)
    throw new UsageError(
      `quantization_config with load_in_4bit ${four} and load_in_8bit ${eight}`,
      where,
      "one of them must be true",
    );
  return { bits: four ? 4 : 8, raw, stored: new Map() };
}

/** quantization_config as transformers writes it: every key, the defaults where they do not matter. */
export function quantizationConfig(type: "int8" | "nf4", double: boolean): QuantizationConfig {
  const four = type === "nf4";
  return {
    bits: four ? 4 : 8,
    raw: {
      _load_in_4bit: four,
      _load_in_8bit: !four,
      bnb_4bit_compute_dtype: "float32",
      bnb_4bit_quant_storage: "uint8",
      bnb_4bit_quant_type: four ? "nf4" : "fp4",
      bnb_4bit_use_double_quant: four && double,
      llm_int8_enable_fp32_cpu_offload: false,
      llm_int8_has_fp16_weight: false,
      llm_int8_skip_modules: null,
      llm_int8_threshold: 6,
      load_in_4bit: four,
      load_in_8bit: !four,
      quant_method: "bitsandbytes",
    },
    stored: new Map(),
  };
}

function refuseLabels(raw: Readonly<Record<string, unknown>>, where: string): void {
  const named = raw.id2label;
  const labels =
    typeof named === "object" && named !== null ? Object.keys(named).length : (raw.num_labels ?? 2);
  if (labels !== 1)
    throw new Unsupported(
      `a classifier of ${String(labels)} labels`,
      where,
      "a reward model has num_labels 1",
    );
}

function refuseSlidingWindow(
  raw: Readonly<Record<string, unknown>>,
  modelType: ModelType,
  numLayers: number,
  where: string,
): void {
  const refuse = (what: string): never => {
    throw new Unsupported(`unsupported ${what}`, where, "only full attention in every layer is supported");
  };
  const types = raw.layer_types;
  if (types !== undefined && types !== null) {
    if (!Array.isArray(types) || types.length !== numLayers)
      throw new UsageError(`layer_types does not list ${numLayers} layers`, where, REPAIR);
    const other = types.find((type) => type !== "full_attention");
    if (other !== undefined) refuse(`layer type ${shown(other)}`);
    return;
  }
  if (modelType === "llama" || raw.use_sliding_window !== true) return;
  const window = raw.sliding_window === undefined ? 4096 : raw.sliding_window;
  const from = raw.max_window_layers === undefined ? 28 : raw.max_window_layers;
  if (window !== null && (typeof from !== "number" || from < numLayers)) refuse("sliding window attention");
}

function readRope(raw: Readonly<Record<string, unknown>>, maxPositions: number, where: string) {
  const named = raw.rope_parameters ?? raw.rope_scaling;
  if (named !== undefined && named !== null && (typeof named !== "object" || Array.isArray(named)))
    throw new UsageError("rope parameters are not an object", where, REPAIR);
  const rope = new Fields((named ?? {}) as Record<string, unknown>, where);
  const outer = new Fields(raw, where).positive("rope_theta", 10000);
  const theta = rope.positive("rope_theta", outer);
  if (raw.rope_theta !== undefined && raw.rope_theta !== null && theta !== outer)
    throw new UsageError(
      `rope_theta is both ${outer} and ${theta} (rope_parameters)`,
      where,
      "keep one of them",
    );
  const partial = rope.positive("partial_rotary_factor", 1);
  if (partial !== 1)
    throw new Unsupported(
      `unsupported partial_rotary_factor ${partial}`,
      where,
      "RoPE must turn the whole head",
    );
  const type = rope.raw.rope_type ?? rope.raw.type ?? "default";
  if (type === "default") return { theta, scaling: null };
  if (type !== "llama3")
    throw new Unsupported(`unsupported rope type ${shown(type)}`, where, "supported: default, llama3");
  const original = raw.original_max_position_embeddings ?? maxPositions;
  const scaling: Llama3RopeScaling = {
    type: "llama3",
    factor: rope.positive("factor"),
    lowFreqFactor: rope.positive("low_freq_factor"),
    highFreqFactor: rope.positive("high_freq_factor"),
    originalMaxPositionEmbeddings: rope.size("original_max_position_embeddings", original as number),
  };
  if (scaling.highFreqFactor <= scaling.lowFreqFactor)
    throw new UsageError("high_freq_factor must exceed low_freq_factor", where, REPAIR);
  return { theta, scaling };
}

function readDtype(raw: Readonly<Record<string, unknown>>, where: string): ModelDtype {
  const spelled = raw.dtype ?? raw.torch_dtype ?? "float32";
  const name = typeof spelled === "string" ? spelled.replace(/^torch\./, "") : "";
  if (name !== "float32" && name !== "bfloat16" && name !== "float16")
    throw new Unsupported(
      `unsupported dtype ${shown(spelled)}`,
      where,
      "supported: float32, bfloat16, float16",
    );
  return name;
}

/** One id, several, or none; old Llama configs write -1 for none. */
function tokenIds(value: unknown, key: string, where: string): number[] {
  if (value === undefined || value === null || value === -1) return [];
  const ids = Array.isArray(value) ? value : [value];
  for (const id of ids)
    if (!Number.isSafeInteger(id) || id < 0)
      throw new UsageError(`${key} ${shown(value)}`, where, "token ids are whole numbers");
  return ids as number[];
}

/** Typed reading of one JSON object. */
class Fields {
  constructor(
    readonly raw: Readonly<Record<string, unknown>>,
    readonly where: string,
  ) {}

  /** A whole number above 0; `whenNull` where the key is there and null. */
  size(key: string, whenAbsent: number, whenNull = whenAbsent): number {
    const value = this.raw[key] === undefined ? whenAbsent : (this.raw[key] ?? whenNull);
    if (typeof value === "number" && Number.isInteger(value) && value > 0 && value < 2 ** 31) return value;
    throw new UsageError(
      `${key} is ${shown(value)}`,
      this.where,
      "it must be a whole number from 1 to 2^31 - 1",
    );
  }

  positive(key: string, whenAbsent?: number): number {
    const value = this.raw[key] ?? whenAbsent;
    if (typeof value === "number" && Number.isFinite(value) && value > 0) return value;
    throw new UsageError(`${key} is ${shown(value)}`, this.where, "it must be a number above 0");
  }

  boolean(key: string, whenAbsent: boolean): boolean {
    const value = this.raw[key] ?? whenAbsent;
    if (typeof value === "boolean") return value;
    throw new UsageError(`${key} is ${shown(value)}`, this.where, "it must be true or false");
  }
}

/**
 * The reward model that a language model's body makes: its head is dropped for one of a single label. `padTokenId` must
 * not end a sequence: transformers scores a padded batch at the last token that is not this one.
 */
export function rewardConfigOf(config: ModelConfig, padTokenId: number | null): ModelConfig {
  const architecture = config.architecture.replace("ForCausalLM", "ForSequenceClassification");
  return { ...config, architecture, kind: "reward", padTokenId };
}

/** Every tensor of the architecture under its HF name; linear weights are [out, in]. */
export function expectedTensors(config: ModelConfig): Map<string, readonly number[]> {
  const { hiddenSize: C, intermediateSize: F, numHeads: H, numKvHeads: K, headDim: D, vocabSize: V } = config;
  const shapes = new Map<string, readonly number[]>([["model.embed_tokens.weight", [V, C]]]);
  for (let i = 0; i < config.numLayers; i++) {
    const layer = `model.layers.${i}.`;
    shapes.set(`${layer}input_layernorm.weight`, [C]);
    for (const [name, rows] of [
      ["q", H * D],
      ["k", K * D],
      ["v", K * D],
    ] as const) {
      shapes.set(`${layer}self_attn.${name}_proj.weight`, [rows, C]);
      if (config.attentionBias) shapes.set(`${layer}self_attn.${name}_proj.bias`, [rows]);
    }
    shapes.set(`${layer}self_attn.o_proj.weight`, [C, H * D]);
    if (config.qkNorm) {
      shapes.set(`${layer}self_attn.q_norm.weight`, [D]);
      shapes.set(`${layer}self_attn.k_norm.weight`, [D]);
    }
    shapes.set(`${layer}post_attention_layernorm.weight`, [C]);
    shapes.set(`${layer}mlp.gate_proj.weight`, [F, C]);
    shapes.set(`${layer}mlp.up_proj.weight`, [F, C]);
    shapes.set(`${layer}mlp.down_proj.weight`, [C, F]);
  }
  shapes.set("model.norm.weight", [C]);
  if (config.kind === "reward") shapes.set("score.weight", [1, C]);
  else if (!config.tieWordEmbeddings) shapes.set("lm_head.weight", [V, C]);
  return shapes;
}

/**
 * config.json in the spelling of transformers 4, which 4 and 5 both load. Keys that rlv does not interpret
 * are kept from the config the model came with.
 */
export function configToJson(config: ModelConfig): Record<string, unknown> {
  const {
    rope_parameters: _parameters,
    dtype: _dtype,
    quantization_config: _quantization,
    ...kept
  } = config.raw;
  const scaling = config.ropeScaling;
  const eos = config.eosTokenIds;
  const json: Record<string, unknown> = {
    ...kept,
    architectures: [config.architecture],
    model_type: config.modelType,
    vocab_size: config.vocabSize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    num_key_value_heads: config.numKvHeads,
    head_dim: config.headDim,
    hidden_act: "silu",
    rms_norm_eps: config.rmsNormEps,
    rope_theta: config.ropeTheta,
    rope_scaling: scaling && {
      rope_type: "llama3",
      factor: scaling.factor,
      low_freq_factor: scaling.lowFreqFactor,
      high_freq_factor: scaling.highFreqFactor,
      original_max_position_embeddings: scaling.originalMaxPositionEmbeddings,
    },
    max_position_embeddings: config.maxPositionEmbeddings,
    tie_word_embeddings: config.tieWordEmbeddings,
    eos_token_id: eos.length > 1 ? [...eos] : (eos[0] ?? null),
    bos_token_id: config.bosTokenId,
    pad_token_id: config.padTokenId,
    torch_dtype: config.dtype,
  };
  if (config.quantization) json.quantization_config = config.quantization.raw;
  if (config.modelType !== "qwen2") json.attention_bias = false;
  if (config.kind === "reward") {
    json.id2label = { "0": "LABEL_0" };
    json.label2id = { LABEL_0: 0 };
    delete json.num_labels;
  }
  return Object.fromEntries(Object.entries(json).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Keys that transformers 5 declares as float: a whole number must keep its `.0`, or its type check objects. */
const FLOAT_KEY = /^factor$|(_theta|_eps|_range|_dropout|_factor|_pdrop|_threshold)$/;

/** `configToJson` as the text of a config.json. */
export function configText(config: ModelConfig): string {
  const text = JSON.stringify(configToJson(config), null, 2);
  const lines = text.split("\n").map((line) => {
    const match = /^( *"([^"\\]+)": )(-?\d+)(,?)$/.exec(line);
    return match && FLOAT_KEY.test(match[2]!) ? `${match[1]}${match[3]}.0${match[4]}` : line;
  });
  return `${lines.join("\n")}\n`;
}
