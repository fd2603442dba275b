import { existsSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { baseOf, resolveOptions, resolveTrain } from "../config/resolve.ts";
import { type EvalOptions, evalSchema } from "../config/schema-eval.ts";
import { UsageError } from "../core/errors.ts";
import { MANIFEST } from "../io/checkpoint-folder.ts";
import {
  comparisonRows,
  type Evaluation,
  evaluationLines,
  freshReport,
  historyOf,
  judgedOf,
  storedJudged,
} from "../report/evaluation.ts";
import {
  type JudgedResponse,
  type JudgedRollout,
  type JudgeReport,
  judgeReport,
  type OrderedJudgements,
} from "../report/judge.ts";
import { checkpointsOf, findRun, isRun, readRun, rootsOf } from "../report/runs.ts";
import { tableLines } from "../report/table.ts";
import { newestOf } from "../run/folder.ts";
import { visible } from "../run/reporter.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";
import { flagsOf } from "./flags.ts";
import { pad } from "./runs-text.ts";
import { talk } from "./talk.ts";
import { findInputs } from "./train.ts";

export const command: Command = {
  name: "eval",
  usage: "eval RUN|CHECKPOINT …",
  maxArgs: 100,
  completes: { files: true },
  summary: "report what a checkpoint says now: reward, diversity, collapse, its judge",
  examples: () => [
    "rlv eval runs/mine",
    "rlv eval runs/mine/checkpoints/step-200 --prompts 16 --n 8 --json",
    "rlv eval careful bold --fresh false",
  ],
  notes: () => [
    "",
    "Completions are sampled from the newest whole checkpoint of a run (or the one named) with the run's evaluation prompts,",
    "sampling settings and reward. Several runs are compared. RUN is a name in one of the folders, or a path.",
    "degenerate: copies, near copies, loops, or one template with other words in its slots; the reasons are given.",
    "Of a rubric's judge: how its two readings agree, what length does to its scores, and what the order of the criteria does",
    "(--judge_again); of fresh completions, else of the last that the run stored.",
  ],
  flags: () => [...flagsOf(evalSchema), JSON_FLAG],
  async run({ args, flags, json }) {
    const options = resolveOptions<EvalOptions>(evalSchema, flags, "eval");
    if (args.length === 0)
      throw new UsageError(
        "nothing to evaluate",
        "rlv eval",
        "name a run or a checkpoint, see rlv runs list",
      );
    const roots = rootsOf(options.dir);
    const targets = args.map((name) => targetOf(name, roots));
    const evaluations: Evaluation[] = [];
    for (const target of targets) evaluations.push(await evaluate(target, options));
    if (json) {
      printJson({ evaluations });
      return 0;
    }
    const lines = evaluations.flatMap((each, i) => [
      ...(i > 0 ? [""] : []),
      ...evaluationLines(each, visible),
    ]);
    if (evaluations.length > 1) {
      lines.push("", ...tableLines(comparisonRows(evaluations), pad));
    }
    process.stdout.write(lines.map((line) => `${line}\n`).join(""));
    return 0;
  },
};

interface Target {
  readonly run: string | null;
  /** null: the run has none yet. */
  readonly checkpoint: string | null;
}

function targetOf(name: string, roots: readonly string[]): Target {
  const path = resolve(name);
  if (existsSync(join(path, "train_config.json")) && existsSync(join(path, MANIFEST))) {
    const run = dirname(dirname(path));
    return { run: basename(dirname(path)) === "checkpoints" && isRun(run) ? run : null, checkpoint: path };
  }
  const run = findRun(name, roots);
  return { run, checkpoint: newestOf(run) ?? null };
}

async function evaluate({ run: dir, checkpoint }: Target, options: EvalOptions): Promise<Evaluation> {
  const run = dir === null ? null : readRun(dir);
  const found = dir === null ? undefined : checkpointsOf(dir).find((each) => each.dir === checkpoint);
  const name = run?.name ?? checkpoint!;
  const { history, kl } = dir === null ? { history: null, kl: null } : historyOf(dir);
  const stored = dir === null ? [] : storedJudged(dir);
  let looked: Looked;
  try {
    looked = await look(checkpoint, found?.step ?? 0, stored, options);
  } catch (error) {
    // What the run wrote is reported all the same: a reward model may be gone, a dataset elsewhere.
    if (!(error instanceof UsageError)) throw error;
    const missing = options.fresh ? "nothing was sampled" : "nothing was judged again";
    looked = { fresh: null, modes: null, judge: reportOf(stored), note: `${missing}: ${error.message}` };
  }
  return {
    name: run !== null && found !== undefined ? `${name}/${found.name}` : name,
    run: dir,
    recipe: run?.recipe ?? null,
    state: run?.state ?? null,
    checkpoint,
    step: found?.step ?? null,
    history,
    kl,
    ...looked,
  };
}

type Looked = Pick<Evaluation, "fresh" | "modes" | "judge" | "note">;

/** Opens the checkpoint if there is something to do with it. `stored`: judged responses of its run. */
async function look(
  checkpoint: string | null,
  step: number,
  stored: readonly JudgedRollout[],
  options: EvalOptions,
): Promise<Looked> {
  if (checkpoint === null)
    return {
      fresh: null,
      modes: null,
      judge: reportOf(stored),
      note: "no whole checkpoint yet: nothing was sampled",
    };
  const again = options.judge_again;
  if (!options.fresh) {
    const note = "no completions were sampled (--fresh false)";
    if (stored.length === 0 || again === 0)
      return { fresh: null, modes: null, judge: reportOf(stored), note };
    const { job } = await jobOf(checkpoint, options);
    const { judgeStored } = await import("../recipe/evaluate.ts");
    const orders = job === null ? [] : await judgeStored(job, checkpoint, stored, again);
    return { fresh: null, modes: null, judge: reportOf(stored, orders), note };
  }
  const { job, recipe, heldOut } = await jobOf(checkpoint, options);
  if (job === null) {
    const note = `recipe ${recipe} has no prompts and reward of its own: nothing was sampled`;
    return { fresh: null, modes: null, judge: reportOf(stored), note };
  }
  if (job.prompts.held.length === 0) {
    const note = "its config leaves no evaluation prompts: nothing was sampled";
    return { fresh: null, modes: null, judge: reportOf(stored), note };
  }
  const { evaluateCheckpoint } = await import("../recipe/evaluate.ts");
  talk(`sampling from ${checkpoint}`);
  const { scored, orders, modes } = await evaluateCheckpoint(job, checkpoint, step, {
    n: options.n,
    prompts: options.prompts,
    temperature: options.temperature,
    maxNewTokens: options.max_new_tokens,
    seed: options.seed,
    judgeAgain: again,
    modes: options.routing_eval,
  });
  return {
    fresh: freshReport(scored, options.samples),
    modes,
    judge: reportOf(judgedOf(scored), orders),
    note: heldOut ? null : "the run held no prompts out: it may have been trained on these",
  };
}

/** null: nothing was judged. */
function reportOf(
  judged: readonly JudgedResponse[],
  orders: readonly OrderedJudgements[] = [],
): JudgeReport | null {
  return judged.length === 0 ? null : judgeReport(judged, orders);
}

/** The job that wrote a checkpoint, its inputs found; null: its recipe samples nothing. */
async function jobOf(checkpoint: string, options: EvalOptions) {
  const overrides = new Map<string, string>();
  if (options.device !== null) overrides.set("device", options.device);
  if (options.threads !== null) overrides.set("threads", String(options.threads));
  const base = baseOf({ target: undefined, configFile: undefined, checkpoint });
  const config = await findInputs(resolveTrain(base, overrides));
  const { grpoJob } = await import("../recipe/index.ts");
  // Preferences are split by the run itself: one that never evaluates holds none out.
  const heldOut = config.recipe !== "hh-grpo" || config.eval_steps > 0;
  const held = heldOut ? config : { ...config, eval_steps: 1 };
  return { recipe: config.recipe, heldOut, job: await grpoJob(held, null) };
}
