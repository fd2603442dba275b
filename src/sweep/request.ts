/** What a command line and a sweep file ask for: keys by their own names, values typed, each with its place. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { type FieldInfo, fieldsOf, typed } from "../config/fields.ts";
import { type Entry, readConfigFile } from "../config/file.ts";
import { type Base, baseOf } from "../config/resolve.ts";
import { readRewards } from "../config/rewards.ts";
import { SWEEP_FILE_OPTIONS } from "../config/schema-sweep.ts";
import { didYouMean } from "../config/suggest.ts";
import { UsageError } from "../core/errors.ts";

export type Settings = ReadonlyMap<string, Entry>;

export interface GridAxis {
  readonly values: readonly unknown[];
  readonly where: string;
}

export interface SweepRequest {
  /** The recipe, and what its file says. */
  readonly base: Base;
  readonly fixed: Settings;
  /** Empty: none. */
  readonly variants: ReadonlyMap<string, Settings>;
  readonly grid: ReadonlyMap<string, GridAxis>;
  /** Options that the sweep file gives, as flags would. */
  readonly options: ReadonlyMap<string, string>;
}

const PARTS = ["fixed", "variants", "grid"];
const FILE_KEYS = ["recipe", ...PARTS, ...SWEEP_FILE_OPTIONS];
/** Keys that the sweep decides for its runs. */
const OWN: Readonly<Record<string, string>> = {
  output_dir: "give --output_dir for the whole sweep",
  run_name: "the sweep names its runs; --name names the sweep",
  log_dir: "the sweep keeps TensorBoard's files in its folder",
  threads: "give --threads or --per_device for the whole sweep",
  recipe: "it comes first: rlv sweep RECIPE",
};

/**
 * @param target a recipe, a config file of one, or a sweep file
 * @param grid words KEY=VALUE,VALUE of --grid; `fixed`: words KEY=VALUE of --fixed. They override the sweep file's
 */
export function readRequest(
  target: string | undefined,
  grid: readonly string[],
  fixed: readonly string[],
): SweepRequest {
  const file = fileOf(target, grid.length > 0);
  const { base } = file;
  const keys = new Keys(base);
  const flagGrid = new Map<string, GridAxis>();
  for (const word of grid) {
    const { info, raw, where } = keys.split(word, "--grid");
    refuseTwice(flagGrid.has(info.name), info.name, where);
    flagGrid.set(info.name, { values: rawValues(raw, info.name, where).map((v) => typed(info, v)), where });
  }
  const flagFixed = new Map<string, Entry>();
  for (const word of fixed) {
    const { info, raw, where } = keys.split(word, "--fixed");
    refuseTwice(flagFixed.has(info.name), info.name, where);
    if (flagGrid.has(info.name))
      throw new UsageError(`${info.name} is both in the grid and fixed`, where, "keep one of them");
    flagFixed.set(info.name, { value: typed(info, raw), where });
  }
  const without = <T>(map: ReadonlyMap<string, T>) =>
    new Map([...map].filter(([key]) => !flagGrid.has(key) && !flagFixed.has(key)));
  const request: SweepRequest = {
    base,
    fixed: new Map([...without(file.fixed), ...flagFixed]),
    variants: file.variants,
    grid: new Map([...without(file.grid), ...flagGrid]),
    options: file.options,
  };
  for (const [variant, settings] of request.variants)
    for (const [key, { where }] of settings) {
      const other = request.grid.get(key)?.where ?? request.fixed.get(key)?.where;
      if (other !== undefined)
        throw new UsageError(
          `${key} is in variant ${variant} and in ${other}`,
          where,
          "keep one of them; what all variants share is fixed",
        );
    }
  if (request.grid.size === 0 && request.variants.size === 0)
    throw new UsageError(
      "nothing varies",
      target ?? "rlv sweep",
      "give --grid KEY=VALUE,VALUE or a sweep file with variants",
    );
  return request;
}

function refuseTwice(twice: boolean, key: string, where: string): void {
  if (twice) throw new UsageError(`${key} is given twice`, where, "keep one of them");
}

/** Finds keys of a recipe by any of their names. */
class Keys {
  readonly #fields: readonly FieldInfo[];
  constructor(readonly base: Base) {
    this.#fields = fieldsOf(base.recipe.schema);
  }

  find(written: string, where: string): FieldInfo {
    const name = written.replaceAll("-", "_").replace(/^__/, "");
    const own = OWN[name];
    if (own !== undefined) throw new UsageError(`${name} is no key of a run in a sweep`, where, own);
    const info = this.#fields.find((field) => field.name === name || field.aliases.includes(name));
    if (info !== undefined) return info;
    throw new UsageError(
      `unknown key ${written}`,
      where,
      didYouMean(
        name,
        this.#fields.flatMap((field) => [field.name, ...field.aliases]),
        `rlv train ${this.base.recipe.name} --help lists every key`,
      ),
    );
  }

  split(word: string, flag: string) {
    const where = `${flag} ${word}`;
    const at = word.indexOf("=");
    if (at <= 0) throw new UsageError(`${flag} expects KEY=VALUE`, where);
    return { info: this.find(word.slice(0, at), where), raw: word.slice(at + 1), where };
  }

  /** Keys and values of a mapping in a sweep file. `folder`: where its paths of reward modules begin. */
  mapping(value: unknown, where: string, folder: string): Map<string, Entry> {
    const found = new Map<string, Entry>();
    for (const [key, each] of Object.entries(objectOf(value, where, "keys and values"))) {
      const at = `${where}, ${key}`;
      const info = this.find(key, at);
      refuseTwice(found.has(info.name), info.name, at);
      found.set(info.name, { value: fileValue(info, each, at, folder), where: at });
    }
    return found;
  }

  axes(value: unknown, where: string, folder: string): Map<string, GridAxis> {
    const found = new Map<string, GridAxis>();
    for (const [key, list] of Object.entries(objectOf(value, where, "keys and lists of values"))) {
      const at = `${where}, ${key}`;
      const info = this.find(key, at);
      refuseTwice(found.has(info.name), info.name, at);
      if (!Array.isArray(list))
        throw new UsageError(`${key} expects a list of values, given ${JSON.stringify(list)}`, at);
      if (list.length === 0) throw new UsageError(`${key} has no values`, at, "give one or more");
      found.set(info.name, { values: list.map((each) => fileValue(info, each, at, folder)), where: at });
    }
    return found;
  }
}

function objectOf(value: unknown, where: string, what: string): Readonly<Record<string, unknown>> {
  if (typeof value === "object" && value !== null && !Array.isArray(value))
    return value as Record<string, unknown>;
  throw new UsageError(`expects ${what}, given ${JSON.stringify(value)}`, where);
}

/** A value as a sweep file writes it. Paths of reward modules are relative to the file. */
function fileValue(info: FieldInfo, value: unknown, where: string, folder: string): unknown {
  if (info.kind !== "rewards" || value === null || value === "none")
    return typeof value === "string" ? typed(info, value) : value;
  const names = typeof value === "string" && !value.includes("/") && !/\.[jt]s\b/.test(value);
  // Names alone keep what the recipe's file says of them.
  return names || (Array.isArray(value) && value.length === 0) ? value : readRewards(value, where, folder);
}

/** Values between commas; commas in brackets, braces and quotes divide nothing. */
export function rawValues(raw: string, key: string, where: string): string[] {
  const values: string[] = [];
  let value = "";
  let depth = 0;
  let quote = "";
  for (const sign of raw) {
    if (quote !== "") quote = sign === quote ? "" : quote;
    else if (depth > 0 && (sign === '"' || sign === "'")) quote = sign;
    else if (sign === "[" || sign === "{") depth += 1;
    else if (sign === "]" || sign === "}") depth -= 1;
    if (sign === "," && depth === 0 && quote === "") {
      values.push(value);
      value = "";
    } else value += sign;
  }
  values.push(value);
  if (raw === "") throw new UsageError(`${key} has no values`, where, `write ${key}=VALUE,VALUE`);
  if (values.some((each) => each.trim() === ""))
    throw new UsageError(`${key} has an empty value`, where, "take the comma away, or write none");
  return values.map((each) => each.trim());
}

function fileOf(target: string | undefined, gridGiven: boolean): SweepRequest {
  const nothing = { fixed: new Map(), variants: new Map(), grid: new Map(), options: new Map() };
  if (target === undefined || !/\.(ya?ml|json)$/.test(target)) return { base: train(target), ...nothing };
  const entries = readConfigFile(target);
  if (!PARTS.some((part) => entries.has(part))) {
    if (!gridGiven)
      throw new UsageError("no sweep file, and no --grid", target, `a sweep file has ${PARTS.join(", ")}`);
    return { base: train(target), ...nothing };
  }
  for (const [key, { where }] of entries)
    if (!FILE_KEYS.includes(key))
      throw new UsageError(
        `unknown key ${key} of a sweep file`,
        where,
        didYouMean(
          key,
          FILE_KEYS,
          `its keys are ${FILE_KEYS.join(", ")}; settings of the runs go under fixed`,
        ),
      );
  const folder = dirname(target);
  const recipe = entries.get("recipe");
  if (typeof recipe?.value !== "string")
    throw new UsageError("recipe is missing", recipe?.where ?? target, "name a recipe, or a config file");
  const beside = join(folder, recipe.value);
  const isFile = /\.(ya?ml|json)$/.test(recipe.value);
  const base = train(isFile && existsSync(beside) ? beside : recipe.value);
  const keys = new Keys(base);
  const part = <T>(name: string, read: (value: unknown, where: string) => Map<string, T>) => {
    const entry = entries.get(name);
    return entry === undefined || entry.value === null
      ? new Map<string, T>()
      : read(entry.value, `${entry.where} ${name}`);
  };
  const fixed = part("fixed", (value, where) => keys.mapping(value, where, folder));
  const grid = part("grid", (value, where) => keys.axes(value, where, folder));
  for (const [key, { where }] of fixed)
    if (grid.has(key))
      throw new UsageError(`${key} is both in the grid and fixed`, where, "keep one of them");
  const variants = part("variants", (value, where) => {
    const named = new Map<string, Settings>();
    for (const [name, settings] of Object.entries(objectOf(value, where, "names and their settings"))) {
      if (!/^[\w.+-]{1,60}$/.test(name) || name.startsWith("."))
        throw new UsageError(
          `variant ${JSON.stringify(name)} is not the name of a folder`,
          where,
          "use letters, digits, _ . + and -",
        );
      named.set(name, keys.mapping(settings ?? {}, `${where}, ${name}`, folder));
    }
    return named;
  });
  const options = new Map<string, string>();
  for (const name of SWEEP_FILE_OPTIONS) {
    const entry = entries.get(name);
    if (entry !== undefined && entry.value !== null) options.set(name, String(entry.value));
  }
  return { base, fixed, variants, grid, options };
}

const train = (target: string | undefined): Base =>
  baseOf({ target, configFile: undefined, checkpoint: undefined });
