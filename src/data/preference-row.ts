/** Rows of preference data in the forms they come in: HH transcripts, text, and chat messages. */
import { UsageError } from "../core/errors.ts";
import type { JsonRow } from "../io/jsonl.ts";
import { parseTranscript, type Turn } from "./conversation.ts";
import type { PreferenceRow } from "./preferences.ts";
import { checkMessages } from "./prompts.ts";

/** A row whose form is right and which holds no pair: HH has a few. */
export class UnusableRow extends UsageError {}

/** Checks a row and parts what is common to both answers from the rest. */
export function preferenceRow(row: JsonRow, where: string, index: number): PreferenceRow {
  for (const column of ["chosen", "rejected"])
    if (row[column] === undefined || row[column] === null)
      throw new UsageError(
        `no column ${JSON.stringify(column)}`,
        where,
        "preference data has chosen and rejected in every row",
      );
  const parts = Array.isArray(row.chosen) ? messageParts(row, where) : textParts(row, where);
  return { index, where, ...parts, ...marginOf(row, where) };
}

function marginOf(row: JsonRow, where: string): { margin?: number } {
  if (row.margin === undefined || row.margin === null) return {};
  if (typeof row.margin !== "number" || !Number.isFinite(row.margin))
    throw new UsageError(`margin is ${JSON.stringify(row.margin)}`, where, "give a finite number");
  return { margin: row.margin };
}

type Parts = Pick<PreferenceRow, "prompt" | "chosen" | "rejected">;

/** TRL's forms: the prompt by itself (messages, or one message's text), or in both conversations. */
function messageParts(row: JsonRow, where: string): Parts {
  const list = (column: string): Turn[] => {
    const value = row[column];
    if (!Array.isArray(value))
      throw new UsageError(
        `${column} is not a list of messages as chosen is`,
        where,
        "use one form in a row",
      );
    return checkMessages(value, `${where}, ${column}`) as Turn[];
  };
  const chosen = list("chosen");
  const rejected = list("rejected");
  const prompt = promptTurns(row, chosen, list);
  return conversationParts([...prompt, ...chosen], [...prompt, ...rejected], where);
}

function promptTurns(row: JsonRow, chosen: readonly Turn[], list: (column: string) => Turn[]): Turn[] {
  if (row.prompt === undefined || row.prompt === null) return [];
  if (typeof row.prompt !== "string") return list("prompt");
  // Some datasets repeat the first question as text beside conversations that hold it.
  const { prompt } = row;
  return chosen.some(({ role, content }) => role === "user" && content === prompt)
    ? []
    : [{ role: "user", content: prompt }];
}

/** HH transcripts become conversations; other text stays as it is. */
function textParts(row: JsonRow, where: string): Parts {
  const text = (column: string): string => {
    const value = row[column];
    if (typeof value !== "string")
      throw new UsageError(
        `${column} is ${Array.isArray(value) ? "a list" : typeof value}, not text`,
        where,
        "give text in every column, or messages in every column",
      );
    return value;
  };
  const given = row.prompt === undefined || row.prompt === null ? "" : text("prompt");
  const chosen = text("chosen");
  const rejected = text("rejected");
  const [a, b] = [parseTranscript(given + chosen), parseTranscript(given + rejected)];
  if (a !== null && b !== null) return conversationParts(a, b, where);
  if ((a === null) !== (b === null))
    throw new UsageError("only one of chosen and rejected is a transcript", where, "use one form in a row");
  const cut = given === "" ? commonText(chosen, rejected) : 0;
  const parts = {
    prompt: given + chosen.slice(0, cut),
    chosen: chosen.slice(cut),
    rejected: rejected.slice(cut),
  };
  for (const column of ["chosen", "rejected"] as const)
    if (text(column).trim() === "") throw emptyAnswer(column, where);
  return parts;
}

/** Length of the text that both begin with, up to the end of a word. */
function commonText(chosen: string, rejected: string): number {
  const most = Math.min(chosen.length, rejected.length);
  let n = 0;
  while (n < most && chosen[n] === rejected[n]) n++;
  // An answer keeps at least a word.
  while (n > 0 && (n === most || !/\s/.test(chosen[n]!))) n--;
  return n;
}

function conversationParts(chosen: readonly Turn[], rejected: readonly Turn[], where: string): Parts {
  for (const [column, turns] of [
    ["chosen", chosen],
    ["rejected", rejected],
  ] as const) {
    const last = turns.at(-1);
    if (last?.role !== "assistant")
      throw new UnusableRow(`${column} does not end with the assistant's turn`, where, "remove that row");
    if (last.content.trim() === "") throw emptyAnswer(column, where);
  }
  const same = (i: number) =>
    chosen[i]!.role === rejected[i]!.role && chosen[i]!.content === rejected[i]!.content;
  // The last turn of each is its answer, also where both are the same.
  const most = Math.min(chosen.length, rejected.length) - 1;
  let n = 0;
  while (n < most && same(n)) n++;
  return { prompt: chosen.slice(0, n), chosen: chosen.slice(n), rejected: rejected.slice(n) };
}

function emptyAnswer(column: string, where: string): UnusableRow {
  return new UnusableRow(`${column} has an empty answer`, where, "remove that row");
}
