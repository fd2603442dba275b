/** Retain and forget adapters of a run: from its settings, and from the checkpoint that it resumes. */
import { UsageError } from "../core/errors.ts";
import { type DualLoraOptions, isDualFolder } from "../io/dual-folder.ts";
import { expectedTensors, type ModelConfig } from "../io/hf-folder.ts";
import { adaptedMaps } from "../nn/adapters.ts";
import { readAdapterOptions } from "../run/open-model.ts";
import type { LoraRun } from "./lora.ts";

/** The adapters of a run; `base` is what they call their model. A checkpoint must have the same ones. */
export function dualRun(
  options: DualLoraOptions,
  config: ModelConfig,
  base: string,
  resumeFrom: string | null,
): LoraRun {
  const tensors = expectedTensors(config);
  const asked = JSON.stringify(adaptedMaps(tensors, options));
  if (resumeFrom !== null) {
    if (!isDualFolder(resumeFrom))
      throw new UsageError(
        "checkpoint without retain and forget adapters",
        resumeFrom,
        "resume it as it was begun",
      );
    if (JSON.stringify(adaptedMaps(tensors, readAdapterOptions(resumeFrom, config))) !== asked)
      throw new UsageError(
        "the checkpoint's retain and forget adapters have other ranks, scales or modules than the settings say",
        resumeFrom,
        "resume with the settings of the checkpoint",
      );
  }
  return { options: { ...options, base }, folder: resumeFrom };
}

/** A line of the run header. */
export function describeDual({ options, folder }: LoraRun, config: ModelConfig, trained: number): string {
  const maps = adaptedMaps(expectedTensors(config), options);
  const list = (values: readonly number[]) =>
    [...new Set(values.map((value) => Number(value.toPrecision(4))))].join(", ");
  const [retain, forget] = [maps.filter((m) => m.split > 0), maps.filter((m) => m.split < m.r)];
  const from = folder === null ? "" : ` from ${folder}`;
  const one = list(retain.map((m) => m.split));
  const two = list(forget.map((m) => m.r - m.split));
  return `retain and forget adapters${from}: ${trained} parameters; retain on ${retain.length} linear maps, rank ${one}, scale ${list(retain.map((m) => m.scale))}; forget on ${forget.length}, rank ${two}, scale ${list(forget.map((m) => m.scale2))}; dropout ${options.dropout ?? 0}`;
}
