import { fieldsOf, typed } from "../config/fields.ts";
import { chatSchema } from "../config/schema-inference.ts";
import { UsageError } from "../core/errors.ts";
import type { Conversation, ConversationSettings, Listener } from "../run/chat/conversation.ts";
import type { ChatModel } from "../run/chat/model.ts";
import type { Transcripts } from "./chat-transcript.ts";
import { talk } from "./talk.ts";

/** What commands work on. */
export interface Terminal {
  readonly conversation: Conversation;
  readonly transcripts: Transcripts;
  /** Opens another model. */
  open(name: string): Promise<ChatModel>;
  /** Streams replies, which Ctrl-C stops. */
  reply(work: (listener: Listener, signal: AbortSignal) => Promise<void>): Promise<void>;
}

export interface ChatCommand {
  readonly args: string;
  readonly help: string;
  run(terminal: Terminal, rest: string): Promise<"exit" | undefined> | "exit" | undefined;
}

type NumberSetting = "temperature" | "top_p" | "top_k" | "min_p" | "max_new_tokens" | "seed";

/** A setting under the name, the type and the bounds of its flag. */
function setting(name: NumberSetting): ChatCommand {
  const info = fieldsOf(chatSchema).find((each) => each.name === name)!;
  return {
    args: "N",
    help: info.description,
    run({ conversation: { settings } }, rest) {
      if (rest !== "") {
        const value = chatSchema.shape[name].safeParse(typed(info, rest));
        if (!value.success)
          throw new UsageError(`${name} expects ${info.expects}, given ${JSON.stringify(rest)}`);
        settings[name] = value.data;
      }
      talk(`${name} ${settings[name]}`);
      return undefined;
    },
  };
}

const THINKING: Readonly<Record<string, boolean | null>> = { on: true, off: false, auto: null };

function settingsText({ system, thinking, ...rest }: ConversationSettings): string {
  const think = Object.entries(THINKING).find(([, value]) => value === thinking)![0];
  const numbers = Object.entries(rest).map(([name, value]) => `${name} ${value}`);
  return [...numbers, `think ${think}`, `system ${system === null ? "none" : JSON.stringify(system)}`].join(
    ", ",
  );
}

const nothing = (name: string, rest: string) => {
  if (rest !== "") throw new UsageError(`/${name} takes nothing behind it`, rest);
};

export const COMMANDS: Readonly<Record<string, ChatCommand>> = {
  help: {
    args: "",
    help: "this list",
    run() {
      for (const [name, { args, help }] of Object.entries(COMMANDS))
        talk(`${`/${name} ${args}`.trimEnd().padEnd(22)} ${help}`);
      talk('A line that ends with \\ goes on in the next one; so does everything between """ and """.');
      talk("Ctrl-C stops a reply, clears the line, or ends the chat; a space before / sends it as text.");
      return undefined;
    },
  },
  system: {
    args: "[TEXT|none]",
    help: "the system message",
    run({ conversation: { settings } }, rest) {
      if (rest !== "") settings.system = rest === "none" ? null : rest;
      talk(settings.system === null ? "no system message" : `system: ${settings.system}`);
      return undefined;
    },
  },
  think: {
    args: "on|off|auto",
    help: "whether a model that can thinks before it answers",
    run({ conversation: { settings, columns } }, rest) {
      if (!Object.hasOwn(THINKING, rest))
        throw new UsageError("/think expects on, off or auto", rest || undefined);
      settings.thinking = THINKING[rest]!;
      const cannot = columns.filter((chat) => !chat.thinks).map(({ label }) => label);
      talk(
        `think ${rest}${cannot.length > 0 ? ` (the template of ${cannot.join(", ")} does not know it)` : ""}`,
      );
      return undefined;
    },
  },
  temp: setting("temperature"),
  top_p: setting("top_p"),
  top_k: setting("top_k"),
  min_p: setting("min_p"),
  max_new_tokens: setting("max_new_tokens"),
  seed: setting("seed"),
  scales: {
    args: "RETAIN FORGET",
    help: "weights of the two adapters of a DualLoRA model",
    run({ conversation: { columns } }, rest) {
      const numbers = rest.split(/\s+/).map(Number);
      const [retain, forget] = numbers;
      if (numbers.length !== 2 || !numbers.every(Number.isFinite))
        throw new UsageError("/scales expects two numbers", rest || undefined, "for instance /scales 1 0");
      for (const chat of columns) chat.setScales({ retain: retain!, forget: forget! });
      talk(`scales: retain ${retain}, forget ${forget}`);
      return undefined;
    },
  },
  settings: {
    args: "",
    help: "what is set",
    run({ conversation: { settings, columns } }, rest) {
      nothing("settings", rest);
      talk(settingsText(settings));
      for (const { label, scales } of columns)
        if (scales) talk(`${label}: scales ${scales.retain} ${scales.forget}`);
      return undefined;
    },
  },
  regen: {
    args: "",
    help: "draw the last reply again",
    async run({ conversation, reply }, rest) {
      nothing("regen", rest);
      await reply((listener, signal) => conversation.regenerate(listener, signal));
      return undefined;
    },
  },
  edit: {
    args: "TEXT",
    help: "put another message in the place of the last one",
    async run({ conversation, reply }, rest) {
      if (rest === "") throw new UsageError("/edit needs the message", undefined, "/edit TEXT");
      await reply((listener, signal) => conversation.edit(rest, listener, signal));
      return undefined;
    },
  },
  undo: {
    args: "",
    help: "take the last message and its reply back",
    run({ conversation }, rest) {
      nothing("undo", rest);
      conversation.undo();
      talk(`the last message is taken back; ${conversation.exchanges.length} are left`);
      return undefined;
    },
  },
  reset: {
    args: "",
    help: "forget the conversation",
    run({ conversation }, rest) {
      nothing("reset", rest);
      conversation.reset();
      talk("the conversation is forgotten");
      return undefined;
    },
  },
  save: {
    args: "FILE",
    help: "write the conversation to a new file: JSONL of messages, or text if it ends with .md",
    run({ conversation, transcripts }, rest) {
      if (rest === "") throw new UsageError("/save needs a file", undefined, "/save chat.md");
      transcripts.write(rest, conversation);
      talk(`saved: ${rest}`);
      return undefined;
    },
  },
  model: {
    args: "[NAME]",
    help: "go on with another model",
    async run(terminal, rest) {
      const { conversation } = terminal;
      if (rest !== "") conversation.columns = [await terminal.open(rest)];
      for (const { label, context } of conversation.columns) talk(`${label}: context of ${context} tokens`);
      return undefined;
    },
  },
  exit: {
    args: "",
    help: "end the chat, as Ctrl-D",
    run: () => "exit",
  },
  quit: { args: "", help: "as /exit", run: () => "exit" },
};
