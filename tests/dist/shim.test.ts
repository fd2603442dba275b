/** The shim over libmpi against an MPI of its own (fake-mpi.c), which mirrors messages and fails where it is told to. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const cc = ["cc", "gcc", "clang"].find((name) => Bun.which(name) !== null);
const withoutMemory = resolve(import.meta.dir, "../../build/native-tests/alloc_test");
const scratch = mkdtempSync(join(tmpdir(), "rlv-mpi-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

function compile(name: string, ...flags: string[]): string {
  const path = join(scratch, `${name}.so`);
  const made = Bun.spawnSync([
    cc!,
    "-shared",
    "-fPIC",
    ...flags,
    "-o",
    path,
    join(import.meta.dir, "fake-mpi.c"),
  ]);
  expect(made.stderr.toString()).toBe("");
  return path;
}

function use(library: string, env: Record<string, string> = {}, ...args: string[]) {
  const result = Bun.spawnSync([process.execPath, join(import.meta.dir, "shim-fixture.ts"), ...args], {
    env: { ...process.env, RLV_MPI_LIBRARY: library, PMI_SIZE: "2", ...env },
  });
  expect(result.stderr.toString()).toBe("");
  return JSON.parse(result.stdout.toString());
}

describe.skipIf(cc === undefined)("libmpi loaded at run time (needs a C compiler)", () => {
  test.each([
    ["Open MPI", "v4.1.4", ["-DOPEN_MPI"]],
    ["MPICH", "4.0.2", []],
  ] as const)("%s: bytes and sums", (kind, version, flags) => {
    const path = compile(kind.replace(" ", ""), ...flags);
    const found = use(path);
    expect(found.library).toMatchObject({ library: path, kind });
    expect(found.library.version).toContain(version);
    expect(found).toMatchObject({ rank: 0, count: 2, neighbours: { local: 2, sharing: 2 }, empty: [0, 0] });
    expect(found.ranks).toContain("2 ranks on 1 machine");
    const bits = [0x80000000, 0x7fc00000, 1];
    expect(found.given).toEqual([bits, bits]);
    // Rank 0 sums the first half, to which the mirror adds the second, and gets that as the second half.
    const half = Array.from({ length: 32 }, (_, i) => i + 0.25 + (i + 32.25));
    expect(found.sums.float32).toEqual([...half, ...half]);
    // 256 + 1.0078125 = 257.0078125 lies between 256 and 258, nearer to 258.
    expect(found.sums.bfloat16).toEqual(new Array(64).fill(0x4381));
  });

  test("what goes wrong has a name", () => {
    const path = compile("fails");
    const failing = (call: string) => use(path, { FAKE_FAIL: call, RLV_MPI_TIMEOUT: "1" }).error;
    expect(failing("init")).toContain("MPI_Init_thread: the fake error 16");
    expect(failing("isend")).toContain("MPI_Isend: the fake error 15");
    expect(failing("test")).toContain("MPI_Test: the fake error 17");
    expect(failing("finalize")).toContain("MPI_Finalize: the fake error 18");
    expect(failing("version")).toContain("neither Open MPI nor MPICH: Other MPI 1.0");
    expect(failing("alone")).toContain("2 processes were started, MPICH Version: 4.0.2 sees 1");
    expect(failing("hang")).toContain("rank 0 waited 1 s for the others: introduction");
    const without = compile("without", "-DWITHOUT_ISEND");
    expect(use(without).error).toContain("MPI_Isend is missing");
    expect(use(join(scratch, "none.so")).error).toContain("no MPI library can be loaded");
  });

  test("an error of one rank is one of all", () => {
    const thrown = use(compile("refuse"), {}, "refuse");
    expect(thrown).toEqual({ message: "no: here", class: "RanksError", everywhere: true });
  });

  test.skipIf(!existsSync(withoutMemory)).each([["-DOPEN_MPI"], ["-DMPICH"]])(
    "every allocation of an exchange fails in turn, %s (needs scripts/build-native --tests)",
    (flag) => {
      const { exitCode, stdout } = Bun.spawnSync([withoutMemory, compile(`memory${flag}`, flag)]);
      expect(stdout.toString()).not.toContain("FAIL");
      expect(exitCode).toBe(0);
    },
  );
});
