import { join } from "node:path";
import { JsonlWriter, truncateAfterStep } from "../io/jsonl.ts";
import { RolloutsDb } from "../io/rollouts-db.ts";
import { EventWriter } from "../io/tensorboard.ts";

/** Where a run's figures go: metrics.jsonl, TensorBoard and rollouts.sqlite. Rows beyond `step` are dropped first. */
export class Sinks implements Disposable {
  readonly rollouts: RolloutsDb | null;
  readonly #metrics: JsonlWriter;
  readonly #events: EventWriter;

  constructor(runDir: string, step: number, saveRollouts: boolean) {
    const path = join(runDir, "metrics.jsonl");
    // A run that starts over evaluates step 0 again.
    const kept = step === 0 ? -1 : step;
    truncateAfterStep(path, kept);
    this.#metrics = new JsonlWriter(path);
    this.#events = new EventWriter(runDir, step > 0 ? { purgeFromStep: step + 1 } : {});
    this.rollouts = saveRollouts ? new RolloutsDb(join(runDir, "rollouts.sqlite")) : null;
    this.rollouts?.deleteAfterStep(kept);
  }

  write(step: number, metrics: Readonly<Record<string, number>>): void {
    const time = Date.now() / 1000;
    this.#metrics.append({ step, time, ...metrics });
    for (const [tag, value] of Object.entries(metrics)) this.#events.scalar(tag, value, step, time);
    this.#events.flush();
    this.rollouts?.flush();
  }

  text(tag: string, value: string, step: number): void {
    this.#events.text(tag, value, step);
  }

  [Symbol.dispose](): void {
    this.rollouts?.close();
    this.#events.close();
    this.#metrics.close();
  }
}
