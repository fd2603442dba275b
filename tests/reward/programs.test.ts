/**
 * Rewards that live in another process: commands and modules.
 *
 * Runs alone: it measures waiting side by side.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { exitCodeOf, type RlvError } from "../../src/core/errors.ts";
import type { Rollout } from "../../src/core/records.ts";
import { REWARDS } from "../../src/reward/all.ts";
import { moduleReward } from "../../src/reward/module-reward.ts";
import type { BoundReward } from "../../src/reward/registry.ts";
import { Rewards } from "../../src/reward/scoring.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-programs-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

function rollout(text: string, index: number): Rollout {
  return {
    prompt: {
      index,
      text: "Say it.",
      ids: new Int32Array(1),
      fields: { answer: `${index}`, big: 2n ** 70n },
    },
    completion: index % 2,
    ids: Int32Array.of(5, 6),
    logprobs: Float32Array.of(-0.5, -0.25),
    lse: null,
    entropies: null,
    text,
    finish: "eos",
  };
}
const three = [rollout("a", 3), rollout("bb", 4), rollout("c\nc", 5)];

let serial = 0;
function file(ending: string, text: string): string {
  const path = join(scratch, `reward${serial++}.${ending}`);
  writeFileSync(path, text);
  return path;
}

async function scoreWith(name: string, reward: BoundReward, rollouts = three, step = 7) {
  try {
    await reward.start?.();
    const rewards = new Rewards([{ name, weight: 1, reward }]);
    return await rewards.score(rollouts, { step });
  } finally {
    reward.dispose?.();
  }
}

async function failure(work: Promise<unknown>): Promise<RlvError> {
  try {
    await work;
  } catch (error) {
    return error as RlvError;
  }
  throw new Error("nothing was thrown");
}

/** Whether a process runs: one that has ended stays in the table until somebody asks for it. */
const alive = (pid: number) => {
  const listed = Bun.spawnSync(["ps", "-o", "stat=", "-p", String(pid)])
    .stdout.toString()
    .trim();
  return listed !== "" && !listed.startsWith("Z");
};
async function gone(pid: number): Promise<void> {
  for (const end = Date.now() + 5000; alive(pid); await Bun.sleep(10))
    if (Date.now() > end) throw new Error(`process ${pid} lives on`);
}

describe("command", () => {
  const bun = process.execPath;
  /** A program that calls `each` for every line it reads. */
  const program = (each: string) =>
    file(
      "mjs",
      `import { createInterface } from "node:readline";
const say = (o) => console.log(typeof o === "string" ? o : JSON.stringify(o));
const lines = [];
for await (const line of createInterface({ input: process.stdin })) { const q = JSON.parse(line); ${each} }`,
    );
  const run = (each: string, params = {}, rollouts = three) =>
    scoreWith("command", REWARDS.bind("command", { command: [bun, program(each)], ...params }), rollouts);

  test("a line in, a line out; the order of the answers is free", async () => {
    const scored = await run(`
      lines.push({ id: q.id, reward: q.completion.length + q.step, components: { length: q.completion.length, step: q.step },
        details: { prompt: q.prompt, index: q.prompt_index, rollout: q.rollout_index, answer: q.fields.answer, big: q.fields.big,
          ids: q.ids, logprobs: q.logprobs, finish: q.finish } });
      if (lines.length === 3) lines.reverse().map(say);`);
    expect(scored.map((s) => s.reward)).toEqual([8, 9, 10]);
    expect(scored[1]!.components).toEqual({ length: 2, step: 7 });
    expect(scored[0]!.details).toEqual({
      command: {
        ...{ prompt: "Say it.", index: 3, rollout: 1, answer: "3", big: "1180591620717411303424" },
        ...{ ids: [5, 6], logprobs: [-0.5, -0.25], finish: "eos" },
      },
    });
  });

  test("one process for all batches; null is no score", async () => {
    const reward = REWARDS.bind("command", {
      command: `${bun} ${program("lines.push(q); say({ id: q.id, reward: q.completion === 'bb' ? null : lines.length, details: { pid: process.pid } })")}`,
    });
    await reward.start!();
    const rewards = new Rewards([{ name: "command", weight: 1, reward }]);
    const first = await rewards.score(three, { step: 1 });
    const second = await rewards.score(three, { step: 2 });
    expect(first.map((s) => s.reward)).toEqual([1, Number.NaN, 3]);
    expect(second.map((s) => s.reward)).toEqual([4, Number.NaN, 6]);
    const { pid } = first[0]!.details!.command as { pid: number };
    expect(alive(pid)).toBe(true);
    reward.dispose!();
    await gone(pid);
  });

  const bad: [string, string, RegExp][] = [
    [
      "a crash",
      "if (q.completion === 'bb') process.exit(3); say({ id: q.id, reward: 1 });",
      /failed: prompt 4, completion 0: the program ended with exit code 3/,
    ],
    [
      "a signal",
      "process.kill(process.pid, 'SIGSEGV')",
      /prompt 3, completion 1: the program ended by SIGSEGV/,
    ],
    ["garbage", "say('Reward: 5')", /prompt 3, completion 1: the program wrote what is no JSON: "Reward: 5"/],
    ["NaN, which is no JSON", 'say(\'{"id": 1, "reward": NaN}\')', /no JSON/],
    ["another id", "say({ id: 99, reward: 1 })", /answered what was not asked/],
    [
      "an answer twice",
      "say({ id: q.id, reward: 1 }); say({ id: q.id, reward: 1 })",
      /answered what was not asked/,
    ],
    ["no reward", "say({ id: q.id })", /reward command returned \{"id":1\}: prompt 3, completion 1/],
    ["a reward that is text", "say({ id: q.id, reward: 'high' })", /gave "high" as reward: prompt 3/],
    [
      "a component that is text",
      "say({ id: q.id, reward: 1, components: { a: 'x' } })",
      /gave "x" as a: prompt 3/,
    ],
    [
      "a missing answer",
      "if (q.completion !== 'bb') say({ id: q.id, reward: 1 })",
      /took more than 0.4 s: prompt 3/,
    ],
  ];
  test.each(bad)("%s is named", async (_name, each, message) => {
    const error = await failure(run(each, { timeout: 0.4 }));
    expect(error.message).toMatch(/reward command/);
    expect(error.message).toMatch(message);
    expect(exitCodeOf(error)).toBe(1);
  });

  test("a program that is not there", async () => {
    const error = await failure(
      scoreWith("command", REWARDS.bind("command", { command: "no-such-program-here" })),
    );
    expect([error.message, exitCodeOf(error)]).toEqual([
      expect.stringMatching(/no-such-program-here/) as never,
      2,
    ]);
  });

  test("what it started ends with it", async () => {
    const [scored] = await run(
      "const c = (await import('node:child_process')).spawn('sleep', ['60']); say({ id: q.id, reward: 0, details: { pid: c.pid } })",
      {},
      [three[0]!],
    );
    await gone((scored!.details!.command as { pid: number }).pid);
  });
});

describe("module", () => {
  const moduleFile = (text: string) => ({
    name: "my",
    path: file("ts", text),
    sha256: "0".repeat(64),
    before: null,
  });
  const run = (text: string, params = {}, rollouts = three) =>
    scoreWith("my", moduleReward(moduleFile(text), params), rollouts);

  test("a default function of one completion, typed and asynchronous", async () => {
    const text = `
      import type { RewardRollout, RewardModuleContext } from "rlv/reward";
      const shout = (text: string): string => text.toUpperCase();
      export const parameters = { word: "A", worth: 2 };
      export default async function ({ completion, fields }: RewardRollout, { step, parameters }: RewardModuleContext<typeof parameters>) {
        console.log("not an answer");
        await Bun.sleep(1);
        return shout(completion) === parameters.word ? parameters.worth * step + Number(fields.answer) : null;
      }`;
    expect((await run(text)).map((s) => s.reward)).toEqual([17, Number.NaN, Number.NaN]);
    expect((await run(text, { word: "BB", worth: 1 }))[1]!.reward).toBe(11);
  });

  test("a batch function with parts and details", async () => {
    const scored = await run(`
      import type { RewardModule } from "rlv/reward";
      export default {
        batch: (rollouts) => rollouts.map(({ completion, ids, logprobs }, i) => ({
          reward: completion.length - i, components: { length: completion.length, place: -i }, details: { ids, logprobs } })),
      } satisfies RewardModule;`);
    expect(scored.map((s) => s.reward)).toEqual([1, 1, 1]);
    expect(scored[2]!.components).toEqual({ length: 3, place: -2 });
    const { details } = scored[0]!;
    expect(Object.values(details!)).toEqual([{ ids: [5, 6], logprobs: [-0.5, -0.25] }]);
  });

  test("named exports, with waiting calls side by side", async () => {
    const started = performance.now();
    const many = Array.from({ length: 8 }, (_, i) => rollout("x", i));
    const scored = await run(
      "export const concurrency = 8; export async function score({ prompt_index }) { await Bun.sleep(300); return prompt_index }",
      {},
      many,
    );
    expect(scored.map((s) => s.reward)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(performance.now() - started).toBeLessThan(2200);
  });

  const bad: [string, string, RegExp][] = [
    [
      "a throw",
      "export default ({ completion }) => { if (completion === 'bb') throw new RangeError('too long'); return 1 }",
      /failed: prompt 4, completion 0: RangeError: too long/,
    ],
    [
      "NaN",
      "export default ({ completion }) => (completion === 'bb' ? 0 / 0 : 1)",
      /gave NaN as reward: prompt 4, completion 0/,
    ],
    [
      "NaN in a part",
      "export default () => ({ reward: 1, components: { a: NaN } })",
      /gave NaN as a: prompt 3/,
    ],
    [
      "infinity",
      "export function batch(r) { return r.map(() => -Infinity) }",
      /gave -Infinity as reward: prompt 3/,
    ],
    ["nothing", "export default () => {}", /returned "undefined": prompt 3/],
    ["no reward in it", "export default () => ({ components: {} })", /gave "undefined" as reward: prompt 3/],
    ["text", "export default () => 'good'", /returned "good": prompt 3/],
    ["too few", "export const batch = (r) => [1]", /gave 1 results for 3 completions: prompt 4/],
    ["no list", "export const batch = (r) => 1", /gave 1 for 3 completions/],
    [
      "a promise that never ends",
      "export default () => new Promise(() => {})",
      /took more than 1 s: prompt 3, completion 1/,
    ],
    [
      "a loop that never ends",
      "export default () => { for (;;); }",
      /took more than 1 s: prompt 3, completion 1/,
    ],
    [
      "an exit",
      "export default () => process.exit(4)",
      /prompt 3, completion 1: the program ended with exit code 4/,
    ],
  ];
  test.each(bad)("%s is named", async (_name, text, message) => {
    const error = await failure(run(text, { timeout: 1 }));
    expect(error.message).toMatch(/reward my/);
    expect(error.message).toMatch(message);
    expect(exitCodeOf(error)).toBe(1);
  });

  const unfit: [string, string, Record<string, unknown>, RegExp][] = [
    ["a syntax error", "export default (", {}, /reward my: .+reward\d+/],
    ["nothing exported", "const a = 1;", {}, /must export a function/],
    [
      "two functions",
      "export const score = () => 1, batch = () => [1];",
      {},
      /exports batch, score; it must export a function/,
    ],
    [
      "a parameter of another name",
      "export const parameters = { word: 'a' }; export default () => 1",
      { wrd: "b" },
      /unknown parameter wrd; parameters: word/,
    ],
    [
      "a parameter of another type",
      "export const parameters = { word: 'a' }; export default () => 1",
      { word: 1 },
      /word expects a string, given 1/,
    ],
    ["a wrong timeout", "export default () => 1", { timeout: -1 }, /timeout expects seconds/],
    ["a throw as it loads", "throw new Error('no key')", {}, /no key/],
    ["an import that is not there", "import './nowhere.ts'; export default () => 1", {}, /nowhere/],
  ];
  test.each(unfit)("%s is refused at the start", async (_name, text, params, message) => {
    const start = async () => {
      const reward = moduleReward(moduleFile(text), params);
      await reward.start!().finally(() => reward.dispose!());
    };
    const error = await failure(start());
    expect([error.message, exitCodeOf(error)]).toEqual([expect.stringMatching(message) as never, 2]);
  });

  test("a module in a loop ends with the process that waits for it", async () => {
    const looping = moduleFile("export default () => { console.error('pid ' + process.pid); for (;;); }");
    const waiter = file(
      "ts",
      `import { moduleReward } from ${JSON.stringify(join(import.meta.dir, "../../src/reward/module-reward.ts"))};
       const reward = moduleReward(${JSON.stringify(looping)}, {});
       await reward.start();
       const rollout = { prompt: { index: 0, text: "", ids: [], fields: {} }, completion: 0, ids: [], logprobs: [], text: "", finish: "eos" };
       await reward.each(rollout, { step: 1 });`,
    );
    const parent = Bun.spawn([process.execPath, waiter], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    let said = "";
    for await (const piece of parent.stderr) {
      said += new TextDecoder().decode(piece);
      if (/pid \d+\n/.test(said)) break;
    }
    const pid = Number(/pid (\d+)/.exec(said)![1]);
    expect(alive(pid)).toBe(true);
    parent.kill("SIGKILL");
    await gone(pid);
  });
});
