/**
 * The data of the page comes from a second process of this program: a large or a broken file keeps that one busy or ends
 * it, and the server goes on answering. They speak over Bun's IPC; answers cross as JSON text, which is what the page
 * gets.
 */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { RlvError } from "../core/errors.ts";
import { DATA_COMMAND } from "../core/version.ts";
import type { RolloutQuery, RolloutTable, RunSummary, ServerEvents } from "./api.ts";
import { HttpError } from "./router.ts";
import { RunData } from "./run-data.ts";

/** What can be asked: name, arguments. */
export interface DataCalls {
  list(): unknown;
  detail(id: string): unknown;
  log(id: string, bytes: number): unknown;
  metrics(
    ids: readonly string[],
    names: readonly string[],
    points: number,
    xMin: number,
    xMax: number,
  ): unknown;
  rows(id: string, generation: string, from: number | null): unknown;
  rolloutTables(id: string): unknown;
  rollouts(id: string, query: RolloutQuery): unknown;
  rollout(id: string, key: string, table: RolloutTable, mode: string): unknown;
  diversity(id: string, table: RolloutTable, steps: number): unknown;
  rewards(id: string, steps: number): unknown;
  sweep(id: string): unknown;
  sweepCurves(id: string, names: readonly string[], points: number): unknown;
  grouped(ids: readonly string[]): unknown;
  groupedCurves(ids: readonly string[], names: readonly string[], points: number): unknown;
  compare(a: string, b: string): unknown;
  speakers(): unknown;
}

type CallName = keyof DataCalls;

interface StartMessage {
  readonly type: "start";
  readonly folders: readonly string[];
}

/** Which runs are watched; null: nobody watches anything. */
interface WatchMessage {
  readonly type: "watch";
  readonly ids: readonly string[] | null;
}

interface CallMessage {
  readonly type: "call";
  readonly id: number;
  readonly name: CallName;
  readonly args: readonly unknown[];
}

type AnswerMessage =
  | { readonly type: "answer"; readonly id: number; readonly json: string }
  | { readonly type: "answer"; readonly id: number; readonly status: number; readonly error: string };

type WatchedEvent = "runs" | "metrics" | "rollouts";

interface EventMessage {
  readonly type: "event";
  readonly event: WatchedEvent;
  /** Of a run; null: for everybody. */
  readonly run: string | null;
  readonly json: string;
}

/** A question that takes longer has met a file system that hangs. */
const ANSWER_MS = 60_000;
/** Questions that wait at the same time. */
const MOST_WAITING = 256;
const WATCH_MS = 700;
/** The list of runs is looked at every so many times. */
const LIST_EVERY = 3;

interface Waiting {
  readonly resolve: (json: string) => void;
  readonly reject: (error: Error) => void;
  readonly timer: Timer;
}

/** The server's side: starts the process, asks it, and starts it again when it has ended. */
export class DataClient {
  readonly #waiting = new Map<number, Waiting>();
  #child: Bun.Subprocess | null = null;
  #next = 1;
  #closed = false;
  #watched: readonly string[] | null = null;

  constructor(
    readonly program: readonly string[],
    readonly folders: readonly string[],
    readonly onEvent: (event: WatchedEvent, run: string | null, json: string) => void,
  ) {
    this.#start();
  }

  /** For tests. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  #start(): Bun.Subprocess {
    const child = Bun.spawn([...this.program, DATA_COMMAND], {
      stdio: ["ignore", "ignore", 2],
      serialization: "advanced",
      ipc: (message: AnswerMessage | EventMessage) => {
        if (message.type === "event") this.onEvent(message.event, message.run, message.json);
        else this.#settle(message);
      },
      onExit: (ended) => {
        if (this.#child === ended) this.#child = null;
        for (const id of [...this.#waiting.keys()])
          this.#settle({ type: "answer", id, status: 503, error: "the reader of runs has ended, ask again" });
        if (this.#watched !== null && !this.#closed) setTimeout(() => this.watch(this.#watched), 1000);
      },
    });
    this.#child = child;
    child.send({ type: "start", folders: this.folders } satisfies StartMessage);
    return child;
  }

  #settle(message: AnswerMessage): void {
    const waiting = this.#waiting.get(message.id);
    if (waiting === undefined) return;
    this.#waiting.delete(message.id);
    clearTimeout(waiting.timer);
    if ("json" in message) waiting.resolve(message.json);
    else waiting.reject(new HttpError(message.status, message.error));
  }

  /** The answer as JSON. Rejects with HttpError. */
  ask<Name extends CallName>(name: Name, ...args: Parameters<DataCalls[Name]>): Promise<string> {
    if (this.#closed) throw new HttpError(503, "the server ends");
    if (this.#waiting.size >= MOST_WAITING) throw new HttpError(503, "too many questions, wait a moment");
    const child = this.#child ?? this.#start();
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        // It hangs: its successor is asked next time.
        child.kill("SIGKILL");
        this.#settle({ type: "answer", id, status: 503, error: "reading takes too long" });
      }, ANSWER_MS);
      this.#waiting.set(id, { resolve, reject, timer });
      try {
        child.send({ type: "call", id, name, args } satisfies CallMessage);
      } catch {
        this.#settle({ type: "answer", id, status: 503, error: "the reader of runs has ended, ask again" });
      }
    });
  }

  watch(ids: readonly string[] | null): void {
    this.#watched = ids;
    if (this.#closed) return;
    const child = this.#child ?? this.#start();
    child.send({ type: "watch", ids } satisfies WatchMessage);
  }

  close(): void {
    this.#closed = true;
    this.#child?.kill();
  }
}

/** The hidden command `__data`: answers until the server is gone. */
export function serveData(): void {
  if (process.send === undefined) {
    process.stderr.write(`rlv: error: ${DATA_COMMAND} is started by rlv serve, not by hand\n`);
    process.exit(2);
  }
  let data: RunData | undefined;
  let watcher: Watcher | undefined;
  // A terminal sends Ctrl-C to both; the server decides what it means.
  process.on("SIGINT", () => {});
  process.on("SIGTERM", () => process.exit(0));
  process.on("disconnect", () => process.exit(0));
  process.on("message", (message: StartMessage | WatchMessage | CallMessage) => {
    if (message.type === "start") {
      data = new RunData(message.folders);
      watcher = new Watcher(data);
    } else if (message.type === "watch") watcher!.watch(message.ids);
    else void answer(data!, message);
  });
}

function send(message: AnswerMessage | EventMessage): void {
  if (process.connected) process.send!(message);
}

async function answer(data: RunData, { id, name, args }: CallMessage): Promise<void> {
  try {
    const method = data[name] as (...given: unknown[]) => unknown;
    send({ type: "answer", id, json: JSON.stringify(await method.apply(data, [...args])) });
  } catch (error) {
    if (error instanceof HttpError) send({ type: "answer", id, status: error.status, error: error.message });
    // A run that was there a moment ago.
    else if (error instanceof RlvError || (error as NodeJS.ErrnoException).code === "ENOENT")
      send({ type: "answer", id, status: 404, error: "it cannot be read, is it still there?" });
    else {
      process.stderr.write(
        `rlv: reading for the page failed: ${error instanceof Error ? error.message : error}\n`,
      );
      send({ type: "answer", id, status: 500, error: "reading failed, the server's terminal says why" });
    }
  }
}

/** Looks at what is watched, and says what is new. */
class Watcher {
  #timer: Timer | null = null;
  #round = 0;
  #ids: readonly string[] = [];
  /** The JSON of each run that was said. */
  #runs: Map<string, string> | null = null;
  readonly #metrics = new Map<string, { generation: string; rows: number }>();
  readonly #rollouts = new Map<string, { signature: string; json: string }>();

  constructor(readonly data: RunData) {}

  watch(ids: readonly string[] | null): void {
    this.#ids = ids ?? [];
    for (const map of [this.#metrics, this.#rollouts])
      for (const id of map.keys()) if (!this.#ids.includes(id)) map.delete(id);
    if (ids === null) {
      if (this.#timer !== null) clearTimeout(this.#timer);
      this.#timer = null;
      this.#runs = null;
    } else if (this.#timer === null) this.#look();
  }

  #look(): void {
    this.#timer = setTimeout(() => {
      void this.#once().finally(() => {
        if (this.#timer !== null) this.#look();
      });
    }, WATCH_MS);
  }

  async #once(): Promise<void> {
    if (this.#round++ % LIST_EVERY === 0) this.#list();
    for (const id of this.#ids) {
      try {
        await this.#metricsOf(id);
        await this.#rolloutsOf(id);
      } catch {
        // A run that cannot be read now, or is gone: whoever asks for it is told why.
      }
    }
  }

  #list(): void {
    const { runs } = this.data.list();
    const now = new Map(runs.map((run) => [run.id, JSON.stringify(run)]));
    // The first time all of them: a page that began to listen may have asked a moment before one changed.
    const before = this.#runs ?? new Map<string, string>();
    this.#runs = now;
    const changed = runs.filter((run) => before.get(run.id) !== now.get(run.id)) satisfies RunSummary[];
    const gone = [...before.keys()].filter((id) => !now.has(id));
    if (changed.length + gone.length > 0)
      send({
        type: "event",
        event: "runs",
        run: null,
        json: JSON.stringify({ changed, gone } satisfies ServerEvents["runs"]),
      });
  }

  async #metricsOf(id: string): Promise<void> {
    const said = this.#metrics.get(id);
    const rows = await this.data.rows(id, said?.generation ?? "", said === undefined ? null : said.rows);
    this.#metrics.set(id, { generation: rows.generation, rows: rows.from + rows.rows.length });
    // The first time too: whoever began to listen learns whether it has all of them.
    if (said !== undefined && said.generation === rows.generation && rows.rows.length === 0) return;
    send({ type: "event", event: "metrics", run: id, json: JSON.stringify(rows) });
  }

  async #rolloutsOf(id: string): Promise<void> {
    const { dir } = this.data.run(id);
    const path = join(dir, "rollouts.sqlite");
    const signature = (await Promise.all([path, `${path}-wal`].map(signatureOf))).join(" ");
    const said = this.#rollouts.get(id);
    if (said?.signature === signature) return;
    const tables = await this.data.rolloutTables(id);
    const json = JSON.stringify({ run: id, tables } satisfies { run: string; tables: unknown });
    this.#rollouts.set(id, { signature, json });
    if (tables !== null && said?.json !== json) send({ type: "event", event: "rollouts", run: id, json });
  }
}

async function signatureOf(path: string): Promise<string> {
  const found = await stat(path).catch(() => null);
  return found === null ? "" : `${found.ino} ${found.size} ${found.mtimeMs}`;
}
