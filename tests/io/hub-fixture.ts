import { lstatSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join, relative } from "node:path";
import { type HubContext, PATIENCE, type Patience } from "../../src/io/hub/request.ts";
import { HubServer } from "./hub-server.ts";
import { TemporaryFolder } from "./temporary.ts";

/** Waits are short, and the number of attempts is the real one. */
export const QUICK: Patience = { ...PATIENCE, delay: 5, idle: 400 };

/** A stand-in for the hub, an empty cache, and what is needed to ask. */
export class HubFixture implements AsyncDisposable {
  readonly folder = new TemporaryFolder();
  readonly lines: string[] = [];
  private constructor(readonly server: HubServer) {}

  static async start(): Promise<HubFixture> {
    return new HubFixture(await HubServer.start());
  }

  get cache(): string {
    return this.folder.file("hub");
  }

  context(changes: Partial<HubContext> = {}): HubContext {
    return {
      endpoint: this.server.endpoint,
      cache: this.cache,
      token: null,
      offline: false,
      patience: QUICK,
      progress: (line) => this.lines.push(line),
      ...changes,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]();
    this.folder[Symbol.dispose]();
  }
}

/** Every file and link below a folder: content or target by path. */
export function treeOf(root: string): Record<string, string> {
  const found: Record<string, string> = {};
  const walk = (folder: string) => {
    for (const name of readdirSync(folder)) {
      const path = join(folder, name);
      const stat = lstatSync(path);
      if (stat.isSymbolicLink()) found[relative(root, path)] = `-> ${readlinkSync(path)}`;
      else if (stat.isDirectory()) walk(path);
      else found[relative(root, path)] = readFileSync(path, "latin1");
    }
  };
  walk(root);
  return found;
}
