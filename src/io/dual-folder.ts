/**
 * Folders of a retain and a forget adapter on the same maps. Tensors carry the names that a PEFT model with adapters
 * `retain` and `forget` gives them in memory; PEFT refuses the folder, because it would load one of its own with nothing
 * in it. What is here is known from the tensors' names; adapter_config.json, and the same text in the tensors' file,
 * say how they are scaled.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { shown, Unsupported, UsageError } from "../core/errors.ts";
import { withFileErrors } from "./atomic.ts";
import {
  ADAPTER_CONFIG,
  ADAPTER_PREFIX,
  ADAPTER_WEIGHTS,
  type AdapterTensor,
  type LoraOptions,
  parseAdapterConfig,
  writeAdapterFiles,
} from "./peft-folder.ts";
import { openSafetensors } from "./safetensors.ts";

/** Samples that a detector flags teach the forget adapter alone. */
export const DUAL_SIDES = ["retain", "forget"] as const;
export type DualSideName = (typeof DUAL_SIDES)[number];
export const DUAL_TYPE = "DUAL_LORA";
const METADATA = "dual_lora";

/** One of the two, in PEFT's terms. */
export type DualSide = Pick<
  LoraOptions,
  "r" | "alpha" | "targets" | "rslora" | "rankPattern" | "alphaPattern"
>;

/** y = Wx + (α/r)·B_retain·A_retain·x + (α/r)·B_forget·A_forget·x, each side with its own rank, α and maps. */
export interface DualLoraOptions {
  readonly retain: DualSide;
  readonly forget: DualSide;
  /** Probability with which training drops an element of the input that both sides share. */
  readonly dropout?: number;
  readonly base?: string | null;
}

/** Names of a map's tensors: A [r, k] and B [n, r] of one side. */
export function dualNames(module: string, side: DualSideName): { readonly a: string; readonly b: string } {
  const stem = `${ADAPTER_PREFIX}${module}`;
  return { a: `${stem}.lora_A.${side}.weight`, b: `${stem}.lora_B.${side}.weight` };
}

const A_NAME = /^(.+)\.lora_A\.(retain|forget)\.weight$/;

/** Ranks of the maps by side, read from names and shapes of tensors alone; null: no retain and forget adapters. */
export function dualRanks(
  tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>,
): Record<DualSideName, Map<string, number>> | null {
  const ranks = { retain: new Map<string, number>(), forget: new Map<string, number>() };
  for (const [name, { shape }] of tensors) {
    const found = A_NAME.exec(name);
    if (!found) continue;
    const module = found[1]!.startsWith(ADAPTER_PREFIX) ? found[1]!.slice(ADAPTER_PREFIX.length) : found[1]!;
    ranks[found[2] as DualSideName].set(module, shape[0] ?? 0);
  }
  return ranks.retain.size + ranks.forget.size > 0 ? ranks : null;
}

/** Whether a folder holds retain and forget adapters, by its tensors. */
export function isDualFolder(folder: string): boolean {
  const path = join(folder, ADAPTER_WEIGHTS);
  if (!existsSync(path)) return false;
  using file = openSafetensors(path);
  return dualRanks(file.tensors) !== null;
}

/** What the config of a dual folder says; without one, what its tensors' file says of itself. */
export function readDualConfig(folder: string): DualLoraOptions {
  const path = join(folder, ADAPTER_CONFIG);
  const weights = join(folder, ADAPTER_WEIGHTS);
  const [text, where] = ((): [string, string] => {
    if (existsSync(path)) return [withFileErrors("read", path, () => readFileSync(path, "utf8")), path];
    using file = openSafetensors(weights);
    const own = file.metadata[METADATA];
    if (own !== undefined) return [own, weights];
    throw new UsageError(
      "retain and forget adapters that do not say how they are scaled",
      folder,
      `put an ${ADAPTER_CONFIG} beside them, as rlv writes it`,
    );
  })();
  let raw: unknown;
  try {
    raw = JSON.parse(text);
  } catch (error) {
    throw new UsageError(`not JSON (${(error as Error).message.split("\n")[0]})`, where, "get it again");
  }
  return parseDualConfig(raw, where);
}

const KEYS = new Set([
  "base_model_name_or_path",
  "forget",
  "lora_dropout",
  "peft_type",
  "retain",
  "task_type",
]);

function parseDualConfig(raw: unknown, where: string): DualLoraOptions {
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null && !Array.isArray(value);
  if (!isObject(raw)) throw new UsageError("not a JSON object", where, "get it again");
  if (raw.peft_type !== DUAL_TYPE)
    throw new UsageError(
      `peft_type ${shown(raw.peft_type)} beside retain and forget adapters`,
      where,
      `it must be ${DUAL_TYPE}`,
    );
  for (const key of Object.keys(raw))
    if (!KEYS.has(key))
      throw new Unsupported(`${key} is not supported`, where, "train the adapters without it");
  // Each side has the keys that PEFT gives an adapter; what both share is checked with the first.
  const sideOf = (side: DualSideName): DualSide & { dropout: number; base: string | null } => {
    const own = raw[side];
    if (!isObject(own)) throw new UsageError(`${side} is missing`, where, "get the adapters again");
    const { base_model_name_or_path, lora_dropout, task_type } = raw;
    const shared = { peft_type: "LORA", base_model_name_or_path, lora_dropout, task_type };
    const { r, alpha, targets, rslora, rankPattern, alphaPattern, dropout, base } = parseAdapterConfig(
      { ...own, ...shared },
      `${where} (${side})`,
    );
    return { r, alpha, targets, rslora, rankPattern, alphaPattern, dropout, base };
  };
  const { dropout, base, ...retain } = sideOf("retain");
  const { dropout: _, base: __, ...forget } = sideOf("forget");
  if (raw.task_type !== "CAUSAL_LM")
    throw new UsageError(
      `task_type is ${shown(raw.task_type)}`,
      where,
      "retain and forget adapters are for language models: CAUSAL_LM",
    );
  return { retain, forget, dropout, base };
}

function configText(options: DualLoraOptions, linear: readonly string[]): string {
  const textOf = (side: DualSide): Record<string, unknown> => {
    const named = side.targets === "all-linear" ? linear : side.targets;
    return {
      alpha_pattern: side.alphaPattern ?? {},
      lora_alpha: side.alpha,
      r: side.r,
      rank_pattern: side.rankPattern ?? {},
      target_modules: "pattern" in named ? named.pattern : [...named].sort(),
      use_rslora: side.rslora ?? false,
    };
  };
  const raw = {
    base_model_name_or_path: options.base ?? null,
    forget: textOf(options.forget),
    lora_dropout: options.dropout ?? 0,
    peft_type: DUAL_TYPE,
    retain: textOf(options.retain),
    task_type: "CAUSAL_LM",
  };
  return JSON.stringify(raw, null, 2);
}

/** Writes a dual folder; `linear` and `copyFiles` as in `writeAdapterFolder`. */
export function writeDualFolder(
  folder: string,
  options: DualLoraOptions,
  linear: readonly string[],
  tensors: Iterable<AdapterTensor>,
  copyFiles: readonly string[],
): void {
  const text = configText(options, linear);
  const metadata = { format: "pt", [METADATA]: JSON.stringify(JSON.parse(text)) };
  writeAdapterFiles(folder, text, tensors, copyFiles, metadata);
}
