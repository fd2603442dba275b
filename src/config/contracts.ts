import type { Reporter, RunControl } from "../run/reporter.ts";
import type { ResolvedConfig } from "./recipes.ts";
import type {
  BenchName,
  BenchOptions,
  GenerateOptions,
  LogprobOptions,
  MergeOptions,
  QuantizeOptions,
  ScoreOptions,
} from "./schema-inference.ts";

/**
 * What the command line expects of the modules that do the work. It imports them when a command runs; each module
 * states with `satisfies` that it keeps its contract.
 */

/** A line for a person; goes to stderr. */
export type Talk = (line: string) => void;

/** Figures of a finished generate or logprob job: the object that --json prints. */
export interface InferenceSummary {
  readonly model: string;
  readonly device: string;
  /** Lines read. */
  readonly prompts: number;
  readonly completions: number;
  /** Completion tokens made or scored. */
  readonly tokens: number;
  readonly seconds: number;
  readonly out: string;
}

/** src/run/merge.ts */
export interface MergeModule {
  merge(
    options: Omit<MergeOptions, "adapter"> & { readonly adapter: string },
    talk: Talk,
  ): { readonly maps: number; readonly seconds: number; readonly out: string };
}

/** src/run/inference.ts */
export interface InferenceModule {
  /** Writes `options.out` whole or not at all. */
  generate(options: GenerateOptions, talk: Talk): Promise<InferenceSummary>;
  logprob(options: LogprobOptions, talk: Talk): Promise<InferenceSummary>;
}

/** src/run/quantize.ts */
export interface QuantizeModule {
  /** `given`: names of the flags that were typed. Writes the folder it returns as `output`, null with skip_save. */
  quantize(
    options: QuantizeOptions & { readonly adapter: string | null; readonly name: string },
    given: ReadonlySet<string>,
    talk: Talk,
  ): Promise<Readonly<Record<string, string | number | null>>>;
}

/** src/run/score.ts */
export interface ScoreModule {
  /** Writes `options.out` whole or not at all. */
  score(options: ScoreOptions, talk: Talk): Promise<InferenceSummary>;
}

/** name, shape, device, threads, dtype, peak_bytes, limit, fraction_of_limit, and the figures of the bench. */
export type BenchResult = Readonly<Record<string, unknown>> & { readonly name: BenchName };

/** src/run/bench/index.ts */
export interface BenchModule {
  /** @param program argv that starts this program again, for `startup` and `growth` */
  runBench<Name extends BenchName>(
    name: Name,
    options: BenchOptions<Name>,
    context: { readonly talk: Talk; readonly program: readonly string[] },
  ): Promise<BenchResult>;
}

/** One line of `rlv doctor`. */
export interface DoctorCheck {
  readonly name: string;
  readonly status: "ok" | "warn" | "fail";
  readonly detail: string;
  readonly remedy?: string;
}

/** src/run/probe.ts */
export interface ProbeModule {
  /** Native library (path, ABI hash) and every device: opens each and runs a small operation. Never throws. */
  probe(): Promise<readonly DoctorCheck[]>;
}

/** src/recipe/index.ts */
export interface RecipeModule {
  /**
   * Runs a job to its end. Throws Interrupted after a requested stop, Diverged for NaN or Inf, UsageError for bad
   * input. Awaits at least once per micro-batch, so that signals and messages are served.
   */
  runTraining(config: ResolvedConfig, reporter: Reporter, control: RunControl): Promise<void>;
}
