/** A hub and a content server on this machine that record what they are asked and misbehave when told to. */
import { createHash } from "node:crypto";
import { createServer, type Server, type Socket } from "node:net";

export interface Asked {
  readonly origin: "hub" | "cdn";
  readonly method: string;
  readonly path: string;
  /** Lower-case names. */
  readonly headers: Readonly<Record<string, string>>;
}

/** What goes wrong with requests that fit; `times` of them, all by default. */
export interface Fault {
  readonly origin?: "hub" | "cdn";
  readonly method?: string;
  readonly path?: RegExp;
  times?: number;
  /** Answer with this status and headers and no content. */
  readonly status?: number;
  readonly head?: Readonly<Record<string, string>>;
  /** Close the connection after so many bytes of the content. */
  readonly cut?: number;
  /** Stop sending after so many bytes and leave the connection open. */
  readonly stall?: number;
  /** Send this many bytes at a time with a pause between. */
  readonly trickle?: number;
  /** Answer 200 and everything to a Range. */
  readonly ignoreRange?: boolean;
  /** Replaces the file's content. */
  readonly content?: (bytes: Buffer) => Buffer;
}

export interface HubCommit {
  readonly sha: string;
  readonly files: ReadonlyMap<string, Buffer>;
}

export interface HubRepo {
  /** The last one is main. */
  readonly commits: HubCommit[];
  readonly lfs: (path: string) => boolean;
  /** Hashes of LFS pointers, where their own text does not say them. */
  readonly pointers?: ReadonlyMap<string, string>;
  /** Extra entries of its listing. */
  readonly listed?: readonly object[];
}

export const gitSha = (bytes: Buffer) =>
  createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
export const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");

interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly content?: Buffer;
}

const empty = (status: number, headers: Readonly<Record<string, string>> = {}): Answer => ({
  status,
  headers,
});

export class HubServer implements AsyncDisposable {
  /** By API path: models/ORG/NAME or datasets/ORG/NAME. */
  readonly repos = new Map<string, HubRepo>();
  /** Old name to new one. */
  readonly renamed = new Map<string, string>();
  readonly asked: Asked[] = [];
  faults: Fault[] = [];
  /** Entries of a page of a listing. */
  pageSize = 1000;
  readonly #sockets = new Set<Socket>();
  #hub!: Server;
  #cdn!: Server;
  endpoint = "";
  cdn = "";

  static async start(): Promise<HubServer> {
    const server = new HubServer();
    const listen = (origin: "hub" | "cdn") =>
      new Promise<Server>((done) => {
        const listener = createServer((socket) => server.#serve(origin, socket));
        listener.listen(0, () => done(listener));
      });
    server.#hub = await listen("hub");
    server.#cdn = await listen("cdn");
    const port = (listener: Server) => (listener.address() as { port: number }).port;
    server.endpoint = `http://127.0.0.1:${port(server.#hub)}`;
    // Another host name and another port: a token has no business there.
    server.cdn = `http://localhost:${port(server.#cdn)}`;
    return server;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await Promise.all([this.#hub, this.#cdn].map((server) => new Promise((done) => server.close(done))));
  }

  /** Requests since the last call. */
  taken(): Asked[] {
    return this.asked.splice(0);
  }

  #serve(origin: "hub" | "cdn", socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
    socket.on("error", () => {});
    let head = "";
    socket.on("data", (data) => {
      head += data.toString("latin1");
      if (!head.includes("\r\n\r\n")) return;
      const [first, ...lines] = head.split("\r\n\r\n")[0]!.split("\r\n");
      head = "";
      const [method, path] = first!.split(" ") as [string, string];
      const headers = Object.fromEntries(
        lines.map((line) => {
          const at = line.indexOf(":");
          return [line.slice(0, at).toLowerCase(), line.slice(at + 1).trim()];
        }),
      );
      const asked = { origin, method, path, headers };
      this.asked.push(asked);
      void this.#answer(asked, socket);
    });
  }

  #fault(asked: Asked): Fault | undefined {
    const fault = this.faults.find(
      ({ origin, method, path, times }) =>
        (origin ?? asked.origin) === asked.origin &&
        (method ?? asked.method) === asked.method &&
        (path?.test(asked.path) ?? true) &&
        times !== 0,
    );
    if (fault?.times !== undefined) fault.times -= 1;
    return fault;
  }

  async #answer(asked: Asked, socket: Socket): Promise<void> {
    const fault = this.#fault(asked);
    let answer = fault?.status === undefined ? this.#right(asked) : empty(fault.status, fault.head);
    if (fault?.content && answer.content) answer = { ...answer, content: fault.content(answer.content) };
    const range = /^bytes=(\d+)-$/.exec(asked.headers.range ?? "");
    let { status, content = Buffer.alloc(0) } = answer;
    const headers: Record<string, string> = { ...answer.headers };
    if (status === 200 && range !== null && fault?.ignoreRange !== true) {
      const from = Number(range[1]);
      if (from >= content.length) [status, content] = [416, Buffer.alloc(0)];
      else {
        status = 206;
        headers["Content-Range"] = `bytes ${from}-${content.length - 1}/${content.length}`;
        content = content.subarray(from);
      }
    }
    headers["Content-Length"] ??= String(content.length);
    headers.Connection = "close";
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
    socket.write(`HTTP/1.1 ${status} Status\r\n${lines.join("")}\r\n`);
    if (asked.method === "HEAD") {
      socket.end();
      return;
    }
    if (fault?.cut !== undefined) {
      // The bytes must be out before the connection breaks.
      socket.write(content.subarray(0, fault.cut), () => setTimeout(() => socket.destroy(), 30));
    } else if (fault?.stall !== undefined) {
      socket.write(content.subarray(0, fault.stall));
    } else if (fault?.trickle !== undefined) {
      for (let at = 0; at < content.length && !socket.destroyed; at += fault.trickle) {
        socket.write(content.subarray(at, at + fault.trickle));
        await Bun.sleep(5);
      }
      socket.end();
    } else socket.end(content);
  }

  #right({ origin, method, path }: Asked): Answer {
    if (origin === "cdn") return this.#blob(path);
    const url = new URL(path, "http://hub");
    const old = [...this.renamed.keys()].find((name) => url.pathname.includes(`/${name}/`));
    if (old !== undefined)
      return empty(307, { Location: path.replace(`/${old}/`, `/${this.renamed.get(old)}/`) });
    const api = /^\/api\/((?:model|dataset)s\/[^/]+\/[^/]+)\/(revision|tree)\/([^/]+)$/.exec(url.pathname);
    if (api) return this.#api(api[1]!, api[2]!, decodeURIComponent(api[3]!), url);
    const file = /^(\/datasets)?\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname);
    if (!file) return empty(404);
    const repo = `${file[1] ? "datasets" : "models"}/${file[2]}`;
    return this.#file(repo, decodeURIComponent(file[3]!), decodeURIComponent(file[4]!), method);
  }

  #commit(repo: HubRepo, revision: string): HubCommit | undefined {
    return revision === "main" ? repo.commits.at(-1) : repo.commits.find(({ sha }) => sha === revision);
  }

  #api(name: string, kind: string, revision: string, url: URL): Answer {
    const repo = this.repos.get(name);
    if (!repo) return empty(404, { "X-Error-Code": "RepoNotFound" });
    const commit = this.#commit(repo, revision);
    if (!commit) return empty(404, { "X-Error-Code": "RevisionNotFound" });
    const json = (body: unknown, headers = {}): Answer => ({
      status: 200,
      headers: { "Content-Type": "application/json", ...headers },
      content: Buffer.from(JSON.stringify(body)),
    });
    if (kind === "revision") return json({ id: name, sha: commit.sha });
    const entries = [...commit.files].map(([path, bytes]) => {
      const size = bytes.length;
      if (!repo.lfs(path)) return { type: "file", path, size, oid: gitSha(bytes) };
      const pointer = Buffer.from(
        `version https://git-lfs.github.com/spec/v1\noid sha256:${sha256(bytes)}\nsize ${size}\n`,
      );
      const lfs = { oid: sha256(bytes), size, pointerSize: pointer.length };
      return { type: "file", path, size, oid: repo.pointers?.get(path) ?? gitSha(pointer), lfs };
    });
    const all = [...entries, ...(repo.listed ?? [])];
    const from = Number(url.searchParams.get("cursor") ?? 0);
    const next = from + this.pageSize;
    url.searchParams.set("cursor", String(next));
    const link = `<${this.endpoint}${url.pathname}${url.search}>; rel="next"`;
    return json(all.slice(from, next), next < all.length ? { Link: link } : {});
  }

  #file(name: string, revision: string, path: string, method: string): Answer {
    const repo = this.repos.get(name);
    if (!repo) return empty(404, { "X-Error-Code": "RepoNotFound" });
    const commit = this.#commit(repo, revision);
    if (!commit) return empty(404, { "X-Error-Code": "RevisionNotFound" });
    const bytes = commit.files.get(path);
    const about = { "X-Repo-Commit": commit.sha };
    if (!bytes) return empty(404, { "X-Error-Code": "EntryNotFound", ...about });
    if (repo.lfs(path))
      return empty(302, {
        ...about,
        Location: `${this.cdn}/blob/${sha256(bytes)}?sig=abc`,
        "X-Linked-Size": String(bytes.length),
        "X-Linked-Etag": `"${sha256(bytes)}"`,
        ETag: '"lfs-pointer-etag"',
      });
    const headers: Record<string, string> = {
      ...about,
      ETag: `"${gitSha(bytes)}"`,
      "Accept-Ranges": "bytes",
    };
    if (method === "HEAD") headers["Content-Length"] = String(bytes.length);
    return { status: 200, headers, content: bytes };
  }

  #blob(path: string): Answer {
    const hash = /^\/blob\/([0-9a-f]{64})/.exec(path)?.[1];
    const files = [...this.repos.values()].flatMap(({ commits }) =>
      commits.flatMap((commit) => [...commit.files.values()]),
    );
    const content = files.find((bytes) => sha256(bytes) === hash);
    return content ? { status: 200, headers: { ETag: `"${hash}"` }, content } : empty(404);
  }
}
