import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { UsageError } from "../core/errors.ts";
import { writeFileAtomic } from "../io/atomic.ts";
import { jsonLine } from "../io/jsonl.ts";
import type { Conversation } from "../run/chat/conversation.ts";

const isMarkdown = (path: string) => /\.(md|markdown)$/i.test(path);

/** A conversation as a person reads it. */
function markdown(conversation: Conversation): string {
  const { system } = conversation.settings;
  const head = system === null ? [] : ["## System", system];
  const said = conversation.exchanges.flatMap(({ message, replies }) => [
    "## You",
    message,
    ...replies.flatMap(({ thinking, answer, label }) => [
      `## ${label}`,
      ...(thinking === "" ? [] : [thinking.replace(/^/gm, "> ")]),
      answer,
    ]),
  ]);
  return `${[...head, ...said].join("\n\n")}\n`;
}

/** A line for each model: {"model", "messages", "settings"}, as supervised fine-tuning reads them. */
function jsonl(conversation: Conversation): string {
  const { system: _, ...settings } = conversation.settings;
  return conversation.columns
    .map(
      ({ label }, column) =>
        `${jsonLine({ model: label, messages: conversation.messages(column), settings })}\n`,
    )
    .join("");
}

/** Writes conversations whole or not at all; a file that this chat has not written itself stays as it is. */
export class Transcripts {
  readonly #own = new Set<string>();

  /** Refuses a file that is there already. */
  check(path: string): void {
    if (existsSync(path) && !this.#own.has(resolve(path)))
      throw new UsageError("there is such a file already", path, "choose another name");
  }

  write(path: string, conversation: Conversation): void {
    this.check(path);
    writeFileAtomic(path, (isMarkdown(path) ? markdown : jsonl)(conversation));
    this.#own.add(resolve(path));
  }
}
