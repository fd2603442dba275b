import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { shown, UsageError } from "../core/errors.ts";
import { flagDetector, readDetector } from "./detectors.ts";
import { type FieldInfo, fieldsOf, type Schema, typed } from "./fields.ts";
import { type Entry, parseYaml, readConfigFile } from "./file.ts";
import { type RecipeInfo, type ResolvedConfig, recipeNamed } from "./recipes.ts";
import { flagRewards, readRewards } from "./rewards.ts";
import { COMPAT_PRESETS } from "./schema-grpo.ts";
import { didYouMean } from "./suggest.ts";

export interface TrainRequest {
  /** `rlv train TARGET`: a recipe or a config file. */
  readonly target: string | undefined;
  /** --config. */
  readonly configFile: string | undefined;
  /** Checkpoint folder whose train_config.json is the base. */
  readonly checkpoint: string | undefined;
}

export interface Base {
  readonly recipe: RecipeInfo;
  /** The layer under the flags, over the recipe's defaults. */
  readonly entries: ReadonlyMap<string, Entry>;
}

const CONFIG_FILE = /\.(ya?ml|json)$/;
/** Keys that name rewards. */
const REWARD_KEYS = ["reward", "eval_rewards"];
/** Keys of a config file that are not of the recipe. */
const FILE_KEYS = ["recipe", "rlv_version"];

/** Finds the recipe and the file layer of a training request. */
export function baseOf(request: TrainRequest): Base {
  const { target, configFile, checkpoint } = request;
  const targetIsFile = target !== undefined && (CONFIG_FILE.test(target) || target.includes("/"));
  if (targetIsFile && configFile !== undefined)
    throw new UsageError("two config files", `${target} and ${configFile}`, "give one of them");
  const file = targetIsFile ? target : configFile;
  if (checkpoint !== undefined && file !== undefined)
    throw new UsageError(
      "--resume_from brings the config of its checkpoint",
      file,
      "drop the config file and change single keys by flags",
    );
  const named = target === undefined || targetIsFile ? undefined : recipeNamed(target);
  if (checkpoint !== undefined) return fileBase(checkpointConfig(checkpoint), named);
  if (file !== undefined) return fileBase(file, named);
  return { recipe: named ?? recipeNamed("arithmetic"), entries: new Map() };
}

/** Where a run is kept, which its checkpoints do not say, from the run's own config: under what they say, over defaults. */
export function withPlaces(base: Base, run: string, keys: readonly string[]): Base {
  const path = join(run, "train_config.json");
  if (!existsSync(path)) return base;
  const entries = new Map([...readConfigFile(path)].filter(([key]) => keys.includes(key)));
  return { ...base, entries: new Map([...entries, ...base.entries]) };
}

function checkpointConfig(checkpoint: string): string {
  const path = join(checkpoint, "train_config.json");
  if (!existsSync(path))
    throw new UsageError(
      "not a checkpoint, it has no train_config.json",
      checkpoint,
      "give a run folder or RUN/checkpoints/step-N",
    );
  return path;
}

function fileBase(path: string, named: RecipeInfo | undefined): Base {
  const entries = readConfigFile(path);
  // Paths of modules are relative to the file that names them.
  for (const key of REWARD_KEYS) {
    const rewards = entries.get(key);
    if (rewards !== undefined && !noRewards(rewards.value))
      entries.set(key, { ...rewards, value: readRewards(rewards.value, rewards.where, dirname(path)) });
  }
  const chosen = entries.get("recipe");
  if (chosen !== undefined && typeof chosen.value !== "string")
    throw new UsageError(`recipe expects a name, given ${JSON.stringify(chosen.value)}`, chosen.where);
  const recipe =
    chosen === undefined
      ? (named ?? recipeNamed("arithmetic"))
      : recipeNamed(chosen.value as string, chosen.where);
  if (named !== undefined && named !== recipe)
    throw new UsageError(
      `the command says recipe ${named.name}, the file says ${recipe.name}`,
      chosen!.where,
      "drop one of them",
    );
  return { recipe, entries };
}

/**
 * Merges recipe defaults, compat preset, file, `between` and flags (later wins) into one frozen, checked config.
 * `between`: what a sweep says of one of its runs.
 */
export function resolveTrain(
  base: Base,
  flags: ReadonlyMap<string, string>,
  between: ReadonlyMap<string, Entry> = new Map(),
): ResolvedConfig {
  const { recipe } = base;
  const fields = fieldsOf(recipe.schema);
  const help = `rlv train ${recipe.name} --help lists every key`;
  const given = new Map<string, Entry>([
    ...canonical(without(base.entries, FILE_KEYS), fields, help),
    ...canonical(between, fields, help),
    ...canonical(flagEntries(flags, fields), fields, help, "--"),
  ]);
  const defaults =
    recipe.defaults === undefined
      ? new Map<string, Entry>()
      : without(parseYaml(recipe.defaults, `recipe ${recipe.name}`), FILE_KEYS);
  const compat = given.get("compat")?.value ?? defaults.get("compat")?.value;
  const preset = compat === "trl" ? COMPAT_PRESETS.trl : COMPAT_PRESETS.none;
  const merged = new Map<string, Entry>([
    ...defaults,
    ...Object.entries(preset).map(([key, value]): [string, Entry] => [key, { value, where: "--compat trl" }]),
    ...given,
  ]);
  for (const { name, kind } of fields) {
    const [entry, file] = [merged.get(name), base.entries.get(name) ?? defaults.get(name)];
    if (entry !== undefined && kind === "rewards")
      merged.set(name, { ...entry, value: rewardsOf(entry, file) });
    if (entry !== undefined && kind === "detector")
      merged.set(name, { ...entry, value: detectorOf(entry, file) });
  }
  const values = check(recipe.schema, fields, merged, help);
  return Object.freeze({ recipe: recipe.name, ...values }) as ResolvedConfig;
}

/** A key of further rewards may have none; the schema refuses that where one is needed. */
const noRewards = (value: unknown) => value === null || (Array.isArray(value) && value.length === 0);

/** Parts of a reward key that a file or a flag gives. */
function rewardsOf(entry: Entry, file: Entry | undefined) {
  const known =
    file === undefined || noRewards(file.value) ? [] : readRewards(file.value, file.where, process.cwd());
  if (entry === file) return known;
  if (noRewards(entry.value) || entry.value === "none") return [];
  return typeof entry.value === "string"
    ? flagRewards(entry.value, entry.where, known)
    : readRewards(entry.value, entry.where, process.cwd());
}

function detectorOf(entry: Entry, file: Entry | undefined) {
  const known = file === undefined ? null : readDetector(file.value, file.where);
  if (entry === file) return known;
  return typeof entry.value === "string"
    ? flagDetector(entry.value, entry.where, known)
    : readDetector(entry.value, entry.where);
}

/** Checks the flags of a command whose options are a schema. Returns the typed, frozen options. */
export function resolveOptions<T>(schema: Schema, flags: ReadonlyMap<string, string>, command: string): T {
  const fields = fieldsOf(schema);
  const help = `see rlv ${command} --help`;
  return Object.freeze(
    check(schema, fields, canonical(flagEntries(flags, fields), fields, help, "--"), help),
  ) as T;
}

/** What a recipe starts from, key by key: for help. */
export function startingValues(recipe: RecipeInfo): ReadonlyMap<string, unknown> {
  const own = new Map<string, unknown>(fieldsOf(recipe.schema).map((info) => [info.name, info.fallback]));
  if (recipe.defaults !== undefined)
    for (const [key, entry] of parseYaml(recipe.defaults, `recipe ${recipe.name}`))
      if (!FILE_KEYS.includes(key)) own.set(key, entry.value);
  return own;
}

function without(entries: ReadonlyMap<string, Entry>, keys: readonly string[]): Map<string, Entry> {
  return new Map([...entries].filter(([key]) => !keys.includes(key)));
}

function flagEntries(flags: ReadonlyMap<string, string>, fields: readonly FieldInfo[]): Map<string, Entry> {
  const entries = new Map<string, Entry>();
  for (const [name, raw] of flags) {
    const info = fields.find((field) => field.name === name || field.aliases.includes(name));
    entries.set(name, { value: info === undefined ? raw : typed(info, raw), where: `--${name} ${raw}` });
  }
  return entries;
}

/** Replaces aliases by the names of their keys; refuses unknown names and one key under two names. */
function canonical(
  entries: ReadonlyMap<string, Entry>,
  fields: readonly FieldInfo[],
  help: string,
  prefix = "",
): Map<string, Entry> {
  const names = new Map<string, FieldInfo>();
  for (const info of fields) for (const name of [info.name, ...info.aliases]) names.set(name, info);
  const result = new Map<string, Entry>();
  const spelled = new Map<string, string>();
  for (const [name, entry] of entries) {
    const info = names.get(name.replaceAll("-", "_"));
    if (info === undefined)
      throw new UsageError(
        `unknown key ${name}`,
        entry.where,
        didYouMean(name.replaceAll("-", "_"), [...names.keys()], help, prefix),
      );
    const other = spelled.get(info.name);
    if (other !== undefined)
      throw new UsageError(`${other} and ${name} are the same key`, entry.where, "keep one of them");
    spelled.set(info.name, name);
    result.set(info.name, entry);
  }
  return result;
}

function check(
  schema: Schema,
  fields: readonly FieldInfo[],
  entries: ReadonlyMap<string, Entry>,
  help: string,
): Record<string, unknown> {
  const input = Object.fromEntries([...entries].map(([key, entry]) => [key, entry.value]));
  const outcome = schema.safeParse(input);
  if (outcome.success) return outcome.data;
  const issue = outcome.error.issues[0]!;
  const key = String(issue.path[0]);
  const info = fields.find((field) => field.name === key);
  const entry = entries.get(key);
  if (issue.code === "custom") {
    // Rules between keys name their keys themselves; rules of one key do not know its name.
    const message = issue.message.includes(key) ? issue.message : `${key}: ${issue.message}`;
    throw new UsageError(message, entry?.where, help);
  }
  if (entry === undefined)
    throw new UsageError(`${key} is missing`, undefined, `give --${key}: ${info?.description}`);
  throw new UsageError(`${key} expects ${info?.expects}, given ${shown(entry.value)}`, entry.where, help);
}
