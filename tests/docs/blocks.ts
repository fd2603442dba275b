/** Command blocks of Markdown, and what comments before them say to the test that runs them. */

/**
 * How a block is run, by HTML comments on the lines before it:
 *
 *   <!-- test: skip WHY -->               not at all; the reason is printed
 *   <!-- test: needs COMMAND: TEXT -->    only where COMMAND prints TEXT; elsewhere it is skipped by name
 *   <!-- test: replace TEXT: OTHER -->    with OTHER in the place of TEXT
 *   <!-- test: leave out TEXT: WHY -->    without the lines that contain TEXT; the reason is printed
 *   <!-- test: append NAME FLAGS -->      flags (with values) behind every `rlv NAME …`, or behind a script of
 *                                         that name, in the place of the same ones that it has
 *   <!-- test: stdin TEXT -->             what its commands read
 *   <!-- test: until TEXT -->             every command by itself, asked to end once it has printed TEXT
 */
export interface Block {
  readonly file: string;
  /** Of the fence, from 1. */
  readonly line: number;
  readonly text: string;
  readonly skip: string | null;
  readonly needs: { readonly command: string; readonly text: string } | null;
  readonly replace: ReadonlyMap<string, string>;
  readonly leaveOut: readonly { readonly text: string; readonly why: string }[];
  readonly append: ReadonlyMap<string, string>;
  readonly stdin: string;
  readonly until: string | null;
}

const FENCE = /^```(sh|bash|shell|console)\s*$/;

/** What is typed in a console: the lines behind `$ `. */
const typed = (lines: readonly string[]): string[] =>
  lines.filter((line) => line.startsWith("$ ")).map((line) => line.slice(2));

export function blocksOf(file: string, markdown: string): Block[] {
  const lines = markdown.split("\n");
  const blocks: Block[] = [];
  for (let at = 0; at < lines.length; at++) {
    const language = FENCE.exec(lines[at]!)?.[1];
    // Other fences are passed over whole: what they quote is no fence.
    if (language === undefined && !/^```\w/.test(lines[at]!)) continue;
    const end = lines.indexOf("```", at + 1);
    if (end < 0) throw new Error(`a block without an end: ${file}:${at + 1}`);
    if (language !== undefined) {
      const body = lines.slice(at + 1, end);
      const text = (language === "console" ? typed(body) : body).join("\n");
      blocks.push({ file, line: at + 1, text, ...directives(file, lines, at) });
    }
    at = end;
  }
  return blocks;
}

function directives(
  file: string,
  lines: readonly string[],
  fence: number,
): Omit<Block, "file" | "line" | "text"> {
  let skip: string | null = null;
  let needs: Block["needs"] = null;
  let until: string | null = null;
  let stdin = "";
  const leaveOut: { text: string; why: string }[] = [];
  const append = new Map<string, string>();
  const replace = new Map<string, string>();
  for (let at = fence - 1; at >= 0 && lines[at]!.startsWith("<!-- test:"); at--) {
    const [, word, rest = ""] = /^<!-- test: (\w+)\s*(.*?) -->$/.exec(lines[at]!) ?? [];
    const left = /^out (.+?): (.+)$/.exec(rest);
    const pair = /^(.+?): (.+)$/.exec(rest);
    const more = /^(\S+) (.+)$/.exec(rest);
    if (word === "skip" && rest !== "") skip = rest;
    else if (word === "needs" && pair !== null) needs = { command: pair[1]!, text: pair[2]! };
    else if (word === "replace" && pair !== null) replace.set(pair[1]!, pair[2]!);
    else if (word === "leave" && left !== null) leaveOut.push({ text: left[1]!, why: left[2]! });
    else if (word === "append" && more !== null) append.set(more[1]!, more[2]!);
    else if (word === "stdin" && rest !== "") stdin = `${rest}\n`;
    else if (word === "until" && rest !== "") until = rest;
    else throw new Error(`not a directive: ${file}:${at + 1}: ${lines[at]}`);
  }
  return { skip, needs, replace, leaveOut, append, stdin, until };
}

/** The commands of a block; throws if what is to be left out or replaced is not there. */
export function commandsOf(block: Block): string {
  let { text: all } = block;
  for (const [text, other] of block.replace) {
    if (!all.includes(text)) throw new Error(`nothing to replace: ${block.file}:${block.line}: ${text}`);
    all = all.replaceAll(text, other);
  }
  let lines = all.split("\n");
  for (const { text } of block.leaveOut) {
    const kept = lines.filter((line) => !line.includes(text));
    if (kept.length === lines.length)
      throw new Error(`nothing to leave out: ${block.file}:${block.line}: ${text}`);
    lines = kept;
  }
  return lines.join("\n");
}
