/** A token that is found in the text before any other rule applies (tokenizers: `AddedToken`). */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Matches only where no word character touches it. */
  readonly singleWord: boolean;
  /** Swallows the white space on its left or right. */
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  /** Is looked for in the normalized text. */
  readonly normalized: boolean;
  /** Is left out where special tokens are skipped. */
  readonly special: boolean;
}

/** A stretch of text: an added token, or text that goes on to the next stage (id undefined). */
export interface Section {
  readonly text: string;
  readonly id: number | undefined;
  /** UTF-16 offset in the text that was searched. */
  readonly start: number;
}

interface Node {
  readonly next: Map<number, Node>;
  token: AddedToken | undefined;
}

const WORD_AT_END = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u;
const WORD_AT_START = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const SPACES_AT_END = /(?<!\p{White_Space})\p{White_Space}+$/u;
const SPACES_AT_START = /^\p{White_Space}+/u;

/** Finds added tokens, the leftmost first and the longest of those that start there. */
export class AddedTokenFinder {
  readonly #root: Node = { next: new Map(), token: undefined };

  /** `pattern`: the text to look for, the content or what the normalizer makes of it. */
  add(pattern: string, token: AddedToken): void {
    if (pattern === "") return;
    let node = this.#root;
    for (let i = 0; i < pattern.length; i++) {
      const unit = pattern.charCodeAt(i);
      let next = node.next.get(unit);
      if (next === undefined) {
        next = { next: new Map(), token: undefined };
        node.next.set(unit, next);
      }
      node = next;
    }
    node.token ??= token;
  }

  /** The text cut into added tokens and the stretches between them. */
  split(text: string): Section[] {
    const sections: Section[] = [];
    let done = 0;
    let at = 0;
    while (at < text.length) {
      const first = this.#root.next.get(text.charCodeAt(at));
      if (first === undefined) {
        at++;
        continue;
      }
      let found: AddedToken | undefined;
      let end = at;
      for (let node: Node | undefined = first, i = at + 1; node !== undefined; i++) {
        if (node.token !== undefined) {
          found = node.token;
          end = i;
        }
        node = i < text.length ? node.next.get(text.charCodeAt(i)) : undefined;
      }
      if (found === undefined) {
        at++;
        continue;
      }
      const matchEnd = end;
      let start = at;
      const touched =
        found.singleWord && (WORD_AT_END.test(text.slice(0, start)) || WORD_AT_START.test(text.slice(end)));
      if (!touched) {
        if (found.lstrip) {
          start -= text.slice(done, start).match(SPACES_AT_END)?.[0].length ?? 0;
        }
        if (found.rstrip) end += text.slice(end).match(SPACES_AT_START)?.[0].length ?? 0;
        if (done < start) sections.push({ text: text.slice(done, start), id: undefined, start: done });
        sections.push({ text: text.slice(start, end), id: found.id, start });
        done = end;
      }
      at = Math.max(matchEnd, done);
    }
    if (done < text.length) sections.push({ text: text.slice(done), id: undefined, start: done });
    return sections;
  }
}
