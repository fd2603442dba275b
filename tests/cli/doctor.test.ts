/** rlv doctor on machines that are made up of folders, small programs and a hub of this process. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { DoctorCheck } from "../../src/config/contracts.ts";
import { ABI_HASH } from "../../src/device/abi.gen.ts";
import { libraryPath } from "../../src/device/lib.ts";
import { loadMpi } from "../../src/device/mpi.ts";
import { HubFixture } from "../io/hub-fixture.ts";
import { TemporaryFolder } from "../io/temporary.ts";

const MAIN = resolve(import.meta.dir, "../../src/cli/main.ts");
let hub: HubFixture;
let folder: TemporaryFolder;

beforeAll(async () => {
  hub = await HubFixture.start();
  folder = new TemporaryFolder();
});
afterAll(async () => {
  await hub[Symbol.asyncDispose]();
  folder[Symbol.dispose]();
});

interface Report {
  readonly code: number;
  readonly ok: boolean;
  readonly stderr: string;
  /** The line of this name; an error if there is none. */
  check(name: string): DoctorCheck;
}

/** Nothing of this machine's environment but what is given. */
async function doctor(env: Record<string, string> = {}): Promise<Report> {
  const child = Bun.spawn([process.execPath, MAIN, "doctor", "--json"], {
    cwd: folder.path,
    env: { PATH: "", HOME: folder.path, HF_HUB_OFFLINE: "1", ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  const { ok, checks }: { ok: boolean; checks: DoctorCheck[] } = JSON.parse(stdout);
  const check = (name: string) => {
    const found = checks.find((each) => each.name === name);
    if (found === undefined) throw new Error(`no line ${name}: ${stdout}`);
    return found;
  };
  return { code: await child.exited, ok, stderr, check };
}

/** A folder of programs that print a text and end with a code. */
function programs(name: string, said: Record<string, string>): string {
  const path = folder.file(name);
  mkdirSync(path, { recursive: true });
  for (const [program, text] of Object.entries(said)) {
    writeFileSync(join(path, program), `#!/bin/sh\ncat <<'END'\n${text}\nEND\n`);
    chmodSync(join(path, program), 0o755);
  }
  return `${path}:/bin:/usr/bin`;
}

test("a machine where all is well: library, its hash and interface, devices that compute", async () => {
  const { code, ok, stderr, check } = await doctor({ RLV_THREADS: "1" });
  expect({ code, ok, stderr }).toEqual({ code: 0, ok: true, stderr: "" });
  const path = libraryPath("native");
  const digest = createHash("sha256").update(readFileSync(path)).digest("hex");
  expect(check("native library")).toEqual({
    name: "native library",
    status: "ok",
    detail: `${path}, sha256 ${digest}, interface ${ABI_HASH}`,
  });
  expect(check("device cpu").detail).toMatch(/isa \w+, threads 1/);
  expect(check("threads").detail).toStartWith("1 for the CPU device");
  expect(check("cache").detail).toMatch(/^\S+\/\.cache\/rlv, [\d.]+ \wB free$/);
});

test("lines for people are status, name, detail and remedy", async () => {
  const child = Bun.spawnSync([process.execPath, MAIN, "doctor"], {
    cwd: folder.path,
    env: { PATH: "", HOME: folder.path, HF_HUB_OFFLINE: "1", RLV_THREADS: "1000" },
  });
  const lines = child.stdout.toString().trimEnd().split("\n");
  for (const line of lines) expect(line).toMatch(/^(ok {2}|warn|fail) \S/);
  expect(lines.find((line) => line.startsWith("warn threads"))).toMatch(/: RLV_THREADS=\d+ is faster$/);
  expect(child.exitCode).toBe(0);
});

test("what training needs and is broken makes code 1, with what to do", async () => {
  const bad = folder.file("bad.so");
  writeFileSync(bad, "no library");
  const library = await doctor({ RLV_LIB_PATH: bad });
  expect([library.code, library.ok]).toEqual([1, false]);
  expect(library.check("native library")).toMatchObject({ status: "fail" });
  expect(library.check("native library").detail).toMatch(/cannot load.*bad\.so: .*RLV_LIB_PATH/);
  const threads = await doctor({ RLV_THREADS: "many" });
  expect([threads.code, threads.check("threads").status]).toEqual([1, "fail"]);
  const endpoint = await doctor({ HF_ENDPOINT: "huggingface" });
  expect([endpoint.code, endpoint.check("hub").status]).toEqual([1, "fail"]);
  if (process.platform !== "darwin") {
    const device = await doctor({ RLV_DEVICE: "metal" });
    expect([device.code, device.check("device metal").remedy]).toEqual([1, "use --device cpu"]);
  }
});

test("the hub is asked for a HEAD alone, and not at all when offline", async () => {
  hub.server.taken();
  const online = {
    HF_HUB_OFFLINE: "",
    HF_ENDPOINT: hub.server.endpoint,
    HF_HUB_CACHE: folder.file("hub"),
    HF_TOKEN: "hf_secret",
  };
  hub.server.faults.push({ method: "HEAD", status: 200, times: 1 });
  const good = await doctor(online);
  expect(hub.server.taken().map(({ method, path }) => [method, path])).toEqual([["HEAD", "/"]]);
  expect(good.check("hub")).toMatchObject({ status: "ok" });
  expect(good.check("hub").detail).toMatch(/answers in \d+ ms, with a token, files in .*\/hub, .* free/);
  hub.server.faults.push({ method: "HEAD", status: 401, times: 1 });
  const refused = await doctor(online);
  expect(refused.check("hub")).toMatchObject({ status: "warn", remedy: "get a new one, or unset HF_TOKEN" });
  expect(refused.code).toBe(0);
  hub.server.taken();
  const offline = await doctor({ ...online, HF_HUB_OFFLINE: "1" });
  expect(offline.check("hub")).toMatchObject({ status: "ok" });
  expect(offline.check("hub").detail).toStartWith("not asked (HF_HUB_OFFLINE)");
  expect(hub.server.taken()).toEqual([]);
});

test("a hub that never answers holds nobody up", async () => {
  using server = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const started = performance.now();
  const { code, check } = await doctor({
    HF_HUB_OFFLINE: "",
    HF_ENDPOINT: `http://127.0.0.1:${server.port}`,
  });
  expect(performance.now() - started).toBeLessThan(15_000);
  expect(check("hub")).toMatchObject({ status: "warn" });
  expect(check("hub").detail).toMatch(/does not answer/);
  expect(code).toBe(0);
});

test("MPI: program and library are found, and must fit", async () => {
  const none = await doctor({ RLV_MPI_LIBRARY: folder.file("libmpi.so") });
  expect(none.check("MPI")).toMatchObject({ status: "ok", detail: "none: a run is one process" });
  expect(none.check("MPI").remedy).toMatch(/open-?mpi/);
  const PATH = programs("openmpi", { mpirun: "mpirun (Open MPI) 4.1.4" });
  const alone = await doctor({ PATH, RLV_MPI_LIBRARY: folder.file("libmpi.so") });
  expect(alone.check("MPI")).toMatchObject({
    status: "warn",
    remedy: expect.stringMatching(/RLV_MPI_LIBRARY/),
  });
  expect(alone.check("MPI").detail).toStartWith(`${folder.file("openmpi/mpirun")}, and no library: `);
  expect(alone.code).toBe(0);
});

const found = loadMpi("Open MPI");
const installed = "kind" in found && found.kind === "Open MPI";
if (!installed) process.stdout.write("skip rlv doctor with a libmpi: no Open MPI is installed\n");

test.skipIf(!installed)("MPI: a library is loaded, not started, and its kind compared", async () => {
  const RLV_MPI_LIBRARY = (found as { library: string }).library;
  const library = await doctor({ RLV_MPI_LIBRARY });
  expect(library.check("MPI")).toMatchObject({ status: "warn" });
  expect(library.check("MPI").detail).toMatch(/^Open MPI .*, and no mpirun on the PATH$/);
  const fits = await doctor({
    RLV_MPI_LIBRARY,
    PATH: programs("fits", { mpirun: "mpirun (Open MPI) 4.1.4" }),
  });
  expect(fits.check("MPI")).toMatchObject({ status: "ok" });
  const other = await doctor({
    RLV_MPI_LIBRARY,
    PATH: programs("other", { mpirun: "HYDRA build details:" }),
  });
  expect(other.check("MPI")).toMatchObject({ status: "warn" });
  expect(other.check("MPI").detail).toContain("is MPICH's, the library is Open MPI");
});

test("Slurm: whether its controller answers", async () => {
  const sinfo = { sinfo: "slurm 22.05.8" };
  const up = await doctor({
    PATH: programs("up", { ...sinfo, scontrol: "Slurmctld(primary) at head is UP" }),
    SLURM_JOB_ID: "7",
  });
  expect(up.check("Slurm")).toEqual({
    name: "Slurm",
    status: "ok",
    detail: "slurm 22.05.8, its controller answers, in job 7",
  });
  const PATH = programs("down", { ...sinfo, scontrol: "Slurmctld(primary) at head is DOWN" });
  const down = await doctor({ PATH });
  expect(down.check("Slurm")).toMatchObject({
    status: "warn",
    remedy: expect.stringMatching(/scontrol ping/),
  });
  expect((await doctor()).check("Slurm")).toMatchObject({ status: "ok", detail: "none on this machine" });
});
