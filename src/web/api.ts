/**
 * What the page and its server say to each other: JSON under /api/, one type for every answer and request. Types alone;
 * the page is compiled with them too.
 *
 * A run has an opaque id, a checkpoint its folder's name ("step-20", "final"), a rollout the key of its row. No path of
 * a file goes either way as a parameter. An answer other than 2xx is an `ApiError`.
 *
 *   GET  /api/runs                                             RunList
 *   GET  /api/runs/ID                                          RunDetail
 *   GET  /api/runs/ID/log?bytes=                               LogTail
 *   GET  /api/metrics?runs=A,B&names=…&points=&x_min=&x_max=   MetricsAnswer (many runs, thinned: for curves)
 *   GET  /api/runs/ID/rows?generation=&from=                   MetricRows (whole rows, those after `from`: for live runs)
 *   GET  /api/runs/ID/rollouts?…RolloutQuery                   RolloutPage
 *   GET  /api/runs/ID/rollouts/KEY?table=&mode=                RolloutDetail
 *   GET  /api/runs/ID/diversity?table=&steps=                  DiversityReport
 *   GET  /api/runs/ID/rewards?steps=                           RewardReport
 *   GET  /api/sweeps/ID                                        SweepReport
 *   GET  /api/sweeps/ID/curves?names=…&points=                 SweepCurves
 *   GET  /api/grouped?runs=A,B                                 SweepReport (of runs of any folder, without an id)
 *   GET  /api/grouped/curves?runs=A,B&names=…&points=          SweepCurves
 *   GET  /api/compare?a=ID&b=ID                                ConfigComparison
 *   GET  /api/system                                           SystemInfo
 *   POST /api/runs/ID/checkpoints/NAME/delete  DeleteRequest   DeleteAnswer
 *   POST /api/runs/ID/checkpoints/NAME/evaluate {}             Job
 *   GET  /api/jobs                                             JobList
 *   POST /api/jobs/ID/stop {}                                  Job
 *   GET  /api/events?runs=A,B                                  server-sent events: see ServerEvents
 */

export type { RewardReport } from "../report/reward-report.ts";

export interface ApiError {
  readonly error: string;
}

/** live: a process holds it. crashed: it ended with an error, or without anybody saying how. */
export type RunState = "live" | "finished" | "interrupted" | "crashed" | "diverged";

export interface RunSummary {
  readonly id: string;
  /** Folder name, relative to the folder that is served. */
  readonly name: string;
  /** Id of the sweep that it belongs to. */
  readonly sweep: string | null;
  readonly recipe: string | null;
  readonly state: RunState;
  /** Last step in metrics.jsonl; 0 before the first. */
  readonly step: number;
  /** Steps it is to make; null if its config does not say. */
  readonly total_steps: number | null;
  /** Milliseconds since 1970; null if unknown. */
  readonly started: number | null;
  /** Of its last metric row, same unit. */
  readonly updated: number | null;
  readonly tags: readonly string[];
  readonly model: string | null;
  /** The newest value of every metric. */
  readonly last: Readonly<Record<string, number | null>>;
  /** A few of its values, evenly spread over its steps: for a small curve. */
  readonly sparkline: { readonly name: string; readonly values: readonly (number | null)[] } | null;
  /** What of it cannot be read, and why; null if nothing is wrong. */
  readonly problem: string | null;
}

export interface RunList {
  /** The folder that is served, to be shown. */
  readonly root: string;
  readonly runs: readonly RunSummary[];
  readonly sweeps: readonly SweepSummary[];
}

export interface SweepSummary {
  readonly id: string;
  readonly name: string;
  readonly recipe: string;
  /** Runs of its plan. */
  readonly planned: number;
}

export interface SweepReport extends SweepSummary {
  readonly runs: readonly SweptRun[];
  readonly groups: readonly SweepGroup[];
  /** All that any of its runs has measured. */
  readonly metric_names: readonly string[];
}

export interface SweptRun {
  /** Of the run; null while nothing has begun it. */
  readonly id: string | null;
  /** Its folder in the sweep's. */
  readonly name: string;
  /** Its place in `groups`. */
  readonly group: number;
  readonly seed: number | null;
  readonly state: RunState | "waiting";
  readonly step: number;
  readonly error: string | null;
  /** Last values: train/…, eval/…, and final/… of the evaluation of its final checkpoint. */
  readonly metrics: Readonly<Record<string, number | null>>;
}

/** Runs that differ in their seed alone. */
export interface SweepGroup {
  /** Its variant, and its values of the grid's keys other than the seed. */
  readonly name: string;
  readonly planned: number;
  /** How many are finished; `metrics` are theirs. */
  readonly finished: number;
  readonly metrics: Readonly<Record<string, Spread>>;
}

export interface Spread {
  readonly n: number;
  /** null: not finite. */
  readonly mean: number | null;
  /** Sample standard deviation; null of one run. */
  readonly std: number | null;
  readonly min: number | null;
  readonly max: number | null;
}

export interface SweepCurves {
  /** By metric, in the order of the sweep's groups; null where no run of a group has it. */
  readonly metrics: Readonly<Record<string, readonly (SpreadSeries | null)[]>>;
}

/** A metric of the runs of a group, step by step; each step's figures are of the runs that have it there. */
export interface SpreadSeries {
  readonly step: readonly number[];
  readonly runs: readonly number[];
  readonly mean: readonly number[];
  /** 0 where one run alone has it. */
  readonly std: readonly number[];
  readonly min: readonly number[];
  readonly max: readonly number[];
}

export interface CheckpointInfo {
  /** "step-20", "final" or "diverged-20". */
  readonly name: string;
  readonly step: number | null;
  readonly bytes: number;
  /** Milliseconds since 1970. */
  readonly written: number;
  /** Its manifest is there and its files have their sizes. */
  readonly whole: boolean;
  readonly kind: "model" | "adapter" | "reward_model";
}

export interface RunDetail extends RunSummary {
  /** train_config.json as it is; null where it cannot be read. */
  readonly config: Readonly<Record<string, unknown>> | null;
  /** The line that it ended with; null without one. */
  readonly error: string | null;
  /** Of all its files. */
  readonly bytes: number;
  /** Lines that train.log begins with: model, dataset, device, the formula in use. */
  readonly header: readonly string[];
  readonly metric_names: readonly string[];
  /** Rows of metrics.jsonl. */
  readonly metric_rows: number;
  readonly checkpoints: readonly CheckpointInfo[];
  /** Which tables have rollouts; null: none were kept. */
  readonly rollouts: RolloutTables | null;
}

export interface RolloutTables {
  readonly train: number;
  readonly eval: number;
  /** Modes in the evaluation table: "", "greedy", "retain_only" … */
  readonly modes: readonly string[];
}

export interface LogTail {
  readonly text: string;
  /** Its first line is not the file's. */
  readonly cut: boolean;
}

export interface MetricSeries {
  /** Steps, and seconds since the run's first row, at the same places. */
  readonly step: readonly number[];
  readonly time: readonly number[];
  /** Examples trained on so far, at the same places; absent where the run does not count them. */
  readonly examples?: readonly (number | null)[];
  /** null: NaN or infinite. */
  readonly value: readonly (number | null)[];
  /** How many values it was thinned from; equal to their number if all are here. */
  readonly of: number;
}

/** Changes when rows that were there before are there no more (a resumed run, another file): begin anew. */
export type Generation = string;

export interface RunMetrics {
  readonly generation: Generation;
  /** Rows of metrics.jsonl that are in this answer: `from` of the rows to come. */
  readonly rows: number;
  readonly series: Readonly<Record<string, MetricSeries>>;
}

export interface MetricsAnswer {
  readonly runs: Readonly<Record<string, RunMetrics | ApiError>>;
}

/** A row of metrics.jsonl. Numbers that JSON lacks are null. */
export interface MetricRow {
  readonly step: number;
  /** Seconds since the run's first row. */
  readonly time: number;
  /** Examples trained on so far; absent where the run does not count them. */
  readonly examples?: number;
  readonly metrics: Readonly<Record<string, number | null>>;
}

export interface MetricRows {
  readonly run: string;
  readonly generation: Generation;
  /** Place of the first of `rows`; 0 where the asked generation is no more. */
  readonly from: number;
  readonly rows: readonly MetricRow[];
  /** Rows there are: ask again with it while it is greater than from + rows.length. */
  readonly total: number;
}

export type RolloutTable = "train" | "eval";
export const ROLLOUT_SORTS = ["step", "reward", "advantage", "length", "prompt"] as const;
export type RolloutSort = (typeof ROLLOUT_SORTS)[number];

/** All of them may be left out. Ranges include their ends. */
export interface RolloutQuery {
  readonly table?: RolloutTable;
  /** Of the evaluation table. */
  readonly mode?: string;
  readonly step_min?: number;
  readonly step_max?: number;
  readonly reward_min?: number;
  readonly reward_max?: number;
  readonly advantage_min?: number;
  readonly advantage_max?: number;
  /** 1: above zero, -1: below, 0: zero. */
  readonly advantage_sign?: -1 | 0 | 1;
  /** unknown: no detector said anything of it. */
  readonly flagged?: "yes" | "no" | "unknown";
  readonly finish?: string;
  readonly prompt_index?: number;
  /** Text in the prompt or the completion, letters alike in either case. */
  readonly search?: string;
  readonly sort?: RolloutSort;
  /** Default: descending. */
  readonly order?: "asc" | "desc";
  /** Of the matching rows; at most 500 at a time. */
  readonly offset?: number;
  readonly limit?: number;
  /** `last_row` of the first page: rows that came later do not shift those that follow. */
  readonly upto?: number;
}

export interface RolloutRowLight {
  /** "STEP-EPOCH-PROMPT-ROLLOUT"; of evaluations with their mode as ?mode= beside it. */
  readonly key: string;
  readonly step: number;
  readonly epoch: number;
  readonly prompt_index: number;
  readonly rollout_index: number;
  readonly mode: string;
  readonly reward: number;
  /** null in evaluations. */
  readonly advantage: number | null;
  readonly flagged: boolean | null;
  readonly finish: string | null;
  /** Tokens; null where they were not kept. */
  readonly tokens: number | null;
  /** Begins of both texts. */
  readonly prompt: string;
  readonly completion: string;
}

export interface Range {
  readonly min: number;
  readonly max: number;
}

export interface RolloutPage {
  readonly rows: readonly RolloutRowLight[];
  /** Rows that match. */
  readonly total: number;
  /** Rows of the table. */
  readonly all: number;
  readonly offset: number;
  readonly last_row: number;
  /** Of the whole table, for the controls; null while it is empty. */
  readonly extent: {
    readonly step: Range;
    readonly reward: Range;
    readonly advantage: Range | null;
    readonly flagged: number;
    readonly finishes: readonly string[];
    readonly modes: readonly string[];
  } | null;
  /** Of the matching rows: how often which reward, and their means. */
  readonly histogram: { readonly range: Range; readonly counts: readonly number[] } | null;
  readonly mean_reward: number | null;
  /** Milliseconds the server worked on it. */
  readonly took_ms: number;
}

export interface RolloutFull extends RolloutRowLight {
  readonly components: Readonly<Record<string, number>>;
  readonly details: Readonly<Record<string, unknown>> | null;
  /** The completion token by token, in order: texts.join("") is the completion. null where they were not kept. */
  readonly tokens_of: {
    readonly texts: readonly string[];
    /** Natural logarithm; null: not finite. */
    readonly logprobs: readonly (number | null)[];
  } | null;
}

export interface RolloutDetail {
  readonly rollout: RolloutFull;
  /** All completions of its prompt at that step, by rollout_index, itself included. */
  readonly group: readonly RolloutFull[];
  /** Keys of the groups before and after at the same step and mode, for the keyboard. */
  readonly previous: string | null;
  readonly next: string | null;
}

/** Rates from 0 to 1. */
export interface DiversityPoint {
  readonly step: number;
  readonly completions: number;
  readonly unique: number;
  /** Mean Jaccard similarity of the word sets of two completions. */
  readonly jaccard: number;
  /** How much of the completions one template explains. */
  readonly template: number;
  readonly degenerate: boolean;
  /** Why it is degenerate, each with its figure; empty otherwise. */
  readonly reasons: readonly string[];
}

export interface DiversityReport {
  readonly points: readonly DiversityPoint[];
  /** The template of the last step, if most completions follow one. */
  readonly template: string | null;
}

export interface ConfigComparison {
  readonly a: string;
  readonly b: string;
  /** Keys in order; undefined where one of them lacks it. */
  readonly keys: readonly {
    readonly key: string;
    readonly a?: unknown;
    readonly b?: unknown;
    readonly same: boolean;
  }[];
}

export interface SystemInfo {
  readonly version: string;
  readonly platform: string;
  readonly processor: string;
  readonly cores: number;
  readonly memory_bytes: number;
  readonly free_bytes: number;
  /** Of the disk that the runs are on. */
  readonly disk_free_bytes: number | null;
}

export interface DeleteRequest {
  /** From the first answer; without it nothing is removed. */
  readonly confirm?: string;
}

export type DeleteAnswer =
  | {
      readonly deleted: false;
      /** To be sent back within a minute. */
      readonly confirm: string;
      readonly bytes: number;
      /** What is lost, in words. */
      readonly consequence: string;
    }
  | { readonly deleted: true };

/** A command that the server has started for the page. */
export interface Job {
  readonly id: string;
  readonly kind: "evaluate";
  readonly run: string;
  readonly checkpoint: string;
  readonly state: "running" | "done" | "failed" | "stopped";
  readonly started: number;
  /** What it said, its last lines. */
  readonly lines: readonly string[];
  /** What the command answered; null: nothing yet, or it failed. */
  readonly result: EvaluationAnswer | null;
}

/** `rlv eval --json`, as far as the page shows it; src/report/evaluation.ts has all of it. */
export interface EvaluationAnswer {
  readonly evaluations: readonly EvaluationReport[];
}

export interface EvaluationReport {
  readonly step: number | null;
  /** null where no completions were sampled; `note` says why. */
  readonly fresh: FreshCompletions | null;
  readonly note: string | null;
  /** Last one recorded in training, nats a token. */
  readonly kl: number | null;
  readonly judge: JudgeExamination | null;
}

export interface FreshCompletions {
  readonly prompts: number;
  readonly completions: number;
  readonly reward: (Range & { readonly mean: number; readonly std: number }) | null;
  /** Means. */
  readonly components: Readonly<Record<string, number>>;
  /** Mean over prompts of the greatest reward. */
  readonly best_of_n: number | null;
  readonly mean_tokens: number;
  readonly eos_share: number;
  readonly flagged_share: number | null;
  readonly diversity: {
    readonly unique_share: number;
    readonly jaccard: number;
    readonly template_share: number;
    readonly template: string | null;
    readonly degenerate: boolean;
    readonly reasons: readonly string[];
  };
  readonly samples: readonly {
    readonly prompt: string;
    readonly completion: string;
    readonly reward: number | null;
  }[];
}

/** What a rubric's judge is worth. */
export interface JudgeExamination {
  readonly model: string;
  readonly responses: number;
  readonly criteria: readonly {
    readonly name: string;
    readonly mean_expected: number;
    readonly mean_text: number | null;
    readonly invalid_rate: number;
    /** Share of text answers that say the expected score, rounded. */
    readonly exact_agreement: number | null;
    /** Correlations: of the two readings, and of the expected score with the response's length. */
    readonly correlation: number | null;
    readonly length_correlation: number | null;
  }[];
  /** null: nothing was judged in another order of the criteria. */
  readonly position: {
    readonly responses: number;
    readonly orders: number;
    /** Mean score at each place of the list, less the criterion's mean over all places. */
    readonly shift_by_position: readonly number[];
    /** How far a criterion's scores of one response lie apart. */
    readonly mean_spread: number;
    readonly largest_spread: number;
  } | null;
}

export interface JobList {
  readonly jobs: readonly Job[];
}

/** Server-sent events of /api/events by name, each with its JSON. */
export interface ServerEvents {
  /** First of all. */
  readonly hello: { readonly version: string };
  /** Runs that are new or changed, and ids of those that are gone. */
  readonly runs: { readonly changed: readonly RunSummary[]; readonly gone: readonly string[] };
  /** New rows of a run that was asked for. */
  readonly metrics: MetricRows;
  /** Rollouts of a run that was asked for: how many there are now. */
  readonly rollouts: { readonly run: string; readonly tables: RolloutTables };
  readonly job: Job;
}
