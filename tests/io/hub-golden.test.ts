import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { UsageError } from "../../src/core/errors.ts";
import { downloadFile, downloadSnapshot } from "../../src/io/hub/download.ts";
import { matcher, type Repo, repoOf } from "../../src/io/hub/repo.ts";
import { type HubContext, HubError } from "../../src/io/hub/request.ts";
import { type GoldenCase, goldenCases } from "../goldens-dirs.ts";
import { HubFixture, treeOf } from "./hub-fixture.ts";
import type { Fault } from "./hub-server.ts";
import { TemporaryFolder } from "./temporary.ts";

/**
 * What Python's huggingface_hub asked and left in its cache, replayed: the same calls of ours on the same repository
 * make the same requests and leave the same cache, except where a scenario says why not.
 */
interface Recorded {
  readonly scenario: string;
  readonly result: { readonly returned?: string; readonly raised?: string };
  readonly requests: readonly {
    readonly origin: string;
    readonly method: string;
    readonly path: string;
    readonly headers: Readonly<Record<string, string>>;
    readonly status: number;
  }[];
  readonly cache_after?:
    | readonly { readonly path: string; readonly link?: string; readonly text?: string }[]
    | null;
}

interface Trace {
  readonly repo: string;
  readonly commits: readonly [string, string];
  readonly files: Readonly<Record<string, { readonly etag: string; readonly text?: string }>>;
  readonly config_json_of_second_commit: string;
  readonly scenarios: readonly Recorded[];
}

const everything = () => true;

interface Replay {
  readonly faults?: readonly Fault[];
  /** Caches of the earlier scenario that this one begins with. */
  readonly after?: string;
  readonly prepare?: (cache: string, commit: string) => void;
  /** Commits that the hub has. */
  readonly commits?: number;
  readonly token?: boolean;
  readonly offline?: boolean;
  readonly run: (context: HubContext, repo: Repo, trace: Trace) => Promise<string>;
  /** Why our requests are others, and which: "METHOD path suffix". */
  readonly requests?: { readonly because: string; readonly are: readonly string[] };
  /** Why the outcome is another. */
  readonly refused?: string;
}

const file = (name: string) => (context: HubContext, repo: Repo) => downloadFile(context, repo, name);
const snapshot = (context: HubContext, repo: Repo) => downloadSnapshot(context, repo, everything);
const WEIGHTS = "model.safetensors";

const REPLAYS: Readonly<Record<string, Replay>> = {
  fresh: { token: true, run: snapshot },
  again: { after: "fresh", token: true, run: snapshot },
  by_commit: {
    after: "fresh",
    run: (context, repo, { commits }) => snapshot(context, { ...repo, revision: commits[0] }),
  },
  local_files_only: { after: "fresh", offline: true, run: snapshot },
  new_commit: {
    after: "fresh",
    commits: 2,
    run: snapshot,
    requests: {
      because: "the listing names the blobs, so nothing is asked about a file whose blob is here",
      are: ["GET /revision/main", "GET /tree/", "HEAD config.json", "GET config.json"],
    },
  },
  one_file: { run: file("config.json") },
  one_file_again: { after: "one_file", run: file("config.json") },
  missing_file: { after: "one_file", run: file("nope.json") },
  missing_repo: { run: (context) => snapshot(context, repoOf("acme/none", "model")) },
  missing_revision: { run: (context, repo) => snapshot(context, { ...repo, revision: "v9" }) },
  renamed_repo: {
    after: "missing_file",
    token: true,
    run: (context) => downloadFile(context, repoOf("acme/old-name", "model"), "config.json"),
  },
  allow_patterns: { run: (context, repo) => downloadSnapshot(context, repo, matcher(["*.json"])) },
  cut_then_resume: { faults: [{ origin: "cdn", cut: 20000, times: 1 }], run: file(WEIGHTS) },
  cut_then_range_ignored: {
    faults: [
      { origin: "cdn", cut: 20000, times: 1 },
      { origin: "cdn", ignoreRange: true, times: 1 },
    ],
    run: file(WEIGHTS),
  },
  short_body: {
    faults: [{ origin: "cdn", content: (bytes) => bytes.subarray(0, -100) }],
    run: file(WEIGHTS),
    requests: {
      because: "a body that ends early is asked for again, from where it ended and then from the start",
      are: [`HEAD ${WEIGHTS}`, ...Array<string>(5).fill("GET ?sig=abc")],
    },
  },
  http_429: {
    faults: [{ method: "GET", path: /resolve/, status: 429, head: { "Retry-After": "1" }, times: 1 }],
    run: file("config.json"),
  },
  http_503_head: { faults: [{ method: "HEAD", status: 503, times: 1 }], run: file("tokenizer.json") },
  local_files_only_without_trees: {
    after: "fresh",
    offline: true,
    prepare: (cache) => rmSync(join(cache, "models--acme--tiny-llama/trees"), { recursive: true }),
    run: snapshot,
  },
  local_files_only_incomplete: {
    after: "fresh",
    offline: true,
    prepare: (cache, commit) =>
      unlinkSync(join(cache, "models--acme--tiny-llama/snapshots", commit, "config.json")),
    run: snapshot,
  },
  wrong_bytes_right_size: {
    faults: [{ origin: "cdn", content: (bytes) => Buffer.alloc(bytes.length, 7) }],
    run: file(WEIGHTS),
    refused: "bytes are checked against the announced hash, not by their number alone",
  },
};

/** The tag says who wrote it, locks are empty, and a cut-off download is kept for the next call. */
function comparable(tree: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(tree)
      .filter(([path]) => !path.endsWith(".rlv.incomplete"))
      .map(([path, text]) => [path, path === "CACHEDIR.TAG" ? text.split("\n")[0]! : text]),
  );
}

describe.each(goldenCases("hub").filter(({ kind }) => kind === "hub_trace"))(
  "$name",
  ({ dir, spec }: GoldenCase) => {
    const trace = JSON.parse(readFileSync(join(dir, spec.trace), "utf8")) as Trace;
    const [first] = trace.commits;
    const weights = readFileSync(
      join(dir, spec.cache, "models--acme--tiny-llama/blobs", trace.files[WEIGHTS]!.etag),
    );
    // Their pointer's text is not recorded, its hash is.
    const listing = JSON.parse(
      readFileSync(join(dir, spec.cache, `models--acme--tiny-llama/trees/${first}.json`), "utf8"),
    );
    const pointers = new Map([[WEIGHTS, listing.files[WEIGHTS].blob_id as string]]);
    const files = new Map(
      Object.entries(trace.files).map(([name, { text }]) => [
        name,
        text === undefined ? weights : Buffer.from(text),
      ]),
    );
    const second = new Map([...files, ["config.json", Buffer.from(trace.config_json_of_second_commit)]]);
    let fixture: HubFixture;
    let kept: TemporaryFolder;

    beforeAll(async () => {
      fixture = await HubFixture.start();
      kept = new TemporaryFolder();
    });
    afterAll(async () => {
      await fixture[Symbol.asyncDispose]();
      kept[Symbol.dispose]();
    });

    test("every scenario has its replay", () => {
      expect(trace.scenarios.map(({ scenario }) => scenario)).toEqual(Object.keys(REPLAYS));
    });

    test.each(trace.scenarios.map((recorded): [string, Recorded] => [recorded.scenario, recorded]))(
      "%s",
      async (name, recorded) => {
        const replay = REPLAYS[name]!;
        const { server, cache } = fixture;
        const commits = [
          { sha: first, files },
          { sha: trace.commits[1], files: second },
        ].slice(0, replay.commits ?? 1);
        server.repos.set("models/acme/tiny-llama", { commits, lfs: (path) => path === WEIGHTS, pointers });
        server.renamed.set("acme/old-name", "acme/tiny-llama");
        rmSync(cache, { recursive: true, force: true });
        if (replay.after !== undefined)
          cpSync(kept.file(replay.after), cache, { recursive: true, verbatimSymlinks: true });
        replay.prepare?.(cache, first);
        server.faults = [...(replay.faults ?? [])];
        server.taken();
        const context = fixture.context({
          token: replay.token ? "test-token" : null,
          offline: replay.offline ?? false,
        });
        const since = performance.now();
        const outcome = await replay.run(context, repoOf(trace.repo, "model"), trace).then(
          (path) => ({ path, error: undefined }),
          (error: Error) => ({ path: undefined, error }),
        );
        if (replay.faults?.some(({ head }) => head?.["Retry-After"]))
          expect(performance.now() - since).toBeGreaterThan(950);

        if (replay.refused !== undefined) {
          expect(recorded.result.returned).toBeDefined();
          expect(outcome.error).toBeInstanceOf(HubError);
        } else if (recorded.result.returned !== undefined) {
          // Ours is absolute; some of theirs name their temporary folder.
          expect(outcome.error).toBeUndefined();
          expect(outcome.path).toBe(join(cache, recorded.result.returned.replace(/^.*?(?=models--)/, "")));
        } else {
          const kind = recorded.result.raised === "OSError" ? HubError : UsageError;
          expect(outcome.error).toBeInstanceOf(kind);
        }

        const asked = server.taken();
        if (replay.requests !== undefined) {
          expect(asked.map(({ method, path }) => `${method} ${path}`)).toEqual(
            replay.requests.are.map((suffix) => expect.stringMatching(pattern(suffix))),
          );
        } else {
          const line = (each: (typeof recorded.requests)[number]) =>
            `${each.origin} ${each.method} ${each.path}, ${each.headers.authorization ?? "no token"}, ${each.headers.range === undefined ? "whole" : "rest"}`;
          expect(asked.map((each) => line({ ...each, status: 0 }))).toEqual(recorded.requests.map(line));
        }

        if (recorded.cache_after) {
          const theirs = Object.fromEntries(
            recorded.cache_after
              // Listings are compared as a whole below; a wrong file is not kept by us.
              .filter(({ path }) => replay.refused === undefined || !/blobs|snapshots/.test(path))
              .map(({ path, link, text }) => [path, link === undefined ? text : `-> ${link}`]),
          );
          const ours = comparable(treeOf(cache));
          expect(Object.keys(ours).sort()).toEqual(Object.keys(theirs).sort());
          for (const [path, text] of Object.entries(theirs)) {
            if (text === undefined) continue;
            const want =
              path === "CACHEDIR.TAG" ? text.split("\n")[0]! : Buffer.from(text).toString("latin1");
            expect(`${path}: ${ours[path]}`).toBe(`${path}: ${want}`);
          }
        }
        rmSync(kept.file(name), { recursive: true, force: true });
        if (existsSync(cache)) renameSync(cache, kept.file(name));
      },
    );

    test("the cache that Python left is whole for us, without a request", async () => {
      const { server } = fixture;
      server.taken();
      rmSync(fixture.cache, { recursive: true, force: true });
      copyCache(join(dir, spec.cache), fixture.cache);
      const repo = repoOf(trace.repo, "model");
      const offline = fixture.context({ offline: true });
      expect(await snapshot(offline, repo)).toContain(`snapshots/${first}`);
      expect(readFileSync(await downloadFile(offline, repo, "sub/notes.md"), "utf8")).toBe("näme\n");
      expect(server.taken()).toEqual([]);
    });
  },
);

/** A cache whose links may have become files with their targets on the way here. */
function copyCache(from: string, to: string): void {
  for (const [path, text] of Object.entries(treeOf(from))) {
    const link = text.startsWith("-> ") ? text.slice(3) : text.startsWith("../") ? text : undefined;
    mkdirSync(dirname(join(to, path)), { recursive: true });
    if (link === undefined) writeFileSync(join(to, path), text, "latin1");
    else symlinkSync(link, join(to, path));
  }
}

/** "METHOD path suffix" as a pattern; the path is matched at its end, or anywhere where it begins with /. */
function pattern(suffix: string): RegExp {
  const [method, path] = suffix.split(" ") as [string, string];
  const escaped = path.replace(/[.?]/g, "\\$&");
  return new RegExp(`^${method} .*${escaped}${path.startsWith("/") ? "" : "$"}`);
}
