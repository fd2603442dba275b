/** What a terminal in raw mode sends, as keys. */
export type Key =
  | "up"
  | "down"
  | "left"
  | "right"
  | "enter"
  | "escape"
  | "backspace"
  | "tab"
  | "home"
  | "end"
  | "page-up"
  | "page-down"
  | "ctrl-c"
  | "ctrl-d"
  | "ctrl-u"
  | { readonly text: string };

const SEQUENCES: Readonly<Record<string, Key>> = {
  "\x1b[A": "up",
  "\x1b[B": "down",
  "\x1b[C": "right",
  "\x1b[D": "left",
  "\x1bOA": "up",
  "\x1bOB": "down",
  "\x1bOC": "right",
  "\x1bOD": "left",
  "\x1b[H": "home",
  "\x1b[F": "end",
  "\x1b[1~": "home",
  "\x1b[4~": "end",
  "\x1b[5~": "page-up",
  "\x1b[6~": "page-down",
  "\x1b": "escape",
  "\r": "enter",
  "\n": "enter",
  "\t": "tab",
  "\x7f": "backspace",
  "\b": "backspace",
  "\x03": "ctrl-c",
  "\x04": "ctrl-d",
  "\x15": "ctrl-u",
};

/** Takes a chunk of input apart: sequences, control characters and runs of text. Unknown sequences are dropped. */
export function keysOf(chunk: string): Key[] {
  const keys: Key[] = [];
  // A CSI or SS3 sequence, one control character, or text.
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is being read
  for (const [part] of chunk.matchAll(/\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|[\x00-\x1f\x7f]|[^\x00-\x1f\x7f]+/gu)) {
    const known = SEQUENCES[part];
    if (known !== undefined) keys.push(known);
    else if (part >= " ") keys.push({ text: part });
  }
  return keys;
}
