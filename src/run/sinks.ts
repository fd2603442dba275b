import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { JsonlWriter, type JsonRow, jsonlRows, jsonNumber, truncateAfterStep } from "../io/jsonl.ts";
import { RolloutsDb } from "../io/rollouts-db.ts";
import { EventWriter } from "../io/tensorboard.ts";

export interface SinkOptions {
  readonly runDir: string;
  /** A second folder for TensorBoard's files; null: the run's alone. */
  readonly logDir: string | null;
  /** Steps done: what lies beyond is dropped first. */
  readonly step: number;
  /** The last of them was not recorded to its end: what it has written of metrics and evaluation is dropped too. */
  readonly unrecorded?: boolean;
  readonly saveRollouts: boolean;
  /** Nothing is opened and everything dropped: another rank writes. */
  readonly silent?: boolean;
}

/** Where a run's figures go: metrics.jsonl, TensorBoard and rollouts.sqlite. */
export class Sinks implements Disposable {
  readonly rollouts: RolloutsDb | null;
  readonly #metrics: JsonlWriter | null;
  readonly #events: readonly EventWriter[];

  constructor({ runDir, logDir, step, unrecorded = false, saveRollouts, silent = false }: SinkOptions) {
    if (silent) {
      this.rollouts = null;
      this.#metrics = null;
      this.#events = [];
      return;
    }
    const path = join(runDir, "metrics.jsonl");
    // A run that starts over evaluates step 0 again.
    const kept = step === 0 ? -1 : step;
    const recorded = unrecorded ? kept - 1 : kept;
    truncateAfterStep(path, recorded);
    const history = recorded >= 0 && existsSync(path) ? [...jsonlRows(path)].map(({ row }) => row) : [];
    this.#metrics = new JsonlWriter(path);
    this.#events = [runDir, ...(logDir === null ? [] : [logDir])].map(
      (dir) => new EventWriter(dir, hasEvents(dir) ? { purgeFromStep: recorded + 1 } : {}),
    );
    // The purge is by number, whatever an axis counts: what it takes from those by examples is said again.
    for (const row of history) if (Number(row.examples) > recorded) this.#byExamples(row);
    this.rollouts = saveRollouts ? new RolloutsDb(join(runDir, "rollouts.sqlite")) : null;
    this.rollouts?.deleteAfterStep(kept, recorded);
  }

  /** `examples` trained on so far: every figure again, under NAME_by_examples, along them. */
  write(step: number, metrics: Readonly<Record<string, number>>, examples: number | null = null): void {
    const time = Date.now() / 1000;
    const row = { step, time, ...(examples === null ? {} : { examples }), ...metrics };
    this.#metrics?.append(row);
    for (const events of this.#events) {
      for (const [tag, value] of Object.entries(metrics)) events.scalar(tag, value, step, time);
    }
    this.#byExamples(row);
    for (const events of this.#events) events.flush();
    this.rollouts?.flushSoon();
  }

  #byExamples(row: JsonRow): void {
    const examples = jsonNumber(row.examples);
    const time = jsonNumber(row.time);
    if (examples === undefined || time === undefined) return;
    for (const [tag, value] of Object.entries(row)) {
      const number = tag.includes("/") ? jsonNumber(value) : undefined;
      if (number === undefined) continue;
      for (const events of this.#events) events.scalar(`${tag}_by_examples`, number, examples, time);
    }
  }

  text(tag: string, value: string, step: number): void {
    for (const events of this.#events) events.text(tag, value, step);
  }

  /** Everything written so far is on disk: a checkpoint of this moment finds all its rows. */
  flush(): void {
    this.rollouts?.flush();
  }

  [Symbol.dispose](): void {
    this.rollouts?.close();
    for (const events of this.#events) events.close();
    this.#metrics?.close();
  }
}

function hasEvents(dir: string): boolean {
  return existsSync(dir) && readdirSync(dir).some((name) => name.startsWith("events.out.tfevents."));
}
