/**
 * Processes ("ranks") that train one model together. Each makes its share of the completions and of the gradient and has
 * all rollouts and the whole gradient afterwards, so that every rank takes the same optimizer step; rank 0 alone writes.
 */
import type { Parameters } from "../nn/parameters.ts";
import type { Transformer } from "../nn/transformer.ts";
import { type Group, type GroupPart, microBatches } from "../rollout/pack.ts";
import type { Tensor } from "../tape/tensor.ts";
import type { RunControl } from "./reporter.ts";

/** What a run was asked for between its steps. */
export type Stop = ReturnType<RunControl["stopRequested"]>;

/** Sums of the gradients of all ranks, made while the last of them are computed. */
export interface GradientSums {
  /** For the last backward pass of this rank (see `Graph.backward`); a sum begins as soon as its gradients are there. */
  readonly final: ((parameter: Tensor) => void) | undefined;
  /** All is emitted that adds to gradients; resolves when they are the sums. */
  finish(): Promise<void>;
}

export interface Ranks {
  readonly rank: number;
  readonly count: number;
  /** Whether this rank writes the run's folder and speaks. */
  readonly root: boolean;
  /** Ranks on this machine for the first of them, which looks after what they share; 0 for the others. */
  readonly inCharge: number;
  /** Seconds that this rank has spent on what ranks give each other, waiting included, and not on work of its own. */
  readonly exchanged: number;
  /** What `body` gives on every rank, by rank; all ranks call it at the same place. An error of one is thrown on all. */
  gather<T>(what: string, body: () => T | Promise<T>): Promise<T[]>;
  /** The most urgent of what the ranks were asked. */
  stop(own: Stop): Promise<Stop>;
  /** `gather` of what adds up gradients: they are their sums over the ranks afterwards. */
  gatherGradients<T>(
    what: string,
    parameters: Parameters,
    body: (sums: GradientSums) => Promise<T>,
  ): Promise<T[]>;
  /** All hold the same weights; at the first meeting those too that are not trained. */
  mustAgree(model: Transformer, step: number, first: boolean): Promise<void>;
  /** An error that every rank throws at this very place. */
  everywhere<E>(error: E): E;
  /** The share of this rank of `items` things of one cost, [begin, end). */
  share(items: number): readonly [begin: number, end: number];
}

/** One process. */
export const ALONE: Ranks = {
  rank: 0,
  count: 1,
  root: true,
  inCharge: 1,
  gather: async (_, body) => [await body()],
  stop: async (own) => own,
  exchanged: 0,
  gatherGradients: async (_, __, body) => [await body({ final: undefined, finish: async () => {} })],
  mustAgree: async () => {},
  everywhere: (error) => error,
  share: (items) => [0, items],
};

/** Steps between two comparisons of the weights. */
export const COMPARE_EVERY = 50;

/** Cuts items of the given costs, in order, into `count` ranges of about the same cost: their begins, and the end. */
export function cutByCost(costs: readonly number[], count: number): number[] {
  const total = costs.reduce((a, b) => a + b, 0);
  const begins = [0];
  let sum = 0;
  for (const [i, cost] of costs.entries()) {
    // An item belongs where its middle lies.
    while (begins.length < count && sum + cost / 2 >= (total * begins.length) / count) begins.push(i);
    sum += cost;
  }
  while (begins.length <= count) begins.push(costs.length);
  return begins;
}

/** All micro-batches of a step, by rank, and the rank whose each one is. */
export interface Dealt<Batch = GroupPart[]> {
  readonly batches: Batch[];
  readonly owners: readonly number[];
}

/** Items of the given costs, divided in order among `count` ranks; `cut` makes the micro-batches of [begin, end). */
export function deal<Batch>(
  { count }: Ranks,
  costs: readonly number[],
  cut: (begin: number, end: number) => Batch[],
): Dealt<Batch> {
  const begins = cutByCost(costs, count);
  const shares = Array.from({ length: count }, (_, rank) => cut(begins[rank]!, begins[rank + 1]!));
  return { batches: shares.flat(), owners: shares.flatMap((share, rank) => share.map(() => rank)) };
}

/**
 * Whole groups, divided in order among the ranks by their tokens (those to `skip` cost nothing), each share cut into
 * micro-batches of at most `budget` packed tokens: with one rank those of `microBatches`.
 */
export function dealGroups(
  ranks: Ranks,
  groups: readonly Group[],
  budget: number,
  sharePrefix = true,
  skip: readonly boolean[] = [],
): Dealt {
  const cost = ({ prompt, completions }: Group) =>
    prompt.length + completions.reduce((sum, { length }) => sum + length, 0);
  const costs = groups.map((group, i) => (skip[i] ? 0 : cost(group)));
  return deal(ranks, costs, (begin, end) =>
    microBatches(groups.slice(begin, end), budget, sharePrefix).map((parts) =>
      parts.map(({ group, completions }) => ({ group: group + begin, completions })),
    ),
  );
}

/** Micro-batches that stay as they are. */
export function dealBatches({ count }: Ranks, batches: GroupPart[][]): Dealt {
  const begins = cutByCost(new Array(batches.length).fill(1), count);
  const owners = batches.map((_, i) => begins.findLastIndex((begin, rank) => begin <= i && rank < count));
  return { batches, owners };
}
