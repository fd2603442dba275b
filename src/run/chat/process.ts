/**
 * The chat process: this program once more, which opens models and replies for the web server. A crash of native code
 * ends it alone. They speak over Bun's IPC (core/chat-process.ts).
 */
import { writeSync } from "node:fs";
import type { ChatToken } from "../../core/chat.ts";
import type { ChatCommand, ChatEvent, ChatModelSpec } from "../../core/chat-process.ts";
import { firstCause, messageLine, UsageError } from "../../core/errors.ts";
import { ChatEngine } from "./engine.ts";

/** Tokens of fast models go out together. */
const FLUSH_MS = 30;

type Folders = Pick<ChatModelSpec, "model" | "adapter">;
type Of<Type extends ChatCommand["type"]> = Extract<ChatCommand, { type: Type }>;

export function serveChat(resolve: (spec: Folders) => Folders): void {
  if (process.send === undefined) {
    writeSync(2, "rlv: error: __chat is started by rlv, not by hand\n");
    process.exit(2);
  }
  // A terminal sends Ctrl-C to both processes; the parent decides what it means.
  process.on("SIGINT", () => {});
  process.on("SIGTERM", () => process.exit(0));
  process.on("disconnect", () => process.exit(0));
  const server = new Server(resolve);
  process.on("message", (command: ChatCommand) => void server.take(command));
}

class Server {
  #engine: ChatEngine | undefined;
  readonly #replies = new Map<number, AbortController>();
  constructor(readonly resolve: (spec: Folders) => Folders) {}

  async take(command: ChatCommand): Promise<void> {
    if (command.type === "stop") {
      this.#replies.get(command.call)?.abort();
      return;
    }
    if (command.type === "start") {
      this.#options = command.options;
      return;
    }
    try {
      if (command.type === "open") this.#open(command);
      else await this.#reply(command);
    } catch (thrown) {
      const error = firstCause(thrown);
      const message = messageLine(error);
      send({ type: "failed", call: command.call, message, mistake: error instanceof UsageError });
    }
  }

  #options: Of<"start">["options"] | undefined;

  /** Opened with the first model: what is wrong with the device is said to whoever asked for one. */
  get #chats(): ChatEngine {
    this.#engine ??= new ChatEngine(this.#options!);
    return this.#engine;
  }

  #open({ call, spec, keep }: Of<"open">): void {
    const { info, closed } = this.#chats.open({ ...spec, ...this.resolve(spec) }, keep);
    send({ type: "opened", call, info, closed });
  }

  async #reply({ call, model, messages, options }: Of<"reply">): Promise<void> {
    const chat = this.#chats.chat(model);
    if (options.scales) chat.setScales(options.scales);
    const stop = new AbortController();
    this.#replies.set(call, stop);
    let tokens: ChatToken[] = [];
    let flushed = 0;
    const flush = () => {
      if (tokens.length > 0) send({ type: "tokens", call, tokens });
      tokens = [];
      flushed = performance.now();
    };
    try {
      const reply = await chat.reply(
        messages,
        options,
        (token) => {
          tokens.push(token);
          if (performance.now() - flushed >= FLUSH_MS) flush();
        },
        stop.signal,
      );
      flush();
      send({ type: "replied", call, reply });
    } finally {
      this.#replies.delete(call);
    }
  }
}

function send(event: ChatEvent): void {
  // A parent that is gone ends this process by its disconnect.
  if (process.connected) process.send!(event);
}
