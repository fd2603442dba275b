/** A module of the user's as a reward: it runs in a child process of this program (module-main.ts). */
import { basename, extname } from "node:path";
import { UsageError } from "../core/errors.ts";
import { childArgv, MODULE_COMMAND } from "../core/version.ts";
import { LineProgram } from "./line-program.ts";
import { type BatchFunction, type BoundReward, type RewardFunction, splitTimeout } from "./registry.ts";
import { resultOf, rolloutRow } from "./rollout-row.ts";

/** A module may take this long to load. */
const LOAD_SECONDS = 60;

/** Whether a reward's name is the path of a module. */
export const isModule = (name: string): boolean => /\.(ts|mts|js|mjs)$/.test(name);

/** The name that metrics and components have for it. */
export const moduleName = (path: string): string => basename(path, extname(path));

export interface ModuleFile {
  /** Of messages and metrics. */
  readonly name: string;
  readonly path: string;
  /** Of the file's content. */
  readonly sha256: string;
  /** What that was in the checkpoint a run goes on from; null: there is none. */
  readonly before: string | null;
}

export function moduleReward(
  { name, path, sha256, before }: ModuleFile,
  params: Readonly<Record<string, unknown>>,
): BoundReward {
  const { own, timeout } = splitTimeout(name, params);
  let program: LineProgram | undefined;
  let loaded = { batch: false, concurrency: 1 };
  const ask = async (step: number, rollouts: readonly unknown[]): Promise<unknown> => {
    const { error, results } = await program!.ask({ step, rollouts });
    if (error !== undefined) throw new Error(String(error));
    return results;
  };
  const each: RewardFunction = async (rollout, { step }) => {
    const results = await ask(step, [rolloutRow(rollout)]);
    return resultOf(name, Array.isArray(results) ? results[0] : results);
  };
  const batch: BatchFunction = async (rollouts, { step }) => {
    const results = await ask(step, rollouts.map(rolloutRow));
    return Array.isArray(results) ? results.map((result) => resultOf(name, result)) : (results as never);
  };
  return {
    ...(timeout === undefined ? {} : { timeout }),
    // What it is the module says when it has been loaded.
    get concurrency() {
      return loaded.concurrency;
    },
    get each() {
      return loaded.batch ? undefined : each;
    },
    get batch() {
      return loaded.batch ? batch : undefined;
    },
    async start() {
      program = new LineProgram([...childArgv(MODULE_COMMAND), path]);
      const late = Promise.withResolvers<{ readonly error: string }>();
      const tooLong = { error: `it did not load within ${LOAD_SECONDS} s` };
      // Cleared, since a timer that is left keeps a command from ending.
      const timer = setTimeout(() => late.resolve(tooLong), LOAD_SECONDS * 1000);
      const said = await Promise.race([program.ask({ params: own }), late.promise]).catch((error: Error) => ({
        error: error.message,
      }));
      clearTimeout(timer);
      if ("error" in said) throw new UsageError(`reward ${name}: ${said.error}`, path);
      loaded = said as unknown as typeof loaded;
      const changed = before !== null && before !== sha256;
      return [
        `reward ${name}: ${path}, sha256 ${sha256.slice(0, 16)}${changed ? `: changed since this run's checkpoint, where it was ${before.slice(0, 16)}` : ""}`,
      ];
    },
    dispose: () => program?.close(),
  };
}
