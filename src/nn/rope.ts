import type { ModelConfig } from "../io/hf-folder.ts";

/**
 * cos and sin of RoPE for positions 0..count-1: rows [cos(D/2), sin(D/2)]. Frequencies are rounded to float32 and
 * multiplied in float32 as transformers does. Llama 3 scaling: wavelengths beyond the low-frequency bound are
 * divided by `factor`, those between the bounds are blended.
 */
export function ropeTable(config: ModelConfig, count: number): Float32Array {
  const half = config.headDim / 2;
  const frequencies = inverseFrequencies(config);
  const table = new Float32Array(count * config.headDim);
  for (let position = 0; position < count; position++) {
    const row = position * config.headDim;
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(position * frequencies[i]!);
      table[row + i] = Math.cos(angle);
      table[row + half + i] = Math.sin(angle);
    }
  }
  return table;
}

export function inverseFrequencies(config: ModelConfig): Float32Array {
  const half = config.headDim / 2;
  const base = Float32Array.from(
    { length: half },
    (_, i) => 1 / config.ropeTheta ** ((2 * i) / config.headDim),
  );
  const scaling = config.ropeScaling;
  if (!scaling) return base;
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings: original } = scaling;
  return base.map((frequency) => {
    const wavelength = (2 * Math.PI) / frequency;
    if (wavelength > original / lowFreqFactor) return frequency / factor;
    if (wavelength < original / highFreqFactor) return frequency;
    const smooth = (original / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
    return ((1 - smooth) * frequency) / factor + smooth * frequency;
  });
}
