/**
 * What a module of rewards may export, for `import type { … } from "rlv/reward"`: functions by name, or one default
 * export with the same names. A default export that is a function is `score`.
 *
 *   export const parameters = { word: "happy" };
 *   export function score({ completion }: RewardRollout, { parameters }: RewardModuleContext<typeof parameters>) {
 *     return completion.includes(parameters.word) ? 1 : 0;
 *   }
 */

/** A completion of a prompt, with the names of rollouts.sqlite. */
export interface RewardRollout {
  readonly prompt: string;
  readonly completion: string;
  /** The row of the dataset. */
  readonly fields: Readonly<Record<string, unknown>>;
  readonly prompt_index: number;
  /** Of the completion within its group. */
  readonly rollout_index: number;
  /** eos: ended by itself; length: cut off. */
  readonly finish: "eos" | "length" | "stop";
  /** Tokens of the completion, and the log-probability of each as it was sampled. */
  readonly ids: readonly number[];
  readonly logprobs: readonly number[];
}

export interface RewardModuleContext<Parameters = Readonly<Record<string, unknown>>> {
  /** Optimizer step; 0 in the evaluation before the first. */
  readonly step: number;
  /** Those of the module with what `params:` says otherwise. */
  readonly parameters: Parameters;
}

/** A number, null where the completion cannot be scored, or parts that summed to it and details to keep as JSON. */
export type RewardModuleResult =
  | number
  | null
  | {
      readonly reward: number | null;
      readonly components?: Readonly<Record<string, number>>;
      readonly details?: Readonly<Record<string, unknown>>;
    };

type Awaitable<T> = T | Promise<T>;

/** `score` or `batch`. */
export interface RewardModule<Parameters = Readonly<Record<string, unknown>>> {
  /** Defaults of `params:`; a value of another type, or of a name that is not here, is refused. */
  readonly parameters?: Parameters;
  /** Scores one completion. */
  readonly score?: (
    rollout: RewardRollout,
    context: RewardModuleContext<Parameters>,
  ) => Awaitable<RewardModuleResult>;
  /** Scores all completions of a generation, one result each in their order. */
  readonly batch?: (
    rollouts: readonly RewardRollout[],
    context: RewardModuleContext<Parameters>,
  ) => Awaitable<readonly RewardModuleResult[]>;
  /** How many calls of an asynchronous `score` may wait at a time; 1 if absent. */
  readonly concurrency?: number;
}
