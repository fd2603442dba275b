import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type DeviceName, deviceChoice } from "../core/env.ts";
import { DeviceError, UsageError } from "../core/errors.ts";
import { Purpose, Random } from "../core/rng.ts";
import { Device, fullSync } from "../device/device.ts";
import { setFullSync } from "../io/atomic.ts";
import { isDualFolder, readDualConfig, writeDualFolder } from "../io/dual-folder.ts";
import {
  checkWeights,
  expectedTensors,
  type FolderTensor,
  type ModelConfig,
  openWeights,
  readModelConfig,
  writeModelFolder,
} from "../io/hf-folder.ts";
import {
  type AdapterConfig,
  openAdapterWeights,
  readAdapterConfig,
  type TaskType,
  writeAdapterFolder,
} from "../io/peft-folder.ts";
import { Tokenizer } from "../io/tokenizer.ts";
import {
  type AdaptedMap,
  type AdapterOptions,
  adaptedMaps,
  adapterNames,
  dualTensors,
  isDual,
  LORA_TARGETS,
  type LoraOptions,
  putSide,
  sideOf,
} from "../nn/adapters.ts";
import type { Parameters } from "../nn/parameters.ts";
import { Transformer, type TransformerOptions } from "../nn/transformer.ts";
import { Dtype, type DtypeCode, type MomentCode, MomentDtype } from "../ops/define.ts";

export function dtypeCode(name: "float32" | "bfloat16"): DtypeCode {
  return name === "bfloat16" ? Dtype.bf16 : Dtype.f32;
}

/** The type of AdamW's moments. */
export function momentCode(name: "float32" | "bfloat16" | "8bit"): MomentCode {
  return name === "8bit" ? MomentDtype.f8 : dtypeCode(name);
}

/** The device a command asked for. `auto` is Metal on a Mac with Apple silicon, else the CPU. */
export function openDevice(configured: DeviceName, threads: number | null): Device {
  setFullSync(fullSync);
  const name = deviceChoice(configured);
  if (name === "metal" && !Device.metalIsHere)
    throw new UsageError(
      "Metal is Apple's",
      "--device metal",
      "use --device cpu, or soft for software Metal",
    );
  if (name !== "auto") return Device.open(name, threads);
  if (!Device.metalIsHere) return Device.open("cpu", threads);
  try {
    return Device.open("metal", threads);
  } catch (error) {
    if (!(error instanceof DeviceError)) throw error;
    throw new UsageError(`Metal does not work here: ${error.message}`, "--device auto", "use --device cpu");
  }
}

/** A folder whose config names a causal language model and whose weights fit it. */
export function readCausalConfig(folder: string): ModelConfig {
  const config = readModelConfig(folder);
  if (config.kind !== "causal") {
    throw new UsageError(
      `${config.architecture} is not a language model`,
      folder,
      "name a …ForCausalLM folder",
    );
  }
  return config;
}

/** Opens a language model, with the adapter of a PEFT folder, or the retain and forget adapters of a folder, if one is named. */
export function openModel(
  folder: string,
  device: Device,
  options: TransformerOptions,
  label = "model",
  adapter: string | null = null,
): Transformer {
  const config = readCausalConfig(folder);
  using weights = openWeights(folder);
  checkWeights(config, weights);
  const lora = adapter === null ? (options.lora ?? null) : readAdapterOptions(adapter, config);
  const model = new Transformer(device, config, { ...options, lora }, label);
  if (!device.hasMemory) return model;
  try {
    model.loadWeights(weights);
    if (adapter !== null) loadAdapters(model, adapter);
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

const taskOf = ({ kind }: ModelConfig): TaskType => (kind === "reward" ? "SEQ_CLS" : "CAUSAL_LM");

/** What adapter_config.json of a folder says, for a model of this config; anything else is refused. */
export function readAdapter(folder: string, config: ModelConfig): AdapterConfig {
  const adapter = readAdapterConfig(folder);
  if (adapter.taskType !== null && adapter.taskType !== taskOf(config))
    throw new UsageError(
      `adapter for another model: its task is ${adapter.taskType}, the model is ${config.architecture}`,
      folder,
      "give it the model that its adapter_config.json names",
    );
  adaptedMaps(expectedTensors(config), adapter, join(folder, "adapter_config.json"));
  return adapter;
}

/** What a folder's adapters are: one a map, or retain and forget adapters, which are known from their tensors. */
export function readAdapterOptions(folder: string, config: ModelConfig): AdapterOptions {
  if (!isDualFolder(folder)) return readAdapter(folder, config);
  if (config.kind !== "causal")
    throw new UsageError(
      `retain and forget adapters, the model is ${config.architecture}`,
      folder,
      "give them a …ForCausalLM model",
    );
  const options = readDualConfig(folder);
  adaptedMaps(expectedTensors(config), options, join(folder, "adapter_config.json"));
  return options;
}

/** `--adapter_scales RETAIN,FORGET`; null: as in training. */
export function scalesOf(flag: string | null): readonly [number, number] | null {
  if (flag === null) return null;
  const parts = flag.split(",").map((part) => part.trim());
  const numbers = parts.map(Number);
  if (parts.length !== 2 || parts.includes("") || !numbers.every(Number.isFinite))
    throw new UsageError(`bad value ${flag}`, "adapter_scales", "two numbers, RETAIN,FORGET: 1,0");
  return [numbers[0]!, numbers[1]!];
}

/** Values of joined parameters from the tensors of a dual folder. */
export function* joinedValues(
  maps: readonly AdaptedMap[],
  read: (name: string) => Float32Array,
): Iterable<readonly [string, Float32Array]> {
  const tensors = dualTensors(maps);
  for (const { module, n, k, r } of maps) {
    const { a, b } = adapterNames(module);
    for (const [parameter, size] of [
      [a, r * k],
      [b, n * r],
    ] as const) {
      const values = new Float32Array(size);
      for (const tensor of tensors.filter((t) => t.parameter === parameter))
        putSide(tensor, read(tensor.name), values);
      yield [parameter, values];
    }
  }
}

/** The tensors of a dual folder, by name and shape. */
export function dualShapes(maps: readonly AdaptedMap[]): Map<string, readonly number[]> {
  return new Map(dualTensors(maps).map(({ name, shape }) => [name, shape]));
}

/** Fills a model's adapters from a folder whose tensors are exactly theirs. */
export function loadAdapters(model: Transformer, folder: string): void {
  const adapters = model.adapters!;
  if (model.dual) {
    const maps = model.adaptedMaps;
    using file = openAdapterWeights(folder, dualShapes(maps));
    for (const [name, values] of joinedValues(maps, (name) => file.readFloat32(name)))
      adapters.load(name, values);
    return;
  }
  using file = openAdapterWeights(folder, new Map(adapters.list.map(({ name, shape }) => [name, shape])));
  for (const { name } of adapters.list) adapters.load(name, file.readFloat32(name));
}

/** The tokenizer of a model folder; its ids must fit the model. */
export function openTokenizer(folder: string, config: ModelConfig): Tokenizer {
  const tokenizer = Tokenizer.load(folder);
  if (tokenizer.vocabSize > config.vocabSize) {
    throw new UsageError(
      `tokenizer has ${tokenizer.vocabSize} tokens, the model ${config.vocabSize}`,
      folder,
      "take both from the same model",
    );
  }
  return tokenizer;
}

/** Linear and embedding weights from N(0, std²), norms 1, biases 0: transformers' initialisation. */
export function initialise(model: Transformer, seed: number, std = 0.02): void {
  for (const [i, p] of model.parameters.list.entries()) {
    const size = p.shape.reduce((a, b) => a * b, 1);
    const values = new Float32Array(size);
    if (p.name.endsWith("norm.weight")) values.fill(1);
    else if (!p.name.endsWith(".bias")) {
      const random = new Random(seed, Purpose.init, i);
      for (let j = 0; j < size; j++) values[j] = random.normal() * std;
    }
    model.parameters.load(p.name, values);
  }
}

/** sha256 of names, shapes and row-major float32 values: names a model that was made, not read. */
export function weightsHash(model: Transformer): string {
  const hash = createHash("sha256");
  for (const { name, shape } of model.parameters.list)
    hash.update(`${name} [${shape}]\n`).update(model.parameters.read(name));
  return hash.digest("hex");
}

/** Values of a parameter as kernels see them, in the type that a folder has them. */
function stored(parameters: Parameters, name: string, bf16: boolean): Uint8Array {
  return new Uint8Array((bf16 ? parameters.readBf16(name) : parameters.readRounded(name)).buffer);
}

/**
 * Writes the model with plain weights, its tokenizer and generation_config.json as a folder that transformers loads; of a model with
 * adapters those alone, as a folder that PEFT loads.
 */
export function saveModel(folder: string, model: Transformer, source: Tokenizer): void {
  const bf16 = model.options.dtype === Dtype.bf16;
  const saved = model.adapters ?? model.parameters;
  const dtypeName = bf16 ? "BF16" : "F32";
  const tensors: FolderTensor[] = saved.list.map((p) => ({
    name: p.name,
    shape: p.shape,
    dtype: dtypeName,
    data: () => stored(saved, p.name, bf16),
  }));
  const files = source.files.map((file) => join(source.folder, file));
  const { lora } = model.options;
  if (model.adapters && lora) {
    if (!isDual(lora)) writeAdapterFolder(folder, adapterConfig(model, lora), LORA_TARGETS, tensors, files);
    else {
      const sides = dualTensors(model.adaptedMaps).map((tensor) => ({
        ...({ name: tensor.name, shape: tensor.shape, dtype: dtypeName } as const),
        data: () => {
          const joined = bf16 ? saved.readBf16(tensor.parameter) : saved.readRounded(tensor.parameter);
          return new Uint8Array(sideOf(tensor, joined).buffer);
        },
      }));
      writeDualFolder(folder, lora, LORA_TARGETS, sides, files);
    }
    return;
  }
  const dtype = bf16 ? "bfloat16" : "float32";
  const config: ModelConfig = { ...model.config, dtype, quantization: null };
  const generation = join(source.folder, "generation_config.json");
  if (existsSync(generation) && !files.includes(generation)) files.push(generation);
  writeModelFolder(folder, config, tensors, files);
}

function adapterConfig({ config }: Transformer, lora: LoraOptions): AdapterConfig {
  const { r, alpha, targets, ...rest } = lora;
  return {
    ...{ r, alpha, targets },
    taskType: taskOf(config),
    base: rest.base ?? null,
    rslora: rest.rslora ?? false,
    dropout: rest.dropout ?? 0,
    rankPattern: rest.rankPattern ?? {},
    alphaPattern: rest.alphaPattern ?? {},
    modulesToSave: rest.modulesToSave ?? [],
  };
}
