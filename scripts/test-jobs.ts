/**
 * Runs the programs of the suite side by side, one a core, and says of each what it found as soon as it has ended.
 * Every program has a folder for temporary files of its own, and its share of the cores. Those that measure time or
 * memory run afterwards, each with the machine to itself.
 */
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
} from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join, relative, resolve } from "node:path";

export const root = resolve(import.meta.dir, "..");

/** How a program ended: whether by exit code 0, else by which code or signal; and all that it wrote. */
export interface Ended {
  readonly ok: boolean;
  readonly how: string;
  readonly text: string;
  /** Its folder, for files that it was told to write. */
  readonly folder: string;
}

export interface Outcome {
  readonly passed: number;
  readonly failed: number;
  readonly skipped?: number;
  /** What failed, each in a line; the job by its title when there is none. */
  readonly failures?: readonly string[];
  /** What is worth showing of its output. */
  readonly shown?: string;
}

export interface Job {
  readonly title: string;
  /** It runs when nothing else does. */
  readonly alone?: boolean;
  readonly env?: Readonly<Record<string, string>>;
  /** Program and arguments; `folder` is its own. */
  readonly command: (folder: string) => readonly string[];
  readonly read: (ended: Ended) => Outcome;
}

export class Results {
  passed = 0;
  failed = 0;
  skipped = 0;
  /** Said again at the end, where it is found in a long log. */
  readonly failures: string[] = [];

  add(title: string, outcome: Outcome, spent = ""): void {
    const { passed, failed, skipped = 0, failures = [], shown = "" } = outcome;
    this.passed += passed;
    this.failed += failed;
    this.skipped += skipped;
    if (failed > 0) this.failures.push(...(failures.length > 0 ? failures : [title]));
    if (shown !== "") process.stdout.write(`${shown.trimEnd()}\n`);
    const verdict = failed === 0 ? "ok  " : "FAIL";
    process.stdout.write(`${verdict} ${title}${spent}: ${passed} passed, ${failed} failed\n`);
  }

  fail(title: string): void {
    this.add(title, { passed: 0, failed: 1 });
  }

  skip(line: string): void {
    this.skipped += 1;
    process.stdout.write(`skip ${line}\n`);
  }
}

const seconds = (value: number) => `${value.toFixed(1)} s`;

/** Threads of a job with `share` jobs beside it, unless the environment says how many. */
function threadsOf(share: number): Record<string, string> {
  if (share === 1) return {};
  const threads = String(Math.max(1, Math.floor(availableParallelism() / share)));
  // Software Metal's threads wait for work asleep, so that two cost nothing, and groups do run at the same time.
  return { RLV_THREADS: threads, RLV_SOFT_THREADS: String(Math.max(2, Number(threads))), RLV_PIN: "0" };
}

/** Runs the jobs in their order, as many at a time as there are cores; then those that must be alone. */
export async function runJobs(jobs: readonly Job[], results: Results): Promise<void> {
  const began = performance.now();
  const scratch = mkdtempSync(join(tmpdir(), "rlv-test-"));
  // Daemons of tests want to be reached by others; only their own folders say who may read.
  chmodSync(scratch, 0o711);
  const running = new Set<Bun.Subprocess>();
  const stop = () => {
    for (const child of running) child.kill();
    rmSync(scratch, { recursive: true, force: true });
    process.exit(130);
  };
  process.on("SIGINT", stop);
  process.on("SIGTERM", stop);
  // Half of what the table of operations takes is its reference, the same for every device (tests/ops/table.test.ts).
  const shared = { RLV_TABLE_REFERENCES: join(scratch, "table-references") };
  let cpu = 0;
  let made = 0;
  const run = async (job: Job, share: number): Promise<void> => {
    const folder = join(scratch, String(made++));
    mkdirSync(join(folder, "tmp"), { recursive: true });
    const log = join(folder, "log");
    // One file for both streams keeps their order.
    const output = openSync(log, "a");
    const since = performance.now();
    const child = Bun.spawn([...job.command(folder)], {
      cwd: root,
      env: { ...threadsOf(share), ...process.env, ...job.env, TMPDIR: join(folder, "tmp"), ...shared },
      stdin: "ignore",
      stdout: output,
      stderr: output,
    });
    running.add(child);
    await child.exited;
    running.delete(child);
    closeSync(output);
    const used = Number(child.resourceUsage()?.cpuTime.total ?? 0) / 1e6;
    cpu += used;
    const how = child.signalCode === null ? `code ${child.exitCode}` : String(child.signalCode);
    const text = readFileSync(log, "utf8");
    const outcome = job.read({ ok: child.exitCode === 0, how, text, folder });
    results.add(
      job.title,
      outcome,
      ` (${seconds((performance.now() - since) / 1000)}, CPU ${seconds(used)})`,
    );
    rmSync(folder, { recursive: true, force: true });
  };
  const queue = jobs.filter((job) => job.alone !== true);
  const share = Math.min(availableParallelism(), queue.length);
  const worker = async () => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) await run(next, share);
  };
  await Promise.all(Array.from({ length: share }, worker));
  for (const job of jobs) if (job.alone === true) await run(job, 1);
  rmSync(scratch, { recursive: true, force: true });
  process.off("SIGINT", stop);
  process.off("SIGTERM", stop);
  const whole = (performance.now() - began) / 1000;
  process.stdout.write(
    `${jobs.length} programs in ${seconds(whole)}, CPU ${seconds(cpu)} on ${availableParallelism()} cores\n`,
  );
}

/** One check that passes or fails by its exit code; its output is shown when it fails. */
export function checkJob(title: string, command: readonly string[]): Job {
  return {
    title,
    command: () => command,
    read: ({ ok, text }) => ({ passed: ok ? 1 : 0, failed: ok ? 0 : 1, shown: ok ? "" : text }),
  };
}

/** A native test program, which ends with the same line as the whole suite; `emulator` goes before it. */
export function nativeJob(title: string, program: string, emulator: readonly string[] = []): Job {
  return {
    title,
    env: { ASAN_OPTIONS: "detect_leaks=1", UBSAN_OPTIONS: "print_stacktrace=1" },
    command: () => [...emulator, program],
    read: ({ ok, how, text }) => {
      // A sanitizer's report comes on the other stream, before or behind the count.
      const line = /^(\d+) passed, (\d+) failed$/m.exec(text);
      const passed = Number(line?.[1] ?? 0);
      let failed = Number(line?.[2] ?? 1);
      // A report or a crash may leave the count as it was; a program without tests is none.
      if (failed === 0 && (!ok || passed === 0)) failed = 1;
      return { passed, failed, shown: failed > 0 ? `${text}\nended with ${how}` : "" };
    },
  };
}

const value = (tag: string, name: string) => new RegExp(`\\b${name}="([^"]*)"`).exec(tag)?.[1] ?? "";

/** Names of the failed tests of a JUnit report. */
function failedTests(report: string): string[] {
  const cases = report.matchAll(/<testcase ([^>]*[^/])>\s*<(?:failure|error)([^>]*)/g);
  return [...cases].map(([, tag, failure]) =>
    [value(tag!, "name"), value(failure!, "message").slice(0, 300)]
      .filter((part) => part !== "")
      .map((part) => part.replaceAll("&#10;", " ").trim())
      .join(": "),
  );
}

/** What Bun prints about a file, without what its count says: tests that pass, and the sums. */
function remarks(text: string): string {
  const lines = text
    .replaceAll(/^\(pass\) (?:(?!\n\((?:fail|skip|todo)\) )[\s\S])*?\[[\d.]+m?s\]\n/gm, "")
    .split("\n")
    .filter(
      (line) =>
        !/^(bun test v.*|tests\/\S+:|\s*\d+ (pass|fail|skip|expect\(\) calls)|Ran \d+ .*|)$/.test(line),
    );
  // Bun says what it skipped twice.
  return lines.filter((line, i) => !line.startsWith("(skip)") || lines.indexOf(line) === i).join("\n");
}

/** A file of tests, run by `bun`; counts come from its JUnit report, which a crash leaves unwritten. */
export function testJob(
  file: string,
  variant = "",
  env: Readonly<Record<string, string>> = {},
  bun: readonly string[] = [process.execPath],
): Job {
  const path = relative(root, file);
  const title = variant === "" ? path : `${path} on ${variant}`;
  const reportOf = (folder: string) => join(folder, "report.xml");
  return {
    title,
    env,
    alone: /^(\/\*\*| \*|\/\/) Runs alone: /m.test(readFileSync(file, "utf8")),
    command: (folder) => [
      ...[...bun, "test", `./${path}`],
      // Whole training runs are tests here; the default limit of 5 s is for unit tests.
      ...["--timeout=240000", "--reporter=junit", `--reporter-outfile=${reportOf(folder)}`],
    ],
    read: ({ ok, how, text, folder }) => {
      const report = existsSync(reportOf(folder)) ? readFileSync(reportOf(folder), "utf8") : "";
      const tag = /<testsuites[^>]*>/.exec(report)?.[0];
      const shown = remarks(text);
      if (tag === undefined)
        return { passed: 0, failed: 1, failures: [`${title}: ended with ${how} and no report`], shown: text };
      const skipped = Number(value(tag, "skipped"));
      let failed = Number(value(tag, "failures")) + Number(value(tag, "errors"));
      const passed = Number(value(tag, "tests")) - failed - skipped;
      const failures = failedTests(report).map((failure) => `${title}: ${failure}`);
      // An error outside of a test fails the run and no test.
      if (!ok && failed === 0) {
        failed = 1;
        failures.push(`${title}: ended with ${how} although no test failed`);
      }
      return { passed, failed, skipped, failures, shown };
    },
  };
}
