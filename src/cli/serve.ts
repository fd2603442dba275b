import { existsSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { resolveOptions } from "../config/resolve.ts";
import { type ServeOptions, serveSchema } from "../config/schema-serve.ts";
import { UsageError } from "../core/errors.ts";
import { isRun, RUN_ROOTS } from "../report/runs.ts";
import { programArgv } from "../run/engine-process.ts";
import { type ServeOptions as PageOptions, servePage } from "../web/serve.ts";
import { openBrowser } from "./browser.ts";
import { chatDefaults, engineOf } from "./chat-models.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";
import { flagsOf } from "./flags.ts";
import { talk } from "./talk.ts";

export const command: Command = {
  name: "serve",
  usage: "serve [RUNS_DIR]",
  maxArgs: 1,
  completes: { files: true },
  summary: "show runs, and talk to models, on a page in the browser",
  examples: () => ["rlv serve", "rlv serve ./runs --port 8500 --no_open"],
  notes: () => [
    "",
    `Without RUNS_DIR: the runs in ${RUN_ROOTS.join(", ")}. Prints the address of the page with a token, without which`,
    "nothing is answered; scripts send it as Authorization: Bearer TOKEN. JSON is under /api/ (/api/runs lists the runs).",
    "The server reads run folders and never touches a run; a live one is followed. Ctrl-C ends it.",
  ],
  flags: () => [...flagsOf(serveSchema), JSON_FLAG],
  async run({ args, flags, json }) {
    const given = new Map(flags);
    given.delete(JSON_FLAG.name);
    const options = resolveOptions<ServeOptions>(serveSchema, given, "serve");
    const { host, port, no_open } = options;
    const chat = { engine: engineOf(options), models: [], autoload: false, defaults: chatDefaults() };
    await showPage(
      { host, port, folders: foldersOf(args[0]), program: programArgv(Bun.main), chat },
      { no_open, json },
    );
    return 0;
  },
};

/** Serves the page until it is asked to end; `view`: what it shows first, as #/chat. */
export async function showPage(
  options: PageOptions,
  { no_open, json, view = "" }: { no_open: boolean; json: boolean; view?: string },
): Promise<void> {
  const { host } = options;
  const server = servePage(options);
  if (!isLocal(host))
    talk(
      `warning: listening on ${host}: others of the network can ask too; the token keeps them out, but goes over it unencrypted`,
    );
  // Whoever reads the address may ask it to end at once.
  const stopped = untilStopped();
  if (json) printJson({ address: server.address, port: server.port, token: server.token });
  else process.stdout.write(`the page: ${server.address}${view}\n`);
  if (!no_open) openBrowser(`${server.openingAddress()}${view}`);
  await stopped;
  await server.stop();
}

/** The folders to serve; a run by itself is shown among its neighbours. */
function foldersOf(given: string | undefined): readonly string[] {
  if (given === undefined) return RUN_ROOTS;
  if (!existsSync(given) || !statSync(given).isDirectory())
    throw new UsageError("no such folder", given, "name a folder with runs in it");
  return [isRun(given) ? dirname(resolve(given)) : given];
}

const isLocal = (host: string): boolean => /^(127\.\d+\.\d+\.\d+|::1|localhost)$/.test(host);

/** Ctrl-C, or being asked to end. A second one ends at once. */
function untilStopped(): Promise<void> {
  return new Promise((stop) => {
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
      process.on(signal, () => {
        stop();
        process.on(signal, () => process.exit(130));
      });
  });
}
