/**
 * `rlv train --ui`: the server of the page as a process of its own beside training. Neither needs the other: a server
 * that fails is a line in the terminal, and one whose training has ended, in whatever way, ends too.
 */
import { dirname } from "node:path";
import { resolveOptions } from "../config/resolve.ts";
import { type ServeOptions as ServeFlags, serveSchema } from "../config/schema-serve.ts";
import { messageLine } from "../core/errors.ts";
import { UI_COMMAND } from "../core/version.ts";
import { programArgv } from "../run/engine-process.ts";
import { idOf } from "../web/roots.ts";
import { servePage } from "../web/serve.ts";
import type { RunningServer } from "../web/server.ts";
import { chatDefaults, engineOf } from "./chat-models.ts";

/** A server that does not end by itself has this long. */
const STOP_MS = 2000;

interface StartMessage {
  readonly folders: readonly string[];
}

type ReadyMessage = { readonly address: string } | { readonly error: string };

/** Training's side. */
export class TrainingPage {
  readonly #server: Bun.Subprocess;
  #ended = false;

  /** `say`: a line for the user, once the page of the run is there, and when it is there no more. */
  constructor(runDir: string, say: (line: string) => void) {
    this.#server = Bun.spawn([...programArgv(Bun.main), UI_COMMAND], {
      stdio: ["ignore", "ignore", 2],
      ipc(message: ReadyMessage) {
        say(
          "address" in message
            ? `the page: ${message.address}#/run/${idOf(runDir)}`
            : `no page: ${message.error}`,
        );
      },
      onExit: () => {
        if (!this.#ended) say("the page has ended, training goes on: rlv serve shows it again");
      },
    });
    // Training does not wait for it.
    this.#server.unref();
    this.#server.send({ folders: [dirname(runDir)] } satisfies StartMessage);
  }

  close(): void {
    this.#ended = true;
    this.#server.kill();
  }
}

/** The server's side: the hidden command `__ui`. */
export function serveTraining(): void {
  if (process.send === undefined) {
    process.stderr.write(`rlv: error: ${UI_COMMAND} is started by rlv train --ui, not by hand\n`);
    process.exit(2);
  }
  const tell = (message: ReadyMessage) => process.send!(message);
  // A terminal sends Ctrl-C to all; training decides when this ends.
  process.on("SIGINT", () => {});
  let server: RunningServer | undefined;
  const end = () => {
    setTimeout(() => process.exit(0), STOP_MS);
    void Promise.resolve(server?.stop()).finally(() => process.exit(0));
  };
  process.on("SIGTERM", end);
  process.on("disconnect", end);
  process.once("message", ({ folders }: StartMessage) => {
    try {
      const options = resolveOptions<ServeFlags>(serveSchema, new Map(), "serve");
      const chat = { engine: engineOf(options), models: [], autoload: false, defaults: chatDefaults() };
      server = servePage({ host: "127.0.0.1", port: null, folders, program: programArgv(Bun.main), chat });
      tell({ address: server.address });
    } catch (error) {
      tell({ error: messageLine(error) });
      end();
    }
  });
}
