import { closeSync, openSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { detectorHelp } from "../config/detectors.ts";
import { RECIPE_NAMES, RECIPES, type RecipeInfo, type ResolvedConfig } from "../config/recipes.ts";
import { type Base, baseOf, resolveTrain, startingValues, withPlaces } from "../config/resolve.ts";
import { rewardHelp } from "../config/rewards.ts";
import { storyRunName } from "../config/run-name.ts";
import { checkpointConfigText, configText } from "../config/save.ts";
import type { ArithmeticConfig } from "../config/schema-arithmetic.ts";
import { mpiLaunch } from "../core/env.ts";
import { RlvError, UsageError } from "../core/errors.ts";
import {
  type EngineJob,
  type EngineOutcome,
  programArgv,
  superviseEngine,
  type Train,
} from "../run/engine-process.ts";
import {
  openRunFolder,
  type ResumePoint,
  type RunFolder,
  resumePoint,
  writeRunConfig,
} from "../run/folder.ts";
import type { MpiRanks } from "../run/mpi-ranks.ts";
import { openProgress, type Progress } from "../run/progress.ts";
import { tokenize } from "./argv.ts";
import { type Command, type Flag, JSON_FLAG, printJson } from "./command.ts";
import { findDataset, findModel, requireFile, requireFolder } from "./files.ts";
import { flagsOf } from "./flags.ts";
import { wrap } from "./help.ts";

const OWN_FLAGS: readonly Flag[] = [
  {
    name: "config",
    aliases: [],
    boolean: false,
    value: "FILE",
    description: "YAML or JSON with any of the keys below (a train_config.json too); flags override it",
    fallback: undefined,
  },
  {
    name: "resume_from",
    aliases: [],
    boolean: false,
    value: "CHECKPOINT",
    description: "go on from a checkpoint, or from a run's newest, with its config; flags override it",
    fallback: undefined,
  },
  {
    name: "ui",
    aliases: [],
    boolean: true,
    value: "true|false",
    description: "show the run on a page (rlv serve) while it trains; the address is printed",
    fallback: "false",
  },
  {
    name: "mpi",
    aliases: [],
    boolean: true,
    value: "true|false",
    description: "train as one of the processes that mpirun or srun started (docs/several-machines.md)",
    fallback: "true under mpirun and srun",
  },
  JSON_FLAG,
];

/** Every flag of every recipe: enough to take the line apart before its recipe is known. */
function anyFlags(): Flag[] {
  const all = new Map<string, Flag>();
  for (const name of RECIPE_NAMES)
    for (const flag of flagsOf(RECIPES[name].schema))
      for (const spelled of [flag.name, ...flag.aliases])
        if (!all.has(spelled)) all.set(spelled, { ...flag, name: spelled, aliases: [] });
  return [...OWN_FLAGS, ...all.values()];
}

interface Asked {
  readonly base: Base;
  readonly resume: ResumePoint | null;
}

/** Which recipe the line is about. */
function asked(argv: readonly string[]): Asked {
  let target: string | undefined;
  const own = new Map<string, string>();
  for (const token of tokenize(argv, anyFlags(), "train")) {
    if ("arg" in token) target ??= token.arg;
    else own.set(token.flag, token.value);
  }
  const resume = resumeOf(own);
  return { base: baseOf({ target, configFile: own.get("config"), checkpoint: resume?.config }), resume };
}

function resumeOf(flags: ReadonlyMap<string, string>): ResumePoint | null {
  const from = flags.get("resume_from");
  return from === undefined ? null : resumePoint(from);
}

function recipeFlags(recipe: RecipeInfo): Flag[] {
  return [...OWN_FLAGS, ...flagsOf(recipe.schema, startingValues(recipe))];
}

export const command: Command = {
  name: "train",
  usage: "train [RECIPE | FILE.yaml | FILE.json]",
  maxArgs: 1,
  completes: { words: RECIPE_NAMES, files: true },
  summary: "train a model by a recipe or a config file",
  examples: (argv) => asked(argv).base.recipe.examples,
  notes(argv) {
    const { recipe } = asked(argv).base;
    return [
      "",
      "recipes:",
      ...RECIPE_NAMES.map((name) => `  ${name.padEnd(12)}${RECIPES[name].summary}`),
      "",
      `The flags below are those of ${recipe.name}, with the values it starts from; rlv train RECIPE --help shows another's.`,
      "Ctrl-C once finishes the step, saves and ends; twice ends at once.",
      ...(recipe.schema.shape.reward === undefined ? [] : rewardLines()),
      ...(recipe.schema.shape.detector === undefined ? [] : detectorLines()),
    ];
  },
  flags: (argv) => recipeFlags(asked(argv).base.recipe),
  async run({ args, flags, json }) {
    const ui = switchOf(flags, "ui") ?? false;
    const launch = mpiLaunch();
    const together = switchOf(flags, "mpi") ?? (launch !== null && launch.processes !== 1);
    // What ranks need is not loaded by a process that trains alone.
    const ranks = together ? await (await import("../run/ranked-job.ts")).joinRanks(launch) : null;
    const progress = openProgress(json ? process.stderr : process.stdout, process.stderr);
    // The server's modules are for those who ask for it.
    const { TrainingPage } = ui ? await import("./ui.ts") : {};
    let page: { close(): void } | undefined;
    const begun = (dir: string) => {
      progress.line(`run folder: ${dir}`);
      if (TrainingPage) page = new TrainingPage(dir, (line) => progress.line(line));
    };
    const job = async (): Promise<TrainJob> => ({
      ...(await resolveJob(args[0], flags)),
      ...{ progress, begun, output: null },
    });
    const report = ({ dir, outcome }: TrainedRun): number => {
      const { exitCode, done, failure } = outcome;
      if (json)
        printJson({
          run: dir,
          exit_code: exitCode,
          step: done?.step ?? null,
          checkpoint: done?.path ?? null,
          metrics: done?.metrics ?? {},
        });
      if (failure !== undefined)
        process.stderr.write(`${exitCode === 130 ? "rlv" : "rlv: error"}: ${failure}\n`);
      return exitCode;
    };
    let code: number;
    try {
      code = ranks
        ? await trainAsRank(ranks, job, progress, report)
        : report(await trainInFolder(await job()));
    } finally {
      page?.close();
    }
    return ranks ? (await import("../run/ranked-job.ts")).endRank(code) : code;
  },
};

/** `--ui`, `--ui false`; null: not given. */
function switchOf(flags: ReadonlyMap<string, string>, name: string): boolean | null {
  const value = flags.get(name);
  if (value === undefined) return null;
  if (value === "true" || value === "false") return value === "true";
  throw new UsageError(`${name} expects true or false, given ${JSON.stringify(value)}`, `--${name} ${value}`);
}

/** What a command line asks for, with its inputs found. */
async function resolveJob(target: string | undefined, flags: ReadonlyMap<string, string>) {
  const given = new Map(flags);
  const resume = resumeOf(given);
  const elsewhere = given.has("output_dir") || given.has("run_name");
  const fromLine = baseOf({ target, configFile: given.get("config"), checkpoint: resume?.config });
  const places = elsewhere ? ["output_dir", "log_dir"] : ["output_dir", "log_dir", "run_name"];
  const base = resume?.run ? withPlaces(fromLine, resume.run, places) : fromLine;
  for (const own of OWN_FLAGS) given.delete(own.name);
  const config = resolveTrain(base, given);
  const located = await findInputs(config);
  const runName = config.run_name ?? (config.recipe === "stories" ? storyRunName(config) : null);
  return { config, located, runName, resume, elsewhere };
}

export interface TrainJob {
  readonly config: ResolvedConfig;
  /** The same with the folders that names on the hub stand for. */
  readonly located: ResolvedConfig;
  readonly runName: string | null;
  readonly resume: ResumePoint | null;
  /** Not into the folder of the run that is resumed. */
  readonly elsewhere: boolean;
  readonly progress: Progress;
  /** The folder is this run's now. */
  begun(dir: string): void;
  /** Name of a file in the run's folder for what the engine itself prints, as when it crashes; null: stderr. */
  readonly output: string | null;
}

export interface TrainedRun {
  readonly dir: string;
  readonly outcome: EngineOutcome;
}

/** Makes or reopens the run's folder, which is this process's until it is released. */
function openJob(job: TrainJob): { folder: RunFolder; task: Omit<EngineJob<ResolvedConfig>, "type"> } {
  const { config, resume } = job;
  const folder = openRunFolder({
    outputDir: config.output_dir,
    runName: job.runName,
    recipe: config.recipe,
    resumeRun: resume?.run ?? null,
    elsewhere: job.elsewhere,
    now: new Date(),
  });
  try {
    writeRunConfig(folder.dir, configText(config));
    job.begun(folder.dir);
  } catch (error) {
    if (error instanceof RlvError) folder.discardIfUnused();
    folder.release();
    throw error;
  }
  const task = {
    config: job.located,
    runDir: folder.dir,
    resumeFrom: resume?.checkpoint ?? null,
    checkpointConfig: checkpointConfigText(config),
  };
  return { folder, task };
}

/** Trains in an engine process, and gives the run's folder free. */
export async function trainInFolder(job: TrainJob): Promise<TrainedRun> {
  const { folder, task } = openJob(job);
  const output = job.output === null ? null : join(folder.dir, job.output);
  let opened = 2;
  try {
    if (output !== null) opened = openSync(output, "a");
    const argv = programArgv(Bun.main);
    const outcome = await superviseEngine(argv, task, job.progress, folder.engineStarted, opened);
    if (outcome.exitCode === 2) folder.discardIfUnused();
    return { dir: folder.dir, outcome };
  } catch (error) {
    if (error instanceof RlvError) folder.discardIfUnused();
    throw error;
  } finally {
    if (output !== null && opened !== 2) {
      closeSync(opened);
      if (statSync(output, { throwIfNoEntry: false })?.size === 0) rmSync(output);
    }
    folder.release();
  }
}

/** Trains in this process as one of several ranks, of which the first resolves the job, holds the folder and reports. */
async function trainAsRank(
  ranks: MpiRanks,
  job: () => Promise<TrainJob>,
  progress: Progress,
  report: (run: TrainedRun) => void,
): Promise<number> {
  const { leaveTogether, runRanked } = await import("../run/ranked-job.ts");
  return leaveTogether(ranks, async () => {
    let folder: RunFolder | undefined;
    const prepare = async () => {
      const opened = openJob(await job());
      folder = opened.folder;
      return opened.task;
    };
    try {
      const outcome = await runRanked(trainRecipe, ranks, prepare, progress);
      if (outcome.exitCode === 2) folder?.discardIfUnused();
      if (folder) report({ dir: folder.dir, outcome });
      return outcome.exitCode;
    } catch (error) {
      if (error instanceof RlvError) folder?.discardIfUnused();
      throw error;
    } finally {
      folder?.release();
    }
  });
}

const trainRecipe: Train<ResolvedConfig> = async (config, reporter, control) => {
  const { runTraining } = await import("../recipe/index.ts");
  await runTraining(config, reporter, control);
};

/**
 * The files a job names exist, before a folder is made for it. Names on the hub become folders in what the engine is
 * told; a run's own config keeps the names.
 */
export async function findInputs(config: ResolvedConfig): Promise<ResolvedConfig> {
  switch (config.recipe) {
    case "arithmetic":
      requireFile(config.train_file, "train_file");
      requireFile(config.eval_file, "eval_file");
      return {
        ...config,
        model_name: await findModel(config.model_name, "model_name"),
        reward: await findRewards(config.reward),
      };
    case "values":
      requireFile(config.train_file, "train_file");
      requireFile(config.eval_file, "eval_file");
      requireFile(config.rubric, "rubric");
      return {
        ...config,
        model: await findModel(config.model, "model"),
        judge: await findJudge(config.judge, "judge"),
        reward: await findRewards(config.reward),
      };
    case "sft":
      requireFile(config.dataset, "dataset");
      if (config.eval_file !== null) requireFile(config.eval_file, "eval_file");
      if (config.init !== null) requireFile(config.init, "init");
      if (config.tokenizer !== null) requireFolder(config.tokenizer, "tokenizer");
      return { ...config, model: config.model && (await findModel(config.model, "model")) };
    case "stories":
      return {
        ...config,
        model: await findModel(config.model, "model"),
        dataset: await findDataset(config.dataset, "dataset"),
        reward: await findRewards(config.reward),
        eval_rewards: await findRewards(config.eval_rewards),
      };
    case "hh-rm":
    case "hh-grpo": {
      const found = {
        model: await findModel(config.model, "model"),
        dataset: await findDataset(config.dataset, "dataset"),
      };
      if (config.recipe === "hh-rm") return { ...config, ...found };
      const reward_model_path = await findModel(config.reward_model_path, "reward_model_path");
      return { ...config, ...found, reward_model_path };
    }
  }
}

function rewardLines(): string[] {
  const each = rewardHelp().flatMap(({ name, text }) => [`  ${name}`, ...wrap(text, 6)]);
  return ["", "rewards, which all take the parameter timeout (seconds of a call, null = any):", ...each];
}

function detectorLines(): string[] {
  const each = detectorHelp().flatMap(({ name, text }) => [`  ${name}`, ...wrap(text, 6)]);
  return ["", "detectors:", ...each];
}

type Rewards = ArithmeticConfig["reward"];

/** Models that rewards name. */
async function findRewards(rewards: Rewards): Promise<Rewards> {
  return Promise.all(
    rewards.map(async (part) => {
      const { params } = part;
      if (part.name === "reward_model")
        return {
          ...part,
          params: { ...params, path: await findModel(String(params.path), "reward reward_model.path") },
        };
      if (part.name === "rubric" && params.judge !== undefined)
        return {
          ...part,
          params: { ...params, judge: await findJudge(String(params.judge), "reward rubric.judge") },
        };
      return part;
    }),
  );
}

/** A judge that is a model of its own. */
async function findJudge(name: string, key: string): Promise<string> {
  return name === "initial" || name === "self" ? name : findModel(name, key);
}
