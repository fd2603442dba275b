import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import { findDataset } from "../../src/cli/files.ts";
import { openPreferences } from "../../src/data/preferences.ts";
import { HubFixture } from "../io/hub-fixture.ts";
import { sha256 } from "../io/hub-server.ts";
import { TemporaryFolder } from "../io/temporary.ts";

/** Names on the hub, as the program takes them. */
const MAIN = resolve(import.meta.dir, "../../src/cli/main.ts");
const MODEL = resolve(import.meta.dir, "../../src/recipe/arithmetic/model");
const SHA = "c".repeat(40);
const FILES = new Map(readdirSync(MODEL).map((name) => [name, readFileSync(join(MODEL, name))]));
const WEIGHTS = FILES.get("model.safetensors")!;

let hub: HubFixture;
let folder: TemporaryFolder;

beforeAll(async () => {
  hub = await HubFixture.start();
  folder = new TemporaryFolder();
  hub.server.repos.set("models/acme/arithmetic", {
    commits: [{ sha: SHA, files: new Map([...FILES, ["pytorch_model.bin", Buffer.from("no")]]) }],
    lfs: (path) => path.endsWith(".safetensors"),
  });
});
afterAll(async () => {
  await hub[Symbol.asyncDispose]();
  folder[Symbol.dispose]();
});

function start(args: readonly string[], cache: string, env: Record<string, string> = {}) {
  return Bun.spawn([process.execPath, MAIN, ...args], {
    cwd: folder.path,
    env: { ...process.env, HF_ENDPOINT: hub.server.endpoint, HF_HUB_CACHE: folder.file(cache), ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
}

async function rlv(args: readonly string[], cache: string, env: Record<string, string> = {}) {
  const child = start(args, cache, env);
  const [stdout, stderr] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { code: await child.exited, stdout, stderr };
}

describe("rlv download", () => {
  test("prints the folder; as JSON too; one file", async () => {
    const whole = await rlv(["download", "acme/arithmetic"], "one");
    expect(whole).toMatchObject({ code: 0, stderr: "" });
    const path = whole.stdout.trimEnd();
    expect(path).toEndWith(`one/models--acme--arithmetic/snapshots/${SHA}`);
    expect(readdirSync(path).sort()).toEqual([...FILES.keys(), "pytorch_model.bin"].sort());
    expect(readFileSync(join(path, "model.safetensors")).equals(WEIGHTS)).toBe(true);
    const json = await rlv(["download", "acme/arithmetic", "--revision", SHA, "--json"], "one");
    expect(JSON.parse(json.stdout)).toEqual({ repo: "acme/arithmetic", revision: SHA, path });
    const file = await rlv(["download", "acme/arithmetic", "config.json"], "one");
    expect(file.stdout).toBe(`${path}/config.json\n`);
    const some = await rlv(["download", "acme/arithmetic", "--include", "*.json,*.bin"], "two");
    expect(readdirSync(some.stdout.trimEnd())).not.toContain("model.safetensors");
  });

  test.each([
    [["download"], /no repository given/],
    [["download", "../x"], /not the name of a repository/],
    [["download", "acme/none"], /no such repository: acme\/none@main/],
    [["download", "acme/arithmetic", "--revision", "v9"], /no such revision/],
    [["download", "acme/arithmetic", "nope.json"], /no such file: acme\/arithmetic\/nope.json/],
    [["download", "acme/arithmetic", "--include", "*.gguf"], /none of its 6 files is wanted/],
    [["download", "acme/arithmetic", "--repo_type", "space"], /repo_type/],
  ])("%j: one line, exit 2", async (args, message) => {
    const { code, stdout, stderr } = await rlv(args, "bad");
    expect(stderr).toMatch(message);
    expect(stderr).toStartWith("rlv: error: ");
    expect(stderr.trimEnd()).not.toContain("\n");
    expect([code, stdout]).toEqual([2, ""]);
  });

  test("killed and called again, it goes on where it was", async () => {
    hub.server.faults = [{ origin: "cdn", trickle: 20_000, times: 1 }];
    const child = start(["download", "acme/arithmetic"], "killed");
    const partial = folder.file(`killed/models--acme--arithmetic/blobs/${sha256(WEIGHTS)}.rlv.incomplete`);
    while (!existsSync(partial) || readFileSync(partial).length < 100_000) await Bun.sleep(5);
    child.kill("SIGKILL");
    await child.exited;
    const kept = readFileSync(partial).length;
    expect(kept).toBeLessThan(WEIGHTS.length);
    hub.server.faults = [];
    hub.server.taken();
    const { code, stdout } = await rlv(["download", "acme/arithmetic"], "killed");
    expect(code).toBe(0);
    const ranges = hub.server
      .taken()
      .flatMap(({ origin, headers }) => (origin === "cdn" ? [headers.range] : []));
    expect(ranges).toEqual([`bytes=${kept}-`]);
    expect(readFileSync(join(stdout.trimEnd(), "model.safetensors")).equals(WEIGHTS)).toBe(true);
  });
});

describe("--model", () => {
  const generate = (model: string) => [
    ...["generate", "--model", model, "--in", "in.jsonl", "--out", "out.jsonl"],
    ...["--max_new_tokens", "4", "--temperature", "0", "--device", "cpu"],
  ];
  beforeAll(() =>
    writeFileSync(folder.file("in.jsonl"), '{"prompt": "What is 2 + 3? Answer with an integer."}\n'),
  );

  test("a name on the hub is fetched once, without what rlv does not read", async () => {
    hub.server.taken();
    const first = await rlv(generate("acme/arithmetic"), "models");
    expect(first.stderr).toContain("acme/arithmetic: looking on the hub");
    expect(first.code).toBe(0);
    const snapshot = folder.file(`models/models--acme--arithmetic/snapshots/${SHA}`);
    expect(readdirSync(snapshot).sort()).toEqual([...FILES.keys()].sort());
    hub.server.taken();
    const again = await rlv(generate("acme/arithmetic"), "models", { HF_HUB_OFFLINE: "1" });
    expect(again.code).toBe(0);
    expect(hub.server.taken()).toEqual([]);
  }, 60_000);

  test.each([
    [
      "acme/arithmetic",
      { HF_HUB_OFFLINE: "1" },
      /not whole in the cache, and the hub is off: acme\/arithmetic/,
    ],
    ["./acme/arithmetic", {}, /no such folder for --model/],
    ["here/arithmetic", {}, /no such folder for --model/],
    ["arithmetic", {}, /no such folder for --model/],
    ["in.jsonl", {}, /needs a folder and this is a file/],
  ])("%s %j is refused", async (model, env, message) => {
    mkdirSync(folder.file("here"), { recursive: true });
    hub.server.taken();
    const { code, stderr } = await rlv(generate(model), "none", env);
    expect(stderr).toMatch(message);
    expect(code).toBe(2);
    expect(hub.server.taken()).toEqual([]);
  });

  test("a folder of that name comes first", async () => {
    mkdirSync(folder.file("local/model"), { recursive: true });
    hub.server.taken();
    const { code, stderr } = await rlv(generate("local/model"), "none");
    expect(stderr).toContain("config.json");
    expect(code).toBe(2);
    expect(hub.server.taken()).toEqual([]);
  });

  test("training keeps the name in its config", async () => {
    const args = [
      "train",
      "--model",
      "acme/arithmetic",
      "--num_train_steps",
      "1",
      "--batch_size",
      "2",
      "--group_size",
      "2",
    ];
    const { code, stderr } = await rlv(
      [...args, "--eval_every", "-1", "--device", "cpu", "--output_dir", "runs", "--run_name", "one"],
      "models",
    );
    expect(stderr).toBe("");
    expect(code).toBe(0);
    const saved = (name: string) =>
      JSON.parse(readFileSync(folder.file(`runs/one/${name}`), "utf8")).model_name;
    expect(saved("train_config.json")).toBe("acme/arithmetic");
    expect(saved("checkpoints/final/train_config.json")).toBe("acme/arithmetic");
  }, 60_000);
});

test("--dataset: the pairs of a name on the hub, without what are none", async () => {
  const jsonl = (...answers: string[]) =>
    gzipSync(
      answers
        .map(
          (answer) =>
            `${JSON.stringify({ chosen: `\n\nHuman: Q\n\nAssistant: ${answer}`, rejected: "\n\nHuman: Q\n\nAssistant: no" })}\n`,
        )
        .join(""),
    );
  const files = new Map([
    ["README.md", Buffer.from("# pairs")],
    ["harmless-base/train.jsonl.gz", jsonl("a", "b")],
    ["harmless-base/test.jsonl.gz", jsonl("c")],
    ["helpful-base/train.jsonl.gz", jsonl("d")],
    ["red-team-attempts/red_team_attempts.jsonl.gz", gzipSync("[]")],
  ]);
  hub.server.repos.set("datasets/acme/pairs", {
    commits: [{ sha: SHA, files }],
    lfs: (path) => path.endsWith(".gz"),
  });
  hub.server.taken();
  const before = { ...process.env };
  Object.assign(process.env, { HF_ENDPOINT: hub.server.endpoint, HF_HUB_CACHE: folder.file("datasets") });
  try {
    const found = await findDataset("acme/pairs", "dataset");
    expect(found).toBe(folder.file(`datasets/datasets--acme--pairs/snapshots/${SHA}`));
    expect(readdirSync(found).sort()).toEqual(["harmless-base", "helpful-base"]);
    const train = await openPreferences(found, "train");
    const answers = Array.from(
      { length: train.length },
      (_, i) => (train.at(i).chosen[0] as { content: string }).content,
    );
    expect(answers).toEqual(["a", "b", "d"]);
    expect((await openPreferences(found, "test")).length).toBe(1);
    hub.server.taken();
    expect(await findDataset("acme/pairs", "dataset")).toBe(found);
    expect(hub.server.taken()).toEqual([]);
  } finally {
    for (const name of ["HF_ENDPOINT", "HF_HUB_CACHE"])
      if (before[name] === undefined) delete process.env[name];
      else process.env[name] = before[name];
  }
});

test("doctor does not print the token", async () => {
  const { stdout } = await rlv(["doctor"], "none", { HF_TOKEN: "hf_secret", HF_HUB_OFFLINE: "1" });
  expect(stdout).toContain("HF_TOKEN");
  expect(stdout).not.toContain("hf_secret");
});
