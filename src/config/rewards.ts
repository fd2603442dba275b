/** The config key `reward`: its forms, the checks of names and parameters, and what flags take over from a file. */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { parse } from "yaml";
import * as z from "zod";
import { UsageError } from "../core/errors.ts";
import type { RewardSetting } from "../recipe/settings.ts";
import { REWARDS } from "../reward/all.ts";
import { isModule, moduleName } from "../reward/module-reward.ts";
import { splitTimeout } from "../reward/registry.ts";
import { field } from "./fields.ts";
import { didYouMean } from "./suggest.ts";

const partSchema = z.strictObject({
  name: z.string().min(1),
  as: z.string().min(1),
  weight: z.number(),
  params: z.record(z.string(), z.unknown()),
  sha256: z.string().optional(),
});

export const rewardParts = () => z.array(partSchema);

/** Every key that recipes with rewards share; `fallback` is a reward by name. */
export const rewardShape = (fallback: string) => ({
  reward: field(
    rewardParts().min(1),
    [{ name: fallback, as: fallback, weight: 1, params: {} }],
    "what is rewarded: names of rewards joined by commas, or of TypeScript modules such as ./my.ts; in a file also a list of" +
      " {name, weight, params, as}, or NAME: WEIGHT lines. Names given as a flag keep what the file says of them",
  ),
});

/**
 * The parts that a value of the key names: a text NAME[,NAME...], a list of names and of { name, as, weight, params }, or
 * a mapping from names to weights or to { as, weight, params }. Names and parameters are checked. `folder` is where
 * relative paths of modules begin; the working folder comes second.
 */
export function readRewards(value: unknown, where: string, folder: string): RewardSetting[] {
  const parts = rawParts(value, where).map((raw) => readPart(raw, where, folder));
  if (parts.length === 0) throw new UsageError("reward names none", where, "name one or more");
  const twice = parts.find(({ as }, i) => parts.findIndex((part) => part.as === as) !== i);
  if (twice)
    throw new UsageError(
      `reward ${twice.as} is named twice`,
      where,
      "name it once, or one of them with `as: OTHER`",
    );
  return parts;
}

/** Rewards of the flag: what a file says of the same ones holds, unless the flag says it itself. */
export function flagRewards(raw: string, where: string, file: readonly RewardSetting[]): RewardSetting[] {
  // A flag may hold the forms of a file too, in YAML or JSON.
  const structured = /^\s*[[{]/.test(raw);
  if (structured) return readRewards(parseFlag(raw, where), where, process.cwd());
  const names = raw.split(",").map((name) => name.trim());
  const path = (name: string) => (isModule(name) ? resolve(name) : name);
  const kept = (name: string) => file.find((part) => part.as === name || part.name === path(name));
  return readRewards(
    names.map((name) => kept(name) ?? name),
    where,
    process.cwd(),
  );
}

function parseFlag(raw: string, where: string): unknown {
  try {
    return parse(raw);
  } catch (error) {
    throw new UsageError(`reward is not valid YAML (${(error as Error).message.split("\n")[0]})`, where);
  }
}

type Raw = Readonly<Record<string, unknown>>;

function rawParts(value: unknown, where: string): Raw[] {
  const form = "give NAME[,NAME...], a list of {name, weight, params}, or NAME: WEIGHT lines";
  const wrong = (given: unknown) =>
    new UsageError(`reward expects names, given ${JSON.stringify(given)?.slice(0, 80)}`, where, form);
  if (typeof value === "string") return value.split(",").map((name) => ({ name: name.trim() }));
  if (Array.isArray(value))
    return value.map((part) => {
      if (typeof part === "string") return { name: part };
      if (typeof part !== "object" || part === null || Array.isArray(part)) throw wrong(part);
      return part as Raw;
    });
  if (typeof value !== "object" || value === null) throw wrong(value);
  return Object.entries(value).map(([name, part]) => {
    if (typeof part === "number") return { name, weight: part };
    if (part === null) return { name };
    if (typeof part !== "object" || Array.isArray(part)) throw wrong(part);
    return { ...(part as Raw), name };
  });
}

const KEYS = ["name", "as", "weight", "params", "sha256"];

function readPart(raw: Raw, where: string, folder: string): RewardSetting {
  const unknown = Object.keys(raw).find((key) => !KEYS.includes(key));
  const given = String(raw.name ?? "");
  if (unknown !== undefined)
    throw new UsageError(
      `reward ${given} has an unknown key ${unknown}`,
      where,
      didYouMean(
        unknown,
        KEYS,
        "its keys are name, as, weight and params; what the reward itself takes goes under params",
      ),
    );
  const { weight = 1, params } = raw;
  if (typeof weight !== "number" || !Number.isFinite(weight))
    throw new UsageError(`reward ${given}: weight expects a number, given ${JSON.stringify(weight)}`, where);
  if (typeof (params ?? {}) !== "object" || Array.isArray(params))
    throw new UsageError(`reward ${given}: params expects names and values`, where);
  const own = (params ?? {}) as Raw;
  const as = raw.as === undefined || raw.as === null ? null : String(raw.as);
  if (as !== null && !/^[\w.-]+$/.test(as))
    throw new UsageError(`reward ${given}: as expects letters, digits, _ . and -, given ${as}`, where);
  if (isModule(given)) {
    const name = modulePath(given, where, folder);
    splitTimeout(moduleName(name), own);
    const sha256 = createHash("sha256").update(readFileSync(name)).digest("hex");
    return { name, as: as ?? moduleName(name), weight, params: own, sha256 };
  }
  if (!REWARDS.has(given))
    throw new UsageError(
      `unknown reward ${JSON.stringify(given)}`,
      where,
      didYouMean(
        given,
        REWARDS.names(),
        `the rewards are ${REWARDS.known().join(", ")}, and modules such as ./my.ts`,
      ),
    );
  if (REWARDS.get(given).bind) REWARDS.bind(given, own);
  else REWARDS.check(given, own);
  return { name: given, as: as ?? given, weight, params: own };
}

function modulePath(given: string, where: string, folder: string): string {
  const found = [resolve(folder, given), resolve(given)].find((path) => existsSync(path));
  if (found === undefined || !statSync(found).isFile())
    throw new UsageError(`no such reward module ${given}`, where, `it was looked for in ${folder}`);
  return found;
}

/** For help: every reward with what it is, and its parameters with their defaults. */
export function rewardHelp(): { readonly name: string; readonly text: string }[] {
  const families = REWARDS.families.map(({ name, member }) => ({ ...member(5), name }));
  return [...REWARDS.names().map((name) => REWARDS.get(name)), ...families].map((definition) => {
    const { name, description, parameters } = definition;
    const params = Object.entries(parameters.shape).map(([key, type]) => {
      const fallback = (type as z.ZodType).safeParse(undefined);
      return fallback.success ? `${key} ${JSON.stringify(fallback.data)}` : key;
    });
    return { name, text: `${description}. Params: ${params.join(", ") || "none"}.` };
  });
}
