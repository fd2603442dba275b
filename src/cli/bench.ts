import type { BenchModule, BenchResult } from "../config/contracts.ts";
import { resolveOptions } from "../config/resolve.ts";
import {
  BENCH_NAMES,
  type BenchName,
  type BenchOptions,
  benchSchemas,
  MEASURING,
} from "../config/schema-inference.ts";
import { didYouMean } from "../config/suggest.ts";
import { UsageError } from "../core/errors.ts";
import { programArgv } from "../run/engine-process.ts";
import { type Command, type Flag, JSON_FLAG, printJson } from "./command.ts";
import { flagsOf } from "./flags.ts";
import { talk } from "./talk.ts";

/** Flags that every bench has: what `rlv bench` without a name takes. */
const COMMON = ["steps", "device", "threads", "dtype", "seed"];

function named(argv: readonly string[]): BenchName | undefined {
  const first = argv[0];
  return BENCH_NAMES.find((name) => name === first);
}

export const command: Command = {
  name: "bench",
  usage: "bench [NAME]",
  maxArgs: 1,
  completes: { words: BENCH_NAMES },
  summary: "measure speed, each figure with its fraction of what this machine can do",
  examples: (argv) => [
    named(argv) === undefined ? "rlv bench grpo --json" : `rlv bench ${named(argv)} --json`,
  ],
  notes: () => [
    `The name comes first: ${BENCH_NAMES.join(", ")}.`,
    "rlv bench NAME --help shows its flags. Without a name: those that take minutes at most.",
    "metal-model estimates times on Apple's GPUs from counts of software Metal: scripts/build-native --soft first.",
  ],
  flags(argv): Flag[] {
    const name = named(argv);
    if (name !== undefined) return [...flagsOf(benchSchemas[name]), JSON_FLAG];
    return [...flagsOf(benchSchemas.startup).filter((flag) => COMMON.includes(flag.name)), JSON_FLAG];
  },
  async run({ args, flags, json }) {
    const asked = args[0];
    const name = named(args);
    if (asked !== undefined && name === undefined)
      throw new UsageError(
        `unknown bench ${JSON.stringify(asked)}`,
        undefined,
        didYouMean(asked, BENCH_NAMES, `the benches are ${BENCH_NAMES.join(", ")}`),
      );
    const names = name === undefined ? MEASURING : [name];
    const options = names.map((each) =>
      resolveOptions<BenchOptions<BenchName>>(benchSchemas[each], flags, `bench ${each}`),
    );
    const { runBench }: BenchModule = await import("../run/bench/index.ts");
    const context = { talk, program: programArgv(Bun.main) };
    const results: BenchResult[] = [];
    for (const [i, each] of names.entries()) {
      const result = await runBench(each, options[i]! as never, context);
      results.push(result);
      if (!json) process.stdout.write(`${table(result)}\n`);
    }
    if (json) printJson(name === undefined ? { benches: results } : results[0]);
    return 0;
  },
};

/** Names and values, one a line; lists of rows (ops) as rows. */
function table(result: BenchResult): string {
  return Object.entries(result)
    .map(([key, value]) => {
      if (!Array.isArray(value)) return `${key.padEnd(24)}${cell(value)}`;
      return [key, ...value.map((row) => `  ${cell(row)}`)].join("\n");
    })
    .join("\n");
}

function cell(value: unknown): string {
  if (typeof value === "number") return String(Number(value.toPrecision(5)));
  if (value === null || typeof value !== "object") return String(value);
  return Object.entries(value)
    .map(([key, inner]) => `${key} ${cell(inner)}`)
    .join("  ");
}
