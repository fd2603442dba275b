import { createInterface } from "node:readline/promises";
import { resolveOptions } from "../config/resolve.ts";
import { RUNS_ACTIONS, type RunsAction, type RunsOptions, runsSchemas } from "../config/schema-runs.ts";
import { didYouMean } from "../config/suggest.ts";
import { UsageError } from "../core/errors.ts";
import {
  deleteCheckpoint,
  deleteRun,
  exportRun,
  type PruneEntry,
  type PruneRule,
  planPrune,
  pruneRun,
  renameRun,
  tagRun,
} from "../report/manage.ts";
import { findRun, listRuns, readRun, rootsOf } from "../report/runs.ts";
import { bytesText } from "../run/reporter.ts";
import { type Command, type Invocation, JSON_FLAG, printJson } from "./command.ts";
import { flagsOf } from "./flags.ts";
import { Curve, listLines, planLines, showLines } from "./runs-text.ts";
import { talk } from "./talk.ts";

/** What follows each subcommand, and how many names it takes. */
const ARGUMENTS: Readonly<Record<RunsAction, readonly [text: string, least: number, most: number]>> = {
  list: ["", 0, 0],
  show: ["RUN", 1, 1],
  rename: ["RUN NAME", 2, 2],
  tag: ["RUN --add A,B --remove C", 1, 1],
  rm: ["RUN …", 1, 1000],
  prune: ["RUN … | --all", 0, 1000],
  export: ["RUN --out DIR", 1, 1],
};

const EXAMPLES: Readonly<Record<RunsAction, string>> = {
  list: "rlv runs list --state live --json",
  show: "rlv runs show arithmetic-20260102-030405",
  rename: "rlv runs rename arithmetic-20260102-030405 careful",
  tag: "rlv runs tag careful --add paper,best",
  rm: "rlv runs rm careful --yes",
  prune: "rlv runs prune --all --keep_last 1 --keep_every 500 --dry_run",
  export: "rlv runs export careful --out ./careful-model",
};

function actionOf(argv: readonly string[]): RunsAction | undefined {
  return RUNS_ACTIONS.find((name) => name === argv[0]);
}

const listOf = (text: string | null): string[] => (text ?? "").split(",").filter((part) => part !== "");

export const command: Command = {
  name: "runs",
  usage: "runs [list | show | rename | tag | rm | prune | export]",
  maxArgs: 1001,
  completes: { words: RUNS_ACTIONS, files: true },
  summary: "list, inspect and tidy up runs; a screen of its own on a terminal",
  examples: (argv) => {
    const action = actionOf(argv);
    return action === undefined ? ["rlv runs", ...Object.values(EXAMPLES)] : [EXAMPLES[action]];
  },
  notes: () => [
    "",
    ...RUNS_ACTIONS.map((name) => `  rlv runs ${name} ${ARGUMENTS[name][0]}`.trimEnd()),
    "",
    "RUN is a name in one of the folders, or a path. A live run is never renamed, deleted or pruned.",
    "rlv runs ACTION --help shows its flags. Without an action: a screen on a terminal, otherwise the list.",
  ],
  flags: (argv) => [...flagsOf(runsSchemas[actionOf(argv) ?? "list"]), JSON_FLAG],
  async run(invocation) {
    const [asked, ...names] = invocation.args;
    if (asked === undefined) {
      const onTerminal = process.stdin.isTTY === true && process.stdout.isTTY === true && !invocation.json;
      if (!onTerminal) return list(invocation);
      const { dir } = optionsOf("list", invocation);
      const { runsScreen } = await import("./runs-screen.ts");
      return runsScreen(rootsOf(dir));
    }
    const action = actionOf(invocation.args);
    if (action === undefined)
      throw new UsageError(
        `unknown action ${JSON.stringify(asked)}`,
        "rlv runs",
        didYouMean(asked, RUNS_ACTIONS, `the actions are ${RUNS_ACTIONS.join(", ")}`),
      );
    const [text, least, most] = ARGUMENTS[action];
    if (names.length < least || names.length > most)
      throw new UsageError(
        `rlv runs ${action} takes ${text === "" ? "no names" : text}`,
        undefined,
        `for example ${EXAMPLES[action]}`,
      );
    return ACTIONS[action](invocation, names);
  },
};

function optionsOf<Action extends RunsAction>(action: Action, { flags }: Invocation): RunsOptions<Action> {
  return resolveOptions(runsSchemas[action], flags, `runs ${action}`);
}

type Act = (invocation: Invocation, names: readonly string[]) => number | Promise<number>;
const ACTIONS: Readonly<Record<RunsAction, Act>> = { list, show, rename, tag, rm, prune, export: exports };

const say = (lines: readonly string[]): void => {
  process.stdout.write(lines.map((line) => `${line}\n`).join(""));
};

const columns = (): number => (process.stdout.isTTY ? process.stdout.columns : 200);

function list(invocation: Invocation): number {
  const { dir, tag: wanted, state } = optionsOf("list", invocation);
  const roots = rootsOf(dir);
  const runs = listRuns(roots).filter(
    (run) => (wanted === null || run.tags.includes(wanted)) && (state === null || run.state === state),
  );
  if (invocation.json) printJson({ runs });
  else if (runs.length === 0) talk(`no runs in ${roots.join(", ")}`);
  else say(listLines(runs, Date.now() / 1000, columns()));
  return 0;
}

function show(invocation: Invocation, [name]: readonly string[]): number {
  const { dir, metric: wanted } = optionsOf("show", invocation);
  const run = readRun(findRun(name!, rootsOf(dir)));
  const metric = wanted ?? run.metric;
  if (wanted !== null && run.last[wanted] === undefined)
    throw new UsageError(
      `no metric ${JSON.stringify(wanted)}`,
      run.dir,
      didYouMean(wanted, Object.keys(run.last), "rlv runs show lists the metrics"),
    );
  const series = metric === null ? null : new Curve(run.dir, metric).read();
  if (invocation.json) printJson({ ...run, curve: { metric, ...series } });
  else say(showLines(run, metric, series, columns()));
  return 0;
}

function rename(invocation: Invocation, [from, to]: readonly string[]): number {
  const roots = rootsOf(optionsOf("rename", invocation).dir);
  const dir = renameRun(findRun(from!, roots), to!, roots);
  if (invocation.json) printJson({ run: to, dir });
  else talk(`renamed to ${dir}`);
  return 0;
}

function tag(invocation: Invocation, [name]: readonly string[]): number {
  const { dir, add, remove } = optionsOf("tag", invocation);
  if (add === null && remove === null)
    throw new UsageError("nothing to do", "rlv runs tag", "give --add or --remove");
  const run = findRun(name!, rootsOf(dir));
  const tags = tagRun(run, listOf(add), listOf(remove));
  if (invocation.json) printJson({ run: name, tags });
  else talk(tags.length === 0 ? "no tags" : tags.map((each) => `#${each}`).join(" "));
  return 0;
}

/** Asks on the terminal; where there is none, --yes is the only way. */
async function confirmed(question: string, yes: boolean): Promise<boolean> {
  if (yes) return true;
  if (process.stdin.isTTY !== true)
    throw new UsageError("nobody to ask", question, "give --yes to do it without asking");
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await lines.question(`${question} [y/N] `)).trim());
  } finally {
    lines.close();
  }
}

async function rm(invocation: Invocation, names: readonly string[]): Promise<number> {
  const { dir, yes, checkpoint } = optionsOf("rm", invocation);
  const roots = rootsOf(dir);
  const runs = [...new Set(names.map((name) => findRun(name, roots)))].map((each) => readRun(each));
  const what =
    checkpoint === null ? runs.map((run) => run.name).join(", ") : `${checkpoint} of ${names.join(", ")}`;
  const bytes = runs
    .map((run) =>
      checkpoint === null ? run.bytes : (run.saved.find((each) => each.name === checkpoint)?.bytes ?? 0),
    )
    .reduce((sum, size) => sum + size, 0);
  if (!(await confirmed(`delete ${what} (${bytesText(bytes)})?`, yes))) {
    talk("nothing was deleted");
    return 0;
  }
  const removed: string[] = [];
  for (const run of runs) {
    if (checkpoint === null) deleteRun(run.dir, roots);
    else deleteCheckpoint(run.dir, checkpoint, roots);
    removed.push(run.dir);
    if (!invocation.json) talk(`deleted ${checkpoint === null ? run.dir : `${checkpoint} of ${run.dir}`}`);
  }
  if (invocation.json) printJson({ removed, checkpoint, bytes });
  return 0;
}

async function prune(invocation: Invocation, names: readonly string[]): Promise<number> {
  const options = optionsOf("prune", invocation);
  const roots = rootsOf(options.dir);
  if ((names.length === 0) !== options.all)
    throw new UsageError(
      options.all ? "--all and names exclude each other" : "no runs named",
      "rlv runs prune",
      "name runs, or give --all",
    );
  const rule: PruneRule = {
    keepLast: options.keep_last,
    keepEvery: options.keep_every,
    keepBest: options.keep_best,
    best: options.best,
    keepBroken: options.keep_broken,
  };
  const dirs = options.all
    ? listRuns(roots)
        .filter(
          (run) => !run.link && run.problem === null && run.state !== "live" && run.checkpoints.length > 0,
        )
        .map((run) => run.dir)
    : [...new Set(names.map((name) => findRun(name, roots)))];
  const plans = dirs.map((dir) => {
    const run = readRun(dir);
    return { run, plan: planPrune(run, rule) };
  });
  const gone = (plan: readonly PruneEntry[]) =>
    plan.filter(({ keep }) => !keep).map(({ checkpoint }) => checkpoint);
  const doomed = plans.flatMap(({ plan }) => gone(plan));
  const bytes = doomed.reduce((sum, each) => sum + each.bytes, 0);
  const report = (done: boolean, each: typeof plans) => {
    if (invocation.json)
      printJson({
        dry_run: !done,
        bytes,
        runs: each.map(({ run, plan }) => ({
          run: run.name,
          dir: run.dir,
          checkpoints: plan.map(({ checkpoint, keep, reason }) => ({
            name: checkpoint.name,
            bytes: checkpoint.bytes,
            keep,
            reason,
          })),
        })),
      });
    else say(each.flatMap(({ run, plan }) => planLines(run.name, plan, done)));
  };
  if (options.dry_run || doomed.length === 0) {
    report(false, plans);
    return 0;
  }
  if (!options.yes && !invocation.json) report(false, plans);
  if (!(await confirmed(`remove ${doomed.length} checkpoints (${bytesText(bytes)})?`, options.yes))) {
    talk("nothing was removed");
    return 0;
  }
  report(
    true,
    plans.map(({ run, plan }) => ({
      run,
      plan: gone(plan).length === 0 ? plan : pruneRun(run.dir, rule, roots),
    })),
  );
  return 0;
}

function exports(invocation: Invocation, [name]: readonly string[]): number {
  const { dir, out, checkpoint } = optionsOf("export", invocation);
  const exported = exportRun(findRun(name!, rootsOf(dir)), out, checkpoint);
  if (invocation.json) printJson(exported);
  else
    talk(
      `wrote ${exported.files.length} files (${bytesText(exported.bytes)})` +
        `${exported.checkpoint === null ? "" : ` of ${exported.checkpoint}`}: ${exported.out}`,
    );
  return 0;
}
