import { type ChatRoutesOptions, chatRoutes } from "./chat-routes.ts";
import { CheckpointRemoval } from "./checkpoints.ts";
import type { WebContext } from "./context.ts";
import { DataClient } from "./data-process.ts";
import { Jobs } from "./jobs.ts";
import { Live } from "./live.ts";
import { Roots } from "./roots.ts";
import { Router } from "./router.ts";
import { addRoutes } from "./routes.ts";
import { type RunningServer, type ServerOptions, startServer } from "./server.ts";

export interface ServeOptions extends ServerOptions {
  /** Folders with runs. */
  readonly folders: readonly string[];
  /** How this program is started again: the words before its command. */
  readonly program: readonly string[];
  /** Without it nobody is talked to. */
  readonly chat?: ChatRoutesOptions;
}

/** The page with all it needs; `stop` ends what it started. */
export function servePage(options: ServeOptions): RunningServer {
  const router = new Router();
  const roots = new Roots(options.folders);
  const live = new Live();
  const jobs = new Jobs(options.program, (job) => live.say("job", null, JSON.stringify(job)));
  const closing: (() => void | Promise<void>)[] = [];
  const context: WebContext = {
    program: options.program,
    run: (id) => roots.run(id),
    checkpoint: (run, name) => roots.checkpoint(run, name),
    speakers: async () => JSON.parse(await data.ask("speakers")),
    onClose: (action) => closing.push(action),
  };
  if (options.chat) chatRoutes(options.chat)(router, context);
  // A port that is taken is found out before anything is started.
  const server = startServer(options, router);
  const data = new DataClient(options.program, roots.folders, (event, run, json) =>
    live.say(event, run, json),
  );
  live.connect(data);
  addRoutes(router, { data, live, jobs, roots, removal: new CheckpointRemoval() });
  return {
    ...server,
    stop: async () => {
      live.close();
      jobs.close();
      data.close();
      await Promise.all(closing.map((action) => action()));
      await server.stop();
    },
  };
}
