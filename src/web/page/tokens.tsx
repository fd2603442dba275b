import type { ComponentChildren, JSX } from "preact";
import { useMemo, useState } from "preact/hooks";
import { figure, percent, signed } from "./format.ts";

/** What the colour behind a token says. */
export type Shade = "none" | "logprob" | "advantage" | "push";

export const SHADES: readonly { readonly id: Shade; readonly name: string; readonly help: string }[] = [
  { id: "logprob", name: "Surprise", help: "the darker, the less likely the token was when it was drawn" },
  { id: "advantage", name: "Advantage", help: "green: better than its group, red: worse" },
  { id: "push", name: "Push", help: "advantage × (1 − p): how hard the update moves the token's own logit" },
  { id: "none", name: "Plain", help: "text alone" },
];

const NAMED: Readonly<Record<string, string>> = {
  "\n": "⏎",
  "\t": "⇥",
  "\r": "␍",
  "\u00a0": "⍽",
  "\u200b": "‹zero-width space›",
  "\u200d": "‹joiner›",
  "\u202e": "‹right-to-left override›",
  "\ufeff": "‹byte order mark›",
};

/** Characters that would be invisible, or would rearrange the line, get a sign of their own. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is made visible
const INVISIBLE = /[\u0000-\u001f\u007f-\u00a0\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffd]/gu;
const SPECIAL =
  /<\|[^|<>]{1,40}\|>|<\/?(?:s|bos|eos|pad|unk|think|tool_call|tool_response)>|\[(?:EOS|BOS|PAD|UNK|SEP|CLS)\]/g;

const MARKED = new RegExp(`${INVISIBLE.source}|${SPECIAL.source}`, "gu");

function signOf(char: string): string {
  return NAMED[char] ?? `‹U+${char.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}›`;
}

interface VisibleProps {
  readonly text: string;
  /** Spaces as dots. */
  readonly spaces?: boolean;
  /** Line feeds with a sign before they break the line. */
  readonly feeds?: boolean;
}

/** A text with signs in the place of what cannot be seen. */
export function Visible({ text, spaces = false, feeds = true }: VisibleProps) {
  return useMemo(() => <>{visible(text, spaces, feeds)}</>, [text, spaces, feeds]);
}

function visible(text: string, spaces: boolean, feeds: boolean): ComponentChildren {
  const parts: (string | JSX.Element)[] = [];
  let from = 0;
  const push = (to: number) => {
    if (to > from) parts.push(spaces ? text.slice(from, to).replaceAll(" ", "·") : text.slice(from, to));
  };
  for (const match of text.matchAll(MARKED)) {
    push(match.index);
    const found = match[0];
    if (found === "\n" && !feeds) {
      from = match.index;
      continue;
    }
    from = match.index + found.length;
    parts.push(
      found.length > 2 ? (
        <span class="special" key={match.index}>
          {found}
        </span>
      ) : (
        <span class="sign" key={match.index}>
          {signOf(found)}
        </span>
      ),
    );
    if (found === "\n") parts.push("\n");
  }
  push(text.length);
  return parts;
}

/** Step 0…9 of a colour scale; the style sheet has a class for each. */
const step = (share: number): number => Math.max(0, Math.min(9, Math.floor(share * 10)));

function shadeClass(shade: Shade, logprob: number, advantage: number | null): string {
  if (shade === "logprob" && Number.isFinite(logprob)) return ` heat h${step(Math.min(1, -logprob / 4))}`;
  if ((shade === "advantage" || shade === "push") && advantage !== null) {
    const size = Math.abs(advantage) * (shade === "push" ? 1 - Math.exp(logprob) : 1);
    return ` ${advantage >= 0 ? "up" : "down"} h${step(Math.min(1, size / 2))}`;
  }
  return "";
}

interface TokensProps {
  /** As the tokenizer has them in the text; "" for one that adds none, such as an end of sequence. */
  readonly texts: readonly string[];
  /** Natural logarithm; null: not finite. */
  readonly logprobs: readonly (number | null)[];
  readonly advantage: number | null;
  readonly shade: Shade;
  /** "eos": the last token ended the sequence and may have no text. */
  readonly finish: string | null;
}

/** Which token an event is about: elements of tokens say their number in data-token. */
export function tokenOf(event: Event): number | null {
  const element = (event.target as HTMLElement).closest<HTMLElement>("[data-token]");
  return element === null ? null : Number(element.dataset.token);
}

/** A completion token by token; what lies under the pointer or the focus is told in a line below. */
export function Tokens({ texts, logprobs, advantage, shade, finish }: TokensProps) {
  const [at, setAt] = useState<number | null>(null);
  const tokens = useMemo(
    () => texts.map((text, index) => ({ text, logprob: logprobs[index] ?? Number.NaN })),
    [texts, logprobs],
  );
  const total = useMemo(() => tokens.reduce((sum, { logprob }) => sum + logprob, 0), [tokens]);
  const under = at === null ? undefined : tokens[at];
  const pointed = (event: Event) => setAt(tokenOf(event));
  const moved = (event: KeyboardEvent) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    event.stopPropagation();
    const by = event.key === "ArrowRight" ? 1 : -1;
    setAt(Math.max(0, Math.min(tokens.length - 1, (at ?? (by > 0 ? -1 : tokens.length)) + by)));
  };
  return (
    <div class="tokens">
      {/* biome-ignore lint/a11y/useKeyWithMouseEvents: by keyboard the arrow keys walk along the tokens */}
      <div
        class="text"
        role="application"
        // biome-ignore lint/a11y/noNoninteractiveTabindex: as above
        tabIndex={0}
        aria-label="completion, token by token; arrow keys move along"
        onMouseOver={pointed}
        onMouseLeave={() => setAt(null)}
        onKeyDown={moved}
        onBlur={() => setAt(null)}
      >
        {tokens.map(({ text, logprob }, index) => (
          <span
            key={index}
            data-token={index}
            class={`token${shadeClass(shade, logprob, advantage)}${index === at ? " at" : ""}`}
          >
            {text === "" ? (
              <span class="special">{finish === "eos" && index === tokens.length - 1 ? "■ end" : "∅"}</span>
            ) : (
              <Visible text={text} />
            )}
          </span>
        ))}
      </div>
      <div class="under" aria-live="polite">
        {under === undefined ? (
          <span>
            {tokens.length} tokens · log p <b>{figure(total)}</b> · per token{" "}
            <b>{figure(total / Math.max(1, tokens.length), 3)}</b>
          </span>
        ) : (
          <>
            <code>{under.text === "" ? "∅" : <Visible text={under.text} spaces />}</code>
            <span>
              token <b>{at! + 1}</b> of {tokens.length}
            </span>
            <span>
              log p <b>{figure(under.logprob)}</b>
            </span>
            <span>
              p <b>{percent(Math.exp(under.logprob), 2)}</b>
            </span>
            {advantage === null ? null : (
              <span>
                push <b>{signed(advantage * (1 - Math.exp(under.logprob)))}</b>
              </span>
            )}
          </>
        )}
      </div>
    </div>
  );
}
