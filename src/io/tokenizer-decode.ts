import type { Part } from "./tokenizer-config.ts";
import { alphabetToBytes, compilePattern } from "./tokenizer-pattern.ts";

/**
 * Tokens to text, a token at a time (tokenizers: `decoders`). `push` returns the text that is settled,
 * `end` the rest: joined they are the text of all tokens at once, since decoding at once is done so too.
 */
export interface TextStream {
  push(token: string): string;
  end(): string;
}

/** One stage on tokens: hands zero or more tokens to the next stage. */
interface TokenStage {
  push(token: string, emit: (token: string) => void): void;
  end?(emit: (token: string) => void): void;
}

const KNOWN = [
  "Sequence",
  "ByteLevel",
  "WordPiece",
  "Metaspace",
  "BPEDecoder",
  "Replace",
  "ByteFallback",
  "Fuse",
  "Strip",
] as const;

/** Makes a decoder's fresh streams; unknown types are refused here and now. */
export function makeDecoder(part: Part | null, cleanUp: boolean): () => TextStream {
  const make = part === null ? () => asText([spaced()]) : chain(flatten(part));
  return cleanUp ? () => new CleanUp(make()) : make;
}

function flatten(part: Part): Part[] {
  return part.type === "Sequence" ? part.parts("decoders").flatMap(flatten) : [part];
}

function chain(parts: Part[]): () => TextStream {
  // From ByteLevel or Fuse on there is one token, of which pieces arrive.
  const joint = parts.findIndex((part) => part.type === "ByteLevel" || part.type === "Fuse");
  const before = (joint < 0 ? parts : parts.slice(0, joint)).map(tokenStage);
  const bytes = joint >= 0 && parts[joint]!.type === "ByteLevel";
  const after = joint < 0 ? [] : parts.slice(joint + 1).map(fusedStage);
  return () => {
    const stages = before.map((make) => make());
    let stream: TextStream = bytes ? new ByteStream(stages) : asText(stages);
    for (const make of after) stream = make(stream);
    return stream;
  };
}

function tokenStage(part: Part): () => TokenStage {
  switch (part.type) {
    case "WordPiece": {
      const prefix = part.string("prefix", "##");
      const cleanup = part.flag("cleanup", true);
      return () => {
        let first = true;
        return perToken((token) => {
          if (!first) token = token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
          first = false;
          return cleanup ? replaceEach(token, CLEAN_UP_WORDPIECE) : token;
        });
      };
    }
    case "Metaspace": {
      const space = part.string("replacement", "\u2581");
      const scheme = part.json.prepend_scheme ?? (part.flag("add_prefix_space", true) ? "always" : "never");
      return () => {
        let first = scheme !== "never";
        return perToken((token) => {
          const text = token.replaceAll(space, first ? "" : " ");
          first = false;
          return text;
        });
      };
    }
    case "BPEDecoder": {
      const suffix = part.string("suffix", "</w>");
      return () => {
        let held: string | undefined;
        return {
          push(token, emit) {
            if (held !== undefined) emit(held.replaceAll(suffix, " "));
            held = token;
          },
          end(emit) {
            if (held !== undefined) emit(held.replaceAll(suffix, ""));
          },
        };
      };
    }
    case "Replace": {
      const replace = replacement(part);
      return () => perToken(replace);
    }
    case "ByteFallback":
      return byteFallback;
    case "Strip": {
      const { content, start, stop } = stripOf(part);
      return () =>
        perToken((token) => {
          const chars = Array.from(token);
          let from = 0;
          while (from < start && chars[from] === content) from++;
          let to = chars.length;
          while (to > from && chars.length - to < stop && chars[to - 1] === content) to--;
          return chars.slice(from, to).join("");
        });
    }
    default:
      return part.unknown(KNOWN);
  }
}

/** A stage behind Fuse or ByteLevel, where the whole text is one token. */
function fusedStage(part: Part): (inner: TextStream) => TextStream {
  switch (part.type) {
    case "Fuse":
      return (inner) => inner;
    case "Strip": {
      const { content, start, stop } = stripOf(part);
      return (inner) => new StripEnds(inner, content, start, stop);
    }
    case "Replace": {
      const replace = replacement(part);
      return (inner) => new AtEnd(inner, replace);
    }
    default:
      return KNOWN.includes(part.type as (typeof KNOWN)[number])
        ? part.unsupported("its place behind Fuse or ByteLevel")
        : part.unknown(KNOWN);
  }
}

function stripOf(part: Part): { content: string; start: number; stop: number } {
  return { content: part.string("content"), start: part.number("start"), stop: part.number("stop") };
}

function replacement(part: Part): (token: string) => string {
  const pattern = compilePattern(part);
  const content = part.string("content");
  return (token) => token.replace(pattern, () => content);
}

function perToken(map: (token: string) => string): TokenStage {
  return { push: (token, emit) => emit(map(token)) };
}

/** Without a decoder tokens are joined with spaces. */
function spaced(): TokenStage {
  let first = true;
  return perToken((token) => {
    const text = first ? token : ` ${token}`;
    first = false;
    return text;
  });
}

const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * Runs of <0x00>…<0xFF> become the text they spell. Where a run is not UTF-8 each of its bytes is one
 * U+FFFD, so a run is settled only where it ends.
 */
function byteFallback(): TokenStage {
  let run: number[] = [];
  const flush = (emit: (token: string) => void): void => {
    if (run.length === 0) return;
    let text: string;
    try {
      text = strictUtf8.decode(Uint8Array.from(run));
    } catch {
      text = "\ufffd".repeat(run.length);
    }
    run = [];
    emit(text);
  };
  return {
    push(token, emit) {
      const hex = /^<0x([0-9a-fA-F]{2})>$/.exec(token)?.[1];
      if (hex !== undefined) {
        run.push(Number.parseInt(hex, 16));
      } else {
        flush(emit);
        emit(token);
      }
    },
    end: flush,
  };
}

/** Runs a token through all stages and joins what comes out. */
class Pipeline {
  constructor(readonly stages: readonly TokenStage[]) {}

  push(token: string, sink: (token: string) => void, from = 0): void {
    const stage = this.stages[from];
    if (stage === undefined) sink(token);
    else stage.push(token, (next) => this.push(next, sink, from + 1));
  }

  end(sink: (token: string) => void): void {
    this.stages.forEach((stage, i) => {
      stage.end?.((next) => this.push(next, sink, i + 1));
    });
  }
}

function asText(stages: readonly TokenStage[]): TextStream {
  const pipeline = new Pipeline(stages);
  let text = "";
  const sink = (token: string): void => {
    text += token;
  };
  const take = (): string => {
    const taken = text;
    text = "";
    return taken;
  };
  return {
    push(token) {
      pipeline.push(token, sink);
      return take();
    },
    end() {
      pipeline.end(sink);
      return take();
    },
  };
}

/** Byte-level tokens: an incomplete character waits for its other bytes; U+FEFF is text like any other. */
class ByteStream implements TextStream {
  readonly #pipeline: Pipeline;
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  #text = "";

  constructor(stages: readonly TokenStage[]) {
    this.#pipeline = new Pipeline(stages);
  }

  readonly #sink = (token: string): void => {
    this.#text += this.#utf8.decode(alphabetToBytes(token), { stream: true });
  };

  push(token: string): string {
    this.#pipeline.push(token, this.#sink);
    return this.#take();
  }

  end(): string {
    this.#pipeline.end(this.#sink);
    this.#text += this.#utf8.decode();
    return this.#take();
  }

  #take(): string {
    const text = this.#text;
    this.#text = "";
    return text;
  }
}

/** Drops up to `start` leading and `stop` trailing `content` characters of the whole text. */
class StripEnds implements TextStream {
  #left: number;
  #held = "";

  constructor(
    readonly inner: TextStream,
    readonly content: string,
    start: number,
    readonly stop: number,
  ) {
    this.#left = start;
  }

  push(token: string): string {
    return this.#settle(this.inner.push(token));
  }

  end(): string {
    const text = this.#settle(this.inner.end()) + this.#held;
    let to = text.length;
    for (let cut = 0; cut < this.stop && text.endsWith(this.content, to); cut++) to -= this.content.length;
    return text.slice(0, to);
  }

  #settle(text: string): string {
    while (this.#left > 0 && text !== "") {
      if (text.startsWith(this.content)) {
        text = text.slice(this.content.length);
        this.#left--;
      } else {
        this.#left = 0;
      }
    }
    text = this.#held + text;
    let to = text.length;
    for (let cut = 0; cut < this.stop && text.endsWith(this.content, to); cut++) to -= this.content.length;
    this.#held = text.slice(to);
    return text.slice(0, to);
  }
}

/** A change to the whole text that cannot be made piece by piece. */
class AtEnd implements TextStream {
  #text = "";

  constructor(
    readonly inner: TextStream,
    readonly change: (text: string) => string,
  ) {}

  push(token: string): string {
    this.#text += this.inner.push(token);
    return "";
  }

  end(): string {
    return this.change(this.#text + this.inner.end());
  }
}

/** The clean-up of `clean_up_tokenization_spaces` (transformers, `clean_up_tokenization`). */
const CLEAN_UP: readonly (readonly [string, string])[] = [
  [" .", "."],
  [" ?", "?"],
  [" !", "!"],
  [" ,", ","],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
];

/** The WordPiece decoder's own, applied token by token (tokenizers, `decoders::wordpiece::cleanup`). */
const CLEAN_UP_WORDPIECE = CLEAN_UP.toSpliced(7, 0, [" do not", " don't"]);

function replaceEach(text: string, pairs: typeof CLEAN_UP): string {
  for (const [from, to] of pairs) text = text.replaceAll(from, to);
  return text;
}

/**
 * Cleans settled text up. A cut is safe before a space that follows neither a space nor an apostrophe:
 * every pattern starts with a space, and the one that holds a second (" ' ") has an apostrophe before it.
 */
class CleanUp implements TextStream {
  #held = "";

  constructor(readonly inner: TextStream) {}

  push(token: string): string {
    const text = this.#held + this.inner.push(token);
    let cut = text.lastIndexOf(" ");
    while (cut > 0 && (text[cut - 1] === " " || text[cut - 1] === "'")) cut = text.lastIndexOf(" ", cut - 1);
    if (cut < 0) cut = 0;
    this.#held = text.slice(cut);
    return replaceEach(text.slice(0, cut), CLEAN_UP);
  }

  end(): string {
    return replaceEach(this.#held + this.inner.end(), CLEAN_UP);
  }
}
