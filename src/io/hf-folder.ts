import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { assert, shown, UsageError } from "../core/errors.ts";
import { copyFileAtomic, withFileErrors, writeFileAtomic } from "./atomic.ts";
import {
  type QuantizationScheme,
  quantizedTensors,
  type StoredFormat,
  storedFormat,
  type TensorReader,
} from "./bitsandbytes.ts";
import {
  configText,
  expectedTensors,
  type ModelConfig,
  type ModelDtype,
  quantizationConfig,
  readConfigFiles,
} from "./model-config.ts";
import {
  openSafetensors,
  type SafetensorsFile,
  SHARD_INDEX,
  type StoredDtype,
  type TensorSource,
  writeSafetensorsFolder,
} from "./safetensors.ts";
import { parseStrictJson } from "./strict-json.ts";

/** Model folders as Hugging Face transformers reads and writes them. */
export {
  configText,
  configToJson,
  expectedTensors,
  type Llama3RopeScaling,
  type ModelConfig,
  type ModelDtype,
  type ModelType,
  parseModelConfig,
  type QuantizationConfig,
  quantizationConfig,
  rewardConfigOf,
} from "./model-config.ts";

const SINGLE = "model.safetensors";
const STORED: Readonly<Record<string, ModelDtype>> = { F32: "float32", BF16: "bfloat16", F16: "float16" };

/**
 * Reads FOLDER/config.json in the spelling of transformers 4 or 5. Where it does not name a dtype, that of
 * the stored weights is taken, as transformers does; which tensors are quantized, and how, is the weights' to say.
 */
export function readModelConfig(folder: string): ModelConfig {
  const config = readConfigFiles(folder);
  const named = config.raw.dtype ?? config.raw.torch_dtype;
  if (named !== undefined && named !== null && !config.quantization) return config;
  if (!existsSync(join(folder, SINGLE)) && !existsSync(join(folder, SHARD_INDEX))) return config;
  using weights = openWeights(folder);
  const embedding = "model.embed_tokens.weight";
  const stored = weights.has(embedding) ? STORED[weights.dtype(embedding)] : undefined;
  const dtype = named === undefined || named === null ? (stored ?? config.dtype) : config.dtype;
  const { quantization } = config;
  if (!quantization) return { ...config, dtype };
  return { ...config, dtype, quantization: { ...quantization, stored: storedFormats(config, weights) } };
}

/** The weights of a folder, whichever file each lies in. */
export class Weights implements TensorReader, Disposable {
  #files: readonly SafetensorsFile[];
  #home: ReadonlyMap<string, SafetensorsFile>;

  constructor(
    readonly folder: string,
    files: readonly SafetensorsFile[],
    home: ReadonlyMap<string, SafetensorsFile>,
  ) {
    this.#files = files;
    this.#home = home;
  }

  names(): string[] {
    return [...this.#home.keys()];
  }

  has(name: string): boolean {
    return this.#home.has(name);
  }

  #file(name: string): SafetensorsFile {
    const file = this.#home.get(name);
    if (!file)
      throw new UsageError(`no tensor ${shown(name)}`, this.folder, "check that it is the right model");
    return file;
  }

  shape(name: string): readonly number[] {
    return this.#file(name).tensor(name).shape;
  }

  dtype(name: string): StoredDtype {
    return this.#file(name).tensor(name).dtype;
  }

  bytes(name: string): number {
    return this.#file(name).tensor(name).bytes;
  }

  /** Values as float32, row-major, a copy owned by the caller. */
  readFloat32(name: string): Float32Array {
    return this.#file(name).readFloat32(name);
  }

  /** Stored bytes, a copy owned by the caller. */
  read(name: string): Uint8Array {
    return this.#file(name).read(name);
  }

  /** Fills `target` with stored bytes from byte `from` on. */
  readInto(name: string, target: Uint8Array, from: number): void {
    this.#file(name).readInto(name, target, from);
  }

  /** Where the bytes lie, for native code that maps the file. */
  source(name: string): { path: string; begin: number; bytes: number; dtype: StoredDtype } {
    const file = this.#file(name);
    const { begin, bytes, dtype } = file.tensor(name);
    return { path: file.path, begin, bytes, dtype };
  }

  /** sha256 of names, types, shapes and stored values in the order of names, whichever files they lie in. */
  digest(): string {
    const hash = new Bun.CryptoHasher("sha256");
    const buffer = new Uint8Array(4 << 20);
    for (const name of this.names().sort()) {
      const file = this.#file(name);
      const { dtype, shape, bytes } = file.tensor(name);
      hash.update(`${name} ${dtype} [${shape}]\n`);
      for (let at = 0; at < bytes; at += buffer.length) {
        const part = buffer.subarray(0, Math.min(buffer.length, bytes - at));
        file.readInto(name, part, at);
        hash.update(part);
      }
    }
    return hash.digest("hex");
  }

  close(): void {
    for (const file of this.#files) file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Opens model.safetensors, or the shards of model.safetensors.index.json. Headers are checked, nothing else is read. */
export function openWeights(folder: string): Weights {
  const single = join(folder, SINGLE);
  if (existsSync(single)) {
    const file = openSafetensors(single);
    return new Weights(folder, [file], new Map([...file.tensors.keys()].map((name) => [name, file])));
  }
  const index = join(folder, SHARD_INDEX);
  if (existsSync(index)) return openShards(folder, index);
  const pickled = existsSync(join(folder, "pytorch_model.bin"));
  throw new UsageError(
    `no ${SINGLE} and no ${SHARD_INDEX}`,
    folder,
    pickled
      ? "it has pytorch_model.bin: convert it to safetensors"
      : "name a folder with a Hugging Face model",
  );
}

function readIndex(index: string): Map<string, string> {
  const text = withFileErrors("read", index, () => readFileSync(index, "utf8"));
  const json = parseStrictJson(text, index);
  const map = json instanceof Map ? json.get("weight_map") : undefined;
  if (!(map instanceof Map) || map.size === 0)
    throw new UsageError("weight_map is missing", index, "get the file again");
  for (const [name, shard] of map) {
    if (typeof shard !== "string" || !/^[^/\\\0]+\.safetensors$/.test(shard))
      throw new UsageError(
        `tensor ${shown(name)} lies in ${typeof shard === "string" ? shown(shard) : "no file"}`,
        index,
        "shards are .safetensors files of the same folder",
      );
  }
  return map as Map<string, string>;
}

function openShards(folder: string, index: string): Weights {
  const map = readIndex(index);
  const shards = [...new Set(map.values())].sort();
  const absent = shards.filter((shard) => !existsSync(join(folder, shard)));
  if (absent.length > 0)
    throw new UsageError(
      `missing ${list(absent)}`,
      index,
      "the download is incomplete; get the missing files",
    );
  const files = new Map<string, SafetensorsFile>();
  try {
    for (const shard of shards) files.set(shard, openSafetensors(join(folder, shard)));
    const home = new Map<string, SafetensorsFile>();
    for (const [name, shard] of map) {
      const file = files.get(shard)!;
      if (!file.tensors.has(name))
        throw new UsageError(`tensor ${shown(name)} is not in ${shard}`, index, "get the folder again");
      home.set(name, file);
    }
    for (const [shard, file] of files)
      for (const name of file.tensors.keys())
        if (map.get(name) !== shard)
          throw new UsageError(
            `tensor ${shown(name)} of ${shard} is not in the index`,
            index,
            "get the folder again",
          );
    return new Weights(folder, [...files.values()], home);
  } catch (error) {
    for (const file of files.values()) file.close();
    throw error;
  }
}

function list(items: readonly string[], most = 8): string {
  const more = items.length - most;
  return items.slice(0, most).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

/** Buffers that old Llama checkpoints stored and every loader computes. */
const COMPUTED = /^model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$/;

/** The quantized ones of a model's tensors. Throws for what is damaged. */
function storedFormats(config: ModelConfig, weights: Weights): Map<string, StoredFormat> {
  const formats = new Map<string, StoredFormat>();
  for (const [name, shape] of expectedTensors(config)) {
    const format = shape.length === 2 ? storedFormat(weights, name) : null;
    if (format) formats.set(name, format);
  }
  return formats;
}

/** What keeps these weights from being this model's: one line each, empty if they fit. */
export function weightProblems(config: ModelConfig, weights: Weights): string[] {
  const expected = expectedTensors(config);
  const formats: ReadonlyMap<string, StoredFormat> = config.quantization?.stored ?? new Map();
  const problems: string[] = [];
  if (config.quantization && formats.size === 0)
    problems.push("quantization_config is there, yet no tensor is quantized");
  for (const [name, shape] of expected) {
    if (!weights.has(name)) problems.push(`missing ${name} [${shape}]`);
    else {
      const format = formats.get(name);
      const got = format?.shape ?? weights.shape(name);
      const dtype = weights.dtype(name);
      if (got.length !== shape.length || got.some((size, i) => size !== shape[i]))
        problems.push(`${name} is [${got}], expected [${shape}]`);
      if (format && (format.type === "int8") !== (config.quantization!.bits === 8))
        problems.push(`${name} is ${format.type}, expected ${config.quantization!.bits} bits`);
      if (!format && !(dtype in STORED)) problems.push(`${name} is ${dtype}, expected F32, BF16 or F16`);
    }
  }
  const parts = new Set([...formats.values()].flatMap((format) => format.names));
  for (const name of weights.names()) {
    if (expected.has(name) || parts.has(name) || COMPUTED.test(name)) continue;
    if (name === "lm_head.weight" && config.kind === "causal" && config.tieWordEmbeddings) {
      if (!sameAsEmbedding(weights))
        problems.push(
          "lm_head.weight differs from model.embed_tokens.weight, yet tie_word_embeddings is true",
        );
    } else problems.push(`unexpected ${name} [${weights.shape(name)}]`);
  }
  return problems;
}

/** A tied head may be stored besides the embedding, if it is the same. */
function sameAsEmbedding(weights: Weights): boolean {
  const embedding = "model.embed_tokens.weight";
  const head = "lm_head.weight";
  if (!weights.has(embedding) || weights.dtype(embedding) !== weights.dtype(head)) return false;
  if (String(weights.shape(embedding)) !== String(weights.shape(head))) return false;
  return Buffer.compare(weights.read(embedding), weights.read(head)) === 0;
}

/** Throws a UsageError that names every tensor that does not fit. */
export function checkWeights(config: ModelConfig, weights: Weights): void {
  const problems = weightProblems(config, weights);
  if (problems.length === 0) return;
  throw new UsageError(
    `weights do not fit ${config.architecture}: ${list(problems)}`,
    weights.folder,
    "config.json and weights must be of the same model",
  );
}

/** A tensor of a folder being written; `data` is called when its turn comes. */
export interface FolderTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: StoredDtype;
  data(): Uint8Array;
}

/**
 * Writes a model folder that transformers loads: config.json, the weights (sharded when large), and copies of
 * `copyFiles` (tokenizer and chat template files, generation_config.json) under their own names.
 * The tensors must be exactly those of the architecture.
 */
export function writeModelFolder(
  folder: string,
  config: ModelConfig,
  tensors: Iterable<FolderTensor>,
  copyFiles: readonly string[],
  maxShardBytes?: number,
): void {
  const expected = expectedTensors(config);
  const sources: TensorSource[] = [];
  for (const tensor of tensors) {
    const shape = expected.get(tensor.name);
    assert(
      shape && String(shape) === String(tensor.shape),
      `writing ${tensor.name} [${tensor.shape}], expected [${shape}]`,
    );
    assert(tensor.dtype in STORED, `writing ${tensor.name} as ${tensor.dtype}`);
    expected.delete(tensor.name);
    const { name, dtype } = tensor;
    sources.push({ name, dtype, shape: tensor.shape, data: () => tensor.data() });
  }
  assert(expected.size === 0, `not written: ${list([...expected.keys()])}`);
  writeFolder(folder, config, sources, copyFiles, maxShardBytes);
}

function writeFolder(
  folder: string,
  config: ModelConfig,
  sources: readonly TensorSource[],
  copyFiles: readonly string[],
  maxShardBytes?: number,
): void {
  withFileErrors("create", folder, () => mkdirSync(folder, { recursive: true }));
  writeSafetensorsFolder(folder, sources, maxShardBytes);
  writeFileAtomic(join(folder, "config.json"), configText(config));
  for (const file of copyFiles) copyFileAtomic(file, join(folder, basename(file)));
}

/** The linear maps of a decoder's layers: what is quantized, as transformers leaves embeddings and heads alone. */
export const isLinearMap = (name: string): boolean => /_proj\.weight$/.test(name);

/**
 * Writes a folder that transformers opens with bitsandbytes: the linear maps of plain weights quantized by its rules,
 * everything else byte for byte. Values are read when their turn comes, so no copy of the model is held.
 */
export function writeQuantizedFolder(
  folder: string,
  config: ModelConfig,
  weights: TensorReader,
  scheme: QuantizationScheme,
  copyFiles: readonly string[],
): void {
  assert(config.quantization === null, "quantized weights are not quantized again");
  const sources = [...expectedTensors(config)].flatMap(([name, shape]): TensorSource[] => {
    const dtype = weights.dtype(name);
    if (!isLinearMap(name)) return [{ name, dtype, shape, data: () => weights.read(name) }];
    const read = () => weights.readFloat32(name);
    return quantizedTensors(name, shape as readonly [number, number], STORED[dtype]!, scheme, read);
  });
  const quantization = quantizationConfig(scheme.type, scheme.double);
  writeFolder(folder, { ...config, quantization }, sources, copyFiles);
}
