import type { Job, RolloutTables, RunList, RunSummary, ServerEvents } from "../api.ts";
import { ask } from "./client.ts";
import { store } from "./store.ts";

export type Connection = "connecting" | "live" | "lost";

/** null: not asked for yet. */
export const runList = store<RunList | null>(null);
export const runListError = store<Error | null>(null);
export const connection = store<Connection>("connecting");
export const jobs = store<readonly Job[]>([]);
/** How many rollouts the followed runs have now. */
export const rolloutCounts = store<Readonly<Record<string, RolloutTables>>>({});

type MetricListener = (rows: ServerEvents["metrics"]) => void;
const metricListeners = new Set<MetricListener>();
const followed = new Map<string, number>();
let source: EventSource | null = null;
let sourceRuns = "";
let planned: ReturnType<typeof setTimeout> | null = null;

export async function loadRuns(): Promise<void> {
  try {
    runList.set(await ask<RunList>("/api/runs"));
    runListError.set(null);
  } catch (error) {
    runListError.set(error as Error);
  }
}

export function onMetrics(listener: MetricListener): () => void {
  metricListeners.add(listener);
  return () => metricListeners.delete(listener);
}

/** Asks for the rows of these runs as they come. Returns what ends that. */
export function follow(ids: readonly string[]): () => void {
  for (const id of ids) followed.set(id, (followed.get(id) ?? 0) + 1);
  replan();
  return () => {
    for (const id of ids) {
      const left = (followed.get(id) ?? 1) - 1;
      if (left === 0) followed.delete(id);
      else followed.set(id, left);
    }
    replan();
  };
}

/** One connection for the whole page: a change of what is followed opens another. */
function replan(): void {
  if (planned !== null) clearTimeout(planned);
  planned = setTimeout(() => {
    planned = null;
    const runs = [...followed.keys()].sort().map(encodeURIComponent).join(",");
    if (source === null || runs !== sourceRuns) connect(runs);
  }, 30);
}

function connect(runs: string): void {
  source?.close();
  sourceRuns = runs;
  const opened = new EventSource(`/api/events${runs === "" ? "" : `?runs=${runs}`}`);
  source = opened;
  const on = <Name extends keyof ServerEvents>(name: Name, does: (data: ServerEvents[Name]) => void) =>
    opened.addEventListener(name, (event) => {
      if (source === opened) does(JSON.parse((event as MessageEvent<string>).data));
    });
  on("hello", () => {
    // What was missed while there was no connection.
    void loadRuns();
    connection.set("live");
  });
  on("runs", ({ changed, gone }) => merge(changed, gone));
  on("metrics", (rows) => {
    for (const listener of metricListeners) listener(rows);
  });
  on("rollouts", ({ run, tables }) => rolloutCounts.set({ ...rolloutCounts.get(), [run]: tables }));
  on("job", (job) => {
    const others = jobs.get().filter(({ id }) => id !== job.id);
    jobs.set([...others, job]);
  });
  opened.onerror = () => {
    if (source !== opened) return;
    connection.set("lost");
    // The browser tries again by itself unless the server refused.
    if (opened.readyState === EventSource.CLOSED) setTimeout(() => source === opened && connect(runs), 3000);
  };
}

function merge(changed: readonly RunSummary[], gone: readonly string[]): void {
  const list = runList.get();
  if (list === null) return;
  const now = new Map(changed.map((run) => [run.id, run]));
  const kept = list.runs.filter(({ id }) => !gone.includes(id)).map((run) => now.get(run.id) ?? run);
  const fresh = changed.filter(({ id }) => !list.runs.some((run) => run.id === id));
  runList.set({ ...list, runs: [...fresh, ...kept] });
  // A sweep that has begun is told by its runs.
  if (fresh.some(({ sweep }) => sweep !== null && !list.sweeps.some(({ id }) => id === sweep)))
    void loadRuns();
}

export function startLive(): void {
  void loadRuns();
  replan();
}
