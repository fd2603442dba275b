/** Evaluation of a policy with its retain and forget adapters together and each by itself. */
import { mean } from "../core/lists.ts";
import type { Prompt, Scored } from "../core/records.ts";
import { Purpose } from "../core/rng.ts";
import type { PolicyStep, Score } from "./policy-step.ts";
import { flaggedShare } from "./routing.ts";

/** What retain and forget adapters are weighed with. */
export const MODES: Readonly<Record<Mode, readonly [retain: number, forget: number]>> = {
  both: [1, 1],
  retain_only: [1, 0],
  forget_only: [0, 1],
};
export type Mode = "both" | "retain_only" | "forget_only";

/**
 * One completion of every held-out prompt, drawn by the same random numbers in every mode; a model without such
 * adapters has the mode `both` alone. `score` flags what the detector itself calls a hack.
 */
export async function evaluateModes(
  policy: PolicyStep,
  held: readonly Prompt[],
  score: Score,
  step: number,
  store: (mode: Mode, scored: readonly Scored[]) => void,
): Promise<Record<string, number>> {
  const { model, options } = policy;
  const modes = model.dual ? (Object.keys(MODES) as Mode[]) : (["both"] as const);
  const metrics: Record<string, number> = {};
  for (const mode of modes) {
    const [retain, forget] = MODES[mode];
    try {
      if (model.dual) model.setScales(retain, forget);
      const key = { purpose: Purpose.evaluation, step };
      const scored = await policy.scored(held, 1, options.sampling, key, score);
      store(mode, scored);
      for (const [name, value] of Object.entries(modeFigures(scored)))
        metrics[`eval/${mode}/${name}`] = value;
      if (policy.reference) metrics[`eval/${mode}/kl_div`] = await policy.divergence(scored);
    } finally {
      if (model.dual) model.setScales(1, 1);
    }
  }
  return { "eval/reward": metrics["eval/both/reward"]!, ...metrics };
}

/** Figures of one mode; a completion that no reward can score counts in no reward. */
export function modeFigures(scored: readonly Scored[]): Record<string, number> {
  const figures: Record<string, number> = {
    reward: mean(scored.map(({ reward }) => reward).filter((reward) => !Number.isNaN(reward))),
  };
  for (const name of new Set(scored.flatMap(({ components }) => Object.keys(components))))
    figures[`rewards/${name}`] = mean(scored.flatMap(({ components }) => components[name] ?? []));
  const hacks = flaggedShare(scored);
  if (hacks !== null) figures.hack_rate = hacks;
  figures.unique_rate = new Set(scored.map(({ text }) => text)).size / scored.length;
  figures.completion_length_avg = mean(scored.map(({ ids }) => ids.length));
  figures.proper_ending_rate = mean(scored.map(({ finish }) => (finish === "eos" ? 1 : 0)));
  return figures;
}
