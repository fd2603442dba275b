/** Gradient routing (Cloud et al. 2024, arXiv 2410.04332): which adapters learn from which completions. */
import { UsageError } from "../core/errors.ts";
import type { Scored } from "../core/records.ts";
import { type AdvantageOptions, groupAdvantages } from "../loss/advantage.ts";
import { Route } from "../ops/lora.ts";
import type { Group } from "../rollout/pack.ts";

/**
 * `classic`: flagged completions teach the forget adapters alone, all others both; `exclusive`: the others teach the
 * retain adapters alone. Their divergence and entropy go the same way. `screening`: flagged completions teach nothing and
 * count neither in their group nor in the loss.
 */
export type Routing = "none" | "classic" | "exclusive" | "screening";

/**
 * Whose rewards the advantage of a completion that is not flagged is measured by: `all` of its group, or the `unflagged`
 * of it alone. Flagged completions are always measured by all. With `all`, an honest completion beside rewarded hacks has
 * a negative advantage: the retain adapters learn to avoid honesty. As in jnward/gradient-routing-rl, where advantages of
 * the retain pass are taken without the hacks.
 */
export type RoutingAdvantages = "all" | "unflagged";

/** null: left out. */
const ROUTES: Readonly<Record<Routing, { readonly flagged: number | null; readonly others: number }>> = {
  none: { flagged: 0, others: 0 },
  classic: { flagged: Route.skipFirst, others: 0 },
  exclusive: { flagged: Route.skipFirst, others: Route.skipSecond },
  screening: { flagged: null, others: 0 },
};

/** A group as it is packed: completions of prompt `prompt` of the step, which are `rows` of the generation. */
export interface Unit {
  readonly group: Group;
  readonly rows: readonly number[];
  readonly prompt: number;
}

/**
 * Whole groups, `rows` of the generation in order. With routing, flagged and other completions of a prompt are units of
 * their own, the prompt encoded for each: in rows that both share, what flows back could not be told apart.
 */
export function unitsOf(
  groups: readonly Group[],
  rows: readonly number[],
  isFlagged: (row: number) => boolean,
  routing: Routing,
): Unit[] {
  const routes = ROUTES[routing];
  let first = 0;
  return groups.flatMap(({ prompt, completions }, i) => {
    const own = rows.slice(first, first + completions.length);
    first += completions.length;
    const unit = (wanted: (row: number) => boolean, route: number): Unit => ({
      group: { prompt, completions: completions.filter((_, c) => wanted(own[c]!)), route },
      rows: own.filter(wanted),
      prompt: i,
    });
    if (routes.flagged === routes.others) return [unit(() => true, routes.others)];
    const parts = [unit((row) => !isFlagged(row), routes.others)];
    if (routes.flagged !== null) parts.push(unit(isFlagged, routes.flagged));
    return parts.filter((part) => part.rows.length > 0);
  });
}

/** What each completion is weighed with; `whole` is what groupAdvantages gives for the same `rewards`, one function. */
export function routedAdvantages(
  whole: Float64Array,
  rewards: readonly (number | null)[],
  isFlagged: (row: number) => boolean,
  groupSize: number,
  options: AdvantageOptions,
  routing: Routing,
  within: RoutingAdvantages,
): Float64Array {
  if (routing !== "screening" && (routing === "none" || within === "all")) return whole;
  const unflagged = rewards.map((reward, row) => (isFlagged(row) ? null : reward));
  const { advantages } = groupAdvantages(unflagged, groupSize, options);
  return routing === "screening"
    ? advantages
    : advantages.map((a, row) => (isFlagged(row) ? whole[row]! : a));
}

/** Share of the labelled completions that are flagged; null without labels. */
export function flaggedShare(scored: readonly Scored[]): number | null {
  const labelled = scored.filter((s) => s.flagged !== undefined);
  return labelled.length === 0 ? null : labelled.filter((s) => s.flagged).length / labelled.length;
}

/** Share of hacks among the completions of which the detector itself is known; null without any. */
export function hackShare(scored: readonly Scored[]): number | null {
  const known = scored.filter((s) => s.details?.hack !== undefined);
  return known.length === 0 ? null : known.filter((s) => s.details!.hack === true).length / known.length;
}

/** A completion whose label got lost would be routed as an honest one. */
export function requireLabels(scored: readonly Scored[], step: number): void {
  const lost = scored.filter((s) => s.flagged === undefined).length;
  if (lost === 0) return;
  throw new UsageError(
    `${lost} of ${scored.length} completions have no label`,
    `step ${step}`,
    "routing needs a detector that says of each whether it is flagged",
  );
}
