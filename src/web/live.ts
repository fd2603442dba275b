/** Server-sent events: what the reader of runs says is new, to the pages that are open. */
import type { ServerEvents } from "./api.ts";
import type { DataClient } from "./data-process.ts";
import type { EventStream } from "./router.ts";

interface Page {
  readonly stream: EventStream;
  readonly runs: ReadonlySet<string>;
}

export class Live {
  readonly #pages = new Set<Page>();
  #data: DataClient | null = null;

  /** Where what is watched is asked for. */
  connect(data: DataClient): void {
    this.#data = data;
  }

  /** A page that follows some runs; returns what ends it. */
  open(stream: EventStream, runs: readonly string[], version: string): () => void {
    const page: Page = { stream, runs: new Set(runs) };
    this.#pages.add(page);
    stream.send("hello", { version } satisfies ServerEvents["hello"]);
    this.#watch();
    // Where each run is now: the page learns whether it missed rows since it asked for them.
    for (const run of page.runs)
      this.#data?.ask("rows", run, "", null).then(
        (json) => stream.sendText("metrics", json),
        () => {},
      );
    return () => {
      this.#pages.delete(page);
      this.#watch();
    };
  }

  /** `run` null: to every page. */
  say(event: keyof ServerEvents, run: string | null, json: string): void {
    for (const { stream, runs } of this.#pages)
      if (run === null || runs.has(run)) stream.sendText(event, json);
  }

  #watch(): void {
    const ids = new Set([...this.#pages].flatMap(({ runs }) => [...runs]));
    this.#data?.watch(this.#pages.size === 0 ? null : [...ids]);
  }

  close(): void {
    for (const { stream } of [...this.#pages]) stream.close();
  }
}
