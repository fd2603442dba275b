/** Python's huggingface_hub and ours share a cache. Runs where RLV_PYTHON names a Python that has it. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { cachedSnapshot, downloadFile, downloadSnapshot } from "../../src/io/hub/download.ts";
import { repoOf } from "../../src/io/hub/repo.ts";
import { HubFixture } from "../io/hub-fixture.ts";
import { sha256 } from "../io/hub-server.ts";

const python = process.env.RLV_PYTHON;
const SHA = "a".repeat(40);
const FILES = new Map([
  ["config.json", Buffer.from('{"model_type": "llama"}\n')],
  ["empty.txt", Buffer.alloc(0)],
  ["model.safetensors", Buffer.alloc(200_000, 3)],
  ["sub/deep/notes.md", Buffer.from("näme\n")],
]);
const CONTENT = Object.fromEntries([...FILES].map(([path, bytes]) => [path, sha256(bytes)]));
const model = repoOf("acme/tiny", "model");
const dataset = repoOf("acme/tiny", "dataset");
const everything = () => true;

async function started(): Promise<HubFixture> {
  const fixture = await HubFixture.start();
  for (const name of ["models/acme/tiny", "datasets/acme/tiny"])
    fixture.server.repos.set(name, {
      commits: [{ sha: SHA, files: FILES }],
      lfs: (path) => path.endsWith(".safetensors"),
    });
  return fixture;
}

interface Report {
  readonly offline?: string;
  readonly file?: string;
  readonly warnings?: readonly string[];
  readonly repos?: readonly string[];
  readonly online: string;
  readonly dataset: string;
  readonly content: Readonly<Record<string, string>>;
}

async function checkHub(fixture: HubFixture, mode: "use" | "write"): Promise<Report> {
  const child = Bun.spawn([python!, join(import.meta.dir, "check_hub.py"), mode], {
    env: { ...process.env, HF_ENDPOINT: fixture.server.endpoint, HF_HUB_CACHE: fixture.cache, HF_TOKEN: "" },
    stderr: "inherit",
  });
  const text = await new Response(child.stdout).text();
  expect(await child.exited).toBe(0);
  return JSON.parse(text) as Report;
}

/** Requests beyond asking where main is. */
const beyondRevision = (fixture: HubFixture) =>
  fixture.server.taken().filter(({ path }) => !path.includes("/revision/main"));

describe.skipIf(!python)(`huggingface_hub${python ? "" : " (skipped: RLV_PYTHON names no Python)"}`, () => {
  test("uses the cache that rlv wrote, offline and online, and downloads nothing", async () => {
    await using fixture = await started();
    const folder = await downloadSnapshot(fixture.context(), model, everything);
    const rows = await downloadSnapshot(fixture.context(), dataset, everything);
    fixture.server.taken();
    const report = await checkHub(fixture, "use");
    expect(report).toMatchObject({
      offline: folder,
      online: folder,
      dataset: rows,
      warnings: [],
      content: CONTENT,
    });
    expect(report.file).toBe(join(folder, "config.json"));
    expect(report.repos).toEqual(["acme/tiny", "acme/tiny"]);
    expect(beyondRevision(fixture)).toEqual([]);
  }, 120_000);

  test("writes a cache that rlv uses, offline and online, and downloads nothing", async () => {
    await using fixture = await started();
    const report = await checkHub(fixture, "write");
    expect(report.content).toEqual(CONTENT);
    fixture.server.taken();
    const context = fixture.context();
    expect(cachedSnapshot(context, model, everything)).toEqual({ folder: report.online, listed: true });
    expect(await downloadSnapshot(context, model, everything)).toBe(report.online);
    expect(await downloadSnapshot(context, dataset, everything)).toBe(report.dataset);
    expect(beyondRevision(fixture)).toEqual([]);
    const offline = fixture.context({ offline: true });
    const notes = await downloadFile(offline, model, "sub/deep/notes.md");
    expect(readFileSync(notes, "utf8")).toBe("näme\n");
    expect(fixture.server.taken()).toEqual([]);
  }, 120_000);
});
