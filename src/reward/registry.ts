import type { z } from "zod";
import { RlvError, UsageError } from "../core/errors.ts";
import type { Rollout, Scored } from "../core/records.ts";

/** What a reward may know beside the rollout. */
export interface RewardContext {
  readonly step: number;
  /** Aborted on Ctrl-C; slow rewards (judges, code) listen to it. */
  readonly signal?: AbortSignal;
}

export interface RewardResult {
  /** null = this rollout cannot be scored: it counts in no mean and gets advantage 0. */
  readonly reward: number | null;
  /** Named parts that summed to the reward, for metrics and evaluation. */
  readonly components: Readonly<Record<string, number>>;
  /** Kept with the rollout as JSON. */
  readonly details?: Readonly<Record<string, unknown>>;
}

/** A reward with its parameters bound. */
export type RewardFunction = (
  rollout: Rollout,
  context: RewardContext,
) => RewardResult | Promise<RewardResult>;

/** A registered reward: its parameters are a zod object, from which YAML `params:` are checked and docs made. */
export interface RewardDefinition<Schema extends z.ZodObject = z.ZodObject> {
  readonly name: string;
  readonly description: string;
  readonly parameters: Schema;
  bind(parameters: z.output<Schema>): RewardFunction;
}

/** Keeps the parameter types of a definition while it is written. */
export function defineReward<Schema extends z.ZodObject>(
  definition: RewardDefinition<Schema>,
): RewardDefinition {
  return definition as unknown as RewardDefinition;
}

export class RewardRegistry {
  private readonly definitions = new Map<string, RewardDefinition>();

  constructor(definitions: readonly RewardDefinition[] = []) {
    for (const definition of definitions) this.register(definition);
  }

  register(definition: RewardDefinition): void {
    if (this.definitions.has(definition.name))
      throw new UsageError(`reward ${definition.name} exists already`);
    this.definitions.set(definition.name, definition);
  }

  names(): string[] {
    return [...this.definitions.keys()].sort();
  }

  get(name: string): RewardDefinition {
    const definition = this.definitions.get(name);
    if (!definition)
      throw new UsageError(`unknown reward ${name}`, "reward", `one of ${this.names().join(", ")}`);
    return definition;
  }

  /** Check the parameters and bind them; an unknown or wrong parameter is a UsageError that names it. */
  bind(name: string, parameters: Readonly<Record<string, unknown>> = {}): RewardFunction {
    const definition = this.get(name);
    const parsed = definition.parameters.strict().safeParse(parameters);
    if (!parsed.success) {
      const issue = parsed.error.issues[0]!;
      const where = [`reward ${name}`, ...issue.path.map(String)].join(".");
      const known = Object.keys(definition.parameters.shape).join(", ") || "none";
      throw new UsageError(issue.message, where, `parameters: ${known}`);
    }
    return definition.bind(parsed.data);
  }

  /**
   * Weighted sum of rewards. Its components are each part's weighted reward by name; a part that cannot score the
   * rollout counts 0, and if none can the sum is null.
   */
  combine(parts: readonly RewardPart[]): RewardFunction {
    const names = new Set(parts.map((part) => part.name));
    if (parts.length === 0 || names.size !== parts.length) {
      throw new UsageError("a combined reward needs distinct parts", "reward", "name each part once");
    }
    const bound = parts.map((part) => ({
      name: part.name,
      weight: part.weight ?? 1,
      score: this.bind(part.name, part.params),
    }));
    return async (rollout, context) => {
      const components: Record<string, number> = {};
      let reward: number | null = null;
      for (const { name, weight, score } of bound) {
        const part = await guarded(name, score, rollout, context);
        if (part.reward === null) continue;
        components[name] = weight * part.reward;
        reward = (reward ?? 0) + components[name];
      }
      return { reward, components };
    };
  }
}

export interface RewardPart {
  readonly name: string;
  readonly params?: Readonly<Record<string, unknown>>;
  readonly weight?: number;
}

/** Errors that carry their reward's name already: a combined reward passes its parts' errors on as they are. */
const named = new WeakSet<RlvError>();

function markNamed(error: RlvError): RlvError {
  named.add(error);
  return error;
}

/** Call a reward; whatever it throws, and any number that is not finite, becomes an error with name and prompt. */
async function guarded(
  reward: string,
  score: RewardFunction,
  rollout: Rollout,
  context: RewardContext,
): Promise<RewardResult> {
  const where = `prompt ${rollout.prompt.index}, completion ${rollout.completion}`;
  let result: RewardResult;
  try {
    result = await score(rollout, context);
  } catch (error) {
    if (error instanceof RlvError && named.has(error)) throw error;
    const reason = (error instanceof Error ? error.message : String(error)).split("\n")[0];
    const what = `reward ${reward} failed`;
    throw markNamed(
      error instanceof UsageError ? new UsageError(what, where, reason) : new RlvError(what, where, reason),
    );
  }
  // User modules are not bound by our types.
  if (typeof result !== "object" || result === null) {
    throw markNamed(
      new RlvError(`reward ${reward} returned ${result}`, where, "return { reward, components }"),
    );
  }
  const bad = Object.entries({ ...result.components, reward: result.reward }).find(
    ([, value]) => value !== null && !Number.isFinite(value),
  );
  if (bad) {
    const remedy = "return a finite number, or null if the completion cannot be scored";
    throw markNamed(new RlvError(`reward ${reward} gave ${bad[1]} as ${bad[0]}`, where, remedy));
  }
  return result;
}

/**
 * Score rollouts in order, at most `concurrency` at a time (for judges and other rewards that wait); results stand in
 * the order of the rollouts whatever finishes first. `reward` is NaN where the function gave null.
 */
export async function scoreRollouts(
  name: string,
  score: RewardFunction,
  rollouts: readonly Rollout[],
  context: RewardContext,
  concurrency = 1,
): Promise<Scored[]> {
  const scored = new Array<Scored>(rollouts.length);
  let next = 0;
  let failed = false;
  const worker = async (): Promise<void> => {
    while (!failed && next < rollouts.length) {
      const index = next++;
      const rollout = rollouts[index]!;
      try {
        const { reward, ...rest } = await guarded(name, score, rollout, context);
        scored[index] = { ...rollout, reward: reward ?? Number.NaN, ...rest };
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  await Promise.all(Array.from({ length: Math.max(1, Math.min(concurrency, rollouts.length)) }, worker));
  return scored;
}
