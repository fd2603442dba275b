/** The server of the page over made run folders, and requests as browsers and others make them. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { type ServeOptions, servePage } from "../../src/web/serve.ts";
import type { RunningServer } from "../../src/web/server.ts";

const main = resolve(import.meta.dir, "../../src/cli/main.ts");
export const program = [process.execPath, main];

/** Child processes of a process that were started with a word. */
export function childrenOf(pid: number, word: string): number[] {
  const fields = existsSync("/proc/self/stat")
    ? readdirSync("/proc")
        .filter((name) => /^\d+$/.test(name))
        .map((name) => {
          try {
            const parent = readFileSync(`/proc/${name}/stat`, "latin1")
              .replace(/^.*\) /s, "")
              .split(" ")[1];
            return [name, parent, readFileSync(`/proc/${name}/cmdline`, "latin1").replaceAll("\0", " ")];
          } catch {
            return [];
          }
        })
    : Bun.spawnSync(["ps", "-axo", "pid=,ppid=,args="])
        .stdout.toString()
        .split("\n")
        .map((line) => /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line)?.slice(1) ?? []);
  return fields.flatMap(([child, parent, args]) =>
    Number(parent) === pid && args?.split(" ").includes(word) ? [Number(child)] : [],
  );
}

/** A folder of its own, gone with the scope. */
export class Scratch implements Disposable {
  readonly dir = mkdtempSync(join(tmpdir(), "rlv-web-"));

  [Symbol.dispose](): void {
    rmSync(this.dir, { recursive: true, force: true });
  }
}

export class Site implements AsyncDisposable {
  readonly server: RunningServer;

  constructor(folder: string, options: Partial<ServeOptions> = {}) {
    this.server = servePage({ host: "127.0.0.1", port: 0, folders: [folder], program, ...options });
  }

  get base(): string {
    return `http://127.0.0.1:${this.server.port}`;
  }

  /** With the token, unless headers say otherwise. */
  fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = {
      authorization: `Bearer ${this.server.token}`,
      ...(init.headers as Record<string, string>),
    };
    return fetch(`${this.base}${path}`, { redirect: "manual", ...init, headers });
  }

  async get<T>(path: string): Promise<T> {
    const response = await this.fetch(path);
    if (response.status !== 200) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    return (await response.json()) as T;
  }

  post(path: string, body: unknown, headers: Record<string, string> = {}): Promise<Response> {
    return this.fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: typeof body === "string" ? body : JSON.stringify(body),
    });
  }

  /** Bytes as they are: what no well-behaved client sends. Answers what came until the end or for `ms`. */
  raw(text: string, ms = 1500): Promise<string> {
    return new Promise((done, fail) => {
      let answer = "";
      const socket = connect(this.server.port, "127.0.0.1", () => socket.write(text));
      const timer = setTimeout(() => socket.destroy(), ms);
      socket.on("data", (chunk) => {
        answer += chunk.toString("latin1");
      });
      socket.on("error", (error) => (answer === "" ? fail(error) : undefined));
      socket.on("close", () => {
        clearTimeout(timer);
        done(answer);
      });
    });
  }

  /** A request line and headers by hand, with the token. Answers the status, 0 for none. */
  async status(requestLine: string, headers: readonly string[] = [], body = ""): Promise<number> {
    const host = headers.some((each) => /^host:/i.test(each)) ? [] : [`Host: 127.0.0.1:${this.server.port}`];
    const lines = [
      requestLine,
      ...host,
      `Authorization: Bearer ${this.server.token}`,
      "Connection: close",
      ...headers,
    ];
    const answer = await this.raw(`${lines.join("\r\n")}\r\n\r\n${body}`);
    return Number(/^HTTP\/1\.1 (\d+)/.exec(answer)?.[1] ?? 0);
  }

  /** The named events of a stream as they come. */
  async *events(path: string, signal: AbortSignal): AsyncGenerator<{ event: string; data: unknown }> {
    const response = await this.fetch(path, { signal });
    const decoder = new TextDecoder();
    let text = "";
    for await (const chunk of response.body!) {
      text += decoder.decode(chunk, { stream: true });
      const parts = text.split("\n\n");
      text = parts.pop()!;
      for (const part of parts) {
        const event = /^event: (.*)$/m.exec(part)?.[1];
        const data = /^data: (.*)$/m.exec(part)?.[1];
        if (event !== undefined) yield { event, data: JSON.parse(data!) };
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.stop();
  }
}
