/**
 * Runs programs that nobody has read: with time, memory and output that are limited, without network, without processes
 * of their own and without writing files. Where that cannot be had the run is refused.
 */
import { randomUUID } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RlvError, Unsupported } from "../core/errors.ts";
import { CONFINE_COMMAND, childArgv } from "../core/version.ts";

export interface SandboxLimits {
  /** Of wall-clock time; processor time has one more. */
  readonly seconds: number;
  /** Bytes of memory in use. */
  readonly memory: number;
  /** Bytes of private data that the program may reserve, whether it uses them or not. */
  readonly reserve: number;
  /** Bytes on stdout and stderr each. */
  readonly output: number;
}

export interface SandboxProgram {
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** Of the working folder. */
  readonly files: Readonly<Record<string, string>>;
  readonly stdin: string;
}

export interface SandboxOutcome {
  /** How it ended: by itself, or because a limit was reached. */
  readonly ended: "exit" | "time" | "memory" | "output";
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Milliseconds between two looks at a program's memory. */
const WATCH_MS = 20;
/** Exit code of a program that could not be confined; it says so under a name that the program itself never sees. */
const UNCONFINED = 125;

const SANDBOX_EXEC = "/usr/bin/sandbox-exec";
/** Apple's sandbox: no network, no process, no file written, no signal to others. */
const PROFILE = [
  "(version 1)",
  "(allow default)",
  "(deny network*)",
  "(deny process-fork)",
  "(deny file-write*)",
  '(allow file-write-data (literal "/dev/null"))',
  "(deny signal)",
  "(allow signal (target self))",
].join("");

/** The program, confined by the system's own means. */
function confinedArgv(argv: readonly string[]): readonly string[] {
  if (process.platform === "linux") return argv;
  if (process.platform === "darwin" && existsSync(SANDBOX_EXEC))
    return [SANDBOX_EXEC, "-p", PROFILE, ...argv];
  throw new Unsupported(
    "code cannot be confined on this system",
    process.platform,
    "train with the reward code on Linux, or on macOS with /usr/bin/sandbox-exec",
  );
}

export async function runConfined(
  program: SandboxProgram,
  limits: SandboxLimits,
  signal?: AbortSignal,
): Promise<SandboxOutcome> {
  const argv = confinedArgv(program.argv);
  const folder = mkdtempSync(join(tmpdir(), "rlv-code-"));
  try {
    for (const [name, text] of Object.entries(program.files)) writeFileSync(join(folder, name), text);
    const mark = randomUUID();
    const spec = { argv, env: program.env, cpuSeconds: limits.seconds + 1, memory: limits.reserve };
    const child = Bun.spawn([...childArgv(CONFINE_COMMAND), JSON.stringify({ ...spec, mark })], {
      cwd: folder,
      stdin: new TextEncoder().encode(program.stdin),
      stdout: "pipe",
      stderr: "pipe",
    });
    let ended: SandboxOutcome["ended"] = "exit";
    const end = (why: SandboxOutcome["ended"]) => {
      if (ended === "exit") ended = why;
      child.kill("SIGKILL");
    };
    const abort = () => child.kill("SIGKILL");
    const timer = setTimeout(() => end("time"), limits.seconds * 1000);
    const watch = setInterval(() => {
      if (memoryOf(child.pid) > limits.memory) end("memory");
    }, WATCH_MS);
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    try {
      const over = () => end("output");
      const [stdout, stderr] = await Promise.all([
        readUpTo(child.stdout, limits.output, over),
        readUpTo(child.stderr, limits.output, over),
      ]);
      await child.exited;
      if (child.exitCode === UNCONFINED && stderr.includes(mark)) {
        const reason = stderr.slice(stderr.indexOf(mark) + mark.length).trim();
        throw new RlvError("code cannot be confined", "reward code", reason);
      }
      return { ended, code: child.exitCode, signal: child.signalCode as string | null, stdout, stderr };
    } finally {
      clearTimeout(timer);
      clearInterval(watch);
      signal?.removeEventListener("abort", abort);
      child.kill("SIGKILL");
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The text of a stream; `over` is called once it is longer than `limit` bytes, and the rest is dropped. */
async function readUpTo(
  stream: ReadableStream<Uint8Array>,
  limit: number,
  over: () => void,
): Promise<string> {
  const pieces: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of stream) {
    if (bytes < limit) pieces.push(piece.subarray(0, limit - bytes));
    bytes += piece.length;
    if (bytes > limit) {
      over();
      break;
    }
  }
  return Buffer.concat(pieces).toString();
}

/** Bytes of a process in memory; 0 when it is gone. */
export function memoryOf(pid: number): number {
  if (process.platform === "linux") {
    try {
      // size resident …, in pages of 4 KiB or what the system has.
      return (
        Number(readFileSync(`/proc/${pid}/status`, "utf8").match(/^VmRSS:\s+(\d+) kB/m)?.[1] ?? 0) * 1024
      );
    } catch {
      return 0;
    }
  }
  const listed = Bun.spawnSync(["/bin/ps", "-o", "rss=", "-p", String(pid)]);
  return Number(listed.stdout.toString().trim() || 0) * 1024;
}
