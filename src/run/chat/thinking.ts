/** Reasoning that models write between tags before they answer. */
export const THINK = "<think>";
export const THOUGHT = "</think>";

export interface Part {
  readonly text: string;
  readonly thinking: boolean;
}

/** Length of the longest end of `text` that `tag` begins with. */
function begun(text: string, tag: string): number {
  for (let n = Math.min(text.length, tag.length - 1); n > 0; n--)
    if (tag.startsWith(text.slice(-n))) return n;
  return 0;
}

/**
 * Parts a streamed reply into thinking and answer, without the tags and the line breaks next to them. A tag may come in
 * pieces: what may be one is held back.
 */
export class ThinkingParts {
  #state: "start" | "thinking" | "answer";
  #held = "";
  /** Line breaks behind a tag are dropped. */
  #trim = false;
  thinking = "";
  answer = "";

  /** @param opened the prompt ends with the opening tag */
  constructor(opened: boolean) {
    this.#state = opened ? "thinking" : "start";
    this.#trim = opened;
  }

  get inside(): boolean {
    return this.#state === "thinking";
  }

  push(piece: string): Part[] {
    this.#held += piece;
    const parts: Part[] = [];
    if (this.#state === "start") {
      const text = this.#held.trimStart();
      if (text.length < THINK.length && THINK.startsWith(text)) return parts;
      if (text.startsWith(THINK)) {
        this.#state = "thinking";
        this.#held = text.slice(THINK.length);
        this.#trim = true;
      } else this.#state = "answer";
    }
    if (this.#state === "thinking") {
      const end = this.#held.indexOf(THOUGHT);
      if (end < 0) {
        // A line break may stand before the closing tag.
        const kept = begun(this.#held, THOUGHT);
        const upTo = this.#held.slice(0, this.#held.length - kept).trimEnd().length;
        this.#say(parts, this.#held.slice(0, upTo));
        this.#held = this.#held.slice(upTo);
        return parts;
      }
      this.#say(parts, this.#held.slice(0, end).trimEnd());
      this.#state = "answer";
      this.#held = this.#held.slice(end + THOUGHT.length);
      this.#trim = true;
    }
    this.#say(parts, this.#held);
    this.#held = "";
    return parts;
  }

  /** What was held back for a tag that did not come. */
  end(): Part[] {
    const parts: Part[] = [];
    if (this.#state === "start") this.#state = "answer";
    this.#say(parts, this.inside ? this.#held.trimEnd() : this.#held);
    this.#held = "";
    return parts;
  }

  #say(parts: Part[], text: string): void {
    if (this.#trim) text = text.replace(/^\s+/, "");
    if (text === "") return;
    this.#trim = false;
    if (this.inside) this.thinking += text;
    else this.answer += text;
    parts.push({ text, thinking: this.inside });
  }
}
