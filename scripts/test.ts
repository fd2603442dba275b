/**
 * The whole suite: types, lint, generated files, native tests, TypeScript tests. Last line: `N passed, N failed`.
 *
 *   scripts/test [FILTER]      only test files whose path contains FILTER
 *   scripts/test goldens       only what walks a goldens folder (RLV_GOLDENS=DIR names another one)
 *   scripts/test long          hundreds of steps: time and memory of a step stay
 *   scripts/test release       the files of a release: every platform, twice, and what can be run of them here
 *   scripts/test asan | tsan   the native tests under a sanitizer
 *   scripts/test soft          the Metal device on software Metal: fast, checked, and checked in a random order
 *
 * Software Metal needs clang 19: on Debian and Ubuntu it is installed if this runs as root, elsewhere the suite is
 * skipped by name. RLV_REQUIRE_SOFT=1 makes that a failure. Likewise Chromium, for the tests of the page, and
 * RLV_REQUIRE_BROWSER=1; RLV_SCREENSHOTS=DIR names where pictures of the page go (build/screenshots).
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative, resolve } from "node:path";
import { browserProgram } from "../tests/web/browser.ts";
import { softCompiler } from "./soft.ts";

const root = resolve(import.meta.dir, "..");
const [filter, ...extra] = process.argv.slice(2);
if (extra.length > 0) {
  process.stderr.write(
    `rlv: error: scripts/test takes one filter: ${extra.join(" ")}: run it once for each\n`,
  );
  process.exit(2);
}

const total = { passed: 0, failed: 0, skipped: 0 };
/** What failed, said again at the end, where it is found in a long log. */
const failures: string[] = [];

function count(title: string, passed: number, failed: number, skipped = 0): void {
  total.passed += passed;
  total.failed += failed;
  total.skipped += skipped;
  if (failed > 0) failures.push(title);
  process.stdout.write(`${failed === 0 ? "ok  " : "FAIL"} ${title}: ${passed} passed, ${failed} failed\n`);
}

const clock = (since: number) => `${((performance.now() - since) / 1000).toFixed(1)} s`;

/** One check that passes or fails by its exit code; its output is shown when it fails. */
function check(title: string, command: readonly string[]): boolean {
  const since = performance.now();
  const result = Bun.spawnSync([...command], { cwd: root });
  if (result.exitCode !== 0) {
    process.stdout.write(result.stdout);
    process.stdout.write(result.stderr);
  }
  count(`${title} (${clock(since)})`, result.exitCode === 0 ? 1 : 0, result.exitCode === 0 ? 0 : 1);
  return result.exitCode === 0;
}

const tool = (name: string) => join(root, "node_modules/.bin", name);

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

/** Native test programs end with the same line as this script. */
function native(variant?: "asan" | "tsan", wanted: (source: string) => boolean = () => true): void {
  const folder = join(root, "build", variant ?? "", "native-tests");
  const title = variant === undefined ? "" : ` under ${variant}`;
  for (const name of readdirSync(folder).sort()) {
    const [stem, isa = ""] = name.split(".");
    if (!wanted(join(root, "tests/native", `${stem}.cpp`))) continue;
    if (unsupported(isa)) {
      process.stdout.write(`skip native ${name}: this processor has no ${isa}\n`);
      total.skipped += 1;
      continue;
    }
    const since = performance.now();
    const options = { ASAN_OPTIONS: "detect_leaks=1", UBSAN_OPTIONS: "print_stacktrace=1" };
    const result = Bun.spawnSync([join(folder, name)], { cwd: root, env: { ...process.env, ...options } });
    const text = result.stdout.toString();
    const line = /(\d+) passed, (\d+) failed\s*$/.exec(text);
    const passed = Number(line?.[1] ?? 0);
    let failed = Number(line?.[2] ?? 1);
    // A sanitizer's report or a crash comes after the count, or instead of it; a program without tests is none.
    if (failed === 0 && (result.exitCode !== 0 || passed === 0)) failed = 1;
    if (failed > 0) process.stdout.write(`${text}${result.stderr}\n`);
    count(`native ${name}${title} (${clock(since)})`, passed, failed);
  }
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

function attribute(tag: string, name: string): number {
  return Number(new RegExp(`\\b${name}="(\\d+)"`).exec(tag)?.[1] ?? 0);
}

/** Names of the failed tests of a JUnit report, with their files. */
function failedTests(report: string): string[] {
  const cases = report.matchAll(/<testcase ([^>]*[^/])>\s*<(?:failure|error)([^>]*)/g);
  const value = (tag: string, name: string) => new RegExp(`\\b${name}="([^"]*)"`).exec(tag)?.[1] ?? "";
  return [...cases].map(([, tag, failure]) =>
    [value(tag!, "file"), value(tag!, "name"), value(failure!, "message").slice(0, 300)].join(": "),
  );
}

/** Runs the files in one `bun test`; counts come from its JUnit report, which a crash leaves unwritten. */
function typescript(files: readonly string[], env: Readonly<Record<string, string>> = {}): void {
  if (files.length === 0) {
    count(`no test file matches ${JSON.stringify(filter)}`, 0, 1);
    return;
  }
  const since = performance.now();
  const scratch = mkdtempSync(join(tmpdir(), "rlv-test-"));
  try {
    const report = join(scratch, "report.xml");
    const paths = files.map((file) => `./${relative(root, file)}`);
    // Whole training runs are tests here; the default limit of 5 s is for unit tests.
    const options = ["--timeout=120000", "--reporter=junit", `--reporter-outfile=${report}`];
    const command = [process.execPath, "test", ...options, ...paths];
    const result = Bun.spawnSync(command, {
      cwd: root,
      env: { ...process.env, ...env },
      stdout: "inherit",
      stderr: "inherit",
    });
    const text = existsSync(report) ? readFileSync(report, "utf8") : "";
    const tag = /<testsuites[^>]*>/.exec(text)?.[0];
    if (tag === undefined) {
      const how = result.signalCode ?? `code ${result.exitCode}`;
      count(`bun test ended with ${how} and no report`, 0, 1);
      return;
    }
    const skipped = attribute(tag, "skipped");
    let failed = attribute(tag, "failures") + attribute(tag, "errors");
    const passed = attribute(tag, "tests") - failed - skipped;
    // An error outside of a test (a module that does not load) fails the run and no test.
    if (result.exitCode !== 0 && failed === 0) failed = 1;
    count(`TypeScript tests in ${files.length} files (${clock(since)})`, passed, failed, skipped);
    failures.push(...failedTests(text));
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** Every operation, the goldens and rollouts through the instrumented library; Bun itself is not instrumented. */
function underAsan(): void {
  const runtime = Bun.spawnSync(["g++", "-print-file-name=libasan.so"]).stdout.toString().trim();
  if (!existsSync(runtime)) {
    process.stdout.write("skip TypeScript tests under asan: g++ has no libasan.so\n");
    return;
  }
  const files = ["ops/table", "ops/invariance", "golden/models", "run/sampler", "run/memory"];
  typescript(
    files.map((file) => join(root, `tests/${file}.test.ts`)),
    {
      LD_PRELOAD: runtime,
      ASAN_OPTIONS: "detect_leaks=0:handle_segv=0",
      RLV_LIB_PATH: join(root, "build/asan/librlv.so"),
    },
  );
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
    count("browser: no chromium: apt install chromium", 0, 1);
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
  if (process.env.RLV_REQUIRE_SOFT === "1") count(`software Metal: ${why}`, 0, 1);
  else {
    process.stdout.write(`skip software Metal: ${why}: apt install clang-19 lld-19 llvm-19\n`);
    total.skipped += 1;
  }
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

function softRuns(): void {
  const paths = (names: readonly string[]) => names.map((name) => join(root, `tests/${name}.test.ts`));
  const device = { RLV_TEST_DEVICE: "soft" };
  const check = { ...device, RLV_SOFT_CHECK: "1" };
  const seed = process.env.RLV_SOFT_SEED ?? String(1 + Math.floor(Math.random() * 1e6));
  process.stdout.write("-- software Metal\n");
  typescript(paths(SOFT_WHOLE), device);
  process.stdout.write("-- software Metal, checked\n");
  typescript(paths(SOFT_CHECKED), { ...check, RLV_METAL_DIRECT: "0" });
  process.stdout.write(`-- software Metal, checked, RLV_SOFT_SEED=${seed}\n`);
  typescript(paths(SOFT_CHECKED), { ...check, RLV_METAL_DIRECT: "1", RLV_SOFT_SEED: seed });
}

if (filter === "soft") {
  if (softTools() && buildNative("soft")) {
    typescript(testFiles(join(root, "tests/soft")));
    softRuns();
  } else if (total.skipped === 0) count("native library with software Metal", 0, 1);
} else if (filter === "asan" || filter === "tsan") {
  if (buildNative(filter)) {
    native(filter);
    if (filter === "asan") underAsan();
  } else count(`native library under ${filter}`, 0, 1);
} else if (filter === "long") {
  if (buildNative()) typescript([join(root, "tests/run/flat.test.ts")], { RLV_TEST_LONG: "1" });
  else count("native library", 0, 1);
} else if (filter === "release") {
  if (buildNative()) {
    typescript([join(root, "tests/release/release.test.ts")], { RLV_TEST_LONG: "1" });
    // What another compiler made must compute the same.
    const files = ["ops/table", "ops/invariance", "golden/models", "golden/quant", "run/sampler"];
    typescript(
      files.map((file) => join(root, `tests/${file}.test.ts`)),
      { RLV_LIB_PATH: join(root, "build/linux-x64/librlv.so") },
    );
  } else count("native library", 0, 1);
} else {
  const files = testFiles();
  const whole = filter === undefined;
  if (whole) {
    check("types", [tool("tsc"), "--noEmit"]);
    check("types of the page", [tool("tsc"), "--noEmit", "-p", "src/web/page"]);
    check("lint", [tool("biome"), "check", "."]);
    check("generated files", [process.execPath, "scripts/gen.ts", "--check"]);
    check("C++ format", [join(root, "scripts/format-native"), "--check"]);
  }
  const soft = whole && softTools();
  if (whole || files.some((file) => /tests\/web\//.test(file) && relative(root, file).includes(filter)))
    browser();
  if (buildNative(soft ? "soft" : undefined)) {
    if (whole) native();
    else if (filter === "goldens") native(undefined, walksGoldens);
    else native(undefined, (path) => relative(root, path).includes(filter));
    typescript(
      whole
        ? files
        : filter === "goldens"
          ? files.filter(walksGoldens)
          : files.filter((file) => relative(root, file).includes(filter)),
    );
    if (soft) softRuns();
  } else count("native library", 0, 1);
}

for (const failure of failures) process.stdout.write(`failed: ${failure}\n`);
if (total.skipped > 0) process.stdout.write(`${total.skipped} skipped, with their reasons above\n`);
process.stdout.write(`${total.passed} passed, ${total.failed} failed\n`);
process.exit(total.failed === 0 ? 0 : 1);
