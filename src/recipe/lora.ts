/** Adapters of a run: which ones, from its flags, from the folder it starts from or from the checkpoint it resumes. */
import { UsageError } from "../core/errors.ts";
import { expectedTensors, type ModelConfig } from "../io/hf-folder.ts";
import {
  type AdapterConfig,
  isAdapterFolder,
  type LoraOptions,
  type LoraTargets,
} from "../io/peft-folder.ts";
import { type AdapterOptions, adaptedMaps, isDual } from "../nn/adapters.ts";
import { type Quantization, quantizationOf } from "../nn/quantized.ts";
import { readAdapter } from "../run/open-model.ts";
import { LORA_DEFAULTS, type LoraSettings } from "./settings.ts";

export interface LoraRun {
  readonly options: AdapterOptions;
  /** Where its first values lie; null: A is random, B zero. */
  readonly folder: string | null;
}

/** What a flag is about in an adapter. */
const FLAGS = {
  lora_r: (a: LoraOptions) => a.r,
  lora_alpha: (a: LoraOptions) => a.alpha,
  lora_dropout: (a: LoraOptions) => a.dropout ?? 0,
  use_rslora: (a: LoraOptions) => a.rslora ?? false,
} as const;

/** The adapters of a run, or null where all parameters are trained. */
export function loraRun(
  settings: LoraSettings,
  config: ModelConfig,
  base: string,
  resumeFrom: string | null,
): LoraRun | null {
  const resumed = resumeFrom !== null && isAdapterFolder(resumeFrom);
  if (!settings.lora && settings.adapter === null) {
    if (!resumed) return null;
    throw new UsageError("checkpoint of adapters", resumeFrom, "resume it with --lora true");
  }
  if (resumeFrom !== null && !resumed)
    throw new UsageError("checkpoint of a whole model", resumeFrom, "resume it with --lora false");
  const folder = resumeFrom ?? settings.adapter;
  const stored = folder === null ? null : readAdapter(folder, config);
  if (settings.adapter !== null) {
    refuseConflicts(settings, stored!, folder!, config);
    return { options: { ...stored!, base }, folder };
  }
  const flags: LoraOptions = {
    r: settings.lora_r,
    alpha: settings.lora_alpha,
    targets: targetsOf(settings.lora_target_modules),
    dropout: settings.lora_dropout,
    rslora: settings.use_rslora,
    modulesToSave: config.kind === "reward" ? ["score"] : [],
    base,
  };
  // Dropout is no part of what was learnt: a resumed run may have another.
  if (stored && mapsText(config, stored) !== mapsText(config, flags))
    throw new UsageError(
      "the checkpoint's adapters have other ranks, scales or modules than the flags say",
      resumeFrom!,
      "resume without lora flags",
    );
  return { options: flags, folder };
}

/** How the frozen model is quantized. */
export function baseQuantization(settings: LoraSettings): Quantization | null {
  const type = settings.base_quant_type;
  return type === "none" ? null : quantizationOf(type);
}

export function targetsOf(flag: string): LoraTargets {
  return flag.toLowerCase() === "all-linear" ? "all-linear" : flag.split(",").map((name) => name.trim());
}

function mapsText(config: ModelConfig, options: LoraOptions): string {
  return JSON.stringify([adaptedMaps(expectedTensors(config), options), options.modulesToSave ?? []]);
}

/** An adapter brings its own settings; a flag that says something else would be ignored. */
function refuseConflicts(
  settings: LoraSettings,
  stored: AdapterConfig,
  folder: string,
  config: ModelConfig,
): void {
  const remedy = "the adapter's own settings hold: drop the flag";
  for (const flag of Object.keys(FLAGS) as (keyof typeof FLAGS)[]) {
    const [given, own] = [settings[flag], FLAGS[flag](stored)];
    if (given !== LORA_DEFAULTS[flag] && given !== own)
      throw new UsageError(`--${flag} ${given}, the adapter has ${own}`, folder, remedy);
  }
  const given = settings.lora_target_modules;
  const named = { ...stored, targets: targetsOf(given) };
  if (given !== LORA_DEFAULTS.lora_target_modules && mapsText(config, named) !== mapsText(config, stored))
    throw new UsageError(`--lora_target_modules ${given}, the adapter has other modules`, folder, remedy);
}

/** A line of the run header. */
export function describeLora({ options, folder }: LoraRun, config: ModelConfig, trained: number): string {
  const maps = adaptedMaps(expectedTensors(config), options);
  const ranks = [...new Set(maps.map(({ r }) => r))].join(", ");
  const scales = [...new Set(maps.map(({ scale }) => Number(scale.toPrecision(4))))].join(", ");
  const from = folder === null ? "" : ` from ${folder}`;
  const saved =
    !isDual(options) && options.modulesToSave?.length ? ` and ${options.modulesToSave.join(", ")}` : "";
  return `adapters${from}: ${trained} parameters on ${maps.length} linear maps${saved}, rank ${ranks}, scale ${scales}, dropout ${options.dropout ?? 0}`;
}
