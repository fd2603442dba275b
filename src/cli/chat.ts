import { createInterface } from "node:readline";
import type { ChatSession, InferenceModule } from "../config/contracts.ts";
import { resolveOptions } from "../config/resolve.ts";
import { type ChatOptions, chatSchema } from "../config/schema-inference.ts";
import { colours } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import type { Command } from "./command.ts";
import { findModel, requireFolder } from "./files.ts";
import { flagsOf } from "./flags.ts";
import { talk } from "./talk.ts";

export const command: Command = {
  name: "chat",
  usage: "chat [MODEL]",
  maxArgs: 1,
  summary: "talk to a model in the terminal",
  examples: () => ["rlv chat", "rlv chat runs/mine/checkpoints/final --temperature 0"],
  notes: () => [
    "",
    "/reset forgets the conversation, /exit or Ctrl-D ends; Ctrl-C stops a reply, and ends when there is none.",
    "Without a terminal every line of stdin is a message and stdout has the replies.",
  ],
  flags: () => flagsOf(chatSchema),
  async run({ args, flags }) {
    const given = new Map(flags);
    if (args[0] !== undefined) {
      if (given.has("model"))
        throw new UsageError(
          "the model is given twice",
          `${args[0]} and --model ${given.get("model")}`,
          "keep one of them",
        );
      given.set("model", args[0]);
    }
    const options = resolveOptions<ChatOptions>(chatSchema, given, "chat");
    const model = await findModel(options.model, "model");
    if (options.adapter !== null) requireFolder(options.adapter, "adapter");
    const { resolveModel } = await import("../recipe/base.ts");
    const { openChat }: InferenceModule = await import("../run/inference.ts");
    const session = await openChat({ ...options, ...resolveModel(model, options.adapter) }, talk);
    try {
      await converse(session);
    } finally {
      session.close();
    }
    return 0;
  },
};

/** What a model writes is text: control characters would let it drive the terminal. Line breaks and tabs stay. */
export function printable(piece: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is being removed
  return piece.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, "\ufffd");
}

async function converse(session: ChatSession): Promise<void> {
  const interactive = process.stdin.isTTY === true && process.stdout.isTTY === true;
  talk(session.description);
  if (interactive) talk("/reset forgets the conversation, /exit ends, Ctrl-C stops a reply");
  const bold = colours(process.stdout)
    ? (text: string) => `\u001b[1m${text}\u001b[22m`
    : (text: string) => text;
  const lines = createInterface({
    input: process.stdin,
    output: interactive ? process.stdout : undefined,
    terminal: interactive,
  });
  let reply: AbortController | undefined;
  const interrupt = () => {
    if (reply === undefined) lines.close();
    else reply.abort();
  };
  // readline holds the terminal in raw mode, where Ctrl-C is its event; piped input gets the signal.
  lines.on("SIGINT", interrupt);
  process.on("SIGINT", interrupt);
  if (interactive) {
    lines.setPrompt(bold("> "));
    lines.prompt();
  }
  try {
    for await (const line of lines) {
      const message = line.trim();
      if (message === "/exit" || message === "/quit") break;
      if (message === "/reset") {
        session.reset();
        talk("the conversation is forgotten");
      } else if (message !== "") {
        reply = new AbortController();
        await session.reply(line, (piece) => process.stdout.write(printable(piece)), reply.signal);
        reply = undefined;
        process.stdout.write("\n");
      }
      if (interactive) lines.prompt();
    }
  } finally {
    process.off("SIGINT", interrupt);
    lines.close();
  }
}
