import type { z } from "zod";
import { UsageError } from "../core/errors.ts";
import type { Rollout } from "../core/records.ts";

/** What a reward may know beside the rollout. */
export interface RewardContext {
  readonly step: number;
  /** Aborted when its time is over, another call failed or the run is to end; what a slow reward waits for listens to it. */
  readonly signal?: AbortSignal;
}

export interface RewardResult {
  /** null = this rollout cannot be scored: it counts in no mean and gets advantage 0. */
  readonly reward: number | null;
  /** Named parts that summed to the reward, for metrics and evaluation. */
  readonly components: Readonly<Record<string, number>>;
  /** Kept with the rollout as JSON, under keys of the reward's own. */
  readonly details?: Readonly<Record<string, unknown>>;
}

/** Scores one rollout. */
export type RewardFunction = (
  rollout: Rollout,
  context: RewardContext,
) => RewardResult | Promise<RewardResult>;

/** Scores rollouts together, one result each in their order. Completions of one prompt are consecutive. */
export type BatchFunction = (
  rollouts: readonly Rollout[],
  context: RewardContext,
) => Promise<readonly RewardResult[]>;

/** A reward with its parameters bound; `each` or `batch` scores. */
export interface BoundReward {
  readonly each?: RewardFunction | undefined;
  readonly batch?: BatchFunction | undefined;
  /** How many calls of `each` may wait at a time. */
  readonly concurrency?: number;
  /** Seconds that one call of `each` or `batch` may take; null = any. Default 60 and 600. */
  readonly timeout?: number | null;
  /** Called once before models are opened: starts processes, loads modules. Returns lines for the run header. */
  start?(): Promise<readonly string[]>;
  dispose?(): void;
}

/**
 * A registered reward. Its parameters are a zod object, from which YAML `params:` are checked and docs made; every
 * reward also takes `timeout`.
 */
export interface RewardDefinition<Schema extends z.ZodObject = z.ZodObject> {
  readonly name: string;
  readonly description: string;
  readonly parameters: Schema;
  /** Fields that every row of the dataset must have. */
  fields?(parameters: z.output<Schema>): readonly string[];
  /** Has no effect outside; that begins with `start`. Absent: it needs the run's device and is opened there (src/recipe/rewards.ts). */
  bind?(parameters: z.output<Schema>): RewardFunction | BoundReward;
}

/** Keeps the parameter types of a definition while it is written. */
export function defineReward<Schema extends z.ZodObject>(
  definition: RewardDefinition<Schema>,
): RewardDefinition {
  return definition as unknown as RewardDefinition;
}

/** Rewards that differ in a number of their name: sentence_length_5. */
export interface RewardFamily {
  /** As help has it: sentence_length_N. */
  readonly name: string;
  /** Its first group is the number. */
  readonly pattern: RegExp;
  member(n: number): RewardDefinition;
}

export interface CheckedParameters {
  /** Of the definition's own, defaults filled in. */
  readonly own: Readonly<Record<string, unknown>>;
  /** undefined: the reward's default. */
  readonly timeout: number | null | undefined;
}

export class RewardRegistry {
  private readonly definitions = new Map<string, RewardDefinition>();

  constructor(
    definitions: readonly RewardDefinition[] = [],
    readonly families: readonly RewardFamily[] = [],
  ) {
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

  has(name: string): boolean {
    return this.#find(name) !== undefined;
  }

  get(name: string): RewardDefinition {
    const definition = this.#find(name);
    if (!definition)
      throw new UsageError(`unknown reward ${name}`, "reward", `one of ${this.known().join(", ")}`);
    return definition;
  }

  /** Names, and those of families with N in the place of their number. */
  known(): string[] {
    return [...this.names(), ...this.families.map(({ name }) => name)];
  }

  #find(name: string): RewardDefinition | undefined {
    const own = this.definitions.get(name);
    if (own) return own;
    for (const { pattern, member } of this.families) {
      const n = pattern.exec(name)?.[1];
      if (n !== undefined) return member(Number(n));
    }
    return undefined;
  }

  /** Checks parameters; an unknown or wrong one is a UsageError that names it. */
  check(name: string, parameters: Readonly<Record<string, unknown>> = {}): CheckedParameters {
    const definition = this.get(name);
    const { timeout, own } = splitTimeout(name, parameters);
    const parsed = definition.parameters.strict().safeParse(own);
    if (parsed.success) return { own: parsed.data, timeout };
    const known = [...Object.keys(definition.parameters.shape), "timeout"];
    throw parameterError(`reward ${name}`, parsed.error, own, known);
  }

  /** Checks the parameters and binds them. */
  bind(name: string, parameters: Readonly<Record<string, unknown>> = {}): BoundReward {
    const { bind } = this.get(name);
    const { own, timeout } = this.check(name, parameters);
    if (!bind) throw new UsageError(`reward ${name} needs the device of a run`, "reward");
    const bound = bind(own);
    const reward = typeof bound === "function" ? { each: bound } : bound;
    return timeout === undefined ? reward : { ...reward, timeout };
  }
}

/** What the schema of parameters has against those given, of which `known` may be. */
export function parameterError(
  what: string,
  { issues }: z.ZodError,
  given: Readonly<Record<string, unknown>>,
  known: readonly string[],
): UsageError {
  const { path, message } = issues[0]!;
  const missing = path.length === 1 && !((path[0] as string) in given);
  return new UsageError(
    missing ? "a parameter is missing" : message,
    [what, ...path.map(String)].join("."),
    `parameters: ${known.join(", ")}`,
  );
}

/** Takes the parameter that every reward has out of the rest. */
export function splitTimeout(
  name: string,
  { timeout, ...own }: Readonly<Record<string, unknown>>,
): CheckedParameters {
  if (timeout !== undefined && timeout !== null && !(typeof timeout === "number" && timeout > 0))
    throw new UsageError(
      `timeout expects seconds above 0, or null for none, given ${JSON.stringify(timeout)}`,
      `reward ${name}.timeout`,
    );
  return { own, timeout };
}
