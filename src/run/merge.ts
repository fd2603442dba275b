/** An adapter put into the weights of its model: a plain model folder that needs no adapter. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { assert, UsageError } from "../core/errors.ts";
import { f32ToBf16 } from "../core/float-formats.ts";
import {
  checkWeights,
  expectedTensors,
  type FolderTensor,
  openWeights,
  readModelConfig,
  writeModelFolder,
} from "../io/hf-folder.ts";
import { openAdapterWeights, readAdapterConfig } from "../io/peft-folder.ts";
import { tokenizerFiles } from "../io/tokenizer.ts";
import { type AdaptedMap, adaptedMaps, adapterNames, adapterShapes, savedName } from "../nn/adapters.ts";
import { readAdapter } from "./open-model.ts";
import { rewardSource } from "./reward-model.ts";

export interface MergeSettings {
  readonly model: string;
  readonly adapter: string;
  readonly out: string;
  /** null: each tensor as it is stored; float16 becomes float32. */
  readonly dtype: "float32" | "bfloat16" | null;
}

export interface MergeSummary {
  readonly model: string;
  readonly adapter: string;
  /** Linear maps that changed. */
  readonly maps: number;
  readonly seconds: number;
  readonly out: string;
}

/** w[n,k] + scale·b[n,r]·a[r,k], summed in float64 and rounded to float32 once. */
export function merged(
  w: Float32Array,
  a: Float32Array,
  b: Float32Array,
  { n, k, r, scale }: Omit<AdaptedMap, "module">,
): Float32Array {
  assert(w.length === n * k && a.length === r * k && b.length === n * r, "merged: shapes");
  const out = new Float32Array(n * k);
  const sum = new Float64Array(k);
  for (let row = 0; row < n; row++) {
    sum.fill(0);
    for (let j = 0; j < r; j++) {
      const factor = b[row * r + j]!;
      for (let col = 0; col < k; col++) sum[col] = sum[col]! + factor * a[j * k + col]!;
    }
    for (let col = 0; col < k; col++) out[row * k + col] = w[row * k + col]! + scale * sum[col]!;
  }
  return out;
}

/** Writes the merged model; its values are rounded to float32, then to the type they are stored in. */
export function merge(settings: MergeSettings, talk: (line: string) => void): MergeSummary {
  const begin = performance.now();
  const { model, adapter: folder, out } = settings;
  const given = readModelConfig(model);
  if (given.quantization)
    throw new UsageError(
      "an adapter is not merged into quantized weights",
      model,
      "merge it into the plain model",
    );
  using weights = openWeights(model);
  checkWeights(given, weights);
  // The adapter of a reward model brings the value head that a language model lacks.
  const headed = given.kind === "causal" && readAdapterConfig(folder).taskType === "SEQ_CLS";
  const config = headed ? rewardSource(model, 0).config : given;
  const adapter = readAdapter(folder, config);
  const shapes = expectedTensors(config);
  using added = openAdapterWeights(folder, adapterShapes(shapes, adapter));
  const maps = new Map(adaptedMaps(shapes, adapter).map((map) => [`${map.module}.weight`, map]));

  const changed = (name: string) => maps.has(name) || added.tensors.has(savedName(name));
  const valuesOf = (name: string): Float32Array => {
    if (added.tensors.has(savedName(name))) return added.readFloat32(savedName(name));
    const values = weights.readFloat32(name);
    const map = maps.get(name);
    if (!map) return values;
    const { a, b } = adapterNames(map.module);
    return merged(values, added.readFloat32(a), added.readFloat32(b), map);
  };
  const bf16 = (name: string) => {
    if (settings.dtype !== null) return settings.dtype === "bfloat16";
    return weights.dtype(weights.has(name) ? name : "model.embed_tokens.weight") === "BF16";
  };
  const tensors = [...shapes].map(([name, shape]): FolderTensor => {
    const dtype = bf16(name) ? "BF16" : "F32";
    return {
      name,
      shape,
      dtype,
      data: () => {
        if (!changed(name) && weights.dtype(name) === dtype) return weights.read(name);
        const values = valuesOf(name);
        return new Uint8Array((bf16(name) ? f32ToBf16(values) : values).buffer);
      },
    };
  });
  const dtype = bf16("model.embed_tokens.weight") ? "bfloat16" : "float32";
  const generation = join(model, "generation_config.json");
  const files = tokenizerFiles(model).map((file) => join(model, file));
  talk(`merging ${maps.size} linear maps`);
  writeModelFolder(out, { ...config, dtype }, tensors, [
    ...files,
    ...(existsSync(generation) ? [generation] : []),
  ]);
  return { model, adapter: folder, maps: maps.size, seconds: (performance.now() - begin) / 1000, out };
}
