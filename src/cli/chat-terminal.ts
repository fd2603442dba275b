import { createInterface, type Interface } from "node:readline";
import type { ChatReply, ChatToken } from "../core/chat.ts";
import { colours } from "../core/env.ts";
import { messageLine, RlvError, UsageError } from "../core/errors.ts";
import type { Conversation, Listener } from "../run/chat/conversation.ts";
import type { ChatModel } from "../run/chat/model.ts";
import { COMMANDS, type Terminal } from "./chat-commands.ts";
import { History } from "./chat-history.ts";
import { Transcripts } from "./chat-transcript.ts";
import { talk } from "./talk.ts";

/** What a model writes is text: control characters would let it drive the terminal. Line breaks and tabs stay. */
export function printable(piece: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is being removed
  return piece.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, "\ufffd");
}

export interface TerminalOptions {
  /** Written after every reply. */
  readonly save: string | null;
  readonly history: boolean;
  /** Opens another model for /model. */
  open(name: string): Promise<ChatModel>;
}

/** What replies cost, in a line. */
export function costOf(reply: ChatReply): string {
  const drawing = reply.seconds - reply.promptSeconds;
  const rate =
    reply.tokens > 1 && drawing > 0 ? `, ${((reply.tokens - 1) / drawing).toFixed(1)} tokens/s` : "";
  const mean = reply.tokens > 0 ? `, mean log p ${(reply.logprob / reply.tokens).toFixed(2)}` : "";
  return (
    `${reply.tokens} tokens (${reply.finish})${rate}${mean}; ` +
    `prompt ${reply.promptTokens}: ${reply.reusedTokens} reused, ${reply.encodedTokens} encoded in ${reply.promptSeconds.toFixed(2)} s`
  );
}

/** Talks with whoever is at stdin until they leave. */
export async function converse(conversation: Conversation, options: TerminalOptions): Promise<void> {
  const interactive = process.stdin.isTTY === true && process.stdout.isTTY === true;
  const transcripts = new Transcripts();
  if (options.save !== null) transcripts.check(options.save);
  const style = styles(colours(process.stdout));
  const history = interactive && options.history ? new History(talk) : null;
  const lines = createInterface({
    input: process.stdin,
    output: interactive ? process.stdout : undefined,
    terminal: interactive,
    ...(history ? { history: history.lines, historySize: 1000, removeHistoryDuplicates: true } : {}),
  });
  let reply: AbortController | undefined;
  /** Lines of a message that goes on. */
  let begun: string[] = [];
  const prompt = () => {
    lines.setPrompt(begun.length > 0 ? style.dim("… ") : style.bold("> "));
    lines.prompt();
  };
  const interrupt = () => {
    if (reply) reply.abort();
    else if (begun.length > 0 || lines.line !== "") {
      begun = [];
      clearLine(lines);
      prompt();
    } else lines.close();
  };
  // readline holds the terminal in raw mode, where Ctrl-C is its event; piped input gets the signal.
  lines.on("SIGINT", interrupt);
  process.on("SIGINT", interrupt);

  const listener = new Replies(conversation, interactive, style);
  const terminal: Terminal = {
    conversation,
    transcripts,
    open: options.open,
    async reply(work) {
      reply = new AbortController();
      try {
        await work(listener, reply.signal);
      } finally {
        reply = undefined;
        listener.close();
      }
      if (options.save !== null) transcripts.write(options.save, conversation);
    },
  };
  /** False at the end of the chat. */
  const take = async (message: string): Promise<boolean> => {
    const [, name = "", rest = ""] = /^\/(\S*)\s*([\s\S]*)$/.exec(message) ?? [];
    const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
    if (message.startsWith("/") && (command || interactive)) {
      if (!command)
        throw new UsageError(
          `no command /${name}`,
          undefined,
          "/help lists them; a space before it sends it as text",
        );
      return (await command.run(terminal, rest.trim())) !== "exit";
    }
    await terminal.reply((to, signal) => conversation.say(message, to, signal));
    return true;
  };
  if (interactive) prompt();
  try {
    for await (const line of lines) {
      if (interactive && goesOn(begun, line)) {
        begun.push(line);
        prompt();
        continue;
      }
      const message = interactive ? joined([...begun, line]) : line;
      begun = [];
      if (message.trim() !== "") {
        if (interactive) history?.add(message);
        try {
          if (!(await take(message))) break;
        } catch (error) {
          // At a keyboard the next try is at hand; a script should not go on as if it had been answered.
          if (!interactive || !(error instanceof RlvError)) throw error;
          talk(messageLine(error));
        }
      }
      if (interactive) prompt();
    }
  } finally {
    process.off("SIGINT", interrupt);
    lines.close();
  }
}

/** A line that ends with a backslash goes on; so does everything between two lines of """. */
function goesOn(begun: readonly string[], line: string): boolean {
  const block = (begun[0] ?? line).trimStart().startsWith('"""');
  if (!block) return line.endsWith("\\");
  return begun.length === 0
    ? line.trim().length < 6 || !line.trimEnd().endsWith('"""')
    : !line.trimEnd().endsWith('"""');
}

function joined(lines: readonly string[]): string {
  const text = lines.join("\n");
  const block = /^\s*"""\n?([\s\S]*?)\n?"""\s*$/.exec(text);
  return block ? block[1]! : lines.map((line) => line.replace(/\\$/, "")).join("\n");
}

/** Empties the line that is being edited, as Ctrl-C does in a shell. */
function clearLine(lines: Interface): void {
  process.stdout.write("\n");
  lines.write(null, { ctrl: true, name: "e" });
  lines.write(null, { ctrl: true, name: "u" });
}

interface Style {
  bold(text: string): string;
  dim(text: string): string;
}

function styles(coloured: boolean): Style {
  const wrap = (on: number, off: number) => (text: string) =>
    coloured ? `\u001b[${on}m${text}\u001b[${off}m` : text;
  return { bold: wrap(1, 22), dim: wrap(2, 22) };
}

/** Prints replies as they come: on a terminal with thoughts, names and costs, otherwise the answers alone. */
class Replies implements Listener {
  #last: "none" | "thinking" | "answer" = "none";
  constructor(
    readonly conversation: Conversation,
    readonly interactive: boolean,
    readonly style: Style,
  ) {}

  begin(column: number): void {
    const { columns } = this.conversation;
    this.#last = "none";
    if (this.interactive && columns.length > 1) this.#say(`${this.style.bold(columns[column]!.label)}\n`);
  }

  token(_column: number, { text, thinking }: ChatToken): void {
    if (text === "" || (thinking && !this.interactive)) return;
    if (!thinking && this.#last === "thinking") this.#say("\n\n");
    this.#last = thinking ? "thinking" : "answer";
    const clean = printable(text);
    this.#say(thinking ? this.style.dim(clean) : clean);
  }

  end(_column: number, reply: ChatReply): void {
    this.#say("\n");
    this.#last = "none";
    if (this.interactive) process.stderr.write(`${this.style.dim(costOf(reply))}\n`);
  }

  /** After a reply that failed in its middle. */
  close(): void {
    if (this.#last !== "none") this.#say("\n");
    this.#last = "none";
  }

  #say(text: string): void {
    process.stdout.write(text);
  }
}
