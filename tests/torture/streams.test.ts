/** Command streams to the native devices, by the thousand: by chance (tests/native/submit_test.cpp) and by libFuzzer. */
import { expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { isaFlags, LANGUAGE, libraryParts } from "../../scripts/native-sources.ts";
import { root } from "../../scripts/objects.ts";
import { softCompiler } from "../../scripts/soft.ts";
import { Ledger, LONG_LIMIT, long, SEED } from "./ledger.ts";

const programs = join(root, "build/native-tests");
const program = join(programs, "submit_test");
const noPrograms = existsSync(program) ? null : "needs scripts/build-native --tests";
const LIMIT = long ? LONG_LIMIT : 120_000;
const LONG_CASES = Number(process.env.RLV_TORTURE_CASES ?? 100_000);
// The native tests of the ordinary suite run it as well, from a fixed seed.
const CASES = long ? LONG_CASES : 2000;

async function ran(command: readonly string[]): Promise<{ out: string; err: string; ended: string | null }> {
  const child = Bun.spawn([...command], { stdout: "pipe", stderr: "pipe" });
  const [code, out, err] = await Promise.all([
    child.exited,
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { out, err, ended: code === 0 ? null : `ended with ${child.signalCode ?? code}` };
}

const why = (reason: string | null) => (reason === null ? "" : ` (skipped: ${reason})`);

test.skipIf(noPrograms !== null)(
  `streams are refused or run${why(noPrograms)}`,
  async () => {
    const ledger = new Ledger("fuzzed: command streams");
    const { out, ended } = await ran([program, String(CASES), String(SEED)]);
    for (let i = 0; i < CASES; i++) ledger.enter(`seed ${SEED}`, i === 0 ? ended : null);
    if (ended === null) expect(out).toContain(`${CASES} streams`);
    ledger.close();
  },
  LIMIT,
);

/** What libFuzzer lacks here, or null. */
const noFuzzer = ((): string | null => {
  if (!long) return "scripts/test torture";
  const clang = softCompiler()?.cxx;
  if (clang === undefined) return "no clang 19 or later";
  const runtime = `libclang_rt.fuzzer-${process.arch === "arm64" ? "aarch64" : "x86_64"}.a`;
  const found = Bun.spawnSync([clang, `-print-file-name=${runtime}`])
    .stdout.toString()
    .trim();
  return existsSync(found) ? noPrograms : "clang has no libFuzzer: apt install libclang-rt-19-dev";
})();

/** Builds tests/native/stream_fuzzer.cpp; what reads records is instrumented, what computes is the library's. */
async function buildFuzzer(folder: string): Promise<string> {
  const watched = ["metal/core/abi.cpp", "metal/core/device.cpp"];
  const sets = Object.keys(isaFlags(process.arch));
  // In the order in which the library is linked (scripts/native.ts).
  const objects = libraryParts(process.arch)
    .toSorted((a, b) => sets.indexOf(a.isa ?? "") - sets.indexOf(b.isa ?? ""))
    .map(({ source, isa }) => ({ source: relative(root, source), isa }))
    .filter(({ source }) => !watched.includes(source))
    .map(({ source, isa }) => [source.replace(/\.cpp$/, "").replaceAll("/", "-"), isa, "o"])
    .map((name) => join(root, "build/objects", name.filter(Boolean).join(".")));
  const fuzzer = join(folder, "stream_fuzzer");
  const sources = ["tests/native/stream_fuzzer.cpp", ...watched].map((path) => join(root, path));
  const build = [softCompiler()!.cxx, ...LANGUAGE, "-O2", "-g", "-pthread", "-fsanitize=fuzzer"];
  const { err, ended } = await ran([...build, ...sources, ...objects, "-ldl", "-o", fuzzer]);
  if (ended !== null) throw new Error(`stream_fuzzer does not build: ${err}`);
  return fuzzer;
}

test.skipIf(noFuzzer !== null)(
  `streams that libFuzzer finds are refused or run${why(noFuzzer)}`,
  async () => {
    const folder = mkdtempSync(join(tmpdir(), "rlv-fuzzer-"));
    try {
      const ledger = new Ledger("fuzzed: command streams, by libFuzzer");
      const fuzzer = await buildFuzzer(folder);
      const [corpus, crashes] = [join(folder, "corpus"), join(folder, "crashes")];
      for (const path of [corpus, crashes]) mkdirSync(path);
      expect((await ran([program, "2000", String(SEED), corpus])).ended).toBeNull();
      const options = [`-runs=${LONG_CASES}`, `-seed=${SEED}`, "-max_len=512", "-timeout=20"];
      const { err, ended } = await ran([fuzzer, ...options, `-artifact_prefix=${crashes}/`, corpus]);
      const inputs = readdirSync(crashes).map((name) => readFileSync(join(crashes, name), "base64"));
      const lost = ended === null ? null : `${ended}: base64 ${inputs.join(" ")}: ${err.slice(-2000)}`;
      for (let i = 0; i < LONG_CASES; i++) ledger.enter(`seed ${SEED}`, i === 0 ? lost : null);
      if (ended === null) expect(err).toContain(`Done ${LONG_CASES} runs`);
      ledger.close();
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
  LIMIT,
);
