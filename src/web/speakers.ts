/** Which models of runs can be talked to: checkpoints that are language models, and what a run began with. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { checkpointsOf, configOf, usable } from "../report/runs.ts";
import type { FoundRun } from "./context.ts";

export interface SpeakingRun {
  readonly id: string;
  readonly name: string;
  /** Names of its checkpoints, in the order of their steps. */
  readonly checkpoints: readonly string[];
  /** It says which model it began with. */
  readonly base: boolean;
}

/** Runs with a checkpoint that speaks. */
export function speakingRuns(runs: readonly FoundRun[]): SpeakingRun[] {
  return runs.flatMap(({ id, name, dir }) => {
    const checkpoints = checkpointsOf(dir).filter((each) => usable(each) && speaks(each.dir));
    if (checkpoints.length === 0) return [];
    return [{ id, name, checkpoints: checkpoints.map((each) => each.name), base: baseOf(dir) !== null }];
  });
}

/** The model that a run began with, as its config names it. */
export function baseOf(runDir: string): string | null {
  const { model, model_name = model } = configOf(runDir) ?? {};
  return typeof model_name === "string" && model_name !== "" ? model_name : null;
}

/** Whether a checkpoint is a language model or an adapter of one. */
export function speaks(dir: string): boolean {
  const read = (name: string): Record<string, unknown> | null => {
    try {
      return existsSync(join(dir, name)) ? JSON.parse(readFileSync(join(dir, name), "utf8")) : null;
    } catch {
      return null;
    }
  };
  const config = read("config.json");
  if (config)
    return Array.isArray(config.architectures) && /ForCausalLM$/.test(String(config.architectures[0]));
  const adapter = read("adapter_config.json");
  return adapter !== null && adapter.task_type !== "SEQ_CLS";
}
