/** Adapter folders as PEFT reads and writes them: adapter_config.json and adapter_model.safetensors. */
import { chmodSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { shown, Unsupported, UsageError } from "../core/errors.ts";
import { copyFileAtomic, withFileErrors, writeFileAtomic } from "./atomic.ts";
import { openSafetensors, type SafetensorsFile, type TensorSource, writeSafetensors } from "./safetensors.ts";

export const ADAPTER_CONFIG = "adapter_config.json";
export const ADAPTER_WEIGHTS = "adapter_model.safetensors";
/** Before the path of a module in the names of an adapter's tensors. */
export const ADAPTER_PREFIX = "base_model.model.";

export type TaskType = "CAUSAL_LM" | "SEQ_CLS";

/** Names of modules or ends of them; a regular expression that whole names match; or every linear map but heads. */
export type LoraTargets = "all-linear" | readonly string[] | { readonly pattern: string };

/** Low-rank adapters (Hu et al. 2021) of a model, in PEFT's terms. */
export interface LoraOptions {
  readonly r: number;
  readonly alpha: number;
  readonly targets: LoraTargets;
  /** Scale alpha/√r (Kalajdzievski 2023) in the place of alpha/r. */
  readonly rslora?: boolean;
  /** Probability with which training drops an element of the input of A. */
  readonly dropout?: number;
  /** Ranks and alphas of modules whose names end as a regular expression says; the first that fits holds. */
  readonly rankPattern?: Readonly<Record<string, number>>;
  readonly alphaPattern?: Readonly<Record<string, number>>;
  /** Modules that are trained whole: `score`, the value head, or none. */
  readonly modulesToSave?: readonly string[];
  /** The model's name or folder, as adapter_config.json gives it. */
  readonly base?: string | null;
}

export interface AdapterConfig extends Required<LoraOptions> {
  /** null: the file does not say. */
  readonly taskType: TaskType | null;
}

/** Whether a folder holds an adapter alone: a model beside it would be a model folder. */
export function isAdapterFolder(folder: string): boolean {
  const holds = (file: string) => existsSync(join(folder, file));
  return (holds(ADAPTER_CONFIG) || holds(ADAPTER_WEIGHTS)) && !holds("config.json");
}

/** Keys that say nothing about what an adapter computes. */
const HARMLESS = new Set([
  "auto_mapping",
  "ensure_weight_tying",
  "inference_mode",
  "megatron_core",
  "peft_version",
  "qalora_group_size",
  "revision",
]);
const READ = new Set([
  "alpha_pattern",
  "base_model_name_or_path",
  "init_lora_weights",
  "lora_alpha",
  "lora_dropout",
  "modules_to_save",
  "peft_type",
  "r",
  "rank_pattern",
  "target_modules",
  "task_type",
  "use_rslora",
]);
/** What PEFT adds to modules_to_save where the task is SEQ_CLS. Models here name their head score. */
const HEADS = ["classifier", "score"];

function isNothing(value: unknown): boolean {
  if (value === null || value === false || value === "none") return true;
  return typeof value === "object" && Object.keys(value as object).length === 0;
}

/** Reads FOLDER/adapter_config.json; what rlv does not do is refused by its name. */
export function readAdapterConfig(folder: string): AdapterConfig {
  const path = join(folder, ADAPTER_CONFIG);
  if (!existsSync(path))
    throw new UsageError(`no ${ADAPTER_CONFIG}`, folder, "name a folder with an adapter in PEFT's format");
  const text = withFileErrors("read", path, () => readFileSync(path, "utf8"));
  let raw: unknown;
  try {
    raw = JSON.parse(text);
  } catch (error) {
    throw new UsageError(`not JSON (${(error as Error).message.split("\n")[0]})`, path, "get it again");
  }
  if (typeof raw !== "object" || raw === null || Array.isArray(raw))
    throw new UsageError("not a JSON object", path, "get it again");
  return parseAdapterConfig(raw as Record<string, unknown>, path);
}

export function parseAdapterConfig(raw: Readonly<Record<string, unknown>>, where: string): AdapterConfig {
  const wrong = (key: string, expects: string): never => {
    throw new UsageError(`${key} is ${shown(raw[key])}`, where, `it must be ${expects}`);
  };
  const refuse = (key: string): never => {
    throw new Unsupported(
      `${key} ${shown(raw[key])} is not supported`,
      where,
      "train the adapter without it",
    );
  };
  if (raw.peft_type === "DUAL_LORA")
    throw new UsageError(
      "retain and forget adapters, not one",
      where,
      "rlv merge makes PEFT adapters of them",
    );
  if (raw.peft_type !== "LORA") refuse("peft_type");
  for (const [key, value] of Object.entries(raw))
    if (!READ.has(key) && !HARMLESS.has(key) && !isNothing(value)) refuse(key);
  // These start from other weights of the base than the folder it names has.
  const init = raw.init_lora_weights ?? true;
  if (typeof init === "string" && !["gaussian", "orthogonal", "eva"].includes(init))
    refuse("init_lora_weights");
  const task = raw.task_type ?? null;
  if (task !== null && task !== "CAUSAL_LM" && task !== "SEQ_CLS") refuse("task_type");
  const number = (key: string, value: unknown, least: number, whole = false): number => {
    const good = typeof value === "number" && (whole ? Number.isSafeInteger(value) : Number.isFinite(value));
    return good && value >= least ? value : wrong(key, whole ? "a whole number from 1 on" : "a number");
  };
  const pattern = (key: string, whole: boolean): Record<string, number> => {
    const value = raw[key] ?? {};
    if (typeof value !== "object" || Array.isArray(value)) wrong(key, "an object of names and numbers");
    for (const entry of Object.values(value)) number(key, entry, whole ? 1 : 0, whole);
    return value as Record<string, number>;
  };
  const names = (key: string): readonly string[] => {
    const value = raw[key] ?? [];
    return Array.isArray(value) && value.every((name) => typeof name === "string")
      ? value
      : wrong(key, "a list of names");
  };
  const named = raw.target_modules;
  const targets = ((): LoraTargets => {
    if (typeof named === "string")
      return named.toLowerCase() === "all-linear" ? "all-linear" : { pattern: named };
    if (named === undefined || named === null) return wrong("target_modules", "names of modules");
    return names("target_modules");
  })();
  for (const name of names("modules_to_save")) if (!HEADS.includes(name)) refuse("modules_to_save");
  const saves = task === "SEQ_CLS" || names("modules_to_save").includes("score");
  const dropout = number("lora_dropout", raw.lora_dropout ?? 0, 0);
  if (dropout >= 1) wrong("lora_dropout", "below 1");
  const base = raw.base_model_name_or_path ?? null;
  if (base !== null && typeof base !== "string") wrong("base_model_name_or_path", "a name");
  return {
    taskType: task as TaskType | null,
    base: base as string | null,
    r: number("r", raw.r, 1, true),
    alpha: number("lora_alpha", raw.lora_alpha, 0),
    dropout,
    rslora:
      typeof (raw.use_rslora ?? false) === "boolean"
        ? raw.use_rslora === true
        : wrong("use_rslora", "true or false"),
    targets,
    rankPattern: pattern("rank_pattern", true),
    alphaPattern: pattern("alpha_pattern", false),
    modulesToSave: saves ? ["score"] : [],
  };
}

/** The text of adapter_config.json, keys in PEFT's order. Suffixes stand for all-linear, as they name the same maps. */
function configText(config: AdapterConfig, linear: readonly string[]): string {
  const { targets } = config;
  const named = targets === "all-linear" ? linear : targets;
  const raw: Record<string, unknown> = {
    alpha_pattern: config.alphaPattern,
    auto_mapping: null,
    base_model_name_or_path: config.base,
    bias: "none",
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    layers_pattern: null,
    layers_to_transform: null,
    lora_alpha: config.alpha,
    lora_dropout: config.dropout,
    modules_to_save: config.modulesToSave.length > 0 ? HEADS : null,
    peft_type: "LORA",
    r: config.r,
    rank_pattern: config.rankPattern,
    revision: null,
    target_modules: "pattern" in named ? named.pattern : [...named].sort(),
    task_type: config.taskType,
    use_rslora: config.rslora,
  };
  return JSON.stringify(raw, null, 2);
}

export type AdapterTensor = Omit<TensorSource, "data"> & { data(): Uint8Array };

/**
 * Writes an adapter folder that PEFT loads; `linear` are the last names of a model's linear maps, `copyFiles` lie beside
 * it under their own names (tokenizer files).
 */
export function writeAdapterFolder(
  folder: string,
  config: AdapterConfig,
  linear: readonly string[],
  tensors: Iterable<AdapterTensor>,
  copyFiles: readonly string[],
): void {
  writeAdapterFiles(folder, configText(config, linear), tensors, copyFiles);
}

/** The files of any adapter folder; `metadata`: of the tensors' file. */
export function writeAdapterFiles(
  folder: string,
  config: string,
  tensors: Iterable<AdapterTensor>,
  copyFiles: readonly string[],
  metadata?: Readonly<Record<string, string>>,
): void {
  withFileErrors("create", folder, () => mkdirSync(folder, { recursive: true }));
  const path = join(folder, ADAPTER_WEIGHTS);
  writeSafetensors(path, tensors, metadata);
  // As the safetensors library leaves its files.
  withFileErrors("write", path, () => chmodSync(path, 0o600));
  writeFileAtomic(join(folder, ADAPTER_CONFIG), config);
  for (const file of copyFiles) copyFileAtomic(file, join(folder, basename(file)));
}

/** Opens the tensors of an adapter; they must be exactly `expected`, by name and shape. */
export function openAdapterWeights(
  folder: string,
  expected: ReadonlyMap<string, readonly number[]>,
): SafetensorsFile {
  const path = join(folder, ADAPTER_WEIGHTS);
  if (!existsSync(path)) {
    const pickled = existsSync(join(folder, "adapter_model.bin"));
    throw new UsageError(
      `no ${ADAPTER_WEIGHTS}`,
      folder,
      pickled ? "it has adapter_model.bin: convert it to safetensors" : "get the adapter again",
    );
  }
  const file = openSafetensors(path);
  const problems: string[] = [];
  for (const [name, shape] of expected) {
    const stored = file.tensors.get(name);
    if (!stored) problems.push(`missing ${name} [${shape}]`);
    else if (String(stored.shape) !== String(shape))
      problems.push(`${name} is [${stored.shape}], expected [${shape}]`);
    else if (!["F32", "BF16", "F16"].includes(stored.dtype))
      problems.push(`${name} is ${stored.dtype}, expected F32, BF16 or F16`);
  }
  for (const [name, { shape }] of file.tensors)
    if (!expected.has(name)) problems.push(`unexpected ${name} [${shape}]`);
  if (problems.length === 0) return file;
  file.close();
  const more = problems.length > 4 ? ` and ${problems.length - 4} more` : "";
  throw new UsageError(
    `adapter for another model: ${problems.slice(0, 4).join(", ")}${more}`,
    path,
    "give it the model that its adapter_config.json names",
  );
}
