/**
 * The hidden command `__reward`: a process that runs a module of rewards, so that one which hangs can be ended. Its last
 * argument names the module; lines of JSON come on stdin and go to stdout (line-program.ts). The first question
 * is answered with what the module is.
 */
import { createInterface } from "node:readline";
import type { RewardModule, RewardModuleResult, RewardRollout } from "./module.ts";
import { numberText } from "./rollout-row.ts";

const answer = process.stdout.write.bind(process.stdout);
// What a module prints is for people; answers alone go to stdout.
process.stdout.write = process.stderr.write.bind(process.stderr) as typeof process.stdout.write;
for (const level of ["log", "info", "debug", "dir", "table"] as const) console[level] = console.error;

/** A loop that never ends cannot see that nobody waits for it any more: another thread does. */
const GUARD = `const parent = process.ppid; setInterval(() => process.ppid === parent || process.kill(process.pid, "SIGKILL"), 500);`;
const guard = new Worker(URL.createObjectURL(new Blob([GUARD], { type: "text/javascript" })));
// Types of the page bring a browser's Worker.
(guard as unknown as Bun.Worker).unref();

type Question =
  | { readonly id: number; readonly params: Readonly<Record<string, unknown>> }
  | { readonly id: number; readonly step: number; readonly rollouts: readonly RewardRollout[] };

let loaded: RewardModule | undefined;
let parameters: Readonly<Record<string, unknown>> = {};

async function load(path: string): Promise<RewardModule> {
  const exports = (await import(path)) as Record<string, unknown>;
  const given = exports.default ?? exports;
  const found = (typeof given === "function" ? { ...exports, score: given } : given) as Record<
    string,
    unknown
  >;
  const { score, batch, concurrency } = found;
  const functions = [score, batch].filter((value) => typeof value === "function");
  if (functions.length !== 1)
    throw new Error(
      `it exports ${Object.keys(found).join(", ") || "nothing"}; it must export a function \`score\` (or default) or \`batch\``,
    );
  if (concurrency !== undefined && !(Number.isInteger(concurrency) && (concurrency as number) > 0))
    throw new Error(`concurrency is ${concurrency}, not a whole number from 1`);
  return found as RewardModule;
}

/** The module's defaults with what the config says otherwise. */
function parametersOf(
  defaults: Readonly<Record<string, unknown>> = {},
  given: Readonly<Record<string, unknown>>,
): Readonly<Record<string, unknown>> {
  for (const [name, value] of Object.entries(given)) {
    const known = Object.keys(defaults).join(", ") || "none";
    if (!Object.hasOwn(defaults, name)) throw new Error(`unknown parameter ${name}; parameters: ${known}`);
    const [want, have] = [typeof defaults[name], typeof value];
    // null as a default says nothing of the type.
    if (defaults[name] !== null && want !== have)
      throw new Error(`parameter ${name} expects a ${want}, given ${JSON.stringify(value)}`);
  }
  return Object.freeze({ ...defaults, ...given });
}

async function handle(question: Question): Promise<Record<string, unknown>> {
  if ("params" in question) {
    loaded = await load(process.argv.at(-1)!);
    parameters = parametersOf(loaded.parameters, question.params);
    return { batch: loaded.batch !== undefined, concurrency: loaded.concurrency ?? 1 };
  }
  const { step, rollouts } = question;
  const context = { step, parameters };
  const { score, batch } = loaded!;
  const results = batch ? await batch(rollouts, context) : [await score!(rollouts[0]!, context)];
  return {
    results: Array.isArray(results) ? results.map(resultOf) : (numberText(results) ?? String(results)),
  };
}

function resultOf(result: RewardModuleResult | undefined): unknown {
  if (typeof result === "number" || result === null) return { reward: numberText(result) };
  if (typeof result !== "object") return String(result);
  const components = Object.entries(result.components ?? {});
  return {
    ...result,
    // undefined, which JSON would leave out, is no reward.
    reward: result.reward === undefined ? "undefined" : numberText(result.reward),
    components: Object.fromEntries(components.map(([name, value]) => [name, numberText(value)])),
  };
}

async function serve(): Promise<never> {
  for await (const line of createInterface({ input: process.stdin })) {
    const question = JSON.parse(line) as Question;
    void handle(question)
      .catch((error: unknown) => ({
        error: error instanceof Error && error.name === "Error" ? error.message : String(error),
      }))
      .then((said) => answer(`${JSON.stringify({ id: question.id, ...said })}\n`));
  }
  process.exit(0);
}

void serve();
