/**
 * Calls rewards. Whatever goes wrong in one (it throws, takes too long, gives no finite number, or results that do not
 * fit the rollouts) becomes an error that names the reward, the prompt and the completion.
 */
import { Interrupted, RlvError, shown, UsageError } from "../core/errors.ts";
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
  const over = new AbortController();
  const signal = context.signal ? AbortSignal.any([context.signal, over.signal]) : over.signal;
  try {
    return await scoreUntil(signal, over, name, reward, rollouts, context.step);
  } finally {
    // What still runs of a failed batch, or of one that took too long, is of no use.
    over.abort();
  }
}

async function scoreUntil(
  signal: AbortSignal,
  over: AbortController,
  name: string,
  { each, batch, concurrency = 1, timeout }: BoundReward,
  rollouts: readonly Rollout[],
  step: number,
): Promise<readonly RewardResult[]> {
  const context = { step, signal };
  if (batch) {
    const seconds = timeout === undefined ? BATCH_TIMEOUT : timeout;
    const results = await call(name, rollouts, seconds, signal, () => batch(rollouts, context));
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
  const seconds = timeout === undefined ? EACH_TIMEOUT : timeout;
  const results = new Array<RewardResult>(rollouts.length);
  let next = 0;
  const worker = async (): Promise<void> => {
    while (!over.signal.aborted && next < rollouts.length) {
      const index = next++;
      const rollout = rollouts[index]!;
      const result = await call(name, [rollout], seconds, signal, () => each(rollout, context));
      results[index] = checked(name, rollout, result);
    }
  };
  const workers = Math.max(1, Math.min(concurrency, rollouts.length));
  await Promise.all(
    Array.from({ length: workers }, () =>
      worker().catch((error) => {
        over.abort();
        throw error;
      }),
    ),
  );
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
  signal: AbortSignal,
  work: () => T | Promise<T>,
): Promise<T> {
  const interrupted = () =>
    new Interrupted(`interrupted while reward ${reward} was computed`, rangeOf(rollouts));
  if (signal.aborted) throw interrupted();
  let running: T | Promise<T>;
  try {
    running = work();
  } catch (error) {
    throw failed(reward, rollouts, error);
  }
  // Rules answer at once and need no clock.
  if (!(running instanceof Promise)) return running;
  const { promise: givenUp, resolve: giveUp } = Promise.withResolvers<RlvError>();
  const stop = () => giveUp(interrupted());
  const late = () => {
    const remedy = "raise its parameter timeout, or mend the reward";
    giveUp(new RlvError(`reward ${reward} took more than ${seconds} s`, rangeOf(rollouts), remedy));
  };
  const timer = seconds === null ? undefined : setTimeout(late, seconds * 1000);
  signal.addEventListener("abort", stop);
  const done = running.then(
    (value) => ({ value }),
    (error) => failed(reward, rollouts, error),
  );
  const outcome = await Promise.race([done, givenUp]);
  clearTimeout(timer);
  signal.removeEventListener("abort", stop);
  if (outcome instanceof RlvError) throw outcome;
  return outcome.value;
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

/** The result itself if it is one; modules of users are not bound by our types. */
function checked(reward: string, rollout: Rollout, result: RewardResult): RewardResult {
  const where = placeOf(rollout);
  if (typeof result !== "object" || result === null || Array.isArray(result) || !("reward" in result))
    throw new RlvError(
      `reward ${reward} returned ${result === undefined ? "nothing" : shown(result)}`,
      where,
      "return { reward, components }",
    );
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
