import type { Rollout } from "../core/records.ts";
import type { RewardRollout } from "./module.ts";
import type { RewardResult } from "./registry.ts";

/** A rollout as programs and modules see it. */
export function rolloutRow(rollout: Rollout): RewardRollout {
  const { prompt } = rollout;
  return {
    prompt: prompt.text,
    completion: rollout.text,
    fields: prompt.fields,
    prompt_index: prompt.index,
    rollout_index: rollout.completion,
    finish: rollout.finish,
    ids: [...rollout.ids],
    logprobs: [...rollout.logprobs],
  };
}

/** What JSON cannot say of numbers comes as text. */
const NOT_FINITE = ["NaN", "Infinity", "-Infinity"];
export const numberText = (value: unknown): unknown =>
  typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
const textNumber = (value: unknown): unknown =>
  NOT_FINITE.includes(value as string) ? Number(value) : value;

/** A result that came as JSON; `details` go under the reward's own name. What is wrong with it the caller finds. */
export function resultOf(name: string, given: unknown): RewardResult {
  if (typeof given !== "object" || given === null || !("reward" in given)) return given as RewardResult;
  const { reward, components, details } = given as Record<string, unknown>;
  return {
    reward: textNumber(reward) as number | null,
    components: Object.fromEntries(
      Object.entries((components as Record<string, unknown>) ?? {}).map(([key, value]) => [
        key,
        textNumber(value) as number,
      ]),
    ),
    ...(details === undefined || details === null ? {} : { details: { [name]: details } }),
  };
}
