import { describe, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { hubSettings } from "../../src/core/env.ts";
import { RlvError, UsageError } from "../../src/core/errors.ts";
import { cachedSnapshot, downloadFile, downloadSnapshot } from "../../src/io/hub/download.ts";
import { FileLock } from "../../src/io/hub/lock.ts";
import { isRepoName, isSafePath, matcher, type Repo, repoOf } from "../../src/io/hub/repo.ts";
import { HubError, retryAfter } from "../../src/io/hub/request.ts";
import { datasetFiles, modelFiles } from "../../src/io/hub/wanted.ts";
import { HubFixture } from "./hub-fixture.ts";
import { type Fault, sha256 } from "./hub-server.ts";
import { noSmallDisk, SmallDisk, smallDiskNote } from "./small-disk.ts";
import { TemporaryFolder } from "./temporary.ts";

const SHA = "1".repeat(40);
const WEIGHTS = Buffer.from(Uint8Array.from({ length: 300_000 }, (_, i) => (i * 31 + (i >> 8)) & 255));
const FILES = new Map([
  ["config.json", Buffer.from('{"model_type": "llama"}\n')],
  ["model.safetensors", WEIGHTS],
  ["onnx/model.onnx", Buffer.from("not wanted")],
]);
const repo: Repo = repoOf("acme/tiny", "model");
const everything = () => true;

async function started(files: ReadonlyMap<string, Buffer> = FILES): Promise<HubFixture> {
  const fixture = await HubFixture.start();
  fixture.server.repos.set("models/acme/tiny", {
    commits: [{ sha: SHA, files }],
    lfs: (path) => path.endsWith(".safetensors"),
  });
  return fixture;
}

const failure = (promise: Promise<unknown>): Promise<Error> =>
  promise.then(
    () => {
      throw new Error("expected an error, got none");
    },
    (error: Error) => error,
  );

const weights = (fixture: HubFixture, changes = {}) =>
  downloadFile(fixture.context(changes), repo, "model.safetensors");
const gets = (fixture: HubFixture) =>
  fixture.server.asked.filter(({ method, origin }) => method === "GET" && origin === "cdn");
const blobs = (fixture: HubFixture) => {
  const folder = join(fixture.cache, "models--acme--tiny/blobs");
  return existsSync(folder) ? readdirSync(folder) : [];
};

describe("a hub that misbehaves", () => {
  const survived: readonly [string, Fault[], number][] = [
    ["connections cut twice", [{ origin: "cdn", cut: 100_000, times: 2 }], 3],
    [
      "a cut, then 200 to the Range",
      [
        { origin: "cdn", cut: 90_000, times: 1 },
        { origin: "cdn", ignoreRange: true, times: 1 },
      ],
      2,
    ],
    ["a connection that stops", [{ origin: "cdn", stall: 50_000, times: 1 }], 2],
    ["a slow trickle", [{ origin: "cdn", trickle: 5_000 }], 1],
    ["503 twice", [{ origin: "cdn", status: 503, times: 2 }], 3],
    ["429", [{ origin: "cdn", status: 429, head: { "Retry-After": "0" }, times: 1 }], 2],
    ["an expired address", [{ origin: "cdn", status: 403, times: 1 }], 2],
    [
      "a Range it calls unsatisfiable",
      [
        { origin: "cdn", cut: 10_000, times: 1 },
        { origin: "cdn", status: 416, times: 1 },
      ],
      3,
    ],
  ];
  test.each(survived)("%s: the file is whole", async (_, faults, requests) => {
    await using fixture = await started();
    fixture.server.faults = faults;
    expect(readFileSync(await weights(fixture)).equals(WEIGHTS)).toBe(true);
    expect(gets(fixture).length).toBe(requests);
    expect(blobs(fixture)).toEqual([sha256(WEIGHTS)]);
  });

  test("a cut connection goes on at its byte", async () => {
    await using fixture = await started();
    fixture.server.faults = [{ origin: "cdn", cut: 123_456, times: 1 }];
    await weights(fixture);
    expect(gets(fixture).map(({ headers }) => headers.range)).toEqual([undefined, "bytes=123456-"]);
  });

  test("what a killed call left is gone on with in the next one", async () => {
    await using fixture = await started();
    fixture.server.faults = [
      { origin: "cdn", cut: 70_000, times: 1 },
      { origin: "cdn", status: 500 },
    ];
    expect(await failure(weights(fixture))).toBeInstanceOf(HubError);
    expect(blobs(fixture)).toEqual([`${sha256(WEIGHTS)}.rlv.incomplete`]);
    fixture.server.faults = [];
    fixture.server.taken();
    await weights(fixture);
    expect(gets(fixture).map(({ headers }) => headers.range)).toEqual(["bytes=70000-"]);
    expect(blobs(fixture)).toEqual([sha256(WEIGHTS)]);
  });

  test("damaged bytes of an earlier call are fetched again", async () => {
    await using fixture = await started();
    const folder = join(fixture.cache, "models--acme--tiny/blobs");
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, `${sha256(WEIGHTS)}.rlv.incomplete`), Buffer.alloc(5000, 9));
    expect(readFileSync(await weights(fixture)).equals(WEIGHTS)).toBe(true);
    expect(gets(fixture).map(({ headers }) => headers.range)).toEqual(["bytes=5000-", undefined]);
  });

  const refused: readonly [string, Fault, RegExp][] = [
    ["wrong bytes", { content: (bytes) => Buffer.alloc(bytes.length, 7) }, /not those the hub announced/],
    ["too many bytes", { content: (bytes) => Buffer.concat([bytes, bytes]) }, /more than the 300000 bytes/],
    ["too few bytes, always", { content: (bytes) => bytes.subarray(0, 1000) }, /did not answer/],
    ["a connection cut at the same byte for ever", { cut: 1000, ignoreRange: true }, /ended|broke/],
    ["503 for ever", { status: 503 }, /status 503, 5 times/],
    ["a wait of an hour", { status: 429, head: { "Retry-After": "3600" } }, /asks to wait 3600 s/],
    ["an address refused twice", { status: 403 }, /address of the file is refused/],
  ];
  test.each(refused)("%s: an error that names the file, and no file", async (_, fault, message) => {
    await using fixture = await started();
    fixture.server.faults = [{ origin: "cdn", ...fault }];
    const error = await failure(weights(fixture));
    expect(error).toBeInstanceOf(HubError);
    expect(error.message).toMatch(message);
    expect(error.message).toContain("acme/tiny/model.safetensors");
    expect(blobs(fixture).filter((name) => !name.endsWith(".incomplete"))).toEqual([]);
    expect(existsSync(join(fixture.cache, "models--acme--tiny/snapshots"))).toBe(false);
  });

  test("a rest that does not fit what is here is fetched again as a whole", async () => {
    await using fixture = await started();
    fixture.server.faults = [
      { origin: "cdn", cut: 50_000, content: (bytes) => Buffer.alloc(bytes.length, 7), times: 1 },
    ];
    expect(readFileSync(await weights(fixture)).equals(WEIGHTS)).toBe(true);
    expect(gets(fixture).map(({ headers }) => headers.range)).toEqual([undefined, "bytes=50000-", undefined]);
  });

  test("whatever goes wrong, a file is whole or absent", async () => {
    await using fixture = await started();
    const byte = fc.nat(WEIGHTS.length);
    const fault: fc.Arbitrary<Fault> = fc.oneof(
      fc.record({ cut: byte }),
      fc.record({ cut: byte, ignoreRange: fc.constant(true) }),
      fc.record({ status: fc.constantFrom(403, 404, 416, 429, 500, 503) }),
      byte.map((n) => ({ content: (bytes: Buffer) => bytes.subarray(0, n) })),
      byte.map((n) => ({ content: (bytes: Buffer) => Buffer.concat([bytes, bytes.subarray(0, n)]) })),
      byte.map((n) => ({
        content: (bytes: Buffer) => {
          const copy = Buffer.from(bytes);
          copy.subarray(n, n + 9).fill(n & 255);
          return copy;
        },
      })),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(fault, { maxLength: 5 }), fc.nat(2), async (faults, calls) => {
        rmSync(fixture.cache, { recursive: true, force: true });
        fixture.server.faults = faults.map((each) => ({ ...each, origin: "cdn", times: 1 }));
        const blob = join(fixture.cache, "models--acme--tiny/blobs", sha256(WEIGHTS));
        for (let call = 0; call <= calls; call++) {
          const outcome = await weights(fixture).catch((error: unknown) => error);
          if (typeof outcome === "string") expect(readFileSync(outcome).equals(WEIGHTS)).toBe(true);
          else {
            expect(outcome).toBeInstanceOf(HubError);
            expect(existsSync(blob)).toBe(false);
          }
        }
        fixture.server.faults = [];
        expect(readFileSync(await weights(fixture)).equals(WEIGHTS)).toBe(true);
      }),
      { numRuns: 40 },
    );
  }, 120_000);

  test("a bad hash of a small file", async () => {
    await using fixture = await started();
    fixture.server.faults = [
      { method: "GET", path: /resolve/, content: (bytes) => Buffer.alloc(bytes.length, 32) },
    ];
    expect((await failure(downloadFile(fixture.context(), repo, "config.json"))).message).toContain(
      "not those the hub announced",
    );
    expect(blobs(fixture)).toEqual([]);
  });

  test("Retry-After is waited for", async () => {
    await using fixture = await started();
    fixture.server.faults = [
      { method: "GET", path: /revision/, status: 429, head: { "Retry-After": "1" }, times: 1 },
    ];
    const since = performance.now();
    await downloadSnapshot(fixture.context(), repo, modelFiles);
    expect(performance.now() - since).toBeGreaterThan(950);
    expect(fixture.lines.join()).toContain("again in 1 s");
  });

  test("Retry-After in seconds and as a date, and RateLimit", () => {
    const now = Date.parse("2026-01-01T00:00:00Z");
    const asked = (headers: Record<string, string>) => retryAfter(new Headers(headers), now);
    expect(asked({ "Retry-After": "Thu, 01 Jan 2026 00:00:30 GMT" })).toBe(30_000);
    expect(asked({ "Retry-After": "2" })).toBe(2000);
    expect(asked({ "Retry-After": "soon" })).toBeNull();
    expect(asked({ RateLimit: '"api";r=0;t=55' })).toBe(55_000);
    expect(asked({})).toBeNull();
  });

  test("a hub that is not there", async () => {
    await using fixture = await started();
    const context = fixture.context({ endpoint: "http://127.0.0.1:1" });
    expect(await failure(downloadSnapshot(context, repo, everything))).toBeInstanceOf(HubError);
  });
});

describe("the token", () => {
  test("does not follow a redirect to another origin", async () => {
    await using fixture = await started();
    await downloadSnapshot(fixture.context({ token: "secret" }), repo, everything);
    const seen = fixture.server.taken();
    expect(seen.filter(({ origin }) => origin === "cdn").length).toBe(1);
    for (const { origin, headers } of seen)
      expect(headers.authorization).toBe(origin === "hub" ? "Bearer secret" : (undefined as never));
  });

  test("does not follow when a listing or a small file is redirected elsewhere", async () => {
    await using fixture = await started();
    for (const path of [/revision/, /resolve/]) {
      fixture.server.faults = [
        { origin: "hub", method: "GET", path, status: 302, head: { Location: `${fixture.server.cdn}/away` } },
      ];
      await failure(downloadSnapshot(fixture.context({ token: "secret" }), repo, everything));
    }
    const away = fixture.server.taken().filter(({ origin }) => origin === "cdn");
    expect(away.length).toBeGreaterThan(1);
    expect(away.filter(({ headers }) => headers.authorization !== undefined)).toEqual([]);
  });

  test("follows a renamed repository on the hub, and the cache keeps the name asked for", async () => {
    await using fixture = await started();
    fixture.server.renamed.set("acme/old", "acme/tiny");
    const folder = await downloadSnapshot(
      fixture.context({ token: "secret" }),
      repoOf("acme/old", "model"),
      everything,
    );
    expect(folder).toContain("models--acme--old");
    expect(readFileSync(join(folder, "model.safetensors")).equals(WEIGHTS)).toBe(true);
    const hub = fixture.server.taken().filter(({ origin }) => origin === "hub");
    expect(hub.every(({ headers }) => headers.authorization === "Bearer secret")).toBe(true);
  });

  test.each([
    [401, "GatedRepo", null, /gated on the hub, and no token is set/],
    [403, "GatedRepo", "secret", /gated on the hub for this token/],
    [401, undefined, null, /no such repository.*private one needs HF_TOKEN/],
    [403, undefined, "secret", /refuses access/],
  ] as const)("%i %s: the remedy", async (status, code, token, message) => {
    await using fixture = await started();
    fixture.server.faults = [{ status, head: code === undefined ? {} : { "X-Error-Code": code } }];
    const error = await failure(downloadSnapshot(fixture.context({ token }), repo, everything));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toMatch(message);
    expect(fixture.server.asked.length).toBe(1);
  });
});

describe("names that leave the folder", () => {
  test.each(["../../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "a//b", "./a", "C:evil", "a\nb"])(
    "%j in a listing",
    async (path) => {
      await using fixture = await started();
      const listed = [{ type: "file", path, size: 4, oid: "2".repeat(40) }];
      fixture.server.repos.set("models/acme/tiny", {
        ...fixture.server.repos.get("models/acme/tiny")!,
        listed,
      });
      expect(isSafePath(path)).toBe(false);
      const error = await failure(downloadSnapshot(fixture.context(), repo, everything));
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toContain("outside its folder");
      expect(existsSync(join(fixture.cache, "models--acme--tiny/blobs"))).toBe(false);
    },
  );

  test("repository names", () => {
    for (const name of ["Qwen/Qwen3-0.6B", "gpt2", "a.b/c_d-e"]) expect(isRepoName(name)).toBe(true);
    for (const name of [
      "",
      "a/b/c",
      "../a",
      "a/..",
      ".a/b",
      "a/b.",
      "a--b/c",
      "a b/c",
      "/a",
      "a/",
      "a/b.git",
    ])
      expect(isRepoName(name)).toBe(false);
    expect(() => repoOf("a/b", "model", "../x")).toThrow(UsageError);
  });
});

describe("the cache", () => {
  test("only what is wanted is fetched, and the rest later", async () => {
    await using fixture = await started();
    const { server } = fixture;
    const context = fixture.context();
    const folder = await downloadSnapshot(context, repo, matcher(["*.json"]));
    expect(readdirSync(folder)).toEqual(["config.json"]);
    expect(cachedSnapshot(context, repo, modelFiles)).toBeNull();
    server.taken();
    await downloadSnapshot(context, repo, modelFiles);
    expect(readdirSync(folder).sort()).toEqual(["config.json", "model.safetensors"]);
    // The listing is known.
    expect(server.taken().map(({ method, path }) => `${method} ${path.replace(/^.*\//, "")}`)).toEqual([
      "GET main",
      "HEAD model.safetensors",
      `GET ${sha256(WEIGHTS)}?sig=abc`,
    ]);
    expect(cachedSnapshot(context, repo, modelFiles)).toEqual({ folder, listed: true });
  });

  test("offline, only the cache counts", async () => {
    await using fixture = await started();
    const offline = fixture.context({ offline: true });
    expect((await failure(downloadSnapshot(offline, repo, everything))).message).toContain("HF_HUB_OFFLINE");
    expect((await failure(downloadFile(offline, repo, "config.json"))).message).toContain("HF_HUB_OFFLINE");
    expect(fixture.server.taken()).toEqual([]);
    const folder = await downloadSnapshot(fixture.context(), repo, everything);
    fixture.server.taken();
    expect(await downloadSnapshot(offline, repo, everything)).toBe(folder);
    expect(await downloadFile(offline, repo, "config.json")).toBe(join(folder, "config.json"));
    expect(fixture.server.taken()).toEqual([]);
  });

  test("a hub out of reach leaves what the cache has, and says so", async () => {
    await using fixture = await started();
    const folder = await downloadSnapshot(fixture.context(), repo, everything);
    const away = fixture.context({ endpoint: "http://127.0.0.1:1" });
    expect(await downloadSnapshot(away, repo, everything)).toBe(folder);
    expect(fixture.lines.join()).toContain("acme/tiny from the cache");
  });

  test("a long listing comes in pages", async () => {
    const many = new Map(Array.from({ length: 23 }, (_, i) => [`part-${i}.json`, Buffer.from(`${i}`)]));
    await using fixture = await started(many);
    fixture.server.pageSize = 10;
    const folder = await downloadSnapshot(fixture.context(), repo, everything);
    expect(readdirSync(folder).length).toBe(23);
    expect(fixture.server.asked.filter(({ path }) => path.includes("/tree/")).length).toBe(3);
  });

  test("an empty file", async () => {
    await using fixture = await started(new Map([["empty.json", Buffer.alloc(0)]]));
    const folder = await downloadSnapshot(fixture.context(), repo, everything);
    expect(readFileSync(join(folder, "empty.json")).length).toBe(0);
  });

  test("two calls at once fetch a blob once", async () => {
    await using fixture = await started();
    fixture.server.faults = [{ origin: "cdn", trickle: 20_000 }];
    const [one, two] = await Promise.all([weights(fixture), weights(fixture)]);
    expect(one).toBe(two);
    expect(gets(fixture).length).toBe(1);
    expect(fixture.lines.join()).toContain("another process is downloading it");
  });

  test("a lock dies with its process", async () => {
    using folder = new TemporaryFolder();
    const lock = folder.file("a/b.lock");
    const module = join(import.meta.dir, "../../src/io/hub/lock.ts");
    const child = Bun.spawn(
      [
        process.execPath,
        "-e",
        `const { FileLock } = await import(${JSON.stringify(module)}); await FileLock.acquire(${JSON.stringify(lock)}, () => {}); console.log("held"); await Bun.sleep(60000);`,
      ],
      { stdout: "pipe", stderr: "inherit" },
    );
    await child.stdout.getReader().read();
    let waited = false;
    const mine = FileLock.acquire(lock, () => {
      waited = true;
    });
    await Bun.sleep(150);
    expect(waited).toBe(true);
    child.kill("SIGKILL");
    using _held = await mine;
    expect(readFileSync(lock).length).toBe(0);
  });

  test("of a model what rlv reads, of a dataset its rows", () => {
    const model = [
      "config.json",
      "model-00001-of-00002.safetensors",
      "model.safetensors.index.json",
      "merges.txt",
      "chat_template.jinja",
      "tokenizer.model",
    ];
    const not = [
      "pytorch_model.bin",
      "onnx/model.onnx",
      "original/model.safetensors",
      "consolidated.safetensors",
      "README.md",
    ];
    for (const path of model) expect(`${path} ${modelFiles(path)}`).toBe(`${path} true`);
    for (const path of not) expect(`${path} ${modelFiles(path)}`).toBe(`${path} false`);
    expect(
      [
        "helpful-base/train.jsonl.gz",
        "data/test-0.parquet",
        "red-team-attempts/red_team_attempts.jsonl.gz",
        "README.md",
      ].map(datasetFiles),
    ).toEqual([true, true, false, false]);
  });

  test("patterns are Python's", () => {
    const matches = (pattern: string, path: string) => matcher([pattern])(path);
    expect(matches("*.json", "a/b.json")).toBe(true);
    expect(matches("a?c", "abc")).toBe(true);
    expect(matches("[!x]bc", "abc")).toBe(true);
    expect(matches("[!a]bc", "abc")).toBe(false);
    expect(matches("a.json", "aXjson")).toBe(false);
    expect(matches("data/", "data/x/y")).toBe(true);
  });
});

describe("the place", () => {
  test.skipIf(noSmallDisk !== null)(`a disk that is full${smallDiskNote}`, async () => {
    await using fixture = await started();
    using disk = new SmallDisk(200);
    const error = await failure(weights(fixture, { cache: disk.path }));
    expect(error).toBeInstanceOf(RlvError);
    expect(error.message).toContain("disk full");
    expect(error.message).toContain("HF_HUB_CACHE");
  });

  test.skipIf(process.getuid?.() === 0)("a folder that may not be written (root may)", async () => {
    await using fixture = await started();
    mkdirSync(fixture.cache);
    chmodSync(fixture.cache, 0o500);
    expect((await failure(weights(fixture))).message).toContain("no permission");
  });

  test("a file where the cache should be", async () => {
    await using fixture = await started();
    writeFileSync(fixture.cache, "");
    expect((await failure(weights(fixture))).message).toContain("a file is in the way");
  });

  test("the environment says where", () => {
    const before = { ...process.env };
    const set = (changes: Record<string, string | undefined>) => {
      for (const name of [
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "XDG_CACHE_HOME",
      ])
        delete process.env[name];
      Object.assign(process.env, changes);
    };
    using folder = new TemporaryFolder();
    try {
      set({ XDG_CACHE_HOME: "/x" });
      expect(hubSettings()).toEqual({
        endpoint: "https://huggingface.co",
        cache: "/x/huggingface/hub",
        token: null,
        offline: false,
      });
      set({ HF_HOME: folder.path, HF_ENDPOINT: "http://mirror/", HF_HUB_OFFLINE: "True" });
      writeFileSync(folder.file("token"), "abc\n");
      expect(hubSettings()).toEqual({
        endpoint: "http://mirror",
        cache: folder.file("hub"),
        token: "abc",
        offline: true,
      });
      set({ HF_HOME: folder.path, HF_TOKEN: "given", HF_HUB_CACHE: "/c" });
      expect(hubSettings()).toMatchObject({ token: "given", cache: "/c" });
      set({ HF_TOKEN: "hf_ähm" });
      expect(hubSettings).toThrow(/^the hub's token has characters.*HF_TOKEN/);
      set({ HF_ENDPOINT: "ftp://x" });
      expect(hubSettings).toThrow("HF_ENDPOINT=ftp://x");
    } finally {
      set(before);
    }
  });
});
