/**
 * rlv and its peers on the same work, run in turns on one machine, printed as a Markdown table of medians.
 *
 *   bench/compare [--python PYTHON] [--peers FOLDER] [--work FOLDER] [--rounds N] [--only PATTERN] [--resume]
 *                 [--timeout SECONDS]
 *
 * PYTHON (or RLV_PEERS_PYTHON) has torch, transformers, trl, peft, gguf, llama_cpp; what is missing is said so. FOLDER of
 * --peers has the peers' scripts (default ../shared/peers beside the checkout). Model files are made in --work (default
 * rlv-peers in TMPDIR), where results.jsonl keeps each run: --resume goes on after an interruption.
 */
import { appendFileSync, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { type PeerRun, peerRuns, type Row, rows } from "./compare-rows.ts";

const root = resolve(import.meta.dir, "..");

const { values: flags } = parseArgs({
  options: {
    python: { type: "string", default: process.env.RLV_PEERS_PYTHON ?? "" },
    peers: { type: "string", default: resolve(root, "../shared/peers") },
    work: { type: "string", default: join(process.env.TMPDIR ?? tmpdir(), "rlv-peers") },
    rounds: { type: "string", default: "3" },
    only: { type: "string", default: "" },
    timeout: { type: "string", default: "1200" },
    resume: { type: "boolean", default: false },
  },
});
const say = (line: string) => process.stderr.write(`${line}\n`);
const work = resolve(flags.work);
const rounds = Number(flags.rounds);
const timeout = Number(flags.timeout);
if (!Number.isInteger(rounds) || rounds < 1 || !(timeout > 0)) {
  say("rlv: error: --rounds and --timeout: bench/compare: give whole numbers above 0");
  process.exit(2);
}
mkdirSync(work, { recursive: true });
const journal = join(work, "results.jsonl");

/** One child process that has ended: figures, or why there are none. */
interface Outcome {
  readonly run: string;
  readonly round: number;
  readonly figures: Readonly<Record<string, number>>;
  readonly error: string | null;
}

const outcomes: Outcome[] = [];
if (flags.resume && existsSync(journal)) {
  for (const line of readFileSync(journal, "utf8").split("\n")) {
    // The last line of a killed run may be cut.
    if (!line.endsWith("}")) continue;
    const outcome: Outcome = JSON.parse(line);
    if (outcome.error === null) outcomes.push(outcome);
  }
  say(`${outcomes.length} runs of ${journal} count`);
} else rmSync(journal, { force: true });

async function child(command: readonly string[], cwd: string) {
  const started = Bun.spawn([...command], {
    cwd,
    env: { ...process.env, HF_HUB_OFFLINE: "1", TOKENIZERS_PARALLELISM: "false" },
    stdout: "pipe",
    stderr: "pipe",
    timeout: timeout * 1000,
    killSignal: "SIGKILL",
  });
  const [out, err] = await Promise.all([
    new Response(started.stdout).text(),
    new Response(started.stderr).text(),
  ]);
  const code = await started.exited;
  if (code !== 0) {
    const why = started.signalCode === "SIGKILL" ? `more than ${timeout} s, or killed` : `exit code ${code}`;
    throw new Error(`${why}: ${err.trim().split("\n").at(-1)?.slice(0, 200)}`);
  }
  return { out, peak: started.resourceUsage()?.maxRSS ?? 0 };
}

async function once(run: string, round: number, body: () => Promise<Record<string, number>>): Promise<void> {
  if (outcomes.some((o) => o.run === run && o.round === round)) return;
  // What is not there will not be there in the next round.
  if (outcomes.some((o) => o.run === run && o.error !== null)) return;
  const begin = performance.now();
  let outcome: Outcome;
  try {
    outcome = { run, round, figures: await body(), error: null };
  } catch (error) {
    outcome = { run, round, figures: {}, error: (error as Error).message };
  }
  outcomes.push(outcome);
  appendFileSync(journal, `${JSON.stringify(outcome)}\n`);
  const took = ((performance.now() - begin) / 1000).toFixed(0);
  say(`round ${round} ${run}: ${outcome.error ?? "done"} (${took} s)`);
}

/** Every number of the result. */
async function runRlv(args: string): Promise<Record<string, number>> {
  const { out } = await child([join(root, "rlv"), "bench", ...args.split(" "), "--json"], work);
  return Object.fromEntries(
    Object.entries(JSON.parse(out)).filter(
      (entry): entry is [string, number] => typeof entry[1] === "number",
    ),
  );
}

const checked = new Map<string, string | null>();
/** Why PYTHON cannot import a module; null if it can. */
async function missing(module: string): Promise<string | null> {
  if (!checked.has(module)) {
    const answer = flags.python
      ? await child([flags.python, "-c", `import ${module}`], work).then(
          () => null,
          (error) => `no ${module} in ${flags.python}: ${error.message}`,
        )
      : "no Python: give --python, or set RLV_PEERS_PYTHON";
    checked.set(module, answer);
  }
  return checked.get(module)!;
}

async function python(script: string, ...args: readonly string[]) {
  const own = join(root, "bench", script);
  const path = existsSync(own) ? own : join(flags.peers, script);
  if (!existsSync(path)) throw new Error(`no ${script} in ${flags.peers}: give --peers`);
  return child([flags.python, path, ...args], work);
}

async function makeFile(file: string): Promise<void> {
  if (existsSync(join(work, file))) return;
  if (!file.endsWith(".gguf")) {
    await python("make_models.py");
    return;
  }
  await makeFile("qwen06");
  await python("make_gguf.py", "qwen06", file, file.includes("q8") ? "q8_0" : "bf16");
}

async function runPeer(run: PeerRun): Promise<Record<string, number>> {
  for (const module of run.modules) {
    const why = await missing(module);
    if (why) throw new Error(why);
  }
  for (const file of run.files) await makeFile(file);
  const { out, peak } = await python(run.script, ...run.args);
  return { peak_bytes: peak, ...run.figures(out) };
}

const pattern = new RegExp(flags.only);
const chosen = rows.filter((row) => pattern.test(row.name) || pattern.test(row.work));
if (chosen.length === 0) {
  say(`rlv: error: no row matches ${flags.only}: --only: one of ${rows.map((row) => row.name).join(", ")}`);
  process.exit(2);
}
for (let round = 1; round <= rounds; round++) {
  for (const row of chosen) {
    await once(`rlv ${row.args}`, round, () => runRlv(row.args));
    const peer = peerRuns[row.peer]!;
    await once(`peer ${row.peer}`, round, () => runPeer(peer));
  }
}

const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const mid = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[mid]! : (sorted[mid - 1]! + sorted[mid]!) / 2;
};

function tableLine(row: Row): string {
  const of = (run: string, ...figures: readonly string[]): number | null => {
    const values = outcomes
      .filter((o) => o.run === run && o.error === null)
      .map((o) => figures.reduce((sum, f) => sum + o.figures[f]! * (f.endsWith("_ms") ? 1e-3 : 1), 0));
    return values.length > 0 ? median(values) : null;
  };
  const why = (run: string) => outcomes.find((o) => o.run === run && o.error !== null)?.error ?? "not run";
  const [ours, theirs] = [`rlv ${row.args}`, `peer ${row.peer}`];
  const [a, b] = [of(ours, ...row.fields), of(theirs, row.figure)];
  const figure = (value: number | null, run: string) =>
    value === null ? why(run) : `${value.toPrecision(3)} ${row.unit}`;
  const ratio = a === null || b === null ? null : row.unit === "tok/s" ? a / b : b / a;
  const bytes = (value: number | null) => (value === null ? "" : `${Math.round(value / 1e6)} MB`);
  const fraction = of(ours, "fraction_of_limit");
  return `| ${[
    row.work,
    figure(a, ours),
    `${figure(b, theirs)} (${peerRuns[row.peer]!.title})`,
    ratio === null ? "" : `**${ratio.toFixed(2)}**`,
    bytes(of(ours, "peak_bytes")),
    bytes(of(theirs, "peak_bytes")),
    fraction === null ? "" : `${(100 * fraction).toFixed(0)} %`,
  ].join(" | ")} |`;
}

process.stdout.write(
  [
    `Medians of ${rounds} ${rounds === 1 ? "round" : "rounds"} in turns; a ratio above 1 is in favour of rlv.`,
    "",
    "| work | rlv | peer | ratio | memory of rlv | memory of the peer | rlv's fraction of the machine's limit |",
    "|---|---|---|---|---|---|---|",
    ...chosen.map(tableLine),
    "",
  ].join("\n"),
);
