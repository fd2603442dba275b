/** Unit tests of the code in a completion, each completion in a confined process of its own (sandbox.ts). */
import { randomUUID } from "node:crypto";
import { availableParallelism } from "node:os";
import { z } from "zod";
import { RlvError, UsageError } from "../core/errors.ts";
import type { Rollout } from "../core/records.ts";
import { JAVASCRIPT_DRIVER, PYTHON_DRIVER, testModule } from "./code-drivers.ts";
import { type BoundReward, defineReward, type RewardResult } from "./registry.ts";
import { runConfined, type SandboxLimits, type SandboxOutcome, type SandboxProgram } from "./sandbox.ts";

const LANGUAGES = ["python", "javascript", "typescript"] as const;
type Language = (typeof LANGUAGES)[number];

const schema = z.object({
  language: z.enum(LANGUAGES).default("python"),
  /** Python to use; javascript and typescript run in this program's own Bun. */
  interpreter: z.string().min(1).default("python3"),
  tests_field: z.string().default("tests"),
  entry_point_field: z.string().default("entry_point"),
  /** Field whose text goes before the completion: the head of a function that the completion goes on with. */
  prefix_field: z.string().nullable().default(null),
  extract: z.enum(["auto", "block", "whole"]).default("auto"),
  score: z.enum(["share", "all"]).default("share"),
  time_limit: z.number().gt(0).default(10),
  memory_mb: z.number().min(64).default(512),
  output_kb: z.number().min(1).default(64),
  concurrency: z.number().int().min(1).nullable().default(null),
});
type Parameters = z.output<typeof schema>;

/** What is reserved beside what is used: JavaScriptCore takes 1 GiB of address space at its start. */
const RESERVE = { python: 64e6, javascript: 1.5e9, typescript: 1.5e9 } as const;

export const code = defineReward({
  name: "code",
  description:
    "share of the unit tests in the field `tests` that the code in the completion passes (score: all = every one or nothing);" +
    " each completion runs confined: limited time, memory and output, no network, no processes, no file written",
  parameters: schema,
  fields: ({ tests_field }) => [tests_field],
  bind(parameters): BoundReward {
    let program: ProgramOf | undefined;
    return {
      concurrency: parameters.concurrency ?? availableParallelism(),
      timeout: parameters.time_limit + 60,
      async start() {
        program = programOf(parameters);
        await proveConfinement(program, parameters);
        return [
          `reward code: ${program.name}, ${parameters.time_limit} s and ${parameters.memory_mb} MB a completion, no network, no processes, no files written`,
        ];
      },
      each: (rollout, { signal }) => scoreCode(program!, parameters, rollout, signal),
    };
  },
});

interface Task {
  readonly code: string;
  readonly tests: readonly string[];
  readonly entryPoint: string | null;
}

interface ProgramOf {
  readonly name: string;
  of(task: Task, mark: string): SandboxProgram;
}

function programOf({ language, interpreter }: Parameters): ProgramOf {
  const env = { PATH: "/usr/bin:/bin", HOME: "/nonexistent", LANG: "C.UTF-8" };
  if (language === "python") {
    const path = findPython(interpreter);
    return {
      name: path,
      of: (task, mark) => ({
        argv: [path, "-B", "-s", "-c", PYTHON_DRIVER],
        env: { ...env, PYTHONHASHSEED: "0" },
        files: {},
        stdin: JSON.stringify({ ...task, mark }),
      }),
    };
  }
  const ending = language === "typescript" ? "ts" : "js";
  return {
    name: `${language} in Bun ${Bun.version}`,
    of: ({ code, tests, entryPoint }, mark) => ({
      argv: [process.execPath, "--no-install", "run", "./driver.js"],
      // The standalone program is Bun too.
      env: { ...env, BUN_BE_BUN: "1", BUN_RUNTIME_TRANSPILER_CACHE_PATH: "0", DO_NOT_TRACK: "1" },
      files: {
        "driver.js": JAVASCRIPT_DRIVER,
        ...Object.fromEntries(
          tests.map((test, i) => [`test-${i}.${ending}`, testModule(code, test, entryPoint)]),
        ),
      },
      stdin: JSON.stringify({ mark, files: tests.map((_, i) => `./test-${i}.${ending}`) }),
    }),
  };
}

/** The interpreter itself: what PATH has may be a script that starts it, and programs here start none. */
function findPython(interpreter: string): string {
  const remedy = "give its path as the parameter interpreter, or set language";
  const found = Bun.which(interpreter);
  if (found === null) throw new UsageError(`no Python ${interpreter}`, "reward code.interpreter", remedy);
  const asked = Bun.spawnSync([found, "-c", "import sys; print(sys.executable)"], {
    stdin: "ignore",
    stderr: "pipe",
    timeout: 20_000,
  });
  const path = asked.stdout.toString().trim();
  if (asked.exitCode !== 0 || path === "")
    throw new UsageError(
      `${found} does not run (${asked.stderr.toString().trim().split("\n").at(-1) ?? ""})`,
      "reward code.interpreter",
      remedy,
    );
  return path;
}

const limitsOf = (parameters: Parameters): SandboxLimits => ({
  seconds: parameters.time_limit,
  memory: parameters.memory_mb * 1e6,
  reserve: parameters.memory_mb * 1e6 + RESERVE[parameters.language],
  output: parameters.output_kb * 1000,
});

/** Before a run begins: what is right passes, and the limits are there. */
async function proveConfinement(program: ProgramOf, parameters: Parameters): Promise<void> {
  const python = parameters.language === "python";
  const right = python ? "assert 1 + 1 == 2" : "assert.equal(1 + 1, 2)";
  const writes = python ? "open('written', 'w')" : "require('node:fs').writeFileSync('written', '')";
  const connects = python
    ? "import socket; socket.socket()"
    : "await new Promise((yes, no) => require('node:net').connect(9, '127.0.0.1').on('error', (e) => (e.code === 'ECONNREFUSED' ? yes() : no(e))).on('connect', yes))";
  const task = { code: "", tests: [right, writes, connects], entryPoint: null };
  const { passed, failure } = await runTests(program, task, limitsOf(parameters));
  if (!passed[0])
    throw new UsageError(
      `a first program does not run: ${failure}`,
      "reward code",
      "raise memory_mb or time_limit, or give another interpreter",
    );
  if (passed[1] || passed[2])
    throw new RlvError(
      `code is not confined: a program could ${passed[1] ? "write a file" : "open a socket"}`,
      "reward code",
      "train without it on this system",
    );
}

async function scoreCode(
  program: ProgramOf,
  parameters: Parameters,
  rollout: Rollout,
  signal: AbortSignal | undefined,
): Promise<RewardResult> {
  const { fields } = rollout.prompt;
  const tests = testsOf(fields[parameters.tests_field], parameters.tests_field);
  const entryPoint = textOf(fields[parameters.entry_point_field], parameters.entry_point_field);
  const { prefix_field: prefixField, language, extract } = parameters;
  const prefix = prefixField === null ? null : textOf(fields[prefixField], prefixField);
  const own = codeOf(rollout.text, language, extract);
  if (own === null) return resultOf(parameters, tests.length, 0, "no fenced block of code");
  const task = { code: `${prefix ?? ""}${own}`, tests, entryPoint };
  const { passed, failure } = await runTests(program, task, limitsOf(parameters), signal);
  return resultOf(parameters, tests.length, passed.filter(Boolean).length, failure);
}

function resultOf(
  { score }: Parameters,
  total: number,
  passed: number,
  failure: string | null,
): RewardResult {
  const reward = score === "share" ? passed / total : passed === total ? 1 : 0;
  const said = failure === null ? {} : { failure };
  return { reward, components: { code: reward }, details: { code: { passed, total, ...said } } };
}

/** One test, or a list of them. */
function testsOf(value: unknown, field: string): string[] {
  const tests = typeof value === "string" ? [value] : value;
  if (Array.isArray(tests) && tests.length > 0 && tests.every((test) => typeof test === "string"))
    return tests;
  throw new UsageError(
    `field ${field} holds no tests`,
    undefined,
    "every line of the dataset needs program text there, or a list of such",
  );
}

function textOf(value: unknown, field: string): string | null {
  if (value === undefined || value === null) return null;
  if (typeof value !== "string") throw new UsageError(`field ${field} is no text`);
  return value;
}

const NAMES: Readonly<Record<Language, readonly string[]>> = {
  python: ["python", "py", "python3"],
  javascript: ["javascript", "js"],
  typescript: ["typescript", "ts", "javascript", "js"],
};

/**
 * The code of a completion: its last fenced block that is of the language or of none, which may lack its end; without
 * a block the whole text (auto, whole) or nothing (block).
 */
export function codeOf(text: string, language: Language, extract: "auto" | "block" | "whole"): string | null {
  if (extract === "whole") return text;
  const blocks = [
    ...text.matchAll(/^[ \t]*(```+|~~~+)[ \t]*([\w+#-]*)[^\n]*\n([\s\S]*?)(?:^[ \t]*\1|(?![\s\S]))/gm),
  ];
  const own = blocks.filter(([, , name]) => name === "" || NAMES[language].includes(name!.toLowerCase()));
  const block = own.at(-1)?.[3];
  return block ?? (extract === "auto" && blocks.length === 0 ? text : null);
}

interface Verdict {
  readonly passed: readonly boolean[];
  /** Of the first test that failed: why. */
  readonly failure: string | null;
}

async function runTests(
  program: ProgramOf,
  task: Task,
  limits: SandboxLimits,
  signal?: AbortSignal,
): Promise<Verdict> {
  const mark = randomUUID();
  const outcome = await runConfined(program.of(task, mark), limits, signal);
  const passed = task.tests.map(() => false);
  const errors = new Map<number, string>();
  for (const line of outcome.stdout.split("\n")) {
    if (!line.startsWith(mark)) continue;
    const said = JSON.parse(line.slice(mark.length)) as { test: number; error: string | null };
    if (said.error === null) passed[said.test] = true;
    else errors.set(said.test, said.error);
  }
  const first = passed.indexOf(false);
  if (first < 0) return { passed, failure: null };
  const reason = errors.get(first) ?? endingOf(outcome, limits);
  return { passed, failure: `test ${first + 1}: ${reason.slice(0, 300)}` };
}

function endingOf({ ended, code, signal, stderr }: SandboxOutcome, limits: SandboxLimits): string {
  if (ended === "time") return `not done after ${limits.seconds} s`;
  if (ended === "memory") return `more than ${limits.memory / 1e6} MB of memory`;
  if (ended === "output") return `more than ${limits.output / 1000} kB of output`;
  const last = stderr.trim().split("\n").at(-1) ?? "";
  return `the program ended ${signal === null ? `with code ${code}` : `by ${signal}`}${last === "" ? "" : `: ${last}`}`;
}
