import { createHash } from "node:crypto";
import { readdirSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { checkpointsOf, isRun, runsIn } from "../report/runs.ts";
import { isSweep } from "../report/sweep.ts";
import type { FoundCheckpoint, FoundRun, FoundSweep } from "./context.ts";
import { HttpError } from "./router.ts";

/**
 * The folders whose runs are served, and the sweeps that are or lie in them: runs, sweeps and checkpoints are found there
 * by id and name, and nothing else is.
 */
export class Roots {
  readonly folders: readonly string[];
  #byId = new Map<string, FoundRun>();

  constructor(folders: readonly string[]) {
    this.folders = folders.map((folder) => resolve(folder));
  }

  sweeps(): FoundSweep[] {
    const dirs = this.folders.flatMap((folder) => [folder, ...visible(folder)]).filter(isSweep);
    return [...new Set(dirs)].map((dir) => ({ id: idOf(dir), name: basename(dir), dir }));
  }

  sweep(id: string): FoundSweep {
    const found = this.sweeps().find((sweep) => sweep.id === id);
    if (found === undefined) throw new HttpError(404, "no such sweep");
    return found;
  }

  runs(): FoundRun[] {
    const found = this.folders.flatMap((folder) =>
      runsIn(folder).map(({ name, dir }) => ({ id: idOf(dir), name, dir })),
    );
    this.#byId = new Map(found.map((run) => [run.id, run]));
    return [...this.#byId.values()];
  }

  run(id: string): FoundRun {
    const known = this.#byId.get(id);
    if (known !== undefined && isRun(known.dir)) return known;
    this.runs();
    const run = this.#byId.get(id);
    if (run === undefined) throw new HttpError(404, "no such run");
    return run;
  }

  checkpoint(run: string, name: string): FoundCheckpoint {
    const found = this.run(run);
    const checkpoint = checkpointsOf(found.dir).find((each) => each.name === name);
    if (checkpoint === undefined) throw new HttpError(404, "no such checkpoint");
    return { run: found, name: checkpoint.name, dir: checkpoint.dir };
  }
}

/** The same for the same folder, whoever serves it: addresses of pages stay. */
export function idOf(dir: string): string {
  return createHash("sha256").update(dir).digest("hex").slice(0, 16);
}

/** What lies in a folder, hidden things aside. */
function visible(dir: string): string[] {
  try {
    return readdirSync(dir)
      .filter((name) => !name.startsWith("."))
      .sort()
      .map((name) => join(dir, name));
  } catch {
    return [];
  }
}
