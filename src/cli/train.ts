import { detectorHelp } from "../config/detectors.ts";
import { RECIPE_NAMES, RECIPES, type RecipeInfo, type ResolvedConfig } from "../config/recipes.ts";
import { type Base, baseOf, resolveTrain, startingValues, withPlaces } from "../config/resolve.ts";
import { rewardHelp } from "../config/rewards.ts";
import { storyRunName } from "../config/run-name.ts";
import { checkpointConfigText, configText } from "../config/save.ts";
import type { ArithmeticConfig } from "../config/schema-arithmetic.ts";
import { RlvError, UsageError } from "../core/errors.ts";
import { programArgv, superviseEngine } from "../run/engine-process.ts";
import { openRunFolder, type ResumePoint, resumePoint, writeRunConfig } from "../run/folder.ts";
import { openProgress } from "../run/progress.ts";
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
    const given = new Map(flags);
    const resume = resumeOf(given);
    const elsewhere = given.has("output_dir") || given.has("run_name");
    const fromLine = baseOf({ target: args[0], configFile: given.get("config"), checkpoint: resume?.config });
    const places = elsewhere ? ["output_dir", "log_dir"] : ["output_dir", "log_dir", "run_name"];
    const base = resume?.run ? withPlaces(fromLine, resume.run, places) : fromLine;
    const ui = given.get("ui") ?? "false";
    if (ui !== "true" && ui !== "false")
      throw new UsageError(`ui expects true or false, given ${JSON.stringify(ui)}`, `--ui ${ui}`);
    for (const own of OWN_FLAGS) given.delete(own.name);
    const config = resolveTrain(base, given);
    const located = await findInputs(config);
    const folder = openRunFolder({
      outputDir: config.output_dir,
      runName: config.run_name ?? (config.recipe === "stories" ? storyRunName(config) : null),
      recipe: config.recipe,
      resumeRun: resume?.run ?? null,
      elsewhere,
      now: new Date(),
    });
    const progress = openProgress(json ? process.stderr : process.stdout, process.stderr);
    let page: { close(): void } | undefined;
    try {
      writeRunConfig(folder.dir, configText(config));
      progress.line(`run folder: ${folder.dir}`);
      if (ui === "true") {
        // The server's modules are for those who ask for it.
        const { TrainingPage } = await import("./ui.ts");
        page = new TrainingPage(folder.dir, (line) => progress.line(line));
      }
      const outcome = await superviseEngine(
        programArgv(Bun.main),
        {
          config: located,
          runDir: folder.dir,
          resumeFrom: resume?.checkpoint ?? null,
          checkpointConfig: checkpointConfigText(config),
        },
        progress,
        folder.engineStarted,
      );
      if (outcome.exitCode === 2) folder.discardIfUnused();
      if (json)
        printJson({
          run: folder.dir,
          exit_code: outcome.exitCode,
          step: outcome.done?.step ?? null,
          checkpoint: outcome.done?.path ?? null,
          metrics: outcome.done?.metrics ?? {},
        });
      if (outcome.failure !== undefined) {
        const prefix = outcome.exitCode === 130 ? "rlv" : "rlv: error";
        process.stderr.write(`${prefix}: ${outcome.failure}\n`);
      }
      return outcome.exitCode;
    } catch (error) {
      if (error instanceof RlvError) folder.discardIfUnused();
      throw error;
    } finally {
      page?.close();
      folder.release();
    }
  },
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
