/** A rubric in the tokens of a judge: what is the same for all responses, what comes with each, what each criterion asks. */
import { UsageError } from "../core/errors.ts";
import type { Prompt } from "../core/records.ts";
import { stripThinking, type Turn, transcriptText } from "../data/conversation.ts";
import { hasChatTemplate, renderChat } from "../io/template.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import { about, fill, preambleText, type Rubric, valuesOf } from "../reward/rubric.ts";

/** Where the conversation goes in a rendered template: a character that no text has. */
const MARK = "\ue000";

/** What a judge reads is preamble, prompt, response, `shared`, and the `own` tokens of one criterion. */
export interface JudgeFrame {
  readonly preamble: Int32Array;
  /** Behind every response, before criteria differ. */
  readonly shared: Int32Array;
  /** By criterion, in the rubric's order; at least one token each. */
  readonly own: readonly Int32Array[];
  /** Ids that say a value of the scale, lowest first: with a space before the digit and without. */
  readonly values: readonly (readonly number[])[];
  readonly promptIds: (text: string) => Int32Array;
  readonly responseIds: (text: string) => Int32Array;
  /** What ends an answer, and the text of one. */
  readonly eosIds: readonly number[];
  readonly decode: (ids: readonly number[]) => string;
}

export function judgeFrame(rubric: Rubric, tokenizer: Tokenizer): JudgeFrame {
  const { template, criteria, scale } = rubric;
  const [beforePrompt, rest] = cut(template.conversation, "{prompt}");
  const [between, afterResponse] = cut(rest, "{response}");
  const preamble = preambleText(rubric);
  const frames = criteria.map((criterion) => {
    const values = about(criterion, scale);
    const message = `${preamble}${MARK}${afterResponse}${fill(template.question, values)}`;
    const [before, after] = aroundMark(message, tokenizer);
    return { before, tail: after + fill(template.answer, values) };
  });
  const before = frames[0]!.before;
  if (frames.some((frame) => frame.before !== before))
    throw new UsageError(
      "the chat template puts the question before the conversation",
      tokenizer.folder,
      "take another judge",
    );
  const tails = frames.map(({ tail }) => tokenizer.encode(tail));
  const common = commonPrefix(tails);
  const text = untrusted(tokenizer);
  return {
    preamble: tokenizer.encode(before),
    shared: tails[0]!.slice(0, common),
    own: tails.map((ids) => ids.slice(common)),
    values: valuesOf(scale).map((value) => idsOfValue(value, tokenizer)),
    promptIds: (prompt) => text(beforePrompt + prompt + between),
    responseIds: (response) => text(response),
    eosIds: tokenizer.eosIds,
    decode: (ids) => tokenizer.decode(ids, { skipSpecialTokens: true }),
  };
}

/** The rendered message around its mark. Without a chat template the message is the text. */
function aroundMark(message: string, tokenizer: Tokenizer): readonly [string, string] {
  const rendered = hasChatTemplate(tokenizer)
    ? renderChat(tokenizer, [{ role: "user", content: message }], {
        addGenerationPrompt: true,
        enable_thinking: false,
      })
    : message;
  const parts = rendered.split(MARK);
  if (parts.length !== 2 || parts[0] === "")
    throw new UsageError(
      "the chat template does not print a message as it is",
      tokenizer.folder,
      "take another judge, or a preamble with text before the conversation",
    );
  return [parts[0]!, parts[1]!];
}

function cut(text: string, at: string): readonly [string, string] {
  const i = text.indexOf(at);
  return [text.slice(0, i), text.slice(i + at.length)];
}

/** How many tokens all lists begin with, so that each keeps one of its own. */
function commonPrefix(lists: readonly Int32Array[]): number {
  const first = lists[0]!;
  const most = Math.min(...lists.map((ids) => ids.length)) - 1;
  if (most < 0)
    throw new UsageError("nothing stands behind a response", "rubric", "give the template a question");
  let n = 0;
  while (n < most && lists.every((ids) => ids[n] === first[n])) n++;
  return n;
}

/** Encodes text so that nothing in it becomes a special token: a response cannot end its own turn. */
function untrusted(tokenizer: Tokenizer): (text: string) => Int32Array {
  const contents: string[] = [];
  for (let id = 0; id < tokenizer.vocabSize; id++) {
    const token = tokenizer.idToToken(id);
    if (token !== undefined && [...token].length > 1 && tokenizer.isSpecial(id)) contents.push(token);
  }
  if (contents.length === 0) return (text) => tokenizer.encode(text);
  const literal = (text: string) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
  const inside = contents.map((token) => {
    const [first] = token;
    return `(?<=${literal(first!)})(?=${literal(token.slice(first!.length))})`;
  });
  const pattern = new RegExp(inside.join("|"), "u");
  return (text) => Int32Array.from(text.split(pattern).flatMap((part) => [...tokenizer.encode(part)]));
}

function idsOfValue(value: number, tokenizer: Tokenizer): number[] {
  const single = [String(value), ` ${value}`].map((text) => tokenizer.encode(text));
  const ids = single.flatMap((list) => (list.length === 1 ? [list[0]!] : []));
  const named = tokenizer.tokenToId(String(value));
  const found = [...new Set([...ids, ...(named === undefined ? [] : [named])])];
  if (found.length === 0)
    throw new UsageError(
      `${value} is not one token`,
      tokenizer.folder,
      "take a judge with another tokenizer",
    );
  return found;
}

/** What the judge reads of a prompt: its own words, without any template's. */
export function promptText({ text, fields }: Prompt): string {
  if (typeof fields.prompt === "string") return fields.prompt;
  if (!Array.isArray(fields.messages)) return text;
  const turns = fields.messages as Turn[];
  const only = turns.length === 1 ? turns[0] : undefined;
  return only?.role === "user" ? only.content : transcriptText(turns, false).trim();
}

/** What it reads of a completion: the answer without thoughts, finished ones or not. */
export function responseText(completion: string): string {
  return stripThinking(completion)
    .replace(/<think>[\s\S]*$/, "")
    .trim();
}
