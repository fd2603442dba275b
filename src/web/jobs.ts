/** Commands that the page starts: each is a process of its own, of this program. */
import { randomBytes } from "node:crypto";
import type { Job, JobList } from "./api.ts";
import type { FoundCheckpoint } from "./context.ts";
import { HttpError } from "./router.ts";

/** A model each: more at once would not be faster. */
const MOST_RUNNING = 2;
const MOST_KEPT = 30;
const MOST_LINES = 200;
const MOST_RESULT_BYTES = 4 << 20;
/** After it was asked to stop a command has this long. */
const STOP_MS = 5000;

interface Running {
  job: Job;
  readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">;
}

export class Jobs {
  readonly #jobs = new Map<string, Running>();

  constructor(
    readonly program: readonly string[],
    readonly onChange: (job: Job) => void,
  ) {}

  list(): JobList {
    return { jobs: [...this.#jobs.values()].map(({ job }) => job).reverse() };
  }

  evaluate(checkpoint: FoundCheckpoint): Job {
    const running = [...this.#jobs.values()].filter(({ job }) => job.state === "running").length;
    if (running >= MOST_RUNNING)
      throw new HttpError(409, `${running} evaluations run already, wait for them`);
    const child = Bun.spawn([...this.program, "eval", checkpoint.dir, "--json"], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const job: Job = {
      id: randomBytes(8).toString("hex"),
      kind: "evaluate",
      run: checkpoint.run.id,
      checkpoint: checkpoint.name,
      state: "running",
      started: Date.now(),
      lines: [],
      result: null,
    };
    const entry: Running = { job, child };
    this.#jobs.set(job.id, entry);
    for (const [id, old] of this.#jobs)
      if (this.#jobs.size > MOST_KEPT && old.job.state !== "running") this.#jobs.delete(id);
    void this.#follow(entry);
    return job;
  }

  async #follow(entry: Running): Promise<void> {
    const { child } = entry;
    const [output] = await Promise.all([textOf(child.stdout), this.#talk(entry)]);
    const code = await child.exited;
    if (entry.job.state !== "running") return;
    let result: unknown = null;
    try {
      result = JSON.parse(output);
    } catch {
      // No result: its lines say why.
    }
    this.#change(entry, { state: code === 0 && result !== null ? "done" : "failed", result });
  }

  async #talk(entry: Running): Promise<void> {
    const decoder = new TextDecoder();
    let rest = "";
    for await (const chunk of entry.child.stderr) {
      const parts = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = parts.pop()!.slice(-MOST_RESULT_BYTES);
      if (parts.length > 0) this.#change(entry, { lines: [...entry.job.lines, ...parts].slice(-MOST_LINES) });
    }
    if (rest !== "") this.#change(entry, { lines: [...entry.job.lines, rest].slice(-MOST_LINES) });
  }

  #change(entry: Running, changed: Partial<Job>): void {
    entry.job = { ...entry.job, ...changed };
    this.onChange(entry.job);
  }

  stop(id: string): Job {
    const entry = this.#jobs.get(id);
    if (entry === undefined) throw new HttpError(404, "no such job");
    if (entry.job.state === "running") {
      this.#change(entry, { state: "stopped" });
      end(entry.child);
    }
    return entry.job;
  }

  close(): void {
    for (const { job, child } of this.#jobs.values()) if (job.state === "running") child.kill("SIGKILL");
  }
}

function end(child: Bun.Subprocess): void {
  child.kill();
  const killer = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
  void child.exited.then(() => clearTimeout(killer));
}

async function textOf(stream: ReadableStream<Uint8Array>): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of stream)
    if (text.length < MOST_RESULT_BYTES) text += decoder.decode(chunk, { stream: true });
  return text;
}
