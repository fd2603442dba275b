/** The routes of /api/ about runs, in the order of api.ts. */
import { statfsSync } from "node:fs";
import { arch, cpus, freemem, platform, totalmem } from "node:os";
import { VERSION } from "../core/version.ts";
import {
  type DeleteRequest,
  ROLLOUT_SORTS,
  type RolloutQuery,
  type RolloutTable,
  type SystemInfo,
} from "./api.ts";
import type { CheckpointRemoval } from "./checkpoints.ts";
import type { DataClient } from "./data-process.ts";
import type { Jobs } from "./jobs.ts";
import type { Live } from "./live.ts";
import type { Roots } from "./roots.ts";
import { choice, events, HttpError, json, jsonText, numberOf, type Router, wholeNumber } from "./router.ts";

const MOST_RUNS = 200;
const MOST_NAMES = 200;
const MOST_POINTS = 20_000;
const MOST_STEPS = 1000;
const MOST_ROLLOUTS = 500;
const MOST_LOG_BYTES = 1 << 20;
const TABLES: readonly RolloutTable[] = ["train", "eval"];

export interface Parts {
  readonly data: DataClient;
  readonly live: Live;
  readonly jobs: Jobs;
  readonly roots: Roots;
  readonly removal: CheckpointRemoval;
}

export function addRoutes(router: Router, { data, live, jobs, roots, removal }: Parts): void {
  router.add("GET", "/api/runs", async () => jsonText(await data.ask("list")));
  router.add("GET", "/api/runs/:run", async ({ params }) => jsonText(await data.ask("detail", params.run!)));
  router.add("GET", "/api/runs/:run/log", async ({ params, query }) => {
    const bytes = wholeNumber(query, "bytes", 64 << 10, 1, MOST_LOG_BYTES);
    return jsonText(await data.ask("log", params.run!, bytes));
  });
  router.add("GET", "/api/metrics", async ({ query }) => {
    const runs = runsOf(query);
    const points = wholeNumber(query, "points", 1000, 2, MOST_POINTS);
    const [min, max] = [numberOf(query, "x_min"), numberOf(query, "x_max")];
    const names = listOf(query, "names", MOST_NAMES);
    return jsonText(
      await data.ask(
        "metrics",
        runs,
        names,
        points,
        min ?? Number.NEGATIVE_INFINITY,
        max ?? Number.POSITIVE_INFINITY,
      ),
    );
  });
  router.add("GET", "/api/runs/:run/rows", async ({ params, query }) => {
    const from = wholeNumber(query, "from", 0, 0, Number.MAX_SAFE_INTEGER);
    return jsonText(await data.ask("rows", params.run!, query.get("generation") ?? "", from));
  });
  router.add("GET", "/api/runs/:run/rollouts", async ({ params, query }) =>
    jsonText(await data.ask("rollouts", params.run!, rolloutQuery(query))),
  );
  router.add("GET", "/api/runs/:run/rollouts/:key", async ({ params, query }) => {
    const table = choice(query, "table", TABLES, "train");
    return jsonText(await data.ask("rollout", params.run!, params.key!, table, query.get("mode") ?? ""));
  });
  router.add("GET", "/api/runs/:run/diversity", async ({ params, query }) => {
    const table = choice(query, "table", TABLES, "train");
    const steps = wholeNumber(query, "steps", 40, 2, MOST_STEPS);
    return jsonText(await data.ask("diversity", params.run!, table, steps));
  });
  router.add("GET", "/api/runs/:run/rewards", async ({ params, query }) => {
    const steps = wholeNumber(query, "steps", 100, 2, MOST_STEPS);
    return jsonText(await data.ask("rewards", params.run!, steps));
  });
  router.add("GET", "/api/sweeps/:sweep", async ({ params }) =>
    jsonText(await data.ask("sweep", params.sweep!)),
  );
  router.add("GET", "/api/sweeps/:sweep/curves", async ({ params, query }) =>
    jsonText(await data.ask("sweepCurves", params.sweep!, ...curvesQuery(query))),
  );
  router.add("GET", "/api/grouped", async ({ query }) => jsonText(await data.ask("grouped", runsOf(query))));
  router.add("GET", "/api/grouped/curves", async ({ query }) =>
    jsonText(await data.ask("groupedCurves", runsOf(query), ...curvesQuery(query))),
  );
  router.add("GET", "/api/compare", async ({ query }) =>
    jsonText(await data.ask("compare", query.get("a") ?? "", query.get("b") ?? "")),
  );
  router.add("GET", "/api/system", () => json(system(roots)));
  router.add("POST", "/api/runs/:run/checkpoints/:name/delete", ({ params, body }) => {
    const { confirm } = objectOf(body) as DeleteRequest;
    if (confirm !== undefined && typeof confirm !== "string") throw new HttpError(400, "confirm is text");
    const checkpoint = roots.checkpoint(params.run!, params.name!);
    return json(removal.remove(checkpoint, roots.folders, confirm));
  });
  router.add("POST", "/api/runs/:run/checkpoints/:name/evaluate", ({ params, body }) => {
    objectOf(body);
    return json(jobs.evaluate(roots.checkpoint(params.run!, params.name!)));
  });
  router.add("GET", "/api/jobs", () => json(jobs.list()));
  router.add("POST", "/api/jobs/:job/stop", ({ params, body }) => {
    objectOf(body);
    return json(jobs.stop(params.job!));
  });
  router.add("GET", "/api/events", (call) => {
    const runs = listOf(call.query, "runs", MOST_RUNS);
    return events(call, (stream) => live.open(stream, runs, VERSION));
  });
}

function objectOf(body: unknown): Record<string, unknown> {
  if (typeof body !== "object" || body === null || Array.isArray(body))
    throw new HttpError(400, "the body is a JSON object");
  return body as Record<string, unknown>;
}

function listOf(query: URLSearchParams, name: string, most: number): string[] {
  const list = (query.get(name) ?? "").split(",").filter(Boolean);
  if (list.length > most) throw new HttpError(400, `${name} are at most ${most}`);
  return list;
}

function runsOf(query: URLSearchParams): string[] {
  const runs = listOf(query, "runs", MOST_RUNS);
  if (runs.length === 0) throw new HttpError(400, "runs names at least one run");
  return runs;
}

/** Names of metrics, and points of each curve at most. */
function curvesQuery(query: URLSearchParams): [names: string[], points: number] {
  const names = listOf(query, "names", MOST_NAMES);
  if (names.length === 0) throw new HttpError(400, "names has at least one metric");
  return [names, wholeNumber(query, "points", 300, 2, MOST_POINTS)];
}

function rolloutQuery(query: URLSearchParams): RolloutQuery {
  const optional = (name: keyof RolloutQuery) => query.get(name) ?? undefined;
  const number = (name: keyof RolloutQuery) => numberOf(query, name);
  const oneOf = <T extends string>(name: keyof RolloutQuery, choices: readonly T[]): T | undefined =>
    query.has(name) ? choice(query, name, choices, choices[0]!) : undefined;
  const sign = oneOf("advantage_sign", ["-1", "0", "1"] as const);
  const search = optional("search");
  if (search !== undefined && search.length > 1000)
    throw new HttpError(400, "search is at most 1000 characters");
  return {
    table: choice(query, "table", TABLES, "train"),
    mode: optional("mode"),
    step_min: number("step_min"),
    step_max: number("step_max"),
    reward_min: number("reward_min"),
    reward_max: number("reward_max"),
    advantage_min: number("advantage_min"),
    advantage_max: number("advantage_max"),
    advantage_sign: sign === undefined ? undefined : (Number(sign) as -1 | 0 | 1),
    flagged: oneOf("flagged", ["yes", "no", "unknown"] as const),
    finish: optional("finish"),
    prompt_index: number("prompt_index"),
    search,
    sort: choice(query, "sort", ROLLOUT_SORTS, "step"),
    order: choice(query, "order", ["desc", "asc"] as const, "desc"),
    offset: wholeNumber(query, "offset", 0, 0, Number.MAX_SAFE_INTEGER),
    limit: wholeNumber(query, "limit", 100, 1, MOST_ROLLOUTS),
    upto: number("upto"),
  };
}

function system(roots: Roots): SystemInfo {
  const processors = cpus();
  let disk: number | null = null;
  try {
    const found = statfsSync(roots.folders[0]!);
    disk = found.bavail * found.bsize;
  } catch {
    // The folder is not there yet.
  }
  return {
    version: VERSION,
    platform: `${platform()} ${arch()}`,
    processor: processors[0]?.model.trim() ?? "unknown",
    cores: processors.length,
    memory_bytes: totalmem(),
    free_bytes: freemem(),
    disk_free_bytes: disk,
  };
}
