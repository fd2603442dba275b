import { createHash } from "node:crypto";
import { resolve } from "node:path";
import { checkpointsOf, isRun, runsIn } from "../report/runs.ts";
import type { FoundCheckpoint, FoundRun } from "./context.ts";
import { HttpError } from "./router.ts";

/** The folders whose runs are served: runs and checkpoints are found in them by id and name, and nothing else is. */
export class Roots {
  readonly folders: readonly string[];
  #byId = new Map<string, FoundRun>();

  constructor(folders: readonly string[]) {
    this.folders = folders.map((folder) => resolve(folder));
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
