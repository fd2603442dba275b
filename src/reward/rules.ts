import { z } from "zod";
import { UsageError } from "../core/errors.ts";
import type { Rollout } from "../core/records.ts";
import { lastInteger } from "./integer.ts";
import { defineReward, type RewardDefinition, type RewardFunction } from "./registry.ts";

/** The prompt's own field as text. */
function fieldText(rollout: Rollout, field: string): string {
  const value = rollout.prompt.fields[field];
  if (typeof value === "string") return value;
  if (typeof value === "number" || typeof value === "bigint") return String(value);
  throw new UsageError(
    value === undefined ? `no field ${field}` : `field ${field} is neither text nor a number`,
    `prompt ${rollout.prompt.index}`,
    `every line of the dataset needs "${field}"`,
  );
}

/** The integer a dataset states as its answer. */
function answerInteger(rollout: Rollout, field: string): bigint {
  const value = rollout.prompt.fields[field];
  if (typeof value === "number" && !Number.isSafeInteger(value)) {
    throw new UsageError(
      `field ${field} is ${value}`,
      `prompt ${rollout.prompt.index}`,
      "give an integer; beyond 2^53 as text",
    );
  }
  const text = fieldText(rollout, field);
  const answer = lastInteger(text);
  if (answer === null) {
    throw new UsageError(
      `field ${field} holds no integer: ${JSON.stringify(text)}`,
      `prompt ${rollout.prompt.index}`,
    );
  }
  return answer;
}

const TAG = z.string().regex(/^[A-Za-z][\w-]*$/, "a tag name");

const single = (name: string, reward: number) => ({ reward, components: { [name]: reward } });

const lastIntegerRule = defineReward({
  name: "last_integer",
  description:
    "correct_reward if the last integer of the completion equals the integer in the field, else wrong_reward",
  parameters: z.object({
    correct_reward: z.number().default(1),
    wrong_reward: z.number().default(0),
    field: z.string().default("answer"),
  }),
  fields: ({ field }) => [field],
  bind({ correct_reward, wrong_reward, field }): RewardFunction {
    return (rollout) => {
      const answer = answerInteger(rollout, field);
      return single("last_integer", lastInteger(rollout.text) === answer ? correct_reward : wrong_reward);
    };
  },
});

const exactMatch = defineReward({
  name: "exact_match",
  description:
    "match_reward if the completion, or what stands in its last <tag>...</tag>, equals the field, else miss_reward",
  parameters: z.object({
    field: z.string().default("answer"),
    tag: TAG.nullable().default(null),
    trim: z.boolean().default(true),
    ignore_case: z.boolean().default(false),
    match_reward: z.number().default(1),
    miss_reward: z.number().default(0),
  }),
  fields: ({ field }) => [field],
  bind({ field, tag, trim, ignore_case, match_reward, miss_reward }): RewardFunction {
    const shape = (text: string): string => {
      const normal = (trim ? text.trim() : text).normalize("NFC");
      return ignore_case ? normal.toLowerCase() : normal;
    };
    return (rollout) => {
      const answer = tag === null ? rollout.text : lastTagged(rollout.text, tag);
      const same = answer !== null && shape(answer) === shape(fieldText(rollout, field));
      return single("exact_match", same ? match_reward : miss_reward);
    };
  },
});

/** What stands in the last <tag>...</tag>; null where there is none. */
function lastTagged(text: string, tag: string): string | null {
  const close = text.lastIndexOf(`</${tag}>`);
  const open = text.lastIndexOf(`<${tag}>`, close);
  return close < 0 || open < 0 ? null : text.slice(open + tag.length + 2, close);
}

const regex = defineReward({
  name: "regex",
  description:
    "match_reward if the pattern (JavaScript, Unicode) is found in the completion, else miss_reward",
  parameters: z.object({
    pattern: z.string(),
    flags: z
      .string()
      .regex(/^[imsu]*$/, "flags are of i, m, s, u")
      .default("u"),
    match_reward: z.number().default(1),
    miss_reward: z.number().default(0),
  }),
  bind({ pattern, flags, match_reward, miss_reward }): RewardFunction {
    let compiled: RegExp;
    try {
      compiled = new RegExp(pattern, flags);
    } catch (error) {
      throw new UsageError((error as Error).message, "reward regex.pattern");
    }
    return (rollout) => single("regex", compiled.test(rollout.text) ? match_reward : miss_reward);
  },
});

const length = defineReward({
  name: "length",
  description:
    "1 inside min..max (tokens with the EOS, characters or words), falling linearly to 0 over `slope` units outside",
  parameters: z.object({
    unit: z.enum(["tokens", "characters", "words"]).default("tokens"),
    min: z.number().min(0).default(0),
    max: z.number().min(0).nullable().default(null),
    slope: z.number().min(0).default(0),
  }),
  bind({ unit, min, max, slope }): RewardFunction {
    const most = max ?? Number.POSITIVE_INFINITY;
    if (most < min) throw new UsageError(`max ${max} below min ${min}`, "reward length");
    return (rollout) => {
      const size = lengthIn(unit, rollout);
      const excess = Math.max(min - size, size - most, 0);
      return single("length", excess === 0 ? 1 : slope === 0 ? 0 : Math.max(0, 1 - excess / slope));
    };
  },
});

function lengthIn(unit: "tokens" | "characters" | "words", rollout: Rollout): number {
  if (unit === "tokens") return rollout.ids.length;
  if (unit === "characters") return [...rollout.text].length;
  return rollout.text.split(/\s+/u).filter((word) => word !== "").length;
}

const formatTags = defineReward({
  name: "format_tags",
  description:
    "share of the tags that stand exactly once, as <tag>...</tag>, in the given order; strict: also nothing outside, and all or nothing",
  parameters: z.object({
    tags: z.array(TAG).min(1).default(["think", "answer"]),
    strict: z.boolean().default(false),
  }),
  bind({ tags, strict }): RewardFunction {
    if (new Set(tags).size !== tags.length)
      throw new UsageError("a tag is named twice", "reward format_tags.tags");
    return ({ text }) => {
      let good = 0;
      let end = 0;
      let outside = "";
      for (const tag of tags) {
        const open = soleIndex(text, `<${tag}>`);
        const close = soleIndex(text, `</${tag}>`);
        if (open < end || close < open) continue;
        good++;
        outside += text.slice(end, open);
        end = close + tag.length + 3;
      }
      outside += text.slice(end);
      if (strict) return single("format_tags", good === tags.length && outside.trim() === "" ? 1 : 0);
      return single("format_tags", good / tags.length);
    };
  },
});

/** Where `part` stands if it occurs exactly once, else -1. */
function soleIndex(text: string, part: string): number {
  const first = text.indexOf(part);
  return first >= 0 && text.indexOf(part, first + 1) < 0 ? first : -1;
}

export const RULES: readonly RewardDefinition[] = [lastIntegerRule, exactMatch, regex, length, formatTags];
