/**
 * The whole suite: types, lint, generated files, native tests, TypeScript tests. Last line: `N passed, N failed`.
 *
 *   scripts/test [FILTER]      only test files whose path contains FILTER
 *   scripts/test goldens       only what walks a goldens folder (RLV_GOLDENS=DIR names another one)
 *   scripts/test long          hundreds of steps: time and memory of a step stay
 *   scripts/test release       the files of a release: every platform, twice, and what can be run of them here
 *   scripts/test torture       kills and faults of the system, thousands; a table of what was tried and what was lost
 *   scripts/test asan | tsan   the native tests under a sanitizer
 *   scripts/test soft          the Metal device on software Metal: fast, checked, and checked in a random order
 *
 * Software Metal needs clang 19: on Debian and Ubuntu it is installed if this runs as root, elsewhere the suite is
 * skipped by name. RLV_REQUIRE_SOFT=1 makes that a failure. Likewise Chromium, for the tests of the page, and
 * RLV_REQUIRE_BROWSER=1; RLV_SCREENSHOTS=DIR names where pictures of the page go (build/screenshots).
 *
 * Every file of tests is a program of its own and they run side by side, one a core (scripts/test-jobs.ts). A file that
 * measures time or memory has a line `Runs alone: ` with the reason in its first comment.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, relative } from "node:path";
import { browserProgram } from "../tests/web/browser.ts";
import { buildLinuxTests, type LinuxArch } from "./cross-linux.ts";
import { armCommand, noArm } from "./emulator.ts";
import { foreignBun } from "./foreign-bun.ts";
import { softCompiler } from "./soft.ts";
import { checkJob, type Job, nativeJob, Results, root, runJobs, testJob } from "./test-jobs.ts";

const [filter, ...extra] = process.argv.slice(2);
if (extra.length > 0) {
  process.stderr.write(
    `rlv: error: scripts/test takes one filter: ${extra.join(" ")}: run it once for each\n`,
  );
  process.exit(2);
}

const results = new Results();

const tool = (name: string) => join(root, "node_modules/.bin", name);

function checks(): Job[] {
  return [
    checkJob("types", [tool("tsc"), "--noEmit"]),
    checkJob("types of the page", [tool("tsc"), "--noEmit", "-p", "src/web/page"]),
    checkJob("lint", [tool("biome"), "check", "."]),
    checkJob("generated files", [process.execPath, "scripts/gen.ts", "--check"]),
    checkJob("reference of the commands", [process.execPath, "scripts/reference.ts", "--check"]),
    checkJob("C++ format", [join(root, "scripts/format-native"), "--check"]),
  ];
}

function buildNative(variant?: "asan" | "tsan" | "soft"): boolean {
  const sanitizer = variant === "asan" || variant === "tsan" ? { [variant.toUpperCase()]: "1" } : {};
  const env = { ...process.env, ...sanitizer };
  const command = [process.execPath, join(root, "scripts/native.ts"), "--quiet", "--tests"];
  if (variant === "soft") command.push("--soft");
  return Bun.spawnSync(command, { cwd: root, env, stdout: "inherit", stderr: "inherit" }).exitCode === 0;
}

/** What this processor cannot run, by the suffix of a test program. */
function unsupported(isa: string): boolean {
  const needs: Record<string, string[]> = {
    avx2: ["avx2", "fma", "f16c"],
    avx512: ["avx512f", "avx512bw", "avx512vl", "avx512dq"],
    avx512bf16: ["avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"],
  };
  const flags = existsSync("/proc/cpuinfo") ? readFileSync("/proc/cpuinfo", "utf8").split(/\s+/) : [];
  return (needs[isa] ?? []).some((flag) => !flags.includes(flag));
}

function nativeTests(variant?: "asan" | "tsan", wanted: (source: string) => boolean = () => true): Job[] {
  const folder = join(root, "build", variant ?? "", "native-tests");
  return readdirSync(folder)
    .sort()
    .flatMap((name) => {
      const [stem, isa = ""] = name.split(".");
      if (!wanted(join(root, "tests/native", `${stem}.cpp`))) return [];
      const title = `native ${name}${variant === undefined ? "" : ` under ${variant}`}`;
      if (!unsupported(isa)) return [nativeJob(title, join(folder, name))];
      results.skip(`${title}: this processor has no ${isa}`);
      return [];
    });
}

function testFiles(dir = join(root, "tests")): string[] {
  return readdirSync(dir, { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const path = join(dir, entry.name);
      if (entry.isDirectory()) return path === join(root, "tests/goldens") ? [] : testFiles(path);
      return entry.name.endsWith(".test.ts") ? [path] : [];
    });
}

/** A test walks goldens if it is named so or uses a walker: tests/goldens-dirs.ts, tests/native/goldens.h. */
function walksGoldens(path: string): boolean {
  return (
    /goldens?[^/]*\.test\.ts$/.test(path) || /goldens-dirs|"goldens\.h"/.test(readFileSync(path, "utf8"))
  );
}

/** Every operation, the goldens and rollouts through the instrumented library; Bun itself is not instrumented. */
function underAsan(): Job[] {
  // libasan looks for __cxa_throw as it starts: Bun has none of its own to show.
  const runtime = ["libasan.so", "libstdc++.so.6"].map((name) =>
    Bun.spawnSync(["g++", `-print-file-name=${name}`])
      .stdout.toString()
      .trim(),
  );
  if (!runtime.every(existsSync)) {
    results.skip("TypeScript tests under asan: g++ has no libasan.so");
    return [];
  }
  const env = {
    LD_PRELOAD: runtime.join(":"),
    ASAN_OPTIONS: "detect_leaks=0:handle_segv=0",
    RLV_LIB_PATH: join(root, "build/asan/librlv.so"),
  };
  const files = ["ops/table", "ops/invariance", "golden/models", "run/sampler", "run/memory"];
  return files.map((file) => testJob(join(root, `tests/${file}.test.ts`), "asan", env));
}

/** What is missing, where Debian and Ubuntu have packages and root may install them. */
function install(what: string, packages: readonly string[]): void {
  if (process.platform !== "linux" || process.getuid?.() !== 0 || Bun.which("apt-get") === null) return;
  process.stdout.write(`${what}: apt-get install ${packages.join(" ")}\n`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  Bun.spawnSync(["apt-get", "update", "-qq"], { env });
  Bun.spawnSync(["apt-get", "install", "-y", "-qq", "--no-install-recommends", ...packages], { env });
}

/** A browser for the tests of the page; those say by name what they skip without one. */
function browser(): void {
  if (browserProgram() === null) install("the tests of the page need a browser", ["chromium"]);
  if (browserProgram() === null && process.env.RLV_REQUIRE_BROWSER === "1")
    results.fail("browser: no chromium: apt install chromium");
}

/** Whether software Metal can be built here; says why not. */
function softTools(): boolean {
  if (softCompiler() === null)
    install("software Metal needs clang 19", [
      ...["clang-19", "lld-19", "llvm-19"],
      ...(Bun.which("pip3") ? [] : ["python3-pip"]),
    ]);
  if (softCompiler() !== null) return true;
  const why = "no clang 19 or later with lld and llvm";
  if (process.env.RLV_REQUIRE_SOFT === "1") results.fail(`software Metal: ${why}`);
  else results.skip(`software Metal: ${why}: apt install clang-19 lld-19 llvm-19`);
  return false;
}

/** What the Metal device must do as the CPU device does; and, with every access watched, the operations themselves. */
const SOFT_WHOLE = [
  "ops/table",
  "ops/invariance",
  "ops/fused",
  "ops/dropout",
  "ops/head-goldens",
  "golden/models",
  "golden/reward",
  "golden/peft",
  "golden/quant",
  "golden/trainer",
  "golden/routing",
  "golden/optimizer",
  "golden/sampling",
  "run/sampler",
  "run/quantized",
  "run/lora-training",
];
const SOFT_CHECKED = ["ops/table", "ops/invariance", "ops/fused"];

function softTests(): Job[] {
  const device = { RLV_TEST_DEVICE: "soft" };
  const check = { ...device, RLV_SOFT_CHECK: "1" };
  const seed = process.env.RLV_SOFT_SEED ?? String(1 + Math.floor(Math.random() * 1e6));
  const on = (names: readonly string[], what: string, env: Readonly<Record<string, string>>) =>
    names.map((name) => testJob(join(root, `tests/${name}.test.ts`), `software Metal${what}`, env));
  return [
    ...on(SOFT_WHOLE, "", device),
    ...on(SOFT_CHECKED, ", checked", { ...check, RLV_METAL_DIRECT: "0" }),
    ...on(SOFT_CHECKED, `, checked, RLV_SOFT_SEED=${seed}`, {
      ...check,
      RLV_METAL_DIRECT: "1",
      RLV_SOFT_SEED: seed,
    }),
  ];
}

/**
 * What takes longest, by the beginning of its title: started last, one of these would keep a core waiting. The first
 * leaves the reference of the table of operations to the others.
 */
const LONGEST = [
  "tests/ops/isa.test.ts",
  "tests/run/sampler.test.ts on software Metal",
  "tests/soft/traffic.test.ts",
  "tests/build/darwin.test.ts",
  "tests/run/preference-proof.test.ts",
  "tests/run/values.test.ts",
  "tests/soft/training.test.ts",
  "tests/golden/models.test.ts on software Metal",
  "tests/ops/table.test.ts on software Metal",
  "tests/golden/sampling.test.ts on software Metal",
  "tests/run/resume.test.ts",
  "tests/soft/rules.test.ts",
  "tests/run/lora-run.test.ts",
  "tests/run/hh-resume.test.ts",
  "tests/run/rewards.test.ts",
];

function longestFirst(jobs: readonly Job[]): Job[] {
  const place = ({ title }: Job) => {
    const at = LONGEST.findIndex((long) => title.startsWith(long));
    return at < 0 ? LONGEST.length : at;
  };
  return jobs.toSorted((a, b) => place(a) - place(b));
}

async function suite(): Promise<void> {
  const whole = filter === undefined;
  const within = (path: string) => whole || relative(root, path).includes(filter);
  const files = testFiles().filter(filter === "goldens" ? walksGoldens : within);
  const soft = whole && softTools();
  if (files.some((file) => /tests\/web\//.test(file))) browser();
  if (!buildNative(soft ? "soft" : undefined)) {
    if (whole) await runJobs(checks(), results);
    results.fail("native library");
    return;
  }
  if (files.length === 0) results.fail(`no test file matches ${JSON.stringify(filter)}`);
  const tests = [...files.map((file) => testJob(file)), ...(soft ? softTests() : [])];
  const native = nativeTests(undefined, filter === "goldens" ? walksGoldens : within);
  await runJobs([...(whole ? checks() : []), ...native, ...longestFirst(tests)], results);
}

async function sanitized(variant: "asan" | "tsan"): Promise<void> {
  if (!buildNative(variant)) results.fail(`native library under ${variant}`);
  else await runJobs([...nativeTests(variant), ...(variant === "asan" ? underAsan() : [])], results);
}

async function softSuite(): Promise<void> {
  if (!softTools()) return;
  if (!buildNative("soft")) results.fail("native library with software Metal");
  else {
    const own = testFiles(join(root, "tests/soft")).map((file) => testJob(file));
    await runJobs(longestFirst([...own, ...softTests()]), results);
  }
}

async function longSuite(): Promise<void> {
  if (!buildNative()) results.fail("native library");
  else await runJobs([testJob(join(root, "tests/run/flat.test.ts"), "", { RLV_TEST_LONG: "1" })], results);
}

/** What Zig built must compute what it computes when g++ builds it; for arm64 under emulation. */
async function releaseJobs(): Promise<Job[]> {
  const on = (arch: LinuxArch, names: readonly string[], env: Record<string, string>, bun?: string[]) => {
    const library = { ...env, RLV_LIB_PATH: join(root, `build/linux-${arch}/librlv.so`) };
    const what = [`the release's library for ${arch}`, ...Object.values(env)].join(", ");
    return names.map((name) => testJob(join(root, `tests/${name}.test.ts`), what, library, bun));
  };
  const native = async (arch: LinuxArch, emulator: string[], wanted: (name: string) => boolean) =>
    (await buildLinuxTests(arch))
      .filter((path) => wanted(basename(path)))
      .map((path) => nativeJob(`native ${basename(path)} of the release for ${arch}`, path, emulator));
  const jobs = [
    ...on("x64", ["ops/table", "ops/invariance", "golden/models", "golden/quant", "run/sampler"], {}),
    ...(await native("x64", [], (name) => !unsupported(name.split(".")[1] ?? ""))),
  ];
  const missing = noArm();
  if (missing !== null) {
    results.skip(`operations of the release for arm64, under emulation: ${missing}`);
    return jobs;
  }
  const emulator = armCommand();
  const bun = [...emulator, foreignBun("@oven/bun-linux-aarch64")];
  return [
    ...jobs,
    ...["neon", "portable"].flatMap((isa) => on("arm64", ["ops/table"], { RLV_ISA: isa }, bun)),
    // The table has the portable kernels already.
    ...(await native("arm64", emulator, (name) => !name.endsWith(".portable"))),
  ];
}

async function releaseSuite(): Promise<void> {
  if (!buildNative()) return results.fail("native library");
  await runJobs([testJob(join(root, "tests/release/release.test.ts"), "", { RLV_TEST_LONG: "1" })], results);
  await runJobs(await releaseJobs(), results);
}

/** RLV_TORTURE=N: how many rounds; 10 are all calls to the file system of a run, in hours. */
async function tortureSuite(): Promise<void> {
  if (!buildNative()) return results.fail("native library");
  const scratch = mkdtempSync(join(tmpdir(), "rlv-torture-"));
  const report = join(scratch, "report.jsonl");
  const env = { RLV_TORTURE: process.env.RLV_TORTURE ?? "10", RLV_TORTURE_REPORT: report };
  const files = testFiles(join(root, "tests/torture"));
  await runJobs(
    files.map((file) => testJob(file, "", env)),
    results,
  );
  const lines = existsSync(report) ? readFileSync(report, "utf8").trimEnd().split("\n") : [];
  const rows = new Map<string, { tried: number; lost: number }>();
  for (const line of lines) {
    const {
      fault,
      tried = 0,
      lost = 0,
    } = JSON.parse(line) as { fault: string; tried?: number; lost?: number };
    const row = rows.get(fault) ?? { tried: 0, lost: 0 };
    rows.set(fault, { tried: row.tried + tried, lost: row.lost + lost });
  }
  process.stdout.write("| fault | tried | lost |\n|---|---|---|\n");
  for (const [fault, { tried, lost }] of [...rows].toSorted(([a], [b]) => (a < b ? -1 : 1)))
    process.stdout.write(`| ${fault} | ${tried} | ${lost} |\n`);
  rmSync(scratch, { recursive: true, force: true });
}

if (filter === "soft") await softSuite();
else if (filter === "torture") await tortureSuite();
else if (filter === "release") await releaseSuite();
else if (filter === "asan" || filter === "tsan") await sanitized(filter);
else if (filter === "long") await longSuite();
else await suite();

for (const failure of results.failures) process.stdout.write(`failed: ${failure}\n`);
if (results.skipped > 0) process.stdout.write(`${results.skipped} skipped, with their reasons above\n`);
process.stdout.write(`${results.passed} passed, ${results.failed} failed\n`);
process.exit(results.failed === 0 ? 0 : 1);
