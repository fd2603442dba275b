import { randomBytes } from "node:crypto";
import { RlvError } from "../core/errors.ts";
import { deleteCheckpoint } from "../report/manage.ts";
import { readRun, usable } from "../report/runs.ts";
import type { DeleteAnswer } from "./api.ts";
import type { FoundCheckpoint } from "./context.ts";
import { HttpError } from "./router.ts";

const CONFIRM_MS = 60_000;

/** Removes a checkpoint when it is asked twice: the second time with what the first answer said. */
export class CheckpointRemoval {
  readonly #asked = new Map<string, { dir: string; until: number }>();

  remove(
    { run, name, dir }: FoundCheckpoint,
    roots: readonly string[],
    confirm: string | undefined,
  ): DeleteAnswer {
    const now = Date.now();
    for (const [token, { until }] of this.#asked) if (until < now) this.#asked.delete(token);
    if (confirm === undefined) {
      const found = readRun(run.dir);
      if (found.state === "live") throw new HttpError(409, "the run is live, wait until it has ended");
      const token = randomBytes(12).toString("base64url");
      this.#asked.set(token, { dir, until: now + CONFIRM_MS });
      const whole = found.saved.filter(usable);
      const others = whole.filter((each) => each.name !== name);
      const newest = whole.at(-1)?.name === name;
      const consequence =
        found.state === "finished" && name !== "final"
          ? `${name} is removed for ever.`
          : others.length === 0
            ? `${name} is removed for ever. It is the last one: the run cannot be resumed, and its model is lost.`
            : newest
              ? `${name} is removed for ever. The run can then be resumed from ${others.at(-1)!.name}.`
              : `${name} is removed for ever.`;
      return {
        deleted: false,
        confirm: token,
        bytes: found.saved.find((each) => each.name === name)?.bytes ?? 0,
        consequence,
      };
    }
    if (this.#asked.get(confirm)?.dir !== dir)
      throw new HttpError(409, "this confirmation is not, or no longer, for that checkpoint: ask again");
    this.#asked.delete(confirm);
    try {
      deleteCheckpoint(run.dir, name, roots);
    } catch (error) {
      if (error instanceof RlvError) throw new HttpError(409, error.message);
      throw error;
    }
    return { deleted: true };
  }
}
