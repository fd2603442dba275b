/** The chat process as the server sees it: started by the first call, ended when nobody calls, gone without harm. */
import type { ChatModelInfo, ChatReply, ChatToken, ChatTurn, ReplyOptions } from "../core/chat.ts";
import type { ChatCommand, ChatEngineOptions, ChatEvent, ChatModelSpec } from "../core/chat-process.ts";
import { CHAT_COMMAND } from "../core/version.ts";

/** Memory of models that nobody talks to goes back. */
const IDLE_MS = 10 * 60_000;
/** After this long without an end, a process that was asked to end is killed. */
const END_MS = 2_000;

/** A call that failed; `mistake`: what was asked for was wrong, otherwise this program or the machine failed. */
export class ChatFailure extends Error {
  constructor(
    message: string,
    readonly mistake: boolean,
  ) {
    super(message);
  }
}

interface Call {
  tokens(tokens: readonly ChatToken[]): void;
  done(event: Extract<ChatEvent, { type: "opened" | "replied" }>): void;
  failed(error: ChatFailure): void;
}

export interface ReplyCall {
  readonly reply: Promise<ChatReply>;
  /** Ends the reply as it is. */
  stop(): void;
}

export class ChatChild {
  #child: Bun.Subprocess | undefined;
  readonly #calls = new Map<number, Call>();
  #next = 1;
  #idle: Timer | undefined;
  readonly #open = new Map<string, ChatModelInfo>();

  /** @param program the words that start this program again */
  constructor(
    readonly program: readonly string[],
    readonly options: ChatEngineOptions,
    readonly idleMs = IDLE_MS,
  ) {}

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** What is open now. */
  get models(): ReadonlyMap<string, ChatModelInfo> {
    return this.#open;
  }

  /** Opens a model, or finds it open; others but those in `keep` may be closed for it. */
  async open(spec: ChatModelSpec, keep: readonly string[]): Promise<ChatModelInfo> {
    const event = await new Promise<Extract<ChatEvent, { type: "opened" | "replied" }>>((done, failed) => {
      this.#call((call) => ({ type: "open", call, spec, keep }), { done, failed, tokens: () => {} });
    });
    if (event.type !== "opened") throw new ChatFailure("the chat process gave another answer", false);
    for (const id of event.closed) this.#open.delete(id);
    this.#open.set(spec.id, event.info);
    return event.info;
  }

  reply(
    model: string,
    messages: readonly ChatTurn[],
    options: ReplyOptions,
    onTokens: (tokens: readonly ChatToken[]) => void,
  ): ReplyCall {
    const { promise, resolve, reject } = Promise.withResolvers<ChatReply>();
    const id = this.#call((call) => ({ type: "reply", call, model, messages, options }), {
      tokens: onTokens,
      done: (event) => event.type === "replied" && resolve(event.reply),
      failed: reject,
    });
    return { reply: promise, stop: () => this.#send({ type: "stop", call: id }) };
  }

  async close(): Promise<void> {
    clearTimeout(this.#idle);
    const child = this.#child;
    if (!child) return;
    this.#forget("the chat was ended");
    child.kill("SIGTERM");
    const killer = setTimeout(() => child.kill("SIGKILL"), END_MS);
    await child.exited;
    clearTimeout(killer);
  }

  #call(command: (call: number) => ChatCommand, call: Call): number {
    const id = this.#next++;
    clearTimeout(this.#idle);
    this.#start();
    this.#calls.set(id, call);
    this.#send(command(id));
    return id;
  }

  #start(): void {
    if (this.#child) return;
    const child = Bun.spawn([...this.program, CHAT_COMMAND], {
      // What a crash prints belongs on the terminal of the server.
      stdio: ["ignore", 2, 2],
      serialization: "advanced",
      ipc: (event: ChatEvent) => this.#take(event),
    });
    this.#child = child;
    void child.exited.then(() => this.#ended(child));
    this.#send({ type: "start", options: this.options });
  }

  #send(command: ChatCommand): void {
    try {
      this.#child?.send(command);
    } catch {
      // It has ended; what it leaves undone is told when its exit is seen.
    }
  }

  #take(event: ChatEvent): void {
    const call = this.#calls.get(event.call);
    if (!call) return;
    if (event.type === "tokens") {
      call.tokens(event.tokens);
      return;
    }
    this.#calls.delete(event.call);
    if (event.type === "failed") call.failed(new ChatFailure(event.message, event.mistake));
    else call.done(event);
    this.#rest();
  }

  #rest(): void {
    clearTimeout(this.#idle);
    if (this.#calls.size > 0 || !this.#child) return;
    this.#idle = setTimeout(() => void this.close(), this.idleMs);
    this.#idle.unref();
  }

  #ended(child: Bun.Subprocess): void {
    if (this.#child === child) this.#forget(deathOf(child));
  }

  /** The process is gone, or going: the next call starts another one. */
  #forget(reason: string): void {
    this.#child = undefined;
    this.#open.clear();
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const call of calls) call.failed(new ChatFailure(reason, false));
  }
}

/** Why the process is gone, and what to do. */
function deathOf({ signalCode, exitCode }: Bun.Subprocess): string {
  const how =
    signalCode === "SIGKILL"
      ? "was killed (SIGKILL; if nobody did, the system ran out of memory)"
      : signalCode !== null
        ? `died of ${signalCode}`
        : `ended with code ${exitCode}`;
  return `the chat process ${how}: nothing of the conversation is lost: send the message again and it starts anew`;
}
