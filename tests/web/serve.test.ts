import { afterEach, describe, expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { RunList } from "../../src/web/api.ts";
import { makeRun, steps } from "../report/fixture.ts";
import { childrenOf, program, Scratch, Site } from "./site.ts";

const scratches: Scratch[] = [];
afterEach(() => {
  for (const scratch of scratches.splice(0)) scratch[Symbol.dispose]();
});

function folder(): string {
  const scratch = new Scratch();
  scratches.push(scratch);
  return scratch.dir;
}

/** `rlv ARGS` with what it has said so far. */
class Program implements AsyncDisposable {
  text = "";
  readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  readonly #read: Promise<unknown>;

  constructor(args: readonly string[], cwd: string) {
    this.child = Bun.spawn([...program, ...args], { cwd, stdio: ["ignore", "pipe", "pipe"] });
    const read = async (stream: ReadableStream<Uint8Array>) => {
      const decoder = new TextDecoder();
      for await (const chunk of stream) this.text += decoder.decode(chunk, { stream: true });
    };
    this.#read = Promise.all([read(this.child.stdout), read(this.child.stderr)]);
  }

  async said(pattern: RegExp): Promise<RegExpExecArray> {
    for (const end = Date.now() + 60_000; ; await Bun.sleep(20)) {
      const found = pattern.exec(this.text);
      if (found !== null) return found;
      if (Date.now() > end || this.child.exitCode !== null)
        throw new Error(`${pattern} was not said: ${this.text}`);
    }
  }

  async ended(): Promise<number> {
    const code = await this.child.exited;
    await this.#read;
    return code;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill("SIGKILL");
    await this.child.exited;
  }
}

const ADDRESS = /http:\/\/[\w.:[\]]+\/\?token=[\w-]+/;

/** The API as a script asks it. */
async function runsAt(address: string): Promise<RunList> {
  const url = new URL(address);
  const headers = { authorization: `Bearer ${url.searchParams.get("token")}` };
  return (await (await fetch(`${url.origin}/api/runs`, { headers })).json()) as RunList;
}

/** Whether somebody still listens there. */
const listens = (address: string): Promise<boolean> =>
  fetch(new URL(address).origin).then(
    () => true,
    () => false,
  );

async function gone(address: string): Promise<void> {
  for (const end = Date.now() + 15_000; await listens(address); await Bun.sleep(50))
    if (Date.now() > end) throw new Error("the server is still there");
}

const alive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

describe("rlv serve", () => {
  test("says where the page is, answers, and ends with Ctrl-C and all it started", async () => {
    const dir = folder();
    const run = makeRun(join(dir, "runs"), "one", { rows: steps(3) });
    // Without a folder: those that recipes write to. A run by itself: its neighbours.
    for (const args of [[], ["runs"], [run]]) {
      await using served = new Program(["serve", ...args, "--port", "0", "--no_open"], dir);
      const [address] = await served.said(ADDRESS);
      expect((await runsAt(address)).runs.map(({ name, step }) => [name, step])).toEqual([["one", 3]]);
      expect((await fetch(address, { redirect: "manual" })).status).toBe(303);
      const children = childrenOf(served.child.pid, "__data");
      expect(children.length).toBe(1);
      served.child.kill("SIGINT");
      expect(await served.ended()).toBe(0);
      for (const end = Date.now() + 5000; children.some(alive); await Bun.sleep(20))
        expect(Date.now()).toBeLessThan(end);
    }
  });

  test("a port in use is an error when it was asked for, and passed over when it was not", async () => {
    const dir = folder();
    mkdirSync(join(dir, "runs"));
    await using first = new Program(["serve", "--no_open", "--json"], dir);
    const { port } = JSON.parse((await first.said(/\{.*\}/))[0]) as { port: number };
    await using second = new Program(["serve", "--no_open", "--json"], dir);
    const other = JSON.parse((await second.said(/\{.*\}/))[0]) as { port: number };
    expect(other.port).toBeGreaterThan(port);
    await using refused = new Program(["serve", "--no_open", "--port", String(port)], dir);
    expect(await refused.ended()).toBe(2);
    expect(refused.text).toBe(
      `rlv: error: the port is in use: 127.0.0.1:${port}: choose another with --port, 0 takes any that is free\n`,
    );
  });

  test("listening for others is said, and asks for the token and a Host of this machine all the same", async () => {
    const dir = folder();
    await using served = new Program(["serve", dir, "--host", "0.0.0.0", "--port", "0", "--no_open"], dir);
    const [address] = await served.said(ADDRESS);
    expect(served.text).toContain("warning: listening on 0.0.0.0");
    const { origin, port } = new URL(address);
    expect((await fetch(`${origin}/api/runs`)).status).toBe(401);
    const headers = { host: `evil.example:${port}` };
    expect((await fetch(address, { headers, redirect: "manual" })).status).toBe(403);
    await using local = new Program(["serve", dir, "--port", "0", "--no_open"], dir);
    await local.said(ADDRESS);
    expect(local.text).not.toContain("warning");
  });

  test("bad usage", async () => {
    const dir = folder();
    for (const [args, part] of [
      [["nowhere"], "no such folder: nowhere"],
      [["--port", "70000"], "port expects"],
      [["--host", "203.0.113.7", "--port", "0"], "cannot listen"],
    ] as const) {
      await using served = new Program(["serve", ...args, "--no_open"], dir);
      expect(await served.ended()).toBe(2);
      expect(served.text).toContain(part);
    }
  });
});

describe("rlv train --ui", () => {
  const JOB = ["train", "--ui", "--eval_every", "-1", "--output_dir", "runs", "--run_name", "shown"];

  test("the page is there while the run is, and ends with it", async () => {
    await using training = new Program([...JOB, "--num_train_steps", "6"], folder());
    const [address] = await training.said(ADDRESS);
    const { runs } = await runsAt(address);
    expect(runs.map(({ name, state }) => [name, state])).toEqual([["shown", "live"]]);
    expect(await training.ended()).toBe(0);
    await gone(address);
    expect(training.text).not.toContain("the page has ended");
  });

  test("a page that dies is a line, and training goes on; training that is killed takes the page with it", async () => {
    await using training = new Program([...JOB, "--num_train_steps", "2000", "--json"], folder());
    const [address] = await training.said(ADDRESS);
    await training.said(/step \d+\//);
    const [server] = childrenOf(training.child.pid, "__ui");
    process.kill(server!, "SIGKILL");
    await training.said(/the page has ended, training goes on/);
    expect(await listens(address)).toBe(false);
    const said = training.text.length;
    await Bun.sleep(300);
    training.child.kill("SIGINT");
    expect(await training.ended()).toBe(130);
    expect(training.text.slice(said)).toContain("stopping after this step");

    await using killed = new Program([...JOB, "--num_train_steps", "2000"], folder());
    const [second] = await killed.said(ADDRESS);
    await killed.said(/step \d+\//);
    killed.child.kill("SIGKILL");
    await gone(second);
  });

  test("Ctrl-C at the terminal reaches all of them: the run is saved, then the page ends", async () => {
    await using training = new Program([...JOB, "--num_train_steps", "2000"], folder());
    const [address] = await training.said(ADDRESS);
    await training.said(/step \d+\//);
    const { pid } = training.child;
    const all = [pid, ...["__engine", "__ui"].flatMap((word) => childrenOf(pid, word))];
    expect(all.length).toBe(3);
    for (const each of all) process.kill(each, "SIGINT");
    expect(await training.ended()).toBe(130);
    expect(training.text).toContain("go on with rlv train --resume_from");
    await gone(address);
  });
});

test("evaluation of a checkpoint is a command of its own, whose end and words are told", async () => {
  const dir = folder();
  makeRun(join(dir, "runs"), "one", { rows: steps(3), checkpoints: ["step-3"], outcome: 0 });
  const script = join(dir, "program.ts");
  // Takes the place of the program for everything but reading runs.
  await Bun.write(
    script,
    `const [command, dir, json] = process.argv.slice(2);
if (command === "__data") await import(${JSON.stringify(program[1])});
else {
  console.error("looking at " + dir.split("/").slice(-2).join("/"));
  if (json === "--json") console.log(JSON.stringify({ reward: 0.5 }));
  if (await Bun.file(${JSON.stringify(join(dir, "wait"))}).exists()) await Bun.sleep(60_000);
}`,
  );
  await using site = new Site(join(dir, "runs"), { program: [process.execPath, script] });
  const { runs } = await site.get<RunList>("/api/runs");
  const evaluate = () => site.post(`/api/runs/${runs[0]!.id}/checkpoints/step-3/evaluate`, {});
  type Job = { id: string; state: string; lines: string[]; result: unknown };
  const job = async (id: string, state: string): Promise<Job> => {
    for (const end = Date.now() + 20_000; ; await Bun.sleep(20)) {
      const found = (await site.get<{ jobs: Job[] }>("/api/jobs")).jobs.find((each) => each.id === id)!;
      if (found.state === state) return found;
      if (Date.now() > end) throw new Error(JSON.stringify(found));
    }
  };
  const first = (await (await evaluate()).json()) as Job;
  expect(await job(first.id, "done")).toMatchObject({
    lines: ["looking at checkpoints/step-3"],
    result: { reward: 0.5 },
  });
  await Bun.write(join(dir, "wait"), "");
  const [a, b, c] = [await evaluate(), await evaluate(), await evaluate()];
  expect([a.status, b.status, c.status]).toEqual([200, 200, 409]);
  for (const response of [a, b]) {
    const { id } = (await response.json()) as Job;
    expect((await site.post(`/api/jobs/${id}/stop`, {})).status).toBe(200);
    await job(id, "stopped");
  }
});
