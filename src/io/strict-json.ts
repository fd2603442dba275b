import { shown, UsageError } from "../core/errors.ts";

/**
 * JSON as RFC 8259 writes it, and nothing lost: duplicate keys are an error (JSON.parse keeps the last one
 * silently) and numbers keep their text (JSON.parse rounds integers beyond 2^53 and hides `1.0`).
 */
export class JsonNumber {
  constructor(readonly text: string) {}
}
export type Json = null | boolean | string | JsonNumber | Json[] | Map<string, Json>;

/** Deeper nesting than this is an attack on the stack, not a header. */
const MAX_DEPTH = 128;

/** Parses a complete JSON text. `where` names it in errors. */
export function parseStrictJson(text: string, where: string): Json {
  return new Scanner(text, where).document();
}

const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
/** What a string may hold without an escape: everything but quote, backslash and control characters. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what must be refused
const PLAIN = /[^"\\\u0000-\u001f]*/y;
const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

class Scanner {
  #at = 0;
  constructor(
    readonly text: string,
    readonly where: string,
  ) {}

  document(): Json {
    this.#space();
    const value = this.#value(0);
    this.#space();
    if (this.#at < this.text.length) this.#fail("unexpected text after the JSON value");
    return value;
  }

  #fail(what: string): never {
    throw new UsageError(`${what} (character ${this.#at})`, this.where, "the file is damaged; get it again");
  }

  #space(): void {
    for (; this.#at < this.text.length; this.#at++) {
      const code = this.text.charCodeAt(this.#at);
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return;
    }
  }

  #value(depth: number): Json {
    if (depth > MAX_DEPTH) this.#fail("JSON is nested too deeply");
    switch (this.text[this.#at]) {
      case "{":
        return this.#object(depth);
      case "[":
        return this.#array(depth);
      case '"':
        return this.#string();
      case "t":
        return this.#word("true", true);
      case "f":
        return this.#word("false", false);
      case "n":
        return this.#word("null", null);
      case undefined:
        return this.#fail("JSON ends early");
      default:
        return this.#number();
    }
  }

  #word<T>(word: string, value: T): T {
    if (!this.text.startsWith(word, this.#at)) this.#fail("invalid JSON");
    this.#at += word.length;
    return value;
  }

  #number(): JsonNumber {
    NUMBER.lastIndex = this.#at;
    const match = NUMBER.exec(this.text);
    if (!match) this.#fail("invalid JSON");
    this.#at += match[0].length;
    return new JsonNumber(match[0]);
  }

  #string(): string {
    this.#at += 1;
    let result = "";
    for (;;) {
      PLAIN.lastIndex = this.#at;
      const plain = PLAIN.exec(this.text)![0];
      result += plain;
      this.#at += plain.length;
      const next = this.text[this.#at];
      if (next === '"') {
        this.#at += 1;
        if (!result.isWellFormed()) this.#fail("half a surrogate pair in a string");
        return result;
      }
      if (next === undefined) this.#fail("JSON ends early");
      if (next !== "\\") this.#fail("control character in a string");
      result += this.#escape();
    }
  }

  #escape(): string {
    const letter = this.text[this.#at + 1] ?? "";
    if (letter === "u") {
      const digits = this.text.slice(this.#at + 2, this.#at + 6);
      if (!/^[0-9a-fA-F]{4}$/.test(digits)) this.#fail("invalid escape in a string");
      this.#at += 6;
      return String.fromCharCode(Number.parseInt(digits, 16));
    }
    const value = Object.hasOwn(ESCAPES, letter) ? ESCAPES[letter] : undefined;
    if (value === undefined) this.#fail("invalid escape in a string");
    this.#at += 2;
    return value;
  }

  #array(depth: number): Json[] {
    const items: Json[] = [];
    this.#at += 1;
    this.#space();
    if (this.text[this.#at] === "]") {
      this.#at += 1;
      return items;
    }
    for (;;) {
      this.#space();
      items.push(this.#value(depth + 1));
      this.#space();
      const next = this.text[this.#at];
      if (next !== "," && next !== "]") this.#fail(next === undefined ? "JSON ends early" : "invalid JSON");
      this.#at += 1;
      if (next === "]") return items;
    }
  }

  #object(depth: number): Map<string, Json> {
    const entries = new Map<string, Json>();
    this.#at += 1;
    this.#space();
    if (this.text[this.#at] === "}") {
      this.#at += 1;
      return entries;
    }
    for (;;) {
      this.#space();
      if (this.text[this.#at] !== '"')
        this.#fail(this.#at >= this.text.length ? "JSON ends early" : "invalid JSON");
      const key = this.#string();
      if (entries.has(key)) this.#fail(`duplicate key ${shown(key)}`);
      this.#space();
      if (this.text[this.#at] !== ":") this.#fail("invalid JSON");
      this.#at += 1;
      this.#space();
      entries.set(key, this.#value(depth + 1));
      this.#space();
      const next = this.text[this.#at];
      if (next !== "," && next !== "}") this.#fail(next === undefined ? "JSON ends early" : "invalid JSON");
      this.#at += 1;
      if (next === "}") return entries;
    }
  }
}
