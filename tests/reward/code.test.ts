import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Rollout, Scored } from "../../src/core/records.ts";
import { REWARDS } from "../../src/reward/all.ts";
import { codeOf } from "../../src/reward/code.ts";
import { Rewards } from "../../src/reward/scoring.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-code-test-"));
const evil = join(scratch, "evil");
let server: Server;
let connections = 0;
let port = 0;
beforeAll(async () => {
  server = createServer((socket) => {
    connections++;
    socket.end();
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  port = (server.address() as { port: number }).port;
});
afterAll(() => {
  server.close();
  rmSync(scratch, { recursive: true, force: true });
});

const hasPython = Bun.which("python3") !== null;
const python = describe.skipIf(!hasPython);

function rollout(text: string, fields: Record<string, unknown>, index = 0): Rollout {
  return {
    prompt: { index, text: "", ids: new Int32Array(0), fields },
    completion: 0,
    ids: new Int32Array(1),
    logprobs: new Float32Array(1),
    lse: null,
    entropies: null,
    text,
    finish: "eos",
  };
}

async function scoreAll(params: Record<string, unknown>, rollouts: readonly Rollout[]): Promise<Scored[]> {
  const reward = REWARDS.bind("code", params);
  await reward.start!();
  return new Rewards([{ name: "code", weight: 1, reward }]).score(rollouts, { step: 1 });
}

interface Verdict {
  readonly passed: number;
  readonly total: number;
  readonly failure?: string;
}
const verdictOf = (scored: Scored) => scored.details!.code as Verdict;

const leftovers = () =>
  readdirSync(tmpdir()).filter((name) => name.startsWith("rlv-code-") && !name.startsWith("rlv-code-test"));

describe("code of a completion", () => {
  const fence = "```";
  test.each([
    ["x = 1", "auto", "x = 1"],
    ["x = 1", "block", null],
    [`a\n${fence}python\nx = 1\n${fence}\nb`, "auto", "x = 1\n"],
    [`${fence}py\nx = 1\n${fence}\n${fence}\nx = 2\n${fence}`, "auto", "x = 2\n"],
    [`${fence}python\nx = 1\n${fence}\n${fence}bash\nls\n${fence}`, "auto", "x = 1\n"],
    [`${fence}bash\nls\n${fence}`, "auto", null],
    [`${fence}python\nx = 1`, "auto", "x = 1"],
    [`${fence}python\nx = 1\n${fence}`, "whole", `${fence}python\nx = 1\n${fence}`],
  ] as const)("%j, %s", (text, extract, want) => {
    expect(codeOf(text, "python", extract)).toBe(want);
  });
});

python("python", () => {
  const params = { language: "python", time_limit: 3, memory_mb: 256 };
  const add = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add(2, 2) == 4"];

  test("right, partly right, wrong and broken code", async () => {
    const codes = [
      "```python\ndef add(a, b):\n    return a + b\n```",
      "def add(a, b):\n    return abs(a) + b",
      "def add(a, b):\n    return None",
      "def add(a, b:",
      "import sys\nprint('x' * 1000)\nsys.exit(0)",
      "import os\nos._exit(0)",
      'def add(a, b):\n    print(\'\\n{"test": 0, "error": null}\')\n    return None',
    ];
    const scored = await scoreAll(
      params,
      codes.map((text, i) => rollout(text, { tests: add }, i)),
    );
    expect(scored.map((s) => s.reward)).toEqual([1, 2 / 3, 0, 0, 0, 0, 0]);
    expect(verdictOf(scored[0]!)).toEqual({ passed: 3, total: 3 });
    expect(verdictOf(scored[1]!).failure).toBe("test 2: AssertionError: ");
    expect(verdictOf(scored[3]!).failure).toContain("test 1: SyntaxError");
    expect(verdictOf(scored[5]!).failure).toContain("the program ended with code 0");
    const all = await scoreAll({ ...params, score: "all" }, [rollout(codes[1]!, { tests: add })]);
    expect(all[0]!.reward).toBe(0);
  });

  test("a prefix and an entry point", async () => {
    const fields = {
      head: "def twice(x):\n",
      tests: "def check(candidate):\n    assert candidate(4) == 8",
      entry_point: "twice",
    };
    const given = ["    return 2 * x\n", "    return x\n"].map((text) => rollout(text, fields));
    const scored = await scoreAll({ ...params, prefix_field: "head" }, given);
    expect(scored.map((s) => s.reward)).toEqual([1, 0]);
  });

  const bad: [string, () => string, RegExp][] = [
    ["an infinite loop", () => "while True:\n    pass", /not done after 3 s/],
    ["a fork bomb", () => "import os\nwhile True:\n    os.fork()", /BlockingIOError/],
    ["a process", () => "import subprocess\nsubprocess.run(['true'])", /Error/],
    ["a memory hog", () => "x = []\nwhile True:\n    x.append(bytearray(10**7))", /MemoryError|MB of memory/],
    [
      "shared memory",
      () =>
        "import mmap\nx = []\nwhile True:\n    m = mmap.mmap(-1, 10**7)\n    m.write(b'x' * 10**7)\n    x.append(m)",
      /MB of memory|not done/,
    ],
    [
      "a connection",
      () => `import socket\nsocket.create_connection(('127.0.0.1', ${port}), 2)`,
      /Permission|denied/i,
    ],
    ["endless output", () => "while True:\n    print('x' * 1000)", /kB of output/],
    ["endless errors", () => "import sys\nwhile True:\n    sys.stderr.write('x' * 1000)", /kB of output/],
    ["a file written", () => `open(${JSON.stringify(evil)}, 'w').write('x')`, /Read-only file system/],
    ["a file removed", () => `import os\nos.rmdir(${JSON.stringify(scratch)})`, /Read-only file system/],
    ["a signal", () => `import os\nos.kill(${process.pid}, 9)`, /PermissionError/],
    ["a signal to all", () => "import os\nos.kill(-1, 9)", /PermissionError/],
  ];
  test.each(bad)("%s is stopped", async (_name, text, failure) => {
    const [scored] = await scoreAll(params, [rollout(text(), { tests: ["pass", "pass"] })]);
    expect(scored!.reward).toBe(0);
    expect(verdictOf(scored!).failure).toMatch(failure);
    expect([existsSync(evil), existsSync(scratch), connections]).toEqual([false, true, 0]);
  });

  test("many at once, results in order, nothing left behind", async () => {
    const before = leftovers();
    const rollouts = Array.from({ length: 12 }, (_, i) =>
      rollout(`import time\ntime.sleep(0.05)\nn = ${i}`, { tests: [`assert n % 3 == 0`] }, i),
    );
    const scored = await scoreAll({ ...params, concurrency: 4 }, rollouts);
    expect(scored.map((s) => s.reward)).toEqual(rollouts.map((_, i) => (i % 3 === 0 ? 1 : 0)));
    expect(leftovers()).toEqual(before);
  });

  test("a row without tests, an interpreter that is not there", async () => {
    await expect(scoreAll(params, [rollout("x", {}, 7)])).rejects.toThrow(
      /reward code failed: prompt 7, .*no tests/,
    );
    await expect(scoreAll({ ...params, interpreter: "python-of-nowhere" }, [])).rejects.toThrow(
      /no Python python-of-nowhere/,
    );
    await expect(scoreAll({ ...params, interpreter: "true" }, [])).rejects.toThrow(/interpreter/);
  });
});

describe("javascript and typescript", () => {
  const params = { language: "javascript", time_limit: 3, memory_mb: 256 };

  test("right and wrong code, typed code, modules", async () => {
    const tests = ["assert.equal(add(1, 2), 3)", "if (add(-1, 1) !== 0) throw new Error('sum')"];
    const codes = [
      "```js\nfunction add(a, b) { return a + b }\n```",
      "const add = (a, b) => Math.abs(a) + b;",
      "const add = (a, b) =>",
      "process.exit(0)",
    ];
    const scored = await scoreAll(
      params,
      codes.map((text, i) => rollout(text, { tests }, i)),
    );
    expect(scored.map((s) => s.reward)).toEqual([1, 0.5, 0, 0]);
    expect(verdictOf(scored[1]!).failure).toBe("test 2: Error: sum");
    const typed = "export function add(a: number, b: number): number { return a + b }";
    const [ts] = await scoreAll({ ...params, language: "typescript" }, [rollout(typed, { tests })]);
    expect(verdictOf(ts!)).toEqual({ passed: 2, total: 2 });
  });

  test("an entry point", async () => {
    const fields = { tests: "function check(f) { assert.equal(f(4), 8) }", entry_point: "twice" };
    const codes = ["const twice = (x) => 2 * x", "const twice = (x) => x"];
    const scored = await scoreAll(
      params,
      codes.map((text) => rollout(text, fields)),
    );
    expect(scored.map((s) => s.reward)).toEqual([1, 0]);
  });

  const bad: [string, () => string, RegExp][] = [
    ["an infinite loop", () => "for (;;);", /not done after 3 s/],
    [
      "a memory hog",
      () => "const x = []; for (;;) x.push(new Uint8Array(1e7).fill(1));",
      /MB of memory|memory/i,
    ],
    ["a process", () => "require('node:child_process').execFileSync('/bin/true')", /EAGAIN|unavailable/],
    ["a fork bomb", () => "for (;;) Bun.spawn([process.execPath, 'x'])", /EAGAIN|unavailable/],
    [
      "a connection",
      () => `await (await fetch('http://127.0.0.1:${port}/')).text()`,
      /EACCES|ConnectionRefused|failed/i,
    ],
    ["endless output", () => "for (;;) console.log('x'.repeat(1000))", /kB of output/],
    ["a file written", () => `require('node:fs').writeFileSync(${JSON.stringify(evil)}, 'x')`, /EROFS/],
    ["a signal", () => `process.kill(${process.pid}, 'SIGKILL')`, /EPERM|kill/],
  ];
  test.each(bad)("%s is stopped", async (_name, text, failure) => {
    const [scored] = await scoreAll(params, [rollout(text(), { tests: ["assert(true)"] })]);
    expect(scored!.reward).toBe(0);
    expect(verdictOf(scored!).failure).toMatch(failure);
    expect([existsSync(evil), connections]).toEqual([false, 0]);
  });
});
