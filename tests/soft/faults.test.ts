/** Software Metal reports every seeded fault by kernel, line and thread, and nothing in correct kernels. */
import { describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dir, "../..");
const program = join(root, "build/soft-run");
const file = join(import.meta.dir, "faults.metal");
const source = readFileSync(file, "utf8").split("\n");

/** The line marked "fault" in a kernel, from 1. */
function faultLine(kernel: string): number {
  const start = source.findIndex((line) => line.includes(`kernel void ${kernel}(`));
  return source.findIndex((line, i) => i >= start && line.includes("// fault")) + 1;
}

interface Outcome {
  readonly error: string | null;
  readonly buffers: readonly (readonly (number | null)[])[];
  readonly stderr: string;
  readonly signal: string | null;
}

function run(args: readonly string[], env: Readonly<Record<string, string>> = {}): Outcome {
  const result = Bun.spawnSync([program, file, ...args], { env: { ...process.env, ...env } });
  const text = result.stdout.toString();
  const stderr = result.stderr.toString();
  const signal =
    result.signalCode === undefined || result.signalCode === null ? null : String(result.signalCode);
  if (text === "") return { error: null, buffers: [], stderr, signal };
  const outcome = JSON.parse(text);
  if (outcome.compile !== undefined) throw new Error(outcome.compile);
  return { ...outcome, stderr, signal };
}

/** What has to be said of each faulty kernel, beside its line. Found without check mode too: `always`. */
const FAULTS: readonly {
  readonly kernel: string;
  readonly says: RegExp;
  readonly steps?: readonly string[];
  readonly buffers?: string;
  readonly always?: boolean;
  readonly line?: false;
}[] = [
  { kernel: "missing_barrier", says: /race|uninitialised/ },
  { kernel: "wrong_barrier_flags", says: /race/ },
  { kernel: "device_race_in_group", says: /race/ },
  { kernel: "race_between_groups", says: /race.*threadgroup/s, steps: ["race_between_groups:4:64"] },
  { kernel: "race_between_simdgroups", says: /race|uninitialised/ },
  { kernel: "implicit_lockstep", says: /race|uninitialised/, steps: ["implicit_lockstep:1:32"] },
  { kernel: "store_off_by_one", says: /thread 63 .*out-of-bounds.*256 bytes, at its offset 256/s },
  { kernel: "load_before_start", says: /out-of-bounds/ },
  {
    kernel: "threadgroup_off_by_one",
    says: /thread 63 .*out-of-bounds store.*threadgroup memory.*252 bytes/s,
  },
  { kernel: "uninitialised", says: /uninitialised.*thread 7\b/s },
  { kernel: "divergent_barrier", says: /barrier/, always: true },
  { kernel: "two_barriers", says: /barrier/, always: true },
  { kernel: "early_return", says: /barrier.*returned/s, always: true },
  { kernel: "divergent_simd", says: /divergent simdgroup/, always: true },
  { kernel: "inactive_lane", says: /lane/ },
  { kernel: "misaligned", says: /misaligned/ },
  { kernel: "local_index", says: /index|out-of-bounds|private/ },
  {
    kernel: "wrong_constant_size",
    says: /needs 256|256 bytes/,
    buffers: "256,64",
    always: true,
    line: false,
  },
  { kernel: "too_much_memory", says: /36000 bytes.*32768/s, always: true, line: false },
  { kernel: "endless", says: /step/ },
  { kernel: "integer_division", says: /division/ },
  { kernel: "float_to_integer", says: /float to integer/ },
];

describe.skipIf(!existsSync(program))("software Metal (scripts/build-native --soft)", () => {
  for (const fault of FAULTS) {
    const steps = fault.steps ?? [`${fault.kernel}:1:64`];
    const args = ["--buffers", fault.buffers ?? "256", ...steps];
    for (const seed of ["0", "5"]) {
      test(`${fault.kernel} is reported, seed ${seed}`, () => {
        const { error, stderr } = run(args, { RLV_SOFT_CHECK: "1", RLV_SOFT_SEED: seed });
        const said = `${error ?? ""}${stderr}`;
        expect(said).toMatch(fault.says);
        expect(said).toContain(fault.kernel);
        if (fault.line !== false) {
          expect(said).toMatch(new RegExp(`(line |:)${faultLine(fault.kernel)}\\b`));
          expect(said).toMatch(/thread/);
        }
      });
    }
    if (fault.always)
      test(`${fault.kernel} is reported without check mode`, () => {
        const { error, stderr } = run(args);
        expect(`${error ?? ""}${stderr}`).toMatch(fault.says);
      });
  }

  test("a missing barrier between dispatches of a concurrent encoder is a race", () => {
    const steps = ["produce:1:64", "consume:1:64"];
    const checked = { RLV_SOFT_CHECK: "1" };
    const { error } = run(["--concurrent", "--buffers", "256,256", ...steps], checked);
    expect(error).toMatch(/race/);
    expect(error).toMatch(new RegExp(`(line |:)${faultLine("consume")}\\b`));
    const ordered = ["--concurrent", "--buffers", "256,256", steps[0]!, "barrier", steps[1]!];
    expect(run(ordered, checked).error).toBeNull();
    expect(run(["--buffers", "256,256", ...steps], checked).error).toBeNull();
  });

  test("misuse ends the program with its name", () => {
    const unbound = run(["--buffers", "256", "missing_binding:1:64"]);
    expect(unbound.stderr).toMatch(/missing.*binding at index 1/i);
    const crowded = run(["--buffers", "256", "correct_exchange:1:64"], { RLV_SOFT_MAX_THREADS: "32" });
    expect(crowded.stderr).toMatch(/threads/);
    const none = run(["--buffers", "256", "correct_exchange:1:0"]);
    expect(none.stderr).toMatch(/zero/);
  });

  const CORRECT: Readonly<Record<string, (i: number) => number>> = {
    correct_exchange: (i) => (i + 1) % 64,
    correct_subnormals: () => 0,
    correct_reuse: () => 3 * 2016 + 64 * 3,
    correct_simd_exchange: (i) => (i < 32 ? (i + 1) % 32 : 32 + ((i + 1) % 32)),
  };
  for (const [kernel, value] of Object.entries(CORRECT))
    for (const seed of ["0", "1", "2", "3"])
      test(`${kernel}: right, and nothing is reported, seed ${seed}`, () => {
        const { error, buffers } = run(["--buffers", "256", `${kernel}:1:64`], {
          RLV_SOFT_CHECK: "1",
          RLV_SOFT_SEED: seed,
        });
        expect(error).toBeNull();
        expect(buffers[0]).toEqual(Array.from({ length: 64 }, (_, i) => value(i)));
      });
  test("a source is compiled once, and what is left of it is the compiled library", () => {
    const cache = mkdtempSync(join(tmpdir(), "rlv-soft-cache-"));
    for (let i = 0; i < 2; i++)
      run(["--buffers", "256", "correct_exchange:1:64"], { RLV_SOFT_CACHE: cache, RLV_SOFT_CHECK: "" });
    expect(readdirSync(cache).map((name) => name.replace(/^\w+/, ""))).toEqual([".so"]);
    rmSync(cache, { recursive: true });
  });

  for (const kernel of ["correct_halves", "correct_atomics"])
    test(`${kernel}: nothing is reported`, () => {
      expect(
        run(["--buffers", "256", `${kernel}:3:64`.replace("halves:3", "halves:1")], { RLV_SOFT_CHECK: "1" })
          .error,
      ).toBeNull();
    });
});
