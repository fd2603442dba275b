/**
 * Calls rewards. Whatever goes wrong in one (it throws, takes too long, gives no finite number, or results that do not
 * fit the rollouts) becomes an error that names the reward, the prompt and the completion.
 */
import { Interrupted, RlvError, UsageError } from "../core/errors.ts";
import type { Rollout, Scored } from "../core/records.ts";
import type { BoundReward, RewardContext, RewardResult } from "./registry.ts";

/** Seconds of one call where neither the reward nor its parameters say. */
const EACH_TIMEOUT = 60;
const BATCH_TIMEOUT = 600;

/** Thrown by a batch reward that knows which rollout it failed at: its position in the batch. */
export class RolloutFailure extends Error {
  constructor(
    readonly position: number,
    message: string,
  ) {
    super(message);
  }
}

/** One part of a run's reward. */
export interface RewardPart {
  readonly name: string;
  readonly weight: number;
  readonly reward: BoundReward;
}

/** A run's reward: the weighted sum of its parts. */
export class Rewards {
  constructor(readonly parts: readonly RewardPart[]) {
    if (parts.length === 0) throw new UsageError("no reward is named", "reward", "name one or more");
    const twice = parts.find(({ name }, i) => parts.findIndex((part) => part.name === name) !== i);
    if (twice) throw new UsageError(`reward ${twice.name} is named twice`, "reward", "name each part once");
  }

  /** `reward` is NaN where no part can score the rollout. */
  async score(rollouts: readonly Rollout[], context: RewardContext): Promise<Scored[]> {
    const sums = rollouts.map(() => ({
      reward: null as number | null,
      components: {} as Record<string, number>,
      details: {} as Record<string, unknown>,
    }));
    for (const { name, weight, reward } of this.parts) {
      const results = await scorePart(name, reward, rollouts, context);
      for (const [i, result] of results.entries()) {
        const sum = sums[i]!;
        for (const [key, value] of Object.entries(result.details ?? {}))
          sum.details[key in sum.details ? `${name}/${key}` : key] = value;
        if (result.reward === null) continue;
        Object.assign(sum.components, this.#components(name, weight, result.reward, result));
        sum.reward = (sum.reward ?? 0) + weight * result.reward;
      }
    }
    return rollouts.map((rollout, i) => {
      const { reward, components, details } = sums[i]!;
      return {
        ...rollout,
        reward: reward ?? Number.NaN,
        components,
        ...(Object.keys(details).length > 0 ? { details } : {}),
      };
    });
  }

  /**
   * What a part adds to the components: its weighted reward by its name, or components of its own as `name/component`;
   * of a sole part by their own names.
   */
  #components(part: string, weight: number, reward: number, result: RewardResult): Record<string, number> {
    const own = Object.entries(result.components);
    if (own.length < 2) return { [part]: weight * reward };
    const nameOf = (name: string) =>
      this.parts.length === 1 || name.startsWith(`${part}/`) ? name : `${part}/${name}`;
    return Object.fromEntries(own.map(([name, value]) => [nameOf(name), weight * value]));
  }
}

/** Results of one reward in the order of the rollouts. */
export async function scorePart(
  name: string,
  reward: BoundReward,
  rollouts: readonly Rollout[],
  context: RewardContext,
): Promise<readonly RewardResult[]> {
  if (rollouts.length === 0) return [];
  const { each, batch, concurrency = 1 } = reward;
  if (batch) {
    const { timeout = BATCH_TIMEOUT } = reward;
    const results = await call(name, rollouts, timeout, context, (inner) => batch(rollouts, inner));
    if (!Array.isArray(results) || results.length !== rollouts.length) {
      const count = Array.isArray(results) ? results.length : 0;
      const given = Array.isArray(results) ? `${count} results` : shown(results);
      throw new RlvError(
        `reward ${name} gave ${given} for ${rollouts.length} completions`,
        placeOf(rollouts[Math.min(count, rollouts.length - 1)]!),
        "return one result for each, in their order",
      );
    }
    return results.map((result, i) => checked(name, rollouts[i]!, result));
  }
  if (!each) throw new UsageError(`reward ${name} has neither a function of one rollout nor of a batch`);
  const { timeout = EACH_TIMEOUT } = reward;
  const results = new Array<RewardResult>(rollouts.length);
  const failure = new AbortController();
  const signal = context.signal ? AbortSignal.any([context.signal, failure.signal]) : failure.signal;
  let next = 0;
  const worker = async (): Promise<void> => {
    while (!failure.signal.aborted && next < rollouts.length) {
      const index = next++;
      const rollout = rollouts[index]!;
      const one = async (inner: RewardContext) => each(rollout, inner);
      const result = await call(name, [rollout], timeout, { ...context, signal }, one);
      results[index] = checked(name, rollout, result);
    }
  };
  const workers = Math.max(1, Math.min(concurrency, rollouts.length));
  try {
    await Promise.all(
      Array.from({ length: workers }, () =>
        worker().catch((error) => {
          failure.abort();
          throw error;
        }),
      ),
    );
  } finally {
    failure.abort();
  }
  return results;
}

const placeOf = (rollout: Rollout) => `prompt ${rollout.prompt.index}, completion ${rollout.completion}`;

function rangeOf(rollouts: readonly Rollout[]): string {
  const [first, last] = [rollouts[0]!, rollouts.at(-1)!];
  return rollouts.length === 1 ? placeOf(first) : `${placeOf(first)} to ${placeOf(last)}`;
}

/** One call, at most `seconds` long, which an abort of the run ends too. */
async function call<T>(
  reward: string,
  rollouts: readonly Rollout[],
  seconds: number | null,
  context: RewardContext,
  work: (context: RewardContext) => Promise<T>,
): Promise<T> {
  const over = new AbortController();
  const signal = context.signal ? AbortSignal.any([context.signal, over.signal]) : over.signal;
  const { promise: ended, reject } = Promise.withResolvers<never>();
  const where = rangeOf(rollouts);
  const stopped = () => reject(new Interrupted(`interrupted while reward ${reward} was computed`, where));
  const timer =
    seconds === null
      ? undefined
      : setTimeout(() => {
          const remedy = "raise its parameter timeout, or mend the reward";
          reject(new RlvError(`reward ${reward} took more than ${seconds} s`, where, remedy));
        }, seconds * 1000);
  context.signal?.addEventListener("abort", stopped);
  try {
    if (context.signal?.aborted) stopped();
    const running = work({ ...context, signal });
    // What it says after the race is over is of no interest.
    running.catch(() => {});
    return await Promise.race([running, ended]);
  } catch (error) {
    throw error instanceof RlvError && ours(error) ? error : failed(reward, rollouts, error);
  } finally {
    clearTimeout(timer);
    context.signal?.removeEventListener("abort", stopped);
    over.abort();
  }

  function ours(error: RlvError): boolean {
    return error instanceof Interrupted || error.message.startsWith(`reward ${reward} took more than`);
  }
}

/** What a reward threw, with its name and place. */
function failed(reward: string, rollouts: readonly Rollout[], error: unknown): RlvError {
  const at = error instanceof RolloutFailure ? rollouts[error.position] : undefined;
  const reason = (error instanceof Error ? error.message : String(error)).split("\n")[0];
  const what = `reward ${reward} failed`;
  const where = at ? placeOf(at) : rangeOf(rollouts);
  return error instanceof UsageError
    ? new UsageError(what, where, reason)
    : new RlvError(what, where, reason);
}

function shown(value: unknown): string {
  if (typeof value === "number" || value === undefined) return String(value);
  return (JSON.stringify(value) ?? String(value)).slice(0, 80);
}

/** The result itself if it is one; modules of users are not bound by our types. */
function checked(reward: string, rollout: Rollout, result: RewardResult): RewardResult {
  const where = placeOf(rollout);
  if (typeof result !== "object" || result === null || Array.isArray(result) || !("reward" in result))
    throw new RlvError(`reward ${reward} returned ${shown(result)}`, where, "return { reward, components }");
  const components = result.components ?? {};
  const bad = Object.entries({ ...components, reward: result.reward }).find(
    ([key, value]) => !Number.isFinite(value) && !(key === "reward" && value === null),
  );
  if (bad)
    throw new RlvError(
      `reward ${reward} gave ${shown(bad[1])} as ${bad[0]}`,
      where,
      "return a finite number, or null if the completion cannot be scored",
    );
  return { ...result, components };
}
